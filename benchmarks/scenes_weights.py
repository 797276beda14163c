"""All weights of search and reflection in the Scenes world, trained beside each other on one GPU.

    python benchmarks/scenes_weights.py OUT [--scale small]

Samples of the base are drawn and labelled, pairs of tries and targets are made of them, and then these are trained at once: verifier
and judge without rules, critic, the models that draw again, their baselines, and a larger base. The second training of the model
that edits sees its own wrong tries. ``--scale small`` does a few steps of each, to see that all run and how fast.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

BASE = "secondlook/data/scenes-base.safetensors"


@dataclass
class Job:
    """A command with what must be done before it; ``seconds`` after which it is stopped (what it saved stays)."""

    name: str
    command: str
    after: tuple[str, ...] = ()
    done: threading.Event = field(default_factory=threading.Event)
    code: int | None = None


def jobs(d: Path, full: bool) -> list[Job]:
    def n(whole: int, small: int) -> int:
        return whole if full else small

    draw = f"train.verifier collect {BASE} {n(60000, 4096)} {d}/"
    again = f"train.reflect train --out {d}/"
    cuda = "--device cuda"
    pool = f"--pool {n(100000, 4096)} --workers 4 {cuda}"
    edit = f"--items {d}/items.pt --batch 512 {cuda} --save-every 200"
    turns = f"{d}/dev.npz --turns 5 --rows 1024 {cuda} --seed 77"
    return [
        Job("tries", f"{draw}tries.npz --mix hard --ways few few euler --per-prompt 4 {cuda} --workers 8 --raw --seed 401"),
        Job("v", f"{draw}v.npz --mix hard --ways euler few {cuda} --workers 4 --raw --seed 201"),
        Job("j", f"{draw}j.npz --mix hard --ways few heun {cuda} --workers 4 --raw --seed 101"),
        Job("dev", f"train.verifier dev {BASE} {d}/dev.npz --seed 301 --each {n(8, 1)} --set scenes-expert-dev {cuda} --raw", ("tries",)),
        Job("pairs", f"train.reflect pairs --out {d}/items.pt --memory 3 --samples {d}/tries.npz --pool {n(160000, 4096)} --workers 14 --again 8",
            ("tries",)),
        Job("learned", f"train.verifier train tokens {d}/learned --samples {d}/v.npz --hard 0.5 --no-rules {pool} --batch 256 "
            f"--steps {n(4000, 150)} --seed 21", ("v",)),
        Job("witness", f"train.verifier train film {d}/witness --samples {d}/j.npz --hard 0.5 --truth --no-rules {pool} --batch 256 "
            f"--steps {n(4000, 150)} --seed 31", ("j",)),
        Job("critic", f"train.critic train {d}/critic --steps {n(3000, 120)} --batch 512 --seed 1 {pool} --samples {d}/v.npz",
            ("v",)),
        Job("large", f"cli large {d}/large --pool {n(250000, 8192)} --workers 4 {cuda} --width 224 --depth 8 --heads 7 "
            f"--batch 512 --steps {n(3600, 120)} --hard 0.3 --save-every 200"),
        Job("edit", f"{again}edit --form edit {edit} --steps {n(2400, 150)} --seed 1", ("pairs",)),
        Job("context", f"{again}context --form context --memory 3 {edit} --steps {n(3000, 100)} --seed 2", ("pairs",)),
        Job("sft", f"{again}sft --form sft {edit} --steps {n(3000, 100)} --seed 3", ("pairs",)),
        Job("own", f"train.reflect chain {d}/edit/weights.safetensors {d}/v.npz --out {d}/own.npz --most 16000 --turns 2 --steps 8 --rows 1024 {cuda} "
            f"--seed 9", ("edit", "v")),
        Job("edit2", f"{again}edit2 --form edit --init {d}/edit/weights.safetensors --samples {d}/tries.npz {d}/own.npz --pool "
            f"{n(120000, 4096)} --workers 12 --again 4 --batch 512 {cuda} --steps {n(2600, 100)} --seed 4 --save-every 200", ("own",)),
        *(Job(f"steps-{name}-{g}", f"train.reflect steps {d}/{name}/weights.safetensors {turns} --guidance {g}", (name, "dev"))
          for name, g in (("edit", 2.5), ("context", 2.5), ("sft", 2.5), ("edit2", 2.5), ("edit2", 1.5), ("edit2", 4.0))),
    ]  # fmt: skip


def start(job: Job, every: dict[str, Job], logs: Path, began: float) -> None:
    for name in job.after:
        every[name].done.wait()
    if any(every[name].code for name in job.after):
        job.code = 1
    else:
        at = time.perf_counter()
        command = [sys.executable, "-m", f"secondlook.{job.command.split()[0]}", *job.command.split()[1:]]
        if job.name == "large":
            command = [sys.executable, "-m", "secondlook", "train", "scenes", "--out", *job.command.split()[2:]]
        env = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with (logs / f"{job.name}.log").open("w") as file:
            job.code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=env).returncode
        end = time.perf_counter()
        print(f"{job.name}: code {job.code}, from {at - began:.0f} to {end - began:.0f} s", flush=True)
    job.done.set()


def halve(file: Path) -> None:
    """Weights in float16, for one file of the whole is more than may be carried."""
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    save_file({k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}, file, about)


def rescue(folder: Path) -> None:
    """The averaged weights of a training that did not end, from its last saved state."""
    if (folder / "state.pt").exists() and not (folder / "weights.safetensors").exists():
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        tensors = {k: v.contiguous() for k, v in state["ema"].items()}
        save_file(tensors, folder / f"unfinished-{state['step']}.safetensors")


GROUPS = (("edit", "learned"), ("edit2", "witness"), ("context", "critic"), ("sft",), ("large",))


def keep(work: Path, out: Path, groups: Sequence[Sequence[str]] = GROUPS) -> None:
    """What is finished, or the last saved state's average, in archives of at most 16 MB."""
    whole = work / "large" / "weights.safetensors"
    if whole.exists():
        halve(whole)
    for group in groups:
        part = out / f"{'-'.join(group)}.tar"
        with tarfile.open(part, "w") as archive:
            for name in group:
                rescue(work / name)
                for file in sorted((work / name).glob("*.safetensors")) + sorted((work / name).glob("loss.jsonl")):
                    if file.suffix == ".safetensors":
                        archive.add(file, f"{name}/{file.name}")
    with tarfile.open(out / "logs.tar.gz", "w:gz") as archive:
        archive.add(work / "logs", "logs")
        for log in work.glob("*/loss.jsonl"):
            archive.add(log, f"{log.parent.name}.jsonl")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/dev/shm/secondlook"))
    parser.add_argument("--scale", choices=("full", "small"), default="full")
    parser.add_argument(
        "--limit", type=float, default=575, help="seconds after which what is finished is kept, and the rest stopped"
    )
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    (args.work / "logs").mkdir(parents=True)
    args.out.mkdir(parents=True, exist_ok=True)
    every = {job.name: job for job in jobs(args.work, args.scale == "full")}
    began = time.perf_counter()
    for job in every.values():
        threading.Thread(target=start, args=(job, every, args.work / "logs", began), daemon=True).start()
    for job in every.values():
        job.done.wait(max(0.0, args.limit - (time.perf_counter() - began)))
    late = [job.name for job in every.values() if not job.done.is_set()]
    keep(args.work, args.out)
    print("late:", late, "failed:", [job.name for job in every.values() if job.code])
    for log in sorted((args.work / "logs").glob("*.log")):
        lines = log.read_text().strip().splitlines()
        print(f"== {log.stem}: " + " | ".join(lines[-5:])[-900:])
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
