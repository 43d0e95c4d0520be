"""How the matrices of a convolution look: a page of text, coloured tables for a notebook, a figure.

One colour belongs to one kernel value and follows it everywhere. Output channels share the colours, so that a row of
``X_conv``, which meets them all, has one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from itertools import islice
from math import ceil, isqrt, prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._objects import ask, described
from .explain import Explanation, Section, Symbols, Table, by, column_labels, explain, pixel_table, row_labels, symbols
from .geometry import ConvGeometry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Fills for cells with black print that stay apart for colour-blind eyes, and a ramp for where these run out: the
#: schemes "light" and "iridescent" of Paul Tol, "Colour Schemes", SRON/EPS/TN/09-002.
LIGHT = ("#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#99DDFF", "#44BB99", "#BBCC33", "#AAAA00", "#DDDDDD")
IRIDESCENT = (
    "#DDECBF", "#D0E7CA", "#C2E3D2", "#B5DDD8", "#A8D8DC", "#9BD2E1", "#8DCBE4", "#81C4E7", "#7BBCE7", "#7EB2E4",
    "#88A5DD", "#9398D2", "#9B8AC4", "#9D7DB2", "#9A709E", "#906388", "#805770", "#684957",
)

#: The most values that a drawn ``X``, ``X_conv`` or ``W_conv`` may hold, the most cells with symbols in them, and the
#: most blocks along an axis, into which a larger matrix is gathered.
LIMIT = 4_000_000
READABLE = 1_200
BLOCKS = 160

Image = NDArray[np.float64]


def palette(count: int) -> list[str]:
    """``count`` colours as ``#RRGGBB``: nine that are told apart by name, beyond that an even ramp."""
    if count <= len(LIGHT):
        return list(LIGHT[:count])
    at = np.linspace(0, len(IRIDESCENT) - 1, count)
    channels = [np.interp(at, range(len(IRIDESCENT)), channel) for channel in zip(*map(_rgb, IRIDESCENT), strict=True)]
    return [f"#{round(r):02X}{round(g):02X}{round(b):02X}" for r, g, b in zip(*channels, strict=True)]


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def ink(colour: str) -> str:
    """Black or white, whichever stands out more on a colour (relative luminance of WCAG 2)."""
    r, g, b = ((value / 255) ** 2.2 for value in _rgb(colour))
    return "#000000" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 else "#FFFFFF"


def colours(geometry: ConvGeometry) -> dict[str, str]:
    """The colour of each kernel value, by its symbol."""
    _, w, _ = symbols(geometry)
    tints = palette(w.shape[1])
    return {name: tint for row in w.tolist() for name, tint in zip(row, tints, strict=True)}


# a page of text -----------------------------------------------------------------------------------------------------


def text(explanation: Explanation) -> str:
    """The page of an explanation as plain text."""
    lines = [explanation.title, explanation.settings]
    for section in explanation.page():
        lines += ["", section.title, *filter(None, [section.text]), ""]
        lines += _side_by_side([_text_block(table) for table in section.tables])
        if section.equations:
            width = max(len(left) for left, _ in section.equations)
            lines += ["", *(f"  {left:{width}} = {right}" for left, right in section.equations)]
    return "\n".join(lines)


def _text_block(table: Table) -> list[str]:
    """A table as lines of equal length: its labels around it, or its name before it."""
    cells = table.cells.tolist()
    if table.columns:
        cells = [["", *table.columns], *([label, *row] for label, row in zip(table.rows, cells, strict=True))]
    else:
        cells = [[f"{table.name} =" if i == 0 else "", *row] for i, row in enumerate(cells)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in cells]
    return [f"  {label}{' | ' if table.columns else ' '}{' '.join(values)}" for label, *values in lines]


def _side_by_side(blocks: list[list[str]]) -> list[str]:
    blocks = [block for block in blocks if block]
    height = max(map(len, blocks), default=0)
    level = [block + [" " * len(block[0])] * (height - len(block)) for block in blocks]
    return ["    ".join(parts).rstrip() for parts in zip(*level, strict=True)]


# tables for a notebook ----------------------------------------------------------------------------------------------

KERNEL_VALUE = re.compile(r"\bd?(w[\d:,]+)")
CELL = "border:1px solid rgba(128,128,128,.3);padding:1px 6px;text-align:center;white-space:nowrap;"
SIDE_BY_SIDE = "display:flex;flex-wrap:wrap;align-items:flex-start;gap:6px 24px;margin:6px 0;overflow-x:auto"
FAINT = "opacity:.55;"


