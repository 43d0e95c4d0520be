"""numconv's functions inside ``@njit`` functions: the same bits as outside, serial and in parallel loops."""

import os
import random
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numba
import numpy as np
import pytest
from conftest import assert_same, normal, values
from numba import njit, prange
from numba.core.errors import NumbaError

import numconv as nc
from numconv import _memory, conv, overloads, select
from numconv.bench import cases
from numconv.cpu.compiled import algorithms, choice, halves
from numconv.geometry import conv_geometry, plain_geometry

overloads.init()  # numba does so itself where numconv is installed

X, W, BIAS = values((2, 4, 9, 7), np.float32), values((6, 2, 3, 2), np.float32, 1), values((6,), np.float32, 2)


def test_the_entry_point_is_declared_and_numba_is_not_imported():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["numba_extensions"] == {"init": "numconv.overloads:init"}
    code = """
import sys, numconv
assert 'numba' not in sys.modules
import numba
assert 'numconv.cpu' not in sys.modules
from numconv import overloads
overloads.init()
assert not any(name.startswith(('numconv.api', 'numconv.cpu.')) for name in {*sys.modules} - {'numconv.cpu.words'})
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def layers(x, w, bias):
    y = conv(
        x[:, :, ::-1], w, bias, stride=(2, 1), padding=((1, 0), (2, 1)), groups=2, boundary="reflect",
        algorithm="implicit",
    )
    dx = nc.conv_grad_input(
        (2, 4, 9, 7), w, y, stride=(2, 1), padding=((1, 0), (2, 1)), groups=2, boundary="wrap", algorithm="implicit"
    )
    dw = nc.conv_grad_weight(
        x, (6, 2, 3, 2), y, stride=(2, 1), padding=((1, 0), (2, 1)), groups=2, fill_value=1, algorithm="implicit"
    )
    return y, dx, dw


def plain(x, w, s):
    a, b = x[0, 0], w[0, 0]
    same = nc.convolve(a, b, "same", boundary="wrap", stride=s)
    return same, nc.convolve(b, a, "valid", stride=2)


def windows(x, cols):
    laid_out = nc.im2col(x[:, :, ::2], (3, 2), stride=2, padding=1, fill_value=1)
    back = nc.col2im(cols, (2, 4, 9, 7), (3, 2), stride=2, padding=1, boundary="symmetric", reduce="mean")
    return laid_out, back


def rows(w, x, y):
    data, indices, indptr = nc.kernel2row(
        w, (9, 7), stride=(2, 1), padding=1, groups=2, boundary="reflect", flip=False, triple=True
    )
    forth = nc.csr_matvec(data, indices, indptr, x)
    return data, indices, indptr, forth, nc.csr_rmatvec(data, indices, indptr, y, len(x))


@pytest.mark.parametrize(
    "function, arguments",
    [
        (layers, (X, W, BIAS)),
        (plain, (X, W, 2)),
        (windows, (X, nc.im2col(X, (3, 2), stride=2, padding=1))),
        (rows, (W, values((4 * 63,), np.float32), values((6 * 5 * 8,), np.float32))),
    ],
)
def test_the_same_lines_compiled_and_not(function, arguments):
    for got, want in zip(njit(function)(*arguments), function(*arguments), strict=True):
        assert_same(got, want)


def test_integers_are_exact_and_wrap():
    compiled = njit(lambda x, w: nc.conv(x, w, padding="same_lower", dilation=2))
    x, w = values((1, 6, 5), np.int64) * 2**40, values((2, 1, 3, 2), np.int64, 1) * 2**23
    assert_same(compiled(x, w), nc.conv(x, w, padding="same_lower", dilation=2))


def in_a_loop(xs, w):
    sums = np.empty(len(xs))
    for i in prange(len(xs)):
        sums[i] = nc.conv(xs[i], w, padding=1).sum() + nc.conv(xs[i], w[:, :1], padding=1, groups=8).sum()
    return sums


def product(x, w, stride, dilation, groups):
    y = nc.conv(x, w, stride=stride, dilation=dilation, padding=1, groups=groups)
    dx = nc.conv_grad_input(x.shape, w, y, stride=stride, dilation=dilation, padding=1, groups=groups)
    folded = nc.conv_grad_input(
        x.shape, w, y, stride=stride, dilation=dilation, padding=1, groups=groups, boundary="reflect"
    )
    dw = nc.conv_grad_weight(x, w.shape, y, stride=stride, dilation=dilation, padding=1, groups=groups)
    return y, dx, folded, dw


compiled_product = njit(product)
there, back = choice.FORWARD, choice.GRAD_INPUT
compiled_choice = njit(
    lambda g, batch: (choice.choose((there, *g)), choice.choose((back, *g)), choice.choose_for_weights(batch))
)


def choices(geometry, dtype):
    """What compiled code takes."""
    g, dtype = geometry, np.dtype(dtype)
    kind, of_image = (choice.kind_of(dtype), choice.lanes_of(dtype)), (g.C, g.K, g.groups, g.axes)
    return [choice.CHOICES[taken] for taken in compiled_choice((*kind, *of_image), (*kind, g.N, *of_image))]


def geometries():
    """Layers of the benchmarks, and others at random that Winograd's algorithm may serve or just not."""
    for case in cases.choose(("resnet50", "image", "1d", "3d")):
        if case.kind == "convolve":
            yield plain_geometry(case.x, case.w, "same", dilation=1, boundary=case.boundary)
        else:
            yield conv_geometry(case.x, case.w, **case.geometry)
    draw = random.Random(0)
    for _ in range(200):
        groups, Cg, Kg = draw.choice([1, 1, 2]), 2 ** draw.randrange(11), 2 ** draw.randrange(11)
        stride, dilation = draw.choice([(1, 1), (1, 1), (2, 1), (2, 2), (1, 2), (1, (1, 4)), ((1, 2), 1)])
        size, kernel = (draw.randrange(9, 120), draw.randrange(9, 120)), draw.choice([(3, 3)] * 9 + [(3, 2)])
        yield conv_geometry(
            (draw.randrange(1, 4), groups * Cg, *size), (groups * Kg, Cg, *kernel), stride=stride, dilation=dilation,
            padding=draw.randrange(3), groups=groups,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "complex64"])
