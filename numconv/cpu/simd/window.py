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

from llvmlite import ir
from numba.core import cgutils

from ..target import REGISTERS, VECTOR_BYTES
from .vectors import Vectors, compiled_as, places

#: Rows of a window tile (the layers of networks have multiples of 7), its most vectors side by side, and the most
#: kernel rows of an entry.
WINDOW, ABREAST, STACKED = 7, 2 if REGISTERS == 32 else 1, 5

#: Numbers of an entry: first item, kernel rows, taps, first weight, and row and column of the first item.
ENTRY = 6

#: Terms after which a sum is set aside and begins anew, so that rounding does not grow with the length of a chain.
CHAIN = 256

#: Whether the machine can load some lanes of a vector and leave out the others.
MASKED = VECTOR_BYTES >= 32

#: Where a unit begins that is nothing but padding.
NO_PIXELS = -(1 << 62)


#: What an image says to the tiles of a block at its edge, in rows and columns of what the block sees: the first row
#: that is in the image and how many are, the same for columns, and the rows from line to line; how many numbers it has.
ROW, ROWS, COLUMN, COLUMNS, BETWEEN, IMAGE = range(6)


def window_sum(
    x, x0, starts, units, plan, entries, kernel, shift, pitch, edge, image, blank, w, w0, y, y0, y_pitch, rows, columns,
    folded, first, bias, k, zero,
):
    """``y[i, j] = bias[k] + sum over units, entries, taps t, kernel rows b of w[t, b] * x[i + b, j + t * shift]``.

    Row ``i`` stands at ``y0 + i * y_pitch``, and the pixels of row ``i + 1`` are ``pitch`` items behind those of row
    ``i``. A signal is ``folded``: one tile after the other, the rows of each are vectors that follow each other. Where
    it is not the ``first`` part of a sum, it is added to ``y`` instead of to the bias. Sums longer than ``CHAIN`` are
    added up part by part, entries together. Pixels are read, though never
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
        self, walk: tuple[ir.Value, ...], sums: list[ir.Value], add: Callable[..., list[ir.Value]],
        then: Callable[..., list[ir.Value]] = lambda terms, sums: sums,
    ) -> list[ir.Value]:
        """Sums that ``add(tap, first weight, height, sums)`` goes on with, for each tap of each entry of units.

        The weight is a number of items, and the ``height`` kernel rows of an entry are known when code is written.
        ``then(terms, sums)`` goes on with them after each entry.
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

                return then(b.mul(stacked, taps), self.choose(stacked, STACKED, sums, rows))

            return self.loop(entries, 1, sums, entry)

        return self.loop(units, 1, sums, unit)

    def lines(self, x: ir.Value, pitch: ir.Value, above: ir.Value, left: ir.Value) -> Callable[..., Any]:
        """``of(tap)(s, j)`` is vector ``j`` of line ``s`` as a tile in this row and column sees it."""
        b, word = self.builder, self.word
        corner = b.add(b.mul(above, pitch), left)

        def of(tap: Tap) -> Callable[..., ir.Value]:
            first = b.add(corner, tap.item)

            def load(s: int, j: int = 0) -> ir.Value:
                line = b.add(first, b.mul(word(s), pitch))
                return self.load(b.gep(x, [b.add(b.add(line, tap.ahead), word(j * self.lanes))]))

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
        blank = self.at(blank, word(0))
        empty = self.load(blank)
        top, left = b.sub(b.mul(above, between), row), b.sub(left, column)

        def of(tap: Tap) -> Callable[..., ir.Value]:
            there = b.select(b.icmp_signed("==", tap.begin, word(NO_PIXELS)), word(0), rows)
            first, near = b.add(corner, tap.item), b.add(top, tap.row)
            begin = b.add(b.add(left, tap.column), tap.ahead)
            inside = [self.between(b.add(begin, word(i * self.lanes)), columns) for i in range(step)]
            ahead = [b.add(tap.ahead, word(i * self.lanes)) for i in range(step)]

            def load(s: int, j: int = 0) -> ir.Value:
                line = b.gep(x, [b.add(first, b.mul(word(s), pitch))])
                at = b.add(near, b.mul(word(s), between))
                line = b.select(b.icmp_unsigned("<", at, there), line, blank)  # whichever the tap
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


