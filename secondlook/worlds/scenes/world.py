"""Scenes as a world: prompts become conditions, samples become pictures, and the checker is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from secondlook.types import Condition
from secondlook.worlds.pixels import to_bytes
from secondlook.worlds.scenes.checker import check
from secondlook.worlds.scenes.grammar import parse


class Scenes:
    """Coloured shapes on a dark ground, 64 x 64. See docs/scenes.md."""

    name = "scenes"
    usual: ClassVar[Mapping[str, float]] = {
        "steps": 8,
        "guidance": 2.5,
        "shift": 3.0,
    }  # chosen on dev prompts: docs/results/sweep.md and search-tune.md

    def condition(self, prompt: str) -> Condition:
        """The condition of a prompt; ConfigError where the grammar does not produce it."""
        return Condition(prompt=parse(prompt).text)

    def decode(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] in about [-1, 1] to uint8 pictures [B, H, W, 3]."""
        return to_bytes(x)


class Checker:
    """The exact checker as a verifier: 1 for right, 0 for wrong. A search it guides is labelled ``oracle``."""

    inline = True

    def __init__(self, name: str = "checker"):
        self.name = name

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        prompts = [parse(c.prompt or "") for c in conditions]
        return torch.from_numpy(check(samples.numpy(), prompts)).double()
