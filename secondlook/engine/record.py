"""What a run's log says, read back: outcomes, costs, what judges said, winners. Reports and benchmarks read this and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from secondlook.engine.store import Event, Store
from secondlook.errors import ConfigError, DamagedError
from secondlook.moves import Fresh, Move
from secondlook.plans.moves import best
from secondlook.types import Condition, Context, Cost, Outcome, Proposal, Remark

Body = dict[str, Any]
PARTS = {
    "round": ("n", "count", "proposed", "proposals", "left"),
    "ended": ("left", "baseline"),
    "began": ("limits",),
}  # of an event's body, that are read when a run goes on


def baseline_id(task: int) -> int:
    """The number under which the unsearched picture of a task is known, where no outcome of its plan is that picture."""
    return -1 - task


@dataclass
class Record:
    """Of a run, or of one task of it.

    By outcome number: ``outcomes`` as they decided, ``costs``, ``digests`` of the pictures, ``order`` within the task,
    ``judged`` (what held-out judges and the checker said) and ``rescored`` (scores given after the run). By task:
    ``tasks`` (outcome numbers), ``baselines`` (the unsearched picture where the plan did not draw it), ``rounds``, ``began`` and
    ``ended``. ``selected``: what a selector chose, by task.
    """

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    costs: dict[int, Cost] = field(default_factory=dict)
    digests: dict[int, str | None] = field(default_factory=dict)
    order: dict[int, int] = field(default_factory=dict)
    tasks: dict[int, list[int]] = field(default_factory=dict)
    judged: dict[int, dict[str, float]] = field(default_factory=dict)
    rescored: dict[int, float] = field(default_factory=dict)
    baselines: dict[int, tuple[Outcome, Cost]] = field(default_factory=dict)
    base_digests: dict[int, str | None] = field(default_factory=dict)
    rounds: dict[int, list[Body]] = field(default_factory=dict)
    cuts: dict[int, set[int]] = field(default_factory=dict)
    began: dict[int, Body] = field(default_factory=dict)
    ended: dict[int, Body] = field(default_factory=dict)
    rebuilt: list[Cost] = field(default_factory=list)
    selected: dict[int, list[int]] = field(default_factory=dict)
    selector: str | None = None
    failures: list[Body] = field(default_factory=list)
    done: bool = False

    @staticmethod
    def read(store: Store, task: int | None = None) -> Record:
        """The whole log, or what it says of one task."""
        record = Record()
        for event in store.events(task=task):
            try:
                record._take(event)
            except (KeyError, TypeError, AttributeError, ValueError, ConfigError) as error:
                raise DamagedError(f"Event {event.seq} of the run {store.folder} cannot be read ({error!r}).") from None
        return record

    def _take(self, event: Event) -> None:
        task, body = event.task, event.body
        for part in PARTS.get(event.kind, ()):
            if part not in body:
                raise KeyError(part)
        if event.kind == "outcome" and event.outcome is not None and task is not None:
            number = event.outcome
            self.outcomes[number], self.costs[number] = read_outcome(number, body)
            self.digests[number], self.order[number] = body["sha256"], body["n"]
            self.tasks.setdefault(task, []).append(number)
        elif event.kind == "baseline" and task is not None:
            self.baselines[task] = read_outcome(baseline_id(task), body)
            self.base_digests[task] = body["sha256"]
        elif event.kind == "judged":
            said = {name: number_in(v) for name, v in body["said"].items()}
            self.judged.setdefault(body["outcome"], {}).update({k: v for k, v in said.items() if v is not None})
        elif event.kind == "rescored":
            value = number_in(body["score"])
            self.rescored[body["outcome"]] = math.nan if value is None else value
        elif event.kind == "round" and task is not None:
            self.rounds.setdefault(task, []).append(body)
        elif event.kind == "cut" and task is not None:
            self.cuts.setdefault(task, set()).update(body["dropped"])
        elif event.kind == "began" and task is not None:
            self.began[task] = body
        elif event.kind == "ended" and task is not None:
            self.ended[task] = body
        else:
            self._take_of_run(event)

    def _take_of_run(self, event: Event) -> None:
        if event.kind == "rebuilt":
            self.rebuilt.append(Cost(**event.body["cost"]))
        elif event.kind == "selected":
            self.selector = event.body["selector"]
            self.selected = {int(k): list(v) for k, v in event.body["chosen"].items()}
        elif event.kind == "failure":
            self.failures.append(event.body)
        elif event.kind == "done":
            self.done = True

    def of(self, task: int) -> list[Outcome]:
        """A task's outcomes in the order its plan proposed them."""
        return [self.outcomes[i] for i in sorted(self.tasks.get(task, []))]

    def latest(self, outcome: Outcome) -> Outcome:
        """The outcome with the score that it was given last."""
        return replace(outcome, score=self.rescored[outcome.id]) if outcome.id in self.rescored else outcome

    def winner(self, task: int, nfe: int | None = None) -> Outcome | None:
        """The picture that the run hands over: what its selector chose, or its plan named, or the best finished outcome; with
        ``nfe`` the best among those paid for within it. None where there is none."""
        spent, done = 0, []
        for outcome in self.of(task):
            spent += self.costs[outcome.id].nfe
            if nfe is not None and spent > nfe:
                break
            if outcome.finished and self.digests[outcome.id] is not None:
                done.append(self.latest(outcome))
        named = self.chosen(task)
        if nfe is None and named:
            return self.latest(self.outcomes[named[0]])
        return best(done) if done else None

    def chosen(self, task: int) -> list[int]:
        """The outcomes that the run's selector chose or its plan named, best first; empty where neither did."""
        if task in self.selected:
            return self.selected[task]
        named = self.ended.get(task, {}).get("named")
        return [] if named is None else [named]

    def baseline(self, task: int) -> tuple[Outcome, str | int] | None:
        """The unsearched picture: the task's first noise, plainly run. With the name of its picture file."""
        if task in self.baselines:
            return self.latest(self.baselines[task][0]), baseline_file(task)
        plain = self.ended.get(task, {}).get("plain")
        if plain is not None:
            return self.latest(self.outcomes[plain]), plain
        first = [o for o in self.of(task) if o.finished and isinstance(o.proposal.move, Fresh)]
        return (self.latest(first[0]), first[0].id) if first else None

    def plain_digest(self, task: int) -> str | None:
        """Of the unsearched picture's pixels; None where there is no such picture, as where its row overflowed."""
        found = self.baseline(task)
        if found is None:
            return None
        return self.base_digests[task] if isinstance(found[1], str) else self.digests[found[1]]

    def said(self, number: int) -> dict[str, float]:
        """What held-out judges and the checker said of an outcome (or baseline_id of a task)."""
        return self.judged.get(number, {})

    def spent(self, task: int) -> Cost:
        total = Cost()
        for number in sorted(self.tasks.get(task, [])):
            total = total + self.costs[number]
        return total


