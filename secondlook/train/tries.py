"""Items that teach a model to draw again: wrong tries with remarks on them, and what should have been drawn.

pairing says how a target hangs together with the try (docs/design/0006): *mended*, the try's scene with only its faults changed;
*nearest*, of 16 scenes of the prompt the one whose objects lie nearest to the try's; *independent*, any scene of the prompt, as in
Reflect-DiT, whose targets know nothing of the try that the prompt does not say.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.models.reflect import remark_ids
from secondlook.train.pairs import Shown, moved
from secondlook.train.samples import Samples
from secondlook.train.targets import LENGTH
from secondlook.verify.networks import tokenize
from secondlook.worlds.scenes.checker import Seen, check, detect_batch, judge
from secondlook.worlds.scenes.corrupt import KINDS, corrupt
from secondlook.worlds.scenes.grammar import WORDS, Prompt, parse
from secondlook.worlds.scenes.mend import mended
from secondlook.worlds.scenes.prompts import sample_hard, sample_training
from secondlook.worlds.scenes.remarks import LONGEST, REMARK_WORDS, remark, tokens
from secondlook.worlds.scenes.render import Thing, render, sample_scene

CONFUSED = 0.5  # share of corrupted renders in which objects have each other's shapes
PAIRINGS = ("mended", "nearest", "independent")


@dataclass(frozen=True)
class Tried:
    """How items are made: from base samples in ``files`` (consecutive ones of one prompt are its earlier tries), a share
    ``rendered`` of them from corrupted renders; ``memory`` tries at most."""

    files: tuple[str, ...]
    memory: int = 1
    pairing: str = "mended"
    rendered: float = 0.25
    again: int = 1  # items that the tries of one prompt make
    both: bool = False  # targets that know nothing of the try come along, as "independent"

    def __post_init__(self) -> None:
        if self.pairing not in PAIRINGS:
            raise ConfigError(f"A pairing is one of {', '.join(PAIRINGS)}; got {self.pairing!r}.")

    def __call__(self, seed: str, part: int, count: int) -> Mapping[str, np.ndarray]:
        """``pool.Maker``: items of wrong tries of this part's own slice of the files, filled up with corrupted renders."""
        rng = random.Random(f"tries-{seed}-{part}")
        groups = list(self._sampled(rng, part, count - round(count * self.rendered)))
        while len(groups) < count:
            groups += [[s] for s in spoilt(rng, count - len(groups)) if not judge(s.seen, s.prompt).right]
        targets = render([self._target(g[-1], rng) for g in groups])
        made = columns(groups, targets, self.memory)
        if self.both:
            made["independent"] = render([sample_scene(g[-1].prompt, rng) for g in groups])
        return made

    def _sampled(self, rng: random.Random, part: int, wanted: int) -> Iterator[list[Shown]]:
        """Wrong tries with up to ``memory`` - 1 others of the prompt before them. Parts take turns through the files' prompts."""
        if not self.files or wanted < 1:
            return
        held = _held(self.files)
        made, at = 0, part * wanted
        order = _order(len(held.texts))
        for _ in range(4 * wanted):
            start, stop = _group(held.texts, int(order[at % len(order)]))
            at += 1
            shown = _wrong(held, start, stop)
            for _ in range(self.again if shown else 0):
                rng.shuffle(shown)
                tries = shown[: rng.randint(1, self.memory)]
                yield [moved(tries[0], rng)] if self.memory == 1 else tries
                made += 1
                if made == wanted:
                    return

    def _target(self, shown: Shown, rng: random.Random) -> list[Thing]:
        if self.pairing == "mended":
            return mended(shown.seen, shown.prompt, rng)
        if self.pairing == "independent":
            return sample_scene(shown.prompt, rng)
        scenes = [sample_scene(shown.prompt, rng) for _ in range(16)]
        return min(scenes, key=lambda scene: distance(scene, shown.seen))


def spoilt(rng: random.Random, count: int) -> list[Shown]:
    """Renders of training prompts, most of them hard, made wrong in some way (now and then one stays right)."""
    prompts = [sample_hard(rng) if rng.random() < 0.8 else sample_training(rng) for _ in range(count)]
    pictures = []
    for prompt in prompts:
        scene = sample_scene(prompt, rng)
        picture = (
            confused(scene, prompt, rng) if rng.random() < CONFUSED else corrupt(scene, prompt, rng.choice(KINDS), rng)
        )
        pictures.append(render([scene])[0] if picture is None else picture)
    return [Shown(*each) for each in zip(pictures, detect_batch(np.stack(pictures)), prompts, strict=True)]


