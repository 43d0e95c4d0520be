"""How much memory there is, asked before any is taken."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

#: Requests below this many bytes are not worth asking the system about.
ALWAYS_THERE = 1 << 24

#: What an algorithm that ``auto`` picks may take beyond inputs and outputs, in bytes.
WORKSPACE = 64 << 20

#: Bytes of workspace that a thread keeps for its next call: a new page costs a microsecond when it is first touched,
#: which for a small layer is as much as the work itself. Arrays beyond it come in large pages.
KEPT = 16 << 20

#: Where a workspace begins: no vector in it lies across two lines of the cache.
LINE = 64


def available() -> int:
    """Bytes that can be taken now: what the system has free, or less where a container sets a limit."""
    return min(_system(), _container())


def require(nbytes: int, what: str, instead: str, free: Callable[[], int] | None = None) -> None:
    """Raise ``MemoryError`` if ``nbytes`` for ``what`` would not fit, and say what to use instead.

    ``free`` tells how much there is on another device.
    """
    if nbytes < ALWAYS_THERE:
        return
    there = free() if free else available()
    if nbytes > there:
        raise MemoryError(
            f"{what} needs {nbytes:,} bytes ({nbytes / 2**30:.1f} GiB), {there:,} bytes are available; {instead}"
        )


@contextmanager
def workspace(count: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    """``count`` items for the time of a call, whatever they hold, from memory that this thread keeps where it can."""
    nbytes = count * dtype.itemsize + LINE
    memory, _spare.memory = _spare.memory, None  # a call within this one, by a signal's handler say, gets its own
    if memory is None or memory.size < nbytes:
        memory = np.empty(nbytes, np.uint8)
    begin = -memory.ctypes.data % LINE
    try:
        yield memory[begin : begin + count * dtype.itemsize].view(dtype)
    finally:
        if memory.size <= KEPT:
            _spare.memory = memory


class _Spare(threading.local):
    memory: np.ndarray | None = None


_spare = _Spare()


@cache
def cache_size(level: int) -> int:
    """Bytes of a core's data cache of this level; a usual size where the system does not tell."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            found, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if int(found) == level and kind != "Instruction" and size.endswith("K"):
            return int(size[:-1]) << 10
    if sys.platform == "darwin":
        name = {1: "hw.l1dcachesize", 2: "hw.l2cachesize"}.get(level, "hw.l3cachesize")
        answer = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip()
        if answer.isdigit():
            return int(answer)
    return {1: 32 << 10, 2: 512 << 10}.get(level, 8 << 20)


def _system() -> int:
    if sys.platform.startswith("linux"):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return _windows()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _windows() -> int:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "available", "page", "free_page", "virtual", "free_virtual", "extended")
        ]

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]  # Windows only
    return int(status.available)


def _container() -> int:
    """What a control group (version 2) leaves, if one limits this process."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), (group / "memory.current").read_text()
        return sys.maxsize if limit == "max" else max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return sys.maxsize
