"""The three products and the transposed convolution, on channelled arrays: against the oracle, torch and differences.

One table of geometries drives the tests. Each line bends one thing, so the id of a failing test says what is wrong.
"""

from __future__ import annotations

import warnings
from functools import cache
from math import prod

import naive
import numpy as np
import pytest
from conftest import (
    ALGORITHMS,
    AMPLIFICATION,
    BOUNDARIES,
    EXACT,
    SOME_DTYPES,
    assert_by,
    assert_close,
    assert_same,
    dtype_id,
    largest,
    normal,
    result_of,
    values,
)

import numconv

# id: (input shape, kernel shape, geometry)
GEOMETRIES = {
    "1d": ((2, 3, 9), (4, 3, 3), {}),
    "2d": ((2, 3, 6, 7), (4, 3, 3, 3), {}),
    "3d": ((2, 2, 4, 5, 4), (3, 2, 2, 3, 2), {}),
    "4d": ((1, 2, 3, 4, 3, 3), (2, 2, 2, 2, 1, 2), {}),
    "unbatched 1d": ((3, 9), (2, 3, 4), {}),
    "unbatched 2d": ((3, 6, 5), (2, 3, 2, 3), {}),
    "kernel 1x1": ((2, 3, 4, 5), (4, 3, 1, 1), {}),
    "kernel as large as the input": ((2, 2, 4, 3), (3, 2, 4, 3), {}),
    "one row of a kernel": ((1, 2, 5, 8), (2, 2, 1, 5), {}),
    "one pixel": ((2, 3, 1, 1), (2, 3, 1, 1), {}),
    "long": ((1, 1, 70), (1, 1, 21), {}),
    "many channels": ((1, 19, 5, 5), (17, 19, 3, 3), {"padding": 1}),
    "wide image": ((1, 1, 4, 67), (1, 1, 3, 3), {"padding": 1}),
    # stride
    "stride 2": ((2, 3, 9, 9), (4, 3, 3, 3), {"stride": 2}),
    "stride per axis": ((1, 2, 8, 9), (2, 2, 3, 2), {"stride": (3, 1)}),
    "stride does not divide": ((1, 2, 8, 10), (2, 2, 3, 3), {"stride": (2, 4)}),
    "stride above kernel": ((1, 2, 11, 9), (2, 2, 2, 1), {"stride": (4, 3)}),
    "stride above input": ((1, 2, 5, 4), (2, 2, 2, 2), {"stride": 7}),
    "stride 1x1 kernel": ((2, 3, 5, 6), (2, 3, 1, 1), {"stride": 2}),
    # dilation
    "dilation 2": ((1, 2, 8, 9), (2, 2, 3, 3), {"dilation": 2}),
    "dilation per axis": ((1, 2, 8, 9), (2, 2, 2, 3), {"dilation": (3, 1)}),
    "dilation with stride": ((2, 2, 11, 12), (2, 2, 3, 3), {"dilation": 2, "stride": 3}),
    "dilation and stride share a factor": ((1, 1, 17), (1, 1, 4), {"dilation": 4, "stride": 2}),
    "dilation 1d": ((1, 2, 14), (2, 2, 3), {"dilation": 5, "padding": 3}),
    # padding
    "padding 1": ((2, 3, 5, 5), (4, 3, 3, 3), {"padding": 1}),
    "padding per axis": ((1, 2, 5, 4), (2, 2, 3, 3), {"padding": (0, 2)}),
    "padding pairs": ((1, 2, 5, 4), (2, 2, 3, 3), {"padding": ((0, 2), (3, 1))}),
    "padding mixed": ((1, 2, 5, 4), (2, 2, 3, 3), {"padding": (1, (3, 0))}),
    "padding valid": ((1, 2, 5, 4), (2, 2, 3, 3), {"padding": "valid"}),
    "padding same odd": ((1, 2, 5, 4), (2, 2, 3, 5), {"padding": "same"}),
    "padding same even": ((1, 2, 5, 4), (2, 2, 2, 4), {"padding": "same"}),
    "padding same_lower even": ((1, 2, 5, 4), (2, 2, 2, 4), {"padding": "same_lower"}),
    "padding same with stride": ((1, 2, 7, 6), (2, 2, 4, 3), {"padding": "same", "stride": (2, 3)}),
    "padding same_lower with stride": ((1, 2, 7, 6), (2, 2, 4, 3), {"padding": "same_lower", "stride": (2, 3)}),
    "padding same, stride above kernel": ((1, 2, 7, 9), (2, 2, 2, 1), {"padding": "same", "stride": 4}),
    "padding same with dilation": ((1, 2, 7, 6), (2, 2, 2, 3), {"padding": "same", "dilation": (3, 2)}),
    "padding full": ((1, 2, 4, 3), (2, 2, 3, 2), {"padding": "full"}),
    "padding full with dilation": ((1, 2, 4, 3), (2, 2, 3, 2), {"padding": "full", "dilation": (2, 3)}),
    "padding above kernel": ((1, 2, 3, 4), (2, 2, 2, 2), {"padding": 5}),
    "input smaller than kernel": ((2, 2, 2, 3), (2, 2, 4, 5), {"padding": (2, 3)}),
    "padding 3d": ((1, 2, 3, 4, 3), (2, 2, 2, 3, 3), {"padding": ((1, 0), (2, 1), (0, 2)), "stride": (1, 2, 1)}),
    "padding 4d": ((1, 1, 3, 2, 3, 4), (2, 1, 2, 2, 3, 2), {"padding": (1, 0, 1, 2), "stride": (1, 1, 2, 3)}),
    # what padded pixels hold
    "fill value": ((1, 2, 4, 5), (3, 2, 3, 3), {"padding": 2, "fill_value": 2.5}),
    "fill value, stride, groups": (
        (2, 4, 7), (4, 2, 3), {"padding": ((3, 1),), "fill_value": -1.5, "stride": 2, "groups": 2}
    ),
    **{f"{b}": ((2, 2, 5, 6), (3, 2, 3, 4), {"padding": "same", "boundary": b}) for b in BOUNDARIES[1:]},
    **{f"{b} 1d": ((1, 2, 9), (2, 2, 5), {"padding": 4, "boundary": b, "stride": 2}) for b in BOUNDARIES[1:]},
    **{f"{b} 3d": ((1, 1, 3, 4, 3), (2, 1, 2, 3, 3), {"padding": "same", "boundary": b}) for b in BOUNDARIES[1:]},
    **{
        f"{b} 4d": ((1, 1, 2, 3, 2, 3), (2, 1, 2, 2, 2, 2), {"padding": "same_lower", "boundary": b})
        for b in BOUNDARIES[1:]
    },
    **{
        f"{b} wider than the input": (
            (1, 2, 3, 2), (2, 2, 3, 3), {"padding": ((8, 5), (7, 9)), "boundary": b, "stride": 2, "dilation": (1, 3)}
        )
        for b in BOUNDARIES[1:]
    },
    **{
        f"{b} of one pixel": ((1, 1, 1, 2), (1, 1, 3, 3), {"padding": (3, 1), "boundary": b}) for b in BOUNDARIES[1:]
    },
    # groups
    "groups 2": ((2, 4, 5, 6), (6, 2, 3, 3), {"groups": 2}),
    "groups 3, stride, dilation": ((2, 6, 9), (3, 2, 3), {"groups": 3, "stride": 2, "dilation": 2, "padding": 2}),
    "depthwise": ((2, 5, 6, 6), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    "depthwise, multiplier": ((1, 3, 6, 6), (6, 1, 3, 3), {"groups": 3, "stride": 2, "padding": 1}),
    "groups of 3d": ((1, 4, 3, 4, 3), (4, 2, 2, 2, 2), {"groups": 2, "padding": 1}),
    # the kernel turned
    "flip": ((1, 2, 5, 6), (2, 2, 2, 3), {"flip": True}),
    "flip of everything": (
        (2, 4, 8, 9), (2, 2, 2, 3),
        {"flip": True, "groups": 2, "stride": (2, 1), "dilation": (1, 2), "padding": ((2, 0), (1, 3)),
         "boundary": "wrap"},
    ),
    "flip 1d": ((1, 2, 8), (2, 2, 4), {"flip": True, "padding": "same"}),
    "flip 3d": ((1, 2, 4, 3, 4), (2, 2, 2, 2, 3), {"flip": True, "padding": ((0, 1), (1, 0), (2, 2))}),
    "flip 4d": ((1, 1, 3, 2, 3, 3), (1, 1, 2, 1, 2, 3), {"flip": True, "padding": "full", "stride": 2}),
}  # fmt: skip

all_geometries = pytest.mark.parametrize("name", GEOMETRIES)
all_dtypes = pytest.mark.parametrize("dtype", SOME_DTYPES, ids=dtype_id)

#: The geometry on which every dtype runs: nothing in it is left at its default.
EVERYTHING = (
    (2, 4, 6, 7), (4, 2, 3, 2),
    {"groups": 2, "stride": (2, 1), "dilation": (1, 2), "padding": ((1, 2), (0, 3))},
)  # fmt: skip


@cache
def case(name, dtype="float64"):
    """Input, kernel, bias, geometry and the oracle's output."""
    x_shape, w_shape, geometry = EVERYTHING if name == "everything" else GEOMETRIES[name]
    x, w, bias = values(x_shape, dtype, 1), values(w_shape, dtype, 2), values(w_shape[:1], dtype, 3)
    return x, w, bias, geometry, naive.conv(x, w, bias, **geometry)


def scale_of(a, b, terms):
    return largest(a) * largest(b) * terms


def adjoint_geometry(geometry):
    return {name: value for name, value in geometry.items() if name != "fill_value"}


# forward ------------------------------------------------------------------------------------------------------------


@all_geometries
@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_conv_is_the_loop_over_pixels_and_taps(name, algorithm):
    x, w, bias, geometry, want = case(name)
    y = result_of(algorithm, numconv.conv, x, w, bias, **geometry)
    if y is not None:
        assert_by(algorithm, y, want, np.float64, scale_of(x, w, w[0].size + 1))


@all_dtypes
@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_conv_in_every_dtype_and_integers_exactly(dtype, algorithm):
    x, w, bias, geometry, want = case("everything", dtype.name)
    y = result_of(algorithm, numconv.conv, x, w, bias, **geometry)
    if y is not None:
        assert_by(algorithm, y, want, dtype, scale_of(x, w, w[0].size + 1))


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_conv_of_real_valued_data_errs_by_rounding_alone(dtype, algorithm):
    x, w, bias = normal((2, 4, 9, 10), dtype), normal((6, 2, 3, 3), dtype), normal((6,), dtype)
    y = result_of(algorithm, numconv.conv, x, w, bias, groups=2, padding=1)
    if y is not None:
        amplification = 1 if algorithm in EXACT else AMPLIFICATION
        # the sum of |products| is at most terms * the two largest values; typically it is a sixth of that
        scale = np.sqrt(w[0].size) * largest(x) * largest(w)
        assert_close(y, naive.conv(x, w, bias, groups=2, padding=1), dtype, scale, amplification)


def test_winograd_serves_3x3_and_fft_serves_stride_1():
    x, w = values((1, 3, 12, 12), "float32"), values((4, 3, 3, 3), "float32")
    want = naive.conv(x, w, padding=1)
    for algorithm in ("winograd", "fft"):
        y = numconv.conv(x, w, padding=1, algorithm=algorithm)
        assert_close(y, want, "float32", scale_of(x, w, 27), AMPLIFICATION)


@pytest.mark.parametrize(
    ("x_dtype", "w_dtype"),
    [("float32", "float64"), ("int8", "float32"), ("uint8", "int16"), ("float64", "complex64"), ("bool", "int32"),
     ("int64", "float16")],
)  # fmt: skip
def test_conv_of_two_dtypes_has_their_numpy_result_type(x_dtype, w_dtype):
    x, w = values((1, 2, 5, 5), x_dtype), values((2, 2, 3, 3), w_dtype)
    want = naive.conv(x, w)
    assert_close(numconv.conv(x, w), want, np.result_type(x, w), scale_of(x, w, 18), AMPLIFICATION)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_conv_nd_takes_torchs_order_of_arguments(d):
    x, w, bias = values((2, 4, 9, 8, 7)[: d + 2]), values((4, 2, 3, 2, 2)[: d + 2]), values((4,))
    convolution = [numconv.conv1d, numconv.conv2d, numconv.conv3d][d - 1]
    want = naive.conv(x, w, bias, stride=2, padding=1, dilation=2, groups=2)
    assert_close(convolution(x, w, bias, 2, 1, 2, 2), want, np.float64, scale_of(x, w, w[0].size), AMPLIFICATION)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_conv_nd_takes_the_other_arguments_by_name(d):
    x, w = values((2, 2, 9, 8, 7)[: d + 2]), values((4, 2, 3, 2, 2)[: d + 2])
    convolution = [numconv.conv1d, numconv.conv2d, numconv.conv3d][d - 1]
    want = naive.conv(x, w, padding=2, boundary="reflect", flip=True)
    assert_same(convolution(x, w, padding=2, boundary="reflect", flip=True, algorithm="direct"), want)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_conv_nd_refuses_another_number_of_axes(d):
    convolution = [numconv.conv1d, numconv.conv2d, numconv.conv3d][d - 1]
    with pytest.raises(ValueError, match=r"\bw\b"):
        convolution(np.ones((1, 1) + (5,) * (d + 1)), np.ones((1, 1) + (2,) * (d + 1)))


def test_flip_is_the_kernel_turned():
    x, w = values((1, 2, 6, 7)), values((3, 2, 2, 3))
    turned = np.ascontiguousarray(w[:, :, ::-1, ::-1])
    np.testing.assert_array_equal(
        numconv.conv(x, w, flip=True, algorithm="direct"), numconv.conv(x, turned, algorithm="direct")
    )


# large: the parallel kernels, several tiles and blocks, against windows of NumPy -------------------------------------

LARGE = {
    "2d": ((2, 6, 60, 61), (8, 6, 3, 3), {"padding": ((1, 1), (1, 1))}),
    "2d stride": ((2, 6, 61, 70), (8, 6, 3, 3), {"stride": 2}),
    "1d": ((1, 2, 9000), (3, 2, 17), {"padding": ((8, 5),)}),
    "1d stride": ((1, 1, 20011), (1, 1, 9), {"stride": 3}),
    "3d": ((1, 3, 14, 15, 16), (4, 3, 3, 2, 3), {}),
    "wide channels": ((1, 70, 13, 13), (66, 70, 3, 3), {}),
    "wide image": ((1, 4, 60, 3000), (4, 4, 3, 3), {"padding": ((1, 1), (1, 1))}),
}


def windows(x, w_shape, padding=None, stride=1):
    """A view ``(N, C, *out, *k)`` of all windows, by NumPy."""
    d = len(w_shape) - 2
    padded = np.pad(x, [(0, 0), (0, 0), *(padding or [(0, 0)] * d)])
    view = np.lib.stride_tricks.sliding_window_view(padded, w_shape[2:], tuple(range(2, d + 2)))
    return view[(slice(None), slice(None), *(slice(None, None, stride),) * d)]


@pytest.mark.parametrize("name", LARGE)
def test_large_products_are_sums_over_numpys_windows(name):
    x_shape, w_shape, geometry = LARGE[name]
    d = len(w_shape) - 2
    x, w = values(x_shape), values(w_shape, seed=1)
    view = windows(x, w_shape, **geometry)
    want = np.moveaxis(np.tensordot(view, w, axes=([1, *range(2 + d, 2 + 2 * d)], range(1, d + 2))), -1, 1)
    for algorithm in ["auto", *ALGORITHMS]:
        if algorithm == "kernel2row" and want.size * w[0].size > 4_000_000:
            continue  # its matrix would take hundreds of megabytes
        y = result_of(algorithm, numconv.conv, x, w, **geometry)
        if y is not None:
            # a sum of n random products is about sqrt(n) of them; the bound for all n would let errors pass here
            assert_by(algorithm, y, want, np.float64, scale_of(x, w, np.sqrt(w[0].size)))
    dy = values(want.shape, seed=2)
    dw = np.tensordot(dy, view, axes=([0, *range(2, 2 + d)], [0, *range(2, 2 + d)]))
    got = numconv.conv_grad_weight(x, w.shape, dy, **geometry)
    assert_close(got, dw, "f8", scale_of(x, dy, np.sqrt(dy[:, 0].size)))
    # <conv(z), dy> = <z, grad_input(dy)> exactly, for inputs z of ones and zeros that pick out every pixel in turn
    dx = numconv.conv_grad_input(x.shape, w, dy, **geometry)
    assert dx.shape == x.shape
    for seed in range(2):
        z = (np.random.default_rng(seed).random(x.shape) < 0.5).astype(float)
        inner = np.tensordot(np.moveaxis(np.tensordot(windows(z, w_shape, **geometry), w,
                             axes=([1, *range(2 + d, 2 + 2 * d)], range(1, d + 2))), -1, 1), dy, d + 2)  # fmt: skip
        np.testing.assert_allclose((z * dx).sum(), inner, rtol=1e-12, atol=1e-7)


MANY_CHANNELS = {  # what the implicit product packs: panels, turned weights, the input where it lies
    "1x1": ((2, 50, 9, 11), (130, 50, 1, 1), {}),
    "1x1 of one long row": ((1, 70, 900), (45, 70, 1), {}),
    "1x1 stride": ((2, 50, 9, 12), (130, 50, 1, 1), {"stride": 2}),
    "1x1x1": ((1, 41, 3, 4, 5), (48, 41, 1, 1, 1), {}),
    "3x3": ((2, 50, 9, 11), (130, 50, 3, 3), {"padding": ((1, 1), (1, 1))}),
    "3x3 and more terms than a panel has": ((1, 300, 7, 7), (49, 300, 3, 3), {"padding": ((1, 1), (1, 1))}),
    "3x3 stride": ((2, 42, 19, 18), (90, 42, 3, 3), {"stride": 2}),
    "3d": ((2, 12, 6, 7, 8), (48, 12, 3, 2, 3), {}),
}


@pytest.mark.parametrize("name", MANY_CHANNELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_implicit_products_of_many_channels_are_exact_for_integers(name, dtype):
    x_shape, w_shape, geometry = MANY_CHANNELS[name]
    d, stride = len(w_shape) - 2, geometry.get("stride", 1)
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-9, 10, shape).astype(dtype) for shape in (x_shape, w_shape))
    view = windows(x, w_shape, **geometry)
    want = np.moveaxis(np.tensordot(view, w, axes=([1, *range(2 + d, 2 + 2 * d)], range(1, d + 2))), -1, 1)
    dy = rng.integers(-9, 10, want.shape).astype(dtype)
    dw = np.tensordot(dy, view, axes=([0, *range(2, 2 + d)], [0, *range(2, 2 + d)]))
    pads = geometry.get("padding", [(0, 0)] * d)
    dx = np.zeros((*x_shape[:2], *(n + lo + hi for n, (lo, hi) in zip(x_shape[2:], pads, strict=True))), dtype)
    for tap in np.ndindex(w_shape[2:]):
        met = tuple(slice(t, t + stride * n, stride) for t, n in zip(tap, want.shape[2:], strict=True))
        pixels = dx[(slice(None), slice(None), *met)][(..., *(slice(n) for n in want.shape[2:]))]
        pixels += np.moveaxis(np.tensordot(dy, w[(..., *tap)], axes=(1, 0)), -1, 1)
    dx = dx[(..., *(slice(lo, lo + n) for n, (lo, _) in zip(x_shape[2:], pads, strict=True)))]
    plan = numconv.plan_conv(x_shape, w_shape, dtype=dtype, algorithm="implicit", **geometry)
    np.testing.assert_array_equal(plan.forward(x, w), want)
    np.testing.assert_array_equal(plan.grad_input(dy, w), dx)
    np.testing.assert_array_equal(plan.grad_weight(x, dy), dw)


