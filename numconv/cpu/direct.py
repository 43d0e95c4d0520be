"""The sum as it is written: no matrix, no workspace. Best for few channels and small kernels."""

from __future__ import annotations

from math import prod

import numpy as np

from .._indexing import START, STEP, STRIDE
from ..geometry import ConvGeometry
from . import pieces, stencil
from ._jit import Kernel, flat, helper, row_source, tasks_of
from .im2col import block_length
from .pieces import wide
from .rows import gather, row_sum
from .stencil import parts_of


@Kernel
def _forward(team, x, w, bias, axes, boundary, fill, block, y):
    # x (N, C, rows in, last in), w (K, C/G, rows k, last k), y (N, K, rows out, last out); a task owns part of a row.
    N, K, R_out, L_out = y.shape
    blocks = (L_out + block - 1) // block
    for task in tasks_of(team, N * K * R_out * blocks):
        o0 = task % blocks * block
        O, k, n = task // blocks % R_out, task // blocks // R_out % K, task // blocks // R_out // K
        row_sum(x, w, bias, axes, boundary, fill, n, k, O, o0, y[n, k, O, o0 : min(o0 + block, L_out)])


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``y[n,k,o] = bias[k] + sum over c, t of w[k,c,t] x[n,c,o*stride+t*step]``."""
    if pieces.too_long(w):
        pieces.forward(forward, x, w, bias, axes, boundary, fill, y)
        return
    if stencil.serves(axes, y.dtype):
        stencil.forward(x, w, bias, axes, boundary, fill, y)
        return
    size, kernel, out = x.shape[2:], w.shape[2:], y.shape[2:]
    N, K = y.shape[:2]
    _forward(
        flat(x, N, x.shape[1], prod(size[:-1]), size[-1]), flat(w, *w.shape[:2], prod(kernel[:-1]), kernel[-1]),
        flat(bias, K), axes, boundary, fill, block_length(N * K, out),
        y.reshape(N, K, prod(out[:-1]), out[-1]), work=y.size * prod(w.shape[1:]),
    )


@helper
def inner(dy, pixels):
    """``sum over o of dy[o] * conj(pixels[o])``."""
    total = dy.dtype.type(0)
    for o in range(dy.size):
        total += dy[o] * np.conj(pixels[o])
    return total


@Kernel
def _grad_weight(team, x, dY, axes, boundary, fill, block, partial):
    # The output rows, in blocks, are split into a fixed number of parts; a task sums one part for one kernel row.
    parts, K, Cg, R_k, L_k = partial.shape
    N, _, R_out, L_out = dY.shape
    Kg = K // (x.shape[1] // Cg)
    last = axes.shape[0] - 1
    start, stride, step = axes[last, START], axes[last, STRIDE], axes[last, STEP]
    blocks = (L_out + block - 1) // block
    units = N * R_out * blocks
    for task in tasks_of(team, parts * K * Cg * R_k):
        T, c, k, part = task % R_k, task // R_k % Cg, task // R_k // Cg % K, task // R_k // Cg // K
        dw = partial[part, k, c, T]
        dw[:] = 0
        pixels = np.empty(min(block, L_out), dtype=x.dtype)
        for unit in range(units * part // parts, units * (part + 1) // parts):
            o0 = unit % blocks * block
            O, n = unit // blocks % R_out, unit // blocks // R_out
            dy = dY[n, k, O, o0 : min(o0 + block, L_out)]
            row = row_source(T, O, axes, boundary)
            for t in range(L_k):
                if row >= 0:
                    x_row = x[n, k // Kg * Cg + c, row]
                    gather(x_row, start + t * step, stride, boundary, fill, o0, pixels[: dy.size])
                else:
                    pixels[:] = fill
                dw[t] += inner(dy, pixels[: dy.size])


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``dW[k,c,t] = sum over n, o of dY[n,k,o] conj(x[n,c,o*stride+t*step])``."""
    if stencil.serves(axes, dW.dtype):
        stencil.grad_weight(x, dY, axes, boundary, fill, dW)
        return
    size, kernel, out = x.shape[2:], dW.shape[2:], dY.shape[2:]
    (N, K), Cg = dY.shape[:2], dW.shape[1]
    block = block_length(N, out)
    units = N * prod(out[:-1]) * -(-out[-1] // block)
    parts = parts_of(units, tasks=prod(dW.shape[:-1]))
    partial = np.empty((parts, K, Cg, prod(kernel[:-1]), kernel[-1]), dtype=wide(dW.dtype))
    _grad_weight(
        flat(x, N, x.shape[1], prod(size[:-1]), size[-1]), flat(dY, N, K, prod(out[:-1]), out[-1]),
        axes, boundary, fill, block, partial, work=dY.size * prod(dW.shape[1:]),
    )
    dW[...] = partial.sum(axis=0, dtype=partial.dtype).reshape(dW.shape)


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: little, and none without vector code."""
    return stencil.workspace(geometry, dtype)
