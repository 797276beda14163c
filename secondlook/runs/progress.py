"""What a person watching a run sees: a line of progress on stderr."""

from __future__ import annotations

import sys
import time

import numpy as np

from secondlook.engine.driver import Driver
from secondlook.engine.driver import Progress as Told
from secondlook.errors import ConfigError


class Progress:
    """A line on stderr: outcomes and prompts done, seconds; rewritten in place on a terminal, every 5 s elsewhere."""

    def __init__(self, prompts: int):
        self.prompts, self.begin, self.last = prompts, time.monotonic(), 0.0
        self.live = sys.stderr.isatty() or notebook()
        self.text = ""

    def __call__(self, driver: Driver) -> None:
        now = time.monotonic()
        if now - self.last < (0.2 if self.live else 5.0):
            return
        self.last = now
        self.show(driver)

    def show(self, driver: Driver) -> None:
        known = list(driver.best.values())
        mean = f", mean best score {np.mean(known):.3f}" if len(known) == self.prompts else ""
        self.text = (f"{time.monotonic() - self.begin:5.0f} s  prompts {driver.ended}/{self.prompts}, drawn {driver.drawn}, "
                     f"under way {driver.under_way}{mean}")  # fmt: skip
        print(
            ("\r" + "\x1b[K" * sys.stderr.isatty() if self.live else "") + self.text,
            end="" if self.live else "\n",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """End the line, so that what follows begins on another."""
        if self.live and self.text:
            print(file=sys.stderr)


def notebook() -> bool:
    """Whether a notebook's kernel runs us: it shows what is written to stderr, though that is no terminal."""
    return "ipykernel" in sys.modules


def watcher(progress: Told | bool | None, prompts: int) -> Told | None:
    """Who is told how a run goes: a function as it is; for True a line on stderr, where somebody watches a terminal or a notebook."""
    if progress is None or progress is False:
        return None
    if progress is True:
        line = Progress(prompts)
        return line if line.live else None
    if not callable(progress):
        raise ConfigError(f"progress is True, or a function that is told of the driver; got {progress!r}.")
    return progress
