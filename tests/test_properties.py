"""What holds for every geometry: all forms give the oracle's values, every backward is the adjoint of its forward.

Data are small multiples of 1/2, so identities between sums of products hold exactly, and are asked for exactly,
wherever products are added up. Integers wrap modulo 2**64, where the identities hold as well.
"""

from __future__ import annotations

from math import prod

import naive
import numpy as np
import pytest
from conftest import ALGORITHMS, AMPLIFICATION, EXACT, assert_by, assert_close, assert_same, result_of, values
from hypothesis import given
from hypothesis import strategies as st
from strategies import cases, inner, plain_cases

import numconv

RINGS = ["float64", "complex128", "int64"]


def bound(terms):
    """Terms times the largest product that ``values`` makes (for the few that may round: auto, Winograd, FFT)."""
    return terms * 8


def fixed(case):
    """The functions under test with the geometry of a case filled in."""
    return case.x, case.w, case.geometry


def hand_padding(case):
    """The padding of a case as pairs."""
    geometry, size = case.geometry, case.x_shape[-len(case.kernel) :]
    return naive.padding_pairs(geometry["padding"], size, case.kernel, geometry["stride"], geometry["dilation"])


# values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
@given(case=cases(dtypes=RINGS))
def test_every_algorithm_gives_the_oracles_values(algorithm, case):
    x, w, geometry = fixed(case)
    y = result_of(algorithm, numconv.conv, x, w, **geometry)
    if y is not None:
        assert_by(algorithm, y, naive.conv(x, w, **geometry), case.dtype, bound(w[0].size))


@pytest.mark.parametrize("algorithm", ["winograd", "fft"])
@given(case=cases(dtypes=["float64", "complex128"], kernel=(3, 3)))
def test_transforms_serve_3x3_kernels_in_all_three_products(algorithm, case):
    x, w, geometry = fixed(case)
    plan = numconv.plan_conv(x.shape, w.shape, dtype=case.dtype, algorithm=algorithm, **geometry)
    want = naive.conv(x, w, **geometry)
    dy = case.dy(want.shape)
    scale = bound(dy.size + w[0].size)
    assert_by(algorithm, plan.forward(x, w), want, case.dtype, scale)
    assert_by(algorithm, plan.grad_input(dy, w), naive.conv_grad_input(x.shape, w, dy, **geometry), case.dtype, scale)
    assert_by(algorithm, plan.grad_weight(x, dy), naive.conv_grad_weight(x, w.shape, dy, **geometry), case.dtype, scale)


@given(case=cases(dtypes=["int8", "uint8", "int64", "bool"]))
def test_integers_are_equal_bit_for_bit_in_every_form(case):
    x, w, geometry = fixed(case)
    want = naive.conv(x, w, **geometry)
    assert_same(numconv.conv(x, w, **geometry), want, case.dtype)
    dy = case.dy(want.shape)
    dx = naive.conv_grad_input(x.shape, w, dy, **geometry)
    dw = naive.conv_grad_weight(x, w.shape, dy, **geometry)
    assert_same(numconv.conv_grad_input(x.shape, w, dy, **geometry), dx, case.dtype)
    assert_same(numconv.conv_grad_weight(x, w.shape, dy, **geometry), dw, case.dtype)


@given(case=cases(dtypes=["float64", "complex128", "int8", "bool"], batch=False))
def test_im2col_and_col2im_give_the_oracles_values(case):
    x, kernel, window = case.x, case.kernel, case.window
    cols = naive.im2col(x, kernel, **window)
    assert_same(numconv.im2col(x, kernel, **window), cols)
    window.pop("fill_value", None)
    cols = values(cols.shape, case.dtype, case.seed)
    want = naive.col2im(cols, x.shape, kernel, **window)
    assert_same(numconv.col2im(cols, x.shape, kernel, **window), want, case.dtype)


@given(case=cases(dtypes=RINGS, fill=False, batch=False))
def test_kernel2row_is_the_oracles_matrix_and_canonical(case):
    csr = numconv.kernel2row(case.w, case.x_shape[1:], **case.geometry)
    want = naive.conv_matrix(case.w, case.x_shape[1:], **case.geometry)
    np.testing.assert_array_equal(csr.toarray(), naive.narrow(want, case.dtype))
    rows = np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr))
    places = rows * csr.shape[1] + csr.indices
    assert (np.diff(places) > 0).all(), "sorted and without duplicates"


