"""Launchers for callers that are compiled themselves: the same kernels, and the same plans for them.

Arrays come in flat and contiguous, of one dtype, shapes as arrays of ints; results go back flat, with their shape.
What a caller's own function compiles is only the way in and out; these are compiled once for each dtype and cached.
"""

from __future__ import annotations

from functools import partial
from math import gcd
from typing import Any

import numpy as np

from .._indexing import CONSTANT, KERNEL, OUT, SIZE, START, STEP, STRIDE, VALID
from . import csr, im2col, implicit, kernel2row
from ._jit import OPTIONS, UNWRAPPED, cached, extent, first_tap, helper, output_size, padding_of, source
from .blocks import blocks_for_weights
from .callers import as_input, as_table, team_for, threads_of
from .lines import merged, table, times

launcher: Any = partial(cached, **OPTIONS, **UNWRAPPED)

_forward, _grad_weight = implicit._forward.code, implicit._grad_weight.code
_im2col, _col2im = im2col._im2col.code, im2col._col2im.code
_tap_counts, _structure, _values = kernel2row._tap_counts.code, kernel2row._structure.code, kernel2row._values.code
_matvec, _add_rows, _add_bands = csr._matvec.code, csr._add_rows.code, csr._add_bands.code

#: Not a word for padding, but pairs.
PAIRS = -1

#: Positions stay below this, as in ``geometry``.
FAR = 2**60


@helper
def size_of(shape):
    """The product of a shape."""
    total = 1
    for n in shape:
        total *= n
    return total


@launcher
def table_of(size, kernel, stride, dilation, pads, word, boundary, flip):
    """The table of axes; ``pads`` becomes the padding that the ``word`` means. Wrong values are errors here."""
    d = kernel.size
    axes = np.empty((d, 6), np.int64)
    for a in range(d):
        n, k, s, dil = size[a], kernel[a], stride[a], dilation[a]
        if k < 1:
            raise ValueError("every axis of the kernel must have at least one value")
        if s < 1 or s >= FAR:
            raise ValueError("stride must be at least 1 on every axis, and below 2**60")
        if dil < 1 or dil >= FAR // k:
            raise ValueError("dilation must be at least 1 on every axis, and below 2**60 times the kernel")
        if word != PAIRS:
            pads[a, 0], pads[a, 1] = padding_of(word, n, k, s, dil)
        lo, hi = pads[a, 0], pads[a, 1]
        if lo < 0 or hi < 0 or max(lo, hi) >= FAR:
            raise ValueError("padding must be at least 0 on every side, and below 2**60")
        out = output_size(n, k, s, dil, lo, hi)
        if out < 1:
            raise ValueError("the output would be empty: x with its padding is smaller than w with its dilation")
        if boundary != CONSTANT and n == 0 and lo + hi > 0:
            raise ValueError("boundary other than 'constant' cannot pad an axis without pixels")
        axes[a, SIZE], axes[a, KERNEL], axes[a, OUT], axes[a, STRIDE] = n, k, out, s
        axes[a, START], axes[a, STEP] = (extent(k, dil) - 1 - lo, -dil) if flip else (-lo, dil)
    return axes


@helper
def steps_of(N, K, shape):
    """Steps along the axes of a contiguous array ``(N, K, *shape)``."""
    steps, step = np.empty(shape.size + 2, np.int64), 1
    for a in range(shape.size - 1, -1, -1):
        steps[a + 2] = step
        step *= shape[a]
    steps[1], steps[0] = step, K * step
    return steps


# the products -------------------------------------------------------------------------------------------------------


