"""Winograd's products, forward and for the input gradient: the formulas stand in ``schemes.py``.

Each of the products of transformed pixels and kernels is a matrix product, ``M[xi] = V[xi]^T @ U[xi]`` with a row for
each tile and a column for each output channel. Tiles lie side by side in the vectors that transform pixels, output
channels in those of kernels and outputs.

The transforms mix all pixels of a tile, so three kinds of outputs are summed again as they are written. Those of a tile
that is not finite all through: it may overflow where the sum does not, and a pixel or weight that is not finite always
shows, for nothing makes NaN finite. And those that read only pixels far fainter than the tile's largest, whose rounding
would drown them. So whatever an output does not read,

    |y - exact| <= RANGE * eps * 4 * sum over c, t of |w[k, c, t]| * largest |x| that it reads

with ``RANGE`` of ``schemes.py``, and an output that reads only zeros is its bias. Of the weights all count, whether
they meet a pixel or the padding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._indexing import CONSTANT, OUT, SIZE, START, STEP, STRIDE
from .._memory import workspace as memory
from ..geometry import ConvGeometry, axes_table
from ._jit import Kernel, first_output, flat, helper, source, tasks_of
from .blocks import item_bytes
from .schemes import (
    CHANNELS,
    PLACES,
    RANGE,
    SCHEMES,
    TABLES,
    TAPS,
    WINDOW,
    Blocks,
    Dilated,
    Spread,
    Strided,
    blocks_of,
    cut,
    of_outputs,
    of_peaks,
    of_pixels,
    of_weights,
    scheme_of,
    taps_of,
    workers_of,
)
from .simd import address, borrowed, by_kind, copy_every_second, copy_run, keep, panel_sum, transpose, turn
from .threads import thread_count


@helper
def side_by_side(x, pixel, step, n, lines, place, zero):
    """Pixels into a line."""
    copy_run(address(x, zero), pixel, n, address(lines, zero), place, zero)


@helper
def from_phase(x, pixel, step, n, lines, place, zero):
    """Pixels that are ``step`` apart into a line."""
    if step == 2:
        copy_every_second(address(x, zero), pixel, n, address(lines, zero), place, zero)
    else:
        for j in range(n):
            lines[place + j] = x[pixel + j * step]


@helper
def to_rows(mine, s0, b, n, m, bias, k, outputs, begin, step, plane, zero):
    """Sums of ``m`` channels into their rows."""
    turn(address(mine, zero), s0, b.slack, n, m, address(bias, zero), k, address(outputs, zero), begin, plane, zero)


@helper
def to_phase(mine, s0, b, n, m, bias, k, outputs, begin, step, plane, zero):
    """Sums of ``m`` channels into every ``step``-th place of their rows, by way of where the lines were."""
    here, pitch = address(mine, zero), b.tile * b.room
    turn(here, s0, b.slack, n, m, address(bias, zero), k, here, b.lines, pitch, zero)
    for j in range(m):
        row, target = mine[b.lines + j * pitch : b.lines + j * pitch + n], outputs[begin + j * plane :]
        for i in range(n):
            target[i * step] = row[i]


load = by_kind({kind: from_phase if kind is Dilated else side_by_side for kind in SCHEMES})
store = by_kind({kind: to_phase if kind is Dilated else to_rows for kind in SCHEMES})


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
def phases_of(axis):
    """How many phases the dilation has."""
    return abs(axis[STEP])


@helper
def tiles_along(axis, b):
    """How many tiles a phase has along an axis."""
    outputs = (axis[OUT] + phases_of(axis) - 1) // phases_of(axis)
    return (outputs + b.tile - 1) // b.tile


@helper
def first_pixel(axis):
    """The pixel that the first window begins with."""
    return axis[START] + min(0, (TAPS - 1) * axis[STEP])


@helper
def reach(axis, b):
    """How many pixels the outputs of a phase read along an axis."""
    outputs = (axis[OUT] + phases_of(axis) - 1) // phases_of(axis)
    return (outputs * b.apart + b.tile - 1) // b.tile + b.window - b.apart


@helper
def runs_of(t0, t1, axes, boundary, fill, image_size, b, runs, edges, lines):
    """Where tiles ``t0 .. t1`` meet the image, whichever the channel; returns how many runs there are.

    A run is tiles side by side: its first (counted from ``t0``), how many, the image, the row and column of the first
    among the tiles; where the last one's edges end, places in the lines that are filled pixel by pixel; its phases; and
    where its lines lie in the image, or -1. What is no pixel is put into ``lines`` here.
    """
    H, L, room = axes[0, SIZE], axes[1, SIZE], b.room
    down, across, wide, long = tiles_along(axes[0], b), tiles_along(axes[1], b), phases_of(axes[0]), phases_of(axes[1])
    rows, columns = reach(axes[0], b), reach(axes[1], b)
    top, left = first_pixel(axes[0]), first_pixel(axes[1])
    ends = lines[b.window * b.window * room :]
    ends[:room] = 0
    count, met, t = 0, 0, t0
    while t < t1:
        image, phase, O, o = t // (across * down * wide * long), t // (across * down), t // across % down, t % across
        first, tiles = t - t0, min(across - o, t1 - t)
        run = runs[count]
        run[0], run[1], run[2], run[3], run[4], run[6], run[7] = (
            first, tiles, image, O, o, phase // long % wide, phase % long
        )  # fmt: skip
        ends[first + tiles - 1] = 1
        for i in range(b.window):
            row = source(top + run[6] + (O * b.apart + i) * wide, H, boundary) if O * b.apart + i < rows else -2
            run[8 + i] = image * image_size + row * L if row >= 0 else -1
            for j in range((tiles - 1) * b.apart + b.window):
                at, beyond = left + run[7] + (o * b.apart + j) * long, j - tiles * b.apart
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
def transform_pixels(x, channel, left, long, L, count, runs, edges, b, lines, peaks, V, v0):
    """V of one channel: the lines of all runs, then their tiles. ``peaks`` become the largest pixels of all so far."""
    zero, room = x.dtype.type(0), b.room
    for u in range(count):
        run = runs[u]
        first, length = left + run[7] + run[4] * b.apart * long, run[1] * b.apart
        start = min(first_output(first, long, 0), length)
        inside = max(0, min(first_output(first, long, L), length) - start)
        target = (b.window - b.apart) * room + run[0] * b.apart + start
        for i in range(b.window):
            if run[8 + i] >= 0:
                pixel = channel + run[8 + i] + first + start * long
                load(b, x, pixel, long, inside, lines, target + i * b.window * room, zero)
    last = runs[count - 1]
    for other in range(last[5]):
        lines[edges[0, other]] = x[channel + edges[1, other]]
    of_pixels(b, address(lines, zero), 0, room, last[0] + last[1], address(peaks, zero), 0, V, v0, b.V_step, zero)


@helper
def those_there(place, phase, axis, size, b):
    """Which outputs of a tile there are along an axis: the first, and where they end."""
    before = place * b.tile - axis[OUT] + size  # the first row or column of the tiles may be none of y
    return max(0, -before), min(b.tile, first_output(phase, phases_of(axis), size) - before)


@helper
def find_faint(mine, lines, peaks, runs, count, axes, R_out, L_out, b, faint):
    """Which outputs of each tile read nothing near its largest pixel, in bits; returns whether there are any.

    ``peaks`` are the largest magnitudes of pixels.
    """
    zero, n, room, tiles = mine.dtype.type(0), b.tile, b.room, runs[count - 1, 0] + runs[count - 1, 1]
    here = address(mine, zero)
    of_peaks(b, address(lines, zero), 0, room, tiles, address(peaks, zero), 0, here, b.M, room, zero)
    largest = mine[b.M + n * (n + 2) * room : b.M + (n + 1) * (n + 1) * room]
    faint[:] = 0
    for i in range(n):
        for j in range(n):
            own, bit = mine[b.M + (i * (n + 1) + j) * room :], np.int64(1) << (i * n + j)
            for t in range(tiles):
                faint[t] |= bit if own[t].real * RANGE < largest[t].real else 0
    anything = False
    for u in range(count):
        run = runs[u]
        top, bottom = those_there(run[3], run[6], axes[0], R_out, b)
        for s in range(run[1]):
            marked, there = faint[run[0] + s], np.int64(0)
            if marked != 0:
                left, right = those_there(run[4] + s, run[7], axes[1], L_out, b)
                for i in range(top, bottom):
                    for j in range(left, right):
                        there |= marked & (np.int64(1) << (i * n + j))
                faint[run[0] + s] = there
                anything = anything or there != 0
    return anything


@helper
def pixel_of(o, t, phase, axis, boundary, b):
    """The pixel that tap ``t`` of output ``o`` meets, counted from the first window; -1 for the constant, or -2."""
    place = o * max(1, b.apart // b.tile) + t
    parts = max(1, b.tile // b.apart)
    pixel = first_pixel(axis) + phase + place // parts * phases_of(axis)
    return -2 if place % parts else source(pixel, axis[SIZE], boundary)


@helper
def one_by_one(x, w, taps, total, axes, boundary, fill, b, run, c0, w0, w_step, channels, O, o):
    """One output, summed as it is written."""
    for c in range(channels):
        for r in range(TAPS):
            i = pixel_of(O, r, run[6], axes[0], boundary, b)
            for t in range(TAPS):
                j = pixel_of(o, t, run[7], axes[1], boundary, b)
                weight = w[(w0 + c * w_step) * TAPS * TAPS + taps[0] + r * taps[1] + t * taps[2]]
                if min(i, j) >= 0:
                    total += weight * x[run[2], c0 + c, i, j]
                elif min(i, j) == -1 and weight * fill != 0:
                    total += weight * fill
    return total


@helper
def patch_of(x, taps, axes, boundary, fill, b, run, c0, channels, O, o, patch):
    """What an output reads, in the order of the weights; 0 where a tap meets nothing."""
    for r in range(TAPS):
        i = pixel_of(O, r, run[6], axes[0], boundary, b)
        for t in range(TAPS):
            j, at = pixel_of(o, t, run[7], axes[1], boundary, b), taps[0] + r * taps[1] + t * taps[2]
            for c in range(channels):
                if min(i, j) >= 0:
                    patch[c * TAPS * TAPS + at] = x[run[2], c0 + c, i, j]
                else:
                    patch[c * TAPS * TAPS + at] = fill if min(i, j) == -1 else 0


@helper
def times_patch(w, w0, w_step, channels, total, patch):
    """One output from what it reads."""
    length = TAPS * TAPS if w_step > 1 else patch.size  # weights that lie side by side
    for q in range(0, patch.size, length):
        weights = w[(w0 + q // (TAPS * TAPS) * w_step) * TAPS * TAPS :]
        for i in range(length):
            total += weights[i] * patch[q + i]
    return total


@helper
def repair(result, x, w, taps, bias, axes, boundary, fill, b, run, g, k0, Cg, faint, patch, y):
    """Sum outputs again, as they are written: faint ones of a run and a vector of channels, and tiles not finite."""
    Kg, n, (R_out, L_out), across = y.shape[1] // b.groups, run[2], y.shape[2:], b.tile * b.tile * run[1]
    wide, long, last = phases_of(axes[0]), phases_of(axes[1]), min(k0 + b.slack, Kg)
    O, o0 = run[3] * b.tile, run[4] * b.tile
    top, bottom = those_there(run[3], run[6], axes[0], R_out, b)
    for s in range(run[1]):
        o, finite = o0 + s * b.tile, True
        for k in range(last - k0):
            finite = finite and result[(across + s) * b.slack + k] * 0 == 0
        if finite and faint[run[0] + s] == 0:
            continue
        left, right = those_there(run[4] + s, run[7], axes[1], L_out, b)
        for i in range(top, bottom):
            for j in range(left, right):
                alone = faint[run[0] + s] >> (i * b.tile + j) & 1 != 0
                if alone:
                    patch_of(x, taps, axes, boundary, fill, b, run, g * Cg, Cg, O + i, o + j, patch)
                row = run[6] + (O + i - axes[0, OUT] + R_out) * wide
                column = run[7] + (o + j - axes[1, OUT] + L_out) * long
                for k in range(k0, last):
                    w0, w_step = g * Kg * Cg + (k if b.turned else k * Cg), Kg if b.turned else 1
                    total, again = bias[g * Kg + k], result[(across + s) * b.slack + k - k0] * 0 != 0
                    if alone and not again:
                        total = times_patch(w, w0, w_step, Cg, total, patch)
                        again = total * 0 != 0
                    if again:
                        total = one_by_one(
                            x, w, taps, bias[g * Kg + k], axes, boundary, fill, b, run, g * Cg, w0, w_step, Cg, O + i,
                            o + j,
                        )  # fmt: skip
                    if alone or again:
                        y[n, g * Kg + k, row, column] = total


@helper
def unload(mine, M0, b, run, bias, k, kernels, axes, outputs, y, result):
    """The outputs of a run of tiles and a vector of channels, into their rows; returns whether all are finite."""
    K, R_out, L_out = y.shape[1:]
    wide, long = phases_of(axes[0]), phases_of(axes[1])
    tiles, n, O, o = run[1], run[2], run[3] * b.tile - axes[0, OUT] + R_out, run[4] * b.tile - axes[1, OUT] + L_out
    top, bottom = those_there(run[3], run[6], axes[0], R_out, b)
    row, size, zero, skip = tiles * b.tile * b.slack, tiles * b.slack, result.dtype.type(0), max(0, -o)
    here = address(mine, zero)
    of_outputs(
        b, here, M0 + run[0] * b.width, b.side * b.M_step, b.M_step, b.width,
        here, b.result, row, b.slack, b.tile * b.slack, b.result + b.tile * row, tiles, b.slack, zero,
    )  # fmt: skip
    for i in range(top, bottom):
        begin = ((n * K + k) * R_out + run[6] + (O + i) * wide) * L_out + run[7] + (o + skip) * long
        pixels = min(tiles * b.tile, first_output(run[7], long, L_out) - o) - skip
        store(
            b, mine, b.result + i * row + skip * b.slack, b, pixels, kernels, bias, k, outputs, begin, long,
            R_out * L_out, zero,
        )  # fmt: skip
    sums, nothing = result[b.tile * row : b.tile * row + size], zero
    for j in range(size):
        nothing += sums[j] * 0
    return nothing == 0


@helper
def block(x, w, taps, bias, axes, boundary, fill, b, U, mine, task, runs, edges, faint, patch, y):
    """A block of tiles and a share of the output channels, from pixels and kernels to outputs."""
    N, C, H, L = x.shape
    phases, left, long = phases_of(axes[0]) * phases_of(axes[1]), first_pixel(axes[1]), phases_of(axes[1])
    Cg, Kg = C // b.groups, y.shape[1] // b.groups
    share, part, g = task % b.shares, task // b.shares % b.blocks, task // b.shares // b.blocks
    T = N * phases * tiles_along(axes[0], b) * tiles_along(axes[1], b)
    pairs = (T + 1) // 2
    t0, t1 = pairs * part // b.blocks * 2, min(pairs * (part + 1) // b.blocks * 2, T)
    pixels, outputs, lines, result = x.reshape(x.size), y.reshape(y.size), mine[b.lines : b.peaks], mine[b.result :]
    zero, peaks = mine.dtype.type(0), mine[b.peaks : b.result]
    here, weights = address(mine, zero), address(mine if b.own else U, zero)
    peaks[:] = 0
    count = runs_of(t0, t1, axes, boundary, fill, C * H * L, b, runs, edges, lines)
    for c in range(Cg):
        channel = (g * Cg + c) * H * L
        transform_pixels(pixels, channel, left, long, L, count, runs, edges, b, lines, peaks, here, c * b.room)
    anything = find_faint(mine, lines, peaks, runs, count, axes, y.shape[2], y.shape[3], b, faint)
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
                finite = unload(mine, M0, b, run, bias, g * Kg + k, kernels, axes, outputs, y, result)
                if anything or not finite:
                    repair(result, x, w, taps, bias, axes, boundary, fill, b, run, g, k, Cg, faint, patch, y)


@Kernel
def _forward(team, x, w, taps, bias, axes, boundary, fill, b, U, own, y):
    # x (N, C, H, L), w (kernels, 9), flat, y (N, K, rows, columns); own (workers, b.each) is the workers' own memory.
    x, w, bias, axes, U, own, y = (
        borrowed(x), borrowed(w), borrowed(bias), borrowed(axes), borrowed(U), borrowed(own), borrowed(y)
    )  # fmt: skip
    workers, tasks = own.shape[0], b.groups * b.blocks * b.shares
    for worker in tasks_of(team, workers):
        runs, edges = np.empty((b.tiles, 8 + b.window), np.int64), np.empty((2, b.window**2 * b.tiles), np.int64)
        faint, patch = np.empty(b.room, np.int64), np.empty(x.shape[1] // b.groups * TAPS * TAPS, x.dtype)
        mine = own[worker]
        mine[b.lines :] = 0  # what lies beyond lines and kernels is transformed too; as garbage it may be slow
        for task in range(tasks * worker // workers, tasks * (worker + 1) // workers):
            block(
                x, w, taps, bias, axes, boundary, fill, b, U, mine, task, borrowed(runs), borrowed(edges),
                borrowed(faint), borrowed(patch), y,
            )  # fmt: skip
        keep(runs, edges, faint, patch)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``y[n,k] = bias[k] + sum over c of w[k,c] (*) x[n,c]``, 3 x 3 kernels, stride 1, or 2 without dilation."""
    kind = _kind(int(axes[0, STRIDE]), int(abs(axes[:, STEP]).max()), Strided)
    _run(kind, x, w, False, bias, axes, boundary, fill, y)


