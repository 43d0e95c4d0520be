"""Sums so long that float32 would lose digits: in pieces, each computed and all added up in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from .._indexing import KERNEL, START, STEP
from ..geometry import axes_table

#: Terms from which on a sum is cut, and the terms of a piece.
LONGEST, PIECE = 1 << 16, 1 << 12


def wide(dtype: np.dtype) -> np.dtype:
    """The type in which long sums are kept: float64 for float32, so that an error does not grow with the image."""
    return {"f": np.dtype(np.float64), "c": np.dtype(np.complex128)}.get(dtype.kind, dtype)


def too_long(w: np.ndarray) -> bool:
    """Whether the sums of ``w (K, C/G, *k)`` are to be cut."""
    return w.size > LONGEST * len(w)


def most_at_once(Cg: int, kernel: Sequence[int]) -> tuple[int, list[int]]:
    """Channels of a group and taps along each axis that make up a piece."""
    room = PIECE
    most: list[int] = []
    for k in reversed(kernel):
        most.insert(0, min(k, max(1, room)))
        room //= most[0]
    return min(Cg, max(1, room)), most


def forward(
    algorithm: Callable[..., None], x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int,
    fill: np.generic, y: np.ndarray,
) -> None:
    """``algorithm(x, w, bias, axes, boundary, fill, y)`` as the sum of pieces: some channels of a group, some taps."""
    N, (K, Cg), kernel, dtype = x.shape[0], w.shape[:2], axes[:, KERNEL].tolist(), wide(y.dtype)
    groups, (channels, most) = x.shape[1] // Cg, most_at_once(Cg, kernel)
    total, part = np.zeros(y.shape, dtype), np.empty(y.shape, dtype)
    no_bias, constant = np.zeros(K, dtype), dtype.type(fill)
    pixels, weights = x.reshape(N, groups, Cg, *x.shape[2:]), w.reshape(K, Cg, *kernel)
    for c in range(0, Cg, channels):
        some = pixels[:, :, c : c + channels].astype(dtype).reshape(N, -1, *x.shape[2:])
        for taps in product(*(range(0, k, t) for k, t in zip(kernel, most, strict=True))):
            table = axes.copy()
            for row, t, t_most in zip(table, taps, most, strict=True):
                row[START] += t * row[STEP]
                row[KERNEL] = min(t_most, row[KERNEL] - t)
            there = tuple(slice(t, t + n) for t, n in zip(taps, table[:, KERNEL].tolist(), strict=True))
            piece = weights[(slice(None), slice(c, c + channels), *there)].astype(dtype, order="C")
            algorithm(some, piece, no_bias, axes_table(table.tolist()), boundary, constant, part)
            total += part
        del some, piece  # before there are new ones
    total += bias.reshape(-1, *(1,) * (y.ndim - 2))
    y[...] = total
