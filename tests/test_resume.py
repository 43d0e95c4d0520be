"""Work that goes on after a kill: the bits of an undisturbed run, no word of an earlier one that is not true of this
one, and no other file touched.

This file is also the script that a process runs in which others are begun and killed (``python test_resume.py``); it
prints one line of JSON after each step. NUMCONV_RESUME_KILLS says how many are killed, 50 if it is not set.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import values
from hypothesis import given
from hypothesis import strategies as st
from strategies import cases

import numconv as nc
from numconv import record as records
from numconv import stream

KILLS = int(os.environ.get("NUMCONV_RESUME_KILLS", "50"))
PATIENCE = 240


def small_plan(**more):
    """A plan of some twenty tiles, on any number of cores."""
    plan = nc.plan_conv((1, 2, 60, 60), (2, 2, 3, 3), **{"padding": 1, "algorithm": "direct"} | more)
    least = max(stream.nbytes(plan, product, (1, 2, 3, 60), beside=8) for product in ("forward", "grad_input"))
    return replace(plan, max_bytes=least)


def numbers(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def file_array(path, array):
    """An array in a file, with these values."""
    mapped = np.lib.format.open_memmap(path, "w+", array.dtype, array.shape)
    mapped[...] = array
    return mapped


def reopened(path):
    return np.lib.format.open_memmap(path, "r+")


def zeros(path, plan, product="forward"):
    return file_array(path, np.zeros(plan.output_shape if product == "forward" else plan.input_shape, plan.dtype))


def same(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


# killed processes -----------------------------------------------------------------------------------------------------


def begin(work):
    """A child that does this; its exit code is 0 if it ends, 5 for an ``OSError``, 6 for a ``ValueError``."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(PATIENCE // 2)
        work()
        code = 0
    except OSError as error:
        code = 5 if str(error).startswith("[Errno 27]") else 7
    except ValueError as error:
        code = 6 if "another process or thread is at work" in str(error) else 8
    finally:
        os._exit(code)


def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at_random(folder, total, run, fresh, expected, rng):
    """Processes killed at random moments, half of all ``KILLS``; what is resumed has computed every tile once."""
    for _ in range(2):
        fresh()
        started = time.monotonic()
        assert end(begin(run)) == 0
        takes = time.monotonic() - started
    kills, works, wrong, twice = 0, 0, 0, 0
    while 2 * kills < KILLS:
        fresh()
        works += 1
        while True:
            child = begin(run)
            time.sleep(rng.uniform(0, takes))
            os.kill(child, signal.SIGKILL)
            code = end(child)
            if code == 0:
                break
            assert code == -signal.SIGKILL, code
            kills += 1
        wrong += not same(reopened(folder / "y.npy"), expected)
        twice += (folder / "record").read_bytes().count(b"\n") != 1 + total
    return {"kills": kills, "works": works, "wrong": wrong, "twice": twice}


def cut_at_random(folder, run, fresh, expected, rng, slowly):
    """As a power cut may leave them: a record without its end or with zeros there, and pages of the result lost."""
    wrong = 0
    for _ in range(8):
        fresh()
        child = begin(slowly)
        wait_for_lines(folder, 4)
        os.kill(child, signal.SIGKILL)
        end(child)
        text = (folder / "record").read_bytes()
        header = text.index(b"\n") + 1
        at = int(rng.integers(header, len(text)))
        (folder / "record").write_bytes(text[:at] + bytes(int(rng.integers(0, 100))) + text[at:] * int(rng.integers(2)))
        y = reopened(folder / "y.npy").reshape(-1)
        lost = int(rng.integers(0, y.size - 1024))
        y[lost : lost + 1024] = 0
        wrong += end(begin(run)) != 0 or not same(reopened(folder / "y.npy"), expected)
    return {"wrong": wrong}


def full_disk(folder, run, fresh, expected, rng):
    """The record cannot grow: no tile is said to be there that is not, and the work goes on when there is room."""
    import resource

    def with_limit(nbytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, resource.RLIM_INFINITY))
        run()

    fresh()
    none = {"begin": end(begin(lambda: with_limit(10))), "left": sorted(p.name for p in folder.iterdir())}
    end(begin(run))
    text = (folder / "record").read_bytes()
    codes, wrong = [], 0
    for _ in range(6):
        fresh()
        limit = int(rng.integers(text.index(b"\n") + 2, len(text)))
        codes.append(end(begin(lambda limit=limit: with_limit(limit))))
        wrong += (folder / "record").read_bytes() != text[:limit]
        wrong += end(begin(run)) != 0 or not same(reopened(folder / "y.npy"), expected)
        wrong += (folder / "record").read_bytes() != text
    return none | {"codes": codes, "wrong": wrong}


