"""Figures of class-conditional search, in Digits and Glyphs: pools of candidates with every verifier's word on each, the engine's plans, and
zero-order search that sees the set. The benchmark benchmarks/search_classes.py puts them together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook import api
from secondlook.backends.find import find
from secondlook.bench.curves import winner_within
from secondlook.engine.derive import rotate
from secondlook.engine.record import Record
from secondlook.engine.rig import Rig, Work
from secondlook.engine.select import choose as exactly
from secondlook.engine.store import LOG, Store
from secondlook.errors import ConfigError
from secondlook.metrics import Moments, frechet, inception_score, manifold
from secondlook.metrics.influence import choose as by_influence
from secondlook.noise import Key, normal
from secondlook.settings import Settings
from secondlook.types import Condition, State
from secondlook.verify import classify, reference
from secondlook.verify.by_features import likeness
from secondlook.worlds import glyphs
from secondlook.worlds.digits import Digits
from secondlook.worlds.glyphs import Glyphs

SETS = 8  # most disjoint sets of pictures that a mean is taken over
VERIFIERS = ("oracle_is", "oracle_fid", "learned", "judge", "self_supervised")


def rig_of(model: str, guidance: float, steps: int, world: str = "digits") -> Rig:
    s = Settings(["0"], world=world, model=model, guidance=guidance, steps=steps, rows=128, bf16=False)
    backend = find(model, s)
    return backend.rig(s.filled(backend.usual(s)), None, scoring=False)


def drawn(rig: Rig, x: Tensor, keys: Sequence[Key], labels: Sequence[int], at: float = 0.6) -> tuple[Tensor, Tensor]:
    """Noise x [B, C, H, W] run to data: pictures uint8 [B, H, W, C], and what the step that begins nearest ``at`` took the data to be. The
    plan self_supervised draws the same."""
    inner = rig.times[1:-1]
    begins = min(inner, key=lambda t: abs(t - at)) if inner else 0.0
    late = min((t for t in inner if t > begins), default=begins)
    done, early, channels = [], [], rig.shape[0]  # pictures of grey worlds have three equal channels
    for i in range(0, len(x), rig.rows):
        some, asked = keys[i : i + rig.rows], tuple(Condition(label=k) for k in labels[i : i + rig.rows])
        n = len(some)
        state = State(x[i : i + n], torch.full((n,), rig.begin), tuple(some), torch.zeros(n, dtype=torch.long))
        for t in rig.times[1:]:
            state, _ = rig.step(Work(state, (t,) * n, asked))
            if t == late:
                assert state.data is not None
                early.append(rig.pictures(state.data)[..., :channels].contiguous())
        done.append(rig.pictures(state.x)[..., :channels].contiguous())
    return torch.cat(done), torch.cat(early) if early else torch.cat(done)


def fresh(rig: Rig, keys: Sequence[Key]) -> Tensor:
    return normal([k.child("start") for k in keys], rig.shape) * rig.scale


def key_of(seed: int, task: int, draw: int) -> Key:
    """Of a task's n-th fresh draw, as plans are handed them."""
    return Key.root(seed).child("task", task).child("draw", draw)


# ---- measuring --------------------------------------------------------------------------------------------------


MANIFOLD = 2000  # reference pictures at most that precision and recall are taken against


class Measure:
    """Scores of sets of pictures in the world's feature network, against its reference (verify/reference.py): the distance against all
    of it, precision and recall against the first ``MANIFOLD`` pictures."""

    def __init__(self, world: str = "digits"):
        self.world, self.network = classify.world_of(world), classify.features(world)
        self.real = self.network(reference.pictures(world)[:MANIFOLD])[0].double()
        self.reference = reference.moments(world)

    def __call__(self, features: Tensor, logits: Tensor) -> dict[str, float]:
        found = manifold(self.real, features.double(), 3, 5)
        return {"fid": frechet(Moments.of(features.double()), self.reference), "is": inception_score(logits, 1).mean,
                "precision": found.precision, "recall": found.recall}  # fmt: skip

    def of(self, pictures: Tensor) -> dict[str, float]:
        return self(*self.network(pictures))

    def right(self, pictures: Tensor, labels: Sequence[int]) -> np.ndarray | None:
        """Whether the world's exact checker accepts each picture, bool [B]; None in a world without one."""
        return glyphs.check(pictures.numpy(), np.asarray(labels)) if isinstance(self.world, Glyphs) else None


