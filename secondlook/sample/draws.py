"""Plain samples, without search: of prompts or of classes, for a contact sheet or for the 50,000 pictures of an evaluation.

They come from the same rig as a search's. Sample j of a prompt has the noise of the j-th fresh draw of that prompt's task, so
that sample 0 is what ``draw`` calls unsearched; neither batches nor processes decide what it becomes (beyond rounding, which
moves dopri5's steps: there by no more than its tolerance).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import secondlook
from secondlook.backends.base import Backend
from secondlook.calls import bind, parse_call
from secondlook.disk.digests import file_digest
from secondlook.engine.rig import Rig, Work
from secondlook.errors import ConfigError, SecondlookError, nearest
from secondlook.noise import Key, integers, normal, uniform
from secondlook.registry import resolve
from secondlook.sample.npz import Spent
from secondlook.settings import Settings
from secondlook.solvers.adaptive import Dopri5
from secondlook.types import Condition, State

STEPS = {
    "euler": 250,
    "heun": 125,
    "rk4": 63,
    "dopri5": 1,
}  # others: 250; about 250 evaluations a sample, the paper's cost


def evaluating(s: Settings) -> dict[str, Any]:
    """What is left open, as evaluations of classes sample: the paper's solver, cost and time intervals (2401.08740, app. D)."""
    solver = s.solver or "heun"
    name = parse_call(solver, "solver").name
    return {
        "solver": solver,
        "steps": STEPS.get(name, 250),
        "guidance": 1.0,
        "shift": 1.0,
        "interval": "paper",
        "bf16": False,
    }


@dataclass
class Sampler:
    """Everything that turns sample numbers into pictures. conditions: one for each task; sample j of task i is number
    ``i * each + j``. labels: of class samples, which have one task and a condition each."""

    rig: Rig
    backend: Backend
    settings: Settings
    conditions: Sequence[Condition]
    each: int
    labels: np.ndarray | None = None
    root: Key = field(init=False)

    def __post_init__(self) -> None:
        self.root = Key.root(self.settings.seed)

    @property
    def count(self) -> int:
        return self.each if self.labels is not None else self.each * len(self.conditions)

    @property
    def channels(self) -> int:
        """Of the pictures as the world has them."""
        return int(getattr(self.backend, "channels", 3))

    def key(self, number: int) -> Key:
        task, j = divmod(number, self.each)
        return self.root.child("task", task).child("draw", j)

    def condition(self, number: int) -> Condition:
        return (
            Condition(label=int(self.labels[number]))
            if self.labels is not None
            else self.conditions[number // self.each]
        )

    def draw(self, index: Sequence[int]) -> tuple[np.ndarray, Spent]:
        """Pictures uint8 [n, H, W, 3] of the samples numbered, and their cost. SecondlookError where one is not finite."""
        pictures, spent = [], Spent()
        for start in range(0, len(index), self.rig.rows):
            state, cost = self._batch(index[start : start + self.rig.rows])
            pictures.append(self.rig.pictures(state.x).numpy())
            spent = spent + cost
        return np.concatenate(pictures), spent

    def draw_plain(self, index: Sequence[int]) -> tuple[np.ndarray, Spent]:
        """The same in the world's own channels: grey worlds have one."""
        pictures, spent = self.draw(index)
        return pictures[..., : self.channels], spent

    def _batch(self, index: Sequence[int]) -> tuple[State, Spent]:
        rig, n = self.rig, len(index)
        keys = tuple(self.key(int(i)) for i in index)
        x = normal([k.child("start") for k in keys], rig.shape)
        x = x if rig.scale == 1.0 else x * rig.scale
        state = State(x, torch.full((n,), rig.begin), keys, torch.zeros(n, dtype=torch.long)).to(rig.device)
        conditions = tuple(self.condition(int(i)) for i in index)
        nfe = passes = 0
        for t in rig.times[1:]:
            state, cost = rig.step(Work(state, (t,) * n, conditions))
            nfe, passes = nfe + cost.nfe, passes + cost.evals
        if not bool(state.x.isfinite().all()):
            raise SecondlookError("A sample is not finite. Choose another solver or --eps, or --interval official.")
        if isinstance(rig.solver, Dopri5):  # each row's own evaluations; the batch's are those of its slowest row
            own = int((6 * state.step + 2).sum()) + n * (rig.solver.end == "estimate" and rig.times[-1] >= 1)
            return state, Spent(own, round(own * passes / nfe))
        return state, Spent(n * nfe, n * passes)

    def facts(self) -> dict[str, Any]:
        """Plain values that decide the pictures, files by their contents."""
        s = self.settings
        call = parse_call(str(s.solver), "solver")
        options = dict(sorted(bind(call, resolve("solver", call.name)).items()))
        if isinstance(options.get("losses"), str):
            options["losses"] = file_digest(Path(options["losses"]))
        times = self.rig.times
        also = {
            k: v
            for k, v in s.given().items()
            if k in ("world", "cfg_channels", "cfg_interval", "weak_scale", "interval", "eps", "last_step")
        }
        asked = (
            []
            if self.labels is not None
            else [c.prompt if c.prompt is not None else str(c.label) for c in self.conditions]
        )
        return {
            "version": secondlook.__version__, **self.backend.digests(), "count": self.count, "seed": s.seed, "prompts": asked,
            "labels": None if self.labels is None else labels_digest(self.labels), "solver": call.name, "solver's options": options,
            "times": [len(times) - 1, times[0], times[-1]], "shift": s.shift, "guidance": s.guidance, "bf16": bool(s.bf16), **also,
        }  # fmt: skip


def labels_digest(labels: np.ndarray) -> str:
    """A short name for labels: the digest of their numbers."""
    return hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()[:16]


def labels_of(how: str, count: int, seed: int, classes: int, backend: Backend | None = None) -> np.ndarray:
    """int64 [count]; label i is a function of the seed and i alone, so that fewer samples are the first of more. how: "random"
    (uniform), "balanced" (every run of as many samples as there are classes holds each once) or a class."""
    root = Key.root(seed).child("labels")
    if how == "random":
        return (uniform(root, count) * classes).astype(np.int64)
    if how == "balanced":
        rounds = range(math.ceil(count / classes))
        return np.concatenate([np.argsort(integers(root.child(r), classes), kind="stable") for r in rounds])[:count]
    return np.full(count, _class_of(how, classes, backend), np.int64)


def _class_of(text: str, classes: int, backend: Backend | None) -> int:
    names = [str(n) for n in getattr(getattr(backend, "world", None), "classes", ())]
    if text in names:
        return names.index(text)
    if not (text.isdecimal() and int(text) < classes):
        more = f"; {nearest(text, names)}" if names else "."
        raise ConfigError(f'Labels are "random", "balanced" or a class from 0 to {classes - 1}; got "{text}"{more}')
    return int(text)


def sampler(s: Settings, backend: Backend, count: int, labels: str | None = None) -> Sampler:
    """A sampler of filled settings: ``count`` samples of each of its prompts, or of classes where there are none."""
    rig = backend.rig(s, None, scoring=False)
    if s.prompts:
        return Sampler(rig, backend, s, [backend.condition(p) for p in s.prompts], count)
    classes = getattr(backend, "classes", None)
    if classes is None:
        raise ConfigError("Give a prompt in quotes, or a class-conditional model: --model FILE or --world digits.")
    return Sampler(rig, backend, s, (), count, labels_of(labels or "random", count, s.seed, int(classes), backend))
