"""A plan that doubts itself: every form on random data, compared."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from . import _memory, arrays, dispatch
from .select import ALGORITHMS, refusal

if TYPE_CHECKING:
    from .plan import ConvPlan


def check(plan: ConvPlan, seed: int) -> dict[str, float]:
    """Errors of every algorithm against ``direct`` in the widest type, and of both adjoint identities."""
    g, instead = plan.geometry, "check a plan of a smaller input"
    with _memory.required(_taken(plan), f"a check of a convolution with a result of shape {g.output_shape}", instead):
        return _check(plan, seed)


def _check(plan: ConvPlan, seed: int) -> dict[str, float]:
    from .plan import make_plan

    g, dtype = plan.geometry, plan.dtype
    rng = np.random.default_rng(seed)
    x, w, dy = (random(rng, shape, dtype) for shape in (g.input_shape, g.kernel_shape, g.output_shape))
    exact = make_plan(g, _widest(dtype), plan.device, "direct").forward(x, w)
    errors = {}
    for algorithm in _able(plan):
        errors[algorithm] = distance(make_plan(g, dtype, plan.device, algorithm).forward(x, w), exact)
    del exact
    if dtype.kind == "b":
        return errors  # "any" is not linear
    linear = _linear(plan)
    errors["adjoint_input"] = imbalance(linear.forward(x, w), dy, x, linear.grad_input(dy, w))
    errors["adjoint_weight"] = imbalance(plan.forward(x, w), dy, w, plan.grad_weight(x, dy))
    return errors


def _able(plan: ConvPlan) -> list[str]:
    """The algorithms that serve this geometry."""
    library = plan.device == "cpu" or dispatch.backend("cuda", "places").host().has_library
    return [name for name in ALGORITHMS if not refusal(name, plan.geometry, plan.dtype, plan.device, library)]


def _linear(plan: ConvPlan) -> ConvPlan:
    return replace(plan, geometry=replace(plan.geometry, fill_value=0))


def _widest(dtype: np.dtype) -> np.dtype:
    return {"f": np.dtype(np.float64), "c": np.dtype(np.complex128)}.get(dtype.kind, dtype)


def _taken(plan: ConvPlan) -> int:
    """Bytes that a check takes at its peak: the data, and the most that one of its steps takes beside them."""
    from .plan import make_plan

    g, item, wide = plan.geometry, plan.dtype.itemsize, _widest(plan.dtype).itemsize
    computed = arrays.computed_in(plan.dtype)
    X, W, Y = (prod(shape) for shape in (g.input_shape, g.kernel_shape, g.output_shape))
    drawn = 16 if plan.dtype.kind == "c" else 0 if item == wide and plan.dtype.kind == "f" else 8
    copies = 0 if computed == plan.dtype else computed.itemsize
    exact = make_plan(g, _widest(plan.dtype), plan.device, "direct")
    steps = [max(X, Y) * drawn, exact._taken("forward", 0 if item == wide else (X + W) * wide)]
    for name in _able(plan):
        by_name = make_plan(g, plan.dtype, plan.device, name)
        steps.append(Y * wide + by_name._taken("forward", (X + W) * copies))
    compared = np.result_type(plan.dtype, np.float64).itemsize
    steps.append(Y * (wide + item + 3 * compared))
    if plan.dtype.kind != "b":
        steps.append(Y * item + _linear(plan)._taken("grad_input", (Y + W) * copies))
        steps.append(Y * item + plan._taken("grad_weight", (X + Y) * copies))
        pairs = compared if item != compared and plan.dtype.kind in "fc" else 0
        steps.extend(Y * item + n * item + 2 * pairs * (Y + n) for n in (X, W))
    return (X + W + Y) * item + max(steps)


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Values of a dtype, small enough that integer sums stay exact in float64."""
    if dtype.kind in "biu":
        return rng.integers(0, 2 if dtype.kind == "b" else 4, shape).astype(dtype)
    if dtype.kind != "c":
        return rng.standard_normal(shape).astype(dtype, copy=False)
    values = np.empty(shape, dtype)
    values.real, values.imag = rng.standard_normal(shape), rng.standard_normal(shape)
    return values


def distance(got: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference over the root mean square of what is exact."""
    if not exact.size:
        return 0.0
    got, exact = (a.astype(np.result_type(a.dtype, np.float64), copy=False) for a in (got, exact))
    scale = float(np.linalg.norm(exact)) / exact.size**0.5 or 1.0
    return float(np.max(np.abs(got - exact))) / scale


def imbalance(Ax: np.ndarray, y: np.ndarray, x: np.ndarray, AHy: np.ndarray) -> float:
    """``|<A x, y> - <x, A^H y>|`` over ``|A x| |y|``; in the ring itself for integers, where it is exact."""
    if Ax.dtype.kind in "iu":
        left, right = (np.sum(a * b, dtype=a.dtype) for a, b in ((Ax, y), (x, AHy)))
        return float(abs(int(left) - int(right)))
    Ax, y, x, AHy = (a.astype(np.result_type(a.dtype, np.float64), copy=False).ravel() for a in (Ax, y, x, AHy))
    scale = float(np.linalg.norm(Ax) * np.linalg.norm(y)) or 1.0
    return float(abs(np.vdot(y, Ax) - np.vdot(AHy, x))) / scale
