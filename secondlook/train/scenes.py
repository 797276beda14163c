"""Training of the Scenes base model: `secondlook train scenes`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow.estimate import Flow
from secondlook.flow.path import Kind, Linear
from secondlook.models.text import TextSiT, TextSiTConfig
from secondlook.train.loop import Rows, TrainConfig, Trainer
from secondlook.train.pool import make_pool, over
from secondlook.train.ranks import Place
from secondlook.verify.networks import tokenize
from secondlook.worlds.scenes.grammar import WORDS
from secondlook.worlds.scenes.prompts import sample_hard, sample_training
from secondlook.worlds.scenes.render import render, sample_scene

DROPOUT = 0.1
TIME_MEAN, TIME_STD = -1.2, 1.2


def batch(seed: int, step: int, count: int) -> tuple[list[str], Tensor]:
    """Prompts of the training mixture and their pictures, float32 [count, 3, 64, 64] in [-1, 1]; by seed and step."""
    rng = random.Random(f"scenes-{seed}-{step}")
    prompts = [sample_training(rng) for _ in range(count)]
    pictures = render([sample_scene(p, rng) for p in prompts])
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return [p.text for p in prompts], x.contiguous()


@dataclass(frozen=True)
class Renders:
    """A ``pool.Maker`` of pictures and their prompts, as the network's words. hard: the share of hard prompts among them."""

    hard: float = 0.0
    length: int = 16

    def __call__(self, seed: str, part: int, count: int) -> dict[str, np.ndarray]:
        rng = random.Random(f"renders-{seed}-{part}")
        prompts = [sample_hard(rng) if rng.random() < self.hard else sample_training(rng) for _ in range(count)]
        ids = tokenize(WORDS, self.length, [p.text for p in prompts])
        return {"picture": render([sample_scene(p, rng) for p in prompts]), "ids": ids.to(torch.int16).numpy()}


@dataclass(frozen=True)
class Build:
    """Sizes of the network (None: as in TextSiTConfig), and the pool it is trained from: how many renders (0: every step makes its
    own), the share of hard prompts among them, and how many processes make them."""

    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    pool: int = 0
    hard: float = 0.0
    workers: int = 1

    def network(self, predicts: Kind) -> TextSiT:
        """A fresh network; ConfigError for sizes that do not go together."""
        sizes = {k: v for k in ("width", "depth", "heads") if (v := getattr(self, k)) is not None}
        config = TextSiTConfig(words=WORDS, predicts=predicts, **sizes)
        if min(config.width, config.depth, config.heads) < 1 or config.width % 4 or config.width % config.heads:
            raise ConfigError(
                f"A network's width is a multiple of 4 and of its heads; got {config.width} and {config.heads} heads, depth {config.depth}."
            )
        return TextSiT(config)

    @property
    def about(self) -> dict[str, Any] | None:
        """What a resumed training must agree in, beside its configuration; None for the usual one."""
        other = {k: getattr(self, k) for k in ("width", "depth", "heads", "pool", "hard")}
        return {k: v for k, v in other.items() if v} or None


USUAL = Build()


def trainer(folder: Path, config: TrainConfig, predicts: Kind = "data", build: Build = USUAL) -> Trainer:
    """A trainer of the base model, resuming what ``folder`` holds."""
    torch.manual_seed(config.seed)
    module = build.network(predicts)
    if build.pool:
        return _pooled(folder, config, module, build)

    def loss(forward: Callable[..., Tensor], step: int, generator: torch.Generator) -> Tensor:
        texts, data = batch(config.seed, step, config.batch)
        drop = torch.rand(len(texts), generator=generator) < DROPOUT
        t = torch.sigmoid(TIME_MEAN + TIME_STD * torch.randn(len(texts), generator=generator))
        noise = torch.randn(data.shape, generator=generator)
        return item_loss(forward, module, data, module.tokenize(texts), drop, t, noise, config.bf16).mean()

    return Trainer(module, loss, config, folder, about=build.about)


def _pooled(folder: Path, config: TrainConfig, module: TextSiT, build: Build) -> Trainer:
    """The same training from a pool of renders, on any device: what is random in its loss is drawn there."""
    device = Place.find(config.device, shared=True).device
    maker = Renders(build.hard, module.config.text_length)
    pool = make_pool(maker, f"scenes-{config.seed}", build.pool, build.workers).to(device)

    def loss(forward: Callable[..., Tensor], items: dict[str, Tensor], generator: torch.Generator) -> Rows:
        data, n = (items["picture"].permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(), len(items["picture"])
        drop = torch.rand(n, generator=generator, device=device) < DROPOUT
        t = torch.sigmoid(TIME_MEAN + TIME_STD * torch.randn(n, generator=generator, device=device))
        noise = torch.randn(data.shape, generator=generator, device=device)
        return Rows(item_loss(forward, module, data, items["ids"].long(), drop, t, noise, config.bf16))

    return Trainer(module, over(pool, config.batch, loss), config, folder, about=build.about)


def item_loss(
    forward: Callable[..., Tensor], module: TextSiT, data: Tensor, ids: Tensor, drop: Tensor, t: Tensor, noise: Tensor, bf16: bool,
) -> Tensor:  # fmt: skip
    """[B]: the loss of pictures [B, 3, 64, 64] with prompts ids [B, L + 1], the null prompt where ``drop`` [B] says so."""
    null = torch.zeros_like(ids)
    null[:, 0] = 1
    ids = torch.where(drop[:, None], null, ids)
    with torch.autocast(data.device.type, torch.bfloat16, enabled=bf16):
        return Flow(_Named(forward, module), Linear()).loss(data, noise, t, module.text(ids))


class _Named:
    """A (perhaps compiled) forward pass under the names a flow reads."""

    def __init__(self, forward: Callable[..., Tensor], module: TextSiT):
        self.forward, self.predicts, self.shape = forward, module.predicts, module.shape

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.forward(x, t, cond)
