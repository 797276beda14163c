"""How one more picture would move a set's Frechet distance from a reference, to first order: what makes FID cheap enough to search by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secondlook.metrics.gauss import HasMoments, Moments, frechet

FLOOR = 1e-6  # of the largest eigenvalue; below it a covariance of too few samples has no direction of its own


@dataclass(frozen=True)
class Influence:
    """The distance from N(mu_r, S_r) of 1706.08500, eq. 6, linearised at a set with mean ``mu`` and covariance ``sigma``.

    slope = 2 (mu - mu_r) [D], the derivative by the mean; curve = I - T [D, D], that by the covariance, with the optimal transport map
    T = S_r^(1/2) (S_r^(1/2) S S_r^(1/2))^(-1/2) S_r^(1/2) from N(0, S) to N(0, S_r). A set with fewer samples than dimensions has a
    singular S, of which T is taken with a floor under its eigenvalues; the guide is then a coarse one.
    """

    mu: Tensor
    sigma: Tensor
    slope: Tensor
    curve: Tensor

    @staticmethod
    def of(reference: HasMoments, running: HasMoments) -> Influence:
        mu, sigma, root = running.mu.double(), running.sigma.double(), _power(reference.sigma.double(), 0.5)
        transport = root @ _power(root @ sigma @ root, -0.5) @ root
        return Influence(mu, sigma, 2 * (mu - reference.mu.double()), torch.eye(len(mu), dtype=mu.dtype) - transport)

    def change(self, features: Tensor, count: int) -> Tensor:
        """features [n, D]: the change of the distance when each alone joins a set of ``count`` pictures, [n]:
        (slope . d + d' curve d - tr(curve S)) / (count + 1) with d = feature - mu."""
        d = features.double() - self.mu
        return (d @ self.slope + ((d @ self.curve) * d).sum(1) - (self.curve * self.sigma).sum()) / (count + 1)


def _power(sigma: Tensor, power: float) -> Tensor:
    """sigma [D, D] to a power, its eigenvalues not below FLOOR of the largest where the power is negative."""
    values, vectors = torch.linalg.eigh((sigma + sigma.T) / 2)
    least = FLOOR * float(values[-1].clamp_min(1e-300)) if power < 0 else 0.0
    return (vectors * values.clamp_min(least) ** power) @ vectors.T


def choose(reference: HasMoments, features: list[Tensor], passes: int, refresh: int = 10) -> list[int]:
    """For each task the place of its candidate (features of each task [n, D], float64), so that the set of all is near the reference.

    Begins with the first of each; task after task takes the candidate whose influence on the set of the others is smallest, ``passes`` times or until nothing moves. The mean is always the present one; the map T, which takes an eigendecomposition, is made again every
    ``refresh`` tasks. Of the sets at the start and after each pass the one with the smallest
    exact distance is returned: the influence is a guide, and sums of small steps may overshoot.
    """
    now, chosen = torch.stack([some[0] for some in features]), [0] * len(features)
    if len(features) < 3:
        return chosen  # no covariance without a task's own picture
    kept, least = list(chosen), frechet(reference, Moments.of(now))
    for _ in range(passes):
        before = list(chosen)
        for task, some in enumerate(features):
            if task % refresh == 0:
                held = Influence.of(reference, Moments.of(now))
            rest = (now.sum(0) - now[task]) / (len(now) - 1)
            others = replace(held, mu=rest, slope=2 * (rest - reference.mu.double()))
            chosen[task] = int(others.change(some, len(now) - 1).argmin())
            now[task] = some[chosen[task]]
        exact = frechet(reference, Moments.of(now))
        if exact < least:
            kept, least = list(chosen), exact
        if chosen == before:
            break
    return kept
