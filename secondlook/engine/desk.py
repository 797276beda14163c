"""The desk: what happens to a row once it has arrived. Decoding, verifiers, critics, comparers and judges work in threads of
their own beside the network; where that computes on the CPU, the decoder and judges that are ``inline`` work in its thread.
Whatever fails for one picture is that picture's alone.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook.engine.job import Job
from secondlook.engine.journal import Journal, Line
from secondlook.engine.record import number_out
from secondlook.engine.rig import Rig
from secondlook.engine.workers import Inline, NoAnswer, Worker, left
from secondlook.errors import NotFinite, SecondlookError
from secondlook.types import Condition, Cost
from secondlook.verify import answers

IN_A_ROW = 3  # pictures for which the same judge fails one after the other, before the run stops
PATIENCE = 600.0  # seconds for one answer
LINGER = 10.0  # seconds that a call under way is waited for when the run ends
BYTES = 256 * 2**20  # of pictures that may wait for held-out judges


class Desk:
    """Takes rows that reached their stop, and puts their jobs into ``inbox`` when all that was asked is answered."""

    def __init__(self, rig: Rig, journal: Journal, patience: float = PATIENCE):
        self.rig, self.journal = rig, journal
        self.inbox: queue.SimpleQueue[list[Job]] = queue.SimpleQueue()
        self.pending = 0  # jobs shown and not in the inbox yet
        self.fatal: BaseException | None = None
        self._ending: BaseException | None = None
        self._lock = threading.Lock()
        self._hand: Worker | Inline = Worker("decoder") if rig.beside else Inline()

        def of(judge: Any, name: str) -> Worker | Inline:
            return Inline() if not rig.beside and getattr(judge, "inline", False) else Worker(name, patience)

        self._asked = {
            "score": of(rig.verifier, "verifier"), "remark": of(rig.critic, "critic"), "compare": of(rig.comparer, "comparer")
        }  # fmt: skip
        self._judges = {name: of(judge, f"judge-{name}") for name, judge in rig.judges.items()}
        self._row = dict.fromkeys(self._asked, 0)
        self._behind = 0
        self._seen = self._lost = 0

    # ---- from the engine's thread ------------------------------------------------------------------------------------

    def show(self, jobs: Sequence[Job], x: Tensor) -> None:
        """Decode the rows x [B, *S] of ``jobs`` and ask of each what its proposal asks."""
        with self._lock:
            self.pending += len(jobs)
        for job in jobs:
            job.waiting = set(job.proposal.asks)
        self._hand.do(lambda: _decoded(self.rig.pictures, x), lambda found, took: self._shown(list(jobs), found, took))

    def seen_before(self) -> None:
        """A run that goes on has pictures already: not every row of it overflows."""
        self._seen += 1

    def check(self) -> None:
        """Give up calls that take too long; raise what must stop the run."""
        for worker in (*self._asked.values(), *self._judges.values()):
            worker.check()
        if self.fatal is not None:
            raise self.fatal
        self.journal.check()

    def end(self) -> None:
        """Raise what stops the run once all that is finished is recorded."""
        if self._ending is not None and not self.pending and self.inbox.empty():
            raise self._ending

    @property
    def crowded(self) -> bool:
        """Whether judges are so far behind that the pictures waiting for them would fill the memory."""
        return self._behind > BYTES or self.pending > max(64, 4 * self.rig.rows)

    def finish(self) -> None:
        """Until the held-out judges have caught up."""
        while any(w.waiting for w in self._judges.values()):
            self.check()
            time.sleep(0.002)

    def close(self) -> None:
        """End the threads. A call that is under way may take a little longer; after that it is left to itself."""
        workers = (self._hand, *self._asked.values(), *self._judges.values())
        for worker in workers:
            worker.close()
        until = time.monotonic() + LINGER
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()))

    # ---- from the workers' threads -----------------------------------------------------------------------------------

    def _shown(self, jobs: list[Job], found: Any, took: float) -> None:
        if isinstance(found, BaseException):
            self._stop(found)
            return
        pictures, errors = found
        for job, picture, error in zip(jobs, pictures, errors, strict=True):
            job.cost = job.cost + Cost(decodes=1, seconds=took / len(jobs))
            job.picture, job.failed = picture, error
            if picture is None:
                self._unseen(job)
        self._seen += sum(j.picture is not None for j in jobs)
        self._lost += sum(j.picture is None for j in jobs)
        if not self._seen and self._lost >= IN_A_ROW:
            self._ending = SecondlookError(
                f"Every row drawn so far overflowed ({self._lost} of {self._lost}): the network's numbers are not finite. Load the model in a wider "
                "dtype (--dtype bfloat16 or float32), or check its weights. Nothing recorded is lost.")  # fmt: skip
            self._finish(jobs)  # recorded, so that a resumed run goes on behind them
            return
        self._judge([j for j in jobs if j.picture is not None])
        self._ask_all(jobs)

    def ask(self, jobs: Sequence[Job]) -> None:
        """Ask about pictures that were shown before: nothing is decoded, and held-out judges have seen them."""
        with self._lock:
            self.pending += len(jobs)
        for job in jobs:
            job.waiting = set(job.proposal.asks)
            if job.picture is None:
                job.failed = f"outcome {job.proposal.move.parents[0]} has no picture"
                self._unseen(job)
        self._ask_all(jobs)

    def _ask_all(self, jobs: Sequence[Job]) -> None:
        seen = [j for j in jobs if j.picture is not None]
        for job in seen:
            if "compare" in job.waiting and job.against is None:
                self._unpaired(job)
        done = [j for j in jobs if not j.waiting]  # before the judges are asked, who may answer at once
        for ask, worker in self._asked.items():
            asked = [j for j in seen if ask in j.waiting]
            if asked:
                self._ask(ask, worker, asked)
        self._finish(done)

    def _unseen(self, job: Job) -> None:
        """There is no picture to show: what was asked has no answer, and costs what it would have."""
        if "score" in job.waiting:
            job.score = math.nan
        if "compare" in job.waiting:
            job.preference = math.nan
        asks = job.waiting
        job.cost = job.cost + Cost(verdicts="score" in asks, remarks="remark" in asks, comparisons="compare" in asks)
        job.waiting = set()
        self._report(job, {"row": "decoded", "error": job.failed})

    def _unpaired(self, job: Job) -> None:
        """The picture that it was to be compared with was lost: no answer, at the price of one."""
        job.preference = math.nan
        job.cost = job.cost + Cost(comparisons=1)
        job.waiting.discard("compare")
        said = f"it was to be compared with outcome {job.proposal.against}, which has no picture"
        self._report(job, {"row": "compared", "error": said})

    def _ask(self, ask: str, worker: Worker | Inline, jobs: list[Job]) -> None:
        worker.do(lambda: self._call(ask, jobs), lambda found, took: self._answered(ask, jobs, found, took))

    def _call(self, ask: str, jobs: Sequence[Job]) -> list[Any]:
        samples, conditions = _samples(jobs), [j.owner.task.condition for j in jobs]
        if ask == "score":
            assert self.rig.verifier is not None
            return list(
                zip(
                    *answers.scores(
                        answers.told(self.rig.verifier, samples, conditions, [j.shown_at for j in jobs]), len(jobs)
                    ),
                    strict=True,
                )
            )
        if ask == "remark":
            assert self.rig.critic is not None
            return list(answers.remarks(self.rig.critic(samples, conditions), len(jobs)))
        assert self.rig.comparer is not None
        others = torch.from_numpy(np.stack([j.against for j in jobs if j.against is not None]))
        return answers.shares(self.rig.comparer(samples, others, conditions), len(jobs))

    def _answered(self, ask: str, jobs: list[Job], found: Any, took: float) -> None:
        self._charge(jobs, Cost(seconds=took / len(jobs)))
        if isinstance(found, BaseException) and not isinstance(
            found, Exception
        ):  # whoever raises it means the whole run
            self._stop(found)
            return
        if isinstance(found, Exception) and len(jobs) > 1:  # some picture, not all: each alone
            for job in jobs:
                self._ask(ask, self._asked[ask], [job])
            return
        unit = {"score": "verdicts", "remark": "remarks", "compare": "comparisons"}[ask]
        self._charge(jobs, Cost(**{unit: 1}))
        each = [found] * len(jobs) if isinstance(found, BaseException) else found
        taken = [job for job, answer in zip(jobs, each, strict=True) if self._take(ask, job, answer)]
        with self._lock:
            for job in taken:
                job.waiting.discard(ask)
            done = [
                j for j in taken if not j.waiting
            ]  # under the lock: another judge may be answering for the same job
        self._finish(done)

    def _charge(self, jobs: Sequence[Job], cost: Cost) -> None:
        with self._lock:
            for job in jobs:
                job.cost = job.cost + cost

    def _take(self, ask: str, job: Job, answer: Any) -> bool:
        """Put one answer into its job; an event, and in the end a stop, where there is none. False: the run stops before it."""
        judge = {"score": self.rig.verifier, "remark": self.rig.critic, "compare": self.rig.comparer}[ask]
        role = {"score": "verifier", "remark": "critic", "compare": "comparer"}[ask]
        name = getattr(judge, "name", role)
        if self.fatal is not None:
            return False  # the run stops: this picture will be drawn and judged again
        if isinstance(answer, BaseException):
            self._row[ask] += 1
            self._report(job, {role: name, **_said(answer)})
            if ask != "remark":
                setattr(job, "score" if ask == "score" else "preference", math.nan)
            if self._row[ask] >= IN_A_ROW:
                self._stop(SecondlookError(
                    f'The {role} "{name}" failed three times in a row ({_short(answer)}). The run is kept; mend the {role} and '
                    "resume."))  # fmt: skip
                return False
            return True
        self._row[ask] = 0
        if ask == "score":
            job.score, job.components = answer
        elif ask == "remark":
            job.remark = answer
        else:
            job.preference = answer
        empty = answer is None if ask == "remark" else math.isnan(job.score if ask == "score" else answer)  # type: ignore[arg-type]
        if empty:
            self._report(job, {role: name, "error": "it could not judge this picture"})
        return True

    def _finish(self, jobs: list[Job]) -> None:
        if jobs:
            self.inbox.put(jobs)
            with self._lock:
                self.pending -= len(jobs)  # only now: none pending means that all are in the inbox

    def _stop(self, error: BaseException) -> None:
        """The run cannot go on: said in the engine's thread, which may be waiting."""
        self.fatal = self.fatal or error
        self.inbox.put([])

    def _report(self, job: Job, body: dict[str, Any]) -> None:
        self.journal.tell([("failure", job.owner.task.index, None, {"outcome": job.logged, **body})])

    # ---- held-out judges ---------------------------------------------------------------------------------------------

    def _judge(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        for name in self._judges:
            self.look(name, jobs)

    def look(self, name: str, jobs: Sequence[Job]) -> None:
        """Show pictures to a held-out judge."""
        work = Looking(self, name, jobs)
        with self._lock:
            self._behind += work.bytes
        self._judges[name].do(work.call, work.answer)


class Looking:
    """A held-out judge's look at some pictures: not charged, never seen by a plan, nothing but lines in the log."""

    def __init__(self, desk: Desk, name: str, jobs: Sequence[Job]):
        self.desk, self.name, self.jobs = desk, name, jobs
        self.samples = _samples(jobs)
        self.conditions = [j.owner.task.condition for j in jobs]
        self.times = [j.shown_at for j in jobs]
        self.places = [(j.owner.task.index, j.logged) for j in jobs]
        self.bytes = self.samples.numel()

    def call(self) -> list[float]:
        return judged(self.desk.rig.judges[self.name], self.samples, self.conditions, self.times)

    def answer(self, found: Any, took: float) -> None:
        with self.desk._lock:
            self.desk._behind -= self.bytes
        if isinstance(found, NoAnswer) and len(self.jobs) > 1:  # some picture, not all: each alone
            for job in self.jobs:
                self.desk.look(self.name, [job])
            return
        if isinstance(found, BaseException):
            found = [found] * len(self.places)
        self.desk.journal.tell([line for (task, number), value in zip(self.places, found, strict=True)
                                 for line in judged_lines(task, number, self.name, value)])  # fmt: skip


def judged(
    judge: Callable[..., Any], samples: Tensor, conditions: Sequence[Condition], times: Sequence[float]
) -> list[Any]:
    """A judge's number for each picture; where it fails for all of them together, each alone, with the error as answer."""
    return [value for value, _ in heard(judge, samples, conditions, times)]


def heard(
    judge: Callable[..., Any], samples: Tensor, conditions: Sequence[Condition], times: Sequence[float]
) -> list[tuple[Any, dict[str, float]]]:
    """The same with each picture's named components, of which an error has none."""
    try:
        return list(
            zip(*answers.scores(answers.told(judge, samples.clone(), conditions, times), len(samples)), strict=True)
        )
    except (Exception, SystemExit) as error:
        if len(samples) == 1:
            return [(left(error), {})]
    return [one for i, c in enumerate(conditions) for one in heard(judge, samples[i : i + 1], [c], times[i : i + 1])]


def judged_lines(task: int, number: int, name: str, value: Any) -> list[Line]:
    """The log's lines of one judge's answer; a failure is told apart from a number that is not one."""
    failed = isinstance(value, BaseException)
    said: Line = ("judged", task, None, {"outcome": number, "said": {name: number_out(math.nan if failed else value)}})
    return [("failure", task, None, {"outcome": number, "judge": name, **_said(value)}), said] if failed else [said]


def _decoded(decode: Callable[[Tensor], Tensor], x: Tensor) -> tuple[list[np.ndarray | None], list[str | None]]:
    """The picture of each row, or why there is none: rows that are not finite, and rows that fail alone."""
    pictures: list[np.ndarray | None] = [None] * len(x)
    errors: list[str | None] = ["the row's numbers overflowed: it is not finite"] * len(x)
    rows = [i for i, ok in enumerate(x.flatten(1).isfinite().all(1).tolist()) if ok]
    while rows:
        try:
            found = decode(x[rows] if len(rows) < len(x) else x)
        except NotFinite as error:
            bad = {rows[i] for i in error.rows}
            if not bad or (len(bad) == len(rows) > 1):  # not one of several: it is the decoder, not the rows
                raise
            for i in bad:
                errors[i] = str(error)
            rows = [i for i in rows if i not in bad]
            continue
        except Exception as error:
            if len(rows) == 1 and len(x) > 1:
                errors[rows[0]] = _short(error)
                return pictures, errors
            if len(rows) == 1:
                raise
            return _singly(decode, x, rows, pictures, errors)
        for i, picture in zip(rows, found.numpy(), strict=True):
            pictures[i], errors[i] = picture, None
        break
    return pictures, errors


def _singly(decode: Callable[[Tensor], Tensor], x: Tensor, rows: Sequence[int], pictures: list[np.ndarray | None],
            errors: list[str | None]) -> tuple[list[np.ndarray | None], list[str | None]]:  # fmt: skip
    """Rows that could not be decoded together, each alone. Raises where none can: then it is not the rows."""
    last: Exception | None = None
    for i in rows:
        try:
            pictures[i], errors[i] = decode(x[i : i + 1]).numpy()[0], None
        except Exception as error:
            errors[i], last = _short(error), error
    if last is not None and all(pictures[i] is None for i in rows):
        raise last
    return pictures, errors


def _samples(jobs: Sequence[Job]) -> Tensor:
    return torch.from_numpy(np.stack([j.picture for j in jobs if j.picture is not None]))


def _said(error: BaseException) -> dict[str, str]:
    return {"error": _short(error), "traceback": "".join(traceback.format_exception(error))}


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if not isinstance(error, (NoAnswer, answers.BadAnswer)) else str(error)
