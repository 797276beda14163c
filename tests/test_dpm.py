"""DPM-Solver++: agreement with the published schedulers, orders and laws, and a memory that survives forks and saving."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path as File
from typing import Any

import pytest
import torch
from torch import Tensor

from secondlook.engine.derive import Derivation, replay
from secondlook.engine.store import Store, sha256
from secondlook.errors import ConfigError
from secondlook.flow.discrete import Discrete
from secondlook.flow.estimate import Flow
from secondlook.flow.path import GVP, VP, Kind, Linear, Path
from secondlook.moves import Clone, Fresh, Near, Resume, Rewind
from secondlook.noise import Key, NoiseSource
from secondlook.settings import make_named
from secondlook.solvers.ddpm import DDIM
from secondlook.solvers.dpm import DPMpp
from secondlook.solvers.ode import Euler, Solver, integrate
from secondlook.types import Condition, Proposal, State
from secondlook.worlds.mixture import Mixture
from tests.helpers import drive, tiny_network, tiny_rig
from tests.test_solve import WORLD, exact_state, flow_on, rms_error

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
PATHS: list[Path] = [Linear(), GVP(), VP(), Discrete()]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
each_kind = pytest.mark.parametrize("kind", ["midpoint", "heun"])
DOUBLE = torch.float64
CLOSE = 5e-6  # of agreement in float32 with the published schedulers; found: 1.5e-6 and less


# ---- agreement with the published schedulers -------------------------------------------------------------------------


def answer(x: Tensor, level: Tensor) -> Tensor:
    """A network: smooth, bounded, of its input and of the scheduler's number alone."""
    return torch.tanh(0.7 * x + 0.1 * level / 1000)


@dataclass(frozen=True)
class Known:
    """``answer`` at the times of a scheduler, shown that scheduler's own numbers; a flow's velocity has our sign."""

    times: Tensor
    levels: Tensor
    predicts: Kind = "noise"
    shape: tuple[int, ...] = (3, 5)

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        level = self.levels[(t.double()[:, None] - self.times).abs().argmin(1)].to(x)
        value = answer(x, level[:, None, None])
        return -value if self.predicts == "velocity" else value


def begin() -> Tensor:
    return torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))


def scheduler_of(name: str, steps: int, **options: Any) -> Any:
    made = getattr(pytest.importorskip("diffusers"), name)(**options)
    made.set_timesteps(steps)
    return made


def theirs(scheduler: Any, x: Tensor, **options: Any) -> list[Tensor]:
    """What a pipeline does: scale the sample, ask, step."""
    found = []
    for t in scheduler.timesteps:
        asked = scheduler.scale_model_input(x, t)
        x = scheduler.step(answer(asked, t.float()), t, x, **options).prev_sample
        found.append(x)
    return found


def given(noises: Sequence[Tensor]) -> NoiseSource:
    """These noises one after the other."""
    left = iter(noises)
    return lambda keys, shape: next(left)


def ours(solver: Solver, path: Path, times: Tensor, levels: Tensor, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    flow = Flow(Known(times[:-1], levels, "velocity" if isinstance(path, Linear) else "noise"), path)
    rows, found = len(x), []
    state = State(x, times[:1].to(dtype).expand(rows), (Key.root(0),) * rows, torch.zeros(rows, dtype=torch.int64))
    for t in times[1:]:
        state = solver.step(flow, state, t.to(dtype).expand(rows), None)
        found.append(state.x)
    return found


def apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference of two trajectories, in proportion to a step's largest value where that is above 1."""
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1)) for a, b in zip(one, other, strict=True))


def times_of(scheduler: Any, path: Discrete, end: float = 1.0) -> Tensor:
    """Our times of a variance-preserving scheduler: where the path has its sigmas."""
    return torch.cat([path.time_of(scheduler.sigmas[:-1].double()), torch.tensor([end], dtype=DOUBLE)])


