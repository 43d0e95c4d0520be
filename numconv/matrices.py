"""``X_conv`` and ``W_conv`` of the caller's arrays: any dtype for copies, CSR for the kernel."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from . import _memory, arrays, dispatch
from ._indexing import position, source
from ._objects import look, shown
from .arguments import frozen
from .geometry import ConvGeometry

if TYPE_CHECKING:
    import scipy.sparse


def im2col(
    x: np.ndarray, geometry: ConvGeometry, out: np.ndarray | None = None, device: str = "cpu"
) -> np.ndarray:
    """``X_conv`` of ``x``, of any dtype."""
    g = geometry
    dtype = x.dtype.newbyteorder("=")
    fill = np.asarray(arrays.as_fill(g.fill_value, dtype), dtype=dtype)
    shape = g.cols_shape
    where = dispatch.device_for(device, x)
    room = dispatch.backend(where, "im2col")
    copied = dtype.itemsize in room.WORDS and not dtype.hasobject
    if where == "cuda" and not copied:
        raise TypeError(
            f"x must have items of {', '.join(map(str, room.WORDS))} bytes to be copied by a GPU, got dtype {dtype}; "
            "use_device('cpu') takes any"
        )

    def compute(pixels: np.ndarray, X_conv: np.ndarray) -> None:
        if copied:
            room.im2col(pixels, g.axes, g.boundary_code, fill, X_conv)
        else:
            _take(pixels, fill, g, X_conv)

    run = dispatch.placed(device, x, compute)
    indices = 0 if copied else 8 * prod(g.size) + 9 * prod(shape[-2:]) // max(g.C, 1)
    return arrays.deliver(
        lambda X_conv: run(
            arrays.ready(x, dtype).reshape(g.N, g.C, *g.size), X_conv.reshape(g.N, *shape[-2:])
        ),
        shape, dtype, out, x, beside=arrays.copied(dtype, x) + indices, what="X_conv",
        instead="use algorithm='implicit', which stores no X_conv, or fewer images at a time",
    )  # fmt: skip


def _take(x: np.ndarray, fill: np.ndarray, g: ConvGeometry, X_conv: np.ndarray) -> None:
    """Pixels of odd size go by their indices."""
    index = np.arange(prod(g.size), dtype=np.int64).reshape(1, 1, *g.size)
    at = np.empty((1, prod(g.kernel), prod(g.out)), np.int64)
    dispatch.backend("cpu", "im2col").im2col(index, g.axes, g.boundary_code, np.int64(-1), at)
    outside = at[0] < 0
    pixels = x.reshape(g.N * g.C, prod(g.size))
    for image, columns in zip(pixels, X_conv.reshape(len(pixels), *outside.shape), strict=True):
        if image.size:
            image.take(at[0], out=columns, mode="clip")
        columns[outside] = fill


def col2im(
    cols: np.ndarray, geometry: ConvGeometry, reduce: str, out: np.ndarray | None = None, device: str = "cpu"
) -> np.ndarray:
    """The adjoint of ``im2col``; for ``"mean"`` divided by how many columns hold each pixel."""
    g = geometry
    arrays.check_shape("cols", cols, g.cols_shape)
    dtype = arrays.sum_dtype(None, out, cols=cols)
    where = dispatch.device_for(device, cols)
    stored, computed = arrays.stored_in(dtype, where), arrays.computed_in(dtype)
    if reduce == "mean" and dtype.kind in "biu":
        dtype = stored = computed = np.dtype(np.float64)
    room, adjoint = dispatch.backend(where, "im2col"), dispatch.backend(where, "adjoint")

    def compute(X_conv: np.ndarray, x: np.ndarray) -> None:
        adjoint.unfolded(g, x, lambda padded, x: room.col2im(X_conv, padded.axes, x))
        if reduce == "mean":
            counts = coverage(g)
            room.divide(x, np.maximum(counts, 1, out=counts))

    run = dispatch.placed(device, cols, compute)
    target = stored if reduce == "sum" else computed
    counts = coverage_nbytes(g) if reduce == "mean" else 0
    padded = dispatch.backend(where, "peak").col2im(g) * target.itemsize
    return arrays.deliver(
        lambda x: run(
            arrays.ready(cols, stored).reshape(g.N, g.C * prod(g.kernel), prod(g.out)), x.reshape(g.N, g.C, *g.size)
        ),
        g.input_shape, dtype, out, cols, computed=target, beside=arrays.copied(stored, cols) + max(padded, counts),
        what="the sum of the columns",
    )  # fmt: skip


def coverage_nbytes(geometry: ConvGeometry) -> int:
    """Bytes that ``coverage`` takes at its peak: the counts, and those without the last axis, or two of one axis."""
    g = geometry
    return 8 * prod(g.size) + 8 * (prod(g.size[:-1]) + g.size[-1] if g.d > 1 else 0) + 27 * max(g.out)


def require_coverage(geometry: ConvGeometry) -> None:
    """Ask for what ``coverage`` takes."""
    _memory.require(coverage_nbytes(geometry), f"the coverage of shape {geometry.size}", "use a smaller input")


def coverage(geometry: ConvGeometry) -> np.ndarray:
    """How many windows hold each pixel, shape ``(*in)``; the product of what holds along each axis."""
    count = np.ones((), dtype=np.int64)
    for size, kernel, out, start, stride, step in geometry.axis_rows:
        axis = np.zeros(size, dtype=np.int64)
        for t in range(kernel):
            i = position(np.arange(out), t, start, stride, step)
            inside = (i >= 0) & (i < size)
            axis[i[inside]] += 1  # within one tap no pixel repeats
            for edge in i[~inside].tolist():
                pixel = source(edge, size, geometry.boundary_code)
                if pixel >= 0:
                    axis[pixel] += 1
        count = np.multiply.outer(count, axis)
    return count


def kernel2row(w: np.ndarray, geometry: ConvGeometry, device: str = "cpu") -> scipy.sparse.csr_array:
    """``W_conv`` of ``w`` in its own dtype (float16 as float32: SciPy has no sparse float16)."""
    g = geometry
    if g.fill_value != 0:
        raise ValueError(f"fill_value must be 0 for a matrix, got {shown(g.fill_value)}: the map would be affine")
    dtype, where = sparse_dtype(w), dispatch.device_for(device, w)
    if where == "cpu":
        taken, instead = dispatch.backend("cpu", "peak").matrix, "linear_operator(w) of a plan, or algorithm='implicit'"
        _require_matrix(w, g, dtype, taken, f"{instead}, which store no matrix")
    w = arrays.ready(w, dtype).reshape(g.K, g.C // g.groups, *g.kernel)
    return dispatch.backend(where, "kernel2row").matrix(w, g.axes, g.boundary_code, g.groups)


def _require_matrix(
    w: np.ndarray, g: ConvGeometry, dtype: np.dtype, taken: Callable[[ConvGeometry, np.dtype], int], instead: str
) -> None:
    """Ask for ``W_conv`` and a copy of ``w``, if its entries, which have to be counted, may be many."""
    most = w.size + g.K * (g.C // g.groups) * prod(g.kernel) * prod(g.out) + g.matrix_shape[0] + sum(g.out)
    if most * 4 * (dtype.itemsize + 8) >= _memory.ALWAYS_THERE:
        entries = dispatch.backend("cpu", "peak").entries_of(g)
        what = f"W_conv of shape {g.matrix_shape} with {entries:,} entries"
        _memory.require(arrays.copied(dtype, w) + taken(g, dtype), what, f"use {instead}")


def local_matrix(w: np.ndarray, geometry: ConvGeometry, device: str = "cpu") -> scipy.sparse.csr_array:
    """The matrix of ``conv_local``."""
    from scipy.sparse import csr_array

    g, dtype = geometry, sparse_dtype(w)
    if dispatch.device_for(device, w) == "cuda":
        kernels = arrays.ready(w, dtype).reshape(*g.out, g.K, g.C // g.groups, *g.kernel)
        return dispatch.backend("cuda", "kernel2row").matrix(kernels, g.axes, g.boundary_code, g.groups)
    _require_matrix(w, g, dtype, dispatch.backend("cpu", "peak").local_matrix, "conv_local, which stores no matrix")
    kernels = arrays.ready(w, dtype).reshape(prod(g.out), g.K, g.C // g.groups * prod(g.kernel))
    W_conv = csr_array(dispatch.backend("cpu", "local").triple(kernels, g), shape=g.matrix_shape, copy=False)
    W_conv.has_canonical_format = True
    return W_conv


def refill(
    csr: scipy.sparse.csr_array, w: np.ndarray, geometry: ConvGeometry, device: str = "cpu"
) -> scipy.sparse.csr_array:
    """New weights into the structure of ``csr``, which must be this geometry's."""
    g = geometry
    dtype, weights = sparse_dtype(w), (g.K, g.C // g.groups, *g.kernel)
    if dispatch.device_of(w) == "cuda":
        w = arrays.ready(w, dtype).reshape(weights)
        return dispatch.backend("cuda", "kernel2row").refill(csr, w, g.axes, g.boundary_code, g.groups)
    index_dtype = look(look(csr, "indices"), "dtype")
    if frozen(look(csr, "format"), "csr") != "csr" or not isinstance(index_dtype, np.dtype) or index_dtype.kind != "i":
        raise TypeError(f"csr must be a SciPy CSR array as matrix(w) makes it, got {type(csr).__name__}")
    room, peak, data = dispatch.backend("cpu", "kernel2row"), dispatch.backend("cpu", "peak"), csr.data
    if not np.can_cast(dtype, data.dtype, "same_kind"):
        raise TypeError(f"w must have a dtype that casts to the csr's {data.dtype}, got {dtype}")
    straight = data.dtype == dtype and data.flags.c_contiguous and data.flags.aligned
    copies = arrays.copied(dtype, w) + arrays.copied(csr.indices.dtype, csr.indices, csr.indptr)
    values = 0 if straight else data.size * dtype.itemsize
    _memory.require(
        copies + values + peak.beside_matrix(g) + peak.turned(g, dtype), f"new values of dtype {dtype} for a csr of "
        f"{data.dtype}", "build the matrix anew with matrix(w)",
    )
    w = arrays.ready(w, dtype).reshape(weights)
    indices, indptr = (arrays.ready(index, csr.indices.dtype) for index in (csr.indices, csr.indptr))
    before = room.entries_before(room.counts_of(g.axes, g.boundary_code))
    if csr.shape != g.matrix_shape or not room.has_structure(
        indices, indptr, w.shape, g.axes, g.boundary_code, g.groups, before
    ):
        raise ValueError(
            f"csr must have the structure of this geometry, shape {g.matrix_shape} with columns and row starts as "
            f"matrix(w) makes them; got shape {csr.shape} with {csr.nnz} entries"
        )
    if not data.flags.writeable:
        raise ValueError("csr must have data that can be written to, got read-only data")
    target = data if straight else np.empty(data.shape, w.dtype)
    if device == "cpu":
        room.values(w, g.axes, g.boundary_code, before, target)
    else:
        there = dispatch.backend(device, "kernel2row")
        fill_in = dispatch.placed(device, w, lambda w, data: there.values(w, g.axes, g.boundary_code, data))
        fill_in(w, target)
    if not straight:
        np.copyto(data, target, casting="same_kind")
    return csr


def csr_product(
    data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, vector: np.ndarray, name: str, columns: int | None,
    out: np.ndarray | None, device: str = "cpu",
) -> np.ndarray:
    """``A @ vector`` for the CSR matrix of a triple, or ``A.T @ vector`` where its number of ``columns`` is given."""
    for what, array in (("data", data), ("indices", indices), ("indptr", indptr), (name, vector)):
        if array.ndim != 1:
            raise ValueError(f"{what} must have one axis, got shape {array.shape}")
    for what, index in (("indices", indices), ("indptr", indptr)):
        if index.dtype.kind not in "iu" or not np.can_cast(index.dtype, np.int64, "safe"):
            raise TypeError(f"{what} must be of an integer dtype that int64 holds, got {index.dtype}")
    if not indptr.size:
        raise ValueError("indptr must have one entry more than the matrix has rows, got none")
    arrays.check_shape("data", data, indices.shape)
    rows = indptr.size - 1
    if columns is not None:
        arrays.check_shape(name, vector, (rows,))
    dtype = arrays.sum_dtype(None, out, **{"data": data, name: vector})
    where = dispatch.device_for(device, data)
    stored, computed = arrays.stored_in(dtype, where), arrays.computed_in(dtype)
    index_dtype = np.dtype(np.int32 if indices.dtype == indptr.dtype == np.int32 else np.int64)
    room = dispatch.backend(where, "csr")
    product = room.matvec if columns is None else room.rmatvec

    def compute(*parts: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            is_matrix = product(*parts)
        if not is_matrix:
            raise ValueError(
                f"indices and indptr must be those of a CSR matrix with {rows} rows and "
                f"{vector.size if columns is None else columns} columns and {data.size} stored entries: "
                "indptr must ascend from 0 to at most the entries, indices must be columns"
            )

    run = dispatch.placed(device, data, compute)
    beside = arrays.copied(stored, data) + arrays.copied(index_dtype, indices, indptr) + arrays.copied(computed, vector)
    if columns is not None and where == "cpu":
        beside += room.parts_for(columns, data.size) * columns * computed.itemsize
    return arrays.deliver(
        lambda result: run(
            arrays.ready(data, stored), arrays.ready(indices, index_dtype), arrays.ready(indptr, index_dtype),
            arrays.ready(vector, computed).reshape(1, -1), result.reshape(1, -1),
        ),
        (rows if columns is None else columns,), dtype, out, data, indices, indptr, vector, computed=computed,
        beside=beside, what="the product",
    )  # fmt: skip


def sparse_dtype(w: np.ndarray) -> np.dtype:
    """The dtype of a matrix of ``w``, which SciPy's sparse arrays know."""
    dtype = arrays.product_dtype(w=w)
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def matrix_nbytes(geometry: ConvGeometry, dtype: np.dtype) -> int:
    """Bytes of the three arrays of ``W_conv``, counted without making them."""
    stored = np.dtype(np.float32) if dtype == np.float16 else dtype
    return dispatch.backend("cpu", "kernel2row").nbytes(geometry, stored)
