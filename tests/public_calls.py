"""Every public call with every feature, one table: what runs on the CPU and on a GPU, what is refused in which words.

The simulator, the stand-in for the driver and a real GPU run the same rows (``test_cuda_table.py``,
``test_cuda_standin.py``, ``test_gpu.py``), and ``gpu/table.py`` prints them as ``docs/gpu.md``. A row computes with
whatever arrays its library makes of NumPy's; what it gives must be what the CPU gives, dtypes included.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from conftest import BOUNDARIES, largest, values
from simulator import simulated

import numconv as nc
from numconv import select

#: Whose arrays a row runs with: NumPy's on the CPU and on a GPU, and those of libraries that lie there already.
HERE, SENT, THERE = "cpu", "sent", ("cupy", "torch", "others")
COLUMNS = {
    HERE: "NumPy on the CPU", SENT: "NumPy, sent to a GPU", "cupy": "CuPy", "torch": "torch", "others": "others there",
}  # fmt: skip


class Library:
    """NumPy's arrays on the CPU, and what the others do in their own way."""

    name = HERE

    def __call__(self, array: np.ndarray) -> Any:
        """An array of the library's: a copy."""
        return np.array(array)

    def laid(self, base: np.ndarray, view: Callable[[Any], Any]) -> Any:
        """A view of an array of the library's."""
        return view(self(base))

    def fetch(self, array: Any) -> np.ndarray:
        """What it holds."""
        return array

    @property
    def device(self) -> str:
        """For plans."""
        return "cpu" if self.name == HERE else "cuda"


@dataclass(frozen=True)
class Call:
    """A row: ``refused`` says how the error begins for which libraries (or ``"gpu"``, ``"there"``, ``"all"``)."""

    function: str
    feature: str
    run: Callable[[Library], Any] = field(repr=False, compare=False)
    refused: dict[str, str] = field(default_factory=dict, compare=False)
    rounds: bool = False  # otherwise results are the same bit for bit
    needs: str = ""  # a library without which it has no meaning
    without: tuple[str, ...] = ()  # libraries that have no such arrays

    def __str__(self) -> str:
        return f"{self.function}-{self.feature}".replace(" ", "_")

    def refusal(self, library: str) -> str:
        """How the error begins for arrays of a library; empty where there is a result."""
        names = [library, *(["there"] if library in THERE else []), *(["gpu"] if library != HERE else []), "all"]
        return next((self.refused[name] for name in names if name in self.refused), "")


CALLS: list[Call] = []


def row(function: str, feature: str, run: Callable[[Library], Any], **more: Any) -> None:
    """Another row."""
    CALLS.append(Call(function, feature, run, **more))


