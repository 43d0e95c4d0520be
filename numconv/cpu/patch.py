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
from math import gcd, prod
from typing import NamedTuple

import numpy as np

from .._indexing import CONSTANT, KERNEL, OUT, SIZE, START, STEP, STRIDE
from ._jit import helper, row_source, source
from .rows import shared_lines
from .simd import ABREAST, IMAGE, MASKED, NO_PIXELS, STACKED, WINDOW, copy_item, copy_rows, lanes

#: Output columns of a block in vectors, and its rows in tiles.
ACROSS, DOWN = 16, 4

#: Items of a patch that stay in the L2 cache, and the most that one channel may need.
PATCH, LARGEST_PATCH = 1 << 16, 1 << 20

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
        [((line * patch_rows + r) * line_size + ahead, *rest, 0, 0) for r, line, ahead, *rest in stacks],
        [
            (r * last[SIZE] + line * abs(last[STEP]) + ahead, *rest, r, line * abs(last[STEP]) + ahead)
            for r, line, ahead, *rest in stacks
        ],
    ]
    units = max(1, PATCH // (lines * patch_rows * line_size))
    reach = [(axis[KERNEL] - 1) * axis[STEP] for axis in (row, last)]
    edge = MASKED and not folded and last[STRIDE] <= 2 and abs(reach[1]) < columns  # far taps have no row of blanks
    sizes = (
        shift, apart, between, lines, patch_rows, line_size, high, columns, units, vector, len(order), last[KERNEL],
        abs(last[STEP]), row[START] + min(0, reach[0]), last[START] + min(0, reach[1]), row[SIZE], last[SIZE], row[OUT],
        last[OUT], row[STRIDE], last[STRIDE], last[STRIDE] if edge else 0,
    )
    return Layout(np.array(places, np.int64).reshape(2, -1), ascending[order], np.array(sizes, np.int64))


@lru_cache(maxsize=1024)
def prepared(table: bytes, dtype: np.dtype) -> tuple[np.ndarray, Layout]:
    """A table of axes over two axes at least, and its layout; made once for each table and dtype."""
    rows = [tuple(row) for row in np.frombuffer(table, np.int64).reshape(-1, 6).tolist()]
    rows = [ONE_ROW] * (2 - len(rows)) + rows
    plan, axes = layout(*rows[-2:], lanes(dtype)), np.array(rows)
    lead = prod(axes[:-2, KERNEL].tolist()), prod(axes[:-2, OUT].tolist()), prod(axes[:, SIZE].tolist())
    plan = plan._replace(sizes=np.append(plan.sizes, lead))
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
