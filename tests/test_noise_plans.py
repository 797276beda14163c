"""Plans that search the starting noise: bits, what each does, and the law that chains follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from secondlook.engine.derive import low_band, replay
from secondlook.engine.driver import Driver
from secondlook.engine.record import Record
from secondlook.engine.store import sha256
from secondlook.models.text import TextSiT
from secondlook.moves import Blend, Fresh, Near, NoiseMove, Turn
from secondlook.noise import Key, normal
from secondlook.plans import moves
from secondlook.plans.trust_region import Region
from secondlook.testing import simulate
from secondlook.testing.simulate import Simulation
from secondlook.types import Outcome, State
from tests.helpers import drive, essence, tiny_network, tiny_rig
from tests.test_noise_moves import source

PLANS = {
    "trust_region": "trust_region(n=3, regions=2, each=1)",
    "slice": "mcmc(chains=2)",
    "pcn": "mcmc(chains=2, kernel='pcn')",
    "low_band": "low_band(n=3, elites=2, generations=2)",
    "eps_greedy": "eps_greedy(neighbours=2)",
    "zero_order": "zero_order(neighbours=2, explore=0.5)",
}


@pytest.fixture(scope="module")
def network() -> TextSiT:
    return tiny_network()


class Noises:
    """The starting noise of every outcome of a simulated plan, as a score sees it."""

    def __init__(self, shape: tuple[int, ...], value: Callable[[Tensor], float]):
        self.source, self.value = source(shape), value
        self.states: dict[int, State] = {}

    def __call__(self, outcome: Outcome) -> float:
        move = outcome.proposal.move
        assert isinstance(move, NoiseMove)
        self.states[outcome.id] = move.begun(self.source, [self.states[n] for n in move.parents])
        return self.value(self.states[outcome.id].x[0])


# ---- bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("solver", ["euler", "sde"])
def test_every_picture_is_drawn_again_from_its_derivation(
    plan: str, solver: str, network: TextSiT, tmp_path: Path
) -> None:
    record = drive(tmp_path / "run", tiny_rig(network, solver=solver), plan, nfe=48)
    alone = tiny_rig(network, solver=solver)
    shown = {i: d for i, d in record.digests.items() if d}
    assert len(shown) == 12
    assert any(not isinstance(record.outcomes[i].proposal.move, Fresh) for i in shown)
    for number, digest in shown.items():
        assert sha256(replay(alone, number, lambda i: record.outcomes[i].proposal)) == digest


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_run_that_was_stopped_ends_in_the_same_bits(plan: str, network: TextSiT, tmp_path: Path) -> None:
    whole = drive(tmp_path / "whole", tiny_rig(network), plan, nfe=48)

    def stop(driver: Driver) -> None:
        if driver.drawn >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path / "cut", tiny_rig(network), plan, nfe=48, progress=stop)
    again: Record = drive(tmp_path / "cut", tiny_rig(network), plan, nfe=48)
    assert essence(again) == essence(whole)


# ---- plans -----------------------------------------------------------------------------------------------------------


def play(plan: str, score: Callable[[Outcome], float], pictures: int, seed: int = 0) -> Simulation:
    return simulate(plan, score=score, steps=5, seed=seed, budget={"nfe": 5 * pictures})


def test_a_climb_that_does_not_explore_has_the_keys_it_always_had() -> None:
    played = play("zero_order(neighbours=3, patience=2)", lambda o: (o.id * 7919 % 101) / 101, 60)
    root = Key.root(0).child("task", 0)
    assert [o.proposal.move.key for o in played.outcomes] == [root.child("draw", n) for n in range(60)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("explore", [0.25, 0.4, 1.0])
def test_a_climb_explores_by_its_probability(explore: float) -> None:
    played = play(f"zero_order(neighbours=4, explore={explore}, patience=100)", lambda o: 0.0, 801)
    fresh = sum(isinstance(o.proposal.move, Fresh) for o in played.outcomes[1:]) / 800
    assert fresh == pytest.approx(explore, abs=0.06)


def test_a_pivot_may_come_from_exploring() -> None:
    played = play("eps_greedy()", lambda o: float(isinstance(o.proposal.move, Fresh)) + o.id / 1000, 80)
    pivots = {o.proposal.move.parent for o in played.outcomes if isinstance(o.proposal.move, Near)}
    assert len(pivots) > 5
    assert all(isinstance(played.outcomes[n].proposal.move, Fresh) for n in pivots)


def lengths(played: Simulation) -> list[list[float | None]]:
    """By round after the first: the radius of each neighbour, None for fresh noise."""
    return [[getattr(o.proposal.move, "radius", None) for o in some] for some in played.rounds[1:]]


def test_a_region_that_fails_narrows_and_at_last_begins_again() -> None:
    played = play("trust_region(n=4, regions=2, each=2)", lambda o: float(o.id < 4), 4 + 4 * 23)
    found = lengths(played)
    for i in range(21):
        assert found[i] == pytest.approx([0.8 / 1.5 ** (i // 3)] * 4)
    assert found[21] == [None] * 4  # 0.8 / 1.5^7 is below 0.05
    assert found[22] == [0.8] * 4
    assert {o.proposal.move.parent for o in played.rounds[1]} == {0, 1}
    assert {o.proposal.move.parent for o in played.rounds[-1]} == {2, 3}  # the first two are parked


def test_a_region_that_wins_widens_to_its_most_and_the_centres_are_the_best_of_all() -> None:
    played = play("trust_region(n=4, regions=2, each=1, length=0.4)", lambda o: float(o.id), 4 + 2 * 12)
    found = lengths(played)
    assert [f[0] for f in found] == pytest.approx([0.4] * 3 + [0.6] * 3 + [0.9] * 3 + [1.0] * 3)
    for before, some in zip(played.rounds[1:], played.rounds[2:], strict=False):
        assert {o.proposal.move.parent for o in some} == {o.id for o in before}


def test_wins_and_failures_count_in_a_row_only() -> None:
    region = Region(0.5)
    for won in (True, True, False, False, True, True, False):
        region.told(won, 3, 3, 1.5, 1.0)
        assert region.length == 0.5
    region.told(False, 3, 3, 1.5, 1.0)
    region.told(False, 3, 3, 1.5, 1.0)
    assert region.length == pytest.approx(1 / 3)


@pytest.mark.parametrize("options", ["", ", most=2", ", kernel='pcn', step=0.9", ", kernel='pcn', step=0.6"])
def test_chains_follow_the_tilted_law(options: str) -> None:
    """A linear score a x tilts the normal law to the normal law about a / temperature."""
    slope, temperature, draws = torch.tensor([0.2, -0.1, 0.0]), 0.25, 300
    noises = Noises((3,), lambda x: float(x @ slope))
    played = simulate(f"mcmc(chains=8, temperature={temperature}, draws={draws}{options})", score=noises, steps=1)
    visited = played.returned["chains"]
    assert [len(v) for v in visited] == [draws] * 8
    x = torch.cat([noises.states[n].x for v in visited for n in v[20:]])
    assert torch.allclose(x.mean(0), slope / temperature, atol=0.13)
    assert torch.allclose(x.var(0), torch.ones(3), atol=0.15)


def test_a_slice_chain_follows_a_law_that_is_far_from_normal() -> None:
    """exp(-|x^2 - 1| / 0.5) times the normal density: two hills, whose moments a sum over a grid gives."""
    noises = Noises((1,), lambda x: -abs(float(x) ** 2 - 1))
    visited = simulate("mcmc(chains=8, temperature=0.5, draws=300)", score=noises, steps=1).returned["chains"]
    x = torch.cat([noises.states[n].x for v in visited for n in v[20:]])
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    weights = (-(grid.square() - 1).abs() / 0.5 - grid.square() / 2).exp()
    for power in (2, 4):
        wanted = float((weights * grid**power).sum() / weights.sum())
        assert float((x**power).mean()) == pytest.approx(wanted, rel=0.12)
    assert abs(float(x.mean())) < 0.12


def test_tries_of_one_move_lie_on_one_ellipse_within_a_bracket_that_shrinks() -> None:
    played = play("mcmc(chains=1)", lambda o: -float(o.id), 60)  # each try is worse by ten times the temperature
    by_key: dict[Key, list[float]] = {}
    for o in played.outcomes[1:]:
        assert isinstance(o.proposal.move, Turn)
        assert o.proposal.move.parent == 0
        by_key.setdefault(o.proposal.move.key, []).append(o.proposal.move.angle)
    assert [len(v) for v in by_key.values()] == [20, 20, 19]  # after twenty the chain stays, and turns another way
    for angles in by_key.values():
        low, high = angles[0] - 2 * math.pi, angles[0]
        for angle in angles[1:]:
            assert low < angle < high
            low, high = (angle, high) if angle < 0 else (low, angle)


def test_a_chain_leaves_a_row_that_could_not_be_judged() -> None:
    played = play("mcmc(chains=1)", lambda o: math.nan if o.id == 0 else 0.0, 6)
    assert [o.proposal.move.parent for o in played.outcomes[1:]] == [0, 1, 2, 3, 4]  # type: ignore[attr-defined]


def test_a_generation_is_blended_from_the_best_so_far_with_ever_less_fresh_noise() -> None:
    score = lambda o: (o.id * 7919 % 101) / 101  # noqa: E731
    played = play("low_band(n=6, elites=3, generations=4)", score, 6 * 10)
    for first in (0, 5):
        known: list[Outcome] = []
        for i, some in enumerate(played.rounds[first : first + 5]):
            best = {o.id for o in moves.top(known, 3)}
            for o in some:
                move = o.proposal.move
                assert isinstance(move, Fresh if i == 0 else Blend)
                if isinstance(move, Blend):
                    assert set(move.of) == best
                    assert move.share == pytest.approx((1 + i / 3) ** -0.5)
            known += some


@pytest.mark.parametrize("shape", [(3, 32, 32), (96,)])
def test_the_low_bands_norm_does_not_drift(shape: tuple[int, ...]) -> None:
    """Over 15 generations of arbitrary elites the mean square of the band's numbers stays 1."""
    noises = Noises(shape, lambda x: float(x.flatten()[-1] * 1e4 % 1))
    play("low_band(generations=15, band=8)", noises, 160)
    parts = [low_band(noises.states[n].x, 8) for n in range(160)]
    full = 1 if len(shape) == 1 else 64
    for first in (10, 80, 150):
        assert full * float(torch.cat(parts[first : first + 10]).square().mean()) == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize(
    ("plan", "least"), [("low_band()", 1.5), ("eps_greedy(radius=0.4)", 1.2), ("trust_region()", 1.2)]
)
def test_where_the_score_is_the_low_bands_a_search_finds_more_than_best_of_n(plan: str, least: float) -> None:
    """A linear score of 12 numbers of the low band, of 768 in all; best of 100 is about 2.5."""
    slope = low_band(normal([Key.root(5)], (3, 16, 16)), 8)[0]
    slope = slope / slope.norm()

    def best(plan: str, seed: int) -> float:
        noises = Noises((3, 16, 16), lambda x: float((x * slope).sum()))
        return max(
            o.score or 0.0
            for o in play(plan.replace("()", "(band=8)") if "low" in plan else plan, noises, 100, seed).outcomes
        )

    found, plain = ([best(p, seed) for seed in range(4)] for p in (plan, "random(n=100)"))
    assert sum(plain) / 4 == pytest.approx(2.5, abs=0.4)
    assert sum(found) / sum(plain) > least
