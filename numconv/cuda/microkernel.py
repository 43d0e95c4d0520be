"""The micro-kernel of the tiled products: what a thread multiplies of one step, with its sums in registers."""

from __future__ import annotations

from typing import Any

from ._jit import at, helper
from .instructions import load_four

#: Rows of the operands that a block has in shared memory at once: a step.
DEPTH = 8


def outer_products(tall: int, broad: int, apart: tuple[int, int], pitch: tuple[int, int]) -> Any:
    """``multiply(A, B, down, across, a, b, sums)`` adds a step of outer products to ``tall`` by ``broad`` sums.

    The numbers of a thread lie in groups of four from ``down`` and ``across`` on, so far ``apart``; the rows of the
    operands are as long as ``pitch`` says. ``a`` and ``b`` are room for ``tall`` and ``broad`` numbers, from the kernel
    itself: the simulator knows local arrays of a kernel's own file alone.
    """
    (down_step, across_step), (a_pitch, b_pitch) = apart, pitch

    @helper
    def multiply(A, B, down, across, a, b, sums):
        # one of them; four neighbours are one load from shared memory
        for i in range(0, tall, 4):
            load_four(A, down + at(i // 4 * down_step), a, i)
        for j in range(0, broad, 4):
            load_four(B, across + at(j // 4 * across_step), b, j)
        for i in range(tall):
            for j in range(broad):
                sums[i, j] += a[i] * b[j]

    # one stands behind the other in the code: what a loop would calculate is known then

    @helper
    def multiply_two(A, B, down, across, a, b, sums):
        multiply(A, B, down, across, a, b, sums)
        multiply(A, B, down + at(a_pitch), across + at(b_pitch), a, b, sums)

    @helper
    def multiply_four(A, B, down, across, a, b, sums):
        multiply_two(A, B, down, across, a, b, sums)
        multiply_two(A, B, down + at(2 * a_pitch), across + at(2 * b_pitch), a, b, sums)

    @helper
    def multiply_step(A, B, down, across, a, b, sums):
        multiply_four(A, B, down, across, a, b, sums)
        multiply_four(A, B, down + at(4 * a_pitch), across + at(4 * b_pitch), a, b, sums)

    return multiply_step
