"""The Scenes world: its words, prompts, tags, atoms and held-out combinations (docs/scenes.md holds the specification)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

from secondlook.errors import ConfigError, nearest

SHAPES = ("circle", "square", "triangle", "cross")
PLURALS = {"circles": "circle", "squares": "square", "triangles": "triangle", "crosses": "cross"}
PLURAL_OF = {shape: plural for plural, shape in PLURALS.items()}
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 50),
    "purple": (160, 60, 190),
    "orange": (240, 140, 30),
    "white": (240, 240, 240),
    "cyan": (60, 210, 220),
}
NUMBERS = {"two": 2, "three": 3, "four": 4}
NUMBER_WORDS = {n: word for word, n in NUMBERS.items()}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
MAX_OBJECTS = 4
WORDS = ("a", "and", "left", "right", "of", "above", "below", *NUMBERS, *COLORS, *SHAPES, *PLURALS)
EXAMPLES = '"a red circle left of a blue square", "three squares and a green cross"'


@dataclass(frozen=True)
class Group:
    """Some objects of one shape; ``color`` None leaves each object's colour free."""

    shape: str
    count: int = 1
    color: str | None = None

    def text(self) -> str:
        words = ["a" if self.count == 1 else NUMBER_WORDS[self.count]]
        if self.color:
            words.append(self.color)
        words.append(self.shape if self.count == 1 else PLURAL_OF[self.shape])
        return " ".join(words)


@dataclass(frozen=True)
class Prompt:
    """One to four groups of different shapes; ``relation`` stands between the first two where both are single."""

    groups: tuple[Group, ...]
    relation: str | None = None

    @property
    def text(self) -> str:
        parts = [g.text() for g in self.groups]
        if self.relation:
            parts = [f"{parts[0]} {self.relation} {parts[1]}", *parts[2:]]
        return " and ".join(parts)

    @property
    def objects(self) -> int:
        return sum(g.count for g in self.groups)

    @property
    def atoms(self) -> int:
        """Facts stated: a shape each, a colour, a count above one; one more for a relation."""
        return sum(1 + (g.color is not None) + (g.count > 1) for g in self.groups) + (self.relation is not None)

    @property
    def tag(self) -> str:
        counts = [g.count for g in self.groups]
        colors = [g.color for g in self.groups]
        if len(self.groups) == 1:
            if counts == [1]:
                return "colors" if colors[0] else "single_object"
            return "compound" if colors[0] else "counting"
        if len(self.groups) == 2 and counts == [1, 1]:
            if self.relation:
                return "compound" if any(colors) else "position"
            if not any(colors):
                return "two_object"
            if all(colors) and colors[0] != colors[1]:
                return "color_attr"
        return "compound"

    def says(self) -> set[str]:
        """Canonical texts of the relation and the attribute pairs this prompt states, for the held-out rule."""
        said = {
            " + ".join(sorted((f"{a.color} {a.shape}", f"{b.color} {b.shape}")))
            for a, b in combinations(self.groups, 2)
            if a.color and b.color and a.color != b.color
        }
        if self.relation:
            said.add(canonical_relation(self.groups[0].shape, self.relation, self.groups[1].shape))
        return said

    @property
    def held_out(self) -> bool:
        return not self.says().isdisjoint(held_out())

    def metadata(self) -> dict[str, Any]:
        """GenEval's record of the prompt. The object a relation refers to stands before the one it places."""
        order = list(range(len(self.groups)))
        if self.relation:
            order[:2] = [1, 0]
        include = []
        for i in order:
            group = self.groups[i]
            entry: dict[str, Any] = {"class": group.shape, "count": group.count}
            if group.color:
                entry["color"] = group.color
            if self.relation and i == 0:
                entry["position"] = [self.relation, 0]
            include.append(entry)
        record: dict[str, Any] = {"tag": self.tag, "include": include}
        exclude = [{"class": g.shape, "count": g.count + 1} for g in self.groups if g.count > 1]
        if exclude:
            record["exclude"] = exclude
        record["prompt"] = self.text
        return record


def canonical_relation(first: str, relation: str, second: str) -> str:
    if relation in ("right of", "below"):
        first, second, relation = second, first, OPPOSITE[relation]
    return f"{first} {relation} {second}"


