"""Moves that begin from noise: new, or made of the starting noise of earlier outcomes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from secondlook.errors import ConfigError, DamagedError, nearest
from secondlook.moves.base import Move, Source
from secondlook.noise import Key

if TYPE_CHECKING:
    from secondlook.types import Proposal, State

THROUGH = ("sampler", "estimate")


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
        lineage, made = _lineage(self, source)
        uses = Counter(n for move in (*lineage.values(), self) for n in move.parents)

        def begun(move: NoiseMove) -> State:
            state = move.begun(source, [made[n] for n in move.parents])
            uses.subtract(move.parents)
            for n in move.parents:
                if not uses[n]:
                    del made[n]
            return state

        for number, move in lineage.items():
            made[number] = begun(move)
            if move.costly:
                source.keep(number, made[number])
        return begun(self)


def _lineage(move: NoiseMove, source: Source) -> tuple[dict[int, NoiseMove], dict[int, State]]:
    """The moves of all ancestors by their outcomes' numbers, in rising order: a parent is older than its child. And the states of
    those that are at hand, behind which nothing is looked for."""
    found: dict[int, NoiseMove] = {}
    known: dict[int, State] = {}
    todo = [(move, n) for n in move.parents]
    while todo:
        child, number = todo.pop()
        if number in found or number in known:
            continue
        proposal = source.proposal(number)
        child.check(proposal)
        assert isinstance(proposal.move, NoiseMove)
        if any(n >= number for n in proposal.move.parents):
            raise DamagedError(f"Outcome {number} is its own ancestor in this log; it was changed by other hands.")
        state = source.begun(number)
        if state is not None:
            known[number] = state
            continue
        found[number] = proposal.move
        todo += [(proposal.move, n) for n in proposal.move.parents]
    return dict(sorted(found.items())), known


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
class Climb(NoiseMove):
    """The parent's starting noise x turned by asin(rate) along the gradient of its score: |x| (sqrt(1 - rate^2) u + rate w), u the
    direction of x and w that of the gradient's part at right angles to it, so the norm is kept and ``rate`` is what ``Near`` calls
    radius (first-order search of 2501.09732; ReNO, 2406.04312, has a penalty on the norm instead).

    through: "sampler", all of the parent's way to its picture, from its noise under its key and condition; "estimate", the data
    estimate at the first time alone. On a path that begins with pure noise a perfect network's estimate there is the data's mean whatever
    the noise, so "estimate" is for models that are trained to jump. steps: of another grid for the way, 0 for the parent's. key:
    of the direction that is taken where there is no gradient (flat, or not finite).
    """

    name: ClassVar[str] = "climb"
    costly: ClassVar[bool] = True
    parent: int
    key: Key
    rate: float
    through: str = "sampler"
    steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate <= 1:
            raise ConfigError(f"climb: rate is the sine of an angle, above 0 and at most 1; got {self.rate!r}.")
        if self.through not in THROUGH:
            raise ConfigError(f'climb: through is "sampler" or "estimate"; {nearest(str(self.through), THROUGH)}')
        if not 0 <= self.steps <= 10_000:
            raise ConfigError(f"climb: steps must be from 0 (the parent's) to 10000; got {self.steps!r}.")

    def check(self, parent: Proposal | None) -> None:
        super().check(parent)
        if parent is not None and parent.condition.context:
            raise ConfigError(
                "climb expects a parent whose condition shows the network no earlier tries; this one's does."
            )

    def begun(self, source: Source, parents: Sequence[State]) -> State:
        [pivot] = parents
        x = source.climbed(pivot, self.parent, self.key, self.rate, self.through, self.steps)
        return replace(pivot, x=x)  # under the pivot's key, as a neighbour

    def describe(self) -> str:
        return f"{self.parent} uphill, rate {self.rate:.3g}"
