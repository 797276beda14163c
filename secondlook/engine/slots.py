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
    """Jobs and their states as one: up to a batch of each kind. Between two steps nothing is copied as long as the same jobs go on."""

    def __init__(self, rig: Rig):
        self.rig = rig
        self.jobs: list[Job] = []
        self._state: State | None = None

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def free(self) -> int:
        """How many rows may enter: none while a kind has a full batch to step."""
        room = [self.rig.batch(kind[0]) - len(at) for kind, at in self._kinds().items()]
        return max(0, min(room, default=self.rig.rows))

    def full(self, more: int) -> bool:
        """Whether some kind has a full batch to step, if ``more`` rows of its own come to it."""
        kinds = self._kinds()
        return any(len(at) + more >= self.rig.batch(kind[0]) for kind, at in kinds.items()) or (
            not kinds and more >= self.rig.rows
        )

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
        """One solver step of a batch of one kind: the kind whose batch is fullest, unless a row has waited too long. Returns the jobs,
        with what the step cost each of their rows; None where all rows have arrived."""
        kinds = self._kinds()
        if not kinds:
            return None
        late = max((i for at in kinds.values() for i in at), key=lambda i: self.jobs[i].waited)
        overdue = self.jobs[late].waited >= PATIENT
        size = {kind: self.rig.batch(kind[0]) for kind in kinds}
        kind = max(kinds, key=lambda k: late in kinds[k] if overdue else len(kinds[k]) / size[k])
        at = sorted(kinds[kind], key=lambda i: -self.jobs[i].waited)[: size[kind]]
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
            job.estimated = max(self.rig.asks(job.t, t), default=job.t)
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
