"""Winograd's minimal filtering F(4x4, 3x3): 36 multiplications where the sum needs 144.

    y = A^T [sum over c of (G w G^T) * (B^T x B)] A

for each tile of 4 x 4 outputs (Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016). Each of
the 36 products is a matrix product, ``M[xi] = V[xi]^T @ U[xi]`` with a row for each tile and a column for each output
channel. Tiles lie side by side in the vectors that transform pixels, output channels in those of kernels and outputs.

A tile whose outputs are not all finite is summed again as it is written: the transforms mix all pixels of a tile, and
may overflow where the sum does not. A pixel or weight that is not finite always shows, for nothing makes NaN finite.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np

from .._indexing import CONSTANT, OUT, SIZE, START, STEP
from .._memory import workspace as memory
from ..geometry import ConvGeometry, axes_table
from ._jit import Kernel, flat, helper, source, tasks_of
from .rows import accumulate
from .simd import (
    ROWS,
    address,
    borrowed,
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
PLACES = WINDOW * WINDOW

#: Where the polynomials are interpolated, besides infinity: pairs of signs halve the work, and between a half and two
#: the powers stay near one, which keeps the rounding near that of the plain sum. All of A and B is exact in binary.
POINTS = (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)


def transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``A^T (4, 6)``, ``G (6, 3)`` and ``B^T (6, 6)``: Lagrange's interpolation, infinity as the last point."""
    powers = np.vander(POINTS, WINDOW, increasing=True)
    scale = np.array([np.prod([p - q for q in POINTS if q != p]) for p in POINTS])
    A = np.vstack([powers[:, :TILE], np.eye(TILE)[-1]])
    G = np.vstack([powers[:, :TAPS] / scale[:, None], np.eye(TAPS)[-1]])
    B = np.zeros((WINDOW, WINDOW))
    for row, p in enumerate(POINTS):
        B[row, :-1] = np.poly([q for q in POINTS if q != p])[::-1]
    B[-1] = np.poly(POINTS)[::-1]
    return A.T, G, B


AT, G, BT = transforms()
of_outputs, of_weights, of_pixels = sandwich(AT, with_sum=True), sandwich(G), sandwich_of_rows(BT)

#: Channels added up at a time: sums of sums round less, and a panel of so many stays in the L1 cache for all tiles.
#: Fewer where each worker transforms its kernels itself, which then wait for their product in the L2 cache.
CHANNELS, FEWER = 64, 32

#: Tiles of a block at the most, up to how many tiles in all kernels are transformed by each worker for itself, and
#: vectors between the 36 places of U, V and M, so that they do not meet in one set of the cache.
TILES, FEW, PAD = 48, 24, 5


class Blocks(NamedTuple):
    """How the work is cut, and where things lie in memory, in numbers of the dtype."""

    groups: int
    turned: int  #: 1 if kernels are numbered (g, c, k), for the input gradient, and not (g, k, c)
    slack: int  #: numbers in a vector
    tiles: int  #: tiles of the largest block
    blocks: int  #: blocks of tiles, shares of the output channels in each
    shares: int
    width: int  #: output channels at a time, how often in a group, and how many summed channels
    columns: int
    channels: int
    own: int  #: 1 if each worker transforms the kernels that it needs
    U_step: int  #: from one of the 36 places to the next
    V_step: int
    M_step: int
    M: int  #: where things begin in what a worker has for itself, which begins with V
    U: int
    lines: int
    result: int
    squares: int
    each: int  #: all of that, and the transformed kernels of all workers
    shared: int


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
                mine, b.squares + taps[0] * b.slack, taps[1] * b.slack, taps[2] * b.slack, across * b.slack,
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
def runs_of(t0, t1, axes, boundary, fill, image_size, slack, runs, edges, lines):
    """Where tiles ``t0 .. t1`` meet the image, whichever the channel; returns how many runs there are.

    A run is tiles side by side: its first (counted from ``t0``), how many, the image, the output row and column of the
    first; where its six lines of pixels begin and how long they are; where its edges end, places in the lines that are
    other pixels of the image; and where its lines lie in the image, or -1. What is no pixel is put into ``lines`` here.
    """
    H, L = axes[0, SIZE], axes[1, SIZE]
    across, down = (axes[1, OUT] + TILE - 1) // TILE, (axes[0, OUT] + TILE - 1) // TILE
    top, left = axes[0, START] + min(0, 2 * axes[0, STEP]), axes[1, START] + min(0, 2 * axes[1, STEP])
    count, met, begin, t = 0, 0, 0, t0
    while t < t1:
        image, O, o = t // (across * down), t // across % down * TILE, t % across * TILE
        tiles = min(across - t % across, t1 - t)
        line = (tiles * TILE + TAPS - 1 + slack - 1) // slack * slack
        run = runs[count]
        run[0], run[1], run[2], run[3], run[4], run[5], run[6] = t - t0, tiles, image, O, o, begin, line
        for i in range(WINDOW):
            row = source(top + O + i, H, boundary) if O + i < axes[0, OUT] + TAPS - 1 else -2
            run[8 + i] = image * image_size + row * L if row >= 0 else -1
            for j in range(tiles * TILE + TAPS - 1):
                at = left + o + j
                if row < 0 or at < 0 or at >= L:
                    column = row if row < 0 else -2
                    if row >= 0 and o + j < axes[1, OUT] + TAPS - 1:
                        column = source(at, L, boundary)
                    if column >= 0:
                        edges[0, met], edges[1, met] = begin + i * line + j, image * image_size + row * L + column
                        met += 1
                    else:
                        lines[begin + i * line + j] = fill if column == -1 else 0
        run[7] = met
        t, count, begin = t + tiles, count + 1, begin + WINDOW * line
    return count


