"""`secondlook probe`: its numbers against closed forms, and the command."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from secondlook.bench.probe import Found, ahead, best_of, beta_fit, summary, told
from secondlook.cli import main
from secondlook.metrics.diversity import diversity

FLAT = np.zeros((64, 64, 3), np.uint8)


def test_the_best_of_some_is_the_mean_over_all_ways_to_choose_them() -> None:
    scores = np.array([0.3, 0.1, 0.9, 0.4, 0.4])
    for k in (1, 2, 3, 5):
        wanted = np.mean([max(some) for some in combinations(scores, k)])
        assert best_of(scores, k) == pytest.approx(wanted)
    assert math.isnan(best_of(scores, 6))
    assert best_of(np.array([0.2, math.nan]), 1) == 0.2


def test_the_chance_of_a_right_one_among_more_draws() -> None:
    assert ahead(1.0, 1.0, 3) == pytest.approx(0.75)  # uniform chances: n / (n + 1)
    assert ahead(2.0, 6.0, 1) == pytest.approx(0.25)


def test_what_a_few_draws_say_of_many_holds_for_many() -> None:
    """120 prompts with Beta(0.5, 1.5) chances, eight draws each: the chance at 64 is foretold within its interval."""
    hits = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        chance = rng.beta(0.5, 1.5, 120)
        right = [rng.random(8) < p for p in chance]
        found = Found(["x"] * 120, [np.zeros(8)] * 120, right, "checker", [0.2] * 120, [3.0] * 120)
        value, low, high = summary(found, draws=40)["ahead"][64]
        assert abs(value - ahead(0.5, 1.5, 64)) < 0.12
        hits += low <= ahead(0.5, 1.5, 64) <= high
    assert hits >= 10


def test_one_prompt_says_little_and_says_so() -> None:
    found = Found(["x"], [np.zeros(8)], [np.zeros(8, bool)], "checker", [0.2], [3.0])
    value, low, high = summary(found)["ahead"][64]
    assert low < 0.1 < value < high > 0.9
    assert beta_fit([3], [8]) == (3.5, 5.5)


def test_diversity_of_pictures_that_are_alike_and_of_those_that_are_not() -> None:
    alike, one = diversity([FLAT, FLAT, FLAT])
    assert (alike, one) == (0.0, pytest.approx(1.0))
    apart, two = diversity([FLAT, FLAT + 255])
    assert apart == pytest.approx(1.0)
    assert two == pytest.approx(2.0, abs=0.01)
    assert math.isnan(diversity([FLAT])[0])


@pytest.mark.parametrize(("found", "said"), [
    (Found(["x"], [np.arange(4.0)], None, "", [0.01], [1.0]), "hardly varies"),
    (Found(["x"], [np.ones(4)], None, "", [0.3], [3.0]), "the same score"),
    (Found(["x"], [np.array([1.0, 1.0, 0.0])], None, "", [0.3], [3.0]), "ties at the top"),
    (Found(["x"], [np.arange(4.0)], [np.ones(4, bool)], "judge", [0.3], [3.0]), "right already"),
])  # fmt: skip
def test_what_a_search_could_not_win_is_warned_of(found: Found, said: str) -> None:
    assert said in " ".join(told(summary(found)))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "P").write_text("7\n3\n")
    words = ["--prompts", str(tmp_path / "P"), "--world", "digits", "--steps", "2", "--draws", "4", "--quiet"]
    assert main(["probe", *words, "--json", str(tmp_path / "j"), "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.startswith("2 prompts, 4 draws each.")
    found = json.loads((tmp_path / "j").read_text())
    assert found["draws"] == 4
    assert set(found["pass"]) == {"1", "2", "4"}
    assert (tmp_path / "run" / "run.sqlite").exists()
    assert main(["probe", "7", "--world", "digits", "--draws", "1"]) == 2
    assert "--draws must be" in capsys.readouterr().err
    assert main(["probe"]) == 2
