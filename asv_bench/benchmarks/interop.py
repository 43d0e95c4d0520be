"""A layer inside other libraries; each skips where its library is missing."""

from importlib import import_module

import numpy as np

import numconv as nc


def library(name):
    """A room of ``numconv.interop``, or asv's word for skipping."""
    try:
        return import_module(f"numconv.interop.{name}")
    except ImportError:
        raise NotImplementedError(f"{name} is not installed") from None


class Torch:
    """Forward and both gradients through autograd."""

    def setup(self):
        self.room = library("torch")
        torch = self.room.torch
        self.x = torch.rand(4, 32, 28, 28, requires_grad=True)
        self.w = torch.rand(32, 32, 3, 3, requires_grad=True)
        self.time_forward_and_backward()

    def time_forward_and_backward(self):
        self.room.conv2d(self.x, self.w, None, 1, 1).sum().backward()


class Autograd:
    """The gradient to the kernel by HIPS autograd."""

    def setup(self):
        self.room = library("autograd")
        rng = np.random.default_rng(0)
        self.x, self.w = rng.random((4, 32, 28, 28), dtype="f4"), rng.random((32, 32, 3, 3), dtype="f4")
        self.gradient = import_module("autograd").grad(lambda w: self.room.conv2d(self.x, w, None, 1, 1).sum())
        self.time_gradient()

    def time_gradient(self):
        self.gradient(self.w)


class PyLops:
    """Product and adjoint of a PyLops operator."""

    def setup(self):
        plan = nc.plan_convolve((512, 512), (7, 7), "same", dtype=float)
        self.C = library("pylops").Conv(plan, np.random.default_rng(0).random((7, 7)))
        self.x = np.ones(self.C.shape[1])
        self.time_product_and_adjoint()

    def time_product_and_adjoint(self):
        self.C.rmatvec(self.C.matvec(self.x))
