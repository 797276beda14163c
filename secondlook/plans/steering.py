"""Published particle samplers as settings of one engine (plans/particles.py, which says what each option is). Papers look every few of
50 to 1,000 steps; here ``looks`` are a few times of a grid of 5 to 20, and the temperature is for scores between 0 and 1. Looks are paid:
where a look is the first evaluation of the next step they cost the same, and a free one would be a step old."""

from __future__ import annotations

from itertools import pairwise

from secondlook.calls import positive
from secondlook.plans.legs import look_times
from secondlook.plans.particles import particles
from secondlook.types import Plan, Task

ALWAYS = 2.0  # a threshold that no effective number reaches


def fk(task: Task, *, n: int = 4, looks: int = 4, first: float = 0.2, temperature: float = 0.1, potential: str = "max",
       scheme: str = "multinomial", threshold: float = ALWAYS) -> Plan:  # fmt: skip
    """Feynman-Kac steering as published (2501.06848, alg. 1): lambda 10, 4 particles, looks at 20, 40, 60 and 80 of 100 steps, the
    largest score so far, multinomial resampling at each look (``threshold`` 2; 0.5 for its effective-number trigger). Endless."""
    return (yield from particles(task, look="paid", n=n, looks=looks, first=first, temperature=temperature, potential=potential, scheme=scheme,
                                 threshold=threshold))  # fmt: skip


def fk_released(task: Task, *, n: int = 4, looks: int = 4, first: float = 0.2, temperature: float = 0.1, potential: str = "max",
                scheme: str = "multinomial", threshold: float = 0.5) -> Plan:  # fmt: skip
    """Feynman-Kac steering as the paper's released code does it: below the trigger weights are forgotten, and the last potential is left
    out; its results miss the law that the paper proves. For comparison with ``fk``. Endless."""
    return (yield from particles(task, look="paid", n=n, looks=looks, first=first, temperature=temperature, potential=potential, scheme=scheme,
                                 threshold=threshold, forget=True))  # fmt: skip


def das(task: Task, *, n: int = 4, looks: int = 20, first: float = 0.05, temperature: float = 0.1, gamma: float = 0.008,
        threshold: float = 0.5) -> Plan:  # fmt: skip
    """DAS without its gradient (2501.05803, alg. 1): tempering by (1 + gamma)^k - 1, differences, SSP resampling below half the effective
    number, a look at every step (of up to 20). The paper's temperatures, 0.0001 to 0.01, are of other rewards. Endless."""
    return (yield from particles(task, look="paid", n=n, looks=looks, first=first, temperature=temperature, potential="difference", scheme="ssp",
                                 threshold=threshold, schedule="increasing", gamma=gamma))  # fmt: skip


def bfs(
    task: Task, *, n: int = 8, looks: int = 4, first: float = 0.2, temperature: float = 0.1, gamma: float = 0.008
) -> Plan:
    """Breadth-first search, the best of its ablation (2505.23614): increasing inverse temperature, the largest score so far, SSP
    resampling at each look; 4 or 8 rows. The form of its schedule is taken from 2501.05803. Endless."""
    return (yield from particles(task, look="paid", n=n, looks=looks, first=first, temperature=temperature, potential="max", scheme="ssp",
                                 threshold=ALWAYS, schedule="increasing", gamma=gamma))  # fmt: skip


def funnel(
    task: Task, *, n: int = 4, ratio: float = 4.0, looks: int = 4, first: float = 0.2, temperature: float = 0.1
) -> Plan:
    """Funnel schedule (2508.12361, known by its abstract): many rows begin, a ``ratio``-th of them is left on the last leg, and all
    costs what ``n`` constant rows would; early looks weigh less (the increasing schedule). Shape of the funnel and the rest are
    this library's. Endless."""
    positive("funnel", n=n, ratio=ratio)
    edges = [0.0, *look_times(task, first, looks), 1.0]
    legs = [sum(a < t <= b for t in task.grid) for a, b in pairwise(edges)]
    widths = [ratio ** (-i / (len(legs) - 1)) for i in range(len(legs))]
    begun = int(n * sum(legs) / sum(w * leg for w, leg in zip(widths, legs, strict=True)))
    return (yield from particles(task, look="paid", n=max(1, begun), looks=looks, first=first, temperature=temperature, threshold=ALWAYS,
                                 schedule="increasing", shrink=1 / ratio))  # fmt: skip
