"""The Mixture world: a Gaussian mixture, for which everything a sampler estimates is known in closed form.

With ``data ~ sum_k w_k N(m_k, s_k^2 I)`` and ``x = alpha data + sigma noise``, the law of x at time t is a mixture too,

    p_t(x) = sum_k w_k N(x; alpha m_k, v_k I),    v_k = alpha^2 s_k^2 + sigma^2,

and with responsibilities ``r_k(x) = w_k N(x; alpha m_k, v_k I) / p_t(x)``

    E[data | x]  = sum_k r_k (m_k + alpha s_k^2 / v_k (x - alpha m_k))
    E[noise | x] = sum_k r_k sigma / v_k (x - alpha m_k)
    grad log p_t = -sum_k r_k (x - alpha m_k) / v_k = -E[noise | x] / sigma        (Tweedie)
    velocity     = d_alpha E[data | x] + d_sigma E[noise | x]                      (SiT, 2401.08740, eq. 2)

All of it is computed in float64. No division is by alpha or sigma, so both ends of a path are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secondlook.errors import ConfigError, ShapeError
from secondlook.flow.path import KINDS, Coefs, Kind, Path
from secondlook.noise import Key, normal, uniform


@dataclass(frozen=True)
class Reward:
    """``reward(x) = <slope, x> - curvature |x|^2 / 2 + offset``, the rewards that tilt a mixture into a mixture.

    slope: [D] float64. ``Reward.near`` gives the reward for being close to a point.
    """

    slope: Tensor
    curvature: float = 0.0
    offset: float = 0.0

    @staticmethod
    def near(target: Tensor, strength: float = 1.0) -> Reward:
        """``-strength |x - target|^2 / 2``, for a target [D]."""
        target = target.double()
        return Reward(strength * target, strength, -0.5 * strength * float(target.square().sum()))

    def __call__(self, x: Tensor) -> Tensor:
        """The reward of samples x [B, D]: [B] float64."""
        x = x.double()
        return x @ self.slope.to(x) - 0.5 * self.curvature * x.square().sum(-1) + self.offset


@dataclass(frozen=True)
class Mixture:
    """An isotropic Gaussian mixture. weights: [K], summing to 1. means: [K, D]. scales: [K], standard deviations.

    All float64; ``Mixture.of`` makes one from plain numbers.
    """

    weights: Tensor
    means: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        if self.means.ndim != 2 or not self.weights.shape == self.scales.shape == self.means.shape[:1]:
            got = ", ".join(str(list(v.shape)) for v in (self.weights, self.means, self.scales))
            raise ShapeError(f"A mixture expects weights [K], means [K, D] and scales [K]; got {got}.")
        if {self.weights.dtype, self.means.dtype, self.scales.dtype} != {torch.float64}:
            raise ConfigError("A mixture is exact in float64 only: give float64 tensors, or use Mixture.of.")
        if not bool((self.weights > 0).all()) or abs(float(self.weights.sum()) - 1) > 1e-9:
            raise ConfigError(f"A mixture's weights must be positive and sum to 1; got {self.weights.tolist()}.")
        if not bool((self.scales > 0).all()):
            raise ConfigError(f"A mixture's scales must be positive; got {self.scales.tolist()}.")

    @staticmethod
    def of(weights: Sequence[float], means: Sequence[Sequence[float]], scales: Sequence[float]) -> Mixture:
        """A mixture from numbers; the weights are divided by their sum."""
        w, m, s = (torch.tensor(v, dtype=torch.float64) for v in (weights, means, scales))
        return Mixture(w / w.sum(), m, s)

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    def sample(self, keys: Sequence[Key]) -> Tensor:
        """Draws of data, float64 [len(keys), D]. Row i depends on ``keys[i]`` only."""
        edges = self.weights.cumsum(0)[:-1]
        u = torch.tensor([float(uniform(key.child("component"), 1)[0]) for key in keys], dtype=torch.float64)
        k = torch.searchsorted(edges, u)
        noise = normal([key.child("point") for key in keys], (self.dim,)).double()
        return self.means[k] + self.scales[k, None] * noise

    def mean(self) -> Tensor:
        """[D]: sum_k w_k m_k."""
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        """[D, D]: sum_k w_k (s_k^2 I + m_k m_k^T) - mean mean^T."""
        centred = self.means - self.mean()
        spread = (self.weights @ self.scales.square()) * torch.eye(self.dim, dtype=torch.float64)
        return spread + (self.weights[:, None] * centred).T @ centred

    def marginal(self, path: Path, t: float) -> Mixture:
        """The law of x at time ``t``: weights w_k, means alpha m_k, scales sqrt(alpha^2 s_k^2 + sigma^2)."""
        c = path.coefs(torch.tensor(t, dtype=torch.float64))
        return Mixture(self.weights, c.alpha * self.means, torch.hypot(c.alpha * self.scales, c.sigma))

    def log_density(self, path: Path, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x), [B] float64, at x [B, D] and t [B]. At t = 1 this is the density of the data."""
        return self._look(path, x, t).log_density

    def logp_grad(self, path: Path, x: Tensor, t: Tensor) -> Tensor:
        """The gradient of log p_t at x, [B, D] float64."""
        return self._look(path, x, t).logp_grad

    def posterior_mean(self, path: Path, x: Tensor, t: Tensor) -> Tensor:
        """E[data | x], [B, D] float64."""
        return self._look(path, x, t).data

    def velocity(self, path: Path, x: Tensor, t: Tensor) -> Tensor:
        """The probability-flow velocity at x, [B, D] float64. VP has none at t = 1: its d_sigma is unbounded there."""
        return self.predict("velocity", path, x, t)

    def predict(self, kind: Kind, path: Path, x: Tensor, t: Tensor) -> Tensor:
        """Any view of an estimate by its name, [B, D] float64."""
        look = self._look(path, x, t)
        if kind == "data":
            return look.data
        if kind == "logp_grad":
            return look.logp_grad
        noise = -look.coefs.sigma * look.logp_grad
        if kind == "noise":
            return noise
        if kind == "velocity":
            return look.coefs.d_alpha * look.data + look.coefs.d_sigma * noise
        raise ConfigError(f"A prediction must be one of {', '.join(KINDS)}; got {kind!r}.")

    def network(self, path: Path, predicts: Kind = "data") -> MixtureNetwork:
        """The perfectly trained network for this world on ``path``. ``data`` is the kind that is exact at both ends."""
        return MixtureNetwork(self, path, predicts, (self.dim,))

    def tilted(self, reward: Reward, temp: float = 1.0) -> Mixture:
        """The law proportional to ``p(x) exp(reward(x) / temp)``. With b = slope / temp and h = curvature / temp,

            w_k' ~ w_k z_k,    m_k' = (m_k + s_k^2 b) / (1 + h s_k^2),    s_k'^2 = s_k^2 / (1 + h s_k^2),

        and z_k as in ``log_normaliser``. To tilt the law at a time t < 1, tilt first and take its ``marginal``.
        """
        b, shrink = self._tilt(reward, temp)
        var = self.scales.square()[:, None]
        weights = (self.weights.log() + self._log_z(b, shrink)).softmax(0)
        return Mixture(weights, (self.means + var * b) / shrink[:, None], self.scales / shrink.sqrt())

    def log_normaliser(self, reward: Reward, temp: float = 1.0) -> float:
        """log E[exp(reward(data) / temp)] = log sum_k w_k z_k + offset / temp, where

            log z_k = -D/2 log(1 + h s_k^2) + (<b, m_k> + s_k^2 |b|^2 / 2 - h |m_k|^2 / 2) / (1 + h s_k^2).

        The value of a point on its way, log E[exp(reward / temp) | x], is this number plus the tilted law's
        ``log_density`` at (x, t) minus this law's.
        """
        log_z = self._log_z(*self._tilt(reward, temp))
        return float((self.weights.log() + log_z).logsumexp(0)) + reward.offset / temp

    def _tilt(self, reward: Reward, temp: float) -> tuple[Tensor, Tensor]:
        """b [D] and 1 + h s_k^2 [K]."""
        if temp <= 0:
            raise ConfigError(f"A tilt's temp must be positive; got {temp}.")
        if reward.slope.shape != (self.dim,):
            raise ShapeError(f"A reward on this mixture expects a slope [{self.dim}]; got {list(reward.slope.shape)}.")
        shrink = 1 + reward.curvature / temp * self.scales.square()
        if not bool((shrink > 0).all()):
            raise ConfigError(
                f"No tilted law: curvature {reward.curvature} at temp {temp} outgrows a component's tail; raise temp."
            )
        return reward.slope.double() / temp, shrink

    def _log_z(self, b: Tensor, shrink: Tensor) -> Tensor:
        var = self.scales.square()
        h = (shrink - 1) / var
        exponent = self.means @ b + 0.5 * var * b.square().sum() - 0.5 * h * self.means.square().sum(-1)
        return exponent / shrink - 0.5 * self.dim * shrink.log()

    def _look(self, path: Path, x: Tensor, t: Tensor) -> _Look:
        if x.ndim != 2 or x.shape[1] != self.dim or t.shape != x.shape[:1]:
            raise ShapeError(f"A mixture expects x [B, {self.dim}] and t [B]; got {list(x.shape)} and {list(t.shape)}.")
        x = x.double()
        weights, means, scales = self.weights.to(x), self.means.to(x), self.scales.to(x)
        c = path.coefs(t.to(x)).like(x)  # [B, 1]
        var = c.alpha.square() * scales.square() + c.sigma.square()  # [B, K]
        gap = x[:, None, :] - c.alpha[:, :, None] * means  # [B, K, D]
        log_joint = (
            weights.log() - 0.5 * self.dim * (2 * math.pi * var).log() - 0.5 * gap.square().sum(-1) / var
        )  # [B, K]
        resp = log_joint.softmax(1)
        pull = c.alpha * scales.square() / var
        data = (resp[:, :, None] * (means + pull[:, :, None] * gap)).sum(1)
        logp_grad = -((resp / var)[:, :, None] * gap).sum(1)
        return _Look(c, log_joint.logsumexp(1), data, logp_grad)


@dataclass(frozen=True)
class _Look:
    """What the closed forms say at one (x, t): coefs [B, 1], log_density [B], data and logp_grad [B, D]."""

    coefs: Coefs
    log_density: Tensor
    data: Tensor
    logp_grad: Tensor


@dataclass(frozen=True)
class MixtureNetwork:
    """A ``flow.Network`` that is never wrong. Conditions are ignored; answers come in the dtype of x."""

    mixture: Mixture
    path: Path
    predicts: Kind
    shape: tuple[int, ...]

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.mixture.predict(self.predicts, self.path, x, t).to(x.dtype)


def default_mixture() -> Mixture:
    """Three unequal components in the plane, far enough apart for modes to be told apart, near enough to overlap."""
    return Mixture.of((0.5, 0.3, 0.2), ((-1.5, 0.0), (1.0, 1.2), (0.8, -1.4)), (0.5, 0.3, 0.7))
