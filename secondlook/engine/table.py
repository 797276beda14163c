"""A run as a table: one flat row an outcome, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from secondlook.disk.atomic import whole
from secondlook.engine.record import Record, baseline_file, baseline_id
from secondlook.engine.store import Store
from secondlook.errors import MissingExtra
from secondlook.types import COST_UNITS, Cost, Outcome


def to_rows(store: Store) -> Iterator[dict[str, Any]]:
    """Every outcome of a run, prompt by prompt in the order proposed, then the unsearched picture where the plan did not draw it.
    What held-out judges said is under ``said.NAME``, a verifier's components under ``components.NAME``; None where there is nothing."""
    for task, prompt in enumerate(store.config["prompts"]):
        record = Record.read(store, task)
        winner = record.winner(task)
        chosen = set(record.chosen(task)) or ({winner.id} if winner else set())
        for outcome in record.of(task):
            about: dict[str, Any] = {
                "outcome": outcome.id,
                "n": record.order[outcome.id],
                "chosen": outcome.id in chosen,
            }
            yield _row(
                task, prompt, record, outcome, record.costs[outcome.id], about, record.digests[outcome.id], outcome.id
            )
        if task in record.baselines:
            base, cost = record.baselines[task]
            about = {"outcome": baseline_id(task), "n": None, "chosen": False}
            yield _row(task, prompt, record, base, cost, about, record.base_digests[task], baseline_file(task))


def _row(task: int, prompt: str, record: Record, outcome: Outcome, cost: Cost, about: dict[str, Any], digest: str | None,
         file: int | str) -> dict[str, Any]:  # fmt: skip
    p, move = outcome.proposal, outcome.proposal.move.to_dict()
    name = f"{file:06d}.png" if isinstance(file, int) else f"{file}.png"
    return {
        "task": task, "prompt": prompt, **about, "move": move.pop("name"), "parents": json.dumps(list(p.parents)), "details": json.dumps(move),
        "stop": p.stop, "steps": p.steps, "ask": p.ask, "finished": p.finished, "score": record.latest(outcome).score,
        "remark": None if outcome.remark is None else outcome.remark.text, "preference": outcome.preference,
        **{unit: getattr(cost, unit) for unit in COST_UNITS}, "picture": None if digest is None else f"pictures/{name}", "sha256": digest,
        **{f"components.{k}": v for k, v in outcome.components.items()},
        **{f"said.{k}": v for k, v in record.said(about["outcome"]).items()},
    }  # fmt: skip


def to_csv(store: Store, path: Path) -> int:
    """Write the table, whole or not at all; returns how many rows it has."""
    columns: dict[str, None] = {}
    count = 0
    for row in to_rows(store):  # read twice rather than held: a run may have millions of outcomes
        columns.update(dict.fromkeys(row))
        count += 1
    with whole(path) as file:
        text = _Text(file)
        writer = csv.DictWriter(text, list(columns), restval="")
        writer.writeheader()
        writer.writerows(to_rows(store))
    return count


class _Text:
    """A binary file that takes text."""

    def __init__(self, file: Any):
        self.file = file

    def write(self, text: str) -> int:
        return int(self.file.write(text.encode()))


def to_frame(store: Store) -> Any:
    """The table as a pandas DataFrame; MissingExtra where pandas is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise MissingExtra(f"A data frame needs pandas ({error}): pip install pandas") from None
    return pandas.DataFrame(list(to_rows(store)))
