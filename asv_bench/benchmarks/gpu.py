"""The products on a GPU, from arrays that are there and from NumPy's; left out where there is no GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

import numconv as nc

from .common import Timed, case


class Gpu(Timed):
    """Each time ends when the device has finished."""

    params = (("layer 3x3", "layer 1x1"), ("forward", "grad_input", "grad_weight", "forward from NumPy"))
    param_names = ("work", "product")

    def setup(self, work: str, product: str) -> None:
        device = nc.devices()[1]
        if not device.usable:
            raise NotImplementedError(device.reason)
        try:
            import torch
        except ImportError:
            raise NotImplementedError("torch is not installed, whose arrays these are") from None
        if not torch.cuda.is_available():
            raise NotImplementedError("torch sees no GPU")
        self.wait: Any = torch.cuda.synchronize
        shapes = case(work)
        plan = nc.plan_conv(shapes.x, shapes.w, device="cuda", **shapes.geometry)
        rng = np.random.default_rng(0)
        x, w, dy = (rng.standard_normal(shape, dtype=np.float32) for shape in (shapes.x, shapes.w, shapes.y))
        if product == "forward from NumPy":
            self.call = lambda: plan.forward(x, w)
        else:
            gx, gw, gdy = (torch.from_numpy(a).cuda() for a in (x, w, dy))
            self.call = {
                "forward": lambda: plan.forward(gx, gw),
                "grad_input": lambda: plan.grad_input(gdy, gw),
                "grad_weight": lambda: plan.grad_weight(gx, gdy),
            }[product]
        self.time_gpu(work, product)

    def time_gpu(self, work: str, product: str) -> None:
        self.call()
        self.wait()
