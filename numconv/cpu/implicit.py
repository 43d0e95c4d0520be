"""The product ``W_flat @ X_conv`` without ever storing ``X_conv``: panels of it are gathered and used at once."""

from __future__ import annotations

from math import prod

import numba
import numpy as np
from numba import prange

from .._indexing import KERNEL, OUT, START, STEP, STRIDE
from ..geometry import ConvGeometry
from ._jit import Kernel, flat, helper, row_source
from .direct import parts_of, wide
from .im2col import gather, groups_of

#: A panel of X_conv: this many of its rows and columns, so that panel, output and weights stay in the L1 cache.
ROWS, COLUMNS = 64, 128


@helper
def pack(x, axes, boundary, fill, q0, p0, pixels, panel):
    """``panel[q, p] = X_conv[q0 + q, p0 + p]`` for ``pixels`` columns of one image ``x (C, rows in, last in)``."""
    last = axes.shape[0] - 1
    L_k, L_out = axes[last, KERNEL], axes[last, OUT]
    start, stride, step = axes[last, START], axes[last, STRIDE], axes[last, STEP]
    R_k = 1
    for a in range(last):
        R_k *= axes[a, KERNEL]
    for q in range(panel.shape[0]):
        t, T, c = (q0 + q) % L_k, (q0 + q) // L_k % R_k, (q0 + q) // L_k // R_k
        p = 0
        while p < pixels:  # run by run along the rows of the output
            O, o = (p0 + p) // L_out, (p0 + p) % L_out
            run = min(L_out - o, pixels - p)
            row = row_source(T, O, axes, boundary)
            if row >= 0:
                gather(x[c, row], start + t * step, stride, boundary, fill, o, panel[q, p : p + run])
            else:
                panel[q, p : p + run] = fill
            p += run


