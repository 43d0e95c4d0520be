"""Products with a CSR matrix and with its transpose, from the triple ``data, indices, indptr``."""

from __future__ import annotations

import numpy as np

from ._jit import THREADS, cuda, kernel
from .arrays import DeviceArray, blocks_for

#: Threads that share a row.
LANES = 8

#: Items of a running sum that a block takes.
CHUNK = 2 * THREADS


@kernel()
def _check(indices, indptr, rows, columns, n, found):
    # found[0] becomes 1 where this is no matrix with so many rows and columns.
    i = cuda.grid(1)
    while i < max(n, rows + 1):
        if i < rows and not 0 <= indptr[i] <= indptr[i + 1]:
            found[0] = 1
        if i == rows and not 0 <= indptr[i] <= n:
            found[0] = 1
        if i < n and indptr[0] <= i < indptr[rows] and not 0 <= indices[i] < columns:
            found[0] = 1
        i += cuda.gridsize(1)


@kernel(THREADS)
def _matvec(data, indices, indptr, x, rows, y):
    # A few threads share a row; their sums are added up in a tree, always the same.
    thread, lane = cuda.threadIdx.x, cuda.threadIdx.x % LANES
    sums = cuda.shared.array(THREADS, x.dtype)
    row = cuda.blockIdx.x * (THREADS // LANES) + thread // LANES
    total = x.dtype.type(0)
    if row < rows:
        for e in range(indptr[row] + lane, indptr[row + 1], LANES):
            total += x.dtype.type(data[e]) * x[indices[e]]
    sums[thread] = total
    cuda.syncthreads()
    half = LANES // 2
    while half > 0:
        if lane < half:
            sums[thread] += sums[thread + half]
        cuda.syncthreads()
        half //= 2
    if lane == 0 and row < rows:
        y[row] = sums[thread]


def matvec(data: DeviceArray, indices: DeviceArray, indptr: DeviceArray, X: DeviceArray, Y: DeviceArray) -> bool:
    """``Y[m] = A @ X[m]`` for ``X (M, columns)``, ``Y (M, rows)``; False if the triple is no matrix of that shape."""
    rows, columns = indptr.size - 1, X.shape[1]
    if not is_matrix(indices, indptr, columns):
        return False
    for m in range(X.shape[0]):
        blocks = -(-rows // (THREADS // LANES))
        _matvec(blocks, data, indices, indptr, X[m], rows, Y[m], on=data.place)
    return True


def is_matrix(indices: DeviceArray, indptr: DeviceArray, columns: int) -> bool:
    """Whether these two are those of a CSR matrix with so many columns."""
    place, n, rows = indptr.place, indices.size, indptr.size - 1
    found = place.zeros((1,), np.dtype(np.int32))
    _check(blocks_for(max(n, rows + 1)), indices, indptr, rows, columns, n, found, on=place)
    return not place.to_host(found)[0]


# the transpose ------------------------------------------------------------------------------------------------------


@kernel()
def _count(indices, indptr, rows, n, counts):
    # counts[j]: the entries of column j. Whole numbers add up the same in any order.
    i = cuda.grid(1)
    while i < n:
        if indptr[0] <= i < indptr[rows]:
            cuda.atomic.add(counts, indices[i], 1)
        i += cuda.gridsize(1)


@kernel(THREADS)
def _running_sums(counts, n, sums):
    # Within each chunk, sums[i] = counts before i there; the chunk's total goes behind all of them.
    thread, base = cuda.threadIdx.x, cuda.blockIdx.x * CHUNK
    shared = cuda.shared.array(THREADS, np.int64)
    first, second = base + 2 * thread, base + 2 * thread + 1
    a = counts[first] if first < n else 0
    b = counts[second] if second < n else 0
    shared[thread] = a + b
    cuda.syncthreads()
    apart = 1
    while apart < THREADS:
        before = shared[thread - apart] if thread >= apart else 0
        cuda.syncthreads()
        shared[thread] += before
        cuda.syncthreads()
        apart *= 2
    before = shared[thread - 1] if thread > 0 else 0
    if first < n:
        sums[first] = before
    if second < n:
        sums[second] = before + a
    if thread == THREADS - 1:
        sums[n + cuda.blockIdx.x] = shared[thread]


@kernel()
def _add_before(before, n, sums):
    i = cuda.grid(1)
    while i < n:
        sums[i] += before[i // CHUNK]
        i += cuda.gridsize(1)


def before_each(counts: DeviceArray) -> DeviceArray:
    """The sum of what stands before each item: chunk by chunk, then the chunks in the same way."""
    n, place = counts.size, counts.place
    chunks = -(-n // CHUNK)
    sums = place.empty((n + chunks,), np.dtype(np.int64))
    _running_sums(chunks, counts, n, sums, on=place)
    if chunks > 1:
        _add_before(blocks_for(n), before_each(sums[n:]), n, sums, on=place)
    return sums[:n]


@kernel()
def _place(indices, indptr, rows, n, begin, taken, entries):
    # The entries of each column, side by side; in which order is chance.
    i = cuda.grid(1)
    while i < n:
        if indptr[0] <= i < indptr[rows]:
            j = indices[i]
            entries[begin[j] + cuda.atomic.add(taken, j, 1)] = i
        i += cuda.gridsize(1)


@kernel()
def _gather(data, indptr, rows, begin, counts, entries, y, columns, x):
    # A thread owns a column: it puts its entries in order, so that chance has no part in the sum, and adds them up.
    j = cuda.grid(1)
    while j < columns:
        first, count = begin[j], counts[j]
        gap = count // 2
        while gap > 0:  # Shell's sort, in place: columns are short
            for e in range(gap, count):
                entry, at = entries[first + e], e
                while at >= gap and entries[first + at - gap] > entry:
                    entries[first + at] = entries[first + at - gap]
                    at -= gap
                entries[first + at] = entry
            gap //= 2
        total = x.dtype.type(0)
        for e in range(first, first + count):
            low, high = 0, rows  # the row of an entry: the last that does not begin behind it
            while high - low > 1:
                middle = (low + high) // 2
                if indptr[middle] <= entries[e]:
                    low = middle
                else:
                    high = middle
            total += y.dtype.type(data[entries[e]]) * y[low]
        x[j] = total
        j += cuda.gridsize(1)


def rmatvec(data: DeviceArray, indices: DeviceArray, indptr: DeviceArray, Y: DeviceArray, X: DeviceArray) -> bool:
    """``X[m] = A.T @ Y[m]`` for ``Y (M, rows)``, ``X (M, columns)``; False if the triple is no matrix of that shape.

    The entries of each column are found first, and then gathered: no two threads add to one number.
    """
    place, n, rows, columns = data.place, indices.size, indptr.size - 1, X.shape[1]
    if not is_matrix(indices, indptr, columns):
        return False
    whole = np.dtype(np.int64)
    counts, taken = place.zeros((columns,), whole), place.zeros((columns,), whole)
    _count(blocks_for(n), indices, indptr, rows, n, counts, on=place)
    begin, entries = before_each(counts) if columns else counts, place.empty((n,), whole)
    _place(blocks_for(n), indices, indptr, rows, n, begin, taken, entries, on=place)
    for m in range(X.shape[0]):
        _gather(blocks_for(columns), data, indptr, rows, begin, counts, entries, Y[m], columns, X[m], on=place)
    return True
