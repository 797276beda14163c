"""Search over paths: half-made pictures are re-noised, run on, and the best kept."""

from __future__ import annotations

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.legs import pays_again
from secondlook.plans.moves import fresh, resume, rewind, top
from secondlook.types import Plan, Proposal, Task


def paths(
    task: Task,
    *,
    n: int = 4,
    width: int = 2,
    start: float = 0.15,
    back: float = 0.1,
    ahead: float = 0.2,
    rounds: int = 1,
) -> Plan:
    """Run ``n`` noises to time ``start``; then ``rounds`` times: take each path back by ``back`` with ``width`` fresh
    noises, run all of them ahead to ``ahead`` past where they were, score the predicted picture, keep the best ``n``;
    at last finish those. Ref: 2501.09732, sec. 3.2 (search over paths), with time growing toward data.

    Everything is charged: the first runs, every segment, and the extra evaluation that looks at a half-made picture
    (two network passes under guidance) unless the row goes on from there. Begins again with new noises for as long as the budget
    pays for all of it, by what it cost before; what is left then buys plain samples. Endless.
    """
    positive("paths", n=n, width=width, start=start, back=back, ahead=ahead, rounds=rounds)
    if start >= 1 or back > start:
        raise ConfigError(f"paths: expected back <= start < 1; got back={back!r}, start={start!r}.")
    while True:
        time, before = start, task.remaining()
        live = yield fresh(task, n, stop=time, ask="nothing")
        for _ in range(rounds):
            onward = min(1.0, round(time + ahead, 6))  # 0.1 + 0.9 must not stop short of 1
            family = [rewind(task, path, width, time - back, stop=onward) for path in live]
            live = top((yield [p for children in family for p in children]), n)
            time = onward
            if time >= 1.0:
                break
        if time < 1.0:
            yield [resume(task, path) for path in live]
        if not pays_again(before, task.remaining()):
            break
    plain: list[Proposal] = []
    while task.affords(*plain, *(one := fresh(task, 1))):
        plain += one
    if plain:
        yield plain
