"""The product ``W_flat @ X_conv`` without ever storing ``X_conv``: a block gathers its columns as it needs them.

A block of threads owns a tile of the product, ``rows`` by ``columns``. Step by step it brings ``DEPTH`` rows of the
two operands into shared memory, the next ones while it multiplies, and every thread sums a square of outer products in
registers. Two products run this way, and the third, the gradient of the weights, in ``implicit_weights``:

    Y  = W_flat @ X_conv            the columns are pixels of the output, images of a batch side by side
    dX = the same of dY by phases   with the taps of a phase of a turned W_flat

``X_conv`` has its taps outermost here, so a thread finds its pixel once for each tap and then walks through the
channels; which pixel, it looks up in ``tables``. The order of every sum follows from the shapes alone: where one image
has too few blocks for a GPU, its long sums are split into parts, which are added in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .._indexing import CONSTANT, KERNEL, OUT, SIZE, STRIDE
from ..arrays import computed_in
from ..geometry import ConvGeometry, axes_table
from ._jit import SIMULATED, at, count, cuda, helper, int32, kernel, source
from .arrays import DeviceArray, blocks_for, place_of, steps_of, straight
from .implicit_weights import grad_weight as grad_weight
from .implicit_weights import workspace_for_weights as workspace_for_weights
from .instructions import put_four, take_four
from .microkernel import DEPTH, outer_products
from .packing import pack
from .places import table
from .tables import FAR, rows_and_taps

#: Bytes that the parts of a sum take at most.
PARTS = 32 << 20


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

    multiply_step = outer_products(tall, broad, (down_step, across_step), (rows, columns))

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
        some_w = cuda.local.array(tall, bias.dtype)
        some_x = cuda.local.array(broad, bias.dtype)
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
                w_from, x_from = at((1 - now) * w_half) + down, at((1 - now) * x_half) + across
                multiply_step(W, X, w_from, x_from, some_w, some_x, sums)
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


def grad_input(
    dY: DeviceArray, w: DeviceArray, geometry: ConvGeometry, dX: DeviceArray, product: Callable[..., None] = product
) -> None:
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


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that a product takes beside its arguments: packed weights, and parts of sums."""
    g = geometry
    Cg, Kg, T = g.C // g.groups, g.K // g.groups, prod(g.kernel)
    if not (Cg and Kg and g.N):
        return 0
    turned = [(Cg, Kg, prod(row[OUT] for row in rows), prod(row[KERNEL] for row in rows)) for *_, rows in g.phases]
    products = (numbers_taken(g.N, g.groups, *sizes, dtype.itemsize) for sizes in ((Kg, Cg, prod(g.out), T), *turned))
    mma = (g.groups * T * (-(-rows // 128) * 128) * (-(-depth // 16) * 16) for rows, depth in ((Kg, Cg), (Cg, Kg)))
    return max(*products, *mma) * dtype.itemsize  # as either of them packs weights


def numbers_taken(N: int, groups: int, Kg: int, Cg: int, P: int, taps: int, itemsize: int) -> int:
    """Numbers that a forward product of these sizes takes; where a block takes part by part, only for float16."""
    rows, (parts, _) = product_for(Kg, N * P, itemsize, groups).rows, parts_of_sum(Kg, P, groups, Cg, taps)
    each = parts if splits(N, Kg, P, groups, parts, itemsize) else int(parts > 1)
    return groups * (-(-Kg // rows) * rows * taps * _depth(Cg) + each * N * Kg * P)
