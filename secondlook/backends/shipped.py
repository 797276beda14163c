"""What a search needs of each world: how its requests read, its networks, its verifiers and judges, its defaults.

A world whose pictures are grey is shown to people, and written to runs, in three equal channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secondlook.errors import ConfigError, nearest
from secondlook.flow.discrete import with_path
from secondlook.flow.guidance import Network
from secondlook.flow.path import Linear
from secondlook.flow.path import Path as Interpolant
from secondlook.models.checkpoint import load_sit, load_text, shipped
from secondlook.types import Condition, Verifier
from secondlook.verify import builtin, classify
from secondlook.worlds.digits import Digits
from secondlook.worlds.glyphs import Checker as GlyphChecker
from secondlook.worlds.glyphs import Glyphs
from secondlook.worlds.scenes.world import Checker, Scenes


@dataclass(frozen=True)
class Loaded:
    """A network with the path it was trained on and the encoding of conditions (None: the null one) for it."""

    network: Network
    path: Interpolant
    encode: Callable[[Condition | None], Any]


@dataclass(frozen=True)
class Kit:
    """A world as a search sees it. ask: a request's text to its condition. verifiers: those that registry names mean here.
    checker: whether the world has an exact one; it then also looks on."""

    world: str
    ask: Callable[[str], Condition]
    decode: Callable[[Tensor], Tensor]
    load: Callable[[Path], Loaded]
    verifiers: dict[str, Callable[[], Verifier]]
    checker: Callable[[], Verifier] | None

    def verifier(self, name: str) -> Verifier | None:
        """The world's own verifier of that name, or None where the name is not one."""
        if name == "oracle" and self.checker is None:
            raise ConfigError(f'The world "{self.world}" has no exact checker, so it has no oracle; use learned.')
        made = self.verifiers.get(name)
        return None if made is None else made()

    def judges(self) -> dict[str, Verifier]:
        """Who looks on: the judge, and the exact checker where there is one."""
        extra = {} if self.checker is None else {"checker": self.checker()}
        return {"judge": self.verifiers["judge"](), **extra}

    def files(self) -> dict[str, Path]:
        """The shipped weights that score in this world."""
        return {role: shipped(f"{self.world}-{role}.safetensors") for role in ("verifier", "judge")}


def exact(verifier: Verifier | None) -> bool:
    """Whether a verifier is some world's exact checker; a search that it guides is labelled oracle."""
    return isinstance(verifier, Checker | GlyphChecker)


def kit(world: str) -> Kit:
    """The kit of a world; ConfigError for one that cannot be searched."""
    known = {"scenes": _scenes, "digits": _digits, "glyphs": _glyphs}
    if world not in known:
        raise ConfigError(f'There is no world "{world}" to draw in; {nearest(world, known)}')
    return known[world]()


def _scenes() -> Kit:
    world = Scenes()
    verifiers: dict[str, Callable[[], Verifier]] = {
        "learned": builtin.learned,
        "judge": builtin.judge,
        "oracle": builtin.oracle,
    }

    def load(path: Path) -> Loaded:
        network = load_text(path)
        return Loaded(network, Linear(), lambda c: network.encode([None if c is None else c.prompt]))

    return Kit("scenes", world.condition, world.decode, load, verifiers, Checker)


def _digits() -> Kit:
    world = Digits()
    guides: dict[str, Callable[[], Verifier]] = {
        "learned": lambda: Probability(classify.verifier("digits"), 1),
        "judge": lambda: Probability(classify.judge("digits"), 1),
    }

    def decode(x: Tensor) -> Tensor:
        return world.decode(x).expand(-1, -1, -1, 3).contiguous()

    return Kit("digits", _asks(world), decode, _load_classes, guides, None)


def _glyphs() -> Kit:
    world = Glyphs()
    guides: dict[str, Callable[[], Verifier]] = {
        "learned": lambda: Probability(classify.verifier("glyphs"), 3),
        "judge": lambda: Probability(classify.judge("glyphs"), 3),
        "oracle": lambda: GlyphChecker("oracle"),
    }
    return Kit("glyphs", _asks(world), world.decode, _load_classes, guides, GlyphChecker)


def _asks(world: Digits | Glyphs) -> Callable[[str], Condition]:
    """A class by its number or its name."""
    names = list(world.classes)

    def ask(text: str) -> Condition:
        text = text.strip()
        if text in names:
            return world.condition(names.index(text))
        if not text.isdecimal():
            raise ConfigError(f'The world "{world.name}" has no class "{text}"; {nearest(text, names)}')
        return world.condition(int(text))

    return ask


def _load_classes(path: Path) -> Loaded:
    network = load_sit(path)
    called, interpolant = with_path(network)
    return Loaded(called, interpolant, lambda c: network.encode([None if c is None else c.label]))


class Probability:
    """A classifier as a search and its report read it: the probability of the class asked for, in [0, 1], which ranks as its
    logarithm does. channels: those of the world's pictures, which grey worlds show three times."""

    def __init__(self, inner: Verifier, channels: int):
        self.inner, self.name, self.channels = inner, inner.name, channels

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        logs = self.inner(samples[..., : self.channels].contiguous(), conditions)
        # One at a time: a vector's last numbers round differently from the others.
        return torch.tensor([math.exp(v) for v in logs.tolist()], dtype=torch.float64)  # type: ignore[union-attr]
