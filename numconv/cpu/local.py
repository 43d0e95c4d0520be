"""One kernel for each output: the weights lie pixel by pixel, and each is used once for every image.

    Y[:, p] = W[p] @ X_conv[:, p]        dX_conv[:, p] = W[p]^H @ dY[:, p]        dW[p] = dY[:, p] @ X_conv[:, p]^H

So these products are as fast as the weights come from memory, and no matrix tile would help.
"""

from __future__ import annotations

from math import prod

import numpy as np

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..geometry import ConvGeometry
from . import im2col, kernel2row
from ._jit import Kernel, flat, helper, position, row_source, source, tasks_of
from .adjoint import unfolded
from .kernel2row import begin, counts_of, entries_before, inside, next_rows, scratch


@helper
def find_pixels(p, axes, boundary, a, b, rows, reads, known):
    """``reads[t]`` becomes the pixel of a channel that tap ``t`` of output ``p`` meets, or -1.

    ``known`` says of which line and output they are, and whether all are pixels; then they serve the outputs
    ``a … b - 1`` of that line, moved on by what this returns.
    """
    last = axes.shape[0] - 1
    L_out, L_in, L_k = axes[last, OUT], axes[last, SIZE], axes[last, KERNEL]
    O, o = p // L_out, p % L_out
    if known[0] == O and known[2] == 1 and o < b:
        return (o - known[1]) * axes[last, STRIDE]
    whole = a <= o < b
    if known[0] != O:
        for T in range(rows.size):
            rows[T] = row_source(T, O, axes, boundary)
    for T in range(rows.size):
        whole = whole and rows[T] >= 0
    for t in range(L_k):
        i = source(position(o, t, axes[last, START], axes[last, STRIDE], axes[last, STEP]), L_in, boundary)
        for T in range(rows.size):
            reads[T * L_k + t] = rows[T] * L_in + i if rows[T] >= 0 and i >= 0 else -1
    known[0], known[1], known[2] = O, o, 1 if whole else 0
    return 0


@helper
def gather(image, reads, move, whole, fill, column):
    """The column of ``X_conv`` of one output: what its taps read of every channel of ``image (C, prod in)``."""
    T = np.uint64(reads.size)
    for c in range(image.shape[0]):
        pixels, part = image[c], column[c * reads.size : c * reads.size + reads.size]
        if whole:
            for t in range(T):
                part[t] = pixels[np.uint64(reads[t] + move)]
        else:
            for t in range(T):
                part[t] = pixels[reads[t]] if reads[t] >= 0 else fill


@helper
def dot(weights, column, start):
    """``start + sum over q of weights[q] * column[q]``."""
    total = start * 0
    for q in range(weights.size):
        total += weights[q] * column[q]
    return start + total


