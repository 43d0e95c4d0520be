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

from .._indexing import CONSTANT, KERNEL, OUT, SIZE
from .._memory import cache_size
from ..geometry import ConvGeometry, axes_table
from ._jit import Kernel, flat, helper, tasks_of
from .direct import wide
from .im2col import groups_of
from .lines import (
    CHANNELS,
    COLUMNS,
    PACKED,
    ROWS,
    SHARES,
    between,
    block_size,
    contiguous_steps,
    even,
    gather_lines,
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
    keep,
    outer_sum,
    pack,
    put,
    put_apart,
    sum_lanes,
    transpose,
)

#: Most rows of X_conv that are multiplied at a time: a panel of them stays in the L2 cache.
TERMS = 1152

#: Most bytes that the parts of a weight gradient may take.
PARTS = 16 << 20

# the forward product, and the input gradient through it -------------------------------------------------------------


@Kernel
def _forward(team, x, w, w_terms, w_steps, bias, axes, boundary, fill, block, lanes, groups, places, y):
    # x (N, C, lead, rows, last); weight (g, k, c, t) is w[g, k, c times w_steps, and w_terms[t]] in a flat w, output
    # (n, k, o) is y[places[0] + n, k, o times places[1:]] in a flat y.
    d = axes.shape[0]
    N, Cg, Kg = x.shape[0], x.shape[1] // groups, bias.size // groups
    R_out, L_out = axes[d - 2, OUT], axes[d - 1, OUT]
    lead_out = 1
    for a in range(d - 2):
        lead_out *= axes[a, OUT]
    down, across = (R_out + block[ROWS] - 1) // block[ROWS], (L_out + block[COLUMNS] - 1) // block[COLUMNS]
    columns = plane(axes, block)[1]
    terms = table(axes, block, block[CHANNELS])
    T = terms.size // block[CHANNELS]
    row_step, step = places[d + 1], places[d + 2]
    weights = np.empty(terms.size, np.int64)
    for c in range(block[CHANNELS]):
        for t in range(T):
            weights[c * T + t] = c * w_steps[2] + w_terms[t]
    w_rows = np.arange(HIGHEST) * w_steps[1]
    size = block_size(axes, block) + WIDEST * lanes  # the last tile may look beyond the last pixel
    packed, together = block[PACKED] > 0, max(block[PACKED], 1)
    panel_size = block[PACKED] * terms.size * WIDEST * lanes
    zero = fill
    w_at, y_at, bias_at, terms_at = address(w, zero), address(y, zero), address(bias, zero), address(terms, zero)
    weights_at, w_rows_at = address(weights, zero), address(w_rows, zero)
    for task in tasks_of(team, N * lead_out * groups * down * across * block[SHARES]):
        share, rest = task % block[SHARES], task // block[SHARES]
        o0, rest = rest % across * block[COLUMNS], rest // across
        O0, rest = rest % down * block[ROWS], rest // down
        g, rest = rest % groups, rest // groups
        outer, n = rest % lead_out, rest // lead_out
        high, wide = min(block[ROWS], R_out - O0), min(block[COLUMNS], L_out - o0)
        k0, k1 = Kg * share // block[SHARES], Kg * (share + 1) // block[SHARES]
        base = places[0] + n * places[1] + g * Kg * places[2] + O0 * row_step + o0 * step
        left = outer
        for a in range(d - 3, -1, -1):
            base += left % axes[a, OUT] * places[3 + a]
            left //= axes[a, OUT]
        lines, panel = np.empty(size + ALIGNED, x.dtype), np.empty(panel_size + ALIGNED, x.dtype)
        tile = np.empty((HIGHEST, WIDEST * lanes), x.dtype)
        l0, panel0 = aligned(lines), aligned(panel)
        lines[size - WIDEST * lanes :] = 0  # never used, but denormals by chance would be slow
        lines_at, panel_at, tile_at = address(lines, zero), address(panel, zero), address(tile, zero)
        length = (high - 1) * columns + wide
        vectors = (length + lanes - 1) // lanes
        tiles = (vectors + WIDEST - 1) // WIDEST
        MR = min(HIGHEST, SUMS // ((vectors + tiles - 1) // tiles))
        strips = (k1 - k0 + MR - 1) // MR
        first_run, runs = np.empty(tiles + 1, np.int64), np.empty((tiles + high, 3), np.int64)
        cut(length, columns, wide, row_step, step, vectors, lanes, first_run, runs)
        narrow = vectors // tiles  # tiles are so wide, or by one vector wider
        panel_rows = np.empty((2, terms.size if packed else 0), np.int64)
        for q in range(panel_rows.shape[1]):
            panel_rows[0, q], panel_rows[1, q] = q * narrow * lanes, q * (narrow + 1) * lanes
        narrow_at, wider_at = address(panel_rows[0], zero), address(panel_rows[1], zero)
        for c in range(0, Cg, block[CHANNELS]):
            channels = min(block[CHANNELS], Cg - c)
            n_terms = channels * T
            w0 = g * w_steps[0] + c * w_steps[2]
            gather_lines(x, g * Cg + c, channels, n, outer, O0, o0, axes, boundary, fill, block, lines, l0)
            for part0 in range(0, tiles, together):  # tiles that are packed together, then multiplied strip by strip
                part1 = min(part0 + together, tiles)
                if packed:
                    for part in range(part0, part1):
                        v0, v1 = vectors * part // tiles, vectors * (part + 1) // tiles
                        p0 = panel0 + (part - part0) * terms.size * WIDEST * lanes
                        pack(lines_at, l0 + v0 * lanes, terms_at, n_terms, (v1 - v0) * lanes, panel_at, p0, zero)
                for strip in range(strips):
                    k, k_end = k0 + (k1 - k0) * strip // strips, k0 + (k1 - k0) * (strip + 1) // strips
                    w_strip, y_strip, height = w0 + k * w_steps[1], base + k * places[2], k_end - k
                    for part in range(part0, part1):
                        v0, v1 = vectors * part // tiles, vectors * (part + 1) // tiles
                        b_at, b0, b_terms_at = lines_at, l0 + v0 * lanes, terms_at
                        if packed:
                            b_at, b0 = panel_at, panel0 + (part - part0) * terms.size * WIDEST * lanes
                            b_terms_at = narrow_at if v1 - v0 == narrow else wider_at
                        outer_sum(
                            w_at, w_strip, w_rows_at, 0, weights_at, b_at, b0, b_terms_at, n_terms, height, v1 - v0,
                            tile_at, zero,
                        )  # fmt: skip
                        for r in range(first_run[part], first_run[part + 1]):
                            column, run, to = runs[r]
                            if step == 1:
                                put(
                                    tile_at, column, run, height, y_at, y_strip + to, places[2], bias_at, g * Kg + k,
                                    c == 0, zero,
                                )  # fmt: skip
                            else:
                                put_apart(
                                    tile_at, column, run, height, y_at, y_strip + to, places[2], step, bias_at,
                                    g * Kg + k, c == 0, zero,
                                )  # fmt: skip
        keep(lines, panel, tile, panel_rows)
    keep(w, y, bias, terms, weights, w_rows)


@helper
def cut(length, columns, wide, row_step, step, vectors, width, first_run, runs):
    """What each tile of a plane gives to the output: first column, length and place of the rows that it meets.

    ``vectors`` of ``width`` are shared evenly by the tiles. What lies between two rows is not output.
    """
    tiles, count = first_run.size - 1, 0
    seamless = columns == wide and row_step == wide * step  # rows follow each other, here and there
    for part in range(tiles):
        first_run[part] = count
        p0, p1 = vectors * part // tiles * width, min(vectors * (part + 1) // tiles * width, length)
        p = p0
        while p < p1:
            row, o = (0, p) if seamless else (p // columns, p % columns)
            run = p1 - p if seamless else min(p1 - p, wide - o)
            if run > 0:
                runs[count, 0], runs[count, 1], runs[count, 2] = p - p0, run, row * row_step + o * step
                count += 1
            p += run if seamless else columns - o
    first_run[tiles] = count


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
    axes, size, block, places = _layout(
        axes.tobytes(), begin, part.strides, y.itemsize, N, C // groups, bias.size // groups, groups, y.dtype,
        numba.get_num_threads(),
    )
    _forward(
        flat(x, N, C, *size), flat(w, w.size), flat(w_terms, w_terms.size),
        np.array([w.size // groups, k_step, c_step]), flat(bias, bias.size), axes, boundary, fill, block,
        sum_lanes(y.dtype), groups, places, y.reshape(y.size),
        work=part.size * C // groups * w_terms.size,
    )


@lru_cache(maxsize=1024)
def _layout(
    table: bytes, begin: int, strides: tuple[int, ...], item: int, N: int, C: int, K: int, G: int, dtype: np.dtype,
    threads: int,
) -> tuple[np.ndarray, tuple[int, ...], np.ndarray, np.ndarray]:
    """What shapes alone decide: axes, the size of the input over them, blocks, the steps of the output."""
    axes, steps = merged(np.frombuffer(table, np.int64).reshape(-1, 6), [stride // item for stride in strides])
    size = axes[:, SIZE].tolist()
    block = blocks_of(axes, N, C, K, G, dtype, threads)
    places = np.array([begin, *steps])
    for array in (axes, block, places):
        array.flags.writeable = False
    return axes, (prod(size[:-2]), *size[-2:]), block, places


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
def _grad_weight(team, x, dY, axes, boundary, fill, block, lanes, conjugate, partial):
    # partial (parts, K, C/G * T): the blocks of outputs are split into a fixed number of parts, each summed alone.
    d = axes.shape[0]
    parts, K, Q = partial.shape
    N = x.shape[0]
    R_out, L_out = axes[d - 2, OUT], axes[d - 1, OUT]
    lead_out = 1
    for a in range(d - 2):
        lead_out *= axes[a, OUT]
    terms = table(axes, block, block[CHANNELS])
    T = terms.size // block[CHANNELS]
    Cg = Q // T
    G = x.shape[1] // Cg
    Kg = K // G
    down, across = (R_out + block[ROWS] - 1) // block[ROWS], (L_out + block[COLUMNS] - 1) // block[COLUMNS]
    units, pieces = N * lead_out * down * across, (Cg + block[CHANNELS] - 1) // block[CHANNELS]
    columns = plane(axes, block)[1]
    most = block[ROWS] * block[COLUMNS]
    wide = (Kg + lanes - 1) // lanes * lanes
    vectors = wide // lanes
    tiles = (vectors + WIDEST - 1) // WIDEST
    MR = min(HIGHEST, SUMS // ((vectors + tiles - 1) // tiles))
    turned_rows = np.arange(most) * wide
    none = np.zeros(HIGHEST, x.dtype)
    zero, partials = fill, partial.reshape(partial.size)
    dY_at, terms_at, rows_at, none_at, partial_at = (
        address(dY.reshape(dY.size), zero), address(terms, zero), address(turned_rows, zero), address(none, zero),
        address(partials, zero),
    )  # fmt: skip
    for task in tasks_of(team, parts * G * pieces):
        piece, g, part = task % pieces, task // pieces % G, task // pieces // G
        c, channels = piece * block[CHANNELS], min(block[CHANNELS], Cg - piece * block[CHANNELS])
        lines = np.empty(block_size(axes, block), x.dtype)
        turned = np.zeros(most * wide + ALIGNED, x.dtype)
        turned0 = aligned(turned)
        sums = np.zeros(channels * T * wide, x.dtype)
        pixels = np.empty(most, np.int64)
        tile = np.empty((HIGHEST, WIDEST * lanes), x.dtype)
        lines_at, turned_at, sums_at = address(lines, zero), address(turned, zero), address(sums, zero)
        tile_at, pixels_at = address(tile, zero), address(pixels, zero)
        first, last = units * part // parts, units * (part + 1) // parts
        for unit in range(first, last):
            o0, rest = unit % across * block[COLUMNS], unit // across
            O0, rest = rest % down * block[ROWS], rest // down
            outer, n = rest % lead_out, rest // lead_out
            high, run = min(block[ROWS], R_out - O0), min(block[COLUMNS], L_out - o0)
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
            strips = (channels * T + MR - 1) // MR
            for strip in range(strips):
                q, q_end = channels * T * strip // strips, channels * T * (strip + 1) // strips
                for j in range(tiles):
                    v0, v1 = vectors * j // tiles, vectors * (j + 1) // tiles
                    outer_sum(
                        lines_at, 0, terms_at, q, pixels_at, turned_at, turned0 + v0 * lanes, rows_at, high * run,
                        q_end - q, v1 - v0, tile_at, zero,
                    )  # fmt: skip
                    at, columns_here = q * wide + v0 * lanes, (v1 - v0) * lanes
                    put(tile_at, 0, columns_here, q_end - q, sums_at, at, wide, none_at, 0, unit == first, zero)
        at = (part * K + g * Kg) * Q + c * T
        transpose(sums_at, 0, wide, channels * T, Kg, partial_at, at, Q, zero)
        keep(lines, turned, sums, tile, pixels)
    keep(dY, terms, turned_rows, none, partials)


def grad_weight(
    x: np.ndarray, dY: np.ndarray, axes: np.ndarray, boundary: int, fill: np.generic, dW: np.ndarray
) -> None:
    """``dW = dY_flat @ X_conv^H``, the sum over pixels split into parts that follow from the shapes alone."""
    (N, K), G, Q, dtype = dY.shape[:2], groups_of(x, dW), prod(dW.shape[1:]), dW.dtype
    axes, size, block, parts = _layout_for_weights(axes.tobytes(), dY.shape, dW.shape[1], G, dtype)
    partial = dW.reshape(1, K, Q) if parts == 1 else np.empty((parts, K, Q), dtype)
    _grad_weight(
        flat(x, *x.shape[:2], *size), flat(dY, N, K, prod(dY.shape[2:])), axes, boundary, fill, block,
        sum_lanes(dtype), dtype.kind == "c", partial, work=dY.size * Q,
    )
    if parts > 1:
        dW.reshape(K, Q)[...] = partial.sum(axis=0, dtype=wide(dtype))


@lru_cache(maxsize=1024)
def _layout_for_weights(
    table: bytes, shape: tuple[int, ...], C: int, G: int, dtype: np.dtype
) -> tuple[np.ndarray, tuple[int, ...], np.ndarray, int]:
    """The same for the weight gradient of ``dY`` of this shape, and into how many parts its sums are split."""
    axes, _ = merged(np.frombuffer(table, np.int64).reshape(-1, 6), contiguous_steps(shape))
    size = axes[:, SIZE].tolist()
    block, parts = blocks_for_weights(axes, shape[0], C, shape[1] // G, G, dtype)
    for array in (axes, block):
        array.flags.writeable = False
    return axes, (prod(size[:-2]), *size[-2:]), block, parts


# blocks -------------------------------------------------------------------------------------------------------------


def blocks_of(
    axes: np.ndarray, N: int, C: int, K: int, G: int, dtype: np.dtype, threads: int
) -> np.ndarray:
    """What a task computes: lines that fill half the L2 cache, and enough tasks for the threads.

    Which input channels are summed at a time does not follow from the number of threads, so no sum does.
    """
    rows, lead = axes.tolist(), prod(axes[:-2, OUT].tolist())
    taps, width = prod(axes[:, KERNEL].tolist()), sum_lanes(dtype)
    row_lines, row_shift = lines_of(rows[-2])
    if between(rows[-2], row_lines, row_shift) > rows[-2][OUT]:
        row_lines, row_shift = rows[-2][KERNEL], 0  # taps so far apart that few rows are shared
    lines, shift = lines_for(rows[-1], K, width)
    down, across = between(rows[-2], row_lines, row_shift), between(rows[-1], lines, shift)
    R_out, L_out = rows[-2][OUT], rows[-1][OUT]
    room = cache_size(2) // 3 // dtype.itemsize // (prod(axes[:-2, KERNEL].tolist()) * row_lines * lines)
    columns = even(L_out, 512)
    if columns < L_out and across == 0:
        columns = -(-columns // width) * width  # aligned lines
    least = min(R_out, max(4, 2 * down))  # rows enough that their halo is a small part
    high = min(R_out, max(least, room // (C * (columns + across)) - down))
    channels = min(room // ((high + down) * (columns + across)), TERMS // taps)
    channels = even(C, max(1, channels))
    tasks = N * lead * G * -(-L_out // columns)
    high = even(R_out, high)
    if tasks * -(-R_out // high) % threads and high * (columns + across) >= 32 * width:
        high = even(R_out, -(-R_out // (-(-R_out // high // threads) * threads)))
    tasks *= -(-R_out // high)
    shares = min(-(-K // HIGHEST), threads) if tasks % threads and tasks < 4 * threads else 1
    packed = 0
    if K // shares >= 5 * HIGHEST:  # few strips would not pay for the packing
        packed = max(1, cache_size(2) // 3 // (channels * taps * WIDEST * width * dtype.itemsize))
    return np.array([high, columns, channels, shares, row_lines, row_shift, lines, shift, packed])


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
    return np.array([high, columns, channels, 1, row_lines, row_shift, lines, shift, 0]), parts


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments: the lines of a block for each thread."""
    g = geometry
    if not (g.N and g.C and g.K and prod(g.out)):
        return 0
    threads = numba.get_num_threads()
    axes, _ = merged(g.axes, contiguous_steps((g.N, g.K, *g.out)))
    block = blocks_of(axes, g.N, g.C // g.groups, g.K // g.groups, g.groups, dtype, threads)
    width = sum_lanes(dtype)
    lines = int(block_size(axes, block)) + WIDEST * width
    panel = int(block[PACKED] * block[CHANNELS]) * prod(g.kernel) * WIDEST * width
    return (lines + panel + HIGHEST * WIDEST * width) * dtype.itemsize * threads
