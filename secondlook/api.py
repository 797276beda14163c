"""The library's front door: draw prompts under a plan and a budget, resume, look at results."""

from __future__ import annotations

import hashlib
import math
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import secondlook
from secondlook import settings as conf
from secondlook.adapters.chunks import fits
from secondlook.backends import pipelines
from secondlook.backends.shipped import exact, kit
from secondlook.calls import parse_call
from secondlook.engine.derive import replay
from secondlook.engine.driver import Driver, Progress
from secondlook.engine.ledger import Budget
from secondlook.engine.pricing import first_picture
from secondlook.engine.record import Record
from secondlook.engine.rig import Rig, build_flow
from secondlook.engine.store import Store, refuse_full, sha256
from secondlook.errors import ConfigError
from secondlook.flow.grid import grid
from secondlook.models.checkpoint import locate
from secondlook.noise import Key
from secondlook.notes import note
from secondlook.settings import PIPELINE, Settings
from secondlook.types import Cost, Task, Verifier


@dataclass(frozen=True)
class Result:
    """One prompt's outcome. ``picture`` and ``plain`` (the unsearched one) are uint8 [H, W, 3]; ``verdicts`` and
    ``plain_verdicts`` hold the judge's and the checker's numbers; ``spent`` is what the search cost."""

    prompt: str
    picture: np.ndarray
    score: float
    verdicts: dict[str, float]
    plain: np.ndarray
    plain_score: float
    plain_verdicts: dict[str, float]
    spent: Cost
    outcome: int

    def save(self, path: str | Path) -> None:
        """Write the picture as a PNG."""
        Image.fromarray(self.picture).save(path)


def build_rig(s: Settings, scoring: bool = True, held: Any = None, guide: Verifier | None = None) -> Rig:
    """The rig that settings describe; reads weights, so damaged files show here. Without ``scoring`` it has neither
    verifier nor judges. held: the adapter of a pipeline's run. guide: a verifier that is an object."""
    torch.set_num_threads(s.threads or torch.get_num_threads())
    if scoring:
        guide = guide or make_verifier(s)
    if held is not None:
        return pipelines.rig_of(s, held, guide if scoring else None)
    world = kit(s.world)
    loaded = world.load(locate(s.model))
    with torch.inference_mode():
        null = loaded.encode(None) if s.guidance != 1.0 else None
    flow = build_flow(loaded.network, loaded.path, s.guidance, null, bool(s.bf16))
    return Rig(
        flow,
        conf.make_named("solver", s.solver),
        times_of(s),
        loaded.encode,
        world.decode,
        guide if scoring else None,
        world.judges() if scoring else {},
        rows=s.rows or 16,
        pad=s.pad is not False,
        inference=True,
    )


def times_of(s: Settings) -> tuple[float, ...]:
    """A built-in world's grid."""
    return grid(s.steps, 1.0 if s.shift is None else s.shift)


def make_verifier(s: Settings) -> Verifier:
    """The guide: the world's own by its name, or another package's."""
    if s.verifier.startswith("object:"):
        raise ConfigError(
            f'This run is guided by the Python object "{s.verifier[7:]}"; give it again: verifier=..., to go on.'
        )
    own = None if s.world == PIPELINE else kit(s.world).verifier(s.verifier)
    if s.world == PIPELINE:
        pipelines.refuse_guide(s.verifier)
    return own or conf.make_named("verifier", s.verifier)


def digests(s: Settings, held: Any = None) -> dict[str, str]:
    """SHA-256 of the weights files that decide a run: the model's, and the shipped verifier's and judge's."""
    if held is not None:
        return {"model": held.digest()}
    files = {"model": locate(s.model), **kit(s.world).files()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if path.is_file()}


def tasks_of(s: Settings, held: Any = None) -> list[Task]:
    """A task for each prompt; its noise is keyed by the seed and the prompt's place in the list."""
    if held is None:
        ask, times = kit(s.world).ask, times_of(s)
    else:
        ask, times = held.condition, held.schedule(s.steps, s.shift).times
    root = Key.root(s.seed)
    return [Task(i, ask(p), root.child("task", i), times) for i, p in enumerate(s.prompts)]


def budget_of(s: Settings, rig: Rig, task: Task) -> Budget:
    """The run's budget; an endless plan with none may spend DEFAULT_SAMPLES plain samples."""
    sample = rig.price(rig.begin, 1.0, "score")
    budget = Budget(**s.budget)  # type: ignore[arg-type]
    budget.refuse_less_than(sample)
    if budget.endless and parse_call(s.plan).name != "random":
        budget = Budget(nfe=conf.DEFAULT_SAMPLES * sample.nfe)
    budget.refuse_less_than(first_picture(conf.make_plan(s.plan), task, rig), f"The first picture of {s.plan}")
    return budget


