"""The window tile of direct convolution.

A sum goes over units, whose pixels begin at ``starts`` and whose weights, ``kernel`` of them, follow each other. A plan
names the lines of pixels of a unit: its entries are ``first item, kernel rows, taps, first weight, …``. A tile has
``WINDOW`` rows; line ``s`` of an entry, ``pitch`` items after the one before it, meets kernel row ``b`` in row
``s - b`` of the tile, so a vector is loaded once for all rows that need it. Weights lie tap by tap, ``b`` innermost.

At the edge of an image whose padding is a constant, lines and columns outside it are not read: an entry also names the
row and the column of its first item, and ``image`` says which rows and columns of what a block sees are pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

from .vectors import REGISTERS, VECTOR_BYTES, Vectors, places, vector_code

#: Rows of a window tile (the layers of networks have multiples of 7), its most vectors side by side, and the most
#: kernel rows of an entry.
WINDOW, ABREAST, STACKED = 7, 2 if REGISTERS == 32 else 1, 5

#: Numbers of an entry: first item, kernel rows, taps, first weight, and row and column of the first item.
ENTRY = 6

#: Whether the machine can load some lanes of a vector and leave out the others.
MASKED = VECTOR_BYTES >= 32

#: Where a unit begins that is nothing but padding.
NO_PIXELS = -(1 << 62)


#: What an image says to the tiles of a block at its edge, in rows and columns of what the block sees: the first row
#: that is in the image and how many are, the same for columns, and the rows from line to line.
ROW, ROWS, COLUMN, COLUMNS, BETWEEN = range(5)


def window_sum(
    x, x0, starts, units, plan, entries, kernel, shift, pitch, edge, image, blank, w, w0, y, y0, y_pitch, rows, columns,
    folded, first, bias, k, zero,
):
    """``y[i, j] = bias[k] + sum over units, entries, taps t, kernel rows b of w[t, b] * x[i + b, j + t * shift]``.

    Row ``i`` stands at ``y0 + i * y_pitch``, and the pixels of row ``i + 1`` are ``pitch`` items behind those of row
    ``i``. A signal is ``folded``: one tile after the other, the rows of each are vectors that follow each other. Where
    it is not the ``first`` part of a sum, it is added to ``y`` instead of to the bias. Pixels are read, though never
    used, for whole tiles; but at an ``edge``, where it is not folded, only those in the ``image``, and ``edge`` columns
    lead from one to the next; rows outside it lie at ``blank``. ``zero`` says by its type of what ``x w y bias`` are.
    """
    for i in range(1 if folded else rows):
        for j in range(columns):
            total = bias[k] if first else y[y0 + i * y_pitch + j]
            for u in range(units):
                for e in range(entries):
                    stacked, taps, weight = plan[ENTRY * e + 1 : ENTRY * e + 4]
                    for t in range(taps):
                        for b in range(stacked):
                            pixel = pixel_of(
                                x, x0, starts[u], plan[ENTRY * e : ENTRY * e + ENTRY], i + b, j, t * shift, pitch, edge,
                                image, blank,
                            )
                            total += w[w0 + u * kernel + weight + t * stacked + b] * pixel
            y[y0 + i * y_pitch + j] = total


def weight_sums(
    x, x0, starts, units, plan, entries, kernel, shift, pitch, edge, image, blank, dy, dy0, dy_pitch, rows, columns,
    folded, sums, s0, zero,
):
    """The adjoint of ``window_sum`` in ``w``: ``sums[t, b] += sum over i, j of dy[i, j] * x[i + b, j + t * shift]``.

    Every weight has a vector of sums; which of its lanes a product joins follows from the shapes.
    """
    vector = VECTOR_BYTES // dy.itemsize
    for u in range(units):
        for e in range(entries):
            stacked, taps, weight = plan[ENTRY * e + 1 : ENTRY * e + 4]
            for t in range(taps):
                for b in range(stacked):
                    at = s0 + (u * kernel + weight + t * stacked + b) * vector
                    for i in range(1 if folded else rows):
                        for j in range(columns):
                            pixel = pixel_of(
                                x, x0, starts[u], plan[ENTRY * e : ENTRY * e + ENTRY], i + b, j, t * shift, pitch, edge,
                                image, blank,
                            )
                            sums[at + j % vector] += dy[dy0 + i * dy_pitch + j] * pixel


def pixel_of(x, x0, start, entry, line, j, ahead, pitch, edge, image, blank):
    """The pixel of a unit that column ``j`` of the output sees in a line of an entry."""
    column = j * max(edge, 1) + ahead
    if edge:
        row_there = 0 <= entry[4] + line * image[BETWEEN] - image[ROW] < image[ROWS] and start != NO_PIXELS
        if not (row_there and 0 <= entry[5] + column - image[COLUMN] < image[COLUMNS]):
            return blank[0]
    return x[x0 + start + entry[0] + line * pitch + column]


class Tap(NamedTuple):
    """A tap of an entry: where the unit and the entry begin, the entry's row and column, how far ahead the tap is."""

    begin: ir.Value
    item: ir.Value
    row: ir.Value
    column: ir.Value
    ahead: ir.Value


