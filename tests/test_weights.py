"""Weights of particles against closed forms, and the plans that use them driven by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from secondlook.errors import ConfigError
from secondlook.flow.estimate import Flow
from secondlook.flow.path import Linear
from secondlook.moves import Clone, Fresh, Resume, Rewind
from secondlook.noise import Key, normal
from secondlook.plans.weights import SCHEMES, Row, draw, effective, log_mean, normalised, resample
from secondlook.settings import make_plan
from secondlook.solvers.sde import EulerMaruyama
from secondlook.testing import simulate
from secondlook.types import Condition, Cost, Means, Outcome, Plan, Proposal, State, Task
from secondlook.worlds.mixture import Mixture, MixtureNetwork

INF = math.inf


def test_weights_from_logarithms_that_would_overflow() -> None:
    logs = [1000.0, 1001.0, 999.0, -INF]
    weights = normalised(logs)
    assert weights == pytest.approx([0.2447284711, 0.6652409558, 0.0900305732, 0])
    assert effective(weights) == pytest.approx(1.9586986534)
    assert log_mean(logs) == pytest.approx(1000.0213116033)
    assert normalised([-INF, -INF]) == [0.5, 0.5]
    assert log_mean([-INF, -INF]) == -INF


def test_systematic_resampling_by_hand() -> None:
    weights = [0.5, 0.25, 0.125, 0.125]
    assert effective(weights) == pytest.approx(2.9090909091)
    assert resample(weights, "systematic", [0.1]) == [0, 0, 1, 2]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_row_is_expected_as_often_as_its_weight_says(scheme: str) -> None:
    rng = np.random.default_rng(0)
    weights = normalised(list(rng.normal(size=7)))
    counts = np.array([np.bincount(resample(weights, scheme, list(rng.random(7))), minlength=7) for _ in range(4000)])
    assert (counts.sum(1) == 7).all()
    error = counts.std(0) / 4000**0.5
    assert (np.abs(counts.mean(0) - 7 * np.array(weights)) < 4.5 * error + 1e-9).all()
    if scheme != "multinomial":
        whole = 7 * np.array(weights)
        assert (counts >= np.floor(whole) - (scheme == "systematic")).all()
        assert (counts <= np.ceil(whole) + (scheme == "systematic")).all()
    if scheme == "ssp":
        assert (counts >= np.floor(whole)).all()
        assert (counts <= np.ceil(whole)).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("weights", [[1.0], [0.25] * 4, [0.0, 1.0, 0.0], [0.5, 0.5, 0.0, 0.0], [1 / 3] * 3])
def test_resampling_at_the_corners(scheme: str, weights: list[float]) -> None:
    for u in (1e-12, 0.5, 1 - 1e-12):
        found = resample(weights, scheme, [u] * len(weights))
        assert len(found) == len(weights)
        assert all(weights[i] > 0 for i in found)
    if len(set(weights)) == 1 and scheme != "multinomial":
        assert found == list(range(len(weights)))


def test_one_is_drawn_by_its_weight() -> None:
    logs = [0.0, math.log(3.0)]
    assert [draw(logs, u) for u in (0.1, 0.24, 0.26, 0.99)] == [0, 0, 1, 1]


# ---- the plans -------------------------------------------------------------------------------------------------------


def play(plan: str, stochastic: bool, score: object) -> list[list[Outcome]]:
    return simulate(plan, budget={"nfe": 200}, stochastic=stochastic, score=score).rounds  # type: ignore[arg-type]


def test_a_particle_without_weight_is_replaced_by_clones_of_the_others() -> None:
    """One row of four is worthless; the effective number falls to three, which is below nine tenths of four."""
    rounds = play("particles(n=4, looks=2, threshold=0.9)", True, lambda o: -9.0 if o.id == 1 else 0.0)
    moves = [o.proposal.move for o in rounds[1]]
    parents = Counter(m.parent for m in moves)  # type: ignore[attr-defined]
    assert parents[1] == 0
    assert sorted(parents.values()) == [1, 1, 2]
    assert [type(m) for m in moves].count(Clone) == 1
    assert [type(m) for m in moves].count(Resume) == 3


def test_equal_scores_never_resample() -> None:
    rounds = play("particles(n=4, looks=3)", True, lambda o: 0.7)
    assert all(isinstance(o.proposal.move, (Fresh, Resume)) for some in rounds for o in some)


def test_weights_that_did_not_lead_to_resampling_are_carried_on() -> None:
    """Each look adds a little, which by itself would never do; together they bring a row down."""
    slow = {0: 0.0, 1: 0.0, 2: 0.0, 3: 0.0}

    def score(outcome: Outcome) -> float:
        row = outcome.id % 4
        step = outcome.id // 4
        return -0.06 * (step + 1) if row == 3 else slow[row]

    rounds = play("particles(n=4, looks=6, first=0.1, threshold=0.93)", True, score)
    kinds = [Counter(type(o.proposal.move).__name__ for o in some) for some in rounds[:7]]
    assert kinds[1]["Clone"] == 0
    assert sum(k["Clone"] for k in kinds) > 0


@pytest.mark.parametrize(("potential", "wanted"), [
    ("difference", [0.4, 0.6, -0.2]), ("max", [0.4, 1.0, -0.6]), ("sum", [0.4, 1.4, -1.0]),
])  # fmt: skip
def test_potentials_by_hand(potential: str, wanted: list[float]) -> None:
    """Temperature 0.5, scores .2, .5 on the way and .4 at the end: whatever the potential, they sum to .8."""
    row, increments = Row(), []
    for value in (0.4, 1.0):
        row, increment = row.seen(potential, value)
        increments.append(increment)
    increments.append(0.8 - row.given)
    assert increments == pytest.approx(wanted)
    assert sum(increments) == pytest.approx(0.8)


class World:
    """The exact mixture of the fact sheet under an SDE that keeps its marginals: carries out a plan's rounds, all rows at once.
    A row's score is its data."""

    mixture = Mixture.of((0.7, 0.3), ((-1.0,), (2.0,)), (0.5, 0.5))
    grid = tuple(float(t) for t in np.linspace(0, 1, 41))

    def __init__(self) -> None:
        self.flow = Flow(MixtureNetwork(self.mixture, Linear(), "velocity", (1,)), Linear())
        self.solver = EulerMaruyama(last="step")

    def play(self, plan: Plan, count: int) -> tuple[list[float], dict[str, Any]]:
        """The last round's data and what the plan returned."""
        sent, ended, states, number = None, [], {}, 0
        while True:
            try:
                proposals = plan.send(sent)
            except StopIteration as stop:
                return ended, stop.value
            state = self._begin(proposals, states)
            stop_at = proposals[0].stop
            for t in [t for t in self.grid if float(state.t[0]) + 1e-9 < t < stop_at - 1e-9] + [stop_at]:
                state = self.solver.step(self.flow, state, torch.full((count,), t), None)
            seen = state.x if stop_at == 1.0 else state.data
            ended = [float(v) for v in seen[:, 0]]
            sent = [Outcome(number + i, p, v) for i, (p, v) in enumerate(zip(proposals, ended, strict=True))]
            states = {number + i: state.rows([i]) for i in range(count)}
            number += count

    def _begin(self, proposals: Sequence[Proposal], states: dict[int, State]) -> State:
        if isinstance(proposals[0].move, Fresh):
            keys = tuple(p.move.key for p in proposals)  # type: ignore[attr-defined]
            n = len(keys)
            return State(normal(keys, (1,)), torch.zeros(n), keys, torch.zeros(n, dtype=torch.long))
        rows = [states[p.move.parent] for p in proposals]  # type: ignore[attr-defined]
        keys = tuple(getattr(p.move, "key", r.keys[0]) for p, r in zip(proposals, rows, strict=True))
        return replace(State.stack(rows), keys=keys)


