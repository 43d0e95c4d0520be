"""A convolution cut into tiles: which block of the input, with which padding, a block of the output is made of.

Every tile is a convolution of its own, with a ``ConvGeometry`` of its own, over a block of the input. Where a block
reaches over the border, a constant stays padding of the tile; the pixels that another boundary reads there are listed
as runs of the input, and the block holds them. No arrays here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

from ._indexing import REFLECT, WRAP, extent, source
from .arguments import BOUNDARIES
from .geometry import ConvGeometry

Range = tuple[int, int]


class Run(NamedTuple):
    """Neighbouring pixels ``at`` of a block: pixels ``reads`` of the array, perhaps ``turned``.

    Where ``reads`` is one pixel and ``at`` are several, all of them are that pixel.
    """

    at: slice
    reads: slice
    turned: bool = False

    @property
    def plain(self) -> bool:
        """Whether the pixels are copied as they stand."""
        return not self.turned and self.at.stop - self.at.start == self.reads.stop - self.reads.start


class Window(NamedTuple):
    """What a range of outputs reads along one axis: a block made of ``runs``, and its padding."""

    runs: tuple[Run, ...]
    size: int
    padding: Range


class Tile(NamedTuple):
    """A block of the output: ``geometry`` convolves the block of the input that ``windows`` describe.

    ``images``, ``channels`` and ``kernels`` are ranges of batch, input and output channels, ``place`` the outputs.
    """

    geometry: ConvGeometry
    images: slice
    channels: slice
    kernels: slice
    windows: tuple[Window, ...]
    place: tuple[slice, ...]


class Share(NamedTuple):
    """What outputs ``outs`` give to neighbouring pixels ``at`` of a block of ``dX`` along one axis."""

    at: slice
    outs: slice
    padding: Range


class Adjoint(NamedTuple):
    """What a range of pixels receives along one axis: ``shares``, and where they are folded.

    The block has ``size`` pixels; behind them lie those of the padding that a boundary reads from it, and
    ``onto`` says from which pixel each.
    """

    size: int
    shares: tuple[Share, ...]
    onto: tuple[int, ...]


class AdjointTile(NamedTuple):
    """A block of ``dX``: the gradients of the convolutions ``parts`` make it up, folded along ``axes``."""

    images: slice
    channels: slice
    kernels: slice
    place: tuple[slice, ...]
    axes: tuple[Adjoint, ...]

    def parts(self, geometry: ConvGeometry) -> Iterator[tuple[ConvGeometry, tuple[Share, ...]]]:
        """The convolutions, each under zero padding, whose gradients are added; pixels that none has receive 0."""
        g = geometry
        C, K = self.channels.stop - self.channels.start, self.kernels.stop - self.kernels.start
        for shares in product(*(axis.shares for axis in self.axes)):
            size = tuple(s.at.stop - s.at.start for s in shares)
            out = tuple(s.outs.stop - s.outs.start for s in shares)
            yield g._replace(
                N=self.images.stop - self.images.start, C=C, K=K, groups=max(1, C * g.groups // max(g.C, 1)), size=size,
                out=out, padding=tuple(s.padding for s in shares), boundary="constant", fill_value=0,
            ), shares


# one axis -----------------------------------------------------------------------------------------------------------


def positions(g: ConvGeometry, a: int, outs: Range) -> Range:
    """The positions that these outputs look at along axis ``a``, below 0 and beyond the size where it is padding."""
    lo = g.padding[a][0]
    first, last = outs[0] * g.stride[a] - lo, (outs[1] - 1) * g.stride[a] - lo
    return first, last + extent(g.kernel[a], g.dilation[a])


def window(g: ConvGeometry, a: int, outs: Range) -> Window:
    """What outputs ``outs`` read along axis ``a``."""
    n = g.size[a]
    if outs == (0, g.out[a]):
        return Window((Run(slice(0, n), slice(0, n)),), n, g.padding[a])
    first, last = positions(g, a, outs)
    begin = min(max(first, 0), n)
    end = max(begin, min(last, n))
    if begin == first and end == last:
        return Window((Run(slice(0, end - begin), slice(begin, end)),), end - begin, (0, 0))
    if g.boundary == "constant":
        padding = (begin - first, last - end) if begin < end else (last - first, 0)
        return Window((Run(slice(0, end - begin), slice(begin, end)),), end - begin, padding)
    return Window(tuple(runs_of(first, last, n, g.boundary)), last - first, (0, 0))


def runs_of(first: int, last: int, size: int, boundary: str) -> Iterator[Run]:
    """The pixels that positions ``first`` to ``last - 1`` read, in runs; the boundary is not a constant."""
    code = BOUNDARIES.index(boundary)
    p = first
    while p < last:
        i = source(p, size, code)
        if boundary == "edge" or size == 1:
            inside = 0 <= p < size
            stop = min(last, size if inside else 0 if p < 0 else last)
            reads = slice(i, i + (stop - p if inside else 1))
            run = Run(slice(p - first, stop - first), reads)
        else:
            period = {REFLECT: 2 * size - 2, WRAP: size}.get(code, 2 * size)
            turned = p % period >= size
            count = min(last - p, period - p % period if turned else size - i)
            reads = slice(i - count + 1, i + 1) if turned else slice(i, i + count)
            run = Run(slice(p - first, p - first + count), reads, turned)
        yield run
        p = first + run.at.stop


def adjoint(g: ConvGeometry, a: int, pixels: Range) -> Adjoint:
    """What pixels ``pixels`` receive along axis ``a``."""
    (n, (lo, hi)), size = (g.size[a], g.padding[a]), pixels[1] - pixels[0]
    pieces, onto = [pixels], []
    if g.boundary != "constant":
        code = BOUNDARIES.index(g.boundary)
        for p in (*range(-lo, 0), *range(n, n + hi)):
            i = source(p, n, code)
            if pixels[0] <= i < pixels[1]:
                onto.append(i - pixels[0])
                if len(pieces) > 1 and pieces[-1][1] == p:
                    pieces[-1] = (pieces[-1][0], p + 1)
                else:
                    pieces.append((p, p + 1))
    shares, at = [], 0
    for first, last in pieces:
        share = _share(g, a, first, last, at)
        at += last - first
        shares += [share] if share else []
    return Adjoint(size, tuple(shares), tuple(onto))


def _share(g: ConvGeometry, a: int, first: int, last: int, at: int) -> Share | None:
    """The outputs that look at positions ``first`` to ``last - 1``, which stand at ``at`` in the block."""
    s, lo, reach = g.stride[a], g.padding[a][0], extent(g.kernel[a], g.dilation[a])
    o0, o1 = max(0, -(-(first + lo - reach + 1) // s)), min(g.out[a], (last - 1 + lo) // s + 1)
    if o0 >= o1:
        return None
    p0, p1 = positions(g, a, (o0, o1))
    begin, end = max(first, p0), min(last, p1)
    if begin >= end:  # between two strides
        return None
    return Share(slice(at + begin - first, at + end - first), slice(o0, o1), (begin - p0, p1 - end))


# all axes -----------------------------------------------------------------------------------------------------------


def tile(g: ConvGeometry, images: Range, kernels: Range, outs: Sequence[Range]) -> Tile:
    """The tile of these outputs; ``kernels`` are whole groups or lie within one."""
    windows = tuple(window(g, a, o) for a, o in enumerate(outs))
    channels, groups = channels_of(kernels, g.K, g.C, g.groups)
    geometry = g._replace(
        N=images[1] - images[0], C=channels.stop - channels.start, K=kernels[1] - kernels[0], groups=groups,
        size=tuple(w.size for w in windows), out=tuple(o1 - o0 for o0, o1 in outs),
        padding=tuple(w.padding for w in windows),
    )
    return Tile(geometry, slice(*images), channels, slice(*kernels), windows, tuple(slice(*o) for o in outs))


def adjoint_tile(g: ConvGeometry, images: Range, channels: Range, pixels: Sequence[Range]) -> AdjointTile:
    """The tile of these pixels of ``dX``; ``channels`` are whole groups or lie within one."""
    axes = tuple(adjoint(g, a, p) for a, p in enumerate(pixels))
    kernels, _ = channels_of(channels, g.C, g.K, g.groups)
    return AdjointTile(slice(*images), slice(*channels), kernels, tuple(slice(*p) for p in pixels), axes)


def channels_of(these: Range, of: int, others: int, groups: int) -> tuple[slice, int]:
    """The channels on the other side that belong to ``these``, and how many groups that is."""
    if these == (0, of):
        return slice(0, others), groups
    mine, its = of // groups, others // groups
    first, last = these[0] // mine, -(-these[1] // mine)
    return slice(first * its, last * its), last - first


# cutting ------------------------------------------------------------------------------------------------------------


def cut(
    lengths: Sequence[int], cost: Sequence[float], group: int, fits: Callable[[tuple[int, ...]], bool]
) -> tuple[int, ...]:
    """The lengths of a tile: all of them, halved until they fit; nothing fits, then 1 along every axis.

    ``cost`` says how many outputs more, along each axis, each cut lets be read again; the axis is halved where that
    is the smallest part of its length. Axis 1 are the channels, whose tiles are whole groups of ``group`` or lie
    within one.
    """
    tile = list(lengths)
    while not fits(tuple(tile)) and max(tile) > 1:
        a = min((a for a, n in enumerate(tile) if n > 1), key=lambda a: cost[a] / tile[a])
        unit = group if a == 1 and tile[a] > group else 1
        tile[a] = -(-tile[a] // unit // 2) * unit
    return tuple(tile)


def ranges(n: int, length: int) -> list[Range]:
    """``0 .. n-1`` in pieces of ``length``; one empty piece if there is nothing."""
    return [(i, min(i + length, n)) for i in range(0, n, max(length, 1))] or [(0, 0)]


def channel_ranges(n: int, length: int, group: int) -> list[Range]:
    """The same for channels, where a piece is whole groups or lies within one."""
    if length >= group:
        return ranges(n, length)
    return [(g + a, g + b) for g in range(0, n, group) for a, b in ranges(group, length)]
