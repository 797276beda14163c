"""A run as a notebook shows it: before and after, scores and cost, in a table without scripts."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from secondlook.errors import SecondlookError

if TYPE_CHECKING:
    from secondlook.runs.results import Result

SIDE = 160  # pixels, of a picture's longer side
MOST = 12  # prompts; of a longer run the first are shown and the others counted


def page(found: Sequence[Result], folder: Path | None) -> str:
    """HTML of some results. folder: named under the table; None: not."""
    rows = "".join(map(_row, found[:MOST]))
    head = "".join(f"<th>{h}</th>" for h in ("prompt", "before", "after", "score", "evals", "seconds"))
    more = f"<p>and {len(found) - MOST} more prompts</p>" if len(found) > MOST else ""
    where = "" if folder is None else f"<p>in <code>{escape(str(folder))}</code></p>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}{where}"


def _row(r: Result) -> str:
    after = _image(r, "picture") + ("" if r.winner is not None else "<br>not judged")
    cells = (
        _image(r, "plain"),
        after,
        f"{_number(r.plain_score)} → {_number(r.score)}",
        str(r.spent.evals),
        f"{r.spent.seconds:.1f}",
    )
    return f"<tr><td>{escape(r.prompt)}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _image(r: Result, name: str) -> str:
    """A small copy as a data: address, or why there is none."""
    try:
        picture: np.ndarray = getattr(r, name)
    except SecondlookError:
        return "no picture"
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{name} of {escape(r.prompt, quote=True)}" src="data:image/png;base64,{data}">'
