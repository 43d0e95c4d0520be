"""The FFT in blocks: what happens where blocks meet, where one is not finite, and where sums need several parts."""

from __future__ import annotations

import naive
import numpy as np
import pytest
import scipy.signal
import strategies
from conftest import BOUNDARIES, normal
from hypothesis import given
from hypothesis import strategies as st
from test_memory import at_most

import numconv as nc
from numconv.cpu import fft, overlap


def close(got, exact, dtype=np.float64):
    """Within the rounding of transforms: some units in the last place of the result's size."""
    assert got.dtype == dtype
    assert np.abs(got - exact).max() <= 60 * np.finfo(dtype).eps * np.sqrt(np.mean(np.abs(exact) ** 2))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 256 numbers, spectra of some channels at a time: small cases meet everything large ones do."""
    for name, value in {"BLOCK": 256, "TASK": 512, "KERNELS": 1024, "WORTH": 512}.items():
        monkeypatch.setattr(overlap, name, value)
    overlap.tiling.cache_clear()
    yield
    overlap.tiling.cache_clear()


# where blocks meet ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("more", range(-2, 3))
def test_sizes_around_whole_blocks(small_blocks, more, images):
    kernel = 20
    for start in range(1, 4):  # one, two, three blocks and a little more or less
        rows = ((100_000, kernel, 100_000 - kernel + 1, 0, 1, 1),)
        tile = overlap.tiling(rows, 8).tile[0]
        n = start * tile + kernel - 1 + more
        x, w = normal((images, 1, n)), normal((1, 1, kernel))
        exact = np.array([scipy.signal.correlate(a[0], w[0, 0], "valid", "direct") for a in x])[:, None]
        close(nc.conv(x, w, algorithm="fft"), exact)


CUT = {
    "1d": ((2, 2, 400), (2, 2, 20), {}),
    "1d kernel larger than a block": ((1, 1, 900), (1, 1, 400), {"padding": 200}),
    "1d far taps": ((1, 2, 900), (2, 2, 5), {"dilation": 170, "padding": 90}),
    "2d": ((1, 1, 61, 47), (1, 1, 7, 6), {"padding": (3, 2)}),
    "2d kernel larger than a block": ((1, 1, 17, 22), (1, 1, 11, 15), {"padding": (6, 9)}),
    "2d strided": ((2, 2, 50, 41), (2, 2, 5, 9), {"padding": 7, "stride": (3, 2), "flip": True}),
    "2d groups": ((2, 6, 20, 21), (4, 3, 5, 4), {"padding": 4, "groups": 2}),
    "2d many channels": ((1, 24, 7, 6), (14, 24, 3, 3), {"padding": 1}),
    "3d": ((1, 2, 9, 10, 11), (2, 2, 3, 4, 3), {"padding": 2, "dilation": (2, 1, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float64, np.complex128], ids=["float64", "complex128"])
@pytest.mark.parametrize(("x_shape", "w_shape", "geometry"), CUT.values(), ids=CUT)
def test_whatever_is_cut_is_joined_again(small_blocks, x_shape, w_shape, geometry, dtype):
    x, w, bias = normal(x_shape, dtype), normal(w_shape, dtype, 1), normal(w_shape[:1], dtype, 2)
    plan = nc.plan_conv(x_shape, w_shape, dtype=dtype, algorithm="fft", **geometry)
    exact = naive.conv(x, w, bias, **geometry)
    dy = normal(exact.shape, dtype, 3)
    close(plan.forward(x, w, bias), exact, dtype)
    close(plan.grad_weight(x, dy), naive.conv_grad_weight(x, w_shape, dy, **geometry), dtype)
    close(plan.grad_input(dy, w), naive.conv_grad_input(x_shape, w, dy, **geometry), dtype)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(
    ("size", "kernel"), [((27, 20), (15, 21)), ((5, 40), (31, 3)), ((300,), (350,)), ((7,), (40,))], ids=str
)
def test_boundaries_of_kernels_larger_than_block_or_image(small_blocks, size, kernel, boundary):
    x, w = normal(size), normal(kernel)
    padding = [(k // 2, k - k // 2 + 3) for k in kernel]
    exact = naive.conv(x[None], w[None, None], padding=padding, boundary=boundary)
    close(nc.conv(x[None], w[None, None], padding=padding, boundary=boundary, algorithm="fft"), exact)


def test_a_constant_other_than_zero_fills_the_border(small_blocks):
    x, w = normal((2, 33, 40)), normal((3, 2, 5, 6))
    exact = naive.conv(x, w, padding=5, fill_value=2.5)
    close(nc.conv(x, w, padding=5, fill_value=2.5, algorithm="fft"), exact)


# NaN, infinity, overflow ----------------------------------------------------------------------------------------------


@given(
    case=strategies.cases(dtypes=("float32", "float64"), axes=(1, 2, 3)), in_x=st.booleans(),
    places=st.lists(st.integers(0, 10**6), max_size=3), bad=st.sampled_from([np.nan, np.inf, -np.inf]),
)  # fmt: skip
def test_a_value_is_not_finite_where_the_plain_sum_is_not(case, places, in_x, bad):
    x, w = case.x, case.w
    for place in places:
        (x if in_x else w).flat[place % (x if in_x else w).size] = bad
    got, plain = (nc.conv(x, w, algorithm=algorithm, **case.geometry) for algorithm in ("fft", "direct"))
    finite = np.isfinite(plain)
    np.testing.assert_array_equal(got[~finite], plain[~finite])
    np.testing.assert_allclose(got[finite], plain[finite], rtol=0, atol=1e-4 if case.dtype == "float32" else 1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("place", [(0, 0), (50, 61), (129, 139)], ids=str)
def test_what_is_not_finite_stays_in_the_windows_that_hold_it(small_blocks, place, bad):
    x, w = normal((130, 140)), np.abs(normal((9, 7)))
    x[place] = bad
    y = nc.correlate(x, w, "same", algorithm="fft")
    held = nc.correlate(np.isin(np.arange(x.size).reshape(x.shape), place[0] * 140 + place[1]), w > -1, "same")
    np.testing.assert_array_equal(~np.isfinite(y), held)
    np.testing.assert_array_equal(y[held], bad)
    x[place] = 0
    assert np.abs(y - nc.correlate(x, w, "same", algorithm="direct"))[~held].max() < 1e-12


def test_what_is_not_finite_beyond_the_last_window_reaches_none():
    x, w = normal((1, 1, 501)), normal((1, 1, 9))
    x[..., -1] = np.nan  # the stride leaves it out
    x[..., 9] = np.inf  # between taps
    y = nc.conv(x, w, stride=2, dilation=2, algorithm="fft")
    z = nc.conv(x, w, stride=2, dilation=2, algorithm="direct")
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(z))
    finite = np.isfinite(z)
    np.testing.assert_allclose(y[finite], z[finite], rtol=0, atol=1e-12)


def test_transforms_that_overflow_do_not_make_a_result_infinite():
    x, w = np.full(3000, 3e37, np.float32), np.full(100, 1e-3, np.float32)  # the sum over a block leaves float32
    y = nc.convolve(x, w, "valid", algorithm="fft")
    np.testing.assert_allclose(y, 3e36, rtol=1e-5)


def test_the_weight_gradient_knows_nan():
    x, dy = normal((1, 2, 400)), normal((1, 1, 391))
    x[0, 1, 200] = np.nan
    plan = nc.plan_conv(x.shape, (1, 2, 10), dtype=float, algorithm="fft")
    dw = plan.grad_weight(x, dy)
    assert np.isnan(dw[0, 1]).all()
    np.testing.assert_allclose(dw[0, 0], np.correlate(x[0, 0], dy[0, 0], "valid"), rtol=0, atol=1e-11)


# accuracy, memory, threads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x_shape", "w_shape"),
    [((300, 310), (63, 63)), ((300, 310), (31, 31)), ((20_000,), (3000,)), ((20_000,), (100,))], ids=str,
)  # fmt: skip
def test_float32_errs_little(x_shape, w_shape):
    x, w = normal(x_shape, np.float32), normal(w_shape, np.float32)
    exact = scipy.signal.fftconvolve(x.astype(float), w.astype(float), "valid")
    close(nc.convolve(x, w, "valid", algorithm="fft"), exact, np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize(
    ("input_shape", "kernel_shape", "arguments"),
    [
        ((1, 1, 100_000, 100_000), (1, 1, 63, 63), {}),
        ((64, 512, 1000, 1000), (512, 512, 3, 3), {}),
        ((1, 1, 10**8), (1, 1, 10**7), {}),
        ((1, 16, 4000, 4000, 400), (16, 16, 30, 30, 30), {}),
        ((1, 4096, 100, 100), (1, 4096, 63, 63), {}),
        ((1, 1, 100, 100), (4096, 1, 63, 63), {}),
        ((1, 1, 10**6), (1, 1, 3), {"dilation": 10**5}),
    ],
)  # fmt: skip
def test_the_workspace_is_bounded_at_any_size(input_shape, kernel_shape, arguments, dtype):
    plan = nc.plan_conv(input_shape, kernel_shape, dtype=dtype, algorithm="fft", **arguments)
    assert plan.nbytes("workspace") <= 64 << 20


@pytest.mark.parametrize(("x_shape", "w_shape"), [((1500, 1400), (63, 63)), ((400_000,), (90_000,))], ids=str)
def test_the_workspace_is_what_is_taken(x_shape, w_shape):
    x, w = normal(x_shape, np.float32), normal(w_shape, np.float32)
    plan = nc.plan_convolve(x_shape, w_shape, "same", algorithm="fft")
    out = np.empty(plan.output_shape, np.float32)
    plan.forward(x, w, out=out)
    workspace = plan.nbytes("workspace")
    assert 100_000 < workspace <= 64 << 20
    with at_most(workspace + 500_000):
        plan.forward(x, w, out=out)


def test_any_number_of_threads_gives_the_same_bits():
    numba = pytest.importorskip("numba")
    before = numba.get_num_threads()
    if before < 2:
        pytest.skip("one core")
    cases = [
        ((1, 1, 200_003), (1, 1, 501)), ((3, 1, 300, 290), (1, 1, 25, 25)), ((2, 24, 60, 50), (20, 24, 5, 5))
    ]  # fmt: skip
    try:
        for x_shape, w_shape in cases:
            plan = nc.plan_conv(x_shape, w_shape, algorithm="fft")
            x, w = normal(x_shape, np.float32), normal(w_shape, np.float32)
            dy, results = normal(plan.output_shape, np.float32), []
            for threads in (1, 2, before):
                numba.set_num_threads(threads)
                results.append([plan.forward(x, w), plan.grad_weight(x, dy), plan.grad_input(dy, w)])
            for other in results[1:]:
                for one, two in zip(results[0], other, strict=True):
                    assert one.tobytes() == two.tobytes()
    finally:
        numba.set_num_threads(before)


# values that stand out ------------------------------------------------------------------------------------------------


def long_products(x, w, dy, geometry):
    """The three products of one image after the other in extended precision, by the matrices."""
    plan = nc.plan_conv(x.shape[1:], w.shape, dtype=np.float64, **geometry)
    x, w, dy = (a.astype(np.longdouble) for a in (x, w, dy))
    A = plan.matrix(w.astype(np.float64)).astype(np.longdouble)
    y, dx = A @ x.reshape(len(x), -1).T, A.T @ dy.reshape(len(x), -1).T
    dw = sum(d.reshape(len(w), -1) @ plan.im2col(a.astype(float)).astype(w.dtype).T for a, d in zip(x, dy, strict=True))
    return y.T.reshape(dy.shape), dx.T.reshape(x.shape), dw.reshape(w.shape)


def within_bound(x, w, dy, geometry, floor):
    """By how much of the bound of ``fft.forward`` the products differ, for blocks whose level is about 1.

    The weight gradient's is that of a plain sum.
    """
    dtype = w.dtype
    plan = nc.plan_conv(x.shape, w.shape, dtype=dtype, algorithm="fft", **geometry)
    got = plan.forward(x, w), plan.grad_input(dy, w), plan.grad_weight(x, dy)
    exact, read = long_products(x, w, dy, geometry), long_products(*map(np.abs, (x, w, dy)), geometry)
    scale = 16 * floor * np.sqrt((w.astype(np.float64) ** 2).sum())
    for ours, truth, terms, more in zip(got, exact, read, (scale, scale, 60 * read[2]), strict=True):
        fits = terms < np.finfo(dtype).max / 2  # no part of the sum overflows
        assert (np.abs(ours - truth) <= np.finfo(dtype).eps * (4 * terms + more))[fits].all()


#: What the level of a block adds to the bound, in units of rounding; and the largest outliers.
FLOOR = {np.float32: (2.0**-5, 36), np.float64: (2.0**16, 290)}
OUTLIERS = {
    "filter": ((1, 1, 90, 101), (1, 1, 21, 17), {"padding": 8}),
    "layer": ((2, 3, 40, 41), (4, 3, 7, 7), {"padding": 3, "boundary": "reflect"}),
    "strided": ((1, 2, 60, 61), (3, 2, 9, 8), {"stride": (2, 3), "dilation": (1, 2), "flip": True}),
    "signal": ((2, 1, 5000), (1, 1, 301), {"padding": 300}),
    "volume": ((1, 1, 14, 15, 16), (1, 1, 4, 5, 3), {"padding": 1}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", FLOOR, ids=["float32", "float64"])
@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize(("x_shape", "w_shape", "geometry"), OUTLIERS.values(), ids=OUTLIERS)
def test_outliers_change_what_reads_them_alone(x_shape, w_shape, geometry, dtype, count):
    floor, most = FLOOR[dtype]
    rng = np.random.default_rng([count, *x_shape])

    def with_outliers(shape):
        a = normal(shape, dtype)
        sizes = 10 ** rng.uniform(3, most, count)
        a.flat[rng.choice(a.size, count, replace=False)] = sizes * rng.choice([-1, 1], count)
        return a

    out = nc.plan_conv(x_shape, w_shape, **geometry).output_shape
    within_bound(with_outliers(x_shape), normal(w_shape, dtype), with_outliers(out), geometry, floor)


@pytest.mark.parametrize("mark", [1e20, 9.97e36, -1e30])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9])
def test_a_region_of_marks_leaves_the_rest_as_it_is(part, mark):
    x, w, dy = (normal((1, 1, *shape), np.float32) for shape in ((100, 80), (9, 11), (92, 70)))
    x[..., : int(100 * part), :] = mark
    within_bound(x, w / 10, dy, {}, FLOOR[np.float32][0])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.4])
def test_marks_everywhere_leave_the_windows_without_one_as_they_are(share):
    x, w, dy = normal((1, 1, 9000), np.float32), normal((1, 1, 12), np.float32), normal((1, 1, 8989), np.float32)
    x[np.random.default_rng(1).random(x.shape) < share] = 1e20
    within_bound(x, w, dy, {}, FLOOR[np.float32][0])


def test_of_a_few_values_among_zeros_each_gives_the_kernel():
    x, w = np.zeros((1, 1, 150, 160), np.float32), normal((1, 1, 31, 31), np.float32)
    x[0, 0, 40, 50], x[0, 0, 140, 20] = 1e20, 3
    exact = nc.conv(x, w, padding=15, algorithm="direct")
    np.testing.assert_array_equal(nc.conv(x, w, padding=15, algorithm="fft"), exact)


@pytest.fixture
def no_direct_sums(monkeypatch):
    """What is slow must not be met."""

    def refuse(*arguments, **options):
        raise AssertionError("summed directly")

    monkeypatch.setattr(fft, "_sum_directly", refuse)


ORDINARY = {
    "black border": lambda: np.pad(normal((120, 130)), 80),
    "stars": lambda: (np.random.default_rng(0).random((300, 300)) > 0.99) * np.abs(normal((300, 300)) * 1e4),
    "one bright pixel": lambda: np.pad([[255.0]], 150),
    "a bell": lambda: np.exp(-(np.hypot(*np.mgrid[-150:150, -150:150]) ** 2) / 2000),
    "bytes": lambda: np.random.default_rng(0).integers(0, 256, (300, 300)).astype(float),
    "a ramp": lambda: np.add.outer(np.arange(300.0), np.arange(300.0)),
    "a spectrum": lambda: np.abs(np.fft.fft2(np.random.default_rng(0).random((300, 300)))),
    "heavy tails": lambda: np.random.default_rng(0).standard_cauchy((300, 300)),
}  # fmt: skip


@pytest.mark.usefixtures("no_direct_sums")
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("image", ORDINARY.values(), ids=ORDINARY)
def test_what_pictures_hold_is_not_summed_directly(image, dtype):
    x, w = image().astype(dtype), normal((31, 31), dtype)
    exact = scipy.signal.fftconvolve(x.astype(float), w.astype(float))
    close(nc.convolve(x, w, algorithm="fft"), exact, dtype)
