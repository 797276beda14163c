"""A flow: a network, the path it was trained on and the guidance it is used with, giving estimates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from secondlook.path import Kind, Path, complete, mix
from secondlook.types import Estimate


class Network(Protocol):
    """(x [B, *S], t [B], condition) -> prediction [B, *S]. ``predicts`` names what; ``shape`` is S."""

    @property
    def predicts(self) -> Kind: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor: ...


class Guide(Protocol):
    """How a network is asked: ``passes`` network rows for each row of x."""

    @property
    def passes(self) -> int: ...

    def __call__(self, network: Network, x: Tensor, t: Tensor, cond: Any) -> Tensor: ...


@dataclass(frozen=True)
class Plain:
    """The network's own prediction."""

    passes: int = 1

    def __call__(self, network: Network, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return network(x, t, cond)


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (2207.12598): null + scale (conditional - null), both in one call of twice the rows.

    ``join(cond, rows)`` returns the condition with as many null rows behind it.
    """

    scale: float
    join: Callable[[Any, int], Any]
    passes: int = 2

    def __call__(self, network: Network, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        both = network(torch.cat([x, x]), torch.cat([t, t]), self.join(cond, len(x)))
        wanted, null = both.chunk(2)
        return null + self.scale * (wanted - null)


@dataclass
class Meter:
    """What a flow has done to every row it was given: ``nfe`` guided estimates, ``evals`` network rows."""

    nfe: int = 0
    evals: int = 0


@dataclass
class Flow:
    """``estimate`` for sampling, ``loss`` for training. Costs are counted where they arise, in ``meter``."""

    network: Network
    path: Path
    guide: Guide = field(default_factory=Plain)
    meter: Meter = field(default_factory=Meter)

    def estimate(self, x: Tensor, t: Tensor, cond: Any) -> Estimate:
        """Data, noise, velocity and gradient of log density, each [B, *S], at x [B, *S] and t [B]."""
        value = self.guide(self.network, x, t, cond)
        self.meter.nfe += 1
        self.meter.evals += self.guide.passes
        return complete(self.path, x, t, self.network.predicts, value)

    def loss(self, data: Tensor, noise: Tensor, t: Tensor, cond: Any, floor: float = 0.05) -> Tensor:
        """[B]: mean squared error of the velocity, whatever the network predicts.

        For data prediction this is the error weighted by (d_alpha - d_sigma alpha / sigma)^2, with sigma at least
        ``floor`` (2511.13720, sec. 4 argues for this pair of target and loss in pixel space).
        """
        x = mix(self.path, data, noise, t)
        value = self.network(x, t, cond).float()
        exact = complete(self.path, x, t, "data", data, floor)
        guess = complete(self.path, x, t, self.network.predicts, value, floor)
        return (guess.velocity - exact.velocity).square().flatten(1).mean(1)
