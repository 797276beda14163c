"""Wrong values at every public function and every flag: one sentence, no traceback, nothing left behind."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import secondlook
from secondlook import SecondlookError
from secondlook.cli.app import main
from secondlook.settings import OPTIONS
from secondlook.types import UNITS

LONG = "9" * 400
TEXTS = [
    "", " ", "a", "a circle", "random", "random(", "random(n=)", "random(n=-1)", "os:system", "../..", "/", "~", "\x00", "é\u2028", LONG,
    "a " * 3000, "True", "none", "cpu", "cuda:7", "float16", "1", "-1", "nan", "inf", "0.5", "1e400", "[1]", "{}", "'", '"', "--", "-",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**70, 0.0, -0.5, 1.5, 1e308, float("nan"), float("inf"), -float("inf"), b"x", [], [1], ["a"], (), (0, 1),
    (1, 0), ("a", "b"), {}, {"a": 1}, set(), np.int64(3), np.float32(0.5), np.nan, np.zeros(3), torch.zeros(2), torch.tensor(3), Path("x"),
    Path(LONG), object(), object, len, lambda x: x, 1j, range(3), *TEXTS,
]  # fmt: skip
SHORT: dict[str, Any] = {"steps": 1, "nfe": 1, "plan": "random(n=1)"}
NAMES = [*OPTIONS, *UNITS, *(f"total_{u}" for u in UNITS)]
COMMANDS = ("draw", "sample", "bench", "report", "export", "list", "probe", "calibrate", "audit", "evaluate", "prompts", "resume", "replay",
            "rescore", "pairs", "import sit", "import inception", "train digits", "train folder:nowhere")  # fmt: skip
SECONDS = 60  # for any one call: the largest takes one


class Hang(BaseException):
    """A call that does not end."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    secondlook.draw("a circle", "random(n=2)", folder, steps=1)
    return folder


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, with another for what is temporary; a call that hangs ends."""

    def ring(*_: object) -> None:
        raise Hang

    (tmp_path / "temporary").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    before = signal.signal(signal.SIGALRM, ring)
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def functions(run: Path) -> dict[str, Callable[[Any, Any], Any]]:
    return {
        "draw(prompts)": lambda v, w: secondlook.draw(v, **SHORT),
        "draw(plan)": lambda v, w: secondlook.draw("a circle", **{**SHORT, "plan": v}),
        "draw(out)": lambda v, w: secondlook.draw("a circle", out=v, **SHORT),
        "resume": lambda v, w: secondlook.resume(v),
        "resume(model)": lambda v, w: secondlook.resume(run, model=v),
        "open_run": lambda v, w: secondlook.open_run(v),
        "replay": lambda v, w: secondlook.replay(v, w),
        "replay(outcome)": lambda v, w: secondlook.replay(run, v),
        "rescore": lambda v, w: secondlook.rescore(v, verifier=w),
        "rescore(verifier)": lambda v, w: secondlook.rescore(run, verifier=v),
        "write_report": lambda v, w: secondlook.write_report(v),
        "load": lambda v, w: secondlook.load(v),
    }


def wrong_in_python(rng: random.Random, run: Path, room: Path) -> str | None:
    """One call with a value that has no business there; what is wrong with the answer, if anything."""
    calls = functions(run)
    name = rng.choice([*calls, *NAMES])
    v, w = rng.choice(VALUES), rng.choice(VALUES)
    said = f"{name} {str(v)[:40]!r} {str(w)[:20]!r}"
    signal.alarm(SECONDS)
    try:
        if name in calls:
            calls[name](v, w)
        else:
            secondlook.draw("a circle", **{**SHORT, name: v})
    except SecondlookError as error:
        left = [p for place in ("temporary", "here") for p in (room / place).iterdir()]
        return f"{said}: left {left} behind, {error}" if left else None
    except BaseException as error:
        return f"{said}: {type(error).__name__}: {str(error)[:150]}"
    finally:
        signal.alarm(0)
        _clear(room)
    return None


def wrong_on_the_command_line(rng: random.Random, flags: list[tuple[str, str]], room: Path) -> str | None:
    command, flag = rng.choice(flags)
    first = {
        "draw": ["a circle", "--steps", "1", "--nfe", "1"],
        "sample": ["--count", "1", "--steps", "1"],
        "train digits": ["--steps", "1", "--batch", "8"],
        "pairs": ["--pool", "2"],
    }.get(command, [])
    words = [*command.split(), *first, flag, rng.choice(TEXTS)]
    out, err = io.StringIO(), io.StringIO()
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code: Any = main(words)
            except SystemExit as ended:
                code = ended.code
        if code not in (0, 1, 2) or "Traceback" in err.getvalue():
            return f"{words}: {code}, {err.getvalue()[-200:]}"
        if code and any((room / "here").iterdir()):
            return f"{words}: left {list((room / 'here').iterdir())} behind"
    except BaseException as error:
        return f"{words}: {type(error).__name__}: {str(error)[:150]}"
    finally:
        signal.alarm(0)
        _clear(room)
    return None


def _clear(room: Path) -> None:
    for place in ("temporary", "here"):
        for root, folders, files in os.walk(room / place, topdown=False):
            for f in files:
                os.unlink(os.path.join(root, f))
            for d in folders:
                os.rmdir(os.path.join(root, d))


def all_flags() -> list[tuple[str, str]]:
    """Every flag that a command's help names."""
    found = set()
    for command in COMMANDS:
        shown = io.StringIO()
        with (
            contextlib.redirect_stdout(shown),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.suppress(SystemExit),
        ):
            main([*command.split(), "--help"])
        found |= {(command, f) for f in re.findall(r"(?<![\w-])--[a-z][a-z-]+", shown.getvalue()) if f != "--help"}
    assert len({c for c, _ in found}) >= 15  # some have no flags
    return sorted(found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_wrong_values_in_python_are_answered_in_a_sentence(run: Path, room: Path, count: int) -> None:
    rng = random.Random(count)
    faults = [said for _ in range(count) if (said := wrong_in_python(rng, run, room))]
    assert not faults, "\n".join(faults)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_wrong_values_on_the_command_line_are_answered_in_a_sentence(room: Path, count: int) -> None:
    rng, flags = random.Random(count), all_flags()
    faults = [said for _ in range(count) if (said := wrong_on_the_command_line(rng, flags, room))]
    assert not faults, "\n".join(faults)