def draw(
    prompts: str | Sequence[str],
    plan: str = "random(n=20)",
    out: str | Path | None = None,
    *,
    nfe: int | None = None,
    evals: int | None = None,
    verdicts: int | None = None,
    seconds: float | None = None,
    progress: Progress | None = None,
    command: str | None = None,
    **options: Any,
) -> list[Result]:
    """Search for the best picture of each prompt and return one Result a prompt, in order.

    Budgets hold for each prompt. ``out`` names the run's folder (new or empty; a temporary one by default).
    ``options``: world, verifier, model, steps, solver, guidance, shift, seed, rows, pad, bf16, threads (see settings.Settings);
    model may also be a diffusers pipeline, its folder or hub id, or what ``secondlook.load`` returned, and the options of
    ``secondlook.load`` are then taken too; verifier may be an object. Raises ConfigError for anything not understood, before
    a folder is made.
    """
    limits = {"nfe": nfe, "evals": evals, "verdicts": verdicts, "seconds": seconds}
    _refuse_unknown(options)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    conf.make_plan(plan)
    Budget(**limits)  # type: ignore[arg-type]
    if out is not None:
        refuse_full(Path(out))
    options, guide = {k: v for k, v in options.items() if v is not None}, None
    if "verifier" in options:
        options["verifier"], guide = pipelines.named(options["verifier"])
    held = pipelines.hold(options.get("model"), options, options.get("world"))
    if held is not None:
        options = pipelines.usual(held, options)
    s = Settings(texts, plan, budget=limits, **options).fill()
    tasks = tasks_of(s, held)
    command = command or _repeat(s, Path(out or "runs/again"))
    s = s.resolved()
    rig = build_rig(s, held=held, guide=guide)
    s.budget = dict(budget_of(s, rig, tasks[0]).limits)
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="secondlook-"))
    config = {
        **s.as_dict(),
        "version": secondlook.__version__,
        "commit": conf.commit(),
        "versions": conf.versions(),
        "command": command,
        "oracle": exact(rig.verifier),
        "weights": digests(s, held),
    }
    if held is not None:
        pipelines.prepared(rig, held, [t.condition for t in tasks])
    store = Store.create(folder, config)
    return _carry(store, s, rig, progress, tasks)


def _refuse_other(store: Store, now: dict[str, str], pipeline: bool) -> None:
    """ConfigError where the weights are not those that a run was drawn with."""
    if store.config.get("weights", now) == now:
        return
    mend = ("Give the same pipeline, with the same LoRA and scheduler settings (model=pipe in Python)" if pipeline else
            f"Install the release that made it ({store.config.get('version')})")  # fmt: skip
    raise ConfigError(f'The weights are not those that the run "{store.folder}" began with, so it cannot go on as one run. '
                      f"{mend}, or draw anew.")  # fmt: skip


def _refuse_unknown(options: dict[str, Any]) -> None:
    fixed = ("prompts", "plan", "budget", "pipeline")
    known = [n for n in (*Settings.__dataclass_fields__, *pipelines.OPTIONS) if n not in fixed]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"draw has no option {unknown[0]!r}; known: {', '.join(known)}.")


def resume(
    out: str | Path, progress: Progress | None = None, *, model: Any = None, verifier: Verifier | None = None
) -> list[Result]:
    """Finish an interrupted run; a finished one just gives its results. model, verifier: the objects that it was drawn with,
    where they were objects."""
    store = Store.open(Path(out))
    s = Settings.of(store.config)
    if Record.read(store).done:
        return results(store)
    if verifier is not None and pipelines.named(verifier)[0] != s.verifier:
        raise ConfigError(
            f'This run is guided by "{s.verifier.removeprefix("object:")}"; got the verifier "{verifier.name}". Give the one it began with.'
        )
    held = pipelines.again(s, model) if s.world == PIPELINE else None
    now = digests(s, held)
    _refuse_other(store, now, held is not None)
    rig, tasks = build_rig(s, held=held, guide=verifier), tasks_of(s, held)
    if held is not None:
        pipelines.prepared(rig, held, [t.condition for t in tasks])
    return _carry(store, s, rig, progress, tasks)


