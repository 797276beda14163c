"""Kernels that take a sample on by noise: steps on another path, GLASS transitions, and re-noising, against exact laws."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow.convert import Conversion
from secondlook.flow.discrete import Discrete, exact_coefs
from secondlook.flow.estimate import Flow
from secondlook.flow.path import GVP, VP, Invertible, Linear, Path
from secondlook.noise import Key
from secondlook.settings import make_named
from secondlook.solvers.ddpm import DDIM
from secondlook.solvers.glass import Glass, Renoise
from secondlook.solvers.ode import integrate
from secondlook.solvers.sde import EulerMaruyama
from secondlook.types import State
from secondlook.worlds.mixture import Mixture
from tests.test_sde import ONE, PATHS, diffusion, each_path, exact_moments, flow_on, moments, times

INVERTIBLE: list[Invertible] = [Linear(), GVP(), VP()]
THREE = Mixture.of((0.3, 0.5, 0.2), ((-1.5,), (0.3,), (1.6,)), (0.3, 0.2, 0.25))


# ---- the same sample on another path ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*INVERTIBLE, Discrete()], ids=lambda p: p.name)
def test_a_path_knows_the_time_of_a_ratio(path: Invertible) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    c = path.coefs(t)
    torch.testing.assert_close(path.time_of(c.sigma / c.alpha), t, rtol=0, atol=1e-7)


@pytest.mark.parametrize("source", PATHS, ids=lambda p: p.name)
@pytest.mark.parametrize("target", INVERTIBLE, ids=lambda p: p.name)
def test_both_paths_have_one_law_up_to_the_scale(source: Path, target: Invertible) -> None:
    t = times(0.01, 0.3, 0.7, 0.99)
    s, there, scale = Conversion(source, target).at(t)
    here = exact_coefs(source, t)
    torch.testing.assert_close(there.alpha, scale * here.alpha, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(there.sigma, scale * here.sigma, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(target.coefs(s).alpha, there.alpha)


def test_noise_beyond_what_vp_has_is_its_first_marginal() -> None:
    s, there, scale = Conversion(Linear(), VP()).at(times(0.0, 1.0))
    assert s.tolist() == [0.0, 1.0]
    assert float(scale[0]) == pytest.approx(1.0, abs=1e-4)
    assert float(there.alpha[0]) < 0.0066
    assert float(scale[1]) == 1.0


@pytest.mark.parametrize("form", ["kl", "sigma", "cubic"])
@pytest.mark.parametrize("on", ["vp", "gvp", "linear"])
@each_path
def test_steps_on_another_path_keep_the_marginals_to_first_order(path: Path, on: str, form: str) -> None:
    """From the exact law at 0.05, the error of mean and variance at 0.95 halves when the steps do, or is gone."""
    solver = partial(EulerMaruyama, path=on)
    coarse, fine = (moments(solver, path, diffusion(form), n) - exact_moments(path) for n in (200, 400))
    assert fine.abs().max() < 4e-3
    assert (2 * fine - coarse).abs().max() < 2e-4


def test_steps_on_the_flows_own_path_are_its_own() -> None:
    state = drawn(Linear(), 0.3, 4)
    one, same = (
        EulerMaruyama(path=p, source=still).step(on(THREE, Linear()), state, times(0.4), None) for p in (None, "linear")
    )
    torch.testing.assert_close(one.x, same.x, rtol=0, atol=1e-12)


# ---- transitions -----------------------------------------------------------------------------------------------------


def still(keys: Any, shape: Any) -> Tensor:
    return torch.full((len(keys), *shape), 0.7, dtype=torch.float64)


def on(world: Mixture, path: Path) -> Flow:
    return Flow(world.network(path, "data"), path)


def drawn(path: Path, t: float, rows: int, world: Mixture = THREE, seed: int = 0) -> State:
    """Rows of the exact law at t."""
    g = torch.Generator().manual_seed(seed)
    which = torch.multinomial(world.weights, rows, True, generator=g)
    one, other = torch.randn(2, rows, world.dim, generator=g, dtype=torch.float64)
    c = path.coefs(times(t))
    x = c.alpha * (world.means[which] + world.scales[which, None] * one) + c.sigma * other
    return State(x, torch.full((rows,), t, dtype=torch.float64), (Key(0),) * rows, torch.zeros(rows, dtype=torch.long))


def fresh(seed: int = 1) -> Any:
    """A noise source that is quicker than keyed noise, and as good for laws."""
    g = torch.Generator().manual_seed(seed)
    return lambda keys, shape: torch.randn(len(keys), *shape, generator=g, dtype=torch.float64)


def line(solver: Any, path: Path, t: float, t_next: float) -> tuple[float, float, float]:
    """a, b, g of a step on one Gaussian: x' = a x + b + g noise."""
    x, noise = (times(*v)[:, None] for v in ((0, 1, 0), (0, 0, 1)))
    state = State(x, torch.full((3,), t, dtype=torch.float64), (Key(0),) * 3, torch.zeros(3, dtype=torch.long))
    made = solver(source=lambda keys, shape: noise).step(on(ONE, path), state, torch.full_like(state.t, t_next), None)
    b, ab, bg = made.x[:, 0].tolist()
    return ab - b, b, bg - b


