"""The vector room: the register tile and the two moves around it. Everything else in numconv is loops around these.

``outer_tile`` adds up outer products, ``out = sum over q of a[q] (outer) b[q]``: ``MR`` weights by ``NR`` pixels, all
sums in registers. ``inner_tile`` adds up inner products, ``out[i, j] = sum over p of a[i, p] b[j, p]``. For float32 and
float64 they are written for the host's vectors; every other dtype runs the same sums as plain loops, which are also
what Python sees when compilation is off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload


def _host() -> tuple[int, int]:
    """Bytes in a vector register of this machine, and how many of them there are."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 32
    if features.get("avx2") and features.get("fma"):
        return 32, 16
    if "aarch64" in binding.get_default_triple() or "arm64" in binding.get_default_triple():
        return 16, 32
    return 16, 16


VECTOR_BYTES, REGISTERS = _host()

#: Registers of a tile: weights by vectors of pixels. 24 (or 12) of 32 (or 16) registers hold sums.
OUTER = (8, 3) if REGISTERS == 32 else (4, 3)
INNER = (4, 6) if REGISTERS == 32 else (3, 4)

#: How many items beyond the end of a run ``copy_run`` may touch.
SLACK = VECTOR_BYTES // 4

#: The shape for dtypes without vector code: long rows, so that the compiler vectorises what it can.
PLAIN_OUTER, PLAIN_INNER = (4, 64), (4, 4)


def lanes(dtype: np.dtype) -> int:
    """Numbers in a vector register; 1 where there is no vector code for the dtype."""
    return VECTOR_BYTES // dtype.itemsize if dtype in (np.float32, np.float64) else 1


def outer_shape(dtype: np.dtype) -> tuple[int, int]:
    """``MR, NR`` of ``outer_tile``."""
    return PLAIN_OUTER if lanes(dtype) == 1 else (OUTER[0], OUTER[1] * lanes(dtype))


def inner_shape(dtype: np.dtype) -> tuple[int, int]:
    """How many rows of ``a`` and of ``b`` ``inner_tile`` takes."""
    return PLAIN_INNER if lanes(dtype) == 1 else INNER


def outer_tile(a, a0, b, b0, rows, row_step, n, step, out):
    """``out[i, j] = sum over r < rows, q < n of a[a0 + (r * n + q) * MR + i] * b[b0 + r * row_step + q * step + j]``.

    ``a`` and ``b`` are flat; a panel is one row of ``n``, the windows of an image are ``rows`` of it with ``step`` 1.
    """
    MR, NR = out.shape
    for i in range(MR):
        for j in range(NR):
            out[i, j] = 0
    for r in range(rows):
        for q in range(n):
            for i in range(MR):
                weight = a[a0 + (r * n + q) * MR + i]
                for j in range(NR):
                    out[i, j] += weight * b[b0 + r * row_step + q * step + j]


