"""Depthwise layers, whose every output channel reads one channel of the input: bound by bytes, so each is read once.

A block brings the rectangle of a plane that its outputs look at into shared memory, boundaries and all, and its threads
sum four outputs of four rows each: a weight and a window of pixels in registers serve all of them. ``direct`` has the
layers whose last axis has another width, stride or dilation than the kernels here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..geometry import axes_table
from ._jit import SIMULATED, Kernel, at, count, cuda, int32, kernel, source
from .arrays import DeviceArray, steps_of, straight
from .instructions import load_four, put_four
from .places import table
from .tables import refuse_far

#: Threads of a block; the simulator makes each a thread of Python.
THREADS = 8 if SIMULATED else 128

#: Pixels that a block keeps, by the stride, and the rows that they may have.
PIXELS, ROWS = {1: 4096, 2: 8192}, 256

#: Rows and columns of outputs that a thread sums.
TALL, WIDE = 8, 4

#: Threads that run together.
WARP = 4 if SIMULATED else 32


def kernel_for_width(width: int, stride: int) -> Kernel:
    """The kernel for so many taps along the last axis, one pixel apart."""
    window = (WIDE - 1) * stride + width  # what the outputs of a thread look at along a row
    reads = -(-window // 4) * 4
    room, lines_at_most = PIXELS[stride], ROWS + THREADS

    @kernel(THREADS, 5 if stride == 1 else 4)
    def depthwise_tile(
        x, w, bias, axes, steps, boundary, fill, C, Kg, planes, across, down, right, below, together, rows, fours,
        side, aligned, y,
    ):
        # x (planes, H, L), w (C * Kg, taps), y by its steps. A block has ``across`` by ``down`` threads for each of
        # the planes that it takes ``together``, and of each keeps so many ``rows`` of ``fours``.
        thread, block, pitch = count(cuda.threadIdx.x), count(cuda.blockIdx.x), count(fours * 4)
        H, L, taps = int32(axes[0, SIZE]), int32(axes[1, SIZE]), int32(axes[0, KERNEL])
        H_out, L_out, stride_down = count(axes[0, OUT]), count(axes[1, OUT]), count(axes[0, STRIDE])
        image_step, channel_step, row_step, step = at(steps[1]), at(steps[2]), at(steps[3]), at(steps[4])
        columns_a_block, rows_a_block = count(WIDE * across), count(TALL * down)
        needed = int32((columns_a_block - 1) * stride + width)
        o0, rest = count(block % right * columns_a_block), count(block // right)
        O0, plane0 = count(rest % below * rows_a_block), count(rest // below * together)
        pixels = cuda.shared.array(room, bias.dtype, alignment=16)
        rows_met = cuda.shared.array(lines_at_most, np.int32)
        # taps ascend with the pixels that they meet: those of a turned kernel are read from the last one on
        apart, top, left = int32(abs(axes[0, STEP])), int32(axes[0, START]), int32(axes[1, START])
        w_from, w_down, w_along = int32(0), int32(width), int32(1)
        if axes[0, STEP] < 0:
            top, w_from, w_down = int32(top - (taps - 1) * apart), int32((taps - 1) * width), int32(-width)
        if axes[1, STEP] < 0:
            left, w_from, w_along = int32(left - (width - 1)), int32(w_from + width - 1), int32(-1)
        top, left = int32(top + O0 * stride_down), int32(left + o0 * stride)
        for r in range(thread, rows + THREADS, THREADS):
            row = int32(source(int32(top + r), H, boundary)) if r < rows else int32(-1)
            rows_met[r] = row * L if row >= 0 else row
        cuda.syncthreads()
        # columns that lie inside are copied, four at once of two rows; those of the boundary are looked up
        begin = int32(min(max(0, -left), needed))
        end = int32(max(begin, min(needed, L - left)))
        lane, first, lines = int32(thread & (side - 1)), int32(thread // side), int32(THREADS // side)
        together = count(min(together, planes - plane0))
        for column in range(begin + lane, end, 4 * WARP):
            for plane in range(together):
                r, line_step = int32(first), at(lines * pitch)
                here = at(plane0 + plane) * at(H * L) + at(left + column)
                to = at((plane * rows + r) * pitch + column)
                while r < int32(rows):
                    copied = cuda.local.array((2, 4), bias.dtype)
                    for i in range(2):
                        row = rows_met[at(int32(r + i * lines))]
                        for j in range(4):
                            copied[i, j] = fill
                            if row >= 0 and int32(column + j * WARP) < end:
                                copied[i, j] = bias.dtype.type(x[here + at(row) + at(j * WARP)])
                    for i in range(2):
                        if r < int32(rows):
                            for j in range(4):
                                if int32(column + j * WARP) < end:
                                    pixels[to + at(j * WARP)] = copied[i, j]
                        r, to = int32(r + lines), to + line_step
        outside = count(needed - (end - begin))
        for e in range(thread, outside * rows * together, THREADS):
            column, line = int32(count(e) % outside), count(count(e) // outside)
            if column >= begin:
                column = int32(column - begin + end)
            row, pixel, value = rows_met[at(line % count(rows))], int32(source(int32(left + column), L, boundary)), fill
            if row >= 0 and pixel >= 0:
                value = bias.dtype.type(x[at(plane0 + line // count(rows)) * at(H * L) + at(int32(row + pixel))])
            pixels[at(line * pitch) + at(column)] = value
        cuda.syncthreads()
        o, rest = count(thread % across), count(thread // across)
        O, plane = count(rest % down * TALL), count(rest // down)
        if plane < together:
            begin = count((plane * rows + O * stride_down) * fours + o * stride)  # in fours
            O, o, plane = count(O0 + O), count(o0 + o * WIDE), count(plane0 + plane)
            c, n = count(plane % C), count(plane // C)
            y_at = at(steps[0]) + at(n) * image_step + at(O) * row_step + at(o) * step
            window_step, tap_step = count(stride_down * fours), count(apart * fours)
            for k in range(c * Kg, c * Kg + Kg):
                sums = cuda.local.array((TALL, WIDE), bias.dtype)
                weights = cuda.local.array(width, bias.dtype)
                seen = cuda.local.array(reads, bias.dtype)
                for i in range(TALL):
                    for j in range(WIDE):
                        sums[i, j] = 0
                w_at, window = k * taps * width + w_from, begin
                for _ in range(taps):
                    for t in range(width):
                        weights[t] = w[at(w_at + t * w_along)]
                    for i in range(TALL):
                        for j in range(0, reads, 4):
                            load_four(pixels, at(count(window + i * window_step)) * at(4) + at(j), seen, j)
                        for t in range(width):
                            for j in range(WIDE):
                                sums[i, j] += weights[t] * seen[j * stride + t]
                    w_at += w_down
                    window = count(window + tap_step)
                four = cuda.local.array(WIDE, bias.dtype)
                to, shift = y_at + at(k) * channel_step, bias[at(k)]
                for i in range(TALL):
                    if O + i < H_out:
                        for j in range(WIDE):
                            four[j] = sums[i, j] + shift
                        if aligned and o + WIDE <= L_out:
                            put_four(four, 0, y, to)
                        else:
                            for j in range(WIDE):
                                if o + j < L_out:
                                    y[to + at(j) * step] = y.dtype.type(four[j])
                    to += row_step

    return depthwise_tile


#: The kernels by width and stride of the last axis; a stride leaves the gradients of wide ones with one or two taps.
KERNELS = {(width, stride): kernel_for_width(width, stride) for width, stride in (
    (1, 1), (2, 1), (3, 1), (5, 1), (7, 1), (3, 2), (5, 2), (7, 2),
)}  # fmt: skip


class Tile(NamedTuple):
    """How a block lies: threads ``across`` and ``down`` a plane, planes ``together``, and what it keeps of each."""

    across: int
    down: int
    right: int  # blocks side by side, and one under the other
    below: int
    together: int
    rows: int
    fours: int
    side: int  # threads side by side that copy a row


@lru_cache(maxsize=256)
def tile_for(axes: bytes) -> tuple[np.ndarray, Tile] | None:
    """Two axes and a tile for them, where there is a kernel and room for it."""
    *lead, last = np.frombuffer(axes, np.int64).reshape(-1, 6).tolist()
    refuse_far([*lead, last])
    if len(lead) > 1:
        return None
    above = lead[0] if lead else [1, 1, 1, 0, 1, 1]
    last[STRIDE] = last[STRIDE] if last[OUT] > 1 else 1
    if abs(last[STEP]) != 1 or (last[KERNEL], last[STRIDE]) not in KERNELS:
        return None
    across = balanced(-(-last[OUT] // WIDE), min(32, THREADS))
    fours = -(-((WIDE * across - 1) * last[STRIDE] + last[KERNEL]) // 4)
    for down in range(balanced(-(-above[OUT] // TALL), THREADS // across), 0, -1):
        rows = (TALL * down - 1) * above[STRIDE] + (above[KERNEL] - 1) * abs(above[STEP]) + 1
        together = min(PIXELS[last[STRIDE]] // (4 * rows * fours), THREADS // (across * down))
        if together and rows <= ROWS:
            pieces = -(-last[OUT] // (WIDE * across)), -(-above[OUT] // (TALL * down))
            side = min(WARP, 1 << (min(4 * fours, last[SIZE]) - 1).bit_length())
            return axes_table([above, last]), Tile(across, down, *pieces, together, rows, fours, side)
    return None


def balanced(items: int, most: int) -> int:
    """Of ``items`` in as few shares as there can be of at most so many, the largest."""
    return -(-items // max(1, -(-items // most)))


def forward(
    x: DeviceArray, w: DeviceArray, bias: DeviceArray, axes: np.ndarray, tile: Tile, boundary: int, fill: np.generic,
    part: DeviceArray, y: DeviceArray,
) -> None:
    """``part = conv(x, w) + bias`` for a part of ``y``, whose channels are a multiple of those of ``x``."""
    (N, C), steps = x.shape[:2], steps_of(part, y)
    if part.ndim == 3:
        steps = np.insert(steps, 3, 0)
    KERNELS[int(axes[1, KERNEL]), int(axes[1, STRIDE])](
        -(-N * C // tile.together) * tile.right * tile.below, x.reshape(x.size), w.reshape(w.size), bias,
        table(x.place, axes), table(x.place, steps), boundary, fill, C, bias.size // C, N * C, *tile,
        straight(part, 1), y.reshape(y.size), on=x.place,
    )  # fmt: skip
