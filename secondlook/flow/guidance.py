"""How a network is asked: plainly, with classifier-free guidance, or guided by a weaker network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow.path import Kind


class Network(Protocol):
    """(x [B, *S], t [B], condition) -> prediction [B, *S]. ``predicts`` names what; ``shape`` is S."""

    @property
    def predicts(self) -> Kind: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor: ...


class Guide(Protocol):
    """How a network is asked: ``passes`` network rows for each row of x, at most. A guide may have ``steady`` too: true
    where it is so many at every time, so that nobody need look at the times, which may be on a GPU."""

    @property
    def passes(self) -> int: ...

    def passes_at(self, t: float) -> int:
        """Network rows for a row of x at time ``t``."""
        ...

    def __call__(self, network: Network, x: Tensor, t: Tensor, cond: Any) -> Tensor: ...


def inside(interval: tuple[float, float] | None, t: Tensor) -> Tensor:
    """[B] bool: whether times lie in [low, high). In float32, the precision of rows' times, and only here: what is guided, what is
    charged and what is priced must be one decision."""
    if interval is None:
        return torch.ones_like(t, dtype=torch.bool)
    low, high = torch.tensor(interval, dtype=torch.float32, device=t.device)
    times = t.float()
    return (times >= low) & (times < high)


def _inside_at(interval: tuple[float, float] | None, t: float) -> bool:
    """The same for one time in Python."""
    return bool(inside(interval, torch.tensor([t], dtype=torch.float32)))


@dataclass(frozen=True)
class Null:
    """The unconditional encoding, one row, behind the wanted ones. A class, so that a flow pickles."""

    encoding: Any

    def join(self, cond: Any, rows: int) -> Any:
        """The condition with as many null rows behind it. An encoding that carries what guidance must not amplify (earlier
        tries) says itself what its null rows are."""
        none = cond.unasked(self.encoding) if hasattr(cond, "unasked") else self.null(rows)
        return type(cond).stack([cond, none])

    def null(self, rows: int) -> Any:
        return self.encoding.rows([0] * rows)


@dataclass(frozen=True)
class Plain:
    """The network's own prediction."""

    passes: int = 1

    def passes_at(self, t: float) -> int:
        return 1

    def __call__(self, network: Network, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return network(x, t, cond)


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (2207.12598): null + scale (conditional - null).

    ``join(cond, rows)`` returns the condition with as many null rows behind it, ``null(rows)`` null rows alone. channels:
    guide the first so many only, the others stay conditional, as in the released DiT and SiT code with three of four (None:
    all). interval: times [low, high) in which to guide (2404.07724, sec. 3); outside it the prediction is the network's own,
    and the null pass is not made.
    """

    scale: float
    join: Callable[[Any, int], Any]
    null: Callable[[int], Any] | None = None
    channels: int | None = None
    interval: tuple[float, float] | None = None
    passes: int = 2

    def __post_init__(self) -> None:
        if self.interval is not None and self.null is None:
            raise ConfigError("Guidance in an interval expects null(rows) as well as join.")

    def passes_at(self, t: float) -> int:
        return 2 if _inside_at(self.interval, t) else 1

    @property
    def steady(self) -> bool:
        return self.interval is None

    def __call__(self, network: Network, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        within = None if self.interval is None else inside(self.interval, t)
        if within is None or bool(within.all()):
            both = network(torch.cat([x, x]), torch.cat([t, t]), self.join(cond, len(x)))
            wanted, null = both.chunk(2)
            return self._mix(wanted, null)
        wanted = network(x, t, cond)
        if not bool(within.any()):
            return wanted
        # Of some rows only: two calls of one shape, since what a row gets must not depend on where its batch mates stand. An engine
        # steps rows that are guided apart from others, so that it makes the calls above.
        assert self.null is not None
        guided = self._mix(wanted, network(x, t, self.null(len(x))))
        return torch.where(within.view(-1, *(1,) * (x.ndim - 1)), guided, wanted)

    def _mix(self, wanted: Tensor, null: Tensor) -> Tensor:
        out = null + self.scale * (wanted - null)
        if self.channels is None:
            return out
        return torch.cat([out[:, : self.channels], wanted[:, self.channels :]], 1)


@dataclass(frozen=True)
class AutoGuidance:
    """Guidance by a weaker model of the same task (2406.02507, eq. 4): weak + scale (strong - weak), in an interval of
    times or in all. Both networks must predict the same kind."""

    scale: float
    weak: Network
    interval: tuple[float, float] | None = None
    passes: int = 2

    def passes_at(self, t: float) -> int:
        return 2 if _inside_at(self.interval, t) else 1

    @property
    def steady(self) -> bool:
        return self.interval is None

    def __call__(self, network: Network, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        if network.predicts != self.weak.predicts:
            raise ConfigError(
                f"Autoguidance expects two models of one prediction; got {network.predicts} and {self.weak.predicts}."
            )
        strong = network(x, t, cond)
        if self.interval is None:
            weak = self.weak(x, t, cond)
            return weak + self.scale * (strong - weak)
        within = inside(self.interval, t)
        if not bool(within.any()):
            return strong
        weak = self.weak(x, t, cond)
        return torch.where(within.view(-1, *(1,) * (x.ndim - 1)), weak + self.scale * (strong - weak), strong)
