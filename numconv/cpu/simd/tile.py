"""The register tile, for products of matrices that lie in memory row by row or by a table."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

from ..target import REGISTERS, VECTOR_BYTES
from .vectors import Vectors, lanes, vector_code

#: ``outer_sum`` takes tiles of up to ``WIDEST`` vectors of columns and ``tallest(vectors)`` rows: as many sums as
#: registers hold beside what is being multiplied.
SUMS, WIDEST, HIGHEST = (24, 4, 8) if REGISTERS == 32 else (12, 3, 6)

#: Vectors in a row of the tiles that matrices are cut into: the highest, or the widest.
WIDTHS = (SUMS // HIGHEST, WIDEST)

#: The tile asks for rows of a panel so many steps before it multiplies them.
AHEAD = 8

#: What stands for a vector where there is no vector code: a long row, so that the compiler vectorises what it can.
PLAIN_LANES = 16


def sum_lanes(dtype: np.dtype) -> int:
    """Columns that ``outer_sum`` counts as one vector."""
    return PLAIN_LANES if lanes(dtype) == 1 else lanes(dtype)


def outer_sum(a, a0, rows, r0, b, b0, terms, n, height, columns, tiles, depth, out, o0, step, start, s0, joins, zero):
    """``out[i, j] = start[i] + sum over q < n of a[rows[i] + terms[q, 0]] * b[terms[q, 1] + j]``, ``i < height``.

    Or it ``joins`` what ``out`` was. Each array has a place where it begins; rows of ``out`` are a ``step`` apart. The
    register tile, a sum of outer products, and the ``tiles`` beside it, which begin ``depth`` apart in ``b``.
    The operands are matrices only through a table: row ``q`` of ``b`` may begin anywhere, so the windows of an image
    are multiplied where they lie. ``columns`` are whole vectors, as ``sum_lanes`` counts them. Here and in
    the other rooms arrays are handed on as ``address`` gives them, with a ``zero`` of their dtype.
    """
    for i in range(height):
        for j in range(tiles * columns):
            total = zero
            for q in range(n):
                total += a[a0 + rows[r0 + i] + terms[q, 0]] * b[b0 + j // columns * depth + terms[q, 1] + j % columns]
            before = out[o0 + i * step + j] if joins else start[s0 + i]
            out[o0 + i * step + j] = before + total


def multiply_add(n, out, zero):
    """``n`` times ``SUMS`` multiply-adds of vectors, with nothing to load: what the machine can do at the most."""
    for _ in range(n):
        for i in range(SUMS):
            out[i] += zero


def _row_of_tiles(
    v: Vectors, height: int, vectors: int, a: Any, rows: Any, b: Any, terms: Any, n: Any, tiles: Any,
    depth: Any, out: Any, step: Any, start: Any, joins: Any, in_panels: bool,
) -> None:  # fmt: skip
    """Rows of ``b`` that follow one another ``in_panels`` are asked for early; elsewhere other tiles lie ahead."""
    word, build = ir.IntType(64), v.builder
    rows, terms = (build.inttoptr(table, word.as_pointer()) for table in (rows, terms))
    joins = build.icmp_signed("!=", joins, word(0))
    width = vectors * v.lanes
    starts = [v.at(a, build.load(build.gep(rows, [word(i)]))) for i in range(height)]

    def tile(t: Any, _: list[Any]) -> list[Any]:
        column, corner = build.mul(t, word(width)), v.at(b, build.mul(t, depth))
        goals = [build.gep(v.at(out, column), [build.mul(word(i), step)]) for i in range(height)]
        places = [build.gep(goal, [word(j * v.lanes)]) for goal in goals for j in range(vectors)]
        for place in places:
            v.prefetch(place, write=True)

        def add(q: Any, sums: list[Any]) -> list[Any]:
            # registers for addresses are scarce: one more, and the compiler spills sums
            pair = build.gep(terms, [build.mul(q, word(2))])
            term, line = build.load(pair), build.gep(corner, [build.load(build.gep(pair, [word(1)]))])
            pixels = [v.load(build.gep(line, [word(j * v.lanes)])) for j in range(vectors)]
            for j in range(vectors if in_panels else 0):
                v.prefetch(build.gep(line, [word(AHEAD * width + j * v.lanes)]))
            results = []
            for i in range(height):
                weight = v.spread(build.gep(starts[i], [term]))
                results += [v.fma(weight, pixels[j], sums[i * vectors + j]) for j in range(vectors)]
            return results

        totals = v.loop(n, 1, [v.zero] * (height * vectors), add)
        with build.if_else(joins) as (go_on, begin):
            with go_on:
                for place, total in zip(places, totals, strict=True):
                    v.store(build.fadd(v.load(place), total), place)
            with begin:
                begins = [v.spread(v.at(start, word(i))) for i in range(height)]
                for i, (place, total) in enumerate(zip(places, totals, strict=True)):
                    v.store(build.fadd(begins[i // vectors], total), place)
        return []

    v.loop(tiles, 1, [], tile)


def _outer_sum(
    v: Vectors, a: Any, rows: Any, b: Any, terms: Any, n: Any, height: Any, vectors: Any, tiles: Any,
    depth: Any, out: Any, step: Any, start: Any, joins: Any,
) -> None:  # fmt: skip
    # every tile that fits the registers has a loop of its own
    word, build = ir.IntType(64), v.builder
    after = build.append_basic_block("after")
    choice = build.switch(build.add(build.mul(height, word(WIDEST + 1)), vectors), after)
    for j in range(1, WIDEST + 1):
        for i in range(1, min(HIGHEST, SUMS // j) + 1):
            block = build.append_basic_block(f"tile{i}x{j}")
            choice.add_case(word(i * (WIDEST + 1) + j), block)
            build.position_at_end(block)
            arguments = a, rows, b, terms, n, tiles, depth, out, step, start, joins
            if j in WIDTHS and i == min(HIGHEST, SUMS // j):  # most tiles are whole
                with build.if_else(build.icmp_signed("==", depth, word(j * v.lanes))) as (side_by_side, apart):
                    with side_by_side:
                        _row_of_tiles(v, i, j, *arguments, in_panels=False)
                    with apart:
                        _row_of_tiles(v, i, j, *arguments, in_panels=True)
            else:
                _row_of_tiles(v, i, j, *arguments, in_panels=False)
            build.branch(after)
    build.position_at_end(after)


def _multiply_add(v: Vectors, n: Any, out: Any) -> None:
    word = ir.IntType(64)
    a, b = (v.load(v.at(out, word(i * v.lanes))) for i in range(2))
    totals = v.loop(n, 1, [v.zero] * SUMS, lambda _, sums: [v.fma(a, b, total) for total in sums])
    for i, total in enumerate(totals):
        v.store(total, v.at(out, word(i * v.lanes)))


_SUM_CODE = {types.float32: vector_code(32, 13, _outer_sum), types.float64: vector_code(64, 13, _outer_sum)}
_PEAK_CODE = {types.float32: vector_code(32, 2, _multiply_add), types.float64: vector_code(64, 2, _multiply_add)}


@overload(outer_sum)
def _sum_tile(
    a, a0, rows, r0, b, b0, terms, n, height, columns, tiles, depth, out, o0, step, start, s0, joins, zero
):
    if zero not in _SUM_CODE:
        return outer_sum
    code, size = _SUM_CODE[zero], zero.bitwidth // 8
    lanes = VECTOR_BYTES // size

    def row_of_tiles(
        a, a0, rows, r0, b, b0, terms, n, height, columns, tiles, depth, out, o0, step, start, s0, joins, zero
    ):
        code((
            a + a0 * size, rows + r0 * 8, b + b0 * size, terms, n, height, columns // lanes, tiles, depth,
            out + o0 * size, step, start + s0 * size, np.int64(joins),
        ))  # fmt: skip

    return row_of_tiles


@overload(multiply_add)
def _multiply_add_loop(n, out, zero):
    if zero not in _PEAK_CODE:
        return multiply_add
    code = _PEAK_CODE[zero]
    return lambda n, out, zero: code((n, out))
