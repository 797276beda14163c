"""Evaluations that were paid for once: what a paid look saw is the first evaluation of a row that goes on from there; and
guidance in an interval is priced, charged and done by one decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secondlook.backends.base import guide_of
from secondlook.engine.derive import replay
from secondlook.engine.record import Record
from secondlook.engine.rig import Rig
from secondlook.engine.store import Store, sha256
from secondlook.flow.guidance import AutoGuidance, ClassifierFree, Null, Plain
from secondlook.models.text import TextSiT
from secondlook.plans.moves import clone, fresh, resume, rewind
from secondlook.registry import SOLVERS
from secondlook.settings import Settings, make_named
from secondlook.types import Condition, Cost, Plan, Task
from tests.helpers import PROMPTS, drive, tiny_network, tiny_rig
from tests.test_walls import charged, counted

STEPPED = [name for name in SOLVERS if name != "dopri5"]
REUSING = [name for name in STEPPED if make_named("solver", name).reuses]


def look_and_go_on(ask: str, **how: Any) -> Callable[[Task], Plan]:
    def plan(task: Task) -> Plan:
        [half] = yield fresh(task, 1, stop=0.45, ask=ask, **how)
        yield [resume(task, half), *clone(task, half, 1)]

    return plan


def drawn(network: TextSiT, folder: Path, plan: Any, **options: Any) -> tuple[Record, int]:
    rig, counter = counted(tiny_rig(network, **options))
    return drive(folder, rig, plan), counter.rows


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("solver", STEPPED)
def test_what_a_look_saw_is_not_bought_again_and_changes_no_bit(
    network: TextSiT, tmp_path: Path, solver: str, guidance: float, rows: int
) -> None:
    how: dict[str, Any] = {"solver": solver, "guidance": guidance, "rows": rows}
    looked, seen = drawn(network, tmp_path / "a", look_and_go_on("score"), **how)
    blind, unseen = drawn(network, tmp_path / "b", look_and_go_on("nothing"), **how)
    assert [looked.digests[i] for i in (1, 2)] == [blind.digests[i] for i in (1, 2)]
    for i in (1, 2):
        saved = blind.costs[i].nfe - looked.costs[i].nfe
        assert saved == int(solver in REUSING)
    if rows == 1:
        passes = 1 if guidance == 1.0 else 2
        assert seen - unseen == passes * (
            1 - 2 * int(solver in REUSING)
        )  # the look itself, less what two rows were spared
        assert charged(looked).evals == seen
    for number in (1, 2):
        alone = tiny_rig(network, **how)
        assert sha256(replay(alone, number, lambda i: looked.outcomes[i].proposal)) == looked.digests[number]


def test_another_condition_is_asked_again(network: TextSiT, tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        [half] = yield fresh(task, 1, stop=0.45)
        yield [resume(task, half, condition=Condition(PROMPTS[1])), *rewind(task, half, 1, 0.45, stop=1.0)]

    record, rows = drawn(network, tmp_path / "run", plan, rows=1)
    plain = tiny_rig(network).price(0.45, 1.0)
    assert record.costs[1].nfe == record.costs[2].nfe == plain.nfe
    assert charged(record).evals == rows


def test_a_free_look_costs_nothing_and_shows_the_last_steps_estimate(network: TextSiT, tmp_path: Path) -> None:
    free, rows = drawn(network, tmp_path / "free", look_and_go_on("score", look="free"), rows=1)
    paid, more = drawn(network, tmp_path / "paid", look_and_go_on("score"), rows=1)
    assert free.costs[0].nfe == paid.costs[0].nfe - 1
    assert free.costs[1].nfe == paid.costs[1].nfe + 1  # nothing was bought ahead
    assert free.digests[0] != paid.digests[0]
    assert [free.digests[i] for i in (1, 2)] == [paid.digests[i] for i in (1, 2)]
    rig = tiny_rig(network, rows=1)
    proposals = {i: o.proposal for i, o in free.outcomes.items()}
    assert sha256(replay(rig, 0, proposals.__getitem__)) == free.digests[0]
    assert Store.open(tmp_path / "free").picture(0).shape == (64, 64, 3)
    assert rows <= more + 2


def test_a_budget_buys_a_free_look_for_the_price_of_its_steps(network: TextSiT, tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        yield fresh(task, 2, stop=0.45, look="free")

    whole = drive(tmp_path / "whole", tiny_rig(network), plan)
    each = [whole.costs[n].nfe for n in (0, 1)]
    assert len(drive(tmp_path / "enough", tiny_rig(network), plan, nfe=sum(each)).outcomes) == 2
    assert len(drive(tmp_path / "less", tiny_rig(network), plan, nfe=sum(each) - 1).outcomes) == 1


def test_rows_that_were_looked_at_for_free_and_for_pay_go_on_together_at_their_own_prices(
    network: TextSiT, tmp_path: Path
) -> None:
    told: list[Cost] = []

    def plan(task: Task, together: bool = True) -> Plan:
        halves = yield [*fresh(task, 1, stop=0.45, look="free"), *fresh(task, 1, stop=0.45)]
        free, paid = (resume(task, half) for half in halves)
        told[:] = [task.price(free), task.price(paid)]
        yield [free, paid] if together else [free]
        if not together:
            yield [paid]

    rig = tiny_rig(network)
    record = drive(tmp_path / "run", rig, plan)
    assert told == [rig.price(0.45, 1.0, "score", known=known) for known in (False, True)]
    assert [record.costs[i].with_seconds(0) for i in (2, 3)] == told
    assert None not in record.digests.values()
    assert record.digests == drive(tmp_path / "apart", rig, lambda task: plan(task, together=False)).digests


def test_a_look_again_where_a_look_was_paid_is_free(network: TextSiT, tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        [half] = yield fresh(task, 1, stop=0.45)
        yield [resume(task, half, stop=0.45)]

    record, rows = drawn(network, tmp_path / "run", plan, rows=1)
    assert record.costs[1].with_seconds(0) == Cost(verdicts=1, decodes=1)
    assert record.digests[0] == record.digests[1]
    assert charged(record).evals == rows


# ---- guidance in an interval -----------------------------------------------------------------------------------------


def intervals() -> st.SearchStrategy[tuple[float, float]]:
    ends = st.one_of(
        st.floats(0, 1), st.sampled_from([i / 20 for i in range(21)]), st.sampled_from([i / 6 for i in range(7)])
    )
    return st.tuples(ends, ends).filter(lambda v: v[0] < v[1])


def guided(network: TextSiT, rig: Rig, auto: bool, interval: tuple[float, float]) -> Rig:
    with torch.inference_mode():
        null = network.encode([None])
    weak = tiny_network(3)
    held = Null(null)
    guide = AutoGuidance(1.5, weak, interval) if auto else ClassifierFree(2.0, held.join, held.null, None, interval)
    return replace(rig, flow=replace(rig.flow, guide=guide))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    interval=intervals(), solver=st.sampled_from([s for s in STEPPED if s != "ddpm"]), steps=st.sampled_from((3, 6, 20))
)
def test_guidance_in_an_interval_is_priced_charged_and_done_alike(
    network: TextSiT, tmp_path_factory: pytest.TempPathFactory, interval: tuple[float, float], solver: str, steps: int
) -> None:
    def plan(task: Task) -> Plan:
        halves = yield fresh(task, 2, stop=0.5, steps=steps)
        yield [
            *(resume(task, h, steps=steps) for h in halves),
            *fresh(task, 2, steps=steps),
            *rewind(task, halves[0], 1, 0.2, stop=0.8),
        ]

    rig, counter = counted(guided(network, tiny_rig(network, rows=3, solver=solver), False, interval))
    rig = replace(rig, pad=False)
    record = drive(tmp_path_factory.mktemp("run") / "run", rig, plan)
    assert charged(record).evals == counter.rows


@pytest.mark.parametrize("interval", [(0.7, 1.0), (0.15, 0.35), (0.3, 0.95)])
@pytest.mark.parametrize("solver", ["euler", "heun", "rk4", "sde_heun"])
def test_autoguidance_in_an_interval_too(
    network: TextSiT, tmp_path: Path, solver: str, interval: tuple[float, float]
) -> None:
    rig, counter = counted(guided(network, tiny_rig(network, rows=2, solver=solver), True, interval))
    weak = counted(rig)[0].flow.guide.weak  # type: ignore[attr-defined]
    asked: list[int] = []
    spied = replace(rig.flow.guide, weak=Spied(weak, asked))  # type: ignore[type-var]
    rig = replace(rig, flow=replace(rig.flow, guide=spied), pad=False)
    record = drive(tmp_path / "run", rig, "random(n=3)")
    assert charged(record).evals == counter.rows + sum(asked)


class Spied:
    def __init__(self, inner: Any, asked: list[int]):
        self.inner, self.asked, self.predicts, self.shape = inner, asked, inner.predicts, inner.shape

    def __call__(self, x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        self.asked.append(len(x))
        found: torch.Tensor = self.inner(x, t, cond)
        return found


class Colours:
    """Encodings of one number a row."""

    def __init__(self, values: torch.Tensor):
        self.values = values

    def rows(self, index: Any) -> Colours:
        return Colours(self.values[list(index)])

    @staticmethod
    def stack(items: list[Colours]) -> Colours:
        return Colours(torch.cat([i.values for i in items]))


class Painting:
    """A network that answers with what it is asked for."""

    predicts, shape = "data", (3, 2, 2)

    def __call__(self, x: torch.Tensor, t: torch.Tensor, cond: Colours) -> torch.Tensor:
        return cond.values.view(-1, 1, 1, 1).expand_as(x)


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({}, (7.0, 7.0, 7.0)),
        ({"cfg_channels": 2}, (7.0, 7.0, 3.0)),
        ({"cfg_interval": (0.0, 0.6)}, (7.0, 7.0, 7.0)),
        ({"cfg_interval": (0.6, 0.8)}, (3.0, 3.0, 3.0)),
    ],
)
def test_guidance_goes_from_the_unconditional_past_the_wanted(
    options: dict[str, Any], channels: tuple[float, ...]
) -> None:
    """1 + 3 (3 - 1) is 7, where 3 is wanted and 1 is what comes unasked."""
    guide = guide_of(Settings(guidance=3.0, **options), lambda: Colours(torch.ones(1)), 3)
    wanted = Colours(torch.full((2,), 3.0))
    found = guide(Painting(), torch.zeros(2, 3, 2, 2), torch.full((2,), 0.5), wanted)  # type: ignore[arg-type]
    assert all(torch.equal(found[:, i], torch.full((2, 2, 2), c)) for i, c in enumerate(channels))


def test_a_search_without_guidance_takes_no_interval(network: TextSiT) -> None:
    assert isinstance(guide_of(Settings(), lambda: None, 3), Plain)
