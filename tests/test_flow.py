"""Flows: guidance, what it costs, and the training loss, whose least value the exact network attains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from secondlook.flow.estimate import Flow, Meter, loss_weight
from secondlook.flow.grid import grid
from secondlook.flow.guidance import AutoGuidance, ClassifierFree, Plain
from secondlook.flow.path import GVP, KINDS, VP, Kind, Linear, Path, mix
from secondlook.noise import Key, normal
from secondlook.solvers.ode import Heun, integrate
from secondlook.types import State
from secondlook.worlds.mixture import Mixture, default_mixture

WORLD = default_mixture()
each_path = pytest.mark.parametrize("path", [Linear(), GVP(), VP()], ids=lambda p: p.name)


@dataclass
class Labelled:
    """A network of components: row label k asks for component k, -1 (null) for the whole mixture."""

    path: Path
    predicts: Kind = "data"
    shape: tuple[int, ...] = (2,)
    calls: list[int] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, cond: Sequence[int]) -> Tensor:
        assert len(cond) == len(x) == len(t)
        self.calls.append(len(x))
        rows = [component(k).predict(self.predicts, self.path, x[[i]], t[[i]]) for i, k in enumerate(cond)]
        return torch.cat(rows)


def component(k: int) -> Mixture:
    if k < 0:
        return WORLD
    return Mixture(torch.ones(1, dtype=torch.float64), WORLD.means[[k]], WORLD.scales[[k]])


def with_nulls(cond: Sequence[int], rows: int) -> list[int]:
    return [*cond, *[-1] * rows]


def points(n: int) -> tuple[Tensor, Tensor]:
    return normal([Key.root(1)], (n, 2))[0].double(), torch.linspace(0.1, 0.9, n, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_goes_from_null_through_conditional(kind: Kind) -> None:
    x, t = points(3)
    labels = [2, 0, 1]
    wanted = torch.cat([component(k).velocity(GVP(), x[[i]], t[[i]]) for i, k in enumerate(labels)])
    null = WORLD.velocity(GVP(), x, t)
    for scale in (0.0, 1.0, 3.5):
        flow = Flow(Labelled(GVP(), kind), GVP(), ClassifierFree(scale, with_nulls))
        got = flow.estimate(x, t, labels).velocity
        torch.testing.assert_close(got, null + scale * (wanted - null), rtol=1e-9, atol=1e-9)


def test_scale_one_is_no_guidance() -> None:
    x, t = points(3)
    plain = Flow(Labelled(Linear()), Linear()).estimate(x, t, [0, 1, 2])
    guided = Flow(Labelled(Linear()), Linear(), ClassifierFree(1.0, with_nulls)).estimate(x, t, [0, 1, 2])
    torch.testing.assert_close(guided.data, plain.data)


def test_two_passes_are_one_call_of_twice_the_rows_and_are_charged() -> None:
    x, t = points(3)
    plain, guided = Labelled(Linear()), Labelled(Linear())
    one, two = Flow(plain, Linear()), Flow(guided, Linear(), ClassifierFree(2.0, with_nulls))
    for _ in range(4):
        one.estimate(x, t, [0, 0, 0])
        two.estimate(x, t, [0, 0, 0])
    assert (plain.calls, guided.calls) == ([3] * 4, [6] * 4)
    assert one.meter == Meter(nfe=4, evals=4)
    assert two.meter == Meter(nfe=4, evals=8)


@dataclass
class Twice:
    """A guide that asks twice before the middle, and does not say whether that is steady."""

    passes: int = 2

    def passes_at(self, t: float) -> int:
        return 2 if t < 0.5 else 1

    def __call__(self, network: Any, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return network(x, t, cond)


def test_a_guide_is_charged_by_the_batchs_earliest_row_where_its_cost_changes() -> None:
    x, t = points(3)
    for guide in (Twice(), ClassifierFree(2.0, with_nulls, lambda rows: [-1] * rows, interval=(0.0, 0.5))):
        flow = Flow(Labelled(Linear()), Linear(), guide)
        flow.estimate(x, t, [0, 1, 2])
        assert flow.meter.evals == 2
        flow.estimate(x, t.clamp_min(0.6), [0, 1, 2])
        assert flow.meter.evals == 3


class Halved:
    """A network that knows no devices."""

    predicts: Kind = "velocity"
    shape = (2,)

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return x / 2


@pytest.mark.parametrize(
    "guide", [Plain(), ClassifierFree(2.0, with_nulls), AutoGuidance(2.0, Halved())], ids=lambda g: type(g).__name__
)
def test_without_an_interval_nobody_waits_for_the_device(guide: Any) -> None:
    """A meta tensor has no values: whatever would read one raises."""
    flow = Flow(Halved(), Linear(), guide)
    x, t = torch.zeros(3, 2, device="meta"), torch.zeros(3, device="meta")
    assert flow.estimate(x, t, [0, 1, 2]).velocity.shape == (3, 2)
    assert flow.meter == Meter(nfe=1, evals=guide.passes)


def test_a_generation_is_charged_for_all_its_steps() -> None:
    flow = Flow(Labelled(Linear()), Linear(), ClassifierFree(2.0, with_nulls))
    x, _ = points(2)
    start = State(x, torch.zeros(2, dtype=torch.float64), (Key.root(0), Key.root(1)), torch.zeros(2, dtype=torch.int64))
    integrate(flow, Heun(), start, grid(3), [0, 1])
    assert flow.meter == Meter(nfe=5, evals=10)


def test_flows_do_not_share_a_meter() -> None:
    first, second = Flow(Labelled(Linear()), Linear()), Flow(Labelled(Linear()), Linear())
    first.estimate(*points(2), [0, 0])
    assert second.meter == Meter()


@dataclass
class Answer:
    """A network that answers with one given tensor."""

    value: Tensor
    predicts: Kind
    shape: tuple[int, ...] = (2,)

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.value


@pytest.mark.parametrize("kind", ["data", "noise", "velocity"])
@each_path
def test_loss_is_the_velocitys_squared_error_whatever_is_predicted(path: Path, kind: Kind) -> None:
    data, t = points(5)
    noise = normal([Key.root(2)], (5, 2))[0].double()
    c = path.coefs(t).like(data)
    x = mix(path, data, noise, t)
    miss = 0.3 * normal([Key.root(3)], (5, 2))[0].double()
    velocity = c.d_alpha * data + c.d_sigma * noise + miss
    det = c.alpha * c.d_sigma - c.sigma * c.d_alpha
    value = {
        "velocity": velocity,
        "data": (c.d_sigma * x - c.sigma * velocity) / det,
        "noise": (c.alpha * velocity - c.d_alpha * x) / det,
    }[kind]
    got = Flow(Answer(value, kind), path).loss(data, noise, t, None, floor=1e-6)
    # The network's answer is rounded to float32 on purpose.
    torch.testing.assert_close(got.double(), miss.square().mean(1), rtol=1e-4, atol=1e-4)


def test_floor_bounds_the_weight_of_data_near_the_end() -> None:
    """On the linear path the weight of a data error is 1 / max(sigma, floor)^2, less the floor's shift in sigma."""
    data, t = torch.zeros(2, 2, dtype=torch.float64), torch.tensor([0.5, 0.999], dtype=torch.float64)
    miss = torch.full((2, 2), 0.1, dtype=torch.float64)
    got = Flow(Answer(data + miss, "data"), Linear()).loss(data, miss * 0, t, None, floor=0.05)
    weight = [(1 + 0.5 / 0.5) ** 2, (1 + 0.999 / 0.05) ** 2]
    torch.testing.assert_close(got.double(), 0.01 * torch.tensor(weight, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@each_path
def test_the_exact_network_has_the_least_loss(path: Path) -> None:
    n = 1500
    keys = [Key.root(4).child(i) for i in range(n)]
    data, noise = WORLD.sample(keys), normal([Key.root(5)], (n, 2))[0].double()
    t = torch.linspace(0.2, 0.8, n, dtype=torch.float64)
    exact = WORLD.network(path, "velocity")
    best = Flow(exact, path).loss(data, noise, t, None)
    assert best.shape == (n,)
    for shift in (-0.5, 0.5):
        other = Flow(Answer(exact(mix(path, data, noise, t), t, None) + shift, "velocity"), path)
        gap = other.loss(data, noise, t, None) - best
        assert gap.mean() > 0.25 - 4 * gap.std() / n**0.5
        assert gap.mean() < 0.25 + 4 * gap.std() / n**0.5


@pytest.mark.parametrize("kind", ["data", "noise", "velocity", "logp_grad"])
@pytest.mark.parametrize("path", [Linear(), GVP(), VP()], ids=lambda p: p.name)
def test_weights_make_every_prediction_pay_for_the_same_error(path: Path, kind: Kind) -> None:
    """With one noise error e: weight "velocity" charges the velocity's error, "likelihood" the score's times w_KL / 2."""
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    c = path.coefs(t)
    half = c.sigma * (c.sigma * c.d_alpha / c.alpha - c.d_sigma)
    own = {
        "noise": torch.ones_like(t),
        "logp_grad": torch.ones_like(t),
        "data": c.sigma / c.alpha,
        "velocity": half / c.sigma,
    }[kind]
    want = {
        "velocity": (half / c.sigma).square(),
        "likelihood": half / c.sigma.square(),
    }  # for e = 1; the score's error is e / sigma
    for weight in ("velocity", "likelihood"):
        got = own.square() * loss_weight(path, kind, weight, t)  # type: ignore[arg-type]
        torch.testing.assert_close(got, want[weight])
