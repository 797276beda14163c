"""Budgets, shares and promises: what is admitted once stays admitted, and what is given back is given back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secondlook.engine.driver import Driver
from secondlook.engine.ledger import Budget, Ledger
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.engine.task_run import TaskRun
from secondlook.models.text import TextSiT
from secondlook.moves import Resume
from secondlook.plans.moves import fresh
from secondlook.types import Cost, Plan, Proposal, Task
from tests.helpers import PROMPTS, STEPS, drive, essence, tasks, tiny_rig


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
            drive(tmp_path / "run", tiny_rig(network, rows=1), six, seconds=1e6, nfe=20 * STEPS)
    record = drive(tmp_path / "run", tiny_rig(network, rows=1), six, seconds=1e6, nfe=20 * STEPS)
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


def test_a_plan_that_is_played_again_is_told_what_it_was_told(network: TextSiT, tmp_path: Path) -> None:
    """Although the run goes on with a larger budget."""
    told: list[float] = []

    def plan(task: Task) -> Plan:
        while True:
            told.append(task.remaining()["nfe"])
            yield fresh(task, 1)

    stop = stop_when(lambda d: d.drawn >= 2)
    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path / "run", tiny_rig(network, rows=1), plan, nfe=3 * STEPS, progress=stop)
    before, told[:] = told[:], []
    drive(tmp_path / "run", tiny_rig(network, rows=1), plan, nfe=9 * STEPS)
    assert before == [3 * STEPS, 2 * STEPS, STEPS]
    assert told[:3] == before
    assert len(told) > 3
