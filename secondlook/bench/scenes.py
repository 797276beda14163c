"""`make bench-scenes`: plans at equal cost on scenes-test, with a judge and the exact checker looking on.

Twenty lines of each of the six tasks. Every method is a run of `secondlook draw` (so a stopped benchmark goes on where it was)
with a budget of 20 samples a prompt. What it had after 8 is read from the same log, where its plan decides the next step without
knowing its budget; a plan that asks what is left (paths) has a run for each budget.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secondlook import api
from secondlook.bench.stats import interval, macro, wilson
from secondlook.cli.progress import Progress
from secondlook.engine.record import Record
from secondlook.engine.store import LOG, Store
from secondlook.errors import ConfigError
from secondlook.settings import Settings
from secondlook.worlds.scenes.checker import check
from secondlook.worlds.scenes.grammar import TASKS, parse
from secondlook.worlds.scenes.prompts import PER_TASK, prompt_set

STEPS = 5  # of one sample: more buy fewer samples (docs/what-to-use.md)
EVALS = 2 * STEPS  # of one sample: guidance takes two network passes a step
SIZES = (8, 20)
EACH = 20


@dataclass(frozen=True)
class Method:
    """A row's run. ``steps`` above the default spends a sample's worth on a finer grid instead of a search."""

    name: str
    plan: str
    verifier: str = "learned"
    steps: int = STEPS
    samples: int = max(SIZES)
    asks: bool = False  # whether the plan asks what is left of its budget

    @property
    def folder(self) -> str:
        """The name of its run's folder."""
        return f"{self.name} {self.verifier}{f' {self.samples}' if self.asks else ''}".replace(" ", "-")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The budgets, in samples, that its run has a row for."""
        if self.samples == 1:
            return (self.steps // STEPS,)
        return (self.samples,) if self.asks else SIZES


METHODS = (
    Method("random", "random(n=20)"),
    Method("evolve", "evolve()"),
    Method("zero_order", "zero_order()"),
    *(Method("paths", "paths()", samples=n, asks=True) for n in SIZES),
    *(Method(f"more steps x{n}", "random(n=1)", steps=n * STEPS, samples=1) for n in SIZES),
    Method("random", "random(n=20)", "oracle"),
    Method("evolve", "evolve()", "oracle"),
    Method("zero_order", "zero_order()", "oracle"),
    *(Method("paths", "paths()", "oracle", samples=n, asks=True) for n in SIZES),
)


@dataclass
class Row:
    """One line of the table: arrays over prompts, [120] each."""

    name: str
    samples: int
    columns: dict[str, np.ndarray]
    oracle: bool = False


def lines(split: str, each: int) -> tuple[list[str], list[str]]:
    """Prompts and tasks of the first ``each`` lines of every task."""
    prompts = prompt_set(split)
    chosen = [p for i, p in enumerate(prompts) if i % PER_TASK < each]
    return [p.text for p in chosen], [p.tag for p in chosen]


def carry(method: Method, prompts: list[str], folder: Path, seed: int) -> Store:
    """The method's run, made, gone on with, or read if finished."""
    if (folder / LOG).exists():
        had = Store.open(folder).config
        wanted = {"prompts": prompts, "verifier": method.verifier, "steps": method.steps, "seed": seed,
                  "plan": Settings(plan=method.plan).resolved().plan}  # fmt: skip
        had["plan"] = Settings(plan=had["plan"]).resolved().plan
        for key, value in wanted.items():
            if had[key] != value:
                raise ConfigError(f'"{folder}" holds a run with another {key}; name another --out, or delete it.')
        api.resume(folder, Progress(len(prompts)))
    else:
        nfe = method.samples * method.steps
        print(f"-- {method.name} ({method.verifier}), {nfe} nfe a prompt", file=sys.stderr, flush=True)
        api.draw(prompts, method.plan, folder, nfe=nfe, verifier=method.verifier, steps=method.steps, seed=seed,
                 progress=Progress(len(prompts)))  # fmt: skip
    return Store.open(folder)


