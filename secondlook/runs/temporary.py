"""Runs in folders that nobody named: they live as long as the process, unless they are asked to stay or did not finish."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

_made: dict[Path, int] = {}  # folders with the process that made them: a forked child's end is not ours


def new() -> Path:
    """A new folder that is removed at the process's end."""
    folder = Path(tempfile.mkdtemp(prefix="secondlook-"))
    if not _made:
        atexit.register(sweep)
    _made[folder] = os.getpid()
    return folder


def keep(folder: Path) -> Path:
    """Let a run's folder stay; one that was named stays anyway."""
    _made.pop(Path(folder), None)
    return Path(folder)


def passing(folder: Path) -> bool:
    """Whether a folder goes with the process."""
    return Path(folder) in _made


def sweep() -> None:
    """Remove the folders that this process made and nobody asked to keep."""
    for folder, process in list(_made.items()):
        if process == os.getpid():
            shutil.rmtree(folder, ignore_errors=True)
            _made.pop(folder)
