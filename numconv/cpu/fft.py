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
from functools import lru_cache
from itertools import product
from math import isqrt, log2, prod
from typing import Any, NamedTuple

import numba
import numpy as np
import scipy.fft
from numba import prange

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..geometry import ConvGeometry, axes_table
from . import implicit
from ._jit import SERIAL_BELOW, Kernel, flat, helper, source
from .im2col import groups_of
from .rows import add_up, gather, row_sum

#: Numbers in a block at most, in the spectra of a task's blocks, and in the spectra of the kernels that are kept.
BLOCK, TASK, KERNELS = 1 << 18, 1 << 19, 1 << 20

#: Numbers a task should have, so that calls cost little beside the transforms.
WORTH = 1 << 15

#: Bytes for all of it: with more threads than these feed, the others stay idle.
WORKSPACE = 56 << 20

#: Pieces of an output row that are summed directly, in outputs.
PIECE = 2048


class Tiling(NamedTuple):
    """How a convolution is cut: for each axis the length of the transform, outputs of a block, blocks, taps at once."""

    length: tuple[int, ...]
    tile: tuple[int, ...]
    tiles: tuple[int, ...]
    taps: tuple[int, ...]


@lru_cache(maxsize=256)
def tiling(rows: tuple[tuple[int, ...], ...], images: int, real: bool) -> Tiling:
    """The cheapest blocks for a table of axes, by ``n log n``; kernels too large for a block are cut as well."""
    taps = [row[KERNEL] for row in rows]
    reach = [(k - 1) * abs(row[STEP]) + 1 for k, row in zip(taps, rows, strict=True)]
    while prod(2 * r for r in reach) > BLOCK:
        a = reach.index(max(reach))
        taps[a] = -(-taps[a] // 2)
        reach[a] = (taps[a] - 1) * abs(rows[a][STEP]) + 1
    best, least, half_octaves = None, 0.0, 0
    while True:
        room = 2 ** (half_octaves / 2)
        cut = [_cut_axis(row[OUT], row[STRIDE], r, room) for row, r in zip(rows, reach, strict=True)]
        length, tile, tiles = (tuple(column) for column in zip(*cut, strict=True))
        if best and prod(length) > BLOCK:
            return best
        blocks = -(-images * prod(tiles) // 2) if real else images * prod(tiles)
        cost = blocks * prod(length) * (log2(prod(length)) + 12 * len(rows))  # measured: each axis costs a pass
        if best is None or cost < least:
            best, least = Tiling(length, tile, tiles, tuple(taps)), cost
        if prod(tiles) == 1:
            return best
        half_octaves += 1


def _cut_axis(out: int, stride: int, reach: int, room: float) -> tuple[int, int, int]:
    """Length, outputs and number of blocks along an axis that has ``room`` pixels for windows to begin at."""
    length = scipy.fft.next_fast_len(int(room) - 1 + reach, real=True)  # factors 2, 3, 5
    tiles = -(-out // ((length - reach) // stride + 1))
    tile = -(-out // tiles)
    return scipy.fft.next_fast_len((tile - 1) * stride + reach, real=True), tile, tiles


class Portion(NamedTuple):
    """Images, input and output channels of a group, that are transformed at once."""

    blocks: int
    C: int
    K: int


def portion(t: Tiling, channels: int, kernels: int, blocks: int) -> Portion:
    """As many of a group's channels and kernels as their spectra may take, both alike, so that both are used again."""
    F = prod(t.length)
    most, wide = max(1, KERNELS // F), max(1, TASK // F)
    K = min(kernels, wide, max(isqrt(most), most // channels))
    C = min(channels, wide, max(1, most // K))
    return Portion(max(1, min(blocks, WORTH // (F * max(C, K)))), C, K)


# what a block reads and writes --------------------------------------------------------------------------------------


@helper
def place_block(b, tile, tiles, axes, place):
    """The first output of block ``b`` and how many it has, on each axis; returns its image."""
    for a in range(axes.shape[0] - 1, -1, -1):
        place[a, 0] = b % tiles[a] * tile[a]
        place[a, 1] = min(tile[a], axes[a, OUT] - place[a, 0])
        b //= tiles[a]
    return b


@helper
def input_row(r, place, length, axes, boundary):
    """The input row that row ``r`` of a block holds, -1 for the constant, -2 for none: no output reads it."""
    row, rows, constant, unread = 0, 1, False, False
    for a in range(axes.shape[0] - 2, -1, -1):
        i = r % length[a]
        r //= length[a]
        unread = unread or i >= reads(a, place, axes)
        pixel = source(first_read(a, place, axes) + i, axes[a, SIZE], boundary)
        constant = constant or pixel < 0
        row += pixel * rows
        rows *= axes[a, SIZE]
    return -2 if unread else -1 if constant else row


@helper
def first_read(a, place, axes):
    """The first position on axis ``a`` that a block reads."""
    return axes[a, START] + place[a, 0] * axes[a, STRIDE] + min(0, (axes[a, KERNEL] - 1) * axes[a, STEP])


@helper
def reads(a, place, axes):
    """How many positions on axis ``a`` a block reads."""
    return (place[a, 1] - 1) * axes[a, STRIDE] + (axes[a, KERNEL] - 1) * abs(axes[a, STEP]) + 1


@helper
def rows_of(place):
    """How many output rows a block has."""
    rows = 1
    for a in range(place.shape[0] - 1):
        rows *= place[a, 1]
    return rows


@helper
def block_rows(r, place, length, axes):
    """For row ``r`` of a block's outputs: its row in the output, and in the transform."""
    O, row, outs, rows = 0, 0, 1, 1
    for a in range(place.shape[0] - 2, -1, -1):
        i = r % place[a, 1]
        r //= place[a, 1]
        O += (place[a, 0] + i) * outs
        row += i * axes[a, STRIDE] * rows
        outs *= axes[a, OUT]
        rows *= length[a]
    return O, row


@Kernel
def _cut(x, axes, boundary, fill, length, tile, tiles, c0, first, X):
    # x (N, C, rows in, last in), X (blocks or pairs of them, channels, rows, last, 1 or 2 blocks)
    B, C, R, L, parts = X.shape
    last = axes.shape[0] - 1
    for task in prange(B * C):
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
def _multiply(X, W, Y):
    # X (blocks, C, F), W (K, C, F), Y (blocks, K, F): a sum over channels at each frequency, some frequencies at a time.
    B, C, F = X.shape
    K, some = W.shape[0], 128
    for task in prange((F + some - 1) // some):
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
def _join(Y, axes, length, tile, tiles, bias, k0, first, begins, finite, y):
    # Y (blocks or pairs, kernels, rows, last, 1 or 2 blocks) joins y (N, K, rows out, last out)
    B, K, _, L, parts = Y.shape
    last = axes.shape[0] - 1
    stride = axes[last, STRIDE]
    for task in prange(B * K * parts):
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
            if not nothing == 0:
                finite[block, k0 + k] = False


@Kernel
def _sum_directly(x, w, bias, axes, boundary, fill, tile, tiles, finite, y):
    # The blocks that are not finite, tap by tap; a task is a part of their rows.
    blocks, K = finite.shape
    last, parts = axes.shape[0] - 1, 16
    for task in prange(blocks * K * parts):
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
def _scatter(dY, axes, length, tile, tiles, k0, first, D):
    # dY (N, K, rows out, last out) in blocks D (blocks or pairs, kernels, rows, last, 1 or 2), at the strides, else zeros.
    B, K, _, _, parts = D.shape
    last = axes.shape[0] - 1
    for task in prange(B * K):
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
def _correlate(X, D, S):
    # X (blocks, C, F), D (blocks, K, F): S (K, C, F) += X * conj(D)
    B, C, F = X.shape
    K = D.shape[1]
    for task in prange(K * C):
        c, k = task % C, task // C
        s = S[k, c]
        for b in range(B):
            x, d = X[b, c], D[b, k]
            for f in range(F):
                s[f] += x[f] * np.conj(d[f])


# the products -------------------------------------------------------------------------------------------------------


class Pass(NamedTuple):
    """A part of the sum for a part of the output: kernels ``k0 … k1``, their channels from ``c0``, some of the taps."""

    k0: int
    k1: int
    c0: int
    weights: tuple[slice, ...]
    axes: np.ndarray
    begins: bool


def passes(K: int, Cg: int, groups: int, some: Portion, axes: np.ndarray, taps: tuple[int, ...]) -> Iterator[Pass]:
    """One pass in most cases; more for many channels and for kernels larger than a block."""
    Kg = K // groups
    for k0, k1 in ((g * Kg + a, g * Kg + b) for g in range(groups) for a, b in _pieces(Kg, some.K)):
        terms = product(_pieces(Cg, some.C), *(_pieces(k, n) for k, n in zip(axes[:, KERNEL].tolist(), taps, strict=True)))
        for i, ((c0, c1), *spans) in enumerate(terms):
            table = axes.copy()
            for row, (t0, t1) in zip(table, spans, strict=True):
                row[START] += t0 * row[STEP]
                row[KERNEL] = t1 - t0
            weights = slice(k0, k1), slice(c0, c1), *(slice(*span) for span in spans)
            yield Pass(k0, k1, k0 // Kg * Cg + c0, weights, axes_table(table.tolist()), i == 0)


def _pieces(n: int, most: int) -> list[tuple[int, int]]:
    """``0 … n`` in as few equal pieces as possible."""
    count = -(-n // most)
    return [(n * i // count, n * (i + 1) // count) for i in range(count)]


def tap_places(axes: np.ndarray) -> list[np.ndarray]:
    """How far each tap lies from the first position that a window reads, on each axis."""
    return [
        np.arange(k) * step - min(0, (k - 1) * step) for k, step in zip(axes[:, KERNEL], axes[:, STEP], strict=True)
    ]


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``y = ifft(fft(x) * W)``, block by block."""
    (N, C), (K, Cg), G, d = x.shape[:2], w.shape[:2], groups_of(x, w), len(axes)
    t, some, workers = _layout(axes, N, Cg, K // G, x.dtype, y.size * prod(w.shape[1:]))
    length, tile, tiles = (np.array(column, np.int64) for column in t[:3])
    numbers, parts = _spectrum(x.dtype), _blocks_in_one(x.dtype)
    blocks = N * prod(t.tiles)
    finite = np.ones((blocks, K), np.bool_)
    rows, spatial = (prod(t.length[:-1]), t.length[-1], parts), tuple(range(2, 2 + d))
    x, bias = flat(x, N, C, prod(x.shape[2:-1]), x.shape[-1]), flat(bias, K)
    out = y.reshape(N, K, prod(y.shape[2:-1]), y.shape[-1])
    for part in passes(K, Cg, G, some, axes, t.taps):
        weights = w[part.weights]
        (kernels, channels), begins = weights.shape[:2], part.begins
        W = np.zeros((kernels, channels, *t.length), numbers)
        places = [-u % n for u, n in zip(tap_places(part.axes), t.length, strict=True)]
        W[(slice(None), slice(None), *np.ix_(*places))] = weights

        def transform(k: int, W: np.ndarray = W) -> None:
            W[k] = scipy.fft.fftn(W[k], axes=range(1, 1 + d), norm="forward", overwrite_x=True, workers=1)

        def blockwise(part: Pass = part, W: np.ndarray = W) -> Callable[[int], None]:
            X = np.empty((some.blocks, W.shape[1], *t.length), numbers)
            Y = np.empty((some.blocks, W.shape[0], *t.length), numbers)

            def task(i: int) -> None:
                first = i * some.blocks
                B = min(some.blocks, -(-blocks // parts) - first)
                X_rows = X[:B].view(x.dtype).reshape(B, X.shape[1], *rows)
                _cut.serial(x, part.axes, boundary, fill, length, tile, tiles, part.c0, first, X_rows)
                Xf = scipy.fft.fftn(X[:B], axes=spatial, overwrite_x=True, workers=1)
                _multiply.serial(Xf.reshape(B, X.shape[1], -1), W.reshape(*W.shape[:2], -1), Y[:B].reshape(B, Y.shape[1], -1))
                y_rows = scipy.fft.ifftn(Y[:B], axes=spatial, norm="forward", overwrite_x=True, workers=1)
                y_rows = y_rows.view(x.dtype).reshape(B, Y.shape[1], *rows)
                _join.serial(y_rows, axes, length, tile, tiles, bias, part.k0, first, part.begins, finite, out)

            return task

        share(workers, kernels, lambda transform=transform: transform)
        share(workers, -(-blocks // (parts * some.blocks)), blockwise)
    if not finite.all():
        w = flat(w, K, Cg, prod(w.shape[2:-1]), w.shape[-1])
        _sum_directly(x, w, bias, axes, boundary, fill, tile, tiles, finite, out, work=y.size * w.size // K)


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``dW = conj(ifft(sum over blocks of fft(x) * conj(fft(dY))))`` where the taps are, a fixed number of sums."""
    implicit.grad_weight(x, dY, axes, boundary, fill, dW)


def share(workers: int, tasks: int, begin: Callable[[], Callable[[int], Any]]) -> None:
    """Run ``begin()(i)`` for all ``i < tasks``; each of the threads begins once, with memory of its own."""
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


# sizes --------------------------------------------------------------------------------------------------------------


def _spectrum(dtype: np.dtype) -> np.dtype:
    return np.result_type(dtype, np.complex64)


def _blocks_in_one(dtype: np.dtype) -> int:
    return 2 if dtype.kind == "f" else 1


def _layout(axes: Any, N: int, Cg: int, Kg: int, dtype: np.dtype, work: int) -> tuple[Tiling, Portion, int]:
    """The blocks, what is transformed at once, and for how many threads there is memory and work."""
    t = tiling(tuple(map(tuple, np.asarray(axes).tolist())), N, dtype.kind == "f")
    some = portion(t, Cg, Kg, -(-N * prod(t.tiles) // _blocks_in_one(dtype)))
    kernels, thread = _nbytes(t, some, dtype)
    most = max(1, (WORKSPACE - kernels) // thread)
    return t, some, min(numba.get_num_threads(), most) if work >= SERIAL_BELOW else 1


def _nbytes(t: Tiling, some: Portion, dtype: np.dtype) -> tuple[int, int]:
    """Bytes of the kernels' spectra, and of what a thread needs: its blocks, and SciPy's copies of some lines."""
    numbers = some.blocks * (some.C + some.K) * prod(t.length) + 8 * max(t.length)
    return some.K * some.C * prod(t.length) * _spectrum(dtype).itemsize, numbers * _spectrum(dtype).itemsize


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: spectra of kernels, and of some blocks for each thread."""
    g = geometry
    if not (g.C and g.K and g.N):
        return 0
    t, some, workers = _layout(g.axes, g.N, g.C // g.groups, g.K // g.groups, dtype, SERIAL_BELOW)
    kernels, thread = _nbytes(t, some, dtype)
    return kernels + workers * thread + g.N * g.K * prod(t.tiles)
