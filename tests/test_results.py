"""Results one can use: candidates, winners, curves, the run's folder, early ends, a beginning of one's own, and two runs compared."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import secondlook
from secondlook import api
from secondlook.adapters import tiny
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.moves import Fresh
from secondlook.noise import Key
from secondlook.registry import PLANS
from secondlook.runs import temporary
from secondlook.runs.best import BEST, SHEET, TABLE, file_name, without_paths
from secondlook.settings import make_plan
from secondlook.types import Condition, Task
from tests.helpers import Brightness

PROMPTS = ["a red circle", "a blue square"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> secondlook.Run:
    folder = tmp_path_factory.mktemp("results") / "run"
    return secondlook.draw(PROMPTS, "zero_order(neighbours=2)", folder, steps=2, nfe=12, keep=3)


class Silent:
    """A verifier that cannot judge anything."""

    name = "silent"

    def __call__(self, samples: torch.Tensor, conditions: Any) -> list[float]:
        return [math.nan] * len(samples)


# ---- in Python -----------------------------------------------------------------------------------------------------------


def test_candidates_are_all_that_was_drawn_and_the_winner_is_the_best_of_them(run: secondlook.Run) -> None:
    for r in run:
        assert len(r.candidates) == 6
        assert r.winner is not None
        assert r.winner.score == max(c.score for c in r.candidates) == r.score
        assert [c.score for c in r.top(3)] == sorted((c.score for c in r.candidates), reverse=True)[:3]
        assert np.array_equal(r.winner.picture, r.picture)
        assert r.cost == sum((c.cost for c in r.candidates[1:]), r.candidates[0].cost)
    assert run.cost == run[0].cost + run[1].cost


def test_a_derivation_says_each_ancestor_oldest_first(run: secondlook.Run) -> None:
    said = {c.outcome: c.derivation for c in run[0].candidates}
    near = next(d for d in said.values() if "near" in d)
    first, last = near.split("; ")[0], near.split("; ")[-1]
    assert first.endswith("new noise")
    assert "near" in last
    assert said[0] == "new noise"


def test_a_curve_never_falls_and_ends_at_the_whole_cost(run: secondlook.Run) -> None:
    curve = run[0].curve()
    assert [p.score for p in curve] == list(np.maximum.accumulate([c.score for c in run[0].candidates]))
    assert (curve[-1].nfe, curve[-1].evals, curve[-1].outcome) == (run[0].cost.nfe, run[0].cost.evals, run[0].outcome)
    assert curve[-1].seconds == pytest.approx(run[0].cost.seconds)


def test_what_is_printed_fits_a_line_and_a_notebook_gets_no_scripts(run: secondlook.Run) -> None:
    for thing in (run, run[0], run[0].winner):
        assert "\n" not in repr(thing)
        assert len(repr(thing)) < 200
    page = run._repr_html_()
    assert page.count("<img") == 4
    assert "script" not in page


def test_a_prompt_cannot_write_into_a_notebooks_page(tmp_path: Path) -> None:
    from secondlook.runs.notebook import page

    [r] = secondlook.draw("a circle", "random(n=1)", tmp_path / "run", steps=1)
    evil = type(r)(**{**{f: getattr(r, f) for f in r.__dataclass_fields__}, "prompt": '"><script>x</script>'})
    assert "<script" not in page([evil], None)


def test_nothing_unjudged_is_called_a_winner(tmp_path: Path) -> None:
    found = secondlook.draw("a circle", "random(n=2)", tmp_path / "run", steps=1, verifier=Silent())
    assert found[0].winner is None
    assert found[0].top(2) == []
    assert "not judged" in found._repr_html_()
    assert "★ Winner" not in found.report().read_text()
    assert not list((tmp_path / "run" / BEST).glob("*.png"))


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "2"])
def test_top_takes_a_count(run: secondlook.Run, count: Any) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        run[0].top(count)


def test_progress_is_quiet_where_nobody_watches(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    secondlook.draw("a circle", "random(n=1)", tmp_path / "run", steps=1, progress=True)
    assert capfd.readouterr().err == ""
    with pytest.raises(ConfigError, match="progress is True"):
        secondlook.draw("a circle", "random(n=1)", tmp_path / "other", steps=1, progress="yes")  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()


def test_diffusers_names_mean_the_same(tmp_path: Path) -> None:
    secondlook.draw("a circle", "random(n=1)", tmp_path / "run", num_inference_steps=2, guidance_scale=1.5)
    config = Store.open(tmp_path / "run").config
    assert (config["steps"], config["guidance"]) == (2, 1.5)
    with pytest.raises(ConfigError, match="another name of steps"):
        secondlook.draw("a circle", steps=2, num_inference_steps=2)


# ---- the folder ----------------------------------------------------------------------------------------------------------


def test_the_folder_shows_the_best_pictures_ranked_with_a_sheet_and_a_table(run: secondlook.Run) -> None:
    names = sorted(p.name for p in (run.folder / BEST).iterdir())
    ranked = [f"{i:04d}-{p.replace(' ', '-')}{end}.png" for i, p in enumerate(PROMPTS) for end in ("-2", "-3", "")]
    assert names == sorted([*ranked, SHEET])
    for rank, one in enumerate(run[1].top(3)):
        with Image.open(run.folder / BEST / file_name(1, PROMPTS[1], rank)) as image:
            assert np.array_equal(np.asarray(image), one.picture)
    with Image.open(run.folder / BEST / SHEET) as image:
        assert image.size == (128, 64)
    with (run.folder / TABLE).open() as file:
        assert len(list(csv.DictReader(file))) == 12


def test_a_picture_says_how_it_came_about_and_names_no_place_on_the_disk(run: secondlook.Run) -> None:
    with Image.open(run.folder / BEST / file_name(0, PROMPTS[0])) as image:
        text = dict(image.text)
    assert text["prompt"] == PROMPTS[0]
    assert text["plan"].startswith("zero_order(")
    assert json.loads(text["scores"])["score"] == run[0].score
    assert text["parameters"].startswith(f"{PROMPTS[0]}\nSteps: 2, ")
    assert str(run.folder.parent) not in json.dumps(text)


@pytest.mark.parametrize(("text", "said"), [
    ("/home/me/models/sdxl", "sdxl"), ("~/models/sdxl", "sdxl"), (r"C:\models\sdxl", "sdxl"), ("org/name", "org/name"),
    ("clip(weights='/home/me/w.pt', size=3)", "clip(weights='w.pt', size=3)"), ("random(n=4)", "random(n=4)"),
])  # fmt: skip
def test_paths_are_shortened_and_hub_ids_stay(text: str, said: str) -> None:
    assert without_paths(text) == said


@pytest.mark.parametrize(
    "prompt", ["", "猫", "../../etc/passwd", "a" * 500, "con", "a:b*c?d|e<f>\0", "é la", ". ", "a\nb"]
)
def test_names_are_safe_on_every_system(prompt: str) -> None:
    name = file_name(3, prompt, 1)
    assert len(name) <= 64
    assert name.startswith("0003-")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
    assert name.count(".") == 1


def test_keep_0_shows_no_pictures(tmp_path: Path) -> None:
    secondlook.draw("a circle", "random(n=1)", tmp_path / "run", steps=1, keep=0)
    assert not (tmp_path / "run" / BEST).exists()


def test_a_run_without_a_folder_goes_with_its_process_unless_it_is_kept() -> None:
    code = ("import secondlook\nfor keep in (False, True):\n    r = secondlook.draw('a circle', 'random(n=1)', steps=1)\n"
            "    assert r.folder.exists()\n    keep and r.keep()\n    print(r.folder)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    gone, kept = map(Path, done.stdout.split())
    assert not gone.exists()
    assert kept.exists()
    for path in sorted(kept.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    kept.rmdir()


def test_an_unfinished_run_without_a_folder_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(driver: Any) -> None:
        raise KeyboardInterrupt

    made = temporary.new()
    monkeypatch.setattr(temporary, "new", lambda: made)
    with pytest.warns(UserWarning, match="is kept in"), pytest.raises(KeyboardInterrupt):
        secondlook.draw("a circle", "random(n=2)", steps=1, progress=stop)
    assert not temporary.passing(made)
    assert len(api.resume(made)) == 1


# ---- where a prompt ends and begins --------------------------------------------------------------------------------------


def test_a_prompt_ends_when_its_best_is_good_enough_and_the_log_says_so(tmp_path: Path) -> None:
    whole = secondlook.draw("a circle", "random(n=6)", tmp_path / "whole", steps=1, rows=1, verifier=Brightness())
    scores = [c.score for c in whole[0].candidates]
    place = next(i for i in range(1, 6) if scores[i] > scores[0] or i == 5)
    until = max(scores[: place + 1])
    found = secondlook.draw(
        "a circle", "random(n=6)", tmp_path / "run", steps=1, rows=1, verifier=Brightness(), until=until
    )
    first = next(i for i, s in enumerate(scores) if s >= until)
    drawn = [c.score for c in found[0].candidates]
    assert drawn[: first + 1] == scores[: first + 1]
    assert len(drawn) < 6 or first == 5
    ended = Record.read(Store.open(tmp_path / "run")).ended[0]
    assert ended["reached"] == until
    assert not ended["out_of_budget"]
    assert "good enough" in found.report().read_text()


@pytest.mark.parametrize("plan", ["random(n=8)", "zero_order()", "paths(n=2)"])
def test_an_early_end_is_taken_up_after_a_stop(tmp_path: Path, plan: str) -> None:
    options: dict[str, Any] = {"steps": 2, "nfe": 60, "until": 0.0, "rows": 1}

    def stop(driver: Any) -> None:
        if driver.drawn:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        secondlook.draw(PROMPTS, plan, tmp_path / "run", progress=stop, **options)
    found = api.resume(tmp_path / "run")
    record = Record.read(Store.open(tmp_path / "run"))
    assert record.done
    assert all("reached" in record.ended[i] for i in (0, 1))
    assert all(r.spent.nfe < 60 for r in found)


class Easy:
    """Finds every red circle right, and nothing else."""

    name = "easy"

    def __call__(self, samples: torch.Tensor, conditions: Any) -> list[float]:
        return [float(c.prompt == PROMPTS[0]) for c in conditions]


def test_what_an_early_end_leaves_goes_to_the_pool(tmp_path: Path) -> None:
    shared = {"steps": 1, "total_nfe": 12, "split": "pool", "window": 1, "rows": 1, "verifier": Easy()}
    whole = secondlook.draw(PROMPTS, "random(n=50)", tmp_path / "whole", **shared)
    assert [r.spent.nfe for r in whole] == [6, 6]
    first, second = secondlook.draw(PROMPTS, "random(n=50)", tmp_path / "run", **shared, until=1.0)
    assert first.spent.nfe + second.spent.nfe == 12
    assert first.spent.nfe < 6


def test_noise_keyed_by_the_prompt_does_not_care_for_its_place(tmp_path: Path) -> None:
    lists = (["a circle", "a circle", "three squares"], ["three squares", "a star", "a circle", "a circle"])
    lists[1][1] = "a cross"
    runs_ = [
        secondlook.draw(p, "random(n=1)", tmp_path / str(i), steps=1, pad=True, keyed="prompt")
        for i, p in enumerate(lists)
    ]
    first, second = ([(r.prompt, r.picture.tobytes()) for r in found] for found in runs_)
    assert first == [second[2], second[3], second[0]]
    assert first[0][1] != first[1][1]  # the same prompt again is another sample


def test_without_keyed_nothing_recorded_changes(tmp_path: Path) -> None:
    secondlook.draw("a circle", "random(n=1)", tmp_path / "run", steps=1)
    assert not {"keyed", "until", "seeds", "keep", "latents"} & set(Store.open(tmp_path / "run").config)


@pytest.mark.parametrize("family", [f for f in tiny.PIPELINES if f in ("sd3", "sdxl", "flux", "sana", "pixart")])
def test_a_seed_begins_from_the_noise_that_the_pipeline_draws(family: str, tmp_path: Path) -> None:
    pipe = tiny.make(family)
    pipe.set_progress_bar_config(disable=True)
    size = {
        k: v for k, v in {"height": secondlook.load(pipe).height, "width": secondlook.load(pipe).width}.items() if v
    }
    extra = {"use_resolution_binning": False} if family in ("sana", "pixart") else {}
    scale = secondlook.load(pipe).usual()["guidance"]
    its = np.asarray(pipe(prompt="a cat", num_inference_steps=3, output_type="np", guidance_scale=scale, **size, **extra,
                          generator=torch.Generator().manual_seed(7)).images[0])  # fmt: skip
    [mine] = secondlook.draw(
        "a cat", "random(n=2)", tmp_path / "run", model=pipe, steps=3, seeds=7, verifier="brightness"
    )
    assert np.abs(mine.plain.astype(int) - np.round(its * 255).astype(int)).max() <= 1
    [other] = secondlook.draw(
        "a cat", "random(n=1)", tmp_path / "other", model=pipe, steps=3, seeds=8, verifier="brightness"
    )
    assert not np.array_equal(other.plain, mine.plain)
    assert api.replay(tmp_path / "run", 0, model=pipe).difference <= 1


def test_latents_are_where_a_search_begins_also_after_a_stop(tmp_path: Path) -> None:
    noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    whole = secondlook.draw(PROMPTS, "random(n=3)", tmp_path / "whole", steps=1, latents=noise, rows=1)

    def stop(driver: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        secondlook.draw(PROMPTS, "random(n=3)", tmp_path / "run", steps=1, latents=noise, rows=1, progress=stop)
    again = api.resume(tmp_path / "run")
    assert [r.plain.tobytes() for r in again] == [r.plain.tobytes() for r in whole]
    usual = secondlook.draw(PROMPTS, "random(n=3)", tmp_path / "usual", steps=1, rows=1)
    assert usual[0].plain.tobytes() != whole[0].plain.tobytes()
    assert all(api.replay(tmp_path / "run", n).same for n in (0, 2))


@pytest.mark.parametrize(("options", "said"), [
    ({"seeds": [1, 2, 3]}, "one seed, or one for each of 2 prompts"), ({"seeds": "1,x"}, "whole numbers with commas"), ({"seeds": []}, "got none"),
    ({"seeds": 1, "latents": torch.zeros(3, 64, 64)}, "give one of them"), ({"latents": torch.zeros(3, 8, 8)}, "got .3, 8, 8"),
    ({"latents": torch.full((3, 64, 64), math.nan)}, "not finite"), ({"latents": "noise"}, "got str"),
])  # fmt: skip
def test_another_beginning_is_refused_in_a_sentence(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        secondlook.draw(PROMPTS, "random(n=1)", tmp_path / "run", steps=1, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", sorted(PLANS))
def test_every_plan_begins_from_the_first_noise(name: str) -> None:
    task = Task(0, Condition(prompt="a circle"), Key.root(0), tuple(i / 20 for i in range(21)))
    first = next(make_plan(name)(task))
    assert any(p.move == Fresh(task.first_key()) for p in first)


# ---- the verifier's first word -------------------------------------------------------------------------------------------


class Odd:
    name = "odd"

    def __init__(self, answer: Any):
        self.answer = answer

    def __call__(self, samples: torch.Tensor, conditions: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(("answer", "said"), [
    (ValueError("no weights"), "failed .ValueError: no weights"), ("high", "expected 1 number"), ([1.0, 2.0], "got 2"), (["x"], "got a str among"),
])  # fmt: skip
def test_a_verifier_that_cannot_answer_is_told_before_a_folder_is_made(answer: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        secondlook.draw("a circle", "random(n=1)", tmp_path / "run", steps=1, verifier=Odd(answer))
    assert not (tmp_path / "run").exists()


def test_an_infinite_score_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="an infinite score"):
        secondlook.draw("a circle", "random(n=1)", tmp_path / "run", steps=1, verifier=Odd([math.inf]))
