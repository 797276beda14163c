"""Regression tests for the 33 numbered defects of SiT's released code, as far as this design could share them.

docs/sit-defects.md lists all of them by the same numbers, with the reason for each that has no test here.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from secondlook.engine.rig import guidance
from secondlook.errors import ConfigError, SecondlookError
from secondlook.flow.estimate import WEIGHTS, Flow, loss_weight
from secondlook.flow.grid import spread
from secondlook.flow.guidance import ClassifierFree, Plain
from secondlook.flow.interval import LAST_STEP, PRESETS, interval
from secondlook.flow.path import GVP, KINDS, VP, Coefs, Kind, Linear, Path
from secondlook.models.sit import SiT, SiTConfig
from secondlook.noise import Key, normal
from secondlook.solvers import likelihood
from secondlook.solvers.adaptive import Dopri5
from secondlook.solvers.likelihood import bits_per_dim, dequantise, log_prob
from secondlook.solvers.ode import RK4, Euler, Heun, integrate
from secondlook.solvers.sde import FORMS, Diffusion, EulerMaruyama, LossTable, StochasticHeun
from secondlook.types import State
from secondlook.worlds.mixture import Mixture, default_mixture

WORLD = default_mixture()
PATHS: list[Path] = [Linear(), GVP(), VP()]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
alpha_zero = pytest.mark.parametrize("path", PATHS[:2], ids=lambda p: p.name)
TABLE = LossTable((0.0, 1.0), (0.5, 0.2))


@dataclass
class Counted:
    """A network that remembers the times, rows and conditions it was asked for."""

    inner: Any
    predicts: Kind = "velocity"
    shape: tuple[int, ...] = (2,)
    times: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.times += t.tolist()
        self.rows.append(len(x))
        return self.inner(x, t, cond)


def counted(path: Path, kind: Kind = "velocity", world: Mixture = WORLD) -> Counted:
    return Counted(world.network(path, kind), kind, (world.dim,))


def noise_at(t: float, rows: int = 4) -> State:
    keys = tuple(Key.root(3).child(i) for i in range(rows))
    return State(normal(keys, (2,)), torch.full((rows,), t), keys, torch.zeros(rows, dtype=torch.int64))


SIT = SiTConfig(side=4, patch=2, channels=2, width=16, depth=1, heads=2, classes=3)


def waking(config: SiTConfig = SIT) -> SiT:
    """A small random network (a new one's last layers are zero)."""
    torch.manual_seed(0)
    sit = SiT(config)
    for p in sit.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.3)
    return sit.eval().requires_grad_(False)


# Sampling


@pytest.mark.parametrize("solver", [EulerMaruyama, StochasticHeun])
@alpha_zero
def test_defect_01_kl_diffusion_on_linear_velocity_is_finite(path: Path, solver: Any) -> None:
    """From t = 0, where w_KL is infinite and the interval begins."""
    span = interval(path.name, "velocity", "sde", last=LAST_STEP)
    assert span.start == 0
    grid = spread(span.start, span.end, 20, last=LAST_STEP)
    end = integrate(Flow(counted(path), path), solver(diffusion="kl"), noise_at(0.0), grid, None)
    assert end.x.isfinite().all()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("use", ["train", "ode", "sde"])
def test_defect_02_an_eps_that_is_given_is_kept(use: Any, preset: str) -> None:
    """Whatever the path and the prediction."""
    for path in PATHS:
        for kind in KINDS:
            span = interval(path.name, kind, use, preset=preset, eps=0.01)
            assert (span.start, span.end) == (0.01, 0.99)


def test_defect_03_every_diffusion_form_runs_by_its_name() -> None:
    """Ours and the released code's, its misspelling included."""
    official = ("constant", "SBDM", "sigma", "linear", "decreasing", "increasing-decreasing", "inccreasing-decreasing")
    forms = [Diffusion(f, losses=TABLE if f == "kl_eta" else None) for f in FORMS]
    for form in (*forms, *(Diffusion.official(name) for name in official)):
        state = noise_at(0.5)
        for solver in (EulerMaruyama(form=form), StochasticHeun(form=form)):
            assert solver.step(Flow(counted(Linear()), Linear()), state, state.t + 0.1, None).x.isfinite().all()


def test_defect_04_training_and_sampling_have_their_own_eps() -> None:
    """Each may be given or not: one's is never the other's, and none is missing."""
    for path in PATHS:
        for kind in KINDS:
            alone = {use: interval(path.name, kind, use) for use in ("train", "ode", "sde")}  # type: ignore[arg-type]
            for use in alone:
                given = {u: interval(path.name, kind, u, eps=0.02 if u == use else None) for u in alone}  # type: ignore[arg-type]
                assert given[use].start == 0.02
                assert all(given[u] == alone[u] for u in alone if u != use)


