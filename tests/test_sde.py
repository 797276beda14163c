"""Stochastic solvers against exact laws: every diffusion form on every path, the last steps, and what they cost."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path as File
from typing import Any

import pytest
import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import spread
from secondlook.flow.interval import LAST_STEP, interval
from secondlook.flow.path import GVP, VP, Kind, Linear, Path, mix
from secondlook.noise import Key, normal
from secondlook.solvers.ode import Euler, Solver, integrate
from secondlook.solvers.sde import FORMS, Diffusion, EulerMaruyama, LossTable, StochasticHeun, kl_diffusion
from secondlook.types import State
from secondlook.worlds.mixture import Mixture, default_mixture

PATHS: list[Path] = [Linear(), GVP(), VP()]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
each_solver = pytest.mark.parametrize("solver", [EulerMaruyama, StochasticHeun])
WORLD = default_mixture()
ONE = Mixture.of((1.0,), ((1.2,),), (0.5,))
TABLE = LossTable((0.0, 0.5, 1.0), (0.8, 0.2, 0.5))


def diffusion(form: str, **more: Any) -> Diffusion:
    return Diffusion(form, losses=TABLE if form == "kl_eta" else None, **more)


def times(*t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def flow_on(path: Path, kind: Kind = "velocity", world: Mixture = WORLD) -> Flow:
    return Flow(world.network(path, kind), path)


def exact_state(path: Path, t: float, rows: int) -> State:
    keys = tuple(Key.root(0).child(i) for i in range(rows))
    time = torch.full((rows,), t, dtype=torch.float64)
    noise = normal([k.child("noise") for k in keys], (2,)).double()
    return State(mix(path, WORLD.sample(keys), noise, time), time, keys, torch.zeros(rows, dtype=torch.int64))


def still(keys: Sequence[Key], shape: Sequence[int]) -> Tensor:
    return torch.zeros(len(keys), *shape, dtype=torch.float64)


# The law, without chance


def affine(
    solver: type[EulerMaruyama] | type[StochasticHeun], path: Path, form: Diffusion, grid: Tensor
) -> list[Tensor]:
    """a, b, g of each step of the grid, [N] each: on one Gaussian a step is x' = a x + b + g noise, so three probes of
    (x, noise) tell all; every step of the grid is a row of one batch, its time its own."""
    n = len(grid) - 1
    t, t_next = grid[:-1].repeat(3), grid[1:].repeat(3)
    x, noise = (times(*v).repeat_interleave(n)[:, None] for v in ((0, 1, 0), (0, 0, 1)))
    step = solver(form=form, cap=math.inf, source=lambda keys, shape: noise)
    state = State(x, t, (Key.root(0),) * (3 * n), torch.zeros(3 * n, dtype=torch.int64))
    b, ab, bg = step.step(flow_on(path, world=ONE), state, t_next, None).x[:, 0].chunk(3)
    return [ab - b, b, bg - b]


def moments(solver: Any, path: Path, form: Diffusion, steps: int) -> Tensor:
    """Mean and variance at 0.95 of the law that the solver makes from the exact one at 0.05."""
    begin = ONE.marginal(path, 0.05)
    mean, var = float(begin.means), float(begin.scales) ** 2
    grid = torch.linspace(0.05, 0.95, steps + 1, dtype=torch.float64)
    for a, b, g in zip(*(v.tolist() for v in affine(solver, path, form, grid)), strict=True):
        mean, var = a * mean + b, a * a * var + g * g
    return times(mean, var)


@cache
def exact_moments(path: Path) -> Tensor:
    law = ONE.marginal(path, 0.95)
    return times(float(law.mean()), float(law.covariance()))


@pytest.mark.parametrize("form", FORMS)
@each_solver
@each_path
def test_every_diffusion_keeps_the_marginals_to_first_order(path: Path, solver: Any, form: str) -> None:
    """From the exact law at 0.05, the error of mean and variance at 0.95 halves when the steps do, or is gone."""
    which = diffusion(form, eta=0.05)  # for kl_eta: enough to halve w_KL near noise
    coarse, fine = (moments(solver, path, which, n) - exact_moments(path) for n in (200, 400))
    assert fine.abs().max() < 3e-3
    assert (2 * fine - coarse).abs().max() < 6e-5


@pytest.mark.parametrize("form", ["kl", "sigma", "cubic"])
@each_path
def test_an_sde_that_turns_to_an_ode_keeps_the_marginals_to_first_order(path: Path, form: str) -> None:
    late = partial(EulerMaruyama, until=0.5)
    coarse, fine = (moments(late, path, diffusion(form), n) - exact_moments(path) for n in (200, 400))
    assert fine.abs().max() < 3e-3
    assert (2 * fine - coarse).abs().max() < 6e-5
    grid = torch.linspace(0.05, 0.95, 201, dtype=torch.float64)
    noise = affine(late, path, diffusion(form), grid)[2]
    assert (noise[:100] > 0).all()
    assert (noise[100:] == 0).all()


def test_without_any_noise_it_is_eulers_method_and_until_the_end_it_is_itself() -> None:
    state, then = exact_state(Linear(), 0.3, 4), times(0.4, 0.4, 0.4, 0.4)
    one = EulerMaruyama(until=0.0).step(flow_on(Linear()), state, then, None)
    torch.testing.assert_close(one.x, Euler().step(flow_on(Linear()), state, then, None).x, rtol=0, atol=1e-14)
    for until in (0.35, 1.0):
        same = EulerMaruyama(until=until).step(flow_on(Linear()), state, then, None)
        assert torch.equal(same.x, EulerMaruyama().step(flow_on(Linear()), state, then, None).x)


@each_solver
def test_a_wrong_diffusion_unit_would_show(solver: Any) -> None:
    """What the test above is worth: noise of half the variance that the drift is for leaves an error no step removes."""
    grid = torch.linspace(0.05, 0.95, 401, dtype=torch.float64)
    law = ONE.marginal(Linear(), 0.05)
    var = float(law.scales) ** 2
    for a, _, g in zip(*(v.tolist() for v in affine(solver, Linear(), diffusion("kl"), grid)), strict=True):
        var = a * a * var + 0.5 * g * g
    assert abs(var - float(exact_moments(Linear())[1])) > 0.05


# Forms


def test_forms_are_their_formulas() -> None:
    t = times(0.1, 0.3, 0.7, 0.95)
    want = {
        "kl": 2 * (1 - t) / t,
        "sigma": 1 - t,
        "sin2": (math.pi * t).sin() ** 2,
        "linear": 1 - t,
        "constant": torch.ones(4, dtype=torch.float64),
        "decreasing": ((math.pi * t).cos() + 1) ** 2 / 2,
        "cubic": 9 * (1 - t) ** 4,
    }
    for form, w in want.items():
        torch.testing.assert_close(diffusion(form)(Linear(), t), w)
        torch.testing.assert_close(diffusion(form, scale=0.3)(Linear(), t), 0.3 * w)
    assert {*want, "kl_eta"} == set(FORMS)
    torch.testing.assert_close(Diffusion("decreasing", norm=0.5)(Linear(), t), (0.5 * (math.pi * t).cos() + 1) ** 2 / 2)


@each_path
def test_kl_is_written_by_the_signal_to_noise_ratio(path: Path) -> None:
    """w_KL = sigma^2 d log(alpha^2 / sigma^2) / dt, here by automatic differentiation."""
    t = times(0.1, 0.4, 0.8, 0.99).requires_grad_()
    c = path.coefs(t)
    (slope,) = torch.autograd.grad((c.alpha / c.sigma).square().log().sum(), t)
    torch.testing.assert_close(kl_diffusion(path, t.detach()), (c.sigma.square() * slope).detach())


@each_path
def test_kl_eta_is_its_formula(path: Path) -> None:
    t, eta = times(0.02, 0.25, 0.5, 0.75, 0.98), 3e-3
    loss = times(0.776, 0.5, 0.2, 0.35, 0.488)
    torch.testing.assert_close(TABLE(t), loss)
    w = kl_diffusion(path, t)
    want = w * (loss / (loss + 2 * eta * w.square())).sqrt()
    torch.testing.assert_close(Diffusion("kl_eta", eta=eta, losses=TABLE)(path, t), want)


@pytest.mark.parametrize("path", [Linear(), GVP()], ids=lambda p: p.name)
def test_kl_eta_has_its_limit_where_kl_diverges(path: Path) -> None:
    """sqrt(L / (2 eta)), at t = 0 and near it, and 0 at data, without a NaN."""
    form = Diffusion("kl_eta", eta=1e-2, losses=TABLE)
    assert kl_diffusion(path, times(0.0)).isinf().all()
    torch.testing.assert_close(form(path, times(0.0, 1e-9)), times(*[math.sqrt(0.8 / 0.02)] * 2), rtol=1e-6, atol=0)
    assert form(path, times(1.0)).abs().max() < 1e-12


@pytest.mark.parametrize("norm", [1.0, 0.5])
@each_path
def test_official_forms_are_twice_their_coefficient(path: Path, norm: float) -> None:
    """w = 2 D, with the released code's D(t) written out: ``SBDM`` there is w_KL / 2 times norm."""
    t = times(0.1, 0.4, 0.6, 0.9)
    c = path.coefs(t)
    coefficient = {
        "constant": norm * torch.ones_like(t),
        "SBDM": norm * (c.d_alpha / c.alpha * c.sigma**2 - c.sigma * c.d_sigma),
        "sigma": norm * c.sigma,
        "linear": norm * (1 - t),
        "decreasing": 0.25 * (norm * (math.pi * t).cos() + 1) ** 2,
        "increasing-decreasing": norm * (math.pi * t).sin() ** 2,
        "inccreasing-decreasing": norm * (math.pi * t).sin() ** 2,
    }
    for name, d in coefficient.items():
        torch.testing.assert_close(Diffusion.official(name, norm)(path, t), 2 * d)
    with pytest.raises(ConfigError, match='did you mean "SBDM"'):
        Diffusion.official("SBMD")


