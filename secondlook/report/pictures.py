"""Pictures as data: URIs. A picture that is missing or is not the one the log reports is said to be so, never shown.

Those of the small worlds stand in the page as they are. Large ones (above BIG) are scaled down and become JPEGs, and the
page links to the files themselves, beside it in pictures/.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from secondlook.engine.store import Store, sha256
from secondlook.report.text import esc

THUMB = 64  # pixels; candidates are never shown larger than this in the tree
LARGE = 512  # pixels; the pair at a prompt's head
_HEAVY = 2500  # bytes; a thumbnail above this becomes a JPEG, so that 2,400 noisy pictures still fit in 10 MB
BIG = 256  # pixels; a picture with a longer side is large
BIG_SIZES = 192, 768  # pixels at most, of a large picture's thumbnail and of the pair: for screens of twice the pixels
_FEWER = 128, 256  # pixels; the least that these become on pages with many pictures
_MANY_THUMBS, _MANY_PROMPTS = 200, 12
_QUALITY = 88  # of large pictures' JPEGs
SHOWN = 128  # pixels of the page; the longer side of a large picture's thumbnail in the tree
_FAULTS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Embedded:
    """An encoded picture ("png" or "jpeg") and the size of the one it shows."""

    kind: str
    data: bytes
    width: int
    height: int


class Album:
    """Reads a run's pictures. What was made of each is kept, since winners appear in several places, but no pixels: those
    of a run can be more than a machine holds."""

    def __init__(self, store: Store, digests: Mapping[int, str | None]):
        self._store = store
        self._digests = digests
        self._made: dict[tuple[int | str, bool], Embedded | str] = {}
        self._big_sizes = BIG_SIZES
        self.faults: dict[int | str, str] = {}

    def frame(self, names: Iterable[int | str]) -> tuple[int, int] | None:
        """Width and height in the page of a run's thumbnails, if its pictures are large: told from the first readable one."""
        for name in names:
            try:
                with Image.open(self._store.picture_path(name), formats=("png",)) as image:
                    width, height = image.size
            except _FAULTS:
                continue
            longer = max(width, height)
            if longer <= BIG:
                return None
            return max(SHOWN // 3, round(SHOWN * width / longer)), max(SHOWN // 3, round(SHOWN * height / longer))
        return None

    def expect(self, prompts: int, thumbs: int) -> None:
        """Choose the sizes of large pictures by how many there will be."""
        thumb, pair = BIG_SIZES
        if thumbs > _MANY_THUMBS:
            thumb = _FEWER[0]
        if prompts > _MANY_PROMPTS:
            pair = max(_FEWER[1], int(pair * math.sqrt(_MANY_PROMPTS / prompts)))
        self._big_sizes = thumb, pair

    def pixels(self, name: int | str) -> np.ndarray | None:
        """uint8 [H, W, 3]; None where the file is missing, damaged or not the one that the log reports."""
        found = self._open(name)
        return None if isinstance(found, str) else found[1]

    def thumb(self, name: int | str, alt: str) -> str:
        """An <img> fit for the tree, or a box that says why there is none."""
        return self._tag(name, alt, light=True)

    def large(self, name: int | str, alt: str) -> str:
        """An <img> with the picture's own pixels, or fewer if it is large, or a box that says why there is none."""
        return self._tag(name, alt, light=False)

    def link(self, name: int | str) -> tuple[str, str] | None:
        """Address (relative to the page) and size in words of a large picture's file, where the page shows less of it."""
        made = self._embedded(name, light=True)
        if isinstance(made, str) or max(made.width, made.height) <= BIG:
            return None
        path = self._store.picture_path(name).relative_to(self._store.folder)
        return path.as_posix(), f"{made.width} × {made.height}"

    def _tag(self, name: int | str, alt: str, *, light: bool) -> str:
        made = self._embedded(name, light)
        if isinstance(made, str):
            return f'<span class="blank" role="img" aria-label="{esc(alt)}; {made}">{made}</span>'
        crisp = ' class="crisp"' if max(made.height, made.width) <= THUMB else ""
        data = base64.b64encode(made.data).decode()
        return (
            f'<img{crisp} src="data:image/{made.kind};base64,{data}" alt="{esc(alt)}" '
            f'width="{made.width}" height="{made.height}" loading="lazy" decoding="async">'
        )

    def _embedded(self, name: int | str, light: bool) -> Embedded | str:
        if (name, light) not in self._made:
            found = self._open(name)
            self._made[name, light] = found if isinstance(found, str) else self._fit(*found, light)
        return self._made[name, light]

    def _open(self, name: int | str) -> tuple[bytes, np.ndarray] | str:
        """The file's bytes and pixels, or a word on what is wrong with it."""
        try:
            raw = self._store.picture_path(name).read_bytes()
            with Image.open(io.BytesIO(raw), formats=("png",)) as image:
                pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        except FileNotFoundError:
            fault = "missing"
        except _FAULTS:
            fault = "damaged"
        else:
            digest = self._digests.get(name) if isinstance(name, int) else None
            if digest is None or digest == sha256(pixels):
                return raw, pixels
            fault = "altered"
        self.faults[name] = fault
        return fault

    def _fit(self, raw: bytes, pixels: np.ndarray, light: bool) -> Embedded:
        """The file itself where it is small enough, else a smaller copy."""
        height, width = pixels.shape[:2]
        big = max(height, width) > BIG
        size = self._big_sizes[0 if light else 1] if big else THUMB if light else LARGE
        if not big and max(height, width) <= size and (not light or len(raw) <= _HEAVY):
            return Embedded("png", raw, width, height)
        image = Image.fromarray(pixels)
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        # Colour at full resolution would add half to a thumbnail; the pair at a prompt's head shows true pixels.
        image.save(buffer, "jpeg", quality=_QUALITY if big else 80 if light else 92)
        return Embedded("jpeg", buffer.getvalue(), width, height)
