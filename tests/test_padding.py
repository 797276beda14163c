"""A padded batch gives a row the same bits wherever it stands and whoever stands beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import secondlook
from secondlook import api
from secondlook.backends.scenes import Scenes
from secondlook.engine.rig import Rig
from secondlook.flow.padding import padded
from secondlook.models.text import TextSiT
from secondlook.noise import Key
from secondlook.settings import Settings
from secondlook.types import Condition
from tests.helpers import PROMPTS, tiny_rig


@pytest.mark.parametrize(
    ("rows", "size"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8), (9, 12), (16, 16), (17, 20)]
)
def test_batches_are_whole_tiles(rows: int, size: int) -> None:
    assert padded(rows) == size


def misplaced(rig: Rig, prompts: list[str], most: int) -> int:
    """How many rows come out otherwise in some place of a batch than alone, after two steps."""
    key, wrong = Key.root(1), 0
    states = [rig.start(key.child(i)) for i in range(most)]
    conditions = [Condition(prompts[i % len(prompts)]) for i in range(most)]
    alone = []
    for state, condition in zip(states, conditions, strict=True):
        one = [state]
        for _ in range(2):
            one, _ = rig.advance(one, [1.0], [condition])
        alone.append(one[0].x)
    for turn in range(most):
        order = [(i + turn) % most for i in range(most)]
        together = [states[i] for i in order]
        for _ in range(2):
            together, _ = rig.advance(together, [1.0] * most, [conditions[i] for i in order])
        wrong += sum(not torch.equal(s.x, alone[i]) for s, i in zip(together, order, strict=True))
    return wrong


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_of_the_tiny_network_does_not_depend_on_its_place(network: TextSiT, rows: int, threads: int) -> None:
    with api.threads(threads):
        assert misplaced(tiny_rig(network, rows=rows), list(PROMPTS), rows) == 0


@pytest.mark.parametrize(("pad", "sizes"), [(True, [1, 1, 1]), (False, [3])])
def test_pictures_of_padded_pipelines_are_decoded_one_at_a_time(pad: bool, sizes: list[int], tmp_path: Path) -> None:
    """A decoder's bits depend on company as a network's do."""
    pytest.importorskip("diffusers", reason="needs secondlook[hub]")
    from secondlook.adapters import tiny

    model, seen = secondlook.load(tiny.make("sana")), list[int]()
    model.pipe.vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    words = {"steps": 2, "verifier": "brightness", "threads": 1, "rows": 3}
    secondlook.draw("a red cube", "random(n=3)", tmp_path / "run", model=model, pad=pad, **words)
    assert seen == sizes


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("rows", range(1, 17))
def test_a_row_of_the_shipped_network_does_not_depend_on_its_place(rows: int, bf16: bool) -> None:
    s = Settings(list(PROMPTS), rows=rows, bf16=bf16, threads=2)
    with api.threads(2):
        rig = api.build_rig(s.filled(Scenes().usual(s)), Scenes())
        assert misplaced(rig, list(PROMPTS), rows) == 0
