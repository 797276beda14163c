"""Many pictures on disk: stopped, killed, cut and shared among processes, the same file in the end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from secondlook import cli
from secondlook.disk.shards import Shards
from secondlook.disk.team import Team
from secondlook.errors import ConfigError, DamagedError
from secondlook.metrics import world as features_module
from secondlook.metrics.features import Evaluation, Extracted, show
from secondlook.sample import npz as sampling_npz
from secondlook.sample.draws import Sampler
from secondlook.sample.npz import Spent
from tests.test_generate import build, run, saved


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("npz") / "pixels.safetensors", 4, channels=3)


def test_stopped_between_parts_and_resumed(
    pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "--model",
        pixels,
        "--solver",
        "sde",
        "--steps",
        "4",
        "--count",
        "10",
        "--part",
        "2",
        "--quiet",
        "--out",
    ]
    assert run(capsys, *words, tmp_path / "whole.npz")[0] == 0
    write, calls = sampling_npz.write_array, []

    def stopping(path: Path, array: np.ndarray) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(path, array)

    with monkeypatch.context() as patch:
        patch.setattr(sampling_npz, "write_array", stopping)
        assert run(capsys, *words, tmp_path / "cut.npz")[0] == 130
    assert not (tmp_path / "cut.npz").exists()
    parts = sorted(p.name for p in (tmp_path / "cut.npz.parts").glob("*.npy"))
    assert parts == ["000000.npy", "000001.npy"]
    code, _, err = run(capsys, *words, tmp_path / "cut.npz", "--seed", "1")
    assert (code, "was made with seed 0, not 1" in err, len(err.strip().splitlines())) == (2, True, 1)
    stamp = (tmp_path / "cut.npz.parts/000000.npy").stat().st_mtime_ns
    drawn = []
    draw = Sampler.draw
    monkeypatch.setattr(Sampler, "draw", lambda self, index: (drawn.append(list(index)), draw(self, index))[1])
    assert stamp
    code, text, _ = run(capsys, *words, tmp_path / "cut.npz")
    assert code == 0
    assert drawn == [[4, 5], [6, 7], [8, 9]]
    assert (tmp_path / "cut.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert "4 evaluations a sample, 4 network passes" in text


def test_a_killed_process_is_resumed(pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shards of an earlier attempt, one half-written: what a kill leaves."""
    words = [
        "--model",
        pixels,
        "--steps",
        "2",
        "--count",
        "6",
        "--part",
        "2",
        "--quiet",
        "--out",
        tmp_path / "s.npz",
    ]
    assert run(capsys, *words)[0] == 0
    whole = (tmp_path / "s.npz").read_bytes()
    facts = json.loads((tmp_path / "s.npz.json").read_text())
    (tmp_path / "s.npz").unlink()
    assert run(capsys, *words)[0] == 1  # its facts are there, but it is not
    (tmp_path / "s.npz.json").unlink()
    folder = tmp_path / "s.npz.parts"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps(facts["settings"]))
    (folder / "000001.npy.4711.part").write_bytes(b"half")
    assert run(capsys, *words)[0] == 0
    assert (tmp_path / "s.npz").read_bytes() == whole


def test_two_processes_make_the_same_file(pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(pixels), "--cfg", "1.5", "--steps", "3", "--count", "9", "--part", "2", "--rows", "2", "--threads", "1",
             "--quiet", "--out"]  # fmt: skip
    assert run(capsys, *words, tmp_path / "one.npz")[0] == 0
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        "-m",
        "secondlook",
        "sample",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, *words, str(tmp_path / "two.npz")], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("9 pictures") == 1
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert json.loads((tmp_path / "one.npz.json").read_text()) == json.loads((tmp_path / "two.npz.json").read_text())


def test_each_process_takes_its_own_parts(pixels: Path, tmp_path: Path) -> None:
    sampler = build(pixels, 10, solver="euler", steps=2)
    shares: dict[int, list[int]] = {}
    for rank in (1, 2, 0):
        share = shares[rank] = []

        def draw(index: Any, share: list[int] = share) -> tuple[np.ndarray, Spent]:
            share.extend(index)
            return np.zeros((len(index), 4, 4, 3), np.uint8), Spent(len(index), len(index))

        team = Team(rank, 3, rank)
        if rank == 1:  # the first process makes the folder
            Shards(tmp_path / "s.npz.parts", {**sampler.facts(), "per part": 2}, 5, lambda: False).begin(Team(0, 3))
        facts = sampling_npz.produce(
            tmp_path / "s.npz", sampler.facts(), sampler.labels, draw, per=2, team=team, quiet=True
        )
        assert (facts is None) == (rank != 0)
    assert shares == {0: [0, 1, 6, 7], 1: [2, 3, 8, 9], 2: [4, 5]}


