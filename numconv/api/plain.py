"""``convolve`` and ``correlate``: two arrays with as many axes, in SciPy's shape."""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from .. import _memory, arrays, dispatch
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
        If result, copies of inputs and workspace together would not fit at their peak into what the system, control
        groups and limits of the process leave; it comes before anything is taken or computed.

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
    cast = dtype is not None
    (x, w), dtype = arrays.summands(dtype, out, x=x, w=w)
    dilation = frozen(dilation, "dilation")
    way, plan, chosen = _way(
        x.shape, w.shape, dtype, mode, flip, boundary, fill_value, stride, dilation, axes, algorithm,
        dispatch.device_of(x),
    )
    if way == "plain" and (flip or w.dtype.kind != "c"):
        return give(plan.forward_of(x, w, None, out, cast))
    if way == "point":  # a row of one pixel
        if out is not None:
            arrays.check_shape("out", out, ())
        pixel = np.empty((), dtype, like=x) if out is None else out  # a library on a GPU gets whole arrays
        _slide(
            x.reshape(1), w.reshape(1), mode, flip, boundary, fill_value, stride, dilation, None, algorithm, dtype,
            pixel.reshape(1),
        )
        return give(pixel)
    shape = _shape(way, plan, x, chosen, stride)
    if out is not None:
        arrays.check_out(out, shape, dtype)
    with _asked(x, way, plan, chosen, w, flip, shape, dtype, out):
        kernel = w if flip else w.conj()
        if way == "plain":
            return give(plan.forward_of(x, kernel, None, out, cast))
        if way == "rows":
            rows = _rows(x, chosen, dtype)
            y = plan.forward_of(rows, kernel.reshape(1, 1, *w.shape), None, None, cast)
            del rows
        else:
            y = _exchanged(x, kernel, way, plan, chosen, dtype, stride, dilation, flip)
        rest = [n for a, n in enumerate(x.shape) if a not in chosen]
        y = np.moveaxis(y.reshape(*rest, *y.shape[2:]), range(-len(chosen), 0), chosen)
        if out is None and type(y) is np.ndarray and y.flags.c_contiguous:  # a library on a GPU gets whole arrays
            return give(y)
        return give(arrays.deliver(lambda target: np.copyto(target, y), shape, dtype, out, y))


def _way(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], dtype: np.dtype, mode: str, flip: bool, boundary: str,
    fill_value: complex, stride: Any, dilation: Any, axes: Any, algorithm: str, where: str = "cpu",
) -> tuple[str, Any, tuple[int, ...]]:
    """How a product is computed, its plan, and the axes that are convolved.

    ``"plain"``: as it stands; ``"rows"``: the other axes are a batch; where the kernel is the larger it becomes the
    input and the rows of ``x`` are kernels over it, all at once (``"exchanged"``) or one at a time (``"each"``).
    """
    d = len(x_shape)
    if axes is None and (d or w_shape) and not (mode == "valid" and _inside(x_shape, w_shape, dilation)):
        plan = plan_for(
            plain_geometry, x_shape, w_shape, dtype, algorithm, mode=mode, stride=stride, dilation=dilation,
            boundary=boundary, fill_value=fill_value, flip=flip,
        )
        return "plain", plan, ()
    if d == len(w_shape) == 0 and (axes is None or _normal_axes(axes, 0) == ()):
        return "point", None, ()
    arguments: dict[str, Any] = {"boundary": boundary, "fill_value": fill_value, "flip": flip}
    chosen = tuple(range(d)) if axes is None else _normal_axes(axes, d)
    if len(w_shape) != len(chosen):
        raise ValueError(f"w must have one axis for each of axes={chosen}, got shape {w_shape}")
    size = tuple(x_shape[a] for a in chosen)
    device, rows = dispatch.choose_device(), prod(n for a, n in enumerate(x_shape) if a not in chosen)
    if mode != "valid" or not _inside(size, w_shape, dilation):
        plain = plain_geometry(size, w_shape, mode, stride=stride, dilation=dilation, **arguments)
        geometry = conv_geometry(
            (rows, 1, *size), (1, 1, *w_shape), stride=stride, dilation=dilation, padding=plain.padding, **arguments
        )
        return "rows", make_plan(geometry, dtype, device, algorithm), chosen
    over = (1, 1, *map(extent, w_shape, per_axis("dilation", dilation, len(w_shape), 1)))
    for_one = make_plan(conv_geometry(over, (1, 1, *size), **arguments), dtype, device, algorithm)
    if for_one.algorithm in ("im2col", "fft") and where == "cpu":
        # BLAS rounds a row in another way beside others, and how many kernels there are decides how FFT cuts the input
        return "each", for_one, chosen
    geometry = conv_geometry(over, (rows, 1, *size), **arguments)
    return "exchanged", make_plan(geometry, dtype, for_one.device, for_one.algorithm), chosen


