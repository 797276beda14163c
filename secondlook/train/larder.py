"""A verifier's training items made beforehand: the mixture of train/verifier.py's batches in small columns, by several processes."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.train.loop import Rows
from secondlook.train.pairs import Shown, fresh, moved, prompts_for
from secondlook.train.pool import PART, Pool, PoolLoss, make_pool
from secondlook.train.samples import Samples
from secondlook.train.targets import LENGTH, PROMPTS, Targets, loss_of, targets_of
from secondlook.verify.learned import to_network
from secondlook.verify.networks import Reading, tokenize
from secondlook.worlds.scenes.checker import detect_batch
from secondlook.worlds.scenes.grammar import WORDS, Prompt

SAMPLED = 0.6  # share of base samples in a batch, where there are any
_LEAST = 32  # base samples that a part looks at, or all of them


@dataclass(frozen=True)
class Stock:
    """count: items made beforehand (0: none, every step makes its own). workers: processes that make them. device: where the
    network is trained on them, and whether it is compiled, as in ``TrainConfig``."""

    count: int = 0
    workers: int = 1
    device: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.count < 0 or self.workers < 1:
            raise ConfigError(f"--pool is 0 or above and --workers at least 1; got {self.count} and {self.workers}.")


UNSTOCKED = Stock()


def pool_of(samples: Samples) -> list[Shown]:
    """Base samples ready to be held against prompts; those made for held-out prompts are left out."""
    seen = detect_batch(samples.pictures)
    every = (Shown(*each) for each in zip(samples.pictures, seen, samples.prompts, strict=True))
    return [shown for shown in every if not shown.prompt.held_out]


@dataclass(frozen=True)
class Larder:
    """A ``pool.Maker`` of ``parts`` parts. folder: base samples as ``lay`` left them; every part looks at its own slice of them
    and uses each as often as the others. hard, truth: as in ``pairs.fresh``."""

    parts: int
    hard: float = 0.0
    truth: bool = False
    folder: Path | None = None

    def __call__(self, seed: str, part: int, count: int) -> dict[str, np.ndarray]:
        rng = random.Random(f"larder-{seed}-{part}")
        own = self._own(part)
        rng.shuffle(own)
        sampled = round(count * SAMPLED) if own else 0
        shown = [moved(own[i % len(own)], rng) for i in range(sampled)]
        shown += fresh(rng, count - sampled, self.hard, self.truth)
        return columns(shown, [prompts_for(s, PROMPTS, rng) for s in shown])

    def _own(self, part: int) -> list[Shown]:
        """The part's slice of the base samples, read without the others."""
        if self.folder is None:
            return []
        pictures, texts, right = (np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in _LAID)
        first, last = (p * len(texts) // self.parts for p in (part, part + 1))
        at = np.arange(first, max(last, first + min(len(texts), _LEAST))) % len(texts)
        return pool_of(Samples(pictures[at], tuple(str(t) for t in texts[at]), right[at]))


_LAID = ("pictures", "texts", "right")


def lay(samples: Samples, folder: Path) -> None:
    """Write base samples so that other processes can read a slice of them."""
    for name, values in zip(_LAID, (samples.pictures, np.array(samples.texts), samples.right), strict=True):
        np.save(folder / f"{name}.npy", values)


def stocked(samples: Samples | None, stock: Stock, seed: int, hard: float = 0.0, truth: bool = False) -> Pool:
    """``stock.count`` items: fresh renders and, where there are ``samples``, as many of those as in a batch."""
    parts = -(-stock.count // PART)
    if samples is None or not len(samples):
        return make_pool(Larder(parts, hard, truth), f"verifier-{seed}", stock.count, stock.workers)
    with tempfile.TemporaryDirectory(prefix="secondlook-") as folder:
        lay(samples, Path(folder))
        return make_pool(Larder(parts, hard, truth, Path(folder)), f"verifier-{seed}", stock.count, stock.workers)


def columns(shown: Sequence[Shown], prompts: Sequence[Sequence[Prompt]]) -> dict[str, np.ndarray]:
    """Pictures, their prompts and ``Targets``, a row a picture. A place in a cell is a multiple of 1/16, which float16 holds."""
    ids = tokenize(WORDS, LENGTH, [p.text for row in prompts for p in row])
    t = targets_of(shown, prompts)
    return {
        "picture": np.stack([s.picture for s in shown]),
        "ids": ids.view(len(shown), -1, LENGTH + 1).to(torch.int8).numpy(),
        "match": t.match.to(torch.uint8).numpy(),
        "words": t.words.half().numpy(),
        "shapes": t.shapes.to(torch.int8).numpy(),
        "colors": t.colors.to(torch.int8).numpy(),
        "places": t.places.half().numpy(),
        "spoiled": t.spoiled.to(torch.uint8).numpy(),
    }


def targets_in(items: dict[str, Tensor]) -> Targets:
    """The labels that ``columns`` holds."""
    floats = {name: items[name].float() for name in ("match", "words", "places", "spoiled")}
    return Targets(**floats, shapes=items["shapes"].long(), colors=items["colors"].long())


def pooled_loss(bf16: bool) -> PoolLoss:
    """The loss of a batch of a pool's items, shared out evenly over its rows."""

    def loss(forward: Callable[..., Reading], items: dict[str, Tensor], generator: torch.Generator) -> Rows:
        pictures, ids = to_network(items["picture"]), items["ids"].long()
        with torch.autocast(pictures.device.type, torch.bfloat16, enabled=bf16):
            reading = forward(pictures, ids)
        return Rows(loss_of(reading, targets_in(items)).expand(len(ids)))

    return loss
