"""Moves: where a proposal begins. A move is a derivation in literals; the engine makes tensors of it (engine/derive.py).

A new kind of move is one class here: its parents, the time it begins at, the state it names, and how it reads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from secondlook.errors import ConfigError, DamagedError, nearest
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


@dataclass(frozen=True)
class NoiseMove(Move):
    """Base of moves that begin from noise: new, or made of the starting noise of earlier outcomes that began from noise too. They
    may follow one another in any order and number."""

    @abstractmethod
    def begun(self, source: Source, parents: Sequence[State]) -> State:
        """The state that the move names, from its parents' starting states in the order of ``parents``."""

    def check(self, parent: Proposal | None) -> None:
        if parent is not None and not isinstance(parent.move, NoiseMove):
            raise ConfigError(f'{self.name} expects an outcome that began from noise; got a "{parent.move.name}".')

    def state(self, source: Source) -> State:
        """Ancestors first, each once: a loop, since chains may be thousands of moves deep. What no later one needs is let go."""
        lineage = _lineage(self, source)
        uses = Counter(n for move in (*lineage.values(), self) for n in move.parents)
        made: dict[int, State] = {}

        def begun(move: NoiseMove) -> State:
            state = move.begun(source, [made[n] for n in move.parents])
            uses.subtract(move.parents)
            for n in move.parents:
                if not uses[n]:
                    del made[n]
            return state

        for number, move in lineage.items():
            made[number] = begun(move)
        return begun(self)


def _lineage(move: NoiseMove, source: Source) -> dict[int, NoiseMove]:
    """The moves of all ancestors by their outcomes' numbers, in rising order: a parent is older than its child."""
    found: dict[int, NoiseMove] = {}
    todo = [(move, n) for n in move.parents]
    while todo:
        child, number = todo.pop()
        if number in found:
            continue
        proposal = source.proposal(number)
        child.check(proposal)
        assert isinstance(proposal.move, NoiseMove)
        found[number] = proposal.move
        if any(n >= number for n in proposal.move.parents):
            raise DamagedError(f"Outcome {number} is its own ancestor in this log; it was changed by other hands.")
        todo += [(proposal.move, n) for n in proposal.move.parents]
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Fresh(NoiseMove):
    """New noise."""

    name: ClassVar[str] = "fresh"
    key: Key

    def begun(self, source: Source, parents: Sequence[State]) -> State:
        return source.start(self.key)

    def describe(self) -> str:
        return "new noise"


@dataclass(frozen=True)
class Near(NoiseMove):
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

    def begun(self, source: Source, parents: Sequence[State]) -> State:
        [pivot] = parents
        # The pivot's key stays: a neighbour of an SDE's row differs from it in the start, not in the steps' noise.
        return replace(pivot, x=source.turned(pivot.x, self.key, self.radius))

    def describe(self) -> str:
        return f"near {self.parent}, radius {self.radius:.3g}"


@dataclass(frozen=True)
class Turn(NoiseMove):
    """The parent's starting noise x becomes cos(angle) x + sin(angle) w, w the key's noise: a point of the ellipse through both
    (elliptical slice sampling, 1001.0175), and a step of preconditioned Crank-Nicolson (1202.0709). It keeps the Gaussian law
    exactly, so norms vary as they do among fresh noises; ``Near`` keeps the norm. angle: in radians."""

    name: ClassVar[str] = "turn"
    parent: int
    key: Key
    angle: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.angle):
            raise ConfigError(f"turn: angle must be a finite number of radians; got {self.angle!r}.")

    def begun(self, source: Source, parents: Sequence[State]) -> State:
        [pivot] = parents
        return replace(pivot, x=source.mixed(pivot.x, self.key, self.angle))  # under the pivot's key, as a neighbour

    def describe(self) -> str:
        return f"{self.parent} turned by {self.angle:.3g}"


@dataclass(frozen=True)
class Blend(NoiseMove):
    """Fresh noise whose low band is sqrt(1 - share^2) times the parents' mean low band plus ``share`` times its own.

    of: the parents, each once. weights: of their low bands in the mean, above 0; none: equal. band: cells of band x band pixels are
    averaged (the orthonormal Haar transform's approximation where band is a power of 2); shapes without two axes in space that it
    divides are blended whole. The mean is scaled to its parents' norms: with independent parents that gives each number the
    variance 1, and with parents that have ancestors in common the norm does not grow from generation to generation.
    """

    name: ClassVar[str] = "blend"
    of: tuple[int, ...]
    key: Key
    share: float
    band: int
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.of or len(set(self.of)) < len(self.of):
            raise ConfigError(f"blend: of must name one or more earlier outcomes, each once; got {self.of!r}.")
        if self.weights and (len(self.weights) != len(self.of) or not all(0 < w < math.inf for w in self.weights)):
            raise ConfigError(f"blend: weights must be numbers above 0, one for each parent; got {self.weights!r}.")
        if not 0 <= self.share <= 1:
            raise ConfigError(f"blend: share must be from 0 to 1; got {self.share!r}.")
        if self.band < 1:
            raise ConfigError(f"blend: band must be a number of pixels, at least 1; got {self.band!r}.")

    @property
    def parents(self) -> tuple[int, ...]:
        return self.of

    def begun(self, source: Source, parents: Sequence[State]) -> State:
        own = source.start(self.key)
        weights = self.weights or (1.0,) * len(parents)
        return replace(own, x=source.blended([p.x for p in parents], weights, own.x, self.share, self.band))

    def describe(self) -> str:
        return f"blend of {', '.join(map(str, self.of))}, {self.share:.3g} fresh"


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
