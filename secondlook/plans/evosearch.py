"""EvoSearch: a short history of generations, each at its own place on the path."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.moves import NoiseMove
from secondlook.plans.moves import fresh, rewind, top, turn
from secondlook.types import Outcome, Plan, Proposal, Task


def evosearch(
    task: Task, *, populations: tuple[int, ...] = (14, 7, 7, 7, 10), at: tuple[float, ...] = (0.1, 0.4, 0.6, 0.8), elites: int = 3,
    mutation: float = 0.2, tournament: int = 2,
) -> Plan:  # fmt: skip
    """EvoSearch (2505.17618, sec. 4 and alg. 1) with its settings for FLUX. populations: the first is new noises; each later one keeps
    the ``elites`` best of the one before and fills up with children of winners of tournaments among ``tournament`` drawn at random.
    at: where each later generation's children begin, as shares of the grid's steps (the paper's steps 5, 20, 30 and 40 of 50).

    At the path's beginning a child's noise is sqrt(1 - b^2) x + b w with b = ``mutation``; later the paper adds sigma_t w to the state
    at t, which leaves the path's law: here the parent is taken back to that time by fresh noise, which does not. The size of a
    tournament is not in the paper's text as we know it. Then it begins again with new noises. Endless.
    """
    if not all(isinstance(value, tuple) for value in (populations, at)):
        raise ConfigError(
            f"evosearch: populations and at must be several numbers in brackets; got {populations!r} and {at!r}."
        )
    sizes = {f"populations[{i}]": size for i, size in enumerate(populations)}
    positive("evosearch", elites=elites, mutation=mutation, tournament=tournament, **sizes)
    if len(populations) != len(at) + 1 or not all(0 <= a < 1 for a in at) or mutation > 1:
        raise ConfigError(f"evosearch: expected one population more than places in at, places from 0 to below 1, and mutation at most 1; got "
                          f"populations={populations!r}, at={at!r}, mutation={mutation!r}.")  # fmt: skip
    while True:
        live = yield fresh(task, populations[0])
        for share, size in zip(at, populations[1:], strict=True):
            kept = top(live, min(elites, size))
            time = task.grid[min(round(share * (len(task.grid) - 1)), len(task.grid) - 2)]
            parents = [_won(task, live, tournament) for _ in range(size - len(kept))]
            kids = (yield [_child(task, p, time, mutation) for p in parents]) if parents else []
            live = [*kept, *kids]


def _won(task: Task, live: Sequence[Outcome], count: int) -> Outcome:
    """The best of ``count`` drawn at random, with replacement."""
    return top([live[min(int(u * len(live)), len(live) - 1)] for u in task.uniform(count)], 1)[0]


def _child(task: Task, parent: Outcome, time: float, mutation: float) -> Proposal:
    if time <= task.grid[0] and isinstance(parent.proposal.move, NoiseMove):
        return turn(task, parent, task.next_key(), math.asin(mutation))
    return rewind(task, parent, 1, time)[0]
