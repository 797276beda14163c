"""Class-conditional search in Glyphs: the world's reference, the metric's own noise, the exact checker's column, and the script's rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import secondlook
from benchmarks import search_classes as script
from secondlook.bench import classes
from secondlook.engine.select import GreedyFID
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.metrics import Moments, frechet
from secondlook.models.checkpoint import shipped
from secondlook.testing import SelectorContract
from secondlook.types import Candidate, Selector
from secondlook.verify import classify, reference
from secondlook.worlds.glyphs import Glyphs

BASE = str(shipped("glyphs-base.safetensors"))


@pytest.fixture(scope="module")
def measure() -> classes.Measure:
    return classes.Measure("glyphs")


# ---- the reference -------------------------------------------------------------------------------------------------------


class TestGreedyInGlyphs(SelectorContract):
    side = 32

    def made(self) -> Selector:
        return GreedyFID("glyphs", influence=True)


def test_the_reference_is_a_fixed_number_of_the_world_s_own_pictures_and_is_computed_once() -> None:
    found = reference.moments("glyphs")
    assert found.count == reference.COUNT == len(reference.pictures("glyphs"))
    assert reference.moments("glyphs") is found
    assert torch.equal(reference.pictures("glyphs"), reference.pictures("glyphs"))
    with pytest.raises(ConfigError, match='no classifiers of a world "scenes"'):
        reference.pictures("scenes")


def test_other_pictures_of_the_world_are_near_the_reference_and_half_of_its_classes_are_not() -> None:
    network, (pictures, labels) = classify.features("glyphs"), Glyphs().pictures(7, 0, 1024)
    features = network(pictures)[0].double()
    near = frechet(Moments.of(features[:512]), reference.moments("glyphs"))
    assert near < 0.1 * frechet(Moments.of(features[labels < 16]), reference.moments("glyphs"))


def test_without_a_named_reference_greedy_fid_chooses_by_the_world_s_own(tmp_path: Path) -> None:
    """Each task has a picture of one class and a picture of its own class; the set of the latter is nearer."""
    pictures, labels = Glyphs().pictures(7, 1, 600)
    same = pictures[labels == 0]
    own = [pictures[labels == k][0] for k in range(12)]
    given = [
        [_candidate(2 * t, t, 1.0, same[t].numpy()), _candidate(2 * t + 1, t, 0.0, own[t].numpy())] for t in range(12)
    ]
    selector = GreedyFID("glyphs")
    chosen = [some[0] for some in selector(given)]
    assert sum(c % 2 for c in chosen) >= 9
    assert selector.said["fid"] < selector.said["fid_of_best"]
    words: dict[str, Any] = {
        "world": "glyphs",
        "steps": 2,
        "guidance": 1.0,
        "select": "greedy_fid('glyphs', influence=True)",
    }
    secondlook.draw(["3", "4", "5"], "random(n=2)", tmp_path / "run", **words)
    [event] = [e for e in Store.open(tmp_path / "run").events() if e.kind == "selected"]
    assert event.body["said"]["fid"] <= event.body["said"]["fid_of_best"]


def _candidate(number: int, task: int, score: float, picture: np.ndarray) -> Candidate:
    return Candidate(number, task, score, {}, lambda: picture)


# ---- the benchmark --------------------------------------------------------------------------------------------------------


def test_the_metric_s_own_noise_is_of_disjoint_fresh_sets_of_even_classes(measure: classes.Measure) -> None:
    found = classes.noise(measure, 64, 3)
    assert (found["sets"], found["right"]) == (3, 1.0)
    assert found["is"] > 30  # of 32: two pictures of each class, all of them named
    assert found["sd"]["fid"] > 0
    with pytest.raises(ConfigError, match="sets of 65 pictures"):
        classes.noise(measure, 65, 2)


def test_best_of_n_in_glyphs_has_the_checker_s_share_of_what_each_verifier_chose(measure: classes.Measure) -> None:
    labels = list(range(0, 32, 4))
    pool = classes.Pool.draw(measure, BASE, 1.0, 3, labels, 4, seed=0)
    rows = {(r["verifier"], r["n"]): r for r in classes.random_search(measure, pool, 3, sets=1)}
    assert set(rows) == {("none", 1), *((v, n) for v in classes.VERIFIERS for n in (2, 4))}
    assert pool.right is not None
    at = pool.chosen("learned", slice(0, 4), measure.reference)
    assert rows["learned", 4]["right"] == float(pool.right[range(8), at].mean())
    assert rows["learned", 4]["p learned"] >= rows["none", 1]["p learned"]
    climbed = classes.zero_order_fid(measure, BASE, 1.0, 3, labels, nfe=9, seed=0, neighbours=2)
    assert [r["nfe"] for r in climbed] == [9]
    assert 0 <= climbed[0]["right"] <= 1


def test_repeats_belong_to_digits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["search_classes.py", "--world", "glyphs", "--seeds", "1", "2"])
    monkeypatch.setattr(script, "again", lambda *_: pytest.fail("nothing may be drawn"))
    with pytest.raises(SystemExit):
        script.main()
    assert "--seeds repeats rows of Digits" in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_writes_the_tables_of_glyphs_with_the_checker_s_column(tmp_path: Path) -> None:
    size = replace(script.GLYPHS_QUICK, lone=(2,))
    found = script.carry_glyphs(tmp_path, size, 0)
    assert {r["verifier"] for r in found["plans"]} == {"learned", "oracle_fid"}
    text = script.tables({**found, "seed": 0})
    heads = [line for line in text.splitlines() if line.endswith("| checker |")]
    assert len(heads) == 5
    assert all(line.count("|") in {h.count("|") for h in heads} for line in text.splitlines() if line.startswith("|"))
    assert all("right" in r for pool in found["random"] for r in pool["rows"])
    assert script.carry_glyphs(tmp_path, size, 0, read=True) == found


@pytest.mark.slow
def test_rows_that_carry_a_claim_are_repeated_with_other_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(script, "train_small", lambda folder, steps: str(shipped("digits-base.safetensors")))
    size = script.Size(1, ((2, 2), (8, 4)), 40, (4,), 1, (2,), 1)
    rows = script.again(tmp_path, size, (1, 2))
    assert len(rows) == 6  # near and new by sets, two of the pool, two forms of zero-order search
    assert all(r["sets"] == 2 and r["sd"]["fid"] > 0 for r in rows)
    [one] = [r for r in script.again(tmp_path, size, (1,)) if r["plan"] == "random" and r["verifier"] == "learned"]
    assert one["fid"] != next(r for r in rows if r["plan"] == "random" and r["verifier"] == "learned")["fid"]
    assert script.repeats({"again": rows}).count("\n") == 8
