"""What each prompt had at each budget, read from runs' logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from secondlook.engine.record import Record, baseline_file, baseline_id, or_nan
from secondlook.engine.store import Store
from secondlook.plans.moves import best
from secondlook.types import Cost, Outcome

COSTS = ("nfe", "evals", "verdicts", "remarks", "comparisons", "backward", "decodes", "seconds")
Look = Callable[[np.ndarray, str], dict[str, float]]  # a winner's picture and its prompt: further columns


@dataclass(frozen=True)
class Latency:
    """Seconds of one network evaluation, one decoded picture and one verdict, given instead of measured: the table as another model
    would have it."""

    evals: float
    decodes: float = 0.0
    verdicts: float = 0.0

    def seconds(self, cost: Cost) -> float:
        return self.evals * cost.evals + self.decodes * cost.decodes + self.verdicts * cost.verdicts


@dataclass
class Curve:
    """A method's numbers: columns by name, each [budgets, seeds, prompts], NaN where nobody judged."""

    method: str
    unit: str
    budgets: tuple[float, ...]
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def put(self, name: str, at: tuple[int, int, int], value: float, shape: tuple[int, ...]) -> None:
        if name not in self.columns:
            self.columns[name] = np.full(shape, math.nan)
        self.columns[name][at] = value


def winner_within(record: Record, task: int, unit: str, limit: float) -> tuple[Outcome | None, Cost, int]:
    """The best finished picture among those paid for within ``limit``, in the order they were proposed; what that cost, and how many
    pictures were finished. A run whose whole budget this is hands over what its plan or its selector chose."""
    spent, done, count = Cost(), [], 0
    every = record.of(task)
    for outcome in every:
        cost = record.costs[outcome.id]
        if getattr(spent + cost, unit) > limit + 1e-9:
            break
        spent, count = spent + cost, count + 1
        if outcome.finished and record.digests[outcome.id] is not None:
            done.append(record.latest(outcome))
    if count == len(every) and record.chosen(task):
        return record.winner(task), spent, len(done)
    return (best(done) if done else None), spent, len(done)


def read_into(
    curve: Curve, store: Store, at: Sequence[int], seed: int, seeds: int, look: Look | None, latency: Latency | None
) -> None:
    """Put a run's numbers into the curve: of the budgets numbered in ``at``, for the seed numbered ``seed`` of ``seeds``."""
    record, prompts = Record.read(store), store.config["prompts"]
    shape = (len(curve.budgets), seeds, len(prompts))
    for task, prompt in enumerate(prompts):
        seen: dict[int, dict[str, float]] = {}
        for b in at:
            winner, cost, count = winner_within(record, task, curve.unit, curve.budgets[b])
            number, file = (winner.id, winner.id) if winner else (baseline_id(task), baseline_file(task))
            if winner is None and task in record.baselines:  # nothing was finished: the plain picture, at its own price
                winner, own = record.baselines[task]
                cost = cost + own
            if winner is None:
                continue
            if number not in seen:
                score = or_nan(winner.score)
                there = number >= 0 or record.base_digests.get(task) is not None  # else its row overflowed
                more = look(store.picture(file), prompt) if look is not None and there else {}
                seen[number] = {"score": score, **record.said(number), **more}
            values = {**seen[number], "pictures": float(count), **{name: float(getattr(cost, name)) for name in COSTS}}
            if latency is not None:
                values["seconds"] = latency.seconds(cost)
            for name, value in values.items():
                curve.put(name, (b, seed, task), value, shape)
