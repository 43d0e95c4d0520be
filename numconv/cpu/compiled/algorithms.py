"""The products of each algorithm, as its own file plans them, for callers that are compiled.

    y = W_flat @ X_conv + bias        (N, K, *out) in a flat y, from item ``begin`` on, in ``steps``

Weight ``(g, k, c, t)`` is ``w[g, k_step * k + c_step * c + terms[t]]`` in a flat ``w``: so the taps of a phase of the
input gradient, whose channels change places, are read where they lie. Arrays are flat.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from ..._indexing import CONSTANT, KERNEL, OUT, SIZE, STRIDE
from .. import adjoint, direct, im2col, implicit, patch, schemes, stencil, winograd, winograd_weights
from .._jit import ALONE, helper
from ..addresses import through
from ..blocks import blocks_for_weights, is_complex
from ..callers import as_input, as_table, known, team_for, threads_of
from ..lines import merged, table, times
from ..simd import ALIGNED, aligned, lanes
from .choice import DIRECT, WINOGRAD, dilation_of
from .tables import launcher, shape_of, size_of, steps_of

_implicit, _implicit_grad_weight = through(implicit._forward), through(implicit._grad_weight)
_sums, _sums_grad_weight = through(direct._forward), through(direct._grad_weight)
_stencil, _stencil_grad_weight = through(stencil._forward), through(stencil._grad_weight)
_weights, _winograd = through(winograd._weights, later=True), through(winograd._forward, later=True)
_winograd_grad_weight = through(winograd_weights._sums, later=True)
_peaks, _loud = through(winograd_weights._peaks, later=True), through(winograd_weights._loud, later=True)


# forward, and what is done by it ------------------------------------------------------------------------------------


@launcher
def by_implicit(x, N, C, w, terms, k_step, c_step, bias, groups, axes, boundary, fill, y, begin, steps):
    """``implicit.product``."""
    K = bias.size
    team = team_for(N * K * times(axes, OUT) * (C // groups) * terms.size)
    axes, size, block, w_steps, places, tables = implicit.layout(
        axes, begin, steps, x.dtype, N, C // groups, K // groups, groups, (w.size // groups, k_step, c_step), terms,
        threads_of(team),
    )
    _implicit((
        team, as_table(x.reshape((N, C, size[0], size[1], size[2]))), w, bias, as_table(axes.copy()), boundary, fill,
        as_table(block), as_table(w_steps), as_table(places), as_table(tables), y,
    ))


@launcher
def by_winograd(x, N, C, w, terms, k_step, c_step, bias, groups, axes, boundary, fill, y, begin, steps):
    """``winograd.forward``."""
    K, size, stride, dilation = bias.size, (axes[0, OUT], axes[1, OUT]), axes[0, STRIDE], dilation_of(axes)
    team = team_for(y.size * (C // groups) * terms.size)
    b = schemes.blocks_of(
        schemes.scheme_of(stride, False), N, C // groups, K // groups, groups, size, dilation, False, x.dtype,
        threads_of(team),
    )
    if stride > 1:
        in_tiles(team, schemes.Strided(*b), x, N, C, w, bias, axes, boundary, fill, size, y)
    elif max(dilation[0], dilation[1]) > 1:
        in_tiles(team, schemes.Dilated(*b), x, N, C, w, bias, axes, boundary, fill, size, y)
    else:
        in_tiles(team, b, x, N, C, w, bias, axes, boundary, fill, size, y)


@launcher
def by_winograd_back(dy, w, N, C, K, groups, axes, dx):
    """``winograd.grad_input``."""
    size, stride, dilation = (axes[0, SIZE], axes[1, SIZE]), axes[0, STRIDE], dilation_of(axes)
    bias, nothing = as_input(np.zeros(C, dx.dtype)), dx.dtype.type(0)
    team, back = team_for(dx.size * (K // groups) * 9), np.empty((2, 6), np.int64)
    for a in range(2):
        for column, value in enumerate(
            winograd.back((axes[a, 0], axes[a, 1], axes[a, 2], axes[a, 3], axes[a, 4], axes[a, 5]))
        ):
            back[a, column] = value
    b = schemes.blocks_of(
        schemes.scheme_of(stride, True), N, K // groups, C // groups, groups, (back[0, OUT], back[1, OUT]), dilation,
        True, dx.dtype, threads_of(team),
    )
    if stride > 1:
        in_tiles(team, schemes.Spread(*b), dy, N, K, w, bias, back, CONSTANT, nothing, size, dx)
    elif max(dilation[0], dilation[1]) > 1:
        in_tiles(team, schemes.Dilated(*b), dy, N, K, w, bias, back, CONSTANT, nothing, size, dx)
    else:
        in_tiles(team, b, dy, N, K, w, bias, back, CONSTANT, nothing, size, dx)


@helper
def in_tiles(team, b, x, N, C, w, bias, axes, boundary, fill, size, y):
    """What both have in common; ``y`` is ``(N, K, *size)``."""
    taps, workers = schemes.taps_of(axes), schemes.workers_of(threads_of(team), b.each, b.shared, x.itemsize)
    memory = np.empty(b.shared + workers * b.each + ALIGNED, x.dtype)
    first = aligned(memory)
    U, own = memory[first : first + b.shared], memory[first + b.shared : memory.size - ALIGNED + first]
    own = own.reshape((workers, b.each))
    if not b.own:
        _weights((team_for(b.shared // 4), w, bias.size // b.groups, C // b.groups, taps, b, U, own))
    _winograd((
        team, as_table(x.reshape((N, C, axes[0, SIZE], axes[1, SIZE]))), w, taps, bias, as_table(axes), boundary, fill,
        b, U, own, y.reshape((N, bias.size, size[0], size[1])),
    ))


def back(algorithm, arguments):
    """``dX`` by Winograd; False where it is by phases."""
    raise NotImplementedError


@overload(back)
def _back(algorithm, arguments):
    if arguments[0].dtype != types.float32:
        return lambda algorithm, arguments: False
    winograd = through(by_winograd_back, later=True)

    def back(algorithm, arguments):
        if algorithm == WINOGRAD:
            winograd(arguments)
        return algorithm == WINOGRAD

    return back


def sum_again(arguments):
    """Sum again what is not finite in ``dX``, where weights are not; numbers without infinity have no need."""
    raise NotImplementedError


@overload(sum_again)
def _sum_again(arguments):
    if not isinstance(arguments[0].dtype, (types.Float, types.Complex)):
        return lambda arguments: None
    again = through(adjoint._sum_again, later=True)

    def sum_again(arguments):
        dy, w, N, C, K, groups, axes, dx = arguments
        Cg, d = C // groups, axes.shape[0]
        L_in, L_k, L_out = axes[d - 1, SIZE], axes[d - 1, KERNEL], axes[d - 1, OUT]
        rows, lines = axes[: d - 1], times(axes[: d - 1], KERNEL)
        if not (all_finite(w) if w.size <= dx.size // N else all_finite(dx) or all_finite(w)):
            again((
                team_for(dx.size * (w.size // Cg)), as_table(dy.reshape((N, K, times(rows, OUT), L_out))),
                as_table(w.reshape((K, Cg, lines, L_k))), as_table(axes), dx.reshape((N, C, times(rows, SIZE), L_in)),
            ))

    return sum_again


@helper
def all_finite(array):
    """Whether nothing in an array is NaN or infinite."""
    nothing = array.dtype.type(0)
    for i in range(array.size):
        nothing += array[i] * 0
    return nothing == 0


@helper
def two_axes(axes):
    """The table over two axes at least: a signal is one row."""
    d = axes.shape[0]
    longer = np.empty((max(d, 2), 6), np.int64)
    for column in range(6):
        longer[0, column] = patch.ONE_ROW[column]
    for a in range(d):
        for column in range(6):
            longer[max(d, 2) - d + a, column] = axes[a, column]
    return longer


@helper
def spread(part, shape, y, begin, steps):
    """A contiguous part of the output goes where it belongs."""
    for i in range(part.size):
        rest, at = i, begin
        for a in range(shape.size - 1, -1, -1):
            at += rest % shape[a] * steps[a]
            rest //= shape[a]
        y[at] = part[i]


@helper
def in_order(w, terms, k_step, c_step, K, Cg, groups, order):
    """Weights ``(K, C/G, taps)``, flat; of the taps of the last axes, so many as ``order`` has, in its order."""
    T, Kg = terms.size, K // groups
    weights = np.empty(K * Cg * T, w.dtype)
    for k in range(K):
        for c in range(Cg):
            at = k // Kg * (w.size // groups) + k % Kg * k_step + c * c_step
            for t in range(T):
                tap = t // order.size * order.size + order[t % order.size]
                weights[(k * Cg + c) * T + t] = w[at + terms[tap]]
    return as_input(weights)


@helper
def is_contiguous(steps, shape):
    """Whether steps are those of an array of its own."""
    step, all_are = 1, True
    for a in range(shape.size - 1, -1, -1):
        all_are = all_are and (steps[a] == step or shape[a] == 1)
        step *= shape[a]
    return all_are


@launcher
def by_stencil(x, N, C, w, terms, k_step, c_step, bias, groups, axes, boundary, fill, y, begin, steps):
    """``stencil.forward``."""
    K, Cg, shape = bias.size, C // groups, shape_of(N, bias.size, axes, OUT)
    axes = two_axes(axes)
    a = axes.shape[0] - 1
    entries, order, sizes = patch.arranged(axes[a - 1], axes[a], lanes(x.dtype))
    sizes = patch.completed(sizes, axes)
    weights = in_order(w, terms, k_step, c_step, K, Cg, groups, order)
    every = np.zeros(a + 4, np.int64)
    every[0] = N
    for i in range(shape.size):
        every[1 + i + (i > 1 and shape.size == 3)] = steps[i]
    at_once = Cg * (terms.size // order.size) <= sizes[patch.UNITS]
    target, at, own = y, begin, steps_of(shape)
    apart = not at_once and not is_contiguous(steps, shape)
    if apart:
        target, at = np.empty(size_of(shape), y.dtype), 0
    for i in range(shape.size):
        if apart or shape[i] == 1:  # nothing steps along an axis of one
            every[1 + i + (i > 1 and shape.size == 3)] = own[i]
    _stencil((
        team_for(size_of(shape) * Cg * terms.size), x, weights, bias, as_table(axes), boundary, fill,
        as_table(entries), as_table(sizes), groups, as_table(every), target[at:],
    ))
    if apart:
        spread(target, shape, y, begin, steps)


@launcher
def by_sums(x, N, C, w, terms, k_step, c_step, bias, groups, axes, boundary, fill, y, begin, steps):
    """``direct.forward`` without vector code."""
    K, Cg, shape = bias.size, C // groups, shape_of(N, bias.size, axes, OUT)
    d = axes.shape[0]
    L_in, L_k, L_out = axes[d - 1, SIZE], axes[d - 1, KERNEL], axes[d - 1, OUT]
    weights = in_order(w, terms, k_step, c_step, K, Cg, groups, np.arange(1))
    apart = begin > 0 or not is_contiguous(steps, shape)
    target = np.empty(size_of(shape), y.dtype) if apart else y
    rows_in, rows = times(axes[: d - 1], SIZE), times(axes[: d - 1], OUT)
    _sums((
        team_for(size_of(shape) * Cg * terms.size), as_table(x.reshape((N, C, rows_in, L_in))),
        as_table(weights.reshape((K, Cg, terms.size // L_k, L_k))), bias, as_table(axes), boundary, fill,
        im2col.row_part(N * K * rows, L_out), target.reshape((N, K, rows, L_out)),
    ))
    if apart:
        spread(target, shape, y, begin, steps)


def product(algorithm, arguments):
    """``y`` by the algorithm that was chosen."""
    raise NotImplementedError


@overload(product)
def _product(algorithm, arguments):
    dtype = arguments[0].dtype
    implicit, winograd = through(by_implicit, later=True), through(by_winograd, later=True)
    vectors = dtype in (types.float32, types.float64)
    direct = through(by_stencil if vectors else by_sums, later=True)
    return by_one_of(dtype, implicit, direct, winograd)


def by_one_of(dtype, implicit, direct, winograd):
    """A function that calls the one of these that was chosen, in which Winograd's is for float32 alone."""

    def one_of_two(algorithm, arguments):
        if algorithm == DIRECT:
            direct(arguments)
        else:
            implicit(arguments)

    def one_of_three(algorithm, arguments):
        if algorithm == WINOGRAD:
            winograd(arguments)
        else:
            one_of_two(algorithm, arguments)

    one_of_two = helper(one_of_two)
    return one_of_three if dtype == types.float32 else one_of_two


