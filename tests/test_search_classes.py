"""The verifiers of 2501.09732 in the class-conditional worlds: oracles, self-supervision, the influence form of FID, and their benchmark."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import secondlook
from benchmarks import search_classes as script
from secondlook.backends.find import find
from secondlook.bench import classes
from secondlook.bench.curves import winner_within
from secondlook.cli.app import main
from secondlook.engine.record import Record
from secondlook.engine.select import GreedyFID
from secondlook.engine.select import choose as exactly
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.metrics import Moments, frechet
from secondlook.metrics.influence import Influence
from secondlook.metrics.influence import choose as by_influence
from secondlook.models.checkpoint import shipped
from secondlook.plans.moves import best
from secondlook.report.html import write_report
from secondlook.settings import Settings, make_named
from secondlook.testing import ComparerContract, SelectorContract, VerifierContract, simulate
from secondlook.testing.contracts import noise_pictures
from secondlook.types import Comparer, Condition, Outcome, Selector, Verifier
from secondlook.verify import classify
from secondlook.verify.by_features import similarity
from secondlook.worlds.digits import Digits
from secondlook.worlds.glyphs import check

BASE = str(shipped("digits-base.safetensors"))


def features(count: int, seed: int, dim: int = 4, scale: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=g, dtype=torch.float64) * scale


# ---- verifiers ---------------------------------------------------------------------------------------------------------


class TestOracleIS(VerifierContract):
    sides = 8

    def made(self) -> Verifier:
        return make_named("verifier", 'oracle_is(world="digits")')

    def conditions(self, count: int) -> list[Condition]:
        return [Condition(label=3)] * count


def test_the_oracle_of_the_inception_score_is_its_own_network_s_probability() -> None:
    pictures, labels = (part[:64] for part in Digits().test())
    oracle = make_named("verifier", 'oracle_is(world="digits")')
    found = oracle(pictures, [Condition(label=int(k)) for k in labels])
    probabilities = classify.features("digits")(pictures)[1].double().softmax(1)
    assert torch.allclose(found, probabilities[range(64), labels], atol=1e-12)
    assert float(found.mean()) > 0.9
    assert float(oracle(pictures, [Condition(label=int(k + 1) % 10) for k in labels]).mean()) < 0.1
    assert math.isnan(float(oracle(pictures[:1], [Condition()])[0]))
    with pytest.raises(ConfigError, match="oracle_is reads the feature network of a world with classes"):
        make_named("verifier", "oracle_is")


@pytest.mark.parametrize("world", classify.WORLDS)
@pytest.mark.parametrize("name", ["learned", "judge", "oracle_is"])
def test_every_verifier_is_reached_by_its_name_from_the_command_line(world: str, name: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert (
        main(
            [
                "draw",
                "3",
                "--world",
                world,
                "--verifier",
                name,
                "--plan",
                "random(n=2)",
                "--steps",
                "2",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    store = Store.open(out)
    record = Record.read(store)
    assert all(o.score is not None and 0 <= o.score <= 1 for o in record.of(0))
    assert store.config["oracle"] is (name == "oracle_is")
    assert ("oracle: not a method" in write_report(out).read_text()) is (name == "oracle_is")
    assert ("verifier's settings" in store.config["weights"]) is (name == "oracle_is")


def test_a_search_chosen_by_what_measures_it_is_labelled_oracle(tmp_path: Path) -> None:
    plan = {"world": "digits", "steps": 2, "select": "greedy_fid('digits', influence=True)"}
    secondlook.draw(["3", "4", "5"], "random(n=3)", tmp_path / "run", **plan)
    store = Store.open(tmp_path / "run")
    assert store.config["oracle"] is True
    [event] = [e for e in store.events() if e.kind == "selected"]
    record, network = Record.read(store), classify.features("digits")
    winners = [record.winner(t) for t in range(3)]
    pictures = torch.from_numpy(np.stack([store.picture(w.id) for w in winners if w]))[..., :1].contiguous()
    reference = Moments.of(network(Digits().train()[0])[0].double())
    assert event.body["said"]["fid"] == pytest.approx(
        frechet(Moments.of(network(pictures)[0].double()), reference), rel=1e-9
    )
    assert event.body["said"]["fid"] <= event.body["said"]["fid_of_best"]


# ---- how alike two pictures are ------------------------------------------------------------------------------------------


class TestSimilarity(ComparerContract):
    def made(self) -> Comparer:
        return make_named("comparer", "similarity")


def test_pixels_are_alike_whatever_their_brightness_and_a_picture_of_one_colour_is_like_nothing() -> None:
    pictures = noise_pictures(3, 32) // 2
    asked, alike = [Condition()] * 3, similarity()
    assert alike(pictures, pictures + 100, asked).tolist() == pytest.approx([1.0] * 3)
    assert alike(pictures, 200 - pictures, asked).tolist() == pytest.approx([0.0] * 3, abs=1e-12)
    assert alike(pictures, noise_pictures(3, 32, seed=1), asked).tolist() == pytest.approx([0.5] * 3, abs=0.1)
    assert alike(pictures, torch.zeros_like(pictures), asked).isnan().all()


def test_features_see_what_pixels_do_not() -> None:
    """Digits of one class are more alike than those of two."""
    pictures, labels = Digits().test()
    alike, zeros, ones = similarity("digits"), pictures[labels == 0][:20], pictures[labels == 1][:20]
    asked = [Condition()] * 20
    same, other = alike(zeros, zeros.flip(0), asked), alike(zeros, ones, asked)
    assert float(same.mean()) > float(other.mean()) + 0.1
    assert torch.equal(same.flip(0), alike(zeros.flip(0), zeros, asked))
    assert [float(alike(zeros[i : i + 1], ones[i : i + 1], asked[:1])[0]) for i in range(20)] == other.tolist()


def test_a_world_with_a_feature_network_is_compared_by_it() -> None:
    assert find(None, Settings(world="digits")).comparer("similarity").network is not None  # type: ignore[attr-defined]
    assert find(None, Settings(world="digits")).comparer("by_score") is None  # type: ignore[attr-defined]
    assert not hasattr(find(None, Settings(world="scenes")), "comparer")


# ---- the self-supervised plan --------------------------------------------------------------------------------------------


def test_self_supervision_costs_what_best_of_n_costs_and_keeps_the_most_like() -> None:
    played = simulate("self_supervised(n=4)", prefer=lambda o: {4: 0.2, 5: 0.9, 6: math.nan, 7: 0.4}[o.id])
    assert played.spent.nfe == simulate("random(n=4)").spent.nfe
    assert played.spent.comparisons == 4
    assert played.returned.id == 5
    early = [o.proposal for o in played.rounds[0]]
    assert all(p.look == "free" and p.stop == pytest.approx(0.65) for p in early)  # behind the step that begins at 0.6
    assert [o.proposal.against for o in played.rounds[1]] == [0, 1, 2, 3]
    assert simulate("self_supervised(n=3)", prefer=lambda o: math.nan).returned is None
    for steps in (1, 2, 3):
        assert simulate("self_supervised(n=2)", steps=steps).outcomes[-1].finished
    with pytest.raises(ConfigError, match="expected at below 1"):
        simulate("self_supervised(at=1.0)")


def test_a_preference_ranks_what_nobody_scored_and_a_score_comes_before_it() -> None:
    [one, *_] = simulate("random(n=1)").outcomes

    def of(number: int, score: float | None, preference: float | None) -> Outcome:
        return Outcome(number, one.proposal, score, preference=preference)

    assert best([of(0, None, 0.2), of(1, None, 0.7), of(2, None, 0.7), of(3, None, math.nan)]).id == 1
    assert best([of(0, None, 0.9), of(1, 0.1, None), of(2, 0.3, 0.0)]).id == 2
    assert best([of(0, math.nan, 0.9), of(1, None, None), of(2, None, 0.1)]).id == 2


def test_a_budget_that_ends_self_supervision_early_still_leaves_the_most_like(tmp_path: Path) -> None:
    words: dict[str, Any] = {"world": "digits", "steps": 5}
    [found] = secondlook.draw("8", "self_supervised(n=6)", tmp_path / "run", **words)
    record = Record.read(Store.open(tmp_path / "run"))
    assert record.spent(0).nfe == 30
    done = [o for o in record.of(0) if o.finished]
    assert len(done) == 6
    assert all(o.score is None for o in done)
    likes = [o.preference for o in done if o.preference is not None]
    assert record.ended[0]["named"] == found.outcome == max(done, key=lambda o: o.preference or 0).id
    for budget, count in ((30, 6), (29, 5), (26, 2)):
        winner, cost, finished = winner_within(record, 0, "nfe", budget)
        assert (finished, winner is not None) == (count, True)
        assert winner is not None
        assert winner.preference == max(likes[:count])
        assert cost.nfe <= budget
    # A run whose budget ends among the last rows hands over the most like of those that it finished.
    secondlook.draw("8", "self_supervised(n=6)", tmp_path / "short", nfe=28, **words)
    short = Record.read(Store.open(tmp_path / "short"))
    last = [o for o in short.of(0) if o.finished]
    assert 1 < len(last) < 6
    assert short.winner(0) == max(last, key=lambda o: o.preference or 0)
    assert (
        main(
            [
                "draw",
                "8",
                "--world",
                "digits",
                "--plan",
                "self_supervised(n=2)",
                "--steps",
                "4",
                "--out",
                str(tmp_path / "cli"),
            ]
        )
        == 0
    )


# ---- influence ---------------------------------------------------------------------------------------------------------------


def test_influence_is_the_exact_change_to_first_order() -> None:
    """The error falls with the square of the set's size, the change itself with its size."""
    reference, errors = Moments.of(features(400, 0) @ features(4, 1)), []
    for count in (100, 400, 1600):
        some, more = features(count, 2), features(30, 3, scale=2.0)
        base = frechet(reference, Moments.of(some))
        exact = torch.tensor([frechet(reference, Moments.of(torch.cat([some, one[None]]))) - base for one in more])
        found = Influence.of(reference, Moments.of(some)).change(more, count)
        errors.append(float((found - exact).abs().max()))
        assert float(torch.corrcoef(torch.stack([found, exact]))[0, 1]) > 0.99
        assert torch.equal(found.argsort()[:3], exact.argsort()[:3])
    assert errors[0] > 8 * errors[1] > 64 * errors[2]


