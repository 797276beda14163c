"""The examples run, and the demo's prompts are in the language."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from secondlook import demo
from secondlook.cli import main
from secondlook.worlds.scenes.grammar import parse

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_first_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["first_search.py", str(tmp_path / "run")])
    runpy.run_path(str(EXAMPLES / "first_search.py"), run_name="__main__")
    assert "400 evaluations" in capsys.readouterr().out
    assert (tmp_path / "run" / "best.png").stat().st_size > 100


def test_own_plan_and_verifier_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["draw", "two circles", "--plan", "examples.own_plan:narrowing(width=3)", "--steps", "2", "--nfe", "12"]
    words += ["--verifier", "examples.own_verifier:Colourful", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(words) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "report.html").exists()


def test_demo_prompts_are_in_the_language() -> None:
    assert [parse(p).text for p in demo.PROMPTS] == list(demo.PROMPTS)
