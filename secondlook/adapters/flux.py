"""FLUX.1 dev and schnell: a rectified flow over packed latents, time shift by resolution, guidance distilled into the network.

``guidance`` is the distilled scale, which the network is shown and which costs one pass; ``true_guidance`` above 1 adds
classifier-free guidance away from the negative prompt, at two. Schnell has no distilled guidance and expects four steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook.adapters.base import Adapter, Encoded


class Flux(Adapter):
    family = "flux"
    pipelines = ("FluxPipeline",)
    needs = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    distilled = True
    longest = 512

    def usual(self) -> dict[str, Any]:
        if self.module.config.guidance_embeds:
            return super().usual()
        return {"steps": 4, "guidance": 1.0}  # schnell, distilled into four steps

    def side(self) -> int:
        return int(self.pipe.default_sample_size) * self.factor

    def multiple(self) -> int:
        return 2 * self.factor

    @property
    def channels(self) -> int:
        return int(self.module.config.in_channels) // 4

    def texts(self, prompt: str | None) -> Mapping[str, Tensor]:
        text = prompt if prompt is not None else self.options.negative or ""
        embeds, pooled, _ = self.pipe.encode_prompt(text, None, max_sequence_length=self.tokens(), device=self.device)
        return {"embeds": embeds, "pooled": pooled}

    def ask(self, x: Tensor, level: Tensor, cond: Encoded) -> Tensor:
        rows, channels, height, width = x.shape
        packed = self.pipe._pack_latents(x, rows, channels, height, width)
        guidance = cond["guidance"] if self.module.config.guidance_embeds else None
        out = self.module(
            hidden_states=packed, timestep=level.to(x.dtype) / 1000, guidance=guidance,
            encoder_hidden_states=cond["embeds"].to(x.dtype), pooled_projections=cond["pooled"].to(x.dtype),
            txt_ids=torch.zeros(cond["embeds"].shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=self.pipe._prepare_latent_image_ids(rows, height // 2, width // 2, x.device, x.dtype),
            return_dict=False)[0]  # fmt: skip
        unpacked: Tensor = self.pipe._unpack_latents(out, self.height, self.width, self.factor)
        return unpacked

    def timing(self, steps: int) -> dict[str, Any]:
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        c, (_, height, width) = self.pipe.scheduler.config, self.shape
        mu = calculate_shift((height // 2) * (width // 2), c.get("base_image_seq_len", 256), c.get("max_image_seq_len", 4096),
                             c.get("base_shift", 0.5), c.get("max_shift", 1.15))  # fmt: skip
        shifted = {"mu": mu} if c.get("use_dynamic_shifting") else {}
        if c.get("use_flow_sigmas"):
            return shifted
        return {"sigmas": np.linspace(1.0, 1 / steps, steps), **shifted}

    def limits(self) -> dict[str, int]:
        return {"tokenizer": self.pipe.tokenizer_max_length, "tokenizer_2": self.tokens()}
