"""Convolution of data with gaps: weights are renormalised over what is there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .. import _memory, arrays, dispatch
from ..arguments import BOUNDARIES, Boundary, Ints, Mode, as_number, one_of
from ..geometry import plain_geometry
from ..plan import make_plan
from ..select import ASKED, Algorithm
from .plain import convolve, product_of

if TYPE_CHECKING:
    from ..operators import NormalizedOperator


def normalized_convolve(
    x: Any, w: Any, mode: Mode = "full", *, mask: Any = None, boundary: Boundary = "constant",
    fill_value: complex = 0, stride: Ints = 1, dilation: Ints = 1, axes: Ints | None = None,
    algorithm: Algorithm = "auto", dtype: Any = None, out: Any = None,
) -> Any:
    """Average ``x`` with the weights ``w`` over what is there: a convolution that knows missing data.

    ``y[o] = (sum over t of w[t] x[o - t]) / (sum over t of w[t])``, both sums over the ``t`` whose pixel ``o - t`` is
    there. Where all of them are, that is ``convolve`` with a kernel of sum 1.

    Parameters
    ----------
    x : array (*in)
        NaN is missing, unless there is a mask. Of a ``numpy.ma.MaskedArray`` what is masked is missing, beside what
        ``mask`` says.
    w : array (*k)
        Weights, finite; their sum must not vanish. Derivatives have no average: convolve them with data that were
        filled in.
    mode, boundary, stride, dilation, axes
        As for ``convolve``, which says what ``"same"`` means for even kernels.
    mask : array of bool (*in), optional
        True where ``x`` is missing, whatever it holds there; what is not masked is there, NaN included.
    fill_value : number, default 0
        The constant outside ``x``. It is data like ``x``; with NaN nothing is there.
    algorithm : {"auto", "im2col", "kernel2row", "implicit", "direct", "winograd", "fft"}
        ``"auto"`` takes no transform: the rounding of one would be all there is where little weight is.
    dtype : dtype, optional
        In which sums are kept and returned, floating or complex.
    out : array, optional
        Where to put the result; it may overlap an input.

    Returns
    -------
    array
        Of ``dtype``, else ``numpy.result_type(x, w)`` or that and ``out`` if it is wider, float64 for integers. NaN
        where nothing is there, or where the weights of what is there cancel within their rounding.

    Raises
    ------
    ValueError
        If shapes, modes or sizes do not fit, a weight is not finite, or the sum of the weights vanishes.
    TypeError
        If a dtype has no product, or the mask is not of bool.
    MemoryError
        If it would not fit, before anything is allocated.

    See Also
    --------
    normalized_operator : the same as a linear operator and as a sparse matrix.

    References
    ----------
    H. Knutsson, C.-F. Westin, "Normalized and differential convolution", CVPR 1993. It agrees with
    ``astropy.convolution.convolve(x, w, nan_treatment="interpolate")``.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> x = np.array([1, 2, np.nan, 4, 5])
    >>> numconv.normalized_convolve(x, [1, 2, 1], "same", fill_value=np.nan)
    array([1.33333333, 1.66666667, 3.        , 4.33333333, 4.66666667])
    >>> numconv.normalized_convolve([1, 9, 3], [1, 1], "valid", mask=[False, True, True])
    array([ 1., nan])
    """
    boundary = cast(Boundary, one_of("boundary", boundary, BOUNDARIES))
    algorithm = cast(Algorithm, one_of("algorithm", algorithm, ASKED))
    masks = {} if mask is None else {"mask": mask}
    if issubclass(type(x), np.ma.MaskedArray):
        if x.mask is not np.ma.nomask:
            masks["own mask"] = x.mask
        elif not masks:
            masks["own mask"] = np.broadcast_to(np.False_, x.shape)
        x = x.data
    (x, w, *masked, out), give = dispatch.read(x=x, w=w, **masks, out=out)
    (x, w), dtype, computed = _summands(dtype, out, x=x, w=w)
    arguments: dict[str, Any] = {
        "mode": mode, "boundary": boundary, "stride": stride, "dilation": dilation, "axes": axes,
        "algorithm": "direct" if algorithm == "auto" else algorithm,
    }
    fill, outside = _outside(boundary, fill_value)
    masked = [_as_mask(m, x.shape) for m in masked]
    where = dispatch.device_of(x)
    room, asked = dispatch.backend(where, "missing"), _asked if where == "cpu" else _asked_by_each
    shape, _ = product_of(arrays.Ready(x.shape, computed), arrays.Ready(w.shape, computed), fill, arguments)
    if out is not None:
        arrays.check_out(out, shape, dtype)
    with asked(x, w, dtype, computed, shape, fill, outside, arguments, out):
        total = _total(w, computed)
        weights = w.astype(computed)
        there = room.there_of(x, masked)
        y = convolve(room.filled(x, there, computed), weights, fill_value=fill, **arguments)
        sums, defined = _sums(there, weights, total, outside, arguments)
        del there
        room.average(y, sums, defined)
        del sums, defined
        if out is None:
            return give(arrays.as_result(y, dtype))
        return give(arrays.deliver(lambda target: np.copyto(target, arrays.as_result(y, dtype)), shape, dtype, out, y))


def _asked(
    x: np.ndarray, w: np.ndarray, dtype: np.dtype, computed: np.dtype, shape: tuple[int, ...], fill: Any, outside: int,
    arguments: dict[str, Any], out: np.ndarray | None,
) -> AbstractContextManager[None]:
    """Memory for all of an average."""
    _, product = product_of(arrays.Ready(x.shape, computed), arrays.Ready(w.shape, computed), fill, arguments)
    Y, size = prod(shape) * computed.itemsize, prod(shape)
    for_sums = _taken_by_sums(x.shape, w, computed, outside, arguments)
    first = x.size * computed.itemsize + max(product, 0 if x.dtype == computed else x.nbytes)
    apart = out is not None and not arrays.takes_straight(out, dtype, ())
    last = size * dtype.itemsize * ((dtype != computed) + apart)
    taken = max(x.size + max(first, Y + for_sums), 2 * Y + size, Y + size + max(size, last))
    what = f"this average of {x.size:,} values, with a result of shape {shape},"
    return _memory.required(w.size * computed.itemsize + taken, what)


def _asked_by_each(*_: Any) -> AbstractContextManager[None]:
    """On a GPU each part asks for its own."""
    return nullcontext()


def _taken_by_sums(
    shape: tuple[int, ...], w: np.ndarray, computed: np.dtype, outside: int, arguments: dict[str, Any]
) -> int:
    """Bytes that ``_sums`` takes at its peak, for inputs of this shape."""
    arguments, real = _for_sums(arguments), np.empty(0, computed).real.dtype
    there, kernel, size = arrays.Ready(shape, computed), arrays.Ready(w.shape, computed), arrays.Ready(w.shape, real)
    result, product = product_of(there, kernel, outside, arguments)
    values, Y = prod(result), prod(result) * computed.itemsize
    taken = max(there.size * computed.itemsize + product, Y + values)
    if arguments["algorithm"] in ("fft", "winograd"):
        taken = max(taken, Y + values * (real.itemsize + 1))
    elif not _all_positive(w, computed):
        _, least = product_of(arrays.Ready(shape, real), size, outside, arguments)
        taken = max(taken, Y + there.size * real.itemsize + least, Y + values * (2 * real.itemsize + 1))
    return taken + w.size * real.itemsize


def normalized_operator(
    mask: Any, w: Any, mode: Mode = "full", *, boundary: Boundary = "constant", fill_value: float = 0,
    stride: Ints = 1, dilation: Ints = 1, algorithm: Algorithm = "auto", dtype: Any = None,
) -> NormalizedOperator:
    """``normalized_convolve`` under a mask as the linear map that it is.

    ``diag(1 / s) @ W_conv @ diag(~mask)``, where ``s = W_conv @ ~mask`` are the sums of the weights that are there.

    Parameters
    ----------
    mask : array of bool (*in)
        True where data are missing, for instance ``numpy.isnan(x)``.
    w : array (*k)
    mode, boundary, stride, dilation, algorithm, dtype
        As for ``normalized_convolve``.
    fill_value : 0 or NaN, default 0
        What is outside: zeros, or nothing.

    Returns
    -------
    NormalizedOperator
        A SciPy ``LinearOperator`` of shape ``(prod out, prod in)`` with exact adjoints. Its ``matrix()`` is a CSR
        array; ``defined``, an array of bool ``(*out)``, says which outputs have a value. The rows of the others and the
        columns of missing data are empty, and what vectors hold there, NaN included, plays no part.

    Raises
    ------
    ValueError
        If shapes, modes or sizes do not fit, a weight is not finite, the sum of the weights vanishes, or a fill value
        makes the map affine.
    TypeError
        If the mask is not of bool, or an array lives on a GPU.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> x = np.array([1, 2, np.nan, 4, 5])
    >>> A = numconv.normalized_operator(np.isnan(x), [1, 2, 1], "same", fill_value=np.nan)
    >>> A @ x
    array([1.33333333, 1.66666667, 3.        , 4.33333333, 4.66666667])
    >>> A.matrix().toarray()[2]
    array([0. , 0.5, 0. , 0.5, 0. ])
    """
    from ..operators import NormalizedOperator

    boundary = cast(Boundary, one_of("boundary", boundary, BOUNDARIES))
    algorithm = cast(Algorithm, one_of("algorithm", algorithm, ASKED))
    (mask, w), _ = dispatch.read(mask=mask, w=w)
    if dispatch.device_of(w) != "cpu":
        raise TypeError(
            "mask and w must live on the CPU for normalized_operator, an operator of SciPy, got arrays on a GPU; bring "
            "them there first, or use normalized_convolve"
        )
    mask = _as_mask(mask, mask.shape)
    (w,), _, computed = _summands(dtype, None, w=w)
    fill, outside = _outside(boundary, fill_value)
    arguments: dict[str, Any] = {"mode": mode, "boundary": boundary, "stride": stride, "dilation": dilation}
    geometry = plain_geometry(mask.shape, w.shape, fill_value=fill, flip=True, names=("mask", "w"), **arguments)
    plan = make_plan(geometry, computed, dispatch.asked_for(), algorithm)
    exact = {**arguments, "algorithm": "direct" if algorithm == "auto" else algorithm}
    sums, outputs = _taken_by_sums(mask.shape, w, computed, outside, exact), prod(plan.output_shape)
    taken = max(sums, outputs * (2 * computed.itemsize + 1)) + mask.size + w.size * computed.itemsize
    with _memory.required(taken, f"this operator of shape {plan.geometry.matrix_shape}"):
        there, weights = ~mask, w.astype(computed)
        sums, defined = _sums(there, weights, _total(w, computed), outside, exact)
        return NormalizedOperator(plan, weights, there, sums, defined)


def _as_mask(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if mask.dtype != np.bool_:
        raise TypeError(f"mask must be an array of bool, True where data are missing, got dtype {mask.dtype}")
    arrays.check_shape("mask", mask, shape)
    return mask


def _summands(dtype: Any, out: Any, **inputs: np.ndarray) -> tuple[list[Any], np.dtype, np.dtype]:
    """The arrays, the result's dtype, and the one to compute in: an average of integers is none."""
    given, (both, sums) = dtype is not None, arrays.summands(dtype, out, **inputs)
    if sums.kind in "biu":
        if given:
            raise TypeError(f"dtype must be floating or complex for an average, got {sums}")
        sums = np.dtype(np.float64)
    return both, sums, arrays.computed_in(sums)


