"""float16 as its bits, which is how callers that are compiled have it: to float32 and back, as NumPy rounds.

In whole numbers, since processors without such instructions have no code for it in LLVM's library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import extending, types

from .._jit import helper
from ..callers import room
from .tables import launcher

intrinsic: Any = extending.intrinsic  # numba adds the context to calls, which its types do not know

FLOAT, HALF = np.dtype(np.float32), np.dtype(np.uint16)

#: By how much the exponent of float32 counts further; what digits of float16 lie behind in those of float32; the bits
#: of float32 for infinity, for 2**16, which is past all numbers of float16, and for 2**-14, its least with all digits.
BIAS, DIGITS, INFINITY, PAST, LEAST = 112 << 23, 13, 255 << 23, 143 << 23, 113 << 23


def _as(kind: Any) -> Any:
    @intrinsic
    def bits_as(typing_context, value):
        def codegen(context, builder, signature, values):
            return builder.bitcast(values[0], context.get_value_type(kind))

        return kind(value), codegen

    return bits_as


as_bits, as_float = _as(types.uint32), _as(types.float32)


@helper
def float_of(half):
    """The float32 of these bits."""
    bits = np.uint32(half)
    sign, size = (bits & 0x8000) << 16, bits & 0x7FFF
    number = np.uint32((size << DIGITS) + BIAS)
    if size >= 0x7C00:  # infinity or NaN
        number = np.uint32(number + BIAS)
    if size < 0x400:  # a multiple of 2**-24
        number = as_bits(np.float32(size) * np.float32(2.0**-24))
    return as_float(np.uint32(sign | number))


@helper
def half_of(number):
    """The bits of the float16 nearest to a float32, of two such the even one; what is too large is infinity."""
    bits = as_bits(number)
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    half = (size - BIAS + 0xFFF + ((size >> DIGITS) & 1)) >> DIGITS
    if size < LEAST:  # the sum rounds to multiples of 2**-24
        half = np.int64(as_bits(as_float(np.uint32(size)) + np.float32(0.5))) - (126 << 23)
    if size >= PAST:
        half = np.int64(0x7C00)
    if size > INFINITY:
        half = 0x7C00 | max((size >> DIGITS) & 0x3FF, 1)
    return np.uint16(sign | half)


@helper
def odd(number):
    """A float64 as a float32 that rounds to the float16 nearest to it: of its two neighbours the one whose last bit is
    set, unless it is a float32."""
    near = np.float32(number)
    bits = as_bits(near)
    if abs(number) < np.inf and np.float64(near) != number and bits & 1 == 0:
        near = as_float(np.uint32(bits - 1 if abs(np.float64(near)) > abs(number) else bits + 1))
    return near


@launcher
def widened(halves):
    """The numbers of these bits as float32."""
    floats = room(halves.size, FLOAT)
    for i in range(halves.size):
        floats[i] = float_of(halves[i])
    return floats


@launcher
def narrowed(floats):
    """The bits of float32, or of float64, as float16."""
    halves = room(floats.size, HALF)
    for i in range(floats.size):
        halves[i] = half_of(odd(floats[i]))
    return halves
