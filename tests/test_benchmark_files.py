"""Each benchmark's own prompt file is read in its format, a wrong one is refused in a sentence, and pictures lie where its scorer looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from secondlook.bench import layouts
from secondlook.errors import ConfigError
from secondlook.verify.benchmarks import BENCHMARKS, Entry, read

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], "prompt": "a photo of two clocks"},
    {"tag": "position", "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
     "prompt": "a photo of a dog left of a cat"},
]  # fmt: skip
GENEVAL2 = {
    "prompt": "four white bicycles", "atom_count": 3, "skills": ["count", "attribute", "object"],
    "vqa_list": [["How many bicycles are in the image?", "four"], ["Are the bicycles white?", "Yes"], ["Are there any bicycles in the image?", "Yes"]],
}  # fmt: skip


def lines(records: list[Any]) -> str:
    return "".join(json.dumps(r) + "\n" for r in records)


def put(folder: Path) -> dict[str, Path]:
    """A small file of each benchmark, in its format."""
    texts = {
        "geneval": ("evaluation_metadata.jsonl", lines(GENEVAL)),
        "geneval2": ("geneval2_data.jsonl", lines([GENEVAL2])),
        "drawbench": ("drawbench.csv", 'Prompts,Category\nA red coloured car.,Colors\n"A bird scaring a scarecrow, today.",Conflicting\n'),
        "t2i-compbench": ("color_val.txt", "a green bench and a blue bowl\na red apple\tseen\n"),
        "genai": ("genai_image.json", json.dumps({"00000": {"id": "00000", "prompt": "A baker.", "models": {}}, "00001": {"id": "00001", "prompt": "No cat."}})),
        "parti": ("PartiPrompts.tsv", 'Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\t\na sign that says "Yes, it is"\tArts\tWriting & Symbols\tnote\n'),
        "wise": ("cultural.json", json.dumps([{"Prompt": "A feast", "Explanation": "cake", "Category": "Culture", "Subcategory": "Festival", "prompt_id": 401}])),
    }  # fmt: skip
    found = {}
    for name, (file, text) in texts.items():
        found[name] = folder / file
        found[name].write_text(text)
    (folder / "genai_skills.json").write_text(
        json.dumps({"basic": [0], "scene": [0], "advanced": [1], "negation": [1]})
    )
    found["dpg"] = folder / "prompts"
    found["dpg"].mkdir()
    for name in ("256", "9"):
        (found["dpg"] / f"{name}.txt").write_text(f"A long text {name}.")
    return found


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return put(tmp_path)


WANTED = {
    "geneval": [(r["prompt"], f"0000{i}", r["tag"]) for i, r in enumerate(GENEVAL)],
    "geneval2": [("four white bicycles", "00000", "3 atoms")],
    "drawbench": [("A red coloured car.", "00000", "Colors"), ("A bird scaring a scarecrow, today.", "00001", "Conflicting")],
    "t2i-compbench": [("a green bench and a blue bowl", "000000", "color"), ("a red apple", "000001", "color")],
    "genai": [("A baker.", "00000", "basic"), ("No cat.", "00001", "advanced")],
    "parti": [("bond", "00000", "Abstract"), ('a sign that says "Yes, it is"', "00001", "Arts")],
    "wise": [("A feast", "401", "Culture")],
    "dpg": [("A long text 9.", "9", "all"), ("A long text 256.", "256", "all")],
}  # fmt: skip


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_benchmarks_own_file_is_read(name: str, files: dict[str, Path]) -> None:
    assert [(e.prompt, e.key, e.category) for e in read(name, files[name])] == WANTED[name]


def test_tags_that_overlap_are_read(files: dict[str, Path]) -> None:
    assert [e.tags for e in read("genai", files["genai"])] == [("basic", "scene"), ("advanced", "negation")]
    assert [e.tags for e in read("parti", files["parti"])] == [("Basic",), ("Writing & Symbols",)]


def test_drawbench_is_read_with_tabs_and_dpg_as_its_table(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text("Prompts\tCategory\nOne, two.\tCounting\n")
    assert [(e.prompt, e.category) for e in read("drawbench", tmp_path / "d.tsv")] == [("One, two.", "Counting")]
    (tmp_path / "dpg_bench.csv").write_text('item_id,text,proposition_id\n7,"A, b.",1\n7,"A, b.",2\nx,C.,1\n')
    assert [(e.prompt, e.key) for e in read("dpg", tmp_path / "dpg_bench.csv")] == [("A, b.", "7"), ("C.", "x")]


def test_a_folder_of_compbench_is_read_by_category(tmp_path: Path) -> None:
    for name in ("color_val", "3d_spatial_val", "color_train"):
        (tmp_path / f"{name}.txt").write_text(f"of {name}\n")
    assert [(e.prompt, e.category) for e in read("t2i-compbench", tmp_path)] == [
        ("of 3d_spatial_val", "3d_spatial"),
        ("of color_val", "color"),
    ]


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_every_other_benchmarks_file_is_refused_with_what_was_expected(name: str, files: dict[str, Path]) -> None:
    plain = {"t2i-compbench"}  # any text is a prompt a line
    for other in set(BENCHMARKS) - {name}:
        if (name in plain and other in ("drawbench", "parti", "dpg")) or (name, other) == ("dpg", "dpg"):
            continue
        with pytest.raises(ConfigError, match=r"no prompt file of .*Expected|cannot be read.*is read from"):
            read(name, files[other])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"include": None}, 'line 1 has no list under "include"'),
        ({"include": [{"class": "cat", "count": 0}]}, "include 0 has no whole number above 0"),
        ({"include": [{"class": "cat", "count": 1, "position": ["near", 0]}]}, "include 0 has no .position. such as"),
        ({"include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}, "being of a clause before it"),
        ({"tag": ""}, 'no text under "tag"'),
    ],
)
def test_what_a_line_of_geneval_lacks_is_said(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text(lines([GENEVAL[0] | change]))
    with pytest.raises(ConfigError, match=told):
        read("geneval", tmp_path / "f.jsonl")


def test_an_unknown_benchmark_a_lacking_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'no benchmark "geneva".*geneval'):
        read("geneva", tmp_path)
    with pytest.raises(ConfigError, match=r"There is no .*PartiPrompts.tsv"):
        read("parti", tmp_path / "none.tsv")
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="holds no prompt"):
        read("geneval", tmp_path / "e.jsonl")


LAID = {
    "geneval": ["00000/metadata.jsonl", "00000/samples/0000.png", "00000/samples/0001.png", "00001/metadata.jsonl",
                "00001/samples/0000.png", "00001/samples/0001.png"],
    "geneval2": [f"sample-{k}/{f}" for k in range(2) for f in ("image_paths.json", "pictures/a.png", "pictures/b.png")],
    "t2i-compbench": ["color/samples/a cat_000000.png", "color/samples/a cat_000001.png", "shape/samples/a dog or two_000000.png",
                      "shape/samples/a dog or two_000001.png"],
    "genai": [f"sample-{k}/{f}.jpeg" for k in range(2) for f in "ab"],
    "wise": [f"sample-{k}/{f}.png" for k in range(2) for f in "ab"],
    "dpg": ["a.png", "b.png"],
}  # fmt: skip
LAID["drawbench"] = LAID["parti"] = LAID["geneval"]


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_pictures_lie_where_the_benchmarks_scorer_looks(name: str, tmp_path: Path) -> None:
    entries = [Entry("a cat", "a", "color", {"x": 1}), Entry("a dog or/two", "b", "shape")]
    pictures = []
    for i in range(4):
        pictures.append(tmp_path / f"{i}.png")
        Image.fromarray(np.full((8, 6, 3), 60 * i, np.uint8)).save(pictures[-1])
    out = tmp_path / "out"
    layouts.write(name, out, entries, [pictures[:2], pictures[2:]])
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == LAID[name]
    if name == "dpg":
        sheet = np.asarray(Image.open(out / "b.png"))
        assert sheet.shape == (8, 12, 3)
        assert [int(sheet[0, 0, 0]), int(sheet[0, 6, 0])] == [120, 180]
    if name == "geneval2":
        paths = json.loads((out / "sample-1" / "image_paths.json").read_text())
        assert paths == {"a cat": "pictures/a.png", "a dog or/two": "pictures/b.png"}
        assert np.asarray(Image.open(out / "sample-1" / paths["a dog or/two"]))[0, 0, 0] == 180
    if name == "geneval":
        assert json.loads((out / "00000/metadata.jsonl").read_text()) == {"tag": "color", "x": 1, "prompt": "a cat"}
    with pytest.raises(ConfigError, match="not an empty folder"):
        layouts.write(name, out, entries, [pictures[:2], pictures[2:]])


def test_one_sample_of_one_picture_layouts_needs_no_folder_of_its_own(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    layouts.write("wise", tmp_path / "out", [Entry("a", "401", "c")], [[tmp_path / "p.png"]])
    assert (tmp_path / "out" / "401.png").is_file()
