"""The convolution theorem block by block (overlap-save), by SciPy's FFT. For kernels large enough that it pays.

The output is cut into blocks. What a block reads is cut from the input, padding included, and

    block of y = what of ifft(fft(block of x) * W) no end of the block meets,    W = fft(kernel, turned round 0).

Real data travel two blocks at a time, one as the real and one as the imaginary part: a real kernel does not mix them.
FFT spreads NaN and infinity over the whole block, so a block whose result is not finite is summed directly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .._indexing import KERNEL, START, STEP, STRIDE
from ..geometry import ConvGeometry, axes_table
from . import implicit
from ._jit import SERIAL_BELOW, Kernel, flat, tasks_of
from .im2col import groups_of
from .overlap import Blocks, block_rows, first_read, input_row, place_block, reads, rows_of
from .rows import add_up, gather, row_sum

#: Into how many sums the blocks of a weight gradient are split; more would need more memory.
SUMS = 4

#: Pieces of an output row that are summed directly, in outputs.
PIECE = 2048


# the kernels --------------------------------------------------------------------------------------------------------


@Kernel
def _cut(team, x, axes, boundary, fill, length, tile, tiles, c0, first, X):
    # x (N, C, rows in, last in), X (blocks or pairs of them, channels, rows, last, 1 or 2 blocks)
    B, C, R, L, parts = X.shape
    last = axes.shape[0] - 1
    for task in tasks_of(team, B * C):
        c, b = task % C, task // C
        place, lines = np.empty((parts, last + 1, 2), np.int64), np.zeros((2, L), x.dtype)
        images = np.empty(parts, np.int64)
        for part in range(parts):
            images[part] = place_block((first + b) * parts + part, tile, tiles, axes, place[part])
        for r in range(R):
            for part in range(parts):
                n, line = images[part], lines[part]
                row = input_row(r, place[part], length, axes, boundary) if n < x.shape[0] else -2
                needed = line[: reads(last, place[part], axes)]
                if row >= 0:
                    begin = first_read(last, place[part], axes)
                    gather(x[n, c0 + c, row], begin, 1, boundary, fill, 0, needed)
                else:
                    line[:] = 0
                    if row == -1:
                        needed[:] = fill
            target = X[b, c, r]
            if parts == 2:
                for j in range(L):
                    target[j, 0] = lines[0, j]
                    target[j, 1] = lines[1, j]
            else:
                for j in range(L):
                    target[j, 0] = lines[0, j]


@Kernel
def _multiply(team, X, W, Y):
    # X (blocks, C, F), W (K, C, F), Y (blocks, K, F): sums over channels, for some frequencies at a time.
    B, C, F = X.shape
    K, some = W.shape[0], 128
    for task in tasks_of(team, (F + some - 1) // some):
        f0, f1 = task * some, min((task + 1) * some, F)
        for k in range(K):
            for b in range(B):
                y = Y[b, k, f0:f1]
                for c in range(C):
                    x, w = X[b, c, f0:f1], W[k, c, f0:f1]
                    if c == 0:
                        for f in range(y.size):
                            y[f] = x[f] * w[f]
                    else:
                        for f in range(y.size):
                            y[f] += x[f] * w[f]


@Kernel
def _join(team, Y, axes, length, tile, tiles, bias, k0, first, begins, finite, y):
    # Y (blocks or pairs, kernels, rows, last, 1 or 2 blocks) joins y (N, K, rows out, last out)
    B, K, _, _, parts = Y.shape
    last = axes.shape[0] - 1
    stride = axes[last, STRIDE]
    for task in tasks_of(team, B * K * parts):
        part, k, b = task % parts, task // parts % K, task // parts // K
        place, sums = np.empty((last + 1, 2), np.int64), np.empty(tile[last], y.dtype)
        block = (first + b) * parts + part
        n = place_block(block, tile, tiles, axes, place)
        if n < y.shape[0]:
            o0, count = place[last, 0], place[last, 1]
            nothing = y.dtype.type(0)
            for r in range(rows_of(place)):
                O, row = block_rows(r, place, length, axes)
                values = Y[b, k, row]
                for j in range(count):
                    sums[j] = values[j * stride, part]
                    nothing += sums[j] * 0
                add_up(y[n, k0 + k, O, o0 : o0 + count], sums[:count], begins, bias[k0 + k])
            if nothing != 0:
                finite[block, k0 + k] = False


@Kernel
def _sum_directly(team, x, w, bias, axes, boundary, fill, tile, tiles, finite, y):
    # The blocks that are not finite, tap by tap; a task is a part of their rows.
    blocks, K = finite.shape
    last, parts = axes.shape[0] - 1, 16
    for task in tasks_of(team, blocks * K * parts):
        part, k, block = task % parts, task // parts % K, task // parts // K
        if not finite[block, k]:
            place = np.empty((last + 1, 2), np.int64)
            n = place_block(block, tile, tiles, axes, place)
            pieces = (place[last, 1] + PIECE - 1) // PIECE
            units = rows_of(place) * pieces
            for unit in range(units * part // parts, units * (part + 1) // parts):
                O, _ = block_rows(unit // pieces, place, tile, axes)
                o0 = place[last, 0] + unit % pieces * PIECE
                o1 = min(o0 + PIECE, place[last, 0] + place[last, 1])
                row_sum(x, w, bias, axes, boundary, fill, n, k, O, o0, y[n, k, O, o0:o1])


@Kernel
def _scatter(team, dY, axes, length, tile, tiles, k0, first, D):
    # dY (N, K, rows out, last out) as D (blocks or pairs, kernels, rows, last, 1 or 2 blocks), zeros between strides.
    B, K, _, _, parts = D.shape
    last = axes.shape[0] - 1
    for task in tasks_of(team, B * K):
        k, b = task % K, task // K
        D[b, k] = 0
        place = np.empty((last + 1, 2), np.int64)
        for part in range(parts):
            n = place_block((first + b) * parts + part, tile, tiles, axes, place)
            if n < dY.shape[0]:
                o0, count = place[last, 0], place[last, 1]
                for r in range(rows_of(place)):
                    O, row = block_rows(r, place, length, axes)
                    dy, values = dY[n, k0 + k, O, o0 : o0 + count], D[b, k, row]
                    for j in range(count):
                        values[j * axes[last, STRIDE], part] = dy[j]


@Kernel
def _correlate(team, X, D, S):
    # X (blocks, C, F), D (blocks, K, F): S (K, C, F) += X * conj(D)
    B, C, F = X.shape
    K = D.shape[1]
    for task in tasks_of(team, K * C):
        c, k = task % C, task // C
        s = S[k, c]
        for b in range(B):
            x, d = X[b, c], D[b, k]
            for f in range(F):
                s[f] += x[f] * np.conj(d[f])


# the products -------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A part of the sum, for a part of the output: some kernels from ``k0``, channels from ``c0``, some taps."""

    k0: int
    c0: int
    weights: tuple[slice, ...]
    axes: np.ndarray
    begins: bool


