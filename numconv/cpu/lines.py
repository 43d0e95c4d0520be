"""The lines of a block: what a block of the output sees of the input, gathered once, boundaries included.

For each channel, all taps whose distance is a multiple of the stride read one line, shifted. Row ``(c, t)`` of
``X_conv`` is then a stretch of memory that begins at ``table[c, t]``: there is no need to store it.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numba.extending import overload

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ._jit import helper, row_source, source
from .rows import lines_of
from .simd import address, copy_every_second, copy_run, keep

#: What a block is: outputs, input channels, how many tasks share the output channels of one, its lines; how many tiles
#: are packed together (none: they are multiplied where they lie), numbers in a row of a tile and in a vector; how many
#: rows of turned weights are copied together (none: they are read where they lie), and whether the lines are the input.
ROWS, COLUMNS, CHANNELS, SHARES, ROW_LINES, ROW_SHIFT, LINES, SHIFT, PACKED, WIDTH, LANES, TURNED, IN_PLACE = range(13)


@helper
def plane(axes, block):
    """Rows and columns of one plane of lines: the outputs of a block and what lies between taps that share a line."""
    d = axes.shape[0]
    down = (axes[d - 2, KERNEL] - 1) // block[ROW_LINES] * block[ROW_SHIFT]
    across = (axes[d - 1, KERNEL] - 1) // block[LINES] * block[SHIFT]
    return block[ROWS] + down, block[COLUMNS] + across


@helper
def block_size(axes, block):
    """Numbers in the lines of a block."""
    lines = block[CHANNELS] * block[ROW_LINES] * block[LINES]
    for a in range(axes.shape[0] - 2):
        lines *= axes[a, KERNEL]
    rows, columns = plane(axes, block)
    return lines * rows * columns


@helper
def gather_lines(x, c0, channels, n, outer, O0, o0, axes, boundary, fill, block, lines, l0):
    """Fill the lines, from ``l0`` on, of ``channels`` from ``c0`` on for the outputs from ``(outer, O0, o0)`` on.

    ``x (N, C, lead in, rows in, last in)``; ``outer`` counts the outputs of the leading axes.
    """
    d = axes.shape[0]
    C, R_in, L_in = x.shape[1], axes[d - 2, SIZE], axes[d - 1, SIZE]
    rows, columns = plane(axes, block)
    stride = axes[d - 1, STRIDE]
    lead_k = 1
    for a in range(d - 2):
        lead_k *= axes[a, KERNEL]
    top = axes[d - 2, START] + min(0, (axes[d - 2, KERNEL] - 1) * axes[d - 2, STEP]) + O0 * axes[d - 2, STRIDE]
    near = axes[d - 1, START] + min(0, (axes[d - 1, KERNEL] - 1) * axes[d - 1, STEP]) + o0 * stride
    pixels = x.reshape(x.size)
    pixels_at, lines_at = address(pixels, fill), address(lines, fill)
    from_row = np.empty((block[ROW_LINES], rows), np.int64)
    for line in range(block[ROW_LINES]):
        for m in range(rows):
            i = top + line * abs(axes[d - 2, STEP]) + m * axes[d - 2, STRIDE]
            from_row[line, m] = source(i, R_in, boundary)
    from_column = np.empty((block[LINES], columns), np.int64)
    inside = np.empty((block[LINES], 2), np.int64)  # the columns between are pixels of the input, a stride apart
    for line in range(block[LINES]):
        first = near + line * abs(axes[d - 1, STEP])
        inside[line, 0], inside[line, 1] = columns, columns
        for m in range(columns):
            i = first + m * stride
            from_column[line, m] = source(i, L_in, boundary)
            if i >= 0 and inside[line, 0] == columns:
                inside[line, 0] = m
            if i >= L_in and inside[line, 1] == columns:
                inside[line, 1] = m
        inside[line, 0] = min(inside[line, 0], inside[line, 1])
    at = l0
    for c in range(c0, c0 + channels):
        for T in range(lead_k):
            lead = row_source(T, outer, axes[: d - 1], boundary)
            for row_line in range(block[ROW_LINES]):
                for line in range(block[LINES]):
                    a, b = inside[line, 0], inside[line, 1]
                    first = near + line * abs(axes[d - 1, STEP]) + a * stride
                    for m in range(rows):
                        row = from_row[row_line, m]
                        if lead < 0 or row < 0:
                            for j in range(at, at + columns):
                                lines[j] = fill
                            at += columns
                            continue
                        begin = (((n * C + c) * x.shape[2] + lead) * R_in + row) * L_in
                        for j in range(a):
                            i = from_column[line, j]
                            lines[at + j] = pixels[begin + i] if i >= 0 else fill
                        if stride == 1:
                            copy_run(pixels_at, begin + first, b - a, lines_at, at + a, fill)
                        elif stride == 2:
                            copy_every_second(pixels_at, begin + first, b - a, lines_at, at + a, fill)
                        else:
                            for j in range(b - a):
                                lines[at + a + j] = pixels[begin + first + j * stride]
                        for j in range(b, columns):
                            i = from_column[line, j]
                            lines[at + j] = pixels[begin + i] if i >= 0 else fill
                        at += columns
    keep(pixels, lines)


def rows_of(axes: np.ndarray) -> Any:
    """The table of axes as Python's ints, which it counts with faster; compiled code takes the table itself."""
    return axes.tolist()


