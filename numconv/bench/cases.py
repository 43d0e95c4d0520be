"""The work as data: every case, what it costs at the least, and the goals that hold for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, get_args

import numpy as np

from ..geometry import conv_geometry

Layers = Literal["resnet50", "grad", "image", "1d", "3d", "matrices"]
LAYERS: tuple[str, ...] = get_args(Layers)

Kind = Literal[
    "conv", "grad_input", "grad_weight", "convolve", "im2col", "col2im", "kernel2row", "refill", "csr_matvec",
    "csr_rmatvec",
]


@dataclass(frozen=True)
class Case:
    """One piece of work. ``x`` and ``w`` are shapes: channelled, or plain for ``convolve``, whose mode is "same"."""

    name: str
    group: str
    kind: Kind
    x: tuple[int, ...]
    w: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    boundary: str = "constant"

    @property
    def geometry(self) -> dict[str, Any]:
        """The arguments that numconv and torch both know by these names."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def windows(self) -> dict[str, Any]:
        """The same for what knows no groups."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    @property
    def y(self) -> tuple[int, ...]:
        """The shape of the output."""
        return self.x if self.kind == "convolve" else conv_geometry(self.x, self.w, **self.geometry).output_shape

    @property
    def out(self) -> tuple[int, ...]:
        """The spatial shape of the output."""
        return self.y if self.kind == "convolve" else self.y[2:]

    @property
    def cols(self) -> tuple[int, ...]:
        """The shape of ``X_conv``."""
        return self.x[0], prod(self.w[1:]), prod(self.out)

    @property
    def arrays(self) -> dict[str, tuple[int, ...]]:
        """What the work reads."""
        inputs = {
            "conv": ("x", "w"), "convolve": ("x", "w"), "grad_input": ("dy", "w"), "grad_weight": ("x", "dy"),
            "im2col": ("x",), "col2im": ("cols",), "kernel2row": ("w",), "refill": ("w",),
            "csr_matvec": ("x", "w"), "csr_rmatvec": ("w", "dy"),
        }[self.kind]
        shapes = {"x": self.x, "w": self.w}
        shapes |= {"dy": self.y} if "dy" in inputs else {"cols": self.cols} if "cols" in inputs else {}
        return {name: shapes[name] for name in inputs}

    def data(self, dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
        """Random arrays, the same in every process."""
        rng = np.random.default_rng(seed)
        return {name: rng.standard_normal(shape, dtype=np.dtype(dtype)) for name, shape in self.arrays.items()}

    @property
    def flops(self) -> int:
        """Operations of the sums themselves, two for a multiply-add; 0 for what only moves data."""
        if self.kind == "convolve":
            return 2 * prod(self.x) * prod(self.w)
        return 2 * prod(self.y) * prod(self.w[1:]) if self.kind in ("conv", "grad_input", "grad_weight") else 0

    def nbytes(self, dtype: str) -> int:
        """Bytes that have to be read once and written once."""
        item = np.dtype(dtype).itemsize
        if self.kind in ("kernel2row", "refill", "csr_matvec", "csr_rmatvec"):
            values = prod(self.w[:2]) * prod(self._pairs(axis) for axis in range(len(self.out)))
            index = 0 if self.kind == "refill" else 4 * (prod(self.y) + values)
            vectors = prod(self.x) + prod(self.y) if self.kind.startswith("csr") else 0
            return item * (values + vectors) + index
        shapes = {
            "im2col": (self.x, self.cols), "col2im": (self.x, self.cols),
        }.get(self.kind) or (self.x, self.w, self.y)
        return item * sum(prod(shape) for shape in shapes)

    def _pairs(self, axis: int) -> int:
        """How many pairs of a tap and an output meet a pixel of the input and not padding, along one axis."""
        size, taps = self.x[2:][axis], self.w[2:][axis]
        pixels = np.arange(self.out[axis])[:, None] * self.stride - self.padding + np.arange(taps) * self.dilation
        return int(((pixels >= 0) & (pixels < size)).sum())


@dataclass(frozen=True)
class Goal:
    """How many times the peer's time over ours has to be: in each case, and as a geometric mean."""

    each: float | None = None
    mean: float | None = None


