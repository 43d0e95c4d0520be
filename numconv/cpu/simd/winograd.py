"""Winograd's moves: the transforms of many small tiles side by side, their products, and the way out into rows."""

from __future__ import annotations

import hashlib
from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload, register_jitable

from ..target import REGISTERS
from .vectors import Vectors, lanes, places, vector_code

#: Rows and vectors of the largest register tile of ``panel_sum``, and of the smaller ones that it takes for the rest.
ROWS, VECTORS = ((6, 4, 2), (4, 2, 1)) if REGISTERS == 32 else ((6, 4, 2), (2, 1))


def panel_width(dtype: np.dtype) -> int:
    """Columns of the largest tile of ``panel_sum``."""
    return VECTORS[0] * lanes(dtype)


def panel_sum(a, a0, a_step, b, b0, b_step, n, out, o0, o_step, rows, columns, add, zero):
    """``out[i, j] = sum over q < n of a[q, i] * b[q, j]``, with steps from row to row; to what is there if ``add``.

    ``rows`` are even, ``columns`` whole vectors. Here and below arrays are handed on as ``address`` gives them, with a
    ``zero`` of their dtype.
    """
    for i in range(rows):
        for j in range(columns):
            total = zero
            for q in range(n):
                total += a[a0 + q * a_step + i] * b[b0 + q * b_step + j]
            out[o0 + i * o_step + j] = out[o0 + i * o_step + j] + total if add else total


def turn(source, s0, s_step, n, m, bias, k, target, t0, t_step, zero):
    """``target[t0 + j * t_step + i] = source[s0 + i * s_step + j] + bias[k + j]`` for ``i < n``, ``j < m``, no other.

    ``m`` is at most a vector; a whole one of ``source`` is read, and of its rows as many as are lanes.
    """
    for j in range(m):
        for i in range(n):
            target[t0 + j * t_step + i] = source[s0 + i * s_step + j] + bias[k + j]


def sandwich(matrix: Any, with_sum: bool = False) -> Any:
    """A function that computes ``m @ X @ m.T`` for many small ``X``, side by side in vectors; their entries' sum too.

    Entry ``(i, k)`` of vector ``j < n`` of the ``X`` is ``source[s0 + i * s_row + k * s_column + j * s_next]`` and what
    follows; those of its result go to ``target`` likewise, and the sum to ``t_sum``.
    """
    m = tuple(tuple(float(value) for value in row) for row in matrix)
    outer, inner = len(m), len(m[0])

    def product(source, s0, s_row, s_column, s_next, target, t0, t_row, t_column, t_next, t_sum, n, width, zero):
        for j in range(n):
            for lane in range(width):
                everything = zero
                for i in range(outer):
                    for k in range(outer):
                        total = zero
                        for p in range(inner):
                            for q in range(inner):
                                if m[i][p] * m[k][q] != 0:
                                    value = source[s0 + p * s_row + q * s_column + j * s_next + lane]
                                    total += value * (m[i][p] * m[k][q])
                        target[t0 + i * t_row + k * t_column + j * t_next + lane] = total
                        everything += total
                if with_sum:
                    target[t_sum + j * width + lane] = everything

    def generate(v, source, s_row, s_column, s_next, target, t_row, t_column, t_next, sums, n):
        word, build = ir.IntType(64), v.builder

        def body(j, _):
            columns = []
            for k in range(inner):
                at = build.add(build.mul(j, s_next), build.mul(word(k), s_column))
                values = [v.load(v.at(source, build.add(at, build.mul(word(i), s_row)))) for i in range(inner)]
                columns.append(v.combine(m, values))
            results = [v.combine(m, [columns[k][i] for k in range(inner)]) for i in range(outer)]
            begin, everything = build.mul(j, t_next), None
            for i, row in enumerate(results):
                for k, value in enumerate(row):
                    at = build.add(build.mul(word(i), t_row), build.mul(word(k), t_column))
                    v.store(value, v.at(target, build.add(begin, at)))
                    everything = value if everything is None else build.fadd(everything, value)
            if with_sum:
                v.store(everything, v.at(sums, build.mul(j, word(v.lanes))))
            return []

        v.loop(n, 1, [], body)

    product = _named(product, m, with_sum)
    codes = {types.float32: vector_code(32, 10, generate), types.float64: vector_code(64, 10, generate)}

    @overload(product)
    def _product(source, s0, s_row, s_column, s_next, target, t0, t_row, t_column, t_next, t_sum, n, width, zero):
        if zero not in codes:
            return product
        code, size = codes[zero], zero.bitwidth // 8

        def vectors(source, s0, s_row, s_column, s_next, target, t0, t_row, t_column, t_next, t_sum, n, width, zero):
            code((
                source + s0 * size, s_row, s_column, s_next, target + t0 * size, t_row, t_column, t_next,
                target + t_sum * size, n,
            ))

        return _named(vectors, m, with_sum)

    return product


