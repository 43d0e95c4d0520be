"""The vector room: the register tile and the two moves around it. Everything else in numconv is loops around these.

``outer_tile`` adds up outer products, ``out = sum over q of a[q] (outer) b[q]``: ``MR`` weights by ``NR`` pixels, all
sums in registers. ``outer_sum`` does so where rows of both are found through a table. For float32 and
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

#: ``outer_sum`` takes tiles of up to ``WIDEST`` vectors of columns and ``tallest(vectors)`` rows: as many sums as
#: registers hold beside what is being multiplied.
SUMS, WIDEST, HIGHEST = (24, 4, 8) if REGISTERS == 32 else (12, 3, 6)

#: Items that an array needs more so that it can begin with a line of the cache.
ALIGNED = VECTOR_BYTES // 4

#: How many items beyond the end of a run ``copy_run`` may touch.
SLACK = VECTOR_BYTES // 4

#: The shape for dtypes without vector code: long rows, so that the compiler vectorises what it can.
PLAIN_OUTER = (4, 64)

#: What stands for a vector there.
PLAIN_LANES = 16


def lanes(dtype: np.dtype) -> int:
    """Numbers in a vector register; 1 where there is no vector code for the dtype."""
    return VECTOR_BYTES // dtype.itemsize if dtype in (np.float32, np.float64) else 1


def outer_shape(dtype: np.dtype) -> tuple[int, int]:
    """``MR, NR`` of ``outer_tile``."""
    return PLAIN_OUTER if lanes(dtype) == 1 else (OUTER[0], OUTER[1] * lanes(dtype))


def sum_lanes(dtype: np.dtype) -> int:
    """Columns that ``outer_sum`` counts as one vector."""
    return PLAIN_LANES if lanes(dtype) == 1 else lanes(dtype)


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


def outer_sum(a, a0, rows, r0, a_terms, b, b0, b_terms, n, height, vectors, out):
    """``out[i, j] = sum over q < n of a[a0 + rows[r0 + i] + a_terms[q]] * b[b0 + b_terms[q] + j]``, ``i < height``.

    ``outer_tile`` for operands that are matrices only through a table: row ``q`` of ``b`` may begin anywhere, so the
    windows of an image are multiplied where they lie. ``vectors`` is how many vectors of columns are wanted.
    """
    columns = vectors * (out.shape[1] // WIDEST)
    for i in range(height):
        for j in range(columns):
            out[i, j] = 0
    for q in range(n):
        for i in range(height):
            weight = a[a0 + rows[r0 + i] + a_terms[q]]
            for j in range(columns):
                out[i, j] += weight * b[b0 + b_terms[q] + j]


def put(sums, column, n, height, target, t0, step, bias, k0, first):
    """Columns ``column … column + n`` of a tile join the rows of ``target`` at ``t0 + i * step``, or begin them."""
    for i in range(height):
        for j in range(n):
            before = bias[k0 + i] if first else target[t0 + i * step + j]
            target[t0 + i * step + j] = before + sums[i, column + j]


def aligned(array):
    """The first item of an array that begins a line of the cache; it may cost ``ALIGNED`` items."""
    return -array.ctypes.data % VECTOR_BYTES // array.itemsize


def pack(lines, l0, terms, n, vectors, panel, p0):
    """Row ``q`` of a panel, ``vectors`` long, becomes what lies from ``l0 + terms[q]`` on in ``lines``."""
    columns = vectors * PLAIN_LANES
    for q in range(n):
        for j in range(columns):
            panel[p0 + q * columns + j] = lines[l0 + terms[q] + j]


def copy_run(source, s0, n, target, t0):
    """``target[t0 : t0 + n] = source[s0 : s0 + n]``."""
    for j in range(n):
        target[t0 + j] = source[s0 + j]


def copy_every_second(source, s0, n, target, t0):
    """``target[t0 : t0 + n] = source[s0 : s0 + 2 * n : 2]``."""
    for j in range(n):
        target[t0 + j] = source[s0 + 2 * j]


def transpose(source, s0, s_step, n, m, target, t0, t_step):
    """``target[t0 + j * t_step + i] = source[s0 + i * s_step + j]`` for ``i < n``, ``j < m``."""
    for i in range(n):
        for j in range(m):
            target[t0 + j * t_step + i] = source[s0 + i * s_step + j]


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
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, self.builder.load(pointer), ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def first(self, n: ir.Value) -> ir.Value:
        """A mask of the first ``n`` lanes."""
        short, b = ir.IntType(32), self.builder
        undefined = ir.Constant(ir.VectorType(short, self.lanes), ir.Undefined)
        count = b.insert_element(undefined, b.trunc(n, short), short(0))
        zeros = ir.Constant(ir.VectorType(short, self.lanes), [0] * self.lanes)
        spread = b.shuffle_vector(count, count, zeros)
        return b.icmp_signed("<", ir.Constant(ir.VectorType(short, self.lanes), list(range(self.lanes))), spread)

    def load_some(self, pointer: ir.Value, mask: ir.Value) -> ir.Value:
        """A vector of which only the lanes of a mask are read from memory, the others 0."""
        kind = ir.FunctionType(self.vector, [self.vector.as_pointer(), ir.IntType(32), mask.type, self.vector])
        load = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.masked.load.{self._mangled}")
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        return self.builder.call(load, [pointer, ir.IntType(32)(self.align), mask, self.zero])

    def store_some(self, value: ir.Value, pointer: ir.Value, mask: ir.Value) -> None:
        """The lanes of a mask to memory."""
        kind = ir.FunctionType(ir.VoidType(), [self.vector, self.vector.as_pointer(), ir.IntType(32), mask.type])
        store = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.masked.store.{self._mangled}")
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        self.builder.call(store, [value, pointer, ir.IntType(32)(self.align), mask])

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


def _outer_sum(
    v: _Vectors, a: Any, rows: Any, a_terms: Any, b: Any, b_terms: Any, n: Any, height: Any, vectors: Any, out: Any
) -> None:
    word, build = ir.IntType(64), v.builder
    rows, a_terms, b_terms = (build.inttoptr(table, word.as_pointer()) for table in (rows, a_terms, b_terms))

    def tile(height: int, vectors: int) -> None:
        starts = [v.at(a, build.load(build.gep(rows, [word(i)]))) for i in range(height)]

        def add(q: Any, sums: list[Any]) -> list[Any]:
            term, line = build.load(build.gep(a_terms, [q])), v.at(b, build.load(build.gep(b_terms, [q])))
            pixels = [v.load(build.gep(line, [word(j * v.lanes)])) for j in range(vectors)]
            results = []
            for i in range(height):
                weight = v.spread(build.gep(starts[i], [term]))
                results += [v.fma(weight, pixels[j], sums[i * vectors + j]) for j in range(vectors)]
            return results

        for place, total in enumerate(v.loop(n, 1, [v.zero] * (height * vectors), add)):
            i, j = divmod(place, vectors)
            v.store(total, v.at(out, word((i * WIDEST + j) * v.lanes)))

    # every tile that fits the registers has a loop of its own
    after = build.append_basic_block("after")
    choice = build.switch(build.add(build.mul(height, word(WIDEST + 1)), vectors), after)
    for j in range(1, WIDEST + 1):
        for i in range(1, min(HIGHEST, SUMS // j) + 1):
            block = build.append_basic_block(f"tile{i}x{j}")
            choice.add_case(word(i * (WIDEST + 1) + j), block)
            build.position_at_end(block)
            tile(i, j)
            build.branch(after)
    build.position_at_end(after)


def _put(v: _Vectors, sums: Any, n: Any, height: Any, target: Any, step: Any, bias: Any, first: Any) -> None:
    word, build = ir.IntType(64), v.builder
    whole = build.and_(n, word(-v.lanes))
    rest = v.first(build.sub(n, whole))

    def rows(joins: bool) -> None:
        def row(i: Any, _: list[Any]) -> list[Any]:
            start = v.spread(v.at(bias, i))
            source, goal = v.at(sums, build.mul(i, word(WIDEST * v.lanes))), v.at(target, build.mul(i, step))

            def piece(p: Any, _: list[Any]) -> list[Any]:
                place = build.gep(goal, [p])
                v.store(build.fadd(v.load(place) if joins else start, v.load(build.gep(source, [p]))), place)
                return []

            v.loop(whole, v.lanes, [], piece)
            place = build.gep(goal, [whole])
            before = v.load_some(place, rest) if joins else start
            v.store_some(build.fadd(before, v.load_some(build.gep(source, [whole]), rest)), place, rest)
            return []

        v.loop(height, 1, [], row)

    with build.if_else(build.icmp_signed("!=", first, word(0))) as (begin, go_on):
        with begin:
            rows(joins=False)
        with go_on:
            rows(joins=True)


def _pack(v: _Vectors, lines: Any, terms: Any, n: Any, vectors: Any, panel: Any) -> None:
    word, build = ir.IntType(64), v.builder
    terms, length = build.inttoptr(terms, word.as_pointer()), build.mul(vectors, word(v.lanes))

    def row(q: Any, _: list[Any]) -> list[Any]:
        line, goal = v.at(lines, build.load(build.gep(terms, [q]))), v.at(panel, build.mul(q, length))

        def piece(p: Any, _: list[Any]) -> list[Any]:
            v.store(v.load(build.gep(line, [p])), build.gep(goal, [p]))
            return []

        v.loop(length, v.lanes, [], piece)
        return []

    v.loop(n, 1, [], row)


def _copy(v: _Vectors, source: Any, n: Any, target: Any) -> None:
    whole = v.builder.and_(n, ir.IntType(64)(-v.lanes))

    def body(p: Any, _: list[Any]) -> list[Any]:
        v.store(v.load(v.at(source, p)), v.at(target, p))
        return []

    v.loop(whole, v.lanes, [], body)
    rest = v.first(v.builder.sub(n, whole))
    v.store_some(v.load_some(v.at(source, whole), rest), v.at(target, whole), rest)


def _copy_every_second(v: _Vectors, source: Any, n: Any, target: Any) -> None:
    build, word = v.builder, ir.IntType(64)
    even = ir.Constant(ir.VectorType(ir.IntType(32), v.lanes), [2 * j for j in range(v.lanes)])

    def body(p: Any, _: list[Any]) -> list[Any]:
        pair = v.at(source, build.mul(p, word(2)))
        low = v.load_some(pair, v.first(build.mul(build.sub(n, p), word(2))))
        high = v.load_some(
            build.gep(pair, [word(v.lanes)]), v.first(build.sub(build.mul(build.sub(n, p), word(2)), word(v.lanes + 1)))
        )
        v.store_some(build.shuffle_vector(low, high, even), v.at(target, p), v.first(build.sub(n, p)))
        return []

    v.loop(n, v.lanes, [], body)


def _transpose(v: _Vectors, source: Any, s_step: Any, target: Any, t_step: Any) -> None:
    """A square of ``lanes`` by ``lanes``, in registers: at each stage pairs of rows trade halves, quarters, …"""
    word, build = ir.IntType(64), v.builder
    rows = [v.load(v.at(source, build.mul(word(i), s_step))) for i in range(v.lanes)]
    half = v.lanes // 2
    while half:
        low = [j % (2 * half) % half + j // (2 * half) * 2 * half + (v.lanes if j // half % 2 else 0)
               for j in range(v.lanes)]  # fmt: skip
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), v.lanes), [j + add for j in low]) for add in (0, half)]
        for i in range(v.lanes):
            if i // half % 2 == 0:
                pair = rows[i], rows[i + half]
                rows[i], rows[i + half] = (build.shuffle_vector(*pair, mask) for mask in masks)
        half //= 2
    for j, row in enumerate(rows):
        v.store(row, v.at(target, build.mul(word(j), t_step)))


_OUTER_CODE = {types.float32: _vector_code(32, 7, _outer), types.float64: _vector_code(64, 7, _outer)}
_SUM_CODE = {types.float32: _vector_code(32, 9, _outer_sum), types.float64: _vector_code(64, 9, _outer_sum)}
_PUT_CODE = {types.float32: _vector_code(32, 7, _put), types.float64: _vector_code(64, 7, _put)}
_PACK_CODE = {types.float32: _vector_code(32, 5, _pack), types.float64: _vector_code(64, 5, _pack)}
_COPY_CODE = {types.float32: _vector_code(32, 3, _copy), types.float64: _vector_code(64, 3, _copy)}
_SECOND_CODE = {
    types.float32: _vector_code(32, 3, _copy_every_second), types.float64: _vector_code(64, 3, _copy_every_second)
}
_TURN_CODE = {types.float32: _vector_code(32, 4, _transpose), types.float64: _vector_code(64, 4, _transpose)}


@overload(outer_tile)
def _outer_tile(a, a0, b, b0, rows, row_step, n, step, out):
    code, size = _OUTER_CODE.get(b.dtype), b.dtype.bitwidth // 8
    if code is None:
        return outer_tile

    def vectors(a, a0, b, b0, rows, row_step, n, step, out):
        code((a.ctypes.data + a0 * size, b.ctypes.data + b0 * size, rows, row_step, n, step, out.ctypes.data))

    return vectors


@overload(copy_run)
def _copy_run(source, s0, n, target, t0):
    code, size = _COPY_CODE.get(target.dtype), target.dtype.bitwidth // 8
    if code is None:
        return copy_run

    def vectors(source, s0, n, target, t0):
        code((source.ctypes.data + s0 * size, n, target.ctypes.data + t0 * size))

    return vectors


@overload(outer_sum)
def _outer_sum_tile(a, a0, rows, r0, a_terms, b, b0, b_terms, n, height, vectors, out):
    code, size = _SUM_CODE.get(b.dtype), b.dtype.bitwidth // 8
    if code is None:
        return outer_sum

    def tile(a, a0, rows, r0, a_terms, b, b0, b_terms, n, height, vectors, out):
        code((
            a.ctypes.data + a0 * size, rows.ctypes.data + r0 * 8, a_terms.ctypes.data,
            b.ctypes.data + b0 * size, b_terms.ctypes.data, n, height, vectors, out.ctypes.data,
        ))  # fmt: skip

    return tile


@overload(aligned)
def _aligned(array):
    return aligned


@overload(pack)
def _pack_panel(lines, l0, terms, n, vectors, panel, p0):
    code, size = _PACK_CODE.get(panel.dtype), panel.dtype.bitwidth // 8
    if code is None:
        return pack

    def vectors_(lines, l0, terms, n, vectors, panel, p0):
        code((lines.ctypes.data + l0 * size, terms.ctypes.data, n, vectors, panel.ctypes.data + p0 * size))

    return vectors_


@overload(put)
def _put_tile(sums, column, n, height, target, t0, step, bias, k0, first):
    code, size = _PUT_CODE.get(target.dtype), target.dtype.bitwidth // 8
    if code is None:
        return put

    def vectors(sums, column, n, height, target, t0, step, bias, k0, first):
        code((
            sums.ctypes.data + column * size, n, height, target.ctypes.data + t0 * size, step,
            bias.ctypes.data + k0 * size, np.int64(first),
        ))  # fmt: skip

    return vectors


@overload(copy_every_second)
def _copy_every_second_run(source, s0, n, target, t0):
    code, size = _SECOND_CODE.get(target.dtype), target.dtype.bitwidth // 8
    if code is None:
        return copy_every_second

    def vectors(source, s0, n, target, t0):
        code((source.ctypes.data + s0 * size, n, target.ctypes.data + t0 * size))

    return vectors


@overload(transpose)
def _transpose_block(source, s0, s_step, n, m, target, t0, t_step):
    code, size = _TURN_CODE.get(target.dtype), target.dtype.bitwidth // 8
    if code is None:
        return transpose
    square = VECTOR_BYTES // size

    def vectors(source, s0, s_step, n, m, target, t0, t_step):
        rows, columns = n // square * square, m // square * square
        for i in range(0, rows, square):
            for j in range(0, columns, square):
                begin, end = s0 + i * s_step + j, t0 + j * t_step + i
                code((source.ctypes.data + begin * size, s_step, target.ctypes.data + end * size, t_step))
        for i in range(n):
            for j in range(columns if i < rows else 0, m):
                target[t0 + j * t_step + i] = source[s0 + i * s_step + j]

    return vectors
