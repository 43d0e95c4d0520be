"""The matrices: ``im2col``/``col2im``, ``unfold``/``fold`` and ``kernel2row``, plain and channelled, d = 1 to 4."""

from __future__ import annotations

from math import prod

import naive
import numpy as np
import pytest
import scipy.sparse
from conftest import BOUNDARIES, COMPLEX, DTYPES, INTEGERS, assert_close, assert_same, dtype_id, values

import numconv

# id: (input shape (C, *in), kernel, geometry)
WINDOWS = {
    "1d": ((2, 9), (3,), {}),
    "2d": ((2, 5, 6), (2, 3), {}),
    "3d": ((2, 3, 4, 5), (2, 3, 2), {}),
    "4d": ((2, 2, 3, 3, 4), (2, 1, 3, 2), {}),
    "one pixel": ((1, 1, 1), (1, 1), {}),
    "stride": ((2, 7, 8), (2, 3), {"stride": (3, 2)}),
    "dilation": ((2, 7, 8), (2, 3), {"dilation": (4, 3)}),
    "stride above kernel": ((1, 9, 8), (2, 2), {"stride": 4}),
    "padding pairs": ((2, 4, 5), (3, 2), {"padding": ((0, 2), (3, 1))}),
    "padding same": ((2, 4, 5), (3, 2), {"padding": "same", "stride": 2}),
    "padding same_lower": ((2, 4, 5), (4, 2), {"padding": "same_lower"}),
    "padding full": ((2, 3, 2), (3, 4), {"padding": "full"}),
    "padding above kernel": ((1, 2, 3), (2, 2), {"padding": 4, "stride": 2}),
    "fill value": ((2, 3, 4), (3, 3), {"padding": 1, "fill_value": 7}),
    **{b: ((2, 4, 5), (3, 4), {"padding": "same", "boundary": b, "stride": (1, 2)}) for b in BOUNDARIES[1:]},
    **{f"{b} 1d": ((1, 5), (4,), {"padding": ((3, 2),), "boundary": b}) for b in BOUNDARIES[1:]},
    **{f"{b} 3d": ((1, 2, 3, 4), (2, 3, 2), {"padding": 1, "boundary": b, "dilation": 2}) for b in BOUNDARIES[1:]},
    **{f"{b} 4d": ((1, 2, 2, 1, 3), (2, 2, 2, 2), {"padding": "same", "boundary": b}) for b in BOUNDARIES[1:]},
    **{f"{b} wide": ((1, 3, 2), (3, 3), {"padding": ((7, 5), (6, 8)), "boundary": b}) for b in BOUNDARIES[1:]},
}
all_windows = pytest.mark.parametrize("name", WINDOWS)
both_ways_round = pytest.mark.parametrize("flip", [True, False], ids=["turned", "as it is"])
EVERYTHING = {"stride": (2, 1), "dilation": (1, 2), "padding": ((1, 2), (3, 0)), "boundary": "symmetric"}


def linear(geometry):
    """The geometry without its fill value: what has a matrix."""
    return {name: value for name, value in geometry.items() if name != "fill_value"}


# im2col -------------------------------------------------------------------------------------------------------------


@all_windows
@both_ways_round
def test_im2col_of_channels(name, flip):
    shape, kernel, geometry = WINDOWS[name]
    x = np.arange(1.0, prod(shape) + 1).reshape(shape)
    assert_same(numconv.im2col(x, kernel, **geometry, flip=flip), naive.im2col(x, kernel, **geometry, flip=flip))


@all_windows
def test_im2col_of_a_plain_array_is_that_of_one_channel(name):
    shape, kernel, geometry = WINDOWS[name]
    x = np.arange(1, prod(shape[1:]) + 1).reshape(shape[1:])
    got = numconv.im2col(x, kernel, **geometry)
    assert_same(got, naive.im2col(x[None], kernel, **geometry))
    np.testing.assert_array_equal(got, numconv.im2col(x[None], kernel, **geometry))


