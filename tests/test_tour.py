"""The tour on real pictures, as a user runs it."""

import sys
from types import SimpleNamespace

import numba
import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")

from numconv import tour as room
from numconv.cli import main

PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A current folder for each test, where the picture goes by default."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The whole tour, once.

    In one thread: where tests share a machine, OpenMP threads that spin at the end of every small loop take many times
    as long as the loops themselves. The commands below use them all.
    """
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        return room.tour(output=tmp_path_factory.mktemp("tour") / "tour.png")
    finally:
        numba.set_num_threads(threads)


def test_everything_that_is_compared_agrees(result):
    assert result.ok
    assert len(result.agreements) == len(room.FILTERS) + 4
    for agreement in result.agreements:
        assert 0 <= agreement.difference <= agreement.bound


def test_the_network_reads_digits_that_it_never_saw(result):
    assert result.accuracy >= 0.97
    assert len(result.losses) == len(result.accuracies) == room.EPOCHS
    assert result.losses[-1] < 0.1 < result.losses[0]


def test_every_step_is_timed(result):
    assert all(seconds > 0 for seconds in result.seconds.values())
    for step in ("first calls", "training", *(f"filters by {algorithm}" for algorithm in room.ALGORITHMS)):
        assert any(name.startswith(step) for name in result.seconds)


def test_the_picture_is_drawn(result):
    from PIL import Image

    with Image.open(result.picture) as picture:
        assert picture.size == (1430, 836)
        assert len(np.unique(picture.convert("L"))) > 100


# its parts ----------------------------------------------------------------------------------------------------------


def test_a_quarter_of_every_digit_is_held_out():
    x, held_out, labels, held_out_labels = room.load_handwriting(seed=0)
    assert (len(x), len(held_out)) == (1347, 450)
    assert x.shape[1:] == (1, 8, 8) and x.dtype == np.float64
    shares = np.bincount(held_out_labels) / (np.bincount(labels) + np.bincount(held_out_labels))
    np.testing.assert_allclose(shares, 0.25, atol=0.01)


def test_the_networks_gradients_are_those_of_its_loss():
    rng = np.random.default_rng(1)
    network, x, labels = room.Network(rng), rng.random((5, 1, 8, 8)), np.array([3, 1, 4, 1, 5])
    loss, dy = room.cross_entropy(network.forward(x), labels)
    network.backward(dy)
    layers = [layer for layer in network.layers if isinstance(layer, room.Conv)]
    slope = sum(float((layer.dw**2).sum() + (layer.db**2).sum()) for layer in layers)
    step = 1e-2 / slope  # downhill along the gradient by a hundredth
    for layer in layers:
        layer.descend(step, momentum=0)
    lower, _ = room.cross_entropy(network.forward(x), labels)
    assert loss - lower == pytest.approx(0.01, rel=0.05)


def test_cross_entropy_of_a_sure_and_a_torn_network():
    loss, dy = room.cross_entropy(np.array([[1000.0, 0.0], [7.0, 7.0]]), np.array([0, 1]))
    assert loss == pytest.approx(np.log(2) / 2)
    np.testing.assert_allclose(dy, [[0, 0], [0.25, -0.25]])
    assert dy.dtype == np.float64


def test_a_shift_moves_and_keeps():
    x = np.zeros((50, 1, 8, 8))
    x[:, :, 4, 4] = 1
    moved = room.shifted(x, np.random.default_rng(0))
    assert moved.shape == x.shape
    assert (moved.sum(axis=(1, 2, 3)) == 1).all()
    assert {tuple(place) for place in np.argwhere(moved)[:, 2:]} == {(i, j) for i in (3, 4, 5) for j in (3, 4, 5)}


def test_a_difference_beyond_rounding_or_a_nan_does_not_agree():
    one = np.ones(3)
    assert room.compare("", one, one + 1e-16, 2, 1).ok
    assert not room.compare("", one, one + 1e-6, 2, 1).ok
    assert not room.compare("", one, one * np.nan, 2, 1).ok


@pytest.mark.parametrize("mode, shape", [("L", ()), ("RGB", (3,)), ("RGBA", (4,)), ("I;16", ()), ("1", ())])
def test_photographs_of_every_kind_are_read(tmp_path, mode, shape):
    from PIL import Image

    pixels = np.random.default_rng(2).integers(0, 256, (20, 30, *shape))
    picture = Image.fromarray(pixels.astype("uint16" if mode == "I;16" else "uint8"))
    picture.convert("1" if mode == "1" else picture.mode).save(tmp_path / "picture.png")
    shown, x = room.load_photograph(tmp_path / "picture.png")
    assert x.shape == shown.shape[:2] == (20, 30)
    assert x.dtype == np.float64
    assert 0 <= x.min() < x.max() <= 1 + 1e-12


def test_a_large_photograph_is_shrunk_and_a_black_one_stays_black(tmp_path):
    from PIL import Image

    Image.new("L", (1300, 100)).save(tmp_path / "black.png")
    _, x = room.load_photograph(tmp_path / "black.png")
    assert x.shape[1] == room.LONGEST_SIDE
    assert not x.any()


# the command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def photograph(tmp_path):
    """A small photograph of nothing in particular."""
    from PIL import Image

    file = tmp_path / "photograph.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (23, 31, 3), np.uint8)).save(file)
    return str(file)


def test_the_command_with_a_photograph_of_ones_own(photograph, tmp_path, capsys):
    assert main(["--image", photograph, "--epochs", "1"]) == 0
    assert (tmp_path / "numconv-tour.png").read_bytes().startswith(PNG)
    out, err = capsys.readouterr()
    assert err == ""  # no progress bar where nobody watches
    assert "23 x 31" in out
    assert out.count(": agree") == len(room.FILTERS) + 4


def test_the_command_without_a_word_is_the_tour(monkeypatch):
    calls = []

    def tour(*args, **options):
        calls.append((args, options))
        return SimpleNamespace(ok=True)

    monkeypatch.setattr(room, "tour", tour)
    assert main([]) == main(["tour"]) == 0
    assert calls == [((None, "numconv-tour.png"), {})] * 2


def test_a_disagreement_is_exit_code_1(photograph, monkeypatch, capsys):
    convolve = room.nc.convolve

    def slightly_wrong(*args, algorithm, **options):
        return convolve(*args, algorithm=algorithm, **options) + 1e-9 * (algorithm == "implicit")

    monkeypatch.setattr(room.nc, "convolve", slightly_wrong)
    assert main(["tour", "--image", photograph, "--epochs", "1", "--output", "tour.svg"]) == 1
    assert capsys.readouterr().out.count("DO NOT AGREE") == len(room.FILTERS)


def refused(capsys, *words):
    """The one line to stderr with which a tour is refused."""
    assert main(["tour", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("numconv: ") and err.count("\n") == 1
    return err


def test_a_photograph_that_is_not_there_or_is_none(tmp_path, capsys):
    assert "nowhere.png" in refused(capsys, "--image", str(tmp_path / "nowhere.png"))
    (tmp_path / "letter.png").write_text("Dear reader")
    assert "letter.png" in refused(capsys, "--image", str(tmp_path / "letter.png"))


def test_a_photograph_smaller_than_a_kernel(tmp_path, capsys):
    from PIL import Image

    Image.new("L", (3, 3)).save(tmp_path / "tiny.png")
    assert "(3, 3)" in refused(capsys, "--image", "tiny.png")
    assert not (tmp_path / "numconv-tour.png").exists()


def test_no_epochs(capsys):
    assert "epochs" in refused(capsys, "--epochs", "0")


def test_a_picture_that_cannot_be_written_is_refused_before_the_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(room, "train", None)
    assert "folder" in refused(capsys, "--output", str(tmp_path / "no folder" / "tour.png"))
    assert "format" in refused(capsys, "--output", str(tmp_path / "tour.docx"))


@pytest.mark.parametrize("package", ["sklearn", "matplotlib", "tqdm"])
def test_without_the_extra_it_says_what_to_install(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    err = refused(capsys)
    assert package in err and "pip install 'numconv-jit[tour]'" in err
