"""The convolution theorem block by block (overlap-save), by SciPy's FFT. For kernels large enough that it pays.

The output is cut into blocks. What a block reads is cut from the input, padding included, and

    block of y = what of ifft(fft(block of x) * W) no end of the block meets,    W = fft(kernel, turned round 0).

A transform is over one block of one image and channel, and in double precision: its rounding goes with the largest
value of the block, which float32 then does not show. What is far larger than the block's level (``overlap.level``), a
mark of missing data say, is taken out, and what it gives is added as the plain sum. A block that has many such values,
or of which something is not finite, is summed directly.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .._indexing import KERNEL, START, STEP, STRIDE
from ..geometry import ConvGeometry, axes_table
from . import implicit
from ._jit import SERIAL_BELOW, Kernel, flat, tasks_of
from .im2col import groups_of
from .overlap import (
    Blocks,
    block_rows,
    first_read,
    input_row,
    largest,
    place_block,
    put_back,
    reads,
    rows_of,
    size_of,
    take_out,
)
from .rows import add_up, gather, row_sum

#: Into how many sums the blocks of a weight gradient are split; more would need more memory.
SUMS = 4

#: Pieces of an output row that are summed directly, in outputs.
PIECE = 2048


# the kernels --------------------------------------------------------------------------------------------------------


@Kernel
def _cut(team, x, axes, boundary, fill, length, tile, tiles, c0, first, bits, spread, at, far, count, X):
    # x (N, C, rows in, last in), X (blocks, channels, rows, last); count (blocks, channels) values are taken out of it
    B, C, R, L = X.shape
    last = axes.shape[0] - 1
    for task in tasks_of(team, B * C):
        c, b = task % C, task // C
        place, line, most = np.empty((last + 1, 2), np.int64), np.zeros(L, x.dtype), np.zeros(1, x.dtype)
        words, so_far = line.view(bits.dtype), most.view(bits.dtype)
        n = place_block(first + b, tile, tiles, axes, place)
        needed, begin = line[: reads(last, place, axes)], first_read(last, place, axes)
        for r in range(R):
            row, target = input_row(r, place, length, axes, boundary), X[b, c, r]
            if row >= 0:
                gather(x[n, c0 + c, row], begin, 1, boundary, fill, 0, needed)
            elif row == -1:
                needed[:] = fill
            if row == -2:
                target[:] = 0
            else:
                largest(words, so_far)
                for j in range(L):
                    target[j] = line[j]
        count[b, c] = take_out(X[b, c].reshape(R * L), size_of(most[0]), spread, at[b, c], far[b, c])


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
def _join(team, Y, w, length, part_axes, at, far, count, axes, tile, tiles, bias, k0, first, begins, good, y):
    # Y (blocks, kernels, rows, last) joins y (N, K, rows out, last out), with what w gives of values taken out; which
    # are good is seen here
    B, K = Y.shape[:2]
    last = axes.shape[0] - 1
    stride = axes[last, STRIDE]
    for task in tasks_of(team, B * K):
        k, b = task % K, task // K
        level = True
        for c in range(count.shape[1]):
            level = level and count[b, c] >= 0
            for i in range(count[b, c]):
                put_back(Y[b, k], w[k, c], at[b, c, i], far[b, c, i], length, part_axes)
        place, sums = np.empty((last + 1, 2), np.int64), np.empty(tile[last], y.dtype)
        n = place_block(first + b, tile, tiles, axes, place)
        o0, outs = place[last, 0], place[last, 1]
        nothing = y.dtype.type(0)
        for r in range(rows_of(place)):
            O, row = block_rows(r, place, length, axes)
            values = Y[b, k, row]
            for j in range(outs):
                sums[j] = values[j * stride]
                nothing += sums[j] * 0
            add_up(y[n, k0 + k, O, o0 : o0 + outs], sums[:outs], begins, bias[k0 + k])
        good[b, k] = level and nothing == 0


@Kernel
def _sum_directly(team, x, w, bias, axes, boundary, fill, tile, tiles, again, y):
    # Blocks that are not finite or level, times K plus a kernel, tap by tap in the type of the bias; a task is a part
    # of their rows.
    K, last, parts = y.shape[1], axes.shape[0] - 1, 16
    for task in tasks_of(team, again.size * parts):
        part, k, block = task % parts, again[task // parts] % K, again[task // parts] // K
        place, sums = np.empty((last + 1, 2), np.int64), np.empty(PIECE, bias.dtype)
        n = place_block(block, tile, tiles, axes, place)
        pieces = (place[last, 1] + PIECE - 1) // PIECE
        units = rows_of(place) * pieces
        for unit in range(units * part // parts, units * (part + 1) // parts):
            O, _ = block_rows(unit // pieces, place, tile, axes)
            o0 = place[last, 0] + unit % pieces * PIECE
            target = y[n, k, O, o0 : min(o0 + PIECE, place[last, 0] + place[last, 1])]
            row_sum(x, w, bias, axes, boundary, fill, n, k, O, o0, sums[: target.size])
            for j in range(target.size):
                target[j] = sums[j]


@Kernel
def _scatter(team, dY, axes, length, tile, tiles, k0, first, bits, spread, at, far, count, D):
    # dY (N, K, rows out, last out) as D (blocks, kernels, rows, last), zeros between strides.
    B, K, R, L = D.shape
    last = axes.shape[0] - 1
    for task in tasks_of(team, B * K):
        k, b = task % K, task // K
        D[b, k] = 0
        place, line, most = np.empty((last + 1, 2), np.int64), np.zeros(tile[last], dY.dtype), np.zeros(1, dY.dtype)
        words, so_far = line.view(bits.dtype), most.view(bits.dtype)
        n = place_block(first + b, tile, tiles, axes, place)
        o0, outs = place[last, 0], place[last, 1]
        for r in range(rows_of(place)):
            O, row = block_rows(r, place, length, axes)
            dy, values = dY[n, k0 + k, O, o0 : o0 + outs], D[b, k, row]
            for j in range(outs):
                line[j] = dy[j]
                values[j * axes[last, STRIDE]] = dy[j]
            largest(words, so_far)
        count[b, k] = take_out(D[b, k].reshape(R * L), size_of(most[0]), spread, at[b, k], far[b, k])


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
    """``y = ifft(fft(x) * W)``, block by block.

    An output differs from the exact sum by at most some units of rounding (of ``y``'s dtype) of the larger of two:

        sum over what it reads of ``|w| |x|``,    and for each channel ``||w||`` times ``2**-5`` (float64: ``2**16``) of
        the level of the block,

    where the level is the size of what is no outlier: of the values in the block but zeros, as 64 of them show, the
    largest below which there is no gap wider than ``2**24`` (float64: ``2**16``) that has a sixteenth of them below it.
    """
    (N, C), (K, Cg), G = x.shape[:2], w.shape[:2], groups_of(x, w)
    work = y.size * prod(w.shape[1:])
    blocks = Blocks(axes, N, Cg, K // G, x.dtype, work)
    again: list[np.ndarray] = []
    x, bias = flat(x, N, C, prod(x.shape[2:-1]), x.shape[-1]), flat(bias, K)
    out = y.reshape(N, K, prod(y.shape[2:-1]), y.shape[-1])
    for part in parts_of(blocks, K, Cg, G, axes):
        one_part(blocks, part, x, w[part.weights], bias, axes, boundary, fill, again, out)
    if again:
        w = flat(w, K, Cg, prod(w.shape[2:-1]), w.shape[-1])
        bias = flat(bias.astype(blocks.numbers), K)
        _sum_directly(
            x, w, bias, axes, boundary, fill, *blocks.sizes[1:], np.unique(np.concatenate(again)), out, work=work
        )


class Cutter:
    """Blocks of one thread: cut, made level, transformed."""

    def __init__(self, blocks: Blocks, channels: int, few: int) -> None:
        self.blocks, self.X = blocks, blocks.empty(channels)
        shape = self.X.shape[:2]
        self.at = np.empty((*shape, few), np.int64)
        self.far, self.count = np.empty(self.at.shape, blocks.numbers), np.empty(shape, np.int64)

    def transform(self, cut: Kernel, filled: slice, *what: Any) -> np.ndarray:
        """The spectra of a batch, which ``cut`` fills; ``taken`` of it are the values taken out."""
        X = self.X[filled]
        cut.alone(*what, self.blocks.bits, self.blocks.spread, *self.taken(filled), self.blocks.rows(X))
        return self.blocks.flat(self.blocks.fft(X))

    def taken(self, filled: slice) -> tuple[np.ndarray, ...]:
        """Where values were in their blocks, the values, and how many; -1 where they were too many."""
        return self.at[filled], self.far[filled], self.count[filled]


def one_part(
    blocks: Blocks, part: Part, x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int,
    fill: np.generic, again: list[np.ndarray], y: np.ndarray,
) -> None:
    """Add a part of the sum to ``y``; ``w`` are its weights. To do ``again``: ``block * K + k``."""
    W = np.empty((*w.shape[:2], blocks.F), np.complex128)
    taps = flat(np.ascontiguousarray(w), *w.shape[:2], prod(w.shape[2:-1]), w.shape[-1])

    def transform() -> Callable[[int], None]:
        kernel = np.empty((1, w.shape[1], *blocks.length), blocks.numbers)

        def task(k: int) -> None:
            kernel[...] = 0
            kernel[tap_places(part.axes, blocks.length, -1)] = w[k]
            np.divide(blocks.flat(blocks.fft(kernel))[0], blocks.size, out=W[k])

        return task

    def convolve() -> Callable[[int], None]:
        cutter, Y = Cutter(blocks, w.shape[1], blocks.few), blocks.empty_spectra(w.shape[0])
        good = np.empty(Y.shape[:2], np.bool_)

        def task(i: int) -> None:
            first, filled = blocks.batch(i)
            X = cutter.transform(_cut, filled, x, part.axes, boundary, fill, *blocks.sizes, part.c0, first)
            _multiply.alone(X, W, blocks.flat(Y[filled]))
            del X
            sums = blocks.rows(blocks.ifft(Y[filled]))
            length, tile, tiles = blocks.sizes
            _join.alone(
                sums, taps, length, part.axes, *cutter.taken(filled), axes, tile, tiles, bias, part.k0, first,
                part.begins, good[filled], y,
            )
            if not good[filled].all():
                b, k = np.nonzero(~good[filled])
                again.append((first + b) * y.shape[1] + part.k0 + k)

        return task

    share(blocks.workers, len(W), transform)
    share(blocks.workers, blocks.batches, convolve)


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``dW = conj(ifft(sum over blocks of fft(x) * conj(fft(dY))))`` where the taps are.

    The blocks are split into a fixed number of sums. Where a value stands out, all is summed directly: see ``forward``.
    """
    N, (K, Cg), G = x.shape[0], dW.shape[:2], groups_of(x, dW)
    blocks = Blocks(axes, N, Cg, K // G, x.dtype, dY.size * prod(dW.shape[1:]), 2 * SUMS)
    rows_x, rows_dY = (flat(a, *a.shape[:2], prod(a.shape[2:-1]), a.shape[-1]) for a in (x, dY))
    for part in parts_of(blocks, K, Cg, G, axes):
        target = dW[part.weights]
        S = np.zeros((min(SUMS, blocks.batches), *target.shape[:2], blocks.F), np.complex128)
        if not correlate(blocks, part, rows_x, rows_dY, boundary, fill, S):
            dW[...] = np.nan
            break
        spectrum = S.sum(axis=0).reshape(*target.shape[:2], *blocks.spectrum)
        sums = blocks.ifft(spectrum)[tap_places(part.axes, blocks.length, 1)] / blocks.size
        target[...] = sums.conj()
    if not np.isfinite(dW).all():  # a sum over all pixels, of which some are not finite
        implicit.grad_weight(x, dY, axes, boundary, fill, dW)


def correlate(
    blocks: Blocks, part: Part, x: np.ndarray, dY: np.ndarray, boundary: int, fill: np.generic, S: np.ndarray
) -> bool:
    """``S (sums, kernels, channels, F)`` becomes sums of ``fft(x) * conj(fft(dY))``, each over its share of blocks.

    False where a value stands out.
    """
    sums, K, C, _ = S.shape
    level = np.ones(sums, np.bool_)

    def begin() -> Callable[[int], None]:
        X, D = Cutter(blocks, C, 0), Cutter(blocks, K, 0)

        def task(share: int) -> None:
            for i in range(blocks.batches * share // sums, blocks.batches * (share + 1) // sums):
                first, filled = blocks.batch(i)
                of_x = X.transform(_cut, filled, x, part.axes, boundary, fill, *blocks.sizes, part.c0, first)
                of_dY = D.transform(_scatter, filled, dY, part.axes, *blocks.sizes, part.k0, first)
                if X.count[filled].any() or D.count[filled].any():
                    level[share] = False
                    return
                _correlate.alone(of_x, of_dY, S[share])
                del of_x, of_dY  # before there are new ones

        return task

    share(blocks.workers, sums, begin)
    return bool(level.all())


def share(workers: int, tasks: int, begin: Callable[[], Callable[[int], None]]) -> None:
    """Run ``begin()(i)`` for all ``i < tasks``; each thread begins once, with memory of its own."""
    turn, waiting = threading.Lock(), iter(range(tasks))

    @np.errstate(all="ignore")  # other threads do not inherit it
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
    # nothing but a lock of C waits for them: an interrupt as threading.Thread or a pool begins one may leave its
    # condition taken, and the thread and the end of the process wait for ever
    failed: list[BaseException] = []

    def beside(working: Any) -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)
        finally:
            working.release()

    others: list[Any] = []
    try:
        for _ in range(workers - 1):
            working = _thread.allocate_lock()
            working.acquire()
            _thread.start_new_thread(beside, (working,))
            others.append(working)
        work()
    finally:
        for working in others:
            working.acquire()
    if failed:
        raise failed[0]


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: spectra of kernels, and of some blocks for each thread."""
    g = geometry
    if not (g.N and g.C and g.K):
        return 0
    blocks = Blocks(g.axes, g.N, g.C // g.groups, g.K // g.groups, dtype, SERIAL_BELOW)
    return blocks.kernel_bytes + blocks.workers * blocks.thread_bytes


def workspace_of_sums(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``grad_weight`` takes: sums and each thread's spectra of blocks, then the sum of sums turned back."""
    g = geometry
    blocks = Blocks(g.axes, g.N, g.C // g.groups, g.K // g.groups, dtype, SERIAL_BELOW, 2 * SUMS)
    sums = min(SUMS, blocks.batches)
    blocks_of_all = min(blocks.workers, sums) * blocks.thread_bytes
    back = 2 * blocks.some.K * blocks.some.C * blocks.size * blocks.numbers.itemsize
    return sums * blocks.kernel_bytes + max(blocks_of_all, blocks.kernel_bytes + back)