def test_im2col_of_a_batch_is_that_of_each_image():
    x = values((3, 2, 5, 6))
    got = numconv.im2col(x, (2, 3), **EVERYTHING)
    assert got.shape == (3, 12, got.shape[2])
    for image, cols in zip(x, got, strict=True):
        np.testing.assert_array_equal(cols, numconv.im2col(image, (2, 3), **EVERYTHING))


def test_im2col_turned_is_im2col_with_reversed_rows():
    x = values((2, 5, 6))
    turned, as_it_is = (numconv.im2col(x, (2, 3), padding=1, flip=flip) for flip in (True, False))
    np.testing.assert_array_equal(turned.reshape(2, 6, -1), as_it_is.reshape(2, 6, -1)[:, ::-1])


def test_im2col_turns_the_kernel_by_default_and_unfold_does_not():
    x = np.arange(5)
    np.testing.assert_array_equal(numconv.im2col(x, (2,)), [[1, 2, 3, 4], [0, 1, 2, 3]])
    np.testing.assert_array_equal(numconv.unfold(x[None, None], (2,)), [[[0, 1, 2, 3], [1, 2, 3, 4]]])


STRUCTURED = np.dtype([("a", "i2"), ("b", "f4"), ("c", "u1")])
ANY_ITEM = [*DTYPES, *map(np.dtype, ("longdouble", "clongdouble", "M8[s]", "m8[ns]", "S3", "U2", "V5", STRUCTURED))]


def anything(shape, dtype):
    """Distinct items of any dtype."""
    numbers = np.arange(1, prod(shape) + 1)
    if dtype.kind in "fciuMm":
        return (numbers % 100).astype(dtype).reshape(shape)
    if dtype.kind in "SU":
        return numbers.astype(dtype).reshape(shape)
    if dtype.kind == "b":
        return values(shape, dtype)
    a = np.zeros(shape, dtype)
    for i, (place, number) in enumerate(zip(np.ndindex(shape), numbers, strict=True)):
        a[place] = (number, number / 2, i % 200) if dtype.names else bytes([number % 256]) * 5
    return a


@pytest.mark.parametrize("dtype", ANY_ITEM, ids=lambda dtype: "structured" if dtype.names else str(dtype))
@pytest.mark.parametrize("boundary", ["no padding", "wrap", "edge"])
def test_im2col_copies_items_of_every_fixed_size(dtype, boundary):
    x = anything((2, 4, 5), dtype)
    geometry = {"stride": (1, 2)}
    if boundary != "no padding":
        geometry |= {"padding": ((1, 2), (0, 3)), "boundary": boundary}
    got = numconv.im2col(x, (2, 3), **geometry)
    want = naive.im2col(x, (2, 3), **geometry)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", [*DTYPES, *map(np.dtype, ("longdouble", "M8[s]", STRUCTURED))],
                         ids=lambda dtype: "structured" if dtype.names else str(dtype))  # fmt: skip
def test_im2col_pads_every_dtype_with_its_zero(dtype):
    x = anything((2, 3, 4), dtype)
    got = numconv.im2col(x, (2, 2), padding=1)
    np.testing.assert_array_equal(got, naive.im2col(x, (2, 2), padding=1))
    assert (got == np.zeros((), dtype)).sum() >= 2 * 2 * 9  # the border, for each channel


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [("int8", -3), ("uint8", 255), ("int64", 2**62 + 1), ("float32", np.inf), ("float16", 0.5), ("complex64", 1 - 2j),
     ("bool", True)],
    ids=str,
)  # fmt: skip
def test_im2col_pads_with_the_fill_value(dtype, fill):
    x = values((1, 3, 4), dtype)
    want = naive.im2col(x, (2, 2), padding=1, fill_value=fill)
    assert_same(numconv.im2col(x, (2, 2), padding=1, fill_value=fill), want)


def test_im2col_pads_with_nan():
    got = numconv.im2col(np.zeros((1, 3)), (2,), padding=1, fill_value=np.nan)
    np.testing.assert_array_equal(got, naive.im2col(np.zeros((1, 3)), (2,), padding=1, fill_value=np.nan))
    assert np.isnan(got).sum() == 2


