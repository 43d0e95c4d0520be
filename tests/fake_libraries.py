"""Stand-ins for torch and CuPy whose "GPU" memory is NumPy's, for numba's simulator: enough of them for ``places``."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np


def address(array):
    return array.__array_interface__["data"][0]


class Pointer:
    """CuPy's ``MemoryPointer``."""

    def __init__(self, memory, ptr):
        self.memory, self.ptr = memory, ptr

    def __add__(self, offset):
        return Pointer(self.memory, self.ptr + offset)


class CupyArray:
    """CuPy's ``ndarray``."""

    __module__ = "cupy"
    current = 0  # CuPy's current device

    def __init__(self, shape, dtype=float, memptr=None, strides=None):
        self.on_device = CupyArray.current
        if memptr is None:
            self.numbers = np.full(shape, 7, dtype)
        else:
            interface = {
                "data": (memptr.ptr, False), "shape": tuple(shape), "strides": strides, "version": 3,
                "typestr": np.dtype(dtype).str,
            }  # fmt: skip
            self.numbers = np.asarray(SimpleNamespace(__array_interface__=interface))
        self.data = memptr or Pointer(self.numbers, address(self.numbers))

    shape = property(lambda self: self.numbers.shape)
    strides = property(lambda self: self.numbers.strides)
    dtype = property(lambda self: self.numbers.dtype)
    ndim = property(lambda self: self.numbers.ndim)

    def __getitem__(self, key):
        return self._part(self.numbers[key])

    def swapaxes(self, a, b):
        return self._part(self.numbers.swapaxes(a, b))

    def _part(self, part):
        return CupyArray(part.shape, part.dtype, Pointer(self.data.memory, address(part)), part.strides)

    def __setitem__(self, key, value):
        self.numbers[key] = value.numbers

    def __dlpack_device__(self):
        return 2, self.on_device

    def __dlpack__(self, **_):
        raise AssertionError("CuPy's arrays have a place of their own")


def cupy_array(numbers):
    """An array of the stand-in over NumPy's memory."""
    return CupyArray(numbers.shape, numbers.dtype, Pointer(numbers, address(numbers)), numbers.strides)


class CsrMatrix:
    """The sparse matrix of ``cupyx``."""

    __module__ = "cupyx.scipy.sparse"

    def __init__(self, parts, shape):
        assert all(isinstance(part, CupyArray) for part in parts)
        assert parts[0].dtype.char in "?fdFD"
        (self.data, self.indices, self.indptr), self.shape = parts, shape


class OperatorOfCupy:
    """Its linear operator."""

    def __init__(self, shape, matvec, rmatvec=None, matmat=None, dtype=None, rmatmat=None):
        self.shape, self.dtype = shape, dtype
        self.matvec, self.rmatvec, self.matmat, self.rmatmat = matvec, rmatvec, matmat, rmatmat


class Device:
    """torch's device."""

    type = "cuda"

    def __init__(self, index):
        self.index = index

    def __str__(self):
        return f"cuda:{self.index}"


class Tensor:
    """torch's tensor."""

    __module__ = "torch"

    def __init__(self, numbers, device=0, storage=None):
        self.numbers, self.device, self.storage = numbers, Device(device), numbers if storage is None else storage

    requires_grad = False
    shape = property(lambda self: self.numbers.shape)
    dtype = property(lambda self: f"torch.{self.numbers.dtype.name}")

    def is_conj(self):
        return False

    is_neg = is_conj

    def __getitem__(self, key):
        return Tensor(self.numbers[key], self.device.index, self.storage)

    def swapaxes(self, a, b):
        return Tensor(self.numbers.swapaxes(a, b), self.device.index, self.storage)

    def detach(self):
        return self

    resolve_conj = resolve_neg = detach

    def __dlpack__(self, **_):
        raise AssertionError("torch's tensors have a place of their own")

    def data_ptr(self):
        return address(self.numbers)

    def stride(self):
        return tuple(step // self.numbers.itemsize for step in self.numbers.strides)

    def element_size(self):
        return self.numbers.itemsize

    def storage_offset(self):
        return (address(self.numbers) - address(self.storage)) // self.numbers.itemsize

    def as_strided(self, shape, stride, offset):
        flat = self.storage.reshape(-1)[offset:]
        steps = [step * flat.itemsize for step in stride]
        return Tensor(np.lib.stride_tricks.as_strided(flat, shape, steps), self.device.index, self.storage)


def install(monkeypatch, calls):
    """Put both stand-ins where imports find them; ``calls`` collects what their BLAS did."""

    @contextmanager
    def device(index):
        before, CupyArray.current = CupyArray.current, index
        try:
            yield
        finally:
            CupyArray.current = before

    def multiply(a, b, out):
        calls.append(("matmul", type(out).__module__))
        np.matmul(a.numbers, b.numbers, out=out.numbers)

    def transforms(axes):
        """NumPy's as modules have them whose word for axes this is."""

        def named(name):
            def transform(array, s, norm, out=None, **along):
                calls.append((name, type(array).__module__))
                found = getattr(np.fft, name)(array.numbers, s, axes=along[axes], norm=norm)
                if out is None:
                    return cupy_array(found)
                out.numbers[...] = found
                return out

            return transform

        names = "fftn", "ifftn", "rfftn", "irfftn"
        return SimpleNamespace(**{name: named(name) for name in names})

    names = (
        "float16", "float32", "float64", "complex64", "complex128", "bool", "int8", "uint8", "int16", "uint16", "int32",
        "uint32", "int64", "uint64",
    )  # fmt: skip
    dtypes = {name: f"torch.{name}" for name in names}

    def torch_empty(shape, dtype, device):
        return Tensor(np.full(shape, 7, dtype.removeprefix("torch.")), int(device.partition(":")[2]))

    stream = SimpleNamespace(cuda_stream=41, ptr=42)
    modules = {
        "torch": {
            **dtypes, "empty": torch_empty, "matmul": multiply, "fft": transforms("dim"),
            "_C": SimpleNamespace(_cuda_getCurrentRawStream=lambda index: stream.cuda_stream),
            "cuda": SimpleNamespace(
                memory=SimpleNamespace(memory_stats_as_nested_dict=lambda index: {}),
            ),
        },
        "cupy": {
            "ndarray": CupyArray, "empty": CupyArray, "matmul": multiply, "fft": transforms("axes"),
            "get_default_memory_pool": lambda: SimpleNamespace(free_bytes=lambda: 0),
            "cuda": SimpleNamespace(Device=device, get_current_stream=lambda: stream),
        },
        "cupyx": {}, "cupyx.scipy": {}, "cupyx.scipy.sparse": {"csr_matrix": CsrMatrix},
        "cupyx.scipy.sparse.linalg": {"LinearOperator": OperatorOfCupy},
    }  # fmt: skip
    for name, members in modules.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
