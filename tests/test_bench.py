"""The bench command: its lists, its peers on small work, what it makes of times and of wrong results."""

import json
import re
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import scipy.sparse

import numconv
from numconv.bench import command, gpu, measure, peak, report
from numconv.bench.cases import GOALS, LAYERS, Case, choose, goal, layer
from numconv.bench.measure import Beside, Contest, Lost, Measured, Worker
from numconv.bench.peers import PEERS, Numconv, OpenCV, Peer, Settings, Torch, triples
from numconv.bench.report import Report
from numconv.bench.worker import Work
from numconv.cli import main
from numconv.cuda import _jit

SMALL = [
    layer("g", 4, 6, 7, 3, kind="conv"),
    layer("g", 4, 6, 8, 3, stride=2, groups=2, N=2, kind="conv"),
    layer("g", 2, 2, 5, 3, d=3, kind="conv"),
    layer("g", 4, 4, 9, 3, dilation=2, groups=4, kind="grad_input"),
    layer("g", 4, 6, 8, 3, stride=2, kind="grad_input"),
    layer("g", 4, 6, 8, 3, stride=2, kind="grad_weight"),
    Case("image", "g", "convolve", (9, 11), (5, 5)),
    Case("reflect", "g", "convolve", (9, 11), (3, 3), boundary="reflect"),
    Case("odd line", "g", "convolve", (50,), (7,)),
    Case("even line", "g", "convolve", (50,), (8,)),
    layer("g", 2, 2, 8, 3, stride=2, N=2, kind="im2col"),
    layer("g", 2, 2, 8, 3, stride=2, N=2, kind="col2im"),
    layer("g", 2, 3, 7, 3, stride=2, kind="kernel2row"),
    layer("g", 2, 3, 7, 5, kind="refill"),
    layer("g", 2, 3, 7, 3, stride=2, kind="csr_matvec"),
    layer("g", 2, 3, 7, 3, stride=2, kind="csr_rmatvec"),
    Case("full", "g", "kernel2row", (1, 1, 6, 7), (1, 1, 3, 3), padding=2),
]


class Here:
    """A peer in this process, asked as a worker is; ``log`` lists who was timed."""

    def __init__(self, peer, name="here", dtype="float64", log=None):
        self.name, self.work, self.log = name, Work(peer, Settings(dtype)), [] if log is None else log

    def ask(self, do, **arguments):
        if do == "flops":
            return 1e9
        if do == "time":
            self.log.append(self.name)
        try:
            return getattr(self.work, do)(**arguments)
        except ValueError as error:
            raise Lost(str(error)) from None


class Doing(Peer):
    """A peer whose convolution is a function of the right one."""

    def __init__(self, change):
        self.change = change

    def convolve(self, case, x, w):
        y = numconv.convolve(x, w, "same")
        return {"doing": {"": lambda: self.change(y.copy())}}


LINE = Case("line", "1d", "convolve", (40,), (5,))


def beside(peer, case=LINE, folder=None, seconds=0.0):
    return measure.measure(case, Here(Numconv(Settings()), "numconv"), [peer], seconds, folder)


# the lists ----------------------------------------------------------------------------------------------------------


def test_every_goal_has_cases_and_names_are_unique():
    cases = choose()
    groups = {case.group for case in cases}
    assert {group for group, _ in GOALS} <= groups
    assert len({(case.group, case.name) for case in cases}) == len(cases)
    assert {case.group for case in choose(["resnet50"])} == {"3x3", "other layers"}
    assert all(choose([name]) for name in LAYERS)
    assert [case.name for case in choose(["1d"], "1024")] == ["1000000 samples, 1024"]


def test_the_group_3x3_is_what_its_goal_says():
    for case in choose(["resnet50"]):
        small = case.w[0] < 64 or case.w[1] < 64 or min(case.out) < 14
        plain = case.w[2:] == (3, 3) and case.stride == case.dilation == case.groups == 1
        assert (case.group == "3x3") == (plain and not small), case.name


