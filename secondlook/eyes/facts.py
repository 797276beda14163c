"""What a prompt of GenEval's kinds asks for: objects with counts and colours, and where one is of another.

    a photo of a bench | two clocks | a bench and a snowboard | a red dog | a purple wine glass and a black apple | a dog right of a teddy bear

GenEval is 2310.11513; its six tasks are these forms. Other prompts are not understood, and nothing is guessed of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")  # GenEval's
NUMBERS = {
    w: i for i, w in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], 1)
}
PLACES = {"left of": "left", "right of": "right", "above": "above", "below": "below"}
_RELATION = re.compile(r"^(.+?) (?:is )?(?:to the |on the )?(left of|right of|above|below) (.+)$")
_OPENING = re.compile(r"^(?:an? )?(?:photo|picture|image|drawing|painting|rendering) of ")
# In a noun these tell of more than a thing: then the prompt says something that is not checked here.
_MORE = frozenset(
    [
        "in",
        "on",
        "at",
        "of",
        "with",
        "from",
        "to",
        "by",
        "near",
        "under",
        "over",
        "behind",
        "beside",
        "wearing",
        "holding",
        "riding",
        "and",
        "or",
        "no",
        "not",
        "without",
        "zero",
        "some",
        "many",
        "few",
        "several",
    ]
)
_PLURALS = {"people": "person", "men": "man", "women": "woman", "children": "child", "buses": "bus", "knives": "knife", "mice": "mouse", "sheep": "sheep", "skis": "skis",
            "scissors": "scissors", "geese": "goose", "wolves": "wolf", "leaves": "leaf", "loaves": "loaf", "feet": "foot", "teeth": "tooth",
            "buss": "bus", "glasss": "glass", "skiss": "skis", "scissorss": "scissors"}  # fmt: skip  # the last four: GenEval only adds an s


@dataclass(frozen=True)
class Wanted:
    """A kind of thing. count: exactly so many; None: at least one. colour: one of COLOURS, or None."""

    noun: str
    count: int | None = None
    colour: str | None = None


@dataclass(frozen=True)
class Facts:
    """things, and where the first of them is of the second: left, right, above, below, or None."""

    things: tuple[Wanted, ...]
    place: str | None = None


@lru_cache(maxsize=512)
def parse(prompt: str) -> Facts | None:
    """The facts that a prompt asks for; None where it is of no kind that is known."""
    text = " ".join(prompt.lower().split()).rstrip(".!")
    text = _OPENING.sub("", text)
    relation = _RELATION.match(text)
    parts = [relation[1], relation[3]] if relation else re.split(r",? and |, ", text)
    things = [_thing(p) for p in parts]
    if not all(things) or len({t.noun for t in things if t}) < len(things):
        return None
    return Facts(tuple(t for t in things if t), PLACES[relation[2]] if relation else None)


def _thing(text: str) -> Wanted | None:
    words = text.split()
    count = None
    if words and words[0] in ("a", "an", "the"):
        words = words[1:]
    elif words and (words[0] in NUMBERS or words[0].isdigit()):
        count = NUMBERS.get(words[0]) or int(words[0])
        words = words[1:]
    colour = words[0] if len(words) > 1 and words[0] in COLOURS else None
    noun = words[1:] if colour else words
    if (
        not noun
        or len(noun) > 3
        or count == 0
        or not all(re.fullmatch(r"[a-z][a-z-]*", w) for w in noun)
        or _MORE & set(noun)
    ):
        return None
    if count is not None and count > 1:
        noun = [*noun[:-1], singular(noun[-1])]
    return Wanted(" ".join(noun), count, colour)


def singular(word: str) -> str:
    """An English plural's singular, by rule."""
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
