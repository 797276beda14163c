"""Moves: where a proposal begins. A move is a derivation in literals; the engine makes tensors of it (engine/derive.py).

A new kind of move is one class here: its parents, the time it begins at, the state it names, and how it reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from secondlook.errors import ConfigError, nearest
from secondlook.noise import Key

if TYPE_CHECKING:
    from torch import Tensor

    from secondlook.types import Proposal, State


class Source(Protocol):
    """What a move may ask while it makes its state. All states have one row."""

    begin: float

    def start(self, key: Key) -> State:
        """Fresh noise at the first time."""
        ...

    def turned(self, x: Tensor, key: Key, radius: float) -> Tensor:
        """Noise x [1, *S] turned by asin(radius) toward the key's noise, its norm kept."""
        ...

    def renoised(self, state: State, key: Key, to: float) -> State:
        """The state taken back to time ``to`` by the key's noise, under the key."""
        ...

    def proposal(self, number: int) -> Proposal:
        """An earlier outcome's proposal."""
        ...

    def state(self, number: int) -> State:
        """The state in which an earlier outcome ended."""
        ...


@dataclass(frozen=True)
class Move(ABC):
    """Base of all moves. ``name`` is what the log calls it; ``draws``: whether a row is run, so that there may be a new picture."""

    name: ClassVar[str]
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_parts(self)

    @property
    def parents(self) -> tuple[int, ...]:
        """Earlier outcomes that the state is made from."""
        return (self.parent,) if hasattr(self, "parent") else ()

    def begins(self, first: float, stop: float) -> float:
        """The time at which the row begins; first: that of fresh noise; stop: where the parent stopped (1 without one)."""
        return first

    def check(self, parent: Proposal | None) -> None:  # noqa: B027 - most moves can start from any parent
        """ConfigError where this cannot start from its parent's proposal."""

    @abstractmethod
    def state(self, source: Source) -> State:
        """The one-row state that the move names."""

    @property
    def keeps(self) -> bool:
        """Whether the row is the parent's own (state, time and memory), so that what was paid there holds here."""
        return False

    def describe(self) -> str:
        """How the outcome came about, in a few words."""
        return self.name

    def to_dict(self) -> dict[str, Any]:
        """Literals for the log."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"name": self.name, **{k: v.hex() if isinstance(v, Key) else v for k, v in found.items()}}

    @staticmethod
    def from_dict(body: dict[str, Any]) -> Move:
        """What ``to_dict`` wrote; ConfigError for another."""
        known = {kind.name: kind for kind in _kinds(Move)}  # type: ignore[type-abstract]
        given = dict(body)
        name = given.pop("name", None)
        if name not in known:
            raise ConfigError(f'There is no move "{name}"; {nearest(str(name), known)}')
        kind = known[name]
        if set(given) != {f.name for f in fields(kind)}:
            raise ConfigError(
                f'The move "{name}" has the parts {", ".join(f.name for f in fields(kind))}; got {", ".join(given)}.'
            )
        return kind(**{k: Key.parse(v) if k == "key" else v for k, v in given.items()})


def _kinds(kind: type[Move]) -> list[type[Move]]:
    found = []
    for sub in kind.__subclasses__():
        found += [*([sub] if "name" in vars(sub) else []), *_kinds(sub)]
    return found


def _check_parts(move: Move) -> None:
    """ConfigError for a part of another kind than its move names; NumPy's numbers become Python's, as the log keeps them."""
    for part in fields(move):
        value = getattr(move, part.name)
        if part.name == "key" and not isinstance(value, Key):
            raise ConfigError(f"{move.name}: key must be a Key, such as task.next_key(); got {value!r}.")
        if part.name == "parent":
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise ConfigError(f"{move.name}: parent must be the number of an earlier outcome; got {value!r}.")
            object.__setattr__(move, part.name, int(value))
        if part.type == "float":
            if isinstance(value, bool) or not isinstance(value, Real):
                raise ConfigError(f"{move.name}: {part.name} must be a number; got {value!r}.")
            object.__setattr__(move, part.name, float(value))


@dataclass(frozen=True)
class Fresh(Move):
    """New noise."""

    name: ClassVar[str] = "fresh"
    key: Key

    def state(self, source: Source) -> State:
        return source.start(self.key)

    def describe(self) -> str:
        return "new noise"


@dataclass(frozen=True)
class Near(Move):
    """The parent's starting noise turned by asin(radius) in a random direction; its norm is kept (the neighbour of
    2501.09732's zero-order search)."""

    name: ClassVar[str] = "near"
    parent: int
    key: Key
    radius: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.radius <= 1:
            raise ConfigError(f"near: radius is the sine of an angle, above 0 and at most 1; got {self.radius!r}.")

    def check(self, parent: Proposal | None) -> None:
        if parent is not None and not isinstance(parent.move, (Fresh, Near)):
            raise ConfigError(f'near expects a pivot that began from noise; got a "{parent.move.name}".')

    def state(self, source: Source) -> State:
        turns: list[Near] = []
        move: Move = self
        while isinstance(move, Near):  # a loop: a climb may be thousands of moves deep
            turns.append(move)
            move = source.proposal(move.parent).move
        state = move.state(source)
        x = state.x
        for turn in reversed(turns):
            x = source.turned(x, turn.key, turn.radius)
        # The pivot's key stays: a neighbour of an SDE's row differs from it in the start, not in the steps' noise.
        return replace(state, x=x)

    def describe(self) -> str:
        return f"near {self.parent}, radius {self.radius:.3g}"


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
