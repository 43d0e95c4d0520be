"""Calls from a caller's own compiled function, beside the same call from Python."""

import numpy as np
from numba import njit, prange

import numconv as nc
from numconv import overloads

overloads.init()


@njit
def once(x, w):
    return nc.conv(x, w, padding=1)


@njit(parallel=True)
def each(x, w):
    sums = np.empty(len(x))
    for i in prange(len(x)):
        sums[i] = nc.conv(x[i], w, padding=1)[0, 0, 0]
    return sums


class Conv:
    """A layer, small and large: compiled, from Python, and image by image in a parallel loop."""

    params = ((8, 16), (64, 112))
    param_names = ("channels", "size")
    timeout = 300

    def setup(self, C, n):
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((4, C, n, n)).astype(np.float32)
        self.w = rng.standard_normal((C, C, 3, 3)).astype(np.float32)
        self.time_compiled(C, n)
        self.time_python(C, n)
        self.time_prange(C, n)

    def time_compiled(self, C, n):
        once(self.x, self.w)

    def time_python(self, C, n):
        nc.conv(self.x, self.w, padding=1, algorithm="implicit")

    def time_prange(self, C, n):
        each(self.x, self.w)
