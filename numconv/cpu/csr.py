"""Products with a CSR matrix and with its transpose, from the triple ``data, indices, indptr``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload
from numba.np.numpy_support import as_dtype

from ._jit import Kernel, flat, helper, tasks_of
from .pieces import wide
from .simd import CHAIN

#: Entries of one task; fewer where there would not be 64 tasks.
ENTRIES = 1 << 14

#: Into how many parts the rows of a transposed product are split, at most.
PARTS = 16

#: From how many rows on a run of them is multiplied as one.
LEAST = 4

#: How many entries are compared before a look at the result.
AT_ONCE = 512


@helper
def ascends(indices, indptr, r0, r1):
    """Whether rows ``r0 … r1 - 1`` lie in the arrays, one behind the other."""
    wrong = indptr[r0] < 0 or indptr[r1] > indices.size
    for r in range(np.uint64(r0), np.uint64(r1)):
        wrong |= indptr[r] > indptr[r + np.uint64(1)]
    return not wrong


@helper
def columns_of(indices, begin, end):
    """The first of the columns of some entries, and one past the last."""
    if begin == end:
        return 0, 0
    low = high = indices[begin]
    for e in range(np.uint64(begin), np.uint64(end)):
        low, high = min(low, indices[e]), max(high, indices[e])
    return np.int64(low), np.int64(high) + 1


@helper
def go_on(data, indices, indptr, r, m, n):
    """Whether the ``m`` rows behind row ``r`` have ``n`` entries as it has, each the one before moved on."""
    row, bad = np.uint64(r + 1), False
    for i in range(np.uint64(m)):
        bad |= indptr[row + i + np.uint64(1)] - indptr[row + i] != n
    if bad:
        return False
    index, s, t = indices.dtype.type, np.uint64(indptr[r]), np.uint64(indptr[r] + n)
    moved, changed = index(0), np.int32(0)
    for e in range(np.uint64(m * n)):
        moved = index(moved | index(indices[t + e] - indices[s + e] - 1))
        changed = np.int32(changed | (data[t + e] != data[s + e]))
    return moved == 0 and changed == 0


def widened(number: Any) -> Any:
    """A number in the type in which long sums are kept."""
    return wide(number.dtype).type(number)


@overload(widened)
def _widened(number):
    dtype = wide(as_dtype(number)).type
    return lambda number: dtype(number)


@helper
def row_times(data, indices, begin, end, x):
    """One row times ``x``. Rows are short, so four sums in turn are faster here than gathered vectors."""
    total = widened(some_times(data, indices, begin, min(begin + CHAIN, end), x))
    for at in range(begin + CHAIN, end, CHAIN):  # long sums in parts
        total += some_times(data, indices, at, min(at + CHAIN, end), x)
    return total


@helper
def some_times(data, indices, begin, end, x):
    """Some entries of a row times ``x``."""
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
def add_row(data, indices, begin, end, y, band):
    """``band`` gets a row times ``y``."""
    for e in range(np.uint64(begin), np.uint64(end)):
        band[np.uint64(indices[e])] += data[e] * y


@helper
def run_times(data, indices, begin, end, x, y, r, n):
    """``y`` from ``r`` on becomes a run of ``n`` rows times ``x``; the entries of the first are given."""
    run_of_some(data, indices, begin, min(begin + CHAIN, end), x, y, r, n)
    if end - begin > CHAIN:  # long sums in parts
        totals = np.full(n, widened(y.dtype.type(0)))
        for at in range(begin + CHAIN, end, CHAIN):
            for i in range(n):
                totals[i] += y[r + i]
            run_of_some(data, indices, at, min(at + CHAIN, end), x, y, r, n)
        for i in range(n):
            y[r + i] = y.dtype.type(totals[i] + y[r + i])


@helper
def run_of_some(data, indices, begin, end, x, y, r, n):
    """``y`` from ``r`` on becomes some entries of ``n`` rows times ``x``."""
    r, n = np.uint64(r), np.uint64(n)
    for i in range(n):
        y[r + i] = 0
    for e in range(np.uint64(begin), np.uint64(end)):
        weight, c = data[e], np.uint64(indices[e])
        for i in range(n):
            y[r + i] += weight * x[c + i]


@helper
def add_run(data, indices, begin, end, y, r, n, band):
    """``band`` gets a run of ``n`` rows, each times its item of ``y``, from ``r`` on."""
    r, n = np.uint64(r), np.uint64(n)
    for e in range(np.uint64(begin), np.uint64(end)):
        weight, c = data[e], np.uint64(indices[e])
        for i in range(n):
            band[c + i] += weight * y[r + i]


@helper
def next_run(data, indices, indptr, r0, end):
    """From row ``r0`` on, where the next run begins: rows that are each the one before, moved on by a column.

    The convolution matrix consists of such runs, one for each row of the output, apart from its edges. Returns the
    number of rows of the run besides, and which columns all rows up to its end have: the first, and one past the last.
    """
    r, run = r0, 0
    while r < end:
        at, n, run = indptr[r], indptr[r + 1] - indptr[r], 1
        near = n > 0 and r + 1 < end and indptr[r + 2] == at + 2 * n
        if near and indices[at + n] == indices[at] + 1 and data[at + n] == data[at]:
            more, most = 1, max(1, AT_ONCE // n)
            while more > 0:  # twice as many rows at once, until one is another's copy no more
                more = min(more, end - r - run)
                if more > 0 and go_on(data, indices, indptr, r + run - 1, more, n):
                    run, more = run + more, min(2 * more, most)
                else:
                    more, most = more // 2, more // 2
            if run >= LEAST:
                break
        r += run
        run = 0
    low, high = columns_of(indices, indptr[r0], indptr[r])
    if run > 0:
        first, last = columns_of(indices, indptr[r], indptr[r + 1])
        low, high = (first, last + run - 1) if low == high else (min(low, first), max(high, last + run - 1))
    return r, run, low, high


@Kernel
def _matvec(team, data, indices, indptr, X, block, Y, found):
    # X (M, columns), Y (M, rows); found[task] becomes True where the triple is no matrix of this shape.
    M, columns = X.shape
    rows = indptr.size - 1
    for task in tasks_of(team, (rows + block - 1) // block):
        r0, end = task * block, min((task + 1) * block, rows)
        found[task] = not ascends(indices, indptr, r0, end)
        while r0 < end and not found[task]:
            r, run, low, high = next_run(data, indices, indptr, r0, end)
            if low < 0 or high > columns:
                found[task] = True
                break
            for m in range(M):
                x, y = X[m], Y[m]
                for i in range(r0, r):
                    y[i] = row_times(data, indices, indptr[i], indptr[i + 1], x)
                if run > 0:
                    run_times(data, indices, indptr[r], indptr[r + 1], x, y, r, run)
            r0 = r + run


@Kernel
def _add_rows(team, data, indices, indptr, y, block, low, high, sums):
    # Part p of the rows adds up in a band of its own, sums[p, low[p]:high[p]], cleared as it grows; high[p] becomes -1
    # where the triple is no matrix of this shape.
    parts, columns = sums.shape
    rows = indptr.size - 1
    for p in tasks_of(team, parts):
        r0, end, band = rows * p // parts, rows * (p + 1) // parts, sums[p]
        a, b = 0, 0 if ascends(indices, indptr, r0, end) else -1
        while r0 < end and b >= 0:
            r, run, first, last = next_run(data, indices, indptr, r0, min(r0 + block, end))
            if first < 0 or last > columns:
                b = -1
                break
            if a == b:
                a = b = first
            band[first : max(a, first)] = 0
            band[min(b, last) : last] = 0
            a, b = min(a, first), max(b, last)
            for i in range(r0, r):
                add_row(data, indices, indptr[i], indptr[i + 1], y[i], band)
            if run > 0:
                add_run(data, indices, indptr[r], indptr[r + 1], y, r, run, band)
            r0 = r + run
        low[p], high[p] = a, b


@Kernel
def _add_bands(team, low, high, sums, block, x):
    # A task owns a block of columns and adds the bands up in their order.
    for task in tasks_of(team, (x.size + block - 1) // block):
        j0, j1 = task * block, min((task + 1) * block, x.size)
        x[j0:j1] = 0
        for p in range(low.size):
            a, b = max(j0, low[p]), min(j1, high[p])
            if a < b:
                band, there = sums[p, a:b], x[a:b]
                for j in range(there.size):
                    there[j] += band[j]


@helper
def block_rows(rows: int, entries: int) -> int:
    """How many rows have about ``ENTRIES`` entries."""
    return max(1, min(rows * ENTRIES // max(entries, 1), -(-rows // 64)))


def matvec(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, X: np.ndarray, Y: np.ndarray) -> bool:
    """``Y[m] = A @ X[m]`` for ``X (M, columns)``, ``Y (M, rows)``; False if the triple is no matrix of that shape."""
    rows = indptr.size - 1
    block = block_rows(rows, data.size)
    found = np.zeros(-(-rows // block), dtype=np.bool_)
    _matvec(
        flat(data, -1), flat(indices, -1), flat(indptr, -1), flat(X, *X.shape), block, Y, found,
        work=data.size * X.shape[0],
    )
    return not found.any()


def parts_for(columns: int, entries: int) -> int:
    """Into how many parts the rows of a transposed product are split."""
    parts = PARTS
    while parts > 1 and parts * columns > entries:
        parts //= 2
    return parts


def rmatvec(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, Y: np.ndarray, X: np.ndarray) -> bool:
    """``X[m] = A.T @ Y[m]`` for ``Y (M, rows)``, ``X (M, columns)``; False if the triple is no matrix of that shape.

    The rows are split into parts, each adds up in the band of columns that it reads, and the bands are added in
    order. Neighbouring rows of a convolution matrix read neighbouring columns, so the bands hardly overlap. Together
    they have at most as many columns as there are entries. Parts follow from the shape alone, not from the threads.
    """
    data, indices, indptr = flat(data, -1), flat(indices, -1), flat(indptr, -1)
    columns, block = X.shape[1], block_rows(indptr.size - 1, data.size)
    parts = parts_for(columns, data.size)
    sums = np.empty((parts, columns), dtype=X.dtype)
    low, high = np.zeros(parts, dtype=np.int64), np.zeros(parts, dtype=np.int64)
    for m in range(X.shape[0]):
        _add_rows(data, indices, indptr, flat(Y[m], -1), block, low, high, sums, work=data.size)
        if high.min() < 0:
            return False
        _add_bands(flat(low, -1), flat(high, -1), flat(sums, *sums.shape), 4096, X[m], work=sums.size)
    return True
