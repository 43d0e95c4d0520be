"""The window tile of direct convolution.

A plan names the lines of pixels that are read: its rows are ``first item, kernel rows, taps, first weight``. A tile
has ``WINDOW`` rows; line ``s`` of an entry, ``pitch`` items after the one before it, meets kernel row ``b`` in row
``s - b`` of the tile, so a vector is loaded once for all rows that need it. Weights lie tap by tap, ``b`` innermost.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import overload

from .vectors import REGISTERS, VECTOR_BYTES, Vectors, vector_code

#: Rows of a window tile (the layers of networks have multiples of 7), its most vectors side by side, and the most
#: kernel rows of an entry.
WINDOW, ABREAST, STACKED = 7, 2 if REGISTERS == 32 else 1, 5


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


class _Windows(Vectors):
    """Vectors that walk along the entries of a plan."""

    def __init__(self, builder: ir.IRBuilder, bits: int) -> None:
        super().__init__(builder, bits)
        self.word = ir.IntType(64)

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


def _windows_code(bits: int, words: int, generate: Any) -> Any:
    """``vector_code`` with plans."""
    return vector_code(bits, words, lambda v, *arguments: generate(_Windows(v.builder, bits), *arguments))


def _window(vectors: int) -> Any:
    def code(
        v: _Windows, x: Any, plan: Any, entries: Any, shift: Any, pitch: Any, w: Any, y: Any, y_pitch: Any, rows: Any,
        columns: Any, lost: Any, first: Any, bias: Any,
    ) -> None:
        word, build = v.word, v.builder
        start = v.spread(v.at(bias, word(0)))
        places = [(i, j) for i in range(WINDOW) for j in range(vectors)]

        def at(i: int, j: int) -> Any:
            return v.at(y, build.add(build.mul(word(i), y_pitch), word(j * v.lanes)))

        def there(i: int, j: int) -> Any:
            n = build.select(build.icmp_signed("<", word(i), rows), columns, word(0))
            return v.first(build.sub(n, build.add(build.mul(word(i), lost), word(j * v.lanes))))

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
        v: _Windows, x: Any, plan: Any, entries: Any, shift: Any, pitch: Any, dy: Any, dy_pitch: Any, columns: Any,
        sums: Any,
    ) -> None:
        word, build = v.word, v.builder
        mask = v.first(columns)
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
    def code(v: _Windows, source: Any, n: Any, target: Any) -> None:
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
        pixels = taken(rest, lambda pointer, i: v.load_some(pointer, v.first(build.sub(items, word(i)))))
        v.store_some(pixels, v.at(target, rest), v.first(left))

    return code


def _both(words: int, generate: Any) -> dict[Any, Any]:
    return {types.float32: _windows_code(32, words, generate), types.float64: _windows_code(64, words, generate)}


_WINDOW_CODE, _NARROW_CODE = _both(13, _window(ABREAST)), _both(13, _window(1))
_WEIGHT_CODE, _ROW_WEIGHT_CODE = _both(9, _weight(WINDOW)), _both(9, _weight(1))
_LINE_CODE, _OTHER_LINE_CODE = _both(3, _line(1)), _both(3, _line(2))


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
