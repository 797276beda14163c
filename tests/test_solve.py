"""Solvers against the exact world: orders, marginals, purity, and rows that do not see each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import grid
from secondlook.flow.guidance import Plain
from secondlook.flow.path import GVP, VP, Kind, Linear, Path, mix
from secondlook.noise import Key, NoiseSource, normal
from secondlook.solvers.ode import RK4, Euler, Heun, Solver, integrate
from secondlook.solvers.sde import EulerMaruyama, StochasticHeun
from secondlook.types import State
from secondlook.worlds.mixture import Mixture, default_mixture

PATHS: list[Path] = [Linear(), GVP(), VP()]
ALL: list[Solver] = [Euler(), Heun(), RK4(), EulerMaruyama(), StochasticHeun()]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
each_solver = pytest.mark.parametrize("solver", ALL, ids=["euler", "heun", "rk4", "sde", "sde_heun"])
WORLD = default_mixture()


def flow_on(path: Path, world: Mixture = WORLD) -> Flow:
    return Flow(world.network(path), path)


def exact_state(path: Path, t: float, rows: int, seed: int = 0) -> State:
    """Rows drawn from the exact law at time ``t``."""
    keys = tuple(Key.root(seed).child(i) for i in range(rows))
    time = torch.full((rows,), t, dtype=torch.float64)
    noise = normal([k.child("noise") for k in keys], (2,)).double()
    return State(mix(path, WORLD.sample(keys), noise, time), time, keys, torch.zeros(rows, dtype=torch.int64))


def seeded(seed: int) -> NoiseSource:
    """Many normals quickly, for tests of a law and not of single draws."""
    g = torch.Generator().manual_seed(seed)
    return lambda keys, shape: torch.randn(len(keys), *shape, generator=g, dtype=torch.float64)


def constant(value: float) -> NoiseSource:
    return lambda keys, shape: torch.full((len(keys), *shape), value, dtype=torch.float64)


def assert_same(a: State, b: State) -> None:
    assert a.keys == b.keys
    assert a.data is not None
    assert b.data is not None
    for one, other in ((a.x, b.x), (a.t, b.t), (a.step, b.step), (a.data, b.data)):
        assert torch.equal(one, other)


# Orders


@cache
def fine_reference(path: Path) -> tuple[State, Tensor]:
    """A start at t = 0.05 and where the exact flow takes it by 0.95: 1500 steps of classical Runge-Kutta (order 4) on
    the closed-form velocity, which shares no code with the solvers."""
    start = exact_state(path, 0.05, 48)
    x, h = start.x, 0.9 / 1500
    for i in range(1500):
        t = start.t + i * h
        k1 = WORLD.velocity(path, x, t)
        k2 = WORLD.velocity(path, x + 0.5 * h * k1, t + 0.5 * h)
        k3 = WORLD.velocity(path, x + 0.5 * h * k2, t + 0.5 * h)
        k4 = WORLD.velocity(path, x + h * k3, t + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return start, x


def rms_error(path: Path, solver: Solver, steps: int) -> float:
    start, want = fine_reference(path)
    times = tuple(0.05 + 0.9 * i / steps for i in range(steps + 1))
    return float((integrate(flow_on(path), solver, start, times, None).x - want).square().mean().sqrt())


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (Euler(), 1),
        (Heun(), 2),
        (RK4(), 4),
        (EulerMaruyama(scale=0.0, source=constant(0.0)), 1),
        (StochasticHeun(scale=0.0, source=constant(0.0)), 2),
    ],
)
@each_path
def test_order(path: Path, solver: Solver, order: int) -> None:
    errors = [rms_error(path, solver, n) for n in (40, 80, 160)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)
    assert errors[-1] < {1: 0.02, 2: 2e-3, 4: 1e-6}[order]


# The law of the stochastic sampler


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
@each_path
def test_stochastic_steps_keep_gaussian_marginals_to_first_order(path: Path, scale: float) -> None:
    """Without chance: for one Gaussian a step is affine, x' = a x + b + g noise, so mean and variance follow by
    recursion with a, b, g read off the solver. Whatever the diffusion (the bound near noise included) they must go to
    the path's own, with an error that halves when the steps do."""
    world = Mixture.of((1.0,), ((1.2,),), (0.5,))
    flow = flow_on(path, world)
    probe_x, probe_noise = (torch.tensor(v, dtype=torch.float64)[:, None] for v in ([0.0, 1, 0], [0.0, 0, 1]))
    solver = EulerMaruyama(scale=scale, source=lambda keys, shape: probe_noise)

    def moments(steps: int) -> Tensor:
        begin = world.marginal(path, 0.0)
        mean, var = float(begin.means[0, 0]), float(begin.scales[0]) ** 2
        times = torch.linspace(0, 0.9, steps + 1, dtype=torch.float64)
        for t, t_next in pairwise(times):
            rows = torch.ones(3, dtype=torch.float64)
            state = State(probe_x, t * rows, (Key.root(0),) * 3, torch.zeros(3, dtype=torch.int64))
            b, ab, bg = solver.step(flow, state, t_next * rows, None).x[:, 0].tolist()
            a, g = ab - b, bg - b
            mean, var = a * mean + b, a * a * var + g * g
        return torch.tensor([mean, var])

    law = world.marginal(path, 0.9)
    want = torch.tensor([float(law.mean()), float(law.covariance())])
    coarse, fine = (moments(n) - want for n in (40, 80))
    assert fine.abs().max() < 0.04
    extrapolated = 2 * fine - coarse
    assert (extrapolated.abs() < 0.15 * fine.abs() + 5e-4).all()


