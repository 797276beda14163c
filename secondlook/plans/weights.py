"""Weights of particles, kept as logarithms: normalising, effective numbers, and who is resampled. Pure functions of plain numbers;
randomness is handed in as uniform numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SCHEMES = ("multinomial", "systematic", "ssp")


@dataclass(frozen=True)
class Row:
    """What a row's looks have come to: ``kept`` is the last, the largest or the sum; ``given`` all its potentials so far."""

    kept: float | None = None
    given: float = 0.0

    def seen(self, potential: str, value: float) -> tuple[Row, float]:
        """The row after another look, and that look's potential."""
        before = self.kept
        if potential == "difference":
            kept, increment = value, value - (before or 0.0)
        else:
            kept = value if before is None else max(value, before) if potential == "max" else value + before
            increment = kept
        return Row(kept, self.given + increment), increment


def normalised(logs: Sequence[float]) -> list[float]:
    """Weights that sum to 1. Where all are -inf nothing is known, and all weigh alike."""
    top = max(logs)
    if top == -math.inf:
        return [1 / len(logs)] * len(logs)
    parts = [math.exp(v - top) for v in logs]
    total = math.fsum(parts)
    return [p / total for p in parts]


def log_mean(logs: Sequence[float]) -> float:
    """log of the mean of exp(logs): the factor by which an estimate of the evidence grows."""
    top = max(logs)
    if top == -math.inf:
        return -math.inf
    return top + math.log(math.fsum(math.exp(v - top) for v in logs) / len(logs))


def effective(weights: Sequence[float]) -> float:
    """The effective sample size of normalised weights, 1 / sum of squares (Kong, 1992)."""
    return 1 / math.fsum(w * w for w in weights)


def draw(logs: Sequence[float], u: float) -> int:
    """One place, drawn by its weight."""
    return _at(normalised(logs), u)


def resample(weights: Sequence[float], scheme: str, uniforms: Sequence[float]) -> list[int]:
    """As many places as there are weights, each expected its weight's share of them, in rising order.

    uniforms: numbers in (0, 1); one for "systematic", as many as weights for "multinomial" and "ssp" (Srinivasan's pairwise rounding,
    Gerber, Chopin and Whiteley, 1708.09701: counts are the floor or the ceiling of their expectation).
    """
    n = len(weights)
    if scheme == "systematic":
        return [_at(weights, (i + uniforms[0]) / n) for i in range(n)]
    if scheme == "multinomial":
        return sorted(_at(weights, u) for u in uniforms[:n])
    if scheme == "ssp":
        return _ssp([w * n for w in weights], uniforms)
    raise ValueError(f"no such scheme: {scheme!r}; known: {', '.join(SCHEMES)}")


def _at(weights: Sequence[float], u: float) -> int:
    total = 0.0
    for i, w in enumerate(weights):
        total += w
        if u < total:
            return i
    return max(i for i, w in enumerate(weights) if w > 0)  # rounding left the sum a little below u


def _ssp(shares: list[float], uniforms: Sequence[float]) -> list[int]:
    counts = [math.floor(s + 1e-12) for s in shares]
    parts = [max(0.0, s - c) for s, c in zip(shares, counts, strict=True)]
    i, draws = 0, iter(uniforms)
    for j in range(1, len(parts)):
        up, down = min(1 - parts[i], parts[j]), min(parts[i], 1 - parts[j])
        if up + down <= 1e-12:  # both are whole already
            counts[i], i = counts[i] + round(parts[i]), j
            continue
        if next(draws) < down / (up + down):
            parts[i], parts[j] = parts[i] + up, parts[j] - up
        else:
            parts[i], parts[j] = parts[i] - down, parts[j] + down
        if parts[i] >= 1 - 1e-12 or parts[i] <= 1e-12:
            counts[i], i = counts[i] + round(parts[i]), j
        else:
            counts[j] += round(parts[j])
    counts[i] += round(parts[i])  # the parts sum to a whole number, so the last one is whole
    return [k for k, c in enumerate(counts) for _ in range(c)]
