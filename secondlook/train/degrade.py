"""Pictures of Digits and Glyphs, a little changed or broken: what their classifiers are taught with and tested on.

A broken digit counts as "none of them" by the way it was made; some of them a person would still read. A degraded glyph
counts as what the world's exact checker sees in it, which is still its class where the damage is slight. The kinds in
``DIGIT_KINDS_UNSEEN`` and ``GLYPH_KINDS_UNSEEN`` train nothing: they show how far rejecting goes beyond what was taught.

Everything is drawn from the generator given. x is float32 [B, C, H, W] in [-1, 1], -1 being a digit's background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from secondlook.worlds.digits import Digits
from secondlook.worlds.glyphs import EDGE, RADIUS, SIZE, Glyphs, cover, seen
from secondlook.worlds.scenes.grammar import COLORS, SHAPES
from secondlook.worlds.scenes.render import BACKGROUND

_GROUND = torch.tensor(BACKGROUND) / 127.5 - 1
_PALETTE = torch.tensor(list(COLORS.values())) / 127.5 - 1


def _between(low: float, high: float, shape: Sequence[int], g: Generator) -> Tensor:
    return low + (high - low) * torch.rand(tuple(shape), generator=g)


def _field(x: Tensor, channels: int, g: Generator, coarse: int = 3) -> Tensor:
    """Smooth noise of about unit variance, [B, channels, H, W]."""
    field = torch.randn(len(x), channels, coarse, coarse, generator=g)
    return F.interpolate(field, size=x.shape[2:], mode="bicubic", align_corners=False)


def _displaced(x: Tensor, by: Tensor, mode: str = "bilinear") -> Tensor:
    """x read ``by`` [B, 2, H, W] pixels (rightward, downward) away from each place, edges repeated."""
    side = x.shape[-1]
    at = (torch.arange(side) + 0.5) * 2 / side - 1
    rows, columns = torch.meshgrid(at, at, indexing="ij")
    places = torch.stack([columns, rows], -1) + by.permute(0, 2, 3, 1) * (2 / side)
    return F.grid_sample(x, places, mode=mode, padding_mode="border", align_corners=False)


def _turn(side: int, angle: Tensor, scale: Tensor) -> Tensor:
    """The displacement [B, 2, side, side] that turns by ``angle`` [B] rad about the middle and enlarges by ``scale``."""
    at = torch.arange(side) + 0.5 - side / 2
    rows, columns = torch.meshgrid(at, at, indexing="ij")
    cos, sin = (torch.cos(angle) / scale)[:, None, None], (torch.sin(angle) / scale)[:, None, None]
    return torch.stack([cos * columns - sin * rows - columns, sin * columns + cos * rows - rows], 1)


def _blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian blur, sigma [B] in pixels, edges repeated."""
    b, c, h, w = x.shape
    at = torch.arange(-4, 5)
    kernel = torch.exp(-at.square() / (2 * sigma[:, None].square()))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)
    flat = F.pad(x, (4, 4, 4, 4), mode="replicate").view(1, b * c, h + 8, w + 8)
    flat = F.conv2d(F.conv2d(flat, kernel[:, None, None], groups=b * c), kernel[:, None, :, None], groups=b * c)
    return flat.view(b, c, h, w)


def _noisy(x: Tensor, low: float, high: float, g: Generator) -> Tensor:
    return x + _between(low, high, (len(x), 1, 1, 1), g) * torch.randn(x.shape, generator=g)


def light_digits(x: Tensor, g: Generator) -> Tensor:
    """Digits turned, scaled, shifted, bent, inked and shaken by as much as leaves them what they are; a quarter of them
    are only inked and shaken, since resampling 8 x 8 pixels blurs."""
    b = len(x)
    by = _turn(x.shape[-1], _between(-0.2, 0.2, (b,), g), _between(0.9, 1.1, (b,), g))
    by = by + _between(-0.7, 0.7, (b, 2, 1, 1), g) + 0.2 * _field(x, 2, g)
    still = torch.rand(b, 1, 1, 1, generator=g) < 0.25
    x = torch.where(still, x, _displaced(x, by, "bicubic"))
    x = (x + 1) * _between(0.85, 1.1, (b, 1, 1, 1), g) - 1
    return _levels(_noisy(x, 0.0, 0.1, g))


def _levels(x: Tensor) -> Tensor:
    world = Digits()
    return world.encode(world.decode(x))


