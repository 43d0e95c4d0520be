"""The sum as it is written, for shapes that fill no tile: depthwise and grouped layers, few channels, integers.

A thread owns one pixel of the output and some of a group's output channels, whose sums it keeps in registers: a pixel
of the input is read once for all of them, and neighbours read neighbours.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..arrays import computed_in
from ..geometry import ConvGeometry
from ._jit import THREADS, at, count, cuda, helper, int32, kernel, source
from .arrays import DeviceArray
from .direct_weights import grad_weight as grad_weight
from .direct_weights import workspace_for_weights as workspace_for_weights
from .packing import pack
from .places import table
from .tables import FAR, rows_and_taps

#: Channels of a depthwise layer that a thread sums: it finds their pixels once.
CHANNELS = 4


@helper
def pixel_and_plane(thread, block, wide, together, pieces):
    """What a thread owns, where a block has a piece of one plane, or ``together`` small ones side by side."""
    return count(block % pieces * wide + thread % wide), count(block // pieces * together + thread // wide)


def channels_at_a_time(channels: int) -> Any:
    """The kernel that sums so many output channels in a thread."""

    @kernel(THREADS)
    def forward(x, w, bias, axes, rows_met, boundary, fill, C, Cg, Kg, P, size, planes, together, wide, pieces, y):
        # x (N, C, prod in), w (G, sets, taps, Cg, channels), y (N, K, P); the sums are of the bias's dtype. A plane is
        # the pixels of some channels of a group of an image. A block owns a piece of one, or a few that are small,
        # with so ``wide`` a row of threads for each.
        thread = count(cuda.threadIdx.x)
        p, plane = pixel_and_plane(thread, count(cuda.blockIdx.x), wide, together, pieces)
        if p < P and plane < planes and thread < together * wide:
            last, sets, G = axes.shape[0] - 1, count((Kg + channels - 1) // channels), count(C // Cg)
            L_in, L_k, L_out = int32(axes[last, SIZE]), int32(axes[last, KERNEL]), count(axes[last, OUT])
            step, R_out = int32(axes[last, STEP]), int32(P // L_out)
            some, g, n = count(plane % sets), count(plane // sets % G), count(plane // sets // G)
            O = int32(p // L_out)
            first = int32(axes[last, START] + count(p % L_out) * axes[last, STRIDE])
            sums = cuda.local.array(channels, bias.dtype)
            for j in range(channels):
                sums[j] = 0
            channel = (at(n) * at(C) + at(g) * at(Cg)) * at(size)
            w_at = at(count(g * sets + some)) * at(rows_met.size // R_out * L_k * Cg * channels)
            for row_at in range(O, rows_met.size, R_out):
                row, where = rows_met[at(row_at)], first
                for _ in range(L_k):
                    pixel = int32(source(where, L_in, boundary))
                    inside = row >= 0 and pixel >= 0
                    x_at = channel
                    if inside:
                        x_at += at(row) * at(L_in) + at(pixel)
                    for _ in range(Cg):
                        value = fill
                        if inside:
                            value = bias.dtype.type(x[x_at])
                        for j in range(channels):
                            sums[j] += w[w_at + at(j)] * value
                        x_at += at(size)
                        w_at += at(channels)
                    where = int32(where + step)
            for j in range(channels):
                k = int32(some * channels + j)
                if k < Kg:
                    k = int32(g * Kg + k)
                    y[(at(n) * at(G * Kg) + at(k)) * at(P) + at(p)] = y.dtype.type(sums[j] + bias[at(k)])

    return forward


ONE, FEW, MANY = map(channels_at_a_time, (1, 4, 16))


@kernel(THREADS)
def depthwise(x, w, bias, axes, rows_met, boundary, fill, C, Cg, Kg, P, size, planes, together, wide, pieces, y):
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
        for j in range(CHANNELS):
            if c0 + j < C:
                c = at(c0 + j)
                y[(at(n) * at(C) + c) * at(P) + at(p)] = y.dtype.type(sums[j] + bias[c])


def forward(
    x: DeviceArray, w: DeviceArray, bias: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic,
    y: DeviceArray,
) -> None:
    """``Y[n, k, p] = bias[k] + sum over c, t of w[k, c, t] * x[n, c, source(p, t)]``."""
    (N, C), (K, Cg), T = x.shape[:2], w.shape[:2], prod(w.shape[2:])
    G, P, size, sums = C // Cg, prod(y.shape[2:]), prod(x.shape[2:]), computed_in(x.dtype)
    Kg, bias = K // G, bias.ready(sums)
    few = Kg <= 4 or sums.itemsize > 4  # sums of wide numbers would not fit the registers
    channels, kernel = (1, ONE) if Kg == 1 else (4, FEW) if few else (16, MANY)
    if Kg == Cg == 1:
        kernel, planes, packed = depthwise, -(-C // CHANNELS), w.ready(sums).reshape(w.size)
    else:
        planes = G * -(-Kg // channels)  # of an image
        packed = pack(w, np.arange(T), Cg * T, T, G, (Kg, Cg), channels, Cg, sums)
    wide = min(P, THREADS)
    together, pieces = THREADS // wide, -(-P // THREADS)
    rows, _ = rows_and_taps(x.place, axes, boundary)
    images = max(1, FAR // (planes * pieces))  # in a launch, whose blocks 32 bits count
    for n in range(0, N, images):
        part, target = (a if images >= N else a[n : n + images] for a in (x, y))
        many = part.shape[0] * planes
        kernel(
            -(-many // together) * pieces, part.reshape(part.size), packed, bias, table(x.place, axes), rows,
            boundary, sums.type(fill), C, Cg, Kg, P, size, many, together, wide, pieces, target.reshape(target.size),
            on=x.place,
        )  # fmt: skip


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments."""
    return 0
