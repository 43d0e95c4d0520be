"""Every wrong argument of every function: the right exception, naming the argument, what it got and what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
import scipy.sparse

import numconv as nc

X, W, B, DY = np.ones((2, 4, 9, 8)), np.ones((6, 4, 3, 2)), np.ones(6), np.ones((2, 6, 7, 7))
T = np.ones((4, 6, 3, 2))  # the kernel of a transposed convolution
X1, W1, X3, W3 = X[..., 0], W[..., 0], X[..., None], W[..., None]
PLAIN, KERNEL, COLS = np.ones((9, 8)), np.ones((3, 2)), np.ones((2, 24, 49))


def refuses(error: type[Exception], pieces: list[str], function: Any, *args: Any, **kwargs: Any) -> None:
    """The call raises exactly this kind of exception, with every piece (a regular expression) in the message."""
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    for piece in pieces:
        caught.match(piece)


# geometry, for every function that takes it ---------------------------------------------------------------------------

EVERYWHERE = ("stride", "padding", "dilation")
BOUNDED = (*EVERYWHERE, "boundary", "fill_value")
BY_MODE = ("stride", "dilation", "boundary", "fill_value")

#: function, its arguments, the geometry it takes. Two spatial axes everywhere.
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...], tuple[str, ...]]] = {
    "convolve": (nc.convolve, (PLAIN, KERNEL), BY_MODE),
    "correlate": (nc.correlate, (PLAIN, KERNEL), BY_MODE),
    "conv": (nc.conv, (X, W), (*BOUNDED, "groups")),
    "conv2d": (nc.conv2d, (X, W), (*BOUNDED, "groups")),
    "conv_transpose": (nc.conv_transpose, (X, T), (*EVERYWHERE, "groups")),
    "conv_transpose2d": (nc.conv_transpose2d, (X, T), (*EVERYWHERE, "groups")),
    "conv_grad_input": (nc.conv_grad_input, (X.shape, W, DY), (*BOUNDED, "groups")),
    "conv_grad_weight": (nc.conv_grad_weight, (X, W.shape, DY), (*BOUNDED, "groups")),
    "im2col": (nc.im2col, (X, (3, 2)), BOUNDED),
    "col2im": (nc.col2im, (COLS, X.shape, (3, 2)), BOUNDED),
    "kernel2row": (nc.kernel2row, (W, (9, 8)), (*BOUNDED, "groups")),
    "unfold": (nc.unfold, (X, (3, 2)), EVERYWHERE),
    "fold": (nc.fold, (COLS, (9, 8), (3, 2)), EVERYWHERE),
    "plan_conv": (nc.plan_conv, (X.shape, W.shape), (*BOUNDED, "groups")),
    "plan_convolve": (nc.plan_convolve, ((9, 8), (3, 2)), BY_MODE),
}

#: argument, wrong values, exception, what the message says besides the argument's name and the value.
GEOMETRY: list[tuple[str, list[Any], type[Exception], list[str]]] = [
    ("stride", [0, -1, (1, 0), (-2, 1)], ValueError, ["at least 1", r"0|-1|-2"]),
    ("stride", [1.5, "2", None, (1, 1.5), (1, None)], TypeError, ["int"]),
    ("stride", [(1,), (1, 2, 3), ()], ValueError, [r"\b2 ints|2 axes|axis", r"got"]),
    ("dilation", [0, -1, (1, 0), (-2, 1)], ValueError, ["at least 1", r"0|-1|-2"]),
    ("dilation", [1.5, "2", None, (1, 1.5), (1, None)], TypeError, ["int"]),
    ("dilation", [(1,), (1, 2, 3), ()], ValueError, [r"\b2 ints|2 axes|axis", r"got"]),
    ("padding", [-1, (0, -1), ((-1, 0), (0, 0))], ValueError, ["at least 0", "-1"]),
    ("padding", [1.5, None, (0, 0.5), ((0, 0.5), (0, 0)), b"same"], TypeError, ["int"]),
    ("padding", [(1,), (1, 2, 3), ((1, 1),), ((1, 2, 3), (0, 0)), ((1,), (0,))], ValueError, [r"\(lo, hi\)", "got"]),
    ("padding", ["middle", "SAME", ""], ValueError, ["'valid'", "'same'", "'same_lower'", "'full'"]),
    ("groups", [0, -1], ValueError, ["at least 1", r"0|-1"]),
    ("groups", [3, 5], ValueError, ["divide|multiple", r"\b4\b", r"3|5"]),
    ("groups", [1.5, "2", None, (1, 2)], TypeError, ["int"]),
    ("boundary", ["mirror", "zeros", ""], ValueError, ["'constant'", "'edge'", "'reflect'", "'symmetric'", "'wrap'"]),
    ("boundary", [None, 3], TypeError, ["'constant'", "'wrap'", "None|3"]),
    ("fill_value", ["1", None, [1, 2], b"0"], TypeError, ["number"]),
]


def geometry_cases():
    for function, (_, _, takes) in FUNCTIONS.items():
        for argument, wrong, error, pieces in GEOMETRY:
            if argument in takes:
                if function == "kernel2row" and wrong == [3, 5]:
                    continue  # there C is what groups makes it; see the table below
                for value in wrong:
                    yield pytest.param(function, argument, value, error, pieces, id=f"{function}-{argument}={value!r}")


@pytest.mark.parametrize(("function", "argument", "value", "error", "pieces"), [*geometry_cases()])
def test_a_wrong_geometry_argument_is_named(function, argument, value, error, pieces):
    call, arrays, _ = FUNCTIONS[function]
    refuses(error, [rf"\b{argument}\b", *pieces], call, *arrays, **{argument: value})


@pytest.mark.parametrize("function", [name for name, (_, _, takes) in FUNCTIONS.items() if "boundary" in takes])
def test_a_fill_value_needs_the_constant_boundary(function):
    call, arrays, _ = FUNCTIONS[function]
    refuses(ValueError, ["fill_value", "constant", "edge", "2"], call, *arrays, boundary="edge", fill_value=2)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_unknown_argument_is_a_type_error(function):
    call, arrays, _ = FUNCTIONS[function]
    refuses(TypeError, ["strides"], call, *arrays, strides=2)


@pytest.mark.parametrize("d", [1, 3])
def test_the_functions_of_one_and_three_axes_say_how_many_ints_they_need(d):
    x, w = (X1, W1) if d == 1 else (X3, W3)
    conv, transpose = getattr(nc, f"conv{d}d"), getattr(nc, f"conv_transpose{d}d")
    t = w.swapaxes(0, 1)
    for argument in ("stride", "dilation", "padding"):
        refuses(ValueError, [argument, str(d), "got"], conv, x, w, **{argument: (1, 1)})
        refuses(ValueError, [argument, str(d), "got"], transpose, x, t, **{argument: (1, 1)})
        refuses(ValueError, [argument, "at least", "-1"], conv, x, w, **{argument: -1})
        refuses(ValueError, [argument, "at least", "-1"], transpose, x, t, **{argument: -1})


# everything else, one line each ---------------------------------------------------------------------------------------


def plan(**arguments: Any):
    return nc.plan_conv(X.shape, W.shape, dtype=np.float64, **arguments)


def plain_plan():
    return nc.plan_convolve((9, 8), (3, 2), dtype=np.float64)


big = np.ones((6, 4, 10, 2))
ragged = [[[1.0, 2.0], [3.0]]]

#: what is wrong -> exception, pieces of the message, the call
TABLE: dict[str, tuple[type[Exception], list[str], Any]] = {
    # mode, algorithm
    "convolve mode": (
        ValueError, ["mode", "'middle'", "full", "same", "valid"], lambda: nc.convolve(PLAIN, KERNEL, "middle")
    ),
    "correlate mode": (
        ValueError, ["mode", "'middle'", "full", "same", "valid"], lambda: nc.correlate(PLAIN, KERNEL, "middle")
    ),
    "convolve mode type": (TypeError, ["mode", "3"], lambda: nc.convolve(PLAIN, KERNEL, 3)),
    "plan_convolve mode": (
        ValueError, ["mode", "'middle'", "valid"], lambda: nc.plan_convolve((9, 8), (3, 2), "middle")
    ),
    "conv algorithm": (
        ValueError, ["algorithm", "'magic'", "auto", "im2col", "winograd"], lambda: nc.conv(X, W, algorithm="magic")
    ),
    "conv precision": (
        ValueError, ["precision", "'fp16'", "ieee", "tf32", "tf32x3"], lambda: nc.conv(X, W, precision="fp16")
    ),
    "conv precision type": (TypeError, ["precision", "32"], lambda: nc.conv(X, W, precision=32)),
    "plan_conv precision": (ValueError, ["precision", "'high'", "tf32x3"], lambda: plan(precision="high")),
    "conv algorithm type": (TypeError, ["algorithm", "3"], lambda: nc.conv(X, W, algorithm=3)),
    "conv2d algorithm": (
        ValueError, ["algorithm", "'magic'", "auto", "direct"], lambda: nc.conv2d(X, W, algorithm="magic")
    ),
    "convolve algorithm": (
        ValueError, ["algorithm", "'magic'", "fft"], lambda: nc.convolve(PLAIN, KERNEL, algorithm="magic")
    ),
    "plan_conv algorithm": (ValueError, ["algorithm", "'magic'", "implicit"], lambda: plan(algorithm="magic")),
    "winograd of 5x5": (
        ValueError, ["winograd", r"3\D*3", r"5\D*5"],
        lambda: nc.conv(X, np.ones((6, 4, 5, 5)), padding=2, algorithm="winograd"),
    ),
    "winograd with a stride": (
        ValueError, ["winograd", "stride"], lambda: nc.conv(X, np.ones((6, 4, 3, 3)), stride=3, algorithm="winograd")
    ),
    "winograd with stride and dilation": (
        ValueError, ["winograd", "dilation"],
        lambda: nc.conv(X, np.ones((6, 4, 3, 3)), stride=2, dilation=2, algorithm="winograd"),
    ),
    "winograd of integers": (
        (ValueError, TypeError), ["winograd", "int32|integer"],
        lambda: nc.conv(X.astype("i4"), np.ones((6, 4, 3, 3), "i4"), algorithm="winograd"),
    ),
    "kernel2row with a fill value": (
        ValueError, ["kernel2row", "fill_value|fill|constant", "2"],
        lambda: nc.conv(X, W, padding=1, fill_value=2, algorithm="kernel2row"),
    ),
    "kernel2row matrix with a fill value": (
        ValueError, ["fill_value", "affine|linear|matrix"], lambda: nc.kernel2row(W, (9, 8), padding=1, fill_value=2)
    ),
    "plan.matrix with a fill value": (
        ValueError, ["fill_value", "affine|linear|matrix"], lambda: plan(padding=1, fill_value=2).matrix(W)
    ),
    "linear_operator with a fill value": (
        ValueError, ["fill_value", "affine|linear"], lambda: plan(padding=1, fill_value=2).linear_operator(W)
    ),
    # x and w
    "convolve axes of x and w": (
        ValueError, [r"\bx\b", r"\bw\b", r"\(9, 8\)", r"\(3,\)"], lambda: nc.convolve(PLAIN, np.ones(3))
    ),
    "convolve of neither in the other": (
        ValueError, ["3", "9", "valid|empty|larger|smaller|fit"],
        lambda: nc.convolve(np.ones((9, 3)), np.ones((3, 9)), "valid"),
    ),
    "conv x axes": (ValueError, [r"\bx\b", "axes", "4|3", r"\(9, 8\)"], lambda: nc.conv(PLAIN, W)),
    "conv x too many axes": (ValueError, [r"\bx\b", "axes"], lambda: nc.conv(X[None], W)),
    "conv w without spatial axes": (
        ValueError, [r"\bw\b", "spatial axis", r"\(6, 4\)"], lambda: nc.conv(X, np.ones((6, 4)))
    ),
    "conv w channels": (
        ValueError, [r"\bw\b", r"\(6, 3, 3, 2\)", "C=4|4 channels", "groups"], lambda: nc.conv(X, np.ones((6, 3, 3, 2)))
    ),
    "conv w group channels": (ValueError, [r"\bw\b", r"\(6, 4, 3, 2\)", "2"], lambda: nc.conv(X, W, groups=2)),
    "conv kernel without taps": (
        ValueError, ["kernel|w", r"\(6, 4, 0, 2\)"], lambda: nc.conv(X, np.ones((6, 4, 0, 2)))
    ),
    "conv kernel too large": (ValueError, ["empty|larger|smaller", r"9, 8", r"10, 2"], lambda: nc.conv(X, big)),
    "conv kernel too large for the padding": (
        ValueError, [r"9, 8", r"10, 2"], lambda: nc.conv(X, big, dilation=2, padding=4)
    ),
    "conv x is None": (TypeError, [r"\bx\b"], lambda: nc.conv(None, W)),
    "conv x is text": (TypeError, [r"\bx\b"], lambda: nc.conv("image.png", W)),
    "conv x is ragged": ((TypeError, ValueError), [r"\bx\b"], lambda: nc.conv(ragged, np.ones((1, 1, 1)))),
    "conv x is a set": (TypeError, [r"\bx\b"], lambda: nc.conv({1, 2}, W)),
    "conv x is sparse": (TypeError, [r"\bx\b"], lambda: nc.convolve(scipy.sparse.csr_array(PLAIN), KERNEL)),
    "conv w is None": (TypeError, [r"\bw\b"], lambda: nc.conv(X, None)),
    "conv1d of images": (ValueError, [r"\b[xw]\b", "3 axes|1 spatial|conv1d|1-?d"], lambda: nc.conv1d(X, W)),
    "conv2d of signals": (ValueError, [r"\b[xw]\b", "4 axes|2 spatial|conv2d|2-?d"], lambda: nc.conv2d(X1, W1)),
    "conv3d of images": (ValueError, [r"\b[xw]\b", "5 axes|3 spatial|conv3d|3-?d"], lambda: nc.conv3d(X, W)),
    "conv_transpose1d of images": (
        ValueError, [r"\b[xw]\b", "3 axes|1 spatial|1-?d"], lambda: nc.conv_transpose1d(X, T)
    ),
    "conv_transpose2d of volumes": (
        ValueError, [r"\b[xw]\b", "4 axes|2 spatial|2-?d"], lambda: nc.conv_transpose2d(X3, T[..., None])
    ),
    # bias
    "conv bias length": (ValueError, ["bias", r"\(5,\)", r"\(6,\)"], lambda: nc.conv(X, W, np.ones(5))),
    "conv bias axes": (ValueError, ["bias", r"\(6, 1\)", r"\(6,\)"], lambda: nc.conv2d(X, W, np.ones((6, 1)))),
    "conv bias dtype": (TypeError, ["bias"], lambda: nc.conv(X, W, np.array(["a"] * 6))),
    "conv_transpose bias": (ValueError, ["bias", r"\(4,\)", r"\(6,\)"], lambda: nc.conv_transpose2d(X, T, np.ones(4))),
    "plan.forward bias": (ValueError, ["bias", r"\(5,\)", r"\(6,\)"], lambda: plan().forward(X, W, np.ones(5))),
    # axes
    "convolve axes twice": (
        ValueError, ["axes", r"\(1, 1\)", "twice|repeat|duplicate|distinct|different|once"],
        lambda: nc.convolve(X, KERNEL, axes=(1, 1)),
    ),
    "convolve axes twice, one negative": (ValueError, ["axes"], lambda: nc.convolve(X, KERNEL, axes=(3, -1))),
    "convolve axes out of range": (ValueError, ["axes", "4"], lambda: nc.convolve(X, KERNEL, axes=(1, 4))),
    "convolve axes out of range below": (ValueError, ["axes", "-5"], lambda: nc.convolve(X, KERNEL, axes=(1, -5))),
    "convolve number of axes": (
        ValueError, ["axes", r"\bw\b", "3", "2"], lambda: nc.convolve(X, KERNEL, axes=(1, 2, 3))
    ),
    "convolve axes type": (TypeError, ["axes", "1.5"], lambda: nc.convolve(X, KERNEL, axes=(1, 1.5))),
    "correlate axes": (ValueError, ["axes", "4"], lambda: nc.correlate(X, KERNEL, axes=(1, 4))),
    # gradients
    "conv_grad_input dy": (
        ValueError, ["dy", r"\(2, 6, 7, 6\)", r"\(2, 6, 7, 7\)"], lambda: nc.conv_grad_input(X.shape, W, DY[..., 1:])
    ),
    "conv_grad_input dy without batch": (
        ValueError, ["dy", r"\(6, 7, 7\)", r"\(2, 6, 7, 7\)"], lambda: nc.conv_grad_input(X.shape, W, DY[0])
    ),
    "conv_grad_weight dy": (
        ValueError, ["dy", r"\(2, 6, 6, 7\)", r"\(2, 6, 7, 7\)"], lambda: nc.conv_grad_weight(X, W.shape, DY[:, :, 1:])
    ),
    "plan.grad_input dy": (
        ValueError, ["dy", r"\(2, 6, 7, 6\)", r"\(2, 6, 7, 7\)"], lambda: plan().grad_input(DY[..., 1:], W)
    ),
    "plan.grad_input w": (
        ValueError, [r"\bw\b", r"\(6, 4, 3, 3\)", r"\(6, 4, 3, 2\)"],
        lambda: plan().grad_input(DY, np.ones((6, 4, 3, 3))),
    ),
    "plan.grad_weight x": (
        ValueError, [r"\bx\b", r"\(4, 9, 8\)", r"\(2, 4, 9, 8\)"], lambda: plan().grad_weight(X[0], DY)
    ),
    "plan.grad_weight dy": (
        ValueError, ["dy", r"\(2, 7, 7, 7\)", r"\(2, 6, 7, 7\)"], lambda: plan().grad_weight(X, np.ones((2, 7, 7, 7)))
    ),
    "input_shape is an int": (TypeError, ["input_shape", "sequence", "9"], lambda: nc.conv_grad_input(9, W, DY)),
    "input_shape is an array": (TypeError, ["input_shape"], lambda: nc.conv_grad_input(X, W, DY)),
    "input_shape holds a float": (TypeError, ["input_shape", "9.5"], lambda: nc.conv_grad_input((2, 4, 9.5, 8), W, DY)),
    "input_shape is negative": (ValueError, ["input_shape", "-9"], lambda: nc.conv_grad_input((2, 4, -9, 8), W, DY)),
    "input_shape has too few axes": (
        ValueError, ["input_shape", r"\(9, 8\)"], lambda: nc.conv_grad_input((9, 8), W, DY)
    ),
    "input_shape has other channels": (
        ValueError, [r"input_shape|\bw\b", "5"], lambda: nc.conv_grad_input((2, 5, 9, 8), W, DY)
    ),
    "kernel_shape is an int": (TypeError, ["kernel_shape", "sequence", "3"], lambda: nc.conv_grad_weight(X, 3, DY)),
    "kernel_shape has too few axes": (
        ValueError, ["kernel_shape", r"\(3, 2\)"], lambda: nc.conv_grad_weight(X, (3, 2), DY)
    ),
    "kernel_shape has other channels": (
        ValueError, ["kernel_shape", "5"], lambda: nc.conv_grad_weight(X, (6, 5, 3, 2), DY)
    ),
    "kernel_shape is too large": (
        ValueError, ["kernel_shape|kernel", "10"], lambda: nc.conv_grad_weight(X, (6, 4, 10, 2), DY)
    ),
    # im2col and its adjoint
    "im2col kernel_size axes": (
        ValueError, ["kernel_size", r"\(3, 2, 2, 2, 2\)"], lambda: nc.im2col(X, (3, 2, 2, 2, 2))
    ),
    "im2col kernel_size 0": (ValueError, ["kernel_size", "0", "at least 1"], lambda: nc.im2col(PLAIN, (3, 0))),
    "im2col kernel_size float": (TypeError, ["kernel_size", "1.5"], lambda: nc.im2col(PLAIN, (3, 1.5))),
    "im2col kernel_size text": (TypeError, ["kernel_size", "'3'"], lambda: nc.im2col(PLAIN, "3")),
    "im2col kernel too large": (ValueError, ["empty|larger|smaller", "9, 8", "3, 9"], lambda: nc.im2col(PLAIN, (3, 9))),
    "im2col fill value for ints": (
        ValueError, ["fill_value", "0.5", "int8"],
        lambda: nc.im2col(np.ones((4, 4), np.int8), 3, padding=1, fill_value=0.5),
    ),
    "col2im cols": (
        ValueError, ["cols", r"\(2, 24, 48\)", r"\(2, 24, 49\)"], lambda: nc.col2im(COLS[..., 1:], X.shape, (3, 2))
    ),
    "col2im cols axes": (
        ValueError, ["cols", r"\(24, 49\)", r"\(2, 24, 49\)"], lambda: nc.col2im(COLS[0], X.shape, (3, 2))
    ),
    "col2im input_shape": (TypeError, ["input_shape", "sequence", "9"], lambda: nc.col2im(COLS, 9, (3, 2))),
    "col2im reduce": (
        ValueError, ["reduce", "'max'", "sum", "mean"], lambda: nc.col2im(COLS, X.shape, (3, 2), reduce="max")
    ),
    "col2im reduce type": (TypeError, ["reduce", "None", "sum"], lambda: nc.col2im(COLS, X.shape, (3, 2), reduce=None)),
    "col2im kernel_size": (ValueError, ["kernel_size", "0"], lambda: nc.col2im(COLS, X.shape, (3, 0))),
    "plan.im2col x": (ValueError, [r"\bx\b", r"\(4, 9, 8\)", r"\(2, 4, 9, 8\)"], lambda: plan().im2col(X[0])),
    "plan.col2im cols": (
        ValueError, ["cols", r"\(2, 24, 48\)", r"\(2, 24, 49\)"], lambda: plan().col2im(COLS[..., 1:])
    ),
    "unfold kernel_size": (ValueError, ["kernel_size", "0"], lambda: nc.unfold(X, (3, 0))),
    "unfold of one axis": (ValueError, [r"\bx\b|kernel_size"], lambda: nc.unfold(np.ones(9), (3, 2))),
    "fold cols": (ValueError, ["cols", "48", "49"], lambda: nc.fold(COLS[..., 1:], (9, 8), (3, 2))),
    "fold cols channels": (ValueError, ["cols", "23", "6"], lambda: nc.fold(COLS[:, 1:], (9, 8), (3, 2))),
    "fold cols axes": (ValueError, ["cols", r"\(49,\)"], lambda: nc.fold(COLS[0, 0], (9, 8), (3, 2))),
    "fold output_size": (ValueError, ["output_size"], lambda: nc.fold(COLS, (9, 8, 2), (3, 2))),
    "fold output_size float": (TypeError, ["output_size", "8.5"], lambda: nc.fold(COLS, (9, 8.5), (3, 2))),
    "fold output too small": (
        ValueError, ["empty|larger|smaller", "2, 8", "3, 2"], lambda: nc.fold(COLS, (2, 8), (3, 2))
    ),
    # kernel2row
    "kernel2row input_size": (
        ValueError, ["input_size", r"\(9, 8, 7\)", "2|axes"], lambda: nc.kernel2row(W, (9, 8, 7))
    ),
    "kernel2row input_size negative": (ValueError, ["input_size", "-8"], lambda: nc.kernel2row(W, (9, -8))),
    "kernel2row input_size float": (TypeError, ["input_size", "8.5"], lambda: nc.kernel2row(W, (9, 8.5))),
    "kernel2row kernel too large": (
        ValueError, ["empty|larger|smaller", "2, 8", "3, 2"], lambda: nc.kernel2row(W, (2, 8))
    ),
    "kernel2row groups": (ValueError, ["groups", "divide", "6", "4"], lambda: nc.kernel2row(W, (9, 8), groups=4)),
    "kernel2row w": (TypeError, [r"\bw\b"], lambda: nc.kernel2row(None, (9, 8))),
    # transposed
    "output_padding too large": (
        ValueError, ["output_padding", "2", "stride"], lambda: nc.conv_transpose2d(X, T, stride=2, output_padding=2)
    ),
    "output_padding without stride": (
        ValueError, ["output_padding", "1"], lambda: nc.conv_transpose(X, T, output_padding=1)
    ),
    "output_padding negative": (
        ValueError, ["output_padding", "-1"], lambda: nc.conv_transpose2d(X, T, stride=2, output_padding=-1)
    ),
    "output_padding float": (
        TypeError, ["output_padding", "0.5"], lambda: nc.conv_transpose2d(X, T, stride=2, output_padding=0.5)
    ),
    "output_padding length": (
        ValueError, ["output_padding", "2"], lambda: nc.conv_transpose2d(X, T, stride=2, output_padding=(1,))
    ),
    "conv_transpose channels": (ValueError, [r"\bw\b", r"\(6, 4, 3, 2\)", "C=4"], lambda: nc.conv_transpose(X, W)),
    "conv_transpose x axes": (ValueError, [r"\bx\b", "axes", r"\(9, 8\)"], lambda: nc.conv_transpose(PLAIN, T)),
    "conv_transpose padding eats all": (
        ValueError, ["empty", "padding|5"], lambda: nc.conv_transpose(np.ones((1, 4, 2, 2)), T, padding=5)
    ),
    # plans
    "plan_conv input_shape": (TypeError, ["input_shape", "9"], lambda: nc.plan_conv(9, W.shape)),
    "plan_conv kernel_shape": (TypeError, ["kernel_shape", "None"], lambda: nc.plan_conv(X.shape, None)),
    "plan_conv channels": (
        ValueError, ["kernel_shape", r"\(6, 3, 3, 2\)"], lambda: nc.plan_conv(X.shape, (6, 3, 3, 2))
    ),
    "plan_convolve axes": (ValueError, ["input_shape", "kernel_shape"], lambda: nc.plan_convolve((9, 8), (3,))),
    "plan_conv dtype object": (TypeError, ["dtype", "object"], lambda: nc.plan_conv(X.shape, W.shape, dtype=object)),
    "plan_conv dtype longdouble": (
        TypeError, ["dtype", "longdouble|float128"], lambda: nc.plan_conv(X.shape, W.shape, dtype=np.longdouble)
    ),
    "plan_conv dtype unknown": (
        TypeError, ["dtype", "nonsense"], lambda: nc.plan_conv(X.shape, W.shape, dtype="nonsense")
    ),
    "plan.forward x": (ValueError, [r"\bx\b", r"\(4, 9, 8\)", r"\(2, 4, 9, 8\)"], lambda: plan().forward(X[0], W)),
    "plan.forward w": (
        ValueError, [r"\bw\b", r"\(6, 4, 2, 3\)", r"\(6, 4, 3, 2\)"], lambda: plan().forward(X, np.ones((6, 4, 2, 3)))
    ),
    "plan.forward x dtype": (TypeError, [r"\bx\b", "complex128", "float64"], lambda: plan().forward(X * 1j, W)),
    "plan.forward w dtype": (TypeError, [r"\bw\b", "complex128", "float64"], lambda: plan().forward(X, W * 1j)),
    "plan.forward too wide": (
        TypeError, [r"\bx\b", "float64", "float32"], lambda: nc.plan_conv(X.shape, W.shape).forward(X, W)
    ),
    "plan.matrix w": (ValueError, [r"\bw\b", r"\(4, 6, 3, 2\)", r"\(6, 4, 3, 2\)"], lambda: plan().matrix(T)),
    "plan.linear_operator w": (
        ValueError, [r"\bw\b", r"\(4, 6, 3, 2\)", r"\(6, 4, 3, 2\)"], lambda: plan().linear_operator(T)
    ),
    "plan.nbytes": (ValueError, ["'columns'", "im2col", "matrix", "workspace"], lambda: plan().nbytes("columns")),
    "refill of another structure": (
        ValueError, ["csr", "structure|shape|nnz|plan"],
        lambda: plan().refill(scipy.sparse.csr_array(np.eye(294, 288)), W),
    ),
    "refill of another shape": (
        ValueError, ["csr", r"\(3, 3\)", r"\(294, 288\)"], lambda: plan().refill(scipy.sparse.csr_array(np.eye(3)), W)
    ),
    "refill of another format": (TypeError, ["csr"], lambda: plan().refill(plan().matrix(W).tocoo(), W)),
    "refill of an array": (TypeError, ["csr"], lambda: plan().refill(plan().matrix(W).toarray(), W)),
    "refill with another kernel": (
        ValueError, [r"\bw\b", r"\(6, 4, 3, 3\)", r"\(6, 4, 3, 2\)"],
        lambda: plan().refill(plan().matrix(W), np.ones((6, 4, 3, 3))),
    ),
    "plan_conv device": (ValueError, ["device", "'tpu'", "auto", "cpu", "cuda"], lambda: plan(device="tpu")),
    "plan_conv device type": (TypeError, ["device", "3"], lambda: plan(device=3)),
}  # fmt: skip


@pytest.mark.parametrize(("error", "pieces", "call"), TABLE.values(), ids=TABLE)
def test_a_wrong_argument_is_named_with_what_it_got_and_needs(error, pieces, call):
    refuses(error, pieces, call)


def test_refill_refuses_a_matrix_of_the_same_shape_and_size_but_another_structure():
    csr = plain_plan().matrix(KERNEL)
    moved = csr.copy()
    moved.indices[0] = 40  # no pixel of the first window
    before = moved.data.copy()
    refuses(ValueError, ["csr"], plain_plan().refill, moved, 2 * KERNEL)
    np.testing.assert_array_equal(moved.data, before)


def test_refill_refuses_a_matrix_whose_zeros_were_dropped():
    kernel = KERNEL.copy()
    kernel[0, 0] = 0
    csr = plain_plan().matrix(kernel)
    csr.eliminate_zeros()
    refuses(ValueError, ["csr"], plain_plan().refill, csr, KERNEL)


def test_refill_refuses_weights_that_the_matrix_cannot_hold():
    csr = plain_plan().matrix(KERNEL)
    refuses(TypeError, [r"\bw\b", "complex128", "float64"], plain_plan().refill, csr, KERNEL * 1j)


def test_refill_refuses_a_read_only_matrix():
    csr = plain_plan().matrix(KERNEL)
    csr.data.setflags(write=False)
    refuses(ValueError, ["csr", "read-?only|writ"], plain_plan().refill, csr, 2 * KERNEL)


@pytest.mark.parametrize("value", [2**63, 2**70], ids=["2**63", "2**70"])
@pytest.mark.parametrize("argument", ["stride", "dilation"])
def test_an_int_that_no_index_can_hold_is_named(argument, value):
    one = np.ones((1, 1, 1))
    refuses(ValueError, [argument, str(value)], nc.conv, X1, np.ones((6, 4, 1)), **{argument: value})
    refuses(ValueError, [argument, str(value)], nc.conv, one, one, padding=value, **{argument: value})
    refuses(ValueError, [argument, str(value)], nc.im2col, PLAIN, (1, 1), **{argument: (1, value)})


# devices --------------------------------------------------------------------------------------------------------------


def test_use_device_refuses_unknown_names():
    with pytest.raises(ValueError, match=r"device.*'tpu'|'tpu'.*device") as error, nc.use_device("tpu"):
        pass
    for name in ("auto", "cpu", "cuda"):
        error.match(name)


def run_with_device(device: str, code: str) -> subprocess.CompletedProcess[str]:
    """A fresh process, since a device is part of the state of one; CUDA_VISIBLE_DEVICES hides any GPU there is."""
    environment = os.environ | {"NUMCONV_DEVICE": device, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", f"import numpy as np, numconv as nc\n{code}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_an_invalid_device_in_the_environment_is_named():
    run = run_with_device("gpu", "nc.conv1d(np.ones((1, 9)), np.ones((1, 1, 3)))")
    assert run.returncode == 1
    message = run.stderr.splitlines()[-1]
    for piece in ("ValueError", "NUMCONV_DEVICE", "gpu", "auto", "cpu", "cuda"):
        assert piece in message


def test_cuda_without_a_gpu_says_what_is_missing():
    code = """
