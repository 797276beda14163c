"""Transitions of a flow sampled by a flow within it (GLASS Flows, 2509.25170), and the re-noising that is none.

Both take x at time t to x at t_next and draw noise. ``Glass`` samples a law that keeps the path's marginals, by an ODE; ``Renoise``
does what diffusers' ``stochastic_sampling`` and FlowCPS (2509.05952) do, which does not keep them however many the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow.discrete import exact_coefs
from secondlook.flow.estimate import Flow
from secondlook.flow.path import Linear, Path
from secondlook.noise import NoiseSource, normal
from secondlook.solvers.ddpm import forward_only, landed
from secondlook.solvers.ode import moved, rows_of
from secondlook.solvers.step_noise import draw_noise
from secondlook.types import State


@dataclass(frozen=True)
class Transition:
    """p(x' | x) where x = alpha data + sigma noise at t, x' = alpha' data + sigma' noise' at t_next, and the two noises have the
    correlation ``rho``. Given the data too it is normal:

        x' = pull x + reach data + spread z,  pull = rho sigma' / sigma,  reach = alpha' - pull alpha,  spread = sigma' sqrt(1 - rho^2).

    ask: alpha / sigma at t. All [B] float64.
    """

    pull: Tensor
    reach: Tensor
    spread: Tensor
    ask: Tensor

    @staticmethod
    def of(path: Path, t: Tensor, t_next: Tensor, rho: float | None) -> Transition:
        """rho None: alpha sigma' / (alpha' sigma), that of the Markov chain from data to noise (2006.11239 on any path)."""
        c, n = exact_coefs(path, t), exact_coefs(path, t_next)
        chain = c.alpha * n.sigma / (n.alpha * c.sigma).clamp_min(1e-300)
        r = (torch.full_like(chain, rho) if rho is not None else chain).clamp(-1, 1)
        pull = r * n.sigma / c.sigma
        return Transition(pull, n.alpha - pull * c.alpha, n.sigma * (1 - r * r).sqrt(), c.alpha / c.sigma)

    def inner(self, u: float) -> tuple[Tensor, Tensor]:
        """Coefficients of data and z at the inner time u, from 0 (z alone, at size 1) to 1, where they are reach and spread."""
        return u * self.reach, 1 - u + u * self.spread

    def ratio(self, u: float) -> Tensor:
        """alpha / sigma where all is asked that is known at inner time u: x and y = a data + b z tell of the data as much as
        one sample whose (alpha / sigma)^2 is the sum of theirs (the sufficient statistic; 2509.25170)."""
        a, b = self.inner(u)
        return torch.hypot(self.ask, a / b)


@dataclass(frozen=True)
class Glass:
    """x' drawn from p(x' | x) by Euler's method on an ODE of its own, in ``inner`` steps u = 0 .. 1 from fresh noise y = z:

        y(u) = a data + b z,  a = u reach,  b = 1 - u + u spread,  dy/du = reach E[data | x, y] + (spread - 1) E[z | x, y],

    and x' = pull x + y(1). E[data | x, y] is the network's own at the time with alpha* / sigma* = r = hypot(alpha / sigma, a / b), asked
    about x* = alpha* (alpha / sigma^2 x + a / b^2 y) / r^2. No retraining; exact as inner steps grow, on any grid.

    rho: the correlation of the noises at t and t_next, from -1 to 1 (the paper's 0.4); None: the Markov chain's, with which x* is at
    no time past t_next. Near 1 little is new, at 0 and below nearly all is. ``inner`` evaluations a step, the first of which is about x
    itself; the step to t = 1 draws the data given x.
    """

    inner: int = 2
    rho: float | None = 0.4
    source: NoiseSource = normal
    random: ClassVar[bool] = True
    reuses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.inner, bool) or not isinstance(self.inner, int) or self.inner < 1:
            raise ConfigError(f"glass: inner must be a whole number of steps, 1 or more; got {self.inner!r}.")
        if self.rho is not None and not -1 <= self.rho <= 1:
            raise ConfigError(f"glass: rho is a correlation, from -1 to 1, or None; got {self.rho!r}.")

    def evals(self, last: bool) -> int:
        return self.inner

    def asks(self, t: float, t_next: float) -> tuple[float, ...]:
        return self.asks_on(Linear(), t, t_next)

    def asks_on(self, path: Path, t: float, t_next: float) -> tuple[float, ...]:
        """As ``asks``, on a path: what is asked within a step lies at times that the path decides."""
        at, then = torch.tensor([t], dtype=torch.float32), torch.tensor([t_next], dtype=torch.float32)
        law = Transition.of(path, at, then, self.rho)
        return tuple(float(self._time(path, law, i, at)) for i in range(self.inner))

    def _time(self, path: Path, law: Transition, i: int, t: Tensor) -> Tensor:
        """The time asked in the inner step ``i``, [B] in the dtype of t; the first is t itself."""
        if i == 0:
            return t
        if not hasattr(path, "time_of"):
            raise ConfigError(
                f'glass needs a path with time_of(ratio), and "{path.name}" has none; take sde, or give it one.'
            )
        end = exact_coefs(path, torch.ones_like(t))
        found: Tensor = path.time_of((1 / law.ratio(i / self.inner)).maximum(end.sigma / end.alpha))
        return found.to(t)

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
        forward_only("glass", state, t_next)
        law = Transition.of(flow.path, state.t, t_next, self.rho)
        y, data = draw_noise(self.source, state), state.x
        for i in range(self.inner):
            u, then = i / self.inner, (i + 1) / self.inner
            t = self._time(flow.path, law, i, state.t)
            data = flow.estimate(self._told(flow.path, law, i, state, y, t), t, cond).data
            (a, b), (a_next, b_next) = law.inner(u), law.inner(then)
            z = (y - rows_of(a, y) * data) / rows_of(b, y)
            y = rows_of(a_next, y) * data + rows_of(b_next, y) * z
        x = rows_of(law.pull, y) * state.x + y
        return moved(state, landed(x, data, t_next, exact_coefs(flow.path, t_next).sigma), t_next, data)

    def _told(self, path: Path, law: Transition, i: int, state: State, y: Tensor, t: Tensor) -> Tensor:
        """x* [B, *S]: the one sample at time t [B] that says of the data what x and y do."""
        if i == 0:
            return state.x
        (a, b), c, star = law.inner(i / self.inner), exact_coefs(path, state.t), exact_coefs(path, t)
        share = star.alpha / law.ratio(i / self.inner).square()
        return rows_of(share * c.alpha / c.sigma**2, y) * state.x + rows_of(share * a / b**2, y) * y


@dataclass(frozen=True)
class Renoise:
    """x' = alpha' data + sigma' (cos(eta pi / 2) noise + sin(eta pi / 2) z), with the estimate's data and noise and fresh z (FlowCPS,
    2509.05952; at eta 1 diffusers' ``stochastic_sampling`` of flow schedulers). Biased: each step replaces a share of the noise without the
    drift that would make up for it, so more steps give another law, with too little variance, and not the flow's.
    For comparison; ``ddim(eta=1)``, ``sde`` and ``glass`` keep the marginals. One evaluation a step."""

    eta: float = 1.0
    source: NoiseSource = normal
    reuses: ClassVar[bool] = True

    @property
    def random(self) -> bool:
        return self.eta > 0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"renoise: eta must be from 0 to 1; got {self.eta!r}.")

    def evals(self, last: bool) -> int:
        return 1

    def asks(self, t: float, t_next: float) -> tuple[float, ...]:
        return (t,)

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
        if self.eta > 0:
            forward_only("renoise with eta above 0", state, t_next)
        e = flow.estimate(state.x, state.t, cond)
        n, turn = exact_coefs(flow.path, t_next), self.eta * math.pi / 2
        noise = math.cos(turn) * e.noise
        if self.eta > 0:
            noise = noise + math.sin(turn) * draw_noise(self.source, state)
        x = rows_of(n.alpha, e.data) * e.data + rows_of(n.sigma, e.data) * noise
        return moved(state, landed(x, e.data, t_next, n.sigma), t_next, e.data)