BETAS = {"scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012}, "linear": {"beta_start": 1e-4, "beta_end": 0.02}}


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing", "karras"])
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize(("order", "kind"), [(1, "midpoint"), (2, "midpoint"), (2, "heun")])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_as_dpm_solver_multistep(
    eta: float, order: int, kind: Any, betas: str, spacing: str, steps: int, final: str
) -> None:
    spaced = {"use_karras_sigmas": True} if spacing == "karras" else {"timestep_spacing": spacing}
    scheduler = scheduler_of(
        "DPMSolverMultistepScheduler",
        steps,
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        solver_order=order,
        solver_type=kind,
        beta_schedule=betas,
        final_sigmas_type=final,
        **BETAS[betas],
        **spaced,
    )
    abar = scheduler.alphas_cumprod
    path = Discrete.of(abar, float(abar[0]) if final == "sigma_min" else 1.0)
    noises = [torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(i)) for i in range(steps)]
    want = []
    x = begin()
    for t, z in zip(scheduler.timesteps, noises, strict=True):
        x = scheduler.step(answer(x, t.float()), t, x, variance_noise=z).prev_sample
        want.append(x)
    times = times_of(scheduler, path)
    if spacing != "karras":
        assert torch.equal(torch.round(path.index(times[:-1])).long(), scheduler.timesteps)
    for dtype in (torch.float32, DOUBLE):
        solver = DPMpp(order, kind, eta, lower_order_final=steps < 15, source=given(noises))
        assert apart(ours(solver, path, times, scheduler.timesteps, begin(), dtype), want) < CLOSE


@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize(("order", "kind"), [(1, "midpoint"), (2, "midpoint"), (2, "heun")])
def test_as_dpm_solver_multistep_on_flows(order: int, kind: Any, steps: int) -> None:
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    scheduler = scheduler_of("DPMSolverMultistepScheduler", steps, solver_order=order, solver_type=kind, **flow)
    want = theirs(scheduler, begin())
    times = 1 - scheduler.sigmas.double()
    assert float(times[-1]) == 1.0
    for dtype in (torch.float32, DOUBLE):
        got = ours(DPMpp(order, kind), Linear(), times, scheduler.timesteps, begin(), dtype)
        assert apart(got, want) < CLOSE


@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize("spacing", [("leading", 0), ("leading", 1), ("trailing", 0)], ids=str)
@pytest.mark.parametrize("to_one", [True, False])
def test_as_ddim(to_one: bool, spacing: tuple[str, int], steps: int) -> None:
    spaced = {"timestep_spacing": spacing[0], "steps_offset": spacing[1], **BETAS["linear"]}
    scheduler = scheduler_of("DDIMScheduler", steps, clip_sample=False, set_alpha_to_one=to_one, **spaced)
    abar = scheduler.alphas_cumprod
    path = Discrete.of(abar, 1.0 if to_one else float(abar[0]))
    want = theirs(scheduler, begin(), eta=0.0)
    times = torch.cat([path.time(scheduler.timesteps), torch.ones(1, dtype=DOUBLE)])
    for dtype in (torch.float32, DOUBLE):
        for solver in (DDIM(), DPMpp(order=1)):
            assert apart(ours(solver, path, times, scheduler.timesteps, begin(), dtype), want) < CLOSE


@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize(
    ("eta", "spacing"),
    [*((eta, s) for eta in (0.0, 1.0) for s in ("linspace", "leading", "trailing")), (0.0, "karras")],
)
@pytest.mark.parametrize("betas", BETAS)
def test_as_euler_and_euler_ancestral(betas: str, eta: float, spacing: str, steps: int) -> None:
    """Their x is ours over alpha; with noise they are DDIM at eta 1, given the same draws."""
    spaced = {"use_karras_sigmas": True} if spacing == "karras" else {"timestep_spacing": spacing}
    name = "EulerAncestralDiscreteScheduler" if eta else "EulerDiscreteScheduler"
    scheduler = scheduler_of(name, steps, beta_schedule=betas, **BETAS[betas], **spaced)
    path = Discrete.of(scheduler.alphas_cumprod)
    first, again = (torch.Generator().manual_seed(7) for _ in range(2))
    want = theirs(scheduler, begin() * scheduler.init_noise_sigma, generator=first)
    noises = [torch.randn(4, 3, 5, generator=again) for _ in range(steps)]
    times = times_of(scheduler, path)
    alphas = path.coefs(times).alpha.float()
    for dtype in (torch.float32, DOUBLE):
        solver = DDIM(eta, source=given(noises))
        x = begin() * scheduler.init_noise_sigma * alphas[0]
        got = ours(solver, path, times, scheduler.timesteps, x, dtype)
        assert apart(got, [w * a for w, a in zip(want, alphas[1:], strict=True)]) < CLOSE


