"""The product ``W_flat @ X_conv`` without ever storing ``X_conv``: a block gathers its columns as it needs them.

A block of threads owns a tile of the product, ``rows`` by ``columns``. Step by step it brings ``DEPTH`` rows of the
two operands into shared memory, the next ones while it multiplies, and every thread sums a square of outer products in
registers. All three products run this way:

    Y  = W_flat @ X_conv            the columns are pixels of the output, images of a batch side by side
    dX = the same of dY by phases   with the taps of a phase of a turned W_flat
    dW = dY_flat @ X_conv^H         summed over pixels in parts, and the parts added up in their order

``X_conv`` has its taps outermost here, so a thread finds its pixel once for each tap and then walks through the
channels; which pixel, it looks up in ``tables``. The order of every sum follows from the shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .._indexing import CONSTANT, OUT, SIZE, STRIDE
from ..arrays import computed_in
from ..geometry import ConvGeometry, axes_table
from ._jit import SIMULATED, at, cuda, helper, int32, kernel, load_four, source
from .arrays import DeviceArray, blocks_for
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

#: Parts of a weight gradient are as many as fill a GPU of this many blocks, and take at most so many bytes.
BLOCKS, PARTS = 512, 32 << 20


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
    grad_weight: Any


def tile_of(side: int, resident: int) -> Tile:
    """The kernels whose threads sum ``side`` by ``side`` products each, in groups of four that lie together."""
    rows = columns = SIDE * side
    quad = 4 * SIDE  # how far the groups of four of a thread lie apart
    loads = rows * DEPTH // THREADS  # of each operand, for each thread
    apart = THREADS // rows  # how far in depth a thread's loads lie apart
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

    return Tile(rows, columns, forward, grad_weight)


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
    add_parts(partial, parts, T, Cg, dW)


def add_parts(partial: DeviceArray, parts: int, T: int, Cg: int, dW: DeviceArray) -> None:
    """``dW`` from ``partial (parts, G, Kg, T, Cg)``."""
    _add_parts(blocks_for(dW.size), partial, parts, T, Cg, dW.size, dW.reshape(dW.size), on=dW.place)


def parts_of(pixels: int, blocks: int, nbytes: int) -> int:
    """Into how many parts the sum over pixels is split: blocks enough for a GPU, each with some steps to do."""
    return max(1, min(-(-BLOCKS // blocks), pixels // (16 * DEPTH), PARTS // max(nbytes, 1)), pixels >> 30)


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that a product takes beside its arguments: the turned weights, or the parts of their gradient."""
    g = geometry
    Cg, Kg, T = g.C // g.groups, g.K // g.groups, prod(g.kernel)
    if not (Cg and Kg and g.N):
        return 0
    turned = g.groups * -(-Kg // LARGE.rows) * LARGE.rows * T * -(-Cg // (2 * DEPTH)) * 2 * DEPTH  # as mma packs them
    blocks = -(-Kg // SMALL.rows) * -(-Cg // SMALL.columns) * g.groups * T
    weights = g.K * Cg * T
    return max(turned, weights * parts_of(g.N * prod(g.out), blocks, weights * dtype.itemsize)) * dtype.itemsize
