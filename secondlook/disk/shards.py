"""Long work in numbered parts on disk, shared by processes and by attempts: what is there is not done again.

A folder holds ``settings.json`` and one file a part. A part appears whole or not at all, and what it holds depends on the
settings and its number only, so work that was stopped goes on, and any number of processes may share it: process r of n
takes the parts whose number leaves r when divided by n. Launchers such as torchrun say r and n by RANK and WORLD_SIZE.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secondlook.disk.atomic import write_whole
from secondlook.disk.team import Team
from secondlook.errors import ConfigError, DamagedError, SecondlookError

PATIENCE = 600.0  # seconds that a process waits for the first one's settings


@dataclass(frozen=True)
class Shards:
    """``count`` parts in ``folder``, made with ``settings`` (plain values). ``finished`` tells whether all of it has already
    become what it is for, after which the folder may be gone."""

    folder: Path
    settings: Mapping[str, Any]
    count: int
    finished: Callable[[], bool]
    suffix: str = ".npy"

    def begin(self, team: Team) -> list[int]:
        """Make the folder, or compare it; returns the numbers that ``team`` has to make. ConfigError where it holds parts
        made with other settings."""
        file, plain = self.folder / "settings.json", json.loads(json.dumps(self.settings))
        if team.first and not file.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ConfigError(
                    f'The folder "{self.folder}" is not empty and holds no settings.json; choose another --out.'
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(plain, indent=1).encode())
        elif not self._appears(file):
            return []
        try:
            had = json.loads(file.read_text())
        except FileNotFoundError:  # made whole and cleared away by the first process in this moment
            return []
        except ValueError as error:
            raise DamagedError(f"{file} cannot be read ({error}); delete the folder to start over.") from None
        refuse_other(self.folder, had, plain)
        mine = [i for i in self.missing() if i % team.world == team.rank]
        return [] if self.finished() else mine  # in this order: the folder is cleared only after it is finished

    def _appears(self, file: Path) -> bool:
        """Wait for the first process; False where all is finished instead."""
        start = time.monotonic()
        while not file.exists():
            if self.finished():
                return False
            if time.monotonic() - start > PATIENCE:
                raise SecondlookError(
                    f"The first process has made no {file} in {PATIENCE:.0f} seconds; see what it says."
                )
            time.sleep(0.1)
        return True

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}{self.suffix}"

    def missing(self) -> list[int]:
        try:
            there = {p.name for p in self.folder.iterdir()}
        except FileNotFoundError:
            there = set()
        return [i for i in range(self.count) if self.path(i).name not in there]

    def wait(self, every: float = 0.2) -> None:
        """Until no part is missing: the other processes are at theirs. A launcher ends all when one of them fails."""
        while self.missing():
            time.sleep(every)


def refuse_other(folder: Path, had: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ConfigError naming the first setting in which what is on disk differs from what is asked."""
    for key in [*now, *(k for k in had if k not in now)]:
        if had.get(key) != now.get(key):
            raise ConfigError(f'"{folder}" was made with {key.replace("_", " ")} {_short(had.get(key))}, not {_short(now.get(key))}; '
                              "give the settings that it was begun with, or another --out.")  # fmt: skip


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
