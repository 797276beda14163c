"""The page around the prompts: header with the summary, overview, foot."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from typing import Any

from secondlook.report.audit import MOST, grown, section
from secondlook.report.charts import mean_chart
from secondlook.report.family import SMALL, Cell
from secondlook.report.pictures import Album
from secondlook.report.prompt import LONGEST, NAME, change, chart_key, prompt_section
from secondlook.report.text import clip, count, esc, mark, part, plural, score, seconds
from secondlook.report.view import Prompted, Run, both, mean
from secondlook.types import UNIT_LABELS

MANY = 12  # prompts; above this the page begins with an overview and folds the details
MOST_PICTURES = 6000  # thumbnails of candidates on one page
MOST_LARGE = 800  # the same of large pictures, which take more room and time
_SCORE = "the guiding verifier's number, higher is better; – where it could not judge"
_JUDGE = "a second verifier; where the score rises and this does not, the guiding one may be fooled"
_CHECKER = "the world's exact check of the picture against the prompt; it did not guide unless labelled oracle"
_WORDS = {
    "unsearched": "the picture of the prompt's first noise: what one gets without a search",
    "network evaluations": "passes of the network; guidance makes two of each solver evaluation (NFE)",
    "near": "a neighbour: the parent's starting noise turned a little",
    "turned by": "the parent's starting noise mixed with new noise, by an angle; less than a right angle keeps some of it",
    "blend of": "new noise that has the coarse parts of several earlier ones in it",
    "back to t": "the parent's half-made picture, re-noised to an earlier time (0 is noise, 1 a picture) and run on",
}


def page_body(run: Run, album: Album) -> str:
    many = len(run.prompts) > MANY
    frame = album.frame(_names(run))
    shown = _pictured(run, MOST_PICTURES if frame is None else MOST_LARGE)
    album.expect(len(run.prompts), len(shown))
    cell, room = SMALL, ""
    if frame is not None:
        cell, room = Cell.around(*frame), f' class="large" style="--w:{frame[0]}px;--h:{frame[1]}px"'
    sections = [prompt_section(run, p, album, shown, many, cell) for p in run.prompts]
    overview = _overview(run.prompts, album) if many else ""
    return f"{_header(run)}<main{room}>{_mean(run)}{_audit(run, album, frame is None)}{overview}{''.join(sections)}</main>{_foot(run, album)}"


def title(run: Run) -> str:
    return f"{plural(len(run.prompts), 'prompt')} · {run.config.get('plan', 'search')}"


def _names(run: Run) -> list[int | str]:
    """All pictures of a run."""
    drawn = [i for i, digest in run.record.digests.items() if digest is not None]
    return [*drawn, *(p.base_file for p in run.prompts if p.base_file is not None)]


def _pictured(run: Run, most: int) -> set[int]:
    """The candidates shown with a picture: all, or in a very large run each prompt's winning line and first ones."""
    share = max(1, most // max(1, len(run.prompts)))
    shown: set[int] = set()
    for p in run.prompts:
        order = [o.id for o in p.outcomes if run.record.digests.get(o.id) is not None]
        line = p.line
        shown.update(sorted(order, key=lambda i: i not in line)[:share])
    return shown


# ---- header ----------------------------------------------------------------------------------------------------------


def _header(run: Run) -> str:
    c = run.config
    facts = [
        ("plan", c.get("plan")),
        ("verifier", c.get("verifier")),
        ("budget per prompt", _budget(c.get("budget") or {})),
        ("model", c.get("model")),
        ("solver", _solver(c)),
        ("guidance", c.get("guidance")),
        ("seed", c.get("seed")),
        ("pipeline", _pipeline(c.get("pipeline") or {})) if c.get("pipeline") else ("world", c.get("world")),
    ]
    rows = "".join(f"<div><dt>{k}</dt><dd>{esc(v)}</dd></div>" for k, v in facts if v not in (None, ""))
    oracle = (
        '<p class="label oracle"><b>oracle: not a method</b> The exact checker, or the network that '
        "sets of pictures are measured with, guided this search: what a perfect verifier would choose among finished pictures. "
        "A plan that looks at half-made ones may do worse by it than by a learned one.</p>"
        if run.oracle
        else ""
    )
    return (
        f'<header><p class="brand">secondlook</p><h1>{plural(len(run.prompts), "prompt")}, searched</h1>'
        f'{_state(run)}{oracle}<dl class="facts">{rows}</dl>{_summary(run)}</header>'
    )


def _pipeline(p: dict[str, Any]) -> str:
    """What was drawn with, where that came from outside."""
    return f"{p.get('pipeline')}, {p.get('width')} x {p.get('height')}, {p.get('dtype')} on {p.get('device')}"


def _budget(budget: dict[str, Any]) -> str:
    limits = [f"{v:,g} {UNIT_LABELS.get(k, k)}" for k, v in budget.items() if v is not None]
    return ", ".join(limits) or "none: the plan ends by itself"


def _solver(config: dict[str, Any]) -> str:
    solver, steps = str(config.get("solver") or ""), config.get("steps")
    return f"{solver}, {steps} steps" if steps is not None and "steps" not in solver else solver


def _state(run: Run) -> str:
    if run.record.done:
        asked = [o for o in run.record.outcomes.values() if "score" in o.proposal.asks]
        scored = not asked or any(o.score is not None and not math.isnan(o.score) for o in asked)
        return f'<p class="label done"><b>finished{"" if scored else ", nothing scored"}</b></p>'
    ended = sum(p.ended is not None for p in run.prompts)
    command = esc(f"secondlook resume {shlex.quote(str(run.folder))}")
    return (
        f'<p class="label open"><b>interrupted</b> {ended} of {plural(len(run.prompts), "prompt")} had ended when this '
        f"page was written. Nothing is lost; go on with <code>{command}</code></p>"
    )


def _summary(run: Run) -> str:
    """From the unsearched picture to the winner, over the prompts that have both."""
    tiles = []
    pairs = {name: both(run, name) for name in run.measures}
    order = [m for m in ("score", "checker", *run.judges) if pairs.get(m)]
    for name in order:
        before, after = zip(*pairs[name], strict=True)
        n = len(before)
        if name == "checker":
            right = [sum(v >= 0.5 for v in side) for side in (before, after)]
            tiles.append(_tile("checker right", change(str(right[0]), str(right[1])), f"of {plural(n, 'prompt')}"))
        else:
            gain = mean(after) - mean(before)
            title = f"{run.guide or 'verifier'} score, mean" if name == "score" else f"{clip(name, NAME)}, mean"
            tiles.append(
                _tile(title, change(score(mean(before)), score(mean(after))), _gain(gain, n, len(run.pairs) - n))
            )
    spent = run.spent()
    pictures = sum(o.finished for o in run.record.outcomes.values())
    cost = f"{plural(pictures, 'picture')} in {seconds(spent.seconds)}"
    tiles.append(_tile("network evaluations", count(spent.evals), cost))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _gain(gain: float, n: int, unjudged: int) -> str:
    sign, rest = "+" if gain >= 0 else "", f"; {count(unjudged)} not judged" if unjudged else ""
    return f"{sign}{score(gain)} over {plural(n, 'prompt')}{rest}"


def _tile(name: str, value: str, note: str) -> str:
    head = f'<p class="name">{esc(name)}</p><p class="value">{value}</p>'
    return f'<div class="tile">{head}<p class="note">{esc(note)}</p></div>'


def _mean(run: Run) -> str:
    chart = mean_chart(run)
    if not chart:
        return ""
    return (
        '<section class="overall"><div><h2>The search, on average</h2><p class="note">What is said of the best picture '
        "so far, mean over the prompts, against the network evaluations spent on each prompt. It begins where every "
        f'prompt has a picture.</p>{chart_key(run, True)}</div><figure class="plot">{chart}</figure></section>'
    )


def _audit(run: Run, album: Album, small: bool) -> str:
    """Whether the verifier was fooled. Large pictures take long to read, so that fewer are compared."""
    return section(grown(run.record, len(run.prompts), run.guide or "score", None, album.pixels, MOST if small else 8))


def _overview(prompts: Sequence[Prompted], album: Album) -> str:
    """All prompts at a glance: unsearched and searched picture, linked to the details."""
    tiles = "".join(_glance(p, album) for p in prompts)
    switch = '<p class="switch"><button type="button" data-fold="open" hidden>Unfold all details</button></p>'
    return f'<section><h2>All prompts</h2><ol class="overview">{tiles}</ol></section><h2>Details</h2>{switch}'


def _glance(p: Prompted, album: Album) -> str:
    pictures = []
    if p.base is not None and p.base_file is not None:
        pictures.append(album.thumb(p.base_file, "Unsearched"))
    if p.winner is not None:
        pictures.append(album.thumb(p.winner.id, "Winner" if p.won else "Not judged"))
    base = p.base.score if p.base is not None else math.nan
    numbers = "no picture yet"
    if p.winner is not None:
        signs = (
            change(mark(part(p.base, "checker")) or "–", mark(part(p.winner, "checker"))) if p.base is not None else ""
        )
        signs = signs if "checker" in p.winner.said else ""
        numbers = f"<span>{change(score(base), score(p.winner.score))}</span><span>{signs}</span>"
    return (
        f'<li><a href="#p{p.index}"><span class="shots">{"".join(pictures)}</span><span class="what">'
        f'<span class="no-of">{p.index + 1}</span> {esc(clip(p.prompt, LONGEST))}</span><span class="nums">{numbers}</span></a></li>'
    )


# ---- foot ------------------------------------------------------------------------------------------------------------


def _foot(run: Run, album: Album) -> str:
    folder = shlex.quote(str(run.folder))
    blocks = [f"<h2>Repeat this run</h2>{_code(run.config.get('command') or 'The log holds no command.')}"]
    blocks.append(
        '<p class="note">Any one picture can be drawn again from its derivation, and held against the log:</p>'
        + _code(f"secondlook replay {folder} {_example(run)}")
    )
    blocks += [_failures(run), _faults(album), _configuration(run)]
    words = "".join(f"<div><dt>{esc(k)}</dt><dd>{v}</dd></div>" for k, v in _words(run).items())
    blocks.append(
        f'<details class="plain"><summary>Words on this page</summary><dl class="words">{words}</dl></details>'
    )
    return f"<footer>{''.join(blocks)}</footer>"


def _words(run: Run) -> dict[str, str]:
    """The page's words: those of the run's measures, then those that every page has."""
    fixed = {"score": _SCORE, "checker": _CHECKER}
    return {clip(m, NAME): fixed.get(m, _JUDGE) for m in run.measures} | _WORDS


def _example(run: Run) -> str:
    won = next((p.winner for p in run.prompts if p.winner is not None), None)
    return str(won.id) if won is not None else "ID"


def _code(text: object) -> str:
    button = '<button type="button" data-copy hidden>Copy</button>'
    return f'<div class="code"><pre tabindex="0"><code>{esc(text)}</code></pre>{button}</div>'


def _failures(run: Run) -> str:
    if not run.record.failures:
        return ""
    items = []
    for failure in run.record.failures:
        trace = str(failure.get("traceback") or failure.get("plan") or failure.get("error") or failure)
        last = trace.strip().splitlines()[-1] if trace.strip() else "no traceback"
        name = esc(
            next(
                (str(failure[k]) for k in ("verifier", "judge", "critic", "comparer") if k in failure),
                f"outcome {failure['outcome']}" if "row" in failure else "a part of the run",
            )
        )
        items.append(
            f'<details><summary><b>{name}</b> {esc(last)}</summary><pre tabindex="0">{esc(trace)}</pre></details>'
        )
    head = f'<h2>{plural(len(items), "failure")}</h2><p class="note">What failed was scored –, never 0.</p>'
    return f'<section class="failures">{head}{"".join(items)}</section>'


def _faults(album: Album) -> str:
    """Pictures that are not on disk as the log has them."""
    if not album.faults:
        return ""
    listed = ", ".join(f"{esc(name)} ({fault})" for name, fault in list(album.faults.items())[:20])
    more = f" and {len(album.faults) - 20} more" if len(album.faults) > 20 else ""
    return (
        f'<section class="failures"><h2>{plural(len(album.faults), "picture")} could not be shown</h2>'
        f'<p class="note">{listed}{more}. <code>secondlook replay</code> can draw them again.</p></section>'
    )


def _configuration(run: Run) -> str:
    """Every setting of the run, then the versions it ran with."""
    plain = {k: v for k, v in run.config.items() if k not in ("prompts", "versions", "command")}
    rows = {k: _setting(v) for k, v in plain.items()}
    rows |= {f"{k} (version)": str(v) for k, v in (run.config.get("versions") or {}).items()}
    body = "".join(f'<tr><th scope="row">{esc(k)}</th><td>{esc(v)}</td></tr>' for k, v in rows.items())
    table = f'<table class="settings"><tbody>{body}</tbody></table>'
    scroll = f'<div class="scroll" tabindex="0" role="group" aria-label="Configuration">{table}</div>'
    return f'<details class="plain"><summary>Configuration and versions</summary>{scroll}</details>'


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} = {_setting(v)}" for k, v in value.items())
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
