"""Scores of generated samples from their features: Inception score, precision, recall, density, coverage, KID.

All of it is computed in float64, block by block, so that 50,000 by 50,000 samples of 2,048 features fit in memory.
Squared distances come from |x|^2 + |y|^2 - 2 <x, y>, one matrix product a block, and that difference loses about half
the digits of float32 when samples lie close together compared with their norms, as pool features do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from secondlook.errors import ConfigError, ShapeError
from secondlook.metrics.gauss import double

CHUNK = 2048


class Spread(NamedTuple):
    """A mean over parts of the samples and the parts' standard deviation (over their number, not their number - 1)."""

    mean: float
    std: float


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """density >= 0, about 1 for samples of the right law; coverage in [0, 1]."""

    density: float
    coverage: float


@dataclass(frozen=True)
class Manifold:
    """The four neighbourhood scores of one comparison, see ``manifold``."""

    precision: float
    recall: float
    density: float
    coverage: float


def inception_score(values: Tensor, splits: int = 10, *, kind: Literal["logits", "probabilities"] = "logits") -> Spread:
    """exp(E[KL(p(y | x) || p(y))]) of predictions [N, C], mean and std over ``splits`` (1606.03498, sec. 4).

    Split i holds the rows from floor(i N / splits), in the order given, so shuffle pictures that are sorted by class.
    This is ADM's convention, which cuts every 5,000, at N = 5,000 splits. ``values`` stay in their dtype; float64 is
    used a block at a time. ConfigError for fewer rows than splits and for values not of the stated kind.
    """
    if values.ndim != 2:
        raise ShapeError(f"An Inception score expects predictions [N, C]; got {list(values.shape)}.")
    if not 1 <= splits <= len(values):
        raise ConfigError(f"An Inception score over {splits} splits expects at least as many rows; got {len(values)}.")
    edges = [len(values) * i // splits for i in range(splits + 1)]
    scores = [_score(values[start:stop], kind) for start, stop in pairwise(edges)]
    spread = torch.tensor(scores, dtype=torch.float64)
    return Spread(float(spread.mean()), float(spread.std(correction=0)))


def _score(values: Tensor, kind: str) -> float:
    """One split's score: E[KL] = E[sum p log p] - sum q log q with q = E[p]."""
    total, negentropy = torch.zeros(values.shape[1], dtype=torch.float64), 0.0
    for rows in torch.split(values, CHUNK):
        p = _probabilities(double(rows), kind)
        total += p.sum(0).cpu()
        negentropy += float(torch.xlogy(p, p).sum())
    q = total / len(values)
    return math.exp(negentropy / len(values) - float(torch.xlogy(q, q).sum()))


def _probabilities(rows: Tensor, kind: str) -> Tensor:
    """Rows [B, C] as probabilities, after a look at whether they are what they are said to be."""
    if kind not in ("logits", "probabilities"):
        raise ConfigError(f'The kind of predictions must be "logits" or "probabilities"; got {kind!r}.')
    if not bool(rows.isfinite().all()):
        raise ConfigError("An Inception score expects finite predictions; look for NaN or infinity in them.")
    sums_to_one = bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-3).all())
    if sums_to_one == (kind == "logits") and rows.shape[1] > 1:
        other = "probabilities" if sums_to_one else "logits"
        raise ConfigError(f'Predictions given as {kind} look like {other}; say kind="{other}".')
    return rows.softmax(1) if kind == "logits" else rows / rows.sum(1, keepdim=True)


def precision_recall(real: Tensor, fake: Tensor, k: int = 3, chunk: int = CHUNK) -> PrecisionRecall:
    """Improved precision and recall (1904.06991, eq. 1 and 2) of features real [N, D] and fake [M, D]; k: see
    ``manifold``, which gives density and coverage in the same pass."""
    found = manifold(real, fake, k, k, chunk)
    return PrecisionRecall(found.precision, found.recall)


def density_coverage(real: Tensor, fake: Tensor, k: int = 5, chunk: int = CHUNK) -> DensityCoverage:
    """Density and coverage (2002.09797, sec. 3) of features real [N, D] and fake [M, D]; k: see ``manifold``."""
    found = manifold(real, fake, 1, k, chunk)
    return DensityCoverage(found.density, found.coverage)


