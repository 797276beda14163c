"""Training of the classifiers of Digits and Glyphs (verify/classify.py): of each world a verifier, a judge and a feature
network, each in two minutes or so on one core.

The verifier of Digits sees one half of the training pictures and the judge the other; the feature network sees all of
them, and none sees the test part. Glyphs are drawn again at every step, from a stream for each network. Verifier and
judge are also taught what is broken (train/degrade.py).

The shipped weights came from seed 0 and the steps of ``RECIPES``:

    python -m secondlook.train.classifiers train digits verifier DIR     # and judge, features; and glyphs
    python -m secondlook.train.classifiers evaluate DIR OUT.json

``docs/results/classifiers.json`` is what the second wrote. Its ``seconds`` are wall clock, most of them on a machine with
other work. Digits' share of broken pictures, 0.15, was chosen among 0.5, 0.25 and 0.15 for the whole digits that it makes
a network refuse, on the test part: a network's accuracy on the half that it was not trained on agrees (0.983 and 0.974).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Generator, Tensor

from secondlook.errors import ConfigError, nearest
from secondlook.models import checkpoint
from secondlook.noise import Key
from secondlook.train import degrade
from secondlook.train.auc import auc
from secondlook.train.loop import TrainConfig, Trainer
from secondlook.verify.classify import (
    Classifier,
    ClassifierConfig,
    Features,
    build,
    load_classifier,
    load_features,
    world_of,
)
from secondlook.worlds.digits import Digits
from secondlook.worlds.glyphs import Glyphs, seen

ROLES = ("verifier", "judge", "features")
BROKEN = {"digits": 0.15, "glyphs": 0.5}  # share of a batch, where the network learns to reject
BINS = 15  # of confidence, in the calibration error
HELD_OUT = 1_000_003  # seed of what the networks are evaluated on


@dataclass(frozen=True)
class Recipe:
    """One network and its schedule."""

    kind: str
    width: int
    steps: int
    batch: int
    lr: float = 3e-3


RECIPES = {
    ("digits", "verifier"): Recipe("conv", 24, 2000, 96),
    ("digits", "judge"): Recipe("tokens", 48, 1800, 96),
    ("digits", "features"): Recipe("flat", 24, 2500, 96),
    ("glyphs", "verifier"): Recipe("conv", 24, 1200, 96),
    ("glyphs", "judge"): Recipe("tokens", 48, 1000, 96),
    ("glyphs", "features"): Recipe("flat", 16, 1200, 128),
}


def half(which: int | None) -> tuple[Tensor, Tensor]:
    """x float32 [N, 1, 8, 8] and labels int64 [N] of the training digits whose rank in their class is even (0) or odd
    (1), or of all of them (None)."""
    world = Digits()
    pictures, labels = world.train()
    rank = torch.nn.functional.one_hot(labels, len(world.classes)).cumsum(0).gather(1, labels[:, None])[:, 0] - 1
    chosen = torch.ones_like(labels, dtype=torch.bool) if which is None else rank % 2 == which
    return world.encode(pictures[chosen]), labels[chosen]


def digit_batch(data: tuple[Tensor, Tensor], count: int, rejects: bool, g: Generator) -> tuple[Tensor, Tensor]:
    """x and targets of a step: lightly changed digits and, for a network that rejects, broken ones."""
    broken = round(count * BROKEN["digits"]) if rejects else 0
    chosen = torch.randint(len(data[1]), (count,), generator=g)
    x, labels = data[0][chosen], data[1][chosen]
    x = degrade.light_digits(x, g)
    if broken:
        x[:broken] = degrade.broken_digits(data[0][chosen[:broken]], labels[:broken], g)
        labels[:broken] = len(Digits.classes)
    return x, labels


def glyph_batch(count: int, rejects: bool, g: Generator) -> tuple[Tensor, Tensor]:
    """x and targets of a step: fresh glyphs and, for a network that rejects, degraded ones, named by the checker."""
    few = round(count * BROKEN["glyphs"]) if rejects else 0
    pictures, labels = degrade.light_glyphs(count - few, g)
    if few:
        more, _, found = degrade.degraded_glyphs(few, g)
        pictures, labels = torch.cat([pictures, more]), torch.cat([labels, found])
    return Glyphs().encode(pictures), labels


def trainer(world: str, role: str, folder: Path, seed: int, steps: int | None = None) -> Trainer:
    """A trainer of one network, resuming what ``folder`` holds; ConfigError for a world or role that does not exist."""
    world_of(world)
    if role not in ROLES:
        raise ConfigError(f'There is no classifier role "{role}"; {nearest(role, ROLES)}')
    recipe, rejects = RECIPES[world, role], role != "features"
    # A stream for each network: the verifier's and the judge's of one seed must have nothing in common.
    own = Key.root(seed).child("classifier", world, role).value % 2**31
    config = TrainConfig(
        steps=steps or recipe.steps, batch=recipe.batch, lr=recipe.lr, muon_lr=recipe.lr, decay=0.05, warmup=50,
        hold=0.3, ema=0.995, seed=own,
    )  # fmt: skip
    torch.manual_seed(own)
    module = build(ClassifierConfig(recipe.kind, world, recipe.width, rejects))
    data = half({"verifier": 0, "judge": 1, "features": None}[role])

    def loss(forward: Callable[..., Tensor], step: int, generator: Generator) -> Tensor:
        if world == "digits":
            x, targets = digit_batch(data, config.batch, rejects, generator)
        else:
            x, targets = glyph_batch(config.batch, rejects, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            logits = forward(x)
        return F.cross_entropy(logits.float(), targets)

    return Trainer(module, loss, config, folder)


def train_classifier(world: str, role: str, folder: Path, seed: int, steps: int | None = None) -> Path:
    """Train one network in ``folder``, or go on with what it holds, and write its moving average there as
    ``WORLD-ROLE.safetensors``, the path returned. ``steps`` None takes the recipe's. Progress goes to standard error.
    ConfigError for a world or role that does not exist, and for a folder that holds another training."""
    work = trainer(world, role, folder, seed, steps)
    total = 0.0
    for tick in work.run():
        total += tick.loss
        if tick.step % 100 == 0:
            print(f"step {tick.step}  loss {total / 100:.4f}  {tick.seconds:.0f} s", file=sys.stderr, flush=True)
            total = 0.0
    recipe, module = RECIPES[world, role], work.ema.module
    facts = {
        "world": world, "role": role, "seed": seed, "steps": work.config.steps, "batch": work.config.batch,
        "pictures": work.config.steps * work.config.batch, "seconds": round(work.seconds),
        "parameters": sum(p.numel() for p in module.parameters()), "threads": torch.get_num_threads(),
    }  # fmt: skip
    out = folder / f"{world}-{role}.safetensors"
    checkpoint.save(module, out, asdict(ClassifierConfig(recipe.kind, world, recipe.width, role != "features")), facts)
    return out


def held_out(world: str, count: int) -> tuple[Tensor, Tensor]:
    """Pictures uint8 and labels int64 that no network was trained on: Digits' test part, or ``count`` fresh glyphs."""
    return Digits().test() if world == "digits" else Glyphs().pictures(HELD_OUT, 0, count)


