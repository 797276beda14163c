"""The run's folder: append-only, atomic, held by one writer, and honest about damage."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secondlook.disk.atomic import write_whole
from secondlook.engine import store as module
from secondlook.engine.journal import Journal
from secondlook.engine.record import Record, outcome_body
from secondlook.engine.states import States
from secondlook.engine.store import LOG, Store, sha256
from secondlook.errors import ConfigError, DamagedError
from secondlook.moves import Fresh
from secondlook.noise import Key
from secondlook.types import Condition, Cost, Outcome, Proposal, State

CONFIG = {"prompts": ["a red circle"], "seed": 3}
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "run", CONFIG)


def body(score: float = 0.5) -> dict[str, object]:
    outcome = Outcome(
        4,
        Proposal(Fresh(Key(0xAB)), Condition("a red circle")),
        score,
        {"colour": math.nan, "count": 1.0},
    )
    return outcome_body(outcome, 2, Cost(nfe=4, evals=8, verdicts=1, decodes=1, seconds=0.25), "00")


# ---- the log ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement", ["UPDATE events SET body='{}'", "DELETE FROM events", "UPDATE events SET at=0 WHERE seq=1"]
)
def test_what_is_logged_cannot_be_changed(store: Store, statement: str) -> None:
    store.append([("outcome", 0, 4, body())])
    before = list(store.events())
    with sqlite3.connect(store.folder / LOG) as db, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        db.execute(statement)
    assert list(store.events()) == before


def test_an_outcome_is_logged_once_or_not_at_all(store: Store) -> None:
    store.append([("outcome", 0, 4, body())])
    with pytest.raises(DamagedError, match="UNIQUE"):
        store.append([("outcome", 0, 5, body()), ("outcome", 0, 4, body())])
    assert [e.outcome for e in store.events()] == [4]  # lines appended together stand or fall together


def test_a_reading_of_nan_comes_back_as_nan_and_the_log_stays_plain_json(store: Store) -> None:
    store.append([("outcome", 0, 4, body(math.nan))])
    [(text,)] = store._db.execute("SELECT body FROM events").fetchall()
    assert json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))["score"] == "nan"
    record = Record.read(Store.open(store.folder))
    outcome = record.outcomes[4]
    assert math.isnan(outcome.score)
    assert math.isnan(outcome.components["colour"])
    assert outcome.components["count"] == 1.0
    assert record.costs[4] == Cost(nfe=4, evals=8, verdicts=1, decodes=1, seconds=0.25)
    assert outcome.proposal == Proposal(Fresh(Key(0xAB)), Condition("a red circle"))


@pytest.mark.parametrize("score", [0.1, 1 / 3, 5e-324, 1 - 2**-53])
def test_scores_come_back_bit_for_bit(store: Store, score: float) -> None:
    store.append([("outcome", 0, 4, body(score))])
    assert Record.read(store).outcomes[4].score == score


# ---- making and opening ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["notes.txt", "pictures/holiday.png", "states/x", ".hidden", LOG])
def test_a_folder_that_holds_anything_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(ConfigError, match=r"is not empty|already holds a run"):
        Store.create(tmp_path, CONFIG)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_what_a_killed_creation_left_is_taken_over(tmp_path: Path) -> None:
    for name in ("pictures", "states"):
        (tmp_path / name).mkdir()
    (tmp_path / (LOG + ".new")).write_bytes(b"half a file")
    (tmp_path / (LOG + ".new-journal")).write_bytes(b"and its journal")
    assert Store.create(tmp_path, CONFIG).config == CONFIG
    assert not list(tmp_path.glob("*.new*"))


@pytest.mark.parametrize("existed", [False, True])
def test_a_creation_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool) -> None:
    folder = tmp_path / "run"
    if existed:
        folder.mkdir()
    monkeypatch.setattr(
        module, "_SCHEMA", "CREATE TABLE meta (key, value); PRAGMA max_page_count=1; CREATE TABLE b (x);"
    )
    with pytest.raises(OSError, match="full"):
        Store.create(folder, CONFIG)
    assert folder.exists() == existed
    assert not list(tmp_path.glob("run/*"))


def test_a_second_writer_is_refused(store: Store) -> None:
    with store.writing():
        other = Store.open(store.folder)
        with pytest.raises(ConfigError, match="Another process is writing"), other.writing():
            pytest.fail("two writers at once")
        assert list(other.events()) == []  # reading is free
    with store.writing():
        pass  # and the lock is let go


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_without_a_log_is_no_run(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a run: it holds no run.sqlite"):
        Store.open(tmp_path / folder)
    assert not list(tmp_path.iterdir())


# ---- pictures and states ---------------------------------------------------------------------------------------------


def test_a_picture_comes_back_pixel_for_pixel(store: Store) -> None:
    store.save_picture(7, PICTURE)
    assert np.array_equal(store.picture(7), PICTURE)
    assert np.array_equal(store.checked(7, sha256(PICTURE)), PICTURE)
    assert [p.name for p in (store.folder / "pictures").iterdir()] == ["000007.png"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "picture.png"
    write_whole(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, step, fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]  # no half-written file takes up room


@pytest.mark.parametrize(
    "carry", [None, {"data": torch.full((1, 3, 4, 4), 0.3), "t": torch.tensor([0.1], dtype=torch.float64)}]
)
@pytest.mark.parametrize("known", [None, torch.full((1, 3, 4, 4), 1 / 7)])
@pytest.mark.parametrize("data", [None, torch.ones(1, 3, 4, 4)])
def test_a_state_comes_back_bit_for_bit(
    store: Store, data: torch.Tensor | None, known: torch.Tensor | None, carry: dict[str, torch.Tensor] | None
) -> None:
    state = State(torch.randn(1, 3, 4, 4), torch.tensor([1 / 3]), (Key.root(5),), torch.tensor([3]), data, carry, known)
    store.save_state(2, state)
    back = store.state(2)
    assert back is not None
    assert torch.equal(back.x, state.x)
    assert torch.equal(back.t, state.t)
    assert torch.equal(back.step, state.step)
    assert back.keys == state.keys
    for mine, theirs in ((data, back.data), (known, back.known)):
        assert (theirs is None) == (mine is None)
        assert mine is None or torch.equal(theirs, mine)  # type: ignore[arg-type]
    assert (back.carry is None) == (carry is None)
    for name, value in (carry or {}).items():
        assert back.carry is not None
        assert back.carry[name].dtype == value.dtype
        assert torch.equal(back.carry[name], value)
    assert store.state(3) is None


def row(size: int = 48) -> State:
    return State(torch.randn(1, size), torch.zeros(1), (Key.root(5),), torch.zeros(1, dtype=torch.long))


def test_a_half_made_state_is_on_the_disk_at_once_and_a_finished_one_only_where_memory_is_short(store: Store) -> None:
    states, half, whole = States(store), replace(row(), known=torch.ones(1, 48)), row()
    states.keep(0, half, half_made=True)
    states.keep(1, whole, half_made=False)
    resumed = States(store)
    back = resumed.find(0)
    assert back is not None
    assert back.known is not None
    assert torch.equal(back.x, half.x)
    assert torch.equal(back.known, torch.ones(1, 48))  # what a paid look saw is not bought again
    assert resumed.find(1) is None


@pytest.mark.parametrize("part", ["x", "data", "known", "carry"])
def test_as_shipped_states_hold_no_more_than_a_quarter_of_a_gigabyte(
    store: Store, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(store, "save_state", lambda number, state: saved.append(number))
    large = torch.zeros(1).expand(1, 2**24 + 1)  # says that it has 64 MiB and a little, and takes four bytes
    state, states = replace(row(4), **{part: {"last": large} if part == "carry" else large}), States(store)
    for number in range(6):
        states.keep(number, state, half_made=False)
    assert saved == [0, 1, 2]


# ---- what a power cut leaves -------------------------------------------------------------------------------------------


@pytest.fixture
def trail(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reaches the disk, in order: the inode of each file or folder that is synced, and "named" where a file takes its name."""
    found: list[Any] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (found.append(os.fstat(handle).st_ino), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (found.append("named"), rename(*paths))[1])
    return found


