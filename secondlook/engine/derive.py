"""From a move's literals to the state it names: the one place where derivations become tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from secondlook.engine.climb import gradient
from secondlook.engine.rig import Rig, Work
from secondlook.errors import DamagedError
from secondlook.flow.grid import EPS
from secondlook.flow.path import renoise
from secondlook.moves import Source
from secondlook.noise import Key, normal
from secondlook.types import Cost, Proposal, State


def rotate(noise: Tensor, direction: Tensor, radius: float) -> Tensor:
    """|n| (sqrt(1 - radius^2) u + radius w): ``noise`` [*S] turned toward the part of ``direction`` at right angles to
    it. The norm is kept, in float64 (the neighbour of 2501.09732's zero-order search)."""
    n, d = noise.double().flatten(), direction.double().flatten()
    norm = n.norm()
    u = n / norm
    w = d - (d @ u) * u
    w = w / w.norm()
    return (norm * ((1 - radius**2) ** 0.5 * u + radius * w)).float().view_as(noise)


def mix(noise: Tensor, fresh: Tensor, angle: float) -> Tensor:
    """cos(angle) ``noise`` + sin(angle) ``fresh``, both [*S], in float64: standard normal where both are."""
    return (math.cos(angle) * noise.double() + math.sin(angle) * fresh.double()).float()


def low_band(x: Tensor, band: int) -> Tensor:
    """x [*S] with each cell of band x band pixels replaced by its mean: the projection on the Haar transform's approximation at
    level log2(band). Where the shape has no two axes in space, or the band does not divide them: x itself."""
    if x.dim() < 3 or x.shape[-1] % band or x.shape[-2] % band:
        return x
    cells = x.reshape(*x.shape[:-2], x.shape[-2] // band, band, x.shape[-1] // band, band)
    return cells.mean((-3, -1), keepdim=True).expand_as(cells).reshape(x.shape)


def blend(parents: Sequence[Tensor], weights: Sequence[float], fresh: Tensor, share: float, band: int) -> Tensor:
    """``fresh`` [*S] whose low band is sqrt(1 - share^2) m + share times its own, in float64; m is the parents' weighted mean low band at
    the norm that it has for independent parents: the root mean square of theirs, weighted by the weights' squares."""
    own, lows = low_band(fresh.double(), band), [low_band(p.double(), band) for p in parents]
    total = torch.stack([w * low for w, low in zip(weights, lows, strict=True)]).sum(0)
    squares = sum(w * w * float(low.square().sum()) for w, low in zip(weights, lows, strict=True))
    norm = (squares / sum(w * w for w in weights)) ** 0.5
    mean = total * (norm / total.norm().clamp_min(1e-300))
    return (fresh.double() - own + (1 - share**2) ** 0.5 * mean + share * own).float()


class Derivation(Source):
    """Moves' states on a rig. proposal_of, state_of: look an earlier outcome up by its number. starts: where the states in which
    earlier outcomes began are at hand, those that were costly to make; spent: is told what each such state cost that is made here."""

    def __init__(self, rig: Rig, proposal_of: Callable[[int], Proposal], state_of: Callable[[int], State],
                 starts: dict[int, State] | None = None, spent: Callable[[Cost], None] = lambda cost: None):  # fmt: skip
        self.rig, self.begin = rig, rig.begin
        self._proposal_of, self._state_of = proposal_of, state_of
        self._starts, self._spent = {} if starts is None else starts, spent

    def begun(self, number: int) -> State | None:
        return self._starts.get(number)

    def keep(self, number: int, state: State) -> None:
        self._starts[number] = state

    def climbed(self, state: State, parent: int, key: Key, rate: float, through: str, steps: int) -> Tensor:
        slope, cost = gradient(self.rig, state, self._proposal_of(parent), through, steps)
        self._spent(cost)
        u = state.x[0].double().flatten()
        aside = slope[0].double().flatten() - (slope[0].double().flatten() @ u) / (u @ u) * u
        flat = not bool(slope.isfinite().all()) or not float(aside.norm()) > 0
        return rotate(state.x[0], normal([key], self.rig.shape)[0] if flat else slope[0], rate)[None]

    def start(self, key: Key) -> State:
        return self.rig.start(key)

    def turned(self, x: Tensor, key: Key, radius: float) -> Tensor:
        return rotate(x[0], normal([key], self.rig.shape)[0], radius)[None]

    def mixed(self, x: Tensor, key: Key, angle: float) -> Tensor:
        fresh = normal([key], self.rig.shape)
        return mix(x, fresh if self.rig.scale == 1.0 else fresh * self.rig.scale, angle)

    def blended(
        self, parents: Sequence[Tensor], weights: Sequence[float], x: Tensor, share: float, band: int
    ) -> Tensor:
        return blend([p[0] for p in parents], weights, x[0], share, band)[None]

    def renoised(self, state: State, key: Key, to: float) -> State:
        noise = normal([key.child("rewind")], self.rig.shape)
        times = torch.full_like(state.t, to)
        x = renoise(self.rig.flow.path, state.x, state.t, times, noise)
        return State(x, times, (key,), torch.zeros_like(state.step))  # no carry: the steps behind it are undone

    def proposal(self, number: int) -> Proposal:
        return self._proposal_of(number)

    def state(self, number: int) -> State:
        return self._state_of(number)


def begins(rig: Rig, proposal: Proposal, proposal_of: Callable[[int], Proposal]) -> float:
    """The time at which a proposal's row begins."""
    parents = proposal.move.parents
    return proposal.move.begins(rig.begin, proposal_of(parents[0]).stop if parents else 1.0)


class _Needs(Exception):
    """An outcome whose state must be there first."""

    def __init__(self, number: int):
        self.number = number


class Again:
    """Outcomes made again from their derivations, each ancestor once. picture_of: where pictures that a condition's context
    points to are at hand (None: it was lost); without it they too are made again, but for those that ``lost`` says have none.
    Nothing is charged: this is a proof or a repair, not a search; ``spent`` is told what each step cost. looked: whether states have what paid looks at them learnt, for rows that go on."""

    def __init__(self, rig: Rig, proposal_of: Callable[[int], Proposal], picture_of: Callable[[int], np.ndarray | None] | None = None,
                 spent: Callable[[Cost], None] | None = None, looked: bool = False,
                 lost: Callable[[int], bool] = lambda number: False):  # fmt: skip
        self.rig, self.proposal_of, self.picture_of, self.spent = rig, proposal_of, picture_of, spent
        self.looked, self.lost = looked, lost
        self._states: dict[int, State] = {}
        self._starts: dict[int, State] = {}
        self._pictures: dict[int, np.ndarray] = {}

    def state(self, number: int) -> State:
        """The state that an outcome ended in. Chains may be thousands long, so nothing here calls itself."""
        open_ = [] if number in self._states else [number]
        while open_:
            try:
                self._states[open_[-1]] = self._run(open_[-1])
                open_.pop()
            except _Needs as first:
                if first.number in open_:
                    raise DamagedError(
                        f"Outcome {first.number} is its own ancestor in this log; it was changed by other hands."
                    ) from None
                open_.append(first.number)
        return self._states[number]

    def picture(self, number: int) -> np.ndarray:
        """An outcome's picture, uint8 [H, W, 3]."""
        if number not in self._pictures:
            proposal = self.proposal_of(number)
            if not proposal.move.draws:
                return self.picture(proposal.move.parents[0])
            state = self.state(number)
            if proposal.finished:
                x = state.x
            elif proposal.look == "free":
                assert state.data is not None
                x = state.data
            else:
                x = self.rig.look([state], [proposal.condition], [self._shown(proposal)])[0]
            self._pictures[number] = np.asarray(self.rig.pictures(x)[0])
        return self._pictures[number]

    def _known(self, number: int) -> State:
        if number not in self._states:
            raise _Needs(number)
        return self._states[number]

    def _shown(self, proposal: Proposal) -> list[np.ndarray | None]:
        told = [c.outcome for c in proposal.condition.context]
        if self.picture_of is not None:
            return [self.picture_of(n) for n in told]
        for n in told:
            if not self.lost(n):
                self._known(n)
        return [None if self.lost(n) else self.picture(n) for n in told]

    def _run(self, number: int) -> State:
        """One outcome's steps; _Needs for another that must be made before it."""
        proposal = self.proposal_of(number)
        state = proposal.move.state(Derivation(self.rig, self.proposal_of, self._known, self._starts, self._spend))
        if proposal.move.costly:
            self._starts[number] = state
        pictures, times = self._shown(proposal), self.rig.times_for(proposal.steps)
        while float(state.t) < min(proposal.stop, times[-1]) - EPS:
            [state], cost = self.rig.advance(
                [replace(state, known=None)], [proposal.stop], [proposal.condition], [times], [pictures]
            )
            self._spend(cost)
        paid = not proposal.finished and bool(proposal.asks) and proposal.look == "paid"
        if self.looked and paid and self.rig.reuses:
            work = Work(state.to(self.rig.device), (proposal.stop,), (proposal.condition,), pictures=(pictures,))
            state, _, cost = self.rig.estimate(work)
            self._spend(cost)
        return state

    def _spend(self, cost: Cost) -> None:
        if self.spent is not None:
            self.spent(cost)


def replay(
    rig: Rig, number: int, proposal_of: Callable[[int], Proposal], lost: Callable[[int], bool] = lambda number: False
) -> np.ndarray:
    """An outcome's picture, uint8 [H, W, 3], from its derivation alone. lost: which earlier tries had no picture to show."""
    return Again(rig, proposal_of, lost=lost).picture(number)
