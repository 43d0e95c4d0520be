"""The gradient to the input, for every boundary and every algorithm, from what an algorithm already has."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from types import ModuleType

import numpy as np

from .. import _memory
from .._indexing import CONSTANT, source
from ..geometry import ConvGeometry, axes_table
from . import direct, im2col, implicit, kernel2row, stencil, winograd
from .im2col import groups_of


def grad_input(algorithm: ModuleType, dY: np.ndarray, w: np.ndarray, geometry: ConvGeometry, dX: np.ndarray) -> None:
    """``dX`` of ``y = conv(x, w)`` for ``w`` as it is; the Hermitian adjoint is this for ``w.conj()``."""
    if algorithm is kernel2row:
        kernel2row.grad_input(dY, w, geometry.axes, geometry.boundary_code, dX)
    elif algorithm is im2col:
        unfolded(geometry, dX, lambda zero_padded, dX: im2col.grad_input(dY, w, zero_padded.axes, dX))
    elif algorithm in (implicit, winograd):
        unfolded(geometry, dX, lambda zero_padded, dX: algorithm.grad_input(dY, w, zero_padded, dX))
    else:
        unfolded(geometry, dX, lambda zero_padded, dX: by_phases(algorithm, dY, w, zero_padded, dX))


def unfolded(
    geometry: ConvGeometry, dX: np.ndarray, adjoint: Callable[[ConvGeometry, np.ndarray], None]
) -> None:
    """Run an adjoint that knows zero padding only; for other boundaries over the padded input, then fold the edges.

    Padding copies pixels, so its adjoint adds what their copies received: ``dX[i] = sum of dX_padded[p]`` over all
    ``p`` that read ``i``.
    """
    if geometry.boundary_code == CONSTANT or not any(map(any, geometry.padding)):
        adjoint(geometry, dX)
        return
    padded = geometry.padded
    shape = (*dX.shape[:2], *padded.size)
    _memory.require(prod(shape) * dX.itemsize, f"the gradient with its padding, shape {shape},", "use smaller pieces")
    gradient = np.empty(shape, dtype=dX.dtype)
    adjoint(padded, gradient)
    for a, (n, (lo, hi)) in enumerate(zip(geometry.size, geometry.padding, strict=True)):
        rows = np.moveaxis(gradient, 2 + a, 0)
        core = rows[lo : lo + n]
        for edge, positions in ((rows[:lo], range(-lo, 0)), (rows[lo + n :], range(n, n + hi))):
            np.add.at(core, [source(i, n, geometry.boundary_code) for i in positions], edge)
        gradient = np.moveaxis(core, 0, 2 + a)
    dX[...] = gradient


def by_phases(algorithm: ModuleType, dY: np.ndarray, w: np.ndarray, geometry: ConvGeometry, dX: np.ndarray) -> None:
    """The adjoint under zero padding as forward convolutions of ``dY``, one for each phase of the stride."""
    K, G = w.shape[0], groups_of(dX, w)
    kernel = w.shape[2:]
    turned = w.reshape(G, K // G, w.shape[1], *kernel).swapaxes(1, 2).reshape(dX.shape[1], K // G, *kernel)
    no_bias, nothing = np.zeros(dX.shape[1], dtype=dX.dtype), dX.dtype.type(0)
    if len(geometry.phases) < prod(map(min, geometry.stride, geometry.size)):
        dX[...] = 0  # pixels that no tap meets
    every = (slice(None), slice(None))
    for place, taps, rows in geometry.phases:
        part, axes = dX[(*every, *place)], axes_table(rows)
        arguments = dY, np.ascontiguousarray(turned[(*every, *taps)]), no_bias, axes, CONSTANT, nothing
        if part.flags.c_contiguous:
            algorithm.forward(*arguments, part)
        elif algorithm is direct and stencil.reaches(axes, dX.dtype, K // G):
            first = sum(pixels.start * step for pixels, step in zip(place, dX.strides[2:], strict=True))
            stencil.forward(*arguments, part, dX.reshape(dX.size)[first // dX.itemsize :])
        else:
            target = np.empty(part.shape, dtype=dX.dtype)
            algorithm.forward(*arguments, target)
            part[...] = target
