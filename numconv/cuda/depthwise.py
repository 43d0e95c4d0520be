"""Depthwise layers, whose every output channel reads one channel of the input: bound by bytes, so each is read once.

A block brings the rectangle of a plane that its outputs look at into shared memory, boundaries and all, and its threads
sum four outputs of four rows each: a weight and a window of pixels in registers serve all of them. ``direct`` has the
layers whose last axis has another width, stride or dilation than the kernels here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..geometry import axes_table
from ._jit import SIMULATED, Kernel, at, count, cuda, int32, kernel, load_four, put_four, source
from .arrays import DeviceArray, steps_of, straight
from .places import table

#: Threads of a block; the simulator makes each a thread of Python.
THREADS = 8 if SIMULATED else 128

#: Pixels that a block keeps for each unit of the stride, and the rows that they may have: 24 KiB at most of float32.
PIXELS, ROWS = 3072, 512

#: Rows and columns of outputs that a thread sums.
SIDE = 4


def kernel_for_width(width: int, stride: int) -> Kernel:
    """The kernel for so many taps along the last axis, one pixel apart."""
    window = (SIDE - 1) * stride + width  # what the outputs of a thread look at along a row
    reads = -(-window // 4) * 4
    room = PIXELS * stride

    @kernel(THREADS)
    def depthwise_tile(
        x, w, bias, axes, steps, boundary, fill, C, Kg, planes, across, down, together, rows, fours, aligned, y
    ):
        # x (planes, H, L), w (C * Kg, taps), y by its steps. A block has ``across`` by ``down`` threads for each of
        # the planes that it takes ``together``, and of each keeps so many ``rows`` of ``fours``.
        thread, block, pitch = count(cuda.threadIdx.x), count(cuda.blockIdx.x), count(fours * 4)
        H, L, taps = int32(axes[0, SIZE]), int32(axes[1, SIZE]), int32(axes[0, KERNEL])
        H_out, L_out, stride_down = count(axes[0, OUT]), count(axes[1, OUT]), count(axes[0, STRIDE])
        image_step, channel_step = at(steps[1]), at(steps[2])
        row_step, line_step = at(steps[3]), at(steps[4])
        columns_a_block, rows_a_block = count(SIDE * across), count(SIDE * down)
        pieces = count((L_out + columns_a_block - 1) // columns_a_block)
        o0, rest = count(block % pieces * columns_a_block), count(block // pieces)
        pieces = count((H_out + rows_a_block - 1) // rows_a_block)
        O0, plane0 = count(rest % pieces * rows_a_block), count(rest // pieces * together)
        pixels = cuda.shared.array(room, bias.dtype, alignment=16)
        rows_met = cuda.shared.array(ROWS, np.int32)
        # taps ascend with the pixels that they meet: those of a turned kernel are read from the last one on
        apart, top, left = int32(abs(axes[0, STEP])), int32(axes[0, START]), int32(axes[1, START])
        w_from, w_down, w_along = int32(0), int32(width), int32(1)
        if axes[0, STEP] < 0:
            top, w_from, w_down = int32(top - (taps - 1) * apart), int32((taps - 1) * width), int32(-width)
        if axes[1, STEP] < 0:
            left, w_from, w_along = int32(left - (width - 1)), int32(w_from + width - 1), int32(-1)
        top, left = int32(top + O0 * stride_down), int32(left + o0 * stride)
        for r in range(thread, rows, THREADS):
            row = int32(source(int32(top + r), H, boundary))
            rows_met[r] = row * L if row >= 0 else row
        cuda.syncthreads()
        side = count(min(pitch, THREADS))
        first, few = count(thread // side), count(THREADS // side)
        for column in range(thread % side, pitch if first < few else 0, side):
            pixel = int32(source(int32(left + column), L, boundary))
            for plane in range(min(together, planes - plane0)):
                here, to = at(plane0 + plane) * at(H * L), at((plane * rows + first) * pitch + column)
                r, step = count(first), at(few * pitch)
                if pixel >= 0:
                    here += at(pixel)
                while r < count(rows):
                    four = cuda.local.array(4, bias.dtype)
                    for i in range(4):  # four loads are on their way at once
                        row = int32(-1)
                        if count(r + few * i) < count(rows):
                            row = rows_met[at(count(r + few * i))]
                        four[i] = fill
                        if row >= 0 and pixel >= 0:
                            four[i] = bias.dtype.type(x[here + at(row)])
                    for i in range(4):
                        if r < count(rows):
                            pixels[to] = four[i]
                        r, to = count(r + few), to + step
        cuda.syncthreads()
        o, rest = count(thread % across), count(thread // across)
        O, plane = count(rest % down * SIDE), count(rest // down)
        if plane < together and plane0 + plane < planes:
            begin = count((plane * rows + O * stride_down) * fours + o * stride)  # in fours
            O, o, plane = count(O0 + O), count(o0 + o * SIDE), count(plane0 + plane)
            c, n = count(plane % C), count(plane // C)
            y_at = at(steps[0]) + at(n) * image_step + at(O) * row_step + at(o) * line_step
            window_step, tap_step = count(stride_down * fours), count(apart * fours)
            for k in range(c * Kg, c * Kg + Kg):
                sums = cuda.local.array((SIDE, SIDE), bias.dtype)
                weights = cuda.local.array(width, bias.dtype)
                seen = cuda.local.array(reads, bias.dtype)
                for i in range(SIDE):
                    for j in range(SIDE):
                        sums[i, j] = 0
                w_at, window = k * taps * width + w_from, begin
                for _ in range(taps):
                    for t in range(width):
                        weights[t] = w[at(w_at + t * w_along)]
                    for i in range(SIDE):
                        for j in range(0, reads, 4):
                            load_four(pixels, at(count(window + i * window_step)) * at(4) + at(j), seen, j)
                        for t in range(width):
                            for j in range(SIDE):
                                sums[i, j] += weights[t] * seen[j * stride + t]
                    w_at += w_down
                    window = count(window + tap_step)
                four = cuda.local.array(SIDE, bias.dtype)
                to, shift = y_at + at(k) * channel_step, bias[at(k)]
                for i in range(SIDE):
                    if O + i < H_out:
                        for j in range(SIDE):
                            four[j] = sums[i, j] + shift
                        if aligned and o + SIDE <= L_out:
                            put_four(four, 0, y, to)
                        else:
                            for j in range(SIDE):
                                if o + j < L_out:
                                    y[to + at(j) * line_step] = y.dtype.type(four[j])
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
    together: int
    rows: int
    fours: int


@lru_cache(maxsize=256)
def tile_for(axes: bytes) -> tuple[np.ndarray, Tile] | None:
    """Two axes and a tile for them, where there is a kernel and room for it."""
    table_of = np.frombuffer(axes, np.int64).reshape(-1, 6).tolist()
    if len(table_of) > 2:
        return None
    lead, last = table_of if len(table_of) == 2 else ([1, 1, 1, 0, 1, 1], *table_of)
    stride = last[STRIDE] if last[OUT] > 1 else 1
    if abs(last[STEP]) != 1 or (last[KERNEL], stride) not in KERNELS:
        return None
    across = balanced(-(-last[OUT] // SIDE), min(32, THREADS))
    fours = -(-((SIDE * across - 1) * stride + last[KERNEL]) // 4)
    down = balanced(-(-lead[OUT] // SIDE), THREADS // across)
    while down:
        rows = (SIDE * down - 1) * lead[STRIDE] + (lead[KERNEL] - 1) * abs(lead[STEP]) + 1
        together = min(PIXELS * stride // (4 * rows * fours), THREADS // (across * down))
        if together and rows <= ROWS:
            last[STRIDE] = stride
            return axes_table([lead, last]), Tile(across, down, together, rows, fours)
        down -= 1
    return None


def balanced(items: int, most: int) -> int:
    """Of ``items`` in as few shares as there can be of at most so many, the largest."""
    return -(-items // max(1, -(-items // most)))


def forward(
    x: DeviceArray, w: DeviceArray, bias: DeviceArray, axes: np.ndarray, tile: Tile, boundary: int, fill: np.generic,
    part: DeviceArray, y: DeviceArray,
) -> None:
    """``part = conv(x, w) + bias`` for a part of ``y``, whose channels are a multiple of those of ``x``."""
    (N, C), K, place = x.shape[:2], bias.size, x.place
    (_, _, L_out, *_), (_, _, H_out, *_) = axes[1].tolist(), axes[0].tolist()
    across, down, together, rows, fours = tile
    steps = steps_of(part, y)
    if part.ndim == 3:
        steps = np.insert(steps, 3, 0)
    pieces = -(-L_out // (SIDE * across)) * -(-H_out // (SIDE * down))
    KERNELS[int(axes[1, KERNEL]), int(axes[1, STRIDE])](
        -(-N * C // together) * pieces, x.reshape(x.size), w.reshape(w.size), bias, table(place, axes),
        table(place, steps), boundary, fill, C, K // C, N * C, across, down, together, rows, fours,
        straight(part, 1), y.reshape(y.size), on=place,
    )  # fmt: skip
