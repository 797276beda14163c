"""Markov chains on the starting noise, whose pictures follow the flow's law tilted by exp(score / temperature)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.legs import known
from secondlook.plans.moves import fresh, turn
from secondlook.types import Outcome, Plan, Proposal, Task


def mcmc(
    task: Task, *, chains: int = 4, temperature: float = 0.1, kernel: str = "slice", step: float = 0.5, most: int = 20, draws: int = 0
) -> Plan:  # fmt: skip
    """``chains`` noises go on as Markov chains that leave the normal law times exp(score / temperature) as it is. Ref: elliptical slice
    sampling, Murray et al., 1001.0175, fig. 2, on a flow's source noise as in ESS-Flow, 2510.05849; needs no step size.

    kernel: "slice" tries angles of one ellipse, from a bracket that shrinks toward the chain's place, until the score is above a level
    drawn under the place's own; after ``most`` tries the chain stays, which leaves the law as it is too (a move and its reverse take
    equally many). "pcn" (preconditioned Crank-Nicolson, 1202.0709) tries one noise at sine ``step`` and accepts by Metropolis' rule.
    With a solver that draws noise a chain keeps that of its first row. What could not be judged has weight 0. Endless, or after
    ``draws`` moves of each chain ends and returns where each was after each of them, as outcomes' numbers.
    """
    positive("mcmc", chains=chains, temperature=temperature, step=step, most=most)
    if kernel not in ("slice", "pcn") or step > 1 or draws < 0:
        raise ConfigError(f'mcmc: expected kernel "slice" or "pcn", step, the sine of an angle, at most 1, and draws at least 0; '
                          f"got kernel={kernel!r}, step={step!r}, draws={draws!r}.")  # fmt: skip
    most, angle = (most, None) if kernel == "slice" else (1, math.asin(step))
    live = [Chain(o, temperature, most, angle) for o in (yield fresh(task, chains))]
    while moving := [c for c in live if not draws or len(c.visited) < draws]:
        outcomes = yield [c.tries(task) for c in moving]
        for chain, outcome in zip(moving, outcomes, strict=True):
            chain.told(outcome)
    return {"chains": [c.visited for c in live]}


@dataclass
class Chain:
    """A chain at the outcome ``at``. angle: of every try; None: drawn from the bracket. visited: where it was after each move."""

    at: Outcome
    temperature: float
    most: int
    angle: float | None
    visited: list[int] = field(default_factory=list)
    tried: int = 0
    level: float = 0.0
    key: Any = None
    bracket: tuple[float, float] = (0.0, 0.0)
    theta: float = 0.0

    def tries(self, task: Task) -> Proposal:
        u, v = task.uniform(2)
        if self.tried == 0:
            self.key, self.level = task.next_key(), known(self.at) / self.temperature + math.log(u)
            self.theta = 2 * math.pi * v if self.angle is None else self.angle
            self.bracket = (self.theta - 2 * math.pi, self.theta)
        else:
            self.theta = self.bracket[0] + (self.bracket[1] - self.bracket[0]) * v
        return turn(task, self.at, self.key, self.theta)

    def told(self, outcome: Outcome) -> None:
        self.tried += 1
        if accepted := known(outcome) / self.temperature >= self.level:
            self.at = outcome
        low, high = self.bracket
        self.bracket = (self.theta, high) if self.theta < 0 else (low, self.theta)
        if accepted or self.tried >= self.most:
            self.visited.append(self.at.id)
            self.tried = 0
