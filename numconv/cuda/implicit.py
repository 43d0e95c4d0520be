"""The product ``W_flat @ X_conv`` without ever storing ``X_conv``: a block gathers its columns as it needs them.

A block of threads owns a tile of the product, ``rows`` by ``columns``. Step by step it brings ``DEPTH`` rows of the
two operands into shared memory, the next ones while it multiplies, and every thread sums a square of outer products in
registers. All three products run this way:

    Y  = W_flat @ X_conv            the columns are pixels of the output, images of a batch side by side
    dX = the same of dY by phases   with the taps of a phase of a turned W_flat
    dW = dY_flat @ X_conv^H         summed over pixels in parts, and the parts added up in their order

``X_conv`` has its taps outermost here, so a thread finds its pixel once for each tap and then walks through the
channels; which pixel, it looks up in ``tables``. The order of every sum follows from the shapes alone: where one image
has too few blocks for a GPU, its long sums are split into parts, which are added in their order.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

from .._indexing import CONSTANT, KERNEL, OUT, SIZE, STRIDE
from ..arrays import computed_in
from ..geometry import ConvGeometry, axes_table
from ._jit import SIMULATED, at, count, cuda, helper, int32, kernel, load_four, put_four, source, take_four
from .arrays import DeviceArray, blocks_for, place_of, steps_of, straight
from .packing import pack
from .places import table
from .tables import FAR, rows_and_taps

#: Threads along a side of a tile; the simulator makes each a thread of Python, and sees the same with fewer.
SIDE_BITS = 3 if SIMULATED else 4
SIDE = 1 << SIDE_BITS
THREADS = SIDE * SIDE
DEPTH = 8

#: A row of a tile in shared memory is so much longer, or threads that store a column would meet in one bank.
PAD = 4

#: Parts of a weight gradient are as many as fill a GPU of this many blocks, and take at most so many bytes.
BLOCKS, PARTS = 512, 32 << 20


@helper
def pixel_met(tap, O, first, rows_met, met, L_in, boundary):
    """The pixel of the input, a flat index, that a tap meets in row ``O`` of the output; -1 for the constant."""
    row = int32(rows_met[at(met[at(tap), 0] + O)])
    pixel = int32(source(int32(first + met[at(tap), 1]), L_in, boundary))
    return int32(row * L_in + pixel) if row >= 0 and pixel >= 0 else int32(-1)


class Product(NamedTuple):
    """The kernel whose blocks own ``rows`` by ``columns`` of the forward product."""

    rows: int
    columns: int
    kernel: Any


def product_of(down_bits: int, across_bits: int, tall: int, broad: int, resident: int) -> Product:
    """The kernel for 2**bits threads down and across a tile, which sum ``tall`` by ``broad`` products each, in groups
    of four that lie together.
    """
    threads, rows, columns = 1 << (down_bits + across_bits), tall << down_bits, broad << across_bits
    down_step, across_step = 4 << down_bits, 4 << across_bits  # how far the groups of four of a thread lie apart
    lines = threads // columns  # rows of X_conv that the threads bring at once
    x_loads, w_loads = DEPTH // lines, rows * DEPTH // threads
    group = 4 if w_loads % 4 == 0 else 1  # of weights that a thread brings at once
    w_half, x_half = DEPTH * rows, DEPTH * columns  # of a shared array is filled while the other half is multiplied
    w_both, x_both, two_each = 2 * w_half, 2 * x_half, 2 * columns

    @helper
    def multiply(W, X, down, across, sums):
        # one outer product; four neighbours are one load from shared memory
        w = cuda.local.array(tall, W.dtype)
        x = cuda.local.array(broad, W.dtype)
        for i in range(0, tall, 4):
            load_four(W, down + at(i // 4 * down_step), w, i)
        for j in range(0, broad, 4):
            load_four(X, across + at(j // 4 * across_step), x, j)
        for i in range(tall):
            for j in range(broad):
                sums[i, j] += w[i] * x[j]

    @helper
    def multiply_two(W, X, down, across, sums):
        multiply(W, X, down, across, sums)
        multiply(W, X, down + at(rows), across + at(columns), sums)

    @helper
    def multiply_four(W, X, down, across, sums):
        multiply_two(W, X, down, across, sums)
        multiply_two(W, X, down + at(2 * rows), across + at(2 * columns), sums)

    @helper
    def multiply_all(W, X, down, across, sums):
        # DEPTH outer products, one behind the other in the code: what a loop would calculate is known then
        multiply_four(W, X, down, across, sums)
        multiply_four(W, X, down + at(4 * rows), across + at(4 * columns), sums)

    @helper
    def add_what_is_there(y, begin, row_places, column_places, down, across, straight, sums):
        four = cuda.local.array(4, y.dtype)
        for i in range(tall):
            row = row_places[down + at(i // 4 * down_step + i % 4)]
            if row >= 0 and straight:
                for j in range(0, broad, 4):
                    column = column_places[across + at(j // 4 * across_step)]
                    if column >= 0:
                        take_four(y, begin + at(row) + at(column), four, 0)
                        for jj in range(4):
                            sums[i, j + jj] += sums.dtype.type(four[jj])
            elif row >= 0:
                for j in range(broad):
                    column = column_places[across + at(j // 4 * across_step + j % 4)]
                    if column >= 0:
                        sums[i, j] += sums.dtype.type(y[begin + at(row) + at(column)])

    @helper
    def add_bias(bias, k, row_places, down, sums):
        for i in range(tall):
            row = down + at(i // 4 * down_step + i % 4)
            if row_places[row] >= 0:
                for j in range(broad):
                    sums[i, j] += bias[k + row]

    @helper
    def put(sums, y, begin, row_places, column_places, down, across, straight):
        four = cuda.local.array(4, sums.dtype)
        for i in range(tall):
            row = row_places[down + at(i // 4 * down_step + i % 4)]
            if row >= 0 and straight:
                for j in range(0, broad, 4):
                    column = column_places[across + at(j // 4 * across_step)]
                    if column >= 0:
                        for jj in range(4):
                            four[jj] = sums[i, j + jj]
                        put_four(four, 0, y, begin + at(row) + at(column))
            elif row >= 0:
                for j in range(broad):
                    column = column_places[across + at(j // 4 * across_step + j % 4)]
                    if column >= 0:
                        y[begin + at(row) + at(column)] = y.dtype.type(sums[i, j])

    @kernel(threads, resident)
    def forward(
        x, w, bias, axes, rows_met, met, boundary, fill, steps, C, Cg, Kg, groups, columns_all, depth_all, size,
        part_steps, turns, ends, straight, y,
    ):
        # x (N, C, prod in); w (G, strips, taps, depth_all, rows), filled up with zeros; y by its steps, a part of the
        # sum behind the other. A block takes ``turns`` parts, of so many steps, and where it ``ends`` adds the bias.
        thread, block = count(cuda.threadIdx.x), count(cuda.blockIdx.x)
        strips, pieces = count((Kg + rows - 1) // rows), count((columns_all + columns - 1) // columns)
        strip, rest = count(block % strips), count(block // strips)
        q0, rest = count(rest % pieces * columns), count(rest // pieces)
        g, part, k0 = count(rest % groups), count(rest // groups), count(strip * rows)
        W = cuda.shared.array(w_both, bias.dtype, alignment=16)
        X = cuda.shared.array(x_both, bias.dtype, alignment=16)
        row_places = cuda.shared.array(rows, np.int64)
        column_places = cuda.shared.array(columns, np.int64)
        images = cuda.shared.array(columns, np.int64)
        seen = cuda.shared.array(two_each, np.int32)
        sums = cuda.local.array((tall, broad), bias.dtype)
        next_w = cuda.local.array(w_loads, bias.dtype)
        next_x = cuda.local.array(x_loads, bias.dtype)
        for i in range(tall):
            for j in range(broad):
                sums[i, j] = 0
        line, column = int32(thread // columns), count(thread % columns)
        P = count(1)
        for a in range(axes.shape[0]):
            P = count(P * axes[a, OUT])
        q = count(min(q0 + column, columns_all - 1))  # a column too many is summed and not used
        for i in range(thread, rows, threads):
            row_places[i] = (g * Kg + k0 + i) * steps[2] if k0 + i < Kg else -1
        for i in range(thread, columns, threads):
            there = count(q0 + i)
            column_places[i] = place_of(there // P, there % P, axes, steps) if there < columns_all else -1
        last, taps = axes.shape[0] - 1, int32(met.shape[0])
        L_in, L_out = int32(axes[last, SIZE]), count(axes[last, OUT])
        if line == 0:
            images[column] = (at(q // P) * at(C) + at(g) * at(Cg)) * at(size)
            seen[column] = q % P // L_out
            seen[columns + column] = q % P % L_out * axes[last, STRIDE]
        cuda.syncthreads()
        tap_steps, channels = count(depth_all // DEPTH), int32(Cg - line)
        steps_all = int32(taps * tap_steps)
        begin = int32(part * part_steps)
        finish = int32(min(begin + turns * part_steps, steps_all))
        end = int32(min(begin + part_steps, finish))
        tap, c = int32(begin // tap_steps), int32(begin % tap_steps * DEPTH)
        w_at = ((at(g) * at(strips) + at(strip)) * at(steps_all) + at(begin)) * at(w_half) + at(thread * group)
        pixel = int32(-1)
        if tap < taps:
            pixel = pixel_met(tap, seen[column], seen[columns + column], rows_met, met, L_in, boundary)
        x_at = at(images[column]) + at(c + line) * at(size)
        if pixel >= 0:
            x_at += at(pixel)
        now, step = int32(0), begin
        while step <= finish:
            if step < finish:
                if group == 4:
                    for i in range(0, w_loads, 4):
                        take_four(w, w_at + at(i * threads), next_w, i)
                else:
                    for i in range(w_loads):
                        next_w[i] = w[w_at + at(i * threads)]
                w_at += at(w_half)
                if int32(c + (DEPTH - lines)) < channels:
                    for i in range(x_loads):
                        value = fill
                        if pixel >= 0:
                            value = bias.dtype.type(x[x_at])
                        next_x[i] = value
                        x_at += at(lines * size)
                else:
                    for i in range(x_loads):
                        value = bias.dtype.type(0)
                        if int32(c + i * lines) < channels:
                            value = fill
                            if pixel >= 0:
                                value = bias.dtype.type(x[x_at])
                        next_x[i] = value
                        x_at += at(lines * size)
                c = int32(c + DEPTH)
                if c >= depth_all:  # where the next tap looks is looked up before it is needed
                    tap, c = int32(tap + 1), int32(0)
                    if tap < taps:
                        pixel = pixel_met(tap, seen[column], seen[columns + column], rows_met, met, L_in, boundary)
                        x_at = at(images[column]) + at(line) * at(size)
                        if pixel >= 0:
                            x_at += at(pixel)
            down, across = at((thread >> across_bits) * 4), at((thread & ((1 << across_bits) - 1)) * 4)
            if step > begin:
                multiply_all(W, X, at((1 - now) * w_half) + down, at((1 - now) * x_half) + across, sums)
            if step == end:
                to = at(part) * at(steps[3 + axes.shape[0]])
                if end > begin + part_steps:
                    add_what_is_there(y, to, row_places, column_places, down, across, straight, sums)
                if ends and end == finish:
                    add_bias(bias, at(g * Kg + k0), row_places, down, sums)
                put(sums, y, to, row_places, column_places, down, across, straight)
                for i in range(tall):
                    for j in range(broad):
                        sums[i, j] = 0
                end = int32(min(end + part_steps, finish))
            if step < finish:
                to = at(now * w_half) + at(thread * group)
                if group == 4:
                    for i in range(0, w_loads, 4):
                        put_four(next_w, i, W, to + at(i * threads))
                else:
                    for i in range(w_loads):
                        W[to + at(i * threads)] = next_w[i]
                to = at(now * x_half) + at(line * columns) + at(column)
                for i in range(x_loads):
                    X[to + at(i * lines * columns)] = next_x[i]
            cuda.syncthreads()
            now, step = int32(1 - now), int32(step + 1)

    return Product(rows, columns, forward)


class Tile(NamedTuple):
    """The kernels for one tile of ``rows`` by ``columns``."""

    rows: int
    columns: int
    grad_weight: Any


def tile_of(side: int, resident: int) -> Tile:
    """The kernels whose threads sum ``side`` by ``side`` products each, in groups of four that lie together."""
    rows = columns = SIDE * side
    quad = 4 * SIDE  # how far the groups of four of a thread lie apart
    loads = rows * DEPTH // THREADS  # of each operand, for each thread
    lines = THREADS // DEPTH  # and where neighbours run along the depth, how many columns
    wide = columns + PAD

    half = DEPTH * wide  # of a shared array is filled while the other half is multiplied
    whole = 2 * half

    @helper
    def multiply(A, B, a_at, b_at, sums):
        # one outer product; four neighbours are one load from shared memory
        a = cuda.local.array(side, A.dtype)
        b = cuda.local.array(side, A.dtype)
        for i in range(side // 4):
            load_four(A, a_at + at(i * quad), a, i * 4)
            load_four(B, b_at + at(i * quad), b, i * 4)
        for i in range(side):
            for j in range(side):
                sums[i, j] += a[i] * b[j]

    @helper
    def multiply_all(A, B, now, down, across, lines, sums):
        # DEPTH of them; so many ``lines`` stand in the code one behind the other, where registers allow it
        for first in range(0, DEPTH, lines):
            for line in range(lines):
                begin = at((now * DEPTH + first + line) * wide)  # a multiple of four, which makes the loads wide
                multiply(A, B, begin + at(down), begin + at(across), sums)

    @kernel(THREADS, resident)
    def grad_weight(
        x, dY, axes, rows_met, met, boundary, fill, C, Cg, Kg, pixels_all, P, size, parts, conjugate, partial
    ):
        # dY (N, K, P), partial (parts, G, Kg, taps, Cg). Columns are channels of one tap, a part is some pixels.
        thread, block, taps = cuda.threadIdx.x, cuda.blockIdx.x, met.shape[0]
        strips, pieces, G = (Kg + rows - 1) // rows, (Cg + columns - 1) // columns, C // Cg
        strip, rest = block % strips, block // strips
        piece, rest = rest % pieces, rest // pieces
        tap, rest = rest % taps, rest // taps
        g, part = rest % G, rest // G
        k0, c0 = strip * rows, piece * columns
        steps_all = (pixels_all + DEPTH - 1) // DEPTH
        step0, step1 = steps_all * part // parts, steps_all * (part + 1) // parts
        A = cuda.shared.array(whole, partial.dtype, alignment=16)
        B = cuda.shared.array(whole, partial.dtype, alignment=16)
        sums = cuda.local.array((side, side), partial.dtype)
        next_a = cuda.local.array(loads, partial.dtype)
        next_b = cuda.local.array(loads, partial.dtype)
        for i in range(side):
            for j in range(side):
                sums[i, j] = 0
        depth, line = thread & (DEPTH - 1), thread >> 3
        down, across = (thread >> SIDE_BITS) * 4, (thread & (SIDE - 1)) * 4
        last = axes.shape[0] - 1
        L_out, rows_out = int32(axes[last, OUT]), int32(P // axes[last, OUT])
        first = step0 * DEPTH + depth
        n, O, o = int32(first // P), int32(first % P // L_out), int32(first % P % L_out)
        left = int32((step1 - step0) * DEPTH)  # of this part, counted from where its block of threads is
        images = int32(pixels_all // P)
        k, c = int32(k0 + line), int32(c0 + line)
        now = int32(0)
        for done in range(0, left + DEPTH, DEPTH):
            if done < left:
                row = rows_met[at(met[tap, 0] + O)]
                pixel = int32(source(o * axes[last, STRIDE] + met[tap, 1], axes[last, SIZE], boundary))
                x_at = (n * C + g * Cg + c) * size + row * axes[last, SIZE] + pixel
                pixel = min(row, pixel)
                dY_at = ((n * G + g) * Kg + k) * P + O * L_out + o
                for i in range(loads):
                    met_there, value = partial.dtype.type(0), partial.dtype.type(0)
                    if n < images and c + i * lines < Cg:
                        met_there = fill
                        if pixel >= 0:
                            met_there = partial.dtype.type(x[at(x_at + i * lines * size)])
                    if n < images and k + i * lines < Kg:
                        value = partial.dtype.type(dY[at(dY_at + i * lines * P)])
                    next_a[i], next_b[i] = value, met_there
                o = int32(o + DEPTH)
                while o >= L_out:
                    o, O = int32(o - L_out), int32(O + 1)
                while rows_out <= O:
                    O, n = int32(O - rows_out), int32(n + 1)
            if done > 0:
                multiply_all(A, B, 1 - now, down, across, 1, sums)
            if done < left:
                to = at(now * half + depth * wide + line)
                for i in range(loads):
                    A[to + at(i * lines)] = next_a[i]
                    B[to + at(i * lines)] = next_b[i].conjugate() if conjugate else next_b[i]
            cuda.syncthreads()
            now = int32(1 - now)
        for i in range(side):
            k = k0 + i // 4 * quad + down + i % 4
            for j in range(side):
                c = c0 + j // 4 * quad + across + j % 4
                if k < Kg and c < Cg:
                    partial[at((((part * G + g) * Kg + k) * taps + tap) * Cg + c)] = sums[i, j]

    return Tile(rows, columns, grad_weight)


LARGE, SMALL = tile_of(8, 2), tile_of(4, 2)

_half = int(SIMULATED)  # of the threads along a side, for the simulator makes each a thread of Python
LARGE_PRODUCT = product_of(4 - _half, 4 - _half, 8, 8, 2)
SMALL_PRODUCT = product_of(3 - _half, 4 - _half, 8, 4, 4)
WIDE_PRODUCT = product_of(4 - _half, 4 - _half, 4, 4, 2)


def product_for(rows: int, columns: int, itemsize: int, groups: int) -> Product:
    """The large tile where it is filled and there is work for all of a GPU; wide numbers do not fit its registers."""
    if itemsize > 4:
        return WIDE_PRODUCT
    large = LARGE_PRODUCT.rows // 2 < rows
    blocks = groups * -(-rows // LARGE_PRODUCT.rows) * -(-columns // LARGE_PRODUCT.columns)
    return LARGE_PRODUCT if large and blocks >= 128 else SMALL_PRODUCT


def tile_for(rows: int, columns: int, itemsize: int, times: int) -> Tile:
    """The large tile where it is filled and there is work for all of a GPU; wide numbers do not fit its registers."""
    large = itemsize <= 4 and rows > SMALL.rows and -(-rows // LARGE.rows) * -(-columns // LARGE.columns) * times >= 128
    return LARGE if large else SMALL


# the forward product, and the input gradient through it -------------------------------------------------------------


def forward(
    x: DeviceArray, w: DeviceArray, bias: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic,
    y: DeviceArray,
) -> None:
    """``Y = W_flat @ X_conv + bias``, group by group."""
    T, Cg = prod(w.shape[2:]), w.shape[1]
    product(x, w, np.arange(T), Cg * T, T, bias, x.shape[1] // Cg, axes, boundary, fill, y)


def product(
    x: DeviceArray, w: DeviceArray, w_terms: np.ndarray, k_step: int, c_step: int, bias: DeviceArray, groups: int,
    axes: np.ndarray, boundary: int, fill: np.generic, y: DeviceArray, place: tuple[slice, ...] = (),
) -> None:
    """``y[(…, *place)] = W_flat @ X_conv + bias``; row ``k`` of ``W_flat`` lies in ``w`` from ``k * k_step`` on."""
    C, Cg, Kg, sums = x.shape[1], x.shape[1] // groups, bias.size // groups, computed_in(x.dtype)
    d, P, size, depth_all = len(axes), prod(axes[:, OUT].tolist()), prod(axes[:, SIZE].tolist()), _depth(Cg)
    tile = product_for(Kg, x.shape[0] * P, sums.itemsize, groups)
    packed = pack(w, w_terms, k_step, c_step, groups, (Kg, Cg), tile.rows, depth_all, sums)
    rows, met = rows_and_taps(x.place, axes, boundary)
    parts, part_steps = parts_of_sum(Kg, P, groups, Cg, w_terms.size)
    bias, part = bias.ready(sums), y[(slice(None), slice(None), *place)] if place else y
    for n in range(0, x.shape[0], max(1, FAR // P)):  # columns are 32-bit numbers
        images, target = (a[n : n + FAR // P] if a.shape[0] * P > FAR else a for a in (x, part))
        N, turns, goal, steps = images.shape[0], parts, y, steps_of(target, y)
        fours = straight(target, d)
        split = splits(N, Kg, P, groups, parts, sums.itemsize)
        if split or (parts > 1 and y.dtype != sums):  # nothing is summed in float16
            goal, turns = x.place.empty((parts if split else 1, *target.shape), sums), 1 if split else parts
            steps, fours = steps_of(goal[0], goal), straight(goal[0], d)
        tile.kernel(
            -(-Kg // tile.rows) * -(-N * P // tile.columns) * groups * (parts // turns), images.reshape(images.size),
            packed, bias, table(x.place, axes), rows, met, boundary, sums.type(fill), table(x.place, steps), C, Cg, Kg,
            groups, N * P, depth_all, size, part_steps, turns, int(goal is y), int(P % 4 == 0 and fours),
            goal.reshape(goal.size), on=x.place,
        )  # fmt: skip
        if goal is not y:
            _add_up(
                blocks_for(target.size), goal.reshape(goal.size), goal.shape[0], bias, table(x.place, axes),
                table(x.place, steps_of(target, y)), P, target.size, y.reshape(y.size), on=x.place,
            )  # fmt: skip


def _depth(Cg: int) -> int:
    """Channels of a tap as they are packed, some of them zeros."""
    return max(-(-Cg // DEPTH), 1) * DEPTH


# a sum in parts -----------------------------------------------------------------------------------------------------

#: Blocks that a GPU has at once: two for each of an H100's 132 multiprocessors. Where one image has fewer, its sums are
#: split into parts, of at least so many steps, or to add them takes as long as to sum them. Those that have blocks of
#: their own take at most so many bytes.
AT_ONCE, LEAST_STEPS, PARTIAL = 264, 18, 32 << 20


def parts_of_sum(Kg: int, P: int, groups: int, Cg: int, taps: int) -> tuple[int, int]:
    """Into how many parts a sum is split and how many steps each has, by one image alone: the bits of an image do not
    depend on the others of a batch.
    """
    steps = taps * _depth(Cg) // DEPTH
    part = -(-steps // max(1, min(AT_ONCE // max(blocks_of(1, Kg, P, groups), 1), steps // LEAST_STEPS))) or 1
    return max(-(-steps // part), 1), part


def blocks_of(N: int, Kg: int, P: int, groups: int) -> int:
    """Blocks for some images in small tiles."""
    return groups * -(-Kg // SMALL_PRODUCT.rows) * -(-N * P // SMALL_PRODUCT.columns)


def splits(N: int, Kg: int, P: int, groups: int, parts: int, itemsize: int) -> bool:
    """Whether each part has blocks of its own, and memory for what they sum; else a block takes part by part, and adds
    to its tile of the output in the same order.
    """
    return parts > 1 and blocks_of(N, Kg, P, groups) < AT_ONCE and parts * N * groups * Kg * P * itemsize <= PARTIAL


@kernel()
def _add_up(partial, parts, bias, axes, steps, P, n, y):
    # y by its steps from partial (parts, N, K, P), part by part
    i = cuda.grid(1)
    while i < n:
        total = partial[i]
        for part in range(1, parts):
            total += partial[part * n + i]
        k = i // P % bias.size
        y[place_of(i // P // bias.size, i % P, axes, steps) + at(k * steps[2])] = y.dtype.type(total + bias[k])
        i += cuda.gridsize(1)


def grad_input(dY: DeviceArray, w: DeviceArray, geometry: ConvGeometry, dX: DeviceArray) -> None:
    """``dX = W_conv.T @ dY_flat`` under zero padding: for each phase of the stride a forward product of ``dY``."""
    kernel, Cg = w.shape[2:], w.shape[1]
    T = prod(kernel)
    tap = np.arange(T).reshape(kernel)
    sums = computed_in(dX.dtype)
    no_bias, nothing = dX.place.nothing((dX.shape[1],), sums), sums.type(0)
    if len(geometry.phases) < prod(geometry.stride):
        dX[...] = 0  # pixels that no tap meets
    for place, taps, rows in geometry.phases:
        product(
            dY, w, np.ascontiguousarray(tap[taps]).reshape(-1), T, Cg * T, no_bias, dX.shape[1] // Cg,
            axes_table(rows), CONSTANT, nothing, dX, place,
        )  # fmt: skip


# the weight gradient ------------------------------------------------------------------------------------------------


@kernel()
def _add_parts(partial, parts, T, Cg, n, dW):
    # dW (G, Kg, Cg, T) from partial (parts, G, Kg, T, Cg), part by part
    i = cuda.grid(1)
    while i < n:
        t, rest = i % T, i // T
        entry = (rest // Cg * T + t) * Cg + rest % Cg
        total = partial[entry]
        for part in range(1, parts):
            total += partial[part * n + entry]
        dW[i] = dW.dtype.type(total)
        i += cuda.gridsize(1)


def grad_weight(
    x: DeviceArray, dY: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic, dW: DeviceArray
) -> None:
    """``dW = dY_flat @ X_conv^H``, the sum over pixels split into parts that follow from the shapes alone."""
    (N, C), (K, Cg), T = x.shape[:2], dW.shape[:2], prod(dW.shape[2:])
    P, size, G, sums = prod(dY.shape[2:]), prod(x.shape[2:]), C // Cg, computed_in(x.dtype)
    tile = tile_for(K // G, Cg, sums.itemsize, G * T * 64)
    parts = parts_of(N * P, -(-K // G // tile.rows) * -(-Cg // tile.columns) * G * T, dW.size * sums.itemsize)
    partial = x.place.empty((parts * dW.size,), sums)
    tile.grad_weight(
        -(-K // G // tile.rows) * -(-Cg // tile.columns) * G * T * parts, x.reshape(x.size), dY.reshape(dY.size),
        table(x.place, axes), *rows_and_taps(x.place, axes, boundary), boundary, sums.type(fill), C, Cg, K // G, N * P,
        P, size, parts, x.dtype.kind == "c", partial, on=x.place,
    )  # fmt: skip
    _add_parts(blocks_for(dW.size), partial, parts, T, Cg, dW.size, dW.reshape(dW.size), on=x.place)


def parts_of(pixels: int, blocks: int, nbytes: int) -> int:
    """Into how many parts the sum over pixels is split: blocks enough for a GPU, each with some steps to do."""
    return max(1, min(-(-BLOCKS // blocks), pixels // (16 * DEPTH), PARTS // max(nbytes, 1)), pixels >> 30)


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that a product takes beside its arguments: packed weights and parts of sums, or those of their gradient."""
    g = geometry
    Cg, Kg, T = g.C // g.groups, g.K // g.groups, prod(g.kernel)
    if not (Cg and Kg and g.N):
        return 0
    turned = [(Cg, Kg, prod(row[OUT] for row in rows), prod(row[KERNEL] for row in rows)) for *_, rows in g.phases]
    products = (room_of(g.N, g.groups, *sizes, dtype.itemsize) for sizes in ((Kg, Cg, prod(g.out), T), *turned))
    blocks = -(-Kg // SMALL.rows) * -(-Cg // SMALL.columns) * g.groups * T
    weights = g.K * Cg * T
    parts = parts_of(g.N * prod(g.out), blocks, weights * dtype.itemsize)
    return max(weights * parts, *products) * dtype.itemsize


def room_of(N: int, groups: int, Kg: int, Cg: int, P: int, taps: int, itemsize: int) -> int:
    """Numbers that a forward product of these sizes takes; where a block takes part by part, only for float16."""
    rows, (parts, _) = product_for(Kg, N * P, itemsize, groups).rows, parts_of_sum(Kg, P, groups, Cg, taps)
    each = parts if splits(N, Kg, P, groups, parts, itemsize) else int(parts > 1)
    return groups * (-(-Kg // rows) * rows * taps * _depth(Cg) + each * N * Kg * P)
