"""Dask arrays go through the same functions: lazily, with every bit of the result in memory, on two processes too."""

from __future__ import annotations

import os
import signal
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from conftest import assert_close, assert_same, normal, values
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cases

import numconv as nc

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def chunked(array, seed):
    """The array as a Dask array in chunks of random sizes, different along each axis."""
    rng = np.random.default_rng([seed, *array.shape])

    def cut(n):
        bounds = sorted({*rng.integers(0, n + 1, rng.integers(0, 4)).tolist(), 0, n})
        return tuple(b - a for a, b in pairwise(bounds)) or (0,)

    return da.from_array(array, chunks=tuple(map(cut, array.shape)))


def assert_lazy(lazy, result):
    """Shape, dtype and chunks are known beforehand, and what comes out is the result."""
    assert isinstance(lazy, da.Array)
    assert (lazy.shape, lazy.dtype) == (result.shape, result.dtype)
    assert_same(lazy.compute(), result)
    last = tuple(len(c) - 1 for c in lazy.chunks)
    assert lazy.blocks[last].compute().shape == tuple(c[-1] for c in lazy.chunks)


# the same results -----------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(cases(dtypes=("float32", "int16")), st.integers(0, 999))
def test_the_products_of_any_chunks_are_those_in_memory(case, seed):
    x, w, g, linear = case.x, case.w, {"algorithm": "direct"} | case.geometry, {"algorithm": "direct"} | case.linear
    y = nc.conv(x, w, w[:, 0].reshape(len(w), -1)[:, 0], **g)
    lazy_w = chunked(w, seed) if seed % 2 else w
    assert_lazy(nc.conv(chunked(x, seed), lazy_w, w[:, 0].reshape(len(w), -1)[:, 0], **g), y)
    dy = case.dy(y.shape)
    dx = nc.conv_grad_input(x.shape, w, dy, **linear)
    assert_lazy(nc.conv_grad_input(x.shape, lazy_w, chunked(dy, seed), **linear), dx)
    lazy_dy = dy if seed % 3 else chunked(dy, seed)
    assert_lazy(nc.conv_grad_weight(chunked(x, seed), w.shape, lazy_dy, **g), nc.conv_grad_weight(x, w.shape, dy, **g))
    assert_lazy(nc.im2col(chunked(x, seed), case.kernel, **case.window), nc.im2col(x, case.kernel, **case.window))


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("function", [nc.convolve, nc.correlate])
def test_plain_arrays_and_axes(function, mode):
    x, w = values((3, 20, 21)), values((4, 5))
    how = {"stride": (2, 1), "boundary": "symmetric", "algorithm": "direct"}
    assert_lazy(function(chunked(x[0], 1), w, mode, **how), function(x[0], w, mode, **how))
    moved = np.moveaxis(x, 0, 2)
    assert_lazy(function(chunked(moved, 2), w, mode, axes=(0, 1), **how), function(moved, w, mode, axes=(0, 1), **how))


def test_the_transposed_convolution():
    x, w, bias = values((2, 4, 12, 11)), values((4, 3, 3, 3)), values((6,))
    how = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}
    assert_lazy(nc.conv_transpose2d(chunked(x, 3), w, bias, **how), nc.conv_transpose2d(x, w, bias, **how))
    assert_lazy(nc.conv_transpose2d(chunked(x, 4), w, **how), nc.conv_transpose2d(x, w, **how))


@pytest.mark.parametrize("algorithm", ["auto", "fft", "im2col"])
def test_real_numbers_by_other_algorithms(algorithm):
    x, w = normal((1, 4, 50, 60), "f4"), normal((4, 4, 3, 3), "f4")
    lazy = nc.conv2d(chunked(x, 5), w, padding=1, algorithm=algorithm)
    assert_close(lazy.compute(), nc.conv2d(x, w, padding=1).astype(float), np.float32, 36 * 16, 16)


# the graph ------------------------------------------------------------------------------------------------------------


def test_the_chunks_of_the_result_are_those_of_the_input():
    x = da.zeros((2, 6, 100, 90), chunks=(1, 2, 30, 40), dtype="f4")
    w = np.zeros((6, 2, 3, 3), "f4")
    y = nc.conv(x, w, padding=1, groups=3)
    assert y.chunks == x.chunks  # groups by groups
    assert nc.conv(x, w, padding=1, stride=2, groups=3).chunks[2:] == ((15, 15, 15, 5), (20, 20, 5))
    assert nc.conv_grad_input(x.shape, w, y, padding=1, groups=3).chunks == x.chunks
    assert nc.convolve(x[0, 0], w[0, 0], "full").chunks == ((31, 30, 30, 11), (41, 40, 11))
    assert nc.conv_grad_weight(x, w.shape, y, padding=1, groups=3).chunks == ((6,), (2,), (3,), (3,))


