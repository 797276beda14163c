"""Training of class-conditional transformers: SiT on any path and target.

The paper's recipe (2401.08740, app. D; facts as the released code has them) is ``TrainConfig.paper`` with ``Recipe()``:
labels dropped with probability 0.1, times uniform on the path's interval, no weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path as Folder
from typing import Any, Protocol

import torch
from torch import Tensor

from secondlook.errors import ConfigError, nearest
from secondlook.flow.estimate import WEIGHTS, Flow, Weight, loss_weight
from secondlook.flow.interval import Interval, interval
from secondlook.flow.path import PATHS
from secondlook.models.sit import Labels, SiT, SiTConfig
from secondlook.train.loop import ByRows, Rows, TrainConfig, Trainer, keyed

# Of data prediction: its velocity's error is its own over sigma^2, without bound near data. Flow.loss has the same.
FLOOR = 0.05


class Data(Protocol):
    """A source of labelled samples in flow space.

    One whose rows cost much may also have ``part(seed, step, count, rows)``, the slice ``rows`` of the same batch: of
    several processes each then makes its own rows only.
    """

    def batch(self, seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
        """x float32 [count, *S] and labels int64 [count]: a function of its arguments alone, so that training resumes
        with the same data in the same order."""
        ...


@dataclass(frozen=True)
class Times:
    """Training times on an interval: uniform (the paper), or logit-normal (SD3, 2403.03206, sec. 3.1): the logistic of
    N(mean, std^2) on an axis where 1 is data, scaled to the interval."""

    kind: str = "uniform"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "logit_normal"):
            raise ConfigError(f'Times are "uniform" or "logit_normal"; got {self.kind!r}.')
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ConfigError(f"Logit-normal times want a finite mean and std above 0; got {self.mean} and {self.std}.")

    def __call__(self, count: int, span: Interval, generator: torch.Generator) -> Tensor:
        """[count] float32."""
        if self.kind == "uniform":
            u = torch.rand(count, generator=generator)
        else:
            u = torch.sigmoid(self.mean + self.std * torch.randn(count, generator=generator))
        return span.start + u * (span.end - span.start)


@dataclass(frozen=True)
class Recipe:
    """What is learnt: the loss's weight ("none", "velocity", "likelihood"), the times, the share of labels dropped, the
    preset of time intervals and its eps, and the least sigma that a loss divides by."""

    weight: Weight = "none"
    times: Times = Times()
    dropout: float = 0.1
    preset: str = "paper"
    eps: float | None = None
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.weight not in WEIGHTS:
            raise ConfigError(f'There is no loss weight "{self.weight}"; {nearest(self.weight, WEIGHTS)}')
        if not 0 <= self.dropout <= 1:
            raise ConfigError(f"A share of dropped labels lies in 0 to 1; got {self.dropout}.")


@dataclass(frozen=True)
class Objective:
    """The loss of one network's sizes and one recipe, by row."""

    sit: SiTConfig
    recipe: Recipe
    bf16: bool = False

    @property
    def span(self) -> Interval:
        return interval(self.sit.path, self.sit.predicts, "train", preset=self.recipe.preset, eps=self.recipe.eps)

    def rows(self, forward: Callable[..., Tensor], x: Tensor, index: Tensor, t: Tensor, noise: Tensor) -> Rows:
        """For x and noise [B, *S], labels index [B] and times t [B]: the weighted loss and the velocity's error, [B]."""
        path, kind, recipe = PATHS[self.sit.path](), self.sit.predicts, self.recipe
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            error = Flow(Named(forward, self.sit), path).loss(x, noise, t, Labels(index), "none")
        floor = recipe.floor or (FLOOR if kind == "data" else 0.0)
        velocity = error.detach() * loss_weight(path, kind, "velocity", t, floor).to(error)
        return Rows(error * loss_weight(path, kind, recipe.weight, t, recipe.floor).to(error), t, velocity)

    def validation(
        self, x: Tensor, labels: Tensor, seed: int = 0, part: int = 256
    ) -> Callable[[Any], Mapping[str, float]]:
        """The mean loss of a network on held-out x [N, *S] and labels [N], at times and with noise drawn once by ``seed``:
        a function of the network for ``Looks``, giving ``validation_loss`` and ``validation_velocity``."""
        generator = keyed(seed, 0)
        t = self.recipe.times(len(x), self.span, generator)
        noise = torch.randn(x.shape, generator=generator)

        def count(network: Any) -> Mapping[str, float]:
            device = next(network.parameters()).device
            total = torch.zeros(2, dtype=torch.float64)
            for at in range(0, len(x), part):
                found = self.rows(network, *(v[at : at + part].to(device) for v in (x, labels, t, noise)))
                assert found.velocity is not None
                total += torch.stack([found.loss, found.velocity]).double().sum(1).cpu()
            loss, velocity = (total / len(x)).tolist()
            return {"validation_loss": loss, "validation_velocity": velocity}

        return count


def trainer(
    folder: Folder, config: TrainConfig, sit: SiTConfig, data: Data, recipe: Recipe = Recipe(), **more: Any
) -> Trainer:
    """A trainer of a SiT, resuming what ``folder`` holds. more: what ``Trainer`` takes, such as ``looks``."""
    torch.manual_seed(config.seed)
    module = SiT(sit)
    objective = Objective(sit, recipe, config.bf16)
    span = objective.span

    def draw(step: int, generator: torch.Generator, rows: slice) -> tuple[Tensor, ...]:
        x, index = local_rows(data, config.seed, step, config.batch, rows)
        if sit.null:
            dropped = (torch.rand(config.batch, generator=generator) < recipe.dropout)[rows]
            index = torch.where(dropped, torch.full_like(index, sit.classes), index)
        t = recipe.times(config.batch, span, generator)[rows]
        noise = torch.randn(config.batch, *x.shape[1:], generator=generator)[rows]
        return x, index, t, noise

    about = {"model": asdict(sit), "recipe": asdict(recipe), "data": named(data)}
    return Trainer(module, ByRows(draw, objective.rows), config, folder, about=about, **more)


def named(data: Any) -> str:
    """What a training remembers of its data, so as not to go on with others: a name, or a kind, how many and a digest."""
    count = f" of {len(data)}" if hasattr(data, "__len__") else ""
    digest = f", {data.digest}" if hasattr(data, "digest") else ""
    return str(getattr(data, "name", type(data).__name__ + count + digest))


def local_rows(data: Data, seed: int, step: int, count: int, rows: slice) -> tuple[Tensor, Tensor]:
    """The rows of a step's batch, made alone where the data can."""
    part = getattr(data, "part", None)
    if part is not None:
        found: tuple[Tensor, Tensor] = part(seed, step, count, rows)
        return found
    x, labels = data.batch(seed, step, count)
    return x[rows], labels[rows]


class Named:
    """A (perhaps compiled or wrapped) forward pass under the names a flow reads."""

    def __init__(self, forward: Callable[..., Tensor], sit: SiTConfig):
        self.forward, self.predicts, self.shape = forward, sit.predicts, (sit.channels, sit.side, sit.side)

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.forward(x, t, cond)
