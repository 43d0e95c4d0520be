"""The matrices of a convolution as symbols, as the lecture slides write them: ``y11 = w22 x11 + w21 x12 + …``.

Everything follows from one table (``pixel_table``): the input pixel that a kernel value meets at an output pixel.
``X_conv`` is that table with names in it; the sums of ``Y``, ``dW`` and ``dX`` and the cells of ``W_conv`` are what
is collected when it is read once. How a page of them looks stands in ``picture``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._indexing import FAR, position, source
from .arguments import as_int, one_of
from .geometry import ConvGeometry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The most entries that ``X_conv`` or ``W_conv`` may have, and the most products in all the sums of ``Y``.
LIMIT = 20_000

Symbols = NDArray[np.object_]


def explain(geometry: ConvGeometry) -> Explanation:
    """The matrices of one convolution as symbols.

    Parameters
    ----------
    geometry : ConvGeometry
        Any small geometry. A batch plays no part: one sample is explained.

    Returns
    -------
    Explanation
        Prints as a page of text; in a notebook, as tables in colour.

    Raises
    ------
    ValueError
        Where ``X_conv``, ``W_conv`` or the sums would have more than 20,000 entries.

    Examples
    --------
    >>> from numconv.geometry import conv_geometry
    >>> page = explain(conv_geometry((3, 3), (2, 2), plain=True, flip=True))
    >>> page
    <Explanation: X (3 x 3) * W (2 x 2) = Y (2 x 2), X_conv (4 x 4), W_conv (4 x 9)>
    >>> page.entry("Y", 0, 0)
    'w22 x11 + w21 x12 + w12 x21 + w11 x22'
    >>> print(page.matrix("X_conv"))
    [['x22' 'x23' 'x32' 'x33']
     ['x21' 'x22' 'x31' 'x32']
     ['x12' 'x13' 'x22' 'x23']
     ['x11' 'x12' 'x21' 'x22']]
    """
    return Explanation(geometry)


def pixel_table(geometry: ConvGeometry) -> NDArray[np.int64]:
    """The input pixel that each kernel value meets at each output pixel.

    Returns
    -------
    ndarray of int64, shape ``(C * prod k, prod out)``
        Flat indices into one sample ``(C, *in)``, or -1 for the constant outside it.
    """
    table = np.arange(geometry.C, dtype=np.int64)[:, None]
    for size, kernel, out, start, stride, step in geometry.axis_rows:
        places = [[position(o, t, start, stride, step) for o in range(out)] for t in range(kernel)]
        met = np.array([[source(i, size, geometry.boundary_code) for i in row] for row in places], dtype=np.int64)
        rows, pixels = table.shape
        before, met = table[:, None, :, None], met[None, :, None, :]
        table = np.where((before < 0) | (met < 0), -1, before * size + met).reshape(rows * kernel, pixels * out)
    return table


def symbols(geometry: ConvGeometry, prefix: str = "") -> tuple[Symbols, Symbols, Symbols]:
    """The names of all values: ``x11``, ``w21``, ``y12``, with channels ``x2:11``, ``w31:12``, ``y3:11``.

    Indices count from 1. They run together while every extent has one digit, else commas part them (``x1,12``);
    channels and pixels decide that each for themselves.

    Returns
    -------
    x, w, y : ndarray of str objects, shapes ``(C, prod in)``, ``(K, C/G * prod k)``, ``(K, prod out)``
    """
    g = geometry

    def named(letter: str, channels: tuple[int, ...], spatial: tuple[int, ...]) -> Symbols:
        leads = [""] if g.plain else [f"{index}:" for index in _indices(channels)]
        names = [f"{prefix}{letter}{lead}{index}" for lead in leads for index in _indices(spatial)]
        return np.array(names, dtype=object).reshape(channels[0], prod(channels[1:]) * prod(spatial))

    return named("x", (g.C,), g.size), named("w", (g.K, g.C // g.groups), g.kernel), named("y", (g.K,), g.out)


def _indices(extents: tuple[int, ...]) -> list[str]:
    comma = "," if max(extents) > 9 else ""
    return [comma.join(str(i + 1) for i in index) for index in np.ndindex(*extents)]


def row_labels(geometry: ConvGeometry) -> list[str]:
    """The kernel values that meet each row of ``X_conv``: one for each output channel of the row's group."""
    _, w, _ = symbols(geometry)
    per_group = geometry.K // geometry.groups
    met = [names for g in range(geometry.groups) for names in w[g * per_group : (g + 1) * per_group].T.tolist()]
    return [" ".join(names) if len(names) < 3 else f"{names[0]} … {names[-1]}" for names in met]


