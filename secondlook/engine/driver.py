"""The driver: runs the plans of a window of prompts at once and packs their rows, at whatever time each is, into one step.

A resumed run replays its recorded outcomes into fresh plans, so nothing is drawn or paid twice. Decoding, judging and the
disk work beside the network (desk.py, journal.py); what they do decides neither a row's bits nor what the log says of it.
"""

from __future__ import annotations

import queue
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from secondlook.engine.derive import Again, Derivation
from secondlook.engine.desk import PATIENCE, Desk
from secondlook.engine.job import Job
from secondlook.engine.journal import Journal
from secondlook.engine.ledger import Budget, Ledger, share
from secondlook.engine.record import Record, baseline_file, outcome_body
from secondlook.engine.rescore import judge_missing
from secondlook.engine.rig import Rig, Work
from secondlook.engine.slots import Slots, detached, put
from secondlook.engine.states import States
from secondlook.engine.store import Store, sha256
from secondlook.engine.task_run import PlanMaker, TaskRun
from secondlook.types import Cost, Outcome, State, Task

RECENT = 64  # pictures kept for proposals that point to them; others are read from the disk
Progress = Callable[["Driver"], None]


class Driver:
    """Carries out the plans of ``tasks`` on ``rig``, each within ``budget`` and all within ``total``, into ``store``.

    window: how many tasks are under way at once, at most (None: enough to fill the rig's rows twice); memory and files held do
    not grow with the number of tasks beyond it. patience: seconds for one answer of a judge. until: a prompt ends when a finished picture has this score; its rows under way are finished.
    """

    def __init__(
        self, tasks: Sequence[Task], plan: PlanMaker, rig: Rig, budget: Budget, store: Store, *, total: Budget | None = None,
        window: int | None = None, patience: float = PATIENCE, until: float | None = None,
    ):  # fmt: skip
        self.tasks, self.plan, self.rig, self.budget, self.store = tasks, plan, rig, budget, store
        self.until = until
        self.window = window or max(8, 2 * rig.rows)
        self.total = Ledger(total or Budget())
        self.journal = Journal(store)
        self.desk = Desk(rig, self.journal, patience)
        self.states = States(store)
        self.slots = Slots(rig)
        self.queue: deque[Job] = deque()
        self.runs: dict[int, TaskRun] = {}
        self.ended = 0
        self.drawn = 0
        self.best: dict[int, float] = {}
        self.pace: float | None = None  # seconds for an evaluation of one row, as last seen
        self._ticked = False
        self._waiting: Iterator[Task] = iter(())
        self._unbegun = len(tasks)
        self._under_way: dict[int, int] = {}
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()  # pictures by outcome, of tasks under way

    # ---- the run -----------------------------------------------------------------------------------------------------

    def run(self, progress: Progress | None = None) -> None:
        """To the end of every plan or budget. May be interrupted at any point and run again from the store."""
        if self.store.has("done"):
            return
        resumed = self.store.has("outcome") or self.store.has("baseline")
        self._waiting = iter(self.tasks)
        with ExitStack() as at_end:  # last in, first out; each is done whatever the others meet with
            at_end.callback(self.journal.close)
            at_end.callback(self.slots.drop)
            at_end.callback(self.desk.close)
            self._open()
            while self.runs:
                while self._fill():
                    pass
                if self.slots.jobs and not self.desk.crowded:
                    self._tick()
                self._collect(wait=not self.slots.jobs or self.desk.crowded)
                if progress:
                    progress(self)
            self.desk.finish()
            if resumed:
                self.journal.flush()
                judge_missing(self.store, self.journal, self.rig, self.tasks)
            self.journal.write([("done", None, None, {})])

    @property
    def under_way(self) -> int:
        """Proposals that wait, are drawn, or are judged."""
        return len(self.queue) + len(self.slots) + self.desk.pending

    def _open(self) -> None:
        """Begin tasks until the window is full."""
        begun = False
        while len(self.runs) < self.window and (task := next(self._waiting, None)) is not None:
            record = Record.read(self.store, task.index)
            self._unbegun -= 1
            if any(record.digests.values()):
                self.desk.seen_before()
            if _settled(task, record):
                self.ended += 1
                for number in record.tasks.get(task.index, []):
                    self.total.charge(Cost(), record.costs[number])
                continue
            record.judged.clear()  # what held-out judges said has no business where plans are
            self._begin(task, record)
            begun = True
        if begun and self.rig.settle is not None:
            self.rig.settle()

    def _begin(self, task: Task, record: Record) -> None:
        budget = self.budget
        if not self.total.budget.endless:
            limits = record.began.get(task.index, {}).get("limits")
            if limits is None:
                ledgers = {i: r.ledger for i, r in self.runs.items()}
                limits = share(self.total, ledgers, self._unbegun + 1).limits
                self.journal.write([("began", task.index, None, {"limits": limits})])
            own = {k: min(v, self.budget.limits.get(k, v)) for k, v in limits.items()}
            budget = Budget(**{**self.budget.limits, **own})
        run = TaskRun(
            task, self.plan, self.rig, self.journal, Ledger(budget, self.total), len(self.tasks), record, self.until
        )
        self.runs[task.index] = run
        if self.rig.settle is not None:
            self.rig.encoded(task.condition)
        self._go_on(run, run.advance(None, self._lateness(run)))

    def _go_on(self, run: TaskRun, jobs: list[Job]) -> None:
        """Queue what a plan proposed, or what its end asks for."""
        self.queue.extend(jobs)
        if jobs and run.reached:  # as where a run was stopped between that picture and what follows from it
            self._drop(run)
            return
        if run.ended and not jobs:
            last = run.baseline()
            if last is not None:
                self.queue.append(last)
            else:
                self._close(run)

    def _close(self, run: TaskRun) -> None:
        """Forget a task that has ended."""
        for n in run.outcomes:
            self.states.drop(run.number(n))
            self._recent.pop(run.number(n), None)
        self._under_way.pop(run.task.index, None)
        del self.runs[run.task.index]
        self.rig.forget(run.conditions - set().union(*(r.conditions for r in self.runs.values())))
        self.ended += 1

    def _lateness(self, run: TaskRun) -> Callable[[Cost], bool]:
        return lambda price: self._late(run, price)

    def _late(self, run: TaskRun, price: Cost) -> bool:
        """Whether a budget in seconds has no room for work of this price, by the pace seen so far."""
        limit = run.ledger.budget.seconds
        pace = run.rate if run.rate is not None else self.pace
        if limit is None or pace is None:
            return False
        return run.ledger.spent.seconds + pace * (price.nfe + self._under_way.get(run.task.index, 0)) > limit

    def _fill(self) -> bool:
        """Give what is free in the slots to waiting proposals, in order; whether any entered. Again and again, some kind of row has a
        full batch in the end."""
        entering: list[Job] = []
        again: list[Job] = []
        room = self.slots.free
        while self.queue and len(entering) + len(again) < room:
            job = self.queue[0]
            run = job.owner
            timed = run.ledger.budget.seconds is not None and not job.baseline
            if timed and self.pace is None and (entering or self.slots.jobs or self.desk.pending):
                break  # the first row's steps tell what the others will cost
            self.queue.popleft()
            if timed and (run.outcomes or self._under_way.get(run.task.index)) and self._late(run, job.price):
                run.broke = True
                self._drop(run, job)
                continue
            self._under_way[run.task.index] = self._under_way.get(run.task.index, 0) + job.price.nfe
            if not job.proposal.move.draws:
                self._recall(job)
                again.append(job)
                continue
            self._load(job)
            entering.append(job)
        self.slots.enter(entering)
        self.desk.ask(again)
        return bool(entering or again)

    def _load(self, job: Job) -> None:
        """The state that a job begins from, and the pictures it needs."""
        run, proposal = job.owner, job.proposal
        spent: list[Cost] = []
        source = Derivation(self.rig, run.proposal, lambda number: self._state(run, number), run.starts, spent.append)
        job.state = proposal.move.state(source)
        if proposal.move.costly:
            run.starts[job.number], job.cost = job.state, job.cost + spent.pop()
        if spent:  # the starts of earlier outcomes, which a run that goes on has lost
            self.journal.write(
                [("rebuilt", run.task.index, None, {"outcome": job.logged, "cost": sum(spent, Cost()).as_dict()})]
            )
        told = [c.outcome for c in proposal.condition.context]
        job.pictures = [self._picture(run, number) for number in told]
        if proposal.against is not None:
            job.against = self._picture(run, proposal.against)
        lost = [number for number, picture in zip(told, job.pictures, strict=True) if picture is None]
        if lost:
            said = f"its condition points to {_named(lost)} without a picture, of which the network was told nothing"
            self.journal.write(
                [("failure", run.task.index, None, {"outcome": job.logged, "row": "told", "error": said})]
            )

    def _recall(self, job: Job) -> None:
        """The pictures of a job that draws nothing."""
        run, proposal = job.owner, job.proposal
        job.picture = self._picture(run, proposal.move.parents[0])
        if proposal.against is not None:
            job.against = self._picture(run, proposal.against)

    def _picture(self, run: TaskRun, number: int) -> np.ndarray | None:
        """An earlier outcome's picture; None where it was lost, as that of a row that overflowed."""
        if not run.pictured(number):
            return None
        if number not in self._recent:
            self.journal.flush()
            return self.store.picture(number)
        return self._recent[number]

    def _state(self, run: TaskRun, number: int) -> State:
        """The state an earlier outcome ended in; made again where it was lost."""
        found = self.states.find(number)
        if found is None:
            spent: list[Cost] = []
            shown = partial(self._picture, run)
            [found] = detached(Again(self.rig, run.proposal, shown, spent.append, looked=True).state(number))
            cost = sum(spent, Cost())
            self.journal.write([("rebuilt", run.task.index, None, {"outcome": number, "cost": cost.as_dict()})])
            self.states.keep(number, found, half_made=not run.proposal(number).finished)
        return found

    def _drop(self, run: TaskRun, *first: Job) -> None:
        """Give back ``first`` and all of its task that wait: the clock does not allow them, or a picture is good enough."""
        dropped = [*first, *(j for j in self.queue if j.owner is run and not j.baseline)]
        self.queue = deque(j for j in self.queue if j.owner is not run or j.baseline)
        for each in dropped:
            run.ledger.charge(each.price, Cost())
            run.round.remove(each.n)
        if dropped:
            self.journal.write([("cut", run.task.index, None, {"dropped": [j.n for j in dropped]})])
        self._settle(run)
        self._open()

    def _tick(self) -> None:
        """One solver step of the rows of one kind; then what is finished goes to the desk, in full batches as long as the network has
        full batches to step."""
        begin = time.perf_counter()
        stepped = self.slots.step()
        if stepped is not None:
            jobs, cost = stepped
            seconds = (time.perf_counter() - begin) / len(jobs)
            for job in jobs:
                job.cost = job.cost + cost.with_seconds(seconds)
            if self.pace is None and self._ticked and cost.nfe:  # a first step also warms up
                self.pace = seconds / cost.nfe
            self._ticked = True
        rows = self.rig.rows
        while (arrived := self.slots.arrived[:rows]) and (len(arrived) == rows or not self.slots.full(len(self.queue))):
            self._arrive(arrived, self.slots.leave(arrived))

    def _arrive(self, jobs: list[Job], state: State) -> None:
        """Rows that reached their stop: looked at where they are half-made, then kept, and shown to the desk."""
        shown = state.x
        paid = [i for i, j in enumerate(jobs) if j.half_made and j.proposal.asks and j.proposal.look == "paid"]
        free = [i for i, j in enumerate(jobs) if j.half_made and j.proposal.asks and j.proposal.look == "free"]
        if paid:
            state, shown = self._look(jobs, state, paid, shown)
        if free:
            assert state.data is not None
            shown = shown.clone()
            shown[free] = state.data[free]
        for job, one in zip(jobs, detached(state), strict=True):
            job.state = one
        seen = [i for i, j in enumerate(jobs) if j.proposal.shown]
        if seen:
            self.desk.show([jobs[i] for i in seen], shown[seen] if len(seen) < len(jobs) else shown)
        if len(seen) < len(jobs):
            self._report([j for j in jobs if not j.proposal.shown])

    def _look(self, jobs: list[Job], state: State, at: list[int], shown: Any) -> tuple[State, Any]:
        """The rows ``at`` with what the network says of them where they stand, and the data that it predicts."""
        for known in (False, True):
            some = [i for i in at if jobs[i].known == known]
            if not some:
                continue
            begin = time.perf_counter()
            looked = [jobs[i] for i in some]
            pictures = tuple(j.pictures for j in looked) if any(j.pictures for j in looked) else None
            work = Work(
                state.rows(some),
                tuple(j.t for j in looked),
                tuple(j.proposal.condition for j in looked),
                known,
                pictures,
            )
            told, data, cost = self.rig.estimate(work)
            state = put(state, some, told)
            shown = shown.clone()
            shown[some] = data
            seconds = (time.perf_counter() - begin) / len(some)
            for job in looked:
                job.cost = job.cost + cost.with_seconds(seconds)
        return state, shown

    def _collect(self, wait: bool) -> None:
        """Report what the desk has finished; ``wait`` for it where the network has nothing to do."""
        found: list[Job] = []
        if wait and (self.desk.pending or self.desk.crowded) and self.desk.inbox.empty():
            try:
                found += self.desk.inbox.get(timeout=0.05)
            except queue.Empty:
                self.desk.check()
                return
        while not self.desk.inbox.empty():
            found += self.desk.inbox.get()
        if found:  # before what may stop the run: nothing that was answered is lost
            self._report(found)
        self.desk.check()
        self.desk.end()

    def _report(self, jobs: list[Job]) -> None:
        """Hand pictures and the events that report them to the journal, then the plans go on."""
        events, pictures = [], []
        for job in jobs:
            run, index = job.owner, job.owner.task.index
            name = baseline_file(index) if job.baseline else job.number
            if job.drawn is not None:
                pictures.append((name, job.drawn))
            digest = None if job.drawn is None else sha256(job.drawn)
            outcome = Outcome(job.logged, job.proposal, job.score, job.components, job.remark, job.preference)
            body = outcome_body(outcome, job.n, job.cost, digest)
            if job.failed is not None:
                body["failed"] = job.failed
            events.append(("baseline", index, None, body) if job.baseline else ("outcome", index, job.number, body))
            if not job.baseline:
                self._note(run, job, outcome)
        self.journal.write(events, pictures)  # type: ignore[arg-type]
        for run in {id(j.owner): j.owner for j in jobs}.values():
            if any(j.baseline and j.owner is run for j in jobs):
                self._close(run)
            else:
                self._drop(run) if run.reached and not run.ended else self._settle(run)
        self._open()

    def _note(self, run: TaskRun, job: Job, outcome: Outcome) -> None:
        index = run.task.index
        run.outcomes[job.n] = outcome
        if job.drawn is not None:
            run.shown.add(job.n)
            self._recent[job.number] = job.drawn
            while len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        if job.state is not None:
            self.states.keep(job.number, job.state, half_made=job.half_made)
        run.pay(job.price, job.cost)
        if job.cost.nfe:
            self.pace = job.cost.seconds / job.cost.nfe
        self._under_way[index] = self._under_way.get(index, 0) - job.price.nfe
        self.drawn += 1
        if outcome.finished and outcome.score is not None and outcome.score == outcome.score:
            self.best[index] = max(self.best.get(index, outcome.score), outcome.score)

    def _settle(self, run: TaskRun) -> None:
        """Go on with a plan whose whole round is in."""
        if run.ended or any(n not in run.outcomes for n in run.round):
            return
        if run.broke:
            run.finish()
            self._go_on(run, [])
        else:
            self._go_on(run, run.advance([run.outcomes[n] for n in run.round], self._lateness(run)))


def _settled(task: Task, record: Record) -> bool:
    """Whether nothing is left to do for a task: its plan has ended, and its unsearched picture is there."""
    ended = record.ended.get(task.index)
    return ended is not None and (not ended["baseline"] or task.index in record.baselines)


def _named(numbers: Sequence[int]) -> str:
    return f"outcome{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
