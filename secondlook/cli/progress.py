"""What a person sees of results: a table."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from secondlook.runs.progress import Progress as Progress
from secondlook.runs.results import Result

_LONGEST = 48  # columns of a prompt in the table
_JOINERS = "\u200d\ufe0e\ufe0f"  # they make one emoji of several characters


def table(found: Sequence[Result]) -> str:
    """Prompt, base and searched scores, what each judge says of both, evaluations, seconds: one line a prompt and the means.
    The judges and the checker have columns where there are any."""
    if not found:
        return "No prompt has a finished picture."
    heard = dict.fromkeys(name for r in found for name in (*r.plain_verdicts, *r.verdicts))
    judges, exact = [n for n in heard if n != "checker"], "checker" in heard
    least = (_LONGEST, 7, 7, *(17 for _ in judges), *([15] if exact else []), 6, 7)
    rows = [_row(r, judges, exact) for r in found]
    if len(found) > 1:
        rows.append(_means(found, judges, exact))
    names = [*map(_plain, judges), *(["checker"] if exact else [])]
    head = ["prompt", "base", "best", *(_clipped(n, _LONGEST) for n in names), "evals", "seconds"]
    columns = list(zip(head, *rows, strict=True))
    width = [max(map(_width, columns[0]))]  # no wider than its texts; numbers keep a width, so that tables compare
    width += [max(low, *map(_width, cells)) for low, cells in zip(least[1:], columns[1:], strict=True)]
    lines = ["  ".join([_pad(row[0], width[0]), *(c.rjust(w) for c, w in zip(row[1:], width[1:], strict=True))])
             for row in (head, *rows)]  # fmt: skip
    rule = "-" * sum(width, 2 * (len(width) - 1))
    lines.insert(1, rule)
    if len(found) > 1:
        lines.insert(-1, rule)
    return "\n".join(lines)


def _row(r: Result, judges: Sequence[str], exact: bool) -> list[str]:
    check = [f"{_mark(r.plain_verdicts)} → {_mark(r.verdicts)}"] if exact else []
    said = [_arrow([r.plain_verdicts], [r.verdicts], j) for j in judges]
    numbers = [f"{r.plain_score:.3f}", f"{r.score:.3f}", *said, *check, str(r.spent.evals), f"{r.spent.seconds:.1f}"]
    return [_clipped(_plain(r.prompt), _LONGEST), *numbers]


def _means(found: Sequence[Result], judges: Sequence[str], exact: bool) -> list[str]:
    base, best = (_mean([getattr(r, k) for r in found]) for k in ("plain_score", "score"))
    before, after = [r.plain_verdicts for r in found], [r.verdicts for r in found]
    right = [sum(v.get("checker", 0) == 1 for v in vs) for vs in (before, after)]
    check = [f"{right[0]} → {right[1]} of {len(found)}"] if exact else []
    said = [_arrow(before, after, j) for j in judges]
    spent = [str(sum(r.spent.evals for r in found)), f"{sum(r.spent.seconds for r in found):.1f}"]
    return ["mean", f"{base:.3f}", f"{best:.3f}", *said, *check, *spent]


def _arrow(before: Sequence[dict[str, float]], after: Sequence[dict[str, float]], judge: str) -> str:
    """A judge's mean, before and after."""
    means = [_mean([v.get(judge, math.nan) for v in vs]) for vs in (before, after)]
    return f"{means[0]:.3f} → {means[1]:.3f}"


def _mean(values: Sequence[float]) -> float:
    """The mean of what was judged; NaN where nothing was."""
    known = [v for v in values if not math.isnan(v)]
    return float(np.mean(known)) if known else math.nan


def _mark(verdicts: dict[str, float]) -> str:
    return {1.0: "right", 0.0: "wrong"}.get(verdicts.get("checker", math.nan), "?")


def _plain(text: str) -> str:
    """On one line, without what would move a terminal's cursor."""
    return "".join(c if c.isprintable() or c in _JOINERS else "\ufffd" for c in " ".join(text.split()))


def _width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    """Two for wide characters, none for those that join others."""
    if character in _JOINERS or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _clipped(text: str, most: int) -> str:
    """The text, or its beginning and … in ``most`` columns."""
    if _width(text) <= most:
        return text
    return text[: sum(taken < most for taken in accumulate(map(_columns, text)))] + "…"


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _width(text))