def baseline_file(task: int) -> str:
    return f"baseline-{task:04d}"


def outcome_body(outcome: Outcome, n: int, cost: Cost, digest: str | None) -> Body:
    """An outcome as the log keeps it, in JSON that any reader can read."""
    return {
        "n": n,
        **proposal_out(outcome.proposal),
        "score": number_out(outcome.score),
        "components": {k: number_out(v) for k, v in outcome.components.items()},
        "remark": None if outcome.remark is None else _remark_out(outcome.remark),
        "preference": number_out(outcome.preference),
        "cost": cost.as_dict(),
        "sha256": digest,
    }


def read_outcome(number: int, body: Body) -> tuple[Outcome, Cost]:
    """What ``outcome_body`` wrote."""
    components = {k: v for k, said in body["components"].items() if (v := number_in(said)) is not None}
    remark = None if body["remark"] is None else _remark_in(body["remark"])
    outcome = Outcome(
        number, proposal_in(body), number_in(body["score"]), components, remark, number_in(body["preference"])
    )
    return outcome, Cost(**body["cost"])


def proposal_out(p: Proposal) -> Body:
    """A whole proposal in literals. What has its usual value is left out."""
    context = [{"outcome": c.outcome, **_remark_out(c.remark)} for c in p.condition.context]
    condition = {"prompt": p.condition.prompt, "label": p.condition.label, "context": context or None}
    extra = {"steps": p.steps, "look": None if p.look == "paid" else p.look, "against": p.against}
    return {
        "move": p.move.to_dict(),
        "stop": p.stop,
        "ask": p.ask,
        "condition": {k: v for k, v in condition.items() if v is not None},
        **{k: v for k, v in extra.items() if v is not None},
    }


def proposal_in(body: Mapping[str, Any]) -> Proposal:
    """What ``proposal_out`` wrote."""
    given = dict(body["condition"])
    context = tuple(Context(c["outcome"], _remark_in(c)) for c in given.pop("context", ()))
    extra = {k: body[k] for k in ("steps", "look", "against") if k in body}
    return Proposal(
        Move.from_dict(body["move"]), Condition(**given, context=context), body["stop"], body["ask"], **extra
    )


def _remark_out(remark: Remark) -> Body:
    return {"text": remark.text, "score": number_out(remark.score)}


def _remark_in(body: Body) -> Remark:
    value = number_in(body["score"])
    return Remark(body["text"], math.nan if value is None else value)


_ODD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def number_out(value: float | None) -> float | str | None:
    """A number for JSON, which has neither infinities nor NaN: those are words, and None is null."""
    if value is None or math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def number_in(value: float | str | None) -> float | None:
    """What ``number_out`` wrote; KeyError for another word."""
    return value if value is None else _ODD[value] if isinstance(value, str) else float(value)


def or_nan(value: float | None) -> float:
    """A number for arithmetic: NaN where nobody was asked."""
    return math.nan if value is None else value