def parts_of(blocks: Blocks, K: int, Cg: int, groups: int, axes: np.ndarray) -> Iterator[Part]:
    """One part in most cases; more for groups, for many channels and for kernels larger than a block."""
    Kg, kernel = K // groups, axes[:, KERNEL].tolist()
    for k0, k1 in ((g * Kg + a, g * Kg + b) for g in range(groups) for a, b in pieces(Kg, blocks.some.K)):
        terms = product(pieces(Cg, blocks.some.C), *map(pieces, kernel, blocks.taps))
        for i, ((c0, c1), *spans) in enumerate(terms):
            table = axes.copy()
            for row, (t0, t1) in zip(table, spans, strict=True):
                row[START] += t0 * row[STEP]
                row[KERNEL] = t1 - t0
            weights = (slice(k0, k1), slice(c0, c1), *(slice(*span) for span in spans))
            yield Part(k0, k0 // Kg * Cg + c0, weights, axes_table(table.tolist()), i == 0)


def pieces(n: int, most: int) -> list[tuple[int, int]]:
    """``0 … n`` in as few equal pieces as possible."""
    count = -(-n // most)
    return [(n * i // count, n * (i + 1) // count) for i in range(count)]


def tap_places(axes: np.ndarray, length: tuple[int, ...], sign: int) -> tuple[Any, ...]:
    """Where in a transform the taps lie: ``sign`` times their distance from the first position a window reads."""
    distances = [np.arange(k) * s - min(0, (k - 1) * s) for k, s in axes[:, [KERNEL, STEP]].tolist()]
    return (slice(None), slice(None), *np.ix_(*(sign * u % n for u, n in zip(distances, length, strict=True))))


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``y = ifft(fft(x) * W)``, block by block."""
    (N, C), (K, Cg), G = x.shape[:2], w.shape[:2], groups_of(x, w)
    work = y.size * prod(w.shape[1:])
    blocks = Blocks(axes, N, Cg, K // G, x.dtype, work)
    finite = np.ones((blocks.count, K), np.bool_)
    x, bias = flat(x, N, C, prod(x.shape[2:-1]), x.shape[-1]), flat(bias, K)
    out = y.reshape(N, K, prod(y.shape[2:-1]), y.shape[-1])
    for part in parts_of(blocks, K, Cg, G, axes):
        weights = w[part.weights]
        W = np.zeros((*weights.shape[:2], *blocks.length), blocks.numbers)
        W[tap_places(part.axes, blocks.length, -1)] = weights
        one_part(blocks, part, x, W, bias, axes, boundary, fill, finite, out)
    if not finite.all():
        w = flat(w, K, Cg, prod(w.shape[2:-1]), w.shape[-1])
        _sum_directly(x, w, bias, axes, boundary, fill, *blocks.sizes[1:], finite, out, work=work)


def one_part(
    blocks: Blocks, part: Part, x: np.ndarray, W: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int,
    fill: np.generic, finite: np.ndarray, y: np.ndarray,
) -> None:
    """Add a part of the sum to ``y``; ``W`` holds the kernels, and then their spectra."""

    def transform() -> Callable[[int], None]:
        def task(k: int) -> None:
            W[k : k + 1] = blocks.fft(W[k : k + 1]) / blocks.F

        return task

    def convolve() -> Callable[[int], None]:
        X, Y = blocks.empty(W.shape[1]), blocks.empty(W.shape[0])

        def task(i: int) -> None:
            first, filled = blocks.batch(i)
            x_blocks, y_blocks = X[filled], Y[filled]
            _cut.alone(x, part.axes, boundary, fill, *blocks.sizes, part.c0, first, blocks.rows(x_blocks))
            _multiply.alone(blocks.flat(blocks.fft(x_blocks)), blocks.flat(W), blocks.flat(y_blocks))
            y_blocks = blocks.rows(blocks.ifft(y_blocks))
            _join.alone(y_blocks, axes, *blocks.sizes, bias, part.k0, first, part.begins, finite, y)

        return task

    share(blocks.workers, len(W), transform)
    share(blocks.workers, blocks.batches, convolve)


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``dW = conj(ifft(sum over blocks of fft(x) * conj(fft(dY))))`` where the taps are.

    Of two real blocks in one, the real part is the sum of both. The blocks are split into a fixed number of sums.
    """
    N, (K, Cg), G = x.shape[0], dW.shape[:2], groups_of(x, dW)
    blocks = Blocks(axes, N, Cg, K // G, x.dtype, dY.size * prod(dW.shape[1:]), 2 * SUMS)
    rows_x, rows_dY = (flat(a, *a.shape[:2], prod(a.shape[2:-1]), a.shape[-1]) for a in (x, dY))
    for part in parts_of(blocks, K, Cg, G, axes):
        target = dW[part.weights]
        S = np.zeros((min(SUMS, blocks.batches), *target.shape[:2], blocks.F), np.complex128)
        correlate(blocks, part, rows_x, rows_dY, boundary, fill, S)
        spectrum = S.sum(axis=0).reshape(*target.shape[:2], *blocks.length)
        sums = blocks.ifft(spectrum)[tap_places(part.axes, blocks.length, 1)] / blocks.F
        target[...] = sums.conj() if dW.dtype.kind == "c" else sums.real
    if not np.isfinite(dW).all():  # a sum over all pixels, of which some are not finite
        implicit.grad_weight(x, dY, axes, boundary, fill, dW)


def correlate(
    blocks: Blocks, part: Part, x: np.ndarray, dY: np.ndarray, boundary: int, fill: np.generic, S: np.ndarray
) -> None:
    """``S (sums, kernels, channels, F)`` becomes sums of ``fft(x) * conj(fft(dY))``, each over its share of blocks."""
    sums, K, C, _ = S.shape

    def begin() -> Callable[[int], None]:
        X, D = blocks.empty(C), blocks.empty(K)

        def task(share: int) -> None:
            for i in range(blocks.batches * share // sums, blocks.batches * (share + 1) // sums):
                first, filled = blocks.batch(i)
                x_blocks, dy_blocks = X[filled], D[filled]
                _cut.alone(x, part.axes, boundary, fill, *blocks.sizes, part.c0, first, blocks.rows(x_blocks))
                _scatter.alone(dY, part.axes, *blocks.sizes, part.k0, first, blocks.rows(dy_blocks))
                x_blocks, dy_blocks = blocks.fft(x_blocks), blocks.fft(dy_blocks)
                _correlate.alone(blocks.flat(x_blocks), blocks.flat(dy_blocks), S[share])

        return task

    share(blocks.workers, sums, begin)


def share(workers: int, tasks: int, begin: Callable[[], Callable[[int], None]]) -> None:
    """Run ``begin()(i)`` for all ``i < tasks``; each thread begins once, with memory of its own."""
    turn, waiting = threading.Lock(), iter(range(tasks))

    def work() -> None:
        task = begin()
        while True:
            with turn:
                i = next(waiting, None)
            if i is None:
                return
            task(i)

    workers = min(workers, tasks)
    if workers < 2:
        work()
        return
    with ThreadPoolExecutor(workers - 1) as pool:
        others = [pool.submit(work) for _ in range(workers - 1)]
        work()
        for other in others:
            other.result()


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: spectra of kernels, and of some blocks for each thread."""
    g = geometry
    if not (g.N and g.C and g.K):
        return 0
    blocks = Blocks(g.axes, g.N, g.C // g.groups, g.K // g.groups, dtype, SERIAL_BELOW)
    return blocks.kernel_bytes + blocks.workers * blocks.thread_bytes + blocks.count * g.K
