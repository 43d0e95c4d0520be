"""The stand-in for the CUDA driver: ``gpu/standin.c``, compiled."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "gpu" / "standin.c"
COMPILER = shutil.which("cc") or shutil.which("gcc")

needs_a_standin = pytest.mark.skipif(
    not (sys.platform.startswith("linux") and COMPILER),
    reason="the stand-in for the driver is C for Linux: a compiler is needed, cc or gcc",
)


def standin_in(folder: Path) -> Path:
    """The library, which a process finds with its folder in ``LD_LIBRARY_PATH``."""
    library = folder / "libcuda.so.1"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library
