"""Two small networks that read a Scenes picture and a prompt: unlike each other, so that one can judge what the other
guided.

``Tokens`` turns the picture into 8 x 8 tokens with places and lets the prompt's words attend to them. ``Film`` is a
convolutional network whose last blocks the prompt modulates (FiLM, 1709.07871). Shapes: P pictures, K prompts for each,
L words, W width. Both return a ``Reading``: verify/learned.py makes a score of its ``match`` and ``cells``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondlook.errors import ConfigError, nearest
from secondlook.models.eyes import SIDE, Eyes, Residual
from secondlook.models.layers import Attention, FeedForward
from secondlook.models.text import TextEncoder

CELL_SHAPES = 6  # nothing, the four shapes, an object that is none of them
CELL_COLORS = 9  # the eight colours, none of them
CELL_VALUES = CELL_SHAPES + CELL_COLORS + 2  # and the object's place in its cell


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of a verifier network. ``depth`` counts blocks that see the picture alone, ``read`` those that read both. rules: whether
    its score also asks whether the objects that it names obey the prompt, by the world's rules (verify/learned.py)."""

    kind: str
    words: tuple[str, ...]
    stem: int = 48
    width: int = 96
    depth: int = 2
    read: int = 3
    heads: int = 4
    text_length: int = 16
    rules: bool = True


@dataclass(frozen=True)
class Reading:
    """Logits. match [P, K]: the picture is what the prompt asks for. words [P, K, L + 1]: the fact stated by that word
    holds. cells [P, 64, 17]: what stands in each cell. spoiled [P]: something in the picture is no object."""

    match: Tensor
    words: Tensor
    cells: Tensor
    spoiled: Tensor


def tokenize(words: Sequence[str], length: int, prompts: Sequence[str]) -> Tensor:
    """int64 [N, length + 1]: 0 pads, 1 opens. ConfigError for a word outside the vocabulary or a prompt too long."""
    known = {word: i + 2 for i, word in enumerate(words)}
    ids = torch.zeros(len(prompts), length + 1, dtype=torch.long)
    for row, prompt in zip(ids, prompts, strict=True):
        said = prompt.split()
        for word in said:
            if word not in known:
                raise ConfigError(f'The verifier does not know the word "{word}"; {nearest(word, known)}')
        if len(said) > length:
            raise ConfigError(f'The verifier reads prompts of at most {length} words; "{prompt}" has {len(said)}.')
        row[: len(said) + 1] = torch.tensor([1, *(known[w] for w in said)])
    return ids


class _Cells(nn.Module):
    """What the picture holds, from its cells [P, 64, W]: auxiliary targets that teach the stem what to look for."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.cell_head = nn.Linear(width, CELL_VALUES)
        self.spoiled_head = nn.Linear(2 * width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(x)
        pooled = torch.cat([x.mean(1), x.amax(1)], -1)
        return self.cell_head(x), self.spoiled_head(pooled).squeeze(-1)


class Tokens(Eyes):
    """Convolutional stem, transformer over 64 picture tokens, then words that attend to each other and to the tokens."""

    def __init__(self, config: NetworkConfig):
        c = config
        super().__init__(c.stem, c.width, c.depth, c.heads)
        self.config = config
        self.cells = _Cells(c.width)
        self.text = TextEncoder(len(c.words) + 2, c.width, 1, c.text_length + 1)
        self.read_norms = nn.ModuleList(nn.LayerNorm(c.width) for _ in range(3 * c.read))
        self.reads = nn.ModuleList(Attention(c.width, c.heads, c.width) for _ in range(c.read))
        self.talks = nn.ModuleList(Attention(c.width, c.heads) for _ in range(c.read))
        self.read_feeds = nn.ModuleList(FeedForward(c.width, 2.0) for _ in range(c.read))
        self.norm = nn.LayerNorm(c.width)
        self.word_head = nn.Linear(c.width, 1)
        self.match_head = nn.Sequential(nn.Linear(c.width, c.width), nn.SiLU(), nn.Linear(c.width, 1))

    def read(self, pictures: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids int64 [P, K, L + 1] to the picture's tokens [P, 64, W] and the words that have read them [P, K, L + 1, W]."""
        p, k, length = ids.shape
        seen = self.see(pictures)
        text = self.text(ids.flatten(0, 1))
        x = text.words
        places = seen + self.positions
        for i, (read, talk, feed) in enumerate(zip(self.reads, self.talks, self.read_feeds, strict=True)):
            # All prompts of a picture read its tokens in one call: a query does not see its neighbours.
            x = x + read(self.read_norms[3 * i](x).view(p, k * length, -1), places).view_as(x)
            y = self.read_norms[3 * i + 1](x)
            x = x + talk(y, y, text.mask)
            x = x + feed(self.read_norms[3 * i + 2](x))
        return seen, self.norm(x).view(p, k, length, -1)

    def answer(self, seen: Tensor, x: Tensor) -> Reading:
        """What the heads make of ``read``."""
        cells, spoiled = self.cells(seen)
        return Reading(self.match_head(x[:, :, 0]).squeeze(-1), self.word_head(x).squeeze(-1), cells, spoiled)

    def forward(self, pictures: Tensor, ids: Tensor) -> Reading:
        """ids int64 [P, K, L + 1]."""
        return self.answer(*self.read(pictures, ids))


