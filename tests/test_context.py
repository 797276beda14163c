"""Conditions that point to earlier tries: the encoder is handed their pictures and the remarks, and what it makes of them can be
drawn again from the log alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from examples.own_backend import Blobs, Tints, decode
from secondlook.engine.derive import Again
from secondlook.engine.derive import replay as redrawn
from secondlook.engine.driver import Driver
from secondlook.engine.record import Record
from secondlook.engine.rig import Rig
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import grid
from secondlook.flow.path import Linear
from secondlook.moves import Clone, Fresh
from secondlook.noise import Key
from secondlook.plans.moves import fresh
from secondlook.solvers.ode import Euler
from secondlook.types import Condition, Context, Plan, Proposal, Remark, Task
from tests.helpers import PROMPTS, STEPS, Brightness, drive, essence, spent


class Reading:
    """An encoder that mixes what it is shown of earlier tries into the colour it asks for, and notes what it was given."""

    reads_context = True

    def __init__(self) -> None:
        self.given: list[tuple[Condition, list[np.ndarray]]] = []
        self.made: list[weakref.ref[Tints]] = []

    def __call__(self, condition: Condition | None, pictures: Sequence[np.ndarray] = ()) -> Tints:
        if condition is not None and condition.context:
            self.given.append((condition, [p.copy() for p in pictures]))
        tint = torch.tensor([[0.1, 0.2, 0.0]])
        for picture, seen in zip(pictures, () if condition is None else condition.context, strict=True):
            tint = (
                tint - torch.from_numpy(picture.reshape(-1, 3).mean(0)).float()[None] / 500 * len(seen.remark.text) / 8
            )
        found = Tints(tint)
        self.made.append(weakref.ref(found))
        return found


class Blind(Reading):
    """One that is handed pictures and does not look."""

    def __call__(self, condition: Condition | None, pictures: Sequence[np.ndarray] = ()) -> Tints:
        return super().__call__(None)


class Critic:
    name = "dull"

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> list[Remark | None]:
        return [Remark("darker" if s.float().mean() > 127 else "lighter") for s in samples]


class Even:
    name = "even"

    def __call__(self, first: Tensor, second: Tensor, conditions: Sequence[Condition]) -> Tensor:
        return torch.full((len(first),), 0.5)


def reflecting(task: Task) -> Plan:
    """Three tries; each is told of the (at most two) before it."""
    seen: list[Context] = []
    for _ in range(3):
        told = Condition(task.condition.prompt, context=tuple(seen[-2:]))
        [first, _] = yield fresh(task, 2, condition=told, ask="score+remark")
        seen.append(Context(first.id, first.remark))
    return first


def rig(rows: int = 4) -> Rig:
    made = Rig(
        Flow(Blobs(), Linear()), Euler(), grid(STEPS), Reading(), decode, Brightness(), rows=rows,
        pixels=lambda x: (x.clamp(-1, 1) + 1).permute(0, 2, 3, 1) / 2,
    )  # fmt: skip
    made.critic = Critic()
    return made


def test_the_encoder_is_handed_the_pictures_and_remarks_that_a_condition_points_to(tmp_path: Path) -> None:
    r = rig()
    record = drive(tmp_path / "run", r, reflecting)
    store = Store.open(tmp_path / "run")
    assert isinstance(r.encode, Reading)
    assert [len(c.context) for c, _ in r.encode.given] == [1, 2]
    for condition, pictures in r.encode.given:
        for seen, picture in zip(condition.context, pictures, strict=True):
            assert seen.remark == record.outcomes[seen.outcome].remark
            assert np.array_equal(picture, store.picture(seen.outcome))
    assert spent(record)[0].remarks == 6


def test_what_was_shown_changes_the_picture(tmp_path: Path) -> None:
    with_context = drive(tmp_path / "one", rig(), reflecting)
    blind = rig()
    blind.encode = Blind()
    without = drive(tmp_path / "two", blind, reflecting)
    assert [with_context.digests[i] == without.digests[i] for i in range(6)] == [True] * 2 + [False] * 4


def rewriting(task: Task) -> Plan:
    for i in range(3):
        yield fresh(task, 1, condition=Condition(f"{task.condition.prompt}, {i}"))


@pytest.mark.parametrize("plan", [reflecting, rewriting])
def test_encodings_of_prompts_that_are_done_are_let_go(plan: Callable[[Task], Plan], tmp_path: Path) -> None:
    """Of the prompts themselves, of what points to earlier tries, and of prompts that a plan wrote."""
    r = rig()
    drive(tmp_path / "run", r, plan, prompts=PROMPTS[:3])
    assert isinstance(r.encode, Reading)
    assert len(r.encode.made) >= 9
    gc.collect()
    assert [made for made in r.encode.made if made() is not None] == []


def test_a_prompt_that_several_tasks_have_is_encoded_once_while_one_of_them_runs(tmp_path: Path) -> None:
    def more_and_more(task: Task) -> Plan:
        for _ in range(1 + 2 * task.index):
            yield fresh(task, 1)

    r = rig()
    record = drive(tmp_path / "run", r, more_and_more, prompts=PROMPTS[:1] * 4)
    assert len(record.outcomes) == 16
    assert isinstance(r.encode, Reading)
    assert len(r.encode.made) == 1


@pytest.mark.parametrize("how", ["context", "against"])
def test_what_has_no_picture_can_be_shown_to_nobody(tmp_path: Path, how: str) -> None:
    def plan(task: Task) -> Plan:
        [half] = yield fresh(task, 1, stop=0.5, ask="nothing")
        [one] = fresh(task, 1)
        told = replace(task.condition, context=(Context(half.id, Remark("darker")),))
        yield [replace(one, condition=told) if how == "context" else replace(one, ask="compare", against=half.id)]

    r = rig()
    r.comparer = Even()
    with pytest.raises(ConfigError, match="Outcome 0 has no picture to show: nothing was asked of it on its way"):
        drive(tmp_path / "run", r, plan)
    assert list(Record.read(Store.open(tmp_path / "run")).outcomes) == [0]


@pytest.mark.parametrize("rows", [1, 4])
def test_each_outcome_with_context_is_drawn_again_from_the_log_alone(tmp_path: Path, rows: int) -> None:
    record = drive(tmp_path / "run", rig(rows), reflecting, prompts=PROMPTS[:2])
    store = Store.open(tmp_path / "run")
    for n in record.outcomes:
        assert np.array_equal(redrawn(rig(rows), n, lambda i: record.outcomes[i].proposal), store.picture(n))


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_a_run_with_context_goes_on_to_the_same_end(tmp_path: Path, after: int) -> None:
    whole = drive(tmp_path / "whole", rig(), reflecting)

    def stop(driver: Driver) -> None:
        if driver.drawn >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path / "cut", rig(), reflecting, progress=stop)
    assert essence(drive(tmp_path / "cut", rig(), reflecting)) == essence(whole)
    assert Record.read(Store.open(tmp_path / "cut")).ended == whole.ended


def test_pictures_that_are_no_longer_at_hand_are_read_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = drive(tmp_path / "whole", rig(), reflecting)
    monkeypatch.setattr("secondlook.engine.driver.RECENT", 0)
    reads: list[Any] = []
    picture = Store.picture
    monkeypatch.setattr(Store, "picture", lambda self, n: (reads.append(n), picture(self, n))[1])
    assert essence(drive(tmp_path / "again", rig(), reflecting)) == essence(whole)
    assert reads


@pytest.mark.parametrize("long", [40, 2000])
def test_a_long_chain_is_drawn_again_with_each_ancestor_made_once(long: int) -> None:
    """By context, each try shown the three before it; or by moves, each going on from the one before."""
    asked = Condition("x")
    by_context = long < 100

    def proposal_of(i: int) -> Proposal:
        if by_context:
            seen = tuple(Context(j, Remark("more")) for j in range(max(0, i - 3), i))
            return Proposal(Fresh(Key.root(i)), replace(asked, context=seen))
        return (
            Proposal(Fresh(Key.root(0)), asked, stop=0.5)
            if i == 0
            else Proposal(Clone(i - 1, Key.root(i)), asked, stop=0.5)
        )

    steps: list[Any] = []
    Again(rig(), proposal_of, spent=steps.append).picture(long)
    assert len(steps) == (STEPS * (long + 1) if by_context else len([t for t in rig().times if 0 < t <= 0.5]))
