"""One picture that cannot be judged, one judge that fails, one row that overflows: the others are not harmed, and the log of a
run that was stopped and resumed is the log of one that was not."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from secondlook.engine.driver import Driver
from secondlook.engine.record import Record
from secondlook.engine.rescore import judge_all, rescore
from secondlook.engine.rig import Rig
from secondlook.engine.store import Store
from secondlook.errors import SecondlookError
from secondlook.models.text import TextSiT
from secondlook.plans.moves import fresh
from secondlook.types import Condition, Outcome, Plan, Remark, Task
from tests.helpers import PROMPTS, Brightness, drive, essence, tasks, tiny_rig

ROLES = ("verifier", "critic", "comparer", "judge")
FAULTS = ("raises", "too few answers", "wrong type", "NaN", "inf", "never answers")
RELEASE = threading.Event()  # lets those go that would never answer, so that tests leave no thread behind


def bad(picture: Tensor) -> bool:
    """Whether this is the picture that a faulty judge stumbles over: about one in three, whatever the batch."""
    return int(picture.long().sum()) % 3 == 0


class Faulty:
    """A judge of any role that has one fault with some pictures, and stops the run at a call (counted from 1)."""

    name = "faulty"

    def __init__(self, role: str, fault: str, stop: int | None = None):
        self.role, self.fault, self.stop, self.calls = role, fault, stop, 0

    def __call__(self, samples: Tensor, *rest: Any) -> Any:
        self.calls += 1
        if self.stop is not None and self.calls > self.stop:
            raise KeyboardInterrupt
        marks = [bad(s) for s in samples]
        if any(marks):
            if self.fault == "raises":
                raise RuntimeError("the lamp went out")
            if self.fault == "too few answers":
                return self.good(samples)[:-1]
            if self.fault == "wrong type":
                return {"verdict": "fine"}
            if self.fault == "never answers":
                RELEASE.wait(30)
        found = self.good(samples)
        odd = {"NaN": math.nan, "inf": math.inf}.get(self.fault)
        if odd is not None:
            for i in [i for i, m in enumerate(marks) if m]:
                found[i] = None if self.role == "critic" else odd
        return found

    def good(self, samples: Tensor) -> Any:
        if self.role == "critic":
            return [Remark(f"{float(s.double().mean()):.3f}") for s in samples]
        return samples.double().flatten(1).mean(1) / 255


def everything(task: Task) -> Plan:
    """Two rounds that ask every question."""
    first = yield fresh(task, 6, ask="score+remark")
    second = [replace(p, ask="score+remark+compare", against=first[0].id) for p in fresh(task, 5)]
    yield second


def rigged(network: TextSiT, role: str, fault: str | None, stop: int | None = None) -> Rig:
    rig = tiny_rig(network, rows=4)
    rig.critic, rig.comparer = Faulty("critic", "none"), Faulty("comparer", "none")
    rig.verifier, rig.judges = Brightness(), {"held": Faulty("judge", "none")}
    if fault is not None or stop is not None:
        faulty = Faulty(role, fault or "none", stop)
        if role == "judge":
            rig.judges = {"held": faulty}
        else:
            setattr(rig, role, faulty)
    return rig


def answers(record: Record, number: int) -> dict[str, Any]:
    o: Outcome = record.outcomes[number]
    return {"verifier": o.score, "critic": o.remark, "comparer": o.preference, "judge": record.said(number).get("held")}


@pytest.fixture(autouse=True)
def _released() -> Any:
    RELEASE.clear()
    yield
    RELEASE.set()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("role", ROLES)
def test_a_fault_of_one_judge_with_one_picture_is_that_answers_alone(
    network: TextSiT, tmp_path: Path, role: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secondlook.engine.desk.IN_A_ROW", 100)
    patience = 0.3 if fault == "never answers" else 60.0
    well = drive(tmp_path / "well", rigged(network, role, None), everything)
    faulty = drive(tmp_path / "faulty", rigged(network, role, fault), everything, patience=patience)
    store = Store.open(tmp_path / "faulty")
    hurt = {n for n in faulty.outcomes if bad(torch.from_numpy(store.picture(n).copy()))}
    assert 0 < len(hurt) < len(faulty.outcomes)
    assert faulty.done
    for number in faulty.outcomes:
        mine, theirs = answers(faulty, number), answers(well, number)
        for other in ROLES:
            if other != role or number not in hurt:
                assert str(mine[other]) == str(theirs[other])
        if number in hurt and theirs[role] is not None:
            expected = {"critic": "None"}.get(role, "inf" if fault == "inf" and role != "comparer" else "nan")
            assert str(mine[role]) == expected
    assert faulty.digests == well.digests
    said = {f["outcome"] for f in faulty.failures if role in f}
    expected_events = hurt if fault != "inf" or role in ("critic", "comparer") else set()
    if fault == "NaN" and role == "judge":
        expected_events = set()  # a number like another: a held-out judge may have nothing to say
    assert said == {n for n in expected_events if str(answers(well, n)[role]) != "None"}


@pytest.mark.parametrize("fault", ["raises", "NaN", "inf", "wrong type"])
@pytest.mark.parametrize("role", ROLES)
def test_the_log_of_a_run_that_was_resumed_is_that_of_one_that_was_not(
    network: TextSiT, tmp_path: Path, role: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secondlook.engine.desk.IN_A_ROW", 100)
    whole = drive(tmp_path / "whole", rigged(network, role, fault), everything, prompts=PROMPTS[:2])
    rig = rigged(network, role, fault)
    rig.verifier = Faulty("verifier", fault if role == "verifier" else "none", stop=2)
    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path / "cut", rig, everything, prompts=PROMPTS[:2])
    again = drive(tmp_path / "cut", rigged(network, role, fault), everything, prompts=PROMPTS[:2])
    if role != "verifier":  # the stopped run's verifier has another name, not other numbers
        assert full(again) == full(whole)
    assert essence_without_judges(again) == essence_without_judges(whole)
    assert again.ended == whole.ended


def full(record: Record) -> Any:
    return {n: (str(o), record.digests[n], str(record.said(n))) for n, o in sorted(record.outcomes.items())}


def essence_without_judges(record: Record) -> Any:
    return {n: (str(o), record.digests[n]) for n, o in sorted(record.outcomes.items())}


# ---- rows that overflow ------------------------------------------------------------------------------------------------


class Overflowing:
    """A network whose rows become ``value`` from time 0.5 on where their noise begins with a large number."""

    def __init__(self, inner: Any, value: float):
        self.inner, self.value = inner, value
        self.predicts, self.shape = inner.predicts, inner.shape

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        found: Tensor = self.inner(x, t, cond)
        hit = (x[:, 0, 0, 0] > 0.3) & (t > 0.1)
        return torch.where(hit.view(-1, 1, 1, 1), torch.full_like(found, self.value), found)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_overflows_has_no_picture_and_harms_no_other(network: TextSiT, tmp_path: Path, value: float) -> None:
    def plan(task: Task) -> Plan:
        yield fresh(task, 6)
        yield fresh(task, 2)

    well = drive(tmp_path / "well", tiny_rig(network, guidance=1.0), plan)
    rig = tiny_rig(network, guidance=1.0)
    rig = replace(rig, flow=replace(rig.flow, network=Overflowing(rig.flow.network, value)))
    record = drive(tmp_path / "run", rig, plan)
    lost = {n for n, digest in record.digests.items() if digest is None}
    assert 0 < len(lost) < 8
    assert record.done
    for number, outcome in record.outcomes.items():
        if number in lost:
            assert outcome.score is not None
            assert math.isnan(outcome.score)
        else:
            assert (outcome.score, record.digests[number]) == (well.outcomes[number].score, well.digests[number])
    assert {f["outcome"] for f in record.failures} == lost
    winner = record.winner(0)
    assert winner is not None
    assert winner.id not in lost
    again = tiny_rig(network, guidance=1.0)
    assert essence(drive(tmp_path / "run", again, plan)) == essence(record)  # a finished run says the same


# ---- judges beside the network -----------------------------------------------------------------------------------------


class Slow(Brightness):
    """Takes its time, as a judge behind an interface does; notes when it was asked."""

    name = "slow"

    def __init__(self, seconds: float):
        self.seconds, self.asked = seconds, 0

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        self.asked += 1
        time.sleep(self.seconds)
        return super().__call__(samples, conditions)


class Watched:
    """A network that notes how often it was asked while a verifier was at work."""

    def __init__(self, inner: Any):
        self.inner, self.during, self.busy = inner, 0, threading.Event()
        self.predicts, self.shape = inner.predicts, inner.shape

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.during += self.busy.is_set()
        found: Tensor = self.inner(x, t, cond)
        return found


def test_the_network_works_on_while_a_verifier_thinks(network: TextSiT, tmp_path: Path) -> None:
    rig = tiny_rig(network, rows=2)
    watched = Watched(rig.flow.network)

    class Thinking(Brightness):
        def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
            watched.busy.set()
            time.sleep(0.2)
            watched.busy.clear()
            return super().__call__(samples, conditions)

    rig = replace(rig, verifier=Thinking(), flow=replace(rig.flow, network=watched))
    record = drive(tmp_path / "run", rig, "random(n=2)", prompts=PROMPTS)
    assert record.done
    assert watched.during > 4  # other prompts' rows were drawn meanwhile


@pytest.mark.parametrize("who", ["verifier", "judge"])
def test_what_is_drawn_does_not_depend_on_how_long_judges_take(network: TextSiT, tmp_path: Path, who: str) -> None:
    plain = tiny_rig(network, rows=3)
    plain.judges = {"slow": Brightness()}
    quick = drive(tmp_path / "quick", plain, "zero_order(neighbours=3)", prompts=PROMPTS[:3], nfe=40)
    rig = tiny_rig(network, rows=3, verifier=Slow(0.02) if who == "verifier" else Brightness())
    rig.judges = {"slow": Slow(0.03) if who == "judge" else Brightness()}
    slow = drive(tmp_path / "slow", rig, "zero_order(neighbours=3)", prompts=PROMPTS[:3], nfe=40)
    assert essence(slow) == essence(quick)


# ---- judging again -----------------------------------------------------------------------------------------------------


def test_what_a_failing_verifier_left_unscored_is_scored_when_it_is_mended(network: TextSiT, tmp_path: Path) -> None:
    rig = tiny_rig(network, verifier=Faulty("verifier", "raises"), rows=1)
    folder = tmp_path / "run"
    record = drive(folder, rig, "random(n=9)")
    store = Store.open(folder)
    lost = [o.id for o in record.of(0) if o.score is not None and math.isnan(o.score)]
    assert lost
    found = rescore(store, Brightness(), tasks(PROMPTS[:1]))
    assert (found.scored, found.failed) == (len(lost), 0)
    now = Record.read(store)
    best = max(Brightness()(torch.from_numpy(np.stack([store.picture(o.id) for o in now.of(0)])), []).tolist())
    winner = now.winner(0)
    assert winner is not None
    assert winner.score == best
    before = record.winner(0)
    assert before is not None
    assert (found.moved == (0,)) is (before.id != winner.id)
    assert [o.score for o in now.of(0) if o.id not in lost] == [o.score for o in record.of(0) if o.id not in lost]
    assert rescore(store, Brightness(), tasks(PROMPTS[:1])).scored == 0  # once is enough


def test_judging_again_gives_no_score_to_what_nobody_asked_one_of(network: TextSiT, tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        yield [*fresh(task, 2), *fresh(task, 2, ask="nothing")]

    drive(tmp_path / "run", tiny_rig(network, verifier=Faulty("verifier", "NaN")), plan)
    store = Store.open(tmp_path / "run")
    rescore(store, Brightness(), tasks(PROMPTS[:1]))
    now = Record.read(store)
    found = [now.latest(o).score for o in now.of(0)]
    assert all(score is not None and math.isfinite(score) for score in found[:2])
    assert found[2:] == [None, None]


def test_another_verifier_judges_a_finished_run_as_one_that_was_held_out(network: TextSiT, tmp_path: Path) -> None:
    drive(tmp_path / "run", tiny_rig(network), "paths(n=2, width=2)", nfe=40)
    store = Store.open(tmp_path / "run")
    shown = {n for n, d in Record.read(store).digests.items() if d}
    assert judge_all(store, "late", Brightness(), tasks(PROMPTS[:1])) == len(shown) + 1  # the unsearched picture too
    now = Record.read(store)
    assert {n for n in now.outcomes if "late" in now.said(n)} == shown
    assert all(now.said(n)["late"] == now.outcomes[n].score for n in shown)


def test_a_judge_that_was_cut_off_is_heard_when_the_run_is_resumed(network: TextSiT, tmp_path: Path) -> None:
    rig = tiny_rig(network, rows=2)
    rig.judges = {"slow": Slow(1.0)}

    class Stopping(Brightness):
        calls = 0

        def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().__call__(samples, conditions)

    rig.verifier = Stopping()
    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path / "run", rig, "random(n=8)")
    before = Record.read(Store.open(tmp_path / "run"))
    assert before.outcomes
    assert any("slow" not in before.said(n) for n in before.outcomes)
    again = tiny_rig(network, rows=2)
    again.judges = {"slow": Brightness()}
    record = drive(tmp_path / "run", again, "random(n=8)")
    heard = set(before.judged)
    assert all(record.said(n) == before.said(n) for n in heard)  # what was answered is not asked again
    rest = {n: o.score for n, o in record.outcomes.items() if n not in heard}
    assert {n: record.said(n)["slow"] for n in rest} == rest


def test_what_judges_said_before_a_stop_is_not_asked_again(network: TextSiT, tmp_path: Path) -> None:
    class Inline(Brightness):
        """Answers at once, and remembers what it was shown."""

        inline = True

        def __init__(self) -> None:
            self.shown: list[bytes] = []

        def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
            self.shown += [s.numpy().tobytes() for s in samples]
            return super().__call__(samples, conditions)

    def stop(driver: Driver) -> None:
        if driver.drawn >= 2:
            raise KeyboardInterrupt

    def judged_by(judge: Inline) -> Rig:
        rig = tiny_rig(network, rows=2, verifier=Inline())
        rig.judges = {"held": judge}
        return rig

    first, second = Inline(), Inline()
    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path / "run", judged_by(first), "random(n=6)", progress=stop)
    record = drive(tmp_path / "run", judged_by(second), "random(n=6)")
    store = Store.open(tmp_path / "run")
    pictures = [store.picture(n).tobytes() for n in record.outcomes]
    assert sorted(first.shown + second.shown) == sorted(pictures)
    assert len(first.shown) >= 2
    assert set(record.judged) == set(record.outcomes)


def test_a_verifier_that_fails_with_every_picture_stops_the_run(network: TextSiT, tmp_path: Path) -> None:
    class Never(Brightness):
        def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
            raise RuntimeError("no model")

    with pytest.raises(
        SecondlookError, match=r'verifier "brightness" failed three times in a row \(RuntimeError: no model\)'
    ):
        drive(tmp_path / "run", tiny_rig(network, verifier=Never()), "random(n=50)")
    assert len(Record.read(Store.open(tmp_path / "run")).outcomes) <= 8  # soon, not at the end of the budget


def test_a_judge_may_be_the_first_to_speak_in_a_resumed_run(network: TextSiT, tmp_path: Path) -> None:
    """The rounds are in the log already, so nothing was written before the first judgement of the new process."""
    rig = tiny_rig(network, rows=4)

    class Stopping(Brightness):
        def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
            raise KeyboardInterrupt

    rig.verifier = Stopping()
    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path / "run", rig, "random(n=4)")
    again = tiny_rig(network, rows=4, verifier=Slow(0.2))  # its score comes after the judge's word
    again.judges = {"quick": Brightness()}
    record = drive(tmp_path / "run", again, "random(n=4)")
    assert {n: record.said(n)["quick"] for n in record.outcomes} == {n: o.score for n, o in record.outcomes.items()}
