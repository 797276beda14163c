"""Words and numbers as the report prints them. Whatever comes from a run passes through ``esc``."""

from __future__ import annotations

import html
import math
import re

from secondlook.report.shown import Shown

UNJUDGED = "–"
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def esc(value: object) -> str:
    """Safe as text and inside a quoted attribute. What a page may not hold (controls, lone surrogates) becomes �."""
    return html.escape(_UNFIT.sub("\ufffd", str(value)), quote=True)


def clip(text: str, most: int) -> str:
    """The text, or its beginning and … where it is longer than ``most``; broken between words if one ends near there."""
    if len(text) <= most:
        return text
    head = text[: most - 1]
    near = max(head.rfind(" "), head.rfind("\n"))
    return (head[:near] if near > 0.8 * most else head).rstrip() + "…"


def count(value: float) -> str:
    """A whole number with thousands apart."""
    return f"{value:,.0f}"


def score(value: float | None) -> str:
    """A verifier's number in a width that suits its size; a dash where it could not judge."""
    if value is None or math.isnan(value):
        return UNJUDGED
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    digits = 3 if abs(value) < 10 else 1
    return f"{value:.{digits}f}".replace("-", "−")


def seconds(value: float) -> str:
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def plural(number: int, noun: str) -> str:
    return f"{count(number)} {noun}" if number == 1 else f"{count(number)} {noun}s"


def verdict(value: float) -> str:
    """The checker's number as a word."""
    return "not judged" if math.isnan(value) else "right" if value >= 0.5 else "wrong"


def mark(value: float) -> str:
    """The checker's verdict as a sign that does not rest on colour; nothing where there is none."""
    if math.isnan(value):
        return ""
    return '<b class="ok" aria-hidden="true">✓</b>' if value >= 0.5 else '<b class="no" aria-hidden="true">✗</b>'


def part(outcome: Shown, name: str) -> float:
    """What a judge said of an outcome; NaN where it said nothing."""
    return outcome.said.get(name, math.nan)


def parent(outcome: Shown) -> int | None:
    """The outcome this one was made from, if any."""
    return next(iter(outcome.proposal.move.parents), None)


def origin(outcome: Shown) -> str:
    """How an outcome came about, in a few words."""
    return outcome.proposal.move.describe()


def describe(outcome: Shown) -> str:
    """An outcome in one line: the text for those who do not see its picture."""
    words = [f"Outcome {outcome.id}", origin(outcome)]
    if not outcome.finished:
        words.append(f"half-made, to t {_short(outcome.proposal.stop)}")
    if "score" in outcome.proposal.asks:
        words.append("could not be scored" if math.isnan(outcome.score) else f"score {score(outcome.score)}")
    words += [f"{k} {verdict(v) if k == 'checker' else score(v)}" for k, v in outcome.said.items()]
    remark = outcome.outcome.remark
    if remark is not None:
        words.append(f"remark: {remark.text or 'nothing to change'}")
    return "; ".join(words)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