def wanted(path: Path, t: float, t_next: float, rho: float | None) -> Tensor:
    """Slope, mean at x = 0 and standard deviation of x' given x, by the covariance of the two."""
    m, s = float(ONE.means), float(ONE.scales)
    c, n = path.coefs(times(t)), path.coefs(times(t_next))
    r = c.alpha * n.sigma / (n.alpha * c.sigma) if rho is None else rho
    var, both = (c.alpha * s) ** 2 + c.sigma**2, c.alpha * n.alpha * s * s + r * c.sigma * n.sigma
    a = both / var
    rest = (n.alpha * s) ** 2 + n.sigma**2 - both * a
    return torch.stack([a, n.alpha * m - a * c.alpha * m, rest.clamp_min(0).sqrt()])[:, 0]


@pytest.mark.parametrize("rho", [0.4, None, -0.3, 0.9])
@pytest.mark.parametrize(("t", "t_next"), [(0.3, 0.6), (0.0, 0.5), (0.6, 1.0), (0.2, 0.25)])
@each_path
def test_a_glass_step_draws_its_transition_exactly_as_inner_steps_grow(
    path: Path, t: float, t_next: float, rho: float | None
) -> None:
    exact = wanted(path, t, t_next, rho)
    coarse, fine = (
        torch.tensor(line(partial(Glass, n, rho), path, t, t_next), dtype=torch.float64) - exact for n in (100, 200)
    )
    assert fine.abs().max() < 1e-2
    assert (2 * fine - coarse).abs().max() < 1.5e-3


@each_path
def test_one_inner_step_by_the_chain_is_ddims_own_step_with_all_its_noise(path: Path) -> None:
    one = line(partial(Glass, 1, None), path, 0.3, 0.6)
    assert one == pytest.approx(line(partial(DDIM, 1.0), path, 0.3, 0.6), abs=1e-9)


@each_path
def test_a_glass_step_keeps_the_law_of_a_mixture(path: Path) -> None:
    """One step from exact draws to exact draws: moments and the share of each side, within five standard errors."""
    rows = 8000
    made = (
        Glass(24, source=fresh())
        .step(on(THREE, path), drawn(path, 0.35, rows), torch.full((rows,), 0.75).double(), None)
        .x[:, 0]
    )
    like(made, drawn(path, 0.75, 200_000, seed=5).x[:, 0])


@pytest.mark.parametrize(
    ("solver", "steps"),
    [
        (Glass(16, None), 8),
        (Glass(32), 4),
        (EulerMaruyama(path="vp"), 200),
        (EulerMaruyama(path="gvp", diffusion="cubic"), 100),
    ],
    ids=["glass-chain", "glass", "sde-vp", "sde-gvp"],
)
def test_whole_samplers_draw_the_mixture(solver: Any, steps: int) -> None:
    rows, grid = 2500, torch.linspace(0, 1, steps + 1).tolist()
    even = [t / (t + 3 * (1 - t)) for t in grid]
    from dataclasses import replace

    made = integrate(
        on(THREE, Linear()), replace(solver, source=fresh()), drawn(Linear(), 0.0, rows), tuple(even), None
    )
    like(made.x[:, 0], drawn(Linear(), 1.0, 200_000, seed=5).x[:, 0], slack=0.02)


