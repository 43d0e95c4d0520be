"""A quick oracle: the same sums as in ``naive``, whole arrays at a time, over a table of which pixel stands where.

It shares no code with numconv either. The table comes from ``numpy.pad`` of the pixels' numbers, axis by axis; with it
``X_conv`` is one look-up, the products are NumPy's, and what goes back to the input is added by ``numpy.add.at``.
Integers and bool are summed in int64, where sums modulo 2**64 are those of every integer type; floats in float64.
``naive`` says what is right and may be checked by eye; this serves where thousands of cases have to be met in seconds.

Canonical arrays only: ``x (N, C, *in)``, ``w (K, C/groups, *k)``, ``y (N, K, *out)``.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

Array = np.ndarray


def wide(a: Array) -> Array:
    """The array in the type of its sums."""
    a = np.asarray(a)
    if a.dtype.kind in "biu":
        return a.astype(np.int64)
    return a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)


def narrow(a: Array, dtype: np.dtype) -> Array:
    """A sum in the dtype that is promised: integers wrap, bool asks for "not zero", float16 may overflow."""
    if dtype.kind == "b":
        return a != 0
    with np.errstate(over="ignore"):
        return a.astype(dtype)


class Axis(NamedTuple):
    """One spatial axis of a convolution."""

    size: int
    kernel: int
    stride: int
    dilation: int
    lo: int
    hi: int

    @property
    def span(self) -> int:
        """Pixels from the first to the last tap."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def out(self) -> int:
        """How many outputs there are; below one, the kernel does not fit."""
        return (self.size + self.lo + self.hi - self.span) // self.stride + 1


def padding_pairs(padding, size, kernel, stride, dilation) -> list[tuple[int, int]]:
    """Every spelling of ``padding`` as a pair for each axis."""
    d = len(size)
    if isinstance(padding, int):
        return [(padding, padding)] * d
    if not isinstance(padding, str):
        return [(p, p) if isinstance(p, int) else tuple(p) for p in padding]
    pairs = []
    for n, k, s, dil in zip(size, kernel, stride, dilation, strict=True):
        reach = dil * (k - 1)
        total = {"valid": 0, "full": 2 * reach}.get(padding, max((-(-n // s) - 1) * s + reach + 1 - n, 0))
        small = total // 2
        pairs.append((total - small, small) if padding == "same_lower" else (small, total - small))
    return pairs


def axis_places(axis: Axis, out: int, boundary: str, flip: bool) -> Array:
    """``(kernel, out)``: the pixel that each tap of each output meets, -1 for the constant."""
    numbers, constant = np.arange(axis.size), {"constant_values": -1} if boundary == "constant" else {}
    last = (out - 1) * axis.stride + axis.span  # an output may lie beyond the padding: what a transpose makes room for
    more = max(0, last - axis.size - axis.lo - axis.hi)
    padded = np.pad(numbers, (axis.lo, axis.hi + more), boundary, **constant)
    taps = np.arange(axis.kernel) * axis.dilation
    return padded[np.add.outer(taps[::-1] if flip else taps, np.arange(out) * axis.stride)]


def places(axes: list[Axis], boundary: str, flip: bool, out: tuple[int, ...] | None = None) -> Array:
    """``(prod k, prod out)``: the flat number of the pixel in each place of ``X_conv``; ``prod in`` is the constant."""
    flat, there = np.zeros((1, 1), np.int64), np.ones((1, 1), bool)
    for axis, o in zip(axes, out or [axis.out for axis in axes], strict=True):
        here = axis_places(axis, o, boundary, flip)[None, :, None, :]
        taps, pixels = flat.shape[0] * axis.kernel, flat.shape[1] * o
        flat = (flat[:, None, :, None] * axis.size + here).reshape(taps, pixels)
        there = (there[:, None, :, None] & (here >= 0)).reshape(taps, pixels)
    return np.where(there, flat, prod(axis.size for axis in axes))


def columns(x: Array, at: Array, fill=0) -> Array:
    """``X_conv``, ``(N, C, prod k, prod out)``."""
    flat = x.reshape(*x.shape[:2], prod(x.shape[2:]))
    constant = np.full((*x.shape[:2], 1), fill, x.dtype)
    return np.concatenate([flat, constant], axis=2)[:, :, at]


def back(cols: Array, at: Array, pixels: int) -> Array:
    """Every value of ``X_conv`` added to the pixel it came from: ``(N, C, pixels)``."""
    N, C = cols.shape[:2]
    x = np.zeros(N * C * (pixels + 1), cols.dtype)
    rows = np.arange(N * C).reshape(N, C, 1, 1) * (pixels + 1)
    np.add.at(x, (rows + at).ravel(), cols.ravel())
    return x.reshape(N, C, pixels + 1)[:, :, :pixels]


def _grouped(w: Array, groups: int) -> Array:
    return w.reshape(groups, w.shape[0] // groups, prod(w.shape[1:]))


def conv(x: Array, w: Array, at: Array, groups: int = 1, fill=0) -> Array:
    """``Y = W_flat @ X_conv``, ``(N, K, prod out)``."""
    x, w = wide(x), wide(w)
    cols = columns(x, at, fill).reshape(len(x), groups, w.shape[1] * at.shape[0], at.shape[1])
    return (_grouped(w, groups) @ cols).reshape(len(x), len(w), at.shape[1])


def transposed(y: Array, w: Array, at: Array, pixels: int, groups: int = 1) -> Array:
    """``W_conv.T @ Y_flat``, ``(N, C, pixels)``; of the conjugate of ``w`` it is the input gradient."""
    y, w = wide(y), wide(w)
    outputs = y.reshape(len(y), groups, len(w) // groups, at.shape[1])
    cols = _grouped(w, groups).swapaxes(1, 2) @ outputs
    return back(cols.reshape(len(y), groups * w.shape[1], *at.shape), at, pixels)


def grad_weight(x: Array, dy: Array, at: Array, groups: int = 1, fill=0) -> Array:
    """``dW = dY_flat @ X_conv^H``, summed over the batch: ``(K, C/groups, prod k)``."""
    x, dy = wide(x), wide(dy)
    N, C, K = len(x), x.shape[1], dy.shape[1]
    cols = columns(x, at, fill).reshape(N, groups, C // groups * at.shape[0], at.shape[1])
    dw = dy.reshape(N, groups, K // groups, at.shape[1]) @ cols.conj().swapaxes(2, 3)
    return dw.sum(axis=0).reshape(K, C // groups, at.shape[0])


def matrix(w: Array, at: Array, pixels: int, groups: int = 1) -> Array:
    """``W_conv``, dense, ``(K * prod out, C * prod in)``."""
    w = wide(w)
    K, per_group, (taps, outs) = w.shape[0], w.shape[1], at.shape
    dense = np.zeros((K, outs, groups * per_group, pixels + 1), w.dtype)
    channel = np.arange(K)[:, None] // max(K // groups, 1) * per_group + np.arange(per_group)
    k, p = np.arange(K)[:, None, None, None], np.arange(outs)
    values = np.broadcast_to(w.reshape(K, per_group, taps, 1), (K, per_group, taps, outs))
    np.add.at(dense, (k, p, channel[:, :, None, None], at), values)
    return dense[..., :pixels].reshape(K * outs, groups * per_group * pixels)
