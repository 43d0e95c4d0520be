"""Where an array lives decides where numconv computes, and in whose type the result comes back.

No array library is imported here: a caller who has a torch tensor has imported torch. Nor is a driver called before
there is an array on a GPU, or somebody asks for one.
"""

from __future__ import annotations

import contextvars
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial, wraps
from importlib import import_module
from inspect import signature
from types import ModuleType
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np

from . import containers
from ._objects import ask, described, look
from .arguments import one_of
from .arrays import plain_steps

F = TypeVar("F", bound=Callable[..., Any])
Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[str, ...] = get_args(Device)

_wanted: contextvars.ContextVar[str | None] = contextvars.ContextVar("numconv_device", default=None)


@dataclass(frozen=True)
class DeviceInfo:
    """A place to compute: ``name``, whether it is ``usable`` and if not the ``reason``, and a ``description``."""

    name: str
    usable: bool
    reason: str
    description: str


def devices() -> list[DeviceInfo]:
    """List where numconv can compute here, and why it cannot elsewhere.

    Returns
    -------
    list of DeviceInfo
        One for the CPU and one for CUDA, with ``name``, ``usable``, ``reason`` (empty if usable), ``description``.

    Examples
    --------
    >>> import numconv
    >>> [device.name for device in numconv.devices()]
    ['cpu', 'cuda']
    """
    why_not = no_cuda()
    gpus = "NVIDIA GPUs" if why_not else backend("cuda", "_jit").describe()
    return [
        DeviceInfo("cpu", True, "", f"{os.cpu_count()} logical cores"),
        DeviceInfo("cuda", not why_not, why_not, gpus),
    ]


def no_cuda() -> str:
    """Why no GPU can be used here: what is missing, or an empty string. Asks the driver."""
    return str(backend("cuda", "_jit").missing())


def has_gpu() -> bool:
    """Whether ``auto`` may take a GPU: a real one."""
    return not no_cuda() and not backend("cuda", "_jit").SIMULATED


@contextmanager
def use_device(device: Device) -> Iterator[None]:
    """Compute NumPy arrays on this device inside a ``with`` block, in this thread or task.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}

    Raises
    ------
    ValueError
        If the device is not one of these.
    RuntimeError
        If it is ``"cuda"`` and no GPU is usable; the message says what is missing.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> with numconv.use_device("cpu"):
    ...     numconv.convolve(np.array([1, 2]), np.array([1, 1]))
    array([1, 3, 2])
    """
    choose_device(device)
    token = _wanted.set(device)
    try:
        yield
    finally:
        _wanted.reset(token)


def choose_device(device: str = "auto") -> str:
    """The device for host arrays: what the call says, else ``use_device``, else ``NUMCONV_DEVICE``, else ``"auto"``."""
    name = "device"
    if type(device) is not str:
        device = one_of(name, device, DEVICES)
    if device == "auto":
        device = _wanted.get() or "auto"
    if device == "auto" and (wish := os.environ.get("NUMCONV_DEVICE")) is not None:
        name, device = "the environment variable NUMCONV_DEVICE", wish
    if device not in DEVICES:
        one_of(name, device, DEVICES)
    if device == "cuda" and no_cuda():
        raise RuntimeError(f"{name} is 'cuda', but no GPU is usable: {no_cuda()}")
    return device


def free_memory(array: Any, device: str) -> Callable[[], int] | None:
    """How to ask for the memory that is left where this array is computed; ``None`` on the CPU."""
    if device == "cpu":
        return None
    place = backend(device, "places").host() if isinstance(array, np.ndarray) else array.place
    available: Callable[[], int] = place.available
    return available


def asked_for() -> str:
    """The device for host arrays that are only moved: a GPU if one is asked for, but never by itself."""
    return "cuda" if choose_device() == "cuda" else "cpu"


def device_for(device: str, array: Any) -> str:
    """Where a call computes: where its arrays are, or where host arrays are to go."""
    return device if device_of(array) == "cpu" else "cuda"


def placed(device: str, array: Any, compute: Callable[..., None]) -> Callable[..., None]:
    """``compute(*arrays, result)``, by way of a GPU where host arrays are to go there."""
    if device == "cpu" or device_of(array) != "cpu":
        return compute
    return partial(backend(device, "places").compute_there, compute)


def device_of(array: Any) -> str:
    """Where an array that ``read`` gave lives."""
    return "cpu" if isinstance(array, np.ndarray) else "cuda"


