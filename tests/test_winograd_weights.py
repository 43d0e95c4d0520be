"""What Winograd's weight gradient could get wrong: rounding, edges of tiles, blocks and parts, NaN and overflow."""

import numpy as np
import pytest
from conftest import normal
from hypothesis import given
from hypothesis import strategies as st
from test_winograd import WAYS, error, layers, meetings, peaks, with_outliers

import numconv as nc
from numconv import select
from numconv.cpu.schemes import RANGE
from numconv.geometry import conv_geometry


def gradient(x, dy, kernel_shape, algorithm="winograd", **arguments):
    return nc.conv_grad_weight(x, kernel_shape, dy, algorithm=algorithm, **arguments)


def exact(x, dy, padding=1):
    """The sum in float64, one matrix product for each tap."""
    x, dy = np.pad(x.astype("f8"), ((0, 0), (0, 0), (padding, padding), (padding, padding))), dy.astype("f8")
    rows, columns = dy.shape[2:]
    dw = np.empty((dy.shape[1], x.shape[1], 3, 3))
    for r in range(3):
        for t in range(3):
            dw[:, :, r, t] = np.tensordot(dy, x[:, :, r : r + rows, t : t + columns], ((0, 2, 3), (0, 2, 3)))
    return dw


#: Images, input channels, size, output channels: few tiles and many, whose sums are of parts and of blocks.
LAYERS = [(1, 64, 7, 64), (1, 32, 14, 48), (1, 40, 56, 64), (8, 24, 56, 24), (1, 8, 224, 16), (2, 256, 14, 32)]


def layer(N, C, size, K, dtype=np.float32):
    return normal((N, C, size, size), dtype, 1), normal((N, K, size, size), dtype, 2)


@pytest.mark.parametrize(("N", "C", "size", "K"), LAYERS)
def test_float32_errs_little_more_than_a_plain_sum_however_many_the_tiles(N, C, size, K):
    x, dy = layer(N, C, size, K)
    assert error(gradient(x, dy, (K, C, 3, 3), padding=1), exact(x, dy)) < 1.5e-5


@pytest.mark.parametrize(("N", "C", "size", "K"), LAYERS)
def test_float32_errs_at_most_8_times_as_much_as_torch(N, C, size, K):
    torch = pytest.importorskip("torch")
    x, dy = layer(N, C, size, K)
    want, theirs = exact(x, dy), []
    for layout in (torch.contiguous_format, torch.channels_last):
        pair = [torch.from_numpy(a).contiguous(memory_format=layout) for a in (x, dy)]
        theirs.append(error(torch.nn.grad.conv2d_weight(pair[0], (K, C, 3, 3), pair[1], padding=1).numpy(), want))
    assert error(gradient(x, dy, (K, C, 3, 3), padding=1), want) <= 8 * min(theirs)


def test_float64_keeps_its_digits():
    x, dy = layer(2, 40, 33, 36, np.float64)
    assert error(gradient(x, dy, (36, 40, 3, 3), padding=1), exact(x, dy)) < 1e-13


def test_a_complex_gradient_takes_the_conjugate():
    x, dy = layer(2, 3, 9, 5, np.complex64)
    want = gradient(x.astype("c16"), dy.astype("c16"), (5, 3, 3, 3), "direct", padding=1)
    assert error(gradient(x, dy, (5, 3, 3, 3), padding=1), want) < 1e-5


@given(
    N=st.integers(1, 3), groups=st.sampled_from([1, 1, 2, 3]), C=st.integers(1, 40), K=st.integers(1, 40),
    size=st.tuples(st.integers(1, 40), st.integers(1, 60)), data=st.data(),
)  # fmt: skip
def test_every_geometry(N, groups, C, K, size, data):
    dtype = data.draw(st.sampled_from(["f4", "f8"]))
    boundary = data.draw(st.sampled_from(["constant", "edge", "reflect", "symmetric", "wrap"]))
    padding = [[data.draw(st.integers(max(0, 3 - n) if i else 0, 5)) for i in (0, 1)] for n in size]
    arguments = {"padding": padding, "groups": groups, "boundary": boundary, "flip": data.draw(st.booleans())}
    if boundary == "constant":
        arguments["fill_value"] = data.draw(st.sampled_from([0, 1.5]))
    x, shape = normal((N, C * groups, *size), dtype), (K * groups, C, 3, 3)
    dy = normal(conv_geometry(x.shape, shape, **arguments).output_shape, dtype, 1)
    want = gradient(x.astype("f8"), dy.astype("f8"), shape, "im2col", **arguments)
    assert error(gradient(x, dy, shape, **arguments), want) < (3e-5 if dtype == "f4" else 1e-13)


