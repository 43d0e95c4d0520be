"""The way from Python to the launch with the real numba-cuda, over a stand-in for the driver: no kernel runs.

What is launched, with which arguments, on which stream; that nothing is copied, allocated or waited for without need.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import fake_libraries
import numpy as np
import pytest
from conftest import values
from fake_libraries import Tensor
from simulator import simulated

import numconv

HERE = Path(__file__).parent
LIBRARY = os.environ.get("NUMCONV_STANDIN", "")
COMPILER = shutil.which("cc") or shutil.which("gcc")

over_the_standin = pytest.mark.skipif(not LIBRARY, reason="runs in a process of its own, over the stand-in")


@pytest.mark.skipif(bool(LIBRARY) or simulated, reason="this is that process")
@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed: pip install '.[cuda-test]'")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the stand-in is for Linux")
@pytest.mark.skipif(not COMPILER, reason="the stand-in for the driver is C: a compiler is needed, cc or gcc")
def test_over_the_standin(tmp_path):
    library = tmp_path / "libcuda.so.1"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, HERE / "gpu" / "standin.c", "-ldl"], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "NUMCONV_STANDIN": str(library)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


class Event(ctypes.Structure):
    """What the stand-in writes down."""

    _fields_ = [
        ("what", ctypes.c_char * 16), ("name", ctypes.c_char * 112),
        *((name, ctypes.c_uint64) for name in ("blocks", "threads", "stream", "bytes")),
    ]  # fmt: skip


@pytest.fixture
def happened():
    """What has happened since it was asked for last: ``(what, name, stream)``."""
    driver = ctypes.CDLL(LIBRARY)
    driver.standin_event.restype = ctypes.POINTER(Event)
    driver.standin_forget()

    def look():
        events = [driver.standin_event(i)[0] for i in range(driver.standin_happened())]
        driver.standin_forget()
        return [(e.what.decode(), kernel_of(e.name.decode()) if e.what == b"launch" else e.name.decode(), e.stream)
                for e in events]  # fmt: skip

    return look


def kernel_of(name):
    """``pack`` for the kernel ``_pack`` by the name that numba gives it."""
    return next((k for k in KERNELS if f"{len(k)}{k}B" in name or f"{len(k) + 1}_{k}B" in name), name)


KERNELS = (
    "forward", "depthwise_tile", "each_channel", "grad_weight", "add_parts", "add_up", "pack", "sum_again", "copy",
    "copy_run",
)  # fmt: skip


@pytest.fixture
def torch(monkeypatch):
    fake_libraries.install(monkeypatch, [])


def of(what, events):
    return [name for kind, name, _ in events if kind == what]


LAYERS = {
    "layer": ((2, 8, 9, 8), (16, 8, 3, 3), {"padding": 1}),
    "depthwise": ((1, 8, 9, 8), (8, 1, 3, 3), {"groups": 8, "padding": 1}),
    "line": ((1, 3, 50), (4, 3, 3), {"padding": 1}),
    "small": ((1, 64, 7, 7), (64, 64, 3, 3), {"padding": 1}),
    "strided": ((1, 8, 9, 12), (8, 1, 3, 3), {"groups": 8, "padding": 1, "stride": 2}),
}

PRODUCTS = [
    ("layer", "implicit", ["pack", "forward"], ["pack", "forward", "sum_again"], ["grad_weight", "add_parts"]),
    ("layer", "direct", ["pack", "forward"], None, ["grad_weight"]),
    ("depthwise", "direct", ["depthwise_tile"], ["copy_run", "depthwise_tile", "sum_again"], ["grad_weight"]),
    ("strided", "direct", ["depthwise_tile"], ["copy_run"] + ["copy", "depthwise_tile"] * 4 + ["sum_again"], None),
    ("small", "implicit", ["pack", "forward", "add_up"], ["pack", "forward", "add_up", "sum_again"], None),
    ("line", "implicit", ["pack", "forward"], ["pack", "forward", "sum_again"], ["grad_weight", "add_parts"]),
]


@over_the_standin
@pytest.mark.parametrize(("layer", "algorithm", "forward", "grad_input", "grad_weight"), PRODUCTS)
def test_launches_and_nothing_else(torch, happened, layer, algorithm, forward, grad_input, grad_weight):
    """No copy of what lies right, no waiting, no memory but the caller's; a replay launches what the first call did."""
    x_shape, w_shape, arguments = LAYERS[layer]
    plan = numconv.plan_conv(x_shape, w_shape, algorithm=algorithm, device="cuda", **arguments)
    x, w, b, dy = (
        Tensor(values(s, np.float32)) for s in (x_shape, w_shape, (plan.geometry.K,), plan.output_shape)
    )
    calls = (
        (lambda: plan.forward(x, w, b), forward), (lambda: plan.grad_input(dy, w), grad_input),
        (lambda: plan.grad_weight(x, dy), grad_weight),
    )  # fmt: skip
    for call, kernels in calls:
        call()  # tables are sent to the device, once
        happened()
        for again in (call, call):
            again()
            events = happened()
            assert {kind for kind, *_ in events} == {"launch"}, events
            assert kernels is None or of("launch", events) == kernels, events


@over_the_standin
def test_all_goes_to_the_callers_stream(torch, happened, monkeypatch):
    x, w = Tensor(values((1, 2, 5, 5), np.float32)), Tensor(values((3, 2, 3, 3), np.float32))
    numconv.conv(x, w)
    for stream in (0x1230, 0x4560):
        monkeypatch.setattr("numconv.cuda.places.Torch.stream", lambda self, stream=stream: stream)
        happened()
        numconv.conv(x, w)
        events = happened()
        assert events and {where for *_, where in events} == {stream}


