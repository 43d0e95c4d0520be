"""The stand-in for the CUDA driver, and machines on which something is hidden: ``gpu/standin.c`` and ``gpu/hide.c``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc")

needs_a_standin = pytest.mark.skipif(
    not (sys.platform.startswith("linux") and COMPILER),
    reason="the stand-in for the driver is C for Linux: a compiler is needed, cc or gcc",
)


def compiled(source: str, library: Path) -> Path:
    """A library of ``gpu/``."""
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, HERE / "gpu" / source, "-ldl"], check=True)
    return library


def standin_in(folder: Path) -> Path:
    """The driver's library, which a process finds with its folder in ``LD_LIBRARY_PATH``."""
    return compiled("standin.c", folder / "libcuda.so.1")


class Machine:
    """A machine with a GPU, over the stand-in, on which libraries with these parts of names are hidden."""

    def __init__(self, folder: Path, hidden: tuple[str, ...] = (), **told: str) -> None:
        standin_in(folder)
        self.environment = {
            **os.environ, "LD_LIBRARY_PATH": str(folder), "LD_PRELOAD": str(compiled("hide.c", folder / "hide.so")),
            "NUMCONV_HIDDEN": ":".join(hidden), "NUMCONV_SHOWN": str(folder / "home"),
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]), **told,
        }  # fmt: skip

    def python(self, *arguments: str, **told: str) -> subprocess.CompletedProcess[str]:
        """A process there."""
        command = [sys.executable, *arguments]
        return subprocess.run(command, env={**self.environment, **told}, capture_output=True, text=True)


def over_standin(folder: Path) -> dict[str, str]:
    """The environment of a process over the stand-in, which is built into a folder."""
    library = standin_in(folder)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "NUMCONV_STANDIN": str(library)}
