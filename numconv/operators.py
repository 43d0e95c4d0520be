"""``W_conv`` as an operator: SciPy's solvers see a matrix, memory sees none. And what solvers ask of an operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.fft
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, eigsh

from . import _memory, arrays, containers, dispatch
from ._indexing import CONSTANT, first_output, position, source
from ._objects import shown
from .geometry import ConvGeometry

if TYPE_CHECKING:
    from .plan import ConvPlan

#: Bytes of the symbols of a circular convolution that are transformed at once.
SYMBOLS = 64 << 20

#: Up to this many rows a Gram matrix is made and solved densely; Lanczos' own basis is no smaller.
DENSE = 32

#: Vectors of Lanczos' basis, as ``scipy.sparse.linalg.eigsh`` has them for one value, twice.
BASIS = 20


def linear_operator(plan: ConvPlan, w: Any) -> Any:
    """``W_conv`` of the caller's ``w`` without storing it, for the solvers of the library that ``w`` is of."""
    w = _weights(plan, w, "a linear operator")
    if dispatch.device_of(w) == "cpu":
        _memory.require(w.size * plan.dtype.itemsize, "the operator's own kernel", "use a smaller kernel")
        return ConvOperator(plan, w)
    return cupy_operator(plan._on_gpu(w.place), arrays.ready(w, plan.dtype))


class Operator(LinearOperator):
    """A linear operator whose products refuse what is no vector or matrix of theirs by name."""

    def matvec(self, x: Any) -> Any:
        """``A @ x`` of a vector ``(columns,)`` or ``(columns, 1)``."""
        return super().matvec(self._operand("x", x, 1))

    def rmatvec(self, x: Any) -> Any:
        """``A.H @ x`` of a vector ``(rows,)`` or ``(rows, 1)``."""
        return super().rmatvec(self._operand("x", x, 0))

    def matmat(self, X: Any) -> Any:
        """``A @ X`` of a matrix ``(columns, M)``."""
        return super().matmat(self._operand("X", X, 1, True))

    def rmatmat(self, X: Any) -> Any:
        """``A.H @ X`` of a matrix ``(rows, M)``."""
        return super().rmatmat(self._operand("X", X, 0, True))

    def dot(self, x: Any) -> Any:
        """``A @ x`` of a vector or a matrix, or the product with another operator or a number."""
        if issubclass(type(x), LinearOperator) or np.isscalar(x):
            return super().dot(x)
        return super().dot(_array("x", x))

    def _operand(self, name: str, value: Any, side: int, matrix: bool = False) -> Any:
        array, n = _array(name, value), self.shape[side]
        if array.shape[:1] != (n,) or not (array.ndim == 2 if matrix else array.shape[1:] in ((), (1,))):
            need = f"({n}, M)" if matrix else f"({n},) or ({n}, 1)"
            raise ValueError(f"{name} must have shape {need}, got {array.shape}")
        return array


def _array(name: str, value: Any) -> Any:
    """The caller's array; of a subclass of NumPy's as it is."""
    if issubclass(type(value), np.ndarray):
        containers.refuse(name, value)
        return value
    (array,), _ = dispatch.read(**{name: value})
    if dispatch.device_of(array) != "cpu":
        raise TypeError(f"{name} must be on the CPU as the operator's kernel is, got an array on a GPU")
    return array


