"""DiT (2212.09748): class-conditional noise prediction with learned variance, on an ImageNet autoencoder's latents."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secondlook.adapters.base import Adapter, Encoded
from secondlook.errors import ConfigError, nearest
from secondlook.types import Condition


class DiT(Adapter):
    family = "dit"
    pipelines = ("DiTPipeline",)
    needs = ()
    ignores = ("negative", "tokens")

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.pipe.vae.config.block_out_channels) - 1))

    def condition(self, text: str) -> Condition:
        """A class by its number or one of its names."""
        text, names = text.strip(), self.pipe.labels
        classes = int(self.module.config.num_embeds_ada_norm)
        if text in names:
            return Condition(label=int(names[text]))
        if text.isdecimal() and int(text) < classes:
            return Condition(label=int(text))
        close = nearest(text, names)
        hint = (
            close
            if close.startswith("did")
            else "give a number, or a name in pipe.labels."
            if names
            else "give a number."
        )
        raise ConfigError(f'This pipeline draws classes, 0 to {classes - 1} or by name; there is no "{text}"; {hint}')

    def encode(self, condition: Condition | None) -> Encoded:
        null = int(self.module.config.num_embeds_ada_norm)
        label = null if condition is None or condition.label is None else condition.label
        return Encoded({"labels": torch.full((1,), label, device=self.device)})

    def texts(self, prompt: str | None) -> Mapping[str, Tensor]:
        raise ConfigError("A class-conditional pipeline takes classes, not prompts.")

    def ask(self, x: Tensor, level: Tensor, cond: Encoded) -> Tensor:
        out: Tensor = self.module(x, timestep=level, class_labels=cond["labels"], return_dict=False)[0]
        return out

    def _refuse_size(self) -> None:
        if (self.height, self.width) != (self.side(), self.side()):
            raise ConfigError(f"DiT draws {self.side()} x {self.side()} only; leave --height and --width out.")
