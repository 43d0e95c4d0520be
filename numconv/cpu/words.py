"""A few words of memory that compiled code of the caller reads while it runs: whether it may start threads, and how.

They have a name that the linker knows, so that such code can be cached on disk, and they are filled on the first
question. It asks from threads that Python knows only, so the answer may take the GIL.
"""

from __future__ import annotations

import ctypes
import os
import sys

import numpy as np
from llvmlite import binding

#: Below this many multiply-adds (or copies) starting threads costs more than they save: a launch takes 5 to 10 us.
SERIAL_BELOW = 1 << 17

#: The address of the launcher (0: compute alone; -1: nobody has asked), below how much work nobody asks, the address
#: of the function to ask, how many threads there are, and the address of OpenMP's ``omp_in_parallel``, or 0.
#: Then the address of the function that loads a launcher, that of the one to ask how much memory there is, and its last
#: answer in bytes; and the size of the L2 cache, which is not that of the machine that compiled. Behind them lie pairs:
#: the number of a launcher, and its address.
LAUNCHER, BELOW, ASK, THREADS, IN_PARALLEL, LOAD, MEMORY, AVAILABLE, L2, _ = range(10)
FIRST, LAUNCHERS = 10, 512
NAME = "numconv_words"


@ctypes.CFUNCTYPE(ctypes.c_int32)
def _ask() -> int:
    words[LAUNCHER] = 0
    from .callers import tell

    tell(words)
    return 0


@ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64)
def _load(key: int, length: int) -> int:
    from .addresses import Loader

    Loader(ctypes.string_at(key, length))()
    return 0


@ctypes.CFUNCTYPE(ctypes.c_int32)
def _memory() -> int:
    from .._memory import available

    words[AVAILABLE] = available()
    return 0


words = np.zeros(FIRST + 2 * LAUNCHERS, dtype=np.int64)
words[LAUNCHER], words[BELOW], words[THREADS], words[AVAILABLE] = -1, SERIAL_BELOW, 1, sys.maxsize
for at, function in ((ASK, _ask), (LOAD, _load), (MEMORY, _memory)):
    words[at] = ctypes.cast(function, ctypes.c_void_p).value or 0


def _forked() -> None:
    words[LAUNCHER] = -1  # threads do not survive a fork


def register() -> None:
    """Tell the linker where the words are."""
    binding.add_symbol(NAME, words.ctypes.data)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forked)
