"""How a convolution is cut into blocks that overlap (overlap-save), and what each block reads and writes."""

from __future__ import annotations

from functools import cache, lru_cache
from math import isqrt, log2, prod
from typing import NamedTuple

import numpy as np
import scipy.fft

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from .._memory import WORKSPACE
from ._jit import SERIAL_BELOW, helper, source
from .threads import thread_count

#: Numbers in a block at most, in the spectra of a task's blocks, and in the spectra of the kernels that are kept.
BLOCK, TASK, KERNELS = 1 << 18, 1 << 19, 1 << 20

#: Numbers a task should have, so that calls cost little beside the transforms.
WORTH = 1 << 15

#: Bytes for all spectra, which leaves a little for the rest: with more threads than these feed, the others stay idle.
ROOM = WORKSPACE - (8 << 20)

#: How many values of a block and channel may be taken out of it, and how often one is worth the others' transform.
FEW, SUMS_FOR_A_TRANSFORM = 64, 8

#: How many values of a block are looked at to know its level, how far each is from the one before, and how many of them
#: are enough.
SAMPLE, GOLDEN, SOME = 64, 0.6180339887498949, 4

#: How much larger than the level of a block what is transformed with it may be, by bytes of a real number. The
#: transform rounds to ``2**-53`` of it: of the level ``2**-29`` for float32 data, ``2**-37`` for float64 data.
SPREAD = {4: 2.0**24, 8: 2.0**16}


class Tiling(NamedTuple):
    """How a convolution is cut: for each axis the length of the transform, outputs of a block, blocks, taps at once."""

    length: tuple[int, ...]
    tile: tuple[int, ...]
    tiles: tuple[int, ...]
    taps: tuple[int, ...]


