"""Searches in the class-conditional worlds: requests, guides, judges and runs, on the shipped weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import secondlook
from secondlook.api import replay_outcome
from secondlook.backends.base import Backend
from secondlook.backends.find import find
from secondlook.backends.own import Shown
from secondlook.cli.app import main
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.report.html import write_report
from secondlook.settings import Settings, make_named
from secondlook.types import Condition
from secondlook.worlds.digits import Digits
from secondlook.worlds.glyphs import Glyphs


@pytest.mark.parametrize(
    ("world", "text", "label"),
    [
        ("digits", "7", 7),
        ("digits", " 0 ", 0),
        ("glyphs", "31", 31),
        ("glyphs", "blue triangle", 18),
        ("glyphs", "0", 0),
    ],
)
def test_a_class_is_asked_for_by_number_or_name(world: str, text: str, label: int) -> None:
    found = kit(world).condition(text)
    assert found.label == label
    if world == "glyphs" and not text.strip().isdecimal():
        assert Glyphs.classes[label] == text


@pytest.mark.parametrize(
    ("world", "text", "pattern"),
    [
        ("digits", "seven", 'has no class "seven"'),
        ("digits", "10", "classes 0 to 9; got 10"),
        ("digits", "-1", "has no class"),
        ("glyphs", "blue triangel", 'did you mean "blue triangle"'),
        ("glyphs", "32", "classes 0 to 31"),
        ("scenes", "seven", "unknown word"),
    ],
)
def test_a_request_that_is_no_class_is_refused(world: str, text: str, pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        kit(world).condition(text)


def kit(world: str) -> Backend:
    return find(None, Settings(world=world))


def test_a_world_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'no world "digit".*did you mean "digits"'):
        kit("digit")
    with pytest.raises(ConfigError, match="no world"):
        kit("mixture")


def test_digits_have_no_oracle() -> None:
    with pytest.raises(ConfigError, match="no exact checker, so it has no oracle"):
        kit("digits").verifier("oracle")


@pytest.mark.parametrize("world", ["digits", "glyphs"])
def test_guide_and_judge_know_real_pictures_and_are_two(world: str) -> None:
    """Both give the right class of real pictures far more than a wrong one, and not the same numbers."""
    source = Digits() if world == "digits" else Glyphs()
    x, labels = source.batch(5, 0, 40)
    made = kit(world)
    pictures = Shown(made.decode)(x)
    assert pictures.shape[-1] == 3
    guide, judge = made.verifier("learned"), made.judges()["judge"]
    assert guide is not None
    right = [Condition(label=int(i)) for i in labels]
    wrong = [Condition(label=(int(i) + 1) % len(source.classes)) for i in labels]
    for v in (guide, judge):
        assert float((v(pictures, right) > v(pictures, wrong)).double().mean()) > 0.95
    assert not torch.equal(guide(pictures, right), judge(pictures, right))


@pytest.mark.parametrize("world", ["digits", "glyphs"])
def test_a_search_in_a_world_of_classes(world: str, tmp_path: Path) -> None:
    """Runs, keeps the best by its guide, shows a judge it did not use, replays bit for bit and reports."""
    request = "7" if world == "digits" else "red circle"
    [found] = secondlook.draw(request, "random(n=3)", tmp_path / "run", world=world, steps=4, seed=1)
    assert found.score >= found.plain_score
    assert set(found.verdicts) == ({"judge"} if world == "digits" else {"judge", "checker"})
    assert found.picture.dtype == np.uint8
    assert found.picture.shape == ((8, 8, 3) if world == "digits" else (32, 32, 3))
    assert replay_outcome(tmp_path / "run", found.outcome).same
    config = Store.open(tmp_path / "run").config
    assert (config["world"], config["model"], config["oracle"]) == (world, world, False)
    assert "judge" in write_report(tmp_path / "run").read_text()


@pytest.mark.parametrize("verifier", ["learned", "judge", "brightness"])
def test_who_guides_a_search_is_not_its_judge_too(verifier: str) -> None:
    made = kit("digits")
    s = Settings(["7"], verifier=verifier, steps=2)
    guide = made.verifier(verifier) or make_named("verifier", verifier)
    assert set(made.rig(s.filled(made.usual(s)), guide).judges) == {"judge"} - {verifier}


def test_the_exact_checker_as_a_guide_is_labelled(tmp_path: Path) -> None:
    secondlook.draw("red circle", "random(n=2)", tmp_path / "run", world="glyphs", steps=2, verifier="oracle")
    assert Store.open(tmp_path / "run").config["oracle"] is True
    assert kit("glyphs").exact(kit("glyphs").verifier("oracle"))
    assert not kit("glyphs").exact(kit("glyphs").verifier("learned"))


def test_every_plan_runs_in_digits(tmp_path: Path) -> None:
    for plan in ("random(n=2)", "zero_order(neighbours=1)", "paths(n=2, width=1)"):
        out = tmp_path / plan.split("(")[0]
        assert (
            main(
                [
                    "draw",
                    "3",
                    "--world",
                    "digits",
                    "--plan",
                    plan,
                    "--steps",
                    "6",
                    "--nfe",
                    "48",
                    "--quiet",
                    "--out",
                    str(out),
                ]
            )
            == 0
        )
        assert (out / "report.html").exists()


def test_a_file_of_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("0\n1\n")
    words = [
        "draw",
        "--prompts",
        str(tmp_path / "classes.txt"),
        "--world",
        "digits",
        "--steps",
        "2",
        "--plan",
        "random(n=1)",
    ]
    assert main([*words, "--quiet", "--out", str(tmp_path / "run")]) == 0
    assert [r.prompt for r in secondlook.open_run(tmp_path / "run")] == ["0", "1"]
