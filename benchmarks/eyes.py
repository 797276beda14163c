"""The judges of published weights (secondlook/eyes): what each costs, and whether its numbers are its own.

    python benchmarks/eyes.py --out docs/results/eyes.md                          # tiny weights, made on the spot
    python benchmarks/eyes.py --verifier "clip(model='DIR')" --side 1024          # real ones, wherever they lie

Columns: one by one, the largest difference between a batch of ``--batch`` and single pictures, as a share of the largest score;
company, whether a score in a padded batch is the same to the bit with others and elsewhere in it; pixels, the largest difference of
prepared pictures from the processor's own (PIL backend) over a gradient, noise and both mixed, by the integers that other devices than the CPU
use; reload, whether the weights loaded again give the same bits; ms a picture, the median of single pictures after the first; MB, of
weights. Objects look at single pictures always.
"""

from __future__ import annotations

import argparse
import gc
import math
import platform
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook.disk.versions import commit
from secondlook.eyes import pixels, tiny
from secondlook.eyes.pixels import Prepare
from secondlook.eyes.resample import resize, windowed
from secondlook.notes import Note
from secondlook.settings import make_named
from secondlook.types import Condition, Verifier
from secondlook.verify import answers

PROMPTS = ("two red cups left of a clock", "a dog", "a red cup", "a cat and a dog", "a chair", "three books", "a bench")


def pictures(height: int, width: int) -> Tensor:
    """A gradient, noise, and both mixed, again and again: uint8 [7, H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([255 * y / height, 255 * x / width, 127 + 120 * np.sin((x + y) / 9)], -1)
    noise = np.random.default_rng(0).uniform(0, 255, (7, height, width, 3))
    shares = np.array([0, 1, 0.3, 0.1, 0.5, 0.8, 0.05])[:, None, None, None]
    return torch.from_numpy((shares * noise + (1 - shares) * smooth).astype(np.uint8))


def scores(verifier: Verifier, some: Tensor, conditions: list[Condition]) -> list[float]:
    return answers.scores(verifier(some, conditions), len(some))[0]


def prepares(verifier: Any) -> list[Prepare]:
    """What brings pictures to a judge's networks."""
    if hasattr(verifier, "detector"):
        return [verifier.detector.prepare, verifier.colours.inner._use.prepare]
    return [verifier._use.prepare]


def pixels_off(verifier: Any) -> float:
    """The largest difference of prepared pictures from the processor's own."""
    worst = 0.0
    pixels.resize = windowed
    try:
        for prepare in prepares(verifier):
            for size in ((64, 64), (96, 64), (300, 417)):
                some = pictures(*size)[:3]
                theirs = torch.cat(
                    [prepare.processor(images=[p.numpy()], return_tensors="pt")["pixel_values"] for p in some]
                )
                worst = max(worst, float((prepare(some) - theirs).abs().max()))
    finally:
        pixels.resize = resize
    return worst


def megabytes(verifier: Any) -> float:
    networks = {
        id(n): n
        for n in (verifier.network, getattr(getattr(verifier, "colours", None), "network", None))
        if n is not None
    }
    return sum(p.numel() * p.element_size() for n in networks.values() for p in n.parameters()) / 1e6


def row(name: str, text: str, side: int, batch: int, repeats: int) -> str:
    """One judge's line of the table."""
    some, conditions = pictures(side, side), [Condition(p, label=i) for i, p in enumerate(PROMPTS)]
    wide = text if name.startswith("objects") else f"{text[:-1]}, batch={batch})"
    verifier, batched = make_named("verifier", text), make_named("verifier", wide)
    alone = [scores(verifier, some[i : i + 1], conditions[i : i + 1])[0] for i in range(len(some))]
    together = scores(batched, some, conditions)
    turned = scores(batched, some.flip(0), conditions[::-1])[::-1]
    single = [scores(batched, some[i : i + 1], conditions[i : i + 1])[0] for i in range(len(some))]
    off = max(abs(a - b) for a, b in zip(alone, together, strict=True)) / max(map(abs, alone))
    times = []
    for i in range(repeats):
        at = i % len(some)
        begun = time.perf_counter()
        scores(verifier, some[at : at + 1], conditions[at : at + 1])
        times.append(1000 * (time.perf_counter() - begun))
    worst, size = pixels_off(verifier), megabytes(verifier)
    del verifier, batched
    gc.collect()
    same = (
        scores(make_named("verifier", text), some, conditions)
        == scores(make_named("verifier", text), some, conditions)
        == alone
    )
    known = sum(not math.isnan(v) for v in alone)
    return (f"| {name} | {known} of {len(some)} | {off:.1e} | {_tick(together == turned == single)} | {worst:.1e} | {_tick(same)} | "
            f"{statistics.median(times):.1f} | {size:.2f} |")  # fmt: skip


def _tick(holds: bool) -> str:
    return "✓" if holds else "✗"


def table(texts: dict[str, str], side: int, batch: int, repeats: int) -> list[str]:
    head = ["verifier", "judged", "one by one", "company", "pixels", "reload", "ms a picture", "MB"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return lines + [row(name, text, side, batch, repeats) for name, text in texts.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--verifier",
        action="append",
        help="a call-string with brackets; may be given several times. Default: all, with tiny weights",
    )
    parser.add_argument("--side", type=int, default=64, help="of the pictures, in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", Note)
    with tempfile.TemporaryDirectory() as folder:
        texts = {t: t for t in a.verifier} if a.verifier else tiny.verifiers(folder)
        lines = table(texts, a.side, a.batch, a.repeats)
    what = (
        ""
        if a.verifier
        else " Tiny weights of the true architectures, by chance: the milliseconds are those of Python and preprocessing."
    )
    known = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "transformers", "pillow"))
    words = [w if not Path(w).is_absolute() else Path(w).name for w in sys.argv[1:]]
    page = ["# The judges of published weights", "", f"`python benchmarks/eyes.py {shlex.join(words)}`: commit {commit()}, {known}; {platform.machine()} CPU, one thread.",
            "", f"Pictures of {a.side} x {a.side}, batches of {a.batch}.{what} What each column says stands at the top of the script.", "", *lines, ""]  # fmt: skip
    if a.out:
        a.out.write_text("\n".join(page))
    print("\n".join(page))


if __name__ == "__main__":
    main()
