"""The rows under way: one batch on the network's device, which rows enter and leave by their place.

Rows whose next steps cost differently (guided or not, first evaluation known or not) cannot share a step: each pays for what was done
for it. So one kind is stepped at a time, with a full batch of it wherever there are enough rows, and the others wait their turn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from secondlook.engine.job import Job
from secondlook.engine.rig import Rig, Work
from secondlook.flow.grid import after
from secondlook.types import Cost, State

PATIENT = 8  # steps of other rows that a row waits for its own kind to fill a batch
Kind = tuple[tuple[int, ...], bool]  # what a row's next step costs, and whether its first evaluation is known


class Slots:
    """Jobs and their states as one: up to ``rig.rows`` of each kind. Between two steps nothing is copied as long as the same jobs go on."""

    def __init__(self, rig: Rig):
        self.rig = rig
        self.jobs: list[Job] = []
        self._state: State | None = None

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def free(self) -> int:
        """How many rows may enter: none while a kind has a full batch to step."""
        return max(0, self.rig.rows - self.ready)

    @property
    def ready(self) -> int:
        """The rows of the kind that has most."""
        return max(map(len, self._kinds().values()), default=0)

    @property
    def arrived(self) -> list[Job]:
        """Jobs whose rows have reached their stop."""
        return [j for j in self.jobs if j.arrived]

    def enter(self, jobs: Sequence[Job]) -> None:
        """Rows whose ``state`` is set, behind those that are there."""
        if not jobs:
            return
        states = [s for j in jobs if (s := j.state) is not None]
        for job in jobs:
            job.state = None
        new = State.stack(states).to(self.rig.device)
        self._state = new if self._state is None or not self.jobs else State.stack([self._state, new])
        self.jobs = [*self.jobs, *jobs]

    def step(self) -> tuple[list[Job], Cost] | None:
        """One solver step of up to ``rig.rows`` rows of one kind: the kind that has most, unless a row has waited too long. Returns
        the jobs, with what the step cost each of their rows; None where all rows have arrived."""
        kinds = self._kinds()
        if not kinds:
            return None
        late = max((i for at in kinds.values() for i in at), key=lambda i: self.jobs[i].waited)
        overdue = self.jobs[late].waited >= PATIENT
        kind, at = max(kinds.items(), key=lambda found: late in found[1] if overdue else len(found[1]))
        at = sorted(at, key=lambda i: -self.jobs[i].waited)[: self.rig.rows]
        stepped = set(at)
        for i, job in enumerate(self.jobs):
            job.waited = 0 if i in stepped else job.waited + 1
        return self._advance(sorted(at), kind[1])

    def _kinds(self) -> dict[Kind, list[int]]:
        """The places of the rows that go on, by kind."""
        found: dict[Kind, list[int]] = {}
        for i, job in enumerate(self.jobs):
            if not job.arrived:
                found.setdefault(self._kind(job), []).append(i)
        return found

    def _kind(self, job: Job) -> Kind:
        return self.rig.step_kind(job.t, after(job.times, job.t, job.goal)), job.known

    def _advance(self, at: list[int], known: bool) -> tuple[list[Job], Cost]:
        assert self._state is not None
        jobs = [self.jobs[i] for i in at]
        whole = len(at) == len(self.jobs)
        until = tuple(after(j.times, j.t, j.goal) for j in jobs)
        conditions = tuple(j.proposal.condition for j in jobs)
        pictures = tuple(j.pictures for j in jobs) if any(j.pictures for j in jobs) else None
        moved, cost = self.rig.step(
            Work(self._state if whole else self._state.rows(at), until, conditions, known, pictures)
        )
        self._state = moved if whole else put(self._state, at, moved)
        for job, t in zip(jobs, until, strict=True):
            job.estimated = max(self.rig.solver.asks(job.t, t), default=job.t)
            job.t, job.known = t, False
        return jobs, cost

    def leave(self, jobs: Sequence[Job]) -> State:
        """Take rows out; returns their states, in the order of ``jobs``."""
        assert self._state is not None
        place = {id(j): i for i, j in enumerate(self.jobs)}
        gone = {id(j) for j in jobs}
        left = self._state.rows([place[id(j)] for j in jobs])
        stay = [i for i, j in enumerate(self.jobs) if id(j) not in gone]
        self._state = self._state.rows(stay) if stay else None
        self.jobs = [self.jobs[i] for i in stay]
        return left

    def drop(self) -> None:
        """Forget every row: the run stops."""
        self.jobs, self._state = [], None


def put(state: State, at: Sequence[int], rows: State) -> State:
    """``state`` with the rows at these places replaced."""
    rest = [i for i in range(len(state)) if i not in set(at)]
    both = State.stack([state.rows(rest), rows]) if rest else rows
    order = [*rest, *at]
    return both.rows([order.index(i) for i in range(len(state))])


def detached(state: State) -> list[State]:
    """One-row states on the CPU, that share no memory with the batch."""
    whole = state.to(torch.device("cpu"))
    return [whole.rows([i]) for i in range(len(whole))]
