"""``auto``: what it may take, that it is deterministic, that it is accurate, and that it says why."""

import importlib
import importlib.util
import itertools
import sys
from importlib.util import find_spec
from pathlib import Path

import numba
import numpy as np
import pytest
from conftest import ALGORITHMS, EXACT, normal, values

import numconv as nc
from numconv import plan as plans
from numconv import select
from numconv.cuda import costs
from numconv.geometry import conv_geometry

SWEEP = Path(__file__).parents[1] / "asv_bench" / "sweep.py"
GPU = Path(__file__).parent / "gpu"

#: One of every kind: shapes of input and kernel, and the rest of the geometry.
KINDS = {
    "3x3": ((2, 32, 28, 28), (48, 32, 3, 3), {"padding": 1}),
    "3x3-wide": ((1, 128, 14, 14), (128, 128, 3, 3), {"padding": 1}),
    "1x1": ((1, 64, 20, 20), (32, 64, 1, 1), {}),
    "7x7-strided": ((1, 3, 64, 64), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
    "depthwise": ((1, 32, 30, 30), (32, 1, 3, 3), {"groups": 32, "padding": 1}),
    "grouped": ((1, 32, 20, 20), (32, 8, 3, 3), {"groups": 4, "stride": 2}),
    "dilated": ((1, 16, 30, 30), (16, 16, 3, 3), {"dilation": 2, "boundary": "reflect", "padding": 2}),
    "filter": ((1, 1, 200, 300), (1, 1, 9, 9), {"flip": True}),
    "large filter": ((1, 1, 200, 300), (1, 1, 61, 61), {}),
    "signal": ((1, 1, 20000), (1, 1, 501), {}),
    "channelled signal": ((2, 16, 1000), (24, 16, 5), {"padding": 2}),
    "volume": ((1, 4, 16, 17, 18), (6, 4, 3, 3, 3), {"boundary": "wrap", "padding": 1}),
    "four axes": ((1, 2, 7, 6, 5, 8), (3, 2, 2, 3, 2, 3), {}),
    "tiny": ((1, 1, 16, 16), (1, 1, 3, 3), {}),
}
every_kind = pytest.mark.parametrize(("x_shape", "w_shape", "geometry"), KINDS.values(), ids=KINDS)


# what it may take -----------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("dtype", ["bool", "int32", "uint8", "float16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("fill_value", [0, 2])
def test_it_never_takes_what_refuses(x_shape, w_shape, geometry, dtype, fill_value):
    if fill_value and (geometry.get("boundary") or dtype == "bool"):
        geometry = {**geometry, "boundary": "constant"}
    plan = nc.plan_conv(x_shape, w_shape, dtype=dtype, fill_value=fill_value and np.ones((), dtype), **geometry)
    for algorithm in plan.choice:
        assert not select.refusal(algorithm, plan.geometry, plan.dtype)
        assert plan.dtype.kind in "fc" or algorithm in EXACT


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "rest"),
    [
        ((1, 64, 2048, 2048), (64, 64, 3, 3), {"padding": 1}), ((1, 1, 30000, 30000), (1, 1, 63, 63), {}),
        ((1, 1, 10**9), (1, 1, 10**5), {}), ((8, 16, 300, 300, 300), (16, 16, 3, 3, 3), {}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_it_keeps_to_the_limit_of_memory(x_shape, w_shape, rest, dtype):
    plan = nc.plan_conv(x_shape, w_shape, dtype=dtype, **rest)
    assert plan.nbytes("workspace") <= 64 << 20
    for algorithm in plan.choice:
        assert select.workspace(algorithm, plan.geometry, plan.dtype, "cpu") <= 64 << 20


def test_not_even_many_weights_are_copied():
    plan = nc.plan_conv((64, 4096, 7, 7), (8192, 4096, 1, 1))
    assert plan.nbytes("workspace") <= 64 << 20


# deterministic --------------------------------------------------------------------------------------------------------


@every_kind
def test_it_follows_from_shapes_and_dtype_alone(x_shape, w_shape, geometry):
    first = nc.plan_conv(x_shape, w_shape, **geometry)
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        plans.make_plan.cache_clear()
        again = nc.plan_conv(x_shape, w_shape, **geometry)
    finally:
        numba.set_num_threads(threads)
    assert again is not first
    assert again.choice == first.choice


def pretend(monkeypatch, **seconds):
    """Costs that make each product's algorithms take so many seconds, ``forward={"direct": 1, …}``; others 9."""
    costs = {}
    for product in select.PRODUCTS:
        amounts = select.GRAD_WEIGHT_AMOUNTS if product == "grad_weight" else select.AMOUNTS
        g = conv_geometry((1, 1, 9, 9), (1, 1, 3, 3))
        sizes, _ = select.sizes_of(product, "direct", g, np.dtype(np.float32))
        costs[product] = {
            name: dict.fromkeys(
                ("float32", "float64", "integer", "complex"),
                (1e9 * seconds.get(product, {}).get(name, 9), *(0,) * (len(amount(sizes)) - 1)),
            )
            for name, amount in amounts.items()
        }
    monkeypatch.setattr(select, "COSTS", costs)
    plans.make_plan.cache_clear()


@pytest.fixture
def no_plans_left():
    yield
    plans.make_plan.cache_clear()
    plans._plan_for.cache_clear()


@pytest.mark.usefixtures("no_plans_left")
def test_ties_go_by_the_order_of_the_algorithms(monkeypatch):
    pretend(monkeypatch)
    g = conv_geometry((1, 4, 9, 9), (4, 4, 3, 3))
    able = [e.algorithm for e in select.estimates("forward", g, np.dtype(np.float32)) if not e.why_not]
    assert select.choose("auto", g, np.dtype(np.float32), "cpu").forward == able[0]


@pytest.mark.usefixtures("no_plans_left")
def test_each_product_has_its_own(monkeypatch):
    pretend(monkeypatch, forward={"fft": 1}, grad_input={"direct": 1}, grad_weight={"implicit": 1})
    plan = nc.plan_conv((2, 4, 9, 8), (6, 4, 3, 2), dtype=np.float64, stride=2)
    assert plan.choice == ("fft", "direct", "implicit")
    assert plan.algorithm == "fft"
    x, w, dy = (normal(s, seed=i) for i, s in enumerate([plan.input_shape, plan.kernel_shape, plan.output_shape]))
    naive = nc.plan_conv((2, 4, 9, 8), (6, 4, 3, 2), dtype=np.float64, stride=2, algorithm="kernel2row")
    np.testing.assert_allclose(plan.forward(x, w), naive.forward(x, w), atol=1e-12)
    np.testing.assert_array_equal(
        plan.grad_input(dy, w), nc.conv_grad_input(x.shape, w, dy, stride=2, algorithm="direct")
    )
    np.testing.assert_array_equal(
        plan.grad_weight(x, dy), nc.conv_grad_weight(x, w.shape, dy, stride=2, algorithm="implicit")
    )


def test_a_name_serves_all_products_that_it_has():
    plan = nc.plan_conv((1, 4, 9, 9), (4, 4, 3, 3), algorithm="direct")
    assert plan.choice == ("direct",) * 3
    assert nc.plan_conv((1, 4, 9, 9), (4, 4, 3, 3), algorithm="winograd").choice == ("winograd",) * 3
    assert nc.plan_conv((1, 4, 9, 9), (4, 4, 3, 3), algorithm="kernel2row").choice == (
        "kernel2row", "kernel2row", "implicit",
    )


def test_every_cost_is_known():
    g = conv_geometry((1, 4, 9, 9), (4, 4, 3, 3))
    for product in select.PRODUCTS:
        amounts = select.GRAD_WEIGHT_AMOUNTS if product == "grad_weight" else select.AMOUNTS
        sizes, _ = select.sizes_of(product, "direct", g, np.dtype(np.float32))
        for name, amount in amounts.items():
            if name in select.NOT_BY_ITSELF:
                continue
            wide = [] if name == "winograd" else ["float64", "complex"]
            kinds = ["float32", *wide] + ["integer"] * (name in EXACT)
            for kind in kinds:
                costs = select.COSTS[product][name][kind]
                assert len(costs) == len(amount(sizes))
                assert min(costs) >= 0
                assert max(costs) > 0


def test_planning_does_not_count_the_phases_of_a_stride():
    plan = nc.plan_conv((1, 1, 10**6, 10**6), (1, 1, 1000, 1000), stride=1000)  # a million phases
    assert len(plan.choice) == 3


# accurate -------------------------------------------------------------------------------------------------------------


def error(got, exact):
    """The largest error over the root mean square of what is exact."""
    return float(np.abs(got.astype(np.float64) - exact).max() / np.sqrt(np.mean(exact**2)))


def plain_products(x, w, dy, geometry):
    """The three products in the arrays' own precision as people write them: torch's, or matrix products of columns."""
    g = nc.plan_conv(x.shape, w.shape, dtype=x.dtype, **geometry).geometry
    spatial = g.d if g.boundary == "constant" and not g.flip else 0
    if find_spec("torch") and spatial in (1, 2, 3):
        import torch

        function = getattr(torch.nn.functional, f"conv{spatial}d")
        t, k, d = (torch.from_numpy(a.copy()) for a in (x, w, dy))
        t.requires_grad_()
        k.requires_grad_()
        y = function(t, k, **geometry)
        y.backward(d)
        return y.detach().numpy(), t.grad.numpy(), k.grad.numpy()
    W, cols = w.reshape(g.groups, g.K // g.groups, -1), nc.im2col(x, g.kernel, **{**keep(geometry), "flip": g.flip})
    columns, deltas = cols.reshape(g.N, g.groups, W.shape[2], -1), dy.reshape(g.N, g.groups, g.K // g.groups, -1)
    back = (W.swapaxes(1, 2) @ deltas).reshape(cols.shape)
    return (
        (W @ columns).reshape(dy.shape),
        nc.col2im(back, x.shape, g.kernel, **{**keep(geometry), "flip": g.flip}),
        (deltas @ columns.swapaxes(2, 3)).sum(0).reshape(w.shape),
    )


def keep(geometry):
    return {name: value for name, value in geometry.items() if name != "groups"}


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_errs_at_most_eight_times_as_much_as_plain_products(x_shape, w_shape, geometry, dtype):
    plan = nc.plan_conv(x_shape, w_shape, dtype=dtype, **geometry)
    shapes = plan.input_shape, plan.kernel_shape, plan.output_shape
    random = normal if dtype == "float32" else values  # of values, float64 gives the exact sums itself
    x, w, dy = (random(s, dtype, i) for i, s in enumerate(shapes))
    got = plan.forward(x, w), plan.grad_input(dy, w), plan.grad_weight(x, dy)
    plain = plain_products(x, w, dy, geometry)
    exact_plan = nc.plan_conv(x_shape, w_shape, dtype="float64", algorithm="direct", **geometry)
    x, w, dy = (a.astype(np.float64) for a in (x, w, dy))
    exact = exact_plan.forward(x, w), exact_plan.grad_input(dy, w), exact_plan.grad_weight(x, dy)
    floor = 4 * np.finfo(dtype).eps  # a reference that happens to hit the exact result is no measure
    for name, ours, theirs, truth in zip(select.PRODUCTS, got, plain, exact, strict=True):
        assert error(ours, truth) <= 8 * max(error(theirs, truth), floor), name


# on a GPU -------------------------------------------------------------------------------------------------------------


RESULTS = GPU / "results"

#: Oldest first.
MEASURED = [RESULTS / name / "times.json" for name in ("2026-11-28-h200-replayed", "2026-11-28-h200-depthwise")]

#: Products and algorithms whose kernels are others since, so that these results say nothing of them.
REWRITTEN = {
    *((product, "direct") for product in select.PRODUCTS), *((product, "implicit") for product in select.PRODUCTS),
}  # fmt: skip

GPU_KINDS = {
    **KINDS, "31x31 depthwise": ((4, 16, 56, 56), (16, 1, 31, 31), {"groups": 16, "padding": 15}),
    "63x63": ((1, 1, 500, 500), (1, 1, 63, 63), {"stride": 2}),
}  # fmt: skip


@pytest.fixture
def fit(monkeypatch):
    """The script that finds the costs of a GPU."""
    if not (GPU / "fit.py").exists():
        pytest.skip("the tests' scripts are not part of an installed package")
    monkeypatch.syspath_prepend(str(GPU))
    monkeypatch.setattr(costs, "COSTS", costs.COSTS)
    yield importlib.import_module("fit")
    sys.modules.pop("fit", None)
    sys.modules.pop("layers", None)


@pytest.mark.parametrize("product", select.PRODUCTS)
def test_what_is_taken_on_a_gpu_is_the_best_that_was_measured(fit, product):
    """Within 1.3 times, wherever what is taken was measured."""
    layers: dict = {}
    for row in fit.rows_of(*MEASURED):
        if row.product == product and (product, row.algorithm) not in REWRITTEN:
            layers.setdefault(row.layer, {})[row.algorithm] = row.measured
    judged = 0
    for name, measured in layers.items():
        chosen = getattr(select.choose("auto", fit.GEOMETRIES[name], np.dtype(np.float32), "cuda"), product)
        if chosen in measured:
            judged += 1
            assert measured[chosen] <= 1.3 * min(measured.values()), (name, chosen, measured)
    assert judged >= {"forward": 10, "grad_input": 10, "grad_weight": 8}[product] or REWRITTEN


def test_the_model_is_near_what_was_measured(fit):
    rows = [row for row in fit.rows_of(*MEASURED) if (row.product, row.algorithm) not in REWRITTEN]
    off = [np.log(1e-3 * costs.nanoseconds(row.amounts) / row.measured) for row in rows]
    assert len(rows) >= 46 or REWRITTEN
    assert np.exp(np.median(np.abs(off))) < 1.1
    assert np.exp(np.max(np.abs(off))) < 1.6


def test_the_fit_gives_the_costs_that_are_there(fit, capsys):
    """But for what it holds them to: they are those of these files."""
    found, shown = fit.fit(fit.rows_of(*MEASURED))
    for name in () if REWRITTEN else shown:
        assert getattr(found, name) == pytest.approx(getattr(costs.COSTS, name), rel=0.25), name
    fit.main(MEASURED)
    page = capsys.readouterr().out
    printed = page[: page.index("\n)\n") + 2].replace("COSTS = ", "")
    assert eval(printed, {"Costs": costs.Costs}) == found


def test_the_fit_finds_costs_that_made_the_times_of_a_gpu(fit):
    true = costs.Costs(*(cost * (1 + i % 3 / 2) for i, cost in enumerate(costs.COSTS)))
    names = ("implicit", "im2col", "direct", "fft")
    rows = []
    for name, geometry in fit.GEOMETRIES.items():
        for product in select.PRODUCTS:
            for algorithm in names:
                row = fit.Row(name, geometry, product, algorithm, 1.0)
                took = sum(getattr(true, what) * amount for what, amount in row.amounts.items())
                rows.append(row._replace(measured=1e-3 * took))
    found, shown = fit.fit(rows)
    assert shown >= {"large", "small", "weights_step", "weighed", "stored", "blas", "folded", "transformed", "spectral"}
    costs.COSTS = found
    off = [1e-3 * costs.nanoseconds(row.amounts) / row.measured for row in rows]
    assert min(off) > 0.9
    assert max(off) < 1.1


def test_the_model_knows_the_tiles_that_there_are():
    from numconv.cuda import _jit, direct, direct_weights, implicit, implicit_weights

    if _jit.SIMULATED:
        pytest.skip("tiles of the simulator are smaller")
    assert (implicit.LARGE_PRODUCT.rows, implicit.SMALL_PRODUCT.rows) == (costs.LARGE, costs.SMALL)
    assert (implicit.DEPTH, direct.THREADS) == (costs.DEPTH, costs.THREADS)
    for rows, columns, groups in ((64, 10**6, 1), (65, 128 * 127, 1), (65, 128**2, 1), (256, 6272, 1), (256, 6272, 2)):
        name, side = costs.tile_of(rows, columns, 1, groups)
        assert implicit.product_for(rows, columns, 4, groups).rows == side
        assert (name == "large") == (side == costs.LARGE)
    weights = implicit_weights
    assert [tile[:4] for tile in (weights.LARGE, weights.WIDE, weights.SMALL)] == list(costs.WEIGHT_TILES)
    windows = {window[:3] for window in vars(direct_weights).values() if isinstance(window, direct_weights.Window)}
    assert windows == {window[:3] for window in costs.WINDOWS} | {(1, 1, 1)}


@pytest.mark.parametrize(("x_shape", "w_shape", "geometry"), GPU_KINDS.values(), ids=GPU_KINDS)
@pytest.mark.parametrize("dtype", ["bool", "int32", "float16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("library", [True, False])
def test_a_gpu_takes_what_serves(x_shape, w_shape, geometry, dtype, library):
    g, dtype = conv_geometry(x_shape, w_shape, **geometry), np.dtype(dtype)
    choice = select.choose("auto", g, dtype, "cuda", library)
    for product, algorithm in zip(select.PRODUCTS, choice, strict=True):
        assert not select.refusal(algorithm, g, dtype, "cuda", library)
        one = select.chosen_for(product, g, "cuda")
        assert select.workspace(algorithm, one, dtype, "cuda", product) <= select.MOST_WORKSPACE["cuda"]
        for estimate in select.estimates(product, g, dtype, "cuda", library):
            assert estimate.why_not or estimate.seconds > 0
    assert library or "fft" not in choice
    assert choice == select.choose("auto", g._replace(N=1), dtype, "cuda", library)[:2] + choice[2:]


def test_the_algorithm_on_a_gpu_does_not_follow_from_the_batch():
    shapes = ((64, 14, 14), (256, 64, 3, 3))
    alone, many = (
        select.choose("auto", conv_geometry((n, *shapes[0]), shapes[1], padding=1), np.dtype(np.float32), "cuda")
        for n in (1, 500)
    )
    assert alone[:2] == many[:2]


def test_blocks_that_do_not_fill_a_gpu_take_as_long_as_more():
    def time(n):
        g = conv_geometry((n, 256, 14, 14), (64, 256, 3, 3), padding=1)
        return costs.nanoseconds(costs.amounts("forward", "implicit", g, np.dtype(np.float32)))

    assert time(1) == time(32)
    assert time(320) > 5 * time(1)


def test_large_kernels_on_a_gpu_go_by_fft_where_there_is_one():
    g = conv_geometry((1, 1, 1024, 1024), (1, 1, 63, 63))
    float32 = np.dtype(np.float32)
    assert select.choose("auto", g, float32, "cuda") == ("fft",) * 3
    assert "fft" not in select.choose("auto", g, float32, "cuda", library=False)
    with pytest.raises(ValueError, match=r"'fft' cannot serve.*library of the arrays, torch or CuPy.*no FFT"):
        select.choose("fft", g, float32, "cuda", library=False)
    with pytest.raises(ValueError, match="not exact for int32"):
        select.choose("fft", g, np.dtype(np.int32), "cuda")
    assert select.device_for(g, float32, "fft") == "cpu"  # NumPy's arrays would come there by numba


def test_blas_is_counted_on_where_it_is():
    g = conv_geometry((32, 256, 14, 14), (256, 256, 3, 3), padding=1)
    assert "blas" in costs.amounts("forward", "im2col", g, np.dtype(np.float32))
    for dtype, library in (("float16", True), ("int32", True), ("float32", False)):
        assert "blas" not in costs.amounts("forward", "im2col", g, np.dtype(dtype), library)
        assert select.choose("auto", g, np.dtype(dtype), "cuda", library).forward != "im2col"


def test_the_explanation_for_a_gpu_says_whose_libraries():
    g = conv_geometry((1, 1, 512, 512), (1, 1, 63, 63))
    page = select.explain(g, np.dtype(np.float32), "cuda", select.Choice("fft", "fft", "fft"))
    (line,) = [line for line in page.splitlines() if line.startswith("fft")]
    assert line.count("*") == 3
    assert "MiB" in line
    assert "torch or CuPy" in page.splitlines()[-1]


@pytest.mark.parametrize("seed", range(20))
def test_blocks_of_fft_cover_what_there_is(seed):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(int(rng.integers(1, 4))):
        kernel, stride, step = (int(rng.integers(1, n)) for n in (40, 4, 4))
        out = int(2 ** rng.uniform(0, 9))
        rows.append(((out - 1) * stride + (kernel - 1) * step + 1, kernel, out, 0, stride, step * (-1) ** seed))
    cut = costs.tiling(tuple(rows), *(int(n) for n in rng.integers(1, 50, 2)), 1)
    for (_, kernel, out, _, stride, step), n, tile, tiles in zip(rows, *cut, strict=True):
        assert tile * (tiles - 1) < out <= tile * tiles
        assert (tile - 1) * stride + (kernel - 1) * abs(step) + 1 <= n
        assert n == costs.fast_length(n)


def test_lengths_that_are_transformed_quickly():
    powers = itertools.product(range(1, 13), range(8), range(6), range(5))
    smooth = sorted(2**i * 3**j * 5**k * 7**m for i, j, k, m in powers)
    for n in range(1, 4097):
        assert costs.fast_length(n) == next(a for a in smooth if a >= n)


# it says why ----------------------------------------------------------------------------------------------------------


@every_kind
def test_the_explanation_names_every_algorithm_and_marks_what_is_taken(x_shape, w_shape, geometry):
    plan = nc.plan_conv(x_shape, w_shape, dtype=np.float64, **geometry)
    page = plan.explain_choice()
    lines = {line.split()[0]: line for line in page.splitlines() if line.split()[0] in ALGORITHMS}
    assert list(lines) == sorted(ALGORITHMS, key=select.ALGORITHMS.index)
    for algorithm, line in lines.items():
        assert line.count("*") == plan.choice.count(algorithm)
        why_not = select.refusal(algorithm, plan.geometry, plan.dtype)
        assert why_not in line
        assert ("MiB" in line) == (not why_not)
    assert max(map(len, page.splitlines())) < 200


def test_the_explanation_marks_what_was_asked_for():
    page = nc.plan_conv((1, 4, 9, 9), (4, 4, 3, 3), algorithm="kernel2row").explain_choice()
    (line,) = [line for line in page.splitlines() if line.startswith("kernel2row")]
    assert line.count("*") == 2  # its weight gradient is the implicit one


# the script that fits it ----------------------------------------------------------------------------------------------


@pytest.fixture
def sweep():
    if not SWEEP.exists():
        pytest.skip("asv_bench is not part of an installed package")
    spec = importlib.util.spec_from_file_location("sweep", SWEEP)
    sys.modules["sweep"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["sweep"]


def test_a_case_survives_its_file(sweep, tmp_path, monkeypatch):
    for geometry, dtype in sweep.cases(7, 20):
        assert conv_geometry(**sweep.as_json(geometry)) == geometry
        assert dtype in sweep.DTYPES
    assert sweep.cases(7, 20) == sweep.cases(7, 30)[:20]
    assert all(geometry.C <= 4 < geometry.K for geometry, _ in sweep.cases(7, 5, "first"))
    case = conv_geometry((1, 2, 9, 9), (2, 2, 3, 3)), "float64"
    monkeypatch.setattr(sweep, "cases", lambda seed, count, only: [case] * count)
    monkeypatch.setattr(sweep.nc, "warmup", lambda *arguments: 0.0)
    monkeypatch.setattr(sweep, "SECONDS", 0.01)
    path = tmp_path / "results" / "few.jsonl"
    for _ in range(2):  # the second time finds everything done
        sweep.measure_all(path, 1, 2, 60)
        assert [(line["index"], line["product"]) for line in sweep.read(path)] == [
            *((0, product) for product in select.PRODUCTS), (1, "forward"),
        ]
    lines = sweep.lines_of(path)
    assert lines[0].geometry == case[0]
    assert {"implicit", "direct"} & lines[0].seconds.keys()


def test_the_fit_finds_costs_that_made_the_times(sweep, monkeypatch):
    rng = np.random.default_rng(3)
    lines = []
    true = {name: rng.uniform(1, 2, 20) for name in select.AMOUNTS}
    for geometry, dtype in sweep.cases(5, 400):
        line = sweep.Line(
            {"geometry": sweep.as_json(geometry), "dtype": dtype, "product": "forward", "seconds": {"clock": 1.0}}, 1.0
        )
        for name in select.AMOUNTS:
            if not select.refusal(name, geometry, line.dtype):
                amounts = line.amounts(name)
                line.seconds[name] = float(amounts @ true[name][: len(amounts)]) * 1e-9
        lines.append(line)
    monkeypatch.setattr(select, "COSTS", select.COSTS)  # regrets sets it
    ratios = sweep.regrets(lines[200:], sweep.fit(lines[:200]))["forward"]
    assert np.mean(np.array(ratios) <= 1.1) > 0.97
    worse = sweep.fit(lines[:200])
    worse["forward"]["direct"] = {kind: (0.0,) * len(costs) for kind, costs in worse["forward"]["direct"].items()}
    assert np.mean(np.array(sweep.regrets(lines[200:], worse)["forward"]) <= 1.1) < 0.9


@pytest.mark.parametrize("channels", [384, 448, 480, 512, 528, 544, 560, 576, 608])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_choice_is_the_same_for_any_number_of_threads(channels, stride, monkeypatch):
    """Near the limit of what kernels transformed by Winograd may take; beyond it is another algorithm."""
    shapes, fits = ((2, channels, 56, 56), (channels, channels, 3, 3)), set()
    for threads in (1, 2, 3, 8, 64):
        monkeypatch.setattr(numba, "get_num_threads", lambda threads=threads: threads)
        geometry = conv_geometry(*shapes, padding=1, stride=stride)
        nbytes = select.workspace("winograd", geometry, np.dtype("float32"), "cpu")
        fits.add(nbytes <= select.WORKSPACE)
        plans.make_plan.cache_clear()
        assert fits == {plans.make_plan(geometry, np.dtype("float32"), "cpu", "auto").choice.grad_input == "winograd"}
    assert len(fits) == 1
