"""EvoSearch, played on paper."""

from __future__ import annotations

import math

import pytest

from secondlook.errors import ConfigError
from secondlook.moves import Fresh, Rewind, Turn
from secondlook.testing import simulate


def test_generations_have_their_sizes_less_the_elites_and_begin_where_they_are_told() -> None:
    played = simulate("evosearch", score=lambda o: float(o.id), rounds=6, steps=50)
    assert [len(r) for r in played.rounds] == [14, 4, 4, 4, 7, 14]
    begun = [{o.proposal.move.to for o in r if isinstance(o.proposal.move, Rewind)} for r in played.rounds]
    assert [[round(t, 6) for t in b] for b in begun] == [[], [0.1], [0.4], [0.6], [0.8], []]


def test_at_the_path_s_beginning_noise_is_mutated_by_b() -> None:
    played = simulate("evosearch(populations=(4, 3, 3), at=(0.0, 0.0), elites=1, mutation=0.2)", rounds=3, steps=5)
    for outcome in played.rounds[1] + played.rounds[2]:
        assert isinstance(outcome.proposal.move, Turn)
        assert math.sin(outcome.proposal.move.angle) == pytest.approx(0.2)


def test_a_tournament_prefers_the_better() -> None:
    def children_of_the_best(tournament: int) -> int:
        played = simulate(f"evosearch(populations=(10, 201), at=(0.5,), elites=1, tournament={tournament})",
                          score=lambda o: float(o.id), rounds=2, steps=4)  # fmt: skip
        return sum(o.proposal.move.parent == 9 for o in played.rounds[1])  # type: ignore[attr-defined]

    assert 10 <= children_of_the_best(1) <= 35  # one in ten of 200
    assert 100 <= children_of_the_best(10) <= 155  # 1 - 0.9 ** 10 = 0.65


def test_elites_live_on_without_being_drawn_again() -> None:
    played = simulate(
        "evosearch(populations=(5, 4, 4), at=(0.5, 0.5), elites=2, tournament=9)",
        score=lambda o: float(-o.id),
        rounds=3,
        steps=4,
    )
    assert {o.proposal.move.parent for o in played.rounds[2]} <= {0, 1, 2, 3}  # type: ignore[attr-defined]
    assert all(isinstance(o.proposal.move, Fresh) for o in played.rounds[0])


@pytest.mark.parametrize(
    "call", ["populations=(4,)", "populations=4", "at=0.5", "at=(0.1, 0.4, 0.6, 1.0)", "mutation=1.5", "elites=0"]
)
def test_settings_that_do_not_fit_are_refused(call: str) -> None:
    with pytest.raises(ConfigError, match="evosearch"):
        simulate(f"evosearch({call})", rounds=1)
