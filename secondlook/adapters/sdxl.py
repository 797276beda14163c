"""Stable Diffusion XL (2307.01952): a U-Net that predicts noise, told the picture's size beside two CLIP encodings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secondlook.adapters.base import Adapter, Encoded
from secondlook.adapters.encoding import USUAL, Options
from secondlook.errors import ConfigError


class SDXL(Adapter):
    family = "sdxl"
    pipelines = ("StableDiffusionXLPipeline",)
    needs = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    core = "unet"
    ignores = ("tokens",)

    def __init__(self, pipe: Any, options: Options = USUAL):
        super().__init__(pipe, options)
        if self.module.config.get("time_cond_proj_dim") is not None:
            raise ConfigError(
                "This U-Net is told its guidance (an LCM-distilled one), which this adapter does not do; load the base model."
            )

    def multiple(self) -> int:
        return self.factor * 2 ** (len(self.module.config.block_out_channels) - 1)

    def side(self) -> int:
        return int(self.pipe.default_sample_size) * self.factor

    def texts(self, prompt: str | None) -> Mapping[str, Tensor]:
        embeds, null, pooled, null_pooled = self.pipe.encode_prompt(
            prompt or "", negative_prompt=self.options.negative, do_classifier_free_guidance=prompt is None,
            device=self.device)  # fmt: skip
        if prompt is None:
            embeds, pooled = null, null_pooled
        size = (self.height, self.width)
        times = torch.tensor([[*size, 0, 0, *size]], dtype=embeds.dtype)  # original size, crop, target size
        return {"embeds": embeds, "pooled": pooled, "times": times}

    def ask(self, x: Tensor, level: Tensor, cond: Encoded) -> Tensor:
        more = {"text_embeds": cond["pooled"].to(x.dtype), "time_ids": cond["times"].to(x.dtype)}
        out: Tensor = self.module(
            x, level, encoder_hidden_states=cond["embeds"].to(x.dtype), added_cond_kwargs=more, return_dict=False)[0]  # fmt: skip
        return out

    def limits(self) -> dict[str, int]:
        return {n: getattr(self.pipe, n).model_max_length for n in ("tokenizer", "tokenizer_2")}
