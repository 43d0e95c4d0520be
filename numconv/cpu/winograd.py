"""Winograd's minimal filtering F(4x4, 3x3): 36 multiplications where the sum needs 144.

``y = A^T [(G w G^T) * (B^T x B)] A`` for each tile of 4 x 4 outputs (Lavin and Gray, "Fast algorithms for convolutional
neural networks", CVPR 2016). The sum over channels is a batch of 36 matrix products, so BLAS does the work, and the
tiles are an ``im2col`` with 6 x 6 windows at a stride of 4.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .._indexing import KERNEL, OUT, START, STEP, STRIDE
from ..geometry import ConvGeometry
from .im2col import im2col, unturned

TILE, TAPS = 4, 3
WINDOW = TILE + TAPS - 1

#: Workspace for one strip of tiles, in bytes.
STRIP = 32 << 20


@lru_cache
def transforms(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``A^T (16, 36)``, ``G (36, 9)`` and ``B^T (36, 36)`` for flattened tiles, from the points 0, 1, -1, 1/2, -1/2.

    Interpolation at points near one keeps the constants, and with them the rounding, small; the Kronecker square
    makes two dimensions of one.
    """
    points = np.array([0, 1, -1, 0.5, -0.5])
    powers = np.vander(points, WINDOW, increasing=True)
    # Rows of Lagrange's basis, and infinity as the last point.
    scale = np.array([np.prod([p - q for q in points if q != p]) for p in points])
    A = np.vstack([powers[:, :TILE], np.eye(TILE)[-1]])
    G = np.vstack([powers[:, :TAPS] / scale[:, None], np.eye(TAPS)[-1]])
    B = np.zeros((WINDOW, WINDOW))
    for row, p in enumerate(points):
        B[row, :-1] = np.poly([q for q in points if q != p])[::-1]
    B[-1] = np.poly(points)[::-1]
    AT, G2, BT = (np.kron(M, M).astype(dtype) for M in (A.T, G, B))
    return AT, G2, BT


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """3 x 3 kernels, stride 1, no dilation; strip by strip of tiles, so the workspace stays bounded."""
    AT, G, BT = transforms(y.dtype)
    (N, C), (K, Cg) = x.shape[:2], w.shape[:2]
    groups = C // Cg if Cg else 1
    taps = unturned(w, axes).reshape(groups, K // groups, Cg, TAPS * TAPS)
    U = np.ascontiguousarray(np.moveaxis(taps @ G.T, 3, 0))  # (36, groups, K/groups, C/groups)
    table = axes.copy()
    table[:, START] += np.minimum(axes[:, STEP], 0) * (TAPS - 1)
    table[:, KERNEL], table[:, STRIDE], table[:, STEP] = WINDOW, TILE, 1
    across = -(-int(axes[1, OUT]) // TILE)
    down = -(-int(axes[0, OUT]) // TILE)
    per_row = across * WINDOW * WINDOW * (2 * C + K) * x.dtype.itemsize
    strip = max(1, STRIP // max(per_row, 1))
    for n in range(N):
        for row in range(0, down, strip):
            rows = min(strip, down - row)
            tiles = np.empty((1, C * WINDOW * WINDOW, rows * across), dtype=x.dtype)
            part = table.copy()
            part[0, START] += row * TILE
            part[:, OUT] = rows, across
            part.flags.writeable = False
            im2col(x[n : n + 1], part, boundary, fill, tiles)
            V = np.moveaxis(BT @ tiles.reshape(C, WINDOW * WINDOW, -1), 1, 0)  # (36, C, tiles)
            M = U @ V.reshape(WINDOW * WINDOW, groups, Cg, -1)  # (36, groups, K/groups, tiles)
            Y = AT @ M.reshape(WINDOW * WINDOW, -1)
            Y = Y.reshape(TILE, TILE, K, rows, across).transpose(2, 3, 0, 4, 1).reshape(K, rows * TILE, across * TILE)
            top = row * TILE
            target = y[n, :, top : top + rows * TILE]
            target[...] = Y[:, : target.shape[1], : target.shape[2]] + bias[:, None, None]


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: one strip of tiles and the transformed kernels."""
    g = geometry
    return STRIP + WINDOW**2 * g.K * (g.C // g.groups) * dtype.itemsize
