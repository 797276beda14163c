"""The exact checker of the Scenes world: what is in a picture, and whether that is what a prompt asks for.

It is independent of every trained part. ``detect`` does the costly half and knows no prompt; ``judge`` is cheap, so
that one picture can be held against many prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from scipy import ndimage

from secondlook.errors import ShapeError
from secondlook.worlds.scenes.grammar import COLORS, PLURAL_OF, SHAPES, Group, Prompt
from secondlook.worlds.scenes.render import BACKGROUND, SIZE, signed_distance

FOREGROUND = 57.0  # RGB distance from the background above which a pixel belongs to an object
SMALLEST = 8  # pixels; smaller components are litter
MAX_LITTER = 12  # pixels of litter a right picture may hold
MIN_CORE = 4  # pixels the eroded component needs to speak for its colour
MAX_COLOR_DISTANCE = 64.0
MIN_IOU = 0.75
RADII = (5.5, 12.5)  # accepted radius, pixels
RELATION_MARGIN = 6.0  # pixels
_RADIUS_STEPS = (-0.6, -0.3, 0.0, 0.3, 0.6)
_SHIFTS = (-1 / 3, 0.0, 1 / 3)
_CHUNK = 64  # pictures at a time, so that what is computed of them stays in the processor's cache
_BORDER = 4  # pixels around the box on which templates are drawn, so that their whole area is counted
# Width and height of a shape's bounding box, per unit of radius.
_EXTENT = {"circle": (2.0, 2.0), "square": (1.76, 1.76), "triangle": (2.0, 1.8), "cross": (2.0, 2.0)}
_IN_PLANE = np.zeros((3, 3, 3), bool)  # 4-connected within a picture, nothing between the pictures of a batch
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)
_PALETTE = np.array(list(COLORS.values()), np.float64)
_NAMES = tuple(COLORS)


@dataclass(frozen=True)
class Found:
    """A component of at least ``SMALLEST`` pixels.

    ``shape`` is None where no template fits or the radius is out of range, ``color`` None where no palette entry is
    near. ``box`` is (x0, y0, x1, y1) in pixels, x1 and y1 exclusive. ``radius`` (pixels) is the one a shape of the best
    template's kind has in that box, ``iou`` the template's overlap; both are 0 where no template comes near the box.
    """

    shape: str | None
    color: str | None
    box: tuple[int, int, int, int]
    radius: float
    iou: float

    @property
    def center(self) -> tuple[float, float]:
        """Centre (x, y) of the bounding box in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def recognised(self) -> bool:
        return self.shape is not None and self.color is not None


@dataclass(frozen=True)
class Seen:
    """What a picture holds: its objects in reading order of their first pixels, and the pixels of ignored litter."""

    found: tuple[Found, ...]
    litter: int = 0

    @property
    def littered(self) -> bool:
        return self.litter > MAX_LITTER

    def of_shape(self, shape: str) -> list[Found]:
        return [f for f in self.found if f.shape == shape]


@dataclass(frozen=True)
class Verdict:
    """``right``: the picture is what the prompt asks. ``atoms``: each fact alone. ``why``: the first fault or ""."""

    right: bool
    atoms: tuple[bool, ...]
    why: str


def detect(picture: np.ndarray) -> Seen:
    """Objects of one picture, uint8 [64, 64, 3]; ShapeError for anything else."""
    return detect_batch(np.asarray(picture)[None])[0]


def detect_batch(pictures: np.ndarray) -> list[Seen]:
    """Objects of each picture, uint8 [B, 64, 64, 3]; ShapeError for anything else."""
    pictures = np.asarray(pictures)
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1:] != (SIZE, SIZE, 3):
        raise ShapeError(
            f"The checker reads uint8 pictures [B, {SIZE}, {SIZE}, 3]; it was given {pictures.dtype} "
            f"{list(pictures.shape)}. Convert with round and clip, channels last."
        )
    chunks = [pictures[at : at + _CHUNK] for at in range(0, len(pictures), _CHUNK)]
    return [seen for chunk in chunks for seen in _detect(chunk)]


