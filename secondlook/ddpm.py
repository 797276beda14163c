"""Diffusion in discrete steps: the noise schedule of DDPM as a path, the networks trained on it, its samplers.

Sources: DDPM (2006.11239), DDIM (2010.02502), learned variances (2102.09672), DiT (2212.09748). Discrete step i = 0 .. T - 1,
larger for noisier, lies at time t = 1 - (i + 1) / T of this project, so that t = 0 is the noisiest step and t = 1 clean data,
"step -1". The samplers are written for any path: x = alpha data + sigma noise makes a Markov chain from data to noise whose
step from t_next back to t scales by alpha / alpha_next and adds noise of the variance that is then missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from secondlook.errors import ConfigError, nearest
from secondlook.flow import Flow, Network
from secondlook.noise import NoiseSource, normal
from secondlook.path import PATHS, Coefs, Kind, Path
from secondlook.solve import moved, rows_of
from secondlook.types import Estimate, State

Variance = Literal["learned", "small", "large"]
_NEAR = 1e-14  # logarithms of abar nearer than this, in proportion, are one
CLEAN = 1e-8  # a path with less noise than this at t = 1 ends at the data (GVP's sigma rounds to 6e-17)


def linear_abar(steps: int = 1000, low: float = 1e-4, high: float = 0.02) -> tuple[float, ...]:
    """The products of 1 - beta for betas that rise linearly (2006.11239, sec. 4), [steps]. ``low`` and ``high`` are those of
    1000 steps; for other counts they are scaled by 1000 / steps, which keeps the end about as noisy (2102.09672's code)."""
    scale = 1000 / steps
    rise = (high - low) / max(1, steps - 1)
    return tuple(accumulate((1 - scale * (low + rise * i) for i in range(steps)), lambda a, b: a * b))


def respaced(count: int, steps: int = 1000) -> tuple[float, ...]:
    """Times of ``count`` of ``steps`` discrete steps, evenly spread from the noisiest to the cleanest, and 1.0 last: ADM's rule
    for one section (2102.09672's code). Its strides are summed in floating point before they are rounded, and so are ours."""
    if not 2 <= count <= steps:
        raise ConfigError(f"Respacing {steps} steps wants from 2 to {steps} of them; got {count}.")
    stride = (steps - 1) / (count - 1)
    taken = [round(at) for at in accumulate([stride] * (count - 1), initial=0.0)]
    return (*(1 - (i + 1) / steps for i in reversed(taken)), 1.0)


@dataclass(frozen=True)
class Discrete:
    """A variance-preserving path through given steps: alpha = sqrt(abar), sigma = sqrt(1 - abar).

    abar: [T], falling, inside (0, 1), the share of data in the variance after each discrete step (any scheduler's
    ``alphas_cumprod``, see ``of``). Between its knots log abar is the monotone piecewise cubic of Fritsch and Carlson (SIAM J.
    Numer. Anal. 17, 1980) with three-point slopes: log abar of smooth betas is nearly quadratic, which this reproduces, its
    slope is -beta of the continuous process, so the diffusion w_KL stays positive, and the ODE's velocity is continuous.
    Times in float32 do not hit the knots: nearer to one than their rounding they are taken to be it.

    final: abar at t = 1, from abar[0] to 1. Schedulers that end at the noise of their cleanest step, and not at clean data, have
    it at abar[0] (``set_alpha_to_one=False``, ``final_sigmas_type="sigma_min"``); the path is then flat after that step.
    """

    abar: tuple[float, ...] = field(default_factory=linear_abar, repr=False)
    name: str = "discrete"
    final: float = 1.0

    def __post_init__(self) -> None:
        if len(self.abar) < 2 or not all(1 > a > b > 0 for a, b in pairwise(self.abar)):
            raise ConfigError(
                "A discrete path wants two or more alphas_cumprod that fall from below 1 and stay above 0; "
                "where the last is 0 give a small number, such as 2 ** -24."
            )
        if not self.abar[0] <= self.final <= 1:
            raise ConfigError(
                f"A discrete path ends at its first alphas_cumprod, 1, or between; got {self.final!r} after {self.abar[0]!r}."
            )

    @staticmethod
    def of(abar: Sequence[float] | Tensor, final: float = 1.0) -> Discrete:
        """From any sequence of numbers, or a tensor [T]."""
        values = tuple(abar.double().tolist() if isinstance(abar, Tensor) else map(float, abar))
        return Discrete(values, final=final)

    @property
    def steps(self) -> int:
        return len(self.abar)

    def time(self, index: Tensor) -> Tensor:
        """The times of discrete steps [B] (-1 is clean data): [B] float64."""
        return 1 - (index.double() + 1) / self.steps

    def index(self, t: Tensor) -> Tensor:
        """The discrete step at times [B], whole at the knots, in the dtype of ``t``: [B]."""
        return (self._depth(t) - 1).to(t.dtype)

    def exact(self, t: Tensor) -> Tensor:
        """Times in float64, [B], without the rounding of those that name a knot."""
        return self.time(self._depth(t) - 1)

    def coefs(self, t: Tensor) -> Coefs:
        """alpha, sigma and their derivatives in t, [B]. d_sigma is bounded by a cap at t = 1, where it diverges (final 1)."""
        depth = self._depth(t)
        knot = depth.floor().clamp(max=self.steps - 1).long()
        value, slope = self._log(knot, depth - knot)
        alpha, sigma = (0.5 * value).exp(), torch.expm1(value).abs().sqrt()
        d_alpha = -0.5 * self.steps * slope * alpha
        d_sigma = -alpha * d_alpha / sigma.clamp_min(torch.finfo(t.dtype).tiny ** 0.5)
        return Coefs(*(v.to(t.dtype) for v in (alpha, sigma, d_alpha, d_sigma)))

    def time_of(self, ratio: Tensor) -> Tensor:
        """The times [B] float64 at which sigma / alpha is ``ratio`` [B] (the sigma of schedulers whose x is x / alpha), the
        earliest where the path is flat. ConfigError for what the path does not reach, by more than rounding in float32."""
        want = torch.log1p(ratio.double().square())  # -log abar
        depths = -self._table[0].to(want.device)
        low, high = float(depths[0]), float(depths[-1])
        bad = ~((want >= low * (1 - 1e-6)) & (want <= high * (1 + 1e-6)) & (ratio >= 0))
        if bool(bad.any()):
            ends = f"from {math.expm1(low) ** 0.5:.6g} to {math.expm1(high) ** 0.5:.6g}"
            raise ConfigError(f"sigma / alpha goes {ends} on this discrete path; got {float(ratio[bad][0]):.6g}.")
        want = want.clamp(low, high)
        at = torch.searchsorted(depths, want * (1 + _NEAR), right=True) - 1
        exact = (want - depths[at]).abs() <= _NEAR * want
        knot = at.clamp(max=self.steps - 1)
        left, right = torch.zeros_like(want), torch.ones_like(want)
        for _ in range(54):  # halves [0, 1] down to its rounding
            u = 0.5 * (left + right)
            beyond = -self._log(knot, u)[0] >= want
            left, right = torch.where(beyond, left, u), torch.where(beyond, u, right)
        return 1 - torch.where(exact, at.double(), knot + right) / self.steps

    def _log(self, knot: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """log abar and its slope in steps at depths knot + u, [B] float64; knot: int64 from 0 to T - 1, u in [0, 1]."""
        logs, slopes = (v.to(u.device) for v in self._table)
        low, high, m, n = logs[knot], logs[knot + 1], slopes[knot], slopes[knot + 1]
        value = low * (1 + 2 * u) * (1 - u) ** 2 + high * u**2 * (3 - 2 * u) + u * (1 - u) * (m * (1 - u) - n * u)
        return value, 6 * u * (1 - u) * (high - low) + m * (1 - u) * (1 - 3 * u) + n * u * (3 * u - 2)

    def _depth(self, t: Tensor) -> Tensor:
        """Steps from clean data, 0 to T, float64."""
        depth = ((1 - t.double()) * self.steps).clamp(0, self.steps)
        knot = depth.round()
        return torch.where((depth - knot).abs() <= torch.finfo(t.dtype).eps * self.steps, knot, depth)

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """log abar and its slope in steps at depths 0 .. T, [T + 1] float64 each."""
        with torch.inference_mode(False):  # kept, and perhaps first asked for by a sampler, then by training
            logs = torch.tensor([*map(math.log, (self.final, *self.abar))], dtype=torch.float64)
            rise = logs.diff()
            inner = torch.maximum(0.5 * (rise[1:] + rise[:-1]), 3 * torch.maximum(rise[1:], rise[:-1]))
            ends = [(1.5 * rise[i] - 0.5 * rise[j]).clamp(max=0).maximum(3 * rise[i]) for i, j in ((0, 1), (-1, -2))]
            return logs, torch.cat([ends[0][None], inner, ends[1][None]])


@dataclass(frozen=True)
class Indexed:
    """A network trained on discrete steps, as a ``flow.Network``: at time t it is shown the step's number, 0 .. T - 1.

    network: (x, number [B], condition) -> prediction, with ``predicts`` and ``shape``; its time must reach the embedding as it is
    (SiTConfig's time_scale 1). Official DiT weights: ``Indexed(from_state_dict(state, predicts="noise", path="discrete"), Discrete())``.
    """

    network: Any
    path: Discrete = Discrete()

    def __post_init__(self) -> None:
        config = getattr(self.network, "config", None)
        if getattr(config, "time_scale", 1.0) != 1.0 or getattr(config, "reversed_time", False):
            raise ConfigError(
                "A network of discrete steps is shown their numbers: it wants time_scale 1 and no reversed_time."
            )

    @property
    def predicts(self) -> Kind:
        kind: Kind = self.network.predicts
        return kind

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.network.shape)

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """The prediction [B, *S], without variance channels."""
        return self.full(x, t, cond)[:, : self.shape[0]]

    def full(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """All channels of the head."""
        out: Tensor = getattr(self.network, "full", self.network)(x, self.path.index(t), cond)
        return out


def on_its_path(network: Any) -> tuple[Network, Path]:
    """A class-conditional network as a flow takes it, and the path that its configuration names; ConfigError for a name
    that is none."""
    name = network.config.path
    if name == "discrete":
        return Indexed(network), Discrete()
    if name not in PATHS:
        raise ConfigError(f'The model\'s path "{name}" is unknown; {nearest(name, [*PATHS, "discrete"])}')
    return network, PATHS[name]()


def exact_coefs(path: Path, t: Tensor) -> Coefs:
    """The path's coefficients at times [B] in float64, at the knots that times in float32 stand for."""
    return path.coefs(path.exact(t) if isinstance(path, Discrete) else t.double())


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


def draw_noise(source: NoiseSource, state: State) -> Tensor:
    """The noise of each row's next step, [B, *S]: a function of its key and of the steps it has taken."""
    keys = [k.child("step", int(n)) for k, n in zip(state.keys, state.step.tolist(), strict=True)]
    return source(keys, state.x.shape[1:]).to(state.x)


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
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"ddim: eta must be from 0 to 1; got {self.eta!r}.")

    def evals(self, last: bool) -> int:
        return 1

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


class _Heard:
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

    def __post_init__(self) -> None:
        if self.variance is not None and self.variance not in get_args(Variance):
            raise ConfigError(
                f'ddpm: there is no variance "{self.variance}"; {nearest(self.variance, get_args(Variance))}'
            )

    def evals(self, last: bool) -> int:
        return 1

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
        forward_only("ddpm", state, t_next)
        heard = _Heard(flow.network, len(state))
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
