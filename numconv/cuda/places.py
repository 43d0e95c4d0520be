"""Whose arrays are computed on a GPU: a place is a device as one library sees it.

Results and workspaces come from the caller's own library, on the caller's device and stream, so that their type, pool
and lifetime are right and nothing waits. No library is imported that the caller has not.

What keeps streams from races: whatever a kernel reads or writes beside the caller's arrays either belongs to no call,
or lives and dies in the order of the stream that the kernel is on.

- Tables and constants belong to no call. They are copied from the host and are there when ``Driver.send`` returns, so
  that any stream may read them, and nobody writes to them again. Who launches with them keeps them.
- Results and workspaces are allocated on the stream that a call's kernels are on, which is asked for once. torch's and
  CuPy's pools give memory that has gone back to those first who ask on the same stream, so it may go while kernels run.
- numba's memory has no stream. It goes back to the driver, which waits for the device first; a workspace that is kept
  for the next call (``Host.workspace``) is that of one stream.
- A library that nobody knows may give memory away at once. So what a call took of it is kept until its stream has been
  waited for (``Foreign``), as are the caller's arrays that came by DLPack.

The stream is the one that the library says is current, or the one that an array names (``__cuda_array_interface__``). A
result that is used on another stream is the caller's to order, as with all that the library does itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from .._memory import KEPT
from ._jit import SIMULATED, Kernel
from .arrays import DeviceArray, Layout, layout_of
from .driver import DRIVER


class Captured(threading.local):
    """The capture that this thread's launches belong to, if any: see ``capture``."""

    capture: Any = None


captured = Captured()


