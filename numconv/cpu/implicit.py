"""The product ``W_flat @ X_conv`` without ever storing ``X_conv``: its rows are found through a table.

A task owns a block of the output, gathers the ``lines`` which that block sees, and the register tile multiplies
``W_flat`` with rows of ``X_conv`` where they lie among them; or, where many output channels pay for it, from a panel
into which they are packed. All three products run this way:

    Y  = W_flat @ X_conv            rows of W_flat by rows of X_conv
    dX = the same of dY by phases   the taps of a phase are rows of a turned W_flat, read where they lie
    dW = X_conv @ dY_flat^T         rows of X_conv by rows of dY_flat^T, which a task turns for itself

The order of every sum follows from the shapes alone.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from .._indexing import CONSTANT, OUT, SIZE
from ..geometry import ConvGeometry, axes_table
from . import pieces
from ._jit import Kernel, flat, helper, tasks_of
from .blocks import TERMS, blocks_for_weights, blocks_of, is_complex
from .im2col import groups_of
from .lines import (
    CHANNELS,
    COLUMNS,
    IN_PLACE,
    LANES,
    PACKED,
    ROWS,
    SHARES,
    TURNED,
    WIDTH,
    block_size,
    contiguous_steps,
    gather_lines,
    merged,
    plane,
    steps_along,
    table,
    times,
)
from .pieces import wide
from .simd import (
    ALIGNED,
    CHAIN,
    HIGHEST,
    SUMS,
    address,
    aligned,
    copy_run,
    keep,
    outer_sum,
    pack,
    put,
    put_apart,
    transpose,
)
from .threads import thread_count

#: Rows of X_conv that are packed side by side: as many streams through memory as the machine foresees.
STREAMS = 16

# the forward product, and the input gradient through it -------------------------------------------------------------


@Kernel
def _forward(team, x, w, bias, axes, boundary, fill, block, steps, places, tables, y):
    # x (N, C, lead, rows, last); weight (g, k, c, t) is w[g, k, c times steps, and tables[0, t, 0]] in a flat w, output
    # (n, k, o) is y[places[0] + n, k, o times places[1:]] in a flat y.
    d, zero = axes.shape[0], x.dtype.type(0)
    groups = w.size // steps[0]
    Cg, Kg = x.shape[1] // groups, bias.size // groups
    R_out, L_out = axes[d - 2, OUT], axes[d - 1, OUT]
    across, down = (L_out + block[COLUMNS] - 1) // block[COLUMNS], (R_out + block[ROWS] - 1) // block[ROWS]
    packed, width, lanes = block[PACKED] > 0, block[WIDTH], block[LANES]
    MR, T = min(HIGHEST, SUMS * lanes // width), tables.shape[1] // block[CHANNELS]
    pixels, w_rows = x.reshape(x.size), np.arange(HIGHEST) * steps[1]
    x_at, w_at, y_at, bias_at = address(pixels, zero), address(w, zero), address(y, zero), address(bias, zero)
    all_terms_at, rows_at = address(tables[0], zero), address(w_rows, zero)
    tasks = x.shape[0] * groups * down * across * block[SHARES]
    for a in range(d - 2):
        tasks *= axes[a, OUT]
    for task in tasks_of(team, tasks):
        share, rest = task % block[SHARES], task // block[SHARES]
        o0, rest = rest % across * block[COLUMNS], rest // across
        O0, rest = rest % down * block[ROWS], rest // down
        g, rest = rest % groups, rest // groups
        n, outer = rest, 0
        k0, k1 = Kg * share // block[SHARES], Kg * (share + 1) // block[SHARES]
        y0 = places[0] + g * Kg * places[2] + O0 * places[d + 1] + o0 * places[d + 2]
        lead = 1
        for a in range(d - 3, -1, -1):
            y0 += n % axes[a, OUT] * places[3 + a]
            outer += n % axes[a, OUT] * lead
            n, lead = n // axes[a, OUT], lead * axes[a, OUT]
        y0 += n * places[1]
        # The outputs of the block as columns of tiles, with what lies between rows of lines if nothing is packed.
        high, wide = min(block[ROWS], R_out - O0), min(block[COLUMNS], L_out - o0)
        columns = wide if block[IN_PLACE] else plane(axes, block)[1]
        pitch = wide if packed else columns
        length = (high - 1) * pitch + wide
        tiles = (length + width - 1) // width
        together, depth = block[PACKED] if packed else tiles, tables.shape[1] * width
        seamless = pitch == wide and places[d + 2] == 1 and (high == 1 or places[d + 1] == wide)  # one long row
        first_run, runs = cut(length, pitch, wide, width, places[d + 1], places[d + 2], seamless)
        lines = np.empty(0 if block[IN_PLACE] else block_size(axes, block) + ALIGNED + width, x.dtype)
        lines[lines.size - min(lines.size, ALIGNED + width) :] = 0  # never used, but denormals by chance would be slow
        panel = np.empty(block[PACKED] * depth + ALIGNED, x.dtype)
        turned = np.empty(block[CHANNELS] * block[TURNED] * steps[1], x.dtype)
        tile = np.zeros((HIGHEST + 1) * width, x.dtype)
        l0, p0 = aligned(lines), aligned(panel)
        lines_at, panel_at, turned_at, tile_at = (
            address(lines, zero), address(panel, zero), address(turned, zero), address(tile, zero),
        )  # fmt: skip
        unused = tiles * width - length if packed and tiles <= together else 0  # columns of the last panel
        for q in range(tables.shape[1] if unused else 0):
            copy_run(tile_at, 0, unused, panel_at, p0 + (tiles - 1) * depth + (q + 1) * width - unused, zero)
        for c in range(0, Cg, block[CHANNELS]):
            channels = min(block[CHANNELS], Cg - c)
            terms = channels * T
            if block[IN_PLACE]:
                plane_size = R_out * L_out
                lines_at, l0 = x_at, ((n * x.shape[1] + g * Cg + c) * lead + outer) * plane_size + O0 * L_out + o0
            else:
                gather_lines(x, g * Cg + c, channels, n, outer, O0, o0, axes, boundary, fill, block, lines, l0)
            for part0 in range(0, tiles, together):  # tiles that are packed together, then multiplied strip by strip
                part1 = min(part0 + together, tiles)
                side_by_side = max(0, min(part1, length // width) - part0) if seamless else 0  # whole tiles
                if packed:
                    begin, end = part0 * width, min(part1 * width, length)
                    run = length if columns == wide else wide
                    for q in range(0, terms, STREAMS):
                        some = min(STREAMS, terms - q)
                        for row in range(begin // run, (end + run - 1) // run):
                            p, p_end = max(row * run, begin), min(row * run + run, end)
                            pack(
                                lines_at, l0 + row * (columns - run) + p, all_terms_at, q, some, p_end - p,
                                panel_at, p0, p - part0 * width, width, depth, zero,
                            )  # fmt: skip
                rows = block[TURNED] if block[TURNED] else k1 - k0
                strips = (k1 - k0 + rows - 1) // rows
                for strip in range(strips * ((terms + TERMS - 1) // TERMS)):  # long sums in parts
                    q0, first = strip // strips * TERMS, k0 + strip % strips * rows
                    last, some = min(first + rows, k1), min(TERMS, terms - q0)
                    terms_at, panel_terms_at = address(tables[0, q0:], zero), address(tables[1, q0:], zero)
                    a_at, a0 = w_at, g * steps[0] + c * steps[2] + first * steps[1]
                    if block[TURNED]:
                        for i in range(channels):
                            size = (last - first) * steps[1]
                            copy_run(w_at, a0 + i * steps[2], size, turned_at, i * rows * steps[1], zero)
                        a_at, a0 = turned_at, 0
                    for k in range(first, last, MR):
                        height = min(MR, last - k)
                        part = part0
                        while part < part1:
                            b_at, b0, b_terms_at, b_depth = lines_at, l0 + part * width, terms_at, width
                            if packed:
                                b_at, b0, b_terms_at, b_depth = (
                                    panel_at, p0 + (part - part0) * depth, panel_terms_at, depth,
                                )  # fmt: skip
                            size = (min(width, length - part * width) + lanes - 1) // lanes * lanes
                            yk, r0, r1 = y0 + k * places[2], first_run[part], first_run[part + 1]
                            whole = places[d + 2] == 1 and r1 == r0 + 1 and runs[r0, 1] == size
                            out_at, out0, step, joins, beside = y_at, yk + runs[r0, 2], places[2], c + q0 > 0, 1
                            if not whole:
                                tile[:] = 0
                                out_at, out0, step, joins = tile_at, 0, width, True
                            elif part < part0 + side_by_side:
                                beside = side_by_side
                            outer_sum(
                                a_at, a0 + (k - first) * steps[1], rows_at, 0, b_at, b0, b_terms_at, some, height,
                                size, beside, b_depth, out_at, out0, step, bias_at, g * Kg + k, joins, zero,
                            )  # fmt: skip
                            if not whole:
                                for r in range(r0, r1):
                                    put_run(
                                        tile_at, runs[r, 0], width, runs[r, 1], height, y_at, yk + runs[r, 2],
                                        places[2], places[d + 2], bias_at, g * Kg + k, c + q0 == 0, zero,
                                    )  # fmt: skip
                            part += beside
        keep(lines, panel, turned, tile)
    keep(pixels, w_rows)


@helper
def put_run(tile_at, column, width, run, height, y_at, y0, y_step, apart, bias_at, k, first, zero):
    """A run of a tile's columns goes to the output, where neighbours may be ``apart``."""
    if apart == 1:
        put(tile_at, column, width, run, height, y_at, y0, y_step, bias_at, k, first, zero)
    else:
        put_apart(tile_at, column, width, run, height, y_at, y0, y_step, apart, bias_at, k, first, zero)


