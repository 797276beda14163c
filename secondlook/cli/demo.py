"""`make demo`: a handful of Scenes prompts with and without search, a table and a report, in under two minutes."""

from __future__ import annotations

import shutil
import sys
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
NFE = 400  # twenty samples for each prompt


def run() -> int:
    """Write the prompts, draw them with `secondlook draw`, and leave table and report."""
    if (OUT / "run.sqlite").exists():
        shutil.rmtree(OUT)
    OUT.parent.mkdir(exist_ok=True)
    file = OUT.parent / "demo-prompts.txt"
    file.write_text("\n".join(PROMPTS) + "\n")
    words = ["draw", "--prompts", str(file), "--plan", "random(n=20)", "--nfe", str(NFE), "--out", str(OUT)]
    print(f"secondlook draw --prompts {file} --plan 'random(n=20)' --nfe {NFE} --out {OUT}", file=sys.stderr)
    return main(words)


if __name__ == "__main__":
    sys.exit(run())
