"""The three products of ``conv``, and ``convolve``, for callers that are compiled."""

from __future__ import annotations

from math import gcd

import numpy as np

from ..._indexing import CONSTANT, KERNEL, OUT, SIZE, START, STEP, STRIDE, VALID
from .._jit import capped, first_tap, helper
from ..addresses import through
from ..callers import as_input, require, room
from ..lines import times
from .algorithms import back, product, sum_again, weights
from .choice import FORWARD, GRAD_INPUT, IMPLICIT, choose, choose_for_weights, kind_of, lanes_of
from .tables import (
    DILATIONS,
    PIXELS,
    STRIDES,
    TAPS,
    axes_of,
    check_groups,
    check_output,
    folds,
    launcher,
    shape_of,
    size_of,
    steps_of,
    unfolded,
    with_padding,
)


@launcher
def forward(x, N, C, w, K, Cg, bias, biased, given, word, groups, boundary, fill, flip, auto):
    """``y = conv(x, w)``; returns ``y (N, K, *out)`` flat, and its shape."""
    check_groups(C, K, Cg, groups)
    if not biased:
        bias = as_input(np.zeros(K, x.dtype))
    if bias.size != K:
        raise ValueError("bias must have shape (K,)")
    axes = axes_of((given, word, boundary, flip, N, C, K, groups))
    shape, T = shape_of(N, K, axes, OUT), times(axes, KERNEL)
    y = room(size_of(shape), x.dtype)
    if y.size > 0 and w.size > 0:
        algorithm = IMPLICIT
        if auto:
            algorithm = choose((FORWARD, kind_of(x.dtype), lanes_of(x.dtype), C, K, groups, axes))
        product(algorithm, (
            x, N, C, w, np.arange(T), Cg * T, T, bias, groups, axes, boundary, fill, y, 0, steps_of(shape)
        ))
    else:
        for i in range(y.size):
            y[i] = bias[i // times(axes, OUT) % K]
    return y, shape


_forward = through(forward)


@launcher
def convolve(x, w, given, word, boundary, fill, auto):
    """``convolve`` of plain arrays with SciPy's modes; returns ``y`` flat, and its shape."""
    d, larger, same, items = given.shape[1], True, True, 1
    spread = np.empty(d, np.int64)
    for a in range(d):
        if given[PIXELS, a] < 1:
            raise ValueError("x must have at least one pixel along every axis")
        spread[a] = capped(given[TAPS, a] - 1, given[DILATIONS, a]) + 1
        items = capped(items, spread[a])
        larger = larger and 0 < given[PIXELS, a] <= spread[a]
        same = same and given[PIXELS, a] == spread[a]
    no_bias = as_input(np.zeros(1, x.dtype))
    if word != VALID or not larger or same:
        return _forward((x, 1, 1, w, 1, 1, no_bias, True, given, word, 1, boundary, fill, True, auto))
    # the kernel is the larger: spread out by its dilation it becomes the input; then every stride-th value is kept
    require(capped(items, x.itemsize))
    wide = np.zeros(items, x.dtype)
    for i in range(w.size):
        rest, at, step = i, 0, 1
        for a in range(d - 1, -1, -1):
            at += rest % given[TAPS, a] * given[DILATIONS, a] * step
            rest, step = rest // given[TAPS, a], step * spread[a]
        wide[at] = w[i]
    turned = given.copy()
    for a in range(d):
        turned[PIXELS, a], turned[TAPS, a] = spread[a], given[PIXELS, a]
        turned[STRIDES, a] = turned[DILATIONS, a] = 1
    every, out = _forward((
        as_input(wide), 1, 1, x, 1, 1, no_bias, True, turned, word, 1, boundary, fill, True, auto,
    ))
    shape = out.copy()
    for a in range(d):
        shape[a + 2] = -(-out[a + 2] // given[STRIDES, a])
    y = room(size_of(shape), x.dtype)
    for i in range(y.size):
        rest, at, step = i, 0, 1
        for a in range(d - 1, -1, -1):
            at += rest % shape[a + 2] * given[STRIDES, a] * step
            rest, step = rest // shape[a + 2], step * out[a + 2]
        y[i] = every[at]
    return y, shape


# the input gradient -------------------------------------------------------------------------------------------------


@launcher
def under_zeros(dy, w, N, C, K, groups, axes, algorithm, dx):
    """``adjoint.gathered``: the gradient under zero padding, without what the zeros of ``dy`` do to it."""
    if not back(algorithm, (dy, w, N, C, K, groups, axes, dx)):
        by_phases(dy, w, N, C, K, groups, axes, algorithm, dx)
    sum_again((dy, w, N, C, K, groups, axes, dx))


@helper
def by_phases(dy, w, N, C, K, groups, axes, algorithm, dx):
    """For each phase of the stride a forward product of ``dy``."""
    d, T = axes.shape[0], times(axes, KERNEL)
    steps, bias = steps_of(shape_of(N, C, axes, SIZE)), as_input(np.zeros(C, dx.dtype))
    phases = 1
    for a in range(d):
        phases *= min(axes[a, STRIDE], axes[a, SIZE])
    if phases > 1:
        for i in range(dx.size):
            dx[i] = 0  # pixels that no tap meets
    for phase in range(phases):
        table, out_steps, begin, rest = np.empty((d, 6), np.int64), steps.copy(), 0, phase
        terms = np.zeros(1, np.int64)
        for a in range(d - 1, -1, -1):
            size, kernel, out = axes[a, SIZE], axes[a, KERNEL], axes[a, OUT]
            start, stride, step = axes[a, START], axes[a, STRIDE], axes[a, STEP]
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
            product(algorithm, (
                dy, N, K, w, terms, T, w.size // K, bias, groups, table, CONSTANT, dx.dtype.type(0), dx, begin,
                out_steps,
            ))


_under_zeros = through(under_zeros)


@launcher
def grad_input(N, C, w, K, Cg, dy, M, L, given, word, groups, boundary, flip, auto):
    """``dX = W_conv.T @ dY_flat`` for ``dy (M, L, *out)``; returns ``dX (N, C, *in)`` flat, and its shape."""
    check_groups(C, K, Cg, groups)
    axes = axes_of((given, word, boundary, flip, N, C, K, groups))
    check_output(M, N, L, K, given, axes)
    shape = shape_of(N, C, axes, SIZE)
    dx = room(size_of(shape), dy.dtype)
    if dx.size > 0 and dy.size > 0 and w.size > 0:
        algorithm = IMPLICIT
        if auto:
            algorithm = choose((GRAD_INPUT, kind_of(dy.dtype), lanes_of(dy.dtype), C, K, groups, axes))
        if folds(given, boundary):
            over = with_padding(axes, given)
            padded = room(N * C * times(over, SIZE), dy.dtype)
            _under_zeros((dy, w, N, C, K, groups, over, algorithm, padded))
            unfolded((padded, N * C, given, boundary, dx))
        else:
            _under_zeros((dy, w, N, C, K, groups, axes, algorithm, dx))
    else:
        for i in range(dx.size):
            dx[i] = 0
    return dx, shape


# the weight gradient ------------------------------------------------------------------------------------------------


@launcher
def grad_weight(x, N, C, K, Cg, dy, M, L, given, word, groups, boundary, fill, flip, auto):
    """``dW = dY_flat @ X_conv^H`` for ``dy (M, L, *out)``; returns ``dW (K, C/G, *k)`` flat, and its shape."""
    check_groups(C, K, Cg, groups)
    axes = axes_of((given, word, boundary, flip, N, C, K, groups))
    check_output(M, N, L, K, given, axes)
    shape = shape_of(K, Cg, axes, KERNEL)
    require(capped(size_of(shape), x.itemsize))
    dw = np.zeros(size_of(shape), x.dtype)
    if dw.size > 0 and dy.size > 0:
        algorithm = IMPLICIT
        if auto:
            algorithm = choose_for_weights((kind_of(x.dtype), lanes_of(x.dtype), N, C, K, groups, axes))
        weights(algorithm, (x, N, C, dy, K, axes, boundary, fill, dw))
    return dw, shape
