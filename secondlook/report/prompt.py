"""One prompt's part of the page: the pair, the chart, the ledger, the family tree."""

from __future__ import annotations

import math
from dataclasses import asdict

from secondlook.report.charts import prompt_chart
from secondlook.report.family import SMALL, Cell, family_tree
from secondlook.report.pictures import Album
from secondlook.report.shown import Shown
from secondlook.report.talk import conversation
from secondlook.report.text import clip, count, describe, esc, mark, part, plural, score, seconds, verdict
from secondlook.report.view import Prompted, Run
from secondlook.types import UNIT_LABELS

NAME = 40  # letters of a judge's name
LONGEST = 160  # letters of a prompt in a heading; the whole of a longer one stands below


def prompt_section(
    run: Run, prompt: Prompted, album: Album, pictured: set[int], folded: bool, cell: Cell = SMALL
) -> str:
    """A prompt with all that is known of it; ``folded`` where the page holds many."""
    title = f'<span class="no-of">{prompt.index + 1}</span> {esc(clip(prompt.prompt, LONGEST))}'
    key = chart_key(run, full=len(run.prompts) == 1) if prompt.steps else ""  # else the average explains the lines
    body = (
        f'<div class="body">{_whole(prompt.prompt)}<p class="note">{_status(prompt)}</p>'
        f'<div class="two"><div class="seen">{_pair(run, prompt, album)}</div>'
        f'<figure class="plot">{prompt_chart(prompt, run.drawn)}<figcaption>{key}</figcaption></figure>'
        f'<div class="paid">{_ledger(run, prompt)}</div></div>{conversation(prompt, album, pictured)}'
        f"{_candidates(run, prompt, album, pictured, cell)}</div>"
    )
    if not folded:
        return f'<section class="prompt" id="p{prompt.index}"><h2>{title}</h2>{body}</section>'
    # The anchor lies inside, since browsers open a fold for a target within it.
    anchor = f'<span class="anchor" id="p{prompt.index}"></span>'
    head = f'<h2>{title}</h2><span class="gist">{_gist(prompt)}</span>'
    return f'<details class="prompt"><summary>{head}</summary>{anchor}{body}</details>'


def _whole(prompt: str) -> str:
    """What a heading clipped, to unfold."""
    if len(prompt) <= LONGEST:
        return ""
    return f'<details class="whole"><summary>The whole prompt</summary><p>{esc(prompt)}</p></details>'


def change(before: str, after: str) -> str:
    """Two values with an arrow that is read out as a word."""
    return f'{before}<span class="to" role="img" aria-label=" to ">→</span>{after}'


def _gist(prompt: Prompted) -> str:
    if prompt.winner is None:
        return "no picture yet"
    base = prompt.base.score if prompt.base is not None else math.nan
    return f"{change(score(base), score(prompt.winner.score))} {mark(part(prompt.winner, 'checker'))}"


def _status(prompt: Prompted) -> str:
    half = sum(not o.finished for o in prompt.outcomes)
    made = plural(len(prompt.outcomes) - half, "picture") + (f" and {half} half-made" if half else "")
    if prompt.ended is None:
        return f"Not finished: {made} so far." if prompt.outcomes else "Not begun."
    if "reached" in prompt.ended:
        return f"{made}; one was good enough (a score of {prompt.ended['reached']:g} or more)."
    why = "its budget was spent" if prompt.ended.get("out_of_budget") else "the plan came to its end"
    return f"{made}; {why}."


def _pair(run: Run, prompt: Prompted, album: Album) -> str:
    """The unsearched picture beside the winner."""
    base, winner = prompt.base, prompt.winner
    figures = []
    if base is not None and prompt.base_file is not None:
        figures.append(_figure("Unsearched", base, prompt.base_file, prompt, album, run))
    if winner is not None:
        figures.append(_figure("★ Winner" if prompt.won else "Not judged", winner, winner.id, prompt, album, run))
    if not figures:
        return ""  # the chart's place says so
    same = base is not None and winner is not None and base.id == winner.id
    note = '<p class="note">The search found nothing better than the unsearched picture.</p>' if same else ""
    if (
        winner is not None
        and all(math.isnan(o.score) for o in prompt.outcomes)
        and any("score" in o.proposal.asks for o in prompt.outcomes)
    ):
        note = '<p class="note">No picture has a score, so nothing was searched: the first one stands.</p>'
    return f'<div class="pair">{"".join(figures)}</div>{note}'