#: By group and rival. A rival is a way to do the work, such as OpenCV's filter2D.
GOALS = {
    ("3x3", "torch"): Goal(1.0, 1.4),
    ("other layers", "torch"): Goal(0.9, 1.15),
    ("input gradient", "torch"): Goal(0.9, 1.3),
    ("weight gradient", "torch"): Goal(0.9, 1.3),
    ("image", "opencv"): Goal(1.0, 1.3),
    ("image", "oaconvolve"): Goal(1.5),
    ("image", "ndimage"): Goal(8),
    ("image", "torch"): Goal(8),
    ("1d", "scipy"): Goal(1.0, 1.5),
    ("3d", "torch"): Goal(1.0, 1.2),
    ("im2col", "torch"): Goal(1.2, 2),
    ("col2im", "torch"): Goal(1.2, 2),
    ("kernel2row", "scipy"): Goal(10),
    ("kernel2row", "sparse_convolution"): Goal(10),
    ("csr_matvec", "scipy"): Goal(1.3),
    ("csr_rmatvec", "scipy"): Goal(4),
}


#: On a GPU, in float32: torch without TF32.
GPU_GOALS = {
    ("3x3", "torch"): Goal(0.65),
    ("other layers", "torch"): Goal(0.8),
    ("3x3", "cupy"): Goal(3),
    ("other layers", "cupy"): Goal(3),
    ("image", "cupyx csr"): Goal(8),
}

#: Images that a GPU gets for each of a layer's.
GPU_BATCH = 32


def goal(group: str, rival: str, dtype: str, device: str = "cpu") -> Goal:
    """The goal of a group beside a rival; in float64 all layers, images and gradients have one of their own."""
    if device == "cuda":
        return GPU_GOALS.get((group, rival), Goal()) if dtype == "float32" else Goal()
    if dtype == "float64" and rival == "torch" and group not in ("im2col", "col2im"):
        return Goal(0.9, 1.1)
    return GOALS.get((group, rival), Goal())


# the lists ----------------------------------------------------------------------------------------------------------


def by(size: Sequence[int]) -> str:
    """``56x56``."""
    return "x".join(map(str, size))


