"""Sampling of classes to contact sheets and to ADM's npz: the same pictures however the work was cut, stopped or shared."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from secondlook import cli
from secondlook.adapters.vae import load_vae, to_bytes
from secondlook.backends.find import find
from secondlook.backends.glyphs import Glyphs
from secondlook.errors import ConfigError
from secondlook.flow.estimate import Flow
from secondlook.flow.guidance import ClassifierFree
from secondlook.flow.path import Linear
from secondlook.models import checkpoint
from secondlook.models.find import world_of
from secondlook.models.official import from_state_dict
from secondlook.models.sit import Labels, SiT, SiTConfig
from secondlook.noise import Key, normal
from secondlook.sample.draws import Sampler, evaluating, labels_of, sampler
from secondlook.sample.npz import Spent
from secondlook.settings import Settings
from secondlook.solvers.ode import Heun, integrate
from secondlook.types import State
from tests.test_folder import tiny_vae

TINY: dict[str, Any] = {"side": 4, "patch": 2, "width": 16, "depth": 1, "heads": 2, "classes": 5}


def tiny(seed: int = 0, **more: Any) -> SiT:
    """A random network, no tensor of it zero, whose predictions are of size 1."""
    torch.manual_seed(seed)
    network = SiT(SiTConfig(**{**TINY, **more}))
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.3 * torch.randn_like(p))
    return network


def saved(file: Path, seed: int = 0, **more: Any) -> Path:
    network = tiny(seed, **more)
    checkpoint.save(network, file, network.describe())
    return file


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An imported tiny checkpoint of the official layout, a weaker one, a network of pixels, an autoencoder."""
    folder = tmp_path_factory.mktemp("kit")
    torch.save(
        {"ema": tiny(variance=True).state_dict(), "model": tiny(1, variance=True).state_dict()}, folder / "sit.pt"
    )
    assert cli.main(["import", "sit", str(folder / "sit.pt"), "--heads", "2", "--out", str(folder / "sit")]) == 0
    return {"sit": folder / "sit", "pt": folder / "sit.pt", "weak": saved(folder / "weak.safetensors", 3),
            "pixels": saved(folder / "pixels.safetensors", 4, channels=3), "dit": saved(folder / "dit.safetensors", 5, channels=3,
            variance=True, predicts="noise", path="discrete"), "out": folder}  # fmt: skip


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vae(tmp_path_factory.mktemp("vae"))


def build(
    model: Path | str, count: int = 16, rows: int | None = None, labels: str = "random", **options: Any
) -> Sampler:
    """A sampler as evaluations sample."""
    s = Settings(model=str(model), rows=rows, **options)
    backend = find(s.model, s)
    return sampler(s.filled({**backend.usual(s), **evaluating(s), "rows": 16}), backend, count, labels)


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(["sample", *(str(w) for w in words)])
    return (code, *capsys.readouterr())


