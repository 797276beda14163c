"""What every plan, verifier, critic, comparer and selector must do, as tests to inherit."""

from __future__ import annotations

import math
import pickle
from typing import Any

import torch
from torch import Tensor

from secondlook.registry import resolve
from secondlook.testing.simulate import simulate
from secondlook.types import Candidate, Comparer, Condition, Critic, Outcome, Remark, Selector, Verifier
from secondlook.verify import answers


def noise_pictures(count: int, side: int = 64, seed: int = 0) -> Tensor:
    """uint8 [count, side, side, 3]: pictures of nothing, all different."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, side, side, 3), generator=g, dtype=torch.uint8)


class PlanContract:
    """plan: a call-string; registry names, or ``module:attr`` with options. budget: enough for a few rounds."""

    plan: str
    budget: dict[str, float] = {"nfe": 600}  # noqa: RUF012
    stochastic = False

    def play(self, **how: Any) -> Any:
        return simulate(self.plan, **{"budget": self.budget, "stochastic": self.stochastic, "score": self.score, **how})

    @staticmethod
    def score(outcome: Outcome) -> float:
        """A made-up score that depends on the outcome alone."""
        return (outcome.id * 7919 % 101) / 101

    def test_it_proposes_what_can_be_carried_out_and_finishes_a_picture(self) -> None:
        played = self.play()
        assert any(o.finished for o in played.outcomes)

    def test_it_stays_within_its_budget(self) -> None:
        for unit, limit in self.budget.items():
            assert getattr(self.play().spent, unit) <= limit

    def test_the_same_answers_lead_to_the_same_proposals(self) -> None:
        one, two = self.play(), self.play()
        assert [o.proposal for o in one.outcomes] == [o.proposal for o in two.outcomes]

    def test_another_key_leads_to_other_noise(self) -> None:
        one, two = self.play(seed=0), self.play(seed=1)
        assert [o.proposal for o in one.outcomes] != [o.proposal for o in two.outcomes]

    def test_it_copes_with_scores_that_are_not_numbers(self) -> None:
        for value in (math.nan, math.inf, -math.inf):
            assert self.play(score=lambda o, value=value: value).outcomes

    def test_it_copes_with_equal_scores(self) -> None:
        assert self.play(score=lambda o: 0.0).outcomes

    def test_it_copes_with_a_critic_that_says_nothing(self) -> None:
        assert self.play(remark=lambda o: None).outcomes
        assert self.play(remark=lambda o: Remark("everything is wrong")).outcomes

    def test_no_noise_is_drawn_twice(self) -> None:
        """Two proposals alike in all parts would be one picture paid for twice."""
        proposals = [o.proposal for o in self.play().outcomes]
        assert len(set(proposals)) == len(proposals)

    def test_it_is_found_by_its_name(self) -> None:
        assert callable(resolve("plan", self.plan.partition("(")[0]))


class VerifierContract:
    """made: the verifier. pictures, conditions: what it can judge."""

    sides = 64

    def made(self) -> Verifier:
        raise AssertionError("VerifierContract expects made(): return your verifier.")

    def conditions(self, count: int) -> list[Condition]:
        return [Condition("a red circle") for _ in range(count)]

    def pictures(self, count: int) -> Tensor:
        return noise_pictures(count, self.sides)

    def numbers(self, pictures: Tensor) -> list[float]:
        return answers.scores(self.made()(pictures, self.conditions(len(pictures))), len(pictures))[0]

    def test_it_has_a_name(self) -> None:
        assert isinstance(self.made().name, str)

    def test_it_gives_one_number_a_picture(self) -> None:
        for count in (1, 2, 5):
            assert len(self.numbers(self.pictures(count))) == count

    def test_a_score_does_not_depend_on_company_or_place(self) -> None:
        pictures = self.pictures(5)
        together = self.numbers(pictures)
        assert together[::-1] == self.numbers(pictures.flip(0))
        assert together == [self.numbers(pictures[i : i + 1])[0] for i in range(5)]

    def test_it_remembers_nothing(self) -> None:
        pictures = self.pictures(3)
        verifier, conditions = self.made(), self.conditions(3)
        first = answers.scores(verifier(pictures, conditions), 3)
        verifier(pictures.flip(0), conditions)
        assert answers.scores(verifier(pictures, conditions), 3) == first

    def test_it_leaves_the_pictures_alone(self) -> None:
        pictures = self.pictures(3)
        before = pictures.clone()
        self.numbers(pictures)
        assert torch.equal(pictures, before)

    def test_one_that_reads_time_takes_pictures_without_times_as_finished(self) -> None:
        verifier, pictures, conditions = self.made(), self.pictures(3), self.conditions(3)
        finished = answers.told(verifier, pictures, conditions, [1.0] * 3)
        assert answers.scores(finished, 3) == answers.scores(verifier(pictures, conditions), 3)

    def test_one_that_reads_time_reads_each_rows_own(self) -> None:
        verifier, pictures, conditions, times = self.made(), self.pictures(3), self.conditions(3), [0.1, 0.5, 1.0]
        together = answers.scores(answers.told(verifier, pictures, conditions, times), 3)[0]
        backward = answers.told(verifier, pictures.flip(0), conditions[::-1], times[::-1])
        assert together == answers.scores(backward, 3)[0][::-1]

    def test_components_are_one_number_a_picture_too(self) -> None:
        _, components = answers.scores(self.made()(self.pictures(3), self.conditions(3)), 3)
        assert len({tuple(sorted(c)) for c in components}) == 1


class CriticContract:
    """made: the critic."""

    def made(self) -> Critic:
        raise AssertionError("CriticContract expects made(): return your critic.")

    def conditions(self, count: int) -> list[Condition]:
        return [Condition("a red circle") for _ in range(count)]

    def pictures(self, count: int) -> Tensor:
        return noise_pictures(count)

    def remarks(self, pictures: Tensor) -> list[Remark | None]:
        return answers.remarks(self.made()(pictures, self.conditions(len(pictures))), len(pictures))

    def test_it_has_a_name(self) -> None:
        assert isinstance(self.made().name, str)

    def test_it_gives_one_remark_a_picture(self) -> None:
        for count in (1, 4):
            assert len(self.remarks(self.pictures(count))) == count

    def test_a_remark_does_not_depend_on_company_or_place(self) -> None:
        pictures = self.pictures(4)
        together = self.remarks(pictures)
        assert together[::-1] == self.remarks(pictures.flip(0))
        assert together == [self.remarks(pictures[i : i + 1])[0] for i in range(4)]

    def test_it_leaves_the_pictures_alone(self) -> None:
        pictures = self.pictures(3)
        before = pictures.clone()
        self.remarks(pictures)
        assert torch.equal(pictures, before)


class ComparerContract:
    """made: the comparer. One that has ``symmetric = True`` tells how alike two pictures are: its two orders are equal."""

    def made(self) -> Comparer:
        raise AssertionError("ComparerContract expects made(): return your comparer.")

    def shares(self, first: Tensor, second: Tensor) -> list[float]:
        conditions = [Condition("a red circle")] * len(first)
        return answers.shares(self.made()(first, second, conditions), len(first))

    def test_it_has_a_name(self) -> None:
        assert isinstance(self.made().name, str)

    def test_it_gives_one_share_a_pair(self) -> None:
        assert len(self.shares(noise_pictures(3), noise_pictures(3, seed=1))) == 3

    def test_the_two_orders_of_a_pair_add_up_to_one(self) -> None:
        one, two = noise_pictures(4), noise_pictures(4, seed=1)
        alike = getattr(self.made(), "symmetric", False)
        for a, b in zip(self.shares(one, two), self.shares(two, one), strict=True):
            assert (math.isnan(a) and math.isnan(b)) or abs(a - b if alike else a + b - 1) < 1e-6

    def test_a_share_does_not_depend_on_company(self) -> None:
        one, two = noise_pictures(4), noise_pictures(4, seed=1)
        alone = [self.shares(one[i : i + 1], two[i : i + 1])[0] for i in range(4)]
        assert self.shares(one, two) == alone


class SelectorContract:
    """made: the selector."""

    side = 16

    def made(self) -> Selector:
        raise AssertionError("SelectorContract expects made(): return your selector.")

    def candidates(self, tasks: int, each: int) -> list[list[Candidate]]:
        pictures = noise_pictures(tasks * each, self.side).numpy()

        def candidate(task: int, n: int) -> Candidate:
            number = n * tasks + task
            parts = {"colour": (number * 31 % 17) / 17, "shape": (number * 13 % 11) / 11}
            return Candidate(number, task, (number * 7 % 19) / 19, parts, lambda: pictures[number])

        return [[candidate(t, n) for n in range(each)] for t in range(tasks)]

    def test_it_has_a_name(self) -> None:
        assert isinstance(self.made().name, str)

    def test_each_task_is_given_pictures_of_its_own(self) -> None:
        given = self.candidates(3, 5)
        chosen = self.made()(given)
        assert len(chosen) == 3
        for some, candidates in zip(chosen, given, strict=True):
            assert len(some) >= 1
            assert len(set(some)) == len(some)
            assert set(some) <= {c.id for c in candidates}

    def test_it_copes_with_a_single_candidate_and_with_none(self) -> None:
        given = self.candidates(2, 1)
        assert [list(c) for c in self.made()(given)] == [[given[0][0].id], [given[1][0].id]]
        assert [list(c) for c in self.made()([[], given[1]])] == [[], [given[1][0].id]]

    def test_it_copes_with_missing_scores(self) -> None:
        given = [
            [
                Candidate(c.id, c.task, value, {}, c.picture)
                for c, value in zip(some, (None, math.nan, 0.5), strict=True)
            ]
            for some in self.candidates(2, 3)
        ]
        assert all(len(c) >= 1 for c in self.made()(given))

    def test_the_same_candidates_give_the_same_choice(self) -> None:
        assert list(map(list, self.made()(self.candidates(3, 4)))) == list(
            map(list, self.made()(self.candidates(3, 4)))
        )


def pickles(thing: Any) -> Any:
    """The thing after a trip through pickle."""
    return pickle.loads(pickle.dumps(thing))
