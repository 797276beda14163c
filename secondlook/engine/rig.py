"""A rig performs work on a flow: it encodes conditions, steps states in padded batches, decodes and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from secondlook.flow.autocast import Autocast
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import EPS, after
from secondlook.flow.guidance import ClassifierFree, Guide, Network, Plain
from secondlook.flow.path import Path
from secondlook.noise import Key, normal
from secondlook.solvers.ode import Solver
from secondlook.types import Condition, Cost, State, Verifier


@dataclass
class Rig:
    """Everything needed to carry proposals out.

    encode: one condition (None: the null one) to a one-row encoding with ``rows`` and ``stack``.
    decode: x [B, *S] to uint8 pictures [B, H, W, 3]. judges: verifiers that only look. rows: the micro-batch that every network
    call is padded to, so that a row's result does not depend on its batch mates; without ``pad`` it is the most rows of a
    call, and the last bits of a row do depend on them. scale: what fresh noise is multiplied by.
    """

    flow: Flow
    solver: Solver
    times: tuple[float, ...]
    encode: Callable[[Condition | None], Any]
    decode: Callable[[Tensor], Tensor]
    verifier: Verifier | None
    judges: dict[str, Verifier] = field(default_factory=dict)
    rows: int = 16
    pad: bool = True
    scale: float = 1.0
    _encoded: dict[Condition, Any] = field(default_factory=dict, repr=False)
    _stacked: tuple[tuple[Condition, ...], Any] = field(default=((), None), repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.flow.network.shape

    @property
    def begin(self) -> float:
        """The time at which fresh noise is put: 0, or a little later where a pipeline's schedule begins there."""
        return self.times[0]

    def price(self, start: float, stop: float, ask: str) -> Cost:
        """What running from ``start`` to ``stop`` and asking ``ask`` will cost, seconds excepted."""
        nfe, t = 0, start
        while t < stop - EPS:
            t = self.next_time(t, stop)
            nfe += self.solver.evals(last=t >= 1.0)
        scored = ask == "score"
        nfe += scored and stop < 1.0  # the extra look at a half-made picture
        return Cost(nfe, nfe * self.flow.guide.passes, int(scored), int(scored or stop >= 1.0))

    def next_time(self, t: float, stop: float) -> float:
        """Where a row at ``t`` bound for ``stop`` steps next."""
        return after(self.times, t, stop)

    def encoded(self, condition: Condition) -> Any:
        """The condition's encoding, made once and alone, so that it does not depend on company."""
        if condition not in self._encoded:
            with torch.no_grad():
                self._encoded[condition] = self.encode(condition)
        return self._encoded[condition]

    def start(self, key: Key) -> State:
        """A one-row state of fresh noise at the first time."""
        x = normal([key.child("start")], self.shape)
        x = x if self.scale == 1.0 else x * self.scale
        return State(x, torch.full((1,), self.begin), (key,), torch.zeros(1, dtype=torch.long))

    def step(self, states: Sequence[State], stops: Sequence[float], conditions: Sequence[Condition]) -> list[State]:
        """One solver step of up to ``rows`` one-row states, each at its own time."""
        whole, index = self._pad(states)
        later = [self.next_time(float(s.t), stop) for s, stop in zip(states, stops, strict=True)]
        cond = self._conditions([conditions[i] for i in index])
        with torch.no_grad():
            moved = self.solver.step(self.flow, whole, torch.tensor([later[i] for i in index]), cond)
        return [moved.rows([i]) for i in range(len(states))]

    def look(self, states: Sequence[State], conditions: Sequence[Condition]) -> list[Tensor]:
        """The data estimate [1, *S] of half-made rows; one evaluation each."""
        whole, index = self._pad(states)
        with torch.no_grad():
            e = self.flow.estimate(whole.x, whole.t, self._conditions([conditions[i] for i in index]))
        return [e.data[i : i + 1] for i in range(len(states))]

    def _pad(self, states: Sequence[State]) -> tuple[State, list[int]]:
        index = [*range(len(states)), *([0] * (self.rows - len(states)) if self.pad else [])]
        return State.stack([states[i] for i in index]), index

    def _conditions(self, conditions: Sequence[Condition]) -> Any:
        key = tuple(conditions)
        if self._stacked[0] != key:  # the same rows go on for many steps
            items = [self.encoded(c) for c in conditions]
            self._stacked = (key, type(items[0]).stack(items))
        return self._stacked[1]


def guidance(scale: float, null: Any) -> Guide:
    """Classifier-free guidance with a one-row null encoding; scale 1 means none, at half the price."""
    if scale == 1.0:
        return Plain()

    def join(cond: Any, rows: int) -> Any:
        return type(cond).stack([cond, null.rows([0] * rows)])

    return ClassifierFree(scale, join)


def build_flow(network: Network, path: Path, scale: float, null: Any, bf16: bool) -> Flow:
    return Flow(Autocast(network, bf16), path, guidance(scale, null))
