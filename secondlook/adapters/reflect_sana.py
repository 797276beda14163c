"""SANA with Reflect-DiT's context (2503.12271): the transformer of diffusers, whose captions are followed by context tokens.

The released weights are one state dict: SANA's own names, and beside them those of ``models.context``. Of the released forms two
are options: ``drop_last`` (the last context token is masked out) and the null context of ``NULL`` zero tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.errors import DamagedError
from secondlook.models.context import ContextConfig, ContextEncoder, Tries

NULL = 68  # 64 of a picture and 4 of a remark
PARTS = ("clip_projection", "clip_norm", "reflection_text_projection", "reflection_text_norm", "reflection_transformer",
         "reflection_norm")  # fmt: skip


class ReflectSana(nn.Module):
    """(latents [N, C, H, W], timesteps [N] in 0 to 1000, captions [N, L, D] with their mask, tries) -> SANA's prediction.

    transformer: a ``SanaTransformer2DModel``. image_width, depth: of ``models.context.ContextConfig``. With no tries, the
    transformer's own prediction.
    """

    def __init__(
        self, transformer: Any, image_width: int = 1024, depth: int = 2, null: int = NULL, drop_last: bool = False
    ):
        super().__init__()
        c = transformer.config
        width = c.num_attention_heads * c.attention_head_dim
        self.transformer = transformer
        config = ContextConfig(image_width, c.caption_channels, width, c.num_cross_attention_heads, depth)
        self.context = ContextEncoder(config, null, drop_last)

    def forward(self, x: Tensor, timestep: Tensor, caption: Tensor, mask: Tensor, tries: Tries | None) -> Tensor:
        tokens: Tensor | None = None
        if tries is not None:
            mood, _ = self.transformer.time_embed(timestep, batch_size=len(x), hidden_dtype=x.dtype)
            tokens, there = self.context(tries, mood.unflatten(1, (6, -1)))
            mask = torch.cat([mask.to(there.device), there.to(mask.dtype)], 1)
        with _followed(self.transformer.caption_norm, tokens):
            out: Tensor = self.transformer(
                x, encoder_hidden_states=caption, encoder_attention_mask=mask, timestep=timestep, return_dict=False
            )[0]
        return out

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Fill both parts from one state dict; DamagedError naming what is missing or too much."""
        context = {k: v for k, v in state.items() if k.split(".")[0] in PARTS}
        rest = {k: v for k, v in state.items() if k not in context}
        for module, part, name in ((self.context, context, "context"), (self.transformer, rest, "transformer")):
            missing, more = module.load_state_dict(dict(part), strict=False)
            if missing or more:
                raise DamagedError(
                    f"These weights are not a reflecting SANA's: the {name} lacks {missing[:3]} and does not know {more[:3]}."
                )


@contextmanager
def _followed(norm: nn.Module, tokens: Tensor | None) -> Iterator[None]:
    """What ``norm`` gives has ``tokens`` behind it."""
    if tokens is None:
        yield
        return
    handle = norm.register_forward_hook(lambda module, given, out: torch.cat([out, tokens.to(out)], 1))
    try:
        yield
    finally:
        handle.remove()
