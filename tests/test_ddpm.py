"""Discrete diffusion: the schedule against its definition, the posterior against conditioning, samplers against exact laws."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow.discrete import Discrete, linear_abar, respaced
from secondlook.flow.estimate import Flow
from secondlook.flow.path import GVP, VP, Kind, Linear, Path, complete
from secondlook.noise import Key
from secondlook.solvers.ddpm import DDIM, Ancestral, Bridge, learned_log
from secondlook.solvers.ode import RK4, Euler, Solver, integrate
from secondlook.types import State
from secondlook.worlds.mixture import Mixture
from tests.test_solve import WORLD, assert_same, exact_state, flow_on

PATHS: list[Path] = [Linear(), GVP(), VP(), Discrete()]
ALL: list[Solver] = [DDIM(), DDIM(0.5), DDIM(1.0), Ancestral("small"), Ancestral("large")]
RANDOM = ALL[1:]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
each_solver = pytest.mark.parametrize("solver", ALL, ids=["ddim", "ddim-half", "ddim-1", "small", "large"])
DOUBLE = torch.float64


def betas() -> np.ndarray:
    return np.linspace(1e-4, 0.02, 1000)


# The path


def test_knots_are_the_definition() -> None:
    abar = np.cumprod(1 - betas())
    path, index = Discrete(), torch.arange(1000)
    c = path.coefs(path.time(index))
    np.testing.assert_allclose(c.alpha.numpy(), np.sqrt(abar), rtol=1e-12)
    np.testing.assert_allclose(c.sigma.numpy(), np.sqrt(1 - abar), rtol=1e-10)
    rounded = path.coefs(path.time(index).float())
    assert rounded.alpha.dtype == torch.float32
    np.testing.assert_allclose(rounded.sigma.numpy(), np.sqrt(1 - abar), rtol=1e-7)
    np.testing.assert_allclose(rounded.alpha.numpy(), np.sqrt(abar), rtol=1e-7)
    end = path.coefs(torch.ones(1))
    assert (float(end.alpha), float(end.sigma)) == (1.0, 0.0)
    scaled = linear_abar(100)  # 1000 / steps times the betas
    assert scaled[0] == pytest.approx(1 - 1e-3)
    assert scaled[-1] == pytest.approx(float(np.prod(1 - np.linspace(1e-3, 0.2, 100))))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_index_and_time_are_inverse(dtype: torch.dtype) -> None:
    path, index = Discrete(), torch.arange(-1, 1000)
    t = path.time(index).to(dtype)
    assert (float(t[0]), float(t[-1])) == (1.0, 0.0)
    assert torch.equal(path.index(t), index.to(dtype))
    between = path.index(torch.tensor([0.5, 0.50025], dtype=dtype))
    torch.testing.assert_close(between, torch.tensor([499.0, 498.75], dtype=dtype), atol=1e-4, rtol=0)


def test_a_smooth_schedule_is_met_between_its_knots_too() -> None:
    """log abar of VP is a quadratic, which the interpolation reproduces everywhere, up to both ends."""
    depth = torch.arange(1, 101, dtype=DOUBLE) / 100
    path = Discrete.of(VP().coefs(1 - depth).alpha.square())
    t = torch.linspace(0, 0.9999, 777, dtype=DOUBLE)
    got, want = path.coefs(t), VP().coefs(t)
    for name in ("alpha", "sigma", "d_alpha", "d_sigma"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", [Discrete(), Discrete((0.9, 0.89, 0.3, 0.29, 1e-3)), Discrete(linear_abar(50))])
def test_derivatives(path: Discrete) -> None:
    g = torch.Generator().manual_seed(0)
    t = torch.rand(400, generator=g, dtype=DOUBLE) * 0.998
    t = t[((path.index(t) % 1) - 0.5).abs() < 0.49]
    c, h = path.coefs(t), 1e-5 / path.steps
    low, high = path.coefs(t - h), path.coefs(t + h)
    torch.testing.assert_close((high.alpha - low.alpha) / (2 * h), c.d_alpha, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close((high.sigma - low.sigma) / (2 * h), c.d_sigma, rtol=2e-5, atol=1e-7)
    assert (c.d_alpha >= 0).all()
    knots = path.time(torch.arange(path.steps - 1))
    left, right = path.coefs(knots - 1e-9), path.coefs(knots + 1e-9)
    torch.testing.assert_close(left.d_alpha, right.d_alpha, rtol=1e-4, atol=1e-5)
    for dtype in (torch.float32, DOUBLE):
        ends = path.coefs(torch.tensor([0.0, 1.0], dtype=dtype))
        assert all(torch.isfinite(v).all() for v in (ends.alpha, ends.sigma, ends.d_alpha, ends.d_sigma))


def test_respacing_follows_adms_rule() -> None:
    def rule(count: int) -> list[int]:
        stride, at, taken = 999 / (count - 1), 0.0, []
        for _ in range(count):
            taken.append(round(at))
            at += stride
        return taken

    for count in (2, 10, 25, 100, 250, 999, 1000):
        times = respaced(count)
        assert times[-1] == 1.0
        assert times[0] == 0.0
        assert all(a < b for a, b in pairwise(times))
        index = Discrete().index(torch.tensor(times[:-1], dtype=torch.float32)).long().tolist()
        assert index[::-1] == rule(count)
    assert [round((1 - t) * 1000) - 1 for t in respaced(10)] == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0, -1]
    for bad in (0, 1, 1001):
        with pytest.raises(ConfigError, match="from 2 to 1000"):
            respaced(bad)


def test_what_is_no_schedule_is_refused() -> None:
    for bad in ((0.5,), (0.5, 0.6), (1.0, 0.5), (0.9, 0.5, 0.0), (0.9, float("nan"))):
        with pytest.raises(ConfigError, match="fall from below 1"):
            Discrete(bad)
    for bad_final in (0.99, 1.01, float("nan")):
        with pytest.raises(ConfigError, match="ends at its first alphas_cumprod, 1, or between"):
            Discrete(final=bad_final)
    assert len(repr(Discrete())) < 60


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("abar", [linear_abar(), (0.9, 0.89, 0.3, 0.29, 1e-3)], ids=["smooth", "rough"])
def test_a_path_may_end_before_clean_data(abar: tuple[float, ...], share: float) -> None:
    """The knots stay where they are; nothing on the way or at the end is NaN, in any view of an estimate."""
    path = Discrete(abar, final=abar[0] + share * (1 - abar[0]))
    ends = path.coefs(torch.tensor([1.0, path.time(torch.tensor([0]))[0]], dtype=DOUBLE)).alpha.square()
    torch.testing.assert_close(ends, torch.tensor([path.final, abar[0]], dtype=DOUBLE), rtol=1e-12, atol=0)
    for dtype in (torch.float32, DOUBLE):
        t = torch.cat([torch.linspace(0.9 * (1 - 2 / path.steps), 1, 41), path.time(torch.arange(-1, 4)).float()]).to(
            dtype
        )
        x = torch.linspace(-1, 1, len(t), dtype=dtype)[:, None]
        c = path.coefs(t)
        assert all(v.isfinite().all() for v in (c.alpha, c.sigma, c.d_alpha, c.d_sigma))
        assert (c.d_alpha >= 0).all()
        for kind in ("data", "noise", "logp_grad"):
            e = complete(path, x, t, kind, 0.5 * x)
            assert all(v.isfinite().all() for v in (e.data, e.noise, e.velocity, e.logp_grad))
    if share == 0:
        flat = path.coefs(torch.linspace(1 - 1 / path.steps, 1, 9, dtype=DOUBLE))
        torch.testing.assert_close(flat.alpha.square(), torch.full((9,), abar[0], dtype=DOUBLE), rtol=1e-14, atol=0)
        assert not flat.d_alpha.any()
    if share == 1:
        assert path == Discrete(abar)


@pytest.mark.parametrize("final", [None, 0.99995, 1.0])
def test_times_of_noise_over_data(final: float | None) -> None:
    abar = linear_abar()
    path = Discrete(abar, final=abar[0] if final is None else final)
    knots = path.time(torch.arange(1000))
    ratio = torch.tensor([((1 - a) / a) ** 0.5 for a in abar], dtype=DOUBLE)
    torch.testing.assert_close(path.time_of(ratio), knots, rtol=0, atol=1e-12)
    torch.testing.assert_close(path.time_of(ratio.float()), knots, rtol=0, atol=1e-6)
    t = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=DOUBLE) * (0.999 if final is None else 1.0)
    c = path.coefs(t)
    torch.testing.assert_close(path.time_of(c.sigma / c.alpha), t, rtol=0, atol=1e-12)
    low = 0.0 if path.final == 1 else ((1 - path.final) / path.final) ** 0.5
    last = path.time_of(torch.tensor([low, low * (1 - 1e-7)], dtype=DOUBLE))
    torch.testing.assert_close(
        last, torch.full((2,), 0.999 if final is None else 1.0, dtype=DOUBLE), rtol=0, atol=1e-12
    )
    for bad in (1.001 * float(ratio[-1]), 0.99 * low - 1e-9, math.nan):
        with pytest.raises(ConfigError, match="on this discrete path"):
            path.time_of(torch.tensor([1.0, bad]))


def test_random_last_steps_follow_a_path_that_keeps_noise() -> None:
    path = Discrete(final=linear_abar()[0])
    flow, state = Flow(WORLD.network(path, "noise"), path), exact_state(path, 0.9, 4)
    one = torch.ones_like(state.t)
    for solver in ALL:
        end = solver.step(flow, state, one, None)
        assert end.data is not None
        same = solver.step(flow, state, one - 1 / path.steps, None)  # the path is flat in between
        torch.testing.assert_close(end.x, same.x, rtol=1e-12, atol=1e-12)
        assert not torch.equal(end.x, end.data)


# The posterior


@each_path
def test_bridge_is_the_gaussian_conditional(path: Path) -> None:
    """From the joint law of (x_next, x) given the data, by conditioning a 2 x 2 covariance."""
    t, t_next = torch.tensor([0.0, 0.1, 0.5, 0.93], dtype=DOUBLE), torch.tensor([0.02, 0.4, 0.501, 0.99], dtype=DOUBLE)
    c, n, b = path.coefs(t), path.coefs(t_next), Bridge.of(path, t, t_next)
    data, x = 0.7, torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=DOUBLE)
    a = c.alpha / n.alpha
    added = c.sigma**2 - a**2 * n.sigma**2
    covariance, variance = a * n.sigma**2, a**2 * n.sigma**2 + added
    mean = n.alpha * data + covariance / variance * (x - c.alpha * data)
    noise = (x - c.alpha * data) / c.sigma
    torch.testing.assert_close(b.alpha * data + b.keep * noise, mean)
    torch.testing.assert_close(b.small, n.sigma**2 - covariance**2 / variance)
    torch.testing.assert_close(b.large, added)


def test_bridge_is_ddpms_on_the_discrete_path() -> None:
    """beta, beta tilde and the means' coefficients of 2006.11239, eq. 7, from float32 times too."""
    path, index = Discrete(), torch.arange(1, 1000)
    beta, abar = betas()[1:], np.cumprod(1 - betas())
    tilde = (1 - abar[:-1]) / (1 - abar[1:]) * beta
    for dtype in (torch.float32, DOUBLE):
        b = Bridge.of(path, path.time(index).to(dtype), path.time(index - 1).to(dtype))
        np.testing.assert_allclose(b.large.numpy(), beta, rtol=1e-9)
        np.testing.assert_allclose(b.small.numpy(), tilde, rtol=1e-9)
        on_x = b.keep.numpy() / np.sqrt(1 - abar[1:])
        np.testing.assert_allclose(on_x, np.sqrt(1 - beta) * (1 - abar[:-1]) / (1 - abar[1:]), rtol=1e-9)
        on_data = b.alpha.numpy() - on_x * np.sqrt(abar[1:])
        np.testing.assert_allclose(on_data, np.sqrt(abar[:-1]) * beta / (1 - abar[1:]), rtol=1e-8)


