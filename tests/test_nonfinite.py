"""NaN and infinity: an element is not finite exactly where the plain sum over what it meets is not."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from conftest import ALGORITHMS, assert_same, values
from hypothesis import given, settings
from numba import njit
from strategies import cases

import numconv as nc
from numconv import overloads

overloads.init()

NAMES = ("forward", "grad_input", "grad_weight")
BAD = [np.nan, np.inf, -np.inf]


def spoilt(a, rng):
    """The array with up to three values that are not finite."""
    a = a.copy()
    for i in rng.integers(a.size, size=rng.integers(4)):
        parts = rng.choice([*BAD, 1], 2)
        a.flat[i] = complex(*parts) if a.dtype.kind == "c" else parts[0]
    return a


def assert_bad_alike(got, want, whole):
    """NaN, inf and -inf at the same places, of complex numbers in the same parts; or ``whole``: not finite there."""
    if whole:
        return np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    for part in (np.real, np.imag):
        for kind in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(kind(part(got)), kind(part(want)))


def promises(algorithm, name, w, dtype, boundary, padding):
    """What the table in the README says: ``None`` is nothing, ``whole`` is not finite where the sum is not."""
    if algorithm == "kernel2row":
        if name == "forward" and boundary == "constant" and np.any(padding) and not np.isfinite(w).all():
            return None  # the matrix has no entries where the kernel looks at padding
        return "whole" if boundary != "constant" else "exact"  # weights of one pixel are one entry
    by_blas = algorithm in ("im2col", "auto") and np.dtype(dtype).kind == "c"  # which multiplies sums by 1 + 0j
    return "whole" if by_blas else "exact"


@settings(max_examples=settings().max_examples * 2)
@given(case=cases(dtypes=["float32", "float64", "complex64", "complex128"]))
def test_all_products_are_bad_exactly_where_plain_sums_are(case):
    rng, geometry = np.random.default_rng(case.seed), dict(case.geometry)
    if geometry["boundary"] == "constant":
        geometry["fill_value"] = float(rng.choice([0, 0, 1, *BAD]))
    x, w = spoilt(case.x, rng), spoilt(case.w, rng)
    plan = nc.plan_conv(x.shape, w.shape, dtype=case.dtype, **geometry)
    dy = spoilt(case.dy(plan.output_shape), rng)
    g = plan.geometry
    geometry |= {"padding": g.padding, "stride": g.stride, "dilation": g.dilation}
    wants = naive.products(x.reshape(-1, g.C, *g.size), w, dy.reshape(-1, g.K, *g.out), **geometry)
    for algorithm in (*ALGORITHMS, "auto"):
        try:
            plan = nc.plan_conv(x.shape, w.shape, dtype=case.dtype, algorithm=algorithm, **geometry)
        except ValueError:
            assert algorithm in ("winograd", "fft") or geometry.get("fill_value")
            continue
        gots = plan.forward(x, w), plan.grad_input(dy, w), plan.grad_weight(x, dy)
        for name, got, want in zip(NAMES, gots, wants, strict=True):
            promise = promises(algorithm, name, w, case.dtype, geometry["boundary"], geometry["padding"])
            if promise:
                assert_bad_alike(got, want.reshape(got.shape), promise == "whole")


@settings(max_examples=settings().max_examples // 2)
@given(case=cases(dtypes=["float32", "float64"], kernel=(3, 3), fill=False))
def test_transforms_spread_nothing(case):
    rng, geometry = np.random.default_rng(case.seed), case.geometry
    x, w = spoilt(case.x, rng), spoilt(case.w, rng)
    g = nc.plan_conv(x.shape, w.shape, **geometry).geometry
    dy = spoilt(case.dy(g.output_shape), rng)
    wants = naive.products(x.reshape(-1, g.C, *g.size), w, dy.reshape(-1, g.K, *g.out), **geometry)
    for algorithm in ("winograd", "fft", "auto"):
        plan = nc.plan_conv(x.shape, w.shape, dtype=case.dtype, algorithm=algorithm, **geometry)
        for got, want in zip((plan.forward(x, w), plan.grad_input(dy, w), plan.grad_weight(x, dy)), wants, strict=True):
            assert_bad_alike(got, want.reshape(got.shape), whole=False)


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("algorithm", ["auto", "im2col", "kernel2row", "implicit", "direct", "fft"])
def test_a_bad_weight_reaches_the_pixels_that_it_meets(algorithm, bad):
    w, dy = np.array([[[1, bad, 2]]]), np.ones((1, 1, 6))
    want = [[[1, *[bad] * 6, 2]]]
    assert_same(nc.conv_grad_input((1, 1, 8), w, dy, algorithm=algorithm), np.array(want, dtype=float))
    got = nc.conv_transpose(dy, w, algorithm=algorithm)
    assert_same(got, np.array(want, dtype=float))


def test_compiled_code_keeps_bad_weights_where_they_are():
    def back(w, dy):
        return nc.conv_grad_input((2, 4, 9, 7), w, dy, stride=2, padding=1, groups=2)

    def folded(w, dy):
        return nc.conv_grad_input((2, 4, 9, 7), w, dy, stride=2, padding=1, groups=2, boundary="reflect")

    w, dy = values((4, 2, 3, 3), np.float32), values((2, 4, 5, 4), np.float32, 1)
    w[0, 1, 0, 2], w[3, 0, 2, 2] = np.nan, np.inf
    for function in (back, folded):
        got, want = njit(function)(w, dy), function(w, dy)
        np.testing.assert_array_equal(got, want)
        assert 0 < np.isfinite(got).sum() < got.size


# signed zeros -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
def test_the_constant_keeps_the_sign_of_zero(dtype):
    x = np.ones((1, 3), dtype)
    for fill in (0, -0.0, 0.0, -0.0, complex(-0.0, 0.0), complex(0.0, -0.0), 0):
        if np.dtype(dtype).kind != "c" and isinstance(fill, complex):
            continue
        for got in (
            nc.im2col(x, (2,), padding=1, fill_value=fill),
            nc.plan_conv(x.shape, (1, 1, 2), padding=1, fill_value=fill, dtype=dtype, flip=True).im2col(x),
        ):
            edge = got[0, -1]
            assert edge == 0
            assert np.signbit(edge.real) == np.signbit(np.real(fill))
            assert np.signbit(edge.imag) == np.signbit(np.imag(fill))


def test_the_constant_keeps_the_sign_of_zero_in_compiled_code():
    compiled = njit(lambda x, fill: nc.im2col(x, (2,), padding=1, fill_value=fill))
    for fill in (-0.0, 0.0, -0.0):
        assert np.signbit(compiled(np.ones((1, 3)), fill)[0, -1]) == np.signbit(fill)


def test_integers_have_one_zero():
    np.testing.assert_array_equal(nc.im2col(np.ones((1, 3), int), (2,), padding=1, fill_value=-0.0)[0], [1, 1, 1, 0])
