"""The tour: a photograph filtered and differentiated, handwriting learned, all of it checked, timed and drawn.

``python -m numconv`` runs it. The code is written as a user of numconv would write it, to be read and borrowed from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import numconv as nc

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

    from .select import Algorithm

Array = np.ndarray

ALGORITHMS: tuple[Algorithm, ...] = ("im2col", "kernel2row", "implicit")
LONGEST_SIDE = 640  # pixels; W_conv of a 7x7 kernel over 640 x 640 of them takes 240 MB
EPOCHS, BATCH, RATE = 24, 32, 0.06


def gaussian(size: int, sigma: float) -> Array:
    """A bell of ``size x size`` values that sum to one."""
    bell = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / sigma) ** 2)
    return np.outer(bell, bell) / bell.sum() ** 2


FILTERS: dict[str, Array] = {
    "Gaussian blur": gaussian(7, 2),
    "Sobel edges": np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]]),  # turned, it is right minus left
    "sharpen": np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
}


@dataclass(frozen=True)
class Agreement:
    """Two ways to the same numbers: how far apart they came out, and how far rounding can take them."""

    what: str
    difference: float
    bound: float

    @property
    def ok(self) -> bool:
        """Whether rounding explains the difference; a NaN is not explained."""
        return self.difference <= self.bound

    def __str__(self) -> str:
        verdict = "agree" if self.ok else "DO NOT AGREE"
        return f"{self.what:27}{self.difference:9.1e} apart, rounding allows {self.bound:.1e}: {verdict}"


@dataclass(frozen=True)
class TourResult:
    """What the tour found: every comparison, the learning curve, the seconds of each step, where the picture is."""

    agreements: list[Agreement]
    losses: list[float]
    accuracies: list[float]
    seconds: dict[str, float]
    picture: Path

    @property
    def ok(self) -> bool:
        """Whether everything that was compared agrees."""
        return all(agreement.ok for agreement in self.agreements)

    @property
    def accuracy(self) -> float:
        """Share of the held-out digits that the network names rightly after the last epoch."""
        return self.accuracies[-1]


@contextmanager
def timed(step: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the time that a ``with`` block takes to ``seconds[step]``."""
    start = time.perf_counter()
    yield
    seconds[step] = seconds.get(step, 0) + time.perf_counter() - start


# the photograph -----------------------------------------------------------------------------------------------------


def load_photograph(file: str | Path | None = None) -> tuple[Array, Array]:
    """A photograph as it is shown, and its grey values from 0 to 1; without a file, scikit-learn's ``china.jpg``."""
    from PIL import Image, ImageOps
    from sklearn.datasets import load_sample_image

    picture = ImageOps.exif_transpose(Image.open(file) if file else Image.fromarray(load_sample_image("china.jpg")))
    picture = picture.convert("F" if picture.mode[0] in "IF" else "RGB")  # "I" and "F": grey of more than 8 bits
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    shown = np.asarray(picture, np.float64)
    shown = shown / max(shown.max(), 1)
    return shown, shown if shown.ndim == 2 else shown @ [0.299, 0.587, 0.114]  # as bright as it looks


def compare(what: str, one: Array, other: Array, terms: int, size: Any) -> Agreement:
    """Compare two sums of ``terms`` products; ``size`` is the sum of their absolute values, which bounds rounding."""
    eps = float(np.finfo(one.dtype).eps)
    return Agreement(what, float(np.abs(one - other).max()), terms * eps * float(np.max(size)))


def filter_photograph(x: Array, seconds: dict[str, float]) -> tuple[dict[str, Array], list[Agreement]]:
    """Filter the photograph by every algorithm: the results, and whether the algorithms agree."""
    filtered, agreements = {}, []
    for name, kernel in FILTERS.items():
        w, ways = kernel.astype(x.dtype), []
        for algorithm in ALGORITHMS:
            with timed(f"filters by {algorithm}", seconds):
                ways.append(nc.convolve(x, w, "same", boundary="symmetric", algorithm=algorithm))
        size = np.abs(w).sum() * np.abs(x).max()
        agreements.append(compare(f"{name} {len(w)}x{len(w)}", np.stack(ways[1:]), ways[0], w.size, size))
        filtered[name] = ways[0]
    return filtered, agreements


