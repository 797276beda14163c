"""The shipped weights: the pictures come from the network, the verifier helps, and files stay small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from secondlook import api
from secondlook.backends import scenes as kits
from secondlook.engine.rig import Rig
from secondlook.models import checkpoint
from secondlook.settings import Settings
from secondlook.worlds.scenes.checker import check
from secondlook.worlds.scenes.prompts import prompt_set

PROMPTS = prompt_set("scenes-dev")[::5]


def checker_score(change: Callable[[torch.nn.Module], None] | None = None) -> float:
    """Share of PROMPTS that one plain sample each gets right."""
    s = Settings([p.text for p in PROMPTS])
    s = s.filled(kits.Scenes().usual(s))
    if change:
        original = checkpoint.load

        def changed(path: Path) -> torch.nn.Module:
            module = original(path)
            change(module)
            return module

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kits, "load", changed)
            rig = api.build_rig(s, kits.Scenes())
    else:
        rig = api.build_rig(s, kits.Scenes())
    return float(check(draw_each(rig, s), PROMPTS).mean())


def draw_each(rig: Rig, s: Settings) -> np.ndarray:
    tasks = api.tasks_of(s, kits.Scenes(), rig.times)
    return rig.finish([rig.start(t.key.child("draw", 0)) for t in tasks], [t.condition for t in tasks])


def shuffle(module: torch.nn.Module) -> None:
    """Permute the values inside every tensor: same sizes, same statistics, nothing learned left."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(p.flatten()[torch.randperm(p.numel(), generator=generator)].view_as(p))


def test_base_draws_what_is_asked_about_as_often_as_its_card_says() -> None:
    card = json.loads((Path(__file__).parents[1] / "docs" / "results" / "base.json").read_text())
    assert 0.45 <= card["macro"] <= 0.75
    assert abs(checker_score() - card["per_prompt"]) < 0.15


def test_shuffled_weights_draw_nothing_right() -> None:
    assert checker_score(shuffle) < 0.1


def test_shipped_files_are_small() -> None:
    sizes = [p.stat().st_size for p in checkpoint.shipped("scenes-base.safetensors").parent.glob("*.safetensors")]
    scenes = ("base", "tuned", "edit", "verifier", "detector", "weak", "judge", "critic")
    assert len(sizes) == len(scenes) + 2 * 4  # the other worlds: base, two judges, features
    assert sum(sizes) <= 80e6


@pytest.mark.slow
def test_random_search_with_the_learned_verifier_beats_the_base(tmp_path: Path) -> None:
    found = api.draw([p.text for p in PROMPTS], "random(n=12)", tmp_path / "run")
    base = np.array([r.plain_verdicts["checker"] for r in found])
    best = np.array([r.verdicts["checker"] for r in found])
    assert (best - base).mean() >= 0.1


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_row_does_not_depend_on_its_batch_mates(threads: int, bf16: bool) -> None:
    s = Settings([p.text for p in PROMPTS[:8]], rows=8, bf16=bf16, threads=threads)
    s = s.filled(kits.Scenes().usual(s))
    rig = api.build_rig(s, kits.Scenes())
    tasks = api.tasks_of(s, kits.Scenes(), rig.times)
    states = [rig.start(t.key.child("draw", 0)) for t in tasks]
    asked = [t.condition for t in tasks]
    together, later = states, []
    for _ in range(3):
        together, _ = rig.advance(together, [1.0] * 8, asked)
    later, _ = rig.advance([*states[:4], *together[4:]], [1.0] * 8, asked)  # rows at different times
    for i in (0, 3, 7):
        alone = [states[i]]
        for _ in range(3):
            alone, _ = rig.advance(alone, [1.0], [asked[i]])
        assert torch.equal(alone[0].x, together[i].x)
    moved, _ = rig.advance([together[6], states[2]], [1.0, 1.0], [asked[6], asked[2]])
    assert torch.equal(moved[0].x, later[6].x)
    assert torch.equal(moved[1].x, later[2].x)
