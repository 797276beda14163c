"""The training curve as an SVG: python benchmarks/plot_loss.py docs/results/base-loss.jsonl docs/pictures/loss.svg"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

W, H, LEFT, TOP, RIGHT, BOTTOM = 640, 260, 52, 14, 12, 34
TICKS = (0.05, 0.1, 0.2, 0.5, 1.0)


def curve(points: list[tuple[int, float]]) -> str:
    """Loss (logarithmic) against step, from (step, loss) pairs."""
    last, low, high = points[-1][0], math.log(0.04), math.log(max(v for _, v in points) * 1.1)

    def at(step: float, loss: float) -> tuple[float, float]:
        x = LEFT + step / last * (W - LEFT - RIGHT)
        return x, TOP + (high - math.log(loss)) / (high - low) * (H - TOP - BOTTOM)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in points))
    marks = [f'<line x1="{LEFT}" x2="{W - RIGHT}" y1="{at(0, t)[1]:.1f}" y2="{at(0, t)[1]:.1f}" stroke="#8884"/>'
             f'<text x="{LEFT - 6}" y="{at(0, t)[1] + 4:.1f}" text-anchor="end">{t}</text>' for t in TICKS]  # fmt: skip
    marks += [
        f'<text x="{at(s, 1)[0]:.1f}" y="{H - 14}" text-anchor="middle">{s}</text>' for s in range(0, last + 1, 500)
    ]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {H}" width="{W}" font-family="sans-serif" '
            f'font-size="11" fill="#777">{"".join(marks)}<polyline points="{line}" fill="none" stroke="#2a78c0" '
            f'stroke-width="1.5"/><text x="{W / 2}" y="{H - 1}" text-anchor="middle">step (velocity loss, mean of ten '
            "steps)</text></svg>\n")  # fmt: skip


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    records = [json.loads(line) for line in source.read_text().splitlines()]
    target.write_text(curve([(r["step"], r["loss"]) for r in records]))
