"""The index arithmetic of convolution, once, for every room.

Plain functions of integers: Python calls them as they are, the CPU and GPU rooms compile them. Everything that a
convolution does with an index is one line, ``position``, and one rule, ``source``:

    the pixel that output ``o`` and tap ``t`` meet  =  source(start + o * stride + t * step)

Turning the kernel, padding and dilation only choose ``start`` and ``step``; a boundary only chooses ``source``.
"""

from __future__ import annotations

from math import gcd
from types import FunctionType

#: Columns of the table of axes that kernels receive (``ConvGeometry.axes``), one row for each spatial axis.
SIZE, KERNEL, OUT, START, STRIDE, STEP = range(6)

#: Codes of the boundaries, in the order of ``arguments.BOUNDARIES``.
CONSTANT, EDGE, REFLECT, SYMMETRIC, WRAP = range(5)

#: Codes of the words for padding, in the order of ``arguments.PADDING_NAMES``, and SciPy's own ``"same"``.
VALID, SAME, SAME_LOWER, FULL, MIDDLE = range(5)


#: No index and no product of sizes reaches this, so that 64 bits hold sums of a few of them, and bytes for items.
FAR = 2**60

#: A block of outputs that vector code takes at once goes less than so many beyond the last one along an axis.
BLOCK = 2**7


def capped(a, b):
    """``a * b`` for numbers that are not negative, or ``FAR`` where it would be more."""
    return FAR if a > 0 and b > FAR // a else a * b


def largest_index(N, C, K, groups, size, kernel, stride, dilation, lo, hi):
    """The largest of what is computed from the sizes of a convolution, or ``FAR`` where it would be more.

    It is one of these, each a product over the axes: the items of the input with its padding and of the output; the
    positions and the pixels of a block of outputs, some of which lie beyond the last; and the multiply-adds, which are
    no fewer than the entries of either matrix and the weights. What is none counts as one here.
    """
    items = capped(max(N, 1), max(C, K, 1))
    sums, block = capped(capped(max(N, 1), max(K, 1)), max(C // groups, 1)), 1
    for a in range(len(size)):
        s, dil = min(stride[a], FAR), min(dilation[a], FAR)
        padded = min(max(min(size[a], FAR) + min(lo[a], FAR) + min(hi[a], FAR), 1), FAR)
        furthest = max(padded, capped(kernel[a], dil), s)
        if a >= len(size) - 2:
            furthest = min(furthest + capped(BLOCK, capped(s, dil // gcd(s, dil))), FAR)
        items, block = capped(items, padded), capped(block, furthest)
        sums = capped(capped(sums, padded // s + 1), kernel[a])
    return max(items, sums, block)


def extent(kernel, dilation):
    """How many pixels a dilated kernel spans along one axis."""
    return dilation * (kernel - 1) + 1


def output_size(size, kernel, stride, dilation, lo, hi):
    """Output length along one axis; a stride that does not divide floors. Zero or less: the kernel does not fit."""
    return (size + lo + hi - extent(kernel, dilation)) // stride + 1


def padding_of(word, size, kernel, stride, dilation):
    """The pair ``(lo, hi)`` that a word for padding means along one axis.

    ``SAME`` gives ``ceil(size / stride)`` outputs with the odd pixel at the end, ``SAME_LOWER`` at the start, as XLA
    and ONNX define them; ``FULL`` pads ``dilation * (k - 1)`` on both sides, and ``MIDDLE`` keeps of that the outputs
    from ``(k - 1) // 2`` on.
    """
    reach = extent(kernel, dilation) - 1
    if word == VALID:
        return 0, 0
    if word == FULL:
        return reach, reach
    if word == MIDDLE:
        return reach - reach // 2, reach // 2
    total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if word == SAME else (large, small)


def position(o, t, start, stride, step):
    """Where tap ``t`` of output ``o`` looks, in the input's coordinates; outside ``0 .. size-1`` is padding."""
    return start + o * stride + t * step


def source(i, size, boundary):
    """The input pixel that position ``i`` reads, or -1 for the constant, in the meaning of ``numpy.pad``."""
    if 0 <= i < size:
        return i
    if boundary == CONSTANT:
        return -1
    if boundary == EDGE or size == 1:
        return 0 if i < 0 else size - 1
    if boundary == WRAP:
        return i % size
    if boundary == REFLECT:
        period = 2 * (size - 1)
        i %= period
        return i if i < size else period - i
    period = 2 * size  # SYMMETRIC
    i %= period
    return i if i < size else period - 1 - i


def first_output(first, stride, bound):
    """The smallest ``o >= 0`` with ``first + o * stride >= bound``."""
    return 0 if first >= bound else (bound - first + stride - 1) // stride


def output_hit(i, t, out, start, stride, step):
    """The output whose tap ``t`` looks at position ``i``, or -1 where there is none: ``position`` solved for ``o``."""
    distance = i - start - t * step
    if distance < 0 or distance % stride:
        return -1
    o = distance // stride
    return o if o < out else -1


def first_tap(phi, kernel, start, stride, step):
    """The first tap that meets pixel ``phi`` of the input and every stride-th behind it, or -1 if none does."""
    for t in range(min(stride // gcd(stride, step), kernel)):
        if (phi - start - t * step) % stride == 0:
            return t
    return -1


def row_source(T, O, axes, boundary):
    """The input row that kernel row ``T`` of output row ``O`` meets, or -1.

    A row is a flat index over all spatial axes but the last, so one routine serves any number of axes.
    """
    row = 0
    rows = 1
    for a in range(axes.shape[0] - 2, -1, -1):
        t = T % axes[a, KERNEL]
        o = O % axes[a, OUT]
        T //= axes[a, KERNEL]
        O //= axes[a, OUT]
        i = source(position(o, t, axes[a, START], axes[a, STRIDE], axes[a, STEP]), axes[a, SIZE], boundary)
        if i < 0:
            return -1
        row += i * rows
        rows *= axes[a, SIZE]
    return row


def row_output(T, row, axes):
    """The output row whose kernel row ``T`` meets input row ``row``, or -1: ``row_source`` turned round."""
    O = 0
    rows = 1
    for a in range(axes.shape[0] - 2, -1, -1):
        t = T % axes[a, KERNEL]
        i = row % axes[a, SIZE]
        T //= axes[a, KERNEL]
        row //= axes[a, SIZE]
        o = output_hit(i, t, axes[a, OUT], axes[a, START], axes[a, STRIDE], axes[a, STEP])
        if o < 0:
            return -1
        O += o * rows
        rows *= axes[a, OUT]
    return O


def compiled_by(helper):
    """These functions as a room's ``helper`` compiles them, by name; each sees the compiled ones before it."""
    names = dict(globals())
    for name, f in globals().items():
        if isinstance(f, FunctionType) and f is not compiled_by:
            names[name] = helper(FunctionType(f.__code__, names, name))
    return names
