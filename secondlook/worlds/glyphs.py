"""The Glyphs world: one coloured shape on a dark ground, 32 x 32, 32 classes. A stand-in for ImageNet that a CPU can
train on, with unlimited data and an exact checker.

A glyph is an object of the Scenes world (docs/scenes.md: its shapes, colours, background, signed distances and
anti-aliasing) at half the scale: radius r uniform in [3.5, 5.25], centre uniform in [r + 1, 31 - r] on both axes. Class
``8 shape + colour`` counts both in the order of the Scenes grammar: 0 is a red circle, 31 a cyan cross.

**Checker.** On a uint8 picture, with the Scenes world's background, palette and thresholds of colour:

1. foreground = pixels farther than 57 (RGB) from the background; 4-connected components; exactly one has 6 px or more,
   and the others hold at most 3 px together;
2. colour: mean RGB of the quarter of its pixels (4 at least) farthest from the background; the nearest palette entry,
   wrong if farther than 64;
3. shape: the picture's coverage is its pixels' place on the way from the background to that colour, in [0, 1]; its
   overlap with a template is the real-valued intersection-over-union ``<a, b> / (|a|^2 + |b|^2 - <a, b>)`` (for masks
   the usual one), the template's centroid being put within half a pixel of the component's in steps of 1/4, its radius
   between 2 and 7.25 in steps of 1/4. The best template names shape and radius: wrong if the overlap is under 0.92 or
   the radius outside [3, 5.75];
4. flatness: of the pixels that the best template covers whole, with 0.15 px to spare, at least 90 % are within 64 of
   the palette entry;
5. right if shape and colour are those of the class.

Measured when written: it accepts all of 200,000 fresh glyphs, and of 20,000 each of these: asked for another colour or
shape, none; half of the bounding box gone, 0.01 %; one half in another colour, 0.02 % at most. It stands noise of 10 levels
(all accepted) and a Gaussian blur of 0.5 px (all), less one of 1 px (49 %). It is no detector of small damage: with a
fifth of the box gone on a side, 62 % pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from secondlook.errors import ConfigError, ShapeError
from secondlook.noise import Key, uniform
from secondlook.types import Condition
from secondlook.worlds.pixels import to_bytes
from secondlook.worlds.scenes.checker import FOREGROUND, MAX_COLOR_DISTANCE
from secondlook.worlds.scenes.grammar import COLORS, SHAPES
from secondlook.worlds.scenes.render import BACKGROUND, signed_distance
from secondlook.worlds.scenes.render import RADIUS as SCENES_RADIUS

SIZE = 32
RADIUS = (SCENES_RADIUS[0] / 2, SCENES_RADIUS[1] / 2)
EDGE = 1.0  # least distance from the edge of the picture, pixels
CLASSES = tuple(f"{color} {shape}" for shape in SHAPES for color in COLORS)
SMALLEST = 6  # pixels; smaller components are litter
MAX_LITTER = 3
MIN_IOU = 0.92
MIN_FLAT = 0.9
RADII = (3.0, 5.75)  # accepted radius, pixels
_CHUNK = 128  # pictures at a time, so that what is computed of them stays in the processor's cache
_HALF = 8  # of the window that templates are held against, pixels
_TEMPLATE_RADII = np.arange(2.0, 7.26, 0.25)
_SHIFTS = np.arange(-0.5, 0.51, 0.25)
_DEEP = -0.65  # signed distance of a pixel that is covered whole wherever between two templates the glyph is
_TRIANGLE_DROP = 0.2  # from its centre down to its centroid, in radii
_IN_PLANE = np.zeros((3, 3, 3), bool)  # 4-connected within a picture, nothing between the pictures of a batch
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)
_PALETTE = np.array(list(COLORS.values()), np.float32)
_GROUND = np.array(BACKGROUND, np.float32)


class Glyphs:
    """One coloured shape, 32 x 32; the class is the pair."""

    name = "glyphs"
    classes = CLASSES
    shape = (3, SIZE, SIZE)

    def condition(self, label: int) -> Condition:
        """The condition of a class; ConfigError for a label that is none."""
        if not 0 <= label < len(CLASSES):
            raise ConfigError(f"The glyphs world has classes 0 to {len(CLASSES) - 1}; got {label}.")
        return Condition(label=label)

    def encode(self, pictures: Tensor) -> Tensor:
        """uint8 pictures [B, 32, 32, 3] to x float32 [B, 3, 32, 32] in [-1, 1]; ShapeError for anything else."""
        _expect(pictures.dtype == torch.uint8, pictures)
        return pictures.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """x [B, 3, 32, 32] in about [-1, 1] to uint8 pictures [B, 32, 32, 3]."""
        return to_bytes(x)

    def pictures(self, seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
        """Fresh pictures uint8 [count, 32, 32, 3] and labels int64 [count], uniform: a pure function of its numbers."""
        u = uniform(Key.root(seed).child("glyphs", step), 4 * count).reshape(4, count)
        labels = (u[0] * len(CLASSES)).astype(np.int64)
        r = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * u[1]
        cx, cy = (r + EDGE + (SIZE - 2 * r - 2 * EDGE) * v for v in u[2:])
        return torch.from_numpy(render(labels, cx, cy, r)), torch.from_numpy(labels)

    def batch(self, seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
        """x float32 [count, 3, 32, 32] and labels int64 [count] of one training step: ``pictures``, encoded."""
        pictures, labels = self.pictures(seed, step, count)
        return self.encode(pictures), labels


class Checker:
    """The exact checker as a verifier: 1 for right, 0 for wrong, NaN without a label. As a guide, label it ``oracle``."""

    inline = True

    def __init__(self, name: str = "checker"):
        self.name = name

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        asked = np.array([-1 if c.label is None else c.label for c in conditions], np.int64)
        right = check(samples.numpy(), asked).astype(np.float64)
        return torch.from_numpy(np.where(asked < 0, np.nan, right))


def render(labels: np.ndarray, cx: np.ndarray, cy: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Pictures uint8 [B, 32, 32, 3] of one glyph each; labels int64 [B], centre and radius in pixels [B]."""
    pictures = np.empty((len(labels), SIZE, SIZE, 3), np.uint8)
    for at in range(0, len(labels), _CHUNK):
        part = slice(at, at + _CHUNK)
        share = cover(labels[part], cx[part], cy[part], r[part])
        toward = _PALETTE[labels[part] % len(COLORS)] - _GROUND
        for channel, ground in enumerate(_GROUND):  # numpy's loops are slow along an axis of three
            pictures[part, :, :, channel] = np.rint(ground + share * toward[:, channel, None, None])
    return pictures


