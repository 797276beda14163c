"""From a move's literals to the state it names: the one place where derivations become tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from secondlook.engine.rig import Rig
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


class Derivation(Source):
    """Moves' states on a rig. proposal_of, state_of: look an earlier outcome up by its number."""

    def __init__(self, rig: Rig, proposal_of: Callable[[int], Proposal], state_of: Callable[[int], State]):
        self.rig, self.begin = rig, rig.begin
        self._proposal_of, self._state_of = proposal_of, state_of

    def start(self, key: Key) -> State:
        return self.rig.start(key)

    def turned(self, x: Tensor, key: Key, radius: float) -> Tensor:
        return rotate(x[0], normal([key], self.rig.shape)[0], radius)[None]

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


def rebuild(
    rig: Rig, number: int, proposal_of: Callable[[int], Proposal], spent: Callable[[Cost], None] | None = None
) -> State:
    """The state that an outcome ended in, from its derivation alone, through its ancestors where need be; ``spent`` is told
    what each step cost. Nothing is charged: this is a proof or a repair, not a search."""
    proposal = proposal_of(number)
    source = Derivation(rig, proposal_of, lambda i: rebuild(rig, i, proposal_of, spent))
    state = proposal.move.state(source)
    pictures = [replay(rig, c.outcome, proposal_of) for c in proposal.condition.context]
    times = rig.times_for(proposal.steps)
    while float(state.t) < min(proposal.stop, times[-1]) - EPS:
        [state], cost = rig.advance(
            [replace(state, known=None)], [proposal.stop], [proposal.condition], [times], [pictures]
        )
        if spent is not None:
            spent(cost)
    return state


def replay(rig: Rig, number: int, proposal_of: Callable[[int], Proposal]) -> np.ndarray:
    """An outcome's picture, uint8 [H, W, 3], from its derivation alone."""
    proposal = proposal_of(number)
    state = rebuild(rig, number, proposal_of)
    if proposal.finished:
        x = state.x
    elif proposal.look == "free":
        assert state.data is not None
        x = state.data
    else:
        pictures = [replay(rig, c.outcome, proposal_of) for c in proposal.condition.context]
        x = rig.look([state], [proposal.condition], [pictures])[0]
    return np.asarray(rig.decode(x)[0])
