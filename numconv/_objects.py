"""The caller's objects, whatever their methods do: looked at, asked, and shown in messages.

What an object raises while it is read is an error of its argument: a ``TypeError`` that names the argument and has what
was raised as its cause; a ``ValueError`` or a ``MemoryError`` where that was one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Axes that NumPy's arrays have at the most: no argument has more entries.
AXES = 64

#: Types of values that are what they seem, and that a cache can look up as they are.
SCALARS = frozenset({int, float, complex, bool, str, bytes, type(None)})


def ask(name: str, need: str, value: Any, how: Callable[[Any], Any]) -> Any:
    """``how(value)``, which runs code of the caller's object."""
    try:
        return how(value)
    except MemoryError as error:
        raise MemoryError(f"{name} must be {need} that fits memory, got {described(value)}") from error
    except Exception as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{name} must be {need}, got {described(value)}: {shown(error, 240)}") from error


def look(value: Any, attribute: str, default: Any = None) -> Any:
    """An attribute of the caller's object; one that raises when it is looked at is not there."""
    try:
        return getattr(value, attribute, default)
    except Exception:
        return default


def has(kind: Any, method: str) -> bool:
    """Whether objects of a type have this method; those of the type itself, as a class that is iterable, are others."""
    return any(method in base.__dict__ for base in kind.__mro__)


def shown(value: Any, most: int = 120) -> str:
    """A value as messages show it: in one short line, and of an array its shape, not what it holds."""
    kind = type(value)
    if kind in (list, tuple):
        items = [shown(v, most // 2) if most > 30 or type(v) in SCALARS else "..." for v in value[:8]]
        inside = ", ".join(items + ["..."] * (len(value) > 8)) + "," * (kind is tuple and len(value) == 1)
        text = f"[{inside}]" if kind is list else f"({inside})"
    elif kind is int and value.bit_length() > 3 * most:
        text = f"an int of {value.bit_length()} bits"
    elif issubclass(kind, np.ndarray):
        text = f"an array of shape {value.shape} and dtype {value.dtype}"
    elif issubclass(kind, np.dtype):
        text = str(value)
    elif kind in (str, bytes):
        text = repr(value[: most + 1])
    else:
        try:
            text = f"<{kind.__name__}>" if has(kind, "__len__") else repr(value)
        except Exception:
            text = f"<{kind.__name__}>"
    text = " ".join(text[: most + 1].split("\n"))
    return text if len(text) <= most else f"{text[:most]}..."


def described(value: Any) -> str:
    """A value and its type."""
    return value.text if type(value) is Odd else f"{shown(value)} of type {type(value).__name__}"


@dataclass(frozen=True)
class Odd:
    """What stands for a value that is no number, no word and no sequence of these, until its argument refuses it."""

    text: str

    def __repr__(self) -> str:
        return self.text
