"""The lecture slides, letter by letter: every line of ``seed/reading.md`` on the 3x3 input with the 2x2 kernel.

The letters are distinct primes, so a product of two of them says which two letters met.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

import numconv

x11, x12, x13, x21, x22, x23, x31, x32, x33 = 2, 3, 5, 7, 11, 13, 17, 19, 23
w11, w12, w21, w22 = 29, 31, 37, 41
dy11, dy12, dy21, dy22 = 43, 47, 53, 59

X = np.array([[x11, x12, x13], [x21, x22, x23], [x31, x32, x33]])
W = np.array([[w11, w12], [w21, w22]])
dY = np.array([[dy11, dy12], [dy21, dy22]])

X_CONV = np.array([
    [x22, x23, x32, x33],  # w11
    [x21, x22, x31, x32],  # w12
    [x12, x13, x22, x23],  # w21
    [x11, x12, x21, x22],  # w22
])  # fmt: skip
W_CONV = np.array([
    [w22, w21, 0, w12, w11, 0, 0, 0, 0],
    [0, w22, w21, 0, w12, w11, 0, 0, 0],
    [0, 0, 0, w22, w21, 0, w12, w11, 0],
    [0, 0, 0, 0, w22, w21, 0, w12, w11],
])  # fmt: skip
Y = np.array([
    [w22 * x11 + w21 * x12 + w12 * x21 + w11 * x22, w22 * x12 + w21 * x13 + w12 * x22 + w11 * x23],
    [w22 * x21 + w21 * x22 + w12 * x31 + w11 * x32, w22 * x22 + w21 * x23 + w12 * x32 + w11 * x33],
])  # fmt: skip
DW = np.array([
    [dy11 * x22 + dy12 * x23 + dy21 * x32 + dy22 * x33, dy11 * x21 + dy12 * x22 + dy21 * x31 + dy22 * x32],
    [dy11 * x12 + dy12 * x13 + dy21 * x22 + dy22 * x23, dy11 * x11 + dy12 * x12 + dy21 * x21 + dy22 * x22],
])  # fmt: skip
DX = np.array([
    [dy11 * w22, dy11 * w21 + dy12 * w22, dy12 * w21],
    [dy11 * w12 + dy21 * w22, dy11 * w11 + dy12 * w12 + dy21 * w21 + dy22 * w22, dy12 * w11 + dy22 * w21],
    [dy21 * w12, dy21 * w11 + dy22 * w12, dy22 * w11],
])  # fmt: skip


@pytest.fixture
def plan():
    return numconv.plan_convolve((3, 3), (2, 2), "valid", dtype=np.int64)


def equal(got, want):
    assert got.dtype == np.int64
    assert got.shape == want.shape
    np.testing.assert_array_equal(got, want)


# im2col -------------------------------------------------------------------------------------------------------------


def test_im2col_gives_the_rows_of_the_slides():
    equal(numconv.im2col(X, (2, 2)), X_CONV)


def test_kernel_flat_times_im2col_is_the_output():
    equal((W.reshape(1, 4) @ numconv.im2col(X, (2, 2))).reshape(2, 2), Y)


def test_im2col_transposed_gives_the_kernel_gradient():
    equal((dY.reshape(1, 4) @ numconv.im2col(X, (2, 2)).T).reshape(2, 2), DW)


# kernel2row ---------------------------------------------------------------------------------------------------------


def test_kernel2row_gives_the_rows_of_the_slides():
    W_conv = numconv.kernel2row(W, (3, 3))
    equal(W_conv.toarray(), W_CONV)
    assert W_conv.nnz == 16


def test_kernel2row_times_input_flat_is_the_output():
    equal((numconv.kernel2row(W, (3, 3)) @ X.reshape(9)).reshape(2, 2), Y)


def test_kernel2row_transposed_gives_the_input_gradient():
    equal((numconv.kernel2row(W, (3, 3)).T @ dY.reshape(4)).reshape(3, 3), DX)


# the functions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["auto", "im2col", "kernel2row", "implicit", "direct"])
def test_convolve_valid_gives_the_output_of_the_slides(algorithm):
    equal(numconv.convolve(X, W, "valid", algorithm=algorithm), Y)


def test_convolve_valid_is_the_turned_conv():
    x, w = X[None, None], W[None, None]
    equal(numconv.conv(x, w, flip=True), Y[None, None])
    equal(numconv.conv_grad_input(x.shape, w, dY[None, None], flip=True), DX[None, None])
    equal(numconv.conv_grad_weight(x, w.shape, dY[None, None], flip=True), DW[None, None])


def test_correlate_lays_the_kernel_on_as_it_is():
    y11 = w11 * x11 + w12 * x12 + w21 * x21 + w22 * x22
    assert numconv.correlate(X, W, "valid")[0, 0] == y11
    assert numconv.conv2d(X[None, None], W[None, None])[0, 0, 0, 0] == y11


# the plan -----------------------------------------------------------------------------------------------------------


def test_plan_has_the_products_of_the_slides(plan):
    equal(plan.forward(X, W), Y)
    equal(plan.grad_weight(X, dY), DW)
    equal(plan.grad_input(dY, W), DX)


def test_plan_has_the_matrices_of_the_slides(plan):
    equal(plan.im2col(X), X_CONV)
    equal(plan.matrix(W).toarray(), W_CONV)


def test_plan_col2im_adds_the_windows_back(plan):
    counts = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]])
    equal(plan.col2im(plan.im2col(X)), X * counts)


def test_plan_refill_writes_a_new_kernel_into_the_old_matrix(plan):
    W_conv = plan.matrix(np.zeros_like(W))
    plan.refill(W_conv, W)
    equal(W_conv.toarray(), W_CONV)


def test_plan_linear_operator_is_the_matrix_and_its_transpose(plan):
    operator = plan.linear_operator(W)
    assert operator.shape == (4, 9)
    np.testing.assert_array_equal(operator.matvec(X.reshape(9)), Y.reshape(4))
    np.testing.assert_array_equal(operator.rmatvec(dY.reshape(4)), DX.reshape(9))
    np.testing.assert_array_equal(operator.matmat(np.eye(9, dtype=np.int64)), W_CONV)


def test_plan_knows_its_shapes(plan):
    assert plan.input_shape == (3, 3)
    assert plan.kernel_shape == (2, 2)
    assert plan.output_shape == (2, 2)
    assert plan.nbytes("im2col") == 16 * 8
    assert plan.nbytes("matrix") == 16 * (8 + 4) + 5 * 4  # values and columns of 16 entries, 5 row pointers


def test_plan_checks_itself_without_an_error(plan):
    assert all(error == 0 for error in plan.check().values())


# the symbols --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "i", "j", "symbols"),
    [
        ("X_conv", 0, 0, "x22"),
        ("X_conv", 3, 2, "x21"),
        ("W_conv", 0, 0, "w22"),
        ("W_conv", 0, 2, "0"),
        ("W_conv", 3, 8, "w11"),
        ("Y", 0, 0, "w22 x11 + w21 x12 + w12 x21 + w11 x22"),
        ("dW", 0, 0, "dy11 x22 + dy12 x23 + dy21 x32 + dy22 x33"),
        ("dW", 1, 1, "dy11 x11 + dy12 x12 + dy21 x21 + dy22 x22"),
        ("dX", 0, 0, "dy11 w22"),
        ("dX", 0, 1, "dy11 w21 + dy12 w22"),
        ("dX", 1, 1, "dy11 w11 + dy12 w12 + dy21 w21 + dy22 w22"),
        ("dX", 2, 2, "dy22 w11"),
    ],
)
def test_explain_writes_the_slides_in_symbols(plan, matrix, i, j, symbols):
    def terms(text):
        return sorted(sorted(re.findall(r"\w+", product)) for product in text.split("+"))

    assert terms(plan.explain().entry(matrix, i, j)) == terms(symbols)


def test_explain_is_text_and_html(plan):
    symbols = plan.explain()
    assert "w22" in str(symbols)
    assert "x11" in str(symbols)
    assert "<table" in symbols._repr_html_()
