"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import exp, log
from statistics import median
from typing import Any

from .cases import goal
from .measure import Beside, Measured
from .peers import Settings

GREEN, RED, BOLD, PLAIN = "\033[32m", "\033[31m", "\033[1m", "\033[0m"

#: Multiplications that Winograd does, by stride, where the sum needs 144.
WINOGRAD_NEEDS = {1: 36, 2: 81}


@dataclass
class Report:
    """Where and with whom it was measured (``missing``: peer and reason), bytes a second, and every case."""

    settings: Settings
    machine: dict[str, str]
    versions: dict[str, str]
    missing: dict[str, str]
    memory: dict[str, float]
    found: list[Measured] = field(default_factory=list)
    tile: float = 0.0  # what the register tile reaches of what registers alone allow

    @property
    def ok(self) -> bool:
        """Whether every case was done and every result agreed."""
        return not any(m.error or any(beside.error for beside in m.rivals) for m in self.found)

    def bound(self, measured: Measured) -> tuple[float, str] | None:
        """Which part of the machine's own limit numconv reaches, and the limit: "fma" or "memory".

        Work that stays in the caches may exceed what memory allows. Winograd is held against the multiplications that
        it does; an FFT's are another kind of sum, and have no limit here.
        """
        case, flops = measured.case, measured.case.flops
        if not (measured.ours and measured.peak) or measured.algorithm == "fft":
            return None
        if measured.algorithm == "winograd" and case.kind != "grad_weight":
            flops = flops * WINOGRAD_NEEDS[case.stride] // 144
        needs = {
            "fma": flops / measured.peak, "memory": case.nbytes(self.settings.dtype) / max(self.memory.values()),
        }
        limit = max(needs, key=lambda name: needs[name])
        return needs[limit] / measured.ours, limit

    def groups(self) -> list[dict[str, Any]]:
        """For every group and rival the geometric mean and the least of the ratios, with the goals."""
        ratios: dict[tuple[str, str], list[float]] = {}
        for measured in self.found:
            for beside in measured.rivals:
                if beside.ratio is not None:
                    ratios.setdefault((measured.case.group, beside.rival), []).append(beside.ratio)
        rows = []
        for (group, rival), values in ratios.items():
            aim = goal(group, rival, self.settings.dtype, self.settings.device)
            rows.append({
                "group": group, "rival": rival, "cases": len(values), "mean": mean(values), "least": min(values),
                "goal_mean": aim.mean, "goal_least": aim.each,
            })
        return rows

    def as_json(self) -> dict[str, Any]:
        """Everything, with every time in seconds."""
        cases = []
        for m in self.found:
            part, limit = self.bound(m) or (None, None)
            cases.append({
                **asdict(m.case), "flops": m.case.flops, "bytes": m.case.nbytes(self.settings.dtype),
                "algorithm": m.algorithm, "error": m.error, "median": m.ours, "alone": m.alone, "peak": m.peak,
                "of_peak": part, "bound": limit,
                "rivals": [{**asdict(b), "median": b.theirs, "ratio": b.ratio} for b in m.rivals],
            })
        return {
            "settings": asdict(self.settings), "machine": self.machine, "versions": self.versions,
            "missing": self.missing, "memory": self.memory, "tile": self.tile, "groups": self.groups(), "cases": cases,
        }

    def table(self, colour: bool = False) -> str:
        """A block for every group: a line for every case, then geometric mean and least ratio beside their goals."""
        lines = [f"{name}: {fact}" for name, fact in self.machine.items()]
        lines.append("versions: " + ", ".join(f"{name} {text}" for name, text in sorted(self.versions.items())))
        lines += [f"{peer}: left out, {reason}" for peer, reason in self.missing.items()]
        speeds = [f"{name} {rate / 1e9:.1f} GB/s" for name, rate in self.memory.items()]
        if peaks := [m.peak / 1e9 for m in self.found if m.peak]:
            spread = f"{median(peaks):.0f} GFLOP/s ({min(peaks):.0f} to {max(peaks):.0f})"
            speeds.append(f"multiply-adds in {self.settings.dtype} {spread}")
        if self.tile:
            speeds.append(f"the register tile reaches {self.tile:.0%} of what registers alone allow")
        cpu = self.settings.device == "cpu"
        lines += [f"threads: {self.settings.threads}"] if cpu else []
        lines.append(f"{'measured peak' if cpu else 'peak, memory measured'}: {', '.join(speeds)}")
        for group in dict.fromkeys(m.case.group for m in self.found):
            lines += ["", *self._block(group, colour)]
        return "\n".join(lines)

    def _block(self, group: str, colour: bool) -> list[str]:
        found = [m for m in self.found if m.case.group == group]
        rivals = list(dict.fromkeys(beside.rival for m in found for beside in m.rivals))
        width = {rival: max(15, len(rival) + 5) for rival in rivals}
        aims = {rival: goal(group, rival, self.settings.dtype, self.settings.device) for rival in rivals}
        titles = "".join(f"{rival + ' ms':>{width[rival]}}{'ratio':>7}" for rival in rivals)
        lines = [painted(f"{group:28}{'numconv ms':>12}{'of peak':>12}  {'by':10}{titles}", BOLD, colour)]
        notes = []
        for m in found:
            part, limit = self.bound(m) or (None, "")
            line = f"{m.case.name:28}{milliseconds(m.ours):>12}{percent(part, limit):>12}  {m.algorithm:10}"
            notes += [f"{m.case.name}: {m.error}"] if m.error else []
            for rival in rivals:
                b = next((b for b in m.rivals if b.rival == rival), Beside(rival, ""))
                line += f"{milliseconds(b.theirs):>{width[rival]}}" + judged(b.ratio, aims[rival].each, colour)
                notes += [f"{m.case.name}, {rival}: {b.error}"] if b.error else []
            lines.append(line.rstrip())
        rows = {row["rival"]: row for row in self.groups() if row["group"] == group}
        summary = (("geometric mean", "mean", "goal_mean"), ("least", "least", "goal_least")) if rows else ()
        for title, value, aim in summary:
            line = f"{title:64}"
            for rival in rivals:
                row = rows.get(rival, {})
                wanted = f"(goal {row[aim]:g})" if row.get(aim) else ""
                line += f"{wanted:>{width[rival]}}" + judged(row.get(value), row.get(aim), colour)
            lines.append(line.rstrip())
        return lines + [painted(f"! {note}", RED, colour) for note in notes]


def mean(ratios: Iterable[float]) -> float:
    """The geometric mean."""
    logs = [log(ratio) for ratio in ratios]
    return exp(sum(logs) / len(logs))


def milliseconds(seconds: float | None) -> str:
    """The number alone, or nothing."""
    return "" if seconds is None else f"{seconds * 1e3:.3f}"


def percent(part: float | None, limit: str) -> str:
    """A part and what of, or nothing."""
    return "" if part is None else f"{part:.0%} {limit}"


def judged(ratio: float | None, wanted: float | None, colour: bool) -> str:
    """A ratio, green if it reaches its goal and red if not; nothing where there is none."""
    if ratio is None:
        return " " * 7
    text = f"{ratio:7.2f}"
    return text if wanted is None else painted(text, GREEN if ratio >= wanted else RED, colour)


def painted(text: str, how: str, colour: bool) -> str:
    """In colour or not."""
    return f"{how}{text}{PLAIN}" if colour else text
