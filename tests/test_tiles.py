"""Plans with ``max_bytes``: the same results tile by tile, in as little memory as they were told, from file to file."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from math import prod

import numpy as np
import pytest
from conftest import EXACT, assert_close, assert_same, normal, values
from hypothesis import given
from hypothesis import strategies as st
from strategies import cases
from test_memory import at_most

import numconv as nc
from numconv import stream

PRODUCTS = ["forward", "grad_input", "grad_weight", "transpose"]


def arguments(plan, product, make=values):
    """The arrays of a product."""
    x, w, dy = (make(shape, plan.dtype) for shape in (plan.input_shape, plan.kernel_shape, plan.output_shape))
    g = plan.geometry
    return {
        "forward": (x, w, make((g.K,), plan.dtype)), "grad_input": (dy, w), "grad_weight": (x, dy),
        "transpose": (dy, w, make((g.C,), plan.dtype)),
    }[product]  # fmt: skip


def bounds(plan, product):
    """The bytes of the smallest tile and of one that is everything."""
    g = plan.geometry
    outer, pixels = (g.C, g.size) if product in ("grad_input", "transpose") else (g.K, g.out)
    return stream.nbytes(plan, product, (1,) * (2 + g.d)), stream.nbytes(plan, product, (g.N, outer, *pixels))


# the same results -----------------------------------------------------------------------------------------------------


@given(cases(dtypes=("float32", "int16", "bool", "complex128", "float16")), st.sampled_from(PRODUCTS), st.floats(0, 1))
def test_tiles_of_any_size_give_the_same_bits(case, product, share):
    geometry = case.geometry if product in ("forward", "grad_weight") else case.linear
    plan = nc.plan_conv(case.x_shape, case.w_shape, dtype=case.dtype, algorithm="direct", **geometry)
    least, most = bounds(plan, product)
    tiled = replace(plan, max_bytes=max(least, int(least + share * (most - least))))
    inputs = arguments(plan, product)
    assert_same(getattr(tiled, product)(*inputs), getattr(plan, product)(*inputs))


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("algorithm", [*EXACT, "winograd", "fft", "auto"])
def test_every_algorithm_works_by_tiles(algorithm, product):
    geometry = {"padding": 2, "boundary": "reflect", "groups": 2}
    plan = nc.plan_conv((2, 4, 20, 23), (6, 2, 3, 3), dtype=np.float32, algorithm=algorithm, **geometry)
    least, most = bounds(plan, product)
    tiled = replace(plan, max_bytes=(3 * least + most) // 4)
    inputs = arguments(plan, product)
    g, work = plan.geometry, stream.lengths(tiled, product)
    assert prod(work) < prod((g.N, g.C, *g.size)), "one tile would be no test"
    assert_close(getattr(tiled, product)(*inputs), getattr(plan, product)(*inputs), np.float32, 400, 16)


@pytest.mark.parametrize("product", ["forward", "grad_input"])
@pytest.mark.parametrize("boundary", ["constant", "symmetric"])
def test_direct_gives_the_bits_of_the_whole_for_real_numbers(boundary, product):
    plan = nc.plan_conv((1, 3, 90, 101), (5, 3, 5, 3), algorithm="direct", padding=3, boundary=boundary)
    inputs = arguments(plan, product, normal)
    whole = getattr(plan, product)(*inputs)
    for share in (10, 3):
        tiled = replace(plan, max_bytes=bounds(plan, product)[1] // share)
        assert_same(getattr(tiled, product)(*inputs), whole)


def test_the_weight_gradient_is_added_in_float64():
    x, dy = np.ones((3, 1, 1000), np.float32), np.zeros((3, 1, 1000), np.float32)
    dy[:, 0, 0] = 2**26, 1, -(2**26)
    plan = nc.plan_conv(x.shape, (1, 1, 1), algorithm="direct", max_bytes=15_000)
    assert len(stream._Work(plan, "grad_weight", {"x": (x, x.shape)}).tiles()) >= 3
    assert plan.grad_weight(x, dy) == 1


def test_plain_plans_and_arrays_that_are_not_contiguous():
    x, w = values((40, 60)).T, values((5, 4))
    how = {"dtype": float, "boundary": "wrap", "algorithm": "direct"}
    plan = nc.plan_convolve(x.shape, w.shape, "full", max_bytes=20_000, **how)
    whole = nc.convolve(x, w, boundary="wrap", algorithm="direct")
    out = np.zeros((2, *plan.output_shape[::-1]))[1].T
    assert plan.forward(x, w, out=out) is out
    assert_same(out, whole)
    assert plan.nbytes("workspace") <= 20_000
    assert replace(plan, max_bytes=None) == nc.plan_convolve(x.shape, w.shape, "full", **how)


def test_far_strides_and_empty_batches():
    x, w = values((1, 1, 9)), values((1, 1, 3))
    for far in ({"stride": 10**9, "padding": 10**9}, {"dilation": 10**9, "padding": 10**9}):
        plan = nc.plan_conv(x.shape, w.shape, dtype=float, algorithm="direct", max_bytes=4000, **far)
        assert_same(plan.forward(x, w), replace(plan, max_bytes=None).forward(x, w))
    plan = nc.plan_conv((0, 2, 9), (3, 2, 3), max_bytes=20_000, algorithm="direct")
    none, dy, w = np.zeros((0, 2, 9), "f4"), np.zeros((0, 3, 7), "f4"), np.ones((3, 2, 3), "f4")
    assert plan.forward(none, w).shape == dy.shape
    assert plan.grad_input(dy, w).shape == none.shape
    assert (plan.grad_weight(none, dy) == 0).all()


# memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", ["forward", "grad_input", "grad_weight"])
@pytest.mark.parametrize("boundary", ["constant", "reflect"])
def test_no_more_is_taken_than_max_bytes(product, boundary):
    limit = 6_000_000
    plan = nc.plan_conv((4, 8, 300, 301), (8, 8, 3, 3), padding=1, boundary=boundary, max_bytes=limit)
    inputs = arguments(plan, product, normal)
    shape = {"forward": plan.output_shape, "grad_input": plan.input_shape, "grad_weight": plan.kernel_shape}[product]
    out = np.empty(shape, np.float32)
    getattr(plan, product)(*inputs, out=out)  # compiles
    with at_most(limit):
        getattr(plan, product)(*inputs, out=out)


def test_a_limit_that_nothing_fits_is_an_error_that_says_what_would():
    plan = nc.plan_conv((1, 8, 50, 50), (8, 8, 3, 3), max_bytes=10)
    with pytest.raises(ValueError, match=r"max_bytes must be at least [\d,]+ for forward .* got 10"):
        plan.forward(np.zeros(plan.input_shape, "f4"), np.zeros(plan.kernel_shape, "f4"))
    for wrong, error in ((0, ValueError), ("1GB", TypeError), (1.5, TypeError)):
        with pytest.raises(error, match="max_bytes"):
            nc.plan_conv((1, 8, 50, 50), (8, 8, 3, 3), max_bytes=wrong)


def test_a_result_in_the_memory_of_an_input_is_refused():
    plan = nc.plan_convolve((50, 50), (3, 3), "same", max_bytes=10_000, algorithm="direct")
    x = values((50, 50), "f4")
    with pytest.raises(ValueError, match="out must not share memory"):
        plan.forward(x, values((3, 3), "f4"), out=x)


# files ----------------------------------------------------------------------------------------------------------------


class Slices:
    """What a file format gives: a shape, a dtype, and blocks by slices. It counts the largest block."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.largest = array, array.shape, array.dtype, 0

    def __getitem__(self, place):
        block = self.array[place]
        assert all(s.step in (None, 1) and s.start < s.stop for s in place)
        self.largest = max(self.largest, block.nbytes)
        return block.copy()

    def __setitem__(self, place, block):
        self.array[place] = block


