"""How a plan writes proposals: one function for each kind of move (secondlook/moves says what they mean)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from secondlook.moves import Blend, Climb, Clone, Fresh, Near, NoiseMove, Resume, Rewind, Same, Turn
from secondlook.types import Outcome, Proposal, Task

if TYPE_CHECKING:
    from secondlook.noise import Key


def fresh(task: Task, count: int, **how: Any) -> list[Proposal]:
    """``count`` rows from new noise. how: stop, ask, steps, look, condition (types.Proposal)."""
    return [_proposal(task, Fresh(task.next_key()), how) for _ in range(count)]


def near(task: Task, pivot: Outcome, count: int, radius: float, **how: Any) -> list[Proposal]:
    """``count`` rows whose noise is the pivot's turned by asin(radius) in random directions; its norm is kept."""
    return [_from_noise(task, [pivot], Near(pivot.id, task.next_key(), radius), how) for _ in range(count)]


def turn(task: Task, pivot: Outcome, key: Key, angle: float, **how: Any) -> Proposal:
    """A row whose noise is cos(angle) times the pivot's plus sin(angle) times the key's (``task.next_key()``): other angles with the
    same key are other points of one ellipse. The Gaussian law is kept."""
    return _from_noise(task, [pivot], Turn(pivot.id, key, angle), how)


def climb(task: Task, pivot: Outcome, rate: float, through: str = "sampler", steps: int = 0, **how: Any) -> Proposal:
    """A row whose noise is the pivot's turned by asin(rate) along the gradient of the pivot's score (moves.Climb)."""
    return _from_noise(task, [pivot], Climb(pivot.id, task.next_key(), rate, through, steps), how)


def blend(task: Task, parents: Sequence[Outcome], count: int, share: float, band: int, **how: Any) -> list[Proposal]:
    """``count`` rows of fresh noise with the parents' mean low band in it, but for ``share`` of it (moves.Blend)."""
    names = tuple(p.id for p in parents)
    return [_from_noise(task, parents, Blend(names, task.next_key(), share, band), how) for _ in range(count)]


def rewind(task: Task, parent: Outcome, count: int, to: float, **how: Any) -> list[Proposal]:
    """``count`` rows that start from the parent's state taken back to time ``to`` by fresh noise."""
    return [_proposal(task, Rewind(parent.id, to, task.next_key()), how) for _ in range(count)]


def resume(task: Task, parent: Outcome, **how: Any) -> Proposal:
    """The parent, from where it stopped to ``stop``."""
    return _proposal(task, Resume(parent.id), how)


def clone(task: Task, parent: Outcome, count: int, **how: Any) -> list[Proposal]:
    """``count`` rows that go on from the parent's state, each with noise of its own where the solver draws any."""
    return [_proposal(task, Clone(parent.id, task.next_key()), how) for _ in range(count)]


def compare(task: Task, one: Outcome, other: Outcome) -> Proposal:
    """Which of two pictures that are there is better: the comparer is shown ``one`` first. One comparison, and nothing else."""
    return _proposal(task, Same(one.id), {"ask": "compare", "against": other.id})


def _from_noise(task: Task, parents: Sequence[Outcome], move: NoiseMove, how: dict[str, Any]) -> Proposal:
    """ConfigError where a parent did not begin from noise."""
    for parent in parents:
        move.check(parent.proposal)
    return _proposal(task, move, how)


def _proposal(task: Task, move: Any, how: dict[str, Any]) -> Proposal:
    return Proposal(move, **{"condition": task.condition, **how})


def on_grid(task: Task, time: float) -> float:
    """The time of the run's grid that is nearest, so that a row which stops there takes no step more than one that does not."""
    inner = [t for t in task.grid[1:] if t < 1]  # some schedules begin later than 0
    return min(inner, key=lambda t: abs(t - time)) if inner else time


def best(outcomes: Iterable[Outcome]) -> Outcome:
    """The highest score; where none was asked for, the highest preference (a comparer's share); the earliest of equals; what has
    neither only where there is nothing else."""
    return top(list(outcomes), 1)[0]


def top(outcomes: Sequence[Outcome], count: int) -> list[Outcome]:
    """The ``count`` highest scores, best first."""
    return sorted(outcomes, key=_rank)[:count]


def _rank(outcome: Outcome) -> tuple[int, float, int]:
    known = outcome.preference if outcome.score is None else outcome.score
    if known is None or math.isnan(known):
        return 2, 0.0, outcome.id
    return int(outcome.score is None), -known, outcome.id
