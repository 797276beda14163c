"""Verifiers that need no network: brightness, sharpness, compressibility. They look at the pixels alone and know nothing of
the prompt, so what they guide gets brighter, sharper or plainer, not better; for trying things out, on any pictures.

Each row is measured alone, and but for a last division and root in whole numbers, so its number cannot depend on its company.
"""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from secondlook.errors import ConfigError, ShapeError
from secondlook.types import Condition

WEIGHTS = np.array([299, 587, 114])  # thousandths of red, green and blue in Rec. 601's luma
WHITE = 255_000  # its largest value: 255 times the weights' sum
SIDE = 512  # pixels; sharpness averages longer sides down to this
QUALITY = 95  # of the JPEG whose size is taken (2305.13301)


class _Measure(ABC):
    """A number for each picture, whatever was asked for."""

    name = ""
    inline = True

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """uint8 [B, H, W, 3] to [B] float64; ShapeError for anything else."""
        if samples.dtype != torch.uint8 or samples.ndim != 4 or samples.shape[3] != 3 or 0 in samples.shape[1:]:
            raise ShapeError(
                f"{self.name} reads uint8 pictures [B, H, W, 3]; it was given {samples.dtype} {list(samples.shape)}."
            )
        return torch.tensor([self.of(row.cpu().contiguous().numpy()) for row in samples], dtype=torch.float64)

    @abstractmethod
    def of(self, picture: np.ndarray) -> float:
        """One picture's number; uint8 [H, W, 3]."""


class _Smooth(_Measure):
    """A measure that also has a value for numbers between the levels, and so a gradient."""

    def gradient(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """float [B, H, W, 3] in [0, 1] to the measure's derivative by each number (``types.Differentiable``). ShapeError for anything else."""
        if not samples.is_floating_point() or samples.ndim != 4 or samples.shape[3] != 3 or 0 in samples.shape[1:]:
            raise ShapeError(
                f"{self.name} has a gradient of float pictures [B, H, W, 3]; it was given {samples.dtype} {list(samples.shape)}."
            )
        with torch.inference_mode(False), torch.enable_grad():
            x = samples.detach().double().requires_grad_()
            light = x @ torch.tensor(WEIGHTS / 1000, dtype=torch.float64, device=x.device)
            [found] = torch.autograd.grad(torch.stack([self.value(row) for row in light]).sum(), x)
        return found.to(samples)

    @abstractmethod
    def value(self, light: Tensor) -> Tensor:
        """The measure of a luma [H, W] from 0 to 1, one number; what ``of`` says but for rounding."""


class Brightness(_Smooth):
    """The mean luma, from 0 (black) to 1 (white)."""

    name = "brightness"

    def value(self, light: Tensor) -> Tensor:
        return light.mean()

    def of(self, picture: np.ndarray) -> float:
        found = luma(picture)
        return int(found.sum()) / (WHITE * found.size)


class Sharpness(_Smooth):
    """The standard deviation, over all pixels, of the Laplacian of the luma (luma from 0 to 1): the sum of the four
    neighbours less four times the pixel, with the border's pixels repeated outside. From 0 (flat) to 4; noise is sharp too.

    So that sizes compare, a picture whose longer side is above SIDE is first averaged by area until it is SIDE; smaller ones
    are taken as they are.
    """

    name = "sharpness"

    def value(self, light: Tensor) -> Tensor:
        size = reduced_size(*light.shape)
        if size != tuple(light.shape):
            light = (
                _averages(light.shape[0], size[0]).to(light).T @ light @ _averages(light.shape[1], size[1]).to(light)
            )
        edged = F.pad(light[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
        bent = edged[:-2, 1:-1] + edged[2:, 1:-1] + edged[1:-1, :-2] + edged[1:-1, 2:] - 4 * light
        spread = bent.var(correction=0)
        return torch.where(spread > 0, spread, torch.ones_like(spread)).sqrt() * (spread > 0)  # no slope where flat

    def of(self, picture: np.ndarray) -> float:
        found = _reduced(luma(picture))
        edged = np.pad(found, 1, mode="edge")
        bent = edged[:-2, 1:-1] + edged[2:, 1:-1] + edged[1:-1, :-2] + edged[1:-1, 2:] - 4 * found
        n, first, second = bent.size, int(bent.sum()), int((bent * bent).sum())
        return math.sqrt((n * second - first * first) / (n * n)) / WHITE


class Compressibility(_Measure):
    """Minus the picture's size as a JPEG of quality 95, in kilobytes (1000 bytes), as in DDPO (2305.13301): plain pictures
    score high. With ``sign`` -1 the size itself, which DDPO calls incompressibility. Pillow's version decides the bytes."""

    def __init__(self, sign: int = 1):
        if sign not in (1, -1):
            raise ConfigError(f"compressibility: sign is 1 (small files score high) or -1 (large ones); got {sign!r}.")
        self.sign = sign
        self.name = "compressibility" if sign == 1 else "incompressibility"

    def of(self, picture: np.ndarray) -> float:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "jpeg", quality=QUALITY)
        return -self.sign * buffer.tell() / 1000


def luma(picture: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to int64 [H, W], from 0 to WHITE: exact."""
    return picture.astype(np.int64) @ WEIGHTS


def _reduced(found: np.ndarray) -> np.ndarray:
    """Luma [H, W] averaged by area until its longer side is at most SIDE, in whole numbers again."""
    size = reduced_size(*found.shape)
    if size == found.shape:
        return found
    image = Image.fromarray(found.astype(np.float32)).resize(size[::-1], Image.Resampling.BOX)
    return np.rint(np.asarray(image)).astype(np.int64)


def _averages(count: int, fewer: int) -> Tensor:
    """[count, fewer] float64: the weights with which Pillow averages so many pixels by area into fewer."""
    each = Image.fromarray(np.eye(count, dtype=np.float32)).resize((fewer, count), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(each).astype(np.float64))


def reduced_size(height: int, width: int) -> tuple[int, int]:
    """Height and width with the longer side at most SIDE."""
    longer = max(height, width, SIDE)
    return max(1, round(height * SIDE / longer)), max(1, round(width * SIDE / longer))