def manifold(real: Tensor, fake: Tensor, k: int = 3, k_density: int = 5, chunk: int = CHUNK) -> Manifold:
    """Precision and recall with ``k`` neighbours, density and coverage with ``k_density``, in one pass over blocks.

    Around each sample lies a ball that reaches to its k-th nearest other sample of the same set.

    - precision: the share of fake samples within some real ball; recall: of real samples within some fake ball.
      Balls are closed, as in 1904.06991, eq. 1.
    - density: the mean number of real balls around a fake sample, over k; coverage: the share of real balls with a fake
      sample inside. Balls are open, as in the authors' code: then real samples themselves have density 1.

    Points nearer to a ball's surface than float64 resolves count as on it. ConfigError for sets of k samples or fewer.
    """
    _check(real, fake, k, k_density)
    fake = fake.to(real.device)
    centre = double(real).mean(0)
    slack = 1e-12 * _largest(real, fake, centre, chunk)
    reach = kth_nearest(real, max(k, k_density), chunk, centre)
    closed_real, open_real = reach[:, k - 1] + slack, reach[:, k_density - 1] - slack
    closed_fake = kth_nearest(fake, k, chunk, centre)[:, k - 1] + slack
    precise, recalled, covered = (closed_real.new_zeros(n, dtype=torch.bool) for n in (len(fake), len(real), len(real)))
    inside = 0
    for i, j, gap in squared_blocks(fake, real, chunk, centre):
        precise[i] |= (gap <= closed_real[j]).any(1)
        recalled[j] |= (gap <= closed_fake[i, None]).any(0)
        around = gap < open_real[j]
        covered[j] |= around.any(0)
        inside += int(around.sum())
    precision, recall, coverage = (float(hit.double().mean()) for hit in (precise, recalled, covered))
    return Manifold(precision, recall, inside / (k_density * len(fake)), coverage)


def _check(real: Tensor, fake: Tensor, k: int, k_density: int) -> None:
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        got = f"{list(real.shape)} and {list(fake.shape)}"
        raise ShapeError(f"Neighbourhood scores want features [N, D] and [M, D]; got {got}.")
    if min(k, k_density) < 1:
        raise ConfigError(f"Neighbours are counted from k = 1; got {min(k, k_density)}.")
    if len(real) <= max(k, k_density) or len(fake) <= k:
        raise ConfigError(
            f"Balls to the {max(k, k_density)}th nearest of {len(real):,} real samples, or to the {k}th of "
            f"{len(fake):,} generated ones, do not exist; give more samples than k."
        )


def _largest(real: Tensor, fake: Tensor, centre: Tensor, chunk: int) -> float:
    """The largest squared distance to ``centre``; ConfigError where a feature is not finite."""
    parts = [*torch.split(real, chunk), *torch.split(fake, chunk)]
    largest = float(torch.stack([(double(part) - centre).square().sum(1).max() for part in parts]).max())
    if not math.isfinite(largest):
        raise ConfigError("Neighbourhood scores want finite features; look for NaN or infinity in them.")
    return largest


def kth_nearest(x: Tensor, k: int, chunk: int = CHUNK, centre: Tensor | float = 0.0) -> Tensor:
    """Squared distances from each of x [N, D] to its 1st ... k-th nearest other sample, [N, k] float64, ascending.

    A copy of a sample elsewhere in x is another sample, at distance 0.
    """
    best: Tensor | None = None
    for i, j, gap in squared_blocks(x, x, chunk, centre):
        if best is None:
            best = gap.new_full((len(x), k), math.inf)
        if i == j:
            gap.fill_diagonal_(math.inf)
        best[i] = torch.cat((best[i], gap), 1).topk(k, dim=1, largest=False).values
    if best is None:
        raise ShapeError("The nearest of no samples was asked for; give at least one.")
    return best


def squared_blocks(
    rows: Tensor, columns: Tensor, chunk: int = CHUNK, centre: Tensor | float = 0.0
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared Euclidean distances of rows [M, D] to columns [N, D]: where each block lies, and the block, float64 >= 0.

    ``centre`` [D] is taken from both first, which changes no distance and spares digits. All lie on one device.
    """
    for start in range(0, len(rows), chunk):
        i = slice(start, min(start + chunk, len(rows)))
        a = double(rows[i]) - centre
        for first in range(0, len(columns), chunk):
            j = slice(first, min(first + chunk, len(columns)))
            b = double(columns[j]) - centre
            norms = a.square().sum(1)[:, None] + b.square().sum(1)
            yield i, j, torch.addmm(norms, a, b.T, alpha=-2).clamp_min_(0)


def kid(real: Tensor, fake: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0) -> Spread:
    """Kernel Inception distance (1801.01401): the unbiased squared MMD with kernel (<x, y> / D + 1)^3.

    Mean and std over ``subsets`` draws of ``size`` samples, without replacement, from each of real [N, D] and
    fake [M, D]. It may be negative. ConfigError where a set has fewer than ``size`` samples.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ShapeError(f"KID expects features [N, D] and [M, D]; got {list(real.shape)} and {list(fake.shape)}.")
    if subsets < 1 or not 2 <= size <= min(len(real), len(fake)):
        raise ConfigError(
            f"KID expects one or more subsets of 2 to {min(len(real), len(fake)):,} samples, as many as the smaller set "
            f"has; got {subsets} of {size:,}."
        )
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(subsets):
        x, y = (double(part[torch.randperm(len(part), generator=draw)[:size].to(part.device)]) for part in (real, fake))
        found.append(_mmd(x, y.to(x.device)))
    values = torch.tensor(found, dtype=torch.float64)
    return Spread(float(values.mean()), float(values.std(correction=0)))


def _mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of the squared MMD of x [N, D] and y [N, D] (1801.01401, sec. 2)."""
    n = len(x)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = sum(kernel(z, z).fill_diagonal_(0).sum() / (n * (n - 1)) for z in (x, y))
    return float(within - 2 * kernel(x, y).mean())
