"""Search where everything is known: events of known base rate on the exact mixture, and what a one-step estimate of a value is worth.

Needles: a sample within a ball whose probability under the data is p. Evaluations until a plan has drawn one, beside best of n's
1 - (1 - p)^n at as many evaluations a sample. Values: paths drawn by children in proportion to exp(value), once with the one-step estimate
r(E[data | x]) for the value and once with log E[exp r(data) | x] itself (2606.02884); what both lead to beside the tilted law.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from scipy.optimize import brentq
from scipy.stats import ncx2
from torch import Tensor

from secondlook.disk.versions import commit
from secondlook.flow.path import Linear
from secondlook.testing.exact import play
from secondlook.worlds.mixture import Mixture, Reward, default_mixture

PLANS = ("random(n=1000)", "zero_order", "children", "svdd", "particles", "fk", "bfs", "rollover(noises=10, evaluations=100)",
         "depth_first(above=-0.2)", "beam", "tree")  # fmt: skip
RATES = {0.1: 200, 0.01: 600, 0.001: 1200}  # base rate: the most evaluations of a search
STEPS = 10
CENTRE = torch.tensor([1.0, -2.0], dtype=torch.float64)
LINE = Mixture.of((0.7, 0.3), ((-1.0,), (2.0,)), (0.5, 0.5))
PATH = Linear()


def radius(world: Mixture, rate: float) -> float:
    """The radius of the ball around CENTRE that holds a share ``rate`` of the data."""
    squares = ((world.means - CENTRE).square().sum(1) / world.scales.square()).tolist()

    def inside(r: float) -> float:
        parts = zip(world.weights.tolist(), world.scales.tolist(), squares, strict=True)
        return sum(w * float(ncx2.cdf((r / s) ** 2, world.dim, gap)) for w, s, gap in parts)

    return float(brentq(lambda r: inside(r) - rate, 1e-4, 20.0))


def evaluations(plan: str, judge: Callable[[Tensor], Tensor], r: float, most: int, seed: int) -> float:
    """Evaluations until the plan has a finished sample in the ball; infinite where it has none within ``most``."""
    hit = partial(near, r=r)
    played = play(plan, default_mixture(), judge, steps=STEPS, budget={"nfe": most}, seed=seed, until=hit)
    return min(
        (played.after[o.id] for o in played.outcomes if o.finished and hit(played.samples[o.id])), default=math.inf
    )


def near(x: Tensor, r: float) -> bool:
    return float((x.double() - CENTRE).norm()) < r


def graded(x: Tensor) -> Tensor:
    return -(x - CENTRE).norm(dim=1)


def needles(seeds: int) -> list[str]:
    """A table: of each plan the share of runs with a success, and the median of evaluations."""
    rates = [*RATES, 0.1]
    judges: list[Callable[[Tensor], Tensor]] = [graded] * len(RATES)
    within = radius(default_mixture(), 0.1)
    judges.append(lambda x: (-graded(x) < within).double())
    heads = [f"p = {p:g}, {RATES[p]} evaluations" for p in RATES] + [
        f"p = 0.1, {RATES[0.1]}, score 1 inside and 0 outside"
    ]
    rows = ["| plan | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    line = [f"{1 - (1 - p) ** (RATES[p] // STEPS):.2f}, {STEPS * math.log(0.5) / math.log1p(-p):.0f}" for p in rates]
    rows.append("| best of n, 1 - (1 - p)^n | " + " | ".join(line) + " |")
    for plan in PLANS:
        cells = []
        for p, judge in zip(rates, judges, strict=True):
            found = [evaluations(plan, judge, radius(default_mixture(), p), RATES[p], seed) for seed in range(seeds)]
            middle = statistics.median_low(sorted(found))
            share = sum(map(math.isfinite, found)) / seeds
            cells.append(f"{share:.2f}, {'more' if middle == math.inf else f'{middle:.0f}'}")
        rows.append(f"| `{plan}` | " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    return rows


def value(reward: Reward, exact: bool) -> Callable[[Tensor, Tensor], Tensor]:
    tilted, log_z = LINE.tilted(reward), LINE.log_normaliser(reward)
    if not exact:
        return lambda x, t: reward(LINE.posterior_mean(PATH, x, t))
    return lambda x, t: log_z + tilted.log_density(PATH, x, t) - LINE.log_density(PATH, x, t)


def steered(worth: Callable[[Tensor, Tensor], Tensor] | None, rows: int, children: int, steps: int) -> Tensor:
    """``rows`` samples [rows] of the SDE (w_KL) of which each step's child is drawn among ``children`` by exp(worth)."""
    g = torch.Generator().manual_seed(0)
    x, dt = torch.randn(rows, 1, generator=g).double(), 1 / steps
    for i in range(steps):
        t = torch.full((rows,), i * dt).double()
        w = min(2 * (1 - i * dt) / max(i * dt, 1e-9), 0.2 / dt)
        mean = x + dt * (LINE.velocity(PATH, x, t) + 0.5 * w * LINE.logp_grad(PATH, x, t))
        family = mean[:, None] + (w * dt) ** 0.5 * torch.randn(rows, children, 1, generator=g).double()
        chosen = torch.zeros(rows, dtype=torch.long)
        if worth is not None and i < steps - 1:
            then = torch.full((rows * children,), (i + 1) * dt).double()
            worths = worth(family.reshape(-1, 1), then).reshape(rows, children)
            chosen = torch.multinomial(worths.softmax(1), 1, generator=g)[:, 0]
        x = family[torch.arange(rows), chosen]
    return x[:, 0]


