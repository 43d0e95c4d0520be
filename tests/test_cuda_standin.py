"""The way from Python to the launch with the real numba-cuda, over a stand-in for the driver: no kernel runs.

What is launched, with which arguments, on which stream; that nothing is copied, allocated or waited for without need.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import fake_libraries
import numpy as np
import pytest
from conftest import values
from fake_libraries import Tensor
from public_calls import CALLS, UNUSUAL, Library, flat, refused, wanted
from simulator import simulated
from standin import HERE, needs_a_standin, over_standin

import numconv

LIBRARY = os.environ.get("NUMCONV_STANDIN", "")

over_the_standin = pytest.mark.skipif(not LIBRARY, reason="runs in a process of its own, over the stand-in")


@pytest.mark.skipif(bool(LIBRARY) or simulated, reason="this is that process")
@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed: pip install '.[cuda-test]'")
@needs_a_standin
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


@lru_cache(maxsize=1)
def standin():
    """The stand-in's own functions."""
    driver = ctypes.CDLL(LIBRARY)
    driver.standin_event.restype = ctypes.POINTER(Event)
    driver.standin_take.restype, driver.standin_take.argtypes = ctypes.c_uint64, [ctypes.c_size_t]
    driver.standin_give_back.argtypes = [ctypes.c_uint64]
    return driver


def on_device(array):
    """A copy in the stand-in's memory, which is given back with its last view."""
    array = np.asarray(array)
    address = standin().standin_take(array.nbytes)
    memory = (ctypes.c_char * max(array.nbytes, 1)).from_address(address)
    weakref.finalize(memory, standin().standin_give_back, address)
    copy = np.ndarray(array.shape, array.dtype, memory)
    copy[...] = array
    return copy


@pytest.fixture(autouse=True)
def all_memory_is_allocated(request):
    """What kernels and copies take lies in memory that is allocated then, every time; unless a test says otherwise."""
    before = standin().standin_strays() if LIBRARY else 0
    yield
    if LIBRARY and "strays" not in request.fixturenames:
        assert standin().standin_strays() == before


@pytest.fixture
def strays():
    """How often memory was taken that is not allocated; for tests that do."""
    return standin().standin_strays


@pytest.fixture
def happened():
    """What has happened since it was asked for last: ``(what, name, stream)``."""
    driver = standin()
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
    "copy_run", "add", "im2col",
)  # fmt: skip


@pytest.fixture
def torch(monkeypatch):
    """torch's tensors in the stand-in's memory, and what torch was asked for: shapes and dtypes."""
    fake_libraries.install(monkeypatch, [])
    asked = []

    def empty(shape, dtype, device):
        asked.append((tuple(shape), dtype.removeprefix("torch.")))
        return Tensor(on_device(np.full(shape, 7, asked[-1][1])), int(device.partition(":")[2]))

    monkeypatch.setattr(sys.modules["torch"], "empty", empty)
    return asked


def tensor(array):
    """A tensor of these numbers on the device."""
    return Tensor(on_device(array))


def of(what, events):
    return [name for kind, name, _ in events if kind == what]


LAYERS = {
    "layer": ((2, 8, 9, 8), (16, 8, 3, 3), {"padding": 1}),
    "depthwise": ((1, 8, 9, 8), (8, 1, 3, 3), {"groups": 8, "padding": 1}),
    "line": ((1, 3, 50), (4, 3, 3), {"padding": 1}),
    "small": ((1, 64, 7, 7), (64, 64, 3, 3), {"padding": 1}),
    "strided": ((1, 8, 9, 12), (8, 1, 3, 3), {"groups": 8, "padding": 1, "stride": 2}),
    "image": ((1, 4, 90, 90), (8, 4, 3, 3), {"padding": 1}),
}

PRODUCTS = [
    ("layer", "implicit", ["pack", "forward"], ["pack", "forward", "sum_again"], ["grad_weight"]),
    ("layer", "direct", ["pack", "forward"], None, ["grad_weight"]),
    ("depthwise", "direct", ["depthwise_tile"], ["copy_run", "depthwise_tile", "sum_again"], ["grad_weight"]),
    ("strided", "direct", ["depthwise_tile"], ["copy_run"] + ["copy", "depthwise_tile"] * 4 + ["sum_again"], None),
    ("small", "implicit", ["pack", "forward", "add_up"], ["pack", "forward", "add_up", "sum_again"], None),
    ("line", "implicit", ["pack", "forward"], ["pack", "forward", "sum_again"], ["grad_weight"]),
    ("image", "implicit", ["pack", "forward"], ["pack", "forward", "sum_again"], ["grad_weight", "add_parts"]),
    ("image", "direct", ["pack", "forward"], None, ["grad_weight", "add_parts"]),
]


