"""Solvers: pure functions from a state to a later state. Nothing is remembered between calls but in the state.

Here: the protocol and the fixed-step solvers of the probability-flow ODE dx = v(x, t) dt (SiT, 2401.08740, eq. 2).
Stochastic ones are in sde.py, the adaptive one in adaptive.py. Data to noise is the same step with t_next < t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow.estimate import Flow
from secondlook.types import State

End = Literal["estimate", "step"]


class Solver(Protocol):
    """One step from ``state`` to times ``t_next`` [B].

    random: whether steps draw noise. reuses: whether a step's first question is always about the very state it starts from, so
    that an estimate which was made there before will do.
    """

    reuses: ClassVar[bool]

    @property
    def random(self) -> bool: ...

    def evals(self, last: bool) -> int:
        """Guided estimates that one step costs; ``last`` for the step that reaches data."""
        ...

    def asks(self, t: float, t_next: float) -> tuple[float, ...]:
        """The times of those estimates in a step from ``t`` to ``t_next``; guidance in an interval is priced by them."""
        ...

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State: ...


def rows_of(t: Tensor, like: Tensor) -> Tensor:
    """t [B] shaped to multiply ``like`` [B, *S]."""
    return t.to(like).view(-1, *(1,) * (like.ndim - 1))


def moved(
    state: State,
    x: Tensor,
    t_next: Tensor,
    data: Tensor,
    steps: int | Tensor = 1,
    carry: Mapping[str, Tensor] | None = None,
) -> State:
    """The state after a step; what it carried before is dropped, for another solver's memory would be out of date."""
    return replace(state, x=x, t=t_next, data=data, step=state.step + steps, carry=carry, known=None)


def finish(x: Tensor, data: Tensor, t_next: Tensor) -> Tensor:
    """``data`` in the rows that have reached t = 1, ``x`` in the others."""
    return torch.where(rows_of(t_next, x) >= 1.0, data, x)


def check_end(name: str, end: str) -> None:
    if end not in ("estimate", "step"):
        raise ConfigError(f'{name}: end expects "estimate" or "step"; got {end!r}.')


def reaches(name: str, t_next: Tensor, end: str) -> bool:
    """Whether this step is one to data that returns the estimate; its cost differs, so all rows must agree."""
    ended = t_next >= 1.0
    if end == "step" or not bool(ended.any()):
        return False
    if not bool(ended.all()):
        raise ValueError(f"{name} expects rows that all reach t = 1 in this step or none: their costs differ.")
    return True


@dataclass(frozen=True)
class Euler:
    """First order. ``end="estimate"``: the step that reaches t = 1 returns the estimate of the data itself, which is where
    Euler's line ends on a linear path, without its rounding. ``"step"``: it is a step like the others."""

    end: End = "estimate"
    random: ClassVar[bool] = False
    reuses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_end("euler", self.end)

    def evals(self, last: bool) -> int:
        return 1

    def asks(self, t: float, t_next: float) -> tuple[float, ...]:
        return (t,)

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
        e = flow.estimate(state.x, state.t, cond)
        x = state.x + rows_of(t_next - state.t, state.x) * e.velocity
        return moved(state, x if self.end == "step" else finish(x, e.data, t_next), t_next, e.data)


@dataclass(frozen=True)
class Heun:
    """Second order (EDM, 2206.00364, alg. 1). With ``end="estimate"`` the step that reaches t = 1 returns the estimate of
    the data; with ``"step"`` the network is asked at t = 1 too, which only velocity predictions define."""

    end: End = "estimate"
    random: ClassVar[bool] = False
    reuses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_end("heun", self.end)

    def evals(self, last: bool) -> int:
        return 1 if last and self.end == "estimate" else 2

    def asks(self, t: float, t_next: float) -> tuple[float, ...]:
        return (t, t_next)[: self.evals(t_next >= 1.0)]

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
        ending = reaches("heun", t_next, self.end)
        e = flow.estimate(state.x, state.t, cond)
        if ending:
            return moved(state, e.data, t_next, e.data)
        dt = rows_of(t_next - state.t, state.x)
        e2 = flow.estimate(state.x + dt * e.velocity, t_next, cond)
        return moved(state, state.x + dt * 0.5 * (e.velocity + e2.velocity), t_next, e2.data)


@dataclass(frozen=True)
class RK4:
    """The classical fourth-order method; ``end`` as in Heun."""

    end: End = "estimate"
    random: ClassVar[bool] = False
    reuses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_end("rk4", self.end)

    def evals(self, last: bool) -> int:
        return 1 if last and self.end == "estimate" else 4

    def asks(self, t: float, t_next: float) -> tuple[float, ...]:
        start, end = torch.tensor([t, t_next], dtype=torch.float32)  # as rows have it
        middle = float(start + 0.5 * (end - start))
        return (t, middle, middle, t_next)[: self.evals(t_next >= 1.0)]

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
        ending = reaches("rk4", t_next, self.end)
        first = flow.estimate(state.x, state.t, cond)
        if ending:
            return moved(state, first.data, t_next, first.data)
        dt = rows_of(t_next - state.t, state.x)
        middle = state.t + 0.5 * (t_next - state.t)
        k1 = first.velocity
        k2 = flow.estimate(state.x + 0.5 * dt * k1, middle, cond).velocity
        k3 = flow.estimate(state.x + 0.5 * dt * k2, middle, cond).velocity
        fourth = flow.estimate(state.x + dt * k3, t_next, cond)
        x = state.x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + fourth.velocity)
        return moved(state, x, t_next, fourth.data)


def integrate(flow: Flow, solver: Solver, state: State, times: tuple[float, ...], cond: Any) -> State:
    """Drive all rows of ``state`` through ``times`` (which begin at their common time), forward or back."""
    if len(times) < 2:
        raise ConfigError("integrate expects a grid of at least two times.")
    for t in times[1:]:
        state = solver.step(flow, state, torch.full_like(state.t, t), cond)
    return state