def test_goals_of_float64():
    assert goal("3x3", "torch", "float32").mean == 1.4
    assert goal("3x3", "torch", "float64").mean == 1.1
    assert goal("image", "opencv", "float64") == goal("image", "opencv", "float32")
    assert goal("image", "nobody", "float32").each is None


def test_work_is_counted_as_it_is():
    case = layer("g", 4, 6, 8, 3, stride=2, groups=2, N=2)
    assert (case.y, case.name) == ((2, 6, 4, 4), "3x3 2 groups 4->6ch 8x8 /2 batch 2")
    assert case.flops == 2 * (2 * 6 * 16) * (2 * 9)
    assert case.nbytes("float64") == 8 * (2 * 4 * 64 + 6 * 2 * 9 + 2 * 6 * 16)
    image = Case("image", "g", "convolve", (9, 11), (5, 5))
    assert (image.flops, image.nbytes("float32")) == (2 * 99 * 25, 4 * (99 + 25 + 99))
    windows = layer("g", 2, 2, 8, 3, kind="im2col")
    assert (windows.flops, windows.nbytes("float32")) == (0, 4 * (128 + 2 * 9 * 64))


@pytest.mark.parametrize("stride, dilation, k", [(1, 1, 3), (2, 1, 3), (1, 2, 3), (2, 1, 5)])
def test_triples_and_bytes_are_those_of_the_matrix(stride, dilation, k):
    case = layer("g", 2, 3, 7, k, stride, dilation=dilation, kind="kernel2row")
    w = case.data("float32")["w"]
    matrix = numconv.plan_conv(case.x, case.w, **case.geometry).matrix(w)
    rows, columns, places, shape = triples(case)
    assert shape == matrix.shape
    np.testing.assert_array_equal(columns, matrix.indices)
    np.testing.assert_array_equal(rows, np.repeat(np.arange(shape[0]), np.diff(matrix.indptr)))
    np.testing.assert_array_equal(w.ravel()[places], matrix.data)
    assert case.nbytes("float32") == matrix.data.nbytes + 4 * (matrix.nnz + shape[0])
    assert replace(case, kind="refill").nbytes("float32") == matrix.data.nbytes
    assert replace(case, kind="csr_rmatvec").nbytes("float32") == case.nbytes("float32") + 4 * sum(shape)


# the peers ----------------------------------------------------------------------------------------------------------


def torch_here():
    import torch

    return Torch(Settings(threads=torch.get_num_threads()))


def opencv_here():
    import cv2

    return OpenCV(Settings(threads=cv2.getNumThreads()))


SERVED = {
    "scipy": {"convolve", "kernel2row", "refill", "csr_matvec", "csr_rmatvec"},
    "torch": {"conv", "grad_input", "grad_weight", "convolve", "im2col", "col2im"},
    "opencv": {"convolve"},
    "sparse_convolution": {"kernel2row"},
}


def serves(name, case):
    """scipy takes lines too, and sparse_convolution nothing but the full convolution of one channel."""
    return case.kind in SERVED[name] and {
        "torch": len(case.x) > 1, "opencv": len(case.x) > 1, "sparse_convolution": case.name == "full",
    }.get(name, True)  # fmt: skip


@pytest.mark.parametrize("name", PEERS)
def test_peers_do_the_same_work(name, tmp_path):
    pytest.importorskip(PEERS[name].module)
    peer, rivals = {"torch": torch_here, "opencv": opencv_here}.get(name, lambda: PEERS[name](Settings()))(), set()
    for case in SMALL:
        assert bool(peer.prepare(case, case.data("float64"))) == serves(name, case), case
        for found in beside(Here(peer, name), case, tmp_path).rivals if serves(name, case) else []:
            assert (found.error, len(found.seconds)) == ("", 1), (case, found)
            rivals.add(found.rival)
    assert rivals == {"scipy": {"scipy", "oaconvolve", "ndimage"}}.get(name, {name})


