"""One class for each library, with a method for each kind of work that the library can do.

Such a method takes the case and its arrays and gives the calls to time, as ``{rival: {way: call}}``. A peer may be
several rivals (SciPy's ``oaconvolve`` and ``ndimage``); of the ways of one rival (torch's memory formats) the quickest
counts. What would take longer than ``PATIENCE`` is left out. A peer is made, and its library imported, in a process of
its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from math import prod
from typing import Any

import numpy as np

from .cases import Case

Array = np.ndarray
Rivals = dict[str, dict[str, Callable[[], Any]]]

#: Seconds that a call may take.
PATIENCE = 3.0


@dataclass(frozen=True)
class Settings:
    """What holds for every case of a run. ``device`` is "cpu" or "cuda"."""

    dtype: str = "float32"
    threads: int = 1
    algorithm: str = "auto"
    device: str = "cpu"


class Peer:
    """A library. ``module`` says whether it is installed; ``versions`` says what it runs on."""

    module: str
    versions: dict[str, str]

    def fetch(self, array: Any) -> Array:
        """A result as a NumPy array."""
        return np.asarray(array)

    def seconds(self, call: Callable[[], Any]) -> float:
        """The time of one call."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def prepare(self, case: Case, data: dict[str, Array]) -> Rivals:
        """The calls that do a case; none if the library cannot."""
        kind = getattr(self, case.kind, None)
        return kind(case, **data) if kind else {}


class Numconv(Peer):
    """numconv itself, by its public functions: one rival, and one way, which is the algorithm."""

    module = "numconv"
    device = "cpu"

    def __init__(self, settings: Settings) -> None:
        import numconv

        self.nc, self.algorithm = numconv, settings.algorithm
        self.versions = {name: version(name) for name in ("numpy", "numba")} | {"numconv": numconv.__version__}

    def dtype_of(self, array: Any) -> np.dtype:
        """As NumPy calls it."""
        dtype: np.dtype = array.dtype
        return dtype

    def _plan(self, case: Case, array: Any) -> Any:
        options: dict[str, Any] = {"algorithm": self.algorithm, "device": self.device, **case.geometry}
        return self.nc.plan_conv(case.x, case.w, dtype=self.dtype_of(array), **options)

    def _product(self, case: Case, function: Any, *arguments: Any) -> Rivals:
        call = partial(function, *arguments, algorithm=self.algorithm, **case.geometry)
        choice = self._plan(case, arguments[-1]).choice._asdict()  # each product has its own
        return {"numconv": {choice.get(case.kind, choice["forward"]): call}}

    def conv(self, case: Case, x: Array, w: Array) -> Rivals:
        """``conv``."""
        return self._product(case, self.nc.conv, x, w)

    def grad_input(self, case: Case, dy: Array, w: Array) -> Rivals:
        """``conv_grad_input``."""
        return self._product(case, self.nc.conv_grad_input, case.x, w, dy)

    def grad_weight(self, case: Case, x: Array, dy: Array) -> Rivals:
        """``conv_grad_weight``."""
        return self._product(case, self.nc.conv_grad_weight, x, case.w, dy)

    def convolve(self, case: Case, x: Array, w: Array) -> Rivals:
        """``convolve``."""
        options: dict[str, Any] = {"boundary": case.boundary, "algorithm": self.algorithm}
        plan = self.nc.plan_convolve(
            case.x, case.w, "same", dtype=self.dtype_of(x), device=self.device, **options
        )  # fmt: skip
        return {"numconv": {plan.algorithm: partial(self.nc.convolve, x, w, "same", **options)}}

    def im2col(self, case: Case, x: Array) -> Rivals:
        """``im2col``, not turned."""
        return {"numconv": {"": partial(self.nc.im2col, x, case.w[2:], flip=False, **case.windows)}}

    def col2im(self, case: Case, cols: Array) -> Rivals:
        """``col2im``, not turned."""
        return {"numconv": {"": partial(self.nc.col2im, cols, case.x, case.w[2:], flip=False, **case.windows)}}

    def kernel2row(self, case: Case, w: Array) -> Rivals:
        """The matrix from a plan."""
        return {"numconv": {"": partial(self._plan(case, w).matrix, w)}}

    def refill(self, case: Case, w: Array) -> Rivals:
        """New weights into a matrix of zeros."""
        plan = self._plan(case, w)
        return {"numconv": {"": partial(plan.refill, plan.matrix(0 * w), w)}}

    def csr_matvec(self, case: Case, x: Array, w: Array) -> Rivals:
        """``csr_matvec`` of a matrix from a plan."""
        return {"numconv": {"": partial(self.nc.csr_matvec, *parts(self._plan(case, w).matrix(w)), x.ravel())}}

    def csr_rmatvec(self, case: Case, w: Array, dy: Array) -> Rivals:
        """``csr_rmatvec`` of a matrix from a plan."""
        A, columns = parts(self._plan(case, w).matrix(w)), prod(case.x[1:])
        return {"numconv": {"": partial(self.nc.csr_rmatvec, *A, dy.ravel(), columns)}}


