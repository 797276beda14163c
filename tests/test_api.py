"""The library's front door, on the shipped weights with very few steps."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import shlex
import shutil
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import secondlook
from examples.own_backend import OwnBackend
from secondlook import api
from secondlook.cli import main
from secondlook.engine.store import Store
from secondlook.errors import ConfigError, SecondlookError
from secondlook.notes import Note
from secondlook.report.html import write_report
from secondlook.settings import OPTIONS
from secondlook.types import UNITS
from tests.helpers import Brightness


def test_results_come_in_order_with_both_pictures_and_what_they_cost(tmp_path: Path) -> None:
    prompts = ["a circle", "three squares", "a circle"]
    found = secondlook.draw(prompts, "random(n=2)", tmp_path / "run", steps=2)
    assert [r.prompt for r in found] == prompts
    assert all(r.picture.shape == (64, 64, 3) and r.spent.evals == 8 for r in found)
    assert not np.array_equal(
        found[0].plain, found[2].plain
    )  # noise is keyed by the line, so a repeat is another sample
    again = secondlook.open_run(tmp_path / "run")
    assert [r.outcome for r in again] == [r.outcome for r in found]


def test_a_budget_that_buys_nothing_leaves_the_unsearched_picture(tmp_path: Path) -> None:
    [r] = secondlook.draw("a red circle", "paths()", tmp_path / "run", steps=4, seconds=1e-6)
    assert np.array_equal(r.picture, r.plain)
    assert r.outcome < 0


def test_the_configuration_is_resolved(tmp_path: Path) -> None:
    secondlook.draw("a circle", "zero_order()", tmp_path / "run", steps=2, nfe=4)
    config = Store.open(tmp_path / "run").config
    assert config["plan"] == "zero_order(neighbours=4, radius=0.7, patience=1, explore=0.0)"
    assert set(config["weights"]) == {"model", "verifier", "judge"}
    assert config["oracle"] is False


def test_the_checker_as_a_guide_is_labelled_by_whatever_name_it_is_asked_for(tmp_path: Path) -> None:
    guide = "secondlook.worlds.scenes.world:Checker"
    secondlook.draw("a circle", "random(n=1)", tmp_path / "run", steps=2, verifier=guide)
    assert Store.open(tmp_path / "run").config["oracle"] is True
    assert "oracle: not a method" in write_report(tmp_path / "run").read_text()


def test_other_weights_cannot_go_on_with_a_run(tmp_path: Path) -> None:
    secondlook.draw("a circle", "random(n=1)", tmp_path / "run", steps=2)
    with sqlite3.connect(tmp_path / "run" / "run.sqlite") as db:
        config = json.loads(db.execute("SELECT value FROM meta WHERE key='config'").fetchone()[0])
        config["weights"]["model"] = "0" * 64
        db.execute("UPDATE meta SET value=? WHERE key='config'", (json.dumps(config),))
        db.execute("DROP TRIGGER hold_events")
        db.execute("DELETE FROM events WHERE kind='done'")
    with pytest.raises(ConfigError, match="weights are not those"):
        api.resume(tmp_path / "run")


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'stepps'"):
        secondlook.draw("a circle", out=tmp_path / "run", stepps=3)
    assert not (tmp_path / "run").exists()


def test_half_made_states_are_gone_when_a_run_is_done(tmp_path: Path) -> None:
    secondlook.draw("a circle", "paths(n=2)", tmp_path / "run", steps=4, nfe=30)
    assert list((tmp_path / "run" / "states").iterdir()) == []
    record = api.Record.read(Store.open(tmp_path / "run"))
    rewound = next(i for i, o in record.outcomes.items() if o.proposal.move.name == "rewind")
    assert api.replay_outcome(tmp_path / "run", rewound).same


# ---- one engine for samples and searches -------------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "prompt"), [("scenes", "a red circle"), ("digits", "7"), ("glyphs", "red circle")])
def test_a_sample_is_the_picture_that_draw_calls_unsearched(world: str, prompt: str, tmp_path: Path) -> None:
    words = ["--world", world, "--steps", "5", "--seed", "3"]
    assert (
        main(["sample", prompt, *words, "--count", "2", "--out", str(tmp_path / "s.npz"), "--quiet", "--rows", "4"])
        == 0
    )
    with np.load(tmp_path / "s.npz") as file:
        sampled = file["arr_0"]
    [found] = secondlook.draw(prompt, "random(n=2)", tmp_path / "run", world=world, steps=5, seed=3, rows=4)
    drawn = [Store.open(tmp_path / "run").picture(i)[..., : sampled.shape[-1]] for i in (0, 1)]
    assert (found.plain[..., : sampled.shape[-1]] == drawn[0]).all()
    assert all((s == d).all() for s, d in zip(sampled, drawn, strict=True))
    assert not (sampled[0] == sampled[1]).all()


def test_draw_takes_every_guidance_that_sample_takes(tmp_path: Path) -> None:
    plain = secondlook.draw("7", "random(n=1)", world="digits", steps=4, guidance=1.0)[0]
    for options in ({"guidance": 2.0, "cfg_interval": (0.3, 0.8)}, {"guidance": 2.0, "cfg_channels": 1},
                    {"weak": "digits", "weak_scale": 1.0}, {"interval": "paper", "guidance": 2.0}, {"eps": 0.05, "guidance": 1.0}):  # fmt: skip
        [found] = secondlook.draw("7", "random(n=1)", world="digits", steps=4, **options)
        assert found.picture.shape == (8, 8, 3)
    [same] = secondlook.draw("7", "random(n=1)", world="digits", steps=4, weak="digits", weak_scale=3.0)
    assert np.abs(same.picture.astype(int) - plain.picture).max() <= 15  # guided by itself: not at all


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nfe": "100"}, "A budget, nfe, must be a number; got '100'"),
        ({"steps": "20"}, "--steps must be a whole number; got '20'"),
        ({"steps": 2.5}, "--steps must be a whole number"),
        ({"plan": 3}, "--plan must be a text; got 3"),
        ({"out": 3}, "--out must be a folder's name; got 3"),
        ({"seed": True}, "--seed must be a whole number"),
        ({"nfe": math.inf}, "A budget must be above 0; got nfe = inf"),
        ({"seconds": math.nan}, "A budget must be above 0; got seconds = nan"),
        ({"total_evals": math.inf}, "A budget must be above 0; got evals = inf"),
        ({"cfg_interval": 3}, "--cfg-interval must be two times"),
        ({"split": "fair"}, "--split must be one of even, pool"),
        ({"height": 64}, "--height belongs to pipelines"),
        ({"interval": "papr"}, "--interval must be one of whole, paper, official"),
    ],
)
def test_values_are_checked_at_the_door(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        secondlook.draw("a red circle", **{"out": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("prompts", [None, 3.5, [None], ["a red circle", None], b"a red circle", [], [True]])
def test_prompts_that_are_none_are_one_sentence(prompts: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        secondlook.draw(prompts, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    [found] = secondlook.draw(
        np.int64(7),
        "random(n=1)",
        tmp_path / "run",
        world="digits",
        steps=np.int32(3),
        seed=np.int64(5),
        guidance=np.float32(1.5),
    )
    assert found.prompt == "7"
    assert Store.open(tmp_path / "run").config["seed"] == 5


def test_torchs_threads_are_given_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    secondlook.draw("7", "random(n=1)", world="digits", steps=2, threads=before + 1)
    assert torch.get_num_threads() == before


def test_draws_signature_names_every_option() -> None:
    names = inspect.signature(secondlook.draw).parameters
    assert {*OPTIONS, *UNITS, "total_nfe", "progress"} <= set(names)


def test_the_recorded_command_names_what_was_asked(tmp_path: Path) -> None:
    secondlook.draw(
        "7", "random(n=2)", tmp_path / "run", world="digits", steps=3, guidance=2.0, cfg_interval=(0.25, 0.75), nfe=9
    )
    words = shlex.split(Store.open(tmp_path / "run").config["command"])
    assert main([*words[1:-1], str(tmp_path / "again"), "--quiet"]) == 0
    one, two = (Store.open(tmp_path / n).picture(0) for n in ("run", "again"))
    assert (one == two).all()
    assert Store.open(tmp_path / "again").config["cfg_interval"] == [0.25, 0.75]


FLIPPING = """
class V:
    name = 'v'
    def __init__(self, scale=1.0):
        self.scale, self.calls = scale, 0
    def __call__(self, s, c):
        self.calls += 1
        return self.scale * s.double().flatten(1).mean(1)