def test_the_choice_is_that_of_auto(dtype):
    dtype, taken = np.dtype(dtype), set()
    for g in geometries():
        for product, got in zip(select.PRODUCTS, choices(g, dtype), strict=True):
            one = select.chosen_for(product, g, "cpu")
            offered = [e for e in select.estimates(product, one, dtype) if e.algorithm in choice.CHOICES]
            able = [e for e in offered if not e.why_not]
            fits = [e for e in able if select.workspace(e.algorithm, one, dtype, "cpu", product) <= select.WORKSPACE]
            assert got == min(fits, key=lambda e: e.seconds).algorithm, (g, product)
            taken.add((product, got))
            if got == "winograd":
                taken.add((product, "dilated" if max(g.dilation) > 1 else "strided" if max(g.stride) > 1 else "plain"))
    expected = {(product, name) for product in select.PRODUCTS for name in ("implicit", "direct")}
    if dtype == np.float32:
        expected |= {(product, name) for product in select.PRODUCTS for name in ("winograd", "plain")}
        expected |= {("forward", "dilated"), ("grad_input", "dilated")}
    assert expected <= taken
    assert dtype == np.float32 or expected == taken


@pytest.mark.parametrize(
    ("x", "w", "stride", "dilation", "groups", "dtype", "expected"),
    [
        ((1, 64, 40, 37), (64, 64, 3, 3), 1, 1, 1, "float32", ["winograd"] * 3),
        ((1, 96, 60, 60), (96, 96, 3, 3), 1, 2, 1, "float32", ["winograd", "winograd", "implicit"]),
        ((2, 8, 40, 37), (16, 1, 3, 3), (2, 1), 1, 8, "float32", ["direct"] * 3),
        ((2, 40, 9, 8), (48, 40, 3, 2), 2, 1, 1, "float32", ["implicit"] * 3),
        ((1, 3, 300), (2, 3, 5), 3, 1, 1, "float64", ["direct"] * 3),
        ((1, 2, 20, 17), (4, 1, 3, 2), 2, 1, 2, "int64", ["direct"] * 3),
    ],
)
def test_every_algorithm_has_the_same_bits_inside(x, w, stride, dilation, groups, dtype, expected):
    rest = {"stride": stride, "dilation": dilation, "padding": 1, "groups": groups}
    assert choices(conv_geometry(x, w, **rest), dtype) == expected
    X, W = values(x, dtype), values(w, dtype, 1)
    forward, grad_input, grad_weight = expected
    y = conv(X, W, algorithm=forward, **rest)
    want = (
        y, nc.conv_grad_input(x, W, y, algorithm=grad_input, **rest),
        nc.conv_grad_input(x, W, y, algorithm=grad_input, boundary="reflect", **rest),
        nc.conv_grad_weight(X, w, y, algorithm=grad_weight, **rest),
    )
    strides, dilations = ((n,) * (len(x) - 2) if isinstance(n, int) else n for n in (stride, dilation))
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        for got, known in zip(compiled_product(X, W, strides, dilations, groups), want, strict=True):
            assert_same(got, known)


