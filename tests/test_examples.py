"""The examples run, the demo's prompts are in the language, and the adapters' benchmark builds what it says."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import secondlook
from secondlook.cli import demo
from secondlook.cli.app import main
from secondlook.worlds.scenes.grammar import parse

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> dict[str, Any]:
    """An example, called as from the command line; what it leaves behind."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def saved(family: str, folder: Path, **scheduler: Any) -> Path:
    """A tiny pipeline's folder."""
    pytest.importorskip("diffusers")
    from secondlook.adapters import tiny

    tiny.make(family, **scheduler).save_pretrained(folder)
    return folder


def test_first_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    [result] = run(monkeypatch, "first_search.py", tmp_path / "run")["found"]
    assert "319 evaluations" in capsys.readouterr().out
    assert (tmp_path / "run" / "winner.png").stat().st_size > 100
    assert result.verdicts["checker"] == 1.0


def test_the_python_of_the_readme_ends_with_a_right_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (EXAMPLES.parent / "README.md").read_text()
    [code] = [part for part in page.split("```python\n")[1:] if part.startswith("import secondlook\n")]
    monkeypatch.chdir(tmp_path)
    exec(code.split("```")[0], {})
    before, verdicts, spent = capsys.readouterr().out.splitlines()
    assert [round(float(v), 2) for v in before.split(" -> ")] == [0.01, 1.0]
    assert "'checker': 1.0" in verdicts
    assert spent == "319 network passes"
    assert len(list((tmp_path / "runs" / "python" / "best").iterdir())) >= 2


def test_rank_ensemble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], eyes: dict[str, str]
) -> None:
    of = ", ".join(eyes[name] for name in ("pickscore", "clip", "aesthetic"))
    words = ["--model", saved("sana", tmp_path / "sana"), "--of", of, "--n", 5, "--steps", 2, "--out", tmp_path / "run"]
    found = run(monkeypatch, "rank_ensemble.py", *words)
    assert found["places"].keys() == {"pickscore", "clip", "aesthetic"}
    mean = {i: sum(some.index(i) for some in found["places"].values()) for i in found["outcomes"]}
    assert mean[found["result"].outcome] == min(mean.values())
    assert "is chosen: pickscore" in capsys.readouterr().out
    assert (tmp_path / "run" / "best.png").stat().st_size > 100


def test_own_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(monkeypatch, "own_backend.py", tmp_path / "run")["found"]
    assert found.score > found.plain_score
    assert (tmp_path / "run" / "report.html").exists()


def test_own_plan_and_verifier_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["draw", "two circles", "--plan", "examples.own_plan:narrowing(width=3)", "--steps", "2", "--nfe", "12"]
    words += ["--verifier", "examples.own_verifier:Colourful", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(words) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "report.html").exists()


def test_demo_prompts_are_in_the_language() -> None:
    for prompts in (demo.PROMPTS, demo.TALKED):
        assert [parse(p).text for p in prompts] == list(prompts)


def test_flux_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Distilled guidance costs one pass; text encoders are freed; the verifier is the example's own."""
    folder = saved("flux", tmp_path / "model")
    found = run(monkeypatch, "flux_search.py", folder, "--out", tmp_path / "run", "-n", 3, "--steps", 2, "--size", 32)
    assert "for 6 network passes" in capsys.readouterr().out
    assert found["result"].score >= found["result"].plain_score > 0
    assert found["model"].options.free_text
    assert Image.open(tmp_path / "run" / "best.png").size == (32, 32)
    assert (tmp_path / "run" / "report.html").exists()
    x = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    x[1, 2:6, 2:6] = 255
    assert found["Standout"]()(x, []).tolist() == pytest.approx([0, 0.75 * 3**0.5])


def test_sana_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The clock is the budget: each prompt gets its first picture at least, and none overruns by much."""
    folder = saved("sana", tmp_path / "model")
    found = run(monkeypatch, "sana_search.py", folder, "--out", tmp_path / "run", "--seconds", 0.5, "--steps", 2)
    out = capsys.readouterr().out
    assert all(f"{prompt}: sharpness" in out for prompt in found["PROMPTS"])
    assert all(r.score >= r.plain_score and r.spent.verdicts >= 1 for r in found["results"])
    assert all((tmp_path / "run" / f"best-{i}.png").exists() for i in range(3))
    assert (tmp_path / "run" / "best.png").exists()
    assert (tmp_path / "run" / "report.html").exists()


def test_sdxl_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The scheduler and the LoRA of the example's pipeline are in the search."""
    folder = saved("sdxl", tmp_path / "model")
    words = ("--steps", 4, "--samples", 8)
    plain = run(monkeypatch, "sdxl_search.py", folder, "--out", tmp_path / "plain", *words)
    assert 'dpmpp(order=2, kind="midpoint"): sharpness' in capsys.readouterr().out
    assert plain["result"].spent.nfe <= 32 == plain["a"].samples * plain["a"].steps
    assert plain["pipe"].scheduler.config.use_karras_sigmas
    assert (tmp_path / "plain" / "best.png").exists()
    assert (tmp_path / "plain" / "report.html").exists()
    peft = pytest.importorskip("peft")
    network = plain["pipe"].unet
    network.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    layers = peft.get_peft_model_state_dict(network)
    type(plain["pipe"]).save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    tuned = run(monkeypatch, "sdxl_search.py", folder, "--out", tmp_path / "tuned", "--lora", tmp_path / "lora", *words)
    assert tuned["result"].plain_score != plain["result"].plain_score
    assert tuned["model"].digest() != plain["model"].digest()


def test_adapters_benchmark(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its full shapes are as large as the published ones, and its ways draw as many pictures as they say."""
    pytest.importorskip("diffusers")
    bench = runpy.run_path(str(EXAMPLES.parent / "benchmarks" / "adapters.py"))
    for family, least, most in (("sana", 1.59e9, 1.62e9), ("flux", 11.88e9, 11.92e9)):
        pipe = bench["full"](family, "meta", torch.bfloat16)
        assert least < bench["parameters"](pipe.transformer) < most
        assert pipe.transformer.dtype == pipe.vae.dtype == torch.bfloat16
        assert secondlook.load(pipe).height == 1024
    held = secondlook.load(tiny_pipe := bench["tiny"].make("pixart"))
    ready = bench["Bench"]("pixart", tiny_pipe, held, 2, 3, 0)
    for way in (bench["Way"](ours, rows) for ours in (False, True) for rows in (1, 2)):
        folder = tmp_path / str(way)
        folder.mkdir()
        score = (ready.search if way.ours else ready.loop)(way.rows, folder)
        assert score > 0
        assert len([p for p in folder.rglob("*.png") if p.parent.name != "best"]) == 3