@given(arguments=plain_cases(dtypes=["float64", "complex128", "int64"]))
def test_convolve_and_correlate_give_the_oracles_values(arguments):
    x, w, mode, geometry = arguments
    for ours, oracle in [(numconv.convolve, naive.convolve), (numconv.correlate, naive.correlate)]:
        want = oracle(x, w, mode, **geometry)
        assert_same(ours(x, w, mode, **geometry, algorithm="direct"), want, x.dtype)
        assert_close(ours(x, w, mode, **geometry), want, x.dtype, 8 * max(x.size, w.size), AMPLIFICATION)


@given(case=cases(fill=False), data=st.data())
def test_conv_transpose_gives_the_oracles_values(case, data):
    """The kernel of a case, read as (C, K/groups, *k), from an input of any size."""
    d, (C, per_group) = len(case.kernel), case.w_shape[:2]
    geometry = {name: case.geometry[name] for name in ("stride", "dilation", "padding", "groups", "flip")}
    stride, dilation = naive.axes_of(geometry["stride"], d), naive.axes_of(geometry["dilation"], d)
    geometry["output_padding"] = tuple(
        data.draw(st.integers(0, max(s, dil) - 1)) for s, dil in zip(stride, dilation, strict=True)
    )
    x = values((2, C, *(data.draw(st.integers(1, 4)) for _ in range(d))), seed=case.seed)
    w = case.w
    if isinstance(geometry["padding"], str):
        del geometry["output_padding"]
    want = naive.conv_transpose(x, w, **geometry)
    if want.size == 0:  # the padding takes all of it away
        with pytest.raises(ValueError, match="empty"):
            numconv.conv_transpose(x, w, **geometry)
        return
    assert want.shape[1] == per_group * geometry["groups"]
    assert_close(numconv.conv_transpose(x, w, **geometry), want, "f8", bound(C * prod(case.kernel)), AMPLIFICATION)


# adjoints -----------------------------------------------------------------------------------------------------------


def same_inner(left, right, dtype):
    """``<A x, y> == <x, A^H y>``: exact numbers, or equal modulo 2**bits for integers that wrapped."""
    if np.dtype(dtype).kind in "iu":
        assert (int(left) - int(right)) % 2 ** (8 * np.dtype(dtype).itemsize) == 0
    else:
        np.testing.assert_allclose(complex(left), complex(right), rtol=0, atol=1e-9)


@given(case=cases(dtypes=RINGS))
def test_grad_input_is_the_adjoint_of_conv_in_x(case):
    x, w, geometry = case.x, case.w, case.linear
    y = numconv.conv(x, w, **geometry)
    dy = case.dy(y.shape)
    same_inner(inner(y, dy), inner(x, numconv.conv_grad_input(x.shape, w, dy, **geometry)), case.dtype)


@given(case=cases(dtypes=RINGS))
def test_grad_weight_is_the_adjoint_of_conv_in_w(case):
    """With a fill value as well: conv is linear in w whatever the padding holds."""
    x, w, geometry = fixed(case)
    y = numconv.conv(x, w, **geometry)
    dy = case.dy(y.shape)
    same_inner(inner(y, dy), inner(w, numconv.conv_grad_weight(x, w.shape, dy, **geometry)), case.dtype)


@given(case=cases(dtypes=RINGS, fill=False))
def test_col2im_is_the_adjoint_of_im2col(case):
    x, kernel, window = case.x, case.kernel, case.window
    cols = numconv.im2col(x, kernel, **window)
    other = case.dy(cols.shape)
    same_inner(inner(cols, other), inner(x, numconv.col2im(other, x.shape, kernel, **window)), case.dtype)


@given(case=cases(dtypes=RINGS, fill=False, batch=False))
def test_the_matrix_is_the_adjoint_of_its_transpose_and_equals_conv(case):
    x, w, geometry = fixed(case)
    W_conv = numconv.kernel2row(w, x.shape[1:], **geometry)
    y = numconv.conv(x, w, **geometry, algorithm="direct")
    dy = case.dy(y.shape)
    assert_same(W_conv @ x.ravel(), naive.widen(y.ravel()), case.dtype)
    same_inner(inner(y, dy), inner(x.ravel(), W_conv.conj().T @ dy.ravel()), case.dtype)


