"""The README's picture from a run: python benchmarks/readme_picture.py runs/demo docs/pictures/demo.png"""

from __future__ import annotations

import sys
import textwrap

from PIL import Image, ImageDraw, ImageFont

import secondlook
from secondlook.api import Result

ZOOM, GAP, LEFT, HEAD = 2, 12, 96, 58
INK, SOFT, GOOD, BAD, GROUND = (225, 225, 228), (150, 150, 156), (86, 196, 120), (232, 110, 100), (18, 18, 21)


def picture(results: list[Result]) -> Image.Image:
    """Unsearched pictures above, searched ones below, the checker's word under each."""
    size = results[0].picture.shape[0] * ZOOM
    sheet = Image.new("RGB", (LEFT + len(results) * (size + GAP), HEAD + 2 * (size + 30)), GROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, name in enumerate(("first noise", "after search")):
        pen.text((GAP, HEAD + row * (size + 30) + size // 2 - 8), name, INK, font)
    for i, r in enumerate(results):
        x = LEFT + i * (size + GAP)
        pen.multiline_text((x, 10), "\n".join(textwrap.wrap(r.prompt, 20)), INK, font)
        for row, (pixels, verdicts) in enumerate(((r.plain, r.plain_verdicts), (r.picture, r.verdicts))):
            y = HEAD + row * (size + 30)
            sheet.paste(Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST), (x, y))
            right = verdicts["checker"] == 1
            pen.text((x, y + size + 4), "right" if right else "wrong", GOOD if right else BAD, font)
    return sheet


if __name__ == "__main__":
    picture(secondlook.open_run(sys.argv[1])).save(sys.argv[2])
