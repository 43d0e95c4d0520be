"""The gradient to the input, for every boundary and every algorithm, from what an algorithm already has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np

from .. import _memory
from .._indexing import CONSTANT, KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..arrays import computed_in
from ..geometry import ConvGeometry, axes_table
from . import im2col
from ._jit import cuda, kernel, output_hit, position, row_output, source
from .arrays import DeviceArray, blocks_for
from .places import table


def grad_input(algorithm: Any, dY: DeviceArray, w: DeviceArray, geometry: ConvGeometry, dX: DeviceArray) -> None:
    """``dX`` of ``y = conv(x, w)`` for ``w`` as it is; the Hermitian adjoint is this for ``w.conj()``."""
    if algorithm is im2col:
        unfolded(geometry, dX, lambda zero_padded, dX: im2col.grad_input(dY, w, zero_padded.axes, dX))
    else:
        product = getattr(algorithm, "grad_input", partial(by_phases, algorithm))
        unfolded(geometry, dX, lambda zero_padded, dX: gathered(product, dY, w, zero_padded, dX))


def gathered(
    product: Callable[..., None], dY: DeviceArray, w: DeviceArray, geometry: ConvGeometry, dX: DeviceArray
) -> None:
    """``product(dY, w, geometry, dX)``, a sum that pads ``dY`` with zeros, without what these do to ``dX``.

    Next to the edges taps meet zeros instead of outputs, and NaN times 0 is NaN. So elements of ``dX`` that are not
    finite are summed again, over what they meet alone; the device looks for them, and nobody waits for what it finds.
    """
    product(dY, w, geometry, dX)
    sums, axes = computed_in(dX.dtype), geometry.axes
    if sums.kind in "fc":
        _sum_again(
            blocks_for(dX.size), dY.reshape(dY.size), w.reshape(w.size), table(dX.place, axes), dX.shape[1],
            *w.shape[:2], prod(axes[:-1, KERNEL].tolist()), prod(geometry.out), prod(geometry.size), dX.size,
            sums.type(0), dX.reshape(dX.size), on=dX.place,
        )  # fmt: skip


@kernel()
def _sum_again(dY, w, axes, C, K, Cg, R_k, P, size, n, zero, dX):
    # dY (N, K, P), w (K, Cg, R_k, last k), dX (N, C, size): the elements that are not finite, in the type of zero.
    i = cuda.grid(1)
    last, Kg = axes.shape[0] - 1, K // (C // Cg)
    L_in, L_k, L_out = axes[last, SIZE], axes[last, KERNEL], axes[last, OUT]
    start, stride, step = axes[last, START], axes[last, STRIDE], axes[last, STEP]
    while i < n:
        there = zero
        there += dX[i]
        if not abs(there) < np.inf:
            pixel, c, image = i % size, i // size % C, i // size // C
            k0, total = c // Cg * Kg, zero
            for T in range(R_k):
                O = row_output(T, pixel // L_in, axes)
                for t in range(L_k if O >= 0 else 0):
                    o = output_hit(pixel % L_in, t, L_out, start, stride, step)
                    for k in range(k0, k0 + Kg if o >= 0 else k0):
                        gradient, weight = zero, zero
                        gradient += dY[(image * K + k) * P + O * L_out + o]
                        weight += w[((k * Cg + c % Cg) * R_k + T) * L_k + t]
                        total += weight * gradient
            dX[i] = dX.dtype.type(total)
        i += cuda.gridsize(1)


@kernel()
def _fold(padded, before, behind, size, lo, hi, boundary, pixels):
    # pixels[b, i, a] = the sum of padded[b, p, a] over all positions p that read pixel i, in their order.
    j = cuda.grid(1)
    wide = size + lo + hi
    while j < before * size * behind:
        a, rest = j % behind, j // behind
        i, b = rest % size, rest // size
        total = padded[(b * wide + lo + i) * behind + a]
        for p in range(lo + hi):
            at = position(p if p < lo else p + size, 0, -lo, 1, 1)
            if source(at, size, boundary) == i:
                total += padded[(b * wide + at + lo) * behind + a]
        pixels[j] = pixels.dtype.type(total)
        j += cuda.gridsize(1)


def unfolded(
    geometry: ConvGeometry, dX: DeviceArray, adjoint: Callable[[ConvGeometry, DeviceArray], None]
) -> None:
    """Run an adjoint that knows zero padding only; for other boundaries over the padded input, then fold the edges.

    Padding copies pixels, so its adjoint adds what their copies received: ``dX[i] = sum of dX_padded[p]`` over all
    ``p`` that read ``i``, axis by axis.
    """
    if geometry.boundary_code == CONSTANT or not any(map(any, geometry.padding)):
        adjoint(geometry, dX)
        return
    padded, place, sums = geometry.padded, dX.place, computed_in(dX.dtype)
    shape = [*dX.shape[:2], *padded.size]
    _memory.require(
        prod(shape) * sums.itemsize, f"the gradient with its padding, shape {tuple(shape)},", "use smaller pieces",
        place.available,
    )
    gradient = place.empty(shape, sums)
    adjoint(padded, gradient)
    for a, (n, (lo, hi)) in enumerate(zip(geometry.size, geometry.padding, strict=True)):
        shape[2 + a] = n
        last = a == geometry.d - 1
        folded = dX.reshape(dX.size) if last else place.empty((prod(shape),), sums)
        _fold(
            blocks_for(prod(shape)), gradient.reshape(gradient.size), prod(shape[: 2 + a]), prod(shape[3 + a :]), n,
            lo, hi, geometry.boundary_code, folded, on=place,
        )  # fmt: skip
        gradient = folded


def by_phases(
    algorithm: Any, dY: DeviceArray, w: DeviceArray, geometry: ConvGeometry, dX: DeviceArray
) -> None:
    """The adjoint under zero padding as forward products of ``dY``, one for each phase of the stride."""
    K, Cg = w.shape[:2]
    G, kernel, place, sums = dX.shape[1] // Cg, w.shape[2:], dX.place, computed_in(dX.dtype)
    turned = w.reshape(G, K // G, Cg, prod(kernel)).swapaxes(1, 2).astype(sums).reshape(dX.shape[1], K // G, *kernel)
    no_bias, nothing = place.nothing((dX.shape[1],), sums), sums.type(0)
    if len(geometry.phases) < prod(geometry.stride):
        dX[...] = 0  # pixels that no tap meets
    for there, taps, rows in geometry.phases:
        weights = turned[(slice(None), slice(None), *taps)].ready(sums)
        algorithm.forward(dY, weights, no_bias, axes_table(rows), CONSTANT, nothing, dX, there)
