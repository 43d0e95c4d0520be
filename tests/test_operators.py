"""What solvers ask of an operator: every algorithm behind it, its norm, the diagonal of its Gram matrix, coverage."""

import naive
import numpy as np
import pytest
from conftest import ALGORITHMS, BOUNDARIES, normal, values
from hypothesis import given
from strategies import cases

import numconv as nc
from numconv import operators


def plan_of(case, dtype=None):
    return nc.plan_conv(case.x_shape, case.w_shape, dtype=dtype or case.dtype, **case.geometry)


def dense_of(case):
    d = len(case.kernel)
    return naive.conv_matrix(case.w, case.x_shape[-d:], **case.geometry)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_is_an_operator_with_an_exact_adjoint(algorithm, dtype):
    geometry = {"padding": (1, 2), "groups": 2, "boundary": "wrap", "flip": True}
    plan = nc.plan_conv((4, 7, 6), (6, 2, 3, 3), dtype=dtype, algorithm=algorithm, **geometry)
    w = values(plan.kernel_shape, dtype)
    A, dense = plan.linear_operator(w), naive.conv_matrix(w, (7, 6), **geometry)
    for k in (0, 1, 3):
        x, y = values((A.shape[1], k), dtype, 1), values((A.shape[0], k), dtype, 2)
        for got, want in {
            "matmat": (A.matmat(x), dense @ x),
            "rmatmat": (A.rmatmat(y), dense.conj().T @ y),
            "T": (A.T @ y, dense.T @ y),
            "H": (A.H @ y, dense.conj().T @ y),
        }.values():
            assert got.shape == want.shape
            assert got.dtype == dtype
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 if dtype == "float32" else 1e-11)


# the norm -------------------------------------------------------------------------------------------------------------


