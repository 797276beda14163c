"""Models that draw again, trained further on one GPU in a quarter of an hour, from the weights that ship.

    python benchmarks/reflect_weights.py OUT [--scale small] [--device cpu]

What scenes_weights.py taught: one training at a time (six beside each other starve the GPU of kernels), batches of 2,048, and items made
by all processors before. First the wrong tries of the shipped models themselves, drawn and labelled; pairs of them and of spoilt
renders; then the model that edits, its own new wrong tries, and a second training that sees them; then the paper's form with a memory
of three, and on the same items and as many steps the two baselines without context. Each is asked at once how often an answer to a
wrong try is right. ``--scale small --device cpu`` does a step or two of each, to see that all run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from pathlib import Path

from benchmarks.scenes_weights import Job, keep, start

DATA = "secondlook/data/scenes"
GROUPS = (("edit2",), ("edit",), ("context",), ("sft", "dpo"))


def jobs(d: Path, full: bool, device: str) -> list[Job]:
    """In a chain: each training waits for the one before."""

    def n(whole: int, small: int) -> int:
        return whole if full else small

    on, workers = f"--device {device}", n(15, 2)
    ways = "--mix hard --ways few few euler --per-prompt 2 --raw"
    train, chain = (
        f"train.reflect train --batch {n(2048, 8)} {on} --save-every {n(100, 1)} --out {d}/",
        "train.reflect chain",
    )
    base = f"--base {DATA}-tuned.safetensors"
    turns = f"{d}/dev.npz --turns 3 --rows {n(1024, 16)} {on} --seed 77"
    out: list[Job] = [
        Job("tuned", f"train.verifier collect {DATA}-tuned.safetensors {n(48000, 64)} {d}/tuned.npz {ways} {on} --workers {workers} --seed 501"),
        Job("tries", f"train.verifier collect {DATA}-base.safetensors {n(16000, 64)} {d}/tries.npz {ways} {on} --workers {workers} --seed 401",
            ("tuned",)),
        Job("dev", f"train.verifier dev {DATA}-base.safetensors {d}/dev.npz --seed 301 --each {n(2, 1)} --set scenes-expert-dev {on} --raw",
            ("tries",)),
        Job("pairs", f"train.reflect pairs --out {d}/items.pt --memory 3 --samples {d}/tries.npz {d}/tuned.npz --pool {n(240000, 32)} "
            f"--workers {workers} --again 8 --rendered 0.5 --both", ("dev",)),
        Job("edit", f"{train}edit --form edit --init {DATA}-edit.safetensors --items {d}/items.pt --steps {n(1200, 2)} --seed 1", ("pairs",)),
        Job("own", f"{chain} {d}/edit/weights.safetensors {d}/tuned.npz --out {d}/own.npz --turns 2 --steps 5 --rows {n(1024, 16)} {on} --seed 9",
            ("edit",)),
        Job("pairs2", f"train.reflect pairs --out {d}/items2.pt --samples {d}/own.npz {d}/tuned.npz --pool {n(160000, 32)} "
            f"--workers {workers} --again 8 --rendered 0.4", ("own",)),
        Job("context", f"{train}context --form context --memory 3 {base} --items {d}/items.pt --steps {n(900, 2)} --seed 2", ("own",)),
        Job("edit2", f"{train}edit2 --form edit --init {d}/edit/weights.safetensors --items {d}/items2.pt --steps {n(1200, 2)} --seed 4",
            ("pairs2", "context")),
        Job("sft", f"{train}sft --form sft {base} --items {d}/items.pt --steps {n(600, 2)} --seed 3", ("edit2",)),
        Job("dpo", f"{train}dpo --form dpo {base} --items {d}/items.pt --steps {n(300, 2)} --lr 1e-4 --seed 5", ("sft",)),
    ]  # fmt: skip
    for name in ("edit", "context", "edit2", "sft", "dpo"):
        out.append(Job(f"steps-{name}", f"train.reflect steps {d}/{name}/weights.safetensors {turns}", (name,)))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/dev/shm/secondlook"))
    parser.add_argument("--scale", choices=("full", "small"), default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=float, default=575, help="seconds after which what there is is kept")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    (args.work / "logs").mkdir(parents=True)
    args.out.mkdir(parents=True, exist_ok=True)
    every = {job.name: job for job in jobs(args.work, args.scale == "full", args.device)}
    began = time.perf_counter()
    for job in every.values():
        threading.Thread(target=start, args=(job, every, args.work / "logs", began), daemon=True).start()
    for job in every.values():
        job.done.wait(max(0.0, args.limit - (time.perf_counter() - began)))
    keep(args.work, args.out, GROUPS)
    print(
        "late:",
        [j.name for j in every.values() if not j.done.is_set()],
        "failed:",
        [j.name for j in every.values() if j.code],
    )
    for log in sorted((args.work / "logs").glob("*.log")):
        print(f"== {log.stem}: " + " | ".join(log.read_text().strip().splitlines()[-6:])[-1200:])
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
