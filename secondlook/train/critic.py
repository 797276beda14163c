"""Training of the Scenes world's critic (models/writer.py): pictures and prompts to the remarks of worlds/scenes/remarks.py.

It learns from renders, from corrupted renders and from samples of the base model, each told what the checker sees in it. BASE being
the base model's weights and DIR any folder:

    python -m secondlook.train.verifier collect BASE 4000 DIR/a.npz --seed 21 --mix hard --ways few euler
    python -m secondlook.train.critic train DIR/critic --steps 4000 --batch 512 --seed 1 --pool 200000 --workers 16 \\
        --samples DIR/a.npz --device cuda
    python -m secondlook.train.critic evaluate DIR/critic/weights.safetensors OUT.json DIR/dev.npz
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from secondlook.disk.versions import fast_bf16
from secondlook.models.allocator import keep_buffers
from secondlook.models.eyes import SIDE
from secondlook.models.writer import PAD, Writer, WriterConfig, save_writer, to_ids
from secondlook.train.auc import without_nan
from secondlook.train.critic_scores import results
from secondlook.train.loop import ByRows, Rows, Tick, TrainConfig, Trainer
from secondlook.train.pairs import Shown, fact_places, fresh, moved, prompts_for
from secondlook.train.pool import Pool, make_pool, over
from secondlook.train.ranks import Place
from secondlook.train.samples import Samples
from secondlook.train.targets import marks
from secondlook.train.watch import report
from secondlook.verify.learned import to_network
from secondlook.verify.networks import Reading, tokenize
from secondlook.worlds.scenes.checker import Seen, detect_batch, judge
from secondlook.worlds.scenes.grammar import SHAPES, WORDS, Prompt, parse
from secondlook.worlds.scenes.remarks import remark

PROMPTS = 3  # held against each picture: its own and two others
SAMPLED = 0.5  # share of base samples, where there are any
HARD = 0.6  # share of hard prompts among the renders
OWN = 2.0  # weight of a picture's own prompt, the only one that a search asks about, among its prompts
TOKENS = 10.0  # in a remark, about
WEIGHTS = "weights.safetensors"
NONE = 255  # no label
HALVES = 16  # places in a cell along an axis: boxes' centres lie on halves of a pixel
_LENGTH = WriterConfig().text_length


@dataclass(frozen=True)
class Items:
    """The maker of a pool (pool.Maker). paths: files of base samples; those made for held-out prompts are left out."""

    paths: tuple[str, ...] = ()

    def __call__(self, seed: str, part: int, count: int) -> dict[str, np.ndarray]:
        rng = random.Random(f"critic-{seed}-{part}")
        sampled = round(count * SAMPLED) if self.paths else 0
        shown = [moved(s, rng) for s in _drawn(self.paths, sampled, rng)] + fresh(rng, count - sampled, HARD)
        return columns(shown, [_prompts(s, rng) for s in shown])


def _drawn(paths: tuple[str, ...], count: int, rng: random.Random) -> list[Shown]:
    """Base samples, any one of them perhaps more than once."""
    if not count:
        return []
    samples, prompts, usable = _loaded(paths)
    rows = [rng.choice(usable) for _ in range(count)]
    seen = detect_batch(samples.pictures[rows])
    return [Shown(samples.pictures[row], what, prompts[row]) for row, what in zip(rows, seen, strict=True)]


@cache
def _loaded(paths: tuple[str, ...]) -> tuple[Samples, list[Prompt], list[int]]:
    samples = Samples.load(*(Path(p) for p in paths))
    known = {text: parse(text) for text in set(samples.texts)}
    prompts = [known[text] for text in samples.texts]
    return samples, prompts, [i for i, p in enumerate(prompts) if not p.held_out]


def _prompts(shown: Shown, rng: random.Random) -> list[Prompt]:
    own, *others = prompts_for(shown, 4, rng)
    return [own, *rng.sample(others, PROMPTS - 1)]


def columns(shown: Sequence[Shown], prompts: Sequence[Sequence[Prompt]]) -> dict[str, np.ndarray]:
    """Pictures and labels as small integers, ``NONE`` where there is nothing to tell. ids, match, words and remark have an axis of
    prompts; shapes, colors and places are of the cells, each object in the cell that holds its box's centre."""
    n, k, cells = len(shown), len(prompts[0]), SIDE * SIDE
    shape = {"match": (n, k), "words": (n, k, _LENGTH + 1), "shapes": (n, cells), "colors": (n, cells),
             "places": (n, cells, 2), "spoiled": (n,)}  # fmt: skip
    empty = {"words": NONE, "colors": NONE}
    found = {name: np.full(size, empty.get(name, 0), np.uint8) for name, size in shape.items()}
    found["pictures"] = np.stack([s.picture for s in shown])
    found["ids"] = tokenize(WORDS, _LENGTH, [p.text for row in prompts for p in row]).view(n, k, -1).byte().numpy()
    texts = []
    for i, (s, asked) in enumerate(zip(shown, prompts, strict=True)):
        for j, prompt in enumerate(asked):
            verdict = judge(s.seen, prompt)
            found["match"][i, j] = verdict.right
            found["words"][i, j, fact_places(prompt)] = verdict.atoms
            texts.append(remark(s.seen, prompt))
        _mark(s.seen, found["shapes"][i], found["colors"][i], found["places"][i])
        found["spoiled"][i] = s.seen.littered or not all(f.recognised for f in s.seen.found)
    ids = to_ids(texts).view(n, k, -1)
    ids[torch.from_numpy(found["match"]) == 1] = PAD  # a right picture's remark is the verdict's affair
    return {**found, "remark": ids.byte().numpy()}