def check_gradients(x: Array, w: Array, dY: Array) -> list[Agreement]:
    """Both gradients of ``Y = w * x`` as products with the two matrices, against those that need no matrix."""
    plan = nc.plan_convolve(x.shape, w.shape, dtype=x.dtype)
    X_conv, W_conv, dY_flat = plan.im2col(x), plan.matrix(w), dY.ravel()
    Y, dW, dX = plan.forward(x, w), plan.grad_weight(x, dY), plan.grad_input(dY, w)

    dW_size, dX_size = np.abs(dY_flat) @ np.abs(X_conv).T, abs(W_conv).T @ np.abs(dY_flat)
    size, terms = dX_size @ np.abs(x.ravel()), dY.size + w.size
    return [
        compare("dW = dY_flat @ X_conv.T", dW.ravel(), dY_flat @ X_conv.T, dY.size, dW_size),
        compare("dX = W_conv.T @ dY_flat", dX.ravel(), W_conv.T @ dY_flat, w.size, dX_size),
        compare("sum dY·Y = sum dX·X", np.vdot(dY, Y), np.vdot(dX, x), terms, size),
        compare("sum dY·Y = sum dW·W", np.vdot(dY, Y), np.vdot(dW, w), terms, size),
    ]


# the network --------------------------------------------------------------------------------------------------------


class Conv:
    """A layer: ``y = conv2d(x, w, b)``, its gradients, and a step of gradient descent with momentum."""

    def __init__(self, rng: np.random.Generator, C: int, K: int, k: int, **geometry: Any) -> None:
        he = np.sqrt(2 / (C * k * k))  # values keep their size from layer to layer
        self.w = he * rng.standard_normal((K, C, k, k))
        self.b = np.zeros(K)
        self.velocity = np.zeros_like(self.w), np.zeros_like(self.b)
        self.geometry = geometry

    def forward(self, x: Array) -> Array:
        self.x = x
        return nc.conv2d(x, self.w, self.b, **self.geometry)

    def backward(self, dy: Array) -> Array:
        self.dw = nc.conv_grad_weight(self.x, self.w.shape, dy, **self.geometry)
        self.db = dy.sum(axis=(0, 2, 3))
        return nc.conv_grad_input(self.x.shape, self.w, dy, **self.geometry)

    def descend(self, rate: float, momentum: float = 0.9) -> None:
        for p, v, dp in zip((self.w, self.b), self.velocity, (self.dw, self.db), strict=True):
            v *= momentum
            v -= rate * dp
            p += v


class ReLU:
    """A layer without weights: what is negative becomes zero."""

    def forward(self, x: Array) -> Array:
        self.on = x > 0
        return x * self.on

    def backward(self, dy: Array) -> Array:
        return dy * self.on

    def descend(self, rate: float) -> None:
        """There is nothing to learn."""


