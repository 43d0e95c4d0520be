"""What the machine can do: multiply-adds of the register tile on every thread, and bytes filled and copied."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from ..cpu._jit import Kernel, tasks_of
from ..cpu.simd import ALIGNED, HIGHEST, SUMS, address, aligned, keep, multiply_add, outer_sum, sum_lanes
from ..cpu.threads import thread_count

#: Two panels of this many rows stay in the nearest cache (30 KB).
DEPTH = 128
REPEATS = 2000
MEMORY = 1 << 27
PIECES = 64


@Kernel
def registers(team, tiles, n, zero):
    """Multiply-adds with nothing to load, for each thread."""
    for thread in tasks_of(team, tiles.shape[0]):
        tile = tiles[thread].reshape(tiles.shape[1] * tiles.shape[2])
        multiply_add(n, address(tile, zero), zero)
        keep(tile)


@Kernel
def tile_alone(team, weights, pixels, tiles, height, columns, rows, terms, repeats, zero):
    """The register tile again and again over two panels for each thread."""
    for thread in tasks_of(team, tiles.shape[0]):
        a, b, tile = weights[thread], pixels[thread], tiles[thread]
        a_at, b_at, tile_at = address(a, zero), address(b, zero), address(tile, zero)
        rows_at, terms_at = address(rows, zero), address(terms, zero)
        for _ in range(repeats):
            outer_sum(
                a_at, 0, rows_at, 0, b_at, aligned(b), terms_at, terms.shape[0], height, columns, 1, 0, tile_at, 0,
                columns, b_at, 0, True, zero,
            )  # fmt: skip
        keep(a, b, tile)
    keep(rows, terms)


@Kernel
def fill(team, a):
    """Clear memory, which compiles to the system's own ``memset``."""
    for piece in tasks_of(team, a.shape[0]):
        target = a[piece]
        for i in range(target.size):
            target[i] = 0


@Kernel
def copy(team, a, b):
    """Copy memory."""
    for piece in tasks_of(team, a.shape[0]):
        target, source = a[piece], b[piece]
        for i in range(target.size):
            target[i] = source[i]


def flops(dtype: str, seconds: float = 0.03) -> float:
    """Operations a second, two for a multiply-add. Clocks change: it takes so little time that every case can ask."""
    kind, threads = np.dtype(dtype), thread_count()
    height, vectors = HIGHEST, SUMS // HIGHEST
    width = vectors * sum_lanes(kind)
    weights, pixels = np.ones((threads, DEPTH * height), kind), np.ones((threads, DEPTH * width + ALIGNED), kind)
    tiles = np.zeros((threads, height * width), kind)
    work = threads * height * width * DEPTH * REPEATS
    rows, terms = np.arange(height) * DEPTH, np.arange(DEPTH)[:, None] * np.array([1, width])
    run = partial(tile_alone, weights, pixels, tiles, height, width, rows, terms, REPEATS, kind.type(0), work=work)
    return 2 * work / best(run, seconds)


def share(dtype: str, seconds: float = 0.1) -> float:
    """Which part of the multiply-adds that registers alone allow the tile reaches."""
    kind, threads = np.dtype(dtype), thread_count()
    tiles, n = np.zeros((threads, SUMS, sum_lanes(kind)), kind), DEPTH * REPEATS
    work = tiles.size * n
    parts = []
    for _ in range(5):  # clocks change: both at nearly the same time, the median of some
        most = 2 * work / best(lambda: registers(tiles, n, kind.type(0), work=work), seconds / 10)
        parts.append(flops(dtype, seconds / 10) / most)
    return float(np.median(parts))


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
