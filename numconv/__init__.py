"""Convolution as matrix computation, compiled.

``im2col`` lays the input out as a matrix, ``kernel2row`` the kernel; both products and both gradients follow:

    Y  = W_flat  @ X_conv    = W_conv @ X_flat
    dW = dY_flat @ X_conv.T
    dX = W_conv.T @ dY_flat

Names load on first use, so that importing numconv imports neither numba nor SciPy nor NumPy.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api.layers import (
        conv,
        conv1d,
        conv2d,
        conv3d,
        conv_grad_input,
        conv_grad_weight,
        conv_transpose,
        conv_transpose1d,
        conv_transpose2d,
        conv_transpose3d,
    )
    from .api.local import conv_local, conv_local_grad_input, conv_local_grad_weight, kernel2row_local
    from .api.matrices import col2im, csr_matvec, csr_rmatvec, fold, im2col, kernel2row, unfold
    from .api.missing import normalized_convolve, normalized_operator
    from .api.plain import convolve, correlate
    from .api.plans import plan_conv, plan_convolve
    from .dispatch import devices, use_device
    from .plan import ConvPlan
    from .warm import warmup

_ROOMS = {
    "api.layers": (
        "conv", "conv1d", "conv2d", "conv3d", "conv_grad_input", "conv_grad_weight", "conv_transpose",
        "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    ),
    "api.local": ("conv_local", "conv_local_grad_input", "conv_local_grad_weight", "kernel2row_local"),
    "api.matrices": ("col2im", "csr_matvec", "csr_rmatvec", "fold", "im2col", "kernel2row", "unfold"),
    "api.missing": ("normalized_convolve", "normalized_operator"),
    "api.plain": ("convolve", "correlate"),
    "api.plans": ("plan_conv", "plan_convolve"),
    "dispatch": ("devices", "use_device"),
    "plan": ("ConvPlan",),
    "warm": ("warmup",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'numconv' has no attribute {name!r}")
    value = getattr(import_module(f"numconv.{_ROOM_OF[name]}"), name)
    globals()[name] = value  # from now on a plain attribute
    if "numconv.overloads" in sys.modules:  # numba is there and has asked what it may compile
        sys.modules["numconv.overloads"].register(name, value)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOM_OF})


__all__ = [
    "ConvPlan", "__version__", "col2im", "conv", "conv1d", "conv2d", "conv3d", "conv_grad_input", "conv_grad_weight",
    "conv_local", "conv_local_grad_input", "conv_local_grad_weight", "conv_transpose", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d", "convolve", "correlate", "csr_matvec", "csr_rmatvec", "devices", "fold",
    "im2col", "kernel2row", "kernel2row_local", "normalized_convolve", "normalized_operator", "plan_conv",
    "plan_convolve", "unfold", "use_device", "warmup",
]
