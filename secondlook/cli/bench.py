"""`secondlook bench`: a table of methods at equal budgets, of one's own model and prompts."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from secondlook.bench import suite
from secondlook.bench.curves import Curve, Latency
from secondlook.bench.field import Field, Runs, save, score, scorer_of, summary
from secondlook.bench.field import told as table_of
from secondlook.bench.field import write as write_field
from secondlook.bench.methods import Method
from secondlook.cli.options import given
from secondlook.cli.prompts import read_prompts
from secondlook.cost import UNITS
from secondlook.disk.atomic import write_whole
from secondlook.engine.store import Store
from secondlook.errors import ConfigError, nearest
from secondlook.report.audit import audit as audit_of
from secondlook.report.audit import markdown, plain, sentences
from secondlook.settings import Settings, make_named
from secondlook.worlds.scenes.checker import detect, judge
from secondlook.worlds.scenes.grammar import parse

Args = argparse.Namespace


def bench(args: Args) -> int:
    shared = given(args)
    if set(shared) & {*UNITS, *(f"total_{u}" for u in UNITS), "seed", "plan"}:
        raise ConfigError("A benchmark has its own budgets and seeds: --budgets, --unit, --seeds.")
    for name in ("seeds", "every", "workers"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} must be 1 or more; got {getattr(args, name)}.")
    if not 0 <= args.baseline < len(args.methods):
        raise ConfigError(f"--baseline is a method's place, from 0 to {len(args.methods) - 1}; got {args.baseline}.")
    latency = _latency(args.latency)
    methods = [Method.parse(text, shared) for text in args.methods]
    field, prompts = _asked(args, shared)
    if args.unit not in UNITS:
        raise ConfigError(f'There is no unit of cost "{args.unit}"; {nearest(args.unit, UNITS)}')
    scenes = shared.get("world", "scenes") == "scenes" and shared.get("model", "scenes") == "scenes"
    budgets = _budgets(args.budgets)
    tuned: Mapping[float, int] = {}
    if args.tuned:
        methods, tuned = _tuned(Path(args.tuned), methods, budgets, args.unit, shared)
    classes = field.categories if field else _classes(prompts, scenes)
    plan = suite.Plan(methods, prompts, classes, args.unit, budgets, args.seeds, args.baseline, tuned)
    scorer = scorer_of(args.scorer, args.suite, args.prompts)
    if scorer:
        make_named("verifier", scorer)  # what is wrong with it shows before the first picture is drawn
    out = Path(args.out)
    words = ["secondlook", "bench", *args.methods, *_words(args)]
    _refuse_other(out, shlex.join(words))
    runs = suite.carry(plan, out, args.workers, max(1, (os.cpu_count() or 1) // args.workers))
    if scorer:
        score(runs, plan.unit, budgets, scorer)
    found = suite.curves(plan, runs, _atoms if scenes else None, latency)
    audited = suite.audits(plan, runs)
    told = suite.results(plan, found, suite.measure_of(found, args.measure or scorer))
    suite.write(
        plan,
        told,
        found,
        out,
        shlex.join(words),
        {"prompt_set": args.prompts, "every": args.every, "latency": args.latency},
        audited,
        list(dict.fromkeys(str(store.config.get("commit")) for store, *_ in runs)),
    )
    print(suite.table(told, plan))
    for name, growth in audited.items():
        print(f"\n{name}: " + " ".join(sentences(growth)))
    if field:
        _suite(field, plan, runs, found, told["measure"], out)
    print(f"Written: {out / 'report.html'}, results.json, results.csv, table.md, audit.md.", file=sys.stderr)
    return 0


def _asked(args: Args, shared: Mapping[str, Any]) -> tuple[Field | None, list[str]]:
    """What is drawn: each EVERY-th prompt of a file or set, or of a published benchmark's own file."""
    if args.suite is None:
        s = Settings(**{k: v for k, v in shared.items() if k in ("world", "model")})
        return None, read_prompts(Path(args.prompts), s)[:: args.every]
    field = Field.read(args.suite, args.prompts, args.every)
    return field, [e.prompt for e in field.entries]


