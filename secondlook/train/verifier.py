"""Training of the verifier (kind ``tokens``) and of the judge (kind ``film``) of the Scenes world.

The shipped weights came from these commands, BASE being the base model's weights and DIR any folder:

    python -m secondlook.train.verifier collect BASE 2200 DIR/a.npz --seed 11
    python -m secondlook.train.verifier collect BASE 2200 DIR/b.npz --seed 13
    python -m secondlook.train.verifier train tokens DIR/start --seed 1 --steps 500
    python -m secondlook.train.verifier train tokens DIR/verifier --seed 2 --steps 1800 \\
        --init DIR/start/weights.safetensors --samples DIR/[ab].npz
    python -m secondlook.train.verifier train film DIR/judge --seed 3 --steps 1800 --samples DIR/[ab].npz
    python -m secondlook.train.verifier dev BASE DIR/dev-a.npz --seed 12 --each 4
    python -m secondlook.train.verifier dev BASE DIR/dev-b.npz --seed 14 --each 4
    python -m secondlook.train.verifier evaluate DIR/{verifier,judge}/weights.safetensors OUT.json DIR/dev-[ab].npz

``train`` without ``--samples`` sees renders alone. The shipped verifier's start was the first 500 of 3000 planned steps,
before its rate fell. ``docs/results/verifier.json`` holds what ``evaluate`` found.

On a GPU ``collect`` takes ``--device cuda --workers W --raw``, and ``train`` learns from items made beforehand:
``--pool COUNT --workers W --device cuda --batch B``.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.models.allocator import keep_buffers
from secondlook.models.checkpoint import fill
from secondlook.train.auc import results, without_nan
from secondlook.train.larder import SAMPLED, UNSTOCKED, Stock, pool_of, pooled_loss, stocked
from secondlook.train.loop import Tick, TrainConfig, Trainer
from secondlook.train.pairs import Shown, fresh, moved, prompts_for
from secondlook.train.pool import over
from secondlook.train.ranks import Place
from secondlook.train.samples import MIXES, WAYS, Means, Samples, collect, collect_set
from secondlook.train.targets import LENGTH, PROMPTS, Targets, loss_of, targets_of
from secondlook.train.watch import report
from secondlook.verify.learned import save_verifier, to_network
from secondlook.verify.networks import Film, NetworkConfig, Reading, Tokens, build, tokenize
from secondlook.worlds.scenes.grammar import WORDS, Prompt
from secondlook.worlds.scenes.prompts import SETS

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Batch:
    """pictures float32 [P, 3, 64, 64], ids int64 [P, K, L + 1], prompts K for each picture."""

    pictures: Tensor
    ids: Tensor
    targets: Targets
    prompts: list[list[Prompt]]


def batch(pool: Sequence[Shown], seed: int, step: int, count: int, hard: float = 0.0, truth: bool = False) -> Batch:
    """Pictures and prompts of one step, by seed and step: fresh renders (pairs.fresh) and, from ``pool``, base samples."""
    rng = random.Random(f"verifier-{seed}-{step}")
    sampled = round(count * SAMPLED) if pool else 0
    shown = [moved(rng.choice(pool), rng) for _ in range(sampled)] + fresh(rng, count - sampled, hard, truth)
    prompts = [prompts_for(s, PROMPTS, rng) for s in shown]
    ids = tokenize(WORDS, LENGTH, [p.text for row in prompts for p in row]).view(count, PROMPTS, -1)
    pictures = to_network(torch.stack([torch.from_numpy(s.picture) for s in shown]))
    return Batch(pictures.contiguous(), ids, targets_of(shown, prompts), prompts)


@dataclass(frozen=True)
class Food:
    """What a network is taught with, and how it answers. hard, truth: of fresh renders (pairs.fresh). rules: NetworkConfig's."""

    hard: float = 0.0
    truth: bool = False
    rules: bool = True


def trainer(
    kind: str, folder: Path, config: TrainConfig, samples: Samples | None, init: Path | None = None, food: Food = Food(),
    stock: Stock = UNSTOCKED,
) -> Trainer:  # fmt: skip
    """A trainer of one network, resuming what ``folder`` holds; ``init`` is a weights file to begin from."""
    torch.manual_seed(config.seed)
    module = build(NetworkConfig(kind, WORDS, rules=food.rules))
    if init is not None:
        fill(module, init)
    if stock.count:
        device = Place.find(config.device, shared=True).device
        items = stocked(samples, stock, config.seed, food.hard, food.truth).to(device)
        about = {"pool": stock.count, "hard": food.hard, "truth": food.truth}
        return Trainer(module, over(items, config.batch, pooled_loss(config.bf16)), config, folder, about=about)
    pool = pool_of(samples) if samples is not None else []

    def loss(forward: Callable[..., Reading], step: int, generator: torch.Generator) -> Tensor:
        b = batch(pool, config.seed, step, config.batch, food.hard, food.truth)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            reading = forward(b.pictures, b.ids)
        return loss_of(reading, b.targets)

    return Trainer(module, loss, config, folder)


