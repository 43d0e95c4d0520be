"""Memory: what would not fit is refused before it is taken, with its size and a way out; plans know their sizes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import values

import numconv as nc

try:
    import resource
except ImportError:  # Windows
    resource = None
if not Path("/proc/self/statm").exists():  # macOS has limits but no count to start from
    resource = None

TERA = 10**12


def huge(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """An array of any size in four bytes of memory."""
    return np.broadcast_to(np.ones((), dtype), shape)


@contextmanager
def at_most(nbytes: int) -> Iterator[None]:
    """Fails if Python and NumPy hold more than ``nbytes`` beyond what they held before.

    The address space is limited as well: a test that goes wrong shall fail, not take the machine's memory.
    """
    limits = resource and resource.getrlimit(resource.RLIMIT_AS)
    if resource:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), limits[1]))
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        if resource:
            resource.setrlimit(resource.RLIMIT_AS, limits)
    assert peak < nbytes, f"{peak:,} bytes were taken"


def stated_bytes(message: str) -> int:
    """The byte count in a message, written as ``5,017,600,000,000 bytes``."""
    number = re.search(r"(\d[\d,_ ]*\d) bytes", message)
    assert number, f"no byte count in: {message}"
    return int(re.sub(r"\D", "", number[1]))


def plan_huge(algorithm: str, kernel: int = 31, size: int = 20_000):
    """A product whose input and output fit while its columns and its matrix do not."""
    return nc.plan_conv((64, size, size), (1, 64, kernel, kernel), algorithm=algorithm)


#: what does not fit -> its bytes, the way out that the message has to show, the call
TOO_LARGE: dict[str, tuple[int, str, Any]] = {
    "im2col": (64 * 49 * 19994**2 * 4, r"conv|implicit", lambda: nc.im2col(huge(1, 64, 20_000, 20_000), (7, 7))),
    "im2col-plain": (225 * 199_986**2, r"conv|implicit", lambda: nc.im2col(huge(200_000, 200_000, dtype=np.int8), 15)),
    "unfold": (64 * 49 * 19994**2 * 4, r"conv|implicit", lambda: nc.unfold(huge(1, 64, 20_000, 20_000), 7)),
    "plan.im2col": (
        64 * 49 * 19994**2 * 4, r"conv|implicit|forward",
        lambda: nc.plan_conv((64, 20_000, 20_000), (8, 64, 7, 7)).im2col(huge(64, 20_000, 20_000)),
    ),
    "kernel2row": (
        9 * 99_998**2 * 12, r"linear_operator|conv", lambda: nc.kernel2row(np.ones((3, 3), "f4"), (100_000, 100_000))
    ),
    "kernel2row-channels": (
        64 * 64 * 9 * 9_998**2 * 4, r"linear_operator|conv",
        lambda: nc.kernel2row(np.ones((64, 64, 3, 3), "f4"), (10_000, 10_000)),
    ),
    "plan.matrix": (
        9 * 99_998**2 * 12, r"linear_operator|conv|forward",
        lambda: nc.plan_convolve((100_000, 100_000), (3, 3)).matrix(np.ones((3, 3), "f4")),
    ),
    "col2im": (
        4 * 2_000_000**2, r"conv_grad_input|grad_input|piece|tile|out|strip|batch|smaller",
        lambda: nc.col2im(huge(1, 2_000_000**2), (2_000_000, 2_000_000), 1),
    ),
    "fold": (
        4 * 2_000_000**2, r"conv_grad_input|grad_input|piece|tile|out|strip|batch|smaller",
        lambda: nc.fold(huge(1, 2_000_000**2), (2_000_000, 2_000_000), 1),
    ),
    "algorithm-im2col": (
        64 * 961 * 9_970**2 * 4, r"implicit|auto",
        lambda: nc.conv(huge(1, 64, 10_000, 10_000), np.ones((1, 64, 31, 31), "f4"), algorithm="im2col"),
    ),
    "algorithm-kernel2row": (
        64 * 9 * 19_998**2 * 4, r"implicit|auto|linear_operator",
        lambda: nc.conv(huge(1, 64, 20_000, 20_000), np.ones((1, 64, 3, 3), "f4"), algorithm="kernel2row"),
    ),
    "convolve-algorithm-im2col": (
        961 * 99_970**2 * 4, r"implicit|auto",
        lambda: nc.convolve(huge(100_000, 100_000), np.ones((31, 31), "f4"), "valid", algorithm="im2col"),
    ),
    "plan.forward": (
        64 * 961 * 9_970**2 * 4, r"implicit|auto",
        lambda: plan_huge("im2col", size=10_000).forward(huge(64, 10_000, 10_000), np.ones((1, 64, 31, 31), "f4")),
    ),
    "conv-result": (
        64 * 999_998**2 * 4, r"piece|tile|out|strip|batch|smaller",
        lambda: nc.conv(huge(1, 1, 1_000_000, 1_000_000), np.ones((64, 1, 3, 3), "f4")),
    ),
    "convolve-result": (
        1_000_002**2 * 8, r"piece|tile|out|strip|batch|smaller",
        lambda: nc.convolve(huge(1_000_000, 1_000_000, dtype=float), np.ones((3, 3))),
    ),
    "conv_transpose-result": (
        64 * 1_999_998**2 * 4, r"piece|tile|out|strip|batch|smaller",
        lambda: nc.conv_transpose2d(huge(1, 1, 999_999, 999_999), np.ones((1, 64, 2, 2), "f4"), stride=2),
    ),
    "conv_grad_input-result": (
        64 * 1_000_000**2 * 4, r"piece|tile|out|strip|batch|smaller",
        lambda: nc.conv_grad_input(
            (1, 64, 1_000_000, 1_000_000), np.ones((1, 64, 3, 3), "f4"), huge(1, 1, 999_998, 999_998)
        ),
    ),
    "conv_grad_weight-result": (
        4_000_000**2 * 4, r"piece|tile|out|strip|batch|smaller|group",
        lambda: nc.conv_grad_weight(huge(4_000_000, 1), (4_000_000, 4_000_000, 1), huge(4_000_000, 1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("nbytes", "way_out", "call"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_does_not_fit_is_refused_with_its_size_and_a_way_out(nbytes, way_out, call):
    assert nbytes > TERA / 10, "no machine that runs this test has so much"
    with at_most(40_000_000), pytest.raises(MemoryError) as error:
        call()
    # Indices (8 bytes for 4 of a value) and the copy of a broadcast input are counted in.
    assert TERA / 10 < stated_bytes(str(error.value)) < 3.2 * nbytes
    assert re.search(way_out, str(error.value)), f"no way out in: {error.value}"


def test_the_stated_size_of_columns_is_exact():
    with pytest.raises(MemoryError) as error:
        nc.im2col(huge(1, 64, 20_000, 20_000), (7, 7))
    assert stated_bytes(str(error.value)) == 64 * 49 * 19994**2 * 4
    assert nc.plan_conv((1, 64, 20_000, 20_000), (1, 64, 7, 7)).nbytes("im2col") == 64 * 49 * 19994**2 * 4


def test_a_given_out_is_not_counted_as_memory_to_take():
    out = np.zeros((28, 30))
    with at_most(4_000_000):
        assert nc.conv(values((3, 30, 32)), values((1, 3, 3, 3)), out=out[None]).shape == (1, 28, 30)


def test_a_refusal_leaves_the_library_usable():
    with pytest.raises(MemoryError):
        nc.im2col(huge(1, 64, 20_000, 20_000), (7, 7))
    assert nc.im2col(np.ones((9, 8)), 3).shape == (9, 42)


# what plans say about memory ------------------------------------------------------------------------------------------

PLANS = {
    "plain": (((9, 8), (3, 2)), {}),
    "plain-same": (((9, 8), (3, 2), "same"), {"boundary": "wrap"}),
    "batch": (((2, 4, 9, 8), (6, 2, 3, 2)), {"groups": 2, "stride": 2, "padding": 1}),
    "no-batch": (((4, 9, 8), (6, 4, 3, 2)), {"dilation": 2, "padding": 3, "boundary": "reflect"}),
    "1d": (((2, 3, 40), (5, 3, 7)), {"padding": "same"}),
    "empty-batch": (((0, 3, 40), (5, 3, 7)), {}),
}
DTYPES = ["int64", "float32", "float64"]


def make(shapes: tuple[Any, ...], arguments: dict[str, Any], **more: Any):
    plain = len(shapes) == 3 or len(shapes[0]) == len(shapes[1]) == 2
    return (nc.plan_convolve if plain else nc.plan_conv)(*shapes, **arguments, **more)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shapes", "arguments"), PLANS.values(), ids=PLANS)
def test_the_bytes_of_columns_and_matrix_are_exact(shapes, arguments, dtype):
    plan = make(shapes, arguments, dtype=dtype)
    assert plan.nbytes("im2col") == plan.im2col(np.zeros(plan.input_shape, dtype)).nbytes
    csr = plan.matrix(np.zeros(plan.kernel_shape, dtype))
    assert plan.nbytes("matrix") == csr.data.nbytes + csr.indices.nbytes + csr.indptr.nbytes


@pytest.mark.parametrize("algorithm", ["auto", "im2col", "kernel2row", "implicit", "direct", "winograd", "fft"])
def test_the_workspace_is_a_number_of_bytes_that_no_run_exceeds(algorithm):
    plan = nc.plan_conv((2, 16, 60, 62), (8, 16, 3, 3), dtype=np.float32, algorithm=algorithm)
    x, w = values((2, 16, 60, 62), np.float32), values((8, 16, 3, 3), np.float32)
    plan.forward(x, w)  # compiles
    workspace = plan.nbytes("workspace")
    assert isinstance(workspace, int)
    assert workspace >= 0
    with at_most(workspace + prod(plan.output_shape) * 4 + 1_000_000):  # Python's own objects besides
        plan.forward(x, w)


def test_an_explicit_matrix_is_part_of_the_workspace():
    plan = nc.plan_conv((16, 60, 62), (8, 16, 3, 3), dtype=np.float32, algorithm="im2col")
    assert plan.nbytes("workspace") >= plan.nbytes("im2col")
    plan = nc.plan_conv((16, 60, 62), (8, 16, 3, 3), dtype=np.float32, algorithm="kernel2row")
    assert plan.nbytes("workspace") >= plan.nbytes("matrix")


HUGE_PLANS = {
    "image": ((1, 1, 100_000, 100_000), (1, 1, 3, 3)),
    "filter": ((1, 1, 100_000, 100_000), (1, 1, 63, 63)),
    "layer": ((64, 512, 1000, 1000), (512, 512, 3, 3)),
    "strided": ((64, 3, 10_000, 10_000), (64, 3, 7, 7)),
    "signal": ((1, 1, 10**10), (1, 1, 10_000)),
    "volume": ((1, 16, 4000, 4000, 4000), (16, 16, 3, 3, 3)),
}


@pytest.mark.parametrize(("input_shape", "kernel_shape"), HUGE_PLANS.values(), ids=HUGE_PLANS)
def test_plans_of_any_size_are_cheap_and_know_their_bytes(input_shape, kernel_shape):
    with at_most(4_000_000):
        plan = nc.plan_conv(input_shape, kernel_shape)
        columns, matrix = plan.nbytes("im2col"), plan.nbytes("matrix")
    N, C, *_ = input_shape
    assert columns == N * C * prod(kernel_shape[2:]) * prod(plan.output_shape[2:]) * 4
    nnz = kernel_shape[0] * C * prod(kernel_shape[2:]) * prod(plan.output_shape[2:])
    wide = nnz > np.iinfo(np.int32).max
    rows = kernel_shape[0] * prod(plan.output_shape[2:])
    assert wide, "these matrices need 64-bit indices"
    assert matrix == nnz * (4 + 8) + (rows + 1) * 8


@pytest.mark.parametrize(("input_shape", "kernel_shape"), HUGE_PLANS.values(), ids=HUGE_PLANS)
@pytest.mark.parametrize("stride", [1, 2])
def test_what_auto_picks_needs_64_mib_beyond_inputs_and_outputs_at_any_size(input_shape, kernel_shape, stride):
    for padding in ("valid", "same"):
        plan = nc.plan_conv(input_shape, kernel_shape, stride=stride, padding=padding)
        assert plan.nbytes("workspace") <= 64 << 20
        assert plan.algorithm != "auto"
    plan = nc.plan_conv(input_shape, kernel_shape, stride=stride, algorithm="implicit")
    assert plan.nbytes("workspace") <= 64 << 20


def test_the_limit_holds_while_auto_runs():
    x, w = values((1, 8, 1500, 1500), np.float32), values((8, 8, 5, 5), np.float32)
    plan = nc.plan_conv(x.shape, w.shape)
    out = np.empty(plan.output_shape, np.float32)
    plan.forward(x, w, out=out)  # compiles
    with at_most(64 << 20):
        plan.forward(x, w, out=out)


@pytest.mark.parametrize("boundary", ["reflect", "wrap"])
def test_a_boundary_does_not_cost_a_padded_copy_of_a_large_image(boundary):
    x, w = values((6000, 4000), np.float32), values((5, 5), np.float32)  # 96 MB, more than the 64 MiB that are allowed
    plan = nc.plan_convolve(x.shape, w.shape, "same", boundary=boundary)
    small = nc.plan_convolve((60, 40), w.shape, "same", boundary=boundary)
    small.forward(x[:60, :40], w)  # compiles
    out = np.empty(plan.output_shape, np.float32)
    with at_most(64 << 20):
        plan.forward(x, w, out=out)
    crop = np.pad(x[:10, :10], 2, mode=boundary)[:12, :12] if boundary == "reflect" else None
    if crop is not None:
        windows = np.lib.stride_tricks.sliding_window_view(crop, (5, 5))
        np.testing.assert_allclose(out[:8, :8], np.einsum("ijkl,kl", windows, w[::-1, ::-1]), rtol=1e-4, atol=1e-4)


# in a process of its own: memory that kernels take themselves, and time that a hang would take ------------------------

#: Prints a line of JSON for each case: what came out, and by how many bytes the peak of resident memory rose.
SCRIPT = """
import json, os, resource, signal
import numpy as np, numconv as nc

resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))  # a case that goes wrong shall not take the machine

def case(name, call):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        result = call()
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(json.dumps({"name": name, "result": result, "grown": grown}), flush=True)

def case_that_may_hang(name, call):
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        case(name, call)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(json.dumps({"name": name, "result": "it hung or was killed", "grown": 0}), flush=True)

def large(algorithm):
    plan = nc.plan_conv((1, 16, 1500, 1500), (16, 16, 3, 3), padding=1, algorithm=algorithm)
    near = nc.plan_conv((1, 16, 200, 200), (16, 16, 3, 3), padding=1, algorithm=plan.algorithm)
    near.forward(np.ones(near.input_shape, "f4"), np.ones(near.kernel_shape, "f4"))  # compiles
    x, w, out = (np.ones(shape, "f4") for shape in (plan.input_shape, plan.kernel_shape, plan.output_shape))
    case(f"{algorithm} large", lambda: float(plan.forward(x, w, out=out)[0, 0, 1, 1]))

x, w, y = np.arange(1.0, 10.0)[None, None], np.array([[[1.0, 10.0, 100.0]]]), np.array([[[3.0, 5.0, 7.0]]])

def products(dy, algorithm, **far):
    y, dx = nc.conv(x, w, algorithm=algorithm, **far), nc.conv_grad_input(x.shape, w, dy, algorithm=algorithm, **far)
    return [a.ravel().tolist() for a in (y, dx, nc.conv_grad_weight(x, w.shape, dy, algorithm=algorithm, **far))]

