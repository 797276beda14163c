"""The words of the project, as plain values.

Conventions, stated once: time ``t = 0`` is noise and ``t = 1`` is data, and grows while a sample is made;
``x = alpha(t) * data + sigma(t) * noise``. ``B`` counts rows, ``*S`` is a sample's shape in flow space, ``*I`` its
decoded shape. Guidance scale 1 means none. A higher score is better. A score of NaN means "could not judge", never 0;
None means that nobody was asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from types import NoneType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from secondlook.cost import ABOUT_UNITS, COST_UNITS, UNIT_LABELS, UNITS, Cost
from secondlook.errors import ConfigError, SecondlookError
from secondlook.flow.state import Estimate, State
from secondlook.moves import Fresh, Move
from secondlook.noise import Key, uniform


@dataclass(frozen=True)
class Remark:
    """A critic's words on one sample. ``text`` empty: nothing to change. score: how sure or how severe, NaN where unsaid."""

    text: str
    score: float = float("nan")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Remark):
            return NotImplemented
        same = self.score == other.score or (math.isnan(self.score) and math.isnan(other.score))
        return self.text == other.text and same

    def __hash__(self) -> int:
        return hash((self.text, None if math.isnan(self.score) else self.score))


@dataclass(frozen=True)
class Context:
    """An earlier try that a condition points to: the outcome's number and what was said of it. The engine hands the
    outcome's picture to the encoder, so that the condition stays literal and can be drawn again; of an outcome whose picture was
    lost (its row overflowed) the network is told nothing."""

    outcome: int
    remark: Remark

    def __post_init__(self) -> None:
        if isinstance(self.outcome, bool) or not isinstance(self.outcome, int) or not isinstance(self.remark, Remark):
            raise ConfigError(
                f"A Context is an outcome's number and a Remark on it; got {self.outcome!r} and {self.remark!r}."
            )


@dataclass(frozen=True)
class Condition:
    """What is asked for: a prompt, a class label, or both; ``context`` points to earlier tries with remarks on them."""

    prompt: str | None = None
    label: int | None = None
    context: tuple[Context, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, (str, NoneType)):
            raise ConfigError(f"A Condition's prompt must be a text or None; got {self.prompt!r}.")
        if isinstance(self.label, bool) or not isinstance(self.label, (int, NoneType)):
            raise ConfigError(f"A Condition's label must be a class's number or None; got {self.label!r}.")
        if not isinstance(self.context, Iterable) or not all(isinstance(c, Context) for c in self.context):
            raise ConfigError(f"A Condition's context must be a tuple of Context; got {self.context!r}.")
        object.__setattr__(self, "context", tuple(self.context))


ASKS = ("score", "remark", "compare")
Look = Literal["paid", "free"]


