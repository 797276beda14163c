"""The driver, the ledger and the rig: what work costs, what it yields, and that company changes neither."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from secondlook.engine.derive import replay
from secondlook.engine.ledger import Budget, Ledger
from secondlook.engine.store import Store, sha256
from secondlook.errors import ConfigError, ReplayError, SecondlookError
from secondlook.flow.grid import grid
from secondlook.models.text import TextSiT
from secondlook.moves import Fresh, Near
from secondlook.noise import Key
from secondlook.plans.moves import fresh, resume, rewind
from secondlook.types import Condition, Context, Cost, Plan, Remark, Task
from tests.helpers import PROMPTS, STEPS, Failing, drive, essence, spent, tasks, tiny_rig

SEARCHES = (
    "random(n=5)",
    "zero_order(neighbours=3)",
    "paths(n=2, width=2)",
    "paths(n=1, width=3, start=0.5, back=0.5, ahead=0.3)",
)


# ---- the ledger ------------------------------------------------------------------------------------------------------


def test_a_promise_is_counted_until_it_becomes_a_cost() -> None:
    ledger, price = Ledger(Budget(nfe=10)), Cost(nfe=4, evals=8, verdicts=1, decodes=1)
    ledger.hold(price)
    ledger.hold(price)
    assert not ledger.affords(price)
    ledger.charge(price, replace(price, nfe=1))  # work may turn out cheaper, e.g. given back
    assert ledger.affords(price)
    assert (ledger.spent.nfe, ledger.held.nfe) == (1, 4)
    ledger.charge(price, price)
    assert ledger.held == Cost()
    assert ledger.spent == Cost(nfe=5, evals=16, verdicts=2, decodes=2)


def test_what_is_spent_or_promised_is_left_to_nobody_who_shares_a_pool() -> None:
    pool, price = Ledger(Budget(nfe=20)), Cost(nfe=4)
    one, two = Ledger(Budget(nfe=12), pool), Ledger(Budget(nfe=12), pool)
    one.hold(price)
    one.charge(price, price)
    assert (one.left()["nfe"], two.left()["nfe"]) == (8, 12)
    one.hold(price)
    one.hold(price)
    assert (one.left()["nfe"], two.left()["nfe"]) == (0, 8)  # 8 of its own 12: the pool has no more
    assert two.affords(Cost(nfe=8))
    assert not two.affords(Cost(nfe=9))
    assert two.left()["evals"] == math.inf


@pytest.mark.parametrize("limit", [{"nfe": 0}, {"evals": -1}, {"verdicts": math.nan}, {"seconds": 0.0}])
def test_a_budget_must_be_above_zero(limit: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"above 0; got {next(iter(limit))}"):
        Budget(**limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", ["euler", "heun", "sde"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("plan", SEARCHES[1::2])
def test_what_is_charged_is_what_was_priced(
    network: TextSiT, tmp_path: Path, solver: str, guidance: float, plan: str
) -> None:
    rig = tiny_rig(network, solver=solver, guidance=guidance, rows=2)
    record = drive(tmp_path / "run", rig, plan, evals=70)
    stops = {o.id: o.proposal.stop for o in record.outcomes.values()}
    assert stops
    for number, outcome in record.outcomes.items():
        move = outcome.proposal.move
        begin = move.begins(0.0, stops[move.parents[0]] if move.parents else 1.0)
        parent = record.outcomes[move.parents[0]] if move.parents else None
        known = (
            move.keeps and parent is not None and bool(parent.proposal.asks) and not parent.finished
        )  # its look was paid for
        price = rig.price(begin, outcome.proposal.stop, outcome.proposal.ask, known=known)
        assert record.costs[number].with_seconds(0.0) == price
        assert price.evals == price.nfe * (1 if guidance == 1.0 else 2)
        assert record.costs[number].seconds > 0
    plain = rig.price(0.0, 1.0, "score")
    assert plain.nfe == (2 * STEPS - 1 if solver == "heun" else STEPS)  # Heun's last step is Euler's


@pytest.mark.parametrize("unit", ["nfe", "evals", "verdicts"])
@pytest.mark.parametrize("limit", [9, 26])
@pytest.mark.parametrize("plan", ["random(n=50)", *SEARCHES[1:]])
def test_a_budget_is_never_overspent_and_never_left_lying(
    network: TextSiT, tmp_path: Path, plan: str, unit: str, limit: int
) -> None:
    rig = tiny_rig(network, guidance=1.0, rows=3)
    record = drive(tmp_path / "run", rig, plan, prompts=PROMPTS[:2], **{unit: limit})
    for cost in spent(record).values():
        assert getattr(cost, unit) <= limit
        # What is left would not have paid for one more of the dearest proposals.
        dearest = max(getattr(c, unit) for c in record.costs.values())
        assert getattr(cost, unit) > limit - max(1, dearest)
    if not plan.startswith("paths"):  # which minds what is left and stops by itself
        assert {e["out_of_budget"] for e in record.ended.values()} == {True}


def test_a_round_the_budget_cuts_short_is_done_as_far_as_it_goes(network: TextSiT, tmp_path: Path) -> None:
    record = drive(tmp_path / "run", tiny_rig(network), "zero_order(neighbours=4)", nfe=STEPS * 7 + 1)
    assert [o.proposal.move.name for o in record.of(0)][:5] == ["fresh"] + ["near"] * 4
    assert len(record.of(0)) == 7


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves by a hundredth of a second whenever the driver looks at it."""
    ticks = itertools.count()
    monkeypatch.setattr("secondlook.engine.driver.time", SimpleNamespace(perf_counter=lambda: next(ticks) / 100))


