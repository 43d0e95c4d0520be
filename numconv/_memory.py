"""How much memory there is, asked before any is taken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

#: Requests below this many bytes are not worth asking the system about.
ALWAYS_THERE = 1 << 24

#: What an algorithm that ``auto`` picks may take beyond inputs and outputs, in bytes.
WORKSPACE = 64 << 20

#: Bytes of workspace that a thread keeps for its next call: a new page costs a microsecond when it is first touched,
#: which for a small layer is as much as the work itself. Arrays beyond it come in large pages.
KEPT = 16 << 20

#: Where the files of the system lie; tests have a tree of their own.
ROOT = "/"

#: Where a workspace begins: no vector in it lies across two lines of the cache.
LINE = 64


def available() -> int:
    """Bytes that can be taken now: what the system has free, or less where a group or a limit of this process says so.

    The kernel kills a process that goes beyond the limit of its group without a word, so groups are looked at as well
    as what ``malloc`` refuses.
    """
    return max(0, min(_system(), _groups(), _limits()))


def require(nbytes: int, what: str, instead: str, free: Callable[[], int] | None = None) -> None:
    """Raise ``MemoryError`` if ``nbytes`` for ``what`` would not fit, and say what to use instead.

    Every call asks once, for all that it takes at its peak, before it takes or does anything; what it calls inside
    ``required`` is part of that. ``free`` tells how much there is on another device.
    """
    if nbytes < ALWAYS_THERE or _spare.asked:
        return
    there = free() if free else available()
    if nbytes > there:
        raise MemoryError(
            f"{what} needs {nbytes:,} bytes ({nbytes / 2**30:.1f} GiB), {there:,} bytes are available; {instead}"
        )


@contextmanager
def required(nbytes: int, what: str, instead: str = "use smaller pieces") -> Iterator[None]:
    """``require`` for a call that is made of others, which then ask for nothing themselves."""
    require(nbytes, what, instead)
    before, _spare.asked = _spare.asked, True
    try:
        yield
    finally:
        _spare.asked = before


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
    asked = False  # whether the call that runs has asked for all that it takes


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
        found = _field("proc/meminfo", "MemAvailable")
        if found is not None:
            return found
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


def _limits() -> int:
    """What the limits of this process (``ulimit -v``, ``ulimit -d``) leave, where the system says what it holds."""
    try:
        import resource
    except ImportError:  # Windows
        return sys.maxsize
    least = sys.maxsize
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and (held := _field("proc/self/status", name)) is not None:
            least = min(least, most - held)
    return least


def _groups() -> int:
    """What control groups leave: that of this process and all above it, each of which has a limit of its own.

    Pages of files that the kernel would drop count as free, as they do in ``MemAvailable``.
    """
    least = sys.maxsize
    for version, folder in _folders(ROOT, _text("proc/self/cgroup")):
        limits, used, dropped = VERSIONS[version]
        most = min(_number(folder + name, NONE) for name in limits)
        if most < NONE:
            held = _number(folder + used, 0) - (_field(folder + "memory.stat", dropped) or 0)
            least = min(least, most - max(0, held))
    return least


#: From here on a number stands for no limit.
NONE = 1 << 60

#: Files of a group, by the version of control groups: its limits, what is used, and in ``memory.stat`` what could be
#: dropped. Beyond ``memory.high`` a process is slowed down until it hardly moves.
VERSIONS = {
    2: (("memory.max", "memory.high"), "memory.current", "inactive_file"),
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
}


@lru_cache(maxsize=64)
def _folders(root: str, groups: str) -> list[tuple[int, str]]:
    """The folders of a process' groups for memory and of those above them, with the version of these.

    ``groups`` says which these are: a line for each controller or several, none for version 2.
    """
    found: list[tuple[int, str]] = []
    mounts = [line.partition(" - ")[::2] for line in _text("proc/self/mountinfo").splitlines()]
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        version = 1 if "memory" in controllers.split(",") else 2
        if version == 2 and controllers:
            continue
        for here, there in mounts:
            kind, *_, options = there.split(" ")
            if kind != ("cgroup", "cgroup2")[version - 1] or (version == 1 and "memory" not in options.split(",")):
                continue
            top, point = here.split(" ")[3:5]
            below = PurePosixPath(path)
            # in a container the path may be the host's: then what is mounted is its own group
            inner = below.relative_to(top).parts if below.is_relative_to(top) and ".." not in below.parts else ()
            lengths = range(len(inner), -1, -1)
            found.extend((version, "/".join((point.rstrip("/"), *inner[:n], ""))) for n in lengths)
    return found


def _text(file: str) -> str:
    """What a file of the system holds; nothing where there is none."""
    try:
        with open(os.path.join(ROOT, file.lstrip("/")), encoding="utf-8") as opened:
            return opened.read()
    except OSError:
        return ""


def _number(file: str, otherwise: int) -> int:
    """The number in a file; ``otherwise`` where there is none, or the word ``max``."""
    text = _text(file).strip()
    return int(text) if text.isdigit() else otherwise


def _field(file: str, name: str) -> int | None:
    """The number behind a name in a file with one in each line, in bytes."""
    found = re.search(rf"^{name}:?\s+(\d+)( kB)?$", _text(file), re.MULTILINE)
    return int(found[1]) * (1024 if found[2] else 1) if found else None
