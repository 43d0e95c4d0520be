"""``W_conv``: the kernel laid over the input once for each output pixel, written straight into CSR arrays."""

from __future__ import annotations

from math import gcd, prod
from typing import Any

import numpy as np
import scipy.sparse

from .. import _indexing, _memory
from .._indexing import CONSTANT, EDGE, KERNEL, OUT, REFLECT, SIZE, START, STEP, STRIDE, WRAP
from ..geometry import ConvGeometry
from . import csr
from ._jit import Kernel, first_output, flat, helper, position, row_source, source, tasks_of
from .im2col import groups_of, unturned

#: Most output pixels of one task; there are at least 64 tasks to share among threads …
CHUNK = 4096
#: … unless they would have fewer pixels than this.
SHORTEST = 16

#: How many entries are repeated at once: as many as the nearest cache keeps.
TOGETHER = 2048

#: Bytes of a line of the cache, at which arrays begin.
CACHE_LINE = 64

Counts = list[tuple[np.ndarray, int, int, np.ndarray]]
Before = tuple[np.ndarray, np.ndarray]


@helper
def sort_taps(kernel, reads, taps, pixels, first):
    """Taps of a kernel of so many, in the order of what they read, ``reads[t]``; those that read nothing (-1) left out.

    Entry ``e`` is ``pixels[e]``, which ``taps[first[e]:first[e + 1]]`` read: one tap, unless the boundary folds several
    onto one pixel; these stay in their order. Returns how many entries there are.
    """
    n, gap = 0, 0
    for t in range(kernel):
        if reads[t] >= 0:
            if n > 0 and reads[taps[n - 1]] > reads[t]:
                gap = 1
            taps[n] = t
            n += 1
    while 0 < gap < n // 3:
        gap = 3 * gap + 1
    while gap > 0:  # Shell's sort, where a boundary folded them; numpy's sorts would compile for long
        for m in range(gap, n):
            t, at = taps[m], m
            while at >= gap and (reads[taps[at - gap]], taps[at - gap]) > (reads[t], t):
                taps[at] = taps[at - gap]
                at -= gap
            taps[at] = t
        gap //= 3
    entries = 0
    for m in range(n):
        if entries == 0 or pixels[entries - 1] != reads[taps[m]]:
            pixels[entries], first[entries] = reads[taps[m]], m
            entries += 1
    first[entries] = n
    return entries