def _window(v: _Windows, walk: Any, vectors: int, edge: int, *rest: Any) -> None:
    """Tiles of ``vectors`` side by side; at the edge of an image every ``edge``-th pixel is read."""
    pitch, image, blank, w, x, y, y_pitch, rows, tiles, step, columns, lost, first, start = rest
    word, build = v.word, v.builder
    pieces = [(i, j) for i in range(WINDOW) for j in range(vectors)]
    aside = [cgutils.alloca_once(build, v.vector) for _ in pieces]  # what was summed before
    length, some = cgutils.alloca_once(build, word), cgutils.alloca_once(build, word)  # since then; whether anything
    _, units, _, _, kernel, _ = walk
    long = build.zext(build.icmp_signed(">", build.mul(units, kernel), word(CHAIN)), word)

    def tile(above: Any, left: Any) -> None:
        y_corner = build.add(build.mul(above, y_pitch), left)
        high, wide = build.sub(rows, above), build.sub(columns, left)
        corner = x, pitch, above, left
        of = v.lines_at_edge(*corner, image, blank, edge) if edge else v.lines(*corner)

        def at(i: int, j: int) -> Any:
            return build.gep(y, [build.add(y_corner, build.add(build.mul(word(i), y_pitch), word(j * v.lanes)))])

        def there(i: int, j: int) -> Any:
            n = build.select(build.icmp_signed("<", word(i), high), wide, word(0))
            return v.first(build.sub(n, build.add(build.mul(word(i), lost), word(j * v.lanes))))

        def load(_: int, __: list[Any]) -> list[Any]:
            for place, piece in zip(aside, pieces, strict=True):
                build.store(v.load_some(at(*piece), there(*piece)), place)
            return [v.zero] * len(pieces)

        def add(tap: Tap, weight: Any, height: int, sums: list[Any]) -> list[Any]:
            sums, line = list(sums), of(tap)
            weights = [v.spread(build.gep(w, [build.add(weight, word(b))])) for b in range(height)]
            for s in range(WINDOW + height - 1):
                for j in range(vectors):
                    pixels = line(s, j)
                    for b in range(max(0, s - WINDOW + 1), min(s + 1, height)):
                        place = (s - b) * vectors + j
                        sums[place] = v.fma(weights[b], pixels, sums[place])
            return sums

        def together(_: int, sums: list[Any]) -> list[Any]:
            return [build.fadd(build.load(place), total) for place, total in zip(aside, sums, strict=True)]

        def set_aside(case: int, sums: list[Any]) -> list[Any]:
            for place, total in zip(aside, together(case, sums) if case == 2 else sums, strict=True):
                build.store(total, place)
            build.store(word(0), length)
            build.store(word(1), some)
            return [v.zero] * len(pieces)

        def then(terms: Any, sums: list[Any]) -> list[Any]:
            def count(_: int, sums: list[Any]) -> list[Any]:
                total = build.add(build.load(length), terms)
                build.store(total, length)
                case = build.add(word(1), build.load(some))
                case = build.select(build.icmp_signed("<", total, word(CHAIN)), word(0), case)
                return v.choose(case, 2, sums, set_aside)

            return v.choose(long, 1, sums, count)

        def store(whole: int, _: list[Any]) -> list[Any]:
            for total, piece in zip(totals, pieces, strict=True):
                if whole == 2:
                    v.store(total, at(*piece))
                else:
                    v.store_some(total, at(*piece), there(*piece))
            return []

        build.store(word(0), length)
        build.store(build.sub(word(1), first), some)
        sums = v.choose(build.sub(word(1), first), 1, [start] * len(pieces), load)
        sums = v.terms(walk, sums, add, then)
        totals = v.choose(build.load(some), 1, sums, together)
        last = build.sub(wide, build.mul(word(WINDOW - 1), lost))
        whole = build.icmp_signed(">=", last, word(vectors * v.lanes))
        whole = build.and_(whole, build.icmp_signed(">=", high, word(WINDOW)))
        v.choose(build.add(word(1), build.zext(whole, word)), 2, [], store)

    v.tiles(rows, WINDOW, tiles, step, tile)


@compiled_as(window_sum, _Windows)
def _window_sum(
    v: _Windows, x: Any, x0: Any, starts: Any, units: Any, plan: Any, entries: Any, kernel: Any, shift: Any, pitch: Any,
    edge: Any, image: Any, blank: Any, w: Any, w0: Any, y: Any, y0: Any, y_pitch: Any, rows: Any, columns: Any,
    folded: Any, first: Any, bias: Any, k: Any,
) -> None:
    build, word = v.builder, v.word
    x, y, w, start = v.at(x, x0), v.at(y, y0), v.at(w, w0), v.spread(v.at(bias, k))
    walk, ends = (starts, units, plan, entries, kernel, shift), (first, start)
    vectors = build.sdiv(build.add(columns, word(v.lanes - 1)), word(v.lanes))

    def inside() -> None:
        # tiles as wide as can be, and for what is left of the columns narrow ones; a signal has narrow ones alone
        folds = build.icmp_signed("!=", folded, word(0))
        wide = build.select(folds, word(0), build.sdiv(vectors, word(ABREAST)))
        done = build.mul(wide, word(ABREAST * v.lanes))
        lost, high = build.select(folds, word(v.lanes), word(0)), build.select(folds, word(WINDOW), rows)
        step, left = build.select(folds, word(WINDOW * v.lanes), word(v.lanes)), build.sub(columns, done)
        tiles = build.sdiv(build.add(left, build.sub(step, word(1))), step)
        whole = build.select(build.icmp_signed("<", columns, done), columns, done)
        source = pitch, image, blank, w
        _window(v, walk, ABREAST, 0, *source, x, y, y_pitch, rows, wide, word(ABREAST * v.lanes), whole, word(0), *ends)
        rest = build.gep(x, [done]), build.gep(y, [done]), y_pitch
        _window(v, walk, 1, 0, *source, *rest, high, tiles, step, left, lost, *ends)

    def case(n: int, _: list[Any]) -> list[Any]:
        if n == 1:
            inside()
        else:
            to = x, y, y_pitch, rows, vectors, word(v.lanes), columns, word(0)
            _window(v, walk, 1, n - 1, pitch, image, blank, w, *to, *ends)
        return []

    v.choose(build.add(edge, word(1)), 3 if MASKED else 1, [], case)


