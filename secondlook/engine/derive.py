"""From a move's literals to the state it names: the one place where derivations become tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secondlook.engine.rig import Rig
from secondlook.errors import ConfigError
from secondlook.flow.path import renoise
from secondlook.noise import Key, normal
from secondlook.types import State

Move = dict[str, Any]


def rotate(noise: Tensor, direction: Tensor, radius: float) -> Tensor:
    """|n| (sqrt(1 - radius^2) u + radius w): ``noise`` [*S] turned toward the part of ``direction`` at right angles to
    it. The norm is kept, in float64 (the neighbour of 2501.09732's zero-order search)."""
    n, d = noise.double().flatten(), direction.double().flatten()
    norm = n.norm()
    u = n / norm
    w = d - (d @ u) * u
    w = w / w.norm()
    return (norm * ((1 - radius**2) ** 0.5 * u + radius * w)).float().view_as(noise)


def start_time(rig: Rig, move: Move, stop_of: Callable[[int], float]) -> float:
    """The time at which a move's row begins."""
    if move["name"] == "rewind":
        return float(move["to"])
    return max(rig.begin, stop_of(move["parent"])) if move["name"] == "resume" else rig.begin


def start(rig: Rig, move: Move, move_of: Callable[[int], Move], state_of: Callable[[int], State]) -> State:
    """The one-row state a move names. ``move_of`` and ``state_of`` look an earlier outcome up."""
    name = move["name"]
    if name == "fresh":
        return rig.start(Key.parse(move["key"]))
    if name == "near":
        turns = []
        while move["name"] == "near":  # a loop: a climb may be thousands of moves deep
            turns.append(move)
            move = move_of(move["parent"])
        state = start(rig, move, move_of, state_of)
        x = state.x[0]
        for turn in reversed(turns):
            x = rotate(x, normal([Key.parse(turn["key"])], rig.shape)[0], turn["radius"])
        # The pivot's key stays: a neighbour of an SDE's row differs from it in the start, not in the steps' noise.
        return replace(state, x=x[None])
    parent = state_of(move["parent"])
    if name == "resume":
        return parent
    if name == "rewind":
        key = Key.parse(move["key"])
        noise = normal([key.child("rewind")], rig.shape)
        to = torch.full_like(parent.t, move["to"])
        x = renoise(rig.flow.path, parent.x, parent.t, to, noise)
        return State(x, to, (key,), torch.zeros_like(parent.step))  # no carry: the steps behind it are undone
    raise ConfigError(f'There is no move "{name}"; known: fresh, near, rewind, resume.')
