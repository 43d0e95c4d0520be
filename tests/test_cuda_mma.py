"""Products by tensor cores in numba's simulator, by fragments, against the naive oracle and a model of rounding.

``NUMBA_ENABLE_CUDASIM=1 pytest tests/test_cuda_mma.py``, or by ``test_cuda_simulator.py``.
"""

from __future__ import annotations

from math import prod

import naive
import numpy as np
import pytest
import tensor_cores
from conftest import normal, values
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator import PLACE, empty, in_simulator, numbers, simulated

import numconv
from numconv.geometry import conv_geometry

pytestmark = [in_simulator, pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")]

if simulated:
    from numconv.cuda import adjoint, implicit, mma
    from numconv.cuda.driver import Simulator

FLOAT = np.dtype(np.float32)
PRECISIONS = ["tf32", "tf32x3"]

CASES = {
    "stride": ((2, 3, 7, 5), (2, 3, 3, 2), {"stride": (2, 3), "padding": ((0, 1), (2, 0)), "flip": True}),
    "groups": ((1, 4, 5, 4), (6, 2, 2, 2), {"padding": 1, "stride": 2, "groups": 2, "boundary": "reflect"}),
    "line": ((1, 6, 9), (4, 3, 3), {"padding": 3, "dilation": 2, "groups": 2, "boundary": "wrap", "flip": True}),
    "volume": ((1, 1, 2, 3, 3), (2, 1, 2, 2, 2), {"padding": (0, 1, 0), "stride": (1, 2, 1), "boundary": "edge"}),
    "constant": ((1, 2, 4, 3), (2, 2, 2, 2), {"padding": 2, "fill_value": 2, "stride": 3}),
    "deep": ((1, 19, 3, 3), (3, 19, 2, 2), {}),
}


def products(precision, g, x, w, bias, dy):
    """The three products as the simulator computes them."""
    room, fill = mma.BY_PRECISION[precision], x.dtype.type(g.fill_value)
    X, W, dY = map(PLACE.send, (x, w, dy))
    y, dx, dw = (empty(shape, x.dtype) for shape in (dy.shape, x.shape, w.shape))
    room.forward(X, W, PLACE.send(bias), g.axes, g.boundary_code, fill, y)
    adjoint.grad_input(room, dY, W, g, dx)
    room.grad_weight(X, dY, g.axes, g.boundary_code, fill, dw)
    return tuple(map(numbers, (y, dx, dw)))


def check_exactly(x_shape, w_shape, arguments, precision):
    """Small multiples of 1/2 are numbers of TF32, and their sums exact in any order."""
    g, arguments = conv_geometry(x_shape, w_shape, **arguments), {"flip": False, **arguments}
    shapes = (g.input_shape, g.kernel_shape, (g.K,), (g.N, g.K, *g.out))
    x, w, bias, dy = (values(shape, FLOAT, seed) for seed, shape in enumerate(shapes))
    y, dx, dw = products(precision, g, x, w, bias, dy)
    np.testing.assert_array_equal(y, naive.conv(x, w, bias, **arguments))
    np.testing.assert_array_equal(dx, naive.conv_grad_input(x.shape, w, dy, **arguments))
    np.testing.assert_array_equal(dw, naive.conv_grad_weight(x, w.shape, dy, **arguments))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_products(name, precision):
    check_exactly(*CASES[name], precision)


#: The least and most of size, kernel, stride, dilation and padding.
ENDS = (2, 5), (1, 3), (1, 2), (1, 2), (0, 2)


@given(
    st.integers(1, 2), st.sampled_from([(1, 1), (2, 3), (1, 17), (18, 1)]), st.integers(1, 2),
    st.lists(st.tuples(*(st.integers(*ends) for ends in ENDS)), min_size=1, max_size=2),
    st.sampled_from(["constant", "edge", "symmetric", "wrap"]), st.sampled_from(PRECISIONS),
)  # fmt: skip
@settings(max_examples=6)  # some ten seconds each
def test_any_geometry(N, channels, groups, axes, boundary, precision):
    size, kernel, stride, dilation, padding = zip(*axes, strict=True)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if any(n + 2 * p < r for n, p, r in zip(size, padding, reach, strict=True)):
        return
    (Kg, Cg), arguments = channels, {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    check_exactly(
        (N, Cg * groups, *size), (Kg * groups, Cg, *kernel), {**arguments, "boundary": boundary}, precision
    )  # fmt: skip


# rounding ------------------------------------------------------------------------------------------------------------


def by_steps(array, axis):
    """An axis of channels filled up with zeros to whole steps."""
    width = [(0, 0)] * array.ndim
    width[axis] = (0, -array.shape[axis] % tensor_cores.DEPTH)
    return np.pad(array, width)


def test_rounding_to_tf32():
    bits = np.random.default_rng(0).integers(0, 1 << 32, 3000, dtype=np.uint64).astype(np.uint32)
    ties = (bits & 0xFFFFE000) | 0x1000
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 3.4028235e38, 1e-45, 1e-40, 1, -1], FLOAT)
    for x in (*bits.view(FLOAT), *ties.view(FLOAT), *special):
        np.testing.assert_array_equal(mma.tf32(x), tensor_cores.tf32(x))
        if np.isfinite(tensor_cores.tf32(x)):
            big, small = mma.split(x)
            assert (big, small) == tuple(map(float, tensor_cores.split(x)))
            assert abs(np.float64(x) - big - small) <= max(2.0**-23 * abs(np.float64(x)), 2.0**-136)
    big, small = mma.split(FLOAT.type(np.nan))
    assert np.isnan(small)  # and with it the sum


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tile", [0, -1])
def test_every_tile_rounds_as_the_model_does(monkeypatch, tile, precision):
    """More rows, columns, channels and pixels than a tile has, none of them a multiple of its size."""
    monkeypatch.setattr(mma, "tile_for", lambda tiles, *_: tiles[tile])
    monkeypatch.setattr(mma, "parts_of", lambda *_: 2)
    g = conv_geometry((2, 17, 3, 6), (33, 17, 1, 1))
    x, w, dy = (normal(shape, FLOAT, seed) for seed, shape in enumerate((g.input_shape, g.kernel_shape, (2, 33, 3, 6))))
    y, dx, dw = products(precision, g, x, w, np.zeros(33, FLOAT), dy)
    columns, rows = x.transpose(1, 0, 2, 3).reshape(17, 36), dy.transpose(1, 0, 2, 3).reshape(33, 36)
    flat = w.reshape(33, 17)

    def images(product):
        return product.reshape(-1, 2, 3, 6).transpose(1, 0, 2, 3)

    want = images(tensor_cores.product(by_steps(flat, 1), by_steps(columns, 0), precision))
    np.testing.assert_array_equal(y, want)
    want = images(tensor_cores.product(by_steps(flat.T, 1), by_steps(rows, 0), precision))
    np.testing.assert_array_equal(dx, want)
    want = np.zeros((33, 17), FLOAT)
    for part in (slice(0, 16), slice(16, 48)):  # of 3 steps, of 16 pixels each
        want = want + tensor_cores.product(by_steps(rows, 1)[:, part], by_steps(columns, 1)[:, part].T, precision)
    np.testing.assert_array_equal(dw.reshape(33, 17), want)


