"""Two runs compared over the prompts that both drew."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import secondlook
from secondlook.bench import compare as runs
from secondlook.cli import main
from secondlook.errors import ConfigError


def test_two_runs_are_paired_over_their_common_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = secondlook.draw(["a circle", "a square", "a circle"], "random(n=1)", tmp_path / "a", steps=1)
    second = secondlook.draw(["a square", "a circle"], "random(n=3)", tmp_path / "b", steps=1)
    found = runs.compare(tmp_path / "a", tmp_path / "b")
    assert [(i, j) for i, j, _ in found.pairs] == [(0, 1), (1, 0)]
    score = next(x for x in found.lines if x.measure == "score")
    assert score.gap == pytest.approx((second[1].score + second[0].score - first[0].score - first[1].score) / 2)
    assert math.isnan(score.low)
    assert "Intervals need 8 prompts" in runs.table(found)
    assert (
        main(
            [
                "compare",
                str(tmp_path / "a"),
                str(tmp_path / "b"),
                "--out",
                str(tmp_path / "c.html"),
                "--json",
                str(tmp_path / "c.json"),
            ]
        )
        == 0
    )
    assert "second - first" in capsys.readouterr().out
    assert (tmp_path / "c.html").read_text().count("<img") == 4
    assert json.loads((tmp_path / "c.json").read_text())["prompts"] == 2


def test_an_interval_holds_the_difference_that_is_there() -> None:
    gaps = np.linspace(0.1, 0.3, 12)
    line = runs._line("judge", [0.5] * 12, list(0.5 + gaps))
    assert 0.1 < line.low < line.gap < line.high < 0.3
    assert line.p < 0.01
    same = runs._line("judge", [0.5] * 12, [0.5] * 12)
    assert same.low < 0 < same.high
    assert same.p == 1


def test_scores_of_different_verifiers_are_not_compared(tmp_path: Path) -> None:
    secondlook.draw("a circle", "random(n=1)", tmp_path / "a", steps=1)
    secondlook.draw("a circle", "random(n=1)", tmp_path / "b", steps=1, verifier="brightness")
    found = runs.compare(tmp_path / "a", tmp_path / "b")
    assert "score" not in [x.measure for x in found.lines]
    assert any("different verifiers" in s for s in found.said)


def test_runs_without_a_common_prompt_are_refused(tmp_path: Path) -> None:
    secondlook.draw("a white cross", "random(n=1)", tmp_path / "a", steps=1)
    secondlook.draw("a red circle", "random(n=1)", tmp_path / "b", steps=1)
    with pytest.raises(ConfigError, match="no prompt in common"):
        runs.compare(tmp_path / "b", tmp_path / "a")
