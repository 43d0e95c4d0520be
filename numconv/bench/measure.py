"""Case by case: the results compared, then times in turns, numconv and the rival, numconv and the rival."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .cases import Case
from .peers import Settings

#: A turn is as many calls as fit into it, at least one; its time is their median.
TURN = 0.02
PAIRS = 3

#: Differences over the root mean square of a result, in units of rounding, up to which results agree.
ROUNDINGS = 2000


class Lost(Exception):
    """A library could not do a case: the reason."""


class Worker:
    """A library in a process of its own."""

    def __init__(self, name: str, settings: Settings, folder: Path) -> None:
        self.name, self._settings, self._log = name, settings, folder / f"{name}.log"
        self._process: subprocess.Popen[str] | None = None

    def ask(self, do: str, **arguments: Any) -> Any:
        """What the process answers; it is started, or started again, if it does not run."""
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            print(json.dumps({"do": do, **arguments}), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = process.wait()
            self._process = None
            last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise Lost(f"the process of {self.name} ended ({code}): {' '.join(last)}")
        answer = json.loads(line)
        if "refused" in answer:
            raise Lost(answer["refused"])
        return answer["value"]

    def _start(self) -> subprocess.Popen[str]:
        threads = str(self._settings.threads)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        # threads of one process that wait must not take the cores from the next
        environment = {**os.environ, **dict.fromkeys(names, threads), "OMP_WAIT_POLICY": "PASSIVE"}
        command = [sys.executable, "-m", "numconv.bench.worker", self.name, json.dumps(asdict(self._settings))]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
                cwd=Path(__file__).parents[2],  # this numconv and no other
                start_new_session=True,  # Ctrl-C is for the parent
            )  # fmt: skip
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None


@dataclass
class Beside:
    """numconv beside one rival: ``seconds`` holds a pair for each turn, ours first."""

    rival: str
    peer: str
    way: str = ""
    difference: float | None = None
    error: str = ""
    seconds: list[tuple[float, float]] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """The median over pairs of the rival's time over ours."""
        return median(theirs / ours for ours, theirs in self.seconds) if self.seconds else None

    @property
    def theirs(self) -> float | None:
        """The rival's median time."""
        return median(theirs for _, theirs in self.seconds) if self.seconds else None


@dataclass
class Measured:
    """One case with all its rivals."""

    case: Case
    algorithm: str = ""
    error: str = ""
    alone: list[float] = field(default_factory=list)
    rivals: list[Beside] = field(default_factory=list)

    @property
    def ours(self) -> float | None:
        """numconv's median time over all turns."""
        times = [ours for beside in self.rivals for ours, _ in beside.seconds] + self.alone
        return median(times) if times else None


def measure(case: Case, ours: Worker, peers: list[Worker], seconds: float, folder: Path) -> Measured:
    """Compare, then time, spending about so many seconds on each rival."""
    found = Measured(case)
    work = asdict(case)
    try:
        (prepared,) = ours.ask("prepare", case=work)
        found.algorithm = prepared["way"]
        ours.ask("result", rival="numconv", file=str(folder / "numconv.npz"))
    except Lost as lost:
        found.error = str(lost)
        return found
    for peer in peers:
        try:
            rivals = peer.ask("prepare", case=work)
        except Lost as lost:
            found.rivals.append(Beside(peer.name, peer.name, error=str(lost)))
            continue
        for rival in rivals:
            beside = Beside(rival["rival"], peer.name, rival["way"])
            found.rivals.append(beside)
            try:
                peer.ask("result", rival=beside.rival, file=str(folder / "peer.npz"))
                beside.difference = difference(folder / "numconv.npz", folder / "peer.npz")
                if not beside.difference <= 1:
                    beside.error = f"results differ: {beside.difference:.3g} times what rounding explains"
                    continue
                beside.seconds = pairs(ours, peer, beside.rival, seconds)
            except Lost as lost:
                beside.error = str(lost)
    if found.ours is None:
        found.alone = [median(turn(ours, "numconv")) for _ in range(PAIRS)]
    return found


def difference(one: Path, other: Path) -> float:
    """How far results are apart, as a part of what rounding explains; infinite if shapes or dtypes differ."""
    with np.load(one) as a, np.load(other) as b:
        pairs = [(a[name], b[name]) for name in a.files if name in b.files]
        if len(a.files) != len(b.files):
            return float("inf")
    worst = 0.0
    for got, wanted in pairs:
        if got.shape != wanted.shape:
            return float("inf")
        if got.dtype.kind in "iu":
            worst = max(worst, 0.0 if np.array_equal(got, wanted) else float("inf"))
            continue
        if got.dtype != wanted.dtype:
            return float("inf")
        scale = float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64)))) or 1.0
        apart = float(np.abs(got - wanted).max()) / scale / (ROUNDINGS * float(np.finfo(wanted.dtype).eps))
        worst = max(worst, apart) if apart == apart else float("inf")
    return worst


def turn(worker: Worker, rival: str) -> list[float]:
    """The times of one turn."""
    return worker.ask("time", rival=rival, seconds=TURN)


def pairs(ours: Worker, peer: Worker, rival: str, seconds: float) -> list[tuple[float, float]]:
    """Turns of numconv and the rival, one after the other; a pair longer than ``seconds`` stays alone."""
    found: list[tuple[float, float]] = []
    start = time.perf_counter()
    while True:
        found.append((median(turn(ours, "numconv")), median(turn(peer, rival))))
        spent = time.perf_counter() - start
        if spent > seconds and (len(found) >= PAIRS or spent > seconds * len(found)):
            return found


def run(
    cases: list[Case], peers: list[str], settings: Settings, seconds: float
) -> Iterator[dict[str, Any] | Measured]:
    """First what the machine can do and who takes part, then every case."""
    with tempfile.TemporaryDirectory(prefix="numconv-bench-") as name:
        folder = Path(name)
        ours, others = Worker("numconv", settings, folder), [Worker(peer, settings, folder) for peer in peers]
        try:
            versions, missing = ours.ask("versions"), {}
            for peer in list(others):
                try:
                    versions |= peer.ask("versions")
                except Lost as lost:
                    missing[peer.name] = str(lost)
                    others.remove(peer)
            yield {"versions": versions, "missing": missing, "peak": ours.ask("peak")}
            for case in cases:
                yield measure(case, ours, others, seconds, folder)
        finally:
            for worker in (ours, *others):
                worker.close()
