"""What every plan, verifier, critic, comparer and selector must do: the contracts, over all that ships and over the examples."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from examples.own_critic import Counting, reflect
from examples.own_frugal_plan import frugal
from examples.own_selector import MeanRank
from secondlook.api import open_run
from secondlook.engine.record import Record
from secondlook.engine.select import mean_ranks, select
from secondlook.engine.store import Store
from secondlook.engine.table import to_csv, to_rows
from secondlook.errors import ConfigError, SecondlookError
from secondlook.models.text import TextSiT
from secondlook.registry import PLANS, SELECTORS, SOLVERS, VERIFIERS
from secondlook.settings import make_named
from secondlook.solvers.contract import SolverContract
from secondlook.testing import (
    ComparerContract,
    CriticContract,
    PlanContract,
    SelectorContract,
    VerifierContract,
    simulate,
)
from secondlook.types import Candidate, Comparer, Condition, Critic, Remark, Selector, Verifier
from tests.helpers import PROMPTS, drive, tiny_rig

# ---- what ships: names come from the registry, so that a new row needs no test of its own -------------------------------


def _each(contract: type, table: Sequence[str], attribute: str) -> list[object]:
    return [
        pytest.param(contract, name, attribute, test, id=f"{name}-{test[5:]}")
        for name in table
        for test in dir(contract)
        if test.startswith("test_")
    ]


CASES = [
    *_each(PlanContract, list(PLANS), "plan"),
    *_each(
        VerifierContract,
        [v for v, row in VERIFIERS.items() if v not in ("learned", "oracle_is") and ".eyes." not in row.target],
        "made",
    ),
    *_each(SelectorContract, [s for s in SELECTORS if s != "greedy_fid"], "made"),
]


SOLVER_CASES = [(n, t) for n in SOLVERS for t in dir(SolverContract) if t.startswith("test_")]


@pytest.mark.parametrize(("name", "test"), SOLVER_CASES, ids=[f"{n}-{t[5:]}" for n, t in SOLVER_CASES])
def test_every_solver_keeps_its_contract(name: str, test: str) -> None:
    under = SolverContract()
    under.solver = lambda: make_named("solver", name)  # type: ignore[method-assign]
    under.searched = name != "dopri5"
    getattr(under, test)()


@pytest.mark.parametrize(("contract", "name", "attribute", "test"), CASES)
def test_everything_in_the_registry_keeps_its_contract(contract: type, name: str, attribute: str, test: str) -> None:
    kind = {VerifierContract: "verifier", SelectorContract: "selector"}.get(contract)
    under = contract()
    setattr(under, attribute, name if kind is None else lambda: make_named(str(kind), name))
    getattr(under, test)()


def test_solvers_name_what_they_ask_and_whether_they_draw() -> None:
    for name in SOLVERS:
        solver = make_named("solver", name)
        assert isinstance(solver.random, bool)
        assert isinstance(solver.reuses, bool)
        if name != "dopri5":
            assert len(solver.asks(0.2, 0.4)) == solver.evals(last=False)
            assert len(solver.asks(0.8, 1.0)) == solver.evals(last=True)
    assert make_named("solver", "ddim(eta=0.5)").random
    assert not make_named("solver", "ddim").random
    assert make_named("solver", "dpmpp(eta=1.0)").random
    assert not make_named("solver", "dpmpp").random


# ---- the examples ------------------------------------------------------------------------------------------------------


class TestFrugal(PlanContract):
    plan = "examples.own_frugal_plan:frugal"


class TestReflect(PlanContract):
    plan = "examples.own_critic:reflect"

    def test_it_copes_with_a_critic_that_says_nothing(self) -> None:
        assert self.play(remark=lambda o: None).outcomes

    def play(self, **how):  # type: ignore[no-untyped-def]
        return super().play(**{"remark": lambda o: Remark("more red", self.score(o)), **how})


class TestMeanRank(SelectorContract):
    def made(self) -> Selector:
        return MeanRank()


class TestCounting(CriticContract):
    def made(self) -> Critic:
        return Counting()


class Brighter:
    """Compares by brightness."""

    name = "brighter"

    def __call__(self, first: Tensor, second: Tensor, conditions: Sequence[Condition]) -> Tensor:
        a, b = (s.double().flatten(1).mean(1) for s in (first, second))
        return torch.sigmoid((a - b) / 8)


class TestBrighter(ComparerContract):
    def made(self) -> Comparer:
        return Brighter()


class TestWarm(VerifierContract):
    def made(self) -> Verifier:
        class Warm:
            name = "warm"

            def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> dict[str, Tensor]:
                red, blue = samples[..., 0].double().mean((1, 2)), samples[..., 2].double().mean((1, 2))
                return {"score": red - blue, "red": red, "blue": blue}

        return Warm()


def test_the_frugal_plan_keeps_a_ring_back() -> None:
    for nfe in (100, 137, 400):
        played = simulate(frugal, budget={"nfe": nfe}, score=lambda o: float(o.id))
        moves = [o.proposal.move.name for o in played.outcomes]
        assert moves == ["fresh"] * moves.count("fresh") + ["near"] * moves.count("near")
        assert moves.count("near") == (4 if nfe >= 100 else moves.count("near"))
        assert nfe - 20 < played.spent.nfe <= nfe
        assert not played.out_of_budget  # it stopped by itself


def test_reflection_stops_when_nothing_is_wrong_and_keeps_the_best(network: TextSiT, tmp_path: Path) -> None:
    played = simulate(reflect, remark=lambda o: Remark("" if o.id == 5 else "more red", o.id / 10))
    assert len(played.outcomes) == 6
    assert played.returned.id == 5
    rig = tiny_rig(network)
    rig.critic = Counting()
    record = drive(tmp_path / "run", rig, lambda task: reflect(task, most=5))
    assert [o.remark is not None and bool(o.remark.text) for o in record.of(0)] == [True] * 5
    assert record.spent(0).remarks == 5
    kept = record.winner(0)
    assert kept is not None
    assert kept.remark is not None
    assert kept.remark.score == max(o.remark.score for o in record.of(0) if o.remark)
    assert record.ended[0]["named"] == kept.id


def test_a_selector_has_the_last_word_and_is_logged(network: TextSiT, tmp_path: Path) -> None:
    drive(tmp_path / "run", tiny_rig(network), "random(n=4)", prompts=PROMPTS[:2])
    store = Store.open(tmp_path / "run")
    before = [Record.read(store).winner(i) for i in (0, 1)]

    class Worst:
        name = "worst"

        def __call__(self, candidates):  # type: ignore[no-untyped-def]
            return [[min(some, key=lambda c: c.score).id] for some in candidates]

    chosen = select(store, Worst(), 2)
    record = Record.read(store)
    assert record.selector == "worst"
    for task in (0, 1):
        winner = record.winner(task)
        assert winner is not None
        assert winner.id == chosen[task][0]
        assert before[task] is not None
        assert winner.id != before[task].id  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "chosen",
    {
        "an index that is not there": lambda good, half: [[99], [good[1]]],
        "another prompt's": lambda good, half: [[good[1]], [good[0]]],
        "one twice": lambda good, half: [[good[0], good[0]], [good[1]]],
        "none": lambda good, half: [[], [good[1]]],
        "a half-made one": lambda good, half: [[half], [good[1]]],
        "the unsearched one": lambda good, half: [[-1], [good[1]]],
        "too few prompts": lambda good, half: [[good[0]]],
        "too many prompts": lambda good, half: [[good[0]], [good[1]], []],
    }.items(),
    ids=lambda case: case[0],
)
def test_a_selector_that_chooses_what_it_may_not_is_refused(
    network: TextSiT, tmp_path: Path, chosen: tuple[str, Any]
) -> None:
    drive(tmp_path / "run", tiny_rig(network), "paths(n=2, width=2)", prompts=PROMPTS[:2], nfe=40)
    store = Store.open(tmp_path / "run")
    before = Record.read(store)
    good = [next(o.id for o in before.of(i) if o.finished) for i in (0, 1)]
    half = next(o.id for o in before.of(0) if not o.finished and before.digests[o.id])
    assert before.baselines

    class Careless:
        name = "careless"

        def __call__(self, candidates: Any) -> Any:
            return chosen[1](good, half)

    with pytest.raises(SecondlookError, match='The selector "careless" must choose'):
        select(store, Careless(), 2)
    assert Record.read(store).selector is None


def test_a_measure_that_is_no_number_is_the_last_in_rank() -> None:
    nan = math.nan
    assert mean_ranks([nan, 2.0, 3.0, 2.0, nan]).tolist() == [3.5, 1.5, 0.0, 1.5, 3.5]
    scores: tuple[float | None, ...] = (nan, 0.1, None, 0.3)
    given = [[Candidate(i, 0, s, {}, lambda: None) for i, s in enumerate(scores)]]  # type: ignore[arg-type,return-value]
    assert make_named("selector", "rank_mean(count=2)")(given) == [[3, 1]]


def test_a_comparer_is_asked_and_charged(network: TextSiT, tmp_path: Path) -> None:
    from dataclasses import replace

    from secondlook.plans.moves import fresh

    def plan(task):  # type: ignore[no-untyped-def]
        [first] = yield fresh(task, 1)
        some = yield [replace(p, ask="score+compare", against=first.id) for p in fresh(task, 3)]
        assert all((o.preference > 0.5) == (o.score > first.score) for o in some)

    rig = tiny_rig(network)
    rig.comparer = Brighter()
    record = drive(tmp_path / "run", rig, plan)
    assert record.spent(0).comparisons == 3
    assert record.spent(0).verdicts == 4


def test_a_run_is_a_table(network: TextSiT, tmp_path: Path) -> None:
    record = drive(tmp_path / "run", tiny_rig(network), "paths(n=2, width=2)", nfe=40, prompts=PROMPTS[:2])
    store = Store.open(tmp_path / "run")
    rows = list(to_rows(store))
    assert len(rows) == len(record.outcomes) + len(record.baselines)
    assert [r["outcome"] for r in rows if r["chosen"]] == [w.id for i in (0, 1) if (w := record.winner(i))]
    assert sum(r["nfe"] for r in rows if r["n"] is not None) == sum(record.spent(i).nfe for i in (0, 1))
    assert all((tmp_path / "run" / r["picture"]).is_file() for r in rows if r["picture"])
    assert any("said.redness" in r for r in rows)
    run = open_run(tmp_path / "run")
    assert run.to_rows() == rows
    assert [r.prompt for r in run] == list(PROMPTS[:2])
    assert repr(run) == f"<Run of 2 prompts in {tmp_path / 'run'}>"
    assert run.to_csv(tmp_path / "run.csv") == len(rows)
    (tmp_path / "same.csv").write_bytes((tmp_path / "run.csv").read_bytes())
    assert to_csv(store, tmp_path / "run.csv") == len(rows)
    assert (tmp_path / "same.csv").read_bytes() == (tmp_path / "run.csv").read_bytes()
    with (tmp_path / "run.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [r["prompt"] for r in read] == [r["prompt"] for r in rows]
    assert [float(r["score"]) for r in read if r["score"]] == [r["score"] for r in rows if r["score"] is not None]


def test_simulated_plans_are_refused_what_runs_refuse() -> None:
    from secondlook.moves import Resume
    from secondlook.types import Proposal

    def wrong(task):  # type: ignore[no-untyped-def]
        yield [Proposal(Resume(3), task.condition)]

    with pytest.raises(ConfigError, match="There is no outcome 3"):
        simulate(wrong)