@helper
def transform_pixels(x, channel, left, L, fill, count, runs, edges, b, lines, V, v0):
    """V of one channel: the lines of each run, then their tiles."""
    zero, e = x.dtype.type(0), 0
    begin = address(x, zero)
    for u in range(count):
        run = runs[u]
        first, length = left + run[4], run[1] * TILE + TAPS - 1
        start = min(max(0, -first), length)
        inside = max(0, min(L - first, length) - start)
        for i in range(WINDOW):
            if run[8 + i] >= 0:
                pixel = channel + run[8 + i] + first + start
                copy_run(begin, pixel, inside, address(lines, zero), run[5] + i * run[6] + start, zero)
        for other in range(e, run[7]):
            lines[edges[0, other]] = x[channel + edges[1, other]]
        e = run[7]
        of_pixels(address(lines, zero), run[5], run[6], run[1], V, v0 + run[0], b.V_step, zero)


@helper
def row_again(x, w, bias, axes, boundary, fill, n, c0, k, w0, w_step, channels, O, o, y):
    """Outputs ``o …`` of row ``O``, summed as they are written."""
    y[:] = bias[k]
    for c in range(channels):
        for r in range(TAPS):
            i = source(axes[0, START] + O + r * axes[0, STEP], axes[0, SIZE], boundary)
            for t in range(TAPS):
                weight = w[((w0 + c * w_step) * TAPS + r) * TAPS + t]
                if i >= 0:
                    first = axes[1, START] + t * axes[1, STEP]
                    accumulate(x[n, c0 + c, i], weight, first, 1, boundary, fill, o, y)
                elif weight * fill != 0:
                    for j in range(y.size):
                        y[j] += weight * fill


@helper
def repair(result, x, w, bias, axes, boundary, fill, b, run, g, k0, Cg, y):
    """Sum the tiles that are not finite again, as they are written: those of a run, a vector of channels."""
    R_out, L_out = y.shape[2:]
    Kg = y.shape[1] // (x.shape[1] // Cg)
    n, O, o = run[2], run[3], run[4]
    for s in range(run[1]):
        for k in range(k0, min(k0 + b.slack, Kg)):
            if result[(TILE * TILE * run[1] + s) * b.slack + k - k0] * 0 != 0:
                w0, w_step = (k, Kg) if b.turned else (k * Cg, 1)
                begin = o + s * TILE
                for i in range(min(TILE, R_out - O)):
                    row_again(
                        x, w, bias, axes, boundary, fill, n, g * Cg, g * Kg + k, g * Kg * Cg + w0, w_step, Cg, O + i,
                        begin, y[n, g * Kg + k, O + i, begin : min(begin + TILE, L_out)],
                    )


