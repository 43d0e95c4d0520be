"""Arrays that mean more than their numbers: refused with a word on what to do, since nothing may be lost in silence.

No library is imported here: a type says where it comes from.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import numpy as np

from . import _memory
from ._objects import AXES, ask, look

#: What a container of a library would lose, and what gives its numbers, by the package that its type or a parent is of.
LOST: dict[str, tuple[str, str]] = {
    "xarray": ("labels", "give the data of one array, as {x}.data, which may be Dask's, and label the result"),
    "pandas": ("index", "give its numbers, {x}.to_numpy()"),
    "polars": ("columns and gaps", "give its numbers, {x}.to_numpy()"),
    "pyarrow": ("gaps", "give its numbers, {x}.to_numpy()"),
    "modin": ("index", "give its numbers, {x}.to_numpy()"),
    "cudf": ("index", "give its numbers, {x}.to_cupy()"),
    "netCDF4": ("gaps", "read it, {x}[...], and fill them"),
    "autograd": ("derivative", "numconv.interop.autograd has differentiable functions"),
}

#: Of these packages the sparse arrays only.
SPARSE = ("scipy", "sparse", "cupyx")

#: Items of lists that are told in one look.
PLAIN = frozenset({int, float, complex, bool, str, bytes, np.ndarray, *np.sctypeDict.values()})


def refuse(name: str, value: Any) -> None:
    """Raise if ``value`` carries a mask, a unit, labels, gaps, a derivative: what bare numbers have not.

    Refused as well are sparse and lazy arrays, which would be made dense and computed, and lists that hold any of
    these.
    """
    kind: Any = type(value)
    if kind in PLAIN:
        return
    if kind in (list, tuple):
        if not PLAIN.issuperset(map(type, value)):
            count = _refuse_nested(name, value, {}, 1)
            _memory.require(8 * count, f"{name}, nested lists of {count:,} items,", "give an array")
        return
    if issubclass(kind, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost; fill it first: {name}.filled(value)")
    packages = _packages(kind)
    if "torch" in packages:
        _refuse_tensor(name, value)
        return
    what = f"{name} is a {kind.__name__} of {packages[0]}"
    if "dask" in packages:
        if look(value, "to_dask_array"):
            raise TypeError(f"{what}, whose index would be lost; give its numbers, {name}.to_dask_array(lengths=True)")
        raise TypeError(f"{name} is a Dask array, not taken here; {name}.compute() is one in memory")
    for package in packages:
        if package in LOST:
            lost, instead = LOST[package]
            raise TypeError(f"{what}, whose {lost} would be lost; {instead.format(x=name)}")
        if package in SPARSE and look(value, "nnz") is not None:
            dense = "toarray" if look(value, "toarray") else "todense"
            raise TypeError(f"{what}, a sparse array where a dense one is needed: {name}.{dense}()")
    for attribute in ("unit", "units"):
        unit = look(value, attribute)
        if unit is not None and not callable(unit):
            numbers = next((way for way in ("value", "magnitude") if look(value, way) is not None), "data")
            unit = ask(f"the unit of {name}", "a word", unit, str)
            raise TypeError(
                f"{what}, whose unit ({unit}) would be lost; give its numbers, {name}.{numbers}, and put the unit on "
                "the result"
            )
    mask = look(value, "mask")
    if mask is not None and not callable(mask):
        raise TypeError(f"{what}, whose mask would be lost; fill it first: {name}.filled(value)")
    if _computes_itself(kind):
        raise TypeError(
            f"{what}, which tells NumPy how to compute with it (__array_ufunc__), and that would be lost; give its "
            f"numbers alone, as numpy.asarray({name}) may do"
        )


def _refuse_nested(name: str, items: Any, counted: dict[int, int], depth: int) -> int:
    """The same for what lists hold; how many items that is. Each list is looked at once, however often it is there."""
    if depth > AXES:
        raise ValueError(f"{name} must be an array, got lists more than {AXES} deep")
    if id(items) not in counted:
        counted[id(items)] = -1  # until it is known
        if PLAIN.issuperset(map(type, items)):
            count = len(items)
        else:
            count = 0
            for item in items:
                if type(item) in (list, tuple):
                    count += _refuse_nested(name, item, counted, depth + 1)
                else:
                    refuse(name, item)
                    count += 1
        counted[id(items)] = count
    if counted[id(items)] < 0:
        raise ValueError(f"{name} must be an array, got a list that holds itself")
    return counted[id(items)]


@lru_cache(maxsize=1024)
def _packages(kind: Any) -> list[str]:
    """The packages that a type and its parents come from, without those of every type."""
    found = dict.fromkeys(str(base.__module__).partition(".")[0] for base in kind.__mro__)
    return [package for package in found if package not in ("builtins", "numpy")] or ["numpy"]


def is_of_torch(kind: Any) -> bool:
    """Whether a type is one of torch's, or made from one."""
    return "torch" in _packages(kind)


def is_tensor(value: Any) -> bool:
    """Whether this is a tensor of torch, or of a type made from it."""
    return is_of_torch(type(value)) and hasattr(value, "detach")


@lru_cache(maxsize=1024)
def _computes_itself(kind: Any) -> bool:
    """Whether a type has arithmetic of its own, as NumPy's protocol says; those on a GPU have it of necessity."""
    own = getattr(kind, "__array_ufunc__", np.ndarray.__array_ufunc__)
    return own is not np.ndarray.__array_ufunc__ and not hasattr(kind, "__cuda_array_interface__")


def _has_tangent(tensor: Any) -> bool:
    """Whether torch differentiates a tensor forwards, which it does inside of levels alone: none is -1."""
    forward_ad = sys.modules.get("torch.autograd.forward_ad")
    if forward_ad is None or getattr(forward_ad, "_current_level", 0) < 0:
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None


def _refuse_tensor(name: str, tensor: Any) -> None:
    """Refuse what torch differentiates, as its own ``numpy()`` does, and what has a mask."""
    if hasattr(tensor, "get_mask"):
        raise TypeError(f"{name} is a masked tensor, whose mask would be lost; fill it first: {name}.to_tensor(value)")
    backward = getattr(tensor, "requires_grad", False) and sys.modules["torch"].is_grad_enabled()
    if backward or _has_tangent(tensor):
        raise TypeError(
            f"{name} is a tensor that torch differentiates, and the gradient would be lost: the functions of "
            f"numconv.interop.torch keep it; without any, give {name}.detach() or call under torch.no_grad()"
        )