@cache
def backend(device: str, room: str) -> ModuleType:
    """A room of a device's backend, imported on first use."""
    return import_module(f"numconv.{device}.{room}")


def or_dask(function: F) -> F:
    """A public function that leaves Dask arrays to the one of its name in ``interop.dask``."""

    @wraps(function)
    def either(*arguments: Any, **options: Any) -> Any:
        known = _NO_DASK.issuperset(map(type, arguments)) and _NO_DASK.issuperset(map(type, options.values()))
        if not known and _any_dask({type(value) for value in (*arguments, *options.values())}):
            try:
                signature(function).bind(*arguments, **options)  # what one takes the other takes
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            return getattr(import_module("numconv.interop.dask"), function.__name__)(*arguments, **options)
        return function(*arguments, **options)

    return cast(F, either)


#: Types that are none of Dask's, told in one look.
_NO_DASK: set[Any] = {np.ndarray, type(None), int, float, bool, str, tuple, list}


def _any_dask(kinds: set[Any]) -> bool:
    """Whether a type is one of Dask's; others are known from now on."""
    found = any(map(is_dask, kinds))
    if not found:
        _NO_DASK.update(kinds)
    return found


@cache
def is_dask(kind: Any) -> bool:
    """Whether a type is one of Dask's."""
    return str(kind.__module__).startswith("dask.")


_OPTIONAL = ("bias", "out")


def read(**arguments: Any) -> tuple[list[Any], Callable[[Any], Any]]:
    """The caller's arrays as numconv sees them, without a copy, and the way back for the result.

    Host arrays become NumPy's, those on a GPU ``numconv.cuda``'s. Arguments named ``bias`` and ``out`` may be ``None``
    and stay so; the way back of a call with ``out=`` gives ``out`` itself.
    """
    for name, value in arguments.items():
        if type(value) is not np.ndarray and (value is not None or name not in _OPTIONAL):
            break
    else:  # the common case, in one look
        return [value if value is None else plain_steps(value) for value in arguments.values()], _way_to(
            arguments.get("out")
        )
    out = arguments.get("out")
    kinds, named = {}, {}
    for name, value in arguments.items():
        if value is not None:
            kind = kinds[name] = kind_of(name, value)
            if kind:
                named[name] = kind
        elif name not in _OPTIONAL:
            raise TypeError(f"{name} must be an array, got None")
    if len({*named.values()}) > 1:
        named = _beside_numba(named)
    if len({*named.values()}) > 1:
        raise TypeError(
            "all arrays must live in one place and be of one kind, got "
            + ", ".join(f"{name}: {kind}" for name, kind in named.items())
        )
    kind = next(iter(named.values()), "numpy")
    if out is not None and not kinds["out"]:
        raise TypeError(f"out must be an array that can be written to, got {type(out).__name__}")
    if "cuda" in kind:
        return _read_gpu(arguments, named, kind)
    reader, give = _on_host[kind]
    arrays = [value if value is None else plain_steps(reader(name, value)) for name, value in arguments.items()]
    return arrays, give if out is None else _way_to(out)


def _beside_numba(kinds: dict[str, str]) -> dict[str, str]:
    """Whose the arrays are, with numba's among those of a library known by its interface alone, which gets numba's."""
    others = {kind for kind in kinds.values() if not kind.startswith("numba on ")}
    if not others or len(others) == len(set(kinds.values())):
        return kinds
    library, _, device = min(others).partition(" on ")
    if len(others) > 1 or library in ("numpy", "torch", "cupy"):
        return kinds
    return {name: min(others) if kind == f"numba on {device}" else kind for name, kind in kinds.items()}


def shape_of(name: str, value: Any) -> tuple[int, ...]:
    """The shape of the caller's array, or of what is read as one."""
    shape = look(value, "shape")
    return tuple(shape) if isinstance(shape, tuple) else read(**{name: value})[0][0].shape


