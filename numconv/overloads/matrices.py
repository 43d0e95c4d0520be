"""``im2col``, ``col2im``, ``kernel2row`` and its products: from the types of a call to the lines that compute it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.np.numpy_support import as_dtype

from ..cpu.addresses import through
from ..cpu.callers import as_int, formed, spatial
from ..cpu.compiled import matrices
from ..cpu.im2col import WORDS
from .casting import boundary_of, computing, reader, stored
from .reading import array, flag, ints, one_int, padding_of, plain, refuse, shape_reader, word

windows, unwindowed, entries = through(matrices.windows), through(matrices.unwindowed), through(matrices.triple)
matvec, rmatvec = through(matrices.matvec), through(matrices.rmatvec)


def window_of(kernel_size: Any, axes: int, name: str) -> int:
    """How many spatial axes there are."""
    known = plain(kernel_size)
    d = len(known) if isinstance(known, types.BaseTuple) else axes
    if axes - d not in (0, 1, 2):
        raise TypingError(
            f"kernel_size must have one int for each spatial axis of {name}, which has {axes} axes, got {known}"
        )
    ints("kernel_size", kernel_size, d)
    return d


def im2col(x, kernel_size, stride=1, padding=0, dilation=1, boundary="constant", fill_value=0, flip=True, out=None):
    """``numconv.im2col`` of arguments of these types."""
    refuse(out=out)
    array("x", x)
    dtype = as_dtype(x.dtype)
    if dtype.kind not in "biufcmM" or dtype.itemsize not in WORDS:
        raise TypingError(f"x must be of numbers or bool in compiled code, got dtype {dtype}")
    d = window_of(kernel_size, x.ndim, "x")
    ints("stride", stride, d)
    ints("dilation", dilation, d)
    pads, code = padding_of(padding, d)
    edge_of, read_fill = boundary_of(boundary, fill_value, dtype)
    word_type, read_x, read_flip = np.dtype(WORDS[dtype.itemsize]), reader(x), flag("flip", flip)
    bits = stored(dtype)
    batched, channelled, channels, axes = x.ndim == d + 2, x.ndim > d, x.ndim - d - 1, 2 if x.ndim < d + 2 else 3

    def im2col(
        x, kernel_size, stride=1, padding=0, dilation=1, boundary="constant", fill_value=0, flip=True, out=None
    ):
        fill = np.empty(1, bits)
        fill[0] = read_fill(fill_value)
        X_conv, shape = windows((
            read_x(x).view(word_type), x.shape[0] if batched else 1, x.shape[channels] if channelled else 1,
            spatial((x.shape, kernel_size, stride, dilation), pads(padding), d), code,
            edge_of(fill_value), fill.view(word_type)[0], read_flip(flip),
        ))
        return formed(X_conv.view(dtype), shape, axes)

    return im2col


def col2im(
    cols, input_shape, kernel_size, stride=1, padding=0, dilation=1, boundary="constant", fill_value=0, flip=True,
    reduce="sum", out=None,
):
    """``numconv.col2im`` of arguments of these types."""
    refuse(out=out)
    axes = shape_reader("input_shape", input_shape)
    d = window_of(kernel_size, axes, "input_shape")
    array("cols", cols, 2 if axes < d + 2 else 3)
    mean = word("reduce", reduce, ("sum", "mean")) == "mean"
    whole = as_dtype(cols.dtype).kind in "biu"
    computed, (read_cols,), give = computing(np.float64 if mean and whole else None, cols=cols)
    ints("stride", stride, d)
    ints("dilation", dilation, d)
    pads, code = padding_of(padding, d)
    edge_of, _ = boundary_of(boundary, fill_value, computed)
    read_flip = flag("flip", flip)
    batched, channelled, channels, rows = axes == d + 2, axes > d, axes - d - 1, cols.ndim - 2

    def col2im(
        cols, input_shape, kernel_size, stride=1, padding=0, dilation=1, boundary="constant", fill_value=0, flip=True,
        reduce="sum", out=None,
    ):
        x, shape = unwindowed((
            read_cols(cols), cols.shape[rows], cols.shape[rows + 1], as_int(input_shape[0]) if batched else 1,
            as_int(input_shape[channels]) if channelled else 1,
            spatial((input_shape, kernel_size, stride, dilation), pads(padding), d), code,
            edge_of(fill_value), read_flip(flip), mean,
        ))
        return formed(give(x), shape, axes)

    return col2im


def kernel2row(
    w, input_size, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=True, triple=False
):
    """``numconv.kernel2row`` of arguments of these types."""
    array("w", w)
    known = plain(input_size)
    d = len(known) if isinstance(known, types.BaseTuple) else 1
    if w.ndim not in (d, d + 2):
        raise TypingError(f"w must be (*k) with {d} axes or (K, C/groups, *k) with {d + 2}, got {w.ndim}")
    computed, _, _ = computing(None, w=w)
    read_w = reader(w, np.dtype(np.bool_) if w.dtype == types.boolean else computed)
    if plain(fill_value) != 0:
        raise TypingError(
            f"fill_value must be 0 for a matrix, literally, got {plain(fill_value)}: the map would be affine"
        )
    ints("input_size", input_size, d)
    ints("stride", stride, d)
    ints("dilation", dilation, d)
    pads, code = padding_of(padding, d)
    edge_of, _ = boundary_of(boundary, 0, computed)
    one_int("groups", groups)
    read_flip, channelled, axes = flag("flip", flip), w.ndim > d, w.ndim

    def kernel2row(
        w, input_size, stride=1, padding=0, dilation=1, groups=1, boundary="constant", fill_value=0, flip=True,
        triple=False,
    ):
        return entries((
            read_w(w), w.shape[0] if channelled else 1, w.shape[axes - d - 1] if channelled else 1,
            spatial((input_size, w.shape, stride, dilation), pads(padding), d), code, as_int(groups),
            edge_of(0), read_flip(flip),
        ))

    return kernel2row


def read_triple(data: Any, indices: Any, indptr: Any, **vector: Any) -> tuple[Any, Any, Any, Any, Any]:
    """What reads the arrays of a triple and a vector, and what gives the result."""
    for name, value in {"data": data, "indices": indices, "indptr": indptr, **vector}.items():
        array(name, value, 1)
    for name, value in (("indices", indices), ("indptr", indptr)):
        if not isinstance(value.dtype, types.Integer) or value.dtype == types.uint64:
            raise TypingError(f"{name} must be of an integer dtype that int64 holds, got {value.dtype}")
    _, (read_data, read), give = computing(None, data=data, **vector)
    index = np.dtype(np.int32 if indices.dtype == indptr.dtype == types.int32 else np.int64)
    return read_data, reader(indices, index), reader(indptr, index), read, give


def csr_matvec(data, indices, indptr, x, out=None):
    """``numconv.csr_matvec`` of arguments of these types."""
    refuse(out=out)
    read_data, read_indices, read_indptr, read, give = read_triple(data, indices, indptr, x=x)

    def csr_matvec(data, indices, indptr, x, out=None):
        return give(matvec((read_data(data), read_indices(indices), read_indptr(indptr), read(x))))

    return csr_matvec


def csr_rmatvec(data, indices, indptr, y, columns, out=None):
    """``numconv.csr_rmatvec`` of arguments of these types."""
    refuse(out=out)
    one_int("columns", columns)
    read_data, read_indices, read_indptr, read, give = read_triple(data, indices, indptr, y=y)

    def csr_rmatvec(data, indices, indptr, y, columns, out=None):
        return give(rmatvec((read_data(data), read_indices(indices), read_indptr(indptr), read(y), as_int(columns))))

    return csr_rmatvec
