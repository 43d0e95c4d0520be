"""Every public call that takes memory, with arrays of some megabytes: what ``test_peak.py`` measures.

A case is made by a function that has its inputs ready; what it returns is the call.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

import numconv as nc

Call = Callable[[], Any]


def values(shape: Any, dtype: Any = "f4", layout: str = "C") -> np.ndarray:
    """Small whole numbers, quickly made, in a layout that kernels take (``"C"``) or that has to be copied."""
    count = prod(shape)
    numbers = np.resize(np.arange(1, 8), count).astype(dtype)
    if layout == "F":
        return numbers.reshape(shape[::-1]).T
    if layout == "steps":
        return np.repeat(numbers.reshape(shape), 2, axis=-1)[..., ::2]
    if layout == "broadcast":
        return np.broadcast_to(np.ones((), dtype), shape)
    return numbers.reshape(shape)


#: Geometry of ``conv``: (input, kernel, arguments).
GEOMETRIES: dict[str, Any] = {
    "image": ((1, 4, 800, 900), (4, 4, 3, 3), {"padding": 1}),
    "batch": ((6, 2, 500, 300), (5, 2, 5, 3), {"stride": 2, "padding": 2}),
    "groups": ((2, 6, 400, 500), (6, 3, 3, 3), {"groups": 2, "dilation": 2, "flip": True}),
    "depthwise": ((1, 8, 600, 500), (8, 1, 3, 3), {"groups": 8, "padding": 1, "boundary": "reflect"}),
    "signal": ((2, 3, 400_000), (4, 3, 9), {"padding": "same", "boundary": "wrap"}),
    "volume": ((1, 2, 60, 120, 140), (3, 2, 3, 3, 3), {"stride": (1, 2, 1)}),
}
DTYPES = ("f4", "f8", "c8", "f2", "i4", "?")


def products(geometry: str, dtype: str = "f4", layout: str = "C", algorithm: str = "auto") -> dict[str, Call]:
    """The products of ``conv``, and those of a plan."""
    x_shape, w_shape, arguments = GEOMETRIES[geometry]
    arguments = {**arguments, "algorithm": algorithm}
    plan = nc.plan_conv(x_shape, w_shape, dtype=dtype, **arguments)
    x, w = values(x_shape, dtype, layout), values(w_shape, dtype)
    dy = values(plan.output_shape, dtype, layout)
    return {
        "conv": lambda: nc.conv(x, w, **arguments),
        "conv_grad_input": lambda: nc.conv_grad_input(x_shape, w, dy, **arguments),
        "conv_grad_weight": lambda: nc.conv_grad_weight(x, w_shape, dy, **arguments),
        "plan.forward": lambda: plan.forward(x, w, values(w_shape[:1], dtype)),
        "plan.grad_input": lambda: plan.grad_input(dy, w),
        "plan.grad_weight": lambda: plan.grad_weight(x, dy),
        "plan.transpose": lambda: plan.transpose(dy, w),
    }


def layers() -> dict[str, Call]:
    """The functions of a given number of axes, and others that are made of ``conv``."""
    w = {d: values((4, 3, *(3,) * d)) for d in (1, 2, 3)}
    x = {d: values((1, 3, *size)) for d, size in ((1, (200_000,)), (2, (400, 500)), (3, (40, 60, 80)))}
    back = {d: values((1, 4, *image.shape[2:])) for d, image in x.items()}
    layout = values((2, 3, 500, 400), layout="steps")
    doubles, many, weights = layout.astype("f8"), values((1, 7500, 20, 20)), values((1, 7500, 3, 3))
    return {
        **{f"conv{d}d": lambda d=d: getattr(nc, f"conv{d}d")(x[d], w[d]) for d in w},
        **{
            f"conv_transpose{d}d": lambda d=d: getattr(nc, f"conv_transpose{d}d")(back[d], w[d], stride=2) for d in w
        },
        "conv_transpose": lambda: nc.conv_transpose(back[2], w[2], padding=1, boundary="wrap"),
        "conv, dtype": lambda: nc.conv(layout, w[2], dtype="f8"),
        "conv, dtype that loses": lambda: nc.conv(doubles, w[2], dtype="f4"),
        "conv, out": out_of(nc.conv, layout, w[2], straight=True),
        "conv, other out": out_of(nc.conv, layout, w[2], straight=False),
        "conv, long sums": lambda: nc.conv(many, weights),
    }


def out_of(call: Callable[..., Any], *arguments: Any, straight: bool, **options: Any) -> Call:
    """A call with ``out=``, where the result is computed or to which it is cast."""
    result = call(*arguments, **options)
    out = np.empty(result.shape, result.dtype if straight else np.complex128)
    return lambda: call(*arguments, out=out, **options)


def plain(dtype: str = "f4", layout: str = "C") -> dict[str, Call]:
    """``convolve`` in its ways, and what is made of it."""
    x, w = values((900, 1100), dtype, layout), values((5, 4), dtype)
    large = values((1800, 1500), dtype, layout)
    cube = values((40, 150, 160), dtype, layout)
    cases = {
        "convolve": lambda: nc.convolve(x, w),
        "convolve, dtype": lambda: nc.convolve(x, w, "same", dtype="f4" if dtype == "f8" else dtype),
        "correlate": lambda: nc.correlate(x, w, "same", boundary="wrap"),
        "correlate, large kernel": lambda: nc.correlate(w, x, "valid"),
        "convolve, large kernel": lambda: nc.convolve(w, x, "valid", dilation=(2, 1)),
        "convolve, large kernel, rows": lambda: nc.convolve(cube[:, :3, :2], w[0], "valid", axes=2),
        "convolve, last axes": lambda: nc.convolve(cube, w, axes=(1, 2)),
        "convolve, first axis": lambda: nc.convolve(cube, w[0], "same", axes=0),
        "convolve, axes turned": lambda: nc.convolve(cube, w, "valid", axes=(2, 0), stride=2),
        "convolve, out": out_of(nc.convolve, x, w, straight=True),
        "convolve, axes, out": out_of(nc.convolve, cube, w, axes=(0, 1), straight=True),
        "convolve, fft": lambda: nc.convolve(large, large[:60, :70], algorithm="fft"),
    }
    if np.dtype(dtype).kind != "c":
        cases["convolve, other out"] = out_of(nc.convolve, x, w, straight=False)
    if np.dtype(dtype).kind not in "fc":
        del cases["convolve, fft"]
    return cases


def averages(dtype: str = "f8") -> dict[str, Call]:
    """Averages over what is there, and their operator."""
    x, w = values((700, 900), dtype), values((5, 5), dtype)
    signed = w * np.resize([1, -0.25], w.shape).astype(dtype)
    gaps = x % 3 == 0 if np.dtype(dtype).kind != "c" else x.real % 3 == 0
    more = values((700, 900)) % 5 == 0
    A, few = (nc.normalized_operator(mask, w, "same", dtype=dtype) for mask in (gaps, np.zeros((200, 210), bool)))
    one, two = values((A.shape[1], 1), dtype), values((A.shape[0], 2), dtype)
    return {
        "normalized_convolve": lambda: nc.normalized_convolve(x, w),
        "normalized_convolve, mask": lambda: nc.normalized_convolve(x, w, "same", mask=gaps, boundary="wrap"),
        "normalized_convolve, masks": lambda: nc.normalized_convolve(np.ma.masked_array(x, gaps), w, mask=more),
        "normalized_convolve, signed": lambda: nc.normalized_convolve(x, signed, mask=gaps),
        "normalized_convolve, axes": lambda: nc.normalized_convolve(x, w[0], mask=gaps, axes=0),
        "normalized_convolve, out": out_of(nc.normalized_convolve, x, w, mask=gaps, straight=True),
        "normalized_operator": lambda: nc.normalized_operator(gaps, w, dtype=dtype),
        "normalized_operator, signed": lambda: nc.normalized_operator(gaps, signed, dtype=dtype),
        "normalized_operator.matvec": lambda: A.matvec(one[:, 0]),
        "normalized_operator.rmatmat": lambda: A.rmatmat(two),
        "normalized_operator.matrix": few.matrix,
    }


def matrices(dtype: str = "f4", layout: str = "C") -> dict[str, Call]:
    """Both matrices and what is made of them."""
    x, image = values((2, 3, 300, 310), dtype, layout), values((400, 410), dtype, layout)
    cols, wide = nc.im2col(values(x.shape, dtype), (3, 3)), nc.im2col(image, (3, 3), padding=1, boundary="wrap")
    cols, wide = values(cols.shape, dtype, layout), values(wide.shape, dtype, layout)
    w, few = values((4, 2, 3, 3), dtype), values((3, 3), dtype)
    triple = nc.kernel2row(values((3, 3), dtype), (300, 310), triple=True)
    (data, _, indptr), longer = triple, triple[1].astype(np.int64)
    columns, y = values((300 * 310,), dtype, layout), values((298 * 308,), dtype, layout)
    cases = {
        "im2col": lambda: nc.im2col(x, (3, 3)),
        "im2col, plain": lambda: nc.im2col(image, (4, 3), padding=2, boundary="reflect"),
        "im2col, out": out_of(nc.im2col, image, (3, 3), straight=True),
        "unfold": lambda: nc.unfold(x, 3, padding=1),
        "col2im": lambda: nc.col2im(cols, x.shape, (3, 3)),
        "col2im, mean": lambda: nc.col2im(wide, image.shape, (3, 3), padding=1, boundary="wrap", reduce="mean"),
        "fold": lambda: nc.fold(cols, x.shape[2:], 3),
        "csr_matvec": lambda: nc.csr_matvec(*triple, columns),
        "csr_matvec, int64": lambda: nc.csr_matvec(data, longer, indptr, columns),
        "csr_rmatvec": lambda: nc.csr_rmatvec(*triple, y, columns.size),
    }
    if np.dtype(dtype) != bool:
        cases |= {
            "kernel2row": lambda: nc.kernel2row(w, (70, 80), groups=2, padding=1),
            "kernel2row, signal": lambda: nc.kernel2row(few[0], (200_000,), boundary="wrap", padding=1),
            "kernel2row, large": lambda: nc.kernel2row(values((800, 900), dtype, layout), (801, 901)),
            "kernel2row, broadcast": lambda: nc.kernel2row(values((400, 400), dtype, "broadcast"), (402, 401)),
        }
    if dtype in ("f4", "f2"):
        words = np.resize(np.array([b"abc", b"d"]), image.shape)
        cases["im2col, words"] = lambda: nc.im2col(words, (3, 3))
    return cases


def locals_(dtype: str = "f4", layout: str = "C") -> dict[str, Call]:
    """One kernel for each output."""
    g = {"padding": 1, "boundary": "symmetric"}
    x, w = values((2, 3, 90, 100), dtype, layout), values((90, 100, 4, 3, 3, 3), dtype, layout)
    dy, bias = values((2, 4, 90, 100), dtype, layout), values((4,), dtype)
    return {
        "conv_local": lambda: nc.conv_local(x, w, bias, **g),
        "conv_local, out": out_of(nc.conv_local, x, w, straight=True, **g),
        "conv_local_grad_input": lambda: nc.conv_local_grad_input(x.shape, w, dy, **g),
        "conv_local_grad_weight": lambda: nc.conv_local_grad_weight(x, w.shape, dy, **g),
        "kernel2row_local": lambda: nc.kernel2row_local(w, (90, 100), **g),
    }


def methods(dtype: str = "f4", layout: str = "C") -> dict[str, Call]:
    """What plans and operators have beside the products."""
    plan = nc.plan_conv((3, 300, 310), (4, 3, 3, 3), dtype=dtype, padding=1)
    batch = nc.plan_conv((2, 3, 300, 310), (4, 3, 3, 3), dtype=dtype, padding=1)
    many = nc.plan_conv((300, 40, 41), (500, 300, 3, 3), dtype=dtype, padding=1)
    x, w = values(plan.input_shape, dtype, layout), values(plan.kernel_shape, dtype)
    many_x, weights, many_dy = (
        values(shape, dtype, layout) for shape in (many.input_shape, many.kernel_shape, many.output_shape)
    )
    tiled = nc.plan_conv((1, 2, 800, 900), (3, 2, 3, 3), dtype=dtype, max_bytes=1 << 20)
    large, small = values(tiled.input_shape, dtype), values(tiled.kernel_shape, dtype)
    dy, cols = values(tiled.output_shape, dtype), values((27, 300 * 310), dtype, layout)
    cases = {
        "plan.im2col": lambda: plan.im2col(x),
        "plan.col2im": lambda: plan.col2im(cols),
        "plan.coverage": lambda: nc.plan_conv((1, 900, 910), (1, 1, 3, 3)).coverage(),
        "plan.check": batch.check,
        "tiled forward": lambda: tiled.forward(large, small),
        "tiled grad_input": lambda: tiled.grad_input(dy, small),
        "tiled transpose": lambda: tiled.transpose(dy, small),
        "many weights, forward": lambda: many.forward(many_x, weights),
        "many weights, grad_input": lambda: many.grad_input(many_dy, weights),
        "many weights, grad_weight": lambda: many.grad_weight(many_x, many_dy),
    }
    if np.dtype(dtype) == bool:
        return cases
    A = plan.linear_operator(w)
    csr, other = plan.matrix(w), plan.matrix(w).astype("c16")
    rows, columns = values((A.shape[1], 3), dtype, "F"), values((A.shape[0], 2), dtype)
    complex_rows = rows.astype("c8")
    image, circular = (
        nc.plan_conv((4, 120, 130), (5, 4, 3, 3), dtype=dtype, **how)
        for how in ({}, {"padding": 1, "boundary": "wrap"})
    )
    kernel = values(image.kernel_shape, dtype)
    return cases | {
        "plan.matrix": lambda: plan.matrix(w),
        "plan.refill": lambda: plan.refill(csr, w),
        "plan.refill, other": lambda: plan.refill(other, w),
        "plan.linear_operator": lambda: many.linear_operator(weights),
        "plan.norm": lambda: image.norm(kernel, tol=0.9),
        "plan.norm, circular": lambda: circular.norm(kernel),
        "plan.gram_diagonal": lambda: plan.gram_diagonal(w),
        "plan.gram_diagonal, many": lambda: many.gram_diagonal(weights),
        "operator.matvec": lambda: A.matvec(rows[:, 0]),
        "operator.matmat": lambda: A.matmat(rows),
        "operator.rmatvec": lambda: A.rmatvec(columns[:, 0]),
        "operator.rmatmat": lambda: A.rmatmat(columns),
        "operator.matmat, complex": lambda: A.matmat(complex_rows),
    }
