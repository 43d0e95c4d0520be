"""The same bits for any number of threads, and under every threading layer: many callers at once, and after a fork.

A layer belongs to a process and its faults end it, so this file is also the script that such a process runs
(``python test_threads.py``): it prints one line of JSON after each step, and the tests look at the lines.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import numconv as nc

ALGORITHMS = ["im2col", "kernel2row", "implicit", "direct", "winograd", "fft"]
LAYERS = ["omp", "workqueue", "tbb"]
#: Seconds after which a process counts as hung; it takes a fraction of it, most for loading compiled code.
PATIENCE = 240

# every function, large enough that it uses threads --------------------------------------------------------------------


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape)


def plan(**arguments: Any):
    return nc.plan_conv((2, 8, 40, 41), (6, 8, 3, 3), dtype=np.float64, padding=1, **arguments)


def make_calls() -> dict[str, Callable[[], Any]]:
    x, w, bias, dy = numbers(2, 8, 40, 41), numbers(6, 8, 3, 3), numbers(6), numbers(2, 6, 40, 41)
    image, kernel, signal_, taps = numbers(300, 301), numbers(5, 4), numbers(40_000), numbers(31)
    cols = numbers(2, 8 * 9, 40 * 41)
    geometry = {"padding": 1}
    mean = {"reduce": "mean", "boundary": "reflect"}
    calls = {
        "convolve": lambda: nc.convolve(image, kernel),
        "convolve-1d": lambda: nc.convolve(signal_, taps, "same"),
        "convolve-axes": lambda: nc.convolve(x, taps[:5], axes=(2,)),
        "correlate": lambda: nc.correlate(image, kernel, "valid", stride=2),
        "conv-strided": lambda: nc.conv(x, w, bias, stride=2, dilation=2, **geometry),
        "conv-boundary": lambda: nc.conv(x, w, bias, boundary="symmetric", **geometry),
        "conv-depthwise": lambda: nc.conv(x, numbers(8, 1, 3, 3), groups=8, **geometry),
        "conv1d": lambda: nc.conv1d(x[0].reshape(8, -1), numbers(6, 8, 5)),
        "conv3d": lambda: nc.conv3d(x[:, :, :, None], numbers(4, 8, 3, 1, 3)),
        "conv_transpose2d": lambda: nc.conv_transpose2d(x, numbers(8, 5, 3, 3), None, 2, 1, 1),
        "conv_grad_input": lambda: nc.conv_grad_input(x.shape, w, dy, **geometry),
        "conv_grad_input-boundary": lambda: nc.conv_grad_input(x.shape, w, dy, boundary="wrap", **geometry),
        "conv_grad_weight": lambda: nc.conv_grad_weight(x, w.shape, dy, **geometry),
        "conv_grad_weight-1d": lambda: nc.conv_grad_weight(signal_[None], (1, 1, 31), numbers(1, 39_970)),
        "im2col": lambda: nc.im2col(x, (3, 3), **geometry),
        "col2im": lambda: nc.col2im(cols, x.shape, (3, 3), **geometry),
        "col2im-mean": lambda: nc.col2im(cols, x.shape, (3, 3), **geometry, **mean),
        "unfold": lambda: nc.unfold(x, 3, 1, 1, 2),
        "fold": lambda: nc.fold(cols, (40, 41), 3, 1, 1),
        "kernel2row": lambda: nc.kernel2row(w, (40, 41), **geometry),
        "refill": lambda: plan().refill(plan().matrix(w), 2 * w),
        "operator": lambda: plan().linear_operator(w).matvec(x[0].ravel()),
        "operator-adjoint": lambda: plan().linear_operator(w).rmatvec(dy[0].ravel()),
    }
    for algorithm in ("auto", *ALGORITHMS):
        calls[f"forward-{algorithm}"] = lambda a=algorithm: plan(algorithm=a).forward(x, w, bias)
        calls[f"grad_input-{algorithm}"] = lambda a=algorithm: plan(algorithm=a).grad_input(dy, w)
        calls[f"grad_weight-{algorithm}"] = lambda a=algorithm: plan(algorithm=a).grad_weight(x, dy)
    tiled = plan(algorithm="direct", max_bytes=400_000)
    calls["tiles"] = lambda: tiled.forward(x, w, bias)
    calls["tiles-grad_weight"] = lambda: tiled.grad_weight(x, dy)
    for boundary in ("constant", "edge", "reflect", "symmetric", "wrap"):
        calls[f"image-{boundary}"] = lambda b=boundary: nc.convolve(image, kernel, "same", boundary=b)
    return calls


CALLS = make_calls()


def bits(result: Any) -> str:
    """A fingerprint of every bit of a result."""
    arrays = [result] if isinstance(result, np.ndarray) else [result.data, result.indices, result.indptr]
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def different(expected: dict[str, str], order: list[str] | None = None) -> list[str]:
    """The calls whose bits are not the expected ones."""
    return [name for name in order or expected if bits(CALLS[name]()) != expected[name]]


# the number of threads ------------------------------------------------------------------------------------------------


@pytest.fixture
def set_threads():
    numba = pytest.importorskip("numba")
    before = numba.get_num_threads()
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one core: the processes below use three threads anyway")
    yield numba.set_num_threads
    numba.set_num_threads(before)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_one_and_two_threads_give_the_same_bits(call, set_threads):
    set_threads(1)
    one = bits(call())
    set_threads(2)
    assert bits(call()) == one
    assert bits(call()) == one


def test_the_bits_hold_for_float32(set_threads):
    p = nc.plan_conv((2, 8, 40, 41), (6, 8, 3, 3), stride=2, boundary="edge", padding=1)
    x, w, dy = (numbers(*shape).astype(np.float32) for shape in (p.input_shape, p.kernel_shape, p.output_shape))
    results = []
    for threads in (1, 2):
        set_threads(threads)
        results.append([bits(r) for r in (p.forward(x, w), p.grad_input(dy, w), p.grad_weight(x, dy), p.matrix(w))])
    assert results[0] == results[1]


def test_numconv_leaves_the_number_of_threads_as_it_is(set_threads):
    import numba

    set_threads(1)
    CALLS["forward-auto"]()
    assert numba.get_num_threads() == 1


# in one process -------------------------------------------------------------------------------------------------------


def in_threads(work: Callable[[int], Any], count: int) -> list[Any]:
    """The results of ``work(0) … work(count - 1)``, begun at the same moment in threads of their own."""
    together, results = threading.Barrier(count), [None] * count

    def run(i: int) -> None:
        together.wait()
        try:
            results[i] = work(i)
        except BaseException:
            results[i] = traceback.format_exc()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_share_a_plan():
    p = plan()
    x, w, dy = numbers(2, 8, 40, 41), numbers(6, 8, 3, 3), numbers(2, 6, 40, 41)
    expected = [bits(r) for r in (p.forward(x, w), p.grad_input(dy, w), p.grad_weight(x, dy), p.matrix(w))]

    def use(_: int) -> list[str]:
        return [bits(r) for r in (p.forward(x, w), p.grad_input(dy, w), p.grad_weight(x, dy), p.matrix(w))]

    assert in_threads(use, 6) == [expected] * 6


def test_threads_that_plan_at_once_get_equal_plans():
    shape = (3, 5, 33, 34)  # planned nowhere else
    plans = in_threads(lambda _: nc.plan_conv(shape, (7, 5, 3, 3), padding=1), 8)
    assert {type(p) for p in plans} == {nc.ConvPlan}
    assert len(set(plans)) == 1


# in processes, one for each threading layer ---------------------------------------------------------------------------


def report(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def in_child(work: Callable[[], list[str]]) -> dict[str, Any]:
    """Fork, run ``work`` in the child, and say how the child ended and what it found different."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE // 2)  # a child that hangs is ended by it
        code = 1
        try:
            os.close(read)
            os.write(write, json.dumps(work()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        found = pipe.read().decode()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"code": code, "different": json.loads(found) if found else None}


def shuffled(names: list[str], seed: int) -> list[str]:
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def soak(expected: dict[str, str], seconds: float, count: int = 8) -> dict[str, Any]:
    """How many calls ``count`` threads made for so long, each of its own mixture, and which of them went wrong."""
    until = time.monotonic() + seconds

    def mix(i: int) -> tuple[int, list[str]]:
        calls, found, names = 0, [], itertools.cycle(shuffled(list(expected), i))
        while time.monotonic() < until:
            found += different(expected, [next(names)])
            calls += 1
        return calls, found

    results = in_threads(mix, count)
    broken = [result for result in results if isinstance(result, str)]
    whole = [result for result in results if not isinstance(result, str)]
    return {"calls": sum(calls for calls, _ in whole), "different": [name for _, f in whole for name in f] + broken}


def main(seconds: float) -> None:
    """What the process of one layer does, a line of JSON for every step; the soak takes so many seconds."""
    import numba

    numba.set_num_threads(1)
    expected = {name: bits(call()) for name, call in CALLS.items()}
    numba.set_num_threads(3)
    report(step="threads", different=different(expected))
    report(step="layer", layer=numba.threading_layer())

    @numba.njit(parallel=True)
    def users_own(values):
        total = 0.0
        for i in numba.prange(values.size):
            total += values[i]
        return total

    ones, turns = np.ones(100_000), []
    for _ in range(3):
        turns += [users_own(ones) == ones.size, different(expected, ["convolve", "forward-direct", "im2col"]) == []]
    report(step="users-own-parallel-loop", turns=turns)

    names = list(expected)
    found = in_threads(lambda i: different(expected, shuffled(names, i)), 4)
    report(step="at-once", different=found)
    report(step="soak", **soak(expected, seconds))

    if hasattr(os, "fork"):
        report(step="fork", **in_child(lambda: different(expected)))
        grandchild = in_child(lambda: in_child(lambda: different(expected, names[:5]))["different"])
        report(step="fork-of-fork", **grandchild)

        def forks_while_others_compute(i: int) -> Any:
            if i == 0:
                return in_child(lambda: different(expected, names[:10]))
            return different(expected, shuffled(names, i))

        child, *others = in_threads(forks_while_others_compute, 3)
        report(step="fork-while-busy", others=others, **child)
        child = in_child(lambda: in_threads(lambda i: different(expected, shuffled(names, i)[:10]), 3))
        report(step="threads-in-a-fork", **child)
    report(step="after", different=different(expected))


@pytest.fixture(scope="module", params=LAYERS)
def steps(request):
    """The lines of the process of one layer, by step."""
    layer = request.param
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "3", "PYTHONFAULTHANDLER": "1"}
    if layer == "tbb":  # pip puts libtbb where the loader does not look
        paths = [os.path.join(sys.prefix, "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
    test = "import numba, numpy; numba.njit(parallel=True)(lambda n: numpy.ones(n).sum())(9)"
    command = [sys.executable, "-c", test]
    offered = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE, check=False)
    if offered.returncode:
        assert b"threading layer" in offered.stderr, offered.stderr.decode()
        pytest.skip(f"numba offers no {layer} here")
    root = os.path.dirname(os.path.dirname(os.path.abspath(nc.__file__)))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    run = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    steps = {line.pop("step"): line for line in lines}
    steps["process"] = {"code": run.returncode, "stderr": run.stderr[-3000:], "asked": layer}
    return steps


def step(steps: dict[str, Any], name: str) -> dict[str, Any]:
    assert name in steps, f"the process did not get to {name!r}: {steps['process']}"
    return steps[name]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def test_the_process_ends_well_under_the_layer_asked_for(steps):
    assert step(steps, "process")["code"] == 0, steps["process"]["stderr"]
    assert step(steps, "layer")["layer"] == steps["process"]["asked"]


def test_one_and_three_threads_give_the_same_bits_under_every_layer(steps):
    assert step(steps, "threads")["different"] == []


def test_several_python_threads_call_everything_at_once(steps):
    assert step(steps, "at-once")["different"] == [[]] * 4


def test_eight_python_threads_mix_all_functions_for_seconds(steps):
    soaked = step(steps, "soak")
    assert soaked["different"] == []
    assert soaked["calls"] >= 8


def test_a_users_own_parallel_loops_run_in_between(steps):
    assert step(steps, "users-own-parallel-loop")["turns"] == [True] * 6


@needs_fork
def test_a_forked_child_computes_the_same_bits(steps):
    assert step(steps, "fork") == {"code": 0, "different": []}


@needs_fork
def test_a_child_of_a_forked_child_computes_too(steps):
    assert step(steps, "fork-of-fork") == {"code": 0, "different": []}


@needs_fork
def test_a_fork_amid_computing_threads_harms_neither_side(steps):
    assert step(steps, "fork-while-busy") == {"code": 0, "different": [], "others": [[], []]}


@needs_fork
def test_threads_of_a_forked_child_compute_at_once(steps):
    assert step(steps, "threads-in-a-fork") == {"code": 0, "different": [[]] * 3}


def test_the_parent_computes_on_after_its_children(steps):
    assert step(steps, "after")["different"] == []


# fresh processes ------------------------------------------------------------------------------------------------------


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_the_first_import_and_the_first_calls_may_come_from_threads():
    code = """
import threading
results, together = [], threading.Barrier(4)
def work():
    together.wait()
    import numconv, numpy as np
    x, w = np.ones((200, 201)), np.ones((3, 3))
    results.append((numconv.convolve(x, w, "valid") == 9).all() and (numconv.im2col(x, 3) == 1).all())
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print([bool(result) for result in results])
"""
    assert python(code).strip() == str([True] * 4)


@needs_fork
def test_a_fork_before_the_first_use_may_use_threads_of_its_own():
    code = """
import os, signal, numpy as np, numconv
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        y = numconv.convolve(np.ones((400, 401)), np.ones((5, 5)), "valid")
        os._exit(0 if (y == 25).all() else 3)
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""
    assert python(code).strip() == "[0, 0]"


@needs_fork
def test_workers_of_a_forked_pool_compute_after_the_parent_did():
    code = """
import multiprocessing, numpy as np, numconv
plan = numconv.plan_convolve((300, 301), (5, 5), dtype=np.float64)
def work(i):
    return float(plan.forward(np.full((300, 301), float(i)), np.ones((5, 5))).max())
assert work(1) == 25  # threads are up
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map_async(work, range(4)).get(timeout=100))
"""
    assert python(code).strip() == "[0.0, 25.0, 50.0, 75.0]"


@pytest.mark.parametrize("shared", [True, False], ids=["PyTorch's OpenMP for everybody", "its own"])
def test_the_openmp_that_is_asked_is_the_one_that_numba_runs_on(shared):
    torch = importlib.util.find_spec("torch")
    libraries = glob.glob(os.path.join(os.path.dirname(torch.origin), "lib", "libgomp*")) if torch else []
    if sys.platform != "linux" or (shared and not libraries):
        pytest.skip("no PyTorch with an OpenMP of its own")
    code = f"""
import ctypes, numba, numpy as np
for path in {libraries[:shared]}:
    ctypes.CDLL(path, ctypes.RTLD_GLOBAL)  # as PyTorch loads it
numba.config.THREADING_LAYER = "omp"
from numconv.cpu import threads
try:
    threads.layer()
except ValueError:
    raise SystemExit("no OpenMP")
function = threads.openmp("omp_in_parallel")
function.argtypes = ()

@numba.njit(parallel=True)
def users(answers):
    for i in numba.prange(answers.size):
        answers[i] = function()
    return function()

answers = np.zeros(4, int)
print(users(answers), answers)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    if "no OpenMP" in run.stderr:
        pytest.skip("numba offers no omp here")
    assert (run.returncode, run.stdout) == (0, "0 [1 1 1 1]\n"), run.stderr[-3000:]


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 5)
