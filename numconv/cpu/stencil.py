"""The sum over taps in registers: filters, depthwise layers, few channels; forward and the gradient to the weights.

A tile of the output, some rows by a vector or two, stays in registers while everything that it sums is added up. A
line of pixels that is loaded serves every row of the tile that meets it:

    y[i, o] = sum over r, t of w[r, t] * x[i + r, o + t]        line s = i + r meets kernel row r in row s - r.

Pixels are read where they lie. Only blocks that touch the edge of the image, and those with a stride along the rows,
copy their pixels into a patch first, line by line: taps whose distance is a multiple of the stride read one line.

- With a stride or a dilation of the rows, kernel rows ``m`` apart meet output rows ``apart`` each other in common
  lines; a tile takes output rows that far apart, and each class of kernel rows is summed on its own.
- One row of output (a signal) is folded: the rows of a tile are vectors that follow each other, and so are the rows of
  the kernel, of as many taps as a vector has items.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd, prod
from typing import NamedTuple

import numba
import numpy as np

from .._indexing import CONSTANT, KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..geometry import ConvGeometry
from ._jit import Kernel, flat, helper, row_source, source, tasks_of
from .rows import shared_lines
from .simd import (
    ABREAST,
    STACKED,
    WINDOW,
    address,
    copy_item,
    copy_rows,
    keep,
    lanes,
    spread_rows,
    weight_sums,
    window_sum,
)

#: Output columns of a block in vectors, and its rows in tiles.
ACROSS, DOWN = 16, 4

#: Items of a patch that stay in the L2 cache, and the most that one channel may need.
PATCH, LARGEST_PATCH = 1 << 16, 1 << 20

#: Vectors that are added up in the dtype itself before the sum goes on in a wider one.
LONG = 1 << 10

#: Weights whose sums, a vector each, are kept together, of channels that see the same pixels.
SUMS = 1 << 8

#: The axis of the rows of a signal.
ONE_ROW = (1, 1, 1, 0, 1, 1)


#: What the kernels get of a layout, beside its entries: items from tap to tap on a line, output rows from row to row of
#: a tile, input rows from line to line of a tile (0 if folded, when it is a vector), classes of taps that have a line
#: for each row of a patch, rows and items of such a line, rows and columns of output in a block, units in a patch,
#: and items of a vector.
SHIFT, APART, BETWEEN, LINES, PATCH_ROWS, LINE, ROWS, COLUMNS, UNITS, VECTOR = range(10)


class Layout(NamedTuple):
    """How the taps of the last two axes are read: the same for every channel and block."""

    #: For each stack of kernel rows: first item, kernel rows, taps, first weight; once in a patch, once in place.
    entries: np.ndarray
    #: In which order the taps of the kernel are summed.
    order: np.ndarray
    sizes: np.ndarray

    @property
    def block(self) -> tuple[int, int]:
        """Output rows and columns of a block."""
        return int(self.sizes[ROWS]), int(self.sizes[COLUMNS])

    @property
    def patch(self) -> int:
        """Items of one channel's patch."""
        return int(self.sizes[LINES] * self.sizes[PATCH_ROWS] * self.sizes[LINE])