def test_only_the_quickest_way_counts():
    peer = Doing(None)
    peer.convolve = lambda case, x, w: {"rival": {"slow": lambda: sum(range(10**5)), "quick": lambda: None}}
    assert Work(peer, Settings()).prepare(asdict(LINE)) == [{"rival": "rival", "way": "quick"}]


# comparing, then timing ---------------------------------------------------------------------------------------------


def nan_at_the_end(y):
    y[-1] = np.nan
    return y


@pytest.mark.parametrize(
    "change", [lambda y: y * (1 + 1e-9), lambda y: y[1:], lambda y: y.astype(np.float32), nan_at_the_end]
)
def test_a_wrong_result_is_reported_and_not_timed(change, tmp_path):
    log = []
    (found,) = beside(Here(Doing(change), log=log), folder=tmp_path).rivals
    assert "differ" in found.error
    assert (found.seconds, found.ratio, log) == ([], None, [])


def test_rounding_is_no_difference(tmp_path):
    (found,) = beside(Here(Doing(lambda y: y * (1 + 1e-15))), folder=tmp_path).rivals
    assert found.error == ""
    assert 0 < found.difference < 1
    assert found.ratio > 0


def test_what_cannot_be_done_says_why(tmp_path):
    def refuse(y):
        raise ValueError("too hard")

    found = beside(Here(Doing(refuse)), folder=tmp_path)
    assert (found.error, found.rivals[0].error) == ("", "too hard")
    assert found.ours > 0  # numconv is timed alone
    case = layer("g", 2, 2, 5, 1)
    ours = Here(Numconv(Settings(algorithm="winograd")), "numconv")
    refused = measure.measure(case, ours, [], 0, tmp_path)
    assert "winograd" in refused.error
    assert refused.ours is None


@pytest.mark.parametrize("pair, turns", [(0.3, 4), (0.6, 3), (1.5, 1)])
def test_turns_alternate_until_a_second_is_used(monkeypatch, pair, turns):
    asked, clock = [], [0.0]

    class Side:
        def __init__(self, name):
            self.name = name

        def ask(self, do, rival, seconds):
            asked.append((self.name, do, rival))
            clock[0] += pair / 2
            return [3.0, 1.0, 2.0]

    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock[0], sleep=lambda _: None))
    assert measure.pairs(Side("numconv"), Side("peer"), "rival", 1.0) == [(2.0, 2.0)] * turns
    assert asked == [("numconv", "time", "numconv"), ("peer", "time", "rival")] * turns


def test_the_ratio_is_the_median_of_pairs():
    assert Beside("r", "p", seconds=[(1.0, 2.0), (2.0, 3.0), (4.0, 40.0)]).ratio == 2.0


def test_a_process_that_dies_is_an_answer(tmp_path):
    nobody = Worker("nobody", Settings(), tmp_path)
    for _ in range(2):  # it is started again
        with pytest.raises(Lost, match=r"nobody ended.*KeyError"):
            nobody.ask("versions")
    nobody.close()


def test_a_process_does_not_outlive_the_block():
    with Contest(["scipy"], Settings()) as contest:
        versions, missing = contest.versions()
        processes = [worker._process for worker in (contest.ours, *contest.peers)]
        assert all(process.poll() is None for process in processes)
    assert all(process.poll() is not None for process in processes)
    assert versions["numconv"] == numconv.__version__
    assert versions["scipy"]
    assert missing == {}


def test_the_machine_is_measured():
    assert peak.flops("float32", 0.01) > peak.flops("float64", 0.01) > 1e8
    assert all(rate > 1e8 for rate in peak.memory(0.01).values())
    assert peak.share("float32", 0.01) > 0


# the report ---------------------------------------------------------------------------------------------------------


def measured(case, ours, algorithm="direct", **rivals):
    """A case that took ``ours`` seconds and its rivals theirs, on a machine of 1 GFLOP/s."""
    besides = [Beside(name, name, seconds=[(ours, theirs)]) for name, theirs in rivals.items()]
    return Measured(case, algorithm, peak=1e9, alone=[ours], rivals=besides)


