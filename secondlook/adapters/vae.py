"""Variational autoencoders of the diffusers library between pictures and the latents that a transformer samples.

diffusers is optional (`pip install 'secondlook[hub]'`) and imported only when an autoencoder is loaded. Scale and shift
are those of the autoencoder's own configuration: latents = (z - shift) * scale, with scale 0.18215 and no shift for
Stable Diffusion's, which SiT and DiT use.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.errors import ConfigError, MissingExtra, ShapeError


def to_bytes(x: Tensor) -> Tensor:
    """x [B, C, H, W] in about [-1, 1] to uint8 [B, H, W, C] by truncate(clamp(127.5 x + 128, 0, 255)): the rule of the
    released SiT code, whose half level up makes truncation nearly rounding. Levels k / 127.5 - 1 come back exactly."""
    return (127.5 * x + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@dataclass(frozen=True)
class VAE:
    """An autoencoder, frozen. channels: of its latents; factor: picture pixels a latent cell, along one axis; digest: of
    its weights; chunk: the most pictures it takes at once, for memory."""

    module: Any
    name: str
    channels: int
    factor: int
    scale: float
    shift: float
    digest: str
    chunk: int = 8

    def to(self, device: str | torch.device) -> VAE:
        """The same, moved."""
        self.module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.module.parameters()).device
        return found

    @torch.inference_mode()
    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, 3, H, W] in [-1, 1] to the posterior's mean and standard deviation, each [B, C, H / factor, W / factor]
        float32, before shift and scale."""
        if pictures.shape[-1] % self.factor or pictures.shape[-2] % self.factor:
            raise ShapeError(
                f"This autoencoder expects sides that divide by {self.factor}; got {list(pictures.shape)}."
            )
        found = [self.module.encode(x.to(self.device)).latent_dist for x in pictures.split(self.chunk)]
        return torch.cat([d.mean.float() for d in found]), torch.cat([d.std.float() for d in found])

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [B, C, h, w] to uint8 pictures [B, h factor, w factor, 3] on the CPU."""
        parts = [latents.new_zeros(0, dtype=torch.uint8, device="cpu")]
        for x in latents.to(self.device, torch.float32).split(self.chunk):
            parts.append(to_bytes(self.module.decode(x / self.scale + self.shift).sample).cpu())
        return torch.cat(parts[1:] or parts)

    def pixels(self, latents: Tensor) -> Tensor:
        """The same as floats in [0, 1], [B, h factor, w factor, 3], with a graph."""
        x = self.module.decode(latents.to(self.device, torch.float32) / self.scale + self.shift).sample
        return ((x + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)


def load_vae(name: str, device: str | torch.device = "cpu") -> VAE:
    """From a local folder (an AutoencoderKL's, or a pipeline's with a folder ``vae``) or a hub id such as
    ``stabilityai/sd-vae-ft-ema``. MissingExtra without diffusers; ConfigError for what holds no AutoencoderKL."""
    try:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise MissingExtra(f"Autoencoders need diffusers ({error}): pip install 'secondlook[hub]'") from None
    folder = Path(name)
    nested = (folder / "vae" / "config.json").is_file()
    try:
        module = AutoencoderKL.from_pretrained(name, **({"subfolder": "vae"} if nested else {}))
    except Exception as error:  # the hub's, the network's and the file format's own kinds
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f'"{name}" cannot be loaded as an autoencoder ({reason}). Wanted: the folder of a diffusers AutoencoderKL, or '
            "the hub id of one."
        ) from None
    module = module.float().requires_grad_(False).eval().to(device)
    c = module.config
    on_gpu = torch.device(device).type != "cpu"
    return VAE(module, name, int(c.latent_channels), 2 ** (len(c.block_out_channels) - 1), float(c.scaling_factor),
               float(getattr(c, "shift_factor", None) or 0.0), fingerprint(module), 32 if on_gpu else 8)  # fmt: skip


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a network's tensors, by name: the same wherever and in whatever format they were stored."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {list(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
