"""Dask arrays through the functions of the same names: lazily, chunk by chunk, every geometry and boundary.

A chunk of the result reads the pixels that it is made of (``numconv.tiles``): of each chunk that it overlaps it asks
for the part it needs and nothing else, so what travels between workers are the edges. The chunks of the result follow
from those of the input by the geometry alone: pixel and output belong to one chunk where the middle of the kernel lies
on the pixel. The algorithm is chosen for the whole array, so that the chunks do not decide it.

A chunk of the result takes one task, and one more for each neighbour of which it needs a part: with ``d`` spatial axes
``3**d`` tasks inside, 9 for images and 27 for volumes. It receives ``prod(L + r) - prod(L)`` pixels of each channel for
chunks of ``L`` outputs and a kernel that spans ``r + 1`` pixels (stride 1), and each worker receives the kernel once.
With ``m`` chunks along every axis the neighbours of the border are missing: ``(3 m - 2)**d`` tasks in all. A volume of
``4000**3`` float32 values in 1000 chunks of ``400**3`` and a kernel of ``5**3`` takes 21,952 tasks, and a chunk of
256 MB receives 7.8 MB, 3 %. 10,648 chunks (``m = 22``) take 262,144 tasks: what the scheduler spends on a task, about
200 microseconds, makes that a minute, and a client holds the graph in some hundred MB. Beyond this, larger chunks pay.
A weight gradient adds the partial ones of its ``n`` chunks by ``TOGETHER``, about ``n / (TOGETHER - 1)`` tasks more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise, product
from math import prod
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from .. import arrays, containers, dispatch, matrices, stream, tiles
from .._indexing import extent
from ..api import plain
from ..arguments import MODES, PRECISIONS, frozen, one_of
from ..geometry import ConvGeometry, conv_geometry, plain_geometry, transpose_geometry, window_geometry
from ..plan import ConvPlan, make_plan
from ..select import ASKED
from ..tiles import AdjointTile, Range, Tile

#: How many partial weight gradients a task adds.
TOGETHER = 16


# the functions --------------------------------------------------------------------------------------------------------


def conv(
    x: Any, w: Any, bias: Any = None, *, algorithm: str = "auto", precision: str = "ieee", dtype: Any = None,
    out: Any = None, **geometry: Any,
) -> Any:
    """``numconv.conv`` of Dask arrays.

    Examples
    --------
    >>> import dask.array as da, numconv, numpy as np
    >>> x = da.ones((2, 1, 100, 100), chunks=(1, 1, 50, 40), dtype="float32")
    >>> y = numconv.conv(x, np.ones((1, 1, 3, 3), "float32"), padding=1, boundary="wrap")
    >>> y.chunks
    ((1, 1), (1,), (50, 50), (40, 40, 20))
    >>> bool((y == 9).all())
    True
    """
    one_of("precision", precision, PRECISIONS)  # the CPU computes in full
    x, w, bias = _lazy(out, x=x, w=w, bias=bias)
    (x, w, bias), dtype = arrays.summands(dtype, None, x=x, w=w, bias=bias)
    return _forward(x, w, bias, conv_geometry(x.shape, w.shape, **_frozen(geometry)), dtype, algorithm)


def convolve(x: Any, w: Any, mode: str = "full", *, out: Any = None, **options: Any) -> Any:
    """``numconv.convolve`` of Dask arrays; ``x`` is the larger array."""
    x, w = _lazy(out, x=x, w=w)
    return _slide(x, w, mode, True, **options)


def correlate(x: Any, w: Any, mode: str = "full", *, out: Any = None, **options: Any) -> Any:
    """``numconv.correlate`` of Dask arrays; ``x`` is the larger array."""
    x, w = _lazy(out, x=x, w=w)
    return _slide(x, w.conj() if w.dtype.kind == "c" else w, mode, False, **options)


def _slide(
    x: Any, w: Any, mode: str, flip: bool, *, axes: Any = None, algorithm: str = "auto", dilation: Any = 1,
    dtype: Any = None, **geometry: Any,
) -> Any:
    mode = one_of("mode", mode, MODES)
    chosen = tuple(range(x.ndim)) if axes is None else plain._normal_axes(axes, x.ndim)
    size = tuple(x.shape[a] for a in chosen)
    if w.ndim != len(chosen):
        raise ValueError(f"w must have one axis for each of axes={chosen}, got shape {w.shape}")
    if mode == "valid" and plain._inside(size, w.shape, dilation):
        raise ValueError(f"x must be the larger one if it is a Dask array, got shapes {x.shape} and {w.shape}")
    g = plain_geometry(size, w.shape, mode, dilation=frozen(dilation, "dilation"), flip=flip, **_frozen(geometry))
    (x, w), dtype = arrays.summands(dtype, None, x=x, w=w)
    last = tuple(range(x.ndim - len(chosen), x.ndim))
    if chosen == last:
        return _forward(x, w, None, g, dtype, algorithm)
    return da.moveaxis(_forward(da.moveaxis(x, chosen, last), w, None, g, dtype, algorithm), last, chosen)


def conv_grad_input(
    input_shape: Any, w: Any, dy: Any, *, algorithm: str = "auto", precision: str = "ieee", dtype: Any = None,
    out: Any = None, **geometry: Any,
) -> Any:
    """``numconv.conv_grad_input`` of Dask arrays."""
    one_of("precision", precision, PRECISIONS)
    w, dy = _lazy(out, w=w, dy=dy)
    g = conv_geometry(frozen(input_shape, "input_shape"), w.shape, names=("input_shape", "w"), **_frozen(geometry))
    arrays.check_shape("dy", dy, g.output_shape)
    (w, dy), dtype = arrays.summands(dtype, None, w=w, dy=dy)
    return _backward(dy, w, None, g, dtype, algorithm)


def conv_transpose(
    x: Any, w: Any, bias: Any = None, *, algorithm: str = "auto", precision: str = "ieee", dtype: Any = None,
    out: Any = None, **geometry: Any,
) -> Any:
    """``numconv.conv_transpose`` of Dask arrays."""
    one_of("precision", precision, PRECISIONS)  # the CPU computes in full
    x, w, bias = _lazy(out, x=x, w=w, bias=bias)
    (x, w, bias), dtype = arrays.summands(dtype, None, x=x, w=w, bias=bias)
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
    g = transpose_geometry(x.shape, w.shape, **(defaults | _frozen(geometry)))
    bias = da.zeros(g.C, dtype) if bias is None else bias
    return _backward(x, w, bias, g, dtype, algorithm)


def conv_grad_weight(
    x: Any, kernel_shape: Any, dy: Any, *, algorithm: str = "auto", precision: str = "ieee", dtype: Any = None,
    out: Any = None, **geometry: Any,
) -> Any:
    """``numconv.conv_grad_weight`` of Dask arrays; the chunks' sums are added in a fixed order."""
    one_of("precision", precision, PRECISIONS)
    x, dy = _lazy(out, x=x, dy=dy)
    g = conv_geometry(x.shape, frozen(kernel_shape, "kernel_shape"), names=("x", "kernel_shape"), **_frozen(geometry))
    arrays.check_shape("dy", dy, g.output_shape)
    (x, dy), dtype = arrays.summands(dtype, None, x=x, dy=dy)
    plan, outer = _plan(g, dtype, algorithm, g.N), x.ndim - g.d - 1
    if len(dy.chunks[-1]) == 1 and all(len(c) == 1 for c in dy.chunks[outer + 1 :]):
        dy = dy.rechunk((*x.chunks[:outer], *dy.chunks[outer : outer + 1], *_output_chunks(g, x.chunks[outer + 1 :])))
    dy = dy.rechunk(dict(enumerate(x.chunks[:outer])) | {outer: -1})
    name = f"conv_grad_weight-{tokenize(x.name, dy.name, plan)}"
    graph: dict[Any, Any] = {}
    partial_sums = []
    for index, (*images, _), outs in _blocks(dy.chunks, outer):
        tile = tiles.tile(plan.geometry, (0, _count(images)), (0, g.K), outs)
        hold, keys = _pieces(graph, name, index, x, [[i] for i in images] + _needs(tile))
        key = (f"{name}-part", *index)
        graph[key] = (partial(_weights, plan, tile, hold), keys, (dy.name, *index))
        partial_sums.append(key)
    level = 0
    while len(partial_sums) > 1:
        groups = [partial_sums[i : i + TOGETHER] for i in range(0, len(partial_sums), TOGETHER)]
        partial_sums = [(f"{name}-sum", level, i) for i in range(len(groups))]
        graph |= {key: (_add, group) for key, group in zip(partial_sums, groups, strict=True)}
        level += 1
    graph[(name, *(0,) * (g.d + 2))] = (partial(_narrow, dtype), partial_sums[0])
    chunks = tuple((n,) for n in g.kernel_shape)
    return da.Array(HighLevelGraph.from_collections(name, graph, [x, dy]), name, chunks, dtype)