# the products of layers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """Arrays of a convolution and its geometry."""

    geometry: dict[str, Any]
    d: int = 2
    batch: bool = True
    dtype: str = "float32"
    sizes: tuple[int, int, int] = (2, 4, 4)  # images, channels in and out

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of input and kernel."""
        N, C, K = self.sizes
        size, kernel = ((5, 4)[: self.d], (3, 2)[: self.d]) if self.d < 3 else ((3, 3, 2, 2), (2, 1, 2, 1))
        size, kernel = size[: self.d], kernel[: self.d]
        return (*((N,) if self.batch else ()), C, *size), (K, C // self.geometry.get("groups", 1), *kernel)

    def plan(self, **more: Any) -> nc.ConvPlan:
        """A plan for it."""
        return nc.plan_conv(*self.shapes, dtype=self.dtype, **self.geometry, **more)

    def array(self, shape: tuple[int, ...], seed: int) -> np.ndarray:
        """Small multiples of 1/2."""
        return values(shape, self.dtype, seed)

    @property
    def out(self) -> tuple[int, ...]:
        """The shape of the output, by a plan for the CPU."""
        return self.plan(device="cpu").output_shape

    x = property(lambda self: self.array(self.shapes[0], 0))
    w = property(lambda self: self.array(self.shapes[1], 1))
    bias = property(lambda self: self.array(self.shapes[1][:1], 2))
    dy = property(lambda self: self.array(self.out, 3))

    @property
    def each(self) -> np.ndarray:
        """A kernel for each output."""
        return self.array((*self.out[-self.d :], *self.shapes[1]), 4)

    @property
    def linear(self) -> dict[str, Any]:
        """The geometry of what has no fill value."""
        return {name: value for name, value in self.geometry.items() if name != "fill_value"}

    @property
    def window(self) -> dict[str, Any]:
        """That of a window, which knows no groups."""
        return {name: value for name, value in self.geometry.items() if name != "groups"}


def transposed(L: Layer, to: Library, **more: Any) -> Any:
    """``conv_transpose`` with the kernel of a layer; it is the matrix of ``conv``, turned."""
    return nc.conv_transpose(to(L.dy), to(L.w), **L.linear, **more)


def columns(L: Layer, to: Library, **more: Any) -> Any:
    cols = values(L.plan(device="cpu").geometry.cols_shape, L.dtype, 5)
    return nc.col2im(to(cols), L.shapes[0], L.shapes[1][2:], **L.window, **more)


#: Each of a layer, with further arguments.
PRODUCTS: dict[str, Callable[..., Any]] = {
    "conv": lambda L, to, **more: nc.conv(to(L.x), to(L.w), to(L.bias), **L.geometry, **more),
    "conv_grad_input": lambda L, to, **more: nc.conv_grad_input(L.x.shape, to(L.w), to(L.dy), **L.geometry, **more),
    "conv_grad_weight": lambda L, to, **more: nc.conv_grad_weight(to(L.x), L.w.shape, to(L.dy), **L.geometry, **more),
    "conv_transpose": transposed,
    "conv_local": lambda L, to, **more: nc.conv_local(to(L.x), to(L.each), to(L.bias), **L.geometry, **more),
    "conv_local_grad_input": lambda L, to, **more: nc.conv_local_grad_input(
        L.x.shape, to(L.each), to(L.dy), **L.geometry, **more
    ),
    "conv_local_grad_weight": lambda L, to, **more: nc.conv_local_grad_weight(
        to(L.x), L.each.shape, to(L.dy), **L.geometry, **more
    ),
    "im2col": lambda L, to, **more: nc.im2col(to(L.x), L.shapes[1][2:], **L.window, **more),
    "col2im": columns,
    "kernel2row": lambda L, to, **more: nc.kernel2row(to(L.w), L.shapes[0][-L.d :], **L.geometry, **more),
    "kernel2row_local": lambda L, to, **more: nc.kernel2row_local(
        to(L.each), L.shapes[0][-L.d :], **L.geometry, **more
    ),
}  # fmt: skip
MATRICES = ("kernel2row", "kernel2row_local")
WINDOWS = ("im2col", "col2im")
LOCAL = ("conv_local", "conv_local_grad_input", "conv_local_grad_weight", "kernel2row_local")
OPERATOR = "mask and w must live on the CPU for normalized_operator, an operator of SciPy"
AFFINE = "fill_value must be 0 for a matrix"

GEOMETRIES: dict[str, dict[str, Any]] = {
    **{f"boundary {name}": {"padding": ((2, 1), (0, 3)), "boundary": name} for name in BOUNDARIES},
    "padding wider than the input": {"padding": 6, "boundary": "reflect"},
    "fill_value": {"padding": 1, "fill_value": 2}, "groups": {"groups": 2, "padding": 1},
    "a group for each channel": {"groups": 4}, "stride": {"stride": (2, 3), "padding": 1},
    "dilation": {"dilation": (2, 1), "padding": 1}, "flip": {"flip": True},
    **{f"padding {word}": {"padding": word} for word in ("valid", "same", "same_lower", "full")},
}  # fmt: skip
DTYPES = (
    "float16", "float64", "complex64", "complex128", "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32",
    "int64", "uint64",
)  # fmt: skip
SOME_DTYPES = ("float16", "float64", "complex64", "bool", "int8")


def layers(function: str) -> Iterator[tuple[str, Layer]]:
    """The features that are about a layer."""
    for feature, geometry in GEOMETRIES.items():
        if not (function in WINDOWS and "groups" in geometry) and not (
            function in ("conv_transpose", "kernel2row_local") and "fill_value" in geometry
        ):
            yield feature, Layer(geometry)
    for d in (1, 3, 4):
        yield f"axes {d}", Layer({"padding": 1}, d)
    if function not in (*LOCAL, *MATRICES):
        yield "one image", Layer({"padding": 1}, batch=False)
    for dtype in DTYPES if function == "conv" else SOME_DTYPES:
        yield f"dtype {dtype}", Layer({"padding": 1}, dtype=dtype)
    for what, sizes in {"images": (0, 4, 4), "channels in": (2, 0, 4), "channels out": (2, 4, 0)}.items():
        if not (function in MATRICES and what == "images"):
            yield f"no {what}", Layer({"padding": 1}, sizes=sizes)


def refused_by(algorithm: str) -> dict[str, str]:
    """How the error of an algorithm begins where it is not there."""
    refused = f"algorithm {algorithm!r} cannot serve this convolution: "
    if algorithm not in select.ON["cuda"]:
        return {"gpu": f"{refused}there is no cuda kernel of it"}
    if algorithm == "fft" and not simulated:  # whose arrays are NumPy's, which has one
        return dict.fromkeys((SENT, "others"), f"{refused}it transforms by the library of the arrays")
    return {}


def plain_products() -> None:
    """What takes a layer, with every feature that is about it."""
    for function, product in PRODUCTS.items():
        for feature, L in layers(function):
            refused = {"all": AFFINE} if function == "kernel2row" and feature == "fill_value" else {}
            row(function, feature, lambda to, product=product, L=L: product(L, to), refused=refused)
        if function not in MATRICES:
            layouts_and_out(function, product)
    for function in ("conv", "conv_grad_input", "conv_grad_weight", "conv_transpose"):
        for name in ("im2col", "kernel2row", "implicit", "direct", "winograd", "fft"):
            row(
                function, f"algorithm {name}", lambda to, product=PRODUCTS[function], name=name: product(
                    Layer({}) if name != "winograd" else Square({}), to, algorithm=name
                ), rounds=name in ("winograd", "fft"),
                refused=refused_by(name),
            )  # fmt: skip
        row(
            function, "dtype= wider", lambda to, product=PRODUCTS[function]: product(
                Layer({}, dtype="int8"), to, dtype="int32"
            ),
        )  # fmt: skip


class Square(Layer):
    """A layer of 3x3 kernels."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (1, 2, 5, 4), (2, 2, 3, 3)