# Refusals


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Diffusion("kl2"), 'did you mean "kl"'),
        (lambda: Diffusion(scale=-1.0), "scale must be 0 or above"),
        (lambda: Diffusion(norm=math.nan), "norm must be 0 or above"),
        (lambda: Diffusion(eta=math.inf), "eta must be 0 or above"),
        (lambda: Diffusion("kl_eta"), "loss table"),
        (lambda: Diffusion("kl_eta", eta=0.0, losses=TABLE), "eta above 0"),
        (lambda: EulerMaruyama(diffusion="kl_eta"), "loss table"),
        (lambda: EulerMaruyama(last="median"), "last expects one of"),  # type: ignore[arg-type]
        (lambda: StochasticHeun(cap=-1.0), "cap must be 0 or above"),
        (lambda: EulerMaruyama(cap=math.nan), "cap must be 0 or above"),
        (lambda: EulerMaruyama(losses="nowhere.json"), "cannot be read"),
        (lambda: EulerMaruyama(until=1.5), "until must be a time"),
    ],
)
def test_options_are_refused_with_a_sentence(make: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"times": [0, 1]}', "cannot be read"),
        ('{"times": [0, "x"], "losses": [1, 1]}', "cannot be read"),
        ('{"times": [0, 1], "losses": [1]}', "as many losses as rising times"),
        ('{"times": [0], "losses": [1]}', "two at least"),
        ('{"times": [1, 0], "losses": [1, 1]}', "rising times"),
        ('{"times": [0, 0.5, 0.5, 1], "losses": [1, 1, 1, 1]}', "rising times"),
        ('{"times": [0, NaN, 1], "losses": [1, 1, 1]}', "rising times"),
        ('{"times": [0, 1], "losses": [1, 0]}', "losses above 0"),
        ('{"times": [0, 1], "losses": [NaN, 1]}', "losses above 0"),
    ],
)
def test_loss_tables_that_cannot_serve_are_refused(text: str, match: str, tmp_path: File) -> None:
    file = tmp_path / "table.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=match):
        LossTable.read(str(file))


