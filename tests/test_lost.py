"""Rows that overflowed have no picture: what comes of those who name them, live, resumed and drawn again, and of a run of them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import secondlook
from examples.own_backend import OwnBackend
from secondlook.engine.derive import replay
from secondlook.engine.driver import Driver
from secondlook.engine.record import Record
from secondlook.engine.rescore import rescore
from secondlook.engine.rig import Rig
from secondlook.engine.select import Best, Diverse, RankMean, select
from secondlook.engine.store import Store
from secondlook.engine.table import to_rows
from secondlook.errors import ConfigError, SecondlookError
from secondlook.flow.grid import grid
from secondlook.moves import Fresh
from secondlook.noise import Key
from secondlook.plans.moves import best, clone, fresh, near, resume, rewind
from secondlook.registry import PLANS
from secondlook.report.html import write_report
from secondlook.runs import again as runs_again
from secondlook.runs.results import results
from secondlook.solvers.sde import EulerMaruyama
from secondlook.types import Condition, Context, Outcome, Plan, Proposal, Remark, Selector, State, Task
from tests import test_context as blobs
from tests.helpers import PROMPTS, Brightness, drive, essence, tasks
from tests.test_engine_failures import Dark, broken
from tests.test_judging import Overflowing

TWO = PROMPTS[:2]


def a_rig(lost: set[int], stochastic: bool = False) -> Rig:
    """One whose draws of these numbers, of the first prompt, overflow."""
    rig = blobs.rig()
    rig.comparer = Dark()  # type: ignore[assignment]
    if stochastic:
        rig.solver = EulerMaruyama()
    return broken(rig, lost)


def cut_and_resumed(folder: Path, lost: set[int], plan: Callable[[Task], Plan], after: int = 4, **how: bool) -> Record:
    """The same run, stopped on its way, its states lost, and gone on with."""

    def stop(driver: Driver) -> None:
        if driver.drawn >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(folder, a_rig(lost, **how), plan, prompts=TWO, progress=stop)
    shutil.rmtree(folder / "states")
    (folder / "states").mkdir()
    return drive(folder, a_rig(lost, **how), plan, prompts=TWO)


def redrawn(folder: Path, record: Record, lost: set[int], **how: bool) -> None:
    """All that have a picture are drawn again from the log, bit for bit."""
    store = Store.open(folder)
    for n, digest in record.digests.items():
        if digest is not None:
            again = replay(
                a_rig(lost, **how), n, lambda i: record.outcomes[i].proposal, lambda i: record.digests[i] is None
            )
            assert np.array_equal(again, store.picture(n)), n


def others(record: Record) -> object:
    """What the second prompt came to."""
    return {n: e for n, e in essence(record).items() if n % 2}


# ---- those who name them -------------------------------------------------------------------------------------------------


def comparing(task: Task) -> Plan:
    [first, second] = yield fresh(task, 2)
    yield [replace(p, ask="score+compare", against=o.id) for o in (first, second) for p in fresh(task, 1)]
    yield fresh(task, 1)


def test_a_comparison_with_a_lost_picture_has_no_answer_and_the_run_goes_on(tmp_path: Path) -> None:
    well = drive(tmp_path / "well", a_rig(set()), comparing, prompts=TWO)
    record = drive(tmp_path / "run", a_rig({0}), comparing, prompts=TWO)
    assert record.done
    assert [n for n, digest in record.digests.items() if digest is None] == [0]
    assert others(record) == others(well)
    unpaired, paired = record.outcomes[4], record.outcomes[6]
    assert unpaired.preference is not None
    assert math.isnan(unpaired.preference)
    assert (unpaired.score, record.digests[4]) == (well.outcomes[4].score, well.digests[4])
    assert paired == well.outcomes[6]
    assert record.costs[4].with_seconds(0) == well.costs[4].with_seconds(0)
    said = [(f["outcome"], f["error"]) for f in record.failures]
    assert (4, "it was to be compared with outcome 0, which has no picture") in said
    assert len(said) == 2
    assert essence(cut_and_resumed(tmp_path / "cut", {0}, comparing)) == essence(record)
    redrawn(tmp_path / "run", record, {0})


def telling(*which: int) -> Callable[[Task], Plan]:
    """A plan whose later rows are told of these of its first two."""

    def plan(task: Task) -> Plan:
        first = yield fresh(task, 2)
        seen = tuple(Context(first[i].id, Remark("darker")) for i in which)
        for _ in range(2):
            yield fresh(task, 1, condition=replace(task.condition, context=seen))

    return plan


def test_a_condition_that_points_to_a_lost_picture_is_read_without_it_and_the_run_goes_on(tmp_path: Path) -> None:
    for which, left in (((0, 1), (1,)), ((0,), ())):
        plan, folder = telling(*which), tmp_path / f"{len(which)}"
        record = drive(folder / "run", a_rig({0}), plan, prompts=TWO)
        without = drive(folder / "without", a_rig({0}), telling(*left), prompts=TWO)
        assert record.done
        assert [record.digests[n] for n in (0, 2, 4, 6)] == [without.digests[n] for n in (0, 2, 4, 6)]
        assert [c.outcome for c in record.outcomes[4].proposal.condition.context] == [2 * i for i in which]
        assert [record.outcomes[n].score for n in (4, 6)] == [without.outcomes[n].score for n in (4, 6)]
        assert record.costs[4].with_seconds(0) == without.costs[4].with_seconds(0)
        said = [(f["outcome"], f["error"]) for f in record.failures if f["row"] == "told"]
        words = "its condition points to outcome 0 without a picture, of which the network was told nothing"
        assert said == [(4, words), (6, words)]
        assert essence(cut_and_resumed(folder / "cut", {0}, plan)) == essence(record)
        redrawn(folder / "run", record, {0})


def test_a_lost_state_is_made_again_without_the_picture_that_was_lost(tmp_path: Path) -> None:
    """The row that goes on was told of a lost picture when it began."""

    def plan(task: Task) -> Plan:
        [first] = yield fresh(task, 1)
        told = replace(task.condition, context=(Context(first.id, Remark("darker")),))
        [half] = yield fresh(task, 1, stop=0.5, condition=told)
        yield [resume(task, half)]

    record = drive(tmp_path / "run", a_rig({0}), plan, prompts=TWO)
    again = cut_and_resumed(tmp_path / "cut", {0}, plan)
    assert again.rebuilt
    assert essence(again) == essence(record)
    redrawn(tmp_path / "run", record, {0})


def moving(task: Task) -> Plan:
    """Rows that begin where a finished one ended, a half-made one stopped, or near where one began."""
    [done, half, well] = yield [*fresh(task, 1), *fresh(task, 1, stop=0.5), *fresh(task, 1)]
    yield [
        *rewind(task, done, 1, 0.5), *rewind(task, done, 1, 0.0), *rewind(task, half, 1, 0.25), resume(task, half),
        *clone(task, half, 2), *near(task, done, 1, 0.3), *rewind(task, well, 1, 0.5),
    ]  # fmt: skip


@pytest.mark.parametrize("stochastic", [False, True])
def test_what_begins_from_a_row_that_overflowed_is_lost_with_it(tmp_path: Path, stochastic: bool) -> None:
    well = drive(tmp_path / "well", a_rig(set(), stochastic), moving, prompts=TWO)
    record = drive(tmp_path / "run", a_rig({0, 1}, stochastic), moving, prompts=TWO)
    assert record.done
    assert [n for n, digest in sorted(record.digests.items()) if digest is None] == [0, 2, 6, 8, 10, 12, 14, 16, 18]
    assert others(record) == others(well)
    assert (record.digests[20], record.outcomes[20].score) == (well.digests[20], well.outcomes[20].score)
    for n in (6, 8, 10, 12, 14, 16, 18):
        score = record.outcomes[n].score
        assert score is not None
        assert math.isnan(score)
        assert record.costs[n].with_seconds(0) == well.costs[n].with_seconds(0)
    assert {f["outcome"] for f in record.failures} == {0, 2, 6, 8, 10, 12, 14, 16, 18}
    again = cut_and_resumed(tmp_path / "cut", {0, 1}, moving, after=6, stochastic=stochastic)
    assert essence(again) == essence(record)
    redrawn(tmp_path / "run", record, {0, 1}, stochastic=stochastic)


def test_a_run_that_goes_on_and_has_pictures_is_not_told_that_every_row_overflowed(tmp_path: Path) -> None:
    """Four good ones before it stopped; the next three are lost."""

    def plan(task: Task) -> Plan:
        yield fresh(task, 4)
        yield fresh(task, 3)
        yield fresh(task, 1)

    def stop(driver: Driver) -> None:
        if driver.drawn >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path / "run", a_rig({4, 5, 6}), plan, progress=stop)
    record = drive(tmp_path / "run", a_rig({4, 5, 6}), plan)
    assert record.done
    assert [d is None for _, d in sorted(record.digests.items())] == [False] * 4 + [True] * 3 + [False]


SHORT = {"zero_order": "neighbours=2", "paths": "n=2, width=2", "halving": "n=4", "particles": "n=3, looks=2",
         "children": "m=2, splits=2", "draft": "n=4", "random": "n=12", "calibrate": "n=12", "tournament": "n=12"}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PLANS))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_plans_that_ship_go_on_behind_rows_that_overflowed(name: str, value: float, tmp_path: Path) -> None:
    rig = blobs.rig()
    rig.flow, rig.grids = replace(rig.flow, network=Overflowing(rig.flow.network, value)), grid
    rig.comparer = Dark()  # type: ignore[assignment]
    record = drive(tmp_path / "run", rig, f"{name}({SHORT.get(name, '')})", prompts=TWO, nfe=80)
    assert record.done
    for task in (0, 1):
        shown = {o.id for o in record.of(task) if o.proposal.shown}
        assert {n for n in shown if record.digests[n] is None}
        winner = record.winner(task)
        assert winner is not None
        told = winner.preference if name == "self_supervised" else winner.score  # which asks for no score
        assert told is not None
        assert math.isfinite(told)


# ---- runs of them --------------------------------------------------------------------------------------------------------


def test_a_prompt_of_which_every_row_overflowed_has_a_result_that_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    record = drive(folder, a_rig({0, 1}), "random(n=2)", prompts=TWO)
    assert record.done
    assert record.winner(0) is None
    store = Store.open(folder)
    lost, well = results(store)
    assert math.isnan(lost.score)
    assert math.isnan(lost.plain_score)
    for ask in (lambda: lost.picture, lambda: lost.plain, lambda: lost.save(tmp_path / "x.png")):
        with pytest.raises(SecondlookError, match="has no picture of this prompt here: its row overflowed"):
            ask()
    assert not (tmp_path / "x.png").exists()
    assert well.picture.shape == well.plain.shape
    assert [(r["score"] is None or math.isnan(r["score"]), r["picture"]) for r in to_rows(store) if r["task"] == 0] == [
        (True, None)
    ] * 2
    assert rescore(store, Brightness(), tasks(TWO)).failed == 0


@pytest.mark.parametrize("selector", [Best(2), RankMean(count=2), Diverse(2)], ids=lambda s: s.name)
def test_a_selector_chooses_among_pictures_that_are_there(selector: Selector, tmp_path: Path) -> None:
    drive(tmp_path / "run", a_rig({0, 1}), "random(n=2)", prompts=TWO)
    assert set(select(Store.open(tmp_path / "run"), selector, 2)) == {1}
    drive(tmp_path / "one", a_rig({0}), "random(n=2)", prompts=TWO)
    chosen = select(Store.open(tmp_path / "one"), selector, 2)
    assert (chosen[0], sorted(chosen[1])) == ([2], [1, 3])


def test_the_best_of_scores_that_are_all_nan_is_the_first() -> None:
    some = [Outcome(i, Proposal(Fresh(Key.root(i)), Condition("x")), math.nan) for i in range(3)]
    assert best(some).id == 0


@pytest.mark.parametrize("lost", [{0}, {1}, {0, 1}])
def test_a_report_of_rows_that_overflowed_misses_no_picture_and_offers_no_repair(
    lost: set[int], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    drive(folder, a_rig(lost), "random(n=2)", prompts=TWO)
    page = write_report(folder).read_text()
    for word in ("could not be shown", "to keep the page small", "missing", "a part of the run"):
        assert word not in page, word
    assert page.count("the row&#x27;s numbers overflowed") + page.count("the row&#39;s numbers overflowed") >= len(lost)


class Burst(OwnBackend):
    """A backend of which the first row of the first prompt overflows."""

    def rig(self, *given: object, **more: object) -> Rig:
        rig = super().rig(*given, **more)  # type: ignore[arg-type]
        start, bad = rig.start, Key.root(0).child("task", 0).child("draw", 0)

        def begun(key: Key) -> State:
            state = start(key)
            return replace(state, x=torch.full_like(state.x, math.nan)) if key == bad else state

        rig.start = begun  # type: ignore[method-assign]
        return rig


def test_a_finished_run_with_a_row_that_overflowed_is_read_and_not_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [drawn] = secondlook.draw("r", "random(n=3)", tmp_path / "run", model=Burst(), steps=4, seed=0)
    assert drawn.outcome != 0
    with pytest.raises(SecondlookError, match="its row overflowed"):
        _ = drawn.plain
    with pytest.raises(ConfigError, match=r"Outcome 0 has no picture to compare: .* or its row overflowed"):
        secondlook.replay(tmp_path / "run", 0, model=Burst())
    assert secondlook.replay(tmp_path / "run", 1, model=Burst()).same
    monkeypatch.setattr(runs_again, "found_again", lambda *_: pytest.fail("there is nothing left to do"))
    [again] = secondlook.resume(tmp_path / "run")
    assert (again.outcome, again.score) == (drawn.outcome, drawn.score)


class Scaled(Brightness):
    """A verifier that was made with a number."""

    def __init__(self, by: float):
        self.by = by


def test_a_row_that_overflowed_is_no_failure_of_a_judge_after_which_another_may_stand_in(tmp_path: Path) -> None:
    def stop(driver: Driver) -> None:
        if driver.drawn >= 2:
            raise KeyboardInterrupt

    how = {"model": Burst(), "steps": 4, "seed": 0, "rows": 1}
    with pytest.raises(KeyboardInterrupt):
        secondlook.draw("r", "random(n=6)", tmp_path / "run", verifier=Scaled(1.0), progress=stop, **how)
    with pytest.raises(ConfigError, match="The verifier's settings are not what was there"):
        secondlook.resume(tmp_path / "run", model=Burst(), verifier=Scaled(2.0))
    assert len(secondlook.resume(tmp_path / "run", model=Burst(), verifier=Scaled(1.0))) == 1
