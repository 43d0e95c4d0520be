"""The process of one library: it reads requests from stdin and answers on stdout, one line of JSON each.

``prepare`` makes a case's data and its calls, ``result`` saves what a call returns, ``time`` measures a call for a
while, ``flops`` and ``memory`` measure the machine. A case that a library refuses is an answer; any other error ends
the process, and the traceback on stderr is what the parent reports.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from .cases import Case
from .peers import PEERS, Numconv, Peer, Settings, parts


class Work:
    """The calls of the case at hand."""

    def __init__(self, peer: Peer, settings: Settings) -> None:
        self.peer, self.settings = peer, settings
        self.calls: dict[str, Callable[[], Any]] = {}

    def versions(self) -> dict[str, str]:
        """What the library runs on."""
        return self.peer.versions

    def prepare(self, case: dict[str, Any], seed: int = 0) -> list[dict[str, Any]]:
        """Make data and calls; for each rival the quickest of its ways stays."""
        self.calls = {}
        work = Case(**case | {"x": tuple(case["x"]), "w": tuple(case["w"])})
        found = []
        for rival, ways in self.peer.prepare(work, work.data(self.settings.dtype, seed)).items():
            for call in ways.values():
                call()  # the first call compiles, plans, starts threads
            quickest = next(iter(ways))
            if len(ways) > 1:
                quickest = min(ways, key=lambda way: min(timed(ways[way], 0.1, self.peer.seconds)))
            self.calls[rival] = ways[quickest]
            found.append({"rival": rival, "way": quickest})
        return found

    def result(self, rival: str, file: str) -> None:
        """Save what the call returns: one array, or the three of a sparse matrix."""
        y = self.calls[rival]()
        np.savez(file, *map(self.peer.fetch, parts(y) if isinstance(y, tuple) or hasattr(y, "indptr") else [y]))

    def time(self, rival: str, seconds: float) -> list[float]:
        """The times of calls, one after the other, until so many seconds have passed."""
        return timed(self.calls[rival], seconds, self.peer.seconds)

    def flops(self) -> float:
        """The register tile's operations a second; only numconv's process is asked, as for ``memory``."""
        return self._room().flops(self.settings.dtype)

    def share(self) -> float:
        """Which part of the multiply-adds that registers alone allow the tile reaches; 0 on a GPU."""
        return self._room().share(self.settings.dtype) if self.settings.device == "cpu" else 0.0

    def memory(self) -> dict[str, float]:
        """Bytes a second."""
        return self._room().memory()

    def _room(self) -> Any:
        return import_module(f"numconv.bench.{'peak' if self.settings.device == 'cpu' else 'gpu'}")


def timed(call: Callable[[], Any], seconds: float, clock: Callable[[Callable[[], Any]], float]) -> list[float]:
    """The times of at least one call, and of more until so many seconds have passed."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        times.append(clock(call))
    return times


def libraries(device: str) -> dict[str, type[Any]]:
    """numconv and its peers on a device."""
    if device == "cpu":
        return {"numconv": Numconv, **PEERS}
    from . import gpu

    return {"numconv": gpu.NumconvOnGpu, **gpu.PEERS}


def main() -> None:
    """Answer until the requests end."""
    name, settings = sys.argv[1], Settings(**json.loads(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    gc.disable()  # the times would pay for it
    work = Work(libraries(settings.device)[name](settings), settings)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            gc.collect()
        try:
            answer = {"value": getattr(work, request.pop("do"))(**request)}
        except (ValueError, MemoryError, NotImplementedError) as error:
            answer = {"refused": " ".join(str(error).split())}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