class _Windows(Vectors):
    """Vectors that walk along the entries of a plan."""

    def number(self, table: ir.Value, index: ir.Value) -> ir.Value:
        """An entry of a table of numbers."""
        b = self.builder
        return b.load(b.gep(b.inttoptr(table, self.word.as_pointer()), [index]))

    def terms(
        self, walk: tuple[ir.Value, ...], sums: list[ir.Value], add: Callable[..., list[ir.Value]]
    ) -> list[ir.Value]:
        """Sums that ``add(tap, first weight, height, sums)`` goes on with, for each tap of each entry of units.

        The weight is a number of items, and the ``height`` kernel rows of an entry are known when code is written.
        """
        starts, units, plan, entries, kernel, shift = walk
        b, word = self.builder, self.word

        def unit(u: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            begin, weights = self.number(starts, u), b.mul(u, kernel)

            def entry(e: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                numbers = (self.number(plan, b.add(b.mul(e, word(ENTRY)), word(i))) for i in range(ENTRY))
                item, stacked, taps, weight, row, column = numbers

                def rows(height: int, sums: list[ir.Value]) -> list[ir.Value]:
                    def one(t: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                        tap = Tap(begin, b.add(begin, item), row, column, b.mul(t, shift))
                        return add(tap, b.add(b.add(weights, weight), b.mul(t, word(height))), height, sums)

                    return self.loop(taps, 1, sums, one)

                return self.choose(stacked, STACKED, sums, rows)

            return self.loop(entries, 1, sums, entry)

        return self.loop(units, 1, sums, unit)

    def lines(self, x: ir.Value, pitch: ir.Value, above: ir.Value, left: ir.Value) -> Callable[..., Any]:
        """``of(tap)(s, j)`` is vector ``j`` of line ``s`` as a tile in this row and column sees it."""
        b, word = self.builder, self.word
        corner = b.add(b.mul(above, pitch), left)

        def of(tap: Tap) -> Callable[..., ir.Value]:
            def load(s: int, j: int = 0) -> ir.Value:
                line = b.add(b.add(corner, tap.item), b.mul(word(s), pitch))
                return self.load(self.at(x, b.add(b.add(line, tap.ahead), word(j * self.lanes))))

            return load

        return of

    def lines_at_edge(
        self, x: ir.Value, pitch: ir.Value, above: ir.Value, left: ir.Value, image: ir.Value, blank: ir.Value, step: int
    ) -> Callable[..., Any]:
        """The same, one vector of each line, every ``step``-th pixel; rows and columns outside the image are blank."""
        b, word = self.builder, self.word
        left = b.mul(left, word(step))
        corner = b.add(b.mul(above, pitch), left)
        row, rows, column, columns, between = (self.number(image, word(i)) for i in range(5))
        empty, blank = self.load(self.at(blank, word(0))), self.at(blank, word(0))
        top, left = b.sub(b.mul(above, between), row), b.sub(left, column)

        def of(tap: Tap) -> Callable[..., ir.Value]:
            there = b.select(b.icmp_signed("==", tap.begin, word(NO_PIXELS)), word(0), rows)
            first = b.add(b.add(left, tap.column), tap.ahead)
            inside = [self.between(b.add(first, word(i * self.lanes)), columns) for i in range(step)]

            def load(s: int, j: int = 0) -> ir.Value:
                at = b.add(b.add(top, tap.row), b.mul(word(s), between))
                line = self.at(x, b.add(b.add(corner, tap.item), b.mul(word(s), pitch)))
                line = b.select(b.icmp_unsigned("<", at, there), line, blank)  # whichever the tap
                ahead = [b.add(tap.ahead, word(i * self.lanes)) for i in range(step)]
                parts = [self.load_some(b.gep(line, [a]), i, empty) for a, i in zip(ahead, inside, strict=True)]
                return parts[0] if step == 1 else b.shuffle_vector(*parts, places(range(0, 2 * self.lanes, 2)))

            return load

        return of

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


def _window(vectors: int, edge: int = 0) -> Any:
    def code(v: _Windows, *rest: Any) -> None:
        *walk, pitch, image, blank, w, x, y, y_pitch, rows, tiles, step, columns, lost, first, bias = rest
        word, build = v.word, v.builder
        start = v.spread(v.at(bias, word(0)))
        pieces = [(i, j) for i in range(WINDOW) for j in range(vectors)]

        def tile(above: Any, left: Any) -> None:
            y_corner = build.add(build.mul(above, y_pitch), left)
            high, wide = build.sub(rows, above), build.sub(columns, left)
            corner = x, pitch, above, left
            of = v.lines_at_edge(*corner, image, blank, edge) if edge else v.lines(*corner)

            def at(i: int, j: int) -> Any:
                return v.at(y, build.add(y_corner, build.add(build.mul(word(i), y_pitch), word(j * v.lanes))))

            def there(i: int, j: int) -> Any:
                n = build.select(build.icmp_signed("<", word(i), high), wide, word(0))
                return v.first(build.sub(n, build.add(build.mul(word(i), lost), word(j * v.lanes))))

            def load(_: int, __: list[Any]) -> list[Any]:
                return [v.load_some(at(*piece), there(*piece)) for piece in pieces]

            def add(tap: Tap, weight: Any, height: int, sums: list[Any]) -> list[Any]:
                sums, line = list(sums), of(tap)
                weights = [v.spread(v.at(w, build.add(weight, word(b)))) for b in range(height)]
                for s in range(WINDOW + height - 1):
                    for j in range(vectors):
                        pixels = line(s, j)
                        for b in range(max(0, s - WINDOW + 1), min(s + 1, height)):
                            place = (s - b) * vectors + j
                            sums[place] = v.fma(weights[b], pixels, sums[place])
                return sums

            def store(whole: int, _: list[Any]) -> list[Any]:
                for total, piece in zip(totals, pieces, strict=True):
                    if whole == 2:
                        v.store(total, at(*piece))
                    else:
                        v.store_some(total, at(*piece), there(*piece))
                return []

            sums = v.choose(build.sub(word(1), first), 1, [start] * len(pieces), load)
            totals = v.terms(tuple(walk), sums, add)
            last = build.sub(wide, build.mul(word(WINDOW - 1), lost))
            whole = build.icmp_signed(">=", last, word(vectors * v.lanes))
            whole = build.and_(whole, build.icmp_signed(">=", high, word(WINDOW)))
            v.choose(build.add(word(1), build.zext(whole, word)), 2, [], store)

        v.tiles(rows, WINDOW, tiles, step, tile)

    return code


def _weight(height_of_tile: int, edge: int = 0) -> Any:
    def code(v: _Windows, *rest: Any) -> None:
        *walk, pitch, image, blank, x, dy, dy_pitch, first, rows, tiles, step, columns, sums = rest
        word, build = v.word, v.builder

        def tile(above: Any, left: Any) -> None:
            above = build.add(first, above)
            dy_corner = build.add(build.mul(above, dy_pitch), left)
            corner = x, pitch, above, left
            of = v.lines_at_edge(*corner, image, blank, edge) if edge else v.lines(*corner)
            mask = v.first(build.sub(columns, left))
            lines = [build.add(dy_corner, build.mul(word(i), dy_pitch)) for i in range(height_of_tile)]
            dys = [v.load_some(v.at(dy, line), mask) for line in lines]

            def add(tap: Tap, weight: Any, height: int, _: list[Any]) -> list[Any]:
                kept = [v.at(sums, build.mul(build.add(weight, word(b)), word(v.lanes))) for b in range(height)]
                totals, line = [v.load(place) for place in kept], of(tap)
                for s in range(height_of_tile + height - 1):
                    pixels = build.select(mask, line(s), v.zero)  # what is no pixel may be infinite
                    for b in range(max(0, s - height_of_tile + 1), min(s + 1, height)):
                        totals[b] = v.fma(dys[s - b], pixels, totals[b])
                for total, place in zip(totals, kept, strict=True):
                    v.store(total, place)
                return []

            v.terms(tuple(walk), [], add)

        v.tiles(rows, height_of_tile, tiles, step, tile)

    return code


def _both(words: int, generate: Any) -> dict[Any, Any]:
    return {types.float32: _windows_code(32, words, generate), types.float64: _windows_code(64, words, generate)}


_WINDOW_CODE, _NARROW_CODE = _both(20, _window(ABREAST)), _both(20, _window(1))
_EDGE_CODE, _SECOND_EDGE_CODE = _both(20, _window(1, 1)), _both(20, _window(1, 2))
_WEIGHT_CODE, _ROW_WEIGHT_CODE = _both(18, _weight(WINDOW)), _both(18, _weight(1))
_EDGE_WEIGHT_CODE, _EDGE_ROW_WEIGHT_CODE = _both(18, _weight(WINDOW, 1)), _both(18, _weight(1, 1))


@overload(window_sum)
def _window_sum(
    x, x0, starts, units, plan, entries, kernel, shift, pitch, edge, image, blank, w, w0, y, y0, y_pitch, rows, columns,
    folded, first, bias, k, zero,
):
    code, narrow, edge_code, second = (
        codes[zero] for codes in (_WINDOW_CODE, _NARROW_CODE, _EDGE_CODE, _SECOND_EDGE_CODE)
    )
    size = zero.bitwidth // 8
    lanes = VECTOR_BYTES // size

    def vectors(
        x, x0, starts, units, plan, entries, kernel, shift, pitch, edge, image, blank, w, w0, y, y0, y_pitch, rows,
        columns, folded, first, bias, k, zero,
    ):
        w, bias, first = w + w0 * size, bias + k * size, np.int64(first)
        x, y = x + x0 * size, y + y0 * size
        walk = (starts, units, plan, entries, kernel, shift, pitch, image, blank, w)
        if MASKED and edge:
            tiles = (columns + lanes - 1) // lanes
            if edge == 1:
                edge_code((*walk, x, y, y_pitch, rows, tiles, lanes, columns, 0, first, bias))
            else:
                second((*walk, x, y, y_pitch, rows, tiles, lanes, columns, 0, first, bias))
            return
        # tiles as wide as can be, and for what is left of the columns narrow ones; a signal has narrow ones alone
        wide, rest = 0, WINDOW * lanes
        if not folded:
            wide, rest = (columns + lanes - 1) // lanes // ABREAST, lanes
        done = wide * ABREAST * lanes
        step, lost, high = ABREAST * lanes, 0, rows
        if folded:
            lost, high = lanes, WINDOW
        code((*walk, x, y, y_pitch, rows, wide, step, min(columns, done), 0, first, bias))
        x, y, tiles = x + done * size, y + done * size, (columns - done + rest - 1) // rest
        narrow((*walk, x, y, y_pitch, high, tiles, rest, columns - done, lost, first, bias))

    return vectors


@overload(weight_sums)
def _weight_sums(
    x, x0, starts, units, plan, entries, kernel, shift, pitch, edge, image, blank, dy, dy0, dy_pitch, rows, columns,
    folded, sums, s0, zero,
):
    code, single, size = _WEIGHT_CODE[zero], _ROW_WEIGHT_CODE[zero], zero.bitwidth // 8
    edge_code, edge_single = _EDGE_WEIGHT_CODE[zero], _EDGE_ROW_WEIGHT_CODE[zero]
    lanes = VECTOR_BYTES // size

    def vectors(
        x, x0, starts, units, plan, entries, kernel, shift, pitch, edge, image, blank, dy, dy0, dy_pitch, rows, columns,
        folded, sums, s0, zero,
    ):
        x, dy, sums = x + x0 * size, dy + dy0 * size, sums + s0 * size
        walk = (starts, units, plan, entries, kernel, shift, pitch, image, blank)
        if folded:  # whole tiles, and the rest of the vectors one by one
            tile = WINDOW * lanes
            tiles = columns // tile
            code((*walk, x, dy, dy_pitch, 0, WINDOW, tiles, tile, columns, sums))
            x, dy, columns = x + tiles * tile * size, dy + tiles * tile * size, columns - tiles * tile
            single((*walk, x, dy, dy_pitch, 0, 1, (columns + lanes - 1) // lanes, lanes, columns, sums))
        else:  # whole tiles, and the rest of the rows one by one
            tiles, high = (columns + lanes - 1) // lanes, rows // WINDOW * WINDOW
            if MASKED and edge:
                edge_code((*walk, x, dy, dy_pitch, 0, high, tiles, lanes, columns, sums))
                edge_single((*walk, x, dy, dy_pitch, high, rows - high, tiles, lanes, columns, sums))
            else:
                code((*walk, x, dy, dy_pitch, 0, high, tiles, lanes, columns, sums))
                single((*walk, x, dy, dy_pitch, high, rows - high, tiles, lanes, columns, sums))

    return vectors
