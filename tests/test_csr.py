"""The products with a CSR triple, ``csr_matvec`` and ``csr_rmatvec``, against dense sums and SciPy."""

from __future__ import annotations

import itertools

import naive
import numba
import numpy as np
import pytest
import scipy.sparse
from conftest import assert_same, normal, values

import numconv


def triple(rows, columns, density=0.3, dtype=np.float64, index=np.int32, seed=0):
    """A random matrix with empty rows, unsorted columns and repeated entries, and its dense form in a wide type."""
    rng = np.random.default_rng([seed, rows, columns])
    counts = rng.binomial(columns, density, rows) * (rng.random(rows) < 0.8)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(index)
    indices = rng.integers(0, max(columns, 1), indptr[-1]).astype(index)
    data = values((int(indptr[-1]),), dtype, seed)
    dense = np.zeros((rows, columns), object)
    for row in range(rows):
        for e in range(indptr[row], indptr[row + 1]):
            dense[row, indices[e]] += data[e].item()
    return (data, indices, indptr), dense


def product(dense, vector):
    return np.array([sum(a * b for a, b in zip(row, vector.tolist(), strict=True)) for row in dense], object)


@pytest.mark.parametrize(
    ("dtype", "index"),
    [(np.dtype(t), np.int32) for t in ("?", "i1", "u8", "f2", "f4", "f8", "c16")] + [(np.dtype("f8"), np.int64)],
    ids=str,
)
def test_both_products_in_every_dtype(dtype, index):
    A, dense = triple(23, 17, dtype=dtype, index=index)
    x, y = values((17,), dtype), values((23,), dtype)
    for got, wide in (
        (numconv.csr_matvec(*A, x), product(dense, x)), (numconv.csr_rmatvec(*A, y, 17), product(dense.T, y))
    ):
        expected = np.array([bool(v) for v in wide]) if dtype.kind == "b" else narrow(wide, dtype)
        assert_same(got, expected, dtype)


def narrow(wide, dtype):
    """Exact Python numbers in ``dtype``; integers wrap."""
    if dtype.kind in "iu":
        bits = 8 * dtype.itemsize
        return np.array([int(v) % 2**bits for v in wide], np.uint64).astype(f"u{dtype.itemsize}").view(dtype)
    return np.array([complex(v) if dtype.kind == "c" else float(v) for v in wide]).astype(dtype)


@pytest.mark.parametrize(("a", "b"), [("f4", "f8"), ("i4", "f4"), ("f8", "c8"), ("i1", "u8"), ("f2", "f4")])
def test_two_dtypes_give_numpys_common_one(a, b):
    A, dense = triple(9, 8, dtype=np.dtype(a))
    x, y = values((8,), b), values((9,), b)
    for got, wide in (
        (numconv.csr_matvec(*A, x), product(dense, x)), (numconv.csr_rmatvec(*A, y, 8), product(dense.T, y))
    ):
        assert_same(got, narrow(wide, np.result_type(a, b)), np.result_type(a, b))


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 5), (5, 0), (1, 1), (3, 1), (1, 40)], ids=str)
def test_empty_and_narrow_matrices(rows, columns):
    A, dense = triple(rows, columns, 0.5)
    x, y = values((columns,)), values((rows,))
    np.testing.assert_array_equal(numconv.csr_matvec(*A, x), product(dense, x).astype(float))
    np.testing.assert_array_equal(numconv.csr_rmatvec(*A, y, columns), product(dense.T, y).astype(float))


def scattered(shape, density):
    """A matrix with entries anywhere. SciPy's own takes its generator by one name before 1.15 and by another since."""
    rng = np.random.default_rng(1)
    places = rng.choice(shape[0] * shape[1], int(density * shape[0] * shape[1]), replace=False)
    return scipy.sparse.csr_array((rng.random(places.size, np.float32), np.divmod(places, shape[1])), shape)


