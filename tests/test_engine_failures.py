"""Verifiers and judges that fail: what a run keeps, when it stops, and that it can go on."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from secondlook.engine.desk import Desk
from secondlook.engine.driver import Driver
from secondlook.engine.job import Job
from secondlook.engine.journal import Journal
from secondlook.engine.record import Record
from secondlook.engine.rig import Rig
from secondlook.engine.store import Store
from secondlook.errors import NotFinite, SecondlookError
from secondlook.models.text import TextSiT
from secondlook.noise import Key
from secondlook.plans.moves import best, fresh
from secondlook.types import Condition, Cost, Plan, Remark, State, Task
from secondlook.verify import answers
from tests import test_context as blobs
from tests.helpers import Brightness, Failing, drive, essence, tasks, tiny_rig

# ---- verifiers that fail ---------------------------------------------------------------------------------------------


def test_a_verifier_that_fails_on_a_batch_is_asked_of_each_picture_alone(network: TextSiT, tmp_path: Path) -> None:
    once = drive(tmp_path / "once", tiny_rig(network, verifier=Failing(lambda n: n == 1), rows=2), "random(n=4)")
    well = drive(tmp_path / "well", tiny_rig(network, rows=2), "random(n=4)")
    assert essence(once) == essence(well)
    assert once.failures == []


def test_a_picture_that_a_verifier_fails_on_is_nan_with_an_event_and_the_others_are_scored(
    network: TextSiT, tmp_path: Path
) -> None:
    verifier = Failing(lambda n: n in (1, 2))  # the first pair, then the first picture alone
    record = drive(tmp_path / "run", tiny_rig(network, verifier=verifier, rows=2), "random(n=4)")
    scores = [o.score for o in record.of(0)]
    assert [math.isnan(s) for s in scores if s is not None] == [True, False, False, False]
    [failure] = record.failures
    assert failure["outcome"] == 0
    assert "the verifier's lamp went out" in failure["traceback"]
    assert record.winner(0) == best(record.of(0)[1:])
    assert record.spent(0).verdicts == 4  # a failed verdict was still asked for


def test_three_failures_in_a_row_stop_a_run_that_can_be_resumed(network: TextSiT, tmp_path: Path) -> None:
    folder, plan = tmp_path / "run", "zero_order(neighbours=3)"
    with pytest.raises(
        SecondlookError, match=r"failed three times in a row .*lamp went out.*mend the verifier and resume"
    ):
        drive(folder, tiny_rig(network, verifier=Failing(lambda n: n > 2), rows=2), plan, nfe=60)
    kept = essence(Record.read(Store.open(folder)))
    assert kept
    record = drive(folder, tiny_rig(network, rows=2), plan, nfe=60)
    assert record.done
    assert len(record.failures) == 3
    assert {i: e for i, e in essence(record).items() if i in kept}.keys() == kept.keys()
    assert len(record.outcomes) == 15


def test_failures_that_are_not_in_a_row_do_not_stop_a_run(network: TextSiT, tmp_path: Path) -> None:
    verifier = Failing(lambda n: n % 3 != 0)
    record = drive(tmp_path / "run", tiny_rig(network, verifier=verifier, rows=1), "random(n=9)")
    assert sum(math.isnan(o.score) for o in record.of(0)) == 6
    assert record.done


def test_a_verifier_of_the_wrong_length_is_a_failure(network: TextSiT, tmp_path: Path) -> None:
    class Short(Brightness):
        def __call__(self, samples: torch.Tensor, conditions: object) -> torch.Tensor:
            return torch.zeros(len(samples) + 1)

    with pytest.raises(
        SecondlookError, match=r"failed three times in a row \(expected 1 number, one a picture; got 2\)"
    ):
        drive(tmp_path / "run", tiny_rig(network, verifier=Short()), "random(n=12)")


@pytest.mark.parametrize(
    ("read", "answer"),
    [
        (answers.numbers, torch.zeros(2, 1)),
        (answers.numbers, np.zeros((2, 3))),
        (answers.numbers, torch.tensor(0.5)),
        (answers.numbers, 0.5),
        (answers.numbers, None),
        (answers.numbers, "01"),
        (answers.numbers, b"01"),
        (answers.numbers, {0: 1.0, 1: 2.0}),
        (answers.numbers, {0.5, 1.5}),
        (answers.numbers, iter([0.5, 1.5])),
        (answers.numbers, [0.5]),
        (answers.numbers, [0.5, None]),
        (answers.numbers, [0.5, [0.5]]),
        (answers.scores, {"colour": [0.1, 0.2]}),
        (answers.scores, {"score": [0.1, 0.2], "colour": [0.1]}),
        (answers.scores, {"score": torch.zeros(2, 2)}),
        (answers.shares, [0.5, 1.5]),
        (answers.shares, [-0.5, 0.5]),
        (answers.remarks, "ab"),
        (answers.remarks, [Remark("x")]),
        (answers.remarks, [Remark("x"), "y"]),
        (answers.remarks, [Remark("x"), Remark(3)]),  # type: ignore[arg-type]
        (answers.remarks, [Remark("x"), Remark("y", "high")]),  # type: ignore[arg-type]
        (answers.remarks, Remark("x")),
    ],
    ids=lambda value: value.__name__ if callable(value) else type(value).__name__,
)
def test_an_answer_of_another_form_is_no_answer(read: Any, answer: Any) -> None:
    with pytest.raises(answers.BadAnswer, match="expected"):
        read(answer, 2)


@pytest.mark.parametrize(
    "answer", [torch.tensor([0.5, 1.5]), np.array([0.5, 1.5]), [0.5, 1.5], (np.float32(0.5), torch.tensor(1.5))]
)
def test_an_answer_is_a_number_a_picture_whatever_holds_them(answer: Any) -> None:
    assert answers.numbers(answer, 2) == [0.5, 1.5]
    assert answers.scores({"score": answer, "colour": answer}, 2)[1] == [{"colour": 0.5}, {"colour": 1.5}]


def test_a_judge_that_fails_only_falls_silent(network: TextSiT, tmp_path: Path) -> None:
    rig = tiny_rig(network, rows=1)
    rig.judges["lamp"] = Failing(lambda n: n < 5)
    record = drive(tmp_path / "run", rig, "random(n=5)")
    assert [math.isnan(record.said(o.id)["lamp"]) for o in record.of(0)] == [True] * 4 + [False]
    assert [f["judge"] for f in record.failures] == ["lamp"] * 4
    assert record.done
    assert not any(math.isnan(o.score) for o in record.of(0) if o.score is not None)


# ---- rows that overflow, and rows that cannot be decoded ---------------------------------------------------------------


class Dark:
    """A comparer that likes the darker picture."""

    name = "dark"

    def __call__(self, samples: Tensor, others: Tensor, conditions: Sequence[Condition]) -> Tensor:
        return (samples.double().flatten(1).mean(1) < others.double().flatten(1).mean(1)).double()


def broken(rig: Rig, numbers: set[int]) -> Rig:
    """The rig, which begins the draws of these numbers with noise that is not finite."""
    start, bad = rig.start, {tasks()[0].key.child("draw", i) for i in numbers}

    def begun(key: Key) -> State:
        state = start(key)
        return replace(state, x=state.x * float("nan")) if key in bad else state

    rig.start = begun  # type: ignore[method-assign]
    return rig


def test_a_row_that_overflowed_costs_what_one_with_a_picture_does_whatever_was_asked(tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        [first] = yield fresh(task, 1)
        asks = ("nothing", "score", "remark", "score+remark")
        yield [p for ask in asks for p in fresh(task, 2, ask=ask)]
        yield [replace(p, ask="score+compare", against=first.id) for p in fresh(task, 2)]

    rig = broken(blobs.rig(), {2, 4, 6, 8, 10})
    rig.comparer = Dark()
    record = drive(tmp_path / "run", rig, plan)
    assert [n for n, digest in record.digests.items() if digest is None] == [2, 4, 6, 8, 10]
    for n in (1, 3, 5, 7, 9):
        well, lost = record.outcomes[n], record.outcomes[n + 1]
        assert record.costs[n + 1].with_seconds(0) == record.costs[n].with_seconds(0), well.proposal.ask
        for one, other in ((well.score, lost.score), (well.preference, lost.preference)):
            assert (other is None) == (one is None)  # a question without an answer is not one that was not asked
            assert other is None or math.isnan(other)


def test_a_row_that_cannot_be_decoded_is_lost_alone(tmp_path: Path) -> None:
    drawn: list[Tensor] = []
    rig = blobs.rig()
    decode = rig.decode
    rig.decode = lambda x: (drawn.append(x.clone()), decode(x))[1]
    well = drive(tmp_path / "well", rig, "random(n=4)")
    bad = torch.cat(drawn)[2]

    def fails(x: Tensor) -> Tensor:
        if any(torch.equal(row, bad) for row in x):
            raise RuntimeError("no such colour")
        return decode(x)

    def names(x: Tensor) -> Tensor:
        hit = tuple(i for i, row in enumerate(x) if torch.equal(row, bad))
        if hit:
            raise NotFinite("the decoder overflowed", hit)
        return decode(x)

    for name, decoding, said in (
        ("fails", fails, "RuntimeError: no such colour"), ("names", names, "the decoder overflowed")
    ):  # fmt: skip
        rig = blobs.rig()
        rig.decode = decoding
        record = drive(tmp_path / name, rig, "random(n=4)")
        assert record.done
        assert {n: d for n, d in record.digests.items() if n != 2} == {n: d for n, d in well.digests.items() if n != 2}
        assert record.digests[2] is None
        assert [(f["outcome"], f["error"]) for f in record.failures] == [(2, said)]


# ---- how far the network runs ahead ------------------------------------------------------------------------------------


def test_the_network_waits_for_held_out_judges_that_are_far_behind_and_goes_on_when_they_have_caught_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secondlook.engine.desk.BYTES", 0)

    class Slow(Brightness):
        seen = 0

        def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
            time.sleep(0.3)
            self.seen += len(samples)
            return super().__call__(samples, conditions)

    judge, ahead, begun = Slow(), [0], time.monotonic()

    def watch(driver: Driver) -> None:
        ahead.append(driver.drawn - judge.seen)
        assert time.monotonic() - begun < 20, "it does not go on"

    rig = blobs.rig(rows=4)
    rig.judges = {"slow": judge}
    record = drive(tmp_path / "run", rig, "random(n=8)", progress=watch)
    assert len(record.outcomes) == judge.seen == 8
    assert max(ahead) <= 4  # what was under way when the judge fell behind


def test_no_more_pictures_wait_for_a_verifier_than_a_few_batches(tmp_path: Path) -> None:
    go, most = threading.Event(), [0]

    class Stuck(Brightness):
        def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
            go.wait(0.4)
            go.set()
            return super().__call__(samples, conditions)

    rig = blobs.rig(rows=16)
    rig.verifier = Stuck()
    record = drive(tmp_path / "run", rig, "random(n=160)", progress=lambda d: most.append(d.desk.pending))
    assert len(record.outcomes) == 160
    assert max(most) <= 64 + 16


def test_as_shipped_a_quarter_of_a_gigabyte_of_pictures_may_wait_for_judges(tmp_path: Path) -> None:
    desk = Desk(blobs.rig(), Journal(Store.create(tmp_path / "run", {"prompts": ["a"]})))
    desk._behind = 2**28
    assert not desk.crowded
    desk._behind += 1
    assert desk.crowded


# ---- judges that answer at once ----------------------------------------------------------------------------------------


class Meeting:
    """Lets the threads that come wait for each other, so that they go on at the same moment."""

    def __init__(self, threads: int):
        self.barrier = threading.Barrier(threads, timeout=10)

    def of(self, answer: Callable[[Tensor], Any]) -> Any:
        def judge(samples: Tensor, *rest: Any) -> Any:
            self.barrier.wait()
            return answer(samples)

        return judge


def meeting_rig() -> Rig:
    """A rig whose verifier and critic answer at the same moment."""
    rig, meeting = blobs.rig(), Meeting(2)
    rig.verifier = meeting.of(lambda samples: Brightness()(samples, []))
    rig.critic = meeting.of(lambda samples: [Remark("fine")] * len(samples))
    return rig


def both(task: Task) -> Plan:
    for _ in range(3):
        yield fresh(task, 2, ask="score+remark")


def test_judges_that_answer_at_the_same_moment_are_both_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Cost.__add__

    def slowly(self: Cost, other: Cost) -> Cost:
        if threading.current_thread().name in ("secondlook-verifier", "secondlook-critic"):
            time.sleep(0.005)
        return add(self, other)

    monkeypatch.setattr(Cost, "__add__", slowly)
    record = drive(tmp_path / "run", meeting_rig(), both)
    assert [(c.verdicts, c.remarks) for c in record.costs.values()] == [(1, 1)] * 6


def test_a_row_whose_judges_answer_at_the_same_moment_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(set):  # type: ignore[type-arg]
        """A set that takes its time to say whether it is empty."""

        def __len__(self) -> int:
            time.sleep(0.005)
            return super().__len__()

    monkeypatch.setattr("secondlook.engine.desk.set", Slow, raising=False)
    record = drive(tmp_path / "run", meeting_rig(), both)
    assert record.done
    assert len(record.outcomes) == 6


def test_rows_are_counted_as_pending_until_they_are_in_the_inbox(tmp_path: Path) -> None:
    """Shown by one thread and finished by another, at the same moment."""
    early: list[int] = []

    class Slow(Desk):
        """A desk whose counter takes its time between being read and being set."""

        _pending = finished = 0

        @property
        def pending(self) -> int:
            found = self._pending
            time.sleep(0.002)
            return found

        @pending.setter
        def pending(self, value: int) -> None:
            self.finished += value < self._pending
            if self.finished > self.inbox.qsize():
                early.append(value)
            self._pending = value

    rig, [task] = blobs.rig(), tasks()
    rig.beside = True  # so that the decoder has a thread of its own
    desk = Slow(rig, Journal(Store.create(tmp_path / "run", {"prompts": ["a"]})))
    for n, proposal in enumerate(fresh(task, 10, ask="nothing")):
        job = Job(SimpleNamespace(task=task), n, proposal, Cost(), 1.0, rig.times)  # type: ignore[arg-type]
        desk.show([job], rig.start(Key.root(n)).x)
    until = time.monotonic() + 10
    while desk.inbox.qsize() < 10 and time.monotonic() < until:
        time.sleep(0.002)
    desk.close()
    assert [job.n for [job] in (desk.inbox.get(timeout=1) for _ in range(10))] == list(range(10))
    assert desk.pending == 0
    assert not early
