"""``W_conv``: the kernel laid over the input once for each output pixel, written straight into CSR arrays."""

from __future__ import annotations

from math import prod

import numpy as np
import scipy.sparse
from numba import prange

from .. import _indexing, _memory
from .._indexing import CONSTANT, KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..geometry import ConvGeometry
from ._jit import Kernel, flat, helper, position, source
from .im2col import groups_of

#: Pixels of one task: enough to pay for its buffers, few enough to share among threads.
CHUNK = 256


@Kernel
def _tap_counts(axis, boundary, o0, counts):
    # counts[j]: how many different pixels of one axis output o0 + j reads.
    size, kernel = axis[SIZE], axis[KERNEL]
    pixels = np.empty(kernel, dtype=np.int64)
    for j in range(counts.size):
        for t in range(kernel):
            pixels[t] = source(position(o0 + j, t, axis[START], axis[STRIDE], axis[STEP]), size, boundary)
        if boundary != CONSTANT:
            pixels.sort()
        counts[j] = 0
        for t in range(kernel):
            if pixels[t] >= 0 and (boundary == CONSTANT or t == 0 or pixels[t] != pixels[t - 1]):
                counts[j] += 1


def edge_counts(axis: np.ndarray, boundary: int) -> tuple[np.ndarray, int, np.ndarray]:
    """Along one axis: what the outputs at either edge read, and how many lie between them, which read every tap."""
    size, kernel, out, start, stride, step = axis.tolist()
    lowest, highest = start + min(0, (kernel - 1) * step), start + max(0, (kernel - 1) * step)
    a = min(_indexing.first_output(lowest, stride, 0), out)
    b = max(min(_indexing.first_output(highest, stride, size), out), a)
    before, after = np.empty(a, dtype=np.int64), np.empty(out - b, dtype=np.int64)
    _tap_counts(axis, boundary, 0, before, work=0)
    _tap_counts(axis, boundary, b, after, work=0)
    return before, b - a, after


def count_entries(axes: np.ndarray, boundary: int) -> int:
    """Entries of W_conv for one channel pair: a product over the axes, cheap at any size."""
    total = 1
    for axis in axes:
        before, inside, after = edge_counts(axis, boundary)
        total *= int(before.sum()) + inside * int(axis[KERNEL]) + int(after.sum())
    return total


def pixel_starts(axes: np.ndarray, boundary: int) -> np.ndarray:
    """Entries of one channel pair before each output pixel, ``prod out + 1`` of them."""
    per_pixel = np.ones(1, dtype=np.int64)
    for axis in axes:
        before, inside, after = edge_counts(axis, boundary)
        along = np.concatenate([before, np.full(inside, axis[KERNEL]), after])
        per_pixel = np.multiply.outer(per_pixel, along).reshape(-1)
    starts = np.zeros(per_pixel.size + 1, dtype=np.int64)
    np.cumsum(per_pixel, out=starts[1:])
    return starts


@helper
def pixel_taps(p, axes, boundary, pixels, taps, first):
    """What output pixel ``p`` reads: ascending input ``pixels``, and the kernel values that meet each.

    Entry ``e`` of the row is pixel ``pixels[e]`` and holds the sum of the taps ``taps[first[e]:first[e + 1]]``: one
    tap, unless the boundary folds several onto one pixel. Returns the number of entries.
    """
    d, count = axes.shape[0], taps.size
    turned = axes[0, STEP] < 0
    n = 0
    for j in range(count):
        tap = count - 1 - j if turned else j  # so that pixels ascend
        pixel, size, t, o = 0, 1, tap, p
        for a in range(d - 1, -1, -1):
            i = position(o % axes[a, OUT], t % axes[a, KERNEL], axes[a, START], axes[a, STRIDE], axes[a, STEP])
            i = source(i, axes[a, SIZE], boundary)
            if i < 0:
                pixel = -1
                break
            pixel += i * size
            size *= axes[a, SIZE]
            t //= axes[a, KERNEL]
            o //= axes[a, OUT]
        if pixel >= 0:
            pixels[n], taps[n], first[n] = pixel, tap, n
            n += 1
    first[n] = n
    if boundary == CONSTANT:
        return n
    order = np.argsort(pixels[:n], kind="mergesort")
    unsorted_pixels, unsorted_taps = pixels[:n].copy(), taps[:n].copy()
    entries = 0
    for m in range(n):
        pixel = unsorted_pixels[order[m]]
        taps[m] = unsorted_taps[order[m]]
        if entries == 0 or pixels[entries - 1] != pixel:
            pixels[entries], first[entries] = pixel, m
            entries += 1
    first[entries] = n
    return entries


