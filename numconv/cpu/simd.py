"""The vector room: the register tile and the two moves around it. Everything else in numconv is loops around these.

``outer_tile`` adds up outer products, ``out = sum over q of a[q] (outer) b[q]``: ``MR`` weights by ``NR`` pixels, all
sums in registers. ``inner_tile`` adds up inner products, ``out[i, j] = sum over p of a[i, p] b[j, p]``. For float32 and
float64 they are written for the host's vectors; every other dtype runs the same sums as plain loops, which are also
what Python sees when compilation is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
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


def _places(lanes: Sequence[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))


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
        self.mask = ir.VectorType(ir.IntType(1), self.lanes)
        some = ir.FunctionType(ir.VoidType(), [self.vector, self.vector.as_pointer(), ir.IntType(32), self.mask])
        name = f"llvm.masked.store.v{self.lanes}f{bits}.p0"
        self._store_some = cgutils.get_or_insert_function(builder.module, some, name)

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
        return self.builder.shuffle_vector(first, undefined, _places([0] * self.lanes))

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """``a * b + c`` in one rounding."""
        return self.builder.call(self._fma, [a, b, c])

    def sum(self, v: ir.Value) -> ir.Value:
        """The lanes added up as a tree."""
        return self.builder.call(self._sum, [ir.Constant(self.item, -0.0), v], fastmath=["reassoc"])

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

    def concat(self, parts: list[ir.Value]) -> ir.Value:
        """Vectors one behind the other; their number is a power of two."""
        while len(parts) > 1:
            pairs, width = zip(parts[::2], parts[1::2], strict=True), 2 * parts[0].type.count
            parts = [self.builder.shuffle_vector(p, q, _places(range(width))) for p, q in pairs]
        return parts[0]

    def pick(self, value: ir.Value, places: list[int]) -> ir.Value:
        """The lanes at these places."""
        return self.builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), _places(places))

    def gather(self, address: ir.Value, step: int, count: ir.Value) -> ir.Value:
        """Items ``step`` apart, zero from item ``count`` on, where nothing is read."""
        word, build = ir.IntType(64), self.builder
        pointers = ir.VectorType(self.item.as_pointer(), self.lanes)
        steps = ir.Constant(ir.VectorType(word, self.lanes), [i * step * self.align for i in range(self.lanes)])
        places = build.inttoptr(build.add(self.filled(address), steps), pointers)
        function = ir.FunctionType(self.vector, [pointers, ir.IntType(32), self.mask, self.vector])
        bits = self.align * 8
        name = f"llvm.masked.gather.v{self.lanes}f{bits}.v{self.lanes}p0"
        code = cgutils.get_or_insert_function(build.module, function, name)
        return build.call(code, [places, ir.IntType(32)(self.align), self.first(count), self.zero])

    def first(self, count: ir.Value) -> ir.Value:
        """A mask of the first ``count`` lanes."""
        count = self.filled(self.builder.trunc(count, ir.IntType(32)))
        return self.builder.icmp_signed("<", _places(range(self.lanes)), count)

    def store_some(self, value: ir.Value, pointer: ir.Value, count: ir.Value) -> None:
        """The first ``count`` lanes to memory, and nothing beyond them."""
        word, build = ir.IntType(64), self.builder
        with build.if_else(build.icmp_signed(">=", count, word(self.lanes))) as (all_of_it, less):
            with all_of_it:
                self.store(value, pointer)
            with less:
                target = build.bitcast(pointer, self.vector.as_pointer())
                build.call(self._store_some, [value, target, ir.IntType(32)(self.align), self.first(count)])

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


# Winograd's moves ---------------------------------------------------------------------------------------------------


def panel_tile(a, a0, a_row, a_step, b, b0, b_step, n, out, o0, o_row, rows, columns, add):
    """``out[i, j] = sum over q < n of a[i, q] * b[q, j]``, all flat and with steps; to what is there if ``add``.

    ``rows`` and, in whole vectors, at most ``columns`` are ``outer_shape``.
    """
    for i in range(rows):
        for j in range(columns):
            total = out.dtype.type(0)
            for q in range(n):
                total += a[a0 + i * a_row + q * a_step] * b[b0 + q * b_step + j]
            out[o0 + i * o_row + j] = out[o0 + i * o_row + j] + total if add else total


def unweave(source, s0, tiles, target, t0, step):
    """``target[t0 + j * step + t] = source[s0 + 4 * t + j]``: six columns of tiles that begin four pixels apart.

    It may touch up to four whole vectors and one more of the source, and a vector of the target, beyond the last tile.
    """
    for t in range(tiles):
        for j in range(6):
            target[t0 + j * step + t] = source[s0 + 4 * t + j]


def weave(source, s0, step, bias, k, target, t0, n):
    """``target[t0 + 4 * t + j] = source[s0 + j * step + t] + bias[k]`` for the first ``n`` pixels, and no other."""
    for p in range(n):
        target[t0 + p] = source[s0 + p % 4 * step + p // 4] + bias[k]


def sandwich(matrix: Any, apart: int = 1, with_sum: bool = False) -> Any:
    """A function that computes ``m @ X @ m.T`` for many small ``X`` side by side, and their entries' sum if asked.

    Entry ``(i, k)`` of the ``X`` number ``j < n`` is ``source[s0 + i * s_row + k * s_column + j * apart]``; entry
    number ``e`` of its result goes to ``target[t0 + e * t_step + j]``. Whole vectors are written.
    """
    m = tuple(tuple(float(value) for value in row) for row in matrix)
    outer, inner = len(m), len(m[0])

    def product(source, s0, s_row, s_column, target, t0, t_step, n):
        for j in range(n):
            everything = target.dtype.type(0)
            for i in range(outer):
                for k in range(outer):
                    total = target.dtype.type(0)
                    for p in range(inner):
                        for q in range(inner):
                            total += source[s0 + p * s_row + q * s_column + j * apart] * (m[i][p] * m[k][q])
                    target[t0 + (i * outer + k) * t_step + j] = total
                    everything += total
            if with_sum:
                target[t0 + outer * outer * t_step + j] = everything

    def generate(v, source, s_row, s_column, target, t_step, n):
        word, build = ir.IntType(64), v.builder

        def body(j, _):
            columns = []
            for k in range(inner):
                at = build.add(build.mul(j, word(apart)), build.mul(word(k), s_column))
                places = [build.add(at, build.mul(word(i), s_row)) for i in range(inner)]
                if apart == 1:
                    values = [v.load(v.at(source, place)) for place in places]
                else:
                    addresses = [build.add(source, build.mul(place, word(v.align))) for place in places]
                    values = [v.gather(address, apart, build.sub(n, j)) for address in addresses]
                columns.append(v.combine(m, values))
            results = [v.combine(m, [columns[k][i] for k in range(inner)]) for i in range(outer)]
            results = [value for row in results for value in row]
            if with_sum:
                everything = results[0]
                for value in results[1:]:
                    everything = build.fadd(everything, value)
                results.append(everything)
            for e, value in enumerate(results):
                v.store(value, v.at(target, build.add(j, build.mul(word(e), t_step))))
            return []

        v.loop(n, v.lanes, [], body)

    codes = {types.float32: _vector_code(32, 6, generate), types.float64: _vector_code(64, 6, generate)}

    @overload(product)
    def _product(source, s0, s_row, s_column, target, t0, t_step, n):
        code, size = codes.get(target.dtype), target.dtype.bitwidth // 8
        if code is None:
            return product

        def vectors(source, s0, s_row, s_column, target, t0, t_step, n):
            code((source.ctypes.data + s0 * size, s_row, s_column, target.ctypes.data + t0 * size, t_step, n))

        return vectors

    return product


def _panel(
    v: _Vectors, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, n: Any, out: Any, o_row: Any,
    columns: Any, add: Any,
) -> None:
    word, build, weights = ir.IntType(64), v.builder, OUTER[0]
    # Opaque, or LLVM makes one pointer hop from row to row, and a tile of one vector waits for its hops.
    same = ir.FunctionType(word, [word])
    begins = [build.add(a, build.mul(word(i * v.align), a_row)) for i in range(weights)]
    begins = [build.asm(same, "", "=r,0", [begin], False) for begin in begins]

    def tile(vectors: int) -> None:
        places = [(i, j) for i in range(weights) for j in range(vectors)]
        targets = [v.at(out, build.add(build.mul(word(i), o_row), word(j * v.lanes))) for i, j in places]

        def term(q: Any, sums: list[Any]) -> list[Any]:
            pixels = [v.load(v.at(b, build.add(build.mul(q, b_step), word(j * v.lanes)))) for j in range(vectors)]
            results = []
            for i in range(weights):
                weight = v.spread(v.at(begins[i], build.mul(q, a_step)))
                results += [v.fma(weight, pixels[j], sums[i * vectors + j]) for j in range(vectors)]
            return results

        totals = v.loop(n, 1, [v.zero] * len(places), term)
        with build.if_else(build.icmp_signed("!=", add, word(0))) as (more, fresh):
            with more:
                for total, target in zip(totals, targets, strict=True):
                    v.store(build.fadd(v.load(target), total), target)
            with fresh:
                for total, target in zip(totals, targets, strict=True):
                    v.store(total, target)

    for vectors in range(1, OUTER[1] + 1):
        with build.if_then(build.icmp_signed("==", columns, word(vectors * v.lanes))):
            tile(vectors)


def _unweave(v: _Vectors, source: Any, tiles: Any, target: Any, step: Any) -> None:
    word, build = ir.IntType(64), v.builder

    def body(t: Any, _: list[Any]) -> list[Any]:
        pixels = [v.load(v.at(source, build.add(build.mul(t, word(4)), word(u * v.lanes)))) for u in range(5)]
        near = v.concat(pixels[:4])
        for j in range(6):
            places = [4 * l + j for l in range(v.lanes)]
            column = v.pick(near, places) if j < 4 else v.pick(v.concat([*pixels, *pixels[4:] * 3]), places)
            v.store(column, v.at(target, build.add(t, build.mul(word(j), step))))
        return []

    v.loop(tiles, v.lanes, [], body)


def _weave(v: _Vectors, source: Any, step: Any, start: Any, target: Any, n: Any) -> None:
    word, build = ir.IntType(64), v.builder
    bias = v.spread(v.at(start, word(0)))

    def body(p: Any, _: list[Any]) -> list[Any]:
        t = build.sdiv(p, word(4))
        columns = [build.fadd(v.load(v.at(source, build.add(t, build.mul(word(j), step)))), bias) for j in range(4)]
        every = v.concat(columns)
        for u in range(4):
            places = [e % 4 * v.lanes + e // 4 for e in range(u * v.lanes, (u + 1) * v.lanes)]
            pixels, at = v.pick(every, places), build.add(p, word(u * v.lanes))
            v.store_some(pixels, v.at(target, at), build.sub(n, at))
        return []

    v.loop(n, 4 * v.lanes, [], body)


_PANEL_CODE = {types.float32: _vector_code(32, 10, _panel), types.float64: _vector_code(64, 10, _panel)}
_UNWEAVE_CODE = {types.float32: _vector_code(32, 4, _unweave), types.float64: _vector_code(64, 4, _unweave)}
_WEAVE_CODE = {types.float32: _vector_code(32, 5, _weave), types.float64: _vector_code(64, 5, _weave)}


@overload(panel_tile)
def _panel_tile(a, a0, a_row, a_step, b, b0, b_step, n, out, o0, o_row, rows, columns, add):
    code, size = _PANEL_CODE.get(out.dtype), out.dtype.bitwidth // 8
    if code is None:
        return panel_tile

    def vectors(a, a0, a_row, a_step, b, b0, b_step, n, out, o0, o_row, rows, columns, add):
        code((
            a.ctypes.data + a0 * size, a_row, a_step, b.ctypes.data + b0 * size, b_step, n, out.ctypes.data + o0 * size,
            o_row, columns, add,
        ))

    return vectors


@overload(unweave)
def _unweave_tiles(source, s0, tiles, target, t0, step):
    code, size = _UNWEAVE_CODE.get(target.dtype), target.dtype.bitwidth // 8
    if code is None:
        return unweave

    def vectors(source, s0, tiles, target, t0, step):
        code((source.ctypes.data + s0 * size, tiles, target.ctypes.data + t0 * size, step))

    return vectors


@overload(weave)
def _weave_tiles(source, s0, step, bias, k, target, t0, n):
    code, size = _WEAVE_CODE.get(target.dtype), target.dtype.bitwidth // 8
    if code is None:
        return weave

    def vectors(source, s0, step, bias, k, target, t0, n):
        code((
            source.ctypes.data + s0 * size, step, bias.ctypes.data + k * size, target.ctypes.data + t0 * size, n,
        ))

    return vectors