"""


def broken_off(out: Path, **options: Any) -> None:
    def stop(driver: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        secondlook.draw("7", "random(n=3)", out, world="digits", steps=2, progress=stop, **options)


def module(tmp_path: Path, text: str) -> Any:
    file = tmp_path / "flipping.py"
    file.write_text(text)
    sys.modules.pop("flipping", None)
    importlib.invalidate_caches()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    return importlib.import_module("flipping")


def test_a_code_of_a_judge_that_changed_is_gone_on_with_only_where_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module(tmp_path, FLIPPING)
    broken_off(tmp_path / "run", verifier="flipping:V")
    module(tmp_path, FLIPPING.replace("return self", "return -self"))
    with pytest.raises(ConfigError, match="The verifier's code is not what was there"):
        secondlook.resume(tmp_path / "run")
    with pytest.warns(Note, match="The verifier's code is not what was there"):
        assert secondlook.resume(tmp_path / "run", changed_judges=True)[0].score is not None
    assert [e.kind for e in Store.open(tmp_path / "run").events("judges")] == ["judges"]


def test_a_comment_in_a_judge_s_file_is_no_other_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module(tmp_path, FLIPPING)
    broken_off(tmp_path / "run", verifier="flipping:V")
    module(tmp_path, "# Seen.\n" + FLIPPING.replace("self.calls += 1", "self.calls  +=  1  # so far"))
    assert secondlook.resume(tmp_path / "run")[0].score is not None


def test_an_object_of_the_same_name_made_otherwise_is_another_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the object itself counts as it works makes no other judge of it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = module(tmp_path, FLIPPING).V
    first = made(2.0)
    broken_off(tmp_path / "same", verifier=first)
    assert secondlook.resume(tmp_path / "same", verifier=first)[0].score > 0
    assert first.calls > 0
    for run in ("alike", "other"):
        broken_off(tmp_path / run, verifier=first)
    with pytest.raises(ConfigError, match="The verifier's settings are not what was there"):
        secondlook.resume(tmp_path / "other", verifier=made(-2.0))
    assert secondlook.resume(tmp_path / "alike", verifier=made(2.0))[0].score > 0


@pytest.mark.parametrize("count", [2, 9])
def test_after_a_verifier_failed_a_mended_one_goes_on(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the run came to its end without scores or was stopped by the third failure."""
    monkeypatch.syspath_prepend(str(tmp_path))
    once = "if self.calls > 1: raise RuntimeError('not yet')\n        return self"  # it answers what it is asked first
    module(tmp_path, FLIPPING.replace("return self", once))
    options = {"world": "digits", "steps": 2, "rows": 1, "verifier": "flipping:V"}
    with pytest.raises(SecondlookError, match="mend") if count > 2 else pytest.warns(Note, match="failed with"):
        secondlook.draw("7", f"random(n={count})", tmp_path / "run", **options)
    module(tmp_path, FLIPPING)
    with pytest.warns(Note, match="The verifier's code is not what was there"):
        assert secondlook.resume(tmp_path / "run")[0].score > 0


