"""``convolve`` and ``correlate`` against SciPy's functions of that name, NumPy's, and those of ``scipy.ndimage``."""

from __future__ import annotations

import naive
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from conftest import (
    ALGORITHMS,
    AMPLIFICATION,
    BOUNDARIES,
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

MODES = ["full", "same", "valid"]
BOTH = [(numconv.convolve, scipy.signal.convolve), (numconv.correlate, scipy.signal.correlate)]
both_functions = pytest.mark.parametrize(("ours", "scipys"), BOTH, ids=["convolve", "correlate"])
all_modes = pytest.mark.parametrize("mode", MODES)

#: Shapes of x and w: odd and even kernels, x smaller than w (then "valid" swaps them), equal, one axis to four.
SHAPES = {
    "1d odd": ((9,), (3,)),
    "1d even": ((9,), (4,)),
    "1d one value": ((5,), (1,)),
    "1d x smaller": ((3,), (8,)),
    "1d x smaller, both even": ((4,), (8,)),
    "1d equal": ((6,), (6,)),
    "2d odd": ((7, 8), (3, 5)),
    "2d even": ((7, 8), (2, 4)),
    "2d odd and even": ((7, 8), (3, 2)),
    "2d x smaller": ((2, 3), (5, 4)),
    "2d smaller on an axis of equal length": ((3, 2), (3, 5)),
    "3d": ((4, 5, 6), (2, 3, 4)),
    "3d x smaller": ((2, 1, 2), (3, 2, 4)),
    "4d": ((3, 4, 3, 2), (2, 2, 3, 1)),
}
all_shapes = pytest.mark.parametrize("name", SHAPES)


def scale_of(x, w):
    return min(x.size, w.size) * largest(x) * largest(w)


# shapes, modes, dtypes ----------------------------------------------------------------------------------------------


@both_functions
@all_modes
@all_shapes
def test_alignment_and_values_are_scipys(ours, scipys, mode, name):
    x, w = (values(shape) for shape in SHAPES[name])
    assert_close(ours(x, w, mode), scipys(x, w, mode, method="direct"), "f8", scale_of(x, w), AMPLIFICATION)


@both_functions
@all_modes
@all_shapes
def test_integers_are_exact(ours, scipys, mode, name):
    x, w = (values(shape, "int64") for shape in SHAPES[name])
    assert_same(ours(x, w, mode), scipys(x, w, mode, method="direct"), np.int64)


@both_functions
@all_modes
@pytest.mark.parametrize("name", ["1d even", "1d x smaller", "2d odd and even", "2d x smaller"])
def test_complex_numbers_correlate_conjugates_w(ours, scipys, mode, name):
    x, w = (values(shape, "complex128") for shape in SHAPES[name])
    assert_close(ours(x, w, mode), scipys(x, w, mode, method="direct"), "c16", 2 * scale_of(x, w), AMPLIFICATION)


def test_mode_is_full_by_default():
    x, w = values((6,)), values((3,))
    np.testing.assert_allclose(numconv.convolve(x, w), scipy.signal.convolve(x, w), rtol=1e-14)
    np.testing.assert_allclose(numconv.correlate(x, w), scipy.signal.correlate(x, w), rtol=1e-14)


@both_functions
@pytest.mark.parametrize("dtype", SOME_DTYPES, ids=dtype_id)
def test_every_dtype_is_kept(ours, scipys, dtype):
    x, w = values((6, 7), dtype), values((3, 2), dtype)
    want = (naive.convolve if ours is numconv.convolve else naive.correlate)(x, w, "same")
    assert_close(ours(x, w, "same"), want, dtype, 2 * scale_of(x, w), AMPLIFICATION)
    assert scipys(x[0], w[0], "same", method="direct").dtype == dtype  # SciPy's rule (it lacks bool and float16 in 2-D)


@pytest.mark.parametrize(
    ("x_dtype", "w_dtype"),
    [("int8", "int16"), ("uint8", "int8"), ("int32", "uint32"), ("int32", "float32"), ("float32", "float64"),
     ("float16", "int8"), ("bool", "uint8"), ("float32", "complex64"), ("float64", "complex64"), ("bool", "float32")],
)  # fmt: skip
@both_functions
def test_mixed_dtypes_give_numpys_result_type(ours, scipys, x_dtype, w_dtype):
    for x, w in [(values((6,), x_dtype), values((3,), w_dtype)), (values((6,), w_dtype), values((3,), x_dtype))]:
        want = (naive.convolve if ours is numconv.convolve else naive.correlate)(x, w)
        assert_close(ours(x, w), want, np.result_type(x, w), 2 * scale_of(x, w), AMPLIFICATION)
        assert scipys(x, w, method="direct").dtype == np.result_type(x, w)


def test_large_integers_do_not_pass_through_floats():
    x, w = np.array([2**53 + 1, 2**61 - 1, -(2**60) - 1]), np.array([1, 0, 3])
    np.testing.assert_array_equal(numconv.convolve(x, w), naive.narrow(naive.convolve(x, w), np.int64))


def test_lists_are_arrays():
    np.testing.assert_array_equal(numconv.convolve([1, 2, 3], [0, 1, 10]), [0, 1, 12, 23, 30])


@both_functions
def test_scalars_give_their_product(ours, scipys):
    for x, w in [(2, 3), (2.5, 3), (np.float32(2), np.float32(3)), (2, 3j), (np.int8(7), np.int8(5))]:
        got, want = ours(x, w), scipys(x, w)
        assert got == want
        assert np.ndim(got) == 0
        assert np.asarray(got).dtype == np.asarray(want).dtype


@both_functions
@pytest.mark.parametrize(("x_shape", "w_shape"), [((3,), (2, 2)), ((), (2,)), ((4, 4), (2,))])
def test_another_number_of_axes_is_refused_as_by_scipy(ours, scipys, x_shape, w_shape):
    with pytest.raises(ValueError, match="dimensionality"):
        scipys(np.ones(x_shape), np.ones(w_shape))
    with pytest.raises(ValueError, match=r"x and w.*axes"):
        ours(np.ones(x_shape), np.ones(w_shape))


@both_functions
def test_valid_needs_one_array_that_is_larger_on_every_axis(ours, scipys):
    with pytest.raises(ValueError, match="at least as large"):
        scipys(np.ones((5, 2)), np.ones((2, 5)), "valid")
    with pytest.raises(ValueError, match=r"5.*2.*2.*5"):
        ours(np.ones((5, 2)), np.ones((2, 5)), "valid")


@both_functions
def test_unknown_modes_are_refused(ours, scipys):
    with pytest.raises(ValueError, match="mode"):
        ours(np.ones(3), np.ones(2), "smae")


@both_functions
@all_modes
def test_out_receives_the_result(ours, scipys, mode):
    x, w = values((7, 6)), values((2, 3))
    want = scipys(x, w, mode, method="direct")
    out = np.full(want.shape, np.nan)
    assert ours(x, w, mode, out=out) is out
    assert_close(out, want, "f8", scale_of(x, w), AMPLIFICATION)


# algorithms ---------------------------------------------------------------------------------------------------------


@both_functions
@all_modes
@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
@pytest.mark.parametrize("name", ["1d even", "1d x smaller", "2d odd", "2d x smaller", "3d", "4d"])
def test_algorithms_agree(ours, scipys, mode, algorithm, name):
    x, w = (values(shape) for shape in SHAPES[name])
    got = result_of(algorithm, ours, x, w, mode)
    if got is not None:
        assert_by(algorithm, got, scipys(x, w, mode, method="direct"), np.float64, scale_of(x, w))


@pytest.mark.parametrize("algorithm", ["auto", "direct", "fft"])
@all_modes
def test_long_signals_and_kernels_round_as_little_as_scipys(mode, algorithm):
    x, w = normal((3000,)), normal((401,))
    want = scipy.signal.convolve(x, w, mode, method="direct")
    # |sum| is about sqrt(401) = 20; SciPy's own FFT errs by some 1e-14
    np.testing.assert_allclose(numconv.convolve(x, w, mode, algorithm=algorithm), want, rtol=0, atol=1e-12)


@both_functions
@all_modes
def test_large_images_take_the_parallel_kernels_to_the_same_result(ours, scipys, mode):
    x, w = values((200, 211)), values((5, 4))
    want = scipys(x, w, mode, method="direct")
    for algorithm in ("auto", "im2col", "kernel2row", "implicit", "direct", "fft"):
        assert_by(algorithm, ours(x, w, mode, algorithm=algorithm), want, np.float64, scale_of(x, w))


# boundaries: convolve2d, correlate2d, ndimage -----------------------------------------------------------------------

SCIPY_BOUNDARY = {"constant": "fill", "wrap": "wrap", "symmetric": "symm"}
NDIMAGE_MODE = {"constant": "constant", "edge": "nearest", "reflect": "mirror", "symmetric": "reflect", "wrap": "wrap"}


@pytest.mark.parametrize("boundary", SCIPY_BOUNDARY)
@pytest.mark.parametrize("w_shape", [(3, 3), (3, 5), (2, 2), (4, 3), (1, 2)], ids=str)
@all_modes
def test_convolve2d(mode, w_shape, boundary):
    x, w = values((7, 8)), values(w_shape)
    fill = 2 if boundary == "constant" else 0
    want = scipy.signal.convolve2d(x, w, mode, SCIPY_BOUNDARY[boundary], fillvalue=fill)
    got = numconv.convolve(x, w, mode, boundary=boundary, fill_value=fill)
    assert_close(got, want, "f8", scale_of(x, w), AMPLIFICATION)


@pytest.mark.parametrize("boundary", SCIPY_BOUNDARY)
@pytest.mark.parametrize("w_shape", [(3, 3), (3, 5), (1, 3)], ids=str)
@all_modes
def test_correlate2d_for_odd_kernels(mode, w_shape, boundary):
    """For even kernels SciPy's correlate2d and correlate differ in "same" (scipy#1968); ours is the latter."""
    x, w = values((7, 8), "complex128"), values(w_shape, "complex128")
    fill = 2 if boundary == "constant" else 0
    want = scipy.signal.correlate2d(x, w, mode, SCIPY_BOUNDARY[boundary], fillvalue=fill)
    got = numconv.correlate(x, w, mode, boundary=boundary, fill_value=fill)
    assert_close(got, want, "c16", 2 * scale_of(x, w), AMPLIFICATION)


@pytest.mark.parametrize("boundary", SCIPY_BOUNDARY)
@pytest.mark.parametrize("mode", ["full", "valid"])
def test_correlate2d_for_even_kernels_outside_same(mode, boundary):
    x, w = values((7, 8)), values((2, 4))
    want = scipy.signal.correlate2d(x, w, mode, SCIPY_BOUNDARY[boundary])
    assert_close(numconv.correlate(x, w, mode, boundary=boundary), want, "f8", scale_of(x, w), AMPLIFICATION)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("x_shape", "w_shape"), [((9,), (5,)), ((6, 7), (3, 5)), ((4, 5, 6), (3, 1, 5))], ids=str)
