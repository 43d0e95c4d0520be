"""What compiled code of the caller needs: may it start threads, is there memory, arrays as kernels take them."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.core.errors import RequireLiteralValue
from numba.core.imputils import impl_ret_borrowed
from numba.np.arrayobj import populate_array
from numba.np.numpy_support import as_dtype, from_dtype

from .._memory import ALWAYS_THERE
from . import _jit
from ._jit import ALONE, capped, helper
from .blocks import cache_bytes, item_bytes
from .simd import lanes, panel_width
from .threads import layer, openmp, thread_count
from .words import ASK, AVAILABLE, BELOW, IN_PARALLEL, L2, LAUNCHER, MEMORY, NAME, THREADS, words

intrinsic: Any = extending.intrinsic  # numba adds the context to calls, which its types do not know

_WORD, _STATUS = ir.IntType(64), ir.IntType(32)


def tell(words: np.ndarray) -> None:
    """Fill the words: compiled callers share their work among threads where launches need no turns."""
    team = _jit._launcher()
    if team == ALONE or layer() == "workqueue":
        return
    if layer() == "omp":
        in_parallel = openmp("omp_in_parallel")
        if in_parallel is None:
            return
        words[IN_PARALLEL] = ctypes.cast(in_parallel, ctypes.c_void_p).value
    words[THREADS] = thread_count()
    words[LAUNCHER] = team


def words_in(builder):
    """The words as a module of compiled code names them."""
    size = ir.ArrayType(_WORD, words.size)
    if NAME not in builder.module.globals:
        ir.GlobalVariable(builder.module, size, NAME)
    return builder.module.globals[NAME]


@intrinsic
def _word(typing_context, i):
    """One of the words."""

    def codegen(context, builder, signature, values):
        return builder.load(builder.gep(words_in(builder), [_WORD(0), values[0]]))

    return types.intp(types.intp), codegen


words[L2] = cache_bytes()


@extending.overload(cache_bytes)
def _cache_bytes():
    return lambda: _word(L2)


@intrinsic
def _call_word(typing_context, i):
    """The result of a function whose address is one of the words."""

    def codegen(context, builder, signature, values):
        address = builder.load(builder.gep(words_in(builder), [_WORD(0), values[0]]))
        function = builder.inttoptr(address, ir.FunctionType(_STATUS, []).as_pointer())
        return builder.zext(builder.call(function, []), _WORD)

    return types.intp(types.intp), codegen


@intrinsic
def _is_pythons(typing_context):
    """Whether Python knows this thread. It does not know those that numba has started."""

    def codegen(context, builder, signature, values):
        return pythons(builder)

    return types.boolean(), codegen


def pythons(builder):
    """Whether Python knows this thread."""
    kind = ir.FunctionType(cgutils.voidptr_t, [])
    state = builder.call(cgutils.get_or_insert_function(builder.module, kind, "PyGILState_GetThisThreadState"), [])
    return cgutils.is_not_null(builder, state)


@helper
def team_for(work):
    """The ``team`` of a kernel that compiled code calls: alone in a parallel loop of the caller's, and for little work.

    numba's threads share the work of one loop. A loop within it would start more of them than there are cores, or, on
    the ``workqueue`` layer, end the process.
    """
    if work < _word(BELOW) or not _is_pythons():
        return ALONE
    if _word(LAUNCHER) < 0:
        _call_word(ASK)
    if _word(LAUNCHER) == ALONE or (_word(IN_PARALLEL) != 0 and _call_word(IN_PARALLEL) != 0):
        return ALONE
    return _word(LAUNCHER)


@helper
def threads_of(team):
    """How many threads such a kernel has."""
    return 1 if team == ALONE else _word(THREADS)


@intrinsic
def as_input(typing_context, array):
    """A contiguous array as kernels take their inputs: flat and read-only, so that one compilation serves all."""
    view = types.Array(array.dtype, 1, "C", readonly=True)

    def codegen(context, builder, signature, values):
        source = context.make_array(array)(context, builder, values[0])
        result = context.make_array(view)(context, builder)
        itemsize = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(array.dtype)))
        populate_array(
            result, source.data, [source.nitems], [itemsize], itemsize, source.meminfo, source.parent
        )
        return impl_ret_borrowed(context, builder, view, result._getvalue())

    return view(array), codegen


@intrinsic
def as_table(typing_context, array):
    """A contiguous array as kernels take their tables: read-only."""
    view = array.copy(readonly=True)

    def codegen(context, builder, signature, values):
        return impl_ret_borrowed(context, builder, view, values[0])

    return view(array), codegen


@intrinsic
def spatial(typing_context, rows, padding, d):
    """A table with a column for each of ``d`` axes: padding before and behind, then the rows.

    A row is an int, or a tuple whose last ``d`` ints count; padding an int, or a tuple with an int or a pair for each
    axis. The table lives as long as the function that asks for it.
    """
    if not isinstance(d, types.IntegerLiteral):
        raise RequireLiteralValue("d must be known to the compiler")
    axes, given = d.literal_value, [*rows]
    result = types.Array(types.int64, 2, "C")

    def codegen(context, builder, signature, values):
        def number(value: Any, kind: Any) -> Any:
            if isinstance(kind, types.Omitted):
                return _WORD(int(kind.value))
            return context.cast(builder, value, kind, types.int64)

        def column(value: Any, kind: Any, a: int) -> Any:
            if not isinstance(kind, types.BaseTuple):
                return number(value, kind)
            items: Any = kind
            a += len(items) - axes
            return number(builder.extract_value(value, a), items[a])

        def beside(a: int, side: int) -> Any:
            if not isinstance(padding, types.BaseTuple):
                return number(values[1], padding)
            value, kind = builder.extract_value(values[1], a), padding[a]  # type: ignore[index]
            if isinstance(kind, types.BaseTuple):
                value, kind = builder.extract_value(value, side), kind[side]  # type: ignore[index]
            return number(value, kind)

        table: list[Any] = [beside(a, side) for side in (0, 1) for a in range(axes)]
        for value, kind in zip(cgutils.unpack_tuple(builder, values[0]), given, strict=True):
            table += [column(value, kind, a) for a in range(axes)]
        block = cgutils.alloca_once(builder, ir.ArrayType(_WORD, max(len(table), 1)))
        for i, value in enumerate(table):
            builder.store(value, builder.gep(block, [_WORD(0), _WORD(i)]))
        return _array(context, builder, result, builder.bitcast(block, _WORD.as_pointer()), (len(table) // axes, axes))

    return result(rows, padding, d), codegen


def _array(context, builder, kind, data, shape, meminfo=None):
    """An array over memory that is there."""
    array = context.make_array(kind)(context, builder)
    itemsize = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    shape = [n if isinstance(n, ir.Value) else _WORD(n) for n in shape]
    strides: list[Any] = []
    step = _WORD(itemsize)
    for n in reversed(shape):
        strides.insert(0, step)
        step = builder.mul(step, n)
    populate_array(array, data, shape, strides, _WORD(itemsize), meminfo)
    return array._getvalue()


def _scalar(kind: Any) -> Any:
    @intrinsic
    def read(typing_context, value):
        def codegen(context, builder, signature, values):
            (given,) = signature.args
            if isinstance(given, types.Omitted):
                return context.get_constant(kind, given.value)
            return context.cast(builder, values[0], given, kind)

        return kind(value), codegen

    return read


as_int, as_bool = _scalar(types.int64), _scalar(types.boolean)


def nothing(dtype: np.dtype) -> Any:
    """What gives an empty input, whatever it gets."""
    result = types.Array(from_dtype(dtype), 1, "C", readonly=True)

    @intrinsic
    def empty(typing_context, value):
        def codegen(context, builder, signature, values):
            data = cgutils.get_null_value(context.get_data_type(result.dtype).as_pointer())
            return _array(context, builder, result, data, [0])

        return result(value), codegen

    return empty


@intrinsic
def formed(typing_context, flat, shape, axes):
    """A flat array in the form that the last so many items of ``shape`` say."""
    if not isinstance(axes, types.IntegerLiteral):
        raise RequireLiteralValue("axes must be known to the compiler")
    result = types.Array(flat.dtype, axes.literal_value, "C")

    def codegen(context, builder, signature, values):
        source = context.make_array(flat)(context, builder, values[0])
        sizes = context.make_array(shape)(context, builder, values[1])
        first = builder.sub(sizes.nitems, _WORD(result.ndim))
        places = [builder.gep(sizes.data, [builder.add(first, _WORD(a))]) for a in range(result.ndim)]
        form = [builder.load(place) for place in places]
        value = _array(context, builder, result, source.data, form, source.meminfo)
        return impl_ret_borrowed(context, builder, result, value)

    return result(flat, shape, axes), codegen


@helper
def require(nbytes):
    """Refuse what does not fit into memory, before it is taken. Threads of a parallel loop go by the last answer."""
    if nbytes >= ALWAYS_THERE:
        if _is_pythons():
            _call_word(MEMORY)
        if nbytes > _word(AVAILABLE):
            raise MemoryError("bytes that the result needs, and that are available:", nbytes, _word(AVAILABLE))


@intrinsic
def _in_large_pages(typing_context, array):
    """Ask Linux for large pages, as NumPy does for its arrays: to touch as much in small ones takes much longer."""

    def codegen(context, builder, signature, values):
        if sys.platform == "linux":
            source = context.make_array(array)(context, builder, values[0])
            begin = builder.ptrtoint(source.data, _WORD)
            end = builder.add(begin, builder.mul(source.nitems, source.itemsize))
            begin = builder.and_(builder.add(begin, _WORD(PAGE - 1)), _WORD(-PAGE))
            kind = ir.FunctionType(_STATUS, [_WORD, _WORD, _STATUS])
            advise = cgutils.get_or_insert_function(builder.module, kind, "madvise")
            builder.call(advise, [begin, builder.sub(end, begin), _STATUS(MADV_HUGEPAGE)])
        return context.get_dummy_value()

    return types.void(array), codegen


#: From how many bytes on, a page, and Linux' word for them.
LARGE, PAGE, MADV_HUGEPAGE = 1 << 22, 1 << 12, 14


@helper
def room(count, dtype):
    """An array of so many items, whatever they hold; refused if there is no memory for it."""
    require(capped(count, item_bytes(dtype)))
    array = np.empty(count, dtype)
    if count * item_bytes(dtype) >= LARGE:
        _in_large_pages(array)
    return array


def known(function: Any) -> Any:
    """What compiled code sees of a function of a dtype: its result."""

    @extending.overload(function)
    def constant(dtype):
        result = function(as_dtype(dtype.dtype))
        return lambda dtype: result

    return function


for function in (lanes, panel_width):
    known(function)
