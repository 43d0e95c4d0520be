"""Case by case: the results compared, then times in turns, numconv and the rival, numconv and the rival."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np

from .cases import Case
from .peers import Settings

#: A turn is as many calls as fit into it, at least one; its time is their median.
TURN = 0.02
PAIRS = 3

#: Before a turn the threads of the one before, which spin for some milliseconds, go to sleep.
REST = 0.01

#: Differences over the root mean square of a result, in units of rounding, up to which results agree.
ROUNDINGS = 2000

#: So many times that, where a rival rounds its factors to 10 bits.
TF32 = 64


class Lost(RuntimeError):
    """A library could not do a case: the reason."""


class Asked(Protocol):
    """Whoever answers what ``worker.Work`` can do."""

    name: str

    def ask(self, do: str, **arguments: Any) -> Any:
        """The answer, or ``Lost``."""


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
        environment = {**os.environ, **dict.fromkeys(names, threads)}
        environment.pop("OMP_WAIT_POLICY", None)  # passive threads wake late at every small call; REST does without
        command = [sys.executable, "-m", "numconv.bench.worker", self.name, json.dumps(asdict(self._settings))]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
                cwd=Path(__file__).parents[2],  # this numconv and no other
                start_new_session=True,  # Ctrl-C is for the parent
            )
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
    """One case with all its rivals. ``peak`` is the flops that the register tile reached before or after."""

    case: Case
    algorithm: str = ""
    error: str = ""
    peak: float = 0.0
    alone: list[float] = field(default_factory=list)
    rivals: list[Beside] = field(default_factory=list)

    @property
    def ours(self) -> float | None:
        """numconv's median time over all turns."""
        times = [ours for beside in self.rivals for ours, _ in beside.seconds] + self.alone
        return median(times) if times else None


def measure(case: Case, ours: Asked, peers: Sequence[Asked], seconds: float, folder: Path) -> Measured:
    """Compare, then time, spending about so many seconds on each rival."""
    found = Measured(case)
    work = asdict(case)
    try:
        (prepared,) = ours.ask("prepare", case=work)
        found.algorithm, found.peak = prepared["way"], ours.ask("flops")
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
                if beside.difference <= (TF32 if beside.rival.endswith("tf32") else 1):
                    beside.seconds = pairs(ours, peer, beside.rival, seconds)
                else:
                    beside.error = f"the results differ by {beside.difference:.3g} times what rounding explains"
            except Lost as lost:
                beside.error = str(lost)
    try:
        if found.ours is None:
            found.alone = [turn(ours, "numconv") for _ in range(PAIRS)]
        found.peak = max(found.peak, ours.ask("flops"))
    except Lost as lost:
        found.error = str(lost)
    return found


def difference(one: Path, other: Path) -> float:
    """How far results are apart, as a multiple of what rounding explains; infinite if they cannot be compared."""
    with np.load(one) as a, np.load(other) as b:
        if a.files != b.files:
            return float("inf")
        return max(distance(a[name], b[name]) for name in a.files)


def distance(got: np.ndarray, wanted: np.ndarray) -> float:
    """The same of two arrays: indices must be equal, numbers near, of one dtype, and NaN nowhere."""
    if got.shape != wanted.shape or got.dtype.kind != wanted.dtype.kind:
        return float("inf")
    if got.dtype.kind in "iu":
        return 0.0 if np.array_equal(got, wanted) else float("inf")
    scale = float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64)))) or 1.0
    apart = float(np.abs(got - wanted).max()) / scale / (ROUNDINGS * float(np.finfo(wanted.dtype).eps))
    return apart if got.dtype == wanted.dtype and apart == apart else float("inf")


def turn(worker: Asked, rival: str) -> float:
    """The time of a call in one turn."""
    time.sleep(REST)
    return median(worker.ask("time", rival=rival, seconds=TURN))


def pairs(ours: Asked, peer: Asked, rival: str, seconds: float) -> list[tuple[float, float]]:
    """Turns of numconv and the rival, one after the other; if a pair takes longer than ``seconds`` there is one."""
    found: list[tuple[float, float]] = []
    start = time.perf_counter()
    while True:
        found.append((turn(ours, "numconv"), turn(peer, rival)))
        spent = time.perf_counter() - start
        if spent > seconds and (len(found) >= PAIRS or spent > seconds * len(found)):
            return found


class Contest:
    """numconv and its peers, each in its process, for the length of a ``with`` block."""

    def __init__(self, peers: Sequence[str], settings: Settings) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="numconv-bench-")
        self.folder = Path(self._folder.name)
        self.ours = Worker("numconv", settings, self.folder)
        self.peers = [Worker(peer, settings, self.folder) for peer in peers]

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in (self.ours, *self.peers):
            worker.close()
        self._folder.cleanup()

    def versions(self) -> tuple[dict[str, str], dict[str, str]]:
        """What the libraries are, and why a peer cannot take part; it is not asked again."""
        versions, missing = dict(self.ours.ask("versions")), {}
        for peer in list(self.peers):
            try:
                versions |= peer.ask("versions")
            except Lost as lost:
                missing[peer.name] = str(lost)
                self.peers.remove(peer)
        return versions, missing

    def memory(self) -> dict[str, float]:
        """Bytes a second, filled and copied."""
        return self.ours.ask("memory")

    def share(self) -> float:
        """What the register tile reaches of the machine's multiply-adds."""
        return self.ours.ask("share")

    def measure(self, case: Case, seconds: float) -> Measured:
        """One case beside every peer."""
        return measure(case, self.ours, self.peers, seconds, self.folder)
