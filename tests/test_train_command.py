"""`secondlook train` for digits, glyphs and folders of pictures, as it is typed: what it makes, what it refuses."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from secondlook.cli.app import main
from secondlook.errors import ConfigError
from secondlook.models.checkpoint import load, load_sit, load_text
from secondlook.models.sit import SiT
from secondlook.train import classifiers

MODEL = ["--model", "sit(width=16, depth=1, heads=2, patch=4)", "--batch", "8", "--device", "cpu"]


def test_train_digits_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "train",
        "digits",
        *MODEL,
        "--steps",
        "3",
        "--look-every",
        "2",
        "--tensorboard",
        "--out",
        str(tmp_path / "job"),
    ]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["steps"], facts["pictures"]) == (3, 24)
    names = {p.name for p in (tmp_path / "job").iterdir()}
    assert names >= {
        "weights.safetensors",
        "loss.jsonl",
        "metrics.jsonl",
        "loss-by-time.json",
        "samples-000003.png",
        "tensorboard",
    }
    assert list((tmp_path / "job" / "tensorboard").iterdir())
    network = load_sit(Path(facts["weights"]))
    c = network.config
    assert (c.side, c.patch, c.channels, c.width, c.depth, c.classes) == (8, 4, 1, 16, 1, 10)
    assert isinstance(load(Path(facts["weights"])), SiT)
    with pytest.raises(ConfigError, match='hold a "sit"; a "text-sit" was expected'):
        load_text(Path(facts["weights"]))
    assert main(words) == 0  # the same command again has nothing left to do
    assert json.loads(capsys.readouterr().out)["steps"] == 3


def test_train_glyphs_with_every_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "glyphs", "--model", "sit(width=16, depth=1, heads=2, patch=16)", "--batch", "6", "--steps", "2",
             "--device", "cpu", "--path", "gvp", "--predicts", "score", "--weight", "velocity",
             "--times", "logit_normal(mean=-0.5, std=1.5)", "--interval", "official", "--eps", "0.01", "--dropout", "0.2",
             "--optimizer", "adamw", "--lr", "0.001", "--warmup", "1", "--ema", "0.9", "--clip", "0.5", "--accumulate", "2",
             "--checkpointing", "--bf16", "--no-compile", "--seed", "5", "--look-every", "0", "--log-every", "2",
             "--save-every", "2", "--out", str(tmp_path)]  # fmt: skip
    assert main(words) == 0, capsys.readouterr().err
    config = load_sit(tmp_path / "weights.safetensors").config
    assert (config.path, config.predicts, config.side, config.classes) == ("gvp", "logp_grad", 32, 32)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (saved["config"]["bf16"], saved["config"]["clip"], saved["about"]["recipe"]["eps"]) == (True, 0.5, 0.01)


def test_compiled_training_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compile(module: nn.Module) -> nn.Module:
        asked.append(module)
        return module

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert (
        main(["train", "digits", *MODEL, "--steps", "1", "--compile", "--look-every", "0", "--out", str(tmp_path)]) == 0
    )
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digit"], 'no training of "digit"; did you mean "digits"'),
        (["digits", "--path", "lineal"], 'no path "lineal"; did you mean "linear"'),
        (["digits", "--predicts", "x0"], "--predicts expects velocity, noise, data, score"),
        (["digits", "--weight", "heavy"], 'no loss weight "heavy"'),
        (["digits", "--times", "logit_normal(sd=1)"], 'no option "sd"'),
        (["digits", "--times", "beta"], "Times are"),
        (["digits", "--interval", "papre"], 'no preset "papre"'),
        (["digits", "--model", "SiT-M/2"], 'no model size "SiT-M/2"'),
        (["digits", "--model", "SiT-S/8", "--steps", "0"], "--steps must be at least 1"),
        (["digits", "--model", "sit(side=16)"], "side comes from the data"),
        (["digits", "--model", "sit(patch=3)"], "cannot be cut into patches of 3"),
        (["digits", "--model", "unet(width=3)"], "--model expects a name such as"),
        (["digits", "--optimizer", "sgd"], 'no optimizer "sgd"'),
        (["digits", "--samples", "x.npz"], "`train digits` takes no --samples"),
        (["digits", "--data", "x"], "makes its own data"),
        (["digits", "--ematic", "1"], 'no option "--ematic"'),
        (["scenes", "--path", "gvp"], "`train scenes` takes no --path"),
        (["digits-judge", "--lr", "1"], "`train digits-judge` takes no --lr; it takes --steps, --seed"),
        (["folder"], "Say which folder"),
        (["digits", "--seed", "-1"], "--seed must be from 0"),
    ],
)
def test_training_words_that_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words, "--out", str(tmp_path / "job")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "job").exists()


def test_classifiers_are_trained_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def train(*words: Any) -> Path:
        asked.append(words)
        return tmp_path / "weights"

    monkeypatch.setattr(classifiers, "train_classifier", train)
    assert main(["train", "glyphs-features", "--steps", "2", "--out", str(tmp_path)]) == 0
    assert asked == [("glyphs", "features", tmp_path, 0, 2)]
    assert json.loads(capsys.readouterr().out) == {"weights": str(tmp_path / "weights")}


def test_train_on_a_folder_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (20, 18), (40 * i, 90, 200)).save(tmp_path / "data" / name / f"{i}.png")
    words = ["train", f"folder:{tmp_path / 'data'}", "--size", "16", *MODEL, "--steps", "2", "--look-every", "2"]
    assert main([*words, "--out", str(tmp_path / "job")]) == 0, capsys.readouterr().err
    config = load_sit(tmp_path / "job" / "weights.safetensors").config
    assert (config.classes, config.side, config.channels) == (2, 16, 3)
    assert (tmp_path / "job" / "samples-000002.png").exists()


def test_a_dit_is_trained_on_discrete_steps_and_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its head learns the variance, its weights say their path, and the samplers of discrete steps take them."""
    words = ["train", "digits", *MODEL, "--path", "discrete", "--steps", "3", "--look-every", "3"]
    assert main([*words, "--out", str(tmp_path / "job")]) == 0, capsys.readouterr().err
    weights = tmp_path / "job" / "weights.safetensors"
    config = load_sit(weights).config
    assert (config.path, config.predicts, config.variance) == ("discrete", "noise", True)
    for solver in ("ddpm", "ddim(eta=0.5)", "heun"):
        out = tmp_path / "sheet.png"
        assert (
            main(
                [
                    "sample",
                    "--model",
                    str(weights),
                    "--solver",
                    solver,
                    "--steps",
                    "4",
                    "--count",
                    "3",
                    "--out",
                    str(out),
                ]
            )
            == 0
        )
        assert Image.open(out).size[0] > 0
    assert main([*words, "--weight", "velocity", "--out", str(tmp_path / "other")]) == 2
    assert "--weight has no meaning on discrete steps" in capsys.readouterr().err


