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
from secondlook.models.eyes import Eyes
from secondlook.models.layers import Attention, time_features
from secondlook.models.text import Encoded, TextEncoder, TextSiT, TextSiTConfig
from secondlook.worlds.pixels import to_floats


@dataclass(frozen=True)
class ReflectConfig:
    """base: the text-to-image network. remark_words, remark_length: the language of remarks. memory: tries in a context (K). edit:
    see above. side: a picture's tokens along one axis. depth: blocks of the context encoder. stem, eyes: of the frozen encoder's
    convolutions and of its tokens. amplify: whether guidance amplifies the context with the prompt ("both", as in the paper) or the
    prompt alone ("prompt")."""

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
        return Recalled(
            self.text.rows(index),
            Tries(**{k: v[at] for k, v in vars(self.tries).items()}),
            self.patches[at],
            self.amplify,
        )

    @staticmethod
    def stack(items: Sequence[Recalled]) -> Recalled:
        tries = Tries(**{k: torch.cat([getattr(i.tries, k) for i in items]) for k in vars(items[0].tries)})
        text = Encoded.stack([i.text for i in items])
        return Recalled(text, tries, torch.cat([i.patches for i in items]), items[0].amplify)

    def unasked(self, null: Recalled) -> Recalled:
        """What guidance's second pass is given: no prompt, and the tries unless guidance is to amplify them as well."""
        none = null.rows([0] * len(self.patches))
        return none if self.amplify == "both" else Recalled(none.text, self.tries, self.patches, self.amplify)


def pooled(tokens: Tensor, side: int) -> Tensor:
    """[B, 64, W] to [B, side * side, W], means of squares."""
    if side == 8:
        return tokens
    b, _, w = tokens.shape
    grid = tokens.transpose(1, 2).reshape(b, w, 8, 8)
    return nn.functional.avg_pool2d(grid, 8 // side).flatten(2).transpose(1, 2)


def remark_ids(remarks: Sequence[Sequence[str]], words: Sequence[str], length: int) -> Tensor:
    """Tokens of each remark to int64 [N, length + 1], 1 first, 0 behind. A word outside the language is passed over, and what is
    longer than the language's longest is cut: a critic may be anyone."""
    known = {word: i + 2 for i, word in enumerate(words)}
    ids = torch.zeros(len(remarks), length + 1, dtype=torch.long)
    for row, remark in zip(ids, remarks, strict=True):
        said = [1, *(known[w] for w in remark if w in known)][: length + 1]
        row[: len(said)] = torch.tensor(said)
    return ids


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

    def recall(self, text: Encoded, pictures: Tensor, ids: Tensor, shown: Tensor, said: Tensor) -> Recalled:
        """pictures float [N, K, C, H, W] in [-1, 1], the last try last; ids int64 [N, K, L + 1]; shown, said bool [N, K]."""
        n, k = shown.shape
        with torch.no_grad():
            tokens = pooled(self.eyes.see(pictures.flatten(0, 1)) + self.eyes.positions, self.config.side)
        words = self.remarks(ids.flatten(0, 1)).words
        tries = Tries(tokens.unflatten(0, (n, k)), words.unflatten(0, (n, k)), ids != 0, shown, said)
        last = self.base.patches(pictures[:, -1]) * shown[:, -1, None, None]
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
                grid[i, at] = to_floats(torch.from_numpy(np.array(picture)))
                words[i][at], shown[i, at] = text, True
        ids = torch.stack([remark_ids(row, c.remark_words, c.remark_length) for row in words]).to(device)
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
