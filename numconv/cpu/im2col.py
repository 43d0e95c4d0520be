"""``X_conv`` and its adjoint: every window of the input as a column, and every column back to its pixels."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numba import prange

from .. import _memory
from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..geometry import ConvGeometry
from ._jit import Kernel, first_output, flat, row_output, row_source
from .rows import gather

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


@Kernel
def _im2col(x, axes, boundary, fill, parts, X_conv):
    # x (M, rows in, last in), X_conv (M, rows k, last k, rows out, last out); a task is a part of one row of X_conv.
    M, R_k, L_k, R_out, _ = X_conv.shape
    last = axes.shape[0] - 1
    start, stride, step = axes[last, START], axes[last, STRIDE], axes[last, STEP]
    for task in prange(M * R_k * L_k * parts):
        part, t, T, m = task % parts, task // parts % L_k, task // parts // L_k % R_k, task // parts // L_k // R_k
        for O in range(R_out * part // parts, R_out * (part + 1) // parts):
            row = row_source(T, O, axes, boundary)
            if row >= 0:
                gather(x[m, row], start + t * step, stride, boundary, fill, 0, X_conv[m, T, t, O])
            else:
                X_conv[m, T, t, O] = fill


def im2col(x: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, X_conv: np.ndarray) -> None:
    """Fill ``X_conv (N, C * prod k, prod out)`` from ``x (N, C, *in)``, of any dtype with an item size in ``WORDS``.

    Copying needs no arithmetic, so a pixel travels as a word of its size and one compilation serves all such dtypes.
    """
    word = WORDS[x.dtype.itemsize]
    constant: Any = np.asarray(fill, x.dtype).view(word)[()]
    x, X_conv = x.view(word), X_conv.view(word)
    size, kernel, out = (tuple(axes[:, column].tolist()) for column in (SIZE, KERNEL, OUT))
    M = x.shape[0] * x.shape[1]
    tasks = M * prod(kernel)
    parts = 1 if tasks >= 64 else min(64, prod(out[:-1]))
    _im2col(
        flat(x, M, prod(size[:-1]), size[-1]), axes, boundary, constant, parts,
        X_conv.reshape(M, prod(kernel[:-1]), kernel[-1], prod(out[:-1]), out[-1]), work=X_conv.size,
    )


@Kernel
def _col2im(X_conv, axes, block, x):
    # A task owns a block of one input row and gathers into it every column entry that came from there.
    _, R_k, L_k, _, L_out = X_conv.shape
    M, R_in, L_in = x.shape
    last = axes.shape[0] - 1
    start, stride, step = axes[last, START], axes[last, STRIDE], axes[last, STEP]
    blocks = (L_in + block - 1) // block
    for task in prange(M * R_in * blocks):
        i0 = task % blocks * block
        row, m = task // blocks % R_in, task // blocks // R_in
        i1 = min(i0 + block, L_in)
        x[m, row, i0:i1] = 0
        for T in range(R_k):
            O = row_output(T, row, axes)
            if O >= 0:
                for t in range(L_k):
                    first = start + t * step
                    a = min(first_output(first, stride, i0), L_out)
                    b = min(first_output(first, stride, i1), L_out)
                    source_row, target = X_conv[m, T, t, O], x[m, row]
                    for o in range(a, b):
                        target[first + o * stride] += source_row[o]


def col2im(X_conv: np.ndarray, axes: np.ndarray, x: np.ndarray) -> None:
    """The adjoint of ``im2col`` under zero padding: ``x (N, C, *in)`` from ``X_conv (N, C * prod k, prod out)``."""
    size, kernel, out = (tuple(axes[:, column].tolist()) for column in (SIZE, KERNEL, OUT))
    M = x.shape[0] * x.shape[1]
    _col2im(
        flat(X_conv, M, prod(kernel[:-1]), kernel[-1], prod(out[:-1]), out[-1]), axes, block_length(M, size),
        x.reshape(M, prod(size[:-1]), size[-1]), work=X_conv.size,
    )


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``Y_flat = W_flat @ X_conv + bias`` as it stands: ``X_conv`` is stored, the product is BLAS'."""
    (N, K), G = y.shape[:2], groups_of(x, w)
    X_conv = stored(x, prod(w.shape[2:]), prod(y.shape[2:]))
    im2col(x, axes, boundary, fill, X_conv)
    P, Q = prod(y.shape[2:]), prod(w.shape[1:])
    np.matmul(w.reshape(G, K // G, Q), X_conv.reshape(N, G, Q, P), out=y.reshape(N, G, K // G, P))
    y += bias.reshape(-1, *(1,) * (y.ndim - 2))


def grad_input(dY: np.ndarray, w: np.ndarray, axes: np.ndarray, dX: np.ndarray) -> None:
    """``dX = col2im(W_flat^T @ dY_flat)``, under zero padding."""
    (N, K), G = dY.shape[:2], groups_of(dX, w)
    dX_conv = stored(dX, prod(w.shape[2:]), prod(dY.shape[2:]))
    P, Q = prod(dY.shape[2:]), prod(w.shape[1:])
    W_flat = w.reshape(G, K // G, Q)
    np.matmul(W_flat.swapaxes(1, 2), dY.reshape(N, G, K // G, P), out=dX_conv.reshape(N, G, Q, P))
    col2im(dX_conv, axes, dX)


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``dW = dY_flat @ X_conv^H``, image by image in order."""
    (N, K), G = dY.shape[:2], groups_of(x, dW)
    X_conv = stored(x, prod(dW.shape[2:]), prod(dY.shape[2:]))
    im2col(x, axes, boundary, fill, X_conv)
    P, Q = prod(dY.shape[2:]), prod(dW.shape[1:])
    X_conv, dY = X_conv.reshape(N, G, Q, P), dY.reshape(N, G, K // G, P)
    total = np.zeros((G, K // G, Q), dtype=dW.dtype)
    for n in range(N):
        total += dY[n] @ X_conv[n].conj().swapaxes(1, 2)
    dW[...] = total.reshape(dW.shape)


def stored(x: np.ndarray, taps: int, pixels: int) -> np.ndarray:
    """Memory for ``X_conv`` of ``x (N, C, *in)``, asked for before it is taken."""
    shape = (x.shape[0], x.shape[1] * taps, pixels)
    _memory.require(prod(shape) * x.itemsize, f"X_conv of shape {shape}", "use algorithm='implicit', which stores none")
    return np.empty(shape, dtype=x.dtype)


def groups_of(x: np.ndarray, w: np.ndarray) -> int:
    """How many groups ``x (N, C, *in)`` and ``w (K, C/G, *k)`` have."""
    return x.shape[1] // w.shape[1] if w.shape[1] else 1


def unturned(w: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The kernel as it slides: turned if it is read from its last tap backwards."""
    return np.flip(w, tuple(2 + a for a, step in enumerate(axes[:, STEP].tolist()) if step < 0))


def block_length(images: int, shape: tuple[int, ...]) -> int:
    """How much of a row one task owns: all of it, unless there are too few rows for the threads, as in 1-D."""
    rows = images * prod(shape[:-1])
    return max(shape[-1], 1) if rows >= 64 else max(1024, -(-shape[-1] // 64))


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: ``X_conv``."""
    return prod(geometry.cols_shape) * dtype.itemsize
