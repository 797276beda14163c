"""The table that a run ends with: the columns it has, and any text as prompt."""

from __future__ import annotations

import math
import unicodedata

import numpy as np
import pytest

from secondlook.api import Result
from secondlook.cli.progress import table
from secondlook.types import Cost

NOTHING = np.zeros((1, 1, 3), np.uint8)


def result(prompt: str, score: float, base: float, after: dict[str, float], before: dict[str, float]) -> Result:
    return Result(
        prompt,
        score,
        after,
        base,
        before,
        Cost(nfe=4, evals=8, verdicts=1, decodes=1, seconds=12.34),
        0,
        lambda: NOTHING,
        lambda: NOTHING,
    )


def test_judge_and_checker() -> None:
    first = result("a red circle", 0.9, 0.25, {"judge": 0.5, "checker": 1.0}, {"judge": 0.125, "checker": 0.0})
    second = result("two squares", 0.7, 0.75, {"judge": 0.5, "checker": 0.0}, {"judge": 0.375, "checker": math.nan})
    assert table([first, second]).splitlines() == [
        "prompt           base     best              judge          checker   evals  seconds",
        "-" * 83,
        "a red circle    0.250    0.900      0.125 → 0.500    wrong → right       8     12.3",
        "two squares     0.750    0.700      0.375 → 0.500        ? → wrong       8     12.3",
        "-" * 83,
        "mean            0.500    0.800      0.250 → 0.500       0 → 1 of 2      16     24.7",
    ]


def test_no_judge_and_no_checker() -> None:
    text = table([result("plain", 1.0, 2.0, {}, {})])
    assert text.splitlines()[0].split() == ["prompt", "base", "best", "evals", "seconds"]
    assert text.splitlines()[2].split() == ["plain", "2.000", "1.000", "8", "12.3"]
    assert table([]) == "No prompt has a finished picture."


def test_judges_of_any_name_have_a_column_each() -> None:
    rows = [result("a", 1.0, 0.0, {"clip": 0.3, "aesthetic": 5.0}, {"clip": 0.1}), result("b", 1.0, 0.0, {}, {})]
    text = table(rows)
    assert text.splitlines()[0].split() == ["prompt", "base", "best", "clip", "aesthetic", "evals", "seconds"]
    assert "0.100 → 0.300" in text
    assert "nan → 5.000" in text


@pytest.mark.parametrize(
    "prompt",
    [
        'a "quiet" harbour\n<b>at</b> dawn\t🚢🌅 ' + "and more " * 40,
        "一只猫在椅子上",
        "e\u0301te\u0301 👩\u200d🚀",
        "x\x1b[31my\x00z",
        "",
    ],
    ids=["long", "wide", "joined", "controls", "empty"],
)
def test_any_prompt_keeps_the_table_straight(prompt: str) -> None:
    """Every line takes as many columns as the head; numbers of any size push none out of place."""
    rows = [result(prompt, -1412.75, 0.5, {"clip": 0.3}, {"clip": -123456.0}), result("a red circle", 1.0, 0.0, {}, {})]
    lines = table(rows).splitlines()
    assert len(lines) == 6
    assert {_columns(line) for line in lines} == {len(lines[0])}
    assert all(c.isprintable() or c == "\u200d" for line in lines for c in line)


def _columns(line: str) -> int:
    shown = [c for c in line if c != "\u200d" and not unicodedata.combining(c)]
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in shown)
