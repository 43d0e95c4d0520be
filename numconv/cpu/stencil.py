"""One kernel over one image, several rows of the output at a time by the register tile: filters, depthwise layers.

Eight (``MR``) neighbouring rows of the output read overlapping rows of the input. With the kernel written as a band,

    band[r, t, i] = w[r - i * stride, t]      (zero outside the kernel),

they are one product, ``y[i, o] = sum over r, t of band[r, t, i] * x[r, o + t]``, whose right-hand side is the image as
it lies in memory. The zeros of the band are multiplied too; the tile makes up for it.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numba import prange

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ._jit import Kernel, flat, helper, row_source, source
from .rows import add_up, gather, row_sum, shared_lines
from .simd import SLACK, lanes, outer_shape, outer_tile

#: Output columns of a task, in tiles.
TILES = 8


def serves(axes: np.ndarray, dtype: np.dtype) -> bool:
    """Whether there are vectors, rows to share, and enough to do with them to make up for the zeros of the band.

    Measured on one core: 7 kernel rows break even on wide images, on narrow ones whole tiles win from the start.
    """
    if lanes(dtype) == 1 or len(axes) < 2 or axes[-2, OUT] < 2 or axes[-2, STRIDE] > 2 or abs(axes[-2, STEP]) > 2:
        return False
    return bool(axes[-2, KERNEL] >= 7 or axes[-1, OUT] < 128)


@Kernel
def _bands(w, axes, band):
    # w (K, C/G, lead, rows k, last k); band (K, C/G, lead, last k, rows, MR): the taps of the last axis ascending.
    K, Cg, lead, R_k, L_k = w.shape
    MR = band.shape[5]
    a = axes.shape[0] - 2
    stride, step, turned = axes[a, STRIDE], axes[a, STEP], axes[a + 1, STEP] < 0
    lowest = min(0, (R_k - 1) * step)
    for task in prange(K * Cg * lead):
        T, c, k = task % lead, task // lead % Cg, task // lead // Cg
        band[k, c, T] = 0
        for t in range(L_k):
            for i in range(MR):
                for r in range(R_k):
                    row = i * stride + r * step - lowest
                    band[k, c, T, t, row, i] = w[k, c, T, r, L_k - 1 - t if turned else t]


@helper
def window(image, T, O, r0, rows, o0, first, length, axes, boundary, fill, patch):
    """Rows of ``patch`` become lines of pixels, from input row ``r0`` on. Returns 0, or NaN if one is not finite.

    The zeros of the band must not meet infinity.
    """
    a = axes.shape[0] - 2
    lead = row_source(T, O, axes[: a + 1], boundary)
    nothing = fill * 0
    for r in range(rows):
        line = patch[r, :length]
        i = source(r0 + r, axes[a, SIZE], boundary)
        if lead < 0 or i < 0:
            line[:] = fill
        else:
            gather(image[lead * axes[a, SIZE] + i], first, axes[a + 1, STRIDE], boundary, fill, o0, line)
        for j in range(line.size):
            nothing += line[j] * 0
    return nothing


@Kernel
def _forward(x, w, band, bias, axes, boundary, fill, lines, shift, block, y):
    # x (N, C, rows in, last in), band (K, C/G, lead k, last k by class, rows, MR), y (N, K, lead out, rows, last).
    N, K, lead_out, R_out, L_out = y.shape
    _, Cg, lead_k, L_k, rows, MR = band.shape
    Kg = K // (x.shape[1] // Cg)
    d = axes.shape[0]
    lowest = axes[d - 2, START] + min(0, (axes[d - 2, KERNEL] - 1) * axes[d - 2, STEP])
    step = abs(axes[d - 1, STEP])
    near = axes[d - 1, START] + min(0, (L_k - 1) * axes[d - 1, STEP])
    NR = block // TILES
    width = block + (L_k - 1) // lines * shift + SLACK
    weights = band.reshape(band.size)
    down, across = (R_out + MR - 1) // MR, (L_out + block - 1) // block
    for task in prange(N * K * lead_out * down * across):
        o0, O_r = task % across * block, task // across % down * MR
        outer = task // across // down
        O, k, n = outer % lead_out, outer // lead_out % K, outer // lead_out // K
        columns, high = min(block, L_out - o0), min(MR, R_out - O_r)
        patch = np.empty((rows + 1, width), x.dtype)  # a row more: the last tile may read beyond the others
        pixels = patch.reshape(patch.size)
        tile = np.empty((MR, NR), x.dtype)
        finite = True
        for c in range(Cg):
            for T in range(lead_k):
                a0 = ((k * Cg + c) * lead_k + T) * L_k * rows * MR
                for first_tap in range(min(lines, L_k)):
                    taps = (L_k - first_tap + lines - 1) // lines
                    nothing = window(
                        x[n, k // Kg * Cg + c], T, O, lowest + O_r * axes[d - 2, STRIDE], rows, o0,
                        near + first_tap * step, columns + (taps - 1) * shift, axes, boundary, fill, patch,
                    )
                    finite = finite and nothing == 0
                    for j0 in range(0, columns, NR):
                        outer_tile(weights, a0, pixels, j0, taps, shift, rows, width, tile)
                        wide = min(NR, columns - j0)
                        for i in range(high):
                            target = y[n, k, O, O_r + i, o0 + j0 : o0 + j0 + wide]
                            add_up(target, tile[i, :wide], c == 0 and T == 0 and first_tap == 0, bias[k])
                    a0 += taps * rows * MR
        if not finite:
            for i in range(high):
                row = O * R_out + O_r + i
                row_sum(x, w, bias, axes, boundary, fill, n, k, row, o0, y[n, k, O, O_r + i, o0 : o0 + columns])


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``direct.forward`` for two axes and more."""
    (N, K), Cg, size, kernel, out = y.shape[:2], w.shape[1], x.shape[2:], w.shape[2:], y.shape[2:]
    MR, NR = outer_shape(y.dtype)
    lines, shift = shared_lines(axes)
    rows = (MR - 1) * int(axes[-2, STRIDE]) + (kernel[-2] - 1) * abs(int(axes[-2, STEP])) + 1
    band = np.empty((K, Cg, prod(kernel[:-2]), kernel[-1], rows, MR), y.dtype)
    _bands(flat(w, K, Cg, prod(kernel[:-2]), *kernel[-2:]), axes, band, work=band.size)
    if lines > 1:  # taps that share a line stand together
        order = [t for first in range(lines) for t in range(first, kernel[-1], lines)]
        band = np.ascontiguousarray(band[:, :, :, order])
    _forward(
        flat(x, N, x.shape[1], prod(size[:-1]), size[-1]), flat(w, K, Cg, prod(kernel[:-1]), kernel[-1]),
        flat(band, *band.shape), flat(bias, K), axes, boundary, fill, lines, shift, TILES * NR,
        y.reshape(N, K, prod(out[:-2]), *out[-2:]), work=y.size * prod(w.shape[1:]),
    )