@each_path
def test_stochastic_sampler_has_the_exact_law(path: Path) -> None:
    """Weak error against Monte Carlo error: mean, covariance and a mode's share at t = 0.9, from exact draws at 0.1."""
    n, steps = 2500, 60
    law0, law = WORLD.marginal(path, 0.1), WORLD.marginal(path, 0.9)
    g = torch.Generator().manual_seed(3)
    k = torch.multinomial(law0.weights, n, replacement=True, generator=g)
    x = law0.means[k] + law0.scales[k, None] * torch.randn(n, 2, generator=g, dtype=torch.float64)
    start = State(x, torch.full((n,), 0.1, dtype=torch.float64), (Key.root(0),) * n, torch.zeros(n, dtype=torch.int64))
    solver = EulerMaruyama(source=seeded(4))
    times = tuple(0.1 + 0.8 * i / steps for i in range(steps + 1))
    x = integrate(flow_on(path), solver, start, times, None).x
    centred = x - law.mean()
    products = torch.einsum("bi,bj->bij", centred, centred)
    bias = 1 / steps  # weak order 1 with a constant of about one in these units
    assert ((x.mean(0) - law.mean()).abs() < 4 * x.std(0) / n**0.5 + bias).all()
    assert ((products.mean(0) - law.covariance()).abs() < 4 * products.std(0) / n**0.5 + 2 * bias).all()
    left = float((x[:, 0] < 0).double().mean())
    gauss = torch.distributions.Normal(law.means[:, 0], law.scales)
    want = float(law.weights @ gauss.cdf(torch.tensor(0.0, dtype=torch.float64)))
    assert abs(left - want) < 4 * (want * (1 - want) / n) ** 0.5 + bias


def test_diffusion_is_sbdms_below_its_bound() -> None:
    """2 sigma (sigma d_alpha / alpha - d_sigma), SiT's table of diffusions; on the linear path 2 (1 - t) / t."""
    t = torch.tensor([0.0, 0.1, 0.4, 0.5, 0.8, 0.9], dtype=torch.float64)
    dt = torch.full_like(t, 0.05)
    w = EulerMaruyama().w(flow_on(Linear()), t, dt)
    torch.testing.assert_close(w, torch.tensor([4.0, 4.0, 3.0, 2.0, 0.5, 2 / 9], dtype=torch.float64))
    half = EulerMaruyama(scale=0.5, cap=2.0).w(flow_on(Linear()), t, dt)
    torch.testing.assert_close(half, 0.5 * w)
    u = 1 - t[1:-1]  # on VP it is beta(u)
    vp = EulerMaruyama(cap=100.0).w(flow_on(VP()), t[1:-1], dt[1:-1])
    torch.testing.assert_close(vp, 0.1 + 19.9 * u)


def test_a_step_adds_noise_of_the_diffusions_variance() -> None:
    state = exact_state(GVP(), 0.4, 3)
    t_next = state.t + 0.05
    flow = flow_on(GVP())
    still = EulerMaruyama(source=constant(0.0)).step(flow, state, t_next, None).x
    moved = EulerMaruyama(source=constant(1.0)).step(flow, state, t_next, None).x
    w = EulerMaruyama().w(flow, state.t, torch.full_like(state.t, 0.05))
    torch.testing.assert_close(moved - still, (w * 0.05).sqrt()[:, None].expand(3, 2))
    e = flow.estimate(state.x, state.t, None)
    torch.testing.assert_close(still, state.x + 0.05 * (e.velocity + 0.5 * w[:, None] * e.logp_grad))


