"""Does a sampler give its training pictures back? Distances to the nearest training picture, against those of held-out
pictures, which a sampler of the right law would match.

Source: the nearest-neighbour test of Meehan, Chaudhuri and Dasgupta (2004.05675), reduced to one quantile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from secondlook.errors import ConfigError, ShapeError
from secondlook.metrics.gauss import double
from secondlook.metrics.scores import CHUNK, squared_blocks

CANDIDATES = 4


@dataclass(frozen=True)
class Memorisation:
    """share: of samples nearer to training than ``threshold``; about ``quantile`` when nothing is memorised.
    ratio: mean distance to training, samples over test pictures; about 1 when nothing is memorised, 0 for copies.
    threshold: a Euclidean distance in the pictures' units."""

    share: float
    quantile: float
    ratio: float
    threshold: float
    train: int
    test: int
    samples: int

    @property
    def text(self) -> str:
        """One sentence, with the sizes behind it."""
        return (
            f"{self.share:.1%} of {self.samples:,} samples lie nearer to one of {self.train:,} training pictures than "
            f"the nearest {self.quantile:.1%} of {self.test:,} test pictures do; mean distance ratio {self.ratio:.3f}."
        )


def nearest(train: Tensor, samples: Tensor, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Each sample's nearest of train [N, ...]: Euclidean distance [M] float64 and index [M] int64, for samples [M, ...].

    Candidates come from matrix products in float64, block by block; the answer is the nearest of them by plain
    differences, so that a copy is at distance exactly 0. ShapeError where the shapes do not fit or train is empty.
    """
    if train.shape[1:] != samples.shape[1:] or train.ndim < 2 or not len(train):
        got = f"{list(train.shape)} and {list(samples.shape)}"
        raise ShapeError(f"Nearest pictures are sought in a non-empty [N, ...] for [M, ...] of one shape; got {got}.")
    train, samples = train.flatten(1), samples.flatten(1).to(train.device)
    keep = min(CANDIDATES, len(train))
    distance = torch.empty(len(samples), dtype=torch.float64)
    index = torch.empty(len(samples), dtype=torch.long)
    for start in range(0, len(samples), chunk):
        rows = samples[start : start + chunk]
        found = _candidates(train, rows, keep, chunk).sort(1).values
        x = double(rows)
        exact = torch.stack([(double(train[found[:, c]]) - x).square().sum(1) for c in range(keep)], 1)
        least, which = exact.min(1)
        distance[start : start + chunk] = least.sqrt().cpu()
        index[start : start + chunk] = found.cpu().gather(1, which[:, None].cpu())[:, 0]
    return distance, index


def _candidates(train: Tensor, rows: Tensor, keep: int, chunk: int) -> Tensor:
    """The ``keep`` rows of train [N, D] nearest to each of ``rows`` [B, D], up to rounding: [B, keep] int64."""
    gaps = torch.full((len(rows), keep), math.inf, dtype=torch.float64)
    found = torch.zeros(len(rows), keep, dtype=torch.long)
    for _, j, gap in squared_blocks(rows, train, chunk, double(train[:1])[0]):
        near = gap.topk(min(keep, gap.shape[1]), dim=1, largest=False)
        gaps, order = torch.cat((gaps.to(gap.device), near.values), 1).topk(keep, dim=1, largest=False)
        found = torch.cat((found.to(gap.device), near.indices + j.start), 1).gather(1, order)
    return found.to(train.device)


def memorisation(
    train: Tensor, test: Tensor, samples: Tensor, quantile: float = 0.05, chunk: int = CHUNK
) -> Memorisation:
    """Hold samples [M, ...] against test pictures [T, ...] by their distance to training pictures [N, ...].

    ConfigError for an empty set, a quantile outside (0, 1), or test pictures that are all training pictures.
    """
    if not 0 < quantile < 1:
        raise ConfigError(f"The quantile must lie between 0 and 1; got {quantile}.")
    if not len(test) or not len(samples):
        raise ConfigError(f"Memorisation expects test pictures and samples; got {len(test)} and {len(samples)}.")
    usual, found = nearest(train, test, chunk)[0], nearest(train, samples, chunk)[0]
    if float(usual.mean()) == 0:
        raise ConfigError("Every test picture is a training picture; hold other pictures out to measure memorisation.")
    threshold = torch.quantile(usual, quantile)
    share, ratio = (found < threshold).double().mean(), found.mean() / usual.mean()
    sizes = len(train), len(test), len(samples)
    return Memorisation(float(share), quantile, float(ratio), float(threshold), *sizes)
