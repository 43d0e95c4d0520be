"""How kernels are compiled and launched. Every JIT option of the CPU room stands here.

A kernel is one loop, compiled on demand in two ways: serial, for small work and for forked children, and parallel.
Both are cached on disk; numba's cache key knows a function by its name and not by its options, so the parallel one
gets a name of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba.np.ufunc import parallel as numba_threads

from .. import _indexing

#: ``contract`` lets a*b+c be one rounding, ``reassoc`` lets a sum be vectorised. Nothing that assumes NaN or infinity
#: away: NaN in, NaN out.
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc"},
}

#: Below this many multiply-adds (or copies) starting threads costs more than they save: a launch takes 5 to 10 us.
SERIAL_BELOW = 1 << 17

helper = numba.njit(**OPTIONS)


def _compiled_indexing() -> dict[str, Any]:
    """The functions of ``_indexing``, compiled; each sees the compiled ones before it."""
    names = dict(vars(_indexing))
    for name, f in vars(_indexing).items():
        if isinstance(f, FunctionType):
            names[name] = helper(FunctionType(f.__code__, names, name))
    return names


_index = _compiled_indexing()
position, source, first_output = _index["position"], _index["source"], _index["first_output"]
row_source, row_output = _index["row_source"], _index["row_output"]


class Kernel:
    """A loop over independent tasks, launched as ``kernel(*arrays, work=...)`` with ``work`` its multiply-adds."""

    def __init__(self, loop: Callable[..., None]) -> None:
        self.__doc__, self.__name__, self.__module__ = loop.__doc__, loop.__name__, loop.__module__
        self.serial = numba.njit(cache=True, **OPTIONS)(loop)
        self.parallel = numba.njit(parallel=True, cache=True, **OPTIONS)(_renamed(loop, f"{loop.__name__}_parallel"))

    def __call__(self, *arguments: Any, work: int) -> None:
        if (work < SERIAL_BELOW and not _threads.wanted) or _threads.lost_in_fork:
            self.serial(*arguments)
        else:
            _threads.launch(self.parallel, arguments)


def _renamed(f: Callable[..., None], name: str) -> Callable[..., None]:
    copy = FunctionType(f.__code__.replace(co_name=name), f.__globals__, name, f.__defaults__, f.__closure__)
    copy.__module__, copy.__qualname__, copy.__doc__ = f.__module__, name, f.__doc__
    return copy


class _Threads:
    """The right to launch a parallel loop.

    numba's ``workqueue`` layer aborts the process when two Python threads launch at once, so launches there take
    turns; OpenMP and TBB run free. Which layer it is, numba knows only after the first launch. Threads do not
    survive a fork, and GNU OpenMP kills a child that launches: such a child computes serially.
    """

    def __init__(self) -> None:
        self.lost_in_fork = False
        self.wanted = 0  # by how many ``every_launch_parallel``
        self._turn = threading.Lock()
        self._free = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._turn = threading.Lock()
        self.lost_in_fork = self.lost_in_fork or numba_threads._is_initialized

    def launch(self, loop: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self._free:
            loop(*arguments)
            return
        with self._turn:
            loop(*arguments)
            self._free = numba.threading_layer() != "workqueue"


_threads = _Threads()


@contextmanager
def every_launch_parallel() -> Iterator[None]:
    """Launch threads however small the work, as ``warmup`` needs it; results do not depend on it."""
    _threads.wanted += 1
    try:
        yield
    finally:
        _threads.wanted -= 1


def flat(array: np.ndarray, *shape: int) -> np.ndarray:
    """A read-only view in the shape a kernel wants.

    All inputs reach kernels read-only and contiguous, so that one compilation serves every caller.
    """
    view = array.reshape(shape)
    view.setflags(write=False)
    return view