def html(explanation: Explanation) -> str:
    """The page of an explanation as HTML with inline styles only, for light and dark notebooks."""
    tints = colours(explanation.geometry)
    parts = [f"<div><strong>{escape(explanation.title)}</strong><br/>{escape(explanation.settings)}</div>"]
    parts += [_section(section, tints) for section in explanation.page()]
    return f'<div style="font-family:monospace;font-size:13px;line-height:1.5">{"".join(parts)}</div>'


def _section(section: Section, tints: dict[str, str]) -> str:
    named = [("" if section.title.startswith(f"{table.name} ") else table.name, table) for table in section.tables]
    tables = "".join(_table(name, table, tints) for name, table in named)
    lines = [
        f'<tr style="background:none">{_cell("td", left, [tints[v] for v in KERNEL_VALUE.findall(left)])}'
        f'<td style="text-align:left;padding:1px 6px">= {_inline(right, tints)}</td></tr>'
        for left, right in section.equations
    ]
    equations = f'<table style="border-collapse:collapse">{"".join(lines)}</table>' if lines else ""
    return (
        f'<div style="margin-top:1.2em"><strong>{escape(section.title)}</strong></div><div>{escape(section.text)}</div>'
        f'<div style="{SIDE_BY_SIDE}">{tables}</div>'
        f'<div style="overflow-x:auto;white-space:nowrap">{equations}</div>'
    )


def _table(name: str, table: Table, tints: dict[str, str]) -> str:
    def found(*texts: str) -> list[str]:
        return next((hits for text in texts if (hits := [tints[v] for v in KERNEL_VALUE.findall(text)])), [])

    def labels(texts: Sequence[str]) -> list[str]:
        return [_cell("th", text, found(text)[:1], "font-weight:normal;") for text in texts]

    columns = table.columns or [""] * table.cells.shape[1]
    rows = table.rows or [""] * table.cells.shape[0]
    lines = [["<th></th>" if table.rows else "", *labels(table.columns)]] if table.columns else []
    for label, row in zip(rows, table.cells.tolist(), strict=True):
        line = labels([label]) if table.rows else []
        for column, text in zip(columns, row, strict=True):
            # an input pixel takes the colour of the kernel value whose row (or column) it stands in
            met = found(text) if not text.startswith("x") else found(label, column)[:1]
            line.append(_cell("td", text, met, FAINT if text == "0" else ""))
        lines.append(line)
    body = "".join(f'<tr style="background:none">{"".join(line)}</tr>' for line in lines)
    caption = f'<caption style="caption-side:top;text-align:left;color:inherit">{escape(name)}</caption>'
    return f'<table style="border-collapse:collapse">{caption if name else ""}{body}</table>'


def _cell(tag: str, text: str, tints: Sequence[str], style: str = "") -> str:
    if len(tints) > 1:  # several taps folded onto one pixel: a stripe for each
        share = 100 / len(tints)
        stops = ",".join(f"{tint} {share * i:.4g}% {share * (i + 1):.4g}%" for i, tint in enumerate(tints))
        style += f"background:linear-gradient(90deg,{stops});color:{ink(tints[0])};"
    elif tints:
        style += f"background:{tints[0]};color:{ink(tints[0])};"
    return f'<{tag} style="{CELL}{style}">{escape(text)}</{tag}>'


def _inline(text: str, tints: dict[str, str]) -> str:
    """An equation with its kernel values on their colours."""

    def marked(match: re.Match[str]) -> str:
        tint = tints[match[1]]
        return f'<span style="background:{tint};color:{ink(tint)};padding:0 2px;border-radius:3px">{match[0]}</span>'

    return KERNEL_VALUE.sub(marked, escape(text))


# a figure -----------------------------------------------------------------------------------------------------------


