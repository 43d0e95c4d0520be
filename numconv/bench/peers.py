"""One class for each library: it says which versions it runs on and prepares the calls that do a case.

A peer may have several rivals for one case (SciPy's ``oaconvolve`` and ``ndimage``), each rival several ways to do it
(torch's memory formats); of the ways of one rival only the fastest counts. What would take longer than ``PATIENCE``
is left out. Libraries are imported when a peer is made, in the process that is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from typing import Any

import numpy as np

from .cases import Case

Arrays = dict[str, np.ndarray]
Ways = dict[str, Callable[[], Any]]

#: Seconds that a call may take.
PATIENCE = 3.0


@dataclass(frozen=True)
class Settings:
    """What holds for every case of a run. ``device`` is "cpu"; there is no other yet."""

    dtype: str = "float32"
    threads: int = 1
    algorithm: str = "auto"
    device: str = "cpu"


class Numconv:
    """numconv itself, by its public functions."""

    def __init__(self, settings: Settings) -> None:
        import numconv

        self.nc, self.algorithm = numconv, settings.algorithm
        self.versions = {name: version(name) for name in ("numpy", "numba", "scipy")}
        self.versions["numconv"] = numconv.__version__

    def prepare(self, case: Case, data: Arrays) -> dict[str, Ways]:
        """One rival, "numconv", with one way, named by the algorithm."""
        nc, geometry = self.nc, case.geometry
        if case.kind == "convolve":
            x, w = data["x"], data["w"]
            options: dict[str, Any] = {"boundary": case.boundary, "algorithm": self.algorithm}
            plan = nc.plan_convolve(case.x, case.w, "same", dtype=x.dtype, **options)
            return {"numconv": {plan.algorithm: lambda: nc.convolve(x, w, "same", **options)}}
        dtype = next(iter(data.values())).dtype
        plan = nc.plan_conv(case.x, case.w, dtype=dtype, algorithm=self.algorithm, **geometry)
        geometry["algorithm"] = self.algorithm
        windows = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation, "flip": False}
        if case.kind == "conv":
            return {"numconv": {plan.algorithm: lambda: nc.conv(data["x"], data["w"], **geometry)}}
        if case.kind == "grad_input":
            call = lambda: nc.conv_grad_input(case.x, data["w"], data["dy"], **geometry)  # noqa: E731
            return {"numconv": {plan.algorithm: call}}
        if case.kind == "grad_weight":
            call = lambda: nc.conv_grad_weight(data["x"], case.w, data["dy"], **geometry)  # noqa: E731
            return {"numconv": {plan.algorithm: call}}
        if case.kind == "im2col":
            return {"numconv": {"": lambda: nc.im2col(data["x"], case.w[2:], **windows)}}
        if case.kind == "col2im":
            return {"numconv": {"": lambda: nc.col2im(data["cols"], case.x, case.w[2:], **windows)}}
        if case.kind == "kernel2row":
            return {"numconv": {"": lambda: plan.matrix(data["w"])}}
        matrix = plan.matrix(np.zeros(case.w, dtype))
        return {"numconv": {"": lambda: plan.refill(matrix, data["w"])}}


class Torch:
    """PyTorch: the better of contiguous and channels_last, gradients by ``torch.nn.grad``, ``unfold`` and ``fold``."""

    module = "torch"

    def __init__(self, settings: Settings) -> None:
        import torch

        self.torch = torch
        torch.set_num_threads(settings.threads)
        torch.set_grad_enabled(False)
        self.versions = {"torch": version("torch")}

    def prepare(self, case: Case, data: Arrays) -> dict[str, Ways]:
        """One rival; a way for each memory format."""
        torch, F = self.torch, self.torch.nn.functional
        tensors = {name: torch.from_numpy(a) for name, a in data.items()}
        if case.kind == "convolve":
            return self._filter(case, tensors["x"], tensors["w"])
        if case.kind in ("im2col", "col2im"):
            windows = (case.w[2:], case.dilation, case.padding, case.stride)
            if case.kind == "im2col":
                return {"torch": {"unfold": lambda: F.unfold(tensors["x"], *windows)}}
            return {"torch": {"fold": lambda: F.fold(tensors["cols"], case.x[2:], *windows)}}
        if case.kind not in ("conv", "grad_input", "grad_weight"):
            return {}
        d = len(case.out)
        formats = {"contiguous": torch.contiguous_format}
        formats |= {2: {"channels_last": torch.channels_last}, 3: {"channels_last": torch.channels_last_3d}}.get(d, {})
        return {"torch": {name: self._layer(case, tensors, d, format) for name, format in formats.items()}}

    def _layer(self, case: Case, tensors: dict[str, Any], d: int, format: Any) -> Callable[[], Any]:
        F, grad, geometry = self.torch.nn.functional, self.torch.nn.grad, case.geometry
        t = {name: tensor.contiguous(memory_format=format) for name, tensor in tensors.items()}
        if case.kind == "conv":
            conv = getattr(F, f"conv{d}d")
            return lambda: conv(t["x"], t["w"], **geometry)
        if case.kind == "grad_input":
            conv_input = getattr(grad, f"conv{d}d_input")
            return lambda: conv_input(case.x, t["w"], t["dy"], **geometry)
        conv_weight = getattr(grad, f"conv{d}d_weight")
        return lambda: conv_weight(t["x"], case.w, t["dy"], **geometry)

    def _filter(self, case: Case, x: Any, w: Any) -> dict[str, Ways]:
        if x.ndim != 2 or case.flops * 1.5e-9 > PATIENCE:
            return {}
        F = self.torch.nn.functional
        image, kernel = x[None, None], w.flip(0, 1)[None, None]
        margin = case.w[0] // 2
        if case.boundary == "constant":
            return {"torch": {"": lambda: F.conv2d(image, kernel, padding=margin)[0, 0]}}
        padding = [margin] * 4
        return {"torch": {"": lambda: F.conv2d(F.pad(image, padding, mode=case.boundary), kernel)[0, 0]}}


class Scipy:
    """SciPy and NumPy: ``oaconvolve``, ``ndimage``, ``numpy.convolve``, and sparse matrices from triples."""

    module = "scipy"

    def __init__(self, settings: Settings) -> None:
        import scipy.fft
        import scipy.ndimage
        import scipy.signal
        import scipy.sparse

        self.scipy = scipy
        self.threads = settings.threads
        self.versions = {name: version(name) for name in ("numpy", "scipy")}

    def prepare(self, case: Case, data: Arrays) -> dict[str, Ways]:
        """``oaconvolve`` and ``ndimage`` are rivals for images; for a line the better of what there is."""
        if case.kind == "convolve":
            return self._filter(case, data["x"], data["w"])
        if case.kind == "kernel2row":
            rows, columns, weights, shape = triples(case)
            values = data["w"].ravel()[weights]
            coo = self.scipy.sparse.coo_array
            return {"scipy": {"coo.tocsr": lambda: coo((values, (rows, columns)), shape).tocsr()}}
        if case.kind == "refill":
            rows, columns, weights, shape = triples(case)
            matrix = self.scipy.sparse.coo_array((np.zeros(len(rows), data["w"].dtype), (rows, columns)), shape).tocsr()
            flat = data["w"].ravel()

            def refill() -> Any:
                np.take(flat, weights, out=matrix.data, mode="clip")  # "raise" would go through a buffer
                return matrix

            return {"scipy": {"take": refill}}
        return {}

    def _filter(self, case: Case, x: np.ndarray, w: np.ndarray) -> dict[str, Ways]:
        signal, fft = self.scipy.signal, self.scipy.fft

        def oaconvolve() -> np.ndarray:
            with fft.set_workers(self.threads):
                return signal.oaconvolve(x, w, "same")

        if x.ndim == 1:
            quick = case.flops * 0.15e-9 < PATIENCE
            plain: Ways = {"numpy.convolve": lambda: np.convolve(x, w, "same")} if quick else {}
            return {"scipy": {**plain, "oaconvolve": oaconvolve}}
        rivals: dict[str, Ways] = {"oaconvolve": {"": oaconvolve}} if case.boundary == "constant" else {}
        if case.flops * 0.5e-9 < PATIENCE:
            mode = {"constant": "constant", "reflect": "mirror"}[case.boundary]
            rivals["ndimage"] = {"": lambda: self.scipy.ndimage.convolve(x, w, mode=mode)}
        return rivals


class OpenCV:
    """OpenCV's ``filter2D``."""

    module = "cv2"

    def __init__(self, settings: Settings) -> None:
        import cv2

        self.cv2 = cv2
        cv2.setNumThreads(settings.threads)
        self.versions = {"opencv": cv2.__version__}

    def prepare(self, case: Case, data: Arrays) -> dict[str, Ways]:
        """Images only; ``filter2D`` correlates, so the kernel is turned beforehand."""
        cv2 = self.cv2
        if case.kind != "convolve" or len(case.x) != 2:
            return {}
        x, kernel = data["x"], np.ascontiguousarray(data["w"][::-1, ::-1])
        border = {"constant": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101}[case.boundary]
        return {"opencv": {"filter2D": lambda: cv2.filter2D(x, -1, kernel, borderType=border)}}