@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_same_is_ndimage_in_every_boundary(algorithm, x_shape, w_shape, boundary):
    x, w = values(x_shape), values(w_shape)
    for ours, ndimages in [(numconv.convolve, scipy.ndimage.convolve), (numconv.correlate, scipy.ndimage.correlate)]:
        got = result_of(algorithm, ours, x, w, "same", boundary=boundary)
        if got is not None:
            assert_by(algorithm, got, ndimages(x, w, mode=NDIMAGE_MODE[boundary]), np.float64, scale_of(x, w))


def test_a_constant_is_ndimages_cval():
    x, w = values((6, 7)), values((3, 5))
    want = scipy.ndimage.convolve(x, w, mode="constant", cval=3.5)
    assert_same(numconv.convolve(x, w, "same", fill_value=3.5, algorithm="direct"), want)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("x_shape", "w_shape"), [((3,), (9,)), ((2, 3), (5, 8)), ((1, 2), (4, 2))], ids=str)
def test_boundaries_repeat_where_the_kernel_reaches_further_than_the_input(x_shape, w_shape, mode, boundary):
    x, w = values(x_shape), values(w_shape)
    for ours, oracle in [(numconv.convolve, naive.convolve), (numconv.correlate, naive.correlate)]:
        want = oracle(x, w, mode, boundary=boundary)
        assert_close(ours(x, w, mode, boundary=boundary), want, "f8", max(x.size, w.size) * 4, AMPLIFICATION)