def parts(matrix: Any) -> tuple[Any, Any, Any]:
    """The triple of a CSR matrix, or the triple itself."""
    return matrix if isinstance(matrix, tuple) else (matrix.data, matrix.indices, matrix.indptr)


class Torch(Peer):
    """PyTorch: a way for each memory format, gradients by ``torch.nn.grad``, ``unfold`` and ``fold``."""

    module = "torch"

    def __init__(self, settings: Settings) -> None:
        import torch

        self.torch: Any = torch
        self.F = torch.nn.functional
        torch.set_num_threads(settings.threads)
        self.versions = {"torch": version("torch")}
        self.tensor: Callable[[Array], Any] = torch.from_numpy

    def _layer(self, case: Case, library: Any, name: str, *arguments: Any) -> Rivals:
        """``library.conv1d…`` with the arrays among the arguments in every memory format."""
        torch, d = self.torch, len(case.out)
        formats = {"contiguous": torch.contiguous_format}
        if d in (2, 3):
            formats["channels_last"] = torch.channels_last if d == 2 else torch.channels_last_3d
        function = getattr(library, name.format(d))
        ways: dict[str, Callable[[], Any]] = {}
        for way, memory_format in formats.items():
            tensors = [
                self.tensor(a).contiguous(memory_format=memory_format) if isinstance(a, Array) else a
                for a in arguments
            ]
            ways[way] = partial(function, *tensors, **case.geometry)
        return {"torch": ways}

    def conv(self, case: Case, x: Array, w: Array) -> Rivals:
        """``conv1d/2d/3d``."""
        return self._layer(case, self.F, "conv{}d", x, w)

    def grad_input(self, case: Case, dy: Array, w: Array) -> Rivals:
        """``conv1d/2d/3d_input``."""
        return self._layer(case, self.torch.nn.grad, "conv{}d_input", case.x, w, dy)

    def grad_weight(self, case: Case, x: Array, dy: Array) -> Rivals:
        """``conv1d/2d/3d_weight``."""
        return self._layer(case, self.torch.nn.grad, "conv{}d_weight", x, case.w, dy)

    def convolve(self, case: Case, x: Array, w: Array) -> Rivals:
        """Images with odd kernels by ``conv2d``, which does not turn the kernel."""
        if x.ndim != 2 or case.flops * 1e-9 > PATIENCE:
            return {}
        F, margin = self.F, case.w[0] // 2
        image, kernel = self.tensor(x)[None, None], self.tensor(w).flip(0, 1)[None, None]
        if case.boundary == "constant":
            return {"torch": {"": lambda: F.conv2d(image, kernel, padding=margin)[0, 0]}}
        return {"torch": {"": lambda: F.conv2d(F.pad(image, [margin] * 4, mode=case.boundary), kernel)[0, 0]}}

    def im2col(self, case: Case, x: Array) -> Rivals:
        """``unfold``."""
        image = self.tensor(x)
        return {"torch": {"": partial(self.F.unfold, image, case.w[2:], **case.windows)}}

    def col2im(self, case: Case, cols: Array) -> Rivals:
        """``fold``."""
        columns = self.tensor(cols)
        return {"torch": {"": partial(self.F.fold, columns, case.x[2:], case.w[2:], **case.windows)}}


class Scipy(Peer):
    """SciPy and NumPy: ``oaconvolve``, ``ndimage``, ``numpy.convolve``, and sparse matrices from triples."""

    module = "scipy"

    def __init__(self, settings: Settings) -> None:
        import scipy.fft
        import scipy.ndimage
        import scipy.signal
        import scipy.sparse

        self.scipy, self.threads = scipy, settings.threads
        self.versions = {name: version(name) for name in ("numpy", "scipy")}

    def convolve(self, case: Case, x: Array, w: Array) -> Rivals:
        """``oaconvolve`` and ``ndimage`` are rivals for images; for a line the better of what there is."""

        def oaconvolve() -> Array:
            with self.scipy.fft.set_workers(self.threads):
                return self.scipy.signal.oaconvolve(x, w, "same")

        if x.ndim == 1:
            line: dict[str, Callable[[], Array]] = {"oaconvolve": oaconvolve}
            if case.flops * 0.15e-9 < PATIENCE:
                line["numpy.convolve"] = partial(np.convolve, x, w, "same")
            return {"scipy": line}
        rivals: Rivals = {"oaconvolve": {"": oaconvolve}} if case.boundary == "constant" else {}
        if case.flops * 0.5e-9 < PATIENCE:
            mode = {"constant": "constant", "reflect": "mirror"}[case.boundary]
            rivals["ndimage"] = {"": partial(self.scipy.ndimage.convolve, x, w, mode=mode)}
        return rivals

    def kernel2row(self, case: Case, w: Array) -> Rivals:
        """The triples are given, only the sparse matrix is built from them."""
        rows, columns, places, shape = triples(case)
        values, coo = w.ravel()[places], self.scipy.sparse.coo_array
        return {"scipy": {"coo to csr": lambda: coo((values, (rows, columns)), shape).tocsr()}}

    def refill(self, case: Case, w: Array) -> Rivals:
        """``take`` by the place in the kernel of every entry, which is given."""
        matrix, places = self._matrix(case, np.zeros_like(w)), triples(case)[2]

        def refill() -> Any:
            np.take(w.ravel(), places, out=matrix.data, mode="clip")  # "raise" would go through a buffer
            return matrix

        return {"scipy": {"take": refill}}

    def csr_matvec(self, case: Case, x: Array, w: Array) -> Rivals:
        """``A @ x``."""
        matrix, x = self._matrix(case, w), x.ravel()
        return {"scipy": {"": lambda: matrix @ x}}

    def csr_rmatvec(self, case: Case, w: Array, dy: Array) -> Rivals:
        """``A.T @ y``."""
        matrix, dy = self._matrix(case, w), dy.ravel()
        return {"scipy": {"": lambda: matrix.T @ dy}}

    def _matrix(self, case: Case, w: Array) -> Any:
        rows, columns, places, shape = triples(case)
        return self.scipy.sparse.coo_array((w.ravel()[places], (rows, columns)), shape).tocsr()