def cover(labels: np.ndarray, cx: np.ndarray, cy: np.ndarray, r: np.ndarray) -> np.ndarray:
    """The share of each pixel that the glyph covers: float32 [B, 32, 32] in [0, 1]; arguments as for ``render``."""
    out = np.empty((len(labels), SIZE, SIZE), np.float32)
    at = np.arange(SIZE, dtype=np.float32) + np.float32(0.5)
    dx = at[None, None, :] - cx.astype(np.float32)[:, None, None]
    dy = at[None, :, None] - cy.astype(np.float32)[:, None, None]
    r = r.astype(np.float32)[:, None, None]
    for kind, shape in enumerate(SHAPES):
        same = np.flatnonzero(labels // len(COLORS) == kind)
        if len(same):
            out[same] = np.clip(np.float32(0.5) - signed_distance(shape, dx[same], dy[same], r[same]), 0, 1)
    return out


def check(pictures: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each picture, uint8 [B, 32, 32, 3], is a glyph of its class, int64 [B]: bool [B]. ShapeError otherwise."""
    found = seen(pictures)
    if len(found) != len(labels):
        raise ShapeError(f"{len(found)} pictures came with {len(labels)} labels; give one label for each picture.")
    return (found == np.asarray(labels)) & (found >= 0)


def seen(pictures: np.ndarray) -> np.ndarray:
    """The class of the glyph in each picture, uint8 [B, 32, 32, 3], and -1 where there is none: int64 [B]."""
    pictures = np.asarray(pictures)
    _expect(pictures.dtype == np.uint8, pictures)
    out = np.full(len(pictures), -1, np.int64)
    for at in range(0, len(pictures), _CHUNK):
        out[at : at + _CHUNK] = _seen(pictures[at : at + _CHUNK])
    return out


def _expect(is_uint8: bool, pictures: np.ndarray | Tensor) -> None:
    if not is_uint8 or pictures.ndim != 4 or tuple(pictures.shape[1:]) != (SIZE, SIZE, 3):
        raise ShapeError(
            f"Glyphs are uint8 pictures [B, {SIZE}, {SIZE}, 3]; got {pictures.dtype} {list(pictures.shape)}."
        )


def _seen(pictures: np.ndarray) -> np.ndarray:
    """``seen`` of at least one picture."""
    away = pictures.astype(np.float32) - _GROUND
    distance = np.sqrt(np.einsum("bijc,bijc->bij", away, away))
    components, count = ndimage.label(distance > FOREGROUND, _IN_PLANE)
    owner = np.zeros(count + 1, np.int64)  # the picture of each component
    where = np.nonzero(components)
    owner[components[where]] = where[0]
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    sizes[0] = 0
    large = sizes >= SMALLEST
    out = np.full(len(pictures), -1, np.int64)
    objects = np.bincount(owner[large], minlength=len(pictures))
    litter = np.bincount(owner, np.where(large, 0, sizes), len(pictures))
    which = np.zeros(len(pictures), np.int64)
    which[owner[large]] = np.flatnonzero(large)
    rows = np.flatnonzero((objects == 1) & (litter <= MAX_LITTER))
    if len(rows):
        mask = components[rows] == which[rows, None, None]
        out[rows] = _named(pictures[rows].astype(np.float32), away[rows], distance[rows] * mask, mask)
    return out


def _named(pictures: np.ndarray, away: np.ndarray, distance: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Steps 2 to 4: the class of each picture's only component, or -1. mask [B, 32, 32] is the component, away the
    pictures less the background, distance its length within the component and 0 elsewhere."""
    n = len(pictures)
    flat, ranked = pictures.reshape(n, -1, 3), np.argsort(-distance.reshape(n, -1), axis=1, kind="stable")
    take = np.maximum(4, mask.sum((1, 2)) // 4)
    total = np.take_along_axis(flat, ranked[:, : take.max(), None], 1).cumsum(1)
    mean = total[np.arange(n), take - 1] / take[:, None]
    gaps = np.linalg.norm(mean[:, None] - _PALETTE, axis=-1)
    color = gaps.argmin(1)
    toward = _PALETTE[color] - _GROUND
    share = np.einsum("bijc,bc->bij", away, toward) / np.einsum("bc,bc->b", toward, toward)[:, None, None]
    window, corner, inside = _window(np.clip(share, 0, 1) * mask)
    templates, squares, deep, kinds, radii = _templates()
    shared = window @ templates.T
    overlap = shared / (np.einsum("bp,bp->b", window, window)[:, None] + squares - shared)
    best = overlap.argmax(1)
    near = np.linalg.norm(pictures - _PALETTE[color][:, None, None], axis=-1) <= MAX_COLOR_DISTANCE
    flat_share = (_cut(near, corner) & deep[best]).sum(1) / np.maximum(deep[best].sum(1), 1)
    fits = inside & (overlap.max(1) >= MIN_IOU) & (radii[best] >= RADII[0]) & (radii[best] <= RADII[1])
    right = fits & (gaps.min(1) <= MAX_COLOR_DISTANCE) & (flat_share >= MIN_FLAT)
    return np.where(right, kinds[best] * len(COLORS) + color, -1)


def _window(share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage [B, 32, 32] around its centroid: [B, 256]; the window's corner (row, column) in the picture padded by
    ``_HALF``, int64 [B, 2]; and whether all of the coverage lies in the window, bool [B]."""
    total = np.maximum(share.sum((1, 2)), 1e-6)
    at = np.arange(SIZE) + 0.5
    centre = np.stack([share.sum(2) @ at / total, share.sum(1) @ at / total], 1)
    corner = np.rint(centre).astype(np.int64)
    window = _cut(share, corner)
    return window, corner, np.abs(window.sum(1) - total) < 1e-3 * total


def _cut(planes: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """The window [B, 256] of each plane [B, 32, 32], whose corner [B, 2] counts from that of the padded plane."""
    padded = np.pad(planes, ((0, 0), (_HALF, _HALF), (_HALF, _HALF)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (2 * _HALF, 2 * _HALF), (1, 2))
    return views[np.arange(len(planes)), corner[:, 0], corner[:, 1]].reshape(len(planes), -1)


@cache
def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Coverage of each template in a window, float32 [K, 256]; its sum of squares [K]; the pixels deep inside it, bool
    [K, 256]; shape number and radius [K].

    Radii out of range take part too: a square too large to be one must not pass for the circle it overlaps next best.
    """
    at = np.arange(2 * _HALF) + 0.5 - _HALF
    covers, deep, kinds, radii = [], [], [], []
    for (kind, shape), r, sx, sy in product(enumerate(SHAPES), _TEMPLATE_RADII, _SHIFTS, _SHIFTS):
        drop = _TRIANGLE_DROP * r if shape == "triangle" else 0.0
        d = signed_distance(shape, at[None, :] - sx, at[:, None] - sy + drop, np.array(r))
        covers.append(np.clip(0.5 - d, 0, 1).ravel())
        deep.append((d <= _DEEP).ravel())
        kinds.append(kind)
        radii.append(r)
    stacked = np.array(covers, np.float32)
    return stacked, np.einsum("kp,kp->k", stacked, stacked), np.array(deep), np.array(kinds), np.array(radii)
