"""Each notebook is a lesson that holds: it runs from a clean kernel, and says what was committed."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
NEEDED = [name for name in ("nbclient", "nbformat", "ipykernel", "matplotlib", "sklearn") if not find_spec(name)]
REFRESH = "jupyter nbconvert --to notebook --execute --inplace notebooks/*.ipynb"
NUMBER = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shown(cell):
    """What a cell shows: its words, numbers left out as they differ from machine to machine, and how many pictures."""
    words, pictures = "", 0
    for output in cell["outputs"]:
        data = output.get("data", {})
        pictures += "image/png" in data
        if "image/png" not in data:
            words += "".join(output.get("text") or data.get("text/plain", ""))
    return " ".join(NUMBER.sub("#", words).split()), pictures


def test_there_are_five():
    assert [path.name[:3] for path in NOTEBOOKS] == ["01_", "02_", "03_", "04_", "05_"]


@each_notebook
def test_what_is_committed_came_from_one_clean_run(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert sum(shown(cell)[1] for cell in cells) >= 1
    assert path.stat().st_size < 1_500_000


@each_notebook
def test_links_lead_somewhere(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    text = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (path.parent / target).exists(), target


@pytest.mark.skipif(bool(NEEDED), reason=f"not installed: {', '.join(NEEDED)}; pip install '.[notebooks]'")
@each_notebook
def test_it_runs_from_a_clean_kernel_and_says_the_same(path, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    committed = nbformat.read(path, as_version=4)
    notebook = nbformat.from_dict(json.loads(json.dumps(committed)))
    for cell in code_cells(notebook):
        cell["outputs"], cell["execution_count"] = [], None
    folder = shutil.copytree(path.parent, tmp_path / "notebooks")  # they write pictures
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    for before, after in zip(code_cells(committed), code_cells(notebook), strict=True):
        assert not [output for output in after["outputs"] if output.get("name") == "stderr"], after["outputs"]
        if "machine" not in before["metadata"].get("tags", []):
            assert shown(after) == shown(before), f"stale output, run: {REFRESH}\n\n{before['source']}"
