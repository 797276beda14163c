"""The driver: runs the plans of many prompts at once and packs their rows, at whatever time each is, into one step.

A resumed run replays its recorded outcomes into fresh plans, so nothing is drawn or paid twice.
"""

from __future__ import annotations

import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from secondlook.engine.derive import start, start_time
from secondlook.engine.ledger import Budget, Ledger
from secondlook.engine.record import Record, outcome_body
from secondlook.engine.rig import Rig
from secondlook.engine.store import Store, sha256
from secondlook.errors import ReplayError, SecondlookError
from secondlook.flow.grid import EPS
from secondlook.plans.moves import best
from secondlook.types import Cost, Outcome, Plan, Proposal, State, Task

PlanMaker = Callable[[Task], Plan]
Progress = Callable[["Driver"], None]
BASELINE = -1


@dataclass
class Job:
    """A proposal under way. ``n`` numbers a task's proposals; the baseline, which no plan asked for, is BASELINE."""

    owner: Thread
    n: int
    proposal: Proposal
    price: Cost
    state: State | None = None
    cost: Cost = field(default_factory=Cost)


@dataclass
class Thread:
    """One task's plan and where it stands."""

    task: Task
    plan: Plan
    ledger: Ledger
    count: int = 0
    round: list[int] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    broke: bool = False
    ended: bool = False
    rate: float = 0.0