def test_large_im2col_and_col2im_are_numpys_windows():
    x_shape, w_shape, geometry = LARGE["2d"]
    x = values(x_shape)
    view = windows(x, w_shape, **geometry)
    cols = np.moveaxis(view, (4, 5), (2, 3)).reshape(2, 54, -1)
    np.testing.assert_array_equal(numconv.im2col(x, (3, 3), flip=False, **geometry), cols)
    counts = np.ones((60, 61)) * 9
    counts[[0, -1]] *= 2 / 3
    counts[:, [0, -1]] *= 2 / 3
    np.testing.assert_allclose(numconv.col2im(cols, x.shape, (3, 3), flip=False, **geometry), x * counts, rtol=1e-15)


# memory: layouts, out=, empty arrays --------------------------------------------------------------------------------


def layouts(a):
    """The same values in other memory: Fortran order, a slice with gaps, reversed strides, a read-only view."""
    gaps = np.empty(tuple(2 * n for n in a.shape), a.dtype)[tuple(slice(None, None, 2) for _ in a.shape)]
    gaps[...] = a
    read_only = a.copy()
    read_only.setflags(write=False)
    swapped = a.astype(a.dtype.newbyteorder(">"))
    return {
        "fortran": np.asfortranarray(a), "gaps": gaps, "reversed": a[..., ::-1].copy()[..., ::-1],
        "read-only": read_only, "big-endian": swapped,
    }  # fmt: skip