@helper
def inside(p, axes):
    """The flat input pixel where the window of output ``p`` begins if all of it lies in the input, else -1."""
    corner, size = 0, 1
    for a in range(axes.shape[0] - 1, -1, -1):
        o = p % axes[a, OUT]
        p //= axes[a, OUT]
        near = position(o, 0, axes[a, START], axes[a, STRIDE], axes[a, STEP])
        far = position(o, axes[a, KERNEL] - 1, axes[a, START], axes[a, STRIDE], axes[a, STEP])
        if min(near, far) < 0 or max(near, far) >= axes[a, SIZE]:
            return -1
        corner += min(near, far) * size
        size *= axes[a, SIZE]
    return corner


@helper
def window(axes, count):
    """What a window inside the input reads, ascending and counted from its first pixel."""
    offsets = np.zeros(count, np.int64)
    for j in range(count):
        size, t = 1, j
        for a in range(axes.shape[0] - 1, -1, -1):
            offsets[j] += t % axes[a, KERNEL] * abs(axes[a, STEP]) * size
            size *= axes[a, SIZE]
            t //= axes[a, KERNEL]
    return offsets


@Kernel
def _structure(K, Cg, count, axes, boundary, groups, inputs, starts, indices):
    # starts[p] counts the entries of one channel before output pixel p; count is prod k, inputs is prod in.
    P = starts.size - 1
    Kg = K // groups
    for chunk in prange((P + CHUNK - 1) // CHUNK):
        pixels, taps, first = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count + 1, np.int64)
        offsets = window(axes, count)
        for p in range(chunk * CHUNK, min((chunk + 1) * CHUNK, P)):
            corner = inside(p, axes)
            n = count if corner >= 0 else pixel_taps(p, axes, boundary, pixels, taps, first)
            for k in range(K):
                for c in range(Cg):
                    at = Cg * (k * starts[P] + starts[p]) + c * n
                    column = (k // Kg * Cg + c) * inputs
                    if corner >= 0:
                        for e in range(count):
                            indices[at + e] = column + corner + offsets[e]
                    else:
                        for e in range(n):
                            indices[at + e] = column + pixels[e]


@Kernel
def _values(w, axes, boundary, starts, data):
    # The same loop over the values; new weights go into an old structure through here.
    K, Cg, count = w.shape
    P = starts.size - 1
    turned = axes[0, STEP] < 0
    for chunk in prange((P + CHUNK - 1) // CHUNK):
        pixels, taps, first = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count + 1, np.int64)
        for p in range(chunk * CHUNK, min((chunk + 1) * CHUNK, P)):
            whole = inside(p, axes) >= 0
            n = count if whole else pixel_taps(p, axes, boundary, pixels, taps, first)
            for k in range(K):
                for c in range(Cg):
                    at = Cg * (k * starts[P] + starts[p]) + c * n
                    if whole:
                        for e in range(count):
                            data[at + e] = w[k, c, count - 1 - e if turned else e]
                    else:
                        for e in range(n):
                            value = w[k, c, taps[first[e]]]
                            for m in range(first[e] + 1, first[e + 1]):
                                value += w[k, c, taps[m]]
                            data[at + e] = value


def structure(
    w: np.ndarray, axes: np.ndarray, boundary: int, groups: int, starts: np.ndarray, index_dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """``indices`` and ``indptr`` of W_conv for ``w (K, C/G, *k)``; they depend on the geometry alone."""
    K, Cg = w.shape[:2]
    per_kernel = Cg * starts[-1]
    indptr = np.empty(K * (starts.size - 1) + 1, dtype=index_dtype)
    rows = indptr[:-1].reshape(K, starts.size - 1)
    np.add.outer(np.arange(K) * per_kernel, Cg * starts[:-1], out=rows, casting="same_kind")
    indptr[-1] = K * per_kernel
    indices = np.empty(int(indptr[-1]), dtype=index_dtype)
    inputs = prod(axes[:, SIZE].tolist())
    _structure(
        K, Cg, prod(w.shape[2:]), axes, boundary, groups, inputs, flat(starts, -1), indices, work=indices.size
    )
    return indices, indptr


def values(w: np.ndarray, axes: np.ndarray, boundary: int, starts: np.ndarray, data: np.ndarray) -> None:
    """Write the weights of ``w (K, C/G, *k)`` into the ``data`` of W_conv."""
    K, Cg = w.shape[:2]
    _values(flat(w, K, Cg, prod(w.shape[2:])), axes, boundary, flat(starts, -1), data, work=data.size)


def csr(
    w: np.ndarray, axes: np.ndarray, boundary: int, groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``data, indices, indptr`` of W_conv ``(K * prod out, C * prod in)``."""
    K, Cg = w.shape[:2]
    entries, P = K * Cg * count_entries(axes, boundary), prod(axes[:, OUT].tolist())
    rows, columns = K * P, groups * Cg * prod(axes[:, SIZE].tolist())
    index_dtype = index_dtype_for(max(entries, rows, columns))
    _memory.require(
        stored_bytes(entries, rows, w.dtype, index_dtype) + 16 * P, f"W_conv with {entries:,} entries",
        "use linear_operator(w) of a plan, or algorithm='implicit', which store no matrix",
    )
    starts = pixel_starts(axes, boundary)
    indices, indptr = structure(w, axes, boundary, groups, starts, index_dtype)
    data = np.empty(indices.size, dtype=w.dtype)
    values(w, axes, boundary, starts, data)
    return data, indices, indptr


def index_dtype_for(largest: int) -> np.dtype:
    """int32 where every index fits, int64 otherwise (SciPy's own rule)."""
    return np.dtype(np.int32 if largest <= np.iinfo(np.int32).max else np.int64)


def matrix(w: np.ndarray, axes: np.ndarray, boundary: int, groups: int) -> scipy.sparse.csr_array:
    """W_conv as SciPy's CSR array; canonical by construction, so nothing is sorted or searched again."""
    data, indices, indptr = csr(w, axes, boundary, groups)
    shape = (w.shape[0] * prod(axes[:, OUT].tolist()), groups * w.shape[1] * prod(axes[:, SIZE].tolist()))
    W_conv = scipy.sparse.csr_array((data, indices, indptr), shape=shape, copy=False)
    W_conv.has_canonical_format = True
    return W_conv


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``Y_flat = W_conv @ X_flat + bias``, one column for each image. The constant must be 0: the map is linear."""
    W_conv = matrix(w, axes, boundary, groups_of(x, w))
    y[...] = (W_conv @ x.reshape(x.shape[0], W_conv.shape[1]).T).T.reshape(y.shape)
    y += bias.reshape(-1, *(1,) * (y.ndim - 2))


def grad_input(dY: np.ndarray, w: np.ndarray, axes: np.ndarray, boundary: int, dX: np.ndarray) -> None:
    """``dX_flat = W_conv.T @ dY_flat``."""
    W_conv = matrix(w, axes, boundary, groups_of(dX, w))
    dX[...] = (W_conv.T @ dY.reshape(dY.shape[0], W_conv.shape[0]).T).T.reshape(dX.shape)


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: ``W_conv``."""
    return nbytes(geometry, dtype)


def nbytes(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes of the three arrays of ``W_conv``, counted without making them."""
    g = geometry
    entries = g.K * (g.C // g.groups) * count_entries(g.axes, g.boundary_code)
    index_dtype = index_dtype_for(max(entries, *g.matrix_shape))
    return stored_bytes(entries, g.matrix_shape[0], dtype, index_dtype)


def stored_bytes(entries: int, rows: int, dtype: np.dtype, index_dtype: np.dtype) -> int:
    """Bytes of ``data``, ``indices`` and ``indptr``."""
    return entries * (dtype.itemsize + index_dtype.itemsize) + (rows + 1) * index_dtype.itemsize
