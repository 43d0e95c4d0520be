"""A call asks once for all the memory that it takes at its peak, before it takes or does anything.

The table in ``peak_cases.py`` is measured by ``tracemalloc``, to which NumPy reports what it takes and numba what
kernels take.
"""

from __future__ import annotations

import inspect
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
import peak_cases
import pytest
from hypothesis import given, settings
from strategies import cases

import numconv as nc
from numconv import _memory, plan
from numconv.api import plain

#: What estimates may be off by: bytes of Python's own objects, tables and the lines of a thread, which no array
#: grows with, and a tenth.
FIXED, PART = 1_000_000, 0.1


@pytest.fixture
def asked(monkeypatch) -> Iterator[list[int]]:
    """What is asked for, in order; of a call within another nothing. However little it is."""
    found: list[int] = []
    require = _memory.require

    def record(nbytes: int, what: str, instead: str, free: Callable[[], int] | None = None) -> None:
        if not _memory._spare.asked:
            found.append(nbytes)
        require(nbytes, what, instead, free)

    monkeypatch.setattr(_memory, "require", record)
    monkeypatch.setattr(_memory, "ALWAYS_THERE", 0)
    threads = numba.get_num_threads()
    numba.set_num_threads(min(2, threads))  # with many, not all are at work at once
    for cached in (plan.make_plan, plan._plan_for, plain._product_of):
        cached.cache_clear()  # what they know is for as many threads as there were
    yield found
    numba.set_num_threads(threads)


@contextmanager
def measured() -> Iterator[Callable[[], int]]:
    """How many bytes are held at most, from here on."""
    _memory._spare.memory = None
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def check(name: str, call: Callable[[], Any], asked: list[int], monkeypatch: Any) -> None:
    """The estimate is that of the peak; with less there it is refused at once, with that much it is not."""
    call()  # compiles
    asked.clear()
    with measured() as peak:
        call()
        taken = peak()
    said = max(asked)
    assert abs(said - taken) <= max(FIXED, PART * taken), f"{name} said {said:,} and took {taken:,} bytes"
    assert sorted(asked)[:-1] == [] or sorted(asked)[-2] < FIXED, f"{name} asked for {asked}"  # to count entries
    monkeypatch.setattr(_memory, "available", lambda: said - 1)
    begin = time.perf_counter()
    with measured() as peak, pytest.raises(MemoryError, match=rf"{said:,} bytes .* {said - 1:,} bytes are available; "):
        call()
        taken = peak()
    seconds = time.perf_counter() - begin
    assert seconds < 0.5, f"{name} worked for {seconds:.2f} s before it refused"
    monkeypatch.setattr(_memory, "available", lambda: said)
    call()


def refused(call: Callable[[], Any]) -> int:
    """Bytes that a call takes which is refused."""
    with measured() as peak:
        with pytest.raises(MemoryError):
            call()
        return peak()


#: The table, in parts that take the same arguments.
PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "layers": peak_cases.layers,
    **{f"products of {name}": lambda name=name: peak_cases.products(name) for name in peak_cases.GEOMETRIES},
    **{
        f"products by {name}": lambda name=name: peak_cases.products("groups", algorithm=name)
        for name in ("im2col", "kernel2row", "implicit", "direct", "fft")
    },
    "products by winograd": lambda: peak_cases.products("image", algorithm="winograd"),
    "products of f2, copied": lambda: peak_cases.products("image", "f2", "steps"),
    "products of f8, copied": lambda: peak_cases.products("batch", "f8", "F"),
    "products of c8": lambda: peak_cases.products("depthwise", "c8"),
    "products of i4": lambda: peak_cases.products("signal", "i4"),
    "plain": peak_cases.plain,
    "plain, c8, copied": lambda: peak_cases.plain("c8", "F"),
    "plain, bool": lambda: peak_cases.plain("?"),
    "averages": peak_cases.averages,
    "averages, f4": lambda: peak_cases.averages("f4"),
    "matrices": peak_cases.matrices,
    "matrices, f2, copied": lambda: peak_cases.matrices("f2", "steps"),
    "local": peak_cases.locals_,
    "local, f8, copied": lambda: peak_cases.locals_("f8", "steps"),
    "methods": peak_cases.methods,
    "methods, f2, copied": lambda: peak_cases.methods("f2", "steps"),
}


@pytest.mark.parametrize("part", PARTS)
def test_what_is_asked_for_is_what_is_taken(part, asked, monkeypatch):
    for name, call in PARTS[part]().items():
        with monkeypatch.context() as limited:
            check(f"{name} ({part})", call, asked, limited)