def test_a_run_goes_on_with_the_code_that_its_judges_had(tmp_path: Path) -> None:
    def stop(driver: Any) -> None:
        raise KeyboardInterrupt

    words = {"world": "digits", "steps": 2, "verifier": "tests.helpers:Brightness"}
    with pytest.raises(KeyboardInterrupt):
        secondlook.draw("7", "random(n=2)", tmp_path / "run", progress=stop, **words)
    assert "verifier's code" in Store.open(tmp_path / "run").config["weights"]
    [found] = secondlook.resume(tmp_path / "run")
    assert math.isfinite(found.score)


def test_a_plan_without_end_may_spend_what_twenty_samples_cost(tmp_path: Path) -> None:
    words = {"model": OwnBackend(), "steps": 3}
    [found] = secondlook.draw("r", "zero_order()", tmp_path / "run", **words)
    assert Store.open(tmp_path / "run").config["budget"] == {"nfe": 60}
    assert found.spent.nfe == 60
    secondlook.draw("r", "random(n=25)", tmp_path / "counted", **words)  # says itself how many
    assert Store.open(tmp_path / "counted").config["budget"] == {}


def test_the_window_is_that_of_the_run(tmp_path: Path) -> None:
    def widest(**words: Any) -> int:
        most: list[int] = []
        prompts = ["r", "g", "b", "rg"]
        secondlook.draw(
            prompts, "random(n=2)", model=OwnBackend(), progress=lambda d: most.append(len(d.runs)), **words
        )
        return max(most)

    assert [widest(window=1), widest(window=3), widest()] == [1, 3, 4]


