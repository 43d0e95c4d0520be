"""What compiled code of the caller needs to call numconv: whether to start threads, arrays as kernels take them, and
launchers by their address.
"""

from __future__ import annotations

import ctypes
import hashlib
import pickle
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils, event
from numba.core.errors import RequireLiteralValue
from numba.core.imputils import impl_ret_borrowed
from numba.np.arrayobj import populate_array
from numba.np.numpy_support import as_dtype, from_dtype

from .._memory import ALWAYS_THERE
from . import _jit
from ._jit import ALONE, Cache, helper
from .simd import lanes, panel_width
from .words import ASK, AVAILABLE, BELOW, FIRST, IN_PARALLEL, LAUNCHER, LOAD, MEMORY, NAME, THREADS, words

intrinsic: Any = extending.intrinsic  # numba adds the context to calls, which its types do not know

_WORD, _STATUS = ir.IntType(64), ir.IntType(32)


def tell(words: np.ndarray) -> None:
    """Fill the words: compiled callers share their work among threads where launches need no turns."""
    if _jit._threads.lost_in_fork:
        return
    address, layer = _jit._launcher(), numba.threading_layer()
    if layer == "omp":
        omp = next((library for library in map(_library, _OMP) if hasattr(library, "omp_in_parallel")), None)
        if omp is None:
            return
        words[IN_PARALLEL] = ctypes.cast(omp.omp_in_parallel, ctypes.c_void_p).value
    words[THREADS] = numba.get_num_threads()
    words[LAUNCHER] = 0 if layer == "workqueue" else address


#: Where to look for OpenMP: the module that numba's threads come with, which knows its own, and Windows' own.
_OMP = ("numba.np.ufunc.omppool", "vcomp140")


def _library(name: str) -> Any:
    try:
        return ctypes.CDLL(import_module(name).__file__ if "." in name else name)
    except (OSError, ImportError):
        return None


def _words(builder):
    size = ir.ArrayType(_WORD, words.size)
    if NAME not in builder.module.globals:
        ir.GlobalVariable(builder.module, size, NAME)
    return builder.module.globals[NAME]


@intrinsic
def _word(typing_context, i):
    """One of the words."""

    def codegen(context, builder, signature, values):
        return builder.load(builder.gep(_words(builder), [_WORD(0), values[0]]))

    return types.intp(types.intp), codegen


@intrinsic
def _call_word(typing_context, i):
    """The result of a function whose address is one of the words."""

    def codegen(context, builder, signature, values):
        address = builder.load(builder.gep(_words(builder), [_WORD(0), values[0]]))
        function = builder.inttoptr(address, ir.FunctionType(_STATUS, []).as_pointer())
        return builder.zext(builder.call(function, []), _WORD)

    return types.intp(types.intp), codegen


@intrinsic
def _is_pythons(typing_context):
    """Whether Python knows this thread. It does not know those that numba has started."""

    def codegen(context, builder, signature, values):
        return _pythons(builder)

    return types.boolean(), codegen


