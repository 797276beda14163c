"""What stands between plans, judges, threads and the disk: walls, crowds, late answers, the order of writing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from secondlook.engine import desk as desks
from secondlook.engine.derive import Derivation
from secondlook.engine.desk import Desk
from secondlook.engine.driver import Driver
from secondlook.engine.journal import Journal
from secondlook.engine.ledger import Budget
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.engine.workers import NoAnswer, Worker
from secondlook.errors import ConfigError
from secondlook.flow.grid import grid
from secondlook.models.text import TextSiT
from secondlook.moves import Fresh, Near
from secondlook.noise import Key
from secondlook.plans.moves import fresh
from secondlook.types import Condition, Context, Plan, Proposal, Remark, State, Task
from tests.helpers import PROMPTS, STEPS, drive, open_or_create, tasks, tiny_rig


def stop_when(test: Callable[[Driver], bool]) -> Callable[[Driver], None]:
    def stop(driver: Driver) -> None:
        if test(driver):
            raise KeyboardInterrupt

    return stop


def many(task: Task) -> Plan:
    while True:
        yield fresh(task, 6)


# ---- walls around plans ----------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_hands_plans_nothing_of_what_judges_said(network: TextSiT, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path / "run", tiny_rig(network), "random(n=9)", progress=stop_when(lambda d: d.drawn >= 4))
    seen = []

    def look(driver: Driver) -> None:
        seen.extend(r.record for r in driver.runs.values())

    assert drive(tmp_path / "run", tiny_rig(network), "random(n=9)", progress=look).judged
    assert seen
    assert not any(r.judged for r in seen)


def test_a_context_needs_a_picture(network: TextSiT, tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        [half] = yield fresh(task, 1, stop=0.5, ask="nothing")
        about = replace(task.condition, context=(Context(half.id, Remark("more red")),))
        yield [Proposal(Fresh(task.next_key()), about)]

    with pytest.raises(ConfigError, match="Outcome 0 has no picture to show"):
        drive(tmp_path / "run", tiny_rig(network), plan)


def lost(rig: Any, key: Key) -> None:
    """A rig whose row of this key overflows."""
    start = rig.start

    def begun(k: Key) -> State:
        state = start(k)
        return replace(state, x=state.x * float("nan")) if k == key else state

    rig.start = begun


def test_a_winner_needs_a_picture(network: TextSiT, tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        yield fresh(task, 1)
        [gone] = yield fresh(task, 1)
        return gone

    rig = tiny_rig(network)
    lost(rig, tasks()[0].key.child("draw", 1))
    with pytest.raises(ConfigError, match="not the number of a finished picture"):
        drive(tmp_path / "run", rig, plan)


def test_a_row_that_overflows_costs_the_verdict_it_was_promised(network: TextSiT, tmp_path: Path) -> None:
    rig = tiny_rig(network)
    lost(rig, tasks()[0].key.child("draw", 1))
    record = drive(tmp_path / "run", rig, "random(n=3)")
    assert record.digests[1] is None
    assert {c.verdicts for c in record.costs.values()} == {1}


# ---- the desk --------------------------------------------------------------------------------------------------------


def test_the_desk_is_crowded_by_rows_and_by_what_judges_have_not_looked_at(
    network: TextSiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "BYTES", 64 * 64 * 3 - 1)
    store = Store.create(tmp_path / "run", {"prompts": PROMPTS[:1], "plan": "x"})
    rig = tiny_rig(network)
    gate = threading.Event()

    class Waits:
        name = "waits"

        def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
            gate.wait(20)
            return torch.zeros(len(samples), dtype=torch.float64)

    rig.judges = {"waits": Waits()}
    crowded: list[bool] = []

    def note(driver: Driver) -> None:
        crowded.append(driver.desk.crowded)
        assert len(crowded) < 20_000, "it stays crowded"
        if driver.desk.crowded:
            gate.set()

    with store.writing():
        Driver(tasks(), lambda t: many(t), rig, Budget(nfe=12 * STEPS), store).run(note)
    assert any(crowded)
    desk = Desk(rig, Journal(store))
    assert not desk.crowded
    desk.pending = 65
    assert desk.crowded
    store.close()


def test_what_judges_have_looked_at_crowds_no_more(network: TextSiT, tmp_path: Path) -> None:
    seen: list[Driver] = []
    drive(tmp_path / "run", tiny_rig(network), "random(n=8)", progress=seen.append)
    assert seen[0].desk._behind == 0


def test_where_pictures_cannot_be_decoded_together_each_is_alone(network: TextSiT, tmp_path: Path) -> None:
    rig = tiny_rig(network)
    whole, asked = rig.decode, []

    def decode(x: Tensor) -> Tensor:
        asked.append(len(x))
        if len(x) > 1:
            raise RuntimeError("out of memory")
        return whole(x)

    rig.decode = decode
    record = drive(tmp_path / "run", rig, "random(n=3)")
    assert all(record.digests.values())
    assert asked == [3, 1, 1, 1]


# ---- workers ---------------------------------------------------------------------------------------------------------


def until(test: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not test() and time.monotonic() < end:
        time.sleep(0.001)
    assert test()


def test_a_call_that_was_given_up_has_one_answer_and_those_behind_it_go_on() -> None:
    worker, gate, said = Worker("w", patience=0.01), threading.Event(), []
    worker.do(lambda: gate.wait(20) and "late", lambda found, _: said.append(found))
    worker.do(lambda: "next", lambda found, _: said.append(found))
    until(lambda: bool(worker.check() or said))
    assert isinstance(said[0], NoAnswer)
    until(lambda: "next" in said)
    gate.set()
    until(lambda: worker.waiting == 0)
    time.sleep(0.05)
    assert said[1:] == ["next"]
    worker.close()
    worker.join(5)


def test_a_call_waits_until_its_answer_is_said() -> None:
    worker, waiting = Worker("w"), []
    done = threading.Event()

    def answer(found: Any, took: float) -> None:
        waiting.append(worker.waiting)
        done.set()

    worker.do(lambda: 1, answer)
    assert done.wait(20)
    assert waiting == [1]
    until(lambda: worker.waiting == 0)
    worker.close()
    worker.join(5)


def test_calls_that_wait_when_a_worker_is_closed_are_not_made() -> None:
    worker, gate, made = Worker("w"), threading.Event(), []
    worker.do(lambda: gate.wait(20), lambda *_: None)
    for i in range(3):
        worker.do(lambda i=i: made.append(i), lambda *_: None)  # type: ignore[misc]
    worker.close()
    gate.set()
    worker.join(5)
    assert made == []


# ---- the disk --------------------------------------------------------------------------------------------------------


def test_a_picture_and_its_folder_are_on_the_disk_before_the_event_that_reports_it(
    network: TextSiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name in ("save_picture", "sync_pictures", "append"):
        whole = getattr(Store, name)

        def noted(self: Store, *args: Any, name: str = name, whole: Any = whole) -> Any:
            if name != "append" or any(line[0] == "outcome" for line in args[0]):
                order.append(name)
            return whole(self, *args)

        monkeypatch.setattr(Store, name, noted)
    drive(tmp_path / "run", tiny_rig(network), "random(n=1)")
    assert order == ["save_picture", "sync_pictures", "append"]


def test_a_half_made_state_comes_back_from_the_disk_with_all_that_it_holds(tmp_path: Path) -> None:
    store = open_or_create(tmp_path / "run", PROMPTS[:1], "x")
    x = torch.randn(1, 3, 4, 4)
    state = State(x, torch.tensor([0.5]), (Key.root(3),), torch.tensor([2]), x + 1, {"slope": x + 2}, x + 3)
    store.save_state(7, state)
    found = store.state(7)
    assert found is not None
    for one, other in ((found.x, x), (found.data, x + 1), (found.carry["slope"], x + 2), (found.known, x + 3)):  # type: ignore[index]
        assert torch.equal(one, other)  # type: ignore[arg-type]
    assert (found.keys, found.step.tolist(), found.t.tolist()) == ((Key.root(3),), [2], [0.5])
    store.close()


def test_a_neighbour_keeps_its_pivot_s_key(network: TextSiT, tmp_path: Path) -> None:
    """Under an SDE it differs from the pivot in the start, not in the noise of the steps."""
    seen: dict[int, State] = {}

    def plan(task: Task) -> Plan:
        [pivot] = yield fresh(task, 1)
        yield [Proposal(Near(pivot.id, task.next_key(), 0.5), task.condition)]
        yield fresh(task, 1)

    def note(driver: Driver) -> None:
        seen.update(driver.states._held)

    drive(tmp_path / "run", tiny_rig(network, solver="sde"), plan, progress=note)
    assert seen[0].keys == seen[1].keys == (tasks()[0].key.child("draw", 0),)
    assert not torch.equal(seen[0].x, seen[1].x)


def test_a_row_taken_back_in_time_begins_anew_under_its_own_key(network: TextSiT) -> None:
    """What a multistep solver carries, and how many steps it took, belong to the steps that are undone."""
    rig = tiny_rig(network)
    x = torch.randn(1, *rig.shape)
    state = State(x, torch.tensor([0.75]), (Key.root(3),), torch.tensor([3]), x, {"slope": x}, x)
    found = Derivation(rig, {}.__getitem__, {}.__getitem__).renoised(state, Key.root(5), 0.25)
    assert (found.keys, found.step.tolist(), found.t.tolist()) == ((Key.root(5),), [0], [0.25])
    assert (found.carry, found.data, found.known) == (None, None, None)
    assert not torch.equal(found.x, x)


def test_an_unsearched_picture_that_was_not_drawn_yet_is_drawn_by_a_run_that_goes_on(
    network: TextSiT, tmp_path: Path
) -> None:
    def plan(task: Task) -> Plan:
        yield fresh(task, 1, steps=2)

    def rig() -> Any:
        return replace(tiny_rig(network), grids=lambda n: grid(n, 3.0))

    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path / "run", rig(), plan, progress=stop_when(lambda d: any(r.ended for r in d.runs.values())))
    assert not Record.read(Store.open(tmp_path / "run")).baselines
    record = drive(tmp_path / "run", rig(), plan)
    assert record.baselines
    assert record.ended[0]["plain"] is None