def _suite(field: Field, plan: suite.Plan, runs: Runs, found: Sequence[Curve], measure: str, out: Path) -> None:
    """The published benchmark's own table, and the folders for its own scorer."""
    rows = summary(field, found, measure)
    save(field, rows, out)
    print("\n" + table_of(field, rows))
    for name in write_field(field, plan.methods, runs, plan.unit, plan.budgets, out / field.name):
        print(
            f"secondlook: {name} had no picture of some prompt, so no folder for {field.name} is written.",
            file=sys.stderr,
        )
    print(f"Written: {out / field.name} for the benchmark's own scorer; suite.md, suite.json.", file=sys.stderr)


def probe(args: Args) -> int:
    """`secondlook probe`: plain draws, and what they say of a search's worth."""
    from secondlook import api
    from secondlook.bench.probe import read, summary, told
    from secondlook.cli.progress import Progress

    if (args.prompt is None) == (args.prompts is None):
        raise ConfigError("Give either one prompt in quotes or --prompts FILE (or a set's name).")
    if not 2 <= args.draws <= 64:
        raise ConfigError(f"--draws must be from 2 to 64; got {args.draws}.")
    options = given(args)
    s, _, _ = api.asked(options)
    asked = [args.prompt] if args.prompts is None else read_prompts(Path(args.prompts), s)
    with tempfile.TemporaryDirectory(prefix="secondlook-") as folder:
        out = Path(args.out) if args.out else Path(folder) / "run"
        progress = None if args.quiet else Progress(len(asked))
        api.draw(asked, f"random(n={args.draws})", out, progress=progress, **options)
        store = Store.open(out)
        found = summary(read(store))
        store.close()
    print("\n".join(told(found)))
    if args.json:
        write_whole(Path(args.json), (json.dumps(found, indent=1) + "\n").encode())
    return 0


def audit(args: Args) -> int:
    """`secondlook audit`: whether a run's verifier was fooled."""
    store = Store.open(Path(args.dir))
    found = audit_of(store, args.by, store.picture)
    store.close()
    print(markdown(found))
    if args.json:
        write_whole(Path(args.json), (json.dumps(suite.literal(plain(found)), indent=1) + "\n").encode())
    return 0


def calibrate(args: Args) -> int:
    """`secondlook calibrate`: how early scores can be trusted, and the halving that follows from it."""
    from secondlook import api
    from secondlook.bench.calibrate import read, summary, told
    from secondlook.cli.progress import Progress

    if (args.prompt is None) == (args.prompts is None):
        raise ConfigError("Give either one prompt in quotes or --prompts FILE (or a set's name).")
    if not 4 <= args.draws <= 64 or args.every < 1:
        raise ConfigError(f"--draws must be from 4 to 64 and --every at least 1; got {args.draws} and {args.every}.")
    if not 0 < args.keep <= 1:
        raise ConfigError(f"--keep is a share above 0 and at most 1; got {args.keep:g}.")
    options = given(args)
    if "plan" in options:
        raise ConfigError("`secondlook calibrate` has its own plan; leave --plan out.")
    s, _, _ = api.asked(options)
    asked = [args.prompt] if args.prompts is None else read_prompts(Path(args.prompts), s)[:: args.every]
    with tempfile.TemporaryDirectory(prefix="secondlook-") as folder:
        out = Path(args.out) if args.out else Path(folder) / "run"
        progress = None if args.quiet else Progress(len(asked))
        api.draw(asked, f"calibrate(n={args.draws})", out, progress=progress, **options)
        store = Store.open(out)
        found = summary(read(store), args.keep)
        store.close()
    print("\n".join(told(found)))
    if args.json:
        write_whole(Path(args.json), (json.dumps(suite.literal(found), indent=1) + "\n").encode())
    return 0


