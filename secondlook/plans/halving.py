"""Successive halving: many rows begin, and those that look worst on the way are left where they are."""

from __future__ import annotations

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.legs import look_times, pays_again
from secondlook.plans.moves import fresh, resume, top
from secondlook.types import Plan, Task


def halving(
    task: Task, *, n: int = 8, share: float = 0.5, first: float = 0.3, looks: int = 2, look: str = "paid"
) -> Plan:
    """Begin ``n`` noises; at ``looks`` times, evenly from ``first`` to data and put on the grid, score what the rows are about to
    become and go on with the best ``share`` of them; finish the last ones. Ref: successive halving (Karnin et al., ICML 2013;
    Jamieson and Talwalkar, 1502.07943) on the look-ahead of the one-step data estimate.

    look: "paid" for the network's word at that time, which is the first evaluation of a row that goes on; "free" for the estimate
    that the last step made. How well early scores rank finished pictures decides whether this is safe. Endless.
    """
    positive("halving", n=n, share=share, first=first, looks=looks)
    if share >= 1 or first >= 1:
        raise ConfigError(f"halving: expected share and first below 1; got share={share!r}, first={first!r}.")
    times = look_times(task, first, looks)
    while True:
        before = task.remaining()
        live = yield fresh(task, n, stop=times[0], look=look)
        for then in [*times[1:], 1.0]:
            live = top(live, max(1, round(share * len(live))))
            live = yield [resume(task, o, stop=then, **({} if then == 1.0 else {"look": look})) for o in live]
        if not pays_again(before, task.remaining()):
            break
    while task.affords(*(one := fresh(task, 1))):
        yield one
