"""The way from Python to the launch with the real numba-cuda, over a stand-in for the driver: no kernel runs.

What is launched, with which arguments, on which stream; that nothing is copied, allocated or waited for without need.
"""

from __future__ import annotations

import ctypes
import json
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
from standin import COMPILER, over_standin

import numconv

HERE = Path(__file__).parent
LIBRARY = os.environ.get("NUMCONV_STANDIN", "")

over_the_standin = pytest.mark.skipif(not LIBRARY, reason="runs in a process of its own, over the stand-in")


@pytest.mark.skipif(bool(LIBRARY) or simulated, reason="this is that process")
@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed: pip install '.[cuda-test]'")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the stand-in is for Linux")
@pytest.mark.skipif(not COMPILER, reason="the stand-in for the driver is C: a compiler is needed, cc or gcc")
def test_over_the_standin(tmp_path):
    environment = {**over_standin(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path)}
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


KERNELS = ("forward", "depthwise", "grad_weight", "add_parts", "pack", "sum_again")


@pytest.fixture
def torch(monkeypatch):
    fake_libraries.install(monkeypatch, [])


def of(what, events):
    return [name for kind, name, _ in events if kind == what]


LAYERS = {
    "layer": ((2, 8, 9, 8), (16, 8, 3, 3), {"padding": 1}),
    "depthwise": ((1, 8, 9, 8), (8, 1, 3, 3), {"groups": 8, "padding": 1}),
    "line": ((1, 3, 50), (4, 3, 3), {"padding": 1}),
}

PRODUCTS = [
    ("layer", "implicit", ["pack", "forward"], ["pack", "forward", "sum_again"], ["grad_weight", "add_parts"]),
    ("layer", "direct", ["pack", "forward"], None, ["grad_weight"]),
    ("depthwise", "direct", ["depthwise"], None, ["grad_weight"]),
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
            assert kernels is None or of("launch", events) == kernels


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

    def __init__(self, array, stream=None):
        from numconv.cuda import places

        self.kept = places.host().send(array)
        self.__cuda_array_interface__ = {**self.kept.__cuda_array_interface__, "stream": stream}


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
@pytest.mark.parametrize("stream", [None, 1, 2, 0x1230])
def test_work_goes_to_the_stream_that_an_array_names(happened, stream):
    """As the CUDA array interface has it: 1 is the default stream of all threads, 2 that of this one."""
    x, w = Given(values((2, 4, 6, 6), np.float32), stream), Given(values((4, 4, 3, 3), np.float32), stream)
    for _ in range(3):  # captured, replayed with a new workspace, replayed with that one
        happened()
        numconv.conv(x, w, algorithm="implicit")
    events = happened()
    assert [event for event in events if event[0] != "free"] == [
        ("alloc", "", 0), ("launch", "pack", stream or 0), ("launch", "forward", stream or 0),
        ("wait", "stream", stream or 0),
    ]  # fmt: skip


@over_the_standin
def test_arrays_of_several_streams_are_put_in_order(happened):
    """By events: the work of the other streams first, and nobody waits for it."""
    from numba import cuda

    streams = [cuda.stream() for _ in range(3)]
    handles = [int(stream.handle) for stream in streams]
    shapes = (2, 4, 6, 6), (4, 4, 3, 3), (4,)
    x, w, b = (cuda.to_device(values(shape, np.float32), stream) for shape, stream in zip(shapes, streams, strict=True))
    for _ in range(2):
        happened()
        y = numconv.conv(x, w, b, algorithm="implicit")
    events = [(what, stream) for what, _, stream in happened() if what not in ("alloc", "free")]
    assert events == [
        ("record", handles[1]), ("follow", handles[0]), ("record", handles[2]), ("follow", handles[0]),
        ("launch", handles[0]), ("launch", handles[0]),
    ]  # fmt: skip
    assert y.__cuda_array_interface__["stream"] == handles[0]


@over_the_standin
def test_a_kept_workspace_is_of_one_stream(happened):
    """What one stream still works with is not given to another; the next call on the same one takes no new memory."""
    from numconv.cuda import places

    taken, place = [], places.Host(0)
    for stream in (0x10, 0x20, 0x10):
        place = places.Host(0)
        place.follow(stream)
        taken.append(place.workspace((512,), np.dtype(np.float32)))
        place.release(taken[-1])
    assert taken[0] is taken[2] and taken[0] is not taken[1]
    inner, outer = place.workspace((512,), np.dtype(np.float32)), place.workspace((512,), np.dtype(np.float32))
    assert inner is taken[0] and outer is not inner  # a call within a call gets its own
    large = place.workspace((4096,), np.dtype(np.float32))
    assert large.nbytes >= 4096 * 4


@over_the_standin
def test_what_is_sent_is_there_before_it_is_used(torch, happened):
    """Tables may be read on any stream at once: the copy has been waited for. Lists are copied where they are read."""
    x, w = Tensor(values((1, 2, 7, 9), np.float32)), Tensor(values((3, 2, 3, 2), np.float32))
    numconv.conv(x, w, algorithm="implicit")
    events = happened()
    first = [what for what, *_ in events].index("launch")
    assert "copy" in [what for what, *_ in events[:first]]
    for i, (what, *_) in enumerate(events):
        if what == "copy":
            assert ("wait", "stream", 0) in events[i + 1 : i + 3]
    numconv.conv(x, w, [1.0, 2.0, 3.0], dtype="float32", algorithm="implicit")
    happened()
    numconv.conv(x, w, [1.0, 2.0, 3.0], dtype="float32", algorithm="implicit")
    copied, waited, *rest = happened()
    assert copied == ("copy", "to device", 41) and waited == ("wait", "stream", 41)
    assert {what for what, *_ in rest} == {"launch"}


@over_the_standin
def test_a_call_within_a_replay_has_its_own_arguments(torch, monkeypatch):
    """As two threads have: what the driver reads belongs to one call until it is launched."""
    from numconv.cuda import places

    plan = numconv.plan_conv((1, 2, 5, 5), (3, 2, 3, 3), device="cuda", algorithm="implicit")
    x, w = Tensor(values((1, 2, 5, 5), np.float32)), Tensor(values((3, 2, 3, 3), np.float32))
    for _ in range(2):
        plan.forward(x, w)
    (capture,) = plan._captures.values()
    (frame,), allocate, within = capture.frames, places.Torch.allocate, []

    def interrupted(self, shape, dtype):
        if not within:
            within.append(None)
            plan.forward(Tensor(values((1, 2, 5, 5), np.float32, 1)), w)
            assert x.data_ptr() in frame.cells
        return allocate(self, shape, dtype)

    monkeypatch.setattr(places.Torch, "allocate", interrupted)
    y = plan.forward(x, w)
    assert len(capture.frames) == 2
    assert x.data_ptr() in frame.cells and y.data_ptr() in frame.cells


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

    compared = set()

    class Compared(driver.Frame):
        def __init__(self, device, launches):
            super().__init__(device, launches)
            self.given, self.addresses = launches, {}

        def put(self, buffer, address):
            super().put(buffer, address)
            self.addresses[buffer] = address

        def start(self, i, stream):
            kernel, blocks, arguments, buffers = self.given[i]
            arguments = list(arguments)
            for at, buffer, offset in buffers:
                arguments[at] = arguments[at].moved(None, self.addresses[buffer] + offset)
            theirs = []
            with monkeypatch.context() as now:
                now.setattr(numba.cuda.dispatcher, "launch", lambda *given: theirs.append(given))
                kernel.code[blocks, kernel.threads, 0](*arguments)
            ((their_stream, their_grid, their_code, *their_values),) = theirs
            code, blocks, threads, pointers = self.launches[i]
            pointers = ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))
            free = strides_that_mean_nothing(arguments)
            for j, value in enumerate(map(bytes_of, their_values)):
                assert j in free or ctypes.string_at(pointers[j], len(value)) == value, (kernel.__name__, j, value)
            assert (blocks, threads) == (their_grid.grid[0], their_grid.block[0])
            assert stream == int(their_stream.handle)
            assert ctypes.string_at(int(code)) == ctypes.string_at(int(their_code.handle))  # a handle is the name
            compared.add(kernel)
            super().start(i, stream)

    def strides_that_mean_nothing(arguments):
        free, at = set(), 0
        for argument in arguments:
            if isinstance(argument, DeviceArray):
                empty = not argument.size
                free |= {at + 5 + argument.ndim + a for a, n in enumerate(argument.shape) if n == 1 or empty}
                at += 5 + 2 * argument.ndim
            else:
                at += len(argument) if isinstance(argument, tuple) else 1 + isinstance(argument, np.complexfloating)
        return free

    monkeypatch.setattr(driver, "Frame", Compared)
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


