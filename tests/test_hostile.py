"""Every argument of everything public takes every hostile value: a right result or an error of that argument, soon."""

from __future__ import annotations

import faulthandler
import re
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hostile_cases as cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numconv as nc
from numconv._indexing import position, source
from numconv.cpu.kernel2row import entries_along

CALLS = cases.calls()

#: CPU seconds that a call may take where nothing is compiled, and after which it is ended.
SOON, END = 1.0, 40.0


class Endless(BaseException):
    """A call that does not come back."""


def end(*_: Any) -> None:
    raise Endless


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Python's code is interrupted; compiled code that does not come back ends the process, and says where."""
    before = signal.signal(signal.SIGPROF, end)
    faulthandler.dump_traceback_later(600, exit=True)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        faulthandler.cancel_dump_traceback_later()


def outcome(function: Any, arguments: dict[str, Any]) -> tuple[Any, BaseException | None, float]:
    """What a call gives or raises, and the CPU seconds it takes."""
    begin = time.process_time()
    try:
        with warnings.catch_warnings(), ended_after(END):
            warnings.simplefilter("ignore")
            result, error = function(**arguments), None
    except (Exception, Endless) as raised:
        result, error = None, raised
    return result, error, time.process_time() - begin


def complaint(name: str, argument: str, hostile: str) -> str:
    """What is wrong with a call whose argument is a hostile value; empty if nothing is."""
    function, good = CALLS[name]
    make = cases.HOSTILE[hostile]
    result, error, seconds = outcome(function, good | {argument: make()})
    if seconds > SOON and not isinstance(error, Endless):  # the first of a dtype is compiled
        result, error, seconds = outcome(function, good | {argument: make()})
    if seconds > SOON:
        return f"takes {seconds:.1f} s"
    if error is None:
        return wrong_result(name, argument, hostile, result)
    text = str(error)
    if isinstance(error, MemoryError):
        return ""
    if name == "explanation.entry" and isinstance(error, IndexError):
        return ""  # as its docstring says, in the manner of NumPy
    if not isinstance(error, (ValueError, TypeError)):
        return f"raises {type(error).__name__}: {text[:200]}"
    if len(text) > 600 or "\n" in text or "array([" in text:
        return f"has a long message: {text[:200]}…"
    # a value that is good in itself may not fit the others, of which one is named then
    named = good if hostile in cases.SAME or issubclass(type(make()), (list, tuple, np.ndarray)) else (argument,)
    if not any(re.search(rf"\b{each}\b", text) for each in named):
        return f"names no argument: {text[:300]}"
    return ""


def wrong_result(name: str, argument: str, hostile: str, result: Any) -> str:
    """What is wrong with a result: there must be none, or that of the plain value."""
    if argument in cases.ALLOWED.get(hostile, ()):
        return ""
    if hostile not in cases.SAME:
        return f"is accepted, with the result {result!r:.100}"
    function, good = CALLS[name]
    plain, error, _ = outcome(function, good | {argument: cases.SAME[hostile]})
    if error is not None:
        return f"is accepted, but {cases.SAME[hostile]!r:.100} is not: {error}"
    return "" if same(result, plain) else f"gives {result!r:.100}, and {cases.SAME[hostile]!r:.50} {plain!r:.100}"


def same(a: Any, b: Any) -> bool:
    """Whether two results of a call are equal, whatever a call gives."""
    if hasattr(a, "toarray"):
        a, b = a.toarray(), b.toarray()
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (np.ndarray, float)):
        return a.shape == b.shape and np.array_equal(a, b, equal_nan=True) if isinstance(a, np.ndarray) else True
    return type(a) is type(b)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer of POSIX")
@pytest.mark.parametrize("name", CALLS)
def test_a_hostile_value_ends_soon_in_a_right_result_or_an_error_that_names_it(name):
    function, good = CALLS[name]
    _, error, _ = outcome(function, good)
    assert error is None, f"the good call fails: {error!r}"
    wrong = [
        f"{name}({argument}={hostile}) {what}"
        for argument in good for hostile in cases.values_for(argument) if (what := complaint(name, argument, hostile))
    ]  # fmt: skip
    assert not wrong, "\n".join([f"{len(wrong)} of them", *wrong[:20]])


