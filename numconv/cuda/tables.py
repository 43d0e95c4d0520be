"""What kernels look up instead of calculating it: which rows and pixels the taps of a geometry meet.

Made on the host by the index arithmetic that every room shares, and kept on the device by the geometry.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from .._indexing import KERNEL, OUT, SIZE, START, STEP, STRIDE, position, source
from .arrays import DeviceArray
from .places import Place, host

#: Positions, rows and pixels of a plane are 32-bit numbers in kernels.
FAR = 2**31 - 2**7

#: What lies outside has a row and a pixel that sum up, with any others, to no pixel that there is, in 32 bits.
NO_ROW, NO_PIXEL = 2**31, 2**31 - 1


def met_along(axis: list[int], boundary: int) -> np.ndarray:
    """The pixel that each tap of each output meets along one axis, -1 for the constant: ``(kernel, out)``."""
    size, kernel, out, start, stride, step = axis
    where = position(np.arange(out), np.arange(kernel)[:, None], start, stride, step)
    positions, index = np.unique(where, return_inverse=True)
    pixels = np.array([source(i, size, boundary) for i in positions.tolist()], dtype=np.int64)
    return pixels[index].reshape(kernel, out)


def refuse_far(axis_rows: list[list[int]]) -> None:
    """Raise where 32 bits are too few."""
    furthest = max(abs(row[START]) + row[OUT] * row[STRIDE] + row[KERNEL] * abs(row[STEP]) for row in axis_rows)
    pixels = max(prod(row[column] for row in axis_rows) for column in (SIZE, OUT))
    if furthest >= FAR or pixels >= FAR:
        raise ValueError(
            f"an image on a GPU must have fewer than 2**31 pixels, outputs and positions, got spatial shapes "
            f"{tuple(row[SIZE] for row in axis_rows)} -> {tuple(row[OUT] for row in axis_rows)} with positions up to "
            f"{furthest}"
        )


@lru_cache(maxsize=256)
def _rows(axes: bytes, boundary: int) -> tuple[np.ndarray, np.ndarray]:
    axis_rows = np.frombuffer(axes, np.int64).reshape(-1, 6).tolist()
    *lead, last = axis_rows
    refuse_far(axis_rows)
    rows = np.zeros((1, 1), dtype=np.int64)
    for row in lead:
        met = met_along(row, boundary)
        outside = np.logical_or.outer(rows < 0, met < 0)
        both = np.where(outside, -1, np.add.outer(rows * row[SIZE], met))
        T, O, t, o = both.shape
        rows = both.swapaxes(1, 2).reshape(T * t, O * o)
    taps, L_k = rows.shape[0], last[KERNEL]
    met = np.empty((taps * L_k, 2), dtype=np.int32)
    met[:, 0] = np.repeat(np.arange(taps) * rows.shape[1], L_k)
    met[:, 1] = np.tile(last[START] + np.arange(L_k) * last[STEP], taps)
    return rows.astype(np.int32).reshape(-1), met


def rows_and_taps(place: Place, axes: np.ndarray, boundary: int) -> tuple[DeviceArray, DeviceArray]:
    """``rows_met`` and ``met``: tap ``t`` of output ``(O, o)`` meets row ``rows_met[met[t, 0] + O]`` of the input and
    the pixel ``source(o * stride + met[t, 1])`` of it; a row is a flat index over all axes but the last.
    """
    return _on(place, axes.tobytes(), boundary)


@lru_cache(maxsize=256)
def _on(place: Place, axes: bytes, boundary: int) -> tuple[DeviceArray, DeviceArray]:
    rows, met = (host(place.device).send(part) for part in _rows(axes, boundary))
    return rows, met


def slots_along(met: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which entry of its row each tap adds to, ``(kernel, out)`` with -1 for none, and how many entries there are.

    Entries ascend by their pixel; taps that a boundary folds onto one pixel share an entry.
    """
    order = np.argsort(met, axis=0, kind="stable")
    ascending = np.take_along_axis(met, order, axis=0)
    new = ascending >= 0
    new[1:] &= ascending[1:] != ascending[:-1]
    slots = np.empty_like(met)
    np.put_along_axis(slots, order, np.where(ascending >= 0, np.cumsum(new, axis=0) - 1, -1), axis=0)
    return slots, new.sum(axis=0)


class Entries(NamedTuple):
    """The structure of ``W_conv`` for one pair of channels: rows of the kernel by rows of the output, and along a row.

    ``rows`` and ``line`` have a pair of tables each: the entry that a tap adds to, and what lies before an output.
    """

    row_slots: np.ndarray  # (R_k, R_out)
    rows_before: np.ndarray  # (R_out + 1,)
    line_slots: np.ndarray  # (L_k, L_out)
    line_before: np.ndarray  # (L_out + 1,)

    @property
    def total(self) -> int:
        """Entries of one pair of channels."""
        return int(self.rows_before[-1]) * int(self.line_before[-1])


@lru_cache(maxsize=256)
def _entries(axes: bytes, boundary: int) -> Entries:
    *lead, last = np.frombuffer(axes, np.int64).reshape(-1, 6).tolist()
    slots, counts = np.zeros((1, 1), dtype=np.int64), np.ones(1, dtype=np.int64)
    for row in lead:
        more, count = slots_along(met_along(row, boundary))
        outside = np.logical_or.outer(slots < 0, more < 0)
        both = np.where(outside, -1, slots[:, :, None, None] * count[None, None, None, :] + more[None, None])
        T, O, t, o = both.shape
        slots = both.swapaxes(1, 2).reshape(T * t, O * o)
        counts = np.multiply.outer(counts, count).reshape(-1)
    line_slots, line_counts = slots_along(met_along(last, boundary))
    return Entries(
        slots.astype(np.int32), np.concatenate([[0], np.cumsum(counts)]), line_slots.astype(np.int32),
        np.concatenate([[0], np.cumsum(line_counts)]),
    )


def entries_of(axes: np.ndarray, boundary: int) -> Entries:
    """The structure of ``W_conv`` for one pair of channels."""
    return _entries(axes.tobytes(), boundary)
