"""Values that no argument expects, and a good call of everything public whose arguments they take the place of.

Calls are found by ``inspect.signature``: a new function, a new method of a plan and a new argument are tested without
a word here, but for a good value in ``GOOD`` where their names are new.
"""

from __future__ import annotations

import array
import enum
import inspect
import itertools
import tempfile
from collections import deque, namedtuple
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

import numconv as nc
from numconv.explain import Explanation

# good calls -----------------------------------------------------------------------------------------------------------

X, W, DY = np.arange(72.0).reshape(2, 4, 3, 3), np.ones((6, 2, 2, 2)), np.ones((2, 6, 2, 2))
PLAIN, KERNEL = np.arange(1.0, 13).reshape(3, 4), np.ones((2, 2))
CSR = scipy.sparse.csr_array(np.array([[2.0, 1, 0, 0], [0, 2, 1, 0], [0, 0, 2, 1]]))
TRIPLE = {"data": CSR.data, "indices": CSR.indices, "indptr": CSR.indptr}
PLAN = nc.plan_conv(X.shape, W.shape, groups=2, dtype=float, algorithm="direct", device="cpu")
TILED = nc.plan_conv(
    X.shape, W.shape, groups=2, dtype=float, algorithm="direct", device="cpu", max_bytes=20_000
)  # fmt: skip

#: Good values of arguments, those without an array in any call that has them; a call has others of its own below.
GOOD: dict[str, Any] = {
    "stride": 1, "padding": 0, "dilation": 1, "boundary": "constant", "fill_value": 0, "flip": False,
    "algorithm": "direct", "precision": "tf32", "dtype": None, "out": None, "bias": None, "mode": "full", "axes": None,
    "device": "auto", "output_padding": 0, "max_bytes": None, "reduce": "sum", "triple": False, "resume": None,
    "mask": None, "seed": 0, "tol": 1e-5, "what": "workspace", "name": "X_conv", "matrix": "X_conv", "i": 0, "j": 0,
    "dtypes": "float64", "algorithms": "direct",
}  # fmt: skip
CHANNELLED = {"x": X, "w": W, "groups": 2}
#: Good values of one call, by what a name begins with: the longest that fits.
OF: dict[str, dict[str, Any]] = {
    "conv": CHANNELLED, "conv_grad_input": {"input_shape": X.shape, "w": W, "dy": DY, "groups": 2},
    "conv_grad_weight": {"x": X, "kernel_shape": W.shape, "dy": DY, "groups": 2},
    "conv1d": {"x": X[..., 0], "w": W[..., 0], "groups": 2},
    "conv3d": {"x": X[..., None], "w": W[..., None], "groups": 2},
    "conv_transpose": {"x": DY, "w": W, "groups": 2},
    "conv_transpose1d": {"x": DY[..., 0], "w": W[..., 0], "groups": 2},
    "conv_transpose3d": {"x": DY[..., None], "w": W[..., None], "groups": 2},
    "convolve": {"x": PLAIN, "w": KERNEL}, "correlate": {"x": PLAIN, "w": KERNEL},
    "normalized_convolve": {"x": PLAIN, "w": KERNEL},
    "normalized_operator": {"mask": PLAIN > 20, "w": KERNEL},
    "im2col": {"x": X, "kernel_size": (2, 2)}, "unfold": {"x": X, "kernel_size": (2, 2)},
    "col2im": {"cols": np.ones((2, 16, 4)), "input_shape": X.shape, "kernel_size": (2, 2)},
    "fold": {"cols": np.ones((2, 16, 4)), "output_size": (3, 3), "kernel_size": (2, 2)},
    "kernel2row": {"w": W, "input_size": (3, 3), "groups": 2},
    "kernel2row_local": {"w": np.ones((2, 3, 2, 2)), "input_size": (3, 4), "groups": 1},
    "conv_local": {"x": PLAIN, "w": np.ones((2, 3, 2, 2)), "groups": 1},
    "conv_local_grad_input": {
        "input_shape": (3, 4), "w": np.ones((2, 3, 2, 2)), "dy": np.ones((2, 3)), "groups": 1
    },
    "conv_local_grad_weight": {"x": PLAIN, "kernel_shape": (2, 3, 2, 2), "dy": np.ones((2, 3)), "groups": 1},
    "csr_matvec": {**TRIPLE, "x": np.ones(4)}, "csr_rmatvec": {**TRIPLE, "y": np.ones(3), "columns": 4},
    "plan_conv": {"input_shape": X.shape, "kernel_shape": W.shape, "groups": 2, "dtype": "float64"},
    "plan_convolve": {"input_shape": (3, 4), "kernel_shape": (2, 2), "dtype": "float64"},
    "use_device": {"device": "cpu"},
    "plan": {"x": X, "w": W, "dy": DY}, "plan.col2im": {"cols": np.ones((2, 16, 4))},
    "plan.transpose": {"x": DY, "w": W}, "plan.refill": {"csr": None, "w": W}, "tiled": {"x": X, "w": W, "dy": DY},
    "tiled.transpose": {"x": DY, "w": W},
    **{f"{a}.mat": {"x": np.ones(36), "X": np.ones((36, 1))} for a in ("operator", "normalized")},
    **{f"{a}.rmat": {"x": np.ones(24), "X": np.ones((24, 1))} for a in ("operator", "normalized")},
}  # fmt: skip