def sandwich_of_rows(matrix: Any, apart: int) -> Any:
    """``sandwich`` for tiles side by side in lines of pixels, ``apart`` from one to the next, 4 or 8.

    What a tile reads is the pixels up to the next one and then the first ones of the next, but where ``ends`` is not 0
    others: column ``c`` of these begins each line, ``c * room`` from its begin, and behind them come the tiles' own
    pixels. A line is so long as to hold ``room`` tiles, which are whole vectors. ``ends`` follow, and for what is
    between as many lines as the result has rows. Entry number ``e`` of tile ``t`` goes to
    ``target[t0 + e * t_step + t]``, whole vectors of tiles.

    Pixels whose magnitude is larger than what is in ``peaks`` replace it: they lie as the lines do, but two vectors are
    in one, which takes half the time.
    """
    m = tuple(tuple(float(value) for value in row) for row in matrix)
    side, window = len(m), len(m[0])

    def product(lines, l0, room, tiles, peaks, p0, target, t0, t_step, zero):
        for u in range(window * window * room):
            if abs(lines[l0 + u]) > peaks[p0 + u].real:
                peaks[p0 + u] = abs(lines[l0 + u])
        for t in range(tiles):
            for i in range(side):
                for k in range(side):
                    total = zero
                    for p in range(window):
                        for q in range(window):
                            if m[i][p] * m[k][q] != 0:
                                at = _pixel(lines, l0, room, window, apart, t, p, q)
                                total += lines[l0 + at] * (m[i][p] * m[k][q])
                    target[t0 + (i * side + k) * t_step + t] = total

    def generate(v, lines, room, tiles, peaks, target, t_step):
        def load(rows):
            build, values = v.builder, [v.load(v.at(lines, row)) for row in rows]
            for i, row in zip(range(0, window, 2), rows, strict=False):
                peak = v.magnitudes(values[i], values[i + 1] if i + 1 < window else v.zero)
                place = build.bitcast(v.at(peaks, row), peak.type.as_pointer())
                build.store(v.larger(peak, build.load(place, align=v.align)), place, align=v.align)
            return values

        _of_rows(v, lines, room, tiles, target, t_step, load, lambda values: v.combine(m, values), window, side, apart)

    return _rows_code(product, generate, m, apart)


