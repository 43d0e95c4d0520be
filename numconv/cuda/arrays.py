"""Arrays on a GPU, whoever allocated them: NumPy's shape arithmetic over an address, and the place it belongs to.

A ``DeviceArray`` is a view. Results and workspaces come from the caller's own library, on the caller's device and
stream, so that their type, pool and lifetime are right and nothing waits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np

from .. import _memory
from . import _jit
from ._jit import SIMULATED, THREADS, Kernel, cuda, kernel

#: Axes that a copy can have once neighbours that lie together are one.
MOST_AXES = 8


class _At:
    """An address as NumPy takes one. Nobody may look at the numbers behind it, for they are not on the host."""

    def __init__(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: np.dtype) -> None:
        self.__array_interface__ = {
            "data": (address, False), "shape": shape, "strides": strides, "typestr": dtype.str, "version": 3,
        }


class DeviceArray:
    """A view of an array on a GPU, with as much of ``numpy.ndarray`` as numconv uses."""

    __slots__ = ("_shadow", "owner", "place")

    def __init__(self, place: Place, owner: Any, shadow: np.ndarray) -> None:
        self.place, self.owner = place, owner
        self._shadow = shadow  # shape, strides, dtype and address; only in the simulator its numbers are there

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, {self.place.kind})"

    shape = property(lambda self: self._shadow.shape)
    strides = property(lambda self: self._shadow.strides)
    dtype = property(lambda self: self._shadow.dtype)
    ndim = property(lambda self: self._shadow.ndim)
    size = property(lambda self: self._shadow.size)
    itemsize = property(lambda self: self._shadow.itemsize)
    nbytes = property(lambda self: self._shadow.nbytes)
    flags = property(lambda self: self._shadow.flags)

    @property
    def address(self) -> int:
        """Where the first item lies."""
        return int(self._shadow.ctypes.data)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        strides = None if self.flags.c_contiguous else self.strides
        return {
            "data": (self.address, False), "shape": self.shape, "strides": strides, "typestr": self.dtype.str,
            "version": 3,
        }  # fmt: skip

    # views ----------------------------------------------------------------------------------------------------------

    def _view(self, shadow: np.ndarray) -> DeviceArray:
        return DeviceArray(self.place, self.owner, shadow)

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
            return np.may_share_memory(*(array._shadow for array in args))
        return NotImplemented

    # moves ----------------------------------------------------------------------------------------------------------

    def astype(self, dtype: Any) -> DeviceArray:
        """A contiguous copy in this dtype."""
        target = self.place.empty(self.shape, np.dtype(dtype))
        copy(self, target)
        return target

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


@kernel()
def _copy(source, s0, s_steps, target, t0, t_steps, shape, d, n, conjugate, adds):
    # Item i of both, counted row by row over ``shape``; a step of 0 repeats an item.
    i = cuda.grid(1)
    while i < n:
        s, t, left = s0, t0, i
        for a in range(d - 1, -1, -1):
            at = left % shape[a]
            left //= shape[a]
            s += at * s_steps[a]
            t += at * t_steps[a]
        value = source[s]
        if conjugate:
            value = value.conjugate()
        if adds:
            target[t] += target.dtype.type(value)
        else:
            target[t] = target.dtype.type(value)
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
    _copy(
        blocks_for(n), items, s0, (*(step // source.itemsize for step in s_steps), *rest), goal, t0,
        (*(step // target.itemsize for step in t_steps), *rest), (*shape, *rest), d, n, conjugate, adds, on=place,
    )  # fmt: skip


def blocks_for(n: int, threads: int = THREADS) -> int:
    """How many blocks of threads share ``n`` items: one item each, up to a grid that fills any GPU."""
    return min(-(-n // threads), 1 << 16)


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
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    low, high = sum(r for r in reach if r < 0), sum(r for r in reach if r > 0)
    if any(step % array.itemsize for step in array.strides):
        raise ValueError(f"an array on a GPU must have strides of whole items, got strides {array.strides}")
    items = np.asarray(_At(array.address + low, ((high - low) // array.itemsize + 1,), None, array.dtype))
    return DeviceArray(array.place, array.owner, items), -low // array.itemsize


# places -------------------------------------------------------------------------------------------------------------


class Place:
    """A device as one library sees it: where memory comes from, and on which stream work goes."""

    library = ""

    def __init__(self, device: int) -> None:
        self.device = device

    @property
    def kind(self) -> str:
        """What errors call it."""
        return f"{self.library} on cuda:{self.device}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and self.kind == other.kind

    def __hash__(self) -> int:
        return hash(self.kind)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """A new array of the library, not filled."""
        raise NotImplementedError

    def stream(self) -> Any:
        """The stream that the caller works on, as a launch takes it."""
        raise NotImplementedError

    def read(self, owner: Any) -> DeviceArray:
        """An array of the library as numconv sees it."""
        return _from_interface(self, owner, owner.__cuda_array_interface__)

    def give(self, array: DeviceArray) -> Any:
        """A result, which is whole, in the type of the library."""
        return array.owner

    def to_host(self, array: DeviceArray) -> np.ndarray:
        """A copy as a NumPy array, when the work before it is done."""
        result = np.empty(array.shape, array.dtype)
        host(self.device).fetch(array, result, self.stream())
        return result

    def bring(self, array: np.ndarray) -> DeviceArray:
        """A host array, to be used beside arrays that are here."""
        target = self.empty(array.shape, array.dtype)
        copy(host(self.device).send(array), target)
        return target

    def matmul(self, a: DeviceArray, b: DeviceArray, out: DeviceArray) -> bool:
        """``out = a @ b`` by the library's BLAS; False where it has none."""
        return False

    def available(self) -> int:
        """Bytes that can be allocated."""
        with self.current():
            return int(cuda.current_context().get_memory_info().free)

    def current(self) -> AbstractContextManager[Any]:
        """Make this device the current one."""
        context: AbstractContextManager[Any] = cuda.gpus[self.device]
        return context

    def empty(self, shape: Any, dtype: np.dtype) -> DeviceArray:
        """A new array."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        return self.read(self.allocate(shape, dtype))

    def zeros(self, shape: Any, dtype: np.dtype) -> DeviceArray:
        """A new array of zeros."""
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def scalar(self, value: Any, dtype: np.dtype) -> DeviceArray:
        """One number, on the device."""
        return constant(self, np.asarray(value, dtype).tobytes(), dtype.str, ())

    def launch(self, kernel: Kernel, blocks: int, arguments: tuple[Any, ...]) -> None:
        """Start a kernel on the caller's stream."""
        with self.current():
            try:
                kernel.code[blocks, kernel.threads, self.stream()](*arguments)
            except Exception as error:
                raise _jit.explained(error) from error