# layouts and out= -----------------------------------------------------------------------------------------------------

#: How arrays lie: what is sent, and the view of it.
LAYOUTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[Any], Any]]] = {
    "strided": (lambda a: np.repeat(a, 2, -1), lambda a: a[..., ::2]),
    "an axis that is moved": (lambda a: a.swapaxes(-1, -2).copy(), lambda a: a.swapaxes(-1, -2)),
    "part of a larger array": (lambda a: np.pad(a, 1), lambda a: a[(slice(1, -1),) * len(a.shape)]),
    "reversed": (lambda a: a[..., ::-1].copy(), lambda a: a[..., ::-1]),
}
NO_REVERSED = ("torch",)


class Laid(Library):
    """A library whose arrays lie in some way."""

    def __init__(self, library: Library, layout: str) -> None:
        self.library, self.name = library, library.name
        self.base, self.view = LAYOUTS[layout]

    def __call__(self, array: np.ndarray) -> Any:
        if array.ndim < 2:
            return self.library(array)
        return self.library.laid(self.base(array), self.view)


def layouts_and_out(function: str, product: Callable[..., Any]) -> None:
    """Inputs that lie in any way, and results that go to them."""
    L = Layer({"padding": 1})
    for layout in LAYOUTS:
        without = NO_REVERSED if layout == "reversed" else ()
        row(function, layout, lambda to, layout=layout: product(L, Laid(to, layout)), without=without)
        row(f"{function}", f"out= {layout}", lambda to, layout=layout: into(product, L, to, layout), without=without)
    row(function, "out=", lambda to: into(product, L, to))
    row(function, "out= of a wider dtype", lambda to: into(product, L, to, dtype="float64"))
    row(function, "out= of another shape", lambda to: product(L, to, out=to(np.zeros((1, 1)))), refused={
        "all": "out must have shape"})  # fmt: skip
    if function != "im2col":
        row(function, "out= of a dtype that does not fit", lambda to: into(product, L, to, dtype="int32"), refused={
            "all": "out must have a dtype that float32 casts to"})  # fmt: skip


def shape_of(product: Callable[..., Any], L: Layer) -> tuple[int, ...]:
    """The shape of a result, computed on the CPU."""
    with nc.use_device("cpu"):
        return product(L, Library()).shape


def into(product: Callable[..., Any], L: Layer, to: Library, layout: str = "", dtype: str = "") -> Any:
    """The result in ``out=``, and the memory that ``out`` is part of."""
    shape = shape_of(product, L)
    room = values(shape, dtype or ("float32" if L.dtype == "float32" else L.dtype), 9)
    if not layout:
        out = to(room)
        got = product(L, to, out=out)
        return got is out, got
    base, view = LAYOUTS[layout]
    seen: list[Any] = []
    out = to.laid(base(room), lambda whole: seen.append(whole) or view(whole))
    got = product(L, to, out=out)
    return got is out, seen[0]


def overlapping() -> None:
    """Results that go to where an input lies."""

    def conv(to: Library) -> Any:
        L = Layer({"padding": "same"})
        x = to(L.x)
        return nc.conv(x, to(L.w), out=x, **L.geometry)

    def convolve(to: Library) -> Any:
        whole: list[Any] = []

        def parts(memory: Any) -> Any:
            whole.append(memory)
            return memory[1:]

        x = to.laid(values((6, 4), "float32"), parts)
        return nc.convolve(x, to(values((3, 3), "float32", 1)), "same", out=x), whole[0]

    row("conv", "out= is an input", conv)
    row("convolve", "out= is an input", convolve)


# functions of plain arrays --------------------------------------------------------------------------------------------


