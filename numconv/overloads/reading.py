"""What the types of a caller's arguments say, and how their values are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.core.errors import NumbaValueError, TypingError
from numba.extending import register_jitable
from numba.np.numpy_support import as_dtype

from ..arguments import BOUNDARIES, PADDING_NAMES
from ..arrays import as_fill, computed_in, product_dtype
from ..cpu.callers import as_input

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
        raise TypingError(f"{name} must be an array, got {value}")
    if axes and value.ndim not in axes:
        raise TypingError(f"{name} must have {needs or ' or '.join(map(str, axes))} axes, got {value.ndim}")
    return value


def dtypes(**arrays: types.Array) -> tuple[np.dtype, np.dtype]:
    """The dtype of a product, and the one in which it is computed."""
    for name, value in arrays.items():
        try:
            product_dtype(**{name: as_dtype(value.dtype)})
        except (TypeError, NotImplementedError) as error:
            raise TypingError(str(error)) from None
    dtype = product_dtype(**{name: as_dtype(value.dtype) for name, value in arrays.items()})
    return dtype, computed_in(dtype)


def word(name: str, value: Any, valid: Sequence[str]) -> str:
    """One of the valid words, which has to stand in the source."""
    value = plain(value)
    if not isinstance(value, str):
        raise TypingError(f"{name} must be a literal string, one of {', '.join(map(repr, valid))}, got {value}")
    if value not in valid:
        raise NumbaValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}")
    return value


def refuse(**arguments: Any) -> None:
    """Arguments that there are outside compiled code only."""
    for name, value in arguments.items():
        if plain(value) is not None:
            raise TypingError(f"{name} is not for compiled code, got {plain(value)}")


def ints(name: str, value: Any, d: int) -> None:
    """Refuse what is neither an int nor one int for each axis."""
    known = plain(value)
    if isinstance(known, types.Integer) or (isinstance(known, int) and not isinstance(known, bool)):
        return
    if not is_tuple(known, types.Integer):
        raise TypingError(f"{name} must be an int or a tuple of {d} ints, got {known}")
    if len(known) != d:
        raise TypingError(f"{name} must be an int or {d} ints, one for each spatial axis, got {len(known)}")


def one_int(name: str, value: Any) -> None:
    """Refuse what is no int."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, types.Integer)):
        raise TypingError(f"{name} must be an int, got {value}")


def shape_reader(name: str, value: Any) -> int:
    """How many ints a shape has."""
    if not is_tuple(value, types.Integer):
        raise TypingError(f"{name} must be a tuple of ints, got {plain(value)}")
    return len(value)


def is_tuple(value: Any, kind: Any) -> bool:
    """Whether this is the type of a tuple of such items."""
    return isinstance(value, types.BaseTuple) and all(isinstance(t, kind) for t in value)  # type: ignore[attr-defined]


def padding_of(value: Any, d: int) -> tuple[Any, int]:
    """What gives padding as ints, and the code of a word (-1: none)."""
    known = plain(value)
    if isinstance(known, (str, types.UnicodeType)):
        code = PADDING_NAMES.index(word("padding", value, PADDING_NAMES))
        return register_jitable(lambda given: 0), code
    if is_tuple(known, types.BaseTuple):
        if len(known) != d or not all(len(pair) == 2 and is_tuple(pair, types.Integer) for pair in known):
            raise TypingError(f"padding must have one (lo, hi) pair of ints for each of {d} axes, got {known}")
    else:
        ints("padding", value, d)
    return register_jitable(lambda given: given), -1


def boundary_of(boundary: Any, fill_value: Any, dtype: np.dtype) -> tuple[int, Any]:
    """The code of the boundary, and what reads the constant as a number of ``dtype``."""
    name, fill = word("boundary", boundary, BOUNDARIES), plain(fill_value)
    if name != "constant" and not (isinstance(fill, (int, float, complex)) and fill == 0):
        raise TypingError(f"fill_value is only for boundary='constant', got {fill} with boundary={name!r}")
    number = dtype.type
    if isinstance(fill, types.Type):
        exact = dtype.kind in "fc" or isinstance(fill, (types.Integer, types.Boolean))
        if not isinstance(fill, (types.Number, types.Boolean)) or not exact or (
            isinstance(fill, types.Complex) and dtype.kind != "c"
        ):
            raise TypingError(f"fill_value must be a number that dtype {dtype} can hold, got {fill}")
        return BOUNDARIES.index(name), register_jitable(lambda given: number(given))
    try:
        constant = as_fill(fill, dtype)
    except ValueError as error:
        raise NumbaValueError(str(error)) from None
    return BOUNDARIES.index(name), register_jitable(lambda given: constant)


def reader(value: types.Array, dtype: np.dtype) -> Any:
    """What brings an array into the form of ``cpu.compiled``: flat, contiguous, of this dtype."""
    same = as_dtype(value.dtype) == dtype
    if same and value.layout == "C":
        return register_jitable(lambda given: as_input(given))
    if same:
        return register_jitable(lambda given: as_input(np.ascontiguousarray(given)))
    return register_jitable(lambda given: as_input(np.ascontiguousarray(given).astype(dtype)))


def giver(dtype: np.dtype, computed: np.dtype) -> Any:
    """What makes of the result what was promised."""
    if dtype == computed:
        return register_jitable(lambda result: result)
    if dtype.kind == "b":
        return register_jitable(lambda result: result != 0)
    return register_jitable(lambda result: result.astype(dtype))


def conjugator(dtype: np.dtype) -> Any:
    """What conjugates complex numbers."""
    if dtype.kind == "c":
        return register_jitable(lambda given: as_input(np.conj(given)))
    return register_jitable(lambda given: given)
