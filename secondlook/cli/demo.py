"""`make demo`: a handful of Scenes prompts with and without search, a table and a report, in under two minutes."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from secondlook.cli.app import main

OUT = Path("runs") / "demo"
PROMPTS = (
    "a cross left of a circle",
    "a red circle and a blue square",
    "four triangles",
    "a purple cross above a yellow circle",
    "two green squares and a white triangle",
    "a square below a triangle",
)
EVALS = 160  # network passes for each prompt: as much as four plain samples of twenty steps
TALK, TALKED = (
    OUT.with_name("demo-talk"),
    ("three green squares and a triangle", "a red circle and a cross and a green square"),
)


def run() -> int:
    """Write the prompts, draw them with `secondlook draw`, and leave tables and reports: a search, and a conversation."""
    code = _draw(PROMPTS, OUT, ["--plan", "evolve()", "--evals", str(EVALS)])
    return code or _draw(
        TALKED, TALK, ["--plan", "reflect(n=8)", "--steps", "5", "--seed", "3"]
    )  # where first tries are wrong


def _draw(prompts: Sequence[str], out: Path, how: list[str]) -> int:
    if (out / "run.sqlite").exists():
        shutil.rmtree(out)
    out.parent.mkdir(exist_ok=True)
    file = out.with_name(f"{out.name}-prompts.txt")
    file.write_text("\n".join(prompts) + "\n")
    words = ["draw", "--prompts", str(file), *how, "--out", str(out)]
    print(f"secondlook {shlex.join(words)}", file=sys.stderr)
    return main(words)


if __name__ == "__main__":
    sys.exit(run())