#: More channels than a block has, of either kind; parts of tiles that end inside a row.
BLOCKS = [(1, 130, 70, 9, 10, 1), (3, 20, 90, 41, 45, 2), (2, 7, 3, 13, 300, 1)]


@pytest.mark.parametrize(("N", "C", "K", "rows", "columns", "groups"), BLOCKS)
def test_blocks_and_parts(N, C, K, rows, columns, groups):
    x, dy = normal((N, C * groups, rows, columns), np.float32), normal((N, K * groups, rows, columns), np.float32, 1)
    shape = (K * groups, C, 3, 3)
    want = gradient(x.astype("f8"), dy.astype("f8"), shape, "im2col", padding=1, groups=groups)
    assert error(gradient(x, dy, shape, padding=1, groups=groups), want) < 3e-5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [6, 40])
def test_nan_and_infinity_stay_where_the_formula_puts_them(size, value):
    x, dy = layer(2, 5, size, 9)
    shape = (9, 5, 3, 3)
    for array, place in ((x, (1, 3, 0, 5)), (dy, (0, 7, size - 1, size - 1)), (x, (0, 0, 2, 3))):
        array[place] = value
        got, want = gradient(x, dy, shape, padding=1), gradient(x, dy, shape, "implicit", padding=1)
        assert not np.isfinite(want).all()
        np.testing.assert_array_equal(got, want)
    assert np.isfinite(gradient(x[:, 1:3], dy[:, :7], (7, 2, 3, 3), padding=1)).all()


def test_a_constant_that_is_not_finite():
    x, dy = layer(1, 4, 17, 6)
    for fill in (np.inf, np.nan):
        arguments = {"padding": 1, "fill_value": fill}
        got, want = (gradient(x, dy, (6, 4, 3, 3), name, **arguments) for name in ("winograd", "implicit"))
        np.testing.assert_array_equal(got, want)
        assert np.isfinite(got[:, :, 1, 1]).all()


def test_a_constant_that_no_output_meets_is_not_there():
    """Tiles reach beyond the last row and column; what lies there would cancel, all but its rounding."""
    x, dy = layer(1, 4, 15, 6)
    dy = np.ascontiguousarray(dy[:, :, 1:-1, 1:-1])
    assert error(gradient(x, dy, (6, 4, 3, 3), fill_value=1e9), exact(x, dy, 0)) < 1e-5


def test_the_transforms_do_not_overflow_where_the_sum_does_not():
    x, dy = np.full((1, 2, 12, 12), 3e38, np.float32), np.zeros((1, 3, 12, 12), np.float32)
    x[:, :, ::2] *= -1
    dy[0, 0, 5, 6], dy[0, 1, 0, 0], dy[0, 2, 11, 2] = 1, -1, 0.5
    dw = gradient(x, dy, (3, 2, 3, 3), padding=1)
    assert np.isfinite(dw).all()
    np.testing.assert_array_equal(dw, gradient(x, dy, (3, 2, 3, 3), "implicit", padding=1))


@pytest.mark.parametrize(("N", "C", "size", "K"), [(1, 40, 14, 48), (2, 24, 33, 20), (1, 70, 61, 80)])
def test_bits_are_the_same_for_any_number_of_threads(N, C, size, K):
    numba = pytest.importorskip("numba")
    most = numba.get_num_threads()
    x, dy = layer(N, C, size, K)
    results = []
    try:
        for threads in (1, most, 1):
            numba.set_num_threads(threads)
            results.append(gradient(x, dy, (K, C, 3, 3), padding=1))
    finally:
        numba.set_num_threads(most)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_parts_and_blocks_take_little_memory():
    for N, size, C, K in [(1, 2048, 64, 64), (64, 256, 16, 512), (1, 7, 4096, 4096)]:
        g = conv_geometry((N, C, size, size), (K, C, 3, 3), padding=1)
        assert select.workspace("winograd", g, np.dtype(np.float32), "cpu") <= 64 << 20