def test_a_solver_reads_its_loss_table_from_the_file_it_names(tmp_path: File) -> None:
    file = tmp_path / "table.json"
    file.write_text(json.dumps({"times": TABLE.times, "losses": TABLE.losses, "unit": "mse"}))
    assert LossTable.read(str(file)) == TABLE
    solver = EulerMaruyama(diffusion="kl_eta", eta=0.1, losses=str(file))
    assert solver.form == Diffusion("kl_eta", eta=0.1, losses=TABLE)


def test_the_sde_does_not_run_back() -> None:
    state = exact_state(Linear(), 0.5, 2)
    for solver in (EulerMaruyama(), StochasticHeun()):
        with pytest.raises(ConfigError, match="from noise to data only"):
            solver.step(flow_on(Linear()), state, state.t - 0.1, None)


# The last step


@pytest.mark.parametrize("form", ["kl", "sigma", "constant"])
@pytest.mark.parametrize("kind", ["data", "noise", "velocity", "logp_grad"])
@each_solver
@each_path
def test_the_last_steps_are_their_formulas(path: Path, solver: Any, kind: Kind, form: str) -> None:
    """From 0.96: the posterior mean; the SDE's drift without its noise; the ODE's step. All in closed form."""
    state, one = exact_state(path, 1 - LAST_STEP, 5), torch.ones(5, dtype=torch.float64)
    v, grad = WORLD.velocity(path, state.x, state.t), WORLD.logp_grad(path, state.x, state.t)
    w = diffusion(form)(path, state.t)[:, None]
    want = {
        "tweedie": WORLD.posterior_mean(path, state.x, state.t),
        "mean": state.x + LAST_STEP * (v + 0.5 * w * grad),
        "euler": state.x + LAST_STEP * v,
    }
    for last, x in want.items():
        got = solver(form=diffusion(form), last=last).step(flow_on(path, kind), state, one, None)
        torch.testing.assert_close(got.x, x, rtol=1e-9, atol=1e-9)
        assert torch.equal(got.t, one)


