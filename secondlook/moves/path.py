"""Moves that begin from where an earlier outcome stopped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from secondlook.errors import ConfigError
from secondlook.moves.base import Move, Source
from secondlook.noise import Key

if TYPE_CHECKING:
    from secondlook.types import Proposal, State


@dataclass(frozen=True)
class Rewind(Move):
    """The parent's state taken back in time by fresh noise."""

    name: ClassVar[str] = "rewind"
    parent: int
    to: float
    key: Key

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.to <= 1:
            raise ConfigError(f"rewind: to must be a time from 0 to 1; got {self.to!r}.")

    def begins(self, first: float, stop: float) -> float:
        return float(self.to)

    def check(self, parent: Proposal | None) -> None:
        if parent is not None and self.to > parent.stop:
            raise ConfigError(
                f"rewind goes back in time: outcome {self.parent} stopped at {parent.stop:g}; got to={self.to!r}."
            )

    def state(self, source: Source) -> State:
        return source.renoised(source.state(self.parent), self.key, self.to)

    def describe(self) -> str:
        return f"{self.parent} back to t {self.to:.3g}"


@dataclass(frozen=True)
class _GoesOn(Move):
    """Base of moves that begin with the parent's own row, where it stopped."""

    parent: int

    def begins(self, first: float, stop: float) -> float:
        return max(first, stop)

    @property
    def keeps(self) -> bool:
        return True


@dataclass(frozen=True)
class Resume(_GoesOn):
    """The parent goes on from where it stopped."""

    name: ClassVar[str] = "resume"

    def state(self, source: Source) -> State:
        return source.state(self.parent)

    def describe(self) -> str:
        return f"{self.parent} goes on"


@dataclass(frozen=True)
class Clone(_GoesOn):
    """The parent's state under a new key, with all that a multistep solver carries: an SDE's steps draw other noise from
    here on. An ODE's clones are one and the same (``Task.stochastic`` tells)."""

    name: ClassVar[str] = "clone"
    key: Key

    def state(self, source: Source) -> State:
        return replace(source.state(self.parent), keys=(self.key,))

    def describe(self) -> str:
        return f"{self.parent} goes on with other noise"


@dataclass(frozen=True)
class Same(Move):
    """The parent's picture as it is: nothing is drawn, decoded or handed over a second time. Of use for asking something of a
    picture that is there already, as which of two earlier ones is better ("compare")."""

    name: ClassVar[str] = "same"
    draws: ClassVar[bool] = False
    parent: int

    def begins(self, first: float, stop: float) -> float:
        return 1.0

    def check(self, parent: Proposal | None) -> None:
        if parent is not None and not (parent.shown and parent.move.draws):
            raise ConfigError(f"same expects an outcome with a picture of its own; outcome {self.parent} has none.")

    def state(self, source: Source) -> State:
        return source.state(self.parent)

    def describe(self) -> str:
        return f"{self.parent} as it is"
