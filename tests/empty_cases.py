"""Every public call with every size that may be 0, on guarded memory: ``python tests/empty_cases.py after|before``.

A line names each geometry before its calls; the last line counts them.
"""

from __future__ import annotations

import sys
from itertools import chain, combinations
from math import prod

import guarded

if __name__ == "__main__":
    guarded.install(before=sys.argv[1] == "before")

import numpy as np

import numconv as nc

ALGORITHMS = ("auto", "im2col", "kernel2row", "implicit", "direct", "winograd", "fft")


def filled(shape, dtype):
    """An array of twos."""
    return np.full(shape, 2, dtype)


def products(N, C, K, size, kernel, out, geometry, dtype):
    """Calls that take an algorithm, and the shapes of their results; sums over nothing are 0."""
    x, w = filled((N, C, *size), dtype), filled((K, C // geometry.get("groups", 1), *kernel), dtype)
    dy, bias = filled((N, K, *out), dtype), filled((K,), dtype)
    plan = nc.plan_conv(x.shape, w.shape, dtype=dtype, **geometry)
    tiled = nc.plan_conv(x.shape, w.shape, dtype=dtype, max_bytes=1 << 20, **geometry)
    yield "conv", lambda **how: nc.conv(x, w, **geometry, **how), dy.shape
    if 0 in (C, K, *size):
        yield "conv of an image", lambda **how: nc.conv(filled(x.shape[1:], dtype), w, **geometry, **how), dy.shape[1:]
    yield "conv, bias", lambda **how: nc.conv(x, w, bias, **geometry, **how) - dtype(2), dy.shape
    yield "conv_grad_input", lambda **how: nc.conv_grad_input(x.shape, w, dy, **geometry, **how), x.shape
    yield "conv_grad_weight", lambda **how: nc.conv_grad_weight(x, w.shape, dy, **geometry, **how), w.shape
    yield "tiled forward", lambda algorithm: tiled.forward(x, w), dy.shape
    yield "tiled grad_input", lambda algorithm: tiled.grad_input(dy, w), x.shape
    yield "tiled grad_weight", lambda algorithm: tiled.grad_weight(x, dy), w.shape
    yield "plan.transpose", lambda algorithm: plan.transpose(dy, w), x.shape


def others(N, C, K, size, kernel, out, geometry, dtype):
    """The other calls."""
    groups, d = geometry.get("groups", 1), len(size)
    x, w = filled((N, C, *size), dtype), filled((K, C // groups, *kernel), dtype)
    dy = filled((N, K, *out), dtype)
    window = {name: value for name, value in geometry.items() if name != "groups"}
    plan = nc.plan_conv(x.shape, w.shape, dtype=dtype, **geometry)
    T, P, matrix_shape = prod(kernel), prod(out), (K * prod(out), C * prod(size))
    for name, image, columns in (("batch", x, (N, C * T, P)), ("image", filled(x.shape[1:], dtype), (C * T, P))):
        yield f"im2col of a {name}", lambda image=image: nc.im2col(image, kernel, **window), columns
        yield f"im2col of words, {name}", lambda image=image: nc.im2col(image.astype("S3"), kernel, **window), columns
        for reduce in ("sum", "mean"):
            yield f"col2im of a {name}, {reduce}", lambda columns=columns, image=image, reduce=reduce: nc.col2im(
                filled(columns, dtype), image.shape, kernel, reduce=reduce, **window
            ), image.shape
    if set(window) <= {"padding"}:
        yield "unfold", lambda: nc.unfold(x, kernel, padding=window["padding"]), (N, C * T, P)
        yield "fold", lambda: nc.fold(
            filled((N, C * T, P), dtype), size, kernel, padding=window["padding"]
        ), x.shape
        yield "im2col, plain", lambda: nc.im2col(filled(size, dtype), kernel, **window), (T, P)
    weights = filled((*out, *w.shape), dtype)
    yield "conv_local", lambda: nc.conv_local(x, weights, **geometry), dy.shape
    yield "conv_local_grad_input", lambda: nc.conv_local_grad_input(x.shape, weights, dy, **geometry), x.shape
    yield "conv_local_grad_weight", lambda: nc.conv_local_grad_weight(
        x, weights.shape, dy, **geometry
    ), weights.shape
    yield "kernel2row_local", lambda: nc.kernel2row_local(weights, size, **geometry), matrix_shape
    yield "kernel2row", lambda: nc.kernel2row(w, size, **geometry), matrix_shape
    yield "plan.matrix", lambda: plan.refill(plan.matrix(w), w), matrix_shape
    yield "plan.im2col", lambda: plan.im2col(x), (N, C * T, P)
    yield "plan.col2im", lambda: plan.col2im(filled((N, C * T, P), dtype)), x.shape
    yield "plan.gram_diagonal", lambda: plan.gram_diagonal(w), x.shape[1:]
    yield "plan.coverage", plan.coverage, size
    yield "plan.norm", lambda: np.float64(plan.norm(w)), ()
    operator = plan.linear_operator(w)
    for M in (0, 1, 3):
        yield f"matmat {M}", lambda M=M: operator.matmat(filled((matrix_shape[1], M), dtype)), (matrix_shape[0], M)
        yield f"rmatmat {M}", lambda M=M: operator.rmatmat(filled((matrix_shape[0], M), dtype)), (matrix_shape[1], M)
    csr = nc.kernel2row(w, size, **geometry)
    triple = csr.data, csr.indices, csr.indptr
    yield "csr_matvec", lambda: nc.csr_matvec(*triple, filled(csr.shape[1], dtype)), csr.shape[:1]
    yield "csr_rmatvec", lambda: nc.csr_rmatvec(*triple, filled(csr.shape[0], dtype), csr.shape[1]), csr.shape[1:]
    if 0 not in size and "boundary" not in geometry:
        turned = filled((K, C // groups, *kernel), dtype)
        back = nc.conv_transpose(dy, turned, groups=groups)
        yield "conv_transpose", lambda: back, (N, C, *(n + k - 1 for n, k in zip(out, kernel, strict=True)))
    yield "plan.check", lambda: np.array([*plan.check().values()], np.float64), (len(plan.check()),)
    yield "plan.nbytes", lambda: np.array([plan.nbytes(what) for what in ("im2col", "matrix", "workspace")]), (3,)
    yield "plan.explain_choice", lambda: np.array(plan.explain_choice()), ()
    if d == 2 and not C * K:
        yield "plan.explain", lambda: np.array(str(plan.explain())), ()


def same(name, call, shape, **algorithm):
    """Whether the result has this shape and no NaN, which is what memory holds here that nobody wrote."""
    try:
        result = call(**algorithm)
    except ValueError as refusal:
        if algorithm.get("algorithm") in ("winograd", "fft") and algorithm["algorithm"] in str(refusal).lower():
            return False
        raise AssertionError(f"{name} {algorithm}") from refusal
    assert result.shape == shape, f"{name} {algorithm}: {result.shape}, not {shape}"
    numbers = result.data if hasattr(result, "indptr") else np.asarray(result)
    assert numbers.dtype.kind not in "fc" or np.isfinite(numbers).all(), f"{name} {algorithm}"
    return not algorithm or not numbers.any()


def main():
    """All of them; products of nothing are 0."""
    count = 0
    for letters, kernel in (("NCKHW", (3, 3)), ("NCKH", (67,)), ("NCKHWD", (2, 2, 3))):
        d = len(kernel)
        for empty in chain.from_iterable(combinations(letters, n) for n in range(1, len(letters) + 1 if d < 3 else 2)):
            N, C, K = (0 if name in empty else n for name, n in (("N", 2), ("C", 4), ("K", 6)))
            size = tuple(0 if name in empty else n for name, n in zip("HWD"[:d], (5, 6, 4), strict=False))
            padding = tuple(k - 1 for k in kernel)
            out = tuple(n + p for n, p in zip(size, padding, strict=True))
            for geometry in ({}, {"groups": 2, "flip": True}, {"boundary": "wrap"}):
                if "boundary" in geometry and 0 in size:
                    continue
                for dtype in (np.float32, np.int16)[: 2 - len(geometry)]:
                    arguments = N, C, K, size, kernel, out, {"padding": padding, **geometry}, dtype
                    print(*arguments[:-1], dtype.__name__, flush=True)
                    for name, call, shape in products(*arguments):
                        served = [same(name, call, shape, algorithm=algorithm) for algorithm in ALGORITHMS]
                        assert all(served[:5]), f"{name}: {served}"
                        count += len(served)
                    count += sum(same(name, call, shape) for name, call, shape in others(*arguments))
    print("done", count)


if __name__ == "__main__":
    main()