@pytest.mark.parametrize("layout", ["fortran", "gaps", "reversed", "read-only", "big-endian"])
def test_products_read_every_memory_layout_and_change_no_input(layout):
    x, w, _, geometry, _ = case("everything")
    want = naive.conv(x, w, **geometry)
    dy = values(want.shape, seed=4)
    inputs = [layouts(a)[layout] for a in (x, w, dy)]
    kept = [a.copy() for a in inputs]
    xs, ws, dys = inputs
    assert_close(numconv.conv(xs, ws, **geometry), want, "f8", scale_of(x, w, 12))
    dx = naive.conv_grad_input(x.shape, w, dy, **geometry)
    assert_close(numconv.conv_grad_input(x.shape, ws, dys, **geometry), dx, "f8", scale_of(w, dy, 12))
    dw = naive.conv_grad_weight(x, w.shape, dy, **geometry)
    assert_close(numconv.conv_grad_weight(xs, w.shape, dys, **geometry), dw, "f8", scale_of(x, dy, 84))
    for a, before in zip(inputs, kept, strict=True):
        np.testing.assert_array_equal(a, before)


@pytest.mark.parametrize("algorithm", ["auto", *EXACT])
def test_out_receives_the_result_and_is_returned(algorithm):
    x, w, bias, geometry, want = case("everything")
    out = np.full(want.shape, np.nan)
    assert numconv.conv(x, w, bias, **geometry, algorithm=algorithm, out=out) is out
    assert_by(algorithm, out, want, np.float64, scale_of(x, w, 13))


