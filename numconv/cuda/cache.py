"""Compiled kernels on disk: what the driver loads, a file for each kernel and kind of arguments.

numba's own cache keeps what it needs to go on compiling, and looks at the one file that a kernel stands in. Here the
driver's code is all, and helpers in other files count. A file has a checksum and says what it was compiled from; what
is damaged, or from other sources, counts as not there, and is written anew in its place.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from functools import cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numba

from ..cpu import cache as on_disk

#: What kernels are compiled from, in numconv's folder.
SOURCES = ("cuda", "_indexing.py")

#: What numba can be told of the code that it makes.
SWITCHES = ("OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "CUDA_DEBUGINFO_DEFAULT")


@cache
def _stamp() -> str:
    """A checksum of what all kernels are compiled from, and by."""
    from numba.cuda.cudadrv import runtime

    switches = [str(getattr(numba.config, name, None)) for name in SWITCHES]
    compiler = numba.__version__, version("numba-cuda"), *map(str, runtime.get_version()), *switches
    checksum = hashlib.sha256(" ".join(compiler).encode())
    for name in SOURCES:
        for text in on_disk.texts(resources.files("numconv") / name):
            checksum.update(text)
    return checksum.hexdigest()


class Stored:
    """The place on disk of a kernel that is compiled for these arguments, with these options, for such a GPU."""

    def __init__(self, loop: Callable[..., Any], compiled_for: Any) -> None:
        locators, self._writable = on_disk.locators(loop)
        self._folders = [Path(locator.get_cache_path()) for locator in locators]
        about = repr((identity(loop), compiled_for))
        known = hashlib.sha256(about.encode()).hexdigest()[:20]
        self._file = f"{loop.__module__.rpartition('.')[2]}.{loop.__name__}-{known}.cubin"
        self._about = hashlib.sha256(f"{_stamp()} {about}".encode()).digest()

    def load(self) -> tuple[str, bytes] | None:
        """The kernel's name in its code, and the code; ``None`` if it is not there."""
        for folder in self._folders:
            try:
                content = (folder / self._file).read_bytes()
            except OSError:
                continue
            checksum, about, body = content[:32], content[32:64], content[64:]
            if about == self._about and checksum == hashlib.sha256(about + body).digest():
                name, _, code = body.partition(b"\n")
                return name.decode(), code
        return None

    def save(self, name: str, code: bytes) -> None:
        """Keep it for other processes, if there is a folder for it."""
        if not self._writable:
            on_disk.warn_once(on_disk.NO_FOLDER)
            return
        file, body = self._folders[-1] / self._file, self._about + name.encode() + b"\n" + code
        beside = file.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(hashlib.sha256(body).digest() + body)
            beside.replace(file)
        except OSError as error:
            on_disk.warn_once(on_disk.cannot_keep(file.parent, error))


def identity(value: Any) -> Any:
    """What tells a function from others of the same line, made with other constants; of other values what they show."""
    value = getattr(value, "py_func", value)
    if not callable(value) or not hasattr(value, "__code__"):
        return repr(value)
    cells = [identity(cell.cell_contents) for cell in value.__closure__ or ()]
    return value.__module__, value.__qualname__, value.__code__.co_firstlineno, cells
