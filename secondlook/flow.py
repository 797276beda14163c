"""A flow: a network, the path it was trained on and the guidance it is used with, giving estimates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.path import Kind, Path, complete, mix
from secondlook.types import Estimate

Weight = Literal["none", "velocity", "likelihood"]
WEIGHTS: tuple[Weight, ...] = ("none", "velocity", "likelihood")


class Network(Protocol):
    """(x [B, *S], t [B], condition) -> prediction [B, *S]. ``predicts`` names what; ``shape`` is S."""

    @property
    def predicts(self) -> Kind: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor: ...


class Guide(Protocol):
    """How a network is asked: ``passes`` network rows for each row of x, at most. A guide may have ``steady`` too: true
    where it is so many at every time, so that nobody need look at the times, which may be on a GPU."""

    @property
    def passes(self) -> int: ...

    def passes_at(self, t: float) -> int:
        """Network rows for a row of x at time ``t``."""
        ...

    def __call__(self, network: Network, x: Tensor, t: Tensor, cond: Any) -> Tensor: ...


@dataclass(frozen=True)
class Plain:
    """The network's own prediction."""

    passes: int = 1

    def passes_at(self, t: float) -> int:
        return 1

    def __call__(self, network: Network, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return network(x, t, cond)


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (2207.12598): null + scale (conditional - null).

    ``join(cond, rows)`` returns the condition with as many null rows behind it, ``null(rows)`` null rows alone. channels:
    guide the first so many only, the others stay conditional, as in the released DiT and SiT code with three of four (None:
    all). interval: times [low, high) in which to guide (2404.07724, sec. 3); outside it the prediction is the network's own,
    and the null pass is not made.
    """

    scale: float
    join: Callable[[Any, int], Any]
    null: Callable[[int], Any] | None = None
    channels: int | None = None
    interval: tuple[float, float] | None = None
    passes: int = 2

    def __post_init__(self) -> None:
        if self.interval is not None and self.null is None:
            raise ConfigError("Guidance in an interval wants null(rows) as well as join.")

    def passes_at(self, t: float) -> int:
        return 2 if self._guided(t) else 1

    @property
    def steady(self) -> bool:
        return self.interval is None

    def _guided(self, t: float) -> bool:
        return self.interval is None or self.interval[0] <= t < self.interval[1]

    def __call__(self, network: Network, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        if self.interval is None:
            both = network(torch.cat([x, x]), torch.cat([t, t]), self.join(cond, len(x)))
            wanted, null = both.chunk(2)
            return self._mix(wanted, null)
        # Two calls of the same shape: what a row gets must not depend on whether its batch mates are in the interval.
        wanted = network(x, t, cond)
        inside = (t >= self.interval[0]) & (t < self.interval[1])
        if not bool(inside.any()):
            return wanted
        assert self.null is not None
        guided = self._mix(wanted, network(x, t, self.null(len(x))))
        return torch.where(inside.view(-1, *(1,) * (x.ndim - 1)), guided, wanted)

    def _mix(self, wanted: Tensor, null: Tensor) -> Tensor:
        out = null + self.scale * (wanted - null)
        if self.channels is None:
            return out
        return torch.cat([out[:, : self.channels], wanted[:, self.channels :]], 1)


@dataclass(frozen=True)
class AutoGuidance:
    """Guidance by a weaker model of the same task (2406.02507, eq. 4): weak + scale (strong - weak), in an interval of
    times or in all. Both networks must predict the same kind."""

    scale: float
    weak: Network
    interval: tuple[float, float] | None = None
    passes: int = 2

    def passes_at(self, t: float) -> int:
        return 2 if self.interval is None or self.interval[0] <= t < self.interval[1] else 1

    @property
    def steady(self) -> bool:
        return self.interval is None

    def __call__(self, network: Network, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        if network.predicts != self.weak.predicts:
            raise ConfigError(
                f"Autoguidance wants two models of one prediction; got {network.predicts} and {self.weak.predicts}."
            )
        strong = network(x, t, cond)
        if self.interval is None:
            weak = self.weak(x, t, cond)
            return weak + self.scale * (strong - weak)
        inside = (t >= self.interval[0]) & (t < self.interval[1])
        if not bool(inside.any()):
            return strong
        weak = self.weak(x, t, cond)
        return torch.where(inside.view(-1, *(1,) * (x.ndim - 1)), weak + self.scale * (strong - weak), strong)


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
        self.meter.evals += self._passes(t)
        return complete(self.path, x, t, self.network.predicts, value)

    def _passes(self, t: Tensor) -> int:
        """Network rows for a row of a batch at times [B]."""
        guide = self.guide
        if guide.passes <= 1 or getattr(guide, "steady", False):
            return max(1, guide.passes)
        return max(map(guide.passes_at, t.tolist()))

    def loss(
        self, data: Tensor, noise: Tensor, t: Tensor, cond: Any, weight: Weight = "velocity", floor: float = 0.05
    ) -> Tensor:
        """[B]: the prediction's mean squared error, weighted (SiT, 2401.08740, sec. 2.3).

        weight: "none", the error of what the network predicts (for a gradient of log density, of sigma times it);
        "velocity", the error of the velocity that it implies; "likelihood", that of the gradient of log density times w_KL / 2
        (maximum likelihood, 2101.09258, up to its factor 2). Divisions by sigma are by at least ``floor``: data
        prediction's velocity weight grows as 1 / sigma^2 (2511.13720, sec. 4 argues for this pair in pixel space).
        """
        x = mix(self.path, data, noise, t)
        value = self.network(x, t, cond).float()
        kind = self.network.predicts
        target = {"data": data, "noise": noise}.get(kind)
        c = self.path.coefs(t).like(x)
        if kind == "velocity":
            target = c.d_alpha * data + c.d_sigma * noise
        elif kind == "logp_grad":
            value, target = -c.sigma * value, noise
        assert target is not None
        error = (value - target).square().flatten(1).mean(1)
        return error * loss_weight(self.path, kind, weight, t, floor).to(error)


def loss_weight(path: Path, kind: Kind, weight: Weight, t: Tensor, floor: float = 0.0) -> Tensor:
    """[B]: what the squared error of a prediction is multiplied by. With D = w_KL / 2 = sigma (sigma d_alpha / alpha -
    d_sigma), the velocity's error is D / sigma times the noise's and D alpha / sigma^2 times the data's."""
    if weight not in WEIGHTS:
        raise ConfigError(f"A loss weight is one of {', '.join(WEIGHTS)}; got {weight!r}.")
    if weight == "none":
        return torch.ones_like(t)
    c = path.coefs(t)
    sigma = c.sigma.clamp_min(floor)
    if kind == "data":  # the form without division by alpha, which is 0 at noise
        to_velocity = c.d_alpha - c.d_sigma * c.alpha / sigma
        half = sigma * (sigma * c.d_alpha / c.alpha.clamp_min(max(floor, 1e-5)) - c.d_sigma)
    else:
        half = sigma * (sigma * c.d_alpha / c.alpha - c.d_sigma)
        to_velocity = torch.ones_like(t) if kind == "velocity" else half / sigma
    return to_velocity.square() if weight == "velocity" else to_velocity.square() / half
