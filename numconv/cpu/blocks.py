"""What a task of the implicit product computes: blocks that fit the caches, tiles of which little is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload
from numba.np.numpy_support import as_dtype

from .._indexing import KERNEL, OUT
from .._memory import cache_size
from ._jit import helper
from .lines import between, even, in_place, lines_for, rows_of, times
from .rows import lines_of
from .simd import HIGHEST, SUMS, WIDTHS, sum_lanes

#: Most rows of X_conv that are multiplied at a time: a few panels of them stay in the L2 cache.
TERMS = 576

#: Most taps of a row that have lines of their own, so that every row of X_conv begins a vector.
SEPARATE = 8

#: Blocks of outputs that are summed in their own type, if the parts are not too many.
UNITS = 64

#: Most bytes that the parts of a weight gradient may take.
PARTS = 16 << 20


@helper
def blocks_of(
    axes: np.ndarray, N: int, C: int, K: int, G: int, dtype: np.dtype, threads: int, turned: tuple[int, int] = (1, 0)
) -> np.ndarray:
    """What a task computes: lines that fill a third of the L2 cache, and tasks that take the threads the least time.

    Which input channels are summed at a time does not follow from the number of threads, so no sum does. Weights are
    ``turned`` (steps along rows and columns of ``W_flat``) if a row is scattered.
    """
    rows, lanes = rows_of(axes), sum_lanes(dtype)
    lead, lead_k, taps = times(rows[:-2], OUT), times(rows[:-2], KERNEL), times(rows, KERNEL)
    R_out, L_out = rows[-2][OUT], rows[-1][OUT]
    cache = cache_bytes() // item_bytes(dtype)
    columns = even(L_out, 512)
    direct = in_place(axes) and (R_out == 1 or columns == L_out)
    many = K >= 5 * HIGHEST  # few strips would not pay for packing, or for more lines
    separate = many and not direct and rows[-1][KERNEL] <= SEPARATE and L_out == columns and columns % lanes == 0
    packed = direct or (many and not separate)
    row_lines, row_shift = lines_for(rows[-2])
    lines, shift = (rows[-1][KERNEL], 0) if separate else lines_for(rows[-1], 0 if packed else K, lanes)
    down, across = between(rows[-2], row_lines, row_shift), between(rows[-1], lines, shift)
    room = cache // 3 // (lead_k * row_lines * lines)
    channels = even(C, max(1, min(TERMS // taps, room // ((min(R_out, 4) + down) * (columns + across)))))
    most = max(1, 1024 // columns if direct else room // (channels * (columns + across)) - down)

    def cycles(high, columns, shares, width):
        """About what the threads take for a term of all sums."""
        vectors, MR = -(-high * columns // lanes), min(HIGHEST, SUMS // width)
        gathering, packing = row_lines * lines * (high + down) * 24 / taps, 2 * (vectors + high) if packed else 0
        tasks = N * lead * G * -(-R_out // high) * -(-L_out // columns) * shares
        tiles, weights = -(-K // shares // MR) * cycles_of_tiles(vectors, width), 0.4 * K / shares
        return -(-tasks // threads) * (tiles + weights + gathering + packing)

    best = (np.inf, 0, 0, 0, 0)
    for pieces in range(-(-L_out // columns), -(-L_out // columns) + (2 * min(threads, 8) if R_out == 1 else 1)):
        wide = -(-L_out // pieces)
        wide = wide if pieces == 1 else -(-wide // lanes) * lanes  # aligned lines
        for blocks in range(-(-R_out // most), min(R_out, -(-R_out // most) + 2 * min(threads, 8)) + 1):
            high = -(-R_out // blocks)
            for shares in (1, min(threads, max(1, K // HIGHEST))):
                for v in WIDTHS:
                    choice = (cycles(high, wide, shares, v), shares, -high, -wide, v)
                    if choice < best:
                        best = choice
    _, shares, high, columns, width = best
    depth = channels * taps
    together = max(1, cache // 3 // (depth * width * lanes)) if packed else 0
    scattered = turned[1] > turned[0] and packed
    copied = max(HIGHEST, cache // 8 // (channels * turned[0]) // HIGHEST * HIGHEST) if scattered else 0
    return np.array([
        -high, -columns, channels, shares, row_lines, row_shift, lines, shift, together, width * lanes, lanes, copied,
        int(direct),
    ])  # fmt: skip


@helper
def cycles_of_tiles(vectors: int, width: int) -> float:
    """About what tiles that share so many vectors of columns take to add a term: to multiply, or only to load."""
    full, rest = divmod(vectors, width)
    MR = min(HIGHEST, SUMS // width)
    cycles = full * max(MR * width, MR + 2 * width + 2) / 2
    return cycles + max(MR * rest, MR + 2 * rest + 2) / 2 if rest else cycles


@helper
def blocks_for_weights(
    axes: np.ndarray, N: int, C: int, K: int, G: int, dtype: np.dtype
) -> tuple[np.ndarray, int]:
    """What a task of the weight gradient computes, and into how many parts the outputs are split for it."""
    rows = rows_of(axes)
    lead, taps = times(rows[:-2], OUT), times(rows, KERNEL)
    (row_lines, row_shift), (lines, shift) = lines_of(rows[-2]), lines_of(rows[-1])
    down, across = between(rows[-2], row_lines, row_shift), between(rows[-1], lines, shift)
    R_out, L_out = rows[-2][OUT], rows[-1][OUT]
    copies = times(rows[:-2], KERNEL) * row_lines * lines
    room = cache_bytes() // 2 // item_bytes(dtype)
    channels = even(C, max(1, -(-C * G // 8), 256 // taps))  # tasks enough, each with sums enough for its turned dY
    columns = even(L_out, 512)
    high = even(R_out, max(min(R_out, 4), room // ((copies * channels + K) * (columns + across)) - down))
    channels = even(C, min(channels, max(1, room // (copies * (high + down) * (columns + across)))))
    tasks = G * -(-C // channels)
    units = N * lead * -(-R_out // high) * -(-L_out // columns)
    parts = min(units, max(-(-8 // tasks), units // UNITS), max(1, PARTS // (K * G * C * taps * item_bytes(dtype))))
    direct = in_place(axes) and not is_complex(dtype) and (R_out == 1 or columns == L_out)
    lanes = sum_lanes(dtype)
    least, width = np.inf, 0
    for v in WIDTHS:
        cycles = cycles_of_tiles(-(-K // lanes), v) / min(HIGHEST, SUMS // v)
        if cycles < least:
            least, width = cycles, v * lanes
    return np.array([
        high, columns, channels, 1, row_lines, row_shift, lines, shift, 0, width, lanes, 0, int(direct)
    ]), parts  # fmt: skip


def cache_bytes() -> int:
    """Bytes of the L2 cache: of the machine that runs, which compiled code asks in ``callers.py``."""
    return cache_size(2)


def item_bytes(dtype: np.dtype) -> int:
    """Bytes of a number."""
    return dtype.itemsize


def is_complex(dtype: np.dtype) -> bool:
    """Whether this is a complex dtype."""
    return dtype.kind == "c"


def _known(function: Any) -> None:
    # What compiled code sees of a function of a dtype: its result.
    def constant(dtype):
        result = function(as_dtype(dtype.dtype))
        return lambda dtype: result

    overload(function)(constant)


for function in (sum_lanes, item_bytes, is_complex):
    _known(function)