def train_verifier(
    kind: str, samples: Samples | None, out: Path, steps: int, seed: int, init: Path | None = None, batch_size: int = 48,
    food: Food = Food(), stock: Stock = UNSTOCKED, lr: float | None = None,
) -> Iterator[Tick]:  # fmt: skip
    """Train one network in the folder ``out``, and write its moving average there as ``weights.safetensors``."""
    rates: dict[str, Any] = {} if lr is None else {"lr": lr, "muon_lr": 2 * lr}
    config = TrainConfig(steps=steps, batch=batch_size, warmup=100, ema=0.998, seed=seed, hold=0.5, device=stock.device,
                         compile=stock.compile, **rates)  # fmt: skip
    work = trainer(kind, out, config, samples, init, food, stock)
    yield from work.run()
    module = work.ema.module.cpu()
    assert isinstance(module, Tokens | Film)
    facts = {
        "kind": kind, "seed": seed, "steps": steps, "pictures": steps * config.batch, "prompts_a_picture": PROMPTS,
        "base_samples": 0 if samples is None else len(samples), "seconds": round(work.seconds),
        "parameters": sum(p.numel() for p in module.parameters()), "threads": torch.get_num_threads(),
        "continued": init is not None, "hard": food.hard, "truth": food.truth,
    }  # fmt: skip
    if stock.count:
        facts["pool"] = stock.count
    save_verifier(module, out / WEIGHTS, facts)


def train_command(args: argparse.Namespace) -> int:
    """`secondlook train scenes-verifier|scenes-judge`: reads world, out, steps, batch, seed and samples."""
    kind = {"scenes-verifier": "tokens", "scenes-judge": "film"}[args.world]
    samples = Samples.load(Path(args.samples)) if args.samples else None
    report(train_verifier(kind, samples, Path(args.out), args.steps, args.seed, batch_size=args.batch))
    print(json.dumps({"weights": str(Path(args.out) / WEIGHTS)}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m secondlook.train.verifier")
    sub = parser.add_subparsers(dest="command", required=True)
    for name in ("collect", "dev"):
        p = sub.add_parser(name)
        p.add_argument("base", type=Path)
        if name == "collect":
            p.add_argument("count", type=int)
            p.add_argument("--mix", choices=MIXES, default="all")
            p.add_argument("--ways", nargs="+", choices=WAYS, default=["euler"])
            p.add_argument("--per-prompt", type=int, default=1, help="samples of each prompt that is drawn")
        else:
            p.add_argument("--each", type=int, default=8)
            p.add_argument("--every", type=int, default=1)
            p.add_argument("--set", choices=[name for name in SETS if name.endswith("-dev")], default="scenes-dev")
        p.add_argument("out", type=Path)
        p.add_argument("--seed", type=int, default=0)
        p.add_argument(
            "--device", default="cpu", help="cpu, cuda or cuda:N; elsewhere than on the CPU other samples are drawn"
        )
        p.add_argument("--batch", type=int, help="pictures at a time (default: 64 on the CPU, 1024 elsewhere)")
        p.add_argument("--workers", type=int, default=1, help="processes that label")
        p.add_argument("--raw", action="store_true", help="do not compress the file")
    p = sub.add_parser("train")
    p.add_argument("kind")
    p.add_argument("out", type=Path)
    p.add_argument("--steps", type=int, required=True)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--init", type=Path)
    p.add_argument("--samples", type=Path, nargs="*", default=[])
    p.add_argument("--hard", type=float, default=0.0, help="share of hard prompts among the renders")
    p.add_argument("--truth", action="store_true", help="whole renders are labelled by their scenes")
    p.add_argument("--no-rules", dest="rules", action="store_false", help="the match head alone answers")
    p.add_argument("--batch", type=int, default=48)
    p.add_argument("--lr", type=float, help="of AdamW; Muon's is twice that (default 0.0015)")
    p.add_argument(
        "--pool",
        type=int,
        default=0,
        help="items made beforehand; a step draws among them (default: each makes its own)",
    )
    p.add_argument("--workers", type=int, default=1, help="processes that make them")
    p.add_argument("--compile", action="store_true", help="with --pool; needs a C++ compiler")
    p.add_argument("--device", help="with --pool: cpu, cuda or cuda:N (default: cuda where there is one)")
    p = sub.add_parser("evaluate")
    p.add_argument("verifier", type=Path)
    p.add_argument("judge", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("samples", type=Path, nargs="+")
    return parser


def main() -> None:
    args = _parser().parse_args()
    keep_buffers()
    if args.command == "evaluate":
        found = results({"verifier": args.verifier, "judge": args.judge}, Samples.load(*args.samples))
        args.out.write_text(json.dumps(without_nan(found), indent=1) + "\n")
    elif args.command == "train":
        samples = Samples.load(*args.samples) if args.samples else None
        if (args.device or args.compile) and not args.pool:
            raise ConfigError(
                "--device and --compile go with --pool: without one every step makes its pictures on the CPU."
            )
        if args.pool and torch.cuda.is_available():
            torch.set_float32_matmul_precision("high")
        stock = Stock(args.pool, args.workers, args.device, args.compile)
        report(train_verifier(args.kind, samples, args.out, args.steps, args.seed, args.init, args.batch,
                               Food(args.hard, args.truth, args.rules), stock, args.lr))  # fmt: skip
    else:
        means = Means(args.device, args.batch, args.workers, args.raw)
        if args.command == "collect":
            ticks = collect(args.base, args.count, args.out, args.seed, args.mix, args.ways, args.per_prompt, means)
        else:
            ticks = collect_set(args.base, args.set, args.each, args.out, args.seed, args.every, means)
        for done in ticks:
            print(done, flush=True)


if __name__ == "__main__":
    main()
