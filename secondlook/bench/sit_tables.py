"""What `make bench-sit` found: tables, the paper's orderings held against them, and a plot. Reads the job files alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

# 2401.08740, tables 2 to 5 (SiT-B/2, 400K steps, FID-50K): ODE and SDE with w_KL; and table 1 by size (DiT, SiT with the SDE)
PAPER = {
    "DDPM noise": (44.2, None),
    "VP score": (43.6, None),
    "VP score, weighted": (39.1, 35.7),
    "VP velocity": (39.8, 37.8),
    "Linear velocity": (34.8, 33.6),
    "GVP velocity": (34.6, 32.9),
}
PAPER_SIZES = {"S": (68.4, 57.6), "B": (43.5, 33.0), "L": (23.3, 18.8)}
NAMES = {"ode": "ODE, Heun", "euler": "ODE, Euler", "kl": "SDE, w_KL", "kl_eta": "SDE, w_KL,eta", "sigma": "SDE, sigma",
         "sin2": "SDE, sin²"}  # fmt: skip
COLORS = {
    "ode": "#2a78c0",
    "euler": "#7fb2e0",
    "kl": "#c0392b",
    "kl_eta": "#8e44ad",
    "sigma": "#e08e0b",
    "sin2": "#27805a",
}


class Found:
    """All job files: ``fid(rung, size, key)`` is a number a seed, in the order of seeds."""

    def __init__(self, out: Path):
        self.jobs: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        for path in sorted((out / "jobs").glob("*.json")):
            record = json.loads(path.read_text())
            job = record["job"]
            self.jobs.setdefault((job["rung"]["name"], job["size"]), {})[job["seed"]] = record

    def seeds(self, rung: str, size: str, key: str, what: str = "fid") -> dict[int, float]:
        """A number for each seed that has one."""
        found = self.jobs.get((rung, size), {})
        return {s: float(found[s][key][what]) for s in sorted(found) if key in found[s]}

    def values(self, rung: str, size: str, key: str, what: str = "fid") -> np.ndarray:
        return np.array(list(self.seeds(rung, size, key, what).values()))


def spread(values: np.ndarray) -> str:
    """Mean and standard deviation over seeds."""
    if not len(values):
        return "-"
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def ladder(found: Found) -> str:
    lines = ["| path and target | ODE | SDE, w_KL | class seen, ODE | class seen, SDE | paper ODE | paper SDE |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, (ode, sde) in PAPER.items():
        cells = [spread(found.values(name, "B", key)) for key in ("ode", "sde")]
        seen = [spread(found.values(name, "B", key, "right")) for key in ("ode", "sde")]
        lines.append(f"| {name} | {' | '.join(cells + seen)} | {_cell(ode)} | {_cell(sde)} |")
    return "\n".join(lines)


def sizes(found: Found, names: Sequence[str]) -> str:
    lines = ["| size | DiT (DDPM, ancestral) | SiT (Linear velocity, SDE) | SiT, ODE | paper DiT | paper SiT |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for size in names:
        dit, sit, ode = (found.values(r, size, k) for r, k in
                         (("DDPM noise", "sde"), ("Linear velocity", "sde"), ("Linear velocity", "ode")))  # fmt: skip
        paper = PAPER_SIZES[size]
        lines.append(f"| {size} | {spread(dit)} | {spread(sit)} | {spread(ode)} | {paper[0]} | {paper[1]} |")
    return "\n".join(lines)


def curves(found: Found, nfes: Sequence[int]) -> str:
    lines = [f"| NFE | {' | '.join(NAMES.values())} |", "|---" * (len(NAMES) + 1) + "|"]
    for nfe in nfes:
        cells = [spread(found.values("Linear velocity", "B", f"{kind} {nfe}")) for kind in NAMES]
        lines.append(f"| {nfe} | {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Ordering:
    """A claim of the paper's: the second is better (lower) than the first. Held seed against the same seed."""

    text: str
    first: dict[int, float]
    second: dict[int, float]

    @property
    def verdict(self) -> str:
        gaps = np.array([self.first[s] - self.second[s] for s in sorted(self.first.keys() & self.second.keys())])
        if not len(gaps):
            return "not measured"
        mean = gaps.mean()
        if len(gaps) == 1:
            return f"{mean:+.2f} in one seed: undecided"
        word = "holds" if (gaps > 0).all() else "is reversed" if (gaps < 0).all() else "undecided"
        return f"{word} ({mean:+.2f}, seeds {', '.join(f'{g:+.2f}' for g in gaps)})"


