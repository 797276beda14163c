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
