"""Long sums: rounding does not grow with their length, for sums are added up part by part."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from conftest import EXACT, assert_same, result_of
from hypothesis import given, settings
from strategies import cases

import numconv as nc
from numconv.cpu import pieces

#: Sums of some thousand products, in one of the three products at least.
LONG = {
    "a large kernel": ((1, 1, 110, 120), (1, 1, 91, 91), {}),
    "a long kernel": ((1, 1, 3, 1200), (1, 1, 3, 1001), {}),
    "a long filter": ((1, 1, 8000), (1, 1, 3001), {}),
    "many channels": ((1, 512, 8, 9), (2, 512, 3, 3), {"padding": 1}),
    "many channels, strided": ((1, 512, 9, 9), (3, 512, 3, 3), {"stride": 2}),
    "a pixel": ((1, 4096, 4, 4), (4, 4096, 1, 1), {}),
    "an image": ((1, 1, 150, 160), (2, 1, 1, 1), {}),
    "a volume": ((1, 20, 9, 10, 11), (2, 20, 7, 7, 7), {}),
}


@pytest.mark.parametrize("algorithm", ["auto", *EXACT, "fft"])
@pytest.mark.parametrize("case", LONG)
def test_a_long_sum_of_float32_is_as_good_as_a_short_one(case, algorithm):
    shape, kernel, geometry = LONG[case]
    if algorithm == "kernel2row" and np.prod(kernel[2:]) > 1000:
        pytest.skip("the matrix would be large")
    rng = np.random.default_rng(0)
    plan = nc.plan_conv(shape, kernel, dtype="float32", algorithm=algorithm, **geometry)
    x, w, dy = (rng.random(s).astype("float32") for s in (shape, kernel, plan.output_shape))
    exact = nc.plan_conv(shape, kernel, dtype="float64", algorithm="im2col", **geometry)
    for got, want in (
        (plan.forward(x, w), exact.forward(x, w)), (plan.grad_input(dy, w), exact.grad_input(dy, w)),
        (plan.grad_weight(x, dy), exact.grad_weight(x, dy)),
    ):
        assert np.abs(got - want).max() < 2e-6 * np.abs(want).max()


@pytest.mark.parametrize("algorithm", ["direct", "implicit"])
def test_complex_sums_are_added_up_part_by_part_too(algorithm):
    rng = np.random.default_rng(1)
    x, w = (rng.random((1, 1, n, n)) + 1j * rng.random((1, 1, n, n)) for n in (70, 61))
    got = nc.conv(x.astype("complex64"), w.astype("complex64"), algorithm=algorithm)
    want = nc.conv(x.astype("complex64").astype(complex), w.astype("complex64").astype(complex), algorithm="im2col")
    assert np.abs(got - want).max() < 2e-6 * np.abs(want).max()


@pytest.mark.parametrize("algorithm", ["auto", "direct", "implicit", "im2col", "kernel2row", "fft"])
def test_the_mean_of_an_image(algorithm):
    x, w = np.full((1, 1, 2048, 2048), 0.1, np.float32), np.full((1, 1, 2048, 2048), 2.0**-22, np.float32)
    assert abs(nc.conv(x, w, algorithm=algorithm).item() / 0.1 - 1) < 1e-6


@pytest.mark.parametrize("algorithm", ["direct", "implicit", "im2col"])
@settings(max_examples=settings().max_examples // 2)
@given(case=cases(dtypes=["float32", "complex64", "int16"]))
def test_a_sum_in_pieces_is_the_sum(algorithm, case):
    """As if sums of a few products were long already."""
    whole = naive.conv(case.x, case.w, **case.geometry)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "LONGEST", 4)
        patch.setattr(pieces, "PIECE", 4)
        assert_same(result_of(algorithm, nc.conv, case.x, case.w, **case.geometry), whole, case.dtype)
        dy = case.dy(whole.shape)
        got = result_of(algorithm, nc.conv_grad_input, case.x_shape, case.w, dy, **case.linear)
        assert_same(got, naive.conv_grad_input(case.x_shape, case.w, dy, **case.linear), case.dtype)
