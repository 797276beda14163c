"""Comparers, pairs judged in both orders, tournaments, and what a comparison of two pictures that are there costs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

import secondlook
from secondlook.engine.driver import Driver
from secondlook.engine.record import Record
from secondlook.engine.select import candidates_of
from secondlook.engine.store import Store
from secondlook.engine.table import to_rows
from secondlook.errors import ConfigError
from secondlook.models.text import TextSiT
from secondlook.moves import Move, Same
from secondlook.plans.moves import compare, fresh, rewind
from secondlook.plans.pairs import Table, strengths
from secondlook.report.html import write_report
from secondlook.settings import make_named
from secondlook.testing import ComparerContract, PlanContract, simulate
from secondlook.types import Comparer, Condition, Cost, Outcome, Plan, Proposal, Task
from secondlook.verify.compare import Compared, share
from tests.helpers import PROMPTS, Brighter, drive, essence, spent, tiny_rig

FORMS = ("knockout", "swiss")


class TestLearned(ComparerContract):
    def made(self) -> Comparer:
        found: Comparer = make_named("comparer", "learned")
        return found


class TestByScore(ComparerContract):
    def made(self) -> Comparer:
        found: Comparer = make_named("comparer", "by_score(verifier='brightness', scale=0.01)")
        return found


class TestSwiss(PlanContract):
    plan = "tournament(n=7, form='swiss')"


class TestOnce(PlanContract):
    plan = "tournament(n=5, orders=1, scored=False)"


def prefer(worth: Callable[[int], float], place: float = 0.0) -> Callable[[Outcome], float]:
    """A comparer of outcomes by a made-up worth, that likes the first place by so many logits."""

    def told(outcome: Outcome) -> float:
        one, other = outcome.proposal.move.parents[0], outcome.proposal.against
        assert other is not None
        return share(worth(one) + place, worth(other), 1.0)

    return told


# ---- what a comparison is ----------------------------------------------------------------------------------------------


def test_comparing_two_pictures_that_are_there_costs_one_comparison_and_makes_no_picture(
    network: TextSiT, tmp_path: Path
) -> None:
    def plan(task: Task) -> Plan:
        one, other = yield fresh(task, 2)
        assert task.price(compare(task, one, other)) == Cost(comparisons=1)
        [said, back] = yield [compare(task, one, other), compare(task, other, one)]
        assert said.preference is not None
        assert said.preference + back.preference == pytest.approx(1)
        assert (said.preference > 0.5) == (one.score > other.score)
        assert not said.finished
        yield rewind(task, said, 1, 0.5)  # its state is that of the picture it is about

    record = drive(tmp_path / "run", tiny_rig(network), plan, prompts=PROMPTS[:2])
    for task in (0, 1):
        assert record.spent(task).comparisons == 2
        assert record.spent(task).decodes == record.spent(task).verdicts == 3
        for n in (4 + task, 6 + task):
            assert record.costs[n].with_seconds(0) == Cost(comparisons=1)
            assert record.digests[n] is None
            assert not record.said(n)
            assert not (tmp_path / "run" / "pictures" / f"{n:06d}.png").exists()
    store = Store.open(tmp_path / "run")
    assert [[c.id for c in some] for some in candidates_of(store, 2)] == [[0, 2, 8], [1, 3, 9]]
    assert not record.failures
    rows = {r["outcome"]: r for r in to_rows(store)}
    assert rows[4]["preference"] == record.outcomes[4].preference
    assert rows[4]["picture"] is None
    page = write_report(tmp_path / "run").read_text()
    assert "6 pictures in" in page
    assert 'id="o4"' not in page


def test_what_is_only_asked_about_is_asked_for_something_and_has_a_picture() -> None:
    def of(move_of: Callable[[Sequence[Outcome]], Proposal]) -> Callable[[Task], Plan]:
        def plan(task: Task) -> Plan:
            done, half = yield [*fresh(task, 1), *fresh(task, 1, stop=0.5, ask="nothing")]
            [asked] = yield [Proposal(Same(done.id), task.condition, ask="remark")]
            yield [move_of([done, half, asked])]

        return plan

    where = Condition("a red circle")
    for wrong, said in (
        (lambda o: Proposal(Same(o[1].id), where), "outcome 1 has none"),
        (lambda o: Proposal(Same(o[2].id), where), "outcome 2 has none"),
        (lambda o: Proposal(Same(o[0].id), where, ask="nothing"), "draws nothing"),
        (lambda o: Proposal(Same(o[0].id), where, stop=0.5), "draws nothing"),
        (lambda o: Proposal(Same(o[0].id), where, ask="compare", against=o[2].id), "no picture of its own"),
    ):
        with pytest.raises(ConfigError, match=said):
            simulate(of(wrong))
    assert Move.from_dict(Same(3).to_dict()) == Same(3)


def test_a_tournament_that_is_stopped_goes_on_to_the_same_winner_and_ledger(network: TextSiT, tmp_path: Path) -> None:
    plan = "tournament(n=5)"
    whole = drive(tmp_path / "whole", tiny_rig(network), plan, prompts=PROMPTS[:2])

    def stop(driver: Driver) -> None:
        if driver.drawn >= 13:  # among the comparisons
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path / "run", tiny_rig(network), plan, prompts=PROMPTS[:2], progress=stop)
    again = drive(tmp_path / "run", tiny_rig(network), plan, prompts=PROMPTS[:2])
    assert essence(again) == essence(whole)
    assert spent(again) == spent(whole)
    assert again.ended == whole.ended
    for task in (0, 1):  # Brighter judges as the verifier does
        done = [o for o in whole.of(task) if o.finished]
        assert whole.winner(task) == max(done, key=lambda o: o.score or 0)
        assert whole.spent(task).comparisons == 8
        assert whole.ended[task]["returned"] == {"pairs": 4, "flip_rate": 0.0}


# ---- pairs -------------------------------------------------------------------------------------------------------------


def test_the_two_orders_of_a_pair_are_averaged_and_flips_are_counted() -> None:
    table = Table()
    table.put((1, 2), [0.9, 0.2])
    table.put((1, 3), [0.9, 0.7])  # the first place wins both times
    table.put((2, 3), [0.4, math.nan])
    table.put((4, 5), [None, math.nan])
    assert table.shares == pytest.approx({(1, 2): 0.85, (1, 3): 0.6, (2, 3): 0.4})
    assert table.told() == {"pairs": 3, "flip_rate": 0.5}
    assert Table().told() == {"pairs": 0, "flip_rate": None}


def test_bradley_terry_finds_the_strengths_that_made_the_shares() -> None:
    true = {1: 1.5, 2: 0.5, 3: -0.25, 4: -1.75}
    shares = {(a, b): share(true[a], true[b], 1.0) for a, b in combinations(true, 2)}
    assert strengths(shares, list(true), prior=1e-9, rounds=3000) == pytest.approx(true, abs=1e-4)
    assert sum(strengths(shares, list(true)).values()) == pytest.approx(0)
    won = strengths({(1, 2): 1.0, (1, 3): 1.0, (2, 3): 1.0}, [1, 2, 3, 9])
    assert all(math.isfinite(v) for v in won.values())
    assert won[1] > won[2] > won[3]
    assert won[9] == pytest.approx(0, abs=0.2)  # nobody met it


def test_a_strength_is_where_the_likelihood_is_flat() -> None:
    rng = random.Random(0)
    shares = {(a, b): rng.random() for a, b in combinations(range(6), 2) if rng.random() < 0.7}
    found = strengths(shares, range(6), prior=0.5, rounds=3000)
    middle = max(found.values())  # the mean player's logit is fixed by the prior, not by the centring

    def slope(p: int, at: float) -> float:
        own = 0.25 - 0.5 * share(found[p], at, 1.0)
        return own + sum((s if p == a else 1 - s) - share(found[p], found[b if p == a else a], 1.0)
                         for (a, b), s in shares.items() if p in (a, b))  # fmt: skip

    low, high = -abs(middle) - 5, abs(middle) + 5
    for _ in range(80):  # the place of the mean player, by which all slopes vanish together
        at = (low + high) / 2
        low, high = (at, high) if sum(slope(p, at) for p in range(6)) < 0 else (low, at)
    assert all(abs(slope(p, at)) < 1e-6 for p in range(6))


# ---- tournaments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [1, 2, 5, 8, 13])
def test_the_best_by_a_clear_comparer_wins_whatever_the_scores_say(form: str, n: int) -> None:
    for seed in range(4):
        order = random.Random(seed).sample(range(n), n)
        played = simulate(
            f"tournament(n={n}, form='{form}')", score=lambda o: 0.0, prefer=prefer(lambda i, w=order: 4.0 * w[i])
        )
        assert played.returned["winner"].id == order.index(n - 1)


def test_a_knockout_of_n_takes_n_less_one_pairs_in_both_orders() -> None:
    for n in (2, 3, 7, 8):
        for orders in (1, 2):
            played = simulate(f"tournament(n={n}, orders={orders})", prefer=prefer(float))
            assert played.spent.comparisons == orders * (n - 1)
            assert played.spent.nfe == 20 * n
            assert played.returned["pairs"] == n - 1
    played = simulate("tournament(n=16, form='swiss', rounds=3)", prefer=prefer(float))
    assert played.spent.comparisons == 2 * 3 * 8
    assert simulate("tournament(n=4, scored=False)", prefer=prefer(float)).spent.verdicts == 0


@pytest.mark.parametrize("form", FORMS)
def test_both_orders_undo_what_a_place_is_worth(form: str) -> None:
    """A comparer that likes the first place by 3 logits, of pictures that are 1 apart."""
    said = {orders: simulate(f"tournament(n=8, form='{form}', orders={orders})", prefer=prefer(lambda i: float(i), place=3.0))
            for orders in (1, 2)}  # fmt: skip
    assert said[2].returned["winner"].id == 7
    assert said[2].returned["flip_rate"] > 0.4
    assert said[1].returned["flip_rate"] is None
    assert said[1].returned["winner"].id != 7


def test_no_pair_meets_twice_in_a_swiss_tournament() -> None:
    played = simulate("tournament(n=6, form='swiss', rounds=20, orders=1)", prefer=lambda o: 0.5)
    pairs = [
        frozenset((*o.proposal.move.parents, o.proposal.against))
        for o in played.outcomes
        if o.proposal.against is not None
    ]
    assert len(pairs) == len(set(pairs)) <= 15


def test_a_comparer_that_cannot_say_leaves_it_to_the_scores() -> None:
    for form in FORMS:
        played = simulate(
            f"tournament(n=6, form='{form}')", score=lambda o: -abs(o.id - 4.0), prefer=lambda o: math.nan
        )
        assert played.returned["winner"].id == 4
        assert played.returned["pairs"] == 0


def test_a_budget_in_comparisons_is_kept_and_the_best_score_stands() -> None:
    played = simulate("tournament(n=8)", score=lambda o: float(o.id), prefer=lambda o: 0.0, budget={"comparisons": 5})
    assert played.spent.comparisons == 5
    assert played.out_of_budget


@pytest.mark.parametrize("wrong", ["form='cup'", "orders=3", "n=0", "rounds=-1"])
def test_options_that_mean_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="tournament"):
        simulate(f"tournament({wrong})")


# ---- comparers ---------------------------------------------------------------------------------------------------------


def test_a_comparer_over_a_verifier_says_the_sigmoid_of_the_difference() -> None:
    class Numbers:
        name = "numbers"

        def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
            return samples.double().flatten(1)[:, 0] - 2

    class Logits(Numbers):
        def logits(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
            return 10 * self(samples, conditions)

    one, other = (torch.tensor(v, dtype=torch.uint8).reshape(2, 1, 1, 1) for v in ([3, 1], [1, 1]))
    where = [Condition("x")] * 2
    assert Compared(Numbers(), "c", 4.0)(one, other, where).tolist() == pytest.approx([1 / (1 + math.exp(-0.5)), 0.5])
    assert Compared(Logits(), "c")(one, other, where).tolist() == pytest.approx([1 / (1 + math.exp(-20)), 0.5])
    assert [share(math.inf, math.inf, 1), share(-math.inf, 0, 1), share(math.inf, 0, 1)] == [0.5, 0.0, 1.0]
    assert math.isnan(share(math.nan, 0, 1))
    with pytest.raises(ConfigError, match="above 0"):
        Compared(Numbers(), "c", 0.0)


def test_in_scenes_a_tournament_has_its_comparer_and_elsewhere_it_asks_for_one(tmp_path: Path) -> None:
    run = tmp_path / "run"
    [found] = secondlook.draw("a red circle", "tournament(n=2)", run, steps=2, rows=2)
    config = Store.open(run).config
    assert config["comparer"] == "learned"
    assert "comparer's settings" in config["weights"]
    assert found.spent.comparisons == 2
    assert found.chosen == (found.outcome,)
    with pytest.raises(ConfigError, match="no comparer; name one with --comparer"):
        secondlook.draw("7", "tournament(n=2)", tmp_path / "no", world="digits", steps=2)
    with pytest.raises(ConfigError, match="of the world scenes only; take by_score"):
        secondlook.draw("7", "tournament(n=2)", tmp_path / "no", world="digits", steps=2, comparer="learned")
    assert not (tmp_path / "no").exists()
    [digit] = secondlook.draw(
        "7", "tournament(n=2)", tmp_path / "d", world="digits", steps=2, comparer="by_score(verifier='sharpness')"
    )
    assert digit.spent.comparisons == 2


def test_a_lost_picture_loses_to_nobody_and_the_tournament_goes_on(tmp_path: Path) -> None:
    from tests.test_lost import TWO, a_rig

    record = drive(tmp_path / "run", a_rig({1}), "tournament(n=3)", prompts=TWO)
    assert record.done
    assert {n: record.outcomes[n].preference for n in (6, 8)} == pytest.approx({6: math.nan, 8: math.nan}, nan_ok=True)
    winner = record.winner(0)
    assert winner is not None
    assert record.digests[winner.id] is not None
    assert record.spent(0).comparisons == record.spent(1).comparisons == 4


def test_the_comparer_of_the_helpers_keeps_the_contract() -> None:
    class Under(ComparerContract):
        def made(self) -> Comparer:
            return Brighter()

    for test in [t for t in dir(Under) if t.startswith("test_")]:
        getattr(Under(), test)()


def test_a_run_reads_its_comparisons_back(network: TextSiT, tmp_path: Path) -> None:
    drive(tmp_path / "run", tiny_rig(network), "tournament(n=2)")
    record = Record.read(Store.open(tmp_path / "run"))
    said = [o for o in record.of(0) if o.proposal.against is not None]
    assert [(o.proposal.move, o.proposal.against) for o in said] == [(Same(0), 1), (Same(1), 0)]
