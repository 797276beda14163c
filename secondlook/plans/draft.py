"""Draft, select, refine: many cheap tries, a few of them drawn in full."""

from __future__ import annotations

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.legs import pays_again
from secondlook.plans.moves import fresh, top
from secondlook.types import Plan, Proposal, Task


def draft(task: Task, *, n: int = 16, keep: int = 2, steps: int = 5) -> Plan:
    """Draw ``n`` noises on a grid of ``steps`` steps, then the ``keep`` best of them again, from the same noise, on the run's own
    grid; drafts stay in the run and may win. Ref: 2607.04461 (draft, select, refine), with fewer steps as the draft; two
    numbers of steps for search and result are 2501.09732's, table 5.

    Begins again for as long as the budget pays for all of it; what is left then buys drafts. Endless.
    """
    positive("draft", n=n, keep=keep, steps=steps)
    if keep > n:
        raise ConfigError(f"draft: keep must be at most n; got keep={keep!r}, n={n!r}.")
    while True:
        before = task.remaining()
        tries = yield fresh(task, n, steps=steps)
        yield [Proposal(o.proposal.move, task.condition) for o in top(tries, keep)]
        if not pays_again(before, task.remaining()):
            break
    rest: list[Proposal] = []
    while task.affords(*rest, *(one := fresh(task, 1, steps=steps))):
        rest += one
    if rest:
        yield rest
