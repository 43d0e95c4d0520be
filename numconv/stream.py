"""Plans with ``max_bytes``: the products tile by tile, over arrays of any size and files.

A tile reads a block of each array, computes it by a plan of its own and writes a block of the result, so what is taken
beside arguments and result is what the largest tile takes. Arrays may be files: whatever has ``shape`` and ``dtype``
and gives blocks by ``array[slices]``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from functools import lru_cache, partial
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _memory, arrays, containers, dispatch, select, tiles
from ._indexing import extent
from ._objects import look
from .geometry import ConvGeometry
from .progress import progress
from .record import Read, checksum, flush, identity, mapped, record
from .tiles import AdjointTile, Run, Share, Tile

if TYPE_CHECKING:
    from .products import Products
    from .record import Record

#: What a page of a file holds: shorter pieces of the last axis make the system read more than is asked for.
PAGE = 4096


# arrays that are read block by block ----------------------------------------------------------------------------------


def is_file(value: Any) -> bool:
    """Whether this is an array that is read block by block (h5py, zarr, …): all of it may not fit into memory."""
    def there(name: str) -> bool:
        return look(value, name) is not None

    if issubclass(type(value), np.ndarray) or not all(map(there, ("shape", "dtype", "__getitem__"))):
        return False
    return there("chunks") or not any(map(there, ("__array__", "__dlpack__", "__cuda_array_interface__")))


def block(array: Any, windows: Sequence[Sequence[Run]]) -> np.ndarray:
    """The block of an array that the runs along each of its axes make up; a view where it is one run of memory."""
    if all(len(runs) == 1 and runs[0].plain for runs in windows):
        part = array[tuple(runs[0].reads for runs in windows)]
        return part if isinstance(array, np.ndarray) else np.asarray(part)
    target = np.empty([runs[-1].at.stop for runs in windows], array.dtype)
    for runs in product(*windows):
        part = np.asarray(array[tuple(run.reads for run in runs)])
        target[tuple(run.at for run in runs)] = np.flip(part, tuple(a for a, run in enumerate(runs) if run.turned))
    return target


def around(g: ConvGeometry, images: Any, channels: Any, spatial: Sequence[Any]) -> tuple[Any, ...]:
    """What stands for batch, channels and spatial axes, for those axes that the caller's arrays have."""
    return tuple(spatial) if g.plain else (*((images,) if g.batched else ()), channels, *spatial)


def whole(part: slice) -> tuple[Run]:
    """A range of an axis as it stands."""
    return (Run(slice(0, part.stop - part.start), part),)


