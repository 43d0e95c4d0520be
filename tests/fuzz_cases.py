"""Random calls of everything public, drawn from a seed: the cases of ``fuzz``, their memory and values.

A case is a dict of numbers and words, so that it can be printed, kept and made smaller. Narrow axes, sizes of zero,
strides beyond the pixels and odd layouts of memory are weighted up: that is where faults have been. What must hold of a
case, ``fuzz_checks`` knows.
"""

from __future__ import annotations

import random
from math import prod
from typing import Any, NamedTuple

import gather
import numpy as np
from gather import Axis

Case = dict[str, Any]

#: Products and algorithms, and how often they are drawn.
PRODUCTS = {
    "forward": 6, "grad_input": 6, "grad_weight": 4, "transpose": 4, "convolve": 4, "correlate": 2, "operator": 3,
    "kernel2row": 3, "im2col": 2, "col2im": 2,
}  # fmt: skip
ALGORITHMS = {"auto": 2, "direct": 2, "implicit": 2, "im2col": 1, "kernel2row": 1, "winograd": 1, "fft": 1}
BOUNDARIES = ("constant", "edge", "reflect", "symmetric", "wrap")
#: Products that take ``algorithm=``.
BY_ALGORITHM = ("forward", "grad_input", "grad_weight", "transpose", "operator", "convolve", "correlate")
LAYOUTS = (
    "odd", "odd", "odd", "C", "F", "transposed", "negative", "steps", "offset", "unaligned", "swapped", "readonly",
)  # fmt: skip
DTYPES = {
    "float32": 36, "float64": 28, "int64": 8, "complex128": 8, "float16": 4, "complex64": 4, "int8": 2, "uint8": 2,
    "int32": 2, "int16": 1, "uint16": 1, "uint32": 1, "uint64": 1, "bool": 2,
}  # fmt: skip

#: So many cases in a row share two dtypes: every new one has to be compiled.
SLICE = 200

# drawing ------------------------------------------------------------------------------------------------------------


def dtypes_of_slice(seed: int, number: int) -> list[str]:
    """The dtypes of a run of cases."""
    if number == 0:
        return ["float32", "float64"]
    r = random.Random(f"{seed}/slice {number}")
    return r.choices(list(DTYPES), list(DTYPES.values()), k=2)


def _weighted(r: random.Random, names: tuple[str, ...], weights: dict[str, int]) -> str:
    return r.choices(names, [weights[name] for name in names])[0]


def _length(r: random.Random, d: int) -> int:
    """The size of an axis: of one to three pixels as often as not."""
    roll = r.random()
    if roll < 0.45:
        return r.randint(1, 3)
    if roll < 0.85:
        return r.randint(4, {1: 16, 2: 12, 3: 7, 4: 4}[d])
    return r.randint(4, {1: 300, 2: 40, 3: 12, 4: 6}[d])


def _kernel(r: random.Random, n: int, d: int) -> int:
    roll = r.random()
    if roll < 0.85:
        return min(r.choice((1, 1, 1, 2, 2, 3, 3, 3, 4, 5, 7)), 9 if d < 3 else 4)
    return r.randint(1, n + 2)


def _step(r: random.Random, n: int, plain: float) -> int:
    """A stride or dilation, now and then beyond the size."""
    roll = r.random()
    return 1 if roll < plain else r.randint(2, 3) if roll < plain + 0.25 else r.randint(2, n + 3)


def _per_axis(r: random.Random, values: list[int]) -> int | list[int]:
    return values[0] if r.random() < 0.5 or len(set(values)) == 1 else values


def _padding(r: random.Random, size: list[int], reach: list[int]) -> Any:
    roll = r.random()
    if roll < 0.2:
        return r.choice(("valid", "same", "same_lower", "full"))
    if roll < 0.45:
        return r.randint(0, 3)
    widest = [
        2 * n + 3 if r.random() < 0.1 else max(1, min(span, n + 1)) for n, span in zip(size, reach, strict=True)
    ]
    if roll < 0.6:
        return [r.randint(0, most) for most in widest]
    return [[r.randint(0, most), r.randint(0, most)] for most in widest]


