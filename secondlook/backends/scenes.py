"""The Scenes world as a backend: prompts of its grammar, an exact checker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from secondlook.backends.own import Loaded, Own
from secondlook.errors import ConfigError
from secondlook.flow.path import Linear
from secondlook.models.checkpoint import load
from secondlook.models.find import weights_file
from secondlook.models.reflect import ReflectSiT
from secondlook.models.text import TextSiT
from secondlook.settings import Settings, needs_of
from secondlook.types import Condition, Verifier
from secondlook.verify import builtin
from secondlook.worlds.scenes.grammar import parse
from secondlook.worlds.scenes.remarks import tokens
from secondlook.worlds.scenes.world import Checker
from secondlook.worlds.scenes.world import Scenes as World


@dataclass(frozen=True)
class Encode:
    network: TextSiT

    def __call__(self, condition: Condition | None) -> Any:
        return self.network.encode([None if condition is None else condition.prompt])


@dataclass(frozen=True)
class EncodeTries:
    """A condition with its earlier tries. What a remark says outside the language is passed over."""

    network: ReflectSiT
    reads_context = True

    def __call__(self, condition: Condition | None, pictures: Sequence[np.ndarray] = ()) -> Any:
        if condition is None:
            return self.network.encode([None])
        said = [tokens(c.remark.text) for c in condition.context]
        return self.network.encode([condition.prompt], [pictures], [said])


class Scenes(Own):
    name = "scenes"
    world = World()
    defaults: ClassVar[Mapping[str, Any]] = World.usual

    def condition(self, text: str) -> Condition:
        return self.world.condition(text)

    def decode(self, x: Tensor) -> Tensor:
        return self.world.decode(x)

    def load(self, file: File, device: torch.device) -> Loaded:
        network = load(file).to(device)
        if isinstance(network, ReflectSiT):
            return Loaded(network, Linear(), EncodeTries(network), "linear", network)
        if not isinstance(network, TextSiT):
            raise ConfigError(
                f"The weights {file} draw classes, not prompts; the world scenes needs a text-to-image model."
            )
        return Loaded(network, Linear(), Encode(network), "linear", network)

    def usual(self, s: Settings) -> dict[str, Any]:
        """A plan that listens to a critic or a comparer, or shows tries, gets the ones that ship."""
        needs = needs_of(s.plan)
        if "context" in needs and self.left_open:
            self.model, self.file, self.left_open = "scenes-edit", weights_file("scenes-edit"), False
        heard: dict[str, Any] = {role: "learned" for role in ("critic", "comparer") if role in needs}
        return {**super().usual(s), **heard}

    def verifiers(self) -> Mapping[str, Callable[[], Verifier]]:
        return {
            "learned": builtin.learned,
            "detector": builtin.detector,
            "weak": builtin.weak,
            "judge": builtin.judge,
            "oracle": builtin.oracle,
        }

    def checker(self) -> Verifier:
        return Checker()

    def metadata(self, prompt: str) -> dict[str, Any]:
        return parse(prompt).metadata()
