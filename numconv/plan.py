"""A plan: a geometry, a dtype, a device and an algorithm, and every form of the convolution they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from . import arrays, dispatch, matrices, select, stream
from ._objects import SCALARS
from .arguments import PRECISIONS, as_int, as_real, frozen, one_of
from .geometry import ConvGeometry
from .products import Products
from .select import Choice as Choice  # for who reads the annotations of ConvPlan

if TYPE_CHECKING:
    import scipy.sparse
    from scipy.sparse.linalg import LinearOperator

    from .explain import Explanation


@dataclass(frozen=True, repr=False)
class ConvPlan(Products):
    """A convolution decided in advance: immutable, cheap, and safe to share between threads and processes.

    Made by ``plan_conv`` and ``plan_convolve``. It owns everything that follows from shapes alone; arrays come in
    with each call. Arrays of another dtype are taken if they cast to the plan's without loss.

    Attributes
    ----------
    geometry : ConvGeometry
        Every size, pad and offset.
    dtype : dtype
        Of arrays and results.
    device : {"cpu", "cuda"}
        Where NumPy arrays are computed.
    choice : Choice
        The algorithm of each of the three products.
    asked : str
        The algorithm that was asked for.
    precision : {"ieee", "tf32", "tf32x3"}
        How precise products must be at least.

    Examples
    --------
    >>> import numconv, numpy as np
    >>> plan = numconv.plan_convolve((3, 3), (2, 2), dtype=int)
    >>> plan
    ConvPlan((3, 3) * (2, 2) -> (2, 2), int64, algorithm='direct', device='cpu')
    >>> X, W, dY = np.arange(1, 10).reshape(3, 3), np.array([[1, 2], [3, 4]]), np.array([[5, -6], [7, 8]])
    >>> plan.forward(X, W)
    array([[23, 33],
           [53, 63]])
    >>> plan.grad_weight(X, dY)
    array([[117, 103],
           [ 75,  61]])
    >>> plan.grad_input(dY, W)
    array([[ 20,  -9, -18],
           [ 38,  46,  18],
           [ 14,  23,   8]])
    >>> plan.matrix(W).shape, plan.im2col(X).shape
    ((4, 9), (4, 4))
    """

    def __repr__(self) -> str:
        g = self.geometry
        return (
            f"ConvPlan({g.input_shape} * {g.kernel_shape} -> {g.output_shape}, {self.dtype}, "
            f"algorithm={self.algorithm!r}, device={self.device!r}"
            f"{f', precision={self.precision!r}' if self.precision != 'ieee' else ''})"
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of ``x``."""
        return self.geometry.input_shape

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of ``w``."""
        return self.geometry.kernel_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of ``y``."""
        return self.geometry.output_shape

    # the three products ---------------------------------------------------------------------------------------------

    def forward(self, x: Any, w: Any, bias: Any = None, out: Any = None, *, resume: Any = None) -> Any:
        """``Y = W_flat @ X_conv``, reshaped, plus one ``bias`` for each output channel.

        Parameters
        ----------
        x, w : array of ``input_shape`` and of ``kernel_shape``
        bias : array (K,), optional
        out : array of ``output_shape``, optional
        resume : path, optional
            For plans with ``max_bytes``: a file, the record, that lists which tiles of ``out`` are done. It is made if
            there is none. The same call in a new process goes on where the last one was killed, with the same bits; it
            stays when all is done, and the call once more computes nothing. Delete it as you like.

        Returns
        -------
        array of ``output_shape``
            Of the plan's dtype, or ``out``. Sums are kept in the plan's dtype even where ``out`` is wider.

        Raises
        ------
        ValueError
            If an argument does not fit the plan; if ``resume`` is a file that is no record (it is left as it is, even
            an empty one), that of another version of numconv, plan, ``w``, ``bias``, ``x`` or ``out``, or one that
            another process works with. Tiles follow from ``max_bytes`` and the number of threads, which stay, too.
        MemoryError
            If result and workspace do not fit into the memory that is free.

        Notes
        -----
        The record holds a checksum of all values of ``w`` and ``bias``, and for every finished tile one of all values
        of ``x`` that it read and one of those it wrote to ``out``. Before anything is computed, both are compared for
        every tile of the record: this reads that part of ``x`` and ``out`` once. Another input is an error, as is
        another time of change of an ``x`` in a ``numpy.memmap``; tiles that ``out`` does not hold any more, since its
        file was lost, cut off or written anew, are computed again. ``x`` may change where no tile has read it yet.

        ``out`` should be in a file that outlives the process: a ``numpy.memmap``, or an array of h5py or zarr. It is
        known by shape, dtype and its file, which is found from the folder of the record, so that both may be moved
        together. An array in memory serves to go on after Ctrl-C; a new process finds nothing in it and computes all
        of it. Values are flushed to the file of ``out`` before the record has the line of their tile.
        """
        if self._tiled(resume):
            return stream.forward(self, x, w, bias, out, resume)
        (x, w, bias, out), give = dispatch.read(x=x, w=w, bias=bias, out=out)
        return give(self.forward_of(x, w, bias, out))

    def grad_input(self, dy: Any, w: Any, out: Any = None, *, resume: Any = None) -> Any:
        """``dX = W_conv^H @ dY_flat``, reshaped: the adjoint of ``forward`` in ``x``.

        Parameters
        ----------
        dy, w : array of ``output_shape`` and of ``kernel_shape``
        out : array of ``input_shape``, optional
        resume : path, optional
            As for ``forward``.

        Returns
        -------
        array of ``input_shape``

        Raises
        ------
        ValueError, MemoryError
            As for ``forward``.
        """
        if self._tiled(resume):
            return stream.grad_input(self, dy, w, out, resume)
        (dy, w, out), give = dispatch.read(dy=dy, w=w, out=out)
        return give(self._grad_input_of(dy, w, out))

    def grad_weight(self, x: Any, dy: Any, out: Any = None) -> Any:
        """``dW = dY_flat @ X_conv^H``, reshaped: the adjoint of ``forward`` in ``w``.

        Parameters
        ----------
        x, dy : array of ``input_shape`` and of ``output_shape``
        out : array of ``kernel_shape``, optional

        Returns
        -------
        array of ``kernel_shape``
        """
        if self._tiled(None):
            return stream.grad_weight(self, x, dy, out)
        (x, dy, out), give = dispatch.read(x=x, dy=dy, out=out)
        return give(self._grad_weight_of(x, dy, out))

    def transpose(self, x: Any, w: Any, bias: Any = None, out: Any = None) -> Any:
        """``W_conv.T @ X_flat``, reshaped, plus a bias: ``conv_transpose``. Unlike ``grad_input``, no conjugate.

        Parameters
        ----------
        x, w : array of ``output_shape`` and of ``kernel_shape``
        bias : array (C,), optional
        out : array of ``input_shape``, optional

        Returns
        -------
        array of ``input_shape``
        """
        if self._tiled(None):
            return stream.transpose(self, x, w, bias, out)
        (x, w, bias, out), give = dispatch.read(x=x, w=w, bias=bias, out=out)
        return give(self._transpose_of(x, w, bias, out))

    # the matrices ---------------------------------------------------------------------------------------------------

    def im2col(self, x: Any) -> Any:
        """``X_conv`` of ``x``, as ``numconv.im2col`` gives it for this geometry.

        Parameters
        ----------
        x : array of ``input_shape``

        Returns
        -------
        array (C * prod k, prod out), with N in front for a batch
            A row for each kernel value, a column for each output pixel.
        """
        (x,), give = dispatch.read(x=x)
        arrays.check_shape("x", x, self.input_shape)
        return give(matrices.im2col(x, self.geometry, device=self.device))

    def col2im(self, cols: Any) -> Any:
        """The adjoint of ``im2col``: every entry of ``cols`` added to the pixel it came from.

        Parameters
        ----------
        cols : array (C * prod k, prod out), with N in front for a batch

        Returns
        -------
        array of ``input_shape``
        """
        (cols,), give = dispatch.read(cols=cols)
        return give(matrices.col2im(cols, self.geometry, "sum", device=self.device))

    def matrix(self, w: Any) -> scipy.sparse.csr_array:
        """``W_conv`` of ``w`` as a canonical CSR array; a batch is not part of it.

        Parameters
        ----------
        w : array of ``kernel_shape``

        Returns
        -------
        scipy.sparse.csr_array (K * prod out, C * prod in)
        """
        (w,), _ = dispatch.read(w=w)
        return matrices.kernel2row(self._weights_for_a_matrix(w), self.geometry, self.device)

    def refill(self, csr: scipy.sparse.csr_array, w: Any) -> scipy.sparse.csr_array:
        """Write the weights ``w`` into ``csr``, a matrix that this plan or an equal one made, in place.

        Parameters
        ----------
        csr : scipy.sparse.csr_array
            From ``matrix``.
        w : array of ``kernel_shape``

        Returns
        -------
        scipy.sparse.csr_array
            ``csr`` itself.

        Raises
        ------
        ValueError
            If the structure of ``csr`` is not that of this geometry; nothing is written then.
        """
        (w,), _ = dispatch.read(w=w)
        return matrices.refill(csr, self._weights_for_a_matrix(w), self.geometry, self.device)

    def linear_operator(self, w: Any) -> LinearOperator:
        """``W_conv`` of ``w`` without storing it, for SciPy's solvers.

        Parameters
        ----------
        w : array of ``kernel_shape``
            Copied: later changes do not change the operator.

        Returns
        -------
        scipy.sparse.linalg.LinearOperator (K * prod out, C * prod in)
            ``matvec`` is the forward product, ``rmatvec`` its exact Hermitian adjoint. For an array of CuPy, that of
            ``cupyx``.

        Raises
        ------
        ValueError
            With a ``fill_value`` other than 0, which makes the map affine.
        """
        from . import operators

        return operators.linear_operator(self, w)

    def norm(self, w: Any, *, tol: float = 1e-5) -> float:
        """The largest singular value of ``W_conv``: how much longer ``forward`` can make its input, in the 2-norm.

        Exact where the convolution is circular: boundary ``"wrap"``, stride 1, as many outputs as inputs. Otherwise by
        Lanczos' method, which stops where its residual is below ``tol`` times the square of the norm, after some
        hundred products. What it has then is a lower bound, as a rule much nearer than ``tol``; where singular values
        crowd at the top it is as near as they are to each other. It always starts from the same vector.

        Parameters
        ----------
        w : array of ``kernel_shape``
        tol : float, default 1e-5
            Where Lanczos' method stops, finite and not negative; less than double precision resolves counts as that.

        Returns
        -------
        float
            NaN if a weight is not finite.

        Raises
        ------
        ValueError
            With a ``fill_value`` other than 0, which makes the map affine.

        Examples
        --------
        >>> import numconv
        >>> plan = numconv.plan_convolve((64, 64), (1, 2), "same", boundary="wrap", dtype=float)
        >>> plan.norm([[1, -1]])  # a difference doubles what alternates
        2.0
        """
        from . import operators

        return operators.norm(self, w, as_real("tol", tol))

    def gram_diagonal(self, w: Any) -> np.ndarray:
        """The diagonal of ``W_conv^H @ W_conv``: the scaling of Jacobi's method.

        For each pixel the squared 2-norm of what it adds to the output, without the matrix.

        Parameters
        ----------
        w : array of ``kernel_shape``

        Returns
        -------
        array (C, *in) or (*in)
            Of the plan's dtype or that of its real part; int64 or uint64 for integers, as ``numpy.sum`` has it.

        Raises
        ------
        ValueError
            With a ``fill_value`` other than 0, which makes the map affine.

        Examples
        --------
        >>> import numconv
        >>> numconv.plan_convolve((4,), (3,), "same", dtype=int).gram_diagonal([1, 2, 3])
        array([13, 14, 14,  5])
        """
        from . import operators

        return operators.gram_diagonal(self, w)

    def coverage(self) -> np.ndarray:
        """How often windows read each pixel: ``col2im`` of ones, the same for every channel.

        Returns
        -------
        array of int (*in)

        Examples
        --------
        >>> import numconv
        >>> numconv.plan_conv((1, 5), (1, 1, 3), stride=2).coverage()
        array([1, 1, 2, 1, 1])
        """
        matrices.require_coverage(self.geometry)
        return matrices.coverage(self.geometry)

    # facts ----------------------------------------------------------------------------------------------------------

    def nbytes(self, what: Literal["im2col", "matrix", "workspace"]) -> int:
        """How many bytes ``im2col(x)``, ``matrix(w)``, or ``forward`` beside its arguments and result would take.

        Parameters
        ----------
        what : {"im2col", "matrix", "workspace"}

        Returns
        -------
        int
        """
        what = cast(Any, one_of("what", what, ("im2col", "matrix", "workspace")))
        if what == "matrix":
            return matrices.matrix_nbytes(self.geometry, self.dtype)
        if what == "im2col":
            return prod(self.geometry.cols_shape) * self.dtype.itemsize
        return self._workspace

    def explain_choice(self) -> str:
        """Say what was chosen and why: for every algorithm the time expected, its workspace, and why not.

        Returns
        -------
        str
            A table with a line for each algorithm; a star marks what each product uses. The times follow from shapes
            and dtype by a model that was fitted on one machine: they say which is faster, not how fast it is here. What
            has a star is the fastest for one image (on a GPU: 32; for the weight gradient: all), so that no image has
            another algorithm in another batch. On a GPU the page is that of arrays of torch or CuPy, whose BLAS
            multiplies for ``"im2col"`` and whose FFT transforms for ``"fft"``; for arrays of other libraries, and
            NumPy's, ``"auto"`` takes neither.

        Examples
        --------
        >>> import numconv
        >>> plan = numconv.plan_conv((8, 64, 56, 56), (64, 64, 3, 3), dtype="int32")
        >>> page = plan.explain_choice()
        >>> [line for line in page.splitlines() if "winograd" in line][0].endswith("not exact for int32")
        True
        """
        page = select.explain(self.geometry, self.dtype, self.device, self.choice)
        if self.precision == "ieee":
            return page
        return f"{page}\nprecision={self.precision!r} is the least: implicit on a GPU takes its tensor cores for it"

    def check(self, seed: int = 0) -> dict[str, float]:
        """Compute every form on random data and compare.

        Parameters
        ----------
        seed : int, default 0
            Of the random data.

        Returns
        -------
        dict of str to float
            For each algorithm that serves this geometry the largest difference from the naive order of the sum
            (``direct``, in the widest type), and for ``adjoint_input`` and ``adjoint_weight`` how far
            ``<A x, y>`` is from ``<x, A^H y>``; all relative to the size of the values. Integers give exactly 0.
        """
        from .check import check

        return check(self, as_int("seed", seed, 0, 2**128))

    def explain(self) -> Explanation:
        """The matrices of this geometry as symbols: ``w22 x11 + w21 x12 + …``.

        Returns
        -------
        Explanation
            Prints as a page of text, shows as coloured tables in a notebook; ``entry(matrix, i, j)`` gives one sum,
            ``plot()`` a figure, ``to_html()`` the tables.

        Raises
        ------
        ValueError
            Where there would be more than 20,000 entries.

        Examples
        --------
        >>> import numconv
        >>> numconv.plan_convolve((3, 3), (2, 2)).explain().entry("Y", 0, 0)
        'w22 x11 + w21 x12 + w12 x21 + w11 x22'
        """
        from .explain import explain

        return explain(self.geometry)