def _from_interface(place: Place, owner: Any, interface: dict[str, Any]) -> DeviceArray:
    dtype = np.dtype(interface["typestr"])
    at = _At(interface["data"][0] or 0, interface["shape"], interface.get("strides"), dtype)
    shadow = np.asarray(at) if interface["data"][0] else np.empty(interface["shape"], dtype)  # nothing has no address
    return DeviceArray(place, owner, shadow)


@lru_cache(maxsize=4096)
def constant(place: Place, items: bytes, dtype: str, shape: tuple[int, ...]) -> DeviceArray:
    """A small array of fixed numbers on a device, sent there once."""
    return host(place.device).send(np.frombuffer(items, dtype).reshape(shape))


def table(place: Place, axes: np.ndarray) -> DeviceArray:
    """A table of axes, as kernels take it."""
    return constant(place, axes.tobytes(), axes.dtype.str, axes.shape)


class Host(Place):
    """Memory that numba allocates, for NumPy arrays that are computed on a GPU, and for arrays of unknown libraries."""

    library = "numba"

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """A device array of numba."""
        with self.current():
            return cuda.device_array(shape, dtype)

    def stream(self) -> Any:
        """The default stream."""
        return 0

    def send(self, array: np.ndarray) -> DeviceArray:
        """A copy of a host array."""
        with self.current():
            return self.read(cuda.to_device(np.ascontiguousarray(array)))

    def fetch(self, array: DeviceArray, target: np.ndarray, stream: Any = 0) -> None:
        """Copy an array back to the host, into a contiguous one."""
        with self.current():
            cuda.as_cuda_array(array.reshape(array.size), sync=False).copy_to_host(target.reshape(-1), stream=stream)
            if stream:
                stream.synchronize()


