"""The library's front door: draw prompts under a plan and a budget, resume, look at results."""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

import secondlook
from secondlook.adapters.chunks import fits
from secondlook.backends.base import Backend
from secondlook.backends.find import find, found_again
from secondlook.backends.judges import ROLES, Judges, named, of_a_judge, refuse_reserved, refuse_unmet
from secondlook.calls import parse_call
from secondlook.disk.versions import commit, versions
from secondlook.engine.derive import replay as redraw
from secondlook.engine.driver import Driver, Progress
from secondlook.engine.ledger import Budget
from secondlook.engine.pricing import first_picture
from secondlook.engine.record import Record
from secondlook.engine.rescore import Rescored, judge_all
from secondlook.engine.rescore import rescore as judge_again
from secondlook.engine.results import Result as Result
from secondlook.engine.results import Run, results
from secondlook.engine.rig import Rig
from secondlook.engine.select import select
from secondlook.engine.store import Store, refuse_full, sha256
from secondlook.errors import ConfigError, nearest
from secondlook.models.threads import threads
from secondlook.moves import Climb
from secondlook.noise import Key
from secondlook.notes import note
from secondlook.settings import OPTIONS, Settings, make_named, make_plan, texts
from secondlook.types import UNITS, Condition, Cost, Task, Verifier

DEFAULT_SAMPLES = 20  # what an endless plan without a budget may spend, in plain samples


# ---- from what is asked to a run -----------------------------------------------------------------------------------------


def asked(options: Mapping[str, Any]) -> tuple[Settings, Any, dict[str, Any]]:
    """Options as settings, with the model as it was given and judges that are objects. ConfigError for what is not an option."""
    given = {k: v for k, v in options.items() if v is not None}
    known = [*OPTIONS, *UNITS, *(f"total_{u}" for u in UNITS)]
    unknown = [k for k in given if k not in known]
    if unknown:
        raise ConfigError(f"There is no option {unknown[0]!r}; {nearest(unknown[0], known)}")
    budget = {u: given.pop(u) for u in UNITS if u in given}
    total = {u: given.pop(f"total_{u}") for u in UNITS if f"total_{u}" in given}
    objects = {}
    for role in ROLES:
        if role in given:
            given[role], thing = named(role, given[role])
            if thing is not None:
                objects[role] = thing
    model = given.get("model")
    if model is not None and not isinstance(model, (str, Path)):
        del given["model"]
    return Settings(budget=budget, total=total, **given), model, objects


def tasks_of(s: Settings, backend: Backend, times: tuple[float, ...]) -> list[Task]:
    """A task for each prompt; its noise is keyed by the seed and the prompt's place in the list."""
    root = Key.root(s.seed)
    return [Task(i, backend.condition(p), root.child("task", i), times) for i, p in enumerate(s.prompts)]


def build_rig(s: Settings, backend: Backend, judges: Judges | None = None) -> Rig:
    """The rig of filled settings; without ``judges`` one that only draws."""
    rig = backend.rig(s, None if judges is None else judges.verifier, scoring=judges is not None)
    if judges is not None:
        judges.join(rig)
    return rig


def budget_of(s: Settings, rig: Rig, tasks: Sequence[Task]) -> Budget:
    """The budget of a prompt; an endless plan with none may spend that of DEFAULT_SAMPLES plain samples. ConfigError where it, or the
    total, buys no picture of each prompt."""
    sample = rig.price(rig.begin, 1.0)
    Budget(**s.total).refuse_less_than(
        sum([sample] * len(tasks), Cost()), f"One sample for each of {len(tasks)} prompts"
    )
    budget = Budget(**s.budget)
    budget.refuse_less_than(sample)
    if budget.endless and not s.total and parse_call(s.plan).name != "random":
        budget = Budget(nfe=DEFAULT_SAMPLES * sample.nfe)
    budget.refuse_less_than(first_picture(make_plan(s.plan), tasks[0], rig, budget), f"The first picture of {s.plan}")
    return budget


