"""``im2col``, ``kernel2row`` and what follows from them: convolution's two matrices."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from .. import dispatch, matrices
from .._objects import shown
from ..arguments import Boundary, Ints, Padding, as_flag, as_int, frozen, one_of, spatial_size
from ..geometry import conv_geometry, window_geometry


@dispatch.or_dask
def im2col(
    x: Any, kernel_size: Ints, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1,
    boundary: Boundary = "constant", fill_value: Any = 0, flip: bool = True, out: Any = None,
) -> Any:
    """Lay the input out as ``X_conv``: row ``(c, t)`` holds, for every output, the pixel that kernel value ``t`` meets.

    ``Y_flat = W_flat @ X_conv`` and ``dW_flat = dY_flat @ X_conv.T``.

    Parameters
    ----------
    x : array (*in), (C, *in) or (N, C, *in)
        Of any dtype with a fixed item size; as many spatial axes as ``kernel_size`` has ints.
    kernel_size : ints
        ``k``; one int stands for every axis of a plain array.
    stride, padding, dilation, boundary, fill_value
        As for ``conv``; with an even kernel ``padding="same_lower"`` gives the windows of SciPy's ``"same"`` and of
        ``convolve``, and ``"same"`` those that start one pixel later.
    flip : bool, default True
        True convolution, as in the seed; ``False`` for what deep learning calls convolution.
    out : array, optional

    Returns
    -------
    array (prod k, prod out), (C * prod k, prod out) or (N, C * prod k, prod out)
        Of the dtype of ``x``.

    Raises
    ------
    ValueError, TypeError
        If shapes and values do not fit.
    MemoryError
        If ``X_conv`` would not fit, before anything is allocated.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> X = np.array([["x11", "x12", "x13"], ["x21", "x22", "x23"], ["x31", "x32", "x33"]])
    >>> numconv.im2col(X, (2, 2))
    array([['x22', 'x23', 'x32', 'x33'],
           ['x21', 'x22', 'x31', 'x32'],
           ['x12', 'x13', 'x22', 'x23'],
           ['x11', 'x12', 'x21', 'x22']], dtype='<U3')
    """
    (x, out), give = dispatch.read(x=x, out=out)
    geometry = window_geometry(
        x.shape, kernel_size, stride=stride, padding=padding, dilation=dilation, boundary=boundary,
        fill_value=fill_value, flip=flip,
    )
    return give(matrices.im2col(x, geometry, out, dispatch.asked_for()))


def col2im(
    cols: Any, input_shape: Sequence[int], kernel_size: Ints, *, stride: Ints = 1, padding: Padding = 0,
    dilation: Ints = 1, boundary: Boundary = "constant", fill_value: Any = 0, flip: bool = True, reduce: str = "sum",
    out: Any = None,
) -> Any:
    """Add every entry of ``X_conv`` back to the pixel it came from: the adjoint of ``im2col``.

    Parameters
    ----------
    cols : array of the shape that ``im2col`` gives for ``input_shape``
    input_shape : ints
        ``(*in)``, ``(C, *in)`` or ``(N, C, *in)``.
    kernel_size, stride, padding, dilation, boundary, fill_value, flip
        As for ``im2col``. What the constant received goes nowhere, whatever its value.
    reduce : {"sum", "mean"}
        ``"mean"`` divides by how many windows hold a pixel, so that it undoes ``im2col`` (pixels in no window are 0);
        integers give float64 then.
    out : array, optional
        If its dtype is wider, it is that of the sums, as in ``numpy.sum``.

    Returns
    -------
    array of ``input_shape``
        Of the dtype of ``cols``, in which sums of small integers wrap: uint8 at 255.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``im2col``.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> X = np.arange(1, 5)
    >>> cols = numconv.im2col(X, 2)
    >>> numconv.col2im(cols, (4,), 2)
    array([1, 4, 6, 4])
    >>> numconv.col2im(cols, (4,), 2, reduce="mean")
    array([1., 2., 3., 4.])
    """
    reduce = one_of("reduce", reduce, ("sum", "mean"))
    (cols, out), give = dispatch.read(cols=cols, out=out)
    geometry = window_geometry(
        input_shape, kernel_size, name="input_shape", stride=stride, padding=padding, dilation=dilation,
        boundary=boundary, fill_value=fill_value, flip=flip,
    )
    return give(matrices.col2im(cols, geometry, reduce, out, dispatch.asked_for()))


def kernel2row(
    w: Any, input_size: Ints, *, stride: Ints = 1, padding: Padding = 0, dilation: Ints = 1, groups: int = 1,
    boundary: Boundary = "constant", fill_value: complex = 0, flip: bool = True, triple: bool = False,
) -> Any:
    """Lay the kernel out as the sparse matrix ``W_conv``: row ``(k, p)`` is the kernel over the input at output ``p``.

    ``Y_flat = W_conv @ X_flat`` and ``dX_flat = W_conv.T @ dY_flat``.

    Parameters
    ----------
    w : array (*k) or (K, C/groups, *k)
    input_size : ints
        ``in``; an int for one axis.
    stride, padding, dilation, groups, boundary
        As for ``conv``; with an even kernel ``padding="same_lower"`` gives the matrix of SciPy's ``"same"`` and of
        ``convolve``, and ``"same"`` the rows one pixel later.
    fill_value : number, default 0
        Must be 0: with another constant the map is affine and has no matrix.
    flip : bool, default True
        True convolution, as in the seed.
    triple : bool, default False
        Return the arrays ``data, indices, indptr`` of the matrix, as ``@njit`` functions get them in any case.

    Returns
    -------
    scipy.sparse.csr_array (prod out, prod in) or (K * prod out, C * prod in), or three arrays
        Canonical, indices int32 where they fit. Its structure follows from the geometry alone: zeros of ``w`` stay
        stored. Taps that a boundary folds onto one pixel are added there, in the dtype of ``w``, so ``W_conv.T`` is the
        exact adjoint.

    Raises
    ------
    ValueError, TypeError
        If shapes and values do not fit.
    MemoryError
        If the matrix would not fit, before anything is allocated.

    Examples
    --------
    >>> import numconv
    >>> numconv.kernel2row([[1, 2], [3, 4]], (3, 3)).toarray()
    array([[4, 3, 0, 2, 1, 0, 0, 0, 0],
           [0, 4, 3, 0, 2, 1, 0, 0, 0],
           [0, 0, 0, 4, 3, 0, 2, 1, 0],
           [0, 0, 0, 0, 4, 3, 0, 2, 1]])
    """
    triple, groups = as_flag("triple", triple), as_int("groups", groups, 1)
    (w,), _ = dispatch.read(w=w)
    size = spatial_size("input_size", input_size)
    if w.ndim not in (len(size), len(size) + 2):
        raise ValueError(
            f"w must be (*k) with {len(size)} axes or (K, C/groups, *k) with {len(size) + 2} for input_size {size}, "
            f"got shape {w.shape}"
        )
    plain = w.ndim == len(size)
    channels = () if plain else (w.shape[1] * groups,)
    geometry = conv_geometry(
        (*channels, *size), w.shape, plain=plain, stride=stride, padding=padding, dilation=dilation, groups=groups,
        boundary=boundary, fill_value=fill_value, flip=flip, names=("input_size", "w"),
    )
    W_conv = matrices.kernel2row(w, geometry, dispatch.asked_for())
    is_triple = isinstance(W_conv, tuple)  # on a GPU, of libraries without sparse matrices
    return (W_conv.data, W_conv.indices, W_conv.indptr) if triple and not is_triple else W_conv


def csr_matvec(data: Any, indices: Any, indptr: Any, x: Any, out: Any = None) -> Any:
    """Multiply a CSR matrix, given as SciPy stores it, by a vector: ``y = A @ x`` on all cores.

    Parameters
    ----------
    data, indices, indptr : array (nnz,), int array (nnz,), int array (rows + 1,)
        ``A.data``, ``A.indices`` and ``A.indptr``; row ``i`` holds the entries ``indptr[i]`` to ``indptr[i + 1] - 1``.
        Taken without a copy if ``data`` has the dtype of the result. Entries need not be sorted, and add up where
        they repeat.
    x : array (columns,)
    out : array (rows,), optional

    Returns
    -------
    array (rows,)
        Of the dtype ``numpy.result_type(data, x)``, in which sums of small integers wrap, or ``out``, whose dtype is
        that of the sums if it is wider.

    Raises
    ------
    ValueError, TypeError
        If the arrays do not make a matrix whose columns ``x`` has, or do not fit together.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> A = numconv.kernel2row(np.array([1, 2]), 4)
    >>> A.toarray()
    array([[2, 1, 0, 0],
           [0, 2, 1, 0],
           [0, 0, 2, 1]])
    >>> numconv.csr_matvec(A.data, A.indices, A.indptr, np.array([1, 10, 100, 1000]))
    array([  12,  120, 1200])
    """
    (data, indices, indptr, x, out), give = dispatch.read(data=data, indices=indices, indptr=indptr, x=x, out=out)
    return give(matrices.csr_product(data, indices, indptr, x, "x", None, out, dispatch.asked_for()))


def csr_rmatvec(data: Any, indices: Any, indptr: Any, y: Any, columns: int, out: Any = None) -> Any:
    """Multiply the transpose of a CSR matrix by a vector: ``x = A.T @ y`` on all cores, without a conjugate.

    Parameters
    ----------
    data, indices, indptr : array (nnz,), int array (nnz,), int array (rows + 1,)
        As for ``csr_matvec``.
    y : array (rows,)
    columns : int
        How many columns ``A`` has, which the triple does not say.
    out : array (columns,), optional

    Returns
    -------
    array (columns,)
        Of the dtype ``numpy.result_type(data, y)``, or ``out``, as for ``csr_matvec``. The same bit for bit for any
        number of threads.

    Raises
    ------
    ValueError, TypeError
        If the arrays do not make a matrix of that many columns, or do not fit together.

    Notes
    -----
    Takes memory for partial sums: at most ``max(columns, nnz / 2)`` items.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> A = numconv.kernel2row(np.array([1, 2]), 4)
    >>> numconv.csr_rmatvec(A.data, A.indices, A.indptr, np.array([1, 10, 100]), 4)
    array([  2,  21, 210, 100])
    """
    columns = as_int("columns", columns, 0)
    (data, indices, indptr, y, out), give = dispatch.read(data=data, indices=indices, indptr=indptr, y=y, out=out)
    return give(matrices.csr_product(data, indices, indptr, y, "y", columns, out, dispatch.asked_for()))


def unfold(x: Any, kernel_size: Ints, dilation: Ints = 1, padding: Padding = 0, stride: Ints = 1) -> Any:
    """Lay windows out as columns, as ``torch.nn.functional.unfold`` does, for any number of axes and any dtype.

    Parameters
    ----------
    x : array (N, C, *in) or (C, *in)
    kernel_size, dilation, padding, stride
        As for ``im2col``, in torch's order. If all are single ints, ``x`` with 3 or 4 axes has two spatial axes, with
        5 three, and so on; ``kernel_size=(3,)`` says that there is one.

    Returns
    -------
    array (N, C * prod k, prod out) or (C * prod k, prod out)

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``im2col``.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> numconv.unfold(np.arange(6).reshape(1, 2, 3), (2, 2))
    array([[0, 1],
           [1, 2],
           [3, 4],
           [4, 5]])
    """
    (x,), give = dispatch.read(x=x)
    kernel_size, dilation = frozen(kernel_size, "kernel_size"), frozen(dilation, "dilation")
    padding, stride = frozen(padding, "padding"), frozen(stride, "stride")
    kernel = unfold_kernel(x.shape, kernel_size, dilation, padding, stride)
    return give(im2col(x, kernel, dilation=dilation, padding=padding, stride=stride, flip=False))


def unfold_kernel(
    shape: tuple[int, ...], kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> tuple[int, ...]:
    """``kernel_size`` of ``unfold`` with an int for each spatial axis of ``x`` of this shape."""
    d = _spatial_axes(kernel_size, dilation, padding, stride)
    if not d and len(shape) < 3:
        raise ValueError(
            f"x must be (N, C, *in) or (C, *in) with two spatial axes or more where kernel_size and the others are "
            f"single ints, got shape {shape}: an image without channels is x[None], and one spatial axis is "
            f"meant by kernel_size=({shown(kernel_size)},)"
        )
    kernel = spatial_size("kernel_size", kernel_size, d or max(2, len(shape) - 2))
    if len(shape) not in (len(kernel) + 1, len(kernel) + 2):
        raise ValueError(
            f"x must be (N, C, *in) or (C, *in) with one spatial axis for each int of kernel_size {kernel}, "
            f"got shape {shape}"
        )
    return kernel


def fold(
    cols: Any, output_size: Ints, kernel_size: Ints, dilation: Ints = 1, padding: Padding = 0, stride: Ints = 1
) -> Any:
    """Add columns back to their pixels, as ``torch.nn.functional.fold`` does: the adjoint of ``unfold``.

    Parameters
    ----------
    cols : array (N, C * prod k, prod out) or (C * prod k, prod out)
    output_size : ints
        Spatial shape of the result.
    kernel_size, dilation, padding, stride
        As for ``unfold``. If all are single ints, there are two spatial axes.

    Returns
    -------
    array (N, C, *output_size) or (C, *output_size)
        Of the dtype of ``cols``, in which sums of small integers wrap.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As for ``col2im``.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> x = np.arange(6).reshape(1, 2, 3)
    >>> numconv.fold(numconv.unfold(x, (2, 2)), (2, 3), (2, 2))
    array([[[0, 2, 2],
            [3, 8, 5]]])
    """
    (cols,), give = dispatch.read(cols=cols)
    output_size, kernel_size = frozen(output_size, "output_size"), frozen(kernel_size, "kernel_size")
    dilation, padding, stride = frozen(dilation, "dilation"), frozen(padding, "padding"), frozen(stride, "stride")
    shape, kernel = fold_shapes(cols.shape, output_size, kernel_size, dilation, padding, stride)
    return give(col2im(cols, shape, kernel, dilation=dilation, padding=padding, stride=stride, flip=False))


def fold_shapes(
    shape: tuple[int, ...], output_size: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What ``fold`` makes of ``cols`` of this shape: the shape of the result, and the kernel."""
    d = _spatial_axes(output_size, kernel_size, dilation, padding, stride)
    size, kernel = spatial_size("output_size", output_size, d or 2), spatial_size("kernel_size", kernel_size, d or 2)
    if len(size) != len(kernel):
        raise ValueError(f"output_size must have one int for each of kernel_size {kernel}, got {size}")
    taps = prod(kernel)
    if len(shape) not in (2, 3) or shape[-2] % taps:
        raise ValueError(
            f"cols must be (N, C * prod k, prod out) or (C * prod k, prod out) with prod k = {taps}, "
            f"got shape {shape}" + _TWO_AXES * (not d)
        )
    result = (*shape[:-2], shape[-2] // taps, *size)
    g = window_geometry(result, kernel, name="output_size", dilation=dilation, padding=padding, stride=stride)
    if shape[-1] != prod(g.out):
        raise ValueError(f"cols must have shape {g.cols_shape}, got {shape}" + _TWO_AXES * (not d))
    return result, kernel


#: What an error of ``fold`` adds where it has no argument that says how many axes there are.
_TWO_AXES = "; single ints stand for two spatial axes, as in torch: write output_size=(n,) for one"


def _spatial_axes(*arguments: Any) -> int:
    """How many axes the first argument that has one entry per axis speaks of; 0 if all are single values."""
    return next((len(a) for a in arguments if isinstance(a, tuple)), 0)