class ConvOperator(Operator):
    """``W_conv`` of one kernel, of shape ``(K * prod out, C * prod in)``, applied by the plan's algorithm.

    ``matvec`` and ``matmat`` are the forward product (columns become a batch), ``rmatvec`` and ``rmatmat`` its exact
    Hermitian adjoint.
    """

    def __init__(self, plan: ConvPlan, w: np.ndarray) -> None:
        super().__init__(plan.dtype, plan.geometry.matrix_shape)
        self.plan = plan
        self.w = np.array(w, plan.dtype, order="C")  # later changes of the caller's array must not change the operator
        self._peaks: dict[Any, int] = {}

    def _apply(self, vectors: np.ndarray, adjoint: bool) -> np.ndarray:
        """``vectors`` as columns, ``(length, M)``: M images at once, in the dtype of both, as a matrix would."""
        containers.refuse("x", vectors)
        dtype = arrays.product_dtype(vectors=vectors, plan=self.plan.dtype)
        plan = self.plan if dtype == self.plan.dtype else replace(self.plan, dtype=dtype)
        shape = (vectors.shape[1], self.shape[1 if adjoint else 0])
        if not vectors.shape[1]:
            return np.empty(shape[::-1], dtype)
        if dtype.kind == "c" and self.dtype.kind != "c":  # a real operator acts on both parts alike
            values, part = prod(shape) * dtype.itemsize, np.empty(0, dtype).real.dtype
            beside = self._taken(replace(self.plan, dtype=part), vectors.real.T, shape, adjoint)
            with _memory.required(values + beside, f"a product of shape {shape}"):
                both = np.empty(shape, dtype)
                both.real = self._apply(vectors.real, adjoint).T
                both.imag = self._apply(vectors.imag, adjoint).T
                return both.T
        computed = arrays.computed_in(dtype)
        plan._require(self._taken(plan, vectors.T, shape, adjoint), shape, vectors)
        result = np.empty(shape, dtype=computed)
        self._compute(plan, arrays.ready(vectors.T, computed), result, adjoint)
        return arrays.as_result(result, dtype).T

    def _taken(self, plan: ConvPlan, rows: Any, shape: tuple[int, ...], adjoint: bool) -> int:
        """Bytes that a product of ``rows``, images at once, takes at its peak; of real weights and numbers."""
        computed, product = arrays.computed_in(plan.dtype), "grad_input" if adjoint else "forward"
        key = shape[0], plan.dtype, product
        peak = self._peaks.get(key)
        if peak is None:
            images = replace(plan, geometry=plan.geometry._replace(N=shape[0]))
            peak = self._peaks[key] = images._peak(product)
        return arrays.taken(shape, plan.dtype, computed, arrays.copied(computed, rows, self.w) + peak)

    def _compute(self, plan: ConvPlan, images: np.ndarray, result: np.ndarray, adjoint: bool) -> None:
        w = arrays.ready(self.w, result.dtype)
        given, wanted = _as_images(plan, images, not adjoint), _as_images(plan, result, adjoint)
        if adjoint:
            dispatch.placed(plan.device, images, plan._grad_input)(given, w, wanted)
        else:
            no_bias = np.zeros(plan.geometry.K, result.dtype)
            dispatch.placed(plan.device, images, plan._forward)(given, w, no_bias, wanted)

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        return self._apply(X, adjoint=False)

    def _rmatmat(self, X: np.ndarray) -> np.ndarray:
        return self._apply(X, adjoint=True)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._apply(x.reshape(-1, 1), adjoint=False)[:, 0]

    def _rmatvec(self, x: np.ndarray) -> np.ndarray:
        return self._apply(x.reshape(-1, 1), adjoint=True)[:, 0]


def cupy_operator(plan: ConvPlan, w: Any) -> Any:
    """The same on a GPU, as CuPy's solvers take it: a ``LinearOperator`` of ``cupyx`` for a ``w`` of CuPy."""
    if w.place.library != "cupy":
        raise TypeError(
            f"w must be an array of NumPy or CuPy, whose solvers take a linear operator, got {w.place.kind}; "
            "forward and grad_input are the two products for any"
        )
    from cupyx.scipy.sparse.linalg import LinearOperator as OfCuPy

    weights, M = w.astype(w.dtype), plan.geometry.matrix_shape

    def apply(vectors: Any, adjoint: bool) -> Any:
        (X,), give = dispatch.read(vectors=vectors)
        dtype = arrays.product_dtype(vectors=X, plan=plan.dtype)
        now = plan if dtype == plan.dtype else replace(plan, dtype=dtype)
        computed = arrays.computed_in(dtype)
        images, w = X.reshape(X.shape[0], prod(X.shape[1:])).swapaxes(0, 1).ready(computed), weights.ready(computed)
        result = w.place.empty((images.shape[0], M[1 if adjoint else 0]), computed)
        given, wanted = _as_images(plan, images, not adjoint), _as_images(plan, result, adjoint)
        if adjoint:
            now._grad_input(given, w, wanted)
        else:
            now._forward(given, w, w.place.zeros(plan.geometry.K, computed), wanted)
        columns = w.place.empty((result.shape[1], *X.shape[1:]), dtype)
        columns.reshape(result.shape[::-1])[...] = result.swapaxes(0, 1)
        return give(columns)

    forward, adjoint = partial(apply, adjoint=False), partial(apply, adjoint=True)
    return OfCuPy(M, matvec=forward, rmatvec=adjoint, matmat=forward, rmatmat=adjoint, dtype=plan.dtype)