@dataclass(frozen=True)
class Proposal:
    """One item of work: run the state that ``move`` describes to time ``stop``, then ask for ``ask``.

    move: a derivation, not a tensor (secondlook/moves), so a plan stays pure and the log can rebuild any picture. condition: what the
    network is told; judging always uses the task's own condition. ask: "nothing", or some of "score", "remark" and
    "compare" joined by "+" ("score+remark"). steps: another grid than the run's, of so many steps. look: how a
    half-made picture is seen: "paid", by one more evaluation at its own time, which is the first evaluation of a row that
    goes on from there; or "free", by the estimate that the last step made anyway. against: the outcome that "compare"
    compares with. Raises ConfigError for what cannot be meant.
    """

    move: Move
    condition: Condition
    stop: float = 1.0
    ask: str = "score"
    steps: int | None = None
    look: Look = "paid"
    against: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.move, Move):
            raise ConfigError(f"A proposal's move must be a secondlook.moves.Move; got {self.move!r}.")
        if not isinstance(self.condition, Condition):
            raise ConfigError(f"A proposal's condition must be a Condition; got {self.condition!r}.")
        if isinstance(self.stop, bool) or not isinstance(self.stop, Real) or not 0 < self.stop <= 1:
            raise ConfigError(f"A proposal's stop must be a time above 0 and at most 1; got {self.stop!r}.")
        object.__setattr__(self, "stop", float(self.stop))
        object.__setattr__(self, "ask", _asked(self.ask))
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool)
        if self.steps is not None and not (whole and 1 <= self.steps <= 10_000):
            raise ConfigError(
                f"A proposal's steps must be a whole number from 1 to 10000, or None; got {self.steps!r}."
            )
        if self.look not in ("paid", "free"):
            raise ConfigError(f'A proposal\'s look must be "paid" or "free"; got {self.look!r}.')
        if ("compare" in self.asks) != (self.against is not None):
            raise ConfigError('A proposal that asks to "compare" must name the outcome to compare with in against, and '
                              f"no other may; got ask={self.ask!r}, against={self.against!r}.")  # fmt: skip
        if not self.move.draws and (self.stop < 1 or not self.asks):
            raise ConfigError(
                f'A "{self.move.name}" draws nothing: it asks something of a picture, and has no stop before 1.'
            )

    @property
    def asks(self) -> frozenset[str]:
        """The single questions in ``ask``."""
        return frozenset(self.ask.split("+")) - {"nothing"}

    @property
    def finished(self) -> bool:
        """Whether this ends in a new picture (time 1) rather than in a half-made state or an answer about an earlier one."""
        return self.stop >= 1.0 and self.move.draws

    @property
    def shown(self) -> bool:
        """Whether a picture is made of it."""
        return self.finished or bool(self.asks)

    @property
    def parents(self) -> tuple[int, ...]:
        """Every earlier outcome that this one needs: the move's, the context's, and the one compared with."""
        against = () if self.against is None else (self.against,)
        return (*self.move.parents, *(c.outcome for c in self.condition.context), *against)


def _asked(ask: object) -> str:
    """``ask`` in its one spelling; ConfigError for another word."""
    words = str(ask).split("+") if isinstance(ask, str) else []
    if words == ["nothing"]:
        return "nothing"
    if not words or len(set(words)) < len(words) or not set(words) <= set(ASKS):
        raise SecondlookError(
            f'A proposal asks for "nothing", or for some of {", ".join(ASKS)} joined by "+"; got {ask!r}.'
        )
    return "+".join(w for w in ASKS if w in words)


@dataclass(frozen=True)
class Outcome:
    """A proposal that was carried out, as plans see it. ``id`` is unique in its run. score: the guiding verifier's
    number (NaN: it could not judge; None: it was not asked), with its named ``components`` where it has any. remark: the
    critic's (None: not asked, or it could not be read). preference: the comparer's share in [0, 1] for this picture over
    ``proposal.against`` (NaN: it could not compare; None: not asked). What held-out judges and the exact checker say is in
    the run's log alone."""

    id: int
    proposal: Proposal
    score: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)
    remark: Remark | None = None
    preference: float | None = None

    @property
    def finished(self) -> bool:
        """Whether this is a picture (time 1 was reached) rather than a trajectory stopped on its way."""
        return self.proposal.finished


@dataclass(frozen=True)
class Means:
    """What the engine tells a task of its means. remaining: what is left of its budget. price: what a proposal would cost.
    stochastic: whether the solver draws noise, so that clones differ."""

    remaining: Callable[[], Mapping[str, float]]
    price: Callable[[Proposal], Cost]
    stochastic: bool = False


