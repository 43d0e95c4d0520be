"""Products with a CSR matrix and with its transpose, from the triple ``data, indices, indptr``."""

from __future__ import annotations

import numpy as np

from .. import _memory
from ._jit import Kernel, flat, helper, tasks_of

#: Entries of one task: their columns are checked and stay in the cache for the product.
ENTRIES = 1 << 14

#: Into how many parts the rows of a transposed product are split, at most.
PARTS = 16


@helper
def check_rows(indices, indptr, r0, r1):
    """The first column and one past the last that rows ``r0 … r1 - 1`` have; ``-1, -1`` if a row leaves the arrays."""
    for r in range(r0, r1):
        if not 0 <= indptr[r] <= indptr[r + 1] <= indices.size:
            return -1, -1
    if indptr[r0] == indptr[r1]:
        return 0, 0
    columns = indices[indptr[r0] : indptr[r1]]
    low = high = columns[0]
    for e in range(columns.size):
        low, high = min(low, columns[e]), max(high, columns[e])
    return low, high + 1


@helper
def row_times(data, indices, begin, end, x):
    """One row times ``x``. Rows are short, so four sums in turn are faster here than gathered vectors."""
    e, end, one, two, three = np.uint64(begin), np.uint64(end), np.uint64(1), np.uint64(2), np.uint64(3)
    a = b = c = d = x.dtype.type(0)
    while e + three < end:
        a += data[e] * x[np.uint64(indices[e])]
        b += data[e + one] * x[np.uint64(indices[e + one])]
        c += data[e + two] * x[np.uint64(indices[e + two])]
        d += data[e + three] * x[np.uint64(indices[e + three])]
        e += np.uint64(4)
    while e < end:
        a += data[e] * x[np.uint64(indices[e])]
        e += one
    return (a + b) + (c + d)


@helper
def add_row(data, indices, begin, end, y, low, band):
    """``band`` gets a row times ``y``; its first column is ``low``."""
    for e in range(np.uint64(begin), np.uint64(end)):
        band[np.uint64(indices[e] - low)] += data[e] * y


@Kernel
def _matvec(team, data, indices, indptr, X, block, Y, found):
    # X (M, columns), Y (M, rows); found[task] becomes True where the triple is no matrix of this shape.
    M, columns = X.shape
    rows = indptr.size - 1
    for task in tasks_of(team, (rows + block - 1) // block):
        r0, r1 = task * block, min((task + 1) * block, rows)
        low, high = check_rows(indices, indptr, r0, r1)
        if low < 0 or high > columns:
            found[task] = True
            continue
        for m in range(M):
            x = X[m]
            for r in range(r0, r1):
                Y[m, r] = row_times(data, indices, indptr[r], indptr[r + 1], x)


@Kernel
def _bands(team, indices, indptr, edges, low, high):
    # Part p is the rows edges[p] … edges[p + 1] - 1; it reads the columns low[p] … high[p] - 1.
    for p in tasks_of(team, edges.size - 1):
        low[p], high[p] = check_rows(indices, indptr, edges[p], edges[p + 1])


@Kernel
def _add_rows(team, data, indices, indptr, y, edges, low, starts, sums):
    # Every part adds its rows up in a band of its own, sums[starts[p]:starts[p + 1]].
    for p in tasks_of(team, edges.size - 1):
        band = sums[starts[p] : starts[p + 1]]
        for j in range(band.size):
            band[j] = 0
        for r in range(edges[p], edges[p + 1]):
            add_row(data, indices, indptr[r], indptr[r + 1], y[r], low[p], band)


@Kernel
def _add_bands(team, low, high, starts, sums, block, x):
    # A task owns a block of columns and adds the bands up in their order.
    for task in tasks_of(team, (x.size + block - 1) // block):
        j0, j1 = task * block, min((task + 1) * block, x.size)
        x[j0:j1] = 0
        for p in range(low.size):
            a, b = max(j0, low[p]), min(j1, high[p])
            if a < b:
                band, there = sums[starts[p] + a - low[p] : starts[p] + b - low[p]], x[a:b]
                for j in range(there.size):
                    there[j] += band[j]


def matvec(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, X: np.ndarray, Y: np.ndarray) -> bool:
    """``Y[m] = A @ X[m]`` for ``X (M, columns)``, ``Y (M, rows)``; False if the triple is no matrix of that shape."""
    rows = indptr.size - 1
    block = max(1, min(rows * ENTRIES // max(data.size, 1), -(-rows // 64)))
    found = np.zeros(-(-rows // block), dtype=np.bool_)
    _matvec(
        flat(data, -1), flat(indices, -1), flat(indptr, -1), flat(X, *X.shape), block, Y, found,
        work=data.size * X.shape[0],
    )
    return not found.any()


def rmatvec(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, Y: np.ndarray, X: np.ndarray) -> bool:
    """``X[m] = A.T @ Y[m]`` for ``Y (M, rows)``, ``X (M, columns)``; False if the triple is no matrix of that shape.

    The rows are split into parts, each adds up in the band of columns that it reads, and the bands are added in
    order. Neighbouring rows of a convolution matrix read neighbouring columns, so the bands hardly overlap; parts
    whose bands would be large are put together. Parts follow from the structure alone, not from the threads.
    """
    data, indices, indptr = flat(data, -1), flat(indices, -1), flat(indptr, -1)
    rows, columns = indptr.size - 1, X.shape[1]
    parts = PARTS
    while True:
        edges = np.arange(parts + 1, dtype=np.int64) * rows // parts
        low, high = np.zeros(parts, dtype=np.int64), np.zeros(parts, dtype=np.int64)
        _bands(indices, indptr, flat(edges, -1), low, high, work=data.size)
        if low.min() < 0 or high.max() > columns:
            return False
        if parts == 1 or (high - low).sum() <= max(columns, data.size // 2):
            break
        parts = 1
    starts = np.zeros(parts + 1, dtype=np.int64)
    np.cumsum(high - low, out=starts[1:])
    _memory.require(int(starts[-1]) * X.itemsize, "partial sums of the transposed product", "use smaller pieces")
    sums = np.empty(int(starts[-1]), dtype=X.dtype)
    edges, low, high, starts = flat(edges, -1), flat(low, -1), flat(high, -1), flat(starts, -1)
    for m in range(X.shape[0]):
        _add_rows(data, indices, indptr, flat(Y[m], -1), edges, low, starts, sums, work=data.size)
        _add_bands(low, high, starts, flat(sums, -1), 4096, X[m], work=sums.size)
    return True
