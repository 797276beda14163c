"""Tries that answer one another, and which of them a next one is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from secondlook.types import Outcome, Task


@dataclass
class Chain:
    """Tries that answer one another; ``failures``: answers in a row that made nothing better."""

    tries: list[Outcome] = field(default_factory=list)
    failures: int = 0

    def add(self, outcome: Outcome) -> None:
        better = not self.tries or faults(outcome) < faults(self.best)
        self.failures = 0 if better else self.failures + 1
        self.tries.append(outcome)

    @property
    def best(self) -> Outcome:
        """The try with the fewest faults; the latest of equals."""
        return min(reversed(self.tries), key=faults)


@dataclass
class Earned:
    """What answers and fresh draws have earned on a prompt: a draw earns the share of faults that it is rid of, an answer against
    the try it answers, a fresh draw against the mean of fresh draws before it. Each arm begins as one draw that earned all
    (so that it is tried), and the one with the higher mean is taken, the answer where they are equal."""

    answered: list[float] = field(default_factory=lambda: [1.0])
    begun: list[float] = field(default_factory=lambda: [1.0])
    fresh: list[float] = field(default_factory=list)

    @property
    def answers(self) -> bool:
        return mean(self.answered) >= mean(self.begun)

    def note(self, chain: Chain, outcome: Outcome) -> None:
        """Before the outcome is added to its chain. What could not be read earns nothing."""
        left = faults(outcome)
        if chain.tries:
            self.answered.append(rid(faults(chain.best), left))
            return
        if self.fresh:
            self.begun.append(rid(mean(self.fresh), left))
        if left < float("inf"):
            self.fresh.append(left)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def rid(before: float, after: float) -> float:
    """The share of faults that went, from 0 to 1."""
    return max(0.0, 1 - after / before) if 0 < before < float("inf") else 0.0


def faults(outcome: Outcome) -> float:
    """How many faults a remark names: its clauses; infinitely many where nothing could be read."""
    remark = outcome.remark
    return float("inf") if remark is None else len([c for c in remark.text.split(";") if c.strip()])


def recalled(task: Task, chain: Chain, count: int) -> Sequence[Outcome]:
    """Up to ``count`` earlier tries whose remarks differ from the best's and from one another, drawn at random where there are more."""
    found: dict[str, Outcome] = {}
    for o in chain.tries:
        if o.remark is not None and o.remark != chain.best.remark:
            found.setdefault(o.remark.text, o)
    others = list(found.values())
    if count < 1 or not others:
        return []
    if len(others) > count:
        order = sorted(zip(task.uniform(len(others)), range(len(others)), strict=True))
        others = [others[i] for _, i in sorted(order[:count], key=lambda pair: pair[1])]
    return others
