"""A run from its settings to its end: tasks, the rig, shares of the budget, and what a person is told afterwards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from secondlook.adapters.chunks import fits
from secondlook.backends.base import Backend
from secondlook.backends.judges import Judges
from secondlook.engine.driver import Driver, Progress
from secondlook.engine.ledger import Budget
from secondlook.engine.record import Record
from secondlook.engine.rescore import Rescored
from secondlook.engine.rescore import rescore as judge_again
from secondlook.engine.rig import Rig
from secondlook.engine.select import select
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.noise import Key
from secondlook.notes import note
from secondlook.runs import temporary
from secondlook.runs.best import write_best
from secondlook.runs.results import Run, results
from secondlook.settings import Settings, make_plan
from secondlook.types import Task, Verifier


def tasks_of(s: Settings, backend: Backend, times: tuple[float, ...]) -> list[Task]:
    """A task for each prompt; its noise is keyed by the seed and the prompt's place in the list, or where ``keyed``
    says so by the prompt and how often it came before."""
    root = Key.root(s.seed)
    if s.keyed != "prompt":
        keys = [root.child("task", i) for i in range(len(s.prompts))]
    else:
        had: Counter[str] = Counter()
        keys = []
        for prompt in s.prompts:  # the same prompt again is another sample, told apart by how often it came before
            keys.append(root.child("prompt", prompt, had[prompt]))
            had[prompt] += 1
    return [Task(i, backend.condition(p), k, times) for i, (p, k) in enumerate(zip(s.prompts, keys, strict=True))]


def build_rig(s: Settings, backend: Backend, judges: Judges | None = None) -> Rig:
    """The rig of filled settings; without ``judges`` one that only draws."""
    rig = backend.rig(s, None if judges is None else judges.verifier, scoring=judges is not None)
    if judges is not None:
        judges.join(rig)
    return rig


def carry(
    store: Store,
    s: Settings,
    rig: Rig,
    judges: Judges,
    progress: Progress | None,
    tasks: list[Task],
    again: bool = False,
) -> Run:
    """The run to its end. again: whether pictures that the verifier failed with are shown to it once more."""
    try:
        with store.writing():
            with fits("this run", "Draw fewer rows at once (--rows), or smaller pictures."):
                more = {} if s.patience is None else {"patience": s.patience}
                total = pool(s, len(tasks))
                Driver(
                    tasks,
                    make_plan(s.plan),
                    rig,
                    budget_each(s, len(tasks)),
                    store,
                    total=total,
                    window=s.window,
                    until=s.until,
                    **more,
                ).run(progress)
            if again and judges.verifier is not None:
                score_missing(store, judges.verifier, tasks)
            if judges.select is not None:
                select(store, judges.select, len(tasks))
    except BaseException:
        if temporary.passing(store.folder):  # what was drawn is worth going on with
            note(
                f"The run did not finish; what it drew is kept in {temporary.keep(store.folder)}: secondlook.resume goes on with it."
            )
        raise
    finally:
        close = getattr(progress, "close", None)
        if callable(close):
            close()
    _notes(store, s)
    found = results(store)
    if not temporary.passing(store.folder):
        show(found, s)
    return found


def show(found: Run, s: Settings) -> None:
    """Bring what the run's folder shows of its results up to date: best/ and candidates.csv."""
    with found.store.writing():
        write_best(found, 1 if s.keep is None else s.keep)


def budget_each(s: Settings, count: int) -> Budget:
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


def pool(s: Settings, count: int) -> Budget | None:
    return Budget(**s.total) if s.split == "pool" and s.total else None


def score_missing(store: Store, verifier: Verifier, tasks: Sequence[Task]) -> Rescored:
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
    endless = sum(o.score is not None and math.isinf(o.score) for o in record.outcomes.values())
    if endless:
        note(f'The verifier "{s.verifier}" gave {endless} picture{"s" * (endless != 1)} an infinite score, which no other can beat or be compared '
             "with; it should answer NaN where it cannot judge.")  # fmt: skip
    limit = s.budget.get("seconds")
    over = [i for i in record.tasks if limit is not None and record.spent(i).seconds > 1.5 * limit]
    if over and limit is not None:
        most = max(record.spent(i).seconds for i in over)
        note(f"The budget of {limit:g} seconds was overspent by {len(over)} prompt{'s' * (len(over) != 1)} (up to {most:.1f} s): what is under way is "
             "finished, and a verifier's answer is waited for.")  # fmt: skip
