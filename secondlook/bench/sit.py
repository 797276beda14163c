"""`make bench-sit`: the SiT paper's ladder, its size comparison and its curves, in a world that a CPU can train on.

Digits (1,442 handwritten digits of 8 x 8) stands in for ImageNet and a network of 16 tokens for SiT-B/2, so the numbers are
small-world numbers; what can be asked is which of the paper's orderings (2401.08740, tables 1 to 6, figure 5) hold here.
Every row trains the same network for the same steps on the same batches and differs in path, target, weight or
sampler alone. Each training and each evaluation is a file of its own, so a stopped benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secondlook.disk.versions import commit
from secondlook.flow.discrete import respaced, with_path
from secondlook.flow.estimate import Flow, Weight
from secondlook.flow.grid import spread
from secondlook.flow.interval import LAST_STEP, interval
from secondlook.flow.path import Kind
from secondlook.metrics import Moments, frechet
from secondlook.models.sit import Labels, SiT, SiTConfig
from secondlook.noise import Key, normal
from secondlook.solvers.ddpm import DDIM, Ancestral
from secondlook.solvers.ode import Euler, Heun, Solver, integrate
from secondlook.solvers.sde import EulerMaruyama
from secondlook.train import classes, ddpm
from secondlook.train.loop import TrainConfig, Trainer
from secondlook.types import Condition, State
from secondlook.verify import classify
from secondlook.worlds.digits import Digits

SIZES = {"S": (32, 3, 2), "B": (64, 4, 4), "L": (96, 6, 6)}  # width, depth, heads
NFE = 128  # of the ladder and the sizes
CURVE = (8, 16, 32, 64, 128, 256)
FORMS = ("kl", "kl_eta", "sigma", "sin2")
LARGE_SEEDS = 2  # of size L, whose trainings cost as much as all the others
BATCH = 500
ETA = 0.1  # of w_KL,eta; the paper does not say its own


@dataclass(frozen=True)
class Rung:
    """One way to train: a row of the ladder."""

    name: str
    path: str
    predicts: Kind
    weight: Weight = "none"

    @property
    def discrete(self) -> bool:
        return self.path == "discrete"


LADDER = (
    Rung("DDPM noise", "discrete", "noise"),
    Rung("VP score", "vp", "logp_grad"),
    Rung("VP score, weighted", "vp", "logp_grad", "velocity"),
    Rung("VP velocity", "vp", "velocity"),
    Rung("Linear velocity", "linear", "velocity"),
    Rung("GVP velocity", "gvp", "velocity"),
)
DIT, SIT = LADDER[0], LADDER[4]


@dataclass(frozen=True)
class Scale:
    """How large a benchmark: training steps of 128 pictures, samples of an evaluation, seeds, evaluations a sample."""

    steps: int = 2000
    samples: int = 1000
    seeds: int = 3
    nfe: int = NFE
    curve: tuple[int, ...] = CURVE
    sizes: tuple[str, ...] = ("S", "B", "L")


QUICK = Scale(steps=300, samples=300, seeds=1, nfe=16, curve=(8, 16, 32), sizes=("S", "B"))


@dataclass(frozen=True)
class Job:
    """One training and its evaluations."""

    rung: Rung
    size: str
    seed: int
    curve: bool = False

    @property
    def name(self) -> str:
        return f"{self.rung.name.lower().replace(',', '').replace(' ', '-')}-{self.size}-{self.seed}"


def jobs(scale: Scale) -> list[Job]:
    """The ladder at size B, then the two ends of the size comparison; B's are the ladder's own. Longest first."""
    seeds = range(scale.seeds)
    ladder = [Job(r, "B", s, curve=r is SIT) for s in seeds for r in LADDER]
    others = [Job(r, size, s) for size in scale.sizes if size != "B" for s in seeds for r in (DIT, SIT)
              if size != "L" or s < LARGE_SEEDS]  # fmt: skip
    order = {"L": 0, "B": 1, "S": 2}
    return sorted(ladder + others, key=lambda j: (j.seed, not j.curve, order[j.size]))


def train(job: Job, scale: Scale, folder: Path) -> SiT:
    """The job's network, trained or gone on with; its averaged weights."""
    width, depth, heads = SIZES[job.size]
    net = SiTConfig(side=8, patch=2, channels=1, width=width, depth=depth, heads=heads, classes=10,
                    predicts=job.rung.predicts, path=job.rung.path)  # fmt: skip
    config = TrainConfig(steps=scale.steps, batch=128, warmup=100, seed=job.seed, bf16=False, save_every=500)
    trainer = make_trainer(job.rung, folder / job.name, config, net)
    parent = multiprocessing.parent_process()
    for _ in trainer.run():
        if parent is not None and not parent.is_alive():  # the benchmark was killed; another may be at this folder soon
            sys.exit(1)
    module = trainer.ema.module
    assert isinstance(module, SiT)
    return module.eval().requires_grad_(False)


def make_trainer(rung: Rung, folder: Path, config: TrainConfig, net: SiTConfig) -> Trainer:
    if rung.discrete:
        return ddpm.trainer(folder, config, net, Digits())
    return classes.trainer(folder, config, net, Digits(), classes.Recipe(weight=rung.weight))