def _detect(pictures: np.ndarray) -> list[Seen]:
    """``detect_batch`` of at least one picture."""
    away = pictures.astype(np.int32) - np.array(BACKGROUND, np.int32)
    foreground = np.einsum("bijc,bijc->bij", away, away) > FOREGROUND**2
    labels, count = ndimage.label(foreground, _IN_PLANE)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    colors = _colors(pictures, foreground, labels, count)
    found: list[list[Found]] = [[] for _ in pictures]
    litter = [0] * len(pictures)
    for k, place in enumerate(ndimage.find_objects(labels), start=1):
        size, picture = int(sizes[k]), place[0].start
        if size < SMALLEST:
            litter[picture] += size
            continue
        shape, radius, iou = _fit(labels[place][0] == k, size)
        box = (place[2].start, place[1].start, place[2].stop, place[1].stop)
        found[picture].append(Found(shape, colors[k], box, radius, iou))
    return [Seen(tuple(f), n) for f, n in zip(found, litter, strict=True)]


def _colors(pictures: np.ndarray, foreground: np.ndarray, labels: np.ndarray, count: int) -> list[str | None]:
    """Palette name of each component, None where none is near enough; entry 0 is the background's."""
    # A pixel's foreground neighbours are of its own component, so eroding all at once erodes each.
    core = np.where(ndimage.binary_erosion(foreground, _IN_PLANE, iterations=2), labels, 0)
    core_size = np.bincount(core.ravel(), minlength=count + 1)
    use = np.where((core_size >= MIN_CORE)[labels], core, labels)
    where = np.flatnonzero(use)
    owner, rgb = use.ravel()[where], pictures.reshape(-1, 3)[where]
    size = np.maximum(np.bincount(owner, minlength=count + 1), 1)
    mean = np.stack([np.bincount(owner, rgb[:, c], minlength=count + 1) / size for c in range(3)], -1)
    distance = np.linalg.norm(mean[:, None] - _PALETTE, axis=-1)
    best = distance.argmin(1)
    near = distance.min(1) <= MAX_COLOR_DISTANCE
    return [_NAMES[b] if ok else None for b, ok in zip(best, near, strict=True)]


def _fit(mask: np.ndarray, size: int) -> tuple[str | None, float, float]:
    """Shape, radius and overlap of the best template for a component: its box as bool [h, w], its pixels."""
    height, width = mask.shape
    masks, areas, labels = _templates(width, height)
    if not labels:
        return None, 0.0, 0.0
    shared = masks @ mask.ravel().astype(np.float32)
    overlap = shared / (areas + size - shared)
    best = int(overlap.argmax())
    shape, radius = labels[best]
    iou = float(overlap[best])
    fits = iou >= MIN_IOU and RADII[0] <= radius <= RADII[1]
    return (shape if fits else None), radius, iou


@lru_cache(maxsize=1024)
def _templates(width: int, height: int) -> tuple[np.ndarray, np.ndarray, tuple[tuple[str, float], ...]]:
    """Templates for a box of this size in pixels.

    Returns what of each lies inside the box, float32 [K, height * width]; the whole area of each, float32 [K]; and for
    each (shape, radius in pixels). The radius is the box's, since the templates' own runs 0.6 px either way and would
    blur the range's ends. Shapes whose radius is out of range in this box take part too: a square too large to be one
    must not pass for the circle it overlaps next best. Left out are templates too little of which lies in the box to
    reach ``MIN_IOU``.
    """
    masks, areas, labels = [], [], []
    y = np.arange(-_BORDER, height + _BORDER)[:, None] + 0.5 - height / 2
    x = np.arange(-_BORDER, width + _BORDER)[None, :] + 0.5 - width / 2
    inside = (slice(_BORDER, -_BORDER), slice(_BORDER, -_BORDER))
    for shape in SHAPES:
        wide, high = _EXTENT[shape]
        of_box = (width / wide + height / high) / 2
        for step, sx, sy in product(_RADIUS_STEPS, _SHIFTS, _SHIFTS):
            radius = of_box + step
            drop = 0.1 * radius if shape == "triangle" else 0.0  # from its box's centre to its own
            mask = signed_distance(shape, x - sx, y - sy - drop, np.array(radius)) < 0
            area, part = mask.sum(), mask[inside]
            if part.sum() >= MIN_IOU * area:
                masks.append(part.ravel())
                areas.append(area)
                labels.append((shape, of_box))
    stacked = np.array(masks, np.float32).reshape(len(masks), height * width)
    return stacked, np.array(areas, np.float32), tuple(labels)