def wait_for_lines(folder, count):
    until = time.monotonic() + PATIENCE / 4
    while time.monotonic() < until:
        if (folder / "record").exists() and (folder / "record").read_bytes().count(b"\n") > count:
            return
        time.sleep(0.001)
    raise AssertionError("no tile was finished")


def cut_under_us(folder, run, slowly, fresh, expected):
    """The file of the result is cut off while a process writes to it: the system ends the process."""
    fresh()
    child = begin(slowly)
    wait_for_lines(folder, 3)
    os.truncate(folder / "y.npy", 4096)
    codes = [end(child), end(begin(run))]
    return {"codes": codes, "right": same(reopened(folder / "y.npy"), expected)}


def two_at_once(folder, run, slowly, fresh, expected):
    fresh()
    first = begin(slowly)
    wait_for_lines(folder, 1)
    second = end(begin(run))
    return {"second": second, "first": end(first), "right": same(reopened(folder / "y.npy"), expected)}


def main(folder):
    """Every step, with children of a process that has the code already and no threads."""
    plan, rng = small_plan(), np.random.default_rng()
    file_array(folder / "x.npy", numbers(*plan.input_shape))
    w = numbers(*plan.kernel_shape, seed=1)
    tile = stream.forward_tile
    for product in ("forward", "grad_input"):
        source = numbers(*(plan.input_shape if product == "forward" else plan.output_shape), seed=2)
        file_array(folder / "x.npy", source).flush()
        expected = getattr(plan, product)(source, w)

        def fresh(product=product):
            for left in (folder / "record", *folder.glob(".numconv-*")):  # the name of a record that was being begun
                left.unlink(missing_ok=True)
            zeros(folder / "y.npy", plan, product)

        def run(product=product):
            x = np.load(folder / "x.npy", mmap_mode="r")
            getattr(plan, product)(x, w, out=reopened(folder / "y.npy"), resume=folder / "record")

        def slowly():
            stream.forward_tile = lambda *a: (time.sleep(0.02), tile(*a))[1]
            run()

        fresh()
        run()
        total = (folder / "record").read_bytes().count(b"\n") - 1
        assert total > 10
        print(json.dumps({"step": product, **killed_at_random(folder, total, run, fresh, expected, rng)}), flush=True)
        if product == "forward":
            found = cut_at_random(folder, run, fresh, expected, rng, slowly)
            print(json.dumps({"step": "cut", **found}), flush=True)
            print(json.dumps({"step": "full", **full_disk(folder, run, fresh, expected, rng)}), flush=True)
            found = cut_under_us(folder, run, slowly, fresh, expected)
            print(json.dumps({"step": "under-us", **found}), flush=True)
            print(json.dumps({"step": "two", **two_at_once(folder, run, slowly, fresh, expected)}), flush=True)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    root = os.path.dirname(os.path.dirname(os.path.abspath(nc.__file__)))
    more = {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]), "NUMBA_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, __file__, str(tmp_path_factory.mktemp("killed"))], env=os.environ | more, capture_output=True,
        text=True, timeout=PATIENCE + KILLS, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:] + run.stdout
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    return {line.pop("step"): line for line in lines}


@needs_fork
@pytest.mark.parametrize("product", ["forward", "grad_input"])
def test_killed_at_random_moments_and_resumed_has_the_bits_of_an_undisturbed_run(steps, product):
    found = steps[product]
    assert 2 * found["kills"] >= KILLS
    assert found["works"] > 1
    assert (found["wrong"], found["twice"]) == (0, 0)


@needs_fork
def test_what_a_power_cut_leaves_is_completed(steps):
    assert steps["cut"] == {"wrong": 0}


@needs_fork
def test_a_record_that_cannot_grow_is_an_error_and_resumed_later(steps):
    found = steps["full"]
    assert (found["begin"], found["left"]) == (5, ["x.npy", "y.npy"])
    assert found["codes"] == [5] * 6
    assert found["wrong"] == 0


