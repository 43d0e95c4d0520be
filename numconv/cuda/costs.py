"""What a product costs on a GPU: how often it does what, and how long one of each takes.

Assumptions: a GPU of ``MULTIPROCESSORS`` that nobody else uses, and arrays that are there; a kernel takes as long as
what it does most of, and one follows the other. Blocks are done in rounds of one on each multiprocessor, so a layer
with fewer is not faster. Other types count as float32 of as many bytes, which holds for bytes, and little for float64
on a consumer's card. The costs are those of one H200 whatever GPU computes, so that the choice, and with it the bits of
a result, follows from shapes and dtype. ``tests/gpu/fit.py`` finds them in what the lane measured.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd, prod
from typing import NamedTuple

import numpy as np

from .. import arrays
from ..geometry import ConvGeometry

#: Those of an H200.
MULTIPROCESSORS = 132

#: For how many images the algorithm is chosen, whatever a batch has: of one a GPU would see little more than launches.
#: ``im2col`` stores so many at a time.
IMAGES = 32

#: As the kernels have them: the sides of ``implicit``'s tiles and their step in depth; of ``direct`` the threads of a
#: block, pixels of each, and about how many of its blocks a multiprocessor holds.
LARGE, SMALL, DEPTH, THREADS, PIXELS, RESIDENT = 128, 64, 8, 256, 4, 5

#: The tiles of ``implicit_weights``: rows, columns, blocks that a multiprocessor holds, instructions of a step.
WEIGHT_TILES = ((128, 128, 2, 680), (64, 128, 2, 411), (64, 64, 3, 254))

#: The windows of ``direct_weights``: channels out, rows of taps and their width, and instructions for a pixel.
WINDOWS = ((4, 3, 3, 177), (1, 3, 3, 135), (1, 5, 5, 200), (1, 7, 7, 320), (4, 8, 1, 180), (1, 8, 1, 140))


class Costs(NamedTuple):
    """Nanoseconds for one of each on the whole GPU."""

    large: float  # multiply-add of the large tiles of ``implicit``
    small: float  # of the small ones
    weights_step: float  # instruction in a step of a block of ``implicit_weights``
    packed: float  # weight put in order
    part: float  # weight of a part of the sum, added up
    again: float  # element of dX looked at, whether it is finite
    met: float  # ``direct``: tap of a pixel found
    loaded: float  # pixel of the input loaded, for one set of channels
    summed: float  # multiply-add
    depthwise: float  # the same where each channel has a sum of its own, all in all
    weighed: float  # instruction for a pixel in a window of ``direct_weights``
    copied: float  # value of a phase or of turned weights
    stored: float  # value of ``X_conv`` stored
    biased: float  # output that a bias is added to
    folded: float  # value of ``dX_conv`` looked at by ``col2im``
    blas: float  # multiply-add of the caller's BLAS
    product: float  # product begun there
    transformed: float  # real number of float64 that goes through one axis of the caller's FFT, or is put there
    spectral: float  # complex multiply-add of spectra
    call: float  # transform begun there, which is the host's time
    launch: float  # kernel begun
    bus: float  # byte over PCIe 5, by its data sheet
    way: float  # way over it, there and back, by guess


#: What ``tests/gpu/fit.py`` says of the H200's results of 2026-11-28. Expected, and not measured, by their instructions
#: and what earlier kernels took for theirs: ``large`` to ``weights_step`` and ``met`` to ``weighed``; ``folded`` (as
#: ``again``, which finds its indices in the same way), ``transformed`` (16 bytes at 2 TB/s), ``spectral`` (a quarter of
#: what cuDNN's kernel does in float32), ``call`` (what torch takes of the host), ``copied``.
COSTS = Costs(
    large=4.4e-05, small=5e-05, weights_step=0.009, packed=0.0412, part=0.00674, again=0.0125, met=0.00124,
    loaded=0.000365, summed=8.9e-05, depthwise=0.0006, weighed=3.5e-05, copied=0.01, stored=0.00452, biased=0.00513,
    folded=0.015, blas=4.84e-05, product=1360, transformed=0.008, spectral=0.002, call=12000, launch=5030, bus=0.083,
    way=200000,
)  # fmt: skip

Amounts = dict[str, float]


def nanoseconds(amounts: Amounts) -> float:
    """What all of it costs."""
    return sum(getattr(COSTS, name) * amount for name, amount in amounts.items())


def amounts(product: str, algorithm: str, g: ConvGeometry, dtype: np.dtype, library: bool = True) -> Amounts:
    """What an algorithm does for one of the products, by the names of ``Costs``.

    ``library`` says whether that of the arrays has a BLAS and an FFT.
    """
    return _AMOUNTS[algorithm, product](Sizes.of(g, dtype, library))


class Sizes(NamedTuple):
    """A convolution of ``G`` groups with so many channels in and out of each, or a phase of its input gradient."""

    N: int
    Cg: int
    Kg: int
    G: int
    rows: tuple[tuple[int, ...], ...]  # the table of axes
    out: int  # pixels
    size: int
    taps: float
    times: int  # how often, for as many phases, which are nearly alike
    wide: float  # bytes of a number, in those of float32
    kind: str
    library: bool

    @classmethod
    def of(cls, g: ConvGeometry, dtype: np.dtype, library: bool) -> Sizes:
        """Those of a forward product."""
        computed = arrays.computed_in(dtype)
        kind = "h" if dtype == np.float16 else computed.kind
        return cls(
            g.N, g.C // g.groups, g.K // g.groups, g.groups, g.axis_rows, prod(g.out), prod(g.size), prod(g.kernel), 1,
            computed.itemsize / 4, kind, library,
        )  # fmt: skip

    @property
    def phase(self) -> Sizes:
        """A phase of the input gradient, from the output to every stride-th pixel."""
        rows, times = [], 1
        for size, kernel, out, _, stride, step in self.rows:
            m = stride // gcd(stride, step)
            times *= min(m, kernel, max(size, 1))
            rows.append((out, -(-kernel // m), -(-size // stride), 0, 1, abs(step) * m // stride))
        pixels = prod(row[2] for row in rows)
        return self._replace(
            Cg=self.Kg, Kg=self.Cg, rows=tuple(rows), out=pixels, size=self.out, taps=self.taps / times, times=times
        )

    @property
    def multiply_adds(self) -> float:
        """Those of the sum as it is written."""
        return self.N * self.G * self.Kg * self.Cg * self.taps * self.out * self.wide

    @property
    def weights(self) -> float:
        """How many there are."""
        return self.G * self.Kg * self.Cg * self.taps

    @property
    def input(self) -> int:
        """Values of the input."""
        return self.N * self.G * self.Cg * self.size

    @property
    def output(self) -> int:
        """Values of the output."""
        return self.N * self.G * self.Kg * self.out


def up(n: float, multiple: int) -> int:
    """``n`` filled up to whole tiles."""
    return -int(-n // multiple) * multiple


def tile_of(rows: int, columns: int, wide: float, times: float) -> tuple[str, int]:
    """Which tile ``implicit`` takes, and its side: as ``implicit.product_for`` does."""
    large = wide <= 1 and rows > SMALL and up(rows, LARGE) * up(columns, LARGE) * times >= 128 * LARGE**2
    return ("large", LARGE) if large else ("small", SMALL)


def tiles(rows: int, columns: int, depth: float, G: int, wide: float, times: float) -> tuple[str, float]:
    """Multiply-adds of the tiles of ``G`` products, those of a round counted as a whole one, and of which tile."""
    name, side = tile_of(rows, columns, wide, times)
    blocks = G * up(rows, side) * up(columns, side) // side**2
    return name, up(blocks, MULTIPROCESSORS) * side**2 * depth * wide


# the algorithms -----------------------------------------------------------------------------------------------------


def _implicit(s: Sizes) -> Amounts:
    depth = up(s.Cg, DEPTH) * s.taps
    name, sums = tiles(s.Kg, s.N * s.out, depth, s.G, s.wide, s.G)
    side = LARGE if name == "large" else SMALL
    return {name: s.times * sums, "packed": s.times * s.G * up(s.Kg, side) * depth, "launch": 2 * s.times}


def _implicit_grad_input(s: Sizes) -> Amounts:
    return {**_implicit(s.phase), "again": s.input}


def _implicit_grad_weight(s: Sizes) -> Amounts:
    # tiles and parts as ``implicit_weights`` has them
    Q, steps = s.Cg * s.taps, -(-s.N * s.out // DEPTH)
    tiles = WEIGHT_TILES if s.wide <= 1 else WEIGHT_TILES[-1:]
    blocks, resident, instructions = min(
        ((-(-s.Kg // rows) * -(-Q // columns), *rest) for rows, columns, *rest in tiles), key=lambda it: it[0] * it[2]
    )
    blocks = max(1, int(blocks * s.G))
    parts = max(1, min(resident * MULTIPROCESSORS // blocks, steps // 16, int((8 << 20) / max(s.weights * s.wide, 1))))
    begun = up(blocks * parts, MULTIPROCESSORS) * -(-steps // parts)
    return {"weights_step": begun * instructions * s.wide, "part": s.weights * parts, "launch": 2}


def _direct(s: Sizes) -> Amounts:
    if s.Kg == s.Cg == 1:
        tile = len(s.rows) <= 2 and abs(s.rows[-1][5]) == 1 and s.wide <= 1  # else each of them is looked up
        return {"depthwise": s.times * s.multiply_adds * (1 if tile else 4), "launch": s.times}
    channels = 1 if s.Kg == 1 else 4 if s.Kg <= 4 or s.wide > 1 else 16
    planes = s.N * s.G * -(-s.Kg // channels)
    threads = up(planes * -(-s.out // PIXELS), RESIDENT * MULTIPROCESSORS * THREADS // 4)
    met = s.times * threads * PIXELS * s.taps
    sums = {"met": met, "loaded": met * s.Cg, "summed": met * s.Cg * channels * s.wide}
    return {**sums, "packed": s.times * s.weights, "launch": 2 * s.times}


def _direct_grad_input(s: Sizes) -> Amounts:
    return {**_direct(s.phase), "copied": s.weights, "again": s.input}


def _direct_grad_weight(s: Sizes) -> Amounts:
    wide = max(row[1] for row in s.rows[-1:])
    sets = min(
        s.G * -(-s.Kg // channels) * -(-s.Cg * s.taps // (rows * width)) * instructions
        for channels, rows, width, instructions in WINDOWS if width in (1, wide) and (s.wide <= 1 or channels == 1)
    )  # fmt: skip
    return {"weighed": sets * up(s.N * s.out, RESIDENT * THREADS) * s.wide, "part": s.weights * 64, "launch": 2}


def _product(s: Sizes, rows: int, depth: float, output: int) -> Amounts:
    """``im2col``'s: by the BLAS of the arrays, or by tiles."""
    if s.library and s.kind in "fc":
        return {"blas": s.multiply_adds, "product": 1, "biased": output}
    name, sums = tiles(rows, s.N * s.out, depth, s.G, s.wide, s.G)
    return {name: sums}


