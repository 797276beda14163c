"""The adaptive solver against exact flows: order, tolerance, rows that do not see each other, and the way back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from secondlook.errors import ConfigError, SecondlookError
from secondlook.flow.estimate import Flow
from secondlook.flow.path import GVP, VP, Kind, Linear, Path, mix
from secondlook.noise import Key, normal
from secondlook.solvers.adaptive import Dopri5
from secondlook.solvers.ode import RK4, Heun, Solver, integrate
from secondlook.types import State
from secondlook.worlds.mixture import Mixture, default_mixture

PATHS: list[Path] = [Linear(), GVP(), VP()]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
WORLD = default_mixture()
ONE = Mixture.of((1.0,), ((1.2, -0.7),), (0.5,))


def flow_on(path: Path, kind: Kind = "velocity", world: Mixture = WORLD) -> Flow:
    return Flow(world.network(path, kind), path)


def exact_state(path: Path, t: float | Sequence[float], rows: int, world: Mixture = WORLD) -> State:
    keys = tuple(Key.root(0).child(i) for i in range(rows))
    time = torch.tensor([t] * rows if isinstance(t, float) else t, dtype=torch.float64)
    noise = normal([k.child("noise") for k in keys], (2,)).double()
    return State(mix(path, world.sample(keys), noise, time), time, keys, torch.zeros(rows, dtype=torch.int64))


def at(t: float, state: State) -> Tensor:
    return torch.full_like(state.t, t)


def carried(path: Path, x: Tensor, t: float, t_next: float) -> Tensor:
    """Where the exact flow of ONE takes x [B, 2]: the standard deviations that a point lies from the mean are kept."""
    a, b = ONE.marginal(path, t), ONE.marginal(path, t_next)
    return b.means + b.scales / a.scales * (x - a.means)


# Accuracy


@each_path
def test_steps_are_of_the_fifth_order_and_know_their_error_to_the_fifth(path: Path) -> None:
    """One step of size h misses the exact flow by O(h^6), and its own estimate of the fourth-order error by O(h^5)."""
    flow, state = flow_on(path, world=ONE), exact_state(path, 0.2, 8, ONE)
    misses, guesses = [], []
    for h in (0.08, 0.04, 0.02):
        slope = flow.estimate(state.x, state.t, None).velocity
        new, error, _, _ = Dopri5()._attempt(flow, state.x, state.t, at(h, state), slope, None)
        misses.append(float((new - carried(path, state.x, 0.2, 0.2 + h)).norm()))
        guesses.append(float(error.norm()))
    for values, order in ((misses, 6), (guesses, 5)):
        for coarse, fine in pairwise(values):
            assert math.log2(coarse / fine) == pytest.approx(order, abs=0.5)


@each_path
def test_the_error_is_that_of_the_tolerance(path: Path) -> None:
    """A tolerance ten times smaller gives about as much less of an error, for at most 10^(1/5) times the steps."""
    flow, state = flow_on(path, world=ONE), exact_state(path, 0.0, 8, ONE)
    want, errors, steps = carried(path, state.x, 0.0, 0.95), [], []
    for tol in (1e-4, 1e-6, 1e-8):
        end = Dopri5(rtol=0.0, atol=tol).step(flow, state, at(0.95, state), None)
        errors.append(float((end.x - want).square().mean().sqrt()))
        steps.append(float(end.step.double().mean()))
        assert errors[-1] < 10 * tol
    assert errors[0] > 30 * errors[1] > 900 * errors[2]
    assert 1.3 < steps[2] / steps[1] < 1.2 * 100 ** (1 / 5)


@each_path
def test_relative_and_absolute_tolerance_both_count(path: Path) -> None:
    flow, state = flow_on(path), exact_state(path, 0.05, 6)
    tried = [
        int(Dopri5(rtol=r, atol=a).step(flow, state, at(0.95, state), None).step.sum())
        for r, a in ((1e-3, 1e-3), (1e-6, 1e-3), (1e-3, 1e-6), (0.0, 1e-6), (1e-6, 0.0))
    ]
    assert tried[0] <= min(tried[1:3])
    assert max(tried[1:3]) < min(tried[3:])


# Rows


def same(a: State, b: State, rows: Sequence[int]) -> bool:
    one, other = a.rows(rows), b.rows(rows)
    assert one.data is not None
    assert other.data is not None
    pairs = ((one.x, other.x), (one.t, other.t), (one.step, other.step), (one.data, other.data))
    return all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("end", ["estimate", "step"])
@pytest.mark.parametrize("way", [(0.05, 0.95), (0.95, 0.05), (0.0, 1.0)], ids=["forth", "back", "whole"])
@each_path
def test_a_row_does_not_depend_on_its_mates(path: Path, way: tuple[float, float], end: Any) -> None:
    """Other mates, some of them far out and stiff: the same bits and the same number of steps; alone: the same number."""
    if path.name == "vp" and way[1] == 1.0 and end == "step":
        way = (0.0, 1 - 1e-5)  # VP has no velocity at data
    flow, solver, state = flow_on(path), Dopri5(1e-4, 1e-6, end=end), exact_state(path, way[0], 6)
    whole = solver.step(flow, state, at(way[1], state), None)
    mates = torch.cat([state.x[:2], 20 * state.x[2:] - 3])
    other = solver.step(flow, replace(state, x=mates), at(way[1], state), None)
    assert same(whole, other, [0, 1])
    assert not same(whole, other, [2, 3, 4, 5])
    assert len(set(other.step.tolist())) > 1
    alone = solver.step(flow, state.rows([1]), at(way[1], state)[[1]], None)
    torch.testing.assert_close(alone.x, whole.x[[1]], rtol=0, atol=1e-9)
    assert alone.step.tolist() == whole.step[[1]].tolist()


def test_rows_of_different_times_and_ends_are_as_if_alone() -> None:
    """One goes to data, one stops just before it (inside the last gap), one goes back, one stays: each as by itself."""
    flow, solver = flow_on(Linear()), Dopri5(1e-6, 1e-6)
    state = exact_state(Linear(), [0.2, 0.5, 0.9, 0.3, 0.9995], 5)
    t_next = torch.tensor([1.0, 0.9996, 0.4, 0.3, 1.0], dtype=torch.float64)
    whole = solver.step(flow, state, t_next, None)
    assert whole.t.tolist() == t_next.tolist()
    for i in range(5):
        alone = solver.step(flow, state.rows([i]), t_next[[i]], None)
        torch.testing.assert_close(alone.x, whole.x[[i]], rtol=0, atol=1e-10)
        assert alone.step.tolist() == whole.step[[i]].tolist()
    assert torch.equal(whole.x[3], state.x[3])
    assert whole.step[3:].tolist() == [0, 0]
    back = solver.step(flow, whole, state.t, None).x
    torch.testing.assert_close(back[1:3], state.x[1:3], rtol=0, atol=1e-4)


def test_purity() -> None:
    flow, solver, state = flow_on(GVP()), Dopri5(), exact_state(GVP(), 0.1, 4)
    before = [v.clone() for v in (state.x, state.t, state.step)]
    first, again = (solver.step(flow, state, at(0.9, state), None) for _ in range(2))
    assert same(first, again, range(4))
    assert all(torch.equal(a, b) for a, b in zip(before, (state.x, state.t, state.step), strict=True))


# There and back


@pytest.mark.parametrize(
    ("solver", "steps", "error"), [(Dopri5(1e-7, 1e-7), 1, 1e-5), (RK4(), 50, 1e-4), (Heun(), 80, 2e-2)],
    ids=["dopri5", "rk4", "heun"],
)  # fmt: skip
@each_path
def test_back_to_noise_and_forth_again(path: Path, solver: Solver, steps: int, error: float) -> None:
    """Data to noise and noise to data on [0.05, 0.95] return to their start, and the noise has the law it should."""
    flow, state = flow_on(path), exact_state(path, 0.95, 6)
    times = tuple(0.95 - 0.9 * i / steps for i in range(steps + 1))
    noise = integrate(flow, solver, state, times, None)
    assert float((noise.x - state.x).norm()) > 1
    again = integrate(flow, solver, noise, times[::-1], None)
    torch.testing.assert_close(again.x, state.x, rtol=0, atol=error)
    one = exact_state(path, 0.95, 6, ONE)
    noise = integrate(flow_on(path, world=ONE), solver, one, times, None)
    torch.testing.assert_close(noise.x, carried(path, one.x, 0.95, 0.05), rtol=0, atol=error)


# The end at data


@pytest.mark.parametrize("kind", ["data", "noise", "velocity", "logp_grad"])
@each_path
def test_the_end_is_the_estimate_just_before_data(path: Path, kind: Kind) -> None:
    state = exact_state(path, 0.3, 5)
    near = Dopri5(1e-6, 1e-8).step(flow_on(path, kind), state, at(0.999, state), None)
    end = Dopri5(1e-6, 1e-8).step(flow_on(path, kind), state, at(1.0, state), None)
    torch.testing.assert_close(end.x, WORLD.posterior_mean(path, near.x, near.t), rtol=0, atol=1e-9)
    assert end.data is not None
    assert torch.equal(end.x, end.data)
    assert (end.t == 1).all()


@each_path
def test_a_row_already_inside_the_last_gap_gets_its_estimate(path: Path) -> None:
    """It is not carried to t = 1, where VP has no velocity."""
    state = exact_state(path, 0.9995, 3)
    end = Dopri5().step(flow_on(path), state, at(1.0, state), None)
    torch.testing.assert_close(end.x, WORLD.posterior_mean(path, state.x, state.t))
    assert end.step.tolist() == [0, 0, 0]


@pytest.mark.parametrize("path", [Linear(), GVP()], ids=lambda p: p.name)
def test_a_velocity_may_be_followed_to_data_itself(path: Path) -> None:
    state = exact_state(path, 0.0, 5, ONE)
    end = Dopri5(1e-7, 1e-7, end="step").step(flow_on(path, world=ONE), state, at(1.0, state), None)
    torch.testing.assert_close(end.x, carried(path, state.x, 0.0, 1.0), rtol=0, atol=1e-5)


def test_single_precision_stays_and_is_as_good_as_it_can_be() -> None:
    state = exact_state(Linear(), 0.0, 5, ONE)
    single = replace(state, x=state.x.float(), t=state.t.float())
    end = Dopri5(1e-5, 1e-5).step(flow_on(Linear(), world=ONE), single, at(0.95, single), None)
    assert end.x.dtype == end.t.dtype == torch.float32
    torch.testing.assert_close(end.x.double(), carried(Linear(), state.x, 0.0, 0.95), rtol=0, atol=1e-4)


# Cost and refusals


@dataclass
class Counted:
    """A network that counts its calls."""

    inner: Any
    predicts: Kind = "velocity"
    shape: tuple[int, ...] = (2,)
    calls: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.calls.append(t)
        return self.inner(x, t, cond)


@pytest.mark.parametrize(("goal", "more"), [(0.95, 0), (1.0, 1)])
def test_a_lone_rows_calls_are_six_a_step_and_two(goal: float, more: int) -> None:
    """First-same-as-last; the estimate of the data at the end is one more."""
    network = Counted(WORLD.network(Linear(), "velocity"))
    flow, state = Flow(network, Linear()), exact_state(Linear(), 0.0, 1)
    end = Dopri5().step(flow, state, at(goal, state), None)
    assert len(network.calls) == flow.meter.nfe == 6 * int(end.step) + 2 + more
    times = torch.cat(network.calls)
    assert 0 <= float(times.min()) <= float(times.max()) <= goal


def test_a_search_cannot_price_it() -> None:
    with pytest.raises(ConfigError, match="cannot price it"):
        Dopri5().evals(last=False)


@pytest.mark.parametrize(
    "options", [{"rtol": -1.0}, {"atol": -1e-9}, {"rtol": 0.0, "atol": 0.0}, {"atol": math.inf}, {"rtol": math.nan}]
)
def test_tolerances_are_refused_with_a_sentence(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="rtol and atol must be 0 or above"):
        Dopri5(**options)  # type: ignore[arg-type]


def test_an_end_is_refused_with_a_sentence() -> None:
    with pytest.raises(ConfigError, match='dopri5: end expects "estimate" or "step"'):
        Dopri5(end="data")  # type: ignore[arg-type]


def test_too_many_steps_stop_with_a_sentence() -> None:
    state = exact_state(Linear(), 0.0, 3)
    flow = flow_on(Linear())
    with pytest.raises(SecondlookError, match="tried 5 steps without reaching its end; raise rtol"):
        Dopri5(1e-9, 1e-9, most=5).step(flow, state, at(0.95, state), None)
    assert flow.meter.nfe == 6 * 5 + 2


def test_a_velocity_that_is_no_number_stops_with_a_sentence() -> None:
    flow = Flow(Counted(lambda x, t, cond: x * math.nan), Linear())
    state = exact_state(Linear(), 0.0, 2)
    with pytest.raises(SecondlookError, match="velocity is not finite"):
        Dopri5(most=20).step(flow, state, at(0.95, state), None)