#: Whose options a function hands on.
OPTIONS = {"conv1d": nc.conv, "conv2d": nc.conv, "conv3d": nc.conv} | {
    f"conv_transpose{d}d": nc.conv_transpose for d in (1, 2, 3)
}

Call = tuple[Callable[..., Any], dict[str, Any]]


def calls() -> dict[str, Call]:
    """Everything public that takes arguments, each with good ones."""
    functions = {name: getattr(nc, name) for name in nc.__all__ if inspect.isfunction(getattr(nc, name))}
    functions["use_device"] = lambda device: nc.use_device(device).__enter__()
    small = nc.plan_convolve((3, 3), (2, 2)).explain()
    for prefix, owner in (("plan", PLAN), ("tiled", TILED), ("explanation", small)):
        for name, _ in inspect.getmembers(type(owner), inspect.isfunction):
            tiled = name in ("forward", "grad_input", "grad_weight", "transpose")
            if not name.startswith("_") and name != "forward_of" and (tiled or prefix != "tiled"):
                functions[f"{prefix}.{name}"] = getattr(owner, name)
    normalized = nc.normalized_operator(np.zeros(36, bool), np.ones(13), "valid")
    operators = {"operator": PLAN.linear_operator(W), "normalized": normalized}
    for prefix, owner in operators.items():
        for name in ("matvec", "matmat", "rmatvec", "rmatmat"):
            functions[f"{prefix}.{name}"] = getattr(owner, name)
    return {name: (function, good_for(name, function)) for name, function in functions.items()}