@pytest.mark.parametrize("boundary", ["constant", "edge", "symmetric", "wrap"])
def test_arrays_that_give_blocks_by_slices_are_never_read_at_once(boundary):
    plan = nc.plan_conv((2, 40, 50), (3, 2, 3, 3), dtype=float, padding=2, boundary=boundary, max_bytes=30_000,
                        algorithm="direct")  # fmt: skip
    x, w, dy = values(plan.input_shape), values(plan.kernel_shape), values(plan.output_shape)
    whole = replace(plan, max_bytes=None)
    file, out = Slices(x), Slices(np.zeros(plan.output_shape))
    assert plan.forward(file, w, out=out) is out
    assert_same(out.array, whole.forward(x, w))
    assert file.largest < 30_000
    assert_same(plan.grad_weight(file, Slices(dy)), whole.grad_weight(x, dy))
    dx = Slices(np.zeros(plan.input_shape, "f4"))
    plan.grad_input(Slices(dy), w, out=dx)
    assert_same(dx.array, whole.grad_input(dy, w).astype("f4"))
    with pytest.raises(ValueError, match="out must have shape"):
        plan.forward(file, w, out=dx)
    with pytest.raises(TypeError, match="out must have a dtype"):
        plan.forward(file, w, out=Slices(np.zeros(plan.output_shape, int)))