def column_labels(geometry: ConvGeometry) -> list[str]:
    """The output pixels of the columns of ``X_conv``, which serve all output channels: ``y:11`` where these differ."""
    return [f"y{'' if geometry.plain else ':'}{index}" for index in _indices(geometry.out)]


def by(shape: Iterable[object]) -> str:
    """A shape as the slides write it: ``3 x 3``."""
    return " x ".join(map(str, shape))


class Table(NamedTuple):
    """A matrix on the page, with a label for each row and column where they say something."""

    name: str
    cells: Symbols
    rows: list[str]
    columns: list[str]


class Section(NamedTuple):
    """A piece of the page: tables side by side, then equations (left side, right side)."""

    title: str
    text: str
    tables: list[Table]
    equations: list[tuple[str, str]]


class Explanation:
    """The matrices of one convolution as symbols; ``explain`` makes it.

    Printing it gives a page of text, a notebook shows tables in which each kernel value has its own colour.
    ``entry`` and ``matrix`` give single matrices, ``matrices`` lists them with their shapes.

    Notes
    -----
    ``W`` is the kernel as it stands, ``W_rot`` as it slides: turned for a true convolution, else ``W`` itself.
    ``X``, ``W``, ``Y`` and their gradients have the shape of the plain 2-D arrays that they are; in any other case
    they have a row for each channel: ``X`` ``(C, prod in)``, ``W`` ``(K, C/G * prod k)``, ``Y`` ``(K, prod out)``,
    with ``C = K = 1`` for plain arrays. The flat forms are ``X_flat`` ``(C * prod in, 1)``, ``W_flat``
    ``(K, C/G * prod k)`` and ``Y_flat`` ``(K, prod out)``, so that::

        Y  = reshape(W_flat @ X_conv)            forward, im2col
        Y  = reshape(W_conv @ X_flat)            forward, kernel2row
        dW = reshape(dY_flat @ X_conv.T)         backward to the kernel
        dX = reshape(W_conv.T @ dY_flat)         backward to the input, dY_flat as a column

    With groups, the products with ``X_conv`` go group by group. ``Y``, ``dW`` and ``dX`` are sums of such symbols:
    ``Y`` in the order in which the kernel slides over the input, the gradients in the order of the output pixels.
    A boundary that folds several taps onto one pixel shows as ``w11 + w12`` in ``W_conv``. A constant ``c`` outside
    the input is ``c`` in ``X_conv`` and gives terms like ``3·w11``, none where it is 0; ``W_conv`` leaves it out.
    For complex numbers the gradients take the conjugate of ``x`` and ``w``.

    The source of names and order is the lecture "Convolution: matrix computation" by Dr. Thanh-Sach LE, HCMUT.

    Examples
    --------
    >>> from numconv.geometry import conv_geometry
    >>> page = explain(conv_geometry((1, 3), (1, 1, 2), padding=1, boundary="edge"))
    >>> print(page.matrix("W_conv"))
    [['w11:1 + w11:2' '0' '0']
     ['w11:1' 'w11:2' '0']
     ['0' 'w11:1' 'w11:2']
     ['0' '0' 'w11:1 + w11:2']]
    >>> page.entry("dX", 0, 1)
    'dy1:2 w11:2 + dy1:3 w11:1'
    """

    def __init__(self, geometry: ConvGeometry) -> None:
        g = geometry
        rows, columns = g.matrix_shape
        pixels, taps = prod(g.out), prod(g.kernel)
        terms = rows * (g.C // g.groups) * taps
        for name, count in (("X_conv", g.C * taps * pixels), ("W_conv", rows * columns), ("the sums", terms)):
            if count > LIMIT:
                raise ValueError(
                    f"only small geometries can be explained, up to {LIMIT:,} entries; {name} would have {count:,}"
                )
        self.geometry = geometry

    @cached_property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """The names that ``entry`` and ``matrix`` take, and the shape of each matrix."""
        g = self.geometry
        X_flat, W_flat, Y_flat = (g.C * prod(g.size), 1), (g.K, g.C // g.groups * prod(g.kernel)), (g.K, prod(g.out))
        X, W, Y = (g.size, g.kernel, g.out) if g.plain and g.d == 2 else ((g.C, prod(g.size)), W_flat, Y_flat)
        X_conv, W_conv = (g.C * prod(g.kernel), prod(g.out)), g.matrix_shape
        return {
            "X": X, "W": W, "W_rot": W, "Y": Y, "X_flat": X_flat, "W_flat": W_flat, "Y_flat": Y_flat,
            "X_conv": X_conv, "X_conv.T": X_conv[::-1], "W_conv": W_conv, "W_conv.T": W_conv[::-1],
            "dX": X, "dW": W, "dY": Y, "dX_flat": X_flat, "dW_flat": W_flat, "dY_flat": Y_flat,
        }

    def matrix(self, name: str) -> Symbols:
        """A whole matrix as a read-only array of strings, shape ``matrices[name]``.

        Raises
        ------
        ValueError
            For a name that is not in ``matrices``.
        """
        return self._matrix("name", name)

    def _matrix(self, argument: str, name: str) -> Symbols:
        name = one_of(argument, name, list(self.matrices))
        base = name.removesuffix("_flat").removesuffix(".T")
        cells = (self._collected if base in self._collected else self._named)[base]
        cells = (cells.T if name.endswith(".T") else cells.reshape(self.matrices[name])).view()
        cells.setflags(write=False)
        return cells

    def entry(self, matrix: str, i: int, j: int) -> str:
        """One entry of a matrix, as the slides write it.

        Row ``i`` and column ``j`` count from 0, or from the end, as in NumPy; the symbols count from 1.

        Raises
        ------
        ValueError
            For a name that is not in ``matrices``.
        IndexError
            For an entry outside it.

        Examples
        --------
        >>> from numconv.geometry import conv_geometry
        >>> page = explain(conv_geometry((3, 3), (2, 2), plain=True, flip=True))
        >>> page.entry("W_conv", 0, 0), page.entry("dW", 0, 0)
        ('w22', 'dy11 x22 + dy12 x23 + dy21 x32 + dy22 x33')
        """
        cells = self._matrix("matrix", matrix)
        i, j = as_int("i", i, -FAR), as_int("j", j, -FAR)
        rows, columns = cells.shape
        if not (-rows <= i < rows and -columns <= j < columns):
            raise IndexError(f"entry i={i}, j={j} lies outside {matrix}, which has the shape {cells.shape}")
        return str(cells[i, j])

    # the content ----------------------------------------------------------------------------------------------------

    @cached_property
    def _table(self) -> NDArray[np.int64]:
        return pixel_table(self.geometry)

    @cached_property
    def _constant(self) -> str:
        constant = self.geometry.fill_value
        return str(1 * constant).removesuffix(".0") if constant != 0 else "0"  # 1 * True is 1

    @cached_property
    def _named(self) -> dict[str, Symbols]:
        """The matrices that hold plain names."""
        x, w, _ = symbols(self.geometry)
        planes = w.reshape(-1, prod(self.geometry.kernel))
        return {
            "X": x,
            "W": w,
            "W_rot": planes[:, ::-1] if self.geometry.flip else planes,
            "X_conv": np.array([*x.flat, self._constant], dtype=object)[self._table],  # -1 reads the last: the constant
            "dY": symbols(self.geometry, "d")[2],
        }

    @cached_property
    def _collected(self) -> dict[str, Symbols]:
        """The matrices that hold sums: what each entry gathers when output pixels and taps are walked through once."""
        g, table, constant = self.geometry, self._table, self._constant
        (x, w, y), dy = symbols(g), symbols(g, "d")[2]
        taps, pixels, per_group = prod(g.kernel), prod(g.out), g.K // g.groups
        pixel_names = x.ravel().tolist()
        # as the kernel slides, so that every sum comes out in the order of the slides
        sliding = np.arange(w.shape[1]).reshape(-1, taps)[:, :: -1 if g.flip else 1].ravel().tolist()
        sums: dict[str, dict[tuple[int, int], list[str]]] = {"Y": {}, "dW": {}, "dX": {}, "W_conv": {}}

        def add(name: str, i: int, j: int, term: str) -> None:
            sums[name].setdefault((i, j), []).append(term)

        for k, p in np.ndindex(*y.shape):
            for column in sliding:
                pixel = int(table[k // per_group * w.shape[1] + column, p])
                if pixel >= 0:
                    add("Y", k, p, f"{w[k, column]} {pixel_names[pixel]}")
                    add("dW", k, column, f"{dy[k, p]} {pixel_names[pixel]}")
                    add("W_conv", k * pixels + p, pixel, w[k, column])
                elif constant != "0":
                    add("Y", k, p, f"{constant}·{w[k, column]}")
                    add("dW", k, column, f"{constant}·{dy[k, p]}")
        for (row, pixel), values in sums["W_conv"].items():  # dX = W_conv.T @ dY_flat
            if g.flip:
                values.reverse()  # folded taps in the kernel's own order: w11 + w12
            for value in values:
                add("dX", pixel // x.shape[1], pixel % x.shape[1], f"{dy.flat[row]} {value}")
        shapes = {"Y": y.shape, "dW": w.shape, "dX": x.shape, "W_conv": g.matrix_shape}
        return {name: _summed(terms, shapes[name]) for name, terms in sums.items()}

    # the page -------------------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """The sizes in one line."""
        g = self.geometry
        X, Y = (g.size, g.out) if g.plain else ((g.C, *g.size), (g.K, *g.out))  # without the batch
        return f"X ({by(X)}) * W ({by(g.kernel_shape)}) = Y ({by(Y)})"

    @property
    def settings(self) -> str:
        """Which way round the kernel slides, and every setting that is not the plain one."""
        g = self.geometry
        words = ["convolution: W turns before it slides" if g.flip else "cross-correlation: W slides as it is"]
        words += [f"stride {by(g.stride)}"] if max(g.stride) > 1 else []
        words += [f"dilation {by(g.dilation)}"] if max(g.dilation) > 1 else []
        if any(lo or hi for lo, hi in g.padding):
            pads = by(lo if lo == hi else f"({lo}, {hi})" for lo, hi in g.padding)
            words.append(f"padding {pads} ({f'of {self._constant}' if g.boundary == 'constant' else g.boundary})")
        words += [f"{g.groups} groups"] if g.groups > 1 else []
        return ", ".join(words)

    def page(self) -> list[Section]:
        """What is shown, as text or in colour: sections of tables and equations."""
        g = self.geometry
        x, w, y = (names.ravel().tolist() for names in symbols(g))
        kernel, outputs = row_labels(g), column_labels(g)

        def table(name: str, rows: list[str] | None = None, columns: list[str] | None = None) -> Table:
            return Table(name, self.matrix(name), rows or [], columns or [])

        def sums(name: str, prefix: str, names: list[str]) -> list[tuple[str, str]]:
            return list(zip([prefix + left for left in names], self.matrix(name).ravel().tolist(), strict=True))

        grouped, affine = g.groups > 1, self._constant != "0" and -1 in self._table
        return [
            Section("Input and kernel", "", [table(n) for n in ("X", "W", "W_rot")[: 3 if g.flip else 2]], []),
            Section(f"X_conv ({by(self.matrices['X_conv'])}), im2col",
                    "a row for each kernel value, a column for each output pixel: the input pixel that they meet",
                    [table("X_conv", kernel, outputs)], []),
            Section(f"W_conv ({by(self.matrices['W_conv'])}), kernel2row",
                    "a row for each output pixel: the kernel laid over the input, a column for each input pixel",
                    [table("W_conv", y, x)], []),
            Section("Forward: Y = reshape(W_flat @ X_conv) = reshape(W_conv @ X_flat)",
                    ", ".join(["the first group by group"] * grouped + ["the second plus the constant"] * affine),
                    [table("W_flat")], sums("Y", "", y)),
            Section("Backward to the kernel: dW = reshape(dY_flat @ X_conv.T)", "group by group" * grouped,
                    [table("X_conv.T", outputs, kernel)], sums("dW", "d", w)),
            Section("Backward to the input: dX = reshape(W_conv.T @ dY_flat)", "",
                    [table("W_conv.T", x, y)], sums("dX", "d", x)),
        ]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} ({by(self.matrices[name])})" for name in ("X_conv", "W_conv"))
        return f"<Explanation: {self.title}, {sizes}>"

    def __str__(self) -> str:
        from .picture import text

        return text(self)

    def _repr_html_(self) -> str:
        from .picture import html

        return html(self)

    def to_html(self) -> str:
        """The page in colour as a file of its own, to be written with ``encoding="utf-8"``."""
        from .picture import html

        head = f'<meta charset="utf-8"/><meta name="color-scheme" content="light dark"/><title>{self.title}</title>'
        return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{html(self)}</body></html>\n'

    def plot(self, axes: Sequence[Axes] | None = None) -> Figure:
        """``X_conv`` and ``W_conv`` as a figure; see ``numconv.picture.plot``."""
        from .picture import plot

        return plot(self, axes)


def _summed(sums: dict[tuple[int, int], list[str]], shape: tuple[int, ...]) -> Symbols:
    cells = np.full(shape, "0", dtype=object)
    for place, terms in sums.items():
        cells[place] = " + ".join(terms).replace("+ -", "- ")
    return cells
