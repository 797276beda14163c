"""Pillow's resampling, bit for bit, on any device: pictures are judged where they were drawn, and a judge's number does not
depend on where that was.

Pillow resizes 8-bit pictures in two passes, along rows and along columns. Each output pixel is a sum over a window of the input with
weights that are rounded to 22 fractional bits, and after each pass it is rounded to 8 bits again (Pillow's
``src/libImaging/Resample.c``). All of that is integer arithmetic, so it is done here in the same integers. Which pass comes first
differs with Pillow's release and the sizes, and shows in the last bits: it is found out once for each pair of sizes, by asking Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from secondlook.errors import ConfigError

BITS = 22  # fractional bits of a weight: 32 less the 8 of a pixel less 2 to spare


def _sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(math.pi * x) / (math.pi * x)


def _box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def _bilinear(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _hamming(x: float) -> float:
    return 0.0 if abs(x) >= 1 else _sinc(x) * (0.54 + 0.46 * math.cos(math.pi * x))


def _bicubic(x: float) -> float:
    """Keys' cubic convolution with a = -0.5."""
    a, x = -0.5, abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0


# By Pillow's number of the filter (PIL.Image.Resampling): the function, and how far it reaches.
FILTERS: dict[int, tuple[Callable[[float], float], float]] = {
    1: (_lanczos, 3.0), 2: (_bilinear, 1.0), 3: (_bicubic, 2.0), 4: (_box, 0.5), 5: (_hamming, 1.0)
}  # fmt: skip


@lru_cache(maxsize=64)
def _windows(inside: int, outside: int, kind: int) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """For each of ``outside`` pixels the places of ``inside`` that it reads, and their weights times 2**22; as many for each."""
    shape, reach = FILTERS[kind]
    scale = inside / outside
    wide = max(1.0, scale)  # antialiasing: the filter is as wide as an output pixel
    most = math.ceil(reach * wide) * 2 + 1
    places, weights = [], []
    for at in range(outside):
        centre = (at + 0.5) * scale
        first = max(0, int(centre - reach * wide + 0.5))
        last = min(inside, int(centre + reach * wide + 0.5))
        raw = [shape((i - centre + 0.5) * (1.0 / wide)) for i in range(first, last)]
        total = sum(raw)
        share = [w / total if total else w for w in raw]
        whole = [int(w * (1 << BITS) + (0.5 if w >= 0 else -0.5)) for w in share]
        spare = most - len(whole)
        places.append((*range(first, last), *[first] * spare))
        weights.append((*whole, *[0] * spare))
    return tuple(places), tuple(weights)


def _across(x: Tensor, dim: int, size: int, kind: int) -> Tensor:
    """One pass along ``dim``; integers from 0 to 255 in and out, int32."""
    inside = x.shape[dim]
    if inside == size:
        return x
    places, weights = (torch.tensor(part, device=x.device, dtype=d).T.contiguous()
                       for part, d in zip(_windows(inside, size, kind), (torch.int64, torch.int32), strict=True))  # fmt: skip
    shape = [1] * x.ndim
    shape[dim] = size
    total = torch.full([*x.shape[:dim], size, *x.shape[dim + 1 :]], 1 << (BITS - 1), dtype=torch.int32, device=x.device)
    for where, weight in zip(places, weights, strict=True):
        total += x.index_select(dim, where) * weight.view(shape)
    return (total >> BITS).clamp_(0, 255)


def resize(pictures: Tensor, size: tuple[int, int], kind: int) -> Tensor:
    """uint8 [B, H, W, C] to uint8 [B, *size, C], as ``PIL.Image.resize((w, h), kind)`` does with each. kind: the number of
    ``PIL.Image.Resampling``; ConfigError for another, and for "nearest", which no judge uses. On the CPU Pillow itself does it, which
    is ten times as fast there."""
    if kind not in FILTERS:
        raise ConfigError(
            f"Pictures are resized by Pillow's filters number 1 to 5 here; the configuration names {kind}."
        )
    if pictures.device.type == "cpu":
        resized = [np.array(Image.fromarray(p.numpy()).resize(size[::-1], kind)) for p in pictures]
        return torch.from_numpy(np.stack(resized))
    return windowed(pictures, size, kind)


def windowed(pictures: Tensor, size: tuple[int, int], kind: int) -> Tensor:
    """The same in torch's integers, on any device."""
    order = passes(int(pictures.shape[1]), int(pictures.shape[2]), *size, kind)
    if order is None:  # a Pillow that works otherwise than any known one: it is asked itself
        return resize(pictures.cpu(), size, kind).to(pictures.device)
    return _in_order(pictures, size, kind, order)


def _in_order(pictures: Tensor, size: tuple[int, int], kind: int, order: tuple[int, int]) -> Tensor:
    x = pictures.int()
    for dim in order:
        x = _across(x, dim, size[dim - 1], kind)
    return x.to(torch.uint8)


@lru_cache(maxsize=64)
def passes(height: int, width: int, tall: int, wide: int, kind: int) -> tuple[int, int] | None:
    """Which axis Pillow resamples first between these sizes, (2, 1) for along rows or (1, 2), told by noise; None where it is neither."""
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8))
    wanted = resize(noise, (tall, wide), kind)
    return next((o for o in ((2, 1), (1, 2)) if torch.equal(_in_order(noise, (tall, wide), kind, o), wanted)), None)