def test_noise_depends_on_key_and_step_only() -> None:
    flow, state = flow_on(Linear()), exact_state(Linear(), 0.5, 4)
    asked: list[tuple[Sequence[Key], tuple[int, ...]]] = []

    def source(keys: Sequence[Key], shape: Sequence[int]) -> Tensor:
        asked.append((list(keys), tuple(shape)))
        return normal(keys, shape)

    state = replace(state, step=torch.tensor([0, 1, 7, 7]))
    EulerMaruyama(source=source).step(flow, state, state.t + 0.1, None)
    EulerMaruyama(source=source).step(flow, replace(state, x=2 * state.x, t=state.t / 2), state.t + 0.2, None)
    expected = [k.child("step", n) for k, n in zip(state.keys, (0, 1, 7, 7), strict=True)]
    assert asked == [(expected, (2,)), (expected, (2,))]


def test_keyed_noise_is_the_default() -> None:
    flow, state = flow_on(Linear()), exact_state(Linear(), 0.5, 3)
    ran = EulerMaruyama().step(flow, state, state.t + 0.1, None).x
    still = EulerMaruyama(source=constant(0.0)).step(flow, state, state.t + 0.1, None).x
    noise = normal([k.child("step", 0) for k in state.keys], (2,)).double()
    w = EulerMaruyama().w(flow, state.t, torch.full_like(state.t, 0.1))
    torch.testing.assert_close(ran - still, (w * 0.1).sqrt()[:, None] * noise)


def test_fresh_noise_at_every_step_and_for_every_key() -> None:
    flow, state = flow_on(Linear()), exact_state(Linear(), 0.5, 1)
    later = replace(state, step=state.step + 1)
    other = replace(state, keys=(Key.root(99),))
    out = [EulerMaruyama().step(flow, s, s.t + 0.1, None).x for s in (state, later, other)]
    assert not torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])


# Purity and batches


@each_solver
@each_path
def test_a_step_is_pure(path: Path, solver: Solver) -> None:
    flow, state = flow_on(path), exact_state(path, 0.3, 5)
    before = [v.clone() for v in (state.x, state.t, state.step)]
    first = solver.step(flow, state, state.t + 0.1, None)
    again = solver.step(flow, state, state.t + 0.1, None)
    assert_same(first, again)
    assert all(torch.equal(a, b) for a, b in zip(before, (state.x, state.t, state.step), strict=True))
    assert state.data is None
    assert first.step.tolist() == [1] * 5
    assert torch.equal(first.t, state.t + 0.1)
    assert not torch.equal(first.x, state.x)


@each_solver
def test_fork_and_rewind(solver: Solver) -> None:
    flow, times = flow_on(Linear()), grid(12, 2.0)
    start = exact_state(Linear(), 0.0, 4)
    middle = integrate(flow, solver, start, times[:6], None)
    end = integrate(flow, solver, middle, times[5:], None)
    assert_same(end, integrate(flow, solver, start, times, None))
    fork = replace(middle, x=middle.x + 0.1, keys=tuple(k.child("fork") for k in middle.keys))
    elsewhere = integrate(flow, solver, fork, times[5:], None)
    assert not torch.equal(elsewhere.x, end.x)
    assert_same(integrate(flow, solver, middle, times[5:], None), end)


@each_solver
@each_path
def test_rows_do_not_depend_on_their_neighbours(path: Path, solver: Solver) -> None:
    """Permuted, split, and beside rows at other times: the same numbers, to the last bit."""
    flow, state = flow_on(path), exact_state(path, 0.2, 9)
    state = replace(state, t=torch.linspace(0.1, 0.8, 9, dtype=torch.float64), step=torch.arange(9))
    t_next = state.t + torch.linspace(0.02, 0.1, 9, dtype=torch.float64)
    whole = solver.step(flow, state, t_next, None)
    order = [4, 8, 0, 2, 6, 1, 7, 3, 5]
    assert_same(solver.step(flow, state.rows(order), t_next[order], None), whole.rows(order))
    parts = [list(range(0, 2)), list(range(2, 9))]
    split = State.stack([solver.step(flow, state.rows(p), t_next[p], None) for p in parts])
    assert_same(split, whole)


# Ends


