"""The products of ``implicit`` by tensor cores, from sm_80 on: in TF32, or in three products of it as in float32.

TF32 is float32 with 10 bits behind the point. ``mma.sync`` multiplies fragments of 16 by 8 and 8 by 8 such numbers, the
32 threads of a warp together, and adds the products to sums of float32. Two precisions come of it:

    tf32      every operand rounded to TF32, as ``cvt.rna`` does it: to the nearest, ties away from zero
    tf32x3    every operand the sum of two, big = tf32(x) and small = x - big, and of the four products the three
              that count: small * big + big * small + big * big

Data of float16 are numbers of TF32: their products are exact in the first one already. Tensor cores cut sums off where
others round them, so ``tf32x3`` adds what comes of every eight columns to its sums by itself. Digits below 2**-136,
those of denormals, are lost in both.

A block of threads owns a tile of the product, and each of its warps a part of that, in fragments. Step by step it
brings ``DEPTH`` columns of the left operand and rows of the right one into shared memory, the next ones while it
multiplies. The left one lies there by depth, ``(DEPTH, rows)``: two rows of a fragment are neighbours. The right one
lies by columns, ``(columns, DEPTH)``: two neighbours in depth are the rows ``t`` and ``t + 4`` of a fragment, for a sum
may take the depth in any order. ``PAD`` and ``turn`` see to it that threads that load or store at once meet in no bank.
"""

from __future__ import annotations

import threading
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .._indexing import OUT, SIZE, STRIDE
from ..arrays import computed_in
from ..geometry import ConvGeometry
from . import implicit
from ._jit import SIMULATED, at, cuda, helper, int32, kernel, source
from .arrays import DeviceArray, blocks_for, place_of, steps_of
from .direct_weights import add_up
from .implicit_weights import parts_of
from .instructions import commit_copies, copy_four, instruction, load_two, wait_for_copies
from .packing import pack
from .places import DRIVER, Place, table
from .tables import rows_and_taps

DEPTH, WARP = 16, 32

#: A row of the left operand in shared memory is so much longer.
PAD = 4


# instructions and what the simulator runs instead -------------------------------------------------------------------


@instruction("cvt.rna.tf32.f32 $0, $1;", "r", "f")
def tf32(value):
    """``value`` rounded to TF32."""
    value = np.float32(value)
    if np.isnan(value):
        return value
    return nearest(value)


@instruction("{ .reg .b32 up; add.s32 up, $1, 0x1000; and.b32 $0, up, 0xffffe000; }", "r", "r")
def nearest(value):
    """The same in half as many instructions, but for NaN, of which it can make 0."""
    return cut((np.float32(value).view(np.uint32) + np.uint32(0x1000)).view(np.float32))


