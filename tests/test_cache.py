"""Compiled code on disk: damaged files, folders that can only be read, other machines and other sources."""

from __future__ import annotations

import ast
import ctypes
import os
import random
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numconv.cpu import cache, target
from numconv.cpu._jit import cached

posix = pytest.mark.skipif(os.name == "nt", reason="asks for POSIX")
x86 = pytest.mark.skipif("x86_64" not in numba.core.registry.cpu_target.target_context.codegen().magic_tuple()[0],
                         reason="has processors of that kind")  # fmt: skip


# damage ---------------------------------------------------------------------------------------------------------------


def total(x):
    """What is compiled here: small, and quick to compile."""
    result = 0
    for i in range(x.size):
        result += x[i] * i
    return result


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def call(dtype=np.int64):
    """A call as a new process makes it: whether the code came from the disk, and what was said."""
    code = cached(total)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert code(np.arange(5, dtype=dtype)) == 30
    return bool(code.stats.cache_hits), [str(warning.message) for warning in said]


PAGE = 4096


def zeroed(content, rng):
    """A page that was not written before the power was cut."""
    begin = rng.randrange(0, len(content), PAGE)
    return content[:begin] + bytes(len(content[begin : begin + PAGE])) + content[begin + PAGE :]


def cut(content, rng):
    return content[: rng.randrange(len(content))]


def flipped(content, rng):
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def noisy(content, rng):
    at, n = rng.randrange(len(content)), rng.randrange(1, 600)
    return content[:at] + rng.randbytes(len(content[at : at + n])) + content[at + n :]


def empty(content, rng):
    return b""


def longer(content, rng):
    return content + bytes(rng.randrange(1, PAGE))


DAMAGES = [zeroed, cut, flipped, noisy, empty, longer]