def draw(
    prompts: Any,
    plan: str = "random(n=20)",
    out: str | Path | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Run:
    """Search for the best picture of each prompt and return one Result a prompt, in order.

    prompts: a text, a class's number, or several. ``out`` names the run's folder (new or empty; a temporary one by default). Budgets
    (nfe, evals, verdicts, remarks, comparisons, backward, seconds) hold for each prompt, ``total_nfe`` and the like for all of them. The
    other options are those of `secondlook draw --help`, with underscores; model may also be a diffusers pipeline or what
    ``secondlook.load`` returned, and verifier, critic, comparer and select may be objects. Raises ConfigError for anything not
    understood, before a folder is made.
    """
    s, model, objects = asked({"plan": plan, **options})
    s.prompts = texts(prompts)
    _try_options(s)
    folder = _folder(out)
    backend = find(s.model if model is None else model, s)
    s = s.filled(backend.usual(s)).resolved()
    with backend.session(), threads(s.threads):
        judges = Judges.of(s, backend, objects)
        rig = build_rig(s, backend, judges)
        refuse_unmet(s, rig)
        tasks = tasks_of(s, backend, rig.times)
        s.budget = dict(budget_of(s, rig, tasks).limits)
        config = {
            **s.as_dict(),
            "version": secondlook.__version__,
            "commit": commit(),
            "versions": versions(),
            "command": s.command("draw", s.prompts, out=f"{folder or Path('runs/again')}-again"),
            "oracle": backend.exact(judges.verifier) or judges.told_by_oracle,
            "weights": {**backend.digests(), **judges.digests(objects)},
        }
        where = folder or Path(tempfile.mkdtemp(prefix="secondlook-"))
        store = Store.create(where, config, lasting=folder is not None)
        return _carry(store, s, rig, judges, progress, tasks)


def _try_options(s: Settings) -> None:
    """Let a plan check its own options before anything is loaded. What else it trips over without a run is its own affair: it
    is tried on its real task later."""
    task = Task(0, Condition(prompt=s.prompts[0]), Key.root(s.seed))
    try:
        next(make_plan(s.plan)(task), None)
    except ConfigError:
        raise
    except Exception:
        return


def _folder(out: Any) -> Path | None:
    if out is None:
        return None
    if not isinstance(out, (str, Path)):
        raise ConfigError(f"--out must be a folder's name; got {out!r}.")
    refuse_full(Path(out))
    return Path(out)


def _signature() -> inspect.Signature:
    """``draw``'s, with every option by its name: made from the table of settings and that of units."""
    own = [p for p in inspect.signature(draw).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [*UNITS, *(f"total_{u}" for u in UNITS), *(n for n in OPTIONS if n != "plan")]
    return inspect.Signature(
        [*own, *(inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in more)]
    )


draw.__signature__ = _signature()  # type: ignore[attr-defined]


def opened(out: Any) -> tuple[Store, Settings]:
    """A run on disk with its settings."""
    if not isinstance(out, (str, Path)):
        raise ConfigError(f"A run is named by its folder; got {out!r}.")
    store = Store.open(Path(out))
    return store, Settings.of(store.config)


def _refuse_other(store: Store, backend: Backend, now: dict[str, str]) -> None:
    """ConfigError where the weights are not those that a run was drawn with."""
    had = {k: v for k, v in store.config.get("weights", now).items() if not of_a_judge(k)}
    if had == now:
        return
    mend = (f"Install the release that made it ({store.config.get('version')})" if backend.name != "diffusers" else
            "Give the same pipeline, with the same LoRA and scheduler settings (model=pipe in Python)")  # fmt: skip
    raise ConfigError(f'The weights are not those that the run "{store.folder}" began with, so it cannot go on as one run. '
                      f"{mend}, or draw again into another folder.")  # fmt: skip


def _compare_judges(store: Store, now: dict[str, str], meant: bool) -> None:
    """What to do where judges are not those that a run was drawn with: a ConfigError, or a note where that is ``meant``."""
    had = {k: v for k, v in store.config.get("weights", now).items() if of_a_judge(k)}
    other = sorted(k for k in {**had, **now} if had.get(k) != now.get(k))
    if not other:
        return
    said = f"The {' and the '.join(other)} {'are' if len(other) > 1 or other[0][-1] == 's' else 'is'} not what was there when the run"
    if not meant:
        raise ConfigError(f'{said} "{store.folder}" began: plans would decide by two judges. Put the former one back, or go on '
                          "all the same with --changed-judges (changed_judges=True), or draw again into another folder.")  # fmt: skip
    with store.writing():
        store.append([("judges", None, None, {"now": now})])
    note(f'{said} "{store.folder}" began. Its log says so.')


def resume(
    out: str | Path,
    progress: Progress | None = None,
    *,
    model: Any = None,
    device: str | None = None,
    changed_judges: bool = False,
    **objects: Any,
) -> Run:
    """Finish an interrupted run, and judge again what its verifier failed with; a finished one just gives its results.

    model, verifier, critic, comparer, select: the objects that it was drawn with, where they were objects. device: where it goes on.
    changed_judges: go on although the code or the settings of a judge are not what they were, as after it was mended.
    """
    store, s = opened(out)
    given = _objects(s, objects)
    record = Record.read(store)
    unscored = any(
        o.score is not None and math.isnan(o.score) and n not in record.rescored and record.digests[n] is not None
        for n, o in record.outcomes.items()
    )
    if record.done and not unscored and (s.select is None or record.selector):
        return results(store)
    if device is not None:
        s.device = device
    backend = found_again(s, model, device)
    with backend.session(), threads(s.threads):
        judges = Judges.of(s, backend, given)
        _refuse_other(store, backend, backend.digests())
        # After they failed, judges are mended; and where the plans are through, they decide nothing.
        failed = any(role in f for f in record.failures for role in ("verifier", "critic", "comparer", "judge"))
        meant = changed_judges or record.done or failed
        _compare_judges(store, judges.digests(given), meant)
        rig = build_rig(s, backend, judges)
        return _carry(store, s, rig, judges, progress, tasks_of(s, backend, rig.times), again=True)


def _objects(s: Settings, objects: Mapping[str, Any]) -> dict[str, Any]:
    """Objects given at resume, by role; ConfigError where they are not those of the run."""
    given = {}
    for role, thing in objects.items():
        if role not in ROLES:
            raise ConfigError(f"There is no option {role!r} here; {nearest(role, ['model', 'device', *ROLES])}")
        if thing is None:
            continue
        name, made = named(role, thing)
        had = getattr(s, role)
        if name != had:
            raise ConfigError(f'This run has "{str(had).removeprefix("object:")}" as its {role}; got "{name.removeprefix("object:")}". Give the one it '
                              "began with.")  # fmt: skip
        if made is not None:
            given[role] = made
    return given


def _carry(
    store: Store,
    s: Settings,
    rig: Rig,
    judges: Judges,
    progress: Progress | None,
    tasks: list[Task],
    again: bool = False,
) -> Run:
    """The run to its end. again: whether pictures that the verifier failed with are shown to it once more."""
    with store.writing():
        with fits("this run", "Draw fewer rows at once (--rows), or smaller pictures."):
            more = {} if s.patience is None else {"patience": s.patience}
            total = _total(s, len(tasks))
            Driver(
                tasks, make_plan(s.plan), rig, _budget(s, len(tasks)), store, total=total, window=s.window, **more
            ).run(progress)
        if again and judges.verifier is not None:
            _judge_again(store, judges.verifier, tasks)
        if judges.select is not None:
            select(store, judges.select, len(tasks))
    _notes(store, s)
    return results(store)


def _budget(s: Settings, count: int) -> Budget:
    """A prompt's budget: its own, and where a total is split evenly its share."""
    shares = (
        {u: v / count if u == "seconds" else v // count for u, v in s.total.items()}
        if s.split in (None, "even")
        else {}
    )
    both = {u: min(v for v in (s.budget.get(u), shares.get(u)) if v is not None) for u in {**s.budget, **shares}}
    if any(v <= 0 for v in both.values()):
        raise ConfigError(f"The total budget has less than 1 for each of {count} prompts; raise it.")
    return Budget(**both)


def _total(s: Settings, count: int) -> Budget | None:
    return Budget(**s.total) if s.split == "pool" and s.total else None


def _judge_again(store: Store, verifier: Verifier, tasks: Sequence[Task]) -> Rescored:
    """Score what has no score; say what moved."""
    done = judge_again(store, verifier, tasks)
    if done.moved:
        note(f"Judged again, {len(done.moved)} prompt{'s have' if len(done.moved) > 1 else ' has'} another best picture than before "
             f"(by place: {', '.join(map(str, done.moved[:10]))}); the plan had decided without these scores.")  # fmt: skip
    return done


def _notes(store: Store, s: Settings) -> None:
    """What a person should know of a run that went on although something failed."""
    record = Record.read(store)
    for role in ("verifier", "critic", "comparer"):
        failed = [f for f in record.failures if role in f and f.get("outcome") not in record.rescored]
        if failed:
            last = str(failed[-1].get("error"))
            note(f'The {role} "{failed[-1][role]}" failed with {len(failed)} picture{"s" * (len(failed) != 1)} ({last}), which have no answer of it. The '
                 "tracebacks are in the run's log and report; `secondlook resume` asks again for scores.")  # fmt: skip
    limit = s.budget.get("seconds")
    over = [i for i in record.tasks if limit is not None and record.spent(i).seconds > 1.5 * limit]
    if over and limit is not None:
        most = max(record.spent(i).seconds for i in over)
        note(f"The budget of {limit:g} seconds was overspent by {len(over)} prompt{'s' * (len(over) != 1)} (up to {most:.1f} s): what is under way is "
             "finished, and a verifier's answer is waited for.")  # fmt: skip


# ---- results -------------------------------------------------------------------------------------------------------------


def open_run(out: str | Path) -> Run:
    """The results of a run on disk, finished or not."""
    return results(opened(out)[0])


@dataclass(frozen=True)
class Replayed:
    """``same``: the picture drawn again has the recorded one's pixels, all of them. difference: the largest in any channel of
    any pixel, 0 to 255; where batches are not padded, company changes a network's last bits, and a level here and there."""

    outcome: int
    same: bool
    difference: int
    picture: np.ndarray = field(repr=False)


def replay(
    out: str | Path, outcome: int, *, model: Any = None, device: str | None = None, verifier: Any = None
) -> Replayed:
    """Draw one outcome again from its recorded derivation alone. verifier: the run's, where it was an object and plans climbed by it."""
    store, s = opened(out)
    if isinstance(outcome, bool) or not isinstance(outcome, Integral):
        raise ConfigError(f"An outcome is named by its number; got {outcome!r}.")
    record = Record.read(store)
    if outcome not in record.outcomes:
        known = f"it holds {min(record.outcomes)} to {max(record.outcomes)}" if record.outcomes else "it holds none yet"
        raise ConfigError(f'The run "{out}" has no outcome {outcome}; {known}.')
    if record.digests[outcome] is None:
        raise ConfigError(f"Outcome {outcome} has no picture to compare: it is a half-made state that nobody looked at, or its row overflowed.")  # fmt: skip
    if device is not None:
        s.device = device
    backend = found_again(s, model, device)
    with backend.session(), threads(s.threads):
        if backend.name == "diffusers":  # elsewhere the picture itself tells, and says more
            _refuse_other(store, backend, backend.digests())
        rig = build_rig(s, backend)
        if any(isinstance(o.proposal.move, Climb) for o in record.outcomes.values()):  # gradients are the verifier's
            rig.verifier = Judges.of(
                replace(s, critic=None, comparer=None, select=None), backend, _objects(s, {"verifier": verifier})
            ).verifier
        picture = redraw(rig, outcome, lambda i: record.outcomes[i].proposal,
                         lambda i: record.digests[i] is None)  # fmt: skip
    recorded = store.picture(outcome)
    gap = np.abs(picture.astype(int) - recorded).max() if picture.shape == recorded.shape else 255
    return Replayed(outcome, sha256(picture) == record.digests[outcome], int(gap), picture)


replay_outcome = replay


def rescore(out: str | Path, *, verifier: Any = None, model: Any = None) -> Rescored | int:
    """Judge a run's pictures again. Without ``verifier``: those that the run's own verifier was asked of and could not judge. With
    one (a call-string or an object): all of them, into the log as those of a held-out judge; returns how many."""
    store, s = opened(out)
    backend = found_again(s, model)
    with store.writing(), backend.session(), threads(s.threads):
        tasks = tasks_of(s, backend, (0.0, 1.0))
        if verifier is None:
            return _judge_again(store, Judges.of(s, backend, {}).verifier, tasks)
        name, thing = named("verifier", verifier)
        made = thing or backend.verifier(name) or make_named("verifier", name)
        refuse_reserved(made)
        return judge_all(store, name.removeprefix("object:"), made, tasks)