@helper
def cut(length, pitch, wide, width, row_step, step, seamless):
    """What each tile of a plane gives to the output: first column, length and place of the rows that it meets.

    Rows begin every ``pitch`` columns and are ``wide``; what lies between two rows is not output.
    """
    tiles, count = (length + width - 1) // width, 0
    first_run, runs = np.empty(tiles + 1, np.int64), np.empty((tiles + length // pitch + 1, 3), np.int64)
    for part in range(tiles):
        first_run[part] = count
        p, end = part * width, min(part * width + width, length)
        while p < end:
            row, o = (0, p) if seamless else (p // pitch, p % pitch)
            run = end - p if seamless else min(end - p, wide - o)
            if run > 0:
                runs[count, 0], runs[count, 1], runs[count, 2] = p - part * width, run, row * row_step + o * step
                count += 1
            p += run if seamless else pitch - o
    first_run[tiles] = count
    return first_run, runs


def forward(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray
) -> None:
    """``Y = W_flat @ X_conv + bias``, group by group."""
    if pieces.too_long(w):
        pieces.forward(forward, x, w, bias, axes, boundary, fill, y)
        return
    T = prod(w.shape[2:])
    product(x, w, np.arange(T), w[0].size, T, bias, groups_of(x, w), axes, boundary, fill, y)


def product(
    x: np.ndarray, w: np.ndarray, w_terms: np.ndarray, k_step: int, c_step: int, bias: np.ndarray, groups: int,
    axes: np.ndarray, boundary: int, fill: np.generic, y: np.ndarray, place: tuple[slice, ...] = (),
) -> None:
    """``y[(…, *place)] = W_flat @ X_conv + bias``; row ``k`` of ``W_flat`` lies in ``w`` from ``k * k_step`` on."""
    N, C = x.shape[:2]
    part = y[(slice(None), slice(None), *place)] if place else y
    begin = (part.ctypes.data - y.ctypes.data) // y.itemsize if place else 0
    axes, size, block, steps, places, tables = _layout(
        axes.tobytes(), begin, part.shape, part.strides, y.dtype, N, C // groups, bias.size // groups, groups,
        (w.size // groups, k_step, c_step), w_terms.tobytes(), thread_count(),
    )
    _forward(
        flat(x, N, C, *size), flat(w, w.size), flat(bias, bias.size), axes, boundary, fill, block, steps, places,
        tables, y.reshape(y.size), work=part.size * C // groups * w_terms.size,
    )


@lru_cache(maxsize=1024)
def _layout(
    table_of_axes: bytes, begin: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype, N: int, C: int,
    K: int, G: int, w_steps: tuple[int, int, int], w_terms: bytes, threads: int,
) -> tuple[np.ndarray, ...]:
    axes, terms = np.frombuffer(table_of_axes, np.int64).reshape(-1, 6), np.frombuffer(w_terms, np.int64)
    out_steps = np.array(steps_along(shape, strides, dtype.itemsize))
    return fixed(layout(axes, begin, out_steps, dtype, N, C, K, G, w_steps, terms, threads))


@helper
def layout(axes, begin, out_steps, dtype, N, C, K, G, w_steps, w_terms, threads):
    """What shapes alone decide: axes and the size of the input over them, blocks, steps of weights and output, tables.

    A table says where each column of ``W_flat`` is in its row, and where the row of ``X_conv`` begins that it meets:
    among the lines, or in a panel.
    """
    axes, out_steps = merged(axes, out_steps)
    block = blocks_of(axes, N, C, K, G, dtype, threads, (w_steps[1], w_steps[2]))
    rows, T = table(axes, block), len(w_terms)
    c_step = block[TURNED] * w_steps[1] or w_steps[2]
    tables = np.empty((2, block[CHANNELS] * T, 2), np.int64)
    for q in range(tables.shape[1]):
        tables[:, q, 0] = q // T * c_step + w_terms[q % T]
        tables[0, q, 1], tables[1, q, 1] = rows[q], q * block[WIDTH]
    steps, places = np.array(w_steps), np.empty(len(out_steps) + 1, np.int64)
    places[0] = begin
    for a in range(len(out_steps)):
        places[a + 1] = out_steps[a]
    return axes, size_over(axes), block, steps, places, tables


@helper
def size_over(axes):
    """The size of the input as kernels see it: leading axes as one, rows, and what lies in a row."""
    return np.array([times(axes[:-2], SIZE), axes[-2, SIZE], axes[-1, SIZE]])


def fixed(arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Arrays that nobody changes any more."""
    for array in arrays:
        array.flags.writeable = False
    return arrays


def grad_input(dY: np.ndarray, w: np.ndarray, geometry: ConvGeometry, dX: np.ndarray) -> None:
    """``dX = W_conv.T @ dY_flat`` under zero padding: for each phase of the stride a forward product of ``dY``."""
    kernel, G = w.shape[2:], groups_of(dX, w)
    T = prod(kernel)
    tap = np.arange(T).reshape(kernel)
    no_bias, nothing = np.zeros(dX.shape[1], dtype=dX.dtype), dX.dtype.type(0)
    if len(geometry.phases) < prod(geometry.stride):
        dX[...] = 0  # pixels that no tap meets
    for place, taps, rows in geometry.phases:
        product(
            dY, w, np.ascontiguousarray(tap[taps]), T, w[0].size, no_bias, G, axes_table(rows), CONSTANT, nothing, dX,
            place,
        )  # fmt: skip


# the weight gradient ------------------------------------------------------------------------------------------------


@Kernel
def _grad_weight(team, x, dY, axes, boundary, fill, block, terms, conjugate, partial):
    # partial (parts, K, C/G * T): the blocks of outputs are split into a fixed number of parts, each summed alone.
    d, zero, lanes = axes.shape[0], x.dtype.type(0), block[LANES]
    parts, K, Q = partial.shape
    T = terms.size // block[CHANNELS]
    Cg = Q // T
    pieces, G = (Cg + block[CHANNELS] - 1) // block[CHANNELS], x.shape[1] // Cg
    Kg = K // G
    R_out, L_out = axes[d - 2, OUT], axes[d - 1, OUT]
    lead_out = 1
    for a in range(d - 2):
        lead_out *= axes[a, OUT]
    down, across = (R_out + block[ROWS] - 1) // block[ROWS], (L_out + block[COLUMNS] - 1) // block[COLUMNS]
    units = x.shape[0] * lead_out * down * across
    width, most = block[WIDTH], block[ROWS] * block[COLUMNS]
    MR, wide = min(HIGHEST, SUMS * lanes // width), (Kg + lanes - 1) // lanes * lanes
    x_flat, dY_flat, sums_of_parts = x.reshape(x.size), dY.reshape(dY.size), partial.reshape(partial.size)
    x_at, dY_at, partial_at, terms_at = (
        address(x_flat, zero), address(dY_flat, zero), address(sums_of_parts, zero),
        address(terms, zero),
    )  # fmt: skip
    for task in tasks_of(team, parts * G * pieces):
        piece, g, part = task % pieces, task // pieces % G, task // pieces // G
        c, channels = piece * block[CHANNELS], min(block[CHANNELS], Cg - piece * block[CHANNELS])
        columns, rows = L_out if block[IN_PLACE] else plane(axes, block)[1], channels * T
        lines = np.empty(0 if block[IN_PLACE] else block_size(axes, block), x.dtype)
        turned = np.empty(width * most + ALIGNED, x.dtype)
        sums, nothing = np.empty(rows * wide + ALIGNED, x.dtype), np.zeros(HIGHEST, x.dtype)
        pixels = np.empty((most, 2), np.int64)  # each among the lines, and in its panel of turned rows
        turned0, sums0, l0 = aligned(turned), aligned(sums), 0
        lines_at, turned_at, sums_at = address(lines, zero), address(turned, zero), address(sums, zero)
        nothing_at = address(nothing, zero)
        first = units * part // parts
        for unit in range(first, units * (part + 1) // parts):
            o0, rest = unit % across * block[COLUMNS], unit // across
            O0, rest = rest % down * block[ROWS], rest // down
            outer, n = rest % lead_out, rest // lead_out
            high, run = min(block[ROWS], R_out - O0), min(block[COLUMNS], L_out - o0)
            if block[IN_PLACE]:
                plane_size = R_out * L_out
                lines_at, l0 = x_at, ((n * x.shape[1] + g * Cg + c) * lead_out + outer) * plane_size + O0 * L_out + o0
            else:
                gather_lines(x, g * Cg + c, channels, n, outer, O0, o0, axes, boundary, fill, block, lines, 0)
            for row in range(high):
                for o in range(run):
                    pixels[row * run + o, 0], pixels[row * run + o, 1] = row * columns + o, (row * run + o) * width
            if conjugate:
                for i in range(lines.size):
                    lines[i] = np.conj(lines[i])
            stretch = high * run if run == L_out else run  # what lies together in dY
            begin = (((n * K + g * Kg) * lead_out + outer) * R_out + O0) * L_out + o0
            for k in range(0, Kg, width):
                if min(width, wide - k) > Kg - k:
                    turned[:] = 0  # the last columns belong to no output channel
                for p in range(0, high * run, stretch):
                    transpose(
                        dY_at, begin + k * lead_out * R_out * L_out + p // run * L_out, lead_out * R_out * L_out,
                        min(width, Kg - k), stretch, turned_at, turned0 + p * width, width, zero,
                    )  # fmt: skip
                for p in range(0, high * run, CHAIN):  # long sums in parts
                    some, joins, pixels_at = min(CHAIN, high * run - p), unit + p > first, address(pixels[p:], zero)
                    for q in range(0, rows, MR):
                        outer_sum(
                            lines_at, l0, terms_at, q, turned_at, turned0, pixels_at, some, min(MR, rows - q),
                            min(width, wide - k), 1, 0, sums_at, sums0 + q * wide + k, wide, nothing_at, 0, joins,
                            zero,
                        )  # fmt: skip
        transpose(sums_at, sums0, wide, rows, Kg, partial_at, (part * K + g * Kg) * Q + c * T, Q, zero)
        keep(lines, turned, sums, nothing, pixels)
    keep(x_flat, dY_flat, sums_of_parts)


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``dW = dY_flat @ X_conv^H``, the sum over pixels split into parts that follow from the shapes alone."""
    (N, K), G, Q, dtype = dY.shape[:2], groups_of(x, dW), prod(dW.shape[1:]), dW.dtype
    axes, size, block, terms, parts = _layout_for_weights(axes.tobytes(), dY.shape, dW.shape[1], G, dtype)
    partial = dW.reshape(1, K, Q) if parts == 1 else np.empty((parts, K, Q), dtype)
    _grad_weight(
        flat(x, *x.shape[:2], *size), flat(dY, N, K, prod(dY.shape[2:])), axes, boundary, fill, block, terms,
        is_complex(dtype), partial, work=dY.size * Q,
    )
    if parts > 1:
        dW.reshape(K, Q)[...] = partial.sum(axis=0, dtype=wide(dtype))


@lru_cache(maxsize=1024)
def _layout_for_weights(
    table_of_axes: bytes, shape: tuple[int, ...], C: int, G: int, dtype: np.dtype
) -> tuple[Any, ...]:
    """The same for the weight gradient of ``dY`` of this shape, and into how many parts its sums are split."""
    axes, _ = merged(np.frombuffer(table_of_axes, np.int64).reshape(-1, 6), contiguous_steps(shape))
    block, parts = blocks_for_weights(axes, shape[0], C, shape[1] // G, G, dtype)
    terms = table(axes, block)
    return *fixed((axes, size_over(axes), block, terms)), parts


# memory ---------------------------------------------------------------------------------------------------------------


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: the lines of a block for each thread, and tables."""
    g = geometry
    if not (g.N and g.C and g.K and prod(g.out)):
        return 0
    threads = thread_count()
    axes, _ = merged(g.axes, contiguous_steps((g.N, g.K, *g.out)))
    block = blocks_of(axes, g.N, g.C // g.groups, g.K // g.groups, g.groups, dtype, threads)
    terms, width = int(block[CHANNELS]) * prod(g.kernel), int(block[WIDTH])
    lines = 0 if block[IN_PLACE] else int(block_size(axes, block))
    panel = int(block[PACKED]) * terms * width
    return (lines + panel + (HIGHEST + 2) * width) * dtype.itemsize * threads + 4 * 8 * terms


def workspace_of_sums(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``grad_weight`` takes: for each thread lines, turned rows and sums; and the sums of all parts."""
    g, weights = geometry, geometry.K * (geometry.C // geometry.groups) * prod(geometry.kernel)
    shape = g.N, g.K, *g.out
    axes, _, block, terms, parts = _layout_for_weights(g.axes.tobytes(), shape, g.C // g.groups, g.groups, dtype)
    lanes, width, most = int(block[LANES]), int(block[WIDTH]), int(block[ROWS] * block[COLUMNS])
    lines = 0 if block[IN_PLACE] else int(block_size(axes, block))
    sums = len(terms) * -(-(g.K // g.groups) // lanes) * lanes
    tasks = parts * g.groups * -(-(g.C // g.groups) // int(block[CHANNELS]))
    each = (lines + width * most + sums) * dtype.itemsize + 16 * most
    added = weights * (parts * dtype.itemsize + wide(dtype).itemsize) if parts > 1 else 0
    return min(tasks, thread_count()) * each + int(added)