def grad_input(dY: np.ndarray, w: np.ndarray, geometry: ConvGeometry, dX: np.ndarray) -> None:
    """``dX`` under zero padding: the kernels backwards, with inputs and outputs changing places."""
    no_bias, nothing = np.zeros(dX.shape[1], dtype=dX.dtype), dX.dtype.type(0)
    kind = _kind(geometry.stride[0], max(geometry.dilation), Spread)
    if dX.size:
        _run(kind, dY, w, True, no_bias, axes_table([*map(back, geometry.axis_rows)]), CONSTANT, nothing, dX)


def _kind(stride: int, dilation: int, strided: type[Blocks]) -> type[Blocks]:
    return strided if stride > 1 else Dilated if dilation > 1 else Blocks


@helper
def back(row: tuple[int, ...]) -> tuple[int, ...]:
    """An axis of the input gradient, whose tiles begin with a pixel that two taps meet if the stride is 2.

    That may be the pixel before the image; then there is an output more than ``dX`` has.
    """
    size, kernel, out, start, stride, step = row
    before, beyond = start % stride, max(0, (kernel - 1) * step)
    return out, kernel, size + before, (-before - start - beyond) // stride + beyond, 1, -step


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``dW`` with the transforms of outputs and pixels, from a room that is loaded when it is asked for."""
    from . import winograd_weights

    winograd_weights.grad_weight(x, dY, axes, boundary, fill, dW)


def _run(
    kind: type[Blocks], x: np.ndarray, w: np.ndarray, turned: bool, bias: np.ndarray, axes: np.ndarray, boundary: int,
    fill: np.generic, y: np.ndarray,
) -> None:
    (N, C), K, dtype, threads = x.shape[:2], y.shape[1], y.dtype, thread_count()
    groups = (K if turned else C) // w.shape[1]
    out, dilation = tuple(axes[:, OUT].tolist()), tuple(abs(axes[:, STEP]).tolist())
    b = kind(*cut(SCHEMES[kind], N, C // groups, K // groups, groups, out, dilation, turned, dtype, threads))
    taps, workers = taps_of(axes), workers_of(threads, b.each, b.shared, dtype.itemsize)
    x, w = flat(x, *x.shape), flat(w, w.size)
    with memory(b.shared + workers * b.each, dtype) as everything:
        U, own = everything[: b.shared], everything[b.shared :].reshape(workers, b.each)
        if not b.own:
            _weights(w, K // groups, C // groups, taps, b, U, own, work=b.shared // 4)
        _forward(
            x, w, taps, flat(bias, K), axes, boundary, fill, b, U, own, y, work=y.size * C // groups * TAPS * TAPS
        )


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` and ``grad_input`` take: two workers at the least, whatever threads there are.

    So what has room for two has room for any number, and a choice by memory is the same for all of them.
    """
    g = geometry
    sizes = g.N, g.C // g.groups, g.K // g.groups, g.groups, g.size, g.out, g.stride[0], g.dilation, dtype
    return max(bytes_of(*sizes, threads) for threads in (2, thread_count()))


