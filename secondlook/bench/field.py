"""A published benchmark in `secondlook bench`: its prompts and rows, what a scorer says of the pictures handed over, and the
folders that its own scorer reads."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from secondlook.bench import layouts
from secondlook.bench.curves import Curve, winner_within
from secondlook.bench.methods import Method
from secondlook.calls import parse_call
from secondlook.engine.record import Record, baseline_file, baseline_id
from secondlook.engine.rescore import Pictured, judge_these
from secondlook.engine.store import Store
from secondlook.settings import make_named
from secondlook.types import Condition, Outcome
from secondlook.verify.benchmarks import Entry, read

Runs = Sequence[tuple[Store, int, tuple[int, ...], int]]  # as suite.carry
HERE = ("geneval", "geneval2")  # scorers that read the suite's own file


@dataclass(frozen=True)
class Field:
    """name: of BENCHMARKS."""

    name: str
    entries: Sequence[Entry]

    @staticmethod
    def read(name: str, path: str, every: int) -> Field:
        return Field(name, read(name, path)[::every])

    @property
    def categories(self) -> list[str]:
        return [e.category for e in self.entries]


def scorer_of(asked: str | None, suite: str | None, file: str) -> str | None:
    """A scorer's call-string. GenEval's is this package's unless another is named; those that need the suite's file are given it."""
    text = asked or ("geneval" if suite == "geneval" else None)
    if text is None:
        return None
    call = parse_call(text, "verifier")
    if call.name not in HERE or call.args or "prompts" in dict(call.options):
        return text
    return str(replace(call, options=(("prompts", file), *call.options)))


def score(runs: Runs, unit: str, budgets: Sequence[float], name: str) -> None:
    """Have a verifier judge, into the runs' logs, the pictures that are handed over at some budget and that it has not judged."""
    todo: list[tuple[Store, list[tuple[Pictured, Condition]]]] = []
    for store, _, at, _ in runs:
        record, prompts = Record.read(store), store.config["prompts"]
        some: dict[int, tuple[Pictured, Condition]] = {}
        for task, prompt in enumerate(prompts):
            for winner in filter(None, (_handed(record, task, unit, budgets[b]) for b in at)):
                if math.isnan(record.said(winner.number).get(name, math.nan)):
                    some[winner.number] = winner, Condition(prompt=prompt)
        if some:
            todo.append((store, list(some.values())))
    if not todo:
        return
    verifier = make_named("verifier", name)
    for k, (store, pictures) in enumerate(todo, 1):
        print(
            f"scoring run {k} of {len(todo)}: {len(pictures)} picture{'s' * (len(pictures) != 1)}",
            file=sys.stderr,
            flush=True,
        )
        with store.writing():
            judge_these(store, name, verifier, pictures)


def _handed(record: Record, task: int, unit: str, budget: float) -> Pictured | None:
    """The picture that a budget buys: the winner, or the plain one where nothing was finished."""
    winner: Outcome | None = winner_within(record, task, unit, budget)[0]
    if winner is not None:
        return Pictured(task, winner.id, winner.id, winner)
    if task in record.baselines and record.base_digests[task] is not None:
        return Pictured(task, baseline_id(task), baseline_file(task), record.baselines[task][0])
    return None


def write(
    field: Field, methods: Sequence[Method], runs: Runs, unit: str, budgets: Sequence[float], out: Path
) -> list[str]:
    """The suite's own layout for each method and budget, under ``out``, a sample a seed; those there are made again. Returns what could not be
    written, for a budget bought some prompt no picture."""
    lacking = []
    for k, method in enumerate(methods):
        own = sorted(((seed, store, at) for store, n, at, seed in runs if n == k), key=lambda r: r[0])
        records = {str(store.folder): Record.read(store) for _, store, _ in own}
        for b, budget in enumerate(budgets):
            some = [(store, records[str(store.folder)]) for _, store, at in own if b in at]
            if not some:
                continue
            pictures = [
                [store.picture_path(p.file) for store, record in some if (p := _handed(record, i, unit, budget))]
                for i in range(len(field.entries))
            ]
            folder = out / method.slug / f"{budget:g}"
            if any(len(p) < len(some) for p in pictures):
                lacking.append(f"{method.text} at {budget:g} {unit}")
                continue
            shutil.rmtree(folder, ignore_errors=True)
            layouts.write(field.name, folder, field.entries, pictures)
    return lacking


def summary(field: Field, found: Sequence[Curve], name: str) -> list[dict[str, object]]:
    """What the suite's own table tells, of each method and budget: the mean over all pictures, the mean over categories of their means,
    the mean over prompts of the best picture, and each category and tag."""
    groups: dict[str, list[int]] = {}
    for i, entry in enumerate(field.entries):
        for label in dict.fromkeys((entry.category, *entry.tags)):
            groups.setdefault(label, []).append(i)
    categories = list(dict.fromkeys(field.categories))
    rows: list[dict[str, object]] = []
    for curve in found:
        columns = {c: v for c, v in curve.columns.items() if c == name or c.startswith(f"{name}: ")}
        for b, budget in enumerate(curve.budgets):
            for column, values in columns.items():
                table = values[b]  # [seeds, prompts]
                if np.isnan(table).all():
                    continue
                by = {g: _mean(table[:, at]) for g, at in groups.items()}
                best = np.nanmax(np.where(np.isnan(table), -np.inf, table), 0)
                rows.append({
                    "method": curve.method, "budget": budget, "unit": curve.unit, "what": column, "pictures": int(np.isfinite(table).sum()),
                    "over pictures": _mean(table), "over categories": float(np.nanmean([by[c] for c in categories])),
                    "best of each prompt": float(np.mean(best[np.isfinite(best)])), "by": by,
                })  # fmt: skip
    return rows


def _mean(table: np.ndarray) -> float:
    known = table[~np.isnan(table)]
    return float(known.mean()) if len(known) else math.nan


def told(field: Field, rows: Sequence[Mapping[str, object]]) -> str:
    """The summary in Markdown."""
    labels = list(dict.fromkeys(g for r in rows for g in r["by"]))  # type: ignore[attr-defined]
    whole = ("over pictures", "over categories", "best of each prompt")
    head = ["method", "budget", "what", *whole, *labels]
    lines = [
        f"{field.name}: {len(field.entries)} prompts",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for r in rows:
        by: Mapping[str, float] = r["by"]  # type: ignore[assignment]
        cells = [f"`{r['method']}`", f"{r['budget']:g}", f"`{r['what']}`", *(f"{r[w]:.4f}" for w in whole)]
        lines.append("| " + " | ".join([*cells, *(f"{by[g]:.4f}" if g in by else "" for g in labels)]) + " |")
    return "\n".join(lines) + "\n"


def save(field: Field, rows: Sequence[Mapping[str, object]], out: Path) -> None:
    """suite.md and suite.json."""
    from secondlook.bench.suite import literal
    from secondlook.disk.atomic import write_whole

    write_whole(out / "suite.md", told(field, rows).encode())
    write_whole(out / "suite.json", (json.dumps(literal(list(rows)), indent=1) + "\n").encode())
