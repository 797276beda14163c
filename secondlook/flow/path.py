"""Paths: interpolants ``x = alpha(t) data + sigma(t) noise`` from noise (t = 0) to data (t = 1).

Source: SiT (2401.08740), sec. 2 and app. B, with the time axis turned so that it grows while sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.types import Estimate

Kind = Literal["data", "noise", "velocity", "logp_grad"]
KINDS: tuple[Kind, ...] = ("data", "noise", "velocity", "logp_grad")


@dataclass(frozen=True)
class Coefs:
    """alpha, sigma and their time derivatives, each [B]."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    def like(self, x: Tensor) -> Coefs:
        """The same, shaped [B, 1, ...] to multiply ``x`` [B, *S], in its dtype and on its device."""
        shape = (-1, *(1,) * (x.ndim - 1))
        return Coefs(*(c.to(x).view(shape) for c in (self.alpha, self.sigma, self.d_alpha, self.d_sigma)))


class Path(Protocol):
    """An interpolant, known by its coefficients."""

    @property
    def name(self) -> str: ...

    def coefs(self, t: Tensor) -> Coefs: ...


class Invertible(Path, Protocol):
    """A path that also knows the time of a signal-to-noise ratio."""

    def time_of(self, ratio: Tensor) -> Tensor:
        """The times [B] at which sigma / alpha is ``ratio`` [B], from infinity (noise) to 0 (data)."""
        ...


@dataclass(frozen=True)
class Linear:
    """alpha = t, sigma = 1 - t."""

    name: str = "linear"

    def coefs(self, t: Tensor) -> Coefs:
        one = torch.ones_like(t)
        return Coefs(t, 1 - t, one, -one)

    def time_of(self, ratio: Tensor) -> Tensor:
        return 1 / (1 + ratio)


@dataclass(frozen=True)
class GVP:
    """Generalised variance preserving: alpha = sin(pi t / 2), sigma = cos(pi t / 2)."""

    name: str = "gvp"

    def coefs(self, t: Tensor) -> Coefs:
        a = t * (math.pi / 2)
        return Coefs(a.sin(), a.cos(), a.cos() * (math.pi / 2), -a.sin() * (math.pi / 2))

    def time_of(self, ratio: Tensor) -> Tensor:
        return torch.atan2(torch.ones_like(ratio), ratio) * (2 / math.pi)


@dataclass(frozen=True)
class VP:
    """Variance preserving with a linear schedule of beta from ``low`` to ``high`` (Song et al., 2011.13456, eq. 33):
    with u = 1 - t, log alpha = -u^2 (high - low) / 4 - u low / 2. At t = 0 alpha is small, not zero."""

    low: float = 0.1
    high: float = 20.0
    name: str = "vp"

    def coefs(self, t: Tensor) -> Coefs:
        u = 1 - t
        log_alpha = -0.25 * u**2 * (self.high - self.low) - 0.5 * u * self.low
        alpha = log_alpha.exp()
        sigma = (-torch.expm1(2 * log_alpha)).clamp_min(0).sqrt()
        d_alpha = alpha * (0.5 * u * (self.high - self.low) + 0.5 * self.low)
        tiny = torch.finfo(t.dtype).tiny
        return Coefs(alpha, sigma, d_alpha, -alpha * d_alpha / sigma.clamp_min(tiny**0.5))

    def time_of(self, ratio: Tensor) -> Tensor:
        """The root of log alpha's quadratic in u; 0 for what is noisier than this path ever is."""
        log_alpha, half, slope = -0.5 * torch.log1p(ratio.square()), 0.5 * self.low, 0.5 * (self.high - self.low)
        root = (half**2 - 2 * slope * log_alpha).sqrt()
        u = 2 * -log_alpha / (half + root)  # without a difference of near numbers where u is small
        return 1 - torch.where(log_alpha.isinf(), torch.ones_like(u), u).clamp(0, 1)


PATHS = {"linear": Linear, "gvp": GVP, "vp": VP}


def mix(path: Path, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x at time t [B] from data and noise [B, *S]."""
    c = path.coefs(t).like(data)
    return c.alpha * data + c.sigma * noise


def complete(path: Path, x: Tensor, t: Tensor, kind: Kind, value: Tensor, floor: float = 1e-5) -> Estimate:
    """All four views of an estimate from one of them, at x [B, *S] and t [B].

    Divisions by alpha or sigma are by at least ``floor``: at the ends of a path the view in question is not defined.
    """
    c = path.coefs(t).like(x)
    alpha, sigma = c.alpha.clamp_min(floor), c.sigma.clamp_min(floor)
    if kind == "data":
        data, noise = value, (x - c.alpha * value) / sigma
    elif kind == "noise":
        data, noise = (x - c.sigma * value) / alpha, value
    elif kind == "logp_grad":
        noise = -c.sigma * value
        data = (x - c.sigma * noise) / alpha
    elif kind == "velocity":
        # det of [[alpha, sigma], [d_alpha, d_sigma]] is negative on every path: alpha grows and sigma shrinks.
        det = c.alpha * c.d_sigma - c.sigma * c.d_alpha
        data = (c.d_sigma * x - c.sigma * value) / det
        noise = (c.alpha * value - c.d_alpha * x) / det
    else:
        raise ConfigError(f"A prediction must be one of {', '.join(KINDS)}; got {kind!r}.")
    velocity = value if kind == "velocity" else c.d_alpha * data + c.d_sigma * noise
    logp_grad = value if kind == "logp_grad" else -noise / sigma
    return Estimate(data, noise, velocity, logp_grad)


def renoise(path: Path, x: Tensor, t: Tensor, earlier: Tensor, noise: Tensor) -> Tensor:
    """Take x [B, *S] at times t [B] back to ``earlier`` [B] <= t by fresh noise, keeping the path's marginals.

    x' = a x + b noise with a = alpha'/alpha and b^2 = sigma'^2 - (a sigma)^2. On the linear path this is
    2501.09732's forward step for rectified flows; adding noise to a velocity or to the current guess is not.
    """
    if bool((earlier > t).any()):
        raise ValueError(
            f"renoise goes back in time: expected earlier <= t, got {earlier.max():.4g} after {t.min():.4g}."
        )
    c, e = path.coefs(t).like(x), path.coefs(earlier).like(x)
    a = torch.where(c.alpha > 0, e.alpha / c.alpha.clamp_min(1e-12), torch.ones_like(e.alpha))
    b = (e.sigma**2 - (a * c.sigma) ** 2).clamp_min(0).sqrt()
    return a * x + b * noise
