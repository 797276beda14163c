"""The self-supervised verifier: of several noises, the one whose picture was already there half-way."""

from __future__ import annotations

import math
from dataclasses import replace

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.moves import best, fresh, on_grid, resume
from secondlook.types import Plan, Task


def self_supervised(task: Task, *, n: int = 8, at: float = 0.6) -> Plan:
    """Draw ``n`` fresh noises; keep the one whose finished picture is most like the data estimate of its own early step, by the
    comparer's word (similarity: cosine of features). No condition is read. Ref: 2501.09732, sec. 3.1 (self-supervised verifiers).

    at: when the early estimate is made; 0.6 is the paper's noise level sigma = 0.4. The row stops behind the step that begins at the time
    of the grid nearest to it, and shows what that step estimated: a free look, so that the search costs no evaluation more than best
    of n. A half-made picture is there only where something is asked of it, so each is scored too, and no score is read.
    """
    positive("self_supervised", n=n, at=at)
    if at >= 1:
        raise ConfigError(f"self_supervised: expected at below 1; got at={at!r}.")
    begins = on_grid(task, at)
    stop = min((t for t in task.grid if begins < t < 1), default=begins)
    early = yield fresh(task, n, stop=stop, look="free")
    done = yield [replace(resume(task, o), ask="compare", against=o.id) for o in early]
    found = best(done)
    known = found.preference is not None and not math.isnan(found.preference)
    return found if known else None  # else the run hands over what it has


self_supervised.needs = ("similarity",)  # type: ignore[attr-defined]
