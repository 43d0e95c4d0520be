"""One kernel for each output, and new weights in an old matrix: both are bound by memory."""

import numpy as np

import numconv as nc

#: Input and kernels of a varying blur, and of a locally connected layer.
SHAPES = {"blur": ((512, 512), (512, 512, 7, 7)), "layer": ((1, 8, 34, 34), (32, 32, 16, 8, 3, 3))}


class Local:
    """A varying blur of an image, and a locally connected layer."""

    params = (tuple(SHAPES),)
    param_names = ("work",)

    def setup(self, work):
        rng = np.random.default_rng(0)
        self.geometry = {"padding": "same" if work == "blur" else 0}
        self.x, self.w = (rng.standard_normal(shape).astype(np.float32) for shape in SHAPES[work])
        self.y = nc.conv_local(self.x, self.w, **self.geometry)
        self.time_grad_input(work)
        self.time_grad_weight(work)

    def time_forward(self, work):
        nc.conv_local(self.x, self.w, **self.geometry)

    def time_grad_input(self, work):
        nc.conv_local_grad_input(self.x.shape, self.w, self.y, **self.geometry)

    def time_grad_weight(self, work):
        nc.conv_local_grad_weight(self.x, self.w.shape, self.y, **self.geometry)


class Refill:
    """New weights into a CSR matrix."""

    def setup(self):
        self.plan = nc.plan_convolve((1024, 1024), (5, 5), dtype=np.float32)
        self.w = np.random.default_rng(0).standard_normal((5, 5)).astype(np.float32)
        self.matrix = self.plan.matrix(self.w)
        self.time_refill()

    def time_refill(self):
        self.plan.refill(self.matrix, self.w)