def test_a_sum_over_taps_rounds_as_the_model_does():
    arguments = {"padding": 1, "stride": 2, "boundary": "reflect"}
    g = conv_geometry((1, 3, 5, 4), (2, 3, 3, 2), **arguments)
    x, w = normal(g.input_shape, FLOAT), normal(g.kernel_shape, FLOAT, 1)
    X_conv = naive.im2col(x, g.kernel, flip=False, **arguments)[0].reshape(3, 6, -1).swapaxes(0, 1)
    W_flat = w.reshape(2, 3, 6).swapaxes(1, 2)
    for precision in PRECISIONS:
        y = empty((1, 2, *g.out), FLOAT)
        mma.BY_PRECISION[precision].forward(
            PLACE.send(x), PLACE.send(w), PLACE.zeros((2,), FLOAT), g.axes, g.boundary_code, FLOAT.type(0), y
        )
        a, b = by_steps(W_flat, 2).reshape(2, -1), by_steps(X_conv, 1).reshape(6 * 16, -1)
        np.testing.assert_array_equal(numbers(y).reshape(2, -1), tensor_cores.product(a, b, precision))


def test_the_model_is_within_its_bound():
    """And three products are as near to the exact one as float32 is, or nearer."""
    a, b = normal((8, 600), FLOAT), normal((600, 32), FLOAT, 1)
    want = a.astype(np.float64) @ b
    off = {}
    for precision in PRECISIONS:
        for cut in (False, True):
            off[precision, cut] = np.abs(tensor_cores.product(a, b, precision, cut) - want)
            room = tensor_cores.room(np.abs(a).astype(np.float64) @ np.abs(b), 600, precision)
            assert (off[precision, cut] <= room).all()
            assert off[precision, cut].max() > room.min() / 1000
    assert off["tf32", True].max() > 100 * off["tf32x3", True].max()
    assert off["tf32x3", True].max() < np.abs(tensor_cores.ieee(a, b) - want).max()


