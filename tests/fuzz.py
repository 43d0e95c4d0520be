"""Differential fuzz: random calls against an oracle that looks every pixel up, for a number of seconds.

    python tests/fuzz.py --seconds 60 [--seed S] [--product forward …] [--algorithm direct …]
    python tests/fuzz.py --case '{…}'      one case again, as a failure prints it

Cases are run by another process, which says which one it begins: where it dies, the case is known and counted, and a
new process goes on behind it. On Linux all its memory lies against pages that nobody may touch (``guarded``), which
come after it for a thousand cases and before it for the next, so that what reads or writes outside dies at once.
Failures are made smaller, printed with seed and case, and counted by kind; the exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from fuzz_cases import ALGORITHMS, DTYPES, PRODUCTS, Choices, draw, simpler
from fuzz_checks import call_of, check

import numconv

#: Seconds after which a case counts as hanging; the first of a dtype have to be compiled, which emulation draws out.
PATIENCE, EMULATED = 240, 7200
#: Where the guards lie, and for how many cases in a row.
GUARDS, GUARDED = ("after", "before", "none"), 1000
#: Failures of one kind that are made smaller, and seconds for each.
SHRUNK, SHRINKING = 2, 5.0


# the process that runs cases ----------------------------------------------------------------------------------------


def guard(side: str) -> None:
    """Lay all memory of this process against guards."""
    if side == "none":
        return
    import guard_cases
    import guarded

    from numconv import _memory

    guarded.install(before=side == "before")
    _memory.workspace = guard_cases.workspace


def work(seed: int, first: int, choices: Choices, channel: int) -> None:
    """Case after case from ``first`` on: a line before each, and a line with what was wrong after it."""
    with os.fdopen(channel, "w", buffering=1) as report:
        index = first
        while True:
            case = draw(seed, index, choices)
            report.write(json.dumps({"begin": index}) + "\n")
            report.write(json.dumps({"end": index, "problems": check(case)}) + "\n")
            index += 1


def work_on(text: str, channel: int) -> None:
    """One case."""
    with os.fdopen(channel, "w", buffering=1) as report:
        report.write(json.dumps({"begin": 0}) + "\n")
        report.write(json.dumps({"end": 0, "problems": check(json.loads(text))}) + "\n")


class Worker:
    """Another process that runs cases, and the lines it has written."""

    #: What runs them, where it is not this Python: that of another processor.
    python: str = ""

    def __init__(self, *arguments: str) -> None:
        reading, writing = os.pipe()
        self.noise = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [*(shlex.split(self.python) or [sys.executable]), __file__, "--channel", str(writing), *arguments],
            pass_fds=[writing], stdin=subprocess.DEVNULL, stdout=self.noise, stderr=self.noise,
            env={**os.environ, "MALLOC_PERTURB_": "165"},  # fresh memory is never zero
        )  # fmt: skip
        os.close(writing)
        self.reading, self.text = reading, b""

    def line(self, patience: float) -> dict[str, Any] | None:
        """The next line, or None if there is none within so many seconds; EOFError if the process has died."""
        end = time.monotonic() + patience
        while b"\n" not in self.text:
            if not select.select([self.reading], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            read = os.read(self.reading, 1 << 16)
            if not read:
                raise EOFError
            self.text += read
        line, self.text = self.text.split(b"\n", 1)
        return json.loads(line)

    def stop(self) -> str:
        """End it, and say how it ended."""
        with suppress(ProcessLookupError):
            if self.process.poll() is None and not select.select([self.reading], [], [], 0)[0]:
                self.process.kill()
        code = self.process.wait()
        os.close(self.reading)
        self.noise.seek(0)
        last = self.noise.read().decode(errors="replace").strip().splitlines()[-1:]
        self.noise.close()
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return " ".join([how, *last])


def patience() -> float:
    """How long to wait for a case."""
    return EMULATED if Worker.python else PATIENCE


def run_apart(case: dict[str, Any], side: str) -> list[list[str]]:
    """What is wrong with a case, found by a process of its own, which may die of it."""
    worker = Worker("--case", json.dumps(case), "--guards", side)
    try:
        for _ in range(2):
            line = worker.line(patience())
            if line is None:
                worker.process.kill()
                worker.stop()
                return [["hang", f"after {patience()} s"]]
            if "end" in line:
                worker.process.wait()
                died = worker.process.returncode < 0
                how = worker.stop()
                return line["problems"] + ([["crash", f"at the end: {how}"]] if died else [])
    except EOFError:
        return [["crash", worker.stop()]]
    return []


# shrinking ----------------------------------------------------------------------------------------------------------


def shrink(case: dict[str, Any], kind: str, seconds: float, side: str = "none") -> dict[str, Any]:
    """A simpler case that fails in the same way."""
    apart = kind in ("crash", "hang", "wrote outside") or bool(Worker.python)
    end = time.monotonic() + seconds * (6 if apart else 1)
    again = True
    while again:
        again = False
        for candidate in simpler(case):
            if time.monotonic() > end:
                return case
            with suppress(Exception):
                problems: Any = run_apart(candidate, side) if apart else check(candidate)
                if any(found[0] == kind for found in problems):
                    case, again = candidate, True
                    break
    return case


# the run ------------------------------------------------------------------------------------------------------------


class Tally:
    """What was run and what failed."""

    def __init__(self) -> None:
        self.cases: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[tuple[str, str]] = Counter()
        self.failures: Counter[tuple[str, str, str]] = Counter()

    def table(self) -> str:
        """Cases by product and algorithm, failures by kind."""
        kinds = sorted({kind for _, _, kind in self.failures})
        lines = [f"{'product':12}{'algorithm':12}{'cases':>8}{'refused':>9}" + "".join(f"{k:>15}" for k in kinds)]
        for row in sorted(self.cases):
            counts = "".join(f"{self.failures[(*row, kind)] or '':>15}" for kind in kinds)
            lines.append(f"{row[0]:12}{row[1] or '-':12}{self.cases[row]:>8}{self.refused[row] or '':>9}{counts}")
        totals = "".join(f"{sum(n for key, n in self.failures.items() if key[2] == kind):>15}" for kind in kinds)
        lines.append(f"{'all':24}{self.cases.total():>8}{self.refused.total():>9}{totals}")
        return "\n".join(lines)


def fuzz(
    seconds: float, seed: int, choices: Choices = Choices(), first: int = 0, say: Any = print,  # noqa: B008
    cases: int | None = None,
) -> Tally:  # fmt: skip
    """Run cases until the time is over, or so many of them."""
    tally, index, started = Tally(), first, time.monotonic()
    worker, bar = None, _progress(seconds)
    turns = GUARDS[:2] if sys.platform.startswith("linux") and not Worker.python else GUARDS[2:]
    arguments = ["--seed", str(seed), "--product", *choices.products, "--algorithm", *choices.algorithms]
    arguments += ["--dtype", *choices.dtypes] if choices.dtypes else []
    try:
        while time.monotonic() - started < seconds and (cases is None or index - first < cases):
            side = turns[index // GUARDED % len(turns)]
            if worker is not None and index % GUARDED == 0:
                worker.process.kill()
                worker.stop()
                worker = None
            worker = worker or Worker(*arguments, "--first", str(index), "--guards", side)
            problems: Any = None
            try:
                while problems is None:
                    line = worker.line(patience())
                    if line is None:
                        worker.process.kill()
                        worker.stop()
                        worker, problems = None, [["hang", f"after {patience()} s"]]
                    elif "end" in line:
                        problems = line["problems"]
            except EOFError:
                worker, problems = None, [["crash", worker.stop()]]
            case = draw(seed, index, choices)
            _count(tally, case, problems, f"--seed {seed} --first {index}", side, say)
            index += 1
            if bar is not None:
                bar.set_postfix_str(f"{tally.cases.total()} cases, {tally.failures.total()} failures", refresh=False)
                bar.update(min(time.monotonic() - started, seconds) - bar.n)
    except KeyboardInterrupt:
        say("\ninterrupted")
    finally:
        if bar is not None:
            bar.close()
        if worker is not None:
            worker.process.kill()
            worker.stop()
    return tally


def _count(tally: Tally, case: dict[str, Any], problems: Any, where: str, side: str, say: Any) -> None:
    row = case["product"], case["algorithm"]
    tally.cases[row] += 1
    for kind, detail in problems:
        if kind == "refused":
            tally.refused[row] += 1
            continue
        tally.failures[(*row, kind)] += 1
        number = tally.failures[(*row, kind)]
        if number > SHRUNK:
            continue
        small = shrink(case, kind, SHRINKING, side)
        how = reproduction(small, side if kind == "crash" else "none")
        say(f"\n{kind}: {call_of(small)}\n    {detail}\n    {where}\n    {how}")


def reproduction(case: dict[str, Any], side: str = "none") -> str:
    """One line that runs a case again."""
    guards = "" if side == "none" else f" --guards {side}"
    return f"python tests/fuzz.py{guards} --case '{json.dumps(case)}'"


def about() -> str:
    """What runs: a fuzz without numba would find that nothing runs."""
    import numba

    return f"numconv {numconv.__version__} in {numconv.__path__[0]}, numba {numba.__version__}, {sys.executable}"


def _progress(seconds: float) -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=seconds, unit="s", bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s {postfix}")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cases", type=int, help="stop after so many")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--first", type=int, default=0, help="the case to begin with")
    parser.add_argument("--product", nargs="+", choices=PRODUCTS, default=list(PRODUCTS))
    parser.add_argument("--algorithm", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=())
    parser.add_argument("--case", help="run this one")
    parser.add_argument("--guards", choices=GUARDS, default="none", help="where the guards lie, for --case")
    parser.add_argument("--python", default="", help="the command that runs the cases, for another processor")
    parser.add_argument("--channel", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    choices = Choices(tuple(chosen.product), tuple(chosen.algorithm), tuple(chosen.dtype))
    if chosen.channel is not None:
        guard(chosen.guards)
        if chosen.case:
            work_on(chosen.case, chosen.channel)
        else:
            work(chosen.seed, chosen.first, choices, chosen.channel)
        return 0
    Worker.python = chosen.python
    if chosen.case:
        case = json.loads(chosen.case)
        print(call_of(case))
        problems = [found for found in run_apart(case, chosen.guards) if found[0] != "refused"]
        print("\n".join(f"{kind}: {detail}" for kind, detail in problems) or "nothing is wrong")
        return bool(problems)
    seed = secrets.randbits(32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}, {about()}", flush=True)
    started = time.monotonic()
    tally = fuzz(chosen.seconds, seed, choices, chosen.first, cases=chosen.cases)
    took = time.monotonic() - started
    print(f"\n{tally.table()}")
    print(f"seed {seed}: {tally.cases.total()} cases in {took:.0f} s, {tally.failures.total()} failures")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
