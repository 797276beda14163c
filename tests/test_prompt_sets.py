"""The fixed prompt sets, and what prompts for training are."""

from __future__ import annotations

import hashlib
import random

import pytest

from secondlook.worlds.scenes.grammar import TASKS
from secondlook.worlds.scenes.prompts import SETS, prompt_set, sample_hard

PINNED = {
    "scenes-dev": "029ec51dc703f96f44c9898c470c5eec495f416cc20271a7c4c0ae407d026681",
    "scenes-test": "bf98c127502a1fda1f7dc743fb34205d3549462fa5d1ccddf7ca0faed56ed499",
    "scenes-hard-dev": "a99c84a1e938b8fc0e2c3bda9ac0fbd9927addefdaeb0d62d189e495703bb569",
    "scenes-hard-test": "a1130da499302a48dfc1a64094b22600cb9d2a50218dca4b4e1f97b65205823e",
    "scenes-expert-dev": "708e59846044e17698b869b08c61ff656bde59ac84de59bdb32dd70dce120436",
    "scenes-expert-test": "e05d42bc1c133efec4ed2b1d5da14fbb33638dd9cb4a4c12e7c248233a67a2ed",
}


@pytest.mark.parametrize("name", sorted(SETS))
def test_a_prompt_set_is_always_the_same(name: str) -> None:
    texts = [p.text for p in prompt_set(name)]
    assert texts == [p.text for p in prompt_set(name)]
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest() == PINNED[name]


@pytest.mark.parametrize("name", ["scenes-dev", "scenes-test"])
def test_task_sets_have_fifty_prompts_a_task_and_half_held_out(name: str) -> None:
    prompts = prompt_set(name)
    assert len(prompts) == 300
    for tag in TASKS:
        held = [p.held_out for p in prompts if p.tag == tag]
        assert len(held) == 50
        assert sum(held) == (25 if tag in ("position", "color_attr") else 0)


@pytest.mark.parametrize("name", ["scenes-hard-dev", "scenes-hard-test"])
def test_hard_sets_have_thirty_prompts_an_atom_count_and_a_quarter_held_out(name: str) -> None:
    prompts = prompt_set(name)
    assert [p.tag for p in prompts] == ["compound"] * 120
    assert [sum(p.atoms == n for p in prompts) for n in (3, 4, 5, 6)] == [30] * 4
    assert sum(p.held_out for p in prompts) == 30


@pytest.mark.parametrize("name", ["scenes-expert-dev", "scenes-expert-test"])
def test_expert_sets_have_eighty_prompts_an_atom_count_and_a_quarter_held_out(name: str) -> None:
    prompts = prompt_set(name)
    assert [p.tag for p in prompts] == ["compound"] * 240
    for atoms in (4, 5, 6):
        assert [p.held_out for p in prompts if p.atoms == atoms].count(True) == 20
        assert sum(p.atoms == atoms for p in prompts) == 80


def test_hard_prompts_for_training_say_nothing_held_out() -> None:
    rng = random.Random(0)
    prompts = [sample_hard(rng) for _ in range(400)]
    assert not any(p.held_out for p in prompts)
    assert {p.atoms for p in prompts} == {3, 4, 5, 6}
