"""Contact sheets: many pictures on one, for people to look at."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw


def contact_sheet(pictures: np.ndarray, title: str = "", zoom: int = 2, columns: int | None = None) -> Image.Image:
    """Pictures uint8 [N, H, W, 3] on one sheet, enlarged without smoothing."""
    n, h, w, _ = pictures.shape
    columns = columns or math.ceil(math.sqrt(n))
    top, gap = (18 if title else 4), 4
    sheet = Image.new(
        "RGB", (columns * (w * zoom + gap) + gap, top + math.ceil(n / columns) * (h * zoom + gap)), (12, 12, 14)
    )
    if title:
        ImageDraw.Draw(sheet).text((gap, 3), title, fill=(230, 230, 230))
    for i, picture in enumerate(pictures):
        tile = Image.fromarray(picture).resize((w * zoom, h * zoom), Image.Resampling.NEAREST)
        sheet.paste(tile, (gap + i % columns * (w * zoom + gap), top + i // columns * (h * zoom + gap)))
    return sheet
