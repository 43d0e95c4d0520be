"""What held when it was tried at length, in short: many Python threads, loops of the user's, interrupts by the hundred,
every way to start a process, another user, no home, a disk that is nearly full.

A layer belongs to a process, so this file is also the script that such a process runs: it prints one line of JSON after
each step. NUMCONV_STORM says for how many seconds the interrupts last.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import pytest
from conftest import values
from numba import njit, prange
from test_processes import PROGRAM, end, start
from test_threads import CALLS, LAYERS, PATIENCE, bits, different, in_threads, report, shuffled

import numconv as nc

SECONDS = float(os.environ.get("NUMCONV_STORM", "1.5"))
#: Calls that are quick once they are compiled, of every kind.
NAMES = [
    "convolve", "convolve-axes", "correlate", "conv-strided", "conv-boundary", "conv-depthwise", "conv_grad_input",
    "conv_grad_weight", "im2col", "col2im-mean", "kernel2row", "operator", "forward-auto", "forward-im2col",
    "forward-fft", "forward-winograd", "grad_weight-implicit", "grad_input-kernel2row", "tiles", "image-reflect",
]  # fmt: skip
THREADS, EACH = 16, 20


# under each threading layer -------------------------------------------------------------------------------------------


@njit(cache=True)
def several(xs, w):
    """Work for threads of its own in every turn."""
    total = 0.0
    for i in range(len(xs)):
        total += nc.conv(xs[i], w, padding=1).sum()
    return total


@njit(parallel=True, cache=True)
def in_a_loop(xs, w):
    sums = np.empty(len(xs))
    for i in prange(len(xs)):
        sums[i] = several(xs[i], w)
    return sums


@njit(parallel=True, cache=True)
def in_a_loop_of_loops(xs, w):
    sums = np.empty((len(xs), xs.shape[1]))
    for i in prange(len(xs)):
        sums[i] = in_a_loop(xs[i : i + 1].reshape((xs.shape[1], 1, *xs.shape[2:])), w)
    return sums


def storm(expected, seconds):
    """Calls of this thread are interrupted at random moments, by a timer and by another thread, for so long.

    Two more threads compute all the while. What comes back must be right, and so must everything afterwards.
    """
    armed = []

    def interrupt(*_):
        if armed:  # once for each call, and nowhere else
            armed.clear()
            raise KeyboardInterrupt

    rng, names, over = np.random.default_rng(), list(expected), threading.Event()
    main, found = threading.get_ident(), {"calls": 0, "interrupts": 0, "wrong": []}

    def others(i):
        wrong = []
        while not over.is_set():
            wrong += different(expected, [names[int(np.random.default_rng(i).integers(len(names)))]])
            i += 2
        return wrong

    def sends(_):
        while not over.is_set():
            time.sleep(0.02)
            signal.pthread_kill(main, signal.SIGUSR1)
        return []

    for number in (signal.SIGALRM, signal.SIGUSR1):
        signal.signal(number, interrupt)
    results, before = [], threading.enumerate()
    at_once = partial(in_threads, lambda i: (others, others, sends)[i](i), 3)
    beside = threading.Thread(target=lambda: results.extend(at_once()), daemon=True)
    files, until = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0, time.monotonic() + seconds
    beside.start()
    while time.monotonic() < until:
        name = names[int(rng.integers(len(names)))]
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 6e-3))
        try:
            armed.append(name)
            got = bits(CALLS[name]())
            armed.clear()
        except KeyboardInterrupt:
            found["interrupts"] += 1
            continue
        found["calls"] += 1
        if got != expected[name]:
            found["wrong"].append(name)
    for number in (signal.SIGALRM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    over.set()
    beside.join()
    found["files"] = (len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0) - files
    found["threads"] = [thread.name for thread in threading.enumerate() if thread not in before]
    return found | {"others": results, "after": different(expected)}


def main(layer, seconds):
    """What the process of one layer does."""
    import numba

    expected = {name: bits(CALLS[name]()) for name in NAMES}
    report(step="layer", layer=numba.threading_layer())
    found = in_threads(lambda i: different(expected, (2 * shuffled(NAMES, i))[:EACH]), THREADS)
    report(step="threads", different=found)
    xs, w = values((3, 2, 1, 8, 40, 40), np.float32), values((8, 8, 3, 3), np.float32, 1)
    want = [[float(nc.conv(x, w, padding=1).sum(dtype=float)) for x in some] for some in xs[:, :, 0]]
    got = {"prange": np.allclose(in_a_loop(xs[:, :, 0], w), np.sum(want, 1), rtol=1e-6)}
    if layer != "workqueue":  # it ends a process whose loops are nested, whoever wrote them
        got["nested"] = np.allclose(in_a_loop_of_loops(xs, w), want, rtol=1e-6)
    report(step="loops", **{name: bool(right) for name, right in got.items()})
    if hasattr(signal, "setitimer"):
        report(step="storm", **storm(expected, seconds))


@pytest.fixture(scope="module", params=LAYERS)
def steps(request):
    """The lines of the process of one layer, by step."""
    layer = request.param
    root = os.path.dirname(os.path.dirname(os.path.abspath(nc.__file__)))
    environment = os.environ | {
        "NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "3", "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),
    }  # fmt: skip
    if layer == "tbb":  # pip puts libtbb where the loader does not look
        paths = [os.path.join(sys.prefix, "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
    run = subprocess.run(
        [sys.executable, __file__, layer, str(SECONDS)], env=environment, capture_output=True, text=True,
        timeout=2 * PATIENCE + SECONDS, check=False,
    )  # fmt: skip
    if "No threading layer could be loaded" in run.stderr:
        pytest.skip(f"numba offers no {layer} here")
    assert run.returncode == 0, run.stderr[-3000:] + run.stdout
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    found = {line.pop("step"): line for line in lines}
    assert found["layer"] == {"layer": layer}
    return found


def test_sixteen_python_threads_call_at_once(steps):
    assert steps["threads"]["different"] == [[]] * THREADS


def test_calls_inside_loops_of_the_user_and_loops_of_these(steps):
    assert set(steps["loops"].values()) == {True}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers of this kind")
def test_a_storm_of_interrupts_leaves_nothing_wrong_behind(steps):
    found = steps["storm"]
    assert found["wrong"] == found["after"] == []
    assert found["others"] == [[]] * 3
    assert (found["files"], found["threads"]) == (0, [])
    assert found["interrupts"] > 20
    assert found["calls"] > 20


# every way to start a process -----------------------------------------------------------------------------------------


def work(number):
    """What a worker computes, of several kinds."""
    x, w = np.full((2, 3, 60, 61), float(number)), np.ones((4, 3, 3, 3))
    plan = nc.plan_conv(x.shape, w.shape, dtype=float, padding=1)
    y = plan.forward(x, w)
    return bits(y), bits(plan.grad_input(y, w)), bits(nc.im2col(x, (3, 3))), bits(nc.convolve(x[0, 0], w[0, 0], "same"))


def executed(method):
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        return list(pool.map(work, range(4), timeout=PATIENCE))


def by_loky():
    joblib = pytest.importorskip("joblib")
    from joblib.externals import loky

    try:
        return joblib.Parallel(n_jobs=2, backend="loky", timeout=PATIENCE)(joblib.delayed(work)(n) for n in range(4))
    finally:
        loky.get_reusable_executor().shutdown(wait=True)


def by_dask():
    dask = pytest.importorskip("dask")
    calls = [dask.delayed(work)(n) for n in range(4)]
    return list(dask.compute(*calls, scheduler="processes", num_workers=2))


@pytest.mark.parametrize(
    "computed", [partial(executed, "spawn"), partial(executed, "forkserver"), by_loky, by_dask],
    ids=["spawn", "forkserver", "loky", "dask"],
)  # fmt: skip
def test_workers_of_every_kind_have_the_bits_of_this_process(computed):
    method = getattr(computed, "args", (None,))[0]
    if method and method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    assert computed() == [work(n) for n in range(4)]


# another user, no home, a tiny disk -----------------------------------------------------------------------------------

#: Nobody, who may read what root may, since root's Python may lie where others cannot look, but write nothing of it.
NOBODY = [
    "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search", "--bounding-set=+dac_read_search",
]  # fmt: skip

#: What such a user does, beside a kernel of their own: numconv's, whose folder cannot be written.
CALL = """
import os
import numconv as nc
assert not os.access(os.path.dirname(nc.__file__), os.W_OK)
assert nc.convolve(np.arange(9.0), np.ones(2)).tolist() == [0, 1, 3, 5, 7, 9, 11, 13, 15, 8]
"""


def as_nobody(folder, environment, code=PROGRAM):
    """A process of another user, whose program lies in a folder that is not theirs."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("another user is there only for root")
    if not shutil.which("setpriv") or subprocess.run([*NOBODY, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no setpriv that may change the user")
    program = folder / "program.py"
    program.write_text(code)
    root = os.path.dirname(os.path.dirname(os.path.abspath(nc.__file__)))
    outer = {name: value for name, value in os.environ.items() if name not in ("HOME", "NUMBA_CACHE_DIR", "USER")}
    more = {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))} | environment
    return subprocess.Popen(
        [*NOBODY, sys.executable, program, "f4"], env=outer | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd="/",
    )  # fmt: skip


