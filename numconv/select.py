"""Which algorithm serves a convolution, and which is the best for it. Nothing is measured at call time."""

from __future__ import annotations

from math import prod
from typing import Literal, get_args

import numpy as np

from .arguments import one_of
from .geometry import ConvGeometry

Algorithm = Literal["auto", "im2col", "kernel2row", "implicit", "direct", "winograd", "fft"]
ALGORITHMS: tuple[str, ...] = get_args(Algorithm)[1:]

#: What ``auto`` may take beyond inputs and outputs, in bytes.
WORKSPACE = 64 << 20


def refusal(algorithm: str, geometry: ConvGeometry, dtype: np.dtype) -> str:
    """Why an algorithm cannot serve this convolution; empty if it can."""
    if algorithm == "kernel2row" and geometry.fill_value != 0:
        return f"fill_value={geometry.fill_value!r} makes the map affine, and a matrix is linear"
    if algorithm == "winograd":
        ones = (1,) * geometry.d
        if geometry.kernel != (3, 3) or (geometry.stride, geometry.dilation) != (ones, ones):
            return (
                f"it needs a 3x3 kernel with stride 1 and dilation 1, got kernel {geometry.kernel}, "
                f"stride {geometry.stride}, dilation {geometry.dilation}"
            )
    if algorithm in ("winograd", "fft") and dtype.kind not in "fc":
        return f"it computes in floating point, which is not exact for {dtype}"
    return ""


def choose(algorithm: str, geometry: ConvGeometry, dtype: np.dtype) -> str:
    """The algorithm asked for, if it can serve; for ``"auto"`` the one expected to be the fastest.

    Raises
    ------
    ValueError
        If there is no such algorithm, or it cannot serve this convolution; the message says why.
    """
    one_of("algorithm", algorithm, get_args(Algorithm))
    if algorithm != "auto":
        why_not = refusal(algorithm, geometry, dtype)
        if why_not:
            raise ValueError(f"algorithm {algorithm!r} cannot serve this convolution: {why_not}")
        return algorithm
    channels, kernels = geometry.C // geometry.groups, geometry.K // geometry.groups
    if channels * kernels <= 4 or kernels == 1:
        return "direct"  # a matrix with one row, or nearly: nothing to reuse
    stored = geometry.N * geometry.C * prod(geometry.kernel) * prod(geometry.out) * dtype.itemsize
    if dtype.kind == "c" and stored <= WORKSPACE:
        return "im2col"  # there is no register tile for complex numbers; BLAS is worth storing X_conv for
    return "implicit"
