"""A rig performs work on a flow: it encodes conditions, steps states in padded batches, decodes and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from secondlook.flow import ClassifierFree, Flow, Guide, Network, Plain
from secondlook.grid import EPS, after
from secondlook.noise import Key, normal
from secondlook.path import Path
from secondlook.solve import Solver
from secondlook.types import Condition, Cost, State, Verifier


@dataclass(frozen=True)
class Precise:
    """A network called under autocast where ``bf16`` is set; predictions come back as float32."""

    network: Network
    bf16: bool

    @property
    def predicts(self) -> Any:
        return self.network.predicts

    @property
    def shape(self) -> tuple[int, ...]:
        return self.network.shape

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            return self.network(x, t, cond).float()


@dataclass
class Rig:
    """Everything needed to carry proposals out.

    encode: one condition (None: the null one) to a one-row encoding with ``rows`` and ``stack``.
    decode: x [B, *S] to uint8 pictures [B, H, W, 3]. rows: the micro-batch that every network call is padded to, so
    that a row's result does not depend on its batch mates. judges: verifiers that only look.
    """

    flow: Flow
    solver: Solver
    times: tuple[float, ...]
    encode: Callable[[Condition | None], Any]
    decode: Callable[[Tensor], Tensor]
    verifier: Verifier | None
    judges: dict[str, Verifier] = field(default_factory=dict)
    rows: int = 16
    _encoded: dict[Condition, Any] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.flow.network.shape

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
            with torch.inference_mode():
                self._encoded[condition] = self.encode(condition)
        return self._encoded[condition]

    def start(self, key: Key) -> State:
        """A one-row state of fresh noise at time 0."""
        x = normal([key.child("start")], self.shape)
        return State(x, torch.zeros(1), (key,), torch.zeros(1, dtype=torch.long))

    def step(self, states: Sequence[State], stops: Sequence[float], conditions: Sequence[Condition]) -> list[State]:
        """One solver step of up to ``rows`` one-row states, each at its own time."""
        whole, index = self._pad(states)
        later = [self.next_time(float(s.t), stop) for s, stop in zip(states, stops, strict=True)]
        cond = self._conditions([conditions[i] for i in index])
        with torch.inference_mode():
            moved = self.solver.step(self.flow, whole, torch.tensor([later[i] for i in index]), cond)
        return [moved.rows([i]) for i in range(len(states))]

    def look(self, states: Sequence[State], conditions: Sequence[Condition]) -> list[Tensor]:
        """The data estimate [1, *S] of half-made rows; one evaluation each."""
        whole, index = self._pad(states)
        with torch.inference_mode():
            e = self.flow.estimate(whole.x, whole.t, self._conditions([conditions[i] for i in index]))
        return [e.data[i : i + 1] for i in range(len(states))]

    def _pad(self, states: Sequence[State]) -> tuple[State, list[int]]:
        index = [*range(len(states)), *[0] * (self.rows - len(states))]
        return State.stack([states[i] for i in index]), index

    def _conditions(self, conditions: Sequence[Condition]) -> Any:
        items = [self.encoded(c) for c in conditions]
        return type(items[0]).stack(items)


def guidance(scale: float, null: Any) -> Guide:
    """Classifier-free guidance with a one-row null encoding; scale 1 means none, at half the price."""
    if scale == 1.0:
        return Plain()

    def join(cond: Any, rows: int) -> Any:
        return type(cond).stack([cond, null.rows([0] * rows)])

    return ClassifierFree(scale, join)


def build_flow(network: Network, path: Path, scale: float, null: Any, bf16: bool) -> Flow:
    return Flow(Precise(network, bf16), path, guidance(scale, null))