def test_another_user_without_a_home_computes(tmp_path):
    code = PROGRAM.replace('print("right")', CALL + 'print("right")')
    warned = end(as_nobody(tmp_path, {}, code))
    assert "there is no folder for compiled code" in warned
    assert "NUMBA_CACHE_DIR" in warned
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program.py"]


def test_another_user_with_a_folder_keeps_what_is_compiled(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    if hasattr(os, "chown") and os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    for _ in range(2):
        assert end(as_nobody(tmp_path, {"NUMBA_CACHE_DIR": str(folder)})) == ""
        files = {path: path.stat().st_mtime_ns for path in folder.rglob("program.*.nb?")}
        assert len(files) == 2
    assert {path.stat().st_uid for path in folder.rglob("*")} == {65534}


def test_no_home_and_a_folder_of_the_program_that_can_be_written(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "NUMBA_CACHE_DIR")}
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, tmp_path / "program.py", "f4"], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert end(process) == ""


@pytest.mark.parametrize("size", ["4k", "40k"])
def test_a_tiny_disk_for_compiled_code_costs_a_compilation_and_nothing_else(tmp_path, size):
    """A disk that is full before anything is there, in the first file and in the second."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no disk of a given size without the right to mount one")
    try:
        (tmp_path / "program.py").write_text(PROGRAM)
        warned = end(start(tmp_path / "program.py", folder, "f4"))
        assert "compiled code cannot be kept in" in warned
        assert "No space left" in warned
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS)