def test_numbers_that_are_not_finite():
    """Infinity, NaN, numbers that overflow as TF32 and those too small for its digits."""
    g = conv_geometry((1, 2, 1, 6), (2, 2, 1, 1))
    x, w = np.ones(g.input_shape, FLOAT), np.array([[1, 1], [-2, 0.5]], FLOAT).reshape(g.kernel_shape)
    x[0, 0, 0] = np.inf, -np.inf, np.nan, 3.4028235e38, 1e-40, 1 + 2**-23
    x[0, 1, 0, :2] = np.inf, 0
    x[0, 1, 0, 3:] = 0
    dy = np.ones((1, 2, 1, 6), FLOAT)
    dy[0, 0, 0, 0] = np.inf
    want = naive.products(x, w, dy, flip=False)
    got = products("tf32x3", g, x, w, np.zeros(2, FLOAT), dy)
    for found, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(found, np.asarray(expected, FLOAT), rtol=0, atol=2.0**-134)
    y, _, dw = products("tf32", g, x, w, np.zeros(2, FLOAT), dy)
    assert y[0, 0, 0].tolist()[:2] == [np.inf, -np.inf]
    assert np.isnan(y[0, :, 0, 2]).all() and np.isnan(dw[:, 0]).all()
    assert y[0, 0, 0, 3] == np.inf  # it is rounded up
    assert abs(y[0, 0, 0, 4] - FLOAT.type(1e-40)) <= 2.0**-137
    assert y[0, 0, 0, 5] == 1


def test_half_precision_needs_one_product():
    """float16 are numbers of TF32, and those of the padding, too, if they are float16."""
    g = conv_geometry((1, 2, 3, 3), (2, 2, 2, 2), padding=1, fill_value=0.5)
    x, w, bias, dy = (
        values(s, np.float16, i) * np.float16(1 + 2**-4)
        for i, s in enumerate((g.input_shape, g.kernel_shape, (2,), (1, 2, 4, 4)))
    )
    room = mma.BY_PRECISION["tf32x3"]
    X = PLACE.send(x)
    assert [room._products(X, FLOAT.type(fill)) for fill in (0.5, 0.1, np.nan)] == [1, 3, 3]
    assert room._products(PLACE.send(x.astype(FLOAT)), FLOAT.type(0.5)) == 3
    for precision in PRECISIONS:
        y, dx, dw = products(precision, g, x, w, bias, dy)
        arguments = {"padding": 1, "fill_value": 0.5}
        np.testing.assert_array_equal(y, naive.narrow(naive.conv(x, w, bias, **arguments), np.float16))
        np.testing.assert_array_equal(dx, naive.narrow(naive.conv_grad_input(x.shape, w, dy, **arguments), np.float16))
        np.testing.assert_array_equal(dw, naive.narrow(naive.conv_grad_weight(x, w.shape, dy, **arguments), np.float16))