@instruction("and.b32 $0, $1, 0xffffe000;", "r", "r")
def cut(value):
    """``value`` cut off to TF32."""
    return (np.float32(value).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


#: Which half of its shared memory a thread of the simulator uses next.
turns = threading.local()


@instruction(
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
    "ffff", "rrrrrrffff",
)  # fmt: skip
def mma(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
    """``c + a @ b`` of a warp. Lane ``4 g + t`` has of ``a`` rows ``g, g + 8`` and columns ``t, t + 4``, of ``b`` rows
    ``t, t + 4`` and column ``g``, of ``c`` rows ``g, g + 8`` and columns ``2 t, 2 t + 1``.
    """
    thread, turns.next = cuda.threadIdx.x, not getattr(turns, "next", False)
    lanes = cuda.shared.array((2, 8 * WARP, 6), np.float32)[int(turns.next)]  # others may still read what was before
    lanes[thread] = a0, a1, a2, a3, b0, b1
    cuda.syncthreads()  # the simulator has no syncwarp
    warp, g, t = thread & -WARP, thread % WARP >> 2, thread & 3
    sums = []
    for i, total in enumerate(map(float, (c0, c1, c2, c3))):
        for k in range(8):
            a, b = lanes[warp + 4 * g + k % 4], lanes[warp + 4 * (2 * t + i % 2) + k % 4]
            total += float(a[k // 4 * 2 + i // 2]) * float(b[4 + k // 4])
        sums.append(np.float32(total))
    return tuple(sums)


# the tiles ----------------------------------------------------------------------------------------------------------


@helper
def turn(row):
    """Of a row of four groups of four, group ``i`` lies at ``i ^ turn(row)``."""
    return (row & 2) | (row >> 2 & 1)


@helper
def as_it_is(value):
    """``value``."""
    return value


@helper
def split(value):
    """``value`` as the sum of two numbers of TF32, all but the last bit; not of one that is not finite or overflows."""
    big = nearest(value)
    return big, cut(value - big)


@helper
def mma_of(a, i, b, j, c):
    """``c`` and the product of the fragments at ``a[i]`` and ``b[j]``."""
    return mma(a[i], a[i + 1], a[i + 2], a[i + 3], b[j], b[j + 1], c[0], c[1], c[2], c[3])


class Tile(NamedTuple):
    """A product for one tile of ``rows`` by ``columns``."""

    rows: int
    columns: int
    kernel: Any


def product_of(high: int, wide: int, long: int, products: int) -> Any:
    """What a warp multiplies of a step: ``high`` by ``wide`` fragments, in so many products of TF32.

    ``long`` is a row of the left operand in shared memory.
    """
    fours, twos = 4 * wide, 2 * wide

    @helper
    def multiply(A, B, a_at, b_at, sums):
        a = cuda.local.array(4, np.float32)
        b = cuda.local.array(fours, np.float32)
        for j in range(wide):
            load_two(B, b_at + at(j * 8 * DEPTH), b, j * 4)
            load_two(B, (b_at ^ at(8)) + at(j * 8 * DEPTH), b, j * 4 + 2)
        for s in range(2):
            for i in range(high):
                load_two(A, a_at + at(s * 8 * long + i * 16), a, 0)
                load_two(A, a_at + at((s * 8 + 1) * long + i * 16), a, 2)
                for j in range(wide):
                    n = (i * wide + j) * 4
                    sums[n], sums[n + 1], sums[n + 2], sums[n + 3] = mma_of(
                        a, 0, b, j * 4 + s * 2, (sums[n], sums[n + 1], sums[n + 2], sums[n + 3])
                    )

    @helper
    def add_split(A, B, a_at, b_at, sums):
        # half of a step
        a = cuda.local.array(4, np.float32)
        b = cuda.local.array(twos, np.float32)
        a_small = cuda.local.array(4, np.float32)
        b_small = cuda.local.array(twos, np.float32)
        for j in range(wide):
            load_two(B, b_at + at(j * 8 * DEPTH), b, j * 2)
        for j in range(2 * wide):
            b[j], b_small[j] = split(b[j])
        for i in range(high):
            load_two(A, a_at + at(i * 16), a, 0)
            load_two(A, a_at + at(long + i * 16), a, 2)
            for j in range(4):
                a[j], a_small[j] = split(a[j])
            for j in range(wide):
                zero = np.float32(0)
                part = mma_of(a_small, 0, b, j * 2, (zero, zero, zero, zero))
                part = mma_of(a, 0, b_small, j * 2, part)
                part = mma_of(a, 0, b, j * 2, part)
                for k in range(4):
                    sums[(i * wide + j) * 4 + k] += part[k]

    @helper
    def multiply_split(A, B, a_at, b_at, sums):
        add_split(A, B, a_at, b_at, sums)
        add_split(A, B, a_at + at(8 * long), b_at ^ at(8), sums)

    return multiply if products == 1 else multiply_split


def forward_of(products: int, down: int, across: int, high: int, wide: int) -> Tile:
    """``Y = W_flat @ X_conv + bias`` by blocks of ``down`` by ``across`` warps, each ``high`` by ``wide`` fragments."""
    threads, rows, columns = down * across * WARP, down * high * 16, across * wide * 8
    loads = columns * DEPTH // threads  # of the right operand, for each thread
    copies = rows * DEPTH // threads // 4  # of the left one, four numbers each
    apart, long = 4 * threads // rows, rows + PAD  # how far apart in depth, and how long its rows are
    whole_a, whole_b = 2 * DEPTH * long, 2 * DEPTH * columns  # half of them is filled while the other is multiplied
    many = 4 * high * wide
    kept: Any = tf32 if products == 1 else as_it_is  # in shared memory
    product = product_of(high, wide, long, products)

    @kernel(threads, 2)
    def forward(x, w, bias, axes, rows_met, met, boundary, fill, steps, C, Cg, Kg, columns_all, P, depth_all, size, y):
        # x (N, C, prod in); w (G, strips, taps, depth_all, rows), filled up with zeros; y by its steps.
        thread, block = cuda.threadIdx.x, cuda.blockIdx.x
        strips, pieces = (Kg + rows - 1) // rows, (columns_all + columns - 1) // columns
        strip, rest = block % strips, block // strips
        q0, g = rest % pieces * columns, rest // pieces
        k0 = strip * rows
        A = cuda.shared.array(whole_a, np.float32, alignment=16)
        B = cuda.shared.array(whole_b, np.float32, alignment=16)
        places = cuda.shared.array((2, columns), np.int64)  # of a column in y, and of its image in x
        origins = cuda.shared.array((2, columns), np.int32)  # of a column, its row and first pixel there
        limits = cuda.shared.array(3, np.int32)  # what is needed at the end only, and would take registers until then
        sums = cuda.local.array(many, np.float32)
        next_b = cuda.local.array(loads, np.float32)
        for i in range(many):
            sums[i] = 0
        warp, lane = thread // WARP, thread % WARP
        down, over = int32(warp // across * (high * 16) + (lane >> 2) * 2), int32(warp % across * (wide * 8))
        a_begin = int32((lane & 3) * 2 * long + down)
        b_begin = (over + (lane >> 2)) * DEPTH + (((lane & 3) >> 1) ^ turn(lane >> 2)) * 4 + (lane & 1) * 2
        column, depth = int32(thread % columns), int32(thread // columns * loads)
        last, taps = axes.shape[0] - 1, met.shape[0]
        if depth == 0:
            q = min(q0 + column, columns_all - 1)  # a column too many is summed and not used
            places[0, column], places[1, column] = place_of(q // P, q % P, axes, steps), (q // P * C + g * Cg) * size
            origins[0, column] = q % P // axes[last, OUT]
            origins[1, column] = q % axes[last, OUT] * axes[last, STRIDE]
        if thread == 0:
            limits[0], limits[1], limits[2] = g * Kg + k0, Kg - k0, min(columns_all - q0, columns)
        cuda.syncthreads()
        w_at = (g * strips + strip) * taps * depth_all * rows + thread * 4
        copied = int32(thread * 4 // rows * long + thread * 4 % rows)
        tap, c, row, pixel, x_at = int32(-1), int32(depth_all), int32(0), int32(0), size
        steps_all = int32(taps * (depth_all // DEPTH) + 1)
        now = int32(0)
        for step in range(steps_all):
            if step < steps_all - 1:
                for i in range(copies):
                    copy_four(A, at((now * DEPTH + i * apart) * long + copied), w, at(w_at + i * (4 * threads)))
                commit_copies()
                w_at += DEPTH * rows
                if c >= depth_all:  # the next tap
                    tap, c = int32(tap + 1), int32(depth)
                    row = rows_met[met[tap, 0] + origins[0, column]]
                    pixel = int32(source(origins[1, column] + met[tap, 1], axes[last, SIZE], boundary))
                    x_at = places[1, column] + depth * size + row * axes[last, SIZE] + pixel
                    pixel = min(row, pixel)
                left, there = int32(Cg - c), x_at
                for i in range(loads):
                    value = np.float32(0)
                    if i < left:
                        value = fill
                        if pixel >= 0:
                            value = np.float32(x[at(there)])
                    next_b[i] = value
                    there += size
                x_at += DEPTH * size
                c = int32(c + DEPTH)
            if step > 0:
                product(A, B, at((1 - now) * DEPTH * long + a_begin), at((1 - now) * columns * DEPTH + b_begin), sums)
            if step < steps_all - 1:
                for i in range(loads):
                    to = (now * columns + column) * DEPTH + ((depth // 4 + i // 4) ^ turn(column)) * 4
                    B[at(to) + at(i % 4)] = kept(next_b[i])
                wait_for_copies()
            cuda.syncthreads()
            now = int32(1 - now)
        k_begin, rows_left, columns_left = limits[0], limits[1], limits[2]
        for i in range(high * 2):
            row = down + i // 2 * 16 + i % 2
            k = k_begin + row
            for j in range(wide * 2):
                to = over + j // 2 * 8 + (lane & 3) * 2 + j % 2
                if row < rows_left and to < columns_left:
                    total = sums[(i // 2 * wide + j // 2) * 4 + i % 2 * 2 + j % 2] + bias[at(k)]
                    y[at(places[0, at(to)] + k * steps[2])] = y.dtype.type(total)

    return Tile(rows, columns, forward)


def grad_weight_of(products: int, down: int, across: int, high: int, wide: int) -> Tile:
    """``dW = dY_flat @ X_conv^T``, the sum over pixels in parts, by the same blocks."""
    threads, rows, columns = down * across * WARP, down * high * 16, across * wide * 8
    lines = threads // DEPTH  # neighbours run along the depth, so many rows at a time
    loads_a, loads_b = rows // lines, columns // lines
    long = rows + PAD
    whole_a, whole_b = 2 * DEPTH * long, 2 * DEPTH * columns
    many = 4 * high * wide
    kept: Any = tf32 if products == 1 else as_it_is
    product = product_of(high, wide, long, products)

    @kernel(threads, 2)
    def grad_weight(x, dY, axes, rows_met, met, boundary, fill, C, Cg, Kg, pixels_all, P, size, parts, partial):
        # dY (N, K, P), partial (parts, K, Cg, taps). Columns are channels of one tap, a part is some pixels.
        thread, block, taps = cuda.threadIdx.x, cuda.blockIdx.x, met.shape[0]
        strips, pieces, G = (Kg + rows - 1) // rows, (Cg + columns - 1) // columns, C // Cg
        strip, rest = block % strips, block // strips
        piece, rest = rest % pieces, rest // pieces
        tap, rest = rest % taps, rest // taps
        g, part = rest % G, rest // G
        k0, c0 = strip * rows, piece * columns
        steps_all = (pixels_all + DEPTH - 1) // DEPTH
        step0, step1 = steps_all * part // parts, steps_all * (part + 1) // parts
        A = cuda.shared.array(whole_a, np.float32, alignment=16)
        B = cuda.shared.array(whole_b, np.float32, alignment=16)
        sums = cuda.local.array(many, np.float32)
        next_a = cuda.local.array(loads_a, np.float32)
        next_b = cuda.local.array(loads_b, np.float32)
        for i in range(many):
            sums[i] = 0
        warp, lane = thread // WARP, thread % WARP
        down, over = int32(warp // across * (high * 16) + (lane >> 2) * 2), int32(warp % across * (wide * 8))
        a_begin = int32((lane & 3) * 2 * long + down)
        b_begin = (over + (lane >> 2)) * DEPTH + (((lane & 3) >> 1) ^ turn(lane >> 2)) * 4 + (lane & 1) * 2
        depth, line = int32(thread % DEPTH), int32(thread // DEPTH)
        last = axes.shape[0] - 1
        L_out, rows_out = int32(axes[last, OUT]), int32(P // axes[last, OUT])
        first = step0 * DEPTH + depth
        n, O, o = int32(first // P), int32(first % P // L_out), int32(first % P % L_out)
        left = int32((step1 - step0) * DEPTH)  # of this part, counted from where its block of threads is
        images = int32(pixels_all // P)
        k, c = int32(k0 + line), int32(c0 + line)
        rows_left, columns_left = int32(Kg - k), int32(Cg - c)
        now = int32(0)
        for done in range(0, left + DEPTH, DEPTH):
            if done < left:
                row = rows_met[at(met[tap, 0] + O)]
                pixel = int32(source(o * axes[last, STRIDE] + met[tap, 1], axes[last, SIZE], boundary))
                x_at = (n * C + g * Cg + c) * size + row * axes[last, SIZE] + pixel
                pixel = min(row, pixel)
                dY_at = ((n * G + g) * Kg + k) * P + O * L_out + o
                if n >= images:
                    rows_left, columns_left = int32(0), int32(0)
                there = dY_at
                for i in range(loads_a):
                    value = np.float32(0)
                    if int32(i * lines) < rows_left:
                        value = np.float32(dY[at(there)])
                    next_a[i] = value
                    there += lines * P
                there = x_at
                for i in range(loads_b):
                    value = np.float32(0)
                    if int32(i * lines) < columns_left:
                        value = fill
                        if pixel >= 0:
                            value = np.float32(x[at(there)])
                    next_b[i] = value
                    there += lines * size
                o = int32(o + DEPTH)
                while o >= L_out:
                    o, O = int32(o - L_out), int32(O + 1)
                while rows_out <= O:
                    O, n = int32(O - rows_out), int32(n + 1)
            if done > 0:
                product(A, B, at((1 - now) * DEPTH * long + a_begin), at((1 - now) * columns * DEPTH + b_begin), sums)
            if done < left:
                for i in range(loads_a):
                    A[at((now * DEPTH + depth) * long + line + i * lines)] = kept(next_a[i])
                for i in range(loads_b):
                    b_row = line + i * lines
                    to = (now * columns + b_row) * DEPTH + ((depth >> 2) ^ turn(b_row)) * 4 + (depth & 3)
                    B[at(to)] = kept(next_b[i])
            cuda.syncthreads()
            now = int32(1 - now)
        for i in range(high * 2):
            k = k0 + down + i // 2 * 16 + i % 2
            for j in range(wide * 2):
                c = c0 + over + j // 2 * 8 + (lane & 3) * 2 + j % 2
                if k < Kg and c < Cg:
                    total = sums[(i // 2 * wide + j // 2) * 4 + i % 2 * 2 + j % 2]
                    partial[at((((part * G + g) * Kg + k) * Cg + c) * taps + tap)] = total

    return Tile(rows, columns, grad_weight)


#: Warps of a block, down and across, and the fragments of each, for the larger and the smaller tile, by how many
#: products of TF32 make one. The simulator makes each thread one of Python, and sees the same with fewer.
SMALL = (2, 4, 2, 2)
SHAPES: dict[str, dict[int, tuple[tuple[int, ...], ...]]] = {
    "forward": {1: ((2, 4, 4, 4), SMALL), 3: ((2, 4, 4, 2), SMALL)},
    "grad_weight": {1: ((4, 2, 2, 4), SMALL), 3: (SMALL,)},
}
if SIMULATED:
    SHAPES = dict.fromkeys(SHAPES, dict.fromkeys((1, 3), ((1, 2, 2, 2), (1, 1, 1, 2))))
FORWARD = {n: [forward_of(n, *shape) for shape in shapes] for n, shapes in SHAPES["forward"].items()}
GRAD_WEIGHT = {n: [grad_weight_of(n, *shape) for shape in shapes] for n, shapes in SHAPES["grad_weight"].items()}


def tile_for(tiles: list[Tile], rows: int, columns: int, times: int) -> Tile:
    """The larger tile where it is filled and there is work for all of a GPU."""
    large, small = tiles[0], tiles[-1]
    blocks = -(-rows // large.rows) * -(-columns // large.columns) * times
    return large if rows > small.rows and blocks >= 128 else small


# the products -------------------------------------------------------------------------------------------------------


def capable(place: Place) -> bool:
    """Whether a place has tensor cores for TF32."""
    return DRIVER.capability(place.device) >= (8, 0)


class TensorCores:
    """``implicit`` in one precision; where a GPU has no TF32, as it is."""

    workspace = staticmethod(implicit.workspace)
    workspace_for_weights = staticmethod(implicit.workspace_for_weights)

    def __init__(self, precision: str) -> None:
        self.precision = precision

    def _products(self, x: DeviceArray, fill: Any) -> int:
        """How many products of TF32 make one: three, but for data that are numbers of TF32."""
        exact = x.dtype == np.float16 and np.float16(fill) == fill
        return 3 if self.precision == "tf32x3" and not exact else 1

    def forward(
        self, x: DeviceArray, w: DeviceArray, bias: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic,
        y: DeviceArray,
    ) -> None:
        """``Y = W_flat @ X_conv + bias``, group by group."""
        if not capable(x.place):
            implicit.forward(x, w, bias, axes, boundary, fill, y)
            return
        T, Cg = prod(w.shape[2:]), w.shape[1]
        self._product(x, w, np.arange(T), Cg * T, T, bias, x.shape[1] // Cg, axes, boundary, fill, y)
        if self._products(x, fill) > 1:
            _forward_again(
                blocks_for(y.size), x.reshape(x.size), w.reshape(w.size), bias.ready(np.dtype(np.float32)),
                table(x.place, axes), *rows_and_taps(x.place, axes, boundary), boundary, np.float32(fill), x.shape[1],
                Cg, bias.size, prod(y.shape[2:]), prod(x.shape[2:]), y.size, y.reshape(y.size), on=x.place,
            )  # fmt: skip

    def grad_input(self, dY: DeviceArray, w: DeviceArray, geometry: ConvGeometry, dX: DeviceArray) -> None:
        """``dX = W_conv.T @ dY_flat`` under zero padding."""
        product = self._product if capable(dY.place) else implicit.product
        implicit.grad_input(dY, w, geometry, dX, product)

    def _product(
        self, x: DeviceArray, w: DeviceArray, w_terms: np.ndarray, k_step: int, c_step: int, bias: DeviceArray,
        groups: int, axes: np.ndarray, boundary: int, fill: np.generic, y: DeviceArray, place: tuple[slice, ...] = (),
    ) -> None:
        """The same as ``implicit.product``."""
        (N, C), K = x.shape[:2], bias.size
        Cg, Kg, P, size = C // groups, K // groups, prod(axes[:, OUT].tolist()), prod(axes[:, SIZE].tolist())
        part = y[(slice(None), slice(None), *place)] if place else y
        products, sums = self._products(x, fill), np.dtype(np.float32)
        tile = tile_for(FORWARD[products], Kg, N * P, groups)
        strips, depth_all = -(-Kg // tile.rows), -(-Cg // DEPTH) * DEPTH
        packed = pack(w, w_terms, k_step, c_step, groups, (Kg, Cg), tile.rows, depth_all, sums)
        if products == 1 and w.dtype != np.float16:
            _round(blocks_for(packed.size), packed, packed.size, on=x.place)
        tile.kernel(
            strips * -(-N * P // tile.columns) * groups, x.reshape(x.size), packed, bias.ready(sums),
            table(x.place, axes), *rows_and_taps(x.place, axes, boundary), boundary, sums.type(fill),
            table(x.place, steps_of(part, y)), C, Cg, Kg, N * P, P, depth_all, size, y.reshape(y.size), on=x.place,
        )  # fmt: skip

    def grad_weight(
        self, x: DeviceArray, dY: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic, dW: DeviceArray
    ) -> None:
        """``dW = dY_flat @ X_conv^T``, the sum over pixels split into parts that follow from the shapes alone."""
        if not capable(x.place):
            implicit.grad_weight(x, dY, axes, boundary, fill, dW)
            return
        (N, C), (K, Cg), T = x.shape[:2], dW.shape[:2], prod(dW.shape[2:])
        P, size, G, products = prod(dY.shape[2:]), prod(x.shape[2:]), C // Cg, self._products(x, fill)
        tile, sums = tile_for(GRAD_WEIGHT[products], K // G, Cg, G * T * 64), np.dtype(np.float32)
        blocks = -(-K // G // tile.rows) * -(-Cg // tile.columns) * G * T
        parts = parts_of(blocks, 2, -(-N * P // DEPTH), dW.size * sums.itemsize)
        given = (
            x.reshape(x.size), dY.reshape(dY.size), table(x.place, axes), *rows_and_taps(x.place, axes, boundary),
            boundary, sums.type(fill), C, Cg, K // G, N * P, P, size,
        )  # fmt: skip
        add_up(parts, sums, dW, lambda partial: tile.kernel(blocks * parts, *given, parts, partial, on=x.place))
        if products > 1:
            _weights_again(blocks_for(dW.size), *given, dW.size, dW.reshape(dW.size), on=x.place)


#: By precision, for sums of float32.
BY_PRECISION = {precision: TensorCores(precision) for precision in ("tf32", "tf32x3")}


def in_precision(precision: str, dtype: np.dtype) -> Any:
    """What computes products of this dtype: ``implicit`` where no tensor core is asked for, or none has the dtype."""
    return BY_PRECISION.get(precision, implicit) if computed_in(dtype) == np.float32 else implicit


@kernel()
def _round(values, n):
    i = cuda.grid(1)
    while i < n:
        values[i] = tf32(values[i])
        i += cuda.gridsize(1)


# What is not finite is summed again in float32: for an infinite x, x - big is NaN, and for a huge one big is infinite.
# A sum that is NaN is at its end.


@kernel()
def _forward_again(x, w, bias, axes, rows_met, met, boundary, fill, C, Cg, K, P, size, n, y):
    # x (N, C, prod in), w (K, Cg, taps), y (N, K, P)
    i = cuda.grid(1)
    last, taps = axes.shape[0] - 1, met.shape[0]
    while i < n:
        if not abs(np.float32(y[i])) < np.inf:
            o, k, image, total, tap = i % P, i // P % K, i // P // K, np.float32(0), 0
            while tap < taps and total == total:
                row = rows_met[met[tap, 0] + o // axes[last, OUT]]
                start = o % axes[last, OUT] * axes[last, STRIDE]
                pixel = source(start + met[tap, 1], axes[last, SIZE], boundary)
                for c in range(Cg):
                    value = fill
                    if row >= 0 and pixel >= 0:
                        there = image * C + k // (K // (C // Cg)) * Cg + c
                        value = np.float32(x[at(there * size + row * axes[last, SIZE] + pixel)])
                    total += np.float32(w[at((k * Cg + c) * taps + tap)]) * value
                tap += 1
            y[i] = y.dtype.type(total + bias[at(k)])
        i += cuda.gridsize(1)


@kernel()
def _weights_again(x, dY, axes, rows_met, met, boundary, fill, C, Cg, Kg, pixels_all, P, size, n, dW):
    # dY (N, K, P), dW (G, Kg, Cg, taps)
    i = cuda.grid(1)
    last, taps = axes.shape[0] - 1, met.shape[0]
    L_out = axes[last, OUT]
    while i < n:
        if not abs(np.float32(dW[i])) < np.inf:
            tap, c, k, total = i % taps, i // taps % Cg, i // taps // Cg, np.float32(0)
            q = 0
            while q < pixels_all and total == total:
                image, O, o = q // P, q % P // L_out, q % P % L_out
                row = rows_met[met[tap, 0] + O]
                pixel = source(o * axes[last, STRIDE] + met[tap, 1], axes[last, SIZE], boundary)
                value = fill
                if row >= 0 and pixel >= 0:
                    value = np.float32(x[at((image * C + k // Kg * Cg + c) * size + row * axes[last, SIZE] + pixel)])
                total += np.float32(dY[at((image * (C // Cg * Kg) + k) * P + q % P)]) * value
                q += 1
            dW[i] = dW.dtype.type(total)
        i += cuda.gridsize(1)
