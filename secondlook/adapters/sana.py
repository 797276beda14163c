"""SANA 1.0 and 1.5 (2410.10629): a rectified flow of linear attention over latents of a deep-compression autoencoder."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secondlook.adapters.base import Adapter, Encoded


class Sana(Adapter):
    family = "sana"
    pipelines = ("SanaPipeline",)
    needs = ("text_encoder", "tokenizer")

    def texts(self, prompt: str | None) -> Mapping[str, Tensor]:
        embeds, mask, null, null_mask = self.pipe.encode_prompt(
            prompt or "", prompt is None, negative_prompt=self.options.negative or "", device=self.device,
            max_sequence_length=self.tokens(), complex_human_instruction=self.instruction())  # fmt: skip
        return {"embeds": null, "mask": null_mask} if prompt is None else {"embeds": embeds, "mask": mask}

    def instruction(self) -> list[str] | None:
        """What the pipeline puts before every prompt for its language model."""
        found: list[str] | None = self.default("complex_human_instruction")
        return found

    def ask(self, x: Tensor, level: Tensor, cond: Encoded) -> Tensor:
        out: Tensor = self.module(
            x, encoder_hidden_states=cond["embeds"].to(x.dtype), encoder_attention_mask=cond["mask"],
            timestep=level * self.module.config.timestep_scale, return_dict=False)[0]  # fmt: skip
        return out[:, : x.shape[1]]

    def room(self, name: str, limit: int) -> int:
        return limit - 2 if self.instruction() else super().room(name, limit)  # whatever ends the tokenizer adds

    def spelled(self, prompt: str) -> str:
        return str(self.pipe._text_preprocessing(prompt)[0])

    def limits(self) -> dict[str, int]:
        return {"tokenizer": self.tokens()}
