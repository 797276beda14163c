"""Verifiers and judges that fail: what a run keeps, when it stops, and that it can go on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.errors import SecondlookError
from secondlook.models.text import TextSiT
from secondlook.plans.moves import best
from secondlook.types import Remark
from secondlook.verify import answers
from tests.helpers import Brightness, Failing, drive, essence, tiny_rig

# ---- verifiers that fail ---------------------------------------------------------------------------------------------


def test_a_verifier_that_fails_on_a_batch_is_asked_of_each_picture_alone(network: TextSiT, tmp_path: Path) -> None:
    once = drive(tmp_path / "once", tiny_rig(network, verifier=Failing(lambda n: n == 1), rows=2), "random(n=4)")
    well = drive(tmp_path / "well", tiny_rig(network, rows=2), "random(n=4)")
    assert essence(once) == essence(well)
    assert once.failures == []


def test_a_picture_that_a_verifier_fails_on_is_nan_with_an_event_and_the_others_are_scored(
    network: TextSiT, tmp_path: Path
) -> None:
    verifier = Failing(lambda n: n in (1, 2))  # the first pair, then the first picture alone
    record = drive(tmp_path / "run", tiny_rig(network, verifier=verifier, rows=2), "random(n=4)")
    scores = [o.score for o in record.of(0)]
    assert [math.isnan(s) for s in scores if s is not None] == [True, False, False, False]
    [failure] = record.failures
    assert failure["outcome"] == 0
    assert "the verifier's lamp went out" in failure["traceback"]
    assert record.winner(0) == best(record.of(0)[1:])
    assert record.spent(0).verdicts == 4  # a failed verdict was still asked for


def test_three_failures_in_a_row_stop_a_run_that_can_be_resumed(network: TextSiT, tmp_path: Path) -> None:
    folder, plan = tmp_path / "run", "zero_order(neighbours=3)"
    with pytest.raises(
        SecondlookError, match=r"failed three times in a row .*lamp went out.*mend the verifier and resume"
    ):
        drive(folder, tiny_rig(network, verifier=Failing(lambda n: n > 2), rows=2), plan, nfe=60)
    kept = essence(Record.read(Store.open(folder)))
    assert kept
    record = drive(folder, tiny_rig(network, rows=2), plan, nfe=60)
    assert record.done
    assert len(record.failures) == 3
    assert {i: e for i, e in essence(record).items() if i in kept}.keys() == kept.keys()
    assert len(record.outcomes) == 15


def test_failures_that_are_not_in_a_row_do_not_stop_a_run(network: TextSiT, tmp_path: Path) -> None:
    verifier = Failing(lambda n: n % 3 != 0)
    record = drive(tmp_path / "run", tiny_rig(network, verifier=verifier, rows=1), "random(n=9)")
    assert sum(math.isnan(o.score) for o in record.of(0)) == 6
    assert record.done


def test_a_verifier_of_the_wrong_length_is_a_failure(network: TextSiT, tmp_path: Path) -> None:
    class Short(Brightness):
        def __call__(self, samples: torch.Tensor, conditions: object) -> torch.Tensor:
            return torch.zeros(len(samples) + 1)

    with pytest.raises(
        SecondlookError, match=r"failed three times in a row \(expected 1 number, one a picture; got 2\)"
    ):
        drive(tmp_path / "run", tiny_rig(network, verifier=Short()), "random(n=12)")


@pytest.mark.parametrize(
    ("read", "answer"),
    [
        (answers.numbers, torch.zeros(2, 1)),
        (answers.numbers, np.zeros((2, 3))),
        (answers.numbers, torch.tensor(0.5)),
        (answers.numbers, 0.5),
        (answers.numbers, None),
        (answers.numbers, "01"),
        (answers.numbers, b"01"),
        (answers.numbers, {0: 1.0, 1: 2.0}),
        (answers.numbers, {0.5, 1.5}),
        (answers.numbers, iter([0.5, 1.5])),
        (answers.numbers, [0.5]),
        (answers.numbers, [0.5, None]),
        (answers.numbers, [0.5, [0.5]]),
        (answers.scores, {"colour": [0.1, 0.2]}),
        (answers.scores, {"score": [0.1, 0.2], "colour": [0.1]}),
        (answers.scores, {"score": torch.zeros(2, 2)}),
        (answers.shares, [0.5, 1.5]),
        (answers.shares, [-0.5, 0.5]),
        (answers.remarks, "ab"),
        (answers.remarks, [Remark("x")]),
        (answers.remarks, [Remark("x"), "y"]),
        (answers.remarks, [Remark("x"), Remark(3)]),  # type: ignore[arg-type]
        (answers.remarks, [Remark("x"), Remark("y", "high")]),  # type: ignore[arg-type]
        (answers.remarks, Remark("x")),
    ],
    ids=lambda value: value.__name__ if callable(value) else type(value).__name__,
)
def test_an_answer_of_another_form_is_no_answer(read: Any, answer: Any) -> None:
    with pytest.raises(answers.BadAnswer, match="expected"):
        read(answer, 2)


@pytest.mark.parametrize(
    "answer", [torch.tensor([0.5, 1.5]), np.array([0.5, 1.5]), [0.5, 1.5], (np.float32(0.5), torch.tensor(1.5))]
)
def test_an_answer_is_a_number_a_picture_whatever_holds_them(answer: Any) -> None:
    assert answers.numbers(answer, 2) == [0.5, 1.5]
    assert answers.scores({"score": answer, "colour": answer}, 2)[1] == [{"colour": 0.5}, {"colour": 1.5}]


def test_a_judge_that_fails_only_falls_silent(network: TextSiT, tmp_path: Path) -> None:
    rig = tiny_rig(network, rows=1)
    rig.judges["lamp"] = Failing(lambda n: n < 5)
    record = drive(tmp_path / "run", rig, "random(n=5)")
    assert [math.isnan(record.said(o.id)["lamp"]) for o in record.of(0)] == [True] * 4 + [False]
    assert [f["judge"] for f in record.failures] == ["lamp"] * 4
    assert record.done
    assert not any(math.isnan(o.score) for o in record.of(0) if o.score is not None)
