"""A plan as an operator of PyLops: solvers, stacking, regularisation and ``dottest`` work with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pylops

from .. import dispatch

if TYPE_CHECKING:
    from ..plan import ConvPlan


class Conv(pylops.LinearOperator):
    """``plan.forward`` with the kernel ``w`` as a PyLops operator, and ``plan.grad_input`` as its exact adjoint.

    Parameters
    ----------
    plan : ConvPlan
        Of a floating-point or complex dtype, made by ``plan_conv`` or ``plan_convolve``.
    w : array of ``plan.kernel_shape``
        Copied: later changes do not change the operator.
    name : str, default "C"
        What PyLops calls it.

    Attributes
    ----------
    dims, dimsd : tuple of int
        ``plan.input_shape`` and ``plan.output_shape``; a batch is part of them.

    Raises
    ------
    ValueError
        For a ``fill_value`` other than 0, which makes the map affine, or a ``w`` of another shape.
    TypeError
        For a ``w`` that does not cast to the plan's dtype without loss or lives on a GPU, or a plan of integers.

    References
    ----------
    M. Ravasi, I. Vasconcelos, "PyLops: a linear-operator Python library for scalable algebra and optimization",
    SoftwareX 11, 2020.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> from numconv.interop.pylops import Conv
    >>> plan = numconv.plan_convolve((4, 4), (1, 2), "same", boundary="wrap", dtype=float)
    >>> D = Conv(plan, [[1.0, -1.0]])
    >>> (D @ np.eye(4))[0]
    array([ 1., -1.,  0.,  0.])
    """

    def __init__(self, plan: ConvPlan, w: Any, name: str = "C") -> None:
        if plan.dtype.kind not in "fc":
            raise TypeError(f"plan must have a floating-point or complex dtype for PyLops, got {plan.dtype}")
        (array,), _ = dispatch.read(w=w)
        if dispatch.device_of(array) != "cpu":
            raise TypeError(
                f"w must be on the CPU for an operator of PyLops, got one on a GPU ({array.place.kind}); a plan with "
                "device='cuda' computes on it what comes from the CPU"
            )
        self._conv = plan.linear_operator(w)
        super().__init__(dtype=plan.dtype, dims=plan.input_shape, dimsd=plan.output_shape, name=name)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._conv.matmat(self._columns(x, 1)).T.ravel()

    def _rmatvec(self, x: np.ndarray) -> np.ndarray:
        return self._conv.rmatmat(self._columns(x, 0)).T.ravel()

    def _columns(self, x: np.ndarray, side: int) -> np.ndarray:
        """An image in each column."""
        return x.reshape(self._conv.plan.geometry.N, self._conv.shape[side]).T