PEERS = {"torch": Torch, "scipy": Scipy, "opencv": OpenCV}


def triples(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
    """Row, column and place in the kernel of every entry of ``W_conv`` (groups 1), in CSR's order, and its shape."""
    size, kernel, d = case.x[2:], case.w[2:], len(case.out)
    inside, pixel = np.ones((), bool), np.zeros((), np.int32)
    for axis in range(d):  # position[o, t] of output o and tap t, along axes (K, *out, C, *k)
        at = np.arange(case.out[axis])[:, None] * case.stride - case.padding + np.arange(kernel[axis]) * case.dilation
        shape = [1] * (2 * d + 2)
        shape[1 + axis], shape[2 + d + axis] = at.shape
        at = at.astype(np.int32).reshape(shape)
        inside, pixel = inside & (at >= 0) & (at < size[axis]), pixel * size[axis] + at
    K, C = case.w[:2]
    whole = (K, *case.out, C, *kernel)
    channel = np.arange(C, dtype=np.int32).reshape(C, *[1] * d)
    rows = np.arange(K * prod(case.out), dtype=np.int32).reshape(K, *case.out, *[1] * (d + 1))
    weights = np.arange(prod(case.w)).reshape(K, *[1] * d, C, *kernel)
    inside = np.broadcast_to(inside, whole)
    rows, columns, weights = (
        np.broadcast_to(a, whole)[inside] for a in (rows, channel * np.int32(prod(size)) + pixel, weights)
    )
    return rows, columns, weights, (K * prod(case.out), C * prod(size))
