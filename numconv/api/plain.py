"""``convolve`` and ``correlate``: two arrays with as many axes, in SciPy's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import arrays, dispatch
from ..arguments import Boundary, Ints, Mode
from ..geometry import conv_geometry
from ..plan import make_plan, plain_geometry
from ..select import Algorithm


def convolve(
    x: Any, w: Any, mode: Mode = "full", *, boundary: Boundary = "constant", fill_value: complex = 0, stride: Ints = 1,
    dilation: Ints = 1, axes: Ints | None = None, algorithm: Algorithm = "auto", out: Any = None,
) -> Any:
    """Convolve two arrays with as many axes; the kernel is turned.

    ``y[o] = sum over t of w[t] x[o - t]``, as ``scipy.signal.convolve`` and, with a boundary, as
    ``scipy.signal.convolve2d`` and ``scipy.ndimage.convolve``.

    Parameters
    ----------
    x : array (*in)
    w : array (*k)
    mode : {"full", "same", "valid"}
        ``"full"``: every output that meets both; ``"same"``: its middle, of the shape of ``x``; ``"valid"``: only
        where one lies wholly inside the other (they change places if ``w`` is the larger on every axis, as in SciPy).
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
    out : array, optional
        Where to put the result; it may overlap an input.

    Returns
    -------
    array
        Of dtype ``numpy.result_type(x, w)``; integers are exact (they wrap as NumPy's do), float16 is summed in
        float32.

    Raises
    ------
    ValueError
        If shapes, modes or sizes do not fit.
    TypeError
        If a dtype has no product, or the arrays live in different places.
    MemoryError
        If the result would not fit, before anything is allocated.

    References
    ----------
    The seed: T.-S. Le, "Convolution: matrix computation", lecture slides, HCMUT.

    Examples
    --------
    >>> import numconv
    >>> numconv.convolve([1, 2, 3], [0, 1, 10])
    array([ 0,  1, 12, 23, 30])
    >>> numconv.convolve([1, 2, 3], [1, 1, 1], "same", boundary="wrap")
    array([6, 6, 6])
    """
    return _slide(x, w, mode, True, boundary, fill_value, stride, dilation, axes, algorithm, out)


def correlate(
    x: Any, w: Any, mode: Mode = "full", *, boundary: Boundary = "constant", fill_value: complex = 0, stride: Ints = 1,
    dilation: Ints = 1, axes: Ints | None = None, algorithm: Algorithm = "auto", out: Any = None,
) -> Any:
    """Cross-correlate two arrays with as many axes; the kernel is conjugated and not turned.

    ``y[o] = sum over t of conj(w[t]) x[o + t]``, with the alignment of ``scipy.signal.correlate``. (For even kernels
    and mode ``"same"``, ``scipy.signal.correlate2d`` starts one pixel later.)

    Parameters
    ----------
    x, w, mode, boundary, fill_value, stride, dilation, axes, algorithm, out
        As for ``convolve``.

    Returns
    -------
    array
        Of dtype ``numpy.result_type(x, w)``.

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
    return _slide(x, w, mode, False, boundary, fill_value, stride, dilation, axes, algorithm, out)


def _slide(
    x: Any, w: Any, mode: str, flip: bool, boundary: str, fill_value: complex, stride: Any, dilation: Any, axes: Any,
    algorithm: str, out: Any,
) -> Any:
    (x, w, out), give = dispatch.read(x=x, w=w, out=out)
    dtype = arrays.product_dtype(x=x, w=w)
    kernel = w if flip else w.conj()
    if x.ndim == w.ndim == 0:
        return give(arrays.deliver(lambda y: np.multiply(x, kernel, out=y), (), dtype, out, x, w))
    options: dict[str, Any] = {"boundary": boundary, "fill_value": fill_value, "dilation": dilation, "flip": flip}
    if axes is not None:
        return give(_slide_over(x, kernel, mode, stride, axes, algorithm, dtype, out, options))
    if mode == "valid" and dilation == 1 and x.ndim == w.ndim and _inside(x.shape, w.shape):
        y = _slide(kernel, x if flip else x.conj(), mode, flip, boundary, fill_value, 1, 1, None, algorithm, None)
        y = y if flip else y[(slice(None, None, -1),) * y.ndim]  # correlation seen from the other array runs backwards
        steps = tuple(slice(None, None, s) for s in np.broadcast_to(stride, y.ndim))
        return give(arrays.deliver(lambda target: np.copyto(target, y[steps]), y[steps].shape, dtype, out, x, w))
    geometry = plain_geometry(x.shape, w.shape, mode, stride=stride, **options)
    return give(make_plan(geometry, dtype, dispatch.choose_device(), algorithm).forward(x, kernel, out=out))


def _inside(small: Sequence[int], large: Sequence[int]) -> bool:
    return small != large and all(0 < a <= b for a, b in zip(small, large, strict=True))


def _slide_over(
    x: np.ndarray, w: np.ndarray, mode: str, stride: Any, axes: Any, algorithm: str, dtype: np.dtype,
    out: np.ndarray | None, options: dict[str, Any],
) -> np.ndarray:
    """The axes that are convolved go last, the others become a batch."""
    chosen = _normal_axes(axes, x.ndim)
    if w.ndim != len(chosen):
        raise ValueError(f"w must have one axis for each of axes={chosen}, got shape {w.shape}")
    moved = np.moveaxis(x, chosen, range(-len(chosen), 0))
    rest, size = moved.shape[: x.ndim - w.ndim], moved.shape[x.ndim - w.ndim :]
    plain = plain_geometry(size, w.shape, mode, stride=stride, **options)
    geometry = conv_geometry(
        (int(np.prod(rest, dtype=int)), 1, *size), (1, 1, *w.shape), stride=stride, padding=plain.padding, **options
    )
    plan = make_plan(geometry, dtype, dispatch.choose_device(), algorithm)
    batch = arrays.ready(moved, dtype).reshape(plan.input_shape)

    def compute(y: np.ndarray) -> None:
        result = plan.forward(batch, w.reshape(plan.kernel_shape))
        np.copyto(y, np.moveaxis(result.reshape(*rest, *plain.out), range(-len(chosen), 0), chosen))

    shape = list(x.shape)
    for axis, length in zip(chosen, plain.out, strict=True):
        shape[axis] = length
    return arrays.deliver(compute, tuple(shape), dtype, out, x, w)


def _normal_axes(axes: Any, ndim: int) -> tuple[int, ...]:
    chosen = spatial_axes = tuple(axes) if hasattr(axes, "__iter__") else (axes,)
    for axis in chosen:
        if isinstance(axis, bool) or not hasattr(axis, "__index__"):
            raise TypeError(f"axes must be an int or ints, got {axes!r}")
        if not -ndim <= axis < ndim:
            raise ValueError(f"axes must lie between {-ndim} and {ndim - 1} for x with {ndim} axes, got {axes!r}")
    spatial_axes = tuple(int(axis) % ndim for axis in chosen)
    if len(set(spatial_axes)) != len(spatial_axes):
        raise ValueError(f"axes must be different from each other, got {axes!r}")
    return spatial_axes
