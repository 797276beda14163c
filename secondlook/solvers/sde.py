"""Stochastic solvers: SiT's SDE (2401.08740, eq. 4-7) run toward data, dx = [v + w/2 grad log p] dt + sqrt(w) dB.

The unit of the diffusion ``w(t)`` is the paper's. The released code's D(t) is half of it: its ``sigma`` at norm 1 is
our ``sigma`` at scale 2, its ``SBDM`` is our ``kl`` at scale 1 (2 D* = w_KL); ``official`` translates. Any w >= 0 keeps
the marginals in continuous time; which one samples best is an empirical question (table 6 of the paper).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path as File
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from secondlook.errors import ConfigError, nearest
from secondlook.flow.convert import Conversion
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import EPS
from secondlook.flow.path import PATHS, Path
from secondlook.noise import NoiseSource, normal
from secondlook.solvers.ode import moved, rows_of
from secondlook.solvers.step_noise import draw_noise
from secondlook.types import Estimate, State

LastStep = Literal["tweedie", "mean", "euler", "step"]
FORMS = ("kl", "kl_eta", "sigma", "sin2", "linear", "constant", "decreasing", "cubic")
_EDGE = 1e-4  # nearer to data than this, w and sigma are those at 1 - 1e-4: both may vanish at 1, their ratio does not
LAST = ("tweedie", "mean", "euler", "step")


def kl_diffusion(path: Path, t: Tensor) -> Tensor:
    """w_KL = 2 sigma (sigma d_alpha / alpha - d_sigma), [B]: the diffusion whose bound on the divergence is tightest
    (2401.08740, sec. 2.4), which for VP is beta, the forward process's own. Infinite where alpha = 0."""
    c = path.coefs(t)
    return 2 * c.sigma * (c.sigma * c.d_alpha / c.alpha - c.d_sigma)


