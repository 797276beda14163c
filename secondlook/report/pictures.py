"""Pictures as data: URIs. A picture that is missing or is not the one the log reports is said to be so, never shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from secondlook.engine.store import Store, sha256
from secondlook.report.text import esc

THUMB = 64  # pixels; candidates are never shown larger than this in the tree
LARGE = 512  # pixels; the pair at a prompt's head
_HEAVY = 2500  # bytes; a thumbnail above this becomes a JPEG, so that 2,400 noisy pictures still fit in 10 MB


class Album:
    """Reads a run's pictures; each at most once, since winners appear in several places."""

    def __init__(self, store: Store, digests: Mapping[int, str | None]):
        self._store = store
        self._digests = digests
        self._read: dict[int | str, tuple[bytes, np.ndarray] | str] = {}
        self.faults: dict[int | str, str] = {}

    def thumb(self, name: int | str, alt: str) -> str:
        """An <img> of at most THUMB pixels, or a box that says why there is none."""
        return self._tag(name, alt, THUMB, light=True)

    def large(self, name: int | str, alt: str) -> str:
        """An <img> with the picture's own pixels, or a box that says why there is none."""
        return self._tag(name, alt, LARGE, light=False)

    def _tag(self, name: int | str, alt: str, size: int, *, light: bool) -> str:
        entry = self._load(name)
        if isinstance(entry, str):
            return f'<span class="blank" role="img" aria-label="{esc(alt)}; {entry}">{entry}</span>'
        raw, pixels = entry
        height, width = pixels.shape[:2]
        crisp = ' class="crisp"' if max(height, width) <= THUMB else ""
        kind, raw = _fit(raw, pixels, size, light)
        data = base64.b64encode(raw).decode()
        return (
            f'<img{crisp} src="data:image/{kind};base64,{data}" alt="{esc(alt)}" '
            f'width="{width}" height="{height}" loading="lazy" decoding="async">'
        )

    def _load(self, name: int | str) -> tuple[bytes, np.ndarray] | str:
        if name not in self._read:
            self._read[name] = self._open(name)
        return self._read[name]

    def _open(self, name: int | str) -> tuple[bytes, np.ndarray] | str:
        """The file's bytes and pixels, or a word on what is wrong with it."""
        try:
            raw = self._store.picture_path(name).read_bytes()
            with Image.open(io.BytesIO(raw), formats=("png",)) as image:
                pixels = np.asarray(image.convert("RGB"))
        except FileNotFoundError:
            fault = "missing"
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            fault = "damaged"
        else:
            digest = self._digests.get(name) if isinstance(name, int) else None
            if digest is None or digest == sha256(pixels):
                return raw, pixels
            fault = "altered"
        self.faults[name] = fault
        return fault


def _fit(raw: bytes, pixels: np.ndarray, size: int, light: bool) -> tuple[str, bytes]:
    """The file itself where it is small enough, else a smaller copy: (kind, bytes)."""
    if max(pixels.shape[:2]) <= size and (not light or len(raw) <= _HEAVY):
        return "png", raw
    image = Image.fromarray(pixels)
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # Colour at full resolution would add half to a thumbnail; the pair at a prompt's head shows true pixels.
    image.save(buffer, "jpeg", quality=80 if light else 92)
    return "jpeg", buffer.getvalue()
