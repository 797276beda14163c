"""Plans, judges and logs that do what they should not: what is judged, kept and drawn again stays right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import secondlook
from examples.own_backend import OwnBackend
from secondlook.engine.derive import Again
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.errors import ConfigError, DamagedError, SecondlookError
from secondlook.models.text import TextSiT
from secondlook.moves import Resume
from secondlook.noise import Key
from secondlook.plans.moves import fresh
from secondlook.types import Condition, Plan, Proposal, Remark, State, Task
from tests.helpers import PROMPTS, Brightness, drive, tasks, tiny_rig


class Asked(Brightness):
    """Brightness that remembers what it was asked."""

    def __init__(self) -> None:
        self.prompts: set[str | None] = set()

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        self.prompts |= {c.prompt for c in conditions}
        return super().__call__(samples, conditions)


def test_a_plan_that_changes_its_task_changes_nothing_but_its_own_copy(network: TextSiT, tmp_path: Path) -> None:
    def cheating(task: Task) -> Plan:
        task.condition, task.key, task.index = Condition("two circles"), Key.root(77), 5
        yield fresh(task, 3)

    guide, judge = Asked(), Asked()
    rig = tiny_rig(network, verifier=guide)
    rig.judges = {"held": judge}
    given = tasks()
    record = drive(tmp_path / "run", rig, cheating, given=given)
    assert guide.prompts == judge.prompts == {PROMPTS[0]}
    assert (given[0].condition.prompt, given[0].index, given[0].draws) == (PROMPTS[0], 0, 0)
    honest = drive(tmp_path / "honest", tiny_rig(network), "random(n=1)")
    assert record.base_digests[0] == honest.digests[0]  # the unsearched picture is still that of the task's own key


def test_what_a_task_holds_is_no_method_of_the_engine(network: TextSiT, tmp_path: Path) -> None:
    def looking(task: Task) -> Plan:
        assert task.means is not None
        assert not hasattr(task.means.remaining, "__self__")
        assert not hasattr(task.means.price, "__self__")
        yield fresh(task, 1)

    drive(tmp_path / "run", tiny_rig(network), looking)


def test_the_unsearched_picture_is_that_of_the_first_key_in_whatever_order_it_was_drawn(
    network: TextSiT, tmp_path: Path
) -> None:
    def backwards(task: Task) -> Plan:
        pool = fresh(task, 4)
        yield pool[2:]
        yield pool[:2]

    record = drive(tmp_path / "run", tiny_rig(network), backwards)
    plain = record.baseline(0)
    assert plain is not None
    assert plain[0].id == 2
    assert not record.baselines


class Named:
    name = "checker"

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        return torch.ones(len(samples), dtype=torch.float64)


def test_no_verifier_from_elsewhere_goes_by_a_built_in_judges_name(tmp_path: Path) -> None:
    secondlook.draw("a red circle", "random(n=1)", tmp_path / "run", model=OwnBackend())
    for name in ("checker", "judge", "oracle"):
        verifier = Named()
        verifier.name = name
        with pytest.raises(ConfigError, match="belongs to the built-in judges"):
            secondlook.rescore(tmp_path / "run", verifier=verifier, model=OwnBackend())
        with pytest.raises(ConfigError, match="belongs to the built-in judges"):
            secondlook.draw("a red circle", "random(n=1)", tmp_path / name, model=OwnBackend(), verifier=verifier)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("score", "kept"), [(np.float32(0.5), 0.5), (torch.tensor(0.25), 0.25), (1, 1.0), ("high", None)]
)
def test_a_remarks_score_is_a_float_or_that_answer_fails_alone(
    network: TextSiT, tmp_path: Path, score: object, kept: float | None
) -> None:
    class Critic:
        name = "odd"

        def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> list[Remark]:
            return [Remark("x", score)]  # type: ignore[arg-type]

    def plan(task: Task) -> Plan:
        for _ in range(2):
            yield fresh(task, 1, ask="score+remark")

    rig = tiny_rig(network)
    rig.critic = Critic()
    record = drive(tmp_path / "run", rig, plan)
    assert record.done
    found = [o.remark for o in record.of(0)]
    assert found == ([None] * 2 if kept is None else [Remark("x", kept)] * 2)
    assert len(record.failures) == (2 if kept is None else 0)


def test_a_run_whose_first_rows_all_overflowed_goes_on_behind_them(network: TextSiT, tmp_path: Path) -> None:
    """The first four of twelve are lost; the rest are drawn once the run is resumed."""
    rig = tiny_rig(network)
    start, bad = rig.start, [tasks()[0].key.child("draw", i) for i in range(4)]

    def begun(key: Key) -> State:
        state = start(key)
        return replace(state, x=state.x * float("nan")) if key in bad else state

    rig.start = begun  # type: ignore[method-assign]

    def plan(task: Task) -> Plan:
        for _ in range(3):
            yield fresh(task, 4)

    with pytest.raises(SecondlookError, match=r"overflowed \(4 of 4\)"):
        drive(tmp_path / "run", rig, plan)
    assert len(Record.read(Store.open(tmp_path / "run")).outcomes) == 4
    record = drive(tmp_path / "run", rig, plan)
    assert record.done
    assert [d is None for _, d in sorted(record.digests.items())] == [True] * 4 + [False] * 8


def test_a_winner_that_has_no_picture_is_refused(network: TextSiT, tmp_path: Path) -> None:
    """Its row overflowed. When the run is resumed the plan names it again, and is refused again."""
    rig = tiny_rig(network)
    start, bad = rig.start, tasks()[0].key.child("draw", 1)
    rig.start = lambda key: replace(s := start(key), x=s.x * (float("nan") if key == bad else 1))  # type: ignore[method-assign]

    def plan(task: Task) -> Plan:
        [_, lost, _] = yield fresh(task, 3)
        return lost

    for _ in range(2):
        with pytest.raises(ConfigError, match="returned 1 as the winner, which is not the number of a finished"):
            drive(tmp_path / "run", rig, plan)
        record = Record.read(Store.open(tmp_path / "run"))
        assert [d is None for _, d in sorted(record.digests.items())] == [False, True, False]
        assert not record.done


def test_a_log_whose_parents_go_round_is_refused(network: TextSiT) -> None:
    loop = {0: Proposal(Resume(1), Condition("x")), 1: Proposal(Resume(0), Condition("x"))}
    with pytest.raises(DamagedError, match="its own ancestor"):
        Again(tiny_rig(network), loop.__getitem__).picture(0)


@pytest.mark.parametrize("split", ["even", "pool"])
def test_a_total_that_buys_less_than_a_picture_each_is_refused(tmp_path: Path, split: str) -> None:
    words = {"model": OwnBackend(), "steps": 4, "split": split}
    with pytest.raises(
        ConfigError, match="One sample for each of 2 prompts costs 8 nfe here; the budget of 7 nfe buys none"
    ):
        secondlook.draw(["r", "g"], "random(n=9)", tmp_path / "run", total_nfe=7, **words)
    assert not (tmp_path / "run").exists()
    found = secondlook.draw(["r", "g"], "random(n=9)", tmp_path / "run", total_nfe=8, **words)
    assert [r.spent.nfe for r in found] == [4, 4]


def test_a_draw_does_not_ask_again_of_what_its_verifier_failed_with_and_a_resume_does(tmp_path: Path) -> None:
    class Stumbling(Brightness):
        """Fails with every second picture that it has not seen, and whenever it sees that one again."""

        def __init__(self) -> None:
            self.seen: list[bytes] = []
            self.failed = 0

        def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
            [picture] = samples
            name = picture.numpy().tobytes()
            self.seen += [] if name in self.seen else [name]
            if self.seen.index(name) % 2:
                self.failed += 1
                raise RuntimeError("not this one")
            return super().__call__(samples, conditions)

    words = {"model": OwnBackend(), "steps": 4, "rows": 1}
    verifier = Stumbling()
    secondlook.draw("r", "random(n=6)", tmp_path / "run", verifier=verifier, nfe=24, **words)
    lost = len(Record.read(Store.open(tmp_path / "run")).failures)
    assert lost == verifier.failed == 3
    secondlook.resume(tmp_path / "run", model=OwnBackend(), verifier=verifier)
    assert verifier.failed == 6