@helper
def multiply_add(w, panel, pixels, y):
    """``y += w @ panel`` over the first ``pixels`` columns: four terms of the sum and two rows of ``y`` at a time."""
    K, Q = w.shape
    for k in range(0, K - 1, 2):
        for q in range(0, Q - 3, 4):
            a0, a1, a2, a3 = w[k, q], w[k, q + 1], w[k, q + 2], w[k, q + 3]
            b0, b1, b2, b3 = w[k + 1, q], w[k + 1, q + 1], w[k + 1, q + 2], w[k + 1, q + 3]
            for p in range(pixels):
                p0, p1, p2, p3 = panel[q, p], panel[q + 1, p], panel[q + 2, p], panel[q + 3, p]
                y[k, p] += a0 * p0 + a1 * p1 + a2 * p2 + a3 * p3
                y[k + 1, p] += b0 * p0 + b1 * p1 + b2 * p2 + b3 * p3
    for k in range(K):
        for q in range(0 if k == K - 1 and K % 2 else Q // 4 * 4, Q):
            weight = w[k, q]
            for p in range(pixels):
                y[k, p] += weight * panel[q, p]


@helper
def multiply_transposed_add(dY, panel, pixels, dW):
    """``dW += dY @ panel^H`` over the first ``pixels`` columns, two rows and two columns of ``dW`` at a time."""
    K, Q = dW.shape
    nothing = dY.dtype.type(0)
    for k in range(0, K, 2):
        other = min(k + 1, K - 1)
        for q in range(0, Q, 2):
            beside = min(q + 1, Q - 1)
            s00, s01, s10, s11 = nothing, nothing, nothing, nothing
            for p in range(pixels):
                left, right = np.conj(panel[q, p]), np.conj(panel[beside, p])
                s00 += dY[k, p] * left
                s01 += dY[k, p] * right
                s10 += dY[other, p] * left
                s11 += dY[other, p] * right
            dW[k, q] += s00
            if beside > q:
                dW[k, beside] += s01
            if other > k:
                dW[other, q] += s10
            if beside > q and other > k:
                dW[other, beside] += s11


@Kernel
def _forward(x, w, bias, axes, boundary, fill, y):
    # x (N, C, rows in, last in), w (G, K/G, C/G * prod k), y (N, K, prod out); a task owns COLUMNS pixels of a group.
    N, _, P = y.shape
    G, Kg, Q = w.shape
    Cg = x.shape[1] // G
    tiles = (P + COLUMNS - 1) // COLUMNS
    for task in prange(N * G * tiles):
        p0 = task % tiles * COLUMNS
        g, n = task // tiles % G, task // tiles // G
        p1 = min(p0 + COLUMNS, P)
        target = y[n, g * Kg : (g + 1) * Kg, p0:p1]
        for k in range(Kg):
            target[k, :] = bias[g * Kg + k]
        buffer = np.empty((ROWS, COLUMNS), dtype=x.dtype)
        for q0 in range(0, Q, ROWS):
            q1 = min(q0 + ROWS, Q)
            panel = buffer[: q1 - q0]
            pack(x[n, g * Cg : (g + 1) * Cg], axes, boundary, fill, q0, p0, p1 - p0, panel)
            multiply_add(w[g, :, q0:q1], panel, p1 - p0, target)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``Y = W_flat @ X_conv + bias``, group by group."""
    N, K = y.shape[:2]
    G = groups_of(x, w)
    size = x.shape[2:]
    _forward(
        flat(x, N, x.shape[1], prod(size[:-1]), size[-1]), flat(w, G, K // G, prod(w.shape[1:])), flat(bias, K),
        axes, boundary, fill, y.reshape(N, K, prod(y.shape[2:])), work=y.size * prod(w.shape[1:]),
    )


@Kernel
def _grad_weight(x, dY, axes, boundary, fill, partial):
    # partial (parts, G, K/G, C/G * prod k): the pixel tiles are split into a fixed number of parts, each summed alone.
    parts, G, Kg, Q = partial.shape
    N, _, P = dY.shape
    Cg = x.shape[1] // G
    tiles, blocks = (P + COLUMNS - 1) // COLUMNS, (Q + ROWS - 1) // ROWS
    units = N * tiles
    for task in prange(parts * G * blocks):
        q0 = task % blocks * ROWS
        g, part = task // blocks % G, task // blocks // G
        q1 = min(q0 + ROWS, Q)
        dW = partial[part, g, :, q0:q1]
        dW[:] = 0
        buffer = np.empty((ROWS, COLUMNS), dtype=x.dtype)
        for unit in range(units * part // parts, units * (part + 1) // parts):
            n, p0 = unit // tiles, unit % tiles * COLUMNS
            p1 = min(p0 + COLUMNS, P)
            panel = buffer[: q1 - q0]
            pack(x[n, g * Cg : (g + 1) * Cg], axes, boundary, fill, q0, p0, p1 - p0, panel)
            multiply_transposed_add(dY[n, g * Kg : (g + 1) * Kg, p0:p1], panel, p1 - p0, dW)


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``dW = dY_flat @ X_conv^H``, the sum over pixels split into parts that follow from the shapes alone."""
    N, K = dY.shape[:2]
    G, Q, P = groups_of(x, dW), prod(dW.shape[1:]), prod(dY.shape[2:])
    parts = parts_of(N * -(-P // COLUMNS), tasks=G * -(-Q // ROWS))
    partial = np.empty((parts, G, K // G, Q), dtype=wide(dW.dtype))
    size = x.shape[2:]
    _grad_weight(
        flat(x, N, x.shape[1], prod(size[:-1]), size[-1]), flat(dY, N, K, P), axes, boundary, fill, partial,
        work=dY.size * Q,
    )
    dW[...] = partial.sum(axis=0, dtype=partial.dtype).reshape(dW.shape)


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: a panel for each thread."""
    return ROWS * COLUMNS * dtype.itemsize * numba.get_num_threads()
