"""Pictures reach the networks of the eyes as transformers' own image processors, with their PIL backend, would bring them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from secondlook.errors import ConfigError, ShapeError
from secondlook.eyes import pixels
from secondlook.eyes.pixels import Prepare, check
from secondlook.eyes.resample import FILTERS, passes, resize, windowed

transformers = pytest.importorskip("transformers")
DEMO = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "demo.png"
SIZES = [(64, 64), (50, 83), (90, 61), (20, 24)]
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIP", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
    "clip, crop larger than the edge": (
        "CLIP",
        {"size": {"shortest_edge": 30}, "crop_size": {"height": 37, "width": 35}},
    ),
    "dinov2": (
        "Bit",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 31, "width": 31}, "image_mean": [0.485, 0.456, 0.406]},
    ),
    "siglip": (
        "Siglip",
        {"size": {"height": 48, "width": 40}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    ),
    "vit": ("ViT", {"size": {"height": 33, "width": 33}, "resample": 2}),
    "detr": ("Detr", {"size": {"shortest_edge": 48, "longest_edge": 70}}),
    "grounding_dino": ("GroundingDino", {"size": {"shortest_edge": 40, "longest_edge": 90}}),
    "mask2former": ("Mask2Former", {"size": {"shortest_edge": 40, "longest_edge": 90}}),
    "owlv2, smaller": ("Owlv2", {"size": {"height": 32, "width": 32}}),
    "owlv2, larger": ("Owlv2", {"size": {"height": 96, "width": 96}}),
}


def pictures(height: int, width: int) -> Tensor:
    """A gradient, noise, and a piece of a drawn picture: uint8 [3, H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([255 * y / height, 255 * x / width, 127 + 120 * np.sin((x + y) / 9)], -1).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    drawn = np.asarray(Image.open(DEMO).convert("RGB"))[40 : 40 + height, 60 : 60 + width]
    return torch.from_numpy(np.stack([smooth, noise, drawn]))


def theirs(processor: Any, some: Tensor) -> Tensor:
    return torch.cat([processor(images=[p.numpy()], return_tensors="pt")["pixel_values"] for p in some])


@pytest.mark.parametrize("kind", list(FILTERS))
@pytest.mark.parametrize("size", [(32, 32), (17, 100), (90, 61)])
def test_the_integers_of_any_device_are_those_of_pillow(kind: int, size: tuple[int, int]) -> None:
    some = pictures(64, 61)
    assert passes(64, 61, *size, kind) is not None  # else Pillow would be compared with itself
    assert torch.equal(windowed(some, size, kind), resize(some, size, kind))


def test_a_filter_that_no_judge_uses_is_refused() -> None:
    with pytest.raises(ConfigError, match="filters number 1 to 5"):
        resize(pictures(8, 8), (4, 4), 0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", list(PROCESSORS))
@pytest.mark.parametrize("by", ["pillow", "windows"])
def test_prepared_pictures_are_the_processors(
    by: str, name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-5 of a value whose spread is one, where 1e-3 was asked for: what is resized is the same to the bit."""
    if by == "windows":
        monkeypatch.setattr(pixels, "resize", windowed)
    kind, options = PROCESSORS[name]
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**options)
    some = pictures(*size)
    made, wanted = Prepare(processor)(some), theirs(processor, some)
    assert made.shape == wanted.shape
    assert made.dtype == torch.float32
    assert (made - wanted).abs().max() < 1e-5


def test_a_picture_is_prepared_alike_in_any_company() -> None:
    for kind, options in PROCESSORS.values():
        prepare, some = Prepare(getattr(transformers, f"{kind}ImageProcessorPil")(**options)), pictures(50, 83)
        assert torch.equal(prepare(some), torch.cat([prepare(p[None]) for p in some]))


def test_a_processor_that_is_not_known_is_asked_itself() -> None:
    class Odd(transformers.CLIPImageProcessorPil):  # type: ignore[misc,name-defined]
        def _preprocess(self, images: Any, **rest: Any) -> Any:
            return super()._preprocess([255 - i for i in images], **rest)

    odd, some = Odd(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), pictures(64, 64)
    assert torch.equal(Prepare(odd)(some), theirs(odd, some))


def test_what_is_no_picture_is_refused() -> None:
    for bad in (
        torch.zeros(2, 8, 8, 3),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
    ):
        with pytest.raises(ShapeError, match=r"clip reads uint8 pictures \[B, H, W, 3\]"):
            check("clip", bad)
