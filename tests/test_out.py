"""``out=``: the result lands in it whatever its layout, dtype and place in memory, or an error names it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import ALGORITHMS, values

import numconv as nc

GEOMETRY: dict[str, Any] = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2)}
X, W, BIAS, Y = (2, 4, 9, 8), (6, 2, 3, 2), (6,), (2, 6, 4, 9)


class Call(NamedTuple):
    """A function with ``out=``: the shapes of its arrays, and the call."""

    shapes: dict[str, tuple[int, ...]]
    run: Callable[..., np.ndarray]


def plan(dtype=np.float64):
    return nc.plan_conv(X, W, dtype=dtype, groups=2, **GEOMETRY)


CALLS = {
    "convolve": Call({"x": (9, 8), "w": (3, 2)}, lambda x, w, **o: nc.convolve(x, w, **o)),
    "convolve-axes": Call({"x": (3, 9, 4), "w": (3, 2)}, lambda x, w, **o: nc.convolve(x, w, axes=(1, 2), **o)),
    "correlate": Call({"x": (9, 8), "w": (3, 2)}, lambda x, w, **o: nc.correlate(x, w, "same", **o)),
    "conv": Call(
        {"x": X, "w": W, "bias": BIAS}, lambda x, w, bias, **o: nc.conv(x, w, bias, groups=2, **GEOMETRY, **o)
    ),
    "conv1d": Call({"x": (4, 9), "w": (6, 4, 3)}, lambda x, w, **o: nc.conv1d(x, w, **o)),
    "conv2d": Call({"x": X, "w": (6, 4, 3, 3)}, lambda x, w, **o: nc.conv2d(x, w, padding=1, **o)),
    "conv3d": Call({"x": (1, 2, 5, 6, 4), "w": (3, 2, 2, 3, 2)}, lambda x, w, **o: nc.conv3d(x, w, **o)),
    "conv_grad_input": Call(
        {"w": W, "dy": Y}, lambda w, dy, **o: nc.conv_grad_input(X, w, dy, groups=2, **GEOMETRY, **o)
    ),
    "conv_grad_weight": Call(
        {"x": X, "dy": Y}, lambda x, dy, **o: nc.conv_grad_weight(x, W, dy, groups=2, **GEOMETRY, **o)
    ),
    "conv_transpose": Call(
        {"x": (2, 6, 4, 5), "w": (6, 2, 3, 2), "bias": (4,)},
        lambda x, w, bias, **o: nc.conv_transpose(x, w, bias, stride=2, padding=1, groups=2, **o),
    ),
    "col2im": Call({"cols": (2, 24, 36)}, lambda cols, **o: nc.col2im(cols, X, (3, 2), **GEOMETRY, **o)),
    "im2col": Call({"x": X}, lambda x, **o: nc.im2col(x, (3, 2), **GEOMETRY, **o)),
    "im2col-plain": Call({"x": (9, 8)}, lambda x, **o: nc.im2col(x, (3, 2), boundary="wrap", **GEOMETRY, **o)),
    "conv_local": Call(
        {"x": (1, 2, 5, 6), "w": (3, 5, 3, 2, 3, 2), "bias": (3,)},
        lambda x, w, bias, **o: nc.conv_local(x, w, bias, **o),
    ),
    "conv_local_grad_input": Call(
        {"w": (3, 5, 3, 2, 3, 2), "dy": (1, 3, 3, 5)},
        lambda w, dy, **o: nc.conv_local_grad_input((1, 2, 5, 6), w, dy, **o),
    ),
    "conv_local_grad_weight": Call(
        {"x": (1, 2, 5, 6), "dy": (1, 3, 3, 5)},
        lambda x, dy, **o: nc.conv_local_grad_weight(x, (3, 5, 3, 2, 3, 2), dy, **o),
    ),
    "normalized_convolve": Call({"x": (9, 8), "w": (3, 2)}, lambda x, w, **o: nc.normalized_convolve(x, w + 5, **o)),
    "plan.forward": Call(
        {"x": X, "w": W, "bias": BIAS}, lambda x, w, bias, **o: plan(x.dtype).forward(x, w, bias, **o)
    ),
    "plan.grad_input": Call({"dy": Y, "w": W}, lambda dy, w, **o: plan(dy.dtype).grad_input(dy, w, **o)),
    "plan.grad_weight": Call({"x": X, "dy": Y}, lambda x, dy, **o: plan(x.dtype).grad_weight(x, dy, **o)),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)

#: "auto" may differ from run to run only by the rounding of a transform.
EXACT_ENOUGH = 1e-12


def arrays_for(call: Call, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    return {name: values(shape, dtype, seed=i) for i, (name, shape) in enumerate(call.shapes.items())}


def close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=EXACT_ENOUGH, atol=EXACT_ENOUGH)


def test_every_function_with_out_is_tested_here():
    functions = [getattr(nc, name) for name in nc.__all__ if inspect.isfunction(getattr(nc, name))]
    with_out = {f.__name__ for f in functions if "out" in inspect.signature(f).parameters}
    tested = {name.split("-")[0] for name in CALLS} | {"csr_matvec", "csr_rmatvec"}
    assert with_out - tested == set()


@every_call
def test_out_is_returned_and_holds_the_result(call):
    arrays = arrays_for(call)
    expected = call.run(**arrays)
    out = np.full(expected.shape, np.nan)
    assert call.run(**arrays, out=out) is out
    close(out, expected)


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_every_algorithm_overwrites_all_of_out(algorithm):
    x, w, bias = values((2, 5, 9, 8)), values((7, 5, 3, 3)), values((7,))
    expected = nc.conv(x, w, bias, padding=1, algorithm=algorithm)
    out = np.full(expected.shape, np.nan)
    assert nc.conv(x, w, bias, padding=1, algorithm=algorithm, out=out) is out
    np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-10)


# layouts of out -------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "every-second": lambda shape: np.full((*shape[:-1], 2 * shape[-1]), np.nan)[..., ::2],
    "inner-block": lambda shape: np.full([n + 2 for n in shape], np.nan)[tuple(slice(1, n + 1) for n in shape)],
    "negative-strides": lambda shape: np.full(shape, np.nan)[(slice(None, None, -1),) * len(shape)],
    "fortran": lambda shape: np.full(shape, np.nan, order="F"),
    "swapped-axes": lambda shape: np.full((shape[-1], *shape[:-1]), np.nan).transpose(*range(1, len(shape)), 0),
    "big-endian": lambda shape: np.full(shape, np.nan, ">f8"),
    "unaligned": lambda shape: np.zeros(8 * prod(shape) + 1, "u1")[1:].view("f8").reshape(shape),
    "packed-struct-field": lambda shape: np.zeros(shape, [("tag", "i1"), ("value", "f8")])["value"],
}


@every_call
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_out_of_any_layout_is_filled_and_nothing_around_it(call, layout):
    arrays = arrays_for(call)
    expected = call.run(**arrays)
    out = layout(expected.shape)
    base = out
    while base.base is not None:
        base = base.base
    mine = np.zeros(base.nbytes, bool)  # which bytes of the buffer belong to out
    address = out.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    for offset in np.ndindex(out.shape):
        start = address + sum(i * s for i, s in zip(offset, out.strides, strict=True))
        mine[start : start + out.itemsize] = True
    around = base.reshape(-1, order="A").view("u1")[~mine].copy()
    assert call.run(**arrays, out=out) is out
    close(out, expected)
    np.testing.assert_array_equal(base.reshape(-1, order="A").view("u1")[~mine], around)


def test_out_may_be_a_memory_map(tmp_path):
    x, w = values((30, 40)), values((3, 3))
    out = np.memmap(tmp_path / "out.bin", np.float64, mode="w+", shape=(9, 28 * 38))
    assert nc.im2col(x, 3, out=out) is out
    out.flush()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "out.bin").reshape(out.shape), nc.im2col(x, 3))
    out = np.memmap(tmp_path / "y.bin", np.float64, mode="w+", shape=(28, 38))
    assert nc.convolve(x, w, "valid", out=out) is out
    close(np.asarray(out), nc.convolve(x, w, "valid"))


# out that overlaps the inputs -----------------------------------------------------------------------------------------


def place(buffer: np.ndarray, shape: tuple[int, ...], start: int, step: int) -> np.ndarray:
    """A view of ``shape`` over a flat buffer from ``start`` on: every ``step``-th value, backwards for a negative."""
    return buffer[start:][: abs(step) * prod(shape)][::step].reshape(shape)


OVERLAPS = {
    "same-start": (0, 1),
    "shifted-by-one": (1, 1),
    "shifted-by-a-few": (17, 1),
    "reversed": (0, -1),
    "reversed-and-shifted": (3, -1),
    "twice-as-wide": (0, 2),
}


@pytest.mark.parametrize(("start", "step"), OVERLAPS.values(), ids=OVERLAPS)
@pytest.mark.parametrize(
    ("call", "name"),
    [pytest.param(call, name, id=f"{which}-{name}") for which, call in CALLS.items() for name in call.shapes],
)
def test_out_that_overlaps_an_input_is_right_or_refused(call, name, start, step):
    arrays = arrays_for(call)
    expected = call.run(**arrays)
    size = prod(call.shapes[name])
    for shift_input in (0, 20):  # the input starts before out or behind it
        buffer = np.full(40 + size + abs(step) * expected.size, 99.0)
        shared = buffer[shift_input : shift_input + size].reshape(call.shapes[name])
        shared[...] = arrays[name]
        out = place(buffer, expected.shape, start, step)
        assert np.may_share_memory(shared, out) or (shift_input == 0 and size <= start)
        try:
            result = call.run(**{**arrays, name: shared}, out=out)
        except ValueError as refusal:
            assert "out" in str(refusal)
            np.testing.assert_array_equal(shared, arrays[name])
        else:
            assert result is out
            close(out, expected)


def test_filtering_in_place_works_as_the_result_says():
    x, w = values((40, 50)), values((3, 3))
    expected = nc.convolve(x, w, "same")
    try:
        nc.convolve(x, w, "same", out=x)
    except ValueError as refusal:
        assert "out" in str(refusal)
    else:
        close(x, expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_algorithm_is_silently_wrong_in_place(algorithm):
    x, w = values((2, 5, 20, 19)), values((5, 5, 3, 3))
    expected = nc.conv(x, w, padding=1, algorithm=algorithm)
    try:
        nc.conv(x, w, padding=1, algorithm=algorithm, out=x)
    except ValueError as refusal:
        assert "out" in str(refusal)
    else:
        np.testing.assert_allclose(x, expected, rtol=1e-10, atol=1e-10)


@every_call
def test_out_interleaved_with_an_input_is_no_overlap(call):
    arrays = arrays_for(call)
    expected = call.run(**arrays)
    name, shape = next(iter(call.shapes.items()))
    buffer = np.zeros(2 * max(expected.size, prod(shape)))
    even = buffer[::2][: prod(shape)].reshape(shape)
    odd = buffer[1::2][: expected.size].reshape(expected.shape)
    even[...] = arrays[name]
    assert call.run(**{**arrays, name: even}, out=odd) is odd
    close(odd, expected)
    np.testing.assert_array_equal(even, arrays[name])


# wrong outs -----------------------------------------------------------------------------------------------------------


@every_call
def test_out_of_a_wrong_shape_is_refused_with_both_shapes(call):
    arrays = arrays_for(call)
    shape = call.run(**arrays).shape
    for wrong in [(*shape[:-1], shape[-1] + 1), shape[1:], (1, *shape), (shape[-1], *shape[:-1], 1)]:
        out = np.full(wrong, 5.0)
        with pytest.raises(ValueError, match=r"\bout\b") as error:
            call.run(**arrays, out=out)
        for number in {*wrong, *shape}:
            assert str(number) in str(error.value)
        assert (out == 5).all()


@every_call
def test_out_is_not_broadcast(call):
    arrays = arrays_for(call)
    shape = call.run(**arrays).shape
    with pytest.raises(ValueError, match=r"\bout\b"):
        call.run(**arrays, out=np.broadcast_to(np.zeros(shape[-1]), shape))


@every_call
def test_read_only_out_is_refused(call):
    arrays = arrays_for(call)
    out = np.zeros(call.run(**arrays).shape)
    out.setflags(write=False)
    with pytest.raises(ValueError, match=r"\bout\b.*(read-?only|writ)"):
        call.run(**arrays, out=out)
    assert not out.any()


@every_call
@pytest.mark.parametrize("dtype", ["int64", "bool", "U8"])
def test_out_that_cannot_hold_floats_is_refused_with_both_dtypes(call, dtype):
    arrays = arrays_for(call)
    out = np.zeros(call.run(**arrays).shape, dtype)
    with pytest.raises(TypeError, match=r"\bout\b") as error:
        call.run(**arrays, out=out)
    assert "float64" in str(error.value)
    assert np.dtype(dtype).name in str(error.value) or str(np.dtype(dtype)) in str(error.value)


@every_call
@pytest.mark.parametrize("dtype", ["float32", "longdouble", "complex128", "object"])
def test_out_of_another_dtype_that_holds_floats_is_filled_or_refused_by_name(call, dtype):
    arrays = arrays_for(call)
    expected = call.run(**arrays)
    out = np.full(expected.shape, 5, dtype)
    try:
        result = call.run(**arrays, out=out)
    except TypeError as refusal:
        assert "out" in str(refusal)
        assert "float64" in str(refusal)
        assert (out == 5).all()
    else:
        assert result is out
        np.testing.assert_allclose(out.astype(complex), expected, rtol=1e-6, atol=1e-6)


@every_call
@pytest.mark.parametrize(
    "make", [np.ndarray.tolist, lambda a: (a,), lambda a: "out", lambda a: 3.0], ids=["list", "tuple", "str", "float"]
)
def test_out_that_is_no_array_is_refused_not_lost(call, make):
    arrays = arrays_for(call)
    expected = call.run(**arrays)
    with pytest.raises(TypeError, match=r"\bout\b"):
        call.run(**arrays, out=make(expected))


@every_call
def test_a_masked_out_is_refused(call):
    arrays = arrays_for(call)
    shape = call.run(**arrays).shape
    with pytest.raises(TypeError, match=r"\bout\b"):
        call.run(**arrays, out=np.ma.masked_array(np.zeros(shape), mask=np.ones(shape, bool)))


def test_integer_results_go_into_integer_outs():
    x, w = values((2, 4, 9, 8), np.int16), values((6, 4, 3, 2), np.int16)
    expected = nc.conv(x, w)
    out = np.full(expected.shape, -1, np.int16)
    assert nc.conv(x, w, out=out) is out
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(TypeError, match=r"\bout\b"):
        nc.conv(x, w, out=np.zeros(expected.shape, np.uint16))  # not same_kind: signs would be lost


def test_out_for_an_empty_batch_is_returned_untouched():
    out = np.zeros((0, 6, 7, 7))
    assert nc.conv(np.zeros((0, 4, 9, 8)), np.zeros((6, 4, 3, 2)), out=out) is out
    out = np.full((2, 6, 7, 7), np.nan)
    assert nc.conv(np.zeros((2, 0, 9, 8)), np.zeros((6, 0, 3, 2)), out=out) is out
    assert not out.any()
