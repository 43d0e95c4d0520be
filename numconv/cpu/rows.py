"""Rows of pixels: the few moves along the last axis that all kernels share."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

from .._indexing import KERNEL, START, STEP, STRIDE
from ._jit import first_output, helper, row_source, source
from .simd import CHAIN

#: Taps farther apart than this do not share a line of pixels; gathering what lies between them would not pay.
FAR = 64


@helper
def gather(row, first, stride, boundary, fill, o0, target):
    """``target[j]`` becomes the pixel at ``first + (o0 + j) * stride`` of an input row, or what the boundary says."""
    size, n = row.size, target.size
    a = min(max(first_output(first, stride, 0) - o0, 0), n)
    b = min(max(first_output(first, stride, size) - o0, a), n)
    start = first + o0 * stride
    for j in range(a):
        i = source(start + j * stride, size, boundary)
        target[j] = row[i] if i >= 0 else fill
    if stride == 1:  # slices counted from zero become vectors; a slice assignment would compile for seconds
        inside, there = row[start + a : start + b], target[a:b]
        for j in range(b - a):
            there[j] = inside[j]
    else:
        for j in range(a, b):
            target[j] = row[start + j * stride]
    for j in range(b, n):
        i = source(start + j * stride, size, boundary)
        target[j] = row[i] if i >= 0 else fill


@helper
def accumulate(row, weight, first, stride, boundary, fill, o0, y):
    """``y[j] += weight * (the pixel at first + (o0 + j) * stride)``; a constant that adds nothing is passed over."""
    size, n = row.size, y.size
    constant = weight * fill  # NaN for an infinite weight and a zero, as the sum has it
    a = min(max(first_output(first, stride, 0) - o0, 0), n)
    b = min(max(first_output(first, stride, size) - o0, a), n)
    start = first + o0 * stride
    for j in range(a):
        i = source(start + j * stride, size, boundary)
        if i >= 0:
            y[j] += weight * row[i]
        elif constant != 0:
            y[j] += constant
    if stride == 1:
        inside = row[start + a : start + b]
        y_inside = y[a:b]
        for j in range(b - a):
            y_inside[j] += weight * inside[j]
    else:
        for j in range(a, b):
            y[j] += weight * row[start + j * stride]
    for j in range(b, n):
        i = source(start + j * stride, size, boundary)
        if i >= 0:
            y[j] += weight * row[i]
        elif constant != 0:
            y[j] += constant


@helper
def add_up(target, sums, first, start):
    """A piece of a tile joins the output; the first piece of a sum brings the bias."""
    if first:
        for j in range(target.size):
            target[j] = sums[j] + start
    else:
        for j in range(target.size):
            target[j] += sums[j]


@helper
def row_sum(x, w, bias, axes, boundary, fill, n, k, O, o0, y):
    """``y`` becomes outputs ``o0 …`` of output row ``O``, summed tap by tap in the kernel's order, some at a time."""
    _, Cg, R_k, L_k = w.shape
    Kg = w.shape[0] // (x.shape[1] // Cg)
    last = axes.shape[0] - 1
    start, stride, step = axes[last, START], axes[last, STRIDE], axes[last, STEP]
    y[:] = bias[k]
    sums, length = y, 0
    for c in range(Cg):
        for T in range(R_k):
            row = row_source(T, O, axes, boundary)
            for t in range(L_k):
                if length % CHAIN == 0 and length > 0:
                    if length > CHAIN:
                        add_up(y, sums, False, y[0])
                    else:
                        sums = np.empty_like(y)
                    sums[:] = 0
                length += 1
                weight = w[k, c, T, t]
                if row >= 0:
                    pixels = x[n, k // Kg * Cg + c, row]
                    accumulate(pixels, weight, start + t * step, stride, boundary, fill, o0, sums)
                elif weight * fill != 0:
                    for j in range(y.size):
                        sums[j] += weight * fill
    if length > CHAIN:
        add_up(y, sums, False, y[0])


@helper
def lines_of(axis: Any) -> tuple[int, int]:
    """How many different lines of pixels the taps of an axis read, and the shift from tap to tap on one.

    Taps whose distance is a multiple of the stride read one line, shifted; so ``t`` and ``t + lines`` share one.
    """
    stride, step, kernel = axis[STRIDE], abs(axis[STEP]), axis[KERNEL]
    lines = stride // gcd(stride, step)
    shift = lines * step // stride
    return (lines, shift) if lines < kernel and shift <= FAR else (kernel, 0)
