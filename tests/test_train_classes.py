"""Training of class-conditional SiT: the paper's recipe, micro-batches, processes, exact resume, what is left behind."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secondlook.cli.app import main
from secondlook.errors import ConfigError, MissingExtra, SecondlookError
from secondlook.flow.estimate import Flow
from secondlook.flow.path import PATHS
from secondlook.models.ema import EMA
from secondlook.models.sit import Labels, SiT, SiTConfig
from secondlook.solvers.sde import LossTable
from secondlook.train import presets
from secondlook.train.classes import Objective, Recipe, Times, trainer
from secondlook.train.loop import ByRows, Rows, TrainConfig, Trainer, rate
from secondlook.train.watch import ByTime, Looks
from secondlook.worlds.digits import Digits

ROOT = Path(__file__).resolve().parents[1]
TINY = SiTConfig(side=8, patch=4, channels=1, width=16, depth=1, heads=2, classes=10)
CONFIG = TrainConfig(steps=6, batch=8, warmup=2, save_every=2, bf16=False)
MODEL = ["--model", "sit(width=16, depth=1, heads=2, patch=4)", "--batch", "8", "--device", "cpu"]


class Ones:
    """Samples of ones, all of class 0: their velocity on a linear path is 1 - noise."""

    name = "ones"

    def batch(self, seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
        return torch.ones(count, 1, 8, 8), torch.zeros(count, dtype=torch.long)


def job(
    folder: Path, config: TrainConfig = CONFIG, sit: SiTConfig = TINY, recipe: Recipe | None = None, **more: Any
) -> Trainer:
    return trainer(folder, config, sit, Digits(), recipe or Recipe(), **more)


def losses(work: Trainer) -> list[float]:
    return [tick.loss for tick in work.run()]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# ---- the recipe ------------------------------------------------------------------------------------------------------


def test_the_papers_recipe(tmp_path: Path) -> None:
    c = TrainConfig.paper(steps=400_000)
    assert (c.batch, c.ema, c.clip, c.bf16, c.accumulate) == (256, 0.9999, 0.0, False, 1)
    assert [rate(c, s) for s in (0, 1, 200_000, 399_999)] == [1.0] * 4
    [optimizer] = job(tmp_path, replace(c, batch=8)).optimizers
    assert isinstance(optimizer, torch.optim.AdamW)
    [group] = optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 1e-8, 0.0)
    assert Recipe() == Recipe("none", Times("uniform"), 0.1, "paper", None)
    folder = presets.training(presets.PRESETS["folder"])
    assert replace(folder, save_every=250, look_every=0, bf16=False) == c


def test_first_and_last_layers_are_not_muons(tmp_path: Path) -> None:
    work = job(tmp_path)
    adam, muon = work.optimizers
    names = {id(p): n for n, p in work.module.named_parameters()}
    hidden = {names[id(p)] for p in muon.param_groups[0]["params"]}
    assert "final_layer.linear.weight" not in hidden
    assert {"blocks.0.attn.qkv.weight", "blocks.0.adaLN_modulation.1.weight"} <= hidden
    assert "y_embedder.embedding_table.weight" in {names[id(p)] for p in adam.param_groups[0]["params"]}


def test_ema_with_and_without_ramp_copies_buffers() -> None:
    module = nn.BatchNorm1d(2)
    for ramp, decay in ((True, 0.1), (False, 0.9)):
        shadow = EMA(module, 0.9, ramp)
        changed = nn.BatchNorm1d(2)
        nn.init.constant_(changed.weight, 3.0)
        changed.running_mean = torch.full((2,), 7.0)
        shadow.update(changed, 0)
        weight, mean = shadow.module.get_parameter("weight"), shadow.module.get_buffer("running_mean")
        torch.testing.assert_close(weight, torch.full((2,), decay * 1.0 + (1 - decay) * 3.0))
        assert mean.tolist() == [7.0, 7.0]


def test_fixed_tables_do_not_drift(tmp_path: Path) -> None:
    work = job(tmp_path)
    losses(work)
    assert torch.equal(work.ema.module.get_buffer("pos_embed"), SiT(TINY).pos_embed)


# ---- micro-batches, processes, resume --------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_micro_batches_give_the_whole_batchs_step(optimizer: str, tmp_path: Path) -> None:
    """Three parts of eight rows are of unequal size."""
    config = replace(CONFIG, optimizer=optimizer, steps=10)
    whole = job(tmp_path / "whole", config)
    parts = job(tmp_path / "parts", replace(config, accumulate=3))
    torch.testing.assert_close(losses(parts), losses(whole), rtol=0, atol=5e-6)
    most = 1e-5 if optimizer == "adamw" else 1e-4  # Muon orthogonalises in bfloat16
    for p, q in zip(whole.module.parameters(), parts.module.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=most)


@pytest.mark.parametrize("options", [{"optimizer": "adamw", "lr": 1e-3, "hold": 1.0}, {"accumulate": 2}])
def test_resume_is_exact(options: dict[str, Any], tmp_path: Path) -> None:
    """Weights, averages, optimizer, order of the data and noise: the losses and the files are the same, bit for bit."""
    config = replace(CONFIG, save_every=4, **options)
    whole = job(tmp_path / "whole", config)
    every = losses(whole)
    part = job(tmp_path / "part", config)
    for tick in part.run():
        if tick.step == 5:  # one step past the last save
            break
    again = job(tmp_path / "part", config)
    assert again.step == 4
    assert losses(again) == every[4:]
    assert same(whole.module, again.module)
    assert same(whole.ema.module, again.ema.module)
    lines = [json.loads(line) for line in (tmp_path / "part" / "loss.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]  # step 5 is there once
    assert {"loss", "grad_norm", "rate", "seconds"} <= lines[0].keys()
    tables = [(tmp_path / name / "loss-by-time.json").read_text() for name in ("whole", "part")]
    assert tables[0] == tables[1]


def test_drawing_ahead_changes_nothing(tmp_path: Path) -> None:
    ahead = job(tmp_path / "ahead", replace(CONFIG, log_every=4))
    ahead.ahead = True
    assert losses(ahead) == losses(job(tmp_path / "plain"))


def test_resume_with_another_model_recipe_or_data_is_refused(tmp_path: Path) -> None:
    losses(job(tmp_path, replace(CONFIG, steps=1)))
    one = replace(CONFIG, steps=1)
    for refused in (
        lambda: job(tmp_path, one, replace(TINY, width=32)),
        lambda: job(tmp_path, one, recipe=Recipe(weight="velocity")),
        lambda: trainer(tmp_path, one, TINY, Ones()),
        lambda: job(tmp_path, replace(one, optimizer="adamw")),
    ):
        with pytest.raises(ConfigError, match="other settings"):
            refused()
    assert job(tmp_path, replace(one, save_every=7, log_every=3)).step == 1


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Twenty steps by two gloo processes, two micro-batches each, and by one: the same loss curve to 1e-5."""
    words = ["train", "digits", *MODEL, "--steps", "20", "--no-bf16", "--seed", "3", "--look-every", "0"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "secondlook", *words, "--accumulate", "2", "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["processes"] == 2  # one line: the first process alone writes
    curves = []
    for name in ("one", "two"):
        lines = (tmp_path / name / "loss.jsonl").read_text().splitlines()
        curves.append([json.loads(line)["loss"] for line in lines])
    assert len(curves[0]) == len(curves[1]) == 20
    torch.testing.assert_close(curves[1], curves[0], rtol=0, atol=1e-5)
    assert max(curves[0]) - min(curves[0]) > 0.05
    tables = [json.loads((tmp_path / name / "loss-by-time.json").read_text()) for name in ("one", "two")]
    torch.testing.assert_close(tables[1]["losses"], tables[0]["losses"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("world", "ended"), [("1", "ended"), ("2", "")])
def test_one_of_several_processes_leaves_before_the_interpreter_ends(world: str, ended: str) -> None:
    """A thread of gloo that lets go of a tensor at the interpreter's end aborts the process."""
    code = (
        "import atexit, sys\nfrom secondlook.cli.app import program\n"
        "atexit.register(lambda: print('ended', file=sys.stderr))\n"
        "sys.argv = ['secondlook', 'list', 'nothing of the kind']\nprogram()"
    )
    environment = {**os.environ, "WORLD_SIZE": world, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("secondlook: ")
    assert done.stderr.splitlines()[1:] == [ended] * bool(ended)


def test_several_processes_want_accelerate_and_one_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    losses(job(tmp_path / "one", replace(CONFIG, steps=1)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MissingExtra, match=r"pip install 'secondlook\[train\]'"):
        job(tmp_path / "two")
    with pytest.raises(ConfigError, match="runs in one process; 2 were started"):
        Trainer(SiT(TINY), lambda forward, step, generator: torch.zeros(()), CONFIG, tmp_path / "whole")


# ---- stops -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_every", [1, 3])
def test_a_loss_that_is_not_finite_stops_and_the_last_save_is_whole(log_every: int, tmp_path: Path) -> None:
    work = job(tmp_path, replace(CONFIG, log_every=log_every, save_every=3))
    assert isinstance(work.loss, ByRows)
    good = work.loss

    def broken(step: int, generator: torch.Generator, rows: slice) -> tuple[Tensor, ...]:
        x, *rest = good.draw(step, generator, rows)
        return x * (math.nan if step == 4 else 1.0), *rest

    work.loss = ByRows(broken, good.rows)
    with pytest.raises(SecondlookError, match="The loss became nan at step 4; the weights of the last save are whole"):
        losses(work)
    kept = job(tmp_path, replace(CONFIG, save_every=3))
    assert kept.step == 3
    assert all(bool(p.isfinite().all()) for p in kept.module.parameters())
    if log_every == 1:  # seen before the step was taken
        assert all(bool(p.isfinite().all()) for p in work.module.parameters())


def test_a_gradient_that_is_not_finite_stops(tmp_path: Path) -> None:
    module = nn.Linear(1, 1, bias=False)

    def rows(forward: nn.Module, x: Tensor) -> Rows:
        return Rows(forward(x).abs()[:, 0].sqrt())  # at 0 the slope is infinite

    work = Trainer(module, ByRows(lambda step, g, rows: (torch.zeros(4, 1)[rows],), rows),
                   replace(CONFIG, batch=4, clip=0.0, optimizer="adamw"), tmp_path)  # fmt: skip
    before = module.weight.clone()
    with pytest.raises(SecondlookError, match="The gradient's norm became nan at step 0"):
        losses(work)
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, 'no optimizer "adam"; did you mean "adamw"'),
        ({"accumulate": 0}, "accumulate must be at least 1; got 0"),
        ({"clip": -1.0}, "clip must be 0 or above"),
        ({"ema": 1.5}, "ema lies in 0 to 1"),
        ({"accumulate": 9}, "A batch of 8 cannot be cut into 9 micro-batches"),
        ({"device": "abacus"}, 'The device "abacus" cannot be used'),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        job(tmp_path / "job", replace(CONFIG, **options))
    assert not (tmp_path / "job").exists()


# ---- the loss by time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["linear", "gvp"])
@pytest.mark.parametrize("predicts", ["velocity", "data"])
def test_loss_by_time_of_a_network_with_a_known_error(path: str, predicts: str, tmp_path: Path) -> None:
    """A network held at its first output, 0, on samples of ones: at time t its velocity's squared error is d_alpha^2 +
    d_sigma^2 where it predicts velocities and (d_alpha - d_sigma alpha / sigma)^2 where it predicts data."""
    sit = replace(TINY, predicts=predicts, path=path)  # type: ignore[arg-type]
    config = TrainConfig(steps=12, batch=256, lr=0.0, muon_lr=0.0, bf16=False)
    work = trainer(tmp_path, config, sit, Ones(), Recipe(floor=0.05))
    losses(work)
    table = LossTable.read(str(tmp_path / "loss-by-time.json"))
    assert len(table.times) == 20
    assert table.times[0] == pytest.approx(0.025)
    t = torch.tensor(table.times, dtype=torch.float64)
    c = PATHS[path]().coefs(t)
    known = c.d_alpha**2 + c.d_sigma**2 if predicts == "velocity" else (c.d_alpha - c.d_sigma * c.alpha / c.sigma) ** 2
    near = slice(0, 14)  # a bin's mean is its middle's value where the curve is gentle
    torch.testing.assert_close(torch.tensor(table.losses)[near].double(), known[near], rtol=0.1, atol=0.0)


def test_loss_by_time_forgets(tmp_path: Path) -> None:
    bins = ByTime(memory=2.0, device=torch.device("cpu"), bins=4)
    for error in (8.0, 2.0):
        bins.age()
        bins.add(torch.tensor([0.1, 1.0]), torch.tensor([error, 1.0]))
    keep = math.exp(-0.5)
    expected = (8.0 * keep + 2.0) / (keep + 1.0)
    assert bins.table() == {"times": [0.125, 0.875], "losses": [pytest.approx(expected), pytest.approx(1.0)]}


@pytest.mark.parametrize("predicts", ["velocity", "noise", "logp_grad", "data"])
@pytest.mark.parametrize("weight", ["none", "velocity", "likelihood"])
def test_rows_are_the_flows_loss(predicts: str, weight: str) -> None:
    sit = replace(TINY, predicts=predicts, path="vp")  # type: ignore[arg-type]
    torch.manual_seed(0)
    module = SiT(sit)
    for p in module.parameters():
        nn.init.normal_(p, std=0.05)
    x, index = Digits().batch(0, 0, 8)
    t, noise = torch.linspace(0.05, 0.9, 8), torch.randn(8, 1, 8, 8)
    rows = Objective(sit, Recipe(weight=weight, floor=0.05)).rows(module, x, index, t, noise)  # type: ignore[arg-type]
    flow = Flow(module, PATHS["vp"]())
    torch.testing.assert_close(rows.loss, flow.loss(x, noise, t, Labels(index), weight, 0.05))  # type: ignore[arg-type]
    torch.testing.assert_close(rows.velocity, flow.loss(x, noise, t, Labels(index), "velocity", 0.05).detach())


# ---- looks -----------------------------------------------------------------------------------------------------------


def test_looks_see_the_averaged_weights_without_gradients(tmp_path: Path) -> None:
    seen: list[int] = []
    x, labels = Digits().encode(Digits().test()[0][:20]), Digits().test()[1][:20]
    check = Objective(TINY, Recipe()).validation(x, labels)

    def count(network: SiT) -> dict[str, float]:
        assert network is work.ema.module
        assert not torch.is_grad_enabled()
        seen.append(work.step)
        return {"odd": math.nan}

    work = job(tmp_path, replace(CONFIG, look_every=4), looks=Looks(None, (count, check)))
    losses(work)
    assert seen == [4, 6]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 6]
    assert lines[0]["odd"] is None
    assert lines[-1]["validation_loss"] == pytest.approx(check(work.ema.module)["validation_loss"], rel=1e-6)
    assert lines[-1]["validation_loss"] != lines[0]["validation_loss"]