def test_every_public_function_and_argument_is_called():
    for name in nc.__all__:
        assert name in CALLS or name in ("ConvPlan", "__version__", "devices"), name


# arrays of many axes --------------------------------------------------------------------------------------------------

PRODUCTS = ("im2col", "kernel2row", "implicit", "direct", "fft")


@pytest.mark.parametrize("axes", [20, 29])
@pytest.mark.parametrize("algorithm", PRODUCTS)
def test_axes_of_one_pixel_cost_nothing(axes, algorithm):
    rng = np.random.default_rng(axes)
    many, few = (1,) * (axes - 2), {"algorithm": algorithm, "dtype": float, "device": "cpu", "boundary": "wrap"}
    x, w = rng.integers(-3, 4, (4, 5)).astype(float), rng.integers(-3, 4, (2, 3)).astype(float)
    plan, wide = nc.plan_convolve(x.shape, w.shape, "same", **few), nc.plan_convolve(
        many + x.shape, many + w.shape, "same", **few
    )  # fmt: skip
    X, Y = (a.reshape(many + a.shape) for a in (x, w))
    for name, arguments in {
        "forward": (x, w), "grad_input": (x, w), "grad_weight": (x, x), "transpose": (x, w), "im2col": (x,),
        "matrix": (w,), "gram_diagonal": (w,), "norm": (w,),
    }.items():  # fmt: skip
        spread = [X if a is x else Y for a in arguments]
        with ended_after(END):
            expected, got = getattr(plan, name)(*arguments), getattr(wide, name)(*spread)
        expected, got = (a.toarray() if hasattr(a, "toarray") else np.asarray(a) for a in (expected, got))
        np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=1e-12, err_msg=name)
    assert wide.explain_choice()
    np.testing.assert_allclose(nc.convolve(X, Y, algorithm=algorithm).reshape(5, 7), nc.convolve(x, w), atol=1e-12)


@pytest.mark.parametrize("axes", [30, 33, 61, 62, 63, 64])
def test_more_axes_than_there_may_be_are_refused_by_name(axes):
    one, shape = np.ones((1,) * axes), (1,) * axes
    calls = {
        "convolve": lambda: nc.convolve(one, one), "fft": lambda: nc.convolve(one, one, algorithm="fft"),
        "im2col": lambda: nc.im2col(one, shape), "kernel2row": lambda: nc.kernel2row(one, shape),
        "plan": lambda: nc.plan_convolve(shape, shape), "normalized": lambda: nc.normalized_convolve(one, one),
    }  # fmt: skip
    for call in calls.values():
        with pytest.raises(ValueError, match=r"(w|kernel_shape|kernel_size) must have at most 29 spatial axes, got"):
            call()
    np.testing.assert_array_equal(nc.convolve(one, np.ones(1), axes=axes - 1), one)  # the others are rows


# what ended in other errors -------------------------------------------------------------------------------------------


def test_the_transpose_of_a_plan_of_plain_arrays():
    rng = np.random.default_rng(1)
    for size, kernel in (((7,), (3,)), ((5, 6), (3, 2)), ((4, 3, 5), (2, 2, 3))):
        plan = nc.plan_convolve(size, kernel, dtype=float)
        y, w = rng.standard_normal(plan.output_shape), rng.standard_normal(kernel)
        expected = (plan.matrix(w).T @ y.ravel()).reshape(size)
        np.testing.assert_allclose(plan.transpose(y, w), expected)
        np.testing.assert_allclose(plan.transpose(y, w, [2.0]), expected + 2)