def like(made: Tensor, exact: Tensor, slack: float = 0.006) -> None:
    """Numbers of two samples, the second much larger, agree."""
    for what in (
        lambda x: x,
        torch.square,
        lambda x: (x > 0.9).double(),
        lambda x: (x < -0.7).double(),
        lambda x: (2 * x).sin(),
    ):
        one, other = what(made), what(exact)
        error = 5 * float(one.std()) / len(one) ** 0.5
        assert abs(float(one.mean() - other.mean())) < error + slack, (float(one.mean()), float(other.mean()))


# ---- re-noising, which is no transition of the flow ------------------------------------------------------------------


def variance(solver: Any, steps: int) -> float:
    """Of what a sampler makes of pure noise on one Gaussian, without chance."""
    mean, var, grid = 0.0, 1.0, torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()
    for t, then in pairwise(grid):
        a, b, g = line(solver, Linear(), t, then)
        mean, var = a * mean + b, a * a * var + g * g
    return var


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_re_noising_misses_the_law_however_many_the_steps_and_the_others_do_not(eta: float) -> None:
    exact = float(ONE.scales) ** 2
    few, many = (variance(partial(Renoise, eta), n) for n in (100, 400))
    assert many < 0.9 * exact
    assert many == pytest.approx(few, rel=0.05)  # it has a limit of its own
    assert variance(partial(DDIM, 1.0), 200) == pytest.approx(exact, rel=0.05)
    assert variance(partial(Glass, 40), 5) == pytest.approx(exact, rel=0.08)


def test_without_noise_re_noising_is_ddim() -> None:
    state = drawn(Linear(), 0.3, 5)
    one, other = (s.step(on(THREE, Linear()), state, times(0.5), None).x for s in (Renoise(0.0), DDIM()))
    torch.testing.assert_close(one, other)


# ---- what is asked ---------------------------------------------------------------------------------------------------


class Noting:
    """A network that notes the times it is asked at."""

    predicts, shape = "data", (1,)

    def __init__(self, inner: Any):
        self.inner, self.asked = inner, []  # type: ignore[var-annotated]

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.asked.append(float(t[0]))
        return self.inner(x, t, cond)  # type: ignore[no-any-return]


@pytest.mark.parametrize("rho", [0.4, None])
@each_path
def test_glass_names_the_times_that_it_asks_at(path: Path, rho: float | None) -> None:
    network = Noting(THREE.network(path, "data"))
    state = drawn(path, 0.3, 2)
    state = State(state.x.float(), state.t.float(), state.keys, state.step)
    solver = Glass(4, rho)
    solver.step(Flow(network, path), state, torch.full((2,), 0.6), None)
    assert tuple(network.asked) == solver.asks_on(path, 0.3, 0.6)
    assert network.asked == sorted(network.asked)
    assert rho is not None or network.asked[-1] < 0.6


@pytest.mark.parametrize(
    "text", ["glass(inner=0)", "glass(rho=1.5)", "renoise(eta=2.0)", "sde(path='vpp')", "glass(inner=1.5)"]
)
def test_what_cannot_be_meant_is_said(text: str) -> None:
    with pytest.raises(ConfigError):
        make_named("solver", text)


def test_no_kernel_leads_back() -> None:
    for solver in (Glass(), Renoise(), EulerMaruyama(path="vp")):
        with pytest.raises(ConfigError, match="noise to data only"):
            solver.step(flow_on(Linear(), world=THREE), drawn(Linear(), 0.5, 1), times(0.3), None)  # type: ignore[attr-defined]
    assert math.isfinite(float(exact_moments(Linear())[0]))
