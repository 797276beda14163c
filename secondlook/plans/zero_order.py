"""Zero-order search: hill climbing on the starting noise."""

from __future__ import annotations

from collections.abc import Sequence

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.moves import best, fresh, near
from secondlook.types import Outcome, Plan, Proposal, Task


def zero_order(
    task: Task, *, neighbours: int = 4, radius: float = 0.7, patience: int = 1, explore: float = 0.0
) -> Plan:
    """Keep a pivot, try ``neighbours`` near it, move when one scores higher. Ref: 2501.09732, sec. 3.2.

    radius: sine of the angle between a neighbour's noise and the pivot's, in (0, 1]; norms are kept (0.31 is the
    published cosine 0.95). After ``patience`` rounds without a win the pivot is parked (it stays in the run, so it can
    still be the winner) and the climb starts again from fresh noise. explore: the probability with which a neighbour is fresh
    noise instead, each by itself (epsilon-greedy, 2506.03164). A pivot is never drawn twice. Endless.
    """
    positive("zero_order", neighbours=neighbours, radius=radius, patience=patience)
    if radius > 1:
        raise ConfigError(f"zero_order: radius is the sine of an angle, at most 1; got {radius!r}.")
    if not 0 <= explore <= 1:
        raise ConfigError(f"zero_order: explore is a probability, from 0 to 1; got {explore!r}.")
    while True:
        [pivot] = yield fresh(task, 1)
        failures = 0
        while failures < patience:
            ring = yield _ring(task, pivot, neighbours, radius, explore)
            winner = best([pivot, *ring])
            failures = failures + 1 if winner is pivot else 0
            pivot = winner


def _ring(task: Task, pivot: Outcome, neighbours: int, radius: float, explore: float) -> Sequence[Proposal]:
    if explore == 0:  # no random numbers are taken, so that a climb without exploring has the keys that it always had
        return near(task, pivot, neighbours, radius)
    far = [u < explore for u in task.uniform(neighbours)]
    return [p for f in far for p in (fresh(task, 1) if f else near(task, pivot, 1, radius))]


def eps_greedy(
    task: Task, *, neighbours: int = 4, explore: float = 0.4, radius: float = 0.15, patience: int = 20
) -> Plan:
    """Epsilon-greedy search: ``zero_order`` of which each neighbour is, with probability ``explore``, fresh noise instead. Ref:
    2506.03164, which has N = 4 candidates, K = 20 local iterations, epsilon = 0.4 and scale 0.15; there at every step of a
    sampler that draws noise, here on the starting noise, which is all the noise that an ODE has. Fresh noise among the
    neighbours is what leads out of a hill, so ``patience`` is long. Endless.
    """
    positive("eps_greedy", neighbours=neighbours)
    yield from zero_order(task, neighbours=neighbours, radius=radius, patience=patience, explore=explore)
