"""Verifiers that read the time of the data estimate that they are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from secondlook.engine.record import Record
from secondlook.engine.rescore import judge_all
from secondlook.engine.store import Store
from secondlook.flow.grid import grid
from secondlook.models.text import TextSiT
from secondlook.testing import VerifierContract
from secondlook.types import Condition, Verifier
from tests.helpers import STEPS, drive, tasks, tiny_rig

GRID = grid(STEPS, 3.0)


class Clock:
    """Its score is the time that it was told; a picture without one counts as finished."""

    name = "clock"
    reads_time = True

    def __call__(
        self, samples: Tensor, conditions: Sequence[Condition], times: Sequence[float] | None = None
    ) -> Tensor:
        return torch.tensor([1.0] * len(samples) if times is None else list(times), dtype=torch.float64)


class TestClock(VerifierContract):
    def made(self) -> Verifier:
        return Clock()


def told(network: TextSiT, folder: Path, solver: str) -> dict[tuple[float, str], set[float | None]]:
    """By stop and look, the times that were told."""
    record = drive(folder, tiny_rig(network, verifier=Clock(), solver=solver), "calibrate(n=2)")
    found: dict[tuple[float, str], set[float | None]] = {}
    for o in record.of(0):
        found.setdefault((o.proposal.stop, o.proposal.look), set()).add(o.score)
    return found


def test_a_paid_look_is_told_its_stop_and_a_finished_picture_one(network: TextSiT, tmp_path: Path) -> None:
    found = told(network, tmp_path / "run", "euler")
    assert all(found[t, "paid"] == {t} for t in GRID[1:-1])
    assert found[1.0, "paid"] == {1.0}


@pytest.mark.parametrize(("solver", "behind"), [("euler", 1), ("heun", 0)])
def test_a_free_look_is_told_when_the_last_step_made_its_estimate(
    network: TextSiT, tmp_path: Path, solver: str, behind: int
) -> None:
    found = told(network, tmp_path / "run", solver)
    assert len(GRID) > 3
    assert all(found[t, "free"] == {GRID[i - behind]} for i, t in enumerate(GRID) if 0 < t < 1)


def test_held_out_judges_are_told_the_time_too(network: TextSiT, tmp_path: Path) -> None:
    rig = tiny_rig(network)
    rig.judges["clock"] = Clock()
    record = drive(tmp_path / "run", rig, "halving(n=4, looks=1)", nfe=40)
    for o in record.of(0):
        assert record.said(o.id)["clock"] == o.proposal.stop


def test_asked_again_of_a_free_look_a_verifier_is_told_that_the_time_is_unknown(
    network: TextSiT, tmp_path: Path
) -> None:
    drive(tmp_path / "run", tiny_rig(network), "calibrate(n=2)")
    store = Store.open(tmp_path / "run")
    with store.writing():
        judge_all(store, "clock", Clock(), tasks())
    record = Record.read(store)
    for o in record.of(0):
        said = record.said(o.id)["clock"]
        free = not o.finished and o.proposal.look == "free"
        assert math.isnan(said) if free else said == o.proposal.stop
