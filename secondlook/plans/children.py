"""One path, many children: at each of several times the path splits, and goes on with one of its children."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.legs import branch, look_times
from secondlook.plans.moves import fresh, top
from secondlook.plans.weights import draw
from secondlook.types import Outcome, Plan, Task


def children(
    task: Task, *, m: int = 4, splits: int = 4, first: float = 0.2, temperature: float = 0.0, back: float = 0.1,
    look: str = "free",
) -> Plan:  # fmt: skip
    """From time ``first`` on, at ``splits`` times evenly up to data, make ``m`` children of the row, run each to the next time, score
    its data estimate, and go on with one: the best where ``temperature`` is 0 (Svdd-PM with a small
    alpha, 2408.08252, alg. 1; CoDe, 2502.00968), or one drawn by exp(score / temperature) (SVDD's value weights).

    Children differ by the solver's noise where it draws any (Clone); on an ODE they are taken ``back`` in time by fresh noise, which
    is no sample of the flow's own law. look: "free" for the estimate that the last step began with, which all children share where the
    times are one step apart; "paid" for the network's word on each child, which where the solver reuses it costs no more. Begins
    again with new noise. Endless.
    """
    positive("children", m=m, splits=splits, first=first, back=back)
    if first >= 1 or temperature < 0:
        raise ConfigError(f"children: expected first < 1 and temperature >= 0; got {first!r}, {temperature!r}.")
    times = look_times(task, first, splits)
    while True:
        [path] = yield fresh(task, 1, stop=times[0], ask="nothing")
        for then in [*times[1:], 1.0]:
            how = {"stop": then, **({} if then == 1.0 else {"look": look})}
            path = _chosen(task, (yield branch(task, path, m, back, **how)), temperature)


def svdd(task: Task, *, m: int = 5, temperature: float = 0.0, back: float = 0.1) -> Plan:
    """SVDD-PM (2408.08252, alg. 1): children at every step, the best goes on (alpha 0; above it one drawn by exp(score / temperature)).
    The paper's 20 children at each of its steps are 5 here, where a search is to cost a few samples; every step of up to 20. Endless."""
    return (yield from children(task, m=m, splits=20, first=0.05, temperature=temperature, back=back, look="paid"))


def code(task: Task, *, m: int = 5, blocks: int = 5, back: float = 0.1) -> Plan:
    """CoDe (2502.00968): children once a block of steps, the best goes on. Its template has blocks of 10 of 50 steps and up to 50
    children; its start from a reference picture is left out, and the first block is drawn once. Endless."""
    if blocks < 2:
        raise ConfigError(f"code: blocks must be 2 or more; got {blocks!r}.")
    return (yield from children(task, m=m, splits=blocks - 1, first=1 / blocks, back=back, look="paid"))


def _chosen(task: Task, family: Sequence[Outcome], temperature: float) -> Outcome:
    known = [o for o in family if o.score is not None and math.isfinite(o.score)]
    if temperature == 0 or not known:
        return top(family, 1)[0]
    return known[draw([(o.score or 0.0) / temperature for o in known], task.uniform(1)[0])]
