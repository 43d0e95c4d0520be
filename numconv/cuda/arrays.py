"""Arrays on a GPU, whoever allocated them: NumPy's shape arithmetic over an address, and the place it belongs to.

A ``DeviceArray`` is a view; ``places`` knows whose memory it lies in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from .._indexing import OUT
from ..arrays import strides_of
from ._jit import THREADS, at, count, cuda, helper, kernel

if TYPE_CHECKING:
    from .places import Place

#: Axes that a copy can have once neighbours that lie together are one.
MOST_AXES = 8


class _At:
    """An address as NumPy takes one."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = interface


def at_address(
    address: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: np.dtype, readonly: bool = False
) -> np.ndarray:
    """A NumPy array over an address. Nobody may look at the numbers behind it, for they are not on the host."""
    if not address:  # an array of nothing has none
        return np.empty(shape, dtype)
    interface = {"data": (address, readonly), "shape": shape, "strides": strides, "typestr": dtype.str, "version": 3}
    return np.asarray(_At(interface))


class Layout:
    """All of an array but where it lies: what kernels and copies depend on. ``layout_of`` makes one of a kind."""

    __slots__ = (
        "above", "aligned", "below", "c_contiguous", "dtype", "itemsize", "nbytes", "ndim", "shape", "size", "strides",
        "writeable",
    )  # fmt: skip

    def __init__(
        self, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: np.dtype, writeable: bool, aligned: bool
    ) -> None:
        self.shape, self.dtype, self.writeable, self.aligned = shape, dtype, writeable, aligned
        self.itemsize, self.ndim, self.size = dtype.itemsize, len(shape), prod(shape)
        self.nbytes, plain = self.size * self.itemsize, strides_of(shape, self.itemsize)
        strides = plain if strides is None else strides
        self.c_contiguous = not self.size or all(
            step == its for n, step, its in zip(shape, strides, plain, strict=True) if n != 1
        )
        self.strides = plain if self.c_contiguous else strides  # that of an axis with one item may be anything
        reach = [(n - 1) * step for n, step in zip(shape, self.strides, strict=True)] if self.size else []
        self.below, self.above = sum(r for r in reach if r < 0), sum(r for r in reach if r > 0) + self.itemsize


@lru_cache(maxsize=4096)
def layout_of(
    shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: np.dtype, writeable: bool = True,
    aligned: bool = True,
) -> Layout:
    """The layout of these; equal ones are the same object, so that it takes one look to tell."""
    return Layout(shape, strides, dtype, writeable, aligned)


