"""numconv's functions of tensors as torch differentiates them: as often as one likes, and under ``vmap``.

The three products are each other's gradients. For ``Y = conv(X, W)``, its adjoints ``dX(dY, W)`` and ``dW(X, dY)``,

    the gradients of   Y(X, W)     are   dX(G, W)  and  dW(X, G)
                       dX(dY, W)         Y(G, W)   and  dW(G, dY)
                       dW(X, dY)         dX(dY, G) and  Y(X, G)

for complex numbers as well, where torch's gradient is the Hermitian adjoint. The other functions are made of these, and
of ``im2col`` and ``col2im``, which are each other's adjoints. Tensors on the CPU go in and come back without a copy.

Names and arguments are those of numconv, but for ``out=``: torch differentiates no function that writes into a tensor.
``dtype=`` may be torch's or NumPy's; without it results have the dtype that torch promotes the tensors to. Under
``torch.compile`` a call is computed as it is, outside of the graph; numconv's own functions are not made for that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce, wraps
from typing import Any, TypeVar, cast

import numpy as np
import torch

from .. import arrays, dispatch, matrices
from ..api import layers, local, missing, plain
from ..api import matrices as windows
from ..arguments import MODES, Boundary, Ints, Mode, Padding, Precision, as_int, frozen, mode_padding, one_of, per_axis
from ..geometry import ConvGeometry, conv_geometry, transpose_geometry, window_geometry
from ..plan import ConvPlan, make_plan, plan_for
from ..select import Algorithm

F = TypeVar("F", bound=Callable[..., Any])


def _outside_graphs(function: F) -> F:
    """A function that ``torch.compile`` leaves alone. Its compiler, slow to import, is imported by who compiles."""
    left_alone: list[F] = []

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*arguments, **options)
        if not left_alone:
            left_alone.append(torch.compiler.disable(function))
        return left_alone[0](*arguments, **options)

    # what ``torch.compiler.disable`` says of a function, so that its caller's graph breaks here and not inside
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    call._torchdynamo_disable_msg = "numconv computes outside of the graph"  # type: ignore[attr-defined]
    return cast(F, call)


# layers ---------------------------------------------------------------------------------------------------------------


@_outside_graphs
def conv(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None, *, stride: Ints = 1, padding: Padding = 0,
    dilation: Ints = 1, groups: int = 1, boundary: Boundary = "constant", fill_value: complex = 0, flip: bool = False,
    algorithm: Algorithm = "auto", precision: Precision = "ieee", dtype: Any = None,
) -> torch.Tensor:
    """``numconv.conv`` that torch differentiates, any number of times.

    Parameters
    ----------
    x : tensor (N, C, *in) or (C, *in)
    w : tensor (K, C/groups, *k)
    bias : tensor (K,), optional
    stride, padding, dilation, groups, boundary, fill_value, flip, algorithm, precision, dtype
        As for ``numconv.conv``.

    Returns
    -------
    tensor (N, K, *out) or (K, *out)
        Of the dtype that torch promotes the tensors to. Gradients of tensors that need none are not computed.

    Raises
    ------
    ValueError, MemoryError
        As for ``numconv.conv``.
    TypeError
        If an argument is no tensor, or of a dtype that NumPy has not (bfloat16).

    Examples
    --------
    >>> import torch
    >>> from numconv.interop.torch import conv
    >>> x = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    >>> y = conv(x, torch.tensor([[[1.0, 10.0]]]), padding=1, boundary="wrap")
    >>> y
    tensor([[13., 21., 32., 13.]], grad_fn=<_ForwardBackward>)
    >>> y.sum().backward()
    >>> x.grad
    tensor([[21., 11., 12.]])
    """
    (x, w, bias), sums = _summands(dtype, x=x, w=w, bias=bias)
    plan = plan_for(
        conv_geometry, tuple(x.shape), tuple(w.shape), sums, algorithm, precision, stride=stride,
        padding=padding, dilation=dilation, groups=groups, boundary=boundary, fill_value=fill_value, flip=flip,
    )
    return _forward(x, w, bias, plan)


@_outside_graphs
def conv1d(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None, stride: Ints = 1, padding: Padding = 0,
    dilation: Ints = 1, groups: int = 1, **options: Any,
) -> torch.Tensor:
    """``conv`` over one axis, arguments in the order of ``torch.nn.functional.conv1d``.

    Parameters
    ----------
    x : tensor (N, C, in) or (C, in)
    w : tensor (K, C/groups, k)
    bias, stride, padding, dilation, groups, **options
        As for ``conv``.

    Returns
    -------
    tensor (N, K, out) or (K, out)
    """
    layers._need_axes("conv1d", w, 1)
    return conv(x, w, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, **options)


@_outside_graphs
def conv2d(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None, stride: Ints = 1, padding: Padding = 0,
    dilation: Ints = 1, groups: int = 1, **options: Any,
) -> torch.Tensor:
    """``conv`` over two axes, arguments in the order of ``torch.nn.functional.conv2d``.

    Parameters
    ----------
    x : tensor (N, C, H, W) or (C, H, W)
    w : tensor (K, C/groups, kH, kW)
    bias, stride, padding, dilation, groups
        As for ``conv``.
    **options
        ``boundary``, ``fill_value``, ``flip``, ``algorithm``, ``precision``, ``dtype`` of ``conv``.

    Returns
    -------
    tensor (N, K, *out) or (K, *out)

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``conv``.

    Examples
    --------
    >>> import torch
    >>> from numconv.interop.torch import conv2d
    >>> w = torch.ones(1, 1, 3, 3, requires_grad=True)
    >>> conv2d(torch.eye(3)[None], w, padding=1, boundary="wrap").sum().backward()
    >>> w.grad[0, 0]
    tensor([[3., 3., 3.],
            [3., 3., 3.],
            [3., 3., 3.]])
    """
    layers._need_axes("conv2d", w, 2)
    return conv(x, w, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, **options)


@_outside_graphs
def conv3d(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None, stride: Ints = 1, padding: Padding = 0,
    dilation: Ints = 1, groups: int = 1, **options: Any,
) -> torch.Tensor:
    """``conv`` over three axes, arguments in the order of ``torch.nn.functional.conv3d``.

    Parameters
    ----------
    x : tensor (N, C, D, H, W) or (C, D, H, W)
    w : tensor (K, C/groups, kD, kH, kW)
    bias, stride, padding, dilation, groups, **options
        As for ``conv``.

    Returns
    -------
    tensor (N, K, *out) or (K, *out)
    """
    layers._need_axes("conv3d", w, 3)
    return conv(x, w, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, **options)


@_outside_graphs
def conv_transpose(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None, *, stride: Ints = 1, padding: Padding = 0,
    output_padding: Ints = 0, groups: int = 1, dilation: Ints = 1, boundary: Boundary = "constant", flip: bool = False,
    algorithm: Algorithm = "auto", precision: Precision = "ieee", dtype: Any = None,
) -> torch.Tensor:
    """``numconv.conv_transpose`` that torch differentiates.

    Parameters
    ----------
    x : tensor (N, C, *in) or (C, *in)
    w : tensor (C, K/groups, *k)
    bias : tensor (K,), optional
    stride, padding, output_padding, groups, dilation, boundary, flip, algorithm, precision, dtype
        As for ``numconv.conv_transpose``.

    Returns
    -------
    tensor (N, K, *out) or (K, *out)

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``conv``.

    Examples
    --------
    >>> import torch
    >>> from numconv.interop.torch import conv_transpose
    >>> x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    >>> conv_transpose(x, torch.tensor([[[1.0, 10.0, 100.0]]]), stride=2)
    tensor([[  1.,  10., 102.,  20., 200.]], grad_fn=<_GradInputBackward>)
    """
    (x, w, bias), sums = _summands(dtype, x=x, w=w, bias=bias)
    plan = plan_for(
        transpose_geometry, tuple(x.shape), tuple(w.shape), sums, algorithm, precision, stride=stride,
        padding=padding, output_padding=output_padding, dilation=dilation, groups=groups, boundary=boundary, flip=flip,
    )
    y = _grad_input(x, w.conj(), plan)
    if bias is None:
        return y
    arrays.check_shape("bias", cast(Any, bias), (plan.geometry.C,))
    return y + bias.reshape(-1, *(1,) * plan.geometry.d)


@_outside_graphs
def conv_transpose1d(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None, stride: Ints = 1, padding: Padding = 0,
    output_padding: Ints = 0, groups: int = 1, dilation: Ints = 1, **options: Any,
) -> torch.Tensor:
    """``conv_transpose`` over one axis, arguments in the order of ``torch.nn.functional.conv_transpose1d``.

    Parameters
    ----------
    x : tensor (N, C, in) or (C, in)
    w : tensor (C, K/groups, k)
    bias, stride, padding, output_padding, groups, dilation, **options
        As for ``conv_transpose``.

    Returns
    -------
    tensor (N, K, out) or (K, out)
    """
    layers._need_axes("conv_transpose1d", w, 1)
    return conv_transpose(
        x, w, bias, stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation,
        **options,
    )


@_outside_graphs
def conv_transpose2d(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None, stride: Ints = 1, padding: Padding = 0,
    output_padding: Ints = 0, groups: int = 1, dilation: Ints = 1, **options: Any,
) -> torch.Tensor:
    """``conv_transpose`` over two axes, arguments in the order of ``torch.nn.functional.conv_transpose2d``.

    Parameters
    ----------
    x : tensor (N, C, H, W) or (C, H, W)
    w : tensor (C, K/groups, kH, kW)
    bias, stride, padding, output_padding, groups, dilation, **options
        As for ``conv_transpose``.

    Returns
    -------
    tensor (N, K, *out) or (K, *out)
    """
    layers._need_axes("conv_transpose2d", w, 2)
    return conv_transpose(
        x, w, bias, stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation,
        **options,
    )


@_outside_graphs
def conv_transpose3d(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None, stride: Ints = 1, padding: Padding = 0,
    output_padding: Ints = 0, groups: int = 1, dilation: Ints = 1, **options: Any,
) -> torch.Tensor:
    """``conv_transpose`` over three axes, arguments in the order of ``torch.nn.functional.conv_transpose3d``.

    Parameters
    ----------
    x : tensor (N, C, D, H, W) or (C, D, H, W)
    w : tensor (C, K/groups, kD, kH, kW)
    bias, stride, padding, output_padding, groups, dilation, **options
        As for ``conv_transpose``.

    Returns
    -------
    tensor (N, K, *out) or (K, *out)
    """
    layers._need_axes("conv_transpose3d", w, 3)
    return conv_transpose(
        x, w, bias, stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation,
        **options,
    )


@_outside_graphs
def conv_grad_input(
    input_shape: Sequence[int], w: torch.Tensor, dy: torch.Tensor, *, stride: Ints = 1, padding: Padding = 0,
    dilation: Ints = 1, groups: int = 1, boundary: Boundary = "constant", fill_value: complex = 0, flip: bool = False,
    algorithm: Algorithm = "auto", precision: Precision = "ieee", dtype: Any = None,
) -> torch.Tensor:
    """``numconv.conv_grad_input`` that torch differentiates.

    Parameters
    ----------
    input_shape : ints
    w : tensor (K, C/groups, *k)
    dy : tensor (N, K, *out) or (K, *out)
    stride, padding, dilation, groups, boundary, fill_value, flip, algorithm, precision, dtype
        As for ``numconv.conv_grad_input``.

    Returns
    -------
    tensor of ``input_shape``
    """
    (w, dy), sums = _summands(dtype, w=w, dy=dy)
    plan = plan_for(
        layers._geometry_of_grad_input, frozen(input_shape, "input_shape"), tuple(w.shape), sums, algorithm,
        precision, stride=stride, padding=padding, dilation=dilation, groups=groups, boundary=boundary,
        fill_value=fill_value, flip=flip,
    )
    return _grad_input(dy, w, plan)


@_outside_graphs
def conv_grad_weight(
    x: torch.Tensor, kernel_shape: Sequence[int], dy: torch.Tensor, *, stride: Ints = 1, padding: Padding = 0,
    dilation: Ints = 1, groups: int = 1, boundary: Boundary = "constant", fill_value: complex = 0, flip: bool = False,
    algorithm: Algorithm = "auto", precision: Precision = "ieee", dtype: Any = None,
) -> torch.Tensor:
    """``numconv.conv_grad_weight`` that torch differentiates.

    Parameters
    ----------
    x : tensor (N, C, *in) or (C, *in)
    kernel_shape : ints
    dy : tensor (N, K, *out) or (K, *out)
    stride, padding, dilation, groups, boundary, fill_value, flip, algorithm, precision, dtype
        As for ``numconv.conv_grad_weight``.

    Returns
    -------
    tensor of ``kernel_shape``
    """
    (x, dy), sums = _summands(dtype, x=x, dy=dy)
    plan = plan_for(
        layers._geometry_of_grad_weight, tuple(x.shape), frozen(kernel_shape, "kernel_shape"), sums, algorithm,
        precision, stride=stride, padding=padding, dilation=dilation, groups=groups, boundary=boundary,
        fill_value=fill_value, flip=flip,
    )
    return _grad_weight(x, dy, plan)


# plain tensors --------------------------------------------------------------------------------------------------------


@_outside_graphs
def convolve(
    x: torch.Tensor, w: torch.Tensor, mode: Mode = "full", *, boundary: Boundary = "constant", fill_value: complex = 0,
    stride: Ints = 1, dilation: Ints = 1, axes: Ints | None = None, algorithm: Algorithm = "auto", dtype: Any = None,
) -> torch.Tensor:
    """``numconv.convolve`` that torch differentiates.

    Parameters
    ----------
    x : tensor (*in)
    w : tensor (*k)
    mode, boundary, fill_value, stride, dilation, axes, algorithm, dtype
        As for ``numconv.convolve``.

    Returns
    -------
    tensor

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``conv``.

    Examples
    --------
    >>> import torch
    >>> from numconv.interop.torch import convolve
    >>> w = torch.tensor([0.0, 1.0, 10.0], requires_grad=True)
    >>> convolve(torch.tensor([1.0, 2.0, 3.0]), w).sum().backward()
    >>> w.grad
    tensor([6., 6., 6.])
    """
    (x, w), _ = _summands(dtype, x=x, w=w)
    return _slide(x, w, mode, True, boundary, fill_value, stride, dilation, axes, algorithm)


@_outside_graphs
def correlate(
    x: torch.Tensor, w: torch.Tensor, mode: Mode = "full", *, boundary: Boundary = "constant", fill_value: complex = 0,
    stride: Ints = 1, dilation: Ints = 1, axes: Ints | None = None, algorithm: Algorithm = "auto", dtype: Any = None,
) -> torch.Tensor:
    """``numconv.correlate`` that torch differentiates.

    Parameters
    ----------
    x : tensor (*in)
    w : tensor (*k)
    mode, boundary, fill_value, stride, dilation, axes, algorithm, dtype
        As for ``numconv.convolve``.

    Returns
    -------
    tensor
    """
    (x, w), _ = _summands(dtype, x=x, w=w)
    return _slide(x, w.conj(), mode, False, boundary, fill_value, stride, dilation, axes, algorithm)


def _slide(
    x: torch.Tensor, w: torch.Tensor, mode: str, flip: bool, boundary: Boundary, fill_value: complex, stride: Ints,
    dilation: Ints, axes: Ints | None, algorithm: Algorithm,
) -> torch.Tensor:
    """Plain tensors, by ``conv`` of rows ``(rest, 1, *in)`` with one kernel."""
    mode = one_of("mode", mode, MODES)
    if axes is None and x.ndim == w.ndim == 0:
        return x * w
    chosen = tuple(range(x.ndim)) if axes is None else plain._normal_axes(axes, x.ndim)
    d = len(chosen)
    if w.ndim != d or not d:
        raise ValueError(f"w must have one axis for each of axes={chosen}, got shape {tuple(w.shape)}")
    size, last = tuple(x.shape[a] for a in chosen), tuple(range(x.ndim - d, x.ndim))
    moved = x.movedim(chosen, last)
    rest = moved.shape[: x.ndim - d]
    rows = moved.reshape(rest.numel(), 1, *size)
    steps, gaps = per_axis("stride", stride, d, 1), per_axis("dilation", dilation, d, 1)
    options: dict[str, Any] = {
        "boundary": boundary, "fill_value": fill_value, "flip": flip, "algorithm": algorithm,
    }  # fmt: skip
    if mode == "valid" and plain._inside(size, tuple(w.shape), gaps):  # the kernel is the larger: they change places
        spread = w.new_zeros([(k - 1) * gap + 1 for k, gap in zip(w.shape, gaps, strict=True)])
        spread[tuple(slice(None, None, gap) for gap in gaps)] = w
        y = conv(spread[None, None], rows, **options)
        y = y if flip else y.flip(tuple(range(2, y.ndim)))
        y = y[(..., *(slice(None, None, step) for step in steps))]
    else:
        padding = mode_padding(mode, tuple(w.shape), gaps)
        y = conv(rows, w[None, None], stride=steps, dilation=gaps, padding=padding, **options)
    return y.reshape(*rest, *y.shape[2:]).movedim(last, chosen)


@_outside_graphs
def normalized_convolve(
    x: torch.Tensor, w: torch.Tensor, mode: Mode = "full", *, mask: torch.Tensor | None = None,
    boundary: Boundary = "constant", fill_value: complex = 0, stride: Ints = 1, dilation: Ints = 1,
    axes: Ints | None = None, algorithm: Algorithm = "auto", dtype: Any = None,
) -> torch.Tensor:
    """``numconv.normalized_convolve`` that torch differentiates, in the data and in the weights.

    Parameters
    ----------
    x : tensor (*in)
    w : tensor (*k)
    mask : tensor of bool (*in), optional
    mode, boundary, fill_value, stride, dilation, axes, algorithm, dtype
        As for ``numconv.normalized_convolve``.

    Returns
    -------
    tensor
        Where it is NaN no gradient flows; none goes to what is missing.
    """
    (x, w), sums = _summands(dtype, x=x, w=w)
    if sums.kind in "biu" and dtype is not None:
        raise TypeError(f"dtype must be floating or complex for an average, got {sums}")
    result = _torch_dtype(np.dtype(np.float64) if sums.kind in "biu" else sums)
    computed = torch.float32 if result == torch.float16 else result
    x, w = x.to(computed), w.to(computed)
    there = ~torch.isnan(x) if mask is None else ~_as_mask(mask, x)
    fill, outside = missing._outside(boundary, fill_value)
    algorithm = "direct" if algorithm == "auto" else algorithm
    arguments: dict[str, Any] = {
        "mode": mode, "boundary": boundary, "stride": stride, "dilation": dilation, "axes": axes,
    }  # fmt: skip
    with torch.no_grad():
        (known, weights), give = dispatch.read(mask=there, w=w)
        total = missing._total(weights, weights.dtype)
        _, found = missing._sums(known, weights, total, outside, {**arguments, "algorithm": algorithm})
        defined = give(found)
    y = convolve(x.where(there, x.new_zeros(())), w, fill_value=fill, algorithm=algorithm, **arguments)
    algorithm = "direct" if algorithm == "kernel2row" else algorithm
    weights = convolve(there.to(computed), w, fill_value=outside, algorithm=algorithm, **arguments)
    average = y / weights.where(defined, weights.new_ones(()))
    return average.where(defined, average.new_full((), float("nan"))).to(result)


# one kernel for each output -------------------------------------------------------------------------------------------


@_outside_graphs
def conv_local(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None, *, stride: Ints = 1, padding: Padding = 0,
    dilation: Ints = 1, groups: int = 1, boundary: Boundary = "constant", fill_value: complex = 0, flip: bool = False,
    dtype: Any = None,
) -> torch.Tensor:
    """``numconv.conv_local`` that torch differentiates.

    Parameters
    ----------
    x : tensor (N, C, *in) or (*in)
    w : tensor (*out, K, C/groups, *k) or (*out, *k)
    bias : tensor (K,), optional
    stride, padding, dilation, groups, boundary, fill_value, flip, dtype
        As for ``numconv.conv_local``.

    Returns
    -------
    tensor (N, K, *out) or (*out)

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``conv``.

    Examples
    --------
    >>> import torch
    >>> from numconv.interop.torch import conv_local
    >>> w = torch.tensor([[1.0, 0.0], [1.0, 1.0]], requires_grad=True)
    >>> conv_local(torch.tensor([1.0, 10.0, 100.0]), w).sum().backward()
    >>> w.grad
    tensor([[  1.,  10.],
            [ 10., 100.]])
    """
    (x, w, bias), _ = _summands(dtype, x=x, w=w, bias=bias)
    return _forward(x, w, bias, _local(
        tuple(x.shape), tuple(w.shape), stride=stride, padding=padding, dilation=dilation, groups=groups,
        boundary=boundary, fill_value=fill_value, flip=flip,
    ))


@_outside_graphs
def conv_local_grad_input(
    input_shape: Sequence[int], w: torch.Tensor, dy: torch.Tensor, *, stride: Ints = 1, padding: Padding = 0,
    dilation: Ints = 1, groups: int = 1, boundary: Boundary = "constant", fill_value: complex = 0, flip: bool = False,
    dtype: Any = None,
) -> torch.Tensor:
    """``numconv.conv_local_grad_input`` that torch differentiates.

    Parameters
    ----------
    input_shape : ints
    w : tensor (*out, K, C/groups, *k) or (*out, *k)
    dy : tensor (N, K, *out) or (*out)
    stride, padding, dilation, groups, boundary, fill_value, flip, dtype
        As for ``numconv.conv_local``.

    Returns
    -------
    tensor of ``input_shape``
    """
    (w, dy), _ = _summands(dtype, w=w, dy=dy)
    return _grad_input(dy, w, _local(
        frozen(input_shape, "input_shape"), tuple(w.shape), ("input_shape", "w"), stride=stride,
        padding=padding, dilation=dilation, groups=groups, boundary=boundary, fill_value=fill_value, flip=flip,
    ))


@_outside_graphs
def conv_local_grad_weight(
    x: torch.Tensor, kernel_shape: Sequence[int], dy: torch.Tensor, *, stride: Ints = 1, padding: Padding = 0,
    dilation: Ints = 1, groups: int = 1, boundary: Boundary = "constant", fill_value: complex = 0, flip: bool = False,
    dtype: Any = None,
) -> torch.Tensor:
    """``numconv.conv_local_grad_weight`` that torch differentiates.

    Parameters
    ----------
    x : tensor (N, C, *in) or (*in)
    kernel_shape : ints
    dy : tensor (N, K, *out) or (*out)
    stride, padding, dilation, groups, boundary, fill_value, flip, dtype
        As for ``numconv.conv_local``.

    Returns
    -------
    tensor of ``kernel_shape``
    """
    (x, dy), _ = _summands(dtype, x=x, dy=dy)
    return _grad_weight(x, dy, _local(
        tuple(x.shape), frozen(kernel_shape, "kernel_shape"), ("x", "kernel_shape"), stride=stride,
        padding=padding, dilation=dilation, groups=groups, boundary=boundary, fill_value=fill_value, flip=flip,
    ))


# the matrices ---------------------------------------------------------------------------------------------------------


@_outside_graphs
def im2col(
    x: torch.Tensor, kernel_size: Ints, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1,
    boundary: Boundary = "constant", fill_value: Any = 0, flip: bool = True,
) -> torch.Tensor:
    """``numconv.im2col`` that torch differentiates.

    Parameters
    ----------
    x : tensor (*in), (C, *in) or (N, C, *in)
    kernel_size, stride, padding, dilation, boundary, fill_value, flip
        As for ``numconv.im2col``.

    Returns
    -------
    tensor (prod k, prod out), (C * prod k, prod out) or (N, C * prod k, prod out)
    """
    _need_tensors(x=x)
    return _im2col(x, window_geometry(
        tuple(x.shape), kernel_size, stride=stride, padding=padding, dilation=dilation, boundary=boundary,
        fill_value=fill_value, flip=flip,
    ))


@_outside_graphs
def col2im(
    cols: torch.Tensor, input_shape: Sequence[int], kernel_size: Ints, *, stride: Ints = 1, padding: Padding = 0,
    dilation: Ints = 1, boundary: Boundary = "constant", fill_value: Any = 0, flip: bool = True, reduce: str = "sum",
) -> torch.Tensor:
    """``numconv.col2im`` that torch differentiates.

    Parameters
    ----------
    cols : tensor of the shape that ``im2col`` gives for ``input_shape``
    input_shape, kernel_size, stride, padding, dilation, boundary, fill_value, flip, reduce
        As for ``numconv.col2im``.

    Returns
    -------
    tensor of ``input_shape``
    """
    reduce = one_of("reduce", reduce, ("sum", "mean"))
    _need_tensors(cols=cols)
    g = window_geometry(
        input_shape, kernel_size, name="input_shape", stride=stride, padding=padding, dilation=dilation,
        boundary=boundary, fill_value=fill_value, flip=flip,
    )
    if reduce == "sum":
        return _col2im(cols, g)
    sums = _col2im(cols if cols.dtype.is_floating_point or cols.dtype.is_complex else cols.double(), g)
    return sums / torch.from_numpy(np.maximum(matrices.coverage(g), 1)).to(sums.device)


@_outside_graphs
def unfold(
    x: torch.Tensor, kernel_size: Ints, dilation: Ints = 1, padding: Padding = 0, stride: Ints = 1
) -> torch.Tensor:
    """``numconv.unfold`` that torch differentiates: ``torch.nn.functional.unfold`` for any number of axes.

    Parameters
    ----------
    x : tensor (N, C, *in) or (C, *in)
    kernel_size, dilation, padding, stride
        As for ``numconv.unfold``.

    Returns
    -------
    tensor (N, C * prod k, prod out) or (C * prod k, prod out)

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``conv``.

    Examples
    --------
    >>> import torch
    >>> from numconv.interop.torch import unfold
    >>> x = torch.ones(1, 3, requires_grad=True)
    >>> unfold(x, (2,)).sum().backward()
    >>> x.grad
    tensor([[1., 2., 1.]])
    """
    _need_tensors(x=x)
    kernel = windows.unfold_kernel(tuple(x.shape), kernel_size, dilation, padding, stride)
    return im2col(x, kernel, dilation=dilation, padding=padding, stride=stride, flip=False)


@_outside_graphs
def fold(
    cols: torch.Tensor, output_size: Ints, kernel_size: Ints, dilation: Ints = 1, padding: Padding = 0,
    stride: Ints = 1,
) -> torch.Tensor:
    """``numconv.fold`` that torch differentiates: ``torch.nn.functional.fold`` for any number of axes.

    Parameters
    ----------
    cols : tensor (N, C * prod k, prod out) or (C * prod k, prod out)
    output_size, kernel_size, dilation, padding, stride
        As for ``numconv.fold``.

    Returns
    -------
    tensor (N, C, *output_size) or (C, *output_size)
    """
    _need_tensors(cols=cols)
    shape, kernel = windows.fold_shapes(tuple(cols.shape), output_size, kernel_size, dilation, padding, stride)
    return col2im(cols, shape, kernel, dilation=dilation, padding=padding, stride=stride, flip=False)


@_outside_graphs
def csr_matvec(data: torch.Tensor, indices: torch.Tensor, indptr: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``numconv.csr_matvec`` that torch differentiates, in the entries and in the vector.

    Parameters
    ----------
    data, indices, indptr : tensor (nnz,), int tensor (nnz,), int tensor (rows + 1,)
    x : tensor (columns,)

    Returns
    -------
    tensor (rows,)
    """
    _need_tensors(indices=indices, indptr=indptr)
    (data, x), _ = _summands(None, data=data, x=x)
    return _csr_product(data, indices, indptr, x, None)


