"""Pictures that play against one another: a comparer's pairs instead of a verifier's numbers."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.moves import fresh, top
from secondlook.plans.pairs import Table, asked, strengths
from secondlook.types import Outcome, Plan, Proposal, Task

Playing = Generator[Sequence[Proposal], Sequence[Outcome], Any]


def tournament(
    task: Task, *, n: int = 8, form: str = "knockout", orders: int = 2, rounds: int = 0, scored: bool = True
) -> Plan:
    """Draw ``n`` fresh noises and let a comparer find the best: by "knockout", where the winner of a pair goes on (2501.13007, its
    knockout tournament; here pairs are neighbours in the order drawn), or "swiss", where in each of ``rounds`` rounds (0: as many as
    a knockout has) those with about equal points meet who have not met, and a Bradley-Terry fit over all pairs ranks them.

    orders: 2 shows each pair in both orders and takes the mean, since judges prefer a place (2306.05685, sec. 3.3 and 3.4); 1 shows it
    once. scored: pictures are also scored, for even pairs and where the budget ends the tournament early; False spares the verdicts.
    Returns the winner; the log keeps the flip rate: of the pairs, how many have another winner in the other order. Ends by itself.
    """
    positive("tournament", n=n, orders=orders)
    if form not in ("knockout", "swiss") or orders > 2 or rounds < 0:
        raise ConfigError('tournament: expected form "knockout" or "swiss", orders 1 or 2 and rounds 0 or above; got '
                          f"form={form!r}, orders={orders!r}, rounds={rounds!r}.")  # fmt: skip
    table = Table()
    live = list((yield fresh(task, n, ask="score" if scored else "nothing")))
    if form == "swiss":
        winner = yield from _swiss(task, live, table, orders, rounds or math.ceil(math.log2(n)) or 1)
    else:
        winner = yield from _knockout(task, live, table, orders)
    return {"winner": winner, **table.told()}


tournament.needs = ("comparer",)  # type: ignore[attr-defined]


def _play(task: Task, pairs: Sequence[tuple[Outcome, Outcome]], table: Table, orders: int) -> Playing:
    """All of these pairs at once, into the table."""
    said = yield [p for one, other in pairs for p in asked(task, one, other, orders)]
    for i, (one, other) in enumerate(pairs):
        table.put((one.id, other.id), [o.preference for o in said[orders * i : orders * (i + 1)]])


def _knockout(task: Task, live: list[Outcome], table: Table, orders: int) -> Playing:
    while len(live) > 1:
        pairs = list(zip(live[::2], live[1::2], strict=False))
        yield from _play(task, pairs, table, orders)
        live = [table.better(*pair) for pair in pairs] + live[2 * len(pairs) :]
    return live[0]


def _swiss(task: Task, live: list[Outcome], table: Table, orders: int, rounds: int) -> Playing:
    ranked, byes = top(live, len(live)), dict.fromkeys((o.id for o in live), 0)
    for _ in range(rounds):
        waiting, pairs = sorted(ranked, key=lambda o: -table.points(o) - byes[o.id]), []
        while waiting:
            one = waiting.pop(0)
            other = next((o for o in waiting if not table.met(one, o)), None)
            if other is None:
                byes[one.id] += 1  # as good as a win, else who had nobody to meet would meet losers
                continue
            waiting.remove(other)
            pairs.append((one, other))
        if not pairs:
            break
        yield from _play(task, pairs, table, orders)
    found = strengths(table.shares, [o.id for o in live])
    return max(ranked, key=lambda o: round(found[o.id], 9))  # the better scored of equals, which comes first