def test_hdf5_and_zarr(tmp_path):
    h5py = pytest.importorskip("h5py")
    zarr = pytest.importorskip("zarr")
    x, w = values((60, 70, 20), "f4"), values((3, 3, 3), "f4")
    plan = nc.plan_convolve(x.shape, w.shape, "same", boundary="reflect", max_bytes=50_000, algorithm="direct")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        source = file.create_dataset("x", data=x, chunks=(20, 20, 20))
        target = zarr.create_array(str(tmp_path / "y.zarr"), shape=plan.output_shape, chunks=(30, 35, 20), dtype="f4")
        plan.forward(source, w, out=target)
    assert_same(target[...], replace(plan, max_bytes=None).forward(x, w))


def memmaps(path, plan):
    x = np.lib.format.open_memmap(path / "x.npy", "w+", plan.dtype, plan.input_shape)
    x[...] = values(plan.input_shape, plan.dtype)
    return x, np.lib.format.open_memmap(path / "y.npy", "w+", plan.dtype, plan.output_shape)


def small_plan(**more):
    return nc.plan_conv((1, 2, 60, 60), (2, 2, 3, 3), padding=1, algorithm="direct", max_bytes=20_000, **more)


def test_a_record_lists_the_tiles_and_the_finished_ones_are_not_computed_again(tmp_path, monkeypatch):
    plan, record = small_plan(), tmp_path / "record.json"
    x, out = memmaps(tmp_path, plan)
    w = values(plan.kernel_shape, "f4")
    whole = replace(plan, max_bytes=None).forward(x, w)
    assert plan.forward(x, w, out=out, resume=record) is out
    assert_same(np.asarray(out), whole)
    lines = record.read_text().splitlines()
    assert len(lines) > 5
    computed = []
    monkeypatch.setattr(stream, "forward_tile", lambda *a, f=stream.forward_tile: (computed.append(a[4]), f(*a))[1])
    plan.forward(x, w, out=out, resume=record)
    assert not computed
    out[0, 0, 0, 0] += 1  # one tile is no longer what was recorded
    record.write_text("\n".join([*lines[:-1], lines[-1][:-3]]))  # and the last line was cut off
    plan.forward(x, w, out=out, resume=str(record))
    assert len(computed) == 2
    assert_same(np.asarray(out), whole)
    assert [json.loads(line)["tile"] for line in record.read_text().splitlines()[1:-2]] == list(range(len(lines) - 2))