@overload(rows_of)
def _rows_of(axes):
    return lambda axes: axes


@helper
def times(rows: Any, column: int) -> int:
    """The product of a column of some rows of the table of axes."""
    total = 1
    for row in rows:
        total *= row[column]
    return total


@helper
def idle(row: Any) -> bool:
    """Whether nothing happens along this axis: each output sees the pixel in its own place."""
    return row[KERNEL] == 1 and row[STRIDE] == 1 and row[START] == 0 and row[OUT] == row[SIZE]


@helper
def merged(axes: np.ndarray, steps: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same convolution over as few axes as there can be, but two at least; ``steps`` lead through the output.

    Neighbouring axes along which nothing happens are one axis: a 1x1 convolution sees a row of pixels.
    """
    d = len(axes)
    rows, along = np.empty((d + 1, 6), np.int64), np.empty(d + 3, np.int64)
    for a in range(d):
        for column in range(6):
            rows[a, column] = axes[a, column]
    for a in range(d + 2):
        along[a] = steps[a]
    while d > 1 and idle(rows[d - 1]) and idle(rows[d - 2]) and along[d] == along[d + 1] * rows[d - 1, OUT]:
        rows[d - 2, SIZE] *= rows[d - 1, SIZE]
        rows[d - 2, OUT], rows[d - 2, STEP] = rows[d - 2, SIZE], 1
        along[d] = along[d + 1]
        d -= 1
    if d == 1:  # a signal is one row
        for column in range(6):
            rows[1, column], rows[0, column] = rows[0, column], 0 if column == START else 1
        along[3], along[2], d = along[2], 0, 2
    return rows[:d], along[: d + 2]


@helper
def lines_for(axis: Any, K: int = 0, width: int = 1) -> tuple[int, int]:
    """Lines and shift along an axis: shared by the taps, unless a line for each wastes less.

    Shared lines are longer than a row of the output. If they are not packed, the tile computes what lies between two
    rows for nothing, for each of ``K`` channels.
    """
    lines, shift = lines_of(axis)
    kernel, out, gap = axis[KERNEL], axis[OUT], between(axis, lines, shift)
    # in cycles for a row of outputs: two multiply-adds of a vector each, and a copy
    wasted, copied = gap * kernel * K / (2 * width), (kernel - lines) * (8 + out / width)
    return (lines, shift) if wasted <= copied and lines * gap <= (kernel - lines) * out else (kernel, 0)


@helper
def between(axis: Any, lines: int, shift: int) -> int:
    """How far the last tap on a line is from the first."""
    return (axis[KERNEL] - 1) // lines * shift


@helper
def table(axes: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Where row ``(c, t)`` of ``X_conv`` begins among the lines, or in the input if that is where they are."""
    if block[IN_PLACE]:
        return np.arange(block[CHANNELS]) * times(axes, SIZE)
    d = len(axes)
    rows, columns = plane(axes, block)
    row_lines, row_shift, lines, shift = block[ROW_LINES], block[ROW_SHIFT], block[LINES], block[SHIFT]
    R_k, L_k = axes[d - 2, KERNEL], axes[d - 1, KERNEL]
    begins = np.empty(block[CHANNELS] * times(axes, KERNEL), np.int64)
    for i in range(begins.size):
        outer, T, t = i // L_k // R_k, i // L_k % R_k, i % L_k
        T, t = T if axes[d - 2, STEP] > 0 else R_k - 1 - T, t if axes[d - 1, STEP] > 0 else L_k - 1 - t  # lines ascend
        line = (outer * row_lines + T % row_lines) * lines + t % lines
        begins[i] = (line * rows + T // row_lines * row_shift) * columns + t // lines * shift
    return begins


@helper
def in_place(axes: np.ndarray) -> bool:
    """Whether each output sees just the pixel in its own place."""
    every = True
    for row in axes:
        every = every and idle(row)
    return every


def contiguous_steps(shape: tuple[int, ...]) -> list[int]:
    """Steps in numbers along the axes of a contiguous array."""
    return [prod(shape[a + 1 :]) for a in range(len(shape))]


def steps_along(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> list[int]:
    """Steps in numbers along the axes of an array; nothing steps along an axis of one, whatever its stride."""
    rows = zip(shape, strides, contiguous_steps(shape), strict=True)
    return [stride // itemsize if n > 1 else step for n, stride, step in rows]


@helper
def even(n: int, most: int) -> int:
    """The size of pieces of at most ``most`` into which ``n`` falls evenly."""
    return -(-n // -(-n // max(most, 1)))
