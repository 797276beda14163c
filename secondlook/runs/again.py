"""A run on disk, opened again: resume, replay, rescore."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from secondlook.backends.base import Backend
from secondlook.backends.find import found_again
from secondlook.backends.judges import ROLES, Judges, named, of_a_judge, refuse_reserved
from secondlook.engine.derive import replay as redraw
from secondlook.engine.driver import Progress
from secondlook.engine.record import Record
from secondlook.engine.rescore import Rescored, judge_all
from secondlook.engine.store import Store, sha256
from secondlook.errors import ConfigError, nearest
from secondlook.models.threads import threads
from secondlook.moves import Climb
from secondlook.notes import note
from secondlook.runs.begin import begin_again
from secondlook.runs.carry import build_rig, carry, score_missing, show, tasks_of
from secondlook.runs.progress import watcher
from secondlook.runs.results import Run, results
from secondlook.runs.temporary import keep
from secondlook.settings import Settings, make_named
from secondlook.types import Task


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
    mend = getattr(backend, "mend", f"Install the release that made it ({store.config.get('version')})" if backend.name != "diffusers"
                   else "Give the same pipeline, with the same LoRA and scheduler settings (model=pipe in Python)")  # fmt: skip
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
    progress: Progress | bool | None = None,
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
    keep(store.folder)
    told = watcher(progress, len(s.prompts))
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
        tasks = tasks_of(s, backend, rig.times)
        begin_again(store, s, rig, tasks)
        return carry(store, s, rig, judges, told, tasks, again=True)


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
        begin_again(store, s, rig, tasks_of(s, backend, rig.times))
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
        done: Rescored | int
        if verifier is None:
            done = score_missing(store, Judges.of(s, backend, {}).verifier, tasks)
        else:
            done = _judged_by(verifier, store, backend, tasks)
    show(results(store), s)
    return done


def _judged_by(verifier: Any, store: Store, backend: Backend, tasks: Sequence[Task]) -> int:
    """How many pictures another verifier judged."""
    name, thing = named("verifier", verifier)
    made = thing or backend.verifier(name) or make_named("verifier", name)
    refuse_reserved(made)
    return judge_all(store, name.removeprefix("object:"), made, tasks)
