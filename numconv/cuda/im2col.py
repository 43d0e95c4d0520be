"""``X_conv``, every window of the input as a column, and every column back to its pixels."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from .. import _memory
from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..arrays import computed_in
from ..geometry import ConvGeometry
from ._jit import THREADS, at, count, cuda, kernel, output_hit, row_output, source
from .arrays import DeviceArray, blocks_for
from .costs import IMAGES
from .implicit import forward as implicit_forward
from .places import table
from .tables import rows_and_taps

#: A thread finds a place once and goes through so many planes with it.
PLANES = 8

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


@kernel()
def _im2col(x, axes, rows_met, met, boundary, fill, M, P, size, planes, X_conv):
    # x (M, prod in), X_conv (M, taps, P). A thread owns one pixel of one tap in some planes, neighbours neighbours.
    i = cuda.grid(1)
    last, taps = axes.shape[0] - 1, met.shape[0]
    while i < taps * P * ((M + planes - 1) // planes):
        p, rest = i % P, i // P
        tap, m0 = rest % taps, rest // taps * planes
        row = rows_met[met[tap, 0] + p // axes[last, OUT]]
        pixel = source(p % axes[last, OUT] * axes[last, STRIDE] + met[tap, 1], axes[last, SIZE], boundary)
        for m in range(m0, min(m0 + planes, M)):
            value = fill
            if row >= 0 and pixel >= 0:
                value = x[m * size + row * axes[last, SIZE] + pixel]
            X_conv[(m * taps + tap) * P + p] = value
        i += cuda.gridsize(1)


def im2col(x: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic, X_conv: DeviceArray) -> None:
    """Fill ``X_conv (N, C * prod k, prod out)`` from ``x (N, C, *in)``, of any dtype with an item size in ``WORDS``."""
    word = WORDS[x.dtype.itemsize]
    constant: Any = np.asarray(fill, x.dtype).view(word)[()]
    M, P, size = x.shape[0] * x.shape[1], prod(axes[:, OUT].tolist()), prod(axes[:, SIZE].tolist())
    threads = -(-X_conv.size // PLANES) if M >= PLANES else X_conv.size
    _im2col(
        blocks_for(threads), x.reshape(x.size).view(word), table(x.place, axes),
        *rows_and_taps(x.place, axes, boundary), boundary, constant, M, P, size, min(M, PLANES),
        X_conv.reshape(X_conv.size).view(word), on=x.place,
    )  # fmt: skip


@kernel()
def _col2im(X_conv, axes, M, R_k, P, size, zero, x):
    # X_conv (M, taps, P), x (M, prod in). A thread gathers into its pixel every column entry that came from there, in
    # the type of zero.
    i = cuda.grid(1)
    last = axes.shape[0] - 1
    L_in, L_k, L_out = axes[last, SIZE], axes[last, KERNEL], axes[last, OUT]
    start, stride, step = axes[last, START], axes[last, STRIDE], axes[last, STEP]
    while i < M * size:
        pixel, m = i % size, i // size
        total = zero
        for T in range(R_k):
            O = row_output(T, pixel // L_in, axes)
            if O >= 0:
                for t in range(L_k):
                    o = output_hit(pixel % L_in, t, L_out, start, stride, step)
                    if o >= 0:
                        total += X_conv[((m * R_k + T) * L_k + t) * P + O * L_out + o]
        x[i] = x.dtype.type(total)
        i += cuda.gridsize(1)


def col2im(X_conv: DeviceArray, axes: np.ndarray, x: DeviceArray) -> None:
    """The adjoint of ``im2col`` under zero padding: ``x (N, C, *in)`` from ``X_conv (N, C * prod k, prod out)``."""
    M, size, P = x.shape[0] * x.shape[1], prod(axes[:, SIZE].tolist()), prod(axes[:, OUT].tolist())
    _col2im(
        blocks_for(x.size), X_conv.reshape(X_conv.size), table(x.place, axes), M, prod(axes[:-1, KERNEL].tolist()), P,
        size, computed_in(x.dtype).type(0), x.reshape(x.size), on=x.place,
    )  # fmt: skip


@kernel()
def _divide(x, counts, size, n):
    i = cuda.grid(1)
    while i < n:
        x[i] /= counts[i % size]
        i += cuda.gridsize(1)


def divide(x: DeviceArray, counts: np.ndarray) -> None:
    """``x (N, C, *in)`` divided by ``counts (*in)``."""
    whole = table(x.place, counts.reshape(-1))
    _divide(blocks_for(x.size), x.reshape(x.size), whole, counts.size, x.size, on=x.place)


@kernel(THREADS)
def _add_bias(bias, K, P, pieces, y):
    # y (N, K, P); a block owns a piece of a plane.
    block = count(cuda.blockIdx.x)
    p, plane = at(block % pieces * THREADS + cuda.threadIdx.x), count(block // pieces)
    if p < P:
        y[at(plane) * at(P) + p] += bias[at(plane % K)]


def add_bias(y: DeviceArray, bias: DeviceArray) -> None:
    """``y (…, K, P) += bias (K)``."""
    K, P = bias.size, y.shape[-1]
    pieces = -(-P // THREADS)
    _add_bias(prod(y.shape[:-1]) * pieces, bias, K, P, pieces, y.reshape(y.size), on=y.place)


def product(a: DeviceArray, b: DeviceArray, out: DeviceArray, bias: DeviceArray | None = None) -> None:
    """``out[i, g] = a[g] @ b[i, g] + bias``: by the caller's own BLAS, else by the tiles of ``implicit``.

    BLAS has no whole numbers, and would round float16 before the bias, or sum in it.
    """
    (N, G, Q, P), R = b.shape, a.shape[1]
    if a.dtype == out.dtype != np.float16 and a.dtype.kind in "fc" and a.place.matmul(a, b, out):
        if bias is not None:
            add_bias(out, bias)
        return
    bias = a.place.nothing((G * R,), a.dtype) if bias is None else bias
    line = np.array([[P, 1, P, 0, 1, 1]])
    implicit_forward(
        b.reshape(N, G * Q, P), a.reshape(G * R, Q, 1), bias, line, 0, a.dtype.type(0), out.reshape(N, G * R, P)
    )


def forward(
    x: DeviceArray, w: DeviceArray, bias: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic,
    y: DeviceArray,
) -> None:
    """``Y_flat = W_flat @ X_conv + bias`` as it stands: ``X_conv`` is stored, of some images at a time."""
    K, G, P, Q = y.shape[1], x.shape[1] // w.shape[1], prod(y.shape[2:]), prod(w.shape[1:])
    for part, target in some_images(x, y):
        N, X_conv = part.shape[0], stored(part, prod(w.shape[2:]), P, x.dtype)
        im2col(part, axes, boundary, fill, X_conv)
        product(w.reshape(G, K // G, Q), X_conv.reshape(N, G, Q, P), target.reshape(N, G, K // G, P), bias)


def grad_input(dY: DeviceArray, w: DeviceArray, axes: np.ndarray, dX: DeviceArray) -> None:
    """``dX = col2im(W_flat^T @ dY_flat)``, under zero padding."""
    K, G, P, Q = dY.shape[1], dX.shape[1] // w.shape[1], prod(dY.shape[2:]), prod(w.shape[1:])
    W_turned = w.reshape(G, K // G, Q).swapaxes(1, 2).astype(w.dtype)
    for part, target in some_images(dY, dX):
        N, dX_conv = part.shape[0], stored(target, prod(w.shape[2:]), P, computed_in(dX.dtype))
        product(W_turned, part.reshape(N, G, K // G, P), dX_conv.reshape(N, G, Q, P))
        col2im(dX_conv, axes, target)


def some_images(*arrays: DeviceArray) -> Iterator[tuple[DeviceArray, ...]]:
    """As many images of each array as the algorithm was chosen for."""
    N = arrays[0].shape[0]
    for n in range(0, N, IMAGES):
        yield arrays if N <= IMAGES else tuple(array[n : n + IMAGES] for array in arrays)


def stored(x: DeviceArray, taps: int, pixels: int, dtype: np.dtype) -> DeviceArray:
    """Memory for ``X_conv`` of ``x (N, C, *in)``, asked for before it is taken."""
    shape = (x.shape[0], x.shape[1] * taps, pixels)
    _memory.require(
        prod(shape) * dtype.itemsize, f"X_conv of shape {shape}", "use algorithm='implicit', which stores none",
        x.place.available,
    )
    return x.place.empty(shape, dtype)


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: ``X_conv`` of some images."""
    return min(geometry.N, IMAGES) * prod(geometry.cols_shape[-2:]) * dtype.itemsize
