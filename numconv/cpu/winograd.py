"""Winograd's minimal filtering F(4x4, 3x3): 36 multiplications where the sum needs 144.

    y = A^T [sum over c of (G w G^T) * (B^T x B)] A

for each tile of 4 x 4 outputs (Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016). Tiles
lie side by side in the vectors, so the three transforms run on all of them at once, and each of the 36 products is a
matrix product, ``M[xi] = U[xi] @ V[xi]`` with a row for each output channel and a column for each tile.

A tile whose outputs are not all finite is summed again as it is written: the transforms mix all pixels of a tile, and
may overflow where the sum does not. A pixel or weight that is not finite always shows, for nothing makes NaN finite.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np

from .._indexing import CONSTANT, OUT, SIZE, START, STEP
from ..geometry import ConvGeometry, axes_table
from ._jit import Kernel, flat, helper, source, tasks_of
from .rows import accumulate
from .simd import address, borrowed, copy_run, keep, lanes, outer_shape, panel_tile, sandwich, unweave, weave

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
of_outputs, of_weights, of_pixels = sandwich(AT, with_sum=True), sandwich(G, apart=TAPS * TAPS), sandwich(BT)

#: Bytes of the products of one block, which wait in the L2 cache for their transform; channels in a weights' task.
PRODUCTS, CHUNK = 512 << 10, 128
APART = CHUNK + 80

#: Channels added up at a time: sums of sums round less, and a panel of so many stays in the L1 cache for all outputs.
CHANNELS = 64

#: Vectors between the 36 places of V and M, so that they do not meet in one set of the cache.
PAD = 5

#: Panels of tiles in a block. Up to how many tiles in all each worker transforms the weights itself, in pieces of how
#: many bytes, rather than all of them through memory.
PANELS, FEW, WEIGHTS = 1, 64, 320 << 10


@Kernel
def _weights(team, w, first, row, column, width, U):
    # w (kernels, 9), flat; U (36 * width and more): the kernels side by side, whichever of their channels are outputs.
    n, zero = w.size // (TAPS * TAPS), w.dtype.type(0)
    w, U_at = borrowed(w), address(U, zero)
    for task in tasks_of(team, (n + CHUNK - 1) // CHUNK):
        places = np.empty(PLACES * APART, U.dtype)  # 36 streams at once to distant memory would be slow
        p0, size = task * CHUNK, min(CHUNK, n - task * CHUNK)
        of_weights(w, p0 * TAPS * TAPS + first, row, column, places, 0, APART, size)
        places_at = address(places, zero)
        for xi in range(PLACES):
            copy_run(places_at, xi * APART, size, U_at, xi * width + p0, zero)
        keep(places)
    keep(U)


@helper
def runs_of(t0, t1, axes, boundary, image_size, runs, rows, edges, counts, width):
    """Where tiles ``t0 .. t1`` meet the image, whichever the channel; ``counts`` has how many runs and edges.

    A run is tiles side by side: its first (counted from ``t0``), how many, and the image, output row and column of the
    first. ``rows`` has the six rows of pixels, -1 for the constant, -2 where no output looks. Edges are the places of
    the windows that lie left or right of the image, each with its pixel or -1 or -2.
    """
    H, L = axes[0, SIZE], axes[1, SIZE]
    across, down = (axes[1, OUT] + TILE - 1) // TILE, (axes[0, OUT] + TILE - 1) // TILE
    top, left = axes[0, START] + min(0, 2 * axes[0, STEP]), axes[1, START] + min(0, 2 * axes[1, STEP])
    count, met, t = 0, 0, t0
    while t < t1:
        image, O, o = t // (across * down), t // across % down * TILE, t % across * TILE
        run = min(across - t % across, t1 - t)
        runs[count, 0], runs[count, 1], runs[count, 2], runs[count, 3], runs[count, 4] = t - t0, run, image, O, o
        for i in range(WINDOW):
            row = source(top + O + i, H, boundary) if O + i < axes[0, OUT] + TAPS - 1 else -2
            rows[count, i] = row
            for s in range(run if row >= 0 else 0):
                first = left + o + s * TILE
                if first < 0 or first + WINDOW > L:
                    for j in range(WINDOW):
                        if first + j < 0 or first + j >= L:
                            column = -2
                            if first + j < left + axes[1, OUT] + TAPS - 1:
                                column = source(first + j, L, boundary)
                            edges[0, met] = (i * WINDOW + j) * width + t - t0 + s
                            edges[1, met] = image * image_size + row * L + column if column >= 0 else column
                            met += 1
        t += run
        count += 1
    counts[0], counts[1] = count, met


@helper
def windows(x, channel, image_size, first, L, fill, slack, p, counts, runs, rows, edges, width, window):
    """The 36 pixels of each tile of one channel: ``window[place * width + tile]``."""
    for u in range(counts[p, 0]):
        at, run, image, o = runs[p, u, 0], runs[p, u, 1], runs[p, u, 2], runs[p, u, 4]
        begin = image * image_size + channel + first + o
        reach = TILE * ((run + slack - 1) // slack * slack) + slack
        for i in range(WINDOW):
            row, place = rows[u, i], i * WINDOW * width + at
            if row < 0:
                for j in range(WINDOW):
                    for s in range(run):
                        window[place + j * width + s] = fill if row == -1 else 0
                continue
            s0 = begin + row * L
            if s0 >= 0 and s0 + reach <= x.size:
                unweave(x, s0, run, window, place, width)
            else:  # a vector would leave the array
                for s in range(run):
                    for j in range(WINDOW):
                        if 0 <= s0 + s * TILE + j < x.size:
                            window[place + j * width + s] = x[s0 + s * TILE + j]
    for e in range(counts[p, 1]):
        pixel = edges[1, e]
        window[edges[0, e]] = x[pixel + channel] if pixel >= 0 else (fill if pixel == -1 else 0)


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


@Kernel
def _forward(
    team, x, w, first, row, column, U, width, turned, groups, bias, axes, boundary, fill, MR, NR, slack, blocks, shares,
    KB, V, M, U_own, y,
):
    # x (N, C, H, L), w (kernels, 9), U (36 * width), y (N, K, rows, columns). A task is a block of tiles and a share of
    # the output channels; V, M and U_own are the workers' own. Kernels are numbered (g, k, c), or (g, c, k) if turned.
    x, w, U, bias, V, M, U_own, y = (
        borrowed(x), borrowed(w), borrowed(U), borrowed(bias), borrowed(V), borrowed(M), borrowed(U_own), borrowed(y)
    )  # fmt: skip
    N, C, H, L = x.shape
    K, R_out, L_out = y.shape[1:]
    Cg, Kg = C // groups, K // groups
    T = N * ((R_out + TILE - 1) // TILE) * ((L_out + TILE - 1) // TILE)
    vectors, strips = (T + slack - 1) // slack, (Kg + MR - 1) // MR
    wide = min(NR, (vectors + blocks - 1) // blocks * slack)  # columns of a panel
    panels = ((vectors + blocks - 1) // blocks * slack + wide - 1) // wide
    V_step, M_step = Cg * wide + PAD * slack, panels * KB * wide + PAD * slack
    own = U_own.shape[1] > 0
    pixels, outputs = x.reshape(x.size), y.reshape(y.size)
    left = axes[1, START] + min(0, (TAPS - 1) * axes[1, STEP])
    workers, tasks = V.shape[0], groups * blocks * shares
    for worker in tasks_of(team, workers):
        V_here, M_here, U_here = V[worker], M[worker], U_own[worker] if own else U
        window, result = np.zeros(PLACES * (NR + slack), x.dtype), np.empty((TILE * TILE + 1) * NR + slack, x.dtype)
        runs, rows = np.empty((panels, NR, 5), np.int64), np.empty((NR, WINDOW), np.int64)
        edges, counts = np.empty((2, PLACES * NR), np.int64), np.empty((panels, 2), np.int64)
        for task in range(tasks * worker // workers, tasks * (worker + 1) // workers):
            share, block, g = task % shares, task // shares % blocks, task // shares // blocks
            t0, t1 = vectors * block // blocks * slack, min(vectors * (block + 1) // blocks * slack, T)
            for p in range(panels):
                p0, p1 = min(t0 + p * wide, t1), min(t0 + (p + 1) * wide, t1)
                runs_of(p0, p1, axes, boundary, C * H * L, runs[p], rows, edges, counts[p], NR + slack)
                whole = (p1 - p0 + slack - 1) // slack * slack
                for c in range(Cg):
                    windows(
                        pixels, (g * Cg + c) * H * L, C * H * L, left, L, fill, slack, p, counts, runs, rows, edges,
                        NR + slack, window,
                    )
                    of_pixels(
                        window, 0, WINDOW * (NR + slack), NR + slack,
                        V_here, p * PLACES * V_step + c * wide, V_step, whole,
                    )
            k_end = strips * (share + 1) // shares * MR
            for k0 in range(strips * share // shares * MR, k_end, KB):
                k1 = min(k0 + KB, k_end)
                kernels, U0, U_step = min(k1, Kg) - k0, g * Kg * Cg + (k0 if turned else k0 * Cg), width
                if own:
                    U_step = KB * Cg + PAD * slack
                    if turned:
                        for c in range(Cg):
                            w0 = (U0 + c * Kg) * TAPS * TAPS + first
                            of_weights(w, w0, row, column, U_here, c * KB, U_step, kernels)
                    else:
                        w0 = U0 * TAPS * TAPS + first
                        of_weights(w, w0, row, column, U_here, 0, U_step, kernels * Cg)
                    U0 = 0
                k_step, c_step = (1, KB if own else Kg) if turned else (Cg, 1)
                for xi in range(PLACES):
                    for p in range(panels):
                        whole = (min(wide, t1 - t0 - p * wide) + slack - 1) // slack * slack
                        for c0 in range(0, Cg, CHANNELS):
                            for k in range(0, k1 - k0, MR):
                                panel_tile(
                                    U_here, xi * U_step + U0 + k * k_step + c0 * c_step, k_step, c_step,
                                    V_here, (p * PLACES + xi) * V_step + c0 * wide, wide, min(CHANNELS, Cg - c0),
                                    M_here, xi * M_step + (p * KB + k) * wide, wide, MR, whole, c0,
                                )
                for k in range(kernels):
                    for p in range(panels):
                        tiles = min(wide, t1 - t0 - p * wide)
                        whole = (tiles + slack - 1) // slack * slack
                        of_outputs(M_here, (p * KB + k) * wide, WINDOW * M_step, M_step, result, 0, NR, whole)
                        if not unload(result, NR, tiles, p, counts, runs, bias, g * Kg + k0 + k, fill, outputs, y):
                            repair(
                                result, NR, x, w, bias, axes, boundary, fill, p, counts, runs, g, k0 + k, Cg, turned, y
                            )


@helper
def unload(result, NR, tiles, p, counts, runs, bias, k, fill, outputs, y):
    """Put the outputs of a panel's tiles into their rows of channel ``k``; returns whether all of them are finite."""
    K, R_out, L_out = y.shape[1:]
    nothing = fill * 0
    for t in range(tiles):
        nothing += result[TILE * TILE * NR + t] * 0
    for u in range(counts[p, 0]):
        at, run, n, O, o = runs[p, u, 0], runs[p, u, 1], runs[p, u, 2], runs[p, u, 3], runs[p, u, 4]
        for i in range(min(TILE, R_out - O)):
            begin = ((n * K + k) * R_out + O + i) * L_out + o
            weave(result, i * TILE * NR + at, NR, bias, k, outputs, begin, min(run * TILE, L_out - o))
    return nothing == 0


