"""The words of the project, as plain values.

Conventions, stated once: time ``t = 0`` is noise and ``t = 1`` is data, and grows while a sample is made;
``x = alpha(t) * data + sigma(t) * noise``. ``B`` counts rows, ``*S`` is a sample's shape in flow space, ``*I`` its
decoded shape. Guidance scale 1 means none. A higher score is better; NaN means "could not judge", never 0.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from secondlook.noise import Key

Ask = Literal["nothing", "score", "remark"]


@dataclass(frozen=True)
class State:
    """Where some trajectories are: a value, never changed in place.

    x: [B, *S], the noisy sample. t: [B], its time. data: [B, *S], the latest guess of the clean sample, or None
    before the first step. keys: one noise key a row. step: [B] int64, solver steps taken since the row began.
    carry: what a multistep solver remembers, each [B, ...], or None; NaN in the rows that remember nothing.
    """

    x: Tensor
    t: Tensor
    keys: tuple[Key, ...]
    step: Tensor
    data: Tensor | None = None
    carry: Mapping[str, Tensor] | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    def rows(self, index: Sequence[int]) -> State:
        """The rows named by ``index``, in that order; a row may be named more than once."""
        at = torch.as_tensor(list(index), dtype=torch.long)
        data = None if self.data is None else self.data[at]
        carry = None if self.carry is None else {name: v[at] for name, v in self.carry.items()}
        return State(self.x[at], self.t[at], tuple(self.keys[i] for i in index), self.step[at], data, carry)

    @staticmethod
    def stack(states: Sequence[State]) -> State:
        """Rows of several states in one. A missing ``data`` counts as zeros when another state has it, what is missing
        from a ``carry`` as NaN."""
        if not states:
            raise ValueError("State.stack wants at least one state; got none.")
        data = None
        if any(s.data is not None for s in states):
            data = torch.cat([torch.zeros_like(s.x) if s.data is None else s.data for s in states])
        return State(
            torch.cat([s.x for s in states]),
            torch.cat([s.t for s in states]),
            tuple(k for s in states for k in s.keys),
            torch.cat([s.step for s in states]),
            data,
            _carried(states),
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


@dataclass(frozen=True)
class Remark:
    """A critic's words on one sample. ``text`` empty: nothing to change."""

    text: str
    score: float = float("nan")


@dataclass(frozen=True)
class Condition:
    """What is asked for: a prompt, a class label, or both; ``context`` holds remarks on earlier tries."""

    prompt: str | None = None
    label: int | None = None
    context: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class Proposal:
    """One item of work: run the state that ``move`` describes to time ``stop``, then ask for ``ask``.

    ``move`` is a derivation, not a tensor: a name and literals (see plans/moves.py), so a plan stays pure and the log
    can rebuild any picture.
    """

    move: dict[str, Any]
    condition: Condition
    stop: float = 1.0
    ask: Ask = "score"


@dataclass(frozen=True)
class Outcome:
    """A proposal that was carried out. ``id`` is unique in its run, ``score`` the guiding verifier's number."""

    id: int
    proposal: Proposal
    score: float
    parts: dict[str, float] = field(default_factory=dict)
    remark: Remark | None = None

    @property
    def finished(self) -> bool:
        """Whether this is a picture (time 1 was reached) rather than a trajectory stopped on its way."""
        return self.proposal.stop >= 1.0


@dataclass
class Task:
    """One prompt (or class) of a run, as a plan sees it. ``draws`` numbers the keys handed out, so that a replayed
    plan is handed the same ones."""

    index: int
    condition: Condition
    key: Key
    grid: tuple[float, ...] = (0.0, 1.0)
    draws: int = 0

    def next_key(self) -> Key:
        self.draws += 1
        return self.key.child("draw", self.draws - 1)


Plan = Generator[Sequence[Proposal], Sequence[Outcome], Any]


class Verifier(Protocol):
    """Numbers. Row-wise and without memory: a row's score depends on that row alone."""

    name: str

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """samples: uint8 [B, *I]; one condition a row. Returns [B] float64, NaN where it could not judge."""
        ...


@dataclass(frozen=True)
class Cost:
    """What work costs: ``nfe`` solver evaluations (the papers' unit), ``evals`` network passes (guidance doubles
    them), ``verdicts`` rows scored by the guiding verifier, ``decodes`` rows decoded, ``seconds`` of wall clock."""

    nfe: int = 0
    evals: int = 0
    verdicts: int = 0
    decodes: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.nfe + other.nfe,
            self.evals + other.evals,
            self.verdicts + other.verdicts,
            self.decodes + other.decodes,
            self.seconds + other.seconds,
        )

    def with_seconds(self, seconds: float) -> Cost:
        return replace(self, seconds=seconds)