def read_only(array):
    """As launchers take their inputs."""
    view = array.reshape(-1)
    view.flags.writeable = False
    return view


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("flip", [False, True])
def test_winograd_in_each_of_its_ways(stride, dilation, flip):
    """Whatever auto takes: the launchers themselves, over images with a pixel far from the rest, or not finite."""
    rest = {"stride": stride, "dilation": dilation, "padding": 2, "groups": 2, "flip": flip}
    g = conv_geometry((2, 10, 31, 18), (18, 5, 3, 3), **rest)
    x, w = normal((2, 10, 31, 18), np.float32), normal((18, 5, 3, 3), np.float32, 1)
    x[1, 3, 4, 5], x[0, 7, 12, 9] = np.inf, 1e20
    axes, edge, nothing = g.axes.copy(), g.boundary_code, np.float32(0)
    dy, y = normal(g.output_shape, np.float32, 2), np.empty(g.output_shape, np.float32)
    dy[1, 2, 5, 7] = 1e20
    dx, dw = np.empty_like(x), np.empty_like(w)
    flat_x, flat_w, terms, steps = read_only(x), read_only(w), np.arange(9), np.array(y.strides) // 4
    algorithms.by_winograd(
        flat_x, 2, 10, flat_w, terms, 45, 9, read_only(np.zeros(18, np.float32)), 2, axes, edge, nothing,
        y.reshape(-1), 0, steps,
    )  # fmt: skip
    assert_same(y, conv(x, w, algorithm="winograd", **rest))
    algorithms.by_winograd_back(read_only(dy), flat_w, 2, 10, 18, 2, axes, dx.reshape(-1))
    assert_same(dx, nc.conv_grad_input(x.shape, w, dy, algorithm="winograd", **rest))
    if stride == dilation == 1:
        dy[0, :, 11:16, 8:13] = 0  # where the 1e20 is met
        for pixels in ((np.inf, 1e20), (1, 1e20), (1, 1)):
            x[1, 3, 4, 5], x[0, 7, 12, 9] = pixels
            algorithms.weights_by_winograd(flat_x, 2, 10, read_only(dy), 18, axes, edge, nothing, dw.reshape(-1))
            assert_same(dw, nc.conv_grad_weight(x, w.shape, dy, algorithm="winograd", **rest))


def test_memory_is_asked_for_before_it_is_taken(monkeypatch):
    compiled = njit(lambda x, lo: nc.im2col(x, 3, padding=lo))
    x = np.zeros((1, 1), np.float32)
    assert compiled(x, 2).shape == (9, 9)
    with pytest.raises(MemoryError, match=f"needs.*{9 * 2000001**2 * 4}"):
        compiled(x, 1000001)
    monkeypatch.setattr(_memory, "available", lambda: 1 << 24)
    with pytest.raises(MemoryError, match=f"{9 * 1003**2 * 4}, {1 << 24}"):
        compiled(x, 502)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_njit import *