def test_out_may_have_gaps():
    x, w, bias, geometry, want = case("everything")
    whole = np.full((*want.shape[:-1], 2 * want.shape[-1]), np.nan)
    numconv.conv(x, w, bias, **geometry, out=whole[..., ::2])
    assert_close(whole[..., ::2], want, np.float64, scale_of(x, w, 13), AMPLIFICATION)
    assert np.isnan(whole[..., 1::2]).all(), "nothing may be written between the places of out"


def test_gradients_write_into_out():
    x, w, _, geometry, y = case("everything")
    dy = values(y.shape, seed=4)
    dx, dw = np.full(x.shape, np.nan), np.full(w.shape, np.nan)
    assert numconv.conv_grad_input(x.shape, w, dy, **geometry, out=dx) is dx
    assert numconv.conv_grad_weight(x, w.shape, dy, **geometry, out=dw) is dw
    assert_close(dx, naive.conv_grad_input(x.shape, w, dy, **geometry), "f8", scale_of(w, dy, 12))
    assert_close(dw, naive.conv_grad_weight(x, w.shape, dy, **geometry), "f8", scale_of(x, dy, 84))


@pytest.mark.parametrize(("shape", "dtype"), [((2, 4, 3, 4), np.float64), ((2, 4, 4, 5), np.int64)])
def test_out_of_another_shape_or_dtype_is_refused(shape, dtype):
    x, w = np.ones((2, 1, 5, 6)), np.ones((4, 1, 2, 2))
    with pytest.raises((ValueError, TypeError), match="out"):
        numconv.conv(x, w, out=np.zeros(shape, dtype))


