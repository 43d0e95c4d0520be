"""What ``normalized_convolve`` does value by value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import computed_in
from ._jit import at, cuda, kernel
from .arrays import DeviceArray, blocks_for


@kernel()
def _there(x, zero, n, there):
    i = cuda.grid(1)
    while i < n:
        value = zero
        value += x[at(i)]
        there[at(i)] = value == value  # NaN is not
        i += cuda.gridsize(1)


@kernel()
def _not_masked(mask, n, there):
    i = cuda.grid(1)
    while i < n:
        there[at(i)] = there[at(i)] and not mask[at(i)]
        i += cuda.gridsize(1)


@kernel()
def _filled(x, there, zero, n, y):
    i = cuda.grid(1)
    while i < n:
        value = zero
        if there[at(i)]:
            value += x[at(i)]
        y[at(i)] = y.dtype.type(value)
        i += cuda.gridsize(1)


@kernel()
def _defined(sums, least, step, factor, n, defined):
    i = cuda.grid(1)
    while i < n:
        defined[at(i)] = not abs(sums[at(i)]) <= least[at(i * step)] * factor
        i += cuda.gridsize(1)


@kernel()
def _average(sums, defined, nan, n, y):
    i = cuda.grid(1)
    while i < n:
        value = nan
        if defined[at(i)]:
            value = y[at(i)] / sums[at(i)]
        y[at(i)] = value
        i += cuda.gridsize(1)


def there_of(x: DeviceArray, masks: Sequence[DeviceArray]) -> DeviceArray:
    """Where ``x`` has a value: where no mask is true or, without one, where it is not NaN."""
    there, n = x.place.empty(x.shape, np.dtype(np.bool_)), x.size
    flat = there.reshape(n)
    if masks:
        there[...] = True
    else:
        x = x.ready(x.dtype)
        _there(blocks_for(n), x.reshape(n), computed_in(x.dtype).type(0), n, flat, on=x.place)
    for mask in masks:
        _not_masked(blocks_for(n), mask.ready(mask.dtype).reshape(n), n, flat, on=x.place)
    return there


def filled(x: DeviceArray, there: DeviceArray, dtype: np.dtype) -> DeviceArray:
    """``x`` in this dtype, with 0 for what is missing."""
    x, y, n = x.ready(x.dtype), x.place.empty(x.shape, dtype), x.size
    _filled(blocks_for(n), x.reshape(n), there.reshape(n), dtype.type(0), n, y.reshape(n), on=x.place)
    return y


def sizes(w: DeviceArray) -> DeviceArray:
    """The absolute values of weights, which are few."""
    return w.place.bring(np.abs(w.place.to_host(w)))


def defined(sums: DeviceArray, least: Any, factor: float) -> DeviceArray:
    """Where sums of weights are larger than ``factor`` times ``least``, a number or one for each sum."""
    place, n, real = sums.place, sums.size, np.empty(0, sums.dtype).real.dtype
    found, each = place.empty(sums.shape, np.dtype(np.bool_)), isinstance(least, DeviceArray)
    items = least.reshape(n) if each else place.scalar(least, real).reshape(1)
    _defined(
        blocks_for(n), sums.reshape(n), items, int(each), real.type(factor), n, found.reshape(n), on=place
    )  # fmt: skip
    return found


def average(y: DeviceArray, sums: DeviceArray, defined: DeviceArray) -> None:
    """``y`` divided by the sums of its weights, in place; NaN where none are defined."""
    n = y.size
    flat = (sums.reshape(n), defined.reshape(n))
    _average(blocks_for(n), *flat, y.dtype.type(np.nan), n, y.reshape(n), on=y.place)
