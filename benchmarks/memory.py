"""Peak memory and start of a run against its number of prompts: python benchmarks/memory.py

A stand-in network (no weights, pictures of 16 x 16) draws two pictures a prompt, so that what grows is the engine's own. Each
count runs in a process of its own; the peak is the largest resident size beyond that of a process that only imported everything.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secondlook.disk.versions import commit
from secondlook.engine.driver import Driver
from secondlook.engine.ledger import Budget
from secondlook.engine.rig import Rig
from secondlook.engine.store import Store
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import grid
from secondlook.flow.path import Kind, Linear
from secondlook.noise import Key
from secondlook.settings import make_plan
from secondlook.solvers.ode import Euler
from secondlook.types import Condition, Task


class Stand:
    """A network without weights."""

    predicts: Kind = "data"
    shape = (3, 16, 16)

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return torch.tanh(x)


class Words:
    """An encoding as large as a text encoder's: 77 x 768 numbers."""

    def __init__(self, x: Tensor):
        self.x = x

    def rows(self, index: Sequence[int]) -> Words:
        return Words(self.x[list(index)])

    @staticmethod
    def stack(items: Sequence[Words]) -> Words:
        return Words(torch.cat([i.x for i in items]))


def encode(condition: Condition | None) -> Words:
    return Words(torch.zeros(1, 77, 768))


def decode(x: Tensor) -> Tensor:
    return ((x.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class Mean:
    name = "mean"

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        return samples.double().flatten(1).mean(1)


def resident() -> int:
    """The most bytes of memory this process ever held."""
    [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def run(prompts: int) -> dict[str, float]:
    rig = Rig(Flow(Stand(), Linear()), Euler(), grid(2), encode, decode, Mean(), rows=16)
    before, begun, first = resident(), time.perf_counter(), [0.0]

    def progress(driver: Driver) -> None:
        if driver.drawn and not first[0]:
            first[0] = time.perf_counter() - begun

    with tempfile.TemporaryDirectory() as folder:
        names = [f"prompt {i}" for i in range(prompts)]
        store = Store.create(Path(folder) / "run", {"prompts": names, "plan": "random(n=2)"})
        root = Key.root(0)
        tasks = [Task(i, Condition(n), root.child("task", i), rig.times) for i, n in enumerate(names)]
        with store.writing():
            Driver(tasks, make_plan("random(n=2)"), rig, Budget(), store).run(progress)
    return {"grown": resident() - before, "first": first[0], "seconds": time.perf_counter() - begun}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prompts", type=int, nargs="+", default=[100, 1000, 10000])
    p.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.alone:
        print(json.dumps(run(a.alone)))
        return 0
    print(f"commit {commit()}, torch {torch.__version__}")
    print(f"{'prompts':>8} {'grown, MB':>10} {'first picture, s':>17} {'whole, s':>9}")
    for count in a.prompts:
        done = subprocess.run(
            [sys.executable, __file__, "--alone", str(count)], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{count:>8} {found['grown'] / 2**20:>10.1f} {found['first']:>17.3f} {found['seconds']:>9.1f}", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