def values(rows: int, children: int, steps: int) -> list[str]:
    target = partial(torch.tensor, dtype=torch.float64)
    rewards = {
        "x": Reward(target([1.0])),
        "-(x - 3)^2": Reward.near(target([3.0]), 2.0),
        "-2 (x - 0.5)^2": Reward.near(target([0.5]), 4.0),
    }
    found = [
        "| reward | drawn by | share of the upper mode | its mean, sd | the lower mode's mean, sd |",
        "|---|---|---|---|---|",
    ]
    for name, reward in rewards.items():
        law = LINE.tilted(reward)
        modes = [f"{float(m):.2f}, {float(s):.2f}" for m, s in zip(law.means[:, 0], law.scales, strict=True)]
        found.append(f"| {name} | the tilted law | {float(law.weights[1]):.3f} | {modes[1]} | {modes[0]} |")
        between = float(law.means.mean())
        for by, exact in (("log E exp r", True), ("r(E[data])", False)):
            x = steered(value(reward, exact), rows, children, steps)
            upper = x > between
            told = [
                f"{float(some.mean()):.2f}, {float(some.std()):.2f}" if len(some) > 20 else "too few"
                for some in (x[upper], x[~upper])
            ]
            found.append(f"| {name} | {by} | {float(upper.double().mean()):.3f} | {told[0]} | {told[1]} |")
        print("\n".join(found[-3:]), flush=True)
    return found


def page(needle_rows: Sequence[str], value_rows: Sequence[str], args: argparse.Namespace) -> str:
    return f"""# Search on the exact mixture

Made by `python {shlex.join(sys.argv)}` at commit {commit()}, seeds 0 to {args.seeds - 1}. No network is trained here: velocities,
laws and base rates are closed forms (`secondlook/worlds/mixture.py`), and the SDE takes {STEPS} steps.

## Needles

A sample within a ball that holds a share p of the data; three unequal components in the plane. Each cell: the share of
{args.seeds} runs that drew one within the budget, and the median of evaluations until then ("more": half of the runs had none).
The score is minus the distance to the ball's centre, which looks at half-made rows can follow; in the last column it says
inside or outside alone.

{chr(10).join(needle_rows)}

## What a one-step estimate of a value is worth

0.7 N(-1, 0.5^2) + 0.3 N(2, 0.5^2). {args.rows} paths of {args.steps} steps, each step's child drawn among {args.children} by exp(value): with
log E[exp r(data) | x] this samples the tilted law, up to the steps and the number of children; with the one-step estimate
r(E[data | x]), which is what looks give, it samples another one (2606.02884).

{chr(10).join(value_rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--children", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("docs/results/mixture.md"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    value_rows = values(args.rows, args.children, args.steps)
    args.out.write_text(page(needles(args.seeds), value_rows, args))


if __name__ == "__main__":
    main()
