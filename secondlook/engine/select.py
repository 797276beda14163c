"""Selectors: which of the finished pictures are handed over, given those of one prompt, or of all.

A plan searches prompt by prompt by the guiding score; a selector has the last word, and sees sets: ranks of several measures
together, pictures that differ from one another, or the distance of a whole run's pictures from a reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from secondlook.calls import positive
from secondlook.engine.record import Record
from secondlook.engine.rescore import pictured
from secondlook.engine.store import Store
from secondlook.errors import ConfigError, SecondlookError
from secondlook.metrics.gauss import Moments, frechet
from secondlook.metrics.influence import choose as by_influence
from secondlook.types import Candidate, Selector


def rank(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Highest score first, the earliest of equals; those without a score last."""

    def place(c: Candidate) -> tuple[bool, float, int]:
        unknown = c.score is None or math.isnan(c.score)
        return unknown, 0.0 if unknown or c.score is None else -c.score, c.id

    return sorted(candidates, key=place)


@dataclass(frozen=True)
class Best:
    """The highest score of each task; what a run does where no other selector is named. count: how many, best first."""

    count: int = 1
    name: str = "best"

    def __post_init__(self) -> None:
        positive("best", count=self.count)

    def __call__(self, candidates: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        return [[c.id for c in rank(some)[: self.count]] for some in candidates]


@dataclass(frozen=True)
class Accepted:
    """The first picture of each task that the guide accepts, as one that stops at the first good one would have had: the score
    reaches ``threshold``. Where none does, the highest score."""

    threshold: float = 0.5
    name: str = "accepted"

    def __post_init__(self) -> None:
        if (
            isinstance(self.threshold, bool)
            or not isinstance(self.threshold, (int, float))
            or math.isnan(self.threshold)
        ):
            raise ConfigError(f"accepted: threshold must be a number; got {self.threshold!r}.")

    def __call__(self, candidates: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        return [[self._choose(some).id] if some else [] for some in candidates]

    def _choose(self, some: Sequence[Candidate]) -> Candidate:
        good = (c for c in some if c.score is not None and c.score >= self.threshold)
        return next(good, None) or rank(some)[0]


@dataclass(frozen=True)
class Last:
    """The last picture of each task that its plan finished, whatever its score: what a chain of answers ends in."""

    name: str = "last"

    def __call__(self, candidates: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        return [[some[-1].id] if some else [] for some in candidates]


@dataclass(frozen=True)
class RankMean:
    """The best mean rank over a task's candidates in several measures: the score and the verifier's components (those named in
    ``of``, separated by commas; all where it is empty). Measures of different scales count alike (the ensemble of
    verifiers in 2501.09732). A candidate that lacks a measure is last in it."""

    of: str = ""
    count: int = 1
    name: str = "rank_mean"

    def __post_init__(self) -> None:
        positive("rank_mean", count=self.count)

    def __call__(self, candidates: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        return [[c.id for c in self._sorted(some)[: self.count]] for some in candidates]

    def _sorted(self, some: Sequence[Candidate]) -> list[Candidate]:
        known = dict.fromkeys(name for c in some for name in c.components)
        names = [n.strip() for n in self.of.split(",")] if self.of else list(known) or ["score"]
        unknown = [n for n in names if n not in known and n != "score"]
        if unknown and some:
            raise ConfigError(
                f'rank_mean: no candidate has a component "{unknown[0]}"; known: score, {", ".join(known) or "no component"}.'
            )
        total = np.zeros(len(some))
        for name in names:
            values = [c.score if name == "score" else c.components.get(name) for c in some]
            total += mean_ranks([math.nan if v is None else v for v in values])
        return [some[i] for i in sorted(range(len(some)), key=lambda i: (total[i], some[i].id))]


def mean_ranks(values: Sequence[float]) -> np.ndarray:
    """The rank of each value, 0 for the highest; equals share the mean of their ranks, NaN is last."""
    keys = np.array([-math.inf if math.isnan(v) else v for v in values])
    above = (keys[None] > keys[:, None]).sum(1)
    equal = (keys[None] == keys[:, None]).sum(1)
    ranks: np.ndarray = above + (equal - 1) / 2
    return ranks


@dataclass(frozen=True)
class Diverse:
    """``count`` pictures of each task that are good and differ: the best first, then always the one with the highest sum of
    its rank among the scores (1 to 0) and ``weight`` times its distance from those chosen (root mean square of pixels, as a
    share of the largest among the candidates; maximal marginal relevance, Carbonell and Goldstein, SIGIR 1998)."""

    count: int = 4
    weight: float = 1.0
    side: int = 32
    name: str = "diverse"

    def __post_init__(self) -> None:
        positive("diverse", count=self.count, weight=self.weight, side=self.side)

    def __call__(self, candidates: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        return [self._choose(rank(some)) for some in candidates]

    def _choose(self, ranked: Sequence[Candidate]) -> list[int]:
        if not ranked:
            return []
        small = torch.stack([_small(c.picture(), self.side) for c in ranked])
        apart = torch.cdist(small.flatten(1), small.flatten(1))
        apart = apart / apart.max().clamp_min(1e-12)
        good = 1 - torch.arange(len(ranked)) / max(1, len(ranked) - 1)
        chosen = [0]
        while len(chosen) < min(self.count, len(ranked)):
            worth = good + self.weight * apart[:, chosen].amin(1)
            worth[chosen] = -math.inf
            chosen.append(int(worth.argmax()))
        return [ranked[i].id for i in chosen]


def _small(picture: np.ndarray, side: int) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(picture)).float().permute(2, 0, 1)[None]
    return torch.nn.functional.adaptive_avg_pool2d(x, min(side, *picture.shape[:2]))[0]


@dataclass(frozen=True)
class GreedyFID:
    """One picture of each task so that the Frechet distance of all of them from a reference is small: begun with the best
    scores, then task after task takes the candidate with which the distance is smallest, ``passes`` times or until nothing
    moves. The oracle verifier for FID of 2501.09732 is its first pass, taken in the order of drawing; here on features of
    a world's feature network.

    reference: an ``.npz`` of pictures (``arr_0``), or "" for the world's own (verify/reference.py): the 1,442 training pictures of
    Digits, 8,192 pictures of the generator of Glyphs under a fixed seed. features: "digits" or "glyphs".
    influence: choose by the first-order change of the distance (metrics/influence.py) in place of a new distance for each candidate,
    which is many times faster. Either way ``said`` holds the exact distances of the first and of the chosen set, and the log keeps them.
    A run so chosen is labelled oracle: what selects is what measures.
    """

    features: str
    reference: str = ""
    passes: int = 2
    influence: bool = False
    name: str = "greedy_fid"
    said: dict[str, float] = field(default_factory=dict, init=False, compare=False, repr=False)
    oracle: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("greedy_fid", passes=self.passes)
        if self.features not in ("digits", "glyphs"):
            raise ConfigError(f'greedy_fid: features must be "digits" or "glyphs"; got {self.features!r}.')

    def __call__(self, candidates: Sequence[Sequence[Candidate]]) -> list[list[int]]:
        extract = self._extractor()
        ranked = [rank(some) for some in candidates]
        held = [i for i, some in enumerate(ranked) if some]
        if not held:
            return [[] for _ in ranked]
        found = {i: extract(torch.from_numpy(np.stack([c.picture() for c in ranked[i]]))) for i in held}
        reference, some_of = self._moments(extract), [found[i] for i in held]
        chosen = (by_influence if self.influence else choose)(reference, some_of, self.passes)
        self.said.clear()
        if len(held) > 1:
            for name, places in (("fid_of_best", [0] * len(held)), ("fid", chosen)):
                now = torch.stack([some[at] for some, at in zip(some_of, places, strict=True)])
                self.said[name] = frechet(reference, Moments.of(now))
        out: list[list[int]] = [[] for _ in ranked]
        for i, at in zip(held, chosen, strict=True):
            out[i] = [ranked[i][at].id]
        return out

    def _extractor(self) -> Any:
        from secondlook.verify.classify import features

        network = features(self.features)
        channels = 1 if self.features == "digits" else 3
        return lambda pictures: network(pictures[..., :channels].contiguous())[0].double()

    def _moments(self, extract: Any) -> Moments:
        if not self.reference:
            from secondlook.verify.reference import moments

            return moments(self.features)
        try:
            with np.load(self.reference) as file:
                pictures = torch.from_numpy(file["arr_0"])
        except (OSError, KeyError, ValueError) as error:
            raise ConfigError(
                f'greedy_fid: the reference "{self.reference}" cannot be read as an .npz with pictures in arr_0 ({error}).'
            ) from None
        return Moments.of(extract(pictures))


def choose(reference: Moments, features: Sequence[Tensor], passes: int) -> list[int]:
    """For each task the place of its chosen candidate: features of each task [n, d], float64. Begins with the first of each.
    Fewer tasks than dimensions make singular covariances, which the distance allows."""
    chosen = [0] * len(features)
    for _ in range(passes):
        moved = False
        for task, some in enumerate(features):
            if len(some) < 2 or len(features) < 2:
                continue
            rest = torch.stack([f[c] for i, (f, c) in enumerate(zip(features, chosen, strict=True)) if i != task])
            worth = [float(frechet(reference, Moments.of(torch.cat([rest, one[None]])))) for one in some]
            best = int(np.argmin(worth))
            moved = moved or best != chosen[task]
            chosen[task] = best
        if not moved:
            break
    return chosen


# ---- on a run --------------------------------------------------------------------------------------------------------


def candidates_of(store: Store, tasks: int) -> list[list[Candidate]]:
    """The finished pictures of each task of a run."""
    found: list[list[Candidate]] = []
    for task in range(tasks):
        record = Record.read(store, task)
        some = []
        for p in pictured(record, task):
            if p.number >= 0 and p.outcome.finished:
                now = record.latest(p.outcome)
                some.append(
                    Candidate(
                        p.number, task, now.score, now.components, _reader(store, p.file, record.digests[p.number])
                    )
                )
        found.append(some)
    return found


def _reader(store: Store, file: int | str, digest: str | None) -> Any:
    return lambda: store.checked(file, digest)


def select(store: Store, selector: Selector, tasks: int) -> dict[int, list[int]]:
    """Let ``selector`` choose among a run's pictures, and log it. SecondlookError where it chooses what is not there."""
    given = candidates_of(store, tasks)
    chosen = [list(map(int, some)) for some in selector(given)]
    if len(chosen) != tasks:
        raise SecondlookError(
            f'The selector "{selector.name}" must choose for each of {tasks} prompts; got {len(chosen)} choices.'
        )
    for task, (some, candidates) in enumerate(zip(chosen, given, strict=True)):
        known = {c.id for c in candidates}
        if not set(some) <= known or (known and not some) or len(set(some)) < len(some):
            raise SecondlookError(
                f'The selector "{selector.name}" must choose among the finished pictures of prompt {task}, each at most once; got {some}.'
            )
    body: dict[str, Any] = {
        "selector": selector.name,
        "chosen": {str(i): some for i, some in enumerate(chosen) if some},
    }
    if getattr(selector, "said", None):
        body["said"] = dict(selector.said)  # type: ignore[attr-defined]
    store.append([("selected", None, None, body)])
    return {i: some for i, some in enumerate(chosen) if some}
