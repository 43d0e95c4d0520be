"""One kernel for each output: a naive loop, the sparse matrix, both adjoints, and ``conv`` where all are equal."""

from itertools import product

import naive
import numpy as np
import pytest
from conftest import BOUNDARIES, assert_close, assert_same, values
from hypothesis import given
from strategies import cases, inner

import numconv as nc


def local(x, w, out, bias=None, **geometry):
    """Every output from a convolution with its own kernel, of which it is one pixel."""
    N, K = len(x), w.shape[len(out)]
    y = np.zeros((N, K, *out), dtype=naive.widen(x).dtype)
    for pixel in product(*map(range, out)):
        y[(slice(None), slice(None), *pixel)] = naive.conv(x, w[pixel], bias, **geometry)[
            (slice(None), slice(None), *pixel)
        ]
    return y


def case_of(case):
    """Input, kernels for each output, output shape."""
    x = case.x if len(case.x_shape) == len(case.w_shape) else case.x[None]
    out = nc.conv(x, case.w, **case.geometry).shape[2:]
    return x, values((*out, *case.w_shape), case.dtype, case.seed + 1), out


@given(cases(dtypes=("int64",), axes=(1, 2, 3)))
def test_forward_is_the_naive_loop(case):
    x, w, out = case_of(case)
    bias = values((case.w_shape[0],), case.dtype, 7)
    assert_same(nc.conv_local(x, w, bias, **case.geometry), local(x, w, out, bias, **case.geometry), case.dtype)


@given(cases(dtypes=("complex128",), axes=(1, 2, 3), fill=False))
def test_both_gradients_are_adjoints_and_the_matrix_is_the_same_map(case):
    x, w, _ = case_of(case)
    y = nc.conv_local(x, w, **case.geometry)
    dy = case.dy(y.shape)
    dx = nc.conv_local_grad_input(x.shape, w, dy, **case.geometry)
    dw = nc.conv_local_grad_weight(x, w.shape, dy, **case.geometry)
    assert dx.shape == x.shape and dw.shape == w.shape
    assert inner(y, dy) == inner(x, dx) == inner(w, dw)  # exact, by the values
    W_conv = nc.kernel2row_local(w, x.shape[2:], **case.geometry)
    assert W_conv.has_sorted_indices and W_conv.has_canonical_format
    for image, result, back, gradient in zip(x, y, dy, dx, strict=True):
        assert_same(W_conv @ image.ravel(), result.ravel())
        assert_same(W_conv.conj().T @ back.ravel(), gradient.ravel())


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_equal_kernels_are_conv_and_its_matrix(boundary, flip):
    # large enough that a task has several outputs of a row
    geometry = {"stride": (1, 2), "padding": ((2, 1), (1, 0)), "groups": 2, "boundary": boundary, "flip": flip}
    x, kernel = values((2, 4, 24, 40), np.int64), values((2, 2, 3, 2), np.int64, 1)
    y = nc.conv(x, kernel, **geometry)
    w = np.broadcast_to(kernel, (*y.shape[2:], *kernel.shape))
    assert_same(nc.conv_local(x, w, **geometry), y)
    assert_same(nc.conv_local_grad_input(x.shape, w, y, **geometry), nc.conv_grad_input(x.shape, kernel, y, **geometry))
    dw = nc.conv_local_grad_weight(x, w.shape, y, **geometry)
    assert_same(dw.sum(axis=(0, 1)), nc.conv_grad_weight(x, kernel.shape, y, **geometry))
    W_conv, same = nc.kernel2row_local(w, (24, 40), **geometry), nc.kernel2row(kernel, (24, 40), **geometry)
    for name in ("data", "indices", "indptr"):
        assert_same(getattr(W_conv, name), getattr(same, name))


def test_plain_arrays_and_dtypes():
    x, w = values((5, 6), np.float32), values((5, 6, 3, 3), np.float64, 1)
    y = nc.conv_local(x, w, padding="same")
    assert y.dtype == np.float64
    assert_close(y, local(x[None, None], w[:, :, None, None], (5, 6), padding="same")[0, 0], np.float64, 100)
    assert nc.conv_local(x > 0, w > 0, padding=1).dtype == bool
    out = np.empty((5, 6))
    assert nc.conv_local(x, w, padding=1, out=out) is out
    assert_same(out, y)


def test_any_number_of_threads_gives_the_same_bits():
    import numba

    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 40, 40)) + 0j, rng.standard_normal((38, 38, 4, 3, 3, 3))
    results = []
    before = numba.get_num_threads()
    try:
        for threads in {1, before}:
            numba.set_num_threads(threads)
            y = nc.conv_local(x, w)
            results.append((y, nc.conv_local_grad_input(x.shape, w, y), nc.conv_local_grad_weight(x, w.shape, y)))
    finally:
        numba.set_num_threads(before)
    for one in zip(*results, strict=True):
        assert all((a == one[0]).all() for a in one)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (((4,), (2, 2)), "w must have a kernel for each of"),
        (((2, 3, 4), (3, 1, 2, 2)), "w must have shape"),
        (((4, 4), (3, 3, 2)), "w must be"),
        (((3, 4), (3, 1, 3, 2)), "w must have a kernel"),
    ],
)
def test_wrong_shapes_are_named(arguments, words):
    x, w = map(np.ones, arguments)
    with pytest.raises(ValueError, match=words):
        nc.conv_local(x, w)


def test_gradients_name_their_arguments():
    x, w = np.ones((1, 2, 4)), np.ones((3, 1, 2, 2))
    with pytest.raises(ValueError, match="dy must have shape"):
        nc.conv_local_grad_input(x.shape, w, np.ones((1, 1, 4)))
    with pytest.raises(ValueError, match="kernel_shape must have a kernel"):
        nc.conv_local_grad_weight(x, (4, 1, 2, 2), np.ones((1, 1, 3)))
    with pytest.raises(ValueError, match="bias must have shape"):
        nc.conv_local(x, w, np.ones(2))
    with pytest.raises(ValueError, match="groups must be 1"):
        nc.conv_local(np.ones(4), np.ones((3, 2)), groups=2)
    with pytest.raises(TypeError, match="groups must be an int, got 'a'"):
        nc.kernel2row_local(np.ones((3, 2, 1, 2)), 4, groups="a")


def test_too_large_is_said_before_anything_is_taken():
    x, dy = (np.broadcast_to(np.float32(0), (n, n)) for n in (4998, 4000))
    with pytest.raises(MemoryError):
        nc.conv_local_grad_weight(x, (4000, 4000, 999, 999), dy)
