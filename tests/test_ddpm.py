"""Discrete diffusion: the schedule against its definition, samplers against exact laws and diffusers, DiT's loss and training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path as Folder
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from secondlook.ddpm import DDIM, Ancestral, Bridge, Discrete, Indexed, learned_log, linear_abar, respaced
from secondlook.errors import ConfigError
from secondlook.flow import AutoGuidance, ClassifierFree, Flow, Guide, Plain
from secondlook.models.official import from_state_dict
from secondlook.models.sit import Labels, SiT, SiTConfig
from secondlook.noise import Key
from secondlook.path import GVP, VP, Kind, Linear, Path, mix
from secondlook.solve import Euler, Solver, integrate
from secondlook.train.ddpm import Bound, level_nats, losses, trainer
from secondlook.train.loop import TrainConfig
from secondlook.types import State
from secondlook.worlds.mixture import Mixture
from tests.test_solve import WORLD, assert_same, exact_state, flow_on, rms_error

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
    assert len(repr(Discrete())) < 60


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
    errors = [rms_error(path, DDIM(), n) for n in (40, 80, 160)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.2)
    assert errors[-1] < 0.02


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
    times = tuple(0.9 - 0.8 * i / 400 for i in range(401))
    there = integrate(flow, DDIM(), state, times, None)
    back = integrate(flow, DDIM(), there, times[::-1], None)
    torch.testing.assert_close(back.x, state.x, rtol=0, atol=0.05)
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


# Heads with variance channels, guidance


@dataclass
class Head:
    """A noise prediction and variance channels that depend on x, the step and the label; calls are kept."""

    learnt: bool = True
    predicts: Kind = "noise"
    shape: tuple[int, ...] = (2, 2, 2)
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def full(self, x: Tensor, t: Tensor, cond: Labels) -> Tensor:
        self.calls.append((t, cond.index))
        y = cond.index.view(-1, 1, 1, 1).to(x) + 1
        guess = torch.tanh(x * y) + 0.001 * t.view(-1, 1, 1, 1)
        return torch.cat([guess, torch.sin(3 * x * y)], 1) if self.learnt else guess

    def __call__(self, x: Tensor, t: Tensor, cond: Labels) -> Tensor:
        return self.full(x, t, cond)[:, :2]


def head_state(t: float = 0.4, rows: int = 3) -> State:
    x = torch.randn(rows, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    return State(x, torch.full((rows,), t), tuple(map(Key, range(rows))), torch.zeros(rows, dtype=torch.int64))


def join(cond: Labels, rows: int) -> Labels:
    return Labels(torch.cat([cond.index, torch.full((rows,), 5)]))


def null(rows: int) -> Labels:
    return Labels(torch.full((rows,), 5))


@pytest.mark.parametrize(
    ("guide", "calls"),
    [
        (Plain(), 1),
        (ClassifierFree(2.0, join), 1),
        (ClassifierFree(2.0, join, channels=1), 1),
        (ClassifierFree(2.0, join, null, interval=(0.0, 1.0)), 2),
    ],
)
def test_guided_noise_and_the_wanted_variance_come_from_one_call(guide: Guide, calls: int) -> None:
    head, path, state, cond = Head(), Discrete(), head_state(), Labels(torch.tensor([0, 1, 2]))
    ones: Callable[..., Tensor] = lambda keys, shape: torch.ones(len(keys), *shape)  # noqa: E731
    t_next = state.t + 0.1
    got = Ancestral(source=ones).step(Flow(Indexed(head, path), path, guide), state, t_next, cond)
    assert len(head.calls) == calls
    assert all(torch.equal(t, torch.full_like(t, 599.0)) for t, _ in head.calls)
    index = torch.full((3,), 599.0)
    wanted, other = (head.full(state.x, index, c) for c in (cond, null(3)))
    guess, v = wanted.split(2, 1)
    if isinstance(guide, ClassifierFree):
        mixed = other[:, :2] + 2.0 * (guess - other[:, :2])
        guess = torch.cat([mixed[:, : guide.channels], guess[:, 2 if guide.channels is None else guide.channels :]], 1)
    abar, below = Discrete().abar[599], Discrete().abar[499]
    beta = 1 - abar / below
    tilde = (1 - below) / (1 - abar) * beta
    data = (state.x - math.sqrt(1 - abar) * guess) / math.sqrt(abar)
    mean = math.sqrt(below) * beta / (1 - abar) * data + math.sqrt(abar / below) * (1 - below) / (1 - abar) * state.x
    log_var = 0.5 * (v + 1) * math.log(beta) + 0.5 * (1 - v) * math.log(tilde)
    torch.testing.assert_close(got.x, mean + (0.5 * log_var).exp(), rtol=1e-5, atol=1e-6)


def test_autoguidance_and_fixed_variances_need_no_channels_of_the_weak_network() -> None:
    path, state, cond = Discrete(), head_state(), Labels(torch.tensor([0, 1, 2]))
    weak = Indexed(Head(learnt=False), path)
    out = [
        Ancestral(v).step(Flow(Indexed(Head(), path), path, AutoGuidance(1.5, weak)), state, state.t + 0.1, cond).x
        for v in (None, "small", "large")
    ]
    assert all(torch.isfinite(x).all() for x in out)
    assert not torch.equal(out[0], out[1])


def test_weights_of_the_official_layout_are_shown_step_numbers() -> None:
    torch.manual_seed(0)
    config = SiTConfig(side=4, channels=2, width=64, depth=1, heads=1, classes=5, variance=True)
    state = {k: torch.randn_like(v) * 0.1 for k, v in SiT(config).state_dict().items()}
    network = from_state_dict(state, predicts="noise", path="discrete")
    path = Discrete()
    indexed = Indexed(network, path)
    x, cond = torch.randn(4, 2, 4, 4), Labels(torch.tensor([0, 1, 5, 2]))
    index = torch.tensor([0, 3, 500, 999])
    t = path.time(index).float()
    assert torch.equal(indexed(x, t, cond), network(x, index.float(), cond))
    assert torch.equal(indexed.full(x, t, cond), network.full(x, index.float(), cond))
    assert (indexed.predicts, indexed.shape, indexed.full(x, t, cond).shape) == ("noise", (2, 4, 4), (4, 4, 4, 4))
    start = State(x, torch.zeros(4), tuple(map(Key, range(4))), torch.zeros(4, dtype=torch.int64))
    with torch.no_grad():
        end = integrate(Flow(indexed, path), Ancestral(), start, respaced(6), cond)
    assert torch.isfinite(end.x).all()
    with pytest.raises(ConfigError, match="time_scale 1"):
        Indexed(SiT(replace(config, time_scale=1000.0)), path)


# diffusers


def answers(learnt: bool) -> Callable[[int], Tensor]:
    """Random head outputs by step: [3, C or 2 C, 2, 2], variance channels in (-1, 1)."""

    def at(index: int) -> Tensor:
        g = torch.Generator().manual_seed(index)
        guess = torch.randn(3, 2, 2, 2, generator=g)
        return torch.cat([guess, torch.rand(3, 2, 2, 2, generator=g) * 2 - 1], 1) if learnt else guess

    return at


def ours(solver: Solver, path: Discrete, index: Sequence[int], answer: Callable[[int], Tensor]) -> Tensor:
    class Table:
        predicts: Kind = "noise"
        shape = (2, 2, 2)

        def full(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
            return answer(int(t[0]))

    times = tuple(path.time(torch.tensor([*index, -1])).float().tolist())
    return integrate(Flow(Indexed(Table(), path), path), solver, head_state(times[0]), times, None).x


def same_noise(seed: int) -> Any:
    g = torch.Generator().manual_seed(seed)
    return lambda keys, shape: torch.randn(len(keys), *shape, generator=g)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_agrees_with_diffusers(eta: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True, steps_offset=0, timestep_spacing="leading"
    )  # fmt: skip
    scheduler.set_timesteps(10)
    index, answer = scheduler.timesteps.tolist(), answers(False)
    x, g = head_state().x, torch.Generator().manual_seed(7)
    for i in index:
        x = scheduler.step(answer(i), i, x, eta=eta, generator=g).prev_sample
    for path in (Discrete.of(scheduler.alphas_cumprod), Discrete()):
        got = ours(DDIM(eta, source=same_noise(7)), path, index, answer)
        torch.testing.assert_close(got, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("fixed_small", Ancestral("small")),
        ("fixed_large", Ancestral("large")),
        ("learned_range", Ancestral("learned")),
        ("learned_range", Ancestral()),
    ],
)
@pytest.mark.parametrize("count", [8, 50])
def test_ancestral_steps_agree_with_diffusers(name: str, solver: Ancestral, count: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, variance_type=name)
    path, answer = Discrete.of(scheduler.alphas_cumprod), answers(name == "learned_range")
    index = path.index(torch.tensor(respaced(count)[:-1])).long().tolist()
    scheduler.set_timesteps(timesteps=index)
    x, g = head_state().x, torch.Generator().manual_seed(7)
    for i in index:
        x = scheduler.step(answer(i), i, x, generator=g).prev_sample
    got = ours(replace(solver, source=same_noise(7)), path, index, answer)
    torch.testing.assert_close(got, x, rtol=1e-5, atol=1e-5)


# DiT's loss


def density(x: Tensor, mean: float, var: float) -> Tensor:
    return (-0.5 * (x - mean) ** 2 / var).exp() / math.sqrt(2 * math.pi * var)


@pytest.mark.parametrize("index", [1, 2, 40, 500, 999])
def test_bound_is_the_integrated_divergence(index: int) -> None:
    """One pixel; the posterior from the product of the chain's two normal densities, not from a formula for it."""
    path = Discrete()
    data, noise, guess, v = 0.3, 0.8, 0.5, 0.4
    abar, below = path.abar[index], path.abar[index - 1]
    beta = 1 - abar / below
    tilde = (1 - below) / (1 - abar) * beta
    x = math.sqrt(abar) * data + math.sqrt(1 - abar) * noise
    log_var = 0.5 * (v + 1) * math.log(beta) + 0.5 * (1 - v) * math.log(tilde)
    guessed = (x - math.sqrt(1 - abar) * guess) / math.sqrt(abar)
    mean = (math.sqrt(below) * beta * guessed + math.sqrt(abar / below) * (1 - below) * x) / (1 - abar)
    z = torch.linspace(mean - 15 * beta**0.5, mean + 15 * beta**0.5, 200001, dtype=DOUBLE)
    # log of q(x | z) q(z | data), normalised on the grid
    log_q = -0.5 * (x - math.sqrt(1 - beta) * z) ** 2 / beta - 0.5 * (z - math.sqrt(below) * data) ** 2 / (1 - below)
    q = (log_q - log_q.max()).exp()
    q = q / torch.trapezoid(q, z)
    p = density(z, mean, math.exp(log_var))
    want = float(torch.trapezoid(q * (q.clamp_min(1e-300) / p.clamp_min(1e-300)).log(), z)) / math.log(2)
    one = [torch.full((1, 1), float(value), dtype=DOUBLE) for value in (data, noise, guess, v)]
    got = Bound(path)(one[0], one[1], torch.tensor([index]), one[2], one[3])
    assert float(got) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("data", [0.3, -1.0, 1.0])
