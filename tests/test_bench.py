"""Intervals and the benchmark's reading of a log."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from secondlook.bench.scenes import EVALS, METHODS, SIZES, Row, between, carry, lines, rows_of, table
from secondlook.bench.stats import interval, macro
from secondlook.engine.record import outcome_body
from secondlook.engine.store import Store, sha256
from secondlook.errors import ConfigError
from secondlook.moves import Fresh
from secondlook.noise import Key
from secondlook.types import Condition, Cost, Outcome, Proposal
from secondlook.worlds.scenes.grammar import TASKS
from secondlook.worlds.scenes.render import Thing, render
from tests.helpers import judged


def test_macro_weighs_tasks_not_lines() -> None:
    assert macro(np.array([1.0, 0.0, 0.0, 0.0]), ["a", "b", "b", "b"]) == 0.5
    assert macro(np.array([1.0, math.nan, 0.0]), ["a", "a", "b"]) == 0.5


def test_interval_covers_a_known_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    tasks = ["a"] * 40 + ["b"] * 40
    truth, hits = 0.5 * (0.3 + 0.8), 0
    for seed in range(200):
        values = np.concatenate([rng.random(40) < 0.3, rng.random(40) < 0.8]).astype(float)
        low, high = interval(values, tasks, draws=400, seed=seed)
        hits += low <= truth <= high
    assert 0.88 <= hits / 200 <= 1.0


def test_interval_of_a_constant_is_a_point() -> None:
    assert interval(np.full(6, 0.25), ["a"] * 6) == (0.25, 0.25)


def test_benchmark_takes_as_many_lines_of_every_task() -> None:
    prompts, tasks = lines("scenes-test", 20)
    assert len(prompts) == 120
    assert [tasks.count(t) for t in TASKS] == [20] * 6


def stored(folder: Path, scores: list[float], nfe: int) -> Store:
    """A run of one prompt whose outcomes cost ``nfe`` each; a score above 0.5 has a right picture."""
    store = Store.create(folder, {"prompts": ["a red circle"], "plan": "random(n=20)"})
    right = render([[Thing("circle", "red", 32.0, 32.0, 9.0)]])[0]
    wrong = render([[]])[0]
    for i, score in enumerate(scores):
        proposal = Proposal(Fresh(Key(i)), Condition("a red circle"))
        picture = right if score > 0.5 else wrong
        store.save_picture(i, picture)
        outcome = Outcome(i, proposal, score)
        body = outcome_body(outcome, i, Cost(nfe=nfe, evals=2 * nfe, seconds=1.0), sha256(picture))
        store.append([("outcome", 0, i, body), judged(0, i, {"judge": score / 2, "checker": 0.5})])
    return store


def test_rows_read_what_was_paid_for_within_each_size(tmp_path: Path) -> None:
    scores = [0.1] * 7 + [0.3, 0.9] + [0.2] * 11
    rows = rows_of(METHODS[0], stored(tmp_path / "run", scores, EVALS // 2))
    assert [(r.name, r.samples) for r in rows] == [("base", 1), *(("random", n) for n in SIZES)]
    assert [float(r.columns["verifier"][0]) for r in rows] == pytest.approx([0.1, 0.3, 0.9])
    assert [int(r.columns["evals"][0]) for r in rows] == [EVALS, 8 * EVALS, 20 * EVALS]
    assert [float(r.columns["checker"][0]) for r in rows] == [0.0, 0.0, 1.0]  # read from the pictures


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    stored(tmp_path / METHODS[0].folder, [0.1], EVALS // 2).close()
    with pytest.raises(ConfigError, match="another prompts"):
        carry(METHODS[0], ["a circle"], tmp_path / METHODS[0].folder, 0)


def test_table_goes_between_the_marks_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- table:begin -->\nold\n<!-- table:end -->\nb\n")
    between(page, "table", "new")
    assert page.read_text() == "a\n<!-- table:begin -->\nnew\n<!-- table:end -->\nb\n"
    between(page, "other", "lost")
    assert "lost" not in page.read_text()


def test_each_plan_that_asks_what_is_left_has_a_run_for_each_budget() -> None:
    """A run's first 8 samples are not what a run of 8 samples would have been, where the plan knows how many there are."""
    from secondlook.registry import resolve

    for method in METHODS:
        source = inspect.getsource(inspect.getmodule(resolve("plan", method.plan.partition("(")[0])))  # type: ignore[arg-type]
        assert method.asks is ("remaining(" in source or "affords(" in source)
    assert len({m.folder for m in METHODS}) == len(METHODS)
    rows = [(m.name if m.samples > 1 else "more steps", m.verifier, n) for m in METHODS for n in m.sizes]
    assert len(set(rows)) == len(rows)


def test_a_row_where_all_are_right_has_wilson_s_interval() -> None:
    tasks = [t for t in TASKS for _ in range(20)]
    right = Row("random", 20, {k: np.ones(120) for k in ("verifier", "judge", "checker", "evals", "seconds")})
    assert "**1.000** (0.969 to 1.000)" in table([replace(right, name="base"), right], tasks)
