"""Memory between pages that nobody may touch, for every array of this process.

``install`` gives NumPy and numba an allocator of their own: an array, a result, a kernel's workspace ends where a page
ends (or begins where one begins), and the next page (the one before) cannot be read. A kernel that reads or writes one
item too far ends the process. NumPy's arrays lie flush with the page; numba puts some ten bytes behind its own.
"""

from __future__ import annotations

import ctypes
import mmap

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import cfunc, extending, types
from numba.core.registry import cpu_target
from numba.core.runtime import _nrt_python, rtsys

PAGE, HEAD = mmap.PAGESIZE, 2 * mmap.PAGESIZE  # in front of the data: a page that says how long all is, and a guard
#: How numba aligns its arrays, and the size of its header before them.
ALIGNED, HEADER = 32, 48

libc = ctypes.CDLL(None, use_errno=True)
word = ctypes.c_ssize_t
_map, _allow, _unmap, _copy, _fill = libc.mmap, libc.mprotect, libc.munmap, libc.memcpy, libc.memset
_map.argtypes, _map.restype = [word, word, ctypes.c_int, ctypes.c_int, ctypes.c_int, word], word
_allow.argtypes, _allow.restype = [word, word, ctypes.c_int], ctypes.c_int
_unmap.argtypes, _unmap.restype = [word, word], ctypes.c_int
_copy.argtypes, _copy.restype = [word, word, word], word
_fill.argtypes, _fill.restype = [word, ctypes.c_int, word], word
READ_WRITE, PRIVATE = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def _access(writes):
    @extending.intrinsic
    def access(typing_context, address, value):
        def codegen(context, builder, signature, values):
            place = builder.inttoptr(values[0], ir.IntType(64).as_pointer())
            if writes:
                builder.store(values[1], place)
            return builder.load(place)

        return types.intp(types.intp, types.intp), codegen

    return access


_load, _store = _access(False), _access(True)


@extending.register_jitable
def _take(size, end, before, clear):
    """Memory for ``size`` bytes, of which the first ``end`` (the rest is never touched) lie against a guard; or 0.

    It holds zeros or, for who reads what nobody has written, NaN.
    """
    pages = (max(end, 1) + PAGE - 1) // PAGE * PAGE
    base = _map(0, HEAD + pages + PAGE, 0, PRIVATE, -1, 0)
    if base == -1:
        return 0
    _allow(base, PAGE, READ_WRITE)
    _allow(base + HEAD, pages, READ_WRITE)
    _store(base, HEAD + pages + PAGE)
    _store(base + 8, size)
    if not clear:
        _fill(base + HEAD, 255, pages)
    return base + HEAD + (0 if before else pages - max(end, 1))


@extending.register_jitable
def _give(at):
    if at != 0:
        base = at // PAGE * PAGE - HEAD
        _unmap(base, _load(base, 0))


def _for_numpy(before):
    """``malloc``, ``calloc``, ``realloc`` and ``free`` as NumPy calls them: flush with the guard."""
    n = types.intp

    def again(context, at, size):
        new = _take(size, size, before, False)
        if at != 0 and new != 0:
            _copy(new, at, min(size, _load(at // PAGE * PAGE - HEAD + 8, 0)))
            _give(at)
        return new

    return (
        cfunc(n(n, n))(lambda context, size: _take(size, size, before, False)),
        cfunc(n(n, n, n))(lambda context, count, size: _take(count * size, count * size, before, True)),
        cfunc(n(n, n, n))(again),
        cfunc(types.void(n, n, n))(lambda context, at, size: _give(at)),
    )


def _for_numba(before):
    """``malloc`` and ``free`` of an external allocator of numba's.

    It asks for a header, the data and two times their alignment. With the header where it is the data begin right
    behind it, and the rest is not used.
    """
    n = types.intp

    def malloc(size, context):
        used = (size - HEADER - 2 * ALIGNED + ALIGNED - 1) // ALIGNED * ALIGNED
        if not before:
            return _take(size, HEADER + used, before, False)
        at = _take(size + ALIGNED, size + ALIGNED, before, False)
        return at + ALIGNED - HEADER % ALIGNED if at != 0 else 0

    return cfunc(n(n, n))(malloc), cfunc(types.void(n, n))(lambda at, context: _give(at))


class _Handler(ctypes.Structure):
    """NumPy's ``PyDataMem_Handler``."""

    _fields_ = [("name", ctypes.c_char * 127), ("version", ctypes.c_uint8), ("context", ctypes.c_void_p)] + [
        (name, ctypes.c_void_p) for name in ("malloc", "calloc", "realloc", "free")
    ]


class _External(ctypes.Structure):
    """numba's ``NRT_ExternalAllocator``."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("malloc", "realloc", "free", "context")]


#: The place of ``PyDataMem_SetHandler`` in NumPy's table of C functions.
SET_HANDLER = 304

_kept: list = []


def install(before: bool) -> None:
    """Lay all new arrays against a guard behind them, or before them."""
    numpys, numbas = _for_numpy(before), _for_numba(before)
    handler = _Handler(b"guarded", 1, None, *(f.address for f in numpys))
    new, get = ctypes.pythonapi.PyCapsule_New, ctypes.pythonapi.PyCapsule_GetPointer
    new.argtypes, new.restype = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p], ctypes.py_object
    get.argtypes, get.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    capsule = new(ctypes.addressof(handler), b"mem_handler", None)
    table = ctypes.cast(get(np._core._multiarray_umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[SET_HANDLER])

    rtsys.initialize(cpu_target.target_context)
    external = _External(numbas[0].address, None, numbas[1].address, None)
    aligned = ctypes.CDLL(_nrt_python.__file__).NRT_MemInfo_alloc_safe_aligned_external
    aligned.argtypes, aligned.restype = [word, ctypes.c_uint32, word], word
    place = ctypes.addressof(external)
    allocate = cfunc(types.intp(types.intp, types.uint32))(lambda size, align: aligned(size, ALIGNED, place))
    for name in ("NRT_MemInfo_alloc_aligned", "NRT_MemInfo_alloc_safe_aligned"):
        llvmlite.binding.add_symbol(name, allocate.address)
    _kept.extend((numpys, numbas, handler, capsule, external, allocate, set_handler(capsule)))
