"""Every example in a docstring runs, and every public name has one."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import numconv

ROOMS = [
    name
    for _, name, _ in pkgutil.walk_packages(numconv.__path__, "numconv.")
    if not name.endswith(("__main__", "tour"))
]


@pytest.mark.parametrize("name", ROOMS)
def test_examples_of_room_run(name):
    if name.startswith("numconv.interop."):
        pytest.importorskip(name.rpartition(".")[2])  # a room for another library has its name
    failed, _ = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


@pytest.mark.parametrize("name", [n for n in numconv.__all__ if n not in ("__version__", "ConvPlan")])
def test_public_function_has_a_complete_docstring(name):
    text = getattr(numconv, name).__doc__
    for part in ("Parameters", "Returns", "Raises", "Examples"):
        if part == "Parameters" and name == "devices":
            continue
        if part in ("Returns", "Raises") and name in ("devices", "use_device", "plan_convolve"):
            continue
        assert part in text, f"{name} lacks {part}"


def test_all_lists_every_lazy_name_and_nothing_else():
    assert set(numconv.__all__) == {"__version__", *numconv._ROOM_OF}
    assert all(hasattr(numconv, name) for name in numconv.__all__)
    assert set(numconv.__all__) <= set(dir(numconv))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = numconv.no_such_name
