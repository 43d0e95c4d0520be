"""numconv beside its peers, each in a process of its own, in turns: ``python -m numconv bench`` for a few cases.

asv takes a larger number for a worse one, so this is numconv's time over the peer's: below 1 numconv is faster.
"""

from __future__ import annotations

from importlib.util import find_spec

from numconv.bench.measure import Contest
from numconv.bench.peers import PEERS, Settings

from .common import THREADS, case

#: Peer, the way it does the work, and the work.
CONTESTS = {
    "layer 3x3 / torch": ("torch", "torch", case("layer 3x3")),
    "layer 3x3, weight gradient / torch": ("torch", "torch", case("layer 3x3", "grad_weight")),
    "picture 15x15 / OpenCV": ("opencv", "opencv", case("picture 15x15")),
    "picture 15x15 / oaconvolve": ("scipy", "oaconvolve", case("picture 15x15")),
    "kernel2row / SciPy": ("scipy", "scipy", case("matrix 9x9")),
}


class Peers:
    """The ratio of times."""

    params = tuple(CONTESTS)
    param_names = ("contest",)
    timeout = 600.0
    seconds = 1.0

    def setup(self, contest: str) -> None:
        peer, _, _ = CONTESTS[contest]
        if not find_spec(PEERS[peer].module):
            raise NotImplementedError(f"{peer} is not installed")

    def track_time_over_peer(self, contest: str) -> float:
        peer, rival, work = CONTESTS[contest]
        with Contest([peer], Settings(threads=THREADS)) as both:
            measured = both.measure(work, self.seconds)
        beside = next((b for b in measured.rivals if b.rival == rival), None)
        if beside is None or not beside.ratio:
            raise RuntimeError(measured.error or (beside.error if beside else f"{peer} cannot do this"))
        return 1 / beside.ratio

    track_time_over_peer.unit = "x"  # type: ignore[attr-defined]
