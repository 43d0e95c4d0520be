"""``W_conv``: the kernel laid over the input once for each output pixel, written straight into CSR arrays."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import scipy.sparse
from numba import prange

from .. import _indexing, _memory
from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..geometry import ConvGeometry
from . import csr
from ._jit import Kernel, flat, helper, position, row_source, source
from .im2col import groups_of, unturned
from .simd import borrowed

#: Most output pixels of one task; there are at least 64 tasks to share among threads …
CHUNK = 4096
#: … unless they would have fewer pixels than this.
SHORTEST = 16

#: How many entries are repeated at once: as many as the nearest cache keeps.
TOGETHER = 2048

Before = tuple[np.ndarray, np.ndarray]


@helper
def sort_taps(reads, taps, first):
    """Taps in the order of the pixels that they read, ``reads[t]``; those that read none (-1) are left out.

    ``taps[first[e]:first[e + 1]]`` read the pixel of entry ``e``: one tap, unless the boundary folds several onto one
    pixel; these stay in their order. Returns how many entries there are.
    """
    n = 0
    for t in range(reads.size):
        if reads[t] >= 0:
            taps[n] = t
            n += 1
    gap = 1
    while gap < n // 3:
        gap = 3 * gap + 1
    while gap > 0:  # Shell's sort: taps come nearly in order, and numpy's sorts would compile for long
        for m in range(gap, n):
            t, at = taps[m], m
            while at >= gap and (reads[taps[at - gap]], taps[at - gap]) > (reads[t], t):
                taps[at] = taps[at - gap]
                at -= gap
            taps[at] = t
        gap //= 3
    entries = 0
    for m in range(n):
        if m == 0 or reads[taps[m]] != reads[taps[m - 1]]:
            first[entries] = m
            entries += 1
    first[entries] = n
    return entries


@Kernel
def _tap_counts(axis, boundary, o0, counts):
    # counts[j]: how many different pixels of one axis output o0 + j reads.
    kernel = axis[KERNEL]
    reads, taps, first = np.empty(kernel, np.int64), np.empty(kernel, np.int64), np.empty(kernel + 1, np.int64)
    for j in range(counts.size):
        for t in range(kernel):
            reads[t] = source(position(o0 + j, t, axis[START], axis[STRIDE], axis[STEP]), axis[SIZE], boundary)
        counts[j] = sort_taps(reads, taps, first)


def inside(axis: np.ndarray) -> tuple[int, int]:
    """The outputs ``a … b - 1`` along one axis whose taps all lie in the input."""
    size, kernel, out, start, stride, step = axis.tolist()
    lowest, highest = start + min(0, (kernel - 1) * step), start + max(0, (kernel - 1) * step)
    a = min(_indexing.first_output(lowest, stride, 0), out)
    return a, max(min(_indexing.first_output(highest, stride, size), out), a)


def edge_counts(axis: np.ndarray, boundary: int) -> tuple[np.ndarray, int, np.ndarray]:
    """Along one axis: what the outputs at either edge read, and how many lie between them, which read every tap."""
    a, b = inside(axis)
    before, after = np.empty(a, dtype=np.int64), np.empty(int(axis[OUT]) - b, dtype=np.int64)
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


def entries_before(axes: np.ndarray, boundary: int) -> Before:
    """Entries of one channel pair along the rows of the output and along a row: what lies before each, and the total.

    The entries of a pixel are a product over the axes, so these two say where each pixel's begin (``begin``).
    """
    rows = line = np.ones(1, dtype=np.int64)
    for axis in axes:
        before, inside, after = edge_counts(axis, boundary)
        rows = np.multiply.outer(rows, line).reshape(-1)
        line = np.concatenate([before, np.full(inside, axis[KERNEL]), after])
    return _running_sum(rows), _running_sum(line)


def _running_sum(counts: np.ndarray) -> np.ndarray:
    total = np.zeros(counts.size + 1, dtype=np.int64)
    np.cumsum(counts, out=total[1:])
    return total


@helper
def begin(p, rows, line):
    """Where the entries of output pixel ``p`` begin, counted for one channel pair."""
    O, o = p // (line.size - 1), p % (line.size - 1)
    return rows[O] * line[-1] + (rows[O + 1] - rows[O]) * line[o]


@helper
def empty_rows(axes, Cg, count):
    """What ``next_rows`` fills: three arrays that it describes, and those that it needs to find them."""
    L_k = axes[-1, KERNEL]
    R_k = count // L_k
    return (
        np.empty(Cg * count, np.int64), np.empty(Cg * count, np.int64), np.empty((Cg * count, 2), np.int64),
        np.full(2, -1), np.empty(R_k, np.int64), np.empty(R_k, np.int64), np.empty(R_k + 1, np.int64),
        np.empty(L_k, np.int64), np.empty(L_k, np.int64), np.empty(L_k + 1, np.int64),
    )


@helper
def next_rows(p, end, Cg, inputs, axes, boundary, a, b, found):
    """The output pixels from ``p`` on whose rows in W_conv are each the one before, moved on by a stride.

    Entry ``e`` of the row of ``p`` stands in the column ``columns[e]``, counted from the first of its group, and holds
    weight ``places[e]`` of its kernel. Where the boundary folds several taps onto a pixel, the weight ``place`` joins
    entry ``e`` for every ``e, place`` in ``folded``. Returns the numbers of pixels, of entries and of folded taps.
    """
    columns, places, folded, line, row_reads, row_taps, row_first, reads, taps, first = found
    last = axes.shape[0] - 1
    R_k, L_k, L_in, L_out = row_reads.size, reads.size, axes[last, SIZE], axes[last, OUT]
    O, o, turned = p // L_out, p % L_out, axes[last, STEP] < 0
    if line[0] != O:  # the pixels of a line read the same rows
        for T in range(R_k):
            row_reads[T] = row_source(R_k - 1 - T if turned else T, O, axes, boundary)
        line[0], line[1] = O, sort_taps(row_reads, row_taps, row_first)
    for t in range(L_k):
        tap = L_k - 1 - t if turned else t
        i = position(o, tap, axes[last, START], axes[last, STRIDE], axes[last, STEP])
        reads[t] = source(i, L_in, boundary)
    m, n = line[1], sort_taps(reads, taps, first)
    several = row_first[m] > m or first[n] > n
    e = joined = 0
    for c in range(Cg):
        for i in range(m):
            T = row_taps[row_first[i]]
            base, place = c * inputs + row_reads[T] * L_in, (c * R_k + T) * L_k
            for j in range(n):
                columns[e + j], places[e + j] = base + reads[taps[first[j]]], place + taps[first[j]]
            for j in range(n if several else 0):
                for u in range(row_first[i], row_first[i + 1]):
                    for v in range(first[j], first[j + 1]):
                        if u > row_first[i] or v > first[j]:
                            folded[joined, 0], folded[joined, 1] = e + j, (c * R_k + row_taps[u]) * L_k + taps[v]
                            joined += 1
            e += n
    return min(b - o, end - p) if a <= o < b else 1, e, joined


# Unsigned indices cannot wrap around, so these loops become vector code.


@helper
def write(source, move, target, at, n):
    """``target[at + e] = source[e] + move`` for ``e < n``."""
    at = np.uint64(at)
    for e in range(np.uint64(n)):
        target[at + e] = source[e] + move


@helper
def copy(entries, s, t, n):
    """``entries[t + e] = entries[s + e]`` for ``e < n``."""
    s, t = np.uint64(s), np.uint64(t)
    for e in range(np.uint64(n)):
        entries[t + e] = entries[s + e]


@helper
def copy_moved(entries, s, t, n, move):
    """``entries[t + e] = entries[s + e] + move`` for ``e < n``."""
    s, t = np.uint64(s), np.uint64(t)
    for e in range(np.uint64(n)):
        entries[t + e] = entries[s + e] + move


@helper
def is_moved(entries, s, t, n, move):
    """Whether ``copy_moved`` would change nothing."""
    s, t, wrong = np.uint64(s), np.uint64(t), np.int64(0)
    for e in range(np.uint64(n)):
        wrong |= entries[t + e] - entries[s + e] - move
    return wrong == 0


@helper
def write_structure(p, end, K, Kg, Cg, inputs, axes, boundary, a, b, rows, line, found, indices, indptr):
    """The rows of output pixels ``p … end - 1``: those of the first kernel, and moved copies for the others."""
    P, every = (indptr.size - 1) // K, Cg * rows[-1] * line[-1]
    p0, at = p, Cg * begin(p, rows, line)
    at0 = at
    while p < end:
        run, n, _ = next_rows(p, end, Cg, inputs, axes, boundary, a, b, found)
        write(found[0], 0, indices, at, n)
        done, most = 1, max(1, TOGETHER // max(n, 1))
        while done < run:
            more = min(done, run - done, most)
            copy_moved(indices, at + (done - more) * n, at + done * n, more * n, more * axes[-1, STRIDE])
            done += more
        for i in range(run):
            indptr[p + i] = at + i * n
        p, at = p + run, at + run * n
    for k in range(1, K):
        copy_moved(indices, at0, at0 + k * every, at - at0, k // Kg * Cg * inputs)
        copy_moved(indptr, p0, p0 + k * P, p - p0, k * every)


@helper
def has_rows(p, end, K, Kg, Cg, inputs, axes, boundary, a, b, rows, line, found, indices, indptr):
    """Whether ``write_structure`` would change nothing."""
    P, every = (indptr.size - 1) // K, Cg * rows[-1] * line[-1]
    p0, at, same = p, Cg * begin(p, rows, line), True
    at0 = at
    while p < end:
        run, n, _ = next_rows(p, end, Cg, inputs, axes, boundary, a, b, found)
        for e in range(n):
            same &= indices[at + e] == found[0][e]
        same &= is_moved(indices, at, at + n, (run - 1) * n, axes[-1, STRIDE])
        for i in range(run):
            same &= indptr[p + i] == at + i * n
        p, at = p + run, at + run * n
    for k in range(1, K):
        same &= is_moved(indices, at0, at0 + k * every, at - at0, k // Kg * Cg * inputs)
        same &= is_moved(indptr, p0, p0 + k * P, p - p0, k * every)
    return same


@helper
def write_values(p, end, w, inputs, axes, boundary, a, b, rows, line, found, data):
    """The values of output pixels ``p … end - 1`` for every kernel of ``w (K, C/G * prod k)``."""
    Cg = w.shape[1] // (found[4].size * found[7].size)
    places, folded, every = found[1], found[2], Cg * rows[-1] * line[-1]
    before = Cg * begin(p, rows, line)
    while p < end:
        run, n, joined = next_rows(p, end, Cg, inputs, axes, boundary, a, b, found)
        for k in range(w.shape[0]):
            at = k * every + before
            for e in range(n):
                data[at + e] = w[k, places[e]]
            for j in range(joined):
                data[at + folded[j, 0]] += w[k, folded[j, 1]]
            done, most = 1, max(1, TOGETHER // max(n, 1))
            while done < run:
                more = min(done, run - done, most)
                copy(data, at + (done - more) * n, at + done * n, more * n)
                done += more
        p, before = p + run, before + run * n


@Kernel
def _structure(K, Kg, Cg, count, inputs, axes, boundary, a, b, rows, line, chunk, indices, indptr):
    # A task owns a chunk of output pixels; count is prod k, inputs prod in; outputs a … b - 1 of a line read all taps.
    P = (indptr.size - 1) // K
    for task in prange((P + chunk - 1) // chunk):
        write_structure(
            task * chunk, min((task + 1) * chunk, P), K, Kg, Cg, inputs, borrowed(axes), boundary, a, b,
            borrowed(rows), borrowed(line), empty_rows(axes, Cg, count), borrowed(indices), borrowed(indptr),
        )


@Kernel
def _has_structure(K, Kg, Cg, count, inputs, axes, boundary, a, b, rows, line, chunk, indices, indptr, same):
    P = (indptr.size - 1) // K
    for task in prange((P + chunk - 1) // chunk):
        same[task] = has_rows(
            task * chunk, min((task + 1) * chunk, P), K, Kg, Cg, inputs, borrowed(axes), boundary, a, b,
            borrowed(rows), borrowed(line), empty_rows(axes, Cg, count), borrowed(indices), borrowed(indptr),
        )


@Kernel
def _values(w, Cg, inputs, axes, boundary, a, b, rows, line, chunk, data):
    P = (rows.size - 1) * (line.size - 1)
    for task in prange((P + chunk - 1) // chunk):
        write_values(
            task * chunk, min((task + 1) * chunk, P), borrowed(w), inputs, borrowed(axes), boundary, a, b,
            borrowed(rows), borrowed(line), empty_rows(axes, Cg, w.shape[1] // Cg), borrowed(data),
        )


def structure(
    shape: tuple[int, ...], axes: np.ndarray, boundary: int, groups: int, before: Before, indices: np.ndarray,
    indptr: np.ndarray,
) -> None:
    """Write ``indices`` and ``indptr`` of W_conv for a kernel ``(K, C/G, *k)``; they follow from the geometry alone."""
    indptr[-1] = indices.size
    _structure(*_walk(shape, axes, boundary, groups, before), indices, indptr, work=indices.size)


def has_structure(
    indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, ...], axes: np.ndarray, boundary: int, groups: int,
    before: Before,
) -> bool:
    """Whether these are what ``structure`` writes; nothing of that size is made to find out."""
    rows, line = before
    P, entries = prod(axes[:, OUT].tolist()), shape[0] * shape[1] * int(rows[-1] * line[-1])
    if indptr.shape != (shape[0] * P + 1,) or indices.shape != (entries,) or indptr[-1] != entries:
        return False
    walk = _walk(shape, axes, boundary, groups, before)
    same = np.ones(-(-P // walk[-1]), dtype=np.bool_)
    _has_structure(*walk, flat(indices, -1), flat(indptr, -1), same, work=indices.size)
    return bool(same.all())


def _walk(shape: tuple[int, ...], axes: np.ndarray, boundary: int, groups: int, before: Before) -> tuple[Any, ...]:
    (K, Cg), count, inputs = shape[:2], prod(shape[2:]), prod(axes[:, SIZE].tolist())
    rows, line = before
    return (
        K, K // groups, Cg, count, inputs, axes, boundary, *inside(axes[-1]), flat(rows, -1), flat(line, -1),
        share(axes),
    )


def values(w: np.ndarray, axes: np.ndarray, boundary: int, before: Before, data: np.ndarray) -> None:
    """Write the weights of ``w (K, C/G, *k)`` into the ``data`` of W_conv."""
    K, Cg = w.shape[:2]
    rows, line = before
    _values(
        flat(np.ascontiguousarray(unturned(w, axes)), K, Cg * prod(w.shape[2:])), Cg, prod(axes[:, SIZE].tolist()),
        axes, boundary, *inside(axes[-1]), flat(rows, -1), flat(line, -1), share(axes), data, work=data.size,
    )


def share(axes: np.ndarray) -> int:
    """How many output pixels a task takes: whole lines if these are short."""
    P, L_out = prod(axes[:, OUT].tolist()), int(axes[-1, OUT])
    chunk = max(SHORTEST, min(CHUNK, P // 64))
    return chunk if L_out > CHUNK // 64 else max(chunk - chunk % max(L_out, 1), L_out, 1)


def triple(
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
    before = entries_before(axes, boundary)
    data, indices, indptr = np.empty(entries, w.dtype), np.empty(entries, index_dtype), np.empty(rows + 1, index_dtype)
    structure(w.shape, axes, boundary, groups, before, indices, indptr)
    values(w, axes, boundary, before, data)
    return data, indices, indptr


def index_dtype_for(largest: int) -> np.dtype:
    """int32 where every index fits, int64 otherwise (SciPy's own rule)."""
    return np.dtype(np.int32 if largest <= np.iinfo(np.int32).max else np.int64)


def matrix(w: np.ndarray, axes: np.ndarray, boundary: int, groups: int) -> scipy.sparse.csr_array:
    """W_conv as SciPy's CSR array; canonical by construction, so nothing is sorted or searched again."""
    data, indices, indptr = triple(w, axes, boundary, groups)
    shape = (w.shape[0] * prod(axes[:, OUT].tolist()), groups * w.shape[1] * prod(axes[:, SIZE].tolist()))
    W_conv = scipy.sparse.csr_array((data, indices, indptr), shape=shape, copy=False)
    W_conv.has_canonical_format = True
    return W_conv


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``Y_flat = W_conv @ X_flat + bias``, one column for each image. The constant must be 0: the map is linear."""
    N = x.shape[0]
    csr.matvec(*triple(w, axes, boundary, groups_of(x, w)), x.reshape(N, -1), y.reshape(N, -1))
    y += bias.reshape(-1, *(1,) * (y.ndim - 2))


def grad_input(dY: np.ndarray, w: np.ndarray, axes: np.ndarray, boundary: int, dX: np.ndarray) -> None:
    """``dX_flat = W_conv.T @ dY_flat``."""
    N = dY.shape[0]
    csr.rmatvec(*triple(w, axes, boundary, groups_of(dX, w)), dY.reshape(N, -1), dX.reshape(N, -1))


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
