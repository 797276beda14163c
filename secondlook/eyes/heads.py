"""The aesthetic predictor, and the small head that it and ImageReward share: linear layers one after another, nothing between."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secondlook.errors import ConfigError
from secondlook.eyes import load
from secondlook.eyes.base import Eye, unit
from secondlook.eyes.clip import CLIP_L, PROCESSOR
from secondlook.eyes.load import Held
from secondlook.eyes.pixels import Prepare
from secondlook.types import Condition, Verifier

HEAD = "trl-lib/ddpo-aesthetic-predictor"
HEAD_FILES = ("aesthetic-model.pth", "sac+logos+ava1-l14-linearMSE.pth")


def linear_stack(state: Mapping[str, Tensor], path: Path) -> nn.Sequential:
    """The head with weights ``layers.N.weight`` and ``layers.N.bias``, in the order of N, float32. In the released code the layers between are dropout,
    which does nothing here; there are no activations (1.4 M numbers that make a linear map). ConfigError for other weights."""
    numbers = sorted({int(k.split(".")[-2]) for k in state if k.startswith("layers.") and k.split(".")[-2].isdigit()})
    wanted = {f"layers.{n}.{end}" for n in numbers for end in ("weight", "bias")}
    shapes = [tuple(state[f"layers.{n}.weight"].shape) for n in numbers] if wanted == state.keys() and numbers else []
    chained = all(a[0] == b[1] for a, b in itertools.pairwise(shapes))
    if not shapes or not chained or shapes[-1][0] != 1:
        raise ConfigError(
            f'"{path}" holds no stack of linear layers that ends in one number; expected layers.N.weight and layers.N.bias.'
        )
    layers = []
    for n, (outputs, inputs) in zip(numbers, shapes, strict=True):
        layer = nn.Linear(inputs, outputs)
        layer.load_state_dict({end: state[f"layers.{n}.{end}"].float() for end in ("weight", "bias")})
        layers.append(layer)
    return nn.Sequential(*layers).requires_grad_(False).eval()


def applied(head: nn.Sequential, features: np.ndarray) -> np.ndarray:
    """Features [n, D] float64 to [n], in float64, one row at a time."""
    rows = []
    for row in features:
        for layer in head:
            row = layer.weight.double().numpy() @ row + layer.bias.double().numpy()  # type: ignore[operator,union-attr]
        rows.append(float(row[0]))
    return np.array(rows)


class Aesthetic(Eye):
    """A number of about 1 to 10 from the picture's CLIP features alone."""

    def __init__(self, held: Held, prepare: Prepare, head: nn.Sequential, **use: Any):
        super().__init__("aesthetic", held, prepare, **use)
        self.head = head
        inputs, features = head[0].in_features, int(held.network.config.projection_dim)  # type: ignore[union-attr,arg-type]
        if inputs != features:
            raise ConfigError(
                f"aesthetic: the head reads {inputs} features, and the CLIP has {features}; the published head is for ViT-L/14 (768)."
            )

    def reads(self, condition: Condition) -> bool:
        return True

    def judge(self, pixels: Tensor, conditions: Sequence[Condition], device: torch.device) -> np.ndarray:
        features = unit(self.network.get_image_features(pixel_values=pixels).pooler_output)  # type: ignore[operator]
        return applied(self.head, features[: len(conditions)])


def aesthetic(
    model: str = CLIP_L,
    head: str = HEAD,
    device: str = "auto",
    dtype: str = "float32",
    batch: int = 0,
    offload: bool = False,
) -> Verifier:
    """LAION's aesthetic predictor v2 (2210.08402, sec. 5): people's ratings foretold by a linear map of unit CLIP ViT-L/14 features. head: its file
    (.pth or .safetensors), a folder with it, or a hub id. The prompt is not read."""
    path = load.file_of("aesthetic(head", head, HEAD_FILES)
    made = linear_stack(load.state_of(path), path)
    held = load.network("aesthetic(model", model, "CLIPModel", dtype, device)
    prepare = Prepare(load.processor("aesthetic(model", load.beside(model, model, PROCESSOR)))
    return Aesthetic(held, prepare, made, batch=batch, offload=offload)