def test_the_table_has_every_public_call():
    parts = ("layers", "products of image", "plain", "averages", "matrices", "local", "methods")
    names = {name.partition(",")[0] for part in parts for name in PARTS[part]()}
    take_none = {"ConvPlan", "__version__", "devices", "plan_conv", "plan_convolve", "use_device", "warmup"}
    assert set(nc.__all__) - take_none <= names
    methods = {name for name, _ in inspect.getmembers(nc.ConvPlan, inspect.isfunction) if not name.startswith("_")}
    others = {"forward_of", "nbytes", "explain", "explain_choice"}
    assert {f"plan.{name}" for name in methods - others} <= names


@settings(max_examples=15)
@given(case=cases(dtypes=("float32", "float64")))
def test_no_geometry_takes_more_than_it_asks_for(case):
    """Small ones, whose fixed costs are all that may go beyond."""
    g = case.geometry
    y = nc.conv(case.x, case.w, **g)
    for call in (
        lambda: nc.conv(case.x, case.w, **g), lambda: nc.conv_grad_input(case.x_shape, case.w, y, **g),
        lambda: nc.conv_grad_weight(case.x, case.w_shape, y, **g),
    ):  # fmt: skip
        call()
        with pytest.MonkeyPatch.context() as patch, measured() as peak:
            patch.setattr(_memory, "ALWAYS_THERE", 0)
            found: list[int] = []
            patch.setattr(_memory, "available", lambda found=found: found.append(1) or 1 << 40)
            call()
            assert found, "it asked"
            assert peak() < 4_000_000


def huge(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """An array of any size in a few bytes."""
    return np.broadcast_to(np.ones((), dtype), shape)


W, W2 = np.ones((3, 3), np.float32), np.ones((1, 1, 3, 3), np.float32)

#: Calls that no machine here has memory for.
TOO_LARGE: dict[str, Callable[[], Any]] = {
    "normalized_convolve": lambda: nc.normalized_convolve(huge(300_000, 300_000), W),
    "normalized_convolve, mask": lambda: nc.normalized_convolve(
        huge(300_000, 300_000), W, mask=huge(300_000, 300_000, dtype=bool)
    ),
    "normalized_operator": lambda: nc.normalized_operator(huge(300_000, 300_000, dtype=bool), W),
    "kernel2row, kernel": lambda: nc.kernel2row(huge(10_000, 10_000), (20_000, 20_000)),
    "kernel2row, full": lambda: nc.kernel2row(huge(10_000, 10_000), (20_000, 20_000), padding="full"),
    "check": lambda: nc.plan_conv((1, 1, 300_000, 300_000), (1, 1, 3, 3)).check(),
    "the larger kernel": lambda: nc.convolve(W, huge(300_000, 300_000), "valid"),
    "the larger kernel, spread": lambda: nc.correlate(W, W, "valid", dilation=10**6),
    "the larger kernel, complex": lambda: nc.correlate(W, huge(300_000, 300_000, dtype=np.complex64), "valid"),
    "correlate, complex": lambda: nc.correlate(huge(300_000, 300_000, dtype=np.complex64), W.astype("c8")),
    "axes": lambda: nc.convolve(huge(300_000, 300_000), W[0], axes=0),
    "dtype": lambda: nc.conv(huge(1, 1, 300_000, 300_000), W2, dtype="f2"),
    "coverage": lambda: nc.plan_conv((1, 300_000, 300_000), (1, 1, 3, 3)).coverage(),
    "col2im, mean": lambda: nc.col2im(huge(9, 299_998**2), (300_000, 300_000), 3, reduce="mean"),
    "conv_local": lambda: nc.conv_local(huge(30_000, 30_000), huge(29_998, 29_998, 3, 3)),
    "conv_local_grad_input": lambda: nc.conv_local_grad_input(
        (100_000, 100_000), huge(99_998, 99_998, 3, 3), huge(99_998, 99_998)
    ),
    "kernel2row_local": lambda: nc.kernel2row_local(huge(99_998, 99_998, 3, 3), (100_000, 100_000)),
    "gram_diagonal": lambda: nc.plan_convolve((300_000, 300_000), (3, 3)).gram_diagonal(W),
    "norm": lambda: nc.plan_convolve((300_000, 300_000), (3, 3)).norm(W),
    "norm, circular": lambda: nc.plan_conv((10**6, 9, 9), (10**6, 10**6, 1, 1)).norm(huge(10**6, 10**6, 1, 1)),
    "linear_operator": lambda: nc.plan_conv((10**6, 9, 9), (10**6, 10**6, 1, 1)).linear_operator(
        huge(10**6, 10**6, 1, 1)
    ),
    "matmat": lambda: nc.plan_convolve((1000, 1000), (3, 3)).linear_operator(W).matmat(huge(10**6, 10**6)),
    "csr_rmatvec": lambda: nc.csr_rmatvec(huge(1), np.zeros(1, int), np.array([0, 1]), huge(1), 10**12),
}


@pytest.mark.parametrize("call", TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_no_machine_has_is_refused_at_once(call):
    begin = time.perf_counter()
    assert refused(call) < 4_000_000
    assert time.perf_counter() - begin < 5, "plans and kernels that count are made, too"
