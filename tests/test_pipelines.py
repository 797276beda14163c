"""The commands around a search, on a pipeline: prompt files, plain samples, exports, lists; and what `--model` means."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from secondlook.backends import pipelines
from secondlook.backends.find import find, outside
from secondlook.cli.app import main
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.settings import Settings

pytest.importorskip("diffusers", reason="needs secondlook[hub]")
pytest.importorskip("transformers", reason="needs secondlook[hub]")
GENEVAL = [{"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
           {"tag": "two_object", "include": [], "prompt": "a red ball and a dog"}]  # fmt: skip


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from secondlook.adapters import tiny

    folder = tmp_path_factory.mktemp("sana")
    tiny.make("sana").save_pretrained(folder)
    return folder


def test_geneval_lines_are_drawn_and_exported_with_their_own_metadata(sana: Path, tmp_path: Path) -> None:
    file, run, out = tmp_path / "geneval.jsonl", tmp_path / "run", tmp_path / "export"
    file.write_text("".join(json.dumps(r) + "\n" for r in GENEVAL))
    assert main(["draw", "--prompts", str(file), "--model", str(sana), "--plan", "random(n=2)", "--steps", "3",
                 "--verifier", "brightness", "--quiet", "--out", str(run)]) == 0  # fmt: skip
    store = Store.open(run)
    assert store.config["prompts"] == [r["prompt"] for r in GENEVAL]
    assert main(["export", str(run), "--metadata", str(file), "--out", str(out)]) == 0
    assert [json.loads((out / f"0000{i}" / "metadata.jsonl").read_text()) for i in range(2)] == GENEVAL
    assert (out / "00001" / "samples" / "0000.png").is_file()
    assert main(["export", str(run), "--out", str(tmp_path / "bare")]) == 0
    assert json.loads((tmp_path / "bare" / "00000" / "metadata.jsonl").read_text()) == {"prompt": "a photo of a cat"}
    file.write_text(json.dumps(GENEVAL[1]) + "\n" + json.dumps(GENEVAL[0]) + "\n")
    assert main(["export", str(run), "--metadata", str(file), "--out", str(tmp_path / "wrong")]) == 2


def test_plain_samples_are_what_a_search_begins_with(sana: Path, tmp_path: Path) -> None:
    words = ["--model", str(sana), "--steps", "3"]
    sheet = tmp_path / "sheet.png"
    assert main(["sample", "a cat", *words, "--count", "1", "--out", str(sheet)]) == 0
    assert main(["draw", "a cat", *words, "--plan", "random(n=1)", "--verifier", "brightness", "--quiet", "--pad", "--rows", "1",
                 "--out", str(tmp_path / "run")]) == 0  # fmt: skip
    drawn = Store.open(tmp_path / "run").picture(0)
    tile = np.asarray(Image.open(sheet).convert("RGB"))[18 : 18 + 64, 4 : 4 + 64][::2, ::2]
    assert np.abs(tile.astype(int) - drawn).max() <= 1


@pytest.mark.parametrize(
    ("model", "vae", "wanted"),
    [
        (None, None, False),
        ("scenes", None, False),
        ("glyphs", None, False),
        ("black-forest-labs/FLUX.1-dev", None, True),
        ("runs/x/weights.safetensors", None, False),
        ("runs/x/weights.safetensors", "stabilityai/sd-vae-ft-ema", True),
        ("models", None, False),
        ("secondlook", None, True),  # a folder
    ],
)
def test_what_a_model_name_means(
    model: str | None, vae: str | None, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    s = Settings(vae=vae)
    assert (outside(model, s) or vae is not None) is wanted


def test_options_of_pipelines_need_one() -> None:
    with pytest.raises(ConfigError, match="--true-guidance belongs to pipelines"):
        find("scenes", Settings(true_guidance=2.0))


def test_pipelines_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "pipelines"]) == 0
    assert "StableDiffusionXLPipeline" in capsys.readouterr().out


def test_lora_weights_by_name(sana: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a file and from a folder: another picture than without, recorded, and resumable by name."""
    peft = pytest.importorskip("peft", reason="needs peft")
    import torch
    from peft.utils import get_peft_model_state_dict

    from secondlook.adapters import tiny
    from secondlook.api import replay_outcome

    pipe = tiny.make("sana")
    torch.manual_seed(0)
    pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipe.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer))
    words = [
        "draw",
        "a cat",
        "--model",
        str(sana),
        "--plan",
        "random(n=2)",
        "--steps",
        "3",
        "--verifier",
        "brightness",
        "--quiet",
    ]
    file = tmp_path / "pytorch_lora_weights.safetensors"
    for name, lora in (("plain", []), ("file", ["--lora", str(file)]), ("folder", ["--lora", str(tmp_path)])):
        assert main([*words, *lora, "--out", str(tmp_path / name)]) == 0
    plain, by_file, by_folder = (Store.open(tmp_path / n).picture(0) for n in ("plain", "file", "folder"))
    assert np.array_equal(by_file, by_folder)
    assert np.abs(by_file.astype(int) - plain).max() > 3
    assert Store.open(tmp_path / "file").config["pipeline"]["lora"] == str(file)
    assert replay_outcome(tmp_path / "file", 0).difference <= 3
    capsys.readouterr()
    assert main([*words, "--lora", str(tmp_path / "plain"), "--out", str(tmp_path / "none")]) == 2
    assert "cannot be loaded as LoRA weights" in capsys.readouterr().err
    assert main([*words, "--offload", "--device", "cpu", "--out", str(tmp_path / "none")]) == 2
    assert "there is no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_in_one_file_is_told_how_to_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import save_file

    for key, pattern in (
        ("model.diffusion_model.out.2.weight", "from_single_file"),
        ("x_embedder.proj.weight", "--vae"),
    ):
        save_file({key: torch.zeros(2), "final_layer.linear.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
        assert main(["draw", "a cat", "--model", str(tmp_path / "x.safetensors"), "--out", str(tmp_path / "run")]) == 2
        err = capsys.readouterr().err
        assert pattern in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_rig_puts_noise_where_the_schedule_begins_and_as_strong() -> None:
    """Euler's trailing schedule begins with sigma times noise; SANA's a little after 0."""
    import torch

    import secondlook
    from secondlook.adapters import tiny
    from secondlook.noise import Key, normal

    for family, options in (("sdxl", {"timestep_spacing": "trailing"}), ("sana", {})):
        held = secondlook.load(tiny.make(family, **options))
        schedule = held.schedule(4)
        backend = pipelines.Pipeline(held)
        s = Settings(["a cat"], steps=4, verifier="brightness")
        rig, key = backend.rig(s.filled(backend.usual(s)), None), Key.root(3)
        state = rig.start(key)
        assert torch.equal(state.x, normal([key.child("start")], held.shape) * schedule.scale)
        assert float(state.t) == pytest.approx(schedule.times[0], abs=1e-7)
        assert (schedule.scale < 1) == (family == "sdxl")
        assert (schedule.times[0] > 0) == (family == "sana")


def test_levels_off_the_grid_are_the_paths_own() -> None:
    """On the grid the scheduler's numbers, between them numbers between."""
    import torch

    import secondlook
    from secondlook.adapters import tiny

    for family in ("sdxl", "sana", "flux"):
        schedule = secondlook.load(tiny.make(family)).schedule(4)
        on = torch.tensor(schedule.times[:-1], dtype=torch.float64)
        assert schedule.level(on).tolist() == pytest.approx(list(schedule.levels))
        middle = (on[:-1] + on[1:]) / 2
        between = schedule.level(middle)
        assert bool((between < schedule.level(on[:-1]) - 1).all())
        assert bool((between > schedule.level(on[1:]) + 1).all())


def test_a_broken_verifier_is_seen_at_once(sana: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["draw", "a cat", "--model", str(sana), "--plan", "random(n=2)", "--steps", "3", "--quiet"]
    (tmp_path / "broken.py").write_text(
        "class Raises:\n    name = 'raises'\n    def __call__(self, samples, conditions):\n        raise ValueError('no lamp')\n"
        "class Nameless:\n    def __call__(self, samples, conditions):\n        return samples\n"
        "class Unmade:\n    name = 'unmade'\n    def __init__(self):\n        raise RuntimeError('weights missing')\n"
        "    def __call__(self, samples, conditions):\n        return samples\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        assert main([*words, "--verifier", "broken:Raises", "--out", str(tmp_path / "run")]) == 2
        assert 'The verifier "raises" failed (ValueError: no lamp)' in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
        for name, pattern in (
            ("Nameless", "has no name"),
            ("Unmade", "cannot be made (RuntimeError: weights missing)"),
        ):
            assert main([*words, "--verifier", f"broken:{name}", "--out", str(tmp_path / "none")]) == 2
            assert pattern in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_lora_weights_of_another_network_are_refused(
    sana: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft", reason="needs peft")
    import torch
    from safetensors.torch import save_file

    save_file({"unet.nothing.lora_A.weight": torch.zeros(2, 4), "unet.nothing.lora_B.weight": torch.zeros(4, 2)},
              tmp_path / "other.safetensors")  # fmt: skip
    words = ["draw", "a cat", "--model", str(sana), "--steps", "3", "--verifier", "brightness", "--quiet"]
    assert main([*words, "--lora", str(tmp_path / "other.safetensors"), "--out", str(tmp_path / "run")]) == 2
    assert "cannot be loaded as LoRA weights" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_guide_cannot_go_on_with_a_run(sana: Path, tmp_path: Path) -> None:
    import secondlook
    from tests.helpers import Brightness, Redness

    def stop(driver: object) -> None:
        raise KeyboardInterrupt

    words = {"model": str(sana), "steps": 3, "rows": 2}
    with pytest.raises(KeyboardInterrupt):
        secondlook.draw("a cat", "random(n=4)", tmp_path / "run", verifier=Redness(), progress=stop, **words)
    with pytest.raises(ConfigError, match='has "redness" as its verifier; got "brightness"'):
        secondlook.resume(tmp_path / "run", verifier=Brightness())
    assert secondlook.resume(tmp_path / "run", verifier=Redness())
