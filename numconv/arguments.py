"""Reading the caller's arguments: ints, shapes, words and the spellings of padding, each with a clear error.

A value is made plain first (``frozen``); no other code of the caller's runs, and what is kept or compared is plain.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Mapping, Sequence, Set
from itertools import islice
from typing import Any, Literal, cast, get_args

import numpy as np

from . import containers
from ._indexing import FAR, FULL, MIDDLE, VALID, padding_of
from ._objects import AXES, SCALARS, Odd, ask, described, has, look, shown

Boundary = Literal["constant", "edge", "reflect", "symmetric", "wrap"]
PaddingName = Literal["valid", "same", "same_lower", "full"]
Mode = Literal["full", "same", "valid"]
Precision = Literal["ieee", "tf32", "tf32x3"]
Ints = int | Sequence[int]
Padding = int | Sequence[int] | Sequence[tuple[int, int]] | PaddingName

BOUNDARIES: tuple[str, ...] = get_args(Boundary)
PADDING_NAMES: tuple[str, ...] = get_args(PaddingName)
MODES: tuple[str, ...] = get_args(Mode)
PRECISIONS: tuple[str, ...] = get_args(Precision)
MODE_PADDING = {"full": FULL, "same": MIDDLE, "valid": VALID}


def frozen(value: Any, name: str, depth: int = 2) -> Any:
    """A value of plain types that a cache can look up: numbers, words and tuples of these; ``Odd`` for anything else.

    Arrays and sequences become tuples; arrays without axes and objects that are ints or floats, the number they are.
    """
    kind: Any = type(value)
    if kind in SCALARS:
        return value
    if kind not in (tuple, list):
        if issubclass(type(shape := look(value, "shape")), tuple) and not shape:
            containers.refuse(name, value)
            item = ask(name, "a number", value, lambda value: value.item())
            return item if type(item) in SCALARS or isinstance(item, np.inexact) else Odd(described(value))
        if issubclass(kind, str):
            return str.__str__(value)
        if issubclass(kind, (bytes, bytearray)):
            return bytes(value)
        if issubclass(kind, (Set, Mapping)) or not has(kind, "__iter__"):
            return _single(value, name)
    if not depth:
        return Odd(described(value))
    if kind not in (tuple, list):
        value = ask(name, "a value or a sequence", value, lambda value: list(islice(value, AXES + 1)))
    if len(value) > AXES:
        raise ValueError(f"{name} must have at most {AXES} entries, got more")
    return tuple([frozen(item, name, depth - 1) for item in value])


def _single(value: Any, name: str) -> Any:
    """The number that an object is, as one of Python's own types."""
    kind = type(value)
    if has(kind, "__index__"):
        return ask(name, "an int", value, operator.index)
    if has(kind, "__float__") or has(kind, "__complex__"):
        return ask(name, "a number", value, _number)
    return Odd(described(value))


def _number(value: Any) -> Any:
    if not has(type(value), "__float__"):
        return complex(value)
    number = float(value)
    return int(value) if number.is_integer() and has(type(value), "__int__") else number  # however large


def as_int(name: str, value: Any, least: int, limit: int = FAR) -> int:
    """``value`` as an int that is at least ``least`` and below ``limit``, or an error that names the argument."""
    number = value if type(value) is int else frozen(value, name)
    if not isinstance(number, int):
        raise TypeError(f"{name} must be an int, got {described(value)}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(number)}")
    if number >= limit:
        raise ValueError(f"{name} must be below 2**{limit.bit_length() - 1}, got {shown(number)}")
    return int(number)


def as_number(name: str, value: Any) -> Any:
    """``value`` if it is one number of any type; an array without axes gives its item."""
    if type(value) in SCALARS or issubclass(type(value), np.generic):
        number = value
    elif issubclass(type(value), np.ndarray) and not value.ndim:
        containers.refuse(name, value)
        number = value[()]
    else:
        number = frozen(value, name)
    if not isinstance(number, (int, float, complex, np.number, np.bool_)) or isinstance(number, np.timedelta64):
        raise TypeError(f"{name} must be a number, got {described(value)}")
    return number


def as_real(name: str, value: Any) -> float:
    """``value`` as a finite float that is not negative."""
    number = frozen(value, name)
    if not isinstance(number, (int, float, np.floating)):
        raise TypeError(f"{name} must be a number, got {described(value)}")
    if not 0 <= number <= sys.float_info.max:
        raise ValueError(f"{name} must be finite and at least 0, got {shown(number)}")
    return float(number)


