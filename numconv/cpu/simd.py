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


# the window tile: direct convolution --------------------------------------------------------------------------------
#
# A plan names the lines of pixels that are read: its rows are ``first item, kernel rows, taps, first weight``. A tile
# has ``WINDOW`` rows; line ``s`` of an entry, ``pitch`` items after the one before it, meets kernel row ``b`` in row
# ``s - b`` of the tile, so a vector is loaded once for all rows that need it. Weights lie tap by tap, ``b`` innermost.

#: Rows of a window tile (the layers of networks have multiples of 7), its most vectors side by side, and the most
#: kernel rows of an entry.
WINDOW, ABREAST, STACKED = 7, 2 if REGISTERS == 32 else 1, 5


def address(array):
    """A contiguous array as the functions below take it: where it begins. Without compilation it is a flat view.

    In compiled code an array that is handed on is counted, and threads that count one array wait for each other. An
    address keeps no array alive; its name has to be used after it.
    """
    return array.reshape(-1)


def window_tile(x, x0, plan, entries, shift, pitch, w, w0, y, y0, y_pitch, rows, columns, lost, first, bias, k, zero):
    """``y[i, j] = bias[k] + sum over entries, taps t, kernel rows b of w[t, b] * x[i + b, j + t * shift]``.

    Row ``i`` of the tile stands at ``y0 + i * y_pitch``; of ``rows`` and of ``columns - i * lost`` in row ``i`` what
    exceeds the tile is left. Where it is not the ``first`` part of a sum, it is added to ``y`` instead of to the bias.
    Pixels are read, though never used, for the whole of a tile. ``zero`` says by its type of what ``x w y bias`` are.
    """
    for i in range(min(rows, WINDOW)):
        for j in range(min(columns - i * lost, (1 if lost else ABREAST) * VECTOR_BYTES // y.itemsize)):
            total = bias[k] if first else y[y0 + i * y_pitch + j]
            for e in range(entries):
                start, stacked, taps, weight = plan[4 * e : 4 * e + 4]
                for t in range(taps):
                    for b in range(stacked):
                        pixel = x[x0 + start + (i + b) * pitch + j + t * shift]
                        total += w[w0 + weight + t * stacked + b] * pixel
            y[y0 + i * y_pitch + j] = total


def weight_tile(x, x0, plan, entries, shift, pitch, dy, dy0, dy_pitch, rows, columns, sums, zero):
    """The adjoint of ``window_tile`` in ``w``: ``sums[t, b, j] += sum over i of dy[i, j] * x[i + b, j + t * shift]``.

    ``rows`` is ``WINDOW`` or 1, ``columns`` at most a vector; every weight has a vector of sums.
    """
    vector = VECTOR_BYTES // dy.itemsize
    for e in range(entries):
        start, stacked, taps, weight = plan[4 * e : 4 * e + 4]
        for t in range(taps):
            for b in range(stacked):
                for i in range(min(rows, WINDOW)):
                    for j in range(columns):
                        pixel = x[x0 + start + (i + b) * pitch + j + t * shift]
                        sums[(weight + t * stacked + b) * vector + j] += dy[dy0 + i * dy_pitch + j] * pixel


def copy_line(source, s0, stride, n, target, t0, zero):
    """``target[t0 + j] = source[s0 + j * stride]`` for ``j < n``, and nothing else is touched."""
    for j in range(n):
        target[t0 + j] = source[s0 + j * stride]


class _Masked(_Vectors):
    """Vectors of which the first ``n`` items count."""

    def __init__(self, builder: ir.IRBuilder, bits: int) -> None:
        super().__init__(builder, bits)
        self.word, self.mask = ir.IntType(64), ir.VectorType(ir.IntType(1), self.lanes)
        self._places = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), list(range(self.lanes)))
        pointer, align, module = self.vector.as_pointer(), ir.IntType(32), builder.module
        name = f"v{self.lanes}f{bits}.p0v{self.lanes}f{bits}"
        load = ir.FunctionType(self.vector, [pointer, align, self.mask, self.vector])
        store = ir.FunctionType(ir.VoidType(), [self.vector, pointer, align, self.mask])
        self._load = cgutils.get_or_insert_function(module, load, f"llvm.masked.load.{name}")
        self._store = cgutils.get_or_insert_function(module, store, f"llvm.masked.store.{name}")

    def up_to(self, n: ir.Value) -> ir.Value:
        """The mask of the first ``n`` lanes."""
        b, short = self.builder, ir.IntType(32)
        most = b.select(b.icmp_signed("<", n, self.word(self.lanes)), n, self.word(self.lanes))
        least = b.select(b.icmp_signed(">", most, self.word(0)), most, self.word(0))
        undefined = ir.Constant(ir.VectorType(short, self.lanes), ir.Undefined)
        first = b.insert_element(undefined, b.trunc(least, short), short(0))
        zeros = ir.Constant(ir.VectorType(short, self.lanes), [0] * self.lanes)
        return b.icmp_signed("<", self._places, b.shuffle_vector(first, undefined, zeros))

    def load_some(self, pointer: ir.Value, mask: ir.Value) -> ir.Value:
        """A vector whose other lanes are zero; their memory is not touched."""
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        return self.builder.call(self._load, [pointer, ir.IntType(32)(self.align), mask, self.zero])

    def store_some(self, value: ir.Value, pointer: ir.Value, mask: ir.Value) -> None:
        """The lanes of the mask to memory."""
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        self.builder.call(self._store, [value, pointer, ir.IntType(32)(self.align), mask])

    def entry(self, plan: ir.Value, e: ir.Value) -> list[ir.Value]:
        """An entry of a plan."""
        b = self.builder
        row = b.gep(b.inttoptr(plan, self.word.as_pointer()), [b.mul(e, self.word(4))])
        return [b.load(b.gep(row, [self.word(column)])) for column in range(4)]

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


