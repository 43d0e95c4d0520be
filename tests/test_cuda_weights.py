"""The kernels for the gradient of the weights, each against the naive oracle, in numba's simulator.

``test_cuda_simulator.py`` starts them; by hand it is ``NUMBA_ENABLE_CUDASIM=1 pytest tests/test_cuda_weights.py``.
"""

from __future__ import annotations

from math import prod

import naive
import numpy as np
import pytest
from conftest import BOUNDARIES, values
from hypothesis import given
from hypothesis import strategies as st
from simulator import PLACE, empty, in_simulator, numbers, simulated

from numconv.geometry import conv_geometry

pytestmark = [in_simulator, pytest.mark.filterwarnings("ignore:.*overflow encountered:RuntimeWarning")]  # whole numbers

if simulated:
    from numconv.cuda import direct, direct_weights, implicit, implicit_weights
    from numconv.cuda.places import Place

TILES, WINDOWS = ("LARGE", "WIDE", "SMALL"), ("ONE", "ANY", "ANY_FOUR", "THREE", "THREE_FOUR", "FIVE", "SEVEN")


def gradient(room, x_shape, w_shape, dtype="float32", **arguments):
    """What a room computes, and what it should."""
    g, dtype = conv_geometry(x_shape, w_shape, **arguments), np.dtype(dtype)
    x, dy = values(g.input_shape, dtype), values(g.output_shape, dtype, 3)
    dw = empty(g.kernel_shape, dtype)
    fill = dtype.type(g.fill_value)
    room.grad_weight(PLACE.send(x), PLACE.send(dy), g.axes, g.boundary_code, fill, dw)
    want = naive.conv_grad_weight(x, g.kernel_shape, dy, **{"flip": False, **arguments})
    return numbers(dw), naive.narrow(want, dtype)


@pytest.fixture
def launched(monkeypatch):
    """Grids of the kernels of a tile or a window, in their order."""
    grids, launch = [], Place.launch
    monkeypatch.setattr(Place, "launch", lambda place, kernel, blocks, arguments: (
        grids.append((kernel.__name__, blocks)), launch(place, kernel, blocks, arguments),
    ))  # fmt: skip
    return grids