def _outside(boundary: str, fill_value: Any) -> tuple[Any, int]:
    """The constant outside ``x``, and whether anything is there."""
    if boundary != "constant":
        return fill_value, 0  # ``convolve`` refuses a constant
    fill = as_number("fill_value", fill_value)
    missing = not isinstance(fill, int) and bool(np.isnan(fill))  # no int is NaN, and some are too large to ask NumPy
    return (0, 0) if missing else (fill, 1)


def _all_positive(w: np.ndarray, dtype: np.dtype) -> bool:
    """Whether weights do not cancel."""
    return dtype.kind != "c" and bool(w.min() >= 0)


def _for_sums(arguments: dict[str, Any]) -> dict[str, Any]:
    """How weights are summed: what is there outside is a constant, which no matrix adds."""
    return {**arguments, "algorithm": "direct"} if arguments["algorithm"] == "kernel2row" else arguments


def _total(w: Any, computed: np.dtype) -> tuple[float, bool]:
    """The sum of the sizes of weights, whose own sum must not vanish, and whether they do not cancel."""
    w = (w if isinstance(w, np.ndarray) else w.place.to_host(w.ready(w.dtype))).astype(computed, copy=False)
    with np.errstate(over="ignore"):
        total = np.abs(w).sum()
    if not np.isfinite(total):
        what = "a sum that is too large" if np.isfinite(w).all() else "infinity or NaN"
        raise ValueError(f"w must have finite weights with a finite sum of sizes in {w.dtype}, got {what}")
    if abs(w.sum()) <= _epsilon(w) * total:
        raise ValueError(
            f"w must have a sum other than 0, got weights that cancel (sum {w.sum():.3g}): no average has such weights"
        )
    return total, _all_positive(w, w.dtype)


def _epsilon(w: Any) -> float:
    """By how much a sum of so many terms errs at most, n rounding errors."""
    return max(64, w.size) * float(np.finfo(w.dtype).eps)


def _sums(there: Any, w: Any, total: tuple[float, bool], outside: int, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """The sum of the weights that are there, for each output, and where it is more than rounding."""
    arguments, (size, positive), real = _for_sums(arguments), total, np.empty(0, w.dtype).real.dtype
    room = dispatch.backend(dispatch.device_of(w), "missing")
    sums = convolve(there.astype(w.dtype), w, fill_value=outside, **arguments)
    if arguments["algorithm"] in ("fft", "winograd"):
        least: Any = size  # a transform errs everywhere by what its largest sums err
    elif positive:
        least = 0  # nothing cancels
    else:
        least = convolve(there.astype(real), room.sizes(w), fill_value=outside, **arguments)
    return sums, room.defined(sums, least, _epsilon(w))
