"""What is particular to the direct kernels: tiles, blocks and patches at their edges, folded signals, far sums."""

from __future__ import annotations

import os
import subprocess
import sys

import naive
import numpy as np
import pytest
from conftest import BOUNDARIES, assert_same, normal, values

import numconv
from numconv.cpu import patch, simd, stencil

VECTOR = simd.lanes(np.dtype(np.float32))


def by_numpy(x, w, stride=1, dilation=1, padding=0, boundary="constant"):
    """One kernel for each channel, by NumPy's windows: quick enough for whole blocks."""
    pairs = [(padding, padding)] * (x.ndim - 2)
    padded = naive.pad(x.astype(np.float64), pairs, boundary)
    spans = [dilation * (k - 1) + 1 for k in w.shape[2:]]
    axes = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
    every = (slice(None), slice(None))
    places, taken = [slice(None, None, stride)] * len(axes), [slice(None, None, dilation)] * len(axes)
    windows = windows[(*every, *places, *taken)]
    taps = windows.reshape(*windows.shape[: x.ndim], -1)
    return taps, np.einsum("nc...t,ct->nc...", taps, w[:, 0].reshape(len(w), -1).astype(np.float64))


def summed(taps, dy):
    """What the windows and ``dy`` give for every kernel value, shape ``(C, t)``."""
    return np.moveaxis(taps * dy[..., None].astype(np.float64), 1, 0).reshape(dy.shape[1], -1, taps.shape[-1]).sum(1)


def compare(x, w, **geometry):
    """Forward and weight gradient of a depthwise layer, bit for bit."""
    C = x.shape[1]
    taps, want = by_numpy(x, w, **geometry)
    plan = numconv.plan_conv(x.shape, w.shape, algorithm="direct", dtype=x.dtype, groups=C, **geometry)
    assert_same(plan.forward(x, w), want.astype(x.dtype))
    dy = values(want.shape, x.dtype, 5)
    gradient = summed(taps, dy)
    assert_same(plan.grad_weight(x, dy), gradient.reshape(w.shape).astype(x.dtype))


#: Lengths around a vector, two of them, and a block.
EDGES = [1, VECTOR - 1, VECTOR, VECTOR + 1, 2 * VECTOR + 1, patch.ACROSS * VECTOR + 3]