@pytest.mark.parametrize("prompts", [1, 3])
@pytest.mark.parametrize("limit", [0.001, 0.05, 0.3])
@pytest.mark.usefixtures("clock")
def test_seconds_are_overspent_by_no_more_than_what_was_under_way(
    network: TextSiT, tmp_path: Path, limit: float, prompts: int
) -> None:
    rig = tiny_rig(network, rows=3)
    record = drive(tmp_path / "run", rig, "zero_order(neighbours=4)", prompts=PROMPTS[:prompts], seconds=limit)
    for i in range(prompts):
        seconds = [record.costs[o.id].seconds for o in record.of(i)]
        assert record.ended[i]["out_of_budget"]
        assert sum(seconds[: -rig.rows]) <= limit
        assert len(seconds) >= (8 if limit == 0.3 else 1)  # and the time is used; the first sample is always drawn


@pytest.mark.parametrize("window", [1, 2, None])
@pytest.mark.usefixtures("clock")
def test_every_prompt_has_its_first_picture_however_little_time_there_is(
    network: TextSiT, tmp_path: Path, window: int | None
) -> None:
    record = drive(
        tmp_path / "run", tiny_rig(network, rows=2), "random(n=3)", prompts=PROMPTS, window=window, seconds=0.001
    )
    assert [len(record.of(i)) for i in range(len(PROMPTS))] == [1] * len(PROMPTS)


@pytest.mark.usefixtures("clock")
def test_a_run_that_ended_by_the_clock_does_not_go_on_when_resumed(network: TextSiT, tmp_path: Path) -> None:
    rig, folder = tiny_rig(network), tmp_path / "run"
    once = drive(folder, rig, "zero_order(neighbours=4)", seconds=0.1)
    again = drive(folder, rig, "zero_order(neighbours=4)", seconds=1000.0)
    assert essence(again) == essence(once)
    assert again.ended == once.ended


# ---- company ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("solver", ["euler", "heun", "sde"])
@pytest.mark.parametrize("plan", SEARCHES[1:3])
def test_many_prompts_at_once_equal_each_alone(
    network: TextSiT, tmp_path: Path, plan: str, solver: str, bf16: bool
) -> None:
    """Scores, pictures and costs of a task are the same bits whoever shares its batches."""
    rig = tiny_rig(network, solver=solver, bf16=bf16, rows=5)
    together = drive(tmp_path / "all", rig, plan, prompts=PROMPTS[:4], nfe=30)
    apart = {}
    for task in tasks(PROMPTS[:4]):
        # Alone in its run, but with the key its place in the list gave it.
        alone = replace(task, index=0)
        record = drive(
            tmp_path / f"only-{task.index}",
            tiny_rig(network, solver=solver, bf16=bf16, rows=5),
            plan,
            given=[alone],
            nfe=30,
        )
        apart[task.index] = [
            (record.digests[o.id], str(o.score), record.said(o.id), record.costs[o.id].with_seconds(0))
            for o in record.of(0)
        ]
    for i in range(4):
        mine = [
            (together.digests[o.id], str(o.score), together.said(o.id), together.costs[o.id].with_seconds(0))
            for o in together.of(i)
        ]
        assert mine == apart[i], PROMPTS[i]
    shown = [d for d in together.digests.values() if d]
    assert len(set(shown)) > 0.6 * len(shown)  # pictures do differ (a last Euler step only repeats its last look)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("rows", [2, 5, 8])