def test_learned_variance_lies_between_its_ends() -> None:
    small, large = torch.tensor([0.01, 0.2]), torch.tensor([0.04, 0.5])
    v = torch.tensor([[-1.0, 0.0, 1.0]]).expand(2, 3)
    got = learned_log(small, large, v).exp()
    torch.testing.assert_close(got, torch.stack([small, (small * large).sqrt(), large], 1))


# DDIM and ancestral steps against exact laws


@each_path
def test_ddim_is_of_first_order(path: Path) -> None:
    """Against the probability flow's solution by fourth-order steps, whose own error is a thousandth of these."""
    start = exact_state(path, 0.05, 48)

    def end(solver: Solver, steps: int) -> Tensor:
        times = tuple(0.05 + 0.9 * i / steps for i in range(steps + 1))
        return integrate(flow_on(path), solver, start, times, None).x

    want = end(RK4(), 100)
    errors = [float((end(DDIM(), n) - want).square().mean().sqrt()) for n in (40, 80)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)
    assert errors[1] < 0.02


def test_ddim_on_the_linear_path_is_euler() -> None:
    flow, state = flow_on(Linear()), exact_state(Linear(), 0.1, 5)
    for times in ((0.1, 0.3, 0.35, 0.8, 1.0), (0.1, 0.05, 0.01)):
        got, want = (integrate(flow, s, state, times, None).x for s in (DDIM(), Euler()))
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@each_path
def test_ddim_is_exact_where_the_data_are_one_point(path: Path) -> None:
    world = Mixture.of((1.0,), ((0.4, -0.3),), (1e-6,))
    start = exact_state(path, 0.2, 4)
    end = DDIM().step(flow_on(path, world), start, start.t + 0.6, None)
    c, n = path.coefs(start.t), path.coefs(end.t)
    noise = (start.x - c.alpha[:, None] * world.means) / c.sigma[:, None]
    torch.testing.assert_close(end.x, n.alpha[:, None] * world.means + n.sigma[:, None] * noise, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", RANDOM, ids=["ddim-half", "ddim-1", "small", "large"])
@each_path
def test_random_steps_keep_gaussian_marginals_to_first_order(path: Path, solver: Any) -> None:
    """Without chance, as in test_solve: the steps' affine maps, read off the solver, are iterated on mean and variance."""
    world = Mixture.of((1.0,), ((1.2,),), (0.5,))
    flow = flow_on(path, world)
    probe_x, probe_noise = (torch.tensor(v, dtype=DOUBLE)[:, None] for v in ([0.0, 1, 0], [0.0, 0, 1]))
    probed = replace(solver, source=lambda keys, shape: probe_noise)

    def moments(steps: int) -> Tensor:
        begin = world.marginal(path, 0.05)
        mean, var = float(begin.means[0, 0]), float(begin.scales[0]) ** 2
        for t, t_next in pairwise(torch.linspace(0.05, 0.95, steps + 1, dtype=DOUBLE)):
            rows = torch.ones(3, dtype=DOUBLE)
            state = State(probe_x, t * rows, (Key.root(0),) * 3, torch.zeros(3, dtype=torch.int64))
            b, ab, bg = probed.step(flow, state, t_next * rows, None).x[:, 0].tolist()
            mean, var = (ab - b) * mean + b, (ab - b) ** 2 * var + (bg - b) ** 2
        return torch.tensor([mean, var])

    law = world.marginal(path, 0.95)
    want = torch.tensor([float(law.mean()), float(law.covariance())])
    coarse, fine = (moments(n) - want for n in (100, 200))
    assert fine.abs().max() < 0.03
    assert ((2 * fine - coarse).abs() < 0.2 * fine.abs() + 5e-4).all()


def test_ddim_at_eta_one_is_the_small_ancestral_step() -> None:
    flow, state = flow_on(Discrete()), exact_state(Discrete(), 0.3, 4)
    got, want = (s.step(flow, state, state.t + 0.2, None).x for s in (DDIM(1.0), Ancestral("small")))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_ddim_runs_back_and_what_draws_noise_does_not() -> None:
    path = Discrete()
    flow, state = flow_on(path), exact_state(path, 0.9, 4)
    times = tuple(0.9 - 0.8 * i / 100 for i in range(101))
    there = integrate(flow, DDIM(), state, times, None)
    back = integrate(flow, DDIM(), there, times[::-1], None)
    torch.testing.assert_close(back.x, state.x, rtol=0, atol=0.1)
    for solver in RANDOM:
        with pytest.raises(ConfigError, match="from noise to data only"):
            solver.step(flow, state, state.t - 0.1, None)


# The protocol


@each_solver
@pytest.mark.parametrize("path", [Discrete(), Linear()], ids=lambda p: p.name)
def test_steps_are_pure_and_rows_independent(path: Path, solver: Solver) -> None:
    flow, state = flow_on(path), exact_state(path, 0.2, 9)
    state = replace(state, t=torch.linspace(0.1, 0.8, 9, dtype=DOUBLE), step=torch.arange(9))
    t_next = state.t + torch.linspace(0.02, 0.2, 9, dtype=DOUBLE)
    before = state.x.clone()
    whole = solver.step(flow, state, t_next, None)
    assert_same(whole, solver.step(flow, state, t_next, None))
    assert torch.equal(state.x, before)
    order = [4, 8, 0, 2, 6, 1, 7, 3, 5]
    assert_same(solver.step(flow, state.rows(order), t_next[order], None), whole.rows(order))
    other = replace(state, keys=tuple(k.child("other") for k in state.keys))
    assert torch.equal(solver.step(flow, other, t_next, None).x, whole.x) is (solver == DDIM())


@pytest.mark.parametrize("kind", ["data", "noise"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@each_solver
def test_from_noise_to_data(solver: Solver, dtype: torch.dtype, kind: Kind) -> None:
    path = Discrete()
    state = exact_state(path, 0.0, 16)
    state = replace(state, x=state.x.to(dtype), t=state.t.to(dtype))
    flow = Flow(WORLD.network(path, kind), path)
    for t in respaced(20)[1:]:
        state = solver.step(flow, state, torch.full_like(state.t, t), None)
        assert state.x.dtype == dtype
        assert torch.isfinite(state.x).all()
    assert state.data is not None
    assert torch.equal(state.x, state.data)
    assert flow.meter.nfe == flow.meter.evals == 20 == 20 * solver.evals(last=True)
    assert (torch.cdist(state.x.double(), WORLD.means).amin(1) < 5 * WORLD.scales.max()).all()


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="from 0 to 1"):
        DDIM(1.5)
    with pytest.raises(ConfigError, match='"small"'):
        Ancestral("smal")  # type: ignore[arg-type]
    state = exact_state(Discrete(), 0.5, 2)
    with pytest.raises(ConfigError, match="no variance channels"):
        Ancestral("learned").step(flow_on(Discrete()), state, state.t + 0.1, None)
    unlearned = [Ancestral(v).step(flow_on(Discrete()), state, state.t + 0.1, None) for v in (None, "small")]
    assert_same(*unlearned)