def test_choosing_by_influence_comes_near_choosing_by_exact_distances_and_is_never_worse_than_not_choosing() -> None:
    reference = Moments.of(features(500, 0))
    some = [f + 0.4 for f in features(60 * 5, 1, scale=1.6).reshape(60, 5, 4)]

    def distance(places: list[int]) -> float:
        return frechet(reference, Moments.of(torch.stack([f[i] for f, i in zip(some, places, strict=True)])))

    start, exact, fast = (
        distance([0] * 60),
        distance(exactly(reference, some, 2)),
        distance(by_influence(reference, some, 2)),
    )
    assert fast < start / 3
    assert fast < exact + 0.1 * (start - exact)
    assert by_influence(reference, [f[:1] for f in some], 2) == [0] * 60
    assert by_influence(reference, some[:2], 2) == [0, 0]
    for count in (3, 5, 8):  # fewer pictures than would give a covariance of full rank
        few = [f[:3] for f in some[:count]]
        before = frechet(reference, Moments.of(torch.stack([f[0] for f in few])))
        after = [f[i] for f, i in zip(few, by_influence(reference, few, 3), strict=True)]
        assert frechet(reference, Moments.of(torch.stack(after))) <= before


class TestGreedyByInfluence(SelectorContract):
    side = 8

    def made(self) -> Selector:
        return GreedyFID("digits", influence=True)