def test_defect_05_drift_and_log_density_come_from_one_network_call() -> None:
    """One call an Euler-Maruyama step, two a Heun step, in every prediction; guidance only makes them wider."""
    for kind in KINDS:
        for solver, calls in ((EulerMaruyama(), 1), (StochasticHeun(), 2)):
            for guide, width in ((Plain(), 4), (ClassifierFree(2.0, lambda cond, rows: cond), 8)):
                network, state = counted(Linear(), kind), noise_at(0.5)
                solver.step(Flow(network, Linear(), guide), state, state.t + 0.1, None)
                assert network.rows == [width] * calls


@pytest.mark.parametrize("form", FORMS)
@alpha_zero
def test_defect_06_stochastic_heun_without_a_last_step_is_finite(path: Path, form: str) -> None:
    """It asks for the drift at t = 1, where sigma is 0."""
    solver = StochasticHeun(form=Diffusion(form, losses=TABLE if form == "kl_eta" else None), last="step")
    assert integrate(Flow(counted(path), path), solver, noise_at(0.0), spread(0.0, 1.0, 12), None).x.isfinite().all()


@pytest.mark.parametrize(("preset", "end"), [("paper", 1 - 1e-5), ("official", 0.999)])
def test_defect_07_going_back_swaps_the_ends_of_the_interval(preset: str, end: float) -> None:
    """Not mirrors them: on VP from just before data to noise itself, and back to where it began."""
    span, network = interval("vp", "velocity", "ode", preset=preset), counted(VP())
    data = WORLD.sample([Key.root(1).child(i) for i in range(4)])
    state = replace(noise_at(0.0), x=data, t=torch.full((4,), span.end, dtype=torch.float64))
    for solver, steps in ((Dopri5(1e-5, 1e-5), 1), (RK4(), 40)):
        grid = spread(span.start, span.end, steps)
        noise = integrate(Flow(network, VP()), solver, state, grid[::-1], None)
        assert (min(network.times), max(network.times)) == (0.0, end)
        again = integrate(Flow(network, VP()), solver, noise, grid, None)
        torch.testing.assert_close(again.x, data, rtol=0, atol=5e-3)


def test_defect_08_adaptive_steps_do_not_depend_on_batch_mates() -> None:
    """Nor does guidance bring a second, unconditional state: its null pass is inside the estimate."""
    for guide in (Plain(), ClassifierFree(3.0, lambda cond, rows: cond)):
        flow, state = Flow(counted(Linear()), Linear(), guide), noise_at(0.0)
        other = replace(state, x=torch.cat([state.x[:1], 9 * state.x[1:]]))
        a, b = (Dopri5().step(flow, s, torch.full((4,), 0.9), None) for s in (state, other))
        assert torch.equal(a.x[0], b.x[0])
        assert a.step[0] == b.step[0]
        assert a.step.tolist() != b.step.tolist()
        assert len(a.x) == 4


def test_defect_09_evaluations_are_set_or_told() -> None:
    """Fixed steps cost what they say; the adaptive solver counts each row's and the batch's."""
    for solver, each in ((Euler("step"), 1), (Heun("step"), 2), (RK4("step"), 4)):
        flow = Flow(counted(Linear()), Linear())
        integrate(flow, solver, noise_at(0.0), spread(0.0, 1.0, 9), None)
        assert flow.meter.nfe == 9 * each
    flow, state = Flow(counted(Linear()), Linear()), noise_at(0.0, 1)
    end = Dopri5().step(flow, state, torch.full((1,), 0.9), None)
    assert flow.meter.nfe == 6 * int(end.step) + 2


def test_defect_10_states_on_the_way_are_let_go() -> None:
    """Of a trajectory of 30 steps at most two states are alive at once."""
    alive: list[weakref.ref[State]] = []

    @dataclass(frozen=True)
    class Watching(Euler):
        def step(self, flow: Flow, state: State, t_next: Tensor, cond: Any) -> State:
            assert sum(ref() is not None for ref in alive) <= 2
            made = super().step(flow, state, t_next, cond)
            alive.append(weakref.ref(made))
            return made

    integrate(Flow(counted(Linear()), Linear()), Watching(), noise_at(0.0), spread(0.0, 0.9, 30), None)
    assert len(alive) == 30


def test_defect_11_only_the_diffusion_asked_for_is_computed() -> None:
    """Forms of t alone never ask the path, so one form's pole cannot reach another."""

    class Mute:
        name = "mute"

        def coefs(self, t: Tensor) -> Coefs:
            raise AssertionError("asked")

    for form in ("constant", "linear", "sin2", "decreasing", "cubic"):
        assert Diffusion(form)(Mute(), torch.zeros(2)).isfinite().all()


