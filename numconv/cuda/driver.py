"""What is asked of the CUDA driver, or of numba's simulator in its place: memory, copies, launches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .. import _memory
from . import _jit
from ._jit import SIMULATED, Kernel, cuda
from .arrays import DeviceArray

if TYPE_CHECKING:
    from .capture import Launch

if cuda is not None and not SIMULATED:
    from cuda.bindings import driver as binding
    from cuda.core import LaunchConfig, Stream, launch


class Driver:
    """The driver of NVIDIA's GPUs, by numba. ``device`` is the number of a GPU, ``stream`` the handle of a stream."""

    def __init__(self) -> None:
        self._contexts: dict[int, int] = {}

    def on(self, device: int) -> Any:
        """Make a GPU the current one, and put errors in words that say what helps."""
        return _EXPLAINED if self._contexts.get(device, 0) == _context() else self._switched(device)

    @contextmanager
    def _switched(self, device: int) -> Iterator[None]:
        with _EXPLAINED:
            if not _context():  # nothing that belongs to others: as CUDA's run time has it, the GPU stays current
                cuda.current_context(device)
                self._contexts[device] = _context()
                yield
            else:
                with cuda.gpus[device]:
                    self._contexts[device] = _context()
                    yield

    def allocate(self, device: int, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """An array that nobody has filled."""
        with self.on(device):
            return cuda.device_array(shape, dtype)

    def send(self, device: int, array: np.ndarray) -> Any:
        """A copy of a contiguous host array; it is there when this returns."""
        with self.on(device):
            copied = cuda.to_device(array)
            cuda.default_stream().synchronize()
            return copied

    def fetch(self, device: int, array: DeviceArray, target: np.ndarray, stream: int) -> None:
        """Copy a contiguous array into a contiguous one of the host, when the stream's work before it is done."""
        with self.on(device):
            flat = cuda.as_cuda_array(array.reshape(array.size), sync=False)
            self.wait(device, stream)
            flat.copy_to_host(target.reshape(-1))

    def launch(self, device: int, kernel: Kernel, blocks: int, arguments: tuple[Any, ...], stream: int) -> None:
        """Start a kernel: by ``cuda.core`` itself, for numba's launcher takes longer than many a kernel."""
        kinds, values, _ = flattened(arguments)
        with self.on(device):
            code = kernel.compiled.get((device, kinds))
            if code is None:
                code = kernel.compiled[device, kinds] = kernel.compile(arguments)
            launch(_core_stream(stream), _grid(blocks, kernel.threads), code, *values)

    def start(self, captured: Launch, device: int, addresses: list[int], stream: int) -> None:
        """Start a captured kernel, on the GPU that is the current one."""
        if captured.ready is None:
            kinds, values, at = flattened(captured.arguments)
            grid, code = _grid(captured.blocks, captured.kernel.threads), captured.kernel.compiled[device, kinds]
            captured.ready = grid, code, values, [(at[i], buffer, offset) for i, buffer, offset in captured.buffers]
        grid, code, values, buffers = captured.ready
        values = values.copy()
        for at, buffer, offset in buffers:
            values[at] = addresses[buffer] + offset
        launch(_core_stream(stream), grid, code, *values)

    def wait(self, device: int, stream: int) -> None:
        """Until the work of a stream is done."""
        with self.on(device):
            (_external(device, stream) or cuda.default_stream()).synchronize()

    def device_at(self, address: int) -> int:
        """The GPU in whose memory an address lies."""
        with self.on(0):
            ordinal = binding.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
            error, device = binding.cuPointerGetAttribute(ordinal, address)
            if error:
                raise ValueError(f"the address {address:#x} is none of a GPU's memory ({error.name})")
            return int(device)

    def capability(self, device: int) -> tuple[int, int]:
        """The generation of a GPU: (9, 0) for sm_90."""
        with self.on(device):
            return cast(tuple[int, int], tuple(cuda.gpus[device].compute_capability))

    def available(self, device: int) -> int:
        """Bytes that are free."""
        with self.on(device):
            return int(binding.cuMemGetInfo()[1])


class Simulator(Driver):
    """The same where kernels are Python: an array on the device is NumPy's."""

    def on(self, device: int) -> Any:
        """Every device is this one."""
        return _EXPLAINED

    def allocate(self, device: int, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Memory of the host, never 0 by chance."""
        return np.full(shape, -1 if dtype.kind != "u" else 1).astype(dtype)

    def send(self, device: int, array: np.ndarray) -> Any:
        """A copy."""
        return array.copy()

    def fetch(self, device: int, array: DeviceArray, target: np.ndarray, stream: int) -> None:
        """A copy."""
        target[...] = array.numbers.reshape(target.shape)

    def launch(self, device: int, kernel: Kernel, blocks: int, arguments: tuple[Any, ...], stream: int) -> None:
        """Run the threads, a block at a time."""
        configured = kernel.code[blocks, kernel.threads]
        configured(*(_jit.fake(a.numbers) if isinstance(a, DeviceArray) else a for a in arguments))

    def start(self, captured: Launch, device: int, addresses: list[int], stream: int) -> None:
        """The same with other addresses."""
        arguments = list(captured.arguments)
        for i, buffer, offset in captured.buffers:
            arguments[i] = arguments[i].moved(None, addresses[buffer] + offset)
        self.launch(device, captured.kernel, captured.blocks, tuple(arguments), stream)

    def wait(self, device: int, stream: int) -> None:
        """All is done."""

    def device_at(self, address: int) -> int:
        """There is one."""
        return 0

    def capability(self, device: int) -> tuple[int, int]:
        """That of a GPU that has all that kernels use."""
        return 9, 0

    def available(self, device: int) -> int:
        """As much as the host has."""
        return _memory.available()


def flattened(arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Any], list[int]]:
    """The types of a kernel's arguments, in short, their values as numba's kernels take them, and where each has its
    address among the values, if it is an array.
    """
    kinds: list[Any] = []
    values: list[Any] = []
    at: list[int] = []
    for argument in arguments:
        kind: Any = type(argument)
        at.append(len(values) + 4)
        if kind is DeviceArray:
            kind = argument.dtype.num, argument.ndim
            values += 0, 0, argument.size, argument.itemsize, argument.address, *argument.shape, *argument.strides
        elif kind is tuple:
            kind = len(argument)
            values += argument
        elif kind is np.complex64 or kind is np.complex128:
            values += argument.real, argument.imag
        else:
            values.append(argument)
        kinds.append(kind)
    return tuple(kinds), values, at


class _Explained:
    """Errors in words that say what helps, where there are any."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, Exception) and (better := _jit.explained(error)) is not error:
            raise better from error


_EXPLAINED = _Explained()


def _context() -> int:
    """The driver's handle of the context that is current in this thread; 0 without one."""
    _, handle = binding.cuCtxGetCurrent()
    return int(handle or 0)  # none where the driver has not been started


@lru_cache(maxsize=1024)
def _grid(blocks: int, threads: int) -> Any:
    return LaunchConfig(grid=blocks, block=threads)


@lru_cache(maxsize=256)
def _core_stream(stream: int) -> Any:
    return Stream.from_handle(stream)


@lru_cache(maxsize=256)
def _external(device: int, stream: int) -> Any:
    """A stream by its handle, for the device that is the current one; 0 is the default stream."""
    return cuda.external_stream(stream) if stream else 0


DRIVER: Driver = Simulator() if SIMULATED else Driver()