def a_report(*found):
    return Report(
        Settings("float32", 2), {"processor": "abacus"}, {"numconv": "1"}, {"jax": "not installed"},
        {"fill": 1e9, "copy": 2e9}, list(found),
    )  # fmt: skip


def test_the_bound_is_the_one_that_applies():
    case = layer("3x3", 64, 64, 14, 3)
    assert a_report().bound(measured(case, case.flops / 1e9 * 2)) == (0.5, "fma")
    assert a_report().bound(measured(case, case.flops / 1e9, "winograd")) == (0.25, "fma")
    assert a_report().bound(measured(replace(case, kind="grad_weight"), case.flops / 1e9, "winograd"))[0] == 0.25
    assert a_report().bound(measured(case, 1.0, "fft")) is None
    windows = replace(case, kind="im2col")
    assert a_report().bound(measured(windows, windows.nbytes("float32") / 1e9)) == (0.5, "memory")
    assert a_report().bound(Measured(case, error="no")) is None


def test_the_table_judges_by_the_goals():
    one, two = layer("3x3", 64, 64, 14, 3), layer("3x3", 64, 64, 28, 3)
    found = a_report(measured(one, 0.001, torch=0.004), measured(two, 0.002, torch=0.001))
    text = found.table()
    assert "\033" not in text
    assert "jax: left out, not installed" in text
    assert re.search(r"^3x3 64ch 14x14 +1\.000 .* 4\.000 +4\.00$", text, re.MULTILINE)
    assert re.search(r"geometric mean +\(goal 1\.4\) +1\.41$", text, re.MULTILINE)
    assert re.search(r"least +\(goal 1\) +0\.50$", text, re.MULTILINE)
    coloured = found.table(colour=True)
    assert coloured.count(report.GREEN) == 2  # 4.00 and the mean
    assert coloured.count(report.RED) == 2  # 0.50 twice
    assert re.sub(r"\033\[\d+m", "", coloured) == text


def test_the_table_says_what_went_wrong():
    case = layer("3x3", 64, 64, 14, 3)
    bad = Measured(case, "direct", peak=1e9, alone=[1.0], rivals=[Beside("torch", "torch", error="the results differ")])
    found = a_report(bad, Measured(replace(case, name="other"), error="refused"))
    assert not found.ok
    assert "! 3x3 64ch 14x14, torch: the results differ" in found.table()
    assert "! other: refused" in found.table()
    assert found.groups() == []
    assert "geometric mean" not in found.table()


# the command --------------------------------------------------------------------------------------------------------


def test_the_command(capsys, tmp_path, monkeypatch):
    find_spec = command.find_spec
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    file = tmp_path / "bench.json"
    words = "bench --peers torch,scipy --layers 1d --case 8 --dtype float64 --threads 1 --seconds 0"
    code = main([*words.split(), "--json", str(file)])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert "torch: left out, not installed" in out
    assert re.search(r"^1000000 samples, 8 .* scipy ms|^1d +numconv ms .* scipy ms +ratio$", out, re.MULTILINE)
    assert "\033" not in out
    whole = json.loads(file.read_text(encoding="utf-8"))
    assert whole["settings"] == {"dtype": "float64", "threads": 1, "algorithm": "auto", "device": "cpu"}
    assert whole["versions"]["numpy"] == np.__version__
    assert whole["missing"] == {"torch": "not installed"}
    assert [case["name"] for case in whole["cases"]] == [case.name for case in choose(["1d"], "8")]
    case = whole["cases"][0]
    (rival,) = case["rivals"]
    ((ours, theirs),) = rival["seconds"]
    assert rival["ratio"] == theirs / ours
    assert rival["way"] in ("numpy.convolve", "oaconvolve")
    assert case["bound"] in ("fma", "memory")
    assert case["of_peak"] > 0
    assert [(group["group"], group["rival"], group["goal_mean"]) for group in whole["groups"]] == [("1d", "scipy", 1.5)]


