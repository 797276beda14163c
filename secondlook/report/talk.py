"""A search that listened to a critic, as one reads a chat: picture, what was said of it, the next picture."""

from __future__ import annotations

import math

from secondlook.moves import Fresh
from secondlook.report.pictures import Album
from secondlook.report.shown import Shown
from secondlook.report.text import clip, esc, mark, origin, part, plural
from secondlook.report.view import Prompted

LONG = 400  # letters of a remark that are shown
MOST = 60  # turns that are shown


def conversation(prompt: Prompted, album: Album, pictured: set[int]) -> str:
    """The tries of a prompt and the remarks on them, in the order in which they were drawn; "" where no critic was asked."""
    turns = [o for o in prompt.outcomes if "remark" in o.proposal.asks]
    if not turns:
        return ""
    winner = prompt.winner.id if prompt.winner is not None else None
    items = "".join(_turn(o, o.id == winner, prompt, album, o.id in pictured) for o in turns[:MOST])
    more = len(turns) - MOST
    note = f'<p class="note">{plural(more, "more turn")} not shown.</p>' if more > 0 else ""
    return f'<h3>Conversation</h3><ol class="talk">{items}</ol>{note}'


def _turn(outcome: Shown, won: bool, prompt: Prompted, album: Album, pictured: bool) -> str:
    alt = f"try {outcome.id} for: {clip(prompt.prompt, 80)}"
    picture = album.thumb(outcome.id, alt) if pictured else '<span class="blank">not shown</span>'
    checked = part(outcome, "checker")
    verdict = "" if math.isnan(checked) else f" {mark(checked)}"
    star = "★ " if won else ""
    return (
        f'<li><div class="try">{picture}</div><div><p class="note">{star}outcome {outcome.id}, {_how(outcome)}{verdict}</p>'
        f"{_said(outcome)}</div></li>"
    )


def _how(outcome: Shown) -> str:
    """What a try answers."""
    shown = [f"#{c.outcome}" for c in outcome.proposal.condition.context]
    if not shown:
        return "a fresh draw" if isinstance(outcome.proposal.move, Fresh) else origin(outcome)
    return f"an answer to {' and '.join((', '.join(shown[:-1]), shown[-1])) if len(shown) > 1 else shown[0]}"


def _said(outcome: Shown) -> str:
    remark = outcome.outcome.remark
    if remark is None:
        return '<p class="said mute">The critic gave no remark that could be read.</p>'
    if not remark.text:
        return '<p class="said accepted">Nothing to change: accepted.</p>'
    return f'<p class="said">{esc(clip(remark.text, LONG))}</p>'
