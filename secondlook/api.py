"""The library's front door: draw prompts under a plan and a budget, resume, look at results."""

from __future__ import annotations

import hashlib
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
from secondlook.config import parse_call
from secondlook.engine.driver import Driver, Progress, replay
from secondlook.engine.ledger import Budget
from secondlook.engine.outlook import first_picture
from secondlook.engine.record import Record
from secondlook.engine.rig import Rig, build_flow
from secondlook.engine.store import Store, refuse_full, sha256
from secondlook.errors import ConfigError
from secondlook.grid import grid
from secondlook.kits import exact, kit
from secondlook.models.checkpoint import locate
from secondlook.noise import Key
from secondlook.settings import Settings
from secondlook.types import Condition, Cost, Task, Verifier


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


def build_rig(s: Settings, scoring: bool = True) -> Rig:
    """The rig that settings describe; reads weights, so damaged files show here. Without ``scoring`` it has neither
    verifier nor judges."""
    torch.set_num_threads(s.threads or torch.get_num_threads())
    world = kit(s.world)
    loaded = world.load(locate(s.model))
    with torch.inference_mode():
        null = loaded.encode(None) if s.guidance != 1.0 else None
    flow = build_flow(loaded.network, loaded.path, s.guidance, null, bool(s.bf16))
    return Rig(
        flow,
        conf.make_named("solver", s.solver),
        grid(s.steps, s.shift),
        loaded.encode,
        world.decode,
        make_verifier(s) if scoring else None,
        world.judges() if scoring else {},
        rows=s.rows or 16,
    )


def make_verifier(s: Settings) -> Verifier:
    """The guide: the world's own by its name, or another package's."""
    return kit(s.world).verifier(s.verifier) or conf.make_named("verifier", s.verifier)


def digests(s: Settings) -> dict[str, str]:
    """SHA-256 of the weights files that decide a run: the model's, and the shipped verifier's and judge's."""
    files = {"model": locate(s.model), **kit(s.world).files()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if path.is_file()}


def tasks_of(s: Settings) -> list[Task]:
    """A task for each prompt; its noise is keyed by the seed and the prompt's place in the list."""
    world, times = kit(s.world), grid(s.steps, s.shift)
    root = Key.root(s.seed)
    return [Task(i, world.ask(p), root.child("task", i), times) for i, p in enumerate(s.prompts)]


def budget_of(s: Settings, rig: Rig) -> Budget:
    """The run's budget; an endless plan with none may spend DEFAULT_SAMPLES plain samples."""
    sample = rig.price(0.0, 1.0, "score")
    budget = Budget(**s.budget)  # type: ignore[arg-type]
    budget.refuse_less_than(sample)
    if budget.endless and parse_call(s.plan).name != "random":
        budget = Budget(nfe=conf.DEFAULT_SAMPLES * sample.nfe)
    plan = conf.make_plan(s.plan)(Task(0, Condition(), Key(0), grid(s.steps, s.shift)))
    budget.refuse_less_than(first_picture(plan, rig), f"The first picture of {s.plan}")
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
    ``options``: world, verifier, model, steps, solver, guidance, shift, seed, rows, bf16, threads (see settings.Settings).
    Raises ConfigError for anything not understood, before a folder is made.
    """
    limits = {"nfe": nfe, "evals": evals, "verdicts": verdicts, "seconds": seconds}
    unknown = set(options) - set(Settings.__dataclass_fields__)
    if unknown:
        raise ConfigError(
            f"draw has no option {sorted(unknown)[0]!r}; known: {', '.join(Settings.__dataclass_fields__)}."
        )
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    s = Settings(texts, plan, budget=limits, **options).fill()
    tasks_of(s)
    make = conf.make_plan(s.plan)
    next(make(Task(0, Condition(), Key(0))), None)  # a plan checks its own options when it starts
    command = command or _repeat(s, Path(out or "runs/again"))
    s = s.resolved()
    if out is not None:
        refuse_full(Path(out))
    rig = build_rig(s)
    s.budget = {k: getattr(budget_of(s, rig), k) for k in limits}
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="secondlook-"))
    config = {
        **s.as_dict(),
        "version": secondlook.__version__,
        "commit": conf.commit(),
        "versions": conf.versions(),
        "command": command,
        "oracle": exact(rig.verifier),
        "weights": digests(s),
    }
    store = Store.create(folder, config)
    return _carry(store, s, rig, progress)


def resume(out: str | Path, progress: Progress | None = None) -> list[Result]:
    """Finish an interrupted run; a finished one just gives its results."""
    store = Store.open(Path(out))
    s = Settings.of(store.config)
    if Record.read(store).done:
        return results(store)
    if store.config.get("weights", digests(s)) != digests(s):
        raise ConfigError(
            f'The weights are not those that the run "{out}" began with, so it cannot go on as one run. Install the '
            f"release that made it ({store.config.get('version')}), or draw anew."
        )
    return _carry(store, s, build_rig(s), progress)


def _carry(store: Store, s: Settings, rig: Rig, progress: Progress | None) -> list[Result]:
    with store.writing():
        Driver(tasks_of(s), conf.make_plan(s.plan), rig, Budget(**s.budget), store).run(progress)  # type: ignore[arg-type]
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
        out.append(Result(prompt, pictures[0], winner.score, winner.parts, pictures[1], base.score, base.parts,
                          record.spent(i), winner.id))  # fmt: skip
    return out


def open_run(out: str | Path) -> list[Result]:
    """The results of a run on disk, finished or not."""
    return results(Store.open(Path(out)))


@dataclass(frozen=True)
class Replayed:
    """``same``: the picture drawn again has the recorded one's pixels, all of them."""

    outcome: int
    same: bool
    picture: np.ndarray = field(repr=False)


def replay_outcome(out: str | Path, outcome: int) -> Replayed:
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
    picture = replay(build_rig(s, scoring=False), outcome, lambda i: record.outcomes[i].proposal)
    return Replayed(outcome, sha256(picture) == record.digests[outcome], picture)


def _repeat(s: Settings, folder: Path) -> str:
    """The command line that repeats a run made from Python."""
    words = ["secondlook", "draw", *(s.prompts if len(s.prompts) == 1 else ["--prompts", "FILE"]), "--plan", s.plan]
    for name, value in s.budget.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    for name in ("world", "verifier", "model", "steps", "solver", "guidance", "shift", "seed", "rows", "threads"):
        words += [f"--{name}", str(getattr(s, name))]
    words += ["--bf16" if s.bf16 else "--no-bf16", "--out", str(folder) + "-again"]
    return shlex.join(words)
