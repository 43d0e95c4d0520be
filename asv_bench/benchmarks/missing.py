"""Convolution of data with gaps."""

import numpy as np

import numconv as nc


class Normalized:
    """An image of which a tenth is missing, beside the convolution of the whole one."""

    params = (3, 15)
    param_names = ("taps",)

    def setup(self, taps):
        rng = np.random.default_rng(0)
        self.x, self.w = rng.random((1024, 1024), dtype="f4"), rng.random((taps, taps), dtype="f4")
        self.gaps = np.where(rng.random(self.x.shape) < 0.1, np.float32(np.nan), self.x)
        self.time_normalized_convolve(taps), self.time_convolve(taps)

    def time_normalized_convolve(self, taps):
        nc.normalized_convolve(self.gaps, self.w, "same")

    def time_convolve(self, taps):
        nc.convolve(self.x, self.w, "same")


class Operator:
    """The same as a linear map under one mask."""

    def setup(self):
        rng = np.random.default_rng(0)
        self.mask, self.w = rng.random((512, 512)) < 0.1, rng.random((5, 5))
        self.A = nc.normalized_operator(self.mask, self.w, "same")
        self.x = rng.standard_normal(self.A.shape[1])
        self.time_matvec(), self.time_rmatvec(), self.time_matrix()

    def time_matvec(self):
        self.A.matvec(self.x)

    def time_rmatvec(self):
        self.A.rmatvec(self.x)

    def time_matrix(self):
        self.A.matrix()