class Choices(NamedTuple):
    """What the cases of a run are drawn from; no dtypes: all of them, two at a time. ``most`` multiply-adds of a case,
    if it is given.
    """

    products: tuple[str, ...] = tuple(PRODUCTS)
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    dtypes: tuple[str, ...] = ()
    most: int = 0


def draw(seed: int, index: int, choices: Choices) -> Case:
    """Case ``index`` of a run, made from the seed alone."""
    r = random.Random(f"{seed}/{index}")
    product = _weighted(r, choices.products, PRODUCTS)
    algorithm = _weighted(r, choices.algorithms, ALGORITHMS) if product in BY_ALGORITHM else ""
    dtype = r.choice(choices.dtypes or dtypes_of_slice(seed, index // SLICE))
    if algorithm in ("winograd", "fft") and np.dtype(dtype).kind not in "fc" and r.random() < 0.9:
        algorithm = r.choice(("implicit", "direct"))
    d = r.choices((1, 2, 3, 4), (3, 4, 2, 1))[0]
    winograd = algorithm == "winograd" and r.random() < 0.9
    if winograd:
        d = 2
    narrow = r.random() < 0.4  # all axes but one at the most
    size = [r.randint(1, 3) if narrow else _length(r, d) for _ in range(d)]
    if narrow and r.random() < 0.7:
        size[r.randrange(d)] = _length(r, 1)
    kernel = [3, 3] if winograd or (d == 2 and r.random() < 0.2) else [_kernel(r, n, d) for n in size]
    stride = _per_axis(r, [_step(r, n, 0.55) for n in size])
    dilation = _per_axis(r, [_step(r, n, 0.7) for n in size])
    if winograd:
        stride = r.choice((1, 1, 1, 2))
        dilation = 1 if stride == 2 else r.choice((1, 1, 1, 2, 3))
    if product in ("transpose", "convolve", "correlate"):  # sizes of outputs multiply
        stride = r.choice((1, 1, 2, 3)) if isinstance(stride, int) else [min(s, 4) for s in stride]
    dils, strides = each(dilation, d), each(stride, d)
    padding = _padding(r, size, [k * dil for k, dil in zip(kernel, dils, strict=True)])
    boundary = r.choice(("constant", *BOUNDARIES))
    if r.random() < 0.05 and boundary == "constant":
        size[r.randrange(d)] = 0
    groups = r.choices((1, 2, 3, r.randint(4, 8)), (70, 14, 8, 8))[0]
    case: Case = {
        "product": product, "algorithm": algorithm, "dtype": dtype, "seed": r.randrange(2**32),
        "N": r.choices((None, 0, 1, 2, 3, 8), (20, 4, 36, 25, 10, 5))[0],
        "C": r.choices((0, 1, 2, 3, r.randint(4, 70)), (4, 40, 24, 14, 18))[0],
        "K": r.choices((0, 1, 2, 3, r.randint(4, 200)), (4, 35, 20, 10, 60 if narrow else 25))[0],
        "groups": groups, "size": size, "kernel": kernel, "stride": stride, "dilation": dilation, "padding": padding,
        "boundary": boundary, "fill": 0, "flip": r.random() < 0.4,
        "data": _data(r, product, dtype), "bias": r.random() < 0.3, "layouts": {}, "out": None, "out_dtype": None,
        "via": r.choices(("function", "plan", "tiles"), (80, 16, 4))[0],
    }  # fmt: skip
    if boundary == "constant" and r.random() < 0.15:
        case["fill"] = 1
    if groups > 1 and r.random() < 0.6:  # narrow groups, depthwise among them
        case["C"] = r.choice((1, 1, 1, 2))
    for name in ("x", "w", "bias", "dy", "cols"):
        if r.random() < 0.3:
            case["layouts"][name] = r.choice(LAYOUTS)
    if r.random() < 0.35:
        case["out"] = r.choice((*LAYOUTS[:-2], "overlap"))
        if r.random() < 0.15:
            case["out_dtype"] = r.choice([t for t in DTYPES if np.can_cast(np.dtype(dtype), np.dtype(t), "same_kind")])
            if case["data"] == "wide" and np.dtype(case["out_dtype"]).kind in "fc":
                case["data"] = "exact"  # sums of floats do not wrap
    _finish(r, case, strides, dils)
    _limit(case, choices.most)
    return case


def _finish(r: random.Random, case: Case, strides: list[int], dils: list[int]) -> None:
    """What only some products have."""
    product, d = case["product"], len(case["size"])
    if product == "transpose":
        case["fill"] = 0
        if r.random() < 0.4 and case["padding"] not in ("same", "same_lower"):
            case["output_padding"] = [r.randint(0, max(s, dil) - 1) for s, dil in zip(strides, dils, strict=True)]
    elif product in ("im2col", "col2im"):
        case["plain"] = r.random() < 0.3
        case["reduce"] = r.choice(("sum", "sum", "mean"))
        case["C"], case["groups"] = case["C"] * case["groups"], 1
    elif product == "kernel2row":
        case["plain"], case["N"], case["fill"] = r.random() < 0.3, None, 0
    elif product == "operator":
        case["N"], case["fill"] = None, 0
        case["columns"], case["adjoint"] = r.choice((None, 0, 1, 2, 3, 8)), r.random() < 0.5
    elif product in ("convolve", "correlate"):
        case["mode"], case["rest"], case["axes"] = r.choice(("full", "same", "valid")), [], None
        if r.random() < 0.5:
            case["rest"] = [r.choices((0, 1, 2, 3, 5), (3, 20, 30, 30, 17))[0] for _ in range(r.randint(0, 2))]
            case["axes"] = r.sample(range(d + len(case["rest"])), d)
        if r.random() < 0.15:
            case["size"], case["kernel"] = case["kernel"], case["size"]
    if case["data"] == "loud":
        case["bias"], case["fill"] = False, 0  # which are not loud
    if case.get("plain"):
        case["C"] = case["K"] = case["groups"] = 1
        case["N"] = None
    if product not in ("convolve", "correlate"):
        _make_room(r, case)


def _make_room(r: random.Random, case: Case) -> None:
    """Larger axes where the kernel would not fit, but for a few cases that must be refused."""
    for a, axis in enumerate(axes_of(case)):
        if product_out(case, axis) < 1 and r.random() < 0.98:
            if case["product"] == "transpose":
                case["padding"] = 0
            else:
                case["size"][a] = max(axis.span - axis.lo - axis.hi, 1) + r.randint(0, 2)


def product_out(case: Case, axis: Axis) -> int:
    """The size of an axis of the result."""
    return axis.size if case["product"] == "transpose" else axis.out


def _limit(case: Case, most: int = 0) -> None:
    """Less of the largest, until a case takes milliseconds."""
    most = most or (2_000_000 if case["seed"] % 16 else 16_000_000)
    dense = case["product"] == "kernel2row"
    plain = case["product"] in ("convolve", "correlate")
    for _ in range(200):
        axes = axes_of(case)
        C, K = case["C"] * case["groups"], case["K"] * case["groups"]
        T, P = prod(case["kernel"]), prod(max(axis.out, 1) for axis in axes)
        pixels = prod(case["size"])
        if plain:
            full = prod(axis.size + 2 * (axis.span - 1) for axis in axes)
            if max(full * T * max(prod(case["rest"]), 1), full * prod(axis.span for axis in axes)) <= most:
                return
        else:
            N = max(case["N"] or 1, case.get("columns") or 1)
            cols, work = N * C * T * P, N * K * case["C"] * T * P
            if max(work, 8 * cols, K * P * C * pixels * dense, 8 * N * max(C * pixels, K * P)) <= most:
                return
        amounts = {"K": case["K"], "C": case["C"]} if not plain else {}
        largest = max(amounts, key=amounts.__getitem__) if amounts and max(amounts.values()) > 8 else ""
        if largest:
            case[largest] //= 2
        elif case["groups"] > 3:
            case["groups"] //= 2
        elif not plain and (case["N"] or 0) > 3:
            case["N"] = 2
        else:
            longest, a, name = max((n, a, name) for name in ("size", "kernel") for a, n in enumerate(case[name]))
            if longest > 2:
                case[name][a] //= 2
            elif amounts and max(amounts.values()) > 1:
                case[max(amounts, key=amounts.__getitem__)] = 1
            else:
                case["padding"], case["dilation"] = 1, 1
                case["stride"] = 1
                case.pop("output_padding", None)


def _data(r: random.Random, product: str, dtype: str) -> str:
    kind = np.dtype(dtype).kind
    if kind in "iu":
        return r.choice(("exact", "wide"))
    if kind == "b" or product in ("im2col", "col2im"):
        return "exact"
    usual = ["exact", "exact", "exact", "real", "real"]
    if dtype != "float16":
        usual += ["outlier"]
        if product != "grad_weight":
            usual += ["loud"]
    return r.choice([*usual, "special"])


def each(value: Any, d: int) -> list[int]:
    """An int for every axis."""
    return [value] * d if isinstance(value, int) else list(value)


def axes_of(case: Case) -> list[Axis]:
    """The axes of the convolution; for a transpose those of the convolution that is transposed."""
    d = len(case["size"])
    size, kernel = case["size"], case["kernel"]
    stride, dilation = each(case["stride"], d), each(case["dilation"], d)
    padding = case["padding"]
    if case["product"] != "transpose":
        pairs = gather.padding_pairs(padding, size, kernel, stride, dilation)
        return [Axis(*row, *pair) for *row, pair in zip(size, kernel, stride, dilation, pairs, strict=True)]
    target = [n * s for n, s in zip(size, stride, strict=True)]
    pairs = gather.padding_pairs(padding, target, kernel, stride, dilation)
    if padding not in ("same", "same_lower"):
        extra = each(case.get("output_padding", 0), d)
        target = [
            (n - 1) * s - lo - hi + dil * (k - 1) + 1 + e
            for n, s, (lo, hi), dil, k, e in zip(size, stride, pairs, dilation, kernel, extra, strict=True)
        ]
    return [Axis(*row, *pair) for *row, pair in zip(target, kernel, stride, dilation, pairs, strict=True)]


# memory -------------------------------------------------------------------------------------------------------------

ROOM = 64


class Laid(NamedTuple):
    """An array and the bytes it lies in, mostly with room before and behind."""

    array: np.ndarray
    memory: np.ndarray
    offset: int

    def spilled(self, before: np.ndarray) -> bool:
        """Whether bytes have changed that are not the array's; ``before`` are all of them as they were."""
        now = self.memory.copy()
        self._inside(now)[...] = self._inside(before)
        return not np.array_equal(now, before)

    def _inside(self, memory: np.ndarray) -> np.ndarray:
        return np.ndarray(self.array.shape, self.array.dtype, memory.data, self.offset, self.array.strides)


def lay(shape: tuple[int, ...], dtype: np.dtype, layout: str, r: random.Random) -> Laid:
    """An array of unknown values in a layout of memory."""
    axes = list(range(len(shape)))
    if layout == "F":
        axes.reverse()
    elif layout == "transposed":
        r.shuffle(axes)
    if layout == "swapped" and dtype.itemsize > 1 and dtype.kind in "iufc":
        dtype = dtype.newbyteorder()
    strides, reach = [0] * len(shape), dtype.itemsize
    for axis in reversed(axes):
        strides[axis] = reach
        reach *= max(shape[axis], 1) * (r.choice((1, 2, 3)) if layout == "steps" else 1)
    plain = layout in ("C", "F", "transposed", "swapped", "readonly")  # these fill their memory
    offset = 0 if plain else ROOM + {"unaligned": 1, "offset": dtype.itemsize * r.randint(1, 7)}.get(layout, 0)
    nbytes = reach + (0 if plain else offset + ROOM)
    if layout == "negative":
        for axis, n in enumerate(shape):
            if r.random() < 0.6:
                offset += max(n - 1, 0) * strides[axis]
                strides[axis] *= -1
    if layout == "odd":  # strides that mean nothing
        for axis, n in enumerate(shape):
            if n == 1 or 0 in shape:
                strides[axis] = r.choice((0, 1, 4096, 2**40, *(dtype.itemsize * n for n in (2, 3, 5, -1, -4))))
    memory = np.full(nbytes if plain else (nbytes + 15) // 16 * 16, 0x5A, np.uint8)
    return Laid(np.ndarray(shape, dtype, memory.data, offset, strides), memory, offset)


# values -------------------------------------------------------------------------------------------------------------


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype, data: str) -> np.ndarray:
    """Data of a kind; ``exact`` are small integers, ``wide`` those of the whole range."""
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        if data == "wide":
            info = np.iinfo(dtype)
            return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        return rng.integers(-4 if dtype.kind == "i" else 0, 5, shape).astype(dtype)

    def part() -> np.ndarray:
        if data in ("real", "outlier"):
            return rng.standard_normal(shape)
        return rng.integers(-4, 5, shape) if data != "special" else rng.choice([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0], shape)

    return (part() + 1j * part() if dtype.kind == "c" else part()).astype(dtype)


def disturb(rng: np.random.Generator, a: np.ndarray, data: str, independent: list[int]) -> None:
    """Loud images, outliers, NaN and infinity, in place; ``a`` runs along a batch, the axes that are independent."""
    if a.dtype.kind not in "fc" or not a.size:
        return
    if data == "loud":
        shape = [n if axis in independent else 1 for axis, n in enumerate(a.shape)]
        a *= np.ldexp(1.0, rng.integers(0, 30, shape)).astype(a.real.dtype)
    if data in ("outlier", "special"):
        flat = a.reshape(-1)
        for place in rng.integers(0, flat.size, rng.integers(1, 4)):
            if data == "outlier":
                flat[place] = 10.0 ** rng.uniform(3, 35) * rng.choice([-1, 1])
            else:
                flat[place] = rng.choice([np.nan, np.inf, -np.inf]) if a.dtype.kind == "f" else np.nan


# smaller cases ------------------------------------------------------------------------------------------------------

SIMPLEST = {
    "layouts": {}, "out": None, "out_dtype": None, "via": "function", "bias": False, "data": "exact", "fill": 0,
    "flip": False, "boundary": "constant", "padding": 0, "dilation": 1, "stride": 1, "groups": 1, "rest": [1],
    "output_padding": 0,
}  # fmt: skip


def simpler(case: Case) -> Any:
    """Cases that are one step simpler."""
    for name, value in SIMPLEST.items():
        if name in case and case[name] != value and not (name == "rest" and len(case["rest"]) != 1):
            yield {**case, name: value}
    for name in case["layouts"]:
        yield {**case, "layouts": {other: v for other, v in case["layouts"].items() if other != name}}
    for name in ("N", "C", "K", "columns"):
        for less in (1, (case.get(name) or 0) // 2, (case.get(name) or 0) - 1):
            if 0 < less < (case.get(name) or 0):
                yield {**case, name: less}
    for name in ("size", "kernel"):
        for a, n in enumerate(case[name]):
            for less in (1, n // 2, n - 1):
                if 0 < less < n:
                    yield {**case, name: [*case[name][:a], less, *case[name][a + 1 :]]}
