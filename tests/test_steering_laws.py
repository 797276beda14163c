"""Weights of particles by hand, and the laws of populations on the exact mixture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from secondlook.flow.estimate import Flow
from secondlook.flow.path import Linear
from secondlook.moves import Clone, Fresh
from secondlook.noise import Key
from secondlook.plans.particles import particles
from secondlook.plans.weights import (
    SCHEMES,
    Row,
    Rule,
    Weights,
    adapted,
    effective,
    increasing,
    log_mean,
    normalised,
    resample,
)
from secondlook.solvers.sde import EulerMaruyama
from secondlook.testing import simulate
from secondlook.types import Condition, Cost, Means, Outcome, Plan, State, Task
from secondlook.worlds.mixture import Mixture

WORLD = Mixture.of((0.7, 0.3), ((-1.0,), (2.0,)), (0.5, 0.5))
FLOW = Flow(WORLD.network(Linear(), "velocity"), Linear())
MEAN, Z = 1.9377630353, math.exp(1.0309302221)  # of the law tilted by exp(x), and its evidence: closed forms


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("count", [3, 12])
def test_fewer_or_more_places_are_shared_out_by_weight_too(scheme: str, count: int) -> None:
    rng = np.random.default_rng(0)
    weights = normalised(list(rng.normal(size=7)))
    drawn = [resample(weights, scheme, list(rng.random(12)), count) for _ in range(3000)]
    counts = np.array([np.bincount(places, minlength=7) for places in drawn])
    assert (counts.sum(1) == count).all()
    assert (np.abs(counts.mean(0) - count * np.array(weights)) < 4.5 * counts.std(0) / 3000**0.5 + 1e-9).all()


@pytest.mark.parametrize("potential", ["current", "difference", "max", "sum"])
@pytest.mark.parametrize("schedule", ["constant", "increasing", "adaptive"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_and_factors_taken_out_always_come_to_a_rows_own_score(
    potential: str, schedule: str, scheme: str
) -> None:
    """Rows that are alike: resampling changes nothing but the split between weights and evidence, which sum to the last value."""
    rule = Rule(potential, scheme, threshold=2.0 if schedule != "adaptive" else 0.5, schedule=schedule)
    weights = Weights.begin(4)
    for value, time in ((0.2, 0.2), (0.7, 0.5), (0.4, 0.8)):
        weights = weights.seen(rule, [value] * 4, time)
        if weights.due(rule):
            weights = weights.resampled(rule, [0.3, 0.6, 0.2, 0.9])[1]
    ended = weights.ended(rule, [1.3] * 4)
    assert normalised(ended.logs) == pytest.approx([0.25] * 4)
    assert ended.evidence + log_mean(ended.logs) == pytest.approx(1.3)


def test_vasr_chooses_by_the_last_look_and_carries_what_is_left_of_the_weight() -> None:
    rule = Rule("max", "vasr", threshold=2.0)
    weights = Weights.begin(2).seen(rule, [1.0, 0.0], 0.2).seen(rule, [0.5, 0.4], 0.5)
    assert weights.logs == pytest.approx([2.0, 0.4])  # the potentials: 1 + 1 and 0 + 0.4
    assert weights.mass(rule) == pytest.approx([0.5, 0.4])
    parents, after = weights.resampled(rule, [0.5])
    assert parents == [0, 1]
    assert after.logs == pytest.approx([1.5, 0.0])
    assert after.evidence == pytest.approx(log_mean([0.5, 0.4]))
    difference = Weights.begin(2).seen(Rule(), [1.0, 0.0], 0.2).seen(Rule(), [0.5, 0.4], 0.5)
    assert difference.mass(replace(rule, potential="difference")) == pytest.approx(difference.logs)


def test_the_inverse_temperature_grows_to_its_whole() -> None:
    shares = [increasing(t, 0.008) for t in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert shares == pytest.approx([0, 1.008**20 - 1, 1.008**40 - 1, 1.008**60 - 1, 1.008**80 - 1, 1.0])
    assert adapted(lambda s: 4 - s, 0.0, 2.0) == 1.0
    assert adapted(lambda s: 4 - 4 * s, 0.0, 2.0) == pytest.approx(0.5)
    assert adapted(lambda s: 4 - 4 * s, 0.0, 2.0) > 0.5 - 1e-15


def test_an_adaptive_temperature_lowers_the_effective_number_to_the_threshold() -> None:
    rule, values = Rule(schedule="adaptive", threshold=0.6), [0.0, 3.0, 1.0, 7.0, 2.0]
    weights = Weights.begin(5).seen(rule, values, 0.2)
    assert effective(normalised(weights.logs)) == pytest.approx(3.0)
    assert weights.due(rule)
    assert 0 < weights.scale < 1
    after = weights.resampled(rule, [0.4])[1].seen(rule, values, 0.5)
    assert after.scale >= weights.scale
    calm = Weights.begin(5).seen(rule, [0.1, 0.2, 0.1, 0.2, 0.1], 0.2)
    assert calm.scale == 1.0
    assert not calm.due(rule)


def test_an_infinite_inverse_temperature_is_the_argmax_and_equals_share() -> None:
    rule = Rule("current", schedule="infinite")
    weights = Weights.begin(4).seen(rule, [0.1, 0.9, 0.3, 0.2], 0.2)
    assert normalised(weights.logs) == [0, 1, 0, 0]
    assert weights.due(rule)
    assert weights.resampled(rule, [0.5])[0] == [1] * 4
    assert not Weights.begin(4).seen(rule, [0.5] * 4, 0.2).due(rule)
    last = replace(rule, potential="max")
    seen = Weights.begin(2).seen(last, [0.9, 0.1], 0.2).resampled(last, [0.5], 2)[1].seen(last, [0.2, 0.4], 0.5)
    assert normalised(seen.logs) == [0.5, 0.5]  # both come of the row that had 0.9


@pytest.mark.parametrize(("potential", "wanted"), [
    ("difference", [0.1, 0.9]), ("max", [0.1, 0.9]), ("current", [0.1, 0.9]), ("sum", [0.1, 1.1]),
])  # fmt: skip
def test_tempered_potentials_by_hand(potential: str, wanted: list[float]) -> None:
    """Scores over the temperature 0.4 and 1.8 at shares 0.25 and 0.5: differences telescope to 0.9, others are their share."""
    row, given = Row(), []
    for value, scale in ((0.4, 0.25), (1.8, 0.5)):
        row, increment = row.seen(potential, value, scale)
        given.append(increment)
    expected = [wanted[0], wanted[1] - wanted[0] if potential == "difference" else wanted[1]]
    assert given == pytest.approx(expected)


# ---- laws on the exact mixture -----------------------------------------------------------------------------------------


class Unkeyed(Key):
    """A key that names nothing: noise comes from a generator, which is quicker where nothing is drawn again."""

    def child(self, *names: str | int) -> Key:
        return self


@dataclass
class Crowd:
    """Plans that propose alike (particles on an SDE), played in step with one another: a round of all of them is one batch.
    A row's score is its data. steps: of the grid."""

    seed: int = 0
    steps: int = 60
    until: float = 1.0

    def run(self, make: Callable[[Task], Plan], runs: int) -> tuple[Tensor, list[dict[str, object]], int]:
        """The last round's data [runs, n], what each plan returned, and how many clones were made."""
        g = torch.Generator().manual_seed(self.seed)
        solver = EulerMaruyama(
            last="euler",
            until=self.until,
            source=lambda keys, shape: torch.randn(len(keys), *shape, generator=g).double(),
        )
        grid = tuple(i / self.steps for i in range(self.steps + 1))
        means = Means(dict, lambda p: Cost(), True)
        plans = [make(Task(0, Condition("x"), Key.root(i), grid, means=means)) for i in range(runs)]
        sent: list[list[Outcome] | None] = [None] * runs
        clones, x, t, data = 0, torch.empty(0), 0.0, torch.empty(0)
        while True:
            try:
                rounds = [plan.send(s) for plan, s in zip(plans, sent, strict=True)]  # type: ignore[arg-type]
            except StopIteration as stop:
                others = [_returned(plan, s) for plan, s in zip(plans[1:], sent[1:], strict=True)]
                return data.reshape(runs, -1), [stop.value, *others], clones
            clones += sum(isinstance(p.move, Clone) for some in rounds for p in some)
            proposals = [p for some in rounds for p in some]
            if isinstance(proposals[0].move, Fresh):
                x = torch.randn(len(proposals), 1, generator=g).double()
            else:
                x = x[[p.move.parent for p in proposals]]  # type: ignore[attr-defined]
            x, data = self._steps(solver, x, t, proposals[0].stop, grid)
            t, numbers = proposals[0].stop % 1.0, iter(enumerate(data.tolist()))
            sent = [[Outcome(i, p, v) for p, (i, v) in zip(some, numbers, strict=False)] for some in rounds]

    def _steps(
        self, solver: EulerMaruyama, x: Tensor, t: float, stop: float, grid: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        n = len(x)
        state = State(x, torch.full((n,), t).double(), (Unkeyed(0),) * n, torch.zeros(n, dtype=torch.long))
        for then in [g for g in grid if t + 1e-9 < g < stop - 1e-9] + [stop]:
            state = solver.step(FLOW, state, torch.full((n,), then).double(), None)
        shown = state.x if stop == 1.0 else state.data
        assert shown is not None
        return state.x, shown[:, 0]


def _returned(plan: Plan, sent: object) -> dict[str, object]:
    try:
        plan.send(sent)  # type: ignore[arg-type]
    except StopIteration as stop:
        return stop.value
    raise AssertionError("this plan goes on where the first has ended")


def laws(
    runs: int, n: int, seed: int = 0, steps: int = 60, plan: Callable[..., Plan] = particles, **options: object
) -> tuple[np.ndarray, np.ndarray]:
    """Of each run the weighted mean and the estimate of the evidence, toward p exp(x)."""
    how = {"temperature": 1.0, **options, "n": n, **({"again": False} if plan is particles else {})}
    data, said, _ = Crowd(seed, steps).run(lambda task: plan(task, **how), runs)  # type: ignore[arg-type]
    weights = np.array([s["weights"] for s in said])
    return (weights * data.numpy()).sum(1), np.exp([float(s["log_evidence"]) for s in said])  # type: ignore[arg-type]


def near(found: np.ndarray, wanted: float, slack: float = 0.0) -> bool:
    """Within four standard errors; slack: what the SDE's own steps are off."""
    return abs(found.mean() - wanted) < 4 * found.std(ddof=1) / len(found) ** 0.5 + slack


SETTINGS = [
    {"potential": p, "scheme": s, "threshold": e}
    for p in ("difference", "max") for s in ("multinomial", "systematic") for e in (0.5, 2.0)
]  # fmt: skip
OTHERS = [
    {"potential": "difference", "scheme": "ssp", "schedule": "increasing"}, {"schedule": "adaptive"},
    {"potential": "max", "scheme": "vasr", "threshold": 2.0}, {"potential": "current", "scheme": "vasr", "schedule": "increasing"},
    {"shrink": 0.25, "threshold": 2.0}, {"shrink": 0.5, "scheme": "ssp"},
    # With three looks and more the sum asks so much on the way that a thousand rows degenerate before its last potential takes it back.
    {"potential": "sum", "looks": 2},
]  # fmt: skip


@pytest.mark.parametrize("options", [*SETTINGS, *OTHERS], ids=str)
def test_small_populations_follow_the_law_and_their_evidence_is_unbiased(options: dict[str, object]) -> None:
    """64 rows: the weighted mean of a ratio is off by about 1 / n, so it is given as much room; the evidence is given none for that."""
    means, evidence = laws(80, 64, **options)
    assert near(means, MEAN, 0.03 + 4 / 64)
    assert near(evidence, Z, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("options", [*SETTINGS, *OTHERS], ids=str)
def test_populations_follow_the_law_and_their_evidence_is_unbiased(options: dict[str, object]) -> None:
    means, _ = laws(40, 1000, steps=100, **options)
    assert near(means, MEAN, 0.006 + 4 / 1000)
    _, evidence = laws(1000, 16, seed=1, steps=100, **options)
    assert near(evidence, Z, 0.01)


def test_evidence_is_unbiased_at_sixteen_particles() -> None:
    _, evidence = laws(500, 16, potential="max", threshold=2.0)
    assert near(evidence, Z, 0.02)


def test_the_error_falls_with_the_root_of_the_number() -> None:
    few, many = (laws(60, n, seed=n)[0] for n in (24, 384))
    ratio = ((few - MEAN) ** 2).mean() ** 0.5 / ((many - MEAN) ** 2).mean() ** 0.5
    assert 2.5 < ratio < 6.4  # 4 in expectation, and 60 runs know either error to a tenth


def test_forgetting_weights_misses_the_law() -> None:
    """What the tests above are worth: with the weights of looks that led to no resampling forgotten, and without a last potential, the
    same population is off by far more than they allow."""
    crowd = Crowd(3)
    data, _, _ = crowd.run(lambda task: particles(task, n=200, temperature=1.0, forget=True, again=False), 20)
    assert data.mean() < MEAN - 0.15


def test_at_temperature_without_end_the_base_law_is_left() -> None:
    data, said, _ = Crowd(4).run(lambda task: particles(task, n=500, temperature=1e5, again=False), 20)
    assert float(data.mean()) == pytest.approx(-0.1, abs=4 * 2.14**0.5 / 100 + 0.02)
    assert float((data > 0).double().mean()) == pytest.approx(0.3159, abs=4 * 0.465 / 100 + 0.01)
    assert [s["log_evidence"] for s in said] == pytest.approx([0.0] * 20, abs=1e-3)


@pytest.mark.parametrize("potential", ["current", "difference", "max", "sum"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_constant_reward_never_resamples_and_its_evidence_is_exact(potential: str, scheme: str) -> None:
    plan = f"particles(n=5, temperature=0.25, potential='{potential}', scheme='{scheme}', again=False)"
    played = simulate(plan, stochastic=True, score=lambda o: 0.75)
    assert not any(isinstance(o.proposal.move, Clone) for o in played.outcomes)
    assert played.returned["log_evidence"] == pytest.approx(3.0)
    assert played.returned["weights"] == pytest.approx([0.2] * 5)


def test_an_sde_that_turns_to_an_ode_late_has_the_exact_law() -> None:
    """Drawn by particles that never resample; the mixture's mean, variance and share above 0."""
    data, _, clones = Crowd(5, 80, until=0.7).run(
        lambda task: particles(task, n=1000, looks=1, first=0.5, temperature=1e5, again=False), 10
    )
    assert clones == 0
    assert float(data.mean()) == pytest.approx(-0.1, abs=4 * 2.14**0.5 / 100 + 0.01)
    assert float(data.var()) == pytest.approx(2.14, abs=0.12)
    assert float((data > 0).double().mean()) == pytest.approx(0.3159, abs=4 * 0.465 / 100 + 0.005)