@pytest.mark.parametrize("fill", [300, -1, 1.5])
def test_im2col_refuses_a_fill_value_that_the_dtype_cannot_hold(fill):
    with pytest.raises((ValueError, TypeError, OverflowError), match="fill_value"):
        numconv.im2col(np.zeros((1, 3), np.uint8), (2,), padding=1, fill_value=fill)


def test_im2col_keeps_every_bit_of_a_nan():
    payload = np.array([[0x7FF8000000000123, 0xFFF8000000000456, 0x8000000000000000]], np.uint64).view(np.float64)
    got = numconv.im2col(payload, (1,)).view(np.uint64)
    np.testing.assert_array_equal(got, payload.view(np.uint64))


def test_im2col_writes_into_out():
    x = values((2, 5, 6))
    want = naive.im2col(x, (2, 3))
    out = np.full(want.shape, np.nan)
    assert numconv.im2col(x, (2, 3), out=out) is out
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("layout", ["fortran", "reversed", "gaps", "read-only", "big-endian"])
def test_im2col_reads_every_memory_layout(layout):
    x = values((2, 4, 6))
    given = {
        "fortran": np.asfortranarray(x), "reversed": x[:, ::-1].copy()[:, ::-1],
        "gaps": np.repeat(x, 2, -1)[..., ::2], "read-only": x.copy(), "big-endian": x.astype(">f8"),
    }[layout]  # fmt: skip
    given.flags.writeable = layout != "read-only"
    np.testing.assert_array_equal(numconv.im2col(given, (2, 3), padding=1), naive.im2col(x, (2, 3), padding=1))


@pytest.mark.parametrize("kernel", [2, (2,)], ids=str)
def test_one_int_is_a_kernel_of_one_axis(kernel):
    np.testing.assert_array_equal(numconv.im2col(np.arange(4), kernel), [[1, 2, 3], [0, 1, 2]])


# col2im -------------------------------------------------------------------------------------------------------------


@all_windows
@both_ways_round
def test_col2im_adds_every_value_onto_the_pixel_it_came_from(name, flip):
    shape, kernel, geometry = WINDOWS[name]
    geometry = linear(geometry)
    cols = values(naive.im2col(np.zeros(shape), kernel, **geometry).shape)
    want = naive.col2im(cols, shape, kernel, **geometry, flip=flip)
    assert_same(numconv.col2im(cols, shape, kernel, **geometry, flip=flip), want, np.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_col2im_in_every_dtype(dtype):
    cols = values(naive.im2col(np.zeros((2, 5, 6)), (2, 3), **EVERYTHING).shape, dtype)
    want = naive.col2im(cols, (2, 5, 6), (2, 3), **EVERYTHING)
    assert_same(numconv.col2im(cols, (2, 5, 6), (2, 3), **EVERYTHING), want, dtype)


@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), (3, 2, 5, 6)], ids=str)
def test_col2im_of_plain_channelled_and_batched_shapes(shape):
    cols = values(naive.im2col(np.zeros(shape), (2, 3), **EVERYTHING).shape)
    want = naive.col2im(cols, shape, (2, 3), **EVERYTHING)
    assert_same(numconv.col2im(cols, shape, (2, 3), **EVERYTHING), want)


@all_windows
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_col2im_mean_averages_overlaps(name, dtype):
    shape, kernel, geometry = WINDOWS[name]
    geometry = linear(geometry)
    cols = values(naive.im2col(np.zeros(shape), kernel, **geometry).shape, dtype)
    want = naive.col2im(cols, shape, kernel, **geometry, reduce="mean")
    got = numconv.col2im(cols, shape, kernel, **geometry, reduce="mean")
    assert_close(got, want, dtype, 4)  # one exact sum, one division


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_col2im_mean_undoes_im2col(boundary):
    x = values((2, 5, 6))
    cols = numconv.im2col(x, (3, 2), padding=1, boundary=boundary)
    back = numconv.col2im(cols, x.shape, (3, 2), padding=1, boundary=boundary, reduce="mean")
    np.testing.assert_allclose(back, x, rtol=4 * np.finfo(float).eps)


