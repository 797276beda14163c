"""Training of class-conditional transformers: SiT on any path and target, DiT on its discrete steps.

The paper's recipe (2401.08740, app. D; facts as the released code has them) is the default: AdamW at 1e-4 without decay
or warm-up, batch 256, EMA 0.9999, labels dropped with probability 0.1, times uniform on the path's interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any, Protocol

import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow import Flow, Weight
from secondlook.interval import Interval, interval
from secondlook.models.sit import Labels, SiT, SiTConfig
from secondlook.path import PATHS
from secondlook.train.loop import TrainConfig, Trainer


class Data(Protocol):
    """A source of labelled samples in flow space."""

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
        if not 0 <= self.dropout <= 1:
            raise ConfigError(f"A share of dropped labels lies in 0 to 1; got {self.dropout}.")


def trainer(
    folder: Folder, config: TrainConfig, sit: SiTConfig, data: Data, recipe: Recipe = Recipe(), **more: Any
) -> Trainer:
    """A trainer of a SiT, resuming what ``folder`` holds."""
    torch.manual_seed(config.seed)
    module = SiT(sit)
    path = PATHS[sit.path]()
    span = interval(sit.path, sit.predicts, "train", preset=recipe.preset, eps=recipe.eps)

    def loss(forward: Callable[..., Tensor], step: int, generator: torch.Generator) -> Tensor:
        x, index = data.batch(config.seed, step, config.batch)
        if sit.null:
            dropped = torch.rand(len(index), generator=generator) < recipe.dropout
            index = torch.where(dropped, torch.full_like(index, sit.classes), index)
        t = recipe.times(len(x), span, generator)
        noise = torch.randn(x.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            flow = Flow(Named(forward, module), path)
            return flow.loss(x, noise, t, Labels(index), recipe.weight, recipe.floor).mean()

    return Trainer(module, loss, config, folder, **more)


class Named:
    """A (perhaps compiled or wrapped) forward pass under the names a flow reads."""

    def __init__(self, forward: Callable[..., Tensor], module: SiT):
        self.forward, self.predicts, self.shape = forward, module.predicts, module.shape

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.forward(x, t, cond)