# the weight gradient ------------------------------------------------------------------------------------------------


@helper
def add_up(partial, order, sums, dW):
    """``dW`` becomes the sum of its parts, whose taps are in such an order, in the type of ``sums``."""
    taps = order.size
    for i in range(dW.size):
        sums[i] = partial[i]
    for begin in range(dW.size, partial.size, max(dW.size, 1)):
        for i in range(dW.size):
            sums[i] += partial[begin + i]
    for i in range(dW.size):
        dW[i // taps * taps + order[i % taps]] = sums[i]


@launcher
def weights_by_implicit(x, N, C, dY, K, axes, boundary, fill, dW):
    """``implicit.grad_weight``."""
    P, Q = times(axes, OUT), dW.size // K
    Cg = Q // times(axes, KERNEL)
    axes, _ = merged(axes, steps_of(shape_of(N, K, axes, OUT)))
    block, parts = blocks_for_weights(axes, N, Cg, K // (C // Cg), C // Cg, x.dtype)
    size = implicit.size_over(axes)
    partial = dW.reshape((1, K, Q)) if parts == 1 else np.empty((parts, K, Q), x.dtype)
    _implicit_grad_weight((
        team_for(dY.size * Q), as_table(x.reshape((N, C, size[0], size[1], size[2]))), as_table(dY.reshape((N, K, P))),
        as_table(axes.copy()), boundary, fill, as_table(block), as_table(table(axes, block)), is_complex(x.dtype),
        partial,
    ))
    if parts > 1:
        add_up(partial.reshape(partial.size), np.arange(1), np.empty(dW.size, wide(x.dtype)), dW)


_again = through(weights_by_implicit, later=True)


@helper
def find_loud(x, dY, images, Cg, Kg, axes, boundary, fill, loud):
    """``winograd_weights._loud_tiles``."""
    H, L, R_out, L_out = axes[0, SIZE], axes[1, SIZE], axes[0, OUT], axes[1, OUT]
    x_peaks, dY_peaks = np.empty((images, H * L), x.dtype), np.empty((images, R_out * L_out), x.dtype)
    _peaks((team_for(x.size + dY.size), x, dY, Cg, Kg, x_peaks, dY_peaks))
    _loud((
        ALONE, as_table(x_peaks.reshape((images, H, L))), as_table(dY_peaks.reshape((images, R_out, L_out))),
        as_table(axes), boundary, abs(fill), loud.shape[0], loud,
    ))


@launcher
def weights_by_winograd(x, N, C, dY, K, axes, boundary, fill, dW):
    """``winograd_weights.grad_weight``."""
    Q, out = dW.size // K, (axes[0, OUT], axes[1, OUT])
    Cg, team = Q // times(axes, KERNEL), team_for(dY.size * Q)
    G = C // Cg
    b = winograd_weights.blocks_of(N, Cg, K // G, G, out, x.dtype)
    loud = np.empty((G, winograd_weights.tiles_of(N, out)), np.bool_)
    find_loud(x, dY, N * G, Cg, K // G, axes, boundary, fill, loud)
    if winograd_weights.too_many(loud):
        _again((x, N, C, dY, K, axes, boundary, fill, dW))
        return
    workers = winograd_weights.workers_for(b, dW.size, x.dtype, threads_of(team))
    memory = np.empty(workers * b.each + ALIGNED, x.dtype)
    first = aligned(memory)
    own = memory[first : memory.size - ALIGNED + first].reshape((workers, b.each))
    partial = dW.reshape((1, K, Q)) if b.parts == 1 else np.empty((b.parts, K, Q), x.dtype)
    finite = np.empty(b.tasks, np.bool_)
    _winograd_grad_weight((
        team, as_table(x.reshape((N, C, axes[0, SIZE], axes[1, SIZE]))), as_table(dY.reshape((N, K, out[0], out[1]))),
        schemes.taps_of(axes), as_table(axes), boundary, fill, is_complex(x.dtype), b, as_table(loud),
        np.zeros(b.slack, x.dtype), own, partial, finite,
    ))
    if b.parts > 1:
        add_up(partial.reshape(partial.size), np.arange(1), np.empty(dW.size, x.dtype), dW)
    if not finite.all():
        _again((x, N, C, dY, K, axes, boundary, fill, dW))


@known
def wide(dtype: np.dtype) -> np.dtype:
    """``stencil.wide``."""
    return stencil.wide(dtype)


@launcher
def weights_by_stencil(x, N, C, dY, K, axes, boundary, fill, dW):
    """``stencil.grad_weight``."""
    axes, weights = two_axes(axes), dW.size // K
    G, a = C // (weights // times(axes, KERNEL)), axes.shape[0] - 1
    entries, order, sizes = patch.arranged(axes[a - 1], axes[a], lanes(x.dtype))
    sizes = patch.completed(sizes, axes)
    down = -(-axes[a - 1, OUT] // sizes[patch.ROWS])
    blocks = N * times(axes[: a - 1], OUT) * down * -(-axes[a, OUT] // sizes[patch.COLUMNS])
    together = min(K // G, max(1, stencil.SUMS // weights))
    parts = stencil.parts_of(blocks, G * -(-K // G // together))
    partial = np.empty((parts, K, weights), wide(x.dtype))
    _stencil_grad_weight((
        team_for(dY.size * weights), x, dY, as_table(axes), boundary, fill, as_table(entries), as_table(sizes), G,
        together, partial,
    ))
    add_up(partial.reshape(partial.size), order, np.empty(dW.size, wide(x.dtype)), dW)


@launcher
def weights_by_sums(x, N, C, dY, K, axes, boundary, fill, dW):
    """``direct.grad_weight`` without vector code."""
    d, weights = axes.shape[0], dW.size // K
    T, L_in, L_k, L_out = times(axes, KERNEL), axes[d - 1, SIZE], axes[d - 1, KERNEL], axes[d - 1, OUT]
    rows_in, rows = times(axes[: d - 1], SIZE), times(axes[: d - 1], OUT)
    block = im2col.row_part(N * rows, L_out)
    parts = stencil.parts_of(N * rows * -(-L_out // block), K * (weights // L_k))
    partial = np.empty((parts, K, weights // T, T // L_k, L_k), wide(x.dtype))
    _sums_grad_weight((
        team_for(dY.size * weights), as_table(x.reshape((N, C, rows_in, L_in))),
        as_table(dY.reshape((N, K, rows, L_out))), as_table(axes), boundary, fill, block, partial,
    ))
    add_up(partial.reshape(partial.size), np.arange(1), np.empty(dW.size, wide(x.dtype)), dW)


def weights(algorithm, arguments):
    """``dW`` by the algorithm that was chosen."""
    raise NotImplementedError


@overload(weights)
def _weights_by(algorithm, arguments):
    dtype = arguments[0].dtype
    implicit, winograd = through(weights_by_implicit, later=True), through(weights_by_winograd, later=True)
    vectors = dtype in (types.float32, types.float64)
    direct = through(weights_by_stencil if vectors else weights_by_sums, later=True)
    return by_one_of(dtype, implicit, direct, winograd)
