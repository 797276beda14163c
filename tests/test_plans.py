"""Plans driven by hand: outcomes are made up, no network runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import secondlook.plans
from secondlook.engine.derive import rotate
from secondlook.errors import ConfigError
from secondlook.moves import Fresh, Resume, Rewind
from secondlook.noise import Key, normal
from secondlook.plans.moves import best, fresh, near, top
from secondlook.plans.paths import paths
from secondlook.plans.random import random
from secondlook.plans.zero_order import zero_order
from secondlook.testing import simulate
from secondlook.types import Condition, Outcome, Plan, Proposal, Task
from tests.helpers import tasks

Judge = Callable[[int, Proposal], float]


class Hand:
    """Plays the engine for one plan: numbers outcomes and gives them the scores a test expects."""

    def __init__(self, plan: Plan, judge: Judge = lambda i, p: 0.0):
        self.plan, self.judge = plan, judge
        self.outcomes: list[Outcome] = []
        self.sent: list[Outcome] | None = None

    def round(self) -> list[Outcome]:
        """The next round, carried out."""
        proposals = next(self.plan) if self.sent is None else self.plan.send(self.sent)
        begin = len(self.outcomes)
        self.sent = [
            Outcome(begin + i, p, self.judge(begin + i, p) if "score" in p.asks else None)
            for i, p in enumerate(proposals)
        ]
        self.outcomes += self.sent
        return self.sent


def scored(*scores: float) -> list[Outcome]:
    return [Outcome(i, Proposal(Fresh(Key.root(0)), Condition("x")), s) for i, s in enumerate(scores)]


def keys(outcomes: Sequence[Outcome]) -> list[str]:
    return [o.proposal.move.key.hex() for o in outcomes if hasattr(o.proposal.move, "key")]


# ---- moves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "order"),
    [
        ((1.0, 3.0, 2.0), [1, 2, 0]),
        ((2.0, 2.0, 2.0), [0, 1, 2]),
        ((math.nan, -1.0, math.nan), [1, 0, 2]),
        ((math.nan, math.nan), [0, 1]),
        ((-math.inf, math.nan, math.inf), [2, 0, 1]),
        ((0.0, -0.0), [0, 1]),
    ],
)
def test_top_takes_the_earliest_of_equals_and_nan_last(scores: tuple[float, ...], order: list[int]) -> None:
    outcomes = scored(*scores)
    assert [o.id for o in top(outcomes, len(scores))] == order
    assert [o.id for o in top(outcomes[::-1], len(scores))] == order  # whatever order they come in
    assert best(outcomes).id == order[0]


def test_near_wants_a_pivot_that_began_from_noise() -> None:
    [task] = tasks()
    stopped = Outcome(0, Proposal(Rewind(0, 0.1, Key(0)), task.condition), 0.0)
    with pytest.raises(ConfigError, match='got a "rewind"'):
        near(task, stopped, 1, 0.3)


def test_fresh_noise_is_numbered_by_the_task_and_repeats_with_it() -> None:
    first, second = tasks(), tasks()
    assert fresh(first[0], 2) + fresh(first[0], 1) == fresh(second[0], 3)
    assert fresh(tasks(seed=1)[0], 1) != fresh(tasks()[0], 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.01, 1.0))
def test_rotate_keeps_the_norm_and_turns_by_the_radius(seed: int, radius: float) -> None:
    noise, direction = normal([Key.root(seed), Key.root(seed).child("d")], (3, 16, 16))
    turned = rotate(noise, direction, radius).double()
    old = noise.double()
    assert turned.norm().item() == pytest.approx(old.norm().item(), rel=1e-6)
    cosine = ((old * turned).sum() / (old.norm() * turned.norm())).item()
    assert cosine == pytest.approx(math.sqrt(1 - radius**2), abs=1e-6)
    assert turned.shape == noise.shape
    assert rotate(noise, direction, radius).dtype == torch.float32


# ---- random ----------------------------------------------------------------------------------------------------------


def test_random_is_one_round_of_distinct_noises_and_ends() -> None:
    hand = Hand(random(tasks()[0], n=7))
    assert len(set(keys(hand.round()))) == 7
    assert all(o.finished and o.proposal.ask == "score" for o in hand.outcomes)
    with pytest.raises(StopIteration):
        hand.round()


# ---- zero order ------------------------------------------------------------------------------------------------------


def test_zero_order_climbs_from_winner_to_winner() -> None:
    hand = Hand(zero_order(tasks()[0], neighbours=3, radius=0.3), lambda i, p: float(i))  # the latest always wins
    [pivot] = hand.round()
    assert pivot.proposal.move.name == "fresh"
    for _ in range(5):
        ring = hand.round()
        assert len(ring) == 3
        assert {o.proposal.move.parent for o in ring} == {pivot.id}
        assert {o.proposal.move.radius for o in ring} == {0.3}
        pivot = ring[-1]
    assert len(set(keys(hand.outcomes))) == len(hand.outcomes)  # nothing is ever proposed twice, a pivot least of all


@pytest.mark.parametrize("patience", [1, 3])
def test_zero_order_parks_a_pivot_no_neighbour_beats_and_starts_again(patience: int) -> None:
    hand = Hand(zero_order(tasks()[0], neighbours=2, patience=patience), lambda i, p: 1.0 if i == 0 else 0.5)
    hand.round()
    for _ in range(patience):
        assert {o.proposal.move.parent for o in hand.round()} == {0}
    [again] = hand.round()
    assert again.proposal.move.name == "fresh"
    assert again.proposal.move != hand.outcomes[0].proposal.move
    # The second climb is about its own pivot although the parked one scored higher; the run still knows the parked one.
    assert {o.proposal.move.parent for o in hand.round()} == {again.id}
    assert best(hand.outcomes).id == 0


def test_zero_order_counts_failures_in_a_row_only() -> None:
    scores = iter([1.0, 0, 0, 2.0, 0, 0, 0, 0, 0, 0])  # a win in the second ring makes the third a first failure
    hand = Hand(zero_order(tasks()[0], neighbours=2, patience=2), lambda i, p: next(scores))
    kinds = [hand.round()[0].proposal.move for _ in range(6)]
    assert [getattr(m, "parent", "fresh") for m in kinds] == ["fresh", 0, 0, 3, 3, "fresh"]


def test_zero_order_with_scores_that_are_no_numbers() -> None:
    scores = iter([math.nan, math.nan, 0.1, math.nan, math.nan, 0.0])
    hand = Hand(zero_order(tasks()[0], neighbours=2), lambda i, p: next(scores))
    hand.round()
    hand.round()
    assert {o.proposal.move.parent for o in hand.round()} == {2}  # any number beats a NaN pivot
    assert hand.round()[0].proposal.move.name == "fresh"  # and no NaN beats a number


def test_equal_neighbours_do_not_win() -> None:
    hand = Hand(zero_order(tasks()[0], neighbours=2), lambda i, p: 0.5)
    hand.round(), hand.round()
    assert hand.round()[0].proposal.move.name == "fresh"


@pytest.mark.parametrize(
    "options", [{"neighbours": 0}, {"radius": 0.0}, {"radius": 1.01}, {"radius": -0.3}, {"patience": 0}]
)
def test_zero_order_refuses(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        next(zero_order(tasks()[0], **options))  # type: ignore[arg-type]


# ---- paths -----------------------------------------------------------------------------------------------------------


def test_paths_follow_the_published_scheme() -> None:
    hand = Hand(paths(tasks()[0], n=2, width=3, start=0.25, back=0.15, ahead=0.25, rounds=2), lambda i, p: -float(i))
    roots = hand.round()
    assert [(o.proposal.move.name, o.proposal.stop, o.proposal.ask) for o in roots] == [("fresh", 0.25, "nothing")] * 2
    live, time = roots, 0.25
    for _ in range(2):
        children = hand.round()
        assert [o.proposal.move.parent for o in children] == [live[0].id] * 3 + [live[1].id] * 3
        assert {o.proposal.move.to for o in children} == {time - 0.15}
        assert {(o.proposal.stop, o.proposal.ask) for o in children} == {(time + 0.25, "score")}
        live, time = children[:2], time + 0.25  # the earliest score highest here
    last = hand.round()
    assert [o.proposal.move for o in last] == [Resume(o.id) for o in live]
    assert all(o.finished and o.proposal.ask == "score" for o in last)
    assert [o.proposal.move.name for o in hand.round()] == ["fresh", "fresh"]  # and begins again
    assert len(set(keys(hand.outcomes))) == len(keys(hand.outcomes))


def test_paths_keep_the_best_and_drop_what_could_not_be_judged() -> None:
    scores = {2: math.nan, 3: 0.2, 4: 0.9, 5: 0.4}
    hand = Hand(paths(tasks()[0], n=2, width=2, rounds=1), lambda i, p: scores.get(i, math.nan))
    hand.round(), hand.round()
    assert [o.proposal.move.parent for o in hand.round()] == [4, 5]


@pytest.mark.parametrize("nfe", [122, 160, 264, 400, 700])
def test_paths_begin_no_search_that_cannot_finish(nfe: int) -> None:
    """What is left once another whole search is out of reach buys plain samples; at most one of those is left over."""
    played = simulate("paths(n=4, width=2)", budget={"nfe": nfe})
    assert not played.out_of_budget
    assert nfe - 20 < played.spent.nfe <= nfe
    starts = sum(o.proposal.stop < 0.2 for o in played.outcomes)
    lasts = sum(o.proposal.move.name == "resume" for o in played.outcomes)
    assert starts == lasts == 4 * (nfe // 116)  # what one search costs here


@pytest.mark.parametrize(("start", "ahead", "rounds"), [(0.1, 0.9, 1), (0.1, 0.3, 3), (0.7, 0.1, 3), (0.3, 5.0, 4)])
def test_paths_that_reach_data_have_no_last_leg(start: float, ahead: float, rounds: int) -> None:
    hand = Hand(paths(tasks()[0], n=2, width=2, start=start, back=0.05, ahead=ahead, rounds=rounds))
    names = [hand.round()[0] for _ in range(5 + rounds)]
    assert "resume" not in {o.proposal.move.name for o in names}
    stops = {o.proposal.stop for o in hand.outcomes}
    assert max(stops) == 1.0  # 0.1 + 3 * 0.3 too
    assert not any(1 - 1e-5 < s < 1 for s in stops)


@pytest.mark.parametrize(
    "options", [{"n": 0}, {"start": 1.0}, {"back": 0.5}, {"ahead": 0.0}, {"rounds": -1}, {"width": 0}]
)
def test_paths_refuse(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        next(paths(tasks()[0], **options))  # type: ignore[arg-type]


# ---- the code itself -------------------------------------------------------------------------------------------------


def test_plans_are_short_and_the_same_every_time() -> None:
    for file in Path(secondlook.plans.__file__).parent.glob("*.py"):
        shared = file.name in ("weights.py", "chain.py", "moves.py", "legs.py")  # by many plans; no plan itself
        assert shared or len(file.read_text().splitlines()) < 80, file.name
    for make in (random, zero_order, paths):

        def story(task: Task, make: Callable[[Task], Plan] = make) -> list[Outcome]:
            hand = Hand(make(task), lambda i, p: math.sin(i))
            for _ in range(1 if make is random else 8):
                hand.round()
            return hand.outcomes

        assert story(tasks()[0]) == story(tasks()[0])