def _pythons(builder):
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

    A row is an int, or a tuple whose last ``d`` ints count; padding an int, a tuple of them, or one of pairs. The table
    lives as long as the function that asks for it.
    """
    if not isinstance(d, types.IntegerLiteral):
        raise RequireLiteralValue("d must be known to the compiler")
    axes, given = d.literal_value, [*rows]
    result = types.Array(types.int64, 2, "C")

    def codegen(context, builder, signature, values):
        def number(value, kind):
            if isinstance(kind, types.Omitted):
                return _WORD(kind.value)
            return context.cast(builder, value, kind, types.int64)

        def column(value, kind, a):
            if not isinstance(kind, types.BaseTuple):
                return number(value, kind)
            a += len(kind) - axes
            return number(builder.extract_value(value, a), kind[a])

        table = []
        pad = [(values[1], padding)] * 2
        if isinstance(padding, types.BaseTuple) and len(padding) and isinstance(padding[0], types.BaseTuple):
            pairs = cgutils.unpack_tuple(builder, values[1])
            for side in (0, 1):
                table += [number(builder.extract_value(p, side), k[side]) for p, k in zip(pairs, padding, strict=True)]
            pad = []
        for value, kind in [*pad, *zip(cgutils.unpack_tuple(builder, values[0]), given, strict=True)]:
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
    strides, step = [], _WORD(itemsize)
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


def known(function: Any) -> Any:
    """What compiled code sees of a function of a dtype: its result."""

    @extending.overload(function)
    def constant(dtype):
        result = function(as_dtype(dtype.dtype))
        return lambda dtype: result

    return function


for function in (lanes, panel_width):
    known(function)


# launchers ----------------------------------------------------------------------------------------------------------


def through(code: Any, later: bool = False) -> Callable[[Any], Any]:
    """A way to call a launcher or a kernel, with its arguments as a tuple, that leaves its code where it is.

    A plain call would link all of it into the caller's function, and compile it again for every caller. Here the
    caller's code asks for the address: it stands in a table, under a number that follows from name and types. Code
    that was cached on disk puts it there as it is loaded; if it is missing, Python is asked.

    What is called ``later``, and gives nothing back, is compiled when it is called for the first time. Threads of a
    parallel loop cannot wait for Python, so a function that has such loops brings with it whatever may be called.
    """
    python = getattr(code, "py_func", code)
    name = python.__module__, python.__name__

    @intrinsic
    def call(typing_context, arguments):
        given = tuple(types.unliteral(t) for t in arguments)
        result = types.none if later else _compiled(*name, given).signature.return_type
        key = pickle.dumps((*name, given))

        def codegen(context, builder, signature, values):
            if later:
                context.active_code_library._reload_init.add(Later(key))
                _later.append(key)
                number = _number(key)
            else:
                context.active_code_library._reload_init.add(Loader(key))
                number = Loader(key)()
            text = context.insert_const_bytes(builder.module, key, name=f"launcher.{name[1]}")
            address = _find(builder, number, text, len(key))
            with builder.if_then(cgutils.is_null(builder, address), likely=False):
                message = f"numconv's {name[1]} is not loaded in this process: call it once outside of parallel loops"
                context.call_conv.return_user_exc(builder, RuntimeError, (message,))
            kind = context.call_conv.get_function_type(result, given)
            unpacked = [
                context.cast(builder, value, old, new)
                for value, old, new in zip(cgutils.unpack_tuple(builder, values[0]), arguments, given, strict=True)
            ]
            function = builder.inttoptr(address, kind.as_pointer())
            status, value = context.call_conv.call_function(builder, function, result, given, unpacked)
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.return_status_propagate(builder, status)
            return value

        return result(arguments), codegen

    return call


class Loader:
    """Brings a launcher for some types into memory, and its address into the table."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __call__(self) -> int:
        """The number of the launcher."""
        number = _number(self.key)
        entries = words[FIRST:].reshape(-1, 2)
        if number not in entries[:, 0]:
            cres = _compiled(*pickle.loads(self.key))
            place = int((entries[:, 0] == 0).argmax())
            entries[place, 1] = cres.library.get_pointer_to_function(cres.fndesc.llvm_func_name)
            entries[place, 0] = number
        return number


class Later(Loader):
    """The same for what is called later: it is loaded if it was compiled before."""

    def __call__(self) -> int:
        module, name, given = pickle.loads(self.key)
        code = _dispatcher(module, name)
        if isinstance(code._cache, Cache) and code._cache.holds(given, code.targetctx):
            return super().__call__()
        _later.append(self.key)
        return _number(self.key)


class ParallelCode(event.Listener):
    """Behind the compilation of a function with parallel loops, all that these may call is loaded."""

    def on_start(self, event: Any) -> None:
        """Nothing yet."""

    def on_end(self, event: Any) -> None:
        """Load it. What is loaded may bring more."""
        code = event.data["dispatcher"]
        if code.targetoptions.get("parallel") and code is not _jit._on_threads:
            while _later:
                Loader(_later.pop())()


_later: list[bytes] = []
event.register("numba:compile", ParallelCode())


def _number(key: bytes) -> int:
    """A key in short."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "little", signed=True)


def _dispatcher(module: str, name: str) -> Any:
    found = getattr(import_module(module), name)
    return getattr(found, "code", found)


def _compiled(module: str, name: str, given: tuple[Any, ...]) -> Any:
    code = _dispatcher(module, name)
    code.compile(given)
    return code.overloads[given]


def _find(builder: Any, number: int, text: Any, length: int) -> Any:
    """The address of a launcher, or 0."""
    table = _words(builder)
    found = cgutils.alloca_once_value(builder, _WORD(0))

    def look():
        with cgutils.for_range(builder, _WORD((words.size - FIRST) // 2)) as loop:
            at = builder.add(_WORD(FIRST), builder.mul(loop.index, _WORD(2)))
            entry = builder.load(builder.gep(table, [_WORD(0), at]))
            with builder.if_then(builder.icmp_signed("==", entry, _WORD(number))):
                place = builder.gep(table, [_WORD(0), builder.add(at, _WORD(1))])
                builder.store(builder.load(place), found)
                loop.do_break()
            with builder.if_then(builder.icmp_signed("==", entry, _WORD(0))):
                loop.do_break()

    look()
    missing = builder.and_(cgutils.is_null(builder, builder.load(found)), _pythons(builder))
    with builder.if_then(missing, likely=False):
        ask = builder.load(builder.gep(table, [_WORD(0), _WORD(LOAD)]))
        kind = ir.FunctionType(_STATUS, [cgutils.voidptr_t, _WORD])
        builder.call(builder.inttoptr(ask, kind.as_pointer()), [text, _WORD(length)])
        look()
    return builder.load(found)