class Network:
    """Convolutions all the way: one with a stride halves the image, one as large as its input is a dense layer."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.layers: list[Conv | ReLU] = [
            Conv(rng, 1, 16, 5, padding=2),  # (N, 1, 8, 8) -> (N, 16, 8, 8)
            ReLU(),
            Conv(rng, 16, 32, 3, padding=1, stride=2),  # -> (N, 32, 4, 4)
            ReLU(),
            Conv(rng, 32, 10, 4),  # -> (N, 10, 1, 1): a score for each digit
        ]

    def forward(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer.forward(x)
        return x[:, :, 0, 0]

    def backward(self, dy: Array) -> None:
        dy = dy[:, :, None, None]
        for layer in reversed(self.layers):
            dy = layer.backward(dy)

    def descend(self, rate: float) -> None:
        for layer in self.layers:
            layer.descend(rate)


def cross_entropy(scores: Array, labels: Array) -> tuple[float, Array]:
    """The softmax cross-entropy, averaged over the batch, and its gradient."""
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    named = np.arange(len(labels)), labels
    loss = -np.log(p[named]).mean()
    p[named] -= 1
    return float(loss), p / len(labels)


def shifted(x: Array, rng: np.random.Generator) -> Array:
    """Every image moved by up to a pixel each way: where a digit stands must not matter."""
    windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), x.shape[2:], axis=(2, 3))
    i, j = rng.integers(0, 3, size=(2, len(x)))
    return windows[np.arange(len(x)), :, i, j]


def train(
    network: Network, x: Array, labels: Array, held_out: tuple[Array, Array], epochs: int, rng: np.random.Generator
) -> tuple[list[float], list[float]]:
    """Train on ``x`` alone; for each epoch its mean loss, and the share of ``held_out`` named rightly after it."""
    from tqdm import trange

    losses, accuracies = [], []
    with trange(epochs, unit="epoch", leave=False, disable=None) as bar:  # None: silent unless on a terminal
        for epoch in bar:
            batches, total = np.array_split(rng.permutation(len(x)), len(x) // BATCH), 0.0
            for i, batch in enumerate(batches):
                loss, dy = cross_entropy(network.forward(shifted(x[batch], rng)), labels[batch])
                network.backward(dy)
                network.descend(RATE * (1 - (epoch + i / len(batches)) / epochs))
                total += loss * len(batch)
            losses.append(total / len(x))
            accuracies.append(float((network.forward(held_out[0]).argmax(axis=1) == held_out[1]).mean()))
            bar.set_postfix_str(f"loss {losses[-1]:.3f}, {accuracies[-1]:.1%} right")
    return losses, accuracies


def load_handwriting(seed: int) -> tuple[Array, Array, Array, Array]:
    """scikit-learn's 1797 digits as ``(N, 1, 8, 8)``: to train on and held out, then the labels of both."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = digits.images[:, None] / 16  # float64 as the photograph is: one of each kernel to compile
    return tuple(train_test_split(x, digits.target, test_size=0.25, stratify=digits.target, random_state=seed))


# the picture --------------------------------------------------------------------------------------------------------


def draw(
    photograph: Array, filtered: dict[str, Array], losses: list[float], accuracies: list[float], kernels: Array
) -> Figure:
    """Photographs above; below, the two matrices of a small case, the learning curve and what was learned."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context({"font.size": 9, "axes.titlesize": 10}):
        figure: Any = Figure(figsize=(13, 7.6), dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
        above, below = figure.subfigures(2, 1, height_ratios=[1, 2])
        left, middle, right = below.subfigures(1, 3, width_ratios=[1.4, 1, 1])
        draw_photographs(above, {"the photograph": photograph, **filtered})
        nc.plan_convolve((8, 8), (3, 3)).explain().plot(left.subplots(2, 1, height_ratios=[1, 3]))
        draw_learning(middle, losses, accuracies)
        draw_kernels(right, kernels[:, 0])
    return figure


def draw_photographs(figure: SubFigure, images: dict[str, Array]) -> None:
    """Images in a row; a derivative has values on both sides of a middle grey."""
    for ax, (title, image) in zip(figure.subplots(1, len(images)), images.items(), strict=True):
        derivative = title in FILTERS and FILTERS[title].sum() == 0
        reach = np.quantile(np.abs(image), 0.98) if derivative else 1
        ax.imshow(image, cmap="gray", vmin=-reach if derivative else 0, vmax=reach)
        ax.set_title(title)
        ax.axis("off")


def draw_learning(figure: SubFigure, losses: list[float], accuracies: list[float]) -> None:
    """The loss in training above the accuracy on digits that were held out."""
    above, below = figure.subplots(2, 1, sharex=True)
    epochs, percent = range(1, len(losses) + 1), 100 * np.array(accuracies)
    above.semilogy(epochs, losses, color="#0072B2", marker=".")
    above.set(title="learning handwritten digits", ylabel="loss in training")
    below.plot(epochs, percent, color="#D55E00", marker=".")
    below.set(ylabel="held-out digits right (%)", xlabel="epoch")
    below.text(0.98, 0.06, f"{percent[-1]:.1f} % after the last epoch", ha="right", transform=below.transAxes)
    for ax in (above, below):
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)


def draw_kernels(figure: SubFigure, kernels: Array) -> None:
    """The sixteen kernels of the first layer on one scale: red above zero, blue below."""
    tiles = np.pad(kernels, ((0, 0), (1, 0), (1, 0)), constant_values=np.nan)  # a gap above and left of each
    mosaic = tiles.reshape(4, 4, *tiles.shape[1:]).swapaxes(1, 2).reshape(4 * tiles.shape[1], -1)[1:, 1:]
    reach, ax = float(np.abs(kernels).max()), figure.subplots()
    ax.set_anchor("N")
    image = ax.imshow(mosaic, cmap="RdBu_r", vmin=-reach, vmax=reach)
    ax.set_title("kernels of the first layer, as learned")
    ax.axis("off")
    figure.colorbar(image, ax=ax, location="bottom", label="weight")


# all of it ----------------------------------------------------------------------------------------------------------


def require_extra() -> None:
    """Raise an ``ImportError`` that says how to install what the tour needs beyond numconv's own dependencies."""
    for name in ("matplotlib", "sklearn", "tqdm"):
        try:
            import_module(name)
        except ImportError:
            raise ImportError(f"the tour needs {name}: pip install 'numconv-jit[tour]'") from None