def confused(scene: Sequence[Thing], prompt: Prompt, rng: random.Random) -> np.ndarray | None:
    """The scene with one object, now and then two, of another asked shape, in the colour of either: what models that are nearly
    right get wrong. None where the prompt asks for one shape."""
    shapes = [g.shape for g in prompt.groups]
    if len(shapes) < 2:
        return None
    changed = list(scene)
    for at in rng.sample(range(len(scene)), min(len(scene), 1 + (rng.random() < 0.2))):
        other = rng.choice([g for g in prompt.groups if g.shape != changed[at].shape])
        color = other.color if other.color and rng.random() < 0.5 else changed[at].color
        changed[at] = replace(changed[at], shape=other.shape, color=color)
    return render([changed])[0]


def from_runs(folders: Sequence[Path]) -> Samples:
    """The finished pictures of runs in the world scenes, those of a prompt beside each other. ConfigError for other runs, and for
    prompts that are kept for evaluation."""
    pictures, texts = [], []
    for folder in folders:
        store = Store.open(folder)
        if store.config.get("world") != "scenes":
            raise ConfigError(
                f'Pairs are made of runs in the world scenes; "{folder}" was drawn in {store.config.get("world")}.'
            )
        record = Record.read(store)
        for i, text in enumerate(store.config["prompts"]):
            if parse(text).held_out:
                raise ConfigError(
                    f'"{text}" in "{folder}" says a combination that is held out for evaluation; leave the run out.'
                )
            for o in record.of(i):
                if o.finished and record.digests[o.id] is not None:
                    pictures.append(store.picture(o.id))
                    texts.append(text)
    if not pictures:
        raise ConfigError("These runs hold no finished picture.")
    grid = np.stack(pictures)
    return Samples(grid, tuple(texts), check(grid, [parse(t) for t in texts]))


def distance(scene: Sequence[Thing], seen: Seen) -> float:
    """How far a scene's objects lie from those seen: the least sum of squares over pairs, other shapes and colours counting as
    20 px and 10 px more."""
    if not seen.found:
        return 0.0
    cost = [
        [
            (t.cx - f.center[0]) ** 2
            + (t.cy - f.center[1]) ** 2
            + 400 * (t.shape != f.shape)
            + 100 * (t.color != f.color)
            for f in seen.found
        ]
        for t in scene
    ]
    table = np.array(cost)
    return float(table[linear_sum_assignment(table)].sum())


def columns(groups: Sequence[Sequence[Shown]], targets: np.ndarray, memory: int) -> dict[str, np.ndarray]:
    """Items as arrays: ids int16 [N, 17], target uint8 [N, 64, 64, 3], tries uint8 [N, K, 64, 64, 3] (the last one last), remarks
    int16 [N, K, L + 1], shown bool [N, K]."""
    n = len(groups)
    made = {
        "ids": tokenize(WORDS, LENGTH, [g[-1].prompt.text for g in groups]).to(torch.int16).numpy(), "target": targets,
        "tries": np.zeros((n, memory, 64, 64, 3), np.uint8), "shown": np.zeros((n, memory), bool),
    }  # fmt: skip
    said: list[list[str]] = []
    for i, group in enumerate(groups):
        absent = memory - len(group)
        for at, shown in enumerate(group, start=absent):
            made["tries"][i, at], made["shown"][i, at] = shown.picture, True
        said += [*([[]] * absent), *(tokens(remark(s.seen, s.prompt)) for s in group)]
    ids = remark_ids(said, REMARK_WORDS, LONGEST).view(n, memory, -1)
    return {**made, "remarks": ids.to(torch.int16).numpy()}


@cache
def _held(files: tuple[str, ...]) -> Samples:
    return Samples.load(*map(Path, files))


@cache
def _order(count: int) -> np.ndarray:
    return np.random.default_rng(count).permutation(count)


def _group(texts: Sequence[str], at: int) -> tuple[int, int]:
    """The consecutive samples of the prompt at ``at``, eight at most."""
    start, stop = at, at + 1
    while start > 0 and texts[start - 1] == texts[at] and at - start < 4:
        start -= 1
    while stop < len(texts) and texts[stop] == texts[at] and stop - at < 4:
        stop += 1
    return start, stop


def _wrong(held: Samples, start: int, stop: int) -> list[Shown]:
    prompt: Prompt = parse(held.texts[start])
    if prompt.held_out:
        return []
    at = [i for i in range(start, stop) if not held.right[i]]
    seen = detect_batch(held.pictures[at]) if at else []
    return [Shown(held.pictures[i], s, prompt) for i, s in zip(at, seen, strict=True)]