def over(sets: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Means, and standard deviations over disjoint sets."""
    return {"sets": len(sets), **{k: float(np.mean([s[k] for s in sets])) for k in sets[0]},
            "sd": {k: float(np.std([s[k] for s in sets], ddof=1)) if len(sets) > 1 else None for k in sets[0]}}  # fmt: skip


def noise(measure: Measure, size: int, sets: int = SETS) -> dict[str, Any]:
    """What sets of real pictures, of the same size, score: of those that nothing was trained on. Digits has 355 of them, so its sets
    overlap; those of Glyphs are fresh, and the classes of each are even, as a search's are."""
    if isinstance(measure.world, Glyphs):
        return over([_fresh_glyphs(measure, size, 3 + i) for i in range(sets)])
    features, logits = measure.network(Digits().test()[0])
    g = torch.Generator().manual_seed(0)
    picks = [torch.randperm(len(features), generator=g)[:size] for _ in range(sets)]
    return over([measure(features[p], logits[p]) for p in picks])


def _fresh_glyphs(measure: Measure, size: int, step: int) -> dict[str, float]:
    """Scores of ``size`` fresh pictures, as many of each class (size must be a multiple of the classes')."""
    world = Glyphs()
    each, rest = divmod(size, len(world.classes))
    if rest:
        raise ConfigError(f"Glyphs has {len(world.classes)} classes; got sets of {size} pictures; take a multiple.")
    pictures, labels = world.pictures(
        reference.KEY[0], step, 8 * size + 1024
    )  # eight times as many of each class as are taken, and more
    rows = torch.cat([(labels == k).nonzero()[:each, 0] for k in range(len(world.classes))])
    right = glyphs.check(pictures[rows].numpy(), labels[rows].numpy())
    return {**measure.of(pictures[rows]), "right": float(right.mean())}


# ---- random search: one pool, all verifiers ----------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Candidates of T tasks, C each: features [T, C, D], logits [T, C, K], each verifier's word [T, C], and whether the
    exact checker accepts it, bool [T, C], in a world that has one."""

    features: Tensor
    logits: Tensor
    said: dict[str, np.ndarray]
    right: np.ndarray | None = None

    @staticmethod
    def draw(
        measure: Measure, model: str, guidance: float, steps: int, labels: Sequence[int], count: int, seed: int
    ) -> Pool:
        world = measure.world.name
        rig = rig_of(model, guidance, steps, world)
        keys = [key_of(seed, t, j) for t in range(len(labels)) for j in range(count)]
        asked = [k for k in labels for _ in range(count)]
        done, early = drawn(rig, fresh(rig, keys), keys, asked)
        shape = (len(labels), count)
        features, logits = measure.network(done)
        before = measure.network(early)[0]
        conditions = [Condition(label=k) for k in asked]
        said = {"learned": classify.verifier(world)(done, conditions), "judge": classify.judge(world)(done, conditions),
                "oracle_is": logits.double().log_softmax(1)[range(len(asked)), asked]}  # fmt: skip
        alike = [likeness(a, b) for a, b in zip(features.double().numpy(), before.double().numpy(), strict=True)]
        words = {**{k: np.asarray(v) for k, v in said.items()}, "self_supervised": np.array(alike)}
        right = measure.right(done, asked)
        return Pool(
            features.reshape(*shape, -1),
            logits.reshape(*shape, -1),
            {k: v.reshape(shape) for k, v in words.items()},
            None if right is None else right.reshape(shape),
        )

    def groups(self, n: int, sets: int) -> list[slice]:
        return [slice(i, i + n) for i in range(0, self.features.shape[1] - n + 1, n)][:sets]

    def chosen(self, verifier: str, some: slice, reference: Moments, exact: bool = False) -> np.ndarray:
        """The place of each task's winner among the candidates in ``some``."""
        if verifier == "oracle_fid":
            feats = [f[some].double() for f in self.features]
            return some.start + np.array((exactly if exact else by_influence)(reference, feats, 2))  # type: ignore[operator]
        words = self.said[verifier][:, some]
        return some.start + np.where(np.isnan(words), -np.inf, words).argmax(1)

    def scores(self, measure: Measure, at: np.ndarray) -> dict[str, float]:
        rows = torch.arange(len(at)), torch.from_numpy(at)
        means = {f"p {v}": float(np.exp(self.said[v][rows[0], at]).mean()) for v in ("learned", "judge", "oracle_is")}
        exact = {} if self.right is None else {"right": float(self.right[rows[0], at].mean())}
        return {**measure(self.features[rows], self.logits[rows]), **means, **exact}


def random_search(measure: Measure, pool: Pool, steps: int, sets: int = SETS) -> list[dict[str, Any]]:
    """Best of n under each verifier, for all n that the pool has."""
    rows, n, top = [], 1, pool.features.shape[1]
    while n <= top:
        for verifier in VERIFIERS if n > 1 else ["none"]:
            picks = [pool.chosen(verifier, g, measure.reference) if n > 1 else np.full(len(pool.features), g.start)
                     for g in pool.groups(n, sets)]  # fmt: skip
            rows.append(
                {
                    "plan": "random",
                    "verifier": verifier,
                    "n": n,
                    "nfe": n * steps,
                    **over([pool.scores(measure, p) for p in picks]),
                }
            )
        n *= 2
    return rows


def agreement(pool: Pool) -> dict[str, float]:
    """Correlation of the self-supervised number with each classifier's log-probability, over candidates of one task, mean over tasks."""
    out = {}
    for name in ("learned", "judge", "oracle_is"):
        pairs = [np.corrcoef(a, b)[0, 1] for a, b in zip(pool.said["self_supervised"], pool.said[name], strict=True)]
        out[name] = float(np.nanmean(pairs))
    return out


def influence_against_exact(measure: Measure, pool: Pool) -> dict[str, Any]:
    """Greedy FID both ways on the first 8 candidates."""
    out: dict[str, Any] = {}
    for name, exact in (("influence", False), ("exact", True)):
        start = time.process_time()
        found = pool.scores(measure, pool.chosen("oracle_fid", slice(0, 8), measure.reference, exact))
        out[name] = {"fid": found["fid"], "seconds": time.process_time() - start}
    return out


# ---- plans of the engine, and zero-order search by sets ------------------------------------------------------------


def engine(measure: Measure, folder: Path, model: str, plan: str, verifier: str, guidance: float, steps: int, labels: Sequence[int],
           nfe: int, seed: int, budgets: Sequence[int]) -> list[dict[str, Any]]:  # fmt: skip
    """A run, or the rest of one, and what its winners within each budget score as a set."""
    world = measure.world.name
    if (folder / LOG).exists():
        api.resume(folder)
    else:
        api.draw([str(k) for k in labels], plan, folder, world=world, model=model, verifier=verifier, guidance=guidance, steps=steps,
                 rows=128, window=len(labels), bf16=False, threads=1, nfe=nfe, seed=seed)  # fmt: skip
    store = Store.open(folder)
    record, rows = Record.read(store), []
    for budget in budgets:
        found = [winner_within(record, t, "nfe", budget) for t in range(len(labels))]
        if any(w is None for w, _, _ in found):
            continue
        stack = np.stack([store.picture(w.id) for w, _, _ in found if w is not None])
        pictures, conditions = (
            torch.from_numpy(stack)[..., : measure.world.shape[0]].contiguous(),
            [Condition(label=k) for k in labels],
        )
        judges = {"learned": classify.verifier(world), "judge": classify.judge(world)}
        means = {f"p {n}": float(torch.as_tensor(v(pictures, conditions)).exp().mean()) for n, v in judges.items()}
        right = measure.right(pictures, labels)
        if right is not None:
            means["right"] = float(right.mean())
        spent = float(np.mean([c.nfe for _, c, _ in found]))
        rows.append({"plan": plan, "verifier": verifier, "nfe": spent, **over([{**measure.of(pictures), **means}])})
    return rows


def zero_order_fid(measure: Measure, model: str, guidance: float, steps: int, labels: Sequence[int], nfe: int, seed: int, neighbours: int,
                   radius: float = 0.7) -> list[dict[str, Any]]:  # fmt: skip
    """Zero-order search whose verifier sees the set: all tasks climb together, and each takes the pivot or the neighbour with which the
    set of all pivots is nearest to the reference (influence, one pass a round; pivots are not drawn twice, and none is parked)."""
    rig, tasks = rig_of(model, guidance, steps, measure.world.name), range(len(labels))
    keys = [key_of(seed, t, 0) for t in tasks]
    x = fresh(rig, keys)
    pivot, used = _looked(measure, drawn(rig, x, keys, labels)[0], labels), 1
    rows = []
    while (used + neighbours) * steps <= nfe:
        turns = [[key_of(seed, t, used + j) for j in range(neighbours)] for t in tasks]
        ring = torch.stack([rotate(x[t], normal([k], rig.shape)[0], radius) for t in tasks for k in turns[t]])
        names, asked = [keys[t] for t in tasks for _ in turns[t]], [k for k in labels for _ in range(neighbours)]
        found = _looked(measure, drawn(rig, ring, names, asked)[0], asked)
        features, logits, right = (torch.cat([p[:, None], v.reshape(len(labels), neighbours, -1)], 1)
                                   for p, v in zip(pivot, found, strict=True))  # fmt: skip
        at = torch.tensor(by_influence(measure.reference, [f.double() for f in features], 1))
        x = torch.cat([x[:, None], ring.reshape(len(labels), neighbours, *rig.shape)], 1)[tasks, at]
        pivot, used = (features[tasks, at], logits[tasks, at], right[tasks, at]), used + neighbours
        exact = {"right": float(pivot[2].mean())} if right.shape[-1] else {}
        rows.append(
            {
                "plan": f"by sets, {neighbours} neighbours, radius {radius:g}",
                "verifier": "oracle_fid",
                "nfe": used * steps,
                **over([{**measure(*pivot[:2]), **exact}]),
            }
        )
    return rows


def _looked(measure: Measure, pictures: Tensor, labels: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Features [B, D], logits [B, K], and the exact checker's word [B, 1], or [B, 0] in a world without one."""
    right = measure.right(pictures, labels)
    word = torch.zeros(len(pictures), 0) if right is None else torch.from_numpy(right).double()[:, None]
    return *measure.network(pictures), word