class Simulator(Host):
    """numba's simulator: an array is NumPy's, and kernels are Python."""

    library = "simulator"

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Memory of the host, never 0 by chance."""
        return np.full(shape, -1 if dtype.kind != "u" else 1).astype(dtype)

    def read(self, owner: Any) -> DeviceArray:
        """The array is there."""
        return DeviceArray(self, owner, owner)

    def available(self) -> int:
        """As much as the host has."""
        return _memory.available()

    def current(self) -> AbstractContextManager[Any]:
        """There is one device."""
        return nullcontext()

    def send(self, array: np.ndarray) -> DeviceArray:
        """A copy."""
        return self.read(array.copy())

    def fetch(self, array: DeviceArray, target: np.ndarray, stream: Any = 0) -> None:
        """A copy."""
        target[...] = array._shadow.reshape(target.shape)

    def launch(self, kernel: Kernel, blocks: int, arguments: tuple[Any, ...]) -> None:
        """Run the threads, a block at a time."""
        ready = [_jit.fake(a._shadow) if isinstance(a, DeviceArray) else a for a in arguments]
        kernel.code[blocks, kernel.threads](*ready)


def host(device: int = 0) -> Host:
    """Where NumPy arrays are computed."""
    return Simulator(device) if SIMULATED else Host(device)


def compute_there(compute: Callable[..., None], *arrays: np.ndarray) -> None:
    """``compute(*arrays)`` for host arrays, the last of which is the result: there, and back."""
    place, (*inputs, result) = host(), arrays
    target = place.empty(result.shape, result.dtype)
    compute(*(place.send(array) for array in inputs), target)
    place.fetch(target, result)


class Torch(Place):
    """torch's CUDA tensors."""

    library = "torch"

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """An empty tensor."""
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype.name), device=f"cuda:{self.device}")

    def read(self, owner: Any) -> DeviceArray:
        """A tensor, without its history."""
        owner = owner.detach().resolve_conj().resolve_neg()
        dtype = np.dtype(str(owner.dtype).removeprefix("torch."))
        interface = {
            "data": (owner.data_ptr(), False), "shape": tuple(owner.shape), "typestr": dtype.str,
            "strides": tuple(step * owner.element_size() for step in owner.stride()),
        }  # fmt: skip
        return _from_interface(self, owner, interface)

    def matmul(self, a: DeviceArray, b: DeviceArray, out: DeviceArray) -> bool:
        """By cuBLAS; torch has no product of integers on a GPU."""
        import torch

        if a.dtype.kind not in "fc":
            return False
        tensors = [array.owner.view(-1).view(array.shape) for array in (a, b, out)]
        torch.matmul(tensors[0], tensors[1], out=tensors[2])
        return True

    def stream(self) -> Any:
        """torch's current stream."""
        import torch

        return _external(torch.cuda.current_stream(self.device).cuda_stream)

    def available(self) -> int:
        """What is free on the device or in torch's pool."""
        import torch

        pool = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(torch.cuda.mem_get_info(self.device)[0]) + pool


class CuPy(Place):
    """CuPy's arrays."""

    library = "cupy"

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """An empty array."""
        import cupy

        with cupy.cuda.Device(self.device):
            return cupy.empty(shape, dtype)

    def matmul(self, a: DeviceArray, b: DeviceArray, out: DeviceArray) -> bool:
        """By cuBLAS."""
        import cupy

        with cupy.cuda.Device(self.device):
            arrays = [array.owner.reshape(array.shape) for array in (a, b, out)]
            arrays[2][...] = cupy.matmul(arrays[0], arrays[1])
        return True

    def stream(self) -> Any:
        """CuPy's current stream."""
        import cupy

        with cupy.cuda.Device(self.device):
            return _external(cupy.cuda.get_current_stream().ptr)

    def available(self) -> int:
        """What is free on the device or in CuPy's pool."""
        import cupy

        with cupy.cuda.Device(self.device):
            return int(cupy.cuda.runtime.memGetInfo()[0]) + cupy.get_default_memory_pool().free_bytes()


class Foreign(Host):
    """Arrays of a library that numconv does not know, by the CUDA array interface or by DLPack.

    A result comes from the library's own array namespace where it has one, as the array API standard describes it,
    else it is an array of numba.
    """

    def __init__(self, library: str, device: int) -> None:
        super().__init__(device)
        self.library = library
        self.namespace: Any = None

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """An empty array of the library's, or of numba."""
        if self.namespace is None:
            return super().allocate(shape, dtype)
        with self.current():
            return self.namespace.empty(shape, dtype=getattr(self.namespace, dtype.name))

    def read(self, owner: Any) -> DeviceArray:
        """What the array tells about itself."""
        if self.namespace is None and hasattr(owner, "__array_namespace__"):
            self.namespace = owner.__array_namespace__()
        interface = getattr(owner, "__cuda_array_interface__", None)
        if interface is not None:
            if interface.get("stream") not in (None, 1):
                with self.current():
                    cuda.external_stream(interface["stream"]).synchronize()
            return _from_interface(self, owner, interface)
        from cuda.core.utils import StridedMemoryView

        with self.current():
            view = StridedMemoryView.from_dlpack(owner, stream_ptr=1)
        steps = None if view.strides is None else tuple(step * view.dtype.itemsize for step in view.strides)
        return _from_interface(
            self, (owner, view), {"data": (view.ptr,), "shape": view.shape, "strides": steps, "typestr": view.dtype.str}
        )


def place_of(kind: str) -> Place:
    """The place that is called ``"library on cuda:device"``."""
    library, _, device = kind.partition(" on cuda:")
    known: dict[str, Callable[[int], Place]] = {"torch": Torch, "cupy": CuPy, "simulator": Simulator}
    return known[library](int(device)) if library in known else Foreign(library, int(device))


def read(place: Place, name: str, value: Any) -> DeviceArray:
    """The caller's array, or an error that names it."""
    try:
        array = place.read(value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:  # sparse, bfloat16, masked, …
        got = f"{type(value).__name__}: {error}"
        raise TypeError(f"{name} must be a dense array of a dtype NumPy has, got {got}") from None
    return array


@lru_cache(maxsize=256)
def _external(stream: int) -> Any:
    return cuda.external_stream(stream) if stream else 0