def worlds(plan: str, seeds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each seed: the weighted mean, the plain mean, the estimate of the evidence."""
    found = []
    for seed in range(seeds):
        world, count = World(), 200
        task = Task(0, Condition("x"), Key.root(seed), world.grid, means=Means(dict, lambda p: Cost(), True))
        data, said = world.play(make_plan(f"particles(n={count}, again=False, {plan})")(task), count)
        weights = np.array(said["weights"])
        found.append((float(weights @ data), float(np.mean(data)), math.exp(said["log_evidence"])))
    return tuple(np.array(column) for column in zip(*found, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("plan", [
    "temperature=1.0", "temperature=1.0, potential='max'", "temperature=1.0, scheme='multinomial', threshold=1.1",
    "temperature=1.0, scheme='ssp', looks=6",
])  # fmt: skip
def test_particles_follow_the_tilted_law_and_their_evidence_is_unbiased(plan: str) -> None:
    """p exp(x) / Z has mean 1.93776 and Z 2.80367 (closed forms); within four standard errors, over 10 seeds of 200 rows."""
    weighted, _, evidence = worlds(plan, 10)
    assert (
        abs(weighted.mean() - 1.93776) < 4 * weighted.std(ddof=1) / 10**0.5 + 0.03
    )  # the SDE's own steps are 0.03 off
    assert abs(evidence.mean() - 2.80367) < 4 * evidence.std(ddof=1) / 10**0.5 + 0.1
    assert weighted.std() < 0.5


def test_a_temperature_without_end_leaves_the_law_as_it_was() -> None:
    weighted, plain, evidence = worlds("temperature=100000.0", 10)
    assert weighted == pytest.approx(plain, abs=1e-3)
    assert abs(plain.mean() + 0.1) < 4 * plain.std(ddof=1) / 10**0.5 + 0.03
    assert evidence == pytest.approx(np.ones(10), abs=1e-3)


def test_children_go_on_from_the_best_of_them() -> None:
    rounds = play("children(m=3, splits=2)", True, lambda o: float(o.id))
    first, family, last = rounds[0], rounds[1], rounds[2]
    assert len(first) == 1
    assert [type(o.proposal.move) for o in family] == [Clone] * 3
    assert {o.proposal.move.parent for o in last} == {family[-1].id}  # type: ignore[attr-defined]
    assert all(o.finished for o in last)
    back = play("children(m=3, splits=2)", False, lambda o: float(o.id))
    assert all(isinstance(o.proposal.move, Rewind) for o in back[1])


def test_halving_goes_on_with_the_better_half_and_draft_redraws_the_best_noise() -> None:
    rounds = play("halving(n=8, looks=2)", False, lambda o: float(o.id))
    assert [len(some) for some in rounds[:3]] == [8, 4, 2]
    assert [o.proposal.move for o in rounds[1]] == [Resume(o.id) for o in reversed(rounds[0][4:])]
    assert all(o.finished for o in rounds[2])
    rounds = play("draft(n=4, keep=2, steps=3)", False, lambda o: float(o.id))
    assert [o.proposal.steps for o in rounds[0]] == [3] * 4
    assert [o.proposal.move for o in rounds[1]] == [rounds[0][3].proposal.move, rounds[0][2].proposal.move]
    assert [o.proposal.steps for o in rounds[1]] == [None] * 2


@pytest.mark.parametrize("plan", [
    "halving(share=1.5)", "halving(first=1.0)", "draft(n=2, keep=3)", "particles(potential='best')",
    "particles(scheme='residual')", "children(temperature=-1.0)", "particles(temperature=0.0)",
])  # fmt: skip
def test_options_that_make_no_sense_are_sentences(plan: str) -> None:
    with pytest.raises(ConfigError, match=plan.split("(")[0]):
        next(make_plan(plan)(Task(0, Condition("a circle"), Key.root(0))), None)