# stride, dilation, axes ---------------------------------------------------------------------------------------------


@both_functions
@all_modes
@pytest.mark.parametrize("name", ["1d even", "1d x smaller", "2d odd and even", "2d x smaller", "3d"])
@pytest.mark.parametrize("stride", [2, 3])
def test_stride_keeps_every_stride_th_value(ours, scipys, mode, name, stride):
    x, w = (values(shape) for shape in SHAPES[name])
    want = scipys(x, w, mode, method="direct")[(slice(None, None, stride),) * x.ndim]
    assert_close(ours(x, w, mode, stride=stride), want, "f8", scale_of(x, w), AMPLIFICATION)


@both_functions
@all_modes
@pytest.mark.parametrize(("x_shape", "w_shape"), [((12,), (3,)), ((4,), (4,)), ((9, 8), (2, 3)), ((3, 2), (2, 2))],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("dilation", [2, 3])
def test_dilation_is_the_kernel_with_zeros_inserted(ours, scipys, mode, x_shape, w_shape, dilation):
    x, w = values(x_shape), values(w_shape)
    spread = np.zeros([dilation * (k - 1) + 1 for k in w_shape])
    spread[(slice(None, None, dilation),) * w.ndim] = w
    want = scipys(x, spread, mode, method="direct")
    assert_close(ours(x, w, mode, dilation=dilation), want, "f8", scale_of(x, w), AMPLIFICATION)


def test_stride_and_dilation_per_axis_with_a_boundary():
    x, w = values((9, 8)), values((3, 2))
    arguments = {"stride": (2, 3), "dilation": (1, 4), "boundary": "reflect"}
    for mode in MODES:
        got = numconv.convolve(x, w, mode, **arguments, algorithm="direct")
        assert_same(got, naive.convolve(x, w, mode, **arguments))


@both_functions
@all_modes
@pytest.mark.parametrize("axes", [(0,), (1,), (-1,), (0, 1), (1, 2), (0, 2), (-3, -1), (2, 0), (0, 1, 2)], ids=str)
def test_axes_loops_over_the_rest(ours, scipys, mode, axes):
    x, w = values((5, 6, 7)), values((3, 2, 4)[: len(axes)])
    last = tuple(range(-len(axes), 0))
    rest_first = np.moveaxis(x, axes, last)
    rest = rest_first.shape[: 3 - len(axes)]
    looped = np.stack([scipys(rest_first[i], w, mode, method="direct") for i in np.ndindex(rest)])
    want = np.moveaxis(looped.reshape(*rest, *looped.shape[1:]), last, axes)
    assert_close(ours(x, w, mode, axes=axes), want, "f8", scale_of(x, w), AMPLIFICATION)


@both_functions
def test_axes_swap_in_valid_as_every_loop_over_the_rest_would(ours, scipys):
    x, w = values((2, 3)), values((5,))
    want = np.stack([scipys(row, w, "valid", method="direct") for row in x])
    assert_close(ours(x, w, "valid", axes=1), want, "f8", 3 * 4, AMPLIFICATION)


@both_functions
def test_valid_swaps_whatever_the_spelling_of_dilation_1(ours, scipys):
    x, w = values((2, 3)), values((5, 4))
    want = scipys(x, w, "valid", method="direct")
    for dilation in (1, (1, 1), [1, 1], np.array([1, 1])):
        assert_close(ours(x, w, "valid", dilation=dilation), want, "f8", scale_of(x, w), AMPLIFICATION)


@both_functions
@pytest.mark.parametrize("stride", [0, -1, (1, 2), 1.5], ids=str)
@pytest.mark.parametrize(("x_shape", "w_shape"), [((6,), (3,)), ((3,), (6,))], ids=["x larger", "w larger"])
def test_an_impossible_stride_is_refused_whichever_array_is_larger(ours, scipys, x_shape, w_shape, stride):
    with pytest.raises((ValueError, TypeError), match="stride"):
        ours(np.ones(x_shape), np.ones(w_shape), "valid", stride=stride)


def test_axes_may_be_one_int():
    x, w = values((4, 9)), values((3,))
    np.testing.assert_array_equal(
        numconv.convolve(x, w, "same", axes=1, algorithm="direct"),
        numconv.convolve(x, w, "same", axes=(1,), algorithm="direct"),
    )


@pytest.mark.parametrize("axes", [(0, 0), (0, -3), (3,), (-4,), (0, 1)], ids=str)
def test_axes_that_repeat_or_do_not_exist_are_refused(axes):
    with pytest.raises(ValueError, match=r"axes|axis"):
        numconv.convolve(np.ones((4, 4, 4)), np.ones((2, 2) if axes in [(0, 0), (0, -3)] else (2,)), axes=axes)


# numpy --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n", "k"), [(9, 3), (9, 4), (7, 7)])
def test_numpys_convolve_and_correlate_where_x_is_not_the_shorter(mode, n, k):
    x, w = values((n,), "complex128"), values((k,), "complex128")
    assert_close(numconv.convolve(x, w, mode), np.convolve(x, w, mode), "c16", 2 * scale_of(x, w), AMPLIFICATION)
    assert_close(numconv.correlate(x, w, mode), np.correlate(x, w, mode), "c16", 2 * scale_of(x, w), AMPLIFICATION)