@_outside_graphs
def csr_rmatvec(
    data: torch.Tensor, indices: torch.Tensor, indptr: torch.Tensor, y: torch.Tensor, columns: int
) -> torch.Tensor:
    """``numconv.csr_rmatvec`` that torch differentiates, in the entries and in the vector.

    Parameters
    ----------
    data, indices, indptr : tensor (nnz,), int tensor (nnz,), int tensor (rows + 1,)
    y : tensor (rows,)
    columns : int

    Returns
    -------
    tensor (columns,)
    """
    _need_tensors(indices=indices, indptr=indptr)
    (data, y), _ = _summands(None, data=data, y=y)
    return _csr_product(data, indices, indptr, y, as_int("columns", columns, 0))


# dtypes ---------------------------------------------------------------------------------------------------------------


def _need_tensors(**tensors: Any) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch tensor, got {type(tensor).__name__}")


def _summands(dtype: Any, **tensors: Any) -> tuple[list[Any], np.dtype]:
    """The tensors, those that are there, in one dtype: the one asked for, or what torch promotes them to."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    _need_tensors(**given)
    promoted = reduce(torch.promote_types, (tensor.dtype for tensor in given.values()))
    sums = _numpy_dtype(promoted)
    if dtype is not None:
        sums = arrays.sum_dtype(dtype, None, **{name: _numpy_dtype(tensor.dtype) for name, tensor in given.items()})
        promoted = _torch_dtype(sums)
    return [tensor if tensor is None else tensor.to(promoted) for tensor in tensors.values()], sums


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    try:
        return np.dtype(str(dtype).removeprefix("torch."))
    except TypeError:
        raise TypeError(f"the tensors must promote to a dtype that NumPy has, got {dtype}") from None


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    return cast(torch.dtype, getattr(torch, dtype.name))


def _as_mask(mask: Any, x: torch.Tensor) -> torch.Tensor:
    """The mask, looked at."""
    _need_tensors(mask=mask)
    with torch.no_grad():
        (seen, _), _ = dispatch.read(mask=mask, x=x)
    missing._as_mask(seen, tuple(x.shape))
    return cast(torch.Tensor, mask)


# what torch differentiates --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Local:
    """The three products of ``conv_local``, as a plan has those of ``conv``."""

    geometry: ConvGeometry
    input_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    arguments: dict[str, Any]

    def forward(self, x: Any, w: Any, bias: Any) -> Any:
        return local.conv_local(x, w, bias, **self.arguments)

    def grad_input(self, dy: Any, w: Any) -> Any:
        return local.conv_local_grad_input(self.input_shape, w, dy, **self.arguments)

    def grad_weight(self, x: Any, dy: Any) -> Any:
        return local.conv_local_grad_weight(x, self.kernel_shape, dy, **self.arguments)


def _local(
    input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], names: tuple[str, str] = ("x", "w"), **arguments: Any
) -> _Local:
    geometry = local._geometry(input_shape, kernel_shape, names, **arguments)
    return _Local(geometry, input_shape, kernel_shape, arguments)


_Products = ConvPlan | _Local


def _linear(plan: _Products) -> _Products:
    """The plan without its fill value: how ``forward`` changes with ``x``."""
    if plan.geometry.fill_value == 0:
        return plan
    without = replace(plan.geometry, fill_value=0)
    if isinstance(plan, _Local):
        return replace(plan, geometry=without, arguments={**plan.arguments, "fill_value": 0})
    return make_plan(without, plan.dtype, plan.device, plan.asked, plan.precision)


class _Function(torch.autograd.Function):
    """A function of tensors, under ``vmap`` one sample after the other."""

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, *arguments: Any) -> Any:
        samples = [
            cls.apply(*(a if dim is None else a.select(dim, i) for a, dim in zip(arguments, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        return torch.stack(samples), 0


class _Forward(_Function):
    @staticmethod
    def forward(x: Any, w: Any, bias: Any, plan: _Products) -> Any:
        return plan.forward(x, w, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, w, _, ctx.plan = inputs
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, w if ctx.needs_input_grad[0] else None)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, w = ctx.saved_tensors
        dx = _GradInput.apply(dy, w, ctx.plan) if ctx.needs_input_grad[0] else None
        dw = _GradWeight.apply(x, dy, ctx.plan) if ctx.needs_input_grad[1] else None
        db = None
        if ctx.needs_input_grad[2]:
            channels = dy.ndim - ctx.plan.geometry.d - 1
            db = dy.sum([axis for axis in range(dy.ndim) if axis != channels]).reshape(-1)
        return dx, dw, db, None


class _GradInput(_Function):
    @staticmethod
    def forward(dy: Any, w: Any, plan: _Products) -> Any:
        return plan.grad_input(dy, w)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dy, w, plan = inputs
        ctx.plan = _linear(plan)
        ctx.save_for_backward(dy if ctx.needs_input_grad[1] else None, w if ctx.needs_input_grad[0] else None)

    @staticmethod
    def backward(ctx: Any, dx: Any) -> Any:
        dy, w = ctx.saved_tensors
        to_dy = _Forward.apply(dx, w, None, ctx.plan) if ctx.needs_input_grad[0] else None
        to_w = _GradWeight.apply(dx, dy, ctx.plan) if ctx.needs_input_grad[1] else None
        return to_dy, to_w, None


class _GradWeight(_Function):
    @staticmethod
    def forward(x: Any, dy: Any, plan: _Products) -> Any:
        return plan.grad_weight(x, dy)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, dy, ctx.plan = inputs
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, dy if ctx.needs_input_grad[0] else None)

    @staticmethod
    def backward(ctx: Any, dw: Any) -> Any:
        x, dy = ctx.saved_tensors
        to_x = _GradInput.apply(dy, dw, ctx.plan) if ctx.needs_input_grad[0] else None
        to_dy = _Forward.apply(x, dw, None, ctx.plan) if ctx.needs_input_grad[1] else None
        return to_x, to_dy, None


class _Im2col(_Function):
    @staticmethod
    def forward(x: Any, g: ConvGeometry) -> Any:
        (pixels,), give = dispatch.read(x=x)
        return give(matrices.im2col(pixels, g, None, dispatch.asked_for()))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, g = inputs
        ctx.geometry = replace(g, fill_value=0)

    @staticmethod
    def backward(ctx: Any, dX: Any) -> Any:
        return _Col2im.apply(dX, ctx.geometry), None


class _Col2im(_Function):
    @staticmethod
    def forward(cols: Any, g: ConvGeometry) -> Any:
        (X_conv,), give = dispatch.read(cols=cols)
        return give(matrices.col2im(X_conv, g, "sum", None, dispatch.asked_for()))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, g = inputs
        ctx.geometry = replace(g, fill_value=0)

    @staticmethod
    def backward(ctx: Any, dx: Any) -> Any:
        return _Im2col.apply(dx, ctx.geometry), None


class _CsrProduct(_Function):
    """``A @ v``, or ``A.T @ v`` where ``A`` has so many ``columns``."""

    @staticmethod
    def forward(data: Any, indices: Any, indptr: Any, v: Any, columns: int | None) -> Any:
        if columns is None:
            return windows.csr_matvec(data, indices, indptr, v)
        return windows.csr_rmatvec(data, indices, indptr, v, columns)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        data, indices, indptr, v, ctx.columns = inputs
        needs_data, _, _, needs_v, _ = ctx.needs_input_grad
        ctx.length = v.shape[0]
        ctx.save_for_backward(data if needs_v else None, indices, indptr, v if needs_data else None)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        data, indices, indptr, v = ctx.saved_tensors
        to_data = to_v = None
        if ctx.needs_input_grad[0]:
            rows = torch.arange(indptr.shape[0] - 1, device=indptr.device).repeat_interleave(indptr.diff())
            used = indices[: rows.shape[0]].long()
            of_rows, of_columns = (g, v.conj()) if ctx.columns is None else (v.conj(), g)
            to_data = of_rows[rows] * of_columns[used]
            beyond = indices.shape[0] - rows.shape[0]  # entries in no row
            to_data = torch.cat([to_data, to_data.new_zeros(beyond)]) if beyond else to_data
        if ctx.needs_input_grad[3]:
            columns = ctx.length if ctx.columns is None else None
            to_v = _CsrProduct.apply(data.conj(), indices, indptr, g, columns)
        return to_data, None, None, to_v, None


_forward = cast(Callable[..., torch.Tensor], _Forward.apply)
_grad_input = cast(Callable[..., torch.Tensor], _GradInput.apply)
_grad_weight = cast(Callable[..., torch.Tensor], _GradWeight.apply)
_im2col = cast(Callable[..., torch.Tensor], _Im2col.apply)
_col2im = cast(Callable[..., torch.Tensor], _Col2im.apply)
_csr_product = cast(Callable[..., torch.Tensor], _CsrProduct.apply)
