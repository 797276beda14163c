"""Intervals: bootstrap over prompts within task, paired where two methods drew the same prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
