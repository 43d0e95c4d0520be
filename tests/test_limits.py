"""Sizes, strides and positions that 64 bits do not hold are refused by name, everywhere; below that they are right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

import numconv as nc
from numconv import overloads
from numconv._indexing import BLOCK, FAR, capped, largest_index
from numconv.cpu import simd

overloads.init()  # numba does so itself where numconv is installed

X, W = np.ones((1, 2, 8, 8), np.float32), np.ones((3, 2, 3, 3), np.float32)
DY = np.ones((1, 3, 8, 8), np.float32)
ALGORITHMS = ["auto", "im2col", "kernel2row", "implicit", "direct", "winograd", "fft"]

#: What an argument can be that no index holds, or no product of indices.
FAR_AWAY = [
    *({"padding": 2**e, "stride": 2**e} for e in (40, 54, 59, 60, 62, 63, 70)),
    *({"padding": 2**e, "dilation": 2**e} for e in (40, 54, 59, 60, 62, 63, 70)),
    *({"padding": ((0, 2**e), (2**e, 0))} for e in (31, 59, 62, 70)),
    {"padding": 2**62, "stride": 2**62 - 1, "dilation": 2**61},
    {"stride": 2**63},
    {"padding": ((2**20, 0), (0, 2**20)), "stride": (2**40, 1), "dilation": (2**10 - 1, 2**19)},
]


@pytest.mark.parametrize("geometry", FAR_AWAY, ids=str)
def test_what_no_index_holds_is_refused(geometry):
    calls = [
        lambda: nc.conv_grad_input(X.shape, W, DY, **geometry), lambda: nc.conv_grad_weight(X, W.shape, DY, **geometry),
        lambda: nc.im2col(X, (3, 3), **geometry), lambda: nc.kernel2row(W, (8, 8), **geometry),
        lambda: nc.col2im(X[0], X.shape, (3, 3), **geometry), lambda: nc.conv_local(X, W[None, None], **geometry),
        lambda: nc.plan_conv(X.shape, W.shape, **geometry), lambda: nc.conv_transpose(X, W[:2], **geometry),
        *(lambda name=name: nc.conv(X, W, algorithm=name, **geometry) for name in ALGORITHMS),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises((ValueError, MemoryError), match=r"stride|dilation|padding"):
            call()


def test_shapes_that_no_index_holds_are_refused():
    with pytest.raises(ValueError, match=r"2\*\*60.*1099511627776"):
        nc.conv_grad_input((1, 2, 2**40, 2**40), W, DY)
    with pytest.raises(ValueError, match=r"2\*\*60.*4611686018427387904"):
        nc.kernel2row(W, (2**62, 8))
    with pytest.raises(ValueError, match=r"2\*\*60"):
        nc.plan_conv((2**30, 2**30, 8), (2, 2**30, 3))
    with pytest.raises(ValueError, match=r"2\*\*60"):  # each is held, but not the entries of the matrix
        nc.plan_conv((1, 2**40), (2**10, 1, 2**20))


@given(a=st.integers(0, 2**65), b=st.integers(0, 2**65))
def test_a_product_is_capped(a, b):
    assert capped(a, b) == a * b if a * b < FAR else capped(a, b) >= FAR


sizes = st.integers(0, 2**62) | st.integers(0, 2**20) | st.integers(0, 9)


@given(data=st.data(), d=st.integers(1, 3))
def test_the_largest_index_bounds_all_that_follows_from_a_geometry(data, d):
    """Compared with Python's own integers, which never overflow."""
    several = [data.draw(st.lists(sizes, min_size=d, max_size=d)) for _ in range(6)]
    size, kernel, stride, dilation, lo, hi = several
    kernel, stride, dilation = ([max(n, 1) for n in numbers] for numbers in (kernel, stride, dilation))
    N, C, K = (data.draw(sizes) for _ in range(3))
    found = largest_index(N, C, K, 1, size, kernel, stride, dilation, lo, hi)
    padded = [a + b + c for a, b, c in zip(size, lo, hi, strict=True)]
    out = [(n - dil * (k - 1) - 1) // s + 1 for n, k, s, dil in zip(padded, kernel, stride, dilation, strict=True)]
    every = [
        max(N, 1) * max(C, K, 1) * np.prod([max(n, 1) for n in padded], dtype=object),
        max(N, 1) * K * C * np.prod([max(n, 0) for n in out], dtype=object) * np.prod(kernel, dtype=object),
        *padded, *stride, *dilation, *(k * dil for k, dil in zip(kernel, dilation, strict=True)),
        (padded[-1] + (BLOCK - 1) * stride[-1]) * (padded[-2] + (BLOCK - 1) * stride[-2] if d > 1 else 1),
    ]  # fmt: skip
    assert found >= min(max(every), FAR)
    if found < FAR:  # nor is anything refused that is far from it
        assert found <= 2 * BLOCK**2 * max(every) ** 2


def test_tiles_of_vector_code_are_no_longer_than_a_block():
    assert simd.WINDOW * 16 < BLOCK


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "winograd"])
def test_strides_taps_and_padding_far_away_are_right_where_indices_hold(algorithm):
    """Over two axes; only the middle of three outputs sees the image, and of three taps."""
    x, w = np.arange(64.0, dtype=np.float32).reshape(1, 1, 8, 8), np.arange(9.0, dtype=np.float32).reshape(1, 1, 3, 3)
    far = 10**5
    if algorithm in ("fft", "im2col", "kernel2row"):
        far = 10**3  # what they store has the size of the padding
    y = nc.conv(x, w, stride=far, padding=far, algorithm=algorithm)
    want = np.zeros((3, 3), np.float32)
    want[1, 1] = (x[0, 0, :3, :3] * w[0, 0]).sum()
    np.testing.assert_allclose(y[0, 0], want, atol=1e-3)
    y = nc.conv(x, w, dilation=far, padding=far, algorithm=algorithm)
    np.testing.assert_allclose(y, 4 * x, atol=1e-3)


