"""The SiT benchmark's bookkeeping: jobs, grids that spend what they say, seeds held against the same seeds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from secondlook.bench import sit
from secondlook.bench.sit import DIT, LADDER, QUICK, SIT, Job, Scale, draw, jobs, run_job, sampler
from secondlook.bench.sit_tables import Found, Ordering, ladder, plot
from secondlook.flow.discrete import with_path
from secondlook.flow.estimate import Flow
from secondlook.models.sit import SiT, SiTConfig


def test_every_rung_and_size_has_its_seeds() -> None:
    found = jobs(Scale())
    assert len({j.name for j in found}) == len(found) == 3 * 6 + 3 * 2 + 2 * 2
    assert {j.name for j in found if j.curve} == {f"linear-velocity-B-{s}" for s in range(3)}
    assert found[0].curve
    assert len(jobs(QUICK)) == 6 + 2


@pytest.mark.parametrize("rung", LADDER, ids=lambda r: r.name)
@pytest.mark.parametrize("kind", ["ode", "euler", "kl", "sigma"])
def test_a_sampler_spends_its_evaluations(rung: sit.Rung, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SiTConfig(
        side=8, patch=4, channels=1, width=8, depth=1, heads=1, classes=10, predicts=rung.predicts, path=rung.path
    )
    network = SiT(config).eval().requires_grad_(False)
    spent: list[Flow] = []

    def counted(*args: object) -> Flow:
        spent.append(Flow(*args))  # type: ignore[arg-type]
        return spent[-1]

    monkeypatch.setattr(sit, "Flow", counted)
    solver, times = sampler(rung, kind, 16)
    pictures, labels = draw(network, solver, times, 12)
    assert pictures.shape == (12, 8, 8, 1)
    assert labels.tolist() == [*range(10), 0, 1]
    assert spent[0].meter.nfe == 16
    assert with_path(network)[1].name == rung.path


def written(folder: Path, job: Job, **scores: float) -> None:
    (folder / "jobs").mkdir(exist_ok=True)
    record = {"job": asdict(job), **{k: {"fid": v, "right": 0.5} for k, v in scores.items()}}
    (folder / "jobs" / f"{job.name}.json").write_text(json.dumps(record))


def test_a_seed_is_held_against_itself(tmp_path: Path) -> None:
    for seed, (dit, own) in {0: (5.0, 4.0), 1: (1.0, 0.5), 2: (9.0, 8.0)}.items():
        written(tmp_path, Job(SIT, "B", seed), ode=own, sde=own)
        if seed != 1:
            written(tmp_path, Job(DIT, "B", seed), ode=dit, sde=dit)
    found = Found(tmp_path)
    claim = Ordering("", found.seeds(DIT.name, "B", "sde"), found.seeds(SIT.name, "B", "sde"))
    assert claim.verdict == "holds (+1.00, seeds +1.00, +1.00)"
    assert Ordering("", claim.second, claim.first).verdict.startswith("is reversed")
    assert Ordering("", {0: 1.0, 1: 2.0}, {0: 2.0, 1: 1.0}).verdict.startswith("undecided")
    assert Ordering("", {0: 1.0}, {1: 2.0}).verdict == "not measured"
    assert "| Linear velocity | 4.17 ± 3.75 |" in ladder(found)
    assert plot(found, (8, 16), 1.0) == ""


def test_a_job_is_resumed_and_a_finished_one_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = Scale(steps=2, samples=20, seeds=1, nfe=4, curve=(4,), sizes=("S",))
    job = Job(SIT, "S", 0)
    run_job(job, scale, tmp_path)
    target = tmp_path / "jobs" / f"{job.name}.json"
    first = json.loads(target.read_text())
    assert set(first) == {"job", "ode", "sde"}
    del first["sde"]
    target.write_text(json.dumps(first))
    run_job(job, scale, tmp_path)  # the missing evaluation is made from the kept training
    second = json.loads(target.read_text())
    assert second["ode"] == first["ode"]
    monkeypatch.setattr(sit, "train", lambda *a: pytest.fail("trained again"))
    run_job(job, scale, tmp_path)
    assert torch.get_num_threads() == 1
