"""log p of data by the change of variables along the probability-flow ODE, and bits per dimension.

With dx = v(x, t) dt from noise (t = 0) to data (t = 1), log p_1(x_1) = log p_0(x_0) - int_0^1 div v dt along the path
through x_1 (Song et al., 2011.13456, sec. 4.3 and app. D.2; for SiT's paths 2401.08740): x and the integral are solved
for together, from data to noise. The divergence is probe^T J probe with a random probe (Hutchinson's estimate; FFJORD,
1810.01367, sec. 3.1), or the sum over J's diagonal. A probe is drawn once for a trajectory and never again: an adaptive solver would take a fresh one
for a right-hand side that is nowhere smooth. Velocity and J^T probe come from one pass of the network.

The result's unit is nats in flow space, where the samples live; its errors are the solver's, the probes' (``error``) and
that of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import ConfigError, SecondlookError, ShapeError
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import spread
from secondlook.flow.guidance import Network, Plain
from secondlook.flow.interval import Interval, interval
from secondlook.flow.path import Kind, Path
from secondlook.noise import Key, integers, normal, uniform
from secondlook.solvers.adaptive import Dopri5
from secondlook.solvers.ode import Solver, integrate
from secondlook.types import Estimate, State

Probe = Literal["rademacher", "gaussian", "exact"]
PROBES = ("rademacher", "gaussian", "exact")
Prior = Callable[[Tensor, float], Tensor]
STEPS = 100  # of solvers that do not choose their own


@dataclass(frozen=True)
class LogProb:
    """log p of B rows, each [B] float64, in nats: ``log_prob`` = ``prior`` - ``divergence``.

    prior: log density of ``noise`` under the prior. divergence: the integral of div v from noise to data. error: the
    standard error of ``log_prob`` over the probes, NaN with one probe, 0 with the exact trace. noise: [B, *S], where the rows end
    at the noise's side. nfe: network passes a row was given.
    """

    log_prob: Tensor
    prior: Tensor
    divergence: Tensor
    error: Tensor
    noise: Tensor
    nfe: int


def standard_normal(x: Tensor, t: float) -> Tensor:
    """log N(x; 0, I), [B] float64, at x [B, *S]: the prior of every path, at whatever t the interval begins.

    Exact where alpha = 0. VP begins at alpha = 0.0066: there this is the law of x for standard normal data, and for other
    data it is off by about alpha <x, mean> and by terms of order alpha^2. Give another ``prior`` where that matters.
    """
    x = x.double().flatten(1)
    return -0.5 * x.square().sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)


def ends(path: Path, predicts: Kind) -> Interval:
    """The times to integrate between: those of ODE sampling (2401.08740, table 10), turned. Data prediction samples on
    all of [0, 1], its last step being the estimate itself; its velocity has a pole at data, as a noise prediction's."""
    return interval(path.name, "noise" if predicts == "data" else predicts, "ode")


def log_prob(
    flow: Flow,
    x: Tensor,
    cond: Any = None,
    *,
    keys: Sequence[Key] | None = None,
    probes: int = 1,
    probe: Probe = "rademacher",
    solver: str | Solver = "dopri5(rtol=1e-5, atol=1e-5)",
    steps: int | None = None,
    interval: Interval | None = None,
    prior: Prior = standard_normal,
) -> LogProb:
    """log p of data x [B, *S] under the flow, whose network is asked under ``cond``.

    keys: one a row, for its probes; the exact trace, which costs as many backward passes as there are dimensions, needs
    none. solver: a deterministic one or its call-string. steps: even steps of a solver that does not choose its own (100).
    interval: None for ``ends``. prior: (x [B, *S], t) -> [B], the log density at the interval's start. The state is kept in
    float64, the network sees the dtype of x. ConfigError for what has no likelihood: guided flows, random solvers.
    """
    chosen = _solver(solver)
    _check(flow, x, keys, probes, probe, chosen, steps)
    span = interval or ends(flow.path, flow.network.predicts)
    drawn = None if probe == "exact" else _probes(probe, keys or (), probes, x)
    dims, count = x[0].numel(), 1 if drawn is None else probes
    traced = Traced(flow.network, flow.path, Differentiable(), flow.meter, drawn, x.shape[1:], x.dtype)
    begin = torch.cat([x.detach().double().flatten(1), x.new_zeros(len(x), count * copies(dims, count)).double()], 1)
    times = (span.end, span.start) if isinstance(chosen, Dopri5) else spread(span.start, span.end, steps or STEPS)[::-1]
    state = State(begin, torch.full((len(x),), span.end, dtype=torch.float64, device=x.device), tuple(keys or _NONE * len(x)),
                  torch.zeros(len(x), dtype=torch.long))  # fmt: skip
    before = flow.meter.nfe
    end = integrate(traced, chosen, state, times, cond).x
    noise = end[:, :dims].view(x.shape)
    parts = -end[:, dims :: copies(dims, count)]  # [B, count]: integrated backward
    divergence = parts.mean(1)
    error = parts.std(1) / count**0.5 if count > 1 else torch.full_like(divergence, 0.0 if drawn is None else math.nan)
    base = prior(noise, span.start).double()
    return LogProb(base - divergence, base, divergence, error, noise.to(x.dtype), flow.meter.nfe - before)