def test_col2im_refuses_an_unknown_reduction():
    with pytest.raises(ValueError, match="reduce"):
        numconv.col2im(np.ones((2, 3)), (4,), (2,), reduce="median")


@pytest.mark.parametrize("cols_shape", [(2, 4), (3, 3), (1, 2, 3)], ids=str)
def test_col2im_refuses_columns_of_another_shape(cols_shape):
    with pytest.raises(ValueError, match="cols"):
        numconv.col2im(np.ones(cols_shape), (4,), (2,))


# unfold, fold -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize("batched", [True, False], ids=["batch", "no batch"])
def test_unfold_and_fold_take_torchs_arguments_for_any_number_of_axes(d, batched):
    x = values((2, 3, 6, 5, 4, 4)[: d + 2])[slice(None) if batched else 0]
    kernel = (2, 3, 2, 1)[:d]
    cols = numconv.unfold(x, kernel, 2, 1, 2)  # dilation, padding, stride
    assert_same(cols, naive.im2col(x, kernel, dilation=2, padding=1, stride=2, flip=False))
    summed = numconv.fold(cols, x.shape[-d:], kernel, 2, 1, 2)
    assert_same(summed, naive.col2im(cols, x.shape, kernel, dilation=2, padding=1, stride=2, flip=False), np.float64)


def test_fold_of_unfold_counts_the_windows_that_see_a_pixel():
    counts = numconv.fold(numconv.unfold(np.ones((1, 1, 4, 5)), (2, 3)), (4, 5), (2, 3))
    np.testing.assert_array_equal(counts[0, 0], np.outer([1, 2, 2, 1], [1, 2, 3, 2, 1]))


@pytest.mark.parametrize("dtype", [*INTEGERS, *COMPLEX], ids=dtype_id)
def test_unfold_and_fold_in_dtypes_that_torch_lacks(dtype):
    x = values((1, 2, 5, 6), dtype)
    cols = numconv.unfold(x, (2, 3), padding=1)
    assert_same(cols, naive.im2col(x, (2, 3), padding=1, flip=False))
    assert_same(numconv.fold(cols, (5, 6), (2, 3), padding=1),
                naive.col2im(cols, x.shape, (2, 3), padding=1, flip=False), dtype)  # fmt: skip


# kernel2row ---------------------------------------------------------------------------------------------------------


def is_canonical(csr):
    """Sorted columns without duplicates in every row, found by looking rather than by asking flags."""
    rows = [csr.indices[a:b] for a, b in zip(csr.indptr[:-1], csr.indptr[1:], strict=True)]
    return all((np.diff(row.astype(np.int64)) > 0).all() for row in rows) and csr.indptr[0] == 0


def check_csr(csr, shape, dtype):
    assert isinstance(csr, scipy.sparse.csr_array)
    assert csr.shape == shape
    assert csr.dtype == dtype
    assert csr.indices.dtype == csr.indptr.dtype == np.int32
    assert csr.has_canonical_format
    assert is_canonical(csr)
    assert csr.nnz == csr.indptr[-1] == len(csr.indices) == len(csr.data)


@all_windows
@both_ways_round
def test_kernel2row_of_channels_is_the_dense_matrix(name, flip):
    shape, kernel, geometry = WINDOWS[name]
    geometry = linear(geometry)
    w = values((3, shape[0], *kernel))
    want = naive.conv_matrix(w, shape[1:], **geometry, flip=flip)
    csr = numconv.kernel2row(w, shape[1:], **geometry, flip=flip)
    check_csr(csr, want.shape, np.float64)
    np.testing.assert_array_equal(csr.toarray(), want)