def plot(subject: ConvGeometry | Explanation, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw ``X_conv`` and ``W_conv`` side by side, each cell in the colour of its kernel value.

    Small matrices carry their symbols, large ones show their structure: the bands of ``W_conv``.

    Parameters
    ----------
    subject : ConvGeometry or Explanation
        What to draw.
    axes : two matplotlib Axes, optional
        Where to draw ``X_conv`` and ``W_conv``; by default in a new figure of a fitting size.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ImportError
        Without matplotlib.
    ValueError
        For matrices with more than 4 million values, or with none.
    """
    try:
        import matplotlib.pyplot as plt
        from matplotlib.axes import Axes
    except ImportError:
        raise ImportError("plot needs matplotlib: pip install 'numconv-jit[tour]'") from None

    geometry = subject if isinstance(subject, ConvGeometry) else subject.geometry
    X_conv, W_conv = (geometry.C * prod(geometry.kernel), prod(geometry.out)), geometry.matrix_shape
    pixels, values = W_conv[1], prod(geometry.kernel_shape) * X_conv[1]
    for name, count in (("X", pixels), ("X_conv", prod(X_conv)), ("W_conv", values)):
        if not 0 < count <= LIMIT:
            raise ValueError(f"{name} must have 1 to {LIMIT:,} values to be drawn, got {count:,}")
    x, _, y = symbols(geometry)
    cells = [np.empty((0, 0), dtype=object)] * 2
    if max(prod(X_conv), prod(W_conv)) <= READABLE and max(*X_conv, *W_conv) <= BLOCKS:
        explanation = explain(geometry) if isinstance(subject, ConvGeometry) else subject
        cells = [np.vectorize(_stacked, otypes=[object])(explanation.matrix(name)) for name in ("X_conv", "W_conv")]
    drawings = [
        Drawing(f"X_conv, im2col  ({by(X_conv)})", cells[0], row_labels(geometry), column_labels(geometry),
                ("kernel value", "output pixel"), (geometry.kernel[-1], geometry.out[-1])),
        Drawing(f"W_conv, kernel2row  ({by(W_conv)})", cells[1], y.ravel().tolist(), x.ravel().tolist(),
                ("output pixel", "input pixel"), (geometry.out[-1], geometry.size[-1])),
    ]
    if axes is None:
        figure, axes = _new_figure(plt, drawings)
    else:
        axes = ask("axes", "two matplotlib Axes", axes, lambda axes: list(islice(axes, 3)))
        if not all(issubclass(type(ax), Axes) for ax in axes):
            raise TypeError(f"axes must be two matplotlib Axes, got {described(axes)}")
        if len(axes) != 2:
            raise ValueError(f"axes must be two, for X_conv and for W_conv, got {len(axes)}")
        figure = axes[0].figure.figure  # of a subfigure, the whole figure
    images = _images(geometry)
    for ax, drawing, image in zip(axes, drawings, images, strict=True):
        _draw(ax, drawing, image)
    figure.draw_without_rendering()  # lays the axes out, so that they can be measured
    for ax, drawing, image in zip(axes, drawings, images, strict=True):
        _print_labels(ax, drawing)
        if drawing.cells.size:
            _print_symbols(ax, drawing, image, colours(geometry))
    return figure


class Drawing(NamedTuple):
    """What stands around a drawn matrix and, where it is small, in its cells (else ``cells`` is empty)."""

    title: str
    cells: Symbols
    rows: list[str]
    columns: list[str]
    names: tuple[str, str]
    #: After how many rows and columns the last spatial index starts again.
    beats: tuple[int, int]

    @property
    def longest(self) -> int:
        """Characters of the longest line that a cell or column label prints."""
        return max(len(line) for text in [*self.columns, *self.cells.flat] for line in text.split("\n"))

    @property
    def lines(self) -> int:
        """The most lines in one cell."""
        return max((text.count("\n") + 1 for text in self.cells.ravel().tolist()), default=1)


#: Inches: the width of a printed character, the height of a line, the space around.
CHARACTER, LINE, SPACE = 0.078, 0.15, 0.1


def _stacked(symbol: str) -> str:
    """A sum of folded taps as a block with about as many lines as columns."""
    terms = symbol.split(" + ")
    across = isqrt(len(terms))
    return "\n+".join("+".join(terms[i : i + across]) for i in range(0, len(terms), across))


def _new_figure(plt: Any, drawings: list[Drawing]) -> tuple[Figure, list[Axes]]:
    """Cells of one height and just wide enough for their symbols; two panels where that would grow too large."""
    lines = max(drawing.lines for drawing in drawings)
    # folded taps may print a little smaller: they are the longest and the fewest
    widths = [len(d.columns) * (CHARACTER * d.longest * (0.8 if d.lines > 1 else 1) + SPACE) for d in drawings]
    heights = [len(d.rows) * (LINE * lines + SPACE) for d in drawings]
    margin = CHARACTER * sum(max(map(len, d.rows)) for d in drawings) + 1.2
    small = drawings[0].cells.size > 0 and sum(widths) + margin < 26 and max(heights) < 18
    if not small:
        widths, heights = [4.5, 5.5], [5.0, 5.0]
    figure, axes = plt.subplots(
        1, 2, width_ratios=widths, layout="constrained", figsize=(sum(widths) + margin, max(heights) + 0.9)
    )
    for ax, width, height, d in zip(axes, widths, heights, drawings, strict=True):
        if small:
            ax.set_aspect((height / len(d.rows)) / (width / len(d.columns)), anchor="N")
    return figure, list(axes)


def _images(geometry: ConvGeometry) -> tuple[Image, Image]:
    """``X_conv`` and ``W_conv`` as images: white is the constant in the one and the zero in the other."""
    table, columns = pixel_table(geometry), symbols(geometry)[1].shape[1]
    light = np.array([_rgb(tint) for tint in palette(columns)]) / 255
    rows, pixels = np.indices(table.shape)
    X_conv = _gathered(table.shape, rows, pixels, np.where((table < 0)[..., None], 1.0, light[rows % columns]))
    row, column, pixel = [], [], []
    for k in range(geometry.K):
        group = table[k // (geometry.K // geometry.groups) * columns :][:columns]
        taps, outputs = np.nonzero(group >= 0)
        row.append(k * table.shape[1] + outputs)
        column.append(taps)
        pixel.append(group[taps, outputs])
    W_conv = _gathered(
        geometry.matrix_shape, np.concatenate(row), np.concatenate(pixel), light[np.concatenate(column)]
    )
    return X_conv, W_conv


def _gathered(shape: tuple[int, ...], i: Any, j: Any, tints: Image) -> Image:
    """The image of coloured cells; where several meet, folded or in a block of a large matrix, they mix."""
    blocks = tuple(min(n, BLOCKS) for n in shape)
    place = i * blocks[0] // shape[0], j * blocks[1] // shape[1]
    image, hits = np.zeros((*blocks, 3)), np.zeros(blocks)
    np.add.at(image, place, tints)
    np.add.at(hits, place, 1)
    image[hits == 0] = 1
    return image / np.maximum(hits, 1)[..., None]


def _draw(ax: Axes, drawing: Drawing, image: Image) -> None:
    rows, columns = len(drawing.rows), len(drawing.columns)
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    ax.imshow(image, aspect=ax.get_aspect(), extent=extent, interpolation="nearest")
    ax.set(ylabel=drawing.names[0], xlabel=drawing.names[1])
    ax.set_title(drawing.title, fontsize=10)
    ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=2, labelsize=8)
    # the longest labels alone, so that the layout leaves room for them before anything is measured
    ax.set_yticks([0], [max(drawing.rows, key=len)])
    ax.set_xticks([0], [drawing.columns[0]])


def _print_labels(ax: Axes, drawing: Drawing) -> None:
    """As many labels as there is room for, where possible at the start of a row of pixels."""
    width, height = _cell_size(ax, drawing)
    down = ceil(11 / height)
    across = ceil((72 * CHARACTER * max(map(len, drawing.columns)) + 4) / width)
    down, across = (
        step if step <= beat / 2 else ceil(step / beat) * beat
        for step, beat in zip((down, across), drawing.beats, strict=True)
    )
    ax.set_yticks(range(0, len(drawing.rows), down), drawing.rows[::down])
    ax.set_xticks(range(0, len(drawing.columns), across), drawing.columns[::across])


def _print_symbols(ax: Axes, drawing: Drawing, image: Image, tints: dict[str, str]) -> None:
    """The symbol in each cell, unless they would be too small to read."""
    from matplotlib.colors import to_hex
    from matplotlib.patches import Rectangle

    width, height = _cell_size(ax, drawing)
    size = min(9.0, 9 * width / (72 * CHARACTER * drawing.longest), height / (1.25 * drawing.lines))
    if size < 5:
        return
    for (i, j), symbol in np.ndenumerate(drawing.cells):
        lines = [KERNEL_VALUE.findall(line) for line in str(symbol).split("\n")]
        for n, line in enumerate(lines if len(lines) > 1 else []):  # folded taps: a tile behind each
            for m, value in enumerate(line):
                corner, w, h = (j - 0.5 + m / len(line), i - 0.5 + n / len(lines)), 1 / len(line), 1 / len(lines)
                ax.add_patch(Rectangle(corner, w, h, color=tints[value], linewidth=0))
        colour = "#999999" if symbol == "0" else ink(to_hex(tuple(image[i, j])))
        ax.text(j, i, symbol, ha="center", va="center", family="monospace", size=size, color=colour)
    ax.set_xticks(np.arange(0.5, len(drawing.columns) - 1), minor=True)
    ax.set_yticks(np.arange(0.5, len(drawing.rows) - 1), minor=True)
    ax.grid(which="minor", color="#CCCCCC", linewidth=0.6)
    ax.tick_params(which="both", length=0)


def _cell_size(ax: Axes, drawing: Drawing) -> tuple[float, float]:
    """Width and height of a cell in points."""
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    return 72 * box.width / len(drawing.columns), 72 * box.height / len(drawing.rows)
