"""The convolution theorem by the caller's own FFT, in double precision: see ``cpu/fft.py``, whose steps these are.

    block of y = what of ifft(fft(block of x) * W) no end of the block meets,    W = fft(kernel, turned round 0)

A call of the library transforms one image, and a sum over channels goes by their order, so the bits of an image do not
depend on its batch. Rounding goes with the largest value of an image. Where many values are so much smaller that they
would drown in it, beside a mark of missing data say, the image is summed as it is written, and so is what comes out not
finite; the device looks for both, and nobody waits for what it finds.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from .._indexing import source as source_of
from ..arrays import computed_in
from ..geometry import ConvGeometry
from ._jit import THREADS, at, count, cuda, kernel, position, row_source, source
from .arrays import DeviceArray, blocks_for
from .costs import SPECTRA, Tiling, tiling
from .places import Place, host, table
from .tables import FAR

#: In a table of what a block reads: the constant, and a zero that no output reads.
FILL, UNREAD = -1, -2

#: How many sums of products a thread has: images (or channels) by kernels.
SOME, MANY = 2, 4
SUMS = SOME * MANY

#: Tables of rows and columns.
Pair = tuple[np.ndarray, np.ndarray]

#: By how many powers of two the values of an image may lie apart, with none between them, and how many of them have to
#: lie below, of 16: see ``cpu/overlap.py``. By bytes of a real number; the sums of two are their own measure.
GAPS = {4: 24, 8: 16}

#: Values whose exponents a block counts, and how many exponents there are at most.
PIECE, EXPONENTS = 1 << 12, 1 << 11

COMPLEX = np.dtype(np.complex128)


# the kernels --------------------------------------------------------------------------------------------------------


@kernel(THREADS)
def _lay_out(source, rows, cols, tiles, last_tiles, planes, R, L, pieces, size, fill, blocks):
    # source (images, planes, size), blocks (images, tiles, planes, R, L): what the tables of a tile's rows and columns
    # say. A block of threads owns a piece of a plane.
    block = count(cuda.blockIdx.x)
    p, plane = count(block % pieces * THREADS + cuda.threadIdx.x), count(block // pieces)
    if p < R * L:
        tile, m, image = count(plane // planes % tiles), count(plane % planes), count(plane // planes // tiles)
        row = rows[at(count(tile // last_tiles)) * at(R) + at(count(p // L))]
        col = cols[at(count(tile % last_tiles)) * at(L) + at(count(p % L))]
        value = blocks.dtype.type(0)
        if row >= FILL and col >= FILL:
            value = fill
            if row >= 0 and col >= 0:
                value = blocks.dtype.type(source[(at(image) * at(planes) + at(m)) * at(size) + at(row) + at(col)])
        blocks[at(plane) * at(R * L) + at(p)] = value


@kernel(THREADS)
def _read_off(blocks, rows, cols, bias, conjugate, K, P, L, pieces, per_image, per_plane, y):
    # y (images, K, P) from where the tables of its rows and columns say that it lies in an image's blocks.
    block = count(cuda.blockIdx.x)
    p, plane = count(block % pieces * THREADS + cuda.threadIdx.x), count(block // pieces)
    if p < P:
        image, k = count(plane // K), count(plane % K)
        first = at(image) * at(per_image) + at(k) * at(per_plane)
        value = blocks[first + at(rows[at(count(p // L))]) + at(cols[at(count(p % L))])]
        if conjugate:
            value = value.conjugate()
        y[at(plane) * at(P) + at(p)] = y.dtype.type(value + bias[at(k)])


@kernel(THREADS)
def _multiply(A, B, a_steps, b_steps, out_steps, I, J, Q, F, pieces, conjugate, adds, out):
    # out[g, i, j, f] = sum over q of A[g, i, q, f] B[g, j, q, f], or of conj(B), in the order of q, or added to what is
    # there. Steps are those of g, i or j, and q. A thread owns a frequency and SOME by MANY sums.
    block = count(cuda.blockIdx.x)
    f, rest = count(block % pieces * THREADS + cuda.threadIdx.x), count(block // pieces)
    some, many = count((I + SOME - 1) // SOME), count((J + MANY - 1) // MANY)
    i0, j0, g = count(rest % some * SOME), count(rest // some % many * MANY), count(rest // some // many)
    if f < F:
        sums = cuda.local.array(SUMS, out.dtype)
        a = cuda.local.array(SOME, out.dtype)
        a_at = cuda.local.array(SOME, np.uint64)
        b_at = cuda.local.array(MANY, np.uint64)
        for i in range(SOME):
            a_at[i] = at(g) * at(a_steps[0]) + at(min(i0 + i, I - 1)) * at(a_steps[1]) + at(f)
        for j in range(MANY):
            b_at[j] = at(g) * at(b_steps[0]) + at(min(j0 + j, J - 1)) * at(b_steps[1]) + at(f)
        for i in range(SUMS):
            sums[i] = 0
        for _ in range(Q):
            for i in range(SOME):
                a[i] = A[a_at[i]]
                a_at[i] += at(a_steps[2])
            for j in range(MANY):
                b = B[b_at[j]]
                b_at[j] += at(b_steps[2])
                if conjugate:
                    b = b.conjugate()
                for i in range(SOME):
                    sums[i * MANY + j] += a[i] * b
        for i in range(SOME):
            for j in range(MANY):
                if i0 + i < I and j0 + j < J:
                    there = at(g) * at(out_steps[0]) + at(i0 + i) * at(out_steps[1]) + at(j0 + j) * at(out_steps[2])
                    if adds:
                        out[there + at(f)] += sums[i * MANY + j]
                    else:
                        out[there + at(f)] = sums[i * MANY + j]


@kernel(THREADS)
def _count_exponents(words, size, pieces, magnitude, shift, exponents, counts):
    # words (planes, size), counts (planes, exponents): how many values that are finite and not 0 have each exponent.
    thread, block = cuda.threadIdx.x, cuda.blockIdx.x
    plane, begin = block // pieces, block % pieces * PIECE
    here = cuda.shared.array(EXPONENTS, np.int32)
    for i in range(thread, exponents, THREADS):
        here[i] = 0
    cuda.syncthreads()
    for i in range(begin + thread, min(begin + PIECE, size), THREADS):
        word = words[plane * size + i] & magnitude
        if word != 0:
            cuda.atomic.add(here, word >> shift, 1)
    cuda.syncthreads()
    for i in range(thread, exponents - 1, THREADS):
        if here[i] != 0:
            cuda.atomic.add(counts, plane * exponents + i, here[i])


@kernel()
def _judge(counts, planes, exponents, gap, apart):
    # apart (planes): whether a plane has a gap between its values with a sixteenth of them below.
    i = cuda.grid(1)
    while i < planes:
        total, found, empty, met = 0, 0, 0, 0
        for e in range(exponents):
            total += counts[i * exponents + e]
        below = total
        for e in range(exponents - 1, -1, -1):
            here = counts[i * exponents + e]
            empty += 1
            if here > 0:
                if met > 0 and empty > gap and 16 * below >= total:
                    found = 1
                met, empty = 1, 0
                below -= here
        apart[i] = found
        i += cuda.gridsize(1)


@kernel()
def _sum_again(x, w, bias, axes, boundary, fill, apart, C, Cg, Kg, R_k, P, size, n, y):
    # x (N, C, size), w (K, Cg, R_k, last k), y (N, K, P): the outputs that are not finite or of images that lie apart,
    # in the type of the bias.
    i = cuda.grid(1)
    last, K = axes.shape[0] - 1, C // Cg * Kg
    L_in, L_k, L_out = axes[last, SIZE], axes[last, KERNEL], axes[last, OUT]
    while i < n:
        total = bias.dtype.type(0)
        total += y[i]
        p, k, image = i % P, i // P % K, i // P // K
        again = not abs(total) < np.inf
        for c in range(Cg):
            again = again or apart[image * C + k // Kg * Cg + c] > 0
        if again:
            total = bias[k]
            for c in range(Cg):
                plane = (image * C + k // Kg * Cg + c) * size
                for T in range(R_k):
                    row = row_source(T, p // L_out, axes, boundary)
                    for t in range(L_k):
                        where = position(p % L_out, t, axes[last, START], axes[last, STRIDE], axes[last, STEP])
                        pixel, value = source(where, L_in, boundary), fill
                        if row >= 0 and pixel >= 0:
                            value = bias.dtype.type(x[plane + row * L_in + pixel])
                        total += bias.dtype.type(w[((k * Cg + c) * R_k + T) * L_k + t]) * value
            y[i] = y.dtype.type(total)
        i += cuda.gridsize(1)


@kernel()
def _weigh_again(
    x, dY, axes, boundary, fill, zero, x_apart, dY_apart, C, Cg, Kg, R_k, P, size, pixels, conjugate, n, dW
):
    # The same for weights, in the type of fill: dY (N, K, P), dW (K, Cg, R_k, last k).
    i = cuda.grid(1)
    last, K = axes.shape[0] - 1, C // Cg * Kg
    L_in, L_k, L_out = axes[last, SIZE], axes[last, KERNEL], axes[last, OUT]
    while i < n:
        total = zero
        total += dW[i]
        t, T, c, k = i % L_k, i // L_k % R_k, i // L_k // R_k % Cg, i // L_k // R_k // Cg
        again = not abs(total) < np.inf
        for image in range(pixels // P):
            again = again or x_apart[image * C + k // Kg * Cg + c] + dY_apart[image * K + k] > 0
        if again:
            total = zero
            for q in range(pixels):
                image, p = q // P, q % P
                where = position(p % L_out, t, axes[last, START], axes[last, STRIDE], axes[last, STEP])
                row, pixel = row_source(T, p // L_out, axes, boundary), source(where, L_in, boundary)
                value, gradient = fill, zero
                if row >= 0 and pixel >= 0:
                    value = zero
                    value += x[(image * C + k // Kg * Cg + c) * size + row * L_in + pixel]
                if conjugate:
                    value = value.conjugate()
                gradient += dY[(image * K + k) * P + p]
                total += gradient * value
            dW[i] = dW.dtype.type(total)
        i += cuda.gridsize(1)


# what lies where ----------------------------------------------------------------------------------------------------


def pixels_read(axes: np.ndarray, boundary: int, cut: Tiling) -> list[np.ndarray]:
    """For each axis the pixels that lie in the blocks, ``(tiles, length)``, or ``FILL`` or ``UNREAD``."""
    found = []
    for (size, taps, out, start, stride, step), n, tile, tiles in zip(axes.tolist(), *cut, strict=True):
        first = np.arange(tiles)[:, None] * tile
        place = np.arange(n)
        where = start + min(0, (taps - 1) * step) + first * stride + place
        pixels = where.copy()
        outside = (where < 0) | (where >= size)
        beyond, index = np.unique(where[outside], return_inverse=True)
        pixels[outside] = np.array([source_of(i, size, boundary) for i in beyond.tolist()], np.int64)[index]
        reads = (np.minimum(tile, out - first) - 1) * stride + (taps - 1) * abs(step) + 1
        found.append(np.where(place < reads, pixels, UNREAD))
    return found


def outputs_placed(axes: np.ndarray, cut: Tiling) -> list[np.ndarray]:
    """The same of the outputs, with ``UNREAD`` between the strides."""
    found = []
    for (_, _, out, _, stride, _), n, tile, tiles in zip(axes.tolist(), *cut, strict=True):
        o, place = np.arange(tiles)[:, None] * tile + np.arange(n) // stride, np.arange(n)
        met = (place % stride == 0) & (place // stride < tile) & (o < out)
        found.append(np.where(met, o, UNREAD))
    return found


def taps_placed(axes: np.ndarray, cut: Tiling) -> list[np.ndarray]:
    """The same of the taps of the kernel, turned round 0."""
    found = []
    for row, n in zip(distances(axes), cut.length, strict=True):
        taps = np.full((1, n), UNREAD)
        taps[0, -row % n] = np.arange(row.size)
        found.append(taps)
    return found


def distances(axes: np.ndarray) -> list[np.ndarray]:
    """How far each tap is from the first position that a window reads."""
    return [np.arange(k) * s - min(0, (k - 1) * s) for k, s in axes[:, [KERNEL, STEP]].tolist()]


def rows_and_cols(along: list[np.ndarray], sizes: list[int]) -> Pair:
    """All axes but the last as one, ``(tiles, rows)``: where rows of an array of these sizes begin; and the last."""
    *lead, cols = along
    rows = np.zeros((1, 1), np.int64)
    for axis, size in zip(lead, sizes, strict=False):
        least = np.minimum.outer(rows, axis)
        both = np.where(least < 0, least, np.add.outer(rows * size, axis)).swapaxes(1, 2)
        rows = both.reshape(rows.shape[0] * axis.shape[0], -1)
    return np.where(rows < 0, rows, rows * sizes[-1]).astype(np.int32), cols.astype(np.int32)


def where_read(places: list[np.ndarray], tiles: list[np.ndarray], cut: Tiling, block: int) -> Pair:
    """Where rows and columns of a result lie in blocks of so many values: at ``places`` of ``tiles``."""
    rows = np.zeros((2, 1), np.int64)
    lead = zip(places[:-1], tiles[:-1], cut.length, cut.tiles, strict=False)
    for place, tile, n, many in lead:
        rows = np.stack([(rows[0, :, None] * n + place).reshape(-1), (rows[1, :, None] * many + tile).reshape(-1)])
    return rows[0] * cut.length[-1] + rows[1] * cut.tiles[-1] * block, places[-1] + tiles[-1] * block


@lru_cache(maxsize=64)
def _tables(place: Place, what: str, axes: bytes, boundary: int, cut: Tiling, planes: int) -> tuple[DeviceArray, ...]:
    """Tables of rows and columns on the device."""
    axes_ = np.frombuffer(axes, np.int64).reshape(-1, 6)
    if what == "pixels":
        found = rows_and_cols(pixels_read(axes_, boundary, cut), axes_[:, SIZE].tolist())
    elif what == "outputs":
        found = rows_and_cols(outputs_placed(axes_, cut), axes_[:, OUT].tolist())
    elif what == "taps":
        found = rows_and_cols(taps_placed(axes_, cut), axes_[:, KERNEL].tolist())
    elif what == "result":
        outs = [np.arange(out) for out in axes_[:, OUT].tolist()]
        places = [o % tile * stride for o, tile, stride in zip(outs, cut.tile, axes_[:, STRIDE].tolist(), strict=True)]
        tiles = [o // tile for o, tile in zip(outs, cut.tile, strict=True)]
        found = where_read(places, tiles, cut, planes * prod(cut.length))
    else:
        taps = distances(axes_)
        found = where_read(taps, [0 * row for row in taps], cut, 0)
    return tuple(host(place.device).send(part) for part in found)


class Cut(NamedTuple):
    """How a convolution is cut, and the memory of its blocks."""

    tiling: Tiling
    numbers: np.dtype  # of blocks

    @property
    def spectrum(self) -> tuple[int, ...]:
        """The shape of a block's spectrum."""
        return self.tiling.spectrum(self.numbers.kind == "c")

    @property
    def nbytes(self) -> int:
        """Bytes of a block and its spectrum."""
        return prod(self.tiling.length) * self.numbers.itemsize + prod(self.spectrum) * COMPLEX.itemsize

    def images(self, N: int, channels: int) -> int:
        """How many images of so many channels, in and out, are transformed before their spectra are multiplied."""
        return max(1, min(N, SPECTRA // max(1, prod(self.tiling.tiles) * channels * self.nbytes)))

    def tables(self, what: str, like: DeviceArray, axes: np.ndarray, boundary: int, planes: int = 0) -> Any:
        """Those of rows and columns, where an array is."""
        return _tables(like.place, what, axes.tobytes(), boundary, self.tiling, planes)


def cut_of(axes: np.ndarray, C: int, K: int, G: int, dtype: np.dtype) -> Cut:
    """How images of this convolution are cut."""
    rows = tuple(map(tuple, axes.tolist()))
    cut = tiling(rows, C, K, G)
    pixels = max(prod(cut.length), *(prod(row[column] for row in rows) for column in (SIZE, OUT)))
    if pixels >= FAR:
        raise ValueError(f"an image and a block of it on a GPU must have fewer than 2**31 pixels, got {pixels}")
    return Cut(cut, np.result_type(computed_in(dtype), np.float64))


# the products -------------------------------------------------------------------------------------------------------


def spectra(
    cut: Cut, array: DeviceArray, shape: tuple[int, int, int], tables: tuple[DeviceArray, ...], fill: np.generic,
    scaled: bool = False,
) -> DeviceArray:
    """``(images, tiles * planes, *spectrum)`` of an array of shape ``(images, planes, size)`` as tables lay it out."""
    (images, planes, size), place, (rows, cols) = shape, array.place, tables
    tiles, (R, L), length = rows.shape[0] * cols.shape[0], (rows.shape[1], cols.shape[1]), cut.tiling.length
    blocks = place.empty((images, tiles * planes, *length), cut.numbers)
    found = place.empty((images, tiles * planes, *cut.spectrum), COMPLEX)
    pieces = -(-R * L // THREADS)
    _lay_out(
        images * tiles * planes * pieces, array.reshape(array.size), rows.reshape(rows.size), cols.reshape(cols.size),
        tiles, cols.shape[0], planes, R, L, pieces, size, cut.numbers.type(fill), blocks.reshape(blocks.size), on=place,
    )  # fmt: skip
    for image in range(images):
        place.transform(blocks[image], found[image], scaled=scaled)
    return found


def multiply(
    A: DeviceArray, B: DeviceArray, out: DeviceArray, steps: tuple[tuple[int, int, int], ...],
    sizes: tuple[int, int, int, int], F: int, conjugate: bool = False, adds: bool = False,
) -> None:
    """``out[g, i, j] = sum over q of A[g, i, q] B[g, j, q]`` for all F frequencies; ``sizes`` are those of g, i, j, q,
    and ``steps`` of A (g, i, q), B (g, j, q) and out (g, i, j) are counted in spectra.
    """
    (G, I, J, Q), pieces = sizes, -(-F // THREADS)
    in_numbers = (tuple(step * F for step in row) for row in steps)
    _multiply(
        pieces * -(-I // SOME) * -(-J // MANY) * G, A.reshape(A.size), B.reshape(B.size), *in_numbers, I, J, Q, F,
        pieces, conjugate, adds, out.reshape(out.size), on=out.place,
    )  # fmt: skip


def read_off(
    blocks: DeviceArray, tables: tuple[DeviceArray, ...], bias: DeviceArray, shape: tuple[int, int], per_image: int,
    per_plane: int, y: DeviceArray,
) -> None:
    """``y`` of shape ``(images, planes, …)`` from blocks; a weight gradient is the conjugate of what lies there."""
    (images, planes), (rows, cols) = shape, tables
    P = rows.size * cols.size
    pieces = -(-P // THREADS)
    conjugate = not per_image and y.dtype.kind == "c"
    _read_off(
        images * planes * pieces, blocks.reshape(blocks.size), rows, cols, bias, conjugate, planes, P, cols.size,
        pieces, per_image, per_plane, y.reshape(y.size), on=y.place,
    )  # fmt: skip


def planes_apart(x: DeviceArray) -> DeviceArray:
    """For each plane of ``x (N, C, …)`` whether its values lie so far apart that the smaller ones would drown."""
    planes, place, numbers = x.shape[0] * x.shape[1], x.place, np.empty(0, x.dtype).real.dtype
    if numbers.itemsize not in GAPS:  # those of float16 cannot
        return place.nothing((planes,), np.dtype(np.int32))
    word, (bits, shift) = np.dtype(f"i{numbers.itemsize}"), {4: (31, 23), 8: (63, 52)}[numbers.itemsize]
    words, exponents = x.reshape(x.size).view(word), 1 << (bits - shift)
    size = words.size // planes
    counts, apart = place.zeros((planes * exponents,), np.dtype(np.int32)), place.empty((planes,), np.dtype(np.int32))
    pieces = -(-size // PIECE)
    _count_exponents(planes * pieces, words, size, pieces, (1 << bits) - 1, shift, exponents, counts, on=place)
    _judge(blocks_for(planes), counts, planes, exponents, GAPS[numbers.itemsize], apart, on=place)
    return apart


def forward(
    x: DeviceArray, w: DeviceArray, bias: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic,
    y: DeviceArray, there: tuple[slice, ...] = (),
) -> None:
    """``y[(…, *there)] = ifft(fft(x) * W) + bias``, some images at a time."""
    (N, C), (K, Cg), sums, place = x.shape[:2], w.shape[:2], computed_in(x.dtype), x.place
    goal = y[(slice(None), slice(None), *there)] if there else y
    y = goal if goal.flags.c_contiguous else place.empty(goal.shape, goal.dtype)
    G, size, P, bias = C // Cg, prod(x.shape[2:]), prod(y.shape[2:]), bias.ready(sums)
    cut = cut_of(axes, C, K, G, x.dtype)
    F, block, tiles, Kg = prod(cut.spectrum), prod(cut.tiling.length), prod(cut.tiling.tiles), K // G
    pixels, result = cut.tables("pixels", x, axes, boundary), cut.tables("result", x, axes, boundary, K)
    W = spectra(cut, w, (1, K * Cg, prod(w.shape[2:])), cut.tables("taps", x, axes, boundary), sums.type(0), True)
    some = cut.images(N, C + K)
    steps = (Cg, C, 1), (Kg * Cg, Cg, 1), (Kg, K, 1)
    for n in range(0, N, some):
        part, target = (a if some >= N else a[n : n + some] for a in (x, y))
        images = part.shape[0]
        X = spectra(cut, part, (images, C, size), pixels, fill)
        Y = place.empty((images, tiles * K, *cut.spectrum), COMPLEX)
        multiply(X, W, Y, steps, (G, images * tiles, Kg, Cg), F)
        del X
        blocks = place.empty((images, tiles * K, *cut.tiling.length), cut.numbers)
        for image in range(images):
            place.transform(Y[image], blocks[image], inverse=True)
        del Y
        read_off(blocks, result, bias, (images, K), tiles * K * block, block, target)
        del blocks
    _sum_again(
        blocks_for(y.size), x.reshape(x.size), w.reshape(w.size), bias, table(place, axes), boundary, sums.type(fill),
        planes_apart(x), C, Cg, Kg, prod(axes[:-1, KERNEL].tolist()), P, size, y.size, y.reshape(y.size), on=place,
    )  # fmt: skip
    if y is not goal:
        goal[...] = y


def grad_weight(
    x: DeviceArray, dY: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic, dW: DeviceArray
) -> None:
    """``dW = conj(ifft(sum over blocks of fft(x) * conj(fft(dY))))`` where the taps are."""
    (N, C), (K, Cg), sums, place = x.shape[:2], dW.shape[:2], computed_in(x.dtype), x.place
    G, size, P = C // Cg, prod(x.shape[2:]), prod(dY.shape[2:])
    cut = cut_of(axes, C, K, G, x.dtype)
    F, block, tiles, Kg = prod(cut.spectrum), prod(cut.tiling.length), prod(cut.tiling.tiles), K // G
    pixels, outputs = cut.tables("pixels", x, axes, boundary), cut.tables("outputs", x, axes, boundary)
    S = place.zeros((1, K * Cg, *cut.spectrum), COMPLEX)
    some = cut.images(N, C + K)
    steps = (Cg, 1, C), (Kg, 1, K), (Kg * Cg, 1, Cg)
    for n in range(0, N, some):
        part, gradient = (a if some >= N else a[n : n + some] for a in (x, dY))
        images = part.shape[0]
        X = spectra(cut, part, (images, C, size), pixels, fill)
        D = spectra(cut, gradient, (images, K, P), outputs, sums.type(0))
        multiply(X, D, S, steps, (G, Cg, Kg, images * tiles), F, conjugate=True, adds=True)
        del X, D
    blocks = place.empty((1, K * Cg, *cut.tiling.length), cut.numbers)
    place.transform(S[0], blocks[0], inverse=True, scaled=True)
    nothing = place.nothing((K * Cg,), sums)
    read_off(blocks, cut.tables("weights", x, axes, boundary), nothing, (1, K * Cg), 0, block, dW)
    _weigh_again(
        blocks_for(dW.size), x.reshape(x.size), dY.reshape(dY.size), table(place, axes), boundary, sums.type(fill),
        sums.type(0), planes_apart(x), planes_apart(dY), C, Cg, Kg, prod(axes[:-1, KERNEL].tolist()), P, size, N * P,
        sums.kind == "c", dW.size, dW.reshape(dW.size), on=place,
    )  # fmt: skip


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that a product takes beside its arguments: spectra of weights (or their gradient) and of some images, and
    what the library takes for a transform, which is once more its result; then the exponents of values.
    """
    g = geometry
    if not (g.N and g.C and g.K):
        return 0
    cut = cut_of(g.axes, g.C, g.K, g.groups, dtype)
    weights, tiles = g.K * (g.C // g.groups), prod(cut.tiling.tiles)
    W = weights * prod(cut.spectrum) * COMPLEX.itemsize
    image, largest = tiles * (g.C + g.K) * cut.nbytes, tiles * max(g.C, g.K) * cut.nbytes
    counts = 4 * EXPONENTS * g.N * (g.C + g.K)
    return W + max(weights * cut.nbytes, cut.images(g.N, g.C + g.K) * image + largest, counts)

