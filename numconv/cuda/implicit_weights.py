"""The gradient of the weights as one product for each group, ``dW = dY_flat @ X_conv^H``, summed over pixels in parts.

As in ``implicit``, a block of threads owns a tile of the product and gathers what it multiplies. The columns are those
of ``X_conv`` as it is written, channels and their taps side by side, so that few channels fill a tile, too. Which pixel
a tap meets is the sum of two numbers, one of its row and one of the line; a block keeps them in shared memory for the
pixels of some steps, and each thread adds up those of its columns.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..arrays import computed_in
from ..geometry import ConvGeometry
from . import direct_weights
from ._jit import SIMULATED, at, count, cuda, helper, int32, kernel, source
from .arrays import DeviceArray
from .direct_weights import PARTS, add_up
from .instructions import beyond
from .microkernel import DEPTH, outer_products
from .places import table
from .tables import FAR, NO_PIXEL, NO_ROW, rows_and_taps

SIDE_BITS = 3 if SIMULATED else 4
SIDE = 1 << SIDE_BITS
THREADS = SIDE * SIDE

#: A row of a tile in shared memory is so much longer, or threads that store a column would meet in one bank.
PAD = 4

#: Positions that a block has room for: those of DEPTH pixels at least, and as many more between the taps, which are in
#: different banks then.
POSITIONS, GAP = 2 * DEPTH * 131, DEPTH

#: Multiprocessors of an H200; and how many steps a block takes at least.
SMS, STEPS = 132, 16

#: Pixels whose products are summed in registers, one behind the other, before the sums are put down.
SPAN = 2048

@helper
def find_positions(positions, p, left, room, rows, lines, row0, line0, axes, rows_met, P, image, gradients, boundary):
    """Where the taps of a tile look in ``room`` pixels of the output from ``p`` on, ``left`` of which count.

    ``rows`` numbers for the rows, then ``lines`` for the pixels of a row, and the pixel itself.
    """
    thread, last = count(cuda.threadIdx.x), at(axes.shape[0] - 1)
    pixel, slot = count(thread % room), count(thread // room)
    L_out = count(axes[last, at(OUT)])
    R_out = count(P // L_out)
    n, p = count(count(p + pixel) // P), count(count(p + pixel) % P)
    O = count(p // L_out)
    L_in, o = int32(axes[last, at(SIZE)]), count(p - O * L_out)
    first = int32(axes[last, at(START)] + o * axes[last, at(STRIDE)])
    while slot <= count(rows + lines):
        there = count(NO_ROW)
        if slot < rows:
            row_at = count((row0 + slot) * R_out + O)
            if row_at >= count(rows_met.size):
                row_at = count(row_at - rows_met.size)
            row = rows_met[at(row_at)]
            if row >= 0 and pixel < left:
                there = count(row * L_in + n * image)
        elif slot < count(rows + lines):
            t = count(line0 + slot - rows)
            if t >= count(axes[last, at(KERNEL)]):
                t = count(t - axes[last, at(KERNEL)])
            column = int32(source(int32(first + int32(t) * int32(axes[last, at(STEP)])), L_in, boundary))
            there = count(NO_PIXEL)
            if column >= 0:
                there = count(column)
        elif pixel < left:
            there = count(n * gradients + p)
        positions[at(count(slot * (room + GAP) + pixel))] = there
        slot = count(slot + THREADS // room)


class Tile(NamedTuple):
    """The kernel for a tile of ``rows`` by ``columns``.

    So many of its blocks are ``resident`` on an SM; a step ``costs`` so many instructions by SASS for sm_90.
    """

    rows: int
    columns: int
    resident: int
    cost: int
    grad_weight: Any


def tile_of(down: int, across: int, resident: int, cost: int) -> Tile:
    """The kernel whose threads sum ``down`` by ``across`` products each, in groups of four that lie together."""
    rows, columns, quad = SIDE * down, SIDE * across, 4 * SIDE
    loads_a, loads_b = rows * DEPTH // THREADS, columns * DEPTH // THREADS  # of a thread, side by side
    wide_a, wide_b = rows + PAD, columns + PAD
    half_a, half_b = DEPTH * wide_a, DEPTH * wide_b  # of a shared array is filled while the other half is multiplied
    whole_a, whole_b = 2 * half_a, 2 * half_b
    line_of, channel_of, gradient_of, corner = columns, 2 * columns, 3 * columns, 3 * columns + rows
    described = corner + 5

    multiply_step = outer_products(down, across, (quad, quad), (wide_a, wide_b))

    @helper
    def add_row(partial, to, left, put, sums, i):
        for j in range(across):
            there = j // 4 * quad + j % 4
            if there < left:
                if put:
                    sums[i, j] += partial[to + at(there)]
                partial[to + at(there)] = sums[i, j]
            sums[i, j] = 0

    @helper
    def describe(of, k0, q0, sums_of, axes, rows_met, Kg, Q, P, size, room, rows_there, lines_there):
        # of each column where its row and its pixel in a row are kept, and where its channel begins; of each row of dY
        # where that begins; and of the tile what it takes to find positions and to put sums down
        thread, last = count(cuda.threadIdx.x), at(axes.shape[0] - 1)
        L_k, L_out = count(axes[last, at(KERNEL)]), count(axes[last, at(OUT)])
        R_k = count(count(rows_met.size) // count(P // L_out))
        row0, line0 = count(q0 // L_k), count(q0 % L_k)
        if thread < columns:
            q = count(min(q0 + thread, Q - 1))
            row, line, pitch = count(q // L_k), count(q % L_k), room + GAP
            of[at(thread)] = count(count(row - row0) % count(rows_there)) * pitch
            line = count(count(line + L_k - line0) % L_k)
            of[at(thread) + at(line_of)] = (rows_there + count(line % count(lines_there))) * pitch
            of[at(thread) + at(channel_of)] = count(row // R_k) * size
        if thread < rows:
            of[at(thread) + at(gradient_of)] = min(k0 + thread, Kg - 1) * P
        if thread == 0:
            of[at(corner)], of[at(corner + 1)] = row0 % R_k, line0
            of[at(corner + 2)], of[at(corner + 3)], of[at(corner + 4)] = k0, q0, sums_of

    @kernel(THREADS, 2)
    def grad_weight(
        x, dY, axes, rows_met, boundary, fill, C, Cg, Kg, Q, P, size, pixels, parts, room, rows_there, lines_there,
        conjugate, partial,
    ):
        # x (N, C, prod in), dY (N, K, P), partial (parts, K, Q)
        thread, block = count(cuda.threadIdx.x), count(cuda.blockIdx.x)
        strips, pieces, G = count((Kg + rows - 1) // rows), count((Q + columns - 1) // columns), count(C // Cg)
        k0, rest = count(block % strips * rows), count(block // strips)
        q0, rest = count(rest % pieces * columns), count(rest // pieces)
        g, part = count(rest % G), count(rest // G)
        A = cuda.shared.array(whole_a, partial.dtype, alignment=16)
        B = cuda.shared.array(whole_b, partial.dtype, alignment=16)
        a = cuda.local.array(down, partial.dtype)
        b = cuda.local.array(across, partial.dtype)
        positions = cuda.shared.array(POSITIONS, np.uint32)
        of = cuda.shared.array(described, np.uint32, alignment=16)
        sums = cuda.local.array((down, across), partial.dtype)
        next_a = cuda.local.array(loads_a, partial.dtype)
        next_b = cuda.local.array(loads_b, partial.dtype)
        describe(of, k0, q0, rest, axes, rows_met, Kg, Q, P, size, room, rows_there, lines_there)
        steps = (pixels + DEPTH - 1) // DEPTH
        first = steps * part // parts * DEPTH
        left = count(min(steps * (part + 1) // parts * DEPTH, pixels) - first)
        n, p = count(first // P), count(first % P)
        depth, line = count(thread % DEPTH), count(thread // DEPTH)
        k, q = count(thread // SIDE * 4), count(thread % SIDE * 4)
        for i in range(down):
            for j in range(across):
                sums[i, j] = 0
        now, summed, put = count(0), count(0), False
        cuda.syncthreads()
        while left > 0:
            there = count(min(left, room))
            find_positions(
                positions, p, there, count(room), count(rows_there), count(lines_there), of[at(corner)],
                of[at(corner + 1)], axes, rows_met, count(P), count(C * size), count(G * Kg * P), boundary,
            )  # fmt: skip
            image = beyond(x, (at(n) * at(C) + at(g * Cg)) * at(size))
            gradient = beyond(dY, (at(n) * at(G) + at(g)) * at(Kg * P))
            cuda.syncthreads()
            steps, step = count((there + DEPTH - 1) // DEPTH), count(0)
            while step <= steps:
                if step < steps:
                    pixel = at(step * DEPTH + depth)
                    nothing, zero = fill, partial.dtype.type(0)
                    p_there = positions[at((rows_there + lines_there) * (room + GAP)) + pixel]
                    for i in range(loads_a):
                        next_a[i] = zero
                        if p_there != NO_ROW:
                            k_at = count(of[at(line * loads_a) + at(gradient_of + i)] + p_there)
                            next_a[i] = partial.dtype.type(gradient[at(k_at)])
                    if p_there == NO_ROW:
                        nothing = zero
                    for i in range(loads_b):
                        next_b[i] = nothing
                        row = positions[at(of[at(line * loads_b) + at(i)]) + pixel]
                        x_at = count(row + positions[at(of[at(line * loads_b) + at(line_of + i)]) + pixel])
                        if x_at < NO_PIXEL:
                            x_at = count(x_at + of[at(line * loads_b) + at(channel_of + i)])
                            next_b[i] = partial.dtype.type(image[at(x_at)])
                if step > 0:
                    other = count(1 - now)
                    multiply_step(A, B, at(other * half_a) + at(k), at(other * half_b) + at(q), a, b, sums)
                if step < steps:
                    a_to = at(now * half_a + depth * wide_a + line * loads_a)
                    b_to = at(now * half_b + depth * wide_b + line * loads_b)
                    for i in range(loads_a):
                        A[a_to + at(i)] = next_a[i]
                    for i in range(loads_b):
                        B[b_to + at(i)] = next_b[i].conjugate() if conjugate else next_b[i]
                cuda.syncthreads()
                now, step = count(1 - now), count(step + 1)
            left, summed = count(left - there), count(summed + there)
            n, p = count(n + count(p + room) // count(P)), count(count(p + room) % count(P))
            if summed >= SPAN or left == 0:
                row, column = count(of[at(corner + 2)] + k), count(of[at(corner + 3)] + q)
                to = (at(of[at(corner + 4)]) * at(Kg) + at(row)) * at(Q) + at(column)
                for i in range(down):
                    if row < Kg:
                        add_row(partial, to, int32(Q - int32(column)), put, sums, i)
                    step = 1 if i % 4 < 3 else quad - 3
                    row, to = count(row + step), to + at(step) * at(Q)
                summed, put = count(0), True

    return Tile(rows, columns, resident, cost, grad_weight)


LARGE, WIDE, SMALL = tile_of(8, 8, 2, 680), tile_of(4, 8, 2, 411), tile_of(4, 4, 3, 254)


def tile_for(rows: int, columns: int, itemsize: int) -> Tile:
    """The tile that takes the fewest instructions; wide numbers do not fit the registers of the larger ones."""
    tiles = (LARGE, WIDE, SMALL) if itemsize <= 4 else (SMALL,)
    return min(tiles, key=lambda tile: -(-rows // tile.rows) * -(-columns // tile.columns) * tile.cost)


def parts_of(blocks: int, resident: int, steps: int, nbytes: int) -> int:
    """Into how many parts the sum over pixels is split, so that ``blocks`` for each of them fill a GPU in full rounds.

    The first number of rounds is taken that leaves less than a tenth of a GPU without a block.
    """
    for rounds in range(1, 9):
        parts = rounds * resident * SMS // blocks
        if parts * blocks > 0.9 * rounds * resident * SMS:
            break
    return max(1, min(parts, steps // STEPS, PARTS // nbytes), steps * DEPTH >> 30)


def tile_and_parts(Kg: int, Q: int, groups: int, pixels: int, itemsize: int) -> tuple[Tile, int, int]:
    """The tile of a product, how many blocks a part has, and how many parts there are."""
    tile = tile_for(Kg, Q, itemsize)
    blocks = -(-Kg // tile.rows) * -(-Q // tile.columns) * groups
    return tile, blocks, parts_of(blocks, tile.resident, -(-pixels // DEPTH), groups * Kg * Q * itemsize)


def grad_weight(
    x: DeviceArray, dY: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic, dW: DeviceArray
) -> None:
    """``dW = dY_flat @ X_conv^H``, the sum over pixels split into parts that follow from the shapes alone."""
    (N, C), (K, Cg), T, sums = x.shape[:2], dW.shape[:2], prod(dW.shape[2:]), computed_in(x.dtype)
    P, size, L_k, G = prod(dY.shape[2:]), prod(x.shape[2:]), int(axes[-1, KERNEL]), C // Cg
    Kg, Q = K // G, Cg * T
    tile, blocks, parts = tile_and_parts(Kg, Q, G, N * P, sums.itemsize)
    rows, lines = min(T // L_k, (tile.columns - 2) // L_k + 2), min(L_k, tile.columns)  # different ones in a tile
    room = min(THREADS, (POSITIONS // (rows + lines + 1) - GAP) // DEPTH * DEPTH)
    images = (room - 2) // P + 1  # so far beyond the first may pixels lie that have a room together
    if max((images * C + Cg) * size, (images * K + Kg) * P) > FAR:
        direct_weights.grad_weight(x, dY, axes, boundary, fill, dW)  # these indices have more than 32 bits
        return
    add_up(parts, sums, dW, lambda partial: tile.grad_weight(
        blocks * parts, x.reshape(x.size), dY.reshape(dY.size), table(x.place, axes),
        rows_and_taps(x.place, axes, boundary)[0], boundary, sums.type(fill), C, Cg, Kg, Q, P, size, N * P, parts,
        room, rows, lines, x.dtype.kind == "c", partial, on=x.place,
    ))  # fmt: skip


def workspace_for_weights(g: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that the parts take."""
    Kg, Q = g.K // g.groups, g.C // g.groups * prod(g.kernel)
    if not (Kg and Q and g.N):
        return 0
    return tile_and_parts(Kg, Q, g.groups, g.N * prod(g.out), dtype.itemsize)[2] * g.K * Q * dtype.itemsize
