"""Between a network's numbers and pictures in bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def to_bytes(x: Tensor) -> Tensor:
    """x [B, C, H, W] in about [-1, 1] to uint8 pictures [B, H, W, C], at the nearest level. (An autoencoder's pictures go by
    the released SiT code's rule, adapters/vae.py.)"""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def to_floats(pictures: Tensor) -> Tensor:
    """uint8 pictures [..., H, W, C] to float32 [..., C, H, W] in [-1, 1]."""
    return pictures.movedim(-1, -3).float() / 127.5 - 1
