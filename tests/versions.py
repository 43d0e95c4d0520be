"""A short set of tests with the lowest and the newest numba, NumPy and SciPy that ``pyproject.toml`` allows.

    python tests/versions.py lowest
    python tests/versions.py newest [--folder FOLDER] [arguments of pytest]

Each makes a virtual environment of its own, in ``--folder`` or one that is thrown away, installs numconv into it and
runs ``TESTS``, or what is given instead. ``lowest`` takes every ``>=`` of the dependencies for ``==``, so it wants the
lowest Python that ``requires-python`` names, for which there are wheels of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: What a version may break: numba's insides by which numconv compiles, launches, is called and kept on disk, NumPy's
#: casts, SciPy's sparse matrices and operators. Every algorithm and matrix is there once; the time goes into compiling.
TESTS = [
    "tests/test_slides.py",
    "tests/test_cache.py",
    "tests/test_njit.py::test_cached_functions_load_in_a_new_process",
    "tests/test_njit.py::test_the_same_lines_compiled_and_not",
    "tests/test_csr.py::test_large_products_are_right_and_the_same_for_any_number_of_threads",
    "tests/test_matrices.py::test_scipy_accepts_the_matrix_as_it_is",
]

TELL = (
    "import numba, numpy, scipy, numconv; print(numconv.__file__); "
    "print(*(f'{package.__name__} {package.__version__}' for package in (numba, numpy, scipy)), flush=True)"
)


def wanted(which: str) -> list[str]:
    """The dependencies as pip takes them: as they are declared, or each in its lowest version."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    if which == "newest":
        return declared
    if any(name.count(">=") != 1 for name in declared):
        raise SystemExit(f"a lowest version is written as name>=version, got {declared}")
    return [name.replace(">=", "==") for name in declared]


def main() -> int:
    """The command line: the exit status of pytest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["lowest", "newest"])
    parser.add_argument("--folder", type=Path)
    chosen, instead = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as room:
        folder = chosen.folder or Path(room)
        venv.create(folder, with_pip=True)
        programs = folder / ("Scripts" if os.name == "nt" else "bin")
        pip = [programs / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        how = ["--upgrade", "--upgrade-strategy", "eager"] if chosen.which == "newest" else []
        names = [*wanted(chosen.which), "pytest", "hypothesis"]
        subprocess.run([*pip, *how, "--only-binary=:all:", *names], check=True)
        subprocess.run([*pip, "--no-deps", ROOT], check=True)
        # the tests of this checkout, and the package that was installed
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
        subprocess.run([programs / "python", "-c", TELL], check=True, env=environment, cwd=folder)
        return subprocess.run([programs / "pytest", "-q", *(instead or TESTS)], env=environment, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
