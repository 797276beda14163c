"""What a run costs however many pictures it draws: only what its record needs, and a run that nobody keeps waits for no disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import secondlook
from examples.own_backend import OwnBackend
from secondlook.adapters import schedule, tiny, weights
from secondlook.disk import versions
from secondlook.engine.journal import TOGETHER, Journal
from secondlook.engine.record import Record
from secondlook.engine.store import Store

PICTURES = [np.full((8, 8, 3), i, dtype=np.uint8) for i in range(6)]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inode of whatever is synced to the disk."""
    found: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (found.append(os.fstat(handle).st_ino), fsync(handle))[1])
    return found


def how(**more: Any) -> dict[str, Any]:
    return {"model": OwnBackend(), "steps": 4, "seed": 0, **more}


# ---- runs that nobody keeps ----------------------------------------------------------------------------------------------


def test_a_run_into_a_folder_of_its_own_waits_for_no_disk_and_one_that_was_named_does(
    tmp_path: Path, synced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Store] = []
    create = Store.create
    monkeypatch.setattr(Store, "create", lambda *a, **k: (opened.append(create(*a, **k)), opened[-1])[1])
    secondlook.draw("r", "random(n=3)", **how())
    assert synced == []
    assert opened[0]._db.execute("PRAGMA synchronous").fetchone() == (0,)
    secondlook.draw("r", "random(n=3)", tmp_path / "run", **how())
    there = {p.stat().st_ino for p in (tmp_path / "run" / "pictures").iterdir()}
    assert there | {(tmp_path / "run" / "pictures").stat().st_ino} < set(synced)
    assert opened[1]._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_run_that_nobody_keeps_is_the_same_run(tmp_path: Path) -> None:
    one = secondlook.draw("r", "random(n=3)", **how())
    two = secondlook.draw("r", "random(n=3)", tmp_path / "run", **how())
    assert Record.read(Store.open(one.folder)).digests == Record.read(Store.open(two.folder)).digests
    assert np.array_equal(one[0].picture, two[0].picture)
    assert Store.open(one.folder)._db.execute("PRAGMA synchronous").fetchone() == (
        2,
    )  # whoever opens it by name keeps it


KILLED = """
import os, signal, secondlook
from examples.own_backend import OwnBackend

def stop(driver):
    if driver.drawn >= 2:
        driver.journal.flush()
        print(driver.store.folder, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

secondlook.draw("r", "random(n=5)", model=OwnBackend(), steps=4, seed=0, rows=1, progress=stop)
"""


def test_a_killed_process_leaves_a_run_to_go_on_with_though_nobody_named_its_folder(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=root, capture_output=True, text=True, check=False,
                          env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(root)})  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = Path(done.stdout.strip())
    kept = Record.read(Store.open(folder))
    assert 2 <= len(kept.outcomes) < 5
    assert all((folder / "pictures" / f"{n:06d}.png").exists() for n in kept.outcomes)
    secondlook.resume(folder, model=OwnBackend())
    whole = secondlook.draw("r", "random(n=5)", tmp_path / "whole", **how(rows=1))
    assert Record.read(Store.open(folder)).digests == Record.read(Store.open(whole.folder)).digests


# ---- the log's writer ----------------------------------------------------------------------------------------------------


class Noting:
    """A store that notes what it is asked for, and waits in its first picture until it is told to go on."""

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        self.asked: list[Any] = []
        self.most = self._now = 0
        self._lock = threading.Lock()

    def save_picture(self, name: int, picture: np.ndarray) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self.begun.set()
        self.go.wait(20)
        with self._lock:
            self._now -= 1
            self.asked.append(name)

    def sync_pictures(self) -> None:
        self.asked.append("names")

    def append(self, lines: list[Any]) -> None:
        self.asked.append([line[0] for line in lines])


def test_pictures_that_came_together_are_written_together_and_reported_when_all_are_there() -> None:
    store = Noting()
    journal = Journal(store)  # type: ignore[arg-type]
    journal.write([("outcome", 0, 0, {})], list(enumerate(PICTURES)))
    until = time.monotonic() + 20
    while store.most < TOGETHER and time.monotonic() < until:
        time.sleep(0.002)
    store.go.set()
    journal.close()
    assert sorted(store.asked[:6]) == list(range(6))
    assert store.asked[6:] == ["names", ["outcome"]]
    assert store.most == TOGETHER


def test_what_comes_while_pictures_are_written_is_committed_with_them_up_to_the_next_pictures() -> None:
    store = Noting()
    journal = Journal(store)  # type: ignore[arg-type]
    journal.write([("a", 0, 0, {})], [(0, PICTURES[0])])
    assert store.begun.wait(20)
    journal.write([("b", 0, None, {})])
    journal.write([("c", 0, None, {})])
    journal.write([("d", 0, 1, {})], [(1, PICTURES[1])])
    journal.write([("e", None, None, {})])
    closing = threading.Thread(target=journal.close)
    closing.start()
    store.go.set()
    closing.join(20)
    assert not closing.is_alive()
    assert store.asked == [0, "names", ["a", "b", "c"], 1, "names", ["d", "e"]]


def test_one_of_several_pictures_that_cannot_be_written_is_not_reported(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", {"prompts": ["a"]})
    (store.folder / "pictures" / "000003.png").mkdir()  # no file can take this name
    journal = Journal(store)
    journal.write([("outcome", 0, 0, {})], list(enumerate(PICTURES)))
    with pytest.raises(OSError, match="000003"):
        journal.close()
    assert list(store.events()) == []
    assert [p.name for p in (store.folder / "pictures").iterdir() if "part" in p.name] == []


# ---- pipelines -----------------------------------------------------------------------------------------------------------


def test_a_second_run_hashes_no_weight_and_reads_no_schedule_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = secondlook.load(tiny.make("pixart"))
    words = {"model": held, "verifier": "sharpness", "steps": 2, "seed": 0}
    first = secondlook.draw("a ball", "random(n=1)", tmp_path / "one", **words)
    for module, name in ((weights, "_hashed"), (schedule, "read")):
        monkeypatch.setattr(module, name, lambda *_, name=name: pytest.fail(f"{name} again"))
    monkeypatch.setattr(weights, "ThreadPoolExecutor", lambda *_: pytest.fail("threads for nothing"))
    second = secondlook.draw("a ball", "random(n=1)", tmp_path / "two", **words)
    configs = [Store.open(run.folder).config["weights"] for run in (first, second)]
    assert configs[0] == configs[1]


def test_a_schedule_is_read_again_where_its_scheduler_was_changed() -> None:
    held = secondlook.load(tiny.make("sd3"))
    before = held.schedule(4)
    assert held.schedule(7) is not before
    assert held.schedule(4) is before
    held.pipe.scheduler.set_shift(9.0)
    assert held.schedule(4).times != before.times
    held.pipe.scheduler.set_shift(3.0)
    assert held.schedule(4).times == before.times


def test_digests_of_many_and_of_few_bytes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    part = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64))
    pools: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int):
            pools.append(workers)
            super().__init__(workers)

    monkeypatch.setattr(weights, "ThreadPoolExecutor", Pool)
    few = weights.digest_of("x", {"part": part})
    assert pools == []
    monkeypatch.setattr(weights, "SMALL", 0)
    monkeypatch.setattr(weights, "_known", {})
    assert weights.digest_of("x", {"part": part}) == few
    assert pools == [weights.WORKERS]
    with torch.no_grad():
        part[0].bias[5] += 1
    assert weights.digest_of("x", {"part": part}) != few


def test_the_commit_is_asked_for_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    found = versions.commit()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked again"))
    assert versions.commit() == found
