"""Depth-first search: one path that goes back in time where it looks bad, and on where it looks good."""

from __future__ import annotations

import math

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.legs import affords, known, look_times, plain
from secondlook.plans.moves import fresh, resume, rewind
from secondlook.types import Plan, Task


def depth_first(
    task: Task, *, above: float = 0.5, slack: float = 0.0, back: float = 0.2, depth: float = 0.5, tries: int = 8, looks: int = 4,
    first: float = 0.2,
) -> Plan:  # fmt: skip
    """Depth-first search (2505.23614, local search by DFS; its thresholds are set for each task, the values here are this library's). At
    ``looks`` times, evenly from ``first``, and at the picture, a score of at most delta(t) = ``above`` - ``slack`` (1 - t) takes the
    path back by fresh noise to t - ``back`` - ``depth`` times what the score lacks, so that a worse one goes back further, to the
    beginning where it could not be judged; a better score goes on. After ``tries`` returns the path goes on whatever its scores
    are. Begins again with new noise. Endless.
    """
    positive("depth_first", back=back, looks=looks, first=first, tries=tries)
    if first >= 1 or depth < 0 or slack < 0 or not math.isfinite(above):
        raise ConfigError("depth_first: expected first < 1, depth and slack at least 0, and above finite; got "
                          f"first={first!r}, depth={depth!r}, slack={slack!r}, above={above!r}.")  # fmt: skip
    times = [*look_times(task, first, looks), 1.0]
    while affords(task, plain(task)):
        work, returns = fresh(task, 1, stop=times[0]), 0
        if not affords(task, *work, plain(task)):
            work = fresh(task, 1)
        while work:
            [path] = yield work
            lack = above - slack * (1 - path.proposal.stop) - known(path)
            work = [] if path.finished else [resume(task, path, stop=_after(times, path.proposal.stop))]
            if lack >= 0 and returns < tries:
                to = 0.0 if lack == math.inf else max(0.0, path.proposal.stop - back - depth * lack)
                again = rewind(task, path, 1, to, stop=_after(times, to))
                if affords(task, *again, *([] if path.finished else [resume(task, path)])):
                    work, returns = again, returns + 1
            if work and not affords(task, *work, *([] if work[0].finished else [resume(task, path)])):
                work = [resume(task, path)]


def _after(times: list[float], time: float) -> float:
    return next((t for t in times if t > time + 1e-6), 1.0)
