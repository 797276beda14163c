"""Pictures held against many prompts: what teaches a verifier. The checker looks at a picture once and judges each
prompt for almost nothing, so a picture comes with its own prompt, with near misses of it, and with a description of
what it really shows. No prompt made here says a held-out combination.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from secondlook.errors import ConfigError
from secondlook.worlds.scenes.checker import Found, Seen, detect_batch, judge
from secondlook.worlds.scenes.corrupt import KINDS, corrupt
from secondlook.worlds.scenes.grammar import COLORS, MAX_OBJECTS, OPPOSITE, RELATIONS, SHAPES, Group, Prompt, parse
from secondlook.worlds.scenes.prompts import sample_hard, sample_training
from secondlook.worlds.scenes.render import BACKGROUND, SIZE, Thing, render, sample_scene

CORRUPTED = 0.4  # share of the renders that are corrupted
_TRIES = 20


@dataclass(frozen=True)
class Shown:
    """A picture, uint8 [64, 64, 3], what the checker saw in it, and the prompt it was made for."""

    picture: np.ndarray
    seen: Seen
    prompt: Prompt


def fresh(rng: random.Random, count: int, hard: float = 0.0, truth: bool = False) -> list[Shown]:
    """Renders of training prompts, some of them corrupted. hard: the share of hard prompts among them. truth: whether what a
    render holds is told by its scene, not by the checker's eyes; of a corrupted one they tell all the same."""
    prompts = [sample_hard(rng) if hard and rng.random() < hard else sample_training(rng) for _ in range(count)]
    scenes = [sample_scene(p, rng) for p in prompts]
    pictures = render(scenes)
    whole = [True] * count
    for i, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True)):
        if rng.random() < CORRUPTED:
            spoilt = corrupt(scene, prompt, rng.choice(KINDS), rng)
            if spoilt is not None:
                pictures[i], whole[i] = spoilt, False
    if not truth:
        return [Shown(*each) for each in zip(pictures, detect_batch(pictures), prompts, strict=True)]
    eyes = iter(detect_batch(pictures[[not w for w in whole]]))
    seen = [_held(scene) if w else next(eyes) for w, scene in zip(whole, scenes, strict=True)]
    return [Shown(*each) for each in zip(pictures, seen, prompts, strict=True)]


def _held(scene: Sequence[Thing]) -> Seen:
    """What a scene holds, as its renderer knows it."""
    found = []
    for thing in scene:
        (x, y), r = thing.box_center, thing.r
        box = (round(x - r), round(y - r), round(x + r), round(y + r))
        found.append(Found(thing.shape, thing.color, box, r, 1.0))
    return Seen(tuple(found))


def moved(shown: Shown, rng: random.Random) -> Shown:
    """The same picture shifted within its frame and perhaps mirrored, the prompt's relation with it.

    Only whole-pixel shifts that lose no pixel unlike the background: the checker sees the same objects elsewhere.
    """
    picture, found, prompt = shown.picture, shown.seen.found, shown.prompt
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
        found = tuple(_boxed(f, (SIZE - f.box[2], f.box[1], SIZE - f.box[0], f.box[3])) for f in found)
        swap = prompt.relation in ("left of", "right of")
        mirrored = replace(prompt, relation=OPPOSITE[prompt.relation]) if swap and prompt.relation else prompt
        if mirrored.held_out:
            return shown
        prompt = mirrored
    drawn = np.abs(picture.astype(np.int16) - np.array(BACKGROUND)).max(-1) > 24
    dx, dy = _room(drawn.any(0), rng), _room(drawn.any(1), rng)
    picture = np.roll(picture, (dy, dx), (0, 1))
    found = tuple(_boxed(f, (f.box[0] + dx, f.box[1] + dy, f.box[2] + dx, f.box[3] + dy)) for f in found)
    return Shown(np.ascontiguousarray(picture), Seen(found, shown.seen.litter), prompt)


def _boxed(found: Found, box: tuple[int, int, int, int]) -> Found:
    return replace(found, box=box)


def _room(used: np.ndarray, rng: random.Random) -> int:
    """A shift along one axis that keeps every used line, and one line of margin, inside."""
    lines = np.flatnonzero(used)
    if not len(lines):
        return 0
    low, high = -max(int(lines[0]) - 1, 0), max(SIZE - 2 - int(lines[-1]), 0)
    return rng.randint(low, high)


def describe(seen: Seen, rng: random.Random) -> Prompt | None:
    """A training prompt that is true of the recognised objects; None where the language has none for them."""
    shapes = list({f.shape for f in seen.found if f.recognised and f.shape})
    total = sum(f.recognised for f in seen.found)
    if not shapes or total > MAX_OBJECTS:
        return None
    for _ in range(_TRIES):
        shapes.sort()
        rng.shuffle(shapes)
        groups = []
        for shape in shapes:
            same = [f for f in seen.of_shape(shape) if f.recognised]
            colors = {f.color for f in same}
            named = len(colors) == 1 and rng.random() < 0.6
            groups.append(Group(shape, len(same), colors.pop() if named else None))
        prompt = Prompt(tuple(groups))
        if len(groups) > 1 and groups[0].count == groups[1].count == 1 and rng.random() < 0.6:
            related = [replace(prompt, relation=r) for r in RELATIONS]
            true = [p for p in related if judge(seen, p).atoms[-1]]
            prompt = rng.choice(true) if true else prompt
        if not prompt.held_out:
            return prompt
    return None


