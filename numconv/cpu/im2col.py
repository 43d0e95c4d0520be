"""``X_conv`` and its adjoint: every window of the input as a column, and every column back to its pixels."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from .. import _memory
from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..geometry import ConvGeometry
from . import pieces
from ._jit import Kernel, first_output, flat, helper, row_output, row_source, source, tasks_of
from .pieces import wide
from .simd import CHAIN

#: A task handles about this many bytes of its image, so that they stay in the first caches while the taps go by …
TASK_BYTES = 1 << 15
#: … and there are at least about this many tasks to share among threads.
TASKS = 64

#: Products that BLAS adds up at once; of weight gradients the parts are added up in a wider type.
AT_ONCE = 1 << 10

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


# Unsigned indices cannot wrap around, so the loops of these two become vector code.


@helper
def copy_run(source, s, s_step, target, t, t_step, n):
    """``target[t + j * t_step] = source[s + j * s_step]`` for ``j < n``."""
    s, s_step, t, t_step = np.uint64(s), np.uint64(s_step), np.uint64(t), np.uint64(t_step)
    for j in range(np.uint64(n)):
        target[t + j * t_step] = source[s + j * s_step]


@helper
def add_run(source, s, target, t, n):
    """``target[t + j] += source[s + j]`` for ``j < n``."""
    s, t = np.uint64(s), np.uint64(t)
    for j in range(np.uint64(n)):
        target[t + j] += source[s + j]


@Kernel
def _im2col(team, x, axes, boundary, fill, planes, block, piece, X_conv):
    # x (M, prod in), X_conv (M, rows k, last k, prod out). A task lays out a block of output rows of some planes, or a
    # piece of one row, for every tap, so that the pixels come from memory once.
    M, R_k, L_k, P = X_conv.shape
    last = axes.shape[0] - 1
    size, start, stride, step = axes[last, SIZE], axes[last, START], axes[last, STRIDE], axes[last, STEP]
    L_out = axes[last, OUT]
    R_out = P // L_out
    blocks, pieces = (R_out + block - 1) // block, (L_out + piece - 1) // piece
    aligned = stride == 1 and size == L_out == piece  # rows lie as in the input, so shifted ones are copied together
    for task in tasks_of(team, (M + planes - 1) // planes * blocks * pieces):
        m0, O0, o0 = task // pieces // blocks * planes, task // pieces % blocks * block, task % pieces * piece
        m1, n = min(m0 + planes, M), min(piece, L_out - o0)
        rows = np.empty(min(block, R_out - O0), np.int64)
        for T in range(R_k):
            for i in range(rows.size):
                rows[i] = row_source(T, O0 + i, axes, boundary)
            for t in range(L_k):
                first = start + t * step + o0 * stride
                a = min(first_output(first, stride, 0), n)
                b = min(max(first_output(first, stride, size), a), n)
                i = 0
                while i < rows.size:
                    row, line, together = rows[i], (O0 + i) * L_out + o0, 1
                    if row < 0:
                        for m in range(m0, m1):
                            X_conv[m, T, t, line : line + n] = fill
                    elif a < b:
                        while aligned and i + together < rows.size and rows[i + together] == row + together:
                            together += 1
                        at, length = row * size + first + a * stride, (together - 1) * L_out + b - a
                        for m in range(m0, m1):
                            copy_run(x[m], at, stride, X_conv[m, T, t], line + a, 1, length)
                    i += together
                for e in range(a + n - b):
                    o = e if e < a else b + e - a
                    edge = source(first + o * stride, size, boundary)
                    for m in range(m0, m1):
                        pixels, lines = x[m], X_conv[m, T, t]
                        for i in range(rows.size):
                            if rows[i] >= 0:
                                lines[(O0 + i) * L_out + o0 + o] = pixels[rows[i] * size + edge] if edge >= 0 else fill


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
        flat(x, M, prod(size)), axes, boundary, constant, *share(M, prod(out[:-1]), out[-1], x.itemsize),
        X_conv.reshape(M, prod(kernel[:-1]), kernel[-1], prod(out)), work=X_conv.size,
    )


@Kernel
def _col2im(team, X_conv, axes, planes, block, piece, x):
    # X_conv (M, rows k, last k, prod out), x flat. A task owns a block of input rows of some planes, or a piece of one
    # row, and gathers into it every column entry that came from there.
    M, R_k, L_k, _ = X_conv.shape
    last = axes.shape[0] - 1
    start, stride, step = axes[last, START], axes[last, STRIDE], axes[last, STEP]
    L_in, L_out = axes[last, SIZE], axes[last, OUT]
    R_in = x.size // (M * L_in)
    blocks, pieces = (R_in + block - 1) // block, (L_in + piece - 1) // piece
    for task in tasks_of(team, (M + planes - 1) // planes * blocks * pieces):
        m0, row0, i0 = task // pieces // blocks * planes, task // pieces % blocks * block, task % pieces * piece
        m1, n = min(m0 + planes, M), min(piece, L_in - i0)
        rows = np.empty(min(block, R_in - row0), np.int64)
        lines = (m1 - m0) * rows.size
        begin = (m0 * R_in + row0) * L_in + i0
        target = x[begin : begin + lines * n]
        # With a stride, pixels that lie whole strides apart are added up side by side, so that runs stay runs.
        phases = min(stride, n)
        width = (n + phases - 1) // phases
        sums = target if phases == 1 else np.empty(lines * phases * width, x.dtype)
        aside, length = np.zeros(sums.size if R_k * L_k > CHAIN else 0, x.dtype), 0  # long sums in parts
        sums[:] = 0
        for T in range(R_k):
            for i in range(rows.size):
                rows[i] = row_output(T, row0 + i, axes)
            for t in range(L_k):
                if length == CHAIN:
                    for j in range(aside.size):
                        aside[j] += sums[j]
                    sums[:], length = 0, 0
                length += 1
                first = start + t * step - i0
                a = min(first_output(first, stride, 0), L_out)
                b = min(max(first_output(first, stride, n), a), L_out)
                i = first + a * stride
                place = i % stride * lines * width + i // stride
                for m in range(m0, m1 if a < b else m0):
                    columns = X_conv[m, T, t]
                    line = (m - m0) * rows.size
                    for i in range(rows.size):
                        if rows[i] >= 0:
                            add_run(columns, rows[i] * L_out + a, sums, place + (line + i) * width, b - a)
        for j in range(aside.size):
            sums[j] += aside[j]
        whole = n % phases == 0  # then the pixels of all lines are whole strides apart
        for phase in range(phases if phases > 1 else 0):
            for line in range(1 if whole else lines):
                pixels = lines * width if whole else (n - phase + phases - 1) // phases
                copy_run(sums, (phase * lines + line) * width, 1, target, line * n + phase, phases, pixels)


def col2im(X_conv: np.ndarray, axes: np.ndarray, x: np.ndarray) -> None:
    """The adjoint of ``im2col`` under zero padding: ``x (N, C, *in)`` from ``X_conv (N, C * prod k, prod out)``."""
    size, kernel, out = (tuple(axes[:, column].tolist()) for column in (SIZE, KERNEL, OUT))
    M = x.shape[0] * x.shape[1]
    _col2im(
        flat(X_conv, M, prod(kernel[:-1]), kernel[-1], prod(out)), axes,
        *share(M, prod(size[:-1]), size[-1], x.itemsize), x.reshape(-1), work=X_conv.size,
    )


def divide(x: np.ndarray, counts: np.ndarray) -> None:
    """``x (N, C, *in)`` divided by ``counts (*in)``."""
    x /= counts


@helper
def share(images: int, rows: int, length: int, itemsize: int) -> tuple[int, int, int]:
    """What a task takes of images of so many rows: how many of them, how many rows, and how much of a row."""
    row = max(length, 1) * itemsize
    block = max(1, min(rows, TASK_BYTES // row, images * rows // TASKS))
    planes = max(1, min(TASK_BYTES // (rows * row), images // TASKS)) if block == rows else 1
    pieces = max(1, -(-row // TASK_BYTES), min(TASKS // max(images * rows, 1), length // 256))
    return planes, block, -(-max(length, 1) // pieces)


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``Y_flat = W_flat @ X_conv + bias`` as it stands: ``X_conv`` is stored, the product is BLAS'."""
    if pieces.too_long(w):
        pieces.forward(forward, x, w, bias, axes, boundary, fill, y)
        return
    (N, K), G = y.shape[:2], groups_of(x, w)
    P, Q = prod(y.shape[2:]), prod(w.shape[1:])
    target = y.reshape(N, G, K // G, P)
    for images, X_conv in stored(x, prod(w.shape[2:]), P):
        im2col(x[images], axes, boundary, fill, X_conv)
        multiply(w.reshape(G, K // G, Q), X_conv.reshape(-1, G, Q, P), target[images])
    y += bias.reshape(-1, *(1,) * (y.ndim - 2))


def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """``out = a @ b``, long sums in parts."""
    np.matmul(a[..., :AT_ONCE], b[..., :AT_ONCE, :], out=out)
    for q in range(AT_ONCE, a.shape[-1], AT_ONCE):
        out += a[..., q : q + AT_ONCE] @ b[..., q : q + AT_ONCE, :]


def grad_input(dY: np.ndarray, w: np.ndarray, axes: np.ndarray, dX: np.ndarray) -> None:
    """``dX = col2im(W_flat^T @ dY_flat)``, under zero padding."""
    (N, K), G = dY.shape[:2], groups_of(dX, w)
    P, Q = prod(dY.shape[2:]), prod(w.shape[1:])
    W_flat, dY = w.reshape(G, K // G, Q), dY.reshape(N, G, K // G, P)
    for images, dX_conv in stored(dX, prod(w.shape[2:]), P):
        multiply(W_flat.swapaxes(1, 2), dY[images], dX_conv.reshape(-1, G, Q, P))
        col2im(dX_conv, axes, dX[images])


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``dW = dY_flat @ X_conv^H``, image by image in order."""
    (N, K), G = dY.shape[:2], groups_of(x, dW)
    P, Q = prod(dY.shape[2:]), prod(dW.shape[1:])
    dY = dY.reshape(N, G, K // G, P)
    total = np.zeros((G, K // G, Q), dtype=wide(dW.dtype))
    for images, X_conv in stored(x, prod(dW.shape[2:]), P):
        im2col(x[images], axes, boundary, fill, X_conv)
        for columns, dy in zip(X_conv.reshape(-1, G, Q, P), dY[images], strict=True):
            for p in range(0, P, AT_ONCE):  # long sums in parts
                total += dy[..., p : p + AT_ONCE] @ columns[..., p : p + AT_ONCE].conj().swapaxes(1, 2)
    dW[...] = total.reshape(dW.shape)


def stored(x: np.ndarray, taps: int, pixels: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Some images of ``x (N, C, *in)`` after the others, and memory for their ``X_conv``."""
    one = x.shape[1] * taps, pixels
    N, some = x.shape[0], images_at_once(prod(one) * x.itemsize)
    shape = (min(N, some), *one)
    X_conv = np.empty(shape, dtype=x.dtype)
    for n in range(0, N, some):
        images = slice(n, min(n + some, N))
        yield images, X_conv[: images.stop - n]


def images_at_once(nbytes: int) -> int:
    """Of how many images ``X_conv`` is stored, if that of one takes so many bytes."""
    return max(1, _memory.WORKSPACE // max(nbytes, 1))


def groups_of(x: np.ndarray, w: np.ndarray) -> int:
    """How many groups ``x (N, C, *in)`` and ``w (K, C/G, *k)`` have."""
    return x.shape[1] // w.shape[1] if w.shape[1] else 1


def unturned(w: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The kernel as it slides: turned if it is read from its last tap backwards."""
    return np.flip(w, tuple(2 + a for a, step in enumerate(axes[:, STEP].tolist()) if step < 0))


def block_length(images: int, shape: tuple[int, ...]) -> int:
    """How much of a row one task owns: all of it, unless there are too few rows for the threads, as in 1-D."""
    rows = images * prod(shape[:-1])
    return row_part(rows, shape[-1])


@helper
def row_part(rows: int, length: int) -> int:
    """The same of so many rows."""
    return max(length, 1) if rows >= 64 else max(1024, -(-length // 64))


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: ``X_conv`` of some images."""
    one = prod(geometry.cols_shape[-2:]) * dtype.itemsize
    return one * min(geometry.N, images_at_once(one))
