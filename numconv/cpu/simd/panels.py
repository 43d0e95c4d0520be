"""The moves around the register tile: packing lines into panels, turning them, bringing sums to the output."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

from ..target import VECTOR_BYTES
from .vectors import Vectors, places, vector_code

#: Items that an array needs more so that it can begin with a line of the cache.
ALIGNED = VECTOR_BYTES // 4


def aligned(array):
    """The first item of an array that begins a line of the cache; it may cost ``ALIGNED`` items.

    Of items smaller than float32 more could lie before it, and no vector code is for them.
    """
    return -array.ctypes.data % VECTOR_BYTES // array.itemsize if array.itemsize >= 4 else 0


def put(sums, s0, s_step, n, height, target, t0, step, bias, k0, first, zero):
    """``n`` columns of sums, rows ``s_step`` apart, join the rows of ``target`` at ``t0 + i * step``, or begin them."""
    for i in range(height):
        for j in range(n):
            before = bias[k0 + i] if first else target[t0 + i * step + j]
            target[t0 + i * step + j] = before + sums[s0 + i * s_step + j]


def put_apart(sums, s0, s_step, n, height, target, t0, step, apart, bias, k0, first, zero):
    """``put`` for columns that are ``apart`` in the target. It may read, not use, a vector behind the last sum."""
    for i in range(height):
        for j in range(n):
            before = bias[k0 + i] if first else target[t0 + i * step + j * apart]
            target[t0 + i * step + j * apart] = before + sums[s0 + i * s_step + j]


def pack(lines, l0, terms, q0, n, run, panel, p0, column, width, depth, zero):
    """Row ``q`` of panels becomes, from ``column`` on, the ``run`` numbers from ``l0 + terms[q, 1]`` on in ``lines``.

    A panel is as wide as a tile, its rows ``width`` numbers apart; the next column after the last is the first of the
    next panel, ``depth`` on.
    """
    for q in range(q0, q0 + n):
        for j in range(column, column + run):
            panel[p0 + j // width * depth + q * width + j % width] = lines[l0 + terms[q, 1] + j - column]


def copy_run(source, s0, n, target, t0, zero):
    """``target[t0 : t0 + n] = source[s0 : s0 + n]``."""
    for j in range(n):
        target[t0 + j] = source[s0 + j]


def copy_every_second(source, s0, n, target, t0, zero):
    """``target[t0 : t0 + n] = source[s0 : s0 + 2 * n : 2]``."""
    for j in range(n):
        target[t0 + j] = source[s0 + 2 * j]


def transpose(source, s0, s_step, n, m, target, t0, t_step, zero):
    """``target[t0 + j * t_step + i] = source[s0 + i * s_step + j]`` for ``i < n``, ``j < m``."""
    for i in range(n):
        for j in range(m):
            target[t0 + j * t_step + i] = source[s0 + i * s_step + j]


def _put(
    v: Vectors, sums: Any, s_step: Any, n: Any, height: Any, target: Any, step: Any, bias: Any, first: Any
) -> None:
    word, build = ir.IntType(64), v.builder
    whole = build.and_(n, word(-v.lanes))
    rest = v.first(build.sub(n, whole))

    def rows(joins: bool) -> None:
        def row(i: Any, _: list[Any]) -> list[Any]:
            start = v.spread(v.at(bias, i))
            source, goal = v.at(sums, build.mul(i, s_step)), v.at(target, build.mul(i, step))

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


def _put_apart(
    v: Vectors, sums: Any, s_step: Any, n: Any, height: Any, target: Any, step: Any, apart: Any, bias: Any, first: Any
) -> None:
    word, build = ir.IntType(64), v.builder
    begins = build.icmp_signed("!=", first, word(0))
    even = ir.Constant(v.mask, [1 - j % 2 for j in range(v.lanes)])

    def row(i: Any, _: list[Any]) -> list[Any]:
        start = v.at(bias, i)
        source, goal = v.at(sums, build.mul(i, s_step)), v.at(target, build.mul(i, step))

        def pair(j: Any, _: list[Any]) -> list[Any]:
            total = v.load(build.gep(source, [j]))
            for half in range(2):  # the first half of the sums, then the other, each before a gap
                place = build.gep(goal, [build.add(build.mul(j, word(2)), word(half * v.lanes))])
                left = build.sub(build.mul(build.sub(n, j), word(2)), word(half * v.lanes))
                there = build.and_(even, v.first(left))
                spaced = v.pick(total, [(half * v.lanes + lane) // 2 for lane in range(v.lanes)])
                before = build.select(begins, v.spread(start), v.load_some(place, there))
                v.store_some(build.fadd(before, spaced), place, there)
            return []

        def item(j: Any, _: list[Any]) -> list[Any]:
            place = build.gep(goal, [build.mul(j, apart)])
            before = build.select(begins, build.load(start), build.load(place))
            build.store(build.fadd(before, build.load(build.gep(source, [j]))), place)
            return []

        with build.if_else(build.icmp_signed("==", apart, word(2))) as (by_pairs, one_by_one):
            with by_pairs:
                v.loop(n, v.lanes, [], pair)
            with one_by_one:
                v.loop(n, 1, [], item)
        return []

    v.loop(height, 1, [], row)


def _pack(
    v: Vectors, lines: Any, terms: Any, n: Any, run: Any, panel: Any, column: Any, width: Any, depth: Any
) -> None:
    """``column`` is one of the first panel."""
    word, build = ir.IntType(64), v.builder
    terms = build.inttoptr(terms, word.as_pointer())
    panels = build.sdiv(build.add(build.add(column, run), build.sub(width, word(1))), width)

    def piece(i: Any, _: list[Any]) -> list[Any]:
        left = build.sub(build.mul(i, width), column)  # where the panel begins in the run
        begin = build.select(build.icmp_signed(">", left, word(0)), left, word(0))
        end = build.add(left, width)
        length = build.sub(build.select(build.icmp_signed("<", run, end), run, end), begin)
        source = v.at(lines, begin)
        goal = v.at(panel, build.add(build.mul(i, depth), build.sub(begin, left)))
        whole = build.and_(length, word(-v.lanes))
        rest, ragged = v.first(build.sub(length, whole)), build.icmp_signed("<", whole, length)

        def row(q: Any, _: list[Any]) -> list[Any]:
            line = build.gep(source, [build.load(build.gep(terms, [build.add(build.mul(q, word(2)), word(1))]))])
            target = build.gep(goal, [build.mul(q, width)])

            def vector(p: Any, _: list[Any]) -> list[Any]:
                v.store(v.load(build.gep(line, [p])), build.gep(target, [p]))
                return []

            v.loop(whole, v.lanes, [], vector)
            with build.if_then(ragged):
                v.store_some(v.load_some(build.gep(line, [whole]), rest), build.gep(target, [whole]), rest)
            return []

        v.loop(n, 1, [], row)
        return []

    v.loop(panels, 1, [], piece)


def _copy(v: Vectors, source: Any, n: Any, target: Any) -> None:
    whole = v.builder.and_(n, ir.IntType(64)(-v.lanes))

    def body(p: Any, _: list[Any]) -> list[Any]:
        v.store(v.load(v.at(source, p)), v.at(target, p))
        return []

    v.loop(whole, v.lanes, [], body)
    rest = v.first(v.builder.sub(n, whole))
    v.store_some(v.load_some(v.at(source, whole), rest), v.at(target, whole), rest)


def _copy_every_second(v: Vectors, source: Any, n: Any, target: Any) -> None:
    build, word = v.builder, ir.IntType(64)
    whole = build.and_(n, word(-v.lanes))
    half = v.lanes // 2
    even = places([2 * j if j < half else 2 * j + 1 for j in range(v.lanes)])  # the second vector begins an item early

    def body(p: Any, _: list[Any]) -> list[Any]:
        pair = v.at(source, build.mul(p, word(2)))
        low, high = v.load(pair), v.load(build.gep(pair, [word(v.lanes - 1)]))
        v.store(build.shuffle_vector(low, high, even), v.at(target, p))
        return []

    v.loop(whole, v.lanes, [], body)
    rest = build.sub(n, whole)
    with build.if_then(build.icmp_signed(">", rest, word(0))):
        pair, items = v.at(source, build.mul(whole, word(2))), build.mul(rest, word(2))
        low = v.load_some(pair, v.first(build.sub(items, word(1))))
        high = v.load_some(build.gep(pair, [word(v.lanes - 1)]), v.first(build.sub(items, word(v.lanes))))
        v.store_some(build.shuffle_vector(low, high, even), v.at(target, whole), v.first(rest))


def _transpose(v: Vectors, source: Any, s_step: Any, target: Any, t_step: Any) -> None:
    """A square of ``lanes`` by ``lanes``, in registers."""
    word, build = ir.IntType(64), v.builder
    rows = [v.load(v.at(source, build.mul(word(i), s_step))) for i in range(v.lanes)]
    for j, row in enumerate(v.transposed(rows)):
        v.store(row, v.at(target, build.mul(word(j), t_step)))


def _transpose_some(v: Vectors, source: Any, s_step: Any, n: Any, m: Any, target: Any, t_step: Any) -> None:
    """The same of ``n`` rows of ``m`` numbers, at most ``lanes`` each."""
    word, build = ir.IntType(64), v.builder
    nothing, rows = ir.Constant(v.mask, [0] * v.lanes), []
    across, down = v.first(m), v.first(n)
    for i in range(v.lanes):
        there = build.select(build.icmp_signed("<", word(i), n), across, nothing)
        rows.append(v.load_some(v.at(source, build.mul(word(i), s_step)), there))
    for j, row in enumerate(v.transposed(rows)):
        there = build.select(build.icmp_signed("<", word(j), m), down, nothing)
        v.store_some(row, v.at(target, build.mul(word(j), t_step)), there)


_PUT_CODE = {types.float32: vector_code(32, 8, _put), types.float64: vector_code(64, 8, _put)}
_APART_CODE = {types.float32: vector_code(32, 9, _put_apart), types.float64: vector_code(64, 9, _put_apart)}
_PACK_CODE = {types.float32: vector_code(32, 8, _pack), types.float64: vector_code(64, 8, _pack)}
_COPY_CODE = {types.float32: vector_code(32, 3, _copy), types.float64: vector_code(64, 3, _copy)}
_SECOND_CODE = {
    types.float32: vector_code(32, 3, _copy_every_second), types.float64: vector_code(64, 3, _copy_every_second)
}
_TURN_CODE = {types.float32: vector_code(32, 4, _transpose), types.float64: vector_code(64, 4, _transpose)}
_TURN_SOME_CODE = {
    types.float32: vector_code(32, 6, _transpose_some), types.float64: vector_code(64, 6, _transpose_some)
}


@overload(copy_run)
def _copy_run(source, s0, n, target, t0, zero):
    if zero not in _COPY_CODE:
        return copy_run
    code, size = _COPY_CODE[zero], zero.bitwidth // 8

    def vectors(source, s0, n, target, t0, zero):
        code((source + s0 * size, n, target + t0 * size))

    return vectors


@overload(copy_every_second)
def _copy_every_second_run(source, s0, n, target, t0, zero):
    if zero not in _SECOND_CODE:
        return copy_every_second
    code, size = _SECOND_CODE[zero], zero.bitwidth // 8

    def vectors(source, s0, n, target, t0, zero):
        code((source + s0 * size, n, target + t0 * size))

    return vectors


@overload(aligned)
def _aligned(array):
    return aligned


@overload(pack)
def _pack_panel(lines, l0, terms, q0, n, run, panel, p0, column, width, depth, zero):
    if zero not in _PACK_CODE:
        return pack
    code, size = _PACK_CODE[zero], zero.bitwidth // 8

    def vectors(lines, l0, terms, q0, n, run, panel, p0, column, width, depth, zero):
        at = p0 + column // width * depth + q0 * width
        code((lines + l0 * size, terms + q0 * 16, n, run, panel + at * size, column % width, width, depth))

    return vectors


@overload(put)
def _put_tile(sums, s0, s_step, n, height, target, t0, step, bias, k0, first, zero):
    if zero not in _PUT_CODE:
        return put
    code, size = _PUT_CODE[zero], zero.bitwidth // 8

    def vectors(sums, s0, s_step, n, height, target, t0, step, bias, k0, first, zero):
        code((sums + s0 * size, s_step, n, height, target + t0 * size, step, bias + k0 * size, np.int64(first)))

    return vectors


@overload(put_apart)
def _put_apart_tile(sums, s0, s_step, n, height, target, t0, step, apart, bias, k0, first, zero):
    if zero not in _APART_CODE:
        return put_apart
    code, size = _APART_CODE[zero], zero.bitwidth // 8

    def vectors(sums, s0, s_step, n, height, target, t0, step, apart, bias, k0, first, zero):
        code((
            sums + s0 * size, s_step, n, height, target + t0 * size, step, apart, bias + k0 * size, np.int64(first),
        ))  # fmt: skip

    return vectors


@overload(transpose)
def _transpose_block(source, s0, s_step, n, m, target, t0, t_step, zero):
    if zero not in _TURN_CODE:
        return transpose
    code, some, size = _TURN_CODE[zero], _TURN_SOME_CODE[zero], zero.bitwidth // 8
    square = VECTOR_BYTES // size

    def vectors(source, s0, s_step, n, m, target, t0, t_step, zero):
        for i in range(0, n, square):
            for j in range(0, m, square):
                begin, end = source + (s0 + i * s_step + j) * size, target + (t0 + j * t_step + i) * size
                if i + square <= n and j + square <= m:
                    code((begin, s_step, end, t_step))
                else:
                    some((begin, s_step, min(square, n - i), min(square, m - j), end, t_step))

    return vectors
