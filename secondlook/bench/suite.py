"""`secondlook bench`: methods at equal budgets on the same prompts and seeds, and what is told of them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

import secondlook
from secondlook.bench.curves import Curve, Latency, Look, read_into
from secondlook.bench.methods import Method, apart, carry_all, runs_of
from secondlook.bench.stats import Bootstrap, area, at_cost, holm, sign_flip
from secondlook.disk.atomic import write_whole
from secondlook.disk.versions import commit
from secondlook.engine.store import LOG, Store
from secondlook.errors import ConfigError
from secondlook.report.audit import Growth, audit, markdown, plain, together

MEASURES = ("checker", "judge", "score")  # what methods are compared by: the first of these that there is
SAID = ("score", "judge", "checker", "atoms")


@dataclass(frozen=True)
class Plan:
    """What is compared. baseline: the number of the method that the others are held against; tuned: for each budget the number of
    the method that stands for it, where the baseline is chosen at each budget by itself (on other prompts)."""

    methods: Sequence[Method]
    prompts: Sequence[str]
    classes: Sequence[str]
    unit: str
    budgets: tuple[float, ...]
    seeds: int
    baseline: int = 0
    tuned: Mapping[float, int] = field(default_factory=dict)
    tuned_name: str = "tuned best of n"


def carry(plan: Plan, out: Path, workers: int, threads: int) -> list[tuple[Store, int, tuple[int, ...], int]]:
    """All runs: (its store, the method's number, the budgets' numbers, the seed's)."""
    whole = [
        (runs_of(m, seed, plan.unit, plan.budgets, out / "runs", plan.prompts), k, seed)
        for seed in range(plan.seeds)
        for k, m in enumerate(plan.methods)
    ]
    carry_all([job for job, _, _ in whole], workers, threads)
    more = [(job, small, k, seed) for job, k, seed in whole for small in apart(job, plan.budgets)]
    carry_all([small for _, small, _, _ in more], workers, threads)
    asked = {job.folder for job, _, _, _ in more}
    found = [(job, k, _read_at(job.budget, plan.budgets, job.folder in asked), seed) for job, k, seed in whole]
    found += [(small, k, (plan.budgets.index(small.budget),), seed) for _, small, k, seed in more]
    return [(Store.open(job.folder), k, at, seed) for job, k, at, seed in found if (job.folder / LOG).exists()]


def _read_at(largest: float, budgets: Sequence[float], asked: bool) -> tuple[int, ...]:
    """The numbers of the budgets that one run tells of: its own, and the smaller ones unless its plan asked what was left."""
    return tuple(i for i, b in enumerate(budgets) if b == largest or (b < largest and not asked))


def curves(
    plan: Plan, runs: Sequence[tuple[Store, int, tuple[int, ...], int]], look: Look | None, latency: Latency | None
) -> list[Curve]:
    """A curve a method; behind them the tuned baseline's, where there is one."""
    found = [Curve(m.text, plan.unit, plan.budgets) for m in plan.methods]
    for store, k, at, seed in runs:
        read_into(found[k], store, at, seed, plan.seeds, look, latency)
    if plan.tuned:
        tuned = Curve(plan.tuned_name, plan.unit, plan.budgets)
        names = set.intersection(*(set(found[k].columns) for k in plan.tuned.values()))
        for name in names:
            tuned.columns[name] = np.stack([found[plan.tuned[b]].columns[name][i] for i, b in enumerate(plan.budgets)])
        found.append(tuned)
    return found


def audits(plan: Plan, runs: Sequence[tuple[Store, int, tuple[int, ...], int]]) -> dict[str, Growth]:
    """The hack audit of each method at its largest budget, over all seeds; of those whose every run is there."""
    found = {}
    for k, method in enumerate(plan.methods):
        last = max((max(at) for _, n, at, _ in runs if n == k), default=0)
        some = [audit(store, None, store.picture) for store, n, at, _ in runs if n == k and last in at]
        if len(some) == plan.seeds:
            found[method.text] = together(some)
    return found


def measure_of(found: Sequence[Curve], asked: str | None = None) -> str:
    """What methods are compared by."""
    known = set.intersection(*(set(c.columns) for c in found))
    if asked is not None and asked not in known:
        raise ConfigError(
            f'Nobody judged by "{asked}" in all of these runs; known: {", ".join(sorted(known & {*SAID, *known}))}.'
        )
    usable = [m for m in MEASURES if m in known and not np.isnan(found[0].columns[m]).all()]
    if asked is None and not usable:
        raise ConfigError(
            "None of these budgets buys every method a picture, so there is nothing to compare; raise --budgets."
        )
    return asked or usable[0]


def results(plan: Plan, found: Sequence[Curve], measure: str) -> dict[str, Any]:
    """All numbers: a row a method and budget, with intervals over prompts and seeds; areas under the curves; and against the
    baseline paired differences, with p-values corrected for all that are looked at."""
    boot = Bootstrap(plan.classes, plan.seeds)
    base = found[-1] if plan.tuned else found[plan.baseline]
    rows, tests = [], []
    for c in found:
        for i, budget in enumerate(plan.budgets):
            if measure not in c.columns or np.isnan(c.columns[measure][i]).all():
                continue  # this budget bought the method nothing
            row: dict[str, Any] = {"method": c.method, "budget": budget, "unit": plan.unit}
            for name, values in sorted(c.columns.items()):
                if not np.isnan(values[i]).all():
                    row[name] = boot.mean(values[i])
            row["interval"] = boot.interval(c.columns[measure][i])
            for name, own in zip(boot.classes, boot.at, strict=True):
                row[f"{measure}, {name}"] = float(np.nanmean(c.columns[measure][i][:, own]))
            if c is not base:
                gap = c.columns[measure][i] - base.columns[measure][i]
                row["gain"], row["gain_interval"] = boot.mean(gap), boot.gap(gap)
                row["ties"] = float(np.mean(gap == 0))
                tests.append((row, sign_flip(np.nanmean(gap, 0))))
            rows.append(row)
    for (row, _), corrected in zip(tests, holm([p for _, p in tests]), strict=True):
        row["p"] = corrected
    # Tuned at budgets the baseline is not tuned over seconds: there its members that were drawn at all budgets stand beside it.
    members = [
        found[k] for k in dict.fromkeys(plan.tuned.values()) if not np.isnan(found[k].columns[measure][-1]).all()
    ]
    areas = [_area(c, base, boot, measure, plan.budgets) for c in found]
    for c, told in zip(found, areas, strict=True):
        if c is not base and "ratio" in told:
            over = [
                o for rival in (base, *members) if rival is not c and (o := _area_in_seconds(c, rival, boot, measure))
            ]
            told |= min(over, key=lambda o: float(o["seconds_ratio"]), default={})
    return {"measure": measure, "baseline": base.method, "rows": rows, "areas": areas}


def _area(c: Curve, base: Curve, boot: Bootstrap, measure: str, budgets: Sequence[float]) -> dict[str, Any]:
    """Over the budgets that buy both this method and the baseline something."""
    both = [i for i in range(len(budgets)) if not any(np.isnan(k.columns[measure][i]).all() for k in (c, base))]
    if not both:
        return {"method": c.method}
    some = [budgets[i] for i in both]
    own, theirs = (area(some, np.moveaxis(k.columns[measure][both], 0, -1)) for k in (c, base))
    found: dict[str, Any] = {
        "method": c.method,
        "area": boot.mean(own),
        "interval": boot.interval(own),
        "from": some[0],
    }
    if c is not base:
        ratio = boot.means(own) / np.maximum(boot.means(theirs), 1e-12)
        found["ratio"] = boot.mean(own) / max(boot.mean(theirs), 1e-12)
        found["ratio_interval"] = tuple(float(v) for v in np.percentile(ratio, [2.5, 97.5]))
    return found


def _area_in_seconds(c: Curve, base: Curve, boot: Bootstrap, measure: str) -> dict[str, Any]:
    """The curves' heights over the logarithm of the seconds that both reach, as a ratio; the seconds are drawn again with the prompts.
    Nothing where they reach none in common."""
    known = [[i for i in range(len(k.budgets)) if not np.isnan(k.columns[measure][i]).all()] for k in (c, base)]
    cost, height = (
        [np.stack([boot.means(k.columns[name][i]) for i in at]) for k, at in zip((c, base), known, strict=True)]
        for name in ("seconds", measure)
    )
    begin, end = max(s[0].mean() for s in cost), min(s[-1].mean() for s in cost)
    if not 0 < begin < end:
        return {}
    where = np.geomspace(begin, end, 33)
    own, theirs = (
        np.array([at_cost(s, h, where).mean() for s, h in zip(some.T, heights.T, strict=True)])
        for some, heights in zip(cost, height, strict=True)
    )
    ratio = own / np.maximum(theirs, 1e-12)
    return {
        "seconds_against": base.method,
        "seconds": (float(begin), float(end)),
        "seconds_ratio": float(own.mean() / max(theirs.mean(), 1e-12)),
        "seconds_ratio_interval": tuple(float(v) for v in np.percentile(ratio, [2.5, 97.5])),
    }


# ---- what is written -------------------------------------------------------------------------------------------------


def write(
    plan: Plan, told: Mapping[str, Any], found: Sequence[Curve], out: Path, command: str, about: Mapping[str, Any],
    audited: Mapping[str, Growth] = MappingProxyType({}), drawn_at: Sequence[str] = (),
) -> None:  # fmt: skip
    """results.json, results.csv, table.md and audit.md into ``out``; report.html beside them. drawn_at: the commits of its runs, which
    may be older than the one that reads them."""
    from secondlook.bench.page import page

    whole = {
        "command": command, "version": secondlook.__version__, "commit": commit(), "drawn_at": list(drawn_at), "unit": plan.unit, "budgets": plan.budgets,
        "seeds": plan.seeds, "prompts": len(plan.prompts), "classes": sorted(set(plan.classes)), **about, **told,
        "audit": {name: plain(growth) for name, growth in audited.items()},
    }  # fmt: skip
    write_whole(out / "results.json", (json.dumps(literal(whole), indent=1) + "\n").encode())
    names = list(dict.fromkeys(k for row in told["rows"] for k in row))
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(told["rows"])
    write_whole(out / "table.md", (table(told, plan) + "\n").encode())
    parts = [f"`{name}`\n\n{markdown(growth)}\n" for name, growth in audited.items()]
    write_whole(out / "audit.md", "\n".join(parts).encode())
    write_whole(out / "report.html", page(plan, told, found, command, whole, audited).encode())


def table(told: Mapping[str, Any], plan: Plan) -> str:
    """All rows in Markdown."""
    measure = told["measure"]
    others = [n for n in SAID if n != measure and any(n in row for row in told["rows"])]
    classes = list(dict.fromkeys(plan.classes))
    classes = classes if len(classes) > 1 else []
    head = ["method", plan.unit, f"{measure} (95 %)", f"against {told['baseline']} (95 %, p)", *others, *classes, "pictures", "evals", "seconds"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in told["rows"]:
        low, high = row["interval"]
        gain = ""
        if "gain" in row:
            glow, ghigh = row["gain_interval"]
            gain = f"{row['gain']:+.3f} ({glow:+.3f} to {ghigh:+.3f}, {row['p']:.2g})"
        cells = [
            f"`{row['method']}`", f"{row['budget']:g}", f"**{row[measure]:.3f}** ({low:.3f} to {high:.3f})", gain,
            *(f"{row[n]:.3f}" if n in row else "" for n in others), *(f"{row[f'{measure}, {c}']:.2f}" for c in classes),
            f"{row['pictures']:.1f}", f"{row['evals']:.0f}", f"{row['seconds']:.2f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def literal(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {str(k): literal(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [literal(v) for v in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
