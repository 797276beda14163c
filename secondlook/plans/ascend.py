"""First-order search: the starting noise follows the gradient of its score."""

from __future__ import annotations

from secondlook.calls import positive
from secondlook.errors import ConfigError, nearest
from secondlook.moves import THROUGH
from secondlook.plans.moves import best, climb, fresh
from secondlook.types import Plan, Task


def ascend(
    task: Task, *, rate: float = 0.3, shrink: float = 0.5, patience: int = 2, starts: int = 1, through: str = "sampler", steps: int = 0
) -> Plan:  # fmt: skip
    """The best of ``starts`` fresh noises is turned along its gradient by asin(rate), norm kept, and drawn; a higher score makes the new
    picture the pivot, else the next try from the same pivot turns by ``shrink`` times as much. Ref: 2501.09732 (first-order search) and
    ReNO (2406.04312), which takes 50 steps of a fixed rate on one-step models. Begins again after ``patience`` tries in a row without a
    win. Endless.

    through: what is differentiated, "sampler" or "estimate" (moves.Climb); steps: on a grid of so many steps (0: the run's). Only a
    verifier with a method ``gradient`` can guide it. A gradient through a sampler of n evaluations is charged as 4 n less those of its
    last step (cost.BACKWARD), so it buys nearly four pictures of best of n, and one more is drawn to see what it was worth.
    """
    positive("ascend", rate=rate, shrink=shrink, patience=patience, starts=starts)
    if rate > 1 or shrink > 1:
        raise ConfigError(
            f"ascend: rate is the sine of an angle and shrink a factor, at most 1; got {rate!r}, {shrink!r}."
        )
    if through not in THROUGH:
        raise ConfigError(f'ascend: through is "sampler" or "estimate"; {nearest(str(through), THROUGH)}')
    if steps < 0:
        raise ConfigError(f"ascend: steps must be 0 (the run's grid) or more; got {steps!r}.")
    while True:
        pivot, failures, turn = best((yield fresh(task, starts))), 0, rate
        while failures < patience:
            [tried] = yield [climb(task, pivot, turn, through, steps)]
            if best([pivot, tried]) is pivot:
                failures, turn = failures + 1, turn * shrink
            else:
                pivot, failures = tried, 0


ascend.needs = ("gradient",)  # type: ignore[attr-defined]
