"""The command: which cases and peers, a progress bar on the way, the table and the JSON at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .cases import Case
from .measure import Contest
from .peers import PEERS, Settings
from .report import Report


def bench(
    cases: Sequence[Case], peers: Sequence[str], settings: Settings, seconds: float, machine: dict[str, str],
    file: str | None = None, colour: bool = False,
) -> int:
    """Measure, print the table, and write the JSON where a file is named for it.

    Returns
    -------
    int
        0 if all results agreed, 1 if any did not or any case failed. Ctrl-C ends the measuring, not the table.
    """
    if file:
        Path(file).touch()  # an error now and not after an hour
    installed = [peer for peer in peers if find_spec(PEERS[peer].module if peer in PEERS else peer)]
    absent = {peer: "not installed" for peer in peers if peer not in installed}
    with Contest(installed, settings) as contest:
        versions, missing = contest.versions()
        report = Report(settings, machine, versions, absent | missing, contest.memory(), tile=contest.share())
        try:
            with progress(len(cases)) as step:
                for case in cases:
                    report.found.append(contest.measure(case, seconds))
                    step(case.name)
        except KeyboardInterrupt:
            print(f"stopped after {len(report.found)} of {len(cases)} cases", file=sys.stderr)
    print(report.table(colour))
    if file:
        Path(file).write_text(json.dumps(report.as_json(), indent=1), encoding="utf-8")
    return int(not report.ok)


@contextmanager
def progress(total: int) -> Iterator[Any]:
    """A function to call with the name of every case that is done; it moves a bar if there is a terminal and tqdm."""
    if not (sys.stderr.isatty() and find_spec("tqdm")):
        yield lambda name: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="case", leave=False) as bar:

        def step(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        yield step
