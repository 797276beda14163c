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
    """Prompt, base and searched verdicts, evaluations, seconds: one line a prompt and the means."""
    if not found:
        return "No prompt has a finished picture."
    width = min(48, max(len(r.prompt) for r in found))
    head = (
        f"{'prompt':<{width}}  {'base':>6}  {'best':>6}  {'judge':>13}  {'checker':>15}  {'evals':>6}  {'seconds':>7}"
    )
    lines = [head, "-" * len(head)]
    for r in found:
        text = r.prompt if len(r.prompt) <= width else r.prompt[: width - 1] + "…"
        judge = f"{r.plain_verdicts.get('judge', math.nan):.3f} → {r.verdicts.get('judge', math.nan):.3f}"
        check = f"{_mark(r.plain_verdicts)} → {_mark(r.verdicts)}"
        lines.append(f"{text:<{width}}  {r.plain_score:6.3f}  {r.score:6.3f}  {judge:>13}  {check:>15}  "
                     f"{r.spent.evals:6d}  {r.spent.seconds:7.1f}")  # fmt: skip
    if len(found) > 1:
        base, best = (np.nanmean([getattr(r, k) for r in found]) for k in ("plain_score", "score"))
        right = [sum(v.get("checker", 0) == 1 for v in vs) for vs in
                 ([r.plain_verdicts for r in found], [r.verdicts for r in found])]  # fmt: skip
        judges = [np.nanmean([v.get("judge", math.nan) for v in vs]) for vs in
                  ([r.plain_verdicts for r in found], [r.verdicts for r in found])]  # fmt: skip
        judge, check = f"{judges[0]:.3f} → {judges[1]:.3f}", f"{right[0]} → {right[1]} of {len(found)}"
        lines += ["-" * len(head), f"{'mean':<{width}}  {base:6.3f}  {best:6.3f}  {judge:>13}  {check:>15}  "
                  f"{sum(r.spent.evals for r in found):6d}  {sum(r.spent.seconds for r in found):7.1f}"]  # fmt: skip
    return "\n".join(lines)


def _mark(verdicts: dict[str, float]) -> str:
    return {1.0: "right", 0.0: "wrong"}.get(verdicts.get("checker", math.nan), "?")