def inodes(*paths: Path) -> list[int]:
    return [p.stat().st_ino for p in paths]


def test_a_picture_and_its_name_are_on_the_disk_before_the_log_reports_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, trail: list[Any]
) -> None:
    append = store.append
    monkeypatch.setattr(store, "append", lambda lines: (trail.append("reported"), append(lines))[1])
    journal = Journal(store)
    journal.write([("outcome", 0, 4, body())], [(4, PICTURE)])
    journal.close()
    content, names = inodes(store.picture_path(4), store.folder / "pictures")
    assert trail == [content, "named", names, "reported"]


def test_a_picture_that_cannot_be_written_is_not_reported_and_nothing_behind_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = store.save_picture

    def full(name: int | str, picture: np.ndarray) -> None:
        if name == 5:
            raise OSError(28, "No space left on device")
        save(name, picture)

    monkeypatch.setattr(store, "save_picture", full)
    journal = Journal(store)
    journal.write([("outcome", 0, 4, body())], [(4, PICTURE)])
    journal.flush()
    journal.write([("outcome", 0, 5, body())], [(5, PICTURE)])
    with pytest.raises(OSError, match="No space"):
        journal.flush()
    with pytest.raises(OSError, match="No space"):
        journal.write([("outcome", 0, 6, body())], [(6, PICTURE)])
    journal.tell([("failure", 0, None, {})])
    with pytest.raises(OSError, match="No space"):
        journal.close()
    assert [e.outcome for e in store.events()] == [4]


