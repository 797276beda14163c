"""Comparers: which of two pictures serves the prompt better, told by a verifier."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.settings import make_named
from secondlook.types import Comparer, Condition, Verifier
from secondlook.verify import answers


class Compared:
    """A ``types.Comparer`` over a verifier: sigmoid((one's number - the other's) / scale), the Bradley-Terry chance. The number is
    the logit where the verifier has one (``logits``), else its score. It has no place that it prefers."""

    inline = True

    def __init__(self, verifier: Verifier, name: str, scale: float = 1.0):
        if not scale > 0 or math.isinf(scale):
            raise ConfigError(f"A comparer's scale must be above 0; got {scale!r}.")
        self.verifier, self.name, self.scale = verifier, name, float(scale)
        self.inline = bool(getattr(verifier, "inline", False))

    def __call__(self, first: Tensor, second: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """first, second: uint8 [B, *I]. Returns [B] float64 in [0, 1], NaN where the verifier could not judge one of a pair."""
        one, other = (self._numbers(pictures, conditions) for pictures in (first, second))
        return torch.tensor([share(a, b, self.scale) for a, b in zip(one, other, strict=True)], dtype=torch.float64)

    def _numbers(self, pictures: Tensor, conditions: Sequence[Condition]) -> list[float]:
        logits = getattr(self.verifier, "logits", None)
        if logits is not None:
            return [float(v) for v in logits(pictures, conditions)]
        return answers.scores(self.verifier(pictures, conditions), len(pictures))[0]


def share(one: float, other: float, scale: float) -> float:
    """A half for equals, infinite ones too."""
    if one == other:
        return 0.5
    gap = (one - other) / scale
    if math.isnan(gap):
        return math.nan
    return 1 / (1 + math.exp(-gap)) if gap > -700 else 0.0


def learned() -> Comparer:
    """By the logits of the shipped verifier of Scenes."""
    from secondlook.verify import builtin

    return Compared(builtin.learned(), "learned")


def by_score(verifier: str = "sharpness", scale: float = 1.0) -> Comparer:
    """By the scores of any verifier that is called by name."""
    return Compared(make_named("verifier", verifier), "by_score", scale)