LARGE = {
    "an image": lambda: numconv.kernel2row(normal((5, 5), np.float32), (180, 170), padding=2),
    "channels": lambda: numconv.kernel2row(normal((8, 6, 3, 3), np.float32), (20, 23), stride=(1, 2), boundary="wrap"),
    "one long row": lambda: scipy.sparse.csr_array(normal((1, 300_000), np.float32)),
    "one long column": lambda: scipy.sparse.csr_array(normal((300_000, 1), np.float32)),
    "no structure": lambda: scattered((4000, 3000), 0.03),
    "wide bands": lambda: scattered((900, 90_000), 0.003),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_products_are_right_and_the_same_for_any_number_of_threads(name):
    A = LARGE[name]()
    x, y = normal((A.shape[1],), np.float32), normal((A.shape[0],), np.float32)
    threads = numba.get_num_threads()
    results = []
    try:
        for n in {1, threads}:
            numba.set_num_threads(n)
            results.append((numconv.csr_matvec(A.data, A.indices, A.indptr, x),
                            numconv.csr_rmatvec(A.data, A.indices, A.indptr, y, A.shape[1])))  # fmt: skip
    finally:
        numba.set_num_threads(threads)
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            np.testing.assert_array_equal(one, other)
    wide, sizes = A.astype(np.float64), abs(A.astype(np.float64))
    eps = 8 * np.finfo(np.float32).eps
    for got, want, scale in (
        (results[0][0], wide @ x, sizes @ abs(x)), (results[0][1], wide.T @ y, sizes.T @ abs(y))
    ):
        assert (abs(got - want) <= eps * np.sqrt(A.nnz) * scale.max()).all()


def test_nan_and_infinity_stay_in_their_rows():
    A, _ = triple(30, 20, 0.4)
    data, indices, indptr = A
    x = np.ones(20)
    x[3] = np.nan
    with_nan = np.array([3 in indices[a:b] for a, b in itertools.pairwise(indptr)])
    np.testing.assert_array_equal(np.isnan(numconv.csr_matvec(*A, x)), with_nan)
    y = np.ones(30)
    y[7] = np.inf
    hit = np.isin(np.arange(20), indices[indptr[7] : indptr[8]])
    np.testing.assert_array_equal(np.isfinite(numconv.csr_rmatvec(np.abs(data) + 1, indices, indptr, y, 20)), ~hit)


def test_results_go_into_out_even_where_it_overlaps_an_input():
    A, dense = triple(12, 12)
    x = values((12,))
    want, transposed = product(dense, x).astype(float), product(dense.T, x).astype(float)
    out = np.full(12, np.nan)
    assert numconv.csr_matvec(*A, x, out=out) is out
    np.testing.assert_array_equal(out, want)
    assert numconv.csr_rmatvec(*A, x, 12, out=out) is out
    np.testing.assert_array_equal(out, transposed)
    same = x.copy()
    np.testing.assert_array_equal(numconv.csr_matvec(*A, same, out=same), want)
    same = x.copy()
    np.testing.assert_array_equal(numconv.csr_rmatvec(*A, same, 12, out=same), transposed)


@pytest.mark.parametrize(
    ("place", "value"), [("indices", 12), ("indices", -1), ("indptr", 99), ("indptr", -1)], ids=str
)
def test_what_is_no_matrix_is_refused(place, value):
    data, indices, indptr = triple(12, 12)[0]
    wrong = {"indices": indices, "indptr": indptr}[place]
    wrong[len(wrong) // 2] = value
    with pytest.raises(ValueError, match=r"indices and indptr.*12 rows"):
        numconv.csr_matvec(data, indices, indptr, np.ones(12))
    with pytest.raises(ValueError, match=r"indices and indptr.*12 columns"):
        numconv.csr_rmatvec(data, indices, indptr, np.ones(12), 12)


def test_wrong_arguments_are_named():
    data, indices, indptr = triple(5, 4)[0]
    x, y = np.ones(4), np.ones(5)
    for error, match, call in (
        (ValueError, "data", lambda: numconv.csr_matvec(data[1:], indices, indptr, x)),
        (ValueError, r"^x must have one axis", lambda: numconv.csr_matvec(data, indices, indptr, x[:, None])),
        (ValueError, r"^y must have shape \(5,\)", lambda: numconv.csr_rmatvec(data, indices, indptr, x, 4)),
        (ValueError, "columns", lambda: numconv.csr_rmatvec(data, indices, indptr, y, -1)),
        (TypeError, "columns", lambda: numconv.csr_rmatvec(data, indices, indptr, y, 4.0)),
        (TypeError, "indices", lambda: numconv.csr_matvec(data, indices.astype(float), indptr, x)),
        (TypeError, "indptr", lambda: numconv.csr_matvec(data, indices, indptr.astype(np.uint64), x)),
        (ValueError, "indptr", lambda: numconv.csr_matvec(data, indices, indptr[:0], x)),
        (TypeError, "x must be", lambda: numconv.csr_matvec(data, indices, indptr, np.array(["a"] * 4))),
        (ValueError, "out", lambda: numconv.csr_matvec(data, indices, indptr, x, out=np.ones(4))),
    ):
        with pytest.raises(error, match=match):
            call()


@pytest.mark.parametrize("boundary", ["constant", "reflect"])
@pytest.mark.parametrize("groups", [1, 2])
def test_products_of_a_convolution_matrix_are_the_convolution_and_its_adjoint(boundary, groups):
    geometry = {"stride": (2, 1), "padding": ((2, 1), (0, 3)), "boundary": boundary, "groups": groups}
    x, w = values((4, 7, 6)), values((6, 4 // groups, 3, 2))
    A = numconv.kernel2row(w, (7, 6), **geometry, flip=False)
    y = naive.conv(x, w, **geometry)
    np.testing.assert_array_equal(numconv.csr_matvec(A.data, A.indices, A.indptr, x.ravel()), y.ravel())
    dx = naive.conv_grad_input(x.shape, w, y, **geometry)
    np.testing.assert_array_equal(numconv.csr_rmatvec(A.data, A.indices, A.indptr, y.ravel(), x.size), dx.ravel())


def moving_rows(rows=60, length=5, dtype=np.float64):
    """Rows that are each the one before, moved on by a column, as the convolution matrix has them."""
    indices = (np.array([0, 2, 3, 7, 1])[:length] + np.arange(rows)[:, None]).astype(np.int32).ravel()
    data = np.tile(values((length,), dtype, 3), rows)
    return data, indices, np.arange(0, data.size + 1, length, dtype=np.int32), rows + 7


@pytest.mark.parametrize("place", [0, 4, 5, 149, 150, 298, 299])
@pytest.mark.parametrize("change", ["nothing", "a value", "a column", "a NaN", "a length"])
def test_a_run_of_moving_rows_ends_where_one_entry_differs(place, change):
    data, indices, indptr, columns = moving_rows()
    if change == "a value":
        data[place] += 3
    elif change == "a column":
        indices[place] = (indices[place] + 11) % columns
    elif change == "a NaN":
        data[place] = np.nan
    elif change == "a length" and place // 5 > 0:
        indptr[place // 5] += 1
    A = scipy.sparse.csr_array((data, indices, indptr), (60, columns))
    x, y = values((columns,)), values((60,))
    np.testing.assert_array_equal(numconv.csr_matvec(data, indices, indptr, x), A @ x)
    np.testing.assert_array_equal(numconv.csr_rmatvec(data, indices, indptr, y, columns), A.T @ y)


def test_a_run_that_moves_on_beyond_the_last_column_is_refused():
    data, indices, indptr, columns = moving_rows()
    y = np.ones(60)
    numconv.csr_matvec(data, indices, indptr, np.ones(columns))
    numconv.csr_rmatvec(data, indices, indptr, y, columns)
    with pytest.raises(ValueError, match=r"indices and indptr"):
        numconv.csr_matvec(data, indices, indptr, np.ones(columns - 1))
    with pytest.raises(ValueError, match=r"indices and indptr"):
        numconv.csr_rmatvec(data, indices, indptr, y, columns - 1)
    with pytest.raises(ValueError, match=r"indices and indptr"):
        numconv.csr_rmatvec(data, indices - 1, indptr, y, columns)