@needs_fork
def test_a_result_cut_off_under_us_is_completed(steps):
    assert steps["under-us"] == {"codes": [-signal.SIGBUS, 0], "right": True}


@needs_fork
def test_a_second_process_is_refused_while_one_is_at_work(steps):
    assert steps["two"] == {"second": 6, "first": 0, "right": True}


@contextmanager
def disk(path, size):
    """A disk of this size; where the system lets us have none the test is skipped."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no disk of a given size without the right to mount one")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


STORE = """
import sys
import numpy as np, numconv as nc
plan = nc.plan_conv((1, 2, 60, 60), (2, 2, 3, 3), padding=1, algorithm="direct", max_bytes=int(sys.argv[2]))
x, w = (np.load(f"{sys.argv[1]}/{name}.npy") for name in "xw")
plan.forward(x, w, out=np.lib.format.open_memmap(f"{sys.argv[1]}/full/y.npy", "r+"), resume=f"{sys.argv[1]}/full/r")
"""


def test_a_full_disk_under_the_result_is_resumed_when_there_is_room(tmp_path):
    plan, full = small_plan(), tmp_path / "full"
    x, w = numbers(*plan.input_shape), numbers(*plan.kernel_shape)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "w.npy", w)
    with disk(full, "24k"):
        np.lib.format.open_memmap(full / "y.npy", "w+", plan.dtype, plan.output_shape)  # 28 KB, and none written yet
        command = [sys.executable, "-c", STORE, str(tmp_path), str(plan.max_bytes)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGBUS
        assert (full / "r").read_bytes().count(b"\n") > 1
        subprocess.run(["mount", "-o", "remount,size=1m", str(full)], check=True)
        y = reopened(full / "y.npy")
        plan.forward(x, w, out=y, resume=full / "r")
        assert same(y, replace(plan, max_bytes=None).forward(x, w))
        os.unlink(full / "r")
        del y
        subprocess.run(["mount", "-o", "remount,ro", str(full)], check=True)
        with pytest.raises(OSError, match=r"resume: Read-only file system.*full/r"):
            plan.forward(x, w, out=np.empty(plan.output_shape, "f4"), resume=full / "r")


# files that are not ours ----------------------------------------------------------------------------------------------


def npy(array):
    with tempfile.TemporaryFile() as file:
        np.save(file, array)
        file.seek(0)
        return file.read()


OURS = b'{"numconv": "tiles, version '
FOREIGN = {
    "npy": npy(np.arange(1000.0)), "no line break": bytes(range(11, 256)) * 9, "empty": b"", "zeros": bytes(9000),
    "notes": b"notes\n", "list": b"[1]\n", "null": b"null\n", "null without end": b"null", "number": b"1\n",
    "string": b'"numconv"\n', "object": b"{}\n", "empty lines": b"\n\n\n", "deep": b"[" * 100_000,
    "long": b"a" * 200_000,
    "tiles alone": b'{"tile": 0, "read": 1, "wrote": 2}\n', "other": b'{"numconv": 3}\n', "begins so": OURS + b"\n",
    "begins so, long": OURS + b"9" * 100_000, "begins so, deep": OURS + b'1", "a": ' + b"[" * 60_000 + b"\n",
}  # fmt: skip
VERSIONS = {
    "before": OURS + b'1", "product": "forward"}\n{"tile": 0, "crc": 3}\n', "later": OURS + b'99"}\nnobody knows\n',
}  # fmt: skip


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A plan and its arguments, for which nothing may be computed."""
    plan = small_plan()
    x, w, out = numbers(*plan.input_shape), numbers(*plan.kernel_shape), zeros(tmp_path / "y.npy", plan)
    monkeypatch.setattr(stream, "forward_tile", lambda *_: pytest.fail("computed"))
    return lambda resume: plan.forward(x, w, out=out, resume=resume)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", [*FOREIGN, *VERSIONS])
