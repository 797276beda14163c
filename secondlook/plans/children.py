"""One path, many children: at each of several times the path splits, and goes on with one of its children."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.moves import clone, fresh, on_grid, rewind, top
from secondlook.plans.weights import draw
from secondlook.types import Outcome, Plan, Proposal, Task


def children(
    task: Task, *, m: int = 4, splits: int = 4, first: float = 0.2, temperature: float = 0.0, back: float = 0.1
) -> Plan:
    """From time ``first`` on, at ``splits`` times evenly up to data, make ``m`` children of the row, run each to the next time, score
    the data estimate that its last step made, and go on with one: the best where ``temperature`` is 0 (Svdd-PM with a small
    alpha, 2408.08252, alg. 1; CoDe, 2502.00968), or one drawn by exp(score / temperature) (SVDD's value weights).

    Children differ by the solver's noise where it draws any (Clone); on an ODE they are taken ``back`` in time by fresh noise, which
    is no sample of the flow's own law. Begins again with new noise. Endless.
    """
    positive("children", m=m, splits=splits, first=first, back=back)
    if first >= 1 or temperature < 0:
        raise ConfigError(f"children: expected first < 1 and temperature >= 0; got {first!r}, {temperature!r}.")
    times = sorted({on_grid(task, first + (1 - first) * i / splits) for i in range(splits)})
    while True:
        [path] = yield fresh(task, 1, stop=times[0], ask="nothing")
        for then in [*times[1:], 1.0]:
            how = {"stop": then, **({} if then == 1.0 else {"look": "free"})}
            family: list[Proposal] = (
                clone(task, path, m, **how)
                if task.stochastic
                else rewind(task, path, m, max(0.0, path.proposal.stop - back), **how)
            )
            path = _chosen(task, (yield family), temperature)


def _chosen(task: Task, family: Sequence[Outcome], temperature: float) -> Outcome:
    known = [o for o in family if o.score is not None and math.isfinite(o.score)]
    if temperature == 0 or not known:
        return top(family, 1)[0]
    return known[draw([(o.score or 0.0) / temperature for o in known], task.uniform(1)[0])]
