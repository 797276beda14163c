"""The run store: a folder with an SQLite log, pictures and half-made states. The log is the run.

Append-only: triggers refuse changes. A picture is on disk, whole, before the event that reports it is committed, so a
process killed at any moment leaves a run that can be resumed and that reports nothing it does not have.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import sqlite3
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from secondlook.disk.atomic import sync_folder, write_whole
from secondlook.disk.given import as_path
from secondlook.errors import ConfigError, DamagedError, SecondlookError
from secondlook.noise import Key
from secondlook.types import State

VERSION = 2
FORMER = {1: "secondlook 0.1.0"}  # who reads the former formats
LOG = "run.sqlite"
LARGE = 512 * 512  # pixels; PNGs of such pictures are packed in half the time, a fifth less tightly
_SOME = 1000  # events read at once
_CARRY = "carry."  # before the names of what a state carries, in its file
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, task INTEGER, outcome INTEGER UNIQUE,
    body TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX events_of_task ON events (task);
CREATE TRIGGER keep_events BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER hold_events BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
"""


@dataclass(frozen=True)
class Event:
    """One line of the log. ``outcome`` is set for kind "outcome" only; ``body`` holds the rest."""

    seq: int
    kind: str
    task: int | None
    outcome: int | None
    body: dict[str, Any]
    at: float


