"""How kernels are compiled and launched. Every JIT option of the CPU room stands here.

A kernel is one loop over independent tasks, compiled on demand, once for one thread and for many, and cached on
disk. How many share the work, its first argument says at each call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, register_jitable, type_callable

from .. import _indexing
from . import threads
from .cache import Cache
from .words import BELOW, SERIAL_BELOW, words

#: ``contract`` lets a*b+c be one rounding, ``reassoc`` lets a sum be vectorised. Nothing that assumes NaN or infinity
#: away: NaN in, NaN out.
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc"},
}

#: Nobody calls these from C.
UNWRAPPED: dict[str, Any] = {"no_cfunc_wrapper": True}

#: A function that kernels call. It is called from Python too, and is Python there: nothing is compiled for that.
helper = register_jitable(**OPTIONS, **UNWRAPPED)


def cached(loop: Callable[..., None], **options: Any) -> Any:
    """The loop compiled on demand and kept on disk."""
    code = numba.njit(**options)(loop)
    if hasattr(code, "enable_caching"):  # not so where numba is told to compile nothing
        code._cache = Cache(loop)
    return code


_index = _indexing.compiled_by(helper)
position, source, first_output = _index["position"], _index["source"], _index["first_output"]
row_source, row_output, output_hit = _index["row_source"], _index["row_output"], _index["output_hit"]
extent, output_size, padding_of = _index["extent"], _index["output_size"], _index["padding_of"]
first_tap, capped, largest_index = _index["first_tap"], _index["capped"], _index["largest_index"]


class Kernel:
    """A loop over independent tasks, launched as ``kernel(*arrays, work=...)`` with ``work`` its multiply-adds.

    It is written ``def kernel(team, *arrays): ... for task in tasks_of(team, n): ...``; see ``tasks_of``.
    """

    def __init__(self, loop: Callable[..., None]) -> None:
        self.__doc__, self.__name__, self.__module__ = loop.__doc__, loop.__name__, loop.__module__
        self.code = cached(loop, **OPTIONS, **UNWRAPPED)

    def __call__(self, *arguments: Any, work: int) -> None:
        if work < SERIAL_BELOW and not _threads.wanted:
            self.code(ALONE, *arguments)
        else:
            _threads.launch(self.code, arguments)

    def alone(self, *arguments: Any) -> None:
        """Compute on this thread."""
        self.code(ALONE, *arguments)


# tasks --------------------------------------------------------------------------------------------------------------

#: The ``team`` of a kernel that computes all tasks itself.
ALONE = 0


def tasks_of(team, n):
    """The tasks of a kernel that has ``n`` of them, as far as they are its own in this ``team``.

    Alone it has all of them. Launched for many threads it has none: it is called again by every thread, with the same
    arguments, for a share of the tasks. So what stands before the loop is done once for each thread, and numba
    compiles the kernel once; with ``prange`` in it the compiler would see the loop five times. Arrays that are
    arguments are not counted on threads, which would wait for each other's counts.

    It has to stand in the kernel itself, not in a helper, and once.
    """
    return range(n)


_WORD, _STATUS = ir.IntType(64), ir.IntType(32)


@type_callable(tasks_of)
def _range_type(context):
    return lambda team, n: types.range_state64_type


@lower_builtin(tasks_of, types.Integer, types.Integer)
def _tasks(context, builder, signature, values):
    # team is ALONE; the address of _on_threads; or, negative, which member of how many this is
    team, n = (
        context.cast(builder, value, known, types.intp) for value, known in zip(values, signature.args, strict=True)
    )
    zero, bounds = _WORD(0), [cgutils.alloca_once_value(builder, _WORD(0)) for _ in range(2)]
    with builder.if_else(builder.icmp_signed(">", team, zero)) as (launch, compute):
        with launch:
            worker, block, failed = _worker(builder)
            launcher = builder.inttoptr(team, ir.FunctionType(_WORD, [_WORD] * 3).as_pointer())
            builder.call(launcher, [worker, block, n])
            with builder.if_then(cgutils.is_not_null(builder, builder.load(failed)), likely=False):
                context.call_conv.return_user_exc(builder, MemoryError, ("no memory for the workspace of a thread",))
        with compute:
            member = builder.neg(team)
            me = builder.lshr(member, _WORD(16))
            members = builder.and_(member, _WORD(0xFFFF))
            members = builder.select(builder.icmp_signed("==", team, zero), _WORD(1), members)
            for k, bound in enumerate(bounds):
                builder.store(builder.sdiv(builder.mul(n, builder.add(me, _WORD(k))), members), bound)
    kind = types.range_state64_type(types.intp, types.intp)
    return context.get_function(range, kind)(builder, [builder.load(bound) for bound in bounds])


def _worker(builder):
    """The addresses of a function ``(block, team)`` that calls the kernel being built, and of its arguments; and where
    it says that a call failed."""
    kernel = builder.function
    _, _, _, *arguments = kernel.args  # result, exception, team
    owner = [a.type == cgutils.voidptr_t and a.name.endswith(".0") for a in arguments]  # who counts an array
    kept = [cgutils.get_null_value(a.type) if own else a for a, own in zip(arguments, owner, strict=True)]
    failed = cgutils.alloca_once_value(builder, _STATUS(0))
    block = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, [*kept, failed]))
    worker = ir.Function(kernel.module, ir.FunctionType(ir.VoidType(), [_WORD] * 2), f"worker.{kernel.name}")
    worker.linkage = "internal"
    inside = ir.IRBuilder(worker.append_basic_block("entry"))
    results = [cgutils.alloca_once(inside, a.type.pointee) for a in kernel.args[:2]]
    *stored, place = cgutils.unpack_tuple(inside, inside.load(inside.inttoptr(worker.args[0], block.type)))
    status = inside.call(kernel, [*results, worker.args[1], *stored], attrs=("noinline",))
    with inside.if_then(cgutils.is_not_null(inside, status), likely=False):
        inside.store(status, place)
    inside.ret_void()
    return builder.ptrtoint(worker, _WORD), builder.ptrtoint(block, _WORD), failed


@intrinsic
def _call(typing_context, worker, block, team):
    """Let a worker compute its share."""

    def codegen(context, builder, signature, values):
        worker = builder.inttoptr(values[0], ir.FunctionType(ir.VoidType(), [_WORD] * 2).as_pointer())
        builder.call(worker, values[1:])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@intrinsic
def _thread_count(typing_context):
    """``numba.get_num_threads()``, in a way that compiled code on disk can keep."""

    def codegen(context, builder, signature, values):
        return builder.call(
            cgutils.get_or_insert_function(builder.module, ir.FunctionType(_WORD, []), "get_num_threads"), []
        )

    return types.intp(), codegen


def _share_out(worker, block, n):
    members = min(n, _thread_count())  # type: ignore[call-arg]  # numba adds the context
    for me in prange(members):
        _call(worker, block, -(me * 65536 + members))
    return 0


_on_threads: Any = cached(_share_out, parallel=True, no_cpython_wrapper=True, **OPTIONS)


@lru_cache(maxsize=1)
def _launcher() -> int:
    """The address of ``_on_threads`` compiled, the only parallel code that there is.

    ``ALONE`` where nothing is compiled, and where a fork has lost the threads.
    """
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]  # numba sets it as it reads the environment
        return ALONE
    threads.warn_if_lost()
    if threads.lost():
        return ALONE
    threads.layer()  # starts the threads, whose scheduler code from the disk cache asks for as it is loaded
    given = (types.intp,) * 3
    _on_threads.compile(given)
    code = _on_threads.overloads[given]
    return int(code.library.get_pointer_to_function(code.fndesc.llvm_cfunc_wrapper_name))


# threads ------------------------------------------------------------------------------------------------------------


class _Threads:
    """The right to launch a parallel loop.

    numba's ``workqueue`` layer aborts the process when two Python threads launch at once, so launches there take
    turns; OpenMP and TBB run free.
    """

    def __init__(self) -> None:
        self.wanted = 0  # by how many ``every_launch_parallel``
        self._turn = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._turn = threading.Lock()
        _launcher.cache_clear()

    def launch(self, loop: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        team = _launcher()
        if team == ALONE or threads.layer() != "workqueue":
            loop(team, *arguments)
            return
        with self._turn:
            loop(team, *arguments)


_threads = _Threads()


@contextmanager
def every_launch_parallel() -> Iterator[None]:
    """Launch threads however small the work, as ``warmup`` needs it; results do not depend on it."""
    _threads.wanted += 1
    words[BELOW] = 0
    try:
        yield
    finally:
        _threads.wanted -= 1
        words[BELOW] = 0 if _threads.wanted else SERIAL_BELOW


def flat(array: np.ndarray, *shape: int) -> np.ndarray:
    """A read-only view in the shape a kernel wants.

    All inputs reach kernels read-only and contiguous, so that one compilation serves every caller.
    """
    view = array.reshape(shape)
    view.setflags(write=False)
    return view