@pytest.mark.parametrize("columns", EDGES)
@pytest.mark.parametrize("rows", [1, simd.WINDOW - 1, simd.WINDOW + 1, simd.WINDOW * patch.DOWN + 2])
def test_images_around_the_edges_of_tiles_and_blocks(rows, columns):
    compare(values((1, 2, rows, columns), "float32"), values((2, 1, 3, 3), "float32", 1), padding=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_strides_and_dilations(stride, dilation, dtype):
    x, w = values((2, 2, 41, 83), dtype), values((2, 1, 5, 4), dtype, 1)
    compare(x, w, stride=stride, dilation=dilation, padding=4)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_blocks_at_every_edge_read_what_the_boundary_says(boundary):
    x, w = values((1, 1, 70, 3 * patch.ACROSS * VECTOR), "float32"), values((1, 1, 7, 6), "float32", 1)
    compare(x, w, padding=5, boundary=boundary)


@pytest.mark.parametrize("kernel", [1, 5, 6, 11, 23])
def test_kernels_of_any_number_of_rows(kernel):
    compare(values((1, 1, 40, 50), "float32"), values((1, 1, kernel, 2), "float32", 1))


@pytest.mark.parametrize("geometry", [{}, {"dilation": 3}, {"dilation": 4, "padding": 9}, {"stride": 2}])
@pytest.mark.parametrize("kernel", [1, VECTOR - 1, VECTOR, 2 * VECTOR + 5])
@pytest.mark.parametrize("length", [8 * VECTOR + 20, 2 * simd.WINDOW * patch.ACROSS * VECTOR + 37])
def test_signals_are_folded(length, kernel, geometry):
    if geometry.get("dilation", 1) * (kernel - 1) < length:
        compare(values((1, 2, length), "float32"), values((2, 1, kernel), "float32", 1), **geometry)


def test_taps_far_apart():
    compare(values((1, 1, 150, 160), "float32"), values((1, 1, 2, 2), "float32", 1), dilation=90, padding=60)


def test_a_sum_over_more_channels_than_a_patch_holds():
    C = 3 * patch.PATCH // 1000
    x, w = values((1, C, 9, 40), "float32"), values((2, C, 3, 3), "float32", 1)
    got = numconv.conv(x, w, values((2,), "float32", 2), padding=1, algorithm="direct")
    assert_same(got, numconv.conv(x, w, values((2,), "float32", 2), padding=1, algorithm="im2col"))


@pytest.mark.parametrize("shape", [(40,), (9, 70), (5, 8, 37)])
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 5])
def test_a_strided_input_gradient_is_written_between_what_is_there(kernel, stride, shape):
    """Pixels of every phase, also where it ends within a vector, and none where no tap meets one."""
    x, w = values((2, 2, *shape), "float32"), values((2, 1, *[kernel] * len(shape)), "float32", 1)
    plan = numconv.plan_conv(x.shape, w.shape, algorithm="direct", stride=stride, padding=kernel // 2, groups=2)
    dy = values(plan.output_shape, "float32", 2)
    out = np.full(x.shape, np.nan, "float32")
    want = naive.conv_grad_input(x.shape, w, dy, groups=2, stride=stride, padding=kernel // 2)
    assert_same(plan.grad_input(dy, w, out=out), want.astype("float32"))


def test_a_strided_input_gradient_of_more_channels_than_a_patch_holds():
    K = 2 * patch.PATCH // 1000
    w, dy = values((K, 1, 3, 3), "float32"), values((1, K, 7, 40), "float32", 1)
    direct, stored = (
        numconv.plan_conv((1, 1, 13, 79), w.shape, algorithm=a, stride=2, padding=1) for a in ("direct", "im2col")
    )
    assert_same(direct.grad_input(dy, w), stored.grad_input(dy, w))


@pytest.mark.parametrize("K", [4, 2 * stencil.SUMS // 27 + 2])
def test_output_channels_that_share_what_a_weight_gradient_gathers(K):
    x, w = values((2, 6, 15, 20), "float32"), values((2 * K, 3, 3, 3), "float32", 1)
    direct, stored = (numconv.plan_conv(x.shape, w.shape, algorithm=a, groups=2) for a in ("direct", "im2col"))
    dy = values(direct.output_shape, "float32", 2)
    assert_same(direct.grad_weight(x, dy), stored.grad_weight(x, dy))


PLANES = {
    "many": ((2, 40, 7, 5), (3, 3), {"padding": 1}),
    "smaller than the kernel": ((1, 6, 3, 2), (5, 5), {"padding": 4}),
    "rows apart": ((1, 4, 20, 9), (3, 2), {"padding": 2, "stride": (3, 1), "dilation": (2, 3)}),
    "volumes": ((1, 3, 4, 6, 5), (3, 3, 3), {"padding": 2}),
}


@pytest.mark.parametrize("fill", [0, 3])
@pytest.mark.parametrize("case", PLANES)
def test_planes_end_where_the_next_begins(case, fill):
    shape, kernel, geometry = PLANES[case]
    C = shape[1]
    x, w = values(shape, "float32"), values((C, 1, *kernel), "float32", 1)
    x[:, 1] = np.nan  # nobody else sees it
    direct, stored = (
        numconv.plan_conv(shape, w.shape, algorithm=a, groups=C, fill_value=fill, **geometry)
        for a in ("direct", "im2col")
    )
    dy = values(direct.output_shape, "float32", 2)
    for got, want in (
        (direct.forward(x, w), stored.forward(x, w)), (direct.grad_weight(x, dy), stored.grad_weight(x, dy)),
    ):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_not_finite_stays_in_its_windows(bad, stride):
    x, w = values((1, 1, 40, 90), "float32"), np.ones((1, 1, 3, 5), "float32")
    x[0, 0, [0, 17, 39], [0, 45, 89]] = bad
    plan = numconv.plan_conv(x.shape, w.shape, algorithm="direct", stride=stride, padding=2)
    _, want = by_numpy(x, w, stride=stride, padding=2)
    np.testing.assert_array_equal(np.isfinite(plan.forward(x, w)), np.isfinite(want))
    x[...] = 1
    x[0, 0, 39, 0] = bad  # only taps that look at the corner see it
    dy = np.ones(plan.output_shape, "float32")
    taps, _ = by_numpy(x, w, stride=stride, padding=2)
    seen = ~np.isfinite(summed(taps, dy)).reshape(w.shape)
    np.testing.assert_array_equal(~np.isfinite(plan.grad_weight(x, dy)), seen)
    assert 0 < seen.sum() < seen.size


def test_a_long_weight_gradient_rounds_as_one_in_float64():
    x, w = normal((1, 1, 400, 700), "float32"), normal((1, 1, 3, 3), "float32", 1)
    plan = numconv.plan_conv(x.shape, w.shape, algorithm="direct")
    dy = normal(plan.output_shape, "float32", 2)
    taps, _ = by_numpy(x, w)
    want = summed(taps, dy).reshape(w.shape)
    assert np.abs(plan.grad_weight(x, dy) - want).max() < 2e-6 * np.sqrt(dy.size)


def test_without_compilation_the_same_sums_are_plain_loops():
    code = """if True:
        import numpy as np, numconv
        x, w = np.arange(600.0).reshape(1, 2, 12, 25) % 7, np.arange(12.0).reshape(2, 1, 3, 2)
        for stride in (1, 2):
            direct, stored = (
                numconv.plan_conv(x.shape, w.shape, dtype=x.dtype, algorithm=a, groups=2, stride=stride, padding=1)
                for a in ("direct", "im2col")
            )
            y = stored.forward(x, w)
            assert np.array_equal(direct.forward(x, w), y)
            assert np.array_equal(direct.grad_weight(x, y), stored.grad_weight(x, y))
    """
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "NUMBA_DISABLE_JIT": "1"})
