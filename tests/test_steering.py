"""Particles, one path and trees: the plans driven by made-up scores."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from secondlook.engine.ledger import Budget
from secondlook.engine.pricing import first_picture
from secondlook.errors import ConfigError
from secondlook.moves import Clone, Fresh, Resume, Rewind
from secondlook.noise import Key
from secondlook.plans.legs import branch_times
from secondlook.settings import make_plan
from secondlook.testing import simulate
from secondlook.testing.exact import play
from secondlook.types import Condition, Outcome, Proposal, Task
from secondlook.worlds.mixture import default_mixture
from tests.helpers import tasks, tiny_network, tiny_rig

# ---- presets -------------------------------------------------------------------------------------------------------------


def proposals(plan: str, **how: object) -> list[Proposal]:
    given = {"budget": {"nfe": 200}, "stochastic": True, "score": lambda o: math.sin(7.0 * o.id) ** 2, **how}
    return [o.proposal for o in simulate(plan, **given).outcomes]  # type: ignore[arg-type]


@pytest.mark.parametrize(("preset", "engine"), [
    ("fk", "particles(look='paid', n=4, potential='max', scheme='multinomial', threshold=2.0)"),
    ("fk_released", "particles(look='paid', n=4, potential='max', scheme='multinomial', forget=True)"),
    ("das", "particles(look='paid', n=4, looks=20, first=0.05, scheme='ssp', schedule='increasing')"),
    ("bfs", "particles(look='paid', n=8, potential='max', scheme='ssp', threshold=2.0, schedule='increasing')"),
    ("svdd(m=3)", "children(m=3, splits=20, first=0.05, look='paid')"), ("code", "children(m=5, splits=4, first=0.2, look='paid')"),
])  # fmt: skip
def test_presets_are_settings_of_their_engine(preset: str, engine: str) -> None:
    assert proposals(preset) == proposals(engine)


def test_the_released_code_forgets_what_the_published_algorithm_carries() -> None:
    """A row that falls behind a little at each look: never enough for the trigger at once, enough in all."""

    def score(outcome: Outcome) -> float:
        return -0.06 * (outcome.id // 4 + 1) if outcome.id % 4 == 3 else 0.0

    kinds = {
        name: Counter(
            type(p.move)
            for p in proposals(f"{name}(potential='difference', looks=6, threshold=0.93)", score=score)[:28]
        )
        for name in ("fk", "fk_released")
    }
    assert kinds["fk"][Clone] > 0
    assert kinds["fk_released"][Clone] == 0


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_a_funnel_costs_what_a_constant_population_does_and_shrinks(n: int, steps: int) -> None:
    one = simulate(f"funnel(n={n})", rounds=5, steps=steps, stochastic=True)
    sizes = [len(some) for some in one.rounds]
    assert all(o.finished for o in one.rounds[-1])
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > n > sizes[-1]
    assert sizes[0] == pytest.approx(4 * sizes[-1], rel=0.5)
    assert one.spent.nfe == pytest.approx(n * steps, rel=0.2)


# ---- one path ------------------------------------------------------------------------------------------------------------


def test_rollover_ranks_noises_advances_at_once_and_rolls_the_rest_over() -> None:
    """Ten steps: noises at 0.1, then 8 quotas of (73 - 1 - 8) / 8 = 8. At the first step, where a
    child costs two (its parent was seen for free), the second beats all before it; at the second, with 8 + 4, none does."""
    scores = {2: 0.9, 9: 0.95, **{i: 0.8 + 0.001 * i for i in range(10, 22)}}
    played = simulate(
        "rollover(noises=8, evaluations=73)",
        rounds=16,
        steps=10,
        stochastic=True,
        score=lambda o: scores.get(o.id, 0.1),
    )
    [noises, *rest] = played.rounds
    assert [type(o.proposal.move) for o in noises] == [Fresh] * 8
    assert {o.proposal.stop for o in noises} == {0.1}
    assert {o.proposal.look for o in noises} == {"free"}
    first, second = [o for [o] in rest[:2]], [o for [o] in rest[2:14]]
    assert [o.proposal.move.parent for o in first] == [2, 2]  # the best of the noises
    assert {o.proposal.move.parent for o in second} == {9}  # advanced with the second child at once
    third = rest[14][0]
    assert third.proposal.move.parent == 21  # nothing beat 0.95 in twelve tries: the step's best
    assert third.proposal.stop == pytest.approx(0.4)


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("nfe", [10, 11, 30, 100, 250])
def test_rollover_stays_near_its_evaluations_and_ends_in_a_picture(nfe: int, stochastic: bool) -> None:
    played = simulate("rollover(noises=6, evaluations=100)", steps=10, stochastic=stochastic, budget={"nfe": nfe})
    assert not played.out_of_budget  # it kept back what finishing costs
    finished = [o for o in played.outcomes if o.finished]
    assert len(finished) >= math.ceil(nfe / 101)
    if stochastic:
        assert played.spent.nfe > 0.85 * nfe - 10


@pytest.mark.parametrize("name", ["rollover", "threshold", "depth_first", "tree"])
@pytest.mark.parametrize("limit", [{"verdicts": 1}, {"verdicts": 7}, {"nfe": 20}, {"nfe": 33}, {"evals": 47}])
@pytest.mark.parametrize("stochastic", [True, False])
def test_a_small_budget_of_any_kind_still_ends_in_a_picture(
    name: str, limit: dict[str, float], stochastic: bool
) -> None:
    played = simulate(name, budget=limit, stochastic=stochastic)
    assert any(o.finished for o in played.outcomes)


def test_threshold_draws_until_a_try_scores_enough_and_no_longer() -> None:
    good = {3, 6, 7, 8}  # the fourth noise; the third child of the first step, then the first of each
    played = simulate(
        "threshold(above=0.5, tries=9)", steps=5, stochastic=True, rounds=10, score=lambda o: float(o.id in good)
    )
    moves = [o.proposal.move for o in played.outcomes]
    assert [type(m) for m in moves] == [Fresh] * 4 + [Clone] * 5 + [Resume]
    assert [m.parent for m in moves[4:]] == [3, 3, 3, 6, 7, 8]  # type: ignore[attr-defined]
    assert played.outcomes[-1].finished


def test_threshold_goes_on_with_the_best_when_its_tries_are_used_up() -> None:
    played = simulate(
        "threshold(above=2.0, tries=3)",
        steps=3,
        stochastic=True,
        rounds=7,
        score=lambda o: float(o.id == 1) + 0.1 * (o.id == 4),
    )
    moves = [o.proposal.move for o in played.outcomes]
    assert [type(m) for m in moves] == [Fresh] * 3 + [Clone] * 3 + [Resume]
    assert [m.parent for m in moves[3:]] == [1, 1, 1, 4]  # type: ignore[attr-defined]


def test_depth_first_goes_back_further_for_a_worse_score_and_on_for_a_better_one() -> None:
    scores = iter([0.6, 0.3, 0.9, 0.9, -5.0, 0.9, 0.9, 0.9, 0.9, 0.9])
    played = simulate("depth_first(above=0.5, back=0.2, depth=0.5)", rounds=10, score=lambda o: next(scores))
    told = [(o.proposal.move, o.proposal.stop) for o in played.outcomes]
    assert isinstance(told[1][0], Resume)
    assert told[1][1] == pytest.approx(0.4)
    move, stop = told[2]
    assert isinstance(move, Rewind)  # 0.3 at 0.4 lacks 0.2: back to 0.4 - 0.2 - 0.5 * 0.2
    assert (move.to, stop) == (pytest.approx(0.1), pytest.approx(0.2))
    assert isinstance(told[5][0], Rewind)
    assert told[5][0].to == 0.0
    assert all(isinstance(m, Resume) for m, _ in told[6:10])


def test_depth_first_returns_so_often_and_then_finishes() -> None:
    played = simulate("depth_first(tries=3)", budget={"nfe": 60}, score=lambda o: math.nan)
    names = [o.proposal.move.name for o in played.outcomes]
    assert names[:8] == ["fresh", "rewind", "rewind", "rewind", "resume", "resume", "resume", "resume"]
    assert played.outcomes[7].finished
    assert not played.out_of_budget


# ---- trees -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stochastic", [True, False])
def test_beam_keeps_the_best_rows_and_branches_each(stochastic: bool) -> None:
    played = simulate(
        "beam(width=2, branching=3, looks=2)", rounds=3, stochastic=stochastic, score=lambda o: float(o.id)
    )
    assert [len(some) for some in played.rounds] == [6, 6, 6]
    moves = [o.proposal.move for o in played.rounds[1]]
    assert [m.parent for m in moves] == [5] * 3 + [4] * 3  # type: ignore[attr-defined]
    other = Clone if stochastic else Rewind
    assert [type(m) for m in moves] == [Resume, other, other] * 2
    assert all(o.finished for o in played.rounds[2])


def test_branches_have_a_step_with_noise_before_the_last() -> None:
    """Under the SDE's noiseless last step, clones one step before data would be twins."""
    task = Task(0, Condition("x"), Key.root(0), tuple(i / 5 for i in range(6)))
    assert branch_times(task, 0.2, 4) == [0.2, 0.4, 0.6]
    played = play("beam(width=1, branching=4)", default_mixture(), lambda x: x[:, 0], steps=5, budget={"nfe": 40})
    ends = [tuple(played.samples[o.id].tolist()) for o in played.outcomes if o.finished]
    assert len(set(ends)) == len(ends)


