"""The three products, by the algorithm that ``auto`` takes, by each algorithm, and on one thread and two."""

from __future__ import annotations

from .common import Timed, case, prepared

LAYERS = ("layer 3x3", "layer 1x1", "layer 3x3 /2", "layer depthwise")


class Forward(Timed):
    """``conv`` and ``convolve``."""

    params = (*LAYERS, "picture 3x3", "picture 15x15", "signal 32", "volume 3x3x3")
    param_names = ("work",)

    def setup(self, work: str) -> None:
        self.call = prepared(case(work))

    def time_forward(self, work: str) -> None:
        self.call()


class Gradients(Timed):
    """``conv_grad_input`` and ``conv_grad_weight``."""

    params = (LAYERS, ("grad_input", "grad_weight"))
    param_names = ("work", "gradient")

    def setup(self, work: str, gradient: str) -> None:
        self.call = prepared(case(work, gradient))

    def time_gradient(self, work: str, gradient: str) -> None:
        self.call()


class Algorithms(Timed):
    """The same work by every algorithm that can do it."""

    params = (("layer 3x3", "picture 15x15"), ("im2col", "implicit", "direct", "winograd", "fft"))
    param_names = ("work", "algorithm")

    def setup(self, work: str, algorithm: str) -> None:
        self.call = prepared(case(work), algorithm)

    def time_algorithm(self, work: str, algorithm: str) -> None:
        self.call()


class Threads(Timed):
    """The same work on one thread and on two."""

    params = (("layer 3x3", "picture 15x15"), (1, 2))
    param_names = ("work", "threads")

    def setup(self, work: str, threads: int) -> None:
        self.call = prepared(case(work), threads=threads)

    def time_threads(self, work: str, threads: int) -> None:
        self.call()


class Double(Timed):
    """In float64."""

    params = ("layer 3x3", "picture 15x15")
    param_names = ("work",)

    def setup(self, work: str) -> None:
        self.call = prepared(case(work), dtype="float64")

    def time_float64(self, work: str) -> None:
        self.call()