def sliding() -> None:
    """``convolve``, ``correlate`` and ``normalized_convolve``: modes, axes, dtypes."""
    x, w = values((5, 4), "float32"), values((3, 2), "float32", 1)
    gaps, weights = x.copy(), np.abs(w) + np.float32(0.5)
    gaps[1, 2], gaps[0] = np.nan, np.nan
    signed = weights * np.array([[1, 1], [-0.25, 1], [1, 1]], np.float32)
    for function in ("convolve", "correlate", "normalized_convolve"):
        call, rounds = getattr(nc, function), function.startswith("normalized")
        a, b = (gaps, weights) if rounds else (x, w)
        more: dict[str, tuple[Any, Any, dict[str, Any]]] = {
            **{f"mode {mode}": (a, b, {"mode": mode}) for mode in ("full", "same", "valid")},
            **{f"boundary {name}": (a, b, {"mode": "same", "boundary": name}) for name in BOUNDARIES},
            "fill_value": (a, b, {"fill_value": 2}), "stride": (a, b, {"stride": (2, 3)}),
            "dilation": (a, b, {"dilation": 2}), "axes=": (a, b[:, 0], {"mode": "same", "axes": 0}),
            "axes= in another order": (np.stack([a, a]), b, {"axes": (2, 0), "mode": "same"}),
            "the kernel is the larger": (b, a, {"mode": "valid"}) if not rounds else (
                x[:3, :2], np.abs(x) + np.float32(1), {"mode": "valid"}),
            "axes 1": (a[2], b[:, 0], {}), "axes 3": (np.stack([a, a]), b[None], {}),
            "axes 4": (a.reshape(1, 5, 2, 2), b.reshape(1, 3, 2, 1), {}), "axes 0": (a[2, 0], b[0, 0], {}),
            "dtype=": (a, b, {"dtype": "float64"}),
        }  # fmt: skip
        for dtype in DTYPES if function == "convolve" else SOME_DTYPES:
            if not rounds:
                more[f"dtype {dtype}"] = values((5, 4), dtype), values((3, 2), dtype, 1), {}
            elif dtype != "bool":
                more[f"dtype {dtype}"] = values((5, 4), dtype), np.ones((3, 2), dtype), {}
        for feature, (first, second, arguments) in more.items():
            row(function, feature, lambda to, call=call, a=first, b=second, more=arguments: call(
                to(np.asarray(a)), to(np.asarray(b)), **more), rounds=rounds)  # fmt: skip
        layouts_and_out(function, lambda L, to, call=call, a=a, b=b, **more: call(to(a), to(b), "same", **more)) if (
            not rounds
        ) else [
            row(function, layout, lambda to, call=call, a=a, b=b, layout=layout: call(
                Laid(to, layout)(a), to(b), "same"), rounds=True, without=NO_REVERSED if layout == "reversed" else ())
            for layout in LAYOUTS
        ]  # fmt: skip
    row("convolve", "a list beside an array", lambda to: nc.convolve(to(x[0]), [1.0, 2.0]))
    row("normalized_convolve", "mask=", lambda to: nc.normalized_convolve(
        to(x), to(weights), mask=to(x > 1)), rounds=True)  # fmt: skip
    row("normalized_convolve", "weights that cancel in part", lambda to: nc.normalized_convolve(to(gaps), to(signed)),
        rounds=True)  # fmt: skip
    row("normalized_convolve", "nothing is there outside", lambda to: nc.normalized_convolve(
        to(gaps), to(weights), "same", fill_value=np.nan), rounds=True)  # fmt: skip
    row("normalized_convolve", "out=", lambda to: nc.normalized_convolve(
        to(gaps), to(weights), "same", out=to(np.zeros((5, 4)))), rounds=True)  # fmt: skip
    row("normalized_convolve", "weights whose sum vanishes", lambda to: nc.normalized_convolve(
        to(gaps), to(np.array([[1, -1]], np.float32))), refused={"all": "w must have a sum other than 0"})  # fmt: skip
    row("normalized_convolve", "a mask that is no bool", lambda to: nc.normalized_convolve(
        to(gaps), to(weights), mask=to(x)), refused={"all": "mask must be an array of bool"})  # fmt: skip
    row("normalized_operator", "mask=", lambda to: nc.normalized_operator(to(x > 1), to(weights)).matrix(), refused={
        "there": OPERATOR})  # fmt: skip
    row("normalized_operator", "products", lambda to: [
        getattr(nc.normalized_operator(to(x > 1), to(weights), "same"), name)(to(values((20,), "float32", 7)))
        for name in ("matvec", "rmatvec")], rounds=True,
        refused={"there": OPERATOR})  # fmt: skip


