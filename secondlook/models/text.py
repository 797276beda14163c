"""A text-to-image scalable interpolant transformer: SiT blocks (2401.08740) with cross-attention to the prompt's words.

Pixel space, square patches, fixed positions, one adaptive-layer-norm projection shared by all blocks plus a table of
each block's own (PixArt, 2310.00426, sec. 2.3), SANA's convolutional feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.errors import ConfigError, nearest
from secondlook.flow.path import Kind
from secondlook.models.layers import Attention, ConvFeedForward, FeedForward, modulate, position_table, time_features


@dataclass(frozen=True)
class TextSiTConfig:
    """Sizes of a TextSiT. ``words`` is the vocabulary; ``predicts`` is one of data, velocity, noise."""

    words: tuple[str, ...]
    predicts: Kind = "data"
    size: int = 64
    channels: int = 3
    patch: int = 8
    width: int = 128
    depth: int = 6
    heads: int = 4
    ratio: float = 2.0
    text_width: int = 96
    text_depth: int = 2
    text_length: int = 16
    bottleneck: int = 96


@dataclass(frozen=True)
class Encoded:
    """Prompts as the network reads them: words [N, L, C], mask bool [N, L], summary [N, C]."""

    words: Tensor
    mask: Tensor
    summary: Tensor

    def rows(self, index: Sequence[int]) -> Encoded:
        at = torch.as_tensor(list(index), dtype=torch.long).to(self.words.device)
        return Encoded(self.words[at], self.mask[at], self.summary[at])

    @staticmethod
    def stack(items: Sequence[Encoded]) -> Encoded:
        return Encoded(*(torch.cat([getattr(i, k) for i in items]) for k in ("words", "mask", "summary")))


class TextEncoder(nn.Module):
    """Word and place embeddings and a small transformer. Word 0 pads, word 1 opens every prompt (and is all of the
    null prompt, which guidance's second pass is given)."""

    def __init__(self, vocabulary: int, width: int, depth: int, length: int):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.attends = nn.ModuleList(Attention(width, 4) for _ in range(depth))
        self.feeds = nn.ModuleList(FeedForward(width, 3.0) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embed.weight, std=0.5)

    def forward(self, ids: Tensor) -> Encoded:
        mask = ids != 0
        x = self.embed(ids) + self.place
        for i, (attend, feed) in enumerate(zip(self.attends, self.feeds, strict=True)):
            y = self.norms[2 * i](x)
            x = x + attend(y, y, mask)
            x = x + feed(self.norms[2 * i + 1](x))
        x = self.norm(x)
        return Encoded(x, mask, x[:, 0])


class Block(nn.Module):
    """Self-attention, cross-attention to the words, feed-forward; modulated and gated by time and summary."""

    def __init__(self, c: TextSiTConfig):
        super().__init__()
        self.norm = nn.LayerNorm(c.width, eps=1e-6, elementwise_affine=False)
        self.attend = Attention(c.width, c.heads)
        self.read = Attention(c.width, c.heads, c.text_width)
        self.feed = ConvFeedForward(c.width, c.ratio, c.size // c.patch)
        self.table = nn.Parameter(torch.randn(6, c.width) / c.width**0.5)
        nn.init.zeros_(self.read.out.weight)

    def forward(self, x: Tensor, modulation: Tensor, text: Encoded) -> Tensor:
        """x [N, T, W], modulation [N, 6, W]."""
        a, b, g, a2, b2, g2 = (modulation + self.table).unsqueeze(2).unbind(1)
        x = x + g * self.attend(modulate(self.norm(x), a, b))
        x = x + self.read(self.norm(x), text.words, text.mask)
        return x + g2 * self.feed(modulate(self.norm(x), a2, b2))


class TextSiT(nn.Module):
    """(x [N, C, H, W], t [N], Encoded of N) -> prediction [N, C, H, W]."""

    def __init__(self, config: TextSiTConfig):
        super().__init__()
        c = self.config = config
        self.predicts: Kind = c.predicts
        self.shape = (c.channels, c.size, c.size)
        self.ids = {word: i + 2 for i, word in enumerate(c.words)}
        side, values = c.size // c.patch, c.channels * c.patch**2
        self.text = TextEncoder(len(c.words) + 2, c.text_width, c.text_depth, c.text_length + 1)
        self.patch_in = nn.Sequential(nn.Linear(values, c.bottleneck, bias=False), nn.Linear(c.bottleneck, c.width))
        self.register_buffer("positions", position_table(side, c.width), persistent=False)
        self.time = nn.Sequential(nn.Linear(128, c.width), nn.SiLU(), nn.Linear(c.width, c.width))
        self.summary = nn.Linear(c.text_width, c.width)
        self.modulation = nn.Linear(c.width, 6 * c.width)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.width, eps=1e-6, elementwise_affine=False)
        self.final_modulation = nn.Linear(c.width, 2 * c.width)
        self.patch_out = nn.Linear(c.width, values)
        for layer in (self.final_modulation, self.patch_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def tokenize(self, prompts: Sequence[str | None]) -> Tensor:
        """int64 [N, L + 1]; None is the null prompt. ConfigError for words that the model has not learnt, or too many."""
        ids = torch.zeros(len(prompts), self.config.text_length + 1, dtype=torch.long)
        for row, prompt in zip(ids, prompts, strict=True):
            said = [] if prompt is None else prompt.split()
            other = [w for w in said if w not in self.ids]
            if other:
                raise ConfigError(f'This model has not learnt the word "{other[0]}"; {nearest(other[0], self.ids)}')
            if len(said) > self.config.text_length:
                raise ConfigError(f'This model reads {self.config.text_length} words; "{prompt}" has {len(said)}.')
            words = [1, *(self.ids[w] for w in said)]
            row[: len(words)] = torch.tensor(words)
        return ids

    def encode(self, prompts: Sequence[str | None]) -> Encoded:
        return self.text(self.tokenize(prompts).to(self.text.place.device))

    def patches(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, T, C p p], row-major."""
        c, p = self.config, self.config.patch
        side = c.size // p
        return x.view(len(x), c.channels, side, p, side, p).permute(0, 2, 4, 1, 3, 5).reshape(len(x), side * side, -1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Encoded,
        added: Tensor | None = None,
        before: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """added: put on the tokens at first, [N, T, W]. before: what each block (by number) is given in place of the tokens."""
        c = self.config
        side, p = c.size // c.patch, c.patch
        n = x.shape[0]
        h = self.patch_in(self.patches(x)) + self.positions
        h = h if added is None else h + added
        mood = nn.functional.silu(self.time(time_features(t, 128)) + self.summary(text.summary))
        modulation = self.modulation(mood).view(n, 6, c.width)
        for i, block in enumerate(self.blocks):
            h = block(h if before is None else before(i, h), modulation, text)
        shift, scale = self.final_modulation(mood).unsqueeze(1).chunk(2, -1)
        out = self.patch_out(modulate(self.norm(h), shift, scale))
        out = out.view(n, side, side, c.channels, p, p).permute(0, 3, 1, 4, 2, 5)
        return out.reshape(n, c.channels, c.size, c.size)

    def describe(self) -> dict[str, Any]:
        return {"kind": "text-sit", **asdict(self.config)}