class DeviceArray:
    """A view of an array on a GPU, with as much of ``numpy.ndarray`` as numconv uses."""

    __slots__ = ("_seen", "address", "buffer", "layout", "owner", "place")

    def __init__(self, place: Place, owner: Any, address: int, layout: Layout, buffer: int = -1) -> None:
        self.place, self.owner, self.address, self.layout = place, owner, address, layout
        self.buffer = buffer  # which of those of a call, where the call is captured
        self._seen: np.ndarray | None = None

    @classmethod
    def of(cls, place: Place, owner: Any, shadow: np.ndarray, buffer: int = -1) -> DeviceArray:
        """What a NumPy array over the same memory describes."""
        address, flags = shadow.__array_interface__["data"][0], shadow.flags
        layout = layout_of(shadow.shape, shadow.strides, shadow.dtype, flags.writeable, flags.aligned)
        array = cls(place, owner, address, layout, buffer)
        array._seen = shadow
        return array

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, {self.place.kind})"

    @property
    def _shadow(self) -> np.ndarray:
        """A NumPy array over this memory, for its arithmetic of shapes; only in the simulator its numbers are there."""
        if self._seen is None:
            layout = self.layout
            self._seen = at_address(self.address, layout.shape, layout.strides, layout.dtype, not layout.writeable)
        return self._seen

    flags = property(attrgetter("layout"))
    shape = property(attrgetter("layout.shape"))
    strides = property(attrgetter("layout.strides"))  # in bytes
    dtype = property(attrgetter("layout.dtype"))
    ndim = property(attrgetter("layout.ndim"))
    size = property(attrgetter("layout.size"))
    itemsize = property(attrgetter("layout.itemsize"))
    nbytes = property(attrgetter("layout.nbytes"))

    @property
    def numbers(self) -> np.ndarray:
        """What the array holds, in the simulator, where it lies on the host."""
        return self._shadow

    def in_buffer(self, buffer: int) -> DeviceArray:
        """The same array, known to be a buffer of a call that is captured; its views are, too."""
        return DeviceArray(self.place, self.owner, self.address, self.layout, buffer)

    def moved(self, owner: Any, address: int) -> DeviceArray:
        """The same view of other memory."""
        return DeviceArray(self.place, owner, address, self.layout)

    def overlaps(self, other: DeviceArray) -> bool:
        """Whether two arrays may have an item in common, by the bounds of their memory."""
        one, two, apart = self.layout, other.layout, other.address - self.address
        return bool(one.size and two.size and one.below < apart + two.above and apart + two.below < one.above)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "data": (self.address if self.size else 0, False), "shape": self.shape, "typestr": self.dtype.str,
            "strides": None if self.flags.c_contiguous else self.strides, "version": 3,
        }  # fmt: skip

    # views ----------------------------------------------------------------------------------------------------------

    def _view(self, shadow: np.ndarray) -> DeviceArray:
        return DeviceArray.of(self.place, self.owner, shadow, self.buffer)

    def __getitem__(self, key: Any) -> DeviceArray:
        return self._view(self._shadow[key])

    def reshape(self, *shape: Any) -> DeviceArray:
        """The same items in another shape; copied if they do not lie one behind the other."""
        source = self if self.flags.c_contiguous else self.astype(self.dtype)
        return source._view(source._shadow.reshape(*shape))

    def swapaxes(self, a: int, b: int) -> DeviceArray:
        """Two axes exchanged."""
        return self._view(self._shadow.swapaxes(a, b))

    def view(self, dtype: Any) -> DeviceArray:
        """The same memory as another dtype."""
        return self._view(self._shadow.view(dtype))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """NumPy's functions that make views, make room or copy."""
        if function in _VIEWS:
            first, *rest = args
            return first._view(function(first._shadow, *rest, **kwargs))
        if function in _MAKES:
            return _MAKES[function](*args, **{k: v for k, v in kwargs.items() if k != "like"}, place=self.place)
        if function is np.shape:
            return args[0].shape
        if function is np.copyto:
            target, source, *_ = args
            copy(source, target)
            return None
        if function is np.may_share_memory:
            return args[0].overlaps(args[1])
        return NotImplemented

    # moves ----------------------------------------------------------------------------------------------------------

    def astype(self, dtype: Any) -> DeviceArray:
        """A contiguous copy in this dtype."""
        target = self.place.empty(self.shape, np.dtype(dtype))
        copy(self, target)
        return target

    def ready(self, dtype: np.dtype) -> DeviceArray:
        """Contiguous and in this dtype; a copy only where it must be."""
        return self if self.dtype == dtype and self.flags.c_contiguous else self.astype(dtype)

    def conj(self) -> DeviceArray:
        """The complex conjugate; a real array is its own."""
        if self.dtype.kind != "c":
            return self
        target = self.place.empty(self.shape, self.dtype)
        copy(self, target, conjugate=True)
        return target

    def __iadd__(self, other: DeviceArray) -> DeviceArray:
        copy(other, self, adds=True)
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        copy(value if isinstance(value, DeviceArray) else self.place.scalar(value, self.dtype), self[key])


_VIEWS = (np.moveaxis, np.flip)
_MAKES: dict[Any, Callable[..., DeviceArray]] = {
    np.empty: lambda shape, dtype, place: place.empty(shape, np.dtype(dtype)),
    np.zeros: lambda shape, dtype, place: place.zeros(shape, np.dtype(dtype)),
}


# copies -------------------------------------------------------------------------------------------------------------


@helper
def both(i, s, s_steps, t, t_steps, shape, d):
    """Where item ``i``, counted row by row over ``shape``, lies in two arrays that begin at ``s`` and ``t``."""
    for a in range(d - 1, -1, -1):
        at = i % shape[a]
        i //= shape[a]
        s += at * s_steps[a]
        t += at * t_steps[a]
    return s, t


@kernel()
def _copy(source, s0, s_steps, target, t0, t_steps, shape, d, n, conjugate):
    # A step of 0 repeats an item.
    i = cuda.grid(1)
    while i < n:
        s, t = both(i, s0, s_steps, t0, t_steps, shape, d)
        value = source[s].conjugate() if conjugate else source[s]
        target[t] = target.dtype.type(value)
        i += cuda.gridsize(1)