def in_torchs_order() -> None:
    """The functions with the number of axes in their names."""
    for d in (1, 2, 3):
        L, option = Layer({}, d), {"boundary": "wrap", "algorithm": "direct"}
        row(f"conv{d}d", "torch's order", lambda to, L=L, d=d, option=option: getattr(nc, f"conv{d}d")(
            to(L.x), to(L.w), to(L.bias), 2, 1, 1, 1, **option))  # fmt: skip
        w = values((4, 2, *L.shapes[1][2:]), "float32", 1)
        row(f"conv_transpose{d}d", "output_padding", lambda to, L=L, d=d, w=w: getattr(nc, f"conv_transpose{d}d")(
            to(L.x), to(w), to(values((4,), "float32", 2)), 2, 1, 1, 2, 1))  # fmt: skip
    for padding, more in {"output_padding": (1, 0), "same": ("same", 0)}.items():
        row("conv_transpose", f"stride, {padding}", lambda to, more=more: nc.conv_transpose(
            to(Layer({}).x), to(Layer({}).w), stride=2, padding=more[0], output_padding=more[0] if more[0] == 1 else 0,
        ))  # fmt: skip
    row("conv_transpose", "bias", lambda to: nc.conv_transpose(
        to(Layer({}, dtype="float16").x), to(Layer({}, dtype="float16").w), to(Layer({}, dtype="float16").bias)))


# matrices and windows -------------------------------------------------------------------------------------------------


def windows() -> None:
    """``unfold``, ``fold``, items of any dtype, means, and CSR products."""
    x = values((2, 3, 4, 5), "float32")
    row("unfold", "torch's order", lambda to: nc.unfold(to(x), (2, 3), 1, (1, 0), 2))
    row("fold", "torch's order", lambda to: nc.fold(
        nc.unfold(to(x), (2, 3), 1, (1, 0), 2), (4, 5), (2, 3), 1, (1, 0), 2))  # fmt: skip
    row("im2col", "a plain array", lambda to: nc.im2col(to(x[0, 0]), 2))
    row("col2im", "a mean", lambda to: nc.col2im(nc.im2col(to(x), (2, 2)), x.shape, (2, 2), reduce="mean"), rounds=True)
    row("col2im", "a mean of whole numbers", lambda to: nc.col2im(
        nc.im2col(to(x.astype("int16")), (2, 2)), x.shape, (2, 2), reduce="mean"), rounds=True)  # fmt: skip
    words = np.array([["ab", "cd", "ef"]])
    row("im2col", "words of 8 bytes", lambda to: nc.im2col(to(words), (1, 2)), without=THERE)
    row("im2col", "words of 12 bytes", lambda to: nc.im2col(to(words.astype("U3")), (1, 2)), without=THERE, refused={
        SENT: "x must have items of 1, 2, 4, 8, 16 bytes to be copied by a GPU"})  # fmt: skip
    row("kernel2row", "a plain kernel", lambda to: nc.kernel2row(to(x[0, 0]), (6, 7)))
    row("kernel2row", "triple=", lambda to: nc.kernel2row(to(x[0, 0]), (6, 7), triple=True))
    row("kernel2row_local", "a plain kernel", lambda to: nc.kernel2row_local(to(values((3, 2), "float32")), 4))
    row("conv_local", "a plain array", lambda to: nc.conv_local(to(x[0, 0, 0]), to(values((4, 2), "float32"))))
    row("conv_local", "without bias", lambda to: nc.conv_local(to(Layer({}).x), to(Layer({}).each)))
    for dtype in ("float32", "float16", "complex64", "int64", "bool"):
        row("csr_matvec", f"dtype {dtype}", lambda to, dtype=dtype: csr(to, dtype))
        row("csr_rmatvec", f"dtype {dtype}", lambda to, dtype=dtype: csr(to, dtype, 12))
    row("csr_matvec", "out= of a wider dtype", lambda to: csr(to, "float32", out=to(np.zeros(9))))
    row("csr_rmatvec", "out=", lambda to: csr(to, "float32", 12, out=to(np.zeros(12, "float32"))))
    row("csr_matvec", "no matrix", lambda to: csr(to, "float32", length=3), refused={
        "all": "indices and indptr must be those of a CSR matrix"})  # fmt: skip


def csr(to: Library, dtype: str, columns: int | None = None, length: int = 12, **more: Any) -> Any:
    """A product with a CSR matrix of 9 rows and 12 columns."""
    dense = values((9, 12), "int64")
    data, (rows, indices) = dense[dense != 0].astype(dtype), np.nonzero(dense)
    indptr = np.searchsorted(rows, np.arange(10))
    triple = [to(part) for part in (data, indices.astype(np.int32), indptr.astype(np.int32))]
    if columns is None:
        return nc.csr_matvec(*triple, to(values((length,), dtype, 3)), **more)
    return nc.csr_rmatvec(*triple, to(values((9,), dtype, 3)), columns, **more)