@pytest.mark.parametrize("kind", ["data", "velocity"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_solver
@each_path
def test_from_noise_to_data_all_is_finite(path: Path, solver: Solver, dtype: torch.dtype, kind: Kind) -> None:
    state = exact_state(path, 0.0, 16)
    state = replace(state, x=state.x.to(dtype), t=state.t.to(dtype))
    for t in grid(20)[1:]:
        state = solver.step(Flow(WORLD.network(path, kind), path), state, torch.full_like(state.t, t), None)
        assert state.x.dtype == dtype
        assert state.data is not None
        assert torch.isfinite(state.x).all()
        assert torch.isfinite(state.data).all()
    assert torch.equal(state.t, torch.ones(16, dtype=dtype))
    assert state.step.tolist() == [20] * 16
    assert (torch.cdist(state.x.double(), WORLD.means).amin(1) < 5 * WORLD.scales.max()).all()


@each_solver
@each_path
def test_the_last_step_returns_the_estimate_of_the_data(path: Path, solver: Solver) -> None:
    state = exact_state(path, 0.9, 6)
    end = solver.step(flow_on(path), state, torch.ones(6, dtype=torch.float64), None)
    torch.testing.assert_close(end.x, WORLD.posterior_mean(path, state.x, state.t))
    assert end.data is not None
    assert torch.equal(end.x, end.data)


@pytest.mark.parametrize("solver", [Euler(), EulerMaruyama()], ids=["euler", "sde"])
def test_rows_may_end_while_others_go_on(solver: Solver) -> None:
    state = exact_state(Linear(), 0.8, 3)
    t_next = torch.tensor([1.0, 0.9, 1.0], dtype=torch.float64)
    whole = solver.step(flow_on(Linear()), state, t_next, None)
    for i in range(3):
        assert_same(solver.step(flow_on(Linear()), state.rows([i]), t_next[[i]], None), whole.rows([i]))


def test_heun_refuses_rows_of_different_cost() -> None:
    state = exact_state(Linear(), 0.8, 2)
    with pytest.raises(ValueError, match="all reach t = 1"):
        Heun().step(flow_on(Linear()), state, torch.tensor([1.0, 0.9], dtype=torch.float64), None)


def test_heun_is_the_trapezoid() -> None:
    flow, state = flow_on(Linear()), exact_state(Linear(), 0.3, 4)
    v = WORLD.velocity(Linear(), state.x, state.t)
    v2 = WORLD.velocity(Linear(), state.x + 0.2 * v, state.t + 0.2)
    got = Heun().step(flow, state, state.t + 0.2, None)
    torch.testing.assert_close(got.x, state.x + 0.1 * (v + v2))


@each_solver
def test_a_solver_costs_what_it_says(solver: Solver) -> None:
    flow = flow_on(Linear())
    state = exact_state(Linear(), 0.0, 3)
    times = grid(5)
    for t in times[1:]:
        before = flow.meter.nfe
        state = solver.step(flow, state, torch.full_like(state.t, t), None)
        assert flow.meter.nfe - before == solver.evals(last=t >= 1.0)
    assert flow.meter.nfe == flow.meter.evals == {Heun: 9, RK4: 17, StochasticHeun: 9}.get(type(solver), 5)


def test_random_says_whether_keys_matter() -> None:
    state = exact_state(Linear(), 0.3, 4)
    other = replace(state, keys=tuple(k.child("other") for k in state.keys))
    for solver in ALL:
        out = [solver.step(flow_on(Linear()), s, s.t + 0.1, None).x for s in (state, other)]
        assert torch.equal(out[0], out[1]) is not solver.random


def test_integrate_walks_the_grid_and_refuses_none() -> None:
    flow, state, times = flow_on(Linear()), exact_state(Linear(), 0.0, 3), (0.0, 0.1, 0.5, 1.0)
    by_hand = state
    for t in times[1:]:
        by_hand = Heun().step(flow, by_hand, torch.full((3,), t, dtype=torch.float64), None)
    assert_same(integrate(flow, Heun(), state, times, None), by_hand)
    with pytest.raises(ConfigError, match="two times"):
        integrate(flow, Heun(), state, (0.0,), None)


def test_samples_of_the_ode_have_the_data_law() -> None:
    """From pure noise to t = 1 by Heun, the moments of the data, to Monte Carlo and last-step error."""
    n = 4000
    x = normal([Key.root(21)], (n, 2))[0].double()
    start = State(x, torch.zeros(n, dtype=torch.float64), (Key.root(0),) * n, torch.zeros(n, dtype=torch.int64))
    x = integrate(flow_on(Linear()), Heun(), start, (*grid(60)[:-1], 0.999, 1.0), None).x
    products = torch.einsum("bi,bj->bij", x - WORLD.mean(), x - WORLD.mean())
    assert ((x.mean(0) - WORLD.mean()).abs() < 4 * x.std(0) / n**0.5 + 1e-3).all()
    assert ((products.mean(0) - WORLD.covariance()).abs() < 4 * products.std(0) / n**0.5 + 5e-3).all()


def test_plain_guide_is_the_network() -> None:
    network: Any = WORLD.network(Linear())
    x, t = exact_state(Linear(), 0.5, 3).x, torch.full((3,), 0.5, dtype=torch.float64)
    assert torch.equal(Plain()(network, x, t, None), network(x, t, None))
