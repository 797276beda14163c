"""Budgets in seconds, under a clock that the tests set: what is let in, what is cut, and what stays cut when resumed."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from secondlook.engine.driver import Driver
from secondlook.engine.ledger import Budget
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.models.text import TextSiT
from secondlook.plans.moves import fresh
from secondlook.types import Plan, Task
from tests.helpers import PROMPTS, STEPS, drive, tiny_rig


def test_a_budget_in_seconds_prices_its_first_batch_by_its_first_row(network: TextSiT, tmp_path: Path) -> None:
    """However wide the batch, a hopeless budget buys one picture and not a batch of them."""
    record = drive(tmp_path / "run", tiny_rig(network, rows=32), "random(n=1000)", seconds=1e-6)
    assert len(record.outcomes) == 1
    assert record.ended[0]["out_of_budget"]


def test_under_a_budget_in_seconds_the_others_wait_for_two_steps_of_the_first_row(
    network: TextSiT, tmp_path: Path
) -> None:
    seen = []

    def note(driver: Driver) -> None:
        seen.append(len(driver.slots.jobs))

    drive(tmp_path / "run", tiny_rig(network, rows=4), "random(n=8)", seconds=1e6, progress=note)
    assert seen[:3] == [1, 1, 4]


@pytest.fixture
def wind(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets a clock by which a step takes a second, and that stands still after so many steps."""

    def set_clock(steps: float) -> None:
        looks = itertools.count()  # three in a step
        clock = SimpleNamespace(perf_counter=lambda: min(next(looks), 3 * steps))
        monkeypatch.setattr("secondlook.engine.driver.time", clock)

    return set_clock


def test_work_under_way_is_counted_against_the_clock(
    network: TextSiT, tmp_path: Path, wind: Callable[[float], None]
) -> None:
    """The first row tells the pace. There are slots for all three others, and time for one."""
    wind(math.inf)
    record = drive(tmp_path / "run", tiny_rig(network, rows=4), "random(n=4)", seconds=10)
    assert sorted(record.outcomes) == [0, 1]
    assert record.spent(0).seconds <= 10
    assert record.ended[0]["out_of_budget"]


def test_what_the_clock_cut_from_a_round_under_way_stays_cut_when_resumed(
    network: TextSiT, tmp_path: Path, wind: Callable[[float], None]
) -> None:
    from tests.test_engine import stop_after

    folder, plan = tmp_path / "run", "random(n=4)"
    wind(math.inf)
    stop_after(folder, network, plan, 1, seconds=10)  # the second row is under way, the others were given back
    assert sorted(Record.read(Store.open(folder)).outcomes) == [0]
    record = drive(folder, tiny_rig(network), plan, seconds=1e6)
    assert sorted(record.outcomes) == [0, 1]
    assert record.ended[0]["out_of_budget"]


def test_what_was_answered_before_an_interrupt_is_recorded_however_late_it_is_collected(
    network: TextSiT, tmp_path: Path, wind: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_engine import stop_after

    collect = Driver._collect

    def late(driver: Driver, wait: bool) -> None:
        while driver.desk.fatal is None and not driver.slots.jobs:
            time.sleep(0.001)
        if driver.desk.fatal is not None or driver.pace is None:
            collect(driver, wait)

    monkeypatch.setattr(Driver, "_collect", late)
    wind(math.inf)  # the rows arrive one after the other, and are asked about in two calls
    stop_after(tmp_path / "run", network, "random(n=4)", 1, seconds=10)
    assert sorted(Record.read(Store.open(tmp_path / "run")).outcomes) == [0]


def test_what_the_clock_did_not_let_in_stays_out_when_resumed(
    network: TextSiT, tmp_path: Path, wind: Callable[[float], None]
) -> None:
    """The second prompt begins when the pace is known, so that one picture alone is let in."""
    from tests.test_engine import stop_after

    folder, plan = tmp_path / "run", "random(n=3)"
    wind(math.inf)
    stop_after(folder, network, plan, 1, prompts=PROMPTS[:2], window=1, seconds=3)
    assert list(Record.read(Store.open(folder)).ended) == [0]
    record = drive(folder, tiny_rig(network), plan, prompts=PROMPTS[:2], window=1, seconds=1e6)
    assert [len(record.of(i)) for i in range(2)] == [1, 1]
    assert record.ended[1]["out_of_budget"]


def test_what_the_clock_cut_is_left_to_later_prompts(
    network: TextSiT, tmp_path: Path, wind: Callable[[float], None]
) -> None:
    wind(STEPS)  # slow for the first picture
    record = drive(
        tmp_path / "run", tiny_rig(network, rows=1), "random(n=3)", prompts=PROMPTS[:2], window=1,
        total=Budget(nfe=4 * STEPS), seconds=5,
    )  # fmt: skip
    assert [len(record.of(i)) for i in range(2)] == [1, 3]


def test_what_a_replayed_plan_is_told_minds_no_overspending_since(
    network: TextSiT, tmp_path: Path, wind: Callable[[float], None]
) -> None:
    from tests.test_engine import stop_after

    told: list[tuple[int, float]] = []

    def listening(task: Task) -> Plan:
        told.append((task.index, task.remaining()["seconds"]))
        yield fresh(task, 1)

    wind(math.inf)
    how = {"prompts": PROMPTS[:2], "total": Budget(seconds=6)}
    stop_after(tmp_path / "run", network, listening, 1, **how)
    record = Record.read(Store.open(tmp_path / "run"))
    assert record.spent(0).seconds > 3
    assert list(record.ended) == [0]
    drive(tmp_path / "run", tiny_rig(network), listening, **how)  # type: ignore[arg-type]
    assert told == [(0, 3), (1, 3), (1, 3)]
