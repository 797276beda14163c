"""A rig performs work on a flow: it encodes conditions, steps states in padded batches, decodes and scores.

``step`` and ``look`` are calls from values to values, with their cost in the answer: no meter is shared, and what they need
pickles where the network does, so that they may as well run in another process or on another machine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow.autocast import Autocast
from secondlook.flow.estimate import Flow, Meter
from secondlook.flow.grid import EPS, after
from secondlook.flow.guidance import ClassifierFree, Guide, Network, Null, Plain
from secondlook.flow.padding import padded
from secondlook.flow.path import Path, complete
from secondlook.models.threads import TURN
from secondlook.noise import Key, normal
from secondlook.solvers.ode import Solver
from secondlook.solvers.step_noise import Ahead, ahead
from secondlook.types import Comparer, Condition, Cost, Critic, Estimate, State, Verifier

Pictures = Sequence[np.ndarray | None]  # uint8 [H, W, 3] each, that a condition's context points to; None: it was lost
Times = tuple[float, ...]


@dataclass(frozen=True)
class Work:
    """One step of some rows. until: the time each goes to. known: whether ``state.known`` holds what the network would say
    first, so that it need not be asked. pictures: of each condition's context."""

    state: State
    until: tuple[float, ...]
    conditions: tuple[Condition, ...]
    known: bool = False
    pictures: tuple[Pictures, ...] | None = None


