"""What a plan will cost before it has a picture to show, so that a hopeless budget is refused before it is spent."""

from __future__ import annotations

from secondlook.engine.derive import start_time
from secondlook.engine.rig import Rig
from secondlook.types import Cost, Outcome, Plan

FAR = 10_000  # proposals; a plan that has not finished a picture by then is left to its budget


def first_picture(plan: Plan, rig: Rig) -> Cost:
    """The price of everything up to a fresh plan's first finished picture, were all scores equal."""
    total, sent = Cost(), None
    known: list[Outcome] = []

    def stop_of(i: int) -> float:
        return known[i].proposal.stop

    while len(known) < FAR:
        try:
            proposals = next(plan) if sent is None else plan.send(sent)
        except StopIteration:
            break
        sent = [Outcome(len(known) + i, p, 0.0) for i, p in enumerate(proposals)]
        known += sent
        for p in proposals:
            total = total + rig.price(start_time(rig, p.move, stop_of), p.stop, p.ask)
            if p.stop >= 1.0:
                return total
        if not sent:
            break
    return total