def content(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {k: file[k] for k in file.files}


# ---- end to end ------------------------------------------------------------------------------------------------------


def test_latents_to_npz(kit: dict[str, Path], vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.npz"
    words = ["--model", kit["sit"], "--vae", vae, "--cfg", "1.5", "--cfg-channels", "3", "--solver", "heun(end='step')",
             "--steps", "6", "--count", "7", "--labels", "balanced", "--part", "3", "--quiet", "--out", out]  # fmt: skip
    code, text, err = run(capsys, *words)
    assert code == 0, err
    assert "7 pictures, 12 evaluations a sample, 24 network passes" in text
    made = content(out)
    assert (made["arr_0"].shape, made["arr_0"].dtype, made["arr_1"].dtype) == ((7, 8, 8, 3), np.uint8, np.int64)
    assert sorted(made["arr_1"][:5]) == list(range(5))
    assert not (tmp_path / "s.npz.parts").exists()
    with zipfile.ZipFile(out) as file:
        assert {i.compress_type for i in file.infolist()} == {zipfile.ZIP_STORED}
    # by hand, from this project's pieces alone
    network = from_state_dict(torch.load(kit["pt"])["ema"], heads=2)
    keys = tuple(Key.root(0).child("task", 0).child("draw", i) for i in range(7))
    x = normal([k.child("start") for k in keys], (4, 4, 4))
    guide = ClassifierFree(1.5, lambda c, n: Labels.stack([c, Labels(torch.full((n,), 5))]), channels=3)
    state = State(x, torch.zeros(7), keys, torch.zeros(7, dtype=torch.long))
    with torch.no_grad():
        flow = Flow(network, Linear(), guide)
        x = integrate(
            flow, Heun("step"), state, tuple(i / 6 for i in range(7)), Labels(torch.from_numpy(made["arr_1"]))
        ).x
        autoencoder = load_vae(str(vae))
        pictures = autoencoder.module.decode(x / 0.18215 + 0.25).sample
    want = (127.5 * pictures + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.abs(made["arr_0"].astype(int) - want).max() <= 1
    assert (made["arr_0"] != want).mean() < 0.01
    # again: nothing to do; otherwise: refused
    stamp = out.stat().st_mtime_ns
    assert run(capsys, *words)[0] == 0
    assert out.stat().st_mtime_ns == stamp
    code, _, err = run(capsys, *words, "--cfg", "2")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "made with guidance 1.5, not 2.0" in err


def test_levels_come_back_from_bytes() -> None:
    levels = torch.arange(256, dtype=torch.float32)
    x = (levels / 127.5 - 1).view(1, 1, 16, 16)
    assert torch.equal(to_bytes(x).flatten().float(), levels)
    assert to_bytes(torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2)).flatten().tolist() == [0, 255]


# ---- batches, labels, times, guidance ----------------------------------------------------------------------------------


def test_batches_do_not_matter(kit: dict[str, Path]) -> None:
    # rounding moves dopri5's steps a little, so there it may matter as much as the solver's own tolerance
    for solver, off in (("heun", 1e-4), ("sde(diffusion='sigma', last='mean')", 1e-4), ("dopri5(rtol=1e-4)", 1e-2)):
        whole, two = (build(kit["pixels"], 4, rows, guidance=1.7, solver=solver, steps=5) for rows in (4, 2))
        torch.testing.assert_close(latents(whole, range(4)), latents(two, range(4)), rtol=0, atol=off)
        torch.testing.assert_close(latents(whole, [3, 1])[0], latents(two, [3])[0], rtol=0, atol=off)


def latents(made: Sampler, index: Any) -> Tensor:
    rows = made.rig.rows
    return torch.cat([made._batch(list(index)[i : i + rows])[0].x for i in range(0, len(index), rows)])


def test_labels() -> None:
    for count in (1, 12, 5000):
        balanced = labels_of("balanced", count, 0, 5)
        counts = np.bincount(balanced, minlength=5)
        assert counts.max() - counts.min() <= 1
        assert np.array_equal(balanced, labels_of("balanced", 5000, 0, 5)[:count])
    assert not np.array_equal(balanced[:5], balanced[5:10])
    drawn = labels_of("random", 5000, 0, 5)
    assert np.array_equal(drawn[:70], labels_of("random", 70, 0, 5))
    assert np.abs(np.bincount(drawn, minlength=5) - 1000).max() < 130
    assert labels_of("4", 3, 0, 5).tolist() == [4, 4, 4]
    assert labels_of("red square", 2, 0, 32, Glyphs()).tolist() == [8, 8]
    for labels, pattern in (("5", "from 0 to 4"), ("-1", "from 0 to 4"), ("some", "random")):
        with pytest.raises(ConfigError, match=pattern):
            labels_of(labels, 3, 0, 5)


def test_times_are_the_papers(kit: dict[str, Path], tmp_path: Path) -> None:
    def times(model: Path = kit["pixels"], **more: Any) -> tuple[float, ...]:
        return build(model, **more).rig.times

    assert len(times()) == 126
    assert (times()[0], times()[-1]) == (0.0, 1.0)
    sde = times(solver="sde")
    assert len(sde) == 251
    assert sde[-2:] == pytest.approx((0.96, 1.0))
    assert sde[1] == pytest.approx(0.96 / 249)
    assert times(solver="sde", last_step=0.0, steps=4) == (0, 0.25, 0.5, 0.75, 1)
    assert times(solver="dopri5") == (0.0, 1.0)
    noise = saved(tmp_path / "n.safetensors", channels=3, predicts="noise", path="vp")
    assert times(noise, steps=4)[-1] == pytest.approx(1 - 1e-5)
    assert times(noise, steps=4, interval="official")[-1] == pytest.approx(1 - 1e-3)
    assert times(noise, steps=4, eps=0.01)[::4] == pytest.approx((0.01, 0.99))
    assert times(kit["dit"], solver="ddpm", steps=4) == pytest.approx((0, 1 / 3, 2 / 3, 0.999, 1.0), abs=2e-3)


def test_evaluations_are_counted(kit: dict[str, Path]) -> None:
    def spent(**more: Any) -> tuple[float, float]:
        _, cost = build(kit["pixels"], 4, **more).draw(range(4))
        return cost.nfe / 4, cost.passes / 4

    assert spent(solver="heun", steps=12) == (23, 23)
    assert spent(solver="heun(end='step')", steps=12, guidance=1.5) == (24, 48)
    assert spent(solver="sde", steps=25) == (25, 25)
    assert spent(solver="euler", steps=10, guidance=1.5, cfg_interval=(0.3, 0.75)) == (10, 15)  # 0.3 ... 0.7
    assert spent(solver="euler", steps=10, weak=str(kit["pixels"])) == (10, 20)
    nfe, passes = spent(solver="dopri5(rtol=1e-4)", guidance=2.0)
    assert passes == pytest.approx(2 * nfe, rel=0.01)
    assert nfe > 9


def test_guidances_differ_and_autoguidance_by_itself_is_none(kit: dict[str, Path], vae: Path) -> None:
    def x(**more: Any) -> Tensor:
        return latents(build(kit["sit"], 3, vae=str(vae), steps=4, solver="euler", **more), range(3))

    plain, full, three = x(), x(guidance=2.0), x(guidance=2.0, cfg_channels=3)
    assert not torch.allclose(plain, full)
    assert not torch.allclose(full, three)
    torch.testing.assert_close(x(guidance=2.0, cfg_channels=4), full)
    torch.testing.assert_close(x(guidance=2.0, cfg_interval=(0.0, 1.0)), full, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x(weak=str(kit["sit"]), weak_scale=3.0), plain, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(x(weak=str(kit["weak"])), plain)


def test_discrete_models_are_sampled_by_their_own_steps(kit: dict[str, Path]) -> None:
    for solver in ("ddpm", "ddpm(variance='small')", "ddim", "ddim(eta=1.0)"):
        pictures, spent = build(kit["dit"], 2, solver=solver, steps=5, guidance=1.5).draw(range(2))
        assert pictures.shape == (2, 4, 4, 3)
        assert spent == Spent(10, 20)
    learned, small = (latents(build(kit["dit"], 2, solver=s, steps=5), range(2))
                      for s in ("ddpm", "ddpm(variance='small')"))  # fmt: skip
    assert not torch.allclose(learned, small)  # the head's variance channels are heard through the cast


# ---- contact sheets and refusals -------------------------------------------------------------------------------------


def test_contact_sheet_of_a_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = saved(tmp_path / "d.safetensors", side=8, channels=1, classes=10)
    out = tmp_path / "sheet.png"
    words = ["--world", "digits", "--model", weights, "--class", "7", "--count", "9", "--steps", "2", "--out"]
    code, _, err = run(capsys, *words, out)
    assert code == 0, err
    with Image.open(out) as image:
        assert image.size == (3 * 100 + 4, 3 * 100 + 4)
    assert run(capsys, *words, tmp_path / "d.npz", "--quiet")[0] == 0
    made = content(tmp_path / "d.npz")
    assert made["arr_0"].shape == (9, 8, 8, 1)
    assert set(np.unique(made["arr_0"])) <= {15 * i for i in range(17)}
    assert made["arr_1"].tolist() == [7] * 9
    checkpoint.save(
        tiny(side=8, channels=1, classes=10),
        weights,
        tiny(side=8, channels=1, classes=10).describe(),
        {"data": "digits"},
    )
    assert world_of(weights) == "digits"  # a trained model's file says where it was trained
    assert (
        run(capsys, "--model", weights, "--steps", "2", "--count", "2", "--quiet", "--out", tmp_path / "t.npz")[0] == 0
    )
    assert set(np.unique(content(tmp_path / "t.npz")["arr_0"])) <= {15 * i for i in range(17)}


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ([], "Give a prompt in quotes, or a class-conditional model"),
        (["--model", "scenes"], "Give a prompt in quotes"),
        (["a red circle", "--labels", "balanced"], "are for samples without a prompt"),
        (["a red circle", "--class", "3"], "are for samples without a prompt"),
        (["--world", "digit"], 'did you mean "digits"'),
        (["--model", "nowhere"], "neither a file nor a shipped model"),
        (["--model", "{sit}"], "give the autoencoder that decodes them, --vae DIR"),
        (["--model", "{pixels}", "--world", "glyphs"], r"samples \[3, 32, 32\], the model \[3, 4, 4\]"),
        (["--model", "{pixels}", "--class", "5"], "from 0 to 4"),
        (["--model", "{pixels}", "--class", "1", "--labels", "random"], "say the same"),
        (["--model", "{pixels}", "--solver", "heum"], 'did you mean "heun"'),
        (["--model", "{pixels}", "--steps", "0"], "--steps must be from 1"),
        (["--model", "{pixels}", "--count", "0"], "--count must be from 1"),
        (["--model", "{pixels}", "--rows", "0"], "--rows must be from 1"),
        (["--model", "{pixels}", "--part", "0"], "--part must be from 1"),
        (["--model", "{pixels}", "--cfg", "-1"], "--guidance must be from 0 to 1000; got -1"),
        (["--model", "{pixels}", "--cfg-channels", "3"], "need a guidance"),
        (["--model", "{pixels}", "--cfg", "2", "--cfg-channels", "4"], "at most 3"),
        (["--model", "{pixels}", "--cfg", "2", "--cfg-channels", "some"], "expects a whole number"),
        (["--model", "{pixels}", "--cfg", "2", "--cfg-interval", "0.5", "0.5"], "LOW < HIGH"),
        (["--model", "{pixels}", "--weak", "{weak}"], "its shape is .4, 4, 4."),
        (["--model", "{pixels}", "--weak", "{pixels}", "--cfg", "2"], "guidance of its own"),
        (["--model", "{pixels}", "--weak-scale", "2"], "needs --weak"),
        (["--model", "{pixels}", "--interval", "papr"], "--interval must be one of whole, paper, official"),
        (["--model", "{pixels}", "--eps", "0.7"], "--eps must be"),
        (["--model", "{pixels}", "--last-step", "0.04"], "for sde and sde_heun"),
        (["--model", "{pixels}", "--solver", "sde", "--steps", "1"], "at least two --steps"),
        (
            ["--model", "{pixels}", "--solver", "dopri5", "--shift", "3"],
            "dopri5 chooses its own; got --shift 3. Leave it out",
        ),
        (["--model", "{pixels}", "--device", "abacus"], "cannot be used here"),
        (["--model", "{out}"], "name the one you mean"),
    ],
    ids=lambda v: " ".join(v)[:60] if isinstance(v, list) else "",
)
def test_refusals_are_one_sentence_and_leave_nothing(
    kit: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], pattern: str
) -> None:
    code, _, err = run(capsys, *(w.format(**kit) for w in words), "--out", tmp_path / "s.npz")
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1
    assert re.search(pattern, err), err
    assert not any(tmp_path.iterdir())


