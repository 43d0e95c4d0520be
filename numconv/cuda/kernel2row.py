"""``W_conv``: the kernel laid over the input once for each output pixel, written straight into CSR arrays."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import scipy.sparse

from .. import _memory
from .._indexing import KERNEL, OUT, SIZE, STRIDE
from ..dispatch import kind_of
from ..geometry import ConvGeometry
from . import direct
from ._jit import SIMULATED, cuda, helper, kernel, source
from .arrays import DeviceArray, blocks_for
from .places import Host, Place, host, read, table
from .tables import Entries, entries_of, rows_and_taps


@helper
def entry_of(tap, p, axes, row_slots, rows_before, line_slots, line_before):
    """Where the entry that tap ``tap`` of output ``p`` adds to lies in the row, or -1, and how the row lies.

    Returns that, how many entries the row has for one channel, and where they begin, counted for one channel pair.
    """
    last = axes.shape[0] - 1
    L_out, R_out = axes[last, OUT], rows_before.size - 1
    O, o = p // L_out, p % L_out
    high, wide = rows_before[O + 1] - rows_before[O], line_before[o + 1] - line_before[o]
    begin = rows_before[O] * line_before[L_out] + high * line_before[o]
    T, t = tap // axes[last, KERNEL], tap % axes[last, KERNEL]
    row, column = row_slots[T * R_out + O], line_slots[t * L_out + o]
    return row * wide + column if row >= 0 and column >= 0 else -1, high * wide, begin


@kernel()
def _structure(
    axes, rows_met, met, row_slots, rows_before, line_slots, line_before, boundary, K, Cg, Kg, P, size, total, indices,
    indptr,
):
    # A thread owns one tap of one output pixel and input channel, for every kernel. Taps that share an entry write the
    # same column.
    i = cuda.grid(1)
    last, taps = axes.shape[0] - 1, met.shape[0]
    while i < P * Cg * taps:
        tap, rest = i % taps, i // taps
        c, p = rest % Cg, rest // Cg
        entry, n, begin = entry_of(tap, p, axes, row_slots, rows_before, line_slots, line_before)
        if entry >= 0:
            row = rows_met[met[tap, 0] + p // axes[last, OUT]]
            at = source(p % axes[last, OUT] * axes[last, STRIDE] + met[tap, 1], axes[last, SIZE], boundary)
            column = row * axes[last, SIZE] + at
            for k in range(K):
                indices[Cg * (k * total + begin) + c * n + entry] = (k // Kg * Cg + c) * size + column
        if tap == 0 and c == 0:
            for k in range(K):
                indptr[k * P + p] = Cg * (k * total + begin)
            if p == 0:
                indptr[K * P] = K * Cg * total
        i += cuda.gridsize(1)


@kernel()
def _values(w, axes, row_slots, rows_before, line_slots, line_before, folds, K, Cg, taps, P, step, total, data):
    # The same over the values; the first of the taps that share an entry adds them up. w (K, Cg, taps), and where each
    # output has a kernel of its own, ``step`` values lie between these.
    i = cuda.grid(1)
    while i < P * Cg * taps:
        tap, rest = i % taps, i // taps
        c, p = rest % Cg, rest // Cg
        entry, n, begin = entry_of(tap, p, axes, row_slots, rows_before, line_slots, line_before)
        first = entry >= 0
        for before in range(tap if folds and first else 0):
            if entry_of(before, p, axes, row_slots, rows_before, line_slots, line_before)[0] == entry:
                first = False
        if first:
            for k in range(K):
                w_at = p * step + (k * Cg + c) * taps
                total_weight = w[w_at + tap]
                for other in range(tap + 1, taps if folds else 0):
                    if entry_of(other, p, axes, row_slots, rows_before, line_slots, line_before)[0] == entry:
                        total_weight += w[w_at + other]
                data[Cg * (k * total + begin) + c * n + entry] = total_weight
        i += cuda.gridsize(1)


@kernel()
def _differ(a, b, n, found):
    i = cuda.grid(1)
    while i < n:
        if a[i] != b[i]:
            found[0] = 1
        i += cuda.gridsize(1)


def channels_of(w: Any, axes: np.ndarray) -> tuple[int, int]:
    """``K`` and ``C/G`` of a kernel, or of one kernel for each output."""
    K, Cg = w.shape[w.ndim - len(axes) - 2 :][:2]
    return K, Cg


def _tables(w: DeviceArray, entries: Entries) -> list[DeviceArray]:
    return [table(w.place, part.reshape(-1)) for part in entries]


def structure(
    w: DeviceArray, axes: np.ndarray, boundary: int, groups: int, index_dtype: np.dtype
) -> tuple[DeviceArray, DeviceArray]:
    """``indices`` and ``indptr`` of W_conv for the kernel ``w (K, C/G, *k)``; they depend on the geometry alone."""
    (K, Cg), P, size = channels_of(w, axes), prod(axes[:, OUT].tolist()), prod(axes[:, SIZE].tolist())
    entries = entries_of(axes, boundary)
    indices = w.place.empty((K * Cg * entries.total,), index_dtype)
    if not indices.size:  # all rows begin and end at 0
        return indices, w.place.zeros((K * P + 1,), index_dtype)
    indptr = w.place.empty((K * P + 1,), index_dtype)
    _structure(
        blocks_for(P * Cg * prod(axes[:, KERNEL].tolist())), table(w.place, axes),
        *rows_and_taps(w.place, axes, boundary), *_tables(w, entries), boundary, K, Cg, K // groups, P, size,
        entries.total, indices, indptr, on=w.place,
    )  # fmt: skip
    return indices, indptr


def values(w: DeviceArray, axes: np.ndarray, boundary: int, data: DeviceArray) -> None:
    """Write the weights of ``w (K, C/G, *k)``, or ``(*out, K, C/G, *k)``, into the ``data`` of W_conv."""
    if not data.size:
        return
    (K, Cg), taps, P = channels_of(w, axes), prod(axes[:, KERNEL].tolist()), prod(axes[:, OUT].tolist())
    entries = entries_of(axes, boundary)
    _values(
        blocks_for(P * Cg * taps), w.reshape(w.size), table(w.place, axes), *_tables(w, entries), boundary != 0, K, Cg,
        taps, P, 0 if w.ndim == 2 + len(axes) else K * Cg * taps, entries.total, data, on=w.place,
    )  # fmt: skip


def triple(
    w: DeviceArray, axes: np.ndarray, boundary: int, groups: int
) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    """``data, indices, indptr`` of W_conv ``(K * prod out, C * prod in)``."""
    K, Cg = channels_of(w, axes)
    entries, rows = K * Cg * entries_of(axes, boundary).total, K * prod(axes[:, OUT].tolist())
    columns = groups * Cg * prod(axes[:, SIZE].tolist())
    index_dtype = np.dtype(np.int32 if max(entries, rows, columns) < 2**31 else np.int64)
    _memory.require(
        entries * (w.itemsize + index_dtype.itemsize) + (rows + 1) * index_dtype.itemsize,
        f"W_conv with {entries:,} entries", "use algorithm='implicit', which stores no matrix", w.place.available,
    )
    indices, indptr = structure(w, axes, boundary, groups, index_dtype)
    data = w.place.empty((entries,), w.dtype)
    values(w, axes, boundary, data)
    return data, indices, indptr


def matrix(w: Any, axes: np.ndarray, boundary: int, groups: int) -> Any:
    """W_conv as the library of ``w`` has sparse matrices, SciPy's for NumPy; where it has none, the triple."""
    K, Cg = channels_of(w, axes)
    shape = (K * prod(axes[:, OUT].tolist()), groups * Cg * prod(axes[:, SIZE].tolist()))
    if not isinstance(w, np.ndarray):
        return w.place.sparse(triple(w, axes, boundary, groups), shape)
    place = host()
    parts = tuple(place.to_host(part) for part in triple(place.send(w), axes, boundary, groups))
    W_conv = scipy.sparse.csr_array(parts, shape=shape, copy=False)
    W_conv.has_canonical_format = True
    return W_conv


