"""Calls on a GPU that are captured once and replayed, over numba's simulator: the same bits as the first time."""

from __future__ import annotations

import threading

import fake_libraries
import numpy as np
import pytest
from conftest import values
from fake_libraries import Tensor
from simulator import in_simulator

import numconv

pytestmark = in_simulator

SHAPES = (2, 2, 3, 4), (2, 1, 2, 2)
GEOMETRY = {"groups": 2, "padding": ((1, 0), (0, 1)), "stride": (2, 1)}


@pytest.fixture
def torch(monkeypatch):
    """Arrays of a library that allocates, in a form of its own."""
    fake_libraries.install(monkeypatch, [])


def numbers(plan, seed):
    """x, w, bias and dY."""
    shapes = (plan.input_shape, plan.kernel_shape, (plan.geometry.K,), plan.output_shape)
    return [values(shape, plan.dtype, seed + i) for i, shape in enumerate(shapes)]


def products(plan, x, w, b, dy):
    return [
        plan.forward(x, w, b), plan.forward(x, w), plan.grad_input(dy, w), plan.grad_weight(x, dy),
        plan.transpose(dy, w),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("algorithm", "boundary", "dtype"),
    [("direct", "reflect", "int64"), ("implicit", "constant", "float16"), ("im2col", "wrap", "complex64")],
)
def test_a_replay_gives_what_a_first_call_gives(torch, algorithm, boundary, dtype):
    given = {"dtype": dtype, "device": "cuda", "algorithm": algorithm, "boundary": boundary, **GEOMETRY}
    plan = anew(numconv.plan_conv(*SHAPES, **given))
    products(plan, *map(Tensor, numbers(plan, 0)))
    captured = dict(plan._captures)
    assert len(captured) == 5
    arrays = numbers(plan, 10)
    for fresh, replayed in zip(
        products(anew(plan), *map(Tensor, arrays)), products(plan, *map(Tensor, arrays)), strict=True
    ):
        np.testing.assert_array_equal(fresh.numbers, replayed.numbers)
    assert plan._captures == captured  # no call was captured anew


def anew(plan):
    """An equal plan that has captured nothing."""
    make, arguments = plan.__reduce__()
    return make(*arguments)


def plan_and_arrays():
    plan = anew(numconv.plan_conv((1, 2, 3, 4), (2, 2, 2, 2), device="cuda", algorithm="direct", padding="same"))
    return plan, *numbers(plan, 0)


def test_new_layouts_are_captured_anew(torch):
    plan, x, w, _, _ = plan_and_arrays()
    want = plan.forward(Tensor(x), Tensor(w)).numbers
    wide = np.zeros((1, 2, 3, 8), x.dtype)
    wide[..., ::2] = x
    for layout in (wide[..., ::2], np.asfortranarray(x), x[:, ::-1].copy()[:, ::-1]):
        for _ in range(2):
            np.testing.assert_array_equal(plan.forward(Tensor(layout), Tensor(w)).numbers, want)
    assert len(plan._captures) == 4


def test_results_are_new_and_out_is_filled(torch):
    plan, x, w, _, _ = plan_and_arrays()
    x, w, out = Tensor(x), Tensor(w), Tensor(np.zeros(plan.output_shape, np.float32))
    results = [plan.forward(x, w) for _ in range(3)]
    kept = results[0].numbers.copy()
    assert not any(np.may_share_memory(a.numbers, b.numbers) for a in results for b in results if a is not b)
    for _ in range(3):
        out.numbers[...] = np.nan
        assert plan.forward(x, w, out=out) is out
        np.testing.assert_array_equal(out.numbers, kept)
    np.testing.assert_array_equal(results[0].numbers, kept)


def test_out_that_is_an_argument(torch):
    """``x`` is read to its end before ``out``, which is ``x``, is written."""
    plan, x, w, _, _ = plan_and_arrays()
    want = plan.forward(Tensor(x), Tensor(w)).numbers
    apart = Tensor(np.empty_like(x))
    for _ in range(2):
        both = Tensor(x.copy())
        plan.forward(both, Tensor(w), out=apart)
        plan.forward(both, Tensor(w), out=both)
        np.testing.assert_array_equal(both.numbers, want)
        np.testing.assert_array_equal(apart.numbers, want)


