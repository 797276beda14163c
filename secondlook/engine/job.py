"""A proposal under way, from the time the budget paid for it until the log reports it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from secondlook.engine.record import baseline_id
from secondlook.engine.rig import Pictures, Times
from secondlook.flow.grid import EPS
from secondlook.types import Cost, Proposal, Remark, State

if TYPE_CHECKING:
    from secondlook.engine.task_run import TaskRun

BASELINE = -1


@dataclass
class Job:
    """``n`` numbers a task's proposals; the baseline, which no plan asked for, is BASELINE. t: where its row stands. estimated: the time at which its row's last
    data estimate was made (None: it has made no step). known: its first
    evaluation was paid for already. waited: steps of other rows since its last one. What judges answer is put into the fields below by the desk; ``waiting`` names those
    that have not answered yet. failed: why there is no picture, where there is none."""

    owner: TaskRun
    n: int
    proposal: Proposal
    price: Cost
    t: float
    times: Times
    known: bool = False
    estimated: float | None = None
    waited: int = 0
    pictures: Pictures = ()
    against: np.ndarray | None = None
    state: State | None = None
    seen: Tensor | None = None
    cost: Cost = field(default_factory=Cost)
    waiting: set[str] = field(default_factory=set)
    picture: np.ndarray | None = None
    score: float | None = None
    components: dict[str, float] = field(default_factory=dict)
    remark: Remark | None = None
    preference: float | None = None
    failed: str | None = None

    @property
    def goal(self) -> float:
        """The time at which its row stops: some paths are left a little before data."""
        return min(self.proposal.stop, self.times[-1])

    @property
    def shown_at(self) -> float:
        """The time of the data estimate that its picture shows: 1 for a finished picture, the stop for a paid look; for a free one
        the time at which the last step made its estimate, NaN where no step was made here."""
        if self.proposal.stop >= 1.0:
            return 1.0
        if self.proposal.look == "paid":
            return self.t
        return math.nan if self.estimated is None else self.estimated

    @property
    def arrived(self) -> bool:
        """Whether its row has reached its stop."""
        return self.t >= self.goal - EPS

    @property
    def half_made(self) -> bool:
        """Whether it ends before a picture is finished."""
        return not self.proposal.finished

    @property
    def drawn(self) -> np.ndarray | None:
        """The picture that it made; one that it is only asked about is another's."""
        return self.picture if self.proposal.move.draws else None

    @property
    def number(self) -> int:
        return self.owner.number(self.n)

    @property
    def baseline(self) -> bool:
        return self.n == BASELINE

    @property
    def logged(self) -> int:
        """The number under which the log speaks of it."""
        return baseline_id(self.owner.task.index) if self.baseline else self.number