# ---- orders and laws -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "order"), [(DPMpp(1), 1), (DPMpp(2), 2), (DPMpp(2, "heun"), 2)], ids=["first", "midpoint", "heun"]
)
@each_path
def test_order(path: Path, solver: Solver, order: int) -> None:
    errors = [rms_error(path, solver, n) for n in (40, 80, 160)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)
    assert errors[-1] < {1: 0.02, 2: 2e-3}[order]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@each_kind
@each_path
def test_steps_keep_gaussian_marginals(path: Path, kind: Any, eta: float) -> None:
    """Without chance: for one Gaussian a step is affine in x, the memory and the noise, so the joint mean and covariance of x
    and memory follow by recursion with coefficients read off the solver."""
    world = Mixture.of((1.0,), ((1.2,),), (0.5,))
    flow = flow_on(path, world)
    probes = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=DOUBLE)
    solver = DPMpp(2, kind, eta, source=lambda keys, shape: probes[:, 2:])

    def moments(steps: int) -> Tensor:
        law = world.marginal(path, 0.05)
        mean = torch.tensor([float(law.means[0, 0]), 0.0], dtype=DOUBLE)
        cov = torch.diag(torch.tensor([float(law.scales[0]) ** 2, 0.0], dtype=DOUBLE))
        ones, earlier = torch.ones(4, dtype=DOUBLE), torch.nan
        for t, t_next in pairwise(torch.linspace(0.05, 0.95, steps + 1, dtype=DOUBLE).tolist()):
            carry = {"data": probes[:, 1:2], "t": earlier * ones}
            state = State(probes[:, :1], t * ones, (Key.root(0),) * 4, torch.zeros(4, dtype=torch.int64), carry=carry)
            end = solver.step(flow, state, t_next * ones, None)
            assert end.carry is not None
            y = torch.cat([end.x, end.carry["data"]], 1)
            turn, noise = (y[1:3] - y[0]).T, y[3] - y[0]
            mean, cov = turn @ mean + y[0], turn @ cov @ turn.T + torch.outer(noise, noise)
            earlier = t
        return torch.stack([mean[0], cov[0, 0]])

    law = world.marginal(path, 0.95)
    want = torch.tensor([float(law.mean()), float(law.covariance())], dtype=DOUBLE)
    errors = [(moments(n) - want).abs() for n in (50, 100, 200)]
    for coarse, fine in pairwise(errors):
        assert max(coarse[0], fine[0]) < 1e-12  # the estimate's mean does not change on the way
        assert math.log2(coarse[1] / fine[1]) == pytest.approx(2, abs=0.25)
    assert errors[-1][1] < 6e-4


@pytest.mark.parametrize("eta", [0.0, 1.0])
@each_path
def test_the_first_order_is_ddim(path: Path, eta: float) -> None:
    """At both ends of eta; between them the two name different SDEs."""
    flow, state = flow_on(path), exact_state(path, 0.0, 5)
    for t in (0.0, 0.3, 0.31, 0.9, 1.0):
        got, want = (s.step(flow, state, torch.full_like(state.t, t), None) for s in (DPMpp(1, eta=eta), DDIM(eta)))
        torch.testing.assert_close(got.x, want.x, rtol=1e-12, atol=1e-12)
        assert got.carry is None
        state = want
    assert torch.equal(got.x, got.data)  # type: ignore[arg-type]


