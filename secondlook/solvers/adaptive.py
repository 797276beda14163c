"""An adaptive ODE solver whose step is chosen for each row alone: no row depends on its batch mates.

Dormand and Prince's pair of orders 5 and 4 ("A family of embedded Runge-Kutta formulae", J. Comp. Appl. Math. 6, 1980),
first-same-as-last, with local extrapolation; first step and step control after Hairer, Norsett and Wanner, "Solving
ordinary differential equations I", sec. II.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from secondlook.errors import ConfigError, SecondlookError
from secondlook.flow.estimate import Flow
from secondlook.solvers.ode import End, check_end, moved, rows_of
from secondlook.types import State

_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# fifth-order weights less fourth-order ones
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_GAP = 1e-3  # before t = 1, where predictions other than the velocity have a pole
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0


@dataclass(frozen=True)
class Dopri5:
    """One `step` goes all the way to ``t_next`` by as many inner steps as each row's error asks for, forward or back.

    rtol, atol: per-row root mean square of error / (atol + rtol |x|) is kept under 1. most: inner steps a row may try.
    end="estimate": a row bound for t = 1 is integrated to 1 - 1e-3, and its estimate of the data there is returned; "step":
    to t = 1 itself, for networks that predict the velocity. ``State.step`` counts the inner steps tried by each row, so
    6 step + 2 evaluations were its own; rows that are done idle along, so that the batch keeps its shape.
    """

    rtol: float = 1e-3
    atol: float = 1e-6
    most: int = 1000
    end: End = "estimate"
    random: ClassVar[bool] = False
    reuses: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_end("dopri5", self.end)
        if not (self.rtol >= 0 and self.atol >= 0 and 0 < self.rtol + self.atol < math.inf):
            raise ConfigError(
                f"dopri5: rtol and atol must be 0 or above, and one above 0; got {self.rtol} and {self.atol}."
            )

    def evals(self, last: bool) -> int:
        raise ConfigError(
            "dopri5 chooses its own number of steps, so a search cannot price it; use heun, rk4 or euler there."
        )

    def asks(self, t: float, t_next: float) -> tuple[float, ...]:
        return (t,) * self.evals(t_next >= 1.0)

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
        estimating = self.end == "estimate" and bool((t_next >= 1.0).any())
        # Only rows bound for data stop short of it; those already inside the gap are given their estimate where they are.
        goal = torch.where(t_next >= 1.0, state.t.clamp(min=1.0 - _GAP), t_next) if estimating else t_next
        x, data, tried = self._integrate(flow, state.x, state.t, goal, cond)
        if estimating:
            data = flow.estimate(x, goal, cond).data
            x = torch.where(rows_of(t_next, x) >= 1.0, data, x)
        return moved(state, x, t_next, data, tried)

    def _integrate(self, flow: Flow, x: Tensor, t: Tensor, goal: Tensor, cond: Any) -> tuple[Tensor, Tensor, Tensor]:
        """x at ``goal``, the last data estimate, and the steps tried by each row [B]."""
        t, goal = t.double(), goal.double()
        first = flow.estimate(x, t.to(x), cond)
        slope, data = first.velocity, first.data
        if not bool(slope.isfinite().all()):
            raise SecondlookError(
                "dopri5: the network's first velocity is not finite; look for overflow, or begin later (eps)."
            )
        h = self._first_step(flow, x, t, goal, slope, cond)
        tried = torch.zeros(len(t), dtype=torch.long)
        live = t != goal
        while bool(live.any()):
            if int(tried.max()) >= self.most:
                raise SecondlookError(
                    f"dopri5 tried {self.most} steps without reaching its end; raise rtol, or use heun."
                )
            h = torch.where((t + 1.01 * h - goal) * h.sign() >= 0, goal - t, h)  # no sliver of a step at the end
            new, error, new_slope, new_data = self._attempt(flow, x, t, h, slope, cond)
            size = (error / (self.atol + self.rtol * torch.maximum(x.abs(), new.abs()))).double()
            norm = size.square().flatten(1).mean(1).sqrt().nan_to_num(nan=math.inf)
            take = live & (norm <= 1)
            here = rows_of(take, x) > 0
            x, slope, data = (torch.where(here, a, b) for a, b in ((new, x), (new_slope, slope), (new_data, data)))
            t = torch.where(take, torch.where(h == goal - t, goal, t + h), t)
            tried = tried + live.long().to(tried.device)
            factor = (_SAFETY * norm.clamp_min(1e-10) ** -0.2).clamp(_SHRINK, _GROW)
            h = h * torch.where(take, factor, factor.clamp(max=1.0))
            live = t != goal
        return x, data, tried

    def _attempt(
        self, flow: Flow, x: Tensor, t: Tensor, h: Tensor, slope: Tensor, cond: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next x, its error, and slope and data there."""
        step, slopes, data, new = rows_of(h, x), [slope], x, x
        for c, row in zip(_C[1:], _A[1:], strict=True):
            new = x + step * sum(a * k for a, k in zip(row, slopes, strict=True) if a)  # type: ignore[operator]
            e = flow.estimate(new, (t + c * h).to(x), cond)
            slopes.append(e.velocity)
            data = e.data
        error = step * sum(b * k for b, k in zip(_E, slopes, strict=True) if b)
        return new, error, slopes[-1], data

    def _first_step(self, flow: Flow, x: Tensor, t: Tensor, goal: Tensor, slope: Tensor, cond: Any) -> Tensor:
        """[B] float64, signed: Hairer, Norsett and Wanner's estimate from two slopes."""
        scale = self.atol + self.rtol * x.abs()

        def norm(v: Tensor) -> Tensor:
            return (v / scale).double().square().flatten(1).mean(1).sqrt()

        way = (goal - t).sign()
        d0, d1 = norm(x), norm(slope)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1.clamp_min(1e-300))
        h0 = torch.minimum(h0, (goal - t).abs())
        e = flow.estimate(x + rows_of(way * h0, x) * slope, (t + way * h0).to(x), cond)
        d2 = norm(e.velocity - slope) / h0.clamp_min(1e-300)
        steepest = torch.maximum(d1, d2)
        h1 = torch.where(steepest <= 1e-15, (1e-3 * h0).clamp_min(1e-6), (0.01 / steepest.clamp_min(1e-300)) ** 0.2)
        return way * torch.minimum(torch.minimum(100 * h0, h1), (goal - t).abs())
