"""numba's threads: which layer brings them, and whether they came along into a process that was forked.

All numba code of a process shares one layer. It is chosen when the first parallel loop needs it; what runs is never
changed here, nor what the user has chosen.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numba
from numba.np.ufunc import parallel as numba_threads

#: TBB's library as numba asks for it, and since which release of the package ``tbb`` numba takes it.
TBB = {"win32": "tbb12.dll", "darwin": "libtbb.12.dylib"}.get(sys.platform, "libtbb.so.12")
TBB_SINCE = (2021, 6)

#: How the user names a layer, and the order in which numba tries them.
VARIABLE, ORDER = "NUMBA_THREADING_LAYER", ["tbb", "omp", "workqueue"]

#: Where to look for OpenMP's functions. The layer is bound to those that a library has loaded for everybody, as PyTorch
#: does, else to its own; Windows has one.
OPENMP = (None, "numba.np.ufunc.omppool", "vcomp140")

#: Of the flags in ``/proc/self/stat``: forked, and no other program started since.
FORKED = 0x40

ONE_THREAD = "numconv computes on one thread in this process: "
NOT_ALONG = (
    "it was forked after numba had started threads, and threads do not come along. The start methods 'spawn' and "
    "'forkserver' of multiprocessing give processes threads of their own"
)
NEVER_ENDS = (
    "it was forked from one that had loaded GNU OpenMP (PyTorch does), whose threads do not come along, so that a "
    "parallel loop would wait for them forever. numba's threads work here with TBB (pip install tbb, on x86-64), and "
    "in processes that multiprocessing starts by 'spawn' or 'forkserver'"
)


def started() -> bool:
    """Whether numba has threads, and with them a layer that is chosen."""
    with suppress(ValueError):
        return bool(numba.threading_layer())
    return False


@lru_cache(maxsize=1)
def layer() -> str:
    """The layer of numba's threads, which are started if there are none.

    numba takes the first that it can load of TBB, OpenMP and its own ``workqueue``, unless the user has named one
    (``NUMBA_THREADING_LAYER``) or another order.
    """
    if not started() and chosen() not in ("omp", "workqueue"):
        _bring_tbb()
    numba.get_num_threads()
    return str(numba.threading_layer())


def chosen() -> str:
    """What the user has named, or ``"default"``."""
    return str(numba.config.THREADING_LAYER).lower()  # type: ignore[attr-defined]  # set as numba reads the environment


def reason() -> str:
    """Why it is this layer."""
    if chosen() != "default":
        return f"as {VARIABLE if VARIABLE in os.environ else 'numba.config.THREADING_LAYER'} asks"
    if [*numba.config.THREADING_LAYER_PRIORITY] != ORDER:  # type: ignore[attr-defined]
        return "by the order in NUMBA_THREADING_LAYER_PRIORITY"
    return {
        "tbb": "as TBB is installed",
        "omp": "as numba finds no TBB ('pip install tbb', on x86-64)",
    }.get(layer(), "as numba finds neither TBB nor OpenMP")


def _bring_tbb() -> None:
    """Load the library of the package ``tbb``, if it is installed: it lies where the loader does not look.

    numba finds a library that is loaded, whoever did it. Its symbols are for those who ask for it by name alone.
    """
    try:
        package = distribution("tbb")
        since = tuple(map(int, package.version.split(".")[:2]))
    except (PackageNotFoundError, ValueError):
        return
    paths = [file.locate() for file in package.files or () if file.name == TBB]
    if since >= TBB_SINCE and paths:
        with suppress(OSError):  # numba goes on to the next layer
            ctypes.CDLL(str(paths[0]))


def openmp(name: str) -> Any:
    """A function of the OpenMP that numba's layer calls, or ``None``."""
    for home in OPENMP:
        with suppress(OSError, TypeError, ImportError, AttributeError):
            path = import_module(home).__file__ if home and "." in home else home
            return getattr(ctypes.CDLL(path), name)
    return None


# after a fork ---------------------------------------------------------------------------------------------------------


class _Process:
    """What is known of how this process began."""

    forked = False
    had_threads = False

    def in_child(self) -> None:
        self.forked, self.had_threads = True, started()
        lost.cache_clear()


@lru_cache(maxsize=1)
def lost() -> str:
    """Why this process computes on one thread, whatever numba says; nothing, if it does not.

    Threads do not survive a fork. GNU OpenMP does not notice: whoever started it in the parent, for numba or for
    themselves, its first parallel loop in the child waits for threads that are not there. TBB and ``workqueue`` start
    theirs anew, unless it was numba that had started them.
    """
    if _process.had_threads:
        return NOT_ALONG
    before = _loaded("self")
    return NEVER_ENDS if layer() == "omp" and _openmp_came_along(before) else ""


def thread_count() -> int:
    """How many threads share the work of a launch."""
    return 1 if lost() else _wanted()


def _wanted() -> int:
    """``numba.get_num_threads()``, asked without its locks once there are threads.

    Each call of it takes two, one of them shared with forked processes. What an interrupt ends between their being
    taken and given back would hold up every later call of every thread.
    """
    ask = getattr(numba_threads, "_get_num_threads", None)  # set as the threads are started
    return int(ask() if ask else numba.get_num_threads())


def warn_if_lost() -> None:
    """Say that threads are missing, where more than one was wanted."""
    if lost() and _wanted() > 1:
        warnings.warn(ONE_THREAD + lost(), RuntimeWarning, stacklevel=2)


def _openmp_came_along(before: list[str]) -> bool:
    """Whether this process was forked from one that had loaded the GNU OpenMP that numba's layer calls.

    ``before`` says what was loaded when nobody had asked for the layer. The memory of the parent says what it has, as
    long as it is the process that forked: the two have loaded the C library at one address. If it has ended, or is
    another one, every OpenMP counts that was loaded before.
    """
    library = _holding(openmp("GOMP_parallel"), before)
    if "libgomp" not in Path(library).name or not _forked():
        return False
    parents = _loaded(os.getppid())
    return library in parents or _holding(ctypes.CDLL(None).getpid, before) not in parents


def _forked() -> bool:
    """Whether this process was forked and goes on with the same program."""
    try:
        flags = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6]
    except (OSError, IndexError):
        return _process.forked
    return _process.forked or bool(int(flags) & FORKED)


def _loaded(process: int | str) -> list[str]:
    """The lines on a process's memory that are code from files; none where the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    except OSError:
        return []
    return [line for line in lines if " r-xp " in line and "/" in line]


def _holding(function: Any, lines: Iterable[str]) -> str:
    """The line that a C function lies in, or nothing."""
    address = ctypes.cast(function, ctypes.c_void_p).value or 0
    for line in lines:
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        if begin <= address < end:
            return line
    return ""


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.in_child)