def sha256(picture: np.ndarray) -> str:
    """Digest of a picture's pixels, uint8 [H, W, 3]."""
    return hashlib.sha256(str(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()


class Store:
    """A run's folder, open for writing (one process at a time) or reading. lasting: whether it is to survive a power cut. One in
    a folder that nobody named need not, and survives a killed process all the same."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, lasting: bool = True):
        self.folder, self.lasting = folder, lasting
        self._db = connection
        self._lock = threading.RLock()  # one connection serves the thread that writes the log and the one that reads it

    @staticmethod
    def create(folder: Path | str, config: dict[str, Any], lasting: bool = True) -> Store:
        """A new run in an empty or new folder."""
        folder = Path(folder)
        refuse_full(folder)
        existed = folder.exists()
        part = folder / (LOG + ".new")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f'The folder "{folder}" cannot be made ({error.strerror}). Choose another --out.'
            ) from None
        try:
            for name in ("pictures", "states"):
                (folder / name).mkdir(exist_ok=True)
            for left in folder.glob(LOG + ".new*"):
                left.unlink()
            with _failing(folder), closing(sqlite3.connect(part)) as db:
                # Not a run before it is renamed, so it need not survive a crash statement by statement: one sync will do.
                db.executescript(f"PRAGMA synchronous=OFF; PRAGMA journal_mode=MEMORY; BEGIN; {_SCHEMA} COMMIT;")
                values = {"version": VERSION, "config": config, "created": time.time()}
                db.executemany("INSERT INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in values.items()])
                db.commit()
            if lasting:
                with part.open("rb+") as file:
                    os.fsync(file.fileno())
            os.replace(part, folder / LOG)  # a folder with a log is a run; one without is none
        except (OSError, SecondlookError):
            _sweep(folder, whole=not existed)
            raise
        return Store.open(folder, lasting)

    @staticmethod
    def open(folder: Path | str, lasting: bool = True) -> Store:
        """An existing run; ConfigError where there is none, DamagedError where it cannot be read."""
        folder = as_path(folder, "A run's folder")
        log = folder / LOG
        if not log.is_file():
            raise ConfigError(
                f'"{folder}" is not a run: it holds no {LOG}. Name a folder that `secondlook draw --out` made.'
            )
        try:
            db = _connect(log)
            if not lasting:
                db.execute("PRAGMA synchronous=OFF")
            rows = dict(db.execute("SELECT key, value FROM meta"))
            version = json.loads(rows["version"])
            if not isinstance(json.loads(rows["config"])["prompts"], list):
                raise ValueError("its configuration names no prompts")
        except (sqlite3.DatabaseError, KeyError, TypeError, ValueError) as error:
            raise DamagedError(
                f"The log {log} cannot be read ({error}). Restore it from a copy, or draw again."
            ) from None
        if version != VERSION:
            who = f"; {FORMER[version]} reads it" if version in FORMER else ""
            raise ConfigError(f'The run "{folder}" has format {version}, and this release reads format {VERSION}{who}.')
        return Store(folder, db, lasting)

    @property
    def config(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self._db.execute("SELECT value FROM meta WHERE key='config'").fetchone()[0])
        return value

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run alone; a second writer is refused."""
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f'Another process is writing the run "{self.folder}". Wait for it or stop it.'
                ) from None
            yield

    def append(self, events: Sequence[tuple[str, int | None, int | None, dict[str, Any]]]) -> None:
        """Commit (kind, task, outcome, body) lines together."""
        now = time.time()
        with self._lock, _failing(self.folder), self._db:
            self._db.executemany(
                "INSERT INTO events (kind, task, outcome, body, at) VALUES (?, ?, ?, ?, ?)",
                [(kind, task, outcome, json.dumps(body, allow_nan=False), now) for kind, task, outcome, body in events],
            )

    def events(self, kind: str | None = None, task: int | None = None) -> Iterator[Event]:
        """The log in order, or one kind of it, or what it says of one task."""
        wanted = {"kind": kind, "task": task}
        where = " AND ".join(f"{k}=?" for k, v in wanted.items() if v is not None)
        query = (
            f"SELECT seq, kind, task, outcome, body, at FROM events {'WHERE ' + where if where else ''} ORDER BY seq"
        )
        try:
            with self._lock:
                rows = self._db.execute(query, [v for v in wanted.values() if v is not None])
                some = rows.fetchmany(_SOME)
            while some:
                for s, k, t, o, b, at in some:
                    yield Event(s, k, t, o, json.loads(b), at)
                with self._lock:
                    some = rows.fetchmany(_SOME)
        except (sqlite3.DatabaseError, ValueError) as error:
            raise DamagedError(f"The log of {self.folder} cannot be read ({error}).") from None

    def has(self, kind: str, task: int | None = None) -> bool:
        """Whether the log holds such an event."""
        query = "SELECT 1 FROM events WHERE kind=? AND (? IS NULL OR task=?) LIMIT 1"
        with self._lock:
            return self._db.execute(query, (kind, task, task)).fetchone() is not None

    def picture_path(self, name: int | str) -> Path:
        return self.folder / "pictures" / (f"{name:06d}.png" if isinstance(name, int) else f"{name}.png")

    def save_picture(self, name: int | str, picture: np.ndarray) -> None:
        """Write a picture; its name is safe from a power cut once ``sync_pictures`` has returned."""
        buffer = io.BytesIO()
        large = picture.shape[0] * picture.shape[1] >= LARGE
        Image.fromarray(picture).save(buffer, "png", compress_level=1 if large else 6)
        write_whole(self.picture_path(name), buffer.getvalue(), sync=self.lasting, named=False)

    def sync_pictures(self) -> None:
        if self.lasting:
            sync_folder(self.folder / "pictures")

    def picture(self, name: int | str) -> np.ndarray:
        """uint8 [H, W, 3]."""
        path = self.picture_path(name)
        try:
            return np.asarray(Image.open(path).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises depends on where a file is broken
            raise DamagedError(
                f"The picture {path} cannot be read ({error}). `secondlook replay` can draw it again."
            ) from None

    def checked(self, name: int | str, digest: str | None) -> np.ndarray:
        """The picture, refused where its pixels are not the recorded ones."""
        found = self.picture(name)
        if digest is not None and sha256(found) != digest:
            raise DamagedError(f"The picture {self.picture_path(name)} is not the one its run recorded. "
                               "`secondlook replay` can draw it again.")  # fmt: skip
        return found

    def save_state(self, outcome: int, state: State) -> None:
        """A one-row state that later moves may start from: a cache, for it can be made again from its derivation."""
        arrays = {"x": state.x.numpy(), "t": state.t.numpy(), "step": state.step.numpy()}
        arrays.update({k: v.numpy() for k in ("data", "known") if (v := getattr(state, k)) is not None})
        arrays.update({_CARRY + name: v.numpy() for name, v in (state.carry or {}).items()})
        buffer = io.BytesIO()
        np.savez(buffer, key=np.frombuffer(state.keys[0].value.to_bytes(16, "big"), np.uint8), **arrays)  # type: ignore[arg-type]
        write_whole(self.state_path(outcome), buffer.getvalue(), sync=False)

    def state(self, outcome: int) -> State | None:
        """The state saved for an outcome; None where there is none, or none that can be read (a power cut)."""
        path = self.state_path(outcome)
        if not path.exists():
            return None
        try:
            with np.load(path) as file:
                a = {k: torch.from_numpy(file[k]) for k in file.files}
            key = Key(int.from_bytes(a.pop("key").numpy().tobytes(), "big"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None
        carry = {name.removeprefix(_CARRY): v for name, v in a.items() if name.startswith(_CARRY)}
        return State(a["x"], a["t"], (key,), a["step"], a.get("data"), carry or None, a.get("known"))

    def drop_state(self, outcome: int) -> None:
        """Forget an outcome's state, if there is one; it can be made again from its derivation."""
        self.state_path(outcome).unlink(missing_ok=True)

    def state_path(self, outcome: int) -> Path:
        return self.folder / "states" / f"{outcome:06d}.npz"

    def close(self) -> None:
        self._db.close()


def refuse_full(folder: Path) -> None:
    """ConfigError unless ``folder`` can hold a new run: it does not exist, or is an empty folder."""
    as_path(folder, "--out")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f'"{folder}" is a file; --out expects a folder.')
    if folder.is_dir() and (folder / LOG).exists():
        raise ConfigError(
            f'"{folder}" already holds a run. Choose another --out, or go on with `secondlook resume {folder}`.'
        )
    if folder.is_dir() and any(not _left_over(p) for p in folder.iterdir()):
        raise ConfigError(f'"{folder}" is not empty. Choose another --out; nothing was written.')


def _left_over(path: Path) -> bool:
    """Whether a path is what a process killed in Store.create leaves behind."""
    if path.name in ("pictures", "states"):
        return path.is_dir() and not any(path.iterdir())
    return path.name.startswith(LOG + ".new")


def _sweep(folder: Path, whole: bool) -> None:
    """Undo a creation that failed."""
    for path in [p for p in folder.iterdir() if _left_over(p)]:
        path.rmdir() if path.is_dir() else path.unlink()
    if whole:
        folder.rmdir()


@contextmanager
def _failing(folder: Path) -> Iterator[None]:
    """SQLite's errors as ours: a full disk, or a log that broke."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" not in str(error) and "I/O" not in str(error):
            raise SecondlookError(f"The log of {folder} cannot be written ({error}).") from None
        raise OSError(errno.ENOSPC, f"The log of {folder} cannot be written: {error}") from None
    except sqlite3.DatabaseError as error:
        raise DamagedError(f"The log of {folder} cannot be written ({error}).") from None


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=30.0, check_same_thread=False)  # one thread writes it, another opened it
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    return db