def layer(
    group: str, C: int, K: int, size: int, k: int, stride: int = 1, groups: int = 1, dilation: int = 1, N: int = 1,
    d: int = 2, kind: Kind = "conv",
) -> Case:
    """A layer of a network, padded so that stride 1 keeps the size; its name says all that is not the default."""
    channels = f"{C}ch" if C == K else f"{C}->{K}ch"
    grouped = "" if groups == 1 else "depthwise" if groups == C else f"{groups} groups"
    words = (
        by([k] * d), grouped, channels, by([size] * d), f"/{stride}" if stride > 1 else "",
        f"dilation {dilation}" if dilation > 1 else "", f"batch {N}" if N > 1 else "",
    )
    return Case(
        " ".join(filter(None, words)), group, kind, (N, C, *[size] * d), (K, C // groups, *[k] * d), stride,
        dilation * (k - 1) // 2, dilation, groups,
    )


def _resnet50() -> Iterable[Case]:
    for C, size, N in (
        (64, 56, 1), (128, 28, 1), (256, 14, 1), (64, 224, 1), (128, 112, 1), (64, 56, 8), (256, 14, 8),
    ):
        yield layer("3x3", C, C, size, 3, N=N)
    for C, K, size in ((64, 256, 56), (256, 64, 56), (512, 128, 28), (1024, 256, 14), (2048, 512, 7)):
        yield layer("other layers", C, K, size, 1)
    yield layer("other layers", 256, 512, 56, 1, stride=2)
    yield layer("other layers", 3, 64, 224, 7, stride=2)
    yield layer("other layers", 128, 128, 56, 3, stride=2)
    yield layer("other layers", 512, 512, 7, 3)
    yield layer("other layers", 3, 64, 224, 3)
    yield layer("other layers", 32, 32, 112, 3, groups=32)
    yield layer("other layers", 64, 64, 112, 3, groups=64, stride=2)
    yield layer("other layers", 512, 512, 14, 3, groups=512)
    yield layer("other layers", 240, 240, 28, 5, groups=240)
    yield layer("other layers", 128, 128, 56, 3, groups=32)
    yield layer("other layers", 256, 256, 28, 3, dilation=2)


def _grad() -> Iterable[Case]:
    gradients: tuple[tuple[str, Kind], ...] = ("input gradient", "grad_input"), ("weight gradient", "grad_weight")
    left_out = ("3x3 128ch 112x112", "3x3 256ch 14x14 batch 8", "1x1 256->64ch 56x56", "1x1 1024->256ch 14x14")
    for group, kind in gradients:
        for case in _resnet50():
            if case.name not in left_out:
                yield replace(case, group=group, kind=kind)


def _image() -> Iterable[Case]:
    sizes = {
        3: (512, 1024, 2048, 4096), 5: (1024, 2048), 7: (512, 2048), 9: (2048,), 11: (1024,), 15: (1024, 4096),
        21: (1024,), 31: (512, 1024), 63: (1024,),
    }
    for k, several in sizes.items():
        for size in several:
            yield Case(f"{by([k, k])} {by([size, size])}", "image", "convolve", (size, size), (k, k))
    for k, size in ((3, 2048), (7, 1024)):
        shapes = (size, size), (k, k)
        yield Case(f"{by([k, k])} {by([size, size])} reflect", "image", "convolve", *shapes, boundary="reflect")


def _1d() -> Iterable[Case]:
    for k in (8, 32, 128, 1024, 10_000):
        yield Case(f"1000000 samples, {k}", "1d", "convolve", (1_000_000,), (k,))


def _3d() -> Iterable[Case]:
    for C in (1, 16):
        for k in (3, 5):
            yield layer("3d", C, C, 64, k, d=3)


def _matrices() -> Iterable[Case]:
    windows: tuple[Kind, ...] = ("im2col", "col2im")
    for kind in windows:
        for C, size, k, stride, N in (
            (64, 56, 3, 1, 1), (256, 14, 3, 1, 1), (3, 224, 7, 2, 1), (1, 1024, 5, 1, 1), (128, 28, 3, 2, 8),
        ):
            yield layer(kind, C, C, size, k, stride, N=N, kind=kind)
    sparse: tuple[Kind, ...] = ("kernel2row", "refill", "csr_matvec", "csr_rmatvec")
    for kind in sparse:
        for C, K, size, k, stride in ((1, 1, 512, 3, 1), (1, 1, 256, 9, 1), (8, 16, 32, 3, 1), (3, 16, 64, 7, 2)):
            yield layer(kind, C, K, size, k, stride, kind=kind)
    full = layer("kernel2row", 1, 1, 128, 7, kind="kernel2row")
    yield replace(full, name=f"{full.name} full", padding=6)


_LISTS = {"resnet50": _resnet50, "grad": _grad, "image": _image, "1d": _1d, "3d": _3d, "matrices": _matrices}


def choose(layers: Iterable[str] = LAYERS, part: str = "", device: str = "cpu") -> list[Case]:
    """The cases of these layers whose group and name contain ``part``; a GPU's layers have ``GPU_BATCH`` images."""
    cases = [case for name in layers for case in _LISTS[name]()]
    if device == "cuda":
        cases = [with_images(case, GPU_BATCH) for case in cases]
    return [case for case in cases if part in f"{case.group} {case.name}"]


def with_images(case: Case, N: int) -> Case:
    """A layer of one image with ``N``; everything else as it is."""
    if case.kind not in ("conv", "grad_input", "grad_weight") or case.x[0] != 1:
        return case
    return replace(case, x=(N, *case.x[1:]), name=f"{case.name} batch {N}")
