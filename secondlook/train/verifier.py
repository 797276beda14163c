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
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from secondlook.models.allocator import keep_buffers
from secondlook.models.checkpoint import fill
from secondlook.train.auc import results, without_nan
from secondlook.train.loop import Tick, TrainConfig, Trainer
from secondlook.train.pairs import Shown, fact_places, fresh, moved, prompts_for
from secondlook.train.samples import MIXES, WAYS, Samples, collect, collect_set
from secondlook.verify.learned import save_verifier, to_network
from secondlook.verify.networks import SIDE, Film, NetworkConfig, Reading, Tokens, build, tokenize
from secondlook.worlds.scenes.checker import Seen, detect_batch, judge
from secondlook.worlds.scenes.grammar import COLORS, SHAPES, WORDS, Prompt
from secondlook.worlds.scenes.prompts import SETS

PROMPTS = 4  # prompts held against each picture
SAMPLED = 0.6  # share of base samples in a batch, where there are any
WEIGHTS = "weights.safetensors"
OWN = 2.0  # weight of a picture's own prompt, the only one that a search asks about, among its prompts
_COLORS = tuple(COLORS)
_SKIP = -100
_LENGTH = 16


@dataclass(frozen=True)
class Targets:
    """Labels of a batch: match [P, K] and words [P, K, L + 1] in {0, 1}, words NaN where a word states no fact; shapes
    and colors int64 [P, 64], ``_SKIP`` where there is no object; places [P, 64, 2] in its cell; spoiled [P]."""

    match: Tensor
    words: Tensor
    shapes: Tensor
    colors: Tensor
    places: Tensor
    spoiled: Tensor


@dataclass(frozen=True)
class Batch:
    """pictures float32 [P, 3, 64, 64], ids int64 [P, K, L + 1], prompts K for each picture."""

    pictures: Tensor
    ids: Tensor
    targets: Targets
    prompts: list[list[Prompt]]


def pool_of(samples: Samples) -> list[Shown]:
    """Base samples ready to be held against prompts; those made for held-out prompts are left out."""
    seen = detect_batch(samples.pictures)
    every = (Shown(*each) for each in zip(samples.pictures, seen, samples.prompts, strict=True))
    return [shown for shown in every if not shown.prompt.held_out]


def batch(pool: Sequence[Shown], seed: int, step: int, count: int, hard: float = 0.0, truth: bool = False) -> Batch:
    """Pictures and prompts of one step, by seed and step: fresh renders (pairs.fresh) and, from ``pool``, base samples."""
    rng = random.Random(f"verifier-{seed}-{step}")
    sampled = round(count * SAMPLED) if pool else 0
    shown = [moved(rng.choice(pool), rng) for _ in range(sampled)] + fresh(rng, count - sampled, hard, truth)
    prompts = [prompts_for(s, PROMPTS, rng) for s in shown]
    ids = tokenize(WORDS, _LENGTH, [p.text for row in prompts for p in row]).view(count, PROMPTS, -1)
    pictures = to_network(torch.stack([torch.from_numpy(s.picture) for s in shown]))
    return Batch(pictures.contiguous(), ids, _targets(shown, prompts), prompts)


def _targets(shown: Sequence[Shown], prompts: Sequence[Sequence[Prompt]]) -> Targets:
    n, cells = len(shown), SIDE * SIDE
    match = torch.zeros(n, PROMPTS)
    words = torch.full((n, PROMPTS, _LENGTH + 1), float("nan"))
    shapes, colors = torch.zeros(n, cells, dtype=torch.long), torch.full((n, cells), _SKIP)
    places, spoiled = torch.zeros(n, cells, 2), torch.zeros(n)
    for i, (s, asked) in enumerate(zip(shown, prompts, strict=True)):
        for k, prompt in enumerate(asked):
            verdict = judge(s.seen, prompt)
            match[i, k] = verdict.right
            words[i, k, fact_places(prompt)] = torch.tensor(verdict.atoms).float()
        _mark(s.seen, shapes[i], colors[i], places[i])
        spoiled[i] = s.seen.littered or not all(f.recognised for f in s.seen.found)
    return Targets(match, words, shapes, colors, places, spoiled)


def _mark(seen: Seen, shapes: Tensor, colors: Tensor, places: Tensor) -> None:
    """Write a picture's objects into its rows of the targets, each into the cell that holds its box's centre."""
    for found in seen.found:
        x, y = (min(v, 63.5) / SIDE for v in found.center)
        cell = int(y) * SIDE + int(x)
        shapes[cell] = SHAPES.index(found.shape) + 1 if found.shape else len(SHAPES) + 1
        colors[cell] = _COLORS.index(found.color) if found.color else len(_COLORS)
        places[cell] = torch.tensor([x % 1, y % 1])