def im2col(x: Any, kernel_size: Any, *, flip: bool = True, out: Any = None, **geometry: Any) -> Any:
    """``numconv.im2col`` of a Dask array: a chunk of columns for each chunk along batch and first spatial axis."""
    (x,) = _lazy(out, x=x)
    g = window_geometry(x.shape, kernel_size, flip=flip, **_frozen(geometry))
    channelled, lead = not g.plain, 0 if g.plain else x.ndim - g.d - 1
    name = f"im2col-{tokenize(x.name, g)}"
    rows = _output_chunks(g, x.chunks[-g.d :])[0]
    chunks = (*x.chunks[:lead], (g.C * prod(g.kernel),), tuple(row * prod(g.out[1:]) for row in rows))
    canonical = g._replace(plain=False, batched=True)
    graph: dict[Any, Any] = {}
    for index, (*images, _), (first,) in _blocks((*x.chunks[:lead], (1,), rows), lead):
        tile = tiles.tile(canonical, (0, _count(images)), (0, 1), [first, *((0, o) for o in g.out[1:])])
        hold, keys = _pieces(graph, name, index, x, [[i] for i in images] + _needs(tile)[g.plain :])
        shape = (*(b - a for a, b in images), g.C * prod(g.kernel), prod(tile.geometry.out))
        graph[(name, *index)] = (partial(_columns, tile, hold, shape, channelled), keys)
    return da.Array(HighLevelGraph.from_collections(name, graph, [x]), name, chunks, x.dtype)


