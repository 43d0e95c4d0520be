"""What each product takes at its peak beside its result and arrays that are ready, in bytes, from shapes and dtype.

A plan asks for it before anything is taken or done. ``workspace`` of an algorithm, by which ``auto`` chooses, is what
it takes for itself; here are the matrices, copies and sums around it as well.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import numpy as np
from numba import get_num_threads

from .. import dispatch
from ..geometry import ConvGeometry
from . import pieces

#: An algorithm, imported where it is the one.
room = partial(dispatch.backend, "cpu")


def of(product: str, choice: Any, g: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes of ``forward``, ``grad_input``, ``grad_weight`` or ``transpose`` by the algorithm of a choice."""
    if not (g.N and weights_of(g) and prod(g.out) and prod(g.size)):
        return 0
    if product == "forward":
        return forward(choice.forward, g, dtype)
    if product == "grad_weight":
        return grad_weight(choice.grad_weight, g, dtype)
    conjugate = weights_of(g) * dtype.itemsize if product == "grad_input" and dtype.kind == "c" else 0
    return conjugate + grad_input(choice.grad_input, g, dtype)


def weights_of(g: ConvGeometry) -> int:
    """How many weights there are."""
    return g.K * (g.C // g.groups) * prod(g.kernel)


# the products ---------------------------------------------------------------------------------------------------------


def forward(algorithm: str, g: ConvGeometry, dtype: np.dtype) -> int:
    """``Y``."""
    if algorithm in ("im2col", "implicit", "direct") and weights_of(g) > pieces.LONGEST * g.K:
        return _in_pieces(algorithm, g, dtype)
    if algorithm == "kernel2row":
        return matrix(g, dtype)
    if algorithm == "im2col":
        return _columns(g, g.C // g.groups * prod(g.kernel), g.K * prod(g.out), dtype)
    if algorithm == "winograd":
        return int(room("winograd").taken(g, dtype, back=False))
    return int(room(algorithm).workspace(g, dtype))


def grad_input(algorithm: str, g: ConvGeometry, dtype: np.dtype) -> int:
    """``dX``: the steps of ``forward`` backwards, over a padded input where a boundary folds."""
    adjoint = room("adjoint")
    if algorithm == "kernel2row":
        sums = room("csr").parts_for(g.matrix_shape[1], entries_of(g)) * g.matrix_shape[1]
        return matrix(g, dtype) + int(sums) * dtype.itemsize
    over = g if g.boundary == "constant" or not any(map(any, g.padding)) else g.padded
    padding = 0 if over is g else g.N * g.C * prod(over.size) * dtype.itemsize
    apart = adjoint.in_pieces(room(algorithm), weights_of(g), g.C)
    if algorithm == "im2col" and not apart:
        return padding + _columns(g, g.K // g.groups, prod(g.cols_shape[-2:]), dtype)
    if algorithm == "winograd":
        return padding + int(room("winograd").taken(over, dtype, back=True))
    if algorithm == "implicit" and not apart:
        return padding + int(room("implicit").workspace(over, dtype))
    return padding + _by_phases(algorithm, over, dtype)


def grad_weight(algorithm: str, g: ConvGeometry, dtype: np.dtype) -> int:
    """``dW``: sums of parts of the pixels, added up in a wider type."""
    weights = weights_of(g)
    total = weights * pieces.wide(dtype).itemsize
    if algorithm == "im2col":
        conjugate = g.C * prod(g.kernel) * min(prod(g.out), room("im2col").AT_ONCE) * (dtype.kind == "c")
        return int(room("im2col").workspace(g, dtype)) + total + (weights + conjugate) * dtype.itemsize
    if algorithm == "direct":
        return (_parts_of_direct(g, dtype) + 1) * total + int(room("direct").workspace(g, dtype))
    return int(room("winograd_weights" if algorithm == "winograd" else algorithm).workspace_of_sums(g, dtype))


def _parts_of_direct(g: ConvGeometry, dtype: np.dtype) -> int:
    stencil, weights = room("stencil"), weights_of(g)
    if stencil.serves(g.axes, dtype):
        plan = stencil.prepared(g.axes.tobytes(), dtype)[1]
        return int(stencil.parts_for(plan.block, (g.N, g.K, *g.out), g.groups, weights // g.K))
    units = g.N * prod(g.out[:-1]) * -(-g.out[-1] // room("im2col").block_length(g.N, g.out))
    return int(stencil.parts_of(units, tasks=weights // g.kernel[-1]))


def _columns(g: ConvGeometry, terms: int, values: int, dtype: np.dtype) -> int:
    """``X_conv`` of some images and, where its product has sums of more ``terms`` than are added at once, a result."""
    im2col = room("im2col")
    one = prod(g.cols_shape[-2:])
    longer = values if terms > im2col.AT_ONCE else 0
    return int(min(g.N, im2col.images_at_once(one * dtype.itemsize))) * (one + longer) * dtype.itemsize


def _in_pieces(algorithm: str, g: ConvGeometry, dtype: np.dtype) -> int:
    """Sums that are cut: two results, and some channels and weights, in a wider type."""
    sums, (channels, taps) = pieces.wide(dtype), pieces.most_at_once(g.C // g.groups, g.kernel)
    part = g._replace(C=channels * g.groups, kernel=tuple(taps))
    values = g.N * (part.C * prod(g.size) + 2 * g.K * prod(g.out)) + weights_of(part)
    return values * sums.itemsize + forward(algorithm, part, sums)


def _by_phases(algorithm: str, g: ConvGeometry, dtype: np.dtype) -> int:
    """The weights with inputs and outputs exchanged; of the largest phase its taps, its pixels and its product."""
    per_tap, most = weights_of(g) // prod(g.kernel), 0
    for phase in g.phases:
        part = _phase(g, phase.axes)
        taps = 0 if part.kernel == g.kernel else per_tap * prod(part.kernel)
        in_place = part.out == g.size or (
            algorithm == "direct" and room("stencil").reaches(part.axes, dtype, g.K // g.groups)
        )
        pixels = 0 if in_place else g.N * g.C * prod(part.out)
        most = max(most, (taps + pixels) * dtype.itemsize + forward(algorithm, part, dtype))
    exchanged = 0 if g.groups in (g.C, g.K) else weights_of(g)
    return exchanged * dtype.itemsize + most


def _phase(g: ConvGeometry, rows: Any) -> ConvGeometry:
    """The convolution that gives a phase."""
    size, kernel, out, start, stride, step = zip(*rows, strict=True)
    flip = step[0] < 0
    padding = tuple(((k - 1) * -t * flip - s, 0) for k, t, s in zip(kernel, step, start, strict=True))
    return g._replace(
        C=g.K, K=g.C, size=size, kernel=kernel, out=out, stride=stride, dilation=tuple(map(abs, step)),
        padding=padding, boundary="constant", fill_value=0, flip=flip,
    )


# the matrix -----------------------------------------------------------------------------------------------------------


def matrix(g: ConvGeometry, dtype: np.dtype) -> int:
    """``W_conv``, the tables that say where its rows begin, and the kernel as it slides."""
    return int(room("kernel2row").nbytes(g, dtype)) + beside_matrix(g) + turned(g, dtype)


def entries_of(g: ConvGeometry) -> int:
    """How many entries ``W_conv`` has."""
    kernel2row = room("kernel2row")
    return g.K * (g.C // g.groups) * int(kernel2row.count_entries(kernel2row.counts_of(g.axes, g.boundary_code)))


def beside_matrix(g: ConvGeometry) -> int:
    """What says where the rows of ``W_conv`` begin, what its edges read, and one row for each thread."""
    kernel2row = room("kernel2row")
    row = kernel2row.scratch_nbytes(g.C // g.groups, prod(g.kernel))
    return 8 * (prod(g.out[:-1]) + g.out[-1]) + int(kernel2row.edges(g.axes)) + row * get_num_threads()


def turned(g: ConvGeometry, dtype: np.dtype) -> int:
    """The kernel as it slides, a copy if it is turned."""
    return weights_of(g) * dtype.itemsize if g.flip and prod(g.kernel) > 1 else 0


# one kernel for each output -------------------------------------------------------------------------------------------


def local_matrix(g: ConvGeometry, dtype: np.dtype) -> int:
    """The matrix of ``conv_local``."""
    return int(room("kernel2row").nbytes(g, dtype)) + beside_matrix(g)


def local_grad_input(g: ConvGeometry, dtype: np.dtype) -> int:
    """``X_conv`` of the gradient of one image, and where a boundary folds that image with its padding."""
    return (prod(g.cols_shape[-2:]) + col2im(g._replace(N=1))) * dtype.itemsize


def col2im(g: ConvGeometry) -> int:
    """Values beside the columns and the images: these with their padding, where a boundary folds."""
    return 0 if g.boundary == "constant" or not any(map(any, g.padding)) else g.N * g.C * prod(g.padded.size)