xs, w = values((8, 8, 48, 48), np.float32), values((8, 8, 3, 3), np.float32, 1)
# each turn is work enough for threads of its own
assert np.array_equal(njit(parallel=True, cache=True)(in_a_loop)(xs, w), in_a_loop(xs, w))
print(numba.threading_layer())
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_in_parallel_loops_under_threading_layers(layer):
    code = SCRIPT.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "NUMBA_THREADING_LAYER": layer}, capture_output=True, text=True
    )
    if "No threading layer could be loaded" in done.stderr:
        pytest.skip(f"no {layer} here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == layer


MODULE = """
from numba import njit
import numconv as nc

@njit(cache=True)
def inner(x, w):
    return nc.conv(x, w, padding=1)

@njit(cache=True)
def outer(x, w):
    return inner(x, w)
"""


def test_cached_functions_load_in_a_new_process(tmp_path):
    (tmp_path / "cached.py").write_text(MODULE)  # once: before 0.68 numba goes by the time at which it was written

    def run():
        code = """
from numconv import overloads; overloads.init()
import cached, numpy as np
x, w = np.ones((1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32)
print(cached.outer(x, w).sum(), sum(cached.outer.stats.cache_hits.values()))
"""
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [tmp_path, *filter(None, sys.path)]))}
        return subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True, text=True).stdout

    assert run() == "100.0 0\n"
    assert run() == "100.0 1\n"


# spellings ------------------------------------------------------------------------------------------------------------

PAIR, MIXED, EIGHT = (2, 1), (1, (2, 1)), np.int16(2)


def spelled(x, w, stride, pairs, mixed, unlike, small, truth, number):
    """Each spelling of geometry that Python takes, in arguments, constants of the module and the source."""
    there, ones = (2, 1), (truth, True)
    back = (w.shape[2] - 1, (small, 1))
    return (
        nc.conv(x, w, stride=stride, padding=mixed, groups=small, flip=truth, fill_value=number),
        nc.conv(x, w, None, stride=there, padding=MIXED, dilation=PAIR, groups=EIGHT, flip=1, fill_value=number + 0j),
        nc.conv(x, w, padding=back, dilation=unlike, groups=2, boundary="wrap", fill_value=number - number),
        nc.conv_grad_input(x.shape, w, nc.conv(x, w, padding=mixed, groups=2), padding=mixed, groups=EIGHT),
        nc.conv_grad_weight(x, w.shape, nc.conv(x, w, padding=pairs, groups=2), padding=pairs, groups=2, flip=False),
        nc.convolve(x[0, 0], w[0, 0], stride=stride, dilation=unlike, fill_value=small),
        nc.im2col(x, w.shape[2:], stride=ones, padding=(pairs[0], 1), fill_value=np.array(number)),
        nc.col2im(nc.im2col(x, PAIR, padding=truth), x.shape, there, padding=True, fill_value=number),
        *nc.kernel2row(w, (9, EIGHT * 4 - 1), padding=mixed, groups=small, triple=True),
    )


def test_geometry_in_every_spelling():
    arguments = (2, 1), ((1, 0), (2, 1)), ((2, 1), np.uint8(1)), (np.int32(2), np.uint64(1)), np.uint8(2), True, 2.5
    for got, want in zip(njit(spelled)(X, W, *arguments), spelled(X, W, *arguments), strict=True):
        assert_same(got, want)


@njit
def defaults(x, w, bias=None, stride=(2, 1), padding=((1, 0), (2, 1)), boundary="constant", dtype=np.float64):
    return nc.conv(x, w, bias, stride=stride, padding=padding, groups=2, boundary=boundary, dtype=dtype)


@njit
def literal(x, w, padding):
    return defaults(x, w, padding=numba.literally(padding), dtype=None)


def test_defaults_of_a_wrapper_and_words_in_arguments():
    assert_same(defaults(X, W), conv(X, W, stride=(2, 1), padding=((1, 0), (2, 1)), groups=2, dtype=np.float64))
    assert_same(defaults(X, W, BIAS, 1, 1), conv(X, W, BIAS, padding=1, groups=2, dtype=np.float64))
    for padding in ("same", "full"):
        assert_same(literal(X, W, padding), conv(X, W, stride=(2, 1), padding=padding, groups=2))


def pads_brought_in(x, w, pads):
    sums = np.empty(3)
    for i in prange(3):
        sums[i] = nc.conv(x, w, padding=pads, groups=2).sum()
    return sums


def pads_built_inside(x, w, pads):
    sums = np.empty(3)
    rows, columns = pads
    for i in prange(3):
        sums[i] = nc.conv(x, w, padding=(rows, columns), groups=2).sum()
    return sums


