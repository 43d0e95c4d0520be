"""The one room that knows ``numba.cuda``: how kernels are compiled and launched, and what a machine lacks for it.

Every other room takes ``cuda`` from here. Importing this calls no driver, so that a process may still fork.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _indexing

#: Whether kernels run as plain Python, thread by thread: numba's simulator, for tests without a GPU.
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") == "1"

#: Threads in a block of a kernel that runs with any number of them; the simulator makes each a thread of Python.
THREADS = 16 if SIMULATED else 256

EXTRA = "pip install 'numconv-jit[cuda12]' (or [cuda13], as the driver is)"


@contextmanager
def _row_stack() -> Iterator[None]:
    """NumPy 2.5 has no ``row_stack`` any more, which numba-cuda 0.30 asks for as it loads."""
    missing = not hasattr(np, "row_stack")
    if missing:
        setattr(np, "row_stack", np.vstack)  # noqa: B010
    try:
        yield
    finally:
        if missing:
            delattr(np, "row_stack")


def _load() -> Any:
    """``numba.cuda`` as numba-cuda brings it; ``None`` where it is not installed."""
    if find_spec("_numba_cuda_redirector") is None:
        return None
    import _numba_cuda_redirector  # noqa: F401  # does nothing more where its .pth file ran

    with _row_stack():
        from numba import cuda

        if not SIMULATED:
            import numba.cuda.np.arrayobj  # noqa: F401
    return cuda if getattr(cuda, "implementation", "") == "NVIDIA" else None


cuda = _load()


def missing() -> str:
    """What this machine lacks for kernels to run; empty if nothing. The first call asks the driver."""
    if cuda is None:
        return f"numba-cuda is not installed: {EXTRA}"
    return "" if SIMULATED else _missing(os.getpid())


@lru_cache(maxsize=1)
def _missing(process: int) -> str:
    from numba.cuda.cudadrv.error import CudaDriverError, CudaSupportError

    if _asked.setdefault("by", process) != process:
        return "CUDA was in use before this process was forked, and cannot be in it: start it by 'spawn'"
    try:
        count = len(cuda.gpus)
    except (CudaDriverError, CudaSupportError) as error:
        _asked.clear()  # a driver that did not start hinders no fork
        reason = " ".join(str(error).split()).removeprefix("Error at driver init: ").rstrip(" .:")
        return f"no CUDA driver can be used: {reason}; install or update NVIDIA's driver"
    return lacks_compiler() if count else "the CUDA driver finds no GPU"


#: The process that started the driver.
_asked: dict[str, int] = {}


class Part(NamedTuple):
    """One of NVIDIA's libraries: the file, what pip calls it for CUDA 12 and 13, and what asks it for its version."""

    file: str
    packages: dict[int, str]
    ask: Callable[[], Any]


def compilers() -> tuple[Part, ...]:
    """The libraries that compile kernels."""
    from numba.cuda.cudadrv import nvvm, runtime

    return (
        Part("libnvvm.so.4", {12: "nvidia-cuda-nvcc-cu12", 13: "nvidia-nvvm"}, lambda: nvvm.NVVM()),
        Part("libnvrtc.so", {12: "nvidia-cuda-nvrtc-cu12", 13: "nvidia-cuda-nvrtc"}, runtime.get_version),
    )


def lacks_compiler() -> str:
    """Why kernels cannot be compiled for the driver; empty if they can."""
    from numba.cuda.cudadrv import driver

    supported, found = driver.driver.get_version(), {}
    for part in compilers():
        try:
            found[part.file] = _loaded(part)
        except (ImportError, RuntimeError) as error:  # the loader's error for a missing library is a RuntimeError
            major = min(supported[0], max(part.packages))
            return (
                f"{part.file}, a part of NVIDIA's compiler, cannot be loaded: pip install 'numconv-jit[cuda{major}]' "
                f"or '{part.packages.get(major, part.file)}=={major}.*', or let CUDA_HOME name a toolkit that has it "
                f"({' '.join(str(error).split())[:200]})"
            )
    compiler = found["libnvrtc.so"]
    if supported[0] < compiler[0]:
        return (
            f"the driver supports CUDA {version(supported)} and the compiler is that of CUDA {version(compiler)}: "
            f"update the driver, or pip install 'numconv-jit[cuda{supported[0]}]'"
        )
    return ""


def _loaded(part: Part) -> Any:
    """What a library says of itself; it may lie where numba-cuda does not look, which takes one that is loaded."""
    try:
        return part.ask()
    except (ImportError, RuntimeError):
        for path in _candidates(part.file):
            with suppress(OSError):
                ctypes.CDLL(str(path))
                return part.ask()
        raise


def _candidates(file: str) -> Iterator[Path]:
    """Where toolkits have a library: those that the environment names, the usual one, conda's, and wheels of others."""
    named = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX")]
    wheels = find_spec("nvidia")
    parents = [Path(folder) for folder in (wheels.submodule_search_locations or () if wheels else ())]
    toolkits = [home for pattern in TOOLKITS for home in sorted(Path("/").glob(pattern), reverse=True)]
    homes = [*map(Path, filter(None, named)), *toolkits, Path(sys.prefix)]
    homes += [home for parent in parents for home in sorted(parent.glob("*"))]
    for home in homes:
        for place in ("nvvm/lib64", "lib64", "lib", "nvvm/lib", "targets/*/lib"):
            yield from sorted(home.glob(f"{place}/{file}*"))


