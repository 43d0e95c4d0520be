"""Winograd's moves: the transforms of many small tiles side by side, their products, and the way in and out of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

from .vectors import REGISTERS, Vectors, lanes, vector_code

#: Rows and vectors of ``panel_tile``.
OUTER = (8, 3) if REGISTERS == 32 else (4, 3)


def outer_shape(dtype: np.dtype) -> tuple[int, int]:
    """Rows and columns of ``panel_tile``."""
    return OUTER[0], OUTER[1] * lanes(dtype)


def panel_tile(a, a0, a_row, a_step, b, b0, b_step, n, out, o0, o_row, rows, columns, add):
    """``out[i, j] = sum over q < n of a[i, q] * b[q, j]``, all flat and with steps; to what is there if ``add``.

    ``rows`` and, in whole vectors, at most ``columns`` are ``outer_shape``.
    """
    for i in range(rows):
        for j in range(columns):
            total = out.dtype.type(0)
            for q in range(n):
                total += a[a0 + i * a_row + q * a_step] * b[b0 + q * b_step + j]
            out[o0 + i * o_row + j] = out[o0 + i * o_row + j] + total if add else total


def unweave(source, s0, tiles, target, t0, step):
    """``target[t0 + j * step + t] = source[s0 + 4 * t + j]``: six columns of tiles that begin four pixels apart.

    It may touch up to four whole vectors and one more of the source, and a vector of the target, beyond the last tile.
    """
    for t in range(tiles):
        for j in range(6):
            target[t0 + j * step + t] = source[s0 + 4 * t + j]


def weave(source, s0, step, bias, k, target, t0, n):
    """``target[t0 + 4 * t + j] = source[s0 + j * step + t] + bias[k]`` for the first ``n`` pixels, and no other."""
    for p in range(n):
        target[t0 + p] = source[s0 + p % 4 * step + p // 4] + bias[k]


def sandwich(matrix: Any, apart: int = 1, with_sum: bool = False) -> Any:
    """A function that computes ``m @ X @ m.T`` for many small ``X`` side by side, and their entries' sum if asked.

    Entry ``(i, k)`` of the ``X`` number ``j < n`` is ``source[s0 + i * s_row + k * s_column + j * apart]``; entry
    number ``e`` of its result goes to ``target[t0 + e * t_step + j]``. Whole vectors are written.
    """
    m = tuple(tuple(float(value) for value in row) for row in matrix)
    outer, inner = len(m), len(m[0])

    def product(source, s0, s_row, s_column, target, t0, t_step, n):
        for j in range(n):
            everything = target.dtype.type(0)
            for i in range(outer):
                for k in range(outer):
                    total = target.dtype.type(0)
                    for p in range(inner):
                        for q in range(inner):
                            total += source[s0 + p * s_row + q * s_column + j * apart] * (m[i][p] * m[k][q])
                    target[t0 + (i * outer + k) * t_step + j] = total
                    everything += total
            if with_sum:
                target[t0 + outer * outer * t_step + j] = everything

    def generate(v, source, s_row, s_column, target, t_step, n):
        word, build = ir.IntType(64), v.builder

        def body(j, _):
            columns = []
            for k in range(inner):
                at = build.add(build.mul(j, word(apart)), build.mul(word(k), s_column))
                places = [build.add(at, build.mul(word(i), s_row)) for i in range(inner)]
                if apart == 1:
                    values = [v.load(v.at(source, place)) for place in places]
                else:
                    addresses = [build.add(source, build.mul(place, word(v.align))) for place in places]
                    values = [v.gather(address, apart, build.sub(n, j)) for address in addresses]
                columns.append(v.combine(m, values))
            results = [v.combine(m, [columns[k][i] for k in range(inner)]) for i in range(outer)]
            results = [value for row in results for value in row]
            if with_sum:
                everything = results[0]
                for value in results[1:]:
                    everything = build.fadd(everything, value)
                results.append(everything)
            for e, value in enumerate(results):
                v.store(value, v.at(target, build.add(j, build.mul(word(e), t_step))))
            return []

        v.loop(n, v.lanes, [], body)

    codes = {types.float32: vector_code(32, 6, generate), types.float64: vector_code(64, 6, generate)}

    @overload(product)
    def _product(source, s0, s_row, s_column, target, t0, t_step, n):
        code, size = codes.get(target.dtype), target.dtype.bitwidth // 8
        if code is None:
            return product

        def vectors(source, s0, s_row, s_column, target, t0, t_step, n):
            code((source.ctypes.data + s0 * size, s_row, s_column, target.ctypes.data + t0 * size, t_step, n))

        return vectors

    return product


def _panel(
    v: Vectors, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, n: Any, out: Any, o_row: Any,
    columns: Any, add: Any,
) -> None:
    word, build, weights = ir.IntType(64), v.builder, OUTER[0]
    # Opaque, or LLVM makes one pointer hop from row to row, and a tile of one vector waits for its hops.
    same = ir.FunctionType(word, [word])
    begins = [build.add(a, build.mul(word(i * v.align), a_row)) for i in range(weights)]
    begins = [build.asm(same, "", "=r,0", [begin], False) for begin in begins]

    def tile(vectors: int) -> None:
        places = [(i, j) for i in range(weights) for j in range(vectors)]
        targets = [v.at(out, build.add(build.mul(word(i), o_row), word(j * v.lanes))) for i, j in places]

        def term(q: Any, sums: list[Any]) -> list[Any]:
            pixels = [v.load(v.at(b, build.add(build.mul(q, b_step), word(j * v.lanes)))) for j in range(vectors)]
            results = []
            for i in range(weights):
                weight = v.spread(v.at(begins[i], build.mul(q, a_step)))
                results += [v.fma(weight, pixels[j], sums[i * vectors + j]) for j in range(vectors)]
            return results

        totals = v.loop(n, 1, [v.zero] * len(places), term)
        with build.if_else(build.icmp_signed("!=", add, word(0))) as (more, fresh):
            with more:
                for total, target in zip(totals, targets, strict=True):
                    v.store(build.fadd(v.load(target), total), target)
            with fresh:
                for total, target in zip(totals, targets, strict=True):
                    v.store(total, target)

    for vectors in range(1, OUTER[1] + 1):
        with build.if_then(build.icmp_signed("==", columns, word(vectors * v.lanes))):
            tile(vectors)


def _unweave(v: Vectors, source: Any, tiles: Any, target: Any, step: Any) -> None:
    word, build = ir.IntType(64), v.builder

    def body(t: Any, _: list[Any]) -> list[Any]:
        pixels = [v.load(v.at(source, build.add(build.mul(t, word(4)), word(u * v.lanes)))) for u in range(5)]
        near = v.concat(pixels[:4])
        for j in range(6):
            places = [4 * l + j for l in range(v.lanes)]
            column = v.pick(near, places) if j < 4 else v.pick(v.concat([*pixels, *pixels[4:] * 3]), places)
            v.store(column, v.at(target, build.add(t, build.mul(word(j), step))))
        return []

    v.loop(tiles, v.lanes, [], body)


def _weave(v: Vectors, source: Any, step: Any, start: Any, target: Any, n: Any) -> None:
    word, build = ir.IntType(64), v.builder
    bias = v.spread(v.at(start, word(0)))

    def body(p: Any, _: list[Any]) -> list[Any]:
        t = build.sdiv(p, word(4))
        columns = [build.fadd(v.load(v.at(source, build.add(t, build.mul(word(j), step)))), bias) for j in range(4)]
        every = v.concat(columns)
        for u in range(4):
            places = [e % 4 * v.lanes + e // 4 for e in range(u * v.lanes, (u + 1) * v.lanes)]
            pixels, at = v.pick(every, places), build.add(p, word(u * v.lanes))
            v.store_first(pixels, v.at(target, at), build.sub(n, at))
        return []

    v.loop(n, 4 * v.lanes, [], body)


_PANEL_CODE = {types.float32: vector_code(32, 10, _panel), types.float64: vector_code(64, 10, _panel)}
_UNWEAVE_CODE = {types.float32: vector_code(32, 4, _unweave), types.float64: vector_code(64, 4, _unweave)}
_WEAVE_CODE = {types.float32: vector_code(32, 5, _weave), types.float64: vector_code(64, 5, _weave)}


@overload(panel_tile)
def _panel_tile(a, a0, a_row, a_step, b, b0, b_step, n, out, o0, o_row, rows, columns, add):
    code, size = _PANEL_CODE.get(out.dtype), out.dtype.bitwidth // 8
    if code is None:
        return panel_tile

    def vectors(a, a0, a_row, a_step, b, b0, b_step, n, out, o0, o_row, rows, columns, add):
        code((
            a.ctypes.data + a0 * size, a_row, a_step, b.ctypes.data + b0 * size, b_step, n, out.ctypes.data + o0 * size,
            o_row, columns, add,
        ))

    return vectors


@overload(unweave)
def _unweave_tiles(source, s0, tiles, target, t0, step):
    code, size = _UNWEAVE_CODE.get(target.dtype), target.dtype.bitwidth // 8
    if code is None:
        return unweave

    def vectors(source, s0, tiles, target, t0, step):
        code((source.ctypes.data + s0 * size, tiles, target.ctypes.data + t0 * size, step))

    return vectors


@overload(weave)
def _weave_tiles(source, s0, step, bias, k, target, t0, n):
    code, size = _WEAVE_CODE.get(target.dtype), target.dtype.bitwidth // 8
    if code is None:
        return weave

    def vectors(source, s0, step, bias, k, target, t0, n):
        code((
            source.ctypes.data + s0 * size, step, bias.ctypes.data + k * size, target.ctypes.data + t0 * size, n,
        ))

    return vectors
