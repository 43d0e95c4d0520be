"""Which algorithm ``auto`` takes in compiled code: ``select``'s amounts and costs, compiled.

What is there to choose are the algorithms that are kernels and nothing else; those that call NumPy or SciPy are for
calls outside.
"""

from __future__ import annotations

from math import gcd
from types import FunctionType
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types

from ... import select
from ..._indexing import KERNEL, OUT, SIZE, STEP, STRIDE
from .. import winograd, winograd_weights
from .._jit import helper
from ..addresses import through
from ..callers import known
from ..lines import times
from .tables import launcher, size_of

#: Algorithms, in ``select``'s order, and products.
CHOICES = ("implicit", "direct", "winograd")
IMPLICIT, DIRECT, WINOGRAD = range(3)
FORWARD, GRAD_INPUT, GRAD_WEIGHT = range(3)

#: For how many images it is chosen.
IMAGES = select.IMAGES["cpu"]

#: Dtypes that have costs; the first are floats.
KINDS = ("float32", "float64", "integer", "complex")
FLOATS = 2
FLOAT32 = np.dtype(np.float32)

#: ``COSTS`` as a table; what nobody measured, or auto does not take, is infinitely dear.
AMOUNTS = 10
COSTS = np.zeros((3, 3, len(KINDS), AMOUNTS))
for p, product in enumerate(select.PRODUCTS):
    for a, algorithm in enumerate(CHOICES):
        for k, kind in enumerate(KINDS):
            costs = select.COSTS[product].get(algorithm, {}).get(kind, (np.inf,))
            COSTS[p, a, k, : len(costs)] = costs if algorithm != "winograd" or kind == "float32" else np.inf

intrinsic: Any = extending.intrinsic  # numba adds the context to calls, which its types do not know

# the amounts as this room compiles them; each sees the compiled ones before it
_names: dict[str, Any] = {**vars(select), "prod": size_of}
for name, f in vars(select).items():
    if name.startswith("_") and isinstance(f, FunctionType):
        _names[name] = helper(FunctionType(f.__code__, _names, name))
Sizes: Any = select.Sizes  # of arrays here, not of tuples
_implicit, _direct, _winograd = _names["_implicit"], _names["_direct"], _names["_winograd"]
_implicit_grad_weight, _direct_grad_weight = _names["_implicit_grad_weight"], _names["_direct_grad_weight"]
_winograd_grad_weight = _names["_winograd_grad_weight"]


@known
def kind_of(dtype: np.dtype) -> int:
    """Which dtype's costs stand for this one's."""
    return KINDS.index(select.like(dtype))


@known
def lanes_of(dtype: np.dtype) -> int:
    """As many numbers as were in a vector register of the machine that was measured."""
    return select.lanes_of(dtype)


@intrinsic
def cost_of(typing_context, costs, amounts):
    """The sum of what amounts cost."""

    def codegen(context, builder, signature, values):
        costs, amounts = signature.args
        data = context.make_array(costs)(context, builder, values[0]).data
        total = ir.DoubleType()(0.0)
        for i, kind in enumerate(amounts):
            amount = context.cast(builder, builder.extract_value(values[1], i), kind, types.float64)
            each = builder.load(builder.gep(data, [ir.IntType(64)(i)]))
            total = builder.fadd(total, builder.fmul(each, amount))
        return total

    return types.float64(costs, amounts), codegen


