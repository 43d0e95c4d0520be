"""numconv inside other libraries, one room for each: ``numconv.interop.torch``, ``autograd``, ``pylops``, ``dask``.

A room imports its library when it is first used, and nothing here does so before.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