def inner_tile(a, a0, a_step, b, b0, b_step, n, out):
    """``out[i, j] = sum over p < n of a[a0 + i * a_step + p] * conj(b[b0 + j * b_step + p])``; n is whole vectors."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            total = out.dtype.type(0)
            for p in range(n):
                total += a[a0 + i * a_step + p] * np.conj(b[b0 + j * b_step + p])
            out[i, j] = total


def copy_run(source, s0, n, target, t0):
    """``target[t0 : t0 + n] = source[s0 : s0 + n]``; it may touch ``SLACK`` items beyond the end of both."""
    for j in range(n):
        target[t0 + j] = source[s0 + j]


# vector code --------------------------------------------------------------------------------------------------------


class _Vectors:
    """The LLVM types and moves for one float type."""

    def __init__(self, builder: ir.IRBuilder, bits: int) -> None:
        self.builder = builder
        self.lanes = VECTOR_BYTES * 8 // bits
        self.item = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.vector = ir.VectorType(self.item, self.lanes)
        self.align = bits // 8
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)
        function = ir.FunctionType(self.vector, [self.vector] * 3)
        self._fma = cgutils.get_or_insert_function(builder.module, function, f"llvm.fma.v{self.lanes}f{bits}")
        add = ir.FunctionType(self.item, [self.item, self.vector])
        name = f"llvm.vector.reduce.fadd.v{self.lanes}f{bits}"
        self._sum = cgutils.get_or_insert_function(builder.module, add, name)

    def at(self, address: ir.Value, index: ir.Value) -> ir.Value:
        """The address of item ``index`` of an array."""
        return self.builder.gep(self.builder.inttoptr(address, self.item.as_pointer()), [index])

    def load(self, pointer: ir.Value) -> ir.Value:
        """A vector from memory of any alignment."""
        return self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()), align=self.align)

    def store(self, value: ir.Value, pointer: ir.Value) -> None:
        """A vector to memory of any alignment."""
        self.builder.store(value, self.builder.bitcast(pointer, self.vector.as_pointer()), align=self.align)

    def spread(self, pointer: ir.Value) -> ir.Value:
        """One item in every lane."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, self.builder.load(pointer), ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """``a * b + c`` in one rounding."""
        return self.builder.call(self._fma, [a, b, c])

    def sum(self, v: ir.Value) -> ir.Value:
        """The lanes added up as a tree."""
        return self.builder.call(self._sum, [ir.Constant(self.item, -0.0), v], fastmath=["reassoc"])

    def loop(self, n: ir.Value, step: int, starts: list[ir.Value], body: Any) -> list[ir.Value]:
        """Vectors that begin as ``starts`` and that ``body(index, vectors)`` replaces for ``0, step, … < n``."""
        b, word = self.builder, ir.IntType(64)
        before, inside, after = b.block, b.append_basic_block("loop"), b.append_basic_block("after")
        b.cbranch(b.icmp_signed(">", n, word(0)), inside, after)
        b.position_at_end(inside)
        index, values = b.phi(word), [b.phi(self.vector) for _ in starts]
        results = body(index, values)
        end, following = b.block, b.add(index, word(step))  # the body may have had loops of its own
        b.cbranch(b.icmp_signed("<", following, n), inside, after)
        index.add_incoming(word(0), before)
        index.add_incoming(following, end)
        b.position_at_end(after)
        finals = [b.phi(self.vector) for _ in starts]
        for start, value, result, final in zip(starts, values, results, finals, strict=True):
            value.add_incoming(start, before)
            value.add_incoming(result, end)
            final.add_incoming(start, before)
            final.add_incoming(result, end)
        return finals


def _vector_code(bits: int, words: int, generate: Any) -> Any:
    """An intrinsic of ``words`` addresses and lengths whose body ``generate(vectors, *arguments)`` writes."""

    @intrinsic
    def code(typing_context, arguments):
        def codegen(context, builder, signature, args):
            values = cgutils.unpack_tuple(builder, args[0], words)
            generate(_Vectors(builder, bits), *values)
            return context.get_dummy_value()

        return types.void(types.UniTuple(types.intp, words)), codegen

    return code


def _outer(v: _Vectors, a: Any, b: Any, rows: Any, row_step: Any, n: Any, step: Any, out: Any) -> None:
    word, build = ir.IntType(64), v.builder
    weights, vectors = OUTER

    def row(r: Any, sums: list[Any]) -> list[Any]:
        begin, first = build.mul(r, row_step), build.mul(r, n)

        def add(q: Any, sums: list[Any]) -> list[Any]:
            at, term = build.add(begin, build.mul(q, step)), build.mul(build.add(first, q), word(weights))
            pixels = [v.load(v.at(b, build.add(at, word(j * v.lanes)))) for j in range(vectors)]
            results = []
            for i in range(weights):
                weight = v.spread(v.at(a, build.add(term, word(i))))
                results += [v.fma(weight, pixels[j], sums[i * vectors + j]) for j in range(vectors)]
            return results

        return v.loop(n, 1, sums, add)

    for place, total in enumerate(v.loop(rows, 1, [v.zero] * (weights * vectors), row)):
        v.store(total, v.at(out, word(place * v.lanes)))


def _inner(v: _Vectors, a: Any, a_step: Any, b: Any, b_step: Any, n: Any, out: Any) -> None:
    word, build = ir.IntType(64), v.builder
    rows, columns = INNER

    def body(p: Any, sums: list[Any]) -> list[Any]:
        left = [v.load(v.at(a, build.add(build.mul(word(i), a_step), p))) for i in range(rows)]
        right = [v.load(v.at(b, build.add(build.mul(word(j), b_step), p))) for j in range(columns)]
        return [v.fma(left[i], right[j], sums[i * columns + j]) for i in range(rows) for j in range(columns)]

    for place, total in enumerate(v.loop(n, v.lanes, [v.zero] * (rows * columns), body)):
        build.store(v.sum(total), v.at(out, word(place)))


def _copy(v: _Vectors, source: Any, n: Any, target: Any) -> None:
    def body(p: Any, _: list[Any]) -> list[Any]:
        v.store(v.load(v.at(source, p)), v.at(target, p))
        return []

    v.loop(n, v.lanes, [], body)


_OUTER_CODE = {types.float32: _vector_code(32, 7, _outer), types.float64: _vector_code(64, 7, _outer)}
_INNER_CODE = {types.float32: _vector_code(32, 6, _inner), types.float64: _vector_code(64, 6, _inner)}
_COPY_CODE = {types.float32: _vector_code(32, 3, _copy), types.float64: _vector_code(64, 3, _copy)}


@overload(outer_tile)
def _outer_tile(a, a0, b, b0, rows, row_step, n, step, out):
    code, size = _OUTER_CODE.get(b.dtype), b.dtype.bitwidth // 8
    if code is None:
        return outer_tile

    def vectors(a, a0, b, b0, rows, row_step, n, step, out):
        code((a.ctypes.data + a0 * size, b.ctypes.data + b0 * size, rows, row_step, n, step, out.ctypes.data))

    return vectors


@overload(inner_tile)
def _inner_tile(a, a0, a_step, b, b0, b_step, n, out):
    code, size = _INNER_CODE.get(b.dtype), b.dtype.bitwidth // 8
    if code is None:
        return inner_tile

    def vectors(a, a0, a_step, b, b0, b_step, n, out):
        code((a.ctypes.data + a0 * size, a_step, b.ctypes.data + b0 * size, b_step, n, out.ctypes.data))

    return vectors


@overload(copy_run)
def _copy_run(source, s0, n, target, t0):
    code, size = _COPY_CODE.get(target.dtype), target.dtype.bitwidth // 8
    if code is None:
        return copy_run

    def vectors(source, s0, n, target, t0):
        code((source.ctypes.data + s0 * size, n, target.ctypes.data + t0 * size))

    return vectors
