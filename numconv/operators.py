"""``W_conv`` as an operator: SciPy's solvers see a matrix, memory sees none."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from . import arrays, dispatch

if TYPE_CHECKING:
    from .plan import ConvPlan


def must_be_linear(plan: ConvPlan) -> None:
    """Raise where a constant makes the map affine."""
    if plan.geometry.fill_value != 0:
        raise ValueError(
            f"fill_value must be 0 for a linear operator, got {plan.geometry.fill_value!r}: the map would be affine"
        )


class ConvOperator(LinearOperator):
    """``W_conv`` of one kernel, of shape ``(K * prod out, C * prod in)``, applied by the plan's algorithm.

    ``matvec`` and ``matmat`` are the forward product (columns become a batch), ``rmatvec`` and ``rmatmat`` its exact
    Hermitian adjoint.
    """

    def __init__(self, plan: ConvPlan, w: np.ndarray) -> None:
        must_be_linear(plan)
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


def cupy_operator(plan: ConvPlan, w: Any) -> Any:
    """The same on a GPU, as CuPy's solvers take it: a ``LinearOperator`` of ``cupyx`` for a ``w`` of CuPy."""
    must_be_linear(plan)
    if w.place.library != "cupy":
        raise TypeError(
            f"w must be an array of NumPy or CuPy, whose solvers take a linear operator, got {w.place.kind}; "
            "forward and grad_input are the two products for any"
        )
    from cupyx.scipy.sparse.linalg import LinearOperator as OfCuPy

    weights, M = w.astype(w.dtype), plan.geometry.matrix_shape

    def apply(vectors: Any, adjoint: bool) -> Any:
        (X,), give = dispatch.read(vectors=vectors)
        dtype = arrays.product_dtype(vectors=X, plan=plan.dtype)
        now = plan if dtype == plan.dtype else replace(plan, dtype=dtype)
        computed = arrays.computed_in(dtype)
        images, w = X.reshape(X.shape[0], -1).swapaxes(0, 1).ready(computed), weights.ready(computed)
        result = w.place.empty((images.shape[0], M[1 if adjoint else 0]), computed)
        if adjoint:
            now._grad_input(images, w, result)
        else:
            now._forward(images, w, w.place.zeros(plan.geometry.K, computed), result)
        columns = w.place.empty((result.shape[1], *X.shape[1:]), dtype)
        columns.reshape(result.shape[::-1])[...] = result.swapaxes(0, 1)
        return give(columns)

    forward, adjoint = partial(apply, adjoint=False), partial(apply, adjoint=True)
    return OfCuPy(M, matvec=forward, rmatvec=adjoint, matmat=forward, rmatmat=adjoint, dtype=plan.dtype)
