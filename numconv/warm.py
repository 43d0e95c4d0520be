"""Compile before it matters: small convolutions of every kind, so that the first real call does not wait."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from . import arrays, dispatch
from .arguments import frozen, one_of
from .geometry import conv_geometry
from .plan import ConvPlan, make_plan
from .progress import progress
from .select import ALGORITHMS, refusal

#: Small convolutions that run every kernel between them: shapes of input and kernel, and the rest of the geometry.
SAMPLES: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((1, 1, 40), (1, 1, 5), {}),
    ((1, 1, 16, 16), (1, 1, 3, 3), {"padding": 1}),
    ((1, 1, 12, 200), (1, 1, 3, 3), {}),
    ((1, 1, 24, 24), (1, 1, 9, 9), {}),
    ((2, 4, 8, 8), (4, 1, 3, 3), {"groups": 4}),
    ((2, 8, 9, 9), (16, 8, 1, 1), {}),
    ((1, 16, 12, 12), (16, 16, 3, 3), {"padding": 1}),
    ((1, 8, 12, 12), (16, 8, 3, 3), {"stride": 2}),
    ((1, 2, 6, 6, 6), (2, 2, 3, 3, 3), {}),
)


def warmup(dtypes: Any = ("float32", "float64"), algorithms: str | Iterable[str] = ALGORITHMS) -> float:
    """Compile the kernels now, or load them from the disk cache, so that the first calls do not wait.

    On a terminal a progress bar shows how far it is, if ``tqdm`` is installed.

    Parameters
    ----------
    dtypes : dtype or dtypes, default ("float32", "float64")
        Of the arrays that later calls will bring.
    algorithms : str or strs, default all
        What those calls will use; ``"auto"`` may take any of them. One that cannot serve a dtype is left out.

    Returns
    -------
    float
        How many seconds it took.

    Raises
    ------
    ValueError, TypeError
        For an algorithm that there is not, and a dtype without products.

    Examples
    --------
    >>> import numconv
    >>> numconv.warmup("float64", algorithms="direct") < 600
    True
    """
    begin = time.perf_counter()
    wanted = frozen(tuple(algorithms) if issubclass(type(algorithms), (set, frozenset)) else algorithms, "algorithms")
    names = [one_of("algorithms", name, ALGORITHMS) for name in (wanted if isinstance(wanted, tuple) else (wanted,))]
    listed = dtypes if issubclass(type(dtypes), (list, tuple, set, frozenset)) else [dtypes]
    device = dispatch.asked_for()
    plans = [
        make_plan(geometry, dtype, device, name)
        for dtype in [arrays.plan_dtype(dtype, "dtypes") for dtype in listed]
        for name in names
        for geometry in (conv_geometry(x, w, **rest) for x, w, rest in SAMPLES)
        if not refusal(name, geometry, dtype, device)
    ]
    for plan in progress(plans, "compiling"):
        run_all_forms(plan)
        if device == "cpu":
            with dispatch.backend(device, "_jit").every_launch_parallel():
                run_all_forms(plan)
    return time.perf_counter() - begin


def run_all_forms(plan: ConvPlan) -> None:
    """The three products of a plan and, where it is about a matrix, that matrix."""
    x, w, dy = (np.zeros(shape, plan.dtype) for shape in (plan.input_shape, plan.kernel_shape, plan.output_shape))
    plan.forward(x, w)
    plan.grad_input(dy, w)
    plan.grad_weight(x, dy)
    if plan.algorithm == "im2col":
        plan.col2im(plan.im2col(x))
    if plan.algorithm == "kernel2row":
        plan.refill(plan.matrix(w), w)
