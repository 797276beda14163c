"""DPM-Solver++ (2211.01095), multistep, on any path: a DDIM step, corrected by the change of the data estimate.

With lambda = log(alpha / sigma) the solution between two times is an integral of the data estimate over lambda. Held constant,
the estimate gives DDIM's step; on the line through the last two, second order at one evaluation a step. The earlier estimate is
in the state's ``carry``, so a trajectory can be forked, saved, and continued in other company.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from secondlook.errors import ConfigError, nearest
from secondlook.flow.discrete import CLEAN, exact_coefs
from secondlook.flow.estimate import Flow
from secondlook.flow.path import Coefs, Path
from secondlook.noise import NoiseSource, normal
from secondlook.solvers.ddpm import forward_only, landed
from secondlook.solvers.ode import moved, rows_of
from secondlook.solvers.step_noise import draw_noise
from secondlook.types import State

Correction = Literal["midpoint", "heun"]
_SHORT = 0.02  # a memory from less than this share of the step ago is not used: the line through it is mostly rounding


def log_ratio(c: Coefs) -> Tensor:
    """lambda = log(alpha / sigma), [B]: minus infinity where there is no data, infinity where there is no noise."""
    return c.alpha.log() - torch.where(c.sigma <= CLEAN, torch.zeros_like(c.sigma), c.sigma).log()


@dataclass(frozen=True)
class DPMpp:
    """x' = alpha' data + keep noise + spread z + turn (data - earlier data), with fresh noise z and, for h the step in lambda,
    h0 the one before and g = 1 + eta^2: keep = sigma' e^(-eta^2 h), spread = sigma' sqrt(1 - e^(-2 eta^2 h)), and turn is
    alpha' (1 - e^(-g h)) h / (2 h0) for "midpoint" (2211.01095, alg. 2), alpha' (h - (1 - e^(-g h)) / g) / h0 for "heun".

    order: 1 leaves the correction out. eta: how much of the reverse SDE's noise is drawn, 0 to 1; 0 is the probability flow,
    which runs both ways, and 1 the paper's SDE solver. The "heun" turn is the integral of the line itself at every eta, and
    "midpoint" agrees with it to second order in h. lower_order_final: first order in the step that reaches t = 1, as
    published schedulers have it in fewer than 15 steps; of consequence only where the path keeps noise there
    (``Discrete.final``), for elsewhere that step returns the data estimate. One evaluation a step.

    Carries "data" [B, *S], the estimate before, and "t" [B], its time; a row with NaN there, or whose memory is of nearly
    the same time, takes a first-order step, and so does one from or to an infinite lambda, where the correction has the limit 0.
    """

    order: int = 2
    kind: Correction = "midpoint"
    eta: float = 0.0
    lower_order_final: bool = False
    source: NoiseSource = normal
    reuses: ClassVar[bool] = True

    @property
    def random(self) -> bool:
        return self.eta > 0

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ConfigError(f"dpmpp: order must be 1 or 2; got {self.order!r}.")
        if self.kind not in get_args(Correction):
            raise ConfigError(f'dpmpp: there is not a kind "{self.kind}"; {nearest(self.kind, get_args(Correction))}')
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"dpmpp: eta must be from 0 to 1; got {self.eta!r}.")

    def evals(self, last: bool) -> int:
        return 1

    def asks(self, t: float, t_next: float) -> tuple[float, ...]:
        return (t,)

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
        if self.eta > 0:
            forward_only("dpmpp with eta above 0", state, t_next)
        e = flow.estimate(state.x, state.t, cond)
        now, then = (exact_coefs(flow.path, t) for t in (state.t, t_next))
        h = (log_ratio(then) - log_ratio(now)).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        decay = torch.exp(-(self.eta**2) * h) if self.eta > 0 else torch.ones_like(h)
        x = rows_of(then.alpha, e.data) * e.data + rows_of(then.sigma * decay, e.data) * e.noise
        if self.eta > 0:
            spread = then.sigma * (1 - decay.square()).clamp_min(0).sqrt()
            x = x + rows_of(spread, x) * draw_noise(self.source, state)
        memory = state.carry or {}
        if self.order == 2 and "data" in memory and "t" in memory:
            turn = rows_of(self.turn(flow.path, state.t, t_next, memory["t"]), x)
            x = torch.where(turn != 0, x + turn * (e.data - memory["data"]), x)
        carry = {"data": e.data, "t": state.t} if self.order == 2 else None
        return moved(state, landed(x, e.data, t_next, then.sigma), t_next, e.data, carry=carry)

    def turn(self, path: Path, t: Tensor, t_next: Tensor, earlier: Tensor) -> Tensor:
        """What the change of the data estimate since ``earlier`` [B] is multiplied by, [B] float64; 0 for first order."""
        known = ~earlier.isnan()
        before, now, then = (exact_coefs(path, v) for v in (torch.where(known, earlier, t), t, t_next))
        h, h0 = log_ratio(then) - log_ratio(now), log_ratio(now) - log_ratio(before)
        known &= h.isfinite() & h0.isfinite() & (h0.abs() > _SHORT * h.abs())
        if self.lower_order_final:
            known &= t_next < 1.0
        h, h0 = torch.where(known, h, torch.zeros_like(h)), torch.where(known, h0, torch.ones_like(h0))
        g = 1 + self.eta**2
        share = -torch.expm1(-g * h)
        weight = 0.5 * h * share if self.kind == "midpoint" else h - share / g
        return torch.where(known, then.alpha * weight / h0, torch.zeros_like(h))