@given(case=cases(dtypes=["float64", "complex128"], fill=False))
def test_the_norm_is_the_largest_singular_value(case):
    want = np.linalg.norm(dense_of(case), 2)
    np.testing.assert_allclose(plan_of(case).norm(case.w, tol=1e-12), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("symbols", [operators.SYMBOLS, 4000])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize(
    ("size", "kernel", "dilation"), [((6, 7), (3, 2), 1), ((4, 5), (7, 2), (2, 3)), ((12,), (3,), 5)]
)
def test_a_circular_norm_is_exact(size, kernel, dilation, dtype, symbols, monkeypatch):
    monkeypatch.setattr(operators, "SYMBOLS", symbols)
    monkeypatch.setattr(operators, "eigsh", None)  # no Lanczos here
    monkeypatch.setattr(operators, "DENSE", 0)
    geometry = {"padding": "same", "boundary": "wrap", "groups": 2, "dilation": dilation, "flip": True}
    plan = nc.plan_conv((4, *size), (6, 2, *kernel), dtype=dtype, **geometry)
    w = normal(plan.kernel_shape, dtype)
    want = np.linalg.norm(naive.conv_matrix(w, size, **geometry), 2)
    np.testing.assert_allclose(plan.norm(w), want, rtol=1e-13)


@pytest.mark.parametrize("symbols", [operators.SYMBOLS, 50])
@pytest.mark.parametrize("frequency", range(12))
def test_no_frequency_of_a_circular_norm_is_left_out(frequency, symbols, monkeypatch):
    monkeypatch.setattr(operators, "SYMBOLS", symbols)
    phase = 2 * np.pi * frequency / 12 * np.arange(3)
    for w in (np.exp(1j * phase), np.cos(phase)):
        plan = nc.plan_convolve((12,), (3,), "same", boundary="wrap", dtype=w.dtype)
        np.testing.assert_allclose(plan.norm(w), np.linalg.norm(plan.matrix(w).toarray(), 2), rtol=1e-13)


@pytest.mark.parametrize(("channels", "kernels"), [(1, 3), (3, 1), (2, 3)])
def test_the_norm_of_few_or_many_channels(channels, kernels):
    plan = nc.plan_conv((channels, 5, 5), (kernels, channels, 3, 3), padding=1, boundary="wrap", dtype=float)
    w = normal(plan.kernel_shape)
    np.testing.assert_allclose(plan.norm(w), np.linalg.norm(plan.matrix(w).toarray(), 2), rtol=1e-13)


@pytest.mark.parametrize("stride", [1, 2])
def test_lanczos_finds_the_norm_to_its_tolerance_and_always_the_same(stride):
    plan = nc.plan_conv((3, 2, 14, 12), (3, 2, 3, 3), padding=1, boundary="symmetric", stride=stride)
    w = values(plan.kernel_shape, np.float32)  # sums of them are exact
    want = np.linalg.norm(plan.matrix(w).toarray().astype(float), 2)
    assert min(plan.matrix(w).shape) > operators.DENSE
    np.testing.assert_allclose(plan.norm(w), want, rtol=1e-5)
    np.testing.assert_allclose(plan.norm(w, tol=1e-12), want, rtol=1e-10)
    assert plan.norm(w) == plan.norm(w)


def test_norms_of_integers_and_of_very_large_and_small_weights():
    plan = nc.plan_convolve((20, 20), (2, 2), "full", dtype=int)
    w = np.array([[1, -2], [3, 4]])
    want = np.linalg.norm(plan.matrix(w).toarray(), 2)
    np.testing.assert_allclose(plan.norm(w), want, rtol=1e-5)
    plan = nc.plan_convolve((20, 20), (2, 2), "full", dtype=float)
    for scale in (1e200, 1e-200):
        np.testing.assert_allclose(plan.norm(scale * w), scale * want, rtol=1e-5)


def test_norms_of_nothing():
    plan = nc.plan_convolve((20, 20), (2, 2), "full", dtype=float)
    assert plan.norm(np.zeros((2, 2))) == 0
    assert np.isnan(plan.norm([[1, np.nan], [0, 0]]))
    assert np.isnan(plan.norm([[1, np.inf], [0, 0]]))
    outside = nc.plan_conv((1, 1, 100), (1, 1, 3, 1), padding=(1, 0), dtype=float)  # only the middle tap meets a pixel
    assert outside.norm(np.array([1.0, 0, 1]).reshape(1, 1, 3, 1)) == 0
    assert nc.plan_conv((0, 5), (3, 0, 2), dtype=float).norm(np.ones((3, 0, 2))) == 0


# the diagonal and the coverage ----------------------------------------------------------------------------------------


@given(case=cases(dtypes=["float64", "complex128", "int8"], fill=False))
def test_the_gram_diagonal_is_that_of_the_gram_matrix(case):
    d = len(case.kernel)
    dense = dense_of(case)
    want = (dense * dense.conj()).real.sum(axis=0) if dense.dtype != object else (dense * dense).sum(axis=0)
    got = plan_of(case).gram_diagonal(case.w)
    assert got.dtype == np.sum(np.empty(0, case.dtype).real).dtype  # int8 is added up in int64
    assert got.shape == case.x_shape[-d - 1 :]
    np.testing.assert_array_equal(got.ravel(), naive.narrow(want, got.dtype))  # halves: no rounding


def test_the_gram_diagonal_where_a_boundary_folds_taps_onto_one_pixel():
    plan = nc.plan_convolve((1,), (3,), "same", boundary="edge", dtype=int)
    assert plan.gram_diagonal([1, 2, 3]) == [36]  # (1 + 2 + 3)^2, not 1 + 4 + 9


def test_the_gram_diagonal_keeps_infinity_where_it_is():
    plan = nc.plan_convolve((5,), (2,), "valid", dtype=float, flip=False)
    np.testing.assert_array_equal(plan.gram_diagonal([np.inf, 1.0]), [np.inf] * 4 + [1.0])


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_coverage_is_col2im_of_ones(boundary):
    plan = nc.plan_conv((2, 3, 7, 4), (5, 3, 3, 2), stride=(2, 1), padding=3, boundary=boundary, dtype=int)
    ones = np.ones(plan.geometry.cols_shape, int)
    count = plan.coverage()
    assert count.shape == (7, 4)
    np.testing.assert_array_equal(np.broadcast_to(count, plan.input_shape), plan.col2im(ones))


# errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["norm", "gram_diagonal", "linear_operator"])
def test_what_has_no_matrix_is_refused(method):
    plan = nc.plan_convolve((5, 5), (2, 2), "same", fill_value=2)
    with pytest.raises(ValueError, match=r"fill_value must be 0 .* 2"):
        getattr(plan, method)(np.ones((2, 2), "f4"))
    plan = nc.plan_convolve((5, 5), (2, 2), "same")
    with pytest.raises(ValueError, match=r"w must have shape \(2, 2\), got \(3, 2\)"):
        getattr(plan, method)(np.ones((3, 2), "f4"))
    if method != "linear_operator":
        with pytest.raises(TypeError, match=r"w must hold numbers .* bool"):
            getattr(nc.plan_convolve((5, 5), (2, 2), dtype=bool), method)(np.ones((2, 2), bool))


def test_memory_is_asked_before_it_is_taken(monkeypatch):
    plan = nc.plan_convolve((2100, 2100), (2, 2), "same")
    w = np.ones((2, 2), np.float32)
    A, x = plan.linear_operator(w), np.ones((2100 * 2100, 1), np.float32)
    B = nc.normalized_operator(np.zeros((2100, 2100), bool), w, "same")
    gaps = x.reshape(2100, 2100)
    monkeypatch.setattr("numconv._memory.available", lambda: 1 << 20)
    for call in (
        lambda: A.matmat(x), lambda: A.rmatmat(x), lambda: plan.gram_diagonal(w), B.matrix,
        lambda: nc.normalized_convolve(gaps, w),
    ):  # fmt: skip
        with pytest.raises(MemoryError, match=r"bytes .* are available"):
            call()
