"""The command line as a user meets it: exit codes, one clear line on stderr, nothing half-made, nothing executed."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from secondlook import __version__, api, cli
from secondlook.engine import store as store_module
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.models.text import TextSiT
from secondlook.registry import MODELS, PLANS, SOLVERS, VERIFIERS, WORLDS
from secondlook.settings import Settings
from secondlook.verify import builtin
from secondlook.worlds.scenes.prompts import SETS, prompt_set
from tests.helpers import Redness, essence

GOOD = "a red circle"


class Shell:
    """Runs commands in this process and keeps what they printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], weights: Path, folder: Path):
        self.capsys, self.folder = capsys, folder
        self.light = ["--model", str(weights), "--verifier", "tests.helpers:brightness", "--steps", "4", "--rows", "2",
                      "--threads", "1", "--no-bf16", "--quiet"]  # fmt: skip

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self.capsys.readouterr()
        code = cli.main(words)
        return (code, *self.capsys.readouterr())

    def draw(self, *words: str, out: str = "run") -> tuple[int, str, str]:
        return self("draw", *self.light, "--out", str(self.folder / out), *words)

    def refuses(self, result: tuple[int, str, str], code: int, pattern: str) -> None:
        """Exit code, a pattern to be found in one or two lines on stderr, no traceback, and no folder."""
        found, _, err = result
        assert found == code, err
        assert re.search(pattern, err), err
        assert err.startswith("secondlook: ")
        assert len(err.strip().splitlines()) <= 2, err
        assert "Traceback" not in err
        assert not (self.folder / "run").exists()


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setattr(builtin, "judge", Redness)
    return Shell(capsys, weights, tmp_path)


# ---- refused: what was typed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["a red circel"], 'unknown word "circel"; did you mean "circle"'),
        ([""], "The prompt is empty"),
        (["   "], "The prompt is empty"),
        ([], "Give either one prompt in quotes or --prompts FILE"),
        ([GOOD, "--prompts", "x"], "Give either one prompt"),
        ([GOOD, "a blue cross"], "one word too many.*in quotes"),
        ([GOOD, "--nfe", "3"], "One sample costs 4 nfe here; the budget of 3 nfe buys none"),
        ([GOOD, "--evals", "7"], "One sample costs 8 evals"),
        ([GOOD, "--nfe", "5", "--plan", "paths(n=2)"], r"The first picture of paths\(n=2, .*\) costs \d+ nfe"),
        ([GOOD, "--nfe", "0"], "must be above 0; got nfe = 0"),
        ([GOOD, "--nfe", "-5"], "must be above 0; got nfe = -5"),
        ([GOOD, "--verdicts", "-1"], "must be above 0"),
        ([GOOD, "--nfe", "many"], "expects a whole number, got 'many'"),
        ([GOOD, "--nfe", "1.5"], "expects a whole number"),
        ([GOOD, "--nfe", "nan"], "expects a whole number"),
        ([GOOD, "--seconds", "nan"], "expects a finite number, got 'nan'"),
        ([GOOD, "--seconds", "inf"], "expects a finite number"),
        ([GOOD, "--seconds", "0"], "must be above 0"),
        ([GOOD, "--plan", "randm"], 'no plan "randm"; did you mean "random"'),
        ([GOOD, "--plan", "random(m=3)"], r'random has no option "m"; .*It is written random\(n=20\)'),
        ([GOOD, "--plan", "zero_order(neighbors=3)"], 'did you mean "neighbours"'),
        ([GOOD, "--plan", "zero_order(radius=2)"], "at most 1; got 2.0"),
        ([GOOD, "--plan", "random(n=0)"], "must be above 0"),
        ([GOOD, "--plan", "random(n=100000000000)"], "must be at most"),
        ([GOOD, "--plan", "random(n=__import__('os').getpid())"], "with plain values only"),
        ([GOOD, "--plan", "os:system"], "is not a plan"),
        ([GOOD, "--verifier", "lerned"], 'no verifier "lerned"; did you mean "learned"'),
        ([GOOD, "--verifier", "nowhere:thing"], "cannot be imported"),
        ([GOOD, "--solver", "heum"], 'no solver "heum"; did you mean "heun"'),
        ([GOOD, "--solver", "sde(scale=-1)"], "scale must be 0 or above"),
        ([GOOD, "--model", "scenez"], "neither a file nor a shipped model"),
        ([GOOD, "--model", "."], "neither a file nor a shipped model"),
        ([GOOD, "--steps", "0"], "--steps must be from 1"),
        ([GOOD, "--steps", "1000000000"], "--steps must be from 1 to 10000"),
        ([GOOD, "--rows", "0"], "--rows must be from 1"),
        ([GOOD, "--threads", "0"], "--threads must be from 1"),
        ([GOOD, "--threads", "-2"], "--threads must be from 1"),
        ([GOOD, "--seed", "-1"], "--seed must be from 0"),
        ([GOOD, "--guidance", "nan"], "expects a finite number"),
        ([GOOD, "--guidance", "-1"], "--guidance must be from 0 to 1000; got -1"),
        ([GOOD, "--shift", "0"], "--shift must be above 0"),
        ([GOOD, "--nfee", "40"], 'no option "--nfee".*did you mean "--nfe"'),
    ],
    ids=lambda v: " ".join(v)[:50] if isinstance(v, list) else "",
)
def test_what_was_typed_wrong_exits_2_and_leaves_nothing(shell: Shell, words: list[str], pattern: str) -> None:
    shell.refuses(shell.draw(*words), 2, pattern)


