"""What every move is, and what it may ask while it makes its state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
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

    def mixed(self, x: Tensor, key: Key, angle: float) -> Tensor:
        """cos(angle) x + sin(angle) w of noise x [1, *S] and the key's noise w."""
        ...

    def blended(
        self, parents: Sequence[Tensor], weights: Sequence[float], x: Tensor, share: float, band: int
    ) -> Tensor:
        """Fresh noise x [1, *S] with the low band of the parents' noise in it (Blend says how)."""
        ...

    def climbed(self, state: State, parent: int, key: Key, rate: float, through: str, steps: int) -> Tensor:
        """An outcome's starting noise, the x [1, *S] of ``state``, turned by asin(rate) along the gradient of its score (Climb
        says how)."""
        ...

    def begun(self, number: int) -> State | None:
        """The state in which an earlier outcome began, where that is at hand; None where it must be made."""
        ...

    def keep(self, number: int, state: State) -> None:
        """Keep the state in which an earlier outcome began: it was costly to make."""
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
    """Base of all moves. ``name`` is what the log calls it; ``draws``: whether a row is run, so that there may be a new picture;
    ``costly``: whether the network runs to make the state that it begins from."""

    name: ClassVar[str]
    draws: ClassVar[bool] = True
    costly: ClassVar[bool] = False

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
            object.__setattr__(move, part.name, _number(move, part.name, value))
        if part.type == "int" and part.name != "parent":
            object.__setattr__(move, part.name, _number(move, part.name, value, True))
        if part.type in ("tuple[int, ...]", "tuple[float, ...]"):
            some = list(value) if isinstance(value, Iterable) else [value]
            whole = part.type == "tuple[int, ...]"
            object.__setattr__(move, part.name, tuple(_number(move, part.name, v, whole) for v in some))


def _number(move: Move, name: str, value: Any, whole: bool = False) -> float:
    known = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not known:
        raise ConfigError(f"{move.name}: {name} must be {'a whole number' if whole else 'a number'}; got {value!r}.")
    return int(value) if whole else float(value)
