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

import numconv as nc

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
