"""Judging pictures of a run again: what was never judged, what a failing verifier left unscored, or by another verifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from secondlook.engine.desk import heard, judged, judged_lines
from secondlook.engine.journal import Line
from secondlook.engine.record import Record, baseline_file, baseline_id, number_out
from secondlook.engine.rig import Rig
from secondlook.engine.store import Store
from secondlook.types import Condition, Outcome, Proposal, Task, Verifier

AT_ONCE = 64  # pictures in memory


class Writer(Protocol):
    def write(self, lines: Sequence[Line]) -> None: ...


@dataclass(frozen=True)
class Pictured:
    """An outcome, or a baseline, that has a picture on the disk. number: as the log speaks of it."""

    task: int
    number: int
    file: int | str
    outcome: Outcome


def pictured(record: Record, task: int) -> list[Pictured]:
    """All of a task's."""
    found = [Pictured(task, o.id, o.id, o) for o in record.of(task) if record.digests[o.id] is not None]
    if task in record.baselines and record.base_digests[task] is not None:
        found.append(Pictured(task, baseline_id(task), baseline_file(task), record.baselines[task][0]))
    return found


def judge_missing(store: Store, writer: Writer, rig: Rig, tasks: Sequence[Task]) -> None:
    """Ask each held-out judge of the pictures on which the log has no word of it: a run was stopped before it answered."""
    for name, judge in rig.judges.items():
        todo: Iterator[tuple[Pictured, Condition]] = (
            (p, task.condition)
            for task in tasks
            for record in [Record.read(store, task.index)]
            for p in pictured(record, task.index)
            if name not in record.said(p.number)
        )
        for some in _batches(todo):
            values = _asked(store, judge, some)
            writer.write(
                [
                    line
                    for (p, _), v in zip(some, values, strict=True)
                    for line in judged_lines(p.task, p.number, name, v)
                ]
            )


@dataclass(frozen=True)
class Rescored:
    """scored: pictures that have a score now and had none; failed: those that still have none; moved: prompts (by place) whose
    best picture is another one than before."""

    scored: int
    failed: int
    moved: tuple[int, ...]


def rescore(store: Store, verifier: Verifier, tasks: Sequence[Task]) -> Rescored:
    """Ask the guiding verifier again of every picture that it was asked of and could not judge. The plan's decisions stay what
    they were; the winner is chosen by what is known now."""
    scored, failed, moved = 0, 0, []
    for task in tasks:
        record = Record.read(store, task.index)
        before = record.winner(task.index)
        todo = ((p, task.condition) for p in pictured(record, task.index) if _unscored(record, p))
        for some in _batches(todo):
            values = _asked(store, verifier, some)
            good = [
                (p, v)
                for (p, _), v in zip(some, values, strict=True)
                if not isinstance(v, BaseException) and not math.isnan(v)
            ]
            store.append([("rescored", p.task, None, {"outcome": p.number, "score": number_out(v)}) for p, v in good])
            scored, failed = scored + len(good), failed + len(some) - len(good)
        after = Record.read(store, task.index).winner(task.index)
        if (before and before.id) != (after and after.id):
            moved.append(task.index)
    return Rescored(scored, failed, tuple(moved))


def judge_all(store: Store, name: str, judge: Verifier, tasks: Sequence[Task]) -> int:
    """Another verifier's numbers for every picture of a run, into its log as those of a held-out judge. Returns how many."""
    count = 0
    for task in tasks:
        record = Record.read(store, task.index)
        count += judge_these(store, name, judge, [(p, task.condition) for p in pictured(record, task.index)])
    return count


def judge_these(store: Store, name: str, judge: Verifier, some: Sequence[tuple[Pictured, Condition]]) -> int:
    """The same for some pictures. Beside a score the log keeps, as "NAME: COMPONENT", the components that the verifier names in an
    attribute ``told``."""
    told = tuple(getattr(judge, "told", ()))
    for part in _batches(iter(some)):
        samples = torch.from_numpy(np.stack([store.picture(p.file) for p, _ in part]))
        lines: list[Line] = []
        times = [_time(p.outcome.proposal) for p, _ in part]
        for (p, _), (value, parts) in zip(part, heard(judge, samples, [c for _, c in part], times), strict=True):
            lines += judged_lines(p.task, p.number, name, value)
            for component in (c for c in told if c in parts):
                lines += judged_lines(p.task, p.number, f"{name}: {component}", parts[component])
        store.append(lines)
    return len(some)


def _unscored(record: Record, p: Pictured) -> bool:
    known = record.rescored.get(p.number, p.outcome.score)
    return "score" in p.outcome.proposal.asks and (known is None or math.isnan(known))


def _asked(store: Store, judge: Callable[..., Any], some: Sequence[tuple[Pictured, Condition]]) -> list[Any]:
    samples = torch.from_numpy(np.stack([store.picture(p.file) for p, _ in some]))
    return judged(judge, samples, [c for _, c in some], [_time(p.outcome.proposal) for p, _ in some])


def _time(proposal: Proposal) -> float:
    """As ``Job.shown_at``; the log does not say when the estimate of a free look was made."""
    return math.nan if proposal.stop < 1.0 and proposal.look == "free" else proposal.stop


def _batches(items: Iterator[tuple[Pictured, Condition]]) -> Iterator[list[tuple[Pictured, Condition]]]:
    some: list[tuple[Pictured, Condition]] = []
    for item in items:
        some.append(item)
        if len(some) == AT_ONCE:
            yield some
            some = []
    if some:
        yield some
