"""In which type sums are kept: ``dtype=``, else the inputs', or that of a wider ``out``, as in ``numpy.sum``."""

import numpy as np
import pytest
from conftest import COMPLEX, EXACT, FLOATS, INTEGERS
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cases

import numconv as nc

GEOMETRY = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}

#: A call of every function that adds products, and the shapes of its arrays.
CALLS = {
    "convolve": ([(9, 8), (3, 2)], lambda x, w, **o: nc.convolve(x, w, boundary="reflect", **o)),
    "convolve-axes": ([(3, 9, 2), (3,)], lambda x, w, **o: nc.convolve(x, w, axes=1, **o)),
    "convolve-exchanged": ([(3,), (9,)], lambda x, w, **o: nc.convolve(x, w, "valid", **o)),
    "convolve-points": ([(), ()], lambda x, w, **o: nc.convolve(x, w, **o)),
    "correlate": ([(9, 8), (3, 2)], lambda x, w, **o: nc.correlate(x, w, stride=2, **o)),
    "conv": ([(2, 4, 9, 8), (6, 2, 3, 2), (6,)], lambda x, w, b, **o: nc.conv(x, w, b, groups=2, **GEOMETRY, **o)),
    "conv1d": ([(2, 4, 9), (6, 4, 3), (6,)], lambda x, w, b, **o: nc.conv1d(x, w, b, 2, 1, **o)),
    "conv2d": ([(4, 5, 4), (6, 2, 3, 2)], lambda x, w, **o: nc.conv2d(x, w, None, 1, 1, 1, 2, **o)),
    "conv3d": ([(2, 4, 3, 4), (3, 2, 2, 3, 2)], lambda x, w, **o: nc.conv3d(x, w, padding=1, **o)),
    "conv_transpose": ([(6, 4, 5), (6, 2, 3, 2), (2,)], lambda x, w, b, **o: nc.conv_transpose(x, w, b, stride=2, **o)),
    "conv_transpose1d": ([(4, 5), (4, 3, 3)], lambda x, w, **o: nc.conv_transpose1d(x, w, None, 2, 1, 1, **o)),
    "conv_transpose2d": ([(4, 5, 4), (4, 3, 3, 2)], lambda x, w, **o: nc.conv_transpose2d(x, w, **o)),
    "conv_transpose3d": ([(2, 3, 4, 2), (2, 3, 2, 2, 2)], lambda x, w, **o: nc.conv_transpose3d(x, w, **o)),
    "conv_grad_input": (
        [(6, 2, 3, 2), (2, 6, 4, 9)],
        lambda w, dy, **o: nc.conv_grad_input((2, 4, 9, 8), w, dy, groups=2, **GEOMETRY, **o),
    ),
    "conv_grad_weight": (
        [(2, 4, 9, 8), (2, 6, 4, 9)],
        lambda x, dy, **o: nc.conv_grad_weight(x, (6, 2, 3, 2), dy, groups=2, **GEOMETRY, **o),
    ),
    "conv_local": (
        [(2, 4, 5), (3, 6, 4, 3), (6,)], lambda x, w, b, **o: nc.conv_local(x, w, b, stride=2, padding=1, **o)
    ),
    "conv_local_grad_input": ([(3, 3), (3,)], lambda w, dy, **o: nc.conv_local_grad_input((5,), w, dy, **o)),
    "conv_local_grad_weight": ([(5,), (3,)], lambda x, dy, **o: nc.conv_local_grad_weight(x, (3, 3), dy, **o)),
}  # fmt: skip
#: Those that add what is there and take no ``dtype=``: a wider ``out`` does.
ADDING = {
    "col2im": ([(6, 36)], lambda cols, **o: nc.col2im(cols, (8, 7), (3, 2), boundary="wrap", **o)),
    "csr_matvec": ([(6,), (5,)], lambda data, x, **o: nc.csr_matvec(data, [0, 4, 4, 2, 1, 3], [0, 3, 3, 4, 6], x, **o)),
    "csr_rmatvec": (
        [(6,), (4,)], lambda data, y, **o: nc.csr_rmatvec(data, [0, 4, 4, 2, 1, 3], [0, 3, 3, 4, 6], y, 5, **o)
    ),
}  # fmt: skip
every_call = pytest.mark.parametrize("name", CALLS)
every_sum = pytest.mark.parametrize("name", [*CALLS, *ADDING])


def anything(shape, dtype, seed=0):
    """Values over the whole range of an integer dtype, so that their sums leave it."""
    info = np.iinfo(dtype)
    return np.random.default_rng([seed, *shape]).integers(info.min, info.max, shape, dtype, endpoint=True)


def run(name, arrays, **options):
    return (CALLS | ADDING)[name][1](*arrays, **options)


