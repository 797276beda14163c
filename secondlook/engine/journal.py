"""The log's writer: a thread that puts pictures on the disk and then commits the events that report them, in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secondlook.engine.store import Store

Line = tuple[str, int | None, int | None, dict[str, Any]]  # kind, task, outcome, body
MOST = 64  # entries that may wait: whoever hands over more is held up
TOGETHER = 4  # pictures written at once: a disk syncs several in little more time than one


@dataclass
class _Entry:
    lines: Sequence[Line]
    pictures: Sequence[tuple[int | str, np.ndarray]] = ()
    written: threading.Event = field(default_factory=threading.Event)


class Journal:
    """Entries are written in the order they come, several in one commit where they wait. A picture is on the disk before
    the event that reports it is committed."""

    def __init__(self, store: Store):
        self.store = store
        self._entries: queue.Queue[_Entry | None] = queue.Queue(MOST)
        self._failed: BaseException | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def write(self, lines: Sequence[Line], pictures: Sequence[tuple[int | str, np.ndarray]] = ()) -> None:
        """Hand an entry over. Raises what an earlier one failed with."""
        self._put(_Entry(lines, pictures))

    def tell(self, lines: Sequence[Line]) -> None:
        """The same from a thread beside the engine's: where the log has failed or is closed, the engine's thread says so, and
        what was to be said is lost."""
        if self._failed is None and not self._closed:
            self._start()
            self._entries.put(_Entry(lines))

    def check(self) -> None:
        """Raise what an entry failed with."""
        self._raise()

    def flush(self) -> None:
        """Until everything handed over is on the disk."""
        if self._thread is None:
            return
        entry = _Entry(())
        self._put(entry)
        while not entry.written.wait(0.2):
            self._raise()
            if not self._thread.is_alive():
                break
        self._raise()

    def close(self) -> None:
        """Flush and end the thread; what failed is raised."""
        thread, self._closed = self._thread, True
        if thread is not None:
            self._entries.put(None)
            thread.join()
            self._thread = None
        self._raise()

    def _put(self, entry: _Entry) -> None:
        self._raise()
        self._start()
        self._entries.put(entry)

    def _start(self) -> None:
        with self._lock:  # whoever speaks first: in a resumed run that may be a judge's thread
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="secondlook-journal", daemon=True)
                self._thread.start()

    def _raise(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        waiting: list[_Entry | None] = []
        last = False
        while waiting or not last:
            waiting = waiting or [self._entries.get()]
            waiting += self._came(MOST - len(waiting))
            last = last or None in waiting
            waiting = self._write([e for e in waiting if e is not None], last)

    def _came(self, most: int) -> list[_Entry | None]:
        """What waits by now."""
        found: list[_Entry | None] = []
        while len(found) < most:
            try:
                found.append(self._entries.get_nowait())
            except queue.Empty:
                break
        return found

    def _write(self, entries: list[_Entry], last: bool) -> list[_Entry | None]:
        """Entries in one commit, and with them what came while their pictures were written, up to the next with pictures. Returns
        what came and is not written."""
        came: list[_Entry | None] = []
        try:
            if self._failed is None:  # after a failure nothing more is reported, so that the log has no holes
                self._save([p for entry in entries for p in entry.pictures])
                came = [] if last else self._came(MOST)
                while came and came[0] is not None and not came[0].pictures:
                    entries.append(came[0])
                    came.pop(0)
                lines = [line for entry in entries for line in entry.lines]
                if lines:
                    self.store.append(lines)
        except BaseException as error:
            self._failed = error
        for entry in entries:
            entry.written.set()
        return came

    def _save(self, pictures: Sequence[tuple[int | str, np.ndarray]]) -> None:
        """Pictures and their names on the disk."""
        if len(pictures) < 2:
            for name, picture in pictures:
                self.store.save_picture(name, picture)
        else:
            with ThreadPoolExecutor(min(TOGETHER, len(pictures)), "secondlook-pictures") as pool:
                list(pool.map(lambda each: self.store.save_picture(*each), pictures))
        if pictures:
            self.store.sync_pictures()
