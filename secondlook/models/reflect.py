"""A text-to-image transformer that is shown its earlier tries, and what was said of them, and draws again.

Two forms. *context* (Reflect-DiT, 2503.12271): tokens of up to ``memory`` tries and remarks, read by every block beside the
prompt's words. *edit* (InstructPix2Pix's way in, 2211.09800, sec. 3.2): the last try's patches are added to the input's as
well, so that what is right can be kept pixel by pixel.

Each block reads the context in a softmax of its own, whose result is added. In a joint softmax, as in the released Reflect-DiT,
zero tokens still take their share of the attention from the words; here zero gain adds exactly nothing, so an untrained
model equals its base, while the gain has a gradient. Unlike there, too, every row has a context: the null one at a first draw, as
in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secondlook.errors import ConfigError, ShapeError
from secondlook.flow.path import Kind
from secondlook.models.context import ContextConfig, ContextEncoder, Tries
from secondlook.models.layers import Attention, FeedForward, position_table, time_features
from secondlook.models.text import Encoded, TextEncoder, TextSiT, TextSiTConfig


@dataclass(frozen=True)
class ReflectConfig:
    """base: the text-to-image network. remark_words, remark_length: the language of remarks. memory: tries in a context (K). edit:
    see above. side: a picture's tokens along one axis. eyes: width of the frozen encoder's tokens and its stem's. strength:
    whether guidance amplifies the context with the prompt ("both", as in the paper) or the prompt alone ("prompt")."""

    base: TextSiTConfig
    remark_words: tuple[str, ...]
    remark_length: int = 32
    memory: int = 3
    edit: bool = False
    side: int = 4
    depth: int = 2
    stem: int = 48
    eyes: int = 96
    amplify: str = "prompt"

    def __post_init__(self) -> None:
        if self.memory < 1:
            raise ConfigError(f"A reflecting model needs a memory of at least 1; got {self.memory}.")
        if self.amplify not in ("prompt", "both"):
            raise ConfigError(f'amplify is "prompt" or "both"; got {self.amplify!r}.')
        if 8 % self.side:
            raise ConfigError(f"A picture's side in tokens is 8, 4, 2 or 1; got {self.side}.")


@dataclass(frozen=True)
class Recalled:
    """A prompt and earlier tries as the network reads them. patches float [N, T, C p p]: the last try's pixels in [-1, 1], zeros
    where there is none."""

    text: Encoded
    tries: Tries
    patches: Tensor
    amplify: str = "prompt"

    def rows(self, index: Sequence[int]) -> Recalled:
        at = torch.as_tensor(list(index), dtype=torch.long, device=self.patches.device)
        text = Encoded(self.text.words[at], self.text.mask[at], self.text.summary[at])
        return Recalled(text, Tries(**{k: v[at] for k, v in vars(self.tries).items()}), self.patches[at], self.amplify)

    @staticmethod
    def stack(items: Sequence[Recalled]) -> Recalled:
        tries = Tries(**{k: torch.cat([getattr(i.tries, k) for i in items]) for k in vars(items[0].tries)})
        text = Encoded.stack([i.text for i in items])
        return Recalled(text, tries, torch.cat([i.patches for i in items]), items[0].amplify)

    def unasked(self, null: Recalled) -> Recalled:
        """What guidance's second pass is given: no prompt, and the tries unless guidance is to amplify them as well."""
        none = null.rows([0] * len(self.patches))
        return none if self.amplify == "both" else Recalled(none.text, self.tries, self.patches, self.amplify)


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.one = nn.Conv2d(width, width, 3, padding=1)
        self.two = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(nn.functional.silu(self.one(nn.functional.silu(self.norm(x)))))


class Eyes(nn.Module):
    """The frozen encoder of pictures: the verifier network's stem and transformer, under its names. uint8 or float pictures
    [B, 3, 64, 64] in [-1, 1] to tokens [B, 64, W], which know their places."""

    positions: Tensor

    def __init__(self, stem: int, width: int, depth: int = 2, heads: int = 4):
        super().__init__()
        half = stem // 2
        self.stem = nn.Sequential(
            nn.Conv2d(3, half, 4, 2, 1), nn.SiLU(), nn.Conv2d(half, stem, 4, 2, 1), Residual(stem), nn.SiLU(),
            nn.Conv2d(stem, width, 4, 2, 1),
        )  # fmt: skip
        self.register_buffer("positions", position_table(8, width), persistent=False)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.attends = nn.ModuleList(Attention(width, heads) for _ in range(depth))
        self.feeds = nn.ModuleList(FeedForward(width, 3.0) for _ in range(depth))

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.stem(pictures).flatten(2).transpose(1, 2) + self.positions
        for i, (attend, feed) in enumerate(zip(self.attends, self.feeds, strict=True)):
            x = x + attend(self.norms[2 * i](x))
            x = x + feed(self.norms[2 * i + 1](x))
        return x + self.positions


