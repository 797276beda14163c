"""What a run hands over: for each prompt its picture, the unsearched one, and what was said and spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.engine.table import to_csv, to_frame, to_rows
from secondlook.errors import SecondlookError
from secondlook.types import Cost


@dataclass(frozen=True)
class Result:
    """One prompt's outcome. ``picture`` and ``plain`` (the unsearched one) are uint8 [H, W, 3], read when they are first asked for;
    ``verdicts`` and ``plain_verdicts`` hold what held-out judges and the checker said; ``spent`` is what the search cost; ``chosen``
    are the outcomes that a selector or the plan chose, best first (the winner alone where there was neither)."""

    prompt: str
    score: float
    verdicts: dict[str, float]
    plain_score: float
    plain_verdicts: dict[str, float]
    spent: Cost
    outcome: int
    read: Callable[[], np.ndarray] = field(repr=False, compare=False)
    read_plain: Callable[[], np.ndarray] = field(repr=False, compare=False)
    chosen: tuple[int, ...] = ()

    @cached_property
    def picture(self) -> np.ndarray:
        return self.read()

    @cached_property
    def plain(self) -> np.ndarray:
        return self.read_plain()

    def save(self, path: str | Path) -> None:
        """Write the picture as a PNG."""
        Image.fromarray(self.picture).save(path)


class Run(list[Result]):
    """A run's results, a Result a prompt in order; and the whole run as a table, a row an outcome (docs/log.md)."""

    def __init__(self, store: Store, found: Iterable[Result]):
        super().__init__(found)
        self._store = store

    @property
    def folder(self) -> Path:
        return self._store.folder

    def to_rows(self) -> list[dict[str, Any]]:
        """Every outcome as a flat mapping."""
        return list(to_rows(self._store))

    def to_csv(self, path: str | Path) -> int:
        """Write the table, whole or not at all; returns how many rows it has."""
        return to_csv(self._store, Path(path))

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame; MissingExtra where pandas is not installed."""
        return to_frame(self._store)

    def __repr__(self) -> str:
        return f"<Run of {len(self)} prompt{'s' * (len(self) != 1)} in {self.folder}>"


def results(store: Store) -> Run:
    """What a run's log says: one Result for each prompt, or in an unfinished run for each that has a picture.

    Where a budget in seconds bought no finished picture, the unsearched one is the result (``outcome`` is negative). A picture
    that was lost, since its row overflowed, is a SecondlookError when it is asked for."""
    record, out = Record.read(store), []
    for i, prompt in enumerate(store.config["prompts"]):
        winner, plain = record.winner(i), record.baseline(i)
        if plain is None:
            continue
        base, name = plain
        read_plain = _reader(store, name, record.plain_digest(i))
        # the budget may have bought no finished picture: then the unsearched one stands
        read = read_plain if winner is None else _reader(store, winner.id, record.digests[winner.id])
        winner = winner or base
        scores = [math.nan if o.score is None else o.score for o in (winner, base)]
        chosen = tuple(record.chosen(i)) or (winner.id,)
        out.append(Result(prompt, scores[0], record.said(winner.id), scores[1], record.said(base.id), record.spent(i), winner.id, read,
                          read_plain, chosen))  # fmt: skip
    return Run(store, out)


def _reader(store: Store, name: int | str, digest: str | None) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        if digest is None:
            raise SecondlookError(
                f'The run "{store.folder}" has no picture of this prompt here: its row overflowed or could not be decoded, as the log says. '
                "Draw again in a wider dtype, or with another seed.")  # fmt: skip
        return store.checked(name, digest)

    return read