@pytest.fixture
def many_parts(monkeypatch):
    """As if a step or a pixel were work enough for a block, and some blocks filled a GPU."""
    monkeypatch.setattr(implicit_weights, "STEPS", 1)
    monkeypatch.setattr(direct_weights, "PIXELS", 1)
    monkeypatch.setattr(direct_weights, "BLOCKS", 24)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("x_shape", "w_shape", "arguments"), [
    ((3, 4, 5, 5), (70, 4, 3, 3), {}),  # nine pixels an image: a step goes through two of them
    ((1, 12, 4, 11), (5, 6, 2, 3), {"groups": 1, "stride": (1, 2), "padding": 1, "boundary": "wrap"}),
], ids=["rows", "columns"])  # fmt: skip
def test_every_tile(monkeypatch, many_parts, launched, tile, x_shape, w_shape, arguments):
    """More rows, columns and pixels than a tile has, none of them a multiple of its size, in some parts."""
    arguments = {**arguments, "groups": x_shape[1] // w_shape[1]}
    if arguments["groups"] > 1:
        w_shape = (2 * w_shape[0], *w_shape[1:])
    monkeypatch.setattr(implicit_weights, "SMS", 8)
    chosen = getattr(implicit_weights, tile)
    monkeypatch.setattr(implicit_weights, "tile_for", lambda *_: chosen)
    got, want = gradient(implicit, x_shape, w_shape, **arguments)
    np.testing.assert_array_equal(got, want)
    Kg, Q, G = w_shape[0] // arguments["groups"], prod(w_shape[1:]), arguments["groups"]
    tiles = -(-Kg // chosen.rows) * -(-Q // chosen.columns) * G
    (name, blocks), (then, _) = launched
    assert (name, then) == ("grad_weight", "_add_parts") and blocks % tiles == 0 and blocks > tiles > 1


#: A kernel of each width, and what makes it the one that is taken.
CHOICES = {
    "ONE": ((2, 3, 4, 18), (3, 1, 2, 3), {"groups": 3}),
    "ANY": ((2, 3, 4, 18), (3, 1, 2, 4), {"groups": 3}),
    "ANY_FOUR": ((1, 4, 5, 20), (10, 2, 2, 2), {"groups": 2}),
    "THREE": ((2, 3, 6, 19), (3, 1, 3, 3), {"groups": 3}),
    "THREE_FOUR": ((1, 4, 5, 7), (12, 2, 3, 3), {"groups": 2}),
    "FIVE": ((1, 2, 6, 24), (2, 1, 5, 5), {"groups": 2}),
    "SEVEN": ((1, 2, 8, 9), (4, 1, 7, 7), {"groups": 2}),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_every_window(monkeypatch, many_parts, name):
    """Lines longer than a block and short ones, sums of some channels of which the last are fewer, in some parts."""
    x_shape, w_shape, arguments = CHOICES[name]
    kernel, seen = getattr(direct_weights, name).grad_weight, []
    monkeypatch.setattr(Place, "launch", lambda place, *a, launch=Place.launch: (seen.append(a[0]), launch(place, *a)))
    if name == "ONE":  # for planes so large that 32 bits do not count the pixels of two
        monkeypatch.setattr(direct_weights, "FAR", 1)
    for padding, boundary in ((1, "constant"), (2, "symmetric")):
        got, want = gradient(direct, x_shape, w_shape, padding=padding, boundary=boundary, **arguments)
        np.testing.assert_array_equal(got, want)
    assert seen[0] is kernel


@pytest.mark.parametrize("room", ["direct", "implicit"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_every_boundary(room, boundary):
    room = {"direct": direct, "implicit": implicit}[room]
    arguments = {"boundary": boundary, "padding": ((3, 4), (5, 2)), "stride": (2, 1), "dilation": (1, 2), "flip": True}
    np.testing.assert_array_equal(*gradient(room, (2, 2, 4, 3), (3, 2, 2, 3), **arguments))


@pytest.mark.parametrize("room", ["direct", "implicit"])
@pytest.mark.parametrize("dtype", ["float16", "float64", "complex64", "complex128", "int64", "uint8", "bool"])
@pytest.mark.parametrize("w_shape", [(4, 1, 3, 3), (2, 1, 2, 7)], ids=["3x3", "2x7"])
def test_dtypes(room, dtype, w_shape):
    """Complex numbers are conjugated, and wide ones have kernels that sum few of them at once."""
    room = {"direct": direct, "implicit": implicit}[room]
    np.testing.assert_array_equal(*gradient(room, (1, 2, 5, 8), w_shape, dtype, groups=2, padding=1))


@pytest.mark.parametrize("room", ["direct", "implicit"])
def test_a_fill_that_no_tap_meets_is_no_part_of_a_sum(room):
    """Nine pixels are no whole steps: what a thread has beyond them is zero, for infinity times zero is not."""
    room = {"direct": direct, "implicit": implicit}[room]
    got, want = gradient(room, (1, 2, 5, 5), (3, 2, 3, 3), fill_value=np.inf)
    np.testing.assert_array_equal(got, want)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("room", ["direct", "implicit"])
def test_long_sums_are_added_up_part_by_part(monkeypatch, room):
    """One behind the other, ones are lost beside 2**24; those of other spans or threads are not."""
    monkeypatch.setattr(implicit_weights, "SPAN", 16)
    room = {"direct": direct, "implicit": implicit}[room]
    x, dw = np.ones((1, 1, 160), np.float32), empty((1, 1, 1), np.float32)
    x[0, 0, 0] = 1 << 24
    g = conv_geometry(x.shape, (1, 1, 1))
    room.grad_weight(PLACE.send(x), PLACE.send(np.ones_like(x)), g.axes, 0, np.float32(0), dw)
    assert numbers(dw).item() >= (1 << 24) + 96


@given(st.integers(1, 4000), st.sampled_from([2, 3]), st.integers(1, 1 << 24), st.integers(4, 1 << 25))
def test_parts_fill_a_gpu(blocks, resident, steps, nbytes):
    """In full rounds of its multiprocessors, where there is work enough and memory for the sums."""
    at_once = resident * implicit_weights.SMS
    parts = implicit_weights.parts_of(blocks, resident, steps, nbytes)
    assert 1 <= parts <= max(1, 8 * at_once // blocks, steps * implicit_weights.DEPTH >> 30)
    if parts > 1 and steps * implicit_weights.DEPTH < 1 << 30:
        assert parts * nbytes <= implicit_weights.PARTS and steps // parts >= implicit_weights.STEPS
    if blocks <= at_once and steps >= 1 << 17 and nbytes <= 1 << 12:
        rounds = -(-parts * blocks // at_once)
        assert parts * blocks > 0.75 * rounds * at_once


@pytest.mark.parametrize(("x_shape", "w_shape", "groups"), [
    ((2, 4, 40, 41), (4, 1, 3, 3), 4), ((1, 3, 60, 70), (5, 3, 5, 5), 1), ((8, 2, 9, 9), (2, 2, 3, 3), 1),
], ids=["depthwise", "few", "batch"])  # fmt: skip
@pytest.mark.parametrize("room", ["direct", "implicit"])
def test_memory_of_the_parts(monkeypatch, room, x_shape, w_shape, groups):
    """All that is taken is what ``workspace_for_weights`` says."""
    room, taken = {"direct": direct, "implicit": implicit}[room], []
    g, dtype = conv_geometry(x_shape, w_shape, groups=groups), np.dtype(np.float32)
    x, dy, dw = (empty(shape, dtype) for shape in (g.input_shape, g.output_shape, g.kernel_shape))
    monkeypatch.setattr(Place, "launch", lambda *_: None)
    monkeypatch.setattr(Place, "empty", lambda place, shape, dtype, new=Place.empty: (
        taken.append(prod(shape) * dtype.itemsize), new(place, shape, dtype))[1])  # fmt: skip
    room.grad_weight(x, dy, g.axes, 0, dtype.type(0), dw)
    assert 0 < sum(taken) <= room.workspace_for_weights(g, dtype)
