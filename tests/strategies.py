"""Random geometries: every argument of a convolution at once, and sizes that keep the naive loops quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import naive
import numpy as np
from conftest import BOUNDARIES, values
from hypothesis import strategies as st

#: Largest input, kernel, stride and padding along an axis, by number of axes.
LIMITS = {1: (12, 5, 4, 6), 2: (6, 4, 3, 4), 3: (4, 3, 2, 2), 4: (3, 2, 2, 2)}


@dataclass(frozen=True)
class Case:
    """One convolution: shapes, geometry and a seed for its data."""

    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    geometry: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float64"
    seed: int = 0

    @property
    def kernel(self):
        """The spatial shape of the kernel."""
        return self.w_shape[2:]

    @property
    def x(self):
        """An input."""
        return values(self.x_shape, self.dtype, self.seed)

    @property
    def w(self):
        """A kernel."""
        return values(self.w_shape, self.dtype, self.seed + 1)

    @property
    def window(self):
        """The geometry of ``im2col``, which knows no groups."""
        return {name: value for name, value in self.geometry.items() if name != "groups"}

    @property
    def linear(self):
        """The geometry without its fill value: what has a matrix and an adjoint in x."""
        return {name: value for name, value in self.geometry.items() if name != "fill_value"}

    def dy(self, shape):
        """An output gradient."""
        return values(shape, self.dtype, self.seed + 2)


def per_axis(draw, d, number):
    """One number for all axes, or one for each."""
    return draw(number) if draw(st.booleans()) else tuple(draw(number) for _ in range(d))


@st.composite
def paddings(draw, d, most):
    """Every spelling of padding."""
    number = st.integers(0, most)
    spelling = draw(st.sampled_from(["number", "pairs", "valid", "same", "same_lower", "full"]))
    if spelling == "number":
        return per_axis(draw, d, number)
    if spelling == "pairs":
        return tuple((draw(number), draw(number)) for _ in range(d))
    return spelling


@st.composite
def cases(draw, dtypes=("float64",), axes=(1, 2, 3, 4), fill=True, batch=True, kernel=None):
    """A geometry in which every argument may be bent, and whose output is not empty.

    With a ``kernel`` given, stride and dilation are 1: what Winograd and the FFT serve.
    """
    d = len(kernel) if kernel else draw(st.sampled_from(axes))
    largest, tap, step, width = LIMITS[d]
    stride = dilation = 1
    if kernel is None:
        kernel = tuple(draw(st.integers(1, tap)) for _ in range(d))
        stride, dilation = per_axis(draw, d, st.integers(1, step)), per_axis(draw, d, st.integers(1, 3 if d < 3 else 2))
    padding = draw(paddings(d, width))
    # the smallest input on which the kernel has a place: 1 where the padding grows with the kernel
    spans = [dil * (k - 1) + 1 for k, dil in zip(kernel, naive.axes_of(dilation, d), strict=True)]
    least = [1] * d
    if padding not in ("same", "same_lower", "full"):
        pairs = naive.padding_pairs(padding, kernel, kernel)
        least = [max(1, span - lo - hi) for span, (lo, hi) in zip(spans, pairs, strict=True)]
    size = tuple(draw(st.integers(low, max(low, largest))) for low in least)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    per_group, outputs = (draw(st.integers(1, 2 if d < 3 else 1)) for _ in range(2))
    geometry = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    geometry["flip"] = draw(st.booleans())
    geometry["boundary"] = draw(st.sampled_from(BOUNDARIES))
    if fill and geometry["boundary"] == "constant":
        geometry["fill_value"] = draw(st.sampled_from([0, 1]))
    lead = draw(st.sampled_from([(), (1,), (2,)])) if batch else ()
    return Case(
        (*lead, per_group * groups, *size), (outputs * groups, per_group, *kernel), geometry,
        draw(st.sampled_from(list(dtypes))), draw(st.integers(0, 2**16)),
    )  # fmt: skip


@st.composite
def narrow_cases(draw, dtypes=("float32",), most=200):
    """Axes of a few pixels in any place: strides beyond them, more padding than pixels, up to ``most`` channels."""
    d = draw(st.sampled_from([1, 2, 2, 3, 4]))
    long = draw(st.sampled_from([None, *range(d)]))  # one axis may be longer
    size = [draw(st.integers(8, 24 if d < 4 else 12)) if a == long else draw(st.integers(1, 3)) for a in range(d)]
    kernel = [draw(st.integers(1, 3 if d < 3 else 2)) for _ in range(d)]
    stride = [draw(st.sampled_from([1, 1, 2, 3, 5])) for _ in range(d)]
    dilation = [draw(st.sampled_from([1, 1, 2])) for _ in range(d)]
    padding = []
    for n, k, dil in zip(size, kernel, dilation, strict=True):
        lo, hi = draw(st.sampled_from([(0, 0), (0, 0), (1, 0), (0, 1), (2, 5)]))
        padding.append((lo + max(0, dil * (k - 1) + 1 - n - lo - hi), hi))
    few, many, groups = draw(st.integers(1, 3)), draw(st.integers(1, most)), draw(st.sampled_from([1, 1, 2]))
    per_group, outputs = draw(st.sampled_from([(few, many), (few, many), (many, few)]))
    geometry = {"stride": tuple(stride), "dilation": tuple(dilation), "padding": tuple(padding), "groups": groups}
    geometry |= {"flip": draw(st.booleans()), "boundary": draw(st.sampled_from(BOUNDARIES))}
    return Case(
        (draw(st.integers(1, 2)), per_group * groups, *size), (outputs * groups, per_group, *kernel), geometry,
        draw(st.sampled_from(list(dtypes))), draw(st.integers(0, 2**16)),
    )  # fmt: skip


@st.composite
def plain_cases(draw, dtypes=("float64",)):
    """Shapes of a plain input and kernel, either the larger one, with the arguments of ``convolve``."""
    d = draw(st.sampled_from([1, 2, 3]))
    most = {1: 10, 2: 5, 3: 3}[d]
    small = tuple(draw(st.integers(1, most)) for _ in range(d))
    large = tuple(n + draw(st.integers(0, 3)) for n in small)
    x_shape, w_shape = draw(st.sampled_from([(large, small), (small, large)]))
    arguments = {"stride": per_axis(draw, d, st.integers(1, 3)), "boundary": draw(st.sampled_from(BOUNDARIES))}
    mode = draw(st.sampled_from(["full", "same", "valid"]))
    if mode != "valid":
        arguments["dilation"] = per_axis(draw, d, st.integers(1, 2))
    dtype, seed = draw(st.sampled_from(list(dtypes))), draw(st.integers(0, 2**16))
    x, w = values(x_shape, dtype, seed), values(w_shape, dtype, seed + 1)
    return x, w, mode, arguments


def inner(a, b):
    """``<a, b>``, exact for integers."""
    a, b = naive.widen(a, b)
    return (a.ravel() * np.conj(b.ravel())).sum() if a.size else 0