def pooled(tokens: Tensor, side: int) -> Tensor:
    """[B, 64, W] to [B, side * side, W], means of squares."""
    if side == 8:
        return tokens
    b, _, w = tokens.shape
    grid = tokens.transpose(1, 2).reshape(b, w, 8, 8)
    return nn.functional.avg_pool2d(grid, 8 // side).flatten(2).transpose(1, 2)


class ReflectSiT(nn.Module):
    """(x [N, C, H, W], t [N], Recalled of N) -> prediction [N, C, H, W]."""

    def __init__(self, config: ReflectConfig):
        super().__init__()
        c = self.config = config
        self.base = TextSiT(c.base)
        self.predicts: Kind = c.base.predicts
        self.shape = self.base.shape
        self.eyes = Eyes(c.stem, c.eyes).requires_grad_(False)
        self.remarks = TextEncoder(len(c.remark_words) + 2, c.eyes, 1, c.remark_length + 1)
        self.ids = {word: i + 2 for i, word in enumerate(c.remark_words)}
        self.context = ContextEncoder(ContextConfig(c.eyes, c.eyes, c.eyes, 4, c.depth))
        self.mood = nn.Sequential(nn.Linear(128, c.eyes), nn.SiLU(), nn.Linear(c.eyes, 6 * c.eyes))
        width = c.base.width
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.recalls = nn.ModuleList(Attention(width, c.base.heads, c.eyes) for _ in range(c.base.depth))
        for recall in self.recalls:
            nn.init.zeros_(recall.out.bias)  # type: ignore[union-attr,arg-type]
        values = c.base.channels * c.base.patch**2
        self.reference_embed = nn.Linear(values, width, bias=False) if c.edit else None
        if self.reference_embed is not None:
            nn.init.zeros_(self.reference_embed.weight)

    # ---- encoding ----------------------------------------------------------------------------------------------------

    def tokenize_remarks(self, remarks: Sequence[Sequence[str]]) -> Tensor:
        """Tokens of each remark to int64 [N, L + 1], 1 first, 0 behind. A word outside the language is passed over, and what is
        longer than the language's longest is cut: a critic may be anyone."""
        length = self.config.remark_length
        ids = torch.zeros(len(remarks), length + 1, dtype=torch.long)
        for row, words in zip(ids, remarks, strict=True):
            known = [1, *(self.ids[w] for w in words if w in self.ids)][: length + 1]
            row[: len(known)] = torch.tensor(known)
        return ids

    def patches(self, pictures: Tensor) -> Tensor:
        """[N, C, H, W] to [N, T, C p p], row-major."""
        b = self.config.base
        side, p = b.size // b.patch, b.patch
        cut = pictures.view(len(pictures), b.channels, side, p, side, p)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(len(pictures), side * side, -1)

    def recall(self, text: Encoded, pictures: Tensor, ids: Tensor, shown: Tensor, said: Tensor) -> Recalled:
        """pictures float [N, K, C, H, W] in [-1, 1], the last try last; ids int64 [N, K, L + 1]; shown, said bool [N, K]."""
        n, k = shown.shape
        with torch.no_grad():
            tokens = pooled(self.eyes(pictures.flatten(0, 1)), self.config.side)
        words = self.remarks(ids.flatten(0, 1))
        tries = Tries(
            tokens.unflatten(0, (n, k)),
            words.words.unflatten(0, (n, k)),
            (ids != 0),
            shown,
            said & shown.new_ones(n, k),
        )
        last = self.patches(pictures[:, -1]) * shown[:, -1, None, None]
        return Recalled(text, tries, last, self.config.amplify)

    def encode(
        self,
        prompts: Sequence[str | None],
        pictures: Sequence[Sequence[np.ndarray]] = (),
        remarks: Sequence[Sequence[Sequence[str]]] = (),
    ) -> Recalled:
        """Prompts (None: the null one) with each one's earlier tries: uint8 pictures [H, W, 3] and the tokens of what was said.
        More than ``memory`` of them are cut to the last ones. ShapeError for a picture of another size."""
        c, n = self.config, len(prompts)
        device = self.base.patch_out.weight.device
        size, memory = c.base.size, c.memory
        grid = torch.zeros(n, memory, c.base.channels, size, size)
        words = [[[] for _ in range(memory)] for _ in range(n)]  # type: list[list[Sequence[str]]]
        shown = torch.zeros(n, memory, dtype=torch.bool)
        for i, (some, said) in enumerate(zip(pictures or [()] * n, remarks or [()] * n, strict=True)):
            for back, (picture, text) in enumerate(zip(reversed(some), reversed(said), strict=True)):
                if back >= memory:
                    break
                if tuple(np.shape(picture)) != (size, size, 3):
                    raise ShapeError(
                        f"An earlier try must be a picture [{size}, {size}, 3], the model's size; got {list(np.shape(picture))}."
                    )
                at = memory - 1 - back
                grid[i, at] = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
                words[i][at], shown[i, at] = text, True
        ids = torch.stack([self.tokenize_remarks(row) for row in words]).to(device)
        said_mask = torch.tensor([[bool(w) for w in row] for row in words], device=device)
        return self.recall(self.base.encode(prompts), grid.to(device), ids, shown.to(device), said_mask)

    # ---- prediction --------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, t: Tensor, cond: Recalled) -> Tensor:
        modulation = self.mood(time_features(t, 128)).unflatten(1, (6, -1))
        tokens, mask = self.context(cond.tries, modulation)
        added = None if self.reference_embed is None else self.reference_embed(cond.patches)

        def before(i: int, h: Tensor) -> Tensor:
            return h + self.recalls[i](self.norm(h), tokens, mask)

        return self.base(x, t, cond.text, added, before)

    def describe(self) -> dict[str, Any]:
        return {"kind": "reflect-sit", **asdict(self.config)}
