"""Intervals and comparisons. Prompts and draws are both a sample: intervals cover both, and comparisons are paired.

Arrays are [seeds, prompts] unless said otherwise. Classes (tasks, numbers of atoms) are strata: a class's size is no accident, so
prompts are drawn again within it, and every class counts alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DRAWS = 2000


def macro(values: np.ndarray, tasks: Sequence[str]) -> float:
    """GenEval's overall: the mean over tasks of each task's mean. values [lines]; NaN lines are left out."""
    names = np.asarray(tasks)
    return float(np.mean([np.nanmean(values[names == t]) for t in dict.fromkeys(tasks)]))


def interval(values: np.ndarray, tasks: Sequence[str], draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of `macro`, resampling lines within each task. values [lines] may be differences."""
    rng = np.random.default_rng(seed)
    names = np.asarray(tasks)
    means = []
    for task in dict.fromkeys(tasks):
        own = values[names == task]
        own = own[~np.isnan(own)]
        means.append(own[rng.integers(0, len(own), (draws, len(own)))].mean(1))
    low, high = np.percentile(np.mean(means, 0), [2.5, 97.5])
    return float(low), float(high)


class Bootstrap:
    """Draws of prompts within their class, and of each drawn prompt's seeds: the same ones for everything that is compared."""

    def __init__(self, classes: Sequence[str], seeds: int, draws: int = DRAWS, seed: int = 0):
        rng = np.random.default_rng(seed)
        names = np.asarray(classes)
        self.classes = list(dict.fromkeys(classes))
        self.at = [np.flatnonzero(names == c) for c in self.classes]
        self.prompts = [own[rng.integers(0, len(own), (draws, len(own)))] for own in self.at]
        self.seeds = [rng.integers(0, seeds, (*p.shape, seeds)) for p in self.prompts]

    def mean(self, values: np.ndarray) -> float:
        """The mean over classes of each class's mean; NaN cells are left out."""
        return _mean([np.nanmean(values[:, own]) for own in self.at])

    def means(self, values: np.ndarray) -> np.ndarray:
        """``mean`` of every draw, [draws]."""
        found = []
        for prompts, seeds in zip(self.prompts, self.seeds, strict=True):
            cells = values[seeds, prompts[..., None]]
            found.append(np.nanmean(cells.reshape(len(cells), -1), 1))
        return np.mean(found, 0)

    def interval(self, values: np.ndarray) -> tuple[float, float]:
        """95 % interval of ``mean``. Where every cell is right, or every one is wrong, nothing varies and Wilson's interval stands."""
        known = values[~np.isnan(values)]
        if len(known) and (known == known[0]).all() and known[0] in (0.0, 1.0):
            return wilson(float(known[0]), values.shape[1])
        low, high = np.percentile(self.means(values), [2.5, 97.5])
        return float(low), float(high)

    def gap(self, values: np.ndarray) -> tuple[float, float]:
        """95 % interval of ``mean`` of paired differences. Where all tie, as far to either side as Wilson's interval for none of so many
        prompts goes."""
        if (values[~np.isnan(values)] == 0).all():
            most = wilson(0.0, values.shape[1])[1]
            return -most, most
        return self.interval(values)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``count`` prompts (seeds of one prompt are not independent of each other)."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def sign_flip(differences: np.ndarray, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of paired differences [prompts] (means over seeds) being as far from 0 by chance, each prompt's sign being a
    coin. Prompts that tie say nothing either way, and stay."""
    d = differences[~np.isnan(differences)]
    if not len(d) or not d.any():
        return 1.0
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (draws, len(d)))
    seen = np.abs((signs * d).mean(1)) >= abs(d.mean()) - 1e-12
    return float((seen.sum() + 1) / (draws + 1))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for how many are looked at (Holm 1979)."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    out, largest = [0.0] * len(values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, values[i] * (len(values) - place)))
        out[i] = largest
    return out


def area(budgets: Sequence[float], values: np.ndarray) -> np.ndarray:
    """The mean height of a curve over the logarithm of its budgets: values [..., budgets]. One budget: its height."""
    x = np.log(np.asarray(budgets, float))
    if len(x) == 1:
        return values[..., 0]
    widths = np.diff(x)
    return ((values[..., 1:] + values[..., :-1]) / 2 * widths).sum(-1) / widths.sum()


def at_cost(cost: np.ndarray, values: np.ndarray, where: Sequence[float] | np.ndarray) -> np.ndarray:
    """A curve read at other costs: straight lines between its points over the logarithm of cost; beyond its ends, its end."""
    order = np.argsort(cost)
    return np.interp(
        np.log(np.asarray(where, float)), np.log(np.asarray(cost, float)[order]), np.asarray(values)[order]
    )


def pass_at(right: int, drawn: int, count: int) -> float:
    """The chance that ``count`` draws hold a right one, of ``drawn`` of which ``right`` were (Chen et al. 2107.03374, eq. 1)."""
    if drawn - right < count:
        return 1.0
    return float(1.0 - np.prod(1.0 - count / np.arange(drawn - right + 1, drawn + 1)))
