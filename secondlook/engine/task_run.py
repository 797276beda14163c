"""One task's plan and where it stands: its rounds, what the budget lets in, and what the log says happened before.

What decided is in the log and is not decided twice: each round's admissions and what the plan was told of its budget are
events, so a resumed plan sees what it saw, whatever the clock and the other prompts have done since.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from secondlook.engine import climb
from secondlook.engine.derive import begins
from secondlook.engine.job import BASELINE, Job
from secondlook.engine.journal import Journal
from secondlook.engine.ledger import Ledger
from secondlook.engine.record import Record, number_in, number_out, proposal_out
from secondlook.engine.rig import Rig
from secondlook.errors import ConfigError, ReplayError, SecondlookError
from secondlook.flow.grid import EPS
from secondlook.moves import Climb, Fresh
from secondlook.plans.moves import best
from secondlook.types import Cost, Means, Outcome, Plan, Proposal, State, Task

PlanMaker = Callable[[Task], Plan]
FREE = 1000  # rounds one after the other that cost nothing, before a plan is taken to go round in circles


class TaskRun:
    """The plan of one task under way. tasks: how many the run has, which numbers its outcomes. record: what the log holds
    of this task. until: the score of a finished picture with which the search may end."""

    def __init__(
        self, task: Task, plan: PlanMaker, rig: Rig, journal: Journal, ledger: Ledger, tasks: int, record: Record,
        until: float | None = None,
    ):  # fmt: skip
        self.task, self.rig, self.journal, self.ledger, self.tasks = task, rig, journal, ledger, tasks
        self.record, self.until = record, until
        self.outcomes: dict[int, Outcome] = {}
        self.shown: set[int] = set()  # those that have a picture
        self.starts: dict[int, State] = {}  # the states in which outcomes began, those that were costly to make
        self.conditions = {task.condition}  # what the network is told: the task's own, and those that its plan writes
        self.round: list[int] = []
        self.count = 0
        self.broke = False
        self.ended = False
        self.rate: float | None = None  # seconds for an evaluation, as last seen
        self._rounds = list(record.rounds.get(task.index, []))
        self._left: dict[str, float] = {}
        self._free = 0
        self._asked = False  # what is left: whether another budget would have been searched otherwise
        # The plan's own copy: what it does to it decides neither what is judged nor what is keyed. Functions and not methods,
        # whose __self__ would be the whole engine.
        means = Means(lambda: self._told(), lambda proposal: self._price_of(proposal), rig.stochastic)
        self.plan = plan(replace(task, means=means))

    def number(self, n: int) -> int:
        """Outcomes are numbered across tasks in a way that does not depend on the order of work."""
        return n * self.tasks + self.task.index

    def outcome(self, number: int) -> Outcome:
        """An earlier outcome of this task; ConfigError where there is none of that number."""
        n, index = divmod(number, self.tasks)
        if index != self.task.index or n not in self.outcomes:
            raise ConfigError(
                f"There is no outcome {number} of this prompt yet; a proposal can only name earlier ones."
            )
        return self.outcomes[n]

    def proposal(self, number: int) -> Proposal:
        return self.outcome(number).proposal

    def pictured(self, number: int) -> bool:
        """Whether an earlier outcome has a picture: that of a row that overflowed was lost."""
        return self._pictured(number // self.tasks)

    @property
    def reached(self) -> bool:
        """Whether a finished picture is good enough. Told from outcomes alone, so that a resumed run ends where the first did."""
        return self.until is not None and any(
            o.finished and o.score is not None and o.score >= self.until and self._pictured(n)
            for n, o in self.outcomes.items()
        )

    # ---- the plan's turn ---------------------------------------------------------------------------------------------

    def advance(self, outcomes: list[Outcome] | None, late: Callable[[Cost], bool]) -> list[Job]:
        """Hand the plan its outcomes until it proposes work that is not recorded yet, or ends. Returns that work."""
        while not self.ended:
            self._tell()
            if self.reached:
                self._end(None)
                break
            try:
                proposals = next(self.plan) if outcomes is None else self.plan.send([_copy(o) for o in outcomes])
                if not isinstance(proposals, Sequence) or not all(isinstance(p, Proposal) for p in proposals):
                    raise ConfigError(f"A plan must yield lists of proposals; got {_kind(proposals)}.")
                if not proposals:
                    raise ConfigError("The plan proposed nothing; a plan ends by returning.")
                jobs = [self._job(p) for p in proposals]
            except StopIteration as stop:
                self._end(stop.value)
                break
            except SecondlookError:
                raise
            except Exception as error:
                raise self._failed(error) from error
            todo = self._admit(jobs, late)
            if todo:
                return todo
            if self.broke or not self.round:
                self._end(None)
                break
            outcomes = [self.outcomes[n] for n in self.round]
        return []

    def _tell(self) -> None:
        """Fix what the plan is told of its budget in this turn: as it was told then, where the turn is recorded."""
        ended = self.record.ended.get(self.task.index)
        said = self._rounds[0]["left"] if self._rounds else ended["left"] if ended else None
        if said is None:
            self._left = self.ledger.left()
        else:
            self._left = {u: v for u, said_v in said.items() if (v := number_in(said_v)) is not None}

    def _told(self) -> Mapping[str, float]:
        self._asked = True
        return {**self.ledger.left(), **self._left}

    def _price_of(self, proposal: Proposal) -> Cost:
        return self._job(proposal).price

    def _job(self, proposal: Proposal) -> Job:
        """The proposal with its price; ConfigError where it cannot be carried out."""
        for number in proposal.parents:
            self.outcome(number)
        begin = begins(self.rig, proposal, self.proposal)
        self._check(proposal, begin)
        known = self._known(proposal)
        price = self.rig.price(
            begin, proposal.stop, proposal.ask, steps=proposal.steps, look=proposal.look, known=known
        )
        if not proposal.move.draws:
            price = replace(price, decodes=0)
        if isinstance(proposal.move, Climb):
            move = proposal.move
            price = price + climb.price(self.rig, self.proposal(move.parent), move.through, move.steps)
        return Job(self, 0, proposal, price, begin, self.rig.times_for(proposal.steps), known)

    def _known(self, proposal: Proposal) -> bool:
        """Whether the first evaluation was paid for when the parent was looked at."""
        if not (proposal.move.keeps and self.rig.reuses):
            return False
        parent = self.proposal(proposal.move.parents[0])
        looked = not parent.finished and bool(parent.asks) and parent.look == "paid"
        return looked and parent.condition == proposal.condition

    def _check(self, proposal: Proposal, begin: float) -> None:
        parents: list[Proposal | None] = [self.proposal(n) for n in proposal.move.parents]
        for parent in parents or [None]:
            proposal.move.check(parent)
        if isinstance(proposal.move, Climb):
            climb.refuse_flat(self.rig)
        if begin > max(proposal.stop, self.rig.begin) + EPS:  # schedules that begin late are no plan's fault
            raise ConfigError(f"A proposal begins at time {begin:g} and would stop before it, at {proposal.stop:g}; time grows while a "
                              "sample is made. Rewind first.")  # fmt: skip
        if proposal.look == "free" and proposal.asks and not proposal.finished and begin > proposal.stop - EPS:
            raise ConfigError(
                'A free look shows the estimate of the last step, and this proposal takes no step; use look="paid".'
            )
        for ask, judge in (("score", self.rig.verifier), ("remark", self.rig.critic), ("compare", self.rig.comparer)):
            if ask in proposal.asks and judge is None:
                name = {"score": "verifier", "remark": "critic", "compare": "comparer"}[ask]
                raise ConfigError(
                    f'This plan asks for "{ask}", and the run has no {name}; name one with {name}=... (--{name}).'
                )
        pictured = [c.outcome for c in proposal.condition.context]
        pictured += [] if proposal.against is None else [proposal.against]
        for number in pictured:
            if not self.proposal(number).shown:
                raise ConfigError(f"Outcome {number} has no picture to show: nothing was asked of it on its way.")
            if not self.proposal(number).move.draws:
                raise ConfigError(f"Outcome {number} has no picture of its own to show; name the one that it is about.")

    def failure(self, error: Exception) -> SecondlookError:
        """What is said where the plan itself fails."""
        return SecondlookError(
            f"The plan failed ({type(error).__name__}: {error}). The run is kept, with the traceback in its log; "
            "mend the plan and resume."
        )

    def _failed(self, error: Exception) -> SecondlookError:
        self.journal.write([("failure", self.task.index, None, {"plan": traceback.format_exc()})])
        return self.failure(error)

    # ---- admission ---------------------------------------------------------------------------------------------------

    def _admit(self, jobs: list[Job], late: Callable[[Cost], bool]) -> list[Job]:
        """Number what the budget pays for, in order; recorded outcomes are taken from the log. Returns what must be
        worked on."""
        recorded = self._rounds.pop(0) if self._rounds else None
        digest = _digest([j.proposal for j in jobs])
        if recorded is None:
            admitted = self._afforded(jobs, late)
            body = {"n": self.count, "count": len(admitted), "proposed": len(jobs), "proposals": digest,
                    "left": {u: number_out(v) for u, v in self._left.items()}}  # fmt: skip
            self.journal.write([("round", self.task.index, None, body)])
        else:
            self._compare(jobs, recorded, digest)
            admitted = jobs[: recorded["count"]]
            for job in admitted:
                self.ledger.hold(job.price)
        self.broke = self.broke or len(admitted) < len(jobs)
        self._free = 0 if any(job.price != Cost() for job in admitted) else self._free + 1
        if self._free >= FREE:
            raise ConfigError(
                f"The plan proposed {FREE} rounds in a row that cost nothing, so no budget would ever end it."
            )
        self.round, todo = [], []
        for job in admitted:
            job.n, self.count = self.count, self.count + 1
            if job.n in self.record.cuts.get(self.task.index, ()):
                self.ledger.charge(job.price, Cost())
                self.broke = True
                continue
            self.round.append(job.n)
            self.conditions.add(job.proposal.condition)
            if job.number not in self.record.outcomes:
                todo.append(job)
                continue
            self.pay(job.price, self.record.costs[job.number])
            self.outcomes[job.n] = self.record.outcomes[job.number]
        return todo

    def _afforded(self, jobs: list[Job], late: Callable[[Cost], bool]) -> list[Job]:
        """The first of ``jobs`` that the budget pays for, promised in the ledger."""
        admitted: list[Job] = []
        for job in jobs:
            if not self.ledger.affords(job.price) or ((self.count or admitted) and late(job.price)):
                break
            self.ledger.hold(job.price)
            admitted.append(job)
        return admitted

    def _compare(self, jobs: list[Job], recorded: Mapping[str, Any], digest: str) -> None:
        """ReplayError where the plan proposes otherwise than it did."""
        for i, job in enumerate(jobs[: recorded["count"]]):
            number = self.number(self.count + i)
            had = self.record.outcomes.get(number)
            if had is not None and had.proposal != job.proposal:
                raise ReplayError(f"Outcome {number} was recorded as {_text(had.proposal)}; the plan now proposes {_text(job.proposal)}. "
                                  "Resume with the plan, the prompts and the release that made the run.")  # fmt: skip
        if digest != recorded["proposals"]:
            raise ReplayError(f"The plan now proposes other work than it did after {self.count} outcomes of prompt {self.task.index}. Resume "
                              "with the plan, the prompts and the release that made the run.")  # fmt: skip

    def pay(self, price: Cost, cost: Cost) -> None:
        if cost.nfe:
            self.rate = cost.seconds / cost.nfe
        self.ledger.charge(price, cost)

    # ---- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The budget is used up: the plan is not asked again."""
        self._end(None)

    def _end(self, returned: Any) -> None:
        self.ended = True
        try:
            self.plan.close()
        except SecondlookError:
            raise
        except Exception as error:
            raise self._failed(error) from error
        index = self.task.index
        if index in self.record.ended:
            return
        named, value = self._named(returned)
        done = [o for n, o in self.outcomes.items() if o.finished and self._pictured(n)]
        winner = named if named is not None else best(done).id if done else None
        left = {u: number_out(v) for u, v in self._left.items()}
        body = {"winner": winner, "named": named, "returned": value, "out_of_budget": self.broke and not self.reached, "left": left,
                "baseline": self.baseline() is not None, "plain": self._plain_number(), "asked": self._asked,
                **({"reached": self.until} if self.reached else {})}  # fmt: skip
        self.journal.write([("ended", index, None, body)])

    def _pictured(self, n: int) -> bool:
        return n in self.shown or self.record.digests.get(self.number(n)) is not None

    def _named(self, returned: Any) -> tuple[int | None, Any]:
        """The winner that a plan's return value names, and the value as the log keeps it. ConfigError for one that is not a
        finished picture of this task."""
        winner = returned.get("winner") if isinstance(returned, Mapping) else returned
        value = {k: v for k, v in returned.items() if k != "winner"} if isinstance(returned, Mapping) else None
        if winner is None:
            return None, _plain(value)
        number = winner.id if isinstance(winner, Outcome) else winner
        if isinstance(number, bool) or not isinstance(number, int):
            return None, _plain(returned)
        n, index = divmod(number, self.tasks)
        if index != self.task.index or n not in self.outcomes or not self.outcomes[n].finished or not self._pictured(n):
            raise ConfigError(f"The plan returned {number} as the winner, which is not the number of a finished picture of its prompt. "
                              "Return an outcome, its id, or nothing.")  # fmt: skip
        return number, _plain(value)

    def _unsearched(self) -> Proposal:
        return Proposal(
            Fresh(self.task.first_key()), self.task.condition, 1.0, "score" if self.rig.verifier else "nothing"
        )

    def _plain_number(self) -> int | None:
        """The outcome that is the unsearched picture, where the plan drew it."""
        first = self._unsearched()
        return next((o.id for o in self.outcomes.values() if _same_picture(o.proposal, first)), None)

    def baseline(self) -> Job | None:
        """The unsearched picture as work, where the plan did not draw it."""
        first = self._unsearched()
        if self._plain_number() is not None or self.task.index in self.record.baselines:
            return None
        price = self.rig.price(self.rig.begin, 1.0, first.ask)
        return Job(self, BASELINE, first, price, self.rig.begin, self.rig.times)


def _copy(outcome: Outcome) -> Outcome:
    """The plan's own: what it does to it decides nothing here."""
    return replace(outcome, components=dict(outcome.components))


def _same_picture(one: Proposal, other: Proposal) -> bool:
    parts = ("move", "condition", "stop", "steps")
    return all(getattr(one, p) == getattr(other, p) for p in parts)


def _digest(proposals: Sequence[Proposal]) -> str:
    text = json.dumps([proposal_out(p) for p in proposals], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _text(proposal: Proposal) -> str:
    return json.dumps(proposal_out(proposal), ensure_ascii=False)


def _kind(value: Any) -> str:
    return (
        type(value).__name__
        if not isinstance(value, Sequence)
        else f"a list with {type(value[0]).__name__ if value else 'nothing'}"
    )


def _plain(value: Any) -> Any:
    """The value in JSON, or as text where it is not literal."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return str(value)
