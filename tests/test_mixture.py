"""The exact world against definitions, automatic differentiation, quadrature and its own draws."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from secondlook.errors import ConfigError, ShapeError
from secondlook.flow.estimate import Flow
from secondlook.flow.guidance import Network
from secondlook.flow.path import GVP, KINDS, VP, Kind, Linear, Path
from secondlook.noise import Key, normal
from secondlook.worlds.mixture import Mixture, Reward, default_mixture

PATHS: list[Path] = [Linear(), GVP(), VP()]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
WORLD = default_mixture()
TIMES = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98], dtype=torch.float64)


def points(n: int, seed: int = 0) -> Tensor:
    return 1.5 * normal([Key.root(seed).child(i) for i in range(n)], (2,)).double()


def plane(centre: Tensor, half: float, n: int) -> tuple[Tensor, float]:
    """A square lattice of n^2 points around ``centre`` and the area of one cell."""
    line = torch.linspace(-half, half, n, dtype=torch.float64)
    return torch.cartesian_prod(line, line) + centre, float(line[1] - line[0]) ** 2


@each_path
def test_log_density_is_that_of_the_noised_mixture(path: Path) -> None:
    x = points(20)
    for t in TIMES:
        c = path.coefs(t)
        parts = MultivariateNormal(
            c.alpha * WORLD.means, torch.einsum("k,ij->kij", (c.alpha * WORLD.scales) ** 2 + c.sigma**2, torch.eye(2))
        )
        want = MixtureSameFamily(Categorical(WORLD.weights), parts).log_prob(x)
        torch.testing.assert_close(WORLD.log_density(path, x, t.expand(20)), want, rtol=1e-9, atol=1e-9)


@each_path
def test_logp_grad_is_the_gradient_of_log_density(path: Path) -> None:
    x, t = points(7), TIMES
    x.requires_grad_()
    (grad,) = torch.autograd.grad(WORLD.log_density(path, x, t).sum(), x)
    torch.testing.assert_close(WORLD.logp_grad(path, x.detach(), t), grad, rtol=1e-10, atol=1e-10)


@each_path
def test_posterior_mean_is_bayes_rule_by_quadrature(path: Path) -> None:
    lattice, _ = plane(torch.zeros(2, dtype=torch.float64), 6.0, 241)
    prior = WORLD.log_density(path, lattice, torch.ones(len(lattice), dtype=torch.float64))
    for x, t in zip(points(3), (0.2, 0.5, 0.8), strict=True):
        c = path.coefs(torch.tensor(t, dtype=torch.float64))
        weight = (prior - 0.5 * ((x - c.alpha * lattice) ** 2).sum(-1) / c.sigma**2).softmax(0)
        got = WORLD.posterior_mean(path, x[None], torch.tensor([t], dtype=torch.float64))[0]
        torch.testing.assert_close(got, weight @ lattice, rtol=1e-6, atol=1e-6)


@each_path
def test_velocity_moves_the_density_as_time_does(path: Path) -> None:
    """The continuity equation: d/dt p + div(p v) = 0, by automatic differentiation."""
    x, t = points(7, seed=1).requires_grad_(), TIMES.clone().requires_grad_()
    log_p = WORLD.log_density(path, x, t)
    by_time, by_x = torch.autograd.grad(log_p.sum(), (t, x), create_graph=True)
    v = WORLD.velocity(path, x, t)
    divergence = sum(torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
    residual = by_time + (v * by_x).sum(-1) + divergence
    assert v.abs().max() > 0.1
    assert residual.abs().max() < 1e-9 * max(1.0, float(by_time.detach().abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@each_path
def test_flow_on_the_network_is_exact_whatever_it_predicts(path: Path, kind: Kind) -> None:
    network: Network = WORLD.network(path, kind)
    x, t = points(7, seed=2), TIMES
    estimate = Flow(network, path).estimate(x, t, None)
    assert network.predicts == kind
    assert network.shape == (2,)
    for view in KINDS:
        torch.testing.assert_close(getattr(estimate, view), WORLD.predict(view, path, x, t), rtol=1e-8, atol=1e-8)


@each_path
def test_named_views_agree_with_predict(path: Path) -> None:
    x, t = points(7), TIMES
    assert torch.equal(WORLD.velocity(path, x, t), WORLD.predict("velocity", path, x, t))
    assert torch.equal(WORLD.posterior_mean(path, x, t), WORLD.predict("data", path, x, t))
    c = path.coefs(t).like(x)
    mixed = c.alpha * WORLD.predict("data", path, x, t) + c.sigma * WORLD.predict("noise", path, x, t)
    torch.testing.assert_close(mixed, x)  # the two posterior means recombine into x


@each_path
def test_data_and_gradient_are_exact_at_both_ends(path: Path) -> None:
    x = points(5)
    zero, one = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(WORLD.posterior_mean(path, x, one), x)
    if path.name != "vp":  # VP begins a little short of pure noise
        torch.testing.assert_close(WORLD.posterior_mean(path, x, zero), WORLD.mean().expand(5, 2))
        torch.testing.assert_close(WORLD.logp_grad(path, x, zero), -x)


def test_float32_in_float32_out_and_no_overflow_far_away() -> None:
    network = WORLD.network(Linear())
    far = torch.tensor([[1e4, -1e4]])
    out = network(far, torch.tensor([0.5]), None)
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()


def test_draws_have_the_closed_form_moments() -> None:
    n = 3000
    x = WORLD.sample([Key.root(5).child(i) for i in range(n)])
    assert x.dtype == torch.float64
    assert ((x.mean(0) - WORLD.mean()).abs() < 4 * x.std(0) / n**0.5).all()
    centred = x - WORLD.mean()
    products = torch.einsum("bi,bj->bij", centred, centred)
    assert ((products.mean(0) - WORLD.covariance()).abs() < 4 * products.std(0) / n**0.5).all()
    # How many draws lie nearest to each mean, which moments alone do not settle.
    near = torch.cdist(x, WORLD.means).argmin(1).bincount(minlength=3) / n
    dense, cell = plane(torch.zeros(2, dtype=torch.float64), 6.0, 301)
    density = WORLD.log_density(Linear(), dense, torch.ones(len(dense), dtype=torch.float64)).exp() * cell
    want = torch.zeros(3, dtype=torch.float64).index_add_(0, torch.cdist(dense, WORLD.means).argmin(1), density)
    assert ((near - want).abs() < 4 * (want * (1 - want) / n).sqrt() + 2e-3).all()


def test_draws_have_their_own_components_scale() -> None:
    apart = Mixture.of((0.6, 0.4), ((-100.0, 0.0), (100.0, 0.0)), (0.3, 2.0))
    x = apart.sample([Key.root(9).child(i) for i in range(2000)])
    for k, mine in enumerate((x[:, 0] < 0, x[:, 0] > 0)):
        z = ((x[mine] - apart.means[k]) / apart.scales[k]).flatten()
        assert abs(float(z.square().mean()) - 1) < 4 * (2 / len(z)) ** 0.5


def test_draws_belong_to_their_keys() -> None:
    keys = [Key.root(6).child(i) for i in range(8)]
    whole = WORLD.sample(keys)
    assert torch.equal(WORLD.sample([keys[5], keys[2]]), whole[[5, 2]])
    assert len({tuple(row.tolist()) for row in whole}) == 8


@each_path
def test_marginal_is_the_law_at_a_time(path: Path) -> None:
    x = points(9)
    one = torch.ones(9, dtype=torch.float64)
    for t in (0.1, 0.6, 1.0):
        law = WORLD.marginal(path, t)
        torch.testing.assert_close(law.log_density(path, x, one), WORLD.log_density(path, x, t * one))


def test_moments_by_quadrature() -> None:
    lattice, cell = plane(WORLD.mean(), 6.0, 301)
    p = WORLD.log_density(Linear(), lattice, torch.ones(len(lattice), dtype=torch.float64)).exp() * cell
    assert abs(float(p.sum()) - 1) < 1e-6
    torch.testing.assert_close(p @ lattice, WORLD.mean(), rtol=1e-5, atol=1e-5)
    centred = lattice - WORLD.mean()
    torch.testing.assert_close((p[:, None] * centred).T @ centred, WORLD.covariance(), rtol=1e-5, atol=1e-5)


REWARDS = {
    "linear": Reward(torch.tensor([1.3, -0.4], dtype=torch.float64)),
    "near": Reward.near(torch.tensor([0.5, 1.0], dtype=torch.float64), 1.7),
    "outward": Reward(torch.tensor([0.2, 0.1], dtype=torch.float64), curvature=-0.4, offset=0.3),
}
each_reward = pytest.mark.parametrize("reward", REWARDS.values(), ids=REWARDS.keys())


def test_rewards_are_what_they_say() -> None:
    x = points(5)
    torch.testing.assert_close(REWARDS["linear"](x), 1.3 * x[:, 0] - 0.4 * x[:, 1])
    target = torch.tensor([0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(REWARDS["near"](x), -0.85 * ((x - target) ** 2).sum(-1))
    assert float(REWARDS["outward"](torch.ones(1, 2))[0]) == pytest.approx(0.2 + 0.1 + 0.4 + 0.3)


@pytest.mark.parametrize("temp", [0.7, 2.0])
@each_reward
def test_tilted_density_is_density_times_reward_over_normaliser(reward: Reward, temp: float) -> None:
    x, one = points(30), torch.ones(30, dtype=torch.float64)
    log_p, log_q = (m.log_density(Linear(), x, one) for m in (WORLD, WORLD.tilted(reward, temp)))
    torch.testing.assert_close(log_q, log_p + reward(x) / temp - WORLD.log_normaliser(reward, temp))


@each_reward
def test_normaliser_by_quadrature(reward: Reward) -> None:
    lattice, cell = plane(WORLD.mean(), 14.0, 301)
    p = WORLD.log_density(Linear(), lattice, torch.ones(len(lattice), dtype=torch.float64))
    assert float((p + reward(lattice) / 0.7).logsumexp(0)) + torch.tensor(cell).log().item() == pytest.approx(
        WORLD.log_normaliser(reward, 0.7), abs=1e-5
    )


@each_path
def test_value_on_the_way_is_a_ratio_of_densities(path: Path) -> None:
    """log E[exp(reward / temp) | x] against Bayes' rule by quadrature."""
    reward, temp, t = REWARDS["linear"], 0.8, torch.tensor([0.4], dtype=torch.float64)
    x, c = points(1), path.coefs(t)
    lattice, _ = plane(torch.zeros(2, dtype=torch.float64), 8.0, 401)
    prior = WORLD.log_density(path, lattice, torch.ones(len(lattice), dtype=torch.float64))
    posterior = (prior - 0.5 * ((x - c.alpha * lattice) ** 2).sum(-1) / c.sigma**2).log_softmax(0)
    want = float((posterior + reward(lattice) / temp).logsumexp(0))
    tilted = WORLD.tilted(reward, temp)
    got = WORLD.log_normaliser(reward, temp) + tilted.log_density(path, x, t) - WORLD.log_density(path, x, t)
    assert float(got) == pytest.approx(want, abs=1e-5)


