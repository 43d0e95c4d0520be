"""The command line: what it prints, what it writes, and how it says no."""

import subprocess
import sys

import pytest

import numconv
from numconv.cli import main


def said(capsys, *words):
    """The exit code and both outputs of one command."""
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_info_names_versions_threads_devices_cache_and_memory(capsys):
    import numba
    import numpy as np

    code, out, err = said(capsys, "info")
    facts = {line[:18].strip(): line[19:] for line in out.splitlines()}
    assert (code, err) == (0, "")
    assert facts["numconv"].startswith(numconv.__version__)
    assert (facts["numpy"], facts["numba"]) == (np.__version__, numba.__version__)
    assert f"layer {numba.threading_layer()}" in facts["threads"]
    assert facts["threads"].startswith(str(numba.get_num_threads()))
    assert "bits" in facts["processor"]
    for device in numconv.devices():
        assert ("not usable" in facts[f"device {device.name}"]) is not device.usable
        assert device.reason in facts[f"device {device.name}"]
    assert facts["compiled kernels"]
    assert float(facts["memory"].split()[0]) > 0


def test_explain_prints_the_slides(capsys):
    code, out, err = said(capsys, "explain", "3x3", "2x2")
    assert (code, err) == (0, "")
    assert out == f"{numconv.plan_convolve((3, 3), (2, 2)).explain()}\n"
    assert "y11 = w22 x11 + w21 x12 + w12 x21 + w11 x22" in out


def test_explain_without_turning(capsys):
    _, out, _ = said(capsys, "explain", "3x3", "2x2", "--no-flip")
    assert out == f"{numconv.plan_convolve((3, 3), (2, 2), flip=False).explain()}\n"


def test_explain_takes_every_setting(capsys):
    words = "4x5 2x3 --stride 2x1 --dilation 1x2 --padding 1:0x2:1 --boundary wrap --groups 2 --no-flip"
    code, out, _ = said(capsys, "explain", *words.split(), "--channels", "2", "--out-channels", "4")
    geometry = {"stride": (2, 1), "dilation": (1, 2), "padding": ((1, 0), (2, 1)), "boundary": "wrap", "groups": 2}
    assert code == 0
    assert out == f"{numconv.plan_conv((2, 4, 5), (4, 1, 2, 3), **geometry).explain()}\n"


@pytest.mark.parametrize("padding, given", [("1", 1), ("1x2", (1, 2)), ("1:2", ((1, 2), (1, 2))), ("same", "same")])
def test_explain_reads_every_spelling_of_padding(capsys, padding, given):
    code, out, _ = said(capsys, "explain", "3x4", "2x2", "--padding", padding, "--channels", "1")
    assert code == 0
    assert out == f"{numconv.plan_conv((1, 3, 4), (1, 1, 2, 2), padding=given, flip=True).explain()}\n"


def test_groups_alone_make_one_channel_each(capsys):
    _, out, _ = said(capsys, "explain", "4", "3", "--groups", "2")
    assert out == f"{numconv.plan_conv((2, 4), (2, 1, 3), groups=2, flip=True).explain()}\n"


def test_explain_writes_html_and_a_figure(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    html, figure = tmp_path / "page.html", tmp_path / "figure.png"
    code, _, _ = said(capsys, "explain", "3x3", "2x2", "--html", str(html), "--plot", str(figure))
    assert code == 0
    assert html.read_text(encoding="utf-8") == numconv.plan_convolve((3, 3), (2, 2)).explain().to_html()
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "words, reason",
    [
        ("explain 3x3 2", "as many axes"),
        ("explain 2x2 3x3", "empty"),
        ("explain 3xa 2x2", "'3xa'"),
        ("explain 3x-3 2x2", "-3"),
        ("explain 3x3 2x2 --stride 0", "stride"),
        ("explain 3x3 2x2 --stride 1x1x1", "stride"),
        ("explain 3x3 2x2 --padding wide", "'wide'"),
        ("explain 3x3 2x2 --channels 3 --groups 2", "groups"),
        ("explain 3x3 2x2 --groups 0", "groups"),
        ("explain 3x3 2x2 --boundary mirror", "mirror"),
        ("explain 3x3 2x2 --html no/such/folder.html", "no/such"),
        ("explain 300x300 3x3", "20,000"),
        ("explain 3x3", "kernel"),
        ("paint", "paint"),
        ("--size 3", "--size"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, words, reason):
    code, _, err = said(capsys, *words.split())
    assert code == 2
    assert reason in err
    assert err.startswith("numconv: ")
    assert err.count("\n") == 1


def test_version_and_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"numconv {numconv.__version__}\n"
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("tour", "info", "explain"))


def test_as_a_module_in_a_process_of_its_own():
    done = subprocess.run(
        [sys.executable, "-m", "numconv", "explain", "3x3", "2x2"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "dx22 = dy11 w11 + dy12 w12 + dy21 w21 + dy22 w22" in done.stdout
    wrong = subprocess.run([sys.executable, "-m", "numconv", "explain", "3x3", "2"], capture_output=True, check=False)
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count(b"\n")) == (2, b"", 1)


def test_a_reader_that_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "numconv", "explain", "9x9", "3x3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
