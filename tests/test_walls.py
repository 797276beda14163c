"""What a plan may not see, may not ask for, and may not get for nothing."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from secondlook.engine.pricing import first_picture
from secondlook.engine.record import Record
from secondlook.engine.rig import Rig
from secondlook.engine.store import LOG, Store
from secondlook.errors import ConfigError, SecondlookError
from secondlook.flow.grid import grid
from secondlook.models.text import TextSiT
from secondlook.moves import Near, Resume
from secondlook.noise import Key
from secondlook.plans.moves import best, clone, fresh, near, resume, rewind
from secondlook.types import Condition, Context, Cost, Outcome, Plan, Proposal, Remark, Task
from tests.helpers import PROMPTS, STEPS, Brightness, drive, essence, tasks, tiny_rig

# ---- what held-out judges say ----------------------------------------------------------------------------------------

SECRET = 0.123456789


class Secretive:
    """A held-out judge whose number cannot be mistaken for another."""

    name = "secretive"

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        return torch.full((len(samples),), SECRET, dtype=torch.float64)


def reachable(thing: Any, depth: int = 7, seen: set[int] | None = None) -> Iterator[Any]:
    """Everything that can be reached from ``thing`` by public attributes, items and calls without arguments."""
    seen = set() if seen is None else seen
    if depth == 0 or id(thing) in seen:
        return
    seen.add(id(thing))
    yield thing
    if isinstance(thing, (str, bytes, int, float, Key, torch.Tensor, type)):
        return
    parts: list[Any] = []
    if isinstance(thing, dict):
        parts += [*thing.keys(), *thing.values()]
    elif isinstance(thing, (list, tuple, set, frozenset)):
        parts += list(thing)
    for name in dir(thing):
        if not name.startswith("_"):
            try:
                parts.append(getattr(thing, name))
            except (AttributeError, ConfigError, TypeError, ValueError):
                continue
    for part in parts:
        yield from reachable(part, depth - 1, seen)


def test_a_plan_that_peeks_finds_nothing_of_what_held_out_judges_said(network: TextSiT, tmp_path: Path) -> None:
    found: list[Any] = []

    def peek(task: Task) -> Plan:
        for _ in range(3):
            outcomes = yield fresh(task, 2)
            found.extend(v for v in reachable([task, outcomes, task.remaining()]) if v == SECRET or v == "secretive")
            assert not hasattr(outcomes[0], "parts")

    for _ in range(2):  # and again when the run is resumed
        rig = tiny_rig(network)
        rig.judges["secretive"] = Secretive()
        record = drive(tmp_path / "run", rig, peek)
        assert record.said(0) == {"redness": record.said(0)["redness"], "secretive": SECRET}
        with sqlite3.connect(tmp_path / "run" / LOG) as db:
            db.executescript("DROP TRIGGER IF EXISTS hold_events; DELETE FROM events WHERE kind IN ('done', 'ended');")
    assert found == []


def test_a_resumed_run_holds_nothing_of_what_held_out_judges_said(network: TextSiT, tmp_path: Path) -> None:
    from tests.test_engine import stop_after

    folder, held = tmp_path / "run", []
    stop_after(folder, network, "random(n=9)", 2)
    assert Record.read(Store.open(folder)).judged
    drive(folder, tiny_rig(network), "random(n=9)", progress=lambda d: held.extend(r.record for r in d.runs.values()))
    assert held[0].outcomes
    assert not any(record.judged for record in held)


# ---- proposals that cannot be carried out ----------------------------------------------------------------------------

HERE = Condition(PROMPTS[0])


def after_half(make: Callable[[Task, Outcome], Proposal]) -> Callable[[Task], Plan]:
    def plan(task: Task) -> Plan:
        [half] = yield fresh(task, 1, stop=0.5)
        yield [make(task, half)]

    return plan


MALFORMED: dict[str, tuple[Callable[[Task, Outcome], Any], str]] = {
    "stop beyond data": (lambda t, h: resume(t, h, stop=1.5), "stop must be a time above 0 and at most 1; got 1.5"),
    "stop at noise": (lambda t, h: resume(t, h, stop=0), "stop must be a time above 0"),
    "stop that is not a number": (lambda t, h: resume(t, h, stop=math.nan), "stop must be a time above 0"),
    "misspelt ask": (lambda t, h: resume(t, h, ask="scores"), "asks for .* got 'scores'"),
    "a move that is a dictionary": (lambda t, h: Proposal({"name": "resmue"}, HERE), "move must be a secondlook.moves.Move"),  # type: ignore[arg-type]
    "an unknown parent": (lambda t, h: Proposal(Resume(77), HERE), "There is no outcome 77 of this prompt yet"),
    "itself as a parent": (lambda t, h: Proposal(Resume(1), HERE), "There is no outcome 1 of this prompt yet"),
    "a rewind into the future": (lambda t, h: rewind(t, h, 1, 0.9, stop=1.0)[0], r"goes back in time: outcome 0 stopped at 0\.5"),
    "a row that goes back without a rewind": (lambda t, h: resume(t, h, stop=0.25), r"begins at time 0\.5 and would stop before it"),
    "near a row that did not begin from noise": (lambda t, h: Proposal(Near(0, Key(3), 2.0), HERE), "radius is the sine"),
    "no such grid": (lambda t, h: resume(t, h, steps=0), "steps must be a whole number from 1"),
    "another grid than the generator has": (lambda t, h: resume(t, h, steps=7), "has one grid only"),
    "no such look": (lambda t, h: resume(t, h, look="cheap"), 'look must be "paid" or "free"'),
    "a free look without a step": (lambda t, h: resume(t, h, stop=0.5, look="free"), "takes no step"),
    "a remark without a critic": (lambda t, h: resume(t, h, ask="remark"), "has no critic"),
    "a comparison without another": (lambda t, h: resume(t, h, ask="compare"), "must name the outcome to compare with"),
    "context that has no picture": (
        lambda t, h: resume(t, h, condition=replace(HERE, context=(Context(5, Remark("")),))), "There is no outcome 5"),
    "context that the model cannot read": (
        lambda t, h: resume(t, h, condition=replace(HERE, context=(Context(0, Remark("")),))), "does not read earlier tries"),
    "no list": (lambda t, h: 3, "must yield lists of proposals"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_proposal_is_a_sentence_and_the_run_is_kept(network: TextSiT, tmp_path: Path, case: str) -> None:
    make, words = MALFORMED[case]
    bare = replace(
        tiny_rig(network), grids=None, critic=None, encode=lambda c: network.encode([None if c is None else c.prompt])
    )
    with pytest.raises(SecondlookError, match=words):
        drive(tmp_path / "run", bare, after_half(make))
    record = Record.read(Store.open(tmp_path / "run"))
    assert list(record.outcomes) == [0]
    assert not record.done


def test_an_outcome_of_another_prompt_is_not_a_parent(network: TextSiT, tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        [first] = yield fresh(task, 1)
        yield near(task, replace(first, id=1 - first.id), 1, 0.3)

    with pytest.raises(ConfigError, match=r"There is no outcome [01] of this prompt"):
        drive(tmp_path / "run", tiny_rig(network, rows=1), plan, prompts=PROMPTS[:2])


# ---- nothing is drawn off the books ----------------------------------------------------------------------------------


class Counted:
    """A network that counts the rows it is asked about."""

    def __init__(self, inner: Any):
        self.inner, self.rows = inner, 0
        self.predicts, self.shape = inner.predicts, inner.shape

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.rows += len(x)
        found: Tensor = self.inner(x, t, cond)
        return found


def counted(rig: Rig) -> tuple[Rig, Counted]:
    network = Counted(rig.flow.network)
    return replace(rig, flow=replace(rig.flow, network=network), grids=lambda steps: grid(steps, 3.0)), network


def charged(record: Record) -> Cost:
    """All that a run's log says was spent, the unsearched pictures and repairs too."""
    spent = [*record.costs.values(), *(cost for _, cost in record.baselines.values()), *record.rebuilt]
    return sum(spent, Cost()).with_seconds(0.0)


