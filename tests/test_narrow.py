"""Axes of one to three pixels: an axis of one has no stride, whatever NumPy says of it, and most of it is edge."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from conftest import ALGORITHMS, AMPLIFICATION, EXACT, assert_close, assert_same, values
from hypothesis import given, settings
from numba import njit
from strategies import narrow_cases

import numconv as nc
from numconv import overloads
from numconv.cpu import patch

overloads.init()


def products_of(algorithm, x, w, dy, **geometry):
    """The three products by an algorithm; none where it says that it cannot serve."""
    try:
        plan = nc.plan_conv(x.shape, w.shape, dtype=x.dtype, algorithm=algorithm, **geometry)
    except ValueError:
        assert algorithm in ("winograd", "fft")
        return ()
    return plan.forward(x, w), plan.grad_input(dy, w), plan.grad_weight(x, dy)


@settings(max_examples=settings().max_examples * 2)
@given(case=narrow_cases(dtypes=["float32", "float32", "float64", "complex64"]))
def test_narrow_axes_give_the_sums_of_what_meets(case):
    x, w = case.x, case.w
    dy = case.dy(nc.plan_conv(x.shape, w.shape, **case.geometry).output_shape)
    want = naive.products(x, w, dy, **case.geometry)
    scale = 8 * max(x.size, w.size, dy.size)
    for algorithm in (*ALGORITHMS, "auto"):
        for got, sums in zip(products_of(algorithm, x, w, dy, **case.geometry), want, strict=False):
            if algorithm in EXACT:
                assert_same(got, sums, case.dtype)
            else:
                assert_close(got, sums, case.dtype, scale, AMPLIFICATION)


#: An image one pixel wide, more pixels than a block has in the other axis, and more channels than a patch holds.
K, ROWS = 2 * patch.PATCH // 1000, 30
ONE_PIXEL = {"last": (ROWS, 1), "first": (1, ROWS), "between": (2, 1, ROWS), "last of three": (1, ROWS, 1)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", [1, 2])
@pytest.mark.parametrize("size", ONE_PIXEL.values(), ids=ONE_PIXEL)
def test_a_stride_over_one_pixel_goes_nowhere(size, kernel, dtype):
    stride = tuple(3 if n == 1 else 1 for n in size)
    geometry = {"stride": stride, "padding": kernel - 1}
    w = values((K, 2, *[kernel] * len(size)), dtype)
    plan = nc.plan_conv((2, 2, *size), w.shape, dtype=dtype, algorithm="direct", **geometry)
    dy = values(plan.output_shape, dtype, 1)
    _, want, _ = naive.products(np.zeros(plan.input_shape, dtype), w, dy, **geometry)
    for algorithm in (*EXACT, "auto"):
        assert_same(nc.conv_grad_input(plan.input_shape, w, dy, algorithm=algorithm, **geometry), want, dtype)


def test_a_stride_over_one_pixel_goes_nowhere_in_compiled_code_either():
    shape, w = (2, 2, 16, 1), values((128, 2, 1, 1), np.float32)
    dy = values((2, 128, 16, 1), np.float32, 1)
    assert nc.plan_conv(shape, w.shape, stride=(1, 2), dtype=dy.dtype).choice.grad_input == "direct"
    compiled = njit(lambda w, dy: nc.conv_grad_input((2, 2, 16, 1), w, dy, stride=(1, 2)))
    _, want, _ = naive.products(np.zeros(shape, np.float32), w, dy, stride=(1, 2))
    assert_same(compiled(w, dy), want, np.float32)


def test_the_stride_of_an_axis_of_one_changes_no_bit():
    """NumPy calls such views contiguous whatever the stride of their last axis is."""
    x, w = values((1, 2, ROWS, 1), np.float32), values((K, 2, 1, 1), np.float32, 1)
    dy = values((1, K, ROWS, 1), np.float32, 2)
    for algorithm in (*EXACT, "auto"):
        plan = nc.plan_conv(x.shape, w.shape, algorithm=algorithm)
        into = np.full((1, 2, ROWS, 1), np.nan, np.float32)[..., ::5]
        assert_same(plan.grad_input(dy, w, out=into), plan.grad_input(dy, w))
        into = np.full((1, K, ROWS, 1), np.nan, np.float32)[..., ::5]
        assert_same(plan.forward(x, w, out=into), plan.forward(x, w))