def taken(geometry: ConvGeometry, dtype: np.dtype, back: bool) -> int:
    """Bytes that ``forward`` takes, or ``grad_input`` (``back``), with the threads that there are."""
    g, threads = geometry, thread_count()
    Cg, Kg, out = g.C // g.groups, g.K // g.groups, g.out
    if back:
        Cg, Kg, out = Kg, Cg, (g.size[0] + g.stride[0] - 1, g.size[1] + g.stride[0] - 1)
    b = blocks_of(scheme_of(g.stride[0], back), g.N, Cg, Kg, g.groups, out, g.dilation, back, dtype, threads)
    return int(bytes_with(b.shared, b.each, dtype, threads))


def workspace_for_weights(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``grad_weight`` takes, which grow with the batch."""
    from . import winograd_weights

    return winograd_weights.workspace(geometry, dtype)


@helper
def bytes_of(
    N: int, Cg: int, Kg: int, groups: int, size: Any, out: Any, stride: int, dilation: Any, dtype: np.dtype,
    threads: int,
) -> int:
    """What ``forward`` or ``grad_input`` takes: transformed kernels, and a block's tiles for each worker."""
    whole = size[0] + stride - 1, size[1] + stride - 1  # as many as begin with pixels before the image
    there = blocks_of(scheme_of(stride, False), N, Cg, Kg, groups, out, dilation, False, dtype, threads)
    back = blocks_of(scheme_of(stride, True), N, Kg, Cg, groups, whole, dilation, True, dtype, threads)
    return max(bytes_with(there.shared, there.each, dtype, threads), bytes_with(back.shared, back.each, dtype, threads))


@helper
def bytes_with(shared: int, each: int, dtype: np.dtype, threads: int) -> int:
    """What workers take together."""
    item = item_bytes(dtype)
    return shared * item + workers_of(threads, each, shared, item) * (each * item + TABLES)
