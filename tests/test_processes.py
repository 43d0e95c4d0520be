"""Processes that share a cache folder, folders that are damaged or cannot be written, and Ctrl-C in a long call."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: A kernel as numconv's own are, and small, so that it compiles quickly; it starts threads.
PROGRAM = """
import sys
import numpy as np
from numconv.cpu._jit import Kernel, tasks_of

@Kernel
def double(team, x, y):
    for i in tasks_of(team, x.size):
        y[i] = 2 * x[i]

for dtype in sys.argv[1:]:
    x = np.arange(1 << 18).astype(dtype)
    y = np.zeros_like(x)
    double(x, y, work=x.size)
    assert (y == x + x).all()
print("right")
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "program.py"
    path.write_text(PROGRAM)
    return path


def start(program, folder, *dtypes, **more):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)} | more
    return subprocess.Popen(
        [sys.executable, program, *dtypes], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process):
    """What a process that must end well wrote on its standard error."""
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out) == (0, "right\n"), err[-3000:]
    return err


@pytest.fixture(scope="module")
def filled(program, tmp_path_factory):
    """A cache folder that four processes filled at the same time, half of them beginning with another dtype."""
    folder = tmp_path_factory.mktemp("cache")
    orders = [("f4", "f8"), ("f8", "f4"), ("f4", "f8"), ("f8", "f4")]
    for process in [start(program, folder, *order) for order in orders]:
        assert end(process) == ""
    return folder


def test_processes_that_fill_one_folder_at_once_leave_it_in_order(program, filled):
    assert end(start(program, filled, "f4", "f8")) == ""
    before = {path: path.stat().st_mtime_ns for path in filled.rglob("*.nb?")}
    assert len(before) >= 5  # two files of double and an index, and of what launches threads
    assert end(start(program, filled, "f4", "f8")) == ""
    assert {path: path.stat().st_mtime_ns for path in filled.rglob("*.nb?")} == before


def test_code_for_other_types_under_the_name_of_these_is_not_taken(program, filled):
    end(start(program, filled, "f4", "f8"))  # whichever of the four wrote the index
    one, two = (next(filled.rglob(f"program.double*.{i}.nbc")) for i in (1, 2))
    code = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(code)
    end(start(program, filled, "f4", "f8"))


def cut(content):
    return content[: len(content) // 2]


def noise(content):
    third = len(content) // 3
    return content[:third] + os.urandom(third) + content[2 * third :]


@pytest.mark.parametrize(("ending", "damage"), [("nbi", cut), ("nbc", noise)])
def test_damaged_files_are_said_to_be_and_compiled_anew(program, filled, ending, damage):
    end(start(program, filled, "f4"))
    for file in filled.rglob(f"*.{ending}"):
        file.write_bytes(damage(file.read_bytes()))
    warning = end(start(program, filled, "f4"))
    assert "RuntimeWarning: the compiled code in" in warning
    assert "is damaged" in warning
    assert end(start(program, filled, "f4", PYTHONWARNINGS="error::RuntimeWarning")) == ""


def test_without_a_folder_to_write_to_it_is_compiled_in_memory(program, tmp_path):
    (tmp_path / "file").touch()
    only_there = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    warning = end(start(program, tmp_path / "file" / "folder", "f4", **only_there))
    assert "there is no folder for compiled code" in warning
    assert "NUMBA_CACHE_DIR" in warning


#: A full disk, as the system reports it.
FULL = """
import errno, numba.core.caching as caching
def full(self, filepath):
    raise OSError(errno.ENOSPC, "No space left on device", filepath)
caching.IndexDataCacheFile._open_for_write = full
"""


def test_a_full_disk_costs_a_compilation_and_nothing_else(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(FULL + PROGRAM)
    warning = end(start(program, tmp_path / "cache", "f4"))
    assert "compiled code cannot be kept in" in warning
    assert "No space left" in warning


# Ctrl-C ---------------------------------------------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, threading, time
import numpy as np, numconv as nc

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started to ignore it
x, w = np.ones((2500, 2500)), np.ones((31, 31))
plan = nc.plan_convolve(x.shape, w.shape, algorithm="direct", dtype=float, max_bytes={max_bytes})
small = nc.plan_convolve((200, 201), (31, 31), algorithm="direct", dtype=float)
assert (small.forward(x[:200, :201], w) == 961).all()  # compiles
out, interrupted = np.zeros(plan.output_shape), None
begin = time.perf_counter()
timer = threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
timer.start()
try:
    plan.forward(x, w, out=out)
except KeyboardInterrupt:
    interrupted = time.perf_counter() - begin
timer.join()
assert interrupted is not None, "it was not interrupted"
missing = (out != 961).mean()
assert (missing > 0.2) == {early}, f"{{missing:.0%}} were not computed"
assert (small.forward(x[:200, :201], w) == 961).all()
assert (nc.im2col(x[:300, :300], 3) == 1).all()
assert (plan.forward(x, w) == 961).all()
print("right")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no signals between threads")
@pytest.mark.parametrize(("max_bytes", "early"), [(None, False), (2_000_000, True)], ids=["one call", "tiles"])
def test_an_interrupted_call_leaves_a_usable_interpreter(max_bytes, early):
    code = INTERRUPTED.format(max_bytes=max_bytes, early=early)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert (run.returncode, run.stdout) == (0, "right\n"), run.stderr[-3000:]