def test_one_array_twice(torch):
    """A call with one array for two arguments does not stand for calls with two."""
    plan = anew(numconv.plan_conv((1, 1, 3, 3), (1, 1, 3, 3), padding=1, device="cuda", algorithm="direct"))
    a, b = (values((1, 1, 3, 3), np.float32, seed) for seed in (1, 2))
    same, other = Tensor(a), Tensor(b)
    square = plan.forward(same, same).numbers.copy()
    want = anew(plan).forward(same, other).numbers
    np.testing.assert_array_equal(plan.forward(same, other).numbers, want)
    np.testing.assert_array_equal(plan.forward(same, same).numbers, square)


def test_threads_capture_and_replay_their_own(torch, monkeypatch):
    from numconv.cuda.driver import Simulator

    one, launch = threading.Lock(), Simulator.launch

    def alone(*arguments):  # the simulator runs one kernel at a time
        with one:
            launch(*arguments)

    monkeypatch.setattr(Simulator, "launch", alone)
    plan, *_ = plan_and_arrays()
    wrong = []

    def work(seed):
        x, w, b, _ = numbers(plan, seed)
        want = anew(plan).forward(Tensor(x), Tensor(w), Tensor(b)).numbers
        got = [plan.forward(Tensor(x), Tensor(w), Tensor(b)).numbers for _ in range(5)]
        wrong.extend(seed for y in got if not np.array_equal(y, want))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_error_leaves_nothing_behind(torch, monkeypatch):
    from numconv.cuda import places

    plan, x, w, _, _ = plan_and_arrays()
    with monkeypatch.context() as now:
        now.setattr(places.Torch, "allocate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            plan.forward(Tensor(x), Tensor(w))
    assert places.captured.capture is None and not plan._captures
    want = plan.forward(Tensor(x), Tensor(w)).numbers.copy()
    with monkeypatch.context() as now:
        now.setattr(places.Torch, "allocate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            plan.forward(Tensor(x), Tensor(w))
    np.testing.assert_array_equal(plan.forward(Tensor(x), Tensor(w)).numbers, want)


def test_a_call_within_a_call_is_no_part_of_it(torch, monkeypatch):
    """A signal's handler, or what collects garbage, may call while another call is captured."""
    from numconv.cuda import places

    plan, x, w, _, _ = plan_and_arrays()
    inner, allocate, given = anew(plan), places.Torch.allocate, (Tensor(2 * x), Tensor(w))
    want = anew(plan).forward(Tensor(x), Tensor(w)).numbers.copy()
    nested = []

    def interrupted(self, shape, dtype):
        if not nested:
            nested.append(None)
            nested[0] = inner.forward(*given).numbers.copy()
        return allocate(self, shape, dtype)

    with monkeypatch.context() as now:
        now.setattr(places.Torch, "allocate", interrupted)
        np.testing.assert_array_equal(plan.forward(Tensor(x), Tensor(w)).numbers, want)
    np.testing.assert_array_equal(nested[0], 2 * want)
    assert not plan._captures
    for _ in range(2):
        np.testing.assert_array_equal(plan.forward(Tensor(x), Tensor(w)).numbers, want)
    assert len(plan._captures) == 1


def test_where_a_result_begins_is_part_of_a_layout(torch):
    """Four numbers are stored at once only where they begin at 16 bytes: a replay elsewhere would be a fault."""
    plan, x, w, _, _ = plan_and_arrays()
    n = int(np.prod(plan.output_shape))
    room = np.zeros(n + 4, plan.dtype)
    want = anew(plan).forward(Tensor(x), Tensor(w)).numbers
    for begin in (0, 1, 4):
        out = Tensor(room[begin : begin + n].reshape(plan.output_shape))
        plan.forward(Tensor(x), Tensor(w), out=out)
        np.testing.assert_array_equal(out.numbers, want)
    assert len(plan._captures) == 2