def test_a_taken_out_is_refused(kit: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.npz").write_bytes(b"mine")
    code, _, err = run(capsys, "--model", kit["pixels"], "--out", tmp_path / "s.npz")
    assert (code, "nothing says how it was made" in err) == (2, True), err
    assert (tmp_path / "s.npz").read_bytes() == b"mine"
    code, _, err = run(capsys, "--model", kit["pixels"], "--out", tmp_path / "s.jpg")
    assert (code, "must be a .png or .npz file" in err) == (2, True), err


def test_nothing_optional_is_imported() -> None:
    code = ("import sys, secondlook, secondlook.cli.app as c\nsys.argv = ['secondlook', '--help']\n"
            "try:\n    c.main()\nexcept SystemExit:\n    pass\n"
            "import secondlook.sample.draws, secondlook.train.encoding, secondlook.cli.data, secondlook.cli.search\n"
            "assert not {'diffusers', 'transformers', 'accelerate'} & set(sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_diffusers_the_extra_is_named(
    kit: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    code, _, err = run(capsys, "--model", kit["sit"], "--vae", "x", "--out", tmp_path / "s.npz")
    assert (code, "pip install 'secondlook[hub]'" in err) == (1, True), err


def test_compile_wraps_every_network_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for, the whole head goes through the compiler; not asked for, nothing does."""
    compiled: list[Any] = []

    def wrap(full: Any) -> Any:
        def call(*words: Any) -> Any:
            compiled.append(words)
            return full(*words)

        return call

    monkeypatch.setattr(torch, "compile", wrap)
    made = {}
    for choice in (False, True):
        made[choice], _ = build("digits", 2, labels="7", steps=2, compile=choice).draw(range(2))
        assert len(compiled) == (3 if choice else 0)
    assert (made[False] == made[True]).all()
