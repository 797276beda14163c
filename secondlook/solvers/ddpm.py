"""Diffusion in discrete steps: the noise schedule of DDPM as a path, the networks trained on it, its samplers.

Sources: DDPM (2006.11239), DDIM (2010.02502), learned variances (2102.09672), DiT (2212.09748). Discrete step i = 0 .. T - 1,
larger for noisier, lies at time t = 1 - (i + 1) / T of this project, so that t = 0 is the noisiest step and t = 1 clean data,
"step -1". The samplers are written for any path: x = alpha data + sigma noise makes a Markov chain from data to noise whose
step from t_next back to t scales by alpha / alpha_next and adds noise of the variance that is then missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from secondlook.errors import ConfigError, nearest
from secondlook.flow.discrete import CLEAN, exact_coefs
from secondlook.flow.estimate import Flow
from secondlook.flow.guidance import Network
from secondlook.flow.path import Path
from secondlook.noise import NoiseSource, normal
from secondlook.solvers.ode import moved, rows_of
from secondlook.solvers.step_noise import draw_noise
from secondlook.types import Estimate, State

Variance = Literal["learned", "small", "large"]


@dataclass(frozen=True)
class Bridge:
    """The law of x at t_next > t given x at t and the data, normal with mean ``alpha data + keep noise`` and variance ``small``,
    where noise = (x - alpha(t) data) / sigma(t) (2006.11239, eq. 6-7, for any path; at keep = sqrt(sigma^2 - small) it is
    2010.02502, eq. 12 with eta = 1). alpha, sigma: the path's at t_next. large: the variance of the chain's step back
    from t_next to t, beta in DDPM. All [B] float64."""

    alpha: Tensor
    sigma: Tensor
    keep: Tensor
    small: Tensor
    large: Tensor

    @staticmethod
    def of(path: Path, t: Tensor, t_next: Tensor) -> Bridge:
        """In float64: the variances are small differences."""
        c, n = (exact_coefs(path, v) for v in (t, t_next))
        tiny = torch.finfo(torch.float64).tiny
        ratio = torch.where(n.alpha > 0, c.alpha / n.alpha.clamp_min(tiny), torch.ones_like(n.alpha))
        large = (c.sigma**2 - (ratio * n.sigma) ** 2).clamp_min(0)
        share = n.sigma / c.sigma.clamp_min(tiny)
        return Bridge(n.alpha, n.sigma, ratio * share * n.sigma, large * share**2, large)

    def mean(self, e: Estimate) -> Tensor:
        """[B, *S], with the estimate in the data's place."""
        return rows_of(self.alpha, e.data) * e.data + rows_of(self.keep, e.data) * e.noise


def forward_only(name: str, state: State, t_next: Tensor) -> None:
    """ConfigError where a step of a solver that draws noise leads back."""
    if bool((t_next < state.t).any()):
        raise ConfigError(f"{name} draws noise, so it runs from noise to data only; go back with ddim at eta 0.")


def landed(x: Tensor, data: Tensor, t_next: Tensor, sigma: Tensor) -> Tensor:
    """``data`` in the rows that have reached t = 1 on a path without noise there, ``x`` in the others; sigma: the path's at
    t_next, [B]."""
    return torch.where(rows_of((t_next >= 1.0) & (sigma <= CLEAN), x) > 0, data, x)


