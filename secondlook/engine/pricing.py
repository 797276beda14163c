"""What a plan will cost before it has a picture to show, so that a hopeless budget is refused before it is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from secondlook.engine.job import Job
from secondlook.engine.ledger import Budget, Ledger
from secondlook.engine.record import Record
from secondlook.engine.rig import Rig
from secondlook.engine.task_run import PlanMaker, TaskRun
from secondlook.errors import ConfigError, SecondlookError
from secondlook.types import Cost, Outcome, Remark, Task

FAR = 10_000  # proposals; a plan that has not finished a picture by then is left to its budget


class Trial(TaskRun):
    """A plan on trial: no run is there yet to keep what fails."""

    def failure(self, error: Exception) -> SecondlookError:
        return ConfigError(
            f"The plan failed on its first prompt, before anything was drawn ({type(error).__name__}: {error}). Fix it and run again."
        )


class Silence:
    """A journal that keeps nothing."""

    def write(self, lines: Sequence[Any], pictures: Sequence[tuple[int | str, np.ndarray]] = ()) -> None:
        pass


def first_picture(plan: PlanMaker, task: Task, rig: Rig, budget: Budget | None = None) -> Cost:
    """The price of everything up to the plan's first finished picture, were all answers alike. The plan is tried on a copy of
    its real task, and told of its ``budget``; where that has no room for a picture, the price is that of the plan without any."""
    price, finished = _tried(plan, task, rig, budget or Budget())
    return price if finished or budget is None else _tried(plan, task, rig, Budget())[0]


def _tried(plan: PlanMaker, task: Task, rig: Rig, budget: Budget) -> tuple[Cost, bool]:
    """What was spent up to the first finished picture, and whether there is one within the budget."""
    run = Trial(replace(task, draws=0), plan, rig, Silence(), Ledger(budget), task.index + 1, Record())  # type: ignore[arg-type]
    total, seen = Cost(), 0
    jobs = run.advance(None, lambda price: False)
    while jobs and seen < FAR:
        for job in jobs:
            total = total + job.price
            if job.proposal.finished:
                run.plan.close()
                return total, True
            run.outcomes[job.n] = _alike(job)
            run.ledger.charge(job.price, job.price)
        seen += len(jobs)
        jobs = [] if run.broke else run.advance([run.outcomes[n] for n in run.round], lambda price: False)
    run.plan.close()
    return total, False


def _alike(job: Job) -> Outcome:
    asks = job.proposal.asks
    return Outcome(job.number, job.proposal, 0.0 if "score" in asks else None, {}, Remark("") if "remark" in asks else None,
                   0.5 if "compare" in asks else None)  # fmt: skip
