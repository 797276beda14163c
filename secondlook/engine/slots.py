"""The rows under way: one batch on the network's device, which rows enter and leave by their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from secondlook.engine.job import Job
from secondlook.engine.rig import Rig, Work
from secondlook.flow.grid import after
from secondlook.types import Cost, State


class Slots:
    """Up to ``rig.rows`` jobs and their states as one. Between two steps nothing is copied as long as the same jobs go on."""

    def __init__(self, rig: Rig):
        self.rig = rig
        self.jobs: list[Job] = []
        self._state: State | None = None

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def free(self) -> int:
        return self.rig.rows - len(self.jobs)

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

    def step(self) -> list[tuple[list[Job], Cost]]:
        """One solver step of every row. Rows whose steps cost differently are stepped apart. Returns the groups, with what the
        step cost each of their rows."""
        groups: dict[Any, list[int]] = {}
        for i, job in enumerate(self.jobs):
            groups.setdefault(self._kind(job), []).append(i)
        return [self._advance(at, kind[1]) for kind, at in groups.items()]

    def _kind(self, job: Job) -> tuple[tuple[int, ...], bool]:
        """What a row's next step costs, and whether its first evaluation is known."""
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