def _carry(store: Store, s: Settings, rig: Rig, progress: Progress | None, tasks: list[Task]) -> list[Result]:
    with store.writing(), fits("this run", "Draw fewer rows at once (--rows), or smaller pictures."):
        Driver(tasks, conf.make_plan(s.plan), rig, Budget(**s.budget), store).run(progress)  # type: ignore[arg-type]
    failed = [f for f in Record.read(store).failures if "verifier" in f]
    if failed:
        last = failed[-1]["traceback"].strip().splitlines()[-1]
        note(f'The verifier "{failed[-1]["verifier"]}" failed on {len(failed)} occasion{"s" * (len(failed) != 1)} ({last}); the pictures it was asked of then have no '
             "score. The tracebacks are in the run's log and report.")  # fmt: skip
    return results(store)


def results(store: Store) -> list[Result]:
    """What a run's log says: one Result for each prompt, or in an unfinished run for each that has a picture.

    Where a budget in seconds bought no finished picture, the unsearched one is the result (``outcome`` is negative)."""
    record, out = Record.read(store), []
    for i, prompt in enumerate(store.config["prompts"]):
        winner, plain = record.winner(i), record.baseline(i)
        if plain is None:
            continue
        base, name = plain
        if winner is None:  # the budget bought no finished picture: the unsearched one stands
            pictures = store.picture(name), store.picture(name)
            winner = base
        else:
            pictures = store.checked(winner.id, record.digests[winner.id]), store.picture(name)
        scores = [math.nan if o.score is None else o.score for o in (winner, base)]
        out.append(Result(prompt, pictures[0], scores[0], record.said(winner.id), pictures[1], scores[1], record.said(base.id),
                          record.spent(i), winner.id))  # fmt: skip
    return out


def open_run(out: str | Path) -> list[Result]:
    """The results of a run on disk, finished or not."""
    return results(Store.open(Path(out)))


@dataclass(frozen=True)
class Replayed:
    """``same``: the picture drawn again has the recorded one's pixels, all of them. difference: the largest in any channel of
    any pixel, 0 to 255; where batches are not padded, company changes a network's last bits, and a level here and there."""

    outcome: int
    same: bool
    difference: int
    picture: np.ndarray = field(repr=False)


def replay_outcome(out: str | Path, outcome: int, *, model: Any = None) -> Replayed:
    """Draw one outcome again from its recorded derivation alone."""
    store = Store.open(Path(out))
    record = Record.read(store)
    if outcome not in record.outcomes:
        have = sorted(record.outcomes)
        known = f"it holds {have[0]} to {have[-1]}" if have else "it holds none yet"
        raise ConfigError(f'The run "{out}" has no outcome {outcome}; {known}.')
    if record.digests[outcome] is None:
        raise ConfigError(
            f"Outcome {outcome} is a half-made state that nobody looked at; it has no picture to compare."
        )
    s = Settings.of(store.config)
    held = pipelines.again(s, model) if s.world == PIPELINE else None
    if held is not None:
        _refuse_other(store, digests(s, held), True)
    picture = replay(build_rig(s, scoring=False, held=held), outcome, lambda i: record.outcomes[i].proposal)
    recorded = store.picture(outcome)
    gap = np.abs(picture.astype(int) - recorded).max() if picture.shape == recorded.shape else 255
    return Replayed(outcome, sha256(picture) == record.digests[outcome], int(gap), picture)


_UNNAMED = {"model": "FOLDER_OR_ID", "verifier": "MODULE:ATTR"}  # in the place of Python objects


def _nameless(value: str) -> bool:
    return not value or value.startswith("object:")


def _repeat(s: Settings, folder: Path) -> str:
    """The command line that repeats a run made from Python."""
    words = ["secondlook", "draw", *(s.prompts if len(s.prompts) == 1 else ["--prompts", "FILE"]), "--plan", s.plan]
    for name, value in s.budget.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    for name in ("world", "verifier", "model", "steps", "solver", "guidance", "shift", "seed", "rows", "threads"):
        if (value := getattr(s, name)) is not None and (name, value) != ("world", PIPELINE):
            words += [f"--{name}", _UNNAMED.get(name, "") if _nameless(str(value)) else str(value)]
    if s.pad is not None:
        words.append("--pad" if s.pad else "--no-pad")
    for name in pipelines.OPTIONS:
        value = s.pipeline.get(name)
        if value is not None and value is not False and (name, value) != ("true_guidance", 1.0):
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    words += ["--bf16" if s.bf16 else "--no-bf16", "--out", str(folder) + "-again"]
    return shlex.join(words)