@helper
def sizes_of(product, algorithm, N, C, K, G, axes, lanes):
    """``select.sizes_of``."""
    d = axes.shape[0]
    kernel, out, stride = np.empty(d, np.int64), np.empty(d, np.int64), np.empty(d, np.int64)
    step, reach = np.empty(d, np.int64), np.empty(d, np.int64)
    work, times = N * K * C // G, 1
    for a in range(d):
        k, o, s, t = axes[a, KERNEL], axes[a, OUT], axes[a, STRIDE], abs(axes[a, STEP])
        if product == GRAD_INPUT:
            m, size = s // gcd(s, t), axes[a, SIZE]
            o = -(-size // s)
            if algorithm != WINOGRAD:  # there a tile holds all phases
                times *= min(m, k, size)
                k, s, t = -(-k // m), 1, t * m // s
        kernel[a], out[a], stride[a], step[a] = max(k, 1), max(o, 1), max(s, 1), t
        reach[a] = (out[a] - 1) * stride[a] + (kernel[a] - 1) * t + 1
        work *= kernel[a] * out[a]
    if product == GRAD_INPUT:
        C, K = K, C
    share = 1.0 if work < select.LITTLE else 0.5
    return Sizes(N, C, K, G, kernel, out, reach, stride, step, lanes, work, share), times


@helper
def dilation_of(axes):
    """The dilation of two axes."""
    return abs(axes[0, STEP]), abs(axes[1, STEP])


@helper
def direct_serves(kind, C, K, G, axes):
    """Whether weights and channels are few enough for direct sums."""
    product = kind < FLOATS and min(C, K) >= select.MANY_CHANNELS * G
    return not product and K * (C // G) * times(axes, KERNEL) <= select.MANY_WEIGHTS


@helper
def winograd_serves(product, N, C, K, G, axes):
    """Whether it computes such a product, with little memory."""
    if axes.shape[0] != 2 or axes[0, KERNEL] != 3 or axes[1, KERNEL] != 3:
        return False
    stride, dilation = axes[0, STRIDE], dilation_of(axes)
    dilated = max(dilation[0], dilation[1]) > 1
    if axes[1, STRIDE] != stride or stride > 2 or (stride == 2 and dilated):
        return False
    if product == GRAD_WEIGHT and (stride > 1 or dilated):
        return False
    Cg, Kg, size, out = C // G, K // G, (axes[0, SIZE], axes[1, SIZE]), (axes[0, OUT], axes[1, OUT])
    if product == GRAD_WEIGHT:
        b = winograd_weights.blocks_of(N, Cg, Kg, G, out, FLOAT32)
        return winograd_weights.bytes_of(b, K * Cg * 9, FLOAT32, 2) <= select.WORKSPACE
    return winograd.bytes_of(N, Cg, Kg, G, size, out, stride, dilation, FLOAT32, 2) <= select.WORKSPACE


@launcher
def fastest(product, kind, lanes, C, K, G, axes):
    """The algorithm that ``select`` takes among those here, forward or for the input gradient, whatever the batch."""
    N = IMAGES
    s, times = sizes_of(product, IMPLICIT, N, C, K, G, axes, lanes)
    best, least = IMPLICIT, times * cost_of(COSTS[product, IMPLICIT, kind], _implicit(s))
    direct = times * cost_of(COSTS[product, DIRECT, kind], _direct(s))
    if direct < least and direct_serves(kind, C, K, G, axes):
        best, least = DIRECT, direct
    if kind != 0 or not winograd_serves(product, N, C, K, G, axes):
        return best
    s, times = sizes_of(product, WINOGRAD, N, C, K, G, axes, lanes)
    return WINOGRAD if times * cost_of(COSTS[product, WINOGRAD, kind], _winograd(s)) < least else best


@launcher
def fastest_for_weights(kind, lanes, N, C, K, G, axes):
    """The same for the gradient to the weights."""
    s, _ = sizes_of(GRAD_WEIGHT, IMPLICIT, N, C, K, G, axes, lanes)
    best, least = IMPLICIT, cost_of(COSTS[GRAD_WEIGHT, IMPLICIT, kind], _implicit_grad_weight(s))
    direct = cost_of(COSTS[GRAD_WEIGHT, DIRECT, kind], _direct_grad_weight(s))
    if direct < least and direct_serves(kind, C, K, G, axes):
        best, least = DIRECT, direct
    if kind != 0 or not winograd_serves(GRAD_WEIGHT, N, C, K, G, axes):
        return best
    return WINOGRAD if cost_of(COSTS[GRAD_WEIGHT, WINOGRAD, kind], _winograd_grad_weight(s)) < least else best


choose, choose_for_weights = through(fastest), through(fastest_for_weights)
