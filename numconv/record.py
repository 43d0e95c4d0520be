"""Which tiles of a result are done, in a file: a process that is killed is resumed where it was."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def record(path: Any, facts: dict[str, Any]) -> Iterator[Record]:
    """The record at ``path``, begun if there is none, or an error if it is that of another convolution."""
    with open(path, "a+b") as file:
        yield Record(path, file, json.loads(json.dumps(facts)))


class Record:
    """A text file: a line of what is computed, then a line for each finished tile with the checksum of its values.

    A line is written when its tile is. A process may end at any moment: the tile that it had in hand is not there, a
    line that is cut off is dropped, and a tile whose values did not reach the file has another checksum.
    """

    def __init__(self, path: Any, file: Any, facts: dict[str, Any]) -> None:
        self.file = file
        file.seek(0)
        text = file.read()
        end = text.rfind(b"\n") + 1
        lines = text[:end].splitlines()
        file.truncate(end)
        try:
            found = [json.loads(line) for line in lines]
            self.done = {line["tile"]: line["crc"] for line in found[1:]}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"resume: {path} is no record of numconv") from None
        if not found:
            self._write(facts)
        elif found[0] != facts:
            other = sorted(name for name in facts.keys() | found[0].keys() if facts.get(name) != found[0].get(name))
            raise ValueError(
                f"resume: the record {path} is that of another convolution, with another {', '.join(other)}; delete it "
                "to compute all of this one"
            )

    def _write(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line).encode() + b"\n")
        self.file.flush()

    def holds(self, i: int, out: Any, place: tuple[slice, ...]) -> bool:
        """Whether tile ``i`` was computed and its values are in ``out``."""
        return i in self.done and self.done[i] == _checksum(out, place)

    def add(self, i: int, out: Any, place: tuple[slice, ...]) -> None:
        """Tile ``i`` is in ``out``."""
        self._write({"tile": i, "crc": _checksum(out, place)})


def _checksum(out: Any, place: tuple[slice, ...]) -> int:
    return zlib.crc32(np.ascontiguousarray(out[place]).reshape(-1).view(np.uint8).data)
