"""Tests for slips that no other test had noticed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import secondlook
from examples.own_backend import Blobs, Tints
from secondlook.api import tasks_of
from secondlook.backends.find import find
from secondlook.flow.estimate import Flow
from secondlook.flow.path import Linear
from secondlook.moves import Clone
from secondlook.noise import Key
from secondlook.settings import Settings
from secondlook.solvers.adaptive import Dopri5
from secondlook.types import State


def test_every_bit_of_a_seed_reaches_the_tasks() -> None:
    keys = set()
    for seed in (5, 5 + 2**32, 5 + 2**40, 5 + 2**62):
        s = Settings(["a red circle"], seed=seed)
        keys.add(tasks_of(s, find(None, s), (0.0, 1.0))[0].key)
    assert len(keys) == 4


def test_a_clone_has_a_key_of_its_own_and_all_else_of_its_parent() -> None:
    parent = State(
        torch.randn(1, 3), torch.full((1,), 0.5), (Key.root(0),), torch.full((1,), 7), carry={"last": torch.ones(1, 3)}
    )

    class Of:
        def state(self, number: int) -> State:
            assert number == 4
            return parent

    made = Clone(4, Key.root(9)).state(Of())  # type: ignore[arg-type]
    assert made.keys == (Key.root(9),)
    assert made == replace(parent, keys=made.keys)
    assert made.carry is not None
    assert torch.equal(made.carry["last"], torch.ones(1, 3))


def test_dopri5_grows_its_step_by_the_fifth_root_of_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.9 norm^(-1/5) of the last step, the controller of a method whose error is of the fifth order (Hairer, Norsett, Wanner,
    Solving Ordinary Differential Equations I, II.4)."""
    sizes: list[float] = []
    solver = Dopri5(rtol=0.0, atol=1.0, end="step")

    def attempt(
        self: object, flow: Flow, x: Tensor, t: Tensor, h: Tensor, slope: Tensor, cond: object
    ) -> tuple[Tensor, ...]:
        sizes.append(float(h))
        return x, torch.full_like(x, 0.1), slope, x  # the norm of the error is 0.1

    monkeypatch.setattr(Dopri5, "_attempt", attempt)
    monkeypatch.setattr(Dopri5, "_first_step", lambda self, flow, x, t, *rest: torch.full_like(t, 1e-3))
    state = State(torch.zeros(1, 3, 8, 8), torch.zeros(1), (Key.root(0),), torch.zeros(1, dtype=torch.long))
    solver.step(Flow(Blobs(), Linear()), state, torch.ones(1), Tints(torch.zeros(1, 3)))
    assert sizes[1] / sizes[0] == pytest.approx(0.9 * 0.1**-0.2)
    assert sizes[2] / sizes[1] == pytest.approx(0.9 * 0.1**-0.2)


def test_every_public_name_is_there() -> None:
    assert all(getattr(secondlook, name) for name in secondlook.__all__)
