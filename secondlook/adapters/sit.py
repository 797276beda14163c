"""SiT weights (2401.08740), the released ones or one's own, with the Stable Diffusion autoencoder that decodes their latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from secondlook.adapters.base import Adapter, Encoded, Options
from secondlook.adapters.schedule import Schedule
from secondlook.adapters.vae import VAE, load_vae
from secondlook.errors import ConfigError, nearest
from secondlook.flow.discrete import with_path
from secondlook.flow.grid import grid
from secondlook.models.official import load_sit
from secondlook.models.sit import Labels, SiT
from secondlook.types import Condition

DTYPES = ("float32", "bfloat16")


class OwnTimes(Schedule):
    """A schedule for networks that are shown this project's times."""

    def level(self, t: Tensor) -> Tensor:
        return t


class SiTWeights(Adapter):
    """Class-conditional: a request is the class's number. bf16: whether products run in bfloat16."""

    family = "sit"
    pipelines = ()
    needs = ()
    ignores = ("negative", "tokens")

    def __init__(self, path: Path, network: SiT, vae: VAE, options: Options, bf16: bool):
        self.config, self.bf16, self.vae_name = network.config, bf16, vae.name
        if vae.channels != network.config.channels:
            raise ConfigError(f"The autoencoder's latents have {vae.channels} channels, the model's {network.config.channels}; "
                              "give its own.")  # fmt: skip
        self.called, self.path = with_path(network)
        parts = SimpleNamespace(transformer=network, vae=vae.module, scheduler=self, vae_scale_factor=vae.factor,
                                name_or_path=str(path), _execution_device=vae.device)  # fmt: skip
        super().__init__(parts, options)

    def usual(self) -> dict[str, Any]:
        return {"steps": 25, "guidance": 4.0 if self.config.null else 1.0}

    def side(self) -> int:
        return int(self.config.side) * self.factor

    def multiple(self) -> int:
        return self.factor

    @property
    def channels(self) -> int:
        return int(self.config.channels)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def schedule(self, steps: int, shift: float | None = None) -> Schedule:
        times = grid(steps, shift or 1.0)
        return OwnTimes(self.path, "heun", times, times[:-1], predicts=self.called.predicts)

    def describe(self) -> dict[str, Any]:
        dtype = DTYPES[self.bf16]
        return {
            **super().describe(),
            "pipeline": "SiT",
            "scheduler": self.path.name,
            "dtype": dtype,
            "vae": self.vae_name,
        }

    def condition(self, text: str) -> Condition:
        if not (text.strip().isdecimal() and int(text) < self.config.classes):
            raise ConfigError(f'SiT weights draw classes, 0 to {self.config.classes - 1}; got "{text}".')
        return Condition(label=int(text))

    def encode(self, condition: Condition | None) -> Encoded:
        label = self.config.classes if condition is None or condition.label is None else condition.label
        return Encoded({"labels": torch.full((1,), label, device=self.device)})

    def texts(self, prompt: str | None) -> Mapping[str, Tensor]:
        raise ConfigError("SiT weights take classes, not prompts.")

    def ask(self, x: Tensor, level: Tensor, cond: Encoded) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            out: Tensor = getattr(self.called, "full", self.called)(x, level, Labels(cond["labels"]))
        return out

    def _refuse_size(self) -> None:
        if (self.height, self.width) != (self.side(), self.side()):
            raise ConfigError(f"These weights draw {self.side()} x {self.side()} only; leave --height and --width out.")


def load_weights(path: Path, vae: str | None, options: Options, dtype: str | None, device: torch.device) -> SiTWeights:
    """From a weights file: this project's own, or the released SiT's (velocity on the linear path; others by ``secondlook import``
    first). ConfigError without an autoencoder."""
    if not path.is_file():
        raise ConfigError(f'There is no weights file "{path}".')
    if vae is None:
        raise ConfigError(
            "SiT weights sample latents: give the autoencoder that decodes them with --vae FOLDER_OR_ID (vae=...)."
        )
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"SiT weights run in float32 or bfloat16; {nearest(dtype, DTYPES)}")
    network, held = load_sit(path), load_vae(vae, device)
    return SiTWeights(
        path, network.to(device), held, options, dtype == "bfloat16" or (dtype is None and device.type == "cuda")
    )