def _im2col(s: Sizes) -> Amounts:
    depth = s.Cg * s.taps
    stored = s.N * s.G * depth * s.out * s.wide
    return {"stored": stored, "launch": 3, **_product(s, s.Kg, depth, s.output)}


def _im2col_grad_input(s: Sizes) -> Amounts:
    folded = s.input * s.taps * s.wide  # each pixel looks at every tap
    return {"folded": folded, "copied": s.weights, "launch": 3, **_product(s, s.Cg * int(s.taps), s.Kg, 0)}


def _fft(s: Sizes) -> Amounts:
    cut = tiling(s.rows, s.G * s.Cg, s.G * s.Kg, s.G)
    blocks = s.N * prod(cut.tiles)
    values = (blocks * s.G * (s.Cg + s.Kg) + s.G * s.Kg * s.Cg) * prod(cut.length)
    return {
        "transformed": s.times * values * (len(s.rows) + 2) * (2 if s.kind == "c" else 1),
        "spectral": s.times * blocks * s.G * s.Kg * s.Cg * prod(cut.spectrum(s.kind == "c")),
        "call": s.times * (2 * s.N + 1), "launch": 5 * s.times, "again": s.output,
    }


def _fft_grad_input(s: Sizes) -> Amounts:
    phase = _fft(s.phase)
    return {**phase, "copied": s.weights, "again": 2 * s.input}