class OpenCV(Peer):
    """OpenCV's ``filter2D``."""

    module = "cv2"

    def __init__(self, settings: Settings) -> None:
        import cv2

        self.cv2 = cv2
        cv2.setNumThreads(settings.threads)
        self.versions = {"opencv": cv2.__version__}

    def convolve(self, case: Case, x: Array, w: Array) -> Rivals:
        """Images with odd kernels; ``filter2D`` correlates, so the kernel is turned beforehand."""
        if x.ndim != 2:
            return {}
        cv2, kernel = self.cv2, np.ascontiguousarray(w[::-1, ::-1])
        border = {"constant": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101}[case.boundary]
        return {"opencv": {"": partial(cv2.filter2D, x, -1, kernel, borderType=border)}}


class SparseConvolution(Peer):
    """The package sparse_convolution: the matrix of a full convolution of one channel."""

    module = "sparse_convolution"

    def __init__(self, settings: Settings) -> None:
        from sparse_convolution import Toeplitz_convolution2d

        self.make = Toeplitz_convolution2d
        self.versions = {"sparse_convolution": version("sparse_convolution")}

    def kernel2row(self, case: Case, w: Array) -> Rivals:
        """Its matrix convolves, so the kernel is turned beforehand."""
        full = all(size == case.padding + 1 for size in case.w[2:])
        if case.w[:2] != (1, 1) or len(case.out) != 2 or not full or case.stride != 1 or case.dilation != 1:
            return {}
        kernel = np.ascontiguousarray(w[0, 0, ::-1, ::-1])
        build = partial(self.make, case.x[2:], kernel, mode="full", dtype=w.dtype, method="precomputed")
        return {"sparse_convolution": {"": lambda: build()._dt}}


PEERS: dict[str, type[Any]] = {
    "torch": Torch, "scipy": Scipy, "opencv": OpenCV, "sparse_convolution": SparseConvolution,
}

#: Who takes part on a GPU, each by the module of its name.
GPU_PEERS = ("torch", "cupy")


def triples(case: Case) -> tuple[Array, Array, Array, tuple[int, int]]:
    """Row, column and place in the kernel of every entry of ``W_conv`` (one group), in CSR's order, and its shape."""
    (K, C, *kernel), out, size, d = case.w, case.out, case.x[2:], len(case.out)
    inside, pixel = np.ones((), bool), np.zeros((), np.int32)
    for axis in range(d):  # at[o, t]: where tap t of output o lies; all arrays have the axes (K, *out, C, *kernel)
        at = np.arange(out[axis])[:, None] * case.stride - case.padding + np.arange(kernel[axis]) * case.dilation
        shape = [1] * (2 * d + 2)
        shape[1 + axis], shape[2 + d + axis] = at.shape
        at = at.astype(np.int32).reshape(shape)
        inside, pixel = inside & (at >= 0) & (at < size[axis]), pixel * size[axis] + at
    rows = np.arange(K * prod(out), dtype=np.int32).reshape(K, *out, *[1] * (d + 1))
    columns = np.arange(C, dtype=np.int32).reshape(C, *[1] * d) * np.int32(prod(size)) + pixel
    places = np.arange(prod(case.w)).reshape(K, *[1] * d, C, *kernel)
    whole = (K, *out, C, *kernel)
    entries = np.broadcast_to(inside, whole)
    rows, columns, places = (np.broadcast_to(a, whole)[entries] for a in (rows, columns, places))
    return rows, columns, places, (K * prod(out), C * prod(size))
