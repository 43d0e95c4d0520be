"""A plan that doubts itself: every form on random data, compared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .select import ALGORITHMS, refusal

if TYPE_CHECKING:
    from .plan import ConvPlan


def check(plan: ConvPlan, seed: int) -> dict[str, float]:
    """Errors of every algorithm against ``direct`` in the widest type, and of both adjoint identities."""
    from .plan import make_plan

    g, dtype = plan.geometry, plan.dtype
    rng = np.random.default_rng(seed)
    x, w, dy = (random(rng, shape, dtype) for shape in (g.input_shape, g.kernel_shape, g.output_shape))
    wide = {"f": np.dtype(np.float64), "c": np.dtype(np.complex128)}.get(dtype.kind, dtype)
    exact = make_plan(g, wide, plan.device, "direct").forward(x, w)
    errors = {}
    for algorithm in ALGORITHMS:
        if not refusal(algorithm, g, dtype, plan.device):
            errors[algorithm] = distance(make_plan(g, dtype, plan.device, algorithm).forward(x, w), exact)
    if dtype.kind == "b":
        return errors  # "any" is not linear
    linear = replace(plan, geometry=replace(g, fill_value=0))
    errors["adjoint_input"] = imbalance(linear.forward(x, w), dy, x, linear.grad_input(dy, w))
    errors["adjoint_weight"] = imbalance(plan.forward(x, w), dy, w, plan.grad_weight(x, dy))
    return errors


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Values of a dtype, small enough that integer sums stay exact in float64."""
    if dtype.kind in "biu":
        return rng.integers(0, 2 if dtype.kind == "b" else 4, shape).astype(dtype)
    values = rng.standard_normal(shape)
    return (values + 1j * rng.standard_normal(shape) if dtype.kind == "c" else values).astype(dtype)


def distance(got: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference over the root mean square of what is exact."""
    if not exact.size:
        return 0.0
    got, exact = (a.astype(np.result_type(a.dtype, np.float64)) for a in (got, exact))
    scale = float(np.sqrt(np.mean(np.abs(exact) ** 2))) or 1.0
    return float(np.max(np.abs(got - exact))) / scale


def imbalance(Ax: np.ndarray, y: np.ndarray, x: np.ndarray, AHy: np.ndarray) -> float:
    """``|<A x, y> - <x, A^H y>|`` over ``|A x| |y|``; in the ring itself for integers, where it is exact."""
    if Ax.dtype.kind in "iu":
        left, right = (np.sum(a * b, dtype=a.dtype) for a, b in ((Ax, y), (x, AHy)))
        return float(abs(int(left) - int(right)))
    Ax, y, x, AHy = (a.astype(np.result_type(a.dtype, np.float64)).ravel() for a in (Ax, y, x, AHy))
    scale = float(np.linalg.norm(Ax) * np.linalg.norm(y)) or 1.0
    return float(abs(np.vdot(y, Ax) - np.vdot(AHy, x))) / scale