def _refuse_other(out: Path, command: str) -> None:
    """ConfigError where a folder holds the results of another study."""
    try:
        had = json.loads((out / "results.json").read_text())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if had != command:
        raise ConfigError(f'"{out}" holds the results of another benchmark ({had}); name another --out, or delete it.')


def _budgets(text: str) -> tuple[float, ...]:
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError(
            f'--budgets are numbers with commas between them, such as 160,320,640; got "{text}".'
        ) from None
    if not found or found[0] <= 0:
        raise ConfigError(f"--budgets must be above 0; got {text}.")
    return tuple(int(b) if b == int(b) else b for b in found)


def _latency(text: str | None) -> Latency | None:
    if text is None:
        return None
    try:
        parts = {k: float(v) for k, v in (p.split("=") for p in text.split(","))}
        return Latency(**parts)
    except (ValueError, TypeError):
        raise ConfigError(f'--latency is evals=SECONDS,decodes=SECONDS,verdicts=SECONDS; got "{text}".') from None


def _classes(prompts: Sequence[str], scenes: bool) -> list[str]:
    """Strata: GenEval's tasks, and compound prompts by their number of atoms."""
    if not scenes:
        return ["all"] * len(prompts)
    return [f"{p.atoms} atoms" if p.tag == "compound" else p.tag for p in map(parse, prompts)]


def _atoms(picture: np.ndarray, prompt: str) -> dict[str, float]:
    """The share of a prompt's atoms that the exact checker finds in a picture."""
    return {"atoms": float(np.mean(judge(detect(picture), parse(prompt)).atoms))}


def _tuned(
    path: Path, methods: list[Method], budgets: Sequence[float], unit: str, shared: Mapping[str, Any]
) -> tuple[list[Method], dict[float, int]]:
    """For each budget the method that did best in another benchmark's results (on other prompts), added to ``methods``; one that is
    added is drawn no further than where it is needed."""
    rows, measure = _results(path)
    methods, chosen, own = list(methods), {}, len(methods)
    for budget in budgets:
        some = [r for r in rows if r["budget"] == budget and r["unit"] == unit and r["method"] != "tuned best of n"]
        if not some:
            raise ConfigError(f'"{path}" has no rows at {budget:g} {unit}; give the same --budgets and --unit there.')
        text = max(some, key=lambda r: r[measure])["method"]
        texts = [m.text for m in methods]
        if text not in texts:
            methods.append(Method.parse(text, shared))
        chosen[budget] = [m.text for m in methods].index(text)
    for k in range(own, len(methods)):
        methods[k] = replace(methods[k], most=max(b for b, at in chosen.items() if at == k))
    return methods, chosen


def _results(path: Path) -> tuple[list[dict[str, Any]], str]:
    """A benchmark's rows, and what methods are compared by there, from its results.json or results.csv."""
    try:
        if path.suffix == ".csv":
            with path.open(newline="") as file:
                table = list(csv.DictReader(file))
            measure = next(m for m in suite.MEASURES if table[0].get(m))
            return [{**r, "budget": float(r["budget"]), measure: float(r[measure])} for r in table], measure
        had = json.loads(path.read_text())
        return had["rows"], had["measure"]
    except (OSError, ValueError, KeyError, IndexError, StopIteration) as error:
        raise ConfigError(
            f'--tuned names the results.json or results.csv of a benchmark; "{path}" is none ({error}).'
        ) from None


def _words(args: Args) -> list[str]:
    words = ["--prompts", args.prompts, "--budgets", args.budgets, "--unit", args.unit, "--seeds", str(args.seeds)]
    for name in ("every", "tuned", "measure", "latency", "suite", "scorer"):
        value = getattr(args, name)
        if value not in (None, 1):
            words += [f"--{name}", str(value)]
    for name, value in given(args).items():
        words += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return [*words, "--out", args.out]