def _as_images(plan: ConvPlan, rows: Any, inputs: bool) -> Any:
    """Rows of numbers as images, inputs of the plan or outputs. Empty rows would not say how many they are."""
    g = plan.geometry
    return rows.reshape(rows.shape[0], *((g.C, *g.size) if inputs else (g.K, *g.out)))


class NormalizedOperator(Operator):
    """``diag(1 / s) @ W_conv @ diag(there)``: a convolution whose weights are renormalised over what is there.

    Made by ``numconv.normalized_operator``. What vectors hold where nothing is there, NaN included, plays no part.

    Attributes
    ----------
    there : array of bool (*in)
        Which pixels are there.
    defined : array of bool (*out)
        Which outputs have a value; the rows of the others are empty.
    """

    def __init__(
        self, plan: ConvPlan, w: np.ndarray, there: np.ndarray, sums: np.ndarray, defined: np.ndarray
    ) -> None:
        super().__init__(plan.dtype, plan.geometry.matrix_shape)
        self.plan, self.there, self.defined = plan, there, defined
        self._sum = plan.linear_operator(w)
        self._scale = np.divide(1, sums, out=np.zeros(sums.shape, self.dtype), where=defined).reshape(-1, 1)

    def matrix(self) -> scipy.sparse.csr_array:
        """The operator as a canonical CSR array, without entries for pixels that are not there."""
        with _memory.required(self._taken_by_matrix(), "the matrix and its copy", "use the operator as it is"):
            csr = self.plan.matrix(self._sum.w)
            rows = np.repeat(np.arange(self.shape[0]), np.diff(csr.indptr))
            kept = self.there.ravel()[csr.indices] & self.defined.ravel()[rows]
            rows = rows[kept]
            indptr = np.zeros(self.shape[0] + 1, csr.indptr.dtype)
            np.cumsum(np.bincount(rows, minlength=self.shape[0]), out=indptr[1:])
            data = csr.data[kept]
            data *= self._scale.ravel()[rows]
            return scipy.sparse.csr_array((data, csr.indices[kept], indptr), shape=self.shape)

    def _taken_by_matrix(self) -> int:
        """Bytes that ``matrix`` takes at its peak: what is convolved by, each entry's row twice, and the copy."""
        g = self.plan.geometry
        peak, stored = dispatch.backend("cpu", "peak"), self.plan.nbytes("matrix")
        item, entries = self.dtype.itemsize, peak.entries_of(g)
        index = dispatch.backend("cpu", "kernel2row").index_dtype_for(max(entries, *self.shape)).itemsize
        return stored + entries * (8 + 1 + max(8, 2 * item, item + index)) + 16 * self.shape[0]

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        with self._asked(X, adjoint=False):
            Y = self._sum.matmat(_only(self.there, X))
            return np.multiply(self._scale, Y, out=Y if Y.dtype == np.result_type(self._scale, Y) else None)

    def _rmatmat(self, X: np.ndarray) -> np.ndarray:
        with self._asked(X, adjoint=True):
            Y = _only(self.defined, X)
            Y = np.multiply(self._scale.conj(), Y, out=Y if Y.dtype == np.result_type(self._scale, Y) else None)
            Y = self._sum.rmatmat(Y)
            Y[~self.there.ravel()] = 0
            return Y

    def _asked(self, X: np.ndarray, adjoint: bool) -> AbstractContextManager[None]:
        """Memory for a product: what is there of ``X``, and the sums of that."""
        containers.refuse("x", X)
        dtype, M = np.result_type(X, self.dtype), X.shape[1]
        if dtype.kind == "c" and self.dtype.kind != "c":
            dtype = np.empty(0, dtype).real.dtype
        shape = M, self.shape[1 if adjoint else 0]
        rows = np.broadcast_to(np.empty((), dtype), X.shape[::-1]) if M > 1 else arrays.Ready(X.shape[::-1], dtype)
        taken = self._sum._taken(replace(self._sum.plan, dtype=dtype), rows, shape, adjoint)
        again = 2 if np.result_type(X, self.dtype) != dtype else 1
        return _memory.required(X.size * dtype.itemsize * again + taken * again, f"a product of shape {shape[::-1]}")

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._matmat(x.reshape(-1, 1))[:, 0]

    def _rmatvec(self, x: np.ndarray) -> np.ndarray:
        return self._rmatmat(x.reshape(-1, 1))[:, 0]


