"""How a plan computes: look at everything, ask for all memory, and only then copy, allocate and compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _memory, arrays, dispatch, select, stream
from .arguments import as_path
from .geometry import ConvGeometry
from .select import Choice

if TYPE_CHECKING:
    from typing import Self

#: The products: which method computes each, and what of the geometry is the shape of its result.
PRODUCTS = {name: f"_{name}" for name in ("forward", "grad_input", "grad_weight", "transpose")}
RESULTS = {
    "forward": "output_shape", "grad_input": "input_shape", "grad_weight": "kernel_shape", "transpose": "input_shape",
}  # fmt: skip

#: Algorithms whose forward product NumPy has no part in, so that it has nothing to warn of.
COMPILED = frozenset({"direct", "implicit"})


@dataclass(frozen=True, repr=False)
class Products:
    """What is decided in advance, and the products of canonical arrays that follow from it."""

    geometry: ConvGeometry
    dtype: np.dtype
    device: str
    choice: Choice
    asked: str = "auto"
    max_bytes: int | None = None
    precision: str = "ieee"

    @property
    def algorithm(self) -> str:
        """The algorithm of ``forward``."""
        return self.choice.forward

    def __reduce__(self) -> tuple[Any, ...]:
        # without what is found once below
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def _room(self, name: str) -> Any:
        if name == "implicit" and self.device == "cuda" and self.precision != "ieee":
            return dispatch.backend("cuda", "mma").in_precision(self.precision, self.dtype)
        return dispatch.backend(self.device, name)

    def _on_gpu(self, place: Any) -> Self:
        """The same for arrays on a GPU, whose library may have no FFT."""
        library = place.has_library
        if self.device == "cuda" and (library or "fft" not in self.choice):
            return self
        if library not in self._others:
            choice = select.choose(self.asked, self.geometry, self.dtype, "cuda", library)
            self._others[library] = type(self)(
                self.geometry, self.dtype, "cuda", choice, self.asked, precision=self.precision
            )
        return self._others[library]

    @cached_property
    def _others(self) -> dict[bool, Self]:
        """Plans for other arrays than those that this one is for, by whether their library has an FFT."""
        return {}

    @cached_property
    def _captures(self) -> dict[Any, Any]:
        """What the products launch on a GPU, by the layout of their arrays: see ``cuda.capture``."""
        return {}

    @cached_property
    def _computed(self) -> np.dtype:
        return arrays.computed_in(self.dtype)

    @cached_property
    def _stored(self) -> np.dtype:
        return arrays.stored_in(self.dtype, self.device)

    @cached_property
    def _fill(self) -> Any:
        return arrays.as_fill(self.geometry.fill_value, self._computed)

    @cached_property
    def _forward_room(self) -> Any:
        return self._room(self.algorithm)

    @cached_property
    def _workspace(self) -> int:
        """Bytes that ``forward`` takes beside its arguments and result."""
        if self.max_bytes is not None:
            return stream.nbytes(self, "forward", stream.lengths(self, "forward"))
        return select.workspace(self.algorithm, self.geometry, self.dtype, self.device)

    @cached_property
    def _peaks(self) -> dict[str, int]:
        return {}

    def _peak(self, product: str) -> int:
        """Bytes that a product of arrays that are ready takes at its peak beside them and its result."""
        if product not in self._peaks:
            self._peaks[product] = self._room("peak").of(product, self.choice, self.geometry, self._stored)
        return self._peaks[product]

    def _taken(self, product: str, copies: int = 0, straight: bool = False) -> int:
        """Bytes that a product takes at its peak in all, beside its arguments, of which ``copies`` are made."""
        shape = getattr(self.geometry, RESULTS[product])
        return arrays.taken(shape, self.dtype, self._stored, copies + self._peak(product), straight)

    def _tiled(self, resume: Any) -> bool:
        """Whether this plan works tile by tile."""
        if resume is not None:
            as_path("resume", resume)
        if self.max_bytes is None and resume is not None:
            raise ValueError("resume is for plans with max_bytes, which work tile by tile; this plan has none")
        return self.max_bytes is not None

    def forward_of(
        self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, out: np.ndarray | None, cast: bool = False
    ) -> np.ndarray:
        """``forward`` of arrays that are NumPy's already, or numconv's on a GPU: what ``forward`` calls.

        Parameters
        ----------
        x, w, bias, out
            As for ``forward``.
        cast : bool, default False
            Whether arrays may lose by a cast to the plan's dtype.

        Returns
        -------
        array of ``output_shape``
        """
        return self._run("forward", (x, w, bias), out, cast)

    def _grad_input_of(self, dy: np.ndarray, w: np.ndarray, out: np.ndarray | None, cast: bool = False) -> np.ndarray:
        """The same for ``grad_input``."""
        return self._run("grad_input", (dy, w), out, cast)

    def _grad_weight_of(self, x: np.ndarray, dy: np.ndarray, out: np.ndarray | None, cast: bool = False) -> np.ndarray:
        """The same for ``grad_weight``."""
        return self._run("grad_weight", (x, dy), out, cast)

    def _transpose_of(
        self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, out: np.ndarray | None, cast: bool = False
    ) -> np.ndarray:
        """The same for ``transpose``."""
        return self._run("transpose", (x, w, bias), out, cast)

    @cached_property
    def _needs(self) -> dict[str, tuple[tuple[str, tuple[int, ...]], ...]]:
        """What the arrays of each product are called, and the shapes that they must have."""
        g = self.geometry
        x, w, dy = ("x", g.input_shape), ("w", g.kernel_shape), ("dy", g.output_shape)
        return {
            "forward": (x, w, ("bias", (g.K,))), "grad_input": (dy, w), "grad_weight": (x, dy),
            "transpose": (("x", g.output_shape), w, ("bias", (g.C,))),
        }  # fmt: skip

    def _run(
        self, product: str, arrays: Sequence[np.ndarray | None], out: np.ndarray | None, cast: bool
    ) -> np.ndarray:
        """A product where its arrays are: those on a GPU are computed there, whatever the plan says of NumPy's."""
        first: Any = arrays[0]
        if dispatch.device_of(first) == "cpu":
            here = self if self.device == "cpu" else self._on_gpu(dispatch.backend("cuda", "places").host())
            return here._run_once(product, cast, *arrays, out=out)
        there = self._on_gpu(first.place)
        compute, capture = partial(there._run_once, product, cast), dispatch.backend("cuda", "capture")
        result: np.ndarray = capture.replayed(there._captures, (product, cast), arrays, out, compute)
        return result

    def _run_once(self, product: str, cast: bool, *there: np.ndarray | None, out: np.ndarray | None) -> np.ndarray:
        """Look at everything, ask for all memory, and only then copy, allocate and compute.

        ``there`` are the arrays of the product, ``None`` for zeros.
        """
        needs, shape = self._needs[product], getattr(self.geometry, RESULTS[product])
        first: Any = there[0]
        computed = self._stored
        exact = computed == self.dtype
        usual, copies = exact and out is None and type(first) is np.ndarray, 0
        for (name, need), array in zip(needs, there, strict=True):
            if array is None or (exact and array.shape == need and arrays.fits(array, computed)):
                continue
            usual = False
            self._check(name, array, need, cast)
            copies += arrays.copied(computed, array)
        peak = self._peaks.get(product)
        if peak is None:
            peak = self._peak(product)
        compute = dispatch.placed(self.device, first, getattr(self, PRODUCTS[product]))
        if usual:  # the same as below, which takes longer than a small convolution
            self._require(prod(shape) * computed.itemsize + peak, shape, first)
            target = np.empty(shape, computed)
            given = zip(needs, there, strict=True)
            compute(*(np.zeros(need, computed) if array is None else array for (_, need), array in given), target)
            return target

        def fill(target: np.ndarray) -> None:
            ready = [
                arrays.zeros_beside(first, need, computed) if array is None
                else arrays.as_summand(array, self.dtype, computed)
                for (_, need), array in zip(needs, there, strict=True)
            ]
            compute(*ready, target)

        with np.errstate(all="ignore"):  # the caller's own array may not hold what was computed
            return arrays.deliver(
                fill, shape, self.dtype, out, *(array for array in there if array is not None), computed=computed,
                beside=copies + peak, ask=lambda nbytes: self._require(nbytes, shape, first),
            )

    def _check(self, name: str, array: np.ndarray, need: tuple[int, ...], cast: bool = False) -> None:
        arrays.check_shape(name, array, need)
        if array.dtype != self.dtype:
            arrays.product_dtype(**{name: array})
            if not cast and arrays.loses(array, self.dtype):
                raise TypeError(f"{name} must cast to the plan's dtype {self.dtype} without loss, got {array.dtype}")

    def _require(self, nbytes: int, shape: tuple[int, ...], array: np.ndarray) -> None:
        """Ask for memory where this array is computed."""
        if nbytes < _memory.ALWAYS_THERE:
            return
        way_out = "use smaller pieces: fewer images, channels or rows at a time"
        if self.algorithm not in ("implicit", "direct"):
            way_out = f"use algorithm='implicit', which stores no matrix; or {way_out}"
        what = f"this convolution by {self.algorithm!r}, with a result of shape {shape},"
        _memory.require(nbytes, what, way_out, dispatch.free_memory(array, self.device))
        if self.device != "cpu" and isinstance(array, np.ndarray):
            _memory.require(prod(shape) * self.dtype.itemsize, what, way_out)

    def _weights_for_a_matrix(self, w: np.ndarray) -> np.ndarray:
        self._check("w", w, self.geometry.kernel_shape)
        return arrays.ready(w, self.dtype)

    # canonical arrays x (N, C, *in), w (K, C/G, *k), y (N, K, *out) of one dtype ------------------------------------

    def _canonical(self, array: np.ndarray, channels: int, spatial: tuple[int, ...]) -> np.ndarray:
        return array if array.ndim == 2 + len(spatial) else array.reshape(1, channels, *spatial)

    def _weights(self, w: np.ndarray) -> np.ndarray:
        g = self.geometry
        return w.reshape(g.K, g.C // g.groups, *g.kernel) if g.plain else w

    def _forward(self, x: np.ndarray, w: np.ndarray, bias: np.ndarray, y: np.ndarray) -> None:
        g = self.geometry
        x, y = self._canonical(x, g.C, g.size), self._canonical(y, g.K, g.out)
        if not (y.size and w.size):  # a sum over no channels
            y[...] = bias.reshape(g.K, *(1,) * g.d)
            return
        forward = self._forward_room.forward
        if self.algorithm in COMPILED:
            forward(x, self._weights(w), bias, g.axes, g.boundary_code, self._fill, y)
            return
        with np.errstate(all="ignore"):  # infinity gives NaN as the formula says, whichever library multiplies
            forward(x, self._weights(w), bias, g.axes, g.boundary_code, self._fill, y)

    def _grad_input(self, dy: np.ndarray, w: np.ndarray, dx: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            self._transposed(dy, w.conj(), dx)

    def _transpose(self, x: np.ndarray, w: np.ndarray, bias: np.ndarray, y: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            sums = y if y.dtype == self._computed else np.empty(y.shape, self._computed, like=y)
            self._transposed(x, w, sums)
            g = self.geometry
            by_channel = self._canonical(sums, g.C, g.size)  # a view
            by_channel += bias.reshape(g.C, *(1,) * g.d)
            if sums is not y:
                y[...] = sums

    def _transposed(self, dy: np.ndarray, w: np.ndarray, dx: np.ndarray) -> None:
        g = self.geometry
        dy, dx = self._canonical(dy, g.K, g.out), self._canonical(dx, g.C, g.size)
        if not (dy.size and w.size):
            dx[...] = 0
            return
        self._room("adjoint").grad_input(self._room(self.choice.grad_input), dy, self._weights(w), g, dx)

    def _grad_weight(self, x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
        g = self.geometry
        if not (dy.size and dw.size):
            dw[...] = 0
            return
        x, dy = self._canonical(x, g.C, g.size), self._canonical(dy, g.K, g.out)
        room = self._room(self.choice.grad_weight)
        with np.errstate(all="ignore"):
            room.grad_weight(x, dy, g.axes, g.boundary_code, self._fill, self._weights(dw))