def test_an_empty_batch_gives_an_empty_output_and_zero_gradients():
    x, w, dy = np.ones((0, 3, 5, 5)), np.ones((4, 3, 3, 3)), np.ones((0, 4, 3, 3))
    assert_same(numconv.conv(x, w), np.ones((0, 4, 3, 3)))
    assert_same(numconv.conv_grad_input(x.shape, w, dy), np.ones((0, 3, 5, 5)))
    assert_same(numconv.conv_grad_weight(x, w.shape, dy), np.zeros((4, 3, 3, 3)))


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_no_channels_give_sums_over_nothing(algorithm):
    x, w, bias = np.ones((2, 0, 5, 5)), np.ones((3, 0, 3, 3)), np.array([1.0, 2.0, 3.0])
    for given, want in [(None, np.zeros((2, 3, 3, 3))), (bias, np.zeros((2, 3, 3, 3)) + bias[:, None, None])]:
        y = result_of(algorithm, numconv.conv, x, w, given)
        if y is not None:
            assert_same(y, want)


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
@pytest.mark.parametrize(("N", "C", "K"), [(0, 3, 4), (2, 0, 3), (0, 0, 3), (0, 0, 0)])
def test_empty_arrays_have_the_right_shapes_in_every_product(algorithm, N, C, K):
    x, w = np.ones((N, C, 5, 5)), np.ones((K, C, 3, 3))
    plan = result_of(algorithm, numconv.plan_conv, x.shape, w.shape, dtype=np.float64)
    if plan is not None:
        dy = np.ones((N, K, 3, 3))
        assert_same(plan.forward(x, w), np.zeros(dy.shape))
        assert_same(plan.grad_input(dy, w), np.zeros(x.shape))
        assert_same(plan.grad_weight(x, dy), np.zeros(w.shape))


# gradients ----------------------------------------------------------------------------------------------------------


@all_geometries
def test_grad_input_is_the_adjoint_matrix(name):
    x, w, _, geometry, y = case(name)
    dy = values(y.shape, seed=4)
    want = naive.conv_grad_input(x.shape, w, dy, **geometry)
    # with a boundary other than constant a pixel may be read by every tap of every output
    terms = w[:, 0].size * (1 if "boundary" not in geometry else prod(y.shape[-w.ndim + 2 :]))
    got = numconv.conv_grad_input(x.shape, w, dy, **geometry)
    assert_close(got, want, np.float64, scale_of(w, dy, terms), AMPLIFICATION)


@all_geometries
def test_grad_weight_is_the_adjoint_matrix(name):
    x, w, _, geometry, y = case(name)
    dy = values(y.shape, seed=4)
    want = naive.conv_grad_weight(x, w.shape, dy, **geometry)
    terms = y.size / w.shape[0]
    got = numconv.conv_grad_weight(x, w.shape, dy, **geometry)
    assert_close(got, want, np.float64, scale_of(x, dy, terms), AMPLIFICATION)


@all_dtypes
def test_gradients_in_every_dtype_and_integers_exactly(dtype):
    x, w, _, geometry, y = case("everything", dtype.name)
    dy = values(y.shape, dtype, seed=4)
    dx = naive.conv_grad_input(x.shape, w, dy, **geometry)
    dw = naive.conv_grad_weight(x, w.shape, dy, **geometry)
    assert_close(numconv.conv_grad_input(x.shape, w, dy, **geometry), dx, dtype, scale_of(w, dy, 12), AMPLIFICATION)
    assert_close(numconv.conv_grad_weight(x, w.shape, dy, **geometry), dw, dtype, scale_of(x, dy, 84), AMPLIFICATION)