# ---- the memory ------------------------------------------------------------------------------------------------------


def through(solver: Solver, path: Path, state: State, times: Sequence[float]) -> State:
    return integrate(flow_on(path), solver, state, tuple(times), None)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@each_path
def test_a_forked_run_goes_on_as_if_nothing_had_been(
    path: Path, dtype: torch.dtype, eta: float, tmp_path: File
) -> None:
    """To the middle, apart, saved and read again, joined by rows that begin: bit for bit the run that was let alone."""
    solver, times = DPMpp(eta=eta), [0.0, 0.1, 0.25, 0.4, 0.6, 0.8, 1.0]
    first = exact_state(path, 0.0, 4)
    first = replace(first, x=first.x.to(dtype), t=first.t.to(dtype))
    alone = through(solver, path, first, times)
    half = through(solver, path, first, times[:4])
    store = Store.create(tmp_path / "run", {"prompts": []})
    for i in range(4):
        store.save_state(i, half.rows([i]))
    back = [store.state(i) for i in (2, 0, 3)]
    begun = replace(first, keys=tuple(k.child("other") for k in first.keys)).rows([1])
    state = State.stack([begun, *(b for b in back if b is not None)])
    assert len(state) == 4
    for late, early in zip(times[4:], times[1:4], strict=True):
        state = solver.step(flow_on(path), state, torch.tensor([early, late, late, late], dtype=dtype), None)
    mine = state.rows([1, 2, 3])
    assert torch.equal(mine.x, alone.rows([2, 0, 3]).x)
    assert mine.keys == alone.rows([2, 0, 3]).keys
    with_company = through(solver, path, begun.rows([0] * 4), times[:4]).rows([0])
    assert torch.equal(state.rows([0]).x, with_company.x)


@each_kind
def test_rows_without_memory_beside_rows_with_one(kind: Any) -> None:
    path, solver = Linear(), DPMpp(2, kind)
    flow, new = flow_on(path), exact_state(path, 0.3, 3)
    old = solver.step(flow, exact_state(path, 0.2, 3, seed=1), new.t, None)
    both = State.stack([new, old])
    assert both.carry is not None
    assert both.carry["t"][:3].isnan().all()
    t_next = torch.full_like(both.t, 0.45)
    end, plain = solver.step(flow, both, t_next, None), DPMpp(1).step(flow, both, t_next, None)
    torch.testing.assert_close(end.x[:3], plain.x[:3], rtol=0, atol=0)
    assert ((end.x - plain.x)[3:].abs() > 1e-5).all()
    torch.testing.assert_close(end.x[3:], solver.step(flow, old, t_next[3:], None).x, rtol=1e-14, atol=1e-14)
    assert end.x.isfinite().all()
    assert end.carry is not None
    assert torch.equal(end.carry["t"], both.t)
    assert all(v.isfinite().all() for v in end.carry.values())
    for other in (Euler(), DDIM()):  # whose steps leave a memory out of date behind
        assert other.step(flow, both, t_next, None).carry is None


@pytest.mark.parametrize("path", [Linear(), GVP()], ids=lambda p: p.name)
@each_kind
def test_a_memory_from_pure_noise_or_from_the_same_spot_turns_nothing(path: Path, kind: Any) -> None:
    """Where alpha = 0 lambda is minus infinity, and the correction goes to 0 with the distance in lambda."""
    solver, t = DPMpp(2, kind), torch.tensor([0.3, 0.3, 0.3, 0.3, 1.0], dtype=DOUBLE)
    t_next = torch.tensor([0.5, 0.5, 0.0, 0.5, 0.5], dtype=DOUBLE)
    earlier = torch.tensor([0.0, 0.3, 0.2, 0.2999, 0.9], dtype=DOUBLE)
    assert torch.equal(solver.turn(path, t, t_next, earlier), torch.zeros(5, dtype=DOUBLE))
    near = torch.tensor([1e-9, 1e-30], dtype=DOUBLE)
    turns = solver.turn(path, t[:2], t_next[:2], near)
    assert (turns > 0).all()
    assert (turns < 0.05).all()
    end = through(solver, path, exact_state(path, 0.0, 3), [0.0, 0.2])
    both = (s.step(flow_on(path), end, end.t + 0.2, None).x for s in (solver, DPMpp(1)))
    torch.testing.assert_close(*both, rtol=0, atol=0)


