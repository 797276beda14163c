"""An outcome as a report shows it: what the search saw, with what held-out judges and the checker said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from secondlook.types import Outcome, Proposal


@dataclass(frozen=True)
class Shown:
    """score: NaN where there is none. said: the judges' numbers by name."""

    outcome: Outcome
    said: Mapping[str, float] = field(default_factory=dict)

    @property
    def id(self) -> int:
        return self.outcome.id

    @property
    def proposal(self) -> Proposal:
        return self.outcome.proposal

    @property
    def finished(self) -> bool:
        return self.outcome.finished

    @property
    def score(self) -> float:
        return math.nan if self.outcome.score is None else self.outcome.score