_AMOUNTS = {
    ("implicit", "forward"): _implicit, ("implicit", "grad_input"): _implicit_grad_input,
    ("implicit", "grad_weight"): _implicit_grad_weight,
    ("direct", "forward"): _direct, ("direct", "grad_input"): _direct_grad_input,
    ("direct", "grad_weight"): _direct_grad_weight,
    ("im2col", "forward"): _im2col, ("im2col", "grad_input"): _im2col_grad_input,
    ("im2col", "grad_weight"): _implicit_grad_weight,  # it has none of its own
    ("fft", "forward"): _fft, ("fft", "grad_input"): _fft_grad_input, ("fft", "grad_weight"): _fft,
}


# how FFT cuts an image ----------------------------------------------------------------------------------------------

#: Bytes that the blocks of weights and of an image should not go beyond, where there is a way; and of some images.
SPECTRA = 256 << 20


class Tiling(NamedTuple):
    """How an image is cut: for each axis the length of the transform, outputs of a block, and blocks."""

    length: tuple[int, ...]
    tile: tuple[int, ...]
    tiles: tuple[int, ...]

    def spectrum(self, whole: bool) -> tuple[int, ...]:
        """The shape of a spectrum: half of it for real numbers."""
        return self.length if whole else (*self.length[:-1], self.length[-1] // 2 + 1)


@lru_cache(maxsize=1024)
def tiling(rows: tuple[tuple[int, ...], ...], C: int, K: int, G: int) -> Tiling:
    """The cheapest blocks for a table of axes and channels in, out and groups: one, if the spectra have room.

    How an image is cut follows from the image alone, and so do the bits of its transform.
    """
    best, least, pairs, half_octaves = None, (0.0, 0.0), C * K // G, 0
    while True:
        cut = [_cut_axis(row, 2 ** (half_octaves / 2)) for row in rows]
        found = Tiling(*(tuple(column) for column in zip(*cut, strict=True)))
        blocks, F = prod(found.tiles), prod(found.length)
        values = (blocks * (C + K) + pairs) * F
        time = COSTS.transformed * values * (len(rows) + 2) + COSTS.spectral * blocks * pairs * F / 2
        cost = max(16.0 * values, SPECTRA), time
        if best is None or cost < least:
            best, least = found, cost
        if blocks == 1:
            return best
        half_octaves += 1


def _cut_axis(row: tuple[int, ...], room: float) -> tuple[int, int, int]:
    """Length, outputs and number of blocks along an axis that has ``room`` pixels for windows to begin at."""
    _, kernel, out, _, stride, step = row
    reach = (kernel - 1) * abs(step) + 1
    tiles = -(-out // ((fast_length(int(room) - 1 + reach) - reach) // stride + 1))
    tile = -(-out // tiles)
    return fast_length((tile - 1) * stride + reach), tile, tiles


@lru_cache(maxsize=1024)
def fast_length(n: int) -> int:
    """The least even number from ``n`` on with no factors but 2, 3, 5 and 7, of which cuFFT has kernels.

    An even one keeps every image at an address that the transforms of real numbers take as it is.
    """
    best, sevens = 2 << max(n - 1, 1).bit_length(), 2
    while sevens < best:
        fives = sevens
        while fives < best:
            threes = fives
            while threes < best:
                best = min(best, threes << max(-(-n // threes) - 1, 0).bit_length())
                threes *= 3
            fives *= 5
        sevens *= 7
    return best