def sampler(rung: Rung, kind: str, nfe: int, losses: str | None = None) -> tuple[Solver, tuple[float, ...]]:
    """A solver and its grid spending ``nfe`` evaluations a sample: "ode", "euler", or a diffusion's name.

    The discrete row is sampled on its own respaced steps: DDIM stands in its ODE column, ancestral sampling in the SDE's.
    """
    if rung.discrete:
        times = respaced(nfe)
        return (DDIM(), times) if kind in ("ode", "euler") else (Ancestral(variance="small"), times)
    if kind in ("ode", "euler"):
        span = interval(rung.path, rung.predicts, "ode")
        steps = nfe // 2 if kind == "ode" else nfe
        return (Heun("step") if kind == "ode" else Euler("step")), spread(span.start, span.end, steps)
    span = interval(rung.path, rung.predicts, "sde", last=LAST_STEP)
    solver = EulerMaruyama(kind, last="mean", eta=ETA, losses=losses, source=_Source(nfe))
    return solver, spread(span.start, span.end, nfe - 1, last=LAST_STEP)


class _Source:
    """The SDE's noise from one generator: here rows are never regrouped, and keyed noise costs more than the network."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, keys: Any, shape: Any) -> Tensor:
        return torch.randn(len(keys), *shape, generator=self.generator)


def draw(network: SiT, solver: Solver, times: tuple[float, ...], count: int) -> tuple[Tensor, Tensor]:
    """Pictures uint8 [count, 8, 8, 1] and their labels, balanced; the noise of a place is the same for every row."""
    flow = Flow(*with_path(network))
    labels = torch.arange(count) % 10
    pictures = []
    with torch.inference_mode():
        for at in range(0, count, BATCH):
            index = labels[at : at + BATCH]
            keys = tuple(Key.root(0).child("bench", at + i) for i in range(len(index)))
            start = State(normal(keys, network.shape), torch.full((len(index),), times[0]), keys,
                          torch.zeros(len(index), dtype=torch.long))  # fmt: skip
            pictures.append(Digits().decode(integrate(flow, solver, start, times, Labels(index)).x))
    return torch.cat(pictures), labels


def evaluate(pictures: Tensor, labels: Tensor) -> dict[str, float]:
    """The Frechet distance of the feature network to all training pictures, and how often a judge sees the class."""
    features = classify.features("digits")
    real = Moments.of(features(Digits().train()[0])[0])
    made = Moments.of(features(pictures)[0])
    judge = classify.judge("digits")
    verdicts = judge(pictures, [Condition(label=int(i)) for i in labels])
    assert isinstance(verdicts, torch.Tensor)
    return {"fid": float(frechet(real, made)), "right": float((verdicts > -0.6931).double().mean())}


def floor_score() -> float:
    """The same distance for the real test pictures."""
    pictures, labels = Digits().test()
    return evaluate(pictures, labels)["fid"]


def run_job(job: Job, scale: Scale, out: Path) -> None:
    """Train, evaluate, write `jobs/NAME.json`: skipped where that file is there."""
    torch.set_num_threads(1)
    target = out / "jobs" / f"{job.name}.json"
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {"job": asdict(job)}
    network: SiT | None = None
    table = out / "training" / job.name / "loss-by-time.json"
    for key, kind, nfe in wanted(job, scale):
        if key in found:
            continue
        network = network or train(job, scale, out / "training")
        solver, times = sampler(job.rung, kind, nfe, str(table) if kind == "kl_eta" else None)
        begin = time.perf_counter()
        found[key] = {**evaluate(*draw(network, solver, times, scale.samples)), "nfe": nfe,
                      "seconds": round(time.perf_counter() - begin, 1)}  # fmt: skip
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        part.write_text(json.dumps(found))
        os.replace(part, target)
    print(f"{job.name}: " + ", ".join(f"{k} {v['fid']:.3f}" for k, v in found.items() if k in ("ode", "sde")),
          file=sys.stderr, flush=True)  # fmt: skip


def wanted(job: Job, scale: Scale) -> list[tuple[str, str, int]]:
    """(key, sampler, nfe) of a job's evaluations."""
    rows = [("ode", "ode", scale.nfe), ("sde", "kl", scale.nfe)]
    if job.curve:
        rows += [(f"{kind} {nfe}", kind, nfe) for nfe in scale.curve for kind in ("ode", "euler", *FORMS)]
    return rows


def _work(task: tuple[Job, Scale, Path]) -> None:
    run_job(*task)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m secondlook.bench.sit")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-sit"))
    parser.add_argument("--quick", action="store_true", help="a few minutes: one seed, short trainings, two sizes")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="one-threaded processes")
    parser.add_argument("--docs", type=Path, help="also write sit.md and plots there")
    args = parser.parse_args(argv)
    scale = QUICK if args.quick else Scale()
    begin = time.perf_counter()
    todo = [(job, scale, args.out) for job in jobs(scale)]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for _ in pool.imap_unordered(_work, todo):
            pass
    from secondlook.bench.sit_tables import write

    print(write(args.out, scale, args.docs, f"commit {commit()}, {args.workers} one-threaded processes, "
                f"{(time.perf_counter() - begin) / 60:.0f} minutes in this call"))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
