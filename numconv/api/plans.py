"""``plan_conv`` and ``plan_convolve``: a convolution decided before there are arrays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .. import arrays, dispatch
from ..arguments import PRECISIONS, as_int, one_of
from ..geometry import ConvGeometry, conv_geometry, plain_geometry
from ..plan import ConvPlan, make_plan
from ..select import ASKED


def plan_conv(
    input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], *, dtype: Any = np.float32, device: Any = "auto",
    algorithm: str = "auto", precision: str = "ieee", stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, boundary: str = "constant", fill_value: complex = 0, flip: bool = False,
    max_bytes: int | None = None,
) -> ConvPlan:
    """Plan a channelled convolution, ``conv``.

    Parameters
    ----------
    input_shape : tuple of int
        ``(N, C, *in)`` or ``(C, *in)``.
    kernel_shape : tuple of int
        ``(K, C/groups, *k)``.
    dtype : dtype, default float32
        Of the arrays, the sums and the result, whatever the dtype of an ``out``: sums of small integers wrap.
    device : {"auto", "cpu", "cuda"}
        Where NumPy arrays are computed.
    algorithm : {"auto", "im2col", "kernel2row", "implicit", "direct", "winograd", "fft"}
    precision : {"ieee", "tf32", "tf32x3"}
        How precise products must be at least, as for ``conv``.
    stride, padding, dilation, groups, boundary, fill_value, flip
        The geometry, as for ``conv``; ``padding="same_lower"`` is SciPy's ``"same"`` for even kernels.
    max_bytes : int, optional
        Compute tile by tile, so that ``forward`` and the gradients take at most so many bytes beside arguments and
        result; see the notes.

    Returns
    -------
    ConvPlan

    Raises
    ------
    ValueError, TypeError
        For shapes and values that do not fit, and for an algorithm that cannot serve them.

    Notes
    -----
    With ``max_bytes`` the arrays may be larger than memory: ``numpy.memmap``, or what h5py, zarr and others open, whose
    blocks are read by slices. Every tile is computed by the algorithm chosen for the whole, so its sums are the same
    and so are the bits, for integers by every algorithm and for real numbers by ``"direct"``; ``"implicit"`` and the
    others group their sums by the size of a tile and may differ in the last bit, as the weight gradient does, which
    is a sum over tiles.

    Examples
    --------
    >>> import numconv
    >>> plan = numconv.plan_conv((8, 3, 32, 32), (16, 3, 3, 3), stride=2, padding="same")
    >>> plan.output_shape
    (8, 16, 16, 16)
    >>> plan.nbytes("im2col")
    221184

    A terabyte, a hundred megabytes at a time:

    >>> plan = numconv.plan_conv((1, 6400, 6400, 6400), (1, 1, 5, 5, 5), padding="same", max_bytes=100_000_000)
    >>> plan.nbytes("workspace") <= 100_000_000
    True
    """
    geometry = conv_geometry(
        input_shape, kernel_shape, stride=stride, padding=padding, dilation=dilation, groups=groups,
        boundary=boundary, fill_value=fill_value, flip=flip, names=("input_shape", "kernel_shape"),
    )
    return _plan(geometry, dtype, device, algorithm, precision, max_bytes)


def plan_convolve(
    input_shape: tuple[int, ...], kernel_shape: tuple[int, ...], mode: str = "valid", *, dtype: Any = np.float32,
    device: Any = "auto", algorithm: str = "auto", precision: str = "ieee", stride: Any = 1, dilation: Any = 1,
    boundary: str = "constant", fill_value: complex = 0, flip: bool = True, max_bytes: int | None = None,
) -> ConvPlan:
    """Plan a convolution of plain arrays, the seed's case.

    Parameters
    ----------
    input_shape, kernel_shape : tuple of int
        ``(*in)`` and ``(*k)``.
    mode : {"valid", "same", "full"}
        As in ``scipy.signal.convolve``. For an even kernel that makes ``"same"`` what ``plan_conv`` calls
        ``padding="same_lower"``; its ``padding="same"`` gives the values one pixel later.
    dtype, device, algorithm, precision, stride, dilation, boundary, fill_value
        As for ``plan_conv``.
    flip : bool, default True
        Turn the kernel: true convolution.
    max_bytes : int, optional
        Compute tile by tile, as for ``plan_conv``.

    Returns
    -------
    ConvPlan

    Raises
    ------
    ValueError, TypeError
        For shapes and values that do not fit, and for an algorithm that cannot serve them.

    Examples
    --------
    The slides' example, 3x3 with 2x2:

    >>> import numconv, numpy as np
    >>> plan = numconv.plan_convolve((3, 3), (2, 2), dtype=np.int64)
    >>> X, W = np.arange(1, 10).reshape(3, 3), np.array([[1, 2], [3, 4]])
    >>> plan.im2col(X)
    array([[5, 6, 8, 9],
           [4, 5, 7, 8],
           [2, 3, 5, 6],
           [1, 2, 4, 5]])
    >>> W.reshape(1, 4) @ plan.im2col(X)
    array([[23, 33, 53, 63]])
    >>> plan.matrix(W) @ X.ravel()
    array([23, 33, 53, 63])
    """
    geometry = plain_geometry(
        input_shape, kernel_shape, mode, stride=stride, dilation=dilation, boundary=boundary, fill_value=fill_value,
        flip=flip, names=("input_shape", "kernel_shape"),
    )
    return _plan(geometry, dtype, device, algorithm, precision, max_bytes)


def _plan(
    geometry: ConvGeometry, dtype: Any, device: Any, algorithm: str, precision: str, max_bytes: Any
) -> ConvPlan:
    asked, least = one_of("algorithm", algorithm, ASKED), one_of("precision", precision, PRECISIONS)
    plan = make_plan(geometry, arrays.plan_dtype(dtype), dispatch.choose_device(device), asked, least)
    return plan if max_bytes is None else replace(plan, max_bytes=as_int("max_bytes", max_bytes, 1, 2**63))
