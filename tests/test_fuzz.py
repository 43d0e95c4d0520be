"""The fuzz itself: its oracle is the naive one's, what is wrong is found, and a few seconds of it find nothing."""

from __future__ import annotations

import json
from math import prod

import fuzz
import fuzz_checks
import gather
import naive
import numpy as np
import pytest
from conftest import BOUNDARIES, assert_same
from fuzz_cases import ALGORITHMS, PRODUCTS, Choices, draw, simpler
from hypothesis import given
from hypothesis import strategies as st
from strategies import cases

import numconv

#: A convolution of two small images, written in place.
PLAIN = {
    "product": "forward", "algorithm": "direct", "dtype": "float32", "seed": 1, "N": 2, "C": 1, "K": 2, "groups": 1,
    "size": [5, 4], "kernel": [2, 3], "stride": 1, "dilation": 1, "padding": 1, "boundary": "constant", "fill": 0,
    "flip": False, "data": "exact", "bias": False, "layouts": {"x": "negative"}, "out": "steps", "out_dtype": None,
    "via": "function",
}  # fmt: skip


# the oracle ---------------------------------------------------------------------------------------------------------


@given(case=cases(dtypes=["float64", "complex128", "int64", "uint8", "bool"]))
def test_looking_pixels_up_gives_the_sums_of_the_loops(case):
    d, size, geometry = len(case.kernel), case.x_shape[-len(case.kernel) :], case.geometry
    stride, dilation = (naive.axes_of(geometry[name], d) for name in ("stride", "dilation"))
    spelled = geometry["padding"], size, case.kernel, stride, dilation
    pairs = gather.padding_pairs(*spelled)
    assert pairs == naive.padding_pairs(*spelled)
    rows = zip(size, case.kernel, stride, dilation, pairs, strict=True)
    axes = [gather.Axis(*row, *pair) for *row, pair in rows]
    at = gather.places(axes, geometry["boundary"], geometry["flip"])
    x, w, groups, fill = case.x, case.w, geometry["groups"], geometry.get("fill_value", 0)
    images, pixels, dtype = x.reshape(-1, *x.shape[-d - 1 :]), prod(size), np.dtype(case.dtype)

    y = naive.conv(x, w, **geometry)
    assert_same(gather.narrow(gather.conv(images, w, at, groups, fill).reshape(y.shape), dtype), y, dtype)
    dy = case.dy(y.shape)
    dx = gather.transposed(dy.reshape(len(images), len(w), -1), w.conj(), at, pixels, groups)
    want = naive.conv_grad_input(x.shape, w, dy, **geometry)
    assert_same(gather.narrow(dx.reshape(x.shape), dtype), want, dtype)
    dw = gather.grad_weight(images, dy.reshape(len(images), len(w), -1), at, groups, fill)
    want = naive.conv_grad_weight(x, w.shape, dy, **geometry)
    assert_same(gather.narrow(dw.reshape(w.shape), dtype), want, dtype)
    window = {name: value for name, value in case.linear.items() if name != "groups"}
    want = naive.conv_matrix(w, size, groups=groups, **window)
    assert_same(gather.narrow(gather.matrix(w, at, pixels, groups), dtype), want, dtype)


@given(seed=st.integers(0, 2**32), index=st.integers(0, 10_000))
def test_a_case_is_made_from_the_seed_alone_and_can_be_written_down(seed, index):
    case = draw(seed, index, Choices())
    assert case == draw(seed, index, Choices())
    assert json.loads(json.dumps(case)) == case
    assert case["product"] in PRODUCTS
    assert case["algorithm"] in {"", *ALGORITHMS}
    assert case["boundary"] in BOUNDARIES
    assert all(smaller != case for smaller in simpler(case))
    assert fuzz_checks.call_of(case)


# what is found ------------------------------------------------------------------------------------------------------


def kinds(case):
    """The kinds of what is wrong."""
    return [kind for kind, _ in fuzz_checks.check(case)]


def test_nothing_is_wrong_with_a_plain_call():
    assert kinds(PLAIN) == []


def spoil(monkeypatch, change):
    """``numconv.conv`` that does something else, too."""
    honest = numconv.conv

    def conv(x, w, bias=None, *, out=None, **arguments):
        return change(honest(x, w, bias, out=out, **arguments), x, out)

    monkeypatch.setattr(numconv, "conv", conv)


def test_a_wrong_number_is_found(monkeypatch):
    def change(y, x, out):
        y[-1, -1, -1, -1] += 1
        return y

    spoil(monkeypatch, change)
    assert kinds(PLAIN) == ["values"]
    assert kinds({**PLAIN, "out": None, "data": "real", "algorithm": "auto"}) == ["values"]


def test_what_is_written_outside_is_found(monkeypatch):
    def change(y, x, out):
        whole = np.lib.stride_tricks.as_strided(out, (*out.shape[:-1], out.shape[-1] + 1), out.strides)
        whole[-1, -1, -1, -1] = 7
        return y

    spoil(monkeypatch, change)
    assert kinds(PLAIN) == ["wrote outside"]


def test_a_changed_input_is_found(monkeypatch):
    def change(y, x, out):
        x += 1
        return y

    spoil(monkeypatch, change)
    assert kinds(PLAIN) == ["input changed"]


def test_an_image_that_depends_on_others_is_found(monkeypatch):
    def change(y, x, out):
        return y * np.float32(1 + 1e-6 * (len(y) > 1))

    spoil(monkeypatch, change)
    assert kinds({**PLAIN, "out": None, "data": "real"}) == ["batch"]


def test_what_should_have_been_refused_is_found(monkeypatch):
    assert kinds({**PLAIN, "size": [1, 0], "padding": 0}) == ["refused"]
    monkeypatch.setattr(numconv, "conv", lambda *arguments, **options: np.zeros(1))
    assert kinds({**PLAIN, "size": [1, 0], "padding": 0}) == ["accepted"]


def test_a_failure_is_made_smaller(monkeypatch):
    def change(y, x, out):
        y[..., -1] += 1
        return y

    spoil(monkeypatch, change)
    small = fuzz.shrink(PLAIN, "values", 20)
    assert small["size"] == small["kernel"] == [1, 1]
    assert (small["N"], small["K"], small["padding"], small["layouts"], small["out"]) == (1, 1, 0, {}, None)


# the run ------------------------------------------------------------------------------------------------------------


def test_a_process_that_dies_is_counted_with_its_case(monkeypatch):
    monkeypatch.setattr(fuzz.Worker, "python", "sh -c 'kill -SEGV $$'")
    monkeypatch.setattr(fuzz, "SHRINKING", 0)
    said = []
    tally = fuzz.fuzz(60, 5, Choices(("col2im",)), say=said.append, cases=2)
    assert dict(tally.failures) == {("col2im", "", "crash"): 2}
    assert tally.cases.total() == 2
    for index, text in enumerate(said):
        assert "SIGSEGV" in text
        assert f"--seed 5 --first {index}" in text
        assert f"--case '{json.dumps(draw(5, index, Choices(('col2im',))))}'" in text
    assert "crash" in tally.table()


@pytest.mark.parametrize("seed", [14])
def test_some_seconds_find_nothing(seed, capsys):
    """The lane of CI runs it for longer, and with a new seed each time."""
    print(f"seed {seed}")
    tally = fuzz.fuzz(8, seed)
    assert tally.cases.total() > 0
    assert not tally.failures, capsys.readouterr().out
