"""The window tile of direct convolution.

A sum goes over units, whose pixels begin at ``starts`` and whose weights, ``kernel`` of them, follow each other. A plan
names the lines of pixels of a unit: its entries are ``first item, kernel rows, taps, first weight``. A tile has
``WINDOW`` rows; line ``s`` of an entry, ``pitch`` items after the one before it, meets kernel row ``b`` in row
``s - b`` of the tile, so a vector is loaded once for all rows that need it. Weights lie tap by tap, ``b`` innermost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import overload

from .vectors import REGISTERS, VECTOR_BYTES, Vectors, places, vector_code

#: Rows of a window tile (the layers of networks have multiples of 7), its most vectors side by side, and the most
#: kernel rows of an entry.
WINDOW, ABREAST, STACKED = 7, 2 if REGISTERS == 32 else 1, 5


def window_sum(
    x, x0, starts, units, plan, entries, kernel, shift, pitch, w, w0, y, y0, y_pitch, rows, columns, folded, first,
    bias, k, zero,
):
    """``y[i, j] = bias[k] + sum over units, entries, taps t, kernel rows b of w[t, b] * x[i + b, j + t * shift]``.

    Row ``i`` stands at ``y0 + i * y_pitch``, and the pixels of row ``i + 1`` are ``pitch`` items behind those of row
    ``i``. A signal is ``folded``: one tile after the other, the rows of each are vectors that follow each other. Where
    it is not the ``first`` part of a sum, it is added to ``y`` instead of to the bias. Pixels are read, though never
    used, for whole tiles. ``zero`` says by its type of what ``x w y bias`` are.
    """
    for i in range(1 if folded else rows):
        for j in range(columns):
            total = bias[k] if first else y[y0 + i * y_pitch + j]
            for u in range(units):
                for e in range(entries):
                    start, stacked, taps, weight = plan[4 * e : 4 * e + 4]
                    for t in range(taps):
                        for b in range(stacked):
                            pixel = x[x0 + starts[u] + start + (i + b) * pitch + j + t * shift]
                            total += w[w0 + u * kernel + weight + t * stacked + b] * pixel
            y[y0 + i * y_pitch + j] = total


def weight_sums(
    x, x0, starts, units, plan, entries, kernel, shift, pitch, dy, dy0, dy_pitch, rows, columns, folded, sums, s0, zero
):
    """The adjoint of ``window_sum`` in ``w``: ``sums[t, b] += sum over i, j of dy[i, j] * x[i + b, j + t * shift]``.

    Every weight has a vector of sums; which of its lanes a product joins follows from the shapes.
    """
    vector = VECTOR_BYTES // dy.itemsize
    for u in range(units):
        for e in range(entries):
            start, stacked, taps, weight = plan[4 * e : 4 * e + 4]
            for t in range(taps):
                for b in range(stacked):
                    at = s0 + (u * kernel + weight + t * stacked + b) * vector
                    for i in range(1 if folded else rows):
                        for j in range(columns):
                            pixel = x[x0 + starts[u] + start + (i + b) * pitch + j + t * shift]
                            sums[at + j % vector] += dy[dy0 + i * dy_pitch + j] * pixel


def copy_rows(x, x0, x_pitch, stride, left, inside, n, rows, target, t0, t_pitch, blank, zero):
    """``target[i, j] = x[i, (j - left) * stride]`` for ``left <= j < left + inside``, and blank elsewhere; ``j < n``.

    Behind the last item of a row whatever is left of a vector is overwritten too, so rows are filled in their order.
    """
    for i in range(rows):
        for j in range(n):
            there = left <= j < left + inside
            target[t0 + i * t_pitch + j] = x[x0 + i * x_pitch + (j - left) * stride] if there else blank[0]


def spread_rows(x, x0, x_pitch, rows, n, target, t0, t_pitch, step, zero):
    """``target[i, j * step] = x[i, j]`` for ``i < rows``, ``j < n``; nothing between is touched."""
    for i in range(rows):
        for j in range(n):
            target[t0 + i * t_pitch + j * step] = x[x0 + i * x_pitch + j]


def copy_item(x, x0, target, t0, zero):
    """``target[t0] = x[x0]``."""
    target[t0] = x[x0]


class _Windows(Vectors):
    """Vectors that walk along the entries of a plan."""

    def __init__(self, builder: ir.IRBuilder, bits: int) -> None:
        super().__init__(builder, bits)
        self.word = ir.IntType(64)

    def number(self, table: ir.Value, index: ir.Value) -> ir.Value:
        """An entry of a table of numbers."""
        b = self.builder
        return b.load(b.gep(b.inttoptr(table, self.word.as_pointer()), [index]))

    def terms(
        self, walk: tuple[ir.Value, ...], sums: list[ir.Value], add: Callable[..., list[ir.Value]]
    ) -> list[ir.Value]:
        """Sums that ``add(first pixel, first weight, height, sums)`` goes on with, for each tap of each entry of units.

        Both are numbers of items, and the ``height`` kernel rows of an entry are known when code is written.
        """
        starts, units, plan, entries, kernel, shift = walk
        b, word = self.builder, self.word

        def unit(u: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            begin, weights = self.number(starts, u), b.mul(u, kernel)

            def entry(e: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                item, stacked, taps, weight = (self.number(plan, b.add(b.mul(e, word(4)), word(i))) for i in range(4))

                def rows(height: int, sums: list[ir.Value]) -> list[ir.Value]:
                    def tap(t: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                        pixel = b.add(b.add(begin, item), b.mul(t, shift))
                        return add(pixel, b.add(b.add(weights, weight), b.mul(t, word(height))), height, sums)

                    return self.loop(taps, 1, sums, tap)

                return self.choose(stacked, STACKED, sums, rows)

            return self.loop(entries, 1, sums, entry)

        return self.loop(units, 1, sums, unit)

    def gather_apart(self, pointer: ir.Value, step: ir.Value, mask: ir.Value) -> ir.Value:
        """The items of a mask, ``step`` of them from one to the next, and 0 where nothing is read."""
        b, word = self.builder, self.word
        lanes = ir.Constant(ir.VectorType(word, self.lanes), [i * self.align for i in range(self.lanes)])
        steps = b.mul(lanes, self.filled(step))
        pointers = ir.VectorType(self.item.as_pointer(), self.lanes)
        items = b.inttoptr(b.add(self.filled(b.ptrtoint(pointer, word)), steps), pointers)
        function = ir.FunctionType(self.vector, [pointers, ir.IntType(32), self.mask, self.vector])
        name = f"llvm.masked.gather.v{self.lanes}f{self.align * 8}.v{self.lanes}p0"
        code = cgutils.get_or_insert_function(b.module, function, name)
        return b.call(code, [items, ir.IntType(32)(self.align), mask, self.zero])

    def tiles(self, rows: ir.Value, high: int, n: ir.Value, step: ir.Value, tile: Callable[..., None]) -> None:
        """``tile(row, column)`` for rows ``high`` apart and for ``n`` columns ``step`` apart."""

        def across(row: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            def one(j: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
                tile(row, self.builder.mul(j, step))
                return []

            return self.loop(n, 1, [], one)

        self.loop(rows, high, [], across)

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
    def code(v: _Windows, *rest: Any) -> None:
        *walk, pitch, w, x, y, y_pitch, rows, tiles, step, columns, lost, first, bias = rest
        word, build = v.word, v.builder
        start = v.spread(v.at(bias, word(0)))
        places = [(i, j) for i in range(WINDOW) for j in range(vectors)]

        def tile(above: Any, left: Any) -> None:
            corner = build.add(build.mul(above, pitch), left)
            y_corner = build.add(build.mul(above, y_pitch), left)
            high, wide = build.sub(rows, above), build.sub(columns, left)

            def at(i: int, j: int) -> Any:
                return v.at(y, build.add(y_corner, build.add(build.mul(word(i), y_pitch), word(j * v.lanes))))

            def there(i: int, j: int) -> Any:
                n = build.select(build.icmp_signed("<", word(i), high), wide, word(0))
                return v.first(build.sub(n, build.add(build.mul(word(i), lost), word(j * v.lanes))))

            def load(_: int, __: list[Any]) -> list[Any]:
                return [v.load_some(at(*place), there(*place)) for place in places]

            def add(pixel: Any, weight: Any, height: int, sums: list[Any]) -> list[Any]:
                sums = list(sums)
                weights = [v.spread(v.at(w, build.add(weight, word(b)))) for b in range(height)]
                for s in range(WINDOW + height - 1):
                    line = build.add(build.add(corner, pixel), build.mul(word(s), pitch))
                    for j in range(vectors):
                        pixels = v.load(v.at(x, build.add(line, word(j * v.lanes))))
                        for b in range(max(0, s - WINDOW + 1), min(s + 1, height)):
                            place = (s - b) * vectors + j
                            sums[place] = v.fma(weights[b], pixels, sums[place])
                return sums

            def store(whole: int, _: list[Any]) -> list[Any]:
                for total, place in zip(totals, places, strict=True):
                    if whole == 2:
                        v.store(total, at(*place))
                    else:
                        v.store_some(total, at(*place), there(*place))
                return []

            sums = v.choose(build.sub(word(1), first), 1, [start] * len(places), load)
            totals = v.terms(tuple(walk), sums, add)
            last = build.sub(wide, build.mul(word(WINDOW - 1), lost))
            whole = build.icmp_signed(">=", last, word(vectors * v.lanes))
            whole = build.and_(whole, build.icmp_signed(">=", high, word(WINDOW)))
            v.choose(build.add(word(1), build.zext(whole, word)), 2, [], store)

        v.tiles(rows, WINDOW, tiles, step, tile)

    return code


def _weight(height_of_tile: int) -> Any:
    def code(v: _Windows, *rest: Any) -> None:
        *walk, pitch, x, dy, dy_pitch, rows, tiles, step, columns, sums = rest
        word, build = v.word, v.builder

        def tile(above: Any, left: Any) -> None:
            corner = build.add(build.mul(above, pitch), left)
            dy_corner = build.add(build.mul(above, dy_pitch), left)
            mask = v.first(build.sub(columns, left))
            lines = [build.add(dy_corner, build.mul(word(i), dy_pitch)) for i in range(height_of_tile)]
            dys = [v.load_some(v.at(dy, line), mask) for line in lines]

            def add(pixel: Any, weight: Any, height: int, _: list[Any]) -> list[Any]:
                places = [v.at(sums, build.mul(build.add(weight, word(b)), word(v.lanes))) for b in range(height)]
                totals = [v.load(place) for place in places]
                for s in range(height_of_tile + height - 1):
                    line = build.add(build.add(corner, pixel), build.mul(word(s), pitch))
                    pixels = build.select(mask, v.load(v.at(x, line)), v.zero)  # what is no pixel may be infinite
                    for b in range(max(0, s - height_of_tile + 1), min(s + 1, height)):
                        totals[b] = v.fma(dys[s - b], pixels, totals[b])
                for total, place in zip(totals, places, strict=True):
                    v.store(total, place)
                return []

            v.terms(tuple(walk), [], add)

        v.tiles(rows, height_of_tile, tiles, step, tile)

    return code


def _rows(stride: int) -> Any:
    def code(v: _Windows, x: Any, x_pitch: Any, *rest: Any) -> None:
        step, left, inside, n, rows, target, t_pitch, blank = rest
        word, build = v.word, v.builder
        empty, half = v.spread(v.at(blank, word(0))), ir.IntType(32)

        def below(first: Any, end: Any) -> Any:
            # the lanes whose number, counted from the first, is neither negative nor beyond the end
            numbers = build.add(places(range(v.lanes)), v.filled(build.trunc(first, half)))
            return build.icmp_unsigned("<", numbers, v.filled(build.trunc(end, half)))

        def items(line: Any, first: Any) -> Any:
            if stride == 0:
                return v.gather_apart(v.at(line, build.mul(first, step)), step, below(first, inside))
            end = build.mul(inside, word(stride))
            if stride == 2:  # the last item may be the last of all
                end = build.select(build.icmp_signed(">", end, word(0)), build.sub(end, word(1)), end)
            begin = build.mul(first, word(stride))
            starts = [build.add(begin, word(i * v.lanes)) for i in range(stride)]
            parts = [v.load_some(v.at(line, start), below(start, end)) for start in starts]
            return parts[0] if stride == 1 else build.shuffle_vector(*parts, places(range(0, 2 * v.lanes, 2)))

        def row(i: Any, _: list[Any]) -> list[Any]:
            line, goal = build.add(x, build.mul(build.mul(i, x_pitch), word(v.align))), build.mul(i, t_pitch)

            def piece(p: Any, _: list[Any]) -> list[Any]:
                first = build.sub(p, left)
                pixels = build.select(below(first, inside), items(line, first), empty)
                v.store(pixels, v.at(target, build.add(goal, p)))
                return []

            v.loop(n, v.lanes, [], piece)
            return []

        v.loop(rows, 1, [], row)

    return code


def _spread(v: _Windows, x: Any, x_pitch: Any, rows: Any, n: Any, target: Any, t_pitch: Any, step: Any) -> None:
    word, build = v.word, v.builder

    def row(i: Any, _: list[Any]) -> list[Any]:
        line, goal = v.at(x, build.mul(i, x_pitch)), v.at(target, build.mul(i, t_pitch))

        def pairs(p: Any, _: list[Any]) -> list[Any]:
            left = build.sub(n, p)
            pixels = v.load_some(build.gep(line, [p]), v.first(left))
            for half in range(2):  # a vector of every second place
                there = v.first(build.sub(build.mul(left, word(2)), word(half * v.lanes)))
                there = build.and_(there, ir.Constant(v.mask, [1 - j % 2 for j in range(v.lanes)]))
                apart = v.pick(pixels, [half * v.lanes // 2 + j // 2 for j in range(v.lanes)])
                v.store_some(apart, build.gep(goal, [build.add(build.mul(p, word(2)), word(half * v.lanes))]), there)
            return []

        def single(j: Any, _: list[Any]) -> list[Any]:
            build.store(build.load(build.gep(line, [j])), build.gep(goal, [build.mul(j, step)]))
            return []

        twice = build.icmp_signed("==", step, word(2))
        v.loop(build.select(twice, n, word(0)), v.lanes, [], pairs)
        v.loop(build.select(twice, word(0), n), 1, [], single)
        return []

    v.loop(rows, 1, [], row)


def _item(v: _Windows, x: Any, target: Any) -> None:
    v.builder.store(v.builder.load(v.at(x, v.word(0))), v.at(target, v.word(0)))


def _both(words: int, generate: Any) -> dict[Any, Any]:
    return {types.float32: _windows_code(32, words, generate), types.float64: _windows_code(64, words, generate)}


_WINDOW_CODE, _NARROW_CODE = _both(18, _window(ABREAST)), _both(18, _window(1))
_WEIGHT_CODE, _ROW_WEIGHT_CODE = _both(15, _weight(WINDOW)), _both(15, _weight(1))
_ROWS_CODE, _SECOND_ROWS_CODE, _APART_ROWS_CODE = (_both(10, _rows(stride)) for stride in (1, 2, 0))
_SPREAD_CODE, _ITEM_CODE = _both(7, _spread), _both(2, _item)


@overload(window_sum)
def _window_sum(
    x, x0, starts, units, plan, entries, kernel, shift, pitch, w, w0, y, y0, y_pitch, rows, columns, folded, first,
    bias, k, zero,
):
    code, narrow, size = _WINDOW_CODE[zero], _NARROW_CODE[zero], zero.bitwidth // 8
    lanes = VECTOR_BYTES // size

    def vectors(
        x, x0, starts, units, plan, entries, kernel, shift, pitch, w, w0, y, y0, y_pitch, rows, columns, folded, first,
        bias, k, zero,
    ):
        w, bias, first = w + w0 * size, bias + k * size, np.int64(first)
        walk = (starts, units, plan, entries, kernel, shift, pitch, w)
        # tiles as wide as can be, and for what is left of the columns narrow ones; a signal has narrow ones alone
        wide, rest = 0, WINDOW * lanes
        if not folded:
            wide, rest = (columns + lanes - 1) // lanes // ABREAST, lanes
        done = wide * ABREAST * lanes
        x, y, tiles = x + x0 * size, y + y0 * size, (columns - done + rest - 1) // rest
        step, lost, high = ABREAST * lanes, 0, rows
        if folded:
            lost, high = lanes, WINDOW
        code((*walk, x, y, y_pitch, rows, wide, step, min(columns, done), 0, first, bias))
        x, y = x + done * size, y + done * size
        narrow((*walk, x, y, y_pitch, high, tiles, rest, columns - done, lost, first, bias))

    return vectors


@overload(weight_sums)
def _weight_sums(
    x, x0, starts, units, plan, entries, kernel, shift, pitch, dy, dy0, dy_pitch, rows, columns, folded, sums, s0, zero
):
    code, single, size = _WEIGHT_CODE[zero], _ROW_WEIGHT_CODE[zero], zero.bitwidth // 8
    lanes = VECTOR_BYTES // size

    def vectors(
        x, x0, starts, units, plan, entries, kernel, shift, pitch, dy, dy0, dy_pitch, rows, columns, folded, sums, s0,
        zero,
    ):
        x, dy, sums = x + x0 * size, dy + dy0 * size, sums + s0 * size
        walk = (starts, units, plan, entries, kernel, shift, pitch)
        if folded:  # whole tiles, and the rest of the vectors one by one
            tile = WINDOW * lanes
            tiles = columns // tile
            code((*walk, x, dy, dy_pitch, WINDOW, tiles, tile, columns, sums))
            x, dy, columns = x + tiles * tile * size, dy + tiles * tile * size, columns - tiles * tile
            single((*walk, x, dy, dy_pitch, 1, (columns + lanes - 1) // lanes, lanes, columns, sums))
        else:  # whole tiles, and the rest of the rows one by one
            tiles, high = (columns + lanes - 1) // lanes, rows // WINDOW * WINDOW
            code((*walk, x, dy, dy_pitch, high, tiles, lanes, columns, sums))
            x, dy = x + high * pitch * size, dy + high * dy_pitch * size
            single((*walk, x, dy, dy_pitch, rows - high, tiles, lanes, columns, sums))

    return vectors


@overload(copy_rows)
def _copy_rows(x, x0, x_pitch, stride, left, inside, n, rows, target, t0, t_pitch, blank, zero):
    code, second, apart = _ROWS_CODE[zero], _SECOND_ROWS_CODE[zero], _APART_ROWS_CODE[zero]
    size = zero.bitwidth // 8

    def vectors(x, x0, x_pitch, stride, left, inside, n, rows, target, t0, t_pitch, blank, zero):
        x, target = x + x0 * size, target + t0 * size
        if stride == 1:
            code((x, x_pitch, stride, left, inside, n, rows, target, t_pitch, blank))
        elif stride == 2:
            second((x, x_pitch, stride, left, inside, n, rows, target, t_pitch, blank))
        else:
            apart((x, x_pitch, stride, left, inside, n, rows, target, t_pitch, blank))

    return vectors


@overload(spread_rows)
def _spread_rows(x, x0, x_pitch, rows, n, target, t0, t_pitch, step, zero):
    code, size = _SPREAD_CODE[zero], zero.bitwidth // 8

    def vectors(x, x0, x_pitch, rows, n, target, t0, t_pitch, step, zero):
        code((x + x0 * size, x_pitch, rows, n, target + t0 * size, t_pitch, step))

    return vectors


@overload(copy_item)
def _copy_item(x, x0, target, t0, zero):
    code, size = _ITEM_CODE[zero], zero.bitwidth // 8
    return lambda x, x0, target, t0, zero: code((x + x0 * size, target + t0 * size))