def arrays_for(name, dtype):
    return [anything(shape, dtype, i) for i, shape in enumerate((CALLS | ADDING)[name][0])]


@every_sum
@pytest.mark.parametrize(("dtype", "wide"), [("uint8", "int32"), ("int8", "int64"), ("uint8", "float64")])
def test_a_wider_out_is_the_type_of_the_sums(name, dtype, wide):
    arrays = arrays_for(name, dtype)
    want = run(name, [array.astype(wide) for array in arrays])
    out = np.zeros(want.shape, wide)
    assert run(name, arrays, out=out) is out
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(run(name, arrays), want.astype(np.int64).astype(dtype))  # without it they wrap
    wrong = out.astype(dtype)
    if want.size > 1:
        assert (wrong != want).any(), "no sum leaves the dtype: this tests nothing"


@every_call
@pytest.mark.parametrize(
    ("dtype", "sums"), [("uint8", "int16"), ("int8", "float32"), ("int64", "int32"), ("int16", "complex64")]
)
def test_dtype_is_the_type_of_the_sums_and_of_the_result(name, dtype, sums):
    arrays = arrays_for(name, dtype)
    if sums in ("float32", "complex64"):
        arrays = [array % 8 for array in arrays]  # so that the sums are exact
    with np.errstate(all="ignore"):
        want = run(name, [array.astype(sums) for array in arrays])
    got = run(name, arrays, dtype=sums)
    assert got.dtype == sums
    np.testing.assert_array_equal(got, want)
    out = np.zeros(want.shape, np.promote_types(sums, np.int32))
    assert run(name, arrays, dtype=sums, out=out) is out
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("algorithm", [*EXACT, "auto"])
@given(cases(fill=False), st.sampled_from([("int8", "int32"), ("uint8", "int16"), ("uint8", "int64")]))
@settings(max_examples=15)
def test_random_layers_by_every_algorithm(algorithm, case, dtypes):
    narrow, wide = dtypes
    x, w = anything(case.x_shape, narrow, case.seed), anything(case.w_shape, narrow, case.seed + 1)
    want = nc.conv(x.astype(wide), w.astype(wide), **case.geometry)
    got = nc.conv(x, w, **case.geometry, algorithm=algorithm, dtype=wide)
    assert got.dtype == wide
    np.testing.assert_array_equal(got, want)
    out = np.zeros(want.shape, wide)
    np.testing.assert_array_equal(nc.conv(x, w, **case.geometry, algorithm=algorithm, out=out), want)
    dy = anything(want.shape, narrow, case.seed + 2)
    linear = {**case.geometry, "algorithm": algorithm}
    for function, shape, a in ((nc.conv_grad_input, case.x_shape, w), (nc.conv_grad_weight, case.w_shape, x)):
        pair = (shape, a, dy) if function is nc.conv_grad_input else (a, shape, dy)
        widened = tuple(v.astype(wide) if isinstance(v, np.ndarray) else v for v in pair)
        np.testing.assert_array_equal(function(*pair, **linear, dtype=wide), function(*widened, **linear))


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=str)
def test_it_is_numpy_sums_rule(dtype):
    x = anything((9,), dtype) if dtype.kind in "iu" else (np.arange(9) % 5).astype(dtype)
    window = np.ones(9, dtype)
    for out in (*INTEGERS, *FLOATS, *COMPLEX):
        if not np.can_cast(dtype, out, "same_kind") or (dtype == np.uint64 and out.kind == "i"):
            continue  # the latter NumPy adds in float64
        want, got = np.zeros((), out), np.zeros(1, out)
        with np.errstate(all="ignore"):
            np.sum(x, out=want)
            nc.convolve(x, window, "valid", out=got)
        np.testing.assert_allclose(got[0], want, rtol=0 if out.kind in "biu" else 1e-2 if out == np.float16 else 1e-6)


def test_wider_fractions_too():
    x = np.full(10**5, 0.1, np.float32)
    out = np.zeros(1)
    nc.correlate(x, np.ones_like(x), "valid", out=out, algorithm="direct")
    np.testing.assert_allclose(out[0], x.astype(float).sum(), rtol=1e-12)
    got = nc.correlate(x, np.ones_like(x), "valid", dtype=float, algorithm="direct")
    np.testing.assert_allclose(got[0], x.astype(float).sum(), rtol=1e-12)
    half = nc.convolve(np.full(9, 6e4, np.float16), np.ones(9, np.float16), "valid")
    assert np.isinf(half[0])
    np.testing.assert_allclose(
        nc.convolve(np.full(9, 6e4, np.float16), np.ones(9, np.float16), "valid", dtype="float32"), 9 * 6e4, rtol=1e-3
    )