class Place:
    """Where memory comes from, and on which stream work goes. Places of one library and device are equal."""

    library = ""

    #: Whether the library has a BLAS and an FFT.
    has_library = False

    def __init__(self, device: int, library: str = "") -> None:
        self.device, self.library = device, library or self.library
        self.kind = f"{self.library} on cuda:{device}"  # what errors call it
        self._hash = hash(("place", device))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and (self.library, self.device) == (other.library, other.device)

    def __hash__(self) -> int:
        return self._hash

    # what a library does in its own way -----------------------------------------------------------------------------

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """A new array of the library, not filled."""
        raise NotImplementedError

    def workspace(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """The same for the time of a call."""
        return self.allocate(shape, dtype)

    def release(self, owner: Any) -> None:
        """A workspace has been used for the last time, by what is on the stream now."""

    def read(self, owner: Any) -> DeviceArray:
        """An array of the library as numconv sees it."""
        return self.seen(owner, owner.__cuda_array_interface__)

    def address_of(self, owner: Any) -> int:
        """Where an array of the library begins."""
        return self.read(owner).address

    def stream(self) -> int:
        """The driver's handle of the stream that the caller works on; 0 and 1 are the default stream."""
        return 0

    def follow(self, stream: int) -> None:
        """The stream that an array names, whose work on it comes before ours."""
        DRIVER.order(self.device, stream, self.stream())

    def settle(self) -> None:
        """See to it that the library's next work on a result comes after the work that makes it."""

    def give(self, array: DeviceArray) -> Any:
        """A result, which is whole, in the type of the library."""
        self.settle()
        return array.owner

    def matmul(self, a: DeviceArray, b: DeviceArray, out: DeviceArray) -> bool:
        """``out = a @ b`` by the library's BLAS; False where it has none."""
        return False

    def fft(
        self, name: str, source: DeviceArray, target: DeviceArray, sizes: tuple[int, ...], norm: str
    ) -> None:
        """``target`` becomes what NumPy's function of this name makes of all axes of ``source`` but the first."""
        raise ValueError(f"algorithm 'fft' cannot serve arrays of {self.library}, which has no FFT")

    def sparse(self, parts: tuple[DeviceArray, ...], shape: tuple[int, int]) -> Any:
        """A canonical CSR matrix of ``data, indices, indptr`` as the library has it, else these three."""
        return tuple(map(self.give, parts))

    def available(self) -> int:
        """Bytes that can be allocated."""
        return DRIVER.available(self.device)

    # what they all do -----------------------------------------------------------------------------------------------

    def seen(self, owner: Any, interface: dict[str, Any]) -> DeviceArray:
        """An array as its ``__cuda_array_interface__`` describes it."""
        if interface.get("mask") is not None:
            raise TypeError("it is masked, and the mask would be lost")
        if interface.get("stream") is not None:
            self.follow(int(interface["stream"]))
        address, *readonly = interface["data"]
        shape, strides, dtype = tuple(interface["shape"]), interface.get("strides"), np.dtype(interface["typestr"])
        if not dtype.isnative:
            raise TypeError("the bytes of its items are in the other order")
        strides = None if strides is None else tuple(strides)
        return self.placed(owner, address or 0, shape, strides, dtype, bool(sum(readonly)))

    def placed(
        self, owner: Any, address: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: np.dtype,
        readonly: bool = False,
    ) -> DeviceArray:
        """An array by where and how it lies."""
        layout = layout_of(shape, strides, dtype, not readonly, not address % dtype.itemsize)
        return DeviceArray(self, owner, address, layout)

    def empty(self, shape: Any, dtype: np.dtype) -> DeviceArray:
        """A new array."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        with DRIVER.on(self.device):
            array = self.read(self.allocate(shape, dtype))
        return array if captured.capture is None else captured.capture.allocates(array)

    def zeros(self, shape: Any, dtype: np.dtype) -> DeviceArray:
        """A new array of zeros."""
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def nothing(self, shape: tuple[int, ...], dtype: np.dtype) -> DeviceArray:
        """Zeros that are only read, such as a bias that is not there: sent once."""
        return constant(self, bytes(prod(shape) * dtype.itemsize), dtype.str, shape)

    def scalar(self, value: Any, dtype: np.dtype) -> DeviceArray:
        """One number, on the device."""
        return constant(self, np.asarray(value, dtype).tobytes(), dtype.str, ())

    def bring(self, array: np.ndarray) -> DeviceArray:
        """A host array, to be used beside arrays that are here."""
        target = self.empty(array.shape, array.dtype)
        DRIVER.fill(self.device, target, np.ascontiguousarray(array), self.stream())
        return target

    def to_host(self, array: DeviceArray) -> np.ndarray:
        """A copy as a NumPy array, when the work before it is done."""
        if captured.capture is not None:
            captured.capture.possible = False  # what follows may depend on the numbers
        result = np.empty(array.shape, array.dtype)
        DRIVER.fetch(self.device, array, result, self.stream())
        return result

    def transform(self, source: DeviceArray, target: DeviceArray, inverse: bool = False, scaled: bool = False) -> None:
        """``target = fft(source)`` by the library, or back, over all axes but the first, by their size if ``scaled``.

        A spectrum of real numbers has half the last axis.
        """
        real = "f" in (source.dtype.kind, target.dtype.kind)
        name = f"{'i' * inverse}{'r' * real}fftn"
        sizes = (target if inverse else source).shape[1:]
        self.fft(name, source, target, sizes, "forward" if scaled != inverse else "backward")
        if captured.capture is not None:
            captured.capture.transforms(source, target, inverse, scaled)

    def launch(self, kernel: Kernel, blocks: int, arguments: tuple[Any, ...]) -> None:
        """Start a kernel on the caller's stream."""
        DRIVER.launch(self.device, kernel, blocks, arguments, self.stream())
        if captured.capture is not None:
            captured.capture.starts(kernel, blocks, arguments)


class Host(Place):
    """Memory that numba allocates, for NumPy arrays that are computed on a GPU, and for numba's own arrays.

    For the arrays of one call the stream is that which they name, the first one's if they name several; else, and where
    arrays outlive a call, it is the default one.
    """

    library = "simulator" if SIMULATED else "numba"
    has_library = SIMULATED

    def __init__(self, device: int, library: str = "", stream: int | None = None) -> None:
        super().__init__(device, library)
        self._stream = stream

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """A device array of numba."""
        return DRIVER.allocate(self.device, shape, dtype, self.stream())

    def workspace(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Of what the last call on this stream used, if it is large enough: numba's memory is slow to get."""
        spare = _spare.pop((self.device, self.stream()), None)
        if spare is not None and spare.nbytes >= prod(shape) * dtype.itemsize:
            return spare
        return Host.allocate(self, shape, dtype)

    def release(self, owner: Any) -> None:
        """Keep it for the next call."""
        if owner.nbytes <= KEPT:
            _spare[self.device, self.stream()] = owner
            for other in list(_spare)[:-STREAMS]:  # streams come and go
                _spare.pop(other, None)

    def stream(self) -> int:
        """That of the arrays."""
        return self._stream or 0

    def follow(self, stream: int) -> None:
        """Work goes there, or after what is there."""
        if self._stream is None:
            self._stream = stream
        super().follow(stream)

    def read(self, owner: Any) -> DeviceArray:
        """A device array of numba; in the simulator it is NumPy's."""
        if not isinstance(owner, np.ndarray):
            return super().read(owner)
        address = owner.__array_interface__["data"][0]
        return self.placed(owner, address, owner.shape, owner.strides, owner.dtype, not owner.flags.writeable)

    def send(self, array: np.ndarray) -> DeviceArray:
        """A copy of a host array."""
        return self.read(DRIVER.send(self.device, array.reshape(-1))).reshape(array.shape)

    def fft(
        self, name: str, source: DeviceArray, target: DeviceArray, sizes: tuple[int, ...], norm: str
    ) -> None:
        """In the simulator that of NumPy."""
        if not SIMULATED:
            super().fft(name, source, target, sizes, norm)
        axes = tuple(range(1, source.ndim))
        target.numbers[...] = getattr(np.fft, name)(source.numbers, sizes, axes=axes, norm=norm)


#: A workspace that numba allocated and that the next call may have, by device and stream, of the last so many of these.
STREAMS = 8
_spare: dict[tuple[int, int], Any] = {}


class Torch(Place):
    """torch's CUDA tensors."""

    library = "torch"
    has_library = True

    def __init__(self, device: int) -> None:
        super().__init__(device)
        self.where = f"cuda:{device}"

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """An empty tensor."""
        import torch

        return torch.empty(shape, dtype=_dtype_for_torch(dtype), device=self.where)

    def read(self, owner: Any) -> DeviceArray:
        """A tensor, without its history."""
        if owner.requires_grad or owner.is_conj() or owner.is_neg():
            owner = owner.detach().resolve_conj().resolve_neg()
        address = owner.data_ptr()
        return DeviceArray(self, owner, address, _layout(owner.shape, owner.stride(), owner.dtype, address % 16))

    def address_of(self, owner: Any) -> int:
        """A new tensor's."""
        return int(owner.data_ptr())

    def stream(self) -> int:
        """torch's current stream."""
        import torch

        ask = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # as torch's compiler asks: no object is made
        return int(ask(self.device) if ask else torch.cuda.current_stream(self.device).cuda_stream)

    def matmul(self, a: DeviceArray, b: DeviceArray, out: DeviceArray) -> bool:
        """By cuBLAS."""
        import torch

        A, B, C = (self._tensor(array) for array in (a, b, out))
        torch.matmul(A, B, out=C)
        if captured.capture is not None:
            captured.capture.multiplies(a, b, out)
        return True

    def fft(
        self, name: str, source: DeviceArray, target: DeviceArray, sizes: tuple[int, ...], norm: str
    ) -> None:
        """By cuFFT."""
        import torch

        axes, (A, B) = tuple(range(1, source.ndim)), map(self._tensor, (source, target))
        getattr(torch.fft, name)(A, sizes, dim=axes, norm=norm, out=B)

    def _tensor(self, array: DeviceArray) -> Any:
        """A view as a tensor of the memory that its owner lies in."""
        owner = array.owner
        begin = owner.storage_offset() + (array.address - owner.data_ptr()) // array.itemsize
        return owner.as_strided(array.shape, [step // array.itemsize for step in array.strides], begin)

    def available(self) -> int:
        """What is free on the device or in torch's pool."""
        import torch

        stats = torch.cuda.memory.memory_stats_as_nested_dict(self.device)  # the flat ones take ten times as long
        reserved, allocated = (stats.get(f"{what}_bytes", {}).get("all", {}) for what in ("reserved", "allocated"))
        return super().available() + reserved.get("current", 0) - allocated.get("current", 0)


@lru_cache(maxsize=4096)
def _layout(shape: Any, steps: tuple[int, ...], dtype: Any, off: int) -> Layout:
    """The layout of a tensor, so many bytes off an address that suits every dtype."""
    dtype = np.dtype(str(dtype).removeprefix("torch."))
    strides = tuple([step * dtype.itemsize for step in steps])
    return layout_of(tuple(shape), strides, dtype, aligned=not off % dtype.itemsize)


@lru_cache(maxsize=64)
def _dtype_for_torch(dtype: np.dtype) -> Any:
    import torch

    return getattr(torch, dtype.name)


class CuPy(Place):
    """CuPy's arrays."""

    library = "cupy"
    has_library = True

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """An empty array."""
        import cupy

        with cupy.cuda.Device(self.device):
            return cupy.empty(shape, dtype)

    def read(self, owner: Any) -> DeviceArray:
        """An array. Its interface would have its stream waited for, which is the one that kernels go to, too."""
        return self.placed(owner, owner.data.ptr, owner.shape, owner.strides, owner.dtype)

    def address_of(self, owner: Any) -> int:
        """A new array's."""
        return int(owner.data.ptr)

    def stream(self) -> int:
        """CuPy's current stream."""
        import cupy

        with cupy.cuda.Device(self.device):
            return int(cupy.cuda.get_current_stream().ptr)

    def matmul(self, a: DeviceArray, b: DeviceArray, out: DeviceArray) -> bool:
        """By cuBLAS."""
        import cupy

        with cupy.cuda.Device(self.device):
            A, B, C = (self._array(array) for array in (a, b, out))
            cupy.matmul(A, B, out=C)
        if captured.capture is not None:
            captured.capture.multiplies(a, b, out)
        return True

    def fft(
        self, name: str, source: DeviceArray, target: DeviceArray, sizes: tuple[int, ...], norm: str
    ) -> None:
        """By cuFFT; what it makes is new memory, of which this is a copy."""
        import cupy

        with cupy.cuda.Device(self.device):
            axes, (A, B) = tuple(range(1, source.ndim)), map(self._array, (source, target))
            B[...] = getattr(cupy.fft, name)(A, sizes, axes=axes, norm=norm)

    def sparse(self, parts: tuple[DeviceArray, ...], shape: tuple[int, int]) -> Any:
        """A matrix of ``cupyx``; it has none of whole numbers, nor, before version 14, with indices of 64 bits."""
        if parts[0].dtype.char not in "?fdFD" or parts[1].dtype != np.int32:
            return super().sparse(parts, shape)
        import cupy
        from cupyx.scipy.sparse import csr_matrix

        with cupy.cuda.Device(self.device):
            W_conv = csr_matrix(super().sparse(parts, shape), shape=shape)
        W_conv.has_canonical_format = True  # it need not look
        return W_conv

    def _array(self, array: DeviceArray) -> Any:
        """A view as an array of the memory that its owner lies in."""
        import cupy

        owner = array.owner
        memory = owner.data + (array.address - owner.data.ptr)
        return cupy.ndarray(array.shape, array.dtype, memory, array.strides)

    def available(self) -> int:
        """What is free on the device or in CuPy's pool."""
        import cupy

        with cupy.cuda.Device(self.device):
            return super().available() + int(cupy.get_default_memory_pool().free_bytes())


class Foreign(Host):
    """Arrays of a library that numconv does not know, by the CUDA array interface or by DLPack.

    numconv waits for its work, for nobody knows which stream the library goes on with. A result comes from the
    library's own array namespace where it has one, as the array API standard describes it, else it is one of numba.
    """

    def __init__(self, library: str, device: int) -> None:
        super().__init__(device, library)
        self.namespace: Any = None
        self.where: dict[str, Any] = {}
        self.kept: list[Any] = []  # what the library allocated for this call

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """An empty array of the library's; of numba where it has no such dtype, or by name only, as JAX int64."""
        if hasattr(self.namespace, dtype.name):
            array = self.namespace.empty(shape, dtype=getattr(self.namespace, dtype.name), **self.where)
            self.kept.append(array)
            if self.read(array).dtype == dtype:
                return array
        return super().allocate(shape, dtype)

    def read(self, owner: Any) -> DeviceArray:
        """What the array tells about itself."""
        if self.namespace is None and hasattr(owner, "__array_namespace__"):
            self.namespace = owner.__array_namespace__()
            self.where = {"device": owner.device} if hasattr(owner, "device") else {}
        if isinstance(owner, np.ndarray) or getattr(owner, "__cuda_array_interface__", None) is not None:
            return super().read(owner)
        from cuda.core.utils import StridedMemoryView

        if self._stream is None:
            self._stream = 1
        view = StridedMemoryView.from_dlpack(owner, stream_ptr=self._stream)  # the library makes this stream wait
        steps = None if view.strides is None else tuple(step * view.dtype.itemsize for step in view.strides)
        return self.placed((owner, view), view.ptr, tuple(view.shape), steps, view.dtype, view.readonly)

    def settle(self) -> None:
        """Wait."""
        DRIVER.wait(self.device, self.stream())
        self.kept.clear()

    def give(self, array: DeviceArray) -> Any:
        """The array that the library made."""
        self.settle()
        return array.owner[0] if isinstance(array.owner, tuple) else array.owner


_known: dict[str, Callable[[int], Place]] = {"torch": Torch, "cupy": CuPy, "numba": Host, "simulator": Host}


def place_of(kind: str) -> Place:
    """The place that is called ``"library on cuda:device"``, for one call."""
    return _shared(kind) or _own(kind)


def _own(kind: str) -> Place:
    library, _, device = kind.partition(" on cuda:")
    return _known[library](int(device)) if library in _known else Foreign(library, int(device))


@lru_cache(maxsize=64)
def _shared(kind: str) -> Place | None:
    """The place where it is one for all calls: what has nothing of one call."""
    place = _own(kind)
    return None if isinstance(place, Host) else place


def host(device: int = 0) -> Host:
    """Where NumPy arrays are computed."""
    return Host(device, stream=0)


def read(place: Place, name: str, value: Any) -> DeviceArray:
    """The caller's array, or an error that names it."""
    try:
        return place.read(value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, BufferError) as error:  # sparse, bfloat16, …
        got = f"{type(value).__name__}: {error}"
        raise TypeError(f"{name} must be a dense array of a dtype NumPy has, got {got}") from None


def compute_there(compute: Callable[..., None], *arrays: np.ndarray) -> None:
    """``compute(*arrays)`` for host arrays, the last of which is the result: there, and back."""
    place, (*inputs, result) = host(), arrays
    target = place.empty(result.shape, result.dtype)
    compute(*(place.send(array) for array in inputs), target)
    DRIVER.fetch(place.device, target, result, place.stream())


@lru_cache(maxsize=4096)
def constant(place: Place, items: bytes, dtype: str, shape: tuple[int, ...]) -> DeviceArray:
    """A small array of fixed numbers on a device, sent there once."""
    return host(place.device).send(np.frombuffer(items, dtype).reshape(shape))


def table(place: Place, axes: np.ndarray) -> DeviceArray:
    """A table of axes, as kernels take it."""
    return constant(place, axes.tobytes(), axes.dtype.str, axes.shape)