@over_the_standin
@pytest.mark.parametrize(("layer", "algorithm", "forward", "grad_input", "grad_weight"), PRODUCTS)
def test_launches_and_nothing_else(torch, happened, layer, algorithm, forward, grad_input, grad_weight):
    """No copy of what lies right, no waiting, no memory but the caller's; a replay launches what the first call did."""
    x_shape, w_shape, arguments = LAYERS[layer]
    plan = numconv.plan_conv(x_shape, w_shape, algorithm=algorithm, device="cuda", **arguments)
    x, w, b, dy = (
        tensor(values(s, np.float32)) for s in (x_shape, w_shape, (plan.geometry.K,), plan.output_shape)
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
    x, w = tensor(values((1, 2, 5, 5), np.float32)), tensor(values((3, 2, 3, 3), np.float32))
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


@over_the_standin
def test_numpys_arrays_find_no_fft_there():
    x, w = values((1, 4, 30, 30), np.float32), values((4, 4, 9, 9), np.float32)
    plan = numconv.plan_conv(x.shape, w.shape, device="cuda", algorithm="fft")
    with pytest.raises(ValueError, match=r"'fft' cannot serve.*torch or CuPy.*no FFT"):
        plan.forward(x, w)
    with numconv.use_device("cuda"):
        assert numconv.conv(np.ones((1, 1, 600, 600)), np.ones((1, 1, 61, 61))).shape == (1, 1, 540, 540)


@over_the_standin
def test_fft_launches_the_same_again(torch, happened):
    """Layouts of weights, of an image and its products; two looks at the values, and one at the result."""
    x, w = tensor(values((1, 2, 9, 8), np.float32)), tensor(values((3, 2, 3, 3), np.float32))
    plan = numconv.plan_conv(x.shape, w.shape, device="cuda", algorithm="fft")
    plan.forward(x, w)
    for _ in range(2):
        happened()
        plan.forward(x, w)
        events = happened()
        assert {kind for kind, *_ in events} == {"launch"}, events
        assert of("launch", events)[-1] == "sum_again"
        assert len(events) == 8


# arrays that have nothing but their interface -------------------------------------------------------------------------


class Given:
    """An array that has nothing but the CUDA array interface."""

    def __init__(self, array, **changed):
        self.kept = array  # the stand-in's memory
        self.__cuda_array_interface__ = {
            "data": (array.ctypes.data if array.size else 0, False), "shape": array.shape, "typestr": array.dtype.str,
            "strides": None if array.flags.c_contiguous else array.strides, "version": 3, **changed,
        }  # fmt: skip


def told(array, **how):
    """Such an array of a copy of these numbers."""
    array = on_device(array)
    if how.pop("readonly", False):
        how["data"] = (array.ctypes.data if array.size else 0, True)
    if how.pop("all strides", False):
        how["strides"] = array.strides
    given = Given(array, **how)
    if how.get("version") == 2:
        del given.__cuda_array_interface__["strides"]
    return given


class Packed:
    """An array that has nothing but DLPack: a capsule of NumPy's that says CUDA's device."""

    def __init__(self, array):
        self.kept, self.streams = array, []

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, *, stream=None, **_):
        self.streams.append(stream)
        capsule = self.kept.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        described = pointer(capsule, b"dltensor")
        ctypes.c_int32.from_address(described + ctypes.sizeof(ctypes.c_void_p)).value = 2
        return capsule


class Others(Library):
    """Arrays made by a function of NumPy's; a result is an array of numba's."""

    name = "others"

    def __init__(self, make):
        self.make = make

    def __call__(self, array):
        return self.make(np.asarray(array))

    def laid(self, base, view):
        return Given(view(on_device(base)))

    def fetch(self, array):
        if isinstance(array, np.ndarray):
            return array
        return array.kept if isinstance(array, (Given, Packed)) else array.copy_to_host()


INTERFACES = {
    "version 3": told, "version 2": lambda a: told(a, version=2), "a stream": lambda a: told(a, stream=1),
    "a read-only one": lambda a: told(a, readonly=True), "all strides": lambda a: told(a, **{"all strides": True}),
    "no mask": lambda a: told(a, mask=None), "DLPack": lambda a: Packed(on_device(a)),
}  # fmt: skip

#: A row of the table for each function: the first that computes something of arrays.
ROWS = {call.function: call for call in reversed(CALLS) if call.feature != "no arrays" and not call.refused.get("all")}

