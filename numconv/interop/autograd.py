"""``conv`` as primitives of HIPS autograd: differentiable as often as one likes.

``F = sum of dY * conv(X, W)`` is linear in each of its three arguments. Its gradient in one of them is a function of
the other two, and these three functions are each other's gradients:

    dF/d(dY) = Y(X, W)      dF/dX = dX(W, dY)      dF/dW = dW(X, dY)

autograd's gradients of complex numbers are transposes: nothing is conjugated.
"""

from __future__ import annotations

from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, primitive
from autograd.numpy.numpy_vjps import match_complex

from .. import dispatch
from ..api import layers
from ..arguments import Boundary, Ints, Padding, Precision
from ..select import Algorithm


def conv(
    x: Any, w: Any, bias: Any = None, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1, groups: int = 1,
    boundary: Boundary = "constant", fill_value: complex = 0, flip: bool = False, algorithm: Algorithm = "auto",
    precision: Precision = "ieee",
) -> Any:
    """``numconv.conv`` that autograd differentiates, any number of times.

    Parameters
    ----------
    x : array (N, C, *in) or (C, *in)
    w : array (K, C/groups, *k)
    bias : array (K,), optional
    stride, padding, dilation, groups, boundary, fill_value, flip, algorithm, precision
        As for ``numconv.conv``.

    Returns
    -------
    array (N, K, *out) or (K, *out)
        Of dtype ``numpy.result_type(x, w, bias)``.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``numconv.conv``.

    References
    ----------
    D. Maclaurin, D. Duvenaud, R. P. Adams, "Autograd: effortless gradients in NumPy", ICML AutoML workshop 2015.

    Examples
    --------
    >>> import autograd.numpy as np
    >>> from autograd import grad
    >>> from numconv.interop.autograd import conv
    >>> x = np.array([[1.0, 2.0, 3.0]])
    >>> grad(lambda w: np.sum(conv(x, w, padding=1)))(np.array([[[1.0, 10.0]]]))
    array([[[6., 6.]]])
    """
    y = _conv(
        x, w, stride=stride, padding=padding, dilation=dilation, groups=groups, boundary=boundary,
        fill_value=fill_value, flip=flip, algorithm=algorithm, precision=precision,
    )
    if bias is None:
        return y
    shape, need = dispatch.shape_of("bias", bias), dispatch.shape_of("w", w)[:1]
    if shape != need:
        raise ValueError(f"bias must have shape {need}, got {shape}")
    return y + anp.reshape(bias, (-1, *(1,) * (np.ndim(w) - 2)))


def conv2d(
    x: Any, w: Any, bias: Any = None, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1, groups: int = 1,
    **options: Any,
) -> Any:
    """``conv`` over two axes, arguments in the order of ``numconv.conv2d``.

    Parameters
    ----------
    x : array (N, C, H, W) or (C, H, W)
    w : array (K, C/groups, kH, kW)
    bias, stride, padding, dilation, groups
        As for ``conv``.
    **options
        ``boundary``, ``fill_value``, ``flip``, ``algorithm``, ``precision`` of ``conv``.

    Returns
    -------
    array (N, K, *out) or (K, *out)

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``conv``.

    Examples
    --------
    >>> import autograd.numpy as np
    >>> from autograd import grad
    >>> from numconv.interop.autograd import conv2d
    >>> grad(lambda x: np.sum(conv2d(x, np.ones((1, 1, 2, 2)), stride=2)))(np.zeros((1, 2, 3)))
    array([[[1., 1., 0.],
            [1., 1., 0.]]])
    """
    shape = dispatch.shape_of("w", w)
    if len(shape) != 4:
        raise ValueError(f"w must have 4 axes for conv2d, got shape {shape}")
    return conv(x, w, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, **options)


@primitive
def _conv(x: Any, w: Any, **geometry: Any) -> Any:
    """``Y``."""
    return layers.conv(x, w, **geometry)


@primitive
def _to_input(w: Any, dy: Any, shape: tuple[int, ...], **geometry: Any) -> Any:
    """``dX``, without a conjugate."""
    return layers.conv_grad_input(shape, np.conj(w), dy, **geometry)


@primitive
def _to_weight(x: Any, dy: Any, shape: tuple[int, ...], **geometry: Any) -> Any:
    """``dW``, without a conjugate."""
    return np.conj(layers.conv_grad_weight(x, shape, np.conj(dy), **geometry))


def _linear(geometry: dict[str, Any]) -> dict[str, Any]:
    """How ``conv`` changes with ``x``: without its fill value."""
    return {**geometry, "fill_value": 0}


defvjp(
    _conv,
    lambda y, x, w, **g: lambda dy: match_complex(x, _to_input(w, dy, np.shape(x), **g)),
    lambda y, x, w, **g: lambda dy: match_complex(w, _to_weight(x, dy, np.shape(w), **g)),
)
defvjp(
    _to_input,
    lambda dx, w, dy, shape, **g: lambda h: match_complex(w, _to_weight(h, dy, np.shape(w), **_linear(g))),
    lambda dx, w, dy, shape, **g: lambda h: match_complex(dy, _conv(h, w, **_linear(g))),
)
defvjp(
    _to_weight,
    lambda dw, x, dy, shape, **g: lambda h: match_complex(x, _to_input(h, dy, np.shape(x), **g)),
    lambda dw, x, dy, shape, **g: lambda h: match_complex(dy, _conv(x, h, **g)),
)
