"""``im2col``, ``col2im``, the triple of ``kernel2row`` and its products, for callers that are compiled."""

from __future__ import annotations

import numpy as np

from ..._indexing import KERNEL, OUT, SIZE, STEP
from .. import csr, im2col, kernel2row
from .._jit import capped, helper
from ..addresses import through
from ..callers import as_input, as_table, require, room, team_for
from ..lines import times
from .tables import axes_of, check_groups, folds, launcher, shape_of, unfolded, with_padding

_im2col, _col2im = through(im2col._im2col), through(im2col._col2im)
_structure, _values, _tap_counts = (
    through(kernel2row._structure), through(kernel2row._values), through(kernel2row._tap_counts)
)
_matvec, _add_rows, _add_bands = through(csr._matvec), through(csr._add_rows), through(csr._add_bands)

#: Of the indices of a triple.
INDEX = np.dtype(np.int32)


@launcher
def windows(x, N, C, given, word, boundary, fill, flip):
    """``im2col.im2col`` of words; returns ``X_conv (N, C * prod k, prod out)`` flat, and its shape."""
    axes = axes_of((given, word, boundary, flip, N, C, 1, 1))
    last, images = axes.shape[0] - 1, N * C
    T, P, L, L_out = times(axes, KERNEL), times(axes, OUT), axes[last, KERNEL], axes[last, OUT]
    X_conv = room(images * T * P, x.dtype)
    if X_conv.size > 0:
        planes, block, piece = im2col.share(images, P // L_out, L_out, x.itemsize)
        _im2col((
            team_for(X_conv.size), as_table(x.reshape((images, x.size // images))), as_table(axes), boundary, fill,
            planes, block, piece, X_conv.reshape((images, T // L, L, P)),
        ))
    return X_conv, np.array([N, C * T, P])


@launcher
def unwindowed(cols, rows, columns, N, C, given, word, boundary, flip, mean):
    """``matrices.col2im``; returns ``x (N, C, *in)`` flat, and its shape."""
    axes = axes_of((given, word, boundary, flip, N, C, 1, 1))
    T, P, images, shape = times(axes, KERNEL), times(axes, OUT), N * C, shape_of(N, C, axes, SIZE)
    if rows != C * T or columns != P or cols.size != images * T * P:
        raise ValueError("cols must have the shape that im2col gives for input_shape")
    pixels = times(axes, SIZE)
    require(capped(images * pixels, cols.itemsize))
    x = np.zeros(images * pixels, cols.dtype)
    if x.size > 0:
        add_windows(cols, images, axes, given, boundary, x)
        if mean:
            counts, ones = np.zeros(pixels, cols.dtype), np.ones(T * P, cols.dtype)
            add_windows(as_input(ones), 1, axes, given, boundary, counts)
            for i in range(x.size):
                count = counts[i % pixels]
                if count != 0:
                    x[i] /= count
    return x, shape


@helper
def add_windows(cols, images, axes, given, boundary, x):
    """``im2col.col2im`` under any boundary."""
    if folds(given, boundary):
        over = with_padding(axes, given)
        padded = room(images * times(over, SIZE), x.dtype)
        gathered((cols, images, over, padded))
        unfolded((padded, images, given, boundary, x))
    else:
        gathered((cols, images, axes, x))


@launcher
def gather_windows(cols, images, axes, x):
    """``im2col.col2im``."""
    T, P, last = times(axes, KERNEL), times(axes, OUT), axes.shape[0] - 1
    planes, block, piece = im2col.share(images, x.size // (images * axes[last, SIZE]), axes[last, SIZE], x.itemsize)
    _col2im((
        team_for(cols.size), as_table(cols.reshape((images, T // axes[last, KERNEL], axes[last, KERNEL], P))),
        as_table(axes), planes, block, piece, x,
    ))


gathered = through(gather_windows, later=True)


@helper
def line_counts(axis, boundary):
    """How many different pixels of one axis each output reads."""
    a, b = kernel2row.inside(axis)
    counts = np.full(axis[OUT], axis[KERNEL])
    _tap_counts((0, axis, boundary, 0, counts[:a]))
    _tap_counts((0, axis, boundary, b, counts[b:]))
    return counts


@helper
def running_sum(counts):
    """What lies before each, and the total."""
    total = np.zeros(counts.size + 1, np.int64)
    for i in range(counts.size):
        total[i + 1] = total[i] + counts[i]
    return total


@launcher
def triple(w, K, Cg, given, word, groups, boundary, flip):
    """``kernel2row.triple``, with indices of int32."""
    check_groups(capped(Cg, groups), K, Cg, groups)
    axes = axes_of((given, word, boundary, flip, 1, Cg * groups, K, groups))
    d, count, inputs, P = axes.shape[0], times(axes, KERNEL), times(axes, SIZE), times(axes, OUT)
    require(capped(P, 16))  # what is counted for each output
    ones = np.ones(1, np.int64)
    rows, line = ones, ones
    for a in range(d):
        longer = np.empty(rows.size * line.size, np.int64)
        for i in range(longer.size):
            longer[i] = rows[i // line.size] * line[i % line.size]
        rows, line = longer, line_counts(as_table(axes[a].copy()), boundary)
    a, b = kernel2row.inside(axes[d - 1])
    L_out = line.size
    rows, line = running_sum(rows), running_sum(line)
    entries = K * Cg * rows[-1] * line[-1]
    if max(entries, K * P, groups * Cg * inputs) > 2**31 - 1:
        raise ValueError("w would give a matrix whose indices int32 cannot hold; call kernel2row outside compiled code")
    require(entries * (w.itemsize + 4))
    data, indices, indptr = room(entries, w.dtype), room(entries, INDEX), np.empty(K * P + 1, np.int32)
    indptr[K * P] = entries
    if K * P > 0:
        rows_in, line_in, chunk, team = as_table(rows), as_table(line), kernel2row.chunk_of(P, L_out), team_for(entries)
        _structure((
            team, K, K // groups, Cg, count, inputs, as_table(axes), boundary, a, b, rows_in, line_in, chunk, indices,
            indptr,
        ))
        turned = w.copy()
        for i in range(w.size):
            t, rest, at, step = i % count, i % count, 0, 1
            for c in range(d - 1, -1, -1):
                k = rest % axes[c, KERNEL]
                at += (k if axes[c, STEP] > 0 else axes[c, KERNEL] - 1 - k) * step
                step, rest = step * axes[c, KERNEL], rest // axes[c, KERNEL]
            turned[i] = w[i - t + at]
        _values((
            team, as_table(turned.reshape((K, Cg * count))), Cg, count, inputs, as_table(axes), boundary, a, b,
            rows_in, line_in, chunk, data,
        ))
    return data, indices, indptr


@helper
def check_triple(data, indices, indptr):
    """Errors of the triple's shapes."""
    if indptr.size == 0:
        raise ValueError("indptr must have one entry more than the matrix has rows, got none")
    if data.size != indices.size:
        raise ValueError("data must have as many entries as indices")


@launcher
def matvec(data, indices, indptr, x):
    """``csr.matvec`` of one vector."""
    check_triple(data, indices, indptr)
    rows = indptr.size - 1
    y = np.empty(rows, x.dtype)
    if rows > 0:
        block = csr.block_rows(rows, data.size)
        found = np.zeros(-(-rows // block), np.bool_)
        _matvec((
            team_for(data.size), data, indices, indptr, as_table(x.reshape((1, x.size))), block, y.reshape((1, rows)),
            found,
        ))
        for wrong in found:
            if wrong:
                raise ValueError("indices and indptr must be those of a CSR matrix with as many columns as x has items")
    return y


@launcher
def rmatvec(data, indices, indptr, y, columns):
    """``csr.rmatvec`` of one vector."""
    check_triple(data, indices, indptr)
    if columns < 0:
        raise ValueError("columns must be at least 0")
    if y.size != indptr.size - 1:
        raise ValueError("y must have as many items as the matrix has rows")
    parts, block = csr.PARTS, csr.block_rows(indptr.size - 1, data.size)
    while parts > 1 and columns > data.size // parts:
        parts //= 2
    require(capped(capped(parts, columns), y.itemsize))
    sums, low, high = np.empty((parts, columns), y.dtype), np.zeros(parts, np.int64), np.zeros(parts, np.int64)
    _add_rows((team_for(data.size), data, indices, indptr, y, block, low, high, sums))
    for p in range(parts):
        if high[p] < 0:
            raise ValueError("indices and indptr must be those of a CSR matrix with this many columns")
    x = np.empty(columns, y.dtype)
    _add_bands((team_for(sums.size), as_table(low), as_table(high), as_table(sums), 4096, x))
    return x
