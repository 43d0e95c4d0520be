"""The fuzz on other processors than this one: narrower vectors of this machine, and aarch64 under emulation.

    python tests/other_processors.py [--cases 600] [--processor sse avx2 native neon] [--room FOLDER]

``sse`` and ``avx2`` run on any x86-64: numba is told another processor's name, and numconv's vectors follow it.
``neon`` needs Debian's ``apt-get``: Python and its libraries for arm64 are unpacked into a folder (nothing is
installed), wheels for aarch64 beside them, and ``qemu-user`` runs them. Compiling there takes about an hour; the folder
keeps what was compiled. Not part of CI; CONTRIBUTING.md says what came of it last. Other arguments are those of
``fuzz.py``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: LLVM's names of older processors.
OLDER = {"avx2": "haswell", "sse": "nehalem"}
PROCESSORS = ("sse", "avx2", "native", "neon")

TELL = (
    "from numconv.cpu import target; import platform, numba; "
    "print(platform.machine(), target.VECTOR_BYTES, 'bytes a vector, numba', numba.__version__)"
)


def as_older(processor: str, room: Path) -> dict[str, str]:
    """The environment in which code is compiled for an older processor."""
    return {
        "NUMBA_CPU_NAME": OLDER[processor], "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(room / processor),
        "PYTHONPATH": str(HERE.parent),
    }  # fmt: skip


def emulated(room: Path) -> list[str]:
    """The command that starts Python for aarch64, with everything that it needs in ``room``."""
    room = room / "neon"
    root, site = room / "root", room / "site"
    if not (root / "usr/bin/python3").exists():
        _unpack(room, root)
    qemu = shutil.which("qemu-aarch64-static") or str(room / "host/usr/bin/qemu-aarch64-static")
    if not Path(qemu).exists():
        folder = room / "host"
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", "qemu-user-static"], cwd=folder, check=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(folder)], check=True)
    python = [qemu, "-L", str(root), str(root / "usr/bin/python3")]
    if not (site / "numba").exists():
        ask = "import sys; print(*sys.version_info[:2], sep='.')"
        version = subprocess.run([*python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
        _install(site, version)
    variables = {
        "PYTHONPATH": f"{site}:{HERE.parent}", "NUMBA_NUM_THREADS": "1", "NUMBA_CACHE_DIR": str(room / "cache"),
    }  # fmt: skip
    return ["env", *(f"{name}={value}" for name, value in variables.items()), "nice", *python]


def _unpack(room: Path, root: Path) -> None:
    """Debian's Python for arm64 and all that it depends on, without installing anything."""
    for folder in (room / "state/lists/partial", room / "cache_of_apt/archives/partial", root):
        folder.mkdir(parents=True, exist_ok=True)
    options = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "Dir::State": room / "state",
        "Dir::State::status": "/dev/null", "Dir::Cache": room / "cache_of_apt", "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "false", "Debug::NoLocking": "true",
    }  # fmt: skip
    apt = ["apt-get", "-q", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "install", "--yes", "--download-only", "python3", "libgomp1", "libstdc++6"], check=True)
    for package in sorted((room / "cache_of_apt/archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)


def _install(site: Path, version: str) -> None:
    """Wheels for aarch64, of the versions that are installed here."""
    from importlib.metadata import version as installed

    names = [f"{name}=={installed(name)}" for name in ("numpy", "numba", "llvmlite", "scipy")]
    platforms = [f"manylinux{p}_aarch64" for p in ("2014", "_2_17", "_2_27", "_2_28")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
    where = ["--target", str(site), "--python-version", version]
    where += [word for p in platforms for word in ("--platform", p)]
    subprocess.run([*pip, *where, *names], check=True)


def run(processor: str, room: Path, arguments: list[str]) -> int:
    """The fuzz on one of ``PROCESSORS``: the exit status."""
    environment, command = dict(os.environ), [sys.executable]
    if processor in OLDER:
        environment |= as_older(processor, room)
    if processor == "neon":
        command = emulated(room)
        arguments = [*arguments, "--python", shlex.join(command), "--dtype", "float32", "float64"]
    print(f"\n{processor}: ", end="", flush=True)
    subprocess.run([*command, "-c", TELL], check=True, env=environment, cwd=HERE.parent)
    return subprocess.run([sys.executable, str(HERE / "fuzz.py"), *arguments], env=environment).returncode


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processor", nargs="+", choices=PROCESSORS, default=PROCESSORS)
    parser.add_argument("--room", type=Path, default=Path.home() / ".cache/numconv-processors")
    parser.add_argument("--cases", default="600")
    chosen, rest = parser.parse_known_args()
    arguments = ["--seconds", "100000", "--cases", chosen.cases, *rest]
    return max(run(processor, chosen.room, arguments) for processor in chosen.processor)


if __name__ == "__main__":
    sys.exit(main())