@all_windows
def test_kernel2row_of_a_plain_kernel(name):
    shape, kernel, geometry = WINDOWS[name]
    geometry = linear(geometry)
    w = values(kernel)
    want = naive.conv_matrix(w[None, None], shape[1:], **geometry)
    csr = numconv.kernel2row(w, shape[1:], **geometry)
    check_csr(csr, want.shape, np.float64)
    np.testing.assert_array_equal(csr.toarray(), want)


@pytest.mark.parametrize("groups", [1, 2, 4])
@both_ways_round
def test_kernel2row_of_groups_leaves_other_groups_out(groups, flip):
    w = values((4, 4 // groups, 2, 3))
    want = naive.conv_matrix(w, (5, 6), groups=groups, flip=flip, **EVERYTHING)
    csr = numconv.kernel2row(w, (5, 6), groups=groups, flip=flip, **EVERYTHING)
    check_csr(csr, want.shape, np.float64)
    np.testing.assert_array_equal(csr.toarray(), want)
    full = numconv.kernel2row(np.ones((4, 4, 2, 3)), (5, 6), **EVERYTHING)
    assert csr.nnz * groups == full.nnz


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_kernel2row_in_every_dtype(dtype):
    w = values((2, 2, 2, 3), dtype)
    csr = numconv.kernel2row(w, (4, 5), **EVERYTHING)
    want = naive.conv_matrix(w, (4, 5), **EVERYTHING)
    check_csr(csr, want.shape, np.float32 if dtype == np.float16 else dtype)  # SciPy cannot compute with sparse float16
    np.testing.assert_array_equal(csr.data, naive.narrow(want, dtype)[csr_places(csr)])
    empty = np.ones(want.shape, bool)
    empty[csr_places(csr)] = False
    assert not naive.narrow(want, dtype)[empty].any()


def csr_places(csr):
    """Rows and columns of the stored entries."""
    return np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr)), csr.indices


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_kernel2row_times_the_input_is_the_convolution(boundary):
    x, w = values((2, 4, 5, 6)), values((6, 2, 3, 2))
    geometry = {"groups": 2, "stride": (1, 2), "padding": ((2, 1), (0, 3)), "boundary": boundary, "flip": True}
    W_conv = numconv.kernel2row(w, (5, 6), **geometry)
    y = naive.conv(x, w, **geometry)
    assert W_conv.shape == (y[0].size, x[0].size), "the batch is no part of the matrix"
    np.testing.assert_array_equal(W_conv @ x.reshape(2, -1).T, y.reshape(2, -1).T)
    np.testing.assert_array_equal(W_conv @ x[0].ravel(), y[0].ravel())


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_kernel2row_transposed_is_the_exact_adjoint(boundary):
    """Taps that read a pixel through the boundary are folded onto it, so nothing of the adjoint is lost."""
    w = values((3, 2, 4, 3), "complex128")
    geometry = {"padding": ((5, 4), (3, 6)), "boundary": boundary}
    W_conv = numconv.kernel2row(w, (3, 2), **geometry)
    dy = values((3, 9, 9), "complex128")
    want = naive.conv_grad_input((2, 3, 2), w, dy, **geometry, flip=True)
    np.testing.assert_array_equal((W_conv.conj().T @ dy.ravel()).reshape(2, 3, 2), want)
    assert is_canonical(W_conv)


@pytest.mark.parametrize(
    "geometry", [{}, {"padding": 1}, {"padding": 4, "boundary": "reflect"}, {"stride": 3, "padding": "same"}], ids=str
)
def test_structure_follows_from_the_geometry_alone(geometry):
    ones, zeros = (numconv.kernel2row(value * np.ones((2, 2, 3, 3)), (4, 5), **geometry) for value in (1.0, 0.0))
    np.testing.assert_array_equal(ones.indices, zeros.indices)
    np.testing.assert_array_equal(ones.indptr, zeros.indptr)
    assert zeros.nnz == ones.nnz > 0, "zeros of w stay stored"
    cancelling = numconv.kernel2row(np.array([1.0, -1.0]), (1,), padding=1, boundary="edge")
    assert cancelling.nnz == 2, "taps that cancel on one pixel stay stored too"
    np.testing.assert_array_equal(cancelling.toarray(), [[0.0], [0.0]])