@dataclass
class Task:
    """One prompt (or class) of a run, as a plan sees it. ``draws`` numbers the keys handed out, so that a replayed
    plan is handed the same ones."""

    index: int
    condition: Condition
    key: Key
    grid: tuple[float, ...] = (0.0, 1.0)
    draws: int = 0
    means: Means | None = None

    def next_key(self) -> Key:
        self.draws += 1
        return self.key.child("draw", self.draws - 1)

    def first_key(self) -> Key:
        """The key of the unsearched picture."""
        return self.key.child("draw", 0)

    def uniform(self, count: int) -> list[float]:
        """``count`` random numbers inside (0, 1), keyed: a replayed plan is given the same."""
        return [float(u) for u in uniform(self.next_key().child("uniform"), count)]

    def remaining(self) -> Mapping[str, float]:
        """What is left of the budget by unit (a name of ``UNITS``), infinity where there is no limit. It stands still while the
        plan thinks, and is the same when the run is replayed."""
        return dict.fromkeys(UNITS, math.inf) if self.means is None else self.means.remaining()

    def price(self, *proposals: Proposal) -> Cost:
        """What these would cost, seconds excepted."""
        if self.means is None:
            raise SecondlookError(
                "This task is not part of a run, so nothing is known of prices; simulate it (secondlook.testing)."
            )
        return sum((self.means.price(p) for p in proposals), Cost())

    def affords(self, *proposals: Proposal) -> bool:
        """Whether what is left pays for all of these."""
        left, price = self.remaining(), self.price(*proposals)
        return all(getattr(price, unit) <= value for unit, value in left.items())

    @property
    def stochastic(self) -> bool:
        """Whether the solver draws noise on the way. Where it does not, clones of a row end in one picture."""
        return self.means is not None and self.means.stochastic


Plan = Generator[Sequence[Proposal], Sequence[Outcome], Any]


class Verifier(Protocol):
    """Numbers. Row-wise and without memory: a row's score depends on that row alone. One with an attribute ``reads_time = True`` is
    called with ``times=[...]`` too, a float a row: the time of the data estimate that it is shown, 1 for a finished picture,
    NaN where it is unknown. It takes finished pictures without ``times`` as well."""

    name: str

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor | Mapping[str, Tensor]:
        """samples: uint8 [B, *I]; one condition a row. Returns [B] float64, NaN where it could not judge, or a mapping of
        named components with "score" among them, each [B]."""
        ...


@runtime_checkable
class Differentiable(Protocol):
    """What a verifier has besides if plans may follow its gradient (``ascend``)."""

    def gradient(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """samples: float [B, *I] in [0, 1], what the uint8 pictures were before rounding; one condition a row. Returns [B, *I]: for
        each row the derivative of its score, or of any rising function of it, by its own numbers."""
        ...


class Critic(Protocol):
    """Words. Row-wise: what is said of a sample depends on that sample and its condition alone."""

    name: str

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Sequence[Remark | None]:
        """samples: uint8 [B, *I]. Returns one remark a row, None where it could not say."""
        ...


class Comparer(Protocol):
    """Pairs: which of two samples serves the condition better; one with ``symmetric = True`` says how alike they are."""

    name: str

    def __call__(self, first: Tensor, second: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """first, second: uint8 [B, *I]. Returns [B] in [0, 1], the share for the first; NaN where it could not judge."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A finished outcome as a selector sees it. picture: gives its pixels, uint8 [H, W, 3]."""

    id: int
    task: int
    score: float | None
    components: Mapping[str, float]
    picture: Callable[[], np.ndarray]


class Selector(Protocol):
    """Sets: which of the finished pictures are handed over, given all of them."""

    name: str

    def __call__(self, candidates: Sequence[Sequence[Candidate]]) -> Sequence[Sequence[int]]:
        """candidates: those of each task, in the order they were proposed. Returns for each task the numbers of its chosen
        outcomes, best first, at least one where there is a candidate."""
        ...


__all__ = [
    "ABOUT_UNITS",
    "ASKS",
    "COST_UNITS",
    "UNITS",
    "UNIT_LABELS",
    "Candidate",
    "Comparer",
    "Condition",
    "Context",
    "Cost",
    "Critic",
    "Differentiable",
    "Estimate",
    "Fresh",
    "Means",
    "Move",
    "Outcome",
    "Plan",
    "Proposal",
    "Remark",
    "Selector",
    "State",
    "Task",
    "Verifier",
]  # fmt: skip