def test_trained_weights_know_their_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", *MODEL, "--steps", "1", "--look-every", "0", "--out", str(tmp_path / "job")]) == 0
    weights, out = tmp_path / "job" / "weights.safetensors", tmp_path / "sheet.png"
    assert (
        main(["sample", "--model", str(weights), "--class", "7", "--steps", "2", "--count", "2", "--out", str(out)])
        == 0
    ), capsys.readouterr().err


def test_ctrl_c_saves_the_step_and_the_same_command_goes_on(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "secondlook", "train", "digits", *MODEL, "--steps", "400", "--look-every", "0"]
    words += ["--save-every", "100000", "--out", str(tmp_path / "job")]
    job = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "job" / "loss.jsonl", time.monotonic() + 120
    assert job.stderr is not None
    first = job.stderr.readline()  # the line after fifty steps
    job.send_signal(signal.SIGINT)
    rest = job.stderr.read()
    assert job.wait() == 130, first + rest
    found = re.search(r"stopped after step (\d+); the same command goes on", rest)
    assert found, rest
    assert time.monotonic() < deadline
    subprocess.run(words, check=True, capture_output=True)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 401))


def test_without_dropped_labels_there_is_no_null_class_to_guide_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "train",
                "digits",
                *MODEL,
                "--steps",
                "1",
                "--dropout",
                "0",
                "--look-every",
                "0",
                "--out",
                str(tmp_path / "job"),
            ]
        )
        == 0
    )
    weights = str(tmp_path / "job" / "weights.safetensors")
    assert main(["sample", "--model", weights, "--cfg", "2", "--count", "2", "--out", str(tmp_path / "a.png")]) == 2
    assert "without a null class" in capsys.readouterr().err
