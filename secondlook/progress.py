"""What a person watching sees: a line of progress on stderr, and a table of results."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence

import numpy as np

from secondlook.api import Result
from secondlook.engine.driver import Driver


class Progress:
    """A line on stderr: outcomes and prompts done, seconds; rewritten in place on a terminal, every 5 s elsewhere."""

    def __init__(self, prompts: int):
        self.prompts, self.begin, self.last = prompts, time.monotonic(), 0.0
        self.live = sys.stderr.isatty()
        self.text = ""

    def __call__(self, driver: Driver) -> None:
        now = time.monotonic()
        if now - self.last < (0.2 if self.live else 5.0):
            return
        self.last = now
        self.show(driver)

    def show(self, driver: Driver) -> None:
        ended = sum(t.ended for t in driver.threads)
        drawn = sum(len(t.outcomes) for t in driver.threads)
        scores = [max((o.score for o in t.outcomes.values() if o.finished and not math.isnan(o.score)), default=math.nan)
                  for t in driver.threads]  # fmt: skip
        known = [s for s in scores if not math.isnan(s)]
        mean = f", mean best score {np.mean(known):.3f}" if len(known) == self.prompts else ""
        waiting = len(driver.queue) + len(driver.active)
        self.text = (f"{time.monotonic() - self.begin:5.0f} s  prompts {ended}/{self.prompts}, drawn {drawn}, "
                     f"under way {waiting}{mean}")  # fmt: skip
        print(("\r\x1b[K" if self.live else "") + self.text, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.live and self.text:
            print(file=sys.stderr)


def table(found: Sequence[Result]) -> str:
    """Prompt, base and searched verdicts, evaluations, seconds: one line a prompt and the means. The checker has a
    column where the world has one."""
    if not found:
        return "No prompt has a finished picture."
    width = max(6, min(48, max(len(r.prompt) for r in found)))
    exact = any("checker" in r.verdicts for r in found)

    def line(first: str, base: str, best: str, judge: str, check: str, evals: str, seconds: str) -> str:
        return f"{first:<{width}}  {base:>7}  {best:>7}  {judge:>17}  {check + '  ' if exact else ''}{evals:>6}  {seconds:>7}"

    head = line("prompt", "base", "best", "judge", f"{'checker':>15}", "evals", "seconds")
    lines = [head, "-" * len(head)]
    for r in found:
        text = r.prompt if len(r.prompt) <= width else r.prompt[: width - 1] + "…"
        check = f"{_mark(r.plain_verdicts)} → {_mark(r.verdicts)}"
        lines.append(line(text, f"{r.plain_score:.3f}", f"{r.score:.3f}", _arrow([r.plain_verdicts], [r.verdicts]), f"{check:>15}",
                          str(r.spent.evals), f"{r.spent.seconds:.1f}"))  # fmt: skip
    if len(found) > 1:
        base, best = (np.nanmean([getattr(r, k) for r in found]) for k in ("plain_score", "score"))
        before, after = [r.plain_verdicts for r in found], [r.verdicts for r in found]
        right = [sum(v.get("checker", 0) == 1 for v in vs) for vs in (before, after)]
        check = f"{right[0]} → {right[1]} of {len(found)}"
        lines += ["-" * len(head), line("mean", f"{base:.3f}", f"{best:.3f}", _arrow(before, after), f"{check:>15}",
                  str(sum(r.spent.evals for r in found)), f"{sum(r.spent.seconds for r in found):.1f}")]  # fmt: skip
    return "\n".join(lines)


def _arrow(before: Sequence[dict[str, float]], after: Sequence[dict[str, float]]) -> str:
    """The judge's mean, before and after."""
    means = [np.nanmean([v.get("judge", math.nan) for v in vs]) for vs in (before, after)]
    return f"{means[0]:.3f} → {means[1]:.3f}"


def _mark(verdicts: dict[str, float]) -> str:
    return {1.0: "right", 0.0: "wrong"}.get(verdicts.get("checker", math.nan), "?")
