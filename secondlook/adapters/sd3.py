"""Stable Diffusion 3 and 3.5 (2403.03206): a rectified flow with two CLIP encoders and T5, time shift 3 or by resolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from secondlook.adapters.base import Adapter, Encoded
from secondlook.errors import ConfigError


class SD3(Adapter):
    family = "sd3"
    pipelines = ("StableDiffusion3Pipeline",)
    needs = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")  # T5 may be left out, as in diffusers
    longest = 512

    def texts(self, prompt: str | None) -> Mapping[str, Tensor]:
        negative = self.options.negative or ""
        embeds, null, pooled, null_pooled = self.pipe.encode_prompt(
            prompt or "", None, None, negative_prompt=negative, do_classifier_free_guidance=prompt is None,
            max_sequence_length=self.tokens(), device=self.device)  # fmt: skip
        return {"embeds": null, "pooled": null_pooled} if prompt is None else {"embeds": embeds, "pooled": pooled}

    def ask(self, x: Tensor, level: Tensor, cond: Encoded) -> Tensor:
        out: Tensor = self.module(
            hidden_states=x, timestep=level, encoder_hidden_states=cond["embeds"].to(x.dtype),
            pooled_projections=cond["pooled"].to(x.dtype), return_dict=False)[0]  # fmt: skip
        return out

    def timing(self, steps: int) -> dict[str, Any]:
        c = self.pipe.scheduler.config
        if not c.get("use_dynamic_shifting"):
            return {}
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

        patch = int(self.module.config.patch_size)
        tokens = (self.shape[1] // patch) * (self.shape[2] // patch)
        return {"mu": calculate_shift(tokens, c.get("base_image_seq_len", 256), c.get("max_image_seq_len", 4096),
                                      c.get("base_shift", 0.5), c.get("max_shift", 1.16))}  # fmt: skip

    def limits(self) -> dict[str, int]:
        clip = self.pipe.tokenizer_max_length
        long = {} if self.pipe.text_encoder_3 is None else {"tokenizer_3": self.tokens()}
        return {"tokenizer": clip, "tokenizer_2": clip, **long}

    def _refuse_size(self) -> None:
        super()._refuse_size()
        most = int(self.module.config.pos_embed_max_size) * self.multiple()
        for name, size in (("height", self.height), ("width", self.width)):
            if size > most:
                raise ConfigError(
                    f"--{name} must be at most {most} for this pipeline, whose positions end there; got {size}."
                )
