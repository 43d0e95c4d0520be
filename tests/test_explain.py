"""The symbolic matrices: the slides letter by letter, every geometry against a naive sum, and how it all looks."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

from numconv.explain import LIMIT, explain
from numconv.geometry import ConvGeometry, conv_geometry
from numconv.picture import LIGHT, colours, ink, palette

SEED = explain(conv_geometry((3, 3), (2, 2), plain=True, flip=True))

#: The slides, written out by hand. Their slips are left out: dx22 ends in dy22 w22, the last row reads dx31 dx32 dx33.
SLIDES = {
    "X": ["x11 x12 x13", "x21 x22 x23", "x31 x32 x33"],
    "W": ["w11 w12", "w21 w22"],
    "W_rot": ["w22 w21", "w12 w11"],
    "X_flat": ["x11", "x12", "x13", "x21", "x22", "x23", "x31", "x32", "x33"],
    "W_flat": ["w11 w12 w21 w22"],
    "X_conv": ["x22 x23 x32 x33", "x21 x22 x31 x32", "x12 x13 x22 x23", "x11 x12 x21 x22"],
    "X_conv.T": ["x22 x21 x12 x11", "x23 x22 x13 x12", "x32 x31 x22 x21", "x33 x32 x23 x22"],
    "W_conv": [
        "w22 w21 0 w12 w11 0 0 0 0", "0 w22 w21 0 w12 w11 0 0 0",
        "0 0 0 w22 w21 0 w12 w11 0", "0 0 0 0 w22 w21 0 w12 w11",
    ],
    "W_conv.T": [
        "w22 0 0 0", "w21 w22 0 0", "0 w21 0 0", "w12 0 w22 0", "w11 w12 w21 w22", "0 w11 0 w21",
        "0 0 w12 0", "0 0 w11 w12", "0 0 0 w11",
    ],
    "dY": ["dy11 dy12", "dy21 dy22"],
    "dY_flat": ["dy11 dy12 dy21 dy22"],
}
SUMS = {
    "Y": [
        ["w22 x11 + w21 x12 + w12 x21 + w11 x22", "w22 x12 + w21 x13 + w12 x22 + w11 x23"],
        ["w22 x21 + w21 x22 + w12 x31 + w11 x32", "w22 x22 + w21 x23 + w12 x32 + w11 x33"],
    ],
    "dW": [
        ["dy11 x22 + dy12 x23 + dy21 x32 + dy22 x33", "dy11 x21 + dy12 x22 + dy21 x31 + dy22 x32"],
        ["dy11 x12 + dy12 x13 + dy21 x22 + dy22 x23", "dy11 x11 + dy12 x12 + dy21 x21 + dy22 x22"],
    ],
    "dX": [
        ["dy11 w22", "dy11 w21 + dy12 w22", "dy12 w21"],
        ["dy11 w12 + dy21 w22", "dy11 w11 + dy12 w12 + dy21 w21 + dy22 w22", "dy12 w11 + dy22 w21"],
        ["dy21 w12", "dy21 w11 + dy22 w12", "dy22 w11"],
    ],
}

GEOMETRIES = {
    "seed": conv_geometry((3, 3), (2, 2), plain=True, flip=True),
    "correlation": conv_geometry((4, 3), (2, 2), plain=True),
    "1d": conv_geometry((6,), (3,), plain=True, flip=True, stride=2, padding=((2, 1),)),
    "3d": conv_geometry((1, 2, 3, 2), (2, 1, 2, 2, 1), padding=((0, 1), (0, 0), (1, 0)), flip=True),
    "channels": conv_geometry((2, 3, 4), (3, 2, 2, 3), padding=1),
    "groups": conv_geometry((5, 4, 3, 3), (6, 2, 2, 2), groups=2, flip=True),
    "depthwise": conv_geometry((3, 4), (3, 1, 2), groups=3, padding="same"),
    "stride and dilation": conv_geometry((1, 7, 6), (2, 1, 2, 3), stride=(3, 1), dilation=(2, 2), padding=(1, 2)),
    "fill": conv_geometry((1, 3, 3), (1, 1, 2, 2), padding=1, fill_value=-1.5, flip=True),
    "folded": conv_geometry((3, 2), (3, 2), plain=True, padding=1, boundary="edge", flip=True),
    **{
        boundary: conv_geometry((1, 3, 2), (1, 1, 2, 3), padding=((3, 2), (5, 4)), boundary=boundary, flip=True)
        for boundary in ("edge", "reflect", "symmetric", "wrap")
    },
}


def padded(g: ConvGeometry, array: np.ndarray, fill: complex) -> np.ndarray:
    """An array with its padding, from ``numpy.pad`` alone."""
    how = {"constant_values": fill} if g.boundary == "constant" else {}
    return np.pad(array, list(g.padding), mode=g.boundary, **how)


def met(g: ConvGeometry, o: tuple[int, ...], t: tuple[int, ...]) -> tuple[int, ...]:
    """Where tap ``t`` of output ``o`` stands in the padded input."""
    turned = [k - 1 - i for k, i in zip(g.kernel, t, strict=True)] if g.flip else t
    return tuple(p * s + i * d for p, s, i, d in zip(o, g.stride, turned, g.dilation, strict=True))


def read(expression: str, values: dict[str, float]) -> float:
    """The number that a printed sum stands for."""
    terms = [re.split("[ ·]", term) for term in expression.replace(" - ", " + -").split(" + ")]
    return sum(np.prod([values[f] if f in values else float(f) for f in factors]) for factors in terms)


@pytest.mark.parametrize("name", SLIDES)
def test_slides_letter_by_letter(name: str) -> None:
    expected = [row.split() for row in SLIDES[name]]
    assert SEED.matrix(name).tolist() == expected
    assert [[SEED.entry(name, i, j) for j in range(len(row))] for i, row in enumerate(expected)] == expected


@pytest.mark.parametrize("name", SUMS)
def test_sums_of_the_slides(name: str) -> None:
    assert SEED.matrix(name).tolist() == SUMS[name]
    assert SEED.matrix(f"{name}_flat").ravel().tolist() == [entry for row in SUMS[name] for entry in row]
    assert SEED.matrices[f"{name}_flat"] == ((9, 1) if name == "dX" else (1, 4))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_numbers_for_symbols(name: str) -> None:
    """Put numbers in for the symbols: every matrix and both ways through it must give the naive sums."""
    g = GEOMETRIES[name]
    page, rng = explain(g), np.random.default_rng(7)
    cg, per_group, taps = g.C // g.groups, g.K // g.groups, int(np.prod(g.kernel))
    x, w, dy = rng.normal(size=(g.C, *g.size)), rng.normal(size=(g.K, cg, *g.kernel)), rng.normal(size=(g.K, *g.out))
    y, dw, dx, constant = np.zeros_like(dy), np.zeros_like(w), np.zeros_like(x), np.zeros_like(dy)
    pixels, inputs = padded(g, np.arange(x[0].size).reshape(g.size), -1), [padded(g, each, g.fill_value) for each in x]
    for k, c in np.ndindex(g.K, cg):
        source = k // per_group * cg + c
        for o, t in product(np.ndindex(*g.out), np.ndindex(*g.kernel)):
            pixel, value = pixels[met(g, o, t)], inputs[source][met(g, o, t)]
            y[k][o] += w[k, c][t] * value
            dw[k, c][t] += dy[k][o] * value
            if pixel >= 0:
                dx[source].flat[pixel] += dy[k][o] * w[k, c][t]
            else:
                constant[k][o] += w[k, c][t] * value
    values = {
        symbol: number
        for matrix, numbers in (("X", x), ("W", w), ("dY", dy))
        for symbol, number in zip(page.matrix(matrix).flat, numbers.flat, strict=True)
    }

    def numbers(matrix: str) -> np.ndarray:
        cells = page.matrix(matrix)
        return np.array([read(cell, values) for cell in cells.flat]).reshape(cells.shape)

    for matrix, expected in (("Y", y), ("dW", dw), ("dX", dx)):
        np.testing.assert_allclose(numbers(matrix).ravel(), expected.ravel(), atol=1e-12)
    X_conv, W_conv, W_flat, dY_flat = (numbers(matrix) for matrix in ("X_conv", "W_conv", "W_flat", "dY_flat"))
    by_group = zip(W_flat.reshape(g.groups, per_group, -1), X_conv.reshape(g.groups, cg * taps, -1), strict=True)
    np.testing.assert_allclose(np.concatenate([a @ b for a, b in by_group]).ravel(), y.ravel(), atol=1e-12)
    np.testing.assert_allclose((W_conv @ numbers("X_flat")).ravel(), (y - constant).ravel(), atol=1e-12)
    by_group = zip(dY_flat.reshape(g.groups, per_group, -1), X_conv.reshape(g.groups, cg * taps, -1), strict=True)
    np.testing.assert_allclose(np.concatenate([a @ b.T for a, b in by_group]).ravel(), dw.ravel(), atol=1e-12)
    np.testing.assert_allclose(numbers("W_conv.T") @ dY_flat.ravel(), dx.ravel(), atol=1e-12)
    assert {name: page.matrix(name).shape for name in page.matrices} == page.matrices


def test_stride_and_dilation() -> None:
    page = explain(conv_geometry((7,), (2,), plain=True, stride=2, dilation=3))
    assert page.matrix("X_conv").tolist() == [["x1", "x3"], ["x4", "x6"]]
    assert page.entry("W_conv", 1, 2) == "w1"
    assert page.entry("dX", 0, 6) == "0"
    assert "stride 2, dilation 3" in str(page)


def test_channels_and_groups() -> None:
    page = explain(conv_geometry((9, 4, 2, 2), (4, 2, 2, 2), groups=2))
    assert page.matrix("W").shape == (4, 8)
    assert page.entry("W", 2, 5) == "w32:12"
    assert page.entry("X", 1, 0) == "x2:11"
    assert page.entry("X_flat", 15, 0) == "x4:22"
    assert page.entry("Y", 2, 0) == " + ".join(f"w3{c}:{t} x{c + 2}:{t}" for c in (1, 2) for t in (11, 12, 21, 22))
    assert page.entry("dW", 2, 5) == "dy3:11 x4:12"
    assert page.entry("dX", 3, 1) == "dy3:11 w32:12 + dy4:11 w42:12"
    assert page.entry("W_conv", 2, 0) == "0", "the groups do not meet"
    assert "w31:11 w41:11 | x3:11" in str(page), "a row of X_conv meets both kernels of its group"


@pytest.mark.parametrize(
    ("boundary", "first", "last"),
    [
        ("constant", ["w2", "w3", "0"], ["0", "w1", "w2"]),
        ("edge", ["w1 + w2", "w3", "0"], ["0", "w1", "w2 + w3"]),
        ("symmetric", ["w1 + w2", "w3", "0"], ["0", "w1", "w2 + w3"]),
        ("reflect", ["w2", "w1 + w3", "0"], ["0", "w1 + w3", "w2"]),
        ("wrap", ["w2", "w3", "w1"], ["w3", "w1", "w2"]),
    ],
)
def test_boundaries_fold(boundary: str, first: list[str], last: list[str]) -> None:
    page = explain(conv_geometry((3,), (3,), plain=True, padding=1, boundary=boundary))
    assert page.matrix("W_conv")[[0, 2]].tolist() == [first, last]
    turned = explain(conv_geometry((3,), (3,), plain=True, padding=1, boundary=boundary, flip=True))
    swap = str.maketrans("13", "31")
    mirrored = [" + ".join(sorted(cell.translate(swap).split(" + "))) for cell in first]
    assert turned.matrix("W_conv")[0].tolist() == mirrored, "folded taps stand in the kernel's own order"


def test_folded_sums_read_like_their_matrices() -> None:
    page = explain(conv_geometry((2,), (3,), plain=True, padding=1, boundary="edge", flip=True))
    assert page.matrix("Y").tolist() == [["w3 x1 + w2 x1 + w1 x2", "w3 x1 + w2 x2 + w1 x2"]]
    assert page.matrix("dX").tolist() == [["dy1 w2 + dy1 w3 + dy2 w3", "dy1 w1 + dy2 w1 + dy2 w2"]]


@pytest.mark.parametrize(
    ("fill", "cell", "y", "dw"),
    [
        (0, "0", "w2 x1", "dy2 x1"),
        (3.0, "3", "3·w1 + w2 x1", "3·dy1 + dy2 x1"),
        (True, "1", "1·w1 + w2 x1", "1·dy1 + dy2 x1"),
        (-0.5, "-0.5", "-0.5·w1 + w2 x1", "-0.5·dy1 + dy2 x1"),
        (1 + 2j, "(1+2j)", "(1+2j)·w1 + w2 x1", "(1+2j)·dy1 + dy2 x1"),
    ],
)
def test_constant(fill: complex, cell: str, y: str, dw: str) -> None:
    page = explain(conv_geometry((1,), (2,), plain=True, padding=((1, 0),), fill_value=fill))
    assert page.matrix("X_conv").tolist() == [[cell], ["x1"]]
    assert page.matrix("W_conv").tolist() == [["w2"]]
    assert page.entry("Y", 0, 0) == y
    two = explain(conv_geometry((2,), (2,), plain=True, padding=((1, 0),), fill_value=fill))
    assert two.entry("dW", 0, 0) == dw
    assert ("the second plus the constant" in str(page)) == (fill != 0)
    after = explain(conv_geometry((1,), (2,), plain=True, padding=((0, 1),), fill_value=-2))
    assert after.entry("Y", 0, 0) == "w1 x1 - 2·w2"


def test_indices_beyond_nine() -> None:
    page = explain(conv_geometry((2, 12), (1, 2), plain=True))
    assert (page.entry("X", 1, 11), page.entry("W", 0, 1), page.entry("dY", 0, 10)) == ("x2,12", "w12", "dy1,11")
    assert page.entry("Y", 0, 10) == "w11 x1,11 + w12 x1,12"
    wide = explain(conv_geometry((10, 2, 1), (10, 10, 2, 1)))
    assert (wide.entry("W", 9, 19), wide.entry("X", 9, 1)) == ("w10,10:21", "x10:21")


def test_three_dimensions_are_flat() -> None:
    page = explain(conv_geometry((2, 1, 2), (1, 1, 2), plain=True, flip=True))
    assert page.matrices["X"] == (1, 4)
    assert page.matrix("W_rot").tolist() == [["w112", "w111"]]
    assert page.entry("Y", 0, 1) == "w112 x211 + w111 x212"


def test_batch_plays_no_part() -> None:
    assert str(explain(conv_geometry((7, 1, 3), (1, 1, 2)))) == str(explain(conv_geometry((1, 3), (1, 1, 2))))


@pytest.mark.parametrize("shapes", [((0, 3), (2, 0, 2)), ((2, 3), (0, 2, 2))])
def test_without_channels(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    page = explain(conv_geometry(*shapes))
    assert {name: page.matrix(name).shape for name in page.matrices} == page.matrices
    assert set(page.matrix("Y").flat) <= {"0"}
    assert page.title in str(page)
    ET.fromstring(page._repr_html_())


def test_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match=rf"{LIMIT:,} entries; W_conv would have 529,984"):
        explain(conv_geometry((28, 28), (3, 3), plain=True))
    with pytest.raises(ValueError, match="X_conv would have 30,000"):
        explain(conv_geometry((1,), (100,), plain=True, padding=((200, 198),)))
    with pytest.raises(ValueError, match="the sums would have 50,000"):
        explain(conv_geometry((1, 1), (50, 1, 100), padding=((9, 99),)))


def test_wrong_names_and_indices() -> None:
    with pytest.raises(ValueError, match=r"one of 'X', 'W', 'W_rot', .* got 'Z'"):
        SEED.entry("Z", 0, 0)
    with pytest.raises(ValueError, match=r"got 'X\.T'"):
        SEED.matrix("X.T")
    for i, j in ((4, 0), (0, 9), (-5, 0)):
        with pytest.raises(IndexError, match=r"W_conv, which has the shape \(4, 9\)"):
            SEED.entry("W_conv", i, j)
    with pytest.raises(TypeError):
        SEED.entry("X", 0.0, 0)  # type: ignore[arg-type]  # the wrong type is what is tested
    assert SEED.entry("W_conv", -1, -1) == "w11"
    with pytest.raises(ValueError, match="read-only"):
        SEED.matrix("X")[0, 0] = "x"


def test_page_of_text() -> None:
    lines = str(SEED).splitlines()
    assert lines[:2] == ["X (3 x 3) * W (2 x 2) = Y (2 x 2)", "convolution: W turns before it slides"]
    for line in (
        "  X = x11 x12 x13    W = w11 w12    W_rot = w22 w21",
        "      | y11 y12 y21 y22",
        "  w11 | x22 x23 x32 x33",
        "  y12 | 0   w22 w21 0   w12 w11 0   0   0",
        "  x22 | w11 w12 w21 w22",
        "  y11 = w22 x11 + w21 x12 + w12 x21 + w11 x22",
        "  dx22 = dy11 w11 + dy12 w12 + dy21 w21 + dy22 w22",
        "Backward to the kernel: dW = reshape(dY_flat @ X_conv.T)",
    ):
        assert re.sub(" +", " ", line) in [re.sub(" +", " ", text) for text in lines]
    assert repr(SEED) == "<Explanation: X (3 x 3) * W (2 x 2) = Y (2 x 2), X_conv (4 x 4), W_conv (4 x 9)>"
    assert "W_rot" not in str(explain(conv_geometry((3,), (2,), plain=True)))


def background(element: ET.Element) -> str | None:
    found = re.search(r"background:([^;]+);color", element.get("style", ""))
    return found and found[1]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_html_is_well_formed_and_one_colour_means_one_value(name: str) -> None:
    page = explain(GEOMETRIES[name])
    root, tints = ET.fromstring(page._repr_html_()), colours(page.geometry)
    seen = set()
    for element in root.iter():
        text = element.text or ""
        values = re.findall(r"\bd?(w[\d:,]+)", text)
        if element.tag in ("td", "th", "span") and values and not text.startswith("= "):
            expected = [tints[value] for value in values]
            seen.update(values)
            if element.tag == "td" and len(values) > 1:
                assert re.findall("#[0-9A-F]{6}(?= )", background(element) or "") == expected
            else:
                assert background(element) == expected[0]
    assert seen == set(tints)
    assert not list(root.iter("style")), "inline styles only"
    assert ET.fromstring(page.to_html().removeprefix("<!DOCTYPE html>\n")).tag == "html"


def test_html_colours_the_rows_of_X_conv() -> None:
    tables = list(ET.fromstring(SEED._repr_html_()).iter("table"))
    X_conv = next(table for table in tables if len(list(table.iter("tr"))) == 5)
    for n, row in enumerate(list(X_conv.iter("tr"))[1:]):
        assert {background(cell) for cell in row} == {LIGHT[n]}
        assert [cell.text for cell in row][1:] == SLIDES["X_conv"][n].split()


def test_palette() -> None:
    for count in (0, 1, 9, 10, 75, 150):
        assert len(set(palette(count))) == count

    def luminance(colour: str) -> float:
        channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for colour in {*palette(9), *palette(100)}:
        low, high = sorted((luminance(colour), luminance(ink(colour))))
        assert (high + 0.05) / (low + 0.05) >= 4.5, "the contrast that WCAG asks of text"


@pytest.fixture
def plt() -> Iterator[Any]:
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


@pytest.mark.parametrize("name", ["seed", "channels", "fill", "folded"])
def test_plot_prints_the_symbols(plt: Any, name: str) -> None:
    page = explain(GEOMETRIES[name])
    figure = page.plot()
    for ax, matrix in zip(figure.axes, ("X_conv", "W_conv"), strict=True):
        printed = [text.get_text().replace("\n", "").replace("+", " + ") for text in ax.texts]
        assert printed == page.matrix(matrix).ravel().tolist()
        assert ax.get_title().startswith(matrix)
        assert ax.images[0].get_array().shape[:2] == page.matrices[matrix]
    left, right = figure.axes
    assert (left.get_ylabel(), left.get_xlabel()) == ("kernel value", "output pixel")
    assert (right.get_ylabel(), right.get_xlabel()) == ("output pixel", "input pixel")


def test_plot_shares_the_colours_and_labels(plt: Any) -> None:
    left, right = SEED.plot().axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["w11", "w12", "w21", "w22"]
    assert [label.get_text() for label in left.get_xticklabels()] == ["y11", "y12", "y21", "y22"]
    assert [label.get_text() for label in right.get_yticklabels()] == ["y11", "y12", "y21", "y22"]
    assert [label.get_text() for label in right.get_xticklabels()] == SLIDES["X_flat"]
    from matplotlib.colors import to_hex

    def cell(ax: Any, i: int, j: int) -> str:
        return to_hex(tuple(ax.images[0].get_array()[i, j])).upper()

    assert [cell(left, n, 0) for n in range(4)] == list(LIGHT[:4])
    assert [cell(right, 0, n) for n in (4, 3, 1, 0, 2)] == [*LIGHT[:4], "#FFFFFF"]


def test_plot_of_a_large_geometry(plt: Any) -> None:
    from numconv.picture import BLOCKS, plot

    figure = plot(conv_geometry((2, 3, 20, 20), (4, 3, 3, 3), padding=1))
    left, right = figure.axes
    assert not left.texts and not right.texts
    assert left.images[0].get_array().shape == (27, BLOCKS, 3)
    assert right.images[0].get_array().shape == (BLOCKS, BLOCKS, 3)
    assert right.get_xlim() == (-0.5, 1199.5) and right.get_ylim() == (1599.5, -0.5)
    labels = [label.get_text() for label in right.get_yticklabels()]
    assert labels[0] == "y1:1,1" and all(label.endswith(",1") for label in labels), "ticks at the start of pixel rows"
    with pytest.raises(ValueError, match="X must have 1 to 4,000,000 values to be drawn, got 9,000,000"):
        plot(conv_geometry((3000, 3000), (3, 3), plain=True))
    with pytest.raises(ValueError, match=r"X must have .* got 0"):
        plot(conv_geometry((0, 3), (2, 0, 2)))


def test_plot_into_given_axes(plt: Any) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3))
    assert SEED.plot(axes) is figure
    assert [len(ax.texts) for ax in axes] == [16, 36]
    with pytest.raises(ValueError, match="axes must be two"):
        SEED.plot(axes[:1])


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'numconv-jit\[tour\]'"):
        SEED.plot()
