"""Zero-order search: hill climbing on the starting noise."""

from __future__ import annotations

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.moves import best, fresh, near
from secondlook.types import Plan, Task


def zero_order(task: Task, *, neighbours: int = 4, radius: float = 0.7, patience: int = 1) -> Plan:
    """Keep a pivot, try ``neighbours`` near it, move when one scores higher. Ref: 2501.09732, sec. 3.2.

    radius: sine of the angle between a neighbour's noise and the pivot's, in (0, 1]; norms are kept (0.31 is the
    published cosine 0.95). After ``patience`` rounds without a win the pivot is parked (it stays in the run, so it can
    still be the winner) and the climb starts again from fresh noise. A pivot is never drawn twice. Endless.
    """
    positive("zero_order", neighbours=neighbours, radius=radius, patience=patience)
    if radius > 1:
        raise ConfigError(f"zero_order: radius is the sine of an angle, at most 1; got {radius!r}.")
    while True:
        [pivot] = yield fresh(task, 1)
        failures = 0
        while failures < patience:
            ring = yield near(task, pivot, neighbours, radius)
            winner = best([pivot, *ring])
            failures = failures + 1 if winner is pivot else 0
            pivot = winner
