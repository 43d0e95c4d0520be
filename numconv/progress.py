"""How far it is, on a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def progress(items: Sequence[T], what: str, unit: str = "it") -> Iterable[T]:
    """The items, with a progress bar on a terminal if ``tqdm`` is installed and it takes more than a second."""
    if not getattr(sys.stderr, "isatty", bool)():
        return items
    try:
        bar = _bar()
    except ImportError:
        return items
    shown: Iterable[T] = bar(items, desc=what, unit=unit, leave=False, delay=1, miniters=1)
    return shown


@cache
def _bar() -> Any:
    """tqdm's bar with a lock of its own and no thread that watches it.

    tqdm's lock is that of all bars in all threads and forked processes: where one of them is interrupted or killed
    while it has it, the next call would wait for ever.
    """
    from tqdm import tqdm

    return type("Bar", (tqdm,), {"_lock": threading.RLock(), "monitor_interval": 0})
