"""Random calls on guarded memory: ``python tests/guard_cases.py after|before FIRST COUNT [SECONDS]``.

Each line names a case before it runs; where the process ends there, the last line says by which call. A case is named
by its number alone, and ``python tests/guard_cases.py after 1234 1`` runs it again.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from math import prod

import guarded

if __name__ == "__main__":
    guarded.install(before=sys.argv[1] == "before")

import numpy as np

import numconv as nc
from numconv import _memory

ALGORITHMS = ("auto", "im2col", "kernel2row", "implicit", "direct", "winograd", "fft")
BOUNDARIES = ("constant", "constant", "constant", "edge", "reflect", "symmetric", "wrap")
DTYPES = (*(np.float32,) * 6, *(np.float64,) * 3, np.complex64, np.int64, np.int16, np.int8)
#: Axes that are none, narrow, and about as long as vectors and their tiles.
SIZES = (0, *(1, 2, 3) * 4, *range(4, 21), 24, 31, 32, 33, 40, 47, 63, 64, 65, 80)
KERNELS = (1, 1, 2, 3, 3, 4, 5, 7, 9, 11)
CHANNELS = (0, *(1, 2, 3) * 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 40, 65)


@contextmanager
def workspace(count, dtype):
    """``_memory.workspace`` that ends as near to its guard as lines of the cache allow, and is never kept."""
    nbytes = count * dtype.itemsize
    memory = np.empty(nbytes + _memory.LINE, np.uint8)
    address = memory.ctypes.data
    begin = 0 if address % _memory.LINE == 0 else (address + _memory.LINE) // _memory.LINE * _memory.LINE - address
    yield memory[begin : begin + nbytes].view(dtype)


def laid(rng, array):
    """The array with any strides along axes of one item, where they mean nothing."""
    steps = [int(rng.integers(-99, 99)) if n == 1 else step for n, step in zip(array.shape, array.strides, strict=True)]
    odd = np.lib.stride_tricks.as_strided(array, array.shape, steps)
    return odd if rng.random() < 0.5 else array


def numbers(rng, shape, dtype):
    """Small whole numbers, whose sums of products are exact in every dtype."""
    values = rng.integers(-3, 4, shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.integers(-3, 4, shape)
    return laid(rng, values.astype(dtype))


def geometry(rng):
    """Shapes and arguments of a convolution that is not too large and has outputs."""
    while True:
        d = int(rng.choice([1, 2, 2, 2, 2, 3]))
        groups = int(rng.choice([1, 1, 1, 2, 3]))
        N, Cg, Kg = int(rng.choice([0, 1, 1, 2, 3])), int(rng.choice(CHANNELS)), int(rng.choice(CHANNELS))
        if rng.random() < 0.3:  # depthwise
            groups, Cg, Kg = int(rng.choice(CHANNELS[1:])), 1, int(rng.choice([1, 1, 2]))
        size = tuple(int(n) for n in rng.choice(SIZES, d))
        kernel = (3,) * d if rng.random() < 0.3 else tuple(int(k) for k in rng.choice(KERNELS, d))
        several = {"stride": [1, 1, 1, 2, 2, 3, 5], "dilation": [1, 1, 1, 2, 3, 9]}
        arguments = {name: tuple(int(n) for n in rng.choice(few, d)) for name, few in several.items()}
        if rng.random() < 0.4:  # what Winograd serves
            arguments = {"stride": (1,) * d, "dilation": (1,) * d}
        padding = rng.choice([0, 0, 1, 1, 2, 3, 8], (d, 2))
        if rng.random() < 0.1:
            padding += rng.choice([0, 20], (d, 2))
        arguments["padding"] = tuple((int(lo), int(hi)) for lo, hi in padding)
        arguments |= {"groups": groups, "flip": bool(rng.random() < 0.3), "boundary": str(rng.choice(BOUNDARIES))}
        padded = [n + lo + hi for n, (lo, hi) in zip(size, arguments["padding"], strict=True)]
        spans = [dil * (k - 1) + 1 for k, dil in zip(kernel, arguments["dilation"], strict=True)]
        if arguments["boundary"] != "constant" and 0 in size:
            continue
        out = [(n - span) // s + 1 for n, span, s in zip(padded, spans, arguments["stride"], strict=True)]
        work = max(N, 1) * groups * max(Kg, 1) * max(Cg, 1) * prod(kernel) * prod(map(abs, out))
        if min(out) > 0 and work < 2_000_000 and max(N, 1) * max(Cg, Kg, 1) * groups * prod(padded) < 100_000:
            return (N, Cg * groups, *size), (Kg * groups, Cg, *kernel), (N, Kg * groups, *out), arguments


def run(number):
    """One geometry, its three products by an algorithm, and its matrices."""
    rng = np.random.default_rng(number)
    x_shape, w_shape, y_shape, arguments = geometry(rng)
    dtype, algorithm = DTYPES[int(rng.integers(len(DTYPES)))], str(rng.choice(ALGORITHMS))
    print(number, np.dtype(dtype).name, algorithm, x_shape, w_shape, arguments, flush=True)
    x, w, bias, dy = (numbers(rng, shape, dtype) for shape in (x_shape, w_shape, w_shape[:1], y_shape))
    try:
        nc.plan_conv(x_shape, w_shape, dtype=dtype, algorithm=algorithm, **arguments)
    except ValueError as refusal:
        if algorithm not in str(refusal).lower():
            raise
        algorithm = "auto"
    calls = (
        (lambda **how: nc.conv(x, w, bias, **arguments, **how), y_shape),
        (lambda **how: nc.conv_grad_input(x_shape, w, dy, **arguments, **how), x_shape),
        (lambda **how: nc.conv_grad_weight(x, w_shape, dy, **arguments, **how), w_shape),
    )
    for name, (call, shape) in zip(("conv", "conv_grad_input", "conv_grad_weight"), calls, strict=True):
        want = call(algorithm="im2col")
        out = laid(rng, np.empty(shape, dtype)) if rng.random() < 0.5 else None
        same(name, call(algorithm=algorithm, out=out), want)
    if number % 3 == 0:
        matrices(rng, x, w, dy, arguments)
    if number % 5 == 0:
        local(rng, x, w, dy, arguments)


def matrices(rng, x, w, dy, arguments):
    """Both matrices, and products with them."""
    kernel, size = w.shape[2:], x.shape[2:]
    window = {name: value for name, value in arguments.items() if name != "groups"}
    cols = nc.im2col(x, kernel, **window)
    nc.im2col(x.astype("S3"), kernel, **window)
    back = nc.col2im(cols, x.shape, kernel, **window)
    same("col2im", back, x * nc.conv_grad_input(x.shape[1:], *ones(x, w, dy, window), **window))
    data, indices, indptr = nc.kernel2row(w, size, triple=True, **arguments)
    columns = prod(x.shape[1:])
    for image, gradient in zip(x, dy, strict=True):
        y = nc.csr_matvec(data, indices, indptr, np.ascontiguousarray(image).reshape(columns))
        same("csr_matvec", y, nc.conv(image, w, algorithm="im2col", **arguments).reshape(y.shape))
        dx = nc.csr_rmatvec(data, indices, indptr, np.ascontiguousarray(gradient).reshape(len(y)), columns)
        same("csr_rmatvec", dx, nc.conv_grad_input(image.shape, w.conj(), gradient, **arguments).reshape(dx.shape))


def ones(x, w, dy, window):
    """A kernel for each channel and a gradient, all ones, that count how many windows hold a pixel."""
    C = x.shape[1]
    window["groups"] = max(C, 1)
    return np.ones((C, 1 if C else 0, *w.shape[2:]), x.dtype), np.ones((C, *dy.shape[2:]), x.dtype)


def local(rng, x, w, dy, arguments):
    """A kernel for each output."""
    weights = laid(rng, np.ascontiguousarray(np.broadcast_to(w, (*dy.shape[2:], *w.shape))))
    same("conv_local", nc.conv_local(x, weights, **arguments), nc.conv(x, w, algorithm="im2col", **arguments))
    dx = nc.conv_local_grad_input(x.shape, weights, dy, **arguments)
    same("conv_local_grad_input", dx, nc.conv_grad_input(x.shape, w, dy, algorithm="im2col", **arguments))
    dw = nc.conv_local_grad_weight(x, weights.shape, dy, **arguments)
    want = nc.conv_grad_weight(x, w.shape, dy, algorithm="im2col", **arguments)
    same("conv_local_grad_weight", dw.sum(axis=tuple(range(dy.ndim - 2)), dtype=dw.dtype), want)
    nc.kernel2row_local(weights, x.shape[2:], **arguments)


def same(name, got, want):
    """Whole numbers, up to the rounding of a transform."""
    largest = np.abs(want).max(initial=1)
    if got.shape != want.shape or not np.abs(got - want).max(initial=0) <= 1e-3 * largest:
        raise AssertionError(f"{name} is wrong: got {got}, want {want}")


if __name__ == "__main__":
    _memory.workspace = workspace
    first, count, seconds = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]) if len(sys.argv) > 4 else np.inf
    begin = time.monotonic()
    for number in range(first, first + count):
        if time.monotonic() - begin > seconds:
            break
        run(number)
    print("done", number + 1 - first)
