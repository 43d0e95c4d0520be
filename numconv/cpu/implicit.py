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

import numba
import numpy as np
from numba import prange

from .._indexing import CONSTANT, KERNEL, OUT, SIZE
from .._memory import cache_size
from ..geometry import ConvGeometry, axes_table
from ._jit import Kernel, flat, helper
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
    between,
    block_size,
    contiguous_steps,
    even,
    gather_lines,
    in_place,
    lines_for,
    merged,
    plane,
    table,
)
from .rows import lines_of
from .simd import (
    ALIGNED,
    HIGHEST,
    SUMS,
    WIDEST,
    address,
    aligned,
    borrowed,
    copy_run,
    keep,
    outer_sum,
    pack,
    put,
    put_apart,
    sum_lanes,
    transpose,
)

#: Most rows of X_conv that are multiplied at a time: a few panels of them stay in the L2 cache.
TERMS = 576

#: Rows of X_conv that are packed side by side: as many streams through memory as the machine foresees.
STREAMS = 16

#: Vectors in a row of a tile: with the tallest tiles, or the widest.
WIDTHS = (SUMS // HIGHEST, WIDEST)

#: Most bytes that the parts of a weight gradient may take.
PARTS = 16 << 20

# the forward product, and the input gradient through it -------------------------------------------------------------


@Kernel
def _forward(x, w, bias, axes, boundary, fill, block, steps, places, tables, y):
    # x (N, C, lead, rows, last); weight (g, k, c, t) is w[g, k, c times steps, and tables[1, t]] in a flat w, output
    # (n, k, o) is y[places[0] + n, k, o times places[1:]] in a flat y.
    tasks = x.shape[0] * (w.size // steps[0]) * block[SHARES]
    for a in range(axes.shape[0]):
        size = block[ROWS] if a == axes.shape[0] - 2 else block[COLUMNS] if a == axes.shape[0] - 1 else 1
        tasks *= (axes[a, OUT] + size - 1) // size
    for task in prange(tasks):
        _product_of_block(
            task, borrowed(x), borrowed(w), borrowed(bias), borrowed(axes), boundary, fill, borrowed(block),
            borrowed(steps), borrowed(places), borrowed(tables), borrowed(y),
        )  # fmt: skip


@helper
def _product_of_block(task, x, w, bias, axes, boundary, fill, block, steps, places, tables, y):
    d, zero = axes.shape[0], fill
    groups = w.size // steps[0]
    Cg, Kg = x.shape[1] // groups, bias.size // groups
    R_out, L_out = axes[d - 2, OUT], axes[d - 1, OUT]
    share, rest = task % block[SHARES], task // block[SHARES]
    across, down = (L_out + block[COLUMNS] - 1) // block[COLUMNS], (R_out + block[ROWS] - 1) // block[ROWS]
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
    packed, width, lanes = block[PACKED] > 0, block[WIDTH], block[LANES]
    columns = wide if block[IN_PLACE] else plane(axes, block)[1]
    pitch = wide if packed else columns
    length = (high - 1) * pitch + wide
    tiles = (length + width - 1) // width
    together, depth = block[PACKED] if packed else tiles, tables.shape[1] * width
    MR = min(HIGHEST, SUMS * lanes // width)
    first_run, runs = cut(length, pitch, wide, width, places[d + 1], places[d + 2])
    lines = np.empty(0 if block[IN_PLACE] else block_size(axes, block) + ALIGNED + width, x.dtype)
    lines[lines.size - min(lines.size, ALIGNED + width) :] = 0  # never used, but denormals by chance would be slow
    panel = np.empty(block[PACKED] * depth + ALIGNED, x.dtype)
    turned = np.empty(block[CHANNELS] * block[TURNED] * steps[1], x.dtype)
    tile = np.zeros((HIGHEST + 1) * width, x.dtype)
    l0, p0 = aligned(lines), aligned(panel)
    pixels = x.reshape(x.size)
    lines_at, panel_at, turned_at, tile_at = (
        address(lines, zero), address(panel, zero), address(turned, zero), address(tile, zero),
    )  # fmt: skip
    x_at, w_at, y_at, bias_at = address(pixels, zero), address(w, zero), address(y, zero), address(bias, zero)
    terms_at, w_terms_at, panel_rows_at, w_rows = (
        address(tables[0], zero), address(tables[1], zero), address(tables[2], zero), np.arange(HIGHEST) * steps[1],
    )  # fmt: skip
    rows_at = address(w_rows, zero)
    unused = tiles * width - length if packed and tiles <= together else 0  # columns of the last panel
    for q in range(tables.shape[1] if unused else 0):
        copy_run(tile_at, 0, unused, panel_at, p0 + (tiles - 1) * depth + (q + 1) * width - unused, zero)
    T = tables.shape[1] // block[CHANNELS]
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
            if packed:
                begin, end = part0 * width, min(part1 * width, length)
                run = length if columns == wide else wide
                for q in range(0, terms, STREAMS):
                    rows = min(STREAMS, terms - q)
                    for row in range(begin // run, (end + run - 1) // run):
                        a, b = max(row * run, begin), min(row * run + run, end)
                        from_a = l0 + row * columns + a - row * run
                        pack(lines_at, from_a, terms_at, q, rows, b - a, panel_at, p0, a - begin, width, depth, zero)
            rows = block[TURNED] if block[TURNED] else k1 - k0
            for first in range(k0, k1, rows):
                last = min(first + rows, k1)
                a_at, a0 = w_at, g * steps[0] + c * steps[2] + first * steps[1]
                if block[TURNED]:
                    for i in range(channels):
                        size = (last - first) * steps[1]
                        copy_run(w_at, a0 + i * steps[2], size, turned_at, i * rows * steps[1], zero)
                    a_at, a0 = turned_at, 0
                for k in range(first, last, MR):
                    height = min(MR, last - k)
                    for part in range(part0, part1):
                        b_at, b0, b_terms_at = lines_at, l0 + part * width, terms_at
                        if packed:
                            b_at, b0, b_terms_at = panel_at, p0 + (part - part0) * depth, panel_rows_at
                        size = (min(width, length - part * width) + lanes - 1) // lanes * lanes
                        yk, r0, r1 = y0 + k * places[2], first_run[part], first_run[part + 1]
                        whole = places[d + 2] == 1 and r1 == r0 + 1 and runs[r0, 1] == size
                        out_at, out0, step, joins = y_at, yk + runs[r0, 2], places[2], c > 0
                        if not whole:
                            tile[:] = 0
                            out_at, out0, step, joins = tile_at, 0, width, True
                        outer_sum(
                            a_at, a0 + (k - first) * steps[1], rows_at, 0, w_terms_at, b_at, b0, b_terms_at, terms,
                            height, size, out_at, out0, step, bias_at, g * Kg + k, joins, zero,
                        )  # fmt: skip
                        if not whole:
                            for r in range(r0, r1):
                                put_run(
                                    tile_at, runs[r, 0], width, runs[r, 1], height, y_at, yk + runs[r, 2], places[2],
                                    places[d + 2], bias_at, g * Kg + k, c == 0, zero,
                                )  # fmt: skip
    keep(lines, panel, turned, tile, w_rows)


@helper
def put_run(tile_at, column, width, run, height, y_at, y0, y_step, apart, bias_at, k, first, zero):
    """A run of a tile's columns goes to the output, where neighbours may be ``apart``."""
    if apart == 1:
        put(tile_at, column, width, run, height, y_at, y0, y_step, bias_at, k, first, zero)
    else:
        put_apart(tile_at, column, width, run, height, y_at, y0, y_step, apart, bias_at, k, first, zero)


@helper
def cut(length, pitch, wide, width, row_step, step):
    """What each tile of a plane gives to the output: first column, length and place of the rows that it meets.

    Rows begin every ``pitch`` columns and are ``wide``; what lies between two rows is not output.
    """
    tiles, count = (length + width - 1) // width, 0
    first_run, runs = np.empty(tiles + 1, np.int64), np.empty((tiles + length // pitch + 1, 3), np.int64)
    seamless = pitch == wide and row_step == wide * step  # rows follow each other, here and there
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
        axes.tobytes(), begin, part.strides, y.dtype, N, C // groups, bias.size // groups, groups,
        (w.size // groups, k_step, c_step), w_terms.tobytes(), numba.get_num_threads(),
    )
    _forward(
        flat(x, N, C, *size), flat(w, w.size), flat(bias, bias.size), axes, boundary, fill, block, steps, places,
        tables, y.reshape(y.size), work=part.size * C // groups * w_terms.size,
    )


@lru_cache(maxsize=1024)
def _layout(
    table_of_axes: bytes, begin: int, strides: tuple[int, ...], dtype: np.dtype, N: int, C: int, K: int, G: int,
    w_steps: tuple[int, int, int], w_terms: bytes, threads: int,
) -> tuple[np.ndarray, tuple[int, ...], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What shapes alone decide: axes, the size of the input over them, blocks, steps through weights and output, tables.

    The tables are where each row of ``X_conv`` begins among lines, each column of ``W_flat`` in its row, and each row
    of a panel.
    """
    axes, out_steps = merged(
        np.frombuffer(table_of_axes, np.int64).reshape(-1, 6), [stride // dtype.itemsize for stride in strides]
    )
    size = axes[:, SIZE].tolist()
    block = blocks_of(axes, N, C, K, G, dtype, threads, turned=w_steps[1:])
    c_step = block[TURNED] * w_steps[1] or w_steps[2]
    weights = (np.arange(block[CHANNELS])[:, None] * c_step + np.frombuffer(w_terms, np.int64)).ravel()
    tables = np.stack([table(axes, block), weights, np.arange(weights.size) * block[WIDTH]])
    steps, places = np.array(w_steps), np.array([begin, *out_steps])
    for array in (axes, block, steps, places, tables):
        array.flags.writeable = False
    return axes, (prod(size[:-2]), *size[-2:]), block, steps, places, tables


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
def _grad_weight(x, dY, axes, boundary, fill, block, terms, conjugate, partial):
    # partial (parts, K, C/G * T): the blocks of outputs are split into a fixed number of parts, each summed alone.
    parts, _, Q = partial.shape
    Cg = Q * block[CHANNELS] // terms.size
    pieces, groups = (Cg + block[CHANNELS] - 1) // block[CHANNELS], x.shape[1] // Cg
    for task in prange(parts * groups * pieces):
        _grad_of_piece(
            task, borrowed(x), borrowed(dY), borrowed(axes), boundary, fill, borrowed(block), borrowed(terms),
            conjugate, borrowed(partial),
        )  # fmt: skip


@helper
def _grad_of_piece(task, x, dY, axes, boundary, fill, block, terms, conjugate, partial):
    # Some input channels of a group, over one part of the blocks of outputs.
    d, zero, lanes = axes.shape[0], fill, block[LANES]
    parts, K, Q = partial.shape
    T = terms.size // block[CHANNELS]
    Cg = Q // T
    pieces, G = (Cg + block[CHANNELS] - 1) // block[CHANNELS], x.shape[1] // Cg
    Kg = K // G
    R_out, L_out = axes[d - 2, OUT], axes[d - 1, OUT]
    lead_out = 1
    for a in range(d - 2):
        lead_out *= axes[a, OUT]
    piece, g, part = task % pieces, task // pieces % G, task // pieces // G
    c, channels = piece * block[CHANNELS], min(block[CHANNELS], Cg - piece * block[CHANNELS])
    down, across = (R_out + block[ROWS] - 1) // block[ROWS], (L_out + block[COLUMNS] - 1) // block[COLUMNS]
    units = x.shape[0] * lead_out * down * across
    columns, most = plane(axes, block)[1], block[ROWS] * block[COLUMNS]
    rows, wide = channels * T, (Kg + lanes - 1) // lanes * lanes
    width = block[WIDTH]
    MR = min(HIGHEST, SUMS * lanes // width)
    lines = np.empty(0 if block[IN_PLACE] else block_size(axes, block), x.dtype)
    turned = np.zeros(most * wide + ALIGNED, x.dtype)
    sums, nothing = np.empty(rows * wide + ALIGNED, x.dtype), np.zeros(HIGHEST, x.dtype)
    pixels, turned_rows = np.empty(most, np.int64), np.arange(most) * wide
    turned0, sums0, l0 = aligned(turned), aligned(sums), 0
    all_pixels = x.reshape(x.size)
    x_at, dY_at, partial_at, terms_at = (
        address(all_pixels, zero), address(dY.reshape(dY.size), zero), address(partial.reshape(partial.size), zero),
        address(terms, zero),
    )  # fmt: skip
    lines_at, turned_at, sums_at = address(lines, zero), address(turned, zero), address(sums, zero)
    nothing_at, pixels_at, turned_rows_at = (
        address(nothing, zero), address(pixels, zero), address(turned_rows, zero),
    )  # fmt: skip
    first = units * part // parts
    for unit in range(first, units * (part + 1) // parts):
        o0, rest = unit % across * block[COLUMNS], unit // across
        O0, rest = rest % down * block[ROWS], rest // down
        outer, n = rest % lead_out, rest // lead_out
        high, run = min(block[ROWS], R_out - O0), min(block[COLUMNS], L_out - o0)
        if block[IN_PLACE]:
            columns, plane_size = L_out, R_out * L_out
            lines_at, l0 = x_at, ((n * x.shape[1] + g * Cg + c) * lead_out + outer) * plane_size + O0 * L_out + o0
        else:
            gather_lines(x, g * Cg + c, channels, n, outer, O0, o0, axes, boundary, fill, block, lines, 0)
        for row in range(high):
            begin = (((n * K + g * Kg) * lead_out + outer) * R_out + O0 + row) * L_out + o0
            transpose(
                dY_at, begin, lead_out * R_out * L_out, Kg, run, turned_at, turned0 + row * run * wide, wide, zero
            )
            for o in range(run):
                pixels[row * run + o] = row * columns + o
        if conjugate:
            for i in range(lines.size):
                lines[i] = np.conj(lines[i])
        for q in range(0, rows, MR):
            for k in range(0, wide, width):
                outer_sum(
                    lines_at, l0, terms_at, q, pixels_at, turned_at, turned0 + k, turned_rows_at, high * run,
                    min(MR, rows - q), min(width, wide - k), sums_at, sums0 + q * wide + k, wide, nothing_at, 0,
                    unit > first, zero,
                )  # fmt: skip
    transpose(sums_at, sums0, wide, rows, Kg, partial_at, (part * K + g * Kg) * Q + c * T, Q, zero)
    keep(lines, turned, sums, nothing, pixels, turned_rows)


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``dW = dY_flat @ X_conv^H``, the sum over pixels split into parts that follow from the shapes alone."""
    (N, K), G, Q, dtype = dY.shape[:2], groups_of(x, dW), prod(dW.shape[1:]), dW.dtype
    axes, size, block, terms, parts = _layout_for_weights(axes.tobytes(), dY.shape, dW.shape[1], G, dtype)
    partial = dW.reshape(1, K, Q) if parts == 1 else np.empty((parts, K, Q), dtype)
    _grad_weight(
        flat(x, *x.shape[:2], *size), flat(dY, N, K, prod(dY.shape[2:])), axes, boundary, fill, block, terms,
        dtype.kind == "c", partial, work=dY.size * Q,
    )
    if parts > 1:
        np.add.reduce(partial, axis=0, out=dW.reshape(K, Q))


@lru_cache(maxsize=1024)
def _layout_for_weights(
    table_of_axes: bytes, shape: tuple[int, ...], C: int, G: int, dtype: np.dtype
) -> tuple[np.ndarray, tuple[int, ...], np.ndarray, np.ndarray, int]:
    """The same for the weight gradient of ``dY`` of this shape, and into how many parts its sums are split."""
    axes, _ = merged(np.frombuffer(table_of_axes, np.int64).reshape(-1, 6), contiguous_steps(shape))
    size = axes[:, SIZE].tolist()
    block, parts = blocks_for_weights(axes, shape[0], C, shape[1] // G, G, dtype)
    terms = table(axes, block)
    for array in (axes, block, terms):
        array.flags.writeable = False
    return axes, (prod(size[:-2]), *size[-2:]), block, terms, parts


# blocks -------------------------------------------------------------------------------------------------------------


def blocks_of(
    axes: np.ndarray, N: int, C: int, K: int, G: int, dtype: np.dtype, threads: int, turned: tuple[int, int] = (1, 0)
) -> np.ndarray:
    """What a task computes: lines that fill a third of the L2 cache, and tasks that take the threads the least time.

    Which input channels are summed at a time does not follow from the number of threads, so no sum does. Weights are
    ``turned`` (steps along rows and columns of ``W_flat``) if a row is scattered.
    """
    rows, lead, lead_k = axes.tolist(), prod(axes[:-2, OUT].tolist()), prod(axes[:-2, KERNEL].tolist())
    taps, lanes = prod(axes[:, KERNEL].tolist()), sum_lanes(dtype)
    R_out, L_out = rows[-2][OUT], rows[-1][OUT]
    cache = cache_size(2) // dtype.itemsize
    columns = even(L_out, 512)
    direct = in_place(axes) and (R_out == 1 or columns == L_out)
    packed = direct or K >= 5 * HIGHEST  # few strips would not pay for the packing
    row_lines, row_shift = lines_for(rows[-2])
    lines, shift = lines_for(rows[-1], 0 if packed else K, lanes)
    down, across = between(rows[-2], row_lines, row_shift), between(rows[-1], lines, shift)
    room = cache // 3 // (lead_k * row_lines * lines)
    channels = even(C, max(1, min(TERMS // taps, room // ((min(R_out, 4) + down) * (columns + across)))))
    most = max(1, 1024 // columns if direct else room // (channels * (columns + across)) - down)

    def cycles(high: int, columns: int, shares: int, width: int) -> float:
        """About what the threads take for a term of all sums."""
        vectors, MR = -(-high * columns // lanes), min(HIGHEST, SUMS // width)
        moves = (2 * vectors + 2 * high if packed else 0) + 0.4 * K / shares + row_lines * lines * (high + down) * 24 / taps
        tasks = N * lead * G * -(-R_out // high) * -(-L_out // columns) * shares
        return -(-tasks // threads) * (-(-K // shares // MR) * cycles_of_tiles(vectors, width) + moves)

    choices = []
    for pieces in range(-(-L_out // columns), -(-L_out // columns) + (2 * min(threads, 8) if R_out == 1 else 1)):
        wide = -(-L_out // pieces)
        wide = wide if pieces == 1 else -(-wide // lanes) * lanes  # aligned lines
        for blocks in range(-(-R_out // most), min(R_out, -(-R_out // most) + 2 * min(threads, 8)) + 1):
            high = -(-R_out // blocks)
            for shares in {1, min(threads, max(1, K // HIGHEST))}:
                choices += [(cycles(high, wide, shares, v), shares, -high, -wide, v) for v in WIDTHS]
    _, shares, high, columns, width = min(choices)
    depth = channels * taps
    together = max(1, cache // 3 // (depth * width * lanes)) if packed else 0
    scattered = turned[1] > turned[0] and packed
    copied = max(HIGHEST, cache // 8 // (channels * turned[0]) // HIGHEST * HIGHEST) if scattered else 0
    return np.array([
        -high, -columns, channels, shares, row_lines, row_shift, lines, shift, together, width * lanes, lanes, copied,
        direct,
    ])  # fmt: skip


def cycles_of_tiles(vectors: int, width: int) -> float:
    """About what tiles that share so many vectors of columns take to add a term: to multiply, or only to load."""
    full, rest = divmod(vectors, width)
    MR = min(HIGHEST, SUMS // width)
    return sum(count * max(MR * v, MR + 2 * v + 2) / 2 for count, v in ((full, width), (1, rest)) if v)


def blocks_for_weights(
    axes: np.ndarray, N: int, C: int, K: int, G: int, dtype: np.dtype
) -> tuple[np.ndarray, int]:
    """What a task of the weight gradient computes, and into how many parts the outputs are split for it."""
    rows, lead, taps = axes.tolist(), prod(axes[:-2, OUT].tolist()), prod(axes[:, KERNEL].tolist())
    (row_lines, row_shift), (lines, shift) = lines_of(rows[-2]), lines_of(rows[-1])
    down, across = between(rows[-2], row_lines, row_shift), between(rows[-1], lines, shift)
    R_out, L_out = rows[-2][OUT], rows[-1][OUT]
    copies = prod(axes[:-2, KERNEL].tolist()) * row_lines * lines
    room = cache_size(2) // 2 // dtype.itemsize
    channels = even(C, max(1, -(-C * G // 8), 256 // taps))  # tasks enough, each with sums enough for its turned dY
    columns = even(L_out, 512)
    high = even(R_out, max(min(R_out, 4), room // ((copies * channels + K) * (columns + across)) - down))
    channels = even(C, min(channels, max(1, room // (copies * (high + down) * (columns + across)))))
    tasks = G * -(-C // channels)
    units = N * lead * -(-R_out // high) * -(-L_out // columns)
    parts = min(units, -(-8 // tasks), max(1, PARTS // (K * G * C * taps * dtype.itemsize)))
    direct = in_place(axes) and dtype.kind != "c" and (R_out == 1 or columns == L_out)
    lanes = sum_lanes(dtype)
    width = min(WIDTHS, key=lambda v: cycles_of_tiles(-(-K // lanes), v) / min(HIGHEST, SUMS // v)) * lanes
    return np.array([
        high, columns, channels, 1, row_lines, row_shift, lines, shift, 0, width, lanes, 0, direct
    ]), parts  # fmt: skip


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: the lines of a block for each thread, and tables."""
    g = geometry
    if not (g.N and g.C and g.K and prod(g.out)):
        return 0
    threads = numba.get_num_threads()
    axes, _ = merged(g.axes, contiguous_steps((g.N, g.K, *g.out)))
    block = blocks_of(axes, g.N, g.C // g.groups, g.K // g.groups, g.groups, dtype, threads)
    terms, width = int(block[CHANNELS]) * prod(g.kernel), int(block[WIDTH])
    lines = 0 if block[IN_PLACE] else int(block_size.py_func(axes, block))
    panel = int(block[PACKED]) * terms * width
    return (lines + panel + (HIGHEST + 2) * width) * dtype.itemsize * threads + 3 * 8 * terms
