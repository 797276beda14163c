"""`secondlook bench --suite`: a published benchmark's prompts, its scorer on what is handed over, its folders; and `export --keep`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from secondlook import api
from secondlook.bench.field import scorer_of
from secondlook.cli.app import main
from secondlook.cli.export import handed
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.types import Condition, Remark

ASKED: list[int] = []
PROMPTS = [
    {"tag": "counting", "include": [{"class": "square", "count": 3}], "exclude": [{"class": "square", "count": 4}], "prompt": "three squares"},
    {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"},
    {"tag": "single_object", "include": [{"class": "square", "count": 1}], "prompt": "a square"},
]  # fmt: skip
METHODS = ["random(n=4)", "zero_order(neighbours=2)"]


class Stub:
    """Says how bright a picture is, and of it one component that logs keep and one that they do not."""

    name, told = "stub", ("half",)

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        ASKED.append(len(samples))
        value = samples.double().flatten(1).mean(1) / 255
        return {"score": value, "half": value / 2, "rest": value}


@pytest.fixture(scope="module")
def study(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A benchmark that was carried out: its words, and its folder."""
    folder = tmp_path_factory.mktemp("study")
    file = folder / "evaluation_metadata.jsonl"
    file.write_text("".join(json.dumps(p) + "\n" for p in PROMPTS))
    words = ["bench", *METHODS, "--suite", "geneval", "--prompts", str(file), "--scorer", "tests.test_fields_bench:Stub", "--budgets", "16,32",
             "--seeds", "2", "--model", str(weights), "--verifier", "tests.helpers:brightness", "--steps", "4", "--guidance", "1", "--threads", "1",
             "--no-bf16", "--out", str(folder / "out")]  # fmt: skip
    assert main(words) == 0
    return words, folder / "out"


def test_tables_are_by_the_benchmarks_own_rows_with_both_means(study: tuple[list[str], Path]) -> None:
    _, out = study
    told = json.loads((out / "results.json").read_text())
    assert told["measure"] == "tests.test_fields_bench:Stub"
    assert told["classes"] == ["counting", "single_object"]
    rows = json.loads((out / "suite.json").read_text())
    assert {r["what"] for r in rows} == {"tests.test_fields_bench:Stub", "tests.test_fields_bench:Stub: half"}
    for row in rows:
        by = row["by"]
        assert row["pictures"] == 6
        assert row["over categories"] == pytest.approx((by["counting"] + by["single_object"]) / 2, abs=2e-6)
        assert row["over pictures"] == pytest.approx((by["counting"] + 2 * by["single_object"]) / 3, abs=2e-6)
        assert row["best of each prompt"] >= row["over pictures"]
    whole = {(r["method"], r["budget"]): r["over pictures"] for r in rows if not r["what"].endswith("half")}
    half = {(r["method"], r["budget"]): r["over pictures"] for r in rows if r["what"].endswith("half")}
    assert all(half[k] == pytest.approx(v / 2, abs=2e-6) for k, v in whole.items())
    assert "| counting | single_object |" in (out / "suite.md").read_text()


def test_the_scorer_judges_what_is_handed_over_and_only_once(study: tuple[list[str], Path]) -> None:
    words, out = study
    runs = list((out / "runs").glob("*/seed-*"))
    for run in runs:
        record = Record.read(Store.open(run))
        judged = {n for n, said in record.judged.items() if "tests.test_fields_bench:Stub" in said}
        assert 3 <= len(judged) <= 6
        assert len(judged) < len(record.outcomes)
        assert {record.winner(i).id for i in range(3)} <= judged  # type: ignore[union-attr]
    ASKED.clear()
    before = (out / "results.csv").read_bytes()
    assert main(words) == 0
    assert ASKED == []
    assert (out / "results.csv").read_bytes() == before


def test_the_pictures_lie_as_the_benchmarks_scorer_reads_them(study: tuple[list[str], Path]) -> None:
    _, out = study
    folders = sorted((out / "geneval").glob("*/*"))
    assert [f.name for f in folders] == ["16", "32"] * 2
    for folder in folders:
        assert len(list(folder.glob("*/samples/*.png"))) == 6
        assert [json.loads((folder / f"0000{i}" / "metadata.jsonl").read_text()) for i in range(3)] == PROMPTS
        [run] = (out / "runs" / folder.parent.name).glob("seed-1")
        if folder.name == "32":
            store = Store.open(run)
            winner = Record.read(store).winner(2)
            assert winner is not None
            assert (folder / "00002/samples/0001.png").read_bytes() == store.picture_path(winner.id).read_bytes()


