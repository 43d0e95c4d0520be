"""What is asked of the CUDA driver, or of numba's simulator in its place: memory, copies, launches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np

from .. import _memory
from . import _jit
from ._jit import SIMULATED, Kernel, cuda
from .arrays import DeviceArray


class Driver:
    """The driver of NVIDIA's GPUs, by numba. ``device`` is the number of a GPU, ``stream`` the handle of a stream."""

    @contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Make a GPU the current one, and put errors in words that say what helps."""
        try:
            with cuda.gpus[device]:
                yield
        except Exception as error:
            better = _jit.explained(error)
            if better is error:
                raise
            raise better from error

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
        """Start a kernel."""
        with self.on(device):
            kernel.configured(blocks, _external(device, stream))(*arguments)

    def wait(self, device: int, stream: int) -> None:
        """Until the work of a stream is done."""
        with self.on(device):
            (_external(device, stream) or cuda.default_stream()).synchronize()

    def device_at(self, address: int) -> int:
        """The GPU in whose memory an address lies."""
        from numba.cuda.cudadrv.driver import binding, driver

        with self.on(0):
            ordinal = binding.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
            return int(driver.cuPointerGetAttribute(ordinal, binding.CUdeviceptr(address)))

    def available(self, device: int) -> int:
        """Bytes that are free."""
        with self.on(device):
            return int(cuda.current_context().get_memory_info().free)


class Simulator(Driver):
    """The same where kernels are Python: an array on the device is NumPy's."""

    def on(self, device: int) -> Any:
        """Every device is this one."""
        return nullcontext()

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
        kernel.configured(blocks)(*(_jit.fake(a.numbers) if isinstance(a, DeviceArray) else a for a in arguments))

    def wait(self, device: int, stream: int) -> None:
        """All is done."""

    def device_at(self, address: int) -> int:
        """There is one."""
        return 0

    def available(self, device: int) -> int:
        """As much as the host has."""
        return _memory.available()


@lru_cache(maxsize=256)
def _external(device: int, stream: int) -> Any:
    """A stream by its handle, for the device that is the current one; 0 is the default stream."""
    return cuda.external_stream(stream) if stream else 0


DRIVER: Driver = Simulator() if SIMULATED else Driver()
