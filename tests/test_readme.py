"""The README keeps its word: every Python block runs, every file and every public name that it mentions is there."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import numconv
from numconv import overloads

overloads.init()  # numba does so itself where numconv is installed

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"(?P<needs><!-- needs (?P<package>\w+) -->\n)?^```python\n(?P<code>.*?)^```$", re.M | re.S)


def blocks():
    """Each block's code, moved down to the line where it stands, and the package that it needs."""
    text = README.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        yield "\n" * text.count("\n", 0, block.start("code")) + block["code"], block["package"]


def test_the_blocks_run_in_order_in_one_namespace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    ran = 0
    for code, package in blocks():
        if package is None or find_spec(package):
            exec(compile(code, str(README), "exec"), namespace)
            ran += 1
    assert ran >= 10


def test_files_that_it_points_to_are_there():
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", README.read_text(encoding="utf-8"))
    assert targets
    for target in targets:
        assert (README.parent / target).exists(), target


def test_the_pictures_are_light():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert len(pictures) >= 3
    for picture in pictures:
        assert (README.parent / picture).stat().st_size < 400_000, picture


@pytest.mark.parametrize("name", [name for name in numconv.__all__ if not name.startswith("__")])
def test_every_public_function_is_mentioned(name):
    text = README.read_text(encoding="utf-8")
    short = re.sub(r"[123]d$", "", name)
    assert re.search(rf"\b{name}\b", text) or f"{short}1d/2d/3d" in text
