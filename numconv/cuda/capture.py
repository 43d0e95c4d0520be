"""A call's work on a GPU, captured once and replayed: as CUDA's graphs do it, but with the caller's arrays each time.

What a plan launches follows from its geometry and from the layout of its arrays, never from their numbers. So the
first call with arrays of some layout computes as it is written and is captured: which kernels it launches, what they
take, and which memory it asks for. Every later call puts new addresses into that and hands it to the driver; a small
layer takes less time than Python needs to think about it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import _memory
from ._jit import Kernel
from .arrays import DeviceArray
from .places import DRIVER, Place, captured


class Launch:
    """A kernel and its arguments, some of them at an offset in a buffer of the call: ``(argument, buffer, offset)``."""

    def __init__(
        self, kernel: Kernel, blocks: int, arguments: tuple[Any, ...], buffers: list[tuple[int, int, int]]
    ) -> None:
        self.kernel, self.blocks, self.arguments, self.buffers = kernel, blocks, arguments, buffers
        self.ready: Any = None  # what a driver makes of it

    def __call__(self, replay: Replay) -> None:
        DRIVER.start(self, replay.place.device, replay.addresses, replay.stream)


class Allocation:
    """Memory from the caller's library, for one buffer."""

    def __init__(self, buffer: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.buffer, self.shape, self.dtype = buffer, shape, dtype

    def __call__(self, replay: Replay) -> None:
        owner = replay.owners[self.buffer] = replay.place.allocate(self.shape, self.dtype)
        replay.addresses[self.buffer] = replay.place.address_of(owner)


class Product:
    """``out = a @ b`` by the caller's BLAS; each is a view of a buffer: ``(buffer, offset, view)``."""

    def __init__(self, operands: list[tuple[int, int, DeviceArray]]) -> None:
        self.operands = operands

    def views(self, replay: Replay) -> list[DeviceArray]:
        """The arrays of this call."""
        return [
            view.moved(replay.owners[buffer], replay.addresses[buffer] + offset) if buffer >= 0 else view
            for buffer, offset, view in self.operands
        ]

    def __call__(self, replay: Replay) -> None:
        replay.place.matmul(*self.views(replay))


class Transform(Product):
    """A transform by the caller's FFT."""

    def __init__(self, operands: list[tuple[int, int, DeviceArray]], how: tuple[bool, ...]) -> None:
        super().__init__(operands)
        self.how = how

    def __call__(self, replay: Replay) -> None:
        source, target = self.views(replay)
        replay.place.transform(source, target, *self.how)


class Release:
    """The last use of a buffer is over."""

    def __init__(self, buffer: int) -> None:
        self.buffer = buffer

    def __call__(self, replay: Replay) -> None:
        replay.owners[self.buffer] = None


class Replay:
    """Buffers of one call."""

    __slots__ = ("addresses", "owners", "place", "stream")

    def __init__(self, place: Place, owners: list[Any], addresses: list[int]) -> None:
        self.place, self.owners, self.addresses, self.stream = place, owners, addresses, place.stream()


class Capture:
    """The steps of a call as it makes them: buffers are its arguments first, and then what it allocates."""

    def __init__(self, arguments: Sequence[DeviceArray]) -> None:
        self.steps: list[Any] = []
        self.begins = [array.address for array in arguments]
        self.given, self.nbytes, self.result, self.possible = len(arguments), 0, -1, True

    def allocates(self, array: DeviceArray) -> DeviceArray:
        """New memory."""
        self.steps.append(Allocation(len(self.begins), array.shape, array.dtype))
        self.begins.append(array.address)
        self.nbytes += array.nbytes
        return array.in_buffer(len(self.begins) - 1)

    def launches(self, kernel: Kernel, blocks: int, arguments: tuple[Any, ...]) -> None:
        """A kernel."""
        buffers = [
            (i, a.buffer, self._offset(a)) for i, a in enumerate(arguments) if type(a) is DeviceArray and a.buffer >= 0
        ]
        self.steps.append(Launch(kernel, blocks, tuple(map(_forgotten, arguments)), buffers))

    def multiplies(self, *operands: DeviceArray) -> None:
        """A product of the caller's BLAS."""
        self.steps.append(Product(self._views(operands)))

    def transforms(self, source: DeviceArray, target: DeviceArray, *how: bool) -> None:
        """A transform of the caller's FFT."""
        self.steps.append(Transform(self._views((source, target)), how))

    def _views(self, operands: Sequence[DeviceArray]) -> list[tuple[int, int, DeviceArray]]:
        return [(a.buffer, self._offset(a), _forgotten(a)) for a in operands]

    def _offset(self, array: DeviceArray) -> int:
        return array.address - self.begins[array.buffer] if array.buffer >= 0 else 0

    def ends(self, result: DeviceArray) -> None:
        """With this result. What a call allocates is let go after its last use."""
        self.result = result.buffer
        self.possible &= self.result >= 0 and self._offset(result) == 0
        last: dict[int, int] = {}
        for i, step in enumerate(self.steps):
            used = step.buffers if type(step) is Launch else step.operands if isinstance(step, Product) else []
            last.update((entry[1] if type(step) is Launch else entry[0], i) for entry in used)
        ended = {i: [b for b, at in last.items() if at == i and b >= self.given and b != self.result]
                 for i in set(last.values())}  # fmt: skip
        self.steps = [s for i, step in enumerate(self.steps) for s in (step, *map(Release, ended.get(i, ())))]

    def replay(self, arguments: Sequence[DeviceArray]) -> DeviceArray:
        """The same work for other arguments of the same layout."""
        place = arguments[0].place
        if self.nbytes >= _memory.ALWAYS_THERE:
            _memory.require(self.nbytes, "this convolution", "use smaller pieces", place.available)
        room = [0] * (len(self.begins) - self.given)
        replay = Replay(place, [a.owner for a in arguments] + room, [a.address for a in arguments] + room)
        with DRIVER.on(place.device):
            for step in self.steps:
                step(replay)
        return arguments[self.result] if self.result < self.given else place.read(replay.owners[self.result])


def _forgotten(argument: Any) -> Any:
    """An argument that keeps no memory of the call; what belongs to no call, such as tables, stays."""
    if type(argument) is not DeviceArray or argument.buffer < 0:
        return argument
    return argument.moved(None, argument.address)


#: Layouts that a plan remembers. More than that, and one that is new is computed as it is written.
MOST = 64


def replayed(
    captures: dict[Any, Capture], product: Any, arrays: Sequence[DeviceArray | None], out: DeviceArray | None,
    compute: Callable[..., DeviceArray],
) -> DeviceArray:
    """What ``compute(*arrays, out)`` gives, captured or replayed. ``captures`` are those of a plan, of which this is a
    ``product``.
    """
    if captured.capture is not None:  # a call within another's, by a signal's handler say: that one is not kept
        captured.capture.possible = False
        return compute(*arrays, out)
    arguments = [array for array in (*arrays, out) if array is not None]
    key = (
        product, arguments[0].place, tuple(None if array is None else array.layout for array in (*arrays, out)),
        tuple(map([id(array.owner) for array in arguments].index, (id(array.owner) for array in arguments))),
        out is not None and tuple(np.may_share_memory(out, array) for array in arguments[:-1]),
    )  # fmt: skip
    known = captures.get(key)
    if known is not None:
        return known.replay(arguments)
    if len(captures) >= MOST:
        return compute(*arrays, out)
    capture = captured.capture = Capture(arguments)
    owners = [id(array.owner) for array in arguments]
    buffers = iter([array.in_buffer(owners.index(id(array.owner))) for array in arguments])
    try:
        result = compute(*(None if array is None else next(buffers) for array in (*arrays, out)))
    finally:
        captured.capture = None
    capture.ends(result)
    if capture.possible:
        captures[key] = capture
    return result