#: What asks the device for an answer, which nobody computes here; and how it then refuses its arguments.
ASKING = {
    "csr_matvec": "indices and indptr must be", "csr_rmatvec": "indices and indptr must be",
    "ConvPlan.refill": "csr must have the structure",
}  # fmt: skip


def run_without_kernels(call, library):
    """A row where no kernel runs: the result has the shapes and dtypes of the CPU's, or the call says its error."""
    if not refused(call, library, ASKING.get(call.function, "")):
        got, want = flat(call.run(library), library.fetch), wanted(call)
        assert [(a.shape, a.dtype) for a in got] == [(b.shape, b.dtype) for b in want]


@over_the_standin
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numbers that no kernel has written
@pytest.mark.parametrize("how", INTERFACES)
@pytest.mark.parametrize("function", sorted(ROWS))
def test_every_function_reads_what_has_its_interface_alone(function, how):
    run_without_kernels(ROWS[function], Others(INTERFACES[how]))


ODD = [call for call in CALLS if call.function in ("conv", "im2col", "convolve") and call.feature in UNUSUAL]


@over_the_standin
@pytest.mark.parametrize("call", ODD, ids=str)
def test_arrays_of_any_layout_by_their_interface(call):
    run_without_kernels(call, Others(told))


@over_the_standin
def test_a_matrix_of_numbas_beside_arrays_by_their_interface():
    """A library that has no arrays of its own to give gets numba's, and may use them with its own."""
    w, x = told(values((3, 2), np.float32)), told(values((20,), np.float32))
    parts = numconv.kernel2row(w, (5, 4))
    with pytest.raises(ValueError, match="indices and indptr must be those of a CSR matrix"):  # no kernel looks at them
        numconv.csr_matvec(*parts, x)
    with pytest.raises(TypeError, match=r"all arrays must live in one place .*x: torch on cuda:0"):
        numconv.csr_matvec(*parts, tensor(values((20,), np.float32)))


@over_the_standin
def test_what_an_interface_says_that_cannot_be_read():
    x, w = values((4,), np.float32), values((2,), np.float32)
    for changed, message in {
        "mask": ({"mask": object()}, "x must be a dense array of a dtype NumPy has, got Given: it is masked"),
        "order of bytes": ({"typestr": ">f4"}, "x must be a dense array of a dtype NumPy has, got Given: "),
        "items": ({"typestr": "|O8"}, "x must be "),
        "strides": ({"strides": (3,)}, "an array on a GPU must have strides of whole items"),
    }.values():
        with pytest.raises((TypeError, ValueError)) as caught:
            numconv.convolve(told(x, **changed), told(w))
        assert str(caught.value).startswith(message), (changed, caught.value)


@over_the_standin
def test_dlpack_is_asked_for_the_default_stream():
    x, w = Packed(on_device(values((1, 2, 5, 5), np.float32))), Packed(on_device(values((3, 2, 3, 3), np.float32)))
    numconv.conv(x, w)
    assert x.streams[-1] == w.streams[-1] == 1


@over_the_standin
def test_arrays_by_their_interface_are_waited_for_once(happened):
    """Nobody knows which stream they are used on next."""
    x, w = told(values((2, 4, 6, 6), np.float32)), told(values((4, 4, 3, 3), np.float32))
    plan = numconv.plan_conv((2, 4, 6, 6), (4, 4, 3, 3), device="cuda", algorithm="implicit")
    plan.forward(x, w)
    happened()
    plan.forward(x, w)
    events = happened()
    assert of("launch", events) == ["pack", "forward"] and of("wait", events) == ["stream"] and not of("copy", events)
    assert events[-1][0] == "wait" or events[-1][0] == "free"


# nothing more than need be --------------------------------------------------------------------------------------------


class OfTorch(Library):
    """Tensors in the stand-in's memory."""

    name = "torch"

    def __call__(self, array):
        return tensor(array)

    def fetch(self, array):
        return np.array(getattr(array, "numbers", array))


#: What looks at numbers on the host: it copies and waits, once for each of so many.
FETCHED = {"normalized_convolve": 1, "ConvPlan.gram_diagonal": 1}

#: The products of this one are there and back: Lanczos' method, which asks for them, is the host's.
AWAY = {"ConvPlan.norm"}