def test_a_record_of_another_convolution_is_refused(tmp_path):
    plan, record = small_plan(), tmp_path / "record.json"
    x, out = memmaps(tmp_path, plan)
    w = values(plan.kernel_shape, "f4")
    plan.forward(x, w, out=out, resume=record)
    with pytest.raises(ValueError, match="another convolution, with another w;"):
        plan.forward(x, w + 1, out=out, resume=record)
    with pytest.raises(ValueError, match="with another bias"):
        plan.forward(x, w, np.ones(2, "f4"), out=out, resume=record)
    with pytest.raises(ValueError, match="with another geometry;"):
        small_plan(boundary="wrap").forward(x, w, out=out, resume=record)
    with pytest.raises(ValueError, match="tile"):
        replace(plan, max_bytes=40_000).forward(x, w, out=out, resume=record)
    os.utime(tmp_path / "x.npy", ns=(0, 0))
    with pytest.raises(ValueError, match="with another x;"):
        plan.forward(x, w, out=out, resume=record)
    record.write_text("notes\n")
    with pytest.raises(ValueError, match="no record of numconv"):
        plan.forward(x, w, out=out, resume=record)
    assert record.read_text() == "notes\n"
    with pytest.raises(ValueError, match="out must be given for resume"):
        plan.forward(x, w, resume=record)
    with pytest.raises(ValueError, match="resume is for plans with max_bytes"):
        replace(plan, max_bytes=None).forward(x, w, out=out, resume=record)
    with pytest.raises(ValueError, match="out must not share memory"):
        plan.forward(x, w, out=np.lib.format.open_memmap(tmp_path / "x.npy", "r+"))


#: Streams from file to file; the kernel of a tile waits so that there is time to kill the process.
STREAM = """
import sys, time
import numpy as np, numconv as nc
from numconv import stream
path, wait = sys.argv[1], float(sys.argv[2])
plan = nc.plan_conv((1, 2, 60, 60), (2, 2, 3, 3), padding=1, algorithm="direct", max_bytes=20_000)
x, out = (np.lib.format.open_memmap(f"{path}/{name}.npy", "r+") for name in "xy")
tile, done = stream.forward_tile, []
def slow(*arguments):
    time.sleep(wait)
    done.append(0)
    return tile(*arguments)
stream.forward_tile = slow
plan.forward(x, np.load(f"{path}/w.npy"), out=out, resume=f"{path}/record.json")
print(len(done))
"""


def test_a_killed_process_is_resumed_and_the_result_is_right(tmp_path):
    plan, record = small_plan(), tmp_path / "record.json"
    x, out = memmaps(tmp_path, plan)
    w = values(plan.kernel_shape, "f4")
    np.save(tmp_path / "w.npy", w)
    process = subprocess.Popen([sys.executable, "-c", STREAM, str(tmp_path), "0.1"])
    until = time.monotonic() + 120
    while (not record.exists() or record.read_bytes().count(b"\n") < 4) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    assert process.wait() != 0
    finished = record.read_bytes().count(b"\n") - 1
    total = len(stream._Work(plan, "forward", {"x": (x, x.shape)}).tiles(4))
    assert 3 <= finished < total
    command = [sys.executable, "-c", STREAM, str(tmp_path), "0"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert int(run.stdout) == total - finished
    assert_same(np.asarray(np.load(tmp_path / "y.npy")), replace(plan, max_bytes=None).forward(x, w))
    assert_same(np.asarray(out), np.load(tmp_path / "y.npy"))


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals of this kind")
def test_a_bar_shows_how_far_it_is_on_a_terminal_and_nowhere_else():
    pytest.importorskip("tqdm")
    code = "import time\nfrom numconv.stream import progress\nfor i in progress(range(8), 'forward'): time.sleep(0.2)"
    import fcntl
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True, timeout=60)
    os.close(theirs)
    assert b"forward" in os.read(ours, 10_000)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert run.stderr == b""


def test_a_bar_waits_for_nobody(monkeypatch):
    """What is interrupted or killed while it holds tqdm's lock holds up nothing here."""
    tqdm = pytest.importorskip("tqdm").tqdm
    for terminal in (False, True):
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.setattr(sys, "stderr", screen)
        seen = []
        with tqdm.get_lock():
            work = partial(lambda found: found.extend(stream.progress(range(3), "forward")), seen)
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            thread.join(20)
            assert seen == [0, 1, 2]
    monkeypatch.setattr(sys, "stderr", None)  # pythonw
    assert list(stream.progress(range(3), "forward")) == [0, 1, 2]