@lru_cache(maxsize=1024)
def make_plan(
    geometry: ConvGeometry, dtype: np.dtype, device: str, algorithm: str, precision: str = "ieee"
) -> ConvPlan:
    """The plan for a geometry; equal arguments give the same object. ``"auto"`` picks a device, too."""
    arrays.as_fill(geometry.fill_value, arrays.computed_in(dtype))  # an error now if the dtype cannot hold it
    if device == "auto":
        device = select.device_for(geometry, dtype, algorithm)
    choice = select.choose(algorithm, geometry, dtype, device)
    return ConvPlan(geometry, dtype, device, choice, algorithm, precision=precision)


def plan_for(
    geometry_of: Callable[..., ConvGeometry], input_shape: tuple[int, ...], kernel_shape: tuple[int, ...],
    dtype: np.dtype, algorithm: str, precision: str = "ieee", **arguments: Any,
) -> ConvPlan:
    """The plan for ``geometry_of(input_shape, kernel_shape, **arguments)``, looked up by the arguments themselves.

    This makes functional calls cheap: one that was made before costs no thought about its geometry.
    """
    if not SCALARS.issuperset(map(type, arguments.values())):
        arguments = {name: frozen(value, name) for name, value in arguments.items()}
    if type(algorithm) is not str:
        algorithm = one_of("algorithm", algorithm, select.ASKED)
    if type(precision) is not str or precision not in PRECISIONS:
        precision = one_of("precision", precision, PRECISIONS)
    device = dispatch.choose_device()
    return _plan_for(geometry_of, input_shape, kernel_shape, dtype, device, algorithm, precision, **arguments)


@lru_cache(maxsize=1024, typed=True)
def _plan_for(
    geometry_of: Callable[..., ConvGeometry], input_shape: Any, kernel_shape: Any, dtype: np.dtype, device: str,
    algorithm: str, precision: str, **arguments: Any,
) -> ConvPlan:
    return make_plan(geometry_of(input_shape, kernel_shape, **arguments), dtype, device, algorithm, precision)
