"""Training of the Scenes base model: `secondlook train scenes`."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secondlook.flow.estimate import Flow
from secondlook.flow.path import Kind, Linear
from secondlook.models.text import TextSiT, TextSiTConfig
from secondlook.train.loop import TrainConfig, Trainer
from secondlook.worlds.scenes.grammar import WORDS
from secondlook.worlds.scenes.prompts import sample_training
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


def trainer(folder: Path, config: TrainConfig, predicts: Kind = "data") -> Trainer:
    """A trainer of the base model, resuming what ``folder`` holds."""
    torch.manual_seed(config.seed)
    module = TextSiT(TextSiTConfig(words=WORDS, predicts=predicts))

    def loss(forward: Callable[..., Tensor], step: int, generator: torch.Generator) -> Tensor:
        texts, data = batch(config.seed, step, config.batch)
        drop = torch.rand(len(texts), generator=generator) < DROPOUT
        asked = [None if d else text for text, d in zip(texts, drop.tolist(), strict=True)]
        t = torch.sigmoid(TIME_MEAN + TIME_STD * torch.randn(len(texts), generator=generator))
        noise = torch.randn(data.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            text = module.encode(asked)
            return Flow(_Named(forward, module), Linear()).loss(data, noise, t, text).mean()

    return Trainer(module, loss, config, folder)


class _Named:
    """A (perhaps compiled) forward pass under the names a flow reads."""

    def __init__(self, forward: Callable[..., Tensor], module: TextSiT):
        self.forward, self.predicts, self.shape = forward, module.predicts, module.shape

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.forward(x, t, cond)