@dataclass(frozen=True)
class DDIM:
    """2010.02502, eq. 12 and 16, on any path: x' = alpha' data + sqrt(sigma'^2 - s^2) noise + s z with s^2 = eta^2 times
    ``Bridge.small``. First order. eta 0 draws no noise, is exact where the data estimate does not change, and runs both ways;
    eta 1 is ancestral sampling. One evaluation a step; the step that reaches t = 1 returns the data estimate, unless the path
    keeps noise there (``Discrete.final``)."""

    eta: float = 0.0
    source: NoiseSource = normal
    reuses: ClassVar[bool] = True

    @property
    def random(self) -> bool:
        return self.eta > 0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"ddim: eta must be from 0 to 1; got {self.eta!r}.")

    def evals(self, last: bool) -> int:
        return 1

    def asks(self, t: float, t_next: float) -> tuple[float, ...]:
        return (t,)

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
        if self.eta > 0:
            forward_only("ddim with eta above 0", state, t_next)
        e = flow.estimate(state.x, state.t, cond)
        bridge = Bridge.of(flow.path, state.t, t_next)
        var = self.eta**2 * bridge.small
        keep = (bridge.sigma**2 - var).clamp_min(0).sqrt()
        x = rows_of(bridge.alpha, e.data) * e.data + rows_of(keep, e.data) * e.noise
        if self.eta > 0:
            x = x + rows_of(var.sqrt(), x) * draw_noise(self.source, state)
        return moved(state, landed(x, e.data, t_next, bridge.sigma), t_next, e.data)


class _Variance:
    """A network for the length of one step, which keeps what its head says about variance: every guide asks for the wanted
    condition first, with the rows in order, so these are the first rows of the first call."""

    def __init__(self, network: Network, rows: int):
        self.network, self.rows = network, rows
        self.predicts, self.shape = network.predicts, network.shape
        self.variance: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        out: Tensor = getattr(self.network, "full", self.network)(x, t, cond)
        if self.variance is None:
            self.variance = out[: self.rows, self.shape[0] :]
        return out[:, : self.shape[0]]


@dataclass(frozen=True)
class Ancestral:
    """DDPM's sampler: x' = mean of ``Bridge`` + sqrt(variance) z (2006.11239, alg. 2), on any path. First order in law.

    variance: "small" or "large", the bounds of 2006.11239, sec. 3.2; "learned", between them by the head's further
    channels v: log variance = f log large + (1 - f) log small with f = (v + 1) / 2 (2102.09672, eq. 15); None, learned
    where the network has such channels, else small. Under guidance the prediction is guided and v is the wanted condition's alone,
    as in DiT's code, and both come from one call. The step that reaches t = 1 adds no noise and returns the data estimate, unless
    the path keeps noise there.
    """

    variance: Variance | None = None
    source: NoiseSource = normal
    random: ClassVar[bool] = True
    reuses: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.variance is not None and self.variance not in get_args(Variance):
            raise ConfigError(
                f'ddpm: there is no variance "{self.variance}"; {nearest(self.variance, get_args(Variance))}'
            )

    def evals(self, last: bool) -> int:
        return 1

    def asks(self, t: float, t_next: float) -> tuple[float, ...]:
        return (t,)

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
        forward_only("ddpm", state, t_next)
        heard = _Variance(flow.network, len(state))
        e = replace(flow, network=heard).estimate(state.x, state.t, cond)
        bridge = Bridge.of(flow.path, state.t, t_next)
        x = bridge.mean(e) + self.spread(bridge, heard.variance, e.data) * draw_noise(self.source, state)
        return moved(state, landed(x, e.data, t_next, bridge.sigma), t_next, e.data)

    def spread(self, bridge: Bridge, v: Tensor | None, like: Tensor) -> Tensor:
        """The step's standard deviation, to multiply ``like`` [B, *S]; v: [B, C or 0, ...], the head's further channels."""
        learnt = v is not None and v.shape[1:] == like.shape[1:]
        if self.variance == "large" or (self.variance != "learned" and not learnt):
            return rows_of((bridge.large if self.variance == "large" else bridge.small).sqrt(), like)
        if self.variance == "small":
            return rows_of(bridge.small.sqrt(), like)
        if v is None or not learnt:
            raise ConfigError(
                'ddpm: this network\'s head has no variance channels; choose variance="small" or "large".'
            )
        return (0.5 * learned_log(bridge.small, bridge.large, v.to(like))).exp()


def learned_log(small: Tensor, large: Tensor, v: Tensor) -> Tensor:
    """The log variance that v [B, *S] in [-1, 1] stands for between two variances [B] (2102.09672, eq. 15): [B, *S]."""
    low, high = (rows_of(s.clamp_min(1e-20).log(), v) for s in (small, large))
    return low + 0.5 * (v + 1) * (high - low)