@each_path
def test_a_last_step_like_the_others_adds_its_noise(path: Path) -> None:
    state, one = exact_state(path, 1 - LAST_STEP, 5), torch.ones(5, dtype=torch.float64)
    w = diffusion("sigma")(path, state.t)[:, None]
    drift = WORLD.velocity(path, state.x, state.t) + 0.5 * w * WORLD.logp_grad(path, state.x, state.t)
    noise = normal([k.child("step", 0) for k in state.keys], (2,)).double()
    got = EulerMaruyama(diffusion="sigma", last="step").step(flow_on(path), state, one, None).x
    torch.testing.assert_close(got, state.x + LAST_STEP * drift + (w * LAST_STEP).sqrt() * noise)


@each_path
def test_the_law_after_tweedies_step(path: Path) -> None:
    """On one Gaussian the estimate keeps the mean exactly and narrows: Var E[data | x] = s^2 alpha^2 s^2 / v."""
    t = times(1 - LAST_STEP)
    c = path.coefs(t)
    v = float((c.alpha * 0.5) ** 2 + c.sigma**2)
    x = c.alpha * 1.2 + times(-1, 1)[:, None] * math.sqrt(v)  # one standard deviation to each side
    state = State(x, t.repeat(2), (Key.root(0),) * 2, torch.zeros(2, dtype=torch.int64))
    for solver in (EulerMaruyama(), StochasticHeun()):
        low, high = (
            solver.step(flow_on(path, world=ONE), state, torch.ones(2, dtype=torch.float64), None).x[:, 0].tolist()
        )
        assert (low + high) / 2 == pytest.approx(1.2)
        assert (high - low) / 2 == pytest.approx(0.25 * float(c.alpha) / math.sqrt(v))


@pytest.mark.parametrize("kind", ["velocity", "noise", "logp_grad", "data"])
@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("last", [0.0, LAST_STEP])
@each_solver
@each_path
def test_the_intervals_lead_to_data_and_all_is_finite(
    path: Path, solver: Any, last: float, preset: str, kind: Kind
) -> None:
    """Start and end by table 10 or the released code; the run is finite and ends near the modes, float32 as in use."""
    span = interval(path.name, kind, "sde", preset=preset, last=last)
    assert span.end == (1 - last if last else 1.0 if kind == "data" or (kind, path.name) in PLAIN else 0.999)
    state = exact_state(path, span.start, 8)
    state = replace(state, x=state.x.float(), t=state.t.float())
    step: Solver = solver(diffusion="kl", last="tweedie" if last else "step")
    end = integrate(flow_on(path, kind), step, state, spread(span.start, span.end, 12, last=last), None)
    assert end.x.dtype == torch.float32
    assert end.x.isfinite().all()
    assert (torch.cdist(end.x.double(), WORLD.means).amin(1) < 5 * WORLD.scales.max()).all()


PLAIN = {("velocity", "linear"), ("velocity", "gvp")}  # predictions without a pole at either end


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", [Linear(), GVP()], ids=lambda p: p.name)
def test_heuns_step_onto_data_itself_is_finite(path: Path, form: str) -> None:
    """Its second stage asks for the drift at t = 1, where sigma is 0; it stays near the ODE's step."""
    state, one = exact_state(path, 0.9, 6), torch.ones(6, dtype=torch.float64)
    solver = StochasticHeun(form=diffusion(form), last="step", source=still)
    end = solver.step(flow_on(path), state, one, None).x
    assert end.isfinite().all()
    if form not in ("constant", "sigma"):  # whose w / sigma does not vanish at data
        ode = StochasticHeun(scale=0.0, last="step", source=still).step(flow_on(path), state, one, None).x
        assert (end - ode).abs().max() < 0.5


# Cost


@dataclass
class Counted:
    """A network that counts its calls."""

    inner: Any
    predicts: Kind = "velocity"
    shape: tuple[int, ...] = (2,)
    calls: list[float] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.calls.append(float(t[0]))
        return self.inner(x, t, cond)


@pytest.mark.parametrize("last", ["tweedie", "mean", "euler", "step"])
def test_one_network_call_an_euler_maruyama_step_and_two_a_heun_step(last: Any) -> None:
    grid = spread(0.0, 0.96, 6, last=LAST_STEP)
    for solver, calls in ((EulerMaruyama(last=last), 7), (StochasticHeun(last=last), 14 if last == "step" else 13)):
        network = Counted(WORLD.network(Linear(), "velocity"))
        integrate(Flow(network, Linear()), solver, exact_state(Linear(), 0.0, 3), grid, None)
        assert len(network.calls) == calls