@pytest.mark.parametrize("backup", ["max", "soft"])
def test_tree_asks_pictures_only_and_widens_with_visits(backup: str) -> None:
    played = simulate(
        f"tree(backup='{backup}', levels=3)", budget={"nfe": 600}, stochastic=True, score=lambda o: math.sin(o.id) ** 2
    )
    assert not played.out_of_budget
    assert all((o.score is not None) == o.finished for o in played.outcomes)
    roots = [o for o in played.outcomes if isinstance(o.proposal.move, Fresh)]
    turns = sum(o.finished for o in played.outcomes)
    assert len(roots) == pytest.approx(2 * turns**0.5, abs=2)
    assert turns > 600 / 20  # it shares beginnings


def test_tree_search_returns_to_where_pictures_were_good() -> None:
    """Pictures below the second noise are the good ones: most turns after the first few go there."""
    home: dict[int, int] = {}

    def score(outcome: Outcome) -> float:
        move = outcome.proposal.move
        home[outcome.id] = outcome.id if isinstance(move, Fresh) else home.get(move.parent, -1)  # type: ignore[attr-defined]
        return float(outcome.proposal.finished and lineage(outcome) == second)

    parents: dict[int, int | None] = {}
    second = -1

    def lineage(outcome: Outcome) -> int:
        number = getattr(outcome.proposal.move, "parent", None)
        while number is not None and parents.get(number) is not None:
            number = parents[number]
        return outcome.id if number is None else number

    played = simulate("tree(levels=2)", rounds=0, stochastic=True, budget={"nfe": 800}, score=score)
    while some := played.round():
        for o in some:
            parents[o.id] = getattr(o.proposal.move, "parent", None)
            if isinstance(o.proposal.move, Fresh) and o.id > 0 and second < 0:
                second = o.id
    ends = [lineage(o) for o in played.outcomes if o.finished]
    assert ends.count(second) > 0.6 * len(ends)