def near_miss(prompt: Prompt, rng: random.Random) -> Prompt:
    """A different training prompt, one edit away: a shape, colour, number, relation or whole group."""
    for _ in range(10 * _TRIES):
        edited = rng.choice(_EDITS)(prompt, rng)
        if edited is not None and edited != prompt and _valid(edited) and not edited.held_out:
            return edited
    return sample_training(rng)


def _valid(prompt: Prompt) -> bool:
    try:
        return parse(prompt.text) == prompt
    except ConfigError:
        return False


def _with(prompt: Prompt, at: int, group: Group) -> Prompt:
    return replace(prompt, groups=(*prompt.groups[:at], group, *prompt.groups[at + 1 :]))


def _reshape(prompt: Prompt, rng: random.Random) -> Prompt:
    at = rng.randrange(len(prompt.groups))
    return _with(prompt, at, replace(prompt.groups[at], shape=rng.choice(SHAPES)))


def _recolor(prompt: Prompt, rng: random.Random) -> Prompt:
    at = rng.randrange(len(prompt.groups))
    return _with(prompt, at, replace(prompt.groups[at], color=rng.choice(tuple(COLORS))))


def _recount(prompt: Prompt, rng: random.Random) -> Prompt:
    at = rng.randrange(len(prompt.groups))
    edited = _with(prompt, at, replace(prompt.groups[at], count=rng.randint(1, MAX_OBJECTS)))
    return edited if edited.relation is None or at > 1 else replace(edited, relation=None)


def _relate(prompt: Prompt, rng: random.Random) -> Prompt | None:
    if len(prompt.groups) < 2:
        return None
    if prompt.relation and rng.random() < 0.5:
        return replace(prompt, relation=OPPOSITE[prompt.relation])
    return replace(prompt, relation=rng.choice(RELATIONS))


def _swap(prompt: Prompt, rng: random.Random) -> Prompt | None:
    """Two groups exchange their shapes (which turns a relation round), their colours or their counts."""
    if len(prompt.groups) < 2:
        return None
    i, j = rng.sample(range(len(prompt.groups)), 2)
    a, b = prompt.groups[i], prompt.groups[j]
    what = rng.choice(("shape", "color", "count"))
    one, two = {
        "shape": (replace(a, shape=b.shape), replace(b, shape=a.shape)),
        "color": (replace(a, color=b.color), replace(b, color=a.color)),
        "count": (replace(a, count=b.count), replace(b, count=a.count)),
    }[what]
    return _with(_with(prompt, i, one), j, two)


def _add(prompt: Prompt, rng: random.Random) -> Prompt:
    color = rng.choice((None, *COLORS))
    return replace(prompt, groups=(*prompt.groups, Group(rng.choice(SHAPES), 1, color)))


def _drop(prompt: Prompt, rng: random.Random) -> Prompt | None:
    if len(prompt.groups) < 2:
        return None
    at = rng.randrange(len(prompt.groups))
    groups = (*prompt.groups[:at], *prompt.groups[at + 1 :])
    return Prompt(groups, prompt.relation if at > 1 else None)


_EDITS: tuple[Callable[[Prompt, random.Random], Prompt | None], ...] = (
    _reshape, _recolor, _recolor, _recount, _relate, _relate, _swap, _swap, _add, _drop,
)  # fmt: skip


def prompts_for(shown: Shown, count: int, rng: random.Random) -> list[Prompt]:
    """``count`` prompts for a picture: its own, then in turn a description, a near miss of it, a near miss of its own."""
    true = describe(shown.seen, rng)
    chosen = [shown.prompt]
    for i in range(count - 1):
        if i % 3 == 0:
            chosen.append(true or near_miss(shown.prompt, rng))
        elif i % 3 == 1:
            chosen.append(near_miss(true or shown.prompt, rng))
        else:
            chosen.append(near_miss(shown.prompt, rng))
    return chosen


def fact_places(prompt: Prompt) -> list[int]:
    """For each atom of a prompt, in the checker's order, the place of the word that states it; the opening token is 0."""
    places, at = [], 1
    related = 0
    for i, group in enumerate(prompt.groups):
        noun = at + 1 + (group.color is not None)
        places.append(noun)
        if group.color:
            places.append(noun - 1)
        if group.count > 1:
            places.append(at)
        at = noun + 1
        if i == 0 and prompt.relation:
            related = at
            at += len(prompt.relation.split())
        else:
            at += 1
    return [*places, related] if prompt.relation else places