def test_it_runs_back_and_with_noise_it_does_not() -> None:
    path = Discrete()
    state, times = exact_state(path, 0.9, 4), [0.9 - 0.8 * i / 50 for i in range(51)]
    there = through(DPMpp(), path, state, times)
    back = through(DPMpp(), path, replace(there, carry=None), times[::-1])
    torch.testing.assert_close(back.x, state.x, rtol=0, atol=0.02)
    with pytest.raises(ConfigError, match="from noise to data only"):
        DPMpp(eta=0.5).step(flow_on(path), state, state.t - 0.1, None)


@pytest.mark.parametrize("kind", ["data", "noise"])
@pytest.mark.parametrize("final", [None, 1.0])
def test_the_last_step_follows_a_path_that_keeps_noise(final: float | None, kind: Kind) -> None:
    path = Discrete()
    path = replace(path, final=path.abar[0] if final is None else final)
    state = exact_state(path, 0.9, 4)
    for solver in (DDIM(), DPMpp(), DPMpp(lower_order_final=True)):
        flow = Flow(WORLD.network(path, kind), path)
        end = solver.step(flow, solver.step(flow, state, state.t + 0.09, None), torch.ones_like(state.t), None)
        assert end.data is not None
        assert torch.equal(end.x, end.data) is (final == 1.0)
        assert end.x.isfinite().all()
    turns = [
        s.turn(path, state.t + 0.09, torch.ones_like(state.t), state.t)
        for s in (DPMpp(lower_order_final=True), DPMpp())
    ]
    assert not turns[0].any()
    assert bool(turns[1].all()) is (final is None)


def test_what_moves_keep_of_a_memory() -> None:
    rig = tiny_rig(tiny_network(), solver="dpmpp")
    key = Key.root(3)
    moves = [Fresh(key), Near(0, key, 0.5), Rewind(0, 0.1, key), Resume(0), Clone(0, key.child("other"))]
    proposals = [Proposal(move, Condition("a red circle")) for move in moves]
    [state], _ = rig.advance([rig.start(key)], [0.3], [Condition("a red circle")])
    source = Derivation(rig, lambda i: proposals[i], lambda i: state)
    found = [move.state(source) for move in moves]
    assert [s.carry for s in found[:3]] == [None] * 3
    assert found[3].carry is found[4].carry is state.carry is not None
    assert found[4].keys == (key.child("other"),)


def test_a_search_over_half_made_pictures_is_drawn_again_from_its_log(tmp_path: File) -> None:
    network = tiny_network()
    record = drive(tmp_path / "run", tiny_rig(network, solver="dpmpp"), "paths(n=2, width=2)", nfe=40)
    alone = tiny_rig(network, solver="dpmpp")
    shown = {i: d for i, d in record.digests.items() if d}
    assert len(shown) >= 4
    for number, digest in shown.items():
        assert sha256(replay(alone, number, lambda i: record.outcomes[i].proposal)) == digest


def test_bad_options_are_refused() -> None:
    for bad, words in (
        ("dpmpp(order=3)", "order must be 1 or 2; got 3"),
        ("dpmpp(kind='huen')", 'there is not a kind "huen"; did you mean "heun"'),
        ("dpmpp(eta=1.5)", "eta must be from 0 to 1; got 1.5"),
        ("dpmpp(eta=-0.1)", "eta must be from 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_named("solver", bad)
    assert make_named("solver", "dpmpp(order=1, kind='heun', eta=1, lower_order_final=True)").evals(True) == 1