def orderings(found: Found, names: Sequence[str], nfes: Sequence[int]) -> str:
    """Each of the paper's orderings and whether every seed agrees with it."""
    b: Callable[[str, str], dict[int, float]] = lambda rung, key: found.seeds(rung, "B", key)  # noqa: E731
    low, high = min(nfes, key=lambda n: abs(n - 16)), max(nfes)
    line = "Linear velocity"
    claims = [
        Ordering("continuous time: VP score before DDPM's discrete noise (ODE)", b("DDPM noise", "ode"), b("VP score", "ode")),
        Ordering("weighting: VP score weighted before unweighted (ODE)", b("VP score", "ode"), b("VP score, weighted", "ode")),
        Ordering("VP velocity before VP score unweighted (ODE)", b("VP score", "ode"), b("VP velocity", "ode")),
        Ordering("interpolant: Linear before VP, velocity (ODE)", b("VP velocity", "ode"), b(line, "ode")),
        Ordering("interpolant: GVP before VP, velocity (ODE)", b("VP velocity", "ode"), b("GVP velocity", "ode")),
        Ordering("GVP before Linear, velocity (ODE; 0.2 in the paper)", b(line, "ode"), b("GVP velocity", "ode")),
        *(Ordering(f"sampler: SDE before ODE, {r}", b(r, "ode"), b(r, "sde")) for r in list(PAPER)[2:]),
        *(Ordering(f"SiT (SDE) before DiT at size {s}", found.seeds("DDPM noise", s, "sde"), found.seeds(line, s, "sde"))
          for s in names),
        *(Ordering(f"SiT: size {b2} before {a}", found.seeds(line, a, "sde"), found.seeds(line, b2, "sde"))
          for a, b2 in pairwise(names)),
        Ordering(f"few evaluations ({low}): ODE before SDE, w_KL", b(line, f"kl {low}"), b(line, f"ode {low}")),
        Ordering(f"many evaluations ({high}): SDE, w_KL before ODE", b(line, f"ode {high}"), b(line, f"kl {high}")),
    ]  # fmt: skip
    rows = "\n".join(f"| {c.text} | {c.verdict} |" for c in claims)
    return f"| the paper says | here (positive: as in the paper) |\n|---|---|\n{rows}"


W, H, LEFT, TOP, RIGHT, BOTTOM = 660, 340, 56, 14, 130, 40