class Driver:
    """Carries out the plans of ``tasks`` on ``rig``, each within ``budget``, into ``store``."""

    def __init__(self, tasks: Sequence[Task], plan: PlanMaker, rig: Rig, budget: Budget, store: Store):
        self.rig, self.budget, self.store = rig, budget, store
        self.record = Record.read(store)
        self.threads = [Thread(task, plan(task), Ledger(budget)) for task in tasks]
        self.queue: deque[Job] = deque()
        self.active: list[Job] = []
        self.failures = 0
        self._states: dict[int, State] = {}

    # ---- plans ---------------------------------------------------------------------------------------------------

    def run(self, progress: Progress | None = None) -> None:
        """To the end of every plan or budget. May be interrupted at any point and run again from the store."""
        for thread in self.threads:
            self._advance(thread, None)
        while self.queue or self.active:
            self._fill()
            if self.active:
                self._tick()
            if progress:
                progress(self)
        if not self.record.done:
            self.store.append([("done", None, None, {})])

    def _advance(self, thread: Thread, outcomes: list[Outcome] | None) -> None:
        """Hand a plan its outcomes until it proposes work that is not recorded yet, or ends."""
        while not thread.ended:
            try:
                proposals = next(thread.plan) if outcomes is None else thread.plan.send(outcomes)
            except StopIteration:
                return self._end(thread)
            except SecondlookError:
                raise
            except Exception as error:
                self.store.append([("failure", thread.task.index, None, {"plan": traceback.format_exc()})])
                raise SecondlookError(
                    f"The plan failed ({type(error).__name__}: {error}). The run is kept, with the traceback in its log; "
                    "mend the plan and resume."
                ) from None
            if not proposals:
                raise SecondlookError("The plan proposed nothing; a plan ends by returning.")
            if self._admit(thread, list(proposals)):
                return None
            if thread.broke or not thread.round:
                return self._end(thread)
            outcomes = [thread.outcomes[n] for n in thread.round]
        return None

    def _admit(self, thread: Thread, proposals: list[Proposal]) -> int:
        """Enqueue what the budget pays for, in order; recorded outcomes are taken from the log. Returns the number
        of proposals that must be worked on."""
        thread.round, waiting = [], 0
        for proposal in proposals:
            n, number = thread.count, self._id(thread, thread.count)
            begin = start_time(self.rig, proposal.move, lambda i: self._outcome(i).proposal.stop)
            price = self.rig.price(begin, proposal.stop, proposal.ask)
            recorded = self.record.outcomes.get(number)
            closed = thread.task.index in self.record.ended or self._late(thread, price)
            if not thread.ledger.affords(price) or (recorded is None and closed):
                thread.broke = True
                break
            thread.count += 1
            thread.round.append(n)
            thread.ledger.hold(price)
            if recorded is None:
                self.queue.append(Job(thread, n, proposal, price))
                waiting += 1
                continue
            if recorded.proposal.move != proposal.move or recorded.proposal.stop != proposal.stop:
                raise ReplayError(
                    f"Outcome {number} was recorded as {recorded.proposal.move} to {recorded.proposal.stop}; the plan now "
                    f"proposes {proposal.move} to {proposal.stop}. Resume with the release that made the run."
                )
            self._pay(thread, price, self.record.costs[number])
            thread.outcomes[n] = recorded
        return waiting

    def _pay(self, thread: Thread, price: Cost, cost: Cost) -> None:
        thread.rate = cost.seconds / max(1, cost.nfe)
        thread.ledger.charge(price, cost)

    def _late(self, thread: Thread, price: Cost) -> bool:
        """Whether a budget in seconds has no room for work of this price, by the pace seen so far."""
        limit = self.budget.seconds
        spent = thread.ledger.spent.seconds
        return limit is not None and thread.count > 0 and spent + thread.rate * price.nfe > limit

    def _end(self, thread: Thread) -> None:
        thread.ended = True
        thread.plan.close()
        index = thread.task.index
        first = {"name": "fresh", "key": thread.task.key.child("draw", 0).hex()}
        plain = [o for o in thread.outcomes.values() if o.finished and o.proposal.move == first]
        if not plain and index not in self.record.baselines:
            proposal = Proposal(first, thread.task.condition, 1.0, "score")
            self.queue.append(Job(thread, BASELINE, proposal, self.rig.price(self.rig.begin, 1.0, "score")))
        if index not in self.record.ended:
            done = [o for o in thread.outcomes.values() if o.finished]
            winner = best(done).id if done else None
            self.store.append([("ended", index, None, {"winner": winner, "out_of_budget": thread.broke})])
        for n in thread.outcomes:  # no move of this task comes any more; a replay makes states again
            self._states.pop(self._id(thread, n), None)
            self.store.drop_state(self._id(thread, n))

    def _id(self, thread: Thread, n: int) -> int:
        """Outcomes are numbered across tasks in a way that does not depend on the order of work."""
        return n * len(self.threads) + thread.task.index

    def _outcome(self, number: int) -> Outcome:
        n, index = divmod(number, len(self.threads))
        return self.threads[index].outcomes[n]

    # ---- work ----------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Give free slots to waiting proposals, in order."""
        while self.queue and len(self.active) < self.rig.rows:
            job = self.queue.popleft()
            thread = job.owner
            if job.n > 0 and self._late(thread, job.price):
                self._drop(job)
                continue
            job.state = start(self.rig, job.proposal.move, lambda i: self._outcome(i).proposal.move, self._state)
            if _arrived(job):  # asked only to look at a row where it stands: no step to pay
                self._arrive([job])
            else:
                self.active.append(job)

    def _drop(self, job: Job) -> None:
        """Give a proposal back that the clock no longer allows, and all that wait behind it."""
        thread = job.owner
        thread.broke = True
        dropped = [job, *(j for j in self.queue if j.owner is thread)]
        self.queue = deque(j for j in self.queue if j.owner is not thread)
        for each in dropped:
            thread.ledger.charge(each.price, Cost())
            thread.round.remove(each.n)
        self._settle(thread)

    def _settle(self, thread: Thread) -> None:
        """Go on with a plan whose whole round is in."""
        if thread.ended or any(n not in thread.outcomes for n in thread.round):
            return
        if thread.broke:
            self._end(thread)
        else:
            self._advance(thread, [thread.outcomes[n] for n in thread.round])

    def _state(self, number: int) -> State:
        """The state an earlier outcome ended in: from memory, from disk, or (a finished row) made again."""
        if number not in self._states:
            saved = self.store.state(number)
            if saved is None:
                saved = rebuild(self.rig, number, lambda i: self._outcome(i).proposal)
                self.store.append([("rebuilt", None, None, {"outcome": number})])
            self._states[number] = saved
        return self._states[number]

    def _tick(self) -> None:
        """One solver step of the rows in the slots, then whatever that finished."""
        jobs = self._batch()
        begin = time.perf_counter()
        before = (self.rig.flow.meter.nfe, self.rig.flow.meter.evals)
        states = self.rig.step(
            [_held(j) for j in jobs], [j.proposal.stop for j in jobs], [j.proposal.condition for j in jobs]
        )
        self._share(jobs, begin, before)
        for job, state in zip(jobs, states, strict=True):
            job.state = state
        arrived = [j for j in jobs if _arrived(j)]
        if arrived:
            self._arrive(arrived)

    def _batch(self) -> list[Job]:
        """The rows to step together: all, or only those that cost what the first does (Heun's last step is cheaper)."""
        solver = self.rig.solver
        if solver.evals(last=True) == solver.evals(last=False):
            return list(self.active)
        last = [self.rig.next_time(float(_held(j).t), j.proposal.stop) >= 1.0 for j in self.active]
        return [j for j, e in zip(self.active, last, strict=True) if e == last[0]]

    def _share(self, jobs: list[Job], begin: float, before: tuple[int, int]) -> None:
        """Charge what the flow's meter counted for a row to each row, and the seconds in equal parts."""
        meter = self.rig.flow.meter
        seconds = (time.perf_counter() - begin) / len(jobs)
        cost = Cost(nfe=meter.nfe - before[0], evals=meter.evals - before[1], seconds=seconds)
        for job in jobs:
            job.cost = job.cost + cost

    def _arrive(self, jobs: list[Job]) -> None:
        """Decode, score, write down and report rows that reached their stop."""
        self.active = [j for j in self.active if not any(j is a for a in jobs)]
        looked = [j for j in jobs if j.proposal.stop < 1.0 and j.proposal.ask == "score"]
        if looked:
            begin, before = time.perf_counter(), (self.rig.flow.meter.nfe, self.rig.flow.meter.evals)
            guesses = self.rig.look([_held(j) for j in looked], [j.proposal.condition for j in looked])
            self._share(looked, begin, before)
        shown = [j for j in jobs if j.proposal.ask == "score" or j.proposal.stop >= 1.0]
        guess = dict(zip((id(j) for j in looked), guesses, strict=True)) if looked else {}
        pictures: dict[int, np.ndarray] = {}
        if shown:
            begin = time.perf_counter()
            samples = self.rig.decode(torch.cat([guess.get(id(j), _held(j).x) for j in shown]))
            scores = self._score(samples, shown)
            share = (time.perf_counter() - begin) / len(shown)
            for job in shown:
                job.cost = job.cost + Cost(verdicts=int(job.proposal.ask == "score"), decodes=1, seconds=share)
            pictures = {id(j): s for j, s in zip(shown, samples.numpy(), strict=True)}
            parts = self._judge(samples, shown)
        for_job = {id(j): (s, p) for j, s, p in zip(shown, scores, parts, strict=True)} if shown else {}
        self._write(jobs, pictures, for_job)

    def _score(self, samples: torch.Tensor, jobs: list[Job]) -> list[float]:
        """The guiding verifier's numbers for rows that ask for one, NaN for the others; NaN and an event where it fails,
        an end to the run after three failures in a row."""
        asked = [i for i, j in enumerate(jobs) if j.proposal.ask == "score"]
        if not asked:
            return [math.nan] * len(jobs)
        verifier = self.rig.verifier
        if verifier is None:
            raise SecondlookError("This rig has no verifier, and a plan asked for scores.")
        try:
            found = [float(v) for v in verifier(samples[asked], [jobs[i].proposal.condition for i in asked])]
            if len(found) != len(asked):
                raise ValueError(f"wanted {len(asked)} scores, got {len(found)}")
            self.failures = 0
            scores = dict(zip(asked, found, strict=True))
            return [scores.get(i, math.nan) for i in range(len(jobs))]
        except Exception as error:
            self.failures += 1
            text = traceback.format_exc()
            self.store.append([("failure", None, None, {"verifier": verifier.name, "traceback": text})])
            if self.failures >= 3:
                raise SecondlookError(
                    f'The verifier "{verifier.name}" failed three times in a row ({type(error).__name__}: {error}). '
                    "The run is kept; mend the verifier and resume."
                ) from None
            return [math.nan] * len(jobs)

    def _judge(self, samples: torch.Tensor, jobs: list[Job]) -> list[dict[str, float]]:
        """What those who only look say of each picture; not charged, and never seen by a plan."""
        conditions = [j.proposal.condition for j in jobs]
        columns = {}
        for name, judge in self.rig.judges.items():
            try:
                columns[name] = [float(v) for v in judge(samples, conditions)]
            except Exception:  # a judge changes nothing in a run, so its failure must not end one
                columns[name] = [math.nan] * len(jobs)
                self.store.append([("failure", None, None, {"judge": name, "traceback": traceback.format_exc()})])
        return [{name: column[i] for name, column in columns.items()} for i in range(len(jobs))]

    def _write(
        self, jobs: list[Job], pictures: dict[int, np.ndarray], verdicts: dict[int, tuple[float, dict[str, float]]]
    ) -> None:
        """Pictures and states first, then one commit that reports them, then the plans go on."""
        events = []
        for job in jobs:
            baseline, number = job.n == BASELINE, self._id(job.owner, job.n)
            picture = pictures.get(id(job))
            if picture is not None:
                self.store.save_picture(f"baseline-{job.owner.task.index:04d}" if baseline else number, picture)
            if job.proposal.stop < 1.0:
                self._states[number] = _held(job)
                self.store.save_state(number, _held(job))
            score, parts = verdicts.get(id(job), (math.nan, {}))
            outcome = Outcome(number, job.proposal, score, parts)
            body = outcome_body(outcome, job.n, job.cost, None if picture is None else sha256(picture))
            index = job.owner.task.index
            events.append(("baseline", index, None, body) if baseline else ("outcome", index, number, body))
            if not baseline:
                job.owner.outcomes[job.n] = outcome
        self.store.append(events)
        for job in jobs:
            if job.n != BASELINE:
                self._pay(job.owner, job.price, job.cost)
        for thread in {id(j.owner): j.owner for j in jobs if j.n != BASELINE}.values():
            self._settle(thread)


def _arrived(job: Job) -> bool:
    return float(_held(job).t) >= job.proposal.stop - EPS


def _held(job: Job) -> State:
    assert job.state is not None
    return job.state


def rebuild(rig: Rig, number: int, proposal_of: Callable[[int], Proposal]) -> State:
    """The final state of an outcome from its derivation alone, through its ancestors where need be. Nothing is
    charged: this is a proof or a repair, not a search."""
    proposal = proposal_of(number)
    state = start(rig, proposal.move, lambda i: proposal_of(i).move, lambda i: rebuild(rig, i, proposal_of))
    while float(state.t) < proposal.stop - EPS:
        [state] = rig.step([state], [proposal.stop], [proposal.condition])
    return state


def replay(rig: Rig, number: int, proposal_of: Callable[[int], Proposal]) -> np.ndarray:
    """An outcome's picture, uint8 [H, W, 3], from its derivation alone."""
    proposal = proposal_of(number)
    state = rebuild(rig, number, proposal_of)
    x = state.x if proposal.stop >= 1.0 else rig.look([state], [proposal.condition])[0]
    return np.asarray(rig.decode(x)[0])
