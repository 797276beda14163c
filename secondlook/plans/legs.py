"""Legs of a path, for plans that look at half-made rows: when rows stop, how they branch, and what can still be paid for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from secondlook.moves import Fresh
from secondlook.plans.moves import clone, on_grid, resume, rewind
from secondlook.types import Outcome, Proposal, Task


def look_times(task: Task, first: float, looks: int) -> list[float]:
    """``looks`` times evenly from ``first`` up to data, put on the run's grid."""
    return sorted({on_grid(task, first + (1 - first) * i / looks) for i in range(looks)})


def branch_times(task: Task, first: float, looks: int) -> list[float]:
    """Those of ``look_times`` with two steps to go at least, where there are any: a solver's last step may draw no noise, and branches
    with only that one before them would end in one picture."""
    late = sorted(t for t in task.grid if t < 1)[-1:]
    times = look_times(task, first, looks)
    return [t for t in times if t not in late] or times[:1]


def inner_times(task: Task) -> list[float]:
    """All times of the grid between noise and data."""
    return [t for t in task.grid[1:] if t < 1]


def branch(task: Task, parent: Outcome, count: int, back: float, **how: Any) -> list[Proposal]:
    """``count`` rows that go on from a half-made one by noise of their own: the solver's where it draws any; on an ODE they are taken
    ``back`` in time by fresh noise, which is no sample of the flow's own law."""
    if task.stochastic:
        return clone(task, parent, count, **how)
    return rewind(task, parent, count, max(0.0, parent.proposal.stop - back), **how)


def onward(
    task: Task, live: Sequence[Outcome], parents: Sequence[int], back: float, how: dict[str, Any]
) -> list[Proposal]:
    """The first of each parent's copies goes on as it is, the others branch. parents: places in ``live``, one for each copy."""
    found: list[Proposal] = []
    for i, p in enumerate(parents):
        found += branch(task, live[p], 1, back, **how) if p in parents[:i] else [resume(task, live[p], **how)]
    return found


def known(outcome: Outcome) -> float:
    """Its score; minus infinity where there is none."""
    return -math.inf if outcome.score is None or math.isnan(outcome.score) else outcome.score


def value(outcome: Outcome) -> float:
    """A score that weights can use; what could not be judged weighs as little as can be."""
    return max(-1e6, min(1e6, known(outcome)))


def plain(task: Task) -> Proposal:
    """A plain sample, to ask prices of."""
    return Proposal(Fresh(task.first_key()), task.condition)


def affords(task: Task, *work: Proposal) -> bool:
    """As ``task.affords``; a task outside any run affords all."""
    return task.means is None or task.affords(*work)


def nfe(task: Task, *work: Proposal) -> float:
    """Evaluations that work costs; outside any run one each."""
    return len(work) if task.means is None else task.price(*work).nfe


def nfe_left(task: Task) -> float:
    """Evaluations that the budget leaves, were they spent on plain samples: the scarcest unit counts."""
    if task.means is None:
        return math.inf
    price, left = task.price(plain(task)), task.remaining()
    return min((left[u] / p * price.nfe for u in left if (p := getattr(price, u)) > 0), default=math.inf)


def pays_again(before: Mapping[str, float], left: Mapping[str, float]) -> bool:
    """Whether what is left pays for as much as went between ``before`` and now."""
    return not any(left[unit] < before[unit] - left[unit] for unit in left if left[unit] < math.inf)
