"""Winograd's minimal filtering F(4x4, 3x3): 36 multiplications where the sum needs 144.

    y = A^T [sum over c of (G w G^T) * (B^T x B)] A

for each tile of 4 x 4 outputs (Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016). Tiles
lie side by side in the vectors, so the three transforms run on all of them at once, and each of the 36 products is a
matrix product, ``M[xi] = U[xi] @ V[xi]`` with a row for each output channel and a column for each tile.

A tile whose outputs are not all finite is summed again as it is written: the transforms mix all pixels of a tile, and
may overflow where the sum does not. A pixel or weight that is not finite always shows, for nothing makes NaN finite.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import prange

from .._indexing import OUT, SIZE, START, STEP
from ..geometry import ConvGeometry
from ._jit import Kernel, flat, helper, source
from .rows import accumulate
from .simd import lanes, outer_shape, panel_tile, sandwich, unweave, weave

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
of_outputs, of_weights, of_pixels = sandwich(AT, with_sum=True), sandwich(G), sandwich(BT)

#: Bytes of the products of one block, which wait in the L2 cache for their transform; channels in a weights' task.
PRODUCTS, CHUNK = 256 << 10, 256

#: Panels of tiles in a block.
PANELS = 2


@Kernel
def _weights(w, first, row, column, width, U):
    # w (kernels, 9), U (36 * width and more): kernels side by side, whichever of their channels are outputs.
    n = w.shape[0]
    for task in prange((n + CHUNK - 1) // CHUNK):
        taps = np.zeros(TAPS * TAPS * CHUNK, U.dtype)
        p0 = task * CHUNK
        part = w[p0 : min(p0 + CHUNK, n)]
        for t in range(TAPS * TAPS):
            line = taps[t * CHUNK : (t + 1) * CHUNK]
            for j in range(part.shape[0]):
                line[j] = part[j, t]
        of_weights(taps, first * CHUNK, row * CHUNK, column * CHUNK, U, p0, width, min(CHUNK, width - p0))


@helper
def runs_of(t0, t1, axes, boundary, image_size, runs, rows, edge_to, edge_from, width):
    """Where tiles ``t0 .. t1`` meet the image, whichever the channel; returns how many runs and how many edges.

    A run is tiles side by side: its first (counted from ``t0``), how many, and the image, output row and column of the
    first. ``rows`` has the six rows of pixels, -1 for the constant, -2 where no output looks. Edges are the places of
    the windows that lie left or right of the image, each with its pixel or -1 or -2.
    """
    H, L = axes[0, SIZE], axes[1, SIZE]
    across, down = (axes[1, OUT] + TILE - 1) // TILE, (axes[0, OUT] + TILE - 1) // TILE
    top, left = axes[0, START] + min(0, 2 * axes[0, STEP]), axes[1, START] + min(0, 2 * axes[1, STEP])
    count, edges, t = 0, 0, t0
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
                            edge_to[edges] = (i * WINDOW + j) * width + t - t0 + s
                            edge_from[edges] = image * image_size + row * L + column if column >= 0 else column
                            edges += 1
        t += run
        count += 1
    return count, edges


@helper
def windows(x, channel, image_size, first, L, fill, slack, runs, rows, edge_to, edge_from, width, window):
    """The 36 pixels of each tile of one channel: ``window[place * width + tile]``."""
    for u in range(runs.shape[0]):
        at, run, image, o = runs[u, 0], runs[u, 1], runs[u, 2], runs[u, 4]
        begin = image * image_size + channel + first + o
        reach = TILE * ((run + slack - 1) // slack * slack) + slack
        for i in range(WINDOW):
            row, place = rows[u, i], i * WINDOW * width + at
            if row < 0:
                for j in range(WINDOW):
                    window[place + j * width : place + j * width + run] = fill if row == -1 else 0
                continue
            s0 = begin + row * L
            if s0 >= 0 and s0 + reach <= x.size:
                unweave(x, s0, run, window, place, width)
            else:  # a vector would leave the array
                for s in range(run):
                    for j in range(WINDOW):
                        if 0 <= s0 + s * TILE + j < x.size:
                            window[place + j * width + s] = x[s0 + s * TILE + j]
    for e in range(edge_to.size):
        pixel = edge_from[e]
        window[edge_to[e]] = x[pixel + channel] if pixel >= 0 else (fill if pixel == -1 else 0)


@helper
def row_again(x, w, bias, axes, boundary, fill, n, c0, k, w0, w_step, channels, O, o, y):
    """Outputs ``o …`` of row ``O``, summed as they are written."""
    y[:] = bias[k]
    for c in range(channels):
        for r in range(TAPS):
            i = source(axes[0, START] + O + r * axes[0, STEP], axes[0, SIZE], boundary)
            for t in range(TAPS):
                weight = w[w0 + c * w_step, r * TAPS + t]
                if i >= 0:
                    first = axes[1, START] + t * axes[1, STEP]
                    accumulate(x[n, c0 + c, i], weight, first, 1, boundary, fill, o, y)
                elif weight * fill != 0:
                    for j in range(y.size):
                        y[j] += weight * fill


@Kernel
def _forward(
    x, w, U, width, w_row, w_step, groups, bias, axes, boundary, fill, MR, NR, slack, blocks, shares, KB, V, M, y
):
    # x (N, C, H, L), U (36 * width), y (N, K, rows, columns). Weight (k, c) of group g is kernel number
    # g * K/G * C/G + k * w_row + c * w_step. V and M are the workers' own.
    N, C, H, L = x.shape
    K, R_out, L_out = y.shape[1:]
    Cg, Kg = C // groups, K // groups
    T = N * ((R_out + TILE - 1) // TILE) * ((L_out + TILE - 1) // TILE)
    vectors = (T + slack - 1) // slack
    panels = ((vectors + blocks - 1) // blocks * slack + NR - 1) // NR
    V_step, M_step = Cg * NR, panels * KB * NR
    left = axes[1, START] + min(0, 2 * axes[1, STEP])
    wide = NR + slack
    pixels, outputs = x.reshape(x.size), y.reshape(y.size)
    workers, tasks = V.shape[0], groups * blocks * shares
    strips = (Kg + MR - 1) // MR
    for worker in prange(workers):
        V_own, M_own = V[worker], M[worker]
        window = np.zeros(PLACES * wide, x.dtype)
        result = np.empty((TILE * TILE + 1) * NR + slack, x.dtype)
        runs, rows = np.empty((panels, NR, 5), np.int64), np.empty((NR, WINDOW), np.int64)
        edge_to, edge_from = np.empty(PLACES * NR, np.int64), np.empty(PLACES * NR, np.int64)
        counts = np.empty(panels, np.int64)
        for task in range(tasks * worker // workers, tasks * (worker + 1) // workers):
            share, block, g = task % shares, task // shares % blocks, task // shares // blocks
            t0, t1 = vectors * block // blocks * slack, min(vectors * (block + 1) // blocks * slack, T)
            for p in range(panels):
                p0, p1 = min(t0 + p * NR, t1), min(t0 + (p + 1) * NR, t1)
                count, edges = runs_of(p0, p1, axes, boundary, C * H * L, runs[p], rows, edge_to, edge_from, wide)
                counts[p] = count
                whole = (p1 - p0 + slack - 1) // slack * slack
                for c in range(Cg):
                    windows(
                        pixels, (g * Cg + c) * H * L, C * H * L, left, L, fill, slack, runs[p, :count], rows,
                        edge_to[:edges], edge_from[:edges], wide, window,
                    )
                    of_pixels(window, 0, WINDOW * wide, wide, V_own, p * PLACES * V_step + c * NR, V_step, whole)
            for k0 in range(strips * share // shares * MR, strips * (share + 1) // shares * MR, KB):
                k1 = min(k0 + KB, strips * (share + 1) // shares * MR)
                for xi in range(PLACES):
                    for p in range(panels):
                        whole = (min(NR, t1 - t0 - p * NR) + slack - 1) // slack * slack
                        for k in range(k0, k1, MR):
                            panel_tile(
                                U, xi * width + g * Kg * Cg + k * w_row, w_row, w_step,
                                V_own, (p * PLACES + xi) * V_step, NR, Cg,
                                M_own, xi * M_step + (p * KB + k - k0) * NR, NR, MR, whole,
                            )
                for k in range(k0, min(k1, Kg)):
                    for p in range(panels):
                        tiles = min(NR, t1 - t0 - p * NR)
                        whole = (tiles + slack - 1) // slack * slack
                        of_outputs(
                            M_own, (p * KB + k - k0) * NR, WINDOW * M_step, M_step, result, 0, NR, whole
                        )
                        sums = result[TILE * TILE * NR :]
                        nothing = fill * 0
                        for t in range(tiles):
                            nothing += sums[t] * 0
                        for u in range(counts[p]):
                            at, run, n, O, o = runs[p, u]
                            columns = min(run * TILE, L_out - o)
                            for i in range(min(TILE, R_out - O)):
                                begin = ((n * K + g * Kg + k) * R_out + O + i) * L_out + o
                                weave(result, i * TILE * NR + at, NR, bias, g * Kg + k, outputs, begin, columns)
                        if nothing == 0:
                            continue
                        for u in range(counts[p]):
                            at, run, n, O, o = runs[p, u]
                            for s in range(run):
                                if sums[at + s] * 0 == 0:
                                    continue
                                begin = o + s * TILE
                                for i in range(min(TILE, R_out - O)):
                                    row_again(
                                        x, w, bias, axes, boundary, fill, n, g * Cg, g * Kg + k,
                                        g * Kg * Cg + k * w_row, w_step, Cg, O + i, begin,
                                        y[n, g * Kg + k, O + i, begin : min(begin + TILE, L_out)],
                                    )


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """3 x 3 kernels, stride 1, no dilation."""
    _run(x, w, w.shape[1], 1, x.shape[1] // w.shape[1], bias, axes, boundary, fill, y)


def _run(
    x: np.ndarray, w: np.ndarray, w_row: int, w_step: int, groups: int, bias: np.ndarray, axes: np.ndarray,
    boundary: int, fill: np.generic, y: np.ndarray,
) -> None:
    (N, C), (K, *out) = x.shape[:2], y.shape[1:]
    MR, NR = outer_shape(y.dtype)
    slack = lanes(y.dtype)
    kernels = w.shape[0] * w.shape[1]
    width = -(-kernels // slack) * slack
    U = np.empty(PLACES * width + MR * max(w_row, w_step), y.dtype)
    steps = [TAPS * int(axes[0, STEP]), int(axes[1, STEP])]
    first = sum(-2 * step for step in steps if step < 0)
    taps = flat(w, kernels, TAPS * TAPS)
    _weights(taps, first, *steps, width, U, work=U.size)
    vectors = -(-N * -(-out[0] // TILE) * -(-out[1] // TILE) // slack)
    workers = numba.get_num_threads()
    blocks = -(-vectors // (PANELS * NR // slack))
    shares = 1
    if groups * blocks < workers:
        blocks = max(1, min(vectors, -(-workers // groups)))
    blocks = min(vectors, -(-blocks // workers) * workers)
    if groups * blocks < workers:
        shares = min(-(-K // groups // MR), -(-workers // (groups * blocks)))
    panels = -(-(-(-vectors // blocks) * slack) // NR)
    KB = max(1, min(PRODUCTS // (PLACES * panels * NR * y.itemsize * MR), -(-K // groups // MR))) * MR
    V = np.empty((workers, panels * PLACES * (C // groups) * NR), y.dtype)
    M = np.empty((workers, PLACES * panels * KB * NR), y.dtype)
    _forward(
        flat(x, *x.shape), taps, flat(U, U.size), width, w_row, w_step, groups, flat(bias, K), axes, boundary, fill,
        MR, NR, slack, blocks, shares, KB, V, M, y, work=y.size * C // groups * TAPS * TAPS,
    )


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: the transformed kernels, and a block's tiles for each thread."""
    g = geometry
    return (64 << 20) + PLACES * g.K * (g.C // g.groups) * dtype.itemsize
