"""What is asked of the CUDA driver, or of numba's simulator in its place: memory, copies, launches."""

from __future__ import annotations

from array import array as cells_of
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np

from .. import _memory
from ..arrays import strides_of
from . import _jit
from ._jit import SIMULATED, Kernel, cuda
from .arrays import DeviceArray

if cuda is not None and not SIMULATED:
    from cuda.bindings import driver as binding
    from numba.cuda.cudadrv.devicearray import DeviceNDArray


class Launch(NamedTuple):
    """A kernel and its arguments, some of them at an offset in a buffer of a captured call."""

    kernel: Kernel
    blocks: int
    arguments: tuple[Any, ...]
    buffers: Sequence[tuple[int, int, int]] = ()  # argument, buffer, offset


class Driver:
    """The driver of NVIDIA's GPUs. ``device`` is the number of a GPU, ``stream`` the handle of a stream.

    The handles 0 and 1 both are the default stream of all threads, and 2 is that of each thread.
    """

    def __init__(self) -> None:
        self._contexts: dict[int, int] = {}  # of each device
        self._numbas: dict[int, Any] = {}  # numba's objects for them

    def on(self, device: int) -> Any:
        """Make a GPU the current one, and put errors in words that say what helps."""
        return _EXPLAINED if self._contexts.get(device) == _context() else self._switched(device)

    @contextmanager
    def _switched(self, device: int) -> Iterator[None]:
        with _EXPLAINED:
            if not _context():  # nothing that belongs to others: as CUDA's run time has it, the GPU stays current
                self._numbas[device], self._contexts[device] = cuda.current_context(device), _context()
                yield
            else:
                with cuda.gpus[device]:
                    self._numbas[device], self._contexts[device] = cuda.current_context(), _context()
                    yield

    def allocate(self, device: int, shape: tuple[int, ...], dtype: np.dtype, stream: int = 0) -> Any:
        """An array of numba that nobody has filled; numba's own ``device_array`` takes twice as long."""
        with self.on(device):
            strides = strides_of(shape, dtype.itemsize)
            nbytes = shape[0] * strides[0] if shape else dtype.itemsize
            memory = self._numbas[device].memalloc(nbytes) if nbytes else None
            return DeviceNDArray(shape, strides, dtype, cuda.external_stream(stream) if stream else 0, memory)

    def send(self, device: int, array: np.ndarray) -> Any:
        """A copy of a contiguous host array; it is there when this returns."""
        with self.on(device):
            copied = cuda.to_device(array)
            self.wait(device, 0)
            return copied

    def fill(self, device: int, array: DeviceArray, source: np.ndarray, stream: int) -> None:
        """Copy a contiguous host array into one on the device; it is there when this returns."""
        with self.on(device):
            _checked(binding.cuMemcpyHtoDAsync(array.address, source.ctypes.data, source.nbytes, stream))
            self.wait(device, stream)

    def fetch(self, device: int, array: DeviceArray, target: np.ndarray, stream: int) -> None:
        """Copy a contiguous array into a contiguous one of the host, when the stream's work before it is done."""
        with self.on(device):
            self.wait(device, stream)
            if target.nbytes:
                _checked(binding.cuMemcpyDtoH(target.ctypes.data, array.address, target.nbytes))

    def launch(self, device: int, kernel: Kernel, blocks: int, arguments: tuple[Any, ...], stream: int) -> None:
        """Start a kernel."""
        with self.on(device):
            self.frame(device, (Launch(kernel, blocks, arguments),)).start(0, stream)

    def frame(self, device: int, launches: Sequence[Launch]) -> Frame:
        """Launches as the driver takes them."""
        return Frame(device, launches)

    def wait(self, device: int, stream: int) -> None:
        """Until the work of a stream is done."""
        with self.on(device):
            _checked(binding.cuStreamSynchronize(stream))

    def order(self, device: int, first: int, then: int) -> None:
        """What a stream gets from now on begins after what another one has by now is done; the host does not wait."""
        if max(first, 1) == max(then, 1):
            return
        with self.on(device):
            event = _checked(binding.cuEventCreate(binding.CUevent_flags.CU_EVENT_DISABLE_TIMING))
            _checked(binding.cuEventRecord(event, first))
            _checked(binding.cuStreamWaitEvent(then, event, 0))
            _checked(binding.cuEventDestroy(event))  # the driver keeps it until it has happened

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
            return int(_checked(binding.cuMemGetInfo())[0])


