"""A call's work on a GPU, captured once and replayed: as CUDA's graphs do it, but with the caller's arrays each time.

What a plan launches follows from its geometry and from the layout of its arrays, never from their numbers. So the
first call with arrays of some layout computes as it is written and is captured: which kernels it launches, what they
take, and which memory it asks for. Every later call puts new addresses into that and hands it to the driver; a small
layer takes less time than Python needs to think about it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import _memory
from ._jit import Kernel
from .arrays import DeviceArray, Layout
from .driver import Launch
from .places import DRIVER, Place, captured


class Start:
    """A launch, by its number in the frame."""

    def __init__(self, number: int, launch: Launch) -> None:
        self.number, self.used = number, [buffer for _, buffer, _ in launch.buffers]

    def __call__(self, replay: Replay) -> None:
        replay.frame.start(self.number, replay.stream)


class Allocation:
    """Memory from the caller's library, for one buffer: the result, or a workspace."""

    used: Sequence[int] = ()

    def __init__(self, buffer: int, layout: Layout) -> None:
        self.buffer, self.layout, self.kept = buffer, layout, False

    def __call__(self, replay: Replay) -> None:
        place = replay.place
        take = place.allocate if self.kept else place.workspace
        owner = replay.owners[self.buffer] = take(self.layout.shape, self.layout.dtype)
        address = replay.addresses[self.buffer] = place.address_of(owner)
        replay.frame.put(self.buffer, address)


class Product:
    """``out = a @ b`` by the caller's BLAS; each is a view of a buffer: ``(buffer, offset, view)``."""

    def __init__(self, operands: list[tuple[int, int, DeviceArray]]) -> None:
        self.operands, self.used = operands, [buffer for buffer, _, _ in operands]

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
    """The last use of a workspace is over."""

    used: Sequence[int] = ()

    def __init__(self, buffer: int) -> None:
        self.buffer = buffer

    def __call__(self, replay: Replay) -> None:
        owner, replay.owners[self.buffer] = replay.owners[self.buffer], None
        replay.place.release(owner)


class Replay:
    """Buffers of one call."""

    __slots__ = ("addresses", "frame", "owners", "place", "stream")

    def __init__(self, place: Place, frame: Any, owners: list[Any], addresses: list[int]) -> None:
        self.place, self.frame, self.owners, self.addresses = place, frame, owners, addresses
        self.stream = place.stream()


class Capture:
    """The steps of a call as it makes them: buffers are its arguments first, and then what it allocates."""

    def __init__(self, arguments: Sequence[DeviceArray]) -> None:
        self.steps: list[Any] = []
        self.launches: list[Launch] = []
        self.layouts = [array.layout for array in arguments]
        self.begins = [array.address for array in arguments]
        self.given, self.nbytes, self.result, self.possible = len(arguments), 0, -1, True
        self.frames: list[Any] = []  # those that no call uses now

    def allocates(self, array: DeviceArray) -> DeviceArray:
        """New memory."""
        self.steps.append(Allocation(len(self.begins), array.layout))
        self.layouts.append(array.layout)
        self.begins.append(array.address)
        self.nbytes += array.nbytes
        return array.in_buffer(len(self.begins) - 1)

    def starts(self, kernel: Kernel, blocks: int, arguments: tuple[Any, ...]) -> None:
        """A kernel."""
        buffers = [
            (i, a.buffer, self._offset(a)) for i, a in enumerate(arguments) if type(a) is DeviceArray and a.buffer >= 0
        ]
        launch = Launch(kernel, blocks, tuple(map(_forgotten, arguments)), buffers)
        self.steps.append(Start(len(self.launches), launch))
        self.launches.append(launch)

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
        last = {buffer: i for i, step in enumerate(self.steps) for buffer in step.used}
        steps = []
        for i, step in enumerate(self.steps):
            if type(step) is Allocation:
                step.kept = step.buffer == self.result
            steps += [step, *(Release(b) for b, at in last.items() if at == i and self.given <= b != self.result)]
        self.steps = steps

    def replay(self, arguments: Sequence[DeviceArray]) -> DeviceArray:
        """The same work for other arguments of the same layout."""
        place = arguments[0].place
        if self.nbytes >= _memory.ALWAYS_THERE:
            _memory.require(self.nbytes, "this convolution", "use smaller pieces", place.available)
        room = [0] * (len(self.begins) - self.given)
        owners, addresses = [a.owner for a in arguments] + room, [a.address for a in arguments] + room
        with DRIVER.on(place.device):
            try:
                frame = self.frames.pop()
            except IndexError:  # the first replay, or another thread is in one
                frame = DRIVER.frame(place.device, self.launches)
            for buffer, array in enumerate(arguments):
                frame.put(buffer, array.address)
            replay = Replay(place, frame, owners, addresses)
            for step in self.steps:
                step(replay)
        self.frames.append(frame)
        if self.result < self.given:
            return arguments[self.result]
        return DeviceArray(place, owners[self.result], addresses[self.result], self.layouts[self.result])


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
    """What ``compute(*arrays, out=out)`` gives, captured or replayed. ``captures`` are those of a plan, of which this
    is a ``product``.
    """
    if captured.capture is not None:  # a call within another's, by a signal's handler say: that one is not kept
        captured.capture.possible = False
        return compute(*arrays, out=out)
    arguments = [array for array in (*arrays, out) if array is not None]
    owners = [id(array.owner) for array in arguments]
    key = (
        product, arguments[0].place, tuple([None if array is None else array.layout for array in arrays]),
        tuple([array.address & 15 for array in arguments]),  # kernels load and store sixteen bytes where they can
        None if len({*owners}) == len(owners) else tuple(map(owners.index, owners)),
        None if out is None else (out.layout, *[out.overlaps(array) for array in arguments[:-1]]),
    )  # fmt: skip
    known = captures.get(key)
    try:
        if known is not None:
            return known.replay(arguments)
        if len(captures) >= MOST:
            return compute(*arrays, out=out)
        return _captured(captures, key, arguments, owners, arrays, out, compute)
    except BaseException:
        arguments[0].place.settle()  # before memory goes that kernels may be at work in
        raise


def _captured(
    captures: dict[Any, Capture], key: Any, arguments: list[DeviceArray], owners: list[int],
    arrays: Sequence[DeviceArray | None], out: DeviceArray | None, compute: Callable[..., DeviceArray],
) -> DeviceArray:
    """The first time."""
    capture = captured.capture = Capture(arguments)
    buffers = iter([array.in_buffer(owners.index(id(array.owner))) for array in arguments])
    try:
        given = [None if array is None else next(buffers) for array in (*arrays, out)]
        result = compute(*given[:-1], out=given[-1])
    finally:
        captured.capture = None
    capture.ends(result)
    if capture.possible:
        captures[key] = capture
    return result