def test_a_row_does_not_depend_on_its_place_or_its_mates(network: TextSiT, bf16: bool, rows: int) -> None:
    rig = tiny_rig(network, bf16=bf16, rows=rows)
    key, here = tasks()[0].key, Condition(PROMPTS[0])
    states = [rig.start(key.child(i)) for i in range(rows)]
    conditions = [Condition(PROMPTS[i % len(PROMPTS)]) for i in range(rows)]
    for i in range(1, rows):  # mates at other times, some near the end
        for _ in range(i % STEPS):
            [states[i]], _ = rig.advance([states[i]], [1.0], [conditions[i]])
    [alone], _ = rig.advance(states[:1], [1.0], [here])
    for place in range(rows):
        order = [*range(1, place + 1), 0, *range(place + 1, rows)]
        moved, _ = rig.advance(
            [states[i] for i in order], [1.0] * rows, [here if i == 0 else conditions[i] for i in order]
        )
        assert torch.equal(moved[place].x, alone.x), place
        looked = rig.look([states[i] for i in order], [here if i == 0 else conditions[i] for i in order])
        assert torch.equal(looked[place], rig.look(states[:1], [here])[0])
    [other], _ = rig.advance(states[:1], [1.0], [Condition(PROMPTS[1])])
    assert not torch.equal(other.x, alone.x)  # the prompt does reach the row


def test_heun_mixes_rows_in_their_last_step_with_others(network: TextSiT, tmp_path: Path) -> None:
    """Stops at different times put last and other steps side by side, which Heun itself refuses."""

    def uneven(task: Task) -> Plan:
        halves = yield fresh(task, 2, stop=0.5, ask="nothing")
        yield [*fresh(task, 2), *(resume(task, h) for h in halves), *rewind(task, halves[0], 2, 0.2, stop=0.8)]

    record = drive(tmp_path / "run", tiny_rig(network, solver="heun", rows=3), uneven, prompts=PROMPTS[:2])
    alone = drive(tmp_path / "one", tiny_rig(network, solver="heun", rows=3), uneven)
    assert [record.digests[o.id] for o in record.of(0)] == [alone.digests[o.id] for o in alone.of(0)]
    assert len(record.outcomes) == 16


# ---- plans that ask for odd things -----------------------------------------------------------------------------------


def test_a_plan_that_draws_no_plain_sample_gets_one_for_comparison_uncharged(network: TextSiT, tmp_path: Path) -> None:
    rig = tiny_rig(network)
    searched = drive(tmp_path / "paths", rig, "paths(n=2)", nfe=40)
    plain = drive(tmp_path / "random", rig, "random(n=1)")
    outcome, name = searched.baseline(0)  # type: ignore[misc]
    assert name == "baseline-0000"
    assert outcome.score == plain.outcomes[0].score  # the very picture that random begins with
    assert sha256(Store.open(tmp_path / "paths").picture(name)) == plain.digests[0]
    assert outcome.id not in searched.outcomes
    assert searched.spent(0).nfe <= 40
    assert plain.baselines == {}


def test_looking_again_at_a_row_where_it_stands_costs_one_look(network: TextSiT, tmp_path: Path) -> None:
    def look_twice(task: Task) -> Plan:
        [half] = yield fresh(task, 1, stop=0.5, ask="nothing")
        [seen] = yield [resume(task, half, stop=0.5, ask="score")]
        yield [resume(task, seen)]

    record = drive(tmp_path / "run", tiny_rig(network), look_twice)
    assert record.costs[1].with_seconds(0) == Cost(nfe=1, evals=2, verdicts=1, decodes=1)
    assert not math.isnan(record.outcomes[1].score)
    assert record.outcomes[2].finished


def test_a_picture_nobody_asked_a_score_of_gets_none(network: TextSiT, tmp_path: Path) -> None:
    verifier = Failing(lambda n: False)
    record = drive(
        tmp_path / "run", tiny_rig(network, verifier=verifier), lambda task: iter_plan(fresh(task, 2, ask="nothing"))
    )
    assert all(o.score is None for o in record.of(0))  # not asked, which is not the same as "could not judge"
    assert record.spent(0).verdicts == 0
    assert verifier.calls == 0  # no verdict, not even a free one, that a plan could profit from


def iter_plan(proposals: list) -> Plan:  # type: ignore[type-arg]
    yield proposals


@pytest.mark.parametrize("plan", [lambda task: iter_plan([])])
def test_a_plan_that_proposes_nothing_is_refused(
    network: TextSiT, tmp_path: Path, plan: Callable[[Task], Plan]
) -> None:
    with pytest.raises(SecondlookError, match="proposed nothing; a plan ends by returning"):
        drive(tmp_path / "run", tiny_rig(network), plan)