# ---- the benchmark -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measure() -> classes.Measure:
    return classes.Measure()


@pytest.mark.parametrize("world", classify.WORLDS)
def test_the_pool_is_what_the_plans_draw(world: str, tmp_path: Path) -> None:
    """Its pictures and its self-supervised numbers are those of a run, bit for bit; scores are the verifiers' logarithms, and the exact
    checker's word is there where the world has one."""
    measure = classes.Measure(world)
    pool = classes.Pool.draw(measure, str(shipped(f"{world}-base.safetensors")), 1.0, 6, [3, 7], 2, seed=5)
    words: dict[str, Any] = {"world": world, "guidance": 1.0, "steps": 6, "seed": 5, "rows": 128, "bf16": False}
    secondlook.draw(["3", "7"], "self_supervised(n=2)", tmp_path / "run", **words)
    store = Store.open(tmp_path / "run")
    record = Record.read(store)
    for task, label in enumerate((3, 7)):
        done = [o for o in record.of(task) if o.finished]
        stack = np.stack([store.picture(o.id) for o in done])
        pictures = torch.from_numpy(stack)[..., : measure.world.shape[0]].contiguous()
        assert torch.equal(measure.network(pictures)[0], pool.features[task])
        assert [o.preference for o in done] == pool.said["self_supervised"][task].tolist()
        learned = classify.verifier(world)(pictures, [Condition(label=label)] * 2)
        assert pool.said["learned"][task].tolist() == learned.tolist()
        if pool.right is not None:
            assert pool.right[task].tolist() == check(pictures.numpy(), np.array([label] * 2)).tolist()
        winner = record.winner(task)
        assert winner is not None
        place = [o.id for o in done].index(winner.id)
        assert pool.chosen("self_supervised", slice(0, 2), measure.reference)[task] == place
    assert (pool.right is None) is (find(None, Settings(world=world)).checker() is None)