@over_the_standin
def test_numpys_arrays_go_there_and_back_once(happened):
    x, w, b = (values(shape, np.float32) for shape in ((2, 4, 6, 6), (4, 4, 3, 3), (4,)))
    with numconv.use_device("cuda"):
        numconv.conv(x, w, b)
        happened()
        numconv.conv(x, w, b)
    assert of("copy", happened()) == ["to device"] * 3 + ["to host"]


class Given:
    """An array that has nothing but its interface."""

    def __init__(self, array):
        from numconv.cuda import places

        self.kept = places.host().send(array)
        self.__cuda_array_interface__ = self.kept.__cuda_array_interface__


@over_the_standin
def test_arrays_by_their_interface_are_waited_for_once(happened):
    """Nobody knows which stream they are used on next."""
    x, w = Given(values((2, 4, 6, 6), np.float32)), Given(values((4, 4, 3, 3), np.float32))
    plan = numconv.plan_conv((2, 4, 6, 6), (4, 4, 3, 3), device="cuda", algorithm="implicit")
    plan.forward(x, w)
    happened()
    plan.forward(x, w)
    events = happened()
    assert of("launch", events) == ["pack", "forward"] and of("wait", events) == ["stream"] and not of("copy", events)
    assert events[-1][0] == "wait" or events[-1][0] == "free"


@over_the_standin
@pytest.mark.parametrize("call", [
    lambda x, w, dy: numconv.conv(x, w), lambda x, w, dy: numconv.conv2d(x, w), lambda x, w, dy: numconv.unfold(x, 3),
    lambda x, w, dy: numconv.im2col(x, (3, 3)), lambda x, w, dy: numconv.conv_transpose2d(dy, w),
    lambda x, w, dy: numconv.conv_grad_input((2, 4, 6, 6), w, dy),
    lambda x, w, dy: numconv.conv_grad_weight(x, (4, 4, 3, 3), dy),
])  # fmt: skip
def test_every_function_reads_what_has_its_interface_alone(call):
    given = (Given(values(shape, np.float32)) for shape in ((2, 4, 6, 6), (4, 4, 3, 3), (2, 4, 4, 4)))
    assert hasattr(call(*given), "copy_to_host")


def bytes_of(value):
    """A value as the driver would read it from the arguments of a kernel."""
    if isinstance(value, (bool, np.bool_)):
        return bytes([bool(value)])
    if isinstance(value, int):
        return value.to_bytes(8, "little", signed=value < 0)
    return value.tobytes() if isinstance(value, np.generic) else bytes(value)


@over_the_standin
@pytest.mark.filterwarnings("ignore:.*Grid size")  # of numba's launcher
@pytest.mark.parametrize("dtype", ["float32", "complex64", "bool"])
def test_launches_take_what_numbas_own_take(monkeypatch, dtype):
    """The same values of the same width in the same order, stream and grid as by numba's launcher, which is slower."""
    import numba.cuda.dispatcher

    from numconv.cuda import driver, places
    from numconv.cuda.arrays import DeviceArray

    compared, launch, running = set(), driver.launch, []

    def beside_numba(stream, grid, code, *values):
        kernel, blocks, arguments = running[-1]
        theirs = []
        with monkeypatch.context() as now:
            now.setattr(numba.cuda.dispatcher, "launch", lambda *given: theirs.append(given))
            kernel.code[blocks, kernel.threads, 0](*arguments)
        ((their_stream, their_grid, their_code, *their_values),) = theirs
        free, at = set(), 0  # the stride of an axis with one item may be anything
        for argument in arguments:
            if isinstance(argument, DeviceArray):
                empty = not argument.size
                free |= {at + 5 + argument.ndim + a for a, n in enumerate(argument.shape) if n == 1 or empty}
                at += 5 + 2 * argument.ndim
            else:
                at += len(argument) if isinstance(argument, tuple) else 1 + isinstance(argument, np.complexfloating)
        pairs = list(zip(map(bytes_of, values), map(bytes_of, their_values), strict=True))
        assert all(a == b or i in free for i, (a, b) in enumerate(pairs)), (kernel.__name__, values, their_values)
        assert (grid.grid, grid.block) == (their_grid.grid, their_grid.block)
        assert int(stream.handle) == int(their_stream.handle) and code.handle == their_code.handle
        compared.add(kernel)
        return launch(stream, grid, code, *values)

    def noted(method, told):
        def run(self, *given):
            running.append(told(*given))
            try:
                return method(self, *given)
            finally:
                running.pop()

        return run

    def replayed(captured, device, addresses, stream):
        arguments = list(captured.arguments)
        for i, buffer, offset in captured.buffers:
            arguments[i] = arguments[i].moved(None, addresses[buffer] + offset)
        return captured.kernel, captured.blocks, tuple(arguments)

    start = noted(driver.Driver.start, replayed)
    straight = noted(driver.Driver.launch, lambda device, *given: given[:3])
    monkeypatch.setattr(driver, "launch", beside_numba)
    monkeypatch.setattr(driver.Driver, "launch", straight)
    monkeypatch.setattr(driver.Driver, "start", start)
    place = places.host()
    for algorithm in ("direct", "implicit", "im2col"):
        plan = numconv.plan_conv(
            (2, 4, 7, 6), (6, 2, 3, 2), dtype=dtype, device="cuda", algorithm=algorithm, boundary="reflect", padding=1,
            groups=2,
        )  # fmt: skip
        shapes = (plan.input_shape, plan.kernel_shape, (plan.geometry.K,), plan.output_shape)
        x, w, b, dy = (place.empty(shape, plan.dtype) for shape in shapes)
        for _ in range(2):
            plan.forward(x[..., ::-1], w, b)
            plan.grad_input(dy, w)
            plan.grad_weight(x, dy)
    assert len(compared) >= 7
