"""Operators: products without the matrix, norms and diagonals."""

import numpy as np

import numconv as nc


class Operator:
    """The product and its adjoint as SciPy's solvers call them, several columns at once."""

    params = (1, 8)
    param_names = ("columns",)

    def setup(self, columns):
        rng = np.random.default_rng(0)
        plan = nc.plan_conv((8, 128, 128), (8, 8, 3, 3), padding=1, boundary="reflect")
        self.A = plan.linear_operator(rng.standard_normal(plan.kernel_shape).astype("f4"))
        self.x = rng.standard_normal((self.A.shape[1], columns)).astype("f4")
        self.y = rng.standard_normal((self.A.shape[0], columns)).astype("f4")
        self.A.matmat(self.x), self.A.rmatmat(self.y)

    def time_matmat(self, columns):
        self.A.matmat(self.x)

    def time_rmatmat(self, columns):
        self.A.rmatmat(self.y)


class Norm:
    """The largest singular value: exactly by the Fourier transform, and by Lanczos' method."""

    params = (("wrap", "symmetric"), ("image", "layer"))
    param_names = ("boundary", "what")
    timeout = 120

    def setup(self, boundary, what):
        if what == "image":
            self.plan = nc.plan_convolve((64, 64), (5, 5), "same", boundary=boundary)
        else:
            self.plan = nc.plan_conv((16, 14, 14), (16, 16, 3, 3), padding=1, boundary=boundary)
        self.w = np.random.default_rng(0).standard_normal(self.plan.kernel_shape).astype("f4")
        self.plan.norm(self.w)

    def time_norm(self, boundary, what):
        self.plan.norm(self.w)


class Diagonal:
    """The diagonal of the Gram matrix, which no matrix is made for."""

    params = ("constant", "reflect")
    param_names = ("boundary",)

    def setup(self, boundary):
        self.plan = nc.plan_conv((64, 112, 112), (64, 64, 3, 3), padding=1, boundary=boundary)
        self.w = np.random.default_rng(0).standard_normal(self.plan.kernel_shape).astype("f4")

    def time_gram_diagonal(self, boundary):
        self.plan.gram_diagonal(self.w)

    def time_coverage(self, boundary):
        self.plan.coverage()
