"""What each product takes on a GPU beside its result and arrays that are ready, in bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import select
from ..geometry import ConvGeometry


def of(product: str, choice: Any, g: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes of ``forward``, ``grad_input``, ``grad_weight`` or ``transpose`` by the algorithm of a choice."""
    algorithm = getattr(choice, "grad_input" if product == "transpose" else product)
    return select.workspace(algorithm, g, dtype, "cuda", product)


def col2im(g: ConvGeometry) -> int:
    """Values beside the columns and the images: ``adjoint`` asks for these with their padding."""
    return 0


def local_grad_input(g: ConvGeometry, dtype: np.dtype) -> int:
    """What the input gradient of ``conv_local`` takes beside its arguments: ``adjoint`` asks for it, likewise."""
    return 0