# plans and operators --------------------------------------------------------------------------------------------------


def of_plans() -> None:
    """Every method of a plan."""
    geometries = {
        "boundary reflect": {"padding": 1, "boundary": "reflect", "groups": 2}, "stride": {"stride": 2, "dilation": 2},
    }  # fmt: skip
    for feature, geometry in geometries.items():
        L = Layer(geometry)

        def plan(to: Library, L: Layer = L) -> nc.ConvPlan:
            return L.plan(device=to.device)

        calls: dict[str, Callable[..., Any]] = {
            "forward": lambda to, plan=plan, L=L: plan(to).forward(to(L.x), to(L.w), to(L.bias)),
            "grad_input": lambda to, plan=plan, L=L: plan(to).grad_input(to(L.dy), to(L.w)),
            "grad_weight": lambda to, plan=plan, L=L: plan(to).grad_weight(to(L.x), to(L.dy)),
            "transpose": lambda to, plan=plan, L=L: plan(to).transpose(to(L.dy), to(L.w), to(L.bias)),
            "im2col": lambda to, plan=plan, L=L: plan(to).im2col(to(L.x)),
            "col2im": lambda to, plan=plan, L=L: plan(to).col2im(to(values(plan(to).geometry.cols_shape, L.dtype, 5))),
            "matrix": lambda to, plan=plan, L=L: plan(to).matrix(to(L.w)),
            "refill": lambda to, plan=plan, L=L: plan(to).refill(plan(to).matrix(to(L.w)), to(2 * L.w)),
            "norm": lambda to, plan=plan, L=L: plan(to).norm(to(L.w)),
            "gram_diagonal": lambda to, plan=plan, L=L: plan(to).gram_diagonal(to(L.w)),
        }  # fmt: skip
        for name, run in calls.items():
            row(f"ConvPlan.{name}", feature, run, rounds=name in ("norm", "gram_diagonal"))
        if not L.batch:
            continue
        for name in ("matvec", "rmatvec", "matmat", "rmatmat"):
            row(f"ConvPlan.linear_operator.{name}", feature, lambda to, plan=plan, L=L, name=name: operated(
                plan(to), L, to, name), rounds=True, refused=dict.fromkeys(
                    ("torch", "others"), "w must be an array of NumPy or CuPy, whose solvers take a linear operator"),
            )  # fmt: skip
    L = Layer({"padding": 1})
    for product in ("forward", "grad_input", "grad_weight", "transpose"):
        row(f"ConvPlan.{product}", "max_bytes", lambda to, product=product: tiled(L, to, product), rounds=True,
            refused={"there": f"{'dy' if product == 'grad_input' else 'x'} must be an array on the CPU for a plan with "
                              "max_bytes, got one on a GPU"})  # fmt: skip
    row("ConvPlan.forward", "out=", lambda to: into(
        lambda L, to, **more: L.plan(device=to.device).forward(to(L.x), to(L.w), **more), L, to))
    row("ConvPlan.forward", "a plan for the CPU", lambda to: L.plan(device="cpu").forward(to(L.x), to(L.w)))
    row("ConvPlan.matrix", "a fill value", lambda to: Layer(GEOMETRIES["fill_value"]).plan(device=to.device).matrix(
        to(L.w)), refused={"all": AFFINE})  # fmt: skip
    row("ConvPlan.refill", "a matrix of another geometry", lambda to: L.plan(device=to.device).refill(
        Layer({}).plan(device=to.device).matrix(to(L.w)), to(L.w)),
        refused={"all": "csr must have the structure of this geometry"})  # fmt: skip
    row("ConvPlan.refill", "a matrix that lies elsewhere", lambda to: L.plan(device=to.device).refill(
        L.plan(device="cpu").matrix(L.w), to(L.w)), refused={"there": "csr.data must live where w does"},
        without=("others",))  # fmt: skip  # of which the simulator cannot tell
    small = nc.plan_convolve((3, 3), (2, 2))
    for name, run in {
        "coverage": lambda to: small.coverage(), "nbytes": lambda to: small.nbytes("im2col"),
        "explain": lambda to: str(small.explain()), "check": lambda to: sorted(small.check()),
    }.items():
        row(f"ConvPlan.{name}", "no arrays", run)
    row("ConvPlan.explain_choice", "no arrays", lambda to: "implicit" in L.plan(device=to.device).explain_choice())
    row("plan_conv", "no arrays", lambda to: L.plan(device=to.device).output_shape)
    row("plan_convolve", "no arrays", lambda to: nc.plan_convolve((3, 3), (2, 2), device=to.device).output_shape)
    row("devices", "no arrays", lambda to: [device.name for device in nc.devices()])
    row("use_device", "no arrays", lambda to: nc.use_device(to.device).__enter__())
    row("warmup", "no arrays", lambda to: nc.warmup((), "direct") < 60)