@pytest.mark.parametrize("ending", ["nbc", "nbi"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_said_once_and_compiled_anew(folder, damage, ending):
    rng = random.Random(f"{damage.__name__} {ending}")
    assert call() == (False, [])
    assert call() == (True, [])
    (file,) = folder.rglob(f"*.{ending}")
    for _ in range(3):
        file.write_bytes(damage(file.read_bytes(), rng))
        loaded, (warning,) = call()
        assert not loaded
        assert str(file.parent) in warning
        assert f"damaged (the checksum of {file.name}" in warning
        assert call() == (True, [])


@settings(max_examples=150)
@given(st.randoms(use_true_random=False), st.sampled_from(DAMAGES), st.booleans())
def test_no_damage_brings_something_else(tmp_path_factory, rng, damage, in_index):
    folder = tmp_path_factory.mktemp("files")
    files = cache.Files(str(folder), "name", "stamp")
    files.save("key", [rng.randbytes(rng.choice([3, 5000]))])
    kept = files.load("key")
    file = folder / ("name.nbi" if in_index else "name.1.nbc")
    before = file.read_bytes()
    file.write_bytes(damage(before, rng))
    if file.read_bytes() == before:
        assert files.load("key") == kept
    else:
        with pytest.raises(ValueError, match=file.name):
            files.load("key")
    files.save("key", kept)
    assert files.load("key") == kept


def test_every_other_damage_leaves_the_rest_alone(folder):
    """Code for other types in the same folder is not compiled anew."""
    assert [call(dtype) for dtype in (np.int64, np.float64)] == [(False, [])] * 2
    _, two = sorted(folder.rglob("*.nbc"))
    two.write_bytes(cut(two.read_bytes(), random.Random(0)))
    assert call(np.int64) == (True, [])
    assert not call(np.float64)[0]
    two.unlink()
    assert call(np.float64) == (False, [])
    assert [call(dtype) for dtype in (np.int64, np.float64)] == [(True, [])] * 2


def test_files_that_cannot_be_read_count_as_not_there(folder):
    call()
    for file in [*folder.rglob("*.nbi"), *folder.rglob("*.nbc")]:
        content = file.read_bytes()
        file.unlink()
        file.mkdir()
        assert not call()[0]
        file.rmdir()
        file.write_bytes(content)
        assert call() == (True, [])


def test_what_another_process_wrote_meanwhile_is_not_taken_for_this(tmp_path):
    """The index of one process names the file of another: two that began with an empty folder at the same time."""
    one, two, old = (cache.Files(str(tmp_path), "name", stamp) for stamp in ("stamp", "stamp", "old"))
    one.save("float", "code for floats")
    index = (tmp_path / "name.nbi").read_bytes()
    (tmp_path / "name.nbi").unlink()
    two.save("int", "code for ints")
    (tmp_path / "name.nbi").write_bytes(index)
    assert one.load("float") is None
    two.save("int", "code for ints")
    one.save("float", "code for floats")
    assert (one.load("float"), two.load("int")) == ("code for floats", "code for ints")
    assert old.load("float") is None
    old._write(old._data_path("name.1.nbc"), ("float", "old code"))
    assert one.load("float") is None


def test_processes_that_take_one_name_for_different_code_settle(tmp_path):
    one, two = (cache.Files(str(tmp_path), "name", "stamp") for _ in range(2))
    begin = one._write

    def later(path, content):
        one._write = begin
        two.save("int", "code for ints")  # between a look at the index and the first file
        one._write(path, content)

    one._write = later
    one.save("float", "code for floats")
    assert (one.load("float"), two.load("int")) == ("code for floats", None)
    two.save("int", "code for ints")
    assert (one.load("float"), two.load("int")) == ("code for floats", "code for ints")


# folders --------------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
import numpy as np
from numconv.cpu._jit import Kernel, tasks_of

@Kernel
def double(team, x, y):
    for i in tasks_of(team, x.size):
        y[i] = 2 * x[i]

for dtype in sys.argv[1:]:
    x = np.arange(1 << 10).astype(dtype)
    y = np.zeros_like(x)
    double(x, y, work=x.size)
    assert (y == x + x).all()
print(sum(double.code.stats.cache_hits.values()), "loaded,", sum(double.code.stats.cache_misses.values()), "compiled")
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program" / "program.py"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    return path


def run(path, *dtypes, before=None, **variables):
    """What a program printed, and what it said on its standard error."""
    environment = {name: value for name, value in (os.environ | variables).items() if value is not None}
    done = subprocess.run(
        [sys.executable, path, *dtypes], env=environment, preexec_fn=before, check=False, capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip(), done.stderr


def without_privileges():
    """Modes count for root, too: Linux' capabilities 1 and 2 are those that override them."""
    for capability in (1, 2):
        assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0


@contextmanager
def only_read(*folders):
    """What a process is started with that may read these folders and all in them, and write to none."""
    paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        yield without_privileges if os.geteuid() == 0 else None
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


privileged = os.name != "nt" and os.geteuid() == 0 and sys.platform != "linux"
modes_count = pytest.mark.skipif(os.name == "nt" or privileged, reason="modes keep nobody from writing")


@modes_count
def test_a_filled_folder_that_can_only_be_read_is_used(program, tmp_path):
    place, home = tmp_path / "cache", tmp_path / "home"
    home.mkdir()
    where = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "NUMBA_CACHE_DIR": str(place)}
    assert run(program, "f4", **where) == ("0 loaded, 1 compiled", "")
    with only_read(place, program.parent, home) as before:
        assert run(program, "f4", before=before, **where) == ("1 loaded, 0 compiled", "")
        said, warning = run(program, "f4", "f8", "i8", before=before, **where)
    assert said == "1 loaded, 2 compiled"
    assert warning.count("Warning: there is no folder for compiled code") == 1


@modes_count
def test_what_is_missing_in_it_is_kept_where_there_is_a_place(program, tmp_path):
    """As in a package that root has installed and warmed up."""
    home = tmp_path / "home"
    home.mkdir()
    where = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "NUMBA_CACHE_DIR": ""}
    assert run(program, "f4", **where) == ("0 loaded, 1 compiled", "")
    assert not list(home.rglob("*.nbi"))
    (code,) = program.parent.rglob("*.nbc")
    with only_read(program.parent) as before:
        assert run(program, "f4", "f8", before=before, **where) == ("1 loaded, 1 compiled", "")
        assert list(home.rglob("*.nbi"))
        assert run(program, "f4", "f8", before=before, **where) == ("2 loaded, 0 compiled", "")
    code.write_bytes(b"")
    with only_read(program.parent) as before:
        said, warning = run(program, "f4", before=before, **where)
    assert said == "0 loaded, 1 compiled"
    assert "damaged" in warning


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))  # an index is smaller, code is not
"""


@posix
def test_a_disk_that_is_full_in_the_middle_of_a_file(program, tmp_path):
    program.write_text(FULL + PROGRAM)
    said, warning = run(program, "f4", "f8", NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert said == "0 loaded, 2 compiled"
    assert warning.count("Warning: compiled code cannot be kept in") == 1
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


# what the code depends on ---------------------------------------------------------------------------------------------


@x86
@pytest.mark.parametrize(
    ("name", "features", "vectors"),
    [
        ("generic", "", (16, 16)), ("nehalem", "", (16, 16)), ("x86-64-v2", "", (16, 16)),
        ("sandybridge", "", (16, 16)), ("haswell", "", (32, 16)), ("x86-64-v3", "", (32, 16)),
        ("znver3", "", (32, 16)), ("skylake-avx512", "", (64, 32)), ("x86-64-v4", "", (64, 32)),
        ("generic", "+avx2,+fma", (32, 16)), ("generic", "+avx512f", (64, 32)), ("haswell", "-fma", (16, 16)),
        ("znver4", "-avx512f", (32, 16)), ("skylake-avx512", "+prefer-256-bit", (64, 32)),
    ],
)  # fmt: skip
def test_vectors_are_those_of_the_processor_that_is_named(name, features, vectors):
    assert target.vectors_of("x86_64-unknown-linux-gnu", name, features) == vectors


@x86
@pytest.mark.parametrize(
    ("name", "features", "most"),
    [("generic", None, 16), ("haswell", None, 32), ("x86-64-v4", "", 64), ("haswell", "", 32), ("no such", None, 16)],
)
def test_they_follow_the_environment(name, features, most):
    variables = {"NUMBA_CPU_NAME": name} | ({} if features is None else {"NUMBA_CPU_FEATURES": features})
    code = "from numconv.cpu.target import VECTOR_BYTES; print(VECTOR_BYTES)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, check=True)
    assert int(done.stdout) == most if features is not None else int(done.stdout) <= most


#: A machine that may lack what this one has, and vector code whose sums Python has counted.
MACHINE = """
import sys
from llvmlite import binding
absent = tuple(sys.argv[1:])
features = binding.get_host_cpu_features()
for name in features:
    if name.startswith(absent):
        features[name] = False
