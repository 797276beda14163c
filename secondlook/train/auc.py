"""How well scores rank right pictures above wrong ones: over all, and within each prompt, which is what a search uses."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from scipy.stats import rankdata

from secondlook.train.samples import Samples
from secondlook.types import Condition
from secondlook.verify.learned import LearnedVerifier, load_verifier


def auc(scores: np.ndarray, right: np.ndarray) -> float:
    """Chance that a right one scores above a wrong one, ties counting half (Mann-Whitney); NaN without both kinds."""
    right = np.asarray(right, bool)
    good, bad = int(right.sum()), int((~right).sum())
    if not good or not bad:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[right].sum() - good * (good + 1) / 2) / (good * bad))


def within(scores: np.ndarray, right: np.ndarray, groups: Sequence[str]) -> tuple[float, int]:
    """Mean of each group's AUC over the groups that hold both kinds, and how many those are."""
    names = np.asarray(groups)
    each = [auc(scores[names == g], right[names == g]) for g in sorted(set(groups))]
    known = [a for a in each if not np.isnan(a)]
    return (float(np.mean(known)) if known else float("nan")), len(known)


def picked(scores: np.ndarray, right: np.ndarray, groups: Sequence[str]) -> float:
    """Share of groups whose best-scored picture is right: what best-of-N would reach."""
    names = np.asarray(groups)
    return float(np.mean([right[names == g][scores[names == g].argmax()] for g in sorted(set(groups))]))


def table(scores: np.ndarray, samples: Samples) -> dict[str, Any]:
    """AUCs and shares for all prompts, trained ones, held-out ones, and each task."""
    prompts = samples.prompts
    held = np.array([p.held_out for p in prompts])
    tags = np.array([p.tag for p in prompts])
    parts = {"all": np.ones(len(held), bool), "trained": ~held, "held_out": held}
    parts |= {tag: tags == tag for tag in dict.fromkeys(tags.tolist())}
    return {name: _row(scores[at], samples.right[at], [t for t, a in zip(samples.texts, at, strict=True) if a])
            for name, at in parts.items() if at.any()}  # fmt: skip


def _row(scores: np.ndarray, right: np.ndarray, groups: list[str]) -> dict[str, float | int]:
    inner, count = within(scores, right, groups)
    return {
        "within_prompt": round(inner, 4),
        "prompts_with_both": count,
        "pooled": round(auc(scores, right), 4),
        "samples": len(right),
        "right": round(float(right.mean()), 4),
        "best_is_right": round(picked(scores, right, groups), 4),
        "any_is_right": round(picked(right.astype(float), right, groups), 4),
    }


def results(verifiers: Mapping[str, Path], samples: Samples) -> dict[str, Any]:
    """For each weights file by name: its training's facts, what a picture costs, and its ``table`` on some samples."""
    out: dict[str, Any] = {}
    wrong: dict[str, np.ndarray] = {}
    for name, path in verifiers.items():
        verifier = load_verifier(path, name)
        start = time.perf_counter()
        scores = scores_of(verifier, samples)
        seconds = time.perf_counter() - start
        wrong[name] = mistakes(scores, samples.right)
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
        out[name] = {
            "facts": facts,
            "megabytes": round(path.stat().st_size / 1e6, 2),
            "milliseconds_a_picture": round(1e3 * seconds / len(samples), 2),
            "wrong": round(float(wrong[name].mean()), 4),
            "auc": table(scores, samples),
        }
    for one in out:
        out[one]["others_wrong_where_wrong"] = shared(wrong, one)
    return out


def mistakes(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Where a verifier is wrong, bool [N], by its logits: above 0 it says that a picture is right."""
    return (scores > 0) != np.asarray(right, bool)


def shared(wrong: Mapping[str, np.ndarray], one: str) -> dict[str, list[float]]:
    """For each other: how often ``one`` is wrong, and the share of these in which the other is wrong too. A second witness would not
    be more often than elsewhere."""
    where = wrong[one]
    return {b: [int(where.sum()), round(float(wrong[b][where].mean()), 4)] for b in wrong if b != one and where.any()}


def scores_of(verifier: LearnedVerifier, samples: Samples) -> np.ndarray:
    """The verifier's logits, float64 [N]."""
    conditions = [Condition(prompt=t) for t in samples.texts]
    return verifier.logits(torch.from_numpy(samples.pictures), conditions).numpy()


def without_nan(value: Any) -> Any:
    """Nested dictionaries with null for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value
