"""Class-conditional networks whose samples are pixels, as backends: a request is a class, by its number or its name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as File
from typing import Any, ClassVar

import torch
from torch import Tensor

from secondlook.adapters.vae import to_bytes
from secondlook.backends.own import Loaded, Own
from secondlook.errors import ConfigError, nearest
from secondlook.flow.discrete import with_path
from secondlook.models.official import load_sit
from secondlook.models.sit import SiT
from secondlook.settings import Settings
from secondlook.types import Comparer, Condition, Verifier
from secondlook.verify import by_features, classify


@dataclass(frozen=True)
class Encode:
    network: SiT

    def __call__(self, condition: Condition | None) -> Any:
        return self.network.encode([None if condition is None else condition.label])


class Classes(Own):
    """Base of such worlds. world: has classes and decodes."""

    defaults: ClassVar[Mapping[str, Any]] = {"steps": 20, "guidance": 1.5, "shift": 1.0}
    world: ClassVar[Any]
    network: SiT | None = None  # of a backend that reads it before it is asked for

    @property
    def classes(self) -> int:
        return len(self.world.classes)

    def condition(self, text: str) -> Condition:
        text, names = text.strip(), [str(n) for n in self.world.classes]
        if text in names:
            found: Condition = self.world.condition(names.index(text))
            return found
        if not text.isdecimal():
            raise ConfigError(f'The world "{self.name}" has no class "{text}"; {nearest(text, names)}')
        found = self.world.condition(int(text))
        return found

    def decode(self, x: Tensor) -> Tensor:
        found: Tensor = self.world.decode(x)
        return found

    def load(self, file: File, device: torch.device) -> Loaded:
        network = self.read(file).to(device)
        self.fits(network)
        called, path = with_path(network)
        return Loaded(called, path, Encode(network), network.config.path, network)

    def read(self, file: File) -> SiT:
        """A network from its file, or the one that was read from it before."""
        return self.network if self.network is not None and file == self.file else load_sit(file)

    def fits(self, network: SiT) -> None:
        """ConfigError for a network of another shape than the world's samples."""
        if tuple(self.world.shape) != network.shape:
            raise ConfigError(
                f'The world "{self.name}" has samples {list(self.world.shape)}, the model {list(network.shape)}.'
            )

    def verifiers(self) -> Mapping[str, Callable[[], Verifier]]:
        return {"learned": partial(_probability, classify.verifier, self.name, self.channels),
                "judge": partial(_probability, classify.judge, self.name, self.channels),
                "oracle_is": partial(by_features.oracle_is, self.name)}  # fmt: skip

    def comparer(self, name: str) -> Comparer | None:
        """The backend's own comparer of that name; None where the name is not one."""
        return by_features.similarity(self.name) if name == "similarity" and self.verifiers() else None


def _probability(load: Callable[[str], Verifier], world: str, channels: int) -> Probability:
    return Probability(load(world), channels)


class Probability:
    """A classifier as a search and its report read it: the probability of the class asked for, in [0, 1], which ranks as its
    logarithm does. channels: those of the world's pictures, which grey worlds show three times."""

    inline = True

    def __init__(self, inner: Verifier, channels: int):
        self.inner, self.name, self.channels = inner, inner.name, channels

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        logs = self.inner(samples[..., : self.channels].contiguous(), conditions)
        assert isinstance(logs, Tensor)
        # One at a time: a vector's last numbers round differently from the others.
        return torch.tensor([math.exp(v) for v in logs.tolist()], dtype=torch.float64)


class Weights(Classes):
    """Weights that name no world of ours, whose samples are pixels: no verifier of their own."""

    name = "weights"
    defaults: ClassVar[Mapping[str, Any]] = {"steps": 20, "guidance": 1.0, "shift": 1.0}

    def __init__(self, model: str):
        super().__init__(model)
        self.network = load_sit(self.file)
        self.config = self.network.config
        if self.config.channels not in (1, 3):
            raise ConfigError(
                f'"{model}" samples latents of {self.config.channels} channels: give the autoencoder that decodes them, --vae DIR.'
            )

    @property
    def classes(self) -> int:
        return int(self.config.classes)

    def condition(self, text: str) -> Condition:
        if not (text.strip().isdecimal() and int(text) < self.config.classes):
            raise ConfigError(f'These weights draw classes, 0 to {self.config.classes - 1}; got "{text}".')
        return Condition(label=int(text))

    def decode(self, x: Tensor) -> Tensor:
        return to_bytes(x)

    def fits(self, network: SiT) -> None:
        if network.shape != (self.config.channels, self.config.side, self.config.side):
            raise ConfigError(f"--weak expects a model of the same task: its shape is {list(network.shape)}.")

    def verifiers(self) -> Mapping[str, Callable[[], Verifier]]:
        return {}

    def usual(self, s: Settings) -> dict[str, Any]:
        return {**super().usual(s), "verifier": "sharpness"}