def test_a_plan_that_breaks_leaves_a_run_with_its_traceback(network: TextSiT, tmp_path: Path) -> None:
    def broken(task: Task) -> Plan:
        yield fresh(task, 1)
        raise ZeroDivisionError("by accident")

    def mended(task: Task) -> Plan:
        yield fresh(task, 1)
        yield fresh(task, 1)

    with pytest.raises(SecondlookError, match=r"plan failed \(ZeroDivisionError: by accident\)"):
        drive(tmp_path / "run", tiny_rig(network), broken)
    record = drive(tmp_path / "run", tiny_rig(network), mended)
    assert "by accident" in record.failures[0]["plan"]
    assert len(record.outcomes) == 2


def stop_after(folder: Path, network: TextSiT, plan: object, calls: int, **how: object) -> None:
    """A run in ``folder`` that is interrupted in the verifier's call after so many."""

    def interrupt(n: int) -> bool:
        if n > calls:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        drive(folder, tiny_rig(network, verifier=Failing(interrupt)), plan, **how)  # type: ignore[arg-type]


def test_a_plan_that_changed_since_the_run_is_told_apart(network: TextSiT, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stop_after(folder, network, "random(n=6)", 1)
    with pytest.raises(ReplayError, match="The plan now proposes other work than it did after 0 outcomes of prompt 0"):
        drive(folder, tiny_rig(network), "zero_order(neighbours=1)", nfe=8)


@pytest.mark.parametrize(
    "change",
    [{"stop": 0.5}, {"ask": "nothing"}, {"steps": 2}, {"condition": Condition("a white square")},
     {"condition": Condition(PROMPTS[0], context=(Context(0, Remark("more red")),))}, {"move": Fresh(Key.root(9))}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_any_change_of_a_recorded_proposal_is_told_apart(
    network: TextSiT, tmp_path: Path, change: dict[str, Any]
) -> None:
    def plan(task: Task, **how: Any) -> Plan:
        yield fresh(task, 1)
        [proposal] = fresh(task, 1)
        yield [replace(proposal, **how)]
        yield fresh(task, 1)

    folder, rig = tmp_path / "run", tiny_rig(network)
    rig.grids = lambda steps: grid(steps, 3.0)
    stop_after(folder, network, plan, 2)
    with pytest.raises(ReplayError, match="Outcome 1 was recorded as"):
        drive(folder, rig, lambda task: plan(task, **change))
    record = drive(folder, rig, plan)
    assert record.done
    assert len(record.outcomes) == 3


# ---- replay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["euler", "heun", "sde"])
@pytest.mark.parametrize("plan", [*SEARCHES, "zero_order(neighbours=1, patience=50, radius=1.0)"])
def test_every_picture_is_drawn_again_from_its_derivation_alone(
    network: TextSiT, tmp_path: Path, plan: str, solver: str
) -> None:
    record = drive(tmp_path / "run", tiny_rig(network, solver=solver), plan, prompts=PROMPTS[:2], nfe=40)
    alone = tiny_rig(network, solver=solver)  # a rig that has seen nothing, and no store
    shown = {i: d for i, d in record.digests.items() if d}
    assert len(shown) >= 8
    for number, digest in shown.items():
        assert sha256(replay(alone, number, lambda i: record.outcomes[i].proposal)) == digest


def test_a_climb_may_be_deeper_than_the_interpreters_stack(network: TextSiT) -> None:
    rig, key = tiny_rig(network), tasks()[0].key
    proposals = [fresh(tasks()[0], 1)[0]]
    for i in range(1500):
        move = Near(i, key.child(i % 3), 0.1)
        proposals.append(replace(proposals[0], move=move))
    assert replay(rig, 1500, lambda i: proposals[i]).shape == (64, 64, 3)


def test_a_lost_states_folder_is_made_again(network: TextSiT, tmp_path: Path) -> None:
    """Half-made states are a cache: a run resumed without them ends in the same pictures."""
    plan, limit = "paths(n=2, width=2)", 60
    whole = drive(tmp_path / "whole", tiny_rig(network), plan, nfe=limit)

    def interrupt(n: int) -> bool:
        if n == 3:
            raise KeyboardInterrupt
        return False

    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        drive(folder, tiny_rig(network, verifier=Failing(interrupt)), plan, nfe=limit)
    removed = [p.unlink() for p in (folder / "states").iterdir()]
    assert removed
    again = drive(folder, tiny_rig(network), plan, nfe=limit)
    assert essence(again) == essence(whole)
