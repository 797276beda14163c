"""From pictures as they are drawn to what a network of ``transformers`` reads: its image processor's own steps, on the device.

The steps and their numbers are those of the processor saved beside the weights (``preprocessor_config.json``), with its PIL
backend as the authority: resize (Pillow's filter, rounded to 8 bits between and after the passes, as Pillow does), centre crop,
scale, normalise. What is resized is exact to the bit; the float32 steps behind it are within 1e-6 of the processor's.
OWLv2 is different: it pads to a square with black, blurs, and interpolates floats; those are linear, and done as matrices.
A processor of a kind that is not known here is asked itself, on the CPU.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import ConfigError, ShapeError
from secondlook.eyes.resample import resize

KNOWN = ("CLIP", "Siglip", "Bit", "ViT", "Blip", "Detr", "GroundingDino", "Mask2Former", "Owlv2")
_FACTS = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
          "image_std", "size_divisor", "pad_size")  # fmt: skip


def check(name: str, samples: Tensor) -> None:
    """ShapeError for what are not uint8 pictures [B, H, W, 3]."""
    if samples.dtype != torch.uint8 or samples.ndim != 4 or samples.shape[3] != 3 or 0 in samples.shape[1:]:
        raise ShapeError(
            f"{name} reads uint8 pictures [B, H, W, 3]; it was given {samples.dtype} {list(samples.shape)}."
        )


class Prepare:
    """uint8 [B, H, W, 3] on any device to float32 [B, 3, h, w] on that device. processor: an image processor of ``transformers``;
    ConfigError where its configuration lacks what a resize needs."""

    def __init__(self, processor: Any):
        self.processor = processor
        self.kind = next((k for k in KNOWN if type(processor).__name__.startswith(f"{k}ImageProcessor")), None)
        self.facts = {name: _plain(getattr(processor, name, None)) for name in _FACTS}

    def __call__(self, pictures: Tensor) -> Tensor:
        if self.kind is None:
            found = self.processor(images=[p.cpu().numpy() for p in pictures], return_tensors="pt")["pixel_values"]
            return found.to(pictures.device)
        x = self._squared(pictures) if self.kind == "Owlv2" else self._resized(pictures)
        if self.facts["do_normalize"]:
            mean, std = (
                torch.tensor(self.facts[n], dtype=torch.float32, device=x.device).view(1, -1, 1, 1)
                for n in ("image_mean", "image_std")
            )
            x = (x - mean) / std
        return x.contiguous()

    def _resized(self, pictures: Tensor) -> Tensor:
        if self.facts["do_resize"]:
            pictures = resize(pictures, self.target(pictures.shape[1], pictures.shape[2]), int(self.facts["resample"]))
        x = pictures.permute(0, 3, 1, 2)
        if self.facts["do_center_crop"]:
            x = _cropped(x, self.facts["crop_size"]["height"], self.facts["crop_size"]["width"])
        return x.float() * self.facts["rescale_factor"] if self.facts["do_rescale"] else x.float()

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a picture of these is resized to."""
        size = self.facts["size"]
        shortest, longest = size.get("shortest_edge"), size.get("longest_edge")
        if size.get("height") and size.get("width"):
            found = (int(size["height"]), int(size["width"]))
        elif shortest and longest:
            from transformers.image_transforms import get_size_with_aspect_ratio

            found = get_size_with_aspect_ratio((height, width), shortest, longest)
        elif shortest:
            short, long = sorted((height, width))
            other = int(shortest * long / short)
            found = (other, shortest) if width <= height else (shortest, other)
        else:
            raise ConfigError(f"An image processor's size must name a height and width, or edges; this one has {size}.")
        step = self.facts["size_divisor"] if self.kind == "Mask2Former" else None
        return found if not step else (math.ceil(found[0] / step) * step, math.ceil(found[1] / step) * step)

    def _squared(self, pictures: Tensor) -> Tensor:
        """OWLv2's: black below or to the right until it is square, then a Gaussian and linear interpolation (scikit-image's
        ``resize``), kept within the range that the picture had."""
        height, width = pictures.shape[1:3]
        side = max(height, width)
        x = pictures.permute(0, 3, 1, 2).float() * self.facts["rescale_factor"]
        x = torch.nn.functional.pad(x, (0, side - width, 0, side - height))
        kind = torch.float32 if x.device.type == "mps" else torch.float64
        down, across = (
            torch.from_numpy(_zoom(side, self.facts["size"][n])).to(x.device, kind) for n in ("height", "width")
        )
        out = torch.stack([down @ row @ across.T for row in x.to(kind)])  # each alone: the same numbers in any company
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        return torch.minimum(torch.maximum(out.float(), low), high)


def _plain(value: Any) -> Any:
    """Of a processor's attribute the plain values: sizes are objects of a kind of their own."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [float(v) for v in value]
    return {k: int(v) for k, v in dict(value).items() if v is not None}


def _cropped(x: Tensor, height: int, width: int) -> Tensor:
    """The middle of x [B, C, H, W]; black around what is smaller, as transformers' ``center_crop`` has it."""
    above, left = math.ceil(max(0, height - x.shape[2]) / 2), math.ceil(max(0, width - x.shape[3]) / 2)
    below, right = max(0, height - x.shape[2]) - above, max(0, width - x.shape[3]) - left
    x = torch.nn.functional.pad(x, (left, right, above, below))
    top, start = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, start : start + width]


@lru_cache(maxsize=16)
def _zoom(inside: int, outside: int) -> np.ndarray:
    """What OWLv2's resize does along one axis, as a matrix [outside, inside]: it is linear, so SciPy shows it on the identity."""
    from scipy import ndimage

    factor = inside / outside
    blurred = ndimage.gaussian_filter(np.eye(inside), [max(0.0, (factor - 1) / 2), 0.0], mode="mirror")
    found: np.ndarray = ndimage.zoom(blurred, [1 / factor, 1], order=1, mode="mirror", grid_mode=True)
    return found