@helper
def unload(here, M0, b, run, bias, k, kernels, outputs, y, result):
    """The outputs of a run of tiles and a vector of channels, into their rows; returns whether all are finite."""
    K, R_out, L_out = y.shape[1:]
    tiles, n, O, o = run[1], run[2], run[3], run[4]
    row, size, zero = tiles * TILE * b.slack, tiles * b.slack, result.dtype.type(0)
    of_outputs(
        here, M0 + run[0] * b.width, WINDOW * b.M_step, b.M_step, b.width,
        here, b.result, row, b.slack, TILE * b.slack, b.result + TILE * row, tiles, b.slack, zero,
    )  # fmt: skip
    for i in range(min(TILE, R_out - O)):
        begin = ((n * K + k) * R_out + O + i) * L_out + o
        turn(
            here, b.result + i * row, b.slack, min(tiles * TILE, L_out - o), kernels, address(bias, zero), k,
            address(outputs, zero), begin, R_out * L_out, zero,
        )  # fmt: skip
    sums, nothing = result[TILE * row : TILE * row + size], zero
    for j in range(size):
        nothing += sums[j] * 0
    return nothing == 0


@helper
def block(x, w, taps, bias, axes, boundary, fill, b, U, mine, task, runs, edges, y):
    """A block of tiles and a share of the output channels, from pixels and kernels to outputs."""
    N, C, H, L = x.shape
    R_out, L_out = y.shape[2:]
    Cg, Kg = C // b.groups, y.shape[1] // b.groups
    share, part, g = task % b.shares, task // b.shares % b.blocks, task // b.shares // b.blocks
    T = N * ((R_out + TILE - 1) // TILE) * ((L_out + TILE - 1) // TILE)
    units = (T + ROWS[0] - 1) // ROWS[0]
    t0, t1 = units * part // b.blocks * ROWS[0], min(units * (part + 1) // b.blocks * ROWS[0], T)
    pixels, outputs, lines, result = x.reshape(x.size), y.reshape(y.size), mine[b.lines : b.result], mine[b.result :]
    zero = mine.dtype.type(0)
    here, weights = address(mine, zero), address(mine if b.own else U, zero)
    count = runs_of(t0, t1, axes, boundary, fill, C * H * L, b.slack, runs, edges, lines)
    left = axes[1, START] + min(0, (TAPS - 1) * axes[1, STEP])
    for c in range(Cg):
        channel = (g * Cg + c) * H * L
        transform_pixels(pixels, channel, left, L, fill, count, runs, edges, b, lines, here, c * b.tiles)
    for column in range(b.columns * share // b.shares, b.columns * (share + 1) // b.shares):
        k0, whole = column * b.width, Cg if not b.own else b.channels
        for part0 in range(0, Cg, max(whole, 1)):
            U0 = b.U if b.own else (g * b.columns + column) * PLACES * b.U_step
            if b.own:
                transform_kernels(
                    w, g, k0, part0, min(b.channels, Cg - part0), Kg, Cg, taps, b, here, here, b.U, zero
                )
            for xi in range(PLACES):
                for c0 in range(part0, min(part0 + whole, Cg), b.channels):
                    panel_sum(
                        here, xi * b.V_step + c0 * b.tiles, b.tiles,
                        weights, U0 + xi * b.U_step + (c0 - part0) * b.width, b.width, min(b.channels, Cg - c0),
                        here, b.M + xi * b.M_step, b.width, (t1 - t0 + 1) // 2 * 2, b.width, c0, zero,
                    )  # fmt: skip
        for k in range(k0, min(k0 + b.width, Kg), b.slack):
            for u in range(count):
                M0, run, kernels = b.M + k - k0, runs[u], min(b.slack, Kg - k)
                if not unload(here, M0, b, run, bias, g * Kg + k, kernels, outputs, y, result):
                    repair(result, x, w, bias, axes, boundary, fill, b, run, g, k, Cg, y)


@Kernel
def _forward(team, x, w, taps, bias, axes, boundary, fill, b, U, own, y):
    # x (N, C, H, L), w (kernels, 9), flat, y (N, K, rows, columns); own (workers, b.each) is the workers' own memory.
    x, w, bias, axes, U, own, y = (
        borrowed(x), borrowed(w), borrowed(bias), borrowed(axes), borrowed(U), borrowed(own), borrowed(y)
    )  # fmt: skip
    workers, tasks = own.shape[0], b.groups * b.blocks * b.shares
    for worker in tasks_of(team, workers):
        runs, edges = np.empty((b.tiles, 8 + WINDOW), np.int64), np.empty((2, PLACES * b.tiles), np.int64)
        mine = own[worker]
        mine[b.lines :] = 0  # what lies beyond lines and kernels is transformed too; as garbage it may be slow
        for task in range(tasks * worker // workers, tasks * (worker + 1) // workers):
            block(x, w, taps, bias, axes, boundary, fill, b, U, mine, task, borrowed(runs), borrowed(edges), y)
        keep(runs, edges)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``y[n,k] = bias[k] + sum over c of w[k,c] (*) x[n,c]``, 3 x 3 kernels, stride 1, no dilation."""
    _run(x, w, False, bias, axes, boundary, fill, y)


def grad_input(dY: np.ndarray, w: np.ndarray, geometry: ConvGeometry, dX: np.ndarray) -> None:
    """``dX`` under zero padding: the kernels backwards, with inputs and outputs changing places."""
    no_bias, nothing = np.zeros(dX.shape[1], dtype=dX.dtype), dX.dtype.type(0)
    for _, _, rows in geometry.phases:  # one, or none for an image without pixels
        _run(dY, w, True, no_bias, axes_table(rows), CONSTANT, nothing, dX)


def _run(
    x: np.ndarray, w: np.ndarray, turned: bool, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic,
    y: np.ndarray,
) -> None:
    (N, C), (K, *out), dtype, workers = x.shape[:2], y.shape[1:], y.dtype, numba.get_num_threads()
    groups = (K if turned else C) // w.shape[1]
    b = cut(N, C // groups, K // groups, groups, tuple(out), turned, dtype, workers)
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
    N: int, Cg: int, Kg: int, groups: int, out: tuple[int, ...], turned: bool, dtype: np.dtype, workers: int
) -> Blocks:
    """``blocks_of``, once for each of its arguments."""
    return blocks_of(N, Cg, Kg, groups, out, turned, dtype, workers)


@helper
def blocks_of(N: int, Cg: int, Kg: int, groups: int, out: Any, turned: bool, dtype: np.dtype, workers: int) -> Blocks:
    """Blocks of tiles for each worker; where there are too few of them, shares of the output channels."""
    slack, T = lanes(dtype), N * -(-out[0] // TILE) * -(-out[1] // TILE)
    units, width = max(1, -(-T // ROWS[0])), min(panel_width(dtype), max(1, -(-Kg // slack)) * slack)
    columns, own = max(1, -(-Kg // width)), T <= FEW
    blocks = -(-units * ROWS[0] // TILES)
    if not own:
        blocks = min(units, max(blocks, -(-blocks * groups // workers) * workers // max(groups, 1)))
    shares = min(columns, max(1, workers // max(groups * blocks, 1)))
    tiles, pad = -(-units // blocks) * ROWS[0], PAD * slack
    channels = FEWER if own else CHANNELS
    U_step = (channels if own else Cg) * width + pad
    V_step, M_step = Cg * tiles + pad, tiles * width + pad
    M = up(PLACES * V_step, slack)
    U = M + up(PLACES * M_step, slack)
    lines = U + (up(PLACES * U_step, slack) if own else 0)
    result = lines + up(WINDOW * tiles * (TILE + TAPS - 1 + slack - 1), slack)
    squares = result + up((TILE * TILE + 1) * tiles * slack + slack * slack, slack)
    each = squares + up((TAPS * TAPS * slack + 2 * slack + 8) * slack, slack)
    return Blocks(
        groups, int(turned), slack, tiles, blocks, shares, width, columns, channels, int(own), U_step, V_step, M_step,
        M, U, lines, result, squares, each, 0 if own else groups * columns * PLACES * U_step,
    )


@helper
def up(n: int, multiple: int) -> int:
    """``n`` filled up to a multiple."""
    return -(-n // multiple) * multiple


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: transformed kernels, and a block's tiles for each thread."""
    g, workers = geometry, numba.get_num_threads()
    Cg, Kg = g.C // g.groups, g.K // g.groups
    forward = cut(g.N, Cg, Kg, g.groups, g.out, False, dtype, workers)
    backward = cut(g.N, Kg, Cg, g.groups, g.size, True, dtype, workers)
    tables = 128 << 10
    return max((b.shared + workers * b.each) * dtype.itemsize for b in (forward, backward)) + workers * tables
