"""A sample of one path read as a sample of another.

Two paths have the same law, up to a scale, at the times at which alpha / sigma is the same on both: for a flow taken to a
variance-preserving path 2503.19385 (interpolant conversion), for diffusions 2206.00364. Nothing is trained: the network is
asked where the sample stands on its own path.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secondlook.flow.discrete import exact_coefs
from secondlook.flow.path import Coefs, Invertible, Path
from secondlook.types import Estimate


@dataclass(frozen=True)
class Conversion:
    """From ``source`` at times t [B] to ``target``: to the times s at which alpha / sigma is the same, where the sample is
    scale times what it was. All [B] float64.

    Where the source is noisier than the target ever is (a linear path before t = 0.0065, against VP), s is 0 and the scale
    that of the source's time: pure noise then stands for VP's first marginal, which has 0.0066 of the data in it.
    """

    source: Path
    target: Invertible

    def at(self, t: Tensor) -> tuple[Tensor, Coefs, Tensor]:
        """s, the target's coefficients there, and the scale."""
        here = exact_coefs(self.source, t)
        s = self.target.time_of(here.sigma / here.alpha)
        there = exact_coefs(self.target, s)
        return s, there, torch.hypot(there.alpha, there.sigma) / torch.hypot(here.alpha, here.sigma)

    def estimate(self, e: Estimate, c: Coefs) -> Estimate:
        """An estimate on the source as one on the target with coefficients c: data and noise are the same there."""
        c = c.like(e.data)
        velocity = c.d_alpha * e.data + c.d_sigma * e.noise
        return Estimate(e.data, e.noise, velocity, -e.noise / c.sigma.clamp_min(1e-5))
