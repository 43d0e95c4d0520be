"""How vector code reads what a block of the output sees: the lines of its taps, where they lie or from a patch.

Pixels are read where they lie, and at the edge of an image that is padded with a constant only those that are there.
Other blocks copy their pixels into a patch first, line by line: taps whose distance is a multiple of the stride read
one line.

- With a stride or a dilation of the rows, kernel rows ``m`` apart meet output rows ``apart`` each other in common
  lines; a tile takes output rows that far apart, and each class of kernel rows is summed on its own.
- One row of output (a signal) is folded: the rows of a tile are vectors that follow each other, and so are the rows of
  the kernel, of as many taps as a vector has items.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import Any, NamedTuple

import numpy as np

from .._indexing import CONSTANT, KERNEL, OUT, SIZE, START, STEP, STRIDE
from ._jit import helper, row_source, source
from .rows import lines_of
from .simd import ABREAST, CHAIN, ENTRY, IMAGE, MASKED, NO_PIXELS, STACKED, WINDOW, copy_item, copy_rows, lanes

#: Output columns of a block in vectors, and its rows in tiles.
ACROSS, DOWN = 16, 4

#: Items of a patch that stay in the L2 cache, and the most that one channel may need.
PATCH, LARGEST_PATCH = 1 << 16, 1 << 20

#: Most taps of an entry, whose sums are not interrupted.
IN_ENTRY = CHAIN // STACKED

#: Ways to read the pixels of a block: from a patch; where they lie, all there; the same with an edge of the image.
IN_PATCH, IN_PLACE, AT_EDGE = range(3)

#: The axis of the rows of a signal.
ONE_ROW = (1, 1, 1, 0, 1, 1)


#: What the kernels get of a layout, beside its entries: items from tap to tap on a line, output rows from row to row of
#: a tile, input rows from line to line of a tile (0 if folded, when it is a vector), classes of taps that have a line
#: for each row of a patch, rows and items of such a line, rows and columns of output in a block, units in a patch,
#: and items of a vector; of all taps, then the number of those in a line, and the distance of taps;
SHIFT, APART, BETWEEN, LINES, PATCH_ROWS, LINE, ROWS, COLUMNS, UNITS, VECTOR, TAPS, ALONG, AHEAD = range(13)

#: of rows and of columns: the first one that output 0 sees, how many there are in the input and in the output, and the
#: stride; whether edges are read where they lie (1, or 2 for every second pixel); and of the axes before them: taps,
#: outputs, and the items of a channel.
TOP, LEFT, HEIGHT, WIDTH, OUT_ROWS, OUT_COLUMNS, EVERY_ROW, EVERY, EDGE, LEAD_TAPS, LEAD_OUT, CHANNEL = range(13, 25)

#: What ``view`` says behind what tiles read: first row and column of the input that a block sees, and
#: how many; and how many words all that is.
VIEW_TOP, VIEW_LEFT, VIEW_ROWS, VIEW_COLUMNS, VIEWS = range(IMAGE, IMAGE + 5)


class Layout(NamedTuple):
    """How the taps of the last two axes are read: the same for every channel and block."""

    #: For each stack of kernel rows: first item, kernel rows, taps, first weight, row, column; once in a patch, once in
    #: place.
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
    return Layout(*arranged(row, last, vector))


@helper
def arranged(row: Any, last: Any, vector: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of a ``Layout``."""
    lines, shift = lines_of(last)
    folded = row[OUT] == row[KERNEL] == 1
    stride, step = (1, 1) if folded else (row[STRIDE], abs(row[STEP]))
    apart, classes = step // gcd(stride, step), stride // gcd(stride, step)
    R_k, L_k = row[KERNEL], last[KERNEL]
    width = vector // shift if folded and shift and vector % shift == 0 else 0  # taps of a row that is a vector
    stacks, order = np.empty((R_k * L_k, 7), np.int64), np.empty(R_k * L_k, np.int64)
    count, weight = 0, 0
    for first_row in range(min(classes, R_k)):
        for first in range(min(lines, L_k)):
            on_line = -(-(L_k - first) // lines)
            for half in range(2 if width else 1):
                if width:  # the last row may be shorter, so its taps and the others' are apart
                    begin, end = (0, on_line % width) if half == 0 else (on_line % width, width)
                    rows, taps = -(-(on_line - begin) // width) if end > begin else 0, end - begin
                    tap, to_next, ahead, between = first + begin * lines, width * lines, begin * shift, vector
                else:
                    rows, taps = -(-(R_k - first_row) // classes), on_line
                    tap, to_next, ahead, between = first_row * L_k + first, classes * L_k, 0, apart * stride
                parts = -(-rows // STACKED)
                cuts = -(-taps // IN_ENTRY)
                for part in range(parts * cuts):  # of about equal height, and of about as many taps
                    p, cut = part // cuts, part % cuts
                    a, b = rows * p // parts, rows * (p + 1) // parts
                    t0, t1 = taps * cut // cuts, taps * (cut + 1) // cuts
                    stacks[count, 0] = first_row * step + (0 if folded else a * between)
                    stacks[count, 1], stacks[count, 2] = first, ahead + (a * between if folded else 0) + t0 * shift
                    stacks[count, 3], stacks[count, 4], stacks[count, 5] = b - a, t1 - t0, weight
                    stacks[count, 6] = t0 * (lines * abs(last[STEP]) - shift)
                    count += 1
                    for t in range(t0, t1):
                        for r in range(a, b):
                            at = tap + r * to_next + t * lines
                            R, L = at // L_k, at % L_k  # taps ascend in the input
                            order[weight] = (R_k - 1 - R if row[STEP] < 0 else R) * L_k + (
                                L_k - 1 - L if last[STEP] < 0 else L
                            )
                            weight += 1
    tile = (WINDOW if folded else ABREAST) * vector
    columns = min(ACROSS * WINDOW * vector if folded else ACROSS * vector, -(-last[OUT] // tile) * tile)
    high = 1 if folded else WINDOW * (apart if apart > 1 else min(DOWN, -(-row[OUT] // WINDOW)))
    patch_rows = (high - 1) * stride + (R_k - 1) * step + 1
    line_size = columns + (-(-L_k // lines) - 1) * shift
    places = np.zeros((2, count * ENTRY), np.int64)
    for i in range(count):
        r, line, ahead = stacks[i, 0], stacks[i, 1], stacks[i, 2]
        column = line * abs(last[STEP]) + ahead + stacks[i, 6]  # of the input, where a stride leads from item to item
        places[0, i * ENTRY] = (line * patch_rows + r) * line_size + ahead
        places[1, i * ENTRY] = r * last[SIZE] + column
        for j in range(3):
            places[0, i * ENTRY + 1 + j] = places[1, i * ENTRY + 1 + j] = stacks[i, 3 + j]
        places[1, i * ENTRY + 4], places[1, i * ENTRY + 5] = r, column
    units = max(1, PATCH // (lines * patch_rows * line_size))
    between = 0 if folded else apart * stride
    down, across = (R_k - 1) * row[STEP], (L_k - 1) * last[STEP]
    edge = MASKED and not folded and last[STRIDE] <= 2 and abs(across) < columns  # far taps have no row of blanks
    sizes = (
        shift, apart, between, lines, patch_rows, line_size, high, columns, units, vector, len(order), L_k,
        abs(last[STEP]), row[START] + min(0, down), last[START] + min(0, across), row[SIZE], last[SIZE], row[OUT],
        last[OUT], row[STRIDE], last[STRIDE], last[STRIDE] if edge else 0,
    )
    return places, order, np.array(sizes)


@helper
def completed(sizes: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The sizes of a layout with those of the leading axes."""
    last, every = len(sizes), np.ones(CHANNEL + 1, np.int64)
    for i in range(last):
        every[i] = sizes[i]
    for a in range(len(axes)):
        every[CHANNEL] *= axes[a, SIZE]
        if a < len(axes) - 2:
            every[LEAD_TAPS] *= axes[a, KERNEL]
            every[LEAD_OUT] *= axes[a, OUT]
    return every


@lru_cache(maxsize=1024)
def prepared(table: bytes, dtype: np.dtype) -> tuple[np.ndarray, Layout]:
    """A table of axes over two axes at least, and its layout; made once for each table and dtype."""
    rows = [tuple(row) for row in np.frombuffer(table, np.int64).reshape(-1, 6).tolist()]
    rows = [ONE_ROW] * (2 - len(rows)) + rows
    plan, axes = layout(*rows[-2:], lanes(dtype)), np.array(rows)
    plan = plan._replace(sizes=completed(plan.sizes, axes))
    for array in (axes, plan.entries, plan.sizes):
        array.flags.writeable = False
    return axes, plan


@helper
def fill_patch(x, units, columns, boundary, sizes, image, starts, blank, patch, zero):
    """Copy the lines of pixels of units that begin at ``starts`` (negative: one is padding) to a patch."""
    size, height, stride, lines, line = sizes[WIDTH], sizes[HEIGHT], sizes[EVERY], sizes[LINES], sizes[LINE]
    row, rows, step = image[VIEW_TOP], image[VIEW_ROWS], sizes[PATCH_ROWS] * line
    for at in range(0, units * lines * step, step):
        first, begin = at // step % lines, starts[at // step // lines]
        start = image[VIEW_LEFT] + first * sizes[AHEAD]
        n = columns + (sizes[ALONG] - 1 - first) // lines * sizes[SHIFT]
        left = 0 if start >= 0 else min(-(start // stride), n)  # how many lie left of the image
        right = min(max(left, (size - start + stride - 1) // stride), n)  # and up to which it reaches
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
    for u in range(units):
        starts[u] = u * lines * step


@helper
def view(O_row, high, o0, wide, sizes, image):
    """What a block sees: first row and column of the input, how many, and which of them are pixels."""
    row, rows = sizes[TOP] + O_row * sizes[EVERY_ROW], sizes[PATCH_ROWS] - (sizes[ROWS] - high) * sizes[EVERY_ROW]
    column = sizes[LEFT] + o0 * sizes[EVERY]
    columns = (wide - 1) * sizes[EVERY] + (sizes[ALONG] - 1) * sizes[AHEAD] + 1
    image[VIEW_TOP], image[VIEW_LEFT], image[VIEW_ROWS], image[VIEW_COLUMNS] = row, column, rows, columns
    image[0] = max(0, -row)
    image[1] = max(0, min(rows, sizes[HEIGHT] - row) - image[0])
    image[2] = max(0, -column)
    image[3] = max(0, min(columns, sizes[WIDTH] - column) - image[2])
    image[4] = sizes[BETWEEN]


@helper
def survey(items, c0, u0, u1, O, wide, axes, boundary, sizes, once, starts, image):
    """Find where the units (channel, leading taps) ``u0 … u1`` begin that a block reads, and how they are read.

    They lie in ``x`` itself, whole or up to its edge; or they are to be copied to the patch. The tiles of a block may
    read more of ``x`` than it has rows and columns, but nothing that is not there. Channels are counted through all
    images.
    """
    lead_taps, width = sizes[LEAD_TAPS], sizes[WIDTH]
    plane, place = sizes[HEIGHT] * width, image[VIEW_TOP] * width + image[VIEW_LEFT]
    inside = sizes[EVERY] == 1 and image[1] == image[VIEW_ROWS] and image[3] == image[VIEW_COLUMNS]
    last = place + (sizes[PATCH_ROWS] - 1) * width + sizes[COLUMNS] + image[VIEW_COLUMNS] - wide
    for u in range(u0, u1):
        lead = row_source(u % lead_taps, O, axes[:-1], boundary) if axes.shape[0] > 2 else 0
        begin = (c0 + u // lead_taps) * sizes[CHANNEL] + lead * plane
        inside = inside and lead >= 0 and begin + last <= items
        starts[u - u0] = begin if lead >= 0 else NO_PIXELS
    way = IN_PLACE if inside else AT_EDGE if once else IN_PATCH
    for u in range(u1 - u0 if way != IN_PATCH else 0):
        if starts[u] != NO_PIXELS:
            starts[u] += place
    return way
