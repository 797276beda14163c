"""SiT and DiT: the class-conditional transformer of 2401.08740 and 2212.09748, with the official state dict's names.

Written from the mathematics and from the names and shapes of the released tensors, so that official weights load
unchanged. Shapes: N rows, C channels, H = W = side, T tokens, W width, p patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from secondlook.errors import ConfigError, ShapeError, nearest
from secondlook.flow.path import Kind
from secondlook.models.layers import modulate

# name: (depth, width, heads), 2401.08740, table 9
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
PATCHES = (2, 4, 8)
NAMES = tuple(f"SiT-{size}/{patch}" for size in SIZES for patch in PATCHES)


@dataclass(frozen=True)
class SiTConfig:
    """Sizes of a SiT. ``side`` is the sample's height and width in flow space (latent cells, or pixels), ``heads``
    attention heads. ``variance`` gives the head C more channels (DiT's learned variance; in SiT's released weights
    they are dead weight). ``null`` adds the label that guidance's second pass is given, index ``classes``.
    ``reversed_time`` is for weights whose time 0 is data (REPA): they are shown 1 - t and their velocity changes sign.
    ``time_scale`` multiplies t before its features: 1 in SiT. ``qk_norm`` normalises queries and keys (REPA's option).
    """

    side: int = 32
    patch: int = 2
    channels: int = 4
    width: int = 1152
    depth: int = 28
    heads: int = 16
    ratio: float = 4.0
    classes: int = 1000
    variance: bool = False
    null: bool = True
    qk_norm: bool = False
    predicts: Kind = "velocity"
    path: str = "linear"
    reversed_time: bool = False
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.patch < 1 or self.side % self.patch:
            raise ConfigError(f"A side of {self.side} cannot be cut into patches of {self.patch}; choose a divisor.")
        if self.width % self.heads or self.width % 4:
            raise ConfigError(f"A width must divide by its heads and by 4; got {self.width} and {self.heads} heads.")

    @staticmethod
    def named(name: str, side: int = 32, **more: Any) -> SiTConfig:
        """The configuration of one of NAMES (or its DiT twin) for a side in flow space: 32 at 256 px, 64 at 512 px."""
        if name.replace("DiT", "SiT") not in NAMES:
            raise ConfigError(f'There is no model size "{name}"; {nearest(name, NAMES)}')
        size, patch = name.split("-")[1].split("/")
        depth, width, heads = SIZES[size]
        return SiTConfig(side=side, patch=int(patch), width=width, depth=depth, heads=heads, **more)


@dataclass(frozen=True)
class Labels:
    """Classes as the network reads them: index int64 [N]; the null class is the number of classes."""

    index: Tensor

    def rows(self, index: Sequence[int]) -> Labels:
        return Labels(self.index[torch.as_tensor(list(index), dtype=torch.long, device=self.index.device)])

    @staticmethod
    def stack(items: Sequence[Labels]) -> Labels:
        return Labels(torch.cat([i.index for i in items]))


def position_table(side: int, width: int) -> Tensor:
    """[1, side * side, width]: for a token at (row, column) the first half of the channels encodes the column, the
    second the row, each as [sin(p w_i) | cos(p w_i)] with w_i = 10000^(-i / (width / 4))."""
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * rates
    axis = torch.cat([angle.sin(), angle.cos()], 1)
    rows, columns = axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)
    return torch.cat([columns, rows], -1).reshape(1, side * side, width).float()


class PatchEmbed(nn.Module):
    """[N, C, H, W] to tokens [N, T, W], row-major."""

    def __init__(self, channels: int, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimeEmbed(nn.Module):
    """t [N] to [N, W] by 256 features, [cos | sin] of t exp(-ln(10000) i / 128). SiT feeds t in [0, 1] as it is, so
    most features are near-constant; released weights depend on it."""

    def __init__(self, width: int, features: int = 256):
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = self.features // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angle = t.float()[:, None] * rates
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], 1).to(first.weight.dtype))


class LabelEmbed(nn.Module):
    """One row a class, and the null class last."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)

    def forward(self, index: Tensor) -> Tensor:
        return self.embedding_table(index)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.q_norm(q).to(v), self.k_norm(k).to(v), v)
        return self.proj(y.transpose(1, 2).reshape(n, tokens, width))


