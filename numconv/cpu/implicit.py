"""The product ``W_flat @ X_conv`` without ever storing ``X_conv``: panels of it are gathered, used at once, and gone.

``X_conv`` has a row for each kernel value and a column for each output pixel of the batch. A task takes a block of
columns; for a block of rows at a time it packs the panel, which stays in the cache, and runs the register tile over it
for all output channels. The order of every sum follows from the shapes alone.
"""

from __future__ import annotations

from math import prod

import numba
import numpy as np
from numba import prange

from .._indexing import KERNEL, OUT, START, STEP, STRIDE
from ..geometry import ConvGeometry
from ._jit import Kernel, flat, helper, row_source
from .direct import parts_of, wide
from .im2col import groups_of
from .rows import add_up, gather, shared_lines
from .simd import SLACK, copy_run, inner_shape, inner_tile, lanes, outer_shape, outer_tile

#: Bytes of a panel, so that it and the weights stay in the L2 cache, and rows of X_conv in one.
PANEL, ROWS = 384 << 10, 384


@helper
def pack(x, c0, axes, boundary, fill, u0, u1, p0, p1, lines, shift, line, width, panel):
    """Rows ``u0 .. u1`` (each all last-axis taps of a channel and kernel row) and columns ``p0 .. p1`` of ``X_conv``.

    ``x (N, C, rows in, last in)``, channels counted from ``c0``; columns count through the batch. Row ``r`` of the
    panel begins at ``r * width``. Taps ``lines`` apart read one line of pixels, shifted: it lies in ``x`` already, or
    is gathered once for all of them.
    """
    last = axes.shape[0] - 1
    L_k, L_out = axes[last, KERNEL], axes[last, OUT]
    start, stride, step = axes[last, START], axes[last, STRIDE], axes[last, STEP]
    C, R_in, L_in = x.shape[1:]
    pixels = x.reshape(x.size)
    R_k, R_out = 1, 1
    for a in range(last):
        R_k *= axes[a, KERNEL]
        R_out *= axes[a, OUT]
    rows = np.empty(R_k, np.int64)
    p = p0
    while p < p1:  # run by run along the rows of the output
        n, O, o = p // (R_out * L_out), p // L_out % R_out, p % L_out
        run = min(L_out - o, p1 - p)
        for T in range(R_k):
            rows[T] = row_source(T, O, axes, boundary)
        for u in range(u0, u1):
            c, row = c0 + u // R_k, rows[u % R_k]
            place = (u - u0) * L_k * width + p - p0
            for first_tap in range(min(lines, L_k)):
                taps = (L_k - first_tap + lines - 1) // lines
                length = run + (taps - 1) * shift
                first = start + first_tap * step + min(0, (taps - 1) * lines * step)
                source, begin = line, 0
                if row < 0:
                    line[:length] = fill
                else:
                    begin = ((n * C + c) * R_in + row) * L_in + first + o
                    inside = first + o >= 0 and first + o + length <= L_in and begin + length + SLACK <= x.size
                    if stride == 1 and inside:
                        source = pixels
                    else:
                        begin = 0
                        gather(x[n, c, row], first, stride, boundary, fill, o, line[:length])
                for i in range(taps):
                    at = begin + (i if step > 0 else taps - 1 - i) * shift
                    copy_run(source, at, run, panel, place + (first_tap + i * lines) * width)
        p += run


@Kernel
def _pack_weights(w, A):
    # w (G, K/G, Q) in strips of MR output channels, A (G, strips, Q, MR), filled up with zeros.
    G, strips, Q, MR = A.shape
    for task in prange(G * strips):
        g, strip = task // strips, task % strips
        k0 = strip * MR
        full = min(MR, w.shape[1] - k0)
        for q in range(Q):
            for i in range(full):
                A[g, strip, q, i] = w[g, k0 + i, q]
            for i in range(full, MR):
                A[g, strip, q, i] = 0