def test_tilting_twice_is_tilting_by_the_sum() -> None:
    a, b = REWARDS["linear"], REWARDS["near"]
    both = Reward(a.slope + b.slope, a.curvature + b.curvature, a.offset + b.offset)
    twice, once = WORLD.tilted(a, 0.9).tilted(b, 0.9), WORLD.tilted(both, 0.9)
    for part in dataclasses.fields(Mixture):
        torch.testing.assert_close(getattr(twice, part.name), getattr(once, part.name))
    chained = WORLD.log_normaliser(a, 0.9) + WORLD.tilted(a, 0.9).log_normaliser(b, 0.9)
    assert chained == pytest.approx(WORLD.log_normaliser(both, 0.9))


def test_no_reward_changes_nothing() -> None:
    none = Reward(torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(WORLD.tilted(none).weights, WORLD.weights)
    assert WORLD.log_normaliser(none) == pytest.approx(0.0, abs=1e-14)


def test_refusals_name_what_came() -> None:
    with pytest.raises(ShapeError, match=r"\[2\]"):
        Mixture(WORLD.weights[:2], WORLD.means, WORLD.scales)
    with pytest.raises(ConfigError, match="float64"):
        Mixture(WORLD.weights.float(), WORLD.means, WORLD.scales)
    with pytest.raises(ConfigError, match="sum to 1"):
        Mixture(2 * WORLD.weights, WORLD.means, WORLD.scales)
    with pytest.raises(ConfigError, match="scales"):
        Mixture.of((1.0,), ((0.0, 0.0),), (0.0,))
    with pytest.raises(ShapeError, match=r"\[4, 3\]"):
        WORLD.velocity(Linear(), torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(ConfigError, match="temp"):
        WORLD.tilted(REWARDS["linear"], 0.0)
    with pytest.raises(ConfigError, match="No tilted law"):
        WORLD.tilted(Reward(torch.zeros(2), curvature=-2.1), 1.0)  # the widest scale is 0.7: 1 / 0.49 = 2.04
    with pytest.raises(ShapeError, match="slope"):
        WORLD.tilted(Reward(torch.zeros(3)))
    with pytest.raises(ConfigError, match="'score'"):
        WORLD.predict("score", Linear(), points(1), torch.ones(1))  # type: ignore[arg-type]