import sys
for call in (
    lambda: nc.plan_conv((1, 9), (1, 1, 3), device="cuda"),
    lambda: nc.conv1d(np.ones((1, 9)), np.ones((1, 1, 3))),
):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
    else:
        sys.exit("no error")
with nc.use_device("cpu"):
    print(nc.conv1d(np.ones((1, 9)), np.ones((1, 1, 3))).sum())
"""
    run = run_with_device("cuda", code)
    assert run.returncode == 0, run.stderr
    *messages, computed_on_cpu = run.stdout.splitlines()
    assert computed_on_cpu == "21.0"
    assert len(messages) == 2
    missing = ("gpu", "driver", "numba-cuda", "install")
    for message in map(str.lower, messages):
        assert "cuda" in message
        assert any(word in message for word in missing), message


# before anything is computed or allocated -----------------------------------------------------------------------------

HUGE, HUGE_W = np.broadcast_to(np.float32(1), (4, 64, 200_000, 200_000)), np.broadcast_to(np.float32(1), (64, 64, 3, 3))
HUGE_PLAIN, HUGE_DY = HUGE[0, 0], np.broadcast_to(np.float32(1), (4, 64, 199_998, 199_998))

#: Calls whose arrays cannot exist in memory: an error that comes late would be a MemoryError or never come.
LATE: dict[str, tuple[type[Exception], str, Any]] = {
    "stride": (ValueError, "stride", lambda: nc.conv(HUGE, HUGE_W, stride=0)),
    "padding": (ValueError, "padding", lambda: nc.conv(HUGE, HUGE_W, padding="middle")),
    "boundary": (ValueError, "boundary", lambda: nc.conv(HUGE, HUGE_W, boundary="mirror")),
    "algorithm": (ValueError, "algorithm", lambda: nc.conv(HUGE, HUGE_W, algorithm="magic")),
    "winograd": (ValueError, "winograd", lambda: nc.conv(HUGE, HUGE_W, stride=3, algorithm="winograd")),
    "bias": (ValueError, "bias", lambda: nc.conv(HUGE, HUGE_W, np.ones(3, np.float32))),
    "bias-dtype": (TypeError, "bias", lambda: nc.conv(HUGE, HUGE_W, np.zeros(64, object))),
    "w": (ValueError, r"\bw\b", lambda: nc.conv(HUGE, HUGE_W[:, 1:])),
    "out": (ValueError, r"\bout\b", lambda: nc.conv(HUGE, HUGE_W, out=np.zeros(3, np.float32))),
    "out-dtype": (TypeError, r"\bout\b", lambda: nc.conv(HUGE, HUGE_W, out=np.broadcast_to(np.int8(0), HUGE_DY.shape))),
    "mode": (ValueError, "mode", lambda: nc.convolve(HUGE_PLAIN, HUGE_W[0, 0], "middle")),
    "axes": (ValueError, "axes", lambda: nc.convolve(HUGE, HUGE_W[0, 0], axes=(1, 1))),
    "dy": (ValueError, "dy", lambda: nc.conv_grad_input(HUGE.shape, HUGE_W, HUGE_DY[..., 1:])),
    "dy-weight": (ValueError, "dy", lambda: nc.conv_grad_weight(HUGE, HUGE_W.shape, HUGE_DY[..., 1:])),
    "kernel_size": (ValueError, "kernel_size", lambda: nc.im2col(HUGE, (3, 0))),
    "im2col-fill": (ValueError, "fill_value", lambda: nc.im2col(HUGE, 3, padding=1, boundary="edge", fill_value=2)),
    "cols": (ValueError, "cols", lambda: nc.col2im(HUGE_PLAIN, (200_000, 200_000), 3)),
    "reduce": (
        ValueError, "reduce", lambda: nc.col2im(np.broadcast_to(1.0, (9, 99_998**2)), (100_000,) * 2, 3, reduce="max")
    ),
    "matrix": (ValueError, "fill_value", lambda: nc.kernel2row(HUGE_W, (200_000, 200_000), padding=1, fill_value=2)),
    "transpose": (ValueError, "output_padding", lambda: nc.conv_transpose2d(HUGE, HUGE_W, output_padding=3)),
    "masked": (TypeError, r"\bw\b", lambda: nc.conv(HUGE, np.ma.masked_equal(np.ones((64, 64, 3, 3), np.float32), 1))),
    "dtype": (TypeError, r"\bw\b", lambda: nc.conv(HUGE, np.zeros((64, 64, 3, 3), object))),
}  # fmt: skip


@pytest.mark.parametrize(("error", "piece", "call"), LATE.values(), ids=LATE)
def test_errors_come_before_any_allocation(error, piece, call):
    tracemalloc.start()
    start = time.perf_counter()
    try:
        refuses(error, [piece], call)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6, "room for messages and modules, none for images"
    assert time.perf_counter() - start < 20