@Kernel
def _forward(x, A, bias, axes, boundary, fill, lines, shift, block, units, NR, slack, shares, y):
    # x (N, C, rows in, last in), A (G, strips, Q, MR), y (N, K, P); a task is a block of columns and a share of strips.
    N, K, P = y.shape
    G, strips, Q, MR = A.shape
    Kg, Cg = K // G, x.shape[1] // G
    L_k = axes[axes.shape[0] - 1, KERNEL]
    blocks, U = (N * P + block - 1) // block, Q // L_k
    q_blocks = (U + units - 1) // units
    width = (block + NR - 1) // NR * NR + slack
    weights = A.reshape(A.size)
    for task in prange(G * blocks * shares):
        share, column, g = task % shares, task // shares % blocks, task // shares // blocks
        p0, p1 = column * block, min((column + 1) * block, N * P)
        panel = np.empty(((U + q_blocks - 1) // q_blocks * L_k) * width + slack, x.dtype)
        line = np.empty(block + L_k * shift + slack, x.dtype)
        tile = np.empty((MR, NR), x.dtype)
        for b in range(q_blocks):
            u0, u1 = U * b // q_blocks, U * (b + 1) // q_blocks
            pack(x, g * Cg, axes, boundary, fill, u0, u1, p0, p1, lines, shift, line, width, panel)
            for strip in range(strips * share // shares, strips * (share + 1) // shares):
                a0 = ((g * strips + strip) * Q + u0 * L_k) * MR
                for t0 in range(0, p1 - p0, NR):
                    outer_tile(weights, a0, panel, t0, 1, 0, (u1 - u0) * L_k, width, tile)
                    unload(tile, bias, g * Kg + strip * MR, (g + 1) * Kg, p0 + t0, p1, b == 0, y)


@helper
def unload(tile, bias, k0, k_end, p0, p_end, first, y):
    """Put a tile into ``y (N, K, P)``, whose columns count through the batch; the first of a sum brings the bias."""
    P = y.shape[2]
    done, columns = 0, min(tile.shape[1], p_end - p0)
    while done < columns:
        n, p = (p0 + done) // P, (p0 + done) % P
        run = min(P - p, columns - done)
        for i in range(min(tile.shape[0], k_end - k0)):
            add_up(y[n, k0 + i, p : p + run], tile[i, done : done + run], first, bias[k0 + i])
        done += run


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``Y = W_flat @ X_conv + bias``, group by group."""
    (N, K), G, Q, P = y.shape[:2], groups_of(x, w), prod(w.shape[1:]), prod(y.shape[2:])
    size, L_k, dtype = x.shape[2:], w.shape[-1], y.dtype
    MR, NR = outer_shape(dtype)
    A = np.empty((G, -(-K // G // MR), Q, MR), dtype)
    _pack_weights(flat(w, G, K // G, Q), A, work=A.size)
    units = max(1, ROWS // L_k)
    q_rows = min(Q, units * L_k)
    threads = numba.get_num_threads()
    block = max(1, PANEL // (q_rows * dtype.itemsize * NR)) * NR  # whole tiles that fit the panel
    block = min(block, max(1, -(-N * P // (4 * threads * NR))) * NR)  # and enough blocks for the threads
    tasks = G * -(-N * P // block)
    shares = min(A.shape[1], max(1, -(-4 * threads // tasks)))
    _forward(
        flat(x, N, x.shape[1], prod(size[:-1]), size[-1]), flat(A, *A.shape), flat(bias, K), axes, boundary, fill,
        *shared_lines(axes), block, units, NR, lanes(dtype), shares, y.reshape(N, K, P), work=y.size * Q,
    )


@Kernel
def _grad_weight(x, dY, axes, boundary, fill, lines, shift, block, units, MR, NR, slack, partial):
    # partial (parts, G, K/G, Q): the blocks of columns are split into a fixed number of parts, each summed alone.
    parts, G, Kg, Q = partial.shape
    N, _, P = dY.shape
    Cg = x.shape[1] // G
    L_k = axes[axes.shape[0] - 1, KERNEL]
    blocks, U = (N * P + block - 1) // block, Q // L_k
    q_blocks = (U + units - 1) // units
    width = block + slack
    for task in prange(parts * G * q_blocks):
        b, g, part = task % q_blocks, task // q_blocks % G, task // q_blocks // G
        u0, u1 = U * b // q_blocks, U * (b + 1) // q_blocks
        rows = (u1 - u0) * L_k
        dW = partial[part, g, :, u0 * L_k : u1 * L_k]
        dW[:] = 0
        panel = np.zeros((rows + NR - 1) // NR * NR * width + slack, x.dtype)
        line = np.empty(block + L_k * shift + slack, x.dtype)
        dy = np.zeros(MR * width + slack, x.dtype)
        tile = np.empty((MR, NR), x.dtype)
        for column in range(blocks * part // parts, blocks * (part + 1) // parts):
            p0, p1 = column * block, min((column + 1) * block, N * P)
            whole = (p1 - p0 + slack - 1) // slack * slack
            pack(x, g * Cg, axes, boundary, fill, u0, u1, p0, p1, lines, shift, line, width, panel)
            for r in range(rows):  # the rest of the last vector takes no part
                panel[r * width + p1 - p0 : r * width + whole] = 0
            for k0 in range(0, Kg, MR):
                load(dY, g * Kg + k0, (g + 1) * Kg, p0, p1, whole, width, dy)
                for q in range(0, rows, NR):
                    inner_tile(dy, 0, width, panel, q * width, width, whole, tile)
                    for i in range(min(MR, Kg - k0)):
                        for j in range(min(NR, rows - q)):
                            dW[k0 + i, q + j] += tile[i, j]


@helper
def load(dY, k0, k_end, p0, p1, whole, width, dy):
    """Rows ``k0 …`` and columns ``p0 .. p1`` of ``dY (N, K, P)``, columns counted through the batch, zeros after."""
    P = dY.shape[2]
    for i in range(min(dy.size // width, k_end - k0)):
        at, p = i * width, p0
        while p < p1:
            n, begin = p // P, p % P
            run = min(P - begin, p1 - p)
            source, target = dY[n, k0 + i, begin : begin + run], dy[at : at + run]
            for j in range(run):
                target[j] = source[j]
            at += run
            p += run
        dy[at : i * width + whole] = 0


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``dW = dY_flat @ X_conv^H``, the sum over pixels split into parts that follow from the shapes alone."""
    (N, K), G, Q, P = dY.shape[:2], groups_of(x, dW), prod(dW.shape[1:]), prod(dY.shape[2:])
    size, L_k, dtype = x.shape[2:], dW.shape[-1], dW.dtype
    MR, NR = inner_shape(dtype)
    units = max(1, ROWS // 2 // L_k)
    q_rows = min(Q, units * L_k)
    slack = lanes(dtype)
    block = min(max(1, PANEL // (q_rows * dtype.itemsize * slack)), 64, -(-N * P // slack)) * slack
    parts = parts_of(-(-N * P // block), tasks=G * -(-Q // q_rows))
    partial = np.empty((parts, G, K // G, Q), dtype=wide(dtype))
    _grad_weight(
        flat(x, N, x.shape[1], prod(size[:-1]), size[-1]), flat(dY, N, K, P), axes, boundary, fill,
        *shared_lines(axes), block, units, MR, NR, slack, partial, work=dY.size * Q,
    )
    dW[...] = partial.sum(axis=0, dtype=partial.dtype).reshape(dW.shape)


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: the weights in strips and a panel for each thread."""
    g = geometry
    Q = g.C // g.groups * prod(g.kernel)
    rows = min(Q, max(ROWS, g.kernel[-1]))
    NR = outer_shape(dtype)[1]
    panel = max(PANEL, rows * NR * dtype.itemsize) + rows * (NR + lanes(dtype)) * dtype.itemsize
    return (g.K + g.groups * outer_shape(dtype)[0]) * Q * dtype.itemsize + panel * numba.get_num_threads()
