"""The gradient of the weights as the sum it is, for groups of few channels, which fill no tile: depthwise layers, too.

A thread takes every so many pixels of the output and sums some weights of a few output channels over them, in
registers; its block then adds up what its threads have, and ``add_parts`` what the blocks have, always in one order.
Most kernels are three, five or seven wide: so wide a row of taps is found once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE
from ..arrays import computed_in
from ..geometry import ConvGeometry
from ._jit import THREADS, at, count, cuda, int32, kernel, source
from .arrays import DeviceArray, blocks_for
from .instructions import beyond
from .places import table
from .tables import FAR, NO_PIXEL, NO_ROW, rows_and_taps

#: Sums of as many weights are added up in a block at once.
TOGETHER = 8

#: How many blocks fill a GPU, how many pixels a thread takes at least, and the bytes that all parts take at most.
BLOCKS, PIXELS, PARTS = 2048, 8, 32 << 20

#: So many sums fit into the registers of a thread, and so many of numbers wider than float32.
SUMS, WIDE_SUMS = 64, 9


class Window(NamedTuple):
    """The kernel for ``channels`` of the output and some ``rows`` of taps, so many ``wide``; 1 is any one tap."""

    channels: int
    rows: int
    wide: int
    grad_weight: Any


def window_of(channels: int, rows: int, wide: int, resident: int) -> Window:
    """The kernel whose threads sum ``channels`` by ``rows`` by ``wide`` weights."""
    lines = wide if wide > 1 else rows  # pixels that it keeps: where a row is one tap, of each of them
    weights = channels * rows * wide
    room, lanes = TOGETHER * THREADS, THREADS // TOGETHER

    @kernel(THREADS, resident)
    def grad_weight(
        x, dY, axes, rows_met, boundary, fill, N, Cg, Kg, Q, P, size, x_image, dY_image, parts, across, pieces,
        conjugate, partial,
    ):
        # x (N, C, prod in), dY (N, K, P), partial (parts, K, Q). A block has a part of the rows of the output, as many
        # at once as fill it, and ``across`` pixels of each: ``pieces`` of them are a row.
        thread, block, last = count(cuda.threadIdx.x), count(cuda.blockIdx.x), at(axes.shape[0] - 1)
        some, sets = count((Kg + channels - 1) // channels), count((Q + rows * wide - 1) // (rows * wide))
        k0, rest = count(block % some * channels), count(block // some)
        q0, rest = count(rest % sets * (rows * wide)), count(rest // sets)
        G = count(x_image // (Cg * size))
        g, part = count(rest % G), count(rest // G)
        L_in, L_k, L_out = int32(axes[last, at(SIZE)]), count(axes[last, at(KERNEL)]), count(axes[last, at(OUT)])
        R_out = count(P // L_out)
        taps = count(rows_met.size // R_out * L_k)
        sums = cuda.local.array((channels, rows, wide), partial.dtype)
        gradients = cuda.local.array(channels, partial.dtype)
        channel_from = cuda.local.array(channels, np.uint32)
        row_at = cuda.local.array(rows, np.uint32)
        channel_at = cuda.local.array(rows, np.uint32)
        first = cuda.local.array(rows, np.int32)
        pixels = cuda.local.array(lines, np.uint32)
        c0 = count(q0 // taps)
        for k in range(channels):
            channel_from[k] = min(k, Kg - 1 - int32(k0)) * P  # one too many is summed and not used
        for r in range(rows):
            q = count(min(q0 + r * wide, Q - 1))
            tap = count(q % taps)
            row_at[r] = tap // L_k * R_out
            channel_at[r] = (q // taps - c0) * size
            if wide == 1:
                first[r] = axes[last, at(START)] + tap % L_k * axes[last, at(STEP)]
            for k in range(channels):
                for w in range(wide):
                    sums[k, r, w] = 0
        together = count(THREADS // across)
        slot, within = count(thread // across), count(thread % across)
        units = count((N * R_out + together - 1) // together)  # of a piece: so often all of a block have a pixel
        begin = count(units * pieces * part // parts)
        piece, unit, left = count(begin // units), count(begin % units), units * pieces * (part + 1) // parts - begin
        x_from, dY_from = at(g * Cg + c0) * at(size), at(g * Kg + k0) * at(P)
        more_n, more_O = count(together // R_out), count(together % R_out)
        n, O, o = count(0), count(0), count(0)
        left, fresh = count(left), True
        while left > 0:
            if fresh:
                o = count(piece * across + within)
                row = at(unit) * at(together) + at(slot)
                n, O = count(row // R_out), count(row % R_out)
                for w in range(lines):
                    where = axes[last, at(START)] + w * axes[last, at(STEP)] if wide > 1 else first[w]
                    pixel = int32(source(int32(where + o * axes[last, at(STRIDE)]), L_in, boundary))
                    pixels[w] = NO_PIXEL
                    if pixel >= 0:
                        pixels[w] = pixel
                fresh = False
            if slot < together and o < L_out and n < N:
                image, gradient = beyond(x, at(n) * at(x_image) + x_from), beyond(dY, at(n) * at(dY_image) + dY_from)
                p = count(O * L_out + o)
                for k in range(channels):
                    gradients[k] = gradient[at(count(channel_from[k] + p))]
                for r in range(rows):
                    row = rows_met[at(count(row_at[r] + O))]
                    row_there = count(NO_ROW)
                    if row >= 0:
                        row_there = count(row * L_in + channel_at[r])
                    for w in range(wide):
                        value, there = fill, count(row_there + pixels[w if wide > 1 else r])
                        if there < NO_PIXEL:
                            value = partial.dtype.type(image[at(there)])
                        if conjugate:
                            value = value.conjugate()
                        for k in range(channels):
                            sums[k, r, w] += gradients[k] * value
            n, O = count(n + more_n), count(O + more_O)
            if R_out <= O:
                n, O = count(n + 1), count(O - R_out)
            left, unit = count(left - 1), count(unit + 1)
            if unit == units:
                piece, unit, fresh = count(piece + 1), count(0), True
        shared = cuda.shared.array(room, partial.dtype)
        which, lane = count(thread // lanes), count(thread % lanes)
        for begin_with in range(0, weights, TOGETHER):
            for i in range(min(TOGETHER, weights - begin_with)):
                weight = begin_with + i
                total = sums[weight // (rows * wide), weight // wide % rows, weight % wide]
                shared[at(i * THREADS) + at(thread)] = total
            cuda.syncthreads()
            mine = at(which * THREADS + lane)
            total = shared[mine]
            for i in range(1, TOGETHER):
                total += shared[mine + at(i * lanes)]
            cuda.syncthreads()
            shared[mine] = total
            cuda.syncthreads()
            half = count(lanes // 2)
            while half > 0:
                if lane < half:
                    shared[mine] += shared[mine + at(half)]
                cuda.syncthreads()
                half = count(half // 2)
            weight = count(begin_with + which)
            k, q = count(k0 + weight // (rows * wide)), count(q0 + weight % (rows * wide))
            if lane == 0 and weight < weights and k < Kg and q < Q:
                partial[at((part * G + g) * Kg + k) * at(Q) + at(q)] = shared[mine]
            cuda.syncthreads()

    return Window(channels, rows, wide, grad_weight)


ONE, ANY, ANY_FOUR = window_of(1, 1, 1, 4), window_of(1, 8, 1, 2), window_of(4, 8, 1, 2)
THREE, THREE_FOUR = window_of(1, 3, 3, 3), window_of(4, 3, 3, 2)
FIVE, SEVEN = window_of(1, 5, 5, 2), window_of(1, 7, 7, 2)


def window_for(Kg: int, Cg: int, kernel: tuple[int, int], size: int, P: int, itemsize: int) -> Window:
    """The kernel for groups of ``Kg`` and ``Cg`` channels and a kernel of so many rows of taps, so wide."""
    (rows, wide), most = kernel, SUMS if itemsize <= 4 else WIDE_SUMS
    whole = [THREE_FOUR, THREE, FIVE, SEVEN] if wide > 1 else []
    for window in (*whole, ANY_FOUR, ANY):
        fits = window.channels * window.rows * window.wide <= most and window.wide in (1, wide)
        deep = rows if window.wide > 1 else rows * wide  # of these are all of a channel
        planes = min(Cg, -(-window.rows // deep) + (deep % window.rows > 0))  # that a block looks at, at most
        if fits and (window.channels == 1 or Kg > 1) and planes * size < FAR and window.channels * P < FAR:
            return window
    return ONE


def grad_weight(
    x: DeviceArray, dY: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic, dW: DeviceArray
) -> None:
    """``dW[k, c, t] = sum over n, p of dY[n, k, p] * conj(x[n, c, source(p, t)])``."""
    (N, C), (K, Cg), T, sums = x.shape[:2], dW.shape[:2], prod(dW.shape[2:]), computed_in(x.dtype)
    P, size, L_k, L_out = prod(dY.shape[2:]), prod(x.shape[2:]), int(axes[-1, KERNEL]), int(axes[-1, OUT])
    G, Q = C // Cg, Cg * T
    window = window_for(K // G, Cg, (T // L_k, L_k), size, P, sums.itemsize)
    pieces = -(-L_out // THREADS)  # of a line
    across = -(-L_out // pieces)
    blocks = G * -(-K // G // window.channels) * -(-Q // (window.rows * window.wide))
    units = -(-N * P // L_out // (THREADS // across)) * pieces  # pixels of a thread, were there one part
    parts = max(1, min(BLOCKS // blocks, units // PIXELS, PARTS // (dW.size * sums.itemsize)))
    add_up(parts, sums, dW, lambda partial: window.grad_weight(
        blocks * parts, x.reshape(x.size), dY.reshape(dY.size), table(x.place, axes),
        rows_and_taps(x.place, axes, boundary)[0], boundary, sums.type(fill), N, Cg, K // G, Q, P, size, C * size,
        K * P, parts, across, pieces, x.dtype.kind == "c", partial, on=x.place,
    ))  # fmt: skip


def add_up(parts: int, dtype: np.dtype, dW: DeviceArray, sum_of_parts: Callable[[DeviceArray], None]) -> None:
    """``dW`` from the sums of so many parts, ``(parts, *dW.shape)`` of this dtype, which may be one."""
    if parts == 1 and dW.dtype == dtype:
        sum_of_parts(dW.reshape(dW.size))
        return
    partial = dW.place.empty((parts * dW.size,), dtype)
    sum_of_parts(partial)
    _add_parts(blocks_for(dW.size), partial, parts, dW.size, dW.reshape(dW.size), on=dW.place)


@kernel()
def _add_parts(partial, parts, n, dW):
    # part by part; so many at once are on their way
    i = cuda.grid(1)
    some = cuda.local.array(TOGETHER, partial.dtype)
    while i < n:
        total = partial[at(i)]
        for first in range(1, parts, TOGETHER):
            for j in range(TOGETHER):
                some[j] = partial[at(min(first + j, parts - 1)) * at(n) + at(i)]
            for j in range(TOGETHER):
                if first + j < parts:
                    total += some[j]
        dW[at(i)] = dW.dtype.type(total)
        i += cuda.gridsize(1)


def workspace_for_weights(g: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that the parts take at most."""
    weights = g.K * (g.C // g.groups) * prod(g.kernel) * dtype.itemsize
    return max(weights, min(PARTS, BLOCKS * weights))
