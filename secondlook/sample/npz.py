"""Many pictures on disk: parts as they are made, and the one ``.npz`` that evaluation reads, in ADM's layout.

``FILE.npz.parts/`` holds, for each part, the pictures uint8 [n, H, W, C] (``000000.npy``), written whole or not at all, and
what they cost. When all parts are there, ``FILE.npz`` is written from them one by one (``arr_0`` pictures, ``arr_1`` labels
int64; uncompressed, the same bytes for the same pictures), then ``FILE.npz.json`` with the settings, then they are removed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secondlook.disk.atomic import write_array, write_whole
from secondlook.disk.shards import Shards, refuse_other
from secondlook.disk.team import Team
from secondlook.errors import ConfigError, DamagedError

PER_PART = 256
ALONE = Team()
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of zip files: no file depends on when it was made


@dataclass(frozen=True)
class Spent:
    """Sums over samples: guided estimates, and network passes."""

    nfe: int = 0
    passes: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.nfe + other.nfe, self.passes + other.passes)


# indices of samples -> their pictures uint8 [n, H, W, C], and their cost
Draw = Callable[[Sequence[int]], tuple[np.ndarray, Spent]]


def facts_of(out: Path) -> Path:
    return out.with_name(out.name + ".json")


def produce(
    out: Path,
    settings: Mapping[str, Any],
    labels: np.ndarray,
    draw: Draw,
    *,
    per: int = PER_PART,
    team: Team = ALONE,
    quiet: bool = False,
) -> dict[str, Any] | None:
    """Make ``out`` or finish it, sharing the parts with the other processes of ``team``; returns the facts in
    ``FILE.npz.json``, None in all processes but the first.

    settings: plain values that decide the pictures. labels: int64 [count]. ConfigError where ``out`` or its parts were made
    with other settings.
    """
    if per < 1:
        raise ConfigError(f"A part expects at least one picture; got {per}.")
    plain = json.loads(json.dumps({**settings, "per part": per}))
    done = _finished(out, plain)
    if done is not None:
        return done if team.first else None
    folder = out.with_name(out.name + ".parts")
    parts = Shards(folder, plain, -(-len(labels) // per), facts_of(out).exists)
    todo = parts.begin(team)
    start = time.monotonic()
    for i, number in enumerate(todo):
        pictures, spent = draw(range(number * per, min((number + 1) * per, len(labels))))
        write_whole(_cost(parts, number), json.dumps([spent.nfe, spent.passes]).encode())
        write_array(parts.path(number), pictures)
        if not quiet:
            left = (time.monotonic() - start) / (i + 1) * (len(todo) - i - 1)
            print(f"\rpart {i + 1} of {len(todo)}, {left / 60:.0f} min left ", end="", file=sys.stderr, flush=True)
    if todo and not quiet:
        print(file=sys.stderr)
    if not team.first:
        return None
    parts.wait()
    return _assemble(out, parts, labels, plain)


def _finished(out: Path, plain: dict[str, Any]) -> dict[str, Any] | None:
    """The facts of a finished ``out``; ConfigError where it was made otherwise."""
    if not facts_of(out).exists():
        if out.exists() and not out.with_name(out.name + ".parts").is_dir():  # with parts: killed between the two files
            raise ConfigError(f'"{out}" exists already, and nothing says how it was made; choose another --out.')
        return None
    try:
        facts: dict[str, Any] = json.loads(facts_of(out).read_text())
        had = facts["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(
            f"{facts_of(out)} cannot be read ({error}); delete it and {out.name} to make them again."
        ) from None
    if not out.exists():
        raise DamagedError(f"{facts_of(out)} is there, but {out.name} is not; delete it to make both again.")
    refuse_other(out, had, plain)
    return facts


def _cost(parts: Shards, number: int) -> Path:
    return parts.path(number).with_suffix(".json")


def _assemble(out: Path, parts: Shards, labels: np.ndarray, plain: dict[str, Any]) -> dict[str, Any]:
    spent = Spent()
    for number in range(parts.count):
        spent = spent + Spent(*json.loads(_cost(parts, number).read_text()))
    whole = out.with_name(out.name + ".part")
    try:
        write_npz(whole, parts, labels)
        os.replace(whole, out)
    except OSError:
        whole.unlink(missing_ok=True)
        raise
    facts = {
        "settings": plain,
        "nfe per sample": spent.nfe / len(labels),
        "network passes per sample": spent.passes / len(labels),
    }
    write_whole(facts_of(out), json.dumps(facts, indent=1).encode())
    shutil.rmtree(parts.folder, ignore_errors=True)
    return facts


def write_npz(out: Path, parts: Shards, labels: np.ndarray) -> None:
    """``arr_0`` from the parts, one in memory at a time, and ``arr_1``. DamagedError for a part that does not fit."""
    per = len(_part(parts, 0))
    shape = (len(labels), *_part(parts, 0).shape[1:])
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
        with file.open(zipfile.ZipInfo("arr_0.npy", _EPOCH), "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]
            for number in range(parts.count):
                part = _part(parts, number)
                if part.shape != (min(per, len(labels) - number * per), *shape[1:]):
                    raise DamagedError(f"{parts.path(number)} has the shape {list(part.shape)}; delete it and go on.")
                member.write(np.ascontiguousarray(part).data)
        with file.open(zipfile.ZipInfo("arr_1.npy", _EPOCH), "w") as member:
            np.lib.format.write_array(member, labels.astype("<i8"), allow_pickle=False)


def _part(parts: Shards, number: int) -> np.ndarray:
    try:
        found: np.ndarray = np.load(parts.path(number))
    except (OSError, ValueError, EOFError) as error:
        raise DamagedError(f"{parts.path(number)} cannot be read ({error}); delete it and go on.") from None
    if found.dtype != np.uint8 or found.ndim != 4:
        raise DamagedError(f"{parts.path(number)} holds no pictures; delete it and go on.")
    return found
