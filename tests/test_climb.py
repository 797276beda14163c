"""First-order search: gradients by the starting noise against finite differences and closed forms, the move, its price, and runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from secondlook.engine import climb
from secondlook.engine.rig import Rig
from secondlook.errors import ConfigError
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import grid
from secondlook.flow.path import GVP, Linear, Path
from secondlook.models.text import TextSiT
from secondlook.moves import Climb, Fresh, Move, Near
from secondlook.noise import Key
from secondlook.registry import SOLVERS
from secondlook.settings import make_named
from secondlook.testing import simulate
from secondlook.types import Condition, Context, Cost, Proposal, Remark, State
from secondlook.worlds.mixture import Mixture, default_mixture
from tests.helpers import tiny_rig

HERE = Condition("a red circle")
WORLD = default_mixture()
SEARCHED = [s for s in SOLVERS if s not in ("dopri5", "ddpm")]


@dataclass
class Density:
    """How likely a sample of the mixture is: the logarithm, and its gradient in closed form."""

    mixture: Mixture
    name = "density"

    def number(self, x: Tensor) -> Tensor:
        return self.mixture.log_density(Linear(), x, torch.ones(len(x)))

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        raise AssertionError("Nothing is decoded here.")

    def gradient(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        flat = samples.flatten(1)
        return self.mixture.logp_grad(Linear(), flat, torch.ones(len(flat))).view_as(samples)


class Nothing:
    """An encoding of nothing."""

    @staticmethod
    def stack(items: Sequence[Any]) -> Nothing:
        return Nothing()


def mixture_rig(solver: str = "euler", path: Path | None = None, times: tuple[float, ...] | None = None) -> Rig:
    path = path or Linear()
    return Rig(
        Flow(WORLD.network(path, "data"), path), make_named("solver", solver), times or grid(5), lambda c: Nothing(),
        lambda x: x, Density(WORLD), rows=1, grids=grid, pixels=lambda x: x.view(len(x), 1, 1, -1),
    )  # type: ignore[arg-type]  # fmt: skip


def noise(seed: int = 3, t: float = 0.0) -> State:
    x = torch.randn(1, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return State(x, torch.full((1,), t, dtype=torch.float64), (Key(7),), torch.zeros(1, dtype=torch.long))


def end(rig: Rig, state: State, times: Sequence[float]) -> Tensor:
    for t in times[1:]:
        state = rig.solver.step(rig.flow, state, torch.full_like(state.t, t), None)
    return state.x


def differences(score: Any, state: State, step: float = 1e-5) -> Tensor:
    """The derivative of ``score(state)`` by x [1, D]."""
    found = torch.zeros_like(state.x)
    for i in range(state.x.shape[1]):
        push = torch.zeros_like(state.x)
        push[0, i] = step
        up, down = (float(score(replace(state, x=state.x + s * push))) for s in (1, -1))
        found[0, i] = (up - down) / (2 * step)
    return found


PARENT = Proposal(Fresh(Key(1)), HERE)


# ---- the gradient ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver", [*SEARCHED, "sde(path='vp')", "dpmpp(eta=1.0)", "glass(rho=None)", "heun(end='step')"]
)
def test_the_gradient_through_the_sampler_is_that_of_finite_differences(solver: str) -> None:
    rig, state = mixture_rig(solver, times=(0.2, 0.35, 0.5, 0.7, 0.9, 1.0)), noise(t=0.2)
    found, _ = climb.gradient(rig, state, PARENT, "sampler", 0)
    want = differences(lambda s: Density(WORLD).number(end(rig, s, rig.times)), state)
    assert float(want.norm()) > 1e-3
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-7)


def test_the_gradient_may_go_through_another_grid() -> None:
    rig, state = mixture_rig(), noise()
    found, _ = climb.gradient(rig, state, PARENT, "sampler", 2)
    torch.testing.assert_close(
        found, differences(lambda s: Density(WORLD).number(end(rig, s, grid(2))), state), rtol=1e-4, atol=1e-7
    )
    asked, _ = climb.gradient(rig, state, replace(PARENT, steps=3), "sampler", 0)
    torch.testing.assert_close(
        asked, differences(lambda s: Density(WORLD).number(end(rig, s, grid(3))), state), rtol=1e-4, atol=1e-7
    )


def data_slope(path: Path, x: Tensor, t: float) -> Tensor:
    """The posterior mean's Jacobian [D, D] at x [1, D] in closed form: alpha / sigma^2 times the data's covariance given x."""
    c = path.coefs(torch.tensor([t], dtype=torch.float64))
    var = c.alpha**2 * WORLD.scales**2 + c.sigma**2
    gap = x - c.alpha * WORLD.means
    weights = (WORLD.weights.log() - WORLD.dim / 2 * var.log() - gap.square().sum(1) / (2 * var)).softmax(0)
    means = WORLD.means + (c.alpha * WORLD.scales**2 / var)[:, None] * gap
    mean = weights @ means
    within = (weights @ (WORLD.scales**2 * c.sigma**2 / var)) * torch.eye(2, dtype=torch.float64)
    between = (weights[:, None] * (means - mean)).T @ (means - mean)
    return c.alpha / c.sigma**2 * (within + between)


@pytest.mark.parametrize("path", [Linear(), GVP()], ids=lambda p: p.name)
def test_the_gradient_through_the_estimate_is_the_closed_form(path: Path) -> None:
    rig, state = mixture_rig(path=path, times=(0.4, 0.7, 1.0)), noise(t=0.4)
    found, _ = climb.gradient(rig, state, PARENT, "estimate", 0)
    data = WORLD.posterior_mean(path, state.x, state.t)
    want = WORLD.logp_grad(Linear(), data, torch.ones(1)) @ data_slope(path, state.x, 0.4)
    assert float(want.norm()) > 0.01
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-9)


def test_the_gradient_through_two_steps_of_euler_is_the_closed_form() -> None:
    """From pure noise: x at t is (1 - t) x + t mean, and the last step returns the estimate there."""
    rig, state = mixture_rig(times=(0.0, 0.4, 1.0)), noise()
    found, _ = climb.gradient(rig, state, PARENT, "sampler", 0)
    middle = 0.6 * state.x + 0.4 * WORLD.mean()
    data = WORLD.posterior_mean(Linear(), middle, torch.tensor([0.4], dtype=torch.float64))
    want = 0.6 * WORLD.logp_grad(Linear(), data, torch.ones(1)) @ data_slope(Linear(), middle, 0.4)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-9)


def test_a_perfect_estimate_of_pure_noise_tells_nothing_of_the_noise() -> None:
    found, _ = climb.gradient(mixture_rig(), noise(), PARENT, "estimate", 0)
    assert float(found.abs().max()) < 1e-12


# ---- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["sampler", "estimate"])
@pytest.mark.parametrize("solver", [*SEARCHED, "glass(inner=3)"])
def test_a_gradient_costs_what_its_price_says(solver: str, through: str) -> None:
    rig = mixture_rig(solver)
    for steps in (0, 1, 3):
        _, cost = climb.gradient(rig, noise(), PARENT, through, steps)
        assert cost.with_seconds(0.0) == climb.price(rig, PARENT, through, steps)
        assert cost.seconds > 0


def test_a_gradient_is_charged_forward_again_and_twice_back() -> None:
    rig = mixture_rig()
    assert climb.price(rig, PARENT, "sampler", 0) == Cost(nfe=5 + 4 + 10, evals=19, backward=5, verdicts=1, decodes=1)
    assert climb.price(rig, PARENT, "estimate", 0) == Cost(nfe=3, evals=3, backward=1, verdicts=1, decodes=1)


def test_guidance_in_an_interval_is_charged_where_it_is_on(network: TextSiT) -> None:
    from secondlook.flow.guidance import ClassifierFree, Null

    rig = tiny_rig(network, solver="heun")
    null = Null(network.encode([None]))
    rig.flow.guide = ClassifierFree(2.0, null.join, null.null, interval=(0.0, 0.3))
    state = rig.start(Key(3))
    for through in ("sampler", "estimate"):
        _, cost = climb.gradient(rig, state, PARENT, through, 0)
        assert cost.with_seconds(0.0) == climb.price(rig, PARENT, through, 0)
        assert cost.evals > cost.nfe


# ---- the move --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.05, 0.4, 1.0])
def test_a_climb_keeps_the_norm_and_turns_by_its_rate_toward_the_gradient(rate: float) -> None:
    from secondlook.engine.derive import Derivation

    rig = mixture_rig()
    source = Derivation(rig, lambda n: PARENT, lambda n: noise())
    start, climbed = source.start(Key(1)), Climb(0, Key(2), rate).state(source)
    slope, _ = climb.gradient(rig, start, PARENT, "sampler", 0)
    one, other, g = start.x[0].double(), climbed.x[0].double(), slope[0].double()
    assert float(other.norm()) == pytest.approx(float(one.norm()), rel=1e-6)
    assert float(one @ other / one.norm() ** 2) == pytest.approx((1 - rate**2) ** 0.5, abs=1e-5)
    assert float((other - one) @ (g - (g @ one) / (one @ one) * one)) > 0
    assert climbed.keys == start.keys


def test_where_there_is_no_gradient_the_key_gives_the_direction() -> None:
    from secondlook.engine.derive import Derivation

    for slope in (0.0, float("nan")):

        class Flat(Density):
            def gradient(self, samples: Tensor, conditions: Sequence[Condition], slope: float = slope) -> Tensor:
                return torch.full_like(samples, slope)

        rig = mixture_rig()
        rig.verifier = Flat(WORLD)
        source = Derivation(rig, lambda n: PARENT, lambda n: noise())
        assert torch.equal(Climb(0, Key(2), 0.3).state(source).x, Near(0, Key(2), 0.3).state(source).x)


def test_a_climb_is_literals_and_says_what_cannot_be() -> None:
    move = Climb(4, Key(2), 0.25, "estimate", 3)
    assert Move.from_dict(move.to_dict()) == move
    assert move.describe() == "4 uphill, rate 0.25"
    for bad in ({"rate": 0.0}, {"rate": 1.5}, {"through": "hope"}, {"steps": -1}):
        with pytest.raises(ConfigError):
            Climb(**{"parent": 0, "key": Key(1), "rate": 0.1, **bad})  # type: ignore[arg-type]
    told = replace(HERE, context=(Context(0, Remark("more red")),))
    with pytest.raises(ConfigError, match="earlier tries"):
        move.check(Proposal(Fresh(Key(1)), told))


def test_a_chain_of_climbs_differentiates_each_once() -> None:
    """Made again from nothing: a gradient for each link, not for each link of each link."""
    from secondlook.engine.derive import Again

    rig, paid = mixture_rig(), []  # type: ignore[var-annotated]
    chain: list[Move] = [Fresh(Key(1)), *(Climb(n, Key(n + 2), 0.3) for n in range(5))]
    again = Again(rig, lambda n: Proposal(chain[n], HERE), spent=paid.append)
    one = again.state(5)
    assert sum(c.backward for c in paid) == 5 * 5
    assert torch.equal(one.x, Again(rig, lambda n: Proposal(chain[n], HERE)).state(5).x)


# ---- the plan --------------------------------------------------------------------------------------------------------


def test_ascend_goes_on_from_what_won_and_turns_less_where_nothing_did() -> None:
    scores = {0: 0.5, 1: 0.6, 2: 0.1, 3: 0.2, 4: 0.3, 5: 0.2}
    played = simulate("ascend(rate=0.4, shrink=0.5, patience=2)", score=lambda o: scores[o.id], rounds=6)
    made = [o.proposal.move for o in played.outcomes]
    assert [m.name for m in made] == ["fresh", "climb", "climb", "climb", "fresh", "climb"]
    assert [(m.parent, m.rate) for m in made if isinstance(m, Climb)] == [(0, 0.4), (1, 0.4), (1, 0.2), (4, 0.4)]


def test_ascend_raises_the_score_of_the_exact_mixture_where_near_noise_of_equal_count_does_less() -> None:
    from secondlook.engine.derive import Derivation

    rig, better = mixture_rig(), []
    score = Density(WORLD)
    for seed in range(12):
        given: list[Any] = [PARENT]
        source = Derivation(rig, given.__getitem__, lambda n: noise())
        given[0] = Proposal(Fresh(Key(100 + seed)), HERE)
        starts = [given[0].move.state(source)]
        for n in range(4):
            given.append(Proposal(Climb(n, Key(n), 0.2), HERE))
            starts.append(given[-1].move.state(source))
            source.keep(n + 1, starts[-1])
        numbers = [float(score.number(end(rig, s, rig.times))) for s in starts]
        near = [Near(0, Key(1000 * seed + i), 0.2).state(source) for i in range(4)]
        better.append((max(numbers), max(float(score.number(end(rig, s, rig.times))) for s in near), numbers[0]))
    assert sum(up > first + 1e-9 for up, _, first in better) >= 10
    assert sum(up for up, _, _ in better) > sum(n for _, n, _ in better)