# code on disk -------------------------------------------------------------------------------------------------------

USES = """
import json, sys, warnings
import numpy as np
warnings.simplefilter("ignore", RuntimeWarning)
import numconv
from numconv.cuda import places
from numba.cuda.cudadrv import nvvm

compiled, compile_ir = [], nvvm.compile_ir
nvvm.compile_ir = lambda *given, **options: compiled.append(1) or compile_ir(*given, **options)
place = places.host()
x, few, many = (place.send(np.ones(shape, np.float32)) for shape in ((1, 2, 6, 6), (4, 2, 3, 3), (16, 2, 3, 3)))
for w in (few, many):  # kernels of one line with other constants
    numconv.conv(x, w, algorithm="direct")
print(json.dumps([len(compiled), numconv.__file__]))
"""


def compilations(folder, cache):
    """How often a process that uses the sources in a folder compiles."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-c", USES], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    count, file = json.loads(done.stdout.splitlines()[-1])
    assert Path(file).is_relative_to(folder)
    return count


@over_the_standin
def test_a_second_process_compiles_nothing(tmp_path):
    """Unless a source has changed, be it of a helper in another file, or what is on disk is damaged."""
    sources, cache = tmp_path / "sources", tmp_path / "cache"
    shutil.copytree(HERE.parent / "numconv", sources / "numconv", ignore=shutil.ignore_patterns("__pycache__"))
    every = compilations(sources, cache)
    files = sorted(cache.rglob("*.cubin"))
    assert len(files) == 3 <= every  # packing, and a kernel for each
    assert compilations(sources, cache) == 0
    files[0].write_bytes(files[0].read_bytes()[:-1])
    assert 0 < compilations(sources, cache) < every
    assert compilations(sources, cache) == 0
    with (sources / "numconv" / "_indexing.py").open("a") as helpers:
        helpers.write("# changed\n")
    assert compilations(sources, cache) == every
    assert sorted(cache.rglob("*.cubin")) == files  # in the place of the old ones
    no_folder = tmp_path / "file"
    no_folder.write_text("")
    assert compilations(sources, no_folder) == every


@over_the_standin
def test_processes_that_compile_at_once(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    several = [subprocess.Popen([sys.executable, "-c", USES], env=environment, cwd=HERE.parent) for _ in range(2)]
    assert [process.wait() for process in several] == [0, 0]
    assert compilations(HERE.parent, tmp_path) == 0
    left = {file.suffix for file in tmp_path.rglob("*") if file.is_file()}
    assert left <= {".cubin", ".nbi", ".nbc"}  # nothing half written