@pytest.mark.parametrize("plan", [
    "particles(schedule='linear')", "particles(potential='rt')", "particles(shrink=1.5)", "particles(gamma=0.0)", "code(blocks=1)", "funnel(ratio=0.0)",
    "rollover(evaluations=0)", "rollover(noises=0)", "threshold(tries=0)", "depth_first(first=1.0)", "depth_first(depth=-1.0)", "beam(width=0)",
    "beam(first=1.0)", "tree(backup='mean')", "tree(explore=-1.0)", "tree(power=2.0)",
])  # fmt: skip
def test_options_that_make_no_sense_are_sentences(plan: str) -> None:
    with pytest.raises(ConfigError, match=plan.split("(")[0] if not plan.startswith("funnel") else "funnel"):
        next(make_plan(plan)(Task(0, Condition("a circle"), Key.root(0))), None)


def test_a_plan_that_minds_its_budget_is_not_refused_for_what_it_would_cost_without_one() -> None:
    """Rollover's 250 evaluations become what there is; below a plain sample's price nothing can be drawn."""
    rig, [task] = tiny_rig(tiny_network()), tasks()
    assert first_picture(make_plan("rollover"), task, rig).nfe > 100
    assert first_picture(make_plan("rollover"), task, rig, Budget(nfe=40)).nfe <= 40
    assert first_picture(make_plan("particles(n=4)"), task, rig, Budget(nfe=5)).nfe > 5


def test_svdd_sees_its_children_and_not_what_they_share() -> None:
    """At every step the estimate that the last step began with is one for all children; the best child's own is not."""
    played = play("svdd(m=4)", default_mixture(), lambda x: x[:, 0], steps=10, budget={"nfe": 36})
    for family in played.rounds[1:6]:
        assert len({o.score for o in family}) == 4
    free = play(
        "children(m=4, splits=20, first=0.05)", default_mixture(), lambda x: x[:, 0], steps=10, budget={"nfe": 36}
    )
    assert all(len({o.score for o in family}) == 1 for family in free.rounds[1:6])


@pytest.mark.parametrize(("paid", "free"), [
    ("fk(looks=3)", "particles(n=4, looks=3, potential='max', scheme='multinomial', threshold=2.0)"), ("code", "children(m=5, splits=4)"),
])  # fmt: skip
def test_paid_looks_cost_no_more_where_the_solver_reuses_them(paid: str, free: str) -> None:
    one, two = (simulate(plan, rounds=5 if "code" in paid else 4, stochastic=True) for plan in (paid, free))
    assert one.spent.nfe <= two.spent.nfe + 1