def operated(plan: nc.ConvPlan, L: Layer, to: Library, name: str) -> Any:
    """A product of the linear operator of one image."""
    one = nc.plan_conv(L.shapes[0][1:], L.shapes[1], dtype=L.dtype, device=plan.device, **L.geometry)
    A, (rows, columns) = one.linear_operator(to(L.w)), one.geometry.matrix_shape
    n = rows if name.startswith("r") else columns
    return getattr(A, name)(to(values((n, 2) if name.endswith("mat") else (n,), L.dtype, 7)))


def tiled(L: Layer, to: Library, product: str) -> Any:
    """A product tile by tile."""
    plan = L.plan(device=to.device, max_bytes=50_000)
    x, w = (L.x, L.w) if product in ("forward", "grad_weight") else (L.dy, L.w)
    return getattr(plan, product)(to(x), to(L.dy if product == "grad_weight" else w))


for part in (plain_products, overlapping, sliding, in_torchs_order, windows, of_plans):
    part()


# the functions of numconv.interop.torch -------------------------------------------------------------------------------

_LINE, _VOLUME, _PLANE = Layer({}, 1), Layer({}, 3), values((5, 4), "float32")
_MATRIX = (_PLANE[0], np.array([0, 2, 1, 0]), np.array([0, 2, 3, 4]), _PLANE[1, :3])
_GAPS = np.where(_PLANE > 1, np.float32(np.nan), _PLANE)
GIVEN: dict[str, tuple[tuple[np.ndarray, ...], dict[str, Any]]] = {
    "conv": ((Layer({}).x, Layer({}).w, Layer({}).bias), {"padding": 1, "boundary": "reflect"}),
    "conv1d": ((_LINE.x, _LINE.w), {}), "conv2d": ((Layer({}).x, Layer({}).w), {"stride": 2}),
    "conv3d": ((_VOLUME.x, _VOLUME.w), {}), "conv_transpose": ((Layer({}).dy, Layer({}).w), {"stride": 2}),
    "conv_transpose1d": ((_LINE.dy, _LINE.w), {}), "conv_transpose2d": ((Layer({}).dy, Layer({}).w), {}),
    "conv_transpose3d": ((_VOLUME.dy, _VOLUME.w), {}), "convolve": ((_PLANE, _PLANE[:3, :2]), {"mode": "same"}),
    "correlate": ((_PLANE, _PLANE[:3, :2]), {"axes": (1, 0)}),
    "normalized_convolve": ((_GAPS, np.ones((3, 2), np.float32)), {"mode": "same"}),
    "conv_local": ((Layer({}).x, Layer({}).each, Layer({}).bias), {}),
}  # fmt: skip

#: A call of each with tensors, the first of which is differentiated; ``room`` is the module.
TORCH: dict[str, Callable[[Any, Library], Any]] = {
    **{name: lambda room, to, name=name: getattr(room, name)(*map(to, GIVEN[name][0]), **GIVEN[name][1]) for name in (
        "conv", "conv1d", "conv2d", "conv3d", "conv_transpose", "conv_transpose1d", "conv_transpose2d",
        "conv_transpose3d", "convolve", "correlate", "normalized_convolve", "conv_local")},
    "conv_grad_input": lambda room, to: room.conv_grad_input(Layer({}).x.shape, to(Layer({}).w), to(Layer({}).dy)),
    "conv_grad_weight": lambda room, to: room.conv_grad_weight(to(Layer({}).x), Layer({}).w.shape, to(Layer({}).dy)),
    "conv_local_grad_input": lambda room, to: room.conv_local_grad_input(
        Layer({}).x.shape, to(Layer({}).each), to(Layer({}).dy)),
    "conv_local_grad_weight": lambda room, to: room.conv_local_grad_weight(
        to(Layer({}).x), Layer({}).each.shape, to(Layer({}).dy)),
    "im2col": lambda room, to: room.im2col(to(Layer({}).x), (2, 2), padding=1, boundary="wrap"),
    "col2im": lambda room, to: room.col2im(to(values((4, 6), "float32")), (3, 4), (2, 2)),
    "unfold": lambda room, to: room.unfold(to(Layer({}).x), 2),
    "fold": lambda room, to: room.fold(to(values((1, 4, 6), "float32")), (3, 4), 2),
    "csr_matvec": lambda room, to: room.csr_matvec(*map(to, _MATRIX)),
    "csr_rmatvec": lambda room, to: room.csr_rmatvec(*map(to, _MATRIX), 3),
}  # fmt: skip
def with_gradient(room: Any, name: str, to: Library) -> list[Any]:
    """A result of a function of ``numconv.interop.torch``, and the gradient of its squares to its first tensor."""
    first: list[Any] = []

    def sent(array: np.ndarray) -> Any:
        tensor = to(array)
        if not first and array.dtype.kind == "f":
            first.append(tensor.requires_grad_())
        return tensor

    result = TORCH[name](room, sent)
    result.nan_to_num().square().sum().backward()
    return [result.detach(), first[0].grad]