@kernel()
def _add(source, s0, s_steps, target, t0, t_steps, shape, d, n):
    i = cuda.grid(1)
    while i < n:
        s, t = both(i, s0, s_steps, t0, t_steps, shape, d)
        target[t] += target.dtype.type(source[s])
        i += cuda.gridsize(1)


@kernel()
def _copy_run(source, target, n):
    i = cuda.grid(1)
    while i < n:
        target[i] = target.dtype.type(source[i])
        i += cuda.gridsize(1)


def copy(source: DeviceArray, target: DeviceArray, conjugate: bool = False, adds: bool = False) -> None:
    """``target[...] = source`` (or ``+=``), any strides, in the target's dtype; the source may repeat along axes."""
    n, place = target.size, target.place
    if not n:
        return
    if source.dtype == np.bool_:  # numba has no conjugate of one
        source = source.view(np.uint8)
    together = source.shape == target.shape and source.flags.c_contiguous and target.flags.c_contiguous
    if together and not conjugate and not adds:
        _copy_run(blocks_for(n), source.reshape(n), target.reshape(n), n, on=place)
        return
    shadow = np.broadcast_to(source._shadow, target.shape)
    shape, s_steps, t_steps = _merged(target.shape, shadow.strides, target.strides)
    d = len(shape)
    if d > MOST_AXES:
        raise ValueError(f"an array on a GPU must lie along at most {MOST_AXES} axes, got shape {target.shape}")
    (items, s0), (goal, t0), rest = _memory_of(source), _memory_of(target), (1,) * (MOST_AXES - d)
    come, go = (
        (array, begin, (*(step // array.itemsize for step in steps), *rest))
        for array, begin, steps in ((items, s0, s_steps), (goal, t0, t_steps))
    )
    if adds:
        _add(blocks_for(n), *come, *go, (*shape, *rest), d, n, on=place)
    else:
        _copy(blocks_for(n), *come, *go, (*shape, *rest), d, n, conjugate, on=place)


def blocks_for(n: int, threads: int = THREADS) -> int:
    """How many blocks of threads share ``n`` items: one item each, up to a grid that fills any GPU."""
    return min(-(-n // threads), 1 << 16)


@helper
def place_of(n, p, axes, steps):
    """Where pixel ``p`` of image ``n`` lies in the first channel of an output, by its ``steps_of``."""
    place, left = at(steps[0]) + at(n) * at(steps[1]), count(p)
    for a in range(axes.shape[0] - 1, -1, -1):
        extent = count(axes[a, OUT])
        place += at(left % extent) * at(steps[3 + a])
        left = count(left // extent)
    return place


def steps_of(part: DeviceArray, y: DeviceArray) -> np.ndarray:
    """Where a part of an array begins, its steps from image to image, by channels, along the axes, to one behind it."""
    item = y.itemsize
    return np.array([(part.address - y.address) // item, *(step // item for step in part.strides), part.size])


def straight(part: DeviceArray, axes: int) -> bool:
    """Whether its last axes lie as one, and fours along them begin at 16 bytes, if they are of float32."""
    item, lead = part.itemsize, part.ndim - axes
    together = part.strides[lead:] == strides_of(part.shape[lead:], item)
    return together and not any(step % (4 * item) for step in (part.address, *part.strides[:lead]))


def _merged(shape: Any, *steps: Any) -> tuple[list[int], ...]:
    """As few axes as there can be: neighbours that lie together in all arrays are one."""
    axes = [(n, *step) for n, *step in zip(shape, *steps, strict=True) if n != 1]
    merged: list[tuple[int, ...]] = []
    for n, *step in axes:
        if merged and all(before == n * now for before, now in zip(merged[-1][1:], step, strict=True)):
            merged[-1] = (merged[-1][0] * n, *step)
        else:
            merged.append((n, *step))
    columns = [list(column) for column in zip(*merged, strict=True)]
    return tuple(columns) if columns else ([],) * (1 + len(steps))


def _memory_of(array: DeviceArray) -> tuple[DeviceArray, int]:
    """The stretch of memory that an array lies in, as items one behind the other, and where it begins there."""
    low, high = array.layout.below, array.layout.above
    if any(step % array.itemsize for step in array.strides):
        raise ValueError(f"an array on a GPU must have strides of whole items, got strides {array.strides}")
    items = at_address(array.address + low, ((high - low) // array.itemsize,), None, array.dtype)
    return array._view(items), -low // array.itemsize