# Likelihood


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_defect_12_a_probe_is_drawn_once_for_a_trajectory(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 dimensions the adaptive solver needs a bounded number of evaluations, and far more where probes are fresh."""
    means = normal([Key.root(5).child(i) for i in range(4)], (16,)).double()
    world = Mixture(torch.full((4,), 0.25, dtype=torch.float64), means, torch.full((4,), 0.4, dtype=torch.float64))
    keys = [Key.root(6).child(i) for i in range(3)]
    x = world.sample(keys).to(dtype)
    solver = Dopri5(1e-5, 1e-5, most=60)
    assert log_prob(Flow(counted(GVP(), world=world), GVP()), x, keys=keys, solver=solver).nfe < 120
    fixed, chance = likelihood.Traced._probed, torch.Generator().manual_seed(0)

    def fresh(self: Any, velocity: Tensor, at: Tensor, probes: Tensor) -> Tensor:
        return fixed(self, velocity, at, torch.randn(probes.shape, generator=chance).sign())

    monkeypatch.setattr(likelihood.Traced, "_probed", fresh)
    with pytest.raises(SecondlookError, match="tried 60 steps"):
        log_prob(Flow(counted(GVP(), world=world), GVP()), x, keys=keys, solver=solver)


def test_defect_13_velocity_and_divergence_share_a_forward_pass() -> None:
    """Whatever the number of probes."""
    for more in ({"keys": noise_at(0).keys}, {"keys": noise_at(0).keys, "probes": 5}, {"probe": "exact"}):
        network = counted(Linear())
        got = log_prob(Flow(network, Linear()), noise_at(0.0).x, solver="heun", steps=6, **more)  # type: ignore[arg-type]
        assert network.rows == [4] * got.nfe == [4] * 12


def test_defect_14_likelihoods_are_of_data_and_come_with_bits() -> None:
    """Integers in, numbers out: a log density for each row, and bits per dimension with their error."""
    keys = [Key.root(8).child(i) for i in range(3)]
    pictures = torch.arange(96, dtype=torch.uint8).view(3, 2, 4, 4)
    x, sit = dequantise(pictures, keys), waking()
    got = log_prob(Flow(sit, Linear()), x, sit.encode([0, 1, 2]), keys=keys, solver="heun", steps=4)
    assert got.log_prob.shape == (3,)
    assert "bits per dimension over 3 samples" in str(bits_per_dim(got.log_prob, 32))


def test_defect_15_a_likelihood_needs_no_guidance_and_refuses_one() -> None:
    """The plain flow is the default, so nobody has to know of a scale; a guided one is told why not."""
    flow = Flow(counted(Linear()), Linear())
    assert log_prob(flow, noise_at(0.0).x, keys=noise_at(0.0).keys, solver="euler", steps=2).log_prob.isfinite().all()
    with pytest.raises(ConfigError, match="without guidance"):
        log_prob(replace(flow, guide=ClassifierFree(4.0, lambda c, n: c)), noise_at(0.0).x, keys=noise_at(0.0).keys)


def test_defect_16_vps_likelihood_begins_off_data_and_ends_at_noise() -> None:
    """The singular end is the one that is cut, in the direction that likelihoods run."""
    network = counted(VP())
    got = log_prob(Flow(network, VP()), WORLD.sample(noise_at(0.0).keys), probe="exact")
    assert (min(network.times), max(network.times)) == (0.0, 1 - 1e-5)
    assert got.log_prob.isfinite().all()


# Losses and guidance


@each_path
def test_defect_27_a_loss_weight_counts_for_velocities_too(path: Path) -> None:
    """ "likelihood" differs from "none" whatever is predicted, and a weight that is unknown is refused."""
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    for kind in KINDS:
        none, likely = (loss_weight(path, kind, w, t) for w in (WEIGHTS[0], WEIGHTS[2]))
        assert ((likely - none).abs() > 0.05).any()
    with pytest.raises(ConfigError, match="A loss weight is one of"):
        loss_weight(path, "velocity", "likelyhood", t)  # type: ignore[arg-type]


def test_defect_30_no_null_pass_where_guidance_does_nothing() -> None:
    """Scale 1 is no guidance; outside its interval a guided step costs one pass."""
    assert isinstance(guidance(1.0, None), Plain)
    guide = ClassifierFree(2.0, lambda c, n: c, lambda n: None, interval=(0.3, 0.6))
    network = counted(Linear())
    flow = Flow(network, Linear(), guide)
    integrate(flow, Euler(), noise_at(0.0), spread(0.0, 1.0, 10), None)
    assert sum(network.rows) == 4 * flow.meter.evals
    assert flow.meter.evals == 13
