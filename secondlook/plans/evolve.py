"""Evolution: the best finished pictures are taken back in time by fresh noise and drawn on, again and again."""

from __future__ import annotations

from collections.abc import Sequence

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.moves import best, fresh, on_grid, rewind, top
from secondlook.types import Outcome, Plan, Proposal, Task


def evolve(
    task: Task, *, n: int = 6, children: int = 4, elites: int = 1, times: tuple[float, ...] = (0.5, 0.27), patience: int = 2,
    steps: int = 0, keep: bool = True,
) -> Plan:  # fmt: skip
    """Draw ``n`` noises; then, generation after generation, take the ``elites`` best pictures so far back in time by fresh noise,
    ``children`` of each, and draw those on. A child shares with its parent what was settled before, and costs only the steps that are
    left. Ref: EvoSearch, 2505.17618, sec. 4 (elites, selection on finished pictures, mutation of half-made states); its
    mutation of a state adds noise without moving in time, this one keeps the marginals (2501.09732's forward step).

    times: how far back, one after the other: a better picture returns to the first, and after ``patience`` generations without one it
    goes on to the next. After the last it begins again with new noises, whose best must beat nothing but their own. steps: of the
    first pictures' grid (0: the run's own); children are drawn on the run's. keep: whether parents compete with their children.
    Endless.
    """
    positive("evolve", n=n, children=children, elites=elites, patience=patience)
    if steps < 0:
        raise ConfigError(f"evolve: steps must be 0 (the run's own) or above; got {steps!r}.")
    times = times if isinstance(times, tuple) else (times,)
    if not times or not all(isinstance(t, (int, float)) and 0 <= t < 1 for t in times):
        raise ConfigError(f"evolve: times must be numbers from 0 to below 1, one at least; got {times!r}.")
    while True:
        pool, stale = (yield fresh(task, n, steps=steps or None)), 0
        while stale < patience * len(times):
            parents, back = top(pool, elites), on_grid(task, times[stale // patience])
            kids = yield _family(task, parents, children, back)
            stale = 0 if best([*parents, *kids]) not in parents else stale + 1
            pool = [*parents, *kids] if keep else list(kids)


def _family(task: Task, parents: Sequence[Outcome], children: int, back: float) -> list[Proposal]:
    return [p for parent in parents for p in rewind(task, parent, children, back)]
