"""What the engine costs beside the network: a whole search against a bare loop of the same padded batches.

Both draw the same number of full micro-batches with the shipped weights. The engine plans, keys noise, packs rows, decodes,
writes a PNG for each picture and commits every outcome; the bare loop makes noise, calls the solver and decodes. Scoring is
in neither (a verifier that returns zeros stands in, and no held-out judge looks): what a real one costs is a property of the
verifier, printed apart.
CPU seconds count the work of the process, wall seconds also what it waits for: disks, and other processes.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secondlook.api import build_rig, tasks_of
from secondlook.backends.scenes import Scenes
from secondlook.disk.versions import commit
from secondlook.engine.driver import Driver
from secondlook.engine.ledger import Budget
from secondlook.engine.rig import Rig
from secondlook.engine.store import Store
from secondlook.flow.guidance import Network
from secondlook.models.allocator import keep_buffers
from secondlook.settings import Settings, make_named, make_plan
from secondlook.types import Condition, State
from secondlook.worlds.scenes.prompts import prompt_set


class Free:
    """A verifier that costs nothing and finds all pictures equal."""

    name = "free"

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        return torch.zeros(len(samples), dtype=torch.float64)


class Counted:
    """A network that counts how often it is asked."""

    def __init__(self, inner: Network):
        self.inner, self.calls = inner, 0
        self.predicts, self.shape = inner.predicts, inner.shape

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.calls += 1
        return self.inner(x, t, cond)


@dataclass(frozen=True)
class Time:
    wall: float
    cpu: float


def timed(work: Callable[[], int]) -> tuple[Time, int]:
    wall, cpu = time.perf_counter(), time.process_time()
    calls = work()
    return Time(time.perf_counter() - wall, time.process_time() - cpu), calls


def engine(s: Settings, rig: Rig) -> int:
    """A whole search into a run on disk; returns how many times the network was asked."""
    before = rig.flow.network.calls
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "run", s.as_dict())
        with store.writing():
            Driver(tasks_of(s, Scenes(), rig.times), make_plan(s.plan), rig, Budget(**s.budget), store).run()  # type: ignore[arg-type]
        store.close()
    return rig.flow.network.calls - before


def bare(s: Settings, rig: Rig, calls: int) -> int:
    """The same number of calls on batches of the same shape, and nothing that is not needed for pictures."""
    tasks, before = tasks_of(s, Scenes(), rig.times), rig.flow.network.calls
    cond = rig.conditions([tasks[i % len(tasks)].condition for i in range(rig.rows)])
    with torch.inference_mode():
        while rig.flow.network.calls - before < calls:
            keys = [tasks[i % len(tasks)].key.child("bare", i) for i in range(rig.rows)]
            state = State.stack([rig.start(k) for k in keys])
            for t in rig.times[1:]:
                state = rig.solver.step(rig.flow, state, torch.full_like(state.t, t), cond)
            rig.decode(state.x)
    return rig.flow.network.calls - before


def scoring(rig: Rig, name: str, pictures: int) -> str:
    """Seconds that a real verifier would have added."""
    verifier = make_named("verifier", name)
    samples = torch.zeros(rig.rows, 64, 64, 3, dtype=torch.uint8)
    conditions = [Condition("a red circle")] * rig.rows
    verifier(samples, conditions)
    spent, _ = timed(lambda: len(verifier(samples, conditions)))
    return f"{name}: {spent.cpu / rig.rows * pictures:.3f} s CPU for {pictures} pictures (in neither column)"


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--plan", default="zero_order(neighbours=4)")
    p.add_argument("--prompts", type=int, default=16)
    p.add_argument("--samples", type=int, default=5, help="samples' worth for each prompt")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--rows", type=int, default=16)
    p.add_argument("--threads", type=int, default=None)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--verifier", default=None, help="also time this verifier, apart")
    return p.parse_args()


def main() -> int:
    a = arguments()
    prompts = [p.text for p in prompt_set("scenes-dev")[:: max(1, 300 // a.prompts)][: a.prompts]]
    s = Settings(
        prompts, a.plan, steps=a.steps, rows=a.rows, threads=a.threads, seed=a.seed, budget={"nfe": a.samples * a.steps}
    )
    s = s.filled(Scenes().usual(s))
    rig = build_rig(s, Scenes())
    rig.verifier, rig.judges = Free(), {}
    rig.flow = replace(rig.flow, network=Counted(rig.flow.network))
    print("command:", shlex.join(["python", *sys.argv]))
    print(f"seed {s.seed}, threads {s.threads}, rows {s.rows}, bf16 {s.bf16}, torch {torch.__version__}, commit {commit()}, "
          f"{platform.processor() or platform.machine()}")  # fmt: skip
    torch.set_num_threads(s.threads or 1)
    keep_buffers()  # as the command line does
    bare(s, rig, a.steps)  # warm up: encodings, allocator, kernels
    pairs: list[tuple[Time, Time]] = []
    expected = engine(s, rig)  # counts the calls, and warms up what only a search uses
    print(
        f"{'':>3} {'engine wall':>12} {'bare wall':>10} {'engine cpu':>11} {'bare cpu':>9} {'overhead wall':>14} {'cpu':>7}   calls"
    )
    for i in range(a.repeats):
        if i % 2:  # alternate who goes first: a machine that slows down must not favour one of them
            b, same = timed(lambda: bare(s, rig, expected))
            e, calls = timed(lambda: engine(s, rig))
        else:
            e, calls = timed(lambda: engine(s, rig))
            b, same = timed(lambda: bare(s, rig, expected))
        pairs.append((e, b))
        print(
            f"{i:>3} {e.wall:>12.3f} {b.wall:>10.3f} {e.cpu:>11.3f} {b.cpu:>9.3f} {_over(e.wall, b.wall):>14} {_over(e.cpu, b.cpu):>7}   {calls} : {same}"
        )
    for unit in ("wall", "cpu"):
        e, b = (statistics.median(getattr(pair[k], unit) for pair in pairs) for k in (0, 1))
        ratios = sorted(getattr(x, unit) / getattr(y, unit) for x, y in pairs)
        print(f"{unit}: median engine {e:.3f} s, bare {b:.3f} s; overhead of a pair, median {_over(statistics.median(ratios), 1)}, "
              f"from {_over(ratios[0], 1)} to {_over(ratios[-1], 1)}")  # fmt: skip
    if a.verifier:
        print(scoring(rig, a.verifier, a.prompts * a.samples))
    return 0


def _over(e: float, b: float) -> str:
    return f"{100 * (e / b - 1):+.1f} %"


if __name__ == "__main__":
    sys.exit(main())
