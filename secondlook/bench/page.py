"""The page of a benchmark: curves over budgets and over seconds, and the whole table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from secondlook.bench.curves import Curve
from secondlook.report.audit import Growth, section
from secondlook.report.style import STYLE
from secondlook.report.text import esc

if TYPE_CHECKING:
    from secondlook.bench.suite import Plan

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 510, 290, 44, 196, 14, 40
COLORS = ("#0067a8", "#9a5a00", "#a1347f", "#00704f", "#b3261e", "#5c6067", "#6a51a3", "#00838f")
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4")
MORE = (
    ".bench svg { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; margin: .5rem .5rem .5rem 0; max-width: 100% }"
    " .bench text { font-size: 11px; fill: var(--ink) } .bench table { border-collapse: collapse; font-size: .85rem; display: block; overflow-x: auto }"
    " .bench td, .bench th { padding: .25rem .6rem; border-bottom: 1px solid var(--rule); text-align: left; white-space: nowrap }"
)


def page(plan: Plan, told: Mapping[str, Any], found: Sequence[Curve], command: str, whole: Mapping[str, Any],
         audited: Mapping[str, Growth] = MappingProxyType({})) -> str:  # fmt: skip
    """One HTML document that needs nothing from elsewhere."""
    measure = told["measure"]
    rows = told["rows"]
    names = [c.method for c in found]
    shown = [n for n in ("checker", "judge", "score", "atoms") if n != measure and any(n in r for r in rows)]
    plots = [_plot(rows, names, "budget", measure, f"{measure} over {plan.unit} a prompt", measure)]
    plots.append(_plot(rows, names, "seconds", measure, f"{measure} over seconds a prompt", measure))
    plots += [_plot(rows, names, "budget", n, f"{n} over {plan.unit} a prompt", measure) for n in shown]
    areas = "".join(
        f"<tr><td>{esc(a['method'])}</td><td>{a['area']:.3f} ({a['interval'][0]:.3f} to {a['interval'][1]:.3f})</td><td>"
        + "</td><td>".join(_times(a, name) for name in ("ratio", "seconds_ratio"))
        + "</td></tr>"
        for a in told["areas"]
        if "area" in a
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Benchmark – secondlook</title>\n<style>{STYLE}{MORE}</style>\n</head>\n<body>\n"
        f'<header><p class="brand">secondlook</p><h1>{len(names)} methods on {len(plan.prompts)} prompts</h1>'
        f"<p>{plan.seeds} seeds a prompt; intervals of 95 % over prompts and seeds; p-values of paired differences from "
        f"<code>{esc(told['baseline'])}</code>, corrected for all rows (Holm).</p><p><code>{esc(command)}</code></p></header>\n"
        f'<main class="bench">{"".join(plots)}'
        f"<h2>Area under the curve of {esc(measure)} over the logarithm of {esc(plan.unit)}</h2>"
        f"<table><tr><th>method</th><th>area (95 %)</th><th>as a share of the baseline's (95 %)</th><th>the same over seconds (95 %)</th></tr>{areas}</table>"
        f"<h2>All rows</h2>{_rows(told, plan)}"
        f"{''.join(section(growth, f'Was the verifier fooled? {name}') for name, growth in audited.items())}"
        f"<p class='mute'>secondlook {esc(str(whole['version']))}, commit {esc(str(whole['commit']))}</p></main>\n</body>\n</html>\n"
    )


def _times(area: Mapping[str, Any], name: str) -> str:
    if name not in area:
        return ""
    low, high = area[f"{name}_interval"]
    return f"{area[name]:.3f} ({low:.3f} to {high:.3f})"


def _rows(told: Mapping[str, Any], plan: Plan) -> str:
    from secondlook.bench.suite import table

    lines = [line.strip("| ").split(" | ") for line in table(told, plan).split("\n")]
    head = "".join(f"<th>{esc(cell)}</th>" for cell in lines[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{esc(cell.strip('`*').replace('**', ''))}</td>" for cell in line) + "</tr>"
        for line in lines[2:]
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _plot(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], axis: str, value: str, what: str, measure: str
) -> str:
    """Lines over the logarithm of ``axis``, with the measure's intervals; the legend's order is that of their ends."""
    lines = {n: [(r[axis], r[value]) for r in rows if r["method"] == n and value in r and r[axis] > 0] for n in names}
    points = [p for line in lines.values() for p in line]
    if not points:
        return ""
    xs, ys = [math.log(x) for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    edge = (high - low) * 0.06 or 0.05
    low, high = (max(0.0, low - edge) if low >= 0 else low - edge), high + edge
    begin, end = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1

    def at(x: float, y: float) -> str:
        return (
            f"{LEFT + (WIDTH - LEFT - RIGHT) * (math.log(x) - begin) / (end - begin):.1f},"
            f"{TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low):.1f}"
        )

    parts = []
    for y in np.linspace(low, high, 5):
        px = at(math.exp(begin), float(y)).split(",")[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{px}" y2="{px}" stroke="var(--grid)"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{px}" text-anchor="end" dy="4">{y:.2f}</text>')
    for x in sorted({x for x, _ in points}) if axis == "budget" else np.geomspace(math.exp(begin), math.exp(end), 5):
        px = at(float(x), low).split(",")[0]
        parts.append(
            f'<text x="{px}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{f"{x:g}" if axis == "budget" else f"{x:.3g}"}</text>'
        )
    spans = {(r["method"], r[axis]): r["interval"] for r in rows if "interval" in r and value == measure and axis in r}
    for k, name in enumerate(names):
        if not lines[name]:
            continue
        color = COLORS[k % len(COLORS)]
        style = f'stroke="{color}" stroke-dasharray="{DASHES[k // len(COLORS) % len(DASHES)]}"'
        path = " ".join(at(*p) for p in lines[name])
        parts.append(f'<polyline fill="none" stroke-width="2" {style} points="{path}"/>')
        for x, y in lines[name]:
            px, py = at(x, y).split(",")
            parts.append(f'<circle cx="{px}" cy="{py}" r="3" fill="{color}"/>')
            if (name, x) in spans:
                ends_at = [at(x, min(max(v, low), high)).split(",")[1] for v in spans[name, x]]
                parts.append(
                    f'<line x1="{px}" x2="{px}" y1="{ends_at[0]}" y2="{ends_at[1]}" stroke="{color}" opacity=".45"/>'
                )
    ends = sorted((n for n in names if lines[n]), key=lambda n: -lines[n][-1][1])
    for place, name in enumerate(ends):
        y, k = TOP + 12 + 16 * place, list(names).index(name)
        parts.append(
            f'<line x1="{WIDTH - RIGHT + 8}" x2="{WIDTH - RIGHT + 28}" y1="{y - 4}" y2="{y - 4}" stroke-width="2" '
            f'stroke="{COLORS[k % len(COLORS)]}" stroke-dasharray="{DASHES[k // len(COLORS) % len(DASHES)]}"/>'
            f'<text x="{WIDTH - RIGHT + 32}" y="{y}">{esc(name if len(name) < 27 else name[:25] + "…")}</text>'
        )
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">{esc(what)}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{esc(what)}">{"".join(parts)}</svg>'
