"""The commands around a search, on a pipeline: prompt files, plain samples, exports, lists; and what `--model` means."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from secondlook import pipelines
from secondlook.cli import main
from secondlook.engine.store import Store
from secondlook.errors import ConfigError

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
    assert pipelines.meant(model, vae) is wanted


def test_options_of_pipelines_need_one() -> None:
    with pytest.raises(ConfigError, match="--true-guidance belongs to pipelines"):
        pipelines.hold("scenes", {"true_guidance": 2.0})


def test_pipelines_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "pipelines"]) == 0
    assert "StableDiffusionXLPipeline" in capsys.readouterr().out