class MLP(nn.Module):
    """Two linear maps with a tanh-approximated GELU between."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def _modulation(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, count * width))


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (adaLN-Zero, 2212.09748, sec. 3.2)."""

    def __init__(self, c: SiTConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(c.width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(c.width, c.heads, c.qk_norm)
        self.norm2 = nn.LayerNorm(c.width, eps=1e-6, elementwise_affine=False)
        self.mlp = MLP(c.width, int(c.width * c.ratio))
        self.adaLN_modulation = _modulation(c.width, 6)

    def forward(self, x: Tensor, mood: Tensor) -> Tensor:
        """x [N, T, W], mood [N, W]."""
        shift, scale, gate, shift2, scale2, gate2 = self.adaLN_modulation(mood).unsqueeze(1).chunk(6, -1)
        x = x + gate * self.attn(modulate(self.norm1(x), shift, scale))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Tokens to patches: each token's vector is ordered row, column, channel, the channel fastest."""

    def __init__(self, c: SiTConfig, out: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(c.width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(c.width, c.patch**2 * out)
        self.adaLN_modulation = _modulation(c.width, 2)

    def forward(self, x: Tensor, mood: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(mood).unsqueeze(1).chunk(2, -1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class SiT(nn.Module):
    """(x [N, C, H, W], t [N], Labels of N) -> prediction [N, C, H, W]; t = 1 is data, as everywhere in this project.

    ``checkpointing`` recomputes each block in the backward pass, for memory. Labels are dropped for guidance by the
    training loop, not here, so that what a step does depends on its key alone.
    """

    def __init__(self, config: SiTConfig):
        super().__init__()
        c = self.config = config
        self.predicts: Kind = c.predicts
        self.shape = (c.channels, c.side, c.side)
        self.checkpointing = False
        self.out = c.channels * (2 if c.variance else 1)
        self.x_embedder = PatchEmbed(c.channels, c.width, c.patch)
        self.t_embedder = TimeEmbed(c.width)
        self.y_embedder = LabelEmbed(c.classes + int(c.null), c.width)
        self.register_buffer("pos_embed", position_table(c.side // c.patch, c.width))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.final_layer = FinalLayer(c, self.out)
        self._initialize()

    def _initialize(self) -> None:
        """Xavier everywhere, small embeddings, and zeros where the condition enters: at first the output is 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        kernel = self.x_embedder.proj.weight
        nn.init.xavier_uniform_(kernel.data.view(kernel.shape[0], -1))
        nn.init.zeros_(self.x_embedder.proj.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for i in (0, 2):
            nn.init.normal_(self.t_embedder.mlp[i].weight, std=0.02)  # type: ignore[arg-type]
        for name, weight in self.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer.linear"):
                nn.init.zeros_(weight)

    def encode(self, labels: Sequence[int | None]) -> Labels:
        """Labels from class numbers; None is the null class."""
        c = self.config
        if not c.null and None in labels:
            raise ConfigError("This model was trained without a null class, so it cannot be guided; use guidance 1.")
        asked = [int(label) for label in labels if label is not None]
        if any(not 0 <= label < c.classes for label in asked):
            raise ConfigError(
                f"A class must be from 0 to {c.classes - 1}; got {min(asked) if min(asked) < 0 else max(asked)}."
            )
        index = [c.classes if label is None else int(label) for label in labels]
        return Labels(torch.tensor(index, dtype=torch.long, device=self.final_layer.linear.weight.device))

    def forward(self, x: Tensor, t: Tensor, cond: Labels) -> Tensor:
        """The prediction alone: where the head is wider, its first C channels."""
        return self.full(x, t, cond)[:, : self.config.channels]

    def full(self, x: Tensor, t: Tensor, cond: Labels) -> Tensor:
        """All channels of the head, [N, C or 2 C, H, W]."""
        c = self.config
        if x.shape[1:] != self.shape:
            raise ShapeError(f"This model expects x [N, {', '.join(map(str, self.shape))}]; got {list(x.shape)}.")
        time = (1 - t if c.reversed_time else t) * c.time_scale
        tokens = self.x_embedder(x) + self.pos_embed.to(x.dtype)
        mood = self.t_embedder(time) + self.y_embedder(cond.index)
        for block in self.blocks:
            if self.checkpointing and self.training:
                tokens = checkpoint(block, tokens, mood, use_reentrant=False)
            else:
                tokens = block(tokens, mood)
        out = self._unpatch(self.final_layer(tokens, mood))
        return -out if c.reversed_time and c.predicts == "velocity" else out

    def _unpatch(self, tokens: Tensor) -> Tensor:
        side, p = self.config.side // self.config.patch, self.config.patch
        x = tokens.view(-1, side, side, p, p, self.out)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.out, side * p, side * p)

    def describe(self) -> dict[str, Any]:
        return {"kind": "sit", **asdict(self.config)}
