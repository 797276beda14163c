"""Solvers: pure functions from a state to a later state. Nothing is remembered between calls.

Sources: Euler and Heun as in EDM (2206.00364, alg. 1) on the probability-flow ODE; Euler-Maruyama on SiT's SDE
(2401.08740, eq. 4-7) run toward data: dx = [v + w/2 grad log p] dt + sqrt(w) dB, with diffusion w(t).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow import Flow
from secondlook.noise import NoiseSource, normal
from secondlook.types import State


class Solver(Protocol):
    """One step from ``state`` to times ``t_next`` [B]; ``random`` tells whether steps draw noise."""

    random: ClassVar[bool]

    def evals(self, last: bool) -> int:
        """Guided estimates that one step costs; ``last`` for the step that reaches data."""
        ...

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State: ...


def _rows(t: Tensor, like: Tensor) -> Tensor:
    return t.to(like).view(-1, *(1,) * (like.ndim - 1))


def _moved(state: State, x: Tensor, t_next: Tensor, data: Tensor) -> State:
    return replace(state, x=x, t=t_next, data=data, step=state.step + 1)


@dataclass(frozen=True)
class Euler:
    """First order. The step that reaches t = 1 returns the estimate of the data itself, which is where Euler's line
    ends on a linear path, without its rounding."""

    random: ClassVar[bool] = False

    def evals(self, last: bool) -> int:
        return 1

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
        e = flow.estimate(state.x, state.t, cond)
        x = state.x + _rows(t_next - state.t, state.x) * e.velocity
        return _moved(state, _finish(x, e.data, t_next), t_next, e.data)


@dataclass(frozen=True)
class Heun:
    """Second order; the step that reaches t = 1 is Euler's (the velocity is not defined there)."""

    random: ClassVar[bool] = False

    def evals(self, last: bool) -> int:
        return 1 if last else 2

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
        ended = t_next >= 1.0
        if bool(ended.any()) and not bool(ended.all()):
            raise ValueError("heun wants rows that all reach t = 1 in this step or none: their costs differ.")
        e = flow.estimate(state.x, state.t, cond)
        dt = _rows(t_next - state.t, state.x)
        x = state.x + dt * e.velocity
        if bool(ended.all()):
            return _moved(state, _finish(x, e.data, t_next), t_next, e.data)
        e2 = flow.estimate(x, t_next, cond)
        return _moved(state, state.x + dt * 0.5 * (e.velocity + e2.velocity), t_next, e2.data)


@dataclass(frozen=True)
class EulerMaruyama:
    """SDE sampler. Diffusion ``w(t) = scale * 2 sigma (sigma d_alpha / alpha - d_sigma)`` is SBDM's, bounded at noise by
    ``cap``; the step that reaches t = 1 returns the data estimate (SiT's "mean" last step).

    ``source`` replaces the keyed noise: (keys [B], shape) -> [B, *shape].
    """

    scale: float = 1.0
    cap: float = 4.0
    source: NoiseSource = normal
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in (("scale", self.scale), ("cap", self.cap)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"sde: {name} must be 0 or above, and finite; got {value!r}.")

    def evals(self, last: bool) -> int:
        return 1

    def diffusion(self, flow: Flow, t: Tensor) -> Tensor:
        """w(t), [B]."""
        c = flow.path.coefs(t)
        w = 2 * c.sigma * (c.sigma * c.d_alpha / c.alpha.clamp_min(1e-5) - c.d_sigma)
        return self.scale * w.clamp(0.0, self.cap)

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
        e = flow.estimate(state.x, state.t, cond)
        w, dt = _rows(self.diffusion(flow, state.t), state.x), _rows(t_next - state.t, state.x)
        keys = [k.child("step", int(n)) for k, n in zip(state.keys, state.step, strict=True)]
        noise = self.source(keys, state.x.shape[1:]).to(state.x)
        x = state.x + dt * (e.velocity + 0.5 * w * e.logp_grad) + (w * dt).sqrt() * noise
        return _moved(state, _finish(x, e.data, t_next), t_next, e.data)


def _finish(x: Tensor, data: Tensor, t_next: Tensor) -> Tensor:
    return torch.where(_rows(t_next, x) >= 1.0, data, x)


SOLVERS = {"euler": Euler, "heun": Heun, "sde": EulerMaruyama}


def integrate(flow: Flow, solver: Solver, state: State, times: tuple[float, ...], cond: Any) -> State:
    """Drive all rows of ``state`` through ``times`` (which begin at their common time). For small, plain uses."""
    if len(times) < 2:
        raise ConfigError("integrate wants a grid of at least two times.")
    for t in times[1:]:
        state = solver.step(flow, state, torch.full_like(state.t, t), cond)
    return state