def rows_of(method: Method, store: Store) -> list[Row]:
    """What the method had at each size; the base row comes with random's run, whose first samples it is."""
    found = [_row(method.name if method.samples > 1 else "more steps", n, method, store) for n in method.sizes]
    if (method.name, method.verifier) == ("random", "learned"):
        found.insert(0, _row("base", 1, method, store))
    return found


def _row(name: str, samples: int, method: Method, store: Store) -> Row:
    record, prompts = Record.read(store), store.config["prompts"]
    count = len(prompts)
    limit = samples * STEPS
    columns: dict[str, list[float]] = {k: [] for k in ("verifier", "judge", "checker", "evals", "seconds")}
    for i in range(count):
        winner = record.winner(i, nfe=limit)
        costs, spent = [], 0
        for outcome in record.of(i):
            spent += record.costs[outcome.id].nfe
            if spent > limit:
                break
            costs.append(record.costs[outcome.id])
        if winner is None:  # nothing finished within this many evaluations: the plain sample stands, at its own price
            winner, own = record.baselines[i]
            costs.append(own)
            picture = store.picture(f"baseline-{i:04d}")
        else:
            picture = store.checked(winner.id, record.digests[winner.id])
        columns["verifier"].append(math.nan if winner.score is None else winner.score)
        columns["judge"].append(record.said(winner.id)["judge"])
        columns["checker"].append(float(check(picture[None], [parse(prompts[i])])[0]))
        columns["evals"].append(sum(c.evals for c in costs))
        columns["seconds"].append(sum(c.seconds for c in costs))
    return Row(name, samples, {k: np.array(v) for k, v in columns.items()}, method.verifier == "oracle")


def table(rows: list[Row], tasks: list[str]) -> str:
    """The whole table, in Markdown; intervals are 95 %, and `gain` is paired with the base."""
    short = {"single_object": "single", "two_object": "two", "counting": "count", "colors": "colors",
             "position": "position", "color_attr": "attr"}  # fmt: skip
    head = ["method", "samples", "verifier", "judge", "checker (95 %)", "gain over base (paired, 95 %)",
            *(short[t] for t in TASKS), "evals", "seconds"]  # fmt: skip
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    base = rows[0].columns["checker"]
    names = np.asarray(tasks)
    for row in rows:
        c = row.columns
        low, high = _interval(c["checker"], tasks)
        gain = c["checker"] - base
        glow, ghigh = interval(gain, tasks)
        paired = "" if row.name == "base" else f"{macro(gain, tasks):+.3f} ({glow:+.3f} to {ghigh:+.3f})"
        verifier = "oracle" if row.oracle else f"{np.nanmean(c['verifier']):.3f}"
        label = f"{row.name}, oracle" if row.oracle else row.name
        cells = [label, str(row.samples), verifier, f"{np.nanmean(c['judge']):.3f}",
                 f"**{macro(c['checker'], tasks):.3f}** ({low:.3f} to {high:.3f})", paired,
                 *(f"{c['checker'][names == t].mean():.2f}" for t in TASKS),
                 f"{c['evals'].mean():.0f}", f"{c['seconds'].mean():.2f}"]  # fmt: skip
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def _interval(right: np.ndarray, tasks: list[str]) -> tuple[float, float]:
    """By bootstrap over prompts within task; Wilson's where all are right, which a bootstrap takes for certainty."""
    return wilson(1.0, len(right)) if right.all() else interval(right, tasks)


SHORT = (
    ("base", 1, "1, no search"),
    ("random", 8, "best of 8"),
    ("random", 20, "best of 20"),
    ("more steps", 20, "1 with 20 times the steps"),
)


