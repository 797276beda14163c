"""The training loop: exact resume, schedule, a stop at the first non-finite loss; the Scenes batches."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secondlook.cli.app import main
from secondlook.errors import ConfigError, SecondlookError
from secondlook.train import command
from secondlook.train.loop import Tick, TrainConfig, Trainer, rate
from secondlook.train.scenes import batch, trainer
from secondlook.worlds.scenes.checker import check
from secondlook.worlds.scenes.grammar import parse

CONFIG = TrainConfig(steps=8, batch=4, warmup=2, save_every=3, bf16=False)


def toy(folder: Path, config: TrainConfig = CONFIG) -> Trainer:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 1))

    def loss(forward: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(4, 3, generator=generator)
        return (forward(x) - x.sum(1, keepdim=True)).square().mean()

    return Trainer(module, loss, config, folder)


def test_resume_gives_the_same_weights_and_losses(tmp_path: Path) -> None:
    whole = toy(tmp_path / "whole")
    losses = [t.loss for t in whole.run()]
    part = toy(tmp_path / "part")
    first = []
    for tick in part.run():
        first.append(tick.loss)
        if tick.step == 5:  # two steps past the last save: they are done again
            break
    again = toy(tmp_path / "part")
    assert again.step == 3
    rest = [t.loss for t in again.run()]
    assert first[:3] + rest == losses
    for a, b in ((whole.module, again.module), (whole.ema.module, again.ema.module)):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_other_settings_are_refused(tmp_path: Path) -> None:
    list(toy(tmp_path).run())
    with pytest.raises(ConfigError, match="other settings"):
        toy(tmp_path, TrainConfig(steps=9, batch=4))


def test_non_finite_loss_stops_with_a_sentence(tmp_path: Path) -> None:
    job = toy(tmp_path)
    job.loss = lambda forward, step, generator: forward(torch.full((1, 3), float("nan"))).mean()
    with pytest.raises(SecondlookError, match="became nan at step 0"):
        next(job.run())


def test_rate_warms_up_holds_and_falls() -> None:
    c = TrainConfig(steps=100, warmup=10, hold=0.5, final=0.1)
    heights = [rate(c, s) for s in range(101)]
    assert heights[0] == pytest.approx(0.1)
    assert heights[10:51] == [1.0] * 41
    assert heights[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(heights[50:]))


def test_batches_depend_on_seed_and_step_only_and_are_right() -> None:
    texts, x = batch(0, 7, 24)
    again, y = batch(0, 7, 24)
    assert texts == again
    assert torch.equal(x, y)
    assert batch(0, 8, 24)[0] != texts
    assert not any(parse(t).held_out for t in texts)
    pictures = ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert check(pictures, [parse(t) for t in texts]).mean() > 0.9


@pytest.mark.slow
def test_a_few_steps_of_the_base_resume_exactly(tmp_path: Path) -> None:
    config = TrainConfig(steps=4, batch=8, save_every=2)
    whole = trainer(tmp_path / "a", config)
    losses = [t.loss for t in whole.run()]
    part = trainer(tmp_path / "b", config)
    for tick in part.run():
        if tick.step == 3:
            break
    assert [t.loss for t in trainer(tmp_path / "b", config).run()] == losses[2:]


def test_train_command_writes_weights_that_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "scenes", "--out", str(tmp_path / "job"), "--steps", "2", "--batch", "4"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["pictures"] == 8
    sheet = tmp_path / "sheet.png"
    words = ["sample", "a red circle", "--count", "2", "--steps", "2", "--out", str(sheet)]
    assert main([*words, "--model", facts["weights"]]) == 0
    assert sheet.exists()


def test_ctrl_c_in_the_training_of_the_base_saves_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step under way is finished and saved, and the same command goes on after it."""
    words = ["train", "scenes", "--out", str(tmp_path / "job"), "--steps", "3", "--batch", "2"]

    def interrupted(ticks: Iterable[Tick], *more: Any) -> Iterator[Tick]:
        for tick in ticks:
            if tick.step == 2:
                signal.raise_signal(signal.SIGINT)
            yield tick

    with monkeypatch.context() as patched:
        patched.setattr(command, "reported", interrupted)
        assert main(words) == 130
    assert "stopped after step 2; the same command goes on" in capsys.readouterr().err
    assert torch.load(tmp_path / "job" / "state.pt", weights_only=True)["step"] == 2
    assert not (tmp_path / "job" / "weights.safetensors").exists()
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 3
    steps = [json.loads(line)["step"] for line in (tmp_path / "job" / "loss.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


@pytest.mark.parametrize(
    "words", [["train", "scene"], ["train", "scenes", "--steps", "0"], ["train", "scenes", "--predicts", "x0"]]
)
def test_bad_training_words(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--out", str(tmp_path / "job")]) == 2
    assert not (tmp_path / "job").exists()
    assert "Traceback" not in capsys.readouterr().err