def _only(there: np.ndarray, columns: np.ndarray) -> np.ndarray:
    containers.refuse("x", columns)
    return np.where(there.reshape(-1, 1), columns, columns.dtype.type(0))


def _weights(plan: ConvPlan, w: Any, what: str) -> Any:
    """The caller's ``w``, which casts to the plan's dtype, of a plan whose map is linear."""
    fill = plan.geometry.fill_value
    if fill != 0:
        raise ValueError(f"fill_value must be 0 for {what}, got {shown(fill)}: the map would be affine")
    (w,), _ = dispatch.read(w=w)
    plan._check("w", w, plan.geometry.kernel_shape)
    return w


# the norm -----------------------------------------------------------------------------------------------------------


def norm(plan: ConvPlan, w: Any, tol: float) -> float:
    """The largest singular value of ``W_conv``, computed in double precision.

    The Fourier transform makes a circular convolution the ``K x C`` matrix of each frequency (H. Sedghi, V. Gupta,
    P. M. Long, "The singular values of convolutional layers", ICLR 2019). Others take Lanczos' method on the smaller of
    ``A^H A`` and ``A A^H``.
    """
    w = _weights(plan, w, "a norm")
    dtype = _wide_dtype(plan.dtype, "a norm")
    with _memory.required(_taken_by_norm(plan, w.size, dtype), "this norm", "use fewer channels or a smaller input"):
        return _norm(plan, _wide(w, dtype), tol)


def _norm(plan: ConvPlan, w: np.ndarray, tol: float) -> float:
    from .plan import make_plan

    g = plan.geometry
    if not np.isfinite(w).all():
        return float("nan")
    largest = float(np.abs(w).max(initial=0))
    if not largest or not prod(g.matrix_shape):
        return 0.0
    w = w / largest  # so that no square of it overflows
    if is_circular(g):
        return largest * max(_norms(symbol) for symbol in symbols(g, w))
    one_image = g._replace(N=1)
    A = ConvOperator(make_plan(one_image, w.dtype, plan.device, plan.asked), w)
    tall = A.shape[0] >= A.shape[1]
    gram: LinearOperator = A.H @ A if tall else A @ A.H
    n = gram.shape[0]
    if n <= DENSE:
        return largest * float(np.sqrt(np.linalg.eigvalsh(gram @ np.eye(n, dtype=w.dtype))[-1]))
    start, tol = np.random.default_rng(0).standard_normal(n).astype(w.dtype), max(tol, float(np.finfo(float).eps))
    if not (gram @ start).any():
        return 0.0
    return largest * float(np.sqrt(eigsh(gram, k=1, v0=start, tol=tol, return_eigenvectors=False)[0]))