# graphs ---------------------------------------------------------------------------------------------------------------


def _forward(x: Any, w: Any, bias: Any, g: ConvGeometry, dtype: np.dtype, algorithm: str) -> Any:
    """``y``; all axes of ``x`` before channel and pixels are a batch."""
    channelled = not g.plain
    outer = x.ndim - g.d - channelled
    plan = _plan(g, dtype, algorithm, prod(x.shape[:outer]))
    by_group = channelled and _by_group(x.chunks[outer], g.C, g.groups)
    kernels = tuple(c * g.groups // g.C * (g.K // g.groups) for c in x.chunks[outer]) if by_group else (g.K,)
    chunks = (*x.chunks[:outer], *((kernels,) if channelled else ()), *_output_chunks(g, x.chunks[x.ndim - g.d :]))
    if bias is not None:
        arrays.check_shape("bias", bias, (g.K,))

    def make(name: str, graph: dict[Any, Any], index: Any, images: list[Range], these: Range, outs: Any) -> Any:
        tile = tiles.tile(plan.geometry, (0, _count(images)), these, outs)
        hold, keys = _pieces(graph, name, index, x, [[i] for i in images] + _needs(tile)[g.plain :])
        return partial(_outputs, plan, tile, hold, _shape(images, these, outs, channelled), channelled), keys

    return _graph("conv", make, (x, w, bias), plan, chunks, outer, channelled)


def _backward(dy: Any, w: Any, bias: Any, g: ConvGeometry, dtype: np.dtype, algorithm: str) -> Any:
    """``dX``; with a bias what ``conv_transpose`` gives, which takes ``w`` as it is."""
    plan, outer = _plan(g, dtype, algorithm, g.N), dy.ndim - g.d - 1
    by_group = _by_group(dy.chunks[outer], g.K, g.groups)
    channels = tuple(k * g.groups // g.K * (g.C // g.groups) for k in dy.chunks[outer]) if by_group else (g.C,)
    chunks = (*dy.chunks[:outer], channels, *_input_chunks(g, dy.chunks[outer + 1 :]))
    if bias is not None:
        arrays.check_shape("bias", bias, (g.C,))

    def make(name: str, graph: dict[Any, Any], index: Any, images: list[Range], these: Range, pixels: Any) -> Any:
        tile = tiles.adjoint_tile(plan.geometry, (0, _count(images)), these, pixels)
        needs = [[(tile.kernels.start, tile.kernels.stop)], *(_merged([s.outs for s in a.shares]) for a in tile.axes)]
        hold, keys = _pieces(graph, name, index, dy, [[i] for i in images] + needs)
        return partial(_inputs, plan, tile, hold, _shape(images, these, pixels, True)), keys

    return _graph("conv_grad_input", make, (dy, w, bias), plan, chunks, outer, True)


def _graph(
    what: str, make: Callable[..., Any], inputs: tuple[Any, Any, Any], plan: ConvPlan, chunks: Any, outer: int,
    channelled: bool,
) -> Any:
    """The array whose blocks ``make`` gives tasks for, in the chunks given."""
    x, w, bias = inputs[0], *(a if a is None else a.rechunk(-1) for a in inputs[1:])
    name = f"{what}-{tokenize(*(a if a is None else a.name for a in (x, w, bias)), plan)}"
    once = [a if a is None else (a.name, *(0,) * a.ndim) for a in (w, bias)]
    graph: dict[Any, Any] = {}
    for index, (*images, these), spatial in _blocks(chunks if channelled else _with_channel(chunks, outer), outer):
        key = index if channelled else (*index[:outer], *index[outer + 1 :])
        function, pieces = make(name, graph, key, images, these, spatial)
        graph[(name, *key)] = (function, pieces, *once)
    there = [a for a in (x, w, bias) if a is not None]
    return da.Array(HighLevelGraph.from_collections(name, graph, there), name, chunks, plan.dtype)


def _with_channel(chunks: Any, outer: int) -> Any:
    return (*chunks[:outer], (1,), *chunks[outer:])


def _blocks(chunks: Any, outer: int) -> Iterator[tuple[tuple[int, ...], list[Range], list[Range]]]:
    """Index and ranges of every block: those of the axes up to the channels, and those of the pixels."""
    ranges = [list(_ranges(c)) for c in chunks]
    for index in product(*(range(len(r)) for r in ranges)):
        place = [r[i] for r, i in zip(ranges, index, strict=True)]
        yield index, place[: outer + 1], place[outer + 1 :]


def _ranges(chunks: Sequence[int]) -> Iterator[Range]:
    bounds = [0, *accumulate(chunks)]
    return pairwise(bounds)


def _count(images: list[Range]) -> int:
    return prod(b - a for a, b in images)


def _needs(tile: Tile) -> list[list[Range]]:
    """What a tile reads of channels and pixels, as ranges that ascend."""
    channels = [(tile.channels.start, tile.channels.stop)]
    return [channels, *(_merged([run.reads for run in w.runs]) for w in tile.windows)]


def _merged(parts: list[slice]) -> list[Range]:
    found: list[Range] = []
    for first, last in sorted((p.start, p.stop) for p in parts):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return found


def _pieces(
    graph: dict[Any, Any], name: str, index: tuple[int, ...], x: Any, needs: list[list[Range]]
) -> tuple[Callable[..., _Held], list[Any]]:
    """What makes a block out of the parts of chunks that these ranges of ``x`` lie in, and the keys of these parts.

    A part that is not a whole chunk is a task of its own, done where the chunk is, so that only it travels.
    """
    along = []
    for ranges, chunks in zip(needs, x.chunks, strict=True):
        parts, before = [], 0
        for first, last in ranges:
            for i, (c0, c1) in enumerate(_ranges(chunks)):
                a, b = max(first, c0), min(last, c1)
                if a < b:
                    at = slice(before + a - first, before + b - first)
                    parts.append((at, i, slice(a - c0, b - c0), (a, b) == (c0, c1)))
            before += last - first
        along.append(parts)
    places, keys = [], []
    for j, some in enumerate(product(*along)):
        places.append(tuple(at for at, *_ in some))
        chunk = (x.name, *(i for _, i, *_ in some))
        if all(complete for *_, complete in some):
            keys.append(chunk)
        else:
            keys.append((f"{name}-edge", *index, j))
            graph[keys[-1]] = (partial(_edge, tuple(part for _, _, part, _ in some)), chunk)
    return partial(_hold, needs, places, x.dtype), keys


def _lazy(out: Any = None, **arguments: Any) -> list[Any]:
    """Dask arrays as they are, any others as one chunk."""
    if out is not None:
        raise TypeError("out must be None for Dask arrays, whose results are lazy and have methods to store them")
    return [value if value is None and name == "bias" else _one_lazy(name, value) for name, value in arguments.items()]


def _one_lazy(name: str, value: Any) -> Any:
    if not issubclass(type(value), da.Array):
        (array,), _ = dispatch.read(**{name: value})
        if dispatch.device_of(array) != "cpu":
            raise TypeError(f"{name} must be on the CPU beside Dask arrays, got an array on a GPU")
        return da.from_array(array, chunks=array.shape)
    containers.refuse(name, value._meta)
    kind = dispatch.kind_of(name, value._meta)
    if "cuda" in kind:
        raise TypeError(
            f"{name} has chunks on a GPU ({kind}), and numconv computes chunks on the CPU: bring them there first, by "
            f"{name}.map_blocks, or give the array as a whole"
        )
    if any(np.isnan(n) for n in value.shape):
        raise ValueError(
            f"Dask arrays must have chunks of known size, got shape {value.shape}; compute_chunk_sizes() finds them"
        )
    return value


def _frozen(geometry: dict[str, Any]) -> dict[str, Any]:
    return {name: frozen(value, name) for name, value in geometry.items()}


def _plan(g: ConvGeometry, dtype: np.dtype, algorithm: str, images: int) -> ConvPlan:
    """The plan of the whole, for arrays ``(N, C, *in)``; its algorithm is that of every chunk."""
    asked = one_of("algorithm", algorithm, ASKED)
    return make_plan(g._replace(plain=False, batched=True, N=images), dtype, "cpu", asked)


def _by_group(chunks: Sequence[int], channels: int, groups: int) -> bool:
    """Whether chunks of channels are whole groups, so that each gives channels of its own."""
    return len(chunks) > 1 and all(c * groups % channels == 0 for c in chunks)


def _output_chunks(g: ConvGeometry, chunks: Any) -> Any:
    """Chunks of the output along its pixels: an output is where the middle of its kernel lies."""
    return tuple(
        _between([-((_middle(g, a) - bound) // g.stride[a]) for bound in accumulate(axis[:-1])], g.out[a])
        for a, axis in enumerate(chunks)
    )


def _input_chunks(g: ConvGeometry, chunks: Any) -> Any:
    """Chunks of the input along its pixels, from those of the output."""
    return tuple(
        _between([o * g.stride[a] + _middle(g, a) for o in accumulate(axis[:-1])], g.size[a])
        for a, axis in enumerate(chunks)
    )


def _middle(g: ConvGeometry, a: int) -> int:
    """The pixel under the middle of the kernel of output 0."""
    return (extent(g.kernel[a], g.dilation[a]) - 1) // 2 - g.padding[a][0]


def _between(bounds: list[int], n: int) -> tuple[int, ...]:
    """Chunks of ``n`` with these bounds, as far as they lie inside."""
    inner = sorted({b for b in bounds if 0 < b < n})
    return tuple(b - a for a, b in pairwise([0, *inner, n]))


def _shape(images: list[Range], these: Range, place: list[Range], channelled: bool) -> tuple[int, ...]:
    """Shape of a block of the result."""
    return tuple(b - a for a, b in (*images, *((these,) if channelled else ()), *place))


# tasks ----------------------------------------------------------------------------------------------------------------


class _Held:
    """A block ``(N, C, *pixels)`` that is asked for by the places it has in the whole, of which it is these ranges."""

    def __init__(self, block: np.ndarray, ranges: list[list[Range]]) -> None:
        self.block, self.ranges, self.dtype = block, ranges, block.dtype

    def __getitem__(self, place: tuple[slice, ...]) -> np.ndarray:
        local = [place[0]]
        for part, ranges in zip(place[1:], self.ranges, strict=True):
            before = 0
            for first, last in ranges:
                if first <= part.start and part.stop <= last:
                    break
                before += last - first
            local.append(slice(before + part.start - first, before + part.stop - first))
        return self.block[tuple(local)]


def _hold(
    needs: list[list[Range]], places: list[tuple[slice, ...]], dtype: np.dtype, pieces: list[np.ndarray], d: int,
    channelled: bool,
) -> _Held:
    """The block made of these pieces, all axes before channel and pixels made one."""
    shape = tuple(sum(b - a for a, b in ranges) for ranges in needs)
    if len(pieces) == 1 and pieces[0].shape == shape:
        block = np.asarray(pieces[0])
    else:
        block = np.empty(shape, dtype)
        for place, piece in zip(places, pieces, strict=True):
            block[place] = piece
    ranges = needs[-d - channelled :] if channelled else [[(0, 1)], *needs[-d:]]
    size = [sum(b - a for a, b in some) for some in ranges]
    return _Held(block.reshape(prod(shape[: len(needs) - d - channelled]), *size), ranges)


def _outputs(
    plan: ConvPlan, tile: Tile, hold: Callable[..., _Held], shape: tuple[int, ...], channelled: bool,
    pieces: list[np.ndarray], w: np.ndarray, bias: np.ndarray | None,
) -> np.ndarray:
    x = hold(pieces, plan.geometry.d, channelled)
    return stream.forward_tile(plan, x, np.reshape(w, plan.kernel_shape), bias, tile, None).reshape(shape)


def _inputs(
    plan: ConvPlan, tile: AdjointTile, hold: Callable[..., _Held], shape: tuple[int, ...], pieces: list[np.ndarray],
    w: np.ndarray, bias: np.ndarray | None,
) -> np.ndarray:
    return stream.grad_input_tile(plan, hold(pieces, plan.geometry.d, True), w, bias, tile, None).reshape(shape)


def _weights(
    plan: ConvPlan, tile: Tile, hold: Callable[..., _Held], pieces: list[np.ndarray], dy: np.ndarray
) -> np.ndarray:
    g = tile.geometry
    outs = _Held(dy.reshape(g.N, g.K, *g.out), [[(0, g.K)], *([(o.start, o.stop)] for o in tile.place)])
    part = stream.grad_weight_tile(plan, hold(pieces, g.d, True), outs, tile)
    return part.astype(stream.wide(part.dtype))


def _columns(
    tile: Tile, hold: Callable[..., _Held], shape: tuple[int, ...], channelled: bool, pieces: list[np.ndarray]
) -> np.ndarray:
    x = stream.block(hold(pieces, tile.geometry.d, channelled), stream.windows_of(tile.geometry, tile))
    return matrices.im2col(x, tile.geometry).reshape(shape)


def _edge(part: tuple[slice, ...], chunk: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(chunk[part])  # a view would keep the whole chunk in memory


def _add(parts: list[np.ndarray]) -> np.ndarray:
    with np.errstate(all="ignore"):
        return sum(parts[1:], parts[0])


def _narrow(dtype: np.dtype, total: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return arrays.as_result(total.astype(arrays.computed_in(dtype), copy=False), dtype)