def short_table(rows: list[Row], tasks: list[str]) -> str:
    """The README's table: best of n guided by the network `learned`, beside no search and more steps."""
    out = [f"| samples ({EVALS} evaluations each) | right by the checker (95 %) | held-out judge |", "|---|---|---|"]
    for name, samples, label in SHORT:
        for row in [r for r in rows if (r.name, r.samples, r.oracle) == (name, samples, False)]:
            low, high = _interval(row.columns["checker"], tasks)
            right = f"{macro(row.columns['checker'], tasks):.3f} ({low:.3f} to {high:.3f})"
            out.append(f"| {label} | {right} | {np.nanmean(row.columns['judge']):.3f} |")
    return "\n".join(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/bench-scenes", help="holds the runs; name it again to go on")
    parser.add_argument("--results", default="docs/results/scenes.md")
    parser.add_argument("--readme", metavar="README.md", help="also put the table into this page, between its marks")
    parser.add_argument("--split", default="scenes-test")
    parser.add_argument("--each", type=int, default=EACH, help="lines of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", help="make these runs (folder names, with commas) and no table; for several processes"
    )
    args = parser.parse_args()
    prompts, tasks = lines(args.split, args.each)
    if args.only:
        for method in METHODS:
            if method.folder in args.only.split(","):
                carry(method, prompts, Path(args.out) / method.folder, args.seed)
        return 0
    rows: list[Row] = []
    about: list[dict[str, Any]] = []
    for method in METHODS:
        folder = Path(args.out) / method.folder
        store = carry(method, prompts, folder, args.seed)
        rows += rows_of(method, store)
        about.append(store.config)
    rows.sort(key=lambda r: (r.oracle, r.name != "base", r.samples))
    text = page(rows, tasks, about, args)
    results = Path(args.results)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(text)
    if args.readme:
        between(Path(args.readme), "short", short_table(rows, tasks))
    print(text)
    return 0


def between(page: Path, name: str, text: str) -> None:
    """Put ``text`` between a page's `<!-- name:begin -->` and `<!-- name:end -->`; a page without them is left alone."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = page.read_text() if page.is_file() else ""
    if begin in old and end in old:
        page.write_text(f"{old.split(begin)[0]}{begin}\n{text}\n{end}{old.split(end, 1)[1]}")


def page(rows: list[Row], tasks: list[str], about: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """The results page: what was run, the table, per-prompt means, versions."""
    plain = ", ".join(
        f"{r.name}{' (oracle)' if r.oracle else ''} {r.samples}: {r.columns['checker'].mean():.3f}" for r in rows
    )
    command = f"python -m secondlook.bench.scenes --split {args.split} --each {args.each} --seed {args.seed}"
    shared = ("version", "model", "solver", "guidance", "shift", "rows", "bf16", "threads", "versions")
    facts = json.dumps({k: about[0][k] for k in shared if all(c[k] == about[0][k] for c in about)})
    runs = "\n".join(
        f"| {m.name}{f', {m.samples} samples' if m.asks else ''} | {m.verifier} | `{c['plan']}` | {c['steps']} | {c['commit']} | {c['threads']} |"
        for m, c in zip(METHODS, about, strict=True)
    )
    return (
        f"# Plans at equal cost on {args.split}\n\n`{command}`: {len(tasks)} prompts, {args.each} a task; one sample takes "
        f"{EVALS} network evaluations. The network `learned` guides, the judge guided nothing, the checker is exact. "
        "Evaluations and seconds are means a prompt (seconds on whatever else the machine did); overall is the macro mean over "
        f"tasks; intervals by bootstrap over prompts within task, Wilson's where all are right.\n\n{table(rows, tasks)}\n\n"
        f"Per-prompt means of the checker: {plain}.\n\n"
        f"| run | verifier | plan | steps | commit | threads |\n|---|---|---|---|---|---|\n{runs}\n\n`{facts}`\n"
    )


if __name__ == "__main__":
    sys.exit(main())
