"""What the types of a caller's arguments say, and how their values are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import types
from numba.core.errors import NumbaValueError, TypingError
from numba.extending import register_jitable

from ..arguments import PADDING_NAMES, as_flag
from ..cpu.callers import as_bool

#: What ``algorithm=`` may be here.
ALGORITHMS = ("auto", "implicit")


def plain(value: Any) -> Any:
    """What stands in the source or as a default where that is known, else the type."""
    if isinstance(value, types.Omitted):
        return value.value
    if isinstance(value, types.Literal):
        return value.literal_value
    if isinstance(value, types.NoneType):
        return None
    return value


def array(name: str, value: Any, *axes: int, needs: str = "") -> types.Array:
    """The type of an array argument with so many axes."""
    if not isinstance(value, types.Array):
        raise TypingError(f"{name} must be an array, as np.array makes one, got {plain(value)}")
    if axes and value.ndim not in axes:
        raise TypingError(f"{name} must have {needs or ' or '.join(map(str, axes))} axes, got {value.ndim}")
    return value


def word(name: str, value: Any, valid: Sequence[str]) -> str:
    """One of the valid words, which has to stand in the source."""
    value = plain(value)
    if not isinstance(value, str):
        raise TypingError(
            f"{name} must be a literal string, one of {', '.join(map(repr, valid))}, got {value}; "
            f"of an argument numba.literally({name}) makes one"
        )
    if value not in valid:
        raise NumbaValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}")
    return value


def refuse(**arguments: Any) -> None:
    """Arguments that there are outside compiled code only."""
    for name, value in arguments.items():
        if plain(value) is not None:
            raise TypingError(f"{name} is not for compiled code, got {plain(value)}")


def is_int(value: Any) -> bool:
    """Whether this is an int or a bool, known to the compiler, or the type of one."""
    return isinstance(value, (int, types.Integer, types.Boolean))


def ints(name: str, value: Any, d: int) -> None:
    """Refuse what is neither an int nor one int for each axis."""
    known = plain(value)
    if is_int(known):
        return
    if not is_tuple(known):
        raise TypingError(f"{name} must be an int or a tuple of {d} ints, got {known}")
    if len(known) != d:
        raise TypingError(f"{name} must be an int or {d} ints, one for each spatial axis, got {len(known)}")


def one_int(name: str, value: Any) -> None:
    """Refuse what is no int."""
    if not is_int(plain(value)):
        raise TypingError(f"{name} must be an int, got {plain(value)}")


def shape_reader(name: str, value: Any) -> int:
    """How many ints a shape has."""
    if not is_tuple(value):
        raise TypingError(f"{name} must be a tuple of ints, got {plain(value)}")
    return len(value)


def is_tuple(value: Any) -> bool:
    """Whether this is the type of a tuple of ints."""
    return isinstance(value, types.BaseTuple) and all(map(is_int, value))  # type: ignore[call-overload]


def flag(name: str, value: Any) -> Any:
    """What gives a bool."""
    known = plain(value)
    if isinstance(known, (types.Integer, types.Boolean)):
        error = f"{name} must be True or False"

        @register_jitable
        def read(given):
            if given != 0 and given != 1:
                raise ValueError(error)
            return as_bool(given)

        return read
    if isinstance(known, types.Type):
        raise TypingError(f"{name} must be a bool, got {known}")
    try:
        constant = as_flag(name, known)
    except (TypeError, ValueError) as wrong:
        raise TypingError(str(wrong)) from None
    return register_jitable(lambda given: constant)


def padding_of(value: Any, d: int) -> tuple[Any, int]:
    """What gives padding as ints, and the code of a word (-1: none)."""
    known = plain(value)
    if isinstance(known, (str, types.UnicodeType)):
        code = PADDING_NAMES.index(word("padding", value, PADDING_NAMES))
        return register_jitable(lambda given: 0), code
    if isinstance(known, types.BaseTuple):
        sides: Any = known  # of ints and pairs
        if len(sides) != d or not all(is_int(side) or (is_tuple(side) and len(side) == 2) for side in sides):
            raise TypingError(f"padding must have one (lo, hi) pair or int for each of {d} axes, got {known}")
    else:
        ints("padding", value, d)
    return register_jitable(lambda given: given), -1