class _Modulated(nn.Module):
    """A residual block whose normalised channels the prompt scales and shifts (1709.07871, fig. 3)."""

    def __init__(self, width: int, text_width: int):
        super().__init__()
        self.mix = nn.Conv2d(width + 2, width, 1)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(8, width, affine=False)
        self.film = nn.Linear(text_width, 2 * width)

    def forward(self, x: Tensor, text: Tensor, places: Tensor) -> Tensor:
        """x [N, W, 8, 8], text [N, T], places [2, 8, 8]."""
        x = F.silu(self.mix(torch.cat([x, places.expand(len(x), -1, -1, -1).to(x)], 1)))
        scale, shift = self.film(text)[..., None, None].chunk(2, 1)
        return x + F.silu(self.norm(self.conv(x)) * (1 + scale) + shift)


class Film(nn.Module):
    """A convolutional network with coordinate channels, modulated by a two-way GRU over the prompt."""

    places: Tensor

    def __init__(self, config: NetworkConfig):
        super().__init__()
        c = self.config = config
        half, hidden = c.stem // 2, c.width
        self.stem = nn.Sequential(
            nn.Conv2d(3, half, 5, 2, 2), nn.SiLU(), nn.Conv2d(half, c.stem, 3, 1, 1), nn.SiLU(),
            nn.Conv2d(c.stem, c.stem, 3, 2, 1), nn.SiLU(), nn.Conv2d(c.stem, c.width, 3, 2, 1),
            *(Residual(c.width) for _ in range(c.depth)),
        )  # fmt: skip
        axis = (torch.arange(SIDE) + 0.5) / (SIDE / 2) - 1
        self.register_buffer("places", torch.stack(torch.meshgrid(axis, axis, indexing="xy")), persistent=False)
        self.cells = _Cells(c.width)
        self.embed = nn.Embedding(len(c.words) + 2, 64)
        self.gru = nn.GRU(64, hidden, batch_first=True, bidirectional=True)
        self.blocks = nn.ModuleList(_Modulated(c.width, 2 * hidden) for _ in range(c.read))
        self.widen = nn.Conv2d(c.width + 2, 128, 1)
        self.summary = nn.Sequential(nn.Linear(256 + 2 * hidden, 192), nn.SiLU())
        self.match_head = nn.Sequential(nn.Linear(192, 96), nn.SiLU(), nn.Linear(96, 1))
        self.word_in = nn.Linear(2 * hidden, 192)
        self.word_head = nn.Sequential(nn.SiLU(), nn.Linear(192, 1))

    def forward(self, pictures: Tensor, ids: Tensor) -> Reading:
        """pictures float [P, 3, 64, 64] in [-1, 1], ids int64 [P, K, L + 1]."""
        p, k, length = ids.shape
        seen = self.stem(pictures)
        cells, spoiled = self.cells(seen.flatten(2).transpose(1, 2))
        said = self.embed(ids.flatten(0, 1))
        # Elsewhere than on the CPU in float32: cuDNN's recurrent layers know one kind of 16 bits under autocast, float16.
        with nullcontext() if said.device.type == "cpu" else torch.autocast(said.device.type, enabled=False):
            words, _ = self.gru(said)
        ends = (ids.flatten(0, 1) != 0).sum(1) - 1
        ahead, back = words.chunk(2, -1)
        text = torch.cat([ahead[torch.arange(p * k, device=ends.device), ends], back[:, 0]], -1)
        x = seen.repeat_interleave(k, 0)
        for block in self.blocks:
            x = block(x, text, self.places)
        x = F.silu(self.widen(torch.cat([x, self.places.expand(p * k, -1, -1, -1).to(x)], 1)))
        summary = self.summary(torch.cat([x.mean((2, 3)), x.amax((2, 3)), text], -1))
        facts = self.word_head(self.word_in(words) + summary[:, None])
        return Reading(self.match_head(summary).view(p, k), facts.view(p, k, length), cells, spoiled)


KINDS: dict[str, type[Tokens] | type[Film]] = {"tokens": Tokens, "film": Film}


def build(config: NetworkConfig) -> Tokens | Film:
    """A fresh network; ConfigError for a kind that does not exist."""
    if config.kind not in KINDS:
        raise ConfigError(f'There is no verifier network "{config.kind}"; {nearest(config.kind, KINDS)}')
    return KINDS[config.kind](config)