def test_a_file_that_is_written_whole_is_on_the_disk_under_its_name(tmp_path: Path, trail: list[Any]) -> None:
    write_whole(tmp_path / "weights", b"dear")
    content, names = inodes(tmp_path / "weights", tmp_path)
    assert trail == [content, "named", names]


def test_a_new_log_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, trail: list[Any]) -> None:
    Store.create(tmp_path / "run", CONFIG)
    assert trail == [*inodes(tmp_path / "run" / LOG), "named"]


# ---- damage ----------------------------------------------------------------------------------------------------------


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(b ^ 0xFF for b in content[middle : middle + 40]) + content[middle + 40 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": _cut,
    "flipped": _flip,
    "emptied": lambda c: b"",
    "replaced": lambda c: b"hello" * 400,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_picture_is_said_to_be_damaged(store: Store, damage: str) -> None:
    store.save_picture(7, PICTURE)
    path = store.picture_path(7)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(DamagedError, match=r"000007\.png .*`secondlook replay` can draw it again"):
        store.checked(7, sha256(PICTURE))


def test_a_picture_broken_anywhere_gives_no_other_error(store: Store) -> None:
    store.save_picture(7, PICTURE)
    path, whole = store.picture_path(7), store.picture_path(7).read_bytes()
    for at in range(0, len(whole), len(whole) // 60):
        for broken in (whole[:at], whole[:at] + b"\xff\x00\xff" + whole[at + 3 :]):
            path.write_bytes(broken)
            try:
                assert np.array_equal(store.checked(7, sha256(PICTURE)), PICTURE)
            except DamagedError:
                continue


def test_another_picture_in_its_place_is_noticed(store: Store) -> None:
    store.save_picture(7, 255 - PICTURE)
    with pytest.raises(DamagedError, match="is not the one its run recorded"):
        store.checked(7, sha256(PICTURE))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_as_good_as_none(store: Store, damage: str) -> None:
    store.save_state(
        2, State(torch.randn(1, 3, 8, 8), torch.zeros(1), (Key.root(5),), torch.zeros(1, dtype=torch.long))
    )
    path = store.folder / "states" / "000002.npz"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert store.state(2) is None  # whoever expects it makes it again from its derivation


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_log_is_said_to_be_damaged(store: Store, damage: str) -> None:
    for i in range(40):
        store.append([("outcome", 0, i, body())])
    store.close()
    path = store.folder / LOG
    content = path.read_bytes()
    # A flip must fall on every page to be sure to be met.
    broken = DAMAGES[damage](content) if damage != "flipped" else content[:100] + bytes(b ^ 0xFF for b in content[100:])
    path.write_bytes(broken)
    with pytest.raises(DamagedError, match="cannot be read"):
        Record.read(Store.open(store.folder))


@pytest.mark.parametrize("config", ["[]", "{}", '{"prompts": 3}', "no json"])
def test_a_log_without_its_configuration_is_damaged(store: Store, config: str) -> None:
    with sqlite3.connect(store.folder / LOG) as db:
        db.execute("UPDATE meta SET value=? WHERE key='config'", (config,))
    with pytest.raises(DamagedError, match="Restore it from a copy, or draw again"):
        Store.open(store.folder)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"n": 1, "move": {}, "condition": {"x": 1}}'])
def test_an_event_that_says_nothing_is_damage(store: Store, text: str) -> None:
    with sqlite3.connect(store.folder / LOG) as db:
        db.execute("INSERT INTO events (kind, task, outcome, body, at) VALUES ('outcome', 0, 1, ?, 0)", (text,))
    with pytest.raises(DamagedError):
        Record.read(store)


def test_a_run_of_another_format_is_refused(store: Store) -> None:
    with sqlite3.connect(store.folder / LOG) as db:
        db.execute("UPDATE meta SET value='99' WHERE key='version'")
    with pytest.raises(ConfigError, match="has format 99, and this release reads format 2"):
        Store.open(store.folder)


def test_a_run_of_the_former_format_is_refused_with_the_release_that_reads_it(store: Store) -> None:
    with sqlite3.connect(store.folder / LOG) as db:
        db.execute("UPDATE meta SET value='1' WHERE key='version'")
    with pytest.raises(ConfigError, match=r"has format 1, .* format 2; secondlook 0\.1\.0 reads it"):
        Store.open(store.folder)