def test_unknown_commands_and_names(shell: Shell) -> None:
    shell.refuses(shell("drwa", GOOD), 2, 'no command "drwa"; did you mean "draw"')
    shell.refuses(shell("draw", GOOD), 2, "--out")
    shell.refuses(shell("list", "plan"), 2, 'did you mean "plans"')
    shell.refuses(shell("prompts", "scenes-tst"), 2, 'did you mean "scenes-test"')


def test_an_out_that_is_taken(shell: Shell) -> None:
    full, file = shell.folder / "full", shell.folder / "file"
    full.mkdir()
    (full / "diary.txt").write_text("mine")
    file.write_text("mine")
    shell.refuses(shell.draw(GOOD, out="full"), 2, "is not empty.*nothing was written")
    shell.refuses(shell.draw(GOOD, out="file"), 2, "is a file; --out expects a folder")
    shell.refuses(shell.draw(GOOD, "--plan", "random(n=1)", out="file/below"), 2, "cannot be made|is a file")
    assert [p.name for p in full.iterdir()] == ["diary.txt"]
    assert file.read_text() == "mine"


# ---- refused: prompts files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"a red circle\n\nthree squars\n", r'prompts.txt, line 3: .*unknown word "squars"; did you mean "squares"'),
        (b'{"prompt": "a red circle"}\n{"prompt": \n', "line 2: this is not JSON"),
        (b'{"tag": "colors"}\n', 'line 1: this record has no "prompt"'),
        (b'{"prompt": 3}\n', 'line 1: this record has no "prompt"'),
        (b'{"prompt": "a red circle", "include": []}\n', "line 1: .*does not say what its prompt"),
        (b'{"a":' * 100_000, "line 1: this is not JSON"),
        (b"[1]\n", "line 1: "),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "cannot be read as text"),
        (b"\x00\x00\x00\n", "line 1: .*unknown word"),
        (b"", "holds no prompt"),
        (b"\n \r\n\t\n", "holds no prompt"),
        ("a red circle\u2028\x1b[2Ja blue square\n".encode(), r'line 1: .*unknown word "circle\\u2028\\x1b\[2Ja"'),
    ],
    ids=range(12),
)
def test_a_bad_prompts_file_is_refused_with_its_line(shell: Shell, content: bytes, pattern: str) -> None:
    path = shell.folder / "prompts.txt"
    path.write_bytes(content)
    shell.refuses(shell.draw("--prompts", str(path)), 2, pattern)


@pytest.mark.parametrize(("path", "pattern"), [("missing.txt", "There is no prompts file"), (".", "cannot be read")])
def test_a_prompts_file_that_is_none(shell: Shell, path: str, pattern: str) -> None:
    shell.refuses(shell.draw("--prompts", str(shell.folder / path)), 2, pattern)


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa red circle\nthree squares\n", b"a red circle\r\nthree squares", b"a red circle\r\rthree squares\r",
                                     b'{"prompt": "a red circle", "tag": "colors"}\r\n  three squares  \n'])  # fmt: skip
def test_prompts_files_of_other_editors_are_read(tmp_path: Path, content: bytes) -> None:
    from secondlook.cli.prompts import read_prompts

    (tmp_path / "p").write_bytes(content)
    assert read_prompts(tmp_path / "p", Settings()) == ["a red circle", "three squares"]


# ---- failures while working: exit 1 ----------------------------------------------------------------------------------