@dataclass
class Rig:
    """Everything needed to carry proposals out.

    encode: one condition (None: the null one) to a one-row encoding with ``rows`` and ``stack``; one that reads context has
    ``reads_context = True`` and takes the pictures too. decode: x [B, *S] to uint8 pictures [B, H, W, 3]. judges: held-out
    verifiers that only look. rows: how many guided rows every network call is padded to, so that a row's result does not
    depend on its batch mates (``batch``: more where fewer passes are made of each); without ``pad`` it is the most rows of a call, and the last bits of a row do depend on them.
    scale: what fresh noise is multiplied by. grids: other grids by their number of steps. device: where the rows lie.
    settle: called when the conditions of the tasks that begin are encoded. inference: whether the network is nobody's but ours,
    so that PyTorch's inference mode, which is a little quicker, may be used; it would leave a user's weights untrainable where a
    library casts or moves them on the way. beside: whether decoding may go on in a thread beside the network (None: where that
    does not compute on the CPU, which both would share). given: noise [*S] of a user's own, by the key whose fresh noise it stands for.
    pixels: decode as a function that can be differentiated, x [B, *S] to floats in
    [0, 1], [B, H, W, C] on the device of x (None: there is none, and no plan can climb).
    """

    flow: Flow
    solver: Solver
    times: Times
    encode: Callable[..., Any]
    decode: Callable[[Tensor], Tensor]
    verifier: Verifier | None
    judges: dict[str, Verifier] = field(default_factory=dict)
    rows: int = 16
    pad: bool = True
    scale: float = 1.0
    grids: Callable[[int], Times] | None = None
    critic: Critic | None = None
    comparer: Comparer | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    settle: Callable[[], None] | None = None
    inference: bool = False
    beside: bool | None = None
    given: dict[Key, Tensor] = field(default_factory=dict)
    pixels: Callable[[Tensor], Tensor] | None = None
    _ahead: Ahead | None = field(default=None, repr=False)
    _encoded: OrderedDict[Condition, Any] = field(default_factory=OrderedDict, repr=False)
    _stacked: tuple[tuple[Condition, ...], Any] = field(default=((), None), repr=False)

    def __post_init__(self) -> None:
        if self.beside is None:
            self.beside = self.device.type != "cpu"
        if self.beside and self._ahead is None:  # the processor is idle while the network works elsewhere
            self.solver, self._ahead = ahead(self.solver)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoded": OrderedDict(), "_stacked": ((), None)}

    @property
    def shape(self) -> tuple[int, ...]:
        return self.flow.network.shape

    @property
    def begin(self) -> float:
        """The time at which fresh noise is put: 0, or a little later where a pipeline's schedule begins there."""
        return self.times[0]

    @property
    def stochastic(self) -> bool:
        return bool(self.solver.random)

    @property
    def reuses(self) -> bool:
        """Whether a step's first question to the network is about the very state it starts from."""
        return bool(getattr(self.solver, "reuses", False))

    @property
    def _steady(self) -> bool:
        """Whether the guide asks for as many passes at every time."""
        guide = self.flow.guide
        return bool(getattr(guide, "steady", guide.passes <= 1))

    def times_for(self, steps: int | None) -> Times:
        """The run's grid, or another of so many steps."""
        if steps is None:
            return self.times
        if self.grids is None:
            raise ConfigError("This generator has one grid only; leave steps out of proposals.")
        return self.grids(steps)

    def price(self, start: float, stop: float, ask: str = "score", *, steps: int | None = None, look: str = "paid",
              known: bool = False) -> Cost:  # fmt: skip
        """What running from ``start`` to ``stop`` and asking ``ask`` will cost, seconds excepted. known: the first
        evaluation was paid for already."""
        times, nfe, evals, t = self.times_for(steps), 0, 0, start
        free, goal = known, min(stop, times[-1])  # some paths are left a little before data
        while t < goal - EPS:
            then = after(times, t, goal)
            kind = self.step_kind(t, then)[1 if free else 0 :]
            nfe, evals, t, free = nfe + len(kind), evals + sum(kind), then, False
        asks = frozenset(ask.split("+")) - {"nothing"}
        if asks and stop < 1.0 and look == "paid" and not free:
            nfe, evals = nfe + 1, evals + self.flow.passes_at(stop)
        return Cost(nfe=nfe, evals=evals, verdicts=int("score" in asks), remarks=int("remark" in asks),
                    comparisons=int("compare" in asks), decodes=int(bool(asks) or stop >= 1.0))  # fmt: skip

    def step_kind(self, t: float, then: float) -> tuple[int, ...]:
        """The network rows of each evaluation of one step: guidance may be on at some of the times that a solver asks about.
        Rows whose steps are of different kinds are stepped apart, so that each pays for what was done for it."""
        count, guide = self.solver.evals(last=then >= 1.0), self.flow.guide
        if self._steady:
            return (max(1, guide.passes),) * count
        return tuple(self.flow.passes_at(a) for a in self.asks(t, then))

    def asks(self, t: float, then: float) -> tuple[float, ...]:
        """The times at which a step asks the network."""
        on = getattr(self.solver, "asks_on", None)
        return tuple(self.solver.asks(t, then) if on is None else on(self.flow.path, t, then))

    def start(self, key: Key) -> State:
        """A one-row state of fresh noise at the first time."""
        noise = self.given.get(key)
        x = normal([key.child("start")], self.shape) if noise is None else noise[None].clone()
        x = x if self.scale == 1.0 else x * self.scale
        return State(x, torch.full((1,), self.begin), (key,), torch.zeros(1, dtype=torch.long))

    # ---- conditions --------------------------------------------------------------------------------------------------

    def encoded(self, condition: Condition, pictures: Pictures = ()) -> Any:
        """The condition's encoding, made once and alone, so that it does not depend on company."""
        if condition not in self._encoded:
            with self.in_turn(), torch.no_grad():
                self._encoded[condition] = self._encode(condition, pictures)
        return self._encoded[condition]

    def _encode(self, condition: Condition, pictures: Pictures) -> Any:
        if not condition.context:
            return self.encode(condition)
        shown = [(c, p) for c, p in zip(condition.context, pictures, strict=True) if p is not None]
        told = replace(condition, context=tuple(c for c, _ in shown))  # there is nothing to tell of a try that was lost
        if not getattr(self.encode, "reads_context", False):
            raise ConfigError("This model does not read earlier tries, so a condition cannot have a context here; change the "
                              "prompt instead, or use a model trained for it.")  # fmt: skip
        return self.encode(told, [p for _, p in shown])

    def forget(self, conditions: Iterable[Condition]) -> None:
        """The tasks that asked for these have ended: their encodings are not needed any more."""
        for condition in conditions:
            self._encoded.pop(condition, None)
        self._stacked = ((), None)

    def conditions(self, conditions: Sequence[Condition], pictures: Sequence[Pictures] | None = None) -> Any:
        """The encodings of several rows, in one; the same rows go on for many steps."""
        key = tuple(conditions)
        if self._stacked[0] != key:
            some = pictures or [()] * len(key)
            items = [self.encoded(c, p) for c, p in zip(key, some, strict=True)]
            self._stacked = (key, type(items[0]).stack(items))
        return self._stacked[1]

    # ---- work --------------------------------------------------------------------------------------------------------

    def step(self, work: Work) -> tuple[State, Cost]:
        """One solver step of all rows of ``work``, and what it cost each row, seconds excepted."""
        whole, index = self.padded(work.state, self._size(lambda i, t: self.step_kind(t, work.until[i]), work))
        until = torch.tensor([work.until[i] for i in index]).to(whole.t.device)
        flow = self._metered(whole.known if work.known else None)
        with self.in_turn(), self._quietly():
            if self._ahead is not None:
                self._ahead.begin(whole)
            moved = self.solver.step(flow, whole, until, self._asked(work, index))
        return (moved if len(index) == len(work.state) else moved.rows(range(len(work.state)))), _counted(flow)

    def estimate(self, work: Work) -> tuple[State, Tensor, Cost]:
        """The rows with what the network says of each where it stands (``State.known``), the data estimates [B, *S], and
        what it cost each row."""
        whole, index = self.padded(work.state, self._size(lambda i, t: (self.flow.passes_at(t),), work))
        flow = self._metered(whole.known if work.known else None)
        with self.in_turn(), self._quietly():
            e = flow.estimate(whole.x, whole.t, self._asked(work, index))
        n = len(work.state)
        assert flow.said is not None
        return replace(work.state, known=flow.said[:n]), e.data[:n], _counted(flow)

    def pictures(self, x: Tensor) -> Tensor:
        """Rows x [B, *S] decoded: uint8 [B, H, W, 3] on the CPU."""
        with self.in_turn():
            return self.decode(x)

    def batch(self, kind: Sequence[int]) -> int:
        """How many rows whose evaluations take so many passes (``step_kind``) one step holds: the network's call is as large for rows that
        are not guided as for half as many that are."""
        return self.rows * max(1, self.flow.guide.passes) // max(1, *kind)

    def _size(self, kind: Callable[[int, float], Sequence[int]], work: Work) -> int:
        """To how many rows ``work`` is padded; kind: of a row by its place and time. The times may be on a GPU, and are not
        looked at where all kinds are one."""
        if self._steady:
            return self.rows
        return min(self.batch(kind(i, t)) for i, t in enumerate(work.state.t.tolist()))

    def padded(self, state: State, size: int) -> tuple[State, list[int]]:
        """The rows, and copies of the first where a batch is padded to ``size``; with the row that each is a copy of."""
        missing = padded(size) - len(state) if self.pad else 0
        index = [*range(len(state)), *([0] * missing)]
        return (state.rows(index) if missing > 0 else state), index

    def _asked(self, work: Work, index: Sequence[int]) -> Any:
        pictures = None if work.pictures is None else [work.pictures[i] for i in index]
        return self.conditions([work.conditions[i] for i in index], pictures)

    def in_turn(self) -> Any:
        """What is held while the CPU computes what its number of threads decides."""
        return nullcontext() if self.beside else TURN

    def _quietly(self) -> Any:
        return torch.inference_mode() if self.inference else torch.no_grad()

    def _metered(self, known: Tensor | None) -> Asked:
        """The flow with a meter of its own, which remembers what the network says first."""
        return Asked(self.flow.network, self.flow.path, self.flow.guide, Meter(), known)

    # ---- one-row states, for replays and plain samples ---------------------------------------------------------------

    def advance(self, states: Sequence[State], stops: Sequence[float], conditions: Sequence[Condition],
                grids: Sequence[Times] | None = None, pictures: Sequence[Pictures] | None = None) -> tuple[list[State], Cost]:  # fmt: skip
        """One solver step of up to ``rows`` one-row states, each at its own time, and what it cost each."""
        times = grids or [self.times] * len(states)
        until = tuple(after(g, float(s.t), min(stop, g[-1])) for g, s, stop in zip(times, states, stops, strict=True))
        work = Work(
            State.stack(states).to(self.device),
            until,
            tuple(conditions),
            pictures=None if pictures is None else tuple(pictures),
        )
        moved, cost = self.step(work)
        return [moved.rows([i]) for i in range(len(states))], cost

    def look(self, states: Sequence[State], conditions: Sequence[Condition],
             pictures: Sequence[Pictures] | None = None) -> list[Tensor]:  # fmt: skip
        """The data estimate [1, *S] of half-made rows; one evaluation each."""
        until = tuple(float(s.t) for s in states)
        work = Work(
            State.stack(states).to(self.device),
            until,
            tuple(conditions),
            pictures=None if pictures is None else tuple(pictures),
        )
        _, data, _ = self.estimate(work)
        return [data[i : i + 1] for i in range(len(states))]

    def finish(self, states: Sequence[State], conditions: Sequence[Condition]) -> np.ndarray:
        """One-row states, all run to data in batches of ``rows``: uint8 [len(states), H, W, 3]."""
        pictures = []
        for i in range(0, len(states), self.rows):
            live, asked = list(states[i : i + self.rows]), conditions[i : i + self.rows]
            while float(live[0].t) < self.times[-1] - EPS:
                live, _ = self.advance(live, [1.0] * len(live), asked)
            pictures.append(self.pictures(torch.cat([s.x for s in live])).numpy())
        return np.concatenate(pictures)


@dataclass
class Asked(Flow):
    """A flow for the length of one step. known: the network's first answer where it was paid for before; said: its first
    answer, for a row that may go on from where it was looked at."""

    known: Tensor | None = None
    said: Tensor | None = None

    def estimate(self, x: Tensor, t: Tensor, cond: Any) -> Estimate:
        if self.known is not None:
            value, self.known = self.known, None
            self.said = value
            return complete(self.path, x, t, self.network.predicts, value)
        found = self.predict(x, t, cond)
        if self.said is None:
            self.said = found
        return complete(self.path, x, t, self.network.predicts, found)


def _counted(flow: Flow) -> Cost:
    return Cost(nfe=flow.meter.nfe, evals=flow.meter.evals)


def guidance(scale: float, null: Any) -> Guide:
    """Classifier-free guidance with a one-row null encoding; scale 1 means none, at half the price."""
    return Plain() if scale == 1.0 else ClassifierFree(scale, Null(null).join)


def build_flow(network: Network, path: Path, scale: float, null: Any, bf16: bool) -> Flow:
    return Flow(Autocast(network, bf16), path, guidance(scale, null))
