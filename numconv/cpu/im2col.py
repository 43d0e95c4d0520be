"""``X_conv`` and its adjoint: every window of the input as a column, and every column back to its pixels."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numba import prange

from .. import _memory
from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..geometry import ConvGeometry
from ._jit import Kernel, first_output, flat, helper, row_output, row_source, source

#: A task handles about this many bytes of its image, so that they stay in the first caches while the taps go by …
TASK_BYTES = 1 << 15
#: … and there are at least about this many tasks to share among threads.
TASKS = 64

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


@helper
def copy_run(pixels, stride, line):
    """``line`` becomes every ``stride``-th of the ``pixels``; a stride that the compiler knows becomes vectors."""
    if stride == 1:
        for o in range(line.size):
            line[o] = pixels[o]
    elif stride == 2:
        for o in range(line.size):
            line[o] = pixels[2 * o]
    else:
        for o in range(line.size):
            line[o] = pixels[o * stride]


@Kernel
def _im2col(x, axes, boundary, fill, block, piece, X_conv):
    # x (M, rows in, last in), X_conv (M, rows k, last k, rows out, last out). A task lays out a block of output rows, or
    # a piece of one, for every tap, so that the pixels come from memory once.
    M, R_k, L_k, R_out, L_out = X_conv.shape
    last = axes.shape[0] - 1
    size, start, stride, step = axes[last, SIZE], axes[last, START], axes[last, STRIDE], axes[last, STEP]
    blocks, pieces = (R_out + block - 1) // block, (L_out + piece - 1) // piece
    for task in prange(M * blocks * pieces):
        m, O0, o0 = task // pieces // blocks, task // pieces % blocks * block, task % pieces * piece
        n = min(piece, L_out - o0)
        rows = np.empty(min(block, R_out - O0), np.int64)
        for T in range(R_k):
            for i in range(rows.size):
                rows[i] = row_source(T, O0 + i, axes, boundary)
            for t in range(L_k):
                first = start + t * step + o0 * stride
                a = min(first_output(first, stride, 0), n)
                b = min(max(first_output(first, stride, size), a), n)
                lines = X_conv[m, T, t]
                for i in range(rows.size):
                    line = lines[O0 + i, o0 : o0 + n]
                    if rows[i] < 0:
                        line[:] = fill
                        continue
                    row = x[m, rows[i]]
                    for o in range(a):
                        edge = source(first + o * stride, size, boundary)
                        line[o] = row[edge] if edge >= 0 else fill
                    if a < b:
                        copy_run(row[first + a * stride :], stride, line[a:b])
                    for o in range(b, n):
                        edge = source(first + o * stride, size, boundary)
                        line[o] = row[edge] if edge >= 0 else fill


def im2col(x: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, X_conv: np.ndarray) -> None:
    """Fill ``X_conv (N, C * prod k, prod out)`` from ``x (N, C, *in)``, of any dtype with an item size in ``WORDS``.

    Copying needs no arithmetic, so a pixel travels as a word of its size and one compilation serves all such dtypes.
    """
    word = WORDS[x.dtype.itemsize]
    constant: Any = np.asarray(fill, x.dtype).view(word)[()]
    x, X_conv = x.view(word), X_conv.view(word)
    size, kernel, out = (tuple(axes[:, column].tolist()) for column in (SIZE, KERNEL, OUT))
    M = x.shape[0] * x.shape[1]
    _im2col(
        flat(x, M, prod(size[:-1]), size[-1]), axes, boundary, constant, *share(M, out, x.itemsize),
        X_conv.reshape(M, prod(kernel[:-1]), kernel[-1], prod(out[:-1]), out[-1]), work=X_conv.size,
    )


@Kernel
def _col2im(X_conv, axes, block, piece, x):
    # A task owns a block of input rows, or a piece of one, and gathers into it every column entry that came from there.
    _, R_k, L_k, R_out, L_out = X_conv.shape
    M, R_in, L_in = x.shape
    last = axes.shape[0] - 1
    start, stride, step = axes[last, START], axes[last, STRIDE], axes[last, STEP]
    blocks, pieces = (R_in + block - 1) // block, (L_in + piece - 1) // piece
    for task in prange(M * blocks * pieces):
        m, row0 = task // pieces // blocks, task // pieces % blocks * block
        i0 = task % pieces * piece
        i1 = min(i0 + piece, L_in)
        # Pixels whose positions differ by whole strides lie side by side, so every run of columns is added as vectors.
        sums = np.zeros((min(block, R_in - row0), min(stride, i1 - i0), (i1 - i0 + stride - 1) // stride), x.dtype)
        rows = np.empty(sums.shape[0], np.int64)
        for T in range(R_k):
            for i in range(rows.size):
                rows[i] = row_output(T, row0 + i, axes)
            for t in range(L_k):
                first = start + t * step - i0
                a = min(first_output(first, stride, 0), L_out)
                b = min(max(first_output(first, stride, i1 - i0), a), L_out)
                q, phase = (first + a * stride) // stride, (first + a * stride) % stride
                columns = X_conv[m, T, t]
                for i in range(rows.size):
                    if rows[i] >= 0:
                        run, there = columns[rows[i], a:b], sums[i, phase, q:]
                        for j in range(run.size):
                            there[j] += run[j]
        for i in range(rows.size):
            target = x[m, row0 + i, i0:i1]
            for phase in range(sums.shape[1]):
                line = sums[i, phase]
                for j in range((target.size - phase + stride - 1) // stride):
                    target[phase + j * stride] = line[j]


def col2im(X_conv: np.ndarray, axes: np.ndarray, x: np.ndarray) -> None:
    """The adjoint of ``im2col`` under zero padding: ``x (N, C, *in)`` from ``X_conv (N, C * prod k, prod out)``."""
    size, kernel, out = (tuple(axes[:, column].tolist()) for column in (SIZE, KERNEL, OUT))
    M = x.shape[0] * x.shape[1]
    _col2im(
        flat(X_conv, M, prod(kernel[:-1]), kernel[-1], prod(out[:-1]), out[-1]), axes, *share(M, size, x.itemsize),
        x.reshape(M, prod(size[:-1]), size[-1]), work=X_conv.size,
    )


def share(images: int, shape: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """How many rows of images of this shape a task takes, and how much of a row."""
    rows, length = prod(shape[:-1]), max(shape[-1], 1)
    block = max(1, min(TASK_BYTES // (length * itemsize), images * rows // TASKS, rows))
    pieces = max(-(-length * itemsize // TASK_BYTES), min(TASKS // max(images * rows, 1), length // 256), 1)
    return block, -(-length // pieces)


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