def test_damaged_weights_exit_1(shell: Shell, weights: Path, network: TextSiT) -> None:
    content, path = weights.read_bytes(), shell.folder / "w.safetensors"

    def refused(pattern: str, code: int = 1) -> None:
        shell.refuses(shell.draw(GOOD, "--model", str(path)), code, pattern)

    for broken in (b"", content[:100], content[: len(content) // 2], b"hello" * 99, content[:-1]):
        path.write_bytes(broken)
        refused("cannot be read")
    tensors = network.state_dict()
    config = network.describe()
    save_file(tensors, path)
    refused("cannot be read")  # no description at all
    save_file(tensors, path, {"config": "{"})
    refused("cannot be read")
    save_file({k: v for k, v in tensors.items() if "patch_out" not in k}, path, {"config": json.dumps(config)})
    refused("do not fit their own description")
    save_file(tensors, path, {"config": json.dumps({**config, "width": 64})})
    refused("do not fit their own description")
    save_file(tensors, path, {"config": json.dumps({**config, "colour": 1})})
    refused("describe no network this release knows")
    save_file(tensors, path, {"config": json.dumps({**config, "kind": "verifier"})})
    refused('hold a "verifier"; a "sit" was expected', 2)


@pytest.mark.parametrize("command", [["resume"], ["report"], ["replay", "0"], ["export", "--out", "e"]])
def test_what_is_no_run_and_what_is_a_damaged_one(shell: Shell, command: list[str]) -> None:
    name, *rest = command
    shell.refuses(shell(name, str(shell.folder / "nowhere"), *rest), 2, "is not a run")
    shell.refuses(shell(name, str(shell.folder), *rest), 2, "is not a run")
    (shell.folder / "run.sqlite").write_bytes(b"not a database at all, but long enough to be asked" * 40)
    shell.refuses(shell(name, str(shell.folder), *rest), 1, "run.sqlite cannot be read.*Restore it from a copy")
    assert not (shell.folder / "e").exists()


def test_a_full_disk_leaves_a_run_that_can_be_resumed(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, run = shell.folder / "whole", shell.folder / "cut"
    plan = ("--plan", "zero_order(neighbours=2)", "--nfe", "72")
    assert shell.draw(GOOD, *plan, out="whole")[0] == 0
    save = Store.save_picture

    def full(self: Store, name: int | str, picture: object) -> None:
        if name == 3:  # writes to /dev/full fail as on a disk without room
            path = self.picture_path(name)
            path.with_name(f"{path.name}.{os.getpid()}.part").symlink_to("/dev/full")
        save(self, name, picture)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save_picture", full)
        shell.refuses(shell.draw(GOOD, *plan, out="cut"), 1, "No space left on device.*free some space.*is kept")
    connect = store_module._connect

    def small(path: Path) -> object:
        db = connect(path)
        db.execute("PRAGMA max_page_count=1")  # SQLite reads it as: no more pages than there are
        return db

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_connect", small)
        code, _, err = shell("resume", str(run))
    assert code == 1
    assert re.search(r"\nsecondlook: .*database or disk is full\. .*free some space", err), err  # below the progress
    assert "Traceback" not in err
    assert shell("resume", str(run))[0] == 0
    assert essence(Record.read(Store.open(run))) == essence(Record.read(Store.open(whole)))


def test_a_disk_full_from_the_start_leaves_no_folder(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.os, "replace", full)
    shell.refuses(shell.draw(GOOD), 1, "No space left on device")


def test_a_verifier_that_keeps_failing_is_one_line(shell: Shell) -> None:
    code, _, err = shell.draw(GOOD, "--plan", "random(n=8)", "--verifier", "tests.helpers:always_failing")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert re.search("failed .*before anything was drawn; mend it, then draw", err)


def test_an_error_nobody_foresaw_is_one_line_too(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "draw", lambda *a, **k: 1 / 0)
    shell.refuses(shell.draw(GOOD), 1, "ZeroDivisionError: division by zero.*SECONDLOOK_TRACEBACK=1")
    monkeypatch.setenv("SECONDLOOK_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        shell.draw(GOOD)


# ---- what works ------------------------------------------------------------------------------------------------------


def test_draw_export_and_replay(shell: Shell) -> None:
    file = shell.folder / "prompts.txt"
    file.write_text("a red circle\nthree squares\n")
    for out in ("one", "two"):
        code, text, err = shell.draw("--prompts", str(file), "--plan", "random(n=3)", "--seed", "5", out=out)
        assert code == 0, err
        assert err == ""  # --quiet
        assert "a red circle" in text
        assert f"report: {shell.folder / out / 'report.html'}" in text
        assert (
            shell(
                "export", str(shell.folder / out), "--format", "geneval", "--out", str(shell.folder / f"{out}-export")
            )[0]
            == 0
        )
    trees = [{str(p.relative_to(d)): p.read_bytes() for p in d.rglob("*") if p.is_file()} for d in
             (shell.folder / "one-export", shell.folder / "two-export")]  # fmt: skip
    assert trees[0] == trees[1]
    assert sorted(trees[0]) == [f"0000{i}/{f}" for i in range(2) for f in ("metadata.jsonl", "samples/0000.png")]
    record = json.loads(trees[0]["00001/metadata.jsonl"])
    assert record == {"tag": "counting", "include": [{"class": "square", "count": 3}],
                      "exclude": [{"class": "square", "count": 4}], "prompt": "three squares"}  # fmt: skip
    with Image.open(shell.folder / "one-export/00000/samples/0000.png") as image:
        assert image.size == (64, 64)
        assert image.info == {}  # no times, no paths
    run = shell.folder / "one"
    assert (
        "the same picture, bit for bit" in shell("replay", str(run), "5", "--out", str(shell.folder / "again.png"))[1]
    )
    assert (shell.folder / "again.png").exists()
    shell.refuses(shell("replay", str(run), "6"), 2, "has no outcome 6; it holds 0 to 5")
    shell.refuses(shell("replay", str(run), "-1"), 2, "has no outcome -1")
    shell.refuses(shell("replay", str(run), "1", "--out", "x.doc"), 2, "expects a .png file")
    shell.refuses(shell("export", str(run), "--out", str(run)), 2, "is not an empty folder")
    shell.refuses(shell("export", str(run), "--format", "zip", "--out", str(shell.folder / "z")), 2, "no export format")
    shell.refuses(shell.draw(GOOD, out="one"), 2, "already holds a run.*resume")
    assert "is finished; there is nothing to resume" in shell("resume", str(run))[1]
    winner = Record.read(Store.open(run)).winner(1)
    assert winner is not None
    Image.new("RGB", (64, 64)).save(Store.open(run).picture_path(winner.id))
    shell.refuses(shell("export", str(run), "--out", str(shell.folder / "z")), 1, "not the one its run recorded")
    assert not (shell.folder / "z").exists()


def test_other_weights_are_not_taken_for_the_same_picture(shell: Shell, weights: Path, network: TextSiT) -> None:
    copy = shell.folder / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    assert shell.draw(GOOD, "--plan", "random(n=1)", "--model", str(copy), out="a")[0] == 0
    tensors = {k: v + 0.05 * torch.ones_like(v) for k, v in network.state_dict().items()}
    save_file(tensors, copy, {"config": json.dumps(network.describe())})
    code, _, err = shell("replay", str(shell.folder / "a"), "0")
    assert code == 1
    assert "NOT the same picture" in err


@pytest.mark.parametrize(
    ("what", "table"),
    [("plans", PLANS), ("verifiers", VERIFIERS), ("worlds", WORLDS), ("models", MODELS), ("solvers", SOLVERS)],
)
def test_list_names_everything_there_is(shell: Shell, what: str, table: dict[str, str]) -> None:
    code, text, _ = shell("list", what)
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == list(table)
    assert all(len(line.split()) > 3 for line in text.splitlines())  # each with a description


@pytest.mark.parametrize("name", SETS)
def test_prompts_prints_metadata_that_draw_reads_back(shell: Shell, name: str, tmp_path: Path) -> None:
    from secondlook.cli.prompts import read_prompts

    (tmp_path / "set.jsonl").write_text(shell("prompts", name)[1])
    assert read_prompts(tmp_path / "set.jsonl", Settings()) == [p.text for p in prompt_set(name)]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"secondlook {__version__}\n"


def test_a_person_is_told_at_once_that_something_is_loading(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["draw", GOOD, "--out", str(tmp_path / "run"), "--nfe", "8", *[w for w in shell.light if w != "--quiet"]]
    assert "loading" not in shell(*words)[2]  # into a file or a pipe
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    words[3] = str(tmp_path / "again")
    assert shell(*words)[2].startswith("secondlook: loading the model and its libraries ...\n")
    words[3] = str(tmp_path / "quiet")
    assert "loading" not in shell(*words, "--quiet")[2]