@helper
def repair(result, NR, x, w, bias, axes, boundary, fill, p, counts, runs, g, k, Cg, turned, y):
    """Sum the tiles that are not finite again, as they are written."""
    R_out, L_out = y.shape[2:]
    Kg = y.shape[1] // (x.shape[1] // Cg)
    w0, w_step = (k, Kg) if turned else (k * Cg, 1)
    for u in range(counts[p, 0]):
        at, run, n, O, o = runs[p, u, 0], runs[p, u, 1], runs[p, u, 2], runs[p, u, 3], runs[p, u, 4]
        for s in range(run):
            if result[TILE * TILE * NR + at + s] * 0 != 0:
                begin = o + s * TILE
                for i in range(min(TILE, R_out - O)):
                    row_again(
                        x, w, bias, axes, boundary, fill, n, g * Cg, g * Kg + k, g * Kg * Cg + w0, w_step, Cg, O + i,
                        begin, y[n, g * Kg + k, O + i, begin : min(begin + TILE, L_out)],
                    )


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
    steps = [TAPS * int(axes[0, STEP]), int(axes[1, STEP])]
    first = sum(-2 * step for step in steps if step < 0)
    taps = flat(w, w.size)
    U = np.empty(b.U, dtype)
    if not b.U_own:
        _weights(taps, first, *steps, b.width, U, work=U.size // 4)
    _forward(
        flat(x, *x.shape), taps, first, *steps, U, b.width, turned, groups, flat(bias, K), axes, boundary, fill,
        b.MR, b.NR, b.slack, b.blocks, b.shares, b.KB, np.empty((workers, b.V), dtype),
        np.empty((workers, b.M), dtype), np.empty((workers, b.U_own), dtype), y,
        work=y.size * C // groups * TAPS * TAPS,
    )


class Blocks(NamedTuple):
    """How the work is cut, and what that takes, in numbers of the dtype. No sum depends on it."""

    MR: int  #: output channels and tiles of a register tile, tiles of a vector
    NR: int
    slack: int
    blocks: int  #: blocks of tiles, shares of the output channels in each, output channels at a time
    shares: int
    KB: int
    width: int  #: from one place of U to the next
    U: int  #: the transformed weights of all, or else of each worker; pixels and products of each worker
    U_own: int
    V: int
    M: int


@lru_cache(maxsize=1024)
def cut(
    N: int, Cg: int, Kg: int, groups: int, out: tuple[int, ...], turned: bool, dtype: np.dtype, workers: int
) -> Blocks:
    """Blocks of tiles for each worker; where there are too few of them, shares of the output channels."""
    MR, NR = outer_shape(dtype)
    slack = lanes(dtype)
    vectors, strips = max(1, -(-N * -(-out[0] // TILE) * -(-out[1] // TILE) // slack)), max(1, -(-Kg // MR))
    own = vectors * slack <= FEW and groups == 1
    blocks = min(vectors, -(-vectors // (PANELS * NR // slack)))
    if own:
        blocks, shares = 1, min(strips, workers)
    else:
        blocks = min(vectors, -(-blocks * groups // workers) * workers)
        shares = min(strips, max(1, workers // (groups * blocks)))
    columns = -(-vectors // blocks) * slack
    wide = min(NR, columns)
    panels = -(-columns // wide)
    KB = min(PRODUCTS // (PLACES * panels * wide * MR * dtype.itemsize), -(-strips // shares))
    if own:
        KB = min(KB, max(1 + turned, WEIGHTS // (PLACES * max(Cg, 1) * MR * dtype.itemsize)))
    KB = max(KB, 1) * MR
    spare, pad = MR * max(Kg, Cg), PAD * slack  # the last strip may look beyond the last kernel
    width = -(-groups * Kg * Cg // slack) * slack + pad
    return Blocks(
        MR, NR, slack, blocks, shares, KB, width, 0 if own else PLACES * width + spare,
        PLACES * (KB * Cg + pad) + spare if own else 0, panels * PLACES * (Cg * wide + pad),
        PLACES * (panels * KB * wide + pad),
    )


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: transformed kernels, and a block's tiles for each thread."""
    g, workers = geometry, numba.get_num_threads()
    Cg, Kg = g.C // g.groups, g.K // g.groups
    forward = cut(g.N, Cg, Kg, g.groups, g.out, False, dtype, workers)
    backward = cut(g.N, Kg, Cg, g.groups, g.size, True, dtype, workers)
    small = 256 << 10  # a window, its outputs and tables
    return max((b.U + workers * (b.V + b.M + b.U_own)) * dtype.itemsize for b in (forward, backward)) + workers * small
