"""The log probability of the class that is asked for: by an ImageNet classifier of transformers, or by a CLIP and the classes' names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.eyes import load
from secondlook.eyes.base import Eye
from secondlook.eyes.clip import HUNDRED, TwoEncoders, two_encoders
from secondlook.eyes.load import Held
from secondlook.eyes.pixels import Prepare
from secondlook.types import Condition, Verifier

MODEL = "facebook/dinov2-base-imagenet1k-1-layer"
TEMPLATE = "a photo of a {}."  # 2103.00020, sec. 3.1.4


def log_probability(logits: np.ndarray, k: int) -> float:
    """Of class ``k`` under logits [C] float64, one row at a time."""
    return float(logits[k] - logits.max() - math.log(np.exp(logits - logits.max()).sum()))


class _Classes(Eye):
    """names: of the classes, by number; a prompt that is one of them asks for that class."""

    names: tuple[str, ...]

    def reads(self, condition: Condition) -> bool:
        return self.asked(condition) is not None

    def asked(self, condition: Condition) -> int | None:
        """The number of the class that a condition asks for; None where it names none of them."""
        if condition.label is not None:
            return condition.label if 0 <= condition.label < len(self.names) else None
        known = {n.lower(): i for i, name in reversed(list(enumerate(self.names))) for n in (name, *name.split(", "))}
        return known.get(str(condition.prompt).strip().lower())

    def numbers(self, logits: np.ndarray, conditions: Sequence[Condition]) -> np.ndarray:
        return np.array(
            [log_probability(row, int(self.asked(c) or 0)) for row, c in zip(logits, conditions, strict=True)]
        )


class ByClassifier(_Classes):
    """log softmax of a classifier's logits at the class asked for."""

    def __init__(self, held: Held, prepare: Prepare, **use: Any):
        super().__init__("classes", held, prepare, **use)
        known = held.network.config.id2label  # type: ignore[union-attr]
        self.names = tuple(str(known[i]) for i in range(len(known)))  # type: ignore[index,arg-type]

    def judge(self, pixels: Tensor, conditions: Sequence[Condition], device: torch.device) -> np.ndarray:
        return self.numbers(
            self.network(pixel_values=pixels).logits[: len(conditions)].cpu().double().numpy(), conditions
        )


class ByNames(_Classes):
    """log softmax over the classes' names of the logits exp(t) cos of a CLIP (2103.00020, sec. 3.1)."""

    def __init__(self, inner: TwoEncoders, names: Sequence[str], held: Held, prepare: Prepare, **use: Any):
        super().__init__("classes", held, prepare, **use)
        self.inner, self.names = inner, tuple(names)

    def judge(self, pixels: Tensor, conditions: Sequence[Condition], device: torch.device) -> np.ndarray:
        texts = [self.inner.said(TEMPLATE.format(name), device) for name in self.names]
        scale = math.exp(float(self.network.logit_scale))  # type: ignore[arg-type]
        seen = self.inner.seen(pixels)[: len(conditions)]
        return self.numbers(np.array([[scale * float(np.sum(row * t)) for t in texts] for row in seen]), conditions)


def classes(
    model: str = MODEL,
    names: str = "",
    device: str = "auto",
    dtype: str = "float32",
    batch: int = 0,
    offload: bool = False,
) -> Verifier:
    """log p(class | picture). model: an image classifier (DINOv2 with its ImageNet head, ViT, ...), or with ``names`` a CLIP. names: a text file
    with a class's name on each line, by number. NaN where a condition names no class that is known."""
    if not names:
        held = load.network("classes(model", model, "AutoModelForImageClassification", dtype, device)
        return ByClassifier(held, Prepare(load.processor("classes(model", model)), batch=batch, offload=offload)
    try:
        lines = [line.strip() for line in Path(names).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f'classes: names must be a text file with a class on each line; "{names}" cannot be read ({error}).'
        ) from None
    if not lines:
        raise ConfigError(f'classes: "{names}" names no class.')
    inner = two_encoders("classes", model, "CLIPModel", dtype, device, model, HUNDRED)
    return ByNames(inner, lines, inner._use.held, inner._use.prepare, batch=batch, offload=offload)