def canonical_pairs() -> list[str]:
    atoms = [(c, s) for s in SHAPES for c in COLORS]
    return [
        " + ".join(sorted((f"{c1} {s1}", f"{c2} {s2}")))
        for (c1, s1), (c2, s2) in combinations(atoms, 2)
        if s1 != s2 and c1 != c2
    ]


def canonical_relations() -> list[str]:
    return [f"{a} {r} {b}" for r in ("left of", "above") for a in SHAPES for b in SHAPES if a != b]


@cache
def held_out() -> frozenset[str]:
    """A fifth of each list, by lowest SHA-256 of the text: 5 relations and 67 attribute pairs."""
    chosen: list[str] = []
    for texts in (canonical_relations(), canonical_pairs()):
        ranked = sorted(texts, key=lambda s: hashlib.sha256(s.encode()).hexdigest())
        chosen += ranked[: round(len(texts) / 5)]
    return frozenset(chosen)


def parse(text: str) -> Prompt:
    """The prompt a text states; ConfigError naming the word that does not fit."""
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"The prompt is empty. Write one such as {EXAMPLES}.")
    words = text.split(" ")
    for word in words:
        if word not in WORDS:
            if word == "":
                raise _refuse(text, "words must be separated by exactly one space")
            raise _refuse(text, f'unknown word "{word}"; {nearest(word, WORDS)}')
    groups, joints = _read(text, words)
    shapes = [g.shape for g in groups]
    for i, shape in enumerate(shapes):
        if shape in shapes[:i]:
            raise _refuse(text, f'"{shape}" is named in two groups; every group needs a shape of its own')
    relation = joints[0] if joints and joints[0] != "and" else None
    for joint in joints[1:]:
        if joint != "and":
            raise _refuse(text, f'"{joint}" may stand only between the first two groups')
    if relation and (groups[0].count, groups[1].count) != (1, 1):
        raise _refuse(text, f'"{relation}" needs a single object on both sides')
    prompt = Prompt(tuple(groups), relation)
    if prompt.objects > MAX_OBJECTS:
        raise _refuse(text, f"it asks for {prompt.objects} objects, and a picture holds at most {MAX_OBJECTS}")
    return prompt


def _read(text: str, words: Sequence[str]) -> tuple[list[Group], list[str]]:
    """Groups and the joints between them."""
    groups: list[Group] = []
    joints: list[str] = []
    at = 0

    def word(k: int) -> str:
        return words[k] if k < len(words) else "the end"

    while True:
        if word(at) != "a" and word(at) not in NUMBERS:
            raise _refuse(text, f'"a", "two", "three" or "four" was expected where "{word(at)}" stands')
        count = NUMBERS.get(words[at], 1)
        at += 1
        color = words[at] if word(at) in COLORS else None
        at += color is not None
        noun = word(at)
        known = SHAPES if count == 1 else tuple(PLURALS)
        if noun not in known:
            raise _refuse(text, f'{" or ".join(known)} was expected where "{noun}" stands')
        groups.append(Group(PLURALS.get(noun, noun), count, color))
        at += 1
        if at == len(words):
            return groups, joints
        joint = word(at)
        if joint in ("left", "right"):
            if word(at + 1) != "of":
                raise _refuse(text, f'"of" was expected after "{joint}"')
            joint, at = f"{joint} of", at + 1
        if joint != "and" and joint not in RELATIONS:
            raise _refuse(text, f'"and" or a relation was expected where "{joint}" stands')
        joints.append(joint)
        at += 1


def _refuse(text: str, why: str) -> ConfigError:
    why = why if why.endswith(("?", ".")) else f"{why}."
    return ConfigError(f'The prompt "{text}" is not in the Scenes language: {why} Valid examples: {EXAMPLES}.')


def from_metadata(record: dict[str, Any]) -> Prompt:
    """The prompt of a GenEval record. The text decides; the record must agree where it says more."""
    prompt = parse(record["prompt"])
    include = record.get("include")
    if include is not None and include != prompt.metadata()["include"]:
        raise ConfigError(f'The record\'s "include" does not say what its prompt "{prompt.text}" says.')
    return prompt