@over_the_standin
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("function", sorted(set(ROWS) - set(ASKING) - AWAY))
def test_every_function_stays_on_the_callers_stream_and_waits_for_nothing(torch, happened, monkeypatch, function):
    call, stream = ROWS[function], 0x1230
    if call.refusal("torch"):
        pytest.skip("it is refused")
    monkeypatch.setattr("numconv.cuda.places.Torch.stream", lambda self: stream)
    call.run(OfTorch())  # tables are sent to the device, once
    happened()
    call.run(OfTorch())
    events = happened()
    copies = ["to host"] * FETCHED.get(function, 0)
    assert {kind for kind, *_ in events} <= {"launch", "copy", "wait"}, events
    assert of("copy", events) == copies and len(of("wait", events)) == len(copies)
    assert {where for kind, _, where in events if kind == "launch"} <= {stream}


@over_the_standin
@pytest.mark.parametrize("algorithm", ["direct", "implicit"])
def test_what_does_not_lie_right_is_copied_once(torch, happened, algorithm):
    """An input that is strided is copied once; ``out=`` is written straight, or once where it is strided."""
    plan = numconv.plan_conv((2, 8, 9, 8), (16, 8, 3, 3), algorithm=algorithm, device="cuda", padding=1)
    whole = {name: values(shape, np.float32) for name, shape in
             {"x": plan.input_shape, "w": plan.kernel_shape, "dy": plan.output_shape}.items()}  # fmt: skip
    products = {"forward": ("x", "w"), "grad_input": ("dy", "w"), "grad_weight": ("x", "dy")}

    def launched(product, arrays, **out):
        for _ in range(2):  # the second one replays
            happened()
            torch.clear()
            getattr(plan, product)(*arrays, **out)
            events = happened()
        assert {kind for kind, *_ in events} == {"launch"}
        return of("launch", events), list(torch)

    for product, names in products.items():
        right = [tensor(whole[name]) for name in names]
        usual, memory = launched(product, right)
        for i, name in enumerate(names):
            strided = [tensor(np.repeat(whole[n], 2, -1))[..., ::2] if n == name else tensor(whole[n]) for n in names]
            launches, more = launched(product, strided)
            assert sorted(launches) == sorted([*usual, "copy"]), (product, name)
            assert sorted(more) == sorted([*memory, (whole[name].shape, "float32")]), (product, i)
        shape = getattr(plan, {"forward": "output_shape", "grad_input": "input_shape"}.get(product, "kernel_shape"))
        launches, less = launched(product, right, out=tensor(np.zeros(shape, np.float32)))
        assert launches == usual
        assert sorted([*less, (shape, "float32")]) == sorted(memory), "the result is the only thing that is not taken"
        room = tensor(np.zeros((*shape[:-1], 2 * shape[-1]), np.float32))
        launches, same = launched(product, right, out=room[..., ::2])
        assert launches == [*usual, "copy"] and sorted(same) == sorted(memory)


@over_the_standin
def test_results_are_the_librarys_own_and_alone(torch):
    """Of its type, from its pool, and no other array's memory."""
    plan = numconv.plan_conv((2, 8, 9, 8), (16, 8, 3, 3), algorithm="implicit", device="cuda")
    x, w, dy = (tensor(values(s, np.float32)) for s in (plan.input_shape, plan.kernel_shape, plan.output_shape))
    results = [call() for _ in range(3) for call in (
        lambda: plan.forward(x, w), lambda: plan.grad_input(dy, w), lambda: plan.grad_weight(x, dy))]  # fmt: skip
    assert all(type(result) is Tensor for result in results)
    assert not any(np.may_share_memory(a.numbers, b.numbers) for a in results for b in results if a is not b)
    assert {(y.shape, y.numbers.dtype.name) for y in results} <= set(torch)


@over_the_standin
def test_no_buffer_outlives_its_use(torch):
    """Between two calls torch holds what the caller holds."""
    plan = numconv.plan_conv((2, 8, 9, 8), (16, 8, 3, 3), algorithm="implicit", device="cuda")
    x, w = (tensor(values(s, np.float32)) for s in (plan.input_shape, plan.kernel_shape))
    live, empty = weakref.WeakSet(), sys.modules["torch"].empty

    def noted(*arguments, **named):
        result = empty(*arguments, **named)
        live.add(result)
        return result

    sys.modules["torch"].empty = noted
    for _ in range(3):
        y = plan.forward(x, w)
        gc.collect()
        assert set(live) == {y}
    del y
    gc.collect()
    assert not live


