"""DiT: heads with variance under guidance, agreement with diffusers, the hybrid loss against its definition, training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as Folder
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow.discrete import Discrete, Indexed, linear_abar, respaced
from secondlook.flow.estimate import Flow
from secondlook.flow.guidance import AutoGuidance, ClassifierFree, Guide, Plain
from secondlook.flow.path import Kind, mix
from secondlook.models.official import from_state_dict
from secondlook.models.sit import Labels, SiT, SiTConfig
from secondlook.noise import Key
from secondlook.solvers.ddpm import DDIM, Ancestral
from secondlook.solvers.ode import Solver, integrate
from secondlook.train.ddpm import Bound, level_nats, losses, trainer
from secondlook.train.loop import TrainConfig
from secondlook.types import State

DOUBLE = torch.float64


def betas() -> np.ndarray:
    return np.linspace(1e-4, 0.02, 1000)


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
        (ClassifierFree(2.0, join, null, interval=(0.0, 1.0)), 1),
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
    config = TrainConfig(steps=100, batch=32, lr=3e-3, warmup=10, ema=0.98, bf16=False, optimizer="adamw")
    job = trainer(tmp_path, config, SIZES, Stripes())
    history = [t.loss for t in job.run()]
    assert sum(history[-20:]) < 0.2 * sum(history[:20])
    flow = Flow(Indexed(job.ema.module), Discrete())
    x, label = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2
    start = State(x, torch.zeros(16), tuple(map(Key, range(16))), torch.zeros(16, dtype=torch.int64))
    with torch.no_grad():
        got = integrate(flow, Ancestral(), start, respaced(25), Labels(label)).x
    shown, index = Stripes().batch(0, 0, 64)
    want = torch.stack([shown[index == i][0] for i in (0, 1)])[label]
    assert (got - want).square().flatten(1).mean(1).median() < 0.2 * want.square().mean()


def test_mixing_in_training_is_the_paths() -> None:
    path = Discrete()
    data, noise = torch.ones(1, 1), 2 * torch.ones(1, 1)
    want = math.sqrt(path.abar[10]) + 2 * math.sqrt(1 - path.abar[10])
    assert float(mix(path, data, noise, path.time(torch.tensor([10])))) == pytest.approx(want)
