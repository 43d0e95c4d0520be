"""What must hold of a random call: ``check`` runs a case of ``fuzz_cases`` against ``gather`` and says what is wrong.

Sums of products of small integers are exact in every float dtype, so whatever adds products is compared bit for bit.
Where numbers round, with ``n`` terms,

- an algorithm that adds products errs by at most ``2 (n + 4) eps sum |w| |x|``, output by output;
- a transform (Winograd, FFT) by ``TRANSFORM eps sum over c of |x_c| |w_c|`` (2-norms, the image of a channel), image by
  image, whatever lies beside it in the batch;
- ``auto`` moreover by ``LOCAL eps |x| |w|`` over what the output itself reads, whatever the rest of the image holds.

The kinds of failure: *values* beyond the first two bounds, or other than the exact ones; *locality* beyond the third;
*special*: NaN or infinity elsewhere than in the plain sum (of ``kernel2row``, which adds the taps that a boundary folds
onto a pixel before it multiplies, either of them); *wide out*: integers that wrap before they reach an ``out``
that could hold them; *batch*: an image, row or column has other bits alone; *wrote outside* ``out``; *input changed*;
*accepted* what has to be refused; *raised*; *shape*, *dtype*, *matrix*, *out*.
"""

from __future__ import annotations

import random
from math import prod
from typing import Any, NamedTuple

import gather
import numpy as np
from fuzz_cases import SIMPLEST, Case, Laid, axes_of, disturb, each, lay, product_out, values
from gather import Axis

import numconv

#: Algorithms that add products and nothing else.
EXACT = ("im2col", "kernel2row", "implicit", "direct")

#: The factors of the bounds.
TRANSFORM, LOCAL = 256, 8192

# sums and their bounds ----------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """What a product is, and what bounds its rounding; all of one shape, or such that they broadcast."""

    want: Any
    absolute: Any  # the sum of the absolute values of the products
    whole: Any  # the norms of the whole image times those of the kernel
    read: Any  # the norm of what the output reads times that of what it is multiplied with
    terms: int

    def map(self, change: Any) -> Sums:
        """The same change of shape to all."""
        return Sums(*(None if a is None else change(a) for a in self[:4]), self.terms)


def _norm(a: np.ndarray, axes: Any) -> np.ndarray:
    return np.sqrt((np.abs(a) ** 2).sum(axis=axes))