def _shape(way: str, plan: Any, x: Any, chosen: tuple[int, ...], stride: Any) -> tuple[int, ...]:
    """The shape of the result."""
    if way == "plain":
        return tuple(plan.output_shape)
    out = plan.geometry.out
    if way != "rows":
        out = [-(-n // step) for n, step in zip(out, per_axis("stride", stride, len(chosen), 1), strict=True)]
    shape = list(x.shape)
    for axis, n in zip(chosen, out, strict=True):
        shape[axis] = n
    return tuple(shape)


def taken(
    way: str, plan: Any, chosen: tuple[int, ...], x: Any, w: Any, flip: bool, shape: tuple[int, ...], dtype: np.dtype,
    out: Any = None,
) -> int:
    """Bytes that a product takes at its peak beside ``x`` and ``w``, which may be ``arrays.Ready``."""
    item, computed = dtype.itemsize, arrays.computed_in(dtype)
    kernel = 0 if flip or w.dtype.kind != "c" else w.size * w.dtype.itemsize
    if way == "plain":
        straight = out is not None and arrays.takes_straight(out, computed, (x, w))
        return kernel + int(plan._taken("forward", arrays.copied(computed, x, w), straight))
    last = chosen == tuple(range(x.ndim - len(chosen), x.ndim))
    rows = 0 if last and arrays.fits(x, dtype) else x.size * item
    again = 0 if computed == dtype else computed.itemsize
    values = prod(shape)
    if way == "rows":
        first = rows + kernel + plan._taken("forward", x.size * again + arrays.copied(computed, w))
        direct = last
    else:
        spread = prod(plan.geometry.size)
        copies = (0 if w.dtype == computed else spread * computed.itemsize) + again * prod(plan.kernel_shape)
        values = prod(plan.geometry.out) * (x.size // max(prod(plan.geometry.kernel), 1))
        each = values * item if way == "each" else 0
        product = plan._taken("forward", copies, straight=way == "each")
        first = rows + kernel + spread * w.dtype.itemsize + each + product
        direct = last and flip and values == prod(shape)
    if out is None:
        second = 0 if direct else prod(shape) * item
    else:
        second = 0 if arrays.takes_straight(out, dtype, ()) else prod(shape) * item
    return int(max(first, values * item + second))


def product_of(
    x: arrays.Ready, w: arrays.Ready, fill_value: Any, arguments: dict[str, Any]
) -> tuple[tuple[int, ...], int]:
    """The shape of ``convolve`` of these, which have one dtype, and the bytes that it takes at its peak."""
    arguments = {"axes": None, **arguments, "fill_value": fill_value}
    return _product_of(x, w, tuple((name, frozen(value, name)) for name, value in arguments.items()))


@lru_cache(maxsize=256, typed=True)
def _product_of(x: arrays.Ready, w: arrays.Ready, arguments: tuple[tuple[str, Any], ...]) -> tuple[Any, int]:
    find = dict(arguments)
    way, plan, chosen = _way(x.shape, w.shape, x.dtype, flip=True, **find)
    if way == "point":
        return (), 0
    shape = _shape(way, plan, x, chosen, find["stride"])
    return shape, taken(way, plan, chosen, x, w, True, shape, x.dtype)


def _asked(
    x: Any, way: str, plan: Any, chosen: tuple[int, ...], w: Any, flip: bool, shape: tuple[int, ...], dtype: np.dtype,
    out: Any,
) -> Any:
    """Memory for all of it; on a GPU each part asks for its own."""
    if "cuda" in (dispatch.device_of(x), plan.device):
        return nullcontext()
    nbytes = taken(way, plan, chosen, x, w, flip, shape, dtype, out)
    what = f"this convolution by {plan.algorithm!r}, with a result of shape {shape},"
    return _memory.required(nbytes, what, "use smaller pieces, or fewer rows at a time")


def _rows(x: np.ndarray, chosen: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """``x`` with the axes that are convolved last and all others as a batch, ``(rest, 1, *in)``."""
    moved = np.moveaxis(x, chosen, range(-len(chosen), 0))
    rest, size = moved.shape[: x.ndim - len(chosen)], moved.shape[x.ndim - len(chosen) :]
    return arrays.ready(moved, dtype).reshape(prod(rest), 1, *size)


def _exchanged(
    x: np.ndarray, w: np.ndarray, way: str, plan: Any, chosen: tuple[int, ...], dtype: np.dtype, stride: Any,
    dilation: Any, flip: bool,
) -> np.ndarray:
    """The valid part where the kernel is the larger: it becomes the input, and every row of ``x`` a kernel over it."""
    rows, spread = _rows(x, chosen, dtype), _spread(w, dilation).reshape(plan.input_shape)
    if way == "each":
        y: np.ndarray = np.empty((1, len(rows), *plan.geometry.out), dtype, like=rows)
        for r in range(len(rows)):
            plan.forward_of(spread, rows[r : r + 1], None, y[:, r : r + 1], True)
    else:
        y = plan.forward_of(spread, rows, None, None, True)
    if not flip:
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