def test_complex_gradients_conjugate():
    """``<conv(x, w), dy> = <x, grad_input> = <w, grad_weight>`` holds for the Hermitian adjoint only."""
    x, w = normal((1, 2, 5, 6), "complex128"), normal((3, 2, 2, 3), "complex128", 1)
    y = numconv.conv(x, w)
    dy = normal(y.shape, "complex128", 2)
    dx, dw = numconv.conv_grad_input(x.shape, w, dy), numconv.conv_grad_weight(x, w.shape, dy)
    inner = np.vdot(y, dy)
    np.testing.assert_allclose([np.vdot(x, dx), np.vdot(w, dw)], [inner, inner], rtol=1e-12)
    assert abs(np.vdot(x, dx.conj()) - inner) > 1e-3


@pytest.mark.parametrize(
    "name",
    ["2d", "stride per axis", "dilation with stride", "fill value, stride, groups", "reflect",
     "wrap wider than the input", "flip of everything", "symmetric 3d", "edge 4d"],
)  # fmt: skip
def test_gradients_are_what_a_change_of_one_value_does_to_the_loss(name):
    """The loss ``sum(c * y)`` is linear in x and in w, so a difference of any length is its derivative."""
    x_shape, w_shape, geometry = GEOMETRIES[name]
    x, w = values(x_shape, seed=5), values(w_shape, seed=6)

    def y_of(x, w):
        return numconv.conv(x, w, **geometry, algorithm="direct")

    c = values(y_of(x, w).shape, seed=7)
    dx = numconv.conv_grad_input(x.shape, w, c, **geometry)
    dw = numconv.conv_grad_weight(x, w.shape, c, **geometry)
    rng = np.random.default_rng(8)
    for a, gradient, loss in [
        (x, dx, lambda a: (c * y_of(a, w)).sum()),
        (w, dw, lambda a: (c * y_of(x, a)).sum()),
    ]:
        for i in rng.choice(a.size, min(a.size, 12), replace=False):
            moved = a.copy()
            moved.ravel()[i] += 1
            np.testing.assert_allclose(loss(moved) - loss(a), gradient.ravel()[i], rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    ["2d", "unbatched 1d", "3d", "padding 1", "depthwise", "padding full", "stride per axis", "dilation with stride",
     "flip of everything", "reflect", "wrap wider than the input", "fill value, stride, groups", "flip",
     "symmetric 4d", "edge 3d"],
)  # fmt: skip
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gradients_of_a_plan_by_every_algorithm(name, algorithm):
    x, w, _, geometry, y = case(name)
    plan = result_of(algorithm, numconv.plan_conv, x.shape, w.shape, dtype=np.float64, **geometry)
    if plan is None:
        return
    dy = values(y.shape, seed=4)
    dx = naive.conv_grad_input(x.shape, w, dy, **geometry)
    dw = naive.conv_grad_weight(x, w.shape, dy, **geometry)
    assert_by(algorithm, plan.grad_input(dy, w), dx, np.float64, scale_of(w, dy, dy.size))
    assert_by(algorithm, plan.grad_weight(x, dy), dw, np.float64, scale_of(x, dy, dy.size))


# transposed ---------------------------------------------------------------------------------------------------------

TRANSPOSED = {
    "1d": ((2, 3, 5), (3, 2, 3), {}),
    "2d": ((2, 3, 4, 5), (3, 2, 3, 2), {}),
    "3d": ((1, 2, 3, 2, 3), (2, 2, 2, 3, 2), {"stride": 2}),
    "4d": ((1, 2, 2, 3, 2, 2), (2, 1, 2, 2, 1, 2), {"stride": (1, 2, 1, 2), "padding": (0, 1, 0, 0)}),
    "unbatched": ((3, 4, 5), (3, 2, 3, 2), {"stride": 2}),
    "stride and output padding": (
        (1, 2, 4, 5), (2, 3, 3, 3), {"stride": (2, 3), "padding": 1, "output_padding": (1, 2)}
    ),
    "output padding alone": ((1, 2, 4), (2, 3, 2), {"stride": 3, "output_padding": 2}),
    "output padding within dilation": ((1, 2, 4, 5), (2, 3, 3, 2), {"dilation": (2, 3), "output_padding": (1, 2)}),
    "dilation": ((1, 2, 4, 5), (2, 3, 3, 2), {"dilation": (2, 3), "padding": (1, 0), "stride": 2}),
    "stride above kernel": ((1, 2, 4), (2, 2, 2), {"stride": 4}),
    "groups": ((2, 4, 3, 4), (4, 3, 2, 3), {"groups": 2, "stride": 2, "output_padding": 1}),
    "depthwise": ((1, 3, 4, 4), (3, 1, 3, 3), {"groups": 3, "stride": 2, "padding": 1, "output_padding": 1}),
    "padding pairs": ((1, 2, 4, 5), (2, 1, 4, 3), {"padding": ((1, 2), (0, 1)), "stride": 2}),
    "padding full": ((1, 2, 6, 7), (2, 1, 3, 2), {"padding": "full"}),
    "padding same": ((1, 2, 4, 5), (2, 1, 3, 4), {"padding": "same", "stride": 2}),
    "padding same, stride above kernel": ((1, 2, 4), (2, 1, 2), {"padding": "same", "stride": 5}),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose_lays_the_kernel_on_the_output(name):
    x_shape, w_shape, geometry = TRANSPOSED[name]
    x, w = values(x_shape), values(w_shape, seed=1)
    bias = values((w_shape[1] * geometry.get("groups", 1),), seed=2)
    want = naive.conv_transpose(x, w, bias, **geometry)
    terms = x_shape[-len(w_shape) + 1] * prod(w_shape[2:]) + 1
    assert_close(numconv.conv_transpose(x, w, bias, **geometry), want, "f8", scale_of(x, w, terms), AMPLIFICATION)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_conv_transpose_nd_takes_torchs_order_of_arguments(d):
    x, w, bias = values((2, 4, 4, 3, 3)[: d + 2]), values((4, 2, 3, 2, 2)[: d + 2]), values((4,))
    function = [numconv.conv_transpose1d, numconv.conv_transpose2d, numconv.conv_transpose3d][d - 1]
    want = naive.conv_transpose(x, w, bias, stride=2, padding=1, output_padding=1, groups=2, dilation=2)
    assert_close(function(x, w, bias, 2, 1, 1, 2, 2), want, "f8", scale_of(x, w, 4 * prod(w.shape[2:])), AMPLIFICATION)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "float16", "float32", "complex64", "complex128"])
