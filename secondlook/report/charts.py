"""Charts as inline SVG: best so far against network evaluations. Colours come from the page's style sheet, and no
line rests on colour alone: each has its own dashes and a label at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from secondlook.report.text import clip, count, describe, esc, part, score, verdict
from secondlook.report.view import Prompted, Run, Step, said

WIDTH, HEIGHT = 430, 236
LEFT, RIGHT, TOP, BOTTOM = 34, 106, 12, 42
LABEL_GAP = 15.0
_LABEL = 9  # letters of a name beside its line
_MOST_POINTS = 240  # of a mean curve; more cannot be seen


@dataclass(frozen=True)
class Line:
    """A step curve: each value holds from its place to the next one's. ``last`` is the text at its end, ``kind`` its style
    (score, judge, second or checker)."""

    name: str
    points: Sequence[tuple[float, float]]
    last: str
    kind: str = "score"


@dataclass(frozen=True)
class Frame:
    """Data to drawing coordinates. Scores outside [0, 1] get a range of their own; judge and checker keep [0, 1]."""

    end: float
    low: float = 0.0
    high: float = 1.0

    def x(self, at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at / self.end

    def y(self, value: float, name: str = "score") -> float:
        low, high = (self.low, self.high) if name == "score" else (0.0, 1.0)
        value = min(max(value, low), high)
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    @property
    def shared(self) -> bool:
        return (self.low, self.high) == (0.0, 1.0)


def prompt_chart(prompt: Prompted, drawn: Mapping[str, str]) -> str:
    """One prompt's search: every finished outcome as a dot, and what is said of the best so far as lines: ``drawn`` names
    the measures and their kinds."""
    steps = prompt.steps
    if not steps:
        return '<p class="none">No picture was finished yet.</p>'
    frame = _frame([s.outcome.score for s in steps], steps[-1].at)
    leader = steps[-1].leader
    lines = [Line(m, _track(steps, m, frame.end), _ending(m, said(leader, m)), kind) for m, kind in drawn.items()]
    dots = "".join(_dot(s, frame) for s in steps)
    if prompt.base is not None and not math.isnan(prompt.base.score):
        at = next((s.at for s in steps if s.outcome.id == prompt.base.id), 0)
        dots += _diamond(frame.x(at), frame.y(prompt.base.score))
    first = steps[0].leader
    told = [f"{m} {_ending(m, said(first, m))} to {_ending(m, said(leader, m))}" for m in drawn]
    summary = f"Best so far over {count(frame.end)} network evaluations: {'; '.join(told)}."
    return _svg(frame, lines, dots, summary)


def mean_chart(run: Run) -> str:
    """The same, averaged over all prompts that have a picture; empty where fewer than two have."""
    tracks = [p.steps for p in run.prompts if p.steps]
    if len(tracks) < 2:
        return ""
    # The mean begins where every prompt has a picture, so that it is over the same prompts all along.
    begin, end = max(t[0].at for t in tracks), max(t[-1].at for t in tracks)
    places = np.unique([s.at for t in tracks for s in t if s.at >= begin])
    if len(places) > _MOST_POINTS:
        places = places[np.linspace(0, len(places) - 1, _MOST_POINTS).astype(int)]
    lines = []
    for name, kind in run.drawn.items():
        values = _mean_over(tracks, name, places)
        points = [(float(x), float(y)) for x, y in zip(places, values, strict=True)]
        last = f"{values[-1]:.0%}" if name == "checker" and not math.isnan(values[-1]) else score(float(values[-1]))
        lines.append(Line(name, [*points, (float(end), points[-1][1])], last, kind))
    frame = _frame([y for x, y in lines[0].points], end)
    told = [f"{line.name} {score(line.points[0][1])} to {score(line.points[-1][1])}" for line in lines]
    return _svg(
        frame, lines, "", f"Mean best so far over {count(end)} network evaluations a prompt: {'; '.join(told)}."
    )


def _mean_over(tracks: Sequence[Sequence[Step]], name: str, places: np.ndarray) -> np.ndarray:
    """The mean over prompts at each place, of those that could be judged: [P]."""
    table = np.empty((len(tracks), len(places)))
    for row, steps in zip(table, tracks, strict=True):
        held = np.searchsorted([s.at for s in steps], places, side="right") - 1
        row[:] = np.array([said(s.leader, name) for s in steps])[held]
    known = ~np.isnan(table)
    total = np.where(known, table, 0.0).sum(0)
    mean: np.ndarray = np.divide(total, known.sum(0), out=np.full(len(places), np.nan), where=known.any(0))
    return mean


def _frame(values: Sequence[float], end: float) -> Frame:
    known = [v for v in values if math.isfinite(v)]
    if not known or (min(known) >= 0 and max(known) <= 1):
        return Frame(max(1.0, end))
    low, high = min(known), max(known)
    edge = (high - low) * 0.06 or 1.0
    return Frame(max(1.0, end), low - edge, high + edge)


def _track(steps: Sequence[Step], name: str, end: float) -> list[tuple[float, float]]:
    points = [(float(s.at), said(s.leader, name)) for s in steps]
    return [*points, (end, points[-1][1])]


def _ending(name: str, value: float) -> str:
    return verdict(value) if name == "checker" else score(value)


def _svg(frame: Frame, lines: Sequence[Line], dots: str, summary: str) -> str:
    body = [_axes(frame), *(_curve(line, frame) for line in lines), dots, _labels(lines, frame)]
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg class="chart" {box} role="img" aria-label="{esc(summary)}">{"".join(body)}</svg>'


def _axes(frame: Frame) -> str:
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = frame.low + share * (frame.high - frame.low)
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if share in (0.0, 0.5, 1.0):
            text = f"{value:g}" if frame.shared else f"{value:.3g}".replace("-", "−")
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    foot = HEIGHT - BOTTOM
    for at in _ticks(frame.end):
        parts.append(
            f'<text class="tick" x="{frame.x(at):.1f}" y="{foot + 17}" text-anchor="middle">{count(at)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle:.0f}" y="{foot + 35}" text-anchor="middle">network evaluations</text>')
    return "".join(parts)


def _ticks(end: float) -> list[float]:
    """Round numbers from 0 to ``end``, at most five."""
    step = 10.0 ** math.floor(math.log10(end))
    step = next(s for s in (step / 5, step / 2, step, step * 2) if end / s <= 4.0001 or s == step * 2)
    return [i * max(1.0, step) for i in range(int(end / max(1.0, step)) + 1)]


def _curve(line: Line, frame: Frame) -> str:
    """Steps from left to right; a gap where nothing could be judged."""
    path, previous = [], math.nan
    for at, value in line.points:
        x, y = frame.x(at), math.nan if math.isnan(value) else frame.y(value, line.name)
        if not math.isnan(previous):
            path.append(f"H{x:.1f}")
        if not math.isnan(y) and y != previous:
            path.append(f"M{x:.1f} {y:.1f}" if math.isnan(previous) else f"V{y:.1f}")
        previous = y
    return f'<path class="line {line.kind}" d="{"".join(path)}"/>' if path else ""


def _labels(lines: Sequence[Line], frame: Frame) -> str:
    """Each line's name and last value at its end, moved apart where they would touch."""
    wanted = [(frame.y(line.points[-1][1], line.name), line) for line in lines if not math.isnan(line.points[-1][1])]
    wanted.sort(key=lambda pair: pair[0])
    parts, floor = [], -math.inf
    left = len(wanted)
    for y, line in wanted:
        left -= 1
        place = max(floor, min(y, HEIGHT - BOTTOM - left * LABEL_GAP))
        floor = place + LABEL_GAP
        text = esc(f"{clip(line.name, _LABEL)} {line.last}")
        parts.append(f'<text class="label {line.kind}" x="{WIDTH - RIGHT + 8}" y="{place + 4:.1f}">{text}</text>')
    return "".join(parts)


def _dot(step: Step, frame: Frame) -> str:
    """A finished outcome: filled where the checker says right, hollow where wrong."""
    outcome = step.outcome
    if math.isnan(outcome.score):
        return ""
    right = part(outcome, "checker")
    kind = "dot" if math.isnan(right) or right >= 0.5 else "dot hollow"
    x, y = frame.x(step.at), frame.y(outcome.score)
    return (
        f'<circle class="{kind}" data-o="{outcome.id}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
        f"<title>{esc(describe(outcome))}</title></circle>"
    )


def _diamond(x: float, y: float) -> str:
    return f'<path class="base" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"><title>the unsearched picture</title></path>'
