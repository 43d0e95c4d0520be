"""Other people's numba code in the same process: numconv has no effect on what does not call it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings

import numba
import numpy as np
import pytest

import numconv as nc
from numconv import overloads
from numconv.cpu import addresses

overloads.init()  # numba does so itself where numconv is installed

PATIENCE = 240

#: Every way to have numba compile something, and the state of a process that anybody could meddle with.
OTHERS = """
import os, signal, sys, warnings
import numba, numpy as np
from numba import cfunc, float64, guvectorize, int64, jit, njit, objmode, prange, stencil, vectorize
from numba.core import event, types
from numba.core.datamodel import default_manager
from numba.experimental import jitclass

def others():
    x = np.arange(6.0)

    @njit
    def in_object_mode(x):
        with objmode(y="float64[:]"):
            y = np.array(sorted(x, reverse=True))
        return y + 1

    @jit(forceobj=True)
    def object_mode(x):
        return [str(v) for v in x]

    @jit(forceobj=True, looplift=True)
    def lifted_loop(x):
        names, total = {}, 0.0
        for v in x:
            total += v
        names["total"] = total
        return names

    @jit(forceobj=True, looplift=True, parallel=True)
    def parallel_lifted_loop(x):
        names, total = {}, 0.0
        for i in prange(len(x)):
            total += x[i]
        names["total"] = total
        return names

    @vectorize(["float64(float64)"])
    def ufunc(v):
        return 2 * v

    @vectorize
    def lazy_ufunc(v):
        return 3 * v

    @guvectorize(["void(float64[:], float64[:])"], "(n)->()", target="parallel")
    def gufunc(x, out):
        out[0] = x.sum()

    @stencil
    def neighbours(x):
        return x[-1] + x[1]

    @njit(parallel=True)
    def parallel(x):
        total = 0.0
        for i in prange(x.size):
            total += neighbours(x)[i]
        return total

    @cfunc("float64(float64)")
    def callback(v):
        return v + 1

    @jitclass([("n", int64)])
    class Counter:
        def __init__(self, n):
            self.n = n
        def more(self):
            self.n += 1
            return self.n

    @njit(parallel=True)
    def pairs(x, pairs):
        total = 0
        for i in prange(x.size):
            total += pairs[0][1] + i
        return total

    def error(function, *arguments):
        try:
            return function(*arguments)
        except BaseException as error:
            return type(error).__name__, "padding" in str(error)

    return repr([
        in_object_mode(x), object_mode(x), lifted_loop(x), parallel_lifted_loop(x), ufunc(x), lazy_ufunc(x), gufunc(x),
        parallel(x), callback.ctypes(1.0), Counter(3).more(), error(pairs, x, ((1, 2), (3, 4))),
        error(njit(lambda h: h[0]), np.ones(3, np.float16)), njit(lambda f: f * f)(np.float32(3)),
        error(njit(parallel=True)(lambda f: f.nothing), x),
    ])

def state():
    models = [default_manager[t] for t in (types.float32, types.float64, types.complex64, types.int8)]
    config = {name: value for name, value in vars(numba.config).items() if name.isupper()}
    return [
        [type(model) for model in models], config, list(warnings.filters), np.geterr(), sys.getrecursionlimit(),
        [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGSEGV)], dict(os.environ),
        sys.getswitchinterval(), sys.excepthook, np.get_printoptions(),
    ]

def same(begin, end):
    assert all(a is b or a == b for a, b in zip(begin, end, strict=True)), (begin, end)
"""

AROUND = """
without, begin = others(), state()
assert "numconv.cpu.words" not in sys.modules or "numconv.cpu.addresses" not in sys.modules

import numconv as nc
from numconv import overloads
overloads.init()
same(begin, state())
assert nc.conv(np.ones((4, 120, 121)), np.ones((8, 4, 3, 3))).max() == 36
same(begin, state())
assert others() == without

@njit
def compiled(x):
    return nc.im2col(x, (3, 3))