@pytest.mark.parametrize(
    "geometry", [{}, {"padding": 3, "boundary": "wrap"}, {"stride": 2, "dilation": 2, "padding": 2}], ids=str
)
def test_refill_writes_new_weights_into_the_old_structure(geometry):
    plan = numconv.plan_conv((2, 5, 6), (3, 2, 3, 3), dtype=np.float64, **geometry)
    first, second = values(plan.kernel_shape, seed=1), values(plan.kernel_shape, seed=2)
    csr, fresh = plan.matrix(first), plan.matrix(second)
    data, indices, indptr = csr.data, csr.indices, csr.indptr
    plan.refill(csr, second)
    assert csr.data is data, "in place"
    assert csr.indices is indices
    assert csr.indptr is indptr
    np.testing.assert_array_equal(csr.data, fresh.data)
    np.testing.assert_array_equal(csr.indices, fresh.indices)


def test_refill_refuses_a_matrix_of_another_structure():
    plan = numconv.plan_conv((1, 5, 6), (1, 1, 3, 3), dtype=np.float64)
    other = numconv.kernel2row(np.ones((1, 1, 2, 3)), (5, 6))
    with pytest.raises(ValueError, match="csr"):
        plan.refill(other, np.ones((1, 1, 3, 3)))


def test_refill_notices_every_index_and_every_row_start():
    plan = numconv.plan_conv((4, 4, 5), (4, 2, 3, 3), groups=2, padding=1, dtype=np.float64)
    w = np.ones(plan.kernel_shape)
    csr = plan.matrix(w)
    for array in (csr.indices, csr.indptr):
        for e in range(array.size):
            array[e] += 1
            with pytest.raises(ValueError, match="csr"):
                plan.refill(csr, w)
            array[e] -= 1
    plan.refill(csr, w)


@pytest.mark.parametrize("dtype", ["?", "i1", "f4", "f8", "c16"])
def test_the_arrays_of_a_matrix_lie_in_one_block_of_memory(dtype):
    csr = numconv.kernel2row(np.ones((3, 3), dtype), (40, 50))
    blocks = [array.base if array.base.base is None else array.base.base for array in (csr.data, csr.indices)]
    assert blocks[0] is blocks[1], "SciPy copied what was made for it"
    for one, other in ((csr.data, csr.indices), (csr.indices, csr.indptr)):
        assert 0 <= other.ctypes.data - one.ctypes.data - one.nbytes < 64
    assert all(array.flags.aligned and array.flags.writeable for array in (csr.data, csr.indices, csr.indptr))


def test_two_matrices_of_one_plan_do_not_share_their_values():
    plan = numconv.plan_convolve((5, 5), (2, 2), "valid", dtype=np.float64)
    one, two = plan.matrix(np.ones((2, 2))), plan.matrix(2 * np.ones((2, 2)))
    one.data[:] = 0
    assert (two.data == 2).all()


def test_kernel2row_refuses_a_fill_value():
    with pytest.raises(ValueError, match=r"fill_value.*affine|affine.*fill_value"):
        numconv.kernel2row(np.ones((2, 2)), (3, 3), padding=1, fill_value=1)


def test_kernel2row_refuses_channels_that_groups_do_not_divide():
    with pytest.raises(ValueError, match="groups"):
        numconv.kernel2row(np.ones((3, 2, 2)), (5,), groups=2)


@pytest.mark.parametrize("index", ["indices", "indptr"])
def test_scipy_accepts_the_matrix_as_it_is(index):
    """SciPy's own check of a CSR matrix, and a round trip through COO that would sort and merge."""
    csr = numconv.kernel2row(values((2, 2, 3, 2)), (4, 5), **EVERYTHING)
    csr.check_format(full_check=True)
    again = csr.tocoo().tocsr()
    again.sum_duplicates()
    np.testing.assert_array_equal(getattr(again, index), getattr(csr, index))


