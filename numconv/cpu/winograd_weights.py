"""Winograd's weight gradient: the adjoint of ``winograd.py``, with as few multiplications.

    dW = G^T [sum over tiles of (A dY A^T) * (B^T x B)] G

for 4 x 4 outputs and 6 x 6 pixels at a time. Each of the 36 products is a matrix product again, ``M[xi] = Z[xi] @
V[xi]^T``, now summed over tiles. Channels lie side by side in the vectors of all transforms.

A task sums a part of the tiles for a block of kernels, whose 36 sums stay in the L2 cache; the parts, added up at the
end, follow from the shapes alone. A gradient that is not finite is computed again as it is written: the transforms mix
all pixels of a tile, and may overflow where the sum does not.

They also round by the largest of a tile what has nothing to do with it: a gap marked 1e20 in ``x`` whose outputs have
no gradient. Tiles whose largest product would show are left out of the transforms and added as they are written, so

    |dW - exact| <= RANGE * eps * sum over what meets of largest |dY| * largest |x|

where the largest is that of a place in all channels of the group. If they are many, all is computed as it is written.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .._indexing import CONSTANT, START, STEP
from .._memory import workspace as memory
from ..geometry import ConvGeometry
from ._jit import Kernel, flat, helper, source, tasks_of
from .blocks import item_bytes
from .schemes import AT, BT, PAD, PLACES, RANGE, TAPS, TILE, WINDOW, G, taps_of, up, workers_of
from .simd import address, borrowed, keep, lanes, panel_sum, sandwich, to_lanes, turn
from .threads import thread_count

of_outputs, of_pixels, of_sums = sandwich(AT.T), sandwich(BT), sandwich(G.T)

#: Bytes of a block's channels, of either kind; tiles that are summed at a time, so that long sums round less.
WIDE, TILES = 256, 49

#: As many tasks where each has enough tiles, how many are enough, and as many tasks if blocks have to be smaller.
TASKS, LEAST, FEW = 8, 32, 4

#: Pixels whose largest magnitudes a task finds, and which share of the tiles may be loud.
PIECE, MANY = 512, 32


class Blocks(NamedTuple):
    """How the work is cut, and where things lie in memory, in numbers of the dtype."""

    groups: int
    slack: int  #: numbers in a vector
    parts: int  #: of the tiles
    tiles: int  #: at a time, at the most
    K: int  #: output channels of a block, and how many blocks of them there are in a group
    K_blocks: int
    C: int  #: likewise input channels
    C_blocks: int
    tasks: int  #: blocks of kernels times parts of the tiles
    Z_step: int  #: from one of the 36 places to the next
    V_step: int
    M_step: int
    V: int  #: where things begin in what a worker has for itself, which begins with Z
    M: int
    square: int
    each: int  #: all of that
    peaks: int  #: pixels and outputs, each counted once for a group, at the most


@helper
def surround(square, size, top, left, rows, columns, met, boundary, fill, slack):
    """What of a window is no pixel of the image: the constant, or 0 beyond the rows and columns that outputs meet."""
    for i in range(rows):
        row = source(top + i, size[0], boundary) if i < met[0] else -2
        start, end = inside(row, left, columns, size[1])
        constants = met[1] * slack if row > -2 else 0
        line = square[i * columns * slack : (i + 1) * columns * slack]
        before, behind = line[: start * slack], line[end * slack :]
        for j in range(before.size):
            before[j] = fill if j < constants else 0
        for j in range(behind.size):
            behind[j] = fill if j + end * slack < constants else 0


@helper
def inside(row, left, columns, L):
    """Which columns of a row of a window are pixels."""
    start = min(max(0, -left), columns) if row >= 0 else columns
    return start, max(start, min(L - left, columns))


@helper
def gather(x, first, n, size, top, left, rows, columns, met, boundary, slack, square, here, s0, zero):
    """The pixels of a window in ``n`` channels, side by side: ``square[i, j, c]``."""
    for i in range(min(rows, met[0])):
        row = source(top + i, size[0], boundary)
        start, end = inside(row, left, columns, size[1])
        if row >= 0:
            at = first + row * size[1]
            to_lanes(
                address(x, zero), at + left + start, size[0] * size[1], n, end - start,
                here, s0 + (i * columns + start) * slack, slack, zero,
            )  # fmt: skip
            for j in range(min(columns, met[1]) if boundary != CONSTANT else 0):
                if j < start or j >= end:
                    column = source(left + j, size[1], boundary)
                    for c in range(n):
                        square[(i * columns + j) * slack + c] = x[at + column + c * size[0] * size[1]]


@helper
def transform(x, dY, axes, boundary, fill, conjugate, b, g, k0, k1, c0, c1, t0, t1, mine):
    """Z and V of some tiles: of outputs ``k0 .. k1`` and of input channels ``c0 .. c1`` of group ``g``."""
    C, H, L = x.shape[1:]
    K, R_out, L_out = dY.shape[1:]
    zero, slack, Cg, Kg = mine.dtype.type(0), b.slack, C // b.groups, K // b.groups
    across, down = (L_out + TILE - 1) // TILE, (R_out + TILE - 1) // TILE
    pixels, outputs, square, here = x.reshape(x.size), dY.reshape(dY.size), mine[b.square :], address(mine, zero)
    top, left = axes[0, START] + min(0, 2 * axes[0, STEP]), axes[1, START] + min(0, 2 * axes[1, STEP])
    t = t0
    while t < t1:  # tiles side by side
        n, O, o = t // (across * down), t // across % down * TILE, t % across * TILE
        tiles = min(across - t % across, t1 - t)
        columns, met, size = tiles * TILE, (TILE, tiles * TILE), (R_out, L_out)
        surround(square, size, O, o, TILE, columns, met, CONSTANT, zero, slack)
        for k in range(k0, k1, slack):
            gather(
                outputs, (n * K + g * Kg + k) * R_out * L_out, min(slack, k1 - k), size, O, o, TILE, columns, met,
                CONSTANT, slack, square, here, b.square, zero,
            )  # fmt: skip
            of_outputs(
                here, b.square, columns * slack, slack, TILE * slack,
                here, (t - t0) * b.K + k - k0, WINDOW * b.Z_step, b.Z_step, b.K, 0, tiles, slack, zero,
            )  # fmt: skip
        columns, size = tiles * TILE + TAPS - 1, (H, L)
        met = (min(WINDOW, R_out + TAPS - 1 - O), min(columns, L_out + TAPS - 1 - o))
        surround(square, size, top + O, left + o, WINDOW, columns, met, boundary, fill, slack)
        for c in range(c0, c1, slack):
            gather(
                pixels, (n * C + g * Cg + c) * H * L, min(slack, c1 - c), size, top + O, left + o, WINDOW, columns, met,
                boundary, slack, square, here, b.square, zero,
            )  # fmt: skip
            if conjugate:
                for j in range(WINDOW * columns * slack):
                    square[j] = np.conj(square[j])
            of_pixels(
                here, b.square, columns * slack, slack, TILE * slack,
                here, b.V + (t - t0) * b.C + c - c0, WINDOW * b.V_step, b.V_step, b.C, 0, tiles, slack, zero,
            )  # fmt: skip
        t += tiles


@helper
def largest_of(x, image, channels, size, p0, p1, peaks):
    """The largest magnitudes of some pixels in the channels of a group."""
    target = peaks[image * size + p0 : image * size + p1]
    for i in range(target.size):
        target[i] = 0
    n, first = target.size, image * channels * size + p0
    for c in range(0, channels - channels % 4, 4):  # what is loaded and stored between them would take longest
        at = first + c * size
        one, two = x[at : at + n], x[at + size : at + size + n]
        three, four = x[at + 2 * size : at + 2 * size + n], x[at + 3 * size : at + 3 * size + n]
        for i in range(n):
            a, b = larger(abs(one[i]), abs(two[i])), larger(abs(three[i]), abs(four[i]))
            target[i] = larger(larger(a, b), target[i])
    for c in range(channels - channels % 4, channels):
        one = x[first + c * size : first + c * size + n]
        for i in range(n):
            target[i] = larger(abs(one[i]), target[i])


@helper
def larger(a, b):
    """The larger of both, ``b`` if ``a`` is NaN."""
    return a if a > b else b


@Kernel
def _peaks(team, x, dY, Cg, Kg, x_peaks, dY_peaks):
    # x and dY flat, x_peaks (N G, pixels), dY_peaks (N G, outputs)
    x, dY, x_peaks, dY_peaks = borrowed(x), borrowed(dY), borrowed(x_peaks), borrowed(dY_peaks)
    (images, pixels), outputs = x_peaks.shape, dY_peaks.shape[1]
    pieces, more = (pixels + PIECE - 1) // PIECE, (outputs + PIECE - 1) // PIECE
    x_flat, dY_flat = x_peaks.reshape(x_peaks.size), dY_peaks.reshape(dY_peaks.size)
    for task in tasks_of(team, images * (pieces + more)):
        image, piece = task // (pieces + more), task % (pieces + more)
        if piece < pieces:
            largest_of(x, image, Cg, pixels, piece * PIECE, min((piece + 1) * PIECE, pixels), x_flat)
        else:
            p0 = (piece - pieces) * PIECE
            largest_of(dY, image, Kg, outputs, p0, min(p0 + PIECE, outputs), dY_flat)


@helper
def times_largest(rows, wide, columns, most):
    """What tiles have times the largest of some rows that each of them sees, ``wide`` columns."""
    columns[:] = 0
    for row in rows:
        for j in range(row.size):
            columns[j] = larger(np.float64(row[j]), columns[j])
    for t in range(most.size):
        largest = 0.0
        for j in range(t * TILE, min(t * TILE + wide, rows.shape[1])):
            largest = larger(columns[j], largest)
        most[t] *= largest


@Kernel
def _loud(team, x_peaks, dY_peaks, axes, boundary, fill, groups, loud):
    # x_peaks (N G, H, L), dY_peaks (N G, rows, columns), fill a magnitude, loud (G, tiles): which tiles are
    x_peaks, dY_peaks, axes, loud = borrowed(x_peaks), borrowed(dY_peaks), borrowed(axes), borrowed(loud)
    (images, H, L), (_, R_out, L_out) = x_peaks.shape, dY_peaks.shape
    top, left = axes[0, START] + min(0, 2 * axes[0, STEP]), axes[1, START] + min(0, 2 * axes[1, STEP])
    across, down = (L_out + TILE - 1) // TILE, (R_out + TILE - 1) // TILE
    for g in tasks_of(team, groups):
        met, sums, most = np.zeros((R_out + TAPS - 1, L_out + TAPS - 1)), np.zeros(TAPS * TAPS), np.empty(loud.shape[1])
        columns = np.empty(met.shape[1])
        for image in range(g, images, groups):
            for i in range(met.shape[0]):
                row = source(top + i, H, boundary)
                start, end = inside(row, left, met.shape[1], L)
                if row >= 0:
                    met[i, start:end] = x_peaks[image, row, left + start : left + end]
                for j in range(met.shape[1]):
                    if j < start or j >= end:
                        column = source(left + j, L, boundary) if row >= 0 else -1
                        met[i, j] = x_peaks[image, row, column] if column >= 0 else fill
            outputs = dY_peaks[image]
            for r in range(TAPS):
                for t in range(TAPS):
                    for i in range(R_out):
                        pixels, total = met[i + r, t:], 0.0
                        for j in range(L_out):
                            total += outputs[i, j] * pixels[j]
                        sums[r * TAPS + t] += total
            for O in range(down):
                begin = (image // groups * down + O) * across
                most[begin : begin + across] = 1
                times_largest(met[O * TILE : O * TILE + WINDOW], WINDOW, columns, most[begin : begin + across])
                times_largest(outputs[O * TILE : O * TILE + TILE], TILE, columns, most[begin : begin + across])
        least = sums.min() / (most.size * TILE * TILE)
        for t in range(most.size):
            loud[g, t] = not most[t] <= RANGE * least


@helper
def leave_out(b, mine, t, tiles, loud):
    """Loud tiles, of some from the ``t``-th on, become zeros in Z and V."""
    for s in range(tiles):
        if loud[s]:
            for xi in range(PLACES):
                for step, first, size in ((b.Z_step, 0, b.K), (b.V_step, b.V, b.C)):
                    begin = first + xi * step + (t + s) * size
                    mine[begin : begin + size] = 0


@helper
def add_tile(x, dY, taps, axes, boundary, fill, conjugate, b, g, k0, k1, c0, c1, t, places, kernels):
    """The products of a tile as they are written, to the kernels ``(k, c, 9)`` of a block."""
    C, H, L = x.shape[1:]
    K, R_out, L_out = dY.shape[1:]
    across, down = (L_out + TILE - 1) // TILE, (R_out + TILE - 1) // TILE
    n, O, o = t // (across * down), t // across % down * TILE, t % across * TILE
    top, left = axes[0, START] + min(0, 2 * axes[0, STEP]), axes[1, START] + min(0, 2 * axes[1, STEP])
    for i in range(WINDOW):
        for j in range(WINDOW):
            row, column = source(top + O + i, H, boundary), source(left + o + j, L, boundary)
            places[i * WINDOW + j] = row * L + column if min(row, column) >= 0 else -1
    pixels, window = x.reshape(x.size), np.empty(PLACES, x.dtype)
    for c in range(c0, c1):
        channel = (n * C + g * (C // b.groups) + c) * H * L
        for p in range(PLACES):
            pixel = pixels[channel + places[p]] if places[p] >= 0 else fill
            window[p] = np.conj(pixel) if conjugate else pixel
        for k in range(k0, k1):
            outputs = dY[n, g * (K // b.groups) + k]
            for r in range(TAPS):
                for s in range(TAPS):
                    total = fill * 0
                    for i in range(min(TILE, R_out - O)):
                        for j in range(min(TILE, L_out - o)):
                            total += outputs[O + i, o + j] * window[(i + r) * WINDOW + j + s]
                    place = taps[0] + r * taps[1] + s * taps[2]
                    kernels[((k - k0) * (x.shape[1] // b.groups) + c - c0) * TAPS * TAPS + place] += total


@Kernel
def _sums(team, x, dY, taps, axes, boundary, fill, conjugate, b, loud, nothing, own, partial, finite):
    # x (N, C, H, L), dY (N, K, rows, columns), partial (parts, K, C/G * 9), finite (tasks,) whether a task's sums are;
    # loud (G, tiles) which tiles are not transformed; own (workers, b.each) is the workers' own memory, nothing zeros.
    x, dY, axes, loud, nothing, own, partial, finite = (
        borrowed(x), borrowed(dY), borrowed(axes), borrowed(loud), borrowed(nothing), borrowed(own), borrowed(partial),
        borrowed(finite),
    )  # fmt: skip
    (workers, _), tasks, T = own.shape, finite.size, TAPS * TAPS
    K, Cg = dY.shape[1], x.shape[1] // b.groups
    Kg, zero = K // b.groups, own.dtype.type(0)
    image = ((dY.shape[2] + TILE - 1) // TILE) * ((dY.shape[3] + TILE - 1) // TILE)
    sums = partial.reshape(partial.size)
    for worker in tasks_of(team, workers):
        mine, places = own[worker], np.empty(PLACES, np.int64)
        here = address(mine, zero)
        for task in range(tasks * worker // workers, tasks * (worker + 1) // workers):
            part, block = task % b.parts, task // b.parts
            g, kb, cb = block // (b.K_blocks * b.C_blocks), block // b.C_blocks % b.K_blocks, block % b.C_blocks
            k0, c0 = kb * b.K, cb * b.C
            k1, c1 = min(k0 + b.K, Kg), min(c0 + b.C, Cg)
            first, last = x.shape[0] * image * part // b.parts, x.shape[0] * image * (part + 1) // b.parts
            rounds, wide = (last - first + b.tiles - 1) // b.tiles, (c1 - c0 + b.slack - 1) // b.slack
            for i in range(rounds):
                t0, t1 = first + (last - first) * i // rounds, first + (last - first) * (i + 1) // rounds
                transform(x, dY, axes, boundary, fill, conjugate, b, g, k0, k1, c0, c1, t0, t1, mine)
                leave_out(b, mine, 0, t1 - t0, loud[g, t0:t1])
                for xi in range(PLACES):
                    panel_sum(
                        here, xi * b.Z_step, b.K, here, b.V + xi * b.V_step, b.C, t1 - t0,
                        here, b.M + xi * b.M_step, b.C, (k1 - k0 + 1) // 2 * 2, wide * b.slack, i, zero,
                    )  # fmt: skip
            for k in range(k1 - k0):
                of_sums(
                    here, b.M + k * b.C, WINDOW * b.M_step, b.M_step, b.slack,
                    here, b.square + taps[0] * b.C, taps[1] * b.C, taps[2] * b.C, b.slack, 0, wide, b.slack, zero,
                )  # fmt: skip
                begin = ((part * K + g * Kg + k0 + k) * Cg + c0) * T
                for c in range(0, c1 - c0, b.slack):
                    turn(
                        here, b.square + c, b.C, T, min(b.slack, c1 - c0 - c), address(nothing, zero), 0,
                        address(sums, zero), begin + c * T, T, zero,
                    )  # fmt: skip
            begin, rest = ((part * K + g * Kg + k0) * Cg + c0) * T, zero
            for t in range(first, last):
                if loud[g, t]:
                    add_tile(
                        x, dY, taps, axes, boundary, fill, conjugate, b, g, k0, k1, c0, c1, t, borrowed(places),
                        sums[begin:],
                    )  # fmt: skip
            for k in range(k1 - k0):
                kernels = sums[begin + k * Cg * T : begin + k * Cg * T + (c1 - c0) * T]
                for j in range(kernels.size):
                    rest += kernels[j] * 0
            finite[task] = rest == 0
        keep(places)
    keep(sums)


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``dW[k,c] = sum over n of dY[n,k] (*) conj(x[n,c])``, 3 x 3 kernels, stride 1, no dilation."""
    (K, Cg), dtype, N, out = dW.shape[:2], dW.dtype, dY.shape[0], dY.shape[2:]
    groups = x.shape[1] // Cg
    b = cut(N, Cg, K // groups, groups, tuple(out), dtype)
    workers = workers_for(b, dW.size, dtype, thread_count())
    finite, nothing = np.empty(b.tasks, np.bool_), np.zeros(b.slack, dtype)
    loud = _loud_tiles(x, dY, axes, boundary, fill, groups)
    if too_many(loud):
        _as_written(x, dY, axes, boundary, fill, dW)
        return
    with memory(workers * b.each + parts_size(b, dW.size), dtype) as everything:
        own = everything[: workers * b.each].reshape(workers, b.each)
        partial = everything[own.size :] if b.parts > 1 else dW
        partial = partial.reshape(b.parts, K, dW[0].size)
        _sums(
            flat(x, *x.shape), flat(dY, *dY.shape), taps_of(axes), axes, boundary, fill, dtype.kind == "c", b, loud,
            nothing, own, partial, finite, work=dY.size * dW[0].size,
        )  # fmt: skip
        if b.parts > 1:
            np.add.reduce(partial, axis=0, out=dW.reshape(K, dW[0].size))
    if not finite.all():
        _as_written(x, dY, axes, boundary, fill, dW)


def _loud_tiles(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, groups: int
) -> np.ndarray:
    images, (H, L), out, real = x.shape[0] * groups, x.shape[2:], dY.shape[2:], abs(x[:0]).dtype
    x_peaks, dY_peaks = np.empty((images, H * L), real), np.empty((images, prod(out)), real)
    loud = np.empty((groups, tiles_of(x.shape[0], out)), np.bool_)
    Cg, Kg = x.shape[1] // groups, dY.shape[1] // groups
    _peaks(flat(x, x.size), flat(dY, dY.size), Cg, Kg, x_peaks, dY_peaks, work=x.size + dY.size)
    _loud.alone(
        flat(x_peaks, images, H, L), flat(dY_peaks, images, *out), axes, boundary, np.abs(fill), groups, loud
    )
    return loud


def _as_written(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    from . import implicit

    implicit.grad_weight(x, dY, axes, boundary, fill, dW)


@helper
def too_many(loud: np.ndarray) -> Any:
    """Whether to add loud tiles as they are written would take longer than all of them as ``implicit`` has them."""
    return MANY * loud.sum() > loud.size


@helper
def tiles_of(N: int, out: Any) -> int:
    """How many tiles a group has."""
    return N * -(-out[0] // TILE) * -(-out[1] // TILE)


@helper
def blocks_of(N: int, Cg: int, Kg: int, groups: int, out: Any, dtype: np.dtype) -> Blocks:
    """Blocks of kernels, and parts of the tiles where blocks alone are few."""
    slack, T = lanes(dtype), tiles_of(N, out)
    unit, wide = max(slack, 2), WIDE // item_bytes(dtype)
    K_blocks, C_blocks = -(-Kg // wide), -(-Cg // wide)
    parts = max(1, min(TASKS // (groups * K_blocks * C_blocks), T // LEAST))
    few = -(-FEW // (groups * parts))  # at the least so many blocks
    K_blocks = max(K_blocks, min(-(-few // C_blocks), -(-Kg // unit)))
    C_blocks = max(C_blocks, min(-(-few // K_blocks), -(-Cg // unit)))
    K, C = up(-(-Kg // K_blocks), unit), up(-(-Cg // C_blocks), unit)
    K_blocks, C_blocks = -(-Kg // K), -(-Cg // C)  # fewer if whole vectors made them larger
    tiles, pad = min(TILES, -(-T // parts)), PAD * slack
    Z_step, V_step, M_step = tiles * K + pad, tiles * C + pad, K * C + pad
    V = up(PLACES * Z_step, slack)
    M = V + up(PLACES * V_step, slack)
    square = M + up(PLACES * M_step, slack)
    window = WINDOW * (tiles * TILE + TAPS - 1) * slack
    each = square + up(max(window, (TAPS * TAPS + slack) * C), slack)
    return Blocks(
        groups, slack, parts, tiles, K, K_blocks, C, C_blocks, groups * K_blocks * C_blocks * parts, Z_step, V_step,
        M_step, V, M, square, each, N * groups * ((out[0] + TAPS - 1) * (out[1] + TAPS - 1) + out[0] * out[1]),
    )  # fmt: skip


#: The same, once for each of its arguments.
cut = lru_cache(maxsize=1024)(blocks_of)


@helper
def parts_size(b: Blocks, weights: int) -> int:
    """Numbers in the parts of all weights; one part is the result."""
    return b.parts * weights if b.parts > 1 else 0


@helper
def workers_for(b: Blocks, weights: int, dtype: np.dtype, threads: int) -> int:
    """How many threads have a block of kernels each."""
    return min(b.tasks, workers_of(threads, b.each, parts_size(b, weights), item_bytes(dtype)))


@helper
def bytes_of(b: Blocks, weights: int, dtype: np.dtype, threads: int) -> int:
    """What they take, and the parts."""
    workers = workers_for(b, weights, dtype, threads)
    return (workers * b.each + parts_size(b, weights) + b.peaks) * item_bytes(dtype)


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``grad_weight`` takes beside its arguments, with two workers at the least."""
    g = geometry
    if not (g.N and g.C and g.K and prod(g.out)):
        return 0
    b = cut(g.N, g.C // g.groups, g.K // g.groups, g.groups, g.out, dtype)
    weights = g.K * g.C // g.groups * TAPS * TAPS
    return max(bytes_of(b, weights, dtype, threads) for threads in (2, thread_count()))


def workspace_of_sums(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``grad_weight`` takes at its peak: first what is looked at, then blocks and sums."""
    g, real = geometry, np.empty(0, dtype).real.itemsize
    b = cut(g.N, g.C // g.groups, g.K // g.groups, g.groups, g.out, dtype)
    padded = prod(n + TAPS - 1 for n in g.out)
    peaks = g.N * g.groups * (prod(g.size) + prod(g.out)) * real + 8 * (padded + tiles_of(g.N, g.out))
    weights = g.K * (g.C // g.groups) * TAPS * TAPS
    workers = workers_for(b, weights, dtype, thread_count())
    return int(max(peaks, (workers * b.each + parts_size(b, weights)) * dtype.itemsize))