def _mark(seen: Seen, shapes: np.ndarray, colors: np.ndarray, places: np.ndarray) -> None:
    for cell, shape, color, place in marks(seen):
        shapes[cell], colors[cell] = shape, color
        places[cell] = [round(v * HALVES) for v in place]


def loss_of(forward: Callable[..., Any], items: dict[str, Tensor], bf16: bool) -> Tensor:
    """The loss of each picture, [P]: the remarks of wrong ones, the match, and with smaller weights the facts and the cells."""
    ids, said = items["ids"].long(), items["remark"].long()
    said = said[..., : max(1, int((said != PAD).sum(-1).max()))]  # no word looks at those behind it
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        reading, logits = forward(to_network(items["pictures"]), ids, said)
    weight = torch.ones(ids.shape[1], device=ids.device)
    weight[0] = OWN
    weight = weight / weight.sum()
    match = F.binary_cross_entropy_with_logits(reading.match.float(), items["match"].float(), reduction="none")
    each = F.cross_entropy(logits.float().flatten(0, 2), said.flatten(), ignore_index=PAD, reduction="none")
    written = each.view(said.shape).sum(-1) / TOKENS
    return ((match + written) * weight).sum(1) + _aids(reading, items)


def _aids(reading: Reading, items: dict[str, Tensor]) -> Tensor:
    """The loss, [P], of what teaches the network to look: the facts that words state, what stands in each cell, spoilt objects."""
    facts = items["words"]
    stated = (facts != NONE).float()
    truth = facts.float() * stated
    words = F.binary_cross_entropy_with_logits(reading.words.float(), truth, stated, reduction="none").sum((1, 2))
    words = words / stated.sum((1, 2)).clamp(min=1)
    cells, kinds = reading.cells.float(), len(SHAPES) + 2
    shapes = F.cross_entropy(cells[..., :kinds].transpose(1, 2), items["shapes"].long(), reduction="none").mean(1)
    here = (items["shapes"] > 0).float()
    count = here.sum(1).clamp(min=1)
    colors = F.cross_entropy(
        cells[..., kinds:-2].transpose(1, 2), items["colors"].long(), ignore_index=NONE, reduction="none"
    )
    gap = ((cells[..., -2:] - items["places"].float() / HALVES) ** 2).mean(-1)
    spoiled = F.binary_cross_entropy_with_logits(reading.spoiled.float(), items["spoiled"].float(), reduction="none")
    return 0.5 * words + 2.0 * shapes + 0.3 * colors.sum(1) / count + (gap * here).sum(1) / count + 0.3 * spoiled


def loss_over(pool: Pool, config: TrainConfig) -> ByRows:
    """The loss of a training over a pool."""
    return over(pool, config.batch, lambda forward, items, generator: Rows(loss_of(forward, items, config.bf16)))


def train_critic(
    config: TrainConfig, out: Path, count: int, workers: int = 1, paths: Sequence[Path] = (), sizes: WriterConfig | None = None
) -> Iterator[Tick]:  # fmt: skip
    """Train a critic on ``count`` pictures in the folder ``out``, and write its moving average there as ``weights.safetensors``."""
    torch.manual_seed(config.seed)
    module = Writer(sizes or WriterConfig())
    files = tuple(str(p) for p in paths)
    pool = make_pool(Items(files), str(config.seed), count, workers)
    loss = loss_over(pool.to(Place.find(config.device, True).device), config)
    work = Trainer(module, loss, config, out, about={"pool": count, "samples": [p.name for p in paths]})
    last: list[float] = []
    for tick in work.run():
        last = [*last[-99:], tick.loss]
        yield tick
    facts = {
        "kind": "writer", "seed": config.seed, "steps": config.steps, "batch": config.batch, "pool": count,
        "prompts_a_picture": PROMPTS, "base_samples": len(_loaded(files)[2]) if files else 0,
        "seconds": round(work.seconds),
        "parameters": sum(p.numel() for p in module.parameters()), "device": work.place.device.type,
        "own_prompt_right": round(float(pool.columns["match"][:, 0].float().mean()), 4),
        "last_loss": round(sum(last) / len(last), 4) if last else None,
    }  # fmt: skip
    network = work.ema.module.cpu()
    assert isinstance(network, Writer)
    save_writer(network, out / WEIGHTS, facts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m secondlook.train.critic")
    sub = parser.add_subparsers(dest="command", required=True)
    p = sub.add_parser("train")
    p.add_argument("out", type=Path)
    p.add_argument("--steps", type=int, required=True)
    p.add_argument("--batch", type=int, default=512)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--pool", type=int, default=150_000, help="pictures made beforehand")
    p.add_argument("--workers", type=int, default=1, help="processes that make them")
    p.add_argument("--samples", type=Path, nargs="*", default=[], help="base samples, of train.verifier collect")
    p.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    p = sub.add_parser("evaluate")
    p.add_argument("weights", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("samples", type=Path, nargs="+")
    return parser


def main() -> None:
    args = _parser().parse_args()
    keep_buffers()
    if args.command == "evaluate":
        found = results(args.weights, Samples.load(*args.samples))
        args.out.write_text(json.dumps(without_nan(found), indent=1) + "\n")
        return
    device = Place.find(args.device, True).device
    config = TrainConfig(args.steps, args.batch, warmup=min(200, args.steps // 10), ema=0.998, seed=args.seed,
                         device=args.device, bf16=device.type == "cuda" or fast_bf16())  # fmt: skip
    report(train_critic(config, args.out, args.pool, args.workers, args.samples))
    print(json.dumps({"weights": str(args.out / WEIGHTS)}))


if __name__ == "__main__":
    main()
