"""Processes that are forked after somebody, numconv or another library, has started threads: they compute, and say so.

Every case runs in a process of its own, since a fault there is a call that does not come back.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP and forks belong to Linux")

#: Seconds after which a child is ended as hung, and its parent.
PATIENCE, ALL_PATIENCE = 60, 240

#: What every program begins with. Parts of it run in children, which print a line of JSON each.
BEGIN = f"""
import ctypes, json, multiprocessing, os, signal, sys, time, warnings
import numpy as np

def openmp(count=4):
    # a loop of somebody else's under GNU OpenMP, whose threads stay
    library = ctypes.CDLL("libgomp.so.1", ctypes.RTLD_GLOBAL)
    loop = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
    library.GOMP_parallel(loop, None, count, 0)

def convolves():
    import numconv as nc
    return bool((nc.conv(np.ones((4, 120, 121)), np.ones((8, 4, 3, 3)), algorithm="implicit") == 36).all())

def report(name, work):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        right = work() and work()
    from numconv.cpu import threads
    found = {{
        "name": name, "right": right, "layer": threads.layer(), "said": [str(w.message) for w in caught],
        "threads": len(os.listdir("/proc/self/task")),
    }}
    os.write(1, json.dumps(found).encode() + b"\\n")  # a line in one piece

def fork(name, work, wait=True):
    child = os.fork()
    if child == 0:
        signal.alarm({PATIENCE})
        code = 1
        try:
            report(name, work)
            code = 0
        finally:
            os._exit(code)
    if wait:
        assert os.waitpid(child, 0)[1] == 0, name

def orphan(name, work):
    # a child of a child, whose parent has ended
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        parent = os.getpid()
        def works():
            while os.getppid() == parent:
                time.sleep(0.01)
            return work()
        fork(name, works, wait=False)
        os._exit(0)
    os.wait()
    os.close(write)
    os.read(read, 1)  # until it ends, too
"""


def lines(program, layer=None, **environment):
    """What the children of a program report, by name."""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "1", **environment}
    environment.pop("NUMBA_THREADING_LAYER", None)
    if layer:
        environment["NUMBA_THREADING_LAYER"] = layer
    run = subprocess.run(
        [sys.executable, program] if isinstance(program, Path) else [sys.executable, "-c", BEGIN + program],
        env=environment, capture_output=True, text=True, timeout=ALL_PATIENCE, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert found
    assert all(line["right"] for line in found)
    return {line.pop("name"): line for line in found}


def computes_alone(line, reason):
    (said,) = line["said"]
    assert said.startswith("numconv computes on one thread in this process")
    assert reason in said
    assert "'spawn'" in said
    assert line["threads"] == 1 or line["layer"] == "workqueue"  # which starts its threads anew, for others


def has_threads(line, *layers):
    assert line["said"] == []
    assert line["layer"] in layers
    assert line["threads"] > 1


def tbb_is_installed():
    from numconv.cpu.threads import TBB

    try:
        files = importlib.metadata.distribution("tbb").files or ()
    except importlib.metadata.PackageNotFoundError:
        return False
    return any(file.name == TBB for file in files)


@pytest.fixture(scope="module", autouse=True)
def needs_openmp():
    import ctypes

    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        pytest.skip("no GNU OpenMP on this system")


# somebody else's threads ----------------------------------------------------------------------------------------------

SOMEBODY_ELSES = """
openmp()
fork("first in the child", convolves)
orphan("orphan", convolves)
import numconv as nc
fork("imported before", convolves)
import numba

@numba.njit
def compiled(x):
    return nc.im2col(x, (3, 3))

fork("compiled code", lambda: bool((compiled(np.ones((400, 401))) == 1).all()))

def work(i):
    report(f"pool {os.getpid()}", convolves)

with multiprocessing.get_context("fork").Pool(2) as pool:
    pool.map_async(work, range(2), chunksize=1).get(timeout=60)

numba.set_num_threads(1)
fork("one thread is meant", convolves)
"""


def test_after_somebody_elses_openmp_the_layer_omp_is_not_entered():
    found = lines(SOMEBODY_ELSES, "omp")
    quiet = found.pop("one thread is meant")
    assert (quiet["said"], quiet["threads"]) == ([], 1)
    assert {"first in the child", "orphan", "imported before", "compiled code"} < set(found)
    for line in found.values():
        assert line["layer"] == "omp"
        computes_alone(line, "pip install tbb")


def test_after_somebody_elses_openmp_workqueue_starts_its_own_threads():
    found = lines(SOMEBODY_ELSES, "workqueue")
    del found["one thread is meant"], found["compiled code"]  # there workqueue's threads are not used
    for line in found.values():
        has_threads(line, "workqueue")


def test_after_somebody_elses_openmp_tbb_starts_its_own_threads():
    if not tbb_is_installed():
        pytest.skip("tbb is not installed")
    found = lines(SOMEBODY_ELSES)
    del found["one thread is meant"]  # there numba had to choose before numconv came
    assert len(found) >= 6
    for line in found.values():
        assert line["layer"] == "tbb"
        assert line["said"] == []
    has_threads(found["imported before"], "tbb")
    has_threads(found["compiled code"], "tbb")


@pytest.mark.parametrize("layer", ["omp", None])
def test_openmp_that_the_child_loads_itself_leaves_it_its_threads(layer):
    program = """
