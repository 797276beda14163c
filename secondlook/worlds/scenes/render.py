"""Scenes pictures: objects placed by the rules of the world and drawn anti-aliased from signed distances."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secondlook.worlds.scenes.grammar import COLORS, SHAPES, Prompt

SIZE = 64
BACKGROUND = (30, 30, 34)
RADIUS = (7.0, 10.5)
_WINDOW = 24  # covers radius 10.5 and half a pixel of anti-aliasing on either side, wherever the centre falls
_MARGIN = 16
_CHUNK = 128  # scenes at a time; more at once run slower, as their canvas outgrows the processor's cache
_SQUARE = 0.88
_SLOPE = math.hypot(1.0, 1.8)


@dataclass(frozen=True)
class Thing:
    """An object in a picture: centre (cx, cy) in pixels, x to the right and y downward, radius r."""

    shape: str
    color: str
    cx: float
    cy: float
    r: float

    @property
    def box_center(self) -> tuple[float, float]:
        """Centre of the bounding box: a triangle spans -r to 0.8 r around its centre, the others are symmetric."""
        return self.cx, self.cy - (0.1 * self.r if self.shape == "triangle" else 0.0)


def signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Signed distance in pixels (negative inside) at offsets (dx, dy) from the centre, as the specification has it."""
    ax, ay = np.abs(dx), np.abs(dy)
    d: np.ndarray
    if shape == "circle":
        d = np.hypot(dx, dy) - r
    elif shape == "square":
        d = np.maximum(ax, ay) - _SQUARE * r
    elif shape == "cross":
        d = np.minimum(np.maximum(ax - r, ay - 0.36 * r), np.maximum(ax - 0.36 * r, ay - r))
    elif shape == "triangle":
        d = np.maximum(dy - 0.8 * r, (1.8 * ax - dy - r) / _SLOPE)
    else:
        raise ValueError(f"no such shape: {shape!r}; known: {SHAPES}")
    return d


def render(scenes: Sequence[Sequence[Thing]]) -> np.ndarray:
    """Pictures of scenes: uint8 [B, 64, 64, 3]."""
    pictures = np.empty((len(scenes), SIZE, SIZE, 3), np.uint8)
    for at in range(0, len(scenes), _CHUNK):
        pictures[at : at + _CHUNK] = _render(scenes[at : at + _CHUNK])
    return pictures


def _render(scenes: Sequence[Sequence[Thing]]) -> np.ndarray:
    pad = SIZE + 2 * _MARGIN
    canvas = np.empty((len(scenes), pad, pad, 3), np.float32)
    canvas[:] = BACKGROUND
    things = [(i, t) for i, scene in enumerate(scenes) for t in scene]
    for shape in SHAPES:
        same = [(i, t) for i, t in things if t.shape == shape]
        if same:
            _draw(canvas, shape, same)
    return np.rint(canvas[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN])


def _draw(canvas: np.ndarray, shape: str, things: Sequence[tuple[int, Thing]]) -> None:
    cx, cy, r = (np.array([getattr(t, k) for _, t in things])[:, None, None] for k in ("cx", "cy", "r"))
    left = np.floor(cx).astype(int) - _WINDOW // 2
    top = np.floor(cy).astype(int) - _WINDOW // 2
    steps = np.arange(_WINDOW) + 0.5
    dx = (left + steps[None, None, :] - cx).astype(np.float32)
    dy = (top + steps[None, :, None] - cy).astype(np.float32)
    cover = np.clip(0.5 - signed_distance(shape, dx, dy, r.astype(np.float32)), 0.0, 1.0)[..., None]
    color = np.array([COLORS[t.color] for _, t in things], np.float32)[:, None, None, :]
    for n, (i, _) in enumerate(things):
        y, x = int(top[n, 0, 0]) + _MARGIN, int(left[n, 0, 0]) + _MARGIN
        window = canvas[i, y : y + _WINDOW, x : x + _WINDOW]
        window += cover[n] * (color[n] - window)


def sample_scene(prompt: Prompt, rng: random.Random) -> list[Thing]:
    """A random scene of the prompt: free colours and radii uniform, places uniform among those the rules allow."""
    colors = tuple(COLORS)
    specs = [(g.shape, g.color or rng.choice(colors)) for g in prompt.groups for _ in range(g.count)]
    while True:
        radii = [rng.uniform(*RADIUS) for _ in specs]
        # Rejection keeps places uniform given the radii; crowded radii are redrawn after many tries.
        for _ in range(200):
            scene = [Thing(s, c, rng.uniform(r + 2, 62 - r), rng.uniform(r + 2, 62 - r), r)
                     for (s, c), r in zip(specs, radii, strict=True)]  # fmt: skip
            if apart(scene) and related(scene, prompt.relation):
                return scene


def apart(scene: Sequence[Thing]) -> bool:
    """Whether no two objects come nearer than the rules allow."""
    for i, a in enumerate(scene):
        for b in scene[:i]:
            if max(abs(a.cx - b.cx), abs(a.cy - b.cy)) <= a.r + b.r + 3:
                return False
    return True


def related(scene: Sequence[Thing], relation: str | None) -> bool:
    """Whether the first object stands to the second as asked, by 2 px more than along the other axis."""
    if relation is None:
        return True
    (ax, ay), (bx, by) = scene[0].box_center, scene[1].box_center
    dx, dy = ax - bx, ay - by
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
    across = abs(dy) if relation in ("left of", "right of") else abs(dx)
    return along - across >= 2