def test_an_answer_is_waited_for_no_longer_than_the_runs_patience(tmp_path: Path) -> None:
    class Slow(Brightness):
        def __call__(self, samples: Any, conditions: Any) -> Any:
            time.sleep(0.5)
            return super().__call__(samples, conditions)

    [found] = secondlook.draw("r", "random(n=1)", tmp_path / "run", model=OwnBackend(), verifier=Slow(), patience=0.1)
    assert math.isnan(found.score)
    [failure] = api.Record.read(Store.open(tmp_path / "run")).failures
    assert "no answer in 0.1 seconds" in failure["error"]


def test_a_finished_run_whose_selector_never_answered_is_selected_when_it_is_resumed(tmp_path: Path) -> None:
    class Selector:
        name = "worst"

        def __init__(self, works: bool):
            self.works = works

        def __call__(self, candidates: Any) -> Any:
            if not self.works:
                raise RuntimeError("out of order")
            return [[min(some, key=lambda c: c.score).id] for some in candidates]

    words = {"model": OwnBackend(), "steps": 2}
    with pytest.raises(RuntimeError):
        secondlook.draw("r", "random(n=4)", tmp_path / "run", select=Selector(False), **words)
    record = api.Record.read(Store.open(tmp_path / "run"))
    assert (record.done, record.selector) == (True, None)
    [found] = secondlook.resume(tmp_path / "run", model=OwnBackend(), select=Selector(True))
    assert found.score == min(o.score for o in record.of(0) if o.score is not None)
    assert api.Record.read(Store.open(tmp_path / "run")).selector == "worst"


def test_a_run_goes_on_where_it_was_begun_unless_told_otherwise(tmp_path: Path) -> None:
    seen: list[str] = []

    def stop(driver: Any) -> None:
        seen.append(str(driver.rig.device))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        secondlook.draw("7", "random(n=3)", tmp_path / "run", world="digits", steps=2, device="cpu:0", progress=stop)
    for how in ({}, {"device": "cpu"}):
        with pytest.raises(KeyboardInterrupt):
            secondlook.resume(tmp_path / "run", stop, **how)
    assert seen == ["cpu:0", "cpu:0", "cpu"]
    with pytest.raises(ConfigError, match='device "tpu9" cannot be used here'):
        secondlook.resume(tmp_path / "run", device="tpu9")
    assert len(secondlook.resume(tmp_path / "run")) == 1


def test_a_selector_and_a_share_for_all_prompts(tmp_path: Path) -> None:
    found = secondlook.draw(
        ["7", "3"], "random(n=50)", tmp_path / "run", world="digits", steps=2, total_nfe=12, select="best(count=2)"
    )
    assert [len(r.chosen) for r in found] == [2, 2]
    assert [r.spent.nfe for r in found] == [6, 6]


def test_rescore_and_csv_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    secondlook.draw("7", "random(n=3)", run, world="digits", steps=2)
    assert main(["rescore", run]) == 0
    assert main(["rescore", run, "--verifier", "brightness"]) == 0
    assert "3 pictures judged" in capsys.readouterr().out
    assert main(["export", run, "--format", "csv", "--out", str(tmp_path / "t.csv")]) == 0
    assert "said.brightness" in (tmp_path / "t.csv").read_text().splitlines()[0]
    assert "brightness" in secondlook.write_report(run).read_text()
    assert main(["replay", run, "1", "--device", "cpu"]) == 0
    assert main(["draw", "7", "--image", "x", "--out", str(tmp_path / "no")]) == 2
    assert "There is no option" in capsys.readouterr().err
    assert main(["resume", run, "--steps", "3"]) == 2
    assert 'no option "--steps" in `secondlook resume`; it belongs to draw, sample' in capsys.readouterr().err
