"""After ``warmup`` the first calls wait for no compilation."""

import subprocess
import sys

import pytest

import numconv as nc

FIRST_CALLS = """
import importlib, pkgutil
import numpy as np
import numconv as nc
import numconv.cpu
from numconv.cpu._jit import Kernel

rooms = [importlib.import_module(f"numconv.cpu.{room.name}") for room in pkgutil.iter_modules(numconv.cpu.__path__)]
kernels = {id(k): k for room in rooms for k in vars(room).values() if isinstance(k, Kernel)}.values()

def compiled():
    return {(k.__module__, k.__name__): len(k.code.signatures) for k in kernels}

assert not any(compiled().values())
nc.warmup(%r, algorithms=%r)
before = compiled()
assert any(before.values())
rng = np.random.default_rng(0)
for shape, kernel, geometry in [
    ((1, 3, 64, 64), (8, 3, 3, 3), {"padding": 1}), ((2, 16, 33, 31), (32, 16, 3, 3), {}),
    ((1, 64, 14, 14), (256, 64, 1, 1), {}), ((1, 3, 70, 70), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
    ((1, 32, 40, 40), (32, 1, 3, 3), {"groups": 32, "boundary": "edge", "padding": 1}),
    ((1, 1, 5000), (1, 1, 33), {"dilation": 2}), ((2, 3, 9, 10, 11), (4, 3, 3, 2, 3), {"flip": True}),
]:
    x, w = (rng.standard_normal(s).astype(%r) for s in (shape, kernel))
    y = nc.conv(x, w, algorithm=%r, **geometry)
    nc.conv_grad_input(shape, w, y, algorithm=%r, **geometry)
    nc.conv_grad_weight(x, kernel, y, algorithm=%r, **geometry)
image = rng.standard_normal((300, 400)).astype(%r)
for size in (3, 9, 31):
    nc.convolve(image, np.ones((size, size), image.dtype), "same", algorithm=%r)
assert compiled() == before, {name: (before[name], now) for name, now in compiled().items() if now != before[name]}
"""


@pytest.mark.parametrize("algorithm", ["implicit", "direct"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_first_calls_compile_nothing(dtype, algorithm):
    code = FIRST_CALLS % (dtype, algorithm, dtype, algorithm, algorithm, algorithm, dtype, algorithm)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_it_says_how_long_it_took_and_needs_no_second_time():
    nc.warmup("float32", algorithms=["direct"])
    assert 0 <= nc.warmup(["float32"], algorithms=("direct",)) < 5
    assert nc.warmup([]) < 1


def test_what_an_algorithm_cannot_serve_is_left_out():
    assert nc.warmup("int64", algorithms=["winograd", "fft"]) < 1


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"algorithms": "fastest"}, ValueError, "algorithms.*fastest"),
        ({"dtypes": "U3"}, TypeError, "dtype"),
        ({"algorithms": [3]}, TypeError, "algorithms.*3"),
    ],
)
def test_mistakes_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        nc.warmup(**arguments)
