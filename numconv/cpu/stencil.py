"""The sum over taps in registers: filters, depthwise layers, few channels; forward and the gradient to the weights.

A tile of the output, some rows by a vector or two, stays in registers while everything that it sums is added up. A
line of pixels that is loaded serves every row of the tile that meets it:

    y[i, o] = sum over r, t of w[r, t] * x[i + r, o + t]        line s = i + r meets kernel row r in row s - r.

``patch.py`` says how the lines are read.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from .._indexing import CONSTANT, KERNEL, OUT
from ..geometry import ConvGeometry
from ._jit import Kernel, flat, helper, tasks_of
from .lines import steps_along
from .patch import (
    AHEAD,
    ALONG,
    APART,
    AT_EDGE,
    BETWEEN,
    COLUMNS,
    EDGE,
    EVERY_ROW,
    IN_PATCH,
    LARGEST_PATCH,
    LEAD_OUT,
    LEAD_TAPS,
    LINE,
    LINES,
    OUT_COLUMNS,
    OUT_ROWS,
    PATCH,
    PATCH_ROWS,
    ROWS,
    SHIFT,
    TAPS,
    UNITS,
    VECTOR,
    VIEWS,
    WIDTH,
    fill_patch,
    prepared,
    survey,
    view,
)
from .pieces import wide
from .simd import ABREAST, ENTRY, WINDOW, address, borrowed, keep, lanes, spread_rows, weight_sums, window_sum
from .threads import thread_count

#: Vectors that are added up in the dtype itself before the sum goes on in a wider one.
LONG = 1 << 10

#: Weights whose sums, a vector each, are kept together, of channels that see the same pixels.
SUMS = 1 << 8

#: Multiply-adds that are worth a task: groups of less are summed together.
TASK = 1 << 15

#: Up to how many multiply-adds of a pixel the edge of an image is not copied.
FEW = 64


def serves(axes: np.ndarray, dtype: np.dtype) -> bool:
    """Whether there are vectors for the dtype, and a patch of one channel is not too large."""
    return _serves(axes.tobytes(), dtype)


@lru_cache(maxsize=1024)
def _serves(table: bytes, dtype: np.dtype) -> bool:
    return lanes(dtype) > 1 and prepared(table, dtype)[1].patch <= LARGEST_PATCH


@helper
def prepare(space, blank, fill):
    """Memory of a thread: zeros (garbage may be slow), and from ``blank`` on the constant."""
    for i in range(blank):
        space[i] = 0
    for i in range(blank, space.size):
        space[i] = fill


@Kernel
def _forward(team, x, w, bias, axes, boundary, fill, entries, sizes, G, steps, y):
    # All arrays flat: x (N, C, in), w (K, units, taps), and y, in which steps lead from one image, channel, row, … to
    # the next. A unit is a channel and a tap of the leading axes; a task is a block of rows and columns for all output
    # channels of some groups. Where columns are not neighbours a block is summed first, then spread.
    K, U, E = bias.size, w.size // bias.size // sizes[TAPS], entries.shape[1] // ENTRY
    rows, columns, apart, between, stride = sizes[ROWS], sizes[COLUMNS], sizes[APART], sizes[BETWEEN], sizes[EVERY_ROW]
    taps, vector, lead_out, lead = sizes[TAPS], sizes[VECTOR], sizes[LEAD_OUT], axes.shape[0] - 2
    down, across = (sizes[OUT_ROWS] + rows - 1) // rows, (sizes[OUT_COLUMNS] + columns - 1) // columns
    row_step, step = steps[lead + 3], steps[lead + 4]
    together = min(sizes[UNITS], U)
    once = sizes[EDGE] > 0 and boundary == CONSTANT and K // G * taps <= FEW
    patch = together * sizes[LINES] * sizes[PATCH_ROWS] * sizes[LINE] + (WINDOW if between == 0 else ABREAST) * vector
    blank = patch + (rows * columns if step > 1 else 0)
    space = np.empty(blank + ((sizes[ALONG] - 1) * sizes[AHEAD] + 2 * vector if once else 1), y.dtype)
    words = np.empty(VIEWS + together, np.int64)
    prepare(space, blank, fill)
    image, starts = words[:VIEWS], words[VIEWS:]
    pixels, weights, result, start = address(x, fill), address(w, fill), address(y, fill), address(bias, fill)
    patch_at, block_at, blank_at = address(space, fill), address(space[patch:], fill), address(space[blank:], fill)
    in_patch, in_place = address(entries[0], fill), address(entries[1], fill)
    image_at, starts_at = address(image, fill), address(starts, fill)
    parts = min(G, (rows * columns * w.size + TASK - 1) // TASK)
    for task in tasks_of(team, steps[0] * parts * lead_out * down * across):
        o0, O_row, outer = task % across * columns, task // across % down * rows, task // across // down
        O, part, n = outer % lead_out, outer // lead_out % parts, outer // lead_out // parts
        high, wide = min(rows, sizes[OUT_ROWS] - O_row), min(columns, sizes[OUT_COLUMNS] - o0)
        corner, left = n * steps[1] + O_row * row_step + o0 * step, O
        for b in range(lead - 1, -1, -1):
            corner += left % axes[b, OUT] * steps[b + 3]
            left //= axes[b, OUT]
        view(O_row, high, o0, wide, sizes, borrowed(image))
        top = image[0]
        for g in range(G * part // parts, G * (part + 1) // parts):
            for u0 in range(0, U, together):
                u1 = min(u0 + together, U)
                way = survey(
                    x.size, (n * G + g) * (U // sizes[LEAD_TAPS]), u0, u1, O, wide, axes, boundary, sizes, once,
                    borrowed(starts), borrowed(image),
                )
                source, plan, pitch, edge, shift = pixels, in_place, sizes[WIDTH], 0, sizes[SHIFT]
                if way == IN_PATCH:
                    source, plan, pitch = patch_at, in_patch, sizes[LINE]
                    fill_patch(
                        pixels, u1 - u0, wide, boundary, sizes, borrowed(image), borrowed(starts), blank_at, patch_at,
                        fill,
                    )
                if way == AT_EDGE:
                    edge, shift = sizes[EDGE], sizes[SHIFT] * sizes[EDGE]
                for k in range(g * (K // G), (g + 1) * (K // G)):
                    y0 = corner + k * steps[2]
                    target, t0, t_pitch = result, y0, row_step
                    if step > 1:
                        target, t0, t_pitch = block_at, 0, columns
                    for first in range(min(apart, high)):
                        count, image[0] = (high - first + apart - 1) // apart, top - first * stride
                        window_sum(
                            source, first * stride * pitch, starts_at, u1 - u0, plan, E, taps, shift,
                            between * pitch if between else vector, edge, image_at, blank_at,
                            weights, (k * U + u0) * taps,
                            target, t0 + first * t_pitch, apart * t_pitch if between else vector, count, wide,
                            between == 0, u0 == 0, start, k, fill,
                        )
                    if step > 1:
                        spread_rows(block_at, 0, columns, high, wide, result, y0, row_step, step, fill)
    keep(space, words)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray,
    items: np.ndarray | None = None,
) -> None:
    """``direct.forward`` for dtypes with vector code.

    ``y`` may have steps, where ``reaches``; then ``items`` is, flat and from ``y``'s first on, what it is a view of.
    """
    axes, plan = prepared(axes.tobytes(), y.dtype)
    taps = len(plan.order)
    weights = w.reshape(-1, taps).take(plan.order, 1)  # np.take takes twice as long to begin
    _forward(
        flat(x, x.size), flat(weights, weights.size), flat(bias, bias.size), axes, boundary, fill, plan.entries,
        plan.sizes, x.shape[1] // w.shape[1], steps_of(y.shape, y.strides, y.itemsize),
        y.reshape(y.size) if items is None else items, work=y.size * (w.size // w.shape[0]),
    )


@lru_cache(maxsize=1024)
def steps_of(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> np.ndarray:
    """How many images there are, and what leads from one image, channel, row and pixel to the next."""
    steps = steps_along(shape, strides, itemsize)
    if len(steps) == 3:  # a signal is one row
        steps.insert(2, 0)
    result = np.array([shape[0], *steps])
    result.flags.writeable = False
    return result


def reaches(axes: np.ndarray, dtype: np.dtype, channels: int) -> bool:
    """Whether ``forward`` can write into a view: if it sums the ``channels`` of a group at once."""
    if not serves(axes, dtype):
        return False
    return channels * prod(axes[:-2, KERNEL].tolist()) <= prepared(axes.tobytes(), dtype)[1].sizes[UNITS]


@Kernel
def _grad_weight(team, x, dY, axes, boundary, fill, entries, sizes, G, together_k, partial):
    # x and dY flat, partial (parts, K, units times taps): the blocks are split into a fixed number of parts; a task
    # sums one part for some output channels of a group, which share what is gathered.
    parts, K, weights = partial.shape
    taps, vector, lead_out, stride = sizes[TAPS], sizes[VECTOR], sizes[LEAD_OUT], sizes[EVERY_ROW]
    rows, columns, apart, between = sizes[ROWS], sizes[COLUMNS], sizes[APART], sizes[BETWEEN]
    R_out, L_out, U, E = sizes[OUT_ROWS], sizes[OUT_COLUMNS], weights // taps, entries.shape[1] // ENTRY
    down, across = (R_out + rows - 1) // rows, (L_out + columns - 1) // columns
    blocks = dY.size // (K * R_out * L_out) * down * across
    together = min(sizes[UNITS], U)
    slices = (K // G + together_k - 1) // together_k
    tasks = parts * G * slices
    once = sizes[EDGE] == 1 and boundary == CONSTANT and together_k * taps <= FEW
    blank = together * sizes[LINES] * sizes[PATCH_ROWS] * sizes[LINE] + WINDOW * vector
    space = np.empty(blank + ((sizes[ALONG] - 1) * sizes[AHEAD] + 2 * vector if once else 1), x.dtype)
    words, sums = np.empty(VIEWS + together, np.int64), np.empty(together_k * weights * vector, x.dtype)
    prepare(space, blank, fill)
    image, starts = words[:VIEWS], words[VIEWS:]
    pixels, gradient, sums_at = address(x, fill), address(dY, fill), address(sums, fill)
    patch_at, blank_at = address(space, fill), address(space[blank:], fill)
    in_patch, in_place = address(entries[0], fill), address(entries[1], fill)
    image_at, starts_at = address(image, fill), address(starts, fill)
    for task in tasks_of(team, tasks):
        part, slice, g = task % parts, task // parts % slices, task // parts // slices
        k0 = g * (K // G) + slice * together_k
        k1 = min(k0 + together_k, (g + 1) * (K // G))
        sums[:] = 0
        partial[part, k0:k1] = 0
        added = 0
        for b in range(blocks * part // parts, blocks * (part + 1) // parts):
            o0, O_row = b % across * columns, b // across % down * rows
            O, n = b // across // down % lead_out, b // across // down // lead_out
            high, wide = min(rows, R_out - O_row), min(columns, L_out - o0)
            view(O_row, high, o0, wide, sizes, borrowed(image))
            top = image[0]
            for u0 in range(0, U, together):
                u1 = min(u0 + together, U)
                way = survey(
                    x.size, (n * G + g) * (U // sizes[LEAD_TAPS]), u0, u1, O, wide, axes, boundary, sizes, once,
                    borrowed(starts), borrowed(image),
                )
                source, plan, pitch = pixels, in_place, sizes[WIDTH]
                if way == IN_PATCH:
                    source, plan, pitch = patch_at, in_patch, sizes[LINE]
                    fill_patch(
                        pixels, u1 - u0, wide, boundary, sizes, borrowed(image), borrowed(starts), blank_at, patch_at,
                        fill,
                    )
                for k in range(k0, k1):
                    s0 = ((k - k0) * weights + u0 * taps) * vector
                    dy0 = (((n * K + k) * lead_out + O) * R_out + O_row) * L_out + o0
                    for first in range(min(apart, high)):
                        count, image[0] = (high - first + apart - 1) // apart, top - first * stride
                        weight_sums(
                            source, first * stride * pitch, starts_at, u1 - u0, plan, E, taps, sizes[SHIFT],
                            between * pitch if between else vector, np.int64(way == AT_EDGE), image_at, blank_at,
                            gradient, dy0 + first * L_out,
                            apart * L_out if between else vector, count, wide, between == 0, sums_at, s0, fill,
                        )
            added += high * ((wide + vector - 1) // vector)
            if added >= LONG:
                add_lanes(sums, vector, partial[part], k0, k1)
                added = 0
        add_lanes(sums, vector, partial[part], k0, k1)
    keep(space, words, sums)


@helper
def add_lanes(sums, vector, totals, k0, k1):
    """The lanes of all sums go to the totals of some output channels, and the sums begin anew."""
    for k in range(k0, k1):
        for q in range(totals.shape[1]):
            s0 = ((k - k0) * totals.shape[1] + q) * vector
            lane, total = sums[s0 : s0 + vector], totals[k, q]
            for j in range(lane.size):
                total += lane[j]
            totals[k, q] = total
    sums[:] = 0


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``direct.grad_weight`` for dtypes with vector code."""
    axes, plan = prepared(axes.tobytes(), dY.dtype)
    K, G, weights, taps = dW.shape[0], x.shape[1] // dW.shape[1], dW.size // dW.shape[0], len(plan.order)
    together = kernels_together(K // G, weights)
    partial = np.empty((parts_for(plan.block, dY.shape, G, weights), K, weights), wide(dW.dtype))
    _grad_weight(
        flat(x, x.size), flat(dY, dY.size), axes, boundary, fill, plan.entries, plan.sizes, G, together,
        partial, work=dY.size * weights,
    )
    dW.reshape(-1, taps)[:, plan.order] = partial.sum(axis=0).reshape(-1, taps)


def kernels_together(Kg: int, weights: int) -> int:
    """How many kernels of a group, of so many weights each, are summed at once."""
    return min(Kg, max(1, SUMS // weights))


def parts_for(block: tuple[int, int], shape: tuple[int, ...], G: int, weights: int) -> int:
    """Into how many parts the sums over a ``dY`` of this shape are split."""
    (N, K), out, (rows, columns) = shape[:2], shape[2:], block
    blocks = N * prod(out[:-2]) * -(-(1, *out)[-2] // rows) * -(-out[-1] // columns)
    return parts_of(blocks, tasks=G * -(-K // G // kernels_together(K // G, weights)))


@helper
def parts_of(units: int, tasks: int) -> int:
    """Into how many parts a sum over ``units`` is split, next to ``tasks`` that are independent anyway.

    It follows from the shapes alone, never from the number of threads, so the bits of the result do too.
    """
    return max(1, min(units, -(-32 // max(tasks, 1))))


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: the weights in another order, and a patch for each thread."""
    if not serves(geometry.axes, dtype):
        return 0
    plan = prepared(geometry.axes.tobytes(), dtype)[1]
    weights = geometry.K * (geometry.C // geometry.groups) * prod(geometry.kernel)
    patch = min(max(PATCH, plan.patch), geometry.C // geometry.groups * prod(geometry.kernel[:-2]) * plan.patch)
    return (weights + thread_count() * (patch + WINDOW * lanes(dtype))) * dtype.itemsize
