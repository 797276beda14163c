"""What every solver must do, as tests to inherit: subclass it as ``TestMine`` and give ``solver``."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secondlook.flow.estimate import Flow
from secondlook.flow.path import Kind, Linear
from secondlook.flow.state import Estimate, State
from secondlook.noise import Key, normal
from secondlook.solvers.ode import Solver


class Curved:
    """A smooth velocity without any knowledge behind it; counts the rows it is asked about."""

    predicts: Kind = "velocity"
    shape = (3, 4)

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.rows += len(x)
        return torch.sin(2 * x) - x * t.view(-1, 1, 1).to(x)


@dataclass
class Recalling(Flow):
    """Answers the first question from memory."""

    first: Estimate | None = None

    def estimate(self, x: Tensor, t: Tensor, cond: Any) -> Estimate:
        found, self.first = self.first, None
        return found if found is not None else super().estimate(x, t, cond)


class SolverContract:
    """searched: whether searches may use it, so that its cost is known before a step."""

    searched = True

    def solver(self) -> Solver:
        raise AssertionError("SolverContract expects solver(): return yours.")

    def state(self, rows: int = 3, t: float = 0.3, seed: int = 0) -> State:
        keys = tuple(Key.root(seed).child(i) for i in range(rows))
        return State(normal(keys, Curved.shape), torch.full((rows,), t), keys, torch.zeros(rows, dtype=torch.long))

    def step(self, state: State, to: float, network: Curved | None = None) -> State:
        flow = Flow(network or Curved(), Linear())
        with torch.no_grad():
            return self.solver().step(flow, state, torch.full_like(state.t, to), None)

    def test_a_step_arrives_and_leaves_its_state_alone(self) -> None:
        state = self.state()
        before = state.x.clone()
        moved = self.step(state, 0.6)
        assert torch.equal(state.x, before)
        assert torch.equal(moved.t, torch.full((3,), 0.6))
        assert moved.keys == state.keys
        assert moved.data is not None
        assert moved.x.isfinite().all()

    def test_rows_do_not_depend_on_company(self) -> None:
        state = self.state(4)
        whole = self.step(state, 0.6)
        for i in range(4):
            alone = self.step(state.rows([i]), 0.6)
            assert float((alone.x[0] - whole.x[i]).abs().max()) < 1e-5

    def test_the_same_state_gives_the_same_step(self) -> None:
        assert torch.equal(self.step(self.state(), 0.6).x, self.step(self.state(), 0.6).x)

    def test_random_is_true_exactly_if_keys_matter(self) -> None:
        one = self.state()
        other = State(one.x, one.t, self.state(seed=9).keys, one.step)
        assert bool(self.solver().random) is not torch.equal(self.step(one, 0.6).x, self.step(other, 0.6).x)

    def test_it_costs_what_it_says(self) -> None:
        if not self.searched:
            return
        for start, to in ((0.3, 0.6), (0.6, 1.0)):
            network = Curved()
            self.step(self.state(2, start), to, network)
            assert network.rows == 2 * self.solver().evals(last=to >= 1.0)
            assert len(self.solver().asks(start, to)) == self.solver().evals(last=to >= 1.0)

    def test_an_estimate_that_is_known_need_not_be_made_again(self) -> None:
        if not self.solver().reuses:
            return
        state, network = self.state(), Curved()
        first = Flow(network, Linear()).estimate(state.x, state.t, None)
        asked = network.rows
        flow = Recalling(network, Linear(), first=first)
        moved = self.solver().step(flow, state, torch.full_like(state.t, 0.6), None)
        assert torch.equal(moved.x, self.step(state, 0.6).x)
        assert network.rows - asked == 3 * (self.solver().evals(last=False) - 1)

    def test_it_pickles(self) -> None:
        assert pickle.loads(pickle.dumps(self.solver())).random == self.solver().random
