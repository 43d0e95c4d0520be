"""``conv``, its transpose and its gradients: channelled arrays, in the shape of a network's layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from .. import arrays, dispatch
from ..arguments import Boundary, Ints, Padding, Precision, frozen
from ..geometry import conv_geometry, transpose_geometry
from ..plan import plan_for
from ..select import Algorithm

# where the caller gives a shape, errors name that argument
_geometry_of_grad_input = partial(conv_geometry, names=("input_shape", "w"))
_geometry_of_grad_weight = partial(conv_geometry, names=("x", "kernel_shape"))


@dispatch.or_dask
def conv(
    x: Any, w: Any, bias: Any = None, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1, groups: int = 1,
    boundary: Boundary = "constant", fill_value: complex = 0, flip: bool = False, algorithm: Algorithm = "auto",
    precision: Precision = "ieee", dtype: Any = None, out: Any = None,
) -> Any:
    """Convolve channelled arrays over any number of axes, as a network's layer does.

    ``y[n,k,o] = bias[k] + sum over c, t of w[k,c,t] x[n, c, o * stride - lo + t * dilation]``; as matrices
    ``Y_flat = W_flat @ X_conv = W_conv @ X_flat``.

    Parameters
    ----------
    x : array (N, C, *in) or (C, *in)
    w : array (K, C/groups, *k)
    bias : array (K,), optional
    stride, dilation : int or one int per axis, default 1
    padding : int, one int per axis, one (lo, hi) pair per axis, "valid", "same", "same_lower" or "full", default 0
        ``"same"`` gives ``ceil(in / stride)`` outputs, the odd pixel of padding at the end, as XLA and torch have it;
        ``"same_lower"`` has it at the start. They differ for even kernels, by one pixel, and ``"same_lower"`` is the
        one that SciPy and mode ``"same"`` of ``convolve`` and ``correlate`` follow (for stride 1). ``"full"`` pads
        ``dilation * (k - 1)`` on both sides.
    groups : int, default 1
        Divides C and K; group g of the kernels sees group g of the channels.
    boundary, fill_value
        What padded pixels hold, as for ``convolve``.
    flip : bool, default False
        Turn the kernel: true convolution.
    algorithm : {"auto", "im2col", "kernel2row", "implicit", "direct", "winograd", "fft"}
    precision : {"ieee", "tf32", "tf32x3"}
        How precise products of float32 and float16 must be at least; only ``"implicit"`` on a GPU gives less than
        ``"ieee"``, all of float32. ``"tf32"`` rounds float32 to 10 bits behind the point, for tensor cores;
        ``"tf32x3"`` makes three such products of each, nearly as precise as float32. Sums are float32 in all of them.
    dtype, out
        As for ``convolve``.

    Returns
    -------
    array (N, K, *out) or (K, *out)
        ``out = floor((in + lo + hi - dilation * (k - 1) - 1) / stride) + 1``, of ``dtype``, else
        ``numpy.result_type(x, w, bias)``, in which sums of small integers wrap: uint8 at 255.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``convolve``.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> x, w = np.arange(12).reshape(1, 3, 4), np.ones((2, 1, 2, 2), dtype=int)
    >>> numconv.conv(x, w, [0, 100], stride=2, padding="same")
    array([[[ 10,  18],
            [ 17,  21]],
    <BLANKLINE>
           [[110, 118],
            [117, 121]]])
    """
    (x, w, bias, out), give = dispatch.read(x=x, w=w, bias=bias, out=out)
    cast = dtype is not None
    (x, w, bias), dtype = arrays.summands(dtype, out, x=x, w=w, bias=bias)
    plan = plan_for(
        conv_geometry, x.shape, w.shape, dtype, algorithm, precision, stride=stride, padding=padding,
        dilation=dilation, groups=groups, boundary=boundary, fill_value=fill_value, flip=flip,
    )
    return give(plan.forward_of(x, w, bias, out, cast))


def _need_axes(name: str, w: Any, d: int) -> None:
    shape = dispatch.shape_of("w", w)
    if len(shape) != d + 2:
        raise ValueError(f"w must have {d + 2} axes for {name}, got shape {tuple(shape)}")


def conv1d(
    x: Any, w: Any, bias: Any = None, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1, groups: int = 1,
    **options: Any,
) -> Any:
    """``conv`` over one axis, arguments in torch's order.

    Parameters
    ----------
    x : array (N, C, in) or (C, in)
    w : array (K, C/groups, k)
    bias, stride, padding, dilation, groups
        As for ``conv``; ``padding="same_lower"`` is SciPy's ``"same"`` for even kernels.
    **options
        ``boundary``, ``fill_value``, ``flip``, ``algorithm``, ``precision``, ``dtype``, ``out`` of ``conv``.

    Returns
    -------
    array (N, K, out) or (K, out)

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``convolve``.

    Examples
    --------
    >>> import numconv
    >>> numconv.conv1d([[1, 2, 3]], [[[1, 10]]], padding=1)
    array([[10, 21, 32,  3]])
    """
    _need_axes("conv1d", w, 1)
    return conv(x, w, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, **options)


def conv2d(
    x: Any, w: Any, bias: Any = None, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1, groups: int = 1,
    **options: Any,
) -> Any:
    """``conv`` over two axes, arguments in torch's order.

    Parameters
    ----------
    x : array (N, C, H, W) or (C, H, W)
    w : array (K, C/groups, kH, kW)
    bias, stride, padding, dilation, groups
        As for ``conv``; ``padding="same_lower"`` is SciPy's ``"same"`` for even kernels.
    **options
        ``boundary``, ``fill_value``, ``flip``, ``algorithm``, ``precision``, ``dtype``, ``out`` of ``conv``.

    Returns
    -------
    array (N, K, *out) or (K, *out)

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``convolve``.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> numconv.conv2d(np.eye(3)[None], np.ones((1, 1, 3, 3)), padding=1, boundary="wrap")
    array([[[3., 3., 3.],
            [3., 3., 3.],
            [3., 3., 3.]]])
    """
    _need_axes("conv2d", w, 2)
    return conv(x, w, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, **options)


def conv3d(
    x: Any, w: Any, bias: Any = None, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1, groups: int = 1,
    **options: Any,
) -> Any:
    """``conv`` over three axes, arguments in torch's order.

    Parameters
    ----------
    x : array (N, C, D, H, W) or (C, D, H, W)
    w : array (K, C/groups, kD, kH, kW)
    bias, stride, padding, dilation, groups
        As for ``conv``; ``padding="same_lower"`` is SciPy's ``"same"`` for even kernels.
    **options
        ``boundary``, ``fill_value``, ``flip``, ``algorithm``, ``precision``, ``dtype``, ``out`` of ``conv``.

    Returns
    -------
    array (N, K, *out) or (K, *out)

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``convolve``.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> numconv.conv3d(np.ones((1, 4, 4, 4)), np.ones((2, 1, 2, 2, 2)), stride=2).shape
    (2, 2, 2, 2)
    """
    _need_axes("conv3d", w, 3)
    return conv(x, w, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, **options)


@dispatch.or_dask
def conv_transpose(
    x: Any, w: Any, bias: Any = None, *, stride: Ints = 1, padding: Padding = 0, output_padding: Ints = 0,
    groups: int = 1, dilation: Ints = 1, boundary: Boundary = "constant", flip: bool = False,
    algorithm: Algorithm = "auto", precision: Precision = "ieee", dtype: Any = None, out: Any = None,
) -> Any:
    """The transposed convolution, ``Y_flat = W_conv.T @ X_flat``, over any number of axes.

    ``W_conv`` is the matrix of ``conv`` with the same arguments, which runs from the output back to the input.

    Parameters
    ----------
    x : array (N, C, *in) or (C, *in)
    w : array (C, K/groups, *k)
        In torch's order.
    bias : array (K,), optional
    stride, padding, dilation, groups, boundary, flip, algorithm, precision, dtype, out
        As for ``conv``, of the convolution that is transposed; ``"same"`` and ``"same_lower"`` give ``in * stride``
        outputs, from which an even kernel cuts the odd pixel at the end or at the start.
    output_padding : int or one int per axis, default 0
        More outputs at the end, where a stride leaves it open how many there were; less than stride or dilation, and
        0 with ``"same"`` and ``"same_lower"``, which leave nothing open.

    Returns
    -------
    array (N, K, *out) or (K, *out)
        ``out = (in - 1) * stride - lo - hi + dilation * (k - 1) + output_padding + 1``, of ``dtype``, else
        ``numpy.result_type(x, w, bias)``, in which sums of small integers wrap.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``convolve``.

    Examples
    --------
    >>> import numconv
    >>> numconv.conv_transpose([[1, 2]], [[[1, 10, 100]]], stride=2)
    array([[  1,  10, 102,  20, 200]])
    """
    (x, w, bias, out), give = dispatch.read(x=x, w=w, bias=bias, out=out)
    cast = dtype is not None
    (x, w, bias), dtype = arrays.summands(dtype, out, x=x, w=w, bias=bias)
    plan = plan_for(
        transpose_geometry, x.shape, w.shape, dtype, algorithm, precision, stride=stride, padding=padding,
        output_padding=output_padding, dilation=dilation, groups=groups, boundary=boundary, flip=flip,
    )
    return give(plan._transpose_of(x, w, bias, out, cast))


def conv_transpose1d(
    x: Any, w: Any, bias: Any = None, stride: Ints = 1, padding: Padding = 0, output_padding: Ints = 0,
    groups: int = 1, dilation: Ints = 1, **options: Any,
) -> Any:
    """``conv_transpose`` over one axis, arguments in torch's order.

    Parameters
    ----------
    x : array (N, C, in) or (C, in)
    w : array (C, K/groups, k)
    bias, stride, padding, output_padding, groups, dilation
        As for ``conv_transpose``.
    **options
        ``boundary``, ``flip``, ``algorithm``, ``precision``, ``dtype``, ``out`` of ``conv_transpose``.

    Returns
    -------
    array (N, K, out) or (K, out)

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``convolve``.

    Examples
    --------
    >>> import numconv
    >>> numconv.conv_transpose1d([[1, 2]], [[[1, 10]]])
    array([[ 1, 12, 20]])
    """
    _need_axes("conv_transpose1d", w, 1)
    return conv_transpose(
        x, w, bias, stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation,
        **options,
    )


def conv_transpose2d(
    x: Any, w: Any, bias: Any = None, stride: Ints = 1, padding: Padding = 0, output_padding: Ints = 0,
    groups: int = 1, dilation: Ints = 1, **options: Any,
) -> Any:
    """``conv_transpose`` over two axes, arguments in torch's order.

    Parameters
    ----------
    x : array (N, C, H, W) or (C, H, W)
    w : array (C, K/groups, kH, kW)
    bias, stride, padding, output_padding, groups, dilation
        As for ``conv_transpose``.
    **options
        ``boundary``, ``flip``, ``algorithm``, ``precision``, ``dtype``, ``out`` of ``conv_transpose``.

    Returns
    -------
    array (N, K, *out) or (K, *out)

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``convolve``.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> numconv.conv_transpose2d(np.ones((1, 2, 2)), np.ones((1, 3, 2, 2)), stride=2).shape
    (3, 4, 4)
    """
    _need_axes("conv_transpose2d", w, 2)
    return conv_transpose(
        x, w, bias, stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation,
        **options,
    )


def conv_transpose3d(
    x: Any, w: Any, bias: Any = None, stride: Ints = 1, padding: Padding = 0, output_padding: Ints = 0,
    groups: int = 1, dilation: Ints = 1, **options: Any,
) -> Any:
    """``conv_transpose`` over three axes, arguments in torch's order.

    Parameters
    ----------
    x : array (N, C, D, H, W) or (C, D, H, W)
    w : array (C, K/groups, kD, kH, kW)
    bias, stride, padding, output_padding, groups, dilation
        As for ``conv_transpose``.
    **options
        ``boundary``, ``flip``, ``algorithm``, ``precision``, ``dtype``, ``out`` of ``conv_transpose``.

    Returns
    -------
    array (N, K, *out) or (K, *out)

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``convolve``.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> numconv.conv_transpose3d(np.ones((1, 2, 2, 2)), np.ones((1, 1, 3, 3, 3)), stride=2, padding=1).shape
    (1, 3, 3, 3)
    """
    _need_axes("conv_transpose3d", w, 3)
    return conv_transpose(
        x, w, bias, stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation,
        **options,
    )


@dispatch.or_dask
def conv_grad_input(
    input_shape: Sequence[int], w: Any, dy: Any, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1,
    groups: int = 1, boundary: Boundary = "constant", fill_value: complex = 0, flip: bool = False,
    algorithm: Algorithm = "auto", precision: Precision = "ieee", dtype: Any = None, out: Any = None,
) -> Any:
    """Gradient of ``conv`` to its input: ``dX_flat = W_conv^H @ dY_flat``, the exact adjoint in ``x``.

    Parameters
    ----------
    input_shape : ints
        Shape of ``x``, ``(N, C, *in)`` or ``(C, *in)``.
    w : array (K, C/groups, *k)
    dy : array (N, K, *out) or (K, *out)
        Gradient to the output.
    stride, padding, dilation, groups, boundary, fill_value, flip, algorithm, precision, dtype, out
        As for ``conv``; ``padding="same_lower"`` is SciPy's ``"same"`` for even kernels.

    Returns
    -------
    array of ``input_shape``
        Of ``dtype``, else ``numpy.result_type(w, dy)``, in which sums of small integers wrap. For complex numbers the
        Hermitian adjoint: the kernel is conjugated.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``convolve``.

    Examples
    --------
    >>> import numconv
    >>> numconv.conv_grad_input((1, 3), [[[1, 10]]], [[1, 2]])
    array([[ 1, 12, 20]])
    """
    (w, dy, out), give = dispatch.read(w=w, dy=dy, out=out)
    cast = dtype is not None
    (w, dy), dtype = arrays.summands(dtype, out, w=w, dy=dy)
    plan = plan_for(
        _geometry_of_grad_input, frozen(input_shape, "input_shape"), w.shape, dtype, algorithm, precision,
        stride=stride, padding=padding, dilation=dilation, groups=groups, boundary=boundary, fill_value=fill_value,
        flip=flip,
    )
    return give(plan._grad_input_of(dy, w, out, cast))


@dispatch.or_dask
def conv_grad_weight(
    x: Any, kernel_shape: Sequence[int], dy: Any, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1,
    groups: int = 1, boundary: Boundary = "constant", fill_value: complex = 0, flip: bool = False,
    algorithm: Algorithm = "auto", precision: Precision = "ieee", dtype: Any = None, out: Any = None,
) -> Any:
    """Gradient of ``conv`` to its kernel: ``dW_flat = dY_flat @ X_conv^H``, the exact adjoint in ``w``.

    Parameters
    ----------
    x : array (N, C, *in) or (C, *in)
    kernel_shape : ints
        Shape of ``w``, ``(K, C/groups, *k)``.
    dy : array (N, K, *out) or (K, *out)
        Gradient to the output.
    stride, padding, dilation, groups, boundary, fill_value, flip, algorithm, precision, dtype, out
        As for ``conv``; ``padding="same_lower"`` is SciPy's ``"same"`` for even kernels.

    Returns
    -------
    array of ``kernel_shape``
        Of ``dtype``, else ``numpy.result_type(x, dy)``, in which sums of small integers wrap. For complex numbers the
        Hermitian adjoint: ``x`` is conjugated.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``convolve``.

    Examples
    --------
    >>> import numconv
    >>> numconv.conv_grad_weight([[1, 10, 100]], (1, 1, 2), [[1, 2]])
    array([[[ 21, 210]]])
    """
    (x, dy, out), give = dispatch.read(x=x, dy=dy, out=out)
    cast = dtype is not None
    (x, dy), dtype = arrays.summands(dtype, out, x=x, dy=dy)
    plan = plan_for(
        _geometry_of_grad_weight, x.shape, frozen(kernel_shape, "kernel_shape"), dtype, algorithm, precision,
        stride=stride, padding=padding, dilation=dilation, groups=groups, boundary=boundary, fill_value=fill_value,
        flip=flip,
    )
    return give(plan._grad_weight_of(x, dy, out, cast))
