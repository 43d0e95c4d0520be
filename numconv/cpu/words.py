"""A few words of memory that compiled code of the caller reads while it runs: whether it may start threads, and how.

They have a name that the linker knows, so that such code can be cached on disk, and they are filled on the first
question. It asks from threads that Python knows only, so the answer may take the GIL.
"""

from __future__ import annotations

import ctypes
import os

import numpy as np
from llvmlite import binding

#: Below this many multiply-adds (or copies) starting threads costs more than they save: a launch takes 5 to 10 us.
SERIAL_BELOW = 1 << 17

#: The address of the launcher (0: compute alone; -1: nobody has asked), below how much work nobody asks, the address
#: of the function to ask, how many threads there are, and the address of OpenMP's ``omp_in_parallel``, or 0.
LAUNCHER, BELOW, ASK, THREADS, IN_PARALLEL = range(5)
NAME = "numconv_words"


@ctypes.CFUNCTYPE(ctypes.c_int32)
def _ask() -> int:
    words[LAUNCHER] = 0
    from . import _jit

    _jit.tell(words)
    return 0


words = np.array([-1, SERIAL_BELOW, ctypes.cast(_ask, ctypes.c_void_p).value, 1, 0], dtype=np.int64)


def _forked() -> None:
    # threads do not survive a fork
    words[LAUNCHER] = min(words[LAUNCHER], 0)


def register() -> None:
    """Tell the linker where the words are."""
    binding.add_symbol(NAME, words.ctypes.data)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forked)
