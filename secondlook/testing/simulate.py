"""A plan's engine on paper: proposals are checked, priced and paid as in a run, and answered by functions. No network runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from secondlook.calls import bind, parse_call
from secondlook.engine.job import Job
from secondlook.engine.ledger import Budget, Ledger
from secondlook.engine.pricing import Silence
from secondlook.engine.record import Record
from secondlook.engine.rig import Rig
from secondlook.engine.task_run import PlanMaker, TaskRun
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import grid
from secondlook.flow.path import Kind, Linear
from secondlook.noise import Key
from secondlook.registry import resolve
from secondlook.solvers.ode import Euler
from secondlook.solvers.sde import EulerMaruyama
from secondlook.types import Condition, Cost, Outcome, Proposal, Remark, Task

MOST = 100_000  # rounds; an endless plan without a budget would never return


class _Paper:
    """A network that is never asked, and judges that are never either."""

    name = "paper"
    predicts: Kind = "velocity"
    shape = (1,)

    def __call__(self, *_: Any) -> Tensor:
        raise AssertionError("Nothing is drawn on paper.")

    gradient = pixels = __call__


@dataclass
class Simulation:
    """What a plan did: ``rounds`` of outcomes, what it spent, what it returned, and whether its budget ended it."""

    run: TaskRun
    score: Callable[[Outcome], float]
    remark: Callable[[Outcome], Remark | None]
    prefer: Callable[[Outcome], float]
    rounds: list[list[Outcome]] = field(default_factory=list)
    returned: Any = None
    _sent: list[Outcome] | None = None

    @property
    def outcomes(self) -> list[Outcome]:
        return [o for some in self.rounds for o in some]

    @property
    def spent(self) -> Cost:
        return self.run.ledger.spent

    @property
    def ended(self) -> bool:
        return self.run.ended

    @property
    def out_of_budget(self) -> bool:
        return self.run.broke

    def round(self) -> list[Outcome]:
        """The plan's next round, carried out; empty when it has ended."""
        if self.run.broke:
            self.run.finish()
        if self.run.ended:
            return []
        jobs = self.run.advance(self._sent, lambda price: False)
        self._sent = [self._done(job) for job in jobs]
        if self._sent:
            self.rounds.append(self._sent)
        return self._sent

    def _done(self, job: Job) -> Outcome:
        asks, bare = job.proposal.asks, Outcome(job.number, job.proposal)
        outcome = Outcome(
            job.number, job.proposal, self.score(bare) if "score" in asks else None, {},
            self.remark(bare) if "remark" in asks else None, self.prefer(bare) if "compare" in asks else None,
        )  # fmt: skip
        self.run.outcomes[job.n] = outcome
        self.run.shown.add(job.n)
        self.run.pay(job.price, job.price)
        return outcome


class _Noted(TaskRun):
    """A task's plan whose return value is kept as it is."""

    returned: Any = None

    def _end(self, returned: Any) -> None:
        self.returned = returned
        super()._end(returned)


def simulate(
    plan: str | PlanMaker, *, score: Callable[[Outcome], float] = lambda o: 0.0,
    remark: Callable[[Outcome], Remark | None] = lambda o: Remark(""), prefer: Callable[[Outcome], float] = lambda o: 0.5,
    rounds: int | None = None, steps: int = 20, stochastic: bool = False, condition: Condition | None = None, seed: int = 0,
    budget: Mapping[str, float] | None = None,
) -> Simulation:  # fmt: skip
    """Play ``plan`` (a call-string, or a function from a task) against made-up answers.

    score, remark, prefer: what the judges would say of an outcome. rounds: stop after so many (None: to the plan's or its
    budget's end). steps: of the grid. stochastic: whether the solver draws noise. budget: limits by unit, as ``nfe=100``.
    Raises ConfigError for proposals that a run would refuse.
    """
    paper = _Paper()
    rig = Rig(Flow(paper, Linear()), EulerMaruyama() if stochastic else Euler(), grid(steps), paper, paper, paper,  # type: ignore[arg-type]
              grids=grid, critic=paper, comparer=paper, pixels=paper.pixels)  # type: ignore[arg-type]  # fmt: skip
    key = Key.root(seed).child("task", 0)
    task = Task(0, condition or Condition("a red circle"), key, rig.times)
    run = _Noted(task, _maker(plan), rig, Silence(), Ledger(Budget(**(budget or {}))), 1, Record())  # type: ignore[arg-type]
    played = Simulation(run, score, remark, prefer)
    while len(played.rounds) < (MOST if rounds is None else rounds) and played.round():
        pass
    played.returned = run.returned
    return played


def _maker(plan: str | PlanMaker) -> PlanMaker:
    if not isinstance(plan, str):
        return plan
    call = parse_call(plan)
    target = resolve("plan", call.name)
    options = bind(call, target, skip=1)
    return lambda task: target(task, **options)


def keys(outcomes: Sequence[Outcome]) -> list[Key]:
    """The keys of the outcomes' moves, those that have one."""
    return [o.proposal.move.key for o in outcomes if hasattr(o.proposal.move, "key")]


__all__ = ["Proposal", "Simulation", "keys", "simulate"]