def wild(choices: Sequence[tuple[int, int, float, int]]) -> Callable[[Task], Plan]:
    """A plan that goes on from anything in any way: a move, a parent, a time and a look for each of ``choices``."""

    def plan(task: Task) -> Plan:
        known: list[Outcome] = list((yield fresh(task, 2)))
        for kind, which, time, how in choices:
            parent = known[which % len(known)]
            ask, look = ("nothing", "score")[how % 2], ("paid", "free")[how // 2 % 2]
            steps = (None, 2, 7)[how // 4 % 3]
            begun = parent.proposal.stop
            stop = min(1.0, begun + 0.3) if kind in (1, 3) else 1.0
            free = look if stop > begun else "paid"
            if kind == 0:
                some = fresh(task, 1, stop=time, ask=ask, steps=steps, look=look)
            elif kind == 1:
                some = [resume(task, parent, stop=stop, ask=ask, steps=steps, look=free)]
            elif kind == 2:
                to = min(time, begun)
                some = rewind(task, parent, 1, to, stop=min(1.0, to + 0.4), ask=ask, steps=steps)
            else:
                some = clone(task, parent, 1, stop=stop, ask=ask, steps=steps, look=free)
            known += yield some

    return plan


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.sampled_from((0.1, 0.35, 0.8, 1.0)), st.integers(0, 11)), max_size=8),
    st.sampled_from(("euler", "heun", "sde")), st.sampled_from((1.0, 2.5)),
)  # fmt: skip
def test_what_the_network_does_is_what_the_ledgers_say(
    network: TextSiT, tmp_path_factory: pytest.TempPathFactory, choices: list[tuple[int, int, float, int]], solver: str, guidance: float
) -> None:  # fmt: skip
    """Whatever a plan goes on from, finished pictures too: every row the network sees is charged to somebody."""
    rig, counter = counted(tiny_rig(network, rows=1, solver=solver, guidance=guidance))
    record = drive(tmp_path_factory.mktemp("run") / "run", rig, wild(choices))
    assert charged(record).evals == counter.rows
    assert charged(record).nfe == counter.rows / (1 if guidance == 1.0 else 2)
    assert record.rebuilt == []
    for number, outcome in record.outcomes.items():
        assert record.costs[number].nfe >= 0, outcome


