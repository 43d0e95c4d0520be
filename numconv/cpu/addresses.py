"""Launchers and kernels by their address, for compiled code that calls them."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils, event
from numba.core.errors import TypingError

from .cache import Cache
from .callers import pythons, words_in
from .words import FIRST, LOAD, NAME, words

intrinsic: Any = extending.intrinsic  # numba adds the context to calls, which its types do not know

_WORD, _STATUS = ir.IntType(64), ir.IntType(32)


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
    """Behind the compilation of a function with parallel loops that call numconv, all that these may call is loaded.

    One that names numconv and brings padding in pairs into a loop is not compiled; numba's words for it say nothing to
    its author. numba tells of every function, also of those that do not call numconv: these are let alone.
    """

    def on_start(self, event: Any) -> None:
        """Nothing yet."""

    def on_end(self, event: Any) -> None:
        """Load it. What is loaded may bring more."""
        code = event.data["dispatcher"]
        if not getattr(code, "targetoptions", {}).get("parallel"):  # what numba lifts out of a function has no options
            return
        _, error, _ = getattr(event, "_exc_details", None) or (None, None, None)  # what ended this compilation
        if isinstance(error, TypeError) and NESTED.match(str(error)) and names_numconv(code.py_func):
            raise TypingError(
                "numba brings no tuple of tuples into a parallel loop, as padding in pairs is one: write the pairs "
                "in the call, padding=((top, bottom), (left, right)), or bring them in one by one"
            ) from error
        if error is None:
            for result in code.overloads.values():
                if calls_numconv(result) and load_later not in result.reload_init:
                    load_later()
                    result.reload_init.append(load_later)  # so does whoever loads it from the disk


def names_numconv(function: Callable[..., Any]) -> bool:
    """Whether a function refers to numconv or to something of it."""
    values = [function.__globals__.get(name) for name in function.__code__.co_names]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # what it is to hold comes later
            values.append(cell.cell_contents)
    for value in values:
        with suppress(Exception):  # an object of the author's may answer as it likes
            home = value.__name__ if isinstance(value, ModuleType) else value.__module__
            if home.partition(".")[0] == "numconv":
                return True
    return False


def calls_numconv(result: Any) -> bool:
    """Whether numconv is part of what was compiled, or of what that calls: it reads the words."""
    return any(variable.name == NAME for variable in result.library._final_module.global_variables)


def load_later() -> None:
    """Load whatever waits to be called for the first time."""
    while _later:
        Loader(_later.pop())()


#: How numba says that it cannot.
NESTED = re.compile(r"scalar type \w*Tuple\(.* given for non scalar argument")

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
    table = words_in(builder)
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
    missing = builder.and_(cgutils.is_null(builder, builder.load(found)), pythons(builder))
    with builder.if_then(missing, likely=False):
        ask = builder.load(builder.gep(table, [_WORD(0), _WORD(LOAD)]))
        kind = ir.FunctionType(_STATUS, [cgutils.voidptr_t, _WORD])
        builder.call(builder.inttoptr(ask, kind.as_pointer()), [text, _WORD(length)])
        look()
    return builder.load(found)
