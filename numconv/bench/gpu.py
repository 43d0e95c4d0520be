"""The same work on a GPU: numconv beside torch (cuDNN), with TF32 and without, and CuPy; what the GPU can do.

A peer's arrays are sent before anything is timed. A call is timed by events on the library's stream, and each is
waited for, so that small work is timed with what it takes to start it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from math import prod
from typing import Any

import numpy as np

from ..cuda._jit import cuda, describe
from .cases import Case
from .peers import Array, Numconv, Peer, Rivals, Settings, Torch

#: Entries of a matrix that is worth building for a comparison.
ENTRIES = 200_000_000

#: Bytes of a copy that measures the memory.
MEMORY = 1 << 30

#: Multiply-adds that a multiprocessor does in a cycle, by compute capability, float32 and float64.
PER_CYCLE = {(7, 0): (64, 32), (7, 5): (64, 2), (8, 0): (64, 32), (9, 0): (128, 64), (10, 0): (128, 64)}


class OnTorch:
    """Arrays and clock of torch."""

    def __init__(self) -> None:
        import torch

        self.torch: Any = torch

    def send(self, array: Array) -> Any:
        """To the GPU."""
        return self.torch.from_numpy(array).cuda()

    def fetch(self, array: Any) -> Array:
        """To the host."""
        return np.asarray(array.cpu() if hasattr(array, "cpu") else array)

    def seconds(self, call: Callable[[], Any]) -> float:
        """The time of one call."""
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3


class OnCuPy:
    """Arrays and clock of CuPy."""

    def __init__(self) -> None:
        import cupy

        self.cupy: Any = cupy

    def send(self, array: Array) -> Any:
        """To the GPU."""
        return self.cupy.asarray(array)

    def fetch(self, array: Any) -> Array:
        """To the host."""
        return np.asarray(self.cupy.asnumpy(array))

    def seconds(self, call: Callable[[], Any]) -> float:
        """The time of one call."""
        start, end = (self.cupy.cuda.Event() for _ in range(2))
        stream = self.cupy.cuda.get_current_stream()
        start.record(stream)
        call()
        end.record(stream)
        end.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, end)) * 1e-3


class OnNumba:
    """Arrays and clock of numba, where there is nothing else."""

    def send(self, array: Array) -> Any:
        """To the GPU."""
        return cuda.to_device(np.ascontiguousarray(array))

    def fetch(self, array: Any) -> Array:
        """To the host."""
        return array.copy_to_host() if hasattr(array, "copy_to_host") else np.asarray(array)

    def seconds(self, call: Callable[[], Any]) -> float:
        """The time of one call."""
        start, end = cuda.event(), cuda.event()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(cuda.event_elapsed_time(start, end)) * 1e-3


def library() -> Any:
    """Whose arrays numconv gets."""
    if find_spec("torch") and (on := OnTorch()).torch.cuda.is_available():
        return on
    return OnCuPy() if find_spec("cupy") else OnNumba()


class OnGpu(Peer):
    """A peer whose ``arrays`` are those of a library, on the GPU."""

    arrays: Any

    def fetch(self, array: Any) -> Array:
        """A result as a NumPy array."""
        fetched: Array = self.arrays.fetch(array)
        return fetched

    def seconds(self, call: Callable[[], Any]) -> float:
        """The time of one call, by events."""
        return float(self.arrays.seconds(call))


class NumconvOnGpu(OnGpu, Numconv):
    """numconv with arrays that lie on the GPU."""

    device = "cuda"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.dtype, self.arrays = np.dtype(settings.dtype), library()
        self.versions |= {"numba-cuda": version("numba-cuda"), "arrays": type(self.arrays).__name__[2:].lower()}

    def dtype_of(self, array: Any) -> np.dtype:
        """torch's dtypes are not NumPy's."""
        return self.dtype

    def prepare(self, case: Case, data: dict[str, Array]) -> Rivals:
        """The calls, with arrays that were sent."""
        return super().prepare(case, {name: self.arrays.send(array) for name, array in data.items()})


class TorchOnGpu(OnGpu, Torch):
    """torch with cuDNN's choice by measuring; rival ``torch`` computes float32 as such, ``torch tf32`` may round."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.arrays = OnTorch()
        self.tensor = self.arrays.send
        self.torch.backends.cudnn.benchmark = True
        self.single = settings.dtype == "float32"
        self.versions |= {"cudnn": str(self.torch.backends.cudnn.version()), "torch's cuda": self.torch.version.cuda}

    def prepare(self, case: Case, data: dict[str, Array]) -> Rivals:
        """Each call once with ``allow_tf32=False``, and where products are computed once with ``True``."""
        rivals = super().prepare(case, data)
        exact = {rival: self._allowing(False, ways) for rival, ways in rivals.items()}
        if not (self.single and case.flops):
            return exact
        return exact | {f"{rival} tf32": self._allowing(True, ways) for rival, ways in rivals.items()}

    def _allowing(self, tf32: bool, ways: dict[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
        backends = self.torch.backends

        def run(call: Callable[[], Any]) -> Any:
            backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = tf32
            return call()

        return {way: partial(run, call) for way, call in ways.items()}


class CuPy(OnGpu):
    """CuPy: ``as_strided`` and ``tensordot`` for products, ``cupyx.scipy.sparse`` for matrices."""

    module = "cupy"

    def __init__(self, settings: Settings) -> None:
        self.arrays = OnCuPy()
        self.cupy = self.arrays.cupy
        self.versions = {"cupy": self.cupy.__version__}

    def prepare(self, case: Case, data: dict[str, Array]) -> Rivals:
        """The calls, with arrays that were sent."""
        return super().prepare(case, {name: self.arrays.send(array) for name, array in data.items()})

    def _windows(self, x: Any, case: Case) -> Any:
        """A view ``(N, C, *out, *k)`` of the padded input."""
        d = len(case.out)
        padded = self.cupy.pad(x, [(0, 0)] * 2 + [(case.padding, case.padding)] * d)
        steps = padded.strides[2:]
        return self.cupy.lib.stride_tricks.as_strided(
            padded, (*x.shape[:2], *case.out, *case.w[2:]),
            (*padded.strides[:2], *(s * case.stride for s in steps), *(s * case.dilation for s in steps)),
        )  # fmt: skip

    def conv(self, case: Case, x: Any, w: Any) -> Rivals:
        """``tensordot`` of the windows, without groups."""
        d = len(case.out)
        if case.groups > 1:
            return {}
        axes = [1, *range(2 + d, 2 + 2 * d)], list(range(1, 2 + d))
        contract = self.cupy.tensordot
        return {"cupy": {"": lambda: self.cupy.moveaxis(contract(self._windows(x, case), w, axes), -1, 1)}}

    def grad_weight(self, case: Case, x: Any, dy: Any) -> Rivals:
        """``tensordot`` with the windows over images and pixels."""
        d = len(case.out)
        if case.groups > 1:
            return {}
        axes = [0, *range(2, 2 + d)], [0, *range(2, 2 + d)]
        return {"cupy": {"": lambda: self.cupy.tensordot(dy, self._windows(x, case), axes)}}

    def convolve(self, case: Case, x: Any, w: Any) -> Rivals:
        """Images with odd kernels: the windows, and the sparse matrix of the whole, which is given."""
        if x.ndim != 2 or case.boundary != "constant":
            return {}
        margin = case.w[0] // 2
        plain = Case(case.name, case.group, "conv", (1, 1, *case.x), (1, 1, *case.w), padding=margin)
        turned = w[::-1, ::-1]
        rivals: Rivals = {
            "cupy": {"": lambda: self.cupy.tensordot(self._windows(x[None, None], plain)[0, 0], turned, 2)}
        }
        if prod(case.x) * prod(case.w) <= ENTRIES:
            matrix, flat = self._matrix(plain, self.cupy.ascontiguousarray(turned)[None, None]), x.ravel()
            rivals["cupyx csr"] = {"": lambda: (matrix @ flat).reshape(case.x)}
        return rivals

    def csr_matvec(self, case: Case, x: Any, w: Any) -> Rivals:
        """``A @ x``."""
        matrix, flat = self._matrix(case, w), x.ravel()
        return {"cupyx": {"": lambda: matrix @ flat}}

    def csr_rmatvec(self, case: Case, w: Any, dy: Any) -> Rivals:
        """``A.T @ y``."""
        matrix, flat = self._matrix(case, w), dy.ravel()
        return {"cupyx": {"": lambda: matrix.T @ flat}}

    def _matrix(self, case: Case, w: Any) -> Any:
        """``W_conv``, built on the host."""
        from cupyx.scipy.sparse import csr_matrix

        import numconv

        with numconv.use_device("cpu"):
            built = numconv.kernel2row(self.fetch(w), case.x[2:], flip=False, **case.geometry)
        return csr_matrix(tuple(map(self.cupy.asarray, (built.data, built.indices, built.indptr))), shape=built.shape)


PEERS: dict[str, type[Any]] = {"torch": TorchOnGpu, "cupy": CuPy}


# the machine --------------------------------------------------------------------------------------------------------


def flops(dtype: str) -> float:
    """Operations a second by the data sheet: multiprocessors, their cores and the highest clock."""
    gpu = cuda.get_current_device()
    single, double = PER_CYCLE.get(gpu.compute_capability, (128, 2))
    cores = single if dtype == "float32" else double
    return 2.0 * gpu.MULTIPROCESSOR_COUNT * cores * gpu.CLOCK_RATE * 1e3


def memory() -> dict[str, float]:
    """Bytes a second, filled and copied (read and written), measured."""
    from ..cuda.arrays import copy
    from ..cuda.places import host

    place, seconds = host(), OnNumba().seconds
    a, b = (place.zeros((MEMORY // 4,), np.dtype(np.float32)) for _ in range(2))

    def fill() -> None:
        a[...] = 0

    def best(call: Callable[[], None]) -> float:
        call()
        return min(seconds(call) for _ in range(5))

    return {"fill": a.nbytes / best(fill), "copy": 2 * a.nbytes / best(lambda: copy(a, b))}


def machine() -> dict[str, str]:
    """What the table says of it."""
    said = "torch: allow_tf32=False, torch tf32: allow_tf32=True; cudnn.benchmark=True"
    return {"device": describe(), "precision": said}