def test_a_team_is_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Team.here() == Team(0, 1, 0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Team.here() == Team(3, 4, 1)
    for value in ("4", "many"):
        monkeypatch.setenv("RANK", value)
        with pytest.raises(ConfigError, match="RANK"):
            Team.here()


def test_a_late_process_finds_all_done(tmp_path: Path) -> None:
    labels = np.zeros(3, np.int64)

    def draw(index: Any) -> tuple[np.ndarray, Spent]:
        return np.zeros((len(index), 2, 2, 3), np.uint8), Spent()

    sampling_npz.produce(tmp_path / "s.npz", {"seed": 0}, labels, draw, per=2, quiet=True)
    assert (
        sampling_npz.produce(tmp_path / "s.npz", {"seed": 0}, labels, draw, per=2, team=Team(1, 2), quiet=True) is None
    )
    # one that looked before the first process had finished, and listed after it had cleared the parts away
    parts = Shards(tmp_path / "s.npz.parts", {"seed": 0, "per part": 2}, 2, lambda: True)
    assert parts.begin(Team(1, 2)) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.npz", "s.npz.json"]


def test_parts_that_do_not_fit_are_named(tmp_path: Path) -> None:
    parts = Shards(tmp_path / "p", {}, 2, lambda: False)
    parts.begin(Team())
    for number, shape in enumerate(((2, 4, 4, 3), (1, 5, 4, 3))):
        np.save(parts.path(number), np.zeros(shape, np.uint8))
    with pytest.raises(DamagedError, match=r"000001.npy has the shape \[1, 5, 4, 3\]"):
        sampling_npz.write_npz(tmp_path / "s.npz", parts, np.zeros(3, np.int64))
    parts.path(1).write_bytes(b"")
    with pytest.raises(DamagedError, match=r"000001.npy cannot be read"):
        sampling_npz.write_npz(tmp_path / "s.npz", parts, np.zeros(3, np.int64))
    (tmp_path / "q").mkdir()
    (tmp_path / "q/diary.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        Shards(tmp_path / "q", {}, 2, lambda: False).begin(Team())


class Colours:
    """Features cheap enough to compute by hand: each picture's mean colour, its rows as spatial ones, and logits."""

    name = "colours"

    def __call__(self, pictures: Tensor) -> Extracted:
        x = pictures.double() / 255
        return Extracted(x.mean((1, 2)), x[:, :, 0, 0], x.mean((1, 2)) * 5)


def test_evaluate_scores_what_sample_wrote(
    pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "features_of", lambda text, device: Colours())
    for seed in ("0", "1"):
        words = [
            "--model",
            pixels,
            "--steps",
            "2",
            "--count",
            "40",
            "--seed",
            seed,
            "--quiet",
            "--out",
            tmp_path / f"{seed}.npz",
        ]
        assert run(capsys, *words)[0] == 0
    first, second = (str(tmp_path / f"{i}.npz") for i in "01")

    def evaluate(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return (cli.main(["evaluate", first, "--features", "colours", *words]), *capsys.readouterr())

    code, text, err = evaluate("--reference", second, "--out", str(tmp_path / "scores.json"))
    assert code == 0, err
    report = Evaluation(Colours()).report(first, second)
    scores = json.loads((tmp_path / "scores.json").read_text())
    for name in ("fid", "sfid", "inception_score", "precision", "recall", "density", "coverage"):
        assert scores[name] == pytest.approx(getattr(report, name))
        assert re.search(rf"^{name.replace('_', ' ')} +{re.escape(show(scores[name]))}$", text, re.MULTILINE), text
    assert "40 pictures against 40 reference pictures; features: colours" in text
    Evaluation(Colours()).reference(second).save(tmp_path / "stats.npz")
    code, text, _ = evaluate("--reference", str(tmp_path / "stats.npz"), "--metrics", "fid,is")
    assert (code, text.split()[:2], "precision" in text) == (0, ["fid", show(report.fid)], False)
    for wrong, pattern in (
        (["--reference", "nowhere.npz"], 'There is no file "nowhere.npz"'),
        (["--reference", second, "--metrics", "fidd"], 'no metric "fidd"; did you mean "fid"'),
        (["--reference", second, "--rows", "0"], "--rows must be"),
        (
            ["--reference", second, "--out", str(tmp_path / "no/scores.json")],
            "--out expects a file in an existing folder",
        ),
        (["--reference", second, "--out", str(tmp_path)], "--out expects a file in an existing folder"),
    ):
        code, text, err = evaluate(*wrong)
        assert (code, text, len(err.strip().splitlines()), pattern in err) == (2, "", 1, True), err  # before any work
    monkeypatch.undo()
    for features, pattern in (
        ("inception", "inception=FILE"),
        ("inceptoin", "did you mean"),
        ("inception=no.pth", "no Inception weights"),
    ):
        code, _, err = evaluate("--reference", second, "--features", features)
        assert (code, pattern in err) == (2, True), err
