"""Reading the caller's arrays and delivering results: dtypes, contiguity, ``out=``. Nothing here knows convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from math import copysign, prod
from typing import Any, NamedTuple

import numpy as np

from . import _memory
from ._objects import look, shown

Array = np.ndarray

#: dtypes whose products are computed in another one: float16 in float32; bool by counting, then "any".
COMPUTED_IN: dict[np.dtype, np.dtype] = {
    np.dtype(np.float16): np.dtype(np.float32),
    np.dtype(np.bool_): np.dtype(np.int64),
}

#: Kinds of dtypes by what they hold: truth, whole numbers, fractions, complex numbers.
KINDS = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}


def product_dtype(**arrays: Any) -> np.dtype:
    """The dtype of a product of these arrays (``numpy.result_type``), or an error naming the one that has none."""
    return _product_dtype(**{name: getattr(array, "dtype", array) for name, array in arrays.items()})


@lru_cache(maxsize=1024)
def _product_dtype(**dtypes: np.dtype) -> np.dtype:
    for name, dtype in dtypes.items():
        if dtype.kind not in "biufc" or dtype.itemsize > (16 if dtype.kind == "c" else 8):
            raise TypeError(
                f"{name} must be bool, integer, float16/32/64 or complex64/128 to be multiplied, got dtype {dtype}"
            )
    result: np.dtype = np.result_type(*dtypes.values())
    return result.newbyteorder("=")


def sum_dtype(dtype: Any, out: Any, **arrays: Any) -> np.dtype:
    """The dtype in which the sums of a product of these arrays are kept and returned, as in ``numpy.sum``.

    It is ``dtype`` where one is given, else ``numpy.result_type`` of the arrays, or that and of ``out`` where ``out``
    is wider. ``out`` and the arrays may be dtypes, and ``None``.
    """
    return summands(dtype, out, **arrays)[1] if dtype is None else _given(dtype, arrays)


def summands(dtype: Any, out: Any, **arrays: Any) -> tuple[list[Any], np.dtype]:
    """The arrays and their ``sum_dtype``; those of Dask that lose by a cast that ``dtype=`` asked for are cast.

    NumPy's are when they are made ready, by ``as_summand``, since that takes memory.
    """
    if dtype is None:
        natural = _product_dtype(**{name: getattr(a, "dtype", a) for name, a in arrays.items() if a is not None})
        return list(arrays.values()), natural if out is None else _widened(natural, getattr(out, "dtype", out))
    sums = _given(dtype, arrays)
    here = [array is None or isinstance(array, np.ndarray) or not loses(array, sums) for array in arrays.values()]
    return [a if same else ready(a, sums) for a, same in zip(arrays.values(), here, strict=True)], sums


def loses(array: Array, dtype: np.dtype) -> bool:
    """Whether a cast to ``dtype`` may lose something."""
    return not np.can_cast(array.dtype, dtype, "safe")


def _given(dtype: Any, arrays: dict[str, Any]) -> np.dtype:
    """``dtype=`` of a call with these arrays, of a kind that holds all of them."""
    given = plan_dtype(dtype)
    for name, array in arrays.items():
        have = getattr(array, "dtype", array)
        if have is None:
            continue
        product_dtype(**{name: have})
        if KINDS[have.kind] > KINDS[given.kind]:
            raise TypeError(f"dtype must be of a kind that holds {name}, which is of dtype {have}; got {given}")
    return given


@lru_cache(maxsize=1024)
def _widened(natural: np.dtype, out: np.dtype) -> np.dtype:
    """The dtype of sums of ``natural`` that end in ``out``: that of ``out`` if it is wider."""
    if out.kind not in KINDS or KINDS[out.kind] < KINDS[natural.kind]:
        return natural  # ``check_out`` refuses it
    widest = np.dtype(np.complex128 if out.kind == "c" else np.float64)
    if out.kind in "fc" and out.itemsize > widest.itemsize:
        out = widest  # longdouble has no products
    if out.kind == "c" and natural.kind != "c":
        out = np.empty(0, out).real.dtype  # the sums are real
    wide: np.dtype = np.result_type(natural, out)
    return natural if out.kind in "iu" and wide.kind == "f" else wide  # no integer holds both int64 and uint64


def plan_dtype(dtype: Any, name: str = "dtype") -> np.dtype:
    """``dtype=`` of a plan or of a call, NumPy's or torch's, as a dtype that has products."""
    if type(dtype).__module__ == "torch":
        dtype = str(dtype).removeprefix("torch.")
    try:  # sequences and dicts are of fields, which have no products, and may be endless
        no_dtype = dtype is None or issubclass(type(dtype), (list, tuple, dict))
        found = None if no_dtype else product_dtype(dtype=np.dtype(dtype))
    except MemoryError:
        raise
    except Exception:  # NumPy has many, and a class may have a ``dtype`` of its own
        found = None
    if found is None:
        raise TypeError(f"{name} must be bool, integer, float16/32/64 or complex64/128, got {shown(dtype)}")
    return found


def computed_in(dtype: np.dtype) -> np.dtype:
    """The dtype in which kernels compute a result of ``dtype``."""
    return COMPUTED_IN.get(dtype, dtype)


def stored_in(dtype: np.dtype, device: str) -> np.dtype:
    """The dtype in which arrays of ``dtype`` reach kernels: a GPU's read and write float16 and sum in float32."""
    return dtype if device == "cuda" and dtype == np.float16 else computed_in(dtype)


