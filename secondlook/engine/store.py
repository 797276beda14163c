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

from secondlook.disk.atomic import write_whole
from secondlook.errors import ConfigError, DamagedError, SecondlookError
from secondlook.noise import Key
from secondlook.types import State

VERSION = 1
LOG = "run.sqlite"
LARGE = 512 * 512  # pixels; PNGs of such pictures are packed in half the time, a fifth less tightly
_CARRY = "carry."  # before the names of what a state carries, in its file
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, task INTEGER, outcome INTEGER UNIQUE,
    body TEXT NOT NULL, at REAL NOT NULL);
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
    """A run's folder, open for writing (one process at a time) or reading."""

    def __init__(self, folder: Path, connection: sqlite3.Connection):
        self.folder = folder
        self._db = connection

    @staticmethod
    def create(folder: Path, config: dict[str, Any]) -> Store:
        """A new run in an empty or new folder."""
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
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, folder / LOG)  # a folder with a log is a run; one without is none
        except (OSError, SecondlookError):
            _sweep(folder, whole=not existed)
            raise
        return Store.open(folder)

    @staticmethod
    def open(folder: Path) -> Store:
        """An existing run; ConfigError where there is none, DamagedError where it cannot be read."""
        log = folder / LOG
        if not log.is_file():
            raise ConfigError(
                f'"{folder}" is no run: it holds no {LOG}. Name a folder that `secondlook draw --out` made.'
            )
        try:
            db = _connect(log)
            rows = dict(db.execute("SELECT key, value FROM meta"))
            version = json.loads(rows["version"])
            if not isinstance(json.loads(rows["config"])["prompts"], list):
                raise ValueError("its configuration names no prompts")
        except (sqlite3.DatabaseError, KeyError, TypeError, ValueError) as error:
            raise DamagedError(
                f"The log {log} cannot be read ({error}). Restore it from a copy, or draw anew."
            ) from None
        if version != VERSION:
            raise ConfigError(f"The run {folder} has format {version}; this release reads format {VERSION}.")
        return Store(folder, db)

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
        with _failing(self.folder), self._db:
            self._db.executemany(
                "INSERT INTO events (kind, task, outcome, body, at) VALUES (?, ?, ?, ?, ?)",
                [(kind, task, outcome, json.dumps(body), now) for kind, task, outcome, body in events],
            )

    def events(self, kind: str | None = None) -> list[Event]:
        """The log in order, or one kind of it."""
        query = "SELECT seq, kind, task, outcome, body, at FROM events"
        try:
            rows = self._db.execute(
                *((query + " WHERE kind=? ORDER BY seq", (kind,)) if kind else (query + " ORDER BY seq",))
            )
            return [Event(s, k, t, o, json.loads(b), at) for s, k, t, o, b, at in rows]
        except (sqlite3.DatabaseError, ValueError) as error:
            raise DamagedError(f"The log of {self.folder} cannot be read ({error}).") from None

    def picture_path(self, name: int | str) -> Path:
        return self.folder / "pictures" / (f"{name:06d}.png" if isinstance(name, int) else f"{name}.png")

    def save_picture(self, name: int | str, picture: np.ndarray) -> None:
        buffer = io.BytesIO()
        large = picture.shape[0] * picture.shape[1] >= LARGE
        Image.fromarray(picture).save(buffer, "png", compress_level=1 if large else 6)
        write_whole(self.picture_path(name), buffer.getvalue())

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
        """A one-row state that later moves may start from."""
        arrays = {"x": state.x.numpy(), "t": state.t.numpy(), "step": state.step.numpy()}
        if state.data is not None:
            arrays["data"] = state.data.numpy()
        arrays.update({_CARRY + name: v.numpy() for name, v in (state.carry or {}).items()})
        buffer = io.BytesIO()
        np.savez(buffer, key=np.frombuffer(state.keys[0].value.to_bytes(16, "big"), np.uint8), **arrays)  # type: ignore[arg-type]
        write_whole(self.folder / "states" / f"{outcome:06d}.npz", buffer.getvalue())

    def state(self, outcome: int) -> State | None:
        """The state saved for an outcome, or None."""
        path = self.folder / "states" / f"{outcome:06d}.npz"
        if not path.exists():
            return None
        try:
            with np.load(path) as file:
                a = {k: torch.from_numpy(file[k]) for k in file.files}
            key = Key(int.from_bytes(a.pop("key").numpy().tobytes(), "big"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DamagedError(
                f"The state {path} cannot be read ({error}); delete it and it will be made again."
            ) from None
        carry = {name.removeprefix(_CARRY): v for name, v in a.items() if name.startswith(_CARRY)}
        return State(a["x"], a["t"], (key,), a["step"], a.get("data"), carry or None)

    def drop_state(self, outcome: int) -> None:
        """Forget an outcome's state, if there is one; it can be made again from its derivation."""
        (self.folder / "states" / f"{outcome:06d}.npz").unlink(missing_ok=True)

    def close(self) -> None:
        self._db.close()


def refuse_full(folder: Path) -> None:
    """ConfigError unless ``folder`` can hold a new run: it does not exist, or is an empty folder."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f'"{folder}" is a file; --out wants a folder.')
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
    db = sqlite3.connect(path, timeout=30.0)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    return db