def test_auto_takes_it_for_a_layer():
    plan = nc.plan_conv((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
    assert plan.choice.grad_weight == "winograd"
    assert not select.has_grad_weight("winograd", conv_geometry((1, 8, 9, 9), (8, 8, 3, 3), stride=2), "cpu")
    assert not select.has_grad_weight("winograd", conv_geometry((1, 8, 9, 9), (8, 8, 3, 3), dilation=2), "cpu")


# what a gradient does not meet --------------------------------------------------------------------------------------


def assert_local(got, x, dy, arguments):
    """``|got - exact| <= RANGE * eps * sum over meetings of largest |dY| * largest |x|``, equal where that is 0."""
    groups, shape = arguments["groups"], got.shape
    want = gradient(x.astype("f8"), dy.astype("f8"), shape, "im2col", **arguments)
    constant = np.full((len(x), groups, 1), abs(arguments.get("fill_value", 0)))
    pixels = np.concatenate([peaks(x, groups), constant], axis=2)[:, :, meetings(x.shape[2:], arguments)]
    scale = (pixels * peaks(dy, groups)[:, :, None]).sum((0, 3)).reshape(groups, 1, 1, 3, 3)
    scale = np.broadcast_to(scale, (groups, shape[0] // groups, *shape[1:])).reshape(shape)
    fits = scale < 1e38
    assert (np.abs(got - want)[fits] <= RANGE * np.finfo(np.float32).eps * scale[fits]).all()


@given(layers(ways=WAYS[:1]), st.data())
def test_a_gradient_errs_by_what_it_meets(layer, data):
    x, w, arguments = layer
    x = x.clip(-1e30, 1e30)
    dy = with_outliers(data.draw, normal(nc.plan_conv(x.shape, w.shape, **arguments).output_shape, np.float32, 2))
    if data.draw(st.booleans()):
        dy = np.where(np.abs(dy) > 100, 0, dy)
        for n, _, i, j in np.argwhere(np.abs(x) > 100):  # gaps, which the gradient leaves out
            dy[n, :, max(0, i - 2) : i + 4, max(0, j - 2) : j + 4] = 0
    dy = dy.clip(-1e6, 1e6)
    assert_local(gradient(x, dy, w.shape, **arguments), x, dy, arguments)


@pytest.mark.parametrize("gaps", [1, 5, 300])
@pytest.mark.parametrize("mark", [1e6, 1e20, 9.97e36])
def test_marked_pixels_that_have_no_gradient_play_no_part(mark, gaps):
    x, dy = layer(2, 24, 40, 20)
    rng = np.random.default_rng(gaps)
    for n, c, i, j in zip(*(rng.integers(0, size, gaps) for size in x.shape), strict=True):
        x[n, c, i, j] = mark
        dy[n, :, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2] = 0
    want = exact(np.where(x == np.float32(mark), 0, x), dy)
    assert error(gradient(x, dy, (20, 24, 3, 3), padding=1), want) < 1e-5


def test_taps_that_meet_only_padding_are_zero():
    x, dy = np.zeros((1, 8, 9, 9), np.float32), np.zeros((1, 12, 9, 9), np.float32)
    x[0, :, 0, 0], dy[0, :, 0, 0] = 1e20, 1
    dy[0, :, 6, 6] = x[0, :, 6, 6] = 1
    dw = gradient(x, dy, (12, 8, 3, 3), padding=1)
    np.testing.assert_array_equal(dw, gradient(x, dy, (12, 8, 3, 3), "implicit", padding=1))
    assert dw[0, 0, 1, 1] == np.float32(1e20)
    assert (dw[:, :, 0] == 0).all()


def test_ordinary_layers_have_no_loud_tiles():
    from numconv.cpu import winograd_weights

    found = []
    original = winograd_weights._loud_tiles
    try:
        winograd_weights._loud_tiles = lambda *arguments: found.append(original(*arguments)) or found[-1]
        for N, C, size, K in LAYERS:
            x, dy = layer(N, C, size, K)
            x[:, :, : size // 4] = 0
            gradient(np.maximum(x, 0), np.where(dy > 1, dy, 0), (K, C, 3, 3), padding=1)
    finally:
        winograd_weights._loud_tiles = original
    assert len(found) == len(LAYERS)
    assert not any(loud.any() for loud in found)