@launcher
def product(x, N, C, w, w_terms, k_step, c_step, bias, groups, axes, boundary, fill, y, begin, steps):
    """``implicit.product``: ``y = W_flat @ X_conv + bias``, from item ``begin`` of ``y`` on."""
    K = bias.size
    team = team_for(N * K * times(axes, OUT) * (C // groups) * w_terms.size)
    axes, size, block, w_steps, places, tables = implicit.layout(
        axes, begin, steps, x.dtype, N, C // groups, K // groups, groups, (w.size // groups, k_step, c_step), w_terms,
        threads_of(team),
    )
    _forward(
        team, as_table(x.reshape((N, C, size[0], size[1], size[2]))), as_input(w), as_input(bias), as_table(axes),
        boundary, fill, as_table(block), as_table(w_steps), as_table(places), as_table(tables), y,
    )


@helper
def check_groups(C, K, Cg, groups):
    """Errors of the channels."""
    if groups < 1:
        raise ValueError("groups must be at least 1")
    if C % groups != 0 or K % groups != 0:
        raise ValueError("groups must divide the channels of x and of w")
    if Cg * groups != C:
        raise ValueError("w must have shape (K, C/groups, *k) with as many channels as x has in a group")


@launcher
def forward(x, N, C, size, w, w_shape, bias, stride, dilation, pads, word, groups, boundary, fill, flip):
    """``implicit.forward``; returns ``y (N, K, *out)`` flat, and ``out``."""
    K, Cg, kernel = w_shape[0], w_shape[1], w_shape[2:]
    check_groups(C, K, Cg, groups)
    if bias.size != K:
        raise ValueError("bias must have shape (K,)")
    axes = table_of(size, kernel, stride, dilation, pads, word, boundary, flip)
    out = axes[:, OUT].copy()
    P, T = size_of(out), size_of(kernel)
    y = np.empty(N * K * P, x.dtype)
    if y.size > 0 and w.size > 0:
        steps = steps_of(N, K, out)
        product(x, N, C, w, np.arange(T), Cg * T, T, bias, groups, axes, boundary, fill, y, 0, steps)
    else:
        for i in range(y.size):
            y[i] = bias[i // P % K]
    return y, out


@launcher
def convolve(x, size, w, kernel, stride, dilation, word, boundary, fill):
    """``convolve`` of plain arrays with SciPy's modes; returns ``y`` flat, and its shape."""
    d, larger, same = size.size, True, True
    spread = np.empty(d, np.int64)
    for a in range(d):
        spread[a] = extent(kernel[a], dilation[a])
        larger = larger and 0 < size[a] <= spread[a]
        same = same and size[a] == spread[a]
    no_bias, pads = np.zeros(1, x.dtype), np.zeros((d, 2), np.int64)
    one, channels = np.ones(d, np.int64), np.ones(2, np.int64)
    if word != VALID or not larger or same:
        shape = np.concatenate((channels, kernel))
        return forward(x, 1, 1, size, w, shape, no_bias, stride, dilation, pads, word, 1, boundary, fill, True)
    # the kernel is the larger: spread out by its dilation it becomes the input; then every stride-th value is kept
    wide = np.zeros(size_of(spread), x.dtype)
    for i in range(w.size):
        rest, at, step = i, 0, 1
        for a in range(d - 1, -1, -1):
            at += rest % kernel[a] * dilation[a] * step
            rest, step = rest // kernel[a], step * spread[a]
        wide[at] = w[i]
    every, out = forward(
        as_input(wide), 1, 1, spread, x, np.concatenate((channels, size)), no_bias, one, one, pads, word, 1, boundary,
        fill, True,
    )
    shape = (out + stride - 1) // stride
    y = np.empty(size_of(shape), x.dtype)
    for i in range(y.size):
        rest, at, step = i, 0, 1
        for a in range(d - 1, -1, -1):
            at += rest % shape[a] * stride[a] * step
            rest, step = rest // shape[a], step * out[a]
        y[i] = every[at]
    return y, shape


@helper
def fold_edges(padded, images, size, pads, boundary):
    """The padding of ``padded (images, *padded size)``, flat, joins the pixels that it copies; axis by axis."""
    outer = images
    for a in range(size.size):
        n, lo, hi = size[a], pads[a, 0], pads[a, 1]
        rows, inner = n + lo + hi, 1
        for b in range(a + 1, size.size):
            inner *= size[b] + pads[b, 0] + pads[b, 1]
        for e in range(lo + hi):
            i = e - lo if e < lo else n + e - lo
            pixel = source(i, n, boundary)
            for m in range(outer):
                at, edge = (m * rows + lo + pixel) * inner, (m * rows + lo + i) * inner
                for j in range(inner):
                    padded[at + j] += padded[edge + j]
        outer *= rows


@helper
def take_core(padded, images, size, pads, target):
    """What lies inside the padding."""
    d = size.size
    for i in range(target.size):
        rest, at, step = i, 0, 1
        for a in range(d - 1, -1, -1):
            at += (rest % size[a] + pads[a, 0]) * step
            step *= size[a] + pads[a, 0] + pads[a, 1]
            rest //= size[a]
        target[i] = padded[rest * step + at]


@helper
def any_padding(pads):
    """Whether there is any."""
    return pads.size > 0 and pads.max() > 0


@helper
def pad_axes(axes, pads):
    """The table over an input that already holds its padding."""
    padded = axes.copy()
    for a in range(axes.shape[0]):
        padded[a, SIZE] += pads[a, 0] + pads[a, 1]
        padded[a, START] += pads[a, 0]
    return padded


@launcher
def by_phases(dy, w, N, C, K, groups, axes, dx):
    """``implicit.grad_input``: under zero padding, for each phase of the stride a forward product of ``dy``."""
    d, T = axes.shape[0], times(axes, KERNEL)
    steps, bias = steps_of(N, C, axes[:, SIZE].copy()), np.zeros(C, dx.dtype)
    phases = 1
    for a in range(d):
        phases *= min(axes[a, STRIDE], axes[a, SIZE])
    dx[:] = 0
    for phase in range(phases):
        table, out_steps, begin, rest = np.empty((d, 6), np.int64), steps.copy(), 0, phase
        terms = np.zeros(1, np.int64)
        for a in range(d - 1, -1, -1):
            size, kernel, out, start, stride, step = axes[a]
            phi, rest = rest % min(stride, size), rest // min(stride, size)
            t0 = first_tap(phi, kernel, start, stride, step)
            if t0 < 0:
                terms = terms[:0]
                break
            g = gcd(stride, step)
            m = stride // g
            table[a, SIZE], table[a, KERNEL] = out, (kernel - t0 + m - 1) // m
            table[a, OUT], table[a, STRIDE] = (size - phi + stride - 1) // stride, 1
            table[a, START], table[a, STEP] = (phi - start - t0 * step) // stride, -(step // g)
            begin += phi * steps[a + 2]
            out_steps[a + 2] *= stride
            inner, every = 1, terms.size
            for b in range(a + 1, d):
                inner *= axes[b, KERNEL]
            more = np.empty(table[a, KERNEL] * every, np.int64)
            for i in range(more.size):
                more[i] = (t0 + i // every * m) * inner + terms[i % every]
            terms = more
        if terms.size > 0:
            product(
                dy, N, K, w, terms, T, w.size // K, bias, groups, table, CONSTANT, dx.dtype.type(0), dx, begin,
                out_steps,
            )


@launcher
def grad_input(N, C, size, w, w_shape, dy, dy_shape, stride, dilation, pads, word, groups, boundary, flip):
    """``dX = W_conv.T @ dY_flat``, flat, for ``dy (N, K, *out)``."""
    K, Cg, kernel = w_shape[0], w_shape[1], w_shape[2:]
    check_groups(C, K, Cg, groups)
    axes = table_of(size, kernel, stride, dilation, pads, word, boundary, flip)
    check_output(dy_shape, N, K, axes)
    dx = np.zeros(N * C * size_of(size), dy.dtype)
    if dx.size > 0 and dy.size > 0 and w.size > 0:
        if boundary == CONSTANT or not any_padding(pads):
            by_phases(dy, w, N, C, K, groups, axes, dx)
        else:
            over = pad_axes(axes, pads)
            padded = np.empty(N * C * times(over, SIZE), dy.dtype)
            by_phases(dy, w, N, C, K, groups, over, padded)
            fold_edges(padded, N * C, size, pads, boundary)
            take_core(padded, N * C, size, pads, dx)
    return dx


@helper
def check_output(shape, N, K, axes):
    """Whether this is the shape of the output."""
    wrong = shape[0] != N or shape[1] != K
    for a in range(axes.shape[0]):
        wrong = wrong or shape[a + 2] != axes[a, OUT]
    if wrong:
        raise ValueError("dy must have the shape of the output")


@launcher
def grad_weight(x, N, C, size, w_shape, dy, dy_shape, stride, dilation, pads, word, groups, boundary, fill, flip):
    """``implicit.grad_weight``: ``dW = dY_flat @ X_conv^H``, flat."""
    K, Cg, kernel = w_shape[0], w_shape[1], w_shape[2:]
    check_groups(C, K, Cg, groups)
    axes = table_of(size, kernel, stride, dilation, pads, word, boundary, flip)
    check_output(dy_shape, N, K, axes)
    P, Q = times(axes, OUT), Cg * size_of(kernel)
    dw = np.zeros(K * Q, x.dtype)
    if dw.size > 0 and dy.size > 0:
        axes, _ = merged(axes, steps_of(N, K, axes[:, OUT].copy()))
        block, parts = blocks_for_weights(axes, N, Cg, K // groups, groups, x.dtype)
        size = implicit.size_over(axes)
        partial = dw.reshape((1, K, Q)) if parts == 1 else np.empty((parts, K, Q), x.dtype)
        _grad_weight(
            team_for(dy.size * Q), as_table(x.reshape((N, C, size[0], size[1], size[2]))),
            as_table(dy.reshape((N, K, P))), as_table(axes), boundary, fill, as_table(block),
            as_table(table(axes, block)), implicit.is_complex(x.dtype), partial,
        )
        if parts > 1:
            sums = partial.reshape((parts, K * Q))
            for i in range(dw.size):
                dw[i] = sums[0, i]
            for part in range(1, parts):
                for i in range(dw.size):
                    dw[i] += sums[part, i]
    return dw


# the matrices -------------------------------------------------------------------------------------------------------


@launcher
def windows(x, images, size, kernel, stride, dilation, pads, word, boundary, fill, flip):
    """``im2col.im2col`` of words; returns ``X_conv (images, prod k, prod out)`` flat, and ``prod out``."""
    axes = table_of(size, kernel, stride, dilation, pads, word, boundary, flip)
    T, P, L = size_of(kernel), times(axes, OUT), kernel[kernel.size - 1]
    X_conv = np.empty(images * T * P, x.dtype)
    if X_conv.size > 0:
        L_out = axes[axes.shape[0] - 1, OUT]
        planes, block, piece = im2col.share(images, P // L_out, L_out, x.itemsize)
        _im2col(
            team_for(X_conv.size), as_table(x.reshape((images, x.size // images))), as_table(axes), boundary, fill,
            planes, block, piece, X_conv.reshape((images, T // L, L, P)),
        )
    return X_conv, P


@launcher
def unwindowed(cols, rows, columns, images, size, kernel, stride, dilation, pads, word, boundary, flip, mean):
    """``matrices.col2im``; returns ``x (images, *in)`` flat."""
    axes = table_of(size, kernel, stride, dilation, pads, word, boundary, flip)
    T, P, pixels = size_of(kernel), times(axes, OUT), size_of(size)
    if rows != T or columns != P:
        raise ValueError("cols must have the shape that im2col gives for input_shape")
    x = np.zeros(images * pixels, cols.dtype)
    if x.size > 0:
        add_windows(cols, images, size, axes, pads, boundary, x)
        if mean:
            counts, ones = np.zeros(pixels, cols.dtype), np.ones(T * P, cols.dtype)
            add_windows(as_input(ones), 1, size, axes, pads, boundary, counts)
            for i in range(x.size):
                count = counts[i % pixels]
                if count != 0:
                    x[i] /= count
    return x


@helper
def add_windows(cols, images, size, axes, pads, boundary, x):
    """``im2col.col2im`` under any boundary."""
    if boundary == CONSTANT or not any_padding(pads):
        gather_windows(cols, images, axes, x)
    else:
        over = pad_axes(axes, pads)
        padded = np.empty(images * times(over, SIZE), x.dtype)
        gather_windows(cols, images, over, padded)
        fold_edges(padded, images, size, pads, boundary)
        take_core(padded, images, size, pads, x)


@launcher
def gather_windows(cols, images, axes, x):
    """``im2col.col2im``."""
    T, P, last = times(axes, KERNEL), times(axes, OUT), axes.shape[0] - 1
    planes, block, piece = im2col.share(images, x.size // (images * axes[last, SIZE]), axes[last, SIZE], x.itemsize)
    _col2im(
        team_for(cols.size), as_table(cols.reshape((images, T // axes[last, KERNEL], axes[last, KERNEL], P))),
        as_table(axes), planes, block, piece, x,
    )


@helper
def line_counts(axis, boundary):
    """How many different pixels of one axis each output reads."""
    a, b = kernel2row.inside(axis)
    counts = np.full(axis[OUT], axis[KERNEL])
    _tap_counts(0, axis, boundary, 0, counts[:a])
    _tap_counts(0, axis, boundary, b, counts[b:])
    return counts


@helper
def running_sum(counts):
    """What lies before each, and the total."""
    total = np.zeros(counts.size + 1, np.int64)
    for i in range(counts.size):
        total[i + 1] = total[i] + counts[i]
    return total


@launcher
def triple(w, w_shape, size, stride, dilation, pads, word, groups, boundary, flip):
    """``kernel2row.triple``, with indices of int32."""
    K, Cg, kernel = w_shape[0], w_shape[1], w_shape[2:]
    check_groups(Cg * groups, K, Cg, groups)
    axes = table_of(size, kernel, stride, dilation, pads, word, boundary, flip)
    d, count, inputs, P = axes.shape[0], size_of(kernel), size_of(size), times(axes, OUT)
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
    data, indices, indptr = np.empty(entries, w.dtype), np.empty(entries, np.int32), np.empty(K * P + 1, np.int32)
    indptr[K * P] = entries
    if K * P > 0:
        rows_in, line_in, chunk, team = as_table(rows), as_table(line), kernel2row.chunk_of(P, L_out), team_for(entries)
        _structure(
            team, K, K // groups, Cg, count, inputs, as_table(axes), boundary, a, b, rows_in, line_in, chunk, indices,
            indptr,
        )
        turned = w.copy()
        for i in range(w.size):
            t, rest, at, step = i % count, i % count, 0, 1
            for c in range(d - 1, -1, -1):
                k = rest % axes[c, KERNEL]
                at += (k if axes[c, STEP] > 0 else axes[c, KERNEL] - 1 - k) * step
                step, rest = step * axes[c, KERNEL], rest // axes[c, KERNEL]
            turned[i] = w[i - t + at]
        _values(
            team, as_table(turned.reshape((K, Cg * count))), Cg, inputs, as_table(axes), boundary, a, b, rows_in,
            line_in, chunk, data,
        )
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
        _matvec(
            team_for(data.size), data, indices, indptr, as_table(x.reshape((1, x.size))), block, y.reshape((1, rows)),
            found,
        )
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
    while parts > 1 and parts * columns > data.size:
        parts //= 2
    sums, low, high = np.empty((parts, columns), y.dtype), np.zeros(parts, np.int64), np.zeros(parts, np.int64)
    _add_rows(team_for(data.size), data, indices, indptr, y, block, low, high, sums)
    for p in range(parts):
        if high[p] < 0:
            raise ValueError("indices and indptr must be those of a CSR matrix with this many columns")
    x = np.empty(columns, y.dtype)
    _add_bands(team_for(sums.size), as_table(low), as_table(high), as_table(sums), 4096, x)
    return x
