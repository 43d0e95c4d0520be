"""``conv`` as autograd functions of torch: differentiable as often as one likes.

The three products are each other's gradients. For ``Y = conv(X, W)``, its adjoints ``dX(dY, W)`` and ``dW(X, dY)``,

    the gradients of   Y(X, W)     are   dX(G, W)  and  dW(X, G)
                       dX(dY, W)         Y(G, W)   and  dW(G, dY)
                       dW(X, dY)         dX(dY, G) and  Y(X, G)

for complex numbers as well, where torch's gradient is the Hermitian adjoint. Tensors on the CPU are read and given back
without a copy.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import torch

from ..arguments import Boundary, Ints, Padding
from ..geometry import conv_geometry
from ..plan import ConvPlan, make_plan, plan_for
from ..select import Algorithm


def conv(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None, *, stride: Ints = 1, padding: Padding = 0,
    dilation: Ints = 1, groups: int = 1, boundary: Boundary = "constant", fill_value: complex = 0, flip: bool = False,
    algorithm: Algorithm = "auto",
) -> torch.Tensor:
    """``numconv.conv`` that torch differentiates, any number of times.

    Parameters
    ----------
    x : tensor (N, C, *in) or (C, *in)
    w : tensor (K, C/groups, *k)
    bias : tensor (K,), optional
    stride, padding, dilation, groups, boundary, fill_value, flip, algorithm
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
    tensors = {"x": x, "w": w} if bias is None else {"x": x, "w": w, "bias": bias}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch tensor, got {type(tensor).__name__}")
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
    plan = plan_for(
        conv_geometry, tuple(x.shape), tuple(w.shape), _numpy_dtype(dtype), algorithm, stride=stride, padding=padding,
        dilation=dilation, groups=groups, boundary=boundary, fill_value=fill_value, flip=flip,
    )
    result: torch.Tensor = _Forward.apply(*(t.to(dtype) for t in tensors.values()), *(None,) * (bias is None), plan)
    return result


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
        ``boundary``, ``fill_value``, ``flip``, ``algorithm`` of ``conv``.

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
    if getattr(w, "ndim", 4) != 4:
        raise ValueError(f"w must have 4 axes for conv2d, got shape {tuple(w.shape)}")
    return conv(x, w, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, **options)


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    try:
        return np.dtype(str(dtype).removeprefix("torch."))
    except TypeError:
        raise TypeError(f"x, w and bias must promote to a dtype that NumPy has, got {dtype}") from None


def _linear(plan: ConvPlan) -> ConvPlan:
    """The plan without its fill value: how ``forward`` changes with ``x``."""
    if plan.geometry.fill_value == 0:
        return plan
    return make_plan(replace(plan.geometry, fill_value=0), plan.dtype, plan.device, plan.asked)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(x: Any, w: Any, bias: Any, plan: ConvPlan) -> Any:
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
            db = dy.sum([axis for axis in range(dy.ndim) if axis != channels])
        return dx, dw, db, None


class _GradInput(torch.autograd.Function):
    @staticmethod
    def forward(dy: Any, w: Any, plan: ConvPlan) -> Any:
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


class _GradWeight(torch.autograd.Function):
    @staticmethod
    def forward(x: Any, dy: Any, plan: ConvPlan) -> Any:
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
