"""`secondlook export`: a run's pictures for another program, or the run as a table."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from secondlook.backends.find import found_again
from secondlook.bench import layouts
from secondlook.engine.record import Record, or_nan
from secondlook.engine.store import Store
from secondlook.errors import ConfigError, SecondlookError, nearest
from secondlook.settings import Settings
from secondlook.types import Outcome
from secondlook.verify.benchmarks import BENCHMARKS, Entry, read

Args = argparse.Namespace


def export(args: Args) -> int:
    if args.format == "csv":
        return _table(args)
    if args.format not in BENCHMARKS:
        raise ConfigError(f'There is no export format "{args.format}"; {nearest(args.format, (*BENCHMARKS, "csv"))}')
    keep = _keep(args.keep)
    out, store = Path(args.out), Store.open(Path(args.dir))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f'"{out}" is not an empty folder. Choose another --out; nothing was written.')
    record, prompts = Record.read(store), store.config["prompts"]
    if not record.done:
        raise SecondlookError(f"The run is not finished; finish it first: secondlook resume {args.dir}")
    entries = _entries(prompts, store, args.format, args.metadata)
    chosen = [handed(record, i, keep) for i in range(len(prompts))]
    for some in chosen:  # every picture is read before the first is written
        if not some:
            raise SecondlookError(
                "The budget of this run ended before some prompt had a picture; draw with a larger one."
            )
        for outcome in some:
            store.checked(outcome.id, record.digests[outcome.id])
    remarks = [{str(k): _remark(o) for k, o in enumerate(some) if o.remark is not None} for some in chosen]
    layouts.write(args.format, out, entries, [[store.picture_path(o.id) for o in some] for some in chosen], remarks)
    print(f"{len(prompts)} prompts written to {out}")
    return 0


def handed(record: Record, task: int, keep: int | None) -> list[Outcome]:
    """A task's finished pictures, at most ``keep``: what the run hands over first, then by score, the earliest of equals."""
    done = {o.id: record.latest(o) for o in record.of(task) if o.finished and record.digests[o.id] is not None}
    winner = record.winner(task)
    first = list(dict.fromkeys([*record.chosen(task), *([] if winner is None else [winner.id])]))
    order = sorted(done, key=lambda i: (math.inf if math.isnan(or_nan(done[i].score)) else -or_nan(done[i].score), i))
    ids = list(dict.fromkeys([*first, *order]))
    return [done[i] for i in ids if i in done][:keep]


def _remark(outcome: Outcome) -> dict[str, object]:
    assert outcome.remark is not None
    return {"text": outcome.remark.text, "score": outcome.remark.score}


def _keep(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f'--keep is a number of pictures from 1, or all; got "{text}".')
    return int(text)


def _table(args: Args) -> int:
    from secondlook.engine.table import to_csv

    out = Path(args.out)
    if out.exists() or not out.resolve().parent.is_dir():
        raise ConfigError(f'--out must be a new file in an existing folder; got "{out}".')
    print(f"{to_csv(Store.open(Path(args.dir)), out)} rows written to {out}")
    return 0


def _entries(prompts: list[str], store: Store, name: str, file: str | None) -> list[Entry]:
    """For each prompt what the suite's own ``file`` says of it (in the run's order); for GenEval's layout without one what the world
    knows, or the prompt alone; any JSON lines with prompts serve it."""
    if name != "geneval":
        if file is None:
            raise ConfigError(f"--format {name} needs --metadata: {BENCHMARKS[name][1]}, as it was drawn.")
        found = read(name, file)
        _refuse_other(file, [e.prompt for e in found], prompts)
        return found
    if file is None:
        s = Settings.of(store.config)
        # Of a pipeline's prompt nothing more is known, and loading the pipeline would tell no more.
        told = (
            [{"prompt": p} for p in prompts] if s.world == "diffusers" else list(map(found_again(s).metadata, prompts))
        )
    else:
        try:
            lines = [line for line in Path(file).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            told = [json.loads(line) for line in lines]
            named = [record["prompt"] for record in told]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f'--metadata expects JSON lines with a "prompt" each; "{file}" cannot be read so ({error}).'
            ) from None
        _refuse_other(file, named, prompts)
    return [Entry(p, f"{i:05d}", "", facts) for i, (p, facts) in enumerate(zip(prompts, told, strict=True))]


def _refuse_other(file: str, named: list[str], prompts: list[str]) -> None:
    if named != prompts:
        raise ConfigError(
            f'The prompts of "{file}" are not those of the run, in their order; give the file that was drawn.'
        )