def test_best_of_one_is_no_search_and_larger_pools_raise_the_verifier_that_chose(measure: classes.Measure) -> None:
    pool = classes.Pool.draw(measure, BASE, 1.0, 2, list(range(10)), 4, seed=0)
    rows = classes.random_search(measure, pool, 2, sets=2)
    assert [(r["n"], r["nfe"], r["sets"]) for r in rows if r["verifier"] in ("none", "learned")] == [
        (1, 2, 2),
        (2, 4, 2),
        (4, 8, 1),
    ]
    learned = [r["p learned"] for r in rows if r["verifier"] in ("none", "learned")]
    assert learned == sorted(learned)
    fid = {r["n"]: r["fid"] for r in rows if r["verifier"] in ("none", "oracle_fid")}
    assert fid[4] < fid[1]


def test_zero_order_search_by_the_set_never_moves_away_from_the_reference(measure: classes.Measure) -> None:
    rows = classes.zero_order_fid(
        measure, BASE, 1.0, 2, [k for k in range(10) for _ in range(2)], nfe=14, seed=0, neighbours=2
    )
    assert [r["nfe"] for r in rows] == [6, 10, 14]
    distances = [r["fid"] for r in rows]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < distances[0]


def test_a_run_of_the_benchmark_is_read_again_and_a_finished_cell_is_not_made_twice(
    measure: classes.Measure, tmp_path: Path
) -> None:
    def run() -> list[dict[str, Any]]:
        return classes.engine(
            measure,
            tmp_path / "run",
            BASE,
            "zero_order(neighbours=2)",
            "oracle_is",
            1.0,
            2,
            [1, 2, 3, 4, 5],
            10,
            0,
            (4, 10),
        )

    rows = run()
    assert [r["nfe"] for r in rows] == [4, 10]
    assert run() == rows
    cells = script.Cells(tmp_path / "cells", {"seed": 0})
    assert cells("a", lambda: rows) == rows
    assert cells("a", lambda: 1 / 0) == rows
    with pytest.raises(ZeroDivisionError):
        script.Cells(tmp_path / "cells", {"seed": 1})("a", lambda: 1 / 0)


@pytest.mark.slow
def test_the_whole_script_writes_its_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    size = script.Size(1, ((2, 2), (3, 2)), 24, (2,), 1, (2,), 1)
    monkeypatch.setattr(script, "train_small", lambda folder, steps: BASE)
    found = script.carry(tmp_path, size, 0)
    text = script.tables({**found, "seed": 0})
    assert [r["nfe"] for r in found["plans"] if r["verifier"] == "learned"] == [16]
    assert {r["verifier"] for r in found["plans"]} == {"learned", "oracle_fid"}
    assert all(f"| {v} |" in text for v in ("none", *classes.VERIFIERS))
