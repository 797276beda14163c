"""What the feature networks of the class-conditional worlds say of single pictures: the oracle of the Inception score, and how alike
two pictures are.

The feature network measures sets of pictures (FID, Inception score, precision, recall). A search that it guides is measured by its
guide, so such a search is labelled oracle, as one that the exact checker guides is (2501.09732, sec. 3.1: oracle verifiers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import ConfigError, ShapeError
from secondlook.types import Comparer, Condition, Verifier
from secondlook.verify.classify import WORLDS, Features, features, world_of

SIDE = 16  # of the pooled pixels


class OracleIS:
    """A ``types.Verifier``: the softmax probability of the class asked for under the feature network's own head, in [0, 1]."""

    inline = True
    oracle = True
    name = "oracle_is"

    def __init__(self, found: Features):
        self.features, self.world, self.network = found, found.world, found.network

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """uint8 pictures [B, H, W, C or 3] to [B] float64, NaN where a condition has no label."""
        if len(samples) != len(conditions):
            raise ShapeError(
                f"{len(samples)} pictures came with {len(conditions)} conditions; give one for each picture."
            )
        asked = [None if c.label is None else self.world.condition(c.label).label for c in conditions]
        _, logits = self.features(_own_channels(samples, self.world.shape[0]))
        return torch.tensor([math.nan if k is None else probability(row, k) for row, k in zip(logits.double().numpy(), asked, strict=True)],
                            dtype=torch.float64)  # fmt: skip


def probability(logits: np.ndarray, k: int) -> float:
    """Of class ``k`` under logits [C], one row at a time: several rows' last digits would depend on their company."""
    parts = np.exp(logits - logits.max())
    return float(parts[k] / parts.sum())


class Similarity:
    """A ``types.Comparer`` that is symmetric: it tells not which of two pictures is better but how alike they are, (1 + cosine) / 2.

    found: a feature network, whose features are compared as they are. None: the pixels, averaged to at most 16 x 16 and centred by
    the picture's own mean, so that the cosine is a correlation; that is for worlds and pipelines without a feature network, and sees
    layout and colour alone. NaN where one of the two has no direction, as a picture of one colour."""

    inline = True
    symmetric = True
    name = "similarity"

    def __init__(self, found: Features | None = None):
        self.features, self.network = found, None if found is None else found.network

    def __call__(self, first: Tensor, second: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """first, second: uint8 [B, H, W, C or 3]; conditions are not read. Returns [B] float64 in [0, 1]."""
        pairs = zip(self._seen(first), self._seen(second), strict=True)
        return torch.tensor([likeness(a, b) for a, b in pairs], dtype=torch.float64)

    def _seen(self, pictures: Tensor) -> np.ndarray:
        if self.features is not None:
            return self.features(_own_channels(pictures, self.features.world.shape[0]))[0].double().numpy()
        x = pictures.double().permute(0, 3, 1, 2)
        size = (min(SIDE, x.shape[2]), min(SIDE, x.shape[3]))
        small = [torch.nn.functional.adaptive_avg_pool2d(one, size).flatten() for one in x]
        return np.stack([(s - s.mean()).numpy() for s in small]) if small else np.zeros((0, 1))


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """(1 + cosine) / 2 of two vectors, NaN where one is zero."""
    size = math.sqrt(float(a @ a) * float(b @ b))
    return math.nan if size == 0 else min(1.0, max(0.0, (1 + float(a @ b) / size) / 2))


def _own_channels(pictures: Tensor, channels: int) -> Tensor:
    """Grey worlds are shown three equal channels and have one."""
    return pictures[..., :channels].contiguous()


def oracle_is(world: str = "") -> Verifier:
    """The oracle of the Inception score in ``world``; a run in that world needs no name."""
    if not world:
        raise ConfigError(f'oracle_is reads the feature network of a world with classes: {", ".join(WORLDS)}; take one of those with --world, or write '
                          'oracle_is(world="digits").')  # fmt: skip
    return OracleIS(features(world_of(world).name))


def similarity(world: str = "") -> Comparer:
    """How alike two pictures are to the feature network of ``world``; by pixels where none is named and the run's own has none."""
    return Similarity(features(world_of(world).name) if world else None)
