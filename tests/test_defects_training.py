"""Regression tests for the numbered defects of SiT's released code in training, checkpoints and evaluation; the others are
in test_defects.py, and docs/sit-defects.md lists all."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from secondlook.calls import bind, parse_call
from secondlook.cli.app import main
from secondlook.disk import team
from secondlook.disk.team import Team
from secondlook.errors import ConfigError, DamagedError
from secondlook.models.checkpoint import save
from secondlook.models.official import from_state_dict, load_sit, read_weights
from secondlook.models.sit import Labels, SiT
from secondlook.noise import Key, normal
from secondlook.sample.npz import Spent, produce
from secondlook.solvers.sde import Diffusion, EulerMaruyama, LossTable
from secondlook.train.classes import Recipe, trainer
from secondlook.train.loop import TrainConfig, Trainer
from secondlook.train.watch import Looks
from secondlook.worlds.folder import open_data
from tests import test_defects
from tests.test_defects import SIT, waking
from tests.test_folder import folder, tiny_vae


@dataclass(frozen=True)
class Blobs:
    """Labelled samples of 2 x 4 x 4, keyed by their place."""

    classes: int = 3

    def batch(self, seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
        keys = [Key.root(seed).child(step, i) for i in range(count)]
        return normal(keys, (2, 4, 4)), torch.arange(count) % self.classes


TRAINING = TrainConfig(steps=6, batch=4, warmup=2, save_every=2, bf16=False, device="cpu")


def trained(folder: File, config: TrainConfig = TRAINING, **more: Any) -> Trainer:
    return trainer(folder, config, SIT, Blobs(), Recipe(), **more)


# Training


def test_defect_17_a_training_resumes_exactly(tmp_path: File) -> None:
    """Weights, optimizer, step, averages and the order of data: as if it had not been stopped."""
    whole, part = trained(tmp_path / "whole"), trained(tmp_path / "part")
    losses = [tick.loss for tick in whole.run()]
    for tick in part.run():
        if tick.step == 3:
            break
    again = trained(tmp_path / "part")
    assert again.step == 2
    assert [tick.loss for tick in again.run()] == losses[2:]
    for a, b in ((whole.module, again.module), (whole.ema.module, again.ema.module)):
        assert all(torch.equal(p, b.state_dict()[k]) for k, p in a.state_dict().items())


def test_defect_18_checkpoints_open_without_running_code(tmp_path: File) -> None:
    """Our own, and the released script's with its pickled Namespace; anything else that is pickled is refused."""
    list(trained(tmp_path / "job", replace(TRAINING, steps=2)).run())
    assert torch.load(tmp_path / "job/state.pt", weights_only=True)["step"] == 2
    state = dict(waking().state_dict())
    torch.save({"model": state, "ema": state, "opt": {}, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "old.pt")
    assert read_weights(tmp_path / "old.pt").keys() == state.keys()
    torch.save({"ema": state, "args": File("x")}, tmp_path / "odd.pt")
    with pytest.raises(DamagedError, match="cannot be read as weights"):
        read_weights(tmp_path / "odd.pt")


def test_defect_19_what_is_trained_can_be_sampled_whatever_the_heads_width(tmp_path: File) -> None:
    """Trained here, saved and loaded; official weights with a head of C or 2 C channels alike."""
    job = trained(tmp_path / "job", replace(TRAINING, steps=2))
    list(job.run())
    module = job.ema.module
    assert isinstance(module, SiT)
    save(module, tmp_path / "weights.safetensors", module.describe())
    x, t, labels = normal([Key.root(1)], (2, 4, 4)), torch.tensor([0.4]), Labels(torch.tensor([1]))
    torch.testing.assert_close(load_sit(tmp_path / "weights.safetensors")(x, t, labels), module(x, t, labels))
    for variance in (False, True):
        sit = waking(replace(SIT, variance=variance))
        assert torch.equal(from_state_dict(sit.state_dict(), heads=2).eval()(x, t, labels), sit(x, t, labels))
        thin = from_state_dict(sit.state_dict(), heads=2, narrow=True).eval()
        torch.testing.assert_close(thin(x, t, labels), sit(x, t, labels))


def test_defect_20_training_asks_the_environment_for_no_account(
    tmp_path: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs with nothing set."""
    for name in ("ENTITY", "PROJECT", "WANDB_KEY", "WANDB_API_KEY", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert len(list(trained(tmp_path, replace(TRAINING, steps=2)).run())) == 2


def test_defect_21_the_null_label_is_the_number_of_classes() -> None:
    """Of any number; a class that is not there is refused before it indexes."""
    for classes in (1, 3, 2000):
        sit = SiT(replace(SIT, classes=classes))
        assert sit.encode([None, 0]).index.tolist() == [classes, 0]
        assert sit(torch.zeros(2, 2, 4, 4), torch.zeros(2), sit.encode([None, classes - 1])).shape == (2, 2, 4, 4)
        with pytest.raises(ConfigError, match="class must be"):
            sit.encode([classes + 1])


def test_defect_22_looks_at_a_training_take_no_gradients_and_are_kept(tmp_path: File) -> None:
    """Pictures go to the training's folder, without any other service."""
    seen: list[tuple[bool, bool]] = []

    def sheet(network: Any) -> Image.Image:
        seen.append((torch.is_grad_enabled(), any(p.requires_grad for p in network.parameters())))
        return Image.fromarray(np.zeros((4, 4, 3), np.uint8))

    list(trained(tmp_path, replace(TRAINING, look_every=4), looks=Looks(sheet)).run())
    assert seen == [(False, False)] * 2
    assert [p.name for p in sorted(tmp_path.glob("samples-*.png"))] == ["samples-000004.png", "samples-000006.png"]


def test_defect_23_the_device_is_the_launchers_local_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 9 of processes that go by fives to machines of eight GPUs is number 4 on its own; 9 % 8 would be taken twice."""
    for name, value in (("RANK", "9"), ("WORLD_SIZE", "10"), ("LOCAL_RANK", "4")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(team, "usable", torch.device)  # there need be no such GPU here
    assert Team.here().device(None) == torch.device("cuda:4")
    assert Team.here().device("cuda:6") == torch.device("cuda:6")


def test_defect_24_fixed_tables_are_not_averaged(tmp_path: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """The averaged network holds the positional table to the bit, even one that changes on the way; the weights are averaged
    in one call a step."""
    calls: list[int] = []
    lerp = torch._foreach_lerp_

    def counted(tensors: Any, *more: Any) -> None:
        calls.append(len(tensors))
        lerp(tensors, *more)

    monkeypatch.setattr(torch, "_foreach_lerp_", counted)
    job = trained(tmp_path)
    table = job.module.get_buffer("pos_embed")
    for tick in job.run():
        if tick.step == 3:
            table.add_(1.0)
    assert "pos_embed" not in dict(job.module.named_parameters())
    assert torch.equal(job.ema.module.get_buffer("pos_embed"), table)
    name, weight = next(iter(job.module.named_parameters()))
    assert not torch.equal(job.ema.module.get_parameter(name), weight)
    assert calls == [len(list(job.module.parameters()))] * TRAINING.steps


def test_defect_25_a_training_logs_what_samplers_need(tmp_path: File) -> None:
    """The loss by time, as kl_eta reads it, and at every step the loss, the gradient's norm and the rate."""
    list(trained(tmp_path).run())
    table = LossTable.read(str(tmp_path / "loss-by-time.json"))
    solver = EulerMaruyama(diffusion="kl_eta", eta=1e-2, losses=str(tmp_path / "loss-by-time.json"))
    assert solver.form == Diffusion("kl_eta", eta=1e-2, losses=table)
    lines = [json.loads(line) for line in (tmp_path / "loss.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(line[k]) for line in lines for k in ("loss", "grad_norm", "rate"))
    assert lines[0]["rate"] < lines[1]["rate"]


@pytest.mark.parametrize(
    "words", [["sample", "a circle", "--out", "x.png", "--stepz", "3"], ["train", "scenes", "--out", "x", "--lrr", "1"]]
)
def test_defect_26_unknown_options_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line and in call-strings."""
    assert main(words) == 2
    assert words[-2] in capsys.readouterr().err
    with pytest.raises(ConfigError, match='no option "nrom"'):
        bind(parse_call("sde(nrom=1.0)", "solver"), EulerMaruyama)


# The rest


@pytest.mark.parametrize("how", ["cast", "autocast", "checkpointing"])
def test_defect_28_reduced_precision_and_recomputed_blocks_run(how: str) -> None:
    """A network that is cast to bfloat16 as a whole, one under autocast, one that recomputes its blocks."""
    sit, labels, t = waking(), Labels(torch.tensor([0, 3])), torch.tensor([0.2, 0.7])
    x = normal([Key.root(1), Key.root(2)], (2, 4, 4))
    want = sit(x, t, labels)
    if how == "checkpointing":
        sit.train().requires_grad_().checkpointing = True
        sit(x, t, labels).square().mean().backward()
        assert all(p.grad is not None for p in sit.parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        got = sit.bfloat16()(x.bfloat16(), t, labels) if how == "cast" else sit(x, t, labels)
    assert float((got.detach().float() - want).norm() / want.norm()) < (0.05 if "cast" in how else 1e-6)


def test_defect_29_pictures_are_encoded_once_for_all_epochs(tmp_path: File) -> None:
    """Each picture and its mirror image once; trainings through several epochs need neither pictures nor autoencoder."""
    source, vae, out = folder(tmp_path / "d", {"a": 3, "b": 2}), tiny_vae(tmp_path / "vae"), tmp_path / "latents"
    assert main(["encode", str(source), "--vae", str(vae), "--size", "16", "--out", str(out)]) == 0
    shutil.rmtree(source)
    shutil.rmtree(vae)
    data = open_data(out)
    job = trainer(tmp_path / "job", TRAINING, replace(SIT, side=8, channels=4, classes=2), data, Recipe())
    assert len(list(job.run())) * TRAINING.batch > 4 * len(data)
    made = [np.load(part) for part in out.glob("0*.npy")]
    assert (len(data), sum(len(part) for part in made)) == (5, 5)
    assert {part.shape[1:3] for part in made} == {(2, 2)}  # plain and mirrored, mean and deviation


def test_defect_31_samples_are_resumed_and_runs_do_not_collide(tmp_path: File) -> None:
    """Shards that are there are not drawn again; the same file under other settings is refused."""
    drawn: list[int] = []

    def draw(index: Sequence[int]) -> tuple[np.ndarray, Spent]:
        drawn.extend(index)
        if len(drawn) == 6:
            raise KeyboardInterrupt
        return np.full((len(index), 4, 4, 3), index[0], np.uint8), Spent(len(index), len(index))

    out, labels = tmp_path / "samples.npz", np.zeros(8, np.int64)
    with pytest.raises(KeyboardInterrupt):
        produce(out, {"seed": 0}, labels, draw, per=2, quiet=True)
    produce(out, {"seed": 0}, labels, draw, per=2, quiet=True)
    assert drawn == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]
    assert np.load(out)["arr_0"][:, 0, 0, 0].tolist() == [0, 0, 2, 2, 4, 4, 6, 6]
    with pytest.raises(ConfigError, match="was made with seed 0, not 1"):
        produce(out, {"seed": 1}, labels, draw, per=2, quiet=True)


@pytest.mark.parametrize(("side", "patch", "channels"), [(4, 2, 1), (6, 3, 3), (20, 4, 16)])
def test_defect_33_sides_patches_and_channels_are_free(side: int, patch: int, channels: int) -> None:
    """Pictures or latents of any square size; the width of what is loaded is read off its shapes."""
    sit = waking(replace(SIT, side=side, patch=patch, channels=channels))
    again = from_state_dict(sit.state_dict(), heads=2).eval()
    x, labels = normal([Key.root(1)], (channels, side, side)), Labels(torch.tensor([2]))
    assert torch.equal(again(x, torch.tensor([0.5]), labels), sit(x, torch.tensor([0.5]), labels))


def test_every_defect_is_answered_in_the_table() -> None:
    """docs/sit-defects.md has a row for each number, and names the tests here and no others."""
    rows = [line.split("|") for line in (File(__file__).parents[1] / "docs/sit-defects.md").read_text().splitlines()
            if line.startswith("| ") and line.split("|")[1].strip().isdigit()]  # fmt: skip
    assert [int(row[1]) for row in rows] == list(range(1, 34))
    found = [name for name in (*globals(), *vars(test_defects)) if name.startswith("test_defect_")]
    here = {name: int(name.split("_")[2]) for name in found}
    named = {
        word.strip("`"): int(row[1]) for row in rows for word in row[3].split() if word.startswith("`test_defect_")
    }
    assert named == here
