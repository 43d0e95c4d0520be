"""How a convolution is cut into blocks that overlap (overlap-save), and what each block reads and writes."""

from __future__ import annotations

from functools import lru_cache
from math import isqrt, log2, prod
from typing import NamedTuple

import numba
import numpy as np
import scipy.fft

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from .._memory import WORKSPACE
from ._jit import SERIAL_BELOW, helper, source

#: Numbers in a block at most, in the spectra of a task's blocks, and in the spectra of the kernels that are kept.
BLOCK, TASK, KERNELS = 1 << 18, 1 << 19, 1 << 20

#: Numbers a task should have, so that calls cost little beside the transforms.
WORTH = 1 << 15

#: Bytes for all spectra, which leaves a little for the rest: with more threads than these feed, the others stay idle.
ROOM = WORKSPACE - (8 << 20)


class Tiling(NamedTuple):
    """How a convolution is cut: for each axis the length of the transform, outputs of a block, blocks, taps at once."""

    length: tuple[int, ...]
    tile: tuple[int, ...]
    tiles: tuple[int, ...]
    taps: tuple[int, ...]


@lru_cache(maxsize=256)
def tiling(rows: tuple[tuple[int, ...], ...], images: int, dtype: np.dtype) -> Tiling:
    """The cheapest blocks for a table of axes; kernels too large for a block are cut as well.

    The cost is ``n log n`` and, as measured, a pass for each axis more than the first, and what leaves the L2 cache.
    """
    d, itemsize, together = len(rows), _spectrum(dtype).itemsize, _blocks_in_one(dtype)
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
        F = prod(length)
        passes = log2(F) + 18 * d - 12
        cost = -(-images * prod(tiles) // together) * F * passes * (1 + (F * itemsize / 2**20) ** 2 / 2)
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
    """How many blocks (or pairs), input channels and output channels of a group are transformed at once."""

    blocks: int
    C: int
    K: int


def portion(F: int, blocks: int, channels: int, kernels: int, sums: int) -> Portion:
    """As many channels and kernels of a group as ``sums`` sums leave room for, both alike: both are used again."""
    most, wide = max(1, KERNELS // sums // F), max(1, TASK // F)
    K = min(kernels, wide, max(isqrt(most), most // channels))
    C = min(channels, wide, max(1, most // K))
    return Portion(max(1, min(blocks, WORTH // (F * max(C, K)))), C, K)


class Blocks:
    """The blocks of one convolution, and arrays for their spectra."""

    def __init__(
        self, axes: np.ndarray, N: int, Cg: int, Kg: int, dtype: np.dtype, work: int, sums: int = 1
    ) -> None:
        self.dtype, self.numbers, self.together = dtype, _spectrum(dtype), _blocks_in_one(dtype)
        self.length, tile, tiles, self.taps = tiling(tuple(map(tuple, axes.tolist())), N, dtype)
        self.count, self.F = N * prod(tiles), prod(self.length)
        self.some = portion(self.F, -(-self.count // self.together), Cg, Kg, sums)
        self.batches = -(-self.count // (self.together * self.some.blocks))
        self.sizes = tuple(np.array(column, np.int64) for column in (self.length, tile, tiles))
        self.spatial = tuple(range(2, 2 + len(axes)))
        spare = (ROOM - self.kernel_bytes) // self.thread_bytes
        self.workers = 1 if work < SERIAL_BELOW else max(1, min(numba.get_num_threads(), spare))

    @property
    def kernel_bytes(self) -> int:
        """Bytes of the kernels' spectra."""
        return self.some.C * self.some.K * self.F * self.numbers.itemsize

    @property
    def thread_bytes(self) -> int:
        """Bytes for each thread: its blocks, and SciPy's copies of some lines."""
        numbers = self.some.blocks * (self.some.C + self.some.K) * self.F + 8 * max(self.length)
        return numbers * self.numbers.itemsize

    def empty(self, channels: int) -> np.ndarray:
        """For a batch of blocks (or pairs), ``(blocks, channels, *length)``."""
        return np.empty((self.some.blocks, channels, *self.length), self.numbers)

    def batch(self, i: int) -> tuple[int, slice]:
        """The first block (or pair) of a batch, and the part of ``empty`` that it fills."""
        first = i * self.some.blocks
        return first, slice(0, min(self.some.blocks, -(-self.count // self.together) - first))

    def rows(self, X: np.ndarray) -> np.ndarray:
        """Spectra as the kernels see blocks: ``(blocks, channels, rows, last, 1 or 2 blocks)``."""
        return X.view(self.dtype).reshape(*X.shape[:2], -1, self.length[-1], self.together)

    def flat(self, X: np.ndarray) -> np.ndarray:
        """Spectra with one axis of frequencies."""
        return X.reshape(*X.shape[:2], self.F)

    def fft(self, X: np.ndarray) -> np.ndarray:
        """Spectra of blocks, in their place."""
        return scipy.fft.fftn(X, axes=self.spatial, overwrite_x=True, workers=1)

    def ifft(self, X: np.ndarray) -> np.ndarray:
        """Back, without the factor ``1/n``."""
        return scipy.fft.ifftn(X, axes=self.spatial, norm="forward", overwrite_x=True, workers=1)


def _spectrum(dtype: np.dtype) -> np.dtype:
    return np.result_type(dtype, np.complex64)


def _blocks_in_one(dtype: np.dtype) -> int:
    return 2 if dtype.kind == "f" else 1


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
