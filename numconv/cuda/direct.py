"""The sum as it is written, for shapes that fill no tile: depthwise and grouped layers, few channels, integers.

A thread owns one pixel of the output and some of a group's output channels, whose sums it keeps in registers: a pixel
of the input is read once for all of them, and neighbours read neighbours.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .._indexing import OUT, SIZE, STRIDE
from ..arrays import computed_in
from ..geometry import ConvGeometry
from ._jit import THREADS, cuda, kernel, source
from .arrays import DeviceArray, blocks_for
from .places import table
from .tables import rows_and_taps


def channels_at_a_time(channels: int) -> Any:
    """The kernel that sums so many output channels in a thread."""

    @kernel()
    def forward(x, w, bias, axes, rows_met, met, boundary, fill, N, C, Cg, Kg, P, size, y):
        # x (N, C, prod in), w (K, Cg, taps), y (N, K, P); the sums are of the bias's dtype
        i = cuda.grid(1)
        last, taps = axes.shape[0] - 1, met.shape[0]
        sets, G = (Kg + channels - 1) // channels, C // Cg
        sums = cuda.local.array(channels, bias.dtype)
        while i < N * G * sets * P:
            p, rest = i % P, i // P
            k0, rest = rest % sets * channels, rest // sets
            g, n = rest % G, rest // G
            O, first = p // axes[last, OUT], p % axes[last, OUT] * axes[last, STRIDE]
            for j in range(channels):
                sums[j] = 0
            for tap in range(taps):
                row = rows_met[met[tap, 0] + O]
                at = source(first + met[tap, 1], axes[last, SIZE], boundary)
                inside = row >= 0 and at >= 0
                x_at = (n * C + g * Cg) * size + row * axes[last, SIZE] + at
                for c in range(Cg):
                    pixel = fill
                    if inside:
                        pixel = bias.dtype.type(x[x_at + c * size])
                    for j in range(channels):
                        k = g * Kg + min(k0 + j, Kg - 1)  # a channel too many is summed and not used
                        sums[j] += w[(k * Cg + c) * taps + tap] * pixel
            for j in range(channels):
                if k0 + j < Kg:
                    k = g * Kg + k0 + j
                    y[(n * C // Cg * Kg + k) * P + p] = y.dtype.type(sums[j] + bias[k])
            i += cuda.gridsize(1)

    return forward


ONE, FEW, MANY = channels_at_a_time(1), channels_at_a_time(4), channels_at_a_time(16)


def forward(
    x: DeviceArray, w: DeviceArray, bias: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic,
    y: DeviceArray,
) -> None:
    """``Y[n, k, p] = bias[k] + sum over c, t of w[k, c, t] * x[n, c, source(p, t)]``."""
    (N, C), (K, Cg) = x.shape[:2], w.shape[:2]
    Kg, P, sums = K * Cg // C, prod(y.shape[2:]), computed_in(x.dtype)
    w, bias, fill = w.ready(sums), bias.ready(sums), sums.type(fill)
    few = Kg <= 4 or sums.itemsize > 4  # sums of wide numbers would not fit the registers
    channels, kernel = (1, ONE) if Kg == 1 else (4, FEW) if few else (16, MANY)
    kernel(
        blocks_for(N * (C // Cg) * -(-Kg // channels) * P), x.reshape(x.size), w.reshape(w.size), bias,
        table(x.place, axes), *rows_and_taps(x.place, axes, boundary), boundary, fill, N, C, Cg, Kg, P,
        prod(x.shape[2:]), y.reshape(y.size), on=x.place,
    )  # fmt: skip


@kernel(THREADS)
def _grad_weight(x, dY, axes, rows_met, met, boundary, fill, N, C, Cg, Kg, P, size, conjugate, dW):
    # A block sums one weight: its threads take every 256th pixel, and add their sums up in a tree, always the same.
    thread, weight = cuda.threadIdx.x, cuda.blockIdx.x
    last, taps = axes.shape[0] - 1, met.shape[0]
    tap, c, k = weight % taps, weight // taps % Cg, weight // taps // Cg
    channel = k // Kg * Cg + c
    sums = cuda.shared.array(THREADS, dW.dtype)
    total = dW.dtype.type(0)
    for i in range(thread, N * P, THREADS):
        n, p = i // P, i % P
        row = rows_met[met[tap, 0] + p // axes[last, OUT]]
        at = source(p % axes[last, OUT] * axes[last, STRIDE] + met[tap, 1], axes[last, SIZE], boundary)
        pixel = fill
        if row >= 0 and at >= 0:
            pixel = dW.dtype.type(x[(n * C + channel) * size + row * axes[last, SIZE] + at])
        if conjugate:
            pixel = pixel.conjugate()
        total += dW.dtype.type(dY[(n * (C // Cg) * Kg + k) * P + p]) * pixel
    sums[thread] = total
    cuda.syncthreads()
    half = THREADS // 2
    while half > 0:
        if thread < half:
            sums[thread] += sums[thread + half]
        cuda.syncthreads()
        half //= 2
    if thread == 0:
        dW[weight] = sums[0]


def grad_weight(
    x: DeviceArray, dY: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic, dW: DeviceArray
) -> None:
    """``dW[k, c, t] = sum over n, p of dY[n, k, p] * conj(x[n, c, source(p, t)])``, a block for each weight."""
    (N, C), (K, Cg), sums = x.shape[:2], dW.shape[:2], computed_in(x.dtype)
    target = dW if dW.dtype == sums else dW.place.empty(dW.shape, sums)
    _grad_weight(
        dW.size, x.reshape(x.size), dY.reshape(dY.size), table(x.place, axes),
        *rows_and_taps(x.place, axes, boundary), boundary, sums.type(fill), N, C, Cg, K * Cg // C,
        prod(dY.shape[2:]), prod(x.shape[2:]), x.dtype.kind == "c", target.reshape(dW.size), on=x.place,
    )  # fmt: skip
    if target is not dW:
        dW[...] = target


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments."""
    return 0