@dataclass(frozen=True)
class LossTable:
    """The training loss at some times (mean squared error of the velocity), as training logs it; for ``kl_eta``."""

    times: tuple[float, ...]
    losses: tuple[float, ...]

    @staticmethod
    def read(path: str) -> LossTable:
        """From a JSON file with ``times`` (rising) and ``losses``, as `secondlook train` writes it."""
        try:
            found = json.loads(File(path).read_text())
            table = LossTable(tuple(map(float, found["times"])), tuple(map(float, found["losses"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f'The loss table "{path}" cannot be read ({error}); training writes loss-by-time.json.'
            ) from None
        rising = all(a < b for a, b in pairwise(table.times))
        if len(table.times) != len(table.losses) or len(table.times) < 2 or not rising:
            raise ConfigError(f'The loss table "{path}" expects as many losses as rising times, two at least.')
        if not all(0 < loss < math.inf for loss in table.losses):
            raise ConfigError(
                f'The loss table "{path}" expects losses above 0 and finite; got {min(table.losses)} to {max(table.losses)}.'
            )
        return table

    def __call__(self, t: Tensor) -> Tensor:
        """Linear between its times, constant beyond them: [B]."""
        times, losses = (torch.tensor(v, dtype=t.dtype, device=t.device) for v in (self.times, self.losses))
        at = torch.searchsorted(times, t.contiguous()).clamp(1, len(times) - 1)
        share = ((t - times[at - 1]) / (times[at] - times[at - 1])).clamp(0, 1)
        return losses[at - 1] + share * (losses[at] - losses[at - 1])


_read = lru_cache(LossTable.read)


@dataclass(frozen=True)
class Diffusion:
    """w(t) by name, in the paper's unit. sigma: sigma(t). sin2: sin^2(pi t). linear: 1 - t. constant: 1. decreasing:
    (norm cos(pi t) + 1)^2 / 2 (the released code's). cubic: (3 (1 - t)^2)^2, RBF's g = 3 t^2 with its time turned
    (2503.19385). kl, and kl_eta = w_KL sqrt(L / (L + 2 eta w_KL^2)) with L the training loss at t (2401.08740, sec.
    2.4; where w_KL diverges sqrt(L / (2 eta))). All times ``scale``."""

    form: str = "kl"
    scale: float = 1.0
    norm: float = 1.0
    eta: float = 1e-3
    losses: LossTable | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ConfigError(f'There is no diffusion "{self.form}"; {nearest(self.form, FORMS)}')
        for name in ("scale", "norm", "eta"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"sde: {name} must be 0 or above, and finite; got {value!r}.")
        if self.form == "kl_eta" and (self.losses is None or self.eta == 0):
            raise ConfigError(
                'The diffusion "kl_eta" needs eta above 0 and a loss table: losses="FILE.json" from training.'
            )

    @staticmethod
    def official(form: str, norm: float = 1.0) -> Diffusion:
        """The released code's forms under its names; D(t) there is half of w(t) here."""
        names = {"constant": "constant", "SBDM": "kl", "sigma": "sigma", "linear": "linear", "decreasing": "decreasing",
                 "increasing-decreasing": "sin2", "inccreasing-decreasing": "sin2"}  # fmt: skip
        if form not in names:
            raise ConfigError(f'There is no diffusion form "{form}"; {nearest(form, names)}')
        if form == "decreasing":
            return Diffusion("decreasing", norm=norm)
        return Diffusion(names[form], norm if form == "SBDM" else 2 * norm)

    def __call__(self, path: Path, t: Tensor) -> Tensor:
        """w(t), [B]; infinite where the form is."""
        return self.scale * self._form(path, t) if self.scale > 0 else torch.zeros_like(t)

    def _form(self, path: Path, t: Tensor) -> Tensor:
        if self.form == "kl":
            return kl_diffusion(path, t)
        if self.form == "kl_eta":
            assert self.losses is not None
            loss = self.losses(t)
            # w sqrt(L / (L + 2 eta w^2)) = 1 / sqrt(1 / w^2 + 2 eta / L), which has the limit in it
            return (kl_diffusion(path, t).square().reciprocal() + 2 * self.eta / loss).rsqrt()
        if self.form == "sigma":
            return path.coefs(t).sigma
        if self.form == "sin2":
            return torch.sin(math.pi * t).square()
        if self.form == "linear":
            return 1 - t
        if self.form == "constant":
            return torch.ones_like(t)
        if self.form == "decreasing":
            return (self.norm * torch.cos(math.pi * t) + 1).square() / 2
        return (3 * (1 - t).square()).square()


@dataclass(frozen=True)
class _Stochastic:
    """Options of both stochastic solvers.

    diffusion, scale, norm, eta, losses: see Diffusion (``losses`` names a file). cap: a bound on w; None bounds it to 0.2 /
    dt, so that no step replaces more than about a tenth of a sample's noise (w_KL is infinite at noise on Linear and
    GVP). last: the step that reaches t = 1: "tweedie" returns the data estimate, "mean" the drift alone (the paper's), "euler" the
    ODE's step, "step" a step like the others. source replaces the keyed noise: (keys [B], shape) -> [B, *shape].
    """

    diffusion: str = "kl"
    scale: float = 1.0
    cap: float | None = None
    last: LastStep = "tweedie"
    norm: float = 1.0
    eta: float = 1e-3
    losses: str | None = None
    source: NoiseSource = normal
    form: Diffusion | None = field(default=None, repr=False)
    random: ClassVar[bool] = True
    reuses: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.last not in LAST:
            raise ConfigError(f"sde: last expects one of {', '.join(LAST)}; got {self.last!r}.")
        if self.cap is not None and not self.cap >= 0:
            raise ConfigError(f"sde: cap must be 0 or above; got {self.cap!r}.")
        if self.form is None:
            losses = None if self.losses is None else _read(self.losses)
            object.__setattr__(self, "form", Diffusion(self.diffusion, self.scale, self.norm, self.eta, losses))

    def w(self, flow: Flow, t: Tensor, dt: Tensor) -> Tensor:
        """The diffusion used at t [B] in a step of size dt [B]: [B]."""
        assert self.form is not None
        w = self.form(flow.path, t.clamp(max=1.0 - _EDGE))
        bound = 0.2 / dt.abs() if self.cap is None else torch.full_like(w, self.cap)
        return torch.minimum(w.nan_to_num(nan=math.inf, posinf=math.inf), bound) if self.cap != math.inf else w

    @staticmethod
    def span(state: State, t_next: Tensor) -> Tensor:
        """The step's size [B]; ConfigError where it leads back."""
        span = t_next - state.t
        if bool((span < 0).any()):
            raise ConfigError("sde runs from noise to data only; go back with an ODE solver, such as heun or rk4.")
        return span

    def noise(self, state: State) -> Tensor:
        return draw_noise(self.source, state)

    def drift(self, flow: Flow, e: Estimate, t: Tensor, w: Tensor) -> Tensor:
        """velocity + w/2 grad log p, by the noise: w / sigma has a limit at data for every form that vanishes there."""
        sigma = rows_of(flow.path.coefs(t.clamp(max=1.0 - _EDGE)).sigma, e.noise)
        return e.velocity - 0.5 * w / sigma * e.noise

    def finished(self, flow: Flow, state: State, e: Estimate, w: Tensor, dt: Tensor) -> Tensor:
        """Where the last step ends."""
        if self.last == "tweedie":
            return e.data
        return state.x + dt * (e.velocity if self.last == "euler" else self.drift(flow, e, state.t, w))


@dataclass(frozen=True)
class EulerMaruyama(_Stochastic):
    """First order, one evaluation a step: velocity and gradient of log density come from the same network call.

    until: from this time on no noise is drawn and the steps are the ODE's, as w = 0 keeps the marginals too; rows that branch later
    than that end alike. path: "vp", "gvp" or "linear": each step is made on that path and taken back (2503.19385's conversion;
    flow/convert.py), from s(t) to s(t_next), with the same network asked at the same (x, t), the diffusion of the other path and
    its own drift. For VP w_KL is beta, finite at noise, where Linear's is infinite. The grid stays the run's: even times of VP
    are about those of a linear grid with --shift 3.4.
    """

    reuses: ClassVar[bool] = True
    until: float = 1.0
    path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.until <= 1:
            raise ConfigError(f"sde: until must be a time from 0 to 1; got {self.until!r}.")
        if self.path is not None and self.path not in PATHS:
            raise ConfigError(f'sde: there is no path "{self.path}"; {nearest(str(self.path), PATHS)}')

    def evals(self, last: bool) -> int:
        return 1

    def asks(self, t: float, t_next: float) -> tuple[float, ...]:
        return (t,)

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
        e = flow.estimate(state.x, state.t, cond)
        self.span(state, t_next)
        drawn = state.t < self.until - EPS
        if self.path is None:
            return moved(state, self._onward(flow, state, t_next, e, drawn), t_next, e.data)
        way = Conversion(flow.path, PATHS[self.path]())
        (s, c, size), (s_next, _, size_next) = way.at(state.t), way.at(t_next)
        there = replace(state, x=rows_of(size, state.x) * state.x, t=s)
        x = self._onward(Flow(flow.network, way.target), there, s_next, way.estimate(e, c), drawn)
        return moved(state, x / rows_of(size_next, x), t_next, e.data)

    def _onward(self, flow: Flow, state: State, t_next: Tensor, e: Estimate, drawn: Tensor) -> Tensor:
        """x after a step on the path of ``flow`` [B, *S]; drawn: the rows whose step has noise, [B]."""
        span = t_next - state.t
        w = torch.where(drawn, self.w(flow, state.t, span), 0.0)
        w, dt = rows_of(w, state.x), rows_of(span, state.x)
        x = state.x + dt * self.drift(flow, e, state.t, w) + (w * dt).sqrt() * self.noise(state)
        if self.last != "step" and bool((t_next >= 1.0).any()):
            x = torch.where(rows_of(t_next, x) >= 1.0, self.finished(flow, state, e, w, dt), x)
        return x


@dataclass(frozen=True)
class StochasticHeun(_Stochastic):
    """The released code's second stochastic sampler: add the step's noise first, then Heun's two stages on the drift,
    each with the diffusion of its own time. Weakly first order; two evaluations a step."""

    def evals(self, last: bool) -> int:
        return 1 if last and self.last != "step" else 2

    def asks(self, t: float, t_next: float) -> tuple[float, ...]:
        return (t, t_next)[: self.evals(t_next >= 1.0)]

    def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
        ended = (t_next >= 1.0) if self.last != "step" else torch.zeros_like(t_next, dtype=torch.bool)
        if bool(ended.any()) and not bool(ended.all()):
            raise ValueError("sde_heun expects rows that all reach t = 1 in this step or none: their costs differ.")
        span = self.span(state, t_next)
        w, dt = rows_of(self.w(flow, state.t, span), state.x), rows_of(span, state.x)
        if bool(ended.all()):
            e = flow.estimate(state.x, state.t, cond)
            return moved(state, self.finished(flow, state, e, w, dt), t_next, e.data)
        noisy = state.x + (w * dt).sqrt() * self.noise(state)
        k1 = self.drift(flow, flow.estimate(noisy, state.t, cond), state.t, w)
        e = flow.estimate(noisy + dt * k1, t_next, cond)
        k2 = self.drift(flow, e, t_next, rows_of(self.w(flow, t_next, span), state.x))
        return moved(state, noisy + 0.5 * dt * (k1 + k2), t_next, e.data)
