"""The library's front door: draw prompts under a plan and a budget, resume, look at results."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import secondlook
from secondlook.backends.find import find
from secondlook.backends.judges import ROLES, Judges, named, refuse_unmet
from secondlook.calls import parse_call
from secondlook.disk.versions import commit, versions
from secondlook.engine.driver import Progress
from secondlook.engine.ledger import Budget
from secondlook.engine.pricing import first_picture
from secondlook.engine.record import Record as Record
from secondlook.engine.rig import Rig
from secondlook.engine.store import Store, refuse_full
from secondlook.errors import ConfigError, nearest
from secondlook.models.threads import threads as threads
from secondlook.noise import Key
from secondlook.runs import temporary
from secondlook.runs.again import Replayed as Replayed
from secondlook.runs.again import open_run as open_run
from secondlook.runs.again import opened as opened
from secondlook.runs.again import replay as replay
from secondlook.runs.again import replay_outcome as replay_outcome
from secondlook.runs.again import rescore as rescore
from secondlook.runs.again import resume as resume
from secondlook.runs.begin import begin_from, digest, given_noise, save
from secondlook.runs.carry import build_rig as build_rig
from secondlook.runs.carry import carry
from secondlook.runs.carry import tasks_of as tasks_of
from secondlook.runs.first import ask_first
from secondlook.runs.progress import watcher
from secondlook.runs.results import Result as Result
from secondlook.runs.results import Run
from secondlook.settings import OPTIONS, Settings, make_plan, texts
from secondlook.types import UNITS, Condition, Cost, Task

DEFAULT_SAMPLES = 20  # what an endless plan without a budget may spend, in plain samples
ALIASES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "negative_prompt": "negative",
}  # of diffusers' calls


# ---- from what is asked to a run -----------------------------------------------------------------------------------------


def asked(options: Mapping[str, Any]) -> tuple[Settings, Any, dict[str, Any]]:
    """Options as settings, with the model as it was given and judges that are objects. ConfigError for what is not an option."""
    given = _by_our_names({k: v for k, v in options.items() if v is not None})
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


def _by_our_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options with diffusers' own names for some replaced by ours; ConfigError where both are given."""
    found = dict(given)
    for theirs, ours in ALIASES.items():
        if theirs in found:
            if ours in found:
                raise ConfigError(f"{theirs} is another name of {ours}; give one of them.")
            found[ours] = found.pop(theirs)
    return found


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
    progress: Progress | bool | None = None,
    latents: Any = None,
    **options: Any,
) -> Run:
    """Search for the best picture of each prompt and return one Result a prompt, in order.

    prompts: a text, a class's number, or several. ``out`` names the run's folder (new or empty; a temporary one by default). Budgets
    (nfe, evals, verdicts, remarks, comparisons, backward, seconds) hold for each prompt, ``total_nfe`` and the like for all of them.
    latents: noise of your own that each prompt begins from, as ``pipe(..., latents=...)`` takes it but never packed: [*S], or
    [prompts, *S]. progress: True for a line where somebody watches a terminal or a notebook, or a function that is told. The
    other options are those of `secondlook draw --help`, with underscores; model may also be a diffusers pipeline or what
    ``secondlook.load`` returned, and verifier, critic, comparer and select may be objects. Raises ConfigError for anything not
    understood, before a folder is made.
    """
    s, model, objects = asked({"plan": plan, **options})
    s.prompts = texts(prompts)
    _try_options(s)
    told = watcher(progress, len(s.prompts))
    folder = _folder(out)
    backend = find(s.model if model is None else model, s)
    s = s.filled(backend.usual(s)).resolved()
    with backend.session(), threads(s.threads):
        judges = Judges.of(s, backend, objects)
        rig = build_rig(s, backend, judges)
        refuse_unmet(s, rig)
        tasks = tasks_of(s, backend, rig.times)
        s.budget = dict(budget_of(s, rig, tasks).limits)
        noise = given_noise(s, rig, len(tasks), latents)
        begin_from(rig, tasks, noise)
        kept = None if latents is None else noise
        config = {
            **s.as_dict(),
            "version": secondlook.__version__,
            "commit": commit(),
            "versions": versions(),
            "command": s.command("draw", s.prompts, out=f"{folder or Path('runs/again')}-again"),
            "oracle": backend.exact(judges.verifier) or judges.told_by_oracle,
            **({} if kept is None else {"latents": digest(kept)}),
            "weights": {**backend.digests(), **judges.digests(objects)},
        }
        ask_first(judges.verifier, rig, tasks[0].condition, s.patience)  # after the digests: an object counts its calls
        store = Store.create(folder or temporary.new(), config, lasting=folder is not None)
        if kept is not None:
            save(store, kept)
        return carry(store, s, rig, judges, told, tasks)


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
