"""What Winograd's transforms could get wrong: rounding, NaN and overflow, and the edges of tiles and blocks."""

import numpy as np
import pytest
from conftest import normal

import numconv as nc


def exact(x, w, padding=1, stride=1):
    """The sum in float64, one matrix product for each tap."""
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    rows, columns = x.shape[2] - 2, x.shape[3] - 2
    return sum(
        np.einsum("kc,nchw->nkhw", w[:, :, r, t].astype(np.float64),
                  x[:, :, r : r + rows : stride, t : t + columns : stride], optimize=True)
        for r in range(3)
        for t in range(3)
    )  # fmt: skip


def exact_back(dy, w, size):
    """The input gradient of stride 2 and padding 1: the sum over what lies apart, with the kernels backwards."""
    apart = np.zeros((*dy.shape[:2], size, size))
    apart[:, :, ::2, ::2] = dy
    return exact(apart, w[:, :, ::-1, ::-1].swapaxes(0, 1))


def error(y, want):
    """The largest error over the rms of the exact result."""
    return np.abs(y - want).max() / np.sqrt(np.mean(want**2))


LAYERS = [(32, 56, 0), (32, 9, 1), (64, 28, 2), (128, 28, 3), (256, 14, 4), (512, 14, 5), (512, 7, 6)]


@pytest.mark.parametrize(("C", "size", "seed"), LAYERS)
def test_float32_errs_little_more_than_a_plain_sum_whatever_the_channels(C, size, seed):
    """A sum of float32 products, one after the other, errs about 5e-6 at 64 channels; poor points or long sums 2e-5."""
    x, w = normal((2, C, size, size), np.float32, seed), normal((24, C, 3, 3), np.float32, seed)
    want = exact(x, w)
    assert error(nc.conv(x, w, padding=1, algorithm="winograd"), want) < 1e-5
    dy, turned = x, w[:, :, ::-1, ::-1].swapaxes(0, 1)
    w_back = np.ascontiguousarray(turned)  # (C, 24, 3, 3): its input gradient is the forward convolution above
    dx = nc.conv_grad_input((2, 24, size, size), w_back, dy, padding=1, algorithm="winograd")
    assert error(dx, want) < 1e-5


@pytest.mark.parametrize(("C", "size", "seed"), LAYERS[:5])
def test_stride_2_errs_less(C, size, seed):
    x, w = normal((2, C, size, size), np.float32, seed), normal((24, C, 3, 3), np.float32, seed)
    y = nc.conv(x, w, stride=2, padding=1, algorithm="winograd")
    assert error(y, exact(x, w, stride=2)) < 6e-6
    w_back = np.ascontiguousarray(w.swapaxes(0, 1))
    shape = (2, 24, 2 * size, 2 * size)
    dx = nc.conv_grad_input(shape, w_back, x, stride=2, padding=1, algorithm="winograd")
    assert error(dx, exact_back(x, w_back, 2 * size)) < 6e-6


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("C", "size", "seed"), LAYERS)
def test_float32_errs_at_most_8_times_as_much_as_torch(C, size, seed, stride):
    torch = pytest.importorskip("torch")
    x, w = normal((2, C, size, size), np.float32, seed), normal((24, C, 3, 3), np.float32, seed)
    want = exact(x, w, stride=stride)
    formats = torch.contiguous_format, torch.channels_last
    tensors = [[torch.from_numpy(a).contiguous(memory_format=layout) for a in (x, w)] for layout in formats]
    theirs = min(error(torch.nn.functional.conv2d(*pair, stride=stride, padding=1).numpy(), want) for pair in tensors)
    assert error(nc.conv(x, w, stride=stride, padding=1, algorithm="winograd"), want) <= 8 * theirs


@pytest.mark.parametrize("stride", [1, 2])
def test_float64_keeps_its_digits(stride):
    x, w = normal((1, 64, 20, 21)), normal((16, 64, 3, 3))
    y = nc.conv(x, w, stride=stride, padding=1, algorithm="winograd")
    assert error(y, exact(x, w, stride=stride)) < 1e-13


#: (N, C, K, rows, columns, groups): less than a tile, less than a vector, blocks that end inside a row or an image.
SHAPES = [
    (1, 1, 1, 1, 1, 1), (1, 3, 5, 2, 70, 1), (3, 4, 9, 7, 7, 1), (2, 40, 20, 14, 14, 1), (5, 3, 3, 13, 30, 3),
    (2, 130, 8, 6, 5, 1), (1, 2, 17, 61, 67, 1), (1, 6, 4, 41, 40, 2),
]  # fmt: skip


