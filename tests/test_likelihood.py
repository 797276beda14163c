"""Likelihoods against closed forms: the exact mixture on every path, probes, ends, costs, and bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from secondlook.errors import ConfigError, SecondlookError, ShapeError
from secondlook.flow.estimate import Flow
from secondlook.flow.guidance import AutoGuidance, ClassifierFree
from secondlook.flow.interval import Interval
from secondlook.flow.path import GVP, KINDS, VP, Kind, Linear, Path
from secondlook.models.sit import SiT, SiTConfig
from secondlook.noise import Key, normal
from secondlook.solvers.likelihood import bits_per_dim, copies, dequantise, ends, log_prob, standard_normal
from secondlook.solvers.ode import RK4, Heun
from secondlook.worlds.mixture import Mixture, default_mixture

PATHS: list[Path] = [Linear(), GVP(), VP()]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
WORLD = default_mixture()
ROWS = 6
MATES = [Key.root(7).child(i) for i in range(ROWS)]
DATA = WORLD.sample(MATES)
WANT = WORLD.log_density(Linear(), DATA, torch.ones(ROWS, dtype=torch.float64))


def flow_on(path: Path, kind: Kind = "velocity", world: Mixture = WORLD) -> Flow:
    return Flow(world.network(path, kind), path)


def own_prior(path: Path) -> Callable[[Tensor, float], Tensor]:
    """The exact law of x at the interval's start: what is left is the solver's error and the cut at data."""
    return lambda x, t: WORLD.log_density(path, x, torch.full((len(x),), t, dtype=torch.float64))


@dataclass
class Counted:
    """A network that counts its calls."""

    inner: Any
    predicts: Kind = "velocity"
    calls: int = 0
    shape: tuple[int, ...] = field(default=(2,))

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.calls += 1
        return self.inner(x, t, cond)


# Against the closed form


@pytest.mark.parametrize("kind", KINDS)
@each_path
def test_exact_trace_gives_the_mixtures_density(path: Path, kind: Kind) -> None:
    """Default interval and solver; VP with the law it really begins with, since its alpha is not 0 there."""
    prior = own_prior(path) if path.name == "vp" else standard_normal
    got = log_prob(flow_on(path, kind), DATA, probe="exact", prior=prior)
    assert got.log_prob.dtype == torch.float64
    assert (got.log_prob - WANT).abs().max() < 2e-4
    assert torch.equal(got.log_prob, got.prior - got.divergence)
    assert got.error.tolist() == [0.0] * ROWS


def test_vps_error_under_the_standard_normal_is_the_priors_alone() -> None:
    got = log_prob(flow_on(VP()), DATA, probe="exact")
    mismatch = got.prior - own_prior(VP())(got.noise, 0.0)
    assert 1e-4 < (got.log_prob - WANT).abs().max() < 5e-3
    torch.testing.assert_close(got.log_prob - WANT, mismatch, rtol=0, atol=1e-4)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
@each_path
def test_probes_agree_with_the_closed_form_within_their_error(path: Path, probe: Any) -> None:
    got = log_prob(
        flow_on(path), DATA, keys=MATES, probes=48, probe=probe, solver="rk4", steps=10, prior=own_prior(path)
    )
    assert (got.error > 0).all()
    assert ((got.log_prob - WANT).abs() < 4 * got.error + 1e-2).all()


@pytest.mark.parametrize(("solver", "order"), [("heun", 2), (RK4(), 4)], ids=["heun", "rk4"])
def test_fixed_steps_converge_at_their_order(solver: Any, order: int) -> None:
    """The density follows x at the same order, on GVP, whose velocity is smooth from end to end."""
    errors = [
        float((log_prob(flow_on(GVP()), DATA, probe="exact", solver=solver, steps=n).log_prob - WANT).abs().mean())
        for n in (40, 80)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.5)


def test_one_probe_has_no_error_and_more_have_less() -> None:
    one, few, many = (
        log_prob(flow_on(GVP()), DATA, keys=MATES, probes=n, solver="heun", steps=5) for n in (1, 16, 256)
    )
    assert one.error.isnan().all()
    assert float((few.error / many.error).log2().mean()) == pytest.approx(2, abs=0.8)


def test_the_noise_is_the_data_taken_back() -> None:
    """For one Gaussian the flow is x -> mean_t + (std_t / std_1) (x - mean_1), here down to t = 0."""
    world = Mixture.of((1.0,), ((1.2, -0.4),), (0.5,))
    x = world.sample(MATES)
    got = log_prob(flow_on(Linear(), world=world), x, probe="exact")
    torch.testing.assert_close(got.noise, (x - world.means) / 0.5, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        got.divergence, torch.full((ROWS,), 2 * math.log(0.5), dtype=torch.float64), rtol=0, atol=1e-4
    )


# Probes, batches, cost


def test_a_rows_result_does_not_depend_on_its_mates() -> None:
    """The same batch shape with other mates: the same bits; alone: the same number."""
    flow, options = flow_on(Linear()), {"probes": 2}
    whole = log_prob(flow, DATA, keys=MATES, **options)  # type: ignore[arg-type]
    keys = [*MATES[:2], *(k.child("other") for k in MATES[2:])]
    other = log_prob(flow, torch.cat([DATA[:2], 3 * DATA[2:] + 1]), keys=keys, **options)  # type: ignore[arg-type]
    for a, b in ((whole.log_prob, other.log_prob), (whole.error, other.error), (whole.noise, other.noise)):
        assert torch.equal(a[:2], b[:2])
    assert not torch.equal(whole.log_prob[2:], other.log_prob[2:])
    alone = log_prob(flow, DATA[1:2], keys=MATES[1:2], **options)  # type: ignore[arg-type]
    torch.testing.assert_close(alone.log_prob[0], whole.log_prob[1], rtol=0, atol=1e-10)


def test_probes_are_keyed_and_the_call_is_repeatable() -> None:
    flow = flow_on(Linear())
    first, again = (log_prob(flow, DATA, keys=MATES, solver="heun", steps=8).log_prob for _ in range(2))
    other = log_prob(flow, DATA, keys=[k.child("x") for k in MATES], solver="heun", steps=8).log_prob
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("solver", "steps", "nfe"), [("euler", 7, 7), ("heun", 7, 14), (RK4(), None, 400), (Heun("step"), 3, 6)]
)
def test_one_forward_pass_an_evaluation_whatever_the_probes(solver: Any, steps: int | None, nfe: int) -> None:
    network = Counted(WORLD.network(Linear(), "velocity"))
    flow = Flow(network, Linear())
    got = log_prob(flow, DATA, keys=MATES, probes=3, solver=solver, steps=steps)
    assert got.nfe == network.calls == flow.meter.nfe == flow.meter.evals == nfe


@pytest.mark.parametrize(
    ("dims", "count", "times"), [(2, 1, 2), (2, 64, 1), (4096, 1, 4096), (4096, 3, 1366), (1, 1, 1)]
)
def test_the_integrals_have_half_of_the_state(dims: int, count: int, times: int) -> None:
    assert copies(dims, count) == times
    assert times * count >= dims


# Networks


def small_sit() -> SiT:
    torch.manual_seed(0)
    sit = SiT(SiTConfig(side=4, patch=2, channels=1, width=16, depth=1, heads=2, classes=3))
    for p in sit.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.3)
    return sit.eval()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_transformer_frozen_or_not_under_no_grad_too(frozen: bool) -> None:
    """The trace of the transformer's own Jacobian, to finite differences; its weights get no gradients."""
    sit = small_sit().requires_grad_(not frozen)
    x, keys = normal(MATES[:2], (1, 4, 4)), MATES[:2]
    with torch.no_grad():
        exact = log_prob(Flow(sit, Linear()), x, sit.encode([0, None]), probe="exact", solver="euler", steps=1)
        many = log_prob(Flow(sit, Linear()), x, sit.encode([0, None]), keys=keys, probes=300, solver="euler", steps=1)
    assert all(p.grad is None for p in sit.parameters())
    assert exact.noise.dtype == torch.float32
    assert ((many.log_prob - exact.log_prob).abs() < 4 * many.error).all()
    t, h, trace = torch.ones(2), 1e-2, torch.zeros(2)
    for i in range(16):
        step = torch.zeros(16).index_fill_(0, torch.tensor(i), h).view(1, 4, 4)
        with torch.no_grad():
            up, down = (sit(x + s, t, sit.encode([0, None])).flatten(1)[:, i] for s in (step, -step))
        trace += (up - down) / (2 * h)
    torch.testing.assert_close(exact.divergence.float(), trace, rtol=2e-3, atol=2e-3)