@over_the_standin
def test_memory_that_was_given_back_is_found_out(torch, strays):
    """That the stand-in notices: were a kernel given what is freed already, these tests would fail."""
    from numconv.cuda import places

    place = places.place_of("torch on cuda:0")
    x, before, seen = tensor(np.ones(8, np.float32)), strays(), standin().standin_arrays()
    lost, kept = place.read(x).moved(None, x.data_ptr()), place.empty((8,), np.dtype(np.float32))
    kept[...] = lost
    assert strays() == before and standin().standin_arrays() > seen
    numbers = ctypes.cast(x.data_ptr(), ctypes.POINTER(ctypes.c_uint8))
    del x
    gc.collect()
    assert numbers[0] == 0xDD
    kept[...] = lost
    assert strays() == before + 1


@over_the_standin
@pytest.mark.parametrize("layout", [
    lambda a: a, lambda a: a[::2, ::-1], lambda a: a.T, lambda a: np.broadcast_to(a[:1], (3, 5)), lambda a: a[:0],
    lambda a: a[:, ::3].astype(">f4").astype("f4"),
], ids=["whole", "reversed", "turned", "repeated", "empty", "strided"])  # fmt: skip
def test_copies_have_the_numbers_in_their_order(layout):
    """There and back, whatever lies how on the host."""
    from numconv.cuda import places

    numbers, place = layout(np.arange(30, dtype=np.float32).reshape(6, 5)), places.host()
    sent = place.send(numbers)
    assert sent.flags.c_contiguous
    there = (ctypes.c_float * max(numbers.size, 1)).from_address(sent.address) if numbers.size else []
    np.testing.assert_array_equal(np.array(there[: numbers.size]).reshape(numbers.shape), numbers)
    np.testing.assert_array_equal(place.to_host(sent), numbers)
    with numconv.use_device("cuda"):
        assert numconv.convolve(numbers, np.ones((2, 2), np.float32)).flags.c_contiguous if numbers.size else True


@over_the_standin
def test_an_allocator_that_fails_leaves_nothing_behind(torch):
    from numconv.cuda import places

    with pytest.raises(MemoryError, match="the GPU has no memory left"):
        places.host().empty((1 << 50,), np.dtype(np.uint8))
    x, w = tensor(values((1, 2, 5, 5), np.float32)), tensor(values((3, 2, 3, 3), np.float32))
    assert type(numconv.conv(x, w)) is Tensor


@over_the_standin
@pytest.mark.parametrize("stream", [None, 1, 2, 0x1230])
def test_work_goes_to_the_stream_that_an_array_names(happened, stream):
    """As the CUDA array interface has it: 1 is the default stream of all threads, 2 that of this one."""
    x, w = (told(values(shape, np.float32), stream=stream) for shape in ((2, 4, 6, 6), (4, 4, 3, 3)))
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
    for stream in range(0x100, 0x200, 0x10):  # streams come and go
        place = places.Host(0)
        place.follow(stream)
        place.release(place.workspace((512,), np.dtype(np.float32)))
    assert len(places._spare) == places.STREAMS


@over_the_standin
def test_what_is_sent_is_there_before_it_is_used(torch, happened):
    """Tables may be read on any stream at once: the copy has been waited for. Lists are copied where they are read."""
    x, w = tensor(values((1, 2, 17, 23), np.float32)), tensor(values((3, 2, 3, 2), np.float32))
    numconv.conv(x, w, algorithm="implicit")
    events = happened()
    product = [(what, name) for what, name, _ in events].index(("launch", "forward"))
    assert "copy" in [what for what, *_ in events[:product]]
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
    x, w = tensor(values((1, 2, 5, 5), np.float32)), tensor(values((3, 2, 3, 3), np.float32))
    for _ in range(2):
        plan.forward(x, w)
    (capture,) = plan._captures.values()
    (frame,), allocate, within = capture.frames, places.Torch.allocate, []

    def interrupted(self, shape, dtype):
        if not within:
            within.append(None)
            plan.forward(tensor(values((1, 2, 5, 5), np.float32, 1)), w)
            assert x.data_ptr() in frame.cells
        return allocate(self, shape, dtype)

    monkeypatch.setattr(places.Torch, "allocate", interrupted)
    y = plan.forward(x, w)
    assert len(capture.frames) == 2
    assert x.data_ptr() in frame.cells and y.data_ptr() in frame.cells


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
            names = [ctypes.c_char_p.from_address(int(it)).value for it in (code, their_code.handle)]
            assert names[0] == names[1]
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
    monkeypatch.setattr(places.Host, "has_library", True)
    monkeypatch.setattr(places.Host, "fft", lambda *given: None)  # numba has none
    place = places.host()
    for algorithm in ("direct", "implicit", "im2col", *(["fft"] if dtype != "bool" else [])):
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