@given(case=cases(dtypes=["float64", "complex128"], fill=False, batch=False))
def test_linear_operator_is_the_matrix_in_all_four_directions(case):
    w, geometry = case.w, case.geometry
    plan = numconv.plan_conv(case.x_shape, case.w_shape, dtype=case.dtype, **geometry)
    operator = plan.linear_operator(w)
    dense = naive.conv_matrix(w, case.x_shape[1:], **geometry)
    assert operator.shape == dense.shape
    assert operator.dtype == case.dtype
    x, y = values((dense.shape[1], 3), case.dtype, case.seed), values((dense.shape[0], 3), case.dtype, case.seed)
    tolerance = {"rtol": 0, "atol": 1e-9}
    np.testing.assert_allclose(operator.matvec(x[:, 0]), dense @ x[:, 0], **tolerance)
    np.testing.assert_allclose(operator.matmat(x), dense @ x, **tolerance)
    np.testing.assert_allclose(operator.rmatvec(y[:, 0]), dense.conj().T @ y[:, 0], **tolerance)
    np.testing.assert_allclose(operator.rmatmat(y), dense.conj().T @ y, **tolerance)
    same_inner(inner(operator.matvec(x[:, 0]), y[:, 0]), inner(x[:, 0], operator.rmatvec(y[:, 0])), case.dtype)


@given(case=cases(fill=False))
def test_conv_transpose_is_the_adjoint_of_conv_for_real_numbers(case):
    """Under zero padding, where conv has a transpose that is a convolution; the kernel's first two axes swap roles."""
    x, w = case.x, case.w
    geometry = {name: case.geometry[name] for name in ("stride", "dilation", "groups", "flip")}
    d = len(case.kernel)
    geometry["padding"] = pairs = hand_padding(case)
    y = numconv.conv(x, w, **geometry)
    dy = case.dy(y.shape)
    stride, dilation = naive.axes_of(geometry["stride"], d), naive.axes_of(geometry["dilation"], d)
    left_over = [
        (n + lo + hi - dil * (k - 1) - 1) % s
        for n, k, dil, (lo, hi), s in zip(x.shape[-d:], case.kernel, dilation, pairs, stride, strict=True)
    ]
    back = numconv.conv_transpose(dy, w, **geometry, output_padding=left_over)
    assert back.shape == x.shape
    same_inner(inner(y, dy), inner(x, back), case.dtype)


# algebra ------------------------------------------------------------------------------------------------------------


@given(case=cases(dtypes=RINGS))
def test_conv_is_linear_in_w(case):
    x, w, geometry = fixed(case)
    v = values(case.w_shape, case.dtype, case.seed + 5)

    def conv(kernel):
        return numconv.conv(x, kernel, **geometry, algorithm="implicit")

    np.testing.assert_array_equal(conv(w + 2 * v), conv(w) + 2 * conv(v))


@given(case=cases(dtypes=RINGS, fill=False))
def test_conv_is_linear_in_x(case):
    x, w, geometry = fixed(case)
    z = values(case.x_shape, case.dtype, case.seed + 5)

    def conv(image):
        return numconv.conv(image, w, **geometry, algorithm="direct")

    np.testing.assert_array_equal(conv(x + 2 * z), conv(x) + 2 * conv(z))


@given(case=cases(dtypes=RINGS), shift=st.integers(1, 3))
def test_under_wrap_a_shifted_input_gives_a_shifted_output(case, shift):
    x, w = case.x, case.w
    d = len(case.kernel)
    axes = tuple(range(-d, 0))
    geometry = {name: case.geometry[name] for name in ("dilation", "groups", "flip")}
    geometry |= {"padding": "same", "boundary": "wrap"}
    moved = numconv.conv(np.roll(x, shift, axes), w, **geometry, algorithm="direct")
    np.testing.assert_array_equal(moved, np.roll(numconv.conv(x, w, **geometry, algorithm="direct"), shift, axes))


@given(arguments=plain_cases(dtypes=["int64", "complex128"]), shift=st.integers(1, 4))
def test_zeros_in_front_of_x_shift_a_full_convolution(arguments, shift):
    x, w, *_ = arguments
    later = numconv.convolve(np.pad(x, [(shift, 0)] * x.ndim), w, algorithm="direct")
    inside = (slice(shift, None),) * x.ndim
    np.testing.assert_array_equal(later[inside], numconv.convolve(x, w, algorithm="direct"))


@given(arguments=plain_cases(dtypes=["int64", "complex128"]))
def test_full_convolution_commutes(arguments):
    x, w, *_ = arguments
    one, other = numconv.convolve(x, w, algorithm="direct"), numconv.convolve(w, x, algorithm="direct")
    np.testing.assert_array_equal(one, other)