def test_the_command_without_peers(tmp_path):
    file = tmp_path / "bench.json"
    words = "bench --peers none --layers 1d --case 8 --algorithm direct --seconds 0"
    assert main([*words.split(), "--json", str(file)]) == 0
    case = json.loads(file.read_text(encoding="utf-8"))["cases"][0]
    assert (case["rivals"], case["algorithm"]) == ([], "direct")
    assert case["median"] > 0
def test_without_a_gpu_its_bench_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(_jit, "missing", lambda: "nothing here computes")
    assert main(["bench", "--device", "cuda", "--layers", "1d"]) == 2
    assert "no GPU is usable: nothing here computes" in capsys.readouterr().err
    assert main(["bench", "--device", "cuda", "--peers", "scipy"]) == 2
    assert "--peers must be one of 'torch', 'cupy'" in capsys.readouterr().err


def test_a_gpu_gets_batches():
    cases = {case.name: case for case in choose(["resnet50"], device="cuda")}
    assert cases["3x3 64ch 56x56 batch 32"].x == (32, 64, 56, 56)
    assert cases["3x3 64ch 56x56 batch 8"].x == (8, 64, 56, 56)
    assert len(cases) == len(choose(["resnet50"]))
    assert choose(["matrices"], device="cuda") == choose(["matrices"])
    assert goal("other layers", "torch", "float32", "cuda").each == 0.8
    assert goal("other layers", "torch tf32", "float32", "cuda").each is None


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.kind} {case.name}")
def test_the_peers_of_a_gpu_do_the_same_work(case, monkeypatch):
    """With libraries of the host in their places: CuPy's functions are NumPy's by name, torch's tensors stay here."""
    numpy = SimpleNamespace(**vars(np) | {"asnumpy": np.asarray, "__version__": "0"})
    sparse = ModuleType("cupyx.scipy.sparse")
    sparse.csr_matrix = scipy.sparse.csr_matrix
    for name, module in (("cupy", numpy), ("cupyx", ModuleType("cupyx")), ("cupyx.scipy", ModuleType("cupyx.scipy")),
                         ("cupyx.scipy.sparse", sparse)):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    peers = [gpu.CuPy(Settings())]
    if find_spec("torch"):
        import torch

        monkeypatch.setattr(gpu.OnTorch, "send", lambda self, array: torch.from_numpy(array))
        peers.append(gpu.TorchOnGpu(Settings()))
    data = case.data("float32")
    (want,) = Numconv(Settings()).prepare(case, data)["numconv"].values()
    rivals = [item for peer in peers for item in peer.prepare(case, data).items()]
    for rival, ways in rivals:
        for call in ways.values():
            assert np.allclose(np.asarray(call()).ravel(), np.asarray(want()).ravel(), atol=1e-3), rival
    names = {rival for rival, _ in rivals}
    if "torch" in names:
        assert ("torch tf32" in names) == (case.flops > 0)


@pytest.mark.parametrize(
    "words, reason",
    [
        ("--peers jax", "--peers"),
        ("--layers vgg", "--layers"),
        ("--threads 0", "--threads"),
        ("--case nothing", "'nothing'"),
        ("--seconds -1", "--seconds"),
        ("--algorithm best", "best"),
        ("--json no/such/folder.json", "no/such"),
    ],
)
def test_bad_input_is_one_line(capsys, words, reason):
    code = main(["bench", *words.split()])
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert reason in err


def test_the_bar_needs_a_terminal(capsys, monkeypatch):
    with command.progress(2) as step:
        step("a case")
    assert capsys.readouterr().err == ""
    pytest.importorskip("tqdm")
    monkeypatch.setattr(command.sys.stderr, "isatty", lambda: True, raising=False)
    with command.progress(2) as step:
        pass
    assert "0/2" in capsys.readouterr().err
