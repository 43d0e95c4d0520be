"""Reading the caller's arguments: ints, shapes, words and the spellings of padding, each with a clear error."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, get_args

from . import containers
from ._indexing import FULL, MIDDLE, VALID, padding_of

Boundary = Literal["constant", "edge", "reflect", "symmetric", "wrap"]
PaddingName = Literal["valid", "same", "same_lower", "full"]
Mode = Literal["full", "same", "valid"]
Ints = int | Sequence[int]
Padding = int | Sequence[int] | Sequence[tuple[int, int]] | PaddingName

BOUNDARIES: tuple[str, ...] = get_args(Boundary)
PADDING_NAMES: tuple[str, ...] = get_args(PaddingName)
MODES: tuple[str, ...] = get_args(Mode)
MODE_PADDING = {"full": FULL, "same": MIDDLE, "valid": VALID}


def as_int(name: str, value: Any, least: int) -> int:
    """``value`` as an int that is at least ``least``, or an error that names the argument."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def as_number(name: str, value: Any) -> Any:
    """``value`` if it is one number of any type; an array without axes gives its item."""
    if getattr(value, "shape", None) == ():
        containers.refuse(name, value)
        value = value[()]
    if hasattr(value, "__len__") or not (hasattr(value, "__complex__") or hasattr(value, "__float__")):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return value


def as_shape(name: str, value: Any, least: int = 0) -> tuple[int, ...]:
    """``value`` as a tuple of ints, each at least ``least``."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name} must be a sequence of ints, got {value!r}")
    return tuple(as_int(f"{name}[{i}]", v, least) for i, v in enumerate(value))


def per_axis(name: str, value: Any, d: int, least: int) -> tuple[int, ...]:
    """An int for every axis, or one int for each of the ``d`` axes."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return (as_int(name, value, least),) * d
    values = as_shape(name, value, least)
    if len(values) != d:
        raise ValueError(f"{name} must be an int or {d} ints, one for each spatial axis, got {len(values)}: {values}")
    return values


def one_of(name: str, value: Any, valid: Sequence[str]) -> str:
    """``value`` if it is one of the valid words."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}")
    if value not in valid:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}")
    return value


def as_padding(
    padding: Any, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Padding in any of its spellings as a ``(lo, hi)`` pair for each axis; ``padding_of`` says what a word means."""
    d = len(kernel)
    if isinstance(padding, str):
        word = PADDING_NAMES.index(one_of("padding", padding, PADDING_NAMES))
        return tuple(padding_of(word, *axis) for axis in zip(size, kernel, stride, dilation, strict=True))
    if isinstance(padding, bytes) or not hasattr(padding, "__iter__"):  # bytes: an error, not a sequence of ints
        return ((as_int("padding", padding, 0),) * 2,) * d
    values = list(padding)
    if len(values) != d:
        raise ValueError(
            f"padding must be an int, {d} ints, {d} (lo, hi) pairs or one of "
            f"{', '.join(map(repr, PADDING_NAMES))}, got {padding!r}"
        )
    pairs = []
    for a, value in enumerate(values):
        if hasattr(value, "__iter__"):
            pair = as_shape(f"padding[{a}]", value)
            if len(pair) != 2:
                raise ValueError(f"padding[{a}] must be an int or a (lo, hi) pair, got {value!r}")
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
    least = 1 if name == "kernel_size" else 0
    return per_axis(name, value, d or 1, least) if not hasattr(value, "__iter__") else as_shape(name, value, least)