def _masked_code(bits: int, words: int, generate: Any) -> Any:
    """``_vector_code`` with masks."""
    return _vector_code(bits, words, lambda v, *arguments: generate(_Masked(v.builder, bits), *arguments))


def _window(vectors: int) -> Any:
    def code(
        v: _Masked, x: Any, plan: Any, entries: Any, shift: Any, pitch: Any, w: Any, y: Any, y_pitch: Any, rows: Any,
        columns: Any, lost: Any, first: Any, bias: Any,
    ) -> None:
        word, build = v.word, v.builder
        start = v.spread(v.at(bias, word(0)))
        places = [(i, j) for i in range(WINDOW) for j in range(vectors)]

        def at(i: int, j: int) -> Any:
            return v.at(y, build.add(build.mul(word(i), y_pitch), word(j * v.lanes)))

        def there(i: int, j: int) -> Any:
            n = build.select(build.icmp_signed("<", word(i), rows), columns, word(0))
            return v.up_to(build.sub(n, build.add(build.mul(word(i), lost), word(j * v.lanes))))

        def load(_: int, __: list[Any]) -> list[Any]:
            return [v.load_some(at(*place), there(*place)) for place in places]

        sums = v.choose(build.sub(word(1), first), 1, [start] * len(places), load)

        def add_entry(e: Any, sums: list[Any]) -> list[Any]:
            item, stacked, taps, weight = v.entry(plan, e)

            def add_rows(high: int, sums: list[Any]) -> list[Any]:
                def add(t: Any, sums: list[Any]) -> list[Any]:
                    sums, at = list(sums), build.add(item, build.mul(t, shift))
                    term = build.add(weight, build.mul(t, word(high)))
                    weights = [v.spread(v.at(w, build.add(term, word(b)))) for b in range(high)]
                    for s in range(WINDOW + high - 1):
                        line = build.add(at, build.mul(word(s), pitch))
                        for j in range(vectors):
                            pixels = v.load(v.at(x, build.add(line, word(j * v.lanes))))
                            for b in range(max(0, s - WINDOW + 1), min(s + 1, high)):
                                place = (s - b) * vectors + j
                                sums[place] = v.fma(weights[b], pixels, sums[place])
                    return sums

                return v.loop(taps, 1, sums, add)

            return v.choose(stacked, STACKED, sums, add_rows)

        totals = v.loop(entries, 1, sums, add_entry)

        def store(whole: int, _: list[Any]) -> list[Any]:
            for total, place in zip(totals, places, strict=True):
                if whole == 2:
                    v.store(total, at(*place))
                else:
                    v.store_some(total, at(*place), there(*place))
            return []

        last = build.sub(columns, build.mul(word(WINDOW - 1), lost))
        whole = build.icmp_signed(">=", last, word(vectors * v.lanes))
        whole = build.and_(whole, build.icmp_signed(">=", rows, word(WINDOW)))
        v.choose(build.add(word(1), build.zext(whole, word)), 2, [], store)

    return code


def _weight(rows: int) -> Any:
    def code(
        v: _Masked, x: Any, plan: Any, entries: Any, shift: Any, pitch: Any, dy: Any, dy_pitch: Any, columns: Any,
        sums: Any,
    ) -> None:
        word, build = v.word, v.builder
        mask = v.up_to(columns)
        dys = [v.load_some(v.at(dy, build.mul(word(i), dy_pitch)), mask) for i in range(rows)]

        def add_entry(e: Any, _: list[Any]) -> list[Any]:
            item, stacked, taps, weight = v.entry(plan, e)

            def add_rows(high: int, _: list[Any]) -> list[Any]:
                def add(t: Any, _: list[Any]) -> list[Any]:
                    at, term = build.add(item, build.mul(t, shift)), build.add(weight, build.mul(t, word(high)))
                    places = [v.at(sums, build.mul(build.add(term, word(b)), word(v.lanes))) for b in range(high)]
                    totals = [v.load(place) for place in places]
                    for s in range(rows + high - 1):
                        pixels = v.load(v.at(x, build.add(at, build.mul(word(s), pitch))))
                        pixels = build.select(mask, pixels, v.zero)  # what is no pixel may be infinite
                        for b in range(max(0, s - rows + 1), min(s + 1, high)):
                            totals[b] = v.fma(dys[s - b], pixels, totals[b])
                    for total, place in zip(totals, places, strict=True):
                        v.store(total, place)
                    return []

                return v.loop(taps, 1, [], add)

            return v.choose(stacked, STACKED, [], add_rows)

        v.loop(entries, 1, [], add_entry)

    return code