def test_looking_at_a_finished_picture_again_costs_the_look_and_no_drawing(network: TextSiT, tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        [done] = yield fresh(task, 1)
        yield [resume(task, done)]
        yield rewind(task, done, 1, 0.5, stop=1.0)

    rig, counter = counted(tiny_rig(network, rows=1))
    record = drive(tmp_path / "run", rig, plan)
    assert record.costs[1].with_seconds(0) == Cost(verdicts=1, decodes=1)
    assert record.digests[1] == record.digests[0]
    assert charged(record).evals == counter.rows


# ---- a plan is tried on its real task --------------------------------------------------------------------------------


def test_a_plan_that_reads_its_prompt_can_start(network: TextSiT, tmp_path: Path) -> None:
    def reader(task: Task) -> Plan:
        assert task.condition.prompt is not None
        yield fresh(task, len(task.condition.prompt.split()))

    rig, [task] = tiny_rig(network), tasks(["a red circle"])
    assert first_picture(reader, task, rig).nfe == STEPS
    assert task.draws == 0  # it was tried on a copy
    assert len(drive(tmp_path / "run", rig, reader).outcomes) == 3


def test_a_plan_that_fails_when_it_is_tried_is_a_sentence(network: TextSiT) -> None:
    def broken(task: Task) -> Plan:
        yield fresh(task, 1 // 0)

    with pytest.raises(ConfigError, match="failed on its first prompt, before anything was drawn \\(ZeroDivisionError"):
        first_picture(broken, tasks()[0], tiny_rig(network))


# ---- infinities, NaN, and not judged -----------------------------------------------------------------------------------


class Odd(Brightness):
    """Scores that are not ordinary numbers, by the picture's place in the run; stops the run at a call."""

    def __init__(self, values: Sequence[float], stop: int | None = None):
        self.values, self.stop, self.calls = values, stop, 0

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        self.calls += 1
        if self.stop is not None and self.calls > self.stop:
            raise KeyboardInterrupt
        shares = [int(s.double().mean() * 1e6) % len(self.values) for s in samples]
        return torch.tensor([self.values[i] for i in shares], dtype=torch.float64)


def test_what_decided_is_what_the_log_gives_back(network: TextSiT, tmp_path: Path) -> None:
    values = (math.inf, -math.inf, math.nan, 0.5, -1.0)
    plan = "zero_order(neighbours=3)"
    whole = drive(tmp_path / "whole", tiny_rig(network, verifier=Odd(values)), plan, nfe=120)
    seen = {str(o.score) for o in whole.outcomes.values()}
    assert {"inf", "-inf", "nan"} <= seen
    for stop in (1, 2, 4):
        folder = tmp_path / f"cut-{stop}"
        with pytest.raises(KeyboardInterrupt):
            drive(folder, tiny_rig(network, verifier=Odd(values, stop)), plan, nfe=120)
        again = drive(folder, tiny_rig(network, verifier=Odd(values)), plan, nfe=120)
        assert essence(again) == essence(whole)
        assert again.ended == whole.ended


def test_the_winner_in_the_log_is_the_winner_of_the_run(network: TextSiT, tmp_path: Path) -> None:
    record = drive(tmp_path / "run", tiny_rig(network, verifier=Odd((math.inf, 0.5, -math.inf))), "random(n=12)")
    winner = record.winner(0)
    assert winner is not None
    assert winner.score == math.inf
    assert record.ended[0]["winner"] == winner.id == best(record.of(0)).id


def test_every_line_of_the_log_is_json_that_any_reader_takes(network: TextSiT, tmp_path: Path) -> None:
    rig = tiny_rig(network, verifier=Odd((math.inf, math.nan, -math.inf)))
    rig.judges["odd"] = Odd((math.nan, math.inf))
    drive(tmp_path / "run", rig, "paths(n=2, width=2)", nfe=40, seconds=1e6)
    with sqlite3.connect(tmp_path / "run" / LOG) as db:
        for (body,) in db.execute("SELECT body FROM events"):
            json.loads(body, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))


def test_not_asked_is_not_the_same_as_could_not_judge(network: TextSiT, tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        yield [*fresh(task, 1), *fresh(task, 1, ask="nothing")]

    record = drive(tmp_path / "run", tiny_rig(network, verifier=Odd((math.nan,))), plan)
    asked, unasked = record.of(0)
    assert asked.score is not None
    assert math.isnan(asked.score)
    assert unasked.score is None


# ---- what a plan returns -----------------------------------------------------------------------------------------------


def test_a_plan_may_name_its_winner_and_say_more(network: TextSiT, tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        some = yield fresh(task, 4)
        worst = min(some, key=lambda o: o.score or 0.0)
        return {"winner": worst, "why": "the worst is the point"}

    record = drive(tmp_path / "run", tiny_rig(network), plan)
    scores = [o.score for o in record.of(0)]
    winner = record.winner(0)
    assert winner is not None
    assert winner.score == min(s for s in scores if s is not None)
    assert record.ended[0]["returned"] == {"why": "the worst is the point"}


@pytest.mark.parametrize("wrong", [99, -1])
def test_a_winner_that_is_not_a_picture_of_the_prompt_is_refused(network: TextSiT, tmp_path: Path, wrong: int) -> None:
    def plan(task: Task) -> Plan:
        yield fresh(task, 1)
        return wrong

    with pytest.raises(
        ConfigError, match=f"returned {wrong} as the winner, which is not the number of a finished picture"
    ):
        drive(tmp_path / "run", tiny_rig(network), plan)


def test_a_half_made_row_is_not_a_winner(network: TextSiT, tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        [half] = yield fresh(task, 1, stop=0.5)
        return half

    with pytest.raises(ConfigError, match="not the number of a finished picture"):
        drive(tmp_path / "run", tiny_rig(network), plan)
