"""What the machine can do: multiply-adds of the register tile, and bytes filled and copied."""

from __future__ import annotations

import time
from collections.abc import Callable

import numba
import numpy as np

from ..cpu.simd import outer_shape, outer_tile

#: A panel of this many rows stays in the first-level cache.
DEPTH = 256
REPEATS = 2000
FILL_BYTES = 1 << 28


@numba.njit(parallel=True, nogil=True)
def tiles(weights, pixels, out, depth, repeats):
    """The register tile over panels that stay in the nearest cache, on every thread."""
    for thread in numba.prange(out.shape[0]):
        a, b, tile = weights[thread], pixels[thread], out[thread]
        step = tile.shape[1]
        for _ in range(repeats):
            outer_tile(a, 0, b, 0, 1, 0, depth, step, tile)


@numba.njit(parallel=True, nogil=True)
def fill(a, value):
    """Write every item."""
    for i in numba.prange(a.size):
        a[i] = value


@numba.njit(parallel=True, nogil=True)
def copy(a, b):
    """Read every item and write it."""
    for i in numba.prange(a.size):
        a[i] = b[i]


def best(call: Callable[[], object], seconds: float) -> float:
    """The shortest time of a call, over so many seconds."""
    call()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def peak(dtype: str, seconds: float = 0.5) -> dict[str, float]:
    """Operations a second (two for a multiply-add), and bytes a second of filling and of copying (read and written)."""
    kind, threads = np.dtype(dtype), numba.get_num_threads()
    MR, NR = outer_shape(kind)
    weights, pixels = np.ones((threads, DEPTH * MR), kind), np.ones((threads, DEPTH * NR), kind)
    out = np.empty((threads, MR, NR), kind)
    once = best(lambda: tiles(weights, pixels, out, DEPTH, REPEATS), seconds)
    a, b = (np.ones(FILL_BYTES // kind.itemsize, kind) for _ in range(2))
    return {
        "flops": 2 * threads * MR * NR * DEPTH * REPEATS / once,
        "fill": a.nbytes / best(lambda: fill(a, kind.type(0)), seconds),
        "copy": 2 * a.nbytes / best(lambda: copy(a, b), seconds),
    }