class Frame:
    """The arguments of launches where the driver reads them: a cell of eight bytes for each value.

    Only addresses of buffers change from call to call. So a call writes these and hands pointers over, which takes a
    microsecond where numba's launcher takes a hundred. The driver has read the cells when a launch returns; until then
    they belong to one call.
    """

    def __init__(self, device: int, launches: Sequence[Launch]) -> None:
        values: list[int] = []
        pointers: list[list[int]] = []
        addresses: dict[tuple[int, int], int] = {}  # the cell of each buffer and offset
        for launch in launches:
            own: list[int] = []
            at = {i: (buffer, offset) for i, buffer, offset in launch.buffers}
            for i, argument in enumerate(launch.arguments):
                begin, its = len(values), _cells(argument)
                cells = list(range(begin, begin + len(its)))
                if i in at:
                    cells[ADDRESS] = addresses.setdefault(at[i], begin + ADDRESS)
                own += cells
                values += its
            pointers.append(own)
        self.cells = cells_of("Q", values)
        begin, _ = self.cells.buffer_info()
        self.pointers = [cells_of("Q", [begin + 8 * cell for cell in own]) for own in pointers]
        self.launches = [
            (_code(device, launch), launch.blocks, launch.kernel.threads, own.buffer_info()[0])
            for launch, own in zip(launches, self.pointers, strict=True)
        ]
        self.buffers: dict[int, list[tuple[int, int]]] = {}
        for (buffer, offset), cell in addresses.items():
            self.buffers.setdefault(buffer, []).append((cell, offset))

    def put(self, buffer: int, address: int) -> None:
        """Say where a buffer of this call lies."""
        for cell, offset in self.buffers.get(buffer, ()):
            self.cells[cell] = address + offset

    def start(self, i: int, stream: int) -> None:
        """Launch one of them, on the GPU that is the current one."""
        code, blocks, threads, arguments = self.launches[i]
        answer = binding.cuLaunchKernel(code, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, 0)
        if answer[0]:
            _checked(answer)


#: Which cell of an array has its address: numba's kernels take two pointers of its own, sizes, and then the address.
ADDRESS = 4


def _cells(argument: Any) -> list[int]:
    """A kernel's argument as numba's kernels take it, each value in the low bytes of a cell."""
    if type(argument) is DeviceArray:
        layout = argument.layout
        values = 0, 0, layout.size, layout.itemsize, argument.address, *layout.shape, *layout.strides
    elif isinstance(argument, (int, tuple)):  # a bool, too
        values = argument if isinstance(argument, tuple) else (argument,)
    elif isinstance(argument, np.complexfloating):
        return [*_cells(argument.real), *_cells(argument.imag)]
    else:
        return [int.from_bytes(np.asarray(argument).tobytes(), "little")]
    return [value & 0xFFFF_FFFF_FFFF_FFFF for value in values]


def _code(device: int, launch: Launch) -> Any:
    """The kernel for arguments of these types, compiled on first use."""
    kernel, kinds = launch.kernel, tuple(map(_kind, launch.arguments))
    code = kernel.compiled.get((device, kinds))
    if code is None:
        code = kernel.compiled[device, kinds] = kernel.compile(launch.arguments, kinds)
    return binding.CUfunction(int(code.handle))


def _kind(argument: Any) -> Any:
    """What a kernel is compiled for, in short."""
    if type(argument) is DeviceArray:
        return argument.dtype.num, argument.ndim
    return len(argument) if type(argument) is tuple else type(argument)


class Simulator(Driver):
    """The same where kernels are Python: an array on the device is NumPy's."""

    def on(self, device: int) -> Any:
        """Every device is this one."""
        return _EXPLAINED

    def allocate(self, device: int, shape: tuple[int, ...], dtype: np.dtype, stream: int = 0) -> Any:
        """Memory of the host, never 0 by chance."""
        return np.full(shape, -1 if dtype.kind != "u" else 1).astype(dtype)

    def send(self, device: int, array: np.ndarray) -> Any:
        """A copy."""
        return array.copy()

    def fill(self, device: int, array: DeviceArray, source: np.ndarray, stream: int) -> None:
        """A copy."""
        array.numbers[...] = source

    def fetch(self, device: int, array: DeviceArray, target: np.ndarray, stream: int) -> None:
        """A copy."""
        target[...] = array.numbers.reshape(target.shape)

    def launch(self, device: int, kernel: Kernel, blocks: int, arguments: tuple[Any, ...], stream: int) -> None:
        """Run the threads, a block at a time."""
        configured = kernel.code[blocks, kernel.threads]
        configured(*(_jit.fake(a.numbers) if isinstance(a, DeviceArray) else a for a in arguments))

    def frame(self, device: int, launches: Sequence[Launch]) -> Any:
        """The arguments as they are, with other addresses."""
        return SimulatedFrame(device, launches)

    def wait(self, device: int, stream: int) -> None:
        """All is done."""

    def order(self, device: int, first: int, then: int) -> None:
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


class SimulatedFrame:
    """The same as a ``Frame``."""

    def __init__(self, device: int, launches: Sequence[Launch]) -> None:
        self.device, self.launches = device, launches
        self.addresses: dict[int, int] = {}

    def put(self, buffer: int, address: int) -> None:
        """Say where a buffer of this call lies."""
        self.addresses[buffer] = address

    def start(self, i: int, stream: int) -> None:
        """Run one of them."""
        kernel, blocks, arguments, buffers = self.launches[i]
        given = list(arguments)
        for at, buffer, offset in buffers:
            given[at] = given[at].moved(None, self.addresses[buffer] + offset)
        DRIVER.launch(self.device, kernel, blocks, tuple(given), stream)


def _checked(answer: tuple[Any, ...]) -> Any:
    """What the driver gave, or its error."""
    error, *given = answer
    if error:
        text = binding.cuGetErrorString(error)[1]
        raise RuntimeError(f"{error.name}: {text.decode() if text else 'unknown'}")
    return given[0] if len(given) == 1 else given


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


DRIVER: Driver = Simulator() if SIMULATED else Driver()
