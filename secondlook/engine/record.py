"""What a run's log says, read back: outcomes, costs, winners. Reports and benchmarks read this and nothing else."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from secondlook.engine.store import Store
from secondlook.errors import DamagedError
from secondlook.plans.moves import best
from secondlook.types import Condition, Cost, Outcome, Proposal

Body = dict[str, Any]


@dataclass
class Record:
    """``outcomes`` and ``costs`` by outcome number; ``baselines`` (the unsearched picture of a task whose plan did not
    draw it) and ``ended`` by task."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    costs: dict[int, Cost] = field(default_factory=dict)
    digests: dict[int, str | None] = field(default_factory=dict)
    order: dict[int, int] = field(default_factory=dict)
    tasks: dict[int, list[int]] = field(default_factory=dict)
    baselines: dict[int, tuple[Outcome, Cost]] = field(default_factory=dict)
    ended: dict[int, Body] = field(default_factory=dict)
    failures: list[Body] = field(default_factory=list)
    done: bool = False

    @staticmethod
    def read(store: Store) -> Record:
        record = Record()
        for event in store.events():
            try:
                record._take(event.kind, event.task, event.outcome, event.body)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise DamagedError(f"Event {event.seq} of the run {store.folder} cannot be read ({error!r}).") from None
        return record

    def _take(self, kind: str, task: int | None, number: int | None, body: Body) -> None:
        if kind == "outcome" and number is not None and task is not None:
            self.outcomes[number], self.costs[number] = read_outcome(number, body)
            self.digests[number], self.order[number] = body["sha256"], body["n"]
            self.tasks.setdefault(task, []).append(number)
        elif kind == "baseline" and task is not None:
            self.baselines[task] = read_outcome(-1 - task, body)
        elif kind == "ended" and task is not None:
            self.ended[task] = body
        elif kind == "failure":
            self.failures.append(body)
        elif kind == "done":
            self.done = True

    def of(self, task: int) -> list[Outcome]:
        """A task's outcomes in the order its plan proposed them."""
        return [self.outcomes[i] for i in sorted(self.tasks.get(task, []))]

    def winner(self, task: int, nfe: int | None = None) -> Outcome | None:
        """The best finished outcome, or the best among those paid for within ``nfe``; None where there is none."""
        spent, done = 0, []
        for outcome in self.of(task):
            spent += self.costs[outcome.id].nfe
            if nfe is not None and spent > nfe:
                break
            if outcome.finished:
                done.append(outcome)
        return best(done) if done else None

    def baseline(self, task: int) -> tuple[Outcome, str | int] | None:
        """The unsearched picture: the task's first noise, plainly run. With the name of its picture file."""
        if task in self.baselines:
            return self.baselines[task][0], f"baseline-{task:04d}"
        first = [o for o in self.of(task) if o.finished and o.proposal.move["name"] == "fresh"]
        return (first[0], first[0].id) if first else None

    def spent(self, task: int) -> Cost:
        total = Cost()
        for number in sorted(self.tasks.get(task, [])):
            total = total + self.costs[number]
        return total


def outcome_body(outcome: Outcome, n: int, cost: Cost, digest: str | None) -> Body:
    """An outcome as the log keeps it. NaN is written as null, so that any JSON reader can read it."""
    p = outcome.proposal
    condition = {k: v for k, v in asdict(p.condition).items() if v not in (None, ())}
    return {
        "n": n,
        "move": p.move,
        "stop": p.stop,
        "ask": p.ask,
        "condition": condition,
        "score": _out(outcome.score),
        "parts": {k: _out(v) for k, v in outcome.parts.items()},
        "cost": asdict(cost),
        "sha256": digest,
    }


def read_outcome(number: int, body: Body) -> tuple[Outcome, Cost]:
    proposal = Proposal(body["move"], Condition(**body["condition"]), body["stop"], body["ask"])
    parts = {k: _in(v) for k, v in body["parts"].items()}
    return Outcome(number, proposal, _in(body["score"]), parts), Cost(**body["cost"])


def _out(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _in(value: float | None) -> float:
    return math.nan if value is None else float(value)