def test_truth_is_counted_where_the_sums_are_numbers():
    x, w = np.ones(6, bool), np.ones(3, bool)
    assert nc.convolve(x, w, "valid").dtype == bool
    np.testing.assert_array_equal(nc.convolve(x, w, dtype=int), [1, 2, 3, 3, 3, 3, 2, 1])
    np.testing.assert_array_equal(nc.convolve(x, w, out=np.zeros(8, np.uint8)), [1, 2, 3, 3, 3, 3, 2, 1])


@every_call
def test_a_dtype_that_would_lose_is_refused_by_name(name):
    arrays = [array.astype(float) for array in arrays_for(name, "int8")]
    for dtype in ("int64", bool):
        with pytest.raises(TypeError, match=r"^dtype must be of a kind that holds \w+, which is of dtype float64; got"):
            run(name, arrays, dtype=dtype)
    for dtype in ("longdouble", "U3", object, "flaot", [("a", "f8")]):
        with pytest.raises(TypeError, match=r"^dtype must be bool, integer, float16/32/64 or complex"):
            run(name, arrays, dtype=dtype)
    with pytest.raises(TypeError, match="out must have a dtype that float64 casts to"):
        run(name, arrays, dtype=float, out=np.zeros(run(name, arrays).shape, int))


def test_a_fill_value_is_one_of_the_sums():
    assert nc.convolve([1, 2], [1, 1], fill_value=0.5, dtype=float).tolist() == [1.5, 3, 2.5]
    with pytest.raises(ValueError, match="fill_value must be a value that dtype int64 can hold"):
        nc.convolve([1, 2], [1, 1], fill_value=0.5)


def test_averages_in_another_type():
    x, w = np.array([1, 2, np.nan, 4], np.float32), np.array([1, 2, 1], np.float32)
    got = nc.normalized_convolve(x, w, "same", dtype=float)
    assert got.dtype == float
    np.testing.assert_array_equal(got, nc.normalized_convolve(x.astype(float), w.astype(float), "same"))
    out = np.zeros(4)
    np.testing.assert_array_equal(nc.normalized_convolve(x, w, "same", out=out), got)
    assert nc.normalized_convolve([1, 2, 4], [1, 1], "valid", dtype="float32").dtype == np.float32
    assert nc.normalized_operator(np.isnan(x), w, "same", dtype=float).dtype == float
    with pytest.raises(TypeError, match="dtype must be floating or complex for an average, got int64"):
        nc.normalized_convolve([1, 2, 4], [1, 1], dtype=int)


def test_a_plan_keeps_its_own_type():
    x, w = np.full(9, 200, np.uint8), np.ones(3, np.uint8)
    plan = nc.plan_convolve(x.shape, w.shape, dtype=np.uint8)
    assert plan.forward(x, w, out=np.zeros(7, np.int32)).tolist() == [600 % 256] * 7


@given(cases(dtypes=("int8", "uint8", "int16"), fill=False))
@settings(max_examples=25)
def test_the_diagonal_of_integers_is_as_wide_as_numpys_sums(case):
    w = anything(case.w_shape, case.dtype, case.seed)
    plan = nc.plan_conv(case.x_shape, case.w_shape, dtype=case.dtype, **case.geometry)
    wide = nc.plan_conv(case.x_shape, case.w_shape, dtype="int64", **case.geometry).matrix(w.astype(np.int64))
    got = plan.gram_diagonal(w)
    assert got.dtype == np.sum(w).dtype
    np.testing.assert_array_equal(got.ravel(), wide.power(2).sum(axis=0))


def test_dask_arrays_alike():
    da = pytest.importorskip("dask.array")
    x, w, dy = anything((1, 2, 40), "uint8"), anything((3, 2, 3), "uint8", 1), anything((1, 3, 38), "uint8", 2)
    X, DY = da.from_array(x, chunks=(1, 2, 9)), da.from_array(dy, chunks=(1, 3, 9))
    for lazy, want in [
        (nc.conv(X, w, dtype="int32"), nc.conv(x, w, dtype="int32")),
        (nc.convolve(X[0, 0], w[0, 0], dtype="float32"), nc.convolve(x[0, 0], w[0, 0], dtype="float32")),
        (nc.conv_transpose(DY, w, dtype=int), nc.conv_transpose(dy, w, dtype=int)),
        (nc.conv_grad_input(x.shape, w, DY, dtype=int), nc.conv_grad_input(x.shape, w, dy, dtype=int)),
        (nc.conv_grad_weight(X, w.shape, DY, dtype=int), nc.conv_grad_weight(x, w.shape, dy, dtype=int)),
        (nc.conv(X.astype(float), w, dtype="float32"), nc.conv(x.astype(float), w, dtype="float32")),
    ]:
        assert lazy.dtype == want.dtype
        np.testing.assert_array_equal(lazy.compute(), want)
