"""Beam search over half-made pictures."""

from __future__ import annotations

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.legs import affords, branch_times, onward, pays_again
from secondlook.plans.moves import fresh, top
from secondlook.types import Plan, Task


def beam(
    task: Task,
    *,
    width: int = 2,
    branching: int = 4,
    looks: int = 3,
    first: float = 0.2,
    look: str = "paid",
    back: float = 0.1,
) -> Plan:
    """Begin ``width`` times ``branching`` noises; at ``looks`` times, evenly from ``first``, keep the best ``width`` and let each go on
    as it is and by ``branching`` - 1 branches; finish the last ones. Beam search on look-ahead scores as in 2503.02039, without its
    schedule of widths.

    look: "paid", or "free" for the estimate that the last step began with, which branches share where times are one step apart.
    Branches differ by the solver's noise; on an ODE they are taken ``back``
    in time. Begins again for as long as the budget pays for all of it; what is left then buys plain samples. Endless.
    """
    positive("beam", width=width, branching=branching, looks=looks, first=first, back=back)
    if first >= 1:
        raise ConfigError(f"beam: expected first < 1; got first={first!r}.")
    times, before, left = branch_times(task, first, looks), task.remaining(), task.remaining()
    while pays_again(before, left):
        before = left
        live = yield fresh(task, width * branching, stop=times[0], look=look)
        for then in [*times[1:], 1.0]:
            kept = top(live, width)
            parents = [i for i in range(len(kept)) for _ in range(branching)]
            live = yield onward(task, kept, parents, back, {"stop": then, **({} if then == 1.0 else {"look": look})})
        left = task.remaining()
    while affords(task, *(one := fresh(task, 1))):
        yield one