def call_once(x: Array, w: Array, dY: Array, network: Network, batches: tuple[Array, Array]) -> None:
    """Make every call of the tour, so that no later step has to wait for a compilation."""
    filter_photograph(x, {})
    check_gradients(x, w, dY)
    for batch in batches:
        network.backward(network.forward(batch))


def tour(
    image: str | Path | None = None, output: str | Path = "numconv-tour.png", epochs: int = EPOCHS, seed: int = 0
) -> TourResult:
    """Filter, differentiate and learn; print what agrees and what took how long; write one picture.

    Parameters
    ----------
    image : path, optional
        A photograph in a format that Pillow reads; by default scikit-learn's ``china.jpg``.
    output : path, default "numconv-tour.png"
        The picture, in a format that matplotlib writes.
    epochs : int, default 24
        How often the network sees each training digit.
    seed : int, default 0
        Of everything random: the split, the first weights, the order of the digits.

    Returns
    -------
    TourResult

    Raises
    ------
    ImportError
        Without the extra ``tour``.
    OSError, ValueError
        If the photograph cannot be read or is smaller than 5 x 5 pixels, if the picture cannot be written, or if
        there is no epoch.
    """
    require_extra()
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    seconds: dict[str, float] = {}
    rng = np.random.default_rng(seed)
    with timed("loading the data", seconds):
        photograph, x = load_photograph(image)
        digits, held_out, labels, held_out_labels = load_handwriting(seed)
    network, w, dY = Network(rng), rng.standard_normal((5, 5)), rng.standard_normal([max(n - 4, 0) for n in x.shape])
    with timed("first calls (compiled, or loaded from the cache)", seconds):
        call_once(x, w, dY, network, (digits[:BATCH], held_out))
    import_module("matplotlib.figure").Figure().savefig(output)  # a bad place is refused before the training

    print(f"The photograph, {x.shape[0]} x {x.shape[1]}, filtered by {', '.join(ALGORITHMS)}")
    filtered, agreements = filter_photograph(x, seconds)
    print(*agreements, sep="\n")
    print("\nIts gradients under a 5x5 kernel, as products of matrices and without")
    with timed("both gradients, both ways", seconds):
        gradients = check_gradients(x, w, dY)
    print(*gradients, sep="\n")
    print(f"\nA network of three convolutions, trained on {len(digits)} handwritten digits", flush=True)
    with timed(f"training, {epochs} epochs", seconds):
        losses, accuracies = train(network, digits, labels, (held_out, held_out_labels), epochs, rng)
    print(f"it names {accuracies[-1]:.1%} of {len(held_out)} held-out digits rightly")
    kernels = next(layer.w for layer in network.layers if isinstance(layer, Conv))
    with timed("drawing", seconds):
        draw(photograph, filtered, losses, accuracies, kernels).savefig(output)
    print("\nTime", *(f"{step:50}{time:8.3f} s" for step, time in seconds.items()), sep="\n")
    print(f"\nThe picture is {output}")
    return TourResult(agreements + gradients, losses, accuracies, seconds, Path(output))
