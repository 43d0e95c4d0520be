"""Weights packed as kernels read them: the output channels that a block or a thread sums together lie side by side."""

from __future__ import annotations

import numpy as np

from ._jit import cuda, kernel
from .arrays import DeviceArray, blocks_for
from .places import table


@kernel()
def _pack(w, terms, g_step, k_step, c_step, T, Cg, Kg, depth, rows, n, packed):
    i = cuda.grid(1)
    strips = (Kg + rows - 1) // rows
    while i < n:
        row, rest = i % rows, i // rows
        c, rest = rest % depth, rest // depth
        t, rest = rest % T, rest // T
        k, g = rest % strips * rows + row, rest // strips
        value = packed.dtype.type(0)
        if k < Kg and c < Cg:
            value = packed.dtype.type(w[g * g_step + k * k_step + c * c_step + terms[t]])
        packed[i] = value
        i += cuda.gridsize(1)


def pack(
    w: DeviceArray, terms: np.ndarray, k_step: int, c_step: int, groups: int, channels: tuple[int, int], rows: int,
    depth: int, dtype: np.dtype,
) -> DeviceArray:
    """``W_flat`` as ``(groups, strips, taps, depth, rows)``, filled up with zeros, of this dtype.

    ``channels`` are the output and the input channels of a group. Row ``k`` of a group begins at ``k * k_step``, a
    channel of it at ``c * c_step`` and tap ``t`` at ``terms[t]`` more.
    """
    Kg, Cg = channels
    packed = w.place.empty((groups * -(-Kg // rows) * terms.size * depth * rows,), dtype)
    _pack(
        blocks_for(packed.size), w.reshape(w.size), table(w.place, terms), w.size // groups, k_step, c_step,
        terms.size, Cg, Kg, depth, rows, packed.size, packed, on=w.place,
    )  # fmt: skip
    return packed
