"""Which dtype a call computes in, and the lines that bring arrays and numbers into it and results out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core.errors import NumbaValueError, TypingError
from numba.extending import register_jitable
from numba.np.numpy_support import as_dtype, from_dtype

from ..arguments import BOUNDARIES
from ..arrays import as_fill, computed_in, sum_dtype
from ..cpu.addresses import through
from ..cpu.callers import as_input, nothing
from ..cpu.compiled.halves import half_of, narrowed, odd, widened
from . import halves
from .reading import plain, word

HALF, FLOAT, COMPLEX = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.complex128)

to_floats, to_halves = through(widened), through(narrowed)


def stored(dtype: np.dtype) -> np.dtype:
    """The dtype of arrays within the lines of a call: of float16 there are the bits."""
    return np.dtype(np.uint16) if dtype == HALF else dtype


def computing(given: Any, **arrays: types.Array | None) -> tuple[np.dtype, list[Any], Any]:
    """The dtype in which a product is computed, what reads each of its arrays, and what gives the result.

    The result is of the dtype that is ``given`` by ``dtype=``, if there is one. Arrays that lose by a cast to that are
    cast to it first. For an array that is ``None`` there is nothing to read.
    """
    try:
        dtype = named(given)
        owns = {name: as_dtype(value.dtype) for name, value in arrays.items() if value is not None}
        sums = sum_dtype(dtype, None, **owns)
    except (TypeError, NotImplementedError) as error:
        raise TypingError(str(error)) from None
    computed = computed_in(sums)
    readers = [
        nothing(computed) if value is None
        else reader(value, computed) if dtype is None or np.can_cast(owns[name], sums, "safe")
        else reader(value, sums, computed)
        for name, value in arrays.items()
    ]
    return computed, readers, giver(sums, computed)


def named(given: Any) -> np.dtype | None:
    """What ``dtype=`` says."""
    known = plain(given)
    if isinstance(known, types.DTypeSpec):
        return as_dtype(known.dtype)
    if isinstance(known, types.Function) and known.typing_key in (bool, int, float, complex):
        known = known.typing_key
    if isinstance(known, types.Type):
        raise TypingError(f"dtype must be known to the compiler, as np.float64 or 'float64' in the source, got {known}")
    return None if known is None else np.dtype(known)


def caster(old: np.dtype, new: np.dtype) -> Any:
    """What casts a flat array."""
    if old == new:
        return register_jitable(lambda flat: flat)
    if old == HALF:
        cast = caster(FLOAT, new)
        return register_jitable(lambda flat: cast(to_floats((as_input(flat),))))
    if new == HALF and old not in (FLOAT, np.float64):
        return register_jitable(lambda flat: to_halves((as_input(flat.astype(FLOAT)),)))  # whole numbers
    if new == HALF:
        return register_jitable(lambda flat: to_halves((as_input(flat),)))
    if new.kind == "b":
        return register_jitable(lambda flat: flat != 0)
    return register_jitable(lambda flat: flat.astype(new))


def reader(value: types.Array, *dtypes: np.dtype) -> Any:
    """What brings an array into the form of ``cpu.compiled``: flat, contiguous, cast to these dtypes one by one."""
    dtype = as_dtype(value.dtype)
    bits = stored(dtype)
    if dtype == HALF:
        read = register_jitable(lambda given: np.ascontiguousarray(given.view(bits)))
    elif not value.aligned:
        read = register_jitable(lambda given: given.copy())
    elif value.layout == "C":
        read = register_jitable(lambda given: given)
    else:
        read = register_jitable(lambda given: np.ascontiguousarray(given))
    read = then(read, register_jitable(lambda given: as_input(given)))
    for new in dtypes:
        if new != dtype:
            read = then(read, caster(dtype, new))
        dtype = new
    return read


def then(first: Any, second: Any) -> Any:
    """One after the other."""
    return register_jitable(lambda given: as_input(second(first(given))))


def giver(dtype: np.dtype, computed: np.dtype) -> Any:
    """What makes of the result what was promised."""
    cast = caster(computed, dtype)
    if dtype == HALF:
        return register_jitable(lambda result: cast(result).view(HALF))
    return cast


def conjugator(dtype: np.dtype) -> Any:
    """What conjugates complex numbers."""
    if dtype.kind == "c":
        return register_jitable(lambda given: as_input(np.conj(given)))
    return register_jitable(lambda given: given)


def boundary_of(boundary: Any, fill_value: Any, dtype: np.dtype) -> tuple[Any, Any]:
    """What gives the code of the boundary, and what reads the constant as a number of ``dtype``."""
    name = word("boundary", boundary, BOUNDARIES)
    code, error = BOUNDARIES.index(name), "fill_value is only for boundary='constant'"
    read, differs = filler(fill_value, dtype)
    if name == "constant" or differs is False:
        return register_jitable(lambda fill_value: code), read
    if differs:
        raise TypingError(f"{error}, got {plain(fill_value)} with boundary={name!r}")
    number, _ = filler(fill_value, COMPLEX)

    def checked(fill_value):
        if number(fill_value) != 0:
            raise ValueError(error)
        return code

    return register_jitable(checked), read


def filler(value: Any, dtype: np.dtype) -> tuple[Any, bool | None]:
    """What reads ``fill_value`` as a number of ``dtype``, and whether it is one other than 0, where that is known.

    The compiler knows ints that stand in the source, and defaults; other numbers are looked at as the code runs.
    """
    known = plain(value)
    if isinstance(known, (int, float, complex, np.generic)):
        try:
            constant = np.array(as_fill(known, dtype), dtype).view(stored(dtype))[()]
        except ValueError as error:
            raise NumbaValueError(str(error)) from None
        return register_jitable(lambda given: constant), bool(known != 0)
    if isinstance(known, types.Array) and known.ndim == 0:
        read, differs = filler(known.dtype, dtype)
        return register_jitable(lambda given: read(given[()])), differs
    if isinstance(known, types.Type) and known == from_dtype(dtype) and dtype.kind in "mM":
        return register_jitable(lambda given: given), True
    if known == types.float16:
        raise TypingError(f"fill_value must be a number that numba has: {halves.INSTEAD}")
    if not isinstance(known, (types.Number, types.Boolean)):
        raise TypingError(f"fill_value must be a number that dtype {dtype} can hold, got {known!r}")
    return number_of(known, dtype), None


def number_of(kind: Any, dtype: np.dtype) -> Any:
    """What makes a number of ``dtype`` of one of this type; whole numbers and truth stay what they are."""
    error = f"fill_value must be a value that dtype {dtype} can hold"
    if isinstance(kind, types.Complex) and dtype.kind != "c":
        real = number_of(kind.underlying_float, dtype)

        def of_complex(given):
            if given.imag != 0:
                raise ValueError(error)
            return real(given.real)

        return register_jitable(of_complex)
    number = dtype.type
    if dtype == HALF:
        return register_jitable(lambda given: half_of(odd(np.float64(given))))
    if dtype.kind in "fc":
        return register_jitable(lambda given: number(given))
    whole = not isinstance(kind, types.Float)
    bits = 1 if dtype.kind == "b" else dtype.itemsize * 8 - (dtype.kind == "i")
    low, high = -(2.0**bits) if dtype.kind == "i" else 0.0, 2.0**bits

    def exactly(given):
        if not (whole or low <= given < high) or number(given) != given:
            raise ValueError(error)
        return number(given)

    return register_jitable(exactly)
