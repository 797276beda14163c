"""PixArt-Sigma and PixArt-Alpha (2403.04692, 2310.00426): noise prediction with learned variance, T5 alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secondlook.adapters.base import Adapter, Encoded


class PixArt(Adapter):
    family = "pixart"
    pipelines = ("PixArtSigmaPipeline", "PixArtAlphaPipeline")
    needs = ("text_encoder", "tokenizer")

    def texts(self, prompt: str | None) -> Mapping[str, Tensor]:
        embeds, mask, null, null_mask = self.pipe.encode_prompt(
            prompt or "", prompt is None, negative_prompt=self.options.negative or "", device=self.device,
            clean_caption=self.cleans(), max_sequence_length=self.tokens())  # fmt: skip
        return {"embeds": null, "mask": null_mask} if prompt is None else {"embeds": embeds, "mask": mask}

    def cleans(self) -> bool:
        """Whether captions are cleaned: the pipeline's default, where the packages for it are there."""
        from diffusers.utils import is_bs4_available, is_ftfy_available

        return bool(self.default("clean_caption")) and is_bs4_available() and is_ftfy_available()

    def ask(self, x: Tensor, level: Tensor, cond: Encoded) -> Tensor:
        """With the variance channels behind the noise, for ancestral sampling."""
        size: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.module.config.get("use_additional_conditions"):  # PixArt-Alpha at 1024 pixels
            whole = x.new_tensor([[self.height, self.width]]).expand(len(x), 2)
            size = {"resolution": whole, "aspect_ratio": whole[:, :1] / whole[:, 1:]}
        out: Tensor = self.module(
            x, encoder_hidden_states=cond["embeds"].to(x.dtype), encoder_attention_mask=cond["mask"], timestep=level,
            added_cond_kwargs=size, return_dict=False)[0]  # fmt: skip
        return out

    def spelled(self, prompt: str) -> str:
        return str(self.pipe._text_preprocessing(prompt, clean_caption=self.cleans())[0])

    def limits(self) -> dict[str, int]:
        return {"tokenizer": self.tokens()}
