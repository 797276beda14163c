"""The scene that a wrong picture should have been: what is right stays where it is, and only what a remark names changes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from secondlook.worlds.scenes.checker import Found, Seen
from secondlook.worlds.scenes.corrupt import satisfies
from secondlook.worlds.scenes.grammar import COLORS, Prompt
from secondlook.worlds.scenes.render import RADIUS, SIZE, Thing, apart, related, sample_scene

_TRIES = 60
_SHAPE, _COLOR, _SMALL = 2.0, 1.0, 4  # costs of a change; pixels below which a component is no object to build on


def mended(seen: Seen, prompt: Prompt, rng: random.Random) -> list[Thing]:
    """A scene that satisfies the prompt and keeps as much of ``seen`` as can be kept.

    Each asked object takes over the found one that needs the least change (shape before colour); found ones that nobody needs
    go, missing ones are added where there is room. Where the relation does not hold, the two change places, or one of them moves.
    A free colour stays what it was. Where all that fails, which crowded pictures can, the scene is drawn afresh.
    """
    specs = [(g.shape, g.color) for g in prompt.groups for _ in range(g.count)]
    found = [f for f in seen.found if min(f.box[2] - f.box[0], f.box[3] - f.box[1]) >= _SMALL]
    taken = _assigned(specs, found)
    scene: list[Thing | None] = [
        None if at is None else _taken_over(found[at], shape, color, rng)
        for (shape, color), at in zip(specs, taken, strict=True)
    ]
    for _ in range(4):
        whole = _placed(list(scene), specs, prompt, rng)
        if whole is not None and satisfies(whole, prompt):
            return whole
        keep = [i for i, t in enumerate(scene) if t is not None]
        if keep:  # one object less to keep
            scene[rng.choice(keep)] = None
    return sample_scene(prompt, rng)


def _assigned(specs: Sequence[tuple[str, str | None]], found: Sequence[Found]) -> list[int | None]:
    """For each asked object the found one that it takes over, or None."""
    if not found:
        return [None] * len(specs)
    cost = np.array([[_change(f, shape, color) for f in found] for shape, color in specs])
    at = dict(zip(*(x.tolist() for x in linear_sum_assignment(cost)), strict=True))
    return [at.get(i) for i in range(len(specs))]


def _change(found: Found, shape: str, color: str | None) -> float:
    wrong_color = color is not None and found.color != color
    return _SHAPE * (found.shape != shape) * (1.0 if found.shape else 0.8) + _COLOR * wrong_color


def _taken_over(found: Found, shape: str, color: str | None, rng: random.Random) -> Thing:
    """A found object as the asked one, where it stands."""
    x0, y0, x1, y1 = found.box
    r = found.radius if found.shape == shape else (x1 - x0 + y1 - y0) / 4
    r = min(max(r, RADIUS[0]), RADIUS[1])
    cx, cy = found.center
    cy += 0.1 * r if shape == "triangle" else 0.0
    inside = [min(max(v, r + 2), SIZE - 2 - r) for v in (cx, cy)]
    return Thing(shape, color or found.color or rng.choice(tuple(COLORS)), inside[0], inside[1], r)


def _free(shape: str, color: str | None, rng: random.Random) -> Thing:
    r = rng.uniform(*RADIUS)
    return Thing(shape, color or rng.choice(tuple(COLORS)), rng.uniform(r + 2, 62 - r), rng.uniform(r + 2, 62 - r), r)


def _placed(
    scene: list[Thing | None], specs: Sequence[tuple[str, str | None]], prompt: Prompt, rng: random.Random
) -> list[Thing] | None:
    """The scene with what is missing added, and its relation and distances put right; None where there is no room."""
    for _ in range(_TRIES):
        whole = [t or _free(*spec, rng) for t, spec in zip(scene, specs, strict=True)]
        if not related(whole, prompt.relation):
            whole = _moved(whole, prompt, rng, first=_ == 0)
        kept = [t for t, was in zip(whole, scene, strict=True) if t is was]
        new = [t for t, was in zip(whole, scene, strict=True) if t is not was]
        if related(whole, prompt.relation) and apart([*kept, *new]):
            return whole
    return None


def _moved(whole: list[Thing], prompt: Prompt, rng: random.Random, first: bool) -> list[Thing]:
    """The first two objects exchanged, or one of them moved, so that the relation may hold."""
    a, b = whole[:2]
    swapped = [replace(a, cx=b.cx, cy=b.cy), replace(b, cx=a.cx, cy=a.cy), *whole[2:]]
    if first and related(swapped, prompt.relation):
        return swapped
    which = rng.randrange(2)
    for _ in range(20):
        there = _free(whole[which].shape, whole[which].color, rng)
        moved = [*whole]
        moved[which] = replace(whole[which], cx=there.cx, cy=there.cy)
        r = moved[which].r
        inside = all(r + 2 <= v <= 62 - r for v in (there.cx, there.cy))
        if inside and related(moved, prompt.relation):
            return moved
    return whole