def test_inference_mode_and_gradientless_networks_are_refused_with_a_sentence() -> None:
    with torch.inference_mode(), pytest.raises(SecondlookError, match=r"torch\.no_grad is fine"):
        log_prob(flow_on(Linear()), DATA, keys=MATES)
    mute = Counted(torch.no_grad()(WORLD.network(Linear(), "data")), "data")
    with pytest.raises(SecondlookError, match="has no gradient"):
        log_prob(Flow(mute, Linear()), DATA, keys=MATES)


# Ends


@each_path
def test_ends_are_those_of_sampling_and_no_pole_is_asked_for(path: Path) -> None:
    vp = path.name == "vp"
    assert ends(path, "velocity") == (Interval(0.0, 1 - 1e-5) if vp else Interval(0.0, 1.0))
    for kind in ("data", "noise", "logp_grad"):
        assert ends(path, kind) == Interval(0.0 if vp else 1e-5, 1 - 1e-5)  # type: ignore[arg-type]


def test_an_interval_that_is_given_is_kept() -> None:
    seen: list[Tensor] = []

    def listening(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        seen.append(t)
        return WORLD.velocity(Linear(), x, t)

    span = Interval(0.1, 0.8)
    log_prob(Flow(Counted(listening), Linear()), DATA, keys=MATES, solver="heun", steps=4, interval=span)
    assert seen[0].tolist() == [0.8] * ROWS
    assert float(torch.stack(seen).min()) == pytest.approx(0.1)
    assert float(torch.stack(seen).max()) == 0.8


# Refusals


def test_what_has_no_likelihood_is_refused() -> None:
    guided = Flow(WORLD.network(Linear()), Linear(), ClassifierFree(4.0, lambda cond, rows: cond))
    weak = Flow(WORLD.network(Linear()), Linear(), AutoGuidance(2.0, WORLD.network(Linear())))
    for flow in (guided, weak):
        with pytest.raises(ConfigError, match="without guidance"):
            log_prob(flow, DATA, keys=MATES)
    for solver in ("sde", "sde_heun"):
        with pytest.raises(ConfigError, match="deterministic solver"):
            log_prob(flow_on(Linear()), DATA, keys=MATES, solver=solver)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"keys": None}, "a key for each of its 6 rows; got 0"),
        ({"keys": MATES[:2]}, "a key for each of its 6 rows; got 2"),
        ({"probe": "cauchy"}, "one of rademacher"),
        ({"probes": 0}, "at least one probe"),
        ({"probe": "exact", "probes": 2}, "one for the exact trace"),
        ({"steps": 10}, "steps expects"),
        ({"steps": 0, "solver": "heun"}, "steps expects"),
        ({"solver": "hern"}, "did you mean"),
    ],
)
def test_options_are_refused_with_a_sentence(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        log_prob(flow_on(Linear()), DATA, **{"keys": MATES, **options})


@pytest.mark.parametrize("x", [DATA[:, :1], DATA[:0], DATA[0], DATA.long()])
def test_shapes_are_refused_with_a_sentence(x: Tensor) -> None:
    with pytest.raises(ShapeError, match="floating-point x"):
        log_prob(flow_on(Linear()), x, probe="exact")


# Bits per dimension


def test_bits_of_a_gaussian_are_its_entropy() -> None:
    """Its differential entropy is log2(std sqrt(2 pi e)) bits a dimension; levels of width d cost log2(1 / d) more."""
    std, dims, n = 0.3, 8, 4000
    x = std * normal([Key.root(3)], (n, dims))[0].double()
    log_p = torch.distributions.Normal(0.0, std).log_prob(x).sum(1)
    entropy = math.log2(std * math.sqrt(2 * math.pi * math.e))
    plain, coded = bits_per_dim(log_p, dims, width=None), bits_per_dim(log_p, dims)
    assert plain.mean == pytest.approx(entropy, abs=4 * plain.error)
    assert plain.error == pytest.approx(math.sqrt(0.5 / dims) / math.log(2) / n**0.5, rel=0.1)
    assert coded.mean - plain.mean == pytest.approx(7)
    assert coded.error == pytest.approx(plain.error)
    assert "latent" in str(plain)
    assert "latent" not in coded.text


def test_bits_of_uniform_integers_are_their_logarithm() -> None:
    """Uniform on [-1, 1]: log p = -D ln 2, so 256 levels cost 8 bits, and 32 levels 5."""
    log_p = torch.full((5,), -3 * math.log(2), dtype=torch.float64)
    assert bits_per_dim(log_p, 3).mean == pytest.approx(8)
    assert bits_per_dim(log_p, 3, width=2 / 32).mean == pytest.approx(5)
    assert bits_per_dim(log_p, 3).error == 0
    assert math.isnan(bits_per_dim(log_p[:1], 3).error)


def test_bits_of_integers_end_to_end() -> None:
    """Dequantised fair bits under the mixture of two bins' Gaussian fits: the flow's bits are those of the closed form."""
    keys = [Key.root(11).child(i) for i in range(40)]
    integers = torch.tensor([[i % 2 * 3, i // 2 % 2 * 3] for i in range(40)], dtype=torch.uint8)
    x = dequantise(integers, keys, levels=4).double()
    corners = [(a, b) for a in (-0.75, 0.75) for b in (-0.75, 0.75)]
    world = Mixture.of((0.25,) * 4, corners, (0.15,) * 4)
    got = log_prob(flow_on(GVP(), world=world), x, probe="exact", solver="rk4", steps=60).log_prob
    want = world.log_density(GVP(), x, torch.ones(40, dtype=torch.float64))
    a, b = (bits_per_dim(v, 2, width=2 / 4) for v in (got, want))
    assert a.mean == pytest.approx(b.mean, abs=1e-4)
    assert 1 <= a.mean < 1.4  # never under the entropy of the integers themselves, one bit a dimension


def test_dequantised_levels_are_bins_of_their_width() -> None:
    x = torch.arange(256, dtype=torch.uint8).repeat(2, 40)
    keys = [Key.root(1), Key.root(2)]
    y = dequantise(x, keys)
    assert y.dtype == torch.float32
    u = (y.double() + 1) * 128 - x
    assert -1e-5 < float(u.min()) < 1e-3
    assert 1 - 1e-3 < float(u.max()) < 1 + 1e-5
    assert float(u.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / u.numel()) ** 0.5)
    assert torch.equal(y, dequantise(x, keys))
    assert torch.equal(y[1:], dequantise(x[1:], keys[1:]))
    assert not torch.equal(y[0], y[1])


def test_bits_and_levels_are_refused_with_a_sentence() -> None:
    with pytest.raises(ConfigError, match="1 that are not"):
        bits_per_dim(torch.tensor([0.0, math.nan]), 2)
    with pytest.raises(ConfigError, match="width of a level"):
        bits_per_dim(torch.zeros(2), 2, width=0.0)
    for log_p, dims in ((torch.zeros(2, 2), 2), (torch.zeros(0), 2), (torch.zeros(2), 0)):
        with pytest.raises(ShapeError, match="dims above 0"):
            bits_per_dim(log_p, dims)
    with pytest.raises(ShapeError, match="uint8"):
        dequantise(torch.zeros(2, 3), MATES[:2])
    with pytest.raises(ShapeError, match="1 keys"):
        dequantise(torch.zeros(2, 3, dtype=torch.uint8), MATES[:1])
    with pytest.raises(ConfigError, match="integers below them"):
        dequantise(torch.full((2, 3), 4, dtype=torch.uint8), MATES[:2], levels=4)
