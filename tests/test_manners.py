"""Plans, judges and logs that do what they should not: what is judged, kept and drawn again stays right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import secondlook
from examples.own_backend import OwnBackend
from secondlook.adapters.weights import digest_of
from secondlook.engine.derive import Again
from secondlook.engine.desk import judged
from secondlook.engine.record import Record
from secondlook.engine.states import States
from secondlook.engine.store import Store
from secondlook.errors import ConfigError, DamagedError, SecondlookError
from secondlook.flow.grid import grid
from secondlook.models.text import TextSiT
from secondlook.moves import Clone, Fresh, Near, Resume, Rewind
from secondlook.noise import Key
from secondlook.plans.moves import fresh
from secondlook.types import Condition, Context, Plan, Proposal, Remark, State, Task
from secondlook.verify import answers
from tests.helpers import PROMPTS, STEPS, Brightness, drive, tasks, tiny_rig


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


@pytest.mark.parametrize(
    "how", [{"condition": Condition(PROMPTS[1])}, {"steps": 2}, {"stop": 0.5}], ids=lambda how: next(iter(how))
)
def test_the_first_noise_drawn_otherwise_is_not_the_unsearched_picture(
    network: TextSiT, tmp_path: Path, how: dict[str, Any]
) -> None:
    def drawn(task: Task) -> Plan:
        yield fresh(task, 1, **how)

    rig = tiny_rig(network)
    rig.grids = lambda steps: grid(steps, 3.0)
    record = drive(tmp_path / "run", rig, drawn)
    honest = drive(tmp_path / "honest", tiny_rig(network), "random(n=1)")
    assert record.base_digests == {0: honest.digests[0]}


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


@pytest.mark.parametrize("make", [
    lambda key: Fresh(7),
    lambda key: Clone(0, "key"),
    lambda key: Near(0, key, "wide"),
    lambda key: Near(0, key, True),
    lambda key: Rewind(0.5, 0.5, key),
    lambda key: Resume(True),
    lambda key: Condition(7),
    lambda key: Condition("x", label="7"),
    lambda key: Condition("x", context=[7]),
    lambda key: Context("0", Remark("x")),
    lambda key: Context(0, "more red"),
    lambda key: Proposal(Fresh(key), Condition("x"), steps=True),
])  # fmt: skip
def test_parts_of_another_kind_are_refused_where_they_are_made(make: Callable[[Key], object]) -> None:
    with pytest.raises(ConfigError, match="got"):
        make(Key.root(0))


def test_numpy_s_numbers_and_lists_are_taken_as_the_log_keeps_them(network: TextSiT, tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        [first] = yield [Proposal(Fresh(task.next_key()), task.condition, stop=np.float32(0.5))]
        key = task.next_key()
        yield [
            Proposal(Near(np.int64(first.id), key, np.float32(0.25)), task.condition),
            Proposal(Rewind(first.id, np.float32(0.25), key), Condition(task.condition.prompt, context=[])),
        ]

    once = drive(tmp_path / "run", tiny_rig(network), plan)
    again = Record.read(Store.open(tmp_path / "run"))
    assert {n: o.proposal for n, o in again.outcomes.items()} == {n: o.proposal for n, o in once.outcomes.items()}
    assert again.outcomes[1].proposal.move == Near(0, tasks()[0].key.child("draw", 1), 0.25)
    assert again.outcomes[2].proposal.condition.context == ()


def test_a_prompt_rewritten_with_words_that_the_model_has_not_learnt_is_a_sentence(
    network: TextSiT, tmp_path: Path
) -> None:
    def plan(words: str) -> Callable[[Task], Plan]:
        def rewritten(task: Task) -> Plan:
            yield [Proposal(Fresh(task.next_key()), Condition(words))]

        return rewritten

    with pytest.raises(ConfigError, match='not learnt the word "crimson"'):
        drive(tmp_path / "one", tiny_rig(network), plan("a crimson circle"))
    with pytest.raises(ConfigError, match="reads 16 words"):
        drive(tmp_path / "two", tiny_rig(network), plan(" ".join(["circle"] * 17)))


def test_a_plan_that_fails_while_it_is_closed_is_a_sentence(network: TextSiT, tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        try:
            while True:
                yield fresh(task, 1)
        finally:
            raise OSError("its own file is gone")

    with pytest.raises(SecondlookError, match=r"The plan failed \(OSError: its own file is gone\)"):
        drive(tmp_path / "run", tiny_rig(network), plan, nfe=2 * STEPS)
    assert "its own file" in Record.read(Store.open(tmp_path / "run")).failures[-1]["plan"]


def test_rounds_that_cost_nothing_come_to_an_end(network: TextSiT, tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        [half] = yield fresh(task, 1, stop=0.5, ask="nothing")
        while True:
            [half] = yield [Proposal(Resume(half.id), task.condition, stop=0.5, ask="nothing")]

    with pytest.raises(ConfigError, match="rounds in a row that cost nothing"):
        drive(tmp_path / "run", tiny_rig(network), plan, nfe=2 * STEPS)


def test_what_a_plan_does_to_its_outcomes_decides_nothing(network: TextSiT, tmp_path: Path) -> None:
    def plan(task: Task) -> Plan:
        for _ in range(2):
            for outcome in (yield fresh(task, 2)):
                object.__setattr__(outcome, "score", -outcome.score)

    record = drive(tmp_path / "run", tiny_rig(network), plan)
    best = max(record.of(0), key=lambda o: o.score)
    assert record.ended[0]["winner"] == best.id


def test_a_judge_that_changes_its_pictures_is_asked_again_of_the_pictures_as_they_were() -> None:
    class Judge:
        name = "careless"

        def __call__(self, samples: torch.Tensor, conditions: Sequence[Condition]) -> torch.Tensor:
            found = samples.double().flatten(1).mean(1)
            samples.zero_()
            if len(samples) > 1:
                raise RuntimeError("one at a time")
            return found

    pictures = torch.full((2, 4, 4, 3), 9, dtype=torch.uint8)
    assert judged(Judge(), pictures, [Condition("x")] * 2, [1.0] * 2) == [9.0, 9.0]


def test_what_was_paid_for_a_look_holds_where_the_half_made_state_was_lost(
    network: TextSiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made again, it has what the look learnt, so that the row that goes on costs what the plan was told."""
    monkeypatch.setattr(States, "find", lambda self, number: None)
    told = []

    def plan(task: Task) -> Plan:
        [half] = yield fresh(task, 1, stop=0.5)
        on = Proposal(Resume(half.id), task.condition)
        told.append(task.price(on))
        yield [on]

    record = drive(tmp_path / "run", tiny_rig(network), plan)
    assert record.costs[1].with_seconds(0) == told[0]
    assert record.rebuilt[0].nfe == record.costs[0].nfe


@pytest.mark.parametrize("kind", ["round", "ended"])
def test_a_log_that_lacks_what_a_run_goes_on_from_is_damaged(kind: str, network: TextSiT, tmp_path: Path) -> None:
    drive(tmp_path / "run", tiny_rig(network), "random(n=2)")
    store = Store.open(tmp_path / "run")
    store.append([(kind, 0, None, {"count": 1})])
    with pytest.raises(DamagedError, match="cannot be read"):
        Record.read(store)


def test_one_or_more_of_a_set_are_no_scores() -> None:
    with pytest.raises(answers.BadAnswer, match="got a set"):
        answers.numbers({1.0, 2.0}, 2)


def test_weights_written_past_their_version_are_noticed() -> None:
    layer = torch.nn.Linear(300, 10)
    before = digest_of("x", {"layer": layer})
    assert digest_of("x", {"layer": layer}) == before
    layer.weight.data.mul_(1.01)
    assert digest_of("x", {"layer": layer}) != before
