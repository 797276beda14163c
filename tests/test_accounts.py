"""Budgets, shares and promises: what is admitted once stays admitted, and what is given back is given back."""

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
from secondlook.engine.ledger import Budget, Ledger
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.engine.task_run import TaskRun
from secondlook.engine.workers import NoAnswer, Worker
from secondlook.errors import ConfigError
from secondlook.flow.grid import grid
from secondlook.models.text import TextSiT
from secondlook.moves import Fresh, Near, Resume
from secondlook.noise import Key
from secondlook.plans.moves import fresh
from secondlook.types import Condition, Context, Cost, Plan, Proposal, Remark, State, Task
from tests.helpers import PROMPTS, STEPS, drive, essence, open_or_create, tasks, tiny_rig


def stop_when(test: Callable[[Driver], bool]) -> Callable[[Driver], None]:
    def stop(driver: Driver) -> None:
        if test(driver):
            raise KeyboardInterrupt

    return stop


# ---- ledgers ---------------------------------------------------------------------------------------------------------


def test_what_is_left_is_neither_spent_nor_promised_nor_more_than_the_run_has() -> None:
    run = Ledger(Budget(nfe=20))
    one, other = Ledger(Budget(nfe=15), run), Ledger(Budget(nfe=15), run)
    one.hold(Cost(nfe=4))
    assert (one.left()["nfe"], other.left()["nfe"]) == (11, 15)
    one.charge(Cost(nfe=4), Cost(nfe=3))
    other.hold(Cost(nfe=9))
    assert (one.left()["nfe"], other.left()["nfe"]) == (8, 6)
    assert one.affords(Cost(nfe=8))
    assert not one.affords(Cost(nfe=9))
    assert run.held == Cost(nfe=9)


def test_a_budget_pays_for_what_costs_all_of_it(network: TextSiT, tmp_path: Path) -> None:
    record = drive(tmp_path / "run", tiny_rig(network), "random(n=9)", nfe=3 * STEPS)
    assert len(record.outcomes) == 3


# ---- shares of a pool ------------------------------------------------------------------------------------------------


def draws(task: Task) -> Plan:
    """The first prompt ends after two draws, the second after three, others go on."""
    for _ in range({0: 2, 1: 3}.get(task.index, 1000)):
        yield fresh(task, 1)


@pytest.mark.parametrize("window", [1, 2])
def test_shares_of_a_pool_are_the_same_where_a_run_was_stopped(network: TextSiT, tmp_path: Path, window: int) -> None:
    """Rows are drawn one at a time, so that the order of work is the same."""
    how: dict[str, Any] = {"prompts": PROMPTS[:3], "total": Budget(nfe=15 * STEPS), "window": window}
    whole = drive(tmp_path / "whole", tiny_rig(network, rows=1), draws, **how)
    shares = {i: body["limits"]["nfe"] for i, body in whole.began.items()}
    assert shares[2] > shares[0]  # what the first ones left
    for at in (3, 7):
        stop = stop_when(lambda d, at=at: d.drawn >= at)  # type: ignore[misc]
        with pytest.raises(KeyboardInterrupt):
            drive(tmp_path / f"run{at}", tiny_rig(network, rows=1), draws, **how, progress=stop)
        record = drive(tmp_path / f"run{at}", tiny_rig(network, rows=1), draws, **how)
        store = Store.open(tmp_path / f"run{at}")
        assert len(list(store.events("began"))) == 3
        assert {i: body["limits"]["nfe"] for i, body in record.began.items()} == shares
        assert essence(record) == essence(whole)


def test_a_share_is_never_more_than_the_prompt_s_own_budget(network: TextSiT, tmp_path: Path) -> None:
    record = drive(
        tmp_path / "run", tiny_rig(network), "random(n=50)", prompts=PROMPTS[:2], nfe=2 * STEPS, total=Budget(nfe=100)
    )
    assert [record.spent(i).nfe for i in range(2)] == [2 * STEPS] * 2