def plot(found: Found, nfes: Sequence[int], floor: float) -> str:
    """Frechet distance against evaluations a sample, both logarithmic: an SVG."""
    curves = {k: [(n, found.values("Linear velocity", "B", f"{k} {n}")) for n in nfes] for k in NAMES}
    flat = [float(v.mean()) for line in curves.values() for _, v in line if len(v)]
    if not flat:
        return ""
    low, high = math.log(min([*flat, floor]) * 0.72), math.log(max(flat) * 1.1)

    def x(nfe: float) -> float:
        return LEFT + math.log(nfe / nfes[0]) / math.log(nfes[-1] / nfes[0]) * (W - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - math.log(max(value, 1e-9))) / (high - low) * (H - TOP - BOTTOM)

    parts = [f'<line x1="{LEFT}" x2="{W - RIGHT}" y1="{y(floor):.1f}" y2="{y(floor):.1f}" stroke="#888" stroke-dasharray="3 4"/>'
             f'<text x="{LEFT + 6}" y="{y(floor) + 14:.1f}">real test pictures</text>']  # fmt: skip
    ticks = [
        t
        for e in range(-3, 4)
        for t in (10.0**e, 2 * 10.0**e, 3 * 10.0**e, 5 * 10.0**e, 7 * 10.0**e)
        if low <= math.log(t) <= high
    ]
    parts += [f'<line x1="{LEFT}" x2="{W - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}" stroke="#8883"/>'
              f'<text x="{LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>' for t in ticks]  # fmt: skip
    parts += [f'<text x="{x(n):.1f}" y="{H - 20}" text-anchor="middle">{n}</text>' for n in nfes]
    ends = sorted((y(float(line[-1][1].mean())), k) for k, line in curves.items() if len(line[-1][1]))
    at = float(TOP)
    for place, kind in ends:  # labels at the lines' ends, kept apart
        at = max(at + 14, place)
        parts.append(f'<text x="{W - RIGHT + 6}" y="{at + 4:.1f}" fill="{COLORS[kind]}">{NAMES[kind]}</text>')
    for kind, line in curves.items():
        points = " ".join(f"{x(n):.1f},{y(float(v.mean())):.1f}" for n, v in line if len(v))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLORS[kind]}" stroke-width="1.8"/>')
        parts += [f'<line x1="{x(n):.1f}" x2="{x(n):.1f}" y1="{y(float(v.min())):.1f}" y2="{y(float(v.max())):.1f}" '
                  f'stroke="{COLORS[kind]}" stroke-opacity=".6"/>' for n, v in line if len(v) > 1]  # fmt: skip
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {H}" width="{W}" font-family="sans-serif" '
            f'font-size="11" fill="#777">{"".join(parts)}<text x="{(LEFT + W - RIGHT) / 2}" y="{H - 4}" '
            'text-anchor="middle">network evaluations a sample; bars: range over seeds</text></svg>\n')  # fmt: skip


def write(out: Path, scale: Any, docs: Path | None, how: str) -> str:
    """The whole report as Markdown; with ``docs`` also docs/results/sit.md and docs/pictures/sit-nfe.svg."""
    from secondlook.bench.sit import ETA, LARGE_SEEDS, floor_score

    found, floor = Found(out), floor_score()
    text = f"""# SiT's orderings in a small world

`make bench-sit`: {how}.

World: Digits (1,442 training pictures of 8 x 8, ten classes). Network of the ladder: 16 tokens, width 64, 4 layers, {scale.steps:,}
steps of 128 pictures, averaged weights, no guidance. Score: Frechet distance in the 64 features of the shipped `digits-features` network
between {scale.samples:,} samples (balanced classes) and all training pictures; lower is better. The 355 real test pictures score {floor:.2f}
by the same measure (fewer of them, so a little too high). "Class seen": share of samples whose class an independent classifier gives at
least probability 1/2. Mean ± standard deviation over {scale.seeds} seeds, {min(scale.seeds, LARGE_SEEDS)} at size L (seed: weights, data order, times; the start noises of the samples are the
same everywhere). These are not ImageNet FIDs and are not comparable with them.

## The ladder ({scale.nfe} evaluations a sample)

{ladder(found)}

The discrete row is sampled on its own steps: DDIM in the ODE column, ancestral sampling in the SDE's.

## DiT against SiT

{sizes(found, scale.sizes)}

S, B, L here: width 32, 64, 96 and 3, 4, 6 layers.

## Evaluations against quality (Linear velocity, size B)

w_KL,eta with eta = {ETA} (the paper does not say its own) and the training loss by time of the same run. The SDE's last step is the paper's (0.04, the drift alone), w_KL bounded to 0.2 / step.

{curves(found, scale.curve)}

![Frechet distance against evaluations](../pictures/sit-nfe.svg)

## Which of the paper's orderings hold here

"Holds" means in every seed (of three, equals would one time in eight), "undecided" that the seeds disagree. Differences are between runs of one seed.

{orderings(found, scale.sizes, scale.curve)}
"""
    (out / "sit.md").write_text(text)
    (out / "sit-nfe.svg").write_text(plot(found, scale.curve, floor))
    if docs is not None:
        (docs / "results").mkdir(parents=True, exist_ok=True)
        (docs / "pictures").mkdir(parents=True, exist_ok=True)
        (docs / "results" / "sit.md").write_text(text)
        (docs / "pictures" / "sit-nfe.svg").write_text((out / "sit-nfe.svg").read_text())
        (docs / "results" / "sit.json").write_text(json.dumps([r for s in found.jobs.values() for r in s.values()]))
    return text
