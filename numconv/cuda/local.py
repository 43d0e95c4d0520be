"""One kernel for each output: every weight is used once for each image, so these take as long as the weights' bytes.

    Y[:, p] = W[p] @ X_conv[:, p]        dX_conv[:, p] = W[p]^H @ dY[:, p]        dW[p] = dY[:, p] @ X_conv[:, p]^H

A thread owns one value of the result and sums it alone; the sums are of the type of ``zero``.
"""

from __future__ import annotations

from math import prod

import numpy as np

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..arrays import computed_in
from ..geometry import ConvGeometry
from ._jit import at, cuda, kernel, output_hit, row_output, source
from .adjoint import unfolded
from .arrays import DeviceArray, blocks_for
from .places import table
from .tables import rows_and_taps


@kernel()
def _forward(x, w, bias, axes, rows_met, met, boundary, fill, zero, C, Cg, Kg, P, size, n, y):
    # x (N, C, prod in), w (P, K, Cg, taps), y (N, K, P)
    i = cuda.grid(1)
    last, taps, K = axes.shape[0] - 1, met.shape[0], C // Cg * Kg
    L_in, L_out, stride = axes[last, SIZE], axes[last, OUT], axes[last, STRIDE]
    while i < n:
        p, k, image = i % P, i // P % K, i // P // K
        x0, w0, total = (image * C + k // Kg * Cg) * size, (p * K + k) * Cg * taps, zero
        for tap in range(taps):
            row = rows_met[at(met[tap, 0] + p // L_out)]
            pixel = source(p % L_out * stride + met[tap, 1], L_in, boundary)
            for c in range(Cg):
                value, weight = fill, zero
                if row >= 0 and pixel >= 0:
                    value = zero
                    value += x[at(x0 + c * size + row * L_in + pixel)]
                weight += w[at(w0 + c * taps + tap)]
                total += weight * value
        y[at(i)] = y.dtype.type(total + bias[at(k)])
        i += cuda.gridsize(1)


@kernel()
def _grad_input(dY, w, axes, C, Cg, Kg, R_k, P, size, zero, conjugate, n, dX):
    # dY (N, K, P), w (P, K, Cg, R_k, last k), dX (N, C, prod in), which is padded with zeros
    i = cuda.grid(1)
    last, K = axes.shape[0] - 1, C // Cg * Kg
    L_in, L_k, L_out = axes[last, SIZE], axes[last, KERNEL], axes[last, OUT]
    start, stride, step = axes[last, START], axes[last, STRIDE], axes[last, STEP]
    while i < n:
        pixel, c, image, total = i % size, i // size % C, i // size // C, zero
        k0 = c // Cg * Kg
        for T in range(R_k):
            O = row_output(T, pixel // L_in, axes)
            for t in range(L_k if O >= 0 else 0):
                o = output_hit(pixel % L_in, t, L_out, start, stride, step)
                p = O * L_out + o
                for k in range(k0, k0 + Kg if o >= 0 else k0):
                    gradient, weight = zero, zero
                    gradient += dY[at((image * K + k) * P + p)]
                    weight += w[at((((p * K + k) * Cg + c % Cg) * R_k + T) * L_k + t)]
                    total += (weight.conjugate() if conjugate else weight) * gradient
        dX[at(i)] = dX.dtype.type(total)
        i += cuda.gridsize(1)


@kernel()
def _grad_weight(x, dY, axes, rows_met, met, boundary, fill, zero, N, C, Cg, Kg, P, size, conjugate, n, dW):
    # the shapes of _forward; a thread sums one weight over the images
    i = cuda.grid(1)
    last, taps, K = axes.shape[0] - 1, met.shape[0], C // Cg * Kg
    L_in, L_out, stride = axes[last, SIZE], axes[last, OUT], axes[last, STRIDE]
    while i < n:
        tap, c, k, p = i % taps, i // taps % Cg, i // taps // Cg % K, i // taps // Cg // K
        row, total = rows_met[at(met[tap, 0] + p // L_out)], zero
        pixel = source(p % L_out * stride + met[tap, 1], L_in, boundary)
        for image in range(N):
            value, gradient = fill, zero
            if row >= 0 and pixel >= 0:
                value = zero
                value += x[at((image * C + k // Kg * Cg + c) * size + row * L_in + pixel)]
            gradient += dY[at((image * K + k) * P + p)]
            total += gradient * (value.conjugate() if conjugate else value)
        dW[at(i)] = dW.dtype.type(total)
        i += cuda.gridsize(1)


def forward(
    x: DeviceArray, w: DeviceArray, bias: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic,
    y: DeviceArray,
) -> None:
    """``y[n,k,o] = bias[k] + sum over c, t of w[o,k,c,t] x[n,c,o*stride+t*step]``, for ``w (prod out, K, …)``."""
    (_, C, *size), (P, K, Q), sums = x.shape, w.shape, computed_in(x.dtype)
    Cg = Q // prod(axes[:, KERNEL].tolist())
    _forward(
        blocks_for(y.size), x.reshape(x.size), w.reshape(w.size), bias, table(x.place, axes),
        *rows_and_taps(x.place, axes, boundary), boundary, sums.type(fill), sums.type(0), C, Cg, K * Cg // C, P,
        prod(size), y.size, y.reshape(y.size), on=x.place,
    )  # fmt: skip


def grad_input(dY: DeviceArray, w: DeviceArray, geometry: ConvGeometry, dX: DeviceArray) -> None:
    """The adjoint in ``x``: a thread gathers into its pixel what its windows send there."""
    sums = computed_in(dX.dtype)

    def under_zeros(g: ConvGeometry, dX: DeviceArray) -> None:
        Cg, kernel = g.C // g.groups, g.kernel
        _grad_input(
            blocks_for(dX.size), dY.reshape(dY.size), w.reshape(w.size), table(dX.place, g.axes), g.C, Cg,
            g.K // g.groups, prod(kernel[:-1]), prod(g.out), prod(g.size), sums.type(0), dX.dtype.kind == "c", dX.size,
            dX.reshape(dX.size), on=dX.place,
        )  # fmt: skip

    unfolded(geometry, dX, under_zeros)


def grad_weight(
    x: DeviceArray, dY: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic, dW: DeviceArray
) -> None:
    """``dW[o,k,c,t] = sum over n of dY[n,k,o] conj(x[n,c,o*stride+t*step])``."""
    (N, C, *size), (P, K, Q), sums = x.shape, dW.shape, computed_in(x.dtype)
    Cg = Q // prod(axes[:, KERNEL].tolist())
    _grad_weight(
        blocks_for(dW.size), x.reshape(x.size), dY.reshape(dY.size), table(x.place, axes),
        *rows_and_taps(x.place, axes, boundary), boundary, sums.type(fill), sums.type(0), N, C, Cg, K * Cg // C, P,
        prod(size), x.dtype.kind == "c", dW.size, dW.reshape(dW.size), on=x.place,
    )  # fmt: skip