def _blend(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    share = _between(0.35, 0.65, (len(x), 1, 1, 1), g)
    return share * x + (1 - share) * other


def _splice(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """A half of one digit and the opposite half of another."""
    first = (torch.arange(8) < 4)[None, None, :, None].expand(len(x), 1, 8, 8)
    across = torch.rand(len(x), 1, 1, 1, generator=g) < 0.5
    swap = torch.rand(len(x), 1, 1, 1, generator=g) < 0.5
    return torch.where(torch.where(across, first.transpose(2, 3), first) ^ swap, x, other)


def _static(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """No digit at all: independent levels, or smooth blobs of about a digit's ink."""
    rough = 2 * torch.rand(x.shape, generator=g) - 1
    blobs = 1.2 * _field(x, 1, g, 4) - 0.4
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=g) < 0.4, rough, blobs)


def _shuffle(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """The sixteen 2 x 2 patches in another order."""
    order = torch.rand(len(x), 16, generator=g).argsort(1)[:, None].expand(-1, 4, -1)
    return F.fold(F.unfold(x, 2, stride=2).gather(2, order), (8, 8), 2, stride=2)


def _erase(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """A 5 x 5 hole somewhere over the middle."""
    top, left = torch.randint(0, 4, (2, len(x), 1, 1, 1), generator=g)
    at = torch.arange(8)
    rows, columns = at[None, None, :, None] - top, at[None, None, None, :] - left
    return torch.where((rows >= 0) & (rows < 5) & (columns >= 0) & (columns < 5), torch.tensor(-1.0), x)


def _faint(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    ink = _blurred(x, _between(0.9, 1.6, (len(x),), g)) + 1
    return ink * _between(0.4, 1.0, (len(x), 1, 1, 1), g) - 1


def _warp(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    return _displaced(x, _between(1.5, 2.5, (len(x), 1, 1, 1), g) * _field(x, 2, g))


def _speckle(x: Tensor, other: Tensor, g: Generator) -> Tensor:
    """A quarter to half of all pixels replaced by any level."""
    hit = torch.rand(x.shape, generator=g) < _between(0.25, 0.5, (len(x), 1, 1, 1), g)
    return torch.where(hit, 2 * torch.rand(x.shape, generator=g) - 1, x)


_DIGITS: dict[str, Callable[[Tensor, Tensor, Generator], Tensor]] = {
    "blend": _blend,
    "union": lambda x, other, g: torch.maximum(x, other),
    "splice": _splice,
    "noise": lambda x, other, g: _noisy(x, 0.45, 1.0, g),
    "static": _static,
    "shuffle": _shuffle,
    "erase": _erase,
    "faint": _faint,
    "warp": _warp,
    "speckle": _speckle,
}
DIGIT_KINDS_UNSEEN = ("speckle",)
DIGIT_KINDS = tuple(kind for kind in _DIGITS if kind not in DIGIT_KINDS_UNSEEN)


def broken_digits(x: Tensor, labels: Tensor, g: Generator, kinds: Sequence[str] = DIGIT_KINDS) -> Tensor:
    """Each digit broken in one way drawn from ``kinds``. Mixtures take a partner of another class from the batch, which
    must hold two classes."""
    unlike = torch.rand(len(x), len(x), generator=g) * (labels[:, None] != labels)
    other = x[unlike.argmax(1)]
    which = torch.randint(len(kinds), (len(x),), generator=g)
    out = x.clone()
    for k, kind in enumerate(kinds):
        rows = torch.nonzero(which == k)[:, 0]
        if len(rows):
            out[rows] = _DIGITS[kind](x[rows], other[rows], g)
    return _levels(out)


@dataclass(frozen=True)
class Placed:
    """Glyphs before they are drawn: class int64 [B], centre and radius in pixels, float64 [B]."""

    labels: np.ndarray
    cx: np.ndarray
    cy: np.ndarray
    r: np.ndarray

    def cover(self) -> Tensor:
        """[B, 1, 32, 32] in [0, 1]."""
        return torch.from_numpy(cover(self.labels, self.cx, self.cy, self.r))[:, None]

    def color(self) -> Tensor:
        """[B, 3, 1, 1] in [-1, 1]."""
        return _PALETTE[torch.from_numpy(self.labels % len(COLORS))][:, :, None, None]

    def draw(self) -> Tensor:
        return _painted(self.cover(), self.color())


def placed(count: int, g: Generator) -> Placed:
    """Glyphs by the rules of the world."""
    u = torch.rand(3, count, generator=g, dtype=torch.float64).numpy()
    r = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * u[0]
    labels = torch.randint(len(Glyphs.classes), (count,), generator=g).numpy()
    cx, cy = (r + EDGE + (SIZE - 2 * r - 2 * EDGE) * v for v in u[1:])
    return Placed(labels, cx, cy, r)


def _painted(share: Tensor, color: Tensor) -> Tensor:
    ground = _GROUND[:, None, None]
    return ground + share * (color - ground)


def _another(p: Placed, g: Generator, *, shape: bool) -> Placed:
    """The same glyphs of another shape, or of another colour."""
    step = torch.randint(1, len(SHAPES) if shape else len(COLORS), p.labels.shape, generator=g).numpy()
    kind, color = np.divmod(p.labels, len(COLORS))
    kind, color = ((kind + step) % len(SHAPES), color) if shape else (kind, (color + step) % len(COLORS))
    return replace(p, labels=kind * len(COLORS) + color)


def _sides(p: Placed, share: Tensor, g: Generator) -> Tensor:
    """Bool [B, 1, 32, 32]: the pixels within ``share`` [B] of the glyph's extent from a side drawn at random."""
    at = torch.arange(SIZE) + 0.5
    cx, cy, r = (torch.from_numpy(v).float()[:, None, None, None] for v in (p.cx, p.cy, p.r))
    side = torch.randint(4, (len(p.labels), 1, 1, 1), generator=g)
    across = torch.where(side < 2, (at[None, None, None] - cx) / r, (at[None, None, :, None] - cy) / r)
    return torch.where(side % 2 == 0, across, -across) < 2 * share[:, None, None, None] - 1


def _cut_off(p: Placed, g: Generator) -> Tensor:
    keep = ~_sides(p, _between(0.15, 0.6, p.labels.shape, g), g)
    return _painted(p.cover() * keep, p.color())


def _two(p: Placed, g: Generator) -> Tensor:
    return torch.where(p.cover() > 0, p.draw(), placed(len(p.labels), g).draw())


def _ghost(p: Placed, g: Generator) -> Tensor:
    share = _between(0.05, 0.95, (len(p.labels), 1, 1, 1), g)
    return share * p.draw() + (1 - share) * placed(len(p.labels), g).draw()


def _merged(p: Placed, g: Generator) -> Tensor:
    """Between two shapes at one place."""
    share = _between(0.1, 0.9, (len(p.labels), 1, 1, 1), g)
    return _painted(share * p.cover() + (1 - share) * _another(p, g, shape=True).cover(), p.color())


def _tinted(p: Placed, g: Generator) -> Tensor:
    """Between two colours."""
    share = _between(0.05, 0.95, (len(p.labels), 1, 1, 1), g)
    return _painted(p.cover(), share * p.color() + (1 - share) * _another(p, g, shape=False).color())


def _striped(p: Placed, g: Generator) -> Tensor:
    """Two colours side by side."""
    part = _sides(p, _between(0.1, 0.6, p.labels.shape, g), g)
    return _painted(p.cover(), torch.where(part, _another(p, g, shape=False).color(), p.color()))


def _resized(p: Placed, g: Generator) -> Tensor:
    return replace(p, r=p.r * _between(0.5, 1.5, p.labels.shape, g).double().numpy()).draw()


def _bent(p: Placed, g: Generator) -> Tensor:
    x = p.draw()
    return _displaced(x, _between(0.2, 2.0, (len(x), 1, 1, 1), g) * _field(x, 2, g, 6))


def _specked(p: Placed, g: Generator) -> Tensor:
    """One to a dozen pixels of other colours."""
    x = p.draw()
    hit = torch.rand(len(x), 1, SIZE, SIZE, generator=g) < _between(1, 12, (len(x), 1, 1, 1), g) / SIZE**2
    return torch.where(hit, 2 * torch.rand(x.shape, generator=g) - 1, x)


def _pixelated(p: Placed, g: Generator) -> Tensor:
    """Means of 2 x 2 pixels."""
    return F.interpolate(F.avg_pool2d(p.draw(), 2), scale_factor=2, mode="nearest")


_GLYPHS: dict[str, Callable[[Placed, Generator], Tensor]] = {
    "cut": _cut_off,
    "two": _two,
    "ghost": _ghost,
    "merged": _merged,
    "tinted": _tinted,
    "striped": _striped,
    "resized": _resized,
    "bent": _bent,
    "specked": _specked,
    "blurred": lambda p, g: _blurred(p.draw(), _between(0.3, 1.8, p.labels.shape, g)),
    "noisy": lambda p, g: _noisy(p.draw(), 0.0, 0.3, g),
    "clouded": lambda p, g: p.draw() + _between(0.05, 0.5, (len(p.labels), 1, 1, 1), g) * _field(p.draw(), 3, g, 5),
    "pixelated": _pixelated,
}
GLYPH_KINDS_UNSEEN = ("pixelated",)
GLYPH_KINDS = tuple(kind for kind in _GLYPHS if kind not in GLYPH_KINDS_UNSEEN)


def light_glyphs(count: int, g: Generator) -> tuple[Tensor, Tensor]:
    """Fresh glyphs, half of them under a little noise: uint8 [count, 32, 32, 3] and their classes int64 [count]."""
    p = placed(count, g)
    few = count // 2
    x = p.draw()
    x[:few] = _noisy(x[:few], 0.0, 0.08, g)
    return Glyphs().decode(x), torch.from_numpy(p.labels)


def degraded_glyphs(count: int, g: Generator, kinds: Sequence[str] = GLYPH_KINDS) -> tuple[Tensor, Tensor, Tensor]:
    """Glyphs each degraded in one way drawn from ``kinds``: pictures uint8 [count, 32, 32, 3], the classes that they
    were drawn as int64 [count], and what the checker sees in them int64 [count], 32 for nothing."""
    pictures, asked = [], []
    shares = torch.bincount(torch.randint(len(kinds), (count,), generator=g), minlength=len(kinds)).tolist()
    for kind, few in zip(kinds, shares, strict=True):
        if few:
            p = placed(few, g)
            pictures.append(Glyphs().decode(_GLYPHS[kind](p, g)))
            asked.append(torch.from_numpy(p.labels))
    shown = torch.cat(pictures)
    found = torch.from_numpy(seen(shown.numpy()))
    return shown, torch.cat(asked), torch.where(found < 0, len(Glyphs.classes), found)
