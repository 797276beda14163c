"""What a search looked at, one candidate an outcome, and how its best score grew with cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from secondlook.engine.record import Record
from secondlook.types import Cost, Outcome

MOST_STEPS = 12  # of a derivation in words; of a longer one the first and the last are said


@dataclass(frozen=True, repr=False)
class Candidate:
    """One outcome of a prompt. ``score`` is NaN where nobody scored it; ``components`` are the verifier's parts of it; ``remark`` is
    the critic's text, None where none was given; ``said`` is what held-out judges and the checker said; ``derivation`` says in words
    what it was made from, oldest first; ``cost`` is what this one cost. A candidate that is not ``finished`` is a half-made state."""

    outcome: int
    score: float
    components: Mapping[str, float]
    remark: str | None
    said: Mapping[str, float]
    derivation: str
    cost: Cost
    finished: bool
    read: Callable[[], np.ndarray] = field(repr=False, compare=False)
    preference: float = math.nan

    def __repr__(self) -> str:
        return f"<Candidate {self.outcome}: score {self.score:.3f}, {self.derivation}, {self.cost.evals} evals>"

    @property
    def judged(self) -> bool:
        """Whether a verifier scored it or a comparer preferred it."""
        return not (math.isnan(self.score) and math.isnan(self.preference))

    @cached_property
    def picture(self) -> np.ndarray:
        """uint8 [H, W, 3]; SecondlookError where there is none, as where a row overflowed or nobody looked at a half-made state."""
        return self.read()

    def save(self, path: str | Path) -> None:
        """Write the picture as a PNG."""
        Image.fromarray(self.picture).save(path)


class Point(NamedTuple):
    """After so many solver evaluations, network passes and seconds of one prompt, its best score so far and whose it is."""

    nfe: int
    evals: int
    seconds: float
    score: float
    outcome: int


Reader = Callable[[int], Callable[[], np.ndarray]]


def candidates(record: Record, task: int, reader: Reader) -> tuple[Candidate, ...]:
    """A task's candidates in the order its plan proposed them; outcomes that were only compared again are none."""
    return tuple(candidate(record, o, reader(o.id)) for o in record.of(task) if o.proposal.move.draws)


def candidate(record: Record, outcome: Outcome, read: Callable[[], np.ndarray]) -> Candidate:
    """One outcome of ``record`` as a candidate; ``read`` gives its picture."""
    now = record.latest(outcome)
    numbers = [math.nan if v is None else v for v in (now.score, now.preference)]
    remark = None if outcome.remark is None else outcome.remark.text
    cost = record.costs[outcome.id] if outcome.id in record.costs else Cost()
    return Candidate(outcome.id, numbers[0], dict(outcome.components), remark, dict(record.said(outcome.id)), derivation(record, outcome), cost,
                     outcome.finished, read, numbers[1])  # fmt: skip


def derivation(record: Record, outcome: Outcome) -> str:
    """How an outcome came about, in words: its line of first parents, oldest first."""
    line, at = [outcome], outcome
    while at.proposal.move.parents and at.proposal.move.parents[0] in record.outcomes:
        at = record.outcomes[at.proposal.move.parents[0]]
        line.append(at)
    words = [f"outcome {o.id}: {_made(o)}" for o in reversed(line)]
    if len(words) > MOST_STEPS:
        left = len(words) - MOST_STEPS + 1
        words = [words[0], f"{left} more", *words[left + 1 :]]
    return words[0].split(": ", 1)[1] if len(words) == 1 else "; ".join(words)


def _made(outcome: Outcome) -> str:
    how = outcome.proposal.move.describe()
    return how if outcome.finished else f"{how}, to time {outcome.proposal.stop:.3g}"


def curve(found: Sequence[Candidate]) -> list[Point]:
    """The best score so far after each finished, scored candidate, against what all candidates up to it cost."""
    points: list[Point] = []
    spent = Cost()
    for one in found:
        spent = spent + one.cost
        if not one.finished or math.isnan(one.score):
            continue
        leads = not points or one.score > points[-1].score
        score, outcome = (one.score, one.outcome) if leads else (points[-1].score, points[-1].outcome)
        points.append(Point(spent.nfe, spent.evals, spent.seconds, score, outcome))
    return points


def ranked(found: Sequence[Candidate], first: Sequence[int] = ()) -> list[Candidate]:
    """Finished, judged candidates, best first: those named ``first``, then by score, or where none was asked for by the comparer's
    share; the earliest of equals."""
    place = {number: i for i, number in enumerate(first)}

    def key(one: Candidate) -> tuple[int, int, float, int]:
        scored = not math.isnan(one.score)
        value = one.score if scored else one.preference if one.judged else 0.0
        return place.get(one.outcome, len(place)), int(not scored), -value, one.outcome

    return sorted((c for c in found if c.finished and (c.judged or c.outcome in place)), key=key)