def as_flag(name: str, value: Any) -> bool:
    """``value`` as a bool; 0 and 1 are as good."""
    if type(value) is bool:
        return value
    flag = frozen(value, name)
    if not isinstance(flag, int):
        raise TypeError(f"{name} must be True or False, got {described(value)}")
    if flag not in (0, 1):
        raise ValueError(f"{name} must be True or False, got {shown(flag)}")
    return bool(flag)


def as_path(name: str, value: Any) -> str:
    """``value`` as the path of a file; a number would be one that is open already."""
    need = "the path of a file"
    if not issubclass(type(value), (str, bytes, os.PathLike)):
        raise TypeError(f"{name} must be {need}, got {described(value)}")
    path: str = ask(name, need, value, lambda value: os.fsdecode(os.fsencode(value)))
    if "\0" in path or not path:
        raise ValueError(f"{name} must be {need}, got {shown(path)}")
    return path


def as_shape(name: str, value: Any, least: int = 0) -> tuple[int, ...]:
    """``value`` as a tuple of ints, each at least ``least``."""
    plain = type(value) is tuple and value and {int}.issuperset(map(type, value))  # most are
    if plain and least <= min(value) and max(value) < FAR and len(value) <= AXES:
        return cast(tuple[int, ...], value)
    values = frozen(value, name)
    if not isinstance(values, tuple):
        raise TypeError(f"{name} must be a sequence of ints, got {described(value)}")
    return tuple(as_int(f"{name}[{i}]", v, least) for i, v in enumerate(values))


def per_axis(name: str, value: Any, d: int, least: int) -> tuple[int, ...]:
    """An int for every axis, or one int for each of the ``d`` axes."""
    value = frozen(value, name)
    if not isinstance(value, tuple):
        return (as_int(name, value, least),) * d
    values = as_shape(name, value, least)
    if len(values) != d:
        raise ValueError(
            f"{name} must be an int or {d} ints, one for each spatial axis, got {len(values)}: {shown(values)}"
        )
    return values


def one_of(name: str, value: Any, valid: Sequence[str]) -> str:
    """``value``, which must be one of the valid words, as a plain one."""
    word = frozen(value, name)
    if type(word) is str and word in valid:
        return word
    error = ValueError if type(word) is str else TypeError
    raise error(f"{name} must be one of {', '.join(map(repr, valid))}, got {shown(word)}")


def as_padding(
    padding: Any, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Padding in any of its spellings as a ``(lo, hi)`` pair for each axis; ``padding_of`` says what a word means."""
    d, padding = len(kernel), frozen(padding, "padding")
    if isinstance(padding, str):
        word = PADDING_NAMES.index(one_of("padding", padding, PADDING_NAMES))
        return tuple(padding_of(word, *axis) for axis in zip(size, kernel, stride, dilation, strict=True))
    if not isinstance(padding, tuple):
        return ((as_int("padding", padding, 0),) * 2,) * d
    if len(padding) != d:
        raise ValueError(
            f"padding must be an int, {d} ints, {d} (lo, hi) pairs or one of "
            f"{', '.join(map(repr, PADDING_NAMES))}, got {shown(padding)}"
        )
    pairs = []
    for a, value in enumerate(padding):
        if isinstance(value, tuple):
            pair = as_shape(f"padding[{a}]", value)
            if len(pair) != 2:
                raise ValueError(f"padding[{a}] must be an int or a (lo, hi) pair, got {shown(value)}")
            pairs.append(pair)
        else:
            pairs.append((as_int(f"padding[{a}]", value, 0),) * 2)
    return tuple(pairs)


def mode_padding(mode: str, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """SciPy's modes as padding: ``same`` is the middle of ``full``, counted from ``(k - 1) // 2``.

    With a stride the result is every stride-th value of that.
    """
    word = MODE_PADDING[one_of("mode", mode, MODES)]
    return tuple(padding_of(word, 0, k, 1, dil) for k, dil in zip(kernel, dilation, strict=True))


def spatial_size(name: str, value: Any, d: int | None = None) -> tuple[int, ...]:
    """A ``kernel_size``, ``input_size`` or ``output_size``: an int for one axis (or each of ``d``), or one per axis."""
    least, value = 1 if name == "kernel_size" else 0, frozen(value, name)
    return as_shape(name, value, least) if isinstance(value, tuple) else per_axis(name, value, d or 1, least)