def test_the_usual_window_is_twice_the_rows_and_eight_at_least(network: TextSiT, tmp_path: Path) -> None:
    most: list[int] = []
    names = [PROMPTS[i % len(PROMPTS)] for i in range(30)]
    drive(
        tmp_path / "run", tiny_rig(network), "random(n=1)", prompts=names, progress=lambda d: most.append(len(d.runs))
    )
    assert max(most) == 8


# ---- the clock -------------------------------------------------------------------------------------------------------


def test_what_is_under_way_counts_in_what_a_budget_in_seconds_has_room_for(network: TextSiT, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", {"prompts": PROMPTS[:1], "plan": "x"})
    rig = tiny_rig(network)
    driver = Driver(tasks(), lambda t: draws(t), rig, Budget(seconds=15.0), store)
    run = TaskRun(tasks()[0], draws, rig, driver.journal, Ledger(Budget(seconds=15.0)), 1, Record())
    driver.pace, driver._under_way = 1.0, {0: 10}
    assert [driver._late(run, Cost(nfe=n)) for n in (5, 6)] == [False, True]
    store.close()


def late_after_two(self: Driver, run: TaskRun, price: Cost) -> bool:
    return len(run.outcomes) >= 2


def six(task: Task) -> Plan:
    while True:
        yield fresh(task, 6)


def test_what_the_clock_gives_back_is_logged_and_promised_to_nobody(
    network: TextSiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Driver, "_late", late_after_two)
    seen: list[Driver] = []
    record = drive(tmp_path / "run", tiny_rig(network, rows=1), six, seconds=1e6, progress=seen.append)
    assert len(record.outcomes) == 2
    assert record.cuts == {0: {2, 3, 4, 5}}
    assert seen[0].total.held == Cost()


def test_what_the_clock_gave_back_is_not_drawn_by_a_run_that_goes_on(
    network: TextSiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as m:
        m.setattr(Driver, "_late", late_after_two)
        m.setattr(TaskRun, "finish", stop_when(lambda _: True))
        with pytest.raises(KeyboardInterrupt):
            drive(tmp_path / "run", tiny_rig(network, rows=1), six, seconds=1e6)
    record = drive(tmp_path / "run", tiny_rig(network, rows=1), six, seconds=1e6)
    assert len(record.outcomes) == 2
    assert record.ended[0]["out_of_budget"]


def test_what_was_admitted_is_not_decided_again(network: TextSiT, tmp_path: Path) -> None:
    """Not even where the run goes on with a larger budget."""
    with pytest.raises(KeyboardInterrupt):
        drive(
            tmp_path / "run", tiny_rig(network, rows=1), six, nfe=3 * STEPS, progress=stop_when(lambda d: d.drawn >= 1)
        )
    record = drive(tmp_path / "run", tiny_rig(network, rows=1), six, nfe=100 * STEPS)
    assert len(record.outcomes) == 3


@pytest.mark.parametrize("look", ["free", "paid"])
def test_what_a_plan_is_told_that_going_on_costs_is_what_it_costs(network: TextSiT, tmp_path: Path, look: Any) -> None:
    """A free look learns nothing that the row could go on from; a paid one does."""
    told = []

    def plan(task: Task) -> Plan:
        [half] = yield fresh(task, 1, stop=0.5, look=look)
        on = Proposal(Resume(half.id), task.condition)
        told.append((task.price(on), task.price(*fresh(task, 1, stop=0.5, look=look))))
        yield [on]

    record = drive(tmp_path / "run", tiny_rig(network), plan)
    assert [record.costs[i].with_seconds(0) for i in (1, 0)] == list(told[0])
    assert record.costs[0].nfe + record.costs[1].nfe == STEPS


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
        if driver.desk.crowded:
            gate.set()

    with store.writing():
        Driver(tasks(), lambda t: six(t), rig, Budget(nfe=12 * STEPS), store).run(note)
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
