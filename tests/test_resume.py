"""A process killed at any moment loses nothing it reported: the run goes on to the same end, and nothing is paid twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondlook import cli
from secondlook.engine.record import Record
from secondlook.engine.store import LOG, Event, Store
from secondlook.verify import builtin
from tests.helpers import Redness, essence, spent

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
PROMPTS = "a red circle\nthree squares\na blue cross and a green triangle\n"
RUNS = {"zero_order(neighbours=3)": 40, "paths(n=2, width=2)": 56}
KILLS = 12  # of each run


@pytest.fixture(autouse=True)
def _light_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "judge", Redness)


def _child(words: list[str], log: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = os.fdopen(2, "w", closefd=False)  # type: ignore[assignment]
        code = cli.main(words)
        sys.stderr.flush()
    os._exit(code)


class Process:
    """The command line in a process of its own, forked so that torch need not be loaded again for every kill."""

    def __init__(self, words: list[str], log: Path):
        self.log = log
        self.inner = multiprocessing.get_context("fork").Process(target=_child, args=(words, log))
        self.inner.start()

    def send(self, number: int) -> None:
        assert self.inner.pid
        os.kill(self.inner.pid, number)

    def end(self) -> int:
        self.inner.join(120)
        assert self.inner.exitcode is not None
        return self.inner.exitcode

    def run_until(self, folder: Path, files: int) -> bool:
        """Wait for ``files`` files in the run's folders, or for the end; returns whether the process still runs."""
        while self.inner.is_alive() and _files(folder) < files:
            time.sleep(0.001)
        return self.inner.is_alive()


def _files(folder: Path) -> int:
    return sum(len(list((folder / name).glob("*"))) for name in ("pictures", "states") if (folder / name).is_dir())


def _events(folder: Path) -> list[Event]:
    if not (folder / LOG).exists():
        return []
    store = Store.open(folder)
    events = list(store.events())
    store.close()
    return events


def _outcomes(folder: Path) -> list[Event]:
    return [e for e in _events(folder) if e.kind in ("outcome", "baseline")]


@pytest.fixture
def words(weights: Path, tmp_path: Path) -> list[str]:
    file = tmp_path / "prompts.txt"
    file.write_text(PROMPTS)
    return ["draw", "--prompts", str(file), "--model", str(weights), "--verifier", "tests.helpers:brightness", "--steps", "4",
            "--rows", "3", "--threads", "1", "--no-bf16", "--quiet"]  # fmt: skip


def _chances(seed: int) -> Iterator[tuple[int, float]]:
    """How many more files to wait for and how long after them to strike."""
    rng = random.Random(seed)
    while True:
        yield rng.choice((0, 0, 1, 2, 3)), rng.uniform(0.0, 0.02)


@pytest.mark.parametrize("plan", RUNS)
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(words: list[str], tmp_path: Path, plan: str) -> None:
    whole, folder, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    words += ["--plan", plan, "--nfe", str(RUNS[plan])]
    assert Process([*words, "--out", str(whole)], log).end() == 0, log.read_text()
    kills, chances = 0, _chances(len(plan))
    reported: list[Event] = []
    while kills < KILLS:
        begun = (folder / LOG).exists()
        process = Process(["resume", str(folder)] if begun else [*words, "--out", str(folder)], log)
        more, delay = next(chances)
        if process.run_until(folder, _files(folder) + more):
            time.sleep(delay)
        process.send(signal.SIGKILL)
        code = process.end()
        assert code in (-signal.SIGKILL, 0), log.read_text()
        kills += code == -signal.SIGKILL
        now = _outcomes(folder)
        assert now[: len(reported)] == reported  # what was reported stays, word for word
        reported = now
        for event in now:
            name = event.outcome if event.outcome is not None else f"baseline-{event.task:04d}"
            if event.body["sha256"]:
                Store.open(folder).checked(name, event.body["sha256"])  # nothing is reported that is not there
        assert code, f"the run ended after {kills} kills; give it more to do"
    assert Process(["resume", str(folder)], log).end() == 0, log.read_text()
    _same_end(whole, folder)
    assert [e.outcome for e in _outcomes(folder)[: len(reported)]] == [e.outcome for e in reported]


def _same_end(whole: Path, folder: Path) -> None:
    one, two = Record.read(Store.open(whole)), Record.read(Store.open(folder))
    assert one.done
    assert two.done
    assert essence(two) == essence(one)
    assert spent(two) == spent(one)
    assert two.ended == one.ended
    assert {i: o.score for i, (o, _) in two.baselines.items()} == {i: o.score for i, (o, _) in one.baselines.items()}
    assert [two.winner(i) for i in range(3)] == [one.winner(i) for i in range(3)]
    outcomes = [e.outcome for e in _outcomes(folder) if e.kind == "outcome"]
    assert len(outcomes) == len(set(outcomes)) == len(one.outcomes)
    assert _contents(folder / "pictures") == _contents(whole / "pictures") != {}


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.png")}


def test_ctrl_c_leaves_a_run_and_says_how_to_go_on(words: list[str], tmp_path: Path) -> None:
    whole, folder, log = tmp_path / "whole", tmp_path / "a run", tmp_path / "log"
    words += ["--plan", "random(n=8)"]
    assert Process([*words, "--out", str(whole)], log).end() == 0, log.read_text()
    log.write_text("")
    process = Process([*words, "--out", str(folder)], log)
    assert process.run_until(folder, 4)
    process.send(signal.SIGINT)
    assert process.end() == 130
    assert f"secondlook resume '{folder}'" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not Record.read(Store.open(folder)).done
    log.write_text("")
    assert Process(["resume", str(folder)], log).end() == 0, log.read_text()
    _same_end(whole, folder)
    log.write_text("")
    before = _contents(folder / "pictures"), _events(folder)
    assert Process(["resume", str(folder)], log).end() == 0
    assert "is finished; there is nothing to resume" in log.read_text()
    assert (_contents(folder / "pictures"), _events(folder)) == before


def test_a_run_under_way_cannot_be_resumed_by_another_process(words: list[str], tmp_path: Path) -> None:
    folder, log, other = tmp_path / "run", tmp_path / "log", tmp_path / "other"
    process = Process([*words, "--plan", "random(n=100)", "--out", str(folder)], log)
    try:
        assert process.run_until(folder, 8)  # two batches and more: the first is reported
        process.send(signal.SIGSTOP)
        assert Process(["resume", str(folder)], other).end() == 2
        assert "Another process is writing" in other.read_text()
    finally:
        process.send(signal.SIGKILL)
        process.end()
    assert Process(["replay", str(folder), "0"], other).end() == 0  # and a killed one is nobody's