def _taken_by_norm(plan: ConvPlan, weights: int, dtype: np.dtype) -> int:
    """Bytes that a norm takes at its peak: the kernel in double precision, and its symbols or Lanczos' basis."""
    from .plan import make_plan

    g, item = plan.geometry, dtype.itemsize
    first = 2 * weights * item + weights
    if not prod(g.matrix_shape):
        return first
    if is_circular(g):
        values = 16 * weights // prod(g.kernel) * prod(g.size) // _every(g)  # at the frequencies of a block
        if item == 8 and _every(g) == 1:
            values //= 2  # one of each pair of conjugate frequencies
        few, many = sorted((g.K // g.groups, g.C // g.groups))
        return max(first, 2 * weights * item + 2 * values + values * few // many)
    one = make_plan(g._replace(N=1), dtype, plan.device, plan.asked)
    n, between = sorted(g.matrix_shape)
    products = max(one._taken("forward"), one._taken("grad_input")) + between * item
    if n <= DENSE:
        products *= n
    return max(first, 2 * weights * item + (2 * BASIS + 2) * n * item + products)


def is_circular(g: ConvGeometry) -> bool:
    """Whether the Fourier transform diagonalises ``W_conv``, channel by channel."""
    return set(g.stride) == {1} and g.out == g.size and (g.boundary == "wrap" or not any(map(any, g.padding)))


def _every(g: ConvGeometry) -> int:
    """Which frequencies of the first axis are transformed at once: every so many-th."""
    n, most = g.size[0], SYMBOLS // (16 * g.K * (g.C // g.groups))
    return next((q for q in range(1, n) if n % q == 0 and prod(g.size) // q <= most), n)


def symbols(g: ConvGeometry, w: np.ndarray) -> Iterator[np.ndarray]:
    """``W_conv`` of a circular convolution at its frequencies, blocks ``(frequencies, groups, K/groups, C/groups)``.

    ``sum over t of w[k,c,t] exp(-2 pi i <f, t dilation / n>)``, but for phases that no singular value sees. Where the
    blocks would be large, every ``Q``-th frequency of the first axis is transformed at once. Of real kernels one of
    each pair of conjugate frequencies suffices.
    """
    n, spatial = g.size[0], tuple(range(2, 2 + g.d))
    w = w.reshape(g.K, g.C // g.groups, *g.kernel)
    Q = _every(g)
    places: list[Any] = [np.arange(k) * dil % size for k, dil, size in zip(g.kernel, g.dilation, g.size, strict=True)]
    real = w.dtype.kind != "c"
    for q in range(Q // 2 + 1 if real else Q):
        turn = np.exp(-2j * np.pi * (q * places[0] % n) / n).reshape(-1, *(1,) * (g.d - 1))
        whole = real and q == 0
        grid = np.zeros((*w.shape[:2], n // Q, *g.size[1:]), w.dtype if whole else np.complex128)
        at: Any = (..., *np.ix_(places[0] % (n // Q), *places[1:]))
        np.add.at(grid, at, w if whole else w * turn)  # taps that wrap onto one another add up
        symbol = (scipy.fft.rfftn if whole else scipy.fft.fftn)(grid, axes=spatial)
        del grid
        yield symbol.reshape(g.groups, g.K // g.groups, w.shape[1], -1).transpose(3, 0, 1, 2)


def _norms(symbol: np.ndarray) -> float:
    """The largest singular value of a stack of matrices."""
    if min(symbol.shape[-2:]) == 1:
        return float(np.sqrt((symbol.real**2 + symbol.imag**2).sum(axis=(-2, -1)).max()))
    adjoint = symbol.conj().swapaxes(-2, -1)
    gram = adjoint @ symbol if symbol.shape[-1] <= symbol.shape[-2] else symbol @ adjoint
    return float(np.sqrt(np.linalg.eigvalsh(gram)[..., -1].max()))


# the diagonal -------------------------------------------------------------------------------------------------------


def gram_diagonal(plan: ConvPlan, w: Any) -> np.ndarray:
    """The diagonal of ``W_conv^H @ W_conv``, ``(C, *in)`` or ``(*in)``, of the dtype of ``numpy.sum`` of real parts."""
    g, real = plan.geometry, np.sum(np.empty(0, plan.dtype).real).dtype
    w, shape = _weights(plan, w, "a Gram matrix"), g.size if g.plain else (g.C, *g.size)
    dtype = _wide_dtype(plan.dtype, "a Gram matrix", np.int64)
    turned = 0 if real == np.empty(0, dtype).real.dtype else prod(shape) * real.itemsize
    taken = _taken_by_squares(g, w.size, dtype.itemsize) + turned
    _memory.require(taken, f"the diagonal of shape {shape}", "use fewer channels or rows at a time")
    w = _wide(w, dtype)
    w = w.reshape(g.groups, g.K // g.groups, g.C // g.groups, *g.kernel).swapaxes(0, 1)
    with np.errstate(all="ignore"):
        diagonal = _squares(w.reshape(g.K // g.groups, g.C, *g.kernel), g.axis_rows, g.boundary_code).reshape(shape)
        return diagonal.astype(real, copy=False)


def _taken_by_squares(g: ConvGeometry, weights: int, item: int) -> int:
    """Bytes that ``_squares`` takes at its peak, with the kernel in double precision: squares of all axes but one."""
    inner, outer = g.C * prod(g.size), 0
    for a in range(1, g.d):
        outer += g.C * prod(g.kernel[:a]) * prod(g.size[a:])
    exchanged = weights if 1 < g.groups < g.C else 0
    return 8 * (inner + outer) + (weights + exchanged + weights) * item


def _squares(w: np.ndarray, rows: tuple[tuple[int, ...], ...], boundary: int) -> np.ndarray:
    """For ``w (K, C, *k)`` the squares of what a pixel is multiplied with, over all outputs and ``K``: ``(C, *in)``.

    Axis by axis. Where every tap of an output meets a pixel of its own, squares are added; where a boundary folds taps
    onto one pixel, their values are added before they are squared.
    """
    if not rows:
        return (w * w.conj()).real.sum(axis=0)
    (size, kernel, out, start, stride, step), rest = rows[0], rows[1:]
    K, C, after = w.shape[0], w.shape[1], tuple(row[0] for row in rest)
    result = np.zeros((C, size, *after), w.real.dtype)

    def squares(w: np.ndarray) -> np.ndarray:
        """With the axis of ``w`` that comes after ``C`` left as it is."""
        return _squares(w.reshape(K, prod(w.shape[1:3]), *w.shape[3:]), rest, boundary).reshape(*w.shape[1:3], *after)

    first, stop = 0, out  # outputs that no boundary folds
    if boundary != CONSTANT:
        lowest, highest = sorted((start, position(0, kernel - 1, start, stride, step)))
        stop = min(out, first_output(highest, stride, size))
        first = min(stop, first_output(lowest, stride, 0))
    if first < stop:
        apart = squares(w)
        for t in range(kernel):
            begin = position(0, t, start, stride, step)
            o, end = max(first, first_output(begin, stride, 0)), min(stop, first_output(begin, stride, size))
            if o < end:
                result[:, begin + o * stride : begin + (end - 1) * stride + 1 : stride] += apart[:, t, None]
    for o in (*range(first), *range(stop, out)):
        pixels = [source(position(o, t, start, stride, step), size, boundary) for t in range(kernel)]
        met = sorted(set(pixels))
        folded = np.zeros((K, C, len(met), *w.shape[3:]), w.dtype)
        for t, pixel in enumerate(pixels):
            folded[:, :, met.index(pixel)] += w[:, :, t]
        result[:, met] += squares(folded)
    return result


def _wide_dtype(dtype: np.dtype, what: str, integers: Any = np.float64) -> np.dtype:
    """Double precision for weights of this dtype."""
    if dtype.kind == "b":
        raise TypeError(f"w must hold numbers for {what}, got dtype bool")
    return np.dtype({"f": np.float64, "c": np.complex128}.get(dtype.kind, integers))


def _wide(w: Any, dtype: np.dtype) -> np.ndarray:
    """Weights on the host, a copy of them in this dtype."""
    host: np.ndarray = w if isinstance(w, np.ndarray) else w.place.to_host(arrays.ready(w, w.dtype))
    return host.astype(dtype, order="C")
