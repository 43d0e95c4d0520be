"""Costs of ``numconv/cuda/costs.py`` from what the lane measured; a later file replaces what an earlier one says.

    python tests/gpu/fit.py OLDER/times.json NEWER/times.json

prints constants to paste, which of them no file says anything about, and how far the model is off. Each cost is found
with the least relative error over all rows at once, and held, by so much as one row, to what it is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from layers import LAYERS
from scipy.optimize import nnls

from numconv.cuda import costs
from numconv.geometry import ConvGeometry, conv_geometry
from numconv.select import PRODUCTS

GEOMETRIES = {name: conv_geometry(x, w, **rest) for name, x, w, rest in LAYERS}

#: Of a relative error: how much a cost that no row shows is held to what it is, beside a row.
HELD = 0.2


class Row(NamedTuple):
    """What a product of a layer took by one algorithm, in microseconds, all its kernels together."""

    layer: str
    geometry: ConvGeometry
    product: str
    algorithm: str
    measured: float

    @property
    def amounts(self) -> dict[str, float]:
        """What it does, by the model."""
        return costs.amounts(self.product, self.algorithm, self.geometry, np.dtype(np.float32))


def rows_of(*files: str | Path) -> list[Row]:
    """The rows of float32 of all files, of those for the same layer, product and algorithm the last one."""
    found = {}
    for file in files:
        for row in json.loads(Path(file).read_text()).get("rows", ()):  # the first lane's file has none
            layer, (product, algorithm) = row["layer"], done_by(row)
            if algorithm and layer in GEOMETRIES:
                found[layer, product, algorithm] = Row(
                    layer, GEOMETRIES[layer], product, algorithm, row["kernels_us"]
                )  # fmt: skip
    return list(found.values())


def done_by(row: dict) -> tuple[str, str]:
    """The product and the algorithm of a row; of torch's and CuPy's none."""
    if "product" in row:
        return row["product"], row["algorithm"]
    words = {"numconv dX": "grad_input", "numconv dW": "grad_weight"}
    what = row["what"].rstrip("*")
    if what not in words:
        return "forward", what if what in ("implicit", "im2col", "direct", "fft") else ""
    # the first files do not say by which: their kernels do
    seen = " ".join(row["kernels"])
    return words[what], next((name for name in ("implicit", "direct") if f"::{name}::" in seen), "")


def fit(rows: list[Row]) -> tuple[costs.Costs, set[str]]:
    """Costs, and the names of those that the rows show."""
    names, now = costs.Costs._fields, np.array(costs.COSTS)
    A = np.array([[row.amounts.get(name, 0.0) for name in names] / (1e3 * np.array(row.measured)) for row in rows])
    held = HELD * np.eye(len(names))  # costs are counted in what they are
    scaled, _ = nnls(np.vstack([A * now, held]), np.concatenate([np.ones(len(rows)), np.full(len(names), HELD)]))
    shown = {name for name, share in zip(names, (A * now).max(axis=0), strict=True) if share > 0.05}
    found = [new if name in shown else old for name, new, old in zip(names, scaled * now, now, strict=True)]
    return costs.Costs(*(float(f"{cost:.3g}") for cost in found)), shown


def main(files: list[str]) -> None:
    """What is to be pasted, and the errors."""
    rows = rows_of(*files)
    found, shown = fit(rows)
    print("COSTS = Costs(")
    for name, cost in zip(found._fields, found, strict=True):
        print(f"    {name}={cost:g},{'' if name in shown else '  # as it was: no row shows it'}")
    print(")\n")
    costs.COSTS = found
    print(f"{'layer':40}{'product':13}{'algorithm':10}{'measured us':>12}{'model us':>10}{'ratio':>7}")
    ratios = []
    for row in sorted(rows, key=lambda row: (row.layer, PRODUCTS.index(row.product))):
        model = 1e-3 * costs.nanoseconds(row.amounts)
        ratios.append(model / row.measured)
        print(f"{row.layer:40}{row.product:13}{row.algorithm:10}{row.measured:12.0f}{model:10.0f}{ratios[-1]:7.2f}")
    off = np.exp(np.abs(np.log(ratios)))
    print(f"{len(rows)} rows: off by a factor of {np.median(off):.2f} in the middle, {off.max():.2f} at most")


if __name__ == "__main__":
    main(sys.argv[1:])