@pytest.mark.parametrize("weight", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("algorithm", ["auto", "fft"])
def test_weights_of_an_average_must_be_finite(weight, algorithm):
    w = [1.0, weight, 1.0]
    with pytest.raises(ValueError, match=r"\bw must have finite weights.*infinity or NaN"):
        nc.normalized_convolve(np.ones(9), w, algorithm=algorithm)
    with pytest.raises(ValueError, match=r"\bw must have finite weights.*infinity or NaN"):
        nc.normalized_operator(np.zeros(9, bool), w)
    with pytest.raises(ValueError, match=r"\bw must have finite weights.*too large"):
        nc.normalized_convolve(np.ones(9), [1e308, 1e308, 1e308])


def test_a_tolerance_below_what_doubles_resolve_counts_as_that():
    plan = nc.plan_convolve((40,), (3,), dtype=float)
    w = [1.0, -2, 1]
    for tol in (0, 1e-300, np.float32(1e-20)):
        assert plan.norm(w, tol=tol) == pytest.approx(np.linalg.norm(plan.matrix(w).toarray(), 2), rel=1e-9)


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError, RecursionError, MemoryError])
def test_what_an_object_raises_is_an_error_of_its_argument_with_that_as_its_cause(error):
    def fails(*_: Any, **__: Any) -> Any:
        raise error("of mine")

    expected = error if error in (ValueError, MemoryError) else TypeError
    for name, method in (("x", "__array__"), ("w", "__array__"), ("stride", "__index__"), ("fill_value", "__float__")):
        mine = cases.raising(**{method: fails})
        arguments = {"x": np.ones((3, 3)), "w": np.ones((2, 2))} | {name: mine}
        with pytest.raises(expected, match=rf"\b{name} must be") as caught:
            nc.convolve(**arguments)
        assert type(caught.value) is expected
        assert isinstance(caught.value.__cause__, error)


def test_numbers_of_other_libraries_are_exact():
    whole, pixels = 2**60 - 1, np.ones((3,), np.int64)
    for number in (cases.Decimal(whole), cases.Fraction(whole)):
        np.testing.assert_array_equal(nc.im2col(pixels, 3, padding=1, fill_value=number)[0, -1], whole)
        assert nc.convolve(pixels, [1, 1], fill_value=number)[0] == whole + 1
    with pytest.raises(ValueError, match=r"fill_value.*int64"):
        nc.convolve(pixels, [1, 1], fill_value=cases.Fraction(1, 2))


# sizes that no machine holds ------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(data=st.data())
def test_the_entries_of_an_axis_are_counted_without_walking_along_it(data):
    k, stride = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    dilation, flip = data.draw(st.integers(1, 7)), data.draw(st.booleans())
    n, pads = data.draw(st.integers(1, 12)), data.draw(st.tuples(st.integers(0, 40), st.integers(0, 40)))
    boundary = data.draw(st.sampled_from(["constant", "edge", "reflect", "symmetric", "wrap"]))
    if n + sum(pads) <= dilation * (k - 1):
        return
    g = nc.plan_conv(
        (1, n), (1, 1, k), stride=stride, dilation=dilation, padding=(pads,), boundary=boundary, flip=flip, dtype=float
    ).geometry
    (axis,), (out,) = g.axis_rows, g.out
    met = [{source(position(o, t, *axis[3:]), n, g.boundary_code) for t in range(k)} - {-1} for o in range(out)]
    assert entries_along(axis, g.boundary_code) == sum(map(len, met))


@pytest.mark.parametrize("boundary", ["constant", "edge", "wrap"])
def test_what_a_plan_says_of_sizes_that_no_machine_holds_comes_at_once(boundary):
    shapes = [((10**9,), (3,)), ((10**9, 10**8), (1, 3)), ((10**6,) * 2, (99, 99)), ((10**5,) * 3, (1, 3, 3))]
    for size, kernel in shapes:
        plan = nc.plan_conv(
            (1, *size), (1, 1, *kernel), padding=[(k // 2, 10**7 if a == 0 else 0) for a, k in enumerate(kernel)],
            boundary=boundary, device="cpu", algorithm="implicit",
        )  # fmt: skip
        for ask in (plan.explain_choice, lambda: plan.nbytes("matrix"), lambda: plan.nbytes("workspace")):  # noqa: B023
            begin = time.process_time()
            ask()
            assert time.process_time() - begin < 3 * SOON
    with pytest.raises(ValueError, match=r"input_shape.*below 2\*\*60|below 2\*\*60.*input_shape"):
        nc.plan_conv((10**9,) * 3, (10**9, 10**9, 1), boundary=boundary)