@njit
def compiled(x, w, dy, stride, padding, dilation):
    y = nc.conv(x, w, stride=stride, padding=padding, dilation=dilation)
    dx = nc.conv_grad_input((1, 2, 8, 8), w, dy, stride=stride, padding=padding, dilation=dilation)
    dw = nc.conv_grad_weight(x, (3, 2, 3, 3), dy, stride=stride, padding=padding, dilation=dilation)
    return y, dx, dw


@njit
def compiled_windows(x, stride, padding, dilation):
    return nc.im2col(x, (3, 3), stride=stride, padding=padding, dilation=dilation)


@njit
def compiled_matrix(w, size):
    return nc.kernel2row(w, size)


@njit
def compiled_plain(x, w, dilation):
    return nc.convolve(x, w, "valid", dilation=dilation)


@njit
def compiled_transposed(data, indices, indptr, y, columns):
    return nc.csr_rmatvec(data, indices, indptr, y, columns)


def test_compiled_calls_have_the_same_limit():
    for y, want in zip(compiled(X, W, DY, 1, 1, 1), (nc.conv(X, W, padding=1), X, W), strict=True):
        assert y.shape == want.shape
    for e in (40, 54, 59, 60, 62):
        for arguments in ((2**e, 2**e, 1), (1, 2**e, 2**e), (1, 2**e, 1)):
            with pytest.raises(ValueError, match=r"2\*\*60"):
                compiled(X, W, DY, *arguments)
            with pytest.raises(ValueError, match=r"2\*\*60"):
                compiled_windows(X, *arguments)
    with pytest.raises(ValueError, match=r"2\*\*60"):
        compiled_matrix(W, (2**62, 8))
    with pytest.raises(MemoryError):
        compiled_matrix(W[:, :, :1], (1, 2**45))


def test_compiled_kernels_that_are_spread_out_beyond_all_memory_are_refused():
    for e in (31, 32, 40, 62):
        with pytest.raises(MemoryError):
            compiled_plain(np.ones((3, 3)), np.ones((2, 2)), 2**e)


def test_compiled_transposed_products_have_memory_for_their_columns():
    W_conv = nc.kernel2row(np.ones(3), 9)
    for columns in (2**59, 2**60, 2**62):
        with pytest.raises(MemoryError):
            compiled_transposed(W_conv.data, W_conv.indices, W_conv.indptr, np.ones(7), columns)
        with pytest.raises((MemoryError, ValueError)):
            nc.csr_rmatvec(W_conv.data, W_conv.indices, W_conv.indptr, np.ones(7), columns)


def test_plain_convolution_of_nothing_is_an_error_as_numpys():
    for call in (nc.convolve, nc.correlate):
        for x in ([], np.ones((0,)), np.ones((3, 0))):
            for mode in ("full", "same", "valid"):
                with pytest.raises(ValueError, match=r"\bx\b.*at least one"):
                    call(x, np.ones((2,) * np.ndim(x)), mode)
        with pytest.raises(ValueError, match=r"\bw\b"):
            call([1.0, 2.0], [])
        assert call(np.ones((0, 5)), [1.0, 1.0], axes=1).shape == (0, 6)  # no rows have no results
        with pytest.raises(ValueError, match="at least one"):
            call(np.ones((0, 5)), [1.0, 1.0], axes=0)
    with pytest.raises(ValueError, match="at least one"):
        nc.plan_convolve((0,), (2,), "full")
    with pytest.raises(ValueError, match="at least one"):
        nc.normalized_convolve([], [1.0, 2.0])
