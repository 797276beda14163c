"""What is wrong with a Scenes picture and what should be there, in words: one clause a fault, joined by "; ".

The language is closed, so that a network can read it and another can write it. What is said comes from what some pair of eyes
saw (``Seen``) and from the prompt: from the checker's eyes it is the oracle's remark, from a network's a detector's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from secondlook.worlds.scenes.checker import RELATION_MARGIN, Seen
from secondlook.worlds.scenes.grammar import COLORS, PLURAL_OF, RELATIONS, SHAPES, Group, Prompt

COUNTS = ("no", "one", "two", "three", "four", "five", "six")
MOST_CLAUSES = 3
KINDS = ("missing", "count", "color", "relation", "extra", "shapeless", "colorless", "specks")
REMARK_WORDS = (
    "there", "is", "are", "was", "were", "asked", "for", "not", "that", "the", "it", "and", "of", "a", "left", "right", "above",
    "below", "something", "none", "shapes", "things", "color", "known", "specks", "lie", "about", "many", "either", ",", ";", *COUNTS,
    *COLORS, *SHAPES, *PLURAL_OF.values(),
)  # fmt: skip
LONGEST = 32  # tokens that a reader or writer of remarks takes; what goes beyond is cut


def tokens(text: str) -> list[str]:
    """A remark's words and marks, lower case."""
    return re.findall(r"[a-z]+|[,;]", text.lower())


def spoken(words: Sequence[str]) -> str:
    """The text of a remark's tokens."""
    return " ".join(words).replace(" ,", ",").replace(" ;", ";")


def faults(seen: Seen, prompt: Prompt) -> list[tuple[str, str]]:
    """Every fault as (one of ``KINDS``, its clause), in the order of the prompt, then what was not asked for."""
    return [*_stated(seen, prompt), *_unasked(seen, prompt)]


def remark(seen: Seen, prompt: Prompt) -> str:
    """The first ``MOST_CLAUSES`` faults as one text; "" for a right picture."""
    return "; ".join(clause for _, clause in faults(seen, prompt)[:MOST_CLAUSES])


def _count(n: int) -> str:
    return COUNTS[n] if n < len(COUNTS) else "many"


def _noun(shape: str, n: int) -> str:
    return shape if n == 1 else PLURAL_OF[shape]


def _miscount(group: Group, n: int) -> str:
    have = (
        f"there is {'no' if n == 0 else 'one'} {group.shape}"
        if n < 2
        else f"there are {_count(n)} {PLURAL_OF[group.shape]}"
    )
    return f"{have}, {_count(group.count)} {'was' if group.count == 1 else 'were'} asked for"


def _stated(seen: Seen, prompt: Prompt) -> Iterator[tuple[str, str]]:
    for group in prompt.groups:
        same = seen.of_shape(group.shape)
        if len(same) != group.count:
            yield ("missing" if len(same) < group.count else "count"), _miscount(group, len(same))
        other = sorted({f.color for f in same if f.color} - {group.color}) if group.color else []
        if other:
            few = "is" if len(same) == 1 else "are"
            yield "color", f"the {_noun(group.shape, len(same))} {few} {' and '.join(other)}, not {group.color}"
    if prompt.relation:
        yield from _relation(seen, prompt)


def _relation(seen: Seen, prompt: Prompt) -> Iterator[tuple[str, str]]:
    first, second = (g.shape for g in prompt.groups[:2])
    a, b = seen.of_shape(first), seen.of_shape(second)
    if len(a) != 1 or len(b) != 1:
        return  # the count is what is wrong
    dx, dy = (p - q for p, q in zip(a[0].center, b[0].center, strict=True))
    holds = observed(dx, dy)
    if prompt.relation not in holds:
        found = " and ".join(holds)
        where = (
            f"is {found} the {second}, not {prompt.relation} it" if found else f"is not {prompt.relation} the {second}"
        )
        yield "relation", f"the {first} {where}"


def observed(dx: float, dy: float) -> list[str]:
    """The relations that hold, by the checker's rule, for an offset of bounding-box centres; at most one."""
    along = dict(zip(RELATIONS, (-dx, dx, -dy, dy), strict=True))
    across = dict(zip(RELATIONS, (abs(dy), abs(dy), abs(dx), abs(dx)), strict=True))
    return [r for r in RELATIONS if along[r] > RELATION_MARGIN and along[r] > across[r]]


def _unasked(seen: Seen, prompt: Prompt) -> Iterator[tuple[str, str]]:
    asked = {g.shape for g in prompt.groups}
    for shape, n in sorted(
        Counter(f.shape for f in seen.found if f.recognised and f.shape not in asked).items(), key=str
    ):
        assert shape is not None
        have = f"there is a {shape} that was" if n == 1 else f"there are {_count(n)} {PLURAL_OF[shape]} that were"
        yield "extra", f"{have} not asked for"
    shapeless = sum(f.shape is None for f in seen.found)
    if shapeless:
        yield (
            "shapeless",
            f"{'something is' if shapeless == 1 else f'{_count(shapeless)} things are'} none of the shapes",
        )
    for shape in sorted({f.shape for f in seen.found if f.shape and not f.color}):
        yield "colorless", f"the {shape} is of no known color"
    if seen.littered:
        yield "specks", "specks lie about"