#: Where systems put toolkits, as patterns from the root; the one without a version is a link to the current one.
TOOLKITS = ["usr/local/cuda", "usr/local/cuda-*", "opt/cuda"]


def version(number: tuple[int, ...]) -> str:
    """``12.4``."""
    return ".".join(map(str, number))


def describe() -> str:
    """The GPUs by name."""
    if SIMULATED:
        return "numba's simulator"
    names = []
    for gpu in cuda.gpus:
        name = gpu.name.decode() if isinstance(gpu.name, bytes) else gpu.name
        names.append(f"{name} (compute capability {version(gpu.compute_capability)})")
    return ", ".join(names)


# compiling ----------------------------------------------------------------------------------------------------------

def helper(f: Callable[..., Any]) -> Any:
    """A function that kernels call. Without numba-cuda, and in the simulator, it stays as it is."""
    return f if cuda is None or SIMULATED else cuda.jit(device=True)(f)


def _checked(value: int) -> int:
    """A number of 32 bits as the simulator has it: one that does fit, and makes no sum with it narrow."""
    assert -(1 << 31) <= value < 1 << 31, f"{value} has more than 32 bits"
    return int(value)


#: What kernels call numbers that 32 bits hold.
int32: Any = _checked if SIMULATED else np.int32


def _counted(value: int) -> int:
    """An index without a sign as the simulator has it."""
    assert value >= 0, f"{value} is before the beginning"
    return int(value)


#: Indices without a sign: one that may be negative costs numba a comparison and a sum for every load, to count it from
#: the end.
at: Any = _counted if SIMULATED else np.uint64

#: The same with 32 bits, whose divisions are quick.
count: Any = _counted if SIMULATED else np.uint32

_index = _indexing.compiled_by(helper)
position, source, output_hit = _index["position"], _index["source"], _index["output_hit"]
row_source, row_output = _index["row_source"], _index["row_output"]


def _teach_simulator() -> None:
    """The simulator's shared arrays know no ``alignment``, which kernels ask for: one array for each line that asks."""
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    def array(self: Any, shape: Any, dtype: Any, alignment: int | None = None) -> np.ndarray:
        caller = sys._getframe(1)
        line = caller.f_code, caller.f_lineno
        if line not in self._allocations:
            self._allocations[line] = np.empty(shape, dtype)
        return self._allocations[line]

    setattr(FakeCUDAShared, "array", array)  # noqa: B010


if SIMULATED and cuda is not None:
    _teach_simulator()


class Kernel:
    """A loop over the threads of a grid, launched as ``kernel(blocks, *arguments, on=place)``; made by ``kernel``."""

    def __init__(self, loop: Callable[..., None], threads: int, options: dict[str, Any]) -> None:
        self.__doc__, self.__name__, self.__module__ = loop.__doc__, loop.__name__, loop.__module__
        self.loop, self.threads, self.options = loop, threads, options
        self.compiled: dict[Any, Any] = {}  # what a driver launches, by device and types of the arguments
        if cuda is not None:
            self.code = cuda.jit(**({} if SIMULATED else options))(loop)

    def __call__(self, blocks: int, *arguments: Any, on: Any) -> None:
        if blocks:
            on.launch(self, blocks, arguments)

    def compile(self, arguments: tuple[Any, ...], kinds: tuple[Any, ...]) -> Any:
        """The kernel for arguments of these kinds, loaded on the current device; compiled if it is not on disk."""
        from cuda.core import ObjectCode

        from .cache import Stored

        stored = Stored(self.loop, (kinds, self.options, cuda.get_current_device().compute_capability))
        found = stored.load()
        if found is None:
            made = self.code.compile(tuple(self.code.typeof_pyval(argument) for argument in arguments))
            found = made.entry_name, bytes(made._codelibrary.get_cubin().code)
            stored.save(*found)
        name, code = found
        return ObjectCode.from_cubin(code).get_kernel(name)


def kernel(threads: int = 0, resident: int = 0) -> Callable[[Callable[..., None]], Kernel]:
    """A decorator for kernels with so many ``threads`` in a block; without a number, for loops over a grid of any size.

    All options stand here. ``fastmath`` would flush denormals and is off; a*b+c is one rounding anyway. ``resident``
    is how many blocks of it an SM should hold at least, which bounds the registers of a thread.
    """
    size = threads or THREADS
    options = {"launch_bounds": (size, resident)} if resident else {}
    return lambda loop: Kernel(loop, size, options)


def fake(array: np.ndarray) -> Any:
    """A NumPy array as the simulator hands arrays to kernels."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    return FakeCUDAArray(array)


def explained(error: Exception) -> Exception:
    """An error of the driver, the compiler or an allocator in words that say what helps; others as they are."""
    text = " ".join(str(error).split())
    said = f"{type(error).__name__} {text}".lower().replace(" ", "_")
    if "out_of_memory" in said or "outofmemory" in said:
        return MemoryError(f"the GPU has no memory left for this: {text}; use smaller pieces")
    if "before_forking" in said:
        return RuntimeError(f"{text}: a process that is forked after CUDA was used cannot use it; start it by 'spawn'")
    if "unsupported_ptx" in said or "unsupported_toolchain" in said or "insufficient_driver" in said:
        return RuntimeError(
            f"the CUDA driver is older than the compiler: {text}; update it, or pip install 'numconv-jit[cuda12]'"
        )
    if any(part in said for part in ("nvvm", "nvrtc", "nvjitlink")):
        return RuntimeError(f"CUDA kernels cannot be compiled here: {text}; install the compiler: {EXTRA}")
    return error
