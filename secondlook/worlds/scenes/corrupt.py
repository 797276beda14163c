"""Pictures made wrong for a prompt, one way at a time: tests of the checker, and negatives for a verifier."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence

import numpy as np

from secondlook.worlds.scenes.checker import RELATION_MARGIN
from secondlook.worlds.scenes.grammar import COLORS, MAX_OBJECTS, SHAPES, Prompt
from secondlook.worlds.scenes.prompts import sample_training
from secondlook.worlds.scenes.render import BACKGROUND, RADIUS, SIZE, Thing, apart, render, sample_scene

_TRIES = 200
_BAR = (1.5, 3.0)  # half of the width of a bridge, pixels


def satisfies(scene: Sequence[Thing], prompt: Prompt) -> bool:
    """Whether a scene is what the prompt asks for: the checker's last step, on the objects themselves."""
    if len(scene) != prompt.objects:
        return False
    for group in prompt.groups:
        same = [t for t in scene if t.shape == group.shape]
        if len(same) != group.count or any(group.color not in (None, t.color) for t in same):
            return False
    if prompt.relation is None:
        return True
    a, b = (next(t for t in scene if t.shape == g.shape).box_center for g in prompt.groups[:2])
    dx, dy = a[0] - b[0], a[1] - b[1]
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[prompt.relation]
    across = abs(dy) if prompt.relation in ("left of", "right of") else abs(dx)
    return along > RELATION_MARGIN and along > across


def corrupt(scene: Sequence[Thing], prompt: Prompt, kind: str, rng: random.Random) -> np.ndarray | None:
    """A picture, uint8 [64, 64, 3], of a right scene made wrong for its prompt; None where the kind does not apply.

    ``kind`` is one of ``KINDS``; ValueError for another.
    """
    if kind in _SCENES:
        changed = _SCENES[kind](list(scene), prompt, rng)
        return None if changed is None else render([changed])[0]
    if kind in _PICTURES:
        return _PICTURES[kind](list(scene), rng)
    raise ValueError(f"no such corruption: {kind!r}; known: {KINDS}")


def _other_prompt(scene: list[Thing], prompt: Prompt, rng: random.Random) -> list[Thing] | None:
    """A scene of some other training prompt that is not, by chance, right for this one."""
    for _ in range(_TRIES):
        other = sample_scene(sample_training(rng), rng)
        if not satisfies(other, prompt):
            return other
    return None


def _removed(scene: list[Thing], prompt: Prompt, rng: random.Random) -> list[Thing]:
    gone = rng.randrange(len(scene))
    return scene[:gone] + scene[gone + 1 :]


def _added(scene: list[Thing], prompt: Prompt, rng: random.Random) -> list[Thing] | None:
    """One more object of any shape and colour, where the rules of the world leave room; never more than four."""
    if len(scene) == MAX_OBJECTS:
        return None
    for _ in range(_TRIES):
        r = rng.uniform(*RADIUS)
        x, y = rng.uniform(r + 2, SIZE - 2 - r), rng.uniform(r + 2, SIZE - 2 - r)
        more = [*scene, Thing(rng.choice(SHAPES), rng.choice(tuple(COLORS)), x, y, r)]
        if apart(more):
            return more
    return None


def _recoloured(scene: list[Thing], prompt: Prompt, rng: random.Random) -> list[Thing] | None:
    """One object of a group whose colour is named gets another palette entry."""
    named = {g.shape for g in prompt.groups if g.color}
    which = [i for i, t in enumerate(scene) if t.shape in named]
    if not which:
        return None
    i = rng.choice(which)
    color = rng.choice([c for c in COLORS if c != scene[i].color])
    return [*scene[:i], dataclasses.replace(scene[i], color=color), *scene[i + 1 :]]


def _swapped(scene: list[Thing], prompt: Prompt, rng: random.Random) -> list[Thing] | None:
    """The two related objects change places; each place keeps its radius, so that the rules of the world still hold."""
    if prompt.relation is None:
        return None
    i, j = (next(k for k, t in enumerate(scene) if t.shape == g.shape) for g in prompt.groups[:2])
    a, b = scene[i], scene[j]
    swapped = list(scene)
    swapped[i] = dataclasses.replace(a, shape=b.shape, color=b.color)
    swapped[j] = dataclasses.replace(b, shape=a.shape, color=a.color)
    return swapped


def _cut(scene: list[Thing], rng: random.Random) -> np.ndarray:
    """One object loses a half of its bounding box, on a side drawn at random."""
    picture: np.ndarray = render([scene])[0]
    thing = rng.choice(scene)
    x, y = thing.box_center
    reach = thing.r + 1  # anti-aliasing included; no other object comes within three pixels
    box = [x - reach, y - reach, x + reach, y + reach]
    side = rng.randrange(4)
    box[side] = x if side % 2 == 0 else y
    x0, y0, x1, y1 = (round(v) for v in box)
    picture[y0:y1, x0:x1] = BACKGROUND
    return picture


def _bridged(scene: list[Thing], rng: random.Random) -> np.ndarray | None:
    """One object is joined to its nearest neighbour by a bar, half in the colour of each: neither is repainted."""
    if len(scene) < 2:
        return None
    picture: np.ndarray = render([scene])[0]
    a = rng.choice(scene)
    b = min((t for t in scene if t is not a), key=lambda t: math.hypot(t.cx - a.cx, t.cy - a.cy))
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    ux, uy = b.cx - a.cx, b.cy - a.cy
    along = ((x - a.cx) * ux + (y - a.cy) * uy) / (ux * ux + uy * uy)  # 0 at the centre of a, 1 at that of b
    across = np.hypot(x - a.cx - along * ux, y - a.cy - along * uy)
    bar = across <= rng.uniform(*_BAR)
    picture[bar & (along >= 0) & (along < 0.5)] = COLORS[a.color]
    picture[bar & (along >= 0.5) & (along <= 1)] = COLORS[b.color]
    return picture


_SCENES: dict[str, Callable[[list[Thing], Prompt, random.Random], list[Thing] | None]] = {
    "other_prompt": _other_prompt,
    "removed": _removed,
    "added": _added,
    "recoloured": _recoloured,
    "swapped": _swapped,
}
_PICTURES: dict[str, Callable[[list[Thing], random.Random], np.ndarray | None]] = {"cut": _cut, "bridged": _bridged}
KINDS = (*_SCENES, *_PICTURES)