def kind_of(name: str, value: Any) -> str:
    """Whose array this is and where it lives, as errors say it: ``"torch on cuda:0"``; empty for what is no array."""
    type_of: Any = type(value)
    library = _library(type_of)
    if library == "numconv" and hasattr(value, "place"):
        return str(value.place.kind)
    containers.refuse(name, value)
    if library == "torch" and hasattr(value, "detach"):
        device = value.device
        if device.type not in ("cpu", "cuda"):
            raise TypeError(f"{name} lives on the device {device}; numconv computes on CPUs and CUDA GPUs")
        return _kind_of_tensor(device)
    if issubclass(type_of, np.ndarray):
        return "numpy"
    if look(value, "__dlpack_device__") is not None:
        kind, device = ask(name, "an array", value, _dlpack_device)
        if kind in _DLPACK_CUDA:
            return f"{library} on cuda:{device}"
        if kind not in _DLPACK_CPU:
            raise TypeError(
                f"{name} lives on a device other than a CPU or a CUDA GPU ({type(value).__name__}, DLPack's device "
                f"type {int(kind)})"
            )
        return "numpy"
    interface = look(value, "__cuda_array_interface__")
    if interface is not None:
        return f"{library} on cuda:{ask(name, 'an array', value, partial(_device_by_address, interface))}"
    return "numpy" if any(look(value, way) is not None for way in ("__array__", "__array_interface__")) else ""


@lru_cache(maxsize=64)
def _kind_of_tensor(device: Any) -> str:
    return f"torch on {device}"


@lru_cache(maxsize=1024)
def _library(kind: Any) -> str:
    """The library that a type is of; torch for what is made from its tensors, too."""
    return "torch" if containers.is_of_torch(kind) else str(kind.__module__).partition(".")[0]


def _dlpack_device(value: Any) -> tuple[int, int]:
    kind, device = value.__dlpack_device__()
    return int(kind), int(device)


def _device_by_address(interface: dict[str, Any], value: Any) -> int:
    """The GPU of an array that says no more than its address, which the driver knows."""
    device = getattr(getattr(value, "device", None), "id", None)
    address = interface["data"][0]
    if device is None and address and not no_cuda():
        device = backend("cuda", "driver").DRIVER.device_at(address)
    return device or 0


#: Device types of dlpack.h: kDLCPU and kDLCUDAHost; kDLCUDA and kDLCUDAManaged.
_DLPACK_CPU, _DLPACK_CUDA = (1, 3), (2, 13)


def _as_is(result: Any) -> Any:
    return result


def _way_to(out: Any) -> Callable[[np.ndarray], Any]:
    return _as_is if out is None else lambda result: out


def _to_torch(result: np.ndarray) -> Any:
    return sys.modules["torch"].from_numpy(result)


def _read_gpu(arguments: dict[str, Any], kinds: dict[str, str], kind: str) -> tuple[list[Any], Callable[[Any], Any]]:
    """The same for arrays on a GPU; lists and numbers beside them are sent there."""
    if no_cuda():
        name = next(iter(kinds))
        raise RuntimeError(f"{name} lives on a GPU ({kind}), but numconv cannot use it: {no_cuda()}")
    rooms = backend("cuda", "places")
    own = [value for value in arguments.values() if type(value) is rooms.DeviceArray]
    place = own[0].place if own else rooms.place_of(kind)
    arrays = []
    for name, value in arguments.items():
        if value is None or type(value) is rooms.DeviceArray:
            arrays.append(value)
        elif name in kinds:
            arrays.append(rooms.read(place, name, value))
        else:
            arrays.append(place.bring(_read_host(name, value)))
    out = arguments.get("out")
    if out is None:
        return arrays, _as_is if own else place.give

    def give_out(result: Any) -> Any:
        place.settle()
        return out

    return arrays, give_out


def _read_host(name: str, value: Any) -> np.ndarray:
    if issubclass(type(value), np.ndarray):
        viewed: np.ndarray = value.view(np.ndarray)
        return viewed
    how = np.asarray if look(value, "__dlpack_device__") is None else np.from_dlpack
    array: np.ndarray = ask(name, "an array", value, how)
    if array.dtype.kind in "OSU" and not issubclass(type(value), np.generic):
        raise TypeError(f"{name} must be an array of numbers, got {described(value)}")
    return array


def _read_torch(name: str, tensor: Any) -> np.ndarray:
    if not containers.is_tensor(tensor):
        return _read_host(name, tensor)
    try:
        array: np.ndarray = tensor.detach().resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError) as error:  # bfloat16, sparse, quantised
        raise TypeError(f"{name} must be a dense tensor of a dtype NumPy has, got {tensor.dtype}: {error}") from None
    return array


_on_host: dict[str, tuple[Callable[[str, Any], np.ndarray], Callable[[np.ndarray], Any]]] = {
    "numpy": (_read_host, _as_is), "torch on cpu": (_read_torch, _to_torch),
}  # fmt: skip