def test_conv_transpose_in_other_dtypes(dtype):
    x, w = values((1, 2, 3, 4), dtype), values((2, 3, 2, 3), dtype, 1)
    want = naive.conv_transpose(x, w, stride=2, padding=1)
    assert_close(numconv.conv_transpose(x, w, stride=2, padding=1), want, dtype, scale_of(x, w, 12), AMPLIFICATION)


@pytest.mark.parametrize("algorithm", ["auto", "implicit", "direct"])
@pytest.mark.parametrize("size", [(0,), (3, 0), (0, 0), (2, 0, 2)])
@pytest.mark.parametrize("padding", [0, "full", "same"])
def test_conv_transpose_of_no_pixels_is_refused(size, padding, algorithm):
    x, w = np.ones((2, 3, *size), "f4"), np.ones((3, 2, *(3 for _ in size)), "f4")
    more = {} if padding == "same" else {"output_padding": 2}
    with pytest.raises(ValueError, match=r"x must have at least one pixel along every axis, got shape \(2, 3, "):
        numconv.conv_transpose(x, w, padding=padding, dilation=3, algorithm=algorithm, **more)


def test_conv_transpose_undoes_the_shape_of_conv():
    y = numconv.conv(np.ones((1, 2, 9, 10)), np.ones((3, 2, 3, 4)), stride=2, padding=1)
    x = numconv.conv_transpose(y, np.ones((3, 2, 3, 4)), stride=2, padding=1, output_padding=(0, 0))
    assert x.shape == (1, 2, 9, 10)


def test_conv_transpose_refuses_an_output_padding_that_torch_refuses():
    with pytest.raises(ValueError, match="output_padding"):
        numconv.conv_transpose(np.ones((1, 1, 4)), np.ones((1, 1, 3)), stride=2, output_padding=2)


def test_arguments_may_be_numpys_ints_and_arrays():
    x, w = values((1, 4, 6, 7)), values((4, 2, 3, 2))
    want = naive.conv(x, w, stride=(2, 1), padding=((1, 2), (0, 3)), dilation=1, groups=2)
    arguments = {"stride": np.array([2, 1]), "padding": np.array([[1, 2], [0, 3]])}
    arguments |= {"dilation": np.int8(1), "groups": np.int64(2)}
    assert_same(numconv.conv(x, w, **arguments, algorithm="direct"), want)
    want = naive.conv_matrix(w, (6, 7), stride=(2, 1), padding=((1, 2), (0, 3)), groups=2)
    np.testing.assert_array_equal(numconv.kernel2row(w, np.array([6, 7]), **arguments).toarray(), want)


# torch --------------------------------------------------------------------------------------------------------------


def torch_can(w_shape, geometry):
    """Zero padding by one number per axis, the kernel as it is, at most three axes."""
    padding = geometry.get("padding", 0)
    plain = isinstance(padding, int) or all(isinstance(p, int) for p in padding)
    return len(w_shape) < 6 and plain and not {"boundary", "fill_value", "flip"} & set(geometry)


TORCH = [name for name, (_, w_shape, geometry) in GEOMETRIES.items() if torch_can(w_shape, geometry)]
TORCH_TRANSPOSED = [name for name, (_, w_shape, geometry) in TRANSPOSED.items() if torch_can(w_shape, geometry)]


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # its OpenMP threads would spin beside numba's
    return torch


def torch_gradients(torch, x, w, bias, geometry, transposed=False):
    """Output and the gradients of ``sum(dy * y)`` by torch's autograd (right also where torch.nn.grad is not)."""
    d = w.ndim - 2
    function = getattr(torch.nn.functional, f"conv_transpose{d}d" if transposed else f"conv{d}d")
    leaves = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, w)]
    y = function(*leaves, torch.from_numpy(bias), **geometry)
    dy = values(tuple(y.shape), x.dtype, seed=4)
    y.backward(torch.from_numpy(dy))
    return y.detach().numpy(), dy, leaves[0].grad.numpy(), leaves[1].grad.numpy()


