"""Convolution of data with gaps, against plain loops over what is there, and against Astropy."""

from itertools import product

import numpy as np
import pytest
from conftest import ALGORITHMS, BOUNDARIES, normal

import numconv as nc

NAN = np.nan
BOX, PEAK = np.ones((3, 3)), np.array([[1, 2, 1], [2, 8, 0.5], [1, 2, 3]])


def with_gaps(shape, dtype="float64", seed=0, share=0.3):
    """Data, and NaN for a share of it."""
    x = normal(shape, dtype, seed)
    x[np.random.default_rng(seed).random(shape) < share] = NAN
    return x


def loops(x, w, mode="full", missing=None, boundary="constant", fill_value=0, stride=1, dilation=1):
    """Both sums, pixel by pixel and tap by tap; gaps in ``missing`` are what is padded along."""
    missing = np.isnan(x) if missing is None else missing
    d = w.ndim
    reach = [dilation * (k - 1) for k in w.shape]
    width = [(r, r) for r in reach]
    if boundary == "constant":
        values = np.pad(np.where(missing, 0, x), width, constant_values=0 if np.isnan(fill_value) else fill_value)
        gaps = np.pad(missing, width, constant_values=bool(np.isnan(fill_value)))
    else:
        values, gaps = np.pad(np.where(missing, 0, x), width, mode=boundary), np.pad(missing, width, mode=boundary)
    y = np.full([n + r for n, r in zip(x.shape, reach, strict=True)], NAN, np.result_type(values, w))
    for o in np.ndindex(y.shape):
        top = bottom = 0
        for t in np.ndindex(w.shape):
            i = tuple(o[a] + reach[a] - dilation * t[a] for a in range(d))
            if not gaps[i]:
                top, bottom = top + w[t] * values[i], bottom + w[t]
        if bottom != 0:
            y[o] = top / bottom
    first = [{"full": 0, "same": r // 2, "valid": r}[mode] for r in reach]
    length = [{"full": n + r, "same": n, "valid": n - r}[mode] for n, r in zip(x.shape, reach, strict=True)]
    return y[tuple(slice(f, f + m, stride) for f, m in zip(first, length, strict=True))]


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize(
    "outside", [{"boundary": b} for b in BOUNDARIES] + [{"fill_value": NAN}, {"fill_value": 2}], ids=str
)
def test_it_is_the_loop_over_what_is_there(mode, outside):
    for w, dtype, rest in [
        (PEAK, "float64", {}),
        (PEAK[:2] * (1 + 2j), "complex128", {"stride": 2}),
        (PEAK[:, 1:], "float64", {"dilation": 2}),
    ]:
        x = with_gaps((7, 9), dtype)
        want = loops(x, w, mode, **outside, **rest)
        got = nc.normalized_convolve(x, w, mode, **outside, **rest)
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm(algorithm):
    x = with_gaps((12, 13))
    x[4:8, 4:8] = NAN  # an output that sees nothing
    want = loops(x, PEAK, "same")
    assert np.isnan(want).sum() == 4
    got = nc.normalized_convolve(x, PEAK, "same", algorithm=algorithm)
    np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_without_gaps_it_is_a_convolution_with_a_kernel_of_sum_one(mode):
    x = normal((9, 8))
    np.testing.assert_allclose(
        nc.normalized_convolve(x, PEAK, mode), nc.convolve(x, PEAK / PEAK.sum(), mode), rtol=1e-12, atol=1e-14
    )


def test_a_mask_decides_alone():
    x, mask = normal((6, 7)), np.zeros((6, 7), bool)
    mask[2, 3] = mask[0, 0] = True
    want = loops(x, PEAK, "same", missing=mask)
    for hidden in (7.0, NAN, np.inf):
        x[mask] = hidden
        np.testing.assert_allclose(nc.normalized_convolve(x, PEAK, "same", mask=mask), want, rtol=1e-12)
    np.testing.assert_allclose(nc.normalized_convolve(np.ma.array(x, mask=mask), PEAK, "same"), want, rtol=1e-12)
    x[4, 4] = NAN  # not masked: a value like another
    got = nc.normalized_convolve(x, PEAK, "same", mask=mask)
    assert np.isnan(got[3:6, 3:6]).all()
    np.testing.assert_allclose(np.delete(got, slice(3, 6), 0), np.delete(want, slice(3, 6), 0), rtol=1e-12)


def test_over_some_axes():
    x = with_gaps((3, 8, 2))
    got = nc.normalized_convolve(x, [1, 3, 2], "same", axes=1)
    for i, j in product(range(3), range(2)):
        np.testing.assert_allclose(got[i, :, j], loops(x[i, :, j], np.array([1, 3, 2]), "same"), rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "w", "result"),
    [("float32", "float32", "float32"), ("float16", "float16", "float16"), ("int64", "int8", "float64"),
     ("bool", "float32", "float32"), ("float32", "complex64", "complex64"), ("int32", "float32", "float64")],
)  # fmt: skip
def test_dtypes(x, w, result):
    x, w = np.arange(8).astype(x), np.array([1, 2, 1]).astype(w)
    before = x.copy()
    got = nc.normalized_convolve(x, w, "same", mask=np.arange(8) == 3)
    assert got.dtype == result
    want = loops(x.astype(float), w.real.astype(float), "same", missing=np.arange(8) == 3)
    np.testing.assert_allclose(got, want, rtol=2e-3 if result == "float16" else 1e-6)
    np.testing.assert_array_equal(x, before)


def test_a_result_in_the_callers_array_even_in_the_input():
    x = with_gaps((9, 8))
    want = nc.normalized_convolve(x, PEAK, "same")
    assert nc.normalized_convolve(x, PEAK, "same", out=x) is x
    np.testing.assert_array_equal(x, want)


def test_tensors_come_back_as_tensors():
    torch = pytest.importorskip("torch")
    x = with_gaps((9, 8))
    got = nc.normalized_convolve(torch.from_numpy(x), torch.from_numpy(PEAK), "same")
    assert isinstance(got, torch.Tensor)
    np.testing.assert_array_equal(got.numpy(), nc.normalized_convolve(x, PEAK, "same"))


# weights that are small or cancel -------------------------------------------------------------------------------------


def test_little_weight_is_weight():
    x = np.full(41, NAN)
    x[0] = 3.0
    w = np.exp(-(np.arange(-20.0, 21) ** 2))  # exp(-400) at its ends
    got = nc.normalized_convolve(x, w, "same", fill_value=NAN)
    np.testing.assert_allclose(got[:21], 3, rtol=1e-12)
    np.testing.assert_array_equal(got[21:], NAN)


@pytest.mark.parametrize("w", [[1, 0, -1], [0, 0], [0.1, 0.2, -0.3], [1, -2, 1]])
def test_weights_whose_sum_vanishes_are_refused(w):
    x = with_gaps((9,))
    for call in (lambda: nc.normalized_convolve(x, w), lambda: nc.normalized_operator(np.isnan(x), w)):
        with pytest.raises(ValueError, match="w must have a sum other than 0"):
            call()


@pytest.mark.parametrize("algorithm", ["auto", "fft"])
@pytest.mark.parametrize("cancel", [[0.3, 1.0, -0.3], [0.1, 0.2, 1.0, -0.3]])  # 0.1 + 0.2 - 0.3 is 6e-17
def test_where_the_weights_that_are_there_cancel_there_is_no_average(cancel, algorithm):
    x = np.array([1.0, 2.0, 3.0, 7.0, 4.0, 5.0])
    x[1] = NAN  # the first output meets all weights but 1
    want = loops(x, np.array(cancel), "valid")
    want[0] = NAN
    got = nc.normalized_convolve(x, cancel, "valid", algorithm=algorithm)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    A = nc.normalized_operator(np.isnan(x), cancel, "valid", algorithm=algorithm)
    np.testing.assert_array_equal(A.defined, np.arange(want.size) > 0)
    np.testing.assert_allclose(A.H @ got, A.matrix().T @ np.nan_to_num(got), rtol=1e-12, atol=1e-12)


# its matrix and its adjoint -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("outside", [{"boundary": b} for b in BOUNDARIES] + [{"fill_value": NAN}], ids=str)
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_the_operator_and_its_matrix(mode, outside, dtype):
    x = with_gaps((6, 7), dtype)
    x[:3, :3] = NAN
    w = PEAK * (1 - 2j) if dtype == "complex128" else PEAK
    geometry = {**outside, "stride": (1, 2)}
    A = nc.normalized_operator(np.isnan(x), w, mode, **geometry)
    y = nc.normalized_convolve(x, w, mode, **geometry)
    np.testing.assert_array_equal(A.defined, ~np.isnan(y))
    want = np.where(A.defined, y, 0).ravel()
    matrix = A.matrix()
    assert A.shape == matrix.shape == (y.size, x.size)
    assert A.dtype == matrix.dtype == dtype
    assert matrix.has_canonical_format
    for got in (A @ x.ravel(), matrix @ x.ravel(), (A @ np.stack([x.ravel()] * 2, 1))[:, 1]):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)
    dense, v = matrix.toarray(), normal((y.size, 3), dtype, 2)
    np.testing.assert_allclose(A.H @ v, dense.conj().T @ v, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(A.T @ v[:, 0], dense.T @ v[:, 0], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(A.H @ y.ravel(), dense.conj().T @ want, rtol=1e-12, atol=1e-13)  # NaN plays no part


# errors ---------------------------------------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    x, mask = np.ones((4, 4)), np.zeros((4, 4), bool)
    for call in (
        lambda mask: nc.normalized_convolve(x, BOX, mask=mask), lambda mask: nc.normalized_operator(mask, BOX)
    ):
        with pytest.raises(TypeError, match=r"mask must be an array of bool.*float64"):
            call(mask.astype(float))
    with pytest.raises(ValueError, match=r"mask must have shape \(4, 4\), got \(3, 4\)"):
        nc.normalized_convolve(x, BOX, mask=mask[1:])
    for value in (2, NAN):
        with pytest.raises(ValueError, match="fill_value is only for boundary='constant'"):
            nc.normalized_convolve(x, BOX, fill_value=value, boundary="edge")
    with pytest.raises(TypeError, match="fill_value must be a number"):
        nc.normalized_convolve(x, BOX, fill_value=None)
    with pytest.raises(ValueError, match="affine"):
        nc.normalized_operator(mask, BOX, fill_value=2)
    with pytest.raises(ValueError, match="mode"):
        nc.normalized_convolve(x, BOX, "most")


# Astropy --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"boundary": "fill", "fill_value": 2.0}, {"fill_value": 2.0}),
        ({"boundary": "extend"}, {"boundary": "edge"}),
        ({"boundary": "wrap"}, {"boundary": "wrap"}),
    ],
)
@pytest.mark.parametrize("shape", [(30,), (15, 16), (6, 7, 8)])
def test_it_agrees_with_astropy(theirs, ours, shape):
    convolution = pytest.importorskip("astropy.convolution")
    x = with_gaps(shape)
    w = np.abs(normal((3, 5, 3)[: len(shape)], seed=1))
    want = convolution.convolve(x, w, nan_treatment="interpolate", **theirs)
    np.testing.assert_allclose(nc.normalized_convolve(x, w, "same", **ours), want, rtol=1e-10)


def test_it_agrees_with_astropy_under_a_mask_and_for_one_of_its_kernels():
    convolution = pytest.importorskip("astropy.convolution")
    x = normal((20, 21))
    mask = np.random.default_rng(1).random(x.shape) < 0.2
    kernel = convolution.Gaussian2DKernel(1.5)
    want = convolution.convolve(x, kernel, mask=mask, nan_treatment="interpolate")
    np.testing.assert_allclose(nc.normalized_convolve(x, kernel.array, "same", mask=mask), want, rtol=1e-10)
