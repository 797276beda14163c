"""A run as its report sees it: per prompt the outcomes, what they cost, the winner and the unsearched picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from secondlook.engine.record import Record, or_nan
from secondlook.engine.store import Store
from secondlook.report.shown import Shown
from secondlook.report.text import parent, part
from secondlook.types import Cost, Outcome

MOST_DRAWN = 2  # judges that have a line in the charts


@dataclass(frozen=True)
class Step:
    """After ``at`` network evaluations ``outcome`` came in, and ``leader`` was the best finished one."""

    at: int
    outcome: Shown
    leader: Shown


@dataclass(frozen=True)
class Prompted:
    """One prompt of a run. ``base_cost`` is set where the unsearched picture was drawn outside the search."""

    index: int
    prompt: str
    outcomes: Sequence[Shown]
    costs: dict[int, Cost]
    winner: Shown | None
    base: Shown | None
    base_file: str | int | None
    base_cost: Cost | None
    spent: Cost
    ended: dict[str, Any] | None
    steps: Sequence[Step] = field(default_factory=tuple)
    picked: bool = False  # whether a selector or the plan chose the winner

    @property
    def won(self) -> bool:
        """Whether somebody judged or chose the picture that is handed over; otherwise it stands for want of another."""
        w = self.winner
        return w is not None and (
            self.picked or not math.isnan(w.score) or not math.isnan(or_nan(w.outcome.preference))
        )

    @property
    def line(self) -> set[int]:
        """The winner and all it was made from."""
        by_id, found = {o.id: o for o in self.outcomes}, set()
        at = self.winner
        while at is not None and at.id not in found:
            found.add(at.id)
            up = parent(at)
            at = by_id.get(up) if up is not None else None
        return found


@dataclass(frozen=True)
class Run:
    """``measures``: the score, the judges by name and the checker: those that the log holds."""

    folder: Path
    config: dict[str, Any]
    record: Record
    prompts: Sequence[Prompted]
    measures: Sequence[str]

    @property
    def verifier(self) -> str:
        return str(self.config.get("verifier", "")).split("(")[0].strip()

    @property
    def guide(self) -> str:
        """The verifier's name without its module."""
        return self.verifier.split(":")[-1]

    @property
    def judges(self) -> list[str]:
        return [m for m in self.measures if m not in ("score", "checker")]

    @cached_property
    def drawn(self) -> dict[str, str]:
        """The measures that have a line in the charts, each with its kind: the line's style. A judge has one where all it
        says lies in [0, 1], since charts have no third scale."""
        judges = [j for j in self.judges if all(0 <= v <= 1 for v in self._said(j))][:MOST_DRAWN]
        kinds = dict(zip(judges, ("judge", "second"), strict=False))
        return {m: kinds.get(m, m) for m in self.measures if m in ("score", "checker") or m in kinds}

    @cached_property
    def apart(self) -> bool:
        """Whether some score lies outside [0, 1], so that charts give the scores a scale of their own."""
        return any(not 0 <= v <= 1 for v in self._said("score"))

    def _said(self, name: str) -> list[float]:
        found = [said(o, name) for o in _everything(self.record)]
        return [v for v in found if not math.isnan(v)]

    @property
    def oracle(self) -> bool:
        """Whether the exact checker, or what measures sets, guided the search, so that its result is no method's."""
        return bool(self.config.get("oracle")) or self.verifier == "oracle"

    @property
    def pairs(self) -> list[tuple[Shown, Shown]]:
        """Unsearched and searched picture of every prompt that has both."""
        return [(p.base, p.winner) for p in self.prompts if p.base is not None and p.winner is not None]

    def spent(self) -> Cost:
        return sum((p.spent for p in self.prompts), Cost())


def read_run(store: Store) -> Run:
    """Everything the page shows, from the log alone."""
    config, record = store.config, Record.read(store)
    named = [str(p) for p in config.get("prompts") or []]
    indices = set(range(len(named))) | record.tasks.keys() | record.baselines.keys() | record.ended.keys()
    prompts = [_prompted(record, i, named[i] if i < len(named) else None) for i in sorted(indices)]
    heard = list(dict.fromkeys(name for o in _everything(record) for name in o.said if name != "score"))
    measures = ["score", *(n for n in heard if n != "checker"), *(n for n in heard if n == "checker")]
    return Run(store.folder, config, record, prompts, measures)


def said(outcome: Shown, name: str) -> float:
    """A measure of an outcome; NaN where nothing was said."""
    return outcome.score if name == "score" else part(outcome, name)


def _everything(record: Record) -> list[Shown]:
    return [_seen(record, o) for o in (*record.outcomes.values(), *(o for o, _ in record.baselines.values()))]


def _seen(record: Record, outcome: Outcome) -> Shown:
    return Shown(record.latest(outcome), record.said(outcome.id))


def _prompted(record: Record, index: int, prompt: str | None) -> Prompted:
    outcomes = [_seen(record, o) for o in record.of(index) if o.proposal.move.draws]  # not what was only compared
    winner = record.winner(index)
    base = record.baseline(index)
    outside = record.baselines.get(index)
    if prompt is None:
        first = outcomes[0] if outcomes else _seen(record, base[0]) if base else None
        prompt = _asked(first) if first is not None else f"task {index}"
    return Prompted(
        index,
        prompt,
        outcomes,
        {o.id: record.costs[o.id] for o in outcomes},
        None if winner is None else _seen(record, winner),
        _seen(record, base[0]) if base else None,
        base[1] if base and record.plain_digest(index) is not None else None,
        outside[1] if outside else None,
        record.spent(index),
        record.ended.get(index),
        _steps(record, outcomes),
        bool(record.chosen(index)),
    )


def _asked(outcome: Shown) -> str:
    condition = outcome.proposal.condition
    return condition.prompt if condition.prompt is not None else f"class {condition.label}"


def _steps(record: Record, outcomes: Sequence[Shown]) -> list[Step]:
    """Finished outcomes in the order they were paid for, each with the best of those so far."""
    steps: list[Step] = []
    paid = accumulate(record.costs[o.id].evals for o in outcomes)
    for outcome, at in zip(outcomes, paid, strict=True):
        if outcome.finished:
            leader = _better(steps[-1].leader, outcome) if steps else outcome
            steps.append(Step(at, outcome, leader))
    return steps


def mean(values: Sequence[float]) -> float:
    """The mean of what was judged; NaN where nothing was."""
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def both(run: Run, name: str) -> list[tuple[float, float]]:
    """A measure of the unsearched and the searched picture, of the prompts where it judged both."""
    values = [(said(a, name), said(b, name)) for a, b in run.pairs]
    return [(a, b) for a, b in values if not (math.isnan(a) or math.isnan(b))]


def _better(one: Shown, other: Shown) -> Shown:
    """The higher score; the first where neither is higher or the other has none."""
    return other if other.score > one.score or (math.isnan(one.score) and not math.isnan(other.score)) else one