@pytest.mark.parametrize("name", TORCH)
def test_conv_and_gradients_agree_with_torch(torch, name):
    x, w, bias, geometry, _ = case(name)
    y, dy, dx, dw = torch_gradients(torch, x, w, bias, geometry)
    tolerance = {"rtol": 1e-12, "atol": 1e-10}
    np.testing.assert_allclose(numconv.conv(x, w, bias, **geometry), y, **tolerance)
    np.testing.assert_allclose(numconv.conv_grad_input(x.shape, w, dy, **geometry), dx, **tolerance)
    np.testing.assert_allclose(numconv.conv_grad_weight(x, w.shape, dy, **geometry), dw, **tolerance)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_padding_agrees_with_torch(torch, padding):
    x, w = values((1, 2, 7, 6)), values((3, 2, 4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that an even kernel with "same" copies the input
        y = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), padding=padding, dilation=(1, 2))
    np.testing.assert_allclose(numconv.conv2d(x, w, padding=padding, dilation=(1, 2)), y.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_gradients_agree_with_torch(torch, dtype):
    """torch's gradient of a complex tensor is the Hermitian adjoint too."""
    x, w, bias = values((1, 2, 5, 6), dtype), values((3, 2, 2, 3), dtype), values((3,), dtype)
    y, dy, dx, dw = torch_gradients(torch, x, w, bias, {"stride": 2, "padding": 1})
    assert_close(numconv.conv(x, w, bias, stride=2, padding=1), y, dtype, 200, AMPLIFICATION)
    assert_close(numconv.conv_grad_input(x.shape, w, dy, stride=2, padding=1), dx, dtype, 200, AMPLIFICATION)
    assert_close(numconv.conv_grad_weight(x, w.shape, dy, stride=2, padding=1), dw, dtype, 200, AMPLIFICATION)


@pytest.mark.parametrize("name", TORCH_TRANSPOSED)
def test_conv_transpose_agrees_with_torch(torch, name):
    x_shape, w_shape, geometry = TRANSPOSED[name]
    x, w, bias = values(x_shape), values(w_shape, seed=1), values((w_shape[1] * geometry.get("groups", 1),), seed=2)
    y, *_ = torch_gradients(torch, x, w, bias, geometry, transposed=True)
    np.testing.assert_allclose(numconv.conv_transpose(x, w, bias, **geometry), y, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(
    "arguments", [{}, {"stride": 2}, {"dilation": 2, "padding": 1}, {"stride": (2, 1), "padding": (0, 2)}], ids=str
)
def test_unfold_and_fold_agree_with_torch(torch, arguments):
    x = values((2, 3, 7, 6))
    cols = torch.nn.functional.unfold(torch.from_numpy(x), (3, 2), **arguments).numpy()
    np.testing.assert_array_equal(numconv.unfold(x, (3, 2), **arguments), cols)
    summed = torch.nn.functional.fold(torch.from_numpy(cols), (7, 6), (3, 2), **arguments).numpy()
    np.testing.assert_array_equal(numconv.fold(cols, (7, 6), (3, 2), **arguments), summed)


def test_torch_tensors_come_back_as_torch_tensors(torch):
    x, w, bias, geometry, want = case("everything")
    y = numconv.conv(*(torch.from_numpy(a) for a in (x, w, bias)), **geometry)
    assert isinstance(y, torch.Tensor)
    assert y.device.type == "cpu"
    assert_close(y.numpy(), want, np.float64, scale_of(x, w, 13), AMPLIFICATION)


# errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "names", "x_shape", "w_shape", "arguments"),
    [
        (ValueError, "stride", (1, 1, 5, 5), (1, 1, 2, 2), {"stride": 0}),
        (ValueError, "stride", (1, 1, 5, 5), (1, 1, 2, 2), {"stride": (1, 2, 3)}),
        (TypeError, "stride", (1, 1, 5, 5), (1, 1, 2, 2), {"stride": 1.5}),
        (ValueError, "dilation", (1, 1, 5, 5), (1, 1, 2, 2), {"dilation": 0}),
        (ValueError, "padding", (1, 1, 5, 5), (1, 1, 2, 2), {"padding": -1}),
        (ValueError, "padding", (1, 1, 5, 5), (1, 1, 2, 2), {"padding": "SAME"}),
        (ValueError, "padding", (1, 1, 5, 5), (1, 1, 2, 2), {"padding": ((1, 2, 3), 0)}),
        (ValueError, "groups", (1, 3, 5, 5), (2, 1, 2, 2), {"groups": 2}),
        (ValueError, "groups", (1, 3, 5, 5), (3, 1, 2, 2), {"groups": 0}),
        (ValueError, "boundary", (1, 1, 5, 5), (1, 1, 2, 2), {"boundary": "mirror"}),
        (ValueError, "algorithm", (1, 1, 5, 5), (1, 1, 2, 2), {"algorithm": "fastest"}),
        (ValueError, "w", (1, 2, 5, 5), (1, 3, 2, 2), {}),
        (ValueError, "x", (5, 5), (1, 1, 2, 2), {}),
        (ValueError, "5.*6", (1, 1, 5, 5), (1, 1, 6, 2), {}),  # an empty output names the sizes
        (ValueError, "bias", (1, 1, 5, 5), (3, 1, 2, 2), {"bias": np.zeros(2)}),
        (TypeError, "flop", (1, 1, 5, 5), (1, 1, 2, 2), {"flop": True}),
    ],
)
def test_errors_name_the_argument(error, names, x_shape, w_shape, arguments):
    with pytest.raises(error, match=names):
        numconv.conv(np.zeros(x_shape), np.zeros(w_shape), **arguments)


@pytest.mark.parametrize("dtype", ["object", "U3", "M8[s]", "V8"])
def test_a_dtype_without_products_is_a_type_error(dtype):
    with pytest.raises(TypeError):
        numconv.conv(np.zeros((1, 1, 4), dtype), np.zeros((1, 1, 2), dtype))


def test_gradients_refuse_a_dy_of_another_shape():
    x, w = np.zeros((1, 2, 5, 5)), np.zeros((3, 2, 2, 2))
    with pytest.raises(ValueError, match="dy"):
        numconv.conv_grad_input(x.shape, w, np.zeros((1, 3, 5, 4)))
    with pytest.raises(ValueError, match="dy"):
        numconv.conv_grad_weight(x, w.shape, np.zeros((1, 3, 5, 4)))
