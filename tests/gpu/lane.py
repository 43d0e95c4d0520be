"""All that is to be run where there is a GPU, the most valuable first, each part within its own limit.

    python tests/gpu/lane.py [--out FOLDER] [--seconds 450]

Every result is a file in the folder as soon as it is there, ``summary.txt`` above all. A part that finds nothing to run
with is said to be missing, and the lane has failed unless every part that can run anywhere has run and passed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class Part(NamedTuple):
    """A command with a limit in seconds, and the program or module without which it cannot run."""

    name: str
    seconds: int
    command: list[str]
    needs: str = ""
    anywhere: bool = True  # whether a machine with a GPU must be able to run it


def parts(out: Path) -> list[Part]:
    """The most valuable first."""
    python = sys.executable
    script = {name: str(HERE / f"{name}.py") for name in ("smoke", "times", "host", "every_kernel", "profiled")}
    several = ["-n", "6"] if find_spec("xdist") else []
    sections = ["SpeedOfLight", "Occupancy", "WarpStateStats", "InstructionStats", "MemoryWorkloadAnalysis"]
    chosen = [word for section in sections for word in ("--section", section)]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--print-limit", "20", "--tool"]
    return [
        Part("environment", 20, [python, script["smoke"], "environment"]),
        Part("smoke", 60, [python, script["smoke"]]),
        Part("tests", 170, [python, "-m", "pytest", "-m", "gpu", "-q", "-rs", "tests/test_gpu.py", *several], "pytest"),
        Part("times", 110, [python, script["times"], str(out / "times.json"), "100"], "torch", False),
        Part("host", 40, [python, script["host"], "--json", str(out / "host.json")], "pytest"),
        Part("racecheck", 60, [*sanitizer, "racecheck", python, script["every_kernel"]], "compute-sanitizer", False),
        Part("memcheck", 60, [*sanitizer, "memcheck", python, script["every_kernel"]], "compute-sanitizer", False),
        Part("ncu", 45, ["ncu", "--clock-control", "none", "-k", "regex:forward", "-c", "4", *chosen, python,
                         script["profiled"]], "ncu", False),
        Part("bench", 80, [python, "-m", "numconv", "bench", "--device", "cuda", "--layers", "resnet50,matrices",
                           "--case", "56x56", "--seconds", "0.2", "--json", str(out / "bench.json")]),
        Part("synccheck", 30, [*sanitizer, "synccheck", python, script["every_kernel"]], "compute-sanitizer", False),
        Part("initcheck", 30, [*sanitizer, "initcheck", python, script["every_kernel"]], "compute-sanitizer", False),
    ]  # fmt: skip


def run(part: Part, limit: float, out: Path) -> str:
    """How a part ended; what it prints is shown and kept."""
    if part.needs and not (shutil.which(part.needs) or find_spec(part.needs)):
        return f"MISSING: there is no {part.needs} here"
    if limit < 8:
        return "NOT RUN: no time is left"
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    with (out / f"{part.name}.txt").open("w") as log:
        process = subprocess.Popen(
            part.command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(process.pid, signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, limit, 5)
        stopped = time.monotonic() + limit
        for line in process.stdout or ():
            log.write(line)
            log.flush()
            sys.stdout.write(line[:200].rstrip("\n") + "\n")
        code = process.wait()
        signal.setitimer(signal.ITIMER_REAL, 0)
    if time.monotonic() >= stopped:
        return f"STOPPED after {limit:.0f} s"
    if part.name == "tests" and " passed" not in (out / "tests.txt").read_text():
        return "FAILED: every test was skipped"
    return "passed" if code == 0 else f"FAILED with {code}"


def main() -> int:
    """Run the parts, and say what became of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for the results")
    parser.add_argument("--seconds", type=float, default=450, help="for all of it")
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    begin, ended = time.monotonic(), []
    for part in parts(out):
        spent = time.monotonic() - begin
        print(f"\n=== {part.name}, {spent:.0f} s spent", flush=True)
        how = run(part, min(part.seconds, given.seconds - spent), out)
        print(f"=== {part.name}: {how}", flush=True)
        ended.append((part, how))
        (out / "summary.txt").write_text("".join(f"{part.name:12} {how}\n" for part, how in ended))
    bad = [part.name for part, how in ended if how != "passed" and (part.anywhere or "FAILED" in how)]
    print(f"\n{(out / 'summary.txt').read_text()}\n{'FAILED: ' + ', '.join(bad) if bad else 'all passed'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
