"""The stand-in for the CUDA driver, built, and what a process needs to run over it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

COMPILER = shutil.which("cc") or shutil.which("gcc")


def over_standin(folder: Path) -> dict[str, str]:
    """The environment of a process over the stand-in, which is built into a folder."""
    library, source = folder / "libcuda.so.1", Path(__file__).parent / "gpu" / "standin.c"
    subprocess.run([COMPILER or "cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "NUMCONV_STANDIN": str(library)}
