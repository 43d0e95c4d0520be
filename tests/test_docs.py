"""Every example in a docstring runs, every public name has a whole docstring, and the reference renders."""

import doctest
import inspect
import pkgutil
import re
import subprocess
import sys
from importlib import import_module

import pytest

import numconv

ROOMS = [
    name
    for _, name, _ in pkgutil.walk_packages(numconv.__path__, "numconv.")
    if not name.endswith(("__main__", "tour"))
]

#: A context manager, and functions that have nothing to complain of.
NO_RESULT, NEVER_RAISES = ("use_device",), ("devices",)


@pytest.mark.parametrize("name", ROOMS)
def test_examples_of_room_run(name):
    if name.startswith("numconv.interop."):
        pytest.importorskip(name.rpartition(".")[2])  # a room for another library has its name
    failed, _ = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def public():
    """Every public function and class, and the public methods of the classes, by the name that a reader looks up."""
    for name in set(numconv.__all__) - {"__version__"}:
        member = getattr(numconv, name)
        yield name, member
        if inspect.isclass(member):
            for method, function in inspect.getmembers(member, inspect.isfunction):
                if not method.startswith("_"):
                    yield f"{name}.{method}", function


@pytest.mark.parametrize(("name", "member"), sorted(public()))
def test_public_name_has_a_complete_docstring(name, member):
    text = inspect.getdoc(member)
    signature = inspect.signature(member)
    wanted = []
    if inspect.isclass(member):
        wanted += ["Attributes" if hasattr(member, "__dataclass_fields__") else "Parameters", "Examples"]
    else:
        wanted += ["Parameters"] * bool(set(signature.parameters) - {"self"})
        wanted += ["Returns"] * (signature.return_annotation not in (None, "None") and name not in NO_RESULT)
        wanted += ["Examples"] * ("." not in name)
        wanted += ["Raises"] * ("." not in name and name not in NEVER_RAISES)
    for section in wanted:
        assert re.search(rf"^{section}\n-+$", text, re.M), f"{name} lacks {section}"
    if "Parameters" in wanted and not inspect.isclass(member):
        section = re.search(r"^Parameters\n-+\n(.*?)(?:\n\n\w+\n-|\Z)", text, re.M | re.S)[1]
        said = re.findall(r"\w+", " ".join(re.findall(r"^([\w*, ]+?)(?: :.*)?$", section, re.M)))
        assert set(signature.parameters) - {"self"} <= set(said), f"{name} does not say what all parameters are"


def test_reference_renders_without_a_warning(tmp_path):
    pytest.importorskip("pdoc", reason="pip install '.[docs]'")
    command = [sys.executable, "-m", "pdoc", "--docformat", "numpy", "-o", str(tmp_path), "numconv"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    page = (tmp_path / "numconv.html").read_text(encoding="utf-8")
    for name in numconv.__all__:
        assert f'<section id="{name}"' in page, f"the reference lacks {name}"


def test_all_lists_every_lazy_name_and_nothing_else():
    assert set(numconv.__all__) == {"__version__", *numconv._ROOM_OF}
    assert all(hasattr(numconv, name) for name in numconv.__all__)
    assert set(numconv.__all__) <= set(dir(numconv))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = numconv.no_such_name
