"""One path, tries at each of its steps: it goes on as soon as a try is accepted, or with the best when a step's quota is spent."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.legs import affords, branch, inner_times, known, nfe, nfe_left, plain
from secondlook.plans.moves import best, fresh, resume
from secondlook.types import Outcome, Plan, Proposal, Task


def rollover(task: Task, *, evaluations: int = 250, noises: int = 25, back: float = 0.1) -> Plan:
    """Rollover budget forcing (2503.19385, alg. 1): ``noises`` ranked by their one-step estimates; then at each step children one at a
    time, until one scores above the best so far, whose unspent quota rolls over to the next step; else the step's best goes on.

    evaluations: of one path, less where the budget has less. What the noises leave is shared out evenly among steps: the paper's 500
    evaluations for two paths of 10 steps are 25 noises and 22 a step. The path is finished, as the released code's is not. Copies
    differ by the solver's noise; on an ODE they are taken ``back`` in time, which costs more. Begins again. Endless.
    """
    positive("rollover", evaluations=evaluations, noises=noises, back=back)
    while affords(task, plain(task)):
        whole, begun = min(evaluations, nfe_left(task)), _noises(task, noises)
        quota = max(0.0, whole - len(begun) - 1) / max(1, len(inner_times(task)) - 1)
        yield from _climb(task, best((yield begun)), quota, True, None, back)


def threshold(task: Task, *, above: float = 0.5, tries: int = 20, back: float = 0.1) -> Plan:
    """Verifier-Threshold (2512.08985, known by its abstract): the path goes to the next step only with a try that scores above
    ``above``; else more are drawn at this step, noises at the first and children at the others, up to ``tries`` of them, after which the
    best goes on. The paper's threshold is its verifier's; the cap is this library's. Begins again. Endless.
    """
    positive("threshold", tries=tries, back=back)
    if not math.isfinite(above):
        raise ConfigError(f"threshold: above must be a finite score; got {above!r}.")
    while affords(task, plain(task)):
        begun = yield _noises(task, 1)
        while not known(begun[-1]) > above and len(begun) < tries and affords(task, plain(task), plain(task)):
            begun = [*begun, *(yield _noises(task, 1))]
        yield from _climb(task, best(begun), float(tries), False, above, back)


def _noises(task: Task, count: int) -> list[Proposal]:
    """Up to ``count`` noises, each to be seen by its one-step estimate, as many as leave a plain sample's worth; else a plain sample."""
    stops = inner_times(task)[:1]
    found = fresh(task, count, stop=stops[0], look="free") if stops else []
    while found and not affords(task, *found, plain(task)):
        found.pop()
    return found or fresh(task, 1)


def _climb(
    task: Task, path: Outcome, quota: float, roll: bool, above: float | None, back: float
) -> Generator[Sequence[Proposal], Sequence[Outcome], None]:
    """From the first time of the grid to a picture. quota: of a step, in evaluations, or in tries where children must score ``above`` so
    much (None: more than the best so far). What finishing costs is kept back."""
    if path.finished:
        return
    mark, rest = known(path), 0.0
    for then in inner_times(task)[1:]:
        rest, tries = quota + (rest if roll else 0.0), list[Outcome]()
        while not tries or not known(tries[-1]) > (mark if above is None else above):
            work = branch(task, path, 1, back, stop=then)
            price = nfe(task, *work) if above is None else 1.0
            if (tries and price > rest) or not affords(task, *work, resume(task, path)):
                break
            tries, rest = [*tries, *(yield work)], rest - price
        if not tries:
            break
        path = best(tries)
        mark = max(mark, known(path))
    yield [resume(task, path)]
