"""``convolve`` and ``correlate``: two arrays with as many axes, in SciPy's shape."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from .. import arrays, dispatch
from .._indexing import extent
from .._objects import shown
from ..arguments import MODES, Boundary, Ints, Mode, frozen, one_of, per_axis
from ..geometry import conv_geometry, plain_geometry
from ..plan import make_plan, plan_for
from ..select import Algorithm


@dispatch.or_dask
def convolve(
    x: Any, w: Any, mode: Mode = "full", *, boundary: Boundary = "constant", fill_value: complex = 0, stride: Ints = 1,
    dilation: Ints = 1, axes: Ints | None = None, algorithm: Algorithm = "auto", dtype: Any = None,
    out: Any = None,
) -> Any:
    """Convolve two arrays with as many axes; the kernel is turned.

    ``y[o] = sum over t of w[t] x[o - t]``, as ``scipy.signal.convolve`` and, with a boundary, as
    ``scipy.signal.convolve2d`` and, for odd kernels, ``scipy.ndimage.convolve``.

    Parameters
    ----------
    x : array (*in)
    w : array (*k)
    mode : {"full", "same", "valid"}
        ``"full"``: every output that meets both; ``"same"``: its middle, of the shape of ``x``; ``"valid"``: only
        where one lies wholly inside the other (they change places if ``w`` is the larger on every axis, as in SciPy).
        A kernel with an even number of values has two middles. ``"same"`` takes the one of ``scipy.signal``, which is
        ``padding="same_lower"`` of ``conv``, ``im2col`` and ``kernel2row`` (and ``origin=-1`` of
        ``scipy.ndimage.convolve``); their ``padding="same"``, the rule of XLA and torch, gives the values one pixel
        later, as ``scipy.ndimage.convolve`` does: ``conv(x[None], w[None, None], padding="same", flip=True)[0]``.
    boundary : {"constant", "edge", "reflect", "symmetric", "wrap"}
        What the pixels outside ``x`` hold, in the meaning of ``numpy.pad``.
    fill_value : number, default 0
        The constant.
    stride : int or ints, default 1
        Keep every stride-th value of the result.
    dilation : int or ints, default 1
        Distance between neighbouring kernel values.
    axes : int or ints, optional
        Convolve over these axes of ``x``, one for each axis of ``w``, and loop over the rest.
    algorithm : {"auto", "im2col", "kernel2row", "implicit", "direct", "winograd", "fft"}
    dtype : dtype, optional
        In which sums are kept and returned, as in ``numpy.sum``, of a kind that holds the inputs (no fractions in
        integers). Without it ``numpy.result_type(x, w)``, or that and the dtype of ``out`` where ``out`` is wider.
    out : array, optional
        Where to put the result; it may overlap an input.

    Returns
    -------
    array
        Of ``dtype``, else ``numpy.result_type(x, w)``. Integers are exact, and wrap as NumPy's do where a sum leaves
        their dtype: with neither ``dtype`` nor a wider ``out`` sums of uint8 wrap at 255, those of int8 at 127, and
        sums of bool are whether there is any. float16 is summed in float32; beyond 65504 it is infinity.

    Raises
    ------
    ValueError
        If shapes, modes or sizes do not fit; arrays have at most 29 axes that are convolved.
    TypeError
        If a dtype has no product, the arrays live in different places, or an array means more than its numbers (units,
        labels, a mask, gradients), which would be lost.
    MemoryError
        If the result would not fit, before anything is allocated.

    References
    ----------
    The seed: T.-S. Le, "Convolution: matrix computation", lecture slides, HCMUT.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> numconv.convolve([1, 2, 3], [0, 1, 10])
    array([ 0,  1, 12, 23, 30])
    >>> numconv.convolve([1, 2, 3], [1, 1, 1], "same", boundary="wrap")
    array([6, 6, 6])
    >>> pixels, pair = np.array([200, 100, 50], dtype=np.uint8), np.array([1, 1], dtype=np.uint8)
    >>> numconv.convolve(pixels, pair)
    array([200,  44, 150,  50], dtype=uint8)
    >>> numconv.convolve(pixels, pair, dtype="int32")
    array([200, 300, 150,  50], dtype=int32)
    """
    return _slide(x, w, mode, True, boundary, fill_value, stride, dilation, axes, algorithm, dtype, out)


@dispatch.or_dask
def correlate(
    x: Any, w: Any, mode: Mode = "full", *, boundary: Boundary = "constant", fill_value: complex = 0, stride: Ints = 1,
    dilation: Ints = 1, axes: Ints | None = None, algorithm: Algorithm = "auto", dtype: Any = None,
    out: Any = None,
) -> Any:
    """Cross-correlate two arrays with as many axes; the kernel is conjugated and not turned.

    ``y[o] = sum over t of conj(w[t]) x[o + t]``, with the alignment of ``scipy.signal.correlate`` and, with a
    boundary, of ``scipy.ndimage.correlate``. For even kernels and mode ``"same"``, ``scipy.signal.correlate2d`` starts
    one pixel later, and so does ``padding="same"`` of ``conv``, the rule of XLA and torch:
    ``conv(x[None], w.conj()[None, None], padding="same")[0]``; its ``"same_lower"`` is this one.

    Parameters
    ----------
    x, w, mode, boundary, fill_value, stride, dilation, axes, algorithm, dtype, out
        As for ``convolve``.

    Returns
    -------
    array
        Of ``dtype``, else ``numpy.result_type(x, w)``, in which sums of small integers wrap.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``convolve``.

    Examples
    --------
    >>> import numconv
    >>> numconv.correlate([1, 2, 3], [0, 1, 10])
    array([10, 21, 32,  3,  0])
    >>> numconv.correlate([1, 2, 3, 4], [1, 10], "valid", stride=2)
    array([21, 43])
    """
    return _slide(x, w, mode, False, boundary, fill_value, stride, dilation, axes, algorithm, dtype, out)


def _slide(
    x: Any, w: Any, mode: str, flip: bool, boundary: str, fill_value: complex, stride: Any, dilation: Any, axes: Any,
    algorithm: str, dtype: Any, out: Any,
) -> Any:
    mode = one_of("mode", mode, MODES)
    (x, w, out), give = dispatch.read(x=x, w=w, out=out)
    (x, w), dtype = arrays.summands(dtype, out, x=x, w=w)
    kernel = w if flip else w.conj()
    dilation = frozen(dilation, "dilation")
    if axes is None and (x.ndim or w.ndim) and not (mode == "valid" and _inside(x.shape, w.shape, dilation)):
        plan = plan_for(
            plain_geometry, x.shape, w.shape, dtype, algorithm, mode=mode, stride=stride, dilation=dilation,
            boundary=boundary, fill_value=fill_value, flip=flip,
        )
        return give(plan.forward_of(x, kernel, None, out))
    if x.ndim == w.ndim == 0 and (axes is None or _normal_axes(axes, 0) == ()):  # points are rows of one pixel
        if out is not None:
            arrays.check_shape("out", out, ())
        row = _slide(
            x.reshape(1), w.reshape(1), mode, flip, boundary, fill_value, stride, dilation, None, algorithm, dtype,
            None if out is None else out.reshape(1),
        )
        return give(row.reshape(()))
    arguments: dict[str, Any] = {"boundary": boundary, "fill_value": fill_value, "flip": flip}
    chosen = tuple(range(x.ndim)) if axes is None else _normal_axes(axes, x.ndim)
    if w.ndim != len(chosen):
        raise ValueError(f"w must have one axis for each of axes={chosen}, got shape {w.shape}")
    size = tuple(x.shape[a] for a in chosen)
    if mode == "valid" and _inside(size, w.shape, dilation):
        y = _exchanged(x, _spread(kernel, dilation), chosen, dtype, stride, algorithm, arguments)
    else:
        plain = plain_geometry(size, w.shape, mode, stride=stride, dilation=dilation, **arguments)
        rows = _rows(x, chosen, dtype)
        geometry = conv_geometry(
            rows.shape, (1, 1, *w.shape), stride=stride, dilation=dilation, padding=plain.padding, **arguments
        )
        y = make_plan(geometry, dtype, dispatch.choose_device(), algorithm).forward(
            rows, kernel.reshape(1, 1, *w.shape)
        )
    rest = [n for a, n in enumerate(x.shape) if a not in chosen]
    y = np.moveaxis(y.reshape(*rest, *y.shape[2:]), range(-len(chosen), 0), chosen)
    return give(arrays.deliver(lambda target: np.copyto(target, y), y.shape, dtype, out, x, w))


def _rows(x: np.ndarray, chosen: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """``x`` with the axes that are convolved last and all others as a batch, ``(rest, 1, *in)``."""
    moved = np.moveaxis(x, chosen, range(-len(chosen), 0))
    rest, size = moved.shape[: x.ndim - len(chosen)], moved.shape[x.ndim - len(chosen) :]
    return arrays.ready(moved, dtype).reshape(prod(rest), 1, *size)


def _exchanged(
    x: np.ndarray, spread: np.ndarray, chosen: tuple[int, ...], dtype: np.dtype, stride: Any, algorithm: str,
    arguments: dict[str, Any],
) -> np.ndarray:
    """The valid part where the kernel is the larger: it becomes the input, and every row of ``x`` a kernel over it."""
    rows = _rows(x, chosen, dtype)
    over, one = (1, 1, *spread.shape), (1, *rows.shape[1:])
    for_one = make_plan(conv_geometry(over, one, **arguments), dtype, dispatch.choose_device(), algorithm)
    spread = spread.reshape(over)
    if for_one.algorithm in ("im2col", "fft") and dispatch.device_of(rows) == "cpu":
        # BLAS rounds a row in another way beside others, and how many kernels there are decides how FFT cuts the input
        y = np.empty((1, len(rows), *for_one.geometry.out), dtype)
        for r in range(len(rows)):
            for_one.forward(spread, rows[r : r + 1], out=y[:, r : r + 1])
    else:
        plan = make_plan(conv_geometry(over, rows.shape, **arguments), dtype, for_one.device, for_one.algorithm)
        y = plan.forward(spread, rows)
    if not arguments["flip"]:
        y = np.flip(y, tuple(range(2, y.ndim)))  # a correlation seen from the other array runs backwards
    steps = per_axis("stride", stride, spread.ndim - 2, 1)
    return y[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]


def _spread(w: np.ndarray, dilation: Any) -> np.ndarray:
    """The kernel with its dilation filled with zeros."""
    spacing = per_axis("dilation", dilation, w.ndim, 1)
    spread = np.zeros(tuple(map(extent, w.shape, spacing)), dtype=w.dtype, like=w)
    spread[tuple(slice(None, None, distance) for distance in spacing)] = w
    return spread


@lru_cache(maxsize=1024, typed=True)
def _inside(size: tuple[int, ...], kernel: tuple[int, ...], dilation: Any) -> bool:
    """Whether the kernel, spread out, is the larger on every axis (and not equal)."""
    if len(size) != len(kernel):
        return False
    spread = tuple(map(extent, kernel, per_axis("dilation", dilation, len(kernel), 1)))
    return size != spread and all(0 < a <= b for a, b in zip(size, spread, strict=True))


def _normal_axes(axes: Any, ndim: int) -> tuple[int, ...]:
    given = frozen(axes, "axes")
    chosen = given if isinstance(given, tuple) else (given,)
    for axis in chosen:
        if type(axis) is not int:
            raise TypeError(f"axes must be an int or ints, got {shown(given)}")
        if not -ndim <= axis < ndim:
            raise ValueError(f"axes must lie between {-ndim} and {ndim - 1} for x with {ndim} axes, got {shown(given)}")
    spatial_axes = tuple(axis % ndim for axis in chosen)
    if len(set(spatial_axes)) != len(spatial_axes):
        raise ValueError(f"axes must be different from each other, got {shown(given)}")
    return spatial_axes