def test_an_image_does_not_depend_on_those_beside_it():
    x, w = normal((3, 2, 3, 4), FLOAT), normal((2, 2, 1, 2), FLOAT, 1)
    for precision in PRECISIONS:
        given = {"device": "cuda", "algorithm": "implicit", "precision": precision, "padding": 1}
        plan, alone = (numconv.plan_conv(some.shape, w.shape, **given) for some in (x, x[:1]))
        np.testing.assert_array_equal(plan.forward(x, w)[1:2], alone.forward(x[1:2], w))
        dy = normal(plan.output_shape, FLOAT, 2)
        np.testing.assert_array_equal(plan.grad_input(dy, w)[1:2], alone.grad_input(dy[1:2], w))


# plans ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch):
    """The modules and names of the kernels that were launched."""
    found, launch = [], Simulator.launch
    monkeypatch.setattr(
        Simulator, "launch", lambda *a: (found.append((a[2].__module__.split(".")[-1], a[2].__name__)), launch(*a))[1]
    )
    return found


@pytest.mark.parametrize("precision", ["ieee", *PRECISIONS])
def test_plans_take_what_is_asked_for(launched, precision):
    x, w = PLACE.send(values((1, 2, 2, 3), FLOAT)), PLACE.send(values((2, 2, 1, 2), FLOAT, 1))
    given, room = {"algorithm": "implicit", "precision": precision}, "implicit" if precision == "ieee" else "mma"
    for plan in (numconv.plan_conv(x.shape, w.shape, device=device, **given) for device in ("cpu", "cuda")):
        for _ in range(2):  # the second one replays
            launched.clear()
            y = plan.forward(x, w)
            np.testing.assert_array_equal(numbers(y), naive.conv(x.numbers, w.numbers))
            assert (room, "forward") in launched
            assert {("mma", "_round"), ("mma", "_forward_again")} & {*launched} == {
                "ieee": set(), "tf32": {("mma", "_round")}, "tf32x3": {("mma", "_forward_again")}
            }[precision]  # fmt: skip
            launched.clear()
            plan.grad_input(y, w)
            assert (room, "forward") in launched
            plan.grad_weight(x, y)
            assert ({"implicit": "implicit_weights"}.get(room, room), "grad_weight") in launched
    y = numconv.conv(x, w, **given)
    t = numconv.conv_transpose(y, w, **given)
    np.testing.assert_array_equal(numbers(t), naive.conv_transpose(numbers(y), w.numbers))
    dx, dw = numconv.conv_grad_input(x.shape, w, y, **given), numconv.conv_grad_weight(x, w.shape, y, **given)
    np.testing.assert_array_equal(numbers(dx), numbers(t))
    np.testing.assert_array_equal(numbers(dw), naive.conv_grad_weight(x.numbers, w.shape, numbers(y)))


def test_where_there_are_no_tensor_cores_float32_is_computed_in_full(launched, monkeypatch):
    x, w = normal((1, 2, 3, 4), FLOAT), normal((2, 2, 2, 2), FLOAT, 1)
    given = {"device": "cuda", "algorithm": "implicit"}
    want = numconv.plan_conv(x.shape, w.shape, **given)
    y = want.forward(x, w)
    expected = y, want.grad_input(y, w), want.grad_weight(x, y)
    monkeypatch.setattr(Simulator, "capability", lambda self, device: (7, 5))
    launched.clear()
    plan = numconv.plan_conv(x.shape, w.shape, precision="tf32", **given)
    for got, need in zip((plan.forward(x, w), plan.grad_input(y, w), plan.grad_weight(x, y)), expected, strict=True):
        np.testing.assert_array_equal(got, need)
    assert "mma" not in {module for module, _ in launched}


@pytest.mark.parametrize("dtype", ["float64", "complex64", "int32"])
def test_other_dtypes_are_computed_in_full(launched, dtype):
    x, w = values((1, 2, 3, 4), dtype), values((2, 2, 2, 2), dtype, 1)
    plan = numconv.plan_conv(x.shape, w.shape, dtype=dtype, device="cuda", algorithm="implicit", precision="tf32")
    np.testing.assert_array_equal(plan.forward(x, w), naive.conv(x, w))
    assert "mma" not in {module for module, _ in launched}
    assert mma.in_precision("tf32", np.dtype(dtype)) is implicit
    assert prod(plan.output_shape) == 12
