"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from math import exp, log
from typing import Any

from .cases import Goal, goal
from .measure import Measured
from .peers import Settings

GREEN, RED, BOLD, PLAIN = "\033[32m", "\033[31m", "\033[1m", "\033[0m"

#: F(4x4, 3x3) needs 36 multiplications for 16 outputs where the sums need 144.
WINOGRAD_SAVES = 4


def bound(found: Measured, peak: dict[str, float], dtype: str) -> tuple[float, str] | None:
    """Which part of the machine's own limit numconv reaches, 1 at most, and the limit: "fma" or "memory".

    Winograd is held against the multiplications that it does; an FFT's are another kind of sum, and have no limit here.
    """
    case, flops = found.case, found.case.flops
    if not found.ours or found.algorithm == "fft":
        return None
    if found.algorithm == "winograd" and case.kind != "grad_weight":
        flops //= WINOGRAD_SAVES
    needs = {"fma": flops / peak["flops"], "memory": case.nbytes(dtype) / peak["fill"]}
    limit = max(needs, key=lambda name: needs[name])
    return needs[limit] / found.ours, limit


def mean(ratios: Iterable[float]) -> float:
    """The geometric mean."""
    logs = [log(ratio) for ratio in ratios]
    return exp(sum(logs) / len(logs))


def groups(found: list[Measured], dtype: str) -> list[dict[str, Any]]:
    """For every group and rival the geometric mean and the least of the ratios, with the goal."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for measured in found:
        for beside in measured.rivals:
            if beside.ratio:
                ratios.setdefault((measured.case.group, beside.rival), []).append(beside.ratio)
    rows = []
    for (group, rival), values in ratios.items():
        aim = goal(group, rival, dtype)
        rows.append({
            "group": group, "rival": rival, "cases": len(values), "mean": mean(values), "least": min(values),
            "goal": asdict(aim) if aim else None,
        })  # fmt: skip
    return rows


def as_json(head: dict[str, Any], settings: Settings, found: list[Measured]) -> dict[str, Any]:
    """Everything, with every time."""
    cases = []
    for measured in found:
        part = bound(measured, head["peak"], settings.dtype)
        cases.append({
            **asdict(measured.case), "flops": measured.case.flops, "bytes": measured.case.nbytes(settings.dtype),
            "algorithm": measured.algorithm, "error": measured.error, "seconds": measured.ours,
            "alone": measured.alone, "of_peak": part and part[0], "bound": part and part[1],
            "rivals": [{**asdict(b), "ratio": b.ratio, "median": b.theirs} for b in measured.rivals],
        })  # fmt: skip
    return {**head, "settings": asdict(settings), "cases": cases, "groups": groups(found, settings.dtype)}


def table(head: dict[str, Any], settings: Settings, found: list[Measured], colour: bool) -> str:
    """A block for every group: a line for every case, then geometric mean and least ratio."""
    lines = [f"{name}: {fact}" for name, fact in head["machine"].items()]
    lines.append("versions: " + ", ".join(f"{name} {value}" for name, value in sorted(head["versions"].items())))
    lines += [f"{peer}: left out, {reason}" for peer, reason in head["missing"].items()]
    peak = head["peak"]
    lines.append(
        f"measured peak: {peak['flops'] / 1e9:.0f} GFLOP/s in {settings.dtype}, "
        f"fill {peak['fill'] / 1e9:.1f} GB/s, copy {peak['copy'] / 1e9:.1f} GB/s"
    )
    summary = {(row["group"], row["rival"]): row for row in groups(found, settings.dtype)}
    for group in dict.fromkeys(measured.case.group for measured in found):
        lines += ["", *_block(group, [m for m in found if m.case.group == group], summary, peak, settings.dtype, colour)]
    return "\n".join(lines)


def _block(
    group: str, found: list[Measured], summary: dict[tuple[str, str], dict[str, Any]], peak: dict[str, float],
    dtype: str, colour: bool,
) -> list[str]:
    rivals = list(dict.fromkeys(beside.rival for measured in found for beside in measured.rivals))
    head = f"{group:34}{'numconv ms':>11}{'of peak':>14}  {'algorithm':11}"
    lines = [_painted(head + "".join(f"{rival + ' ms':>14}{'ratio':>7}" for rival in rivals), BOLD, colour)]
    notes = []
    for measured in found:
        part = bound(measured, peak, dtype)
        line = f"{measured.case.name:34}{_ms(measured.ours)}"
        line += f"{f'{part[0]:.0%} {part[1]}' if part else '':>14}  {measured.algorithm:11}"
        notes += [f"{measured.case.name}: {measured.error}"] if measured.error else []
        for rival in rivals:
            beside = next((b for b in measured.rivals if b.rival == rival), None)
            if beside and beside.error:
                notes.append(f"{measured.case.name}, {rival}: {beside.error}")
            line += f"{_ms(beside.theirs if beside else None):>14}"
            line += _ratio(beside.ratio if beside else None, goal(group, rival, dtype), "each", colour)
        lines.append(line.rstrip())
    for word, key, which in (("geometric mean", "mean", "mean"), ("least", "least", "each")):
        line = f"{word:72}"
        for rival in rivals:
            row, aim = summary.get((group, rival)), goal(group, rival, dtype)
            wanted = getattr(aim, which) if aim else None
            line += f"{f'(goal {wanted:g})' if wanted else '':>14}" + _ratio(row and row[key], aim, which, colour)
        lines.append(line.rstrip())
    return lines + [_painted(f"! {note}", RED, colour) for note in notes]


def _ms(seconds: float | None) -> str:
    return f"{'':>11}" if seconds is None else f"{seconds * 1e3:11.3f}"


def _ratio(value: float | None, aim: Goal | None, which: str, colour: bool) -> str:
    if value is None:
        return f"{'':>7}"
    wanted = getattr(aim, which) if aim else None
    text = f"{value:7.2f}"
    return text if wanted is None else _painted(text, GREEN if value >= wanted else RED, colour)


def _painted(text: str, how: str, colour: bool) -> str:
    return f"{how}{text}{PLAIN}" if colour else text