def test_first_step_is_the_mass_of_a_level(data: float) -> None:
    path = Discrete()
    noise, guess, v = 0.8, 0.5, 0.4
    sigma, alpha = math.sqrt(1 - path.abar[0]), math.sqrt(path.abar[0])
    mean = (alpha * data + sigma * noise - sigma * guess) / alpha
    tilde = (1 - path.abar[0]) / (1 - path.abar[1]) * betas()[1]
    var = math.exp(0.5 * (v + 1) * math.log(betas()[0]) + 0.5 * (1 - v) * math.log(tilde))
    low, high = data - 1 / 255 - (0.5 if data == -1 else 0), data + 1 / 255 + (0.5 if data == 1 else 0)
    z = torch.linspace(low, high, 200001, dtype=DOUBLE)
    want = -math.log2(float(torch.trapezoid(density(z, mean, var), z)))
    one = [torch.full((1, 1), float(value), dtype=DOUBLE) for value in (data, noise, guess, v)]
    assert float(Bound(path)(one[0], one[1], torch.tensor([0]), one[2], one[3])) == pytest.approx(want, rel=1e-6)


def test_masses_of_all_levels_sum_to_one() -> None:
    levels = torch.linspace(-1, 1, 256, dtype=DOUBLE)
    nats = level_nats(levels, levels - 0.9, torch.full((256,), math.log(0.01), dtype=DOUBLE))
    assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_bound_trains_the_variance_alone_and_is_least_at_the_true_one() -> None:
    path = Discrete()
    g = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(6, 2, 4, 4, generator=g) for _ in range(2))
    index = torch.tensor([0, 1, 10, 300, 800, 999])
    out = torch.randn(6, 4, 4, 4, generator=g).requires_grad_(True)
    bound = Bound(path)
    error, share = losses(bound, data, noise, index, out)
    share.sum().backward()
    assert out.grad is not None
    assert (out.grad[:, :2] == 0).all()
    assert (out.grad[:, 2:] != 0).any()
    torch.testing.assert_close(error, (out[:, :2] - noise).square().flatten(1).mean(1))
    narrow = losses(bound, data, noise, index, out[:, :2])
    assert torch.equal(narrow[0], error)
    assert not narrow[1].any()
    perfect = torch.cat([noise, -torch.ones_like(noise)], 1)  # the posterior itself: no divergence above step 0
    assert losses(bound, data, noise, index, perfect)[1][1:].abs().max() < 1e-6
    half = Discrete(linear_abar(500))
    torch.testing.assert_close(
        losses(Bound(half), data, noise, index // 2, out)[1],
        0.5 * Bound(half)(data, noise, index // 2, out[:, :2], out[:, 2:]),
    )


# Training


class Stripes:
    """Two classes of small pictures: rows or columns."""

    def batch(self, seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(1000 * seed + step)
        label = torch.randint(0, 2, (count,), generator=g)
        line = torch.tensor([1.0, -1.0, 1.0, -1.0])
        pictures = torch.stack([line.expand(4, 4), line.view(4, 1).expand(4, 4)])
        return pictures[label][:, None] * 0.8, label


SIZES = SiTConfig(side=4, channels=1, width=32, depth=1, heads=2, classes=2, variance=True)
SHORT = TrainConfig(steps=8, batch=8, warmup=2, save_every=3, bf16=False)


def test_a_training_resumes_with_the_same_bits(tmp_path: Folder) -> None:
    whole = trainer(tmp_path / "whole", SHORT, SIZES, Stripes())
    want = [t.loss for t in whole.run()]
    part = trainer(tmp_path / "part", SHORT, SIZES, Stripes())
    first = [t.loss for t in itertools.islice(part.run(), 5)]  # two steps past the last save: they are done again
    again = trainer(tmp_path / "part", SHORT, SIZES, Stripes())
    assert again.step == 3
    assert first[:3] + [t.loss for t in again.run()] == want
    for a, b in ((whole.module, again.module), (whole.ema.module, again.ema.module)):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    with pytest.raises(ConfigError, match="other settings"):
        trainer(tmp_path / "whole", SHORT, SIZES, Stripes(), dropout=0.2)
    with pytest.raises(ConfigError, match="lies in 0 to 1"):
        trainer(tmp_path / "other", SHORT, SIZES, Stripes(), dropout=1.2)


def test_a_tiny_dit_learns_and_samples(tmp_path: Folder) -> None:
    config = TrainConfig(steps=400, batch=64, warmup=20, ema=0.98, bf16=False, save_every=400)
    job = trainer(tmp_path, config, SIZES, Stripes())
    history = [t.loss for t in job.run()]
    assert sum(history[-50:]) < 0.5 * sum(history[:50])
    path = Discrete()
    flow = Flow(Indexed(job.ema.module, path), path)
    label = torch.arange(16) % 2
    keys = tuple(Key.root(i) for i in range(16))
    x = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    start = State(x, torch.zeros(16), keys, torch.zeros(16, dtype=torch.int64))
    want = Stripes().batch(0, 0, 64)
    picture = torch.stack([want[0][want[1] == i][0] for i in (0, 1)])[label]
    for solver in (Ancestral(), DDIM()):
        with torch.no_grad():
            got = integrate(flow, solver, start, respaced(25), Labels(label)).x
        assert float((got - picture).square().mean()) < 0.25 * float(picture.square().mean())


def test_mixing_in_training_is_the_paths() -> None:
    path = Discrete()
    data, noise = torch.ones(1, 1), 2 * torch.ones(1, 1)
    want = math.sqrt(path.abar[10]) + 2 * math.sqrt(1 - path.abar[10])
    assert float(mix(path, data, noise, path.time(torch.tensor([10])))) == pytest.approx(want)
