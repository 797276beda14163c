"""Class-conditional weights of latents (SiT, DiT; 2401.08740, 2212.09748) with the autoencoder that decodes them."""

from __future__ import annotations

from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor

from secondlook.adapters.vae import VAE, load_vae
from secondlook.backends.base import GUIDES, refuse_guide
from secondlook.backends.classes import Classes
from secondlook.errors import ConfigError, nearest
from secondlook.models.find import weights_file
from secondlook.models.official import load_sit
from secondlook.models.sit import SiT
from secondlook.notes import note
from secondlook.settings import Settings, make_named
from secondlook.types import Condition, Verifier

DTYPES = ("float32", "bfloat16")


class Latents(Classes):
    """model: a weights file or a folder with one, this project's own or official. vae: a diffusers autoencoder's folder or hub id."""

    name = "latents"
    takes = Classes.takes | {"vae", "dtype"}

    def __init__(self, model: str, vae: str, device: str | None = None, dtype: str | None = None):
        if dtype is not None and dtype not in DTYPES:
            raise ConfigError(f"SiT weights run in float32 or bfloat16; {nearest(dtype, DTYPES)}")
        self.model, self.file = model, weights_file(model)
        self._weak: File | None = None
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = dtype
        self.network = load_sit(self.file)
        self.config = self.network.config
        self.vae: VAE = load_vae(vae, torch.device(self.device))
        if self.vae.channels != self.config.channels:
            raise ConfigError(f"The autoencoder's latents have {self.vae.channels} channels, the model's {self.config.channels}; "
                              "give its own.")  # fmt: skip

    @property
    def classes(self) -> int:
        return int(self.config.classes)

    def condition(self, text: str) -> Condition:
        if not (text.strip().isdecimal() and int(text) < self.classes):
            raise ConfigError(f'SiT weights draw classes, 0 to {self.classes - 1}; got "{text}".')
        return Condition(label=int(text))

    def decode(self, x: Tensor) -> Tensor:
        return self.vae.decode(x)

    def pixels(self, x: Tensor) -> Tensor:
        return self.vae.pixels(x)

    def fits(self, network: SiT) -> None:
        """Latents of any size: the autoencoder is checked when it is loaded."""

    def usual(self, s: Settings) -> dict[str, Any]:
        if s.verifier is None and s.prompts:
            note(f"No verifier was named, so {GUIDES[0]} guides: it needs no download and knows nothing of the class; classes does. Name yours "
                 "with --verifier module:attr (verifier=... in Python).")  # fmt: skip
        guided = 4.0 if self.config.null and s.weak is None else 1.0
        gpu = self.device.startswith("cuda")
        return {**super().usual(s), "steps": 25, "guidance": guided, "shift": 1.0, "solver": "heun", "verifier": GUIDES[0], "rows": 8, "pad": False,
                "device": self.device, "bf16": gpu if self.dtype is None else self.dtype == "bfloat16"}  # fmt: skip

    def verifier(self, name: str) -> Verifier | None:
        refuse_guide(name)
        return None

    def judges(self) -> dict[str, Verifier]:
        return {n: make_named("verifier", n) for n in GUIDES}

    def verifiers(self) -> dict[str, Any]:
        return {}

    def digests(self) -> dict[str, str]:
        return {**super().digests(), "vae": self.vae.digest}