# what the table has to have -------------------------------------------------------------------------------------------


def public() -> set[str]:
    """The names of everything public that computes."""
    functions = {name for name in nc.__all__ if callable(getattr(nc, name)) and name != "ConvPlan"}
    methods = {
        f"ConvPlan.{name}" for name, _ in inspect.getmembers(nc.ConvPlan, inspect.isfunction)
        if not name.startswith("_") and name not in ("forward_of", "linear_operator")
    }  # fmt: skip
    products = {f"ConvPlan.linear_operator.{name}" for name in ("matvec", "rmatvec", "matmat", "rmatmat")}
    return functions | methods | products


def interop(module: str) -> list[str]:
    """The public names of a module of ``numconv.interop``, which need not be importable here."""
    file = Path(nc.__file__).parent / "interop" / f"{module}.py"
    tree = ast.parse(file.read_text())
    kinds = ast.FunctionDef, ast.ClassDef
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


# how a row runs -------------------------------------------------------------------------------------------------------


def flat(result: Any, fetch: Callable[[Any], np.ndarray]) -> list[np.ndarray]:
    """The arrays of a result, as NumPy's."""
    if isinstance(result, (tuple, list)):
        return [part for item in result for part in flat(item, fetch)]
    if result is None or isinstance(result, (bool, int, float, str)):
        return [np.asarray(result)] if result is not None else []
    if hasattr(result, "indptr"):
        return [np.asarray(fetch(part)) for part in (result.data, result.indices, result.indptr)]
    return [np.asarray(fetch(result))]


def on_the_cpu(call: Call) -> list[np.ndarray]:
    """What the CPU gives, compiled."""
    with nc.use_device("cpu"):
        return flat(call.run(Library()), lambda array: array)


@lru_cache(maxsize=1)
def by_plain_python() -> dict[str, list[np.ndarray]]:
    """What the CPU gives where no kernel is compiled, which is quicker for so few pixels; a few rows are lacking."""
    paths = [str(Path(nc.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "NUMBA_ENABLE_CUDASIM": "0", "LD_LIBRARY_PATH": ""}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    done = subprocess.run([sys.executable, "-W", "ignore", __file__], env=environment, capture_output=True, check=True)
    return pickle.loads(done.stdout)


def wanted(call: Call) -> list[np.ndarray]:
    """What the CPU gives."""
    return by_plain_python().get(str(call)) or on_the_cpu(call)


def same(call: Call, got: list[np.ndarray], want: list[np.ndarray]) -> None:
    """The values of the CPU and their dtypes; up to the rounding of a quotient where the row says so."""
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), f"{a.dtype} {a.shape} for {b.dtype} {b.shape}"
        if call.rounds and b.dtype.kind in "fc":
            eps = max(float(np.finfo(b.dtype).eps), 2**-50)
            np.testing.assert_allclose(a, b, rtol=64 * eps, atol=64 * eps * largest(np.nan_to_num(b)))
        else:
            np.testing.assert_array_equal(a, b)


def refused(call: Call, library: Library, otherwise: str = "") -> bool:
    """Whether a row has to be refused for a library's arrays, as the table says, or ``otherwise`` for another reason;
    its error begins so.
    """
    import pytest

    refusal = call.refusal(library.name) or otherwise
    if refusal:
        with pytest.raises((TypeError, ValueError)) as caught:
            call.run(library)
        assert str(caught.value).startswith(refusal), caught.value
    return bool(refusal)


def short(calls: list[Call]) -> list[Call]:
    """The first row of each function, those that lie or go in any way, and those that are refused in other words."""
    first = {call.function: call for call in reversed(calls)}
    chosen = [first[name] for name in dict.fromkeys(call.function for call in calls)]
    chosen += [call for call in calls if call.function == "conv" and call.feature in UNUSUAL]
    return list(dict.fromkeys([*chosen, *(call for call in calls if call.refused)]))


UNUSUAL = ("no images", "no channels in", "one image", *LAYOUTS, *(f"out= {layout}" for layout in LAYOUTS), "out=")


def main() -> None:
    """The rows as a process without compiled kernels computes them: pickled, for ``by_plain_python``."""
    found = {}
    for call in CALLS:
        if not call.refusal(HERE):
            with contextlib.suppress(ArithmeticError):  # numbers of NumPy's that do not wrap as compiled ones do
                found[str(call)] = on_the_cpu(call)
    sys.stdout.buffer.write(pickle.dumps(found))


if __name__ == "__main__":
    main()
