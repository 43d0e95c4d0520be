"""``W_conv``: the kernel laid over the input once for each output pixel, written straight into CSR arrays."""

from __future__ import annotations

from math import prod

import numpy as np
import scipy.sparse

from .. import _indexing, _memory
from .._indexing import CONSTANT, KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..geometry import ConvGeometry
from . import csr
from ._jit import Kernel, first_output, flat, helper, position, row_source, source, tasks_of
from .im2col import copy_run, groups_of, unturned

#: Most output pixels of one task; there are at least 64 tasks to share among threads.
CHUNK = 4096

#: How many entries are written at once where windows lie inside: the rows of several pixels if they are short.
TOGETHER = 512

Before = tuple[np.ndarray, np.ndarray]


@Kernel
def _tap_counts(team, axis, boundary, o0, counts):
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
def pixel_taps(p, axes, boundary, input_rows, pixels, taps, first):
    """What output pixel ``p`` reads: ascending input ``pixels``, and the kernel values that meet each.

    Entry ``e`` of the row is pixel ``pixels[e]`` and holds the sum of the taps ``taps[first[e]:first[e + 1]]``: one
    tap, unless the boundary folds several onto one pixel. Taps count in the order of the pixels they meet inside the
    input. ``input_rows`` keeps what the output row reads from one of its pixels to the next. Returns the number of
    entries.
    """
    last = axes.shape[0] - 1
    L_in, L_k, L_out = axes[last, SIZE], axes[last, KERNEL], axes[last, OUT]
    R_k = input_rows.size - 1
    turned = axes[last, STEP] < 0
    if input_rows[R_k] != p // L_out:
        input_rows[R_k] = p // L_out
        for T in range(R_k):
            input_rows[T] = row_source(R_k - 1 - T if turned else T, p // L_out, axes, boundary)
    n = 0
    for T in range(R_k):
        row = input_rows[T]
        for t in range(L_k if row >= 0 else 0):
            tap = L_k - 1 - t if turned else t
            i = position(p % L_out, tap, axes[last, START], axes[last, STRIDE], axes[last, STEP])
            i = source(i, L_in, boundary)
            if i >= 0:
                pixels[n], taps[n], first[n] = row * L_in + i, T * L_k + t, n
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
    """How many outputs from ``p`` on in its row have their window in the input, and where that of ``p`` begins."""
    corner, size, run = 0, 1, 0
    last = axes.shape[0] - 1
    for a in range(last, -1, -1):
        o = p % axes[a, OUT]
        p //= axes[a, OUT]
        near = position(o, 0, axes[a, START], axes[a, STRIDE], axes[a, STEP])
        far = position(o, axes[a, KERNEL] - 1, axes[a, START], axes[a, STRIDE], axes[a, STEP])
        if min(near, far) < 0 or max(near, far) >= axes[a, SIZE]:
            return 0, 0
        if a == last:
            run = min(first_output(max(near, far), axes[a, STRIDE], axes[a, SIZE]), axes[a, OUT] - o)
        corner += min(near, far) * size
        size *= axes[a, SIZE]
    return run, corner


@helper
def window(axes, channels, count, columns):
    """What the windows of neighbouring outputs inside the input read, counted from the first pixel of the first."""
    last = axes.shape[0] - 1
    for e in range(columns.size):
        size, t, column = 1, e % count, e // (channels * count) * axes[last, STRIDE]
        for a in range(last, -1, -1):
            column += t % axes[a, KERNEL] * abs(axes[a, STEP]) * size
            size *= axes[a, SIZE]
            t //= axes[a, KERNEL]
        columns[e] = column + e // count % channels * size


# Unsigned indices cannot wrap around, so these loops become vector code.


@helper
def write(columns, base, indices, at, n):
    """``indices[at + e] = base + columns[e]`` for ``e < n``."""
    at = np.uint64(at)
    for e in range(np.uint64(n)):
        indices[at + e] = base + columns[e]


@helper
def differ(columns, base, indices, at, n):
    """Whether any ``indices[at + e]`` is something else."""
    at, found = np.uint64(at), np.int64(0)
    for e in range(np.uint64(n)):
        found |= indices[at + e] ^ (base + columns[e])
    return found != 0


@Kernel
def _structure(team, K, Cg, count, axes, boundary, groups, rows, line, chunk, together, indices, indptr):
    # count is prod k; a task writes the rows of a chunk of output pixels for every kernel.
    P, Kg, inputs = (indptr.size - 1) // K, K // groups, 1
    for a in range(axes.shape[0]):
        inputs *= axes[a, SIZE]
    for task in tasks_of(team, (P + chunk - 1) // chunk):
        pixels, taps, first = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count + 1, np.int64)
        input_rows = np.full(count // axes[-1, KERNEL] + 1, -1, np.int64)
        columns = np.empty(together * Cg * count, indices.dtype)
        window(axes, Cg, count, columns)
        p, end = task * chunk, min((task + 1) * chunk, P)
        while p < end:
            run, corner = inside(p, axes)
            run = min(run, together, end - p)
            n = count if run > 0 else pixel_taps(p, axes, boundary, input_rows, pixels, taps, first)
            for k in range(K):
                at, base = Cg * (k * rows[-1] * line[-1] + begin(p, rows, line)), k // Kg * Cg * inputs
                if run > 0:
                    write(columns, base + corner, indices, at, run * Cg * count)
                else:
                    for c in range(Cg):
                        write(pixels, base + c * inputs, indices, at + c * n, n)
                for i in range(max(run, 1)):
                    indptr[k * P + p + i] = at + i * Cg * n
            p += max(run, 1)


@Kernel
def _differs(team, K, Cg, count, axes, boundary, groups, rows, line, chunk, together, indices, indptr, found):
    # The same loop, which reads where that writes.
    P, Kg, inputs = (indptr.size - 1) // K, K // groups, 1
    for a in range(axes.shape[0]):
        inputs *= axes[a, SIZE]
    for task in tasks_of(team, (P + chunk - 1) // chunk):
        pixels, taps, first = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count + 1, np.int64)
        input_rows = np.full(count // axes[-1, KERNEL] + 1, -1, np.int64)
        columns = np.empty(together * Cg * count, indices.dtype)
        window(axes, Cg, count, columns)
        p, end = task * chunk, min((task + 1) * chunk, P)
        while p < end:
            run, corner = inside(p, axes)
            run = min(run, together, end - p)
            n = count if run > 0 else pixel_taps(p, axes, boundary, input_rows, pixels, taps, first)
            for k in range(K):
                at, base = Cg * (k * rows[-1] * line[-1] + begin(p, rows, line)), k // Kg * Cg * inputs
                if run > 0:
                    found[task] |= differ(columns, base + corner, indices, at, run * Cg * count)
                else:
                    for c in range(Cg):
                        found[task] |= differ(pixels, base + c * inputs, indices, at + c * n, n)
                for i in range(max(run, 1)):
                    found[task] |= indptr[k * P + p + i] != at + i * Cg * n
            p += max(run, 1)


@Kernel
def _values(team, w, Cg, count, axes, boundary, rows, line, chunk, data):
    # The same loop over the values; new weights go into an old structure through here. w (K, together * Cg * count)
    # holds the rows of a run of outputs inside the input.
    K, P, together = w.shape[0], (rows.size - 1) * (line.size - 1), w.shape[1] // (Cg * count)
    for task in tasks_of(team, (P + chunk - 1) // chunk):
        pixels, taps, first = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count + 1, np.int64)
        input_rows = np.full(count // axes[-1, KERNEL] + 1, -1, np.int64)
        p, end = task * chunk, min((task + 1) * chunk, P)
        while p < end:
            run = min(inside(p, axes)[0], together, end - p)
            n = count if run > 0 else pixel_taps(p, axes, boundary, input_rows, pixels, taps, first)
            for k in range(K):
                at = Cg * (k * rows[-1] * line[-1] + begin(p, rows, line))
                if run > 0:
                    copy_run(w[k], 0, 1, data, at, 1, run * Cg * count)
                    continue
                for c in range(Cg):
                    weights, row = w[k, c * count : (c + 1) * count], data[at + c * n : at + (c + 1) * n]
                    if first[n] == n:
                        for e in range(n):
                            row[e] = weights[taps[e]]
                        continue
                    for e in range(n):
                        row[e] = weights[taps[first[e]]]
                        for m in range(first[e] + 1, first[e + 1]):
                            row[e] += weights[taps[m]]
            p += max(run, 1)


def structure(
    shape: tuple[int, ...], axes: np.ndarray, boundary: int, groups: int, before: Before, index_dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """``indices`` and ``indptr`` of W_conv for a kernel ``(K, C/G, *k)``; they depend on the geometry alone."""
    (K, Cg), count, P = shape[:2], prod(shape[2:]), prod(axes[:, OUT].tolist())
    rows, line = before
    indptr = np.empty(K * P + 1, dtype=index_dtype)
    indptr[-1] = K * Cg * rows[-1] * line[-1]
    indices = np.empty(int(indptr[-1]), dtype=index_dtype)
    _structure(
        K, Cg, count, axes, boundary, groups, flat(rows, -1), flat(line, -1), *share(P, Cg * count), indices, indptr,
        work=indices.size,
    )
    return indices, indptr


def has_structure(
    indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, ...], axes: np.ndarray, boundary: int, groups: int,
    before: Before,
) -> bool:
    """Whether these are what ``structure`` gives; nothing of that size is made to find out."""
    (K, Cg), count, P = shape[:2], prod(shape[2:]), prod(axes[:, OUT].tolist())
    rows, line = before
    entries = K * Cg * int(rows[-1] * line[-1])
    if indptr.shape != (K * P + 1,) or indices.shape != (entries,) or indptr[-1] != entries:
        return False
    chunk, together = share(P, Cg * count)
    found = np.zeros(-(-P // chunk), dtype=np.bool_)
    _differs(
        K, Cg, count, axes, boundary, groups, flat(rows, -1), flat(line, -1), chunk, together, flat(indices, -1),
        flat(indptr, -1), found, work=indices.size,
    )
    return not found.any()


def values(w: np.ndarray, axes: np.ndarray, boundary: int, before: Before, data: np.ndarray) -> None:
    """Write the weights of ``w (K, C/G, *k)`` into the ``data`` of W_conv."""
    (K, Cg), count, P = w.shape[:2], prod(w.shape[2:]), prod(axes[:, OUT].tolist())
    rows, line = before
    chunk, together = share(P, Cg * count)
    weights = np.tile(unturned(w, axes).reshape(K, Cg * count), together)
    _values(
        flat(weights, *weights.shape), Cg, count, axes, boundary, flat(rows, -1), flat(line, -1), chunk, data,
        work=data.size,
    )


def share(pixels: int, entries: int) -> tuple[int, int]:
    """How many output pixels a task takes, and the rows of how many, of so many entries, are written together."""
    chunk = max(1, min(CHUNK, pixels // 64))
    return chunk, max(1, min(TOGETHER // max(entries, 1), chunk // 8))


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
    indices, indptr = structure(w.shape, axes, boundary, groups, before, index_dtype)
    data = np.empty(indices.size, dtype=w.dtype)
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
