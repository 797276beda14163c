"""The Scenes world as a backend: prompts of its grammar, an exact checker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any, ClassVar

import torch
from torch import Tensor

from secondlook.backends.own import Loaded, Own
from secondlook.flow.path import Linear
from secondlook.models.checkpoint import load_text
from secondlook.models.text import TextSiT
from secondlook.types import Condition, Verifier
from secondlook.verify import builtin
from secondlook.worlds.scenes.grammar import parse
from secondlook.worlds.scenes.world import Checker
from secondlook.worlds.scenes.world import Scenes as World


@dataclass(frozen=True)
class Encode:
    network: TextSiT

    def __call__(self, condition: Condition | None) -> Any:
        return self.network.encode([None if condition is None else condition.prompt])


class Scenes(Own):
    name = "scenes"
    world = World()
    defaults: ClassVar[Mapping[str, Any]] = World.usual

    def condition(self, text: str) -> Condition:
        return self.world.condition(text)

    def decode(self, x: Tensor) -> Tensor:
        return self.world.decode(x)

    def load(self, file: File, device: torch.device) -> Loaded:
        network = load_text(file).to(device)
        return Loaded(network, Linear(), Encode(network), "linear", network)

    def verifiers(self) -> Mapping[str, Callable[[], Verifier]]:
        return {"learned": builtin.learned, "judge": builtin.judge, "oracle": builtin.oracle}

    def checker(self) -> Verifier:
        return Checker()

    def metadata(self, prompt: str) -> dict[str, Any]:
        return parse(prompt).metadata()
