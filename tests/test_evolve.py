"""Evolution, played on paper: who has children, how far back they begin, and when it begins again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from secondlook.errors import ConfigError
from secondlook.moves import Fresh, Rewind
from secondlook.plans.evolve import evolve
from secondlook.testing import simulate
from secondlook.types import Outcome, Task

GRID = 5


def play(score: Callable[[Outcome], float], rounds: int, **options: object) -> list[list[Outcome]]:
    return simulate(lambda task: evolve(task, **options), score=score, rounds=rounds, steps=GRID).rounds  # type: ignore[arg-type]


def begun(outcomes: list[Outcome]) -> list[tuple[int | None, float]]:
    """Of each its parent and where it begins."""
    return [(m.parent, m.to) if isinstance(m := o.proposal.move, Rewind) else (None, 0.0) for o in outcomes]


def test_the_best_pictures_have_the_children_each_as_many() -> None:
    rounds = play(lambda o: {1: 3.0, 3: 2.0}.get(o.id, 0.0), 2, n=5, children=3, elites=2, times=(0.4,))
    assert all(isinstance(o.proposal.move, Fresh) for o in rounds[0])
    assert len(rounds[0]) == 5
    assert begun(rounds[1]) == [(1, 0.4)] * 3 + [(3, 0.4)] * 3


def test_a_better_child_takes_its_parents_place_and_a_worse_one_does_not() -> None:
    scores = {0: 1.0, 1: 0.0, 2: 5.0, 3: 0.5, 4: 2.0, 5: 4.0}
    rounds = play(lambda o: scores.get(o.id, 0.0), 4, n=2, children=2, times=(0.6,), patience=9)
    assert [parent for parent, _ in begun(rounds[1])] == [0, 0]
    assert [parent for parent, _ in begun(rounds[2])] == [2, 2]
    assert [parent for parent, _ in begun(rounds[3])] == [2, 2]  # 4 and 5 are worse than 2


def test_parents_that_do_not_stay_leave_the_best_child_in_their_place() -> None:
    scores = {0: 9.0, 2: 1.0, 3: 2.0}
    rounds = play(lambda o: scores.get(o.id, 0.0), 3, n=2, children=2, times=(0.6,), patience=9, keep=False)
    assert [parent for parent, _ in begun(rounds[2])] == [3, 3]


def test_without_a_better_picture_it_goes_further_back_and_then_begins_again() -> None:
    rounds = play(lambda o: float(-o.id), 6, n=2, children=1, times=(0.6, 0.2), patience=2)
    assert [begun(r)[0] for r in rounds] == [(None, 0.0), (0, 0.6), (0, 0.6), (0, 0.2), (0, 0.2), (None, 0.0)]


def test_a_better_picture_returns_to_the_first_time() -> None:
    scores = {0: 1.0, 2: 7.0}
    rounds = play(lambda o: scores.get(o.id, 0.0), 5, n=1, children=1, times=(0.6, 0.2), patience=1)
    assert [begun(r)[0] for r in rounds] == [(None, 0.0), (0, 0.6), (0, 0.2), (2, 0.6), (2, 0.2)]


def test_a_child_is_charged_the_steps_that_are_left() -> None:
    played = simulate(lambda task: evolve(task, n=1, children=1, times=(0.6,)), rounds=2, steps=GRID)
    assert played.spent.nfe == GRID + 2  # of steps at 0, 0.2, 0.4, 0.6 and 0.8


def test_times_are_put_on_the_grid() -> None:
    rounds = play(lambda o: 0.0, 2, n=1, children=1, times=(0.57,))
    assert begun(rounds[1])[0][1] == pytest.approx(0.6)


def test_one_time_may_be_given_bare() -> None:
    assert begun(play(lambda o: 0.0, 2, n=1, children=1, times=0.6)[1])[0][1] == pytest.approx(0.6)


@pytest.mark.parametrize("times", [(), (1.0,), (-0.1,), (0.5, 2.0), "late"])
def test_times_outside_the_path_are_refused(times: tuple[float, ...]) -> None:
    task = Task.__new__(Task)
    with pytest.raises(ConfigError, match="times must be numbers from 0 to below 1"):
        next(evolve(task, times=times))