_NONE = (Key(0),)  # deterministic solvers read no keys


def copies(dims: int, count: int) -> int:
    """How often each probe's integral stands in the state: so often that, of an adaptive solver's mean over the state,
    it has at least half. Once among thousands of coordinates it would go unheard."""
    return max(1, math.ceil(dims / count))


@dataclass(frozen=True)
class Differentiable(Plain):
    """The network's own prediction, refused where it was not recorded for differentiation."""

    def __call__(self, network: Network, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        value = network(x, t, cond)
        if not value.requires_grad:
            raise SecondlookError(
                "log_prob differentiates the network, whose answer has no gradient: it runs under no_grad."
            )
        return value


@dataclass
class Traced(Flow):
    """A flow on the state [x | integrals], float64 [B, D + K copies], whose velocity is [v | div v]; nothing else of its
    estimates means anything. probes: [K, B, *S], or None for the exact trace (K = 1)."""

    probes: Tensor | None = None
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32

    def estimate(self, x: Tensor, t: Tensor, cond: Any) -> Estimate:
        dims = math.prod(self.shape)
        with torch.enable_grad():
            inner = x[:, :dims].detach().to(self.dtype).view(-1, *self.shape).requires_grad_()
            velocity = super().estimate(inner, t.to(inner), cond).velocity
            trace = self._exact(velocity, inner) if self.probes is None else self._probed(velocity, inner, self.probes)
        spread_out = trace.repeat_interleave(copies(dims, trace.shape[1]), 1)
        rate = torch.cat([velocity.detach().double().flatten(1), spread_out], 1)
        return Estimate(x, x, rate, x)

    def _probed(self, velocity: Tensor, x: Tensor, probes: Tensor) -> Tensor:
        """probe^T J probe, [B, K] float64: rows do not see each other, so one backward pass serves all of a probe's."""
        found = []
        for i, probe in enumerate(probes):
            (pulled,) = torch.autograd.grad(velocity, x, probe.to(velocity), retain_graph=i + 1 < len(probes))
            found.append((pulled.double() * probe.double()).flatten(1).sum(1))
        return torch.stack(found, 1)

    def _exact(self, velocity: Tensor, x: Tensor) -> Tensor:
        """The trace of J, [B, 1] float64, one backward pass a dimension."""
        flat, total = velocity.flatten(1), torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for i in range(flat.shape[1]):
            (row,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=i + 1 < flat.shape[1])
            total = total + row.flatten(1)[:, i].double()
        return total[:, None]


def _probes(probe: Probe, keys: Sequence[Key], count: int, x: Tensor) -> Tensor:
    """[count, B, *S] in the dtype of x; row i's depend on keys[i] alone."""
    shape = x.shape[1:]
    named = [[key.child("probe", j) for key in keys] for j in range(count)]
    if probe == "gaussian":
        return torch.stack([normal(row, shape) for row in named]).to(x)
    signs = np.stack([[integers(key, math.prod(shape)) >> np.uint64(63) for key in row] for row in named])
    return (2.0 * torch.from_numpy(signs.astype(np.float32)) - 1.0).view(count, *x.shape).to(x)


def _solver(solver: str | Solver) -> Solver:
    if not isinstance(solver, str):
        return solver
    from secondlook.settings import make_named  # call-strings are not mathematics: loaded where one is given

    made: Solver = make_named("solver", solver)
    return made


def _check(
    flow: Flow, x: Tensor, keys: Sequence[Key] | None, probes: int, probe: str, solver: Solver, steps: int | None
) -> None:
    """Refuse what cannot be done, before anything is."""
    if torch.is_inference_mode_enabled():
        raise SecondlookError(
            "log_prob differentiates the network, which torch.inference_mode forbids; torch.no_grad is fine."
        )
    if type(flow.guide) is not Plain:
        raise ConfigError(
            f"A likelihood is the model's own, so log_prob expects a flow without guidance; got {type(flow.guide).__name__}."
        )
    if solver.random:
        raise ConfigError(
            f"log_prob expects a deterministic solver (euler, heun, rk4, dopri5); got {type(solver).__name__}."
        )
    if x.ndim < 2 or not len(x) or tuple(x.shape[1:]) != tuple(flow.network.shape) or not x.is_floating_point():
        want = ", ".join(map(str, flow.network.shape))
        raise ShapeError(f"log_prob expects floating-point x [B, {want}], B above 0; got {x.dtype} {list(x.shape)}.")
    if probe not in PROBES:
        raise ConfigError(f"A probe is one of {', '.join(PROBES)}; got {probe!r}.")
    if probes < 1 or (probe == "exact" and probes != 1):
        raise ConfigError(f"log_prob expects at least one probe, and one for the exact trace; got {probes}.")
    if probe != "exact" and (keys is None or len(keys) != len(x)):
        raise ConfigError(
            f"log_prob expects a key for each of its {len(x)} rows; got {0 if keys is None else len(keys)}."
        )
    if steps is not None and (steps < 1 or isinstance(solver, Dopri5)):
        raise ConfigError(
            "log_prob: steps expects at least 1, and a solver that does not choose its own (euler, heun, rk4)."
        )


# Bits per dimension


@dataclass(frozen=True)
class Bits:
    """``mean`` bits per dimension over ``count`` samples, with its standard error (NaN for one); ``latent`` where they are
    bits of a density that no pixel's can be compared with."""

    mean: float
    error: float
    count: int
    latent: bool = False

    @property
    def text(self) -> str:
        """One line, with what the number may not be used for."""
        said = f"{self.mean:.4f} ± {self.error:.4f} bits per dimension over {self.count:,} samples"
        return (
            f"{said} of a latent density: not comparable with bits per pixel, and may be negative"
            if self.latent
            else said
        )

    def __str__(self) -> str:
        return self.text


def bits_per_dim(log_prob: Tensor, dims: int, *, width: float | None = 2 / 256) -> Bits:
    """Bits per dimension from log densities [N] in nats of ``dims``-dimensional samples.

    width: what one level measures in flow space; 2 / levels for what ``dequantise`` gives, for which the result,
    -log p / (D ln 2) + log2(levels / 2), bounds from above the bits of the integers (uniform dequantisation; 1511.01844, sec. 3.1).
    None for samples that are no integers, such as an autoencoder's latents: then bits of the density itself.
    """
    if log_prob.ndim != 1 or not len(log_prob) or dims < 1:
        raise ShapeError(
            f"bits_per_dim expects log densities [N] and dims above 0; got {list(log_prob.shape)} and {dims}."
        )
    if not bool(log_prob.isfinite().all()):
        raise ConfigError(
            f"bits_per_dim expects finite log densities; got {int((~log_prob.isfinite()).sum())} that are not."
        )
    if width is not None and not 0 < width < math.inf:
        raise ConfigError(f"The width of a level must be above 0 and finite, or None; got {width}.")
    bits = -log_prob.double() / (dims * math.log(2)) - (0.0 if width is None else math.log2(width))
    n = len(bits)
    return Bits(float(bits.mean()), float(bits.std()) / n**0.5 if n > 1 else math.nan, n, width is None)


def dequantise(x: Tensor, keys: Sequence[Key], levels: int = 256) -> Tensor:
    """Integers x uint8 [B, *S] from 0 to levels - 1 as float32 in [-1, 1]: 2 (x + u) / levels - 1, u uniform on (0, 1) and
    keyed by row, so that every level is a bin of width 2 / levels."""
    if x.dtype != torch.uint8 or x.ndim < 2 or len(keys) != len(x):
        raise ShapeError(
            f"dequantise expects uint8 [B, *S] and B keys; got {x.dtype} {list(x.shape)} and {len(keys)} keys."
        )
    if not 2 <= levels <= 256 or (x.numel() and int(x.max()) >= levels):
        raise ConfigError(
            f"dequantise expects 2 to 256 levels and integers below them; got {levels}, and {int(x.max())} in the data."
        )
    u = [torch.from_numpy(uniform(key.child("dequantise"), x[0].numel())) for key in keys]
    shift = torch.stack(u).view(x.shape).to(x.device) if u else x.double()
    return ((x.double() + shift) * (2 / levels) - 1).float()