@lru_cache(maxsize=256)
def tiling(rows: tuple[tuple[int, ...], ...], itemsize: int, channels: int = 1, kernels: int = 1) -> Tiling:
    """The cheapest blocks for one image, a table of axes and the bytes of a value.

    Kernels too large for a block are cut as well.

    The cost is ``n log n`` and, as measured, a pass for each axis more than the first, and what leaves the L2 cache.
    """
    d = len(rows)
    taps = [row[KERNEL] for row in rows]
    reach = [(k - 1) * abs(row[STEP]) + 1 for k, row in zip(taps, rows, strict=True)]
    while prod(2 * r for r in reach if r > 1) > BLOCK:
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
        transforms = prod(tiles) * (channels + kernels) + channels * kernels
        cost = transforms * F * passes * (1 + (F * itemsize / 2**20) ** 2 / 2)
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
    """How many blocks of an image, input channels and output channels of a group are transformed at once."""

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
    """The blocks of one convolution, and arrays for them and their spectra.

    How an image is cut follows from the image alone, and so do the bits of a block's transform.
    """

    def __init__(
        self, axes: np.ndarray, N: int, Cg: int, Kg: int, dtype: np.dtype, work: int, sums: int = 1
    ) -> None:
        self.numbers = np.result_type(dtype, np.float64)
        rows = tuple(map(tuple, axes.tolist()))
        self.length, tile, tiles, self.taps = tiling(rows, self.numbers.itemsize, Cg, Kg)
        real = self.numbers.kind == "f"
        self.spectrum = (*self.length[:-1], self.length[-1] // 2 + 1) if real else self.length
        self.count, self.size, self.F = N * prod(tiles), prod(self.length), prod(self.spectrum)
        self.near = self.count if alike() else prod(tiles)  # blocks that may be transformed together
        self.some = portion(self.F, self.near, Cg, Kg, sums)
        self.batches = self.count // self.near * -(-self.near // self.some.blocks)
        self.sizes = tuple(np.array(column, np.int64) for column in (self.length, tile, tiles))
        self.others = tuple(range(2, 1 + len(axes)))
        self.few = min(FEW, SUMS_FOR_A_TRANSFORM * self.size // prod(self.taps))
        self.spread = SPREAD[np.empty(0, dtype).real.itemsize]
        self.bits = np.empty(0, f"u{np.empty(0, dtype).real.itemsize}")
        spare = (ROOM - self.kernel_bytes) // self.thread_bytes
        self.workers = 1 if work < SERIAL_BELOW else max(1, min(thread_count(), spare))

    @property
    def kernel_bytes(self) -> int:
        """Bytes of the kernels' spectra."""
        return self.some.C * self.some.K * self.F * 16

    @property
    def thread_bytes(self) -> int:
        """Bytes for each thread: its blocks, what is taken out of them, their spectra, SciPy's copies of some lines."""
        some, block, spectrum = self.some, self.size * self.numbers.itemsize, self.F * 16
        blocks = some.C * (block + spectrum + 24 * self.few) + some.K * (spectrum + block)
        return some.blocks * blocks + 8 * 16 * max(self.length)

    def empty(self, channels: int) -> np.ndarray:
        """For a batch of blocks, ``(blocks, channels, *length)``."""
        return np.empty((self.some.blocks, channels, *self.length), self.numbers)

    def empty_spectra(self, channels: int) -> np.ndarray:
        """For the spectra of a batch, ``(blocks, channels, *spectrum)``."""
        return np.empty((self.some.blocks, channels, *self.spectrum), np.complex128)

    def batch(self, i: int) -> tuple[int, slice]:
        """The first block of a batch, counted over all images, and the part of ``empty`` that it fills."""
        part, first = divmod(i, -(-self.near // self.some.blocks))
        first *= self.some.blocks
        return part * self.near + first, slice(0, min(self.some.blocks, self.near - first))

    def rows(self, X: np.ndarray) -> np.ndarray:
        """Blocks as the kernels see them: ``(blocks, channels, rows, last)``."""
        return X.reshape(*X.shape[:2], -1, self.length[-1])

    def flat(self, X: np.ndarray) -> np.ndarray:
        """Spectra with one axis of frequencies."""
        return X.reshape(*X.shape[:2], self.F)

    def fft(self, X: np.ndarray) -> np.ndarray:
        """Spectra of blocks, half of them where they are real; what the blocks hold is lost."""
        if X.dtype.kind == "c":
            X = scipy.fft.fft(X, axis=-1, overwrite_x=True, workers=1)
        else:
            X = scipy.fft.rfft(X, axis=-1, workers=1)
        return scipy.fft.fftn(X, axes=self.others, overwrite_x=True, workers=1) if self.others else X

    def ifft(self, X: np.ndarray) -> np.ndarray:
        """Back, without the factor ``1/n``; what the spectra hold is lost."""
        if self.others:
            X = scipy.fft.ifftn(X, axes=self.others, norm="forward", overwrite_x=True, workers=1)
        if self.numbers.kind == "c":
            return scipy.fft.ifft(X, axis=-1, norm="forward", overwrite_x=True, workers=1)
        return scipy.fft.irfft(X, self.length[-1], axis=-1, norm="forward", overwrite_x=True, workers=1)


@cache
def alike() -> bool:
    """Whether a transform has the same bits alone and beside others, some of which SciPy computes as vectors.

    So it is where both are compiled to the same operations, as for x86-64; a processor that fuses them may differ.
    """
    for n in (240, 1152, 3375):  # all factors that lengths have
        x = np.cos(np.arange(19.0 * n) ** 2).reshape(19, n)
        for f in (scipy.fft.rfft, scipy.fft.fft, lambda a: scipy.fft.irfft(scipy.fft.fft(a))):
            together = f(x)
            if any(f(x[i : i + 1]).tobytes() != together[i].tobytes() for i in (0, 7, 16, 17, 18)):
                return False
    return True


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


# values that stand out ----------------------------------------------------------------------------------------------


@helper
def largest(words, so_far):
    """The largest of real numbers in size, as bits: their order is that of words, so that the loop is vector code."""
    rest = so_far.dtype.type(-1) >> 1
    most = so_far[0]
    for j in range(words.size):
        most = max(most, so_far.dtype.type(words[j] & rest))
    so_far[0] = most


@helper
def take_out(block, most, spread, at, far):
    """Take the few values out of a block that lie far above its level, and return how many; -1 if they are too many.

    ``most`` is the size of the largest. Of nearly all blocks some of the values show that none stands out.
    """
    if most == 0:
        return 0
    if not most < np.inf:
        return -1
    met, least = 0, most
    i, step = 0, int(GOLDEN * block.size)
    for _ in range(min(SAMPLE, max(8, block.size // 32))):
        value = size_of(block[i])
        if value > 0:
            met += 1
            least = min(least, value)
        i = (i + step) % block.size
    if met >= SOME and most <= spread * least:
        return 0
    bound = spread * level(block, spread, at.size)
    if most <= bound:
        return 0
    count = 0
    for i in range(block.size):
        if size_of(block[i]) > bound:
            if count == at.size:
                return -1
            at[count] = i
            count += 1
    for j in range(count):
        far[j] = block[at[j]]
        block[at[j]] = 0
    return count


@helper
def level(block, spread, few):
    """The largest of a sample of a block's values, zeros left out, that has no gap wider than ``spread`` below it.

    A gap below which less than a sixteenth of them lie is none. The level is 0 where all but ``few`` are zeros.
    """
    some, count = np.empty(SAMPLE), 0
    i, step = 0, int(GOLDEN * block.size)
    for _ in range(SAMPLE):
        value = size_of(block[i])
        if value > 0:
            some[count] = value
            count += 1
        i = (i + step) % block.size
    if count < SOME:
        count = 0
        for i in range(block.size):
            value = size_of(block[i])
            if value > 0:
                some[count % SAMPLE] = value
                count += 1
        if count <= few:
            return 0.0
        count = min(count, SAMPLE)
    for i in range(1, count):
        value, j = some[i], i
        while j > 0 and some[j - 1] > value:
            some[j] = some[j - 1]
            j -= 1
        some[j] = value
    for i in range(max(1, count // 16), count):
        if some[i] > spread * some[i - 1]:
            return some[i - 1]
    return some[count - 1]


@helper
def size_of(value):
    """The larger part of a number."""
    return max(abs(value.real), abs(value.imag))


@helper
def put_back(sums, w, at, value, length, axes):
    """Add to the sums of a block what a value that was taken out of it gives: ``w`` at every position that reads it."""
    last = axes.shape[0] - 1
    L, row, step = length[last], at // length[last], axes[last, STEP]
    nearest = at % L + min(0, (axes[last, KERNEL] - 1) * step)
    for T in range(w.shape[0]):
        tap, rest, target, rows, inside = T, row, 0, 1, True
        for a in range(last - 1, -1, -1):
            distance = tap % axes[a, KERNEL] * axes[a, STEP] - min(0, (axes[a, KERNEL] - 1) * axes[a, STEP])
            tap //= axes[a, KERNEL]
            i = rest % length[a] - distance
            rest //= length[a]
            inside = inside and i >= 0
            target += i * rows
            rows *= length[a]
        if inside:
            for t in range(w.shape[1]):
                j = nearest - t * step
                if j >= 0:
                    sums[target, j] += w[T, t] * value