@pytest.mark.parametrize("boundary", ["constant", "reflect", "wrap"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("N", "C", "K", "rows", "columns", "groups"), SHAPES)
def test_every_shape_forward_and_back(N, C, K, rows, columns, groups, stride, boundary):
    arguments = {"padding": ((1, 2), (2, 0)), "groups": groups, "boundary": boundary, "stride": stride}
    x, w = normal((N, C, rows, columns), np.float32), normal((K, C // groups, 3, 3), np.float32, 1)
    bias = normal((K,), np.float32, 2)
    for flip in (False, True):
        y = nc.conv(x, w, bias, flip=flip, algorithm="winograd", **arguments)
        want = nc.conv(x.astype("f8"), w.astype("f8"), bias.astype("f8"), flip=flip, algorithm="im2col", **arguments)
        assert error(y, want) < 3e-5
        dx = nc.conv_grad_input(x.shape, w, y, flip=flip, algorithm="winograd", **arguments)
        want = nc.conv_grad_input(
            x.shape, w.astype("f8"), y.astype("f8"), flip=flip, algorithm="im2col", **arguments
        )
        assert error(dx, want) < 3e-5


def assert_near(got, want):
    """NaN and infinity in the same places, the rest within rounding."""
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    np.testing.assert_allclose(got[finite], want[finite], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [14, 40])
def test_nan_and_infinity_stay_where_the_formula_puts_them(size, value, stride):
    x, w = normal((2, 5, size, size), np.float32), normal((9, 5, 3, 3), np.float32, 1)
    x[1, 3, 0, 5] = x[0, 2, size - 1, size - 1] = x[0, 0, 6, 7] = value
    for padding in (1, ((2, 0), (0, 2))):
        arguments = {"stride": stride, "padding": padding}
        got, want = (nc.conv(x, w, algorithm=name, **arguments) for name in ("winograd", "direct"))
        assert_near(got, want)
        shape, back = (2, 9, size * stride, size * stride), w.swapaxes(0, 1).copy()
        got, want = (
            nc.conv_grad_input(shape, back, x, algorithm=name, **arguments) for name in ("winograd", "direct")
        )
        assert_near(got, want)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_weight_or_a_constant_that_is_not_finite(stride):
    x, w = normal((1, 4, 17, 30), np.float32), normal((8, 4, 3, 3), np.float32, 1)
    w[3, 1, 0, 2], w[6, 0, 1, 1] = np.inf, np.nan
    for arguments in ({}, {"fill_value": np.inf}, {"boundary": "edge"}):
        got, want = (
            nc.conv(x, w, stride=stride, padding=1, algorithm=name, **arguments) for name in ("winograd", "direct")
        )
        assert_near(got, want)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_transforms_do_not_overflow_where_the_sum_does_not(stride):
    x = np.full((1, 2, 12, 12), 3e38, np.float32)
    x[:, :, ::2] *= -1
    w = np.zeros((3, 2, 3, 3), np.float32)
    w[0, 0, 1, 1], w[1, 1, 0, 2], w[2, 0, 2, 2] = 1, -1, 0.5
    y, want = (nc.conv(x, w, stride=stride, padding=1, algorithm=name) for name in ("winograd", "direct"))
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y, want, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 40, 14, 14), (2, 24, 30, 33)])
def test_bits_are_the_same_for_any_number_of_threads(shape, stride):
    numba = pytest.importorskip("numba")
    most = numba.get_num_threads()
    x, w = normal(shape, np.float32), normal((48, shape[1], 3, 3), np.float32, 1)
    dy = normal((shape[0], 48, *(-(-n // stride) for n in shape[2:])), np.float32, 2)
    x[0, 3, 5, 5] = np.nan
    results = []
    try:
        for threads in (1, most):
            numba.set_num_threads(threads)
            arguments = {"stride": stride, "padding": 1, "algorithm": "winograd"}
            results.append((nc.conv(x, w, **arguments), nc.conv_grad_input(shape, w, dy, **arguments)))
    finally:
        numba.set_num_threads(most)
    for one, all_of_them in zip(*results, strict=True):
        np.testing.assert_array_equal(one, all_of_them)


def test_stride_2_in_one_direction_alone_is_refused():
    x, w = normal((1, 4, 9, 9), np.float32), normal((8, 4, 3, 3), np.float32, 1)
    with pytest.raises(ValueError, match=r"winograd.*stride 1 or 2.*\(1, 2\)"):
        nc.conv(x, w, stride=(1, 2), algorithm="winograd")
    assert nc.plan_conv(x.shape, w.shape, stride=2, algorithm="winograd").choice == (
        "winograd", "winograd", "implicit",
    )  # fmt: skip
