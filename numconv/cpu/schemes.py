"""Winograd's minimal filtering F(4x4, 3x3): 36 multiplications where the sum needs 144.

    y = A^T [sum over c of (G w G^T) * (B^T x B)] A

for each tile of 4 x 4 outputs (Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016).

With stride 2 an output meets two even pixels and an odd one, ``y[o] = w[0] e[o] + w[2] e[o + 1] + w[1] d[o]``: four
outputs are F(4, 2), 5 multiplications, and 4 more, in two dimensions 81 where the sum needs 144. In the input gradient
even pixels are F(4, 2) of the output's gradient, and odd ones a product each. Both are the formula above with other
matrices. The last four rows of G are alike, so a transformed kernel has 36 places for either stride.

With dilation the pixels of each phase are an image of their own, whose tiles are those of stride 1.

Here stand the matrices of each of these schemes, and how their tiles are cut into blocks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .._indexing import STEP
from .._memory import WORKSPACE
from ._jit import helper
from .simd import by_kind, lanes, largest_of_rows, panel_width, sandwich, sandwich_of_rows

TILE, TAPS = 4, 3
WINDOW = TILE + TAPS - 1
PLACES = WINDOW * WINDOW  #: of a transformed kernel

#: Where the polynomials are interpolated, besides infinity, for three and for two taps: pairs of signs halve the work,
#: and near one powers stay near one, which keeps the rounding near that of the plain sum. All of A and B is exact in
#: binary.
POINTS = {3: (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2), 2: (3 / 8, -3 / 8, 5 / 4, -5 / 4)}


def transforms(taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``A^T``, ``G`` and ``B^T`` of F(4, taps): Lagrange's interpolation, infinity as the last point."""
    points, window = POINTS[taps], TILE + taps - 1
    powers = np.vander(points, window, increasing=True)
    scale = np.array([np.prod([p - q for q in points if q != p]) for p in points])
    A = np.vstack([powers[:, :TILE], np.eye(TILE)[-1]])
    G = np.vstack([powers[:, :taps] / scale[:, None], np.eye(taps)[-1]])
    B = np.zeros((window, window))
    for row, p in enumerate(points):
        B[row, :-1] = np.poly([q for q in points if q != p])[::-1]
    B[-1] = np.poly(points)[::-1]
    return A.T, G, B


