"""Moves: how a plan writes proposals. A move is a derivation in literals; the engine makes tensors of it.

fresh: new noise. near: an earlier row's starting noise turned by an angle. rewind: an earlier row's state taken back in
time by fresh noise. resume: an earlier row goes on from where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from secondlook.types import Ask, Outcome, Proposal, Task


def fresh(task: Task, count: int, *, stop: float = 1.0, ask: Ask = "score") -> list[Proposal]:
    """``count`` rows from new noise."""
    return [Proposal({"name": "fresh", "key": task.next_key().hex()}, task.condition, stop, ask) for _ in range(count)]


def near(task: Task, pivot: Outcome, count: int, radius: float, *, ask: Ask = "score") -> list[Proposal]:
    """``count`` rows whose noise is the pivot's turned by asin(radius) in random directions; its norm is kept."""
    if pivot.proposal.move["name"] not in ("fresh", "near"):
        raise ValueError(f'near wants a pivot that began from noise; got a "{pivot.proposal.move["name"]}".')
    move = {"name": "near", "parent": pivot.id, "radius": radius}
    return [Proposal({**move, "key": task.next_key().hex()}, task.condition, 1.0, ask) for _ in range(count)]


def rewind(task: Task, parent: Outcome, count: int, to: float, *, stop: float, ask: Ask = "score") -> list[Proposal]:
    """``count`` rows that start from the parent's state taken back to time ``to`` by fresh noise."""
    move = {"name": "rewind", "parent": parent.id, "to": to}
    return [Proposal({**move, "key": task.next_key().hex()}, task.condition, stop, ask) for _ in range(count)]


def resume(task: Task, parent: Outcome, *, stop: float = 1.0, ask: Ask = "score") -> Proposal:
    """The parent, from where it stopped to ``stop``."""
    return Proposal({"name": "resume", "parent": parent.id}, task.condition, stop, ask)


def best(outcomes: Iterable[Outcome]) -> Outcome:
    """The highest score; the earliest of equals; NaN only where there is nothing else."""
    return top(list(outcomes), 1)[0]


def top(outcomes: Sequence[Outcome], count: int) -> list[Outcome]:
    """The ``count`` highest scores, best first."""
    return sorted(outcomes, key=lambda o: (math.isnan(o.score), -o.score if not math.isnan(o.score) else 0.0, o.id))[
        :count
    ]