def plain_steps(array: Array) -> Array:
    """The array with the strides of its shape, if its items lie one behind the other.

    NumPy asks nothing of the stride of an axis with one item, nor of those of an empty array, so they may be anything;
    kernels take steps from strides.
    """
    shape = array.shape
    if (1 in shape or 0 in shape) and array.strides != strides_of(shape, array.itemsize) and array.flags.c_contiguous:
        return array.reshape(1, -1).reshape(shape)
    return array


@lru_cache(maxsize=1024)
def strides_of(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Those of a new array."""
    return tuple(itemsize * prod(shape[a + 1 :]) for a in range(len(shape)))


def ready(array: Array, dtype: np.dtype) -> Array:
    """The array as kernels take it: contiguous, aligned, native, of this dtype. Copies only when it must."""
    if fits(array, dtype):
        return array
    if not isinstance(array, np.ndarray):  # on a GPU
        copy: Array = array.astype(dtype)
        return copy
    return np.require(array, dtype, ["C_CONTIGUOUS", "ALIGNED"])


class Ready(NamedTuple):
    """What an estimate looks at of an array that is still to be made: contiguous, aligned."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many items it has."""
        return prod(self.shape)

    @property
    def flags(self) -> Any:
        """Those of every new array."""
        return _NEW.flags


_NEW = np.empty(1)


def as_summand(array: Array, dtype: np.dtype, computed: np.dtype) -> Array:
    """The array ready in the dtype in which sums of ``dtype`` are computed; with no more digits than ``dtype`` has."""
    return ready(ready(array, dtype) if dtype != computed and loses(array, dtype) else array, computed)


def copied(dtype: np.dtype, *arrays: Array | None) -> int:
    """Bytes that ``ready`` takes for all of them."""
    return sum(a.size * dtype.itemsize for a in arrays if a is not None and not fits(a, dtype))


def zeros_beside(array: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """Zeros to read, where the array is."""
    place: Any = getattr(array, "place", None)
    zeros: Array = place.nothing(shape, dtype) if place else np.zeros(shape, dtype)
    return zeros


def fits(array: Array, dtype: np.dtype) -> bool:
    """Whether kernels take the array as it is."""
    return array.dtype == dtype and (flags := array.flags).c_contiguous and flags.aligned


def as_fill(value: Any, dtype: np.dtype) -> Any:
    """``fill_value`` as a scalar of ``dtype``, or an error if the dtype cannot hold it."""
    if isinstance(value, (int, float)) and value == 0 and copysign(1, value) > 0:  # most are
        return np.zeros((), dtype)[()]
    with np.errstate(all="ignore"):  # of this thread; filters of warnings are those of all
        try:
            given = np.asarray(value)
            fill = (given.real if given.dtype.kind == "c" and dtype.kind != "c" else given).astype(dtype)[()]
        except (TypeError, ValueError, OverflowError):
            fill = None
    if fill is not None:
        exact = dtype.kind in "fc" and (dtype.kind == "c" or complex(value).imag == 0)
        if exact or fill == value:
            return fill
    raise ValueError(f"fill_value must be a value that dtype {dtype} can hold, got {shown(value)}")


def check_shape(name: str, array: Array, need: tuple[int, ...]) -> None:
    """Raise unless the array has this shape."""
    if array.shape != need:
        raise ValueError(f"{name} must have shape {need}, got {array.shape}")


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise unless ``out`` can take a result of this shape and dtype."""
    if not issubclass(type(out), np.ndarray) and look(out, "place") is None:
        raise TypeError(f"out must be an array of shape {shape} and dtype {dtype}, got {type(out).__name__}")
    check_shape("out", out, shape)
    if out.dtype != dtype and (out.dtype.kind in "SU" or not np.can_cast(dtype, out.dtype, "same_kind")):
        raise TypeError(f"out must have a dtype that {dtype} casts to (same_kind), got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")


def deliver(
    compute: Callable[[Array], None], shape: tuple[int, ...], dtype: np.dtype, out: Array | None, *inputs: Array,
    computed: np.dtype | None = None, beside: int = 0, what: str = "the result", instead: str = "use smaller pieces",
    ask: Callable[[int], None] | None = None,
) -> Array:
    """Run ``compute(target)`` and return the result as a new array or in ``out``.

    The target is ``out`` itself where that is safe: same dtype and layout, and no memory shared with an input.
    ``beside`` are bytes that ``compute`` takes itself: all that a call takes is asked for here, before anything is, by
    ``ask`` if it is given.
    """
    computed = computed or dtype
    if out is not None:
        check_out(out, shape, dtype)
    straight = out is not None and takes_straight(out, computed, inputs)
    there: Any = next((getattr(array, "place", None) for array in inputs), None)  # on a GPU
    nbytes = taken(shape, dtype, computed, beside, straight)
    if ask:
        ask(nbytes)
    elif nbytes >= _memory.ALWAYS_THERE:
        rest = f"has {prod(shape) * computed.itemsize:,} bytes, and with what is taken beside it the call"
        named = f"{what} of shape {shape} and dtype {computed} {rest if beside else ''}".rstrip()
        _memory.require(nbytes, named, instead, there.available if there else None)
    if straight:
        target: Any = out
    else:
        target = there.empty(shape, computed) if there else np.empty(shape, dtype=computed)
    compute(target)
    if straight or out is None:
        return as_result(target, dtype)
    np.copyto(out, as_result(target, dtype), casting="same_kind")
    return out


def takes_straight(out: Array, computed: np.dtype, inputs: Iterable[Array]) -> bool:
    """Whether a result can be computed where it is to go."""
    straight = out.dtype == computed and out.dtype.isnative and out.flags.c_contiguous and out.flags.aligned
    return bool(straight) and not any(np.may_share_memory(out, array) for array in inputs)


def taken(
    shape: tuple[int, ...], dtype: np.dtype, computed: np.dtype, beside: int = 0, straight: bool = False
) -> int:
    """Bytes that ``deliver`` takes at its peak: the result as it is computed and, at different times, the rest.

    That is ``beside``, which goes before the result is turned to ``dtype``.
    """
    values = prod(shape)
    turned = values * dtype.itemsize if dtype != computed else 0
    return (0 if straight else values * computed.itemsize) + max(beside, turned)


def as_result(array: Array, dtype: np.dtype) -> Array:
    """What was computed, in the dtype promised: counts to bool, float32 to float16 (too large is infinity)."""
    if array.dtype == dtype:
        return array
    if dtype.kind == "b" and isinstance(array, np.ndarray):
        return array != 0
    with np.errstate(over="ignore"):
        return array.astype(dtype)