def with_odd() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For stride 2 ``A^T (4, 9)``, ``G (6, 3)``, ``B^T (9, 9)``, and back ``A^T (8, 9)``, ``B^T (9, 5)``.

    Rows and columns are F(4, 2)'s and then those of the odd pixels; of the equal rows of G there is one.
    """
    A, G, B = transforms(2)
    G_odd, B_odd, A_back = np.zeros((WINDOW, TAPS)), np.zeros((9, 9)), np.zeros((8, 9))
    G_odd[:5, ::2], G_odd[5, 1] = G, 1
    B_odd[:5, ::2], B_odd[5:, 1::2] = B, np.eye(4)
    A_back[::2, :5], A_back[1::2, 5:] = A, np.eye(4)
    return np.hstack([A, np.eye(4)]), G_odd, B_odd, A_back, np.vstack([B, np.eye(5)[1:]])


AT, G, BT = transforms(TAPS)

#: Channels added up at a time: sums of sums round less, and a panel of so many stays in the L1 cache for all tiles.
#: However many tiles there are, for an image has the bits in a batch that it has alone.
CHANNELS = 64

#: How many times larger the largest pixel of a tile may be than the largest that an output of it reads: what rounding
#: of the one leaves in the other is as much more. Pixels of 8 bits are within it, all but zeros.
RANGE = 256

#: Tiles of a block at the most, up to how many tiles in all kernels are transformed by each worker for itself, and
#: vectors between the places of U, V and M, so that they do not meet in one set of the cache.
TILES, FEW, PAD = 48, 24, 5

#: Bytes of the tables of runs and edges of a worker.
TABLES = 128 << 10


class Blocks(NamedTuple):
    """How the work is cut, and where things lie in memory, in numbers of the dtype."""

    tile: int  #: outputs of a tile along an axis
    apart: int  #: pixels from one tile to the next
    window: int  #: pixels that a tile reads along an axis
    side: int  #: and numbers that they become
    groups: int
    turned: int  #: 1 if kernels are numbered (g, c, k), for the input gradient, and not (g, k, c)
    slack: int  #: numbers in a vector
    tiles: int  #: tiles of the largest block, and filled up to whole vectors
    room: int
    blocks: int  #: blocks of tiles, shares of the output channels in each
    shares: int
    width: int  #: output channels at a time, how often in a group, and how many summed channels
    columns: int
    channels: int
    own: int  #: 1 if each worker transforms the kernels that it needs
    U_step: int  #: from one place to the next
    V_step: int
    M_step: int
    M: int  #: where things begin in what a worker has for itself, which begins with V
    U: int
    lines: int
    peaks: int
    result: int
    squares: int
    each: int  #: all of that, and the transformed kernels of all workers
    shared: int


class Strided(Blocks):
    """The same for stride 2."""


class Dilated(Blocks):
    """The same for dilation: of pixels so far apart each phase is an image of its own."""


class Spread(Blocks):
    """The same for the input gradient of stride 2."""


#: The first numbers of ``Blocks``, by its type, for which code is compiled when it is first used.
PLAIN, STRIDED, SPREAD = (TILE, TILE, WINDOW, WINDOW), (4, 8, 9, 9), (8, 4, 5, 9)
SCHEMES = {Blocks: PLAIN, Dilated: PLAIN, Strided: STRIDED, Spread: SPREAD}

AT_2, G_2, BT_2, AT_BACK, BT_BACK = with_odd()
MATRICES = {Blocks: (AT, G, BT), Dilated: (AT, G, BT), Strided: (AT_2, G_2, BT_2), Spread: (AT_BACK, G_2, BT_BACK)}


def reads_of(scheme: tuple[int, int, int, int]) -> list[tuple[int, int]]:
    """The first and the last row of a tile's window that each of its outputs reads, and then that anything does."""
    tile, apart, window, _ = scheme
    step, parts = max(1, apart // tile), max(1, tile // apart)
    rows = [((o * step + parts - 1) // parts, (o * step + TAPS - 1) // parts) for o in range(tile)]
    return [*rows, (0, window - 1)]


of_weights = by_kind({kind: sandwich(matrices[1]) for kind, matrices in MATRICES.items()})
of_pixels = by_kind({kind: sandwich_of_rows(matrices[2], SCHEMES[kind][1]) for kind, matrices in MATRICES.items()})
of_peaks = by_kind({kind: largest_of_rows(reads_of(scheme), *scheme[2:0:-1]) for kind, scheme in SCHEMES.items()})
of_outputs = by_kind({kind: sandwich(matrices[0], with_sum=True) for kind, matrices in MATRICES.items()})


@helper
def taps_of(axes: np.ndarray) -> tuple[int, int, int]:
    """Where a kernel's taps lie in ``w``: the first, and steps from row to row and from column to column."""
    row, column = TAPS if axes[0, STEP] > 0 else -TAPS, 1 if axes[1, STEP] > 0 else -1
    return -2 * (min(row, 0) + min(column, 0)), row, column


@helper
def scheme_of(stride: int, backward: bool) -> tuple[int, int, int, int]:
    """The scheme of a stride, forward or for the input gradient; dilation has that of stride 1."""
    if stride == 1:
        return PLAIN
    return SPREAD if backward else STRIDED


@helper
def blocks_of(
    scheme: tuple[int, int, int, int], N: int, Cg: int, Kg: int, groups: int, out: Any, dilation: Any, turned: bool,
    dtype: np.dtype, workers: int,
) -> Blocks:
    """Blocks of tiles for each worker; where there are too few of them, shares of the output channels."""
    tile, apart, window, side = scheme
    slack, T = lanes(dtype), N
    for a in range(2):
        T *= dilation[a] * -(-out[a] // dilation[a] // tile)
    pairs, width = max(1, -(-T // 2)), min(panel_width(dtype), max(1, -(-Kg // slack)) * slack)
    columns, most = max(1, -(-Kg // width)), max(1, TILES * PLACES // side**2 // slack) * slack
    blocks, own = -(-pairs * 2 // most), min(FEW, most) >= T
    if not own:
        blocks = min(pairs, max(blocks, -(-blocks * groups // workers) * workers // max(groups, 1)))
    shares = min(columns, max(1, workers // max(groups * blocks, 1)))
    tiles, pad, channels = -(-pairs // blocks) * 2, PAD * slack, CHANNELS
    room = -(-tiles // slack) * slack
    U_step = (channels if own else Cg) * width + pad
    V_step, M_step = Cg * room + pad, tiles * width + pad
    M = up(side**2 * V_step, slack)
    U = M + up(side**2 * M_step, slack)
    lines = U + (up(PLACES * U_step, slack) if own else 0)
    peaks = lines + up(((window + side) * window + 1) * room, slack)
    result = peaks + window * window * room
    squares = result + up((tile * tile + 1) * tiles * slack + slack * slack, slack)
    each = squares + up((TAPS * TAPS * slack + 2 * slack + 8) * slack, slack)
    return Blocks(
        tile, apart, window, side, groups, int(turned), slack, tiles, room, blocks, shares, width, columns, channels,
        int(own), U_step, V_step, M_step, M, U, lines, peaks, result, squares, each,
        0 if own else groups * columns * PLACES * U_step,
    )


@helper
def up(n: int, multiple: int) -> int:
    """``n`` filled up to a multiple."""
    return -(-n // multiple) * multiple


#: The same, once for each of its arguments.
cut = lru_cache(maxsize=1024)(blocks_of)


@helper
def workers_of(threads: int, each: int, shared: int, item: int) -> int:
    """How many threads work where each needs memory of its own: no more than there is room for, but two."""
    return max(1, min(threads, max(2, (WORKSPACE - shared * item) // (each * item + TABLES))))