def _line(stride: int) -> Any:
    def code(v: _Masked, source: Any, n: Any, target: Any) -> None:
        word, build = v.word, v.builder
        every = ir.Constant(ir.VectorType(ir.IntType(32), v.lanes), [j * stride for j in range(v.lanes)])
        rest = build.and_(build.sub(n, word(1)), word(-v.lanes))  # the last vector may be whole too
        rest = build.select(build.icmp_signed(">", n, word(0)), rest, word(0))

        def taken(p: Any, load: Any) -> Any:
            at = build.mul(p, word(stride))
            parts = [load(v.at(source, build.add(at, word(i * v.lanes))), i * v.lanes) for i in range(stride)]
            return parts[0] if stride == 1 else build.shuffle_vector(parts[0], parts[1], every)

        def body(p: Any, _: list[Any]) -> list[Any]:
            v.store(taken(p, lambda pointer, _: v.load(pointer)), v.at(target, p))
            return []

        v.loop(rest, v.lanes, [], body)
        left = build.sub(n, rest)
        items = build.sub(build.mul(left, word(stride)), word(stride - 1))
        pixels = taken(rest, lambda pointer, i: v.load_some(pointer, v.up_to(build.sub(items, word(i)))))
        v.store_some(pixels, v.at(target, rest), v.up_to(left))

    return code


def _both(words: int, generate: Any) -> dict[Any, Any]:
    return {types.float32: _masked_code(32, words, generate), types.float64: _masked_code(64, words, generate)}


_WINDOW_CODE, _NARROW_CODE = _both(13, _window(ABREAST)), _both(13, _window(1))
_WEIGHT_CODE, _ROW_WEIGHT_CODE = _both(9, _weight(WINDOW)), _both(9, _weight(1))
_LINE_CODE, _OTHER_LINE_CODE = _both(3, _line(1)), _both(3, _line(2))


@overload(address)
def _address(array):
    return lambda array: array.ctypes.data


@overload(window_tile)
def _window_tile(x, x0, plan, entries, shift, pitch, w, w0, y, y0, y_pitch, rows, columns, lost, first, bias, k, zero):
    code, narrow, size = _WINDOW_CODE[zero], _NARROW_CODE[zero], zero.bitwidth // 8
    lanes = VECTOR_BYTES // size

    def vectors(x, x0, plan, entries, shift, pitch, w, w0, y, y0, y_pitch, rows, columns, lost, first, bias, k, zero):
        x, w, y, bias = x + x0 * size, w + w0 * size, y + y0 * size, bias + k * size
        if columns <= lanes or lost > 0:
            narrow((x, plan, entries, shift, pitch, w, y, y_pitch, rows, columns, lost, first, bias))
        else:
            code((x, plan, entries, shift, pitch, w, y, y_pitch, rows, columns, lost, first, bias))

    return vectors


@overload(weight_tile)
def _weight_tile(x, x0, plan, entries, shift, pitch, dy, dy0, dy_pitch, rows, columns, sums, zero):
    code, single, size = _WEIGHT_CODE[zero], _ROW_WEIGHT_CODE[zero], zero.bitwidth // 8

    def vectors(x, x0, plan, entries, shift, pitch, dy, dy0, dy_pitch, rows, columns, sums, zero):
        x, dy = x + x0 * size, dy + dy0 * size
        if rows == 1:
            single((x, plan, entries, shift, pitch, dy, dy_pitch, columns, sums))
        else:
            code((x, plan, entries, shift, pitch, dy, dy_pitch, columns, sums))

    return vectors


@overload(copy_line)
def _copy_line(source, s0, stride, n, target, t0, zero):
    code, other, size = _LINE_CODE[zero], _OTHER_LINE_CODE[zero], zero.bitwidth // 8

    def vectors(source, s0, stride, n, target, t0, zero):
        source, target = source + s0 * size, target + t0 * size
        if stride == 1:
            code((source, n, target))
        elif stride == 2:
            other((source, n, target))
        else:
            for j in range(n):
                code((source + j * stride * size, 1, target + j * size))

    return vectors