def test_a_run_rescored_afterwards_gives_the_bench_a_measure(study: tuple[list[str], Path], tmp_path: Path) -> None:
    words, out = study
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    for run in (copy / "runs").glob("*/seed-*"):
        assert main(["rescore", str(run), "--verifier", "sharpness"]) == 0
    again = [*words[:-1], str(copy), "--measure", "sharpness"]
    (copy / "results.json").unlink()  # it names the command that wrote it
    assert main(again) == 0
    told = json.loads((copy / "results.json").read_text())
    assert told["measure"] == "sharpness"
    assert all("sharpness" in r for r in told["rows"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--suite", "geneva"], 'no benchmark "geneva"'),
        (["--suite", "parti"], "no prompt file of parti"),
        (["--scorer", "nobody"], "nobody"),
        (["--scorer", "geneval(threshold=2.0)"], "threshold is from 0 to 1"),
    ],
)
def test_slips_are_told_before_anything_is_drawn(
    change: list[str], told: str, study: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, _ = study
    assert main([*words[:-1], str(tmp_path / "new"), *change]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_benchmarks_scorer_is_given_its_file() -> None:
    assert scorer_of(None, "geneval", "m.jsonl") == "geneval(prompts='m.jsonl')"
    assert scorer_of("geneval(detector='detr')", "geneval", "m.jsonl") == "geneval(prompts='m.jsonl', detector='detr')"
    assert scorer_of("geneval2(judge='x:y', prompts='a')", "geneval2", "b") == "geneval2(judge='x:y', prompts='a')"
    assert scorer_of("clip", "parti", "p.tsv") == "clip"
    assert scorer_of(None, "parti", "p.tsv") is None


# ---- export ----------------------------------------------------------------------------------------------------------


def test_the_best_so_many_or_all_pictures_of_a_prompt_are_exported(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    api.draw(
        ["three squares", "a circle"],
        "random(n=3)",
        run,
        model=str(weights),
        verifier="tests.helpers:brightness",
        steps=4,
        threads=1,
        bf16=False,
    )
    for keep, count in (("2", 2), ("all", 3), ("9", 3)):
        out = tmp_path / f"keep-{keep}"
        assert main(["export", str(run), "--keep", keep, "--out", str(out)]) == 0
        assert [p.name for p in sorted((out / "00001/samples").iterdir())] == [f"000{k}.png" for k in range(count)]
        assert not list(out.rglob("feedback.json"))
    record = Record.read(Store.open(run))
    order = handed(record, 1, None)
    assert order[0] == record.winner(1)
    assert [o.score for o in order] == sorted((o.score for o in order), reverse=True)  # type: ignore[type-var]
    for bad in ("0", "-1", "some"):
        assert main(["export", str(run), "--keep", bad, "--out", str(tmp_path / "bad")]) == 2
        assert "--keep is a number of pictures" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "wise", "--out", str(tmp_path / "bad")]) == 2
    assert "--format wise needs --metadata" in capsys.readouterr().err
    file = tmp_path / "shape_val.txt"
    file.write_text("three squares\na circle\n")
    assert (
        main(["export", str(run), "--format", "t2i-compbench", "--metadata", str(file), "--out", str(tmp_path / "t2i")])
        == 0
    )
    assert [p.name for p in sorted((tmp_path / "t2i/shape/samples").iterdir())] == [
        "a circle_000001.png",
        "three squares_000000.png",
    ]


class Critic:
    """Says how bright a picture is, in words."""

    name = "words"

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> list[Remark]:
        return [Remark(f"brightness {int(s.float().mean())}", 0.25) for s in samples]


def test_remarks_are_exported_beside_the_pictures_they_are_of(weights: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    api.draw(["three squares"], "reflect(n=2, answer='redraw')", run, model=str(weights), critic=Critic(), verifier="tests.helpers:brightness",
             steps=4, threads=1, bf16=False)  # fmt: skip
    assert main(["export", str(run), "--keep", "all", "--out", str(out)]) == 0
    said = json.loads((out / "00000/feedback.json").read_text())
    assert sorted(said) == ["0", "1"]
    for k, words in said.items():
        picture = np.asarray(Image.open(out / f"00000/samples/000{k}.png").convert("RGB"))
        assert words == {"text": f"brightness {int(picture.astype(np.float32).mean())}", "score": 0.25}
