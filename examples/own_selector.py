"""A selector: of each prompt's pictures the one with the best mean rank in the score and in every component of the verifier.

    secondlook draw "three squares" --plan 'random(n=8)' --select own_selector:MeanRank --out runs/ranked

Run it from this folder, or put the file on PYTHONPATH.
"""

import math
from collections.abc import Sequence

from secondlook.types import Candidate


class MeanRank:
    """count: how many of each prompt to choose, best first."""

    name = "mean_rank"

    def __init__(self, count: int = 1):
        self.count = count

    def __call__(self, candidates: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        return [self.choose(some) for some in candidates]

    def choose(self, some: Sequence[Candidate]) -> list[int]:
        measures = [{c.id: c.score for c in some}]
        measures += [{c.id: c.components.get(name) for c in some} for name in {n for c in some for n in c.components}]
        total = {c.id: 0 for c in some}
        for values in measures:
            for place, number in enumerate(sorted(values, key=lambda i: (-known(values[i]), i))):
                total[number] += place
        return sorted(total, key=lambda number: (total[number], number))[: self.count]


def known(value: float | None) -> float:
    """The value, or less than any where there is none."""
    return -math.inf if value is None or math.isnan(value) else value