@pytest.mark.parametrize("link", [False, True], ids=["file", "link"])
def test_a_file_that_is_not_ours_is_not_touched(tmp_path, work, name, link):
    path, content = tmp_path / "mine", (FOREIGN | VERSIONS)[name]
    path.write_bytes(content)
    os.chmod(path, 0o444)
    before, given = path.stat(), path
    if link:
        given = tmp_path / "link"
        given.symlink_to("mine")
    there = names(tmp_path)
    what = "no record of numconv" if name in FOREIGN else "a record of another version of numconv"
    with pytest.raises(ValueError, match=f"^resume: .*mine is {what}.*(name a file that|delete it, or name)"):
        work(given)
    after = path.stat()
    assert path.read_bytes() == content
    assert (after.st_mtime_ns, after.st_ino, after.st_mode) == (before.st_mtime_ns, before.st_ino, before.st_mode)
    assert names(tmp_path) == there


def test_no_byte_of_a_record_may_be_missing_from_its_first_line(tmp_path):
    plan, path = small_plan(), tmp_path / "r"
    x, w, out = numbers(*plan.input_shape), numbers(*plan.kernel_shape), np.zeros(plan.output_shape, "f4")
    plan.forward(x, w, out=out, resume=path)
    line = path.read_bytes().partition(b"\n")[0]
    for some in (line[: len(line) // 2], line[:-1], line[:30] + b"\0" + line[31:] + b"\n"):
        path.write_bytes(some)
        with pytest.raises(ValueError, match=r"resume: .* is (no record|a record of another version)|another"):
            plan.forward(x, w, out=out, resume=path)
        assert path.read_bytes() == some


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no files of these kinds on this system")
def test_what_is_no_regular_file_is_not_even_opened(tmp_path, work):
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for ever
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(tmp_path)  # the name of a socket is short
        bound.bind("socket")
        os.chdir(here)
        for path in ("pipe", "folder", "link", "socket", "/dev/null", "/dev/zero", "."):
            with pytest.raises(ValueError, match=r"^resume: .* is no record of numconv, and no regular file at all"):
                work(tmp_path / path)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


class Hostile:
    def __fspath__(self):
        raise ZeroDivisionError


@pytest.mark.parametrize("path", [0, 1, True, 2.5, [], b"", "", "a\0b", b"\0", "\ud800", Hostile(), object()])
def test_what_is_no_path_is_refused(work, path):
    with pytest.raises((TypeError, ValueError), match=r"^resume must be the path of a file, got"):
        work(path)


def test_paths_that_lead_nowhere(tmp_path, work):
    (tmp_path / "loop").symlink_to("loop")
    for path in ("none/r", "y.npy/r", "loop", "n" * 300):
        with pytest.raises(OSError, match=r"resume: "):
            work(tmp_path / path)
    assert names(tmp_path) == ["loop", "y.npy"]


def test_a_link_to_nothing_leads_to_the_new_record(tmp_path):
    plan = small_plan()
    (tmp_path / "link").symlink_to("target")
    plan.forward(
        numbers(*plan.input_shape), numbers(*plan.kernel_shape), out=zeros(tmp_path / "y.npy", plan),
        resume=tmp_path / "link",
    )  # fmt: skip
    assert (tmp_path / "target").read_bytes().startswith(OURS)
    assert names(tmp_path) == ["link", "target", "y.npy"]


def test_where_a_file_has_one_name_only_the_record_is_made_all_the_same(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    plan = small_plan()
    for _ in range(2):
        plan.forward(
            numbers(*plan.input_shape), numbers(*plan.kernel_shape), out=zeros(tmp_path / "y.npy", plan),
            resume=os.fsencode(tmp_path / "r"),
        )  # fmt: skip
    assert names(tmp_path) == ["r", "y.npy"]


# a record knows what it is of -----------------------------------------------------------------------------------------


class Slices:
    """An array that is read and written by slices, as h5py and zarr have them."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, place):
        return self.array[place].copy()

    def __setitem__(self, place, block):
        self.array[place] = block


KINDS = {"memory": lambda path, a: a.copy(), "file": file_array, "slices": lambda path, a: Slices(a.copy())}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("product", ["forward", "grad_input"])
@pytest.mark.parametrize("again", ["the same out", "a new out"])
def test_another_input_is_refused(tmp_path, kind, product, again):
    plan = small_plan(boundary="reflect")
    first, shapes = ("x", "dy")[product == "grad_input"], (plan.input_shape, plan.output_shape)
    a, w = numbers(*shapes[first == "dy"]), numbers(*plan.kernel_shape)
    out = zeros(tmp_path / "y.npy", plan, product)
    multiply = getattr(plan, product)
    multiply(KINDS[kind](tmp_path / "a.npy", a), w, out=out, resume=tmp_path / "r")
    lines, was = (tmp_path / "r").read_bytes(), np.array(out)
    if again == "a new out":
        out = zeros(tmp_path / "y.npy", plan, product)
        was = np.array(out)
    with pytest.raises(ValueError, match=rf"with another {first}; {first}\S* (has other values|was \d+, is)"):
        multiply(KINDS[kind](tmp_path / "a.npy", 5 * a), w, out=out, resume=tmp_path / "r")
    assert (tmp_path / "r").read_bytes() == lines
    assert same(out, was)


def test_one_other_value_of_a_file_whose_time_of_change_is_the_same_is_seen(tmp_path):
    plan = small_plan()
    x, w, out = file_array(tmp_path / "x.npy", numbers(*plan.input_shape)), numbers(*plan.kernel_shape), None
    out = zeros(tmp_path / "y.npy", plan)
    before = (tmp_path / "x.npy").stat()
    plan.forward(x, w, out=out, resume=tmp_path / "r")
    x[0, 1, 33, 44] += 1
    x.flush()
    os.utime(tmp_path / "x.npy", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match=r"with another x; x has other values where tile .* reads them; delete it"):
        plan.forward(x, w, out=out, resume=tmp_path / "r")


def test_whatever_else_differs_is_said(tmp_path, monkeypatch):
    plan, r = small_plan(), tmp_path / "r"
    x, w, out = numbers(*plan.input_shape), numbers(*plan.kernel_shape), zeros(tmp_path / "y.npy", plan)
    bias = np.zeros(2, "f4")
    plan.forward(x, w, out=out, resume=r)
    lines = r.read_bytes()
    two = np.lib.format.open_memmap(tmp_path / "z.npy", "w+", np.float32, (2, *plan.output_shape))
    cases = {
        r"another w; w has other values": lambda: plan.forward(x, 2 * w, out=out, resume=r),
        r"another w; w\.dtype was <f4, is >f4,": lambda: plan.forward(x, w.astype(">f4"), out=out, resume=r),
        r"another bias; bias was not given": lambda: plan.forward(x, w, bias, out=out, resume=r),
        r"another x; x\.dtype was <f4, is <i2;": lambda: plan.forward(x.astype("i2"), w, out=out, resume=r),
        r"another geometry; geometry\.boundary was 'constant', is 'wrap'": lambda: small_plan(boundary="wrap").forward(
            x, w, out=out, resume=r
        ),
        r"another algorithm.*; algorithm was direct, is im2col": lambda: replace(
            plan, choice=plan.choice._replace(forward="im2col")
        ).forward(x, w, out=out, resume=r),
        r"tile was .*, is ": lambda: replace(plan, max_bytes=2 * plan.max_bytes).forward(x, w, out=out, resume=r),
        r"dtype was <f4, is <f8": lambda: small_plan(dtype=float).forward(
            x, w, out=np.zeros(plan.output_shape), resume=r
        ),
        r"product was forward, is grad_input": lambda: plan.grad_input(x, w, out=out, resume=r),
        r"another out; out\.file was y\.npy, is None": lambda: plan.forward(x, w, out=np.array(out), resume=r),
        r"another out; out\.file was y\.npy, is z\.npy, out\.offset was": lambda: plan.forward(
            x, w, out=two[1], resume=r
        ),
        r"out\.dtype was <f4, is <f8": lambda: plan.forward(
            x, w, out=file_array(tmp_path / "v.npy", np.zeros(plan.output_shape)), resume=r
        ),
        r"another out; .*out\.of was None, is Slices": lambda: plan.forward(x, w, out=Slices(np.array(out)), resume=r),
    }
    for what, call in cases.items():
        with pytest.raises(ValueError, match=f"^resume: the record .*/r is that of another convolution, with .*{what}"):
            call()
        assert r.read_bytes() == lines
    monkeypatch.setattr(records, "__version__", "0.0.7")
    with pytest.raises(ValueError, match=r"another release; release was .*, is 0\.0\.7; delete it"):
        plan.forward(x, w, out=out, resume=r)


def test_two_views_of_one_file_are_two_results(tmp_path):
    plan = small_plan()
    x, w = numbers(*plan.input_shape), numbers(*plan.kernel_shape)
    both = np.lib.format.open_memmap(tmp_path / "y.npy", "w+", np.float32, (2, *plan.output_shape))
    plan.forward(x, w, out=np.asarray(both)[0], resume=tmp_path / "r")
    plan.forward(x, w, out=both[0], resume=tmp_path / "r")
    with pytest.raises(ValueError, match=r"another out; out\.offset was 128, is 28928"):
        plan.forward(x, w, out=both[1], resume=tmp_path / "r")


@given(cases(dtypes=("float32", "complex128")), st.sampled_from(["forward", "grad_input"]), st.data())
def test_a_resumed_call_is_right_or_an_error(case, product, data):
    """Whatever is changed between two calls: one value of the input, of the result, the end of the record."""
    geometry = case.geometry if product == "forward" else case.linear
    plan = nc.plan_conv(case.x_shape, case.w_shape, dtype=case.dtype, algorithm="direct", **geometry)
    g = plan.geometry
    shapes, pixels = (plan.input_shape, plan.output_shape), (g.out if product == "forward" else g.size)
    least = stream.nbytes(plan, product, (1, 1, *(max(1, n // 2) for n in pixels)), beside=plan.dtype.itemsize)
    plan = replace(plan, max_bytes=least)
    multiply, (read, written) = getattr(plan, product), shapes if product == "forward" else shapes[::-1]
    a, w, out = values(read, plan.dtype), values(plan.kernel_shape, plan.dtype), np.zeros(written, plan.dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record"
        multiply(a, w, out=out, resume=path)
        expected, text = np.array(out), path.read_bytes()
        changed = data.draw(st.sets(st.sampled_from(["input", "out", "record"]), min_size=1))
        if "input" in changed and a.size:
            a.reshape(-1)[data.draw(st.integers(0, a.size - 1))] += 1
        if "out" in changed and out.size:
            out.reshape(-1)[data.draw(st.integers(0, out.size - 1))] += 1
        if "record" in changed:
            path.write_bytes(text[: data.draw(st.integers(0, len(text)))])
        before = path.read_bytes(), out.tobytes()
        try:
            multiply(a, w, out=out, resume=path)
        except ValueError as error:
            assert str(error).startswith("resume: ")
            assert changed & {"input", "record"}
            assert (path.read_bytes(), out.tobytes()) == before
        else:
            assert same(out, multiply(a, w))
            assert "input" in changed or same(out, expected)


def count_tiles(monkeypatch):
    done = []
    tile = stream.forward_tile
    monkeypatch.setattr(stream, "forward_tile", lambda *a: (done.append(0), tile(*a))[1])
    return done


def test_a_new_array_in_memory_or_a_map_that_is_not_written_back_has_nothing_of_an_earlier_run(tmp_path, monkeypatch):
    plan, done = small_plan(), count_tiles(monkeypatch)
    x, w = numbers(*plan.input_shape), numbers(*plan.kernel_shape)
    zeros(tmp_path / "y.npy", plan).flush()
    whole = replace(plan, max_bytes=None).forward(x, w)
    make = (lambda: np.zeros_like(whole), lambda: np.load(tmp_path / "y.npy", mmap_mode="c"))
    for new in make:
        for _ in range(2):
            done.clear()
            out = new()
            plan.forward(x, w, out=out, resume=tmp_path / "r")
            assert same(out, whole)
            assert len(done) > 10
    done.clear()
    plan.forward(x, w, out=out, resume=tmp_path / "r")
    assert not done


def interrupt(monkeypatch, tile, call):
    """An interrupt as this tile, counted from 1, begins."""
    compute, left = stream.forward_tile, [tile]

    def interrupted(*a):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return compute(*a)

    with monkeypatch.context() as now:
        now.setattr(stream, "forward_tile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call()


def test_an_interrupted_call_goes_on_in_the_same_process(tmp_path, monkeypatch):
    plan = small_plan()
    x, w, out = numbers(*plan.input_shape), numbers(*plan.kernel_shape), np.zeros(plan.output_shape, "f4")
    interrupt(monkeypatch, 9, lambda: plan.forward(x, w, out=out, resume=tmp_path / "r"))
    assert (tmp_path / "r").read_bytes().count(b"\n") == 9
    done = count_tiles(monkeypatch)
    plan.forward(x, w, out=out, resume=tmp_path / "r")
    assert len(done) == (tmp_path / "r").read_bytes().count(b"\n") - 9
    assert same(out, replace(plan, max_bytes=None).forward(x, w))


def test_what_no_tile_has_read_yet_may_change(tmp_path, monkeypatch):
    plan = small_plan()
    x, w, out = numbers(*plan.input_shape), numbers(*plan.kernel_shape), np.zeros(plan.output_shape, "f4")
    interrupt(monkeypatch, 4, lambda: plan.forward(x, w, out=out, resume=tmp_path / "r"))
    x[..., -1, -1] += 1
    plan.forward(x, w, out=out, resume=tmp_path / "r")
    assert same(out, replace(plan, max_bytes=None).forward(x, w))


def test_from_another_folder_and_in_another_place(tmp_path, monkeypatch):
    plan, done = small_plan(), count_tiles(monkeypatch)
    x, w = numbers(*plan.input_shape), numbers(*plan.kernel_shape)
    (tmp_path / "one" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "one")
    plan.forward(x, w, out=zeros("data/y.npy", plan), resume="r.json")
    done.clear()
    monkeypatch.chdir(tmp_path)
    plan.forward(x, w, out=reopened("one/data/y.npy"), resume="one/r.json")
    os.rename("one", "two")
    out = reopened("two/data/y.npy")
    plan.forward(x, w, out=out, resume=Path("two/r.json"))
    assert not done
    assert same(out, replace(plan, max_bytes=None).forward(x, w))


def test_a_lost_result_is_computed_again(tmp_path):
    plan = small_plan()
    x, w = numbers(*plan.input_shape), numbers(*plan.kernel_shape)
    whole = replace(plan, max_bytes=None).forward(x, w)
    plan.forward(x, w, out=zeros(tmp_path / "y.npy", plan), resume=tmp_path / "r")
    for lose in (lambda: os.unlink(tmp_path / "y.npy"), lambda: None, lambda: os.truncate(tmp_path / "y.npy", 200)):
        lose()
        cut_off = (tmp_path / "y.npy").exists() and (tmp_path / "y.npy").stat().st_size == 200
        out = reopened(tmp_path / "y.npy") if cut_off else zeros(tmp_path / "y.npy", plan)
        plan.forward(x, w, out=out, resume=tmp_path / "r")
        assert same(out, whole)


def test_a_call_within_a_call_with_the_same_record_is_refused(tmp_path, monkeypatch):
    plan, tile = small_plan(), stream.forward_tile
    x, w, out = numbers(*plan.input_shape), numbers(*plan.kernel_shape), zeros(tmp_path / "y.npy", plan)

    def within(*a):
        with pytest.raises(ValueError, match=r"another process or thread is at work with the record .*/r; wait"):
            plan.forward(x, w, out=out, resume=tmp_path / "r")
        return tile(*a)

    monkeypatch.setattr(stream, "forward_tile", within)
    plan.forward(x, w, out=out, resume=tmp_path / "r")
    assert same(out, replace(plan, max_bytes=None).forward(x, w))


def test_hdf5_and_zarr_are_resumed(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    plan, done = small_plan(), count_tiles(monkeypatch)
    x, w = numbers(*plan.input_shape), numbers(*plan.kernel_shape)
    whole = replace(plan, max_bytes=None).forward(x, w)
    for name in ("a", "b"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("y", plan.output_shape, "f4", chunks=(1, 1, 20, 20))
            file.create_dataset("x", data=x)
    for count in (True, False):
        done.clear()
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            plan.forward(file["x"], w, out=file["y"], resume=tmp_path / "r")
            assert same(file["y"][...], whole)
        assert bool(done) == count
    with h5py.File(tmp_path / "b.h5", "r+") as file, pytest.raises(ValueError, match=r"out\.file was a\.h5, is b\.h5"):
        plan.forward(file["x"], w, out=file["y"], resume=tmp_path / "r")
    zarr = pytest.importorskip("zarr")
    zarr.create_array(str(tmp_path / "y.zarr"), shape=plan.output_shape, chunks=(1, 2, 30, 30), dtype="f4")
    for count in (True, False):
        done.clear()
        out = zarr.open_array(str(tmp_path / "y.zarr"), mode="r+")
        plan.forward(x, w, out=out, resume=tmp_path / "z")
        assert same(out[...], whole)
        assert bool(done) == count


if __name__ == "__main__":
    main(Path(sys.argv[1]))
