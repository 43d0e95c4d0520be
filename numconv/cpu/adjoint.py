"""The gradient to the input, for every boundary and every algorithm, from what an algorithm already has."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, prod
from types import ModuleType
from typing import Any

import numpy as np

from .._indexing import CONSTANT, OUT, START, STEP, STRIDE, source
from ..geometry import ConvGeometry, axes_table
from . import direct, im2col, implicit, kernel2row, pieces, stencil, winograd
from ._jit import Kernel, flat, output_hit, row_output, tasks_of
from .im2col import groups_of

#: Of arrays up to this size one product says at once whether all is finite; BLAS begins to use threads beyond it.
SMALL = 1 << 13

#: Items that are looked at together, so that the answers take little memory.
AT_ONCE = 1 << 16


def grad_input(algorithm: ModuleType, dY: np.ndarray, w: np.ndarray, geometry: ConvGeometry, dX: np.ndarray) -> None:
    """``dX`` of ``y = conv(x, w)`` for ``w`` as it is; the Hermitian adjoint is this for ``w.conj()``."""
    apart = in_pieces(algorithm, w.size, dX.shape[1])
    if algorithm is kernel2row:
        kernel2row.grad_input(dY, w, geometry.axes, geometry.boundary_code, dX)
    elif algorithm is im2col and not apart:
        unfolded(geometry, dX, lambda zero_padded, dX: im2col.grad_input(dY, w, zero_padded.axes, dX))
    elif algorithm in (implicit, winograd) and not apart:
        unfolded(geometry, dX, lambda zero_padded, dX: gathered(algorithm.grad_input, dY, w, zero_padded, dX))
    else:
        unfolded(geometry, dX, lambda zero_padded, dX: gathered(by_phases, dY, w, zero_padded, dX, algorithm))


def in_pieces(algorithm: ModuleType, weights: int, channels: int) -> bool:
    """Whether the sums of a gradient of so many ``channels`` are cut, as those of forward products are."""
    return weights > pieces.LONGEST * channels and algorithm in (im2col, implicit)


def gathered(
    product: Callable[..., None], dY: np.ndarray, w: np.ndarray, geometry: ConvGeometry, dX: np.ndarray, *how: Any
) -> None:
    """``product(dY, w, geometry, dX, *how)``, a sum that pads ``dY`` with zeros, without what these do to ``dX``.

    Next to the edges taps meet zeros instead of outputs, and NaN times 0 is NaN. So where weights are not finite, the
    elements of ``dX`` that are not are summed again, over what they meet alone.
    """
    product(dY, w, geometry, dX, *how)
    first = dX[:1]  # what is looked at first follows from the shape of an image
    if dX.dtype.kind in "fc" and not all_finite(w if w.size <= first.size else dX) and not all_finite(w):
        axes, size, kernel, out = geometry.axes, geometry.size, geometry.kernel, geometry.out
        _sum_again(
            flat(dY, *dY.shape[:2], prod(out[:-1]), out[-1]), flat(w, *w.shape[:2], prod(kernel[:-1]), kernel[-1]),
            axes, dX.reshape(*dX.shape[:2], prod(size[:-1]), size[-1]), work=dX.size * prod(w.shape[1:]),
        )


def all_finite(array: np.ndarray) -> bool:
    """Whether nothing in a contiguous array is NaN or infinite."""
    if array.size <= SMALL and isfinite(np.vdot(array, array).real):
        return True
    items = array.reshape(array.size)
    return all(np.isfinite(items[i : i + AT_ONCE]).all() for i in range(0, items.size, AT_ONCE))


@Kernel
def _sum_again(team, dY, w, axes, dX):
    # dY (N, K, rows out, last out), w (K, C/G, rows k, last k), dX (N, C, rows in, last in): its elements that are not
    # finite, over the outputs that meet them.
    N, C, R_in, L_in = dX.shape
    K, Cg, R_k, L_k = w.shape
    Kg, last = K // (C // Cg), axes.shape[0] - 1
    out, start, stride, step = axes[last, OUT], axes[last, START], axes[last, STRIDE], axes[last, STEP]
    for task in tasks_of(team, N * C * R_in):
        row, c, n = task % R_in, task // R_in % C, task // R_in // C
        k0, pixels = c // Cg * Kg, dX[n, c, row]
        for i in range(L_in):
            if pixels[i] * 0 != 0:
                total = pixels.dtype.type(0) * 1.0
                for T in range(R_k):
                    O = row_output(T, row, axes)
                    for t in range(L_k):
                        o = output_hit(i, t, out, start, stride, step)
                        for k in range(k0, k0 + Kg if min(O, o) >= 0 else k0):
                            total += w[k, c % Cg, T, t] * dY[n, k, O, o]
                pixels[i] = total


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
    gradient = np.empty((*dX.shape[:2], *padded.size), dtype=dX.dtype)
    adjoint(padded, gradient)
    for a, (n, (lo, hi)) in enumerate(zip(geometry.size, geometry.padding, strict=True)):
        rows = np.moveaxis(gradient, 2 + a, 0)
        core = rows[lo : lo + n]
        for edge, positions in ((rows[:lo], range(-lo, 0)), (rows[lo + n :], range(n, n + hi))):
            np.add.at(core, [source(i, n, geometry.boundary_code) for i in positions], edge)
        gradient = np.moveaxis(core, 0, 2 + a)
    dX[...] = gradient


def by_phases(dY: np.ndarray, w: np.ndarray, geometry: ConvGeometry, dX: np.ndarray, algorithm: ModuleType) -> None:
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
