"""The product ``W_flat @ X_conv`` without ever storing ``X_conv``: a block gathers its columns as it needs them.

A block of threads owns a tile of the product, ``rows`` by ``columns``. Step by step it brings ``DEPTH`` rows of the
two operands into shared memory, the next ones while it multiplies, and every thread sums a square of outer products in
registers. Two products run this way, and the third, the gradient of the weights, in ``implicit_weights``:

    Y  = W_flat @ X_conv            the columns are pixels of the output, images of a batch side by side
    dX = the same of dY by phases   with the taps of a phase of a turned W_flat

``X_conv`` has its taps outermost here, so a thread finds its pixel once for each tap and then walks through the
channels; which pixel, it looks up in ``tables``. The order of every sum follows from the shapes alone.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

from .._indexing import CONSTANT, OUT, SIZE, STRIDE
from ..arrays import computed_in
from ..geometry import ConvGeometry, axes_table
from ._jit import SIMULATED, at, cuda, helper, int32, kernel, load_four, source
from .arrays import DeviceArray
from .implicit_weights import grad_weight as grad_weight
from .implicit_weights import workspace_for_weights as workspace_for_weights
from .packing import pack
from .places import table
from .tables import rows_and_taps

#: Threads along a side of a tile; the simulator makes each a thread of Python, and sees the same with fewer.
SIDE_BITS = 3 if SIMULATED else 4
SIDE = 1 << SIDE_BITS
THREADS = SIDE * SIDE
DEPTH = 8

#: A row of a tile in shared memory is so much longer, or threads that store a column would meet in one bank.
PAD = 4


@helper
def place_of(q, axes, P, steps):
    """Where column ``q`` of the product, pixel ``q % P`` of image ``q // P``, lies in the output."""
    place, left = steps[0] + q // P * steps[1], q % P
    for a in range(axes.shape[0] - 1, -1, -1):
        place += left % axes[a, OUT] * steps[3 + a]
        left //= axes[a, OUT]
    return place


class Tile(NamedTuple):
    """The kernels for one tile of ``rows`` by ``columns``."""

    rows: int
    columns: int
    forward: Any


def tile_of(side: int, resident: int) -> Tile:
    """The kernels whose threads sum ``side`` by ``side`` products each, in groups of four that lie together."""
    rows = columns = SIDE * side
    quad = 4 * SIDE  # how far the groups of four of a thread lie apart
    loads = rows * DEPTH // THREADS  # of each operand, for each thread
    apart = THREADS // rows  # how far in depth a thread's loads lie apart
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
    def forward(x, w, bias, axes, rows_met, met, boundary, fill, steps, C, Cg, Kg, columns_all, P, depth_all, size, y):
        # x (N, C, prod in); w (G, strips, taps, depth_all, rows), filled up with zeros; y by its steps.
        thread, block = cuda.threadIdx.x, cuda.blockIdx.x
        strips, pieces = (Kg + rows - 1) // rows, (columns_all + columns - 1) // columns
        strip, rest = block % strips, block // strips
        q0, g = rest % pieces * columns, rest // pieces
        k0 = strip * rows
        A = cuda.shared.array(whole, bias.dtype, alignment=16)
        B = cuda.shared.array(whole, bias.dtype, alignment=16)
        places = cuda.shared.array(columns, np.int64)
        sums = cuda.local.array((side, side), bias.dtype)
        next_a = cuda.local.array(loads, bias.dtype)
        next_b = cuda.local.array(loads, bias.dtype)
        for i in range(side):
            for j in range(side):
                sums[i, j] = 0
        column, depth = thread % columns, thread // columns
        down, across = (thread >> SIDE_BITS) * 4, (thread & (SIDE - 1)) * 4
        q = min(q0 + column, columns_all - 1)  # a column too many is summed and not used
        if depth == 0:
            places[column] = place_of(q, axes, P, steps)
        last, taps = axes.shape[0] - 1, met.shape[0]
        O, first = int32(q % P // axes[last, OUT]), int32(q % axes[last, OUT] * axes[last, STRIDE])
        image = (q // P) * C + g * Cg + depth
        w_at = (g * strips + strip) * taps * depth_all * rows + thread
        tap, c, row, pixel, x_at = int32(-1), int32(depth_all), int32(0), int32(0), q
        steps_all = int32(taps * (depth_all // DEPTH) + 1)
        now = int32(0)
        for step in range(steps_all):
            if step < steps_all - 1:
                if c >= depth_all:  # the next tap
                    tap, c = int32(tap + 1), int32(depth)
                    row = rows_met[met[tap, 0] + O]
                    pixel = int32(source(first + met[tap, 1], axes[last, SIZE], boundary))
                    x_at = image * size + row * axes[last, SIZE] + pixel
                    pixel = min(row, pixel)
                for i in range(loads):
                    next_a[i] = w[at(w_at + i * THREADS)]
                    value = bias.dtype.type(0)
                    if c + i * apart < Cg:
                        value = fill
                        if pixel >= 0:
                            value = bias.dtype.type(x[at(x_at + i * apart * size)])
                    next_b[i] = value
                w_at += DEPTH * rows
                x_at += DEPTH * size
                c = int32(c + DEPTH)
            if step > 0:
                multiply_all(A, B, 1 - now, down, across, 2, sums)
            if step < steps_all - 1:
                to = at(now * half + depth * wide + column)
                for i in range(loads):
                    A[to + at(i * apart * wide)] = next_a[i]
                    B[to + at(i * apart * wide)] = next_b[i]
            cuda.syncthreads()
            now = int32(1 - now)
        for j in range(side):
            q = j // 4 * quad + across + j % 4
            for i in range(side):
                k = k0 + i // 4 * quad + down + i % 4
                if k < Kg and q0 + q < columns_all:
                    y[at(places[at(q)] + (g * Kg + k) * steps[2])] = y.dtype.type(sums[i, j] + bias[at(g * Kg + k)])

    return Tile(rows, columns, forward)


LARGE, SMALL = tile_of(8, 2), tile_of(4, 2)


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
    (N, C), K = x.shape[:2], bias.size
    Cg, Kg, P, size = C // groups, K // groups, prod(axes[:, OUT].tolist()), prod(axes[:, SIZE].tolist())
    part = y[(slice(None), slice(None), *place)] if place else y
    steps = np.array([(part.address - y.address) // y.itemsize, *(step // y.itemsize for step in part.strides)])
    sums = computed_in(x.dtype)
    tile = tile_for(Kg, N * P, sums.itemsize, groups)
    strips, depth_all = -(-Kg // tile.rows), -(-Cg // DEPTH) * DEPTH
    packed = pack(w, w_terms, k_step, c_step, groups, (Kg, Cg), tile.rows, depth_all, sums)
    tile.forward(
        strips * -(-N * P // tile.columns) * groups, x.reshape(x.size), packed, bias.ready(sums),
        table(x.place, axes), *rows_and_taps(x.place, axes, boundary), boundary, sums.type(fill),
        table(x.place, steps), C, Cg, Kg, N * P, P, depth_all, size, y.reshape(y.size), on=x.place,
    )  # fmt: skip


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


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that a product takes beside its arguments: the turned weights."""
    g = geometry
    Cg, Kg, T = g.C // g.groups, g.K // g.groups, prod(g.kernel)
    if not (Cg and Kg and g.N):
        return 0
    return g.groups * -(-Kg // LARGE.rows) * LARGE.rows * T * -(-Cg // DEPTH) * DEPTH * dtype.itemsize
