"""The noise schedule of DDPM as a path, and networks trained on its discrete steps.

Sources: DDPM (2006.11239), learned variances (2102.09672), DiT (2212.09748). Discrete step i = 0 .. T - 1, larger for
noisier, lies at time t = 1 - (i + 1) / T of this project, so that t = 0 is the noisiest step and t = 1 clean data,
"step -1".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from secondlook.errors import ConfigError, nearest
from secondlook.flow.guidance import Network
from secondlook.flow.path import PATHS, Coefs, Kind, Path

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
        raise ConfigError(f"Respacing {steps} steps expects from 2 to {steps} of them; got {count}.")
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
                "A discrete path expects two or more alphas_cumprod that fall from below 1 and stay above 0; "
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
                "A network of discrete steps is shown their numbers: it expects time_scale 1 and no reversed_time."
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


def with_path(network: Any) -> tuple[Network, Path]:
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
