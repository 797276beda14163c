"""Weights of particles, kept as logarithms: normalising, effective numbers, and who is resampled. Pure functions of plain numbers;
randomness is handed in as uniform numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

SCHEMES = ("multinomial", "systematic", "ssp", "vasr")
POTENTIALS = ("current", "difference", "max", "sum")
SCHEDULES = ("constant", "increasing", "adaptive", "infinite")


@dataclass(frozen=True)
class Row:
    """What a row's looks have come to. kept: the last, the largest or the sum of them ("difference": times the inverse temperature that
    was in force). given: all its potentials so far. last: the last look."""

    kept: float | None = None
    given: float = 0.0
    last: float = 0.0

    def seen(self, potential: str, value: float, scale: float = 1.0) -> tuple[Row, float]:
        """The row after another look, and that look's potential. scale: the inverse temperature in force, as a share of the last one."""
        if potential == "difference":
            kept = scale * value
            return Row(kept, self.given + (kept - (self.kept or 0.0)), value), kept - (self.kept or 0.0)
        kept = value
        if self.kept is not None and potential != "current":
            kept = max(value, self.kept) if potential == "max" else value + self.kept
        return Row(kept, self.given + scale * kept, value), scale * kept


@dataclass(frozen=True)
class Rule:
    """How looks become weights and weights become copies (the options of ``particles``)."""

    potential: str = "difference"
    scheme: str = "systematic"
    threshold: float = 0.5
    schedule: str = "constant"
    gamma: float = 0.008
    forget: bool = False


@dataclass(frozen=True)
class Weights:
    """The weights of a population, a value. logs: of each row's weight. rows: what its looks have come to. evidence: logarithm of the
    factors that resampling has taken out of the weights. scale: the share of the inverse temperature in force."""

    logs: tuple[float, ...]
    rows: tuple[Row, ...]
    evidence: float = 0.0
    scale: float = 0.0

    @staticmethod
    def begin(count: int) -> Weights:
        return Weights((0.0,) * count, (Row(),) * count)

    def seen(self, rule: Rule, values: Sequence[float], time: float) -> Weights:
        """After a look at ``time``; values: scores over the temperature."""
        scale = increasing(time, rule.gamma) if rule.schedule == "increasing" else 1.0
        if rule.schedule == "adaptive":
            scale = adapted(lambda s: effective(normalised(self._told(rule, values, s).logs)), self.scale,
                            rule.threshold * len(values))  # fmt: skip
        told = self._told(rule, values, scale)
        if rule.schedule != "infinite":
            return told
        kept = [row.kept or 0.0 for row in told.rows]
        return replace(told, logs=tuple(0.0 if k == max(kept) else -math.inf for k in kept))

    def _told(self, rule: Rule, values: Sequence[float], scale: float) -> Weights:
        told = [row.seen(rule.potential, value, scale) for row, value in zip(self.rows, values, strict=True)]
        logs = tuple(w + increment for w, (_, increment) in zip(self.logs, told, strict=True))
        return Weights(logs, tuple(row for row, _ in told), self.evidence, scale)

    def mass(self, rule: Rule) -> list[float]:
        """Logarithms of what rows are chosen by: their weights; under "vasr" w exp(r), with w the weight without any potential and r the
        last look alone, whatever the potential is (with "difference" the two are one)."""
        if rule.scheme != "vasr" or rule.schedule == "infinite":
            return list(self.logs)
        return [w - row.given + self.scale * row.last for w, row in zip(self.logs, self.rows, strict=True)]

    def due(self, rule: Rule) -> bool:
        """Whether the effective number is below the threshold."""
        return effective(normalised(self.mass(rule))) < rule.threshold * len(self.logs)

    def resampled(self, rule: Rule, uniforms: Sequence[float], count: int | None = None) -> tuple[list[int], Weights]:
        """The places of the ``count`` rows that go on (None: as many as there are), and their weights: each row's own over what it was
        chosen by, so that weighted sums are expected to stay what they were."""
        mass = self.mass(rule)
        parents = resample(normalised(mass), rule.scheme, uniforms, count)
        logs = tuple(self.logs[p] - mass[p] for p in parents)
        return parents, Weights(logs, tuple(self.rows[p] for p in parents), self.evidence + log_mean(mass), self.scale)

    def ended(self, rule: Rule, values: Sequence[float]) -> Weights:
        """After the last look, at pictures: a row's last potential is what makes all of them sum to its own score over the temperature,
        whatever the looks said (``forget``: there is none)."""
        if rule.forget:
            return self
        if rule.schedule == "infinite":
            return self.seen(replace(rule, potential="current"), values, 1.0)
        told = zip(self.logs, values, self.rows, strict=True)
        return replace(self, logs=tuple(w + value - row.given for w, value, row in told))


def increasing(time: float, gamma: float) -> float:
    """The share of the inverse temperature at ``time``, (1 + gamma)^(100 time) - 1 and at most 1: the tempering of 2501.05803, whose
    paths have 100 steps."""
    return min(1.0, (1 + gamma) ** (100 * time) - 1)


def adapted(number: Callable[[float], float], least: float, wanted: float) -> float:
    """The share of the inverse temperature, from ``least`` to 1, at which the effective ``number`` falls to ``wanted`` (a hair beyond
    it, so that a threshold of as much is crossed); 1 where it never does."""
    if number(1.0) >= wanted:
        return 1.0
    low, high = least, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if number(middle) >= wanted else (low, middle)
    return high


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


def resample(weights: Sequence[float], scheme: str, uniforms: Sequence[float], count: int | None = None) -> list[int]:
    """``count`` places (None: as many as there are weights), each expected its weight's share of them, in rising order.

    uniforms: numbers in (0, 1); one for "systematic" and "vasr" (2604.06779, which draws systematically), as many as places for
    "multinomial", as many as weights for "ssp" (Srinivasan's pairwise rounding, Gerber, Chopin and Whiteley, 1708.09701: counts are
    the floor or the ceiling of their expectation).
    """
    n = len(weights) if count is None else count
    if scheme in ("systematic", "vasr"):
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