def judge(seen: Seen | np.ndarray, prompt: Prompt) -> Verdict:
    """Whether a picture (uint8 [64, 64, 3], or what ``detect`` saw in it) is what the prompt asks for, exactly.

    Atoms, in the order of ``Prompt.atoms``. Of each group: its shape is there, and only once where one is asked; its
    colour, if named, is that of every object of the shape; its count, if above one, is met exactly. Last, the relation
    holds between the only two objects it can mean. ``right`` asks for all of them, and that the picture holds nothing
    else: no object of another shape, none unrecognised, and no more than ``MAX_LITTER`` pixels of litter.
    """
    if not isinstance(seen, Seen):
        seen = detect(seen)
    facts = list(_facts(seen, prompt))
    atoms = tuple(holds for holds, _ in facts)
    faults = [why for holds, why in facts if not holds] + list(_extras(seen, prompt))
    return Verdict(not faults, atoms, faults[0] if faults else "")


def _facts(seen: Seen, prompt: Prompt) -> Iterator[tuple[bool, str]]:
    """Each atom's verdict and the sentence that says how it fails."""
    for group in prompt.groups:
        same = seen.of_shape(group.shape)
        noun = group.shape if len(same) == 1 else PLURAL_OF[group.shape]
        miscount = f"There {_be(len(same))} {len(same) or 'no'} {noun} where {group.count} should be."
        yield (len(same) == 1 if group.count == 1 else bool(same)), miscount
        if group.color:
            colors = sorted({f.color or "of no known colour" for f in same} - {group.color})
            yield bool(same) and not colors, f"The {noun} {_be(len(same))} {' and '.join(colors)}, not {group.color}."
        if group.count > 1:
            yield len(same) == group.count, miscount
    if prompt.relation:
        first, second = prompt.groups[:2]
        holds = _related(seen, first, prompt.relation, second)
        yield holds, f"The {first.shape} is not {prompt.relation} the {second.shape}."


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _extras(seen: Seen, prompt: Prompt) -> Iterator[str]:
    """Sentences on what the picture should not hold."""
    asked = {g.shape for g in prompt.groups}
    for found in seen.found:
        x, y = found.center
        if found.shape is None:
            yield f"Something at ({x:.0f}, {y:.0f}) is none of the shapes."
        elif found.color is None:
            yield f"The {found.shape} at ({x:.0f}, {y:.0f}) is of none of the colours."
        elif found.shape not in asked:
            yield f"There is a {found.shape} at ({x:.0f}, {y:.0f}) that was not asked for."
    if seen.littered:
        yield f"Specks of {seen.litter} pixels together lie about."


def _related(seen: Seen, first: Group, relation: str, second: Group) -> bool:
    a, b = seen.of_shape(first.shape), seen.of_shape(second.shape)
    if len(a) != 1 or len(b) != 1:
        return False
    dx, dy = (p - q for p, q in zip(a[0].center, b[0].center, strict=True))
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
    across = abs(dy) if relation in ("left of", "right of") else abs(dx)
    return along > RELATION_MARGIN and along > across


def check(pictures: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
    """Whether each picture, uint8 [B, 64, 64, 3], is right for its prompt: bool [B]. ShapeError if unpaired."""
    seen = detect_batch(pictures)
    if len(seen) != len(prompts):
        raise ShapeError(f"{len(seen)} pictures came with {len(prompts)} prompts; give one prompt for each picture.")
    return np.array([judge(s, p).right for s, p in zip(seen, prompts, strict=True)], bool)