def pairs_brought_in(x, pairs):
    total = 0
    for n in prange(len(x)):
        total += pairs[0][1] + n
    return total


def test_pairs_and_parallel_loops():
    pads = ((1, 0), (2, 1))
    with pytest.raises(NumbaError, match=r"tuple of tuples into a parallel loop.*\n?.*padding=\(\(top"):
        njit(parallel=True)(pads_brought_in)(X, W, pads)
    want = pads_built_inside(X, W, pads)
    np.testing.assert_array_equal(njit(parallel=True)(pads_built_inside)(X, W, pads), want)
    np.testing.assert_array_equal(njit(parallel=True)(pads_brought_in)(X, W, (1, 2)), pads_brought_in(X, W, (1, 2)))
    with pytest.raises(Exception, match="scalar type UniTuple") as told:  # numba's own word to who does not call us
        njit(parallel=True)(pairs_brought_in)(X, pads)
    assert "padding" not in str(told.value)


# dtypes ---------------------------------------------------------------------------------------------------------------


def test_float16_is_rounded_as_numpy_rounds():
    bits = np.arange(1 << 16, dtype=np.uint16)
    floats = bits.view(np.float16).astype(np.float32)
    same = bits[~np.isnan(floats)]
    assert_same(halves.widened(same), same.view(np.float16).astype(np.float32))
    assert np.isnan(halves.widened(bits[np.isnan(floats)])).all()
    floats = floats[np.isfinite(floats)]
    middles = (floats + np.nextafter(floats.astype(np.float16), np.float16(np.inf)).astype(np.float32)) / 2
    single = np.concatenate([floats, middles, np.nextafter(middles, np.float32(0)), normal((1000,), np.float32) * 1e-6])
    double = np.concatenate([single, np.nextafter(single.astype(float), 0), np.nextafter(single.astype(float), np.inf)])
    for given in (single, double, [65519.99, 65520, -1e300, 1e-300, np.inf, -np.inf, -0.0]):
        given = np.asarray(given)
        with np.errstate(over="ignore"):
            want = given.astype(np.float16)
        got = halves.narrowed(given).view(np.float16)
        assert_same(got, want)
        assert_same(np.signbit(got), np.signbit(want))
    assert np.isnan(halves.narrowed(np.array([np.nan, -np.nan])).view(np.float16)).all()


def every_function(x, w, dtype):
    y = nc.conv(x[:, :, ::-1], w, w[:, 0, 0, 0], padding=1, groups=2)
    cols = nc.im2col(x.T.copy().T, (3, 2), padding=1, fill_value=2.0002)
    data, indices, indptr = nc.kernel2row(w, (9, 7), groups=2, triple=True)
    return (
        y, nc.conv(x, w, groups=2, dtype=dtype), nc.conv_grad_input(x.shape, w, y, padding=1, groups=2),
        nc.conv_grad_weight(x, w.shape, y, padding=1, groups=2), nc.convolve(x[0, 0], w[0, 0], "same"), cols,
        nc.col2im(cols, x.shape, (3, 2), padding=1), nc.col2im(cols, x.shape, (3, 2), padding=1, reduce="mean"), data,
        nc.csr_matvec(w[0, 0, 0], indices[:2], indptr[:2] * 0, w[0, 0, 0]),
        nc.csr_rmatvec(w[:2, 0, 0, 0], indices[:2], indptr[:2] * 0 + np.array([0, 2], np.int32), w[:1, 0, 0, 0], 63),
    )


def test_float16_in_every_function():
    x, w = values((2, 4, 9, 7), np.float16), values((6, 2, 3, 2), np.float16, 1)
    for got, want in zip(njit(every_function)(x, w, np.float32), every_function(x, w, np.float32), strict=True):
        assert_same(got, want)


@pytest.mark.parametrize(
    ("x", "w"), [("float16", "float32"), ("complex64", "float16"), ("int64", "float16"), ("bool", "float16")]
)
def test_float16_beside_others(x, w):
    x, w = values((2, 4, 9, 7), x)[:, ::-1], values((6, 4, 3, 2), w, 1)
    assert_same(compiled_twice(x, w), conv(x, w, padding=1))


