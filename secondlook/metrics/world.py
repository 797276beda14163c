"""Feature networks by name, and only what the metrics asked for read of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secondlook.errors import ConfigError, nearest


class SelectedFeatures:
    """Features without what no asked metric reads, so that neither their cost nor their demands arise."""

    def __init__(self, inner: Any, wanted: set[str]):
        self.inner, self.wanted, self.name = inner, wanted, inner.name

    def __call__(self, pictures: Tensor) -> Any:
        found = self.inner(pictures)
        return replace(found, spatial=found.spatial if "sfid" in self.wanted else None,
                       logits=found.logits if "is" in self.wanted else None)  # fmt: skip


class WorldFeatures:
    """The shipped feature network of a world, in the form that evaluation takes."""

    def __init__(self, world: str):
        from secondlook.verify.classify import features

        self.name, self.inner = f"{world}-features", features(world)

    def __call__(self, pictures: Tensor) -> Any:
        from secondlook.metrics.features import Extracted

        pool, logits = self.inner(pictures)
        return Extracted(pool, None, logits)


def features_of(text: str, device: torch.device) -> Any:
    """`inception=FILE`, `digits` or `glyphs`; ConfigError for another."""
    name, _, file = text.partition("=")
    if name == "inception" and file:
        from secondlook.metrics.inception import Inception

        return Inception.load(file, device)
    if text in ("digits", "glyphs"):
        return WorldFeatures(text)
    if name == "inception":
        raise ConfigError("The Inception network's weights are not shipped: --features inception=FILE.")
    raise ConfigError(f'There are no features "{text}"; {nearest(text, ("inception=FILE", "digits", "glyphs"))}')