def largest_of_rows(reads: Any, window: int, apart: int) -> Any:
    """The largest peaks in the same tiles: entry ``(i, k)`` is that of rows and columns ``reads[i]`` and ``reads[k]``,
    each a first and a last one. The lines are lost.
    """
    reads, side = tuple(reads), len(reads)

    def product(lines, l0, room, tiles, peaks, p0, target, t0, t_step, zero):
        for t in range(tiles):
            for i in range(side):
                for k in range(side):
                    largest = zero
                    for p in range(reads[i][0], reads[i][1] + 1):
                        for q in range(reads[k][0], reads[k][1] + 1):
                            peak = peaks[p0 + _pixel(lines, l0, room, window, apart, t, p, q)]
                            if peak.real > largest.real:
                                largest = peak
                    target[t0 + (i * side + k) * t_step + t] = largest

    def generate(v, lines, room, tiles, peaks, target, t_step):
        def load(rows):
            kind, build = v.halves.as_pointer(), v.builder
            places = [build.bitcast(v.at(peaks, row), kind) for row in rows[: (window + 1) // 2]]
            return [value for place in places for value in v.from_magnitudes(build.load(place, align=v.align))]

        def combine(values):
            return [reduce(v.larger, values[first : last + 1]) for first, last in reads]

        _of_rows(v, lines, room, tiles, target, t_step, load, combine, window, side, apart)

    return _rows_code(product, generate, reads, window, apart)


@register_jitable
def _pixel(lines, l0, room, window, apart, t, p, q):
    """Where pixel ``(p, q)`` of tile ``t`` lies in lines."""
    if q >= apart and lines[l0 + window * window * room + t] != 0:
        return p * window * room + (q - apart) * room + t
    return p * window * room + (window - apart) * room + apart * t + q


def _of_rows(
    v: Vectors, lines: Any, room: Any, tiles: Any, target: Any, t_step: Any, load: Any, combine: Any, window: int,
    side: int, apart: int,
) -> None:
    word, build, others = ir.IntType(64), v.builder, window - apart
    step, other = build.mul(room, word(window)), build.mul(room, word(others))
    ends = v.at(lines, build.mul(step, word(window)))
    mixed = build.gep(ends, [room])

    def down(u, _):
        rows = [build.add(u, build.mul(word(i), step)) for i in range(max(window, side))]
        for row, value in zip(rows, combine(load(rows[:window])), strict=False):
            v.store(value, build.gep(mixed, [row]))
        return []

    def own(pixels):
        if apart == 4:
            return v.windows(pixels)[:window]
        halves = []  # even pixels, and odd ones
        for odd in (0, 1):
            order = places(range(odd, 2 * v.lanes, 2))
            pairs = zip(pixels[0:8:2], pixels[1:8:2], strict=True)
            halves.append(v.windows([*(build.shuffle_vector(*pair, order) for pair in pairs), pixels[8]]))
        return [halves[q % 2][q // 2] for q in range(window)]

    def body(t, _):
        end = build.fcmp_ordered("!=", v.load(build.gep(ends, [t])), v.zero)

        def across(i, _):
            line = build.mul(i, step)
            begin = build.add(build.add(line, other), build.mul(t, word(apart)))
            places_of = [build.add(begin, word(u * v.lanes)) for u in range(apart + 1)]
            columns = own([v.load(build.gep(mixed, [place])) for place in places_of])
            for c in range(others):
                there = build.add(build.add(line, build.mul(room, word(c))), t)
                columns[apart + c] = build.select(end, v.load(build.gep(mixed, [there])), columns[apart + c])
            row = build.add(t, build.mul(build.mul(i, word(side)), t_step))
            for k, value in enumerate(combine(columns)):
                v.store(value, v.at(target, build.add(row, build.mul(word(k), t_step))))
            return []

        v.loop(word(side), 1, [], across)
        return []

    v.loop(build.add(other, build.mul(tiles, word(apart))), v.lanes, [], down)
    v.loop(tiles, v.lanes, [], body)


def _rows_code(product: Any, generate: Any, *what: Any) -> Any:
    product = _named(product, *what)
    codes = {types.float32: vector_code(32, 6, generate), types.float64: vector_code(64, 6, generate)}

    @overload(product)
    def _product(lines, l0, room, tiles, peaks, p0, target, t0, t_step, zero):
        if zero not in codes:
            return product
        code, size = codes[zero], zero.bitwidth // 8

        def vectors(lines, l0, room, tiles, peaks, p0, target, t0, t_step, zero):
            code((lines + l0 * size, room, tiles, peaks + p0 * size, target + t0 * size, t_step))

        return _named(vectors, *what)

    return product


def _named(function: Any, *what: Any) -> Any:
    """The function with a name of its own: by names and types alone is code told apart that comes from the disk.

    numba numbers the functions of a name as a process meets them, so code that two processes have compiled may bear
    one number, and of two functions whose symbols are alike a third process would take the first for both.
    """
    function.__qualname__ += f".{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}"
    return function




def by_kind(functions: dict[type, Any]) -> Any:
    """The one of some functions that belongs to the type of the first argument; the others are not compiled."""

    def choose(kind, *arguments):
        return functions[type(kind)](*arguments)

    @overload(choose)
    def _choose(kind, *arguments):
        function = functions[kind.instance_class]
        return _named(lambda kind, *arguments: function(*arguments), function.__qualname__)

    return choose


def _panel(
    v: Vectors, a: Any, a_step: Any, b: Any, b_step: Any, n: Any, out: Any, o_step: Any, rows: Any, columns: Any,
    add: Any,
) -> None:
    word, build = ir.IntType(64), v.builder

    def tile(row: Any, column: Any, height: int, vectors: int) -> None:
        places = [(i, j) for i in range(height) for j in range(vectors)]
        a_here, b_here = v.at(a, row), v.at(b, column)
        corner = v.at(out, build.add(build.mul(row, o_step), column))
        # what follows in b comes next: each term of each row of tiles asks for one line of it
        asked = build.mul(build.sdiv(row, word(height)), word(v.lanes))
        ahead = build.gep(b_here, [build.mul(n, build.add(b_step, asked))])
        targets = [build.gep(corner, [build.add(build.mul(word(i), o_step), word(j * v.lanes))]) for i, j in places]

        def term(q: Any, sums: list[Any]) -> list[Any]:
            weights = build.gep(b_here, [build.mul(q, b_step)])
            weights = [v.load(build.gep(weights, [word(j * v.lanes)])) for j in range(vectors)]
            pixels, results = build.gep(a_here, [build.mul(q, a_step)]), []
            v.prefetch(build.gep(ahead, [build.mul(q, word(v.lanes))]), level=2)
            for i in range(height):
                pixel = v.spread(build.gep(pixels, [word(i)]))
                results += [v.fma(pixel, weights[j], sums[i * vectors + j]) for j in range(vectors)]
            return results

        totals = v.loop(n, 1, [v.zero] * len(places), term)
        with build.if_else(build.icmp_signed("!=", add, word(0))) as (more, fresh):
            with more:
                for total, target in zip(totals, targets, strict=True):
                    v.store(build.fadd(v.load(target), total), target)
            with fresh:
                for total, target in zip(totals, targets, strict=True):
                    v.store(total, target)

    def all_of(first: Any, height: int, last: Any, start: Any, vectors: int, end: Any) -> None:
        def row_of_tiles(i: Any, _: list[Any]) -> list[Any]:
            def one(j: Any, _: list[Any]) -> list[Any]:
                tile(build.add(first, i), build.add(start, j), height, vectors)
                return []

            return v.loop(build.sub(end, start), vectors * v.lanes, [], one)

        v.loop(build.sub(last, first), height, [], row_of_tiles)

    # as many of the largest tiles as there are, then of the next: the rest is less than one of the size before
    start = word(0)
    for vectors in VECTORS:
        end = build.sub(columns, build.srem(build.sub(columns, start), word(vectors * v.lanes)))
        first = word(0)
        for height in ROWS:
            last = build.sub(rows, build.srem(build.sub(rows, first), word(height)))
            all_of(first, height, last, start, vectors, end)
            first = last
        start = end


def _turn(v: Vectors, source: Any, s_step: Any, n: Any, m: Any, bias: Any, target: Any, t_step: Any) -> None:
    word, build = ir.IntType(64), v.builder
    more = v.load_some(v.at(bias, word(0)), v.first(m))

    def body(i: Any, _: list[Any]) -> list[Any]:
        begin = build.mul(i, s_step)
        rows = [v.load(v.at(source, build.add(begin, build.mul(word(p), s_step)))) for p in range(v.lanes)]
        for j, row in enumerate(v.transposed([build.fadd(row, more) for row in rows])):
            with build.if_then(build.icmp_signed("<", word(j), m)):
                v.store_first(row, v.at(target, build.add(i, build.mul(word(j), t_step))), build.sub(n, i))
        return []

    v.loop(n, v.lanes, [], body)


_PANEL_CODE = {types.float32: vector_code(32, 10, _panel), types.float64: vector_code(64, 10, _panel)}
_TURN_CODE = {types.float32: vector_code(32, 7, _turn), types.float64: vector_code(64, 7, _turn)}


@overload(panel_sum)
def _panel_sum(a, a0, a_step, b, b0, b_step, n, out, o0, o_step, rows, columns, add, zero):
    if zero not in _PANEL_CODE:
        return panel_sum
    code, size = _PANEL_CODE[zero], zero.bitwidth // 8

    def vectors(a, a0, a_step, b, b0, b_step, n, out, o0, o_step, rows, columns, add, zero):
        code((a + a0 * size, a_step, b + b0 * size, b_step, n, out + o0 * size, o_step, rows, columns, add))

    return vectors


@overload(turn)
def _turn_vectors(source, s0, s_step, n, m, bias, k, target, t0, t_step, zero):
    if zero not in _TURN_CODE:
        return turn
    code, size = _TURN_CODE[zero], zero.bitwidth // 8

    def vectors(source, s0, s_step, n, m, bias, k, target, t0, t_step, zero):
        code((source + s0 * size, s_step, n, m, bias + k * size, target + t0 * size, t_step))

    return vectors


def to_lanes(source, s0, s_step, n, m, target, t0, width, zero):
    """``target[t0 + j * width + i] = source[s0 + i * s_step + j]`` for ``i < n``, ``j < m``: a lane for each row.

    Lanes from ``n`` to ``width`` become 0. Nothing else of the source is read.
    """
    for j in range(m):
        for i in range(width):
            target[t0 + j * width + i] = source[s0 + i * s_step + j] if i < n else zero


def _columns(v: Vectors, rows: list[Any]) -> list[Any]:
    """The columns of a square in memory: 16 bytes of a row at a time, which are loaded to where the column has them."""
    build, some = v.builder, 16 // v.align
    part, columns = ir.VectorType(v.item, some), []
    for q in range(0, v.lanes, some):
        wide = []
        for i in range(some):
            parts = []
            for row in rows[i::some]:
                place = build.bitcast(build.gep(row, [ir.IntType(64)(q)]), part.as_pointer())
                parts.append(build.load(place, align=v.align))
            while len(parts) > 1:
                both = places(range(2 * parts[0].type.count))
                parts = [build.shuffle_vector(*pair, both) for pair in zip(parts[::2], parts[1::2], strict=True)]
            wide.append(parts[0])
        half = some // 2
        while half:  # within 16 bytes pairs trade halves, then quarters
            for i in range(some):
                if i // half % 2 == 0:
                    pair = wide[i], wide[i + half]
                    order = [j // (2 * half) * 2 * half + j % half for j in range(v.lanes)]
                    order = [k + (v.lanes if j // half % 2 else 0) for j, k in enumerate(order)]
                    wide[i], wide[i + half] = (
                        build.shuffle_vector(*pair, places([j + more for j in order])) for more in (0, half)
                    )
            half //= 2
        columns += wide
    return columns


def _to_lanes(v: Vectors, source: Any, s_step: Any, n: Any, m: Any, target: Any) -> None:
    word, build, none = ir.IntType(64), v.builder, ir.IntType(64)(0)

    def square(j: Any, whole: bool) -> None:
        rows = [v.at(source, build.add(build.mul(word(i), s_step), j)) for i in range(v.lanes)]
        left = build.sub(m, j)
        if whole:
            columns = _columns(v, rows)
        else:
            there = [build.select(build.icmp_signed("<", word(i), n), left, none) for i in range(v.lanes)]
            columns = v.transposed([v.load_some(row, v.first(some)) for row, some in zip(rows, there, strict=True)])
        for k, row in enumerate(columns):
            place = v.at(target, build.mul(build.add(j, word(k)), word(v.lanes)))
            if whole:
                v.store(row, place)
            else:
                with build.if_then(build.icmp_signed("<", word(k), left)):
                    v.store(row, place)

    def body(j: Any, _: list[Any]) -> list[Any]:
        enough = build.and_(
            build.icmp_signed(">=", build.sub(m, j), word(v.lanes)), build.icmp_signed(">=", n, word(v.lanes))
        )
        with build.if_else(enough) as (whole, part):
            with whole:
                square(j, True)
            with part:
                square(j, False)
        return []

    v.loop(m, v.lanes, [], body)


_LANES_CODE = {types.float32: vector_code(32, 5, _to_lanes), types.float64: vector_code(64, 5, _to_lanes)}


@overload(to_lanes)
def _to_lanes_vectors(source, s0, s_step, n, m, target, t0, width, zero):
    if zero not in _LANES_CODE:
        return to_lanes
    code, size = _LANES_CODE[zero], zero.bitwidth // 8

    def vectors(source, s0, s_step, n, m, target, t0, width, zero):
        code((source + s0 * size, s_step, n, m, target + t0 * size))

    return vectors
