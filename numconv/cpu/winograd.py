"""Winograd's minimal filtering F(4x4, 3x3): 36 multiplications where the sum needs 144.

    y = A^T [sum over c of (G w G^T) * (B^T x B)] A

for each tile of 4 x 4 outputs (Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016). Each of
the 36 products is a matrix product, ``M[xi] = V[xi]^T @ U[xi]`` with a row for each tile and a column for each output
channel. Tiles lie side by side in the vectors that transform pixels, output channels in those of kernels and outputs.

With stride 2 an output meets two even pixels and an odd one, ``y[o] = w[0] e[o] + w[2] e[o + 1] + w[1] d[o]``: four
outputs are F(4, 2), 5 multiplications, and 4 more, in two dimensions 81 where the sum needs 144. In the input gradient
even pixels are F(4, 2) of the output's gradient, and odd ones a product each. Both are the formula above with other
matrices. The last four rows of G are alike, so a transformed kernel has 36 places for either stride.

A tile whose outputs are not all finite is summed again as it is written: the transforms mix all pixels of a tile, and
may overflow where the sum does not. A pixel or weight that is not finite always shows, for nothing makes NaN finite.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np

from .._indexing import CONSTANT, OUT, SIZE, START, STEP, STRIDE
from .._memory import workspace as memory
from ..geometry import ConvGeometry, axes_table
from ._jit import Kernel, flat, helper, source, tasks_of
from .simd import (
    address,
    borrowed,
    by_kind,
    copy_run,
    keep,
    lanes,
    panel_sum,
    panel_width,
    sandwich,
    sandwich_of_rows,
    transpose,
    turn,
)

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
#: Fewer where each worker transforms its kernels itself, which then wait for their product in the L2 cache.
CHANNELS, FEWER = 64, 32

#: Tiles of a block at the most, up to how many tiles in all kernels are transformed by each worker for itself, and
#: vectors between the places of U, V and M, so that they do not meet in one set of the cache.
TILES, FEW, PAD = 48, 24, 5


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
    result: int
    squares: int
    each: int  #: all of that, and the transformed kernels of all workers
    shared: int


class Strided(Blocks):
    """The same for stride 2."""


class Spread(Blocks):
    """The same for the input gradient of stride 2."""


#: The first numbers of ``Blocks``, by its type, for which code is compiled when it is first used.
SCHEMES = {Blocks: (TILE, TILE, WINDOW, WINDOW), Strided: (4, 8, 9, 9), Spread: (8, 4, 5, 9)}

AT_2, G_2, BT_2, AT_BACK, BT_BACK = with_odd()
_of_pairs = sandwich(G_2)
of_weights = by_kind({Blocks: sandwich(G), Strided: _of_pairs, Spread: _of_pairs})
of_pixels = by_kind({
    kind: sandwich_of_rows(matrix, SCHEMES[kind][1])
    for kind, matrix in ((Blocks, BT), (Strided, BT_2), (Spread, BT_BACK))
})  # fmt: skip
of_outputs = by_kind({
    kind: sandwich(matrix, with_sum=True) for kind, matrix in ((Blocks, AT), (Strided, AT_2), (Spread, AT_BACK))
})  # fmt: skip


@helper
def transform_kernels(w, g, k0, c0, channels, Kg, Cg, taps, b, mine, U, U0, zero):
    """U of the output channels at ``k0``, some channels: ``U[xi, c, k]``. ``mine`` has room to turn their taps."""
    across, size = TAPS * TAPS, (TAPS * TAPS + b.slack - 1) // b.slack * b.slack
    for k in range(k0, min(k0 + b.width, Kg), b.slack):
        kernels = min(b.slack, Kg - k)
        for q in range(0, channels, b.slack):
            n = min(b.slack, channels - q)
            if b.turned:
                for c in range(n):
                    at = ((g * Cg + c0 + q + c) * Kg + k) * across  # what follows a kernel is turned too if it is there
                    more = size if at + (b.slack - 1) * across + size <= w.size else across
                    square = b.squares + c * across * b.slack
                    transpose(address(w, zero), at, across, kernels, more, mine, square, b.slack, zero)
            else:
                at = ((g * Kg + k) * Cg + c0 + q) * across
                transpose(address(w, zero), at, Cg * across, kernels, n * across, mine, b.squares, b.slack, zero)
            of_weights(
                b, mine, b.squares + taps[0] * b.slack, taps[1] * b.slack, taps[2] * b.slack, across * b.slack,
                U, U0 + q * b.width + k - k0, WINDOW * b.U_step, b.U_step, b.width, 0, n, b.slack, zero,
            )  # fmt: skip


@Kernel
def _weights(team, w, Kg, Cg, taps, b, U, own):
    # w (kernels, 9), flat; U (groups, columns, 36, U_step), each place (Cg, width).
    zero, workers, parts = w.dtype.type(0), own.shape[0], (Cg + CHANNELS - 1) // CHANNELS
    w, U, own, tasks = borrowed(w), borrowed(U), borrowed(own), b.groups * b.columns * parts
    for worker in tasks_of(team, workers):
        mine = own[worker]
        mine[b.squares :] = 0  # lanes without a kernel are transformed too
        for task in range(tasks * worker // workers, tasks * (worker + 1) // workers):
            c0, column = task % parts * CHANNELS, task // parts
            transform_kernels(
                w, column // b.columns, column % b.columns * b.width, c0, min(CHANNELS, Cg - c0), Kg, Cg, taps, b,
                address(mine, zero), address(U, zero), column * PLACES * b.U_step + c0 * b.width, zero,
            )  # fmt: skip


@helper
def first_pixel(axis):
    """The pixel that the first window begins with."""
    return axis[START] + min(0, (TAPS - 1) * axis[STEP])


@helper
def reach(outputs, b):
    """How many pixels so many outputs read along an axis."""
    return (outputs * b.apart + b.tile - 1) // b.tile + b.window - b.apart


@helper
def runs_of(t0, t1, axes, boundary, fill, image_size, b, runs, edges, lines):
    """Where tiles ``t0 .. t1`` meet the image, whichever the channel; returns how many runs there are.

    A run is tiles side by side: its first (counted from ``t0``), how many, the image, the row and column of the first
    among the tiles; where the last one's edges end, places in the lines that are filled pixel by pixel; and where its
    lines lie in the image, or -1. What is no pixel is put into ``lines`` here.
    """
    H, L, room = axes[0, SIZE], axes[1, SIZE], b.room
    across, down = (axes[1, OUT] + b.tile - 1) // b.tile, (axes[0, OUT] + b.tile - 1) // b.tile
    rows, columns = reach(axes[0, OUT], b), reach(axes[1, OUT], b)
    top, left = first_pixel(axes[0]), first_pixel(axes[1])
    ends = lines[(b.window + b.side) * b.window * room :]
    ends[:room] = 0
    count, met, t = 0, 0, t0
    while t < t1:
        image, O, o = t // (across * down), t // across % down, t % across
        first, tiles = t - t0, min(across - o, t1 - t)
        run = runs[count]
        run[0], run[1], run[2], run[3], run[4] = first, tiles, image, O, o
        ends[first + tiles - 1] = 1
        for i in range(b.window):
            row = source(top + O * b.apart + i, H, boundary) if O * b.apart + i < rows else -2
            run[6 + i] = image * image_size + row * L if row >= 0 else -1
            for j in range((tiles - 1) * b.apart + b.window):
                at, beyond = left + o * b.apart + j, j - tiles * b.apart
                if row < 0 or at < 0 or at >= L or beyond >= 0:
                    column = min(row, -1)
                    if row >= 0:
                        column = source(at, L, boundary) if o * b.apart + j < columns else -2
                    place = (b.window - b.apart) * room + first * b.apart + j
                    if beyond >= 0:
                        place = beyond * room + first + tiles - 1
                    place += i * b.window * room
                    if column >= 0:
                        edges[0, met], edges[1, met] = place, image * image_size + row * L + column
                        met += 1
                    else:
                        lines[place] = fill if column == -1 else 0
        run[5] = met
        t, count = t + tiles, count + 1
    return count


@helper
def transform_pixels(x, channel, left, L, count, runs, edges, b, lines, V, v0):
    """V of one channel: the lines of all runs, then their tiles."""
    zero, room = x.dtype.type(0), b.room
    begin, there = address(x, zero), address(lines, zero)
    for u in range(count):
        run = runs[u]
        first, length = left + run[4] * b.apart, run[1] * b.apart
        start = min(max(0, -first), length)
        inside = max(0, min(L - first, length) - start)
        target = (b.window - b.apart) * room + run[0] * b.apart + start
        for i in range(b.window):
            if run[6 + i] >= 0:
                copy_run(begin, channel + run[6 + i] + first + start, inside, there, target + i * b.window * room, zero)
    last = runs[count - 1]
    for other in range(last[5]):
        lines[edges[0, other]] = x[channel + edges[1, other]]
    of_pixels(b, there, 0, room, last[0] + last[1], V, v0, b.V_step, zero)


@helper
def pixel_of(o, t, axis, boundary, b):
    """The pixel that tap ``t`` of output ``o`` meets, counted from the first window; -1 for the constant, or -2."""
    place = o * max(1, b.apart // b.tile) + t
    parts = max(1, b.tile // b.apart)
    return -2 if place % parts else source(first_pixel(axis) + place // parts, axis[SIZE], boundary)


@helper
def again(x, w, taps, total, axes, boundary, fill, b, n, c0, w0, w_step, channels, O, o):
    """One output, summed as it is written."""
    for c in range(channels):
        for r in range(TAPS):
            i = pixel_of(O, r, axes[0], boundary, b)
            for t in range(TAPS):
                j = pixel_of(o, t, axes[1], boundary, b)
                weight = w[(w0 + c * w_step) * TAPS * TAPS + taps[0] + r * taps[1] + t * taps[2]]
                if min(i, j) >= 0:
                    total += weight * x[n, c0 + c, i, j]
                elif min(i, j) == -1 and weight * fill != 0:
                    total += weight * fill
    return total


@helper
def repair(result, x, w, taps, bias, axes, boundary, fill, b, run, g, k0, Cg, y):
    """Sum the tiles that are not finite again, as they are written: those of a run, a vector of channels."""
    R_out, L_out = y.shape[2:]
    top, left = axes[0, OUT] - R_out, axes[1, OUT] - L_out
    Kg, n, O = y.shape[1] // (x.shape[1] // Cg), run[2], run[3] * b.tile
    for s in range(run[1]):
        o = (run[4] + s) * b.tile
        for k in range(k0, min(k0 + b.slack, Kg)):
            if result[(b.tile * b.tile * run[1] + s) * b.slack + k - k0] * 0 != 0:
                w0, w_step = (k, Kg) if b.turned else (k * Cg, 1)
                for i in range(max(O, top), min(O + b.tile, R_out + top)):
                    for j in range(max(o, left), min(o + b.tile, L_out + left)):
                        y[n, g * Kg + k, i - top, j - left] = again(
                            x, w, taps, bias[g * Kg + k], axes, boundary, fill, b, n, g * Cg, g * Kg * Cg + w0, w_step,
                            Cg, i, j,
                        )  # fmt: skip


@helper
def unload(here, M0, b, run, bias, k, kernels, top, left, outputs, y, result):
    """The outputs of a run of tiles and a vector of channels, into their rows; returns whether all are finite.

    The first ``top`` rows and ``left`` columns of all tiles are none of the outputs.
    """
    K, R_out, L_out = y.shape[1:]
    tiles, n, O, o = run[1], run[2], run[3] * b.tile - top, run[4] * b.tile - left
    row, size, zero, skip = tiles * b.tile * b.slack, tiles * b.slack, result.dtype.type(0), max(0, -o)
    of_outputs(
        b, here, M0 + run[0] * b.width, b.side * b.M_step, b.M_step, b.width,
        here, b.result, row, b.slack, b.tile * b.slack, b.result + b.tile * row, tiles, b.slack, zero,
    )  # fmt: skip
    for i in range(max(0, -O), min(b.tile, R_out - O)):
        begin = ((n * K + k) * R_out + O + i) * L_out + o + skip
        turn(
            here, b.result + i * row + skip * b.slack, b.slack, min(tiles * b.tile, L_out - o) - skip, kernels,
            address(bias, zero), k, address(outputs, zero), begin, R_out * L_out, zero,
        )  # fmt: skip
    sums, nothing = result[b.tile * row : b.tile * row + size], zero
    for j in range(size):
        nothing += sums[j] * 0
    return nothing == 0


@helper
def block(x, w, taps, bias, axes, boundary, fill, b, U, mine, task, runs, edges, y):
    """A block of tiles and a share of the output channels, from pixels and kernels to outputs."""
    N, C, H, L = x.shape
    down, across = (axes[0, OUT] + b.tile - 1) // b.tile, (axes[1, OUT] + b.tile - 1) // b.tile
    above, before, left = axes[0, OUT] - y.shape[2], axes[1, OUT] - y.shape[3], first_pixel(axes[1])
    Cg, Kg = C // b.groups, y.shape[1] // b.groups
    share, part, g = task % b.shares, task // b.shares % b.blocks, task // b.shares // b.blocks
    T = N * down * across
    pairs = (T + 1) // 2
    t0, t1 = pairs * part // b.blocks * 2, min(pairs * (part + 1) // b.blocks * 2, T)
    pixels, outputs, lines, result = x.reshape(x.size), y.reshape(y.size), mine[b.lines : b.result], mine[b.result :]
    zero = mine.dtype.type(0)
    here, weights = address(mine, zero), address(mine if b.own else U, zero)
    count = runs_of(t0, t1, axes, boundary, fill, C * H * L, b, runs, edges, lines)
    for c in range(Cg):
        channel = (g * Cg + c) * H * L
        transform_pixels(pixels, channel, left, L, count, runs, edges, b, lines, here, c * b.room)
    for column in range(b.columns * share // b.shares, b.columns * (share + 1) // b.shares):
        k0, whole = column * b.width, Cg if not b.own else b.channels
        for part0 in range(0, Cg, max(whole, 1)):
            U0 = b.U if b.own else (g * b.columns + column) * PLACES * b.U_step
            if b.own:
                transform_kernels(
                    w, g, k0, part0, min(b.channels, Cg - part0), Kg, Cg, taps, b, here, here, b.U, zero
                )
            for xi in range(b.side * b.side):
                place = min(xi // b.side, WINDOW - 1) * WINDOW + min(xi % b.side, WINDOW - 1)
                for c0 in range(part0, min(part0 + whole, Cg), b.channels):
                    panel_sum(
                        here, xi * b.V_step + c0 * b.room, b.room,
                        weights, U0 + place * b.U_step + (c0 - part0) * b.width, b.width, min(b.channels, Cg - c0),
                        here, b.M + xi * b.M_step, b.width, (t1 - t0 + 1) // 2 * 2, b.width, c0, zero,
                    )  # fmt: skip
        for k in range(k0, min(k0 + b.width, Kg), b.slack):
            for u in range(count):
                M0, run, kernels = b.M + k - k0, runs[u], min(b.slack, Kg - k)
                if not unload(here, M0, b, run, bias, g * Kg + k, kernels, above, before, outputs, y, result):
                    repair(result, x, w, taps, bias, axes, boundary, fill, b, run, g, k, Cg, y)


@Kernel
def _forward(team, x, w, taps, bias, axes, boundary, fill, b, U, own, y):
    # x (N, C, H, L), w (kernels, 9), flat, y (N, K, rows, columns); own (workers, b.each) is the workers' own memory.
    x, w, bias, axes, U, own, y = (
        borrowed(x), borrowed(w), borrowed(bias), borrowed(axes), borrowed(U), borrowed(own), borrowed(y)
    )  # fmt: skip
    workers, tasks = own.shape[0], b.groups * b.blocks * b.shares
    for worker in tasks_of(team, workers):
        runs, edges = np.empty((b.tiles, 6 + b.window), np.int64), np.empty((2, b.window**2 * b.tiles), np.int64)
        mine = own[worker]
        mine[b.lines :] = 0  # what lies beyond lines and kernels is transformed too; as garbage it may be slow
        for task in range(tasks * worker // workers, tasks * (worker + 1) // workers):
            block(x, w, taps, bias, axes, boundary, fill, b, U, mine, task, borrowed(runs), borrowed(edges), y)
        keep(runs, edges)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``y[n,k] = bias[k] + sum over c of w[k,c] (*) x[n,c]``, 3 x 3 kernels, stride 1 or 2, no dilation."""
    _run(Blocks if axes[0, STRIDE] == 1 else Strided, x, w, False, bias, axes, boundary, fill, y)


