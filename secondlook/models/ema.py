"""Exponential moving average of weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """A shadow of a module. Its decay is min(cap, (step + 1) / (step + 10)), so that early steps are forgotten soon, or,
    without ``ramp``, ``cap`` from the first step on, as in SiT's released code. Parameters are averaged; buffers, such
    as fixed tables, are copied."""

    def __init__(self, module: nn.Module, cap: float = 0.9995, ramp: bool = True):
        self.cap, self.ramp = cap, ramp
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.cap, (step + 1) / (step + 10)) if self.ramp else self.cap
        shadow: list[torch.Tensor] = list(self.module.parameters())
        torch._foreach_lerp_(shadow, [p.detach() for p in module.parameters()], 1 - decay)
        for kept, new in zip(self.module.buffers(), module.buffers(), strict=True):
            kept.copy_(new)