assert (compiled(np.ones((400, 401))) == 1).all()
assert "numconv.cpu.addresses" in sys.modules
same(begin, state())
assert others() == without
print("right")
"""


def test_what_does_not_call_numconv_is_as_without_it():
    run = subprocess.run(
        [sys.executable, "-c", OTHERS + AROUND], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (run.returncode, run.stdout) == (0, "right\n"), run.stderr[-3000:]


def test_a_parallel_function_that_does_not_call_numconv_loads_nothing_of_it(monkeypatch):
    waiting = [b"what somebody else's function may call"]
    monkeypatch.setattr(addresses, "_later", waiting)

    @numba.njit(parallel=True)
    def users(x):
        total = 0.0
        for i in numba.prange(x.size):
            total += x[i]
        return total

    assert users(np.ones(9)) == 9
    (result,) = users.overloads.values()
    assert addresses.load_later not in result.reload_init
    assert len(waiting) == 1


def test_a_parallel_function_brings_all_that_it_may_call_also_from_the_disk():
    @numba.njit(parallel=True)
    def users(xs):
        sums = np.empty(len(xs))
        for i in numba.prange(len(xs)):
            sums[i] = nc.im2col(xs[i], (3, 3)).sum()
        return sums

    assert (users(np.ones((4, 9, 9))) == 9 * 49).all()
    (result,) = users.overloads.values()
    assert result.reload_init[-1] is addresses.load_later  # behind those that add to what waits
    assert pickle.loads(pickle.dumps(result.reload_init))[-1] is addresses.load_later
    assert addresses._later == []


def test_whose_function_it_is_is_asked_without_harm():
    class Odd:
        @property
        def __module__(self):
            raise RuntimeError("asked")

    odd, conv = Odd(), nc.conv

    def not_yet():
        return odd, later

    assert not addresses.names_numconv(not_yet)
    later = 1

    def by_cell():
        return conv

    assert addresses.names_numconv(by_cell)
    assert addresses.names_numconv(test_whose_function_it_is_is_asked_without_harm)
    assert not addresses.names_numconv(lambda: np.ones(PATIENCE))


def test_filters_of_warnings_which_all_threads_share_are_not_touched(monkeypatch):
    x, w = np.ones((4, 4)), np.ones((3, 3))
    narrow, whole = (x.astype(np.float32), w.astype(np.float32)), (x.astype(int), w.astype(int))
    nc.convolve(*narrow)  # what is imported only now may have reasons of its own
    with monkeypatch.context() as patched:
        patched.setattr(warnings.catch_warnings, "__enter__", None)
        for value in (1 + 0j, np.complex64(2), np.nan, 1e300, np.float16(3)):
            nc.convolve(*narrow, fill_value=value)
        for value in (1 + 2j, np.nan, 2.5, 1e300):
            with pytest.raises(ValueError, match="fill_value"):
                nc.convolve(*whole, fill_value=value)


MODULE = """
import numba, numpy as np
import numconv as nc

@numba.njit(cache=True)
def alone(x):
    return x.sum()

@numba.njit(cache=True, parallel=True)
def in_parallel(x):
    total = 0.0
    for i in numba.prange(x.size):
        total += x[i]
    return total

@numba.njit(cache=True)
def calling(x):
    return nc.im2col(x, (3, 3)).sum() + alone(x.ravel())
"""


def test_processes_share_the_cached_functions_of_a_user(tmp_path):
    (tmp_path / "users.py").write_text(MODULE)

    def run(*names):
        code = f"""
from numconv import overloads; overloads.init()
import numpy as np, users
x = np.ones((40, 40))
for name in {names}:
    code = getattr(users, name)
    found = code(x if name == "calling" else x.ravel())
    print(name, found, sum(code.stats.cache_hits.values()))
"""
        paths = os.pathsep.join(map(str, [tmp_path, *filter(None, sys.path)]))
        return subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True
        )

    def said(process):
        out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        return out.splitlines()

    without = ["alone 1600.0", "in_parallel 1600.0"]
    calling = f"calling {9 * 38 * 38 + 1600}.0"
    at_once = [run("alone", "in_parallel"), run("calling", "alone", "in_parallel")]
    for process, want in zip(at_once, [without, [calling, *without]], strict=True):
        assert [line.rpartition(" ")[0] for line in said(process)] == want
    assert said(run("calling", "in_parallel", "alone")) == [f"{line} 1" for line in (calling, *reversed(without))]
    assert said(run("alone", "in_parallel")) == [f"{line} 1" for line in without]


@pytest.mark.parametrize("target", ["cpu", "parallel"])
def test_numconv_inside_a_gufunc(target):
    x, w = np.arange(2 * 40 * 41.0).reshape(2, 40, 41) % 7, np.ones((3, 3))

    @numba.guvectorize(["void(float64[:, :], float64[:, :], float64[:])"], "(m,n),(k,l)->()", target=target)
    def sums(x, w, out):
        out[0] = nc.convolve(x, w, "valid").sum()

    np.testing.assert_array_equal(sums(x, w), [nc.convolve(image, w, "valid").sum() for image in x])