compiled_twice = njit(lambda x, w: nc.conv(x, w, padding=1))


@pytest.mark.parametrize(
    ("arrays", "dtype"),
    [
        ("uint8", "int32"), ("int32", "int8"), ("float32", "float64"), ("float64", "float32"), ("float64", "float16"),
        ("uint8", "float16"), ("float32", "complex64"), ("bool", "int16"),
    ],
)
def test_sums_of_another_dtype(arrays, dtype):
    """As outside: what loses by the cast is cast before."""
    rest, dtype = {"padding": 1, "groups": 2}, np.dtype(dtype)
    x, w = (a * (100 if a.dtype.kind in "iu" else 1) for a in (values(X.shape, arrays), values(W.shape, arrays, 1)))
    dy = values((2, 6, 9, 8), arrays, 2)

    def sums(x, w, dy):
        return (
            nc.conv(x, w, padding=1, groups=2, dtype=dtype), nc.convolve(x[0, 0], w[0, 0], "same", dtype=dtype),
            nc.conv_grad_input(x.shape, w, dy, padding=1, groups=2, dtype=dtype),
            nc.conv_grad_weight(x, w.shape, dy, padding=1, groups=2, dtype=dtype),
        )

    got = njit(sums)(x, w, dy)
    assert_same(got[0], conv(x, w, dtype=dtype, **rest))
    for known, want in zip(got, sums(x, w, dy), strict=True):
        assert_same(known, want)


def test_dtype_in_every_spelling():
    def named(x, w):
        return (
            nc.conv(x, w, dtype=np.float64), nc.conv(x, w, dtype="float64"), nc.conv(x, w, dtype=np.dtype("float64")),
            nc.conv(x, w, dtype=float), nc.conv(x, w, dtype=None), nc.conv(x, w, dtype=x.dtype),
        )

    x = values((4, 9, 7), np.float32)
    for got, want in zip(njit(named)(x, W[:, :1].repeat(4, 1)), named(x, W[:, :1].repeat(4, 1)), strict=True):
        assert_same(got, want)


def test_arrays_that_lie_askew():
    memory = np.zeros(X.nbytes + 1, np.uint8)
    x = memory[1:].view(np.float32).reshape(X.shape)
    x[...] = X
    assert not x.flags.aligned
    assert_same(compiled_twice(x, np.asfortranarray(W[:, :1].repeat(4, 1))), conv(X, W[:, :1].repeat(4, 1), padding=1))


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda x, w: nc.conv(1, w), "x must be an array"),
        (lambda x, w: nc.conv(x, w[0]), "x must have 3 or 2 axes, got 4"),
        (lambda x, w: nc.conv(x, w, stride=(1, 2, 3)), "stride must be an int or 2 ints"),
        (lambda x, w: nc.conv(x, w, stride=1.5), "stride must be an int or a tuple"),
        (lambda x, w: nc.conv(x, w, padding="some"), "padding must be one of"),
        (lambda x, w: nc.conv(x, w, padding=((1, 2), (3, 4, 5))), r"padding must have one \(lo, hi\) pair"),
        (lambda x, w: nc.conv(x, w, boundary="mirror"), "boundary must be one of"),
        (lambda x, w: nc.conv(x, w, boundary="wrap", fill_value=1), "fill_value is only for boundary='constant'"),
        (lambda x, w: nc.conv(x, w, algorithm="fft"), "algorithm must be one of 'auto', 'implicit'"),
        (lambda x, w: nc.conv(x, w, out=x), "out is not for compiled code"),
        (lambda x, w: nc.conv(x, w, groups=1.0), "groups must be an int"),
        (lambda x, w: nc.conv_grad_input(3, w, x), "input_shape must be a tuple of ints"),
        (lambda x, w: nc.conv_grad_weight(x, (3, 3), x), "kernel_shape must be"),
        (lambda x, w: nc.convolve(x, w, "most"), "mode must be one of"),
        (lambda x, w: nc.im2col(x, (1, 1, 1, 1, 1)), "kernel_size must have one int for each spatial axis"),
        (lambda x, w: nc.kernel2row(w, (3, 3), fill_value=1), "fill_value must be 0"),
        (lambda x, w: nc.csr_matvec(x, x, x, x), "data must have 1 axes"),
        (lambda x, w: nc.conv(x, w, stride=[2, 1]), "stride must be an int or a tuple of 2 ints"),
        (lambda x, w: nc.conv(x, w, padding=[(2, 1), (1, 1)]), "padding must be an int or a tuple of 2 ints"),
        (lambda x, w: nc.im2col(x, np.array([3, 2])), "kernel_size must be an int or a tuple"),
        (lambda x, w: nc.conv(x, w, padding="same" + str(len(x))), r"numba.literally\(padding\)"),
        (lambda x, w: nc.conv(x, w, [1, 2]), "bias must be an array, as np.array makes one"),
        (lambda x, w: nc.conv(x, w, flip=(True,)), "flip must be a bool"),
        (lambda x, w: nc.conv(x, w, flip="False"), "flip must be True or False"),
        (lambda x, w: nc.conv(x, w, flip=None), "flip must be True or False"),
        (lambda x, w: nc.conv(x, w, fill_value=None), "fill_value must be a number"),
        (lambda x, w: nc.conv(x, w, fill_value="1"), "fill_value must be a number"),
        (lambda x, w: nc.conv(x, w, dtype=np.int32), "dtype must be of a kind that holds x"),
        (lambda x, w: nc.conv(x, w, dtype="U3"), "dtype must be bool, integer"),
        (lambda x, w: nc.conv(x, w, dtype=x), "dtype must be known to the compiler"),
    ],
)
def test_compile_errors_name_the_argument(function, words):
    with pytest.raises(NumbaError, match=words):
        njit(function)(X, W)


