"""What a transformer is shown of its earlier tries: pairs of a picture's tokens and a remark's, read in one sequence.

Reflect-DiT's context encoder (2503.12271, sec. 3.2): separate projectors with RMS norm, blocks with rotary positions
modulated by the denoising time, an output norm whose gain begins at zero. Names are those of the released weights.

Different from the released code, on purpose: padding is masked in these blocks too, so that a row does not depend on the company
it is computed in, and every real token is attended to (``drop_last`` gives the released behaviour, which masks the last).
Shapes: N rows, K pairs, V tokens a picture, L tokens a remark, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondlook.models.layers import modulate


@dataclass(frozen=True)
class ContextConfig:
    """Sizes. image_width, text_width: of the tokens as they come. hidden: of the gated feed-forward. theta, factor, low, high,
    trained_length: Llama 3.1's rotary positions."""

    image_width: int
    text_width: int
    width: int
    heads: int
    depth: int = 2
    hidden: int | None = None
    theta: float = 5e5
    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    trained_length: int = 2048


class Projector(nn.Module):
    """Two linear maps with a tanh-approximated GELU between."""

    def __init__(self, given: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(given, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))


def rotary_rates(c: ContextConfig) -> Tensor:
    """[W / heads / 2] radians a place: slow rates are slowed further by ``factor``, those between in proportion."""
    half = c.width // c.heads // 2
    rates = c.theta ** (-torch.arange(half, dtype=torch.float32) / half)
    length = 2 * math.pi / rates
    mix = ((c.trained_length / length - c.low) / (c.high - c.low)).clamp(0, 1)
    return mix * rates + (1 - mix) * rates / c.factor


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """x [N, H, T, D] turned by angle [N, 1, T, D / 2]; the first half of D holds the cosines' parts."""
    a, b = x.chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class _Attention(nn.Module):
    """Self-attention without biases on queries, keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, mask: Tensor, angle: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        q, k = (rotate(y.float(), angle).to(v) for y in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return self.to_out[0](y.transpose(1, 2).flatten(2))


class _Gated(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Block(nn.Module):
    """Attention and feed-forward, shifted, scaled and gated by the time (adaLN-single: a table of the block's own is added)."""

    def __init__(self, c: ContextConfig):
        super().__init__()
        self.norm = nn.LayerNorm(c.width, eps=1e-6, elementwise_affine=False)
        self.attn1 = _Attention(c.width, c.heads)
        self.ff = _Gated(c.width, c.hidden or int(2.5 * c.width))
        self.scale_shift_table = nn.Parameter(torch.randn(6, c.width) / c.width**0.5)

    def forward(self, x: Tensor, mask: Tensor, angle: Tensor, modulation: Tensor) -> Tensor:
        """x [N, T, W], modulation [N, 6, W]."""
        a, b, g, a2, b2, g2 = (modulation + self.scale_shift_table).unsqueeze(2).unbind(1)
        x = x + g * self.attn1(modulate(self.norm(x), a, b), mask, angle)
        return x + g2 * self.ff(modulate(self.norm(x), a2, b2))


@dataclass(frozen=True)
class Tries:
    """Earlier tries as tokens: pictures [N, K, V, C], words [N, K, L, D], spoken bool [N, K, L] (True: a word), shown and said
    bool [N, K]: whether the pair's picture, and its remark, are there."""

    pictures: Tensor
    words: Tensor
    spoken: Tensor
    shown: Tensor
    said: Tensor


class ContextEncoder(nn.Module):
    """``Tries`` and the time's modulation [N, 6, W] to context tokens [N, T, W] with their mask bool [N, T].

    A row without tries gets the null context: ``null`` tokens that begin as zeros and go through the same blocks.
    """

    def __init__(self, config: ContextConfig, null: int = 1, drop_last: bool = False):
        super().__init__()
        c = self.config = config
        self.null, self.drop_last = null, drop_last
        self.clip_projection = Projector(c.image_width, c.width)
        self.clip_norm = nn.RMSNorm(c.width, eps=1e-5)
        self.reflection_text_projection = Projector(c.text_width, c.width)
        self.reflection_text_norm = nn.RMSNorm(c.width, eps=1e-5)
        self.reflection_transformer = nn.ModuleList(_Block(c) for _ in range(c.depth))
        self.reflection_norm = nn.RMSNorm(c.width, eps=1e-5)
        self.register_buffer("rates", rotary_rates(c), persistent=False)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.reflection_norm.weight)

    def forward(self, tries: Tries, modulation: Tensor) -> tuple[Tensor, Tensor]:
        pictures = self.clip_norm(self.clip_projection(tries.pictures).float())
        words = self.reflection_text_norm(self.reflection_text_projection(tries.words).float())
        n, _, seen, width = pictures.shape
        x = torch.cat([pictures, words], 2).flatten(1, 2)
        mask = torch.cat(
            [tries.shown[:, :, None].expand(-1, -1, seen), tries.spoken & tries.said[:, :, None]], 2
        ).flatten(1)
        x = torch.cat([x.new_zeros(n, self.null, width), x * mask[..., None]], 1)
        mask = torch.cat([~mask.any(1, keepdim=True).expand(-1, self.null), mask], 1)
        # Places are counted over real tokens, so that padding between pairs moves nothing.
        place = (mask.cumsum(1) - 1).clamp_min(0)
        angle = (place[..., None] * self.rates)[:, None]  # type: ignore[operator]
        for block in self.reflection_transformer:
            x = block(x, mask, angle, modulation)
        x = self.reflection_norm(x.float())
        return x, (mask & (place < place.amax(1, keepdim=True)) if self.drop_last else mask)
