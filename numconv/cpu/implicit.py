"""The product ``W_flat @ X_conv`` without ever storing ``X_conv``: panels of it are gathered and used at once."""

from __future__ import annotations

from math import prod

import numba
import numpy as np
from numba import prange

from .._indexing import KERNEL, OUT, START, STEP, STRIDE
from ..geometry import ConvGeometry
from ._jit import Kernel, flat, helper, row_source
from .direct import inner, parts_of, wide
from .im2col import gather

#: A panel of X_conv: this many of its rows and columns, so that panel, output and weights stay in the L1 cache.
ROWS, COLUMNS = 64, 128


@helper
def pack(x, axes, boundary, fill, q0, p0, panel):
    """``panel[q, p] = X_conv[q0 + q, p0 + p]`` for one image ``x (C, rows in, last in)``."""
    last = axes.shape[0] - 1
    L_k, L_out = axes[last, KERNEL], axes[last, OUT]
    start, stride, step = axes[last, START], axes[last, STRIDE], axes[last, STEP]
    R_k = 1
    for a in range(last):
        R_k *= axes[a, KERNEL]
    for q in range(panel.shape[0]):
        t, T, c = (q0 + q) % L_k, (q0 + q) // L_k % R_k, (q0 + q) // L_k // R_k
        p = 0
        while p < panel.shape[1]:  # run by run along the rows of the output
            O, o = (p0 + p) // L_out, (p0 + p) % L_out
            run = min(L_out - o, panel.shape[1] - p)
            row = row_source(T, O, axes, boundary)
            if row >= 0:
                gather(x[c, row], start + t * step, stride, boundary, fill, o, panel[q, p : p + run])
            else:
                panel[q, p : p + run] = fill
            p += run


@helper
def multiply_add(w, panel, y):
    """``y += w @ panel``, four terms of the sum at a time; each row of ``y`` in order of ``q``."""
    Q = panel.shape[0]
    for k in range(y.shape[0]):
        target = y[k]
        q = 0
        while q + 4 <= Q:
            w0, w1, w2, w3 = w[k, q], w[k, q + 1], w[k, q + 2], w[k, q + 3]
            p0, p1, p2, p3 = panel[q], panel[q + 1], panel[q + 2], panel[q + 3]
            for p in range(target.size):
                target[p] += w0 * p0[p] + w1 * p1[p] + w2 * p2[p] + w3 * p3[p]
            q += 4
        for r in range(q, Q):
            weight, row = w[k, r], panel[r]
            for p in range(target.size):
                target[p] += weight * row[p]


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
            panel = buffer[: q1 - q0, : p1 - p0]
            pack(x[n, g * Cg : (g + 1) * Cg], axes, boundary, fill, q0, p0, panel)
            multiply_add(w[g, :, q0:q1], panel, target)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``Y = W_flat @ X_conv + bias``, group by group."""
    N, K = y.shape[:2]
    G = x.shape[1] // w.shape[1] if w.shape[1] else 1
    size = x.shape[2:]
    _forward(
        flat(x, N, x.shape[1], prod(size[:-1]), size[-1]), flat(w, G, K // G, w[:1].size), flat(bias, K),
        axes, boundary, fill, y.reshape(N, K, prod(y.shape[2:])), work=y.size * w[:1].size,
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
            panel = buffer[: q1 - q0, : p1 - p0]
            pack(x[n, g * Cg : (g + 1) * Cg], axes, boundary, fill, q0, p0, panel)
            for k in range(Kg):
                dy = dY[n, g * Kg + k, p0:p1]
                for q in range(q1 - q0):
                    dW[k, q] += inner(dy, panel[q])


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``dW = dY_flat @ X_conv^H``, the sum over pixels split into parts that follow from the shapes alone."""
    N, K = dY.shape[:2]
    G, Q, P = x.shape[1] // dW.shape[1], dW[:1].size, prod(dY.shape[2:])
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
