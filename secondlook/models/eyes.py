"""A picture of the Scenes world as 64 tokens that know their places: what verifiers, critics and reflecting models look with.
Shapes: B pictures, W width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from secondlook.models.layers import Attention, FeedForward, position_table

SIDE = 8  # cells along a side of the picture; a cell is 8 x 8 pixels


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.one = nn.Conv2d(width, width, 3, padding=1)
        self.two = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(F.silu(self.one(F.silu(self.norm(x)))))


class Eyes(nn.Module):
    """A convolutional stem, and a transformer over 64 picture tokens. ``stem`` is the width of the convolutions."""

    positions: Tensor

    def __init__(self, stem: int, width: int, depth: int = 2, heads: int = 4):
        super().__init__()
        half = stem // 2
        self.stem = nn.Sequential(
            nn.Conv2d(3, half, 4, 2, 1), nn.SiLU(), nn.Conv2d(half, stem, 4, 2, 1), Residual(stem), nn.SiLU(),
            nn.Conv2d(stem, width, 4, 2, 1),
        )  # fmt: skip
        self.register_buffer("positions", position_table(SIDE, width), persistent=False)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.attends = nn.ModuleList(Attention(width, heads) for _ in range(depth))
        self.feeds = nn.ModuleList(FeedForward(width, 3.0) for _ in range(depth))

    def see(self, pictures: Tensor) -> Tensor:
        """float [B, 3, 64, 64] in [-1, 1] to tokens [B, 64, W]; whoever reads them adds ``positions``."""
        x = self.stem(pictures).flatten(2).transpose(1, 2) + self.positions
        for i, (attend, feed) in enumerate(zip(self.attends, self.feeds, strict=True)):
            x = x + attend(self.norms[2 * i](x))
            x = x + feed(self.norms[2 * i + 1](x))
        return x
