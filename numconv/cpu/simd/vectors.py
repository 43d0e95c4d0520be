"""What vector code is written with: LLVM's vectors in the words of mathematics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from itertools import combinations
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, overload, type_callable

from ..target import VECTOR_BYTES


def lanes(dtype: np.dtype) -> int:
    """Numbers in a vector register; 1 where there is no vector code for the dtype."""
    return VECTOR_BYTES // dtype.itemsize if dtype in (np.float32, np.float64) else 1


def places(lanes: Sequence[int]) -> ir.Constant:
    """Lanes as the constant that a shuffle takes."""
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))


class Vectors:
    """The LLVM types and moves for one float type."""

    def __init__(self, builder: ir.IRBuilder, bits: int) -> None:
        self.builder, self.word = builder, ir.IntType(64)
        self.lanes = VECTOR_BYTES * 8 // bits
        self.item = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.vector = ir.VectorType(self.item, self.lanes)
        self.halves = ir.VectorType(ir.IntType(bits // 2), 2 * self.lanes)
        self.align = bits // 8
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)
        function = ir.FunctionType(self.vector, [self.vector] * 3)
        self._fma = cgutils.get_or_insert_function(builder.module, function, f"llvm.fma.v{self.lanes}f{bits}")
        self.mask = ir.VectorType(ir.IntType(1), self.lanes)
        self._mangled = f"v{self.lanes}f{bits}.p0"

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
        return self.filled(self.builder.load(pointer))

    def filled(self, item: ir.Value) -> ir.Value:
        """One value in every lane."""
        undefined = ir.Constant(ir.VectorType(item.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, item, ir.IntType(32)(0))
        return self.builder.shuffle_vector(first, undefined, places([0] * self.lanes))

    def first(self, n: ir.Value) -> ir.Value:
        """A mask of the first ``n`` lanes: of all of them or of none where ``n`` is beyond their number."""
        all_lanes = self.word(self.lanes)
        n = self.builder.select(self.builder.icmp_signed("<", n, all_lanes), n, all_lanes)
        numbers = places(range(self.lanes))
        return self.builder.icmp_signed("<", numbers, self.filled(self.builder.trunc(n, ir.IntType(32))))

    def between(self, first: ir.Value, end: ir.Value) -> ir.Value:
        """A mask of the lanes whose numbers, counted from ``first``, are neither negative nor beyond the end."""
        half = ir.IntType(32)
        numbers = self.builder.add(places(range(self.lanes)), self.filled(self.builder.trunc(first, half)))
        return self.builder.icmp_unsigned("<", numbers, self.filled(self.builder.trunc(end, half)))

    def load_some(self, pointer: ir.Value, mask: ir.Value, others: ir.Value | None = None) -> ir.Value:
        """A vector of which only the lanes of a mask are read from memory; the others are 0 or what is given."""
        kind = ir.FunctionType(self.vector, [self.vector.as_pointer(), ir.IntType(32), self.mask, self.vector])
        load = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.masked.load.{self._mangled}")
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        return self.builder.call(load, [pointer, ir.IntType(32)(self.align), mask, others or self.zero])

    def store_some(self, value: ir.Value, pointer: ir.Value, mask: ir.Value) -> None:
        """The lanes of a mask to memory."""
        kind = ir.FunctionType(ir.VoidType(), [self.vector, self.vector.as_pointer(), ir.IntType(32), self.mask])
        store = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.masked.store.{self._mangled}")
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        self.builder.call(store, [value, pointer, ir.IntType(32)(self.align), mask])

    def prefetch(self, pointer: ir.Value, write: bool = False, level: int = 1) -> None:
        """Ask for a line into the cache of this level before it is needed, whether or not there is memory."""
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        code = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        self.builder.call(code, [pointer, number(int(write)), number(4 - level), number(1)])

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """``a * b + c`` in one rounding."""
        return self.builder.call(self._fma, [a, b, c])

    def larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The larger of both."""
        greater = self.builder.icmp_signed if isinstance(a.type.element, ir.IntType) else self.builder.fcmp_ordered
        return self.builder.select(greater(">", a, b), a, b)

    def magnitudes(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The magnitudes of two vectors in one: the upper halves of their numbers, side by side, without the sign."""
        build, n, positive = self.builder, self.halves.count, 2 ** (self.halves.element.width - 1) - 1
        order = places([lane + first for lane in range(1, n, 2) for first in (0, n)])
        both = build.shuffle_vector(build.bitcast(a, self.halves), build.bitcast(b, self.halves), order)
        return build.and_(both, ir.Constant(self.halves, [positive] * n))

    def from_magnitudes(self, both: ir.Value) -> list[ir.Value]:
        """The two vectors, with zeros for the lower halves."""
        build, n = self.builder, self.halves.count
        zero = ir.Constant(self.halves, [0] * n)
        orders = [places([lane for upper in range(i, n, 2) for lane in (0, n + upper)]) for i in (0, 1)]
        return [build.bitcast(build.shuffle_vector(zero, both, order), self.vector) for order in orders]

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

    def choose(self, n: ir.Value, most: int, starts: list[ir.Value], case: Any) -> list[ir.Value]:
        """``case(1, starts)`` to ``case(most, starts)``, whichever ``n`` says."""
        b = self.builder
        here, after = b.block, b.append_basic_block("chosen")
        switch, ends = b.switch(n, after), []
        for value in range(1, most + 1):
            block = b.append_basic_block(f"case{value}")
            switch.add_case(self.word(value), block)
            b.position_at_end(block)
            ends.append((case(value, starts), b.block))
            b.branch(after)
        b.position_at_end(after)
        finals = [b.phi(self.vector) for _ in starts]
        for place, (start, final) in enumerate(zip(starts, finals, strict=True)):
            final.add_incoming(start, here)
            for results, end in ends:
                final.add_incoming(results[place], end)
        return finals

    def store_first(self, value: ir.Value, pointer: ir.Value, count: ir.Value) -> None:
        """The first ``count`` lanes to memory, and nothing beyond them."""
        with self.builder.if_else(self.builder.icmp_signed(">=", count, ir.IntType(64)(self.lanes))) as (whole, part):
            with whole:
                self.store(value, pointer)
            with part:
                self.store_some(value, pointer, self.first(count))

    def scaled(self, value: ir.Value, factor: float, plus: ir.Value | None = None) -> ir.Value:
        """``value * factor + plus`` with no more work than the factor needs."""
        if plus is None:
            return value if factor == 1 else self.builder.fmul(value, ir.Constant(self.vector, [factor] * self.lanes))
        if abs(factor) == 1:
            return self.builder.fadd(plus, value) if factor == 1 else self.builder.fsub(plus, value)
        return self.fma(value, ir.Constant(self.vector, [factor] * self.lanes), plus)

    def dot(self, row: Sequence[float], values: list[ir.Value]) -> ir.Value | None:
        """``sum of row[i] * values[i]``, a term with the factor 1 first; nothing if the row is zero."""
        terms = sorted(((c, x) for c, x in zip(row, values, strict=True) if c), key=lambda term: term[0] != 1)
        total = None
        for factor, value in terms:
            total = self.scaled(value, factor, total)
        return total

    def combine(self, matrix: Sequence[Sequence[float]], values: list[ir.Value]) -> list[ir.Value]:
        """``matrix @ values``; columns and then rows that differ in signs alone share their sums and differences."""
        columns = [list(column) for column in zip(*matrix, strict=True)]
        values = list(values)
        for i, j in combinations(range(len(columns)), 2):
            if any(columns[i]) and all(abs(p) == abs(q) for p, q in zip(columns[i], columns[j], strict=True)):
                x, y = values[i], values[j]
                values[i], values[j] = self.builder.fadd(x, y), self.builder.fsub(x, y)
                both = list(zip(columns[i], columns[j], strict=True))
                columns[i], columns[j] = [(p + q) / 2 for p, q in both], [(p - q) / 2 for p, q in both]
        rows, results, i = list(zip(*columns, strict=True)), [], 0
        while i < len(rows):
            pair = list(zip(rows[i], rows[i + 1], strict=True)) if i + 1 < len(rows) else []
            odd = [p if p == -q else 0.0 for p, q in pair]
            if any(odd) and all(abs(p) == abs(q) for p, q in pair):
                even = self.dot([p if p == q else 0.0 for p, q in pair], values)
                factor = next(c for c in reversed(odd) if c)
                half = self.dot([c / factor for c in odd], values)
                results += [self.scaled(half, factor, even), self.scaled(half, -factor, even)]
                i += 2
            else:
                results.append(self.dot(rows[i], values))
                i += 1
        return results

    def windows(self, pixels: list[ir.Value]) -> list[ir.Value]:
        """Of five vectors of pixels, the six columns of as many windows as there are lanes, four pixels apart."""
        half, build = self.lanes // 2, self.builder
        pairs = []
        for low, high in (pixels[0:2], pixels[2:4]):
            parts = [[4 * t + j + k for k in (0, 1) for t in range(half)] for j in (0, 2)]
            pairs.append([build.shuffle_vector(low, high, places(part)) for part in parts])
        columns = []
        for low, high in zip(*pairs, strict=True):
            for begin in (0, half):
                order = [begin + t + side for side in (0, self.lanes) for t in range(half)]
                columns.append(build.shuffle_vector(low, high, places(order)))
        for j in (0, 1):
            order = [*range(1, self.lanes), self.lanes + j]
            columns.append(build.shuffle_vector(columns[j], pixels[4], places(order)))
        return columns

    def transposed(self, rows: list[ir.Value]) -> list[ir.Value]:
        """A square of as many rows as lanes: at each stage pairs of rows trade halves, then quarters, …"""
        rows, half = list(rows), self.lanes // 2
        while half:
            low = [
                j % (2 * half) % half + j // (2 * half) * 2 * half + (self.lanes if j // half % 2 else 0)
                for j in range(self.lanes)
            ]
            for i in range(self.lanes):
                if i // half % 2 == 0:
                    pair = rows[i], rows[i + half]
                    for at, more in ((i, 0), (i + half, half)):
                        rows[at] = self.builder.shuffle_vector(*pair, places([j + more for j in low]))
            half //= 2
        return rows

    def pick(self, value: ir.Value, order: list[int]) -> ir.Value:
        """The lanes in this order."""
        return self.builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), places(order))


def vector_code(bits: int, words: int, generate: Any) -> Any:
    """An intrinsic of ``words`` addresses and lengths whose body ``generate(vectors, *arguments)`` writes."""

    @intrinsic
    def code(typing_context, arguments):
        def codegen(context, builder, signature, args):
            values = cgutils.unpack_tuple(builder, args[0], words)
            generate(Vectors(builder, bits), *values)
            return context.get_dummy_value()

        return types.void(types.UniTuple(types.intp, words)), codegen

    return code


def compiled_as(function: Callable[..., Any], vectors: type[Vectors] = Vectors) -> Callable[..., None]:
    """What ``code(vectors, *arguments)`` writes is ``function`` for numba, where its last argument is a float.

    All others are addresses and lengths. A kernel has this code once, apart from its own, however often it calls it;
    a function that numba knows would be compiled by itself first, and then again in the kernel.
    """

    def register(code: Callable[..., None]) -> None:
        def result(*arguments: Any) -> Any:
            return types.none if arguments[-1] in (types.float32, types.float64) else None

        result.pysig = signature(function)  # type: ignore[attr-defined]  # where numba looks for it
        type_callable(function)(lambda context: result)

        @lower_builtin(function, types.VarArg(types.Any))
        def lower(context, builder, signature, values):
            word, zero = ir.IntType(64), signature.args[-1]
            values = [
                context.cast(builder, value, known, types.intp)
                for value, known in zip(values[:-1], signature.args, strict=False)
            ]
            name = f"{function.__name__}.{zero}"
            written = builder.module.globals.get(name)
            if written is None:
                written = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [word] * len(values)), name)
                written.linkage = "internal"
                written.attributes.add("noinline")
                inside = ir.IRBuilder(written.append_basic_block("entry"))
                code(vectors(inside, zero.bitwidth), *written.args)
                inside.ret_void()
            builder.call(written, values)
            return context.get_dummy_value()

    return register


def address(array, zero):
    """A contiguous array as vector code takes it: where it begins. Where there is no such code it is the array itself.

    In compiled code an array that is handed on is counted, and threads that count one array wait for each other. An
    address counts nothing and keeps no array alive; its name has to be used after it.
    """
    return array


@type_callable(address)
def _address_type(context):
    def result(array, zero):
        return types.intp if zero in (types.float32, types.float64) else array.copy(readonly=False)

    return result


@lower_builtin(address, types.Array, types.Any)
def _address(context, builder, signature, values):
    if signature.return_type != types.intp:
        return _borrow(context, builder, signature, values)
    data = context.make_array(signature.args[0])(context, builder, values[0]).data
    return builder.ptrtoint(data, ir.IntType(64))


def keep(*arrays):
    """Arrays whose addresses were in use until here."""


@overload(keep)
def _keep(*arrays):
    return lambda *arrays: None


def borrowed(array):
    """An array that another name owns: handing it on counts nothing, and the owner has to live longer."""
    return array


@type_callable(borrowed)
def _borrowed_type(context):
    return lambda array: array.copy(readonly=False)  # one type for what is read and for what is written


@lower_builtin(borrowed, types.Array)
def _borrow(context, builder, signature, values):
    view = context.make_array(signature.args[0])(context, builder, values[0])
    view.meminfo = cgutils.get_null_value(view.meminfo.type)
    return view._getvalue()
