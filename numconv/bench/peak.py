"""What the machine can do: multiply-adds of the register tile on every thread, and bytes filled and copied."""

from __future__ import annotations

import time
from collections.abc import Callable

import numba
import numpy as np
from numba import prange

from ..cpu._jit import Kernel
from ..cpu.simd import outer_shape, outer_tile

#: Two panels of this many rows stay in the nearest cache (30 KB).
DEPTH = 128
REPEATS = 2000
MEMORY = 1 << 27
PIECES = 64


@Kernel
def multiply_add(weights, pixels, tiles, depth, repeats):
    """The register tile again and again over two panels for each thread."""
    for thread in prange(tiles.shape[0]):
        a, b, tile = weights[thread], pixels[thread], tiles[thread]
        for _ in range(repeats):
            outer_tile(a, 0, b, 0, 1, 0, depth, tile.shape[1], tile)


@Kernel
def fill(a):
    """Clear memory, which compiles to the system's own ``memset``."""
    for piece in prange(a.shape[0]):
        target = a[piece]
        for i in range(target.size):
            target[i] = 0


@Kernel
def copy(a, b):
    """Copy memory."""
    for piece in prange(a.shape[0]):
        target, source = a[piece], b[piece]
        for i in range(target.size):
            target[i] = source[i]


def flops(dtype: str, seconds: float = 0.03) -> float:
    """Operations a second, two for a multiply-add. Clocks change: it takes so little time that every case can ask."""
    kind, threads = np.dtype(dtype), numba.get_num_threads()
    MR, NR = outer_shape(kind)
    weights, pixels = np.ones((threads, DEPTH * MR), kind), np.ones((threads, DEPTH * NR), kind)
    tiles, work = np.empty((threads, MR, NR), kind), threads * MR * NR * DEPTH * REPEATS
    return 2 * work / best(lambda: multiply_add(weights, pixels, tiles, DEPTH, REPEATS, work=work), seconds)


def memory(seconds: float = 0.3) -> dict[str, float]:
    """Bytes a second of filling, and of copying (read and written)."""
    a, b = (np.ones((PIECES, MEMORY // PIECES // 4), np.float32) for _ in range(2))
    return {
        "fill": a.nbytes / best(lambda: fill(a, work=a.size), seconds),
        "copy": 2 * a.nbytes / best(lambda: copy(a, b, work=a.size), seconds),
    }


def best(call: Callable[[], object], seconds: float) -> float:
    """The shortest time of a call, over so many seconds and at least five calls."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