def _weight(v: _Windows, walk: Any, tall: int, edge: bool, *rest: Any) -> None:
    """Tiles ``tall`` rows high and a vector wide."""
    pitch, image, blank, x, dy, dy_pitch, first, rows, tiles, step, columns, sums = rest
    word, build = v.word, v.builder

    def tile(above: Any, left: Any) -> None:
        above = build.add(first, above)
        dy_corner = build.add(build.mul(above, dy_pitch), left)
        corner = x, pitch, above, left
        of = v.lines_at_edge(*corner, image, blank, 1) if edge else v.lines(*corner)
        mask = v.first(build.sub(columns, left))
        lines = [build.add(dy_corner, build.mul(word(i), dy_pitch)) for i in range(tall)]
        dys = [v.load_some(build.gep(dy, [line]), mask) for line in lines]

        def add(tap: Tap, weight: Any, height: int, _: list[Any]) -> list[Any]:
            kept = [build.gep(sums, [build.mul(build.add(weight, word(b)), word(v.lanes))]) for b in range(height)]
            totals, line = [v.load(place) for place in kept], of(tap)
            for s in range(tall + height - 1):
                pixels = build.select(mask, line(s), v.zero)  # what is no pixel may be infinite
                for b in range(max(0, s - tall + 1), min(s + 1, height)):
                    totals[b] = v.fma(dys[s - b], pixels, totals[b])
            for total, place in zip(totals, kept, strict=True):
                v.store(total, place)
            return []

        v.terms(walk, [], add)

    v.tiles(rows, tall, tiles, step, tile)


@compiled_as(weight_sums, _Windows)
def _weight_sums(
    v: _Windows, x: Any, x0: Any, starts: Any, units: Any, plan: Any, entries: Any, kernel: Any, shift: Any, pitch: Any,
    edge: Any, image: Any, blank: Any, dy: Any, dy0: Any, dy_pitch: Any, rows: Any, columns: Any, folded: Any,
    sums: Any, s0: Any,
) -> None:
    build, word = v.builder, v.word
    x, dy, sums = v.at(x, x0), v.at(dy, dy0), v.at(sums, s0)
    walk, source = (starts, units, plan, entries, kernel, shift), (pitch, image, blank)
    vectors = build.sdiv(build.add(columns, word(v.lanes - 1)), word(v.lanes))

    def inside() -> None:
        # whole tiles, and one by one the rest: of a signal's vectors, of an image's rows
        folds = build.icmp_signed("!=", folded, word(0))
        tile = word(WINDOW * v.lanes)
        tiles = build.sdiv(columns, tile)
        done = build.select(folds, build.mul(tiles, tile), word(0))
        high = build.sub(rows, build.srem(rows, word(WINDOW)))
        across = build.select(folds, tiles, vectors), build.select(folds, tile, word(v.lanes)), columns, sums
        down = word(0), build.select(folds, word(WINDOW), high)
        _weight(v, walk, WINDOW, False, *source, x, dy, dy_pitch, *down, *across)
        left = build.sub(columns, done)
        across = build.sdiv(build.add(left, word(v.lanes - 1)), word(v.lanes)), word(v.lanes), left, sums
        single = build.select(folds, word(0), high), build.select(folds, word(1), build.sub(rows, high))
        _weight(v, walk, 1, False, *source, build.gep(x, [done]), build.gep(dy, [done]), dy_pitch, *single, *across)

    def case(n: int, _: list[Any]) -> list[Any]:
        if n == 1:
            inside()
        else:
            high, across = build.sub(rows, build.srem(rows, word(WINDOW))), (vectors, word(v.lanes), columns, sums)
            _weight(v, walk, WINDOW, True, *source, x, dy, dy_pitch, word(0), high, *across)
            _weight(v, walk, 1, True, *source, x, dy, dy_pitch, high, build.sub(rows, high), *across)
        return []

    v.choose(build.add(edge, word(1)), 2 if MASKED else 1, [], case)