def test_float16_numbers_are_refused_as_numba_does_it_with_more_words():
    with pytest.raises(NotImplementedError, match=r"numba has no float16 numbers.*x.astype"):
        njit(lambda x: x.astype(np.float16))(X)


def refused(x, w, stride, dilation, lo, groups):
    return nc.conv(x, w, stride=stride, dilation=dilation, padding=((lo, 0), (0, 0)), groups=groups)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((0, 1, 0, 2), "stride must be at least 1"),
        ((1, 0, 0, 2), "dilation must be at least 1"),
        ((1, 1, -1, 2), "padding must be at least 0"),
        ((1, 1, 0, 0), "groups must be at least 1"),
        ((1, 1, 0, 3), "groups must divide"),
        ((1, 1, 0, 1), "w must have shape"),
        ((1, 9, 0, 2), "the output would be empty"),
    ],
)
def test_run_time_errors_name_the_argument(arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        compiled_refused(X, W, *arguments)


compiled_refused = njit(refused)


@pytest.mark.parametrize(
    ("dtype", "fill", "boundary"),
    [
        ("uint8", 256, "constant"), ("uint8", -1, "constant"), ("int8", 2.5, "constant"), ("int64", np.nan, "constant"),
        ("int64", 2.0**63, "constant"), ("uint64", -1.0, "constant"), ("float32", 1j, "constant"),
        ("bool", 2, "constant"), ("float32", 2.0, "edge"), ("float32", np.uint8(1), "edge"),
    ],
)
def test_a_constant_that_the_dtype_cannot_hold(dtype, fill, boundary):
    """A variable is looked at as the code runs, with the error of calls outside."""
    x = values((4, 5), dtype)
    for function in (filled[boundary], filled[boundary].py_func):
        with pytest.raises(ValueError, match=r"fill_value (must be a value that dtype|is only for boundary)"):
            function(x, fill)


filled = {
    "constant": njit(lambda x, fill: nc.im2col(x, 2, padding=1, fill_value=fill)),
    "edge": njit(lambda x, fill: nc.im2col(x, 2, padding=1, boundary="edge", fill_value=fill)),
}


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [("uint8", 255.0), ("int8", -128), ("int64", 2**63 - 1), ("uint64", 3 + 0j), ("float16", 2.0001), ("bool", 1)],
)
def test_a_constant_of_another_dtype(dtype, fill):
    x = values((4, 5), dtype)
    assert_same(filled["constant"](x, fill), filled["constant"].py_func(x, fill))
    assert_same(filled["edge"](x, fill - fill), filled["edge"].py_func(x, fill - fill))