def loss_of(reading: Reading, targets: Targets) -> Tensor:
    """Mean loss: the match, and with smaller weights the facts and what stands in each cell."""
    weight = torch.ones(reading.match.shape[1])
    weight[0] = OWN
    match = F.binary_cross_entropy_with_logits(reading.match.float(), targets.match, weight / weight.mean())
    stated = ~targets.words.isnan()
    words = F.binary_cross_entropy_with_logits(reading.words.float()[stated], targets.words[stated])
    cells = reading.cells.float()
    kinds = len(SHAPES) + 2
    shapes = F.cross_entropy(cells[..., :kinds].flatten(0, 1), targets.shapes.flatten())
    here = targets.shapes > 0
    colors = F.cross_entropy(cells[..., kinds:-2][here], targets.colors[here], ignore_index=_SKIP)
    places = F.mse_loss(cells[..., -2:][here], targets.places[here])
    spoiled = F.binary_cross_entropy_with_logits(reading.spoiled.float(), targets.spoiled)
    return match + 0.5 * words + 2.0 * shapes + 0.3 * colors + places + 0.3 * spoiled


@dataclass(frozen=True)
class Food:
    """What a network is taught with, and how it answers. hard, truth: of fresh renders (pairs.fresh). rules: NetworkConfig's."""

    hard: float = 0.0
    truth: bool = False
    rules: bool = True


def trainer(
    kind: str, folder: Path, config: TrainConfig, samples: Samples | None, init: Path | None = None, food: Food = Food()
) -> Trainer:
    """A trainer of one network, resuming what ``folder`` holds; ``init`` is a weights file to begin from."""
    torch.manual_seed(config.seed)
    module = build(NetworkConfig(kind, WORDS, rules=food.rules))
    if init is not None:
        fill(module, init)
    pool = pool_of(samples) if samples is not None else []

    def loss(forward: Callable[..., Reading], step: int, generator: torch.Generator) -> Tensor:
        b = batch(pool, config.seed, step, config.batch, food.hard, food.truth)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            reading = forward(b.pictures, b.ids)
        return loss_of(reading, b.targets)

    return Trainer(module, loss, config, folder)


def train_verifier(
    kind: str, samples: Samples | None, out: Path, steps: int, seed: int, init: Path | None = None, batch_size: int = 48,
    food: Food = Food(),
) -> Iterator[Tick]:  # fmt: skip
    """Train one network in the folder ``out``, and write its moving average there as ``weights.safetensors``."""
    config = TrainConfig(steps=steps, batch=batch_size, warmup=100, ema=0.998, seed=seed, hold=0.5)
    work = trainer(kind, out, config, samples, init, food)
    yield from work.run()
    module = work.ema.module
    assert isinstance(module, Tokens | Film)
    facts = {
        "kind": kind, "seed": seed, "steps": steps, "pictures": steps * config.batch, "prompts_a_picture": PROMPTS,
        "base_samples": 0 if samples is None else len(samples), "seconds": round(work.seconds),
        "parameters": sum(p.numel() for p in module.parameters()), "threads": torch.get_num_threads(),
        "continued": init is not None, "hard": food.hard, "truth": food.truth,
    }  # fmt: skip
    save_verifier(module, out / WEIGHTS, facts)


def _report(ticks: Iterator[Tick], every: int = 100) -> None:
    """Print the mean loss of every hundred steps to standard error."""
    total = 0.0
    for tick in ticks:
        total += tick.loss
        if tick.step % every == 0:
            print(f"step {tick.step}  loss {total / every:.4f}  {tick.seconds:.0f} s", file=sys.stderr, flush=True)
            total = 0.0


def train_command(args: argparse.Namespace) -> int:
    """`secondlook train scenes-verifier|scenes-judge`: reads world, out, steps, batch, seed and samples."""
    kind = {"scenes-verifier": "tokens", "scenes-judge": "film"}[args.world]
    samples = Samples.load(Path(args.samples)) if args.samples else None
    _report(train_verifier(kind, samples, Path(args.out), args.steps, args.seed, batch_size=args.batch))
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
        else:
            p.add_argument("--each", type=int, default=8)
            p.add_argument("--every", type=int, default=1)
            p.add_argument("--set", choices=[name for name in SETS if name.endswith("-dev")], default="scenes-dev")
        p.add_argument("out", type=Path)
        p.add_argument("--seed", type=int, default=0)
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
        _report(train_verifier(args.kind, samples, args.out, args.steps, args.seed, args.init,
                               food=Food(args.hard, args.truth, args.rules)))  # fmt: skip
    elif args.command == "collect":
        for done in collect(args.base, args.count, args.out, args.seed, args.mix, args.ways):
            print(done, flush=True)
    else:
        for done in collect_set(args.base, args.set, args.each, args.out, args.seed, args.every):
            print(done, flush=True)


if __name__ == "__main__":
    main()
