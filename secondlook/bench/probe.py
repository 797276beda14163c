"""`secondlook probe`: a few draws of each prompt, and what they say of how much a search could win, before it is paid for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import betaln

from secondlook.bench.stats import pass_at
from secondlook.engine.record import Record, or_nan
from secondlook.engine.store import Store
from secondlook.metrics.diversity import diversity

ALIKE = 0.03  # mean distance below which a model is said to hardly vary with its seed
RIGHT = 0.5  # a judge's number from which a picture counts as right
AHEAD = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class Found:
    """Of each prompt: scores [draws], whether each picture is right (None: nobody could tell), mean pairwise distance of the
    pictures and their Vendi score. ``by`` says who told what is right."""

    prompts: list[str]
    scores: list[np.ndarray] = field(default_factory=list)
    right: list[np.ndarray] | None = None
    by: str = ""
    distance: list[float] = field(default_factory=list)
    vendi: list[float] = field(default_factory=list)


def read(store: Store) -> Found:
    """What a run of plain draws holds."""
    record, prompts = Record.read(store), store.config["prompts"]
    said = {name for numbers in record.judged.values() for name in numbers}
    found = Found(list(prompts), by=next((n for n in ("checker", "judge") if n in said), ""))
    right: list[np.ndarray] = []
    for task in range(len(prompts)):
        done = [o for o in record.of(task) if o.finished and record.digests[o.id] is not None]
        found.scores.append(np.array([or_nan(o.score) for o in done]))
        right.append(np.array([record.said(o.id).get(found.by, math.nan) >= RIGHT for o in done]))
        apart, vendi = diversity([store.picture(o.id) for o in done])
        found.distance.append(apart)
        found.vendi.append(vendi)
    found.right = right if found.by else None
    return found


def best_of(scores: np.ndarray, count: int) -> float:
    """The mean of the best of ``count`` of these, over all ways to choose them."""
    s = np.sort(scores[~np.isnan(scores)])
    n = len(s)
    if n < count or not n:
        return math.nan
    ways = np.array([math.comb(i, count - 1) for i in range(n)], float)
    return float((s * ways).sum() / ways.sum())


def beta_fit(right: Sequence[int], drawn: Sequence[int]) -> tuple[float, float]:
    """The Beta law of prompts' chances that likeliest gave these counts, on a grid of means and spreads; half a right and half a wrong
    draw beforehand where there is one prompt."""
    if len(right) == 1:
        return right[0] + 0.5, drawn[0] - right[0] + 0.5
    means, sizes = np.linspace(0.01, 0.99, 50)[:, None], np.geomspace(0.1, 100, 24)[None]
    a, b = means * sizes, (1 - means) * sizes
    seen = Counter(zip(right, drawn, strict=True))
    total = sum(many * (betaln(a + k, b + n - k) - betaln(a, b)) for (k, n), many in seen.items())
    i, j = np.unravel_index(int(np.argmax(total)), np.shape(total))
    return float(a[i, j]), float(b[i, j])


def ahead(a: float, b: float, count: int) -> float:
    """The chance that ``count`` draws of a prompt hold a right one, over Beta(a, b) chances."""
    return 1 - math.exp(betaln(a, b + count) - betaln(a, b))


def summary(found: Found, seed: int = 0, draws: int = 300) -> dict[str, Any]:
    """All that is told. Intervals (95 %) are over prompts; of one prompt, over what its few draws leave open."""
    rng = np.random.default_rng(seed)
    n = max(len(s) for s in found.scores)
    out: dict[str, Any] = {"prompts": len(found.prompts), "draws": n, "by": found.by or None}
    spread = [float(np.nanmax(s) - np.nanmin(s)) if (~np.isnan(s)).any() else math.nan for s in found.scores]
    out["spread"] = float(np.nanmean(spread))
    out["tied"] = float(np.mean([_tied(s) for s in found.scores]))
    out["score"] = {k: float(np.nanmean([best_of(s, k) for s in found.scores])) for k in AHEAD if k <= n}
    out["distance"], out["vendi"] = float(np.nanmean(found.distance)), float(np.nanmean(found.vendi))
    if found.right is not None:
        counts = [(int(r.sum()), len(r)) for r in found.right]
        out["pass"] = {k: float(np.mean([pass_at(c, m, k) for c, m in counts])) for k in AHEAD if k <= n}
        a, b = beta_fit(*zip(*counts, strict=True))
        if len(counts) == 1:
            each = [[1 - (1 - p) ** k for k in AHEAD] for p in rng.beta(a, b, draws)]
        else:
            some = [rng.integers(0, len(counts), len(counts)) for _ in range(draws)]
            each = [[ahead(*beta_fit(*zip(*[counts[i] for i in at], strict=True)), k) for k in AHEAD] for at in some]
        low, high = np.percentile(np.array(each), [2.5, 97.5], axis=0)
        out["ahead"] = {k: (ahead(a, b, k), float(lo), float(hi)) for k, lo, hi in zip(AHEAD, low, high, strict=True)}
    return out


def _tied(scores: np.ndarray) -> bool:
    """Whether the verifier cannot tell the best from the second best."""
    known = np.sort(scores[~np.isnan(scores)])
    return len(known) < 2 or bool(known[-1] - known[-2] <= 1e-6 * max(1.0, abs(known[-1])))


def told(s: Mapping[str, Any]) -> list[str]:
    """In sentences."""
    last = max(s["score"])
    lines = [f"{s['prompts']} prompt{'s' * (s['prompts'] != 1)}, {s['draws']} draws each."]
    if "pass" in s:
        shares = ", ".join(f"{k}: {v:.2f}" for k, v in s["pass"].items())
        lines.append(f"Right by the {s['by']} in at least one of n draws: {shares}.")
        more = ", ".join(f"{k}: {v:.2f} ({lo:.2f} to {hi:.2f})" for k, (v, lo, hi) in s["ahead"].items() if k > last)
        lines.append(f"Carried on to more draws: {more}. A search that chooses by a verifier wins this much at most.")
    best = ", ".join(f"{k}: {v:.3f}" for k, v in s["score"].items())
    lines.append(
        f"The verifier's score of the best of n: {best}; from worst to best {s['spread']:.3f} within a prompt."
    )
    lines.append(f"The verifier cannot tell the best from the second in {s['tied']:.0%} of the prompts.")
    lines.append(
        f"Pictures of one prompt are {s['distance']:.3f} apart (1: black against white); Vendi score {s['vendi']:.1f} of {s['draws']}."
    )
    if s["distance"] < ALIKE:
        lines.append("This model hardly varies with its seed: a search over noise has little to choose from. Vary the prompt, the guidance "
                     "or the solver instead.")  # fmt: skip
    if s["spread"] < 1e-6:
        lines.append("The verifier gives all draws the same score: it can guide nothing here.")
    if s["tied"] > 0.5:
        lines.append("The verifier ties at the top in most prompts: what it chooses among those is chance.")
    if "pass" in s and s["pass"][1] > 0.95:
        lines.append("Nearly every draw is right already: there is little to win.")
    return lines
