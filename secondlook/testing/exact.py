"""A plan's engine on the exact mixture: proposals are checked, priced and paid as in a run, and rows are really drawn, by a network that
is never wrong. No files, no pictures: what is scored is the sample itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from secondlook.engine.derive import Derivation
from secondlook.engine.job import Job
from secondlook.engine.ledger import Budget, Ledger
from secondlook.engine.pricing import Silence
from secondlook.engine.record import Record
from secondlook.engine.rig import Rig
from secondlook.engine.task_run import PlanMaker
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import EPS, after, grid
from secondlook.flow.path import Linear
from secondlook.noise import Key
from secondlook.settings import make_plan
from secondlook.solvers.ode import Solver
from secondlook.solvers.sde import EulerMaruyama
from secondlook.testing.simulate import Simulation, _Noted, _Paper
from secondlook.types import Condition, Outcome, State, Task
from secondlook.worlds.mixture import Mixture


@dataclass
class Played(Simulation):
    """What a plan did on a mixture. samples: what each outcome shows, [D]; after: evaluations spent when each was done."""

    judge: Callable[[Tensor], Tensor] = lambda x: x[:, 0]
    samples: dict[int, Tensor] = field(default_factory=dict)
    after: dict[int, float] = field(default_factory=dict)
    _states: dict[int, State] = field(default_factory=dict)
    _scores: dict[int, float] = field(default_factory=dict)

    def round(self) -> list[Outcome]:
        if self.run.broke:
            self.run.finish()
        if self.run.ended:
            return []
        jobs, self._sent = self.run.advance(self._sent, lambda price: False), []
        self._carry_out(jobs)
        for job in jobs:
            self._sent.append(self._done(job))
            self.after[job.number] = self.spent.nfe
        if self._sent:
            self.rounds.append(self._sent)
        return self._sent

    def _carry_out(self, jobs: Sequence[Job]) -> None:
        """Rows that begin and stop together are drawn together."""
        groups: dict[tuple[Any, ...], list[Job]] = defaultdict(list)
        for job in jobs:
            groups[(job.t, job.proposal.stop, job.proposal.steps, job.proposal.look)].append(job)
        rig = self.run.rig
        source = Derivation(rig, self.run.proposal, self._states.__getitem__)
        for (_, stop, steps, look), some in groups.items():
            state = State.stack([job.proposal.move.state(source) for job in some])
            while (t := float(state.t[0])) < stop - EPS:
                then = torch.full_like(state.t, after(rig.times_for(steps), t, stop))
                state = rig.solver.step(rig.flow, state, then, None)
            free = look == "free" and state.data is not None
            data = state.data if free and stop < 1 else None
            shown = state.x if stop >= 1 else rig.flow.estimate(state.x, state.t, None).data if data is None else data
            scores = self.judge(shown.double())
            for i, job in enumerate(some):
                self._states[job.number] = state.rows([i])
                self.samples[job.number], self._scores[job.number] = shown[i], float(scores[i])


def play(
    plan: str | PlanMaker, mixture: Mixture, judge: Callable[[Tensor], Tensor], *, solver: Solver | None = None, steps: int = 20,
    budget: Mapping[str, float] | None = None, seed: int = 0, until: Callable[[Tensor], bool] | None = None,
) -> Played:  # fmt: skip
    """Run ``plan`` (a call-string, or a function from a task) on a mixture to its or its budget's end.

    judge: scores of samples [B, D], for pictures and for the estimates that looks show. solver: None for the SDE. until: end early at
    the first round with a finished sample [D] of which this is true.
    """
    paper: Any = _Paper()
    rig = Rig(
        Flow(mixture.network(Linear()), Linear()),
        solver or EulerMaruyama(),
        grid(steps),
        paper,
        paper,
        paper,
        grids=grid,
    )
    task = Task(0, Condition("a sample"), Key.root(seed).child("task", 0), rig.times)
    maker = make_plan(plan) if isinstance(plan, str) else plan
    run = _Noted(task, maker, rig, Silence(), Ledger(Budget(**(budget or {}))), 1, Record())  # type: ignore[arg-type]
    played = Played(run, lambda o: played._scores[o.id], lambda o: None, lambda o: 0.5, judge=judge)
    while some := played.round():
        if until is not None and any(until(played.samples[o.id]) for o in some if o.finished):
            break
    played.returned = run.returned
    return played