binding.get_host_cpu_features = lambda: features

import numpy as np
from numconv.cpu import simd
from numconv.cpu._jit import Kernel, tasks_of

@Kernel
def grow(team, n, sums, zero):
    for _ in tasks_of(team, 1):
        simd.multiply_add(n, simd.address(sums, zero), zero)
        simd.keep(sums)

for dtype in (np.float32, np.float64):
    count = simd.SUMS * simd.sum_lanes(np.dtype(dtype))
    sums = np.ones(4096, dtype)
    grow(5, sums, dtype(0), work=1)
    assert (sums[:count] == 5).all() and (sums[count:] == 1).all(), (count, (sums == 5).sum())
stats = grow.code.stats
print(sum(stats.cache_hits.values()), "loaded,", sum(stats.cache_misses.values()), "compiled")
"""
OLDER, OLDEST = ("avx512", "evex512", "avx10"), ("avx", "evex512", "fma", "f16c", "vaes", "vpclmulqdq", "xop")


@x86
def test_machines_of_different_kinds_share_a_folder(tmp_path):
    """Under one name they share the code; under several, or none, in any order, nobody gets that of another."""
    path = tmp_path / "machine.py"
    path.write_text(MACHINE)
    new, known = "0 loaded, 2 compiled", "2 loaded, 0 compiled"
    for absent, name, features, expected in [
        ((), "generic", "", new),
        (OLDER, "generic", "", known),
        ((), None, None, new),
        (OLDER, "haswell", "", new),
        ((), "haswell", "", known),
        (OLDEST, "generic", "", known),
        (OLDER, "haswell", None, new),  # numba's own rule: the features are this machine's
        ((), None, None, known),
    ]:
        variables = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        assert run(path, *absent, **variables) == (expected, "")


def test_the_key_has_what_the_code_depends_on(folder, monkeypatch):
    assert call() == (False, [])
    changes = [(target, "VECTOR_BYTES", 8), (target, "REGISTERS", 7)]
    changes += [(numba.config, name, 9) for name in cache.SWITCHES]
    for place, name, value in changes:
        with monkeypatch.context() as changed:
            changed.setattr(place, name, value, raising=False)
            code = cached(total)
            assert code._cache.load_overload((numba.int64[::1],), code.targetctx) is None, name
    assert call() == (True, [])


def test_a_change_in_any_source_of_the_kernels_is_noticed(tmp_path, monkeypatch):
    package = Path(cache.__file__).parents[1]
    copy = tmp_path / "numconv"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache.resources, "files", lambda name: tmp_path / name)
    seen = {cache.sources(), cache.sources.__wrapped__()}
    assert len(seen) == 1  # where they lie is no matter, nor when they were written
    for name in ("cpu/simd/tile.py", "cpu/compiled/choice.py", "_indexing.py", "costs.py"):
        with (copy / name).open("a") as file:
            file.write("\n")
        seen.add(cache.sources.__wrapped__())
    (copy / "api" / "__init__.py").write_text("")
    seen.add(cache.sources.__wrapped__())
    assert len(seen) == 5


def test_kernels_are_compiled_from_nothing_else():
    """All that ``numconv.cpu`` imports from outside is among the sources, but for what no kernel can see: the classes
    of a geometry, and how ``peak`` finds the room of an algorithm.
    """
    room = Path(cache.__file__).parent
    outside = set()
    for path in room.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level > len(path.relative_to(room).parts):
                outside |= {node.module} if node.module else {name.name for name in node.names}
    assert outside - {name.removesuffix(".py") for name in cache.SOURCES} == {"geometry", "dispatch"}
