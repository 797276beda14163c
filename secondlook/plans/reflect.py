"""Reflection: hear what is wrong with a picture, show both to the model, draw again."""

from __future__ import annotations

from dataclasses import replace

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.chain import Chain, Earned, faults, recalled
from secondlook.plans.moves import best, fresh, rewind
from secondlook.types import Context, Plan, Proposal, Task

ANSWERS = ("context", "redraw", "earned")
KEEPS = ("accepted", "best")


def reflect(
    task: Task, *, n: int = 20, memory: int = 1, width: int = 1, answer: str = "context", keep: str = "best", mends: int = 2,
    back: float = 0.0,
) -> Plan:  # fmt: skip
    """Draw, ask the critic, and stop when it finds nothing wrong; else draw again with up to ``memory`` tries and remarks as context,
    until ``n`` pictures are drawn. Ref: Reflect-DiT, 2503.12271, sec. 3.3 and algorithm 1 (K = ``memory``).

    width: chains side by side. answer: "context"; "redraw", where the critic's word only decides when to stop; or "earned", where each
    chain is answered or begun afresh by what either has earned on this prompt (chain.Earned). keep: "best"
    (the accepted picture, else the best by the verifier, which is then asked too), or "accepted" (the paper's: the accepted one or the
    last). mends: a picture is
    answered so often in a row without fewer faults, then the chain begins afresh; an answer goes on from the chain's try with the
    fewest faults, not always from the last (chains drift). The paper's own loop is mends=n with memory=3. back: the time that the try is
    taken back to before it is drawn again (0: fresh noise). A remark that cannot be read begins afresh: it is no remark.
    """
    positive("reflect", n=n, memory=memory, width=width, mends=mends)
    if answer not in ANSWERS or keep not in KEEPS or not 0 <= back < 1:
        raise ConfigError(f"reflect: expected answer one of {', '.join(ANSWERS)}, keep one of {', '.join(KEEPS)} and back from 0 to below 1; "
                          f"got answer={answer!r}, keep={keep!r}, back={back!r}.")  # fmt: skip
    ask = "remark" if keep == "accepted" else "score+remark"
    chains, earned = [Chain() for _ in range(width)], Earned()
    drawn = 0
    while drawn < n:
        live = chains[: n - drawn]
        for i, chain in enumerate(live):
            unread = bool(chain.tries) and faults(chain.best) == float("inf")
            if answer == "redraw" or unread or chain.failures >= mends or (answer == "earned" and not earned.answers):
                live[i] = chains[i] = Chain()
        outcomes = yield [_next(task, chain, memory, back, ask) for chain in live]
        drawn += len(outcomes)
        for chain, outcome in zip(live, outcomes, strict=True):
            earned.note(chain, outcome)
            chain.add(outcome)
        accepted = [o for o in outcomes if faults(o) == 0]
        last = outcomes[-1]
        if accepted:
            break
    return best(accepted) if accepted else last if keep == "accepted" else None


def _next(task: Task, chain: Chain, memory: int, back: float, ask: str) -> Proposal:
    """The chain's next draw: a first one, or an answer to its best try."""
    if not chain.tries:
        return fresh(task, 1, ask=ask)[0]
    shown = [*recalled(task, chain, memory - 1), chain.best]
    context = tuple(Context(o.id, o.remark) for o in shown if o.remark is not None)
    condition = replace(task.condition, context=context)
    if back > 0:
        return rewind(task, chain.best, 1, back, ask=ask, condition=condition)[0]
    return fresh(task, 1, ask=ask, condition=condition)[0]


def _needs(answer: str = "context", **_: object) -> tuple[str, ...]:
    return ("critic",) if answer == "redraw" else ("critic", "context")


reflect.needs = _needs  # type: ignore[attr-defined]
