"""Where trajectories are, as values, and what a network believes there. Conventions: secondlook/types.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secondlook.noise import Key


@dataclass(frozen=True)
class State:
    """Where some trajectories are: a value, never changed in place.

    x: [B, *S], the noisy sample. t: [B], its time. data: [B, *S], the latest guess of the clean sample, or None
    before the first step. keys: one noise key a row. step: [B] int64, solver steps taken since the row began.
    carry: what a multistep solver remembers, each [B, ...], or None; NaN in the rows that remember nothing.
    known: [B, *S], what the guided network said at this very (x, t), in the rows where it was asked already, NaN in the
    others; None where it was asked in none.
    """

    x: Tensor
    t: Tensor
    keys: tuple[Key, ...]
    step: Tensor
    data: Tensor | None = None
    carry: Mapping[str, Tensor] | None = None
    known: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    def rows(self, index: Sequence[int]) -> State:
        """The rows named by ``index``, in that order; a row may be named more than once."""
        at = torch.as_tensor(list(index), dtype=torch.long)
        there = at.to(self.x.device)

        def pick(v: Tensor | None) -> Tensor | None:
            return None if v is None else v[there if v.device == there.device else at]

        carry = None if self.carry is None else {name: v[there] for name, v in self.carry.items()}
        keys = tuple(self.keys[i] for i in index)
        return State(self.x[there], self.t[there], keys, self.step[at], pick(self.data), carry, pick(self.known))

    def to(self, device: torch.device) -> State:
        """The same rows on a device; ``step``, which names keys, stays on the CPU."""
        if self.x.device == device:
            return self
        carry = None if self.carry is None else {name: v.to(device) for name, v in self.carry.items()}
        data, known = (None if v is None else v.to(device) for v in (self.data, self.known))
        return State(self.x.to(device), self.t.to(device), self.keys, self.step, data, carry, known)

    @staticmethod
    def stack(states: Sequence[State]) -> State:
        """Rows of several states in one. A missing ``data`` counts as zeros when another state has it, what is missing
        from a ``carry`` or from ``known`` as NaN."""
        if not states:
            raise ValueError("State.stack expects at least one state; got none.")
        if len(states) == 1:
            return states[0]
        data, known = None, None
        if any(s.data is not None for s in states):
            data = torch.cat([torch.zeros_like(s.x) if s.data is None else s.data for s in states])
        if any(s.known is not None for s in states):
            known = torch.cat([torch.full_like(s.x, math.nan) if s.known is None else s.known for s in states])
        return State(
            torch.cat([s.x for s in states]),
            torch.cat([s.t for s in states]),
            tuple(k for s in states for k in s.keys),
            torch.cat([s.step for s in states]),
            data,
            _carried(states),
            known,
        )


def _carried(states: Sequence[State]) -> dict[str, Tensor] | None:
    """The carries of several states row by row; ValueError where rows lack what has no NaN."""
    names = {name: v for s in states for name, v in (s.carry or {}).items()}
    carry = {}
    for name, like in names.items():
        parts = []
        for s in states:
            part = (s.carry or {}).get(name)
            if part is None and not like.is_floating_point():
                raise ValueError(f'State.stack: "{name}" is carried as {like.dtype}, and some rows lack it.')
            parts.append(like.new_full((len(s), *like.shape[1:]), math.nan) if part is None else part)
        carry[name] = torch.cat(parts)
    return carry or None


@dataclass(frozen=True)
class Estimate:
    """Four views of what the network believes at one (x, t); each [B, *S]. Any one determines the rest."""

    data: Tensor
    noise: Tensor
    velocity: Tensor
    logp_grad: Tensor
