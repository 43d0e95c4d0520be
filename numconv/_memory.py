"""How much memory there is, asked before any is taken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

#: Requests below this many bytes are not worth asking the system about.
ALWAYS_THERE = 1 << 24


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
