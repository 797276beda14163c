"""Selectors on a run, and what is asked again when a run is judged once more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import secondlook
from secondlook.engine.driver import Driver
from secondlook.engine.record import Record
from secondlook.engine.rescore import rescore
from secondlook.engine.select import mean_ranks, select
from secondlook.engine.store import Store
from secondlook.errors import ConfigError, SecondlookError
from secondlook.models.text import TextSiT
from secondlook.plans.moves import fresh
from secondlook.settings import make_named
from secondlook.types import Candidate, Condition, Plan, Task
from tests.helpers import PROMPTS, Brightness, drive, tasks, tiny_rig


class Says:
    name = "says"

    def __init__(self, chosen: Any):
        self.chosen = chosen

    def __call__(self, candidates: Sequence[Sequence[Candidate]]) -> Any:
        return self.chosen


@pytest.mark.parametrize("chosen", [[[99]], [[0, 0]], [[]], [[0], [1]], []])
def test_a_selector_chooses_among_the_finished_pictures_each_once_and_at_least_one(
    chosen: Any, network: TextSiT, tmp_path: Path
) -> None:
    drive(tmp_path / "run", tiny_rig(network), "random(n=3)")
    store = Store.open(tmp_path / "run")
    with pytest.raises(SecondlookError, match="must choose"):
        select(store, Says(chosen), 1)
    assert not store.has("selected")
    assert select(store, Says([[2, 0]]), 1) == {0: [2, 0]}


def test_what_has_no_measure_is_last_in_it() -> None:
    assert mean_ranks([math.nan, 3.0, 1.0, 3.0]).tolist() == [3.0, 0.5, 2.0, 0.5]
    assert np.argmax(mean_ranks([0.0, math.nan])) == 1


def test_a_finished_run_without_its_selector_s_word_is_selected_when_it_is_resumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    secondlook.draw("7", "random(n=3)", run, world="digits", steps=2)
    store = Store.open(run)
    config = {**store.config, "select": "best(count=2)"}
    store.close()
    other = Store.create(tmp_path / "other", config)
    other.append([(e.kind, e.task, e.outcome, e.body) for e in Store.open(run).events()])
    for file in (run / "pictures").iterdir():
        (tmp_path / "other" / "pictures" / file.name).write_bytes(file.read_bytes())
    other.close()
    assert len(secondlook.resume(tmp_path / "other")[0].chosen) == 2


def test_the_window_that_is_asked_for_is_the_engine_s(tmp_path: Path) -> None:
    seen: list[int] = []
    secondlook.draw(
        ["7", "3", "1"], "random(n=1)", tmp_path / "run", world="digits", steps=2, window=1,
        progress=lambda d: seen.append(d.window),
    )  # fmt: skip
    assert set(seen) == {1}


class Noting(Brightness):
    inline = True  # it has answered when the next tick begins

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        self.asked += len(samples)
        return super().__call__(samples, conditions)


def test_judging_again_asks_of_what_was_asked_and_has_no_answer_alone(network: TextSiT, tmp_path: Path) -> None:
    """Of five pictures one was never to be scored, and one could not be."""

    class Fails(Brightness):
        def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
            found = super().__call__(samples, conditions)
            found[:1] = math.nan
            return found

    def plan(task: Task) -> Plan:
        yield fresh(task, 1, ask="nothing")
        yield fresh(task, 4)

    drive(tmp_path / "run", tiny_rig(network, verifier=Fails()), plan)
    again = Noting()
    found = rescore(Store.open(tmp_path / "run"), again, tasks())
    assert (found.scored, again.asked) == (1, 1)


def test_held_out_judges_are_asked_of_no_picture_twice_when_a_run_goes_on(network: TextSiT, tmp_path: Path) -> None:
    first, second = Noting(), Noting()
    rig = tiny_rig(network)
    rig.judges = {"noting": first}

    def stop(driver: Driver) -> None:
        if driver.drawn >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path / "run", rig, "random(n=8)", progress=stop)
    told = len(Record.read(Store.open(tmp_path / "run")).judged)
    assert told
    rig = tiny_rig(network)
    rig.judges = {"noting": second}
    record = drive(tmp_path / "run", rig, "random(n=8)")
    assert len(record.judged) == 8
    assert second.asked == 8 - told


def test_encodings_of_prompts_that_have_ended_are_let_go(network: TextSiT, tmp_path: Path) -> None:
    rig = tiny_rig(network)
    drive(tmp_path / "run", rig, "random(n=1)", prompts=PROMPTS[:4], window=1)
    assert not rig._encoded


def _candidates(*scores: float | None) -> list[Candidate]:
    return [Candidate(2 * i, 0, s, {}, lambda: np.zeros((2, 2, 3), np.uint8)) for i, s in enumerate(scores)]


def test_return_rules_are_one_option_for_all_plans() -> None:
    given = [_candidates(0.2, 0.6, None, 0.9, math.nan), _candidates(0.1, 0.4, 0.3), []]

    def chosen(rule: str) -> Any:
        return make_named("selector", rule)(given)

    assert chosen("best") == [[6], [2], []]
    assert chosen("accepted") == [[2], [2], []]
    assert chosen("accepted(threshold=0.9)") == [[6], [2], []]
    assert chosen("accepted(threshold=0.0)") == [[0], [0], []]
    assert chosen("last") == [[8], [4], []]
    assert make_named("selector", "accepted")([_candidates(math.nan, None)]) == [[0]]
    with pytest.raises(ConfigError, match="threshold"):
        make_named("selector", "accepted(threshold='high')")


def test_a_run_hands_over_what_its_return_rule_says(tmp_path: Path) -> None:
    found = {}
    for rule in ("best", "accepted(threshold=0.0)", "last"):
        run = tmp_path / rule[:4]
        [one] = secondlook.draw("7", "random(n=3)", run, world="digits", steps=2, select=rule)
        found[rule] = one.outcome
        assert Record.read(Store.open(run)).selector == rule.partition("(")[0]
    assert (found["accepted(threshold=0.0)"], found["last"]) == (0, 2)
