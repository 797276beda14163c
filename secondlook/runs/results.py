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
from secondlook.errors import ConfigError, SecondlookError
from secondlook.runs.candidates import Candidate, Point, candidates, curve, ranked
from secondlook.types import Cost


@dataclass(frozen=True, repr=False)
class Result:
    """One prompt's outcome. ``picture`` and ``plain`` (the unsearched one) are uint8 [H, W, 3], read when they are first asked for;
    ``verdicts`` and ``plain_verdicts`` hold what held-out judges and the checker said; ``spent`` is what the search cost; ``chosen``
    are the outcomes that a selector or the plan chose, best first (the winner alone where there was neither; ``picked`` tells). Where nothing was
    judged, ``picture`` is still one that was drawn, and ``winner`` is None."""

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
    look: Callable[[], tuple[Candidate, ...]] = field(default=tuple, repr=False, compare=False)
    picked: bool = False
    task: int = 0

    def __repr__(self) -> str:
        return f"<Result {self.prompt!r}: {self.plain_score:.3f} → {self.score:.3f}, outcome {self.outcome}, {self.spent.evals} evals>"

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """All that was drawn for this prompt, in the order proposed, half-made states included."""
        return self.look()

    @property
    def winner(self) -> Candidate | None:
        """What is handed over, as a candidate; None where nobody judged or chose a finished picture: then nothing has won."""
        found = self.top(1)
        return found[0] if found and found[0].outcome == self.outcome else None

    def top(self, count: int) -> list[Candidate]:
        """The ``count`` best finished candidates, best first, the winner before all; only what was judged or chosen is among them."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(f"top expects how many, a whole number from 1; got {count!r}.")
        return ranked(self.candidates, self._named)[:count]

    @property
    def _named(self) -> tuple[int, ...]:
        return self.chosen if self.picked else ()

    def curve(self) -> list[Point]:
        """The best score so far after each finished, scored candidate, against nfe, evals and seconds."""
        return curve(self.candidates)

    @property
    def cost(self) -> Cost:
        """``spent`` by another name."""
        return self.spent

    def _repr_html_(self) -> str:
        from secondlook.runs.notebook import page

        return page([self], None)

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
        self.store = store

    @property
    def folder(self) -> Path:
        return self.store.folder

    @property
    def config(self) -> dict[str, Any]:
        """The run's settings, as its log keeps them."""
        return self.store.config

    @property
    def cost(self) -> Cost:
        """What the searches of all prompts cost together."""
        return sum((r.spent for r in self), Cost())

    def report(self) -> Path:
        """Write the run's report.html and return its path."""
        from secondlook.report.html import write_report

        return write_report(self.folder)

    def keep(self) -> Path:
        """Keep a run that was drawn without ``out`` beyond this process; returns its folder."""
        from secondlook.runs.temporary import keep

        return keep(self.folder)

    def _repr_html_(self) -> str:
        from secondlook.runs.notebook import page

        return page(self, self.folder)

    def to_rows(self) -> list[dict[str, Any]]:
        """Every outcome as a flat mapping."""
        return list(to_rows(self.store))

    def to_csv(self, path: str | Path) -> int:
        """Write the table, whole or not at all; returns how many rows it has."""
        return to_csv(self.store, Path(path))

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame; MissingExtra where pandas is not installed."""
        return to_frame(self.store)

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
        picked = tuple(record.chosen(i))
        chosen = picked or (winner.id,)
        out.append(Result(prompt, scores[0], record.said(winner.id), scores[1], record.said(base.id), record.spent(i), winner.id, read,
                          read_plain, chosen, _looker(store, record, i), bool(picked), i))  # fmt: skip
    return Run(store, out)


def _looker(store: Store, record: Record, task: int) -> Callable[[], tuple[Candidate, ...]]:
    return lambda: candidates(record, task, lambda number: _reader(store, number, record.digests[number]))


def _reader(store: Store, name: int | str, digest: str | None) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        if digest is None:
            raise SecondlookError(
                f'The run "{store.folder}" has no picture of this prompt here: its row overflowed or could not be decoded, as the log says. '
                "Draw again in a wider dtype, or with another seed.")  # fmt: skip
        return store.checked(name, digest)

    return read
