"""What a run's folder shows of its results: best/ with each prompt's pictures and a contact sheet, and candidates.csv."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, PngImagePlugin

from secondlook.disk.atomic import write_whole
from secondlook.errors import DamagedError
from secondlook.notes import note
from secondlook.runs.candidates import Candidate

if TYPE_CHECKING:
    from secondlook.runs.results import Run

BEST, SHEET, TABLE = "best", "contact-sheet.png", "candidates.csv"
LONGEST = 48  # characters of a prompt in a file's name
CELL = 256  # pixels of the contact sheet's cells, at most
MOST_CELLS = 400
_LOCAL = re.compile(r"(?:[A-Za-z]:|~)?(?:[\\/][^\\/'\",()\s]+)*[\\/]([^\\/'\",()\s]+)")


def write_best(run: Run, count: int) -> None:
    """Into the run's folder: ``best/`` with the ``count`` best pictures of each prompt (0: none) and the sheet of winners, whole or not
    at all, and ``candidates.csv``. Pictures that nobody judged are not among them."""
    run.to_csv(run.folder / TABLE)
    part, final = run.folder / f"{BEST}.part", run.folder / BEST
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)
    if count == 0 or not run:
        return
    part.mkdir()
    cells: list[np.ndarray] = []
    for result in run:
        for rank, one in enumerate(result.top(count)):
            try:
                picture = one.picture
            except DamagedError as error:
                note(f"{error} It is left out of {BEST}/.")
                continue
            about = chunks(run.config, result.prompt, one)
            write_whole(part / file_name(result.task, result.prompt, rank), png(picture, about), sync=False)
            if rank == 0 and len(cells) < MOST_CELLS:
                cells.append(picture)
    if cells:
        write_whole(part / SHEET, png(sheet(cells), {}), sync=False)
    part.rename(final)


def file_name(task: int, prompt: str, rank: int = 0) -> str:
    """A name that every system takes: the prompt's place, its words in ASCII, and the rank from 2 on. Places make names unique."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub("[^a-z0-9]+", "-", plain)[:LONGEST].strip("-") or "prompt"
    return f"{task:04d}-{words}{f'-{rank + 1}' if rank else ''}.png"


def chunks(config: Mapping[str, Any], prompt: str, one: Candidate) -> dict[str, str]:
    """A picture's text chunks: how it came about, without any local path, and the line ``parameters`` that AUTOMATIC1111's web UI and
    what reads its pictures know."""
    model = without_paths(str(config.get("model") or config.get("world") or ""))
    said = {k: v for k, v in {"score": one.score, **one.components, **one.said}.items() if math.isfinite(v)}
    about = {
        "prompt": prompt,
        "derivation": one.derivation,
        "plan": without_paths(str(config.get("plan", ""))),
        "model": model,
        "verifier": without_paths(str(config.get("verifier", ""))),
        "scores": json.dumps(said),
        "software": f"secondlook {config.get('version', '')}".strip(),
    }
    return {**about, "parameters": _parameters(config, prompt, one, model)}


def _parameters(config: Mapping[str, Any], prompt: str, one: Candidate, model: str) -> str:
    known = {"Steps": config.get("steps"), "Sampler": config.get("solver"), "CFG scale": config.get("guidance"), "Seed": config.get("seed"),
             "Size": f"{config['width']}x{config['height']}" if config.get("width") and config.get("height") else None,
             "Model": model or None, "Score": None if math.isnan(one.score) else f"{one.score:.6g}"}  # fmt: skip
    lines = [prompt, *([f"Negative prompt: {config['negative']}"] if config.get("negative") else [])]
    return "\n".join([*lines, ", ".join(f"{k}: {v}" for k, v in known.items() if v is not None)])


def without_paths(text: str) -> str:
    """The text with each absolute path shortened to its last name; a hub id such as org/name stays."""
    return re.sub(r"(^|(?<=[\s'\"=(,]))" + _LOCAL.pattern, lambda m: m.group(2), text)


def png(picture: np.ndarray, about: Mapping[str, str]) -> bytes:
    """A PNG of uint8 [H, W, 3] with text chunks."""
    info = PngImagePlugin.PngInfo()
    for name, text in about.items():
        info.add_itxt(name, _fit(text)) if not text.isascii() else info.add_text(name, _fit(text))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png", pnginfo=info)
    return buffer.getvalue()


def _fit(text: str) -> str:
    """Without what a text chunk cannot hold: null bytes and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def sheet(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures side by side in a grid, about as wide as high, each scaled down to CELL: uint8 [H, W, 3]."""
    columns = math.ceil(math.sqrt(len(pictures)))
    small = [Image.fromarray(p) for p in pictures]
    for image in small:
        image.thumbnail((CELL, CELL))
    width, height = max(i.width for i in small), max(i.height for i in small)
    whole = Image.new("RGB", (columns * width, math.ceil(len(small) / columns) * height), "white")
    for i, image in enumerate(small):
        whole.paste(image, (i % columns * width, i // columns * height))
    return np.asarray(whole)


__all__ = ["chunks", "file_name", "png", "sheet", "without_paths", "write_best"]
