"""The stride of an axis with one item, and every stride of an empty array, means nothing and may be anything."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ALGORITHMS, assert_same, values
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

import numconv as nc
from numconv import arrays, overloads

overloads.init()  # numba does so itself where numconv is installed


def odd(array, seed):
    """The same items with other strides along axes of one item, which NumPy still calls contiguous."""
    rng = np.random.default_rng(seed)
    free = array.size == 0
    steps = [
        int(rng.integers(-9, 99)) * array.itemsize if n == 1 or free else step
        for n, step in zip(array.shape, array.strides, strict=True)
    ]
    view = np.lib.stride_tricks.as_strided(array, array.shape, steps)
    assert view.flags.c_contiguous
    return view


@st.composite
def narrow(draw):
    """A geometry over axes of one pixel in any place, in and out, and its arguments."""
    d = draw(st.integers(1, 3))
    kernel = [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(d)]
    out = [draw(st.sampled_from([1, 1, 1, 2, 5, 18])) if d < 3 else draw(st.sampled_from([1, 1, 3])) for _ in range(d)]
    stride, dilation = ([draw(st.sampled_from([1, 1, 2, 3])) for _ in range(d)] for _ in range(2))
    padding = [draw(st.sampled_from([0, 0, 1])) for _ in range(d)]
    size = [
        max((o - 1) * s + dil * (k - 1) + 1 - 2 * p, 1)
        for o, s, dil, k, p in zip(out, stride, dilation, kernel, padding, strict=True)
    ]
    N, C, K = draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([1, 3, 40])), draw(st.sampled_from([1, 2, 40]))
    arguments = {"stride": tuple(stride), "dilation": tuple(dilation), "padding": tuple(padding)}
    return (N, C, *size), (K, C, *kernel), arguments


def filled(shape, dtype, seed):
    """Contiguous memory with odd strides to write to, and the memory itself."""
    memory = np.full(shape, 77, dtype)
    return odd(memory, seed), memory


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
@given(case=narrow(), dtype=st.sampled_from(["float32", "float32", "float64", "int16"]), seed=st.integers(0, 9**9))
def test_products_of_narrow_arrays_do_not_depend_on_their_strides(algorithm, case, dtype, seed):
    x_shape, w_shape, arguments = case
    x, w, bias = values(x_shape, dtype, seed), values(w_shape, dtype, seed + 1), values(w_shape[:1], dtype, seed + 2)
    try:
        y = nc.conv(x, w, bias, algorithm=algorithm, **arguments)
    except ValueError as refusal:
        assert algorithm in str(refusal).lower()
        return
    dy = values(y.shape, dtype, seed + 3)
    odd_x, odd_w, odd_bias, odd_dy = (odd(array, seed) for array in (x, w, bias, dy))
    for call, want in (
        (lambda out: nc.conv(odd_x, odd_w, odd_bias, out=out, algorithm=algorithm, **arguments), y),
        (
            lambda out: nc.conv_grad_input(x_shape, odd_w, odd_dy, out=out, algorithm=algorithm, **arguments),
            nc.conv_grad_input(x_shape, w, dy, algorithm=algorithm, **arguments),
        ),
        (
            lambda out: nc.conv_grad_weight(odd_x, w_shape, odd_dy, out=out, algorithm=algorithm, **arguments),
            nc.conv_grad_weight(x, w_shape, dy, algorithm=algorithm, **arguments),
        ),
    ):
        out, memory = filled(want.shape, dtype, seed)
        assert call(out) is out
        np.testing.assert_array_equal(memory, want)
        np.testing.assert_array_equal(call(None), want)


@given(case=narrow(), seed=st.integers(0, 9**9))
def test_matrices_of_narrow_arrays_do_not_depend_on_their_strides(case, seed):
    x_shape, w_shape, arguments = case
    x, w, kernel = values(x_shape, "float32", seed), values(w_shape, "float32", seed + 1), w_shape[2:]
    cols = nc.im2col(x, kernel, **arguments)
    out, memory = filled(cols.shape, cols.dtype, seed)
    assert nc.im2col(odd(x, seed), kernel, out=out, **arguments) is out
    np.testing.assert_array_equal(memory, cols)
    words = nc.im2col(odd(x.astype("S3"), seed), kernel, **arguments)
    np.testing.assert_array_equal(words, nc.im2col(x.astype("S3"), kernel, **arguments))
    image = nc.col2im(cols, x_shape, kernel, **arguments)
    out, memory = filled(x_shape, cols.dtype, seed)
    assert nc.col2im(odd(cols, seed), x_shape, kernel, out=out, **arguments) is out
    np.testing.assert_array_equal(memory, image)
    W_conv, again = (nc.kernel2row(a, x_shape[2:], **arguments) for a in (w, odd(w, seed)))
    np.testing.assert_array_equal(W_conv.data, again.data)
    y = nc.conv(x, w, **arguments)
    weights = np.ascontiguousarray(np.broadcast_to(w, (*y.shape[2:], *w_shape)))
    out, memory = filled(y.shape, y.dtype, seed)
    assert nc.conv_local(odd(x, seed), odd(weights, seed), out=out, **arguments) is out
    np.testing.assert_array_equal(memory, y)
    operator = nc.plan_conv(x_shape[1:], w_shape, **arguments).linear_operator(odd(w, seed))
    column = odd(x[0].reshape(-1, 1), seed)
    np.testing.assert_array_equal(operator.matmat(column)[:, 0], operator.matvec(column.ravel()))


@given(st.lists(st.integers(0, 3), max_size=4), st.sampled_from(["f4", "c16", "S3"]), st.integers(0, 99))
def test_steps_are_those_of_the_shape(shape, dtype, seed):
    array = odd(np.ones(shape, dtype), seed)
    plain = arrays.plain_steps(array)
    assert (plain.shape, plain.dtype) == (array.shape, array.dtype)
    if array.size:
        assert plain.strides == np.empty(shape, dtype).strides
        assert np.shares_memory(plain, array)
    array.setflags(write=False)
    assert not arrays.plain_steps(array).flags.writeable
    if shape and array.size:  # what is not contiguous has its strides for a reason
        turned = np.ones((3, *shape[1:], 2), dtype).T
        assert arrays.plain_steps(turned).strides == turned.strides


def test_an_output_of_torch_with_odd_strides_is_written_to():
    torch = pytest.importorskip("torch")
    x, w = torch.arange(2.0 * 20).reshape(1, 2, 20, 1), torch.arange(6.0).reshape(1, 2, 3, 1)
    memory = torch.zeros(1, 1, 18, 1)
    out = memory.as_strided(memory.shape, (7, 5, 1, 9))
    for algorithm in ("direct", "implicit", "auto"):
        memory.zero_()
        assert nc.conv2d(x.as_strided(x.shape, (3, 20, 1, 4)), w, algorithm=algorithm, out=out) is out
        torch.testing.assert_close(memory, torch.nn.functional.conv2d(x, w))


@njit
def compiled(x, w, bias, dy, stride, padding):
    y = nc.conv(x, w, bias, stride=stride, padding=padding)
    dx = nc.conv_grad_input(x.shape, w, dy, stride=stride, padding=padding)
    dw = nc.conv_grad_weight(x, w.shape, dy, stride=stride, padding=padding)
    return y, dx, dw, nc.im2col(x, (3, 1), stride=stride, padding=padding)


def test_compiled_calls_do_not_depend_on_strides_either():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        stride, padding = int(rng.integers(1, 3)), ((int(rng.integers(2)), 1), (0, 0))
        shape = (int(rng.integers(1, 3)), int(rng.choice([1, 3, 40])), int(rng.choice([1, 7, 20])), 1)
        x, w = values(shape, "float32", seed), values((int(rng.choice([1, 12])), shape[1], 3, 1), "float32", seed)
        if sum(padding[0]) + shape[2] < 3:
            continue
        bias = values(w.shape[:1], "float32", seed)
        y = nc.conv(x, w, bias, stride=stride, padding=padding, algorithm="im2col")
        dy = values(y.shape, "float32", seed)
        want = (
            y, nc.conv_grad_input(x.shape, w, dy, stride=stride, padding=padding, algorithm="im2col"),
            nc.conv_grad_weight(x, w.shape, dy, stride=stride, padding=padding, algorithm="im2col"),
            nc.im2col(x, (3, 1), stride=stride, padding=padding, flip=True),
        )  # fmt: skip
        got = compiled(*(odd(a, seed) for a in (x, w, bias, dy)), stride, padding)
        for a, b in zip(got, want, strict=True):
            assert_same(a, b)


@njit
def compiled_matrix(w, size):
    return nc.kernel2row(w, size, padding=((2, 2), (0, 0)))


def test_compiled_calls_take_arrays_of_nothing():
    padding = ((2, 2), (0, 0))
    for N, C, K, H in np.ndindex(2, 2, 2, 2):
        x, w = odd(np.ones((N, C, 4 * H, 1), np.float32), 1), odd(np.ones((K, C, 3, 1), np.float32), 2)
        dy, bias = odd(np.ones((N, K, 4 * H + 2, 1), np.float32), 3), np.full(K, 2, np.float32)
        got = compiled(x, w, bias, dy, 1, padding)
        want = (
            nc.conv(x, w, bias, padding=padding), nc.conv_grad_input(x.shape, w, dy, padding=padding),
            nc.conv_grad_weight(x, w.shape, dy, padding=padding), nc.im2col(x, (3, 1), padding=padding),
        )  # fmt: skip
        for a, b in zip(got, want, strict=True):
            assert_same(a, b)
        size = (4 * H, 1)
        for a, b in zip(compiled_matrix(w, size), nc.kernel2row(w, size, padding=padding, triple=True), strict=True):
            np.testing.assert_array_equal(a, b)
    for columns in (0, 3):
        y = nc.csr_rmatvec(np.ones(0), np.zeros(0, np.int32), np.zeros(1, np.int32), np.ones(0), columns)
        np.testing.assert_array_equal(y, np.zeros(columns))
    assert nc.csr_matvec(np.ones(0), np.zeros(0, np.int32), np.zeros(3, np.int32), np.ones(0)).tolist() == [0, 0]
