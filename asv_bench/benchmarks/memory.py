"""The largest memory that a process has held, which counts the imports and the arrays: see ``peakmem_nothing``."""

from __future__ import annotations

import numpy as np

import numconv as nc


class Peak:
    """A layer of 64 channels on 512 x 512 pixels: input and output are 64 MiB each, its ``X_conv`` would be 576."""

    timeout = 600.0
    products = ("forward", "grad_input", "grad_weight")

    def setup(self) -> None:
        small = nc.plan_conv((1, 64, 32, 32), (64, 64, 3, 3), padding=1)
        x, w = np.ones(small.input_shape, np.float32), np.ones(small.kernel_shape, np.float32)
        for y in (small.forward(x, w), x):  # compiles
            small.grad_input(y, w)
            small.grad_weight(x, y)
        self.plan = nc.plan_conv((1, 64, 512, 512), (64, 64, 3, 3), padding=1)
        self.x, self.w = np.ones(self.plan.input_shape, np.float32), w
        self.out = np.ones(self.plan.output_shape, np.float32)

    def peakmem_nothing(self) -> None:
        """The reference: imports, arrays and compiled code are there, and nothing is computed."""

    def peakmem_forward(self) -> None:
        self.plan.forward(self.x, self.w, out=self.out)

    def peakmem_grad_input(self) -> None:
        self.plan.grad_input(self.out, self.w, out=self.x)

    def peakmem_grad_weight(self) -> None:
        self.plan.grad_weight(self.x, self.out)

    def peakmem_linear_operator(self) -> None:
        self.plan.linear_operator(self.w)

    def peakmem_kernel2row(self) -> None:
        nc.kernel2row(self.w[:4, :4], (256, 256))  # 2.3 million entries of 8 bytes for each of 16 pairs of channels