def _figure(title: str, outcome: Shown, name: str | int, prompt: Prompted, album: Album, run: Run) -> str:
    alt = f"{title.removeprefix('★ ')} picture for: {clip(prompt.prompt, LONGEST)}"
    facts = [(run.guide or "score", score(outcome.score), "score")]
    facts += [(clip(k, NAME), score(v), "") for k, v in outcome.outcome.components.items()]
    for key, value in outcome.said.items():
        said = f"{verdict(value)} {mark(value)}" if key == "checker" else score(value)
        facts.append((clip(key, NAME), said, run.drawn.get(key, "")))
    rows = "".join(f'<div class="{kind}"><dt>{esc(k)}</dt><dd>{v}</dd></div>' for k, v, kind in facts)
    number = f"outcome {outcome.id}" if outcome.id >= 0 else "drawn apart"
    kind = "shot won" if title.startswith("★") else "shot"
    told = (
        f'<strong title="{esc(describe(outcome))}">{title}</strong> <span class="mute">{number}</span><dl>{rows}</dl>'
    )
    picture, link = album.large(name, alt), album.link(name)
    if link is not None:
        picture = f'<a href="{esc(link[0])}">{picture}</a>'
        told = f'<a class="file" href="{esc(link[0])}">full size, {link[1]}</a>{told}'
    return f'<figure class="{kind}"><div class="big">{picture}</div><figcaption>{told}</figcaption></figure>'


def _ledger(run: Run, prompt: Prompted) -> str:
    """What was spent of what was allowed. The unsearched picture's own cost stands beside, since nobody charged it."""
    budget = run.config.get("budget") or {}
    spent, base = asdict(prompt.spent), asdict(prompt.base_cost) if prompt.base_cost is not None else None
    rows = []
    for unit, name in UNIT_LABELS.items():
        limit = budget.get(unit)
        if unit in ("remarks", "comparisons", "backward") and limit is None and not spent[unit]:
            continue
        cells = [_amount(unit, spent[unit]), _limit(unit, spent[unit], limit)]
        cells += [_amount(unit, base[unit])] if base is not None else []
        rows.append(f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    extra, note = "", ""
    if base is not None:
        extra = '<th scope="col">Unsearched</th>'
        note = '<p class="note">The unsearched picture was drawn apart and is not charged to the search.</p>'
    head = f'<tr><th scope="col">Ledger</th><th scope="col">Spent</th><th scope="col">Budget</th>{extra}</tr>'
    table = f'<table class="ledger"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="scroll" tabindex="0" role="group" aria-label="Ledger">{table}</div>{note}'


def _amount(unit: str, value: float) -> str:
    return seconds(value) if unit == "seconds" else count(value)


def _limit(unit: str, spent: float, limit: float | None) -> str:
    if limit is None:
        return '<span class="mute">no limit</span>'
    share = min(100.0, 100.0 * spent / limit) if limit > 0 else 100.0
    return f'{_amount(unit, limit)}<span class="bar" aria-hidden="true"><i style="width:{share:.0f}%"></i></span>'


def chart_key(run: Run, full: bool) -> str:
    """What lines and dots of the charts mean; lines are labelled in place, so ``full`` is wanted only once."""
    apart = ", on a scale from 0 to 1" if run.apart else ""
    lines = {m: f"{esc(clip(m, NAME))}'s, which {_guided(run, m)}{apart}" for m in run.judges} | {
        "score": "the guiding verifier's score",
        "checker": f"the exact checker's verdict: 0 wrong, 1 right{apart}",
    }
    if "judge" in lines:
        lines["judge"] = f"the judge's, who {_guided(run, 'judge')}{apart}"
    shown = "".join(
        f'<li><svg width="26" height="8" aria-hidden="true"><path class="line {kind}" d="M1 4H25"/></svg>'
        f"<span>{lines[m]}</span></li>"
        for m, kind in run.drawn.items()
        if full
    )
    dots = "dots: each finished picture's score"
    if "checker" in run.measures:
        dots += ", ● checker right, ○ wrong"
    return f'<ul class="key">{shown}<li><span>{dots}; ◇ unsearched</span></li></ul>'


def _guided(run: Run, name: str) -> str:
    return "guided here" if run.verifier == name else "did not guide"


def _candidates(run: Run, prompt: Prompted, album: Album, pictured: set[int], cell: Cell) -> str:
    families = family_tree(prompt, album, pictured, cell)
    left_out = sum(o.id not in pictured and run.record.digests[o.id] is not None for o in prompt.outcomes)
    note = ""
    if left_out:
        note = f'<p class="note">{count(left_out)} candidates are listed without picture, to keep the page small.</p>'
    won = f' <a href="#o{prompt.winner.id}">to the winner</a>' if prompt.winner is not None and prompt.won else ""
    return f'<h3>Candidates{won}</h3>{note}<div class="box">{families}</div>'