@pytest.mark.parametrize(("d", "m"), [(1, 6), (2, 4), (3, 3)])
def test_the_number_of_tasks_is_what_the_estimate_says(d, m):
    x = da.zeros((10 * m,) * d, chunks=10)
    y = nc.convolve(x, np.ones((3,) * d), "same")
    layer = y.dask.layers[y.name]
    assert len(layer) == (3 * m - 2) ** d
    edges = [key for key in layer if key[0] != y.name]
    assert len(layer) - len(edges) == m**d


def test_edges_are_all_that_a_chunk_receives():
    x = da.zeros((90, 80), chunks=(30, 20))
    y = nc.convolve(x, np.ones((5, 3)), "same")
    graph, chunks = dict(y.dask), dict(x.dask)
    edges = [graph[key] for key in y.dask.layers[y.name] if key == (f"{y.name}-edge", 1, 1, key[-1])]
    got = dask.get({**chunks, **{f"e{i}": edge for i, edge in enumerate(edges)}}, [f"e{i}" for i in range(len(edges))])
    assert sum(edge.size for edge in got) == (30 + 4) * (20 + 2) - 30 * 20


def test_mistakes_are_named():
    x, w = da.zeros((1, 2, 20, 20), chunks=10), np.zeros((3, 2, 3, 3))
    with pytest.raises(ValueError, match="groups must divide"):
        nc.conv(x, w, groups=2)
    with pytest.raises(TypeError, match="out must be None for Dask arrays"):
        nc.conv(x, w, out=np.zeros((1, 3, 18, 18)))
    with pytest.raises(ValueError, match="chunks of known size"):
        nc.convolve(x[x > 0], w[0, 0, 0])
    with pytest.raises(ValueError, match="x must be the larger"):
        nc.convolve(x[0, 0], np.zeros((30, 30)), "valid")
    with pytest.raises(ValueError, match="dy must have shape"):
        nc.conv_grad_input(x.shape, w, x)
    with pytest.raises(TypeError, match=r"w is a Dask array.*w\.compute"):
        nc.kernel2row(x[0, 0], 30)


# on several processes -------------------------------------------------------------------------------------------------


def work(seed=0):
    """A volume, what it is convolved with, and the result computed here."""
    x, w = normal((1, 2, 40, 40, 40), "f4", seed), normal((2, 2, 3, 3, 3), "f4", seed)
    how = {"padding": 1, "boundary": "wrap", "algorithm": "direct"}
    return x, w, how, nc.conv(x, w, **how)


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 10}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as both,
        distributed.Client(both) as client,
    ):
        yield client


def test_two_worker_processes(cluster):
    x, w, how, expected = work()
    y = nc.conv(da.from_array(x, chunks=(1, 2, 20, 20, 20)), w, **how)
    assert_same(cluster.compute(y).result(), expected)
    dy = da.from_array(expected, chunks=y.chunks)
    dw = nc.conv_grad_weight(da.from_array(x, chunks=(1, 2, 20, 20, 20)), w.shape, dy, **how)
    with dask.config.set(scheduler="synchronous"):
        here = dw.compute()
    assert_same(cluster.compute(dw).result(), here)  # added in the same order wherever the parts are


def test_a_worker_that_is_killed_in_the_middle_costs_no_bit(cluster):
    x, w, how, expected = work(1)

    def slow(block):
        time.sleep(0.1)
        return block

    y = nc.conv(da.from_array(x, chunks=(1, 2, 5, 20, 20)).map_blocks(slow), w, **how)
    victim = next(iter(cluster.run(os.getpid).values()))
    started = threading.Event()
    future = cluster.compute(y)

    def kill():
        time.sleep(1)
        started.set()
        os.kill(victim, getattr(signal, "SIGKILL", signal.SIGTERM))

    assassin = threading.Thread(target=kill)
    assassin.start()
    result = future.result(timeout=200)
    finished_after = started.is_set()
    assassin.join()
    assert finished_after, "the work was done before the worker was killed"
    assert_same(result, expected)
    assert victim not in cluster.run(os.getpid).values()


def test_chunks_on_a_gpu_are_refused_by_name():
    x = da.ones((1, 5, 5), chunks=(1, 3, 5))
    x._meta = type("Array", (), {"__module__": "cupy", "__dlpack_device__": lambda self: (2, 0)})()
    with pytest.raises(TypeError, match=r"^x has chunks on a GPU \(cupy on cuda:0\)"):
        nc.conv(x, np.ones((1, 1, 3, 3)))
