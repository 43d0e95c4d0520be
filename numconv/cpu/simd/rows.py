"""Rows of pixels copied by vectors: side by side, a stride apart, and spread out again."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from .vectors import Vectors, compiled_as, places


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


def _gather(v: Vectors, pointer: ir.Value, step: ir.Value, mask: ir.Value) -> ir.Value:
    """The items of a mask, ``step`` of them from one to the next, and 0 where nothing is read."""
    b, word = v.builder, v.word
    lanes = ir.Constant(ir.VectorType(word, v.lanes), [i * v.align for i in range(v.lanes)])
    steps = b.mul(lanes, v.filled(step))
    pointers = ir.VectorType(v.item.as_pointer(), v.lanes)
    items = b.inttoptr(b.add(v.filled(b.ptrtoint(pointer, word)), steps), pointers)
    function = ir.FunctionType(v.vector, [pointers, ir.IntType(32), v.mask, v.vector])
    name = f"llvm.masked.gather.v{v.lanes}f{v.align * 8}.v{v.lanes}p0"
    code = cgutils.get_or_insert_function(b.module, function, name)
    return b.call(code, [items, ir.IntType(32)(v.align), mask, v.zero])


def _rows(v: Vectors, stride: int, x: Any, x_pitch: Any, *rest: Any) -> None:
    """Rows of which every ``stride``-th item is copied; 0 stands for ``step``, any number."""
    step, left, inside, n, rows, target, t_pitch, blank = rest
    word, build = v.word, v.builder
    empty = v.spread(v.at(blank, word(0)))

    def items(line: Any, first: Any) -> Any:
        if stride == 0:
            return _gather(v, build.gep(line, [build.mul(first, step)]), step, v.between(first, inside))
        end = build.mul(inside, word(stride))
        if stride == 2:  # the last item may be the last of all
            end = build.select(build.icmp_signed(">", end, word(0)), build.sub(end, word(1)), end)
        begin = build.mul(first, word(stride))
        starts = [build.add(begin, word(i * v.lanes)) for i in range(stride)]
        parts = [v.load_some(build.gep(line, [start]), v.between(start, end)) for start in starts]
        return parts[0] if stride == 1 else build.shuffle_vector(*parts, places(range(0, 2 * v.lanes, 2)))

    def row(i: Any, _: list[Any]) -> list[Any]:
        line, goal = build.gep(x, [build.mul(i, x_pitch)]), build.gep(target, [build.mul(i, t_pitch)])

        def piece(p: Any, _: list[Any]) -> list[Any]:
            first = build.sub(p, left)
            pixels = build.select(v.between(first, inside), items(line, first), empty)
            v.store(pixels, build.gep(goal, [p]))
            return []

        v.loop(n, v.lanes, [], piece)
        return []

    v.loop(rows, 1, [], row)


@compiled_as(copy_rows)
def _copy_rows(
    v: Vectors, x: Any, x0: Any, x_pitch: Any, stride: Any, left: Any, inside: Any, n: Any, rows: Any, target: Any,
    t0: Any, t_pitch: Any, blank: Any,
) -> None:
    def case(which: int, _: list[Any]) -> list[Any]:
        rest = stride, left, inside, n, rows, v.at(target, t0), t_pitch, blank
        _rows(v, which % 3, v.at(x, x0), x_pitch, *rest)
        return []

    far = v.builder.icmp_signed(">", stride, v.word(2))
    v.choose(v.builder.select(far, v.word(3), stride), 3, [], case)


@compiled_as(spread_rows)
def _spread(
    v: Vectors, x: Any, x0: Any, x_pitch: Any, rows: Any, n: Any, target: Any, t0: Any, t_pitch: Any, step: Any
) -> None:
    word, build = v.word, v.builder

    def row(i: Any, _: list[Any]) -> list[Any]:
        line = v.at(x, build.add(x0, build.mul(i, x_pitch)))
        goal = v.at(target, build.add(t0, build.mul(i, t_pitch)))

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


@compiled_as(copy_item)
def _copy_item(v: Vectors, x: Any, x0: Any, target: Any, t0: Any) -> None:
    v.builder.store(v.builder.load(v.at(x, x0)), v.at(target, t0))
