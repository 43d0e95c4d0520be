"""Where an array lives decides where numconv computes, and in whose type the result comes back.

No array library is imported here: a caller who has a torch tensor has imported torch.
"""

from __future__ import annotations

import contextvars
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[str, ...] = get_args(Device)

NO_CUDA = "this version of numconv has no CUDA kernels yet"

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
    >>> [(device.name, device.usable) for device in numconv.devices()]
    [('cpu', True), ('cuda', False)]
    """
    return [
        DeviceInfo("cpu", True, "", f"{os.cpu_count()} logical cores"),
        DeviceInfo("cuda", False, NO_CUDA, "NVIDIA GPUs"),
    ]


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
    """The device for host arrays: what the call says, else ``use_device``, else ``NUMCONV_DEVICE``."""
    name = "device"
    if not isinstance(device, str):
        raise TypeError(f"device must be one of {', '.join(map(repr, DEVICES))}, got {device!r}")
    if device == "auto":
        device = _wanted.get() or "auto"
    if device == "auto" and (wish := os.environ.get("NUMCONV_DEVICE")) is not None:
        name, device = "the environment variable NUMCONV_DEVICE", wish
    if device not in DEVICES:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, DEVICES))}, got {device!r}")
    if device == "cuda":
        raise RuntimeError(f"{name} is 'cuda', but no GPU is usable: {NO_CUDA}")
    return "cpu"


@cache
def backend(device: str, room: str) -> ModuleType:
    """A room of a device's backend, imported on first use."""
    return import_module(f"numconv.{device}.{room}")


_OPTIONAL = ("bias", "out")


def read(**arguments: Any) -> tuple[list[Any], Callable[[np.ndarray], Any]]:
    """The caller's arrays as NumPy arrays without a copy, and the way back for the result.

    Arguments named ``bias`` and ``out`` may be ``None`` and stay so; the way back of a call with ``out=`` gives
    ``out`` itself.
    """
    for name, value in arguments.items():
        if type(value) is not np.ndarray and (value is not None or name not in _OPTIONAL):
            break
    else:  # the common case, in one look
        return list(arguments.values()), _way_to(arguments.get("out"))
    arrays, kinds = [], {}
    for name, value in arguments.items():
        kind, array = _read(name, value)
        if name == "out" and value is not None and not kind:
            raise TypeError(f"out must be an array that can be written to, got {type(value).__name__}")
        arrays.append(array)
        if kind:
            kinds[name] = kind
    if len(set(kinds.values())) > 1:
        raise TypeError(
            "all arrays must live in one place and be of one kind, got "
            + ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
        )
    if arguments.get("out") is not None:
        return arrays, _way_to(arguments["out"])
    return arrays, _ways_back.get(next(iter(kinds.values()), "numpy"), _as_is)


def _as_is(result: np.ndarray) -> np.ndarray:
    return result


def _way_to(out: Any) -> Callable[[np.ndarray], Any]:
    return _as_is if out is None else lambda result: out


def _to_torch(result: np.ndarray) -> Any:
    return sys.modules["torch"].from_numpy(result)


_ways_back: dict[str, Callable[[np.ndarray], Any]] = {"torch on cpu": _to_torch}


def _read(name: str, value: Any) -> tuple[str, Any]:
    if type(value) is np.ndarray:
        return "numpy", value
    if value is None:
        if name in _OPTIONAL:
            return "", None
        raise TypeError(f"{name} must be an array, got None")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost; fill it first: {name}.filled(value)")
    if isinstance(value, np.ndarray):
        return "numpy", value.view(np.ndarray)
    if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach"):
        return _read_torch(name, value)
    if hasattr(value, "__cuda_array_interface__"):
        raise TypeError(f"{name} lives on a GPU ({type(value).__name__}), but {NO_CUDA}")
    if hasattr(value, "__dlpack_device__"):
        if value.__dlpack_device__()[0] != 1:  # kDLCPU in dlpack.h
            raise TypeError(f"{name} lives on a device other than the CPU ({type(value).__name__}), but {NO_CUDA}")
        return "numpy", np.from_dlpack(value)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array, got a {type(value).__name__} that NumPy refuses: {error}") from None
    if array.dtype.kind in "OSU" and not isinstance(value, np.generic):
        raise TypeError(f"{name} must be an array of numbers, got {type(value).__name__}")
    return ("numpy" if hasattr(value, "__array__") or hasattr(value, "__array_interface__") else ""), array


def _read_torch(name: str, tensor: Any) -> tuple[str, np.ndarray]:
    if tensor.device.type != "cpu":
        raise TypeError(f"{name} lives on the device {tensor.device}, but {NO_CUDA}")
    try:
        return "torch on cpu", tensor.detach().resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError) as error:  # bfloat16, sparse, quantised
        raise TypeError(f"{name} must be a dense tensor of a dtype NumPy has, got {tensor.dtype}: {error}") from None
