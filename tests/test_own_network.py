"""A network of one's own through ``secondlook.own``: under the backends' contract, and with the weights as part of a run's identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secondlook
from secondlook.backends.base import Backend
from secondlook.backends.weights_of import weights_digest
from secondlook.errors import ConfigError, ShapeError
from secondlook.flow.path import VP
from secondlook.registry import PLANS
from secondlook.settings import needs_of
from secondlook.testing import BackendContract


class Blur(nn.Module):
    """Unconditional; predicts the clean sample."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.mix = nn.Conv2d(3, 3, 3, padding=1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.drop(self.mix(x)))


class Tinted(Blur):
    def forward(self, x: Tensor, t: Tensor, tint: Tensor) -> Tensor:  # type: ignore[override]
        return torch.tanh(self.mix(x) + tint[:, :, None, None])


def tint(text: str | None) -> Tensor:
    if text == "nothing":
        raise ConfigError("Ask for something.")
    return torch.tensor([[(text or "").count(c) / 4 for c in "rgb"]])


def blur(seed: int = 0, **more: Any) -> Any:
    return secondlook.own(Blur(seed), predicts="data", shape=(3, 8, 8), **more)


class TestUnconditional(BackendContract):
    def made(self) -> Backend:
        return blur()


class TestConditional(BackendContract):
    refused = ("nothing",)

    def made(self) -> Backend:
        return secondlook.own(Tinted(), "gvp", predicts="data", shape=(3, 8, 8), encode=tint)


@pytest.mark.parametrize(
    "plan", [p for p in PLANS if not {"context", "critic", "comparer", "gradient"} & set(needs_of(p))]
)
def test_every_plan_that_needs_no_other_judge_draws_with_it(plan: str, tmp_path: Path) -> None:
    model = blur()
    stochastic = "sde" if plan in ("beam", "tree") else "euler"
    [found] = secondlook.draw("one", plan, tmp_path / "run", model=model, steps=4, solver=stochastic, nfe=60, threads=1)
    assert found.outcome is not None
    assert found.picture.shape == (8, 8, 3)


def test_resuming_with_other_weights_is_refused_in_a_sentence(tmp_path: Path) -> None:
    def stop(driver: Any) -> None:
        if driver.drawn >= 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        secondlook.draw("one", "random(n=3)", tmp_path / "run", model=blur(), steps=3, rows=1, threads=1, progress=stop)
    with pytest.raises(ConfigError, match=r"weights are not those.*secondlook\.own"):
        secondlook.resume(tmp_path / "run", model=blur(1))
    with pytest.raises(ConfigError, match="weights are not those"):
        secondlook.resume(tmp_path / "run", model=blur(path="gvp"))
    assert len(secondlook.resume(tmp_path / "run", model=blur())) == 1


def test_guidance_makes_a_difference_and_needs_an_encoding(tmp_path: Path) -> None:
    made = [
        secondlook.draw(
            "red rrr", "random(n=1)", tmp_path / str(g), model=TestConditional().made(), guidance=g, steps=3
        )
        for g in (1.0, 4.0)
    ]
    assert not np.array_equal(made[0][0].picture, made[1][0].picture)
    with pytest.raises(ConfigError, match=r"encode\(None\)"):
        secondlook.draw("red", "random(n=1)", tmp_path / "no", model=blur(), guidance=4.0)
    assert not (tmp_path / "no").exists()


def test_a_module_works_in_eval_mode_and_is_given_back_as_it_was(tmp_path: Path) -> None:
    network = Blur()
    network.mix.eval()
    made = secondlook.own(network, predicts="data", shape=(3, 8, 8))
    one, two = (secondlook.draw("a", "random(n=1)", tmp_path / n, model=made, steps=3)[0].picture for n in "ab")
    assert np.array_equal(one, two), "dropout was on"
    assert (network.training, network.mix.training, network.drop.training) == (True, False, True)
    assert all(p.requires_grad for p in network.parameters())


GLOBAL = Blur()


def test_weights_count_wherever_a_callable_holds_them() -> None:
    class Holder:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def ask(self, x: Tensor, t: Tensor) -> Any:
            return self.inner(x, t)

    def forms(network: Blur) -> list[Any]:
        return [network, network.forward, lambda x, t: network(x, t), Holder(Holder(network)), Holder(network).ask]

    for one, same, other in zip(forms(Blur(0)), forms(Blur(0)), forms(Blur(1)), strict=True):
        assert weights_digest(one) == weights_digest(same)
        assert weights_digest(one) != weights_digest(other)

    def by_global(x: Tensor, t: Tensor) -> Any:
        return GLOBAL(x, t)

    before = weights_digest(by_global)
    with torch.no_grad():
        GLOBAL.mix.bias += 1
    assert weights_digest(by_global) != before
    assert weights_digest(GLOBAL.eval()) == weights_digest(GLOBAL.train())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"predicts": "picture"}, "predicts"), ({"predicts": None}, "predicts"), ({"shape": None}, "shape"), ({"shape": (3, 0, 8)}, "shape"),
        ({"shape": (4, 8, 8)}, "give decode"), ({"path": "straight"}, "no path"), ({"path": "vp(hig=1)"}, "no option"), ({"path": 3}, "A path is"),
        ({"name": "scenes"}, "name"), ({"decode": 3}, "decode"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_a_sentence(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        secondlook.own(Blur(), **{"predicts": "data", "shape": (3, 8, 8), **more})


def test_wrong_shapes_are_said_in_a_sentence(tmp_path: Path) -> None:
    flat = secondlook.own(lambda x, t: x[:, :1], predicts="data", shape=(3, 8, 8))
    with pytest.raises(ShapeError, match="must return a tensor of that shape"):
        secondlook.draw("a", "random(n=1)", tmp_path / "a", model=flat)
    floats = blur(decode=lambda x: x)
    with pytest.raises(ShapeError, match="uint8"):
        secondlook.draw("a", "random(n=1)", tmp_path / "b", model=floats)


def test_a_path_may_have_numbers_of_its_own() -> None:
    assert blur(path="vp(low=10.0, high=10.0)").path == VP(10.0, 10.0)