def _norm_of_images(x: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """``(N, C)``: of all pixels, whether an output reads them or not, and of those that are read once more."""
    return _norm(cols, (2, 3)) + _norm(x.reshape(*x.shape[:2], prod(x.shape[2:])), 2)


def _finite(a: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(a), a, 0)


def _squares(a: np.ndarray) -> np.ndarray:
    return np.abs(a) ** 2


def forward_sums(x: Any, w: Any, at: Any, groups: int, fill: Any, bounds: bool) -> Sums:
    """Of ``gather.conv``, ``(N, K, P)``."""
    want, terms = gather.conv(x, w, at, groups, fill), w.shape[1] * at.shape[0]
    if not bounds:
        return Sums(want, None, None, None, terms)
    x, w = _finite(gather.wide(x)), gather.wide(w)
    absolute = gather.conv(np.abs(x), np.abs(w), at, groups, abs(fill))
    N, K = want.shape[:2]
    image = _norm_of_images(x, gather.columns(x, at, fill)).reshape(N, groups, 1, w.shape[1])
    kernel = _norm(w.reshape(*w.shape[:2], prod(w.shape[2:])), 2).reshape(groups, K // groups, w.shape[1])
    whole = (image * kernel).sum(axis=3).reshape(N, K, 1)
    seen = gather.conv(_squares(x), np.ones((groups, *w.shape[1:])), at, groups, abs(fill) ** 2)
    read = np.sqrt(np.repeat(seen, K // groups, axis=1)) * _norm(w.reshape(K, prod(w.shape[1:])), 1)[:, None]
    return Sums(want, absolute, whole, read, terms)


def transposed_sums(y: Any, w: Any, at: Any, pixels: int, groups: int, bounds: bool) -> Sums:
    """Of ``gather.transposed``, ``(N, C, pixels)``."""
    want = gather.transposed(y, w, at, pixels, groups)
    N, C, K = len(y), want.shape[1], len(w)
    meets = gather.back(np.ones((1, 1, *at.shape)), at, pixels)
    terms = int(meets.max(initial=0)) * (K // groups)
    if not bounds:
        return Sums(want, None, None, None, terms)
    y, w = _finite(gather.wide(y)).reshape(N, K, at.shape[1]), gather.wide(w).reshape(K, w.shape[1], at.shape[0])
    absolute = gather.transposed(np.abs(y), np.abs(w), at, pixels, groups)
    image = _norm(y, 2).reshape(N, groups, K // groups, 1)
    kernel = _norm(w, 2).reshape(groups, K // groups, w.shape[1])
    fold = max(1.0, float(meets.max(initial=0)) ** 0.5)
    whole = fold * (image * kernel).sum(axis=2).reshape(N, C, 1)
    seen = gather.transposed(_squares(y), np.ones((K, 1, w.shape[2])), at, pixels, groups)
    by = _norm(w.reshape(groups, K // groups, *w.shape[1:]), (1, 3)).reshape(C)
    read = fold * np.sqrt(np.repeat(seen, w.shape[1], axis=1)) * by[:, None]
    return Sums(want, absolute, whole, read, terms)


def weight_sums(x: Any, dy: Any, at: Any, groups: int, fill: Any, bounds: bool) -> Sums:
    """Of ``gather.grad_weight``, ``(K, C/groups, T)``."""
    want, terms = gather.grad_weight(x, dy, at, groups, fill), len(x) * at.shape[1]
    if not bounds:
        return Sums(want, None, None, None, terms)
    x, dy = _finite(gather.wide(x)), _finite(gather.wide(dy))
    N, K = len(x), dy.shape[1]
    absolute = gather.grad_weight(np.abs(x), np.abs(dy), at, groups, abs(fill))
    cols = gather.columns(x, at, fill)
    image = _norm_of_images(x, cols).reshape(N, groups, 1, x.shape[1] // groups)
    cols = cols.reshape(N, groups, 1, x.shape[1] // groups, *at.shape)
    dy = dy.reshape(N, groups, K // groups, 1, at.shape[1])
    by = _norm(dy, 4)
    whole = (image * by).sum(axis=0).reshape(K, x.shape[1] // groups, 1)
    read = (_norm(cols, (0, 5)) * _norm(dy[..., None, :], (0, 5))).reshape(want.shape)
    return Sums(want, absolute, whole, read, terms)


# trials -------------------------------------------------------------------------------------------------------------


class Trial:
    """A case with its arrays: what to call, and what has to come of it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.product, self.algorithm, self.d = case["product"], case["algorithm"], len(case["size"])
        self.dtype, self.axes = np.dtype(case["dtype"]), axes_of(case)
        self.groups = case["groups"]
        self.C, self.K = case["C"] * self.groups, case["K"] * self.groups
        self.size = tuple(max(axis.size, 0) for axis in self.axes)
        self.kernel = tuple(case["kernel"])
        self.out = tuple(max(product_out(case, axis), 0) for axis in self.axes)
        if self.product == "transpose":
            self.out = tuple(case["size"])
        self.lead = () if case["N"] is None else (case["N"],)
        self.N = 1 if case["N"] is None else case["N"]
        self.plain = case.get("plain", False)
        self.geometry = {
            "stride": case["stride"], "padding": _tuples(case["padding"]), "dilation": case["dilation"],
            "boundary": case["boundary"], "flip": case["flip"],
        }  # fmt: skip
        if self.product not in ("im2col", "col2im"):
            self.geometry["groups"] = self.groups
        if case["fill"]:
            self.geometry["fill_value"] = case["fill"]
        self.shapes = self._shapes()

    # shapes ---------------------------------------------------------------------------------------------------------

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every input, in the order of the call."""
        x, y = (*self.lead, self.C, *self.size), (*self.lead, self.K, *self.out)
        w = (self.K, self.case["C"], *self.kernel)
        T, P = prod(self.kernel), prod(self.out)
        if self.plain:
            x, w = self.size, self.kernel
        if self.product in ("convolve", "correlate"):
            return {"x": self._plain_shape(), "w": self.kernel}
        if self.product == "operator":
            length = self.K * P if self.case["adjoint"] else self.C * prod(self.size)
            columns = self.case["columns"]
            return {"w": w, "x": (length,) if columns is None else (length, columns)}
        shapes = {
            "forward": {"x": x, "w": w}, "grad_input": {"w": w, "dy": y}, "grad_weight": {"x": x, "dy": y},
            "transpose": {"x": y, "w": w}, "im2col": {"x": x}, "col2im": {"cols": (*self.lead, self.C * T, P)},
            "kernel2row": {"w": w},
        }[self.product]  # fmt: skip
        if self.case["bias"] and self.product in ("forward", "transpose"):
            shapes["bias"] = (self.K if self.product == "forward" else self.C,)
        return shapes

    def _plain_shape(self) -> tuple[int, ...]:
        if self.case["axes"] is None:
            return self.size
        rest, shape = iter(self.case["rest"]), [0] * (self.d + len(self.case["rest"]))
        for axis, n in zip(self.case["axes"], self.size, strict=True):
            shape[axis] = n
        return tuple(shape[a] if a in self.case["axes"] else next(rest) for a in range(len(shape)))

    @property
    def refused(self) -> bool:
        """Whether the call has to raise because of its sizes."""
        if self.product in ("convolve", "correlate"):
            return not prod(self.size) or not prod(self.kernel) or self._valid_is_empty
        outs = (*self.size, *self.out) if self.product == "transpose" else self.out
        if min(*outs, *self.kernel) < 1:
            return True
        return self.case["boundary"] != "constant" and any(a.size == 0 and a.lo + a.hi for a in self.axes)

    @property
    def _valid_is_empty(self) -> bool:
        if self.case["mode"] != "valid":
            return False
        larger = [axis.size >= axis.span for axis in self.axes]
        return not all(larger) and not self._exchanged

    @property
    def _exchanged(self) -> bool:
        spans = tuple(axis.span for axis in self.axes)
        if self.case.get("mode") != "valid":
            return False
        smaller = all(n <= span for n, span in zip(self.size, spans, strict=True))
        return smaller and self.size != spans

    def may_refuse(self) -> bool:
        """Whether the algorithm may say that it cannot serve this."""
        case, one = self.case, [1] * self.d
        if self.algorithm == "kernel2row":
            return case["fill"] != 0
        if self.algorithm == "winograd":
            stride, dilation = each(case["stride"], self.d), each(case["dilation"], self.d)
            fits = stride == one or (stride == [2] * self.d and dilation == one)
            return self.dtype.kind not in "fc" or self.kernel != (3, 3) or not fits or self._exchanged
        return self.algorithm == "fft" and self.dtype.kind not in "fc"

    # data -----------------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, Laid]:
        """The inputs, laid out."""
        rng, r = np.random.default_rng(self.case["seed"]), random.Random(self.case["seed"])
        laid = {}
        for name, shape in self.shapes.items():
            a = values(rng, shape, self.dtype, self.case["data"])
            if name == self.batched_name:
                disturb(rng, a, self.case["data"], self.independent)
            laid[name] = lay(shape, self.dtype, self.case["layouts"].get(name, "C"), r)
            laid[name].array[...] = a
            if self.case["layouts"].get(name) == "readonly":
                laid[name].array.flags.writeable = False
        return laid

    @property
    def batched_name(self) -> str:
        """The input that a batch runs along, which may hold outliers."""
        if self.product == "grad_input":
            return "dy"
        return "cols" if self.product == "col2im" else "x"

    @property
    def independent(self) -> list[int]:
        """The axes of that input along which the product is a loop."""
        if self.product in ("convolve", "correlate"):
            return [a for a in range(self.d + len(self.case["rest"])) if a not in (self.case["axes"] or range(self.d))]
        return [1] if self.product == "operator" else [0] if self.lead else []

    # the oracle -----------------------------------------------------------------------------------------------------

    @property
    def places(self) -> np.ndarray:
        """Which pixel stands where in ``X_conv``."""
        return gather.places(self.axes, self.case["boundary"], self.case["flip"], self.out)

    def sums(self, given: dict[str, np.ndarray]) -> Sums:
        """What the call has to return, in its shape."""
        case, groups = self.case, self.groups
        bounds = not self.bit_for_bit
        if self.product in ("convolve", "correlate"):
            return self._plain_sums(given["x"], given["w"], bounds)
        at, pixels, fill = self.places, prod(self.size), case["fill"]
        w = given["w"].reshape(self.K, case["C"], *self.kernel) if "w" in given else None
        N = self.N
        if self.product == "operator":
            N = 1 if case["columns"] is None else case["columns"]
            vectors = given["x"].reshape(len(given["x"]), N).T
            if case["adjoint"]:
                sums = transposed_sums(vectors.reshape(N, self.K, *self.out), np.conj(w), at, pixels, groups, bounds)
            else:
                sums = forward_sums(vectors.reshape(N, self.C, *self.size), w, at, groups, 0, bounds)
            rows = prod(sums.want.shape[1:])
            sums = sums.map(lambda a: np.broadcast_to(a, sums.want.shape).reshape(N, rows).T)
            return sums.map(lambda a: a[:, 0]) if case["columns"] is None else sums
        if self.product == "forward":
            sums = forward_sums(given["x"].reshape(N, self.C, *self.size), w, at, groups, fill, bounds)
            shape = (*self.lead, self.K, *self.out)
        elif self.product == "grad_weight":
            x, dy = given["x"].reshape(N, self.C, *self.size), given["dy"].reshape(N, self.K, *self.out)
            sums, shape = weight_sums(x, dy, at, groups, fill, bounds), (self.K, case["C"], *self.kernel)
        else:
            y = given["dy" if self.product == "grad_input" else "x"].reshape(N, self.K, *self.out)
            w = np.conj(w) if self.product == "grad_input" else w
            sums, shape = transposed_sums(y, w, at, pixels, groups, bounds), (*self.lead, self.C, *self.size)
        if "bias" in given:
            bias = gather.wide(given["bias"])[:, None]
            more = [a if a is None else a + np.abs(bias) for a in sums[1:4]]
            sums = Sums(sums.want + bias, *more, sums.terms + 1)
        return sums.map(lambda a: np.broadcast_to(a, sums.want.shape).reshape(shape))

    def _plain_sums(self, x: np.ndarray, w: np.ndarray, bounds: bool) -> Sums:
        """SciPy's modes: all overlaps, and the part of them that is asked for."""
        case, d = self.case, self.d
        axes = case["axes"] if case["axes"] is not None else list(range(d))
        if self.product == "correlate":
            w = np.flip(w.conj())
        spread = np.zeros([axis.span for axis in self.axes], w.dtype)
        spread[tuple(slice(None, None, axis.dilation) for axis in self.axes)] = w
        moved = np.moveaxis(x, axes, range(-d, 0))
        rest = moved.shape[: x.ndim - d]
        rows = moved.reshape(prod(rest), 1, *self.size)
        if case["mode"] == "valid" and self._exchanged:  # every row slides over the kernel
            at = gather.places([Axis(axis.span, axis.size, 1, 1, 0, 0) for axis in self.axes], "constant", True)
            sums = forward_sums(spread[None, None], rows, at, 1, 0, bounds).map(lambda a: a.swapaxes(0, 1))
            shape = [axis.span - axis.size + 1 for axis in self.axes]
        else:
            reach = [0 if case["mode"] == "valid" else axis.span - 1 for axis in self.axes]
            full = [axis._replace(stride=1, lo=r, hi=r) for axis, r in zip(self.axes, reach, strict=True)]
            at = gather.places(full, case["boundary"], True)
            sums = forward_sums(rows, w[None, None], at, 1, case["fill"], bounds)
            shape = [axis.out for axis in full]
        begin = [(axis.span - 1) // 2 if case["mode"] == "same" else 0 for axis in self.axes]
        end = [b + n if case["mode"] == "same" else None for b, n in zip(begin, self.size, strict=True)]
        stride = each(case["stride"], d)
        kept = tuple(slice(b, e, s) for b, e, s in zip(begin, end, stride, strict=True))

        def part(a: np.ndarray) -> np.ndarray:
            a = np.broadcast_to(a, sums.want.shape).reshape(*rest, *shape)
            return np.moveaxis(a[(..., *kept)], range(-d, 0), axes)

        return sums.map(part)

    @property
    def summed(self) -> np.dtype:
        """The dtype of the sums, or for integers one with their numbers: a plan's, or that of a wider ``out``."""
        out = np.dtype(self.case["out_dtype"] if self.case["out"] and self.case["out_dtype"] else self.dtype)
        if self.dtype.kind not in "biu" or self.by_plan:
            return self.dtype
        return np.finfo(out).dtype if out.kind in "fc" else out

    @property
    def by_plan(self) -> bool:
        """Whether a plan is asked, which has a dtype of its own."""
        return self.case["via"] != "function" and self.product in ("forward", "grad_input", "grad_weight")

    @property
    def by_transform(self) -> bool:
        """Whether it may have been computed by Winograd or the FFT."""
        return self.algorithm in ("winograd", "fft", "auto") and self.summed.kind in "fc"

    @property
    def bit_for_bit(self) -> bool:
        """Whether there is no rounding."""
        return self.summed.kind in "biu" or (not self.by_transform and self.case["data"] in ("exact", "loud"))

    def tolerances(self, sums: Sums, stored: np.dtype) -> dict[str, np.ndarray]:
        """How far every value may be off, for each of the bounds that hold."""
        computed = np.dtype("float32") if self.summed.name == "float16" else self.summed
        kept = [np.finfo(dtype) for dtype in (self.summed, stored)]
        least = float(sum(f.smallest_subnormal for f in kept))
        least = least + np.abs(_finite(sums.want)) * float(max(f.eps for f in kept))
        eps = float(np.finfo(computed).eps)
        exact = 2 * (sums.terms + 4) * eps * sums.absolute
        if not self.by_transform:
            return {"values": exact + least}
        found = {"values": np.maximum(TRANSFORM * eps * sums.whole, exact) + least}
        if self.algorithm == "auto":
            found["locality"] = np.maximum(LOCAL * eps * sums.read, exact) + least
        return found

    # the call -------------------------------------------------------------------------------------------------------

    def plan(self, N: int | None = None) -> Any:
        """A plan of this convolution."""
        lead = self.lead if N is None or not self.lead else (N,)
        x_shape = self.size if self.plain else (*lead, self.C, *self.size)
        w_shape = self.kernel if self.plain else (self.K, self.case["C"], *self.kernel)
        options = {"max_bytes": 1 << 18} if self.case["via"] == "tiles" and self.product != "operator" else {}
        geometry = {**self.geometry}
        if self.plain:
            from numconv.geometry import conv_geometry
            from numconv.plan import make_plan

            return make_plan(conv_geometry(x_shape, w_shape, plain=True, **geometry), self.dtype, "cpu", "auto")
        if self.algorithm:
            options["algorithm"] = self.algorithm
        return numconv.plan_conv(x_shape, w_shape, dtype=self.dtype, **geometry, **options)

    def call(self, given: dict[str, Any], out: Any = None, N: int | None = None) -> Any:
        """The call of a case; with ``N`` of a batch of another length."""
        case, options = self.case, {} if out is None else {"out": out}
        lead = self.lead if N is None or not self.lead else (N,)
        x, w, dy, bias = (given.get(name) for name in ("x", "w", "dy", "bias"))
        if self.product in ("convolve", "correlate"):
            function = getattr(numconv, self.product)
            arguments = {name: self.geometry[name] for name in ("stride", "dilation", "boundary")}
            arguments |= {"fill_value": case["fill"]} if case["fill"] else {}
            arguments |= {} if case["axes"] is None else {"axes": tuple(case["axes"])}
            return function(x, w, case["mode"], algorithm=self.algorithm, **arguments, **options)
        if self.product == "operator":
            operator = self.plan().linear_operator(w)
            if case["adjoint"]:
                return operator.rmatvec(x) if x.ndim == 1 else operator.rmatmat(x)
            return operator.matvec(x) if x.ndim == 1 else operator.matmat(x)
        if self.by_plan:
            plan = self.plan(N)
            if self.product == "forward":
                return plan.forward(x, w, bias, **options)
            if self.product == "grad_input":
                return plan.grad_input(dy, w, **options)
            return plan.grad_weight(x, dy, **options)
        options |= {"algorithm": self.algorithm, **self.geometry}
        if self.product == "forward":
            return numconv.conv(x, w, bias, **options)
        if self.product == "grad_input":
            return numconv.conv_grad_input((*lead, self.C, *self.size), w, dy, **options)
        if self.product == "grad_weight":
            return numconv.conv_grad_weight(x, (self.K, case["C"], *self.kernel), dy, **options)
        if "output_padding" in case:
            options["output_padding"] = tuple(case["output_padding"])
        return numconv.conv_transpose(x, w, bias, **options)

    # checks ---------------------------------------------------------------------------------------------------------

    def check(self) -> list[tuple[str, str]]:
        """What is wrong, as kinds and details; empty if nothing is."""
        laid = self.arrays()
        given = {name: one.array for name, one in laid.items()}
        before = {name: one.memory.copy() for name, one in laid.items()}
        try:
            if self.product in ("im2col", "col2im", "kernel2row"):
                problems = getattr(self, f"_check_{self.product}")(given)
            else:
                problems = self._check_product(given, laid)
        except Refused:
            return [("refused", "")]
        if self.case["out"] != "overlap":
            problems += [
                ("input changed", name) for name, one in laid.items() if not np.array_equal(one.memory, before[name])
            ]
        return problems

    def _run(self, call: Any) -> Any:
        """The result of a call that may have to be refused."""
        try:
            result = call()
        except (ValueError, TypeError) as error:
            text = str(error)
            if self.refused and not self._unclear(text):
                raise Refused from error
            if self.may_refuse() and "cannot serve" in text and self.algorithm in text:
                raise Refused from error
            if self.case["via"] == "tiles" and ("max_bytes must be at least" in text or "share memory" in text):
                raise Refused from error
            raise
        if self.refused:
            raise AssertionError("should have been refused: " + describe(result))
        return result

    @staticmethod
    def _unclear(text: str) -> bool:
        return any(words in text for words in ("cannot reshape", "broadcast", "zero-size", "negative dimensions"))

    def _make_out(self, shape: tuple[int, ...], laid: dict[str, Laid], dtype: np.dtype) -> Laid | None:
        layout = self.case["out"]
        if layout is None:
            return None
        r = random.Random(self.case["seed"] + 1)
        if self.case["out_dtype"]:
            dtype = np.dtype(self.case["out_dtype"])
        if layout == "overlap":
            for one in laid.values():
                if one.array.shape == shape and one.array.dtype == dtype and one.array.flags.writeable:
                    return one
            layout = "C"
        return lay(shape, dtype, layout, r)

    def _check_product(self, given: dict[str, np.ndarray], laid: dict[str, Laid]) -> list[tuple[str, str]]:
        if self.refused:
            self._run(lambda: self.call(given))
        with np.errstate(all="ignore"):
            sums = self.sums(given)
        out = self._make_out(sums.want.shape, laid, self.dtype) if self.product != "operator" else None
        kept = {name: a.copy() for name, a in given.items()}
        before = None if out is None else out.memory.copy()
        got = self._run(lambda: self.call(given, None if out is None else out.array))
        problems = []
        if out is not None:
            if got is not out.array:
                problems.append(("out", "the result is not out itself"))
            if out.spilled(before):
                problems.append(("wrote outside", describe(out.array)))
        problems += self._compare(np.asarray(got), sums, self.dtype if out is None else out.array.dtype)
        if not problems and out is None and self.case["via"] != "tiles":
            problems += self._alone(kept, got)
        return problems

    def _compare(self, got: np.ndarray, sums: Sums, dtype: np.dtype) -> list[tuple[str, str]]:
        want = np.asarray(sums.want)
        if got.shape != want.shape:
            return [("shape", f"{got.shape} for {want.shape}")]
        if got.dtype != dtype:
            return [("dtype", f"{got.dtype} for {dtype}")]
        if self.bit_for_bit:
            right = gather.narrow(gather.narrow(want, self.summed) if self.by_plan else want, dtype)
            same = got == right
            if not same.all():
                kind = "wide out" if dtype != self.dtype and self.dtype.kind in "biu" else "values"
                return [(kind, differences(got, right, ~same))]
            return []
        got = got.astype(np.result_type(got.dtype, want.dtype))
        if got.dtype.kind == "c" and want.dtype.kind == "f":
            if got.imag.any():
                return [("values", "an imaginary part of a real sum")]
            got = got.real
        with np.errstate(all="ignore"):
            odd = ~np.isfinite(want)
            if self.case["data"] == "special":
                folded = self.algorithm == "kernel2row" and self.case["boundary"] != "constant"
                wrong = np.isfinite(got) != np.isfinite(want) if folded else _kind(got) != _kind(want)
                if wrong.any():
                    return [("special", differences(got, want, wrong))]
            odd |= self.case["data"] == "special"
            most = 0.99 * min(float(np.finfo(stored).max) for stored in (self.summed, dtype))
            for name, tolerance in self.tolerances(sums, dtype).items():
                wrong = ~odd & ~(np.abs(got - want) <= tolerance) & (np.abs(want) + tolerance < most)
                if wrong.any():
                    return [(name, differences(got, want, wrong, tolerance))]
        return []

    def _alone(self, given: dict[str, np.ndarray], got: np.ndarray) -> list[tuple[str, str]]:
        """An image of a batch, a row along ``axes=`` and a column of an operator have the bits that they have alone."""
        r = random.Random(self.case["seed"] + 2)
        if self.product in ("forward", "grad_input", "transpose") and self.lead and self.N > 1:
            i = r.randrange(self.N)
            name = self.batched_name
            alone = self.call({**given, name: given[name][i : i + 1]}, N=1)[0]
            together = got[i]
        elif self.product == "operator" and (self.case["columns"] or 0) > 1:
            i = r.randrange(self.case["columns"])
            alone, together = self.call({**given, "x": given["x"][:, i]}), got[:, i]
        elif self.product in ("convolve", "correlate") and self.case["axes"] and prod(self.case["rest"]) > 1:
            rest = [a for a in range(given["x"].ndim) if a not in self.case["axes"]]
            at: list[Any] = [slice(None)] * given["x"].ndim
            for a in rest:
                i = r.randrange(given["x"].shape[a])
                at[a] = slice(i, i + 1)
            one = tuple(at)
            alone, together = self.call({**given, "x": given["x"][one]}), got[one]
        else:
            return []
        if alone.shape != together.shape:
            return [("batch", f"alone {alone.shape}, in the batch {together.shape}")]
        same = (alone == together) | ((alone != alone) & (together != together))
        return [] if same.all() else [("batch", differences(together, alone, ~same))]

    def _check_im2col(self, given: dict[str, np.ndarray]) -> list[tuple[str, str]]:
        x, fill = given["x"], self.case["fill"]
        shape = (*self.lead, self.C * prod(self.kernel), prod(self.out))
        if self.refused:
            self._run(lambda: numconv.im2col(x, self.kernel, **self.geometry))
        out = self._make_out(shape, {}, self.dtype)
        before = None if out is None else out.memory.copy()
        if self.case["via"] == "plan" and out is None:
            got = self._run(lambda: self.plan().im2col(x))
        else:
            options = {} if out is None else {"out": out.array}
            got = self._run(lambda: numconv.im2col(x, self.kernel, **self.geometry, **options))
        fill = np.asarray(fill).astype(self.dtype)
        want = gather.columns(x.reshape(self.N, self.C, *self.size), self.places, fill).reshape(shape)
        problems = [("wrote outside", describe(out.array))] if out is not None and out.spilled(before) else []
        if got.shape != want.shape:
            return [*problems, ("shape", f"{got.shape} for {want.shape}")]
        want = want.astype(got.dtype, casting="same_kind")
        if out is None and got.dtype != self.dtype:
            problems.append(("dtype", str(got.dtype)))
        same = got == want
        return problems if same.all() else [*problems, ("values", differences(got, want, ~same))]

    def _check_col2im(self, given: dict[str, np.ndarray]) -> list[tuple[str, str]]:
        cols, reduce = given["cols"], self.case["reduce"]
        shape = self.size if self.plain else (*self.lead, self.C, *self.size)
        if self.refused:
            self._run(lambda: numconv.col2im(cols, shape, self.kernel, **self.geometry))
        got = self._run(lambda: numconv.col2im(cols, shape, self.kernel, reduce=reduce, **self.geometry))
        at, pixels = self.places, prod(self.size)
        wide = gather.wide(cols).reshape(self.N, self.C, *at.shape)
        want, dtype = gather.back(wide, at, pixels), self.dtype
        if reduce == "mean":
            counts = np.maximum(gather.back(np.ones((1, 1, *at.shape)), at, pixels), 1)
            if dtype.kind in "biu":
                dtype = np.dtype(np.float64)
            want = (want / counts).reshape(shape)
            if got.shape != shape or got.dtype != dtype:
                return [("shape", f"{got.shape} {got.dtype} for {shape} {dtype}")]
            if self.case["data"] == "wide":
                return []  # sums of integers may wrap before they are divided
            wrong = ~(np.abs(got - want) <= 4 * np.finfo(dtype).eps * np.abs(want))
            return [("values", differences(got, want, wrong))] if wrong.any() else []
        want = gather.narrow(want.reshape(shape), dtype)
        if got.shape != shape or got.dtype != dtype:
            return [("shape", f"{got.shape} {got.dtype} for {shape} {dtype}")]
        same = got == want
        return [] if same.all() else [("values", differences(got, want, ~same))]

    def _check_kernel2row(self, given: dict[str, np.ndarray]) -> list[tuple[str, str]]:
        w = given["w"]
        if self.case["via"] == "plan":
            csr = self._run(lambda: self.plan().matrix(w))
        else:
            csr = self._run(lambda: numconv.kernel2row(w, self.size, **self.geometry))
        kernel = w.reshape(self.K, self.case["C"], *self.kernel)
        want = gather.narrow(gather.matrix(kernel, self.places, prod(self.size), self.groups), self.dtype)
        dtype = np.dtype(np.float32) if self.dtype.name == "float16" else self.dtype  # SciPy has no sparse float16
        if csr.shape != want.shape or csr.dtype != dtype:
            return [("shape", f"{csr.shape} {csr.dtype} for {want.shape} {dtype}")]
        if len(csr.indptr) != csr.shape[0] + 1 or csr.indptr[-1] != len(csr.data) or (np.diff(csr.indptr) < 0).any():
            return [("matrix", "indptr is not that of a CSR matrix")]
        if csr.nnz and (csr.indices.min() < 0 or csr.indices.max() >= csr.shape[1]):
            return [("matrix", "indices beyond the columns")]
        rows = np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr))
        if (np.diff(rows * csr.shape[1] + csr.indices) <= 0).any():
            return [("matrix", "not canonical")]
        dense = np.zeros(want.shape, dtype)
        dense[rows, csr.indices] = csr.data
        tolerance = 0.0
        if self.dtype.kind in "fc" and self.case["data"] not in ("exact", "loud"):
            tolerance = 4 * prod(self.kernel) * np.finfo(self.dtype).eps * float(np.abs(_finite(kernel)).max(initial=0))
        with np.errstate(all="ignore"):
            wrong = ~((np.abs(dense - want) <= tolerance) | (_kind(dense) == _kind(want)) & ~np.isfinite(want)) if (
                self.dtype.kind in "fc"
            ) else dense != want
        if wrong.any():
            return [("values", differences(dense, want, wrong))]
        return self._check_csr_products(csr) if self.case["data"] == "exact" else []

    def _check_csr_products(self, csr: Any) -> list[tuple[str, str]]:
        """The matrix times a vector, both ways, by numconv and by NumPy."""
        rng = np.random.default_rng(self.case["seed"] + 3)
        x, y = (values(rng, (n,), csr.dtype, "exact") for n in csr.shape[::-1])
        dense = gather.wide(csr.toarray())
        for name, got, want in (
            ("csr_matvec", numconv.csr_matvec(csr.data, csr.indices, csr.indptr, x), dense @ gather.wide(x)),
            (
                "csr_rmatvec", numconv.csr_rmatvec(csr.data, csr.indices, csr.indptr, y, csr.shape[1]),
                dense.T @ gather.wide(y),
            ),
        ):  # fmt: skip
            right = gather.narrow(want, csr.dtype)
            if got.shape != right.shape or got.dtype != right.dtype:
                return [(name, f"{got.shape} {got.dtype} for {right.shape} {right.dtype}")]
            if not (got == right).all():
                return [(name, differences(got, right, got != right))]
        return []


class Refused(Exception):
    """A call was refused, and had to be or may be."""


def _kind(a: np.ndarray) -> np.ndarray:
    """0 for numbers, 1 for NaN, 2 and 3 for the infinities."""
    if a.dtype.kind == "c":
        return np.isnan(a) * 1
    return np.where(np.isnan(a), 1, np.where(np.isinf(a), np.where(a > 0, 2, 3), 0))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def describe(a: Any) -> str:
    """An array in words."""
    return f"{a.dtype} {a.shape} strides {a.strides}" if isinstance(a, np.ndarray) else type(a).__name__


def differences(got: np.ndarray, want: np.ndarray, wrong: np.ndarray, tolerance: np.ndarray | None = None) -> str:
    """How many values are wrong, and the first of them."""
    where = tuple(int(i) for i in np.argwhere(wrong)[0]) if wrong.ndim else ()
    beyond = "" if tolerance is None else f" (within {np.broadcast_to(tolerance, wrong.shape)[where]:.3g})"
    return f"{int(wrong.sum())} of {wrong.size} wrong, at {where} {got[where]} for {want[where]}{beyond}"


def check(case: Case) -> list[tuple[str, str]]:
    """What is wrong with a case, as kinds and details; ``[("refused", "")]`` where it has to be or may be refused."""
    try:
        return Trial(case).check()
    except AssertionError as error:
        return [("accepted", str(error))]
    except Exception as error:
        return [("raised", f"{type(error).__name__}: {error}")]


def call_of(case: Case) -> str:
    """The call in words, to be read; ``check`` of the case runs it."""
    trial = Trial(case)
    arrays = []
    for name, shape in trial.shapes.items():
        layout = case["layouts"].get(name)
        arrays.append(f"{name}{shape}{' ' + layout if layout else ''}")
    details = [f"{name}={value!r}" for name, value in trial.geometry.items() if value != SIMPLEST.get(name, ...)]
    own = ("mode", "axes", "output_padding", "reduce", "adjoint")
    details += [f"{name}={case[name]!r}" for name in own if case.get(name) is not None]
    if trial.product in ("col2im", "grad_input", "kernel2row"):
        details.append(f"in={trial.size}, C={trial.C}")
    if case["out"]:
        details.append(f"out={case['out']} {case['out_dtype'] or ''}".strip())
    if trial.algorithm:
        details.append(f"algorithm={trial.algorithm!r}")
    return f"{trial.product}({', '.join([*arrays, *details])}) {case['dtype']} {case['data']} via {case['via']}"
