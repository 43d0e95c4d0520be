"""The sum as it is written, for shapes that fill no tile: depthwise and grouped layers, few channels, integers.

A thread owns a few pixels of the output and some of a group's output channels, whose sums it keeps in registers: what
it reads of the input serves all channels, and of the weights all pixels; neighbours read neighbours.
"""

from __future__ import annotations

from math import prod

import numpy as np

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..arrays import computed_in
from ..geometry import ConvGeometry
from . import depthwise
from ._jit import THREADS, Kernel, at, count, cuda, helper, int32, kernel, source
from .arrays import DeviceArray, place_of, steps_of
from .direct_weights import grad_weight as grad_weight
from .direct_weights import workspace_for_weights as workspace_for_weights
from .instructions import take_four
from .packing import pack
from .places import table
from .tables import FAR, rows_and_taps

#: Channels of a depthwise layer that a thread sums: it finds their pixels once.
CHANNELS = 4


@helper
def pixel_and_plane(thread, block, wide, together, pieces):
    """What a thread owns, where a block has a piece of one plane, or ``together`` small ones side by side."""
    return count(block % pieces * wide + thread % wide), count(block // pieces * together + thread // wide)


def channels_at_a_time(channels: int, pixels: int) -> Kernel:
    """The kernel that sums so many output channels of so many pixels in a thread."""
    all_pixels = pixels * THREADS

    @kernel(THREADS, 2)
    def forward(
        x, w, bias, axes, steps, rows_met, boundary, fill, C, Cg, Kg, P, size, planes, together, wide, pieces, y
    ):
        # x (N, C, prod in), w (G, sets, taps, Cg, channels), y by its steps; the sums are of the bias's dtype. A plane
        # is the pixels of some channels of a group of an image. A block owns a piece of one, or a few that are small,
        # with so ``wide`` a row of threads for each; pixels of a thread lie so far apart.
        thread = count(cuda.threadIdx.x)
        p, plane = pixel_and_plane(thread, count(cuda.blockIdx.x), wide, together, pieces)
        p = count(p // count(wide) * count(wide * pixels) + p % count(wide))
        outs = cuda.shared.array(all_pixels, np.int32)
        firsts = cuda.shared.array(all_pixels, np.int32)
        rows = cuda.shared.array(all_pixels, np.int32)
        there = cuda.shared.array(all_pixels, np.int32)
        places = cuda.shared.array(all_pixels, np.int64)
        if p < P and plane < planes and thread < together * wide:
            last, sets, G = axes.shape[0] - 1, count((Kg + channels - 1) // channels), count(C // Cg)
            L_in, L_k, L_out = int32(axes[last, SIZE]), int32(axes[last, KERNEL]), count(axes[last, OUT])
            start, stride, step = axes[last, START], axes[last, STRIDE], int32(axes[last, STEP])
            R_out, taps = count(P // L_out), count(rows_met.size * L_k // count(P // L_out))
            some, g, n = count(plane % sets), count(plane // sets % G), count(plane // sets // G)
            sums = cuda.local.array((pixels, channels), bias.dtype)
            weights = cuda.local.array(channels, bias.dtype)
            for i in range(pixels):
                for j in range(channels):
                    sums[i, j] = 0
            i, q = int32(thread), p
            while i < all_pixels:  # what a thread does for one pixel after the other, it keeps in shared memory
                outs[i], firsts[i] = q // L_out, start + q % L_out * stride
                places[i] = place_of(n, q, axes, steps)
                i, q = int32(i + THREADS), count(min(q + wide, P - 1))  # one too many is summed and not used
            channel = (at(n) * at(C) + at(g) * at(Cg)) * at(size)
            w_at = at(count(g * sets + some)) * at(taps) * at(Cg * channels)
            for row_at in range(0, rows_met.size, R_out):
                i = int32(thread)
                while i < all_pixels:
                    rows[i] = rows_met[at(row_at + outs[i])]
                    i = int32(i + THREADS)
                for t in range(L_k):
                    i = int32(thread)
                    while i < all_pixels:
                        row, pixel = rows[i], int32(firsts[i] + int32(t * step))
                        if pixel < 0 or pixel >= L_in:
                            pixel = int32(source(pixel, L_in, boundary))
                        there[i] = row * L_in + pixel if row >= 0 and pixel >= 0 else -1
                        i = int32(i + THREADS)
                    x_at = channel
                    for _ in range(Cg):
                        if channels % 4 == 0:
                            for j in range(0, channels, 4):
                                take_four(w, w_at + at(j), weights, j)
                        else:
                            for j in range(channels):
                                weights[j] = w[w_at + at(j)]
                        for i in range(pixels):
                            pixel, value = there[thread + count(i * THREADS)], fill
                            if pixel >= 0:
                                value = bias.dtype.type(x[x_at + at(pixel)])
                            for j in range(channels):
                                sums[i, j] += weights[j] * value
                        x_at += at(size)
                        w_at += at(channels)
            for i in range(pixels):
                if p + i * wide < P:
                    place = at(places[thread + count(i * THREADS)])
                    for j in range(channels):
                        k = int32(some * channels + j)
                        if k < Kg:
                            k = int32(g * Kg + k)
                            y[place + at(k) * at(steps[2])] = y.dtype.type(sums[i, j] + bias[at(k)])

    return forward


#: Pixels that a thread sums: what it loads of the weights serves them all.
SEVERAL = 4

ONE, FEW, MANY = (channels_at_a_time(channels, SEVERAL) for channels in (1, 4, 16))


@kernel(THREADS)
def each_channel(
    x, w, bias, axes, steps, rows_met, boundary, fill, C, Cg, Kg, P, size, planes, together, wide, pieces, y
):
    # The same where each channel has a sum of its own: w (C, taps), and a plane is some channels of an image.
    thread = count(cuda.threadIdx.x)
    p, plane = pixel_and_plane(thread, count(cuda.blockIdx.x), wide, together, pieces)
    if p < P and plane < planes and thread < together * wide:
        last, sets = axes.shape[0] - 1, count((C + CHANNELS - 1) // CHANNELS)
        L_in, L_k, L_out = int32(axes[last, SIZE]), int32(axes[last, KERNEL]), count(axes[last, OUT])
        step, R_out = int32(axes[last, STEP]), int32(P // L_out)
        c0, n = count(plane % sets * CHANNELS), count(plane // sets)
        O = int32(p // L_out)
        first = int32(axes[last, START] + count(p % L_out) * axes[last, STRIDE])
        sums = cuda.local.array(CHANNELS, bias.dtype)
        x_at, w_at = cuda.local.array(CHANNELS, np.uint64), cuda.local.array(CHANNELS, np.uint64)
        for j in range(CHANNELS):
            c = min(c0 + j, C - 1)  # a channel too many is summed and not used
            sums[j], x_at[j] = 0, (at(n) * at(C) + at(c)) * at(size)
            w_at[j] = at(c) * at(rows_met.size // R_out * L_k)
        tap = at(0)
        for row_at in range(O, rows_met.size, R_out):
            row, where = rows_met[at(row_at)], first
            for _ in range(L_k):
                pixel = int32(source(where, L_in, boundary))
                inside = row >= 0 and pixel >= 0
                there = at(0)
                if inside:
                    there = at(row) * at(L_in) + at(pixel)
                for j in range(CHANNELS):
                    value = fill
                    if inside:
                        value = bias.dtype.type(x[x_at[j] + there])
                    sums[j] += w[w_at[j] + tap] * value
                where = int32(where + step)
                tap += at(1)
        place = place_of(n, p, axes, steps)
        for j in range(CHANNELS):
            if c0 + j < C:
                c = at(c0 + j)
                y[place + c * at(steps[2])] = y.dtype.type(sums[j] + bias[c])


def forward(
    x: DeviceArray, w: DeviceArray, bias: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic,
    y: DeviceArray, place: tuple[slice, ...] = (),
) -> None:
    """``y[n, k, p] = bias[k] + sum over c, t of w[k, c, t] * x[n, c, source(p, t)]``, for a place in ``y``."""
    (N, C), (K, Cg), T = x.shape[:2], w.shape[:2], prod(w.shape[2:])
    G, P, size, sums = C // Cg, prod(axes[:, OUT].tolist()), prod(x.shape[2:]), computed_in(x.dtype)
    Kg, bias, part = K // G, bias.ready(sums), y[(slice(None), slice(None), *place)] if place else y
    tile = depthwise.tile_for(axes.tobytes()) if Cg == 1 and sums.itemsize <= 4 else None
    if tile is not None:
        depthwise.forward(x, w.ready(sums), bias, *tile, boundary, sums.type(fill), part, y)
        return
    few = Kg <= 4 or sums.itemsize > 4  # sums of wide numbers would not fit the registers
    channels, kernel = (1, ONE) if Kg == 1 or sums.itemsize > 8 else (4, FEW) if few else (16, MANY)
    if Kg == Cg == 1:
        kernel, planes, packed = each_channel, -(-C // CHANNELS), w.ready(sums).reshape(w.size)
    else:
        planes = G * -(-Kg // channels)  # of an image
        packed = pack(w, np.arange(T), Cg * T, T, G, (Kg, Cg), channels, Cg, sums)
    several = 1 if kernel is each_channel else SEVERAL
    wide = min(-(-P // several), THREADS)
    together, pieces = THREADS // wide, -(-P // (THREADS * several))
    rows, _ = rows_and_taps(x.place, axes, boundary)
    images = max(1, FAR // (planes * pieces))  # in a launch, whose blocks 32 bits count
    for n in range(0, N, images):
        some, target = (a if images >= N else a[n : n + images] for a in (x, part))
        many = some.shape[0] * planes
        kernel(
            -(-many // together) * pieces, some.reshape(some.size), packed, bias, table(x.place, axes),
            table(x.place, steps_of(target, y)), rows, boundary, sums.type(fill), C, Cg, Kg, P, size, many, together,
            wide, pieces, y.reshape(y.size), on=x.place,
        )  # fmt: skip


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments."""
    return 0