# plans --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["1d", "2d", "3d", "4d", "padding pairs", "wrap 3d", "reflect wide", "symmetric"])
def test_plan_members_are_the_functions(name):
    shape, kernel, geometry = WINDOWS[name]
    x, w = values(shape), values((3, shape[0], *kernel))
    plan = numconv.plan_conv(shape, w.shape, dtype=np.float64, **geometry)
    dy = values(plan.output_shape)
    np.testing.assert_array_equal(plan.im2col(x), numconv.im2col(x, kernel, **geometry, flip=False))
    cols = plan.im2col(x)
    np.testing.assert_array_equal(plan.col2im(cols), numconv.col2im(cols, shape, kernel, **geometry, flip=False))
    csr = numconv.kernel2row(w, shape[1:], **geometry, flip=False)
    np.testing.assert_array_equal(plan.matrix(w).toarray(), csr.toarray())
    assert_close(plan.forward(x, w), naive.conv(x, w, **geometry), "f8", 4 * w[0].size)
    assert_close(plan.grad_input(dy, w), naive.conv_grad_input(shape, w, dy, **geometry), "f8", 4 * dy.size)
    assert_close(plan.grad_weight(x, dy), naive.conv_grad_weight(x, w.shape, dy, **geometry), "f8", 4 * dy.size)


def test_plan_tells_the_bytes_of_its_forms():
    plan = numconv.plan_conv((2, 3, 5, 6), (4, 3, 2, 3), dtype=np.float32, stride=2)
    cols = plan.im2col(np.zeros(plan.input_shape, np.float32))
    csr = plan.matrix(np.zeros(plan.kernel_shape, np.float32))
    assert plan.nbytes("im2col") == cols.nbytes
    assert plan.nbytes("matrix") == csr.data.nbytes + csr.indices.nbytes + csr.indptr.nbytes
    assert plan.nbytes("workspace") >= 0
    with pytest.raises(ValueError, match=r"im2col.*matrix.*workspace"):
        plan.nbytes("columns")


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_nbytes_counts_what_the_boundary_folds(boundary):
    plan = numconv.plan_conv((1, 3, 4), (2, 1, 4, 3), dtype=np.float64, padding=3, boundary=boundary)
    csr = plan.matrix(np.zeros(plan.kernel_shape))
    assert plan.nbytes("matrix") == csr.data.nbytes + csr.indices.nbytes + csr.indptr.nbytes


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_nbytes_is_what_the_matrices_take_in_every_dtype(dtype):
    plan = numconv.plan_conv((2, 4, 5), (3, 2, 2, 3), dtype=dtype, padding=1)
    csr = plan.matrix(np.zeros(plan.kernel_shape, dtype))
    assert csr.dtype == numconv.kernel2row(np.zeros(plan.kernel_shape, dtype), (4, 5), padding=1).dtype
    assert plan.nbytes("matrix") == csr.data.nbytes + csr.indices.nbytes + csr.indptr.nbytes
    assert plan.nbytes("im2col") == plan.im2col(np.zeros(plan.input_shape, dtype)).nbytes


@pytest.mark.parametrize(
    ("w_dtype", "x_dtype"), [("int64", "float64"), ("int32", "complex128"), ("float64", "complex128")]
)
def test_linear_operator_does_not_truncate_its_vectors(w_dtype, x_dtype):
    """SciPy's solvers hand over vectors of their own dtype, and expect the product that the matrix would give."""
    plan = numconv.plan_convolve((6, 5), (3, 2), "same", dtype=w_dtype)
    w = values((3, 2), w_dtype)
    x = values((30,), x_dtype) / 3
    W_conv = numconv.kernel2row(w, (6, 5), padding=((1, 1), (1, 0)))
    operator = plan.linear_operator(w)
    for ours, scipys in [(operator.matvec(x), W_conv @ x), (operator.rmatvec(x), W_conv.T @ x)]:
        assert ours.dtype == scipys.dtype
        np.testing.assert_allclose(ours, scipys, rtol=0, atol=1e-13)