@lru_cache(maxsize=256)
def layout(row: tuple[int, ...], last: tuple[int, ...], vector: int) -> Layout:
    """The layout for the table's entries of the last two axes."""
    lines, shift = shared_lines(np.array([last]))
    folded = row[OUT] == row[KERNEL] == 1
    stride, step = (1, 1) if folded else (row[STRIDE], abs(row[STEP]))
    apart = step // gcd(stride, step)
    classes = stride // gcd(stride, step)
    stacks: list[tuple[int, ...]] = []
    order: list[int] = []

    def stack(rows: list[list[int]], input_row: int, line: int, ahead: int, between: int) -> None:
        # Kernel rows, each a list of as many taps, in parts of about equal height.
        parts = -(-len(rows) // STACKED)
        for p in range(parts):
            a, b = len(rows) * p // parts, len(rows) * (p + 1) // parts
            place = (0, a * between) if folded else (a * between, 0)
            stacks.append((input_row + place[0], line, ahead + place[1], b - a, len(rows[0]), len(order)))
            order.extend(tap for taps in zip(*rows[a:b], strict=True) for tap in taps)

    for first_row in range(min(classes, row[KERNEL])):
        for first in range(min(lines, last[KERNEL])):
            on_line = list(range(first, last[KERNEL], lines))
            if folded and shift and vector % shift == 0:
                width = vector // shift
                rest = len(on_line) % width
                for begin, end in ((0, rest), (rest, width)):  # the last row may be shorter
                    rows = [on_line[i + begin : i + end] for i in range(0, len(on_line) - begin, width)]
                    if end > begin and rows:
                        stack(rows, 0, first, begin * shift, vector)
            else:
                rows = [[r * last[KERNEL] + t for t in on_line] for r in range(first_row, row[KERNEL], classes)]
                stack(rows, first_row * step, first, 0, apart * stride)
    taps = np.arange(row[KERNEL] * last[KERNEL]).reshape(row[KERNEL], last[KERNEL])
    ascending = taps[:: -1 if row[STEP] < 0 else 1, :: -1 if last[STEP] < 0 else 1].ravel()  # in the input
    tile = (WINDOW if folded else ABREAST) * vector
    columns = min(ACROSS * WINDOW * vector if folded else ACROSS * vector, -(-last[OUT] // tile) * tile)
    high = 1 if folded else WINDOW * (apart if apart > 1 else min(DOWN, -(-row[OUT] // WINDOW)))
    between = 0 if folded else apart * stride
    patch_rows = (high - 1) * stride + (row[KERNEL] - 1) * step + 1
    line_size = columns + (-(-last[KERNEL] // lines) - 1) * shift
    places = [
        [((line * patch_rows + r) * line_size + ahead, *rest) for r, line, ahead, *rest in stacks],
        [(r * last[SIZE] + line * abs(last[STEP]) + ahead, *rest) for r, line, ahead, *rest in stacks],
    ]
    units = max(1, PATCH // (lines * patch_rows * line_size))
    sizes = shift, apart, between, lines, patch_rows, line_size, high, columns, units, vector
    return Layout(np.array(places, np.int64).reshape(2, -1), ascending[order], np.array(sizes, np.int64))


@lru_cache(maxsize=1024)
def prepared(table: bytes, dtype: np.dtype) -> tuple[np.ndarray, Layout]:
    """A table of axes over two axes at least, and its layout; made once for each table and dtype."""
    rows = [tuple(row) for row in np.frombuffer(table, np.int64).reshape(-1, 6).tolist()]
    rows = [ONE_ROW] * (2 - len(rows)) + rows
    plan = layout(*rows[-2:], lanes(dtype))
    axes = np.array(rows)
    for array in (axes, plan.entries, plan.sizes):
        array.flags.writeable = False
    return axes, plan


def serves(axes: np.ndarray, dtype: np.dtype) -> bool:
    """Whether there are vectors for the dtype, and a patch of one channel is not too large."""
    return _serves(axes.tobytes(), dtype)


@lru_cache(maxsize=1024)
def _serves(table: bytes, dtype: np.dtype) -> bool:
    return lanes(dtype) > 1 and prepared(table, dtype)[1].patch <= LARGEST_PATCH


@helper
def fill_patch(x, begin, row, rows, o0, columns, axes, boundary, sizes, blank, patch, p0, zero):
    """Lines of pixels, from input row ``row`` on, of the image that begins at item ``begin`` (-1: it is padding)."""
    a = axes.shape[0] - 1
    size, stride, kernel, height = axes[a, SIZE], axes[a, STRIDE], axes[a, KERNEL], axes[a - 1, SIZE]
    near = axes[a, START] + min(0, (kernel - 1) * axes[a, STEP])
    lines, line = sizes[LINES], sizes[LINE]
    for first in range(min(lines, kernel)):
        start = near + first * abs(axes[a, STEP]) + o0 * stride
        n = columns + (kernel - 1 - first) // lines * sizes[SHIFT]
        left = 0 if start >= 0 else min(-(start // stride), n)  # how many lie left of the image
        right = min(max(left, (size - start + stride - 1) // stride), n)  # and up to which it reaches
        at = p0 + first * sizes[PATCH_ROWS] * line
        r = 0
        while r < rows:  # the rows of the image at once, others one by one
            i, high = row + r, 1
            if begin < 0:
                i = -1
            elif 0 <= i < height:
                high = min(height - i, rows - r)
            else:
                i = source(i, height, boundary)
            place, inside = begin + i * size, right - left if i >= 0 else 0
            copy_rows(
                x, place + start + left * stride, size, stride, left, inside, n, high, patch, at + r * line, line,
                blank, zero,
            )
            if boundary != CONSTANT and i >= 0:
                for j in range(n if inside < n else 0):
                    if j < left or j >= right:
                        pixel = source(start + j * stride, size, boundary)
                        for h in range(high):
                            copy_item(x, place + h * size + pixel, patch, at + (r + h) * line + j, zero)
            r += high


@helper
def survey(
    x, items, c0, u0, u1, O, O_row, high, o0, columns, axes, boundary, sizes, blank, patch, starts, zero
):
    """Find where the units (channel, leading taps) ``u0 … u1`` begin that a block reads.

    True where they lie in ``x`` itself; else they were copied to the patch. The tiles of a block may read more of ``x``
    than it has rows and columns, but nothing that is not there. Channels are counted through all images.
    """
    a = axes.shape[0] - 1
    size, width, stride = axes[a - 1, SIZE], axes[a, SIZE], axes[a - 1, STRIDE]
    row = axes[a - 1, START] + min(0, (axes[a - 1, KERNEL] - 1) * axes[a - 1, STEP]) + O_row * stride
    near = axes[a, START] + min(0, (axes[a, KERNEL] - 1) * axes[a, STEP]) + o0
    reach = (axes[a, KERNEL] - 1) * abs(axes[a, STEP])
    rows = sizes[PATCH_ROWS] - (sizes[ROWS] - high) * stride
    lead_k, lead_in = 1, 1
    for b in range(a - 1):
        lead_k *= axes[b, KERNEL]
        lead_in *= axes[b, SIZE]
    inside = axes[a, STRIDE] == 1 and row >= 0 and row + rows <= size and near >= 0 and near + columns + reach <= width
    last = (row + sizes[PATCH_ROWS] - 1) * width + near + sizes[COLUMNS] + reach
    for u in range(u0, u1):
        lead = row_source(u % lead_k, O, axes[:a], boundary) if a > 1 else 0
        begin = ((c0 + u // lead_k) * lead_in + lead) * size * width
        inside = inside and lead >= 0 and begin + last <= items
        starts[u - u0] = begin if lead >= 0 else -1
    for u in range(u1 - u0):
        if inside:
            starts[u] += row * width + near
        else:
            p0 = u * sizes[LINES] * sizes[PATCH_ROWS] * sizes[LINE]
            fill_patch(x, starts[u], row, rows, o0, columns, axes, boundary, sizes, blank, patch, p0, zero)
            starts[u] = p0
    return inside


@Kernel
def _forward(team, x, w, bias, axes, boundary, fill, entries, sizes, G, steps, y):
    # All arrays flat: x (N, C, in), w (K, units, taps), and y, in which steps lead from one image, channel, row, … to
    # the next. A unit is a channel and a tap of the leading axes; a task is a block of rows and columns for all output
    # channels of a group. Where columns are not neighbours a block is summed first, then spread.
    a, K = axes.shape[0] - 1, bias.size
    R_out, L_out, stride = axes[a - 1, OUT], axes[a, OUT], axes[a - 1, STRIDE]
    taps, lead_k, lead_out = axes[a - 1, KERNEL] * axes[a, KERNEL], 1, 1
    for b in range(a - 1):
        lead_k *= axes[b, KERNEL]
        lead_out *= axes[b, OUT]
    U, E, vector = w.size // K // taps, entries.shape[1] // 4, sizes[VECTOR]
    rows, columns, apart, between = sizes[ROWS], sizes[COLUMNS], sizes[APART], sizes[BETWEEN]
    down, across = (R_out + rows - 1) // rows, (L_out + columns - 1) // columns
    row_step, step = steps[a + 2], steps[a + 3]
    tile = WINDOW * vector if between == 0 else ABREAST * vector
    together = min(sizes[UNITS], U)
    patch = np.zeros(together * sizes[LINES] * sizes[PATCH_ROWS] * sizes[LINE] + tile, y.dtype)  # garbage may be slow
    block, blank = np.zeros(rows * columns if step > 1 else 0, y.dtype), np.zeros(1, y.dtype)
    starts = np.zeros(together, np.int64)
    blank[0] = fill
    pixels, weights, result, start = address(x, fill), address(w, fill), address(y, fill), address(bias, fill)
    patch_at, starts_at, blank_at = address(patch, fill), address(starts, fill), address(blank, fill)
    in_patch, in_place, block_at = address(entries[0], fill), address(entries[1], fill), address(block, fill)
    for task in tasks_of(team, steps[0] * G * lead_out * down * across):
        o0, O_row = task % across * columns, task // across % down * rows
        outer = task // across // down
        O, g, n = outer % lead_out, outer // lead_out % G, outer // lead_out // G
        high, wide = min(rows, R_out - O_row), min(columns, L_out - o0)
        corner, left = n * steps[1] + O_row * row_step + o0 * step, O
        for b in range(a - 2, -1, -1):
            corner += left % axes[b, OUT] * steps[b + 3]
            left //= axes[b, OUT]
        for u0 in range(0, U, together):
            u1 = min(u0 + together, U)
            inside = survey(
                pixels, x.size, (n * G + g) * (U // lead_k), u0, u1, O, O_row, high, o0, wide, axes, boundary, sizes,
                blank_at, patch_at, starts, fill,
            )
            source, plan, pitch = patch_at, in_patch, sizes[LINE]
            if inside:
                source, plan, pitch = pixels, in_place, axes[a, SIZE]
            for k in range(g * (K // G), (g + 1) * (K // G)):
                y0 = corner + k * steps[2]
                target, t0, t_pitch = result, y0, row_step
                if step > 1:
                    target, t0, t_pitch = block_at, 0, columns
                for first in range(min(apart, high)):
                    count = (high - first + apart - 1) // apart
                    window_sum(
                        source, first * stride * pitch, starts_at, u1 - u0, plan, E, taps, sizes[SHIFT],
                        between * pitch if between else vector, weights, (k * U + u0) * taps,
                        target, t0 + first * t_pitch, apart * t_pitch if between else vector, count, wide,
                        between == 0, u0 == 0, start, k, fill,
                    )
                if step > 1:
                    spread_rows(block_at, 0, columns, high, wide, result, y0, row_step, step, fill)
    keep(patch, block, blank, starts)


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
        plan.sizes, x.shape[1] // w.shape[1], steps_of(y.shape[0], y.strides, y.itemsize),
        y.reshape(y.size) if items is None else items, work=y.size * (w.size // w.shape[0]),
    )


@lru_cache(maxsize=1024)
def steps_of(N: int, strides: tuple[int, ...], itemsize: int) -> np.ndarray:
    """How many images there are, and what leads from one image, channel, row and pixel to the next."""
    steps = [step // itemsize for step in strides]
    if len(steps) == 3:  # a signal is one row
        steps.insert(2, 0)
    result = np.array([N, *steps])
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
    a = axes.shape[0] - 1
    R_out, L_out, stride = axes[a - 1, OUT], axes[a, OUT], axes[a - 1, STRIDE]
    taps, lead_k, lead_out = axes[a - 1, KERNEL] * axes[a, KERNEL], 1, 1
    for b in range(a - 1):
        lead_k *= axes[b, KERNEL]
        lead_out *= axes[b, OUT]
    U, E, vector = weights // taps, entries.shape[1] // 4, sizes[VECTOR]
    rows, columns, apart, between = sizes[ROWS], sizes[COLUMNS], sizes[APART], sizes[BETWEEN]
    down, across = (R_out + rows - 1) // rows, (L_out + columns - 1) // columns
    blocks = dY.size // (K * R_out * L_out) * down * across
    together = min(sizes[UNITS], U)
    slices = (K // G + together_k - 1) // together_k
    tasks = parts * G * slices
    patch = np.zeros(together * sizes[LINES] * sizes[PATCH_ROWS] * sizes[LINE] + WINDOW * vector, x.dtype)
    blank, starts = np.zeros(1, x.dtype), np.zeros(together, np.int64)
    blank[0] = fill
    sums = np.zeros(together_k * weights * vector, x.dtype)
    pixels, gradient, sums_at = address(x, fill), address(dY, fill), address(sums, fill)
    patch_at, starts_at, blank_at = address(patch, fill), address(starts, fill), address(blank, fill)
    in_patch, in_place = address(entries[0], fill), address(entries[1], fill)
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
            for u0 in range(0, U, together):
                u1 = min(u0 + together, U)
                inside = survey(
                    pixels, x.size, (n * G + g) * (U // lead_k), u0, u1, O, O_row, high, o0, wide, axes, boundary,
                    sizes, blank_at, patch_at, starts, fill,
                )
                source, plan, pitch = patch_at, in_patch, sizes[LINE]
                if inside:
                    source, plan, pitch = pixels, in_place, axes[a, SIZE]
                for k in range(k0, k1):
                    s0 = ((k - k0) * weights + u0 * taps) * vector
                    dy0 = (((n * K + k) * lead_out + O) * R_out + O_row) * L_out + o0
                    for first in range(min(apart, high)):
                        count = (high - first + apart - 1) // apart
                        weight_sums(
                            source, first * stride * pitch, starts_at, u1 - u0, plan, E, taps, sizes[SHIFT],
                            between * pitch if between else vector, gradient, dy0 + first * L_out,
                            apart * L_out if between else vector, count, wide, between == 0, sums_at, s0, fill,
                        )
            added += high * ((wide + vector - 1) // vector)
            if added >= LONG:
                add_lanes(sums, vector, partial[part], k0, k1)
                added = 0
        add_lanes(sums, vector, partial[part], k0, k1)
    keep(patch, blank, starts, sums)


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
    rows, columns = plan.block
    out = dY.shape[2:]
    blocks = dY.shape[0] * prod(out[:-2]) * -(-(1, *out)[-2] // rows) * -(-out[-1] // columns)
    together = min(K // G, max(1, SUMS // weights))
    partial = np.empty((parts_of(blocks, tasks=G * -(-K // G // together)), K, weights), wide(dW.dtype))
    _grad_weight(
        flat(x, x.size), flat(dY, dY.size), axes, boundary, fill, plan.entries, plan.sizes, G, together,
        partial, work=dY.size * weights,
    )
    dW.reshape(-1, taps)[:, plan.order] = partial.sum(axis=0).reshape(-1, taps)


def parts_of(units: int, tasks: int) -> int:
    """Into how many parts a sum over ``units`` is split, next to ``tasks`` that are independent anyway.

    It follows from the shapes alone, never from the number of threads, so the bits of the result do too.
    """
    return max(1, min(units, -(-32 // max(tasks, 1))))


def wide(dtype: np.dtype) -> np.dtype:
    """The type in which long sums are kept: float64 for float32, so that an error does not grow with the image."""
    return {"f": np.dtype(np.float64), "c": np.dtype(np.complex128)}.get(dtype.kind, dtype)


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: the weights in another order, and a patch for each thread."""
    if not serves(geometry.axes, dtype):
        return 0
    plan = prepared(geometry.axes.tobytes(), dtype)[1]
    weights = geometry.K * (geometry.C // geometry.groups) * prod(geometry.kernel)
    patch = min(max(PATCH, plan.patch), geometry.C // geometry.groups * prod(geometry.kernel[:-2]) * plan.patch)
    return (weights + numba.get_num_threads() * (patch + WINDOW * lanes(dtype))) * dtype.itemsize