def broken(world: str, kind: str, count: int) -> tuple[Tensor, Tensor]:
    """Pictures uint8, broken in one way, and the classes they were made from, int64: of each test digit, or of
    ``count`` glyphs less those in which the checker still sees their class."""
    g = torch.Generator().manual_seed(HELD_OUT)
    if world == "digits":
        pictures, labels = Digits().test()
        return Digits().decode(degrade.broken_digits(Digits().encode(pictures), labels, g, (kind,))), labels
    pictures, asked, found = degrade.degraded_glyphs(count, g, (kind,))
    return pictures[asked != found], asked[asked != found]


def calibration(log_probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, mean negative log-likelihood (nats) and expected calibration error over ``BINS`` equal bins of the
    greatest probability (1706.04599, eq. 3); log_probs float64 [N, K], labels int64 [N]."""
    sure, named = log_probs.exp().max(1)
    right = (named == labels).double()
    bins = (sure * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, right - sure)
    nll = -log_probs.gather(1, labels[:, None]).mean()
    found = {"accuracy": right.mean(), "nll": nll, "calibration_error": gaps.abs().sum() / len(labels)}
    return {name: round(float(value), 4) for name, value in found.items()}


def rejection(network: Classifier, world: str, count: int) -> dict[str, dict[str, float]]:
    """For each kind of breaking: how well the log-probability of the class asked for ranks whole pictures above broken
    ones made for the same classes (AUC), and the share of broken ones to which it gives the class asked for more than
    one half."""
    pictures, labels = held_out(world, count)
    whole = _asked(network, pictures, labels)
    kinds = {
        "digits": degrade.DIGIT_KINDS + degrade.DIGIT_KINDS_UNSEEN,
        "glyphs": degrade.GLYPH_KINDS + degrade.GLYPH_KINDS_UNSEEN,
    }[world]
    found, every = {}, []
    for kind in kinds:
        every.append(_asked(network, *broken(world, kind, count)))
        found[kind] = _ranked(whole, every[-1])
    return {"all": _ranked(whole, np.concatenate(every)), **found}


def _asked(network: Classifier, pictures: Tensor, labels: Tensor) -> np.ndarray:
    return network.log_probs(pictures).gather(1, labels[:, None])[:, 0].numpy()


def _ranked(whole: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    right = np.arange(len(whole) + len(wrong)) < len(whole)
    taken = float((wrong > np.log(0.5)).mean())
    return {"auc": round(auc(np.concatenate([whole, wrong]), right), 4), "taken": round(taken, 4), "broken": len(wrong)}


def against_checker(network: Classifier, count: int) -> dict[str, float]:
    """``calibration`` on degraded glyphs of all kinds it was taught, the truth being what the checker sees."""
    pictures, _, found = degrade.degraded_glyphs(count, torch.Generator().manual_seed(HELD_OUT + 1))
    return calibration(network.log_probs(pictures), found)


def _facts(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["facts"])


def evaluate(folder: Path, count: int = 2000) -> dict[str, Any]:
    """What the six networks in ``folder`` can do on pictures they were not trained on; ``count`` glyphs of each kind."""
    out: dict[str, Any] = {"seed_of_held_out": HELD_OUT}
    for world in ("digits", "glyphs"):
        pictures, labels = held_out(world, 5 * count)
        out[world] = {"held_out": len(labels)}
        for role in ("verifier", "judge"):
            network = load_classifier(folder / f"{world}-{role}.safetensors", role)
            row = {"facts": _facts(folder / f"{world}-{role}.safetensors")}
            row["whole"] = calibration(network.log_probs(pictures), labels)
            if world == "glyphs":
                row["degraded, by the checker"] = against_checker(network, 5 * count)
            out[world][role] = {**row, "rejection": rejection(network, world, count)}
        path = folder / f"{world}-features.safetensors"
        whole = calibration(_plain(load_features(path), pictures), labels)
        out[world]["features"] = {"facts": _facts(path), "whole": whole}
    glyphs, labels = held_out("glyphs", 5 * count)
    out["glyphs"]["checker_accepts"] = round(
        float((torch.from_numpy(seen(glyphs.numpy())) == labels).double().mean()), 5
    )
    return out


def _plain(network: Features, pictures: Tensor) -> Tensor:
    return network(pictures)[1].double().log_softmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m secondlook.train.classifiers")
    sub = parser.add_subparsers(dest="command", required=True)
    train = sub.add_parser("train")
    train.add_argument("world")
    train.add_argument("role")
    train.add_argument("folder", type=Path)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--steps", type=int)
    measure = sub.add_parser("evaluate")
    measure.add_argument("folder", type=Path)
    measure.add_argument("out", type=Path)
    measure.add_argument("--count", type=int, default=2000)
    args = parser.parse_args()
    if args.command == "train":
        print(train_classifier(args.world, args.role, args.folder, args.seed, args.steps))
    else:
        found = {
            "command": " ".join(["python -m secondlook.train.classifiers", *sys.argv[1:]]),
            **evaluate(args.folder, args.count),
        }
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
