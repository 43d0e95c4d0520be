"""``W_conv`` as an operator: SciPy's solvers see a matrix, memory sees none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse.linalg import LinearOperator

from . import arrays, dispatch

if TYPE_CHECKING:
    from .plan import ConvPlan


class ConvOperator(LinearOperator):
    """``W_conv`` of one kernel, of shape ``(K * prod out, C * prod in)``, applied by the plan's algorithm.

    ``matvec`` and ``matmat`` are the forward product (columns become a batch), ``rmatvec`` and ``rmatmat`` its exact
    Hermitian adjoint.
    """

    def __init__(self, plan: ConvPlan, w: np.ndarray) -> None:
        if plan.geometry.fill_value != 0:
            raise ValueError(
                f"fill_value must be 0 for a linear operator, got {plan.geometry.fill_value!r}: the map would be affine"
            )
        super().__init__(plan.dtype, plan.geometry.matrix_shape)
        self.plan = plan
        self.w = w.copy()  # later changes of the caller's array must not change the operator

    def _apply(self, vectors: np.ndarray, adjoint: bool) -> np.ndarray:
        """``vectors`` as columns, ``(length, M)``: M images at once, in the dtype of both, as a matrix would."""
        dtype = arrays.product_dtype(vectors=vectors, plan=self.plan.dtype)
        if dtype.kind == "c" and self.dtype.kind != "c":  # a real operator acts on both parts alike
            return self._apply(vectors.real, adjoint) + 1j * self._apply(vectors.imag, adjoint)
        plan = self.plan if dtype == self.plan.dtype else replace(self.plan, dtype=dtype)
        computed = arrays.computed_in(dtype)
        images, w = arrays.ready(vectors.T, computed), arrays.ready(self.w, computed)
        result = np.empty((images.shape[0], self.shape[1 if adjoint else 0]), dtype=computed)
        if adjoint:
            dispatch.placed(plan.device, images, plan._grad_input)(images, w, result)
        else:
            no_bias = np.zeros(plan.geometry.K, computed)
            dispatch.placed(plan.device, images, plan._forward)(images, w, no_bias, result)
        return arrays.as_result(result, dtype).T

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        return self._apply(X, adjoint=False)

    def _rmatmat(self, X: np.ndarray) -> np.ndarray:
        return self._apply(X, adjoint=True)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._apply(x.reshape(-1, 1), adjoint=False)[:, 0]

    def _rmatvec(self, x: np.ndarray) -> np.ndarray:
        return self._apply(x.reshape(-1, 1), adjoint=True)[:, 0]