@Kernel
def _tap_counts(team, axis, boundary, o0, counts):
    # counts[j]: how many different pixels of one axis output o0 + j reads.
    kernel, apart = axis[KERNEL], boundary == CONSTANT  # then every tap reads a pixel of its own, or none
    reads, taps = np.empty(kernel, np.int64), np.empty(kernel, np.int64)
    pixels, first = np.empty(kernel, np.int64), np.empty(kernel + 1, np.int64)
    distance, back = abs(axis[STEP]), (kernel - 1) * min(axis[STEP], 0)
    for j in range(counts.size):
        lowest = position(o0 + j, 0, axis[START], axis[STRIDE], axis[STEP]) + back
        missed, within = max(0, -(lowest // distance)), (axis[SIZE] - 1 - lowest) // distance + 1
        counts[j] = max(0, min(kernel, within) - missed)
        for t in range(0 if apart else kernel):
            reads[t] = source(position(o0 + j, t, axis[START], axis[STRIDE], axis[STEP]), axis[SIZE], boundary)
        if not apart:
            counts[j] = sort_taps(kernel, reads, taps, pixels, first)


@helper
def inside(axis: np.ndarray) -> tuple[int, int]:
    """The outputs ``a … b - 1`` along one axis whose taps all lie in the input."""
    reach, out = (axis[KERNEL] - 1) * axis[STEP], int(axis[OUT])
    lowest, highest = axis[START] + min(0, reach), axis[START] + max(0, reach)
    a = min(first_output(lowest, axis[STRIDE], 0), out)
    return int(a), int(max(min(first_output(highest, axis[STRIDE], axis[SIZE]), out), a))


def counts_of(axes: np.ndarray, boundary: int) -> Counts:
    """For each axis: what the outputs at either edge read, and how many lie between them, which read every tap."""
    instead = "use algorithm='implicit', or less padding"
    _memory.require(edges(axes), "what is counted to know the size of W_conv", instead)
    counts = []
    for axis in axes:
        a, b = inside(axis)
        before, after = np.empty(a, dtype=np.int64), np.empty(int(axis[OUT]) - b, dtype=np.int64)
        _tap_counts(axis, boundary, 0, before, work=0)
        _tap_counts(axis, boundary, b, after, work=0)
        counts.append((before, b - a, int(axis[KERNEL]), after))
    return counts


def edges(axes: np.ndarray) -> int:
    """Bytes of the arrays in ``counts_of``."""
    return 8 * sum(int(axis[OUT]) - b + a for axis, (a, b) in zip(axes, map(inside, axes), strict=True))


def count_entries(counts: Counts) -> int:
    """Entries of W_conv for one channel pair: a product over the axes, cheap at any size."""
    return prod(int(before.sum()) + between * kernel + int(after.sum()) for before, between, kernel, after in counts)


def entries_along(axis: tuple[int, ...], boundary: int) -> int:
    """Entries along one axis, from its sizes alone; a boundary that folds is followed for a period at most."""
    n, k, out, start, stride, step = axis
    if boundary == CONSTANT:
        return pairs_within(axis, 0, n)
    if n == 1:
        return out
    if boundary == WRAP:  # the same for every output: taps meet again where they are n apart
        return out * min(k, n // gcd(n, step))
    if boundary == EDGE:  # what lies strictly inside, and either end where something reaches it
        lowest, highest = sorted((start, start + (k - 1) * step))
        reach_begin = min(_indexing.first_output(lowest, stride, 1), out)
        reach_end = out - min(_indexing.first_output(highest, stride, n - 1), out)
        return pairs_within(axis, 1, n - 1) + reach_begin + reach_end
    table = np.array(axis, np.int64)
    a, b = inside(table)
    period = 2 * n - 2 if boundary == REFLECT else 2 * n
    repeat = period // gcd(period, stride)
    entries = (b - a) * k
    for first, count in ((0, a), (b, out - b)):
        distinct = min(count, repeat)
        _memory.require(8 * distinct, "what outputs at the edges read", "use algorithm='implicit', or less padding")
        counts = np.empty(distinct, np.int64)
        _tap_counts(table, boundary, first, counts, work=0)
        entries += count // repeat * int(counts.sum()) if count >= repeat else 0
        entries += int(counts[: count % repeat].sum())
    return entries


def pairs_within(axis: tuple[int, ...], low: int, high: int) -> int:
    """How many pairs of an output and a tap meet a position from ``low`` to ``high - 1``."""
    _, k, out, start, stride, step = axis
    if step < 0:
        start, step = start + (k - 1) * step, -step

    def below(bound: int) -> int:
        distance = bound - start  # of the first output and tap; each further tap has step less of it
        all_outputs = min(max(-(-(distance - (out - 1) * stride) // step), 0), k)
        any_output = min(max(-(-distance // step), 0), k)
        least = distance - (any_output - 1) * step
        return all_outputs * out + floor_sum(any_output - all_outputs, stride, step, least + stride - 1)

    return max(below(high) - below(low), 0)


def floor_sum(n: int, m: int, a: int, b: int) -> int:
    """The sum of ``(a * i + b) // m`` over ``i < n``, by the steps of Euclid's algorithm; no number is negative."""
    total = 0
    while n > 0:
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        if a == 0:
            break
        last = a * n + b
        n, b, m, a = last // m, last % m, a, m
    return total


def entries_before(counts: Counts) -> Before:
    """Entries of one channel pair along the rows of the output and along a row: what lies before each, and the total.

    The entries of a pixel are a product over the axes, so these two say where each pixel's begin (``begin``).
    """
    rows = line = np.ones(1, dtype=np.int64)
    for before, between, kernel, after in counts:
        rows = np.multiply.outer(rows, line).reshape(-1)
        line = np.concatenate([before, np.full(between, kernel), after])
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
def scratch(Cg, count):
    """Room for ``next_rows``: its results, what the taps of an axis read and in which order, and which line it was.

    The taps of an axis are there even where no channel is.
    """
    room = np.empty((13, max(Cg, 1) * count + 2), np.int64)
    room[12, 0] = -1
    return room


def scratch_nbytes(Cg: int, count: int) -> int:
    """Bytes of it, and of what says what taps read."""
    return 8 * 13 * (max(Cg, 1) * count + 2)


@helper
def next_rows(p, end, Cg, count, inputs, axes, boundary, a, b, room):
    """The output pixels from ``p`` on whose rows in W_conv are each the one before, moved on by a stride.

    Entry ``e`` of the row of ``p`` stands in the column ``columns[e]``, counted from the first of its group, and holds
    weight ``places[e]`` of its kernel. Where the boundary folds several taps onto a pixel, the weight ``place`` joins
    entry ``e`` for every ``e, place`` of ``zip(folded, joining)``. These are the first rows of ``room``. Returns the
    numbers of pixels, of entries and of folded taps.
    """
    columns, places, folded, joining, line = room[0], room[1], room[2], room[3], room[12]
    row_reads, row_taps, input_rows, row_first = room[4], room[5], room[6], room[7]
    reads, taps, pixels, first = room[8], room[9], room[10], room[11]
    last = axes.shape[0] - 1
    L_in, L_k, L_out = axes[last, SIZE], axes[last, KERNEL], axes[last, OUT]
    R_k, O, o, turned = count // L_k, p // L_out, p % L_out, axes[last, STEP] < 0
    if line[0] != O:  # the pixels of a line read the same rows
        for T in range(R_k):
            row_reads[T] = row_source(R_k - 1 - T if turned else T, O, axes, boundary)
        line[0], line[1] = O, sort_taps(R_k, row_reads, row_taps, input_rows, row_first)
    for t in range(L_k):
        tap = L_k - 1 - t if turned else t
        i = position(o, tap, axes[last, START], axes[last, STRIDE], axes[last, STEP])
        reads[t] = source(i, L_in, boundary)
    m, n = line[1], sort_taps(L_k, reads, taps, pixels, first)
    alone = row_first[m] == m and first[n] == n
    e = joined = 0
    for c in range(Cg):
        for i in range(m):
            base, place = c * inputs + input_rows[i] * L_in, (c * R_k + row_taps[i]) * L_k
            for j in range(n):
                columns[e + j], places[e + j] = base + pixels[j], place + taps[j]
            for j in range(0 if alone else n):
                lead = row_first[i], first[j]
                for u in range(lead[0], row_first[i + 1]):
                    for v in range(lead[1], first[j + 1]):
                        place = (c * R_k + row_taps[u]) * L_k + taps[v]
                        if (u, v) == lead:
                            places[e + j] = place
                        else:
                            folded[joined], joining[joined] = e + j, place
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
def take(source, places, target, at, n):
    """``target[at + e] = source[places[e]]`` for ``e < n``."""
    at = np.uint64(at)
    for e in range(np.uint64(n)):
        target[at + e] = source[np.uint64(places[e])]


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


@Kernel
def _structure(team, K, Kg, Cg, count, inputs, axes, boundary, a, b, rows, line, chunk, indices, indptr):
    # A task owns a chunk of output pixels; count is prod k, inputs prod in; outputs a … b - 1 of a line read all taps.
    # Their rows of the first kernel are written, and moved copies for the others.
    P, every, room = (indptr.size - 1) // K, Cg * rows[-1] * line[-1], scratch(Cg, count)
    for task in tasks_of(team, (P + chunk - 1) // chunk):
        p0, end = task * chunk, min((task + 1) * chunk, P)
        at0 = Cg * begin(p0, rows, line)
        p, at = p0, at0
        while p < end:
            run, n, _ = next_rows(p, end, Cg, count, inputs, axes, boundary, a, b, room)
            write(room[0], 0, indices, at, n)
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
            copy_moved(indptr, p0, p0 + k * P, end - p0, k * every)


@Kernel
def _has_structure(team, K, Kg, Cg, count, inputs, axes, boundary, a, b, rows, line, chunk, indices, indptr, same):
    # Whether ``_structure`` would change nothing, task by task.
    P, every, room = (indptr.size - 1) // K, Cg * rows[-1] * line[-1], scratch(Cg, count)
    for task in tasks_of(team, (P + chunk - 1) // chunk):
        p0, end = task * chunk, min((task + 1) * chunk, P)
        at0, found = Cg * begin(p0, rows, line), True
        p, at = p0, at0
        while p < end:
            run, n, _ = next_rows(p, end, Cg, count, inputs, axes, boundary, a, b, room)
            for e in range(n):
                found &= indices[at + e] == room[0, e]
            found &= is_moved(indices, at, at + n, (run - 1) * n, axes[-1, STRIDE])
            for i in range(run):
                found &= indptr[p + i] == at + i * n
            p, at = p + run, at + run * n
        for k in range(1, K):
            found &= is_moved(indices, at0, at0 + k * every, at - at0, k // Kg * Cg * inputs)
            found &= is_moved(indptr, p0, p0 + k * P, end - p0, k * every)
        same[task] = found


@Kernel
def _values(team, w, Cg, count, inputs, axes, boundary, a, b, rows, line, chunk, data):
    # w (K, C/G * prod k); count is prod k
    P, every, room = (rows.size - 1) * (line.size - 1), Cg * rows[-1] * line[-1], scratch(Cg, count)
    for task in tasks_of(team, (P + chunk - 1) // chunk):
        p, end = task * chunk, min((task + 1) * chunk, P)
        before = Cg * begin(p, rows, line)
        while p < end:
            run, n, joined = next_rows(p, end, Cg, count, inputs, axes, boundary, a, b, room)
            for k in range(w.shape[0]):
                at = k * every + before
                take(w[k], room[1], data, at, n)
                for j in range(joined):
                    data[at + room[2, j]] += w[k, room[3, j]]
                done, most = 1, max(1, TOGETHER // max(n, 1))
                while done < run:
                    more = min(done, run - done, most)
                    copy(data, at + (done - more) * n, at + done * n, more * n)
                    done += more
            p, before = p + run, before + run * n


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
    (K, Cg), count = w.shape[:2], prod(w.shape[2:])
    rows, line = before
    _values(
        flat(np.ascontiguousarray(unturned(w, axes)), K, Cg * count), Cg, count, prod(axes[:, SIZE].tolist()), axes,
        boundary, *inside(axes[-1]), flat(rows, -1), flat(line, -1), share(axes), data, work=data.size,
    )


def share(axes: np.ndarray) -> int:
    """How many output pixels a task takes: whole lines if these are short."""
    return chunk_of(prod(axes[:, OUT].tolist()), int(axes[-1, OUT]))


@helper
def chunk_of(P: int, L_out: int) -> int:
    """The same for ``P`` output pixels in lines of ``L_out``."""
    chunk = max(SHORTEST, min(CHUNK, P // 64))
    return chunk if L_out > CHUNK // 64 else max(chunk - chunk % max(L_out, 1), L_out, 1)


def triple(
    w: np.ndarray, axes: np.ndarray, boundary: int, groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``data, indices, indptr`` of W_conv ``(K * prod out, C * prod in)``."""
    K, Cg = w.shape[:2]
    counts = counts_of(axes, boundary)
    entries, P = K * Cg * count_entries(counts), prod(axes[:, OUT].tolist())
    rows, columns = K * P, groups * Cg * prod(axes[:, SIZE].tolist())
    index_dtype = index_dtype_for(max(entries, rows, columns))
    before = entries_before(counts)
    data, indices, indptr = one_block((entries, w.dtype), (entries, index_dtype), (rows + 1, index_dtype))
    structure(w.shape, axes, boundary, groups, before, indices, indptr)
    values(w, axes, boundary, before, data)
    return data, indices, indptr


def one_block(*arrays: tuple[int, np.dtype]) -> list[np.ndarray]:
    """New arrays of these sizes and dtypes, one behind the other in memory.

    Fresh memory costs more than what is written there: in one block the system gives it in larger pages, and keeps it
    for the next matrix.
    """
    starts = np.cumsum([0] + [-(-size * dtype.itemsize // CACHE_LINE) * CACHE_LINE for size, dtype in arrays])
    block = np.empty(int(starts[-1]) // 16, np.complex128)  # SciPy copies from a base with more than twice the items
    return [np.frombuffer(block, dtype, size, start) for (size, dtype), start in zip(arrays, starts, strict=False)]


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
    entries = g.K * (g.C // g.groups) * prod(entries_along(axis, g.boundary_code) for axis in g.axis_rows)
    index_dtype = index_dtype_for(max(entries, *g.matrix_shape))
    return stored_bytes(entries, g.matrix_shape[0], dtype, index_dtype)


def stored_bytes(entries: int, rows: int, dtype: np.dtype, index_dtype: np.dtype) -> int:
    """Bytes of ``data``, ``indices`` and ``indptr``."""
    return entries * (dtype.itemsize + index_dtype.itemsize) + (rows + 1) * index_dtype.itemsize