def grad_input(dY: np.ndarray, w: np.ndarray, geometry: ConvGeometry, dX: np.ndarray) -> None:
    """``dX`` under zero padding: the kernels backwards, with inputs and outputs changing places."""
    no_bias, nothing = np.zeros(dX.shape[1], dtype=dX.dtype), dX.dtype.type(0)
    kind = Blocks if geometry.stride == (1, 1) else Spread
    if dX.size:
        _run(kind, dY, w, True, no_bias, axes_table([*map(back, geometry.axis_rows)]), CONSTANT, nothing, dX)


@helper
def back(row: tuple[int, ...]) -> tuple[int, ...]:
    """An axis of the input gradient, whose tiles begin with a pixel that two taps meet if the stride is 2.

    That may be the pixel before the image; then there is an output more than ``dX`` has.
    """
    size, kernel, out, start, stride, step = row
    before, beyond = start % stride, max(0, (kernel - 1) * step)
    return out, kernel, size + before, (-before - start - beyond) // stride + beyond, 1, -step


def _run(
    kind: type[Blocks], x: np.ndarray, w: np.ndarray, turned: bool, bias: np.ndarray, axes: np.ndarray, boundary: int,
    fill: np.generic, y: np.ndarray,
) -> None:
    (N, C), K, dtype, workers = x.shape[:2], y.shape[1], y.dtype, numba.get_num_threads()
    groups = (K if turned else C) // w.shape[1]
    out = tuple(axes[:, OUT].tolist())
    b = kind(*cut(*SCHEMES[kind], N, C // groups, K // groups, groups, out, turned, dtype, workers))
    steps = TAPS * int(axes[0, STEP]), int(axes[1, STEP])
    taps = sum(-2 * step for step in steps if step < 0), *steps  # the first, from row to row, from column to column
    x, w = flat(x, *x.shape), flat(w, w.size)
    with memory(b.shared + workers * b.each, dtype) as everything:
        U, own = everything[: b.shared], everything[b.shared :].reshape(workers, b.each)
        if not b.own:
            _weights(w, K // groups, C // groups, taps, b, U, own, work=b.shared // 4)
        _forward(
            x, w, taps, flat(bias, K), axes, boundary, fill, b, U, own, y, work=y.size * C // groups * TAPS * TAPS
        )


@lru_cache(maxsize=1024)
def cut(
    tile: int, apart: int, window: int, side: int, N: int, Cg: int, Kg: int, groups: int, out: tuple[int, ...],
    turned: bool, dtype: np.dtype, workers: int,
) -> Blocks:
    """``blocks_of``, once for each of its arguments."""
    return blocks_of((tile, apart, window, side), N, Cg, Kg, groups, out, turned, dtype, workers)


@helper
def blocks_of(
    scheme: tuple[int, int, int, int], N: int, Cg: int, Kg: int, groups: int, out: Any, turned: bool, dtype: np.dtype,
    workers: int,
) -> Blocks:
    """Blocks of tiles for each worker; where there are too few of them, shares of the output channels."""
    tile, apart, window, side = scheme
    slack, T = lanes(dtype), N * -(-out[0] // tile) * -(-out[1] // tile)
    pairs, width = max(1, -(-T // 2)), min(panel_width(dtype), max(1, -(-Kg // slack)) * slack)
    columns, most = max(1, -(-Kg // width)), max(1, TILES * PLACES // side**2 // slack) * slack
    blocks, own = -(-pairs * 2 // most), min(FEW, most) >= T
    if not own:
        blocks = min(pairs, max(blocks, -(-blocks * groups // workers) * workers // max(groups, 1)))
    shares = min(columns, max(1, workers // max(groups * blocks, 1)))
    tiles, pad, channels = -(-pairs // blocks) * 2, PAD * slack, FEWER if own else CHANNELS
    room = -(-tiles // slack) * slack
    U_step = (channels if own else Cg) * width + pad
    V_step, M_step = Cg * room + pad, tiles * width + pad
    M = up(side**2 * V_step, slack)
    U = M + up(side**2 * M_step, slack)
    lines = U + (up(PLACES * U_step, slack) if own else 0)
    result = lines + up(((window + side) * window + 1) * room, slack)
    squares = result + up((tile * tile + 1) * tiles * slack + slack * slack, slack)
    each = squares + up((TAPS * TAPS * slack + 2 * slack + 8) * slack, slack)
    return Blocks(
        tile, apart, window, side, groups, int(turned), slack, tiles, room, blocks, shares, width, columns, channels,
        int(own), U_step, V_step, M_step, M, U, lines, result, squares, each,
        0 if own else groups * columns * PLACES * U_step,
    )


@helper
def up(n: int, multiple: int) -> int:
    """``n`` filled up to a multiple."""
    return -(-n // multiple) * multiple


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: transformed kernels, and a block's tiles for each thread."""
    g, workers = geometry, numba.get_num_threads()
    Cg, Kg = g.C // g.groups, g.K // g.groups
    there, back = (Blocks, Blocks) if g.stride == (1, 1) else (Strided, Spread)
    forward = cut(*SCHEMES[there], g.N, Cg, Kg, g.groups, g.out, False, dtype, workers)
    backward = cut(*SCHEMES[back], g.N, Kg, Cg, g.groups, tuple(n + 1 for n in g.size), True, dtype, workers)
    tables = 128 << 10
    return max((b.shared + workers * b.each) * dtype.itemsize for b in (forward, backward)) + workers * tables
