"""Draws of Scenes prompts: the training mixture and the fixed sets."""

from __future__ import annotations

import random
from collections.abc import Callable

from secondlook.worlds.scenes.grammar import COLORS, MAX_OBJECTS, RELATIONS, SHAPES, TASKS, Group, Prompt

SETS = {
    "scenes-dev": 20250101, "scenes-test": 20250202, "scenes-hard-dev": 20250303, "scenes-hard-test": 20250404,
    "scenes-expert-dev": 20250505, "scenes-expert-test": 20250606,
}  # fmt: skip
PER_TASK = 50
HARD_ATOMS = (3, 4, 5, 6)
PER_ATOMS = 30
EXPERT_ATOMS = (4, 5, 6)
PER_EXPERT = 80
_HALF_HELD_OUT = ("position", "color_attr")


def sample_task(tag: str, rng: random.Random) -> Prompt:
    """A prompt of one task, uniform over the task's distinct prompts (compound: a mixture that covers the grammar)."""
    if tag == "compound":
        return _compound(rng)
    one, two = rng.sample(SHAPES, 2)
    c1, c2 = rng.sample(tuple(COLORS), 2)
    if tag == "single_object":
        return Prompt((Group(one),))
    if tag == "two_object":
        return Prompt((Group(one), Group(two)))
    if tag == "counting":
        return Prompt((Group(one, rng.randint(2, 4)),))
    if tag == "colors":
        return Prompt((Group(one, 1, c1),))
    if tag == "position":
        return Prompt((Group(one), Group(two)), rng.choice(RELATIONS))
    if tag == "color_attr":
        return Prompt((Group(one, 1, c1), Group(two, 1, c2)))
    raise ValueError(f"no such task: {tag!r}; known: {(*TASKS, 'compound')}")


def _compound(rng: random.Random) -> Prompt:
    while True:
        shapes = rng.sample(SHAPES, rng.choices((1, 2, 3, 4), (10, 50, 30, 10))[0])
        groups = []
        for shape in shapes:
            count = rng.choices((1, 2, 3, 4), (70, 20, 7, 3))[0]
            groups.append(Group(shape, count, rng.choice(tuple(COLORS)) if rng.random() < 0.7 else None))
        single = len(groups) > 1 and groups[0].count == groups[1].count == 1
        relation = rng.choice(RELATIONS) if single and rng.random() < 0.6 else None
        prompt = Prompt(tuple(groups), relation)
        if prompt.objects <= MAX_OBJECTS and prompt.tag == "compound":
            return prompt


def sample_training(rng: random.Random) -> Prompt:
    """The specification's mixture: a tenth for each of the six tasks, four tenths compound, nothing held out."""
    while True:
        tag = rng.choice((*TASKS, *("compound",) * 4))
        prompt = sample_task(tag, rng)
        if not prompt.held_out:
            return prompt


def sample_hard(rng: random.Random) -> Prompt:
    """A compound prompt for training on what is hard: 3 to 6 atoms, each as likely, nothing held out."""
    return _draw(lambda: _compound(rng), False, rng.choice(HARD_ATOMS))


def prompt_set(name: str) -> list[Prompt]:
    """One of ``SETS``: 300 prompts by task, or 120 (hard) or 240 (expert) compound prompts by atoms; the same list on every
    machine."""
    rng = random.Random(SETS[name])
    if "hard" in name:
        return _hard(rng)
    if "expert" in name:
        return [_draw(lambda: _compound(rng), i % 4 == 0, atoms) for atoms in EXPERT_ATOMS for i in range(PER_EXPERT)]
    prompts = []
    for tag in TASKS:
        for i in range(PER_TASK):
            wanted = i % 2 == 0 if tag in _HALF_HELD_OUT else None
            prompts.append(_draw(lambda: sample_task(tag, rng), wanted))  # noqa: B023 (called at once)
    return prompts


def _hard(rng: random.Random) -> list[Prompt]:
    # A compound prompt of three atoms cannot say a held-out combination (a pair takes four, and a bare relation is
    # tagged position), so the quarter that must falls on the other atom counts: ten each.
    prompts = []
    for atoms in HARD_ATOMS:
        for i in range(PER_ATOMS):
            prompts.append(_draw(lambda: _compound(rng), atoms > HARD_ATOMS[0] and i % 3 == 0, atoms))
    return prompts


def _draw(sample: Callable[[], Prompt], held_out: bool | None, atoms: int | None = None) -> Prompt:
    while True:
        prompt = sample()
        if held_out in (None, prompt.held_out) and atoms in (None, prompt.atoms):
            return prompt
