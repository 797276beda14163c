"""How alike two pictures are, to DINOv2 or CLIP: symmetric comparers, for plans that ask for likeness and for measures of diversity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import ShapeError
from secondlook.eyes import load
from secondlook.eyes.base import Use, unit
from secondlook.eyes.clip import CLIP_L, PROCESSOR
from secondlook.eyes.load import Held
from secondlook.eyes.pixels import Prepare, check
from secondlook.types import Comparer, Condition

DINO = "facebook/dinov2-base"


class Alike:
    """A ``types.Comparer`` that is symmetric: (1 + cos) / 2 of two pictures' features, from 0 to 1; 1 - this is their distance.
    The features are DINOv2's class token after the last normalisation (2304.07193), or CLIP's projected ones."""

    inline = True
    symmetric = True

    def __init__(self, name: str, held: Held, prepare: Prepare, *, batch: int = 0, offload: bool = False):
        self.name, self.network = name, held.network
        self.made: dict[str, Any] = {"pixels": dict(prepare.facts)}
        self._use = Use(held, prepare, batch, offload)

    def beside(self, device: torch.device | None) -> None:
        """Told where the generator works, before the first picture."""
        self._use.held.near = device

    def __call__(self, first: Tensor, second: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """first, second: uint8 [B, H, W, 3]; conditions are not read. Returns [B] float64 in [0, 1], NaN where a picture has no features."""
        if len(first) != len(second):
            raise ShapeError(f"{len(first)} pictures came with {len(second)} to compare them with; give one for each.")
        pairs = zip(self.features(first), self.features(second), strict=True)
        return torch.tensor([(1 + float(np.sum(a * b))) / 2 for a, b in pairs], dtype=torch.float64).clamp(0, 1)

    @torch.inference_mode()
    def features(self, pictures: Tensor) -> np.ndarray:
        """uint8 [B, H, W, 3] to unit features [B, D] float64."""
        check(self.name, pictures)
        found: list[np.ndarray] = []
        with self._use.held.on(self._use.offload) as device:
            for some, pixels in self._use.batches(pictures, range(len(pictures)), device):
                found.append(unit(self._features(pixels))[: len(some)])
        return np.concatenate(found) if found else np.zeros((0, 1))

    def _features(self, pixels: Tensor) -> Tensor:
        project: Any = getattr(self.network, "get_image_features", None)
        return (
            project(pixel_values=pixels).pooler_output if project else self.network(pixel_values=pixels).pooler_output
        )


def dino(
    model: str = DINO, device: str = "auto", dtype: str = "float32", batch: int = 0, offload: bool = False
) -> Comparer:
    """Likeness to DINOv2: what things are and where, little of style and colour."""
    held = load.network("dino(model", model, "Dinov2Model", dtype, device)
    return Alike("dino", held, Prepare(load.processor("dino(model", model)), batch=batch, offload=offload)


def clip(
    model: str = CLIP_L, device: str = "auto", dtype: str = "float32", batch: int = 0, offload: bool = False
) -> Comparer:
    """Likeness to CLIP: what a caption would say; shares its network with the verifiers of the same weights."""
    held = load.network("clip(model", model, "CLIPModel", dtype, device)
    return Alike(
        "clip",
        held,
        Prepare(load.processor("clip(model", load.beside(model, model, PROCESSOR))),
        batch=batch,
        offload=offload,
    )
