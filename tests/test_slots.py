"""Rows that cannot share a step wait for their own kind, so that the network and the judges are given full batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from secondlook.engine.job import Job
from secondlook.engine.rig import Rig, Work
from secondlook.engine.slots import PATIENT, Slots
from secondlook.flow.guidance import ClassifierFree, Null
from secondlook.flow.state import State
from secondlook.models.text import TextSiT
from secondlook.noise import Key
from secondlook.types import Condition, Cost, Fresh, Proposal
from tests.helpers import PROMPTS, Brightness, drive, essence, tiny_rig

ROWS = 8
MANY = PROMPTS * 6


class Counted:
    """A network that counts the rows it is given."""

    def __init__(self, network: TextSiT):
        self.network, self.predicts, self.shape, self.rows = network, network.predicts, network.shape, 0

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.rows += len(x)
        return self.network(x, t, cond)


class Sizes(Brightness):
    """Brightness that remembers how many pictures it was asked about at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        self.asked.append(len(samples))
        return super().__call__(samples, conditions)


def mixed_rig(network: TextSiT, verifier: Brightness | None = None) -> tuple[Rig, Counted]:
    """Guidance in the first half of time only, so that rows at different times cost differently."""
    rig, counted = tiny_rig(network, rows=ROWS, verifier=verifier), Counted(network)
    with torch.inference_mode():
        null = Null(network.encode([None]))
    guide = ClassifierFree(2.5, null.join, null.null, interval=(0.0, 0.3))
    rig.flow = replace(rig.flow, network=counted, guide=guide)
    return rig, counted


@pytest.mark.parametrize("plan", ["evolve(n=3, children=3)", "halving(n=4)", "paths(n=2, width=3)"])
def test_rows_of_different_cost_are_stepped_in_full_batches(network: TextSiT, tmp_path: Path, plan: str) -> None:
    rig, counted = mixed_rig(network)
    record = drive(tmp_path, rig, plan, prompts=MANY, evals=60)
    charged = sum(c.evals for c in record.costs.values())
    charged += len(MANY) * rig.price(0.0, 1.0).evals if record.baselines else 0
    # What is left over is the run's end, when few prompts are under way. Stepping both kinds at every tick needs 1.6 to 1.9.
    assert counted.rows <= 1.35 * charged, counted.rows / charged


def test_the_verifier_is_asked_about_full_batches_while_there_is_work(network: TextSiT, tmp_path: Path) -> None:
    verifier = Sizes()
    rig, _ = mixed_rig(network, verifier)
    drive(tmp_path, rig, "evolve(n=3, children=3)", prompts=MANY, evals=60)
    assert max(verifier.asked) <= ROWS
    assert sum(size == ROWS for size in verifier.asked) >= 0.8 * len(verifier.asked)


def test_waiting_for_a_full_batch_changes_no_row(network: TextSiT, tmp_path: Path) -> None:
    """All prompts together, and each alone, where nothing has company to wait for."""
    whole = drive(tmp_path / "whole", mixed_rig(network)[0], "evolve(n=3, children=3)", prompts=PROMPTS, evals=40)
    narrow = drive(
        tmp_path / "narrow", mixed_rig(network)[0], "evolve(n=3, children=3)", prompts=PROMPTS, evals=40, window=1
    )
    assert essence(whole) == essence(narrow)


class Steps:
    """A rig whose rows are guided before time 0.5, and which only moves their times."""

    rows, device = 2, torch.device("cpu")

    def batch(self, kind: Sequence[int]) -> int:
        return 4 // kind[0]

    def step_kind(self, t: float, then: float) -> tuple[int, ...]:
        return (2,) if t < 0.5 else (1,)

    def asks(self, t: float, then: float) -> tuple[float, ...]:
        return (t,)

    def step(self, work: Work) -> tuple[State, Cost]:
        return replace(work.state, t=torch.tensor(work.until)), Cost(nfe=1)


def test_no_row_waits_long_for_others_of_its_kind() -> None:
    slots = Slots(Steps())  # type: ignore[arg-type]

    def job(begin: float, stop: float) -> Job:
        key = Key.root(0)
        state = State(torch.zeros(1, 1), torch.tensor([begin]), (key,), torch.zeros(1, dtype=torch.long))
        proposal = Proposal(Fresh(key), Condition("a"), stop=stop)
        return Job(None, 0, proposal, Cost(), begin, (0.0, 0.25, 0.5, 1.0), state=state)  # type: ignore[arg-type]

    lone = job(0.5, 1.0)
    slots.enter([lone])
    for tick in range(PATIENT + 1):
        slots.enter([job(0.0, 0.25), job(0.0, 0.25)])
        assert not lone.arrived, tick  # there is always a full batch of the others
        slots.step()
        slots.leave([j for j in slots.arrived if j is not lone])
    assert lone.arrived
