"""What ``normalized_convolve`` does value by value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def there_of(x: np.ndarray, masks: Sequence[np.ndarray]) -> np.ndarray:
    """Where ``x`` has a value: where no mask is true or, without one, where it is not NaN."""
    if not masks:
        there = np.asarray(np.isnan(x))
    else:
        there = masks[0].copy()
        for mask in masks[1:]:
            there |= mask
    return np.logical_not(there, out=there)


def filled(x: np.ndarray, there: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``x`` in this dtype, with 0 for what is missing."""
    return np.where(there, x, x.dtype.type(0)).astype(dtype, copy=False)


def sizes(w: np.ndarray) -> np.ndarray:
    """The absolute values of weights."""
    return np.abs(w)


def defined(sums: np.ndarray, least: Any, factor: float) -> np.ndarray:
    """Where sums of weights are larger than ``factor`` times ``least``, a number or one for each."""
    if np.ndim(least) == 0 and least == 0:
        return np.asarray(sums != 0)
    least *= factor
    with np.errstate(invalid="ignore"):
        none = np.asarray(np.abs(sums) <= least)
        return np.logical_not(none, out=none)


def average(y: np.ndarray, sums: np.ndarray, defined: np.ndarray) -> None:
    """``y`` divided by the sums of its weights, in place; NaN where none are defined. Turns ``defined`` around."""
    with np.errstate(all="ignore"):
        y /= sums
    y[np.logical_not(defined, out=defined)] = np.nan