for algorithm in ("direct", "implicit", "auto"):
    large(algorithm)
for algorithm in ("direct", "im2col", "kernel2row", "implicit", "auto"):
    products(y, algorithm, stride=10, padding=10)  # compiles
    for far in (10, 10**9, 2**62):
        case_that_may_hang(f"{algorithm} stride {far}", lambda: products(y, algorithm, stride=far, padding=far))
        case_that_may_hang(f"{algorithm} dilation {far}", lambda: products(x, algorithm, dilation=far, padding=far))
"""


@pytest.fixture(scope="module")
def cases():
    """The lines of the script by name, as far as it got in a time that is ample."""
    if resource is None:
        pytest.skip("no limits of memory here")
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return {line["name"]: line for line in map(json.loads, run.stdout.splitlines())}


far = pytest.mark.parametrize("far", [10, 10**9, 2**62], ids=["10", "10**9", "2**62"])
adders = pytest.mark.parametrize("algorithm", ["direct", "im2col", "kernel2row", "implicit", "auto"])


@far
@adders
def test_a_far_stride_costs_neither_time_nor_memory(cases, algorithm, far):
    line = cases[f"{algorithm} stride {far}"]
    if far == 2**62 and str(line["result"]).startswith("ValueError"):
        assert "stride" in line["result"] or "padding" in line["result"]  # 64 bits do not hold every position
        return
    # windows at -far, 0 and far: only the one in the middle sees the input
    assert line["result"] == [[0, 321, 0], [5, 50, 500, 0, 0, 0, 0, 0, 0], [5, 10, 15]]
    assert line["grown"] < 64 << 20


@far
@adders
def test_far_taps_cost_neither_time_nor_memory(cases, algorithm, far):
    line = cases[f"{algorithm} dilation {far}"]
    if far == 2**62 and str(line["result"]).startswith("ValueError"):
        assert "dilation" in line["result"] or "padding" in line["result"]
        return
    # only the tap in the middle sees the input
    ten_times = [10.0 * i for i in range(1, 10)]
    assert line["result"] == [ten_times, ten_times, [0, 285, 0]]
    assert line["grown"] < 64 << 20


@pytest.mark.parametrize("algorithm", ["direct", "implicit", "auto"])
def test_the_memory_that_kernels_take_themselves_stays_within_64_mib(cases, algorithm):
    line = cases[f"{algorithm} large"]
    assert line["result"] == 144
    assert line["grown"] < 64 << 20


def test_a_workspace_is_kept_for_the_next_call_and_never_shared():
    from numconv import _memory

    with _memory.workspace(1000, np.dtype("f4")) as outer, _memory.workspace(900, np.dtype("f8")) as inner:
        assert not np.shares_memory(outer, inner)
        assert (outer.dtype, outer.size, inner.dtype, inner.size) == (np.float32, 1000, np.float64, 900)
        assert outer.ctypes.data % _memory.LINE == inner.ctypes.data % _memory.LINE == 0
    with _memory.workspace(1000, np.dtype("f4")) as again:
        assert np.shares_memory(again, outer)
    with _memory.workspace(_memory.KEPT, np.dtype("u1")) as large:
        pass
    with _memory.workspace(1000, np.dtype("f4")) as small:
        assert not np.shares_memory(small, large)