# how large a tile may be ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def lengths(plan: Products, what: str, beside: int = 0) -> tuple[int, ...]:
    """The lengths of a tile of this product: images, channels of the result, and its pixels.

    ``beside`` are bytes taken for each value that is read or written, for arrays that are files.
    """
    g = plan.geometry
    backwards = what not in ("forward", "grad_weight")
    outer, pixels, group = (g.C, g.size, g.C // g.groups) if backwards else (g.K, g.out, g.K // g.groups)
    cost = [0.0, float(outer)]
    for k, s, dil in zip(g.kernel, g.stride, g.dilation, strict=True):
        cost.append((extent(k, dil) - 1) if backwards else max(extent(k, dil) - s, 0) / s)
    cost[-1] += PAGE / plan.dtype.itemsize / g.stride[-1]
    need = partial(nbytes, plan, what, beside=beside)
    limit = plan.max_bytes or 0
    found = tiles.cut((g.N, outer, *pixels), cost, max(group, 1), lambda tile: need(tile) <= limit)
    if need(found) > limit:
        raise ValueError(
            f"max_bytes must be at least {need(found):,} for {what} by {plan.algorithm!r}, one value of the result "
            f"after the other, got {limit:,}"
        )
    return found


def nbytes(plan: Products, what: str, tile: tuple[int, ...], beside: int = 0) -> int:
    """Bytes that a tile of these lengths takes: its blocks of the arrays, and what the algorithm takes."""
    g, computed = plan.geometry, arrays.computed_in(plan.dtype)
    n, channels, *pixels = tile
    item = computed.itemsize + beside
    if what in ("forward", "grad_weight"):
        part = _largest(g, n, channels, pixels)
        blocks = n * (part.C * prod(part.size) + part.K * prod(part.out)) * item
    else:
        part = _largest_back(g, n, channels, pixels)
        blocks = n * (2 * part.C * prod(part.size) + part.K * prod(part.out)) * item
    weights = part.K * (part.C // max(part.groups, 1)) * prod(part.kernel)
    taken = select.workspace(getattr(plan.choice, what, plan.choice.grad_input), part, plan.dtype, plan.device)
    if what == "grad_weight":  # sums of parts of a tile (some algorithms take them wide), and of all tiles
        sums = wide(computed).itemsize
        return blocks + 2 * taken + min(34 * weights * sums, 17 << 20) + 3 * weights * sums
    if what != "forward":
        turned = part._replace(
            C=part.K, K=part.C, size=part.out, out=part.size, stride=(1,) * g.d, padding=((0, 0),) * g.d
        )
        taken = max(taken, select.workspace(plan.choice.grad_input, turned, plan.dtype, plan.device))
    return blocks + taken + 2 * weights * computed.itemsize + (plan.dtype.itemsize if plan.dtype != computed else 0) * (
        n * channels * prod(pixels)
    )


def _largest(g: ConvGeometry, n: int, k: int, out: Sequence[int]) -> ConvGeometry:
    """The geometry of the largest tile of these lengths."""
    channels, groups = tiles.channels_of((0, k), g.K, g.C, g.groups)
    size, padding = list(g.size), list(g.padding)
    for a, o in enumerate(out):
        if o < g.out[a]:
            first, last = tiles.positions(g, a, (0, o))
            size[a] = min(last - first, g.size[a]) if g.boundary == "constant" else last - first
            padding[a] = (last - first - size[a], 0)
    return g._replace(
        N=n, C=channels.stop - channels.start, K=k, groups=groups, size=tuple(size), out=tuple(out),
        padding=tuple(padding),
    )


def _largest_back(g: ConvGeometry, n: int, c: int, size: Sequence[int]) -> ConvGeometry:
    """The same for a tile of the input gradient; a boundary's padding counts as pixels."""
    kernels, groups = tiles.channels_of((0, c), g.C, g.K, g.groups)
    pixels, out = list(size), list(g.out)
    for a, i in enumerate(size):
        edges = 0 if g.boundary == "constant" else sum(g.padding[a])
        pixels[a] = i + edges
        out[a] = min(g.out[a], (max(i, edges) + extent(g.kernel[a], g.dilation[a]) - 2) // g.stride[a] + 1)
    return g._replace(
        N=n, C=c, K=kernels.stop - kernels.start, groups=groups, size=tuple(pixels), out=tuple(out),
        padding=((0, 0),) * g.d, boundary="constant", fill_value=0,
    )


@lru_cache(maxsize=256)
def part_of(plan: Products, geometry: ConvGeometry) -> Products:
    """The plan of a tile: the algorithm is what the whole convolution's plan says."""
    return replace(plan, geometry=geometry, max_bytes=None)


def wide(dtype: np.dtype) -> np.dtype:
    """In what the sums over tiles are kept, so that their rounding does not grow with the number of tiles."""
    return np.result_type(dtype, np.float64) if dtype.kind in "fc" else dtype


def windows_of(g: ConvGeometry, tile: Tile) -> tuple[Sequence[Run], ...]:
    """What a tile reads of ``x``."""
    return around(g, whole(tile.images), whole(tile.channels), [w.runs for w in tile.windows])


def windows_back(g: ConvGeometry, tile: AdjointTile, shares: Sequence[Share]) -> tuple[Sequence[Run], ...]:
    """What a part of a tile of the input gradient reads of ``dy``."""
    return around(g, whole(tile.images), whole(tile.kernels), [whole(share.outs) for share in shares])


# the products ---------------------------------------------------------------------------------------------------------


def forward(plan: Products, x: Any, w: Any, bias: Any, out: Any, resume: Any) -> Any:
    """``plan.forward`` tile by tile."""
    g = plan.geometry
    work = _Work(plan, "forward", {"x": (x, g.input_shape), "w": (w, g.kernel_shape), "bias": (bias, (g.K,))})
    _, w, bias = work.inputs
    return work.deliver(lambda x, *to: forward_tile(plan, x, w, bias, *to), g.output_shape, out, resume)


def forward_tile(
    plan: Products, x: Any, w: np.ndarray, bias: np.ndarray | None, tile: Tile, target: np.ndarray | None
) -> np.ndarray:
    """A block of the output."""
    g = plan.geometry
    if not g.plain:
        w, bias = w[tile.kernels], None if bias is None else bias[tile.kernels]
    return part_of(plan, tile.geometry).forward_of(block(x, windows_of(g, tile)), w, bias, target)


def grad_input(plan: Products, dy: Any, w: Any, out: Any, resume: Any) -> Any:
    """``plan.grad_input`` tile by tile."""
    g = plan.geometry
    work = _Work(plan, "grad_input", {"dy": (dy, g.output_shape), "w": (w, g.kernel_shape)})
    _, w = work.inputs
    return work.deliver(lambda dy, *to: grad_input_tile(plan, dy, w, None, *to), g.input_shape, out, resume)


def transpose(plan: Products, x: Any, w: Any, bias: Any, out: Any) -> Any:
    """``plan.transpose`` tile by tile."""
    g = plan.geometry
    work = _Work(plan, "transpose", {"x": (x, g.output_shape), "w": (w, g.kernel_shape), "bias": (bias, (g.C,))})
    _, w, bias = work.inputs
    bias = np.zeros(g.C, plan.dtype) if bias is None else bias
    return work.deliver(lambda x, *to: grad_input_tile(plan, x, w, bias, *to), g.input_shape, out, None)


def grad_input_tile(
    plan: Products, dy: Any, w: np.ndarray, bias: np.ndarray | None, tile: AdjointTile, target: np.ndarray | None
) -> np.ndarray:
    """A block of the input gradient; with a ``bias`` of the transposed convolution, which takes ``w`` as it is."""
    g, computed = plan.geometry, arrays.computed_in(plan.dtype)
    some = w
    if not g.plain:
        first, last = (at % max(1, g.C // g.groups) for at in (tile.channels.start, tile.channels.stop - 1))
        alone = tile.channels.stop - tile.channels.start < g.C // g.groups
        some = w[tile.kernels, slice(first, last + 1)] if alone else w[tile.kernels]
    some = arrays.ready(some, computed)
    shape = (tile.images.stop - tile.images.start, tile.channels.stop - tile.channels.start)
    dx = np.zeros((*shape, *(axis.size + len(axis.onto) for axis in tile.axes)), computed)
    for geometry, shares in tile.parts(g):
        part = part_of(plan, geometry)
        part_dy = block(dy, windows_back(g, tile, shares))
        product_of = part._transposed if bias is not None else part._grad_input
        place: tuple[Any, ...] = (..., *(s.at for s in shares))
        dx[place] = _computed(part, product_of, (*shape, *geometry.size), part_dy, some)
    for a, axis in enumerate(tile.axes):
        rows = np.moveaxis(dx, 2 + a, 0)
        if axis.onto:
            np.add.at(rows[: axis.size], list(axis.onto), rows[axis.size :])
        dx = np.moveaxis(rows[: axis.size], 0, 2 + a)
    if bias is not None:
        with np.errstate(all="ignore"):
            dx += bias[tile.channels].astype(computed).reshape(-1, *(1,) * g.d)
    result = arrays.as_result(dx, plan.dtype).reshape(around(g, shape[0], shape[1], dx.shape[2:]))
    if target is None:
        return result
    np.copyto(target, result, casting="same_kind")
    return target


def _computed(part: Products, compute: Callable[..., None], shape: tuple[int, ...], *inputs: np.ndarray) -> np.ndarray:
    """A product of a tile in the dtype in which it is computed."""
    dtype = arrays.computed_in(part.dtype)
    ready, target = [arrays.ready(array, dtype) for array in inputs], np.empty(shape, dtype)
    with np.errstate(all="ignore"):
        dispatch.placed(part.device, ready[0], compute)(*ready, target)
    return target


def grad_weight(plan: Products, x: Any, dy: Any, out: Any) -> Any:
    """``plan.grad_weight`` as a sum over tiles, in float64 where the dtype is float32."""
    g, computed = plan.geometry, arrays.computed_in(plan.dtype)
    work = _Work(plan, "grad_weight", {"x": (x, g.input_shape), "dy": (dy, g.output_shape)})
    x, dy = work.inputs

    def compute(dw: np.ndarray) -> None:
        total = np.zeros(dw.shape, wide(computed))
        for ranges in progress(work.tiles(), "grad_weight", "tile"):
            tile = work.tile(*ranges)
            with np.errstate(all="ignore"):
                total[... if g.plain else tile.kernels] += grad_weight_tile(plan, x, dy, tile)
        with np.errstate(all="ignore"):
            dw[...] = total

    with work.asked(g.kernel_shape, prod(g.kernel_shape) * (computed.itemsize if out is None else 0)):
        return work.give(arrays.deliver(compute, g.kernel_shape, plan.dtype, out, x, dy, computed=computed), out)


def grad_weight_tile(plan: Products, x: Any, dy: Any, tile: Tile) -> np.ndarray:
    """What a block of the output gives to the weight gradient."""
    g, part = plan.geometry, part_of(plan, tile.geometry)
    part_dy = block(dy, around(g, whole(tile.images), whole(tile.kernels), list(map(whole, tile.place))))
    return _computed(part, part._grad_weight, part.geometry.kernel_shape, block(x, windows_of(g, tile)), part_dy)


class _Work:
    """One product of a plan with its arrays, looked at and ready to be read block by block."""

    def __init__(self, plan: Products, what: str, inputs: dict[str, tuple[Any, tuple[int, ...]]]) -> None:
        self.plan, self.what, self.backwards = plan, what, what in ("grad_input", "transpose")
        self.given = {name: array for name, (array, _) in inputs.items()}
        files = {name: array for name, array in self.given.items() if is_file(array)}
        for name, array in files.items():
            kind: Any = type(array)
            if not dispatch.is_dask(kind):  # those are read by slices, too
                containers.refuse(name, array)
        read, self._give = dispatch.read(**{name: a for name, a in self.given.items() if name not in files})
        found = dict(zip((name for name in inputs if name not in files), read, strict=True)) | files
        for name, (_, shape) in inputs.items():
            array = found[name]
            if array is None:
                continue
            if not isinstance(array, np.ndarray) and name not in files:
                raise TypeError(f"{name} must be an array on the CPU for a plan with max_bytes, got one on a GPU")
            if name in files and name not in ("x", "dy"):
                found[name] = np.asarray(array[...])
            plan._check(name, array, shape)
        self.inputs = [found[name] for name in inputs]
        self.files = files
        self.beside = max((np.dtype(array.dtype).itemsize for array in files.values()), default=0)

    def give(self, result: Any, out: Any) -> Any:
        """The result as the caller wants it."""
        return out if out is not None else self._give(result)

    def tiles(self, more: int = 0) -> list[tuple[Any, ...]]:
        """The arguments of ``tile`` for every tile; those that read the same block follow each other."""
        g = self.plan.geometry
        n, channels, *pixels = self.lengths(more)
        outer, size, groups = (g.C, g.size, g.groups) if self.backwards else (g.K, g.out, g.groups)
        some = tiles.channel_ranges(outer, channels, max(1, outer // groups))
        places = map(tiles.ranges, size, pixels)
        return [(i, k, place) for i, *place, k in product(tiles.ranges(g.N, n), *places, some)]

    def tile(self, *ranges: Any) -> Any:
        return (tiles.adjoint_tile if self.backwards else tiles.tile)(self.plan.geometry, *ranges)

    def lengths(self, more: int = 0) -> tuple[int, ...]:
        return lengths(self.plan, self.what, max(self.beside, more))

    def asked(self, shape: tuple[int, ...], result: int, more: int = 0) -> AbstractContextManager[None]:
        """Memory for the result and the largest tile; before that an error where ``max_bytes`` is too small for any."""
        taken = result + nbytes(self.plan, self.what, self.lengths(more), max(self.beside, more))
        what = f"{self.what} tile by tile, with a result of shape {shape},"
        return _memory.required(taken, what, "give a file or a smaller max_bytes")

    def deliver(
        self, compute: Callable[[Any, Any, np.ndarray | None], np.ndarray], shape: tuple[int, ...], out: Any,
        resume: Any,
    ) -> Any:
        """Compute every tile into ``out``; those that a record says are there already only if they are not.

        ``compute(source, tile, target)`` reads what it needs of the first input from ``source``.
        """
        dtype, source = self.plan.dtype, self.inputs[0]
        target, more = out, 0
        if is_file(out):
            arrays.check_shape("out", out, shape)
            if not np.can_cast(dtype, out.dtype, "same_kind"):
                raise TypeError(f"out must have a dtype that {dtype} casts to (same_kind), got {out.dtype}")
            more = dtype.itemsize
        elif out is not None:
            (target,), _ = dispatch.read(out=out)
            arrays.check_out(target, shape, dtype)
            if any(isinstance(a, np.ndarray) and _share_memory(out, a) for a in (*self.inputs, *self.given.values())):
                raise ValueError("out must not share memory with an input for a plan with max_bytes: it is read later")
        elif resume is not None:
            raise ValueError("out must be given for resume, an array in a file that outlives the process; got None")
        if resume is not None:  # a block whose checksum is taken may have to be copied for that
            more = max(more, np.dtype(out.dtype).itemsize, np.dtype(source.dtype).itemsize)
        with self.asked(shape, prod(shape) * dtype.itemsize if out is None else 0, more):
            if out is None:
                target = np.empty(shape, dtype)
            parts, there = self.tiles(more), set()
            with record(resume, self.facts(target, more, resume)) if resume is not None else nullcontext() as done:
                if done is not None:
                    source = Read(source)
                    there = self.finished(done, parts, source, target)
                for i, ranges in enumerate(progress(parts, self.what, "tile")):
                    if i in there:
                        continue
                    tile = self.tile(*ranges)
                    place = self.place(tile)
                    if is_file(out):
                        target[place] = compute(source, tile, None)
                    else:
                        compute(source, tile, target[place])
                    if done is not None:
                        flush(target)
                        done.add(i, source.checksum(), checksum(target[place]))
        return self.give(target, out)

    def place(self, tile: Any) -> tuple[Any, ...]:
        """Where the result of a tile belongs."""
        channels = tile.channels if isinstance(tile, AdjointTile) else tile.kernels
        return around(self.plan.geometry, tile.images, channels, tile.place)

    def finished(self, done: Record, parts: list[tuple[Any, ...]], source: Read, target: Any) -> set[int]:
        """The tiles that are in ``target`` already; an error if one of the record has read something else."""
        g, name, found = self.plan.geometry, next(iter(self.given)), set()
        recorded = [i for i in sorted(done.done) if 0 <= i < len(parts)]
        for i in progress(recorded, f"{self.what}, what is there", "tile"):
            tile, (read, wrote) = self.tile(*parts[i]), done.done[i]
            if isinstance(tile, AdjointTile):
                for _, shares in tile.parts(g):
                    block(source, windows_back(g, tile, shares))
            else:
                block(source, windows_of(g, tile))
            if source.checksum() != read:
                raise done.refuse(name, f"has other values where tile {i + 1} of {len(parts)} reads them")
            if checksum(target[self.place(tile)]) == wrote:
                found.add(i)
        return found

    def facts(self, out: Any, more: int, resume: Any) -> dict[str, Any]:
        """What must be the same for a tile of an earlier run to be one of this run."""
        plan = self.plan
        geometry = {field.name: repr(getattr(plan.geometry, field.name)) for field in fields(plan.geometry)}
        facts: dict[str, Any] = {"product": self.what, "geometry": geometry, "dtype": plan.dtype.str}
        facts |= {"algorithm": getattr(plan.choice, self.what), "device": plan.device, "precision": plan.precision}
        facts["tile"] = list(self.lengths(more))
        for name, array in zip(self.given, self.inputs, strict=True):
            facts[name] = array
            if array is not None:
                facts[name] = {"shape": list(array.shape), "dtype": np.dtype(array.dtype).str}
                if name in ("x", "dy"):  # each tile's line says what it read
                    facts[name]["changed"] = _changed(self.given[name])
                else:
                    facts[name]["sha256"] = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return facts | {"out": identity(out, resume)}


def _changed(array: Any) -> int | None:
    """When the file of a memory map was changed last, in nanoseconds."""
    root = mapped(array)
    path = None if root is None else root.filename
    return os.stat(path).st_mtime_ns if path is not None and os.path.exists(path) else None


def _share_memory(a: Any, b: Any) -> bool:
    """Whether one of these is part of the other, in memory or in a file."""
    files = [array.filename for array in (a, b) if isinstance(array, np.memmap) and array.filename is not None]
    return bool(len(files) == 2 and os.path.samefile(*files)) or bool(np.may_share_memory(a, b))
