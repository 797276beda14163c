"""A flow: a network, the path it was trained on and the guidance it is used with, giving estimates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow.guidance import Guide, Network, Plain
from secondlook.flow.path import Kind, Path, complete, mix
from secondlook.types import Estimate

Weight = Literal["none", "velocity", "likelihood"]
WEIGHTS: tuple[Weight, ...] = ("none", "velocity", "likelihood")


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
        return complete(self.path, x, t, self.network.predicts, self.predict(x, t, cond))

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """What the guided network says, [B, *S], counted."""
        value = self.guide(self.network, x, t, cond)
        self.meter.nfe += 1
        self.meter.evals += self._passes(t)
        return value

    def passes_at(self, t: float) -> int:
        """Network rows that an estimate of one row at time ``t`` takes."""
        return self.guide.passes_at(t)

    def _passes(self, t: Tensor) -> int:
        """Network rows for a row of a batch at times [B]."""
        guide = self.guide
        if guide.passes <= 1 or getattr(guide, "steady", False):
            return max(1, guide.passes)
        return max(map(guide.passes_at, t.tolist()))

    def loss(
        self, data: Tensor, noise: Tensor, t: Tensor, cond: Any, weight: Weight = "velocity", floor: float = 0.05,
        emphasis: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """[B]: the prediction's mean squared error, weighted (SiT, 2401.08740, sec. 2.3).

        weight: "none", the error of what the network predicts (for a gradient of log density, of sigma times it);
        "velocity", the error of the velocity that it implies; "likelihood", that of the gradient of log density times w_KL / 2
        (maximum likelihood, 2101.09258, up to its factor 2). Divisions by sigma are by at least ``floor``: data
        prediction's velocity weight grows as 1 / sigma^2 (2511.13720, sec. 4 argues for this pair in pixel space).
        emphasis: what each value's squared error is multiplied by, like the data or with axes of 1.
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
        square = (value - target).square()
        error = (square if emphasis is None else square * emphasis).flatten(1).mean(1)
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
