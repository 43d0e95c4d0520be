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
from typing import Any, NamedTuple

import numba
import numpy as np

from .._indexing import CONSTANT, KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..geometry import ConvGeometry
from ._jit import Kernel, flat, helper, row_source, source, tasks_of
from .rows import shared_lines
from .simd import ABREAST, STACKED, WINDOW, address, copy_line, lanes, weight_tile, window_tile

#: Output columns of a block in vectors, and its rows in tiles.
ACROSS, DOWN = 16, 4

#: Items of a patch that stay in the L2 cache, and the most that one channel may need.
PATCH, LARGEST_PATCH = 1 << 16, 1 << 20

#: Vectors that are added up in the dtype itself before the sum goes on in a wider one.
LONG = 1 << 10

#: The axis of the rows of a signal.
ONE_ROW = (1, 1, 1, 0, 1, 1)


class Layout(NamedTuple):
    """How the taps of the last two axes are read: the same for every channel and block."""

    #: An entry for each stack of kernel rows: input row, line of it, items further, kernel rows, taps, first weight.
    entries: np.ndarray
    #: In which order the taps of the kernel are summed.
    order: np.ndarray
    lines: int  # a row of a patch has one for each class of taps
    shift: int  # items from tap to tap on a line
    apart: int  # output rows from row to row of a tile
    between: int  # input rows from line to line of a tile; 0 if folded, when it is a vector
    height: int  # input rows of one output row
    reach: int  # items of a line beyond those of the first tap
    block: tuple[int, int]  # output rows and columns

    @property
    def line(self) -> int:
        """Items of a line."""
        return self.block[1] + self.reach

    @property
    def patch(self) -> int:
        """Items of one channel's patch."""
        rows = (self.block[0] - 1) * (self.between // self.apart) + self.height
        return rows * self.lines * self.line


@lru_cache(maxsize=256)
def layout(row: tuple[int, ...], last: tuple[int, ...], vector: int) -> Layout:
    """The layout for the table's entries of the last two axes."""
    lines, shift = shared_lines(np.array([last]))
    folded = row[OUT] == row[KERNEL] == 1
    stride, step = (1, 1) if folded else (row[STRIDE], abs(row[STEP]))
    apart = step // gcd(stride, step)
    classes = stride // gcd(stride, step)
    entries: list[tuple[int, ...]] = []
    order: list[int] = []

    def stack(rows: list[list[int]], input_row: int, line: int, ahead: int, between: int) -> None:
        # Kernel rows, each a list of as many taps, in parts of about equal height.
        parts = -(-len(rows) // STACKED)
        for p in range(parts):
            a, b = len(rows) * p // parts, len(rows) * (p + 1) // parts
            place = (0, a * between) if folded else (a * between, 0)
            entries.append((input_row + place[0], line, ahead + place[1], b - a, len(rows[0]), len(order)))
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
    rows_of_tiles = 1 if apart > 1 else min(DOWN, -(-row[OUT] // WINDOW))
    return Layout(
        np.array(entries, np.int64), ascending[order], lines, shift, apart, 0 if folded else apart * stride,
        (row[KERNEL] - 1) * step + 1, (-(-last[KERNEL] // lines) - 1) * shift,
        (1 if folded else rows_of_tiles * WINDOW * apart, columns),
    )


class Prepared(NamedTuple):
    """What follows from a table of axes: the table over two axes at least, its layout, and what kernels get of it."""

    axes: np.ndarray
    plan: Layout
    patch: int
    launch: tuple[Any, ...]


@lru_cache(maxsize=1024)
def prepared(table: bytes, dtype: np.dtype) -> Prepared:
    """Made once for each table of axes and dtype."""
    rows = [tuple(row) for row in np.frombuffer(table, np.int64).reshape(-1, 6).tolist()]
    rows = [ONE_ROW] * (2 - len(rows)) + rows
    axes = np.array(rows)
    axes.flags.writeable = False
    vector = lanes(dtype)
    plan = layout(*rows[-2:], vector)
    fixed = plan.entries, plan.lines, plan.line, plan.shift, plan.apart, plan.between, plan.height, plan.block
    return Prepared(axes, plan, plan.patch, (*fixed, max(1, PATCH // plan.patch), vector))


def serves(axes: np.ndarray, dtype: np.dtype) -> bool:
    """Whether there are vectors for the dtype, and a patch of one channel is not too large."""
    return lanes(dtype) > 1 and prepared(axes.tobytes(), dtype).patch <= LARGEST_PATCH


@helper
def fill_patch(x, begin, row, rows, o0, columns, axes, boundary, fill, lines, line, patch, patch_at, p0):
    """Lines of pixels, from input row ``row`` on, of the image that begins at item ``begin`` (-1: it is padding)."""
    a = axes.shape[0] - 1
    size, stride, kernel, out = axes[a, SIZE], axes[a, STRIDE], axes[a, KERNEL], axes[a - 1, SIZE]
    near = axes[a, START] + min(0, (kernel - 1) * axes[a, STEP])
    step = abs(axes[a, STEP])
    for first in range(min(lines, kernel)):
        start = near + first * step + o0 * stride
        n = columns + (kernel - 1 - first) // lines * (lines * step // stride)
        left = min(max(0, -(start // stride)), n)  # how many lie left of the image, and up to which it reaches
        right = min(max(left, (size - start + stride - 1) // stride), n)
        for r in range(rows):
            at = p0 + (r * lines + first) * line
            i = row + r
            if begin < 0:
                i = -1
            elif i < 0 or i >= out:
                i = source(i, out, boundary)
            if i < 0:
                for j in range(n):
                    patch[at + j] = fill
                continue
            place = begin + i * size
            copy_line(x, place + start + left * stride, stride, right - left, patch_at, at + left, fill)
            for part in range(2):
                for j in range(0 if part == 0 else right, left if part == 0 else n):
                    patch[at + j] = fill
                    if boundary != CONSTANT:
                        pixel = place + source(start + j * stride, size, boundary)
                        copy_line(x, pixel, 1, 1, patch_at, at + j, fill)


@helper
def survey(
    x, items, image, C, c0, u0, u1, O, O_row, high, o0, columns, read, axes, boundary, fill, entries, lines, line,
    height, patch, patch_at, plan,
):
    """Where the tiles of a block read: ``plan`` for the units (channel, leading taps) ``u0 … u1``.

    Returns the items from row to row where the pixels lie in ``x`` (flat) itself, 0 if they were copied to ``patch``;
    ``read`` rows and columns of output are what the tiles touch.
    """
    a = axes.shape[0] - 1
    size, width, stride = axes[a - 1, SIZE], axes[a, SIZE], axes[a - 1, STRIDE]
    row = axes[a - 1, START] + min(0, (axes[a - 1, KERNEL] - 1) * axes[a - 1, STEP]) + O_row * stride
    near = axes[a, START] + min(0, (axes[a, KERNEL] - 1) * axes[a, STEP]) + o0
    step = abs(axes[a, STEP])
    rows, reach = (high - 1) * stride + height, (axes[a, KERNEL] - 1) * step
    lead_k, lead_in = 1, 1
    for b in range(a - 1):
        lead_k *= axes[b, KERNEL]
        lead_in *= axes[b, SIZE]
    inside = axes[a, STRIDE] == 1 and row >= 0 and row + rows <= size and near >= 0 and near + columns + reach <= width
    last = row * width + near + ((read[0] - 1) * stride + height - 1) * width + read[1] + reach
    for u in range(u0, u1):
        lead = row_source(u % lead_k, O, axes[:a], boundary) if a > 1 else 0
        begin = ((image * C + c0 + u // lead_k) * lead_in + lead) * size * width
        inside = inside and lead >= 0 and begin + last <= items
    patch_rows = (read[0] - 1) * stride + height
    for u in range(u0, u1):
        lead = row_source(u % lead_k, O, axes[:a], boundary) if a > 1 else 0
        begin = ((image * C + c0 + u // lead_k) * lead_in + lead) * size * width
        if inside:
            begin += row * width + near
        else:
            p0 = (u - u0) * patch_rows * lines * line
            fill_patch(
                x, begin if lead >= 0 else -1, row, rows, o0, columns, axes, boundary, fill, lines, line, patch,
                patch_at, p0,
            )
            begin = p0
        for e in range(entries.shape[0]):
            q = (u - u0) * entries.shape[0] + e
            if inside:
                plan[q, 0] = begin + entries[e, 0] * width + entries[e, 1] * step + entries[e, 2]
            else:
                plan[q, 0] = begin + (entries[e, 0] * lines + entries[e, 1]) * line + entries[e, 2]
            plan[q, 1], plan[q, 2] = entries[e, 3], entries[e, 4]
            plan[q, 3] = u * axes[a - 1, KERNEL] * axes[a, KERNEL] + entries[e, 5]
    return width if inside else 0


@Kernel
def _forward(team, x, w, bias, axes, boundary, fill, entries, lines, line, shift, apart, between, height, read, units,
             vector, shares, G, y):
    # x (N, C, all pixels), w (K, units, taps), y (N, K, lead out, rows, columns). A unit is a channel and a tap of the
    # leading axes; a task is a block of rows and columns for all output channels of a group.
    N, K, lead_out, R_out, L_out = y.shape
    U, C = w.shape[1], x.shape[1]
    flat_x, flat_w, flat_y = x.reshape(x.size), w.reshape(w.size), y.reshape(y.size)
    pixels, weights = address(flat_x, fill), address(flat_w, fill)
    result, start = address(flat_y, fill), address(bias, fill)
    rows, columns = read
    E, stride, taps, items = entries.shape[0], axes[axes.shape[0] - 2, STRIDE], w.shape[2], x.size
    down, across = (R_out + rows - 1) // rows, (L_out + columns - 1) // columns
    tasks = N * G * lead_out * down * across
    unit = ((rows - 1) * stride + height) * lines * line
    tile = WINDOW * vector if between == 0 else ABREAST * vector
    for share in tasks_of(team, shares):
        patch = np.zeros(min(units, U) * unit + tile, x.dtype)  # what lies between is read too; as garbage it is slow
        plan = np.empty((min(units, U) * entries.shape[0], 4), np.int64)
        flat_plan = plan.reshape(plan.size)
        patch_at, plan_at = address(patch, fill), address(flat_plan, fill)
        axes_here, entries_here = axes.copy(), entries.copy()
        for task in range(tasks * share // shares, tasks * (share + 1) // shares):
            o0, O_row = task % across * columns, task // across % down * rows
            outer = task // across // down
            O, g, n = outer % lead_out, outer // lead_out % G, outer // lead_out // G
            high, wide = min(rows, R_out - O_row), min(columns, L_out - o0)
            for u0 in range(0, U, units):
                u1 = min(u0 + units, U)
                pitch = survey(
                    pixels, items, n, C, g * (C // G), u0, u1, O, O_row, high, o0, wide, read, axes_here, boundary,
                    fill, entries_here, lines, line, height, patch, patch_at, plan,
                )
                source = patch_at if pitch == 0 else pixels
                pitch = lines * line if pitch == 0 else pitch
                for k in range(g * (K // G), (g + 1) * (K // G)):
                    y0 = (((n * K + k) * lead_out + O) * R_out + O_row) * L_out + o0
                    for first in range(min(apart, high)):
                        count = (high - first + apart - 1) // apart
                        for i in range(0, count, WINDOW):
                            row = first + i * apart
                            for j in range(0, wide, tile):
                                at = row * stride * pitch + j
                                window_tile(
                                    source, at, plan_at, (u1 - u0) * E, shift,
                                    between * pitch if between else vector, weights, k * U * taps,
                                    result, y0 + row * L_out + j, apart * L_out if between else vector,
                                    count - i if between else WINDOW, wide - j, 0 if between else vector,
                                    u0 == 0, start, k, fill,
                                )


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``direct.forward`` for dtypes with vector code."""
    axes, plan, _, launch = prepared(axes.tobytes(), y.dtype)
    (N, K), Cg, kernel, out = y.shape[:2], w.shape[1], w.shape[2:], y.shape[2:]
    taps = len(plan.order)
    units, G = Cg * (prod(kernel) // taps), x.shape[1] // Cg
    weights = np.take(w.reshape(K, units, taps), plan.order, axis=2)
    lead_out, rows, columns = prod(out[:-2]), (1, *out)[-2], out[-1]
    tasks = N * G * lead_out * -(-rows // plan.block[0]) * -(-columns // plan.block[1])
    _forward(
        flat(x, N, x.shape[1], prod(x.shape[2:])), flat(weights, *weights.shape), flat(bias, K), axes, boundary, fill,
        *launch, min(tasks, 16 * numba.get_num_threads()) if tasks > 16 else tasks, G,
        y.reshape(N, K, lead_out, rows, columns), work=y.size * units * taps,
    )


@Kernel
def _grad_weight(team, x, dY, axes, boundary, fill, entries, lines, line, shift, apart, between, height, read, units,
                 vector, G, partial):
    # partial (parts, K, units, taps): the blocks are split into a fixed number of parts; a task sums one for one k.
    N, K, lead_out, R_out, L_out = dY.shape
    parts, _, U, taps = partial.shape
    C = x.shape[1]
    flat_x, flat_dY = x.reshape(x.size), dY.reshape(dY.size)
    pixels, gradient = address(flat_x, fill), address(flat_dY, fill)
    rows, columns = read
    E, stride, items = entries.shape[0], axes[axes.shape[0] - 2, STRIDE], x.size
    down, across = (R_out + rows - 1) // rows, (L_out + columns - 1) // columns
    blocks = N * lead_out * down * across
    unit = ((rows - 1) * stride + height) * lines * line
    tile = WINDOW * vector if between == 0 else vector
    for task in tasks_of(team, parts * K):
        part, k = task % parts, task // parts
        patch = np.zeros(min(units, U) * unit + WINDOW * vector, x.dtype)
        plan = np.empty((min(units, U) * E, 4), np.int64)
        sums = np.zeros((U * taps, vector), x.dtype)
        flat_plan, flat_sums = plan.reshape(plan.size), sums.reshape(sums.size)
        patch_at, plan_at, sums_at = address(patch, fill), address(flat_plan, fill), address(flat_sums, fill)
        axes_here, entries_here = axes.copy(), entries.copy()
        total = partial[part, k].reshape(U * taps)
        total[:] = 0
        added = 0
        for b in range(blocks * part // parts, blocks * (part + 1) // parts):
            o0, O_row = b % across * columns, b // across % down * rows
            O, n = b // across // down % lead_out, b // across // down // lead_out
            high, wide = min(rows, R_out - O_row), min(columns, L_out - o0)
            dy0 = (((n * K + k) * lead_out + O) * R_out + O_row) * L_out + o0
            for u0 in range(0, U, units):
                u1 = min(u0 + units, U)
                pitch = survey(
                    pixels, items, n, C, k // (K // G) * (C // G), u0, u1, O, O_row, high, o0, wide, read, axes_here,
                    boundary, fill, entries_here, lines, line, height, patch, patch_at, plan,
                )
                source = patch_at if pitch == 0 else pixels
                pitch = lines * line if pitch == 0 else pitch
                for first in range(min(apart, high)):
                    count = (high - first + apart - 1) // apart
                    i = 0
                    while i < count:
                        row = first + i * apart
                        done = 1
                        if between and count - i >= WINDOW:
                            done = WINDOW
                        j = 0
                        while j < wide:  # a tile, or what is left of one row by row
                            tall = done if between else WINDOW if wide - j >= tile else 1
                            weight_tile(
                                source, row * stride * pitch + j, plan_at, (u1 - u0) * E, shift,
                                between * pitch if between else vector, gradient, dy0 + row * L_out + j,
                                apart * L_out if between else vector, tall, min(wide - j, vector), sums_at, fill,
                            )
                            j += vector if between else tall * vector
                        i += done
            added += high * ((wide + vector - 1) // vector)
            if added >= LONG:
                add_lanes(sums, total)
                added = 0
        add_lanes(sums, total)


@helper
def add_lanes(sums, total):
    """The lanes of all sums go to their totals, and the sums begin anew."""
    for q in range(total.size):
        lane = sums[q]
        for j in range(lane.size):
            total[q] += lane[j]
        lane[:] = 0


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``direct.grad_weight`` for dtypes with vector code."""
    axes, plan, _, launch = prepared(axes.tobytes(), dY.dtype)
    (N, K), Cg, kernel, out = dY.shape[:2], dW.shape[1], dW.shape[2:], dY.shape[2:]
    taps = len(plan.order)
    units = Cg * (prod(kernel) // taps)
    lead_out, rows, columns = prod(out[:-2]), (1, *out)[-2], out[-1]
    blocks = N * lead_out * -(-rows // plan.block[0]) * -(-columns // plan.block[1])
    partial = np.empty((parts_of(blocks, tasks=K), K, units, taps), wide(dW.dtype))
    _grad_weight(
        flat(x, N, x.shape[1], prod(x.shape[2:])), flat(dY, N, K, lead_out, rows, columns), axes, boundary, fill,
        *launch, x.shape[1] // Cg, partial, work=dY.size * units * taps,
    )
    ordered = np.empty((K, units, taps), partial.dtype)
    ordered[:, :, plan.order] = partial.sum(axis=0)
    dW[...] = ordered.reshape(dW.shape)


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
    plan = prepared(geometry.axes.tobytes(), dtype).plan
    weights = geometry.K * (geometry.C // geometry.groups) * prod(geometry.kernel)
    patch = min(max(PATCH, plan.patch), geometry.C // geometry.groups * prod(geometry.kernel[:-2]) * plan.patch)
    return (weights + numba.get_num_threads() * (patch + WINDOW * lanes(dtype))) * dtype.itemsize
