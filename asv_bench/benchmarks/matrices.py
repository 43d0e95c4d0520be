"""The two matrices: laid out, added up again, built, filled anew, multiplied by."""

from __future__ import annotations

from .common import Timed, case, prepared


class Windows(Timed):
    """``im2col`` and its adjoint."""

    params = ("im2col", "col2im")
    param_names = ("function",)

    def setup(self, function: str) -> None:
        self.call = prepared(case("windows 3x3", function))

    def time_windows(self, function: str) -> None:
        self.call()


class Sparse(Timed):
    """``kernel2row`` from a plan, ``refill``, and the products with the matrix and its transpose."""

    params = (("matrix 9x9", "matrix 3x3 8->16ch"), ("kernel2row", "refill", "csr_matvec", "csr_rmatvec"))
    param_names = ("matrix", "function")

    def setup(self, matrix: str, function: str) -> None:
        self.call = prepared(case(matrix, function))

    def time_sparse(self, matrix: str, function: str) -> None:
        self.call()