@Kernel
def _forward(team, x, w, bias, axes, boundary, a, b, fill, chunk, y):
    # x (N, C, prod in), w (prod out, K, C/G * prod k), y (N, K, prod out); a task owns a chunk of output pixels.
    N, K, P = y.shape
    last, Q, C = axes.shape[0] - 1, w.shape[2], x.shape[1]
    T = 1
    for axis in range(last + 1):
        T *= axes[axis, KERNEL]
    rows, reads, column = np.empty(T // axes[last, KERNEL], np.int64), np.empty(T, np.int64), np.empty(C * T, x.dtype)
    Kg, known = K // (C * T // Q), np.zeros(3, np.int64)
    for task in tasks_of(team, (P + chunk - 1) // chunk):
        known[0] = -1
        for p in range(task * chunk, min((task + 1) * chunk, P)):
            move = find_pixels(p, axes, boundary, a, b, rows, reads, known)
            for n in range(N):
                gather(x[n], reads, move, known[2] == 1, fill, column)
                for k in range(K):
                    first = k // Kg * Q
                    y[n, k, p] = dot(w[p, k], column[first : first + Q], bias[k])


@Kernel
def _grad_weight(team, x, dY, axes, boundary, a, b, fill, chunk, dW):
    # the same shapes; a task owns the weights of a chunk of output pixels
    N, K, P = dY.shape
    last, Q, C = axes.shape[0] - 1, dW.shape[2], x.shape[1]
    T = 1
    for axis in range(last + 1):
        T *= axes[axis, KERNEL]
    rows, reads, column = np.empty(T // axes[last, KERNEL], np.int64), np.empty(T, np.int64), np.empty(C * T, x.dtype)
    Kg, known = K // (C * T // Q), np.zeros(3, np.int64)
    for task in tasks_of(team, (P + chunk - 1) // chunk):
        known[0] = -1
        for p in range(task * chunk, min((task + 1) * chunk, P)):
            move = find_pixels(p, axes, boundary, a, b, rows, reads, known)
            for n in range(N):
                gather(x[n], reads, move, known[2] == 1, fill, column)
                for k in range(K):
                    first, dy, target = k // Kg * Q, dY[n, k, p], dW[p, k]
                    pixels = column[first : first + Q]
                    if n == 0:
                        for q in range(Q):
                            target[q] = dy * np.conj(pixels[q])
                    else:
                        for q in range(Q):
                            target[q] += dy * np.conj(pixels[q])


@Kernel
def _columns(team, w, dY, chunk, dX_conv):
    # w (prod out, K, C/G * prod k), dY (K, prod out), dX_conv (C * prod k, prod out)
    P, K, Q = w.shape
    Kg = K // (dX_conv.shape[0] // Q)
    sums = np.empty(dX_conv.shape[0], dX_conv.dtype)
    for task in tasks_of(team, (P + chunk - 1) // chunk):
        for p in range(task * chunk, min((task + 1) * chunk, P)):
            sums[:] = 0
            for k in range(K):
                weights, part, dy = w[p, k], sums[k // Kg * Q : k // Kg * Q + Q], dY[k, p]
                for q in range(Q):
                    part[q] += np.conj(weights[q]) * dy
            for q in range(sums.size):
                dX_conv[q, p] = sums[q]


@Kernel
def _values(team, w, inputs, axes, boundary, a, b, rows, line, chunk, data):
    # ``kernel2row._values`` for w (prod out, K, C/G * prod k): rows that are moved copies in structure have own weights
    P, K, Q = w.shape
    count, turned = 1, axes[axes.shape[0] - 1, STEP] < 0
    for axis in range(axes.shape[0]):
        count *= axes[axis, KERNEL]
    Cg = Q // count
    every, room = Cg * rows[-1] * line[-1], scratch(Cg, count)
    for task in tasks_of(team, (P + chunk - 1) // chunk):
        p, end = task * chunk, min((task + 1) * chunk, P)
        at = Cg * begin(p, rows, line)
        while p < end:
            run, n, joined = next_rows(p, end, Cg, count, inputs, axes, boundary, a, b, room)
            places, joining = room[1], room[3]
            if turned:  # the places are those of the kernel as it slides
                for e in range(n):
                    places[e] += count - 1 - 2 * (places[e] % count)
                for j in range(joined):
                    joining[j] += count - 1 - 2 * (joining[j] % count)
            for i in range(run):
                for k in range(K):
                    weights, target = w[p + i, k], data[k * every + at : k * every + at + n]
                    for e in range(n):
                        target[e] = weights[places[e]]
                    for j in range(joined):
                        target[room[2, j]] += weights[joining[j]]
                at += n
            p += run


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``y[n,k,o] = bias[k] + sum over c, t of w[o,k,c,t] x[n,c,o*stride+t*step]``, for ``w (prod out, K, …)``."""
    N, K = y.shape[:2]
    _forward(
        flat(x, *x.shape[:2], prod(x.shape[2:])), flat(w, *w.shape), flat(bias, K), axes, boundary,
        *inside(axes[-1]), fill, share(len(w)), y.reshape(N, K, len(w)), work=N * w.size,
    )


def grad_input(dY: np.ndarray, w: np.ndarray, geometry: ConvGeometry, dX: np.ndarray) -> None:
    """``dX = col2im(dX_conv)`` with ``dX_conv[:, p] = W[p]^H @ dY[:, p]``, image by image."""
    shape = (dX.shape[1] * prod(geometry.kernel), len(w))
    dX_conv = np.empty(shape, dX.dtype)
    for dy, dx in zip(dY, dX, strict=True):
        _columns(flat(w, *w.shape), flat(dy, dy.shape[0], len(w)), share(len(w)), dX_conv, work=w.size)
        unfolded(geometry, dx[None], lambda padded, target: im2col.col2im(dX_conv[None], padded.axes, target))


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``dW[o,k,c,t] = sum over n of dY[n,k,o] conj(x[n,c,o*stride+t*step])``."""
    N, K = dY.shape[:2]
    _grad_weight(
        flat(x, *x.shape[:2], prod(x.shape[2:])), flat(dY, N, K, len(dW)), axes, boundary,
        *inside(axes[-1]), fill, share(len(dW)), dW, work=N * dW.size,
    )


def triple(w: np.ndarray, g: ConvGeometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``data, indices, indptr`` of the matrix: the structure is ``kernel2row``'s."""
    Cg, P = g.C // g.groups, len(w)
    counts = counts_of(g.axes, g.boundary_code)
    entries = g.K * Cg * kernel2row.count_entries(counts)
    index_dtype = kernel2row.index_dtype_for(max(entries, *g.matrix_shape))
    before = entries_before(counts)
    data, indices, indptr = kernel2row.one_block((entries, w.dtype), (entries, index_dtype), (g.K * P + 1, index_dtype))
    shape = (g.K, Cg, *g.kernel)
    kernel2row.structure(shape, g.axes, g.boundary_code, g.groups, before, indices, indptr)
    _values(
        flat(w, *w.shape), prod(g.size), g.axes, g.boundary_code, *inside(g.axes[-1]), flat(before[0], -1),
        flat(before[1], -1), kernel2row.share(g.axes), data, work=w.size,
    )
    return data, indices, indptr


def share(P: int) -> int:
    """How many output pixels a task takes."""
    return max(1, min(64, -(-P // 64)))