def with_its_own():
    openmp()
    return convolves()

fork("loaded in the child", with_its_own)
orphan("loaded by numba", convolves)
"""
    for line in lines(program, layer).values():
        has_threads(line, "omp", "tbb")


def test_the_start_methods_that_the_warning_names_give_threads(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(BEGIN + """
openmp()  # in the parent, and again in each child as it imports this

def work(name):
    report(name, convolves)

if __name__ == "__main__":
    for name in ("forkserver", "spawn"):
        process = multiprocessing.get_context(name).Process(target=work, args=(name,))
        process.start()
        process.join(60)
        assert process.exitcode == 0, name
""")
    found = lines(program, "omp")
    has_threads(found["forkserver"], "omp")
    has_threads(found["spawn"], "omp")


TORCHS = """
import torch
torch.rand(500, 500) @ torch.rand(500, 500)
fork("first in the child", convolves)

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        report(f"worker of item {i}", convolves)
        return i

loader = torch.utils.data.DataLoader(Images(), num_workers=2, multiprocessing_context="fork", timeout=60)
assert sorted(int(i) for i in loader) == [0, 1, 2, 3]
"""


@pytest.mark.parametrize("layer", ["omp", None])
def test_data_loaders_after_torch_computed(layer):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    found = lines(TORCHS, layer)
    assert len(found) == 5
    if found["first in the child"]["layer"] == "omp":
        computes_alone(found["first in the child"], "pip install tbb")
        assert sum(len(line["said"]) for line in found.values()) == 3  # each process says it once
    else:
        has_threads(found["first in the child"], "tbb")


def test_a_library_with_an_openmp_that_nobody_shares_takes_no_threads():
    """scikit-learn comes with a copy under a name of its own."""
    if importlib.util.find_spec("sklearn") is None:
        pytest.skip("scikit-learn is not installed")
    compute = "import sklearn.cluster; sklearn.cluster.KMeans(5, n_init=1).fit(np.random.rand(5000, 9))"
    line = lines(f'{compute}\nfork("child", convolves)', "omp")["child"]
    if line["said"]:  # built on the system's, as distributions do
        computes_alone(line, "pip install tbb")
    else:
        has_threads(line, "omp")


# numba's own ----------------------------------------------------------------------------------------------------------

NUMBAS = """
assert convolves()
fork("child", convolves)

def again():
    fork("grandchild", convolves)
    return convolves()

fork("child with a child", again)
report("parent", convolves)
if os.environ.get("NUMBA_THREADING_LAYER") != "omp":
    sys.exit()
import numba, numconv as nc

@numba.njit
def compiled(x):
    return nc.im2col(x, (3, 3))

fork("compiled code", lambda: bool((compiled(np.ones((400, 401))) == 1).all()))
"""


@pytest.mark.parametrize("layer", ["omp", None])
def test_after_numconv_computed_in_the_parent(layer):
    found = lines(NUMBAS, layer)
    has_threads(found.pop("parent"), "omp", "tbb")
    assert {"child", "child with a child", "grandchild"} <= set(found)
    assert ("compiled code" in found) == (layer == "omp")
    for line in found.values():
        computes_alone(line, "threads do not come along")


# the layer ------------------------------------------------------------------------------------------------------------

LAYER = """
import numba
{before}
report("here", convolves)
assert numba.threading_layer() == {layer!r}, numba.threading_layer()
"""


@pytest.mark.parametrize(
    ("before", "environment", "layer"),
    [
        ("", {}, "tbb"),
        ("", {"NUMBA_THREADING_LAYER": "omp"}, "omp"),
        ("", {"NUMBA_THREADING_LAYER_PRIORITY": "omp tbb workqueue"}, "omp"),
        ("import numconv.cpu.im2col; numba.config.THREADING_LAYER = 'omp'", {}, "omp"),
        ("numba.get_num_threads()", {}, "omp"),  # numba has not found TBB, and what runs is not changed
    ],
)
def test_tbb_is_taken_where_it_is_installed_and_the_user_has_not_chosen(before, environment, layer):
    if not tbb_is_installed():
        pytest.skip("tbb is not installed")
    environment = {"NUMBA_THREADING_LAYER": None, "LD_LIBRARY_PATH": "", **environment}
    program = LAYER.format(before=before, layer=layer)
    lines(program, environment.pop("NUMBA_THREADING_LAYER"), **environment)