@given(case=cases(dtypes=RINGS))
def test_flip_is_the_kernel_turned(case):
    x, w, geometry = fixed(case)
    turned = {**geometry, "flip": not geometry["flip"]}
    spatial = tuple(range(2, w.ndim))
    np.testing.assert_array_equal(
        numconv.conv(x, np.flip(w, spatial), **turned, algorithm="implicit"),
        numconv.conv(x, w, **geometry, algorithm="implicit"),
    )


@given(case=cases(dtypes=RINGS))
def test_a_stride_keeps_every_stride_th_output(case):
    x, w, geometry = fixed(case)
    steps = tuple(slice(None, None, s) for s in naive.axes_of(geometry["stride"], len(case.kernel)))
    dense = numconv.conv(x, w, **{**geometry, "padding": hand_padding(case), "stride": 1}, algorithm="direct")
    np.testing.assert_array_equal(numconv.conv(x, w, **geometry, algorithm="direct"), dense[(..., *steps)])


@given(case=cases(dtypes=RINGS))
def test_padding_by_hand_is_the_boundary(case):
    x, w, geometry = fixed(case)
    padded = naive.pad(x, hand_padding(case), geometry["boundary"], geometry.get("fill_value", 0))
    plain = {name: geometry[name] for name in ("stride", "dilation", "groups", "flip")}
    np.testing.assert_array_equal(
        numconv.conv(x, w, **geometry, algorithm="im2col"), numconv.conv(padded, w, **plain, algorithm="im2col")
    )


@given(case=cases(dtypes=RINGS, batch=False))
def test_groups_are_convolutions_side_by_side(case):
    x, w, geometry = fixed(case)
    groups = geometry["groups"]
    pieces = [
        numconv.conv(x_part, w_part, **{**geometry, "groups": 1}, algorithm="direct")
        for x_part, w_part in zip(np.split(x, groups), np.split(w, groups), strict=True)
    ]
    np.testing.assert_array_equal(numconv.conv(x, w, **geometry, algorithm="direct"), np.concatenate(pieces))


# plans --------------------------------------------------------------------------------------------------------------


@given(case=cases(dtypes=RINGS), algorithm=st.sampled_from(["auto", *EXACT]))
def test_plan_members_give_what_the_functions_give(case, algorithm):
    x, w, geometry = fixed(case)
    if algorithm == "kernel2row" and geometry.get("fill_value", 0):
        algorithm = "direct"
    plan = numconv.plan_conv(x.shape, w.shape, dtype=case.dtype, algorithm=algorithm, **geometry)
    y = naive.conv(x, w, **geometry)
    assert (plan.input_shape, plan.kernel_shape, plan.output_shape) == (x.shape, w.shape, y.shape)
    dy = case.dy(y.shape)
    scale = bound(dy.size + w[0].size)
    assert_by(algorithm, plan.forward(x, w), y, case.dtype, scale)
    dx = naive.conv_grad_input(x.shape, w, dy, **geometry)
    dw = naive.conv_grad_weight(x, w.shape, dy, **geometry)
    assert_by(algorithm, plan.grad_input(dy, w), dx, case.dtype, scale)
    assert_by(algorithm, plan.grad_weight(x, dy), dw, case.dtype, scale)
    np.testing.assert_array_equal(plan.im2col(x), numconv.im2col(x, case.kernel, **case.window))


@given(case=cases(dtypes=["float32", "float64", "complex128", "int64", "uint8"]))
def test_a_plan_that_checks_itself_finds_rounding_only(case):
    plan = numconv.plan_conv(case.x_shape, case.w_shape, dtype=case.dtype, **case.geometry)
    errors = plan.check(seed=case.seed)
    assert len(errors) >= 3
    exact = np.dtype(case.dtype).kind in "iu"
    # relative errors of sums of at most some hundred products, amplified where Winograd or the FFT took part
    tiny = 0 if exact else 100 * AMPLIFICATION * np.finfo(case.dtype).eps
    assert all(0 <= error <= tiny for error in errors.values()), errors


@given(case=cases(dtypes=["float64", "complex128"], fill=False, batch=False))
def test_refill_equals_a_new_matrix(case):
    plan = numconv.plan_conv(case.x_shape, case.w_shape, dtype=case.dtype, **case.geometry)
    csr = plan.matrix(np.zeros(case.w_shape, case.dtype))
    plan.refill(csr, case.w)
    np.testing.assert_array_equal(csr.toarray(), plan.matrix(case.w).toarray())
    assert plan.nbytes("matrix") == csr.data.nbytes + csr.indices.nbytes + csr.indptr.nbytes
