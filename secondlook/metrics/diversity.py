"""How much pictures differ from one another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE = 32  # pixels of a picture's side when pictures are compared


def diversity(pictures: Sequence[np.ndarray]) -> tuple[float, float]:
    """The mean root-mean-square distance between pairs (1 is black against white), and the Vendi score (2210.02410) under a
    Gaussian kernel of width a quarter: from 1, all alike, to their number. Both on pixels made ``SIDE`` on a side."""
    if len(pictures) < 2:
        return math.nan, math.nan
    x = np.stack([_small(p) for p in pictures]).reshape(len(pictures), -1)
    gaps = np.stack([np.sqrt(((x - one) ** 2).mean(1)) for one in x])
    kernel = np.exp(-((gaps / 0.25) ** 2) / 2) / len(x)
    values = np.linalg.eigvalsh(kernel)
    values = values[values > 1e-12]
    pairs = gaps[np.triu_indices(len(x), 1)]
    return float(pairs.mean()), float(np.exp(-(values * np.log(values)).sum()))


def _small(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX), np.float64) / 255
