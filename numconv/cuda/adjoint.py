"""The gradient to the input, for every boundary and every algorithm, from what an algorithm already has."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from types import ModuleType

from .. import _memory
from .._indexing import CONSTANT
from ..arrays import computed_in
from ..geometry import ConvGeometry, axes_table
from . import direct, im2col, implicit
from ._jit import cuda, kernel, position, source
from .arrays import DeviceArray, blocks_for


def grad_input(
    algorithm: ModuleType, dY: DeviceArray, w: DeviceArray, geometry: ConvGeometry, dX: DeviceArray
) -> None:
    """``dX`` of ``y = conv(x, w)`` for ``w`` as it is; the Hermitian adjoint is this for ``w.conj()``."""
    if algorithm is im2col:
        unfolded(geometry, dX, lambda zero_padded, dX: im2col.grad_input(dY, w, zero_padded.axes, dX))
    elif algorithm is implicit:
        unfolded(geometry, dX, lambda zero_padded, dX: implicit.grad_input(dY, w, zero_padded, dX))
    else:
        unfolded(geometry, dX, lambda zero_padded, dX: by_phases(dY, w, zero_padded, dX))


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


def by_phases(dY: DeviceArray, w: DeviceArray, geometry: ConvGeometry, dX: DeviceArray) -> None:
    """The adjoint under zero padding as direct forward sums of ``dY``, one for each phase of the stride."""
    K, Cg = w.shape[:2]
    G, kernel, place, sums = dX.shape[1] // Cg, w.shape[2:], dX.place, computed_in(dX.dtype)
    turned = w.reshape(G, K // G, Cg, prod(kernel)).swapaxes(1, 2).astype(sums).reshape(dX.shape[1], K // G, *kernel)
    no_bias, nothing = place.nothing((dX.shape[1],), sums), sums.type(0)
    if len(geometry.phases) < prod(geometry.stride):
        dX[...] = 0  # pixels that no tap meets
    every = (slice(None), slice(None))
    for there, taps, rows in geometry.phases:
        part = dX[(*every, *there)]
        target = part if part.flags.c_contiguous else place.empty(part.shape, dX.dtype)
        direct.forward(
            dY, turned[(*every, *taps)].ready(sums), no_bias, axes_table(rows), CONSTANT,
            nothing, target,
        )  # fmt: skip
        if target is not part:
            dX[(*every, *there)] = target