def good_for(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """Good arguments of a call, all that it takes."""
    own: dict[str, Any] = {}
    for prefix in sorted(OF, key=len):
        if name.startswith(prefix):
            own = OF[prefix]
    own = dict(own)
    parameters = dict(inspect.signature(function).parameters)
    if name in OPTIONS:
        parameters = {**inspect.signature(OPTIONS[name]).parameters, **parameters}
    arguments = {}
    for argument, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        if argument not in own and argument not in GOOD:
            raise KeyError(f"{name} has an argument {argument} without a good value in hostile_cases.py")
        arguments[argument] = own[argument] if argument in own else GOOD[argument]
    if name.endswith("refill"):
        arguments["csr"] = PLAN.matrix(W)
    return arguments


# hostile values -------------------------------------------------------------------------------------------------------


class Boom(Exception):
    """What the methods of hostile objects raise."""


def boom(*_: Any, **__: Any) -> Any:
    raise Boom("on purpose")


def raising(*names: str, **more: Any) -> Any:
    """An object whose methods of these names raise."""
    return type("Raising", (), {**dict.fromkeys(names, boom), **more})()


def without(attribute: str) -> Any:
    """An object of which one attribute raises."""
    return type("Raising", (), {attribute: property(boom)})()


def recursive(times: int) -> list[Any]:
    """A list that holds itself."""
    items: list[Any] = []
    items.extend([items] * times)
    return items


def deep(levels: int) -> list[Any]:
    """A list in a list in a list …"""
    items: list[Any] = []
    for _ in range(levels):
        items = [items]
    return items


def memmap() -> np.memmap:
    """A small array in a file."""
    with tempfile.NamedTemporaryFile(suffix=".raw") as file:
        values = np.memmap(file.name, float, "w+", shape=(2, 2))
    values[...] = 1
    return values


class Word(str):
    """A word of a class of its own, whose comparisons raise."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        raise Boom("on purpose")


class Number(enum.IntEnum):
    """Ints with names."""

    ONE = 1


def laughs(levels: int) -> list[Any]:
    """Few lists that hold 2**levels numbers."""
    items: list[Any] = [1.0, 1.0]
    for _ in range(levels - 1):
        items = [items, items]
    return items


def with_value(value: float) -> np.ndarray:
    """Weights with a value that is none."""
    weights = np.ones((2, 2))
    weights[0, 0] = value
    return weights


def read_only() -> np.ndarray:
    """An array that cannot be written to."""
    weights = np.ones((2, 2))
    weights.setflags(write=False)
    return weights


class Lying:
    """A sequence that says it is long, and is not."""

    def __len__(self) -> int:
        return 10**18

    def __getitem__(self, i: int) -> float:
        raise IndexError(i)


class Finalized(np.ndarray):
    """An array that does not like to be viewed."""

    def __array_finalize__(self, parent: Any) -> None:
        if getattr(parent, "armed", False):
            raise Boom("on purpose")
        self.armed = parent is not None


Pair = namedtuple("Pair", "lo hi")

METHODS = (
    "__array__", "__len__", "__iter__", "__eq__", "__hash__", "__index__", "__float__", "__int__", "__complex__",
    "__bool__", "__getattr__", "__getattribute__", "__repr__", "__str__", "__getitem__", "__array_interface__",
    "__dlpack_device__", "__fspath__", "__lt__", "__contains__",
)  # fmt: skip
ATTRIBUTES = (
    "shape", "dtype", "__class__", "__array_interface__", "__array_struct__", "__cuda_array_interface__", "device",
    "nnz", "unit", "mask", "place", "__array__", "format", "__iter__", "__index__",
)  # fmt: skip

#: Each made anew for each call.
HOSTILE: dict[str, Callable[[], Any]] = {
    "nan": lambda: float("nan"), "inf": lambda: float("inf"), "-inf": lambda: float("-inf"), "1e308": lambda: 1e308,
    "10**400": lambda: 10**400, "-10**400": lambda: -(10**400), "10**5000": lambda: 10**5000, "2**63": lambda: 2**63,
    "2**62": lambda: 2**62, "-1": lambda: -1, "0": lambda: 0, "1": lambda: 1, "1.5": lambda: 1.5, "1.0": lambda: 1.0,
    "Fraction": lambda: Fraction(1, 2), "Decimal": lambda: Decimal("0.5"), "signalling": lambda: Decimal("sNaN"),
    "complex": lambda: 1 + 1j, "complex nan": lambda: complex("nan+1j"), "True": lambda: True, "None": lambda: None,
    "Ellipsis": lambda: ..., "NotImplemented": lambda: NotImplemented, "slice": lambda: slice(None),
    "range": lambda: range(2), "IntEnum": lambda: Number.ONE,
    # words
    "empty str": lambda: "", "a": lambda: "a", "long str": lambda: "a" * 10**6, "nul": lambda: "a\0b",
    "surrogate": lambda: "\ud800", "lines": lambda: "a\nb", "Word": lambda: Word("same"), "bytes": lambda: b"\1\1",
    "bytearray": lambda: bytearray(b"\1\1"), "Path": lambda: Path("/nowhere/at/all"),
    # sequences and what looks like one
    "[]": list, "()": tuple, "[[]]": lambda: [[]], "[[[1]]]": lambda: [[[1]]], "ragged": lambda: [[1, 2], [1]],
    "deep": lambda: deep(2000), "long list": lambda: [1] * 10**4, "list of str": lambda: ["auto"],
    "list of None": lambda: [None, None], "list of nan": lambda: [float("nan")] * 2,
    "list of huge": lambda: [10**5000] * 2, "list of negative": lambda: [-1, -1],
    "list of pairs": lambda: [(-1, 2), (3,)], "list of objects": lambda: [raising(*METHODS[:7]), 1],
    "recursive": lambda: recursive(1), "recursive twice": lambda: recursive(2), "laughs": lambda: laughs(60),
    "in a tuple": lambda: (recursive(2),) * 2, "dict": lambda: {0: 1}, "empty dict": dict, "set": lambda: {1, 2},
    "frozenset": lambda: frozenset({1}), "generator": lambda: (1 for _ in range(2)), "endless": itertools.count,
    "endless words": lambda: itertools.repeat("a"), "iterator": lambda: iter([1, 1]), "map": lambda: map(boom, [1]),
    "deque": lambda: deque([1, 1]), "named tuple": lambda: Pair(1, 1), "lying": Lying,
    "memoryview": lambda: memoryview(b"\1\1"), "array.array": lambda: array.array("i", [1, 1]),
    # objects
    "object": object, "type": lambda: type, "class": lambda: Lying, "ndarray": lambda: np.ndarray, "module": lambda: np,
    "function": lambda: boom, "builtin": lambda: len, "exception": lambda: Boom("x"), "plan": lambda: PLAN,
    "explanation": lambda: Explanation(PLAN.geometry), "unhashable": lambda: raising(__hash__=None),
    **{f"raises in {name}": lambda name=name: raising(name) for name in METHODS},
    **{f"raises at {name}": lambda name=name: without(name) for name in ATTRIBUTES},
    "raises in all": lambda: raising(*(name for name in METHODS if name != "__getattribute__")),
    "long repr": lambda: raising(__repr__=lambda _: "x" * 10**6),
    "index of float": lambda: raising(__index__=lambda _: 1.5),
    "float of str": lambda: raising(__float__=lambda _: "a"),
    "array of None": lambda: raising(__array__=lambda *_, **__: None), "shape alone": lambda: raising(shape=(2, 2)),
    "shape of 0 axes": lambda: raising(shape=()), "shape, dtype": lambda: raising(shape=(2, 2), dtype=np.dtype(float)),
    # NumPy's
    "np.int64": lambda: np.int64(1), "np.float64": lambda: np.float64(1), "np.float64 nan": lambda: np.float64("nan"),
    "longdouble": lambda: np.longdouble("1e4000"), "np.bool": lambda: np.True_, "0-d int": lambda: np.array(1),
    "0-d float": lambda: np.array(1.5), "0-d object": lambda: np.array(boom, object), "0-d str": lambda: np.array("a"),
    "int array": lambda: np.array([1, 1]), "float array": lambda: np.ones((2, 2)),
    "uint64": lambda: np.array([2**63] * 2, np.uint64), "void": lambda: np.void(b"abc"),
    "structured": lambda: np.zeros(2, [("a", int), ("b", float)]), "object array": lambda: np.array([1, "a"], object),
    "datetime": lambda: np.array(["2020-01-01", "NaT"], "M8[D]"), "timedelta": lambda: np.timedelta64(1, "s"),
    "datetime item": lambda: np.datetime64("2020"), "str array": lambda: np.array(["a", "b"]),
    "bytes array": lambda: np.array([b"a", b"b"]), "longdouble array": lambda: np.ones((2, 2), np.longdouble),
    "masked": lambda: np.ma.masked_array([1.0, 2], [True, False]), "masked item": lambda: np.ma.masked,
    "weights with nan": lambda: with_value(np.nan), "weights with inf": lambda: with_value(np.inf),
    "weights with -inf": lambda: with_value(-np.inf), "zeros": lambda: np.zeros((2, 2)), "read-only": read_only,
    "no pixels": lambda: np.ones((0, 2)), "no axes": lambda: np.ones((2, 0)), "memmap": memmap,
    "strided": lambda: np.ones((4, 4))[::-2, ::-2], "subclass": lambda: np.ones((2, 2)).view(Finalized),
    "broadcast": lambda: np.broadcast_to(1.0, (10**9, 10**9)),
    "broadcast row": lambda: np.broadcast_to(np.int8(1), 10**15),
    **{f"{axes} axes": lambda axes=axes: np.ones((1,) * axes) for axes in (3, 4, 20, 29, 30, 33, 64)},
    "sparse": lambda: scipy.sparse.csr_array(np.eye(2)), "coo": lambda: scipy.sparse.coo_array(np.eye(2)),
    "dtype": lambda: np.dtype(float), "float type": lambda: float, "structured dtype": lambda: np.dtype([("a", int)]),
}  # fmt: skip
if hasattr(np.dtypes, "StringDType"):  # since NumPy 2
    HOSTILE["StringDType"] = lambda: np.array(["a", "b"], np.dtypes.StringDType())

#: What of these is an int, a pair of ints, a number or an array of float64, and the plain value that it is; for such a
#: value a call may have a result, that of the plain value. For others there is none but where it says so below.
SAME: dict[str, Any] = {
    **dict.fromkeys(("1", "True", "IntEnum", "np.int64", "np.bool", "0-d int"), 1), "0": 0, "-1": -1, "2**62": 2**62,
    "2**63": 2**63,
    **dict.fromkeys(
        ("generator", "iterator", "deque", "named tuple", "memoryview", "array.array", "int array", "bytearray"), (1, 1)
    ), "range": (0, 1),
    "nan": np.nan, "np.float64 nan": np.nan, "inf": np.inf, "-inf": -np.inf, "1e308": 1e308, "1.5": 1.5, "1.0": 1.0,
    "np.float64": 1.0, "0-d float": 1.5, "Fraction": 0.5, "Decimal": 0.5, "longdouble": np.inf, "Word": "same",
    **{name: HOSTILE[name]() for name in (
        "float array", "weights with nan", "weights with inf", "weights with -inf", "zeros", "long list", "complex",
        "complex nan", "10**400", "-10**400", "10**5000",
    )},
    **dict.fromkeys(("read-only", "memmap", "strided", "subclass", "longdouble array"), np.ones((2, 2))),
}  # fmt: skip

#: What is a good value of one argument only.
ALLOWED: dict[str, tuple[str, ...]] = {
    "None": ("bias", "out", "dtype", "axes", "mask", "resume", "max_bytes"), "float type": ("dtype", "dtypes"),
    "dtype": ("dtype", "dtypes"), "[]": ("dtypes", "algorithms"), "()": ("dtypes", "algorithms"),
    # what has a ``dtype`` stands for it, as in NumPy
    **dict.fromkeys(("sparse", "coo", "plan", "shape, dtype"), ("dtype", "dtypes")), "no pixels": ("algorithms",),
}  # fmt: skip


def values_for(argument: str) -> list[str]:
    """The names of all values but of those that are good ones of another kind: what is of a dtype stands for it."""
    whole = argument not in ("dtype", "dtypes")
    return [name for name, make in HOSTILE.items() if whole or not issubclass(type(make()), (np.ndarray, np.generic))]
