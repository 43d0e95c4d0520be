"""The convolution theorem: a product of spectra, through SciPy's FFT. For kernels large enough that it pays."""

from __future__ import annotations

from math import prod

import numpy as np
import scipy.fft

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..geometry import ConvGeometry
from .im2col import im2col, unturned


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``y = crop(ifft(fft(x padded) * fft(w turned and spread by the dilation)))``, every stride-th value."""
    x = padded(x, axes, boundary, fill)
    spread, axis_numbers = spread_kernel(w, axes), tuple(range(2, w.ndim))
    # Position i of the circular product holds the window that ends at i, so the lengths need not grow by the kernel.
    lengths = [scipy.fft.next_fast_len(n, real=x.dtype.kind == "f") for n in x.shape[2:]]
    if x.dtype.kind == "f":
        forward_fft, inverse_fft = scipy.fft.rfftn, scipy.fft.irfftn
    else:
        forward_fft, inverse_fft = scipy.fft.fftn, scipy.fft.ifftn
    X = forward_fft(x, lengths, axis_numbers, workers=-1)
    W = forward_fft(np.flip(spread, axis_numbers), lengths, axis_numbers, workers=-1)
    (N, C), (K, Cg) = x.shape[:2], w.shape[:2]
    G = C // Cg if Cg else 1
    products = np.einsum(
        "ngc...,gkc...->ngk...", X.reshape(N, G, Cg, *X.shape[2:]), W.reshape(G, K // G, Cg, *W.shape[2:])
    ).reshape(N, K, *X.shape[2:])
    full = inverse_fft(products, lengths, axis_numbers, workers=-1)
    ends = tuple(
        slice(k - 1, k - 1 + (out - 1) * stride + 1, stride)
        for k, out, stride in zip(spread.shape[2:], axes[:, OUT], axes[:, STRIDE], strict=True)
    )
    y[...] = full[(slice(None), slice(None), *ends)]
    y += bias.reshape(-1, *(1,) * (y.ndim - 2))


def padded(x: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic) -> np.ndarray:
    """Everything the windows read, in one array: ``im2col`` with a kernel of one value and a window a pixel."""
    reach = (axes[:, OUT] - 1) * axes[:, STRIDE] + (axes[:, KERNEL] - 1) * np.abs(axes[:, STEP]) + 1
    table = axes.copy()
    table[:, KERNEL], table[:, OUT], table[:, STRIDE], table[:, STEP] = 1, reach, 1, 1
    table[:, START] = axes[:, START] + np.minimum(axes[:, STEP], 0) * (axes[:, KERNEL] - 1)
    if np.array_equal(reach, axes[:, SIZE]) and not table[:, START].any():
        return x
    out = np.empty((*x.shape[:2], *reach), dtype=x.dtype)
    table.flags.writeable = False
    im2col(x, table, boundary, fill, out)
    return out


def spread_kernel(w: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The kernel as it slides, unturned: dilation filled with zeros, and a turned kernel turned."""
    steps = np.abs(axes[:, STEP]).tolist()
    spread = np.zeros((*w.shape[:2], *((k - 1) * s + 1 for k, s in zip(w.shape[2:], steps, strict=True))), w.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in steps))] = unturned(w, axes)
    return spread


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: padded arrays, their spectra, the products, their inverse."""
    g = geometry
    padded = [n + lo + hi for n, (lo, hi) in zip(g.size, g.padding, strict=True)]
    items = prod(scipy.fft.next_fast_len(n, real=dtype.kind == "f") + 2 for n in padded)
    weights = g.K * (g.C // g.groups)
    return (3 * g.N * g.C + 3 * weights + 2 * g.N * g.K) * items * dtype.itemsize
