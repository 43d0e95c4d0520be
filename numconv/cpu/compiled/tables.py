"""What shapes say: the table of axes and the errors of its numbers, steps, padding that joins the pixels it copies."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..._indexing import CONSTANT, FAR, KERNEL, OUT, SIZE, START, STEP, STRIDE
from .._jit import OPTIONS, UNWRAPPED, cached, extent, helper, largest_index, output_size, padding_of, source
from ..addresses import through

launcher: Any = partial(cached, **OPTIONS, **UNWRAPPED)

#: Rows of the table that a caller makes, a column for each axis; the last is there in gradients.
LO, HI, PIXELS, TAPS, STRIDES, DILATIONS, OUTPUTS = range(7)

#: Not a word for padding, but pairs.
PAIRS = -1


@helper
def size_of(shape):
    """The product of a shape."""
    total = 1
    for n in shape:
        total *= n
    return total


@launcher
def table_of(given, word, boundary, flip, N, C, K, groups):
    """The table of axes; the ``given`` padding becomes what the ``word`` means. Wrong values are errors here."""
    d = given.shape[1]
    for a in range(d):
        n, k, s, dil = given[PIXELS, a], given[TAPS, a], given[STRIDES, a], given[DILATIONS, a]
        if n < 0:
            raise ValueError("every axis of the input must have at least 0 pixels")
        if k < 1:
            raise ValueError("every axis of the kernel must have at least one value")
        if s < 1:
            raise ValueError("stride must be at least 1 on every axis")
        if dil < 1:
            raise ValueError("dilation must be at least 1 on every axis")
        if word == PAIRS and min(given[LO, a], given[HI, a]) < 0:
            raise ValueError("padding must be at least 0 on every side")
        if word != PAIRS:
            given[LO, a] = given[HI, a] = 0
            if max(n, s) < FAR and dil < FAR // k:
                given[LO, a], given[HI, a] = padding_of(word, n, k, s, dil)
    if min(N, C, K) < 0:
        raise ValueError("an array must have at least 0 images and channels")
    if largest_index(
        N, C, K, groups, given[PIXELS], given[TAPS], given[STRIDES], given[DILATIONS], given[LO], given[HI]
    ) >= FAR:
        raise ValueError(
            "stride, dilation and padding must keep all positions and sizes, and products of these, below 2**60"
        )
    axes = np.empty((d, 6), np.int64)
    for a in range(d):
        n, k, s, dil = given[PIXELS, a], given[TAPS, a], given[STRIDES, a], given[DILATIONS, a]
        lo, hi = given[LO, a], given[HI, a]
        out = output_size(n, k, s, dil, lo, hi)
        if out < 1:
            raise ValueError("the output would be empty: x with its padding is smaller than w with its dilation")
        if boundary != CONSTANT and n == 0 and lo + hi > 0:
            raise ValueError("boundary other than 'constant' cannot pad an axis without pixels")
        axes[a, SIZE], axes[a, KERNEL], axes[a, OUT], axes[a, STRIDE] = n, k, out, s
        axes[a, START], axes[a, STEP] = (extent(k, dil) - 1 - lo, -dil) if flip else (-lo, dil)
    return axes


axes_of = through(table_of)


@helper
def shape_of(N, K, axes, column):
    """The shape ``(N, K, *axes[:, column])``."""
    shape = np.empty(axes.shape[0] + 2, np.int64)
    shape[0], shape[1] = N, K
    for a in range(axes.shape[0]):
        shape[a + 2] = axes[a, column]
    return shape


@helper
def steps_of(shape):
    """Steps along the axes of a contiguous array."""
    steps, step = np.empty(shape.size, np.int64), 1
    for a in range(shape.size - 1, -1, -1):
        steps[a] = step
        step *= shape[a]
    return steps


@helper
def check_groups(C, K, Cg, groups):
    """Errors of the channels."""
    if groups < 1:
        raise ValueError("groups must be at least 1")
    if C % groups != 0 or K % groups != 0:
        raise ValueError("groups must divide the channels of x and of w")
    if Cg * groups != C:
        raise ValueError("w must have shape (K, C/groups, *k) with as many channels as x has in a group")


@helper
def check_output(M, N, L, K, given, axes):
    """Whether ``M`` images of ``L`` channels, and the size given for them, are those of the output."""
    wrong = M != N or L != K
    for a in range(axes.shape[0]):
        wrong = wrong or given[OUTPUTS, a] != axes[a, OUT]
    if wrong:
        raise ValueError("dy must have the shape of the output")


# padding ------------------------------------------------------------------------------------------------------------


@helper
def folds(given, boundary):
    """Whether there is padding that copies pixels."""
    most = 0
    for a in range(given.shape[1]):
        most = max(most, given[LO, a], given[HI, a])
    return boundary != CONSTANT and most > 0


@helper
def with_padding(axes, given):
    """The table over an input that already holds its padding."""
    padded = axes.copy()
    for a in range(axes.shape[0]):
        padded[a, SIZE] += given[LO, a] + given[HI, a]
        padded[a, START] += given[LO, a]
    return padded


@launcher
def fold(padded, images, given, boundary, target):
    """The padding of ``padded (images, *padded size)``, flat, joins the pixels that it copies: the ``target``."""
    outer, d = images, given.shape[1]
    for a in range(d):
        n, lo, hi = given[PIXELS, a], given[LO, a], given[HI, a]
        rows, inner = n + lo + hi, 1
        for b in range(a + 1, d):
            inner *= given[PIXELS, b] + given[LO, b] + given[HI, b]
        for e in range(lo + hi):
            i = e - lo if e < lo else n + e - lo
            pixel = source(i, n, boundary)
            for m in range(outer):
                at, edge = (m * rows + lo + pixel) * inner, (m * rows + lo + i) * inner
                for j in range(inner):
                    padded[at + j] += padded[edge + j]
        outer *= rows
    for i in range(target.size):
        rest, at, step = i, 0, 1
        for a in range(d - 1, -1, -1):
            at += (rest % given[PIXELS, a] + given[LO, a]) * step
            step *= given[PIXELS, a] + given[LO, a] + given[HI, a]
            rest //= given[PIXELS, a]
        target[i] = padded[rest * step + at]


unfolded = through(fold, later=True)