def has_structure(
    indices: DeviceArray, indptr: DeviceArray, w: DeviceArray, axes: np.ndarray, boundary: int, groups: int
) -> bool:
    """Whether these are what ``structure`` gives."""
    expected = structure(w, axes, boundary, groups, indices.dtype)
    for given, need in zip((indices, indptr), expected, strict=True):
        if given.shape != need.shape:
            return False
        found = w.place.zeros((1,), np.dtype(np.int32))
        _differ(blocks_for(need.size), given, need, need.size, found, on=w.place)
        if w.place.to_host(found)[0]:
            return False
    return True


def _beside(place: Place, name: str, part: Any) -> DeviceArray:
    """A part of the caller's matrix, which may be numba's beside a ``w`` of a library that has no such dtype."""
    if isinstance(part, DeviceArray):
        return part
    kind, where = kind_of(name, part), place.kind.partition(" on ")[2]
    simulated = SIMULATED and isinstance(place, Host) and kind == "numpy"
    if kind.partition(" on ")[2] != where and not simulated:
        raise TypeError(f"{name} must live where w does, on {where}, got {kind or type(part).__name__}")
    return read(place, name, part)


def refill(csr: Any, w: DeviceArray, axes: np.ndarray, boundary: int, groups: int) -> Any:
    """New weights into a matrix, or a triple, as ``matrix`` made it; an error if its structure is another."""
    parts = csr if isinstance(csr, tuple) else [getattr(csr, name, None) for name in ("data", "indices", "indptr")]
    if len(parts) != 3 or any(part is None for part in parts):
        raise TypeError(f"csr must be a CSR matrix on the GPU, or its triple, as matrix(w) makes it, got {type(csr)}")
    data, indices, indptr = (
        _beside(w.place, f"csr.{name}", part) for name, part in zip(("data", "indices", "indptr"), parts, strict=True)
    )
    if data.size != indices.size or not has_structure(indices, indptr, w, axes, boundary, groups):
        raise ValueError(f"csr must have the structure of this geometry, got one with {data.size} entries")
    if data.dtype != w.dtype:
        raise TypeError(f"w must have the csr's dtype {data.dtype}, got {w.dtype}")
    values(w, axes, boundary, data)
    w.place.settle()
    return csr


def forward(
    x: DeviceArray, w: DeviceArray, bias: DeviceArray, axes: np.ndarray, boundary: int, fill: np.generic,
    y: DeviceArray, place: tuple[slice, ...] = (),
) -> None:
    """``Y_flat = W_conv @ X_flat + bias`` without a matrix: a thread sums its row as it would be written."""
    direct.forward(x, w, bias, axes, boundary, fill, y, place)


def workspace(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes that ``forward`` takes beside its arguments."""
    return 0
