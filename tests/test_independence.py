"""What is computed together has the bits it has alone, whatever lies beside it and however much of it there is.

So it is for an image of a batch, a row along ``axes=`` and a column of an operator, in every algorithm and in ``auto``.
"""

from __future__ import annotations

import numpy as np
import pytest
import strategies
from conftest import ALGORITHMS, normal
from hypothesis import given
from hypothesis import strategies as st

import numconv as nc
from numconv import select
from numconv.geometry import conv_geometry

#: What lies beside: quiet, loud, a mark of missing data, nothing finite.
BESIDE = {"quiet": 1e-30, "loud": 1e6, "mark": 1e30, "nan": np.nan, "inf": np.inf}

#: Larger than random cases are: several blocks, threads, phases; one of what each algorithm is for.
LARGE = {
    "strided layer": ((64, 56, 56), (64, 64, 3, 3), {"stride": 2, "padding": 1}),
    "layer": ((32, 28, 28), (48, 32, 3, 3), {"padding": 1}),
    "wide layer": ((128, 14, 14), (128, 128, 3, 3), {"padding": 1}),
    "dilated layer": ((16, 30, 30), (16, 16, 3, 3), {"dilation": 2, "padding": 2}),
    "1x1": ((64, 10, 10), (48, 64, 1, 1), {}),
    "few channels": ((3, 64, 64), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
    "depthwise": ((32, 30, 30), (32, 1, 3, 3), {"groups": 32, "padding": 1, "boundary": "reflect"}),
    "filter": ((1, 90, 101), (1, 1, 31, 31), {"padding": 15}),
    "signal": ((1, 6000), (1, 1, 501), {"padding": 250}),
    "channelled signal": ((16, 1000), (24, 16, 5), {"padding": 2}),
    "volume": ((4, 12, 13, 14), (6, 4, 3, 3, 3), {"padding": 1}),
}  # fmt: skip


def assert_same_bits(got, alone):
    """The same values, and the same signs of zeros; one NaN is as good as another."""
    assert got.dtype == alone.dtype
    assert got.shape == alone.shape
    got, alone = (np.where(np.isnan(a), np.nan, a) for a in (got, alone))
    assert np.array_equal(got, alone, equal_nan=True)
    parts = [(got, alone)] if got.dtype.kind != "c" else [(got.real, alone.real), (got.imag, alone.imag)]
    for one, other in parts:
        there = ~np.isnan(one)
        np.testing.assert_array_equal(np.signbit(one[there]), np.signbit(other[there]))


def batch_of(shape, dtype, images, beside, seed):
    """Random images, every other one of which is as loud as ``beside`` says, some of it or all."""
    x = normal((images, *shape), dtype, seed)
    with np.errstate(all="ignore"):
        x[1::2] *= beside
        x[3::4, ..., : shape[-1] // 2] = 1
    return x


def assert_images_are_alone(shape, w, geometry, algorithm, images, beside, seed):
    """Both products that have a batch, with a plan for each number of images."""
    x = batch_of(shape, w.dtype, images, beside, seed)
    arguments = {"dtype": w.dtype, "algorithm": algorithm, **geometry}
    plan = nc.plan_conv(x.shape, w.shape, **arguments)
    one = nc.plan_conv((1, *shape), w.shape, **arguments)
    dy = batch_of(plan.output_shape[1:], w.dtype, images, beside, seed + 1)
    y, dx = plan.forward(x, w), plan.grad_input(dy, w)
    for n in range(images):
        assert_same_bits(y[n : n + 1], one.forward(x[n : n + 1], w))
        assert_same_bits(dx[n : n + 1], one.grad_input(dy[n : n + 1], w))


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
@given(
    case=strategies.cases(dtypes=("float32", "float64", "complex64"), axes=(1, 2, 3), batch=False),
    images=st.integers(2, 9), beside=st.sampled_from(sorted(BESIDE)),
)  # fmt: skip
def test_an_image_of_a_batch_has_the_bits_it_has_alone(algorithm, case, images, beside):
    geometry = conv_geometry((images, *case.x_shape), case.w_shape, **case.geometry)
    if algorithm != "auto" and select.refusal(algorithm, geometry, np.dtype(case.dtype)):
        return
    w = normal(case.w_shape, case.dtype, case.seed)
    assert_images_are_alone(case.x_shape, w, case.geometry, algorithm, images, BESIDE[beside], case.seed)


@given(
    case=strategies.cases(dtypes=("float32",), batch=False, kernel=(3, 3)), images=st.integers(2, 9),
    beside=st.sampled_from(sorted(BESIDE)),
)
def test_so_it_has_in_tiles_of_winograd(case, images, beside):
    w = normal(case.w_shape, case.dtype, case.seed)
    assert_images_are_alone(case.x_shape, w, case.geometry, "winograd", images, BESIDE[beside], case.seed)


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
@pytest.mark.parametrize(("shape", "w_shape", "geometry"), LARGE.values(), ids=LARGE)
def test_so_it_has_in_a_large_layer(shape, w_shape, geometry, algorithm):
    if algorithm != "auto" and select.refusal(algorithm, conv_geometry(shape, w_shape, **geometry), np.dtype("f4")):
        pytest.skip("it cannot serve this layer")
    w, images = normal(w_shape, np.float32), 5
    plan = nc.plan_conv((images, *shape), w_shape, algorithm=algorithm, **geometry)
    x = normal(plan.input_shape, np.float32)
    dy = normal(plan.output_shape, np.float32)
    for a in (x, dy):
        a[1] *= 1e6
        a[3, 0, 0] = np.nan
    y, dx = plan.forward(x, w), plan.grad_input(dy, w)
    one = nc.plan_conv((1, *shape), w_shape, algorithm=algorithm, **geometry)
    for n in (0, 1, 4):
        assert_same_bits(y[n : n + 1], one.forward(x[n : n + 1], w))
        assert_same_bits(dx[n : n + 1], one.grad_input(dy[n : n + 1], w))


@pytest.mark.parametrize(("shape", "w_shape", "geometry"), LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "complex64"])
def test_the_algorithm_follows_from_one_image(shape, w_shape, geometry, dtype):
    choices = {nc.plan_conv((n, *shape), w_shape, dtype=dtype, **geometry).choice[:2] for n in (1, 2, 8, 1000)}
    assert len(choices) == 1
    assert nc.plan_conv((10**6, *shape), w_shape, dtype=dtype, **geometry).nbytes("workspace") <= 64 << 20


# rows along axes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["auto", "im2col", "implicit", "direct", "fft"])
@pytest.mark.parametrize(("samples", "taps"), [(3000, 900), (600, 31), (40, 7), (31, 600)])
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_a_row_along_an_axis_has_the_bits_it_has_alone(algorithm, samples, taps, mode):
    h = normal((taps,), np.float32)
    for beside in ("loud", "inf"):
        stack = batch_of((samples,), np.float32, 5, BESIDE[beside], samples)
        together = nc.convolve(stack, h, mode, axes=1, algorithm=algorithm)
        columns = nc.convolve(np.ascontiguousarray(stack.T), h, mode, axes=0, algorithm=algorithm)
        for row, got, column in zip(stack, together, columns.T, strict=True):
            alone = nc.convolve(row[None], h, mode, axes=1, algorithm=algorithm)[0]
            assert_same_bits(got, alone)
            assert_same_bits(column, alone)


@pytest.mark.parametrize("algorithm", ["auto", "im2col", "implicit", "direct", "fft"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_so_it_has_where_the_kernel_is_the_larger(algorithm, dtype):
    for rows, samples, taps in [(2, (2,), (9,)), (3, (5,), (40,)), (7, (2, 2), (3, 5)), (12, (4, 3), (9, 4))]:
        stack, h = normal((rows, *samples), dtype, rows), normal(taps, dtype, 1)
        axes = tuple(range(1, stack.ndim))
        for function in (nc.convolve, nc.correlate):
            together = function(stack, h, "valid", axes=axes, algorithm=algorithm)
            for r in range(rows):
                assert_same_bits(together[r], function(stack[r : r + 1], h, "valid", axes=axes, algorithm=algorithm)[0])


def test_a_quiet_row_beside_a_loud_one_is_right():
    rng = np.random.default_rng(0)
    stack, h = rng.standard_normal((2, 20_000)).astype(np.float32), rng.standard_normal(2000).astype(np.float32)
    stack[1] *= 1e6
    exact = nc.convolve(stack[0].astype(float), h.astype(float))
    for algorithm in ("auto", "fft"):
        got = nc.convolve(stack, h, axes=1, algorithm=algorithm)[0]
        assert np.abs(got - exact).max() < 1e-5 * np.sqrt(np.mean(exact**2))


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
def test_a_row_of_a_normalized_convolution_has_the_bits_it_has_alone(mode):
    stack, h = batch_of((300,), np.float64, 4, 1e6, 1), np.abs(normal((21,)))
    stack[:, ::7] = np.nan
    together = nc.normalized_convolve(stack, h, mode, axes=1)
    for row, got in zip(stack, together, strict=True):
        assert_same_bits(got, nc.normalized_convolve(row[None], h, mode, axes=1)[0])


# columns of operators -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
@given(
    case=strategies.cases(dtypes=("float32", "complex64"), axes=(1, 2), fill=False, batch=False),
    columns=st.integers(2, 9), beside=st.sampled_from(sorted(BESIDE)),
)  # fmt: skip
def test_a_column_of_an_operator_has_the_bits_it_has_alone(algorithm, case, columns, beside):
    plan_of = {"dtype": case.dtype, "algorithm": algorithm, **case.linear}
    geometry = conv_geometry(case.x_shape, case.w_shape, **case.linear)
    if algorithm != "auto" and select.refusal(algorithm, geometry, np.dtype(case.dtype)):
        return
    A = nc.plan_conv(case.x_shape, case.w_shape, **plan_of).linear_operator(normal(case.w_shape, case.dtype))
    for product, of_one, n in ((A.matmat, A.matvec, A.shape[1]), (A.rmatmat, A.rmatvec, A.shape[0])):
        X = batch_of((n,), case.dtype, columns, BESIDE[beside], case.seed).T
        for x, y in zip(X.T, product(X).T, strict=True):
            assert_same_bits(y, of_one(x))


# a kernel for each output ---------------------------------------------------------------------------------------------


@given(
    case=strategies.cases(dtypes=("float32", "complex64"), axes=(1, 2), batch=False), images=st.integers(2, 9),
    beside=st.sampled_from(sorted(BESIDE)),
)
def test_an_image_has_the_bits_it_has_alone_where_every_output_has_a_kernel(case, images, beside):
    g = conv_geometry(case.x_shape, case.w_shape, **case.geometry)
    x = batch_of(case.x_shape, case.dtype, images, BESIDE[beside], case.seed)
    w = normal((*g.out, *case.w_shape), case.dtype, case.seed)
    y = nc.conv_local(x, w, **case.geometry)
    dy = batch_of(y.shape[1:], case.dtype, images, BESIDE[beside], case.seed)
    dx = nc.conv_local_grad_input(x.shape, w, dy, **case.linear)
    for n in range(images):
        one = slice(n, n + 1)
        assert_same_bits(y[one], nc.conv_local(x[one], w, **case.geometry))
        assert_same_bits(dx[one], nc.conv_local_grad_input(x[one].shape, w, dy[one], **case.linear))
